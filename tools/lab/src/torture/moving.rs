//! Slots move between the masters of a cluster while they are written to.
//!
//! The classic way is that of `redis-cli --cluster reshard`: both nodes are told, keys move in batches, every node is
//! told of the new owner. Valkey 9 can move slots at once (`CLUSTER MIGRATESLOTS`). Some slots come back as soon as they
//! have gone; some moves are given up half way. One master of the source begins without slots; it gets some, and loses
//! all of them again.

use super::rig::{COLD_GROUPS, HOT_GROUPS, PATIENCE, Rig};
use super::shape::{Side, ask, client_at, client_of, is_master, owner_of};
use crate::client::{SLOT_COUNT, slot_of};
use crate::cluster::{Cluster, cluster_info};
use crate::load::FUNCTION_LIBRARY;
use crate::resp::{Command, Connection, Value};
use crate::{Result, wait_until};
use anyhow::{Context, bail, ensure};
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Groups of keys whose slots one move takes, as far as they are with the same master.
const HOT_AT_ONCE: std::ops::Range<usize> = 3..25;
const COLD_AT_ONCE: std::ops::Range<usize> = 0..60;
/// More slots in a row, which hold few keys or none.
const ROW: std::ops::Range<usize> = 0..40;
/// One in so many moves takes all slots from the master that has the fewest.
const MOVES_PER_DRAIN: u8 = 5;
const BATCH_KEYS: std::ops::Range<usize> = 1..40;
const BATCH_PAUSE_US: std::ops::Range<u64> = 0..4_000;
/// How long a move stands still half way.
const HALF_WAY_MS: std::ops::Range<u64> = 0..700;
/// A slot that is given back to its owner sends nobody away any more: those who were sent have arrived after this.
const ARRIVAL: Duration = Duration::from_millis(100);
/// For one command of a move: a replica may have to come back first.
const STEP_PATIENCE: Duration = Duration::from_secs(30);
/// What a replica answers to `CLUSTER SETSLOT`.
const ONLY_MASTERS: &str = "Please use SETSLOT only with masters";
/// Long enough for every node to hear of a new owner, usually.
const HEARSAY: Duration = Duration::from_secs(4);
const MIGRATE_TIMEOUT_MS: &str = "5000";
/// An atomic move is cancelled so long after it began: the shorter, the more often in time.
const CANCEL_AFTER_MS: std::ops::Range<u64> = 0..60;

/// How slots are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Classic,
    Atomic,
}

/// What becomes of a move.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Through,
    ThereAndBack,
    Cancelled,
}

/// Slots of one master for another one.
struct Move {
    slots: Vec<usize>,
    giver: usize,
    taker: usize,
}

/// What was moved.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    pub keys: u64,
    pub slots: u64,
}

pub fn strike(rig: &mut Rig, side: Side, way: Way) -> Result<()> {
    let mut random = rig.random.fork();
    let fate = match random.u8(0..10) {
        0..5 => Fate::Through,
        5..7 => Fate::ThereAndBack,
        _ => Fate::Cancelled,
    };
    revive(rig, side, random.bool())?;
    let Some((job, drained)) = choose(rig, side, &mut random)? else {
        return Ok(());
    };
    let fate = match fate {
        _ if drained => Fate::Through,
        // Giving a classic move up loses writes to keys that have gone ahead. Where slotstream is the one who writes,
        // nobody could tell it.
        Fate::Cancelled if side == Side::Target && way == Way::Classic => Fate::ThereAndBack,
        fate => fate,
    };
    rig.journal.note(&format!(
        "{side:?}: {way:?} move of {} slots from node {} to node {}: {:?}",
        job.slots.len(),
        job.giver,
        job.taker,
        job.slots
    ));
    let what = match (side, fate, drained) {
        (Side::Source, _, true) => "source master drained",
        (Side::Source, Fate::Through, _) => "source slots moved",
        (Side::Source, Fate::ThereAndBack, _) => "source slots there and back",
        (Side::Source, Fate::Cancelled, _) => "source move cancelled",
        (Side::Target, Fate::Through, _) => "target slots moved",
        (Side::Target, Fate::ThereAndBack, _) => "target slots there and back",
        (Side::Target, Fate::Cancelled, _) => "target move cancelled",
    };
    rig.struck(what);
    let mut hands = Hands::new(rig, side, &job, random)?;
    let moved = match way {
        Way::Classic => hands.classic(&job, fate)?,
        Way::Atomic => hands.atomic(&job, fate)?,
    };
    rig.summary.moved_keys += moved.keys;
    rig.summary.moved_slots += moved.slots;
    rig.journal.note(&format!(
        "{side:?}: {} keys of {} slots moved",
        moved.keys, moved.slots
    ));
    Ok(())
}

/// A master that lost its last slot may have become a replica of the one that took it. Makes it one of its own again,
/// which it must be where the cluster's shards have no replicas.
fn revive(rig: &Rig, side: Side, wanted: bool) -> Result<()> {
    let cluster = rig.cluster(side);
    if cluster.nodes().len() > cluster.masters().len() || !wanted {
        return Ok(());
    }
    for (index, node) in cluster.nodes().iter().enumerate() {
        if is_master(node)? {
            continue;
        }
        let mut connection = node.connect()?;
        // It may be loading what its master has.
        wait_until(PATIENCE, "a replica to let its master go", || {
            connection.call(&["CLUSTER", "RESET", "SOFT"])?;
            Ok(true)
        })?;
        if node.version().family().has_redis_7_commands() {
            connection.call(&["FUNCTION", "LOAD", "REPLACE", FUNCTION_LIBRARY])?;
        }
        let id = connection.call(&["CLUSTER", "MYID"])?.text();
        let other = &cluster.nodes()[usize::from(index == 0)];
        let port = node.port().to_string();
        other
            .connect()?
            .call(&["CLUSTER", "MEET", "127.0.0.1", &port])?;
        wait_until(PATIENCE, "a former replica to be known as a master", || {
            // Slots that it would import before it knows their owners would have none for it.
            if cluster_info(&mut connection, "cluster_state")? != "ok" {
                return Ok(false);
            }
            for node in cluster.nodes() {
                let known = ask(node)?.call(&["CLUSTER", "NODES"])?.text();
                let line = known.lines().find(|line| line.starts_with(&id));
                let flags = line.and_then(|line| line.split(' ').nth(2));
                if !flags.is_some_and(|flags| flags.ends_with("master")) {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
    }
    Ok(())
}

/// The next move, and whether it takes all that its giver has. There is none where only one node is a master.
fn choose(rig: &Rig, side: Side, random: &mut Rng) -> Result<Option<(Move, bool)>> {
    let cluster = rig.cluster(side);
    let client = client_of(cluster)?;
    let drain = random.u8(0..MOVES_PER_DRAIN) == 0 && rig.may_drain(side);
    let mut wanted: BTreeSet<usize> = BTreeSet::new();
    for _ in 0..random.usize(HOT_AT_ONCE) {
        wanted.insert(slot_of_group('w', random.usize(0..HOT_GROUPS)));
    }
    let first = *wanted.first().context("no slot is chosen")?;
    for _ in 0..random.usize(COLD_AT_ONCE) {
        wanted.insert(slot_of_group('c', random.usize(0..COLD_GROUPS)));
    }
    let start = random.usize(0..SLOT_COUNT - ROW.end);
    wanted.extend(start..start + random.usize(ROW));
    let choice = random.usize(0..usize::MAX);
    let to_empty = random.u8(0..3) > 0;

    let mut slots: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for slot in 0..SLOT_COUNT {
        let owner = owner_of(cluster, &client, slot)?;
        slots.entry(owner).or_default().push(slot);
    }
    let mut masters = Vec::new();
    for (index, node) in cluster.nodes().iter().enumerate() {
        if !rig.is_out(side, index) && is_master(node)? {
            masters.push(index);
        }
    }
    let fewest = slots.iter().min_by_key(|(_, slots)| slots.len());
    let (giver, drained) = match fewest {
        Some((node, _)) if drain && slots.len() > 3 => (*node, true),
        _ => (owner_of(cluster, &client, first)?, false),
    };
    masters.retain(|node| *node != giver);
    let empty = masters.iter().find(|node| !slots.contains_key(node));
    let taker = match empty {
        Some(empty) if to_empty => *empty,
        _ if masters.is_empty() => return Ok(None),
        _ => masters[choice % masters.len()],
    };
    let mut slots = slots.remove(&giver).unwrap_or_default();
    if !drained {
        slots.retain(|slot| wanted.contains(slot));
    }
    let job = Move {
        slots,
        giver,
        taker,
    };
    Ok(Some((job, drained)))
}

fn slot_of_group(kind: char, number: usize) -> usize {
    slot_of(format!("{kind}{number}").as_bytes())
}

/// Connections to the nodes of a move.
struct Hands<'a> {
    cluster: &'a Cluster,
    /// Giver and taker, and their ids.
    nodes: Vec<(Connection, String)>,
    /// All that are neither dead nor frozen.
    hearing: Vec<usize>,
    random: Rng,
}

impl<'a> Hands<'a> {
    fn new(rig: &'a Rig, side: Side, job: &Move, random: Rng) -> Result<Hands<'a>> {
        let cluster = rig.cluster(side);
        let nodes = [job.giver, job.taker].map(|index| {
            let mut connection = cluster.nodes()[index].connect()?;
            let id = connection.call(&["CLUSTER", "MYID"])?.text();
            Ok((connection, id))
        });
        let hearing = 0..cluster.nodes().len();
        Ok(Hands {
            cluster,
            nodes: nodes.into_iter().collect::<Result<Vec<_>>>()?,
            hearing: hearing.filter(|node| !rig.is_out(side, *node)).collect(),
            random,
        })
    }

    fn classic(&mut self, job: &Move, fate: Fate) -> Result<Moved> {
        let mut moved = self.carry(job, [0, 1], fate != Fate::Cancelled)?;
        match fate {
            Fate::Through => {}
            Fate::ThereAndBack => {
                let back = self.carry(job, [1, 0], true)?;
                moved.keys += back.keys;
                moved.slots += back.slots;
            }
            Fate::Cancelled => moved.keys += self.give_up(&job.slots)?,
        }
        Ok(moved)
    }

    /// Moves slots in batches of keys, all of them at the same time; to the end, or each to some point before it.
    fn carry(&mut self, job: &Move, [from, to]: [usize; 2], to_the_end: bool) -> Result<Moved> {
        let ids = [self.nodes[from].1.clone(), self.nodes[to].1.clone()];
        self.set_slots(to, &job.slots, &["IMPORTING", &ids[0]])?;
        self.set_slots(from, &job.slots, &["MIGRATING", &ids[1]])?;
        let mut moved = Moved::default();
        let counts = self.counts(from, &job.slots)?;
        let mut open: Vec<(usize, u64)> = job.slots.iter().copied().zip(counts).collect();
        let mut finished = Vec::new();
        if to_the_end {
            // What has no keys needs no turns.
            finished.extend(open.extract_if(.., |(_, count)| *count == 0));
        } else {
            for (_, count) in &mut open {
                *count = self.random.u64(0..=*count);
            }
        }
        let total: u64 = open.iter().map(|(_, count)| *count).sum();
        let half_way = Duration::from_millis(self.random.u64(HALF_WAY_MS));
        let mut has_paused = false;
        while !open.is_empty() {
            let index = self.random.usize(0..open.len());
            let (slot, left) = open[index];
            let batch = self.random.usize(BATCH_KEYS);
            let keys = match to_the_end || left > 0 {
                true => self.migrate(from, to, slot, batch, false)?,
                false => 0,
            };
            moved.keys += keys;
            open[index].1 = left.saturating_sub(keys);
            if keys == 0 || (!to_the_end && open[index].1 == 0) {
                finished.push(open.swap_remove(index));
            }
            if !has_paused && moved.keys * 2 >= total {
                has_paused = true;
                std::thread::sleep(half_way);
            }
            std::thread::sleep(Duration::from_micros(self.random.u64(BATCH_PAUSE_US)));
        }
        if to_the_end {
            let slots: Vec<usize> = finished.iter().map(|(slot, _)| *slot).collect();
            self.hand_over(&slots, [from, to])?;
            self.wait_until_known(&slots, to)?;
            moved.slots = slots.len() as u64;
        }
        Ok(moved)
    }

    /// Tells every master of slots' new owner, the old owner at once where a key may still be created.
    fn hand_over(&mut self, slots: &[usize], [from, to]: [usize; 2]) -> Result<()> {
        let id = self.nodes[to].1.clone();
        self.set_slots(to, slots, &["NODE", &id])?;
        self.set_slots(from, slots, &["NODE", &id])?;
        let ours = [0, 1].map(|index| self.nodes[index].0.address().to_owned());
        for node in self.cluster.nodes() {
            if ours.contains(&node.address()) {
                continue;
            }
            // The others hear of it from the two anyway; one that is out of order need not.
            if let Ok(mut connection) = ask(node)
                && is_master(node).unwrap_or(false)
            {
                let commands = set_slot(slots, &["NODE", &id]);
                let _ = connection.pipeline(&commands);
            }
        }
        Ok(())
    }

    /// Waits until every node has heard of slots' new owner. Where the next move begins before, a late message can make a
    /// master take that for undone, and remove the keys: servers do that to each other, whoever writes.
    fn wait_until_known(&mut self, slots: &[usize], to: usize) -> Result<()> {
        let (taker, _) = &mut self.nodes[to];
        let owner = taker.address().to_owned();
        let mut bumped = Instant::now();
        wait_until(PATIENCE, "all nodes to know the owner of slots", || {
            if bumped.elapsed() > HEARSAY {
                // Others may hold a claim for newer than the taker's.
                taker.call(&["CLUSTER", "BUMPEPOCH"])?;
                bumped = Instant::now();
            }
            for node in &self.hearing {
                let client = client_at(&self.cluster.nodes()[*node])?;
                for slot in slots {
                    let known = client.owner_of_slot(*slot);
                    let who = client.endpoint();
                    ensure!(known == owner, "{who} says that {known} has slot {slot}");
                }
            }
            Ok(true)
        })
    }

    /// Brings back what was moved of slots whose owner is still the first node, as `redis-cli --cluster fix` does: what
    /// is written meanwhile to a key that is still away is lost with its return.
    fn give_up(&mut self, slots: &[usize]) -> Result<u64> {
        self.set_slots(0, slots, &["STABLE"])?;
        std::thread::sleep(ARRIVAL);
        let mut moved = 0;
        for slot in slots {
            loop {
                match self.migrate(1, 0, *slot, BATCH_KEYS.end, true)? {
                    0 => break,
                    keys => moved += keys,
                }
            }
        }
        self.set_slots(1, slots, &["STABLE"])?;
        Ok(moved)
    }

    /// Moves some keys of a slot; returns how many there were to move.
    fn migrate(
        &mut self,
        from: usize,
        to: usize,
        slot: usize,
        batch: usize,
        replace: bool,
    ) -> Result<u64> {
        let (host, port) = {
            let address = self.nodes[to].0.address();
            let (host, port) = address.rsplit_once(':').context("an address has a port")?;
            (host.to_owned(), port.to_owned())
        };
        let (connection, _) = &mut self.nodes[from];
        let (slot, batch) = (slot.to_string(), batch.to_string());
        let keys = connection.call(&["CLUSTER", "GETKEYSINSLOT", &slot, &batch])?;
        let keys: Vec<&[u8]> = keys.array().iter().filter_map(Value::bytes).collect();
        if keys.is_empty() {
            return Ok(0);
        }
        let (host, port) = (host.as_bytes(), port.as_bytes());
        let mut words: Vec<&[u8]> = vec![b"MIGRATE", host, port, b"", b"0"];
        words.push(MIGRATE_TIMEOUT_MS.as_bytes());
        let mut replace: &[&[u8]] = if replace { &[b"REPLACE"] } else { &[] };
        wait_until(STEP_PATIENCE, "keys to move", || {
            let words = [&words, replace, &[b"KEYS".as_slice()], &keys].concat();
            let moved = connection.call(&words);
            if let Err(error) = &moved
                && format!("{error:#}").contains("BUSYKEY")
            {
                // Left there by a move that was given up, while somebody still wrote to it.
                replace = &[b"REPLACE"];
            }
            moved.map(|_| true)
        })?;
        Ok(keys.len() as u64)
    }

    /// `CLUSTER SETSLOT` for many slots at once; what is refused is said again until it is not.
    fn set_slots(&mut self, node: usize, slots: &[usize], what: &[&str]) -> Result<()> {
        let mut left = set_slot(slots, what);
        let connection = &mut self.nodes[node].0;
        wait_until(STEP_PATIENCE, "slots to be set", || {
            let replies = connection.pipeline(&left)?;
            let mut refused = None;
            let mut replies = replies.into_iter();
            left.retain(|_| match replies.next().map(Value::ok) {
                // It has heard that its last slot is another's, and follows that one.
                Some(Err(error)) if error.to_string().contains(ONLY_MASTERS) => false,
                Some(Err(error)) => {
                    refused = Some(error);
                    true
                }
                _ => false,
            });
            match refused {
                Some(error) => Err(error),
                None => Ok(true),
            }
        })
        .with_context(|| format!("{} and {what:?}", self.nodes[node].0.address()))
    }

    fn counts(&mut self, node: usize, slots: &[usize]) -> Result<Vec<u64>> {
        let commands: Vec<Command> = slots
            .iter()
            .map(|slot| Command::new(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]))
            .collect();
        let counts = self.nodes[node].0.pipeline(&commands)?;
        let counts = counts.iter().map(Value::integer);
        Ok(counts.map(|count| count.unwrap_or(0) as u64).collect())
    }

    fn atomic(&mut self, job: &Move, fate: Fate) -> Result<Moved> {
        let mut moved = Moved::default();
        let cancel_after = (fate == Fate::Cancelled)
            .then(|| Duration::from_millis(self.random.u64(CANCEL_AFTER_MS)));
        self.move_at_once(job, [0, 1], cancel_after, &mut moved)?;
        if fate == Fate::ThereAndBack {
            self.move_at_once(job, [1, 0], None, &mut moved)?;
        }
        Ok(moved)
    }

    fn move_at_once(
        &mut self,
        job: &Move,
        [from, to]: [usize; 2],
        cancel_after: Option<Duration>,
        moved: &mut Moved,
    ) -> Result<()> {
        let keys: u64 = self.counts(from, &job.slots)?.iter().sum();
        let id = self.nodes[to].1.clone();
        let mut words = vec!["CLUSTER".to_owned(), "MIGRATESLOTS".to_owned()];
        words.push("SLOTSRANGE".to_owned());
        for slots in job.slots.chunk_by(|a, b| a + 1 == *b) {
            words.extend([slots[0], slots[slots.len() - 1]].map(|slot| slot.to_string()));
        }
        words.extend(["NODE".to_owned(), id]);
        let giver = &mut self.nodes[from].0;
        wait_until(STEP_PATIENCE, "a move to begin", || {
            giver.call(&words)?;
            Ok(true)
        })?;
        if let Some(after) = cancel_after {
            std::thread::sleep(after);
            // It may be through already: then there is nothing to cancel.
            let _ = giver.call(&["CLUSTER", "CANCELSLOTMIGRATIONS"]);
        }
        let mut state = String::new();
        wait_until(PATIENCE, "a move to end", || {
            let moves = giver.call(&["CLUSTER", "GETSLOTMIGRATIONS"])?;
            state = latest_state(&moves).context("no move is known")?;
            Ok(["success", "failed", "cancelled"].contains(&state.as_str()))
        })?;
        match state.as_str() {
            "success" => {
                moved.keys += keys;
                moved.slots += job.slots.len() as u64;
                self.wait_until_known(&job.slots, to)?;
            }
            _ if cancel_after.is_some() => {}
            // Whatever is against it, such as a failover, may be over the next time.
            "failed" => {}
            state => bail!("a move ended as {state}"),
        }
        Ok(())
    }
}

fn set_slot(slots: &[usize], what: &[&str]) -> Vec<Command> {
    slots
        .iter()
        .map(|slot| {
            let slot = slot.to_string();
            let mut words = vec!["CLUSTER", "SETSLOT", slot.as_str()];
            words.extend(what);
            Command::new(&words)
        })
        .collect()
}

/// The state of the first of the moves in a reply, which is the latest.
fn latest_state(moves: &Value) -> Option<String> {
    let fields = moves.array().first()?.array();
    let mut pairs = fields.chunks_exact(2);
    let state = pairs.find(|pair| pair[0].text() == "state")?;
    Some(state[1].text())
}
