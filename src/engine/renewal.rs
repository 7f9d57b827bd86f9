//! What makes older records void for a slot before a lane writes to it, or when it leaves it.
//!
//! Records of several lanes and generations lie about on the target: they travel with the slots of their keys, and come back when
//! a master fails over. So that none is believed that is older than the data of a slot, the slot's watermark tells, which is where
//! the data is: no record of an older generation speaks for the slot ([`crate::checkpoint`]).
//!
//! | when | watermark of the slot |
//! |---|---|
//! | a slot comes and is copied by itself | the lane's generation, which is made newer than whatever was said of the slot: it is *renewed* |
//! | the first key of a slot comes in a copy of everything, where there were records before | its generation |
//! | a slot leaves | a generation that is nobody's |
//!
//! A generation is renewed while the lane streams: records of the new one, which name the old one as their [`Former`], are
//! written to all masters; when they are answered watermarks are of the new one as well. Those that were written before
//! count until the records have passed them, and no sooner another renewal may begin.

use super::lane::Lane;
use super::marks::Marks;
use super::records::Records;
use super::targets::Targets;
use crate::checkpoint::{Former, Generation, Mark, Watermark, watermark_key};
use crate::chunk::Chunks;
use crate::position::Offset;
use crate::resp::push_command;
use crate::slot::{Slot, SlotSet};

impl Lane {
    /// The lane does not write these slots any more.
    pub(super) fn disown(&mut self, slots: &SlotSet) {
        let Some(records) = self.records.as_ref() else {
            return;
        };
        if self.keeps_watermarks_by_slot() {
            let (nobodys, at) = (records.next_generation(), self.routed());
            for slot in slots.iter() {
                let targets = &mut self.targets;
                targets.void_older(&mut self.chunks, slot, nobodys, at);
            }
        }
    }

    /// A copy of everything begins.
    pub(super) fn claim_slots(&mut self) {
        if std::mem::take(&mut self.motion.claimed_before) && self.keeps_watermarks_by_slot() {
            self.motion.unclaimed = self.config.slots.clone();
        }
    }

    /// On a single target one watermark stands for all slots of a lane.
    pub(super) fn keeps_watermarks_by_slot(&self) -> bool {
        self.config.generations.is_some() && !self.targets.is_single()
    }

    /// Slots that have come and that the generation is not newer than: it has to be renewed.
    pub(super) fn wants_renewal(&self) -> bool {
        let motion = &self.motion;
        self.keeps_watermarks_by_slot() && !motion.to_copy.is_subset(&motion.covered)
    }

    /// The records that are written now are of a new generation.
    pub(super) fn renew(&mut self, records: &mut Records) {
        records.renew();
        self.motion.renewing = Some(self.motion.to_copy.clone());
    }

    /// All masters have records of the present generation.
    pub(super) fn renewed(&mut self, generation: Generation) -> bool {
        let Some(covered) = self.motion.renewing.take() else {
            return false;
        };
        self.targets.marks.renew(generation);
        self.motion.covered = covered;
        true
    }
}

impl Targets {
    /// From now on no record of an older generation speaks for a slot.
    pub(super) fn void_older(
        &mut self,
        chunks: &mut Chunks,
        slot: Slot,
        generation: Generation,
        at: Offset,
    ) {
        let watermark = Watermark {
            generation,
            offset: Offset::default(),
        };
        let mark = Mark {
            watermark,
            owed: None,
        };
        let key = watermark_key(&self.marks.link, slot);
        self.stage(chunks, slot, at, 0, |out| {
            push_command(out, &[b"SET", &key, mark.to_string().as_bytes()]);
            1
        });
    }
}

impl Records {
    /// Whether nothing is open that the generation before the present one is needed for.
    pub fn may_renew(&self) -> bool {
        let settled = self.told >= Some(self.settled_at);
        self.was_written && self.superseded.is_none() && settled
    }

    fn renew(&mut self) {
        self.superseded = Some(self.generation);
        self.former = Some(Former {
            generation: self.generation,
            // Both are of one history.
            until: Offset(u64::MAX),
        });
        self.generation = self.next_generation();
    }
}

impl Marks {
    /// Watermarks are of this generation from now on. Those before it count until [`Marks::settle`].
    fn renew(&mut self, generation: Generation) {
        self.generation = generation;
        self.owned_before = std::mem::take(&mut self.owned);
    }
}
