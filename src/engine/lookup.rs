//! Questions of lanes about commands that the table does not know, answered by a control thread.

use super::desk::Desk;
use crate::fault::Fault;

/// Where they wait.
pub type LookupDesk = Desk<LookupQuestion, LookupAnswer>;

/// What a lane wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupQuestion {
    /// Where the keys of every command of this name are: `COMMAND INFO verb`.
    Positions { verb: Vec<u8> },
    /// Which keys this very command has: `COMMAND GETKEYS arg ...`, the verb first.
    Keys { args: Vec<Vec<u8>> },
}

/// What the source said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupAnswer {
    /// `first` 0: no keys. `last` counts from the end when negative. `movable`: ask for the keys of
    /// each command instead. `write`: the command may change data.
    Positions {
        first: i64,
        last: i64,
        step: i64,
        movable: bool,
        write: bool,
    },
    Keys(Vec<Vec<u8>>),
    /// The source does not know the command, or cannot tell its keys; holds what it answered.
    Unknown(String),
    /// Nobody could be asked; ask again.
    Failed(Fault),
}
