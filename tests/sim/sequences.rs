//! Sequences of events by name: each broke a lane once, or would break a simpler one.
//!
//! Here nothing is left to chance but the cutting of bytes into pieces: a network that moves much at a time, and events at
//! the moments that the sequence asks for.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use slotstream::engine::options::Existing;
use slotstream::engine::status::{ErrorCount, LaneState};
use slotstream::fault::FaultKind;
use slotstream::limits;
use slotstream::slot::{Slot, SlotSet, slot_of};
use slotstream::spool::{Budget, Settings};

use crate::cluster::Cluster;
use crate::disk;
use crate::model::{Bytes, Value};
use crate::rng::Rng;
use crate::source::Source;
use crate::world::{Network, World};

/// A world in which nothing happens by itself, of a cluster source with these slots.
fn world(masters: usize, slots: SlotSet) -> World {
    world_with(Cluster::new(masters, false), slots)
}

pub fn world_with(cluster: Cluster, slots: SlotSet) -> World {
    let network = Network {
        chunk: 100_000,
        stall_percent: 0,
        step_ms: 1,
        commands: 1_000,
    };
    World::new(Rng::new(1), network, Source::new(1_000), cluster, slots)
}

fn world_without_disk() -> World {
    let network = Network {
        chunk: 100_000,
        stall_percent: 0,
        step_ms: 1,
        commands: 1_000,
    };
    let spool = Settings::new(disk::LINK.into(), Arc::new(Budget::new(0)));
    let cluster = Cluster::new(1, false);
    let slots = SlotSet::all();
    World::with_spool(
        Rng::new(1),
        network,
        Source::new(1_000),
        cluster,
        slots,
        spool,
    )
}

fn words(line: &str) -> Vec<Bytes> {
    line.split(' ')
        .map(|word| word.as_bytes().to_vec())
        .collect()
}

impl World {
    pub fn write(&mut self, line: &str) {
        self.write_args(&words(line));
    }

    pub fn write_args(&mut self, args: &[Bytes]) {
        self.source.write(&mut self.tracker, 0, args);
    }

    pub fn settle_and_compare(&mut self) {
        self.frozen = false;
        self.publish_view(0);
        self.run_until_equal();
        self.check_equal();
    }

    /// The source goes on under a history that the lane does not know: only a snapshot helps.
    pub fn forget_history(&mut self) {
        self.cut_source();
        self.source.rename_history();
        self.source.rename_history();
    }

    pub fn target_has(&self, key: &str) -> bool {
        let key = (0, key.as_bytes().to_vec());
        let mut nodes = self.cluster.nodes.iter();
        nodes.any(|node| node.store.keys.contains_key(&key))
    }

    /// Runs until so many commands have been handed to the network, with the target standing still.
    pub fn send_without_answers(&mut self) {
        self.frozen = true;
        let end = self.now_ms + 40;
        self.run_until(1_000, "time", |world| world.now_ms >= end);
    }

    pub fn move_slot(&mut self, slot: Slot, to: usize) {
        self.cluster.move_slot(slot, to);
    }

    pub fn connection_to(&self, node: usize) -> usize {
        let mut indices = 0..self.connections();
        indices
            .find(|&index| self.node_of(index) == Some(node))
            .expect("the lane is connected to it")
    }

    fn count(&self, what: ErrorCount) -> u64 {
        self.status.counted(what)
    }
}

/// `{a}` is in the first half of the slots, `{b}` in the first fifth.
pub const SLOT_OF_A: Slot = 15495;
const SLOT_OF_B: Slot = 3300;

#[test]
fn the_tags_have_the_slots_that_the_sequences_assume() {
    assert_eq!((slot_of(b"{a}1"), slot_of(b"{b}1")), (SLOT_OF_A, SLOT_OF_B));
}

#[test]
fn a_slot_that_moves_in_mid_pipeline_is_followed_in_order() {
    let mut world = world(2, SlotSet::all());
    world.write("SET {a}1 first");
    world.settle_and_compare();
    for number in 0..50 {
        world.write(&format!("APPEND {{a}}1 {number}"));
        world.write(&format!("INCR {{b}}{}", number % 3));
    }
    world.send_without_answers();
    world.move_slot(SLOT_OF_A, 0);
    for number in 50..60 {
        world.write(&format!("APPEND {{a}}1 {number}"));
    }
    world.settle_and_compare();
    // All but the first had gathered behind it.
    assert_eq!(world.cluster.counts.moved, 2, "MULTI holds two commands");
}

#[test]
fn keys_that_wait_for_the_rest_of_a_migration_are_written_once_it_is_over() {
    let mut world = world(2, SlotSet::all());
    world.write("MSET {a}1 one {a}2 two");
    world.settle_and_compare();
    world.cluster.begin_move(SLOT_OF_A, 0);
    world.cluster.move_key(&(0, b"{a}1".to_vec()), 1, 0);
    world.write("APPEND {a}1 x");
    world.write("RENAME {a}1 {a}2");
    let refused = |world: &mut World| world.cluster.counts.try_again >= 3;
    world.run_until(5_000, "TRYAGAIN", refused);
    assert!(world.cluster.counts.ask >= 1);
    assert!(world.tracker.open() > 0);
    world.cluster.move_key(&(0, b"{a}2".to_vec()), 1, 0);
    world.cluster.finish_at_taker(SLOT_OF_A, 0);
    world.cluster.finish_at_giver(SLOT_OF_A, 1, 0);
    world.settle_and_compare();
}

#[test]
fn commands_that_are_asked_for_are_not_overtaken_by_later_ones_of_their_slot() {
    let mut world = world(2, SlotSet::all());
    world.write("SET {a}1 one");
    world.settle_and_compare();
    world.cluster.begin_move(SLOT_OF_A, 0);
    world.cluster.move_key(&(0, b"{a}1".to_vec()), 1, 0);
    // The importing master refuses for a while; meanwhile the slot arrives, and the former owner tells so.
    world.cluster.nodes[0].refusal = Some((
        "READONLY You can't write against a read only replica.".into(),
        0,
    ));
    world.write("APPEND {a}1 two");
    world.run_until(5_000, "a refusal", |world| world.cluster.counts.refused > 0);
    world.write("APPEND {a}1 three");
    world.run_until(5_000, "refusals", |world| world.cluster.counts.refused > 3);
    world.cluster.finish_at_taker(SLOT_OF_A, 0);
    world.cluster.finish_at_giver(SLOT_OF_A, 1, 0);
    world.run_until(5_000, "a quiet moment", |world| world.is_drained(0));
    world.cluster.nodes[0].refusal = None;
    world.settle_and_compare();
}

#[test]
fn an_owner_that_changes_by_topology_waits_for_what_is_in_flight() {
    let mut world = world(2, SlotSet::all());
    world.write("SET {a}1 first");
    world.settle_and_compare();
    for number in 0..30 {
        world.write(&format!("APPEND {{a}}1 {number}"));
    }
    // In flight to the former owner, which executes them; then the slot moves, and the view comes before the answers.
    world.send_without_answers();
    world.frozen = false;
    world
        .tracker
        .check_acknowledged(world.lane.progress().acknowledged.0);
    world.run_until(1_000, "the writes", |world| world.tracker.open() == 0);
    world.frozen = true;
    world.move_slot(SLOT_OF_A, 0);
    world.publish_view(0);
    for number in 30..60 {
        world.write(&format!("APPEND {{a}}1 {number}"));
    }
    world.settle_and_compare();
}

#[test]
fn what_waited_for_a_failed_master_goes_to_its_successor_in_order() {
    let mut world = world(2, SlotSet::all());
    world.write("SET {a}1 first");
    world.settle_and_compare();
    for number in 0..30 {
        world.write(&format!("APPEND {{a}}1 {number}"));
    }
    world.send_without_answers();
    let index = world.connection_to(1);
    world.cut_target(index);
    world.cluster.fail_over(1);
    let end = world.now_ms + 500;
    world.run_until(1_000, "time", |world| world.now_ms >= end);
    assert!(
        world.tracker.open() > 0,
        "nobody listens at the old address"
    );
    for number in 30..60 {
        world.write(&format!("APPEND {{a}}1 {number}"));
    }
    world.settle_and_compare();
    assert_eq!(world.count(ErrorCount::TargetLost), 1);
}

#[test]
fn a_redirect_to_a_master_that_then_fails_does_not_hold_the_lane_for_ever() {
    let mut world = world(3, SlotSet::all());
    world.write("SET {a}1 first");
    world.settle_and_compare();
    world.move_slot(SLOT_OF_A, 0);
    world.write("APPEND {a}1 second");
    world.run_until(1_000, "the redirect", |world| world.tracker.open() == 0);
    // The view that says so comes while the redirect still counts more than views.
    let index = world.connection_to(0);
    world.cut_target(index);
    world.cluster.fail_over(0);
    world.write("APPEND {a}1 third");
    world.settle_and_compare();
}

#[test]
fn units_given_back_by_a_lost_connection_go_before_newer_ones_of_a_parked_slot() {
    let mut world = world(2, SlotSet::all());
    world.write("SET {a}1 first");
    world.settle_and_compare();
    let refusal = "LOADING Redis is loading the dataset in memory";
    world.cluster.nodes[1].refusal = Some((refusal.into(), 0));
    world.write("APPEND {a}1 second");
    world.run_until(1_000, "a refusal", |world| world.cluster.counts.refused > 0);
    world.write("APPEND {a}1 third");
    world.send_without_answers();
    world.write("APPEND {a}1 fourth");
    let index = world.connection_to(1);
    world.cut_target(index);
    world.cluster.nodes[1].refusal = None;
    world.settle_and_compare();
}

#[test]
fn a_source_lost_in_mid_frame_is_taken_up_where_it_was_left() {
    let mut world = world(1, SlotSet::all());
    world.settle_and_compare();
    let value = vec![b'v'; 300_000];
    world.write_args(&[b"SET".to_vec(), b"{a}1".to_vec(), value]);
    world.write("APPEND {a}1 end");
    world.run_until(1_000, "a part of the command", |world| {
        let progress = world.lane.progress();
        progress.received.since(progress.routed) > 1_000
    });
    world.cut_source();
    world.settle_and_compare();
    assert_eq!(
        (world.source.full_syncs, world.source.partial_syncs),
        (1, 1)
    );
    assert_eq!(world.count(ErrorCount::SourceLost), 1);
}

#[test]
fn a_promoted_source_goes_on_under_a_new_history() {
    let mut world = world(1, SlotSet::all());
    world.write("SET {a}1 first");
    world.settle_and_compare();
    world.cut_source();
    world.source.rename_history();
    world.write("APPEND {a}1 second");
    world.settle_and_compare();
    assert_eq!(
        (world.source.full_syncs, world.source.partial_syncs),
        (1, 1)
    );
    assert_eq!(world.status.replid(), world.source.replid);
}

#[test]
fn a_snapshot_that_replaces_the_stream_gives_up_what_is_in_flight() {
    let mut world = world(2, SlotSet::all());
    world.write("SET {a}1 first");
    world.settle_and_compare();
    for number in 0..30 {
        world.write(&format!("APPEND {{a}}1 {number}"));
        world.write(&format!("APPEND {{b}}1 {number}"));
    }
    world.send_without_answers();
    world.cut_source();
    world.write("APPEND {a}1 missed");
    world.source.shrink_backlog(0);
    world.settle_and_compare();
    assert_eq!(
        (world.source.full_syncs, world.source.partial_syncs),
        (2, 0)
    );
}

#[test]
fn a_source_lost_before_its_snapshot_came_is_asked_for_another() {
    let mut world = world(1, SlotSet::all());
    world.write("SET {a}1 first");
    world.source.snapshot_delay_ms = 500;
    world.run_until(1_000, "FULLRESYNC", |world| {
        world.status.full_syncs.load(Relaxed) == 1
    });
    world.cut_source();
    world.settle_and_compare();
    assert_eq!(
        (world.source.full_syncs, world.source.partial_syncs),
        (2, 0)
    );
}

#[test]
fn a_copy_given_up_in_the_middle_begins_anew_on_fresh_connections() {
    let mut world = world(1, SlotSet::all());
    for number in 0..200 {
        world.write(&format!("SET {{a}}{number} value"));
    }
    world.network.chunk = 60;
    world.network.commands = 3;
    world.run_until(5_000, "a part of the copy", |world| {
        world.tracker.executed > 20
    });
    world.cut_source();
    world.settle_and_compare();
    assert_eq!(world.source.full_syncs, 2);
}

#[test]
fn a_transaction_over_several_slots_is_split_into_one_per_slot() {
    let mut world = world(2, SlotSet::all());
    world.settle_and_compare();
    world.source.say(&["MULTI"]);
    for line in [
        "SET {a}1 x",
        "SET {b}1 x",
        "APPEND {a}1 y",
        "INCR {b}2",
        "MSET {a}2 z {b}3 z",
    ] {
        world.write(line);
    }
    world.source.say(&["EXEC"]);
    world.settle_and_compare();
    assert_eq!(world.count(ErrorCount::SplitTransactions), 1);
}

#[test]
fn a_flush_of_one_shard_leaves_the_keys_of_other_shards() {
    let mut slots = SlotSet::new();
    slots.insert_range(0, 9_999);
    let mut world = world(1, slots);
    for number in 0..40 {
        world.write(&format!("SET {{b}}{number} value"));
    }
    let foreign: Vec<(u32, Bytes)> = (0..40)
        .map(|number| (0, format!("{{a}}{number}").into_bytes()))
        .collect();
    for key in &foreign {
        let value = Value::Text(b"foreign".to_vec());
        world.cluster.nodes[0].store.keys.insert(key.clone(), value);
    }
    world.settle_and_compare();
    world.write("FLUSHALL");
    world.write("SET {b}1 after");
    world.settle_and_compare();
    let store = &world.cluster.nodes[0].store;
    assert!(foreign.iter().all(|key| store.keys.contains_key(key)));
    assert_eq!(store.keys.len(), 41);
    assert_eq!(world.cluster.counts.flushes, 0);
    assert!(world.cluster.counts.scans > 10);
}

#[test]
fn a_flush_outlasts_a_target_that_refuses_to_tell_its_keys() {
    let mut slots = SlotSet::new();
    slots.insert_range(0, 9_999);
    let mut world = world(1, slots);
    world.write("SET {b}1 value");
    world.settle_and_compare();
    let refusal = "BUSY Redis is busy running a script.";
    world.cluster.nodes[0].refusal = Some((refusal.into(), 0));
    world.write("FLUSHALL");
    world.write("SET {b}2 after");
    world.run_until(5_000, "refusals", |world| world.cluster.counts.refused > 2);
    world.cluster.nodes[0].refusal = None;
    world.settle_and_compare();
}

#[test]
fn a_flush_passes_as_it_came_where_the_target_holds_nothing_else() {
    let mut world = world(2, SlotSet::all());
    world.write("MSET {a}1 x {a}2 y");
    world.settle_and_compare();
    world.write("FLUSHALL");
    world.write("SET {b}1 after");
    world.settle_and_compare();
    assert_eq!(
        (world.cluster.counts.flushes, world.cluster.counts.scans),
        (2, 0)
    );
}

#[test]
fn a_flush_that_finds_its_master_failed_is_made_at_the_successor() {
    let mut world = world(2, SlotSet::all());
    world.write("SET {a}1 x");
    world.write("SET {b}1 x");
    world.settle_and_compare();
    world.write("FLUSHALL");
    world.send_without_answers();
    let index = world.connection_to(1);
    world.cut_target(index);
    world.cluster.fail_over(1);
    world.settle_and_compare();
    assert!(world.cluster.counts.flushes >= 2);
}

#[test]
fn an_unknown_command_is_asked_about_once_and_its_like_pass() {
    let mut world = world(2, SlotSet::all());
    world.settle_and_compare();
    for number in 0..10 {
        world.write(&format!("SIM.SET {{a}}1 {number}"));
        world.write("INCR {b}1");
    }
    world.settle_and_compare();
    assert_eq!(world.questions, 1);
}

#[test]
fn a_command_whose_keys_only_the_source_knows_follows_its_slot() {
    let mut world = world(2, SlotSet::all());
    world.settle_and_compare();
    world.write("SET {a}1 first");
    world.write("SIM.PAIR x {a}1 {a}2 second");
    world.write("APPEND {a}1 third");
    // What the command is was asked before, what its keys are is asked for each.
    world.run_until(2_000, "questions", |world| world.questions == 2);
    world.frozen = true;
    let all = |world: &mut World| world.lane.progress().routed.0 == world.source.offset();
    world.run_until(2_000, "the answers", all);
    world.move_slot(SLOT_OF_A, 0);
    world.settle_and_compare();
    assert!(world.cluster.counts.moved > 0);
}

#[test]
fn a_command_that_nobody_knows_ends_the_lane_with_its_name() {
    let mut world = world(1, SlotSet::all());
    world.settle_and_compare();
    world.source.say(&["NO.SUCH", "thing"]);
    for _ in 0..2_000 {
        world.step();
    }
    let fault = world.ended.expect("the lane has ended");
    assert_eq!(fault.kind, FaultKind::UnknownCommand);
    assert!(fault.message.contains("NO.SUCH"), "{fault}");
}

#[test]
fn a_command_larger_than_all_buffers_passes_alone() {
    let mut world = world(1, SlotSet::all());
    world.settle_and_compare();
    world.network.chunk = 1 << 20;
    world.write("SET {a}1 small");
    let huge = vec![b'h'; limits::LANE_BUFFER_BYTES * 2];
    world.write_args(&[b"SET".to_vec(), b"{a}2".to_vec(), huge]);
    world.write("SET {a}3 small");
    world.settle_and_compare();
}

#[test]
fn a_target_that_does_not_answer_makes_the_lane_stop_reading_once_its_memory_is_full() {
    let mut world = world_without_disk();
    world.settle_and_compare();
    world.network.chunk = 1 << 20;
    for number in 0..500 {
        let value = vec![b'v'; 100_000];
        world.write_args(&[
            b"SET".to_vec(),
            format!("{{a}}{number}").into_bytes(),
            value,
        ]);
    }
    world.frozen = true;
    let end = world.now_ms + 2_000;
    world.run_until(3_000, "time", |world| world.now_ms >= end);
    let progress = world.lane.progress();
    let held = progress.received.since(progress.acknowledged) as usize;
    let most = limits::LANE_BUFFER_BYTES + 2 * limits::CHUNK_BYTES + limits::SPOOL_MEMORY_BYTES;
    assert!(held <= most, "{held} bytes are held, at most {most} may be");
    assert!(
        held > (limits::LANE_BUFFER_BYTES + limits::SPOOL_MEMORY_BYTES) / 2,
        "only {held} bytes are held"
    );
    world.settle_and_compare();
}

#[test]
fn the_source_is_answered_at_once_when_it_asks_where_the_lane_is() {
    let mut world = world(1, SlotSet::all());
    world.settle_and_compare();
    let acks = world.source.acks;
    world.source.say(&["REPLCONF", "GETACK", "*"]);
    let asked_at = world.now_ms;
    world.run_until(limits::ACK_INTERVAL_MS / 4, "an answer", |world| {
        world.source.acks > acks
    });
    assert!(world.now_ms - asked_at < limits::ACK_INTERVAL_MS / 4);
    // Its own bytes count.
    world.settle_and_compare();
}

#[test]
fn keys_removed_while_nobody_listened_are_gone_after_another_snapshot() {
    let mut world = world(2, SlotSet::all());
    for number in 0..40 {
        world.write(&format!("SET {{a}}{number} v"));
        world.write(&format!("RPUSH {{b}}{number} v"));
    }
    world.settle_and_compare();
    let foreign = (0, b"{b}of others".to_vec());
    world.forget_history();
    for number in 0..30 {
        world.write(&format!("DEL {{a}}{number} {{a}}x"));
        world.write(&format!("DEL {{b}}{number} {{b}}x"));
    }
    // Somebody else's write to the lane's slots is one too many, and goes as well.
    let text = Value::Text(b"x".to_vec());
    world.cluster.nodes[0].store.keys.insert(foreign, text);
    world.settle_and_compare();
    assert_eq!(world.status.full_syncs.load(Relaxed), 2);
    assert_eq!(world.status.stale_checked.load(Relaxed), 81);
    assert_eq!(world.status.stale_removed.load(Relaxed), 61);
}

#[test]
fn a_stale_key_is_gone_before_the_stream_writes_to_its_name() {
    let mut world = world(2, SlotSet::all());
    world.write("RPUSH {a}list old");
    world.write("SET {b}text old");
    world.write("SADD {a}set old");
    world.settle_and_compare();
    world.forget_history();
    world.write("DEL {a}list {a}set");
    world.write("DEL {b}text");
    let copied = |world: &mut World| world.status.full_syncs.load(Relaxed) == 2;
    world.run_until(5_000, "the snapshot", copied);
    // Each would end in another value, or fail, if it met what the target still has.
    world.write("RPUSH {a}list new");
    world.write("LPUSH {b}text new");
    world.source.say(&["MULTI"]);
    world.write("SADD {a}set new");
    world.write("HSET {a}hash f v");
    world.source.say(&["EXEC"]);
    world.settle_and_compare();
}

#[test]
fn stale_keys_in_a_slot_that_moves_while_they_are_looked_for_are_found_at_the_new_owner() {
    let mut cluster = Cluster::new(2, false);
    cluster.existing = Existing::Replace;
    for number in 0..20 {
        let key = (0, format!("{{a}}{number}").into_bytes());
        let text = Value::Text(b"stale".to_vec());
        cluster.nodes[1].store.keys.insert(key, text);
    }
    let mut world = world_with(cluster, SlotSet::all());
    let scanned = |world: &mut World| world.cluster.counts.scans > 0;
    world.run_until(5_000, "a first page", scanned);
    // The first master has been listed when the slot comes there.
    world.move_slot(SLOT_OF_A, 0);
    let delay = limits::WATCH_INTERVAL_MS + limits::WATCH_REPLY_TIMEOUT_MS;
    world.publish_view(delay);
    let end = world.now_ms + delay - 100;
    world.run_until(delay, "time", |world| world.now_ms >= end);
    assert_eq!(world.status.state(), LaneState::Sweeping);
    world.settle_and_compare();
    assert!(!world.target_has("{a}7"));
}

#[test]
fn what_the_target_held_before_stays_unless_it_shall_be_replaced() {
    let mut cluster = Cluster::new(1, false);
    cluster.existing = Existing::Keep;
    let key = (0, b"{a}theirs".to_vec());
    let text = Value::Text(b"x".to_vec());
    cluster.nodes[0].store.keys.insert(key, text);
    let mut world = world_with(cluster, SlotSet::all());
    world.write("SET {a}ours v");
    world.run_until_equal();
    world.forget_history();
    world.run_until_equal();
    assert!(world.target_has("{a}theirs") && world.target_has("{a}ours"));
    assert_eq!(world.count(ErrorCount::UnsweptCopy), 1);
}

/// A master without replicas is restarted without its data.
fn restart_empty(world: &mut World) {
    world.forget_history();
    world.source.store = Default::default();
    world.tracker.begins_empty();
}

fn world_that_had_keys(accept: bool) -> World {
    let mut world = world(2, SlotSet::all());
    world.config.existing = Existing::Replace;
    world.config.accept_empty_source = accept;
    world.keep_records();
    world.write("SET {a}1 value");
    world.write("INCR {b}1");
    world.settle_and_compare();
    world
}

#[test]
fn a_source_that_comes_back_without_its_keys_is_not_mirrored() {
    for crash in [false, true] {
        let mut world = world_that_had_keys(false);
        restart_empty(&mut world);
        if crash {
            world.crash();
        }
        for _ in 0..3_000 {
            world.step();
        }
        let fault = world.ended.take().expect("the lane has ended");
        assert_eq!(fault.kind, FaultKind::SourceEmpty);
        assert!(fault.message.contains("--accept-empty-source"), "{fault}");
        assert!(world.target_has("{a}1") && world.target_has("{b}1"));
    }
}

#[test]
fn a_source_without_keys_is_mirrored_where_that_is_accepted() {
    let mut world = world_that_had_keys(true);
    restart_empty(&mut world);
    world.settle_and_compare();
    assert!(!world.target_has("{a}1"));
}

#[test]
fn a_source_that_never_had_keys_is_copied_again_without_a_word() {
    let mut world = world(2, SlotSet::all());
    world.config.accept_empty_source = false;
    world.keep_records();
    world.settle_and_compare();
    world.forget_history();
    world.settle_and_compare();
    assert_eq!(world.source.full_syncs, 2);
}
