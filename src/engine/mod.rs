//! The engine: what a lane knows and shows, independent of sockets, threads and clocks.
//!
//! - [`options`]: what the user asked for;
//! - [`status`]: one lane's numbers, written by the lane and read by the control threads;
//! - [`shared`]: what lanes and control threads have in common: topologies, lanes, stop, hints;
//! - [`desk`]: where questions of lanes wait for control threads;
//! - [`fence`]: whether a target master may be written to;
//! - [`lookup`]: questions about commands that our own table does not know;
//! - [`mending`]: questions about keys that differ;
//! - [`recopy`]: questions about the keys that slots hold;
//! - [`moves`]: which lane writes which slot.

mod arrivals;
pub mod claims;
mod copy;
pub mod desk;
mod echo;
pub mod fence;
mod hold;
mod intake;
mod keyset;
pub mod lane;
mod lease;
mod listing;
pub mod lookup;
mod marks;
pub mod mending;
mod motion;
pub mod moves;
pub mod options;
mod pace;
mod parked;
mod rebuild;
pub mod recopy;
pub mod records;
mod redirect;
mod renewal;
mod retry;
mod rewind;
pub mod roster;
mod serial;
mod settle;
pub mod shared;
mod spooling;
pub mod status;
mod stream;
mod sweep;
mod targets;
#[cfg(test)]
mod tests;
mod touched;
mod values;

pub use copy::remedy;
pub use rebuild::{Omissions, release, watched};
pub use spooling::Spooled;
