//! Named sequences about the spool: a target that stands still, a disk that refuses or turns bad, a process that starts anew.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use slotstream::engine::status::ResumeStep;
use slotstream::position::Offset;
use slotstream::slot::SlotSet;
use slotstream::spool::{Budget, Settings, State};

use crate::cluster::Cluster;
use crate::disk::LINK;
use crate::rng::Rng;
use crate::source::Source;
use crate::world::{Network, World};

const VALUE_BYTES: usize = 100_000;

/// A lane with small blocks, so that little is enough for many.
fn world(budget: u64) -> World {
    world_of(budget, false)
}

/// The same with records on the target, of which the last is answered.
fn recorded_world() -> World {
    world_of(1 << 30, true)
}

fn world_of(budget: u64, records: bool) -> World {
    let network = Network {
        chunk: 200_000,
        stall_percent: 0,
        step_ms: 1,
        commands: 1_000,
    };
    let settings = Settings {
        link: LINK.into(),
        budget: Arc::new(Budget::new(budget)),
        block_bytes: 50_000,
        memory_blocks: 20,
        segment_blocks: 10,
    };
    let cluster = Cluster::new(2, false);
    let source = Source::new(1_000);
    let mut world = World::with_spool(
        Rng::new(1),
        network,
        source,
        cluster,
        SlotSet::all(),
        settings,
    );
    world.disk.delay_ms = 3;
    if records {
        world.keep_records();
    }
    world.write("SET {a}1 first");
    world.run_until_equal();
    if records {
        world.pass(2_000);
        // Applied, and not told in a record when the target stops.
        world.write("INCR {b}counter");
        world.write("SET {a}1 second");
        world.run_until_equal();
    }
    world.frozen = true;
    world
}

impl World {
    /// So many large values, of many slots, and a counter that shows what comes twice.
    fn write_load(&mut self, values: usize) {
        for number in 0..values {
            let text = number.to_string().repeat(VALUE_BYTES);
            let value = text.as_bytes()[..VALUE_BYTES].to_vec();
            let key = format!("key:{}", number % 50).into_bytes();
            self.source
                .write(&mut self.tracker, 0, &[b"SET".to_vec(), key, value]);
            self.write("INCR {b}counter");
        }
    }

    fn pass(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        self.run_until(ms + 1_000, "time", |world| world.now_ms >= end);
    }

    /// Runs until the lane has received all that the source wrote; the target stands still.
    fn run_until_received(&mut self) {
        self.run_until(20_000, "all to be received", |world| {
            world.lane.progress().received.0 == world.source.offset()
        });
    }

    fn thaw_and_compare(&mut self) {
        self.frozen = false;
        self.run_until_equal();
        self.check_equal();
        // Until the next record is answered.
        self.pass(3_000);
        assert!(self.disk.files.is_empty(), "{:?}", self.disk.files.keys());
        assert_eq!(self.status.spool_state(), State::Empty);
        assert_eq!(self.status.spool_bytes.load(Relaxed), 0);
    }

    fn syncs(&self) -> (u32, u32) {
        (self.source.full_syncs, self.source.partial_syncs)
    }
}

#[test]
fn the_source_is_read_to_its_end_while_the_target_stands_still() {
    let mut world = world(1 << 30);
    world.write_load(300);
    world.run_until_received();
    let progress = world.lane.progress();
    assert!(progress.received.since(progress.acknowledged) > 30_000_000);
    assert_eq!(world.status.spool_state(), State::Disk);
    assert!(world.status.lag_bytes() > 30_000_000);
    // The source goes on hearing from us, and of what is applied only.
    let acks = world.source.acks;
    let end = world.now_ms + 3_000;
    world.run_until(5_000, "time", |world| world.now_ms >= end);
    assert!(world.source.acks >= acks + 2);
    assert!(world.source.acked < progress.routed.0);
    world.thaw_and_compare();
    assert_eq!(world.syncs(), (1, 0));
    assert!(world.disk.read > 300 && world.disk.written > 300);
}

#[test]
fn a_source_that_is_lost_goes_on_behind_the_spool() {
    let mut world = world(1 << 30);
    world.write_load(200);
    world.run_until_received();
    // It has nothing left of what is spooled.
    world.source.shrink_backlog(10);
    world.cut_source();
    world.source_down_until_ms = world.now_ms + 2_000;
    world.write("SET {a}1 last");
    world.frozen = false;
    let received = world.lane.progress().received;
    world.run_until(1_900, "delivery without a source", |world| {
        world.lane.progress().acknowledged == received
    });
    world.thaw_and_compare();
    assert_eq!(world.syncs(), (1, 1));
}

#[test]
fn a_full_disk_stops_reading_and_is_tried_until_it_has_room() {
    let mut world = world(1 << 30);
    world.disk.refuses_until_ms = world.now_ms + 10_000;
    world.write_load(200);
    let end = world.now_ms + 5_000;
    world.run_until(6_000, "time", |world| world.now_ms >= end);
    assert_eq!(world.status.spool_state(), State::Failed);
    assert!(world.lane.progress().received.0 < world.source.offset());
    let message = "spool: no space left: not reading from the source, retrying";
    assert_eq!(world.status.message(), message);
    world.run_until_received();
    assert_eq!(world.status.spool_state(), State::Disk);
    world.thaw_and_compare();
    assert_eq!(world.syncs(), (1, 0));
}

#[test]
fn without_a_disk_memory_is_all_there_is() {
    let mut world = world(0);
    world.write_load(200);
    let end = world.now_ms + 2_000;
    world.run_until(3_000, "time", |world| world.now_ms >= end);
    assert_eq!(world.status.spool_state(), State::Full);
    assert!(world.lane.progress().received.0 < world.source.offset());
    assert_eq!(world.status.spool_bytes.load(Relaxed) / 50_000, 17);
    world.thaw_and_compare();
    assert_eq!((world.syncs(), world.disk.written), ((1, 0), 0));
}

#[test]
fn what_turned_bad_on_disk_is_asked_for_again() {
    let mut world = world(1 << 30);
    world.write_load(200);
    world.run_until_received();
    let middle = *world.disk.files.keys().rev().nth(5).expect("many segments");
    let file = world.disk.files.get_mut(&middle).expect("just seen");
    let at = file.len() / 2;
    file[at] ^= 1;
    world.thaw_and_compare();
    assert_eq!(world.syncs(), (1, 1));
}

#[test]
fn a_process_that_starts_anew_goes_on_from_what_it_finds() {
    let mut world = world(1 << 30);
    world.write_load(200);
    world.run_until_received();
    let acknowledged = world.lane.progress().acknowledged;
    world.run_until(2_000, "the disk", |world| {
        let found = world.disk.recover(acknowledged);
        found.is_some_and(|found| {
            let missing = world.source.offset() - found.end().offset.0;
            missing < 15 * 50_000
        })
    });
    let found = world.disk.recover(acknowledged).expect("seen above");
    assert!(found.first() <= acknowledged);
    // The source still has what was in memory only, and no more.
    world.source.shrink_backlog(1_000_000);
    world.restart();
    world.write_load(100);
    world.run_until_received();
    world.thaw_and_compare();
    assert_eq!(world.syncs(), (1, 1));
    assert_eq!(world.disk.recover(Offset(0)), None);
}

#[test]
fn a_lane_that_is_told_to_stop_leaves_everything_on_disk() {
    let mut world = world(1 << 30);
    world.write_load(100);
    world.run_until_received();
    let progress = world.lane.progress();
    world.lane.stop();
    let end = world.now_ms + 7_000;
    world.run_until(8_000, "time", |world| world.now_ms >= end);
    let found = world
        .disk
        .recover(progress.acknowledged)
        .expect("all of it");
    assert_eq!(found.end().offset, progress.received);
    assert!(!world.lane.is_done(), "what is in flight is not answered");
    world.frozen = false;
    world.run_until(2_000, "the end", |world| world.lane.is_done());
    let acknowledged = world.lane.progress().acknowledged;
    assert!(progress.acknowledged < acknowledged && acknowledged < progress.received);
    // Nothing of it is needed from the source.
    world.source.shrink_backlog(0);
    world.restart();
    world.thaw_and_compare();
    assert_eq!(world.syncs(), (1, 1));
}

#[test]
fn a_history_that_begins_anew_empties_the_spool() {
    let mut world = world(1 << 30);
    world.write_load(200);
    world.run_until_received();
    world.source.shrink_backlog(10);
    world.cut_source();
    world.source.rename_history();
    world.source.rename_history();
    world.write_load(1);
    world.thaw_and_compare();
    assert_eq!(world.syncs(), (2, 0));
}

/// The target stands still, and has for so long that all is on disk.
fn lagging_world() -> World {
    let mut world = recorded_world();
    world.write_load(200);
    world.run_until_received();
    world.pass(3_000);
    world
}

#[test]
fn after_a_crash_the_disk_spares_a_copy_that_the_source_would_have_to_give() {
    let mut world = lagging_world();
    world.source.shrink_backlog(1_000);
    world.crash();
    assert_eq!(world.taken_up, 1);
    world.write_load(20);
    world.thaw_and_compare();
    assert_eq!(world.syncs(), (1, 1));
    let (step, _) = world.status.resume().expect("it began again");
    assert_eq!(step, ResumeStep::Spool);
}

#[test]
fn a_lag_of_a_few_bytes_is_on_disk_too() {
    let mut world = recorded_world();
    world.write("SET {a}1 third");
    world.write("INCR {b}counter");
    world.pass(3_000);
    world.source.shrink_backlog(10);
    world.crash();
    assert_eq!(world.taken_up, 1);
    world.thaw_and_compare();
    assert_eq!(world.syncs(), (1, 1));
}

#[test]
fn what_is_on_disk_is_gone_on_with_after_a_failover_of_the_source() {
    let mut world = lagging_world();
    world.source.shrink_backlog(1_000);
    world.cut_source();
    world.source.rename_history();
    world.crash();
    assert_eq!(world.taken_up, 1);
    world.write_load(20);
    world.thaw_and_compare();
    assert_eq!(world.syncs(), (1, 1));
}

#[test]
fn a_failover_that_the_disk_has_seen_is_gone_on_with() {
    let mut world = lagging_world();
    world.cut_source();
    world.source.rename_history();
    world.write_load(50);
    world.run_until_received();
    world.pass(3_000);
    world.source.shrink_backlog(1_000);
    world.crash();
    assert_eq!(world.taken_up, 1);
    world.thaw_and_compare();
    assert_eq!(world.syncs(), (1, 2));
}

#[test]
fn a_lane_that_begins_again_finds_on_disk_what_it_received() {
    let mut world = lagging_world();
    world.write_load(100);
    world.run_until_received();
    world.source.shrink_backlog(1_000);
    // A master comes back without what it did not answer, and the lane without what it had in memory.
    let saved = world.save(0);
    world.frozen = false;
    world.restart_from_snapshot(&saved);
    world.thaw_and_compare();
    assert_eq!(world.taken_up, 1);
    assert_eq!(world.syncs(), (1, 1));
}

#[test]
fn what_the_disk_holds_is_of_no_use_to_a_target_that_was_elsewhere_meanwhile() {
    let mut world = lagging_world();
    let left = world.disk.files.clone();
    world.thaw_and_compare();
    world.write_load(20);
    world.run_until_equal();
    world.pass(3_000);
    world.disk.files = left;
    world.crash();
    assert_eq!(world.taken_up, 0);
    assert!(world.disk.files.is_empty());
    world.write_load(20);
    world.thaw_and_compare();
    assert_eq!(world.syncs(), (1, 1));
}

/// A replica takes over that lacks the end of what is spooled, and remembers little of what comes before that.
fn lose_the_end(world: &mut World) {
    let replica = world.source.save();
    world.write_load(30);
    world.run_until_received();
    let lost = world.source.offset() - replica.offset();
    world.source.shrink_backlog(lost + 200_000);
    world.lose_writes_since(replica);
}

#[test]
fn what_the_source_lost_of_what_is_spooled_is_forgotten_and_the_rest_is_not() {
    let mut world = lagging_world();
    lose_the_end(&mut world);
    world.write_load(20);
    world.thaw_and_compare();
    // Once to find out, and once to go on.
    assert_eq!(world.syncs(), (1, 2));
}

#[test]
fn what_the_source_lost_of_what_a_former_process_spooled_is_forgotten_and_the_rest_is_not() {
    let mut world = lagging_world();
    lose_the_end(&mut world);
    world.crash();
    assert_eq!(world.taken_up, 1);
    world.write_load(20);
    world.thaw_and_compare();
    assert_eq!(world.syncs(), (1, 2));
}
