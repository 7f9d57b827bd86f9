//! The simulated source cluster: masters with their keys and streams, and slots that move between them.
//!
//! | way | stream of the giver | stream of the taker |
//! |---|---|---|
//! | key by key | `DEL` per key | `RESTORE-ASKING ... REPLACE` per key, and what clients write to keys that the giver lacks |
//! | as a whole (Valkey 9) | `UNLINK` per key after the hand-over | `SET`, `RPUSH` ... and then the giver's writes, before it owns the slot |
//!
//! Nothing orders the two streams: each has offsets of its own, and a lane of its own that lags as it likes.

use std::collections::{BTreeMap, VecDeque};

use slotstream::engine::mending::{MendAnswer, MendQuestion};
use slotstream::engine::recopy::ListQuestion;
use slotstream::fault::{Fault, Side};
use slotstream::mend::{self, Snapshot, Taken};
use slotstream::position::Offset;
use slotstream::slot::{SLOT_COUNT, Slot, SlotSet, slot_of};
use slotstream::topology::{Node, OpenSlot, Shard, Topology};

use crate::model::{Bytes, Key, Store, Value, key_places};
use crate::rdb;
use crate::rng::Rng;
use crate::source::{Replica, Source};
use crate::trace;
use crate::tracker::Tracker;
use crate::workload::Workload;
use crate::world::SOURCE_PORT;

pub struct Shards {
    pub masters: Vec<Master>,
    /// Who serves each slot.
    pub owners: Vec<usize>,
    pub moving: BTreeMap<Slot, Moving>,
}

pub struct Master {
    pub source: Source,
    /// How often a replica has taken over.
    pub generation: u32,
    /// One that lags.
    replica: Option<Replica>,
}

pub struct Moving {
    pub from: usize,
    pub to: usize,
    pub way: Way,
}

pub enum Way {
    Keys,
    /// What the taker has still to execute, by transactions.
    Whole(VecDeque<Vec<Vec<Bytes>>>),
}

pub fn words(line: &str) -> Vec<Bytes> {
    line.split(' ')
        .map(|word| word.as_bytes().to_vec())
        .collect()
}

impl Shards {
    /// Masters with as many slots each, but for the last, which has `few` if that is told.
    pub fn new(masters: usize, few: Option<usize>) -> Self {
        let owner = |slot: usize| match few {
            Some(few) if slot >= SLOT_COUNT - few => masters - 1,
            Some(_) => slot * (masters - 1) / SLOT_COUNT,
            None => slot * masters / SLOT_COUNT,
        };
        let master = |index: usize| {
            let mut source = Source::new(1_000 * (index as u64 + 1));
            // Their histories have different names.
            source.rename_history();
            source.rename_history();
            Master {
                source,
                generation: 0,
                replica: None,
            }
        };
        Self {
            masters: (0..masters).map(master).collect(),
            owners: (0..SLOT_COUNT).map(owner).collect(),
            moving: BTreeMap::new(),
        }
    }

    pub fn owner(&self, slot: Slot) -> usize {
        self.owners[usize::from(slot)]
    }

    // What the cluster says.

    pub fn node(&self, index: usize) -> Node {
        let generation = self.masters[index].generation;
        node(index, generation)
    }

    /// The master that an address is of, and whether it still is.
    pub fn at(&self, address: &str) -> (usize, bool) {
        let mut parts = address.rsplit('.');
        let mut number = || parts.next().expect("an address").parse().expect("a number");
        let (generation, index): (u32, u32) = (number(), number());
        let index = index as usize;
        (index, self.masters[index].generation == generation)
    }

    /// `open`: whether slots that move key by key show.
    pub fn topology(&self, open: bool) -> Topology {
        let mut slots = vec![SlotSet::new(); self.masters.len()];
        for (slot, owner) in self.owners.iter().enumerate() {
            slots[*owner].insert(slot as Slot);
        }
        let masters = self.masters.iter().enumerate();
        let shards = masters.zip(slots).map(|((index, master), slots)| Shard {
            master: node(index, master.generation),
            replicas: vec![node(index, master.generation + 1)],
            slots,
        });
        let moving = self.moving.iter();
        let open = moving.filter(|(_, moving)| open && matches!(moving.way, Way::Keys));
        let open = open.map(|(slot, moving)| OpenSlot {
            slot: *slot,
            from: self.node(moving.from).id,
            to: self.node(moving.to).id,
        });
        Topology::cluster(shards.collect(), open.collect()).expect("a sound cluster")
    }

    /// What the target should hold.
    pub fn union(&self) -> BTreeMap<Bytes, Value> {
        let mut union = BTreeMap::new();
        for (index, master) in self.masters.iter().enumerate() {
            let keys = master.source.store.keys.iter();
            let owned = keys.filter(|((_, key), _)| self.owner(slot_of(key)) == index);
            union.extend(owned.map(|((_, key), value)| (key.clone(), value.clone())));
        }
        union
    }

    fn store(&self, index: usize) -> &Store {
        &self.masters[index].source.store
    }

    pub fn has(&self, index: usize, key: &[u8]) -> bool {
        self.store(index).keys.contains_key(&(0, key.to_vec()))
    }

    pub fn keys_in(&self, index: usize, slot: Slot) -> Vec<Bytes> {
        let keys = self.store(index).keys.keys();
        keys.filter(|(_, key)| slot_of(key) == slot)
            .map(|(_, key)| key.clone())
            .collect()
    }

    // What lanes ask.

    /// The source's part of the answer to a question about slots: who, and the keys.
    pub fn list(&self, question: &ListQuestion) -> Result<(String, Vec<Key>), String> {
        let (index, present) = self.at(&question.address);
        if !present {
            return Err("the source master cannot be reached".into());
        }
        let keys = self.store(index).keys.keys();
        let keys = keys.filter(|(_, key)| question.slots.contains(slot_of(key)));
        let replid = self.masters[index].source.replid.clone();
        Ok((replid, keys.cloned().collect()))
    }

    /// The values of keys, of this moment.
    pub fn take(&self, question: &MendQuestion) -> MendAnswer {
        let (index, present) = self.at(&question.address);
        if !present {
            return MendAnswer::Later("the source master cannot be reached".into());
        }
        let keys = &question.keys.keys;
        let mut slots = keys.iter().map(|(_, key)| slot_of(key));
        let first = slots.next();
        if slots.any(|slot| Some(slot) != first) {
            let text = "CROSSSLOT Keys in request don't hash to the same slot";
            return MendAnswer::Never(Fault::from_reply(Side::Source, "10.1.0.0:6400", text));
        }
        if let Some(slot) = first {
            let moving = self.moving.get(&slot);
            let gives_keys = moving.is_some_and(|moving| matches!(moving.way, Way::Keys));
            let lacks = keys.iter().any(|(_, key)| !self.has(index, key));
            if self.owner(slot) != index {
                return MendAnswer::Later(format!("MOVED {slot}"));
            }
            if gives_keys && lacks {
                return MendAnswer::Later(format!("ASK {slot}"));
            }
        }
        let source = &self.masters[index].source;
        let taken = |key: &Key| {
            let value = source.store.keys.get(key)?;
            Some(Taken {
                payload: rdb::payload(value),
                expire_at_ms: None,
            })
        };
        MendAnswer::Taken(Snapshot {
            replid: source.replid.clone(),
            offset: Offset(source.offset()),
            values: question_keys(&question.keys).map(taken).collect(),
        })
    }

    // What clients do.

    /// A master executes a command, and puts it into its stream.
    pub fn execute(&mut self, index: usize, args: &[Bytes]) {
        let source = &mut self.masters[index].source;
        source.write(&mut Tracker::default(), 0, args);
    }

    /// Where a command is executed; none where it is refused.
    fn place_of(&self, slot: Slot, args: &[Bytes]) -> Option<usize> {
        let Some(moving) = self.moving.get(&slot) else {
            return Some(self.owner(slot));
        };
        if matches!(moving.way, Way::Whole(_)) {
            return Some(moving.from);
        }
        let keys: Vec<&Bytes> = key_places(args).into_iter().map(|at| &args[at]).collect();
        let at_giver = keys.iter().filter(|key| self.has(moving.from, key)).count();
        match at_giver {
            0 if keys.len() == 1 => Some(moving.to),
            0 => {
                let all = keys.iter().all(|key| self.has(moving.to, key));
                all.then_some(moving.to)
            }
            some => (some == keys.len()).then_some(moving.from),
        }
    }

    /// A client's transaction, or one command, all of one slot. Those that are refused are left out.
    pub fn client(&mut self, slot: Slot, commands: &[Vec<Bytes>]) {
        let several = commands.len() > 1;
        let mut place = None;
        let mut executed: Vec<Vec<Bytes>> = Vec::new();
        for args in commands {
            let Some(index) = self.place_of(slot, args) else {
                continue;
            };
            if several && place.is_none() {
                let source = &mut self.masters[index].source;
                source.select(0);
                source.say(&["MULTI"]);
            }
            if *place.get_or_insert(index) == index {
                self.execute(index, args);
                executed.push(args.clone());
            }
        }
        if several && let Some(index) = place {
            self.masters[index].source.say(&["EXEC"]);
        }
        if let Some(moving) = self.moving.get_mut(&slot)
            && let Way::Whole(queue) = &mut moving.way
            && !executed.is_empty()
        {
            queue.push_back(executed);
        }
    }

    /// One random command, or a transaction, on keys of a group.
    pub fn act(&mut self, workload: &mut Workload, group: usize, rng: &mut Rng) {
        let slot = slot_of(&workload.groups[group][0]);
        if rng.percent(15) {
            return self.transact(workload, group, rng);
        }
        let holders = match self.moving.get(&slot) {
            Some(moving) => vec![moving.from, moving.to],
            None => vec![self.owner(slot)],
        };
        for index in holders {
            let args = workload.command(group, &self.masters[index].source, rng);
            if self.place_of(slot, &args) == Some(index) {
                return self.client(slot, &[args]);
            }
        }
    }

    fn transact(&mut self, workload: &mut Workload, group: usize, rng: &mut Rng) {
        let slot = slot_of(&workload.groups[group][0]);
        let index = self.owner(slot);
        let moving = self.moving.get(&slot);
        let is_open = moving.is_some_and(|moving| matches!(moving.way, Way::Keys));
        // What fits the data depends on what came before: it is tried on a copy.
        let mut trial = Source::new(0);
        trial.store = self.store(index).clone();
        let mut commands = Vec::new();
        for _ in 0..rng.between(2, 5) {
            let args = workload.command(group, &trial, rng);
            let takes_away = matches!(args[0].as_slice(), b"DEL" | b"UNLINK" | b"RENAME");
            let adds = key_places(&args).into_iter();
            let adds = adds.filter(|at| !self.has(index, &args[*at])).count() > 0;
            if is_open && (takes_away || adds) {
                continue;
            }
            trial.write(&mut Tracker::default(), 0, &args);
            commands.push(args);
        }
        if is_open {
            commands.retain(|args| self.place_of(slot, args) == Some(index));
        }
        self.client(slot, &commands);
    }

    /// `FLUSHALL` at one master: it ends migrations of whole slots, in which it could not be followed.
    pub fn flush(&mut self, index: usize) {
        self.call_off_whole(index);
        trace::note(|| format!("master {index} is flushed"));
        self.execute(index, &[b"FLUSHALL".to_vec()]);
    }

    fn call_off_whole(&mut self, index: usize) {
        let moving = self.moving.iter();
        let of_it = moving
            .filter(|(_, m)| matches!(m.way, Way::Whole(_)) && [m.from, m.to].contains(&index));
        let slots: Vec<Slot> = of_it.map(|(slot, _)| *slot).collect();
        slots.into_iter().for_each(|slot| self.call_off(slot, true));
    }

    // Slots that move.

    /// A slot begins to move, key by key or as a whole.
    pub fn begin(&mut self, slot: Slot, to: usize, whole: bool) {
        let from = self.owner(slot);
        assert!(from != to && !self.moving.contains_key(&slot));
        trace::note(|| format!("slot {slot} begins to move from {from} to {to}, whole: {whole}"));
        self.forget_replicas(from, to);
        let way = match whole {
            false => Way::Keys,
            true => {
                for key in self.keys_in(to, slot) {
                    self.execute(to, &[b"UNLINK".to_vec(), key]);
                }
                let words = ["CLUSTER", "SYNCSLOTS", "ESTABLISH", "SOURCE", "name"];
                self.masters[to].source.say(&words);
                let keys = self.store(from).keys.iter();
                let keys = keys.filter(|((_, key), _)| slot_of(key) == slot);
                let queue = keys.flat_map(|((_, key), value)| commands_of(key, value));
                Way::Whole(queue.map(|args| vec![args]).collect())
            }
        };
        self.moving.insert(slot, Moving { from, to, way });
    }

    /// `MIGRATE key`, or `MIGRATE COPY key`.
    pub fn migrate(&mut self, key: &[u8], copy: bool) {
        let Moving { from, to, .. } = self.moving[&slot_of(key)];
        trace::note(|| format!("{} migrates, copy: {copy}", key.escape_ascii()));
        self.carry(key, from, to);
        if !copy {
            self.execute(from, &[b"DEL".to_vec(), key.to_vec()]);
        }
    }

    fn carry(&mut self, key: &[u8], from: usize, to: usize) {
        let value = &self.store(from).keys[&(0, key.to_vec())];
        let payload = rdb::payload(value);
        let verb = b"RESTORE-ASKING".to_vec();
        let args = [
            verb,
            key.to_vec(),
            b"0".to_vec(),
            payload,
            b"REPLACE".to_vec(),
        ];
        self.execute(to, &args);
    }

    /// The taker executes so much of what it has to.
    pub fn feed(&mut self, slot: Slot, most: usize) {
        for _ in 0..most {
            let Some(moving) = self.moving.get_mut(&slot) else {
                return;
            };
            let to = moving.to;
            let Way::Whole(queue) = &mut moving.way else {
                return;
            };
            let Some(commands) = queue.pop_front() else {
                return;
            };
            let several = commands.len() > 1;
            if several {
                let source = &mut self.masters[to].source;
                source.select(0);
                source.say(&["MULTI"]);
            }
            commands.iter().for_each(|args| self.execute(to, args));
            if several {
                self.masters[to].source.say(&["EXEC"]);
            }
        }
    }

    /// Whether all of a slot is with the taker.
    pub fn is_carried(&self, slot: Slot) -> bool {
        let moving = &self.moving[&slot];
        match &moving.way {
            Way::Keys => self.keys_in(moving.from, slot).is_empty(),
            Way::Whole(queue) => queue.is_empty(),
        }
    }

    /// The taker owns the slot.
    pub fn finish(&mut self, slot: Slot) {
        assert!(self.is_carried(slot));
        let Moving { from, to, way } = self.moving.remove(&slot).expect("it moves");
        trace::note(|| format!("slot {slot} is at {to}"));
        self.owners[usize::from(slot)] = to;
        if let Way::Whole(_) = way {
            for key in self.keys_in(from, slot) {
                self.execute(from, &[b"UNLINK".to_vec(), key]);
            }
            let words = ["CLUSTER", "SYNCSLOTS", "FINISH", "STATE", "SUCCESS"];
            self.masters[to].source.say(&words);
        }
    }

    /// The giver keeps the slot. Keys that the taker has got come back, unless they are to stay where nobody looks for them.
    pub fn call_off(&mut self, slot: Slot, back: bool) {
        let Moving { from, to, way } = self.moving.remove(&slot).expect("it moves");
        trace::note(|| format!("the move of slot {slot} is called off"));
        for key in self.keys_in(to, slot) {
            match way {
                Way::Whole(_) => self.execute(to, &[b"UNLINK".to_vec(), key]),
                Way::Keys if back && !self.has(from, &key) => {
                    self.carry(&key, to, from);
                    self.execute(to, &[b"DEL".to_vec(), key]);
                }
                Way::Keys => {}
            }
        }
    }

    /// A whole move at once.
    pub fn move_all(&mut self, slot: Slot, to: usize, whole: bool) {
        self.begin(slot, to, whole);
        let from = self.moving[&slot].from;
        if whole {
            self.feed(slot, usize::MAX);
        } else {
            for key in self.keys_in(from, slot) {
                self.migrate(&key, false);
            }
        }
        self.finish(slot);
    }

    // Failovers.

    fn forget_replicas(&mut self, one: usize, other: usize) {
        self.masters[one].replica = None;
        self.masters[other].replica = None;
    }

    /// Whether no slot moves from or to a master.
    pub fn is_still(&self, index: usize) -> bool {
        let mut moving = self.moving.values();
        moving.all(|moving| ![moving.from, moving.to].contains(&index))
    }

    /// A replica gets nothing from now on.
    pub fn lag(&mut self, index: usize) {
        if self.is_still(index) {
            let replica = self.masters[index].source.save();
            self.masters[index].replica = Some(replica);
        }
    }

    /// A replica takes a master's place: one that lags, if there is one and it is wanted.
    pub fn fail_over(&mut self, index: usize, lagging: bool) {
        self.call_off_whole(index);
        assert!(self.is_still(index));
        let master = &mut self.masters[index];
        master.generation += 1;
        let replica = master.replica.take().filter(|_| lagging);
        trace::note(|| {
            format!(
                "master {index} fails over, with losses: {}",
                replica.is_some()
            )
        });
        match replica {
            Some(replica) if master.source.has_been_at(&replica) => {
                master.source.promote(replica, &mut Tracker::default());
            }
            _ => master.source.rename_history(),
        }
    }
}

fn question_keys(question: &mend::Question) -> impl Iterator<Item = &Key> {
    question.keys.iter()
}

fn node(index: usize, generation: u32) -> Node {
    let id = format!("src{index}g{generation}");
    Node::new(id, format!("10.1.{index}.{generation}"), SOURCE_PORT)
}

/// The commands that make a key what it is.
fn commands_of(key: &Bytes, value: &Value) -> Vec<Vec<Bytes>> {
    let command = |verb: &str, rest: Vec<Bytes>| {
        let mut args = vec![verb.as_bytes().to_vec(), key.clone()];
        args.extend(rest);
        args
    };
    match value {
        Value::Text(text) => vec![command("SET", vec![text.clone()])],
        Value::List(list) => vec![command("RPUSH", list.iter().cloned().collect())],
        Value::Hash(hash) => {
            let fields = hash.iter();
            fields
                .map(|(field, value)| command("HSET", vec![field.clone(), value.clone()]))
                .collect()
        }
        Value::Set(set) => {
            let members = set.iter();
            members
                .map(|member| command("SADD", vec![member.clone()]))
                .collect()
        }
    }
}
