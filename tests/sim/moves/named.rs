//! Sequences of events by name: each is what breaks lanes that do less about slots that move.
//!
//! Here a network moves much at a time, and nothing happens but what a sequence asks for.

use slotstream::limits;
use slotstream::slot::{Slot, slot_of};

use super::process::Link;
use super::shards::{Shards, words};
use super::{Plan, Sim};
use crate::cluster::Cluster;
use crate::model::Bytes;
use crate::rng::Rng;
use crate::world::{Network, World};

/// Of `{a}`; the source's master 1 has it, and that of the target.
const SLOT_A: Slot = 15495;
const GIVER: usize = 1;
const TAKER: usize = 0;

/// How a slot moves.
const WAYS: [bool; 2] = [false, true];

/// Two masters on either side, with a few keys that are copied.
fn sim() -> Sim {
    sim_of(Cluster::new(2, false))
}

fn sim_of(cluster: Cluster) -> Sim {
    let mut sim = beginning(cluster);
    sim.settle_and_compare();
    sim.run_until_recorded();
    sim
}

/// With lanes that are about to begin.
fn beginning(cluster: Cluster) -> Sim {
    let network = Network {
        chunk: 100_000,
        stall_percent: 0,
        step_ms: 0,
        commands: 1_000,
    };
    let plan = Plan {
        trouble: false,
        lossy: false,
        answer_ms: 1,
        step_ms: 2,
        networks: vec![network],
    };
    assert_eq!(slot_of(b"{a}"), SLOT_A);
    let mut sim = Sim::new(Rng::new(1), plan, Shards::new(2, None), cluster);
    sim.count();
    sim.write("SET {a}k first");
    sim.write("RPUSH {a}list one two");
    sim.write("HSET {a}hash field value");
    sim
}

impl Sim {
    fn write(&mut self, line: &str) {
        self.transact(&[line]);
    }

    fn transact(&mut self, lines: &[&str]) {
        let commands: Vec<Vec<Bytes>> = lines.iter().map(|line| words(line)).collect();
        self.shards.client(slot_of(&commands[0][1]), &commands);
    }

    /// Whatever is left out or done twice shows.
    fn count(&mut self) {
        for line in [
            "INCR {a}1",
            "INCR {b}1",
            "APPEND {a}text x",
            "LPUSH {a}list more",
        ] {
            self.write(line);
        }
    }

    /// Time for the records of all lanes.
    fn run_until_recorded(&mut self) {
        self.run_for(2 * limits::RECORD_INTERVAL_MS);
    }

    fn link(&mut self, master: usize) -> &mut Link {
        self.process.link_of_mut(master)
    }

    fn place(&self, master: usize) -> usize {
        let mut links = self.process.links.iter();
        links
            .position(|link| link.at == master)
            .expect("it has a lane")
    }

    fn sleep(&mut self, master: usize, ms: u64) {
        let until_ms = self.now_ms + ms;
        self.link(master).asleep_until_ms = until_ms;
    }

    fn show(&mut self) {
        self.publish(true, 0);
    }

    /// Runs until some lane copies slots.
    fn run_until_copying(&mut self) {
        self.run_until(10_000, "a copy", |sim| {
            sim.process
                .links
                .iter()
                .any(|link| link.slots_to_copy() > 0)
        });
    }

    fn run_until_given(&mut self, master: usize, slot: Slot) {
        self.run_until(10_000, "an owner", |sim| {
            let mut places = sim.process.roster.places().iter();
            places.any(|place| {
                place.slots.contains(slot) && sim.shards.at(&place.master.address).0 == master
            })
        });
    }

    fn copied(&self) -> u64 {
        use std::sync::atomic::Ordering::Relaxed;
        let links = self.process.links.iter();
        links
            .map(|link| link.world.status.slots_copied.load(Relaxed))
            .sum()
    }

    fn key_by_key(&mut self) {
        for key in self.shards.keys_in(GIVER, SLOT_A) {
            self.shards.migrate(&key, false);
        }
    }
}

/// What happens, once while the giver's lane lags behind the taker's, and once the other way round; seen by views that show open
/// slots, and by others.
fn in_both_orders(mut act: impl FnMut(&mut Sim)) {
    for lagging in [GIVER, TAKER] {
        for open in [true, false] {
            let mut sim = sim();
            sim.sleep(lagging, 5_000);
            act(&mut sim);
            sim.publish(open, 10);
            sim.count();
            sim.settle_and_compare();
            assert!(sim.copied() > 0, "the slot was copied from its new owner");
        }
    }
}

#[test]
fn a_slot_moves_whichever_stream_comes_first() {
    for whole in WAYS {
        in_both_orders(|sim| {
            sim.count();
            sim.shards.begin(SLOT_A, TAKER, whole);
            sim.show();
            sim.count();
            sim.shards.feed(SLOT_A, 2);
            if !whole {
                sim.shards.migrate(b"{a}k", false);
            }
            sim.run_for(100);
            sim.count();
            sim.transact(&["SET {a}k second", "APPEND {a}k third"]);
            sim.shards.feed(SLOT_A, usize::MAX);
            if !whole {
                sim.key_by_key();
            }
            sim.shards.finish(SLOT_A);
        });
    }
}

#[test]
fn a_users_removal_before_the_migration_is_not_taken_for_a_part_of_it() {
    in_both_orders(|sim| {
        sim.write("DEL {a}k");
        sim.write("SET {a}k second");
        sim.shards.move_all(SLOT_A, TAKER, false);
    });
}

#[test]
fn a_rename_before_the_migration_is_not_taken_for_a_part_of_it() {
    in_both_orders(|sim| {
        sim.write("RENAME {a}k {a}other");
        sim.write("SET {a}k second");
        sim.write("RENAME {a}1 {a}2");
        sim.shards.move_all(SLOT_A, TAKER, false);
    });
}

#[test]
fn a_slot_that_returns_at_once_is_what_its_owner_has_then() {
    for whole in WAYS {
        in_both_orders(|sim| {
            sim.shards.move_all(SLOT_A, TAKER, whole);
            sim.count();
            sim.show();
            sim.run_for(100);
            sim.write("DEL {a}k");
            sim.shards.move_all(SLOT_A, GIVER, whole);
            sim.count();
            sim.write("SET {a}k third");
        });
    }
}

#[test]
fn a_key_that_was_copied_to_the_taker_and_then_removed_by_a_user_is_what_the_owner_has() {
    in_both_orders(|sim| {
        sim.shards.begin(SLOT_A, TAKER, false);
        sim.shards.migrate(b"{a}k", true);
        sim.shards.migrate(b"{a}1", true);
        sim.run_for(100);
        sim.write("DEL {a}k");
        sim.count();
        sim.key_by_key();
        sim.shards.finish(SLOT_A);
        sim.count();
    });
}

#[test]
fn an_old_view_that_gives_a_slot_back_for_a_while_does_no_harm() {
    for moment_ms in [10, 3 * limits::SLOT_QUIET_MS] {
        let mut sim = sim();
        let old = sim.shards.topology(true);
        sim.shards.move_all(SLOT_A, TAKER, false);
        sim.show();
        sim.run_until_copying();
        sim.count();
        sim.views.push((sim.now_ms, old.clone()));
        sim.run_for(moment_ms);
        sim.count();
        sim.settle_and_compare();
        sim.views.push((sim.now_ms, old));
        sim.run_for(moment_ms);
        sim.count();
        sim.settle_and_compare();
    }
}

#[test]
fn an_old_view_that_gives_a_slot_back_before_a_crash_does_no_harm() {
    let mut sim = sim();
    let old = sim.shards.topology(true);
    sim.write("DEL {a}k");
    for key in sim.shards.keys_in(GIVER, SLOT_A) {
        let del = [b"DEL".to_vec(), key];
        sim.shards.client(SLOT_A, &[del.to_vec()]);
    }
    sim.shards.move_all(SLOT_A, TAKER, false);
    sim.settle_and_compare();
    // The former owner has nothing there, and so is soon done with it.
    sim.views.push((sim.now_ms, old));
    sim.run_until_given(GIVER, SLOT_A);
    sim.run_for(1_000);
    sim.count();
    sim.crash();
    sim.run_for(1_000);
    sim.count();
    sim.settle_and_compare();
}

#[test]
fn a_migration_that_is_called_off_leaves_everything_with_the_giver() {
    for whole in WAYS {
        in_both_orders(|sim| {
            sim.shards.begin(SLOT_A, TAKER, whole);
            sim.show();
            sim.count();
            sim.shards.feed(SLOT_A, 3);
            if !whole {
                sim.shards.migrate(b"{a}k", false);
                sim.shards.migrate(b"{a}1", false);
            }
            // A view that does not show it need not see anything of it.
            sim.publish(true, 0);
            sim.run_for(100);
            sim.count();
            sim.shards.call_off(SLOT_A, true);
            sim.count();
            sim.shards.move_all(SLOT_A, TAKER, whole);
        });
    }
}

#[test]
fn a_crash_while_a_slot_is_frozen_does_no_harm() {
    for whole in WAYS {
        for hidden in [false, true] {
            let mut sim = sim();
            sim.shards.begin(SLOT_A, TAKER, whole);
            sim.publish(!hidden, 0);
            sim.run_for(300);
            sim.count();
            sim.shards.feed(SLOT_A, usize::MAX);
            if !whole {
                sim.key_by_key();
            }
            sim.shards.finish(SLOT_A);
            sim.show();
            sim.count();
            sim.run_until(10_000, "a frozen slot", |sim| sim.process.moves.is_busy());
            sim.crash();
            sim.count();
            sim.settle_and_compare();
        }
    }
}

#[test]
fn a_crash_while_a_slot_is_copied_has_it_copied_again() {
    let mut sim = sim();
    sim.shards.move_all(SLOT_A, TAKER, false);
    sim.show();
    sim.run_until_given(TAKER, SLOT_A);
    // Its keys are known, and nothing of them has come.
    sim.plan.answer_ms = 3_000;
    sim.run_until_copying();
    // Time for records, in which the slot must not be.
    sim.run_until_recorded();
    assert!(sim.link(TAKER).slots_to_copy() > 0);
    sim.count();
    sim.crash();
    sim.plan.answer_ms = 1;
    sim.settle_and_compare();
    assert!(sim.copied() > 0);
}

#[test]
fn what_only_the_target_has_of_a_slot_goes_when_it_is_copied() {
    in_both_orders(|sim| {
        sim.shards.begin(SLOT_A, TAKER, false);
        sim.show();
        sim.run_for(100);
        sim.key_by_key();
        // The giver's lane drops what it hears of this, and the taker's is given the slot later.
        sim.write("DEL {a}k");
        sim.shards.finish(SLOT_A);
    });
}

#[test]
fn a_source_master_that_loses_writes_of_a_slot_before_it_gives_it_away_is_followed() {
    let mut sim = sim();
    sim.shards.lag(GIVER);
    sim.count();
    sim.write("SET {a}lost value");
    sim.run_for(500);
    let place = sim.place(GIVER);
    sim.with_link(place, World::cut_source);
    sim.shards.fail_over(GIVER, true);
    sim.shards.move_all(SLOT_A, TAKER, false);
    sim.show();
    sim.count();
    sim.settle_and_compare();
}

// What was found by chance.

#[test]
fn what_gathers_behind_an_unanswered_command_is_answered_before_its_slot_is_left() {
    let mut sim = sim();
    sim.link(GIVER).world.frozen = true;
    sim.write("INCR {a}1");
    sim.run_for(100);
    sim.write("INCR {a}1");
    sim.run_for(100);
    sim.shards.move_all(SLOT_A, TAKER, false);
    sim.show();
    sim.run_for(200);
    // The first is answered, and what gathered behind it goes out; nobody reads that for a while.
    let link = sim.link(GIVER);
    link.world.frozen = false;
    let before = sim.target_has("{a}1");
    sim.run_until(1_000, "the first", |sim| sim.target_has("{a}1") != before);
    sim.run_for(4);
    sim.link(GIVER).world.frozen = true;
    sim.run_for(3_000);
    sim.link(GIVER).world.frozen = false;
    sim.count();
    sim.settle_and_compare();
}

#[test]
fn the_keys_of_slots_that_come_to_a_single_target_together_are_asked_for_by_their_slots() {
    let mut sim = sim_of(Cluster::new(1, true));
    let tags: Vec<u32> = (0..20).collect();
    for tag in &tags {
        sim.write(&format!("SET {{m{tag}}}one value"));
        sim.write(&format!("INCR {{m{tag}}}two"));
    }
    for tag in &tags {
        let slot = slot_of(format!("m{tag}").as_bytes());
        let to = 1 - sim.shards.owner(slot);
        sim.shards.move_all(slot, to, false);
    }
    sim.show();
    sim.count();
    sim.settle_and_compare();
    assert!(sim.copied() >= 20);
}

#[test]
fn a_flush_does_not_remove_keys_of_a_slot_that_has_left_its_lane_meanwhile() {
    // One target master: what is flushed is looked for key by key.
    let mut sim = sim_of(Cluster::new(1, false));
    for number in 0..100 {
        sim.write(&format!("SET {{c{number}}}k value"));
    }
    sim.settle_and_compare();
    sim.shards.flush(GIVER);
    sim.count();
    // It takes its time, while the slot goes.
    sim.slow_down(GIVER);
    sim.run_for(300);
    sim.shards.move_all(SLOT_A, TAKER, false);
    sim.show();
    sim.run_for(5_000);
    sim.count();
    sim.settle_and_compare();
}

#[test]
fn a_record_whose_slot_went_to_another_target_master_does_not_keep_a_lane_from_leaving_slots() {
    let mut sim = sim();
    let slot = slot_of(b"{b}1");
    // The giver's lane has but this slot at the target's first master, and its record there is in it.
    sim.shards.move_all(slot, GIVER, false);
    sim.settle_and_compare();
    sim.run_until_recorded();
    let place = sim.place(GIVER);
    sim.with_link(place, |world| {
        world.move_slot(slot, 1);
        world.publish_view(0);
    });
    let place = sim.place(TAKER);
    sim.with_link(place, |world| world.publish_view(0));
    sim.run_until_recorded();
    sim.shards.move_all(slot, TAKER, false);
    sim.count();
    sim.settle_and_compare();
}

#[test]
fn a_slot_is_not_given_on_before_no_record_lists_it() {
    // Of several generations the newest counts, which is of the one lane or of the other.
    for (giver, taker, tag) in [(GIVER, TAKER, "a"), (TAKER, GIVER, "b")] {
        let mut sim = sim();
        let slot = slot_of(tag.as_bytes());
        // Nothing of the giver's lane gets as far as the network, so that its records stay as they are.
        let mut network = sim.plan.networks[0].clone();
        network.stall_percent = 100;
        sim.link(giver).quicken(network);
        sim.shards.move_all(slot, taker, false);
        sim.show();
        sim.run_for(3_000);
        sim.write(&format!("SET {{{tag}}}passing value"));
        sim.count();
        sim.run_for(2_000);
        // What the slot's lane does not hear of, the giver's stream does not tell.
        sim.sleep(taker, 1_000);
        sim.write(&format!("DEL {{{tag}}}passing"));
        sim.shards.move_all(slot, giver, false);
        sim.show();
        sim.step();
        sim.crash();
        sim.count();
        sim.settle_and_compare();
    }
}

#[test]
fn a_lane_that_has_nothing_left_at_a_target_master_tells_it_so_although_the_connection_broke() {
    let mut sim = sim();
    let slot = slot_of(b"{b}1");
    sim.shards.move_all(slot, GIVER, false);
    sim.settle_and_compare();
    sim.run_until_recorded();
    sim.sleep(GIVER, 1_000);
    sim.shards.move_all(slot, TAKER, false);
    sim.show();
    sim.run_for(500);
    let place = sim.place(GIVER);
    sim.with_link(place, |world| {
        // Another view of the target has it look again at which masters it needs.
        world.cluster.move_slot(0, 1);
        world.publish_view(0);
        world.cut_targets_of(0);
    });
    let place = sim.place(TAKER);
    sim.with_link(place, |world| world.publish_view(0));
    sim.count();
    sim.settle_and_compare();
}

#[test]
fn what_a_lane_wrote_of_a_slot_goes_when_the_first_snapshot_of_the_next_brings_the_slot() {
    let mut sim = beginning(Cluster::new(2, false));
    sim.step();
    // The taker's lane hears nothing of its master while the slot is written by the giver's.
    sim.sleep(TAKER, 60_000);
    sim.run_until(10_000, "the giver's copy", |sim| {
        sim.target_has("{a}k").is_some()
    });
    sim.shards.begin(SLOT_A, TAKER, false);
    sim.show();
    sim.run_for(100);
    // The giver's lane drops what it hears of this.
    sim.key_by_key();
    sim.write("DEL {a}k");
    sim.shards.finish(SLOT_A);
    sim.count();
    sim.show();
    sim.run_until_given(TAKER, SLOT_A);
    assert_eq!(sim.shards.masters[TAKER].source.full_syncs, 0);
    sim.link(TAKER).asleep_until_ms = 0;
    sim.settle_and_compare();
    assert_eq!(sim.copied(), 0, "the snapshot brought the slot");
}

impl Sim {
    fn target_has(&self, key: &str) -> Option<crate::model::Value> {
        let key = (0, key.as_bytes().to_vec());
        let mut nodes = self.cluster.nodes.iter();
        nodes.find_map(|node| node.store.keys.get(&key).cloned())
    }

    /// A lane's target executes one command at a time.
    fn slow_down(&mut self, master: usize) {
        let mut network = self.plan.networks[0].clone();
        (network.commands, network.stall_percent) = (1, 97);
        self.link(master).quicken(network);
    }
}
