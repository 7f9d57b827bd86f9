//! A toy target against [`Bookkeeping::start`]: whatever happened to slots and masters, a lane never goes on ahead of what is
//! applied, nor repeats what must not be repeated.
//!
//! Each master is a list of states, one for each write; a failover goes back to any of the last ones. A slot that moves takes
//! its data and the records whose key is in it along; its new owner's replicas have it, and so all that was there before. The
//! lane keeps to what `recovery` asks of it, notices moves late, and forgets everything when it crashes.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};

use super::*;
use crate::position::{Offset, Position, ReplicationId};
use crate::slot::{Slot, SlotSet};

const SLOTS: u16 = 6;
const MASTERS: usize = 3;
/// Writes that a replica may lack.
const BEHIND: usize = 8;

/// One slot's data: everything of it before `applied` is.
#[derive(Debug, Clone, Default)]
struct Data {
    applied: u64,
    /// The end of the last command that must not be repeated.
    unrepeatable: u64,
    watermark: Option<Watermark>,
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

/// The lane's memory.
#[derive(Debug)]
struct Lane {
    generation: Generation,
    id: ReplicationId,
    predecessor: Option<Position>,
    /// For each slot: the master that the lane believes it to be at, and up to where it is applied.
    slots: BTreeMap<Slot, (usize, u64)>,
    /// What the last record of each master lists.
    listed: Vec<SlotSet>,
    /// From where on a slot was applied elsewhere than at a master that lists it.
    left: BTreeMap<(usize, Slot), u64>,
    owned: SlotSet,
}

#[derive(Debug, Clone)]
enum Event {
    /// The source writes; whether it may be repeated.
    Command(Slot, bool),
    /// The next command of a slot is executed by its owner.
    Apply(Slot),
    Record(usize),
    Move(Slot, usize),
    /// The lane learns who owns a slot.
    Notice(Slot),
    Failover(usize, usize),
    SourceFailover,
    Crash,
    /// A crash in the middle of a copy, after so many masters' records.
    CrashCopying(usize),
}

struct Toy {
    /// The source's stream: command `n` ends at offset `n + 1`.
    stream: Vec<(Slot, bool)>,
    owners: [usize; SLOTS as usize],
    masters: Vec<Master>,
    lane: Option<Lane>,
    /// Slots that left a master which was replaced since: they do not come back before a lane has begun again.
    homeless: BTreeSet<(usize, Slot)>,
    epoch: u32,
    names: u32,
    resumed: u32,
    copied: u32,
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
            lane: None,
            homeless: BTreeSet::new(),
            epoch: 0,
            names: 0,
            resumed: 0,
            copied: 0,
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

    fn owner(&self, slot: Slot) -> usize {
        self.owners[usize::from(slot)]
    }

    fn now(&self, master: usize) -> &Content {
        self.masters[master].states.last().expect("a state")
    }

    fn data(&self, slot: Slot) -> &Data {
        &self.now(self.owner(slot)).slots[&slot]
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

    fn all() -> SlotSet {
        (0..SLOTS).collect()
    }

    /// What a lane concludes from what is there, checked against what is true.
    fn start(&mut self) -> Start {
        let names: Vec<String> = self
            .owners
            .iter()
            .map(|&m| self.masters[m].name.clone())
            .collect();
        let owner = |slot: Slot| names.get(usize::from(slot)).map(String::as_str);
        let mut read = self.read();
        let start = read.start(&Self::all(), owner, false);
        if let Start::Resume(resume) = &start {
            for slot in 0..SLOTS {
                let passed = resume.passed.get(&slot);
                let from = passed.map_or(resume.position.offset.0, |passed| passed.0);
                let data = self.data(slot);
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
        let gone = read.superseded(owner);
        read.records
            .retain(|found| !gone.contains(&(found.slot, found.generation)));
        assert_eq!(read.start(&Self::all(), owner, false), start, "{gone:?}");
        for state in self.masters.iter_mut().flat_map(|m| &mut m.states) {
            state.records.retain(|key, _| !gone.contains(key));
        }
        start
    }

    /// A process starts, or a lane of a living one looks at the target again.
    fn begin(&mut self, new_process: bool) {
        self.epoch += u32::from(new_process);
        self.homeless.clear();
        match self.start() {
            Start::Resume(resume) => self.resume(*resume),
            Start::First | Start::Copy { .. } => self.copy(None),
        }
    }

    fn resume(&mut self, resume: Resume) {
        self.resumed += 1;
        let applied = |slot: Slot| {
            let passed = resume.passed.get(&slot);
            passed.unwrap_or(&resume.position.offset).0
        };
        let slots = (0..SLOTS).map(|slot| (slot, (self.owner(slot), applied(slot))));
        self.lane = Some(Lane {
            generation: resume.generation,
            id: resume.position.id,
            predecessor: resume.predecessor,
            slots: slots.collect(),
            listed: vec![SlotSet::new(); MASTERS],
            left: BTreeMap::new(),
            owned: resume.owned,
        });
        let mut own = Vec::new();
        for master in 0..MASTERS {
            own.extend(
                self.record(master, State::Streaming)
                    .map(|slot| (master, slot)),
            );
        }
        for (index, master) in self.masters.iter_mut().enumerate() {
            for state in &mut master.states {
                state.records.retain(|(slot, generation), _| {
                    *generation != resume.generation || own.contains(&(index, *slot))
                });
            }
        }
    }

    /// Everything again; or, of a process that crashes, what it does until then.
    fn copy(&mut self, crash_after: Option<usize>) {
        self.copied += 1;
        self.epoch += 1;
        let end = self.stream.len() as u64;
        let slots = (0..SLOTS).map(|slot| (slot, (self.owner(slot), end)));
        let lane = Lane {
            generation: Generation {
                epoch: self.epoch,
                number: 0,
            },
            id: id(self.epoch),
            predecessor: None,
            slots: slots.collect(),
            listed: vec![SlotSet::new(); MASTERS],
            left: BTreeMap::new(),
            owned: SlotSet::new(),
        };
        self.lane = Some(lane);
        for master in 0..MASTERS {
            if crash_after == Some(master) {
                self.lane = None;
                return;
            }
            self.record(master, State::Copying);
        }
        for slot in 0..SLOTS {
            let mut commands = self.stream.iter();
            let last = commands.rposition(|(of, repeatable)| *of == slot && !repeatable);
            let last = last.map_or(0, |at| at as u64 + 1);
            self.write(self.owner(slot), |content| {
                let data = content.slots.get_mut(&slot).expect("owned");
                data.applied = end;
                data.unrepeatable = last;
            });
        }
        for master in 0..MASTERS {
            self.record(master, State::Streaming);
        }
    }

    /// Writes the lane's record of a master; the slot of its key, unless there is nothing to write.
    fn record(&mut self, master: usize, state: State) -> Option<Slot> {
        let lane = self.lane.as_ref()?;
        let believed = |slot: &Slot| lane.slots[slot].0 == master;
        let key = (0..SLOTS).find(believed)?;
        if self.owner(key) != master {
            // Refused: the slot has moved.
            return None;
        }
        // Slots that have left stay until they are listed where they went.
        let staying = lane.listed[master].iter();
        let staying = staying.filter(|slot| !lane.listed[lane.slots[slot].0].contains(*slot));
        let listed: SlotSet = (0..SLOTS).filter(believed).chain(staying).collect();
        let acked = listed.iter().map(|slot| {
            let pending = self.next(slot, lane.slots[&slot].1);
            let left = lane.left.get(&(master, slot)).copied();
            let end = self.stream.len() as u64;
            pending.unwrap_or(end).min(left.unwrap_or(end))
        });
        let record = Record {
            state,
            node: self.masters[master].name.clone(),
            position: Position {
                id: lane.id,
                offset: Offset(acked.min().unwrap_or_default()),
            },
            predecessor: lane.predecessor,
            database: 0,
            high: Offset(self.stream.len() as u64),
            watermarks: listed.intersection(&lane.owned),
            slots: listed.clone(),
            former: None,
            exclusive: true,
            held: true,
            leases: false,
        };
        let generation = lane.generation;
        self.write(master, |content| {
            content.records.insert((key, generation), record);
        });
        self.lane.as_mut()?.listed[master] = listed;
        Some(key)
    }

    fn apply(&mut self, slot: Slot) {
        let owner = self.owner(slot);
        let Some((believed, applied)) = self.lane.as_ref().map(|lane| lane.slots[&slot]) else {
            return;
        };
        let Some(at) = self.next(slot, applied) else {
            return;
        };
        let lane = self.lane.as_mut().expect("there is one");
        for master in (0..MASTERS).filter(|master| *master != owner) {
            if believed == master || lane.listed[master].contains(slot) {
                lane.left.entry((master, slot)).or_insert(at);
            }
        }
        lane.slots.insert(slot, (believed, at + 1));
        let repeatable = self.stream[at as usize].1;
        let generation = lane.generation;
        if !repeatable {
            lane.owned.insert(slot);
        }
        let missing = self.next(slot, self.data(slot).applied);
        assert!(
            missing.is_none_or(|missing| missing >= at),
            "slot {slot} has a gap"
        );
        self.write(owner, |content| {
            let data = content.slots.get_mut(&slot).expect("owned");
            data.applied = data.applied.max(at + 1);
            if !repeatable {
                assert!(data.unrepeatable <= at, "slot {slot} repeats {at}");
                data.unrepeatable = at + 1;
                let offset = Offset(at + 1);
                data.watermark = Some(Watermark { generation, offset });
            }
        });
    }

    fn move_slot(&mut self, slot: Slot, to: usize) {
        let from = self.owner(slot);
        if from == to || self.homeless.contains(&(to, slot)) {
            return;
        }
        let moved = self.now(from).clone();
        for state in &mut self.masters[from].states {
            state.slots.remove(&slot);
            state.records.retain(|(key, _), _| *key != slot);
        }
        // What rule 4 cannot know: see `recovery`.
        let is_new = |(_, generation): &(Slot, Generation)| {
            let name = &self.masters[to].name;
            let mut records = (0..MASTERS).flat_map(|master| &self.now(master).records);
            !records.any(|((_, of), record)| of == generation && record.node == *name)
        };
        let mut keys = moved.records.keys().filter(|(key, _)| *key == slot);
        if keys.any(is_new) {
            let states = &mut self.masters[from].states;
            states.drain(..states.len() - 1);
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

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Command(slot, repeatable) => self.stream.push((slot, repeatable)),
            Event::Apply(slot) => self.apply(slot),
            Event::Record(master) => _ = self.record(master, State::Streaming),
            Event::Move(slot, to) => self.move_slot(slot, to),
            Event::Notice(slot) => {
                let owner = self.owner(slot);
                if let Some(lane) = &mut self.lane {
                    lane.slots.get_mut(&slot).expect("one of ours").0 = owner;
                    lane.left.remove(&(owner, slot));
                }
            }
            Event::Failover(master, back) => {
                let name = self.name();
                let gone = (0..SLOTS).filter(|slot| self.owners[usize::from(*slot)] != master);
                self.homeless.extend(gone.map(|slot| (master, slot)));
                let master = &mut self.masters[master];
                let kept = master.states.len().saturating_sub(back);
                master.states.truncate(kept.max(1));
                master.states.drain(..master.states.len() - 1);
                master.name = name;
                // Its connection is gone, so a lane looks again; a process that is gone does so when it starts.
                if self.lane.is_some() {
                    self.begin(false);
                }
            }
            Event::SourceFailover => {
                self.names += 1;
                let (number, end) = (self.names, self.stream.len() as u64);
                if let Some(lane) = &mut self.lane {
                    lane.predecessor = Some(Position {
                        id: lane.id,
                        offset: Offset(end),
                    });
                    lane.id = id(1_000_000 + number);
                }
            }
            Event::Crash => {
                if self.lane.take().is_none() {
                    self.begin(true);
                }
            }
            Event::CrashCopying(after) => self.copy(Some(after)),
        }
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let slot = || 0..SLOTS;
    let master = || 0..MASTERS;
    let event = prop_oneof![
        12 => (slot(), any::<bool>()).prop_map(|(slot, repeatable)| Event::Command(slot, repeatable)),
        16 => slot().prop_map(Event::Apply),
        8 => master().prop_map(Event::Record),
        4 => (slot(), master()).prop_map(|(slot, to)| Event::Move(slot, to)),
        3 => slot().prop_map(Event::Notice),
        2 => (master(), 0..BEHIND).prop_map(|(master, back)| Event::Failover(master, back)),
        1 => Just(Event::SourceFailover),
        3 => Just(Event::Crash),
        1 => (0..MASTERS).prop_map(Event::CrashCopying),
    ];
    prop::collection::vec(event, 20..160)
}

#[test]
fn whatever_happens_no_lane_goes_on_ahead_of_what_is_applied() {
    let (resumed, copied) = (Cell::new(0), Cell::new(0));
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
        Ok(())
    });
    if let Err(TestError::Fail(reason, events)) = result {
        panic!("{reason}: {events:?}");
    }
    // It would be safe to copy always.
    assert!(
        resumed.get() > copied.get() / 4,
        "{resumed:?} of {copied:?}"
    );
}
