//! What the lanes and the control threads of one process have in common.
//!
//! Nothing here is on the path of a command: lanes read a flag and two version numbers per turn of their
//! loop, and write their own [`LaneStatus`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::fence::FenceDesk;
use super::lookup::LookupDesk;
use super::mending::MendDesk;
use super::moves::Frozen;
use super::rebuild::Omissions;
use super::recopy::ListDesk;
use super::status::{LaneState, LaneStatus};
use crate::fault::Fault;
use crate::slot::SlotSet;
use crate::topology::{Topology, TopologyCell};

/// Shared by every thread of one `sync`.
#[derive(Debug)]
pub struct Shared {
    /// Name of this replication, `default` unless `--link` says otherwise.
    pub link: String,
    /// When the process began; the zero of every `*_ms` in [`LaneStatus`].
    pub started: Instant,
    pub source: TopologyCell,
    pub target: TopologyCell,
    /// Questions about unknown commands, and their answers.
    pub lookup: LookupDesk,
    /// Questions about target masters before they are written to, and their answers.
    pub fence: FenceDesk,
    /// Questions about keys that are to be mended, and their answers.
    pub mend: MendDesk,
    /// Questions about the keys of slots that are to be copied, and their answers.
    pub listing: ListDesk,
    /// What was left out because the target cannot take it.
    pub omissions: Arc<Omissions>,
    stop: AtomicBool,
    for_good: AtomicBool,
    lanes: Mutex<Vec<Arc<LaneStatus>>>,
    restarts: Mutex<Vec<(u32, Fault)>>,
    left: Mutex<Vec<(u32, SlotSet)>>,
    frozen: Mutex<Vec<Frozen>>,
    bell: Bell,
}

/// Wakes the watchers. Each remembers how many rings it has seen, so that a ring reaches all of them, and rings
/// that come while one works are one ring to it.
#[derive(Debug, Default)]
struct Bell {
    rings: Mutex<u64>,
    wake: Condvar,
}

impl Shared {
    pub fn new(link: String, started: Instant, source: Topology, target: Topology) -> Self {
        Self {
            link,
            started,
            source: TopologyCell::new(source),
            target: TopologyCell::new(target),
            lookup: LookupDesk::default(),
            fence: FenceDesk::default(),
            mend: MendDesk::default(),
            listing: ListDesk::default(),
            left: Mutex::default(),
            frozen: Mutex::default(),
            restarts: Mutex::default(),
            omissions: Arc::default(),
            stop: AtomicBool::new(false),
            for_good: AtomicBool::new(false),
            lanes: Mutex::default(),
            bell: Bell::default(),
        }
    }

    /// Milliseconds from the start to `now`.
    pub fn millis_at(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started);
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }

    /// A new lane's status, listed for display from now on.
    pub fn add_lane(&self, node_id: &str, source: &str) -> Arc<LaneStatus> {
        let mut lanes = self.locked_lanes();
        let id = u32::try_from(lanes.len()).unwrap_or(u32::MAX);
        let lane = Arc::new(LaneStatus::new(id, node_id.into(), source.into()));
        lanes.push(Arc::clone(&lane));
        lane
    }

    /// All lanes so far, ended ones included, in the order in which they began.
    pub fn lanes(&self) -> Vec<Arc<LaneStatus>> {
        self.locked_lanes().clone()
    }

    /// A lane ended, and must begin again from what the target has.
    pub fn ask_restart(&self, lane: u32, why: Fault) {
        let mut restarts = self.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        restarts.push((lane, why));
    }

    /// Lanes that must begin again, told once.
    pub fn take_restarts(&self) -> Vec<(u32, Fault)> {
        let mut restarts = self.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut restarts)
    }

    /// A lane does not write these slots any more.
    pub fn tell_left(&self, lane: u32, slots: SlotSet) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.push((lane, slots));
    }

    /// Which lanes have left slots, told once.
    pub fn take_left(&self) -> Vec<(u32, SlotSet)> {
        std::mem::take(&mut self.left.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Slots that nobody writes at present.
    pub fn set_frozen(&self, frozen: Vec<Frozen>) {
        *self.frozen.lock().unwrap_or_else(PoisonError::into_inner) = frozen;
    }

    pub fn frozen(&self) -> Vec<Frozen> {
        let frozen = self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        frozen.clone()
    }

    /// Whether every slot is written by a lane that has copied it.
    pub fn slots_settled(&self) -> bool {
        let frozen = self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        let copied = |lane: &Arc<LaneStatus>| lane.slots_to_copy.load(Ordering::Relaxed) == 0;
        frozen.is_empty()
            && (self.lanes().iter().filter(|lane| !lane.state().is_final())).all(copied)
    }

    /// Lanes that would have to begin again while all are to end. Whoever goes on does that for them; where nobody will, the
    /// target is not as the source is, and that must not pass for a good end.
    pub fn give_restarts_up(&self) {
        let lanes = self.lanes();
        for (lane, why) in self.take_restarts() {
            let Some(status) = lanes.iter().find(|status| status.id == lane) else {
                continue;
            };
            match self.ends_for_good() {
                true => {
                    let text = format!("{why}, which there was no time for any more; run it again");
                    status.fail(Fault::new(why.kind, text));
                }
                false => status.set_state(LaneState::Stopped),
            }
        }
    }

    /// Asks every lane to end, and nobody to go on after it: the target shall be as the source is.
    pub fn request_end(&self) {
        self.for_good.store(true, Ordering::Release);
        self.request_stop();
    }

    /// Whether nobody will go on where the lanes end.
    pub fn ends_for_good(&self) -> bool {
        self.for_good.load(Ordering::Acquire)
    }

    /// Asks every lane to stop reading, finish what is in flight, and end.
    pub fn request_stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.hint();
    }

    /// Whether the lanes shall end.
    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Something happened that a changed topology may explain: a redirect, a lost connection.
    pub fn hint(&self) {
        *self
            .bell
            .rings
            .lock()
            .unwrap_or_else(PoisonError::into_inner) += 1;
        self.bell.wake.notify_all();
    }

    /// Waits for a hint after the `seen` first ones, at most `limit`; how many there were by then.
    pub fn wait_for_hint(&self, seen: u64, limit: Duration) -> u64 {
        let rings = self
            .bell
            .rings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (rings, _) = self
            .bell
            .wake
            .wait_timeout_while(rings, limit, |rings| *rings == seen)
            .unwrap_or_else(PoisonError::into_inner);
        *rings
    }

    /// Whether every lane that has not ended streams and has caught up, and there is one.
    pub fn caught_up(&self) -> bool {
        let lanes = self.lanes();
        let mut live = lanes.iter().filter(|lane| !lane.state().is_final());
        let settled = self.slots_settled();
        settled && live.clone().next().is_some() && live.all(|lane| lane.caught_up())
    }

    fn locked_lanes(&self) -> MutexGuard<'_, Vec<Arc<LaneStatus>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decides when `--once` is done: at some moment all lanes were streaming, the source masters were asked for
/// their offsets after that moment, and every lane has since passed the offset of its master.
///
/// The goal is fixed once, so that writers which never pause cannot postpone the end; it is dropped when a
/// lane falls back to a copy, gets another history, or a lane is added.
#[derive(Debug, Default)]
pub struct CatchUp {
    /// When every lane streamed: polls counted by then, by lane.
    seen_streaming: Option<BTreeMap<u32, u64>>,
    /// Replication id and offset to pass, by lane.
    goal: BTreeMap<u32, (String, u64)>,
}

impl CatchUp {
    /// Looks at the lanes; whether everything that the sources held at one common moment is on the target.
    pub fn reached(&mut self, lanes: &[Arc<LaneStatus>]) -> bool {
        let live: Vec<_> = lanes
            .iter()
            .filter(|lane| !lane.state().is_final())
            .collect();
        let streaming = live.iter().all(|lane| lane.state() == LaneState::Streaming);
        if live.is_empty() || !streaming {
            *self = Self::default();
            return false;
        }
        let polls = live.iter().map(|lane| (lane.id, lane.poll().count));
        let seen = self.seen_streaming.get_or_insert_with(|| polls.collect());
        if !live.iter().all(|lane| seen.contains_key(&lane.id)) {
            *self = Self::default();
            return false;
        }
        let mut all_passed = true;
        for lane in live {
            let passed = match self.goal.get(&lane.id) {
                Some((replid, offset)) if *replid == lane.replid() => {
                    lane.acknowledged_offset.load(Ordering::Relaxed) >= *offset
                }
                _ => {
                    // One poll may have been under way when the last lane began to stream.
                    let after = seen.get(&lane.id).map_or(u64::MAX, |polls| polls + 1);
                    if let Some(poll) = lane.poll_while_streaming().filter(|p| p.count > after) {
                        self.goal.insert(lane.id, (poll.replid, poll.offset));
                    }
                    false
                }
            };
            all_passed &= passed;
        }
        all_passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    fn shared() -> Shared {
        Shared::new(
            "default".into(),
            Instant::now(),
            Topology::single("a", 1),
            Topology::single("b", 2),
        )
    }

    fn streaming(shared: &Shared, node: &str) -> Arc<LaneStatus> {
        let lane = shared.add_lane(node, "a:1");
        lane.set_replid("r");
        lane.set_state(LaneState::Streaming);
        lane
    }

    #[test]
    fn a_goal_is_set_only_by_polls_made_after_every_lane_streams() {
        let shared = shared();
        let (one, two) = (streaming(&shared, "x"), shared.add_lane("y", "a:2"));
        two.set_replid("r");
        let mut once = CatchUp::default();
        one.set_poll("r", 10, 0);
        one.acknowledged_offset.store(10, Relaxed);
        assert!(
            !once.reached(&shared.lanes()),
            "the second lane still connects"
        );
        two.set_state(LaneState::Streaming);
        assert!(!once.reached(&shared.lanes()));
        for _ in 0..2 {
            one.set_poll("r", 20, 0);
            two.set_poll("r", 5, 0);
        }
        assert!(!once.reached(&shared.lanes()), "this look fixes the goal");
        one.acknowledged_offset.store(19, Relaxed);
        two.acknowledged_offset.store(5, Relaxed);
        one.set_poll("r", 1000, 0);
        assert!(!once.reached(&shared.lanes()), "one byte is missing");
        one.acknowledged_offset.store(20, Relaxed);
        assert!(
            once.reached(&shared.lanes()),
            "later writes do not move the goal"
        );
    }

    #[test]
    fn a_fallback_to_a_copy_drops_the_goal() {
        let shared = shared();
        let lane = streaming(&shared, "x");
        let mut once = CatchUp::default();
        assert!(!once.reached(&shared.lanes()));
        lane.set_poll("r", 1, 0);
        lane.set_poll("r", 1, 0);
        assert!(!once.reached(&shared.lanes()));
        lane.set_state(LaneState::Copying);
        lane.acknowledged_offset.store(50, Relaxed);
        assert!(!once.reached(&shared.lanes()));
        lane.set_state(LaneState::Streaming);
        assert!(!once.reached(&shared.lanes()));
        lane.set_poll("r", 60, 0);
        lane.set_poll("r", 60, 0);
        assert!(!once.reached(&shared.lanes()));
        lane.acknowledged_offset.store(60, Relaxed);
        assert!(once.reached(&shared.lanes()));
    }

    #[test]
    fn a_hint_given_before_the_wait_is_not_lost() {
        let shared = shared();
        shared.hint();
        assert_eq!(shared.wait_for_hint(0, Duration::MAX), 1);
        assert_eq!(shared.wait_for_hint(1, Duration::ZERO), 1);
    }

    #[test]
    fn a_lane_that_would_have_to_begin_again_when_all_ends_for_good_has_failed() {
        use crate::fault::FaultKind;
        let why = || Fault::new(FaultKind::TargetRewound, "the target was promoted");
        for for_good in [false, true] {
            let shared = shared();
            let (one, other) = (streaming(&shared, "x"), streaming(&shared, "y"));
            match for_good {
                true => shared.request_end(),
                false => shared.request_stop(),
            }
            shared.ask_restart(other.id, why());
            shared.give_restarts_up();
            assert_eq!(one.state(), LaneState::Streaming);
            let expected = match for_good {
                true => LaneState::Failed,
                false => LaneState::Stopped,
            };
            assert_eq!(other.state(), expected);
            assert_eq!(other.fault().is_some(), for_good);
        }
    }

    #[test]
    fn without_lanes_nothing_has_caught_up() {
        assert!(!shared().caught_up());
    }
}
