//! What was found on the target masters, and what a lane may conclude from it.
//!
//! A lane goes on from an offset that no slot is behind. For each of its slots a record has to say so, and of several that do
//! one is chosen, since records travel with the slot of their key, which need not be one that they list:
//!
//! ```text
//! A holds r:A in slot 0, which lists 0-99        slot 0 moves to B, r:A with it
//! A holds r:A' in slot 1, which lists 1-99       what r:A says of 1-99 at B is old, and A may lose writes behind it
//! ```
//!
//! 1. Only the newest generation counts in which a record lists the slot: in it the slot was copied anew.
//! 2. What the slot's owner holds and was written to under its present name is exact: if the data was lost, so was that.
//! 3. Otherwise the smallest offset of those that are believed: the slot came while nobody wrote, or its owner was promoted.
//! 4. A record of a master that is gone is believed where it is held by the replica that took its place, for that lost both
//!    or none. Elsewhere it came with the slot of its key, and what it claims may have been lost since. Who took the place is
//!    not written anywhere: no record names it, it has none of another master that is gone, and is the only such owner of
//!    slots that the record lists.
//!
//! Slots that none of these records speaks for, or that have a watermark of a later generation, came from another source master
//! and are not copied yet, or moved while nobody wrote. Where they are few they are copied by themselves, and the lane goes on with
//! the others. Before the first key of such a slot is written, the lane has begun a generation that is newer than whatever was
//! ever said of it, and has set the slot's watermark to it: from then on no older record is believed, wherever it turns up. The
//! new generation names the one before as its [`Former`], of the same history.
//!
//! This relies on the writer of records:
//!
//! - a record goes out after what it claims, on the connection of the data; a lane that goes on writes one on every owner before
//!   any data, and then removes all others of its generation;
//! - as long as a master's record lists a slot that has left it, the record's offset does not pass the first command of the slot
//!   that went elsewhere, and the slot is listed there before it is taken off here;
//! - `high` is that of the lane, not of the master.
//!
//! And on the servers: replicas of a slot's new owner have what the slot held when it moved. Rule 4 errs when the slot of a
//! record's key goes to a master that no record names just before its former owner loses what the record claims, or
//! comes back just after.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::record::{Former, Record, State};
use super::watermark::{Generation, Mark, Owed, Watermark};
use crate::position::{Offset, Position, ReplicationId};
use crate::slot::{Slot, SlotSet};

/// All bookkeeping of one link, read from every target master after the former writers were shut out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bookkeeping {
    /// The epoch that the reader holds.
    pub epoch: u32,
    pub records: Vec<Found>,
    pub watermarks: BTreeMap<Slot, Watermark>,
    /// Keys that these do not speak for.
    pub owed: BTreeMap<Slot, Owed>,
}

/// A record, and where it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Node id of the master that holds it.
    pub held_by: String,
    /// The slot of its key.
    pub slot: Slot,
    pub generation: Generation,
    pub record: Record,
}

/// How a lane begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// No record lists any of its slots.
    First,
    /// Everything again, over what is there.
    Copy {
        why: CopyReason,
        /// See [`Record::exclusive`]; true if all records of these slots say so.
        exclusive: bool,
        /// See [`Record::held`]; true if any of them says so.
        held: bool,
    },
    Resume(Box<Resume>),
}

/// Why a lane cannot go on from where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyReason {
    CopyInterrupted,
    SlotWithoutRecord(Slot),
    DifferentGenerations,
    DifferentHistories,
    WatermarkLost(Slot),
    /// A slot was written to in a generation of which no record is left.
    WatermarkAhead(Slot),
}

/// From where a lane goes on, and what it has to know to do so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    pub generation: Generation,
    /// Everything before it is applied, in every slot.
    pub position: Position,
    pub predecessor: Option<Position>,
    /// The database that is selected in the source's stream at `position`.
    pub database: u32,
    /// Nothing from this offset on was sent.
    pub high: Offset,
    pub former: Option<Former>,
    /// Slots of which more is applied than up to `position`, and up to where. A single target has one entry, for slot 0,
    /// that stands for the whole lane.
    pub passed: BTreeMap<Slot, Offset>,
    /// Slots that have a watermark of this generation; for a single target slot 0 stands for the lane.
    pub owned: SlotSet,
    /// Keys, by the slot of their watermark, for which [`Resume::passed`] and `position` do not speak: whoever goes on has to
    /// mend them, since commands on them were left out.
    pub owed: BTreeMap<Slot, Owed>,
    /// Slots that this says nothing about: their keys have to be copied.
    pub recopy: SlotSet,
    /// Slots that records of this generation list and that are not the lane's any more: it has to leave them.
    pub foreign: SlotSet,
    pub exclusive: bool,
    pub leases: bool,
    pub held: bool,
}

impl fmt::Display for CopyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CopyInterrupted => f.write_str("the copy was interrupted"),
            Self::SlotWithoutRecord(slot) => {
                write!(f, "the target has no record that speaks for slot {slot}")
            }
            Self::DifferentGenerations => {
                f.write_str("records on the target are of different copies of the source")
            }
            Self::DifferentHistories => {
                f.write_str("records on the target are of different histories of the source")
            }
            Self::WatermarkLost(slot) => {
                write!(f, "the target has lost its watermark of slot {slot}")
            }
            Self::WatermarkAhead(slot) => {
                write!(
                    f,
                    "the target has lost the record behind its watermark of slot {slot}"
                )
            }
        }
    }
}

impl Found {
    /// Whether the master that holds it is the one that it was written to, under the name that it still has.
    fn is_own(&self) -> bool {
        self.held_by == self.record.node
    }

    fn is_held_by(&self, owner: Option<&str>) -> bool {
        owner == Some(&self.held_by)
    }
}

impl Bookkeeping {
    /// Notes what the key of a watermark holds.
    pub fn found_mark(&mut self, slot: Slot, mark: Mark) {
        self.watermarks.insert(slot, mark.watermark);
        self.owed.extend(mark.owed.map(|owed| (slot, owed)));
    }

    /// How the lane begins that replicates `slots` of the source. `owner`: node id of the target master that owns a slot, for
    /// every slot of the cluster. `single`: the target is one server without slots, so `slots` say which lane a record is of,
    /// and nothing about where data is. `known`: the histories that the source master goes on with; empty where it cannot be
    /// asked, and then nothing is copied by itself.
    pub fn start<'o>(
        &self,
        slots: &SlotSet,
        owner: impl Fn(Slot) -> Option<&'o str>,
        single: bool,
        known: &[ReplicationId],
    ) -> Start {
        let current = self.current(known);
        let heard = self.hear(slots, &owner, single, known, current.as_ref());
        if heard.listing.is_empty() {
            return Start::First;
        }
        let listing = heard.listing.iter().map(|&index| &self.records[index]);
        let exclusive = listing.clone().all(|found| found.record.exclusive);
        let held = listing.clone().any(|found| found.record.held);
        let resumed = self.resume(&heard, slots, single).or_else(|why| {
            let current = current.filter(|_| !single).ok_or(why)?;
            let (most, others) = self.without_others(&heard, slots, &current).ok_or(why)?;
            let whole = slots.difference(&others);
            let resume = self.resume(&most, &whole, single).map_err(|_| why)?;
            Ok(Resume {
                recopy: others,
                ..resume
            })
        });
        match resumed {
            Ok(mut resume) => {
                if known.contains(&resume.position.id) {
                    resume.foreign = self.foreign(slots, &resume);
                }
                Start::Resume(Box::new(resume))
            }
            Err(why) => Start::Copy {
                why,
                exclusive,
                held,
            },
        }
    }

    /// The newest generation of the source master's own history, and its former one.
    fn current(&self, known: &[ReplicationId]) -> Option<Current> {
        let own = self.records.iter();
        let own = own.filter(|found| known.contains(&found.record.position.id));
        let newest = own.map(|found| found.generation).max()?;
        let of_it = self.records.iter().filter(|f| f.generation == newest);
        let former = of_it.filter_map(|found| found.record.former);
        Some(Current {
            newest,
            former: former.map(|former| former.generation).collect(),
        })
    }

    /// What the current generation says, and its former one; and the other slots, if they are few. On a single target one
    /// watermark stands for all slots, so there it is all or none.
    fn without_others(
        &self,
        heard: &Heard,
        slots: &SlotSet,
        current: &Current,
    ) -> Option<(Heard, SlotSet)> {
        let counts = |index: &usize| current.has(self.records[*index].generation);
        let speaking = heard.speaking.iter().filter(|(index, _)| counts(index));
        let speaking: BTreeMap<usize, SlotSet> = speaking
            .map(|(index, said)| (*index, said.clone()))
            .collect();
        let said = speaking.values().fold(SlotSet::new(), |a, b| a.union(b));
        let others = slots.difference(&said);
        let most = Heard {
            listing: speaking.keys().copied().collect(),
            speaking,
            silent: None,
        };
        (others.len() * FEW_SLOTS < slots.len()).then_some((most, others))
    }

    /// The fields `(slot of the key, generation)` that no slot's decision needs: those of generations of which every slot has a
    /// newer record on its present owner. Of a generation that still counts all are needed, since they tell who is who.
    pub fn superseded<'o>(
        &self,
        owner: impl Fn(Slot) -> Option<&'o str>,
    ) -> Vec<(Slot, Generation)> {
        let mut needed: BTreeSet<Generation> = BTreeSet::new();
        for found in &self.records {
            let has_newer = |slot: Slot| {
                self.records.iter().any(|other| {
                    other.generation > found.generation
                        && other.is_held_by(owner(slot))
                        && other.record.slots.contains(slot)
                })
            };
            if !found.record.slots.iter().all(has_newer) {
                needed.insert(found.generation);
            }
        }
        // While there are older ones of the same history, a newer one tells that these are void, or still count.
        for found in &self.records {
            let is_older = |other: &Found| {
                let former = found.record.former.map(|former| former.generation);
                let same = other.record.position.id == found.record.position.id;
                needed.contains(&other.generation)
                    && other.generation < found.generation
                    && (same || former == Some(other.generation))
            };
            if self.records.iter().any(is_older) {
                needed.insert(found.generation);
            }
        }
        let gone = self.records.iter();
        let gone = gone.filter(|found| !needed.contains(&found.generation));
        gone.map(|found| (found.slot, found.generation)).collect()
    }

    /// Which records speak for which of these slots.
    fn hear<'o>(
        &self,
        slots: &SlotSet,
        owner: &impl Fn(Slot) -> Option<&'o str>,
        single: bool,
        known: &[ReplicationId],
        current: Option<&Current>,
    ) -> Heard {
        let believed = self.believed(owner, single);
        let mut heard = Heard::default();
        for slot in slots.iter() {
            let owner = owner(slot);
            let listing = self.listing(slot);
            heard.listing.extend(&listing);
            let own = |index: &usize| {
                let found = &self.records[*index];
                found.is_held_by(owner) && found.is_own()
            };
            let any_own = listing.iter().any(own);
            let speaks = |index: &usize| match any_own {
                true => own(index),
                false => believed[*index],
            };
            let watermark = self.watermarks.get(&slot).filter(|_| !single);
            let is_old = |index: &usize| {
                let found = &self.records[*index];
                let of_lane = known.contains(&found.record.position.id);
                let is_former = |current: &Current| !current.has(found.generation);
                watermark.is_some_and(|mark| mark.generation > found.generation)
                    || of_lane && current.is_some_and(is_former)
            };
            let speaking = listing.into_iter().filter(speaks);
            let speaking: Vec<usize> = speaking.filter(|index| !is_old(index)).collect();
            if speaking.is_empty() {
                heard.silent.get_or_insert(slot);
            }
            for index in speaking {
                heard.speaking.entry(index).or_default().insert(slot);
            }
        }
        heard
    }

    /// Records of the newest generation in which any lists this slot.
    fn listing(&self, slot: Slot) -> Vec<usize> {
        let records = self.records.iter().enumerate();
        let records = records.filter(|(_, found)| found.record.slots.contains(slot));
        let Some(newest) = records.clone().map(|(_, found)| found.generation).max() else {
            return Vec::new();
        };
        records
            .filter(|(_, found)| found.generation == newest)
            .map(|(index, _)| index)
            .collect()
    }

    /// For each record, whether it may speak for slots that have no record of their owner's: rule 4.
    fn believed<'o>(&self, owner: &impl Fn(Slot) -> Option<&'o str>, single: bool) -> Vec<bool> {
        let owners: BTreeSet<&str> = SlotSet::all().iter().filter_map(owner).collect();
        let named = self.records.iter();
        let named: BTreeSet<(Generation, &str)> = named
            .map(|found| (found.generation, found.record.node.as_str()))
            .collect();
        let is_gone = |found: &Found| !owners.contains(found.record.node.as_str());
        let took_its_place = |one: &Found| {
            let is_new = |master: &str| !named.contains(&(one.generation, master));
            let mut slots = one.record.slots.iter();
            let beside = self
                .records
                .iter()
                .filter(|other| other.generation == one.generation && other.held_by == one.held_by);
            is_new(&one.held_by)
                && beside
                    .into_iter()
                    .all(|other| !is_gone(other) || other.record.node == one.record.node)
                && slots.all(|slot| {
                    let owner = owner(slot).filter(|owner| *owner != one.held_by);
                    owner.is_none_or(|owner| !is_new(owner))
                })
        };
        let believed = |found: &Found| single || !is_gone(found) || took_its_place(found);
        self.records.iter().map(believed).collect()
    }

    fn resume(&self, heard: &Heard, slots: &SlotSet, single: bool) -> Result<Resume, CopyReason> {
        let speaking: Vec<&Found> = heard.speaking.keys().map(|&i| &self.records[i]).collect();
        if speaking.iter().any(|f| f.record.state == State::Copying) {
            return Err(CopyReason::CopyInterrupted);
        }
        if let Some(slot) = heard.silent {
            return Err(CopyReason::SlotWithoutRecord(slot));
        }
        let first = speaking
            .iter()
            .min_by_key(|found| found.record.position.offset)
            .expect("a slot that is not silent has a record");
        let (generation, former) = generation(&speaking).ok_or(CopyReason::DifferentGenerations)?;
        let (id, predecessor) = history(&speaking).ok_or(CopyReason::DifferentHistories)?;
        let offset = first.record.position.offset;
        let marks = Marks { generation, former };
        self.check_watermarks(heard, &marks, single)?;
        let mut resume = Resume {
            generation,
            position: Position { id, offset },
            predecessor,
            database: first.record.database,
            high: highest(&speaking),
            former,
            passed: BTreeMap::new(),
            owned: SlotSet::new(),
            owed: BTreeMap::new(),
            recopy: SlotSet::new(),
            foreign: SlotSet::new(),
            exclusive: speaking.iter().all(|found| found.record.exclusive),
            leases: speaking.iter().any(|found| found.record.leases),
            held: speaking.iter().any(|found| found.record.held),
        };
        for (&slot, watermark) in &self.watermarks {
            if slots.contains(slot) && watermark.generation > generation {
                return Err(CopyReason::WatermarkAhead(slot));
            }
            // Generations are of one lane, so on a single target they tell whose watermark it is.
            if let Some(applied) = self.applied(heard, &marks, slot, watermark)
                && (single || slots.contains(slot))
            {
                resume.pass(if single { 0 } else { slot }, applied);
                if let Some(owed) = self.owed.get(&slot) {
                    resume.owed.insert(slot, owed.clone());
                }
                resume.owned.insert(if single { 0 } else { slot });
            }
        }
        Ok(resume)
    }

    /// Up to where a watermark says that its slot is applied. A record that speaks for the slot knows the generation before its
    /// own even where the newest does not.
    fn applied(
        &self,
        heard: &Heard,
        marks: &Marks,
        slot: Slot,
        watermark: &Watermark,
    ) -> Option<Offset> {
        let speaking = heard.speaking.iter();
        let records = speaking.filter(|(_, said)| said.contains(slot));
        let formers = records.filter_map(|(index, _)| self.records[*index].record.former);
        let mut applied = formers.filter_map(|former| former.applied(watermark));
        marks.applied(watermark).or_else(|| applied.next())
    }

    /// What a lane that goes on with these generations has listed beyond its slots.
    fn foreign(&self, slots: &SlotSet, resume: &Resume) -> SlotSet {
        let former = resume.former.map(|former| former.generation);
        let counts = |generation| generation == resume.generation || Some(generation) == former;
        let of_lane = self.records.iter().filter(|f| counts(f.generation));
        let listed = of_lane.fold(SlotSet::new(), |all, found| all.union(&found.record.slots));
        listed.difference(slots)
    }

    /// Whether the watermarks that records name are there.
    fn check_watermarks(
        &self,
        heard: &Heard,
        marks: &Marks,
        single: bool,
    ) -> Result<(), CopyReason> {
        let counts = |slot: Slot, watermark: &Watermark| {
            let applied = self.applied(heard, marks, slot, watermark);
            applied.is_some()
        };
        for (&index, spoken) in &heard.speaking {
            let named = &self.records[index].record.watermarks;
            let lost = match single {
                // The lane's only one is wherever it was first put.
                true => named.iter().next().filter(|_| {
                    !self
                        .watermarks
                        .iter()
                        .any(|(slot, mark)| counts(*slot, mark))
                }),
                false => named.intersection(spoken).iter().find(|slot| {
                    let mark = self.watermarks.get(slot);
                    !mark.is_some_and(|mark| counts(*slot, mark))
                }),
            };
            if let Some(slot) = lost {
                return Err(CopyReason::WatermarkLost(slot));
            }
        }
        Ok(())
    }
}

impl Resume {
    fn pass(&mut self, slot: Slot, applied: Offset) {
        if applied > self.position.offset {
            let passed = self.passed.entry(slot).or_default();
            *passed = applied.max(*passed);
        }
    }
}

/// Slots are copied by themselves if they are fewer than one in so many: a snapshot is cheaper for more.
const FEW_SLOTS: usize = 2;

/// What records say about a lane's slots, as indexes.
#[derive(Debug, Default)]
struct Heard {
    /// Those of the newest generation of any slot, whether they are believed or not.
    listing: BTreeSet<usize>,
    /// Those that are believed, and for which slots.
    speaking: BTreeMap<usize, SlotSet>,
    /// The first slot that none speaks for.
    silent: Option<Slot>,
}

/// The lane's newest generation, and those that it names as the one before.
#[derive(Debug)]
struct Current {
    newest: Generation,
    former: BTreeSet<Generation>,
}

impl Current {
    fn has(&self, generation: Generation) -> bool {
        self.newest == generation || self.former.contains(&generation)
    }
}

/// Which watermarks count.
struct Marks {
    generation: Generation,
    former: Option<Former>,
}

impl Former {
    /// Up to where a slot with this watermark is applied, if it is of this generation.
    fn applied(&self, watermark: &Watermark) -> Option<Offset> {
        (watermark.generation == self.generation).then(|| watermark.offset.min(self.until))
    }
}

impl Marks {
    /// Up to where a slot is applied, in the history that the lane goes on with.
    fn applied(&self, watermark: &Watermark) -> Option<Offset> {
        match watermark.generation == self.generation {
            true => Some(watermark.offset),
            false => self.former?.applied(watermark),
        }
    }
}

/// The newest generation and the one before it, if all records are of these two, and those of the former one end where
/// both histories are still the same.
fn generation(speaking: &[&Found]) -> Option<(Generation, Option<Former>)> {
    let newest = speaking.iter().map(|found| found.generation).max()?;
    let (new, old): (Vec<&Found>, Vec<&Found>) =
        speaking.iter().partition(|f| f.generation == newest);
    let former = agreed(new.iter().filter_map(|found| found.record.former))?;
    let fits = |found: &&Found| {
        former.is_some_and(|former| {
            found.generation == former.generation
                && found.record.position.offset <= former.until
                && found.record.high <= former.until
        })
    };
    old.iter().all(fits).then_some((newest, former))
}

/// The newest of the histories that records are of, and its predecessor, if each of the others led to it and was left at or
/// behind what its records say.
fn history(speaking: &[&Found]) -> Option<(ReplicationId, Option<Position>)> {
    let of = |id: ReplicationId| {
        let records = speaking.iter().map(|found| &found.record);
        records.filter(move |record| record.position.id == id)
    };
    let mut ids: Vec<ReplicationId> = Vec::new();
    for found in speaking {
        if !ids.contains(&found.record.position.id) {
            ids.push(found.record.position.id);
        }
    }
    ids.iter().find_map(|&id| {
        let predecessor = agreed(of(id).filter_map(|record| record.predecessor))?;
        let mut led = vec![id];
        let mut before = predecessor;
        while let Some(end) = before
            && ids.contains(&end.id)
            && !led.contains(&end.id)
        {
            if of(end.id).any(|record| record.position.offset > end.offset) {
                return None;
            }
            led.push(end.id);
            before = agreed(of(end.id).filter_map(|record| record.predecessor))?;
        }
        (led.len() == ids.len()).then_some((id, predecessor))
    })
}

/// The value that all agree on, if there are any; `None` if they do not agree.
fn agreed<T: PartialEq>(mut values: impl Iterator<Item = T>) -> Option<Option<T>> {
    let Some(first) = values.next() else {
        return Some(None);
    };
    values.all(|value| value == first).then_some(Some(first))
}

fn highest(speaking: &[&Found]) -> Offset {
    let high = speaking.iter().map(|found| found.record.high);
    high.max().unwrap_or_default()
}
