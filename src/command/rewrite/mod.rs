//! Commands of the source's stream, put into the words of a target that is older or of the other lineage.
//!
//! What is in a stream has had its effect on the source, so a condition (`NX`, `GT`, `IFEQ`, `FNX`) held there and may be
//! left out; and what it did not change is the same on the target. That makes nearly every newer command
//! expressible exactly. Whatever is not is named by its kind ([`Lack`]) and stops the lane, or is left out and counted.
//!
//! ```text
//! row of the table: Watch { needs, beyond, rule }      needs & lacking == 0, or few arguments -> as it came (one branch)
//!                                                      else rule(frame) -> Same | Rebuilt | Lack
//! SET k v PXAT t       to 6.0   SET k v, PEXPIREAT k t            (the caller wraps several in MULTI ... EXEC)
//! SETEX k 5 v          to any   SET k v PXAT t                    (t: 5 s after it was received)
//! HSETEX k PXAT t ..   to 7.0   lacks the expiry of hash fields
//! ```
//!
//! | file | rules |
//! |---|---|
//! | `features` | which server knows what |
//! | `lifetimes` | `SET` and all that sets a deadline of a key |
//! | `hashes` | deadlines of fields |
//! | `structures` | lists and sorted sets: what 6.0 lacks, mostly as small scripts |
//! | `streams` | `XADD`, `XTRIM`, `XGROUP`, `XSETID` |
//! | `restore` | serialized values |

mod features;
pub(super) mod hashes;
pub(super) mod lifetimes;
pub(super) mod restore;
pub(super) mod streams;
pub(super) mod structures;

pub use features::{Features, Lack};
pub use restore::{lack_behind, with_altered_deadlines, without_lost_deadlines};

use super::Command;
use crate::rdb::TargetFormat;
use crate::resp::{Encoder, Frame, push_command};

/// The table's word on when a command must be looked at before it goes to a target.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    /// What the target must know to take every form of the command.
    pub needs: Features,
    /// With at most so many arguments, the verb included, the command is one that every server takes.
    pub beyond: u8,
    /// So it is if argument 2 begins with a digit: options would stand before that number.
    pub unless_number: bool,
    pub rule: Rule,
}

/// What becomes of a command that is looked at.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// Nothing else expresses it.
    Lacks(Lack),
    Rewrite(fn(&Frame<'_>, &mut Rewriting<'_>) -> Result<Verdict, Lack>),
}

/// What came of looking at a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It passes as it came.
    Same,
    /// So many commands, which may be none, say the same to this target. Several belong into one transaction.
    Rebuilt(usize),
}

impl Watch {
    pub const NEVER: Watch = Watch {
        needs: Features::NONE,
        beyond: u8::MAX,
        unless_number: false,
        rule: Rule::Lacks(Lack::Command),
    };

    /// Whether a command must be looked at for a target that lacks `lacking`.
    #[inline]
    pub fn wants(&self, lacking: Features, frame: &Frame<'_>) -> bool {
        self.needs.meets(lacking)
            && frame.argc() > usize::from(self.beyond)
            && !(self.unless_number && begins_with_digit(frame.arg(2)))
    }
}

fn begins_with_digit(arg: Option<&[u8]>) -> bool {
    arg.and_then(<[u8]>::first).is_some_and(u8::is_ascii_digit)
}

/// Alters deadlines on their way to the target. The default is to keep them.
///
/// Called for every deadline of a command that is looked at; commands with deadlines are looked at only while
/// [`Features::DEADLINE`] is among what the target "lacks". Times are Unix time in milliseconds.
pub trait Deadlines {
    /// The deadline to write for `key` where the source says `at_ms`.
    fn of_key(&mut self, _key: &[u8], at_ms: u64) -> u64 {
        at_ms
    }

    /// The deadline to write for these fields of the hash `key`.
    fn of_fields(
        &mut self,
        _key: &[u8],
        _fields: &mut dyn Iterator<Item = &[u8]>,
        at_ms: u64,
        _whose: Whose,
    ) -> u64 {
        at_ms
    }

    /// The same for a field whose name is not at hand.
    fn of_nameless_field(&mut self, at_ms: u64) -> u64 {
        at_ms
    }

    /// Deadlines of fields before this may be altered: a serialized hash that has one cannot pass as it is.
    fn fields_near_until(&self) -> u64 {
        0
    }

    /// The value of `from`, and its deadline with it, is found under `to` as well from now on, or instead.
    fn carried(&mut self, _from: &[u8], _to: &[u8]) {}

    /// Values, and their deadlines with them, go where they cannot be followed.
    fn lost_track(&mut self) {}
}

/// Which of the fields that a command names get its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    All,
    /// Those for which its condition holds.
    Matching,
}

/// Deadlines as the source has them.
#[derive(Debug, Clone, Copy)]
pub struct Unaltered;

impl Deadlines for Unaltered {}

/// What is known of the target, the same for every command.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What the target lacks, and [`Features::DEADLINE`] while deadlines are to be altered.
    pub lacking: Features,
    pub format: TargetFormat,
    /// Leave out what the target cannot take, instead of failing.
    pub leave_out: bool,
}

/// One command being rewritten.
pub struct Rewriting<'a> {
    pub target: Target,
    /// When the command was received: Unix time in milliseconds. Relative times count from here.
    pub received_at_ms: u64,
    pub deadlines: &'a mut dyn Deadlines,
    /// Where commands are appended.
    pub out: &'a mut Vec<u8>,
    /// What was left out; each counts once for a command.
    pub left_out: Vec<Lack>,
    written: usize,
}

impl<'a> Rewriting<'a> {
    pub fn new(
        target: Target,
        received_at_ms: u64,
        deadlines: &'a mut dyn Deadlines,
        out: &'a mut Vec<u8>,
    ) -> Self {
        Self {
            target,
            received_at_ms,
            deadlines,
            out,
            left_out: Vec::new(),
            written: 0,
        }
    }

    /// Looks at a command whose row wants it.
    ///
    /// # Errors
    /// When the target cannot take it and nothing may be left out.
    pub fn look(&mut self, frame: &Frame<'_>, command: &Command) -> Result<Verdict, Lack> {
        self.written = 0;
        match command.watch.rule {
            Rule::Rewrite(rule) => rule(frame, self),
            Rule::Lacks(lack) => self.nothing(lack),
        }
    }

    fn lacks(&self, feature: Features) -> bool {
        self.target.lacking.meets(feature)
    }

    /// Notes that something cannot be said to the target; an error unless it may be left out.
    fn leave_out(&mut self, lack: Lack) -> Result<(), Lack> {
        if !self.target.leave_out {
            return Err(lack);
        }
        if !self.left_out.contains(&lack) {
            self.left_out.push(lack);
        }
        Ok(())
    }

    /// Leaves the whole command out.
    fn nothing(&mut self, lack: Lack) -> Result<Verdict, Lack> {
        self.leave_out(lack)?;
        Ok(Verdict::Rebuilt(0))
    }

    /// Appends a whole command.
    fn push(&mut self, args: &[&[u8]]) {
        push_command(self.out, args);
        self.written += 1;
    }

    /// Begins a command of `argc` arguments.
    fn begin(&mut self, argc: usize) -> Encoder<'_> {
        self.written += 1;
        Encoder::begin(self.out, argc)
    }

    fn rebuilt(&self) -> Verdict {
        Verdict::Rebuilt(self.written)
    }

    /// The moment `amount` of `unit_ms` after the command was received, or, if `absolute`, after the epoch. Negative
    /// and overflowing times are what servers never replicate; they end up at the ends of the scale.
    fn moment(&self, amount: &[u8], unit_ms: u64, absolute: bool) -> Option<u64> {
        let amount: i64 = std::str::from_utf8(amount).ok()?.parse().ok()?;
        let base = if absolute { 0 } else { self.received_at_ms };
        let span = i128::from(amount) * i128::from(unit_ms);
        let moment = (i128::from(base) + span).clamp(1, i128::from(i64::MAX));
        u64::try_from(moment).ok()
    }
}

#[cfg(test)]
mod tests;
