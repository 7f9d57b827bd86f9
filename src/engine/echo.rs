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
//!
//! This ends loops, and settles no conflict: clients of the two sides have to write different keys. What a side does to the
//! other's keys by itself is a write like any other: an eviction, the end of a key by its own clock (the other side may renew it
//! in that moment), the values that a mend, a slot that moves or a later full copy takes from it. A first copy overwrites nothing
//! (see [`super::copy`]), so that both directions can begin beside each other; but it may bring back a key that its owner removes
//! in these moments.

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

/// What of a stream is no echo, nor in a transaction with one. What is no command is left at its end.
pub(super) fn without_echoes(stream: &[u8]) -> Vec<u8> {
    let mut own = Vec::with_capacity(stream.len());
    // Where the open transaction begins in `own`, and whether it holds an echo.
    let mut open: Option<(usize, bool)> = None;
    // The database that it leaves selected goes on to hold.
    let mut select: Vec<u8> = Vec::new();
    let mut rest = stream;
    while let Ok(Some(frame)) = scan(rest) {
        rest = &rest[frame.bytes().len()..];
        let is = |verb: &[u8]| frame.verb().eq_ignore_ascii_case(verb);
        let echo = is_echo(&frame);
        match &mut open {
            None if echo => continue,
            None if is(b"MULTI") => open = Some((own.len(), false)),
            None => {}
            Some((_, any)) => *any |= echo,
        }
        own.extend_from_slice(frame.bytes());
        if is(b"SELECT") {
            select = frame.bytes().to_vec();
        }
        if is(b"EXEC") {
            let select = std::mem::take(&mut select);
            if let Some((begin, true)) = open.take() {
                own.truncate(begin);
                own.extend_from_slice(&select);
            }
        }
    }
    own.extend_from_slice(rest);
    own
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

    /// The transaction before the scan holds an echo. Gives the database that it leaves selected, if it selects any: what follows is
    /// in that one.
    pub(super) fn drop_echoes(&mut self, commands: u32) -> Option<u32> {
        let mut selected = None;
        let mut rest = self.chunks.get(self.intake.open_range());
        let mut ends = 0;
        while let Ok(Some(frame)) = scan(rest) {
            rest = &rest[frame.bytes().len()..];
            let verb = frame.verb();
            ends += u64::from(verb == b"DEL" || verb == b"UNLINK");
            if verb.eq_ignore_ascii_case(b"SELECT") {
                selected = command::database_of_select(&frame).ok();
            }
        }
        self.status.count_many(ErrorCount::LocalRemovals, ends);
        let commands = u64::from(commands) - ends;
        self.status.echoes.fetch_add(commands, Relaxed);
        self.intake.close();
        selected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::push_command;

    fn stream(lines: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in lines {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            push_command(&mut out, &words);
        }
        out
    }

    #[test]
    fn what_was_replicated_here_is_told_by_its_casing_or_by_its_key() {
        let is = |line: &str| is_echo(&scan(&stream(&[line])).unwrap().unwrap());
        for line in [
            "sET k v",
            "xGROUP CREATE s g 0",
            "SET {06S}slotstream:w:default 1",
            "XGROUP SETID {06S}slotstream:m:default:1 g 0",
        ] {
            assert!(is(line), "{line}");
        }
        for line in [
            "SET k v",
            "set k v",
            "Set k v",
            "ping",
            "SET {06S}other v",
            "SET k {06S}slotstream:w:default",
        ] {
            assert!(!is(line), "{line}");
        }
    }

    #[test]
    fn a_transaction_goes_with_any_echo_in_it() {
        let all = [
            "SET a 1", "sET b 1", "MULTI", "SET c 1", "EXEC", "MULTI", "DEL d", "sET e 1", "EXEC",
            "INCR f",
        ];
        let own = ["SET a 1", "MULTI", "SET c 1", "EXEC", "INCR f"];
        assert_eq!(without_echoes(&stream(&all)), stream(&own));
        let others = [
            "MULTI", "SELECT 1", "iNCR k", "SELECT 0", "sET w 1", "EXEC", "SET x 1",
        ];
        let left = ["SELECT 0", "SET x 1"];
        assert_eq!(without_echoes(&stream(&others)), stream(&left));
    }
}
