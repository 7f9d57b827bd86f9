//! The lab: real Redis and Valkey servers of several versions, beside each other on one machine.
//!
//! What it is for: tests, the quickstart and the measurements need the servers that people run, not
//! imitations of them. In reading order:
//!
//! - [`version`]: the six families of servers, what each of them can do, and which are available here.
//! - [`debian`]: brings the servers from Debian's suites, each with the libraries it was built against.
//! - [`server`], [`cluster`]: start and stop them on free loopback ports, alone or as clusters.
//! - [`resp`], [`client`]: a small blocking client; pipelined, and routed by slot where there is a cluster.
//! - [`load`]: fills a deployment with data of every type and encoding that its version knows.
//! - [`writers`]: live traffic, every kind of write command in a random mix.
//! - [`compare`]: two deployments of any shape, key by key.
//! - [`proxy`]: a TCP proxy that pauses, cuts, delays, slows down and loses.
//! - [`slotstream`]: runs the program itself and watches its status page.
//! - [`tap`]: a server's stream, command by command.
//! - [`torture`]: crashes it over and over, and shows that nothing is lost or done twice.
//! - [`quickstart`]: a first look at the program, for a newcomer at a terminal.
//!
//! Everything that is random comes from a seed. Everything that is started dies with the process that
//! started it, also when that is killed.

pub mod changes;
pub mod client;
pub mod cluster;
pub mod compare;
pub mod debian;
pub mod load;
pub mod proxy;
pub mod quickstart;
pub mod resp;
pub mod server;
pub mod slotstream;
pub mod tap;
pub mod torture;
pub mod version;
pub mod wait;
pub mod writers;

pub use client::{Client, Endpoint};
pub use cluster::{Cluster, ClusterOptions};
pub use compare::{Capture, CompareOptions, Diff, compare};
pub use load::{LoadOptions, LoadReport, load};
pub use proxy::Proxy;
pub use resp::{Command, Connection, Value};
pub use server::{Server, ServerOptions};
pub use slotstream::Slotstream;
pub use tap::Tap;
pub use version::{Family, Version, skipped, version, version_or_skip, versions};
pub use wait::wait_until;
pub use writers::{Commands, WriterOptions, WriterReport, Writers};

/// What everything fallible in the lab returns: it is a tool, and its errors are read by people.
pub type Result<T, E = anyhow::Error> = std::result::Result<T, E>;
