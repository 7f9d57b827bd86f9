//! The engine: what a lane knows and shows, independent of sockets, threads and clocks.
//!
//! - [`options`]: what the user asked for;
//! - [`status`]: one lane's numbers, written by the lane and read by the control threads;
//! - [`shared`]: what lanes and control threads have in common: topologies, lanes, stop, hints;
//! - [`lookup`]: questions of lanes about commands that our own table does not know.

pub mod claims;
mod copy;
mod hold;
mod intake;
pub mod lane;
pub mod lookup;
pub mod options;
mod parked;
mod redirect;
mod retry;
pub mod roster;
pub mod shared;
pub mod status;
mod stream;
mod targets;
#[cfg(test)]
mod tests;
