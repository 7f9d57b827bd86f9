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

use super::hold::Hold;
use super::lane::{Lane, LaneConfig};
use super::recopy::Listings;
use super::status::ErrorCount;
use super::stream::{Step, cross_slot};
use super::targets::Targets;
use crate::command::{self, SlotOf};
use crate::fault::Fault;
use crate::position::Offset;
use crate::resp::{Frame, scan};
use crate::slot::{Slot, SlotSet, slot_of};

/// Which slots a lane writes.
#[derive(Debug)]
pub(super) struct Motion {
    /// The source has slots: else everything passes.
    pub is_on: bool,
    /// Slots whose commands go to the target, or are looked at by their copy.
    pub passing: SlotSet,
    /// Slots that were given to the lane and are to be copied when their turn comes.
    pub waiting: SlotSet,
    /// Slots that are being copied.
    pub recopying: SlotSet,
    pub listings: Listings,
    leaving: Vec<Leaving>,
    /// What was copied since it was last told of.
    story: (SlotSet, u64),
}

/// Slots that were taken from the lane, and what of them is on its way.
#[derive(Debug)]
struct Leaving {
    slots: SlotSet,
    /// What the connections carried when nothing of the slots waited outside them any more; none before. What waits gets a
    /// number only when it is handed to a connection.
    fence: Option<Vec<(usize, u64)>>,
}

impl Motion {
    pub fn new(config: &LaneConfig) -> Self {
        Self {
            is_on: config.source_has_slots,
            passing: config.slots.clone(),
            waiting: SlotSet::new(),
            recopying: SlotSet::new(),
            listings: Listings::default(),
            leaving: Vec::new(),
            story: (SlotSet::new(), 0),
        }
    }

    /// The copy of slots that waited begins.
    pub fn begin(&mut self, slots: &SlotSet) {
        self.waiting = self.waiting.difference(slots);
        self.recopying = self.recopying.union(slots);
        self.passing = self.passing.union(slots);
    }

    /// They are copied.
    pub fn end(&mut self, slots: &SlotSet, keys: u64) {
        self.recopying = self.recopying.difference(slots);
        self.story.0 = self.story.0.union(slots);
        self.story.1 += keys;
    }

    /// What is being copied waits again.
    pub fn suspend(&mut self) {
        self.passing = self.passing.difference(&self.recopying);
        self.waiting = self.waiting.union(&self.recopying);
        self.recopying.clear();
    }

    /// A snapshot will bring everything.
    pub fn pass_all(&mut self) {
        self.passing = self.passing.union(&self.waiting);
        self.waiting.clear();
    }

    /// Whether all slots of the lane are copied.
    pub fn is_settled(&self) -> bool {
        self.waiting.is_empty() && self.recopying.is_empty()
    }

    /// The slots that were copied, and how many keys, since this was last asked.
    pub fn take_story(&mut self) -> (SlotSet, u64) {
        std::mem::take(&mut self.story)
    }

    /// Whether the keys of a slot are what the source's are at the lane's offset.
    pub fn is_whole(&self, slot: Slot) -> bool {
        self.passing.contains(slot) && !self.recopying.contains(slot)
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
        match self.history.is_none() {
            // The snapshot will bring them.
            true => self.motion.passing = self.motion.passing.union(&slots),
            false => self.motion.waiting = self.motion.waiting.union(&slots),
        }
    }

    /// Slots that the lane must not write any more. [`Lane::take_left`] tells when it does not.
    pub fn leave(&mut self, slots: &SlotSet) {
        let ours = slots.intersection(&self.config.slots);
        self.config.slots = self.config.slots.difference(&ours);
        self.targets.slots = self.config.slots.clone();
        let motion = &mut self.motion;
        for set in [
            &mut motion.passing,
            &mut motion.waiting,
            &mut motion.recopying,
        ] {
            *set = set.difference(&ours);
        }
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
        let slots = slots.clone();
        self.motion.leaving.push(Leaving { slots, fence: None });
        if let Some(records) = &mut self.records {
            records.write_soon();
        }
    }

    /// Slots that the lane has left for good: nothing of them is on its way, and no record lists them.
    pub fn take_left(&mut self) -> SlotSet {
        let mut left = SlotSet::new();
        // A flush may go on removing what was the lane's when it began.
        let flushes = matches!(self.hold, Some(Hold::Flush(_)));
        if self.motion.leaving.is_empty() || flushes {
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
        let motion = &self.motion;
        self.config
            .slots
            .difference(&motion.waiting.union(&motion.recopying))
    }

    /// Whether the command at the cursor is none of this lane's: of slots that it does not write. Then it is dropped.
    #[inline]
    pub(super) fn is_of_others(&self, frame: &Frame<'_>, step: &Step) -> bool {
        match *step {
            Step::Slot(slot) if !self.targets.is_single() => !self.motion.passing.contains(slot),
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
            let of_one = match self.motion.passing.contains(slot_of(key)) {
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
        let waits = self.motion.waiting.len() + self.motion.recopying.len();
        self.status.slots_to_copy.store(waits as u64, Relaxed);
    }
}

impl Targets {
    /// Whether nothing of slots that were taken from the lane is on its way any more.
    fn is_clear_of(&self, leaving: &mut Leaving) -> bool {
        let waits =
            |slot: Slot| self.parked.contains_key(&slot) || self.serial.target_of(slot).is_some();
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
    passing: &SlotSet,
    mut sink: impl FnMut(&[u8]),
) -> Result<(), Fault> {
    let command = command::find(frame).ok_or_else(|| cross_slot(frame, at))?;
    match command::one_slot(frame, command) {
        Ok(SlotOf::One(slot)) => {
            if passing.contains(slot) {
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
        if passing.contains(slot) {
            sink(part);
        }
    })
    .map_err(|_| cross_slot(frame, at))
}
