//! A toy target against [`Bookkeeping::start`]: whatever happened to slots and masters, a lane never goes on ahead of what is
//! applied, nor repeats what must not be repeated.
//!
//! Each master is a list of states, one for each write; a failover goes back to any of the last ones. A slot that moves takes
//! its data and the records whose key is in it along; its new owner's replicas have it, and so all that was there before. The
//! lanes keep to what `recovery` asks of them, notice moves late, and forget everything when their process crashes. Slots move
//! between the two source masters as well: then one lane leaves them, and the other copies them by themselves.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};

use super::*;
use crate::position::{Offset, Position, ReplicationId};
use crate::slot::{Slot, SlotSet};

const SLOTS: u16 = 6;
const MASTERS: usize = 3;
/// Masters of the source, and so lanes.
const LANES: usize = 2;
/// Writes that a replica may lack.
const BEHIND: usize = 8;

/// One slot's data: everything of it before `applied` is.
#[derive(Debug, Clone, Default)]
struct Data {
    applied: u64,
    /// The end of the last command that must not be repeated.
    unrepeatable: u64,
    watermark: Option<Watermark>,
    /// The lane that wrote it.
    by: Option<usize>,
    /// It is being copied: some keys are of another time than others.
    mixed: bool,
}

#[derive(Debug, Clone, Default)]
struct Content {
    slots: BTreeMap<Slot, Data>,
    records: BTreeMap<(Slot, Generation), Record>,
}

#[derive(Debug)]
struct Master {
    name: String,
    /// The last is the present one.
    states: Vec<Content>,
}

/// A lane's memory.
#[derive(Debug)]
struct Lane {
    /// That of its records.
    generation: Generation,
    /// That of its watermarks: the one before, until all masters have records of the new one.
    marks: Generation,
    former: Option<Former>,
    /// From where on the former generation is of no use.
    settled_at: u64,
    id: ReplicationId,
    predecessor: Option<Position>,
    /// For each slot: the master that the lane believes it to be at, and up to where it is applied.
    slots: BTreeMap<Slot, (usize, u64)>,
    /// Slots that are to be copied by themselves, and those among them that the generation is newer than.
    to_copy: SlotSet,
    renewed_for: SlotSet,
    /// What the last record of each master lists, and how far it says the lane is, by the slot of its key.
    listed: Vec<SlotSet>,
    told: Vec<Option<(Slot, u64)>>,
    /// From where on a slot was applied elsewhere than at a master that lists it.
    left: BTreeMap<(usize, Slot), u64>,
    /// Slots with watermarks of this generation, and of the one before.
    owned: SlotSet,
    owned_before: SlotSet,
}

#[derive(Debug, Clone)]
enum Event {
    /// The source writes; whether it may be repeated.
    Command(Slot, bool),
    /// The next command of a slot is executed by its owner.
    Apply(Slot),
    Record(usize, usize),
    Move(Slot, usize),
    /// The lane learns who owns a slot.
    Notice(Slot),
    Failover(usize, usize),
    SourceFailover(usize),
    /// A slot goes from one source master to the other.
    Transfer(Slot),
    /// Lanes are told whose slots are whose.
    Look,
    /// A lane does the next thing about slots that it has to copy.
    Recopy(usize),
    Crash,
    /// A crash in the middle of a copy, after so many masters' records.
    CrashCopying(usize, usize),
}

struct Toy {
    /// The source's stream: command `n` ends at offset `n + 1`.
    stream: Vec<(Slot, bool)>,
    owners: [usize; SLOTS as usize],
    masters: Vec<Master>,
    lanes: Vec<Option<Lane>>,
    /// Whose each slot is at the source.
    sources: [usize; SLOTS as usize],
    /// The histories of each source master, the present one last.
    histories: Vec<Vec<ReplicationId>>,
    /// Slots that no lane writes, and the one that has not left it yet.
    frozen: BTreeMap<Slot, Option<usize>>,
    /// How far the copy of a slot is.
    stages: BTreeMap<Slot, u32>,
    /// Slots that left a master which was replaced since: they do not come back before a lane has begun again, and
    /// has copied them if it must.
    homeless: BTreeSet<(usize, Slot)>,
    epoch: u32,
    generations: u32,
    names: u32,
    resumed: u32,
    copied: u32,
    recopied: u32,
}

fn id(number: u32) -> ReplicationId {
    let text = format!("{number:040}");
    ReplicationId::parse(text.as_bytes()).expect("valid")
}

impl Toy {
    fn new() -> Self {
        let mut toy = Self {
            stream: Vec::new(),
            owners: std::array::from_fn(|slot| slot * MASTERS / usize::from(SLOTS)),
            masters: Vec::new(),
            lanes: (0..LANES).map(|_| None).collect(),
            sources: std::array::from_fn(|slot| usize::from(slot == 1 || slot == 4)),
            histories: (0..LANES).map(|lane| vec![id(lane as u32)]).collect(),
            frozen: BTreeMap::new(),
            stages: BTreeMap::new(),
            homeless: BTreeSet::new(),
            epoch: 0,
            generations: 0,
            names: 0,
            resumed: 0,
            copied: 0,
            recopied: 0,
        };
        for index in 0..MASTERS {
            let name = toy.name();
            let mut content = Content::default();
            for slot in (0..SLOTS).filter(|slot| toy.owner(*slot) == index) {
                content.slots.insert(slot, Data::default());
            }
            let states = vec![content];
            toy.masters.push(Master { name, states });
        }
        toy
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("n{}", self.names)
    }

    fn generation(&mut self) -> Generation {
        self.generations += 1;
        Generation {
            epoch: self.epoch,
            number: self.generations,
        }
    }

    fn owner(&self, slot: Slot) -> usize {
        self.owners[usize::from(slot)]
    }

    fn now(&self, master: usize) -> &Content {
        self.masters[master].states.last().expect("a state")
    }

    fn data(&self, slot: Slot) -> &Data {
        &self.now(self.owner(slot)).slots[&slot]
    }

    fn is_running(&self) -> bool {
        self.lanes.iter().any(Option::is_some)
    }

    fn end(&self) -> u64 {
        self.stream.len() as u64
    }

    fn write(&mut self, master: usize, change: impl FnOnce(&mut Content)) {
        let states = &mut self.masters[master].states;
        let mut next = states.last().expect("a state").clone();
        change(&mut next);
        states.push(next);
        if states.len() > BEHIND {
            states.remove(0);
        }
    }

    fn write_slot(&mut self, slot: Slot, change: impl FnOnce(&mut Data)) {
        self.write(self.owner(slot), |content| {
            change(content.slots.get_mut(&slot).expect("owned"));
        });
    }

    /// The first command of a slot that ends behind `applied`.
    fn next(&self, slot: Slot, applied: u64) -> Option<u64> {
        let commands = self.stream.iter().zip(0u64..);
        let mut commands = commands.filter(|((of, _), at)| *of == slot && *at >= applied);
        commands.next().map(|(_, at)| at)
    }

    fn read(&self) -> Bookkeeping {
        let mut read = Bookkeeping {
            epoch: self.epoch,
            ..Bookkeeping::default()
        };
        for master in &self.masters {
            let content = master.states.last().expect("a state");
            for (&(slot, generation), record) in &content.records {
                read.records.push(Found {
                    held_by: master.name.clone(),
                    slot,
                    generation,
                    record: record.clone(),
                });
            }
            for (&slot, data) in &content.slots {
                if let Some(watermark) = data.watermark {
                    read.watermarks.insert(slot, watermark);
                }
            }
        }
        read
    }

    /// The histories that a source master goes on with.
    fn known(&self, lane: usize) -> Vec<ReplicationId> {
        let histories = self.histories[lane].iter();
        histories.rev().take(2).copied().collect()
    }

    /// What a lane writes, or will.
    fn slots_of(&self, lane: usize) -> SlotSet {
        let is_its = |slot: &Slot| {
            self.sources[usize::from(*slot)] == lane && !self.frozen.contains_key(slot)
        };
        (0..SLOTS).filter(is_its).collect()
    }

    /// What a lane concludes from what is there, checked against what is true.
    fn start(&mut self, lane: usize, slots: &SlotSet) -> Start {
        let names: Vec<String> = self
            .owners
            .iter()
            .map(|&m| self.masters[m].name.clone())
            .collect();
        let owner = |slot: Slot| names.get(usize::from(slot)).map(String::as_str);
        let known = self.known(lane);
        let mut read = self.read();
        let with_old = read.start(slots, owner, false, &known);
        self.check(lane, slots, &with_old);
        let gone = read.superseded(owner);
        read.records
            .retain(|found| !gone.contains(&(found.slot, found.generation)));
        let start = read.start(slots, owner, false, &known);
        self.check(lane, slots, &start);
        let resumes = |start: &Start| matches!(start, Start::Resume(_));
        assert!(
            resumes(&start) || !resumes(&with_old),
            "{gone:?} were needed"
        );
        for master in 0..MASTERS {
            let holds = |key: &(Slot, Generation)| self.now(master).records.contains_key(key);
            if gone.iter().any(holds) {
                let keeps = |key: &(Slot, Generation)| !gone.contains(key);
                self.write(master, |content| {
                    content.records.retain(|key, _| keeps(key));
                });
            }
        }
        start
    }

    /// Whether what a lane goes on with is true.
    fn check(&self, lane: usize, slots: &SlotSet, start: &Start) {
        let Start::Resume(resume) = start else { return };
        if !self.known(lane).contains(&resume.position.id) {
            // The source refuses it, and everything is copied.
            return;
        }
        for slot in slots.difference(&resume.recopy).iter() {
            let passed = resume.passed.get(&slot);
            let from = passed.map_or(resume.position.offset.0, |passed| passed.0);
            let data = self.data(slot);
            assert_eq!(data.by, Some(lane), "slot {slot} is another's");
            assert!(!data.mixed, "slot {slot} is half copied");
            let missing = self.next(slot, data.applied);
            assert!(
                missing.is_none_or(|missing| missing >= from),
                "slot {slot} lacks {missing:?} and goes on from {from}"
            );
            assert!(
                data.unrepeatable <= from,
                "slot {slot} repeats {} from {from}",
                data.unrepeatable
            );
        }
    }

    /// A process starts, or the lanes of a living one look at the target again.
    fn begin(&mut self, new_process: bool) {
        self.epoch += u32::from(new_process);
        self.stages.clear();
        let mut slots: Vec<SlotSet> = (0..LANES)
            .map(|lane| match self.lanes[lane].take() {
                Some(lane) => lane.slots.into_keys().collect(),
                None if new_process => self.slots_of(lane),
                None => SlotSet::new(),
            })
            .collect();
        // A slot that a lane still lists is not another's before it has left it.
        for lane in 0..LANES {
            if new_process && let Start::Resume(resume) = self.start(lane, &slots[lane]) {
                for slot in resume.foreign.iter() {
                    self.frozen.insert(slot, Some(lane));
                    slots.iter_mut().for_each(|slots| _ = slots.remove(slot));
                }
            }
        }
        for (lane, slots) in slots.into_iter().enumerate() {
            if slots.is_empty() {
                // It is gone, and with it what it had to confirm.
                let frozen = self.frozen.values_mut();
                frozen
                    .filter(|by| **by == Some(lane))
                    .for_each(|by| *by = None);
                continue;
            }
            match self.start(lane, &slots) {
                Start::Resume(resume) if self.known(lane).contains(&resume.position.id) => {
                    self.resume(lane, &slots, *resume);
                }
                _ => self.copy(lane, &slots, None),
            }
        }
        let lanes = self.lanes.iter().flatten();
        let waits = lanes.fold(SlotSet::new(), |all, lane| all.union(&lane.to_copy));
        self.homeless.retain(|(_, slot)| waits.contains(*slot));
    }

    fn new_lane(&self, generation: Generation, id: ReplicationId) -> Lane {
        Lane {
            generation,
            marks: generation,
            former: None,
            settled_at: 0,
            id,
            predecessor: None,
            slots: BTreeMap::new(),
            to_copy: SlotSet::new(),
            renewed_for: SlotSet::new(),
            listed: vec![SlotSet::new(); MASTERS],
            told: vec![None; MASTERS],
            left: BTreeMap::new(),
            owned: SlotSet::new(),
            owned_before: SlotSet::new(),
        }
    }

    fn resume(&mut self, lane: usize, slots: &SlotSet, resume: Resume) {
        self.resumed += 1;
        let applied = |slot: Slot| {
            let passed = resume.passed.get(&slot);
            passed.unwrap_or(&resume.position.offset).0
        };
        let slots = slots
            .iter()
            .map(|slot| (slot, (self.owner(slot), applied(slot))));
        self.lanes[lane] = Some(Lane {
            predecessor: resume.predecessor,
            slots: slots.collect(),
            to_copy: resume.recopy,
            owned: resume.owned,
            former: resume.former,
            settled_at: resume.passed.values().max().map_or(0, |passed| passed.0),
            ..self.new_lane(resume.generation, resume.position.id)
        });
        for slot in resume.foreign.iter() {
            self.disown(slot);
        }
        let mut own = Vec::new();
        for master in 0..MASTERS {
            own.extend(
                self.record(lane, master, State::Streaming)
                    .map(|slot| (master, slot)),
            );
        }
        for master in 0..MASTERS {
            let is_other = |(slot, generation): &(Slot, Generation)| {
                *generation == resume.generation && !own.contains(&(master, *slot))
            };
            if self.now(master).records.keys().any(is_other) {
                self.write(master, |content| {
                    content.records.retain(|key, _| !is_other(key))
                });
            }
        }
    }

    /// Everything again; or, of a process that crashes, what it does until then.
    fn copy(&mut self, lane: usize, slots: &SlotSet, crash_after: Option<usize>) {
        self.copied += 1;
        let end = self.end();
        let generation = self.generation();
        let places = slots.iter().map(|slot| (slot, (self.owner(slot), end)));
        self.lanes[lane] = Some(Lane {
            slots: places.collect(),
            ..self.new_lane(generation, *self.histories[lane].last().expect("one"))
        });
        for master in 0..MASTERS {
            if crash_after == Some(master) {
                return;
            }
            self.record(lane, master, State::Copying);
        }
        let read = self.read();
        for slot in slots.iter() {
            let last = self.last_unrepeatable(slot);
            let of_others = read.records.iter().filter(|f| f.generation != generation);
            let listed = of_others.clone().any(|f| f.record.slots.contains(slot));
            let offset = Offset(0);
            self.write_slot(slot, |data| {
                if listed {
                    data.watermark = Some(Watermark { generation, offset });
                }
                data.applied = end;
                data.unrepeatable = last;
                data.by = Some(lane);
                data.mixed = false;
            });
        }
        for master in 0..MASTERS {
            self.record(lane, master, State::Streaming);
        }
    }

    fn last_unrepeatable(&self, slot: Slot) -> u64 {
        let mut commands = self.stream.iter();
        let last = commands.rposition(|(of, repeatable)| *of == slot && !repeatable);
        last.map_or(0, |at| at as u64 + 1)
    }

    /// Writes the lane's record of a master; the slot of its key, unless there is nothing to write.
    fn record(&mut self, of: usize, master: usize, state: State) -> Option<Slot> {
        let lane = self.lanes[of].as_ref()?;
        let believed = |slot: &Slot| {
            lane.slots.get(slot).is_some_and(|(at, _)| *at == master)
                && !lane.to_copy.contains(*slot)
        };
        // Slots that have left stay until they are listed where they went.
        let staying = lane.listed[master].iter();
        let staying = staying.filter(|slot| {
            let goes_to = lane.slots.get(slot).map(|(at, _)| *at);
            goes_to.is_some_and(|at| !lane.listed[at].contains(*slot))
        });
        let listed: SlotSet = (0..SLOTS).filter(believed).chain(staying).collect();
        let before = lane.told[master].map(|(slot, _)| slot);
        // One that lists nothing any more is written where it was.
        let emptied = before.filter(|_| !lane.listed[master].is_empty());
        let key = (0..SLOTS).find(believed).or(emptied)?;
        if self.owner(key) != master {
            // Refused: the slot has moved.
            return None;
        }
        let end = self.end();
        let acked = listed.iter().map(|slot| {
            let pending = self.next(slot, lane.slots[&slot].1);
            let left = lane.left.get(&(master, slot)).copied();
            pending.unwrap_or(end).min(left.unwrap_or(end))
        });
        let acked = acked.min().unwrap_or(end);
        let record = Record {
            state,
            node: self.masters[master].name.clone(),
            position: Position {
                id: lane.id,
                offset: Offset(acked),
            },
            predecessor: lane.predecessor,
            database: 0,
            high: Offset(end),
            watermarks: listed.intersection(&lane.owned.union(&lane.owned_before)),
            slots: listed.clone(),
            former: lane.former,
            exclusive: true,
            held: true,
            leases: false,
        };
        let generation = lane.generation;
        self.write(master, |content| {
            content.records.insert((key, generation), record);
        });
        let lane = self.lanes[of].as_mut()?;
        lane.listed[master] = listed;
        lane.told[master] = Some((key, acked));
        if lane.marks == lane.generation && lane.told_by_all() >= Some(lane.settled_at) {
            lane.owned_before.clear();
        }
        Some(key)
    }

    fn apply(&mut self, slot: Slot) {
        let owner = self.owner(slot);
        let of = self.sources[usize::from(slot)];
        let Some(lane) = &mut self.lanes[of] else {
            return;
        };
        let Some(&(believed, applied)) = lane.slots.get(&slot) else {
            return;
        };
        if lane.to_copy.contains(slot) {
            return;
        }
        let Some(at) = self.next(slot, applied) else {
            return;
        };
        let lane = self.lanes[of].as_mut().expect("looked at above");
        for master in (0..MASTERS).filter(|master| *master != owner) {
            if believed == master || lane.listed[master].contains(slot) {
                lane.left.entry((master, slot)).or_insert(at);
            }
        }
        lane.slots.insert(slot, (believed, at + 1));
        let repeatable = self.stream[at as usize].1;
        let generation = lane.marks;
        if !repeatable {
            lane.owned.insert(slot);
        }
        let missing = self.next(slot, self.data(slot).applied);
        assert!(
            missing.is_none_or(|missing| missing >= at),
            "slot {slot} has a gap"
        );
        self.write_slot(slot, |data| {
            assert_eq!((data.by, data.mixed), (Some(of), false));
            data.applied = data.applied.max(at + 1);
            if !repeatable {
                assert!(data.unrepeatable <= at, "slot {slot} repeats {at}");
                data.unrepeatable = at + 1;
                let offset = Offset(at + 1);
                data.watermark = Some(Watermark { generation, offset });
            }
        });
    }

    /// From now on nothing is believed of a slot that was said before.
    fn disown(&mut self, slot: Slot) {
        let generation = self.generation();
        let offset = Offset(0);
        self.write_slot(slot, |data| {
            data.watermark = Some(Watermark { generation, offset });
        });
    }

    /// The lanes are told whose slots are whose: those that have to go leave them, and what has been left is taken.
    fn look(&mut self) {
        for slot in 0..SLOTS {
            let owner = self.sources[usize::from(slot)];
            let writer = self.lanes.iter().position(|lane| {
                lane.as_ref()
                    .is_some_and(|lane| lane.slots.contains_key(&slot))
            });
            if let Some(of) = writer.filter(|of| *of != owner) {
                let lane = self.lanes[of].as_mut().expect("it writes");
                lane.forget(slot);
                self.disown(slot);
                self.stages.remove(&slot);
                self.frozen.insert(slot, Some(of));
            }
            let Some(&by) = self.frozen.get(&slot) else {
                continue;
            };
            let lists = |of: usize| {
                let lane = self.lanes[of].as_ref();
                lane.is_some_and(|lane| lane.listed.iter().any(|listed| listed.contains(slot)))
            };
            if by.is_some_and(lists) {
                continue;
            }
            self.frozen.insert(slot, None);
            let place = (self.owner(slot), self.end());
            if let Some(lane) = &mut self.lanes[owner] {
                lane.slots.insert(slot, place);
                lane.to_copy.insert(slot);
                self.frozen.remove(&slot);
            }
        }
    }

    /// A generation that is newer than whatever was said of the slots that are to be copied; then each of them in three steps.
    fn recopy(&mut self, of: usize) {
        let Some(lane) = self.lanes[of].as_ref() else {
            return;
        };
        let Some(slot) = lane.to_copy.iter().next() else {
            return;
        };
        let renewing = lane.marks != lane.generation;
        if renewing || !lane.renewed_for.contains(slot) {
            let is_settled = lane.told_by_all() >= Some(lane.settled_at);
            if !renewing && !is_settled {
                return;
            }
            return self.renew(of, renewing);
        }
        let (generation, end, owner) = (lane.marks, self.end(), self.owner(slot));
        let last = self.last_unrepeatable(slot);
        let offset = Offset(end);
        let stage = self.stages.entry(slot).or_default();
        *stage += 1;
        match *stage {
            1 => self.write_slot(slot, |data| {
                data.watermark = Some(Watermark { generation, offset });
            }),
            2 => self.write_slot(slot, |data| {
                (data.mixed, data.by) = (true, Some(of));
                data.unrepeatable = last;
            }),
            _ => {
                self.write_slot(slot, |data| {
                    (data.mixed, data.applied, data.unrepeatable) = (false, end, last);
                    data.watermark = Some(Watermark { generation, offset });
                });
                self.recopied += 1;
                self.homeless.retain(|(_, of)| *of != slot);
                self.stages.remove(&slot);
                let lane = self.lanes[of].as_mut().expect("it copies");
                lane.to_copy.remove(slot);
                lane.owned.insert(slot);
                // Its keys were answered there.
                lane.slots.insert(slot, (owner, end));
            }
        }
    }

    /// Records of another generation of the same history; when all masters have them, watermarks are of it as well.
    fn renew(&mut self, of: usize, renewing: bool) {
        if !renewing {
            let generation = self.generation();
            let lane = self.lanes[of].as_mut().expect("it copies");
            lane.former = Some(Former {
                generation: lane.generation,
                until: Offset(u64::MAX),
            });
            lane.generation = generation;
            lane.renewed_for = lane.to_copy.clone();
        }
        let mut written = Vec::new();
        for master in 0..MASTERS {
            let lane = self.lanes[of].as_ref().expect("it copies");
            let lists = !lane.listed[master].is_empty();
            match self.record(of, master, State::Streaming) {
                Some(key) => written.push((master, key)),
                None if lists => return,
                None => {}
            }
        }
        let end = self.end();
        let lane = self.lanes[of].as_mut().expect("it copies");
        let former = lane.marks;
        lane.marks = lane.generation;
        lane.owned_before = std::mem::take(&mut lane.owned);
        lane.settled_at = lane.settled_at.max(end);
        for (master, key) in written {
            self.write(master, |content| {
                content.records.remove(&(key, former));
            });
        }
    }

    fn move_slot(&mut self, slot: Slot, to: usize) {
        let from = self.owner(slot);
        if from == to || self.homeless.contains(&(to, slot)) {
            return;
        }
        let moved = self.now(from).clone();
        // What rule 4 cannot know: see `recovery`.
        let is_new = |(_, generation): &(Slot, Generation)| {
            let name = &self.masters[to].name;
            let mut records = (0..MASTERS).flat_map(|master| &self.now(master).records);
            !records.any(|((_, of), record)| of == generation && record.node == *name)
        };
        let keys = moved.records.iter().filter(|((key, _), _)| *key == slot);
        let strange = keys.filter(|(key, _)| is_new(key));
        let told = strange.map(|(_, record)| record.node.clone()).collect();
        if !self.keep_what_is_told(told) {
            return;
        }
        for state in &mut self.masters[from].states {
            state.slots.remove(&slot);
            state.records.retain(|(key, _), _| *key != slot);
        }
        let mut content = self.now(to).clone();
        content.slots.insert(slot, moved.slots[&slot].clone());
        let records = moved.records.into_iter();
        content
            .records
            .extend(records.filter(|((key, _), _)| *key == slot));
        self.masters[to].states = vec![content];
        self.owners[usize::from(slot)] = to;
    }

    /// Has these masters lose nothing any more, if they are all there.
    fn keep_what_is_told(&mut self, told: Vec<String>) -> bool {
        let is_gone = |name: &String| self.masters.iter().all(|master| master.name != *name);
        if told.iter().any(is_gone) {
            return false;
        }
        let masters = self.masters.iter_mut();
        for master in masters.filter(|master| told.contains(&master.name)) {
            master.states.drain(..master.states.len() - 1);
        }
        true
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Command(slot, repeatable) => self.stream.push((slot, repeatable)),
            Event::Apply(slot) => self.apply(slot),
            Event::Record(lane, master) => _ = self.record(lane, master, State::Streaming),
            Event::Move(slot, to) => self.move_slot(slot, to),
            Event::Notice(slot) => {
                let owner = self.owner(slot);
                for lane in self.lanes.iter_mut().flatten() {
                    if let Some(place) = lane.slots.get_mut(&slot) {
                        place.0 = owner;
                        lane.left.remove(&(owner, slot));
                    }
                }
            }
            Event::Failover(master, back) => {
                // What rule 4 cannot know either: whose place it is that the new one takes.
                let records = self.now(master).records.values();
                let others = records.filter(|record| record.node != self.masters[master].name);
                let told = others.map(|record| record.node.clone()).collect();
                if !self.keep_what_is_told(told) {
                    return;
                }
                let name = self.name();
                let gone = (0..SLOTS).filter(|slot| self.owners[usize::from(*slot)] != master);
                self.homeless.extend(gone.map(|slot| (master, slot)));
                let master = &mut self.masters[master];
                let kept = master.states.len().saturating_sub(back);
                master.states.truncate(kept.max(1));
                master.states.drain(..master.states.len() - 1);
                master.name = name;
                // Its connection is gone, so a lane looks again; a process that is gone does so when it starts.
                if self.is_running() {
                    self.begin(false);
                }
            }
            Event::SourceFailover(lane) => {
                self.names += 1;
                let (number, end) = (self.names, self.end());
                let history = id(1_000_000 + number);
                self.histories[lane].push(history);
                if let Some(lane) = &mut self.lanes[lane] {
                    lane.predecessor = Some(Position {
                        id: lane.id,
                        offset: Offset(end),
                    });
                    lane.id = history;
                }
            }
            Event::Transfer(slot) => {
                let owner = &mut self.sources[usize::from(slot)];
                *owner = (*owner + 1) % LANES;
            }
            Event::Look => self.look(),
            Event::Recopy(lane) => self.recopy(lane),
            Event::Crash => match self.is_running() {
                true => self.crash(),
                false => self.begin(true),
            },
            Event::CrashCopying(lane, after) => {
                self.crash();
                self.epoch += 1;
                let slots = self.slots_of(lane);
                if !slots.is_empty() {
                    self.copy(lane, &slots, Some(after));
                }
                self.crash();
            }
        }
    }

    fn crash(&mut self) {
        self.lanes.iter_mut().for_each(|lane| *lane = None);
        self.frozen.clear();
        self.stages.clear();
    }
}

impl Lane {
    /// Up to where all records say that the lane is.
    fn told_by_all(&self) -> Option<u64> {
        let listing = (0..MASTERS).filter(|master| !self.listed[*master].is_empty());
        let told = listing.map(|master| self.told[master].map(|(_, acked)| acked));
        told.min().flatten()
    }

    fn forget(&mut self, slot: Slot) {
        self.slots.remove(&slot);
        self.left.retain(|(_, of), _| *of != slot);
        for set in [
            &mut self.to_copy,
            &mut self.renewed_for,
            &mut self.owned,
            &mut self.owned_before,
        ] {
            set.remove(slot);
        }
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let slot = || 0..SLOTS;
    let master = || 0..MASTERS;
    let lane = || 0..LANES;
    let event = prop_oneof![
        12 => (slot(), any::<bool>()).prop_map(|(slot, repeatable)| Event::Command(slot, repeatable)),
        16 => slot().prop_map(Event::Apply),
        12 => (lane(), master()).prop_map(|(lane, master)| Event::Record(lane, master)),
        4 => (slot(), master()).prop_map(|(slot, to)| Event::Move(slot, to)),
        3 => slot().prop_map(Event::Notice),
        2 => (master(), 0..BEHIND).prop_map(|(master, back)| Event::Failover(master, back)),
        1 => lane().prop_map(Event::SourceFailover),
        2 => slot().prop_map(Event::Transfer),
        3 => Just(Event::Look),
        12 => lane().prop_map(Event::Recopy),
        3 => Just(Event::Crash),
        1 => (lane(), master()).prop_map(|(lane, after)| Event::CrashCopying(lane, after)),
    ];
    prop::collection::vec(event, 20..200)
}

#[test]
fn whatever_happens_no_lane_goes_on_ahead_of_what_is_applied() {
    let (resumed, copied, recopied) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let mut runner = TestRunner::new(Config {
        cases: 3_000,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&events(), |events| {
        let mut toy = Toy::new();
        for event in &events {
            toy.happen(event);
        }
        resumed.set(resumed.get() + toy.resumed);
        copied.set(copied.get() + toy.copied);
        recopied.set(recopied.get() + toy.recopied);
        Ok(())
    });
    if let Err(TestError::Fail(reason, events)) = result {
        panic!("{reason}: {events:?}");
    }
    // It would be safe to copy always.
    assert!(
        resumed.get() > copied.get() / 4 && recopied.get() > 0,
        "{resumed:?} of {copied:?}, {recopied:?}"
    );
}
