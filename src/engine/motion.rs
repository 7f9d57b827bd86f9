//! Slots of the source that leave a lane or come to it while it runs.
//!
//! A lane writes the slots that were given to it and no others, whatever its source master's stream and snapshot hold: keys of
//! slots that are on their way between masters show in both streams. Who gets what is decided by [`super::moves`].
//!
//! ```text
//! given -> waiting -> being copied (`recopy`) -> listed by the lane's records
//!   |         |             |                         |
//!   '---------+-------------+-------------------------+--> left: commands are dropped; confirmed when what was sent is
//!                                                          answered and no record lists the slot
//! ```
//!
//! Commands of a slot that nobody writes are lost to the target until it is copied from its new owner; what it holds of
//! the slot stands still meanwhile.

use std::sync::atomic::Ordering::Relaxed;

use super::lane::{Lane, LaneConfig};
use super::recopy::Listings;
use super::status::ErrorCount;
use super::stream::{Step, cross_slot};
use super::targets::Targets;
use crate::checkpoint::Resume;
use crate::command::{self, SlotOf};
use crate::fault::Fault;
use crate::position::Offset;
use crate::resp::{Frame, scan};
use crate::slot::{Slot, SlotSet, slot_of};

/// Slots that come and go. All that are the lane's are in its configuration.
#[derive(Debug, Default)]
pub(super) struct Motion {
    /// Slots that were given to the lane and are not copied yet. Commands of those whose copy has begun are looked at by it.
    pub to_copy: SlotSet,
    /// Those among them that the lane's generation is newer than, and those that it will be newer than when it is renewed.
    pub covered: SlotSet,
    pub renewing: Option<SlotSet>,
    /// Records of a generation before may list slots of the lane.
    pub claimed_before: bool,
    /// In a copy of everything: those of which that was not made void yet.
    pub unclaimed: SlotSet,
    pub listings: Listings,
    /// Some were given to the lane before its source had told it of any history: the first snapshot brings them, over keys that
    /// another lane may have written.
    pub came_before_copy: bool,
    leaving: Vec<Leaving>,
    /// What was copied since it was last told of.
    story: (SlotSet, u64),
}

/// Slots that were taken from the lane, and what of them is on its way.
#[derive(Debug)]
struct Leaving {
    slots: SlotSet,
    /// Those of which records of the lane's generation may be about.
    written: SlotSet,
    /// What the connections carried when nothing of the slots waited outside them any more; none before. What waits gets a
    /// number only when it is handed to a connection.
    fence: Option<Vec<(usize, u64)>>,
}

impl Motion {
    pub fn new(config: &LaneConfig, resume: Option<&Resume>) -> Self {
        Self {
            to_copy: resume.map_or_else(SlotSet::new, |resume| resume.recopy.clone()),
            claimed_before: config.claimed_before,
            ..Self::default()
        }
    }

    /// Slots need no copy any more.
    fn forget(&mut self, slots: &SlotSet) {
        self.to_copy = self.to_copy.difference(slots);
        self.covered = self.covered.difference(slots);
        self.unclaimed = self.unclaimed.difference(slots);
        if let Some(renewing) = &mut self.renewing {
            *renewing = renewing.difference(slots);
        }
    }

    /// A snapshot will bring everything.
    pub fn begin_anew(&mut self) {
        self.to_copy.clear();
        self.covered.clear();
        self.renewing = None;
        self.claimed_before = true;
    }

    /// What was written of slots that are not confirmed to have left.
    pub fn leaving(&self) -> SlotSet {
        let leaving = self.leaving.iter();
        leaving.fold(SlotSet::new(), |all, leaving| all.union(&leaving.written))
    }

    /// Slots are copied.
    pub fn end(&mut self, slots: &SlotSet, keys: u64) {
        self.forget(slots);
        self.story.0 = self.story.0.union(slots);
        self.story.1 += keys;
    }

    /// Whether commands of a slot, if it is one of `ours`, go to the target or are looked at by its copy.
    #[inline]
    pub fn passes(&self, ours: &SlotSet, targets: &Targets, slot: Slot) -> bool {
        ours.contains(slot) && (!self.to_copy.contains(slot) || targets.is_copying(slot))
    }

    /// Whether all slots of the lane are copied.
    pub fn is_settled(&self) -> bool {
        self.to_copy.is_empty()
    }

    /// The slots that were copied, and how many keys, since this was last asked.
    pub fn take_story(&mut self) -> (SlotSet, u64) {
        std::mem::take(&mut self.story)
    }
}

/// What of a command or transaction is of slots that pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passing {
    All,
    Nothing,
    Part,
}

impl Passing {
    fn and(self, other: Self) -> Self {
        match self == other {
            true => self,
            false => Self::Part,
        }
    }
}

impl Lane {
    /// Slots that the lane has to write from now on: their keys are copied from its source master.
    pub fn take(&mut self, slots: &SlotSet) {
        let slots = slots.difference(&self.config.slots);
        for slot in slots.iter() {
            self.targets.marks.forget(slot);
        }
        self.config.slots = self.config.slots.union(&slots);
        self.targets.slots = self.config.slots.clone();
        self.targets.mark_needed();
        match self.history.is_some() {
            true => self.motion.to_copy = self.motion.to_copy.union(&slots),
            false => self.motion.came_before_copy = true,
        }
    }

    /// Slots that the lane must not write any more. [`Lane::take_left`] tells when it does not.
    pub fn leave(&mut self, slots: &SlotSet) {
        let ours = slots.intersection(&self.config.slots);
        self.config.slots = self.config.slots.difference(&ours);
        self.targets.slots = self.config.slots.clone();
        self.motion.forget(&ours);
        self.targets.drop_owed(&mut self.chunks, &ours);
        if let Some(hold) = &mut self.hold {
            hold.leave(&ours);
        }
        for slot in ours.iter() {
            self.targets.marks.forget(slot);
        }
        let deadlines = &mut self.rebuild.deadlines;
        deadlines.forget(|key| ours.contains(slot_of(key)));
        if self.config.slots.is_empty() {
            deadlines.forget_unknown();
        }
        // Of its own it has written nothing before it has a history; of others a former process has.
        let written = match self.history.is_some() {
            true => slots.clone(),
            false => slots.difference(&ours),
        };
        self.disown(&written);
        self.motion.leaving.push(Leaving {
            slots: slots.clone(),
            written,
            fence: None,
        });
        self.tell_soon();
    }

    /// Slots that the lane has left for good: nothing of them is on its way, and no record lists them.
    pub fn take_left(&mut self) -> SlotSet {
        let mut left = SlotSet::new();
        if self.motion.leaving.is_empty() {
            return left;
        }
        let (leaving, targets) = (&mut self.motion.leaving, &self.targets);
        let records = self.records.as_ref();
        let attached = self.history.is_some();
        leaving.retain_mut(|leaving| {
            let told = records.is_none_or(|records| !attached || records.has_left(&leaving.slots));
            let gone = targets.is_clear_of(leaving) && told;
            if gone {
                left = left.union(&leaving.slots);
            }
            !gone
        });
        left
    }

    /// The slots that records list: those whose keys are as the stream has them.
    pub(super) fn whole_slots(&self) -> SlotSet {
        self.config.slots.difference(&self.motion.to_copy)
    }

    #[inline]
    pub(super) fn passes(&self, slot: Slot) -> bool {
        let ours = &self.config.slots;
        self.motion.passes(ours, &self.targets, slot)
    }

    /// Whether the command at the cursor is none of this lane's: of slots that it does not write. Then it is dropped.
    #[inline]
    pub(super) fn is_of_others(&self, frame: &Frame<'_>, step: &Step) -> bool {
        match *step {
            _ if !self.config.source_has_slots => false,
            Step::Slot(slot) if !self.targets.is_single() => !self.passes(slot),
            Step::Slot(_) | Step::Several => self.passing_of(frame) == Some(Passing::Nothing),
            _ => false,
        }
    }

    /// What of the commands in `bytes`, from the stream at `at`, passes.
    pub(super) fn passing_in(&self, mut bytes: &[u8]) -> Passing {
        let mut passing = None;
        while let Ok(Some(frame)) = scan(bytes) {
            bytes = &bytes[frame.bytes().len()..];
            if let Some(of_one) = self.passing_of(&frame) {
                passing = Some(passing.map_or(of_one, |before: Passing| before.and(of_one)));
            }
        }
        passing.unwrap_or(Passing::All)
    }

    /// `None`: it has no keys.
    fn passing_of(&self, frame: &Frame<'_>) -> Option<Passing> {
        let command = command::find(frame).or_else(|| self.targets.learned.get(frame.verb()))?;
        let mut passing = None;
        for key in command::keys(frame, command).ok()? {
            let of_one = match self.passes(slot_of(key)) {
                true => Passing::All,
                false => Passing::Nothing,
            };
            passing = Some(passing.map_or(of_one, |before: Passing| before.and(of_one)));
        }
        passing
    }

    /// Counts commands of slots that the lane does not write. The topology may tell why.
    #[cold]
    pub(super) fn note_dropped(&mut self, commands: u64) {
        self.status.count_many(ErrorCount::OfMovingSlot, commands);
        self.targets.hint = true;
    }

    /// Tells how many slots wait for their copy.
    pub(super) fn publish_motion(&self) {
        let waits = self.motion.to_copy.len();
        self.status.slots_to_copy.store(waits as u64, Relaxed);
    }
}

impl Targets {
    /// Whether the copy of a slot has begun.
    fn is_copying(&self, slot: Slot) -> bool {
        let place = if self.is_single() { 0 } else { slot };
        self.mends.is_copying(place, slot)
    }

    /// Whether nothing of slots that were taken from the lane is on its way any more.
    fn is_clear_of(&self, leaving: &mut Leaving) -> bool {
        let waits = |slot: Slot| {
            let sent = self.parked.contains_key(&slot) || self.serial.target_of(slot).is_some();
            sent || self.mends.holds(slot)
        };
        let waits = match self.is_single() {
            true => waits(0),
            false => leaving.slots.iter().any(waits),
        };
        if waits || !self.later.is_empty() {
            leaving.fence = None;
            return false;
        }
        let fence = leaving.fence.get_or_insert_with(|| self.fence());
        let answered =
            |&(index, number): &(usize, u64)| self.nodes[index].writer.answered_to() >= number;
        fence.iter().all(answered)
    }

    /// Keys of these slots are not mended any more.
    fn drop_owed(&mut self, chunks: &mut crate::chunk::Chunks, slots: &SlotSet) {
        for unit in self.mends.leave(slots, self.is_single()) {
            chunks.release(unit.range.chunk);
        }
    }
}

/// The parts of a command that touch slots which pass.
pub(super) fn split_passing(
    frame: &Frame<'_>,
    at: Offset,
    passes: &dyn Fn(Slot) -> bool,
    mut sink: impl FnMut(&[u8]),
) -> Result<(), Fault> {
    let command = command::find(frame).ok_or_else(|| cross_slot(frame, at))?;
    match command::one_slot(frame, command) {
        Ok(SlotOf::One(slot)) => {
            if passes(slot) {
                sink(frame.bytes());
            }
            return Ok(());
        }
        Ok(SlotOf::None) => {
            sink(frame.bytes());
            return Ok(());
        }
        _ => {}
    }
    command::split_by_slot(frame, command, |slot, part| {
        if passes(slot) {
            sink(part);
        }
    })
    .map_err(|_| cross_slot(frame, at))
}
