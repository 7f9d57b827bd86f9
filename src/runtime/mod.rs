//! A thread for each core, and its sockets: the only place that names io_uring.
//!
//! Each lane lives on one of these threads, from its first byte to its last. A lane's task owns its
//! [`Lane`](crate::engine::lane::Lane) and its sockets, so nothing on the path of a command is shared or locked.
//!
//! A thread is pinned to its core if the user names cores (`--cores`), which is right where they are kept free for it. Where
//! source and target run on the same cores, a pinned thread waits for its own while another is idle: after a load a write
//! was seen on the target after 0.20 to 0.26 ms, and after 0.15 to 0.16 ms where the kernel may place the thread (`perf/run`,
//! two cores, seven and five rounds; CPU per command was the same).
//!
//! | file | job |
//! |---|---|
//! | `executor` | one thread per core, lanes handed to it, the clean end |
//! | `supervisor` | which lanes there are: follows the source's topology |
//! | `lane_task` | turns of one lane: read, advance, write |
//! | `connection` | one socket: dial, read, vectored write |
//! | `spool_files` | the files of the lanes' spools, on a thread of their own |
//! | `leftovers` | spools that lanes may take up when they begin |
//! | `ring` | which sockets are ready: io_uring |
//!
//! Reads and writes are plain system calls, tried when the ring has told that they will find something: in bulk that costs
//! what reads through a ring cost, and at lower rates what counts is the price of a wake-up. Here that is one
//! `io_uring_enter`. A general executor (glommio 0.9 was in this place) takes seven around each sleep, to cancel and arm timers
//! on three rings: with it a streamed `SET` took 0.39 us of CPU where it takes 0.23 now, and a write was seen on the target
//! 20 us later (`perf/run --quick --against`, medians of the same run). It could also sleep past its timers, and locked
//! memory and a C compiler were needed for it.

mod connection;
mod executor;
mod lane_task;
mod leftovers;
mod ring;
pub mod spool_files;
mod supervisor;

pub use ring::check;
pub use supervisor::{RuntimeHandle, start};
