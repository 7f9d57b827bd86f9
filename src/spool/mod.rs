//! The spool: what was received and finds no room in the lane's buffers, in memory and then on disk, in order.
//!
//! Layer 2, pure: it gives [`Order`]s and takes their results in; `runtime::spool_files` executes them.
//!
//! ```text
//! segment files:  [ answered? | taken, not answered | to be taken            ]
//! memory:                                    [ read ahead ]   [ not written  | tail ]
//!                             ^ acknowledged        ^ taken                         ^ end
//! lane's buffers:             [ taken               ]
//! ```
//!
//! | file | part |
//! |---|---|
//! | `queue` | [`Spool`]: what is where, what is to be written, read and deleted |
//! | `format` | headers of segments and blocks |
//! | `recover` | what a former process has left |
//!
//! While the lane's buffers have room the spool is empty, and costs a look at two numbers per read. Once it holds anything,
//! all that is received goes to its tail and the lane is fed from its head. Blocks stay in memory as long as half of its
//! share suffices; beyond that the oldest are written, one at a time, and read back a few blocks ahead of the lane.
//!
//! # On disk
//!
//! A segment is a header (link, replid, number, first offset, format version) and blocks, each a header (offset, length,
//! replid, when it was received, checksum) and bytes of the stream. Segments follow each other without a gap, and begin at the
//! offset that the target's records tell, or as near to it as the lane's own buffers reach back: what those hold is written
//! first. So a process that starts anew from the records finds all that follows, and asks the source for what comes after
//! ([`recover`]). A segment is deleted once the records are past it: what was acknowledged since would be asked for again.
//!
//! ```text
//! recorded on the target     acknowledged         taken              end
//! [ kept for the next process |  lane's buffers  |  waits in the spool ]
//! ```
//!
//! Blocks end anywhere, also within a command: bytes are spooled without being looked at. So a block does not tell which
//! database is selected; whoever keeps the acknowledged offset has to keep that beside it.
//!
//! # What a crash costs
//!
//! Nothing is flushed (`fsync`): a process that crashes loses nothing of what was written, as the kernel has it; a machine
//! that crashes may lose what the kernel had not written yet, by default that of some 30 s. Checksums tell. What is lost, and
//! what was in memory only, is for the source's backlog to give. Flushing would make the disk's pace that of the source: see
//! the figures in `runtime::spool_files`.
//!
//! Damage that is met while reading back loses what follows: the lane asks the source again from there.

mod format;
mod queue;
mod recover;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use format::BLOCK_HEADER_BYTES;
pub use queue::Spool;
pub use recover::{Recovered, Survey, recover, survey};

use crate::limits;

/// What is to be done with the files of a lane, in the order given. Each comes with a ticket that its result names; a result is
/// bytes (of a [`Order::Read`]; else none), or one line that says what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Make a segment, or make it anew, with these first bytes; and the directory, if there is none.
    Create {
        segment: u64,
        bytes: Arc<Vec<u8>>,
    },
    /// Write at this place of the segment.
    Write {
        segment: u64,
        at: u64,
        bytes: Arc<Vec<u8>>,
    },
    /// Read exactly so much.
    Read {
        segment: u64,
        at: u64,
        length: usize,
    },

    Delete {
        segment: u64,
    },
}

/// Where a spool stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The target keeps up.
    Empty,
    Memory,
    Disk,
    /// Memory and what the disk may take are used up: the source is not read from until the target has caught up with some.
    Full,
    /// The disk refuses. It is tried again, and the source is read from while there is memory.
    Failed,
}

impl State {
    pub const ALL: [State; 5] = [
        State::Empty,
        State::Memory,
        State::Disk,
        State::Full,
        State::Failed,
    ];

    /// The name used by the status page.
    pub fn name(self) -> &'static str {
        match self {
            State::Empty => "empty",
            State::Memory => "memory",
            State::Disk => "disk",
            State::Full => "full",
            State::Failed => "failed",
        }
    }
}

/// Disk space that the lanes of a process share, first come, first served.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
        }
    }

    /// Whether nothing may be written to disk.
    pub fn is_none(&self) -> bool {
        self.limit == 0
    }

    fn take(&self, bytes: u64) -> bool {
        let taken = self.used.fetch_update(Relaxed, Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| *sum <= self.limit)
        });
        taken.is_ok()
    }

    /// Counts what is on disk already.
    pub fn count(&self, bytes: u64) {
        self.used.fetch_add(bytes, Relaxed);
    }

    #[cfg(test)]
    fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    #[cfg(test)]
    fn limit(&self) -> u64 {
        self.limit
    }

    /// So much is on disk no more, or is counted by somebody else.
    pub fn give_back(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Relaxed);
        debug_assert!(before >= bytes);
    }
}

/// How large the parts of a spool are, and what they belong to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the replication, kept in each segment.
    pub link: String,
    pub budget: Arc<Budget>,
    /// Bytes of a block with its header.
    pub block_bytes: usize,
    /// Blocks in memory, those that are read ahead included.
    pub memory_blocks: usize,
    pub segment_blocks: u32,
}

impl Settings {
    /// The usual sizes.
    pub fn new(link: String, budget: Arc<Budget>) -> Self {
        // Space comes back by whole segments: a small budget has small ones.
        let share = budget.limit / limits::SPOOL_SEGMENTS / limits::SPOOL_BLOCK_BYTES as u64;
        Self {
            link,
            budget,
            block_bytes: limits::SPOOL_BLOCK_BYTES,
            memory_blocks: limits::SPOOL_MEMORY_BYTES / limits::SPOOL_BLOCK_BYTES,
            segment_blocks: share.clamp(1, limits::SPOOL_SEGMENT_BLOCKS) as u32,
        }
    }
}
