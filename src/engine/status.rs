//! One lane's numbers: written by the lane on its core, read by the control threads.
//!
//! Invariants: every counter only grows, except `snapshot_*` (new with each full sync) and the offsets (which
//! start anew with a new replication history). Readers take each number by itself; a set of numbers read
//! together may be one update apart, which a display does not notice and [`super::shared::CatchUp`] allows for.
//!
//! A lane publishes once per turn of its loop, not once per command: the stores then cost nothing that
//! shows, and the cache line is not fought over.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::command::rewrite::Lack;
use crate::fault::Fault;
use crate::spool;

/// Where a lane stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LaneState {
    /// Opening the connection to the source master.
    Connecting,
    /// Greeting, password, `REPLCONF`, `PSYNC`.
    Handshake,
    /// The source prepares a snapshot.
    WaitingForSnapshot,
    /// The snapshot is being received and written.
    Copying,
    /// The snapshot is written, the stream is being replayed, and the target's keys are looked at: those that the source
    /// does not have are removed, and deadlines that were held back are given their true value.
    Sweeping,
    /// The stream of writes is being replayed.
    Streaming,
    /// Finding out from the target where to go on.
    Recovering,
    /// The source was lost; waiting before the next attempt.
    Reconnecting,
    /// No longer reading; what is in flight is being finished.
    Stopping,
    /// Ended as asked.
    Stopped,
    /// Ended by a fault that only a person can fix.
    Failed,
}

impl LaneState {
    const ALL: [LaneState; 11] = [
        LaneState::Connecting,
        LaneState::Handshake,
        LaneState::WaitingForSnapshot,
        LaneState::Copying,
        LaneState::Sweeping,
        LaneState::Streaming,
        LaneState::Recovering,
        LaneState::Reconnecting,
        LaneState::Stopping,
        LaneState::Stopped,
        LaneState::Failed,
    ];

    /// The name used by the status page and the log.
    pub fn name(self) -> &'static str {
        match self {
            LaneState::Connecting => "connecting",
            LaneState::Handshake => "handshake",
            LaneState::WaitingForSnapshot => "waiting_for_snapshot",
            LaneState::Copying => "copying",
            LaneState::Sweeping => "sweeping",
            LaneState::Streaming => "streaming",
            LaneState::Recovering => "recovering",
            LaneState::Reconnecting => "reconnecting",
            LaneState::Stopping => "stopping",
            LaneState::Stopped => "stopped",
            LaneState::Failed => "failed",
        }
    }

    /// Whether the lane has ended, one way or the other.
    pub fn is_final(self) -> bool {
        matches!(self, LaneState::Stopped | LaneState::Failed)
    }
}

/// How a lane came to go on where it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumeStep {
    /// Nothing was there before.
    FirstCopy,
    /// From what is spooled on disk, and by a partial resync behind it.
    Spool,
    /// By a partial resync, in the history that was left.
    PartialSame,
    /// By a partial resync, at a node that was promoted since.
    PartialPromoted,
    /// By a partial resync at a node that lacks what was handed over already: these keys get its values.
    PartialRewound,
    /// By a snapshot over what the target holds.
    FullCopy,
}

impl ResumeStep {
    /// The name used by the status page and the log.
    pub fn name(self) -> &'static str {
        match self {
            ResumeStep::FirstCopy => "first_copy",
            ResumeStep::Spool => "spool",
            ResumeStep::PartialSame => "partial_same",
            ResumeStep::PartialPromoted => "partial_promoted",
            ResumeStep::PartialRewound => "partial_rewound",
            ResumeStep::FullCopy => "full_copy",
        }
    }
}

/// What is counted under `errors`: everything that was not the plain course, whether it was healed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ErrorCount {
    Moved,
    Ask,
    TryAgain,
    Loading,
    ClusterDown,
    ReadOnly,
    OutOfMemory,
    Busy,
    MasterDown,
    WritesPaused,
    /// A target connection was lost.
    TargetLost,
    /// The source connection was lost.
    SourceLost,
    /// A write failed in a way that shows that target and source differ.
    Divergence,
    /// Commands left out because the value of a mended key holds what they did.
    CoveredByMend,
    /// Commands sent a second time after a lost connection.
    Replayed,
    /// Commands and transactions that were not sent again, since the target's watermarks told that it has them.
    Skipped,
    /// Transactions of the source that had to be cut into one per slot.
    SplitTransactions,
    /// Commands of several slots that were split exactly.
    SplitCommands,
    /// Commands left out because their database is dropped by `--db-map`.
    DroppedDatabase,
    /// Copies after which keys that the source does not have may have been left on the target.
    UnsweptCopy,
    /// Keys and other data of modules left out of a snapshot by `--skip-unknown`.
    SkippedModule,
    /// Commands dropped because their slot is on its way between source masters: it is copied from the one that gets it.
    OfMovingSlot,
    /// Removals without a mark in transactions that were replicated into the source, dropped with them.
    LocalRemovals,
    /// Values of a first copy that were not written, since the target had the key.
    KeptExisting,
}

/// How many kinds [`ErrorCount`] has.
const ERROR_KINDS: usize = 24;

impl ErrorCount {
    const ALL: [ErrorCount; ERROR_KINDS] = [
        ErrorCount::Moved,
        ErrorCount::Ask,
        ErrorCount::TryAgain,
        ErrorCount::Loading,
        ErrorCount::ClusterDown,
        ErrorCount::ReadOnly,
        ErrorCount::OutOfMemory,
        ErrorCount::Busy,
        ErrorCount::MasterDown,
        ErrorCount::WritesPaused,
        ErrorCount::TargetLost,
        ErrorCount::SourceLost,
        ErrorCount::Divergence,
        ErrorCount::CoveredByMend,
        ErrorCount::Replayed,
        ErrorCount::Skipped,
        ErrorCount::SplitTransactions,
        ErrorCount::SplitCommands,
        ErrorCount::DroppedDatabase,
        ErrorCount::UnsweptCopy,
        ErrorCount::SkippedModule,
        ErrorCount::OfMovingSlot,
        ErrorCount::LocalRemovals,
        ErrorCount::KeptExisting,
    ];

    /// The name used by the status page and the summary.
    pub fn name(self) -> &'static str {
        match self {
            ErrorCount::Moved => "moved",
            ErrorCount::Ask => "ask",
            ErrorCount::TryAgain => "tryagain",
            ErrorCount::Loading => "loading",
            ErrorCount::ClusterDown => "clusterdown",
            ErrorCount::ReadOnly => "readonly",
            ErrorCount::OutOfMemory => "oom",
            ErrorCount::Busy => "busy",
            ErrorCount::MasterDown => "masterdown",
            ErrorCount::WritesPaused => "writes_paused",
            ErrorCount::TargetLost => "target_lost",
            ErrorCount::SourceLost => "source_lost",
            ErrorCount::Divergence => "divergence",
            ErrorCount::CoveredByMend => "covered_by_mend",
            ErrorCount::Replayed => "replayed",
            ErrorCount::Skipped => "skipped",
            ErrorCount::SplitTransactions => "split_transactions",
            ErrorCount::SplitCommands => "split_commands",
            ErrorCount::DroppedDatabase => "dropped_database",
            ErrorCount::UnsweptCopy => "unswept_copy",
            ErrorCount::SkippedModule => "skipped_module",
            ErrorCount::OfMovingSlot => "of_moving_slot",
            ErrorCount::LocalRemovals => "local_removals",
            ErrorCount::KeptExisting => "kept_existing",
        }
    }
}

/// What the watcher last read from the lane's source master.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourcePoll {
    /// `master_replid` of the answer; offsets of different ids do not compare.
    pub replid: String,
    /// `master_repl_offset` of the answer.
    pub offset: u64,
    /// How many answers there were so far.
    pub count: u64,
    /// When it was asked for, in milliseconds since the start: what it had emitted before is below the offset.
    pub asked_ms: u64,
}

/// One lane's status. All offsets are replication offsets of the source, in bytes.
#[derive(Debug)]
pub struct LaneStatus {
    /// Number of the lane within this process, from 0; never used again.
    pub id: u32,
    /// Node id of the master that the lane began with.
    pub node_id: String,
    source: Mutex<String>,
    state: AtomicU8,
    replid: Mutex<String>,
    message: Mutex<String>,
    fault: Mutex<Option<Fault>>,
    resume: Mutex<Option<(ResumeStep, String)>>,
    poll: Mutex<SourcePoll>,
    /// Polls counted when streaming last began; only later ones say something about it.
    polls_before_streaming: AtomicU64,

    /// All bytes of the stream up to here were received.
    pub received_offset: AtomicU64,
    /// All commands up to here are answered by the target.
    pub acknowledged_offset: AtomicU64,
    /// When the oldest command without an answer was received, in milliseconds since
    /// [`super::shared::Shared::started`], plus 1; 0 when everything is answered.
    oldest_unanswered_ms_plus_1: AtomicU64,

    /// Bytes of the stream that wait in the spool, in memory or on disk.
    pub spool_bytes: AtomicU64,
    spool_state: AtomicU8,

    /// Bytes of the snapshot read so far.
    pub snapshot_bytes_done: AtomicU64,
    /// Size of the snapshot in bytes; 0 when the source does not tell (diskless).
    pub snapshot_bytes_total: AtomicU64,
    /// Keys of the snapshot acknowledged by the target.
    pub snapshot_keys: AtomicU64,
    /// Keys of the target looked at after the last copy, since the source might not have them.
    pub stale_checked: AtomicU64,
    /// Of these, removed.
    pub stale_removed: AtomicU64,

    /// Keys and fields whose deadline is held back on the target, and one more while there may be others that are not known.
    pub leases: AtomicU64,
    /// Keys that differed and were given the source's value.
    pub mends: AtomicU64,
    /// Slots that came from another source master and are not copied yet.
    pub slots_to_copy: AtomicU64,
    /// Slots that were copied so since the lane began.
    pub slots_copied: AtomicU64,
    /// Keys of these, and bytes of their values.
    pub slot_keys_copied: AtomicU64,
    pub slot_bytes_copied: AtomicU64,
    /// Commands of the stream acknowledged by the target.
    pub commands: AtomicU64,
    /// Commands of the stream dropped because they had been replicated into the source.
    pub echoes: AtomicU64,
    /// Bytes sent to the target, snapshot and stream.
    pub bytes: AtomicU64,
    /// Full syncs begun.
    pub full_syncs: AtomicU64,
    /// Partial syncs accepted by the source.
    pub partial_syncs: AtomicU64,
    errors: [AtomicU64; ERROR_KINDS],
    left_out: [AtomicU64; Lack::ALL.len()],
}

impl LaneStatus {
    /// A lane about to connect to `source` (`host:port`).
    pub fn new(id: u32, node_id: String, source: String) -> Self {
        Self {
            id,
            node_id,
            source: Mutex::new(source),
            state: AtomicU8::new(LaneState::Connecting as u8),
            replid: Mutex::default(),
            message: Mutex::default(),
            fault: Mutex::default(),
            resume: Mutex::default(),
            poll: Mutex::default(),
            polls_before_streaming: AtomicU64::new(0),
            received_offset: AtomicU64::new(0),
            acknowledged_offset: AtomicU64::new(0),
            oldest_unanswered_ms_plus_1: AtomicU64::new(0),
            spool_bytes: AtomicU64::new(0),
            spool_state: AtomicU8::new(spool::State::Empty as u8),
            snapshot_bytes_done: AtomicU64::new(0),
            snapshot_bytes_total: AtomicU64::new(0),
            snapshot_keys: AtomicU64::new(0),
            stale_checked: AtomicU64::new(0),
            stale_removed: AtomicU64::new(0),
            leases: AtomicU64::new(0),
            mends: AtomicU64::new(0),
            slots_to_copy: AtomicU64::new(0),
            slots_copied: AtomicU64::new(0),
            slot_keys_copied: AtomicU64::new(0),
            slot_bytes_copied: AtomicU64::new(0),
            commands: AtomicU64::new(0),
            echoes: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            full_syncs: AtomicU64::new(0),
            partial_syncs: AtomicU64::new(0),
            errors: [const { AtomicU64::new(0) }; ERROR_KINDS],
            left_out: [const { AtomicU64::new(0) }; Lack::ALL.len()],
        }
    }

    // What the lane writes.

    /// Enters `state`. On entering `Streaming` earlier polls of the source stop counting.
    pub fn set_state(&self, state: LaneState) {
        if state == LaneState::Streaming && self.state() != LaneState::Streaming {
            let polls = locked(&self.poll).count;
            self.polls_before_streaming.store(polls, Relaxed);
        }
        self.state.store(state as u8, Relaxed);
    }

    /// The lane follows another node from now on (failover), or the same one at another address.
    pub fn set_source(&self, source: &str) {
        source.clone_into(&mut locked(&self.source));
    }

    /// The replication id that the offsets belong to.
    pub fn set_replid(&self, replid: &str) {
        replid.clone_into(&mut locked(&self.replid));
    }

    /// When the oldest command without an answer was received, in milliseconds since the start; `None`
    /// when everything received is answered.
    pub fn set_oldest_unanswered(&self, received_at_ms: Option<u64>) {
        let stored = received_at_ms.map_or(0, |ms| ms.saturating_add(1));
        self.oldest_unanswered_ms_plus_1.store(stored, Relaxed);
    }

    pub fn set_spool_state(&self, state: spool::State) {
        self.spool_state.store(state as u8, Relaxed);
    }

    /// Counts one event.
    pub fn count(&self, what: ErrorCount) {
        self.count_many(what, 1);
    }

    /// Counts several events at once.
    pub fn count_many(&self, what: ErrorCount, events: u64) {
        self.errors[what as usize].fetch_add(events, Relaxed);
    }

    /// Counts something that was left out because the target cannot take it.
    pub fn count_left_out(&self, lack: Lack) {
        self.left_out[lack as usize].fetch_add(1, Relaxed);
    }

    /// How the lane came to go on where it did last, and why.
    pub fn set_resume(&self, step: ResumeStep, why: &str) {
        *locked(&self.resume) = Some((step, why.to_owned()));
    }

    pub fn resume(&self) -> Option<(ResumeStep, String)> {
        locked(&self.resume).clone()
    }

    /// A fault that the lane will retry: kept as the one-line message.
    pub fn set_message(&self, message: &str) {
        message.clone_into(&mut locked(&self.message));
    }

    /// A fault that ends the lane. The first one stays.
    pub fn fail(&self, fault: Fault) {
        self.set_message(&fault.message);
        locked(&self.fault).get_or_insert(fault);
        self.set_state(LaneState::Failed);
    }

    // What the watcher writes.

    /// An answer of the source master about its own position.
    pub fn set_poll(&self, replid: &str, offset: u64, asked_ms: u64) {
        let mut poll = locked(&self.poll);
        replid.clone_into(&mut poll.replid);
        poll.offset = offset;
        poll.asked_ms = asked_ms;
        poll.count += 1;
    }

    // What everybody reads.

    pub fn state(&self) -> LaneState {
        LaneState::ALL[usize::from(self.state.load(Relaxed))]
    }

    pub fn spool_state(&self) -> spool::State {
        spool::State::ALL[usize::from(self.spool_state.load(Relaxed))]
    }

    /// `host:port` of the source master, as [`crate::topology::Node::name`] writes it.
    pub fn source(&self) -> String {
        locked(&self.source).clone()
    }

    pub fn replid(&self) -> String {
        locked(&self.replid).clone()
    }

    /// The last fault, one line; empty when there was none.
    pub fn message(&self) -> String {
        locked(&self.message).clone()
    }

    /// The fault that ended the lane.
    pub fn fault(&self) -> Option<Fault> {
        locked(&self.fault).clone()
    }

    /// The last answer of the source master about its position.
    pub fn poll(&self) -> SourcePoll {
        locked(&self.poll).clone()
    }

    /// The last answer that was given while the lane was already streaming the history it speaks of.
    pub fn poll_while_streaming(&self) -> Option<SourcePoll> {
        let poll = self.poll();
        let fresh = poll.count > self.polls_before_streaming.load(Relaxed);
        (self.state() == LaneState::Streaming && fresh && poll.replid == self.replid())
            .then_some(poll)
    }

    /// Whether everything that the source had written at the last poll is answered by the target.
    pub fn caught_up(&self) -> bool {
        self.poll_while_streaming()
            .is_some_and(|poll| self.acknowledged_offset.load(Relaxed) >= poll.offset)
    }

    /// Bytes of the stream that the target has yet to answer: up to what the source was last seen to
    /// have, or to what was received, whichever is further.
    pub fn lag_bytes(&self) -> u64 {
        let acknowledged = self.acknowledged_offset.load(Relaxed);
        let polled = self.poll_while_streaming().map_or(0, |poll| poll.offset);
        let received = self.received_offset.load(Relaxed);
        polled.max(received).saturating_sub(acknowledged)
    }

    /// Age in milliseconds of the oldest command without an answer; 0 when there is none.
    pub fn lag_ms(&self, now_ms: u64) -> u64 {
        match self.oldest_unanswered_ms_plus_1.load(Relaxed) {
            0 => 0,
            stored => now_ms.saturating_sub(stored - 1),
        }
    }

    /// Events counted so far of one kind.
    pub fn counted(&self, what: ErrorCount) -> u64 {
        self.errors[what as usize].load(Relaxed)
    }

    /// All kinds that occurred, by name; what was left out included.
    pub fn errors(&self) -> BTreeMap<&'static str, u64> {
        let left_out = Lack::ALL
            .into_iter()
            .map(|lack| (lack.counter(), self.left_out[lack as usize].load(Relaxed)));
        ErrorCount::ALL
            .into_iter()
            .map(|kind| (kind.name(), self.counted(kind)))
            .chain(left_out)
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

/// The guard of a mutex; a thread that panicked while holding one of these left a whole value behind.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> LaneStatus {
        LaneStatus::new(0, "id".into(), "127.0.0.1:7000".into())
    }

    #[test]
    fn every_state_and_kind_stands_at_its_own_number() {
        for (number, state) in LaneState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
        }
        for (number, state) in spool::State::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
        }
        for (number, kind) in ErrorCount::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
        }
    }

    #[test]
    fn a_lane_has_caught_up_only_with_a_poll_made_while_it_streams() {
        let lane = lane();
        lane.set_replid("a");
        lane.acknowledged_offset.store(100, Relaxed);
        lane.set_poll("a", 100, 0);
        lane.set_state(LaneState::Streaming);
        assert!(!lane.caught_up(), "the poll is older than the stream");
        lane.set_poll("a", 101, 0);
        assert!(!lane.caught_up(), "one byte is missing");
        lane.acknowledged_offset.store(101, Relaxed);
        assert!(lane.caught_up());
        lane.set_poll("b", 50, 0);
        assert!(!lane.caught_up(), "an offset of another history");
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_unanswered_command() {
        let lane = lane();
        assert_eq!(lane.lag_ms(500), 0);
        lane.set_oldest_unanswered(Some(0));
        assert_eq!(lane.lag_ms(500), 500);
        lane.set_oldest_unanswered(None);
        assert_eq!(lane.lag_ms(500), 0);
    }

    #[test]
    fn the_first_fatal_fault_stays() {
        let lane = lane();
        lane.fail(Fault::new(crate::fault::FaultKind::CrossSlot, "first"));
        lane.fail(Fault::new(crate::fault::FaultKind::Protocol, "second"));
        assert_eq!(lane.fault().map(|f| f.message), Some("first".into()));
        assert_eq!(lane.state(), LaneState::Failed);
    }

    #[test]
    fn only_what_happened_is_listed() {
        let lane = lane();
        lane.count(ErrorCount::Moved);
        lane.count_many(ErrorCount::Replayed, 3);
        let errors = lane.errors();
        assert_eq!(errors.len(), 2);
        assert_eq!(errors["replayed"], 3);
    }
}
