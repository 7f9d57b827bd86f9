//! The only place that names glommio: executors pinned to cores, sockets, timers.
//!
//! Each core runs one executor; each lane is one task on one of them, from its first byte to its last. A lane's task owns
//! its [`Lane`](crate::engine::lane::Lane) and its sockets, so nothing on the path of a command is shared or locked.
//!
//! | file | job |
//! |---|---|
//! | `executor` | one thread per core, lanes handed to it, the clean end |
//! | `supervisor` | which lanes there are: follows the source's topology |
//! | `lane_task` | turns of one lane: read, advance, write |
//! | `pulse` | executors that miss a wake-up |
//! | `connection` | one socket: dial, read, vectored write |
//!
//! What glommio does and does not do decided some of this. Its TCP streams try the system call first and arm a poll only
//! when that would block, so polling an idle socket costs nothing, and one task can look after all sockets of a lane.
//! It has no vectored write: `sendmsg` on the descriptor fills the gap. A task that always has work must yield by
//! itself, or other tasks wait for the preemption timer. Dropping an executor does not drop its tasks: lanes are told to
//! stop and are awaited.

mod connection;
mod executor;
mod lane_task;
mod pulse;
mod supervisor;

pub use supervisor::{RuntimeHandle, start};
