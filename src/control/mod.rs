//! Everything beside the data path: finding servers, checking them, watching them, showing numbers.
//!
//! Layer 4. Ordinary threads that block; they meet the lanes only in [`crate::engine::shared::Shared`].
//!
//! - [`client`]: a blocking connection for a few commands;
//! - [`discover`]: from what the user typed to all masters of a deployment;
//! - [`environment`]: what kernel, limits and cores allow;
//! - [`preflight`]: what both deployments allow, before anything is written;
//! - [`masters`]: one command for each slot or master, pipelined;
//! - [`writers`]: connections that write to a target, by their names;
//! - [`watcher`]: topologies and source offsets, once a second and on every hint;
//! - [`histories`]: the names of a source master's history;
//! - [`takeover`]: shuts former writers out, and reads what the target knows about itself;
//! - [`service`]: a thread that answers the lanes' questions of one kind, which are:
//! - [`fence`]: whether a lane may write to a target master;
//! - [`lookup`]: which arguments of an unknown command are keys;
//! - [`mend`]: the value of a key at its source master;
//! - [`listing`]: the keys of slots that have moved;
//! - [`report`] and [`http`]: the status page.

pub mod client;
pub mod discover;
pub mod environment;
pub mod fence;
pub mod histories;
pub mod http;
pub mod listing;
pub mod lookup;
pub mod masters;
pub mod mend;
pub mod preflight;
pub mod report;
pub mod service;
pub mod takeover;
pub mod watcher;
pub mod writers;
