//! The target side: one connection to one target master, without a socket.
//!
//! A [`Writer`] holds the ledger of what was handed to it: runs of neighbouring commands, each a range of a chunk.
//! They are sent in order, answered in order, and kept until answered, so that a lost connection loses nothing:
//! what has no answer is sent again.
//!
//! ```text
//! runs     [ answered in part | sent | sent | sent in part | queued | queued ]
//!            front: its `begin` bounds what is acknowledged  ^ `sent`         ^ grows by merging
//! ```

mod run;
#[cfg(test)]
mod tests;
mod writer;

pub use run::{Form, Guard, Unit};
pub use writer::{Greeting, Outcome, Writer, WriterError};
