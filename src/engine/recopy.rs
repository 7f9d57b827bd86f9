//! Slots that come to a lane while it runs, from another source master: their keys are copied one by one, exactly, while the
//! stream goes on.
//!
//! What the former owner's stream and the new owner's say about a slot stands in no order: `MIGRATE` shows as `DEL` in the one,
//! which a user's looks like, and as `RESTORE-ASKING` in the other. So neither is applied. The slot was frozen at the former
//! owner's lane ([`super::motion`]), and this lane gives each key the value that its source master has ([`crate::mend`]):
//!
//! ```text
//! waiting -> listing -> copying, some keys at a time -> watermark -> the lane's records list the slot
//!               ^            |
//!               '------------' whatever makes it uncertain what is copied
//! ```
//!
//! - The keys are those that either side lists. One that only the target has is removed, since the source has nothing there.
//! - A command all of whose keys are copied is sent. Any other is left out, and its keys are copied (again) later: so a key
//!   that is created after the listing is not missed, and nothing meets a value that it did not meet at the source.
//! - A key counts as copied from the offset on at which its value held. Before, commands on it are part of the value.
//! - No record lists the slot before all is copied: after a crash it is copied again. So what is left out is not owed, and the
//!   acknowledged offset does not wait for it. What older records say of it is void before its first key is written
//!   ([`super::renewal`]).

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::atomic::Ordering::Relaxed;

use super::lane::{Lane, SourceLink};
use super::mending::{Owed, cannot_mend};
use super::options::{Destination, Existing};
use super::status::ErrorCount;
use super::targets::Targets;
use crate::chunk::Chunks;
use crate::fault::{Fault, FaultKind};
use crate::limits;
use crate::mend::{Key, Mend, Touched, Values};
use crate::position::Offset;
use crate::slot::{Slot, SlotSet, slot_of};
use crate::target::Unit;

/// Questions of lanes about the keys that slots hold.
pub type ListDesk = super::desk::Desk<ListQuestion, ListAnswer>;

/// Which keys do these slots hold at a source master, and on the target?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListQuestion {
    pub address: String,
    pub port: u16,
    pub slots: SlotSet,
    /// Whether the target is to be asked.
    pub target: bool,
}

/// What came of it. Keys stand with the database that they are in, by its number on their side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListAnswer {
    Listed {
        /// The source master's history.
        replid: String,
        source: Vec<Key>,
        target: Vec<Key>,
    },
    /// Not now, for this reason.
    Later(String),
    /// Asking again is no use.
    Never(Fault),
}

/// The copy of one slot, or for a single target of all that came together.
#[derive(Debug)]
pub(super) struct Recopy {
    slots: SlotSet,
    stage: Stage,
    /// What is to be copied.
    todo: BTreeSet<Key>,
    /// What is copied.
    done: HashSet<Key>,
    /// How many keys are copied together: as many as have answers of a good size.
    at_a_time: usize,
    /// How often it began again because something did not fit.
    restarts: u32,
    /// Keys of other slots that wait with it, and since when: these are owed.
    owes_from: Option<Offset>,
    /// How many keys were written.
    keys: u64,
    /// All is written: what is on its way, and must be answered before records may list the slots.
    ending: Option<Vec<(usize, u64)>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// To be asked, not before this time.
    Unlisted {
        ask_at_ms: u64,
    },
    /// Asked, by this number.
    Listing(u64),
    Copying,
}

/// Questions that nobody has taken yet, and the number of the last.
#[derive(Debug, Default)]
pub(super) struct Listings {
    ticket: u64,
    questions: Vec<(u64, ListQuestion)>,
}

impl Recopy {
    fn new(slots: SlotSet) -> Self {
        Self {
            slots,
            stage: Stage::Unlisted { ask_at_ms: 0 },
            todo: BTreeSet::new(),
            done: HashSet::new(),
            at_a_time: limits::RECOPY_FIRST_KEYS,
            restarts: 0,
            owes_from: None,
            keys: 0,
            ending: None,
        }
    }

    /// Since when keys of other slots are owed with it.
    pub fn owes_from(&self) -> Option<Offset> {
        self.owes_from
    }

    /// Units are looked at as they come: no answer is waited for that decides about them.
    pub fn judges_at_once(&self, mend: &Mend<Unit>) -> bool {
        self.stage != Stage::Copying || mend.keys().len() == 0
    }

    fn concerns(&self, key: &Key) -> bool {
        self.slots.contains(slot_of(&key.1))
    }

    /// From the list again: what is copied may not be what it seems.
    fn restart(&mut self, ask_at_ms: u64) {
        self.stage = Stage::Unlisted { ask_at_ms };
        self.ending = None;
        self.done.clear();
        self.todo
            .retain(|key| !self.slots.contains(slot_of(&key.1)));
    }

    /// Whether a unit that touches these keys is sent. If not, they are copied later; `covered`: those whose values of a
    /// later offset are known already.
    fn judge(&mut self, keys: Vec<Key>, begin: Offset, covered: impl Fn(&Key) -> bool) -> bool {
        let is_right = |key: &Key| match self.concerns(key) {
            true => self.done.contains(key),
            false => !self.todo.contains(key) && !covered(key),
        };
        if keys.iter().all(is_right) {
            return true;
        }
        for key in keys {
            if covered(&key) {
                continue;
            }
            if !self.concerns(&key) {
                let from = self.owes_from.get_or_insert(begin);
                *from = begin.min(*from);
            }
            self.done.remove(&key);
            self.todo.insert(key);
        }
        false
    }

    /// The keys that come next: of one slot, since the source answers for no more than one at a time.
    fn next(&mut self) -> Vec<Key> {
        let first = self.todo.first().map(|key| slot_of(&key.1));
        let together = |key: &&Key| Some(slot_of(&key.1)) == first;
        let keys = self.todo.iter().filter(together).take(self.at_a_time);
        let keys: Vec<Key> = keys.cloned().collect();
        for key in &keys {
            self.todo.remove(key);
        }
        keys
    }

    /// So many keys took so many bytes.
    fn adapt(&mut self, keys: usize, bytes: usize) {
        let of_one = (bytes / keys.max(1)).max(1);
        let fitting = limits::RECOPY_BYTES / of_one;
        self.at_a_time = fitting.clamp(1, (keys * 8).clamp(1, limits::MEND_KEYS));
    }

    /// These keys have their values, of so many bytes.
    fn copied(&mut self, keys: impl ExactSizeIterator<Item = Key>, bytes: usize) {
        self.adapt(keys.len(), bytes);
        self.keys += keys.len() as u64;
        for key in keys {
            if self.concerns(&key) {
                self.done.insert(key);
            }
        }
        if self.todo.iter().all(|key| self.concerns(key)) {
            self.owes_from = None;
        }
    }

    fn is_too_large(&self) -> bool {
        self.todo.len() + self.done.len() > limits::RECOPY_SLOT_KEYS
    }
}

impl Targets {
    /// Whether units of a slot that is being copied, and that begin where this one does, are looked at at once.
    pub(super) fn is_judged_at_once(owed: &Owed) -> bool {
        let of = owed.recopy.as_ref();
        of.is_some_and(|recopy| recopy.judges_at_once(&owed.mend))
    }

    /// Decides about a unit of a slot that is being copied.
    pub(super) fn judge_copied(&mut self, chunks: &mut Chunks, slot: Slot, unit: Unit) {
        let touched = self.touched_by(chunks.get(unit.range), unit.database);
        let now_ms = self.mends.now_ms;
        let owed = self.mends.by_slot.get_mut(&slot).expect("it is watched");
        let Owed { mend, recopy, .. } = owed;
        let recopy = recopy.as_mut().expect("checked by the caller");
        let sends = match touched {
            Touched::Keys(keys) => recopy.judge(keys, unit.begin, |key| mend.contains(key)),
            // Nothing is known of any key.
            Touched::Swap(..) | Touched::Unknown => {
                owed.copy_again(now_ms);
                false
            }
        };
        let recopy = owed.recopy.as_ref().expect("as above");
        if recopy.is_too_large() {
            self.mends.trouble.get_or_insert_with(too_large);
        }
        match sends {
            true => self.deliver(chunks, slot, unit),
            false => {
                let frames = u64::from(unit.frames);
                self.status.count_many(ErrorCount::CoveredByMend, frames);
                chunks.release(unit.range.chunk);
            }
        }
    }

    /// A command failed on keys of a slot that is being copied. Whether that is taken care of.
    ///
    /// # Errors
    /// When it happens too often.
    pub(super) fn copy_again(
        &mut self,
        slot: Slot,
        keys: &[Key],
        from: Offset,
        why: &str,
    ) -> Result<bool, Fault> {
        let now_ms = self.mends.now_ms;
        let Some(owed) = self.mends.by_slot.get_mut(&slot) else {
            return Ok(false);
        };
        let Some(recopy) = &mut owed.recopy else {
            return Ok(false);
        };
        recopy.restarts += 1;
        if recopy.restarts > limits::MEND_REPEATS {
            return Err(cannot_mend(format_args!(
                "{why}; slots {} were copied {} times in vain",
                recopy.slots, recopy.restarts
            )));
        }
        for key in keys {
            if !recopy.concerns(key) {
                recopy.todo.insert(key.clone());
                let since = recopy.owes_from.get_or_insert(from);
                *since = from.min(*since);
            }
        }
        owed.copy_again(now_ms + limits::MEND_RETRY_MS);
        Ok(true)
    }
}

fn too_large() -> Fault {
    Fault::new(
        FaultKind::Divergence,
        format!(
            "a slot that has moved holds more than {} keys, too many to be copied by itself; run slotstream clean on the target \
             and start again with --on-existing replace to copy everything anew",
            limits::RECOPY_SLOT_KEYS
        ),
    )
}

impl Lane {
    /// Slots that wait are copied, a few at a time.
    pub(super) fn start_recopies(&mut self) {
        let quiet = self.hold.is_none() && self.rewind.is_none() && self.sweep.is_none();
        let streams = matches!(self.link, SourceLink::Streaming) && self.settled;
        let single = self.targets.is_single();
        let renews = self.keeps_watermarks_by_slot();
        let to_copy = match renews {
            true => self.motion.covered.intersection(&self.motion.to_copy),
            false => self.motion.to_copy.clone(),
        };
        if to_copy.is_empty() || !quiet || !streams || self.stopping || self.unswept {
            return;
        }
        let routed = self.routed();
        let mut turns: Vec<(Slot, SlotSet)> = match single {
            true => vec![(0, to_copy)],
            false => {
                let alone = |slot| (slot, SlotSet::from_iter([slot]));
                to_copy.iter().map(alone).collect()
            }
        };
        let mends = &self.targets.mends;
        // What is mended there first, comes first.
        turns.retain(|(place, _)| !mends.watches(*place));
        let room = limits::RECOPIES.saturating_sub(mends.recopies().count());
        for (place, slots) in turns.into_iter().take(room) {
            let owed = Owed::of_recopy(routed, Recopy::new(slots));
            self.targets.mends.by_slot.insert(place, owed);
            if renews {
                self.write_watermark(place, routed, routed, None);
            }
        }
    }

    /// What is copied is given up and waits again: whatever it was copied from is not what the lane goes on with.
    pub(super) fn suspend_recopies(&mut self) {
        let mends = &mut self.targets.mends;
        let places: Vec<Slot> = mends.recopies().map(|(place, _)| place).collect();
        for place in places {
            let owed = self.targets.mends.by_slot.remove(&place);
            for unit in owed.expect("it is there").mend.into_held() {
                self.chunks.release(unit.range.chunk);
            }
        }
    }

    /// Does what can be done about a slot that is being copied and has no keys under way. Whether there is more to do.
    ///
    /// # Errors
    /// When the lane cannot go on.
    pub(super) fn recopy_slot(&mut self, place: Slot) -> Result<bool, Fault> {
        let routed = self.routed();
        let flushing = self.hold.is_some() || !matches!(self.link, SourceLink::Streaming);
        let mends = &mut self.targets.mends;
        let now_ms = mends.now_ms;
        let owed = mends.by_slot.get_mut(&place).expect("it is there");
        let recopy = owed.recopy.as_mut().expect("checked by the caller");
        if owed.mend.keys().len() > 0 {
            return Ok(true);
        }
        match recopy.stage {
            Stage::Unlisted { ask_at_ms } if ask_at_ms <= now_ms && !flushing => {
                self.motion.listings.ticket += 1;
                let ticket = self.motion.listings.ticket;
                recopy.stage = Stage::Listing(ticket);
                let question = ListQuestion {
                    address: self.config.source.address.clone(),
                    port: self.config.source.port,
                    slots: recopy.slots.clone(),
                    target: self.config.existing != Existing::Keep,
                };
                self.motion.listings.questions.push((ticket, question));
                Ok(false)
            }
            Stage::Copying if !recopy.todo.is_empty() && !flushing => {
                recopy.ending = None;
                let keys = recopy.next();
                owed.mend = Mend::new(routed);
                let joined = owed.mend.join(keys, routed);
                joined.expect("no more keys than a mend may have");
                Ok(true)
            }
            Stage::Copying if recopy.todo.is_empty() && !flushing => {
                self.end_recopy(place);
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// Everything of a slot is written. When it is answered as well, records may list it: one of them could reach its master
    /// although a value was refused there, because the slot moves on the target.
    fn end_recopy(&mut self, place: Slot) {
        let is_parked = self.targets.parked.contains_key(&place);
        let targets = &self.targets;
        let answered =
            |&(index, number): &(usize, u64)| targets.nodes[index].writer.answered_to() >= number;
        let owed = targets.mends.by_slot.get(&place);
        let ending = owed.and_then(|owed| owed.recopy.as_ref()?.ending.as_ref());
        let ended = match ending {
            Some(fence) if !is_parked => Some(fence.iter().all(answered)),
            _ => None,
        };
        match ended {
            Some(true) => self.finish_recopy(place),
            Some(false) => {}
            None => {
                // Whatever watermark another lane left there speaks of another stream.
                let fence = (!is_parked).then(|| {
                    let routed = self.routed();
                    self.write_watermark(place, routed, routed, None);
                    self.targets.fence()
                });
                let owed = self.targets.mends.by_slot.get_mut(&place);
                let recopy = owed.and_then(|owed| owed.recopy.as_mut());
                recopy.expect("it is there").ending = fence;
            }
        }
    }

    fn finish_recopy(&mut self, place: Slot) {
        let owed = self.targets.mends.by_slot.remove(&place);
        let recopy = owed.and_then(|owed| owed.recopy).expect("it is there");
        self.motion.end(&recopy.slots, recopy.keys);
        let copied = recopy.slots.len() as u64;
        self.status.slots_copied.fetch_add(copied, Relaxed);
        if self.config.existing == Existing::Keep {
            self.status.count(ErrorCount::UnsweptCopy);
        }
        if self.motion.is_settled() {
            let (slots, keys) = self.motion.take_story();
            self.status.set_message(&format!(
                "slots {slots} have come from another source master; their {keys} keys are copied"
            ));
        }
        self.tell_soon();
    }

    /// These values are on their way: what was held is looked at, and other keys follow.
    pub(super) fn go_on_copying(
        &mut self,
        place: Slot,
        mut recopy: Recopy,
        values: Values,
        held: VecDeque<(Offset, Unit)>,
    ) {
        let payloads = values.values().flatten();
        let bytes = payloads.map(|taken| taken.payload.len()).sum();
        let status = &self.status;
        status
            .slot_keys_copied
            .fetch_add(values.len() as u64, Relaxed);
        status.slot_bytes_copied.fetch_add(bytes as u64, Relaxed);
        recopy.copied(values.into_keys(), bytes);
        let owed = Owed::of_recopy(self.routed(), recopy);
        self.targets.mends.by_slot.insert(place, owed);
        for (_, unit) in held {
            self.targets.judge_copied(&mut self.chunks, place, unit);
        }
    }

    /// Questions about slots that are to be copied, with their numbers.
    pub fn take_list_questions(&mut self) -> Vec<(u64, ListQuestion)> {
        std::mem::take(&mut self.motion.listings.questions)
    }

    /// The answer to a question.
    ///
    /// # Errors
    /// When the lane cannot go on.
    pub fn listed(&mut self, ticket: u64, answer: ListAnswer) -> Result<(), Fault> {
        let history = self.history;
        let kind = self.targets.topology.kind;
        let map = self.config.database_map.clone();
        let mends = &mut self.targets.mends;
        let now_ms = mends.now_ms;
        let Some(recopy) = mends.listing_by(ticket) else {
            return Ok(());
        };
        let why = match answer {
            ListAnswer::Listed {
                replid,
                source,
                target,
            } if history.is_some_and(|id| id.as_str() == replid) => {
                recopy.stage = Stage::Copying;
                for (database, name) in source {
                    if let Ok(Destination::Database(database)) = map.destination(database, kind) {
                        recopy.todo.insert((database, name));
                    }
                }
                let ours = target.into_iter();
                recopy
                    .todo
                    .extend(ours.filter(|(database, _)| map.reaches(*database)));
                let done = &recopy.done;
                recopy.todo.retain(|key| !done.contains(key));
                if recopy.is_too_large() {
                    return Err(too_large());
                }
                return self.advance();
            }
            ListAnswer::Listed { .. } => "the source has just changed its history".to_owned(),
            ListAnswer::Later(why) => why,
            ListAnswer::Never(fault) => {
                let text = format!("slots that have moved cannot be copied: {}", fault.message);
                return Err(Fault::new(fault.kind, text));
            }
        };
        let ask_at_ms = now_ms + limits::MEND_RETRY_MS;
        recopy.stage = Stage::Unlisted { ask_at_ms };
        self.status
            .set_message(&format!("{why}; slots that have moved wait for it"));
        Ok(())
    }
}

impl super::mending::Mends {
    /// The copies that are under way, by their place.
    pub fn recopies(&self) -> impl Iterator<Item = (Slot, &Recopy)> {
        let owed = self.by_slot.iter();
        owed.filter_map(|(place, owed)| Some((*place, owed.recopy.as_ref()?)))
    }

    /// Whether a slot is among those that are copied at a place.
    pub fn is_copying(&self, place: Slot, slot: Slot) -> bool {
        let recopy = self.by_slot.get(&place).and_then(|o| o.recopy.as_ref());
        recopy.is_some_and(|recopy| recopy.slots.contains(slot))
    }

    fn listing_by(&mut self, ticket: u64) -> Option<&mut Recopy> {
        let mut recopies = self.by_slot.values_mut().filter_map(|o| o.recopy.as_mut());
        recopies.find(|recopy| recopy.stage == Stage::Listing(ticket))
    }

    /// What the copies rely on is not certain any more.
    pub(super) fn restart_recopies(&mut self) {
        let now_ms = self.now_ms;
        for owed in self.by_slot.values_mut() {
            owed.copy_again(now_ms);
        }
    }
}

impl Owed {
    /// The copy begins from the list again, not before this time.
    fn copy_again(&mut self, ask_at_ms: u64) {
        let Some(recopy) = &mut self.recopy else {
            return;
        };
        let others = self.mend.keys().filter(|key| !recopy.concerns(key));
        let others: Vec<Key> = others.cloned().collect();
        recopy.restart(ask_at_ms);
        recopy.todo.extend(others);
        self.mend.give_up();
    }

    /// These slots are another lane's from now on.
    pub(super) fn leave(&mut self, slots: &SlotSet, now_ms: u64) {
        let Some(recopy) = &mut self.recopy else {
            // With no key left it ends by itself, and what it held goes its way.
            self.mend.forget(|key| slots.contains(slot_of(&key.1)));
            return;
        };
        if !recopy.slots.is_disjoint(slots) {
            recopy.slots = recopy.slots.difference(slots);
            self.copy_again(now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        (0, name.into())
    }

    #[test]
    fn a_command_is_sent_when_all_its_keys_are_copied_and_else_they_are_copied_again() {
        let mut recopy = Recopy::new(SlotSet::all());
        recopy.done.extend([key("a"), key("b")]);
        let nothing = |_: &Key| false;
        assert!(recopy.judge(vec![key("a"), key("b")], Offset(1), nothing));
        assert!(!recopy.judge(vec![key("a"), key("c")], Offset(2), nothing));
        assert_eq!(recopy.todo, BTreeSet::from([key("a"), key("c")]));
        assert!(!recopy.judge(vec![key("a")], Offset(3), nothing));
        assert!(recopy.judge(vec![key("b")], Offset(4), nothing));
    }

    #[test]
    fn what_touches_a_key_whose_value_is_of_a_later_offset_is_left_out_and_draws_others_in() {
        let mut recopy = Recopy::new(SlotSet::all());
        recopy.done.insert(key("a"));
        let covered = |key: &Key| key.1 == b"k";
        assert!(!recopy.judge(vec![key("k"), key("a")], Offset(1), covered));
        assert_eq!(recopy.todo, BTreeSet::from([key("a")]));
        assert!(recopy.owes_from.is_none());
    }

    #[test]
    fn keys_of_other_slots_that_stand_with_those_that_are_not_copied_are_owed() {
        let slots = SlotSet::from_iter([slot_of(b"a")]);
        let mut recopy = Recopy::new(slots);
        let nothing = |_: &Key| false;
        assert!(recopy.judge(vec![key("other")], Offset(5), nothing));
        assert!(!recopy.judge(vec![key("a"), key("other")], Offset(6), nothing));
        assert_eq!(recopy.owes_from, Some(Offset(6)));
        assert!(!recopy.judge(vec![key("other")], Offset(7), nothing));
        for _ in 0..2 {
            let keys = recopy.next();
            assert_eq!(keys.len(), 1, "of one slot");
            recopy.copied(keys.into_iter(), 100);
        }
        assert_eq!(recopy.owes_from, None);
        assert!(recopy.judge(vec![key("a"), key("other")], Offset(8), nothing));
    }

    #[test]
    fn so_many_keys_are_copied_together_as_have_answers_of_a_good_size() {
        let mut recopy = Recopy::new(SlotSet::all());
        recopy.adapt(32, 32 * 100);
        assert_eq!(recopy.at_a_time, 256);
        recopy.adapt(256, 256 * 100);
        assert_eq!(recopy.at_a_time, limits::MEND_KEYS);
        recopy.adapt(1000, 1 << 30);
        assert!(recopy.at_a_time < 10);
        recopy.adapt(1, 1 << 30);
        assert_eq!(recopy.at_a_time, 1);
    }

    #[test]
    fn a_restart_forgets_what_is_copied() {
        let mut recopy = Recopy::new(SlotSet::all());
        recopy.stage = Stage::Copying;
        recopy.done.insert(key("a"));
        recopy.todo.insert(key("b"));
        recopy.restart(7);
        assert!(recopy.done.is_empty() && recopy.todo.is_empty());
        assert_eq!(recopy.stage, Stage::Unlisted { ask_at_ms: 7 });
    }
}
