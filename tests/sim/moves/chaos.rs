//! What a seed makes happen to slots of the source.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use slotstream::slot::{Slot, slot_of};
use slotstream::topology::Topology;

use super::shards::{Shards, Way};
use super::{Plan, Sim};
use crate::chaos::grouping_of;
use crate::cluster::Cluster;
use crate::model::Bytes;
use crate::rng::Rng;
use crate::trace;
use crate::workload::{Mix, Workload};
use crate::world::{Network, Used};

/// How many slots were copied from another master, in all runs.
pub static COPIED: AtomicU64 = AtomicU64::new(0);

/// How often what happens. Each number: once in so many steps; 0: never.
#[derive(Debug, Clone)]
struct Trouble {
    begin: usize,
    /// Slots move as a whole, in percent.
    whole: usize,
    /// How often a slot that moves gets on.
    carry: usize,
    call_off: usize,
    /// A migration is over and another begins at once.
    hasty: bool,
    view: usize,
    /// Views are old, or do not show open slots, in percent.
    stale: usize,
    blind: usize,
    flush: usize,
    fail_over: usize,
    crash: usize,
    cut_source: usize,
    cut_target: usize,
    slow: usize,
    sleep: usize,
    /// A slot moves between masters of the target.
    target: usize,
}

fn plan_of(rng: &mut Rng) -> (Plan, Trouble, usize) {
    let mut often = |percent: usize, low: usize, high: usize| match rng.percent(percent) {
        true => rng.between(low, high),
        false => 0,
    };
    let trouble = Trouble {
        begin: often(100, 10, 120),
        whole: often(60, 1, 100),
        carry: often(100, 1, 30),
        call_off: often(50, 50, 400),
        hasty: often(30, 1, 1) == 1,
        view: often(100, 10, 200),
        stale: often(50, 1, 60),
        blind: often(50, 10, 100),
        flush: often(30, 200, 1500),
        fail_over: often(30, 100, 1000),
        crash: often(50, 100, 1000),
        cut_source: often(30, 50, 500),
        cut_target: often(40, 30, 400),
        slow: often(50, 50, 400),
        sleep: often(30, 50, 400),
        target: often(30, 50, 500),
    };
    // A flush that is passed on as it came relies on the lane's view of who owns what at the target.
    let trouble = Trouble {
        target: if trouble.flush > 0 { 0 } else { trouble.target },
        ..trouble
    };
    let network = |rng: &mut Rng| Network {
        chunk: *rng.pick(&[40, 200, 2_000, 100_000]),
        stall_percent: *rng.pick(&[0, 10, 50, 80]),
        step_ms: 0,
        commands: *rng.pick(&[1, 4, 30, 500]),
    };
    let plan = Plan {
        trouble: rng.percent(50),
        lossy: rng.percent(60),
        answer_ms: *rng.pick(&[1, 50, 300]),
        step_ms: *rng.pick(&[5, 10, 30]),
        networks: (0..3).map(|_| network(rng)).collect(),
    };
    let steps = rng.between(200, 1500);
    (plan, trouble, steps)
}

fn mix() -> Mix {
    Mix {
        once_only: true,
        removals: true,
        several_keys: true,
        across_slots: false,
        transactions: false,
        flushes: false,
        unknown: false,
        functions: false,
        publish: false,
        databases: 1,
        fat: false,
        deadlines: false,
    }
}

/// One run from a seed. Panics when anything is not as it must be.
pub fn run(seed: u64) -> Used {
    let mut rng = Rng::new(seed ^ 0x6d6f_7665);
    let (plan, trouble, steps) = plan_of(&mut rng);
    let masters = rng.between(2, 3);
    let few = rng.percent(30).then(|| rng.between(1, 200));
    let mut shards = Shards::new(masters, few);
    let groups = rng.between(1, 6);
    let all = slotstream::slot::SlotSet::all();
    let mut workload = Workload::new(mix(), &mut rng, &all, groups, 4);
    let mut cluster = Cluster::new(rng.between(1, 3), false);
    cluster.grouping = grouping_of(seed);
    cluster.on_divergence = Default::default();
    let writes = *rng.pick(&[10, 40, 100, 300]);
    trace::note(|| {
        format!("{masters} masters, few {few:?}, {groups} groups, {writes} writes, {steps} steps")
    });
    trace::note(|| format!("{plan:?} {trouble:?}"));
    for _ in 0..rng.below(60) {
        let group = rng.below(groups);
        shards.act(&mut workload, group, &mut rng);
    }
    let mut sim = Sim::new(rng, plan, shards, cluster);
    let mut former: Vec<Topology> = vec![sim.shards.topology(true)];
    for _ in 0..steps {
        let mut left = writes;
        while left >= 100 || sim.rng.percent(left) {
            let group = sim.rng.below(groups);
            sim.shards.act(&mut workload, group, &mut sim.rng);
            left = left.saturating_sub(100);
        }
        stir(&mut sim, &trouble, &workload, &mut former);
        sim.step();
    }
    settle(&mut sim);
    sim.settle_and_compare();
    let links = sim.process.links.iter();
    let copied: u64 = links
        .map(|link| link.world.status.slots_copied.load(Relaxed))
        .sum();
    COPIED.fetch_add(copied + sim.process.copied_slots, Relaxed);
    Used::default()
}

/// Trouble ends, and what is under way comes to its end.
fn settle(sim: &mut Sim) {
    trace::note(|| "trouble ends".into());
    sim.plan.trouble = false;
    sim.plan.answer_ms = sim.plan.answer_ms.min(50);
    let slots: Vec<Slot> = sim.shards.moving.keys().copied().collect();
    for slot in slots {
        if sim.rng.percent(30) {
            let back = sim.rng.percent(80);
            sim.shards.call_off(slot, back);
            continue;
        }
        sim.shards.feed(slot, usize::MAX);
        if let Way::Keys = sim.shards.moving[&slot].way {
            let from = sim.shards.moving[&slot].from;
            for key in sim.shards.keys_in(from, slot) {
                sim.shards.migrate(&key, false);
            }
        }
        sim.shards.finish(slot);
    }
    for network in &mut sim.plan.networks {
        network.chunk = network.chunk.max(20_000);
        network.stall_percent = network.stall_percent.min(10);
        network.commands = network.commands.max(200);
    }
    let network = sim.plan.networks[0].clone();
    for link in &mut sim.process.links {
        link.quicken(network.clone());
    }
}

fn stir(sim: &mut Sim, trouble: &Trouble, workload: &Workload, former: &mut Vec<Topology>) {
    let due = |sim: &mut Sim, every: usize| every > 0 && sim.rng.once_in(every);
    if due(sim, trouble.begin) {
        begin(sim, trouble, workload);
    }
    let slots: Vec<Slot> = sim.shards.moving.keys().copied().collect();
    for slot in slots {
        if due(sim, trouble.carry) {
            carry(sim, slot, trouble);
        }
        if sim.shards.moving.contains_key(&slot) && due(sim, trouble.call_off) {
            let back = sim.rng.percent(80);
            sim.shards.call_off(slot, back);
        }
    }
    if due(sim, trouble.view) {
        view(sim, trouble, former);
    }
    let masters = sim.shards.masters.len();
    let master = sim.rng.below(masters);
    if due(sim, trouble.flush) {
        sim.shards.flush(master);
    }
    if due(sim, trouble.fail_over) {
        fail_over(sim, master);
    }
    if due(sim, trouble.crash) {
        sim.crash();
    }
    if due(sim, trouble.target) {
        move_at_target(sim, workload);
    }
    trouble_of_links(sim, trouble);
}

/// A slot moves at once between masters of the target; the lanes hear of it at one time or another.
fn move_at_target(sim: &mut Sim, workload: &Workload) {
    let group = sim.rng.pick(&workload.groups);
    let slot = slot_of(&group[0]);
    let masters = sim.cluster.nodes.len();
    let to = sim.rng.below(masters);
    if sim.cluster.owners[usize::from(slot)] == to {
        return;
    }
    trace::note(|| format!("slot {slot} goes to node {to} of the target"));
    sim.cluster.move_slot(slot, to);
    sim.cluster.gossip();
    for place in 0..sim.process.links.len() {
        let delay_ms = sim.rng.below(1_500) as u64;
        sim.with_link(place, |world| world.publish_view(delay_ms));
    }
}

fn trouble_of_links(sim: &mut Sim, trouble: &Trouble) {
    let due = |sim: &mut Sim, every: usize| every > 0 && sim.rng.once_in(every);
    let links = sim.process.links.len();
    if links == 0 {
        return;
    }
    let place = sim.rng.below(links);
    if due(sim, trouble.cut_source) {
        sim.with_link(place, |world| world.cut_source());
    }
    if due(sim, trouble.cut_target) {
        sim.with_link(place, |world| {
            let index = world.rng.below(world.connections());
            world.cut_target(index);
        });
        sim.process.links[place].world.check_running();
    }
    let until_ms = sim.now_ms + sim.rng.between(100, 4_000) as u64;
    if due(sim, trouble.slow) {
        sim.process.links[place].be_slow(until_ms);
    }
    if due(sim, trouble.sleep) {
        sim.process.links[place].asleep_until_ms = until_ms;
    }
}

fn begin(sim: &mut Sim, trouble: &Trouble, workload: &Workload) {
    let group = sim.rng.pick(&workload.groups);
    let slot = slot_of(&group[0]);
    let from = sim.shards.owner(slot);
    let others: Vec<usize> = (0..sim.shards.masters.len())
        .filter(|to| *to != from)
        .collect();
    let to = *sim.rng.pick(&others);
    if sim.shards.moving.contains_key(&slot) {
        return;
    }
    let whole = sim.rng.percent(trouble.whole);
    match sim.rng.percent(20) {
        true => sim.shards.move_all(slot, to, whole),
        false => sim.shards.begin(slot, to, whole),
    }
}

fn carry(sim: &mut Sim, slot: Slot, trouble: &Trouble) {
    if sim.shards.is_carried(slot) {
        let from = sim.shards.moving[&slot].from;
        sim.shards.finish(slot);
        if trouble.hasty && sim.rng.percent(50) {
            let whole = sim.rng.percent(trouble.whole);
            sim.shards.begin(slot, from, whole);
        }
        return;
    }
    match &sim.shards.moving[&slot].way {
        Way::Whole(_) => {
            let most = sim.rng.between(1, 5);
            sim.shards.feed(slot, most);
        }
        Way::Keys => {
            let keys: Vec<Bytes> = sim.shards.keys_in(sim.shards.moving[&slot].from, slot);
            let key = sim.rng.pick(&keys).clone();
            let copy = sim.rng.percent(15);
            sim.shards.migrate(&key, copy);
        }
    }
}

/// Somebody looks at the source.
fn view(sim: &mut Sim, trouble: &Trouble, former: &mut Vec<Topology>) {
    let open = !sim.rng.percent(trouble.blind);
    let at_ms = sim.now_ms + sim.rng.below(500) as u64;
    if sim.rng.percent(trouble.stale) {
        let view = sim.rng.pick(former).clone();
        trace::note(|| "an old view is on its way".into());
        sim.views.push((at_ms, view));
        return;
    }
    let view = sim.shards.topology(open);
    former.push(view.clone());
    if former.len() > 6 {
        former.remove(0);
    }
    sim.views.push((at_ms, view));
}

fn fail_over(sim: &mut Sim, master: usize) {
    if sim.rng.percent(50) {
        return sim.shards.lag(master);
    }
    let slots: Vec<Slot> = sim.shards.moving.keys().copied().collect();
    if slots.len() > 1 {
        return;
    }
    for slot in slots {
        sim.shards.call_off(slot, true);
    }
    for place in 0..sim.process.links.len() {
        if sim.process.links[place].at == master {
            sim.with_link(place, |world| world.cut_source());
        }
    }
    sim.shards.fail_over(master, true);
}
