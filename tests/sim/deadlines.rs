//! Keys that end: target masters remove them by their own clocks, but when they end is for the source to say.
//!
//! ```text
//! source     PEXPIREAT k +2s ... PEXPIREAT k +25s ........................ DEL k
//! target     ------------------- k would end here --- PEXPIREAT k +25s --- DEL k
//! ```
//!
//! The lane is late in each sequence by another reason. A key that is lost shows at once, one that would live for ever when the
//! source has been quiet for a while: then the deadlines are equal, too.

use std::sync::atomic::Ordering::Relaxed;

use slotstream::engine::options::OnDivergence;
use slotstream::engine::status::LaneState;
use slotstream::limits;
use slotstream::slot::SlotSet;

use crate::chaos::{self, Plan, SpoolPlan};
use crate::cluster::Cluster;
use crate::model::number;
use crate::rng::Rng;
use crate::sequences::world_with;
use crate::trace;
use crate::world::{Used, World};

/// How long the first deadline is off, in milliseconds.
const SOON: u64 = 2_000;

/// How long the lane is late, from the first deadline on.
const LATE: u64 = 2_000;

/// How long the renewed one is off: long enough to be seen as it is before it passes, and held back until then.
const LATER: u64 = 25_000;

const _: () = assert!(LATER < limits::LEASE_MARGIN_MS);

/// One run in which keys end; gives what it made of the disk. Panics when anything is not as it must be.
pub fn run(seed: u64) -> Used {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::of(&mut rng);
    plan.grouping = chaos::grouping_of(seed);
    plan.mix.deadlines = true;
    let (spool, disk_rng) = SpoolPlan::of_seed(seed);
    trace::note(|| format!("{plan:?} {spool:?}"));
    let (mut world, mut workload, _) =
        chaos::begin(&plan, &spool, rng, disk_rng, OnDivergence::Stop);
    for _ in 0..plan.steps {
        chaos::one_step(&mut world, &plan, &spool, &mut workload);
    }
    chaos::settle(&mut world);
    world.run_until_equal();
    world.check_equal();
    world.check_deadlines();
    chaos::finish(&mut world);
    world.used()
}

/// A lane that keeps records on two masters, and has written them.
fn world() -> World {
    world_of(Cluster::new(2, false))
}

fn world_of(cluster: Cluster) -> World {
    let mut world = world_with(cluster, SlotSet::all());
    world.keep_records();
    world.run_until_resumable();
    world
}

impl World {
    /// Writes commands; `+N` in them stands for the time in N milliseconds.
    fn write_timed(&mut self, lines: &[&str]) {
        for line in lines {
            let word = |word: &str| match word.strip_prefix('+') {
                Some(ms) => (self.now_ms + number(ms.as_bytes())).to_string(),
                None => word.to_owned(),
            };
            let words: Vec<String> = line.split(' ').map(word).collect();
            self.write(&words.join(" "));
        }
    }

    /// Two keys that end in so many milliseconds, one in each half of the slots.
    fn write_mortals(&mut self, ms: u64) {
        self.write_timed(&[
            &format!("SET {{a}}k value PXAT +{ms}"),
            "RPUSH {b}k value",
            &format!("PEXPIREAT {{b}}k +{ms}"),
        ]);
    }

    /// Renews them half that time later, in one way and the other, and lets their first deadline pass.
    fn renew_and_be_late(&mut self, ms: u64) {
        self.run_for(ms / 2);
        self.write_timed(&[
            &format!("PEXPIREAT {{a}}k +{LATER}"),
            "PERSIST {b}k",
            "RPUSH {b}k more",
            &format!("PEXPIREAT {{b}}k +{LATER}"),
        ]);
        self.run_for(ms / 2 + LATE);
    }

    /// Source and target tell the same once the source has been quiet.
    fn check_deadlines(&mut self) {
        // A lane that has just been told of a deadline counts it with its next tick.
        self.run_for(200);
        // Each key that ends breaks the quiet.
        let limit_ms = 2 * limits::LEASE_MARGIN_MS;
        self.run_until(limit_ms, "the true deadlines", |world| {
            let mut nodes = 0..world.cluster.nodes.len();
            let none = world.status.leases.load(Relaxed) == 0;
            none && nodes.all(|node| world.is_drained(node))
        });
        self.run_until_equal();
        self.check_equal();
        let (target, source) = (self.union_of_targets(), &self.source.store);
        assert_eq!(target.deadlines, source.deadlines);
    }

    /// The keys are there with their true deadlines once the source has been quiet, and end when they end there.
    fn compare_to_the_end(&mut self) {
        self.settle_and_compare();
        assert_eq!(self.source.store.deadlines.len(), 2, "both are renewed");
        self.check_deadlines();
        assert_eq!(self.source.store.deadlines.len(), 2, "nothing has ended");
        self.run_until(LATER, "their end", |world| {
            world.source.store.deadlines.is_empty()
        });
        self.settle_and_compare();
        assert!(!self.target_has("{a}k") && !self.target_has("{b}k"));
    }
}

#[test]
fn a_key_is_renewed_after_its_deadline_when_the_target_stood_still() {
    let mut world = world();
    world.write_mortals(SOON);
    world.run_until_applied();
    world.frozen = true;
    world.renew_and_be_late(SOON);
    world.compare_to_the_end();
}

#[test]
fn a_key_is_renewed_after_its_deadline_when_both_came_late() {
    let mut world = world();
    world.frozen = true;
    world.write_mortals(SOON);
    world.renew_and_be_late(SOON);
    world.compare_to_the_end();
}

#[test]
fn a_key_is_renewed_after_its_deadline_when_the_source_was_out_of_reach() {
    let mut world = world();
    world.write_mortals(SOON);
    world.run_until_applied();
    world.cut_source();
    world.source_down_until_ms = world.now_ms + SOON + LATE;
    world.renew_and_be_late(SOON);
    world.compare_to_the_end();
    assert_eq!(world.copies(), 1);
}

#[test]
fn a_key_is_renewed_after_its_deadline_when_the_process_was_dead() {
    let mut world = world();
    world.write_mortals(SOON);
    world.run_until_applied();
    world.asleep_until_ms = u64::MAX;
    world.renew_and_be_late(SOON);
    world.asleep_until_ms = 0;
    world.crash();
    world.compare_to_the_end();
    assert_eq!(world.copies(), 1);
}

#[test]
fn a_key_is_renewed_after_its_deadline_when_a_process_was_stopped_and_the_next_one_is_late() {
    let mut world = world();
    world.write_mortals(SOON);
    world.run_until_applied();
    world.stop();
    world.run_until(SOON / 4, "its end", |world| world.stops_until_ms.is_none());
    world.asleep_until_ms = u64::MAX;
    world.renew_and_be_late(SOON);
    world.asleep_until_ms = 0;
    world.compare_to_the_end();
    assert_eq!(world.copies(), 1);
}

#[test]
fn a_key_of_a_snapshot_is_renewed_after_its_deadline_behind_it() {
    let mut world = world_with(Cluster::new(2, false), SlotSet::all());
    world.keep_records();
    world.source.snapshot_delay_ms = SOON + LATE;
    world.write_mortals(SOON);
    world.run_until(SOON / 2, "the snapshot", |world| world.copies() == 1);
    world.renew_and_be_late(SOON);
    world.compare_to_the_end();
}

#[test]
fn a_key_of_a_snapshot_is_renewed_after_its_deadline_when_the_copy_takes_long() {
    let mut world = world_with(Cluster::new(2, false), SlotSet::all());
    world.keep_records();
    // More than a lane that streams would hold back.
    let ms = limits::LEASE_MARGIN_MS + SOON;
    world.write_mortals(ms);
    for number in 0..100 {
        world.write(&format!("SET {{c}}{number} value"));
    }
    world.network.chunk = 50;
    world.run_until(SOON, "the first keys", |world| {
        world.target_has("{a}k") && world.target_has("{b}k")
    });
    assert_eq!(world.status.state(), LaneState::Copying);
    world.network.stall_percent = 100;
    world.renew_and_be_late(ms);
    world.network.stall_percent = 0;
    world.network.chunk = 100_000;
    world.compare_to_the_end();
}

#[test]
fn a_deadline_that_a_dead_process_held_back_becomes_true() {
    let mut world = world();
    world.write_mortals(LATER);
    world.run_until_recorded();
    assert_ne!(
        world.union_of_targets().deadlines,
        world.source.store.deadlines
    );
    world.crash();
    world.compare_to_the_end();
    assert_eq!(world.copies(), 1);
}

#[test]
fn a_key_that_nobody_renews_ends_when_the_source_says_so() {
    let mut world = world();
    world.write_mortals(SOON);
    world.run_until_applied();
    world.cut_source();
    world.source_down_until_ms = world.now_ms + SOON + LATE;
    world.run_for(SOON + LATE / 2);
    assert!(world.source.store.keys.is_empty());
    assert!(world.target_has("{a}k") && world.target_has("{b}k"));
    world.settle_and_compare();
    assert!(!world.target_has("{a}k") && !world.target_has("{b}k"));
}

#[test]
fn a_mended_key_is_renewed_after_its_deadline() {
    let mut cluster = Cluster::new(2, false);
    cluster.on_divergence = OnDivergence::Mend;
    let mut world = world_of(cluster);
    world.write_mortals(SOON);
    world.run_until_applied();
    world.break_at_target("{b}k");
    world.write("RPUSH {b}k other");
    world.run_until(SOON / 2, "the mend", |world| {
        world.mends() == 1 && world.lane.keys_owed() == 0 && world.is_drained(0)
    });
    world.frozen = true;
    world.renew_and_be_late(SOON);
    world.compare_to_the_end();
}
