//! A source that loses what it had written and the lane had handed over.
//!
//! From a seed: the runs of [`chaos`], in which now and then a replica takes over that lacks what came since it was saved.

use std::sync::atomic::Ordering::Relaxed;

use slotstream::engine::options::OnDivergence;
use slotstream::engine::status::{LaneState, ResumeStep};
use slotstream::limits;
use slotstream::slot::SlotSet;

use crate::cluster::Cluster;
use crate::model::Value;
use crate::rng::Rng;
use crate::sequences::world_with;
use crate::source::Replica;
use crate::trace;
use crate::world::World;

/// Replicas of the source that lag, in one run.
pub struct Lagging {
    /// By chance of its own, so that all else a seed makes happen stays as it was.
    rng: Rng,
    /// Once in so many steps a replica stops or takes over; 0: never.
    every: usize,
    replica: Option<Replica>,
}

impl Lagging {
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x7265_7769);
        let every = *rng.pick(&[0, 0, 30, 150]);
        Self {
            rng,
            every,
            replica: None,
        }
    }

    /// What becomes of the source in this step.
    pub fn stir(&mut self, world: &mut World) {
        if self.every == 0 || !self.rng.once_in(self.every) {
            return;
        }
        // What a copy brings of what is lost is another matter, and so is a history that the lane has not heard of.
        let streams = world.status.state() == LaneState::Streaming;
        let known = world.status.replid() == world.source.replid;
        let ours = |replica: &Replica| world.source.has_been_at(replica);
        match self.replica.take().filter(ours) {
            Some(replica) if streams && known => {
                trace::note(|| format!("a replica takes over that is at {}", replica.offset()));
                world.lose_writes_since(replica);
            }
            None if streams && known => self.replica = Some(world.source.save()),
            _ => {}
        }
    }
}

impl World {
    /// A replica takes over that lacks what was written since.
    pub fn lose_writes_since(&mut self, replica: Replica) {
        self.cut_source();
        self.as_rival(World::cut_source);
        self.source.promote(replica, &mut self.tracker);
    }

    fn mended(&self) -> u64 {
        self.status.mends.load(Relaxed)
    }

    fn resumed_by(&self) -> ResumeStep {
        self.status.resume().expect("it has begun").0
    }

    fn run_until_executed(&mut self) {
        self.run_until(2_000, "the writes", |world| world.tracker.open() == 0);
    }
}

fn world(cluster: Cluster) -> World {
    let mut world = world_with(cluster, SlotSet::all());
    world.keep_records();
    for line in [
        "INCR {a}1",
        "INCR {b}1",
        "RPUSH {a}list one two",
        "SET {b}text before",
        "SET {a}untouched x",
        "SADD {b}set one",
    ] {
        world.write(line);
    }
    world.settle_and_compare();
    world
}

/// Commands of which hardly any may be repeated, and some move values between keys.
fn write_what_gets_lost(world: &mut World) {
    for line in [
        "INCR {a}1",
        "APPEND {b}text lost",
        "LPOP {a}list",
        "RENAME {b}set {b}other",
        "SET {a}new x",
        "DEL {b}1",
    ] {
        world.write(line);
    }
    world.source.say(&["MULTI"]);
    world.write("INCR {a}2");
    world.write("RPUSH {a}list three");
    world.source.say(&["EXEC"]);
}

fn write_after(world: &mut World) {
    for line in [
        "INCR {a}1",
        "APPEND {b}text after",
        "RPUSH {a}list after",
        "INCR {b}1",
        "SADD {b}set two",
        "INCR {b}3",
    ] {
        world.write(line);
    }
}

/// The target has executed what the source then loses, and the source goes on.
fn lose_what_was_handed_over(world: &mut World) {
    let replica = world.source.save();
    write_what_gets_lost(world);
    world.run_until_executed();
    world.lose_writes_since(replica);
    write_after(world);
}

#[test]
fn what_was_handed_over_and_got_lost_is_mended_without_a_copy() {
    for single in [false, true] {
        let mut world = world(Cluster::new(if single { 1 } else { 2 }, single));
        lose_what_was_handed_over(&mut world);
        world.settle_and_compare();
        assert_eq!(world.source.full_syncs, 1);
        assert_eq!(world.resumed_by(), ResumeStep::PartialRewound);
        // Eight keys, and nothing of those that were not written to.
        assert_eq!(world.mended(), 8);
    }
}

#[test]
fn what_gets_lost_on_its_way_to_the_target_is_waited_for_and_mended() {
    let mut world = world(Cluster::new(2, false));
    let replica = world.source.save();
    write_what_gets_lost(&mut world);
    world.send_without_answers();
    world.lose_writes_since(replica);
    write_after(&mut world);
    // It has found out, and nothing is asked for while the target stands still.
    let end = world.now_ms + 1_000;
    world.run_until(2_000, "time", |world| world.now_ms >= end);
    assert_eq!(world.source.partial_syncs, 1);
    world.settle_and_compare();
    let syncs = (world.source.full_syncs, world.source.partial_syncs);
    assert_eq!(syncs, (1, 2));
}

#[test]
fn what_was_held_back_for_a_key_that_differs_is_mended_as_well() {
    let mut cluster = Cluster::new(2, false);
    cluster.on_divergence = OnDivergence::Mend;
    let mut world = world(cluster);
    let key = (0, b"{b}text".to_vec());
    let other = Value::List([b"broken".to_vec()].into());
    world.tracker.suspect(key.clone());
    world.cluster.nodes[0].store.keys.insert(key, other);
    world.write("APPEND {b}text fails");
    world.run_until(2_000, "a key that differs", |world| {
        world.lane.keys_owed() > 0
    });
    // Of the same slot, and the source does not lose it.
    world.write("INCR {b}1");
    let replica = world.source.save();
    world.write("SET {a}new lost");
    let new = (0, b"{a}new".to_vec());
    world.run_until(50, "the writes", |world| {
        world.cluster.nodes[1].store.keys.contains_key(&new)
    });
    assert!(world.lane.keys_owed() > 0 && world.tracker.open() > 0);
    world.lose_writes_since(replica);
    world.write("INCR {b}1");
    world.settle_and_compare();
    assert_eq!(world.source.full_syncs, 1);
}

#[test]
fn what_was_not_handed_over_when_it_got_lost_needs_no_mending() {
    let mut world = world(Cluster::new(2, false));
    let replica = world.source.save();
    world.network.stall_percent = 100;
    write_what_gets_lost(&mut world);
    world.step();
    world.network.stall_percent = 0;
    world.lose_writes_since(replica);
    write_after(&mut world);
    world.settle_and_compare();
    assert_eq!((world.source.full_syncs, world.mended()), (1, 0));
}

#[test]
fn a_process_that_dies_anywhere_on_the_way_back_leaves_no_difference() {
    for steps in [1, 5, 20, 60, 100, 150, 300] {
        let mut world = world(Cluster::new(2, false));
        lose_what_was_handed_over(&mut world);
        (0..steps).for_each(|_| world.step());
        world.crash();
        world.settle_and_compare();
    }
}

#[test]
fn a_source_that_loses_writes_twice_is_followed() {
    let mut world = world(Cluster::new(2, false));
    for _ in 0..2 {
        lose_what_was_handed_over(&mut world);
        world.settle_and_compare();
    }
    assert_eq!(world.source.full_syncs, 1);
}

#[test]
fn lost_writes_that_name_not_all_their_keys_need_a_copy() {
    let mut world = world(Cluster::new(2, false));
    let replica = world.source.save();
    world.write("INCR {a}1");
    world.write("FLUSHALL");
    world.write("INCR {a}1");
    world.run_until_executed();
    world.lose_writes_since(replica);
    write_after(&mut world);
    world.settle_and_compare();
    assert_eq!(world.source.full_syncs, 2);
    let (step, why) = world.status.resume().expect("it has begun");
    assert_eq!(step, ResumeStep::FullCopy);
    assert!(why.contains("more than single keys"), "{why}");
}

#[test]
fn more_lost_writes_than_are_kept_need_a_copy() {
    let mut world = world(Cluster::new(2, false));
    world.network.chunk = 1 << 20;
    let replica = world.source.save();
    let value = vec![b'v'; limits::CHUNK_BYTES / 4];
    for number in 0..4 * (limits::KEPT_STREAM_BYTES / value.len() + 2) {
        let key = format!("{{a}}{number}").into_bytes();
        world.write_args(&[b"SET".to_vec(), key, value.clone()]);
    }
    world.settle_and_compare();
    world.lose_writes_since(replica);
    world.settle_and_compare();
    assert_eq!(world.source.full_syncs, 2);
}
