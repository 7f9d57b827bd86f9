//! Keys that are mended while their lane streams: see [`crate::mend`].

use super::desk::Desk;
use crate::fault::Fault;
use crate::mend;

/// Questions of lanes about keys, and the answers.
pub type MendDesk = Desk<MendQuestion, MendAnswer>;

/// A question, and the master whose stream the offset of the answer shall be of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MendQuestion {
    pub address: String,
    pub port: u16,
    pub keys: mend::Question,
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MendAnswer {
    Taken(mend::Snapshot),
    /// Not now, for this reason.
    Later(String),
    /// Asking again is no use.
    Never(Fault),
}
