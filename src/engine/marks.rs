//! Watermarks of one lane: the one that its transactions set, and what those that were found say is applied.

use std::collections::BTreeMap;

use super::serial::{EXEC, MULTI};
use crate::checkpoint::{Generation, LinkName, Mark, Owed, Watermark, watermark_key};
use crate::command::mark_from;
use crate::position::Offset;
use crate::resp::push_command;
use crate::slot::{Slot, SlotSet};

/// Has the marked commands from `start` on, of which some will lose their mark, travel in a transaction with such as keep it and
/// leave nothing behind: they set and remove the key `token`. Gives how many commands that adds.
pub(super) fn hold_together(out: &mut Vec<u8>, start: usize, token: &[u8]) -> usize {
    let whole = out[start..].starts_with(MULTI);
    match whole {
        true => out.truncate(out.len() - EXEC.len()),
        false => _ = out.splice(start..start, MULTI.iter().copied()),
    }
    let own = out.len();
    push_command(out, &[b"SET", token, b""]);
    push_command(out, &[b"UNLINK", token]);
    mark_from(out, own);
    out.extend_from_slice(EXEC);
    if whole { 2 } else { 4 }
}

/// Watermarks are about slots. A single server is one slot, and there a lane has one, in the slot that is its anchor:
/// so [`Marks::passed`] and [`Marks::owned`] name that slot then, for the lane as a whole.
#[derive(Debug)]
pub(super) struct Marks {
    pub link: LinkName,
    pub generation: Generation,
    anchor: Option<Slot>,
    /// Everything of these slots before these offsets was applied before the lane came to them.
    pub passed: BTreeMap<Slot, Offset>,
    /// The largest of them: from here on nothing is skipped.
    pub skip_until: Offset,
    /// Slots that have a watermark of this generation.
    pub owned: SlotSet,
    /// Slots that may have one of the generation before it, which no record has passed yet.
    pub owned_before: SlotSet,
}

impl Marks {
    /// `anchor`: for a target that is a single server, the smallest of the lane's slots.
    pub fn new(
        link: LinkName,
        generation: Generation,
        anchor: Option<Slot>,
        passed: BTreeMap<Slot, Offset>,
        owned: SlotSet,
    ) -> Self {
        Self {
            link,
            generation,
            anchor,
            skip_until: passed.values().copied().max().unwrap_or_default(),
            passed,
            owned,
            owned_before: SlotSet::new(),
        }
    }

    /// Another history: nothing of it is applied.
    pub fn begin(&mut self, generation: Generation) {
        self.generation = generation;
        self.passed.clear();
        self.skip_until = Offset::default();
        self.owned.clear();
        self.owned_before.clear();
    }

    /// Slots whose watermarks count.
    pub fn named(&self) -> SlotSet {
        self.owned.union(&self.owned_before)
    }

    /// Records have passed all watermarks of the generation before.
    pub fn settle(&mut self) {
        self.owned_before.clear();
    }

    /// The slot whose watermark is about `slot`.
    pub fn place_of(&self, slot: Slot) -> Slot {
        self.anchor.unwrap_or(slot)
    }

    /// Whether what ends at `end` is applied in `slot` already. What comes behind is not, and ends the question.
    pub fn is_passed(&mut self, slot: Slot, end: Offset) -> bool {
        let place = self.place_of(slot);
        let Some(&passed) = self.passed.get(&place) else {
            return false;
        };
        if end > passed {
            self.passed.remove(&place);
        }
        end <= passed
    }

    /// Up to where a slot is applied, as far as the stream has not come there.
    pub fn passed_in(&self, slot: Slot) -> Offset {
        let passed = self.passed.get(&self.place_of(slot));
        passed.copied().unwrap_or_default()
    }

    /// The stream has come to `at`: what was passed before says nothing about what follows.
    pub fn come_to(&mut self, at: Offset) {
        if at >= self.skip_until && !self.passed.is_empty() {
            self.passed.clear();
        }
    }

    /// Slots of which more is applied than the stream before `at`.
    pub fn ahead_of(&self, at: Offset) -> impl Iterator<Item = Slot> {
        let ahead = self.passed.iter().filter(move |(_, passed)| **passed > at);
        ahead.map(|(slot, _)| *slot)
    }

    /// Writes the command that says that everything of `slot` before `end` is applied, but for what is `owed`.
    pub fn write(&mut self, slot: Slot, end: Offset, owed: Option<Owed>, out: &mut Vec<u8>) {
        let place = self.place_of(slot);
        self.owned.insert(place);
        let watermark = Watermark {
            generation: self.generation,
            offset: end,
        };
        let key = watermark_key(&self.link, place);
        let mark = Mark { watermark, owed };
        push_command(out, &[b"SET", &key, mark.to_string().as_bytes()]);
    }

    /// The slot of a cluster is another lane's, or was: what is known of its watermark is of no use.
    pub fn forget(&mut self, slot: Slot) {
        if self.anchor.is_none() {
            self.removed(slot);
        }
    }

    /// The watermark about `slot` is gone, and nothing is on its way to set it again.
    pub fn removed(&mut self, slot: Slot) {
        let place = self.place_of(slot);
        self.owned.remove(place);
        self.owned_before.remove(place);
        self.passed.remove(&place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_loses_its_mark_is_held_together_with_what_keeps_it() {
        let lost: &[&[u8]] = &[b"XCLAIM", b"s", b"g", b"c", b"0", b"1-1"];
        let mut out = b"before".to_vec();
        push_command(&mut out, lost);
        assert!(!mark_from(&mut out, 6));
        assert_eq!(hold_together(&mut out, 6, b"t"), 4);
        let mut expected = [b"before", MULTI].concat();
        push_command(&mut expected, &[b"xCLAIM", b"s", b"g", b"c", b"0", b"1-1"]);
        push_command(&mut expected, &[b"sET", b"t", b""]);
        push_command(&mut expected, &[b"uNLINK", b"t"]);
        expected.extend_from_slice(EXEC);
        assert_eq!(out, expected);
        // A transaction stays one.
        let mut whole = MULTI.to_vec();
        push_command(&mut whole, lost);
        whole.extend_from_slice(EXEC);
        mark_from(&mut whole, 0);
        assert_eq!(hold_together(&mut whole, 0, b"t"), 2);
        assert_eq!(whole, expected[6..]);
    }
}
