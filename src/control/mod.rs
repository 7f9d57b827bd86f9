//! Everything beside the data path: finding servers, checking them, watching them, showing numbers.
//!
//! Layer 4. Ordinary threads that block; they meet the lanes only in [`crate::engine::shared::Shared`].
//!
//! - [`client`]: a blocking connection for a few commands;
//! - [`discover`]: from what the user typed to all masters of a deployment;
//! - [`environment`]: what kernel, limits and cores allow;
//! - [`preflight`]: what both deployments allow, before anything is written;
//! - [`watcher`]: topologies and source offsets, once a second and on every hint;
//! - [`lookup`]: answers questions about unknown commands;
//! - [`mend`]: asks source masters for the values of keys;
//! - [`report`] and [`http`]: the status page.

pub mod client;
pub mod discover;
pub mod environment;
pub mod http;
pub mod lookup;
pub mod mend;
pub mod preflight;
pub mod report;
pub mod watcher;
