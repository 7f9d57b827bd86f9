//! For each rule of applying every write exactly once: the sequence of events that breaks a lane without it.
//!
//! | sequence | rule | where |
//! |---|---|---|
//! | [`a_source_that_failed_over_below_the_high_water_offset_is_copied_again`] | what the source lost may be on the target up to the high-water offset | `engine::records` |
//! | [`a_source_that_failed_over_while_nobody_wrote_is_gone_on_with_after_a_crash`] | and nothing is in doubt where no write is on its way | `engine::records` |
//! | [`what_a_crash_left_in_doubt_ends_where_the_source_says_that_its_stream_does`] | nobody sent what was not written | `engine::settle` |
//! | [`few_writes_after_a_crash_are_enough_to_tell_that_none_was_lost`] | little is in doubt where little is written | `engine::records` |
//! | [`nothing_is_sent_behind_a_lower_high_water_offset_that_is_on_its_way`] | one that is lowered holds before it is answered | `engine::records` |
//! | [`a_process_that_ends_well_leaves_nothing_in_doubt`] | the last record says that no more was sent than is answered | `engine::records` |
//! | [`a_command_that_is_refused_is_not_passed_over_by_a_watermark_behind_it`] | a watermark goes out when everything before is answered | `engine::serial` |
//! | [`a_copy_that_broke_off_is_not_gone_on_with_by_the_record_before_it`] | a record that says `copying` is nothing to go on from | `checkpoint::recovery` |
//! | [`a_copy_that_was_only_announced_is_forgotten_with_its_process`] | it is one once a record on the target says so | `checkpoint::recovery` |
//! | [`what_a_record_says_of_another_master_is_not_believed_when_that_lost_it`] | what is applied behind a record shows by its watermarks | `checkpoint::recovery` |
//! | [`a_target_master_that_is_back_from_an_old_snapshot_gets_what_it_lost`] | another run of a server may lack what it answered | `engine::fence` |
//! | [`a_takeover_during_a_failover_of_the_target_goes_on_from_what_the_replica_has`] | and so may a promoted replica | `engine::fence` |
//! | [`a_replica_that_nobody_saw_before_it_was_promoted_is_known_by_the_history_that_it_followed`] | though it is listed as any other master | `engine::fence` |
//! | [`a_record_that_may_have_been_replaced_is_written_again`] | records say up to where anything was sent, whatever became of the last | `engine::records` |
//! | [`what_may_have_been_applied_does_not_follow_its_slot_before_that_is_known`] | what is on its way stays with its connection until the fence has answered | `engine::redirect` |
//! | [`a_watermark_that_was_evicted_is_missed`] | a watermark that a record names must be there | `checkpoint::recovery` |
//! | [`crate::deadlines`] | a deadline that may pass before its renewal comes is held back | `engine::lease` |
//! | [`what_a_mended_value_holds_is_not_applied_to_it_again`] | a mend sets the watermark of its slot | `engine::mending` |
//! | [`a_command_that_failed_before_a_crash_is_mended_when_it_fails_again`] | what fails when it is repeated is mended, too | `engine::mending` |
//! | [`a_command_that_fails_at_its_own_effects_does_no_harm`] | and is no reason to stop | `engine::redirect` |

use std::sync::atomic::Ordering::Relaxed;

use slotstream::checkpoint::{Record, State, watermark_key};
use slotstream::engine::options::OnDivergence;
use slotstream::engine::status::{ErrorCount, ResumeStep};
use slotstream::limits;
use slotstream::slot::{Slot, SlotSet, slot_of};

use crate::cluster::Cluster;
use crate::model::Value;
use crate::sequences::{SLOT_OF_A, world_with};
use crate::world::{TargetSocket, World, lost};

/// A lane that keeps records on so many masters, with a counter in either half of the slots.
fn world(masters: usize) -> World {
    recording(Cluster::new(masters, false))
}

fn mending() -> World {
    let mut cluster = Cluster::new(2, false);
    cluster.on_divergence = OnDivergence::Mend;
    recording(cluster)
}

fn recording(cluster: Cluster) -> World {
    let mut world = world_with(cluster, SlotSet::all());
    world.keep_records();
    world.count_on(5);
    world.settle_and_compare();
    world.run_until_recorded();
    world
}

impl World {
    /// Increments counters of two slots and appends to a text: whatever is left out or done twice shows.
    fn count_on(&mut self, times: usize) {
        for number in 0..times {
            self.write("INCR {a}1");
            self.write("INCR {b}1");
            self.write(&format!("APPEND {{a}}text {number},"));
        }
    }

    /// Runs until everything is executed: before the next record, if one was just written.
    pub fn run_until_applied(&mut self) {
        self.run_until(900, "the writes", |world| world.tracker.open() == 0);
    }

    fn records(&self) -> Vec<Record> {
        let found = self.bookkeeping().records.into_iter();
        found.map(|found| found.record).collect()
    }

    /// Runs until the records of all masters have just come to where the source is.
    pub fn run_until_recorded(&mut self) {
        self.run_until(5_000, "the records", |world| {
            let offset = world.source.offset();
            let records = world.records();
            let is_there = |record: &Record| {
                record.state == State::Streaming && record.position.offset.0 == offset
            };
            !records.is_empty() && records.iter().all(is_there)
        });
    }

    /// Writes that are applied and of which no record tells.
    fn apply_unrecorded(&mut self, times: usize) {
        self.run_until_recorded();
        let before = self.recorded();
        self.count_on(times);
        self.run_until_applied();
        self.assert_recorded(&before);
    }

    /// Whether the first connection is bringing this to its master.
    fn is_on_its_way(&self, text: &str) -> bool {
        let TargetSocket::Up { session, wire } = &self.sockets[0] else {
            return false;
        };
        let sent = [&session.input[..], wire].concat();
        sent.windows(text.len()).any(|part| part == text.as_bytes())
    }

    /// How far the records of all masters are.
    fn recorded(&self) -> Vec<u64> {
        let records = self.records().into_iter();
        records.map(|record| record.position.offset.0).collect()
    }

    fn assert_recorded(&self, before: &[u64]) {
        assert_eq!(before, self.recorded(), "records came in between");
    }

    /// Somebody makes a key a text at the target.
    pub fn break_at_target(&mut self, key: &str) {
        let owner = self.cluster.owners[usize::from(slot_of(key.as_bytes()))];
        let key = (0, key.as_bytes().to_vec());
        self.tracker.suspect(key.clone());
        let text = Value::Text(b"broken".to_vec());
        self.cluster.nodes[owner].store.keys.insert(key, text);
    }

    pub fn mends(&self) -> u64 {
        self.status.mends.load(Relaxed)
    }

    /// Time for what is on its way.
    pub fn run_for(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        self.run_until(ms + 100, "time", |world| world.now_ms >= end);
    }

    pub fn copies(&self) -> u32 {
        self.source.full_syncs
    }
}

#[test]
fn a_process_that_dies_is_gone_on_with_where_it_was() {
    let mut world = world(2);
    world.apply_unrecorded(10);
    world.crash();
    world.count_on(10);
    world.settle_and_compare();
    assert_eq!((world.copies(), world.source.partial_syncs), (1, 1));
}

#[test]
fn a_source_that_failed_over_below_the_high_water_offset_is_copied_again() {
    let mut world = world(2);
    let replica = world.source.save();
    world.apply_unrecorded(10);
    world.cut_source();
    world.source.promote(replica, &mut world.tracker);
    world.crash();
    world.count_on(3);
    world.settle_and_compare();
    assert_eq!(world.copies(), 2);
}

/// Longer than a source must be without writes for nothing to be in doubt.
const QUIET_MS: u64 = (limits::QUIET_INTERVALS as u64 + 3) * limits::RECORD_INTERVAL_MS;

impl World {
    /// The process dies, and a replica that has everything takes over before the next one has come.
    fn crash_and_fail_over(&mut self) {
        self.cut_source();
        let replica = self.source.save();
        self.source.promote(replica, &mut self.tracker);
        self.crash();
        self.count_on(3);
        self.settle_and_compare();
    }

    fn assert_gone_on_with(&self) {
        assert_eq!((self.copies(), self.source.partial_syncs), (1, 1));
        let (step, why) = self.status.resume().expect("it has begun");
        assert_eq!(step, ResumeStep::PartialPromoted, "{why}");
    }
}

#[test]
fn a_source_that_failed_over_while_nobody_wrote_is_gone_on_with_after_a_crash() {
    let mut world = world(2);
    // What it says meanwhile is in nobody's way.
    for _ in 0..3 {
        world.run_for(QUIET_MS / 2);
        world.source.say(&["PING"]);
        world.run_for(10);
        world.source.say(&["REPLCONF", "GETACK", "*"]);
    }
    world.run_for(QUIET_MS / 2);
    world.crash_and_fail_over();
    world.assert_gone_on_with();
}

#[test]
fn a_write_after_a_silence_is_in_doubt_again() {
    let mut world = world(2);
    world.run_for(QUIET_MS);
    let replica = world.source.save();
    world.count_on(1);
    world.run_until_applied();
    world.cut_source();
    world.source.promote(replica, &mut world.tracker);
    world.crash();
    world.count_on(3);
    world.settle_and_compare();
    assert_eq!(world.copies(), 2);
}

#[test]
fn what_a_crash_left_in_doubt_ends_where_the_source_says_that_its_stream_does() {
    let mut world = world(2);
    world.count_on(10);
    world.run_until_applied();
    world.crash();
    // Nothing more is written.
    world.settle_and_compare();
    world.run_for(QUIET_MS);
    world.crash_and_fail_over();
    assert_eq!((world.copies(), world.source.partial_syncs), (1, 2));
}

#[test]
fn few_writes_after_a_crash_are_enough_to_tell_that_none_was_lost() {
    let mut world = world(2);
    // A few hundred bytes in each interval.
    for _ in 0..20 {
        world.count_on(2);
        world.run_for(limits::RECORD_INTERVAL_MS / 2);
    }
    world.cut_source();
    let before = world.source.offset();
    while world.source.offset() < before + 20_000 {
        world.count_on(10);
    }
    world.crash_and_fail_over();
    world.assert_gone_on_with();
}

#[test]
fn nothing_is_sent_behind_a_lower_high_water_offset_that_is_on_its_way() {
    let mut world = world(2);
    world.network.chunk = 1 << 20;
    let value = vec![b'v'; limits::MIN_HIGH_STEP_BYTES];
    let write = |world: &mut World, number: usize| {
        let key = format!("{{a}}{number}").into_bytes();
        world.write_args(&[b"SET".to_vec(), key, value.clone()]);
    };
    (0..30).for_each(|number| write(&mut world, number));
    world.settle_and_compare();
    world.run_until_recorded();
    world.frozen = true;
    world.run_for(limits::RECORD_INTERVAL_MS + 100);
    // Below the former one.
    (0..50).for_each(|number| write(&mut world, number));
    world.run_for(100);
    world.settle_and_compare();
}

#[test]
fn a_process_that_ends_well_leaves_nothing_in_doubt() {
    let mut world = world(2);
    world.count_on(50);
    let begun = world.begun;
    world.stop();
    world.run_until(5_000, "its end", |world| world.begun > begun);
    for record in world.records() {
        assert_eq!(record.high, record.position.offset);
    }
}

#[test]
fn a_command_that_is_refused_is_not_passed_over_by_a_watermark_behind_it() {
    let mut world = world(2);
    world.network.commands = 1;
    world.run_until_recorded();
    let refusal = "OOM command not allowed when used memory > 'maxmemory'.";
    world.cluster.nodes[1].refusal = Some((refusal.into(), 0));
    world.write("SET {a}2 refused");
    world.write("INCR {a}1");
    let refused = |world: &mut World| world.cluster.counts.refused > 0;
    world.run_until(1_000, "a refusal", refused);
    world.cluster.nodes[1].refusal = None;
    // Time for what is on its way, and too little for another try.
    world.run_for(20);
    world.crash();
    world.settle_and_compare();
    assert_eq!(world.copies(), 1);
}

#[test]
fn a_copy_that_broke_off_is_not_gone_on_with_by_the_record_before_it() {
    let mut world = world(2);
    for number in 0..300 {
        world.write(&format!("SET {{a}}{number}s value"));
        world.write(&format!("RPUSH {{b}}{number}l element"));
    }
    world.settle_and_compare();
    world.run_until_recorded();
    // Nobody reads while more is written than this node remembers.
    world.cut_source();
    world.count_on(10);
    let offset = world.source.offset();
    let remembered = std::mem::replace(&mut world.source.backlog_start, offset);
    world.network.chunk = 200;
    world.network.commands = 3;
    let executed = world.tracker.executed;
    let in_midst =
        |world: &mut World| world.copies() == 2 && world.tracker.executed > executed + 100;
    world.run_until(20_000, "a part of the copy", in_midst);
    world.crash();
    // Another node does remember.
    world.cut_source();
    world.source.backlog_start = remembered;
    world.settle_and_compare();
    assert_eq!(world.copies(), 3);
}

#[test]
fn a_copy_that_was_only_announced_is_forgotten_with_its_process() {
    let mut world = world(2);
    world.cut_source();
    world.count_on(10);
    let offset = world.source.offset();
    let remembered = std::mem::replace(&mut world.source.backlog_start, offset);
    world.frozen = true;
    world.run_until(5_000, "a snapshot", |world| world.tracker.awaits_copy());
    // The target is told nothing of it.
    (0..2).for_each(|node| world.cut_targets_of(node));
    world.crash();
    world.source.backlog_start = remembered;
    world.frozen = false;
    world.count_on(3);
    world.settle_and_compare();
    assert_eq!((world.copies(), world.source.partial_syncs), (2, 1));
}

#[test]
fn a_record_that_may_have_been_replaced_is_written_again() {
    let slots: SlotSet = (0..5_000).collect();
    let mut world = world_with(Cluster::new(3, false), slots);
    world.network.commands = 1;
    world.write("INCR {b}1");
    world.keep_records();
    world.run_until(5_000, "a record", |world| !world.records().is_empty());
    // Before the lane hears of it and goes on with the copy. With nothing under way it says that nothing was sent.
    world.lane.stop_for_now();
    world.run_until(5_000, "the last record", |world| {
        world.is_on_its_way("copying")
    });
    // While that is not answered, the cluster changes.
    world.frozen = true;
    world.cluster.fail_over(2);
    world.publish_view(0);
    let end = world.now_ms + 300;
    world.run_until(400, "time", |world| world.now_ms >= end);
    world.frozen = false;
    world.run_until(5_000, "the end", |world| world.lane.is_done());
    world.crash();
    world.settle_and_compare();
}

#[test]
fn what_a_record_says_of_another_master_is_not_believed_when_that_lost_it() {
    let mut world = world(2);
    let old = world.save(1);
    world.count_on(10);
    world.settle_and_compare();
    world.run_until_recorded();
    world.asleep_until_ms = u64::MAX;
    // While nobody looks, the slot of its record's key goes to the other master, and it loses its last writes.
    let slot = first_slot_of(&world, 1);
    world.move_slot(slot, 0);
    world.restart_from_snapshot(&old);
    world.asleep_until_ms = 0;
    world.crash();
    world.settle_and_compare();
}

fn first_slot_of(world: &World, node: usize) -> Slot {
    let mut owners = world.cluster.owners.iter();
    owners
        .position(|owner| *owner == node)
        .expect("it owns slots") as Slot
}

#[test]
fn a_target_master_that_is_back_from_an_old_snapshot_gets_what_it_lost() {
    let mut world = world(2);
    let old = world.save(1);
    world.count_on(10);
    world.settle_and_compare();
    world.run_until_recorded();
    world.restart_from_snapshot(&old);
    world.count_on(10);
    world.settle_and_compare();
    assert_eq!((world.copies(), world.source.partial_syncs), (1, 1));
}

#[test]
fn a_target_master_that_came_back_from_an_old_snapshot_unseen_gets_what_it_lost() {
    let mut world = world(2);
    let old = world.save(1);
    world.count_on(10);
    world.settle_and_compare();
    world.run_until_recorded();
    world.asleep_until_ms = u64::MAX;
    world.restart_from_snapshot(&old);
    world.asleep_until_ms = 0;
    world.crash();
    world.settle_and_compare();
    assert_eq!((world.copies(), world.source.partial_syncs), (1, 1));
}

#[test]
fn a_takeover_during_a_failover_of_the_target_goes_on_from_what_the_replica_has() {
    let mut world = world(2);
    let lagging = world.save(1);
    world.count_on(10);
    world.settle_and_compare();
    world.run_until_recorded();
    world.begin_takeover(0);
    world.run_until(1_000, "the other process", |world| world.takeover.is_none());
    // It has read everything, and is not connected yet; the former one tries to come back.
    assert!(world.rival.is_some());
    world.promote_lagging(&lagging);
    world.publish_view(0);
    world.as_rival(|world| world.publish_view(0));
    world.count_on(10);
    world.settle_and_compare();
    assert_eq!(world.copies(), 1);
}

#[test]
fn a_replica_that_nobody_saw_before_it_was_promoted_is_known_by_the_history_that_it_followed() {
    let mut cluster = Cluster::new(2, false);
    cluster.hides_replicas = true;
    let mut world = recording(cluster);
    let lagging = world.save(1);
    world.count_on(10);
    world.settle_and_compare();
    world.run_until_recorded();
    world.promote_lagging(&lagging);
    world.publish_view(0);
    world.count_on(10);
    world.settle_and_compare();
    assert_eq!(world.copies(), 1);
}

#[test]
fn a_watermark_that_was_evicted_is_missed() {
    let mut world = world(2);
    world.count_on(1);
    world.settle_and_compare();
    world.apply_unrecorded(10);
    world.asleep_until_ms = u64::MAX;
    let key = (0, watermark_key(&world.config.link, SLOT_OF_A));
    let evicted = world.cluster.nodes[1].store.keys.remove(&key);
    assert!(evicted.is_some());
    world.asleep_until_ms = 0;
    world.crash();
    world.settle_and_compare();
    assert_eq!(world.copies(), 2);
}

#[test]
fn what_a_mended_value_holds_is_not_applied_to_it_again() {
    let mut world = mending();
    world.break_at_target("{a}hash");
    let before = world.recorded();
    world.write("HSET {a}hash field value");
    world.run_until(900, "the failure", |world| world.lane.keys_owed() > 0);
    // The source is asked only now: what it tells holds this, and the lane leaves it out.
    world.write("HINCRBY {a}hash number 5");
    world.run_until(900, "the mend", |world| {
        world.mends() == 1 && world.lane.keys_owed() == 0 && world.is_drained(1)
    });
    assert_eq!(world.status.counted(ErrorCount::CoveredByMend), 1);
    world.assert_recorded(&before);
    world.check_equal();
    world.crash();
    world.settle_and_compare();
    assert_eq!((world.copies(), world.mends()), (1, 1));
}

#[test]
fn a_command_that_failed_before_a_crash_is_mended_when_it_fails_again() {
    let mut world = mending();
    world.break_at_target("{a}hash");
    let before = world.recorded();
    world.write("HSET {a}hash field value");
    world.run_until(900, "the failure", |world| world.lane.keys_owed() > 0);
    world.assert_recorded(&before);
    world.crash();
    world.run_until(10_000, "the mend", |world| world.mends() == 1);
    world.settle_and_compare();
    assert!(world.status.counted(ErrorCount::Replayed) > 0);
    assert_eq!(world.copies(), 1);
}

#[test]
fn a_command_that_fails_at_its_own_effects_does_no_harm() {
    for policy in [OnDivergence::Mend, OnDivergence::Stop] {
        let mut cluster = Cluster::new(2, false);
        cluster.on_divergence = policy;
        let mut world = recording(cluster);
        let before = world.recorded();
        world.write("HSET {a}k field value");
        world.write("DEL {a}k");
        world.write("SADD {a}k member");
        world.run_until_applied();
        world.assert_recorded(&before);
        assert_eq!(world.status.counted(ErrorCount::Replayed), 0);
        world.crash();
        // It meets a set.
        world.run_until(10_000, "the failure", |world| {
            world.status.counted(ErrorCount::Replayed) == 1
        });
        world.count_on(3);
        world.settle_and_compare();
        assert_eq!(world.copies(), 1);
    }
}

#[test]
fn what_may_have_been_applied_does_not_follow_its_slot_before_that_is_known() {
    let mut world = world(2);
    world.run_until_recorded();
    world.write("INCR {a}1");
    world.send_without_answers();
    // The target executes it, and nobody hears of that.
    world.asleep_until_ms = u64::MAX;
    world.frozen = false;
    world.run_until_applied();
    world.asleep_until_ms = 0;
    let index = world.connection_to(1);
    world.lose_target(index, lost());
    world.move_slot(SLOT_OF_A, 0);
    world.publish_view(0);
    world.count_on(1);
    world.settle_and_compare();
    assert_eq!(world.copies(), 1);
}
