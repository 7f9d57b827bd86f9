//! What the engine must know about a replicated command: its kind, its keys, whether it may be applied twice.
//!
//! Layer 1. Everything stands in one [`table`]: every write command of Redis 6.0 to 8.10 and Valkey 8.0 to 9.1, what
//! servers put into a replication stream besides writes, and the reads that a module may replicate. Commands
//! that it lacks are learned from the source ([`learned`]).
//!
//! ```text
//! *3 $3 SET $3 key $5 value          verb -> lookup() -> &Command { kind, keys, safety }
//!        |      |                    keys -> keys(), one_slot(), split_by_slot()
//!        verb   key at 1             safety -> replay_safe()
//! ```
//!
//! | file | job |
//! |---|---|
//! | `table` | the rows, and nothing else |
//! | `lookup` | verb in any casing to its row, in a few nanoseconds |
//! | `keys` | where the keys of a command stand, and their slot |
//! | `split` | one command over several slots as one command per slot, where that is exact |
//! | `safety` | whether applying a suffix of the stream again gives the same data |
//! | `origin` | whether a verb's casing tells that a write was replicated, and which commands keep it |
//! | `rewrite` | commands put into the words of another version |
//! | `database` | `SELECT`, `SWAPDB`, `MOVE`, `COPY ... DB` |
//! | `learned` | commands that only the source knows |
//!
//! Nothing here allocates for a command of the table, except splitting and describing.

mod database;
mod keys;
mod learned;
mod lookup;
mod origin;
pub mod rewrite;
mod safety;
mod split;
mod table;

pub use database::{
    DatabaseError, database_of_copy, database_of_move, database_of_select, databases_of_swap,
};
pub use keys::{KeyError, KeySpec, Keys, Positions, SlotOf, keys, one_slot};
pub use learned::{Learned, LearnedFull};
pub use lookup::lookup;
pub use origin::{
    Origin, is_marked, is_to_be_marked, keeps_mark, mark, mark_from, without_prologue,
};
pub use safety::{Replay, Safety, replay, replay_safe};
pub use split::{SplitError, split_by_slot};
pub use table::COMMANDS;

use crate::limits;
use crate::resp::Frame;
use rewrite::Watch;
use std::borrow::Cow;

/// What the engine must know about a command.
#[derive(Debug, Clone)]
pub struct Command {
    /// Lower-case name; that of a subcommand is joined to its container's as servers do: `xgroup|create`.
    pub name: Cow<'static, str>,
    pub kind: Kind,
    pub keys: KeySpec,
    pub safety: Safety,
    /// When it must be looked at before it goes to a target.
    pub watch: Watch,
    /// Whether a mark on its verb is found in the target's stream.
    pub origin: Origin,
    /// Of a container (`XGROUP`): its subcommands. Empty otherwise.
    pub subcommands: &'static [Command],
}

/// What a command asks of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Writes its keys: goes to the owner of their slot.
    Data,
    /// Changes no data. Servers do not replicate these; where a module or an old script did, dropping one is exact.
    /// (`TOUCH` is here: it moves access times, which replication does not carry anyway.)
    NoEffect,
    /// Chooses the database of what follows.
    Select,
    /// Keepalive of the master; counts in the offset only.
    Ping,
    /// Talk between master and replica, `REPLCONF GETACK *`; counts in the offset only.
    Replconf,
    Multi,
    Exec,
    Discard,
    /// Removes all keys of the shard, in every database.
    FlushAll,
    /// Removes all keys of the shard in the selected database.
    FlushDb,
    SwapDb,
    /// Moves a key to another database: one key, two databases.
    Move,
    /// A script or function as it was called; 6.0 with `lua-replicate-commands no` sends these.
    Eval,
    Function(FunctionOp),
    Script(ScriptOp),
    /// A message to a channel. Belongs to no slot.
    Publish,
    /// A message to a sharded channel, which belongs to the slot of its name.
    ShardPublish,
    /// Traces of slots that move between masters, or the removal of slots' keys.
    Slots(SlotOp),
    /// A verb that means nothing without its subcommand; [`find`] never gives one.
    Container,
}

/// `FUNCTION ...`: libraries live on every master, in no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FunctionOp {
    Load,
    Delete,
    Flush,
    Restore,
}

/// `SCRIPT ...`, in the streams of 6.0 only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScriptOp {
    Load,
    Flush,
}

/// What a command tells about slots that move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotOp {
    /// `RESTORE-ASKING key ...`: a key arrives with `MIGRATE`.
    RestoreAsking,
    /// `CLUSTER SYNCSLOTS ...` (Valkey 9, Redis 8.4): a migration of whole slots begins, goes on or ends.
    SyncSlots,
    /// `CLUSTER SETSLOT ...` (Valkey 8 and later): an owner was declared.
    SetSlot,
    /// `CLUSTER FLUSHSLOT slot` (Valkey 9.1): the keys of one slot of this shard go.
    FlushSlot,
    /// `TRIMSLOTS RANGES n start end ...` (Redis 8.4): slots that left are removed.
    TrimSlots,
    /// `SFLUSH start end ...` (Redis 8): the keys of slots of this shard go.
    SlotFlush,
}

impl Command {
    /// Whether the command has exactly one key and it is argument 1, by far the most common case: the caller
    /// may take `frame.arg(1)` and ask nothing else.
    #[inline]
    pub fn key_is_first_argument(&self) -> bool {
        matches!(self.keys, KeySpec::One)
    }
}

/// The row of `frame`'s command, its subcommand resolved; `None` for a command, or subcommand, that the table lacks.
#[inline]
pub fn find(frame: &Frame<'_>) -> Option<&'static Command> {
    let command = lookup(frame.verb())?;
    if command.subcommands.is_empty() {
        return Some(command);
    }
    subcommand(command, frame.arg(1)?)
}

/// The row of subcommand `name`, in any casing, of a container.
pub fn subcommand(container: &'static Command, name: &[u8]) -> Option<&'static Command> {
    let prefix = container.name.len() + 1;
    container
        .subcommands
        .iter()
        .find(|command| command.name.as_bytes()[prefix..].eq_ignore_ascii_case(name))
}

/// The command in a few words for messages and logs: verb, first key, number of arguments. Both are escaped and
/// cut short, and no value is ever shown.
pub fn describe(frame: &Frame<'_>) -> String {
    let command = find(frame);
    let mut text = shortened(frame.verb());
    if let Some(name) = command.and_then(|command| command.name.split_once('|')) {
        text.push(' ');
        text.push_str(&name.1.to_ascii_uppercase());
    }
    let first_key = command.and_then(|command| keys(frame, command).ok()?.next());
    if let Some(key) = first_key {
        text.push_str(" '");
        text.push_str(&shortened(key));
        text.push('\'');
    }
    let plural = if frame.argc() == 1 { "" } else { "s" };
    text.push_str(&format!(" ({} argument{plural})", frame.argc()));
    text
}

/// `bytes` escaped, its tail left out when it is long.
fn shortened(bytes: &[u8]) -> String {
    match bytes.get(..limits::DESCRIBED_BYTES) {
        Some(head) if head.len() < bytes.len() => format!("{}...", head.escape_ascii()),
        _ => bytes.escape_ascii().to_string(),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use crate::resp::{Frame, scan};

    /// The bytes of a command of these arguments.
    pub fn encode<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
        let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            bytes.extend_from_slice(format!("${}\r\n", arg.as_ref().len()).as_bytes());
            bytes.extend_from_slice(arg.as_ref());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes
    }

    /// Calls `check` with the command written as words between spaces.
    pub fn with_frame<T>(line: &str, check: impl FnOnce(&Frame<'_>) -> T) -> T {
        let bytes = encode(&line.split(' ').collect::<Vec<_>>());
        check(
            &scan(&bytes)
                .expect("a valid command")
                .expect("a whole command"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{encode, with_frame};
    use super::*;
    use crate::resp::scan;

    #[test]
    fn a_container_needs_its_subcommand() {
        with_frame("xGROUP cReAtE s g 0", |frame| {
            assert_eq!(find(frame).unwrap().name, "xgroup|create");
        });
        with_frame("XGROUP NONSENSE s g 0", |frame| {
            assert!(find(frame).is_none());
        });
        with_frame("XGROUP", |frame| assert!(find(frame).is_none()));
        with_frame("CLUSTER syncslots FINISH STATE SUCCESS", |frame| {
            assert_eq!(find(frame).unwrap().kind, Kind::Slots(SlotOp::SyncSlots));
        });
    }

    #[test]
    fn a_description_names_verb_and_key_but_no_value() {
        assert_eq!(
            with_frame("sET user:1 secret", describe),
            "sET 'user:1' (3 arguments)"
        );
        assert_eq!(
            with_frame("XGROUP create s g 0", describe),
            "XGROUP CREATE 's' (5 arguments)"
        );
        assert_eq!(
            with_frame("JSON.SET doc . secret", describe),
            "JSON.SET (4 arguments)"
        );
        assert_eq!(with_frame("EXEC", describe), "EXEC (1 argument)");
        let long = encode(&[&b"SET"[..], &[0xff; 200], b"secret"]);
        let text = describe(&scan(&long).unwrap().unwrap());
        assert!(text.ends_with("\\xff...' (3 arguments)"), "{text}");
        assert!(text.len() < 4 * limits::DESCRIBED_BYTES + 40);
    }
}
