//! What the source holds because it was replicated into it, and what other processes of this program keep there.
//!
//! ```text
//! clients -> A -- lane, marks --> B <- clients
//!            A <-- lane, drops --'        B's stream: SET x .. (its clients')   sET y .. (A's, come from there)
//! ```
//!
//! With `--mark` a lane drops from its source's stream:
//!
//! - commands whose verb is marked ([`crate::command::Origin`]), and transactions that hold any such command: what of them
//!   has no mark is what the server made of a command that loses it, or the end of a key by the server's own clock;
//! - what concerns keys of this program, of any link, whoever wrote them.
//!
//! What is dropped counts as applied like any other command. No record is written for it alone: the other direction would read
//! that record, and tell of it in its own, for ever. Only [`crate::limits::UNTOLD_BYTES`] make one.

use std::sync::atomic::Ordering::Relaxed;

use super::lane::Lane;
use super::status::ErrorCount;
use super::stream::Run;
use crate::checkpoint::is_bookkeeping;
use crate::command;
use crate::resp::{Frame, scan};

/// Whether a command was replicated into the source, or is about what this program keeps there.
#[inline]
pub(super) fn is_echo(frame: &Frame<'_>) -> bool {
    command::is_marked(frame.verb()) || [1, 2].iter().any(|&place| is_own_key(frame, place))
}

/// Containers have their key behind the subcommand.
#[inline]
fn is_own_key(frame: &Frame<'_>, place: usize) -> bool {
    let key = frame.arg(place).filter(|key| key.first() == Some(&b'{'));
    let of_place = place == 1 || frame.verb().eq_ignore_ascii_case(b"XGROUP");
    key.is_some_and(|key| of_place && is_bookkeeping(key))
}

impl Lane {
    /// The command at the cursor, `length` bytes, is an echo.
    pub(super) fn drop_echo(&mut self, run: &mut Option<Run>, length: usize) {
        match &mut self.router.open {
            // The rest of the transaction goes with it.
            Some(open) => {
                open.frames += 1;
                open.echo = true;
                self.keep_open(length);
            }
            None => {
                self.flush_run(run);
                self.status.echoes.fetch_add(1, Relaxed);
                self.pass(length);
            }
        }
    }

    /// The transaction before the scan holds an echo.
    pub(super) fn drop_echoes(&mut self, commands: u32) {
        let mut rest = self.chunks.get(self.intake.open_range());
        let mut ends = 0;
        while let Ok(Some(frame)) = scan(rest) {
            rest = &rest[frame.bytes().len()..];
            let verb = frame.verb();
            ends += u64::from(verb == b"DEL" || verb == b"UNLINK");
        }
        self.status.count_many(ErrorCount::LocalRemovals, ends);
        let commands = u64::from(commands) - ends;
        self.status.echoes.fetch_add(commands, Relaxed);
        self.intake.close();
    }
}
