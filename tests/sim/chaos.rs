//! A seed's world: what kind of deployment, network, workload and trouble it has, and one run of it.

use std::sync::Arc;

use slotstream::engine::options::{Existing, Grouping, OnDivergence};
use slotstream::engine::status::LaneState;
use slotstream::limits;
use slotstream::slot::{Slot, SlotSet, slot_of};
use slotstream::spool::{Budget, Settings};

use crate::cluster::Cluster;
use crate::disk;
use crate::model::{Bytes, Value};
use crate::restart::Saved;
use crate::rewinds::Lagging;
use crate::rng::Rng;
use crate::source::Source;
use crate::trace;
use crate::workload::{Mix, Workload};
use crate::world::{Network, Used, World};

/// What may happen in one run. Each number: once in so many steps; 0: never.
#[derive(Debug, Clone)]
pub struct Trouble {
    pub lossy: bool,
    pub cut_target: usize,
    pub cut_source: usize,
    pub migrate: usize,
    /// Slots move as a whole, not key by key.
    pub whole_slots: bool,
    pub fail_over: usize,
    pub refuse: usize,
    pub view: usize,
    pub stale_views: bool,
    /// How many bytes the source keeps for partial resyncs; none: all.
    pub backlog: Option<u64>,
    pub rename_history: usize,
    /// The process dies.
    pub crash: usize,
    /// A target master is restarted from what it had saved a while ago.
    pub restart: usize,
    /// Another process takes the link over while this one runs.
    pub duplicate: usize,
    /// The process is asked to end, and another follows.
    pub stop: usize,
}

/// One run's nature.
#[derive(Debug, Clone)]
pub struct Plan {
    pub masters: usize,
    pub single_target: bool,
    pub single_source: bool,
    pub old_redirects: bool,
    pub passwords: bool,
    pub diskless: bool,
    pub steps: usize,
    pub writes_percent: usize,
    pub groups: usize,
    /// The lane keeps records on the target.
    pub records: bool,
    /// When what must not be repeated waits for more.
    pub grouping: Grouping,
    /// Keys of the lane that the target holds before it begins.
    pub stale_keys: usize,
    pub network: Network,
    pub mix: Mix,
    pub trouble: Trouble,
}

/// The spool of one run, and the trouble with its disk.
#[derive(Debug, Clone)]
pub struct SpoolPlan {
    block_bytes: usize,
    segment_blocks: u32,
    budget: u64,
    /// The most that the disk takes for one order.
    delay_ms: usize,
    /// Once in so many steps; 0: never.
    refuses: usize,
    damage: usize,
    /// The target stands still for a few seconds.
    freezes: usize,
}

const REFUSALS: [&str; 9] = [
    "LOADING Redis is loading the dataset in memory",
    "CLUSTERDOWN The cluster is down",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "READONLY You can't write against a read only replica.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "BUSY Redis is busy running a script.",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "NOREPLICAS Not enough good replicas to write.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
];

impl Plan {
    pub fn of(rng: &mut Rng) -> Self {
        let single_target = rng.percent(20);
        let single_source = rng.percent(40);
        let records = rng.percent(60);
        // Replies get lost: what became of their commands is known only by watermarks.
        let lossy = records && rng.percent(60);
        let fallback = rng.percent(25);
        let cluster = !single_target;
        let mut often = |percent: usize, low: usize, high: usize| match rng.percent(percent) {
            true => rng.between(low, high),
            false => 0,
        };
        let trouble = Trouble {
            lossy,
            cut_target: often(50, 20, 400),
            cut_source: if fallback {
                often(100, 100, 500)
            } else {
                often(50, 30, 500)
            },
            migrate: if cluster { often(60, 5, 60) } else { 0 },
            whole_slots: often(50, 1, 1) == 1,
            fail_over: often(30, 100, 800),
            refuse: often(40, 50, 500),
            view: often(80, 20, 300),
            stale_views: often(40, 1, 1) == 1,
            backlog: (often(0, 1, 1) == 0 && fallback).then_some(300),
            rename_history: often(20, 200, 1000),
            crash: if records { often(60, 50, 800) } else { 0 },
            restart: 0,
            duplicate: if records { often(40, 100, 800) } else { 0 },
            stop: if records { often(40, 50, 500) } else { 0 },
        };
        let mut trouble = trouble;
        if records && trouble.migrate == 0 && trouble.fail_over == 0 && rng.percent(40) {
            trouble.restart = rng.between(100, 800);
        }
        let network = Network {
            chunk: *rng.pick(&[1, 7, 40, 200, 2_000, 100_000]),
            stall_percent: *rng.pick(&[0, 10, 50, 80]),
            step_ms: *rng.pick(&[1, 2, 5, 30]),
            commands: *rng.pick(&[1, 4, 30, 500]),
        };
        let mix = Mix {
            once_only: true,
            removals: true,
            several_keys: rng.percent(70),
            across_slots: single_source && rng.percent(70),
            transactions: rng.percent(70),
            flushes: rng.percent(30),
            unknown: rng.percent(30),
            functions: rng.percent(20),
            publish: single_source && rng.percent(30),
            databases: if single_source && single_target { 3 } else { 1 },
            fat: network.chunk >= 2_000 && rng.percent(40),
            deadlines: false,
        };
        Self {
            masters: if single_target { 1 } else { rng.between(1, 4) },
            single_target,
            single_source,
            old_redirects: rng.percent(30),
            passwords: rng.percent(20),
            diskless: rng.percent(50),
            steps: rng.between(100, 1500),
            writes_percent: *rng.pick(&[20, 60, 200, 600]),
            groups: rng.between(1, 6),
            records,
            grouping: Grouping::default(),
            stale_keys: if rng.percent(30) {
                rng.between(1, 60)
            } else {
                0
            },
            network,
            mix,
            trouble,
        }
    }
}

impl SpoolPlan {
    /// What a seed makes of the disk, with chance of its own: the other events of a seed do not depend on it.
    pub fn of_seed(seed: u64) -> (Self, Rng) {
        let mut rng = Rng::new(!seed);
        (Self::of(&mut rng), rng)
    }

    fn of(rng: &mut Rng) -> Self {
        Self {
            block_bytes: *rng.pick(&[88, 158, 1_000, 20_000]),
            segment_blocks: rng.between(1, 5) as u32,
            budget: *rng.pick(&[0, 2_000, 20_000, 1 << 30]),
            delay_ms: *rng.pick(&[0, 3, 100]),
            refuses: *rng.pick(&[0, 0, 30, 200]),
            damage: *rng.pick(&[0, 0, 0, 100, 400]),
            freezes: *rng.pick(&[0, 30, 100]),
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            link: disk::LINK.into(),
            budget: Arc::new(Budget::new(self.budget)),
            block_bytes: self.block_bytes,
            memory_blocks: limits::SPOOL_LEAST_BLOCKS,
            segment_blocks: self.segment_blocks,
        }
    }

    /// What happens to the disk in this step.
    fn stir(&self, world: &mut World) {
        let (disk, now_ms) = (&mut world.disk, world.now_ms);
        if self.refuses > 0 && disk.rng.once_in(self.refuses) {
            disk.refuses_until_ms = now_ms + disk.rng.below(3_000) as u64;
        }
        if self.damage > 0 && disk.rng.once_in(self.damage) {
            disk.damage();
        }
        let streams = world.status.state() == LaneState::Streaming;
        let moves = now_ms >= world.frozen_until_ms && streams;
        if self.freezes > 0 && moves && disk.rng.once_in(self.freezes) {
            world.frozen_until_ms = now_ms + disk.rng.between(500, 5_000) as u64;
            let recorded = world.config.generations.is_some();
            let dies = recorded && disk.rng.percent(50);
            let dies_at_ms = now_ms + disk.rng.between(1_200, 3_000) as u64;
            world.dies_at_ms = dies.then_some(dies_at_ms);
        }
        let dies = world.dies_at_ms.take_if(|at_ms| *at_ms <= now_ms).is_some();
        if dies && !world.is_contested() {
            world.crash();
        }
    }
}

/// One run from a seed; gives how much of the disk was used. Panics when anything is not as it must be.
pub fn run(seed: u64) -> Used {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::of(&mut rng);
    plan.grouping = grouping_of(seed);
    let (spool, disk_rng) = SpoolPlan::of_seed(seed);
    trace::note(|| format!("{plan:?} {spool:?}"));
    run_plan(&plan, &spool, Lagging::of_seed(seed), rng, disk_rng)
}

/// In most runs any rate is high. By chance of its own, so that all else a seed makes happen stays as it was.
pub fn grouping_of(seed: u64) -> Grouping {
    let mut rng = Rng::new(seed ^ 0x6774);
    Grouping {
        high_rate: *rng.pick(&[0, 0, 20, u64::MAX >> 20]),
        enough: *rng.pick(&[2, 4, 30]),
        wait_ms: *rng.pick(&[5, 100, 1_000]),
    }
}

/// A plan's world before anything happens.
pub fn begin(
    plan: &Plan,
    spool: &SpoolPlan,
    mut rng: Rng,
    disk_rng: Rng,
    on_divergence: OnDivergence,
) -> (World, Workload, SlotSet) {
    let slots = source_slots(plan, &mut rng);
    let mut workload = Workload::new(plan.mix.clone(), &mut rng, &slots, plan.groups, 4);
    let mut world = build(plan, spool, rng, &slots, &mut workload, on_divergence);
    world.disk.rng = disk_rng;
    world.disk.delay_ms = spool.delay_ms;
    (world, workload, slots)
}

/// A moment in which clients write, and trouble may come.
pub fn one_step(world: &mut World, plan: &Plan, spool: &SpoolPlan, workload: &mut Workload) {
    let mut writes = plan.writes_percent;
    while writes >= 100 || world.rng.percent(writes) {
        workload.act(&mut world.source, &mut world.tracker, &mut world.rng);
        writes = writes.saturating_sub(100);
    }
    stir(world, plan, workload);
    spool.stir(world);
    world.step();
    world.check_running();
}

fn run_plan(plan: &Plan, spool: &SpoolPlan, mut lagging: Lagging, rng: Rng, disk_rng: Rng) -> Used {
    let (mut world, mut workload, slots) = begin(plan, spool, rng, disk_rng, OnDivergence::Stop);
    let foreign = add_foreign_keys(&mut world, &slots);
    add_stale_keys(&mut world, plan, &workload);
    // Where a copy takes minutes there is nothing to wait for.
    if plan.records && spool.freezes > 0 && plan.network.chunk >= 40 {
        world.run_until_resumable();
    }
    for _ in 0..plan.steps {
        one_step(&mut world, plan, spool, &mut workload);
        // What was left out for a key that is to be mended needs no more when a flush removes it.
        if plan.records && !plan.mix.flushes {
            lagging.stir(&mut world);
        }
    }
    settle(&mut world);
    world.run_until_equal();
    world.check_equal();
    for (key, node) in &foreign {
        let kept = world.cluster.nodes[*node].store.keys.get(&(0, key.clone()));
        assert!(
            kept.is_some(),
            "a key of another lane is gone: {}",
            key.escape_ascii()
        );
    }
    finish(&mut world);
    world.used()
}

/// A lane of a cluster source has some of the slots, one of a single source all.
fn source_slots(plan: &Plan, rng: &mut Rng) -> SlotSet {
    if plan.single_source {
        return SlotSet::all();
    }
    let mut slots = SlotSet::new();
    let first = rng.below(8000);
    slots.insert_range(first as Slot, (first + rng.between(200, 8000)) as Slot);
    slots
}

fn build(
    plan: &Plan,
    spool: &SpoolPlan,
    mut rng: Rng,
    slots: &SlotSet,
    workload: &mut Workload,
    on_divergence: OnDivergence,
) -> World {
    let mut cluster = Cluster::new(plan.masters, plan.single_target);
    cluster.on_divergence = on_divergence;
    cluster.grouping = plan.grouping;
    cluster.old_redirects = plan.old_redirects;
    if plan.stale_keys > 0 {
        cluster.existing = Existing::Replace;
    }
    let mut source = Source::new(rng.below(1_000_000) as u64);
    source.diskless = plan.diskless;
    source.snapshot_delay_ms = rng.below(300) as u64;
    if plan.passwords {
        source.password = Some("secret".into());
        cluster.password = Some("hidden".into());
    }
    let network = plan.network.clone();
    let mut world = World::with_spool(
        rng,
        network,
        source,
        cluster,
        slots.clone(),
        spool.settings(),
    );
    world.lossy = plan.trouble.lossy;
    world.tracker.repeats = plan.trouble.lossy;
    if plan.records {
        world.keep_records();
    }
    for _ in 0..world.rng.below(40) {
        let group = world.rng.below(plan.groups);
        workload.write(group, &mut world.source, &mut world.tracker, &mut world.rng);
    }
    world
}

/// Keys of other lanes at the target, which must stay.
fn add_foreign_keys(world: &mut World, slots: &SlotSet) -> Vec<(Bytes, usize)> {
    let mut foreign = Vec::new();
    if world.cluster.single {
        return foreign;
    }
    for number in 0..30 {
        let key = format!("foreign{number}").into_bytes();
        let slot = slot_of(&key);
        if !slots.contains(slot) {
            let node = world.cluster.owners[usize::from(slot)];
            let value = Value::Text(b"foreign".to_vec());
            world.cluster.nodes[node]
                .store
                .keys
                .insert((0, key.clone()), value);
            foreign.push((key, node));
        }
    }
    foreign
}

/// Keys of the lane at the target, of all types: some that the source never has, some that it may have or come to have.
fn add_stale_keys(world: &mut World, plan: &Plan, workload: &Workload) {
    for number in 0..plan.stale_keys {
        let group = world.rng.pick(&workload.groups).clone();
        let mut key = world.rng.pick(&group).clone();
        if world.rng.percent(50) {
            key.extend_from_slice(format!("stale{number}").as_bytes());
        }
        let text = b"stale".to_vec();
        let value = match world.rng.below(4) {
            0 => Value::Text(text),
            1 => Value::List([text].into()),
            2 => Value::Set([text].into()),
            _ => Value::Hash([(text.clone(), text)].into()),
        };
        let databases = plan.mix.databases as usize;
        let database = world.rng.below(databases) as u32;
        let node = world.cluster.owners[usize::from(slot_of(&key))];
        let store = &mut world.cluster.nodes[node].store;
        store.keys.insert((database, key), value);
    }
}

fn stir(world: &mut World, plan: &Plan, workload: &Workload) {
    end_refusals(world);
    let trouble = &plan.trouble;
    let due = |world: &mut World, every: usize| every > 0 && world.rng.once_in(every);
    if due(world, trouble.cut_target) {
        let index = world.rng.below(world.connections());
        world.cut_target(index);
    }
    if due(world, trouble.cut_source) {
        world.cut_source();
        if world.rng.percent(30) {
            world.source_down_until_ms = world.now_ms + world.rng.below(400) as u64;
        }
    }
    if let Some(backlog) = trouble.backlog {
        world.source.shrink_backlog(backlog);
    }
    // An id two histories old leads to a copy.
    let known = world.status.replid() == world.source.replid;
    if due(world, trouble.rename_history) && known {
        world.cut_source();
        world.source.rename_history();
    }
    if due(world, trouble.refuse) {
        let node = world.rng.below(world.cluster.nodes.len());
        let error = (*world.rng.pick(&REFUSALS)).to_owned();
        let until = world.now_ms + world.rng.below(500) as u64;
        trace::note(|| format!("node {node} refuses until {until}: {error}"));
        world.cluster.refuse(node, error, until);
    }
    if due(world, trouble.migrate) {
        migrate_on(world, plan, workload);
    }
    if due(world, trouble.fail_over) {
        fail_over(world);
    }
    if due(world, trouble.crash) && !world.is_contested() {
        world.crash();
    }
    if due(world, trouble.stop) && !world.is_contested() && world.stops_until_ms.is_none() {
        world.stop();
    }
    if due(world, trouble.duplicate) && !world.is_contested() && world.stops_until_ms.is_none() {
        let asleep = world.rng.percent(30);
        let asleep_ms = if asleep { world.rng.below(2_000) } else { 0 };
        world.begin_takeover(asleep_ms as u64);
    }
    if trouble.restart > 0 && !world.is_contested() {
        restart_target(world, trouble.restart);
    }
    if due(world, trouble.view) {
        let delay = world.rng.below(if trouble.stale_views { 1500 } else { 50 });
        world.publish_view(delay as u64);
    }
}

/// A target master saves what it has, or is restarted with what it had saved.
fn restart_target(world: &mut World, every: usize) {
    let node = world.rng.below(world.cluster.nodes.len());
    let of_this_copy = |saved: &Saved| saved.copy == world.tracker.copies;
    world.saved = world.saved.take().filter(of_this_copy);
    if world.rng.once_in(every) {
        world.saved = Some(world.save(node));
    } else if world.rng.once_in(every)
        && let Some(saved) = world.saved.take()
    {
        world.restart_from_snapshot(&saved);
    }
}

/// A master that refused serves again: at any time, once the lane knows of the refusal, unless that was about one slot.
///
/// Were it sooner, a command could be refused and a later one on the same key, sent before the refusal was known, be
/// taken: pipelining without waiting cannot keep their order, and this version does not claim to.
fn end_refusals(world: &mut World) {
    for node in 0..world.cluster.nodes.len() {
        let drained = world.is_drained(node);
        let master = &mut world.cluster.nodes[node];
        let of_a_slot =
            matches!(&master.refusal, Some((error, _)) if error.starts_with("TRYAGAIN"));
        master.refusal_known |= master.refusal_met && drained && !of_a_slot;
        let over = matches!(master.refusal, Some((_, until)) if until <= world.now_ms);
        if over && (drained || master.refusal_known) {
            trace::note(|| format!("node {node} refuses no more"));
            master.refusal = None;
        }
    }
}

/// The next thing that happens to a slot on its way, or a new slot that sets off.
///
/// A master begins to take what it refused before only while nothing is on its way to it: see [`end_refusals`].
fn migrate_on(world: &mut World, plan: &Plan, workload: &Workload) {
    let nodes = world.cluster.nodes.len();
    if nodes < 2 || !hear_of_finished(world) {
        return;
    }
    let moving = world.cluster.moving();
    if moving.is_empty() || (moving.len() < 3 && world.rng.percent(20)) {
        let group = world.rng.pick(&workload.groups).clone();
        let slot = slot_of(&group[0]);
        let from = world.cluster.owners[usize::from(slot)];
        let to = world.rng.below(nodes);
        let fresh = !world.cluster.nodes[to].visited.contains(&slot) || world.is_drained(to);
        if to != from && fresh && !moving.iter().any(|(other, ..)| *other == slot) {
            trace::note(|| format!("slot {slot} begins to move from node {from} to {to}"));
            world.cluster.begin_move(slot, to);
            if plan.trouble.whole_slots {
                arrive(world, slot, from, to);
            }
        }
        return;
    }
    let (slot, from, to) = *world.rng.pick(&moving);
    let keys = world.cluster.keys_in(from, slot);
    if !keys.is_empty() {
        let key = world.rng.pick(&keys).clone();
        trace::note(|| {
            let name = key.1.escape_ascii();
            format!("key {name} moves from node {from} to {to}")
        });
        world.cluster.move_key(&key, from, to);
        return;
    }
    // Usually the taker is told first; told the other way round, both redirect to each other for a moment.
    if world.cluster.owners[usize::from(slot)] == to || world.rng.percent(20) {
        trace::note(|| format!("node {from} hears that slot {slot} is node {to}'s"));
        world.cluster.finish_at_giver(slot, from, to);
        world.cluster.finish_later.push((slot, to));
    } else if !world.cluster.nodes[to].visited.contains(&slot) || world.is_drained(to) {
        trace::note(|| format!("node {to} has slot {slot} now"));
        world.cluster.finish_at_taker(slot, to);
    }
}

/// Tells takers of their slots; whether all know.
fn hear_of_finished(world: &mut World) -> bool {
    let takers = world.cluster.finish_later.clone();
    let done = takers.iter().all(|(_, to)| world.is_drained(*to));
    if done && !takers.is_empty() {
        trace::note(|| format!("(slot, taker) {takers:?} hear that they own"));
        world.cluster.hear_of_finished();
    }
    done
}

/// All keys of a slot arrive, and both sides know it.
fn arrive(world: &mut World, slot: Slot, from: usize, to: usize) {
    for key in world.cluster.keys_in(from, slot) {
        world.cluster.move_key(&key, from, to);
    }
    world.cluster.finish_at_taker(slot, to);
    world.cluster.finish_at_giver(slot, from, to);
}

/// A node fails, its replica takes over with all the data.
fn fail_over(world: &mut World) {
    let node = world.rng.below(world.cluster.nodes.len());
    if world.cluster.is_moving(node) {
        return;
    }
    trace::note(|| format!("node {node} fails over"));
    world.cut_targets_of(node);
    world.as_rival(|world| world.cut_targets_of(node));
    world.cluster.fail_over(node);
    let delay = world.rng.below(500) as u64;
    world.publish_view(delay);
}

/// No more trouble: slots in motion arrive, everybody knows everything.
pub fn settle(world: &mut World) {
    trace::note(|| "trouble ends".into());
    for node in &mut world.cluster.nodes {
        if let Some((_, until)) = &mut node.refusal {
            *until = 0;
        }
    }
    // A fast network: then there are moments in which nothing is on its way.
    world.network.step_ms = world.network.step_ms.min(2);
    world.network.stall_percent = world.network.stall_percent.min(10);
    world.network.chunk = world.network.chunk.max(20_000);
    world.network.commands = world.network.commands.max(200);
    world.run_until(60_000, "the end of refusals and moves", |world| {
        end_refusals(world);
        for (slot, from, to) in world.cluster.moving() {
            if world.is_drained(to) {
                arrive(world, slot, from, to);
            }
        }
        let over = world
            .cluster
            .nodes
            .iter()
            .all(|node| node.refusal.is_none());
        hear_of_finished(world) && over && world.cluster.moving().is_empty()
    });
    world.cluster.gossip();
    world.source_down_until_ms = 0;
    world.frozen_until_ms = 0;
    world.publish_view(2_000);
}

/// The lane is told to stop, and has nothing left to do.
///
/// One that finds meanwhile that a target master may have lost something ends without having done so: the process fails, and
/// has to be run again.
pub fn finish(world: &mut World) {
    let mut begun = None;
    while begun != Some(world.begun) {
        begun = Some(world.begun);
        world.run_until_equal();
        world.lane.stop();
        world.run_until(10_000, "the end", |world| {
            world.lane.is_done() || begun != Some(world.begun)
        });
    }
    world.lane.finish();
    world.check_equal();
}
