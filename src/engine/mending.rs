//! Keys that are mended while their lane streams: see [`crate::mend`].
//!
//! ```text
//! command fails, or the lane is told -> keys owed -> [Mend] of their slot <- the source's answer, by a desk
//! unit, slot -> send -> no mend of the slot -> deliver
//!                    -> a mend              -> held | left out | deliver
//! ```
//!
//! What was delivered before takes its course beneath (`parked`, `serial`); a mend waits until that is over.
//!
//! A crash loses no mend:
//!
//! - Nothing that is owed counts as acknowledged: the next process repeats the stream from before the command that failed,
//!   and there it fails again. What fails while the stream is repeated is therefore mended as well, although it may only have
//!   met its own effects: a mend is exact, so one too many costs nothing but time.
//! - What is at or below a slot's watermark is not repeated. So a watermark that is written while keys of its slot are owed
//!   names them ([`checkpoint::Mark`]), before the source is asked if one without them is there, and the next process mends
//!   those whatever its policy, together with what skipped commands tie to them.
//! - The write of the values of offset `O` sets the slot's watermark to `O`, without names: from then on it speaks for all.
//!
//! What remains: a command that fails inside a transaction with a watermark, and a crash before the lane heard of it and that
//! watermark was written again with the key's name: one or two round trips.

use std::collections::{BTreeMap, BTreeSet};

use super::desk::Desk;
use super::lane::{Lane, SourceLink};
use super::options::OnDivergence;
use super::recopy::Recopy;
use super::redirect::is_never_applied;
use super::status::ErrorCount;
use super::targets::Targets;
use super::values::Last;
use crate::checkpoint;
use crate::chunk::Chunks;
use crate::fault::{Fault, FaultKind};
use crate::limits;
use crate::mend::{self, Key, Mend, Stage, Touched, Verdict};
use crate::position::Offset;
use crate::slot::{Slot, SlotSet, slot_of};
use crate::target::{Guard, Unit};

/// Questions of lanes about keys, and the answers.
pub type MendDesk = Desk<MendQuestion, MendAnswer>;

/// A question, and the master whose stream the offset of the answer shall be of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MendQuestion {
    pub address: String,
    pub port: u16,
    pub keys: mend::Question,
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MendAnswer {
    Taken(mend::Snapshot),
    /// Not now, for this reason.
    Later(String),
    /// Asking again is no use.
    Never(Fault),
}

/// What a lane owes its target.
#[derive(Debug)]
pub(super) struct Mends {
    pub policy: OnDivergence,
    pub(super) by_slot: BTreeMap<Slot, Owed>,
    /// The number of the last question, the questions to be asked, and how many have no answer yet.
    ticket: u64,
    questions: Vec<(u64, MendQuestion)>,
    open_questions: usize,
    /// Found where no fault can be returned.
    pub(super) trouble: Option<Fault>,
    /// Since when, and how often since, keys were owed.
    repeats: BTreeMap<Key, (u64, u32)>,
    /// Since when, and how many mends were told of one by one since.
    told: (u64, u64),
    pub(super) now_ms: u64,
}

/// The mend of one slot.
#[derive(Debug)]
pub(super) struct Owed {
    pub mend: Mend<Unit>,
    /// All keys of the slot are copied, some at a time; then nothing else here is of use but the fence.
    pub recopy: Option<Recopy>,
    /// What on its way may have carried the difference on is to be looked through.
    spreads: bool,
    /// What is on its way: connections, and the run numbers below which each must have answered.
    pub(super) fence: Vec<(usize, u64)>,
    /// Everything that had been received when the source was asked.
    received: Offset,
    ask_at_ms: u64,
    /// The transaction at the end, once what comes before it is sent.
    pub(super) last: Option<Last>,
    /// The slot's watermark may stand behind the difference; how many of the keys it names.
    named: Option<usize>,
    /// Commands before this are not sent but looked through: a former process sent them. 0: there are no more.
    passed: Offset,
    /// All keys of those are owed.
    all_passed: bool,
}

impl Owed {
    fn new(from: Offset) -> Self {
        Self {
            mend: Mend::new(from),
            recopy: None,
            spreads: false,
            fence: Vec::new(),
            received: from,
            ask_at_ms: 0,
            last: None,
            named: None,
            passed: Offset::default(),
            all_passed: false,
        }
    }

    pub fn of_recopy(from: Offset, recopy: Recopy) -> Self {
        Self {
            recopy: Some(recopy),
            ..Self::new(from)
        }
    }

    /// Where the first of what is owed or held begins. What a copy leaves out is not owed: no record speaks for it.
    fn begin(&self) -> Option<Offset> {
        let held = self.mend.held().next().map(|unit| unit.begin);
        let owed = match &self.recopy {
            Some(recopy) => recopy.owes_from(),
            None => Some(self.mend.owed_from()),
        };
        held.into_iter().chain(owed).min()
    }

    /// Nothing is held back: what waits for the slot to be quiet need not wait for this.
    fn is_quiet(&self) -> bool {
        let between = Targets::is_judged_at_once(self) && self.mend.held().next().is_none();
        between || self.mend.is_quiet() || self.only_looks()
    }

    /// Nothing is done before more of the stream has come, and nothing is held back.
    fn only_looks(&self) -> bool {
        self.passed > Offset::default() && self.mend.held().next().is_none()
    }
}

impl Mends {
    pub fn new(policy: OnDivergence) -> Self {
        Self {
            policy,
            by_slot: BTreeMap::new(),
            ticket: 0,
            questions: Vec::new(),
            open_questions: 0,
            trouble: None,
            repeats: BTreeMap::new(),
            told: (0, 0),
            now_ms: 0,
        }
    }

    /// Whether units of a slot need a look.
    #[inline]
    pub fn watches(&self, slot: Slot) -> bool {
        !self.by_slot.is_empty() && self.by_slot.contains_key(&slot)
    }

    /// Whether nothing is held back.
    pub fn is_quiet(&self) -> bool {
        self.by_slot.values().all(Owed::is_quiet)
    }

    /// Where the first of what is owed or held begins.
    pub fn begin(&self) -> Option<Offset> {
        self.by_slot.values().filter_map(Owed::begin).min()
    }

    /// Mends that are not part of a copy.
    fn single_mends(&self) -> impl Iterator<Item = &Owed> {
        let owed = self.by_slot.values();
        owed.filter(|owed| owed.recopy.is_none())
    }

    /// Gives up what there is of these slots; what was held.
    pub fn leave(&mut self, slots: &SlotSet, single: bool) -> Vec<Unit> {
        let mut held = Vec::new();
        if single {
            // What is owed of all slots stands in one place.
            let now_ms = self.now_ms;
            for owed in self.by_slot.values_mut() {
                owed.leave(slots, now_ms);
            }
            return held;
        }
        for slot in slots.iter() {
            let owed = self.by_slot.remove(&slot);
            held.extend(owed.into_iter().flat_map(|owed| owed.mend.into_held()));
        }
        held
    }

    /// Whether anything of a slot is held back.
    pub fn holds(&self, slot: Slot) -> bool {
        let owed = self.by_slot.get(&slot);
        owed.is_some_and(|owed| owed.mend.held().next().is_some())
    }

    /// All keys that are owed.
    pub fn all_keys(&self) -> BTreeSet<Key> {
        self.single_mends()
            .flat_map(|owed| owed.mend.keys().cloned())
            .collect()
    }

    /// What is held back.
    pub fn held(&self) -> impl Iterator<Item = &Unit> {
        self.single_mends().flat_map(|owed| owed.mend.held())
    }

    /// How many keys are owed.
    pub fn keys(&self) -> usize {
        let owed = self.single_mends();
        owed.map(|owed| owed.mend.keys().len()).sum()
    }

    /// The source has another history, which is the former one up to `until`.
    pub fn history_changed(&mut self, until: Offset) {
        self.restart_recopies();
        for owed in self.by_slot.values_mut() {
            owed.mend.history_changed(until);
        }
    }

    /// These keys are about to be removed by a flush, at the source's word.
    pub fn flushed(&mut self, gone: impl Fn(&Key) -> bool) {
        self.restart_recopies();
        self.by_slot.retain(|_, owed| {
            if owed.recopy.is_some() {
                return true;
            }
            owed.named = owed.named.map(|_| 0);
            !owed.mend.forget(&gone)
        });
    }

    /// For which keys a watermark of this slot does not speak that is now written.
    pub fn name_owed(&mut self, slot: Slot) -> Option<checkpoint::Owed> {
        // No record lists a slot that is being copied: what it lacks need not be named.
        let owed = self.by_slot.get_mut(&slot);
        let owed = owed.filter(|owed| owed.recopy.is_none())?;
        owed.named = Some(owed.mend.keys().len());
        Some(match owed.all_passed {
            true => checkpoint::Owed::Some,
            false => checkpoint::Owed::of(owed.mend.keys()),
        })
    }

    /// Up to where the stream must come before all that is asked for can be written.
    pub fn wanted(&self) -> Option<Offset> {
        let until = |owed: &Owed| match owed.mend.stage() {
            Stage::Catching(until) => Some(until),
            _ => None,
        };
        self.single_mends().filter_map(until).max()
    }

    /// Gives everything up, for a lane that begins anew.
    pub fn abandon(&mut self, chunks: &mut Chunks) {
        for owed in std::mem::take(&mut self.by_slot).into_values() {
            for unit in owed.mend.into_held() {
                chunks.release(unit.range.chunk);
            }
        }
        // Those that nobody has taken yet get no answer.
        self.open_questions -= self.questions.len();
        self.questions.clear();
        self.trouble = None;
    }

    /// Whether a mend is told of by itself: no more than a few are in a minute.
    fn is_worth_telling(&mut self) -> bool {
        let (since, count) = &mut self.told;
        if self.now_ms >= *since + limits::MEND_MESSAGES_MS {
            (*since, *count) = (self.now_ms, 0);
        }
        *count += 1;
        *count <= limits::MEND_MESSAGES
    }

    /// Whether so many keys may be mended because a command failed that is repeated.
    fn has_room_to_repeat(&self, slot: Slot, keys: usize) -> bool {
        let of_slot = self.by_slot.get(&slot);
        let of_slot = of_slot.map_or(0, |owed| owed.mend.keys().len());
        of_slot + keys <= limits::MEND_KEYS && self.keys() + keys <= limits::MEND_REPEATED_KEYS
    }

    /// Counts that a key is owed. Whether that happens too often.
    fn is_hopeless(&mut self, key: &Key) -> bool {
        let now_ms = self.now_ms;
        if self.repeats.len() >= limits::MEND_OWED_KEYS {
            let recent = |since: u64| now_ms < since + limits::MEND_REPEATS_MS;
            self.repeats.retain(|_, (since, _)| recent(*since));
        }
        let (since, count) = self.repeats.entry(key.clone()).or_insert((now_ms, 0));
        if now_ms >= *since + limits::MEND_REPEATS_MS {
            (*since, *count) = (now_ms, 0);
        }
        *count += 1;
        *count > limits::MEND_REPEATS
    }
}

pub(super) fn cannot_mend(why: impl std::fmt::Display) -> Fault {
    Fault::new(
        FaultKind::Divergence,
        format!(
            "{why}; run slotstream clean on the target and start again with --on-existing replace to copy everything anew, \
             or use --on-divergence continue to leave the difference"
        ),
    )
}

pub(super) fn too_many() -> Fault {
    cannot_mend(format_args!(
        "more than {} keys differ that commands tie together, or a command does not tell its keys: too much to mend",
        limits::MEND_KEYS
    ))
}

impl Targets {
    // What differs.

    /// A command of `unit` failed because its keys differ; in a transaction the one with `behind` others behind it.
    pub(super) fn owe_keys_of(
        &mut self,
        chunks: &Chunks,
        unit: Unit,
        behind: Option<usize>,
        text: &str,
        message: &str,
    ) -> Result<(), Fault> {
        let never = is_never_applied(text);
        let keys = match never {
            true => Touched::Unknown,
            false => self.keys_of_failed(chunks, unit, behind),
        };
        let slot = self.slot_of_unit(chunks, unit);
        let (keys, slot) = match (keys, slot) {
            (Touched::Keys(keys), Some(slot)) if !keys.is_empty() => (keys, slot),
            // It may have been applied before.
            _ if unit.again && !never => return Ok(()),
            _ => {
                return Err(cannot_mend(format_args!(
                    "{message}, which cannot be mended"
                )));
            }
        };
        if unit.again && !self.mends.has_room_to_repeat(slot, keys.len()) {
            self.status.set_message(&format!(
                "{message}; not mended, since too many commands fail that are repeated"
            ));
            return Ok(());
        }
        self.owe(slot, keys, unit.begin, message)?;
        // Its own watermark does not know that it failed.
        if unit.guard == Guard::Given
            && let Some(owed) = self.mends.by_slot.get_mut(&slot)
        {
            owed.named.get_or_insert(0);
        }
        Ok(())
    }

    /// A former process had found that keys of `slot` differ, and mended them no more. What it sent of the slot ends at
    /// `passed`, `from` is where the lane goes on.
    pub(super) fn owe_found(
        &mut self,
        slot: Slot,
        found: &checkpoint::Owed,
        from: Offset,
        passed: Offset,
    ) {
        let (keys, all) = match found {
            checkpoint::Owed::Keys(keys) => (keys.clone(), false),
            checkpoint::Owed::Some => (Vec::new(), true),
        };
        let message = "a former process found that target and source differ";
        if let Err(fault) = self.owe(slot, keys, from, message) {
            self.mends.trouble.get_or_insert(fault);
        } else if let Some(owed) = self.mends.by_slot.get_mut(&slot) {
            owed.named = Some(owed.mend.keys().len());
            owed.passed = owed.passed.max(passed);
            owed.all_passed |= all;
        }
    }

    /// Commands of a slot are not sent, since its watermark says that they are applied. Those on keys that differ were left
    /// out, or have carried the difference on.
    pub(super) fn look_through_passed(
        &mut self,
        slot: Slot,
        commands: &[u8],
        database: u32,
        begin: Offset,
    ) {
        if !self.mends.watches(slot) {
            return;
        }
        let touched = self.touched_by(commands, database);
        let owed = self.mends.by_slot.get_mut(&slot).expect("it is watched");
        let joined = match touched {
            Touched::Keys(keys) if owed.all_passed => owed.mend.join(keys, begin),
            touched => owed.mend.judge(&touched, begin).map(|_| ()),
        };
        if joined.is_err() {
            self.mends.trouble.get_or_insert_with(too_many);
        }
    }

    /// Keys of `slot` are to be mended; nothing from `from` on counts as applied before they are.
    pub(super) fn owe(
        &mut self,
        slot: Slot,
        mut keys: Vec<Key>,
        from: Offset,
        message: &str,
    ) -> Result<(), Fault> {
        let is_ours = |key: &Key| self.slots.contains(slot_of(&key.1));
        if !keys.is_empty() && !keys.iter().any(is_ours) {
            // The slots have left: another lane writes them, and mends what it must.
            return Ok(());
        }
        keys.retain(is_ours);
        if self.copy_again(slot, &keys, from, message)? {
            return Ok(());
        }
        let mends = &mut self.mends;
        let known = mends.by_slot.get(&slot);
        let fresh: Vec<Key> = keys
            .into_iter()
            .filter(|key| known.is_none_or(|owed| !owed.mend.contains(key)))
            .collect();
        if mends.keys() + fresh.len() > limits::MEND_OWED_KEYS {
            let why = format!("more than {} keys differ", limits::MEND_OWED_KEYS);
            return Err(cannot_mend(why));
        }
        for key in &fresh {
            if mends.is_hopeless(key) {
                return Err(cannot_mend(format_args!(
                    "{message}; '{}' was mended {} times within a minute, so something else writes to it, or the \
                     target cannot hold it",
                    key.1.escape_ascii(),
                    limits::MEND_REPEATS
                )));
            }
        }
        if let Some((_, name)) = fresh.first()
            && mends.is_worth_telling()
        {
            let more = match fresh.len() {
                1 => String::new(),
                count => format!(" and {} others", count - 1),
            };
            self.status.set_message(&format!(
                "{message}; mending '{}'{more}",
                name.escape_ascii()
            ));
        }
        let new = || Owed::new(from);
        let owed = mends.by_slot.entry(slot).or_insert_with(new);
        owed.spreads |= !fresh.is_empty();
        owed.mend.join(fresh, from).map_err(|_| too_many())
    }

    // What comes.

    /// A unit of a slot that is mended.
    #[cold]
    pub(super) fn send_mended(&mut self, chunks: &mut Chunks, slot: Slot, unit: Unit) {
        // The lane is about to end or to begin anew, and what comes would come behind what was given up.
        if self.mends.trouble.is_some() {
            return chunks.release(unit.range.chunk);
        }
        let owed = self.mends.by_slot.get_mut(&slot).expect("it is watched");
        if Self::is_judged_at_once(owed) && owed.mend.held().next().is_none() {
            self.judge_copied(chunks, slot, unit);
        } else if let Some(unit) = owed.mend.arrives(unit.begin, unit) {
            self.judge(chunks, slot, unit);
        }
    }

    /// Sends a unit from before the values, or leaves it out.
    fn judge(&mut self, chunks: &mut Chunks, slot: Slot, unit: Unit) {
        if self.mends.by_slot[&slot].recopy.is_some() {
            return self.judge_copied(chunks, slot, unit);
        }
        let mut touched = self.touched_by(chunks.get(unit.range), unit.database);
        if let Touched::Keys(keys) = &mut touched {
            // Slots may have left the lane since it was held.
            keys.retain(|key| self.slots.contains(slot_of(&key.1)));
        }
        let owed = self.mends.by_slot.get_mut(&slot).expect("it is watched");
        match owed.mend.judge(&touched, unit.begin) {
            Ok(Verdict::Send) => self.deliver(chunks, slot, unit),
            Ok(Verdict::LeaveOut) => {
                let frames = u64::from(unit.frames);
                self.status.count_many(ErrorCount::CoveredByMend, frames);
                chunks.release(unit.range.chunk);
            }
            Err(_) => {
                chunks.release(unit.range.chunk);
                self.mends.trouble.get_or_insert_with(too_many);
            }
        }
    }

    /// Judges what was held and may be judged.
    fn judge_held(&mut self, chunks: &mut Chunks, slot: Slot) {
        while self.mends.trouble.is_none()
            && let Some(owed) = self.mends.by_slot.get_mut(&slot)
            && let Some((_, unit)) = match Self::is_judged_at_once(owed) {
                true => owed.mend.take_held(),
                false => owed.mend.next_to_judge(),
            }
        {
            self.judge(chunks, slot, unit);
        }
    }

    // What is waited for.

    /// Notes what is on its way for a slot, if that is due, and says whether it is all answered.
    fn is_slot_answered(&mut self, chunks: &Chunks, slot: Slot) -> Result<bool, Fault> {
        let Some(mut owed) = self.mends.by_slot.remove(&slot) else {
            return Ok(false);
        };
        let mut followed = Ok(());
        if std::mem::take(&mut owed.spreads) {
            followed = self.follow_spread(chunks, slot, &mut owed.mend);
        }
        if owed.mend.wants_fence() {
            owed.fence = self.fence();
            owed.last = None;
        }
        let numbers = owed
            .fence
            .iter()
            .all(|&(index, number)| self.nodes[index].writer.answered_to() >= number);
        let clear = !self.parked.contains_key(&slot) && self.serial.target_of(slot).is_none();
        self.mends.by_slot.insert(slot, owed);
        followed.map(|()| numbers && clear)
    }

    /// Everything that is on its way.
    pub(super) fn fence(&self) -> Vec<(usize, u64)> {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .filter(|(_, target)| !target.writer.is_idle())
            .map(|(index, target)| (index, target.writer.next_number()))
            .collect()
    }
}

impl Lane {
    /// Has the target's keys, by database, given the values that the source has: for whoever knows that they differ, or may.
    ///
    /// - Nothing that the lane has not routed yet counts as applied before that is done: the acknowledged offset, and with it
    ///   the records, stay where they are.
    /// - Each key is written once, with the value of an offset that the lane had not received when the source was asked; the
    ///   stream's commands on it before that offset are left out, those behind it follow. Keys that such commands tie to it
    ///   are mended with it.
    /// - [`Lane::keys_noted`] tells when the target itself knows of these keys: from then on a crash does not lose them.
    ///   Before, whoever told the lane must tell it again.
    /// - [`Lane::keys_owed`] is 0 when all values are on their way. They are answered when the acknowledged offset passes what
    ///   is routed then, or the lane is done.
    ///
    /// # Errors
    /// When they are too many.
    pub fn mend(&mut self, keys: Vec<Key>) -> Result<(), Fault> {
        let from = self.routed();
        let mut by_slot: BTreeMap<Slot, Vec<Key>> = BTreeMap::new();
        for key in keys.into_iter().collect::<BTreeSet<Key>>() {
            let slot = self.targets.slot_of(&key.1);
            by_slot.entry(slot).or_default().push(key);
        }
        for (slot, keys) in by_slot {
            self.targets.owe(slot, keys, from, "keys may differ")?;
            if let Some(owed) = self.targets.mends.by_slot.get_mut(&slot) {
                owed.named.get_or_insert(0);
            }
        }
        Ok(())
    }

    /// Whether the target knows of all keys that are owed, by answered watermarks that name them. Never, when the names of a
    /// slot's take more than [`limits::OWED_BYTES`]: whoever relies on it tells fewer at a time.
    pub fn keys_noted(&self) -> bool {
        let mut owed = self.targets.mends.single_mends();
        owed.all(|owed| {
            let keys = owed.mend.keys();
            let named = owed.named.is_some_and(|named| named >= keys.len());
            let short = matches!(checkpoint::Owed::of(keys), checkpoint::Owed::Keys(_));
            named && short && owed.mend.stage() != Stage::Draining
        })
    }

    /// How many keys are known to differ, and not mended yet.
    pub fn keys_owed(&self) -> usize {
        self.targets.mends.keys()
    }

    /// Questions for the source about keys, with their numbers.
    pub fn take_mend_questions(&mut self) -> Vec<(u64, MendQuestion)> {
        std::mem::take(&mut self.targets.mends.questions)
    }

    /// The answer to a question.
    ///
    /// # Errors
    /// When the lane cannot go on.
    pub fn mend_answered(&mut self, ticket: u64, answer: MendAnswer) -> Result<(), Fault> {
        let mends = &mut self.targets.mends;
        mends.open_questions = mends.open_questions.saturating_sub(1);
        let asked = |owed: &Owed| owed.mend.stage() == Stage::Asked(ticket);
        let Some(owed) = mends.by_slot.values_mut().find(|owed| asked(owed)) else {
            return Ok(());
        };
        let problem = match answer {
            MendAnswer::Taken(snapshot) => {
                let ours = self
                    .history
                    .is_some_and(|id| id.as_str() == snapshot.replid);
                // What was received is part of the values, or they are of another time than this.
                if ours && snapshot.offset >= owed.received && owed.mend.answered(ticket, snapshot)
                {
                    return self.advance();
                }
                "the source has just changed its history".to_owned()
            }
            MendAnswer::Later(text) => text,
            MendAnswer::Never(fault) => {
                let text = format!("keys cannot be mended: {}", fault.message);
                return self.or_copy_instead(Err(Fault::new(fault.kind, text)));
            }
        };
        owed.mend.asked_in_vain();
        owed.ask_at_ms = mends.now_ms + limits::MEND_RETRY_MS;
        self.status
            .set_message(&format!("{problem}; keys that differ wait for it"));
        Ok(())
    }

    /// Does what can be done about keys that differ.
    pub(super) fn mend_on(&mut self, tick: Option<u64>) -> Result<(), Fault> {
        // A snapshot will come for all of them.
        if self.start_over {
            return Ok(());
        }
        let mends = &mut self.targets.mends;
        if let Some(now_ms) = tick {
            mends.now_ms = now_ms;
        }
        let result = match mends.trouble.take() {
            Some(fault) => Err(fault),
            None if mends.by_slot.is_empty() => return Ok(()),
            None => {
                let mut slots = mends
                    .by_slot
                    .keys()
                    .copied()
                    .collect::<Vec<_>>()
                    .into_iter();
                slots.try_for_each(|slot| self.mend_slot(slot))
            }
        };
        self.or_copy_instead(result)
    }

    fn mend_slot(&mut self, slot: Slot) -> Result<(), Fault> {
        if self.targets.mends.by_slot[&slot].recopy.is_some() {
            self.targets.judge_held(&mut self.chunks, slot);
            if self.targets.mends.trouble.is_some() || !self.recopy_slot(slot)? {
                return Ok(());
            }
        }
        let stage = |lane: &Self| lane.targets.mends.by_slot[&slot].mend.stage();
        if let Stage::Catching(_) = stage(self) {
            self.targets.judge_held(&mut self.chunks, slot);
            let routed = self.routed();
            let owed = self.targets.mends.by_slot.get_mut(&slot);
            owed.expect("it is there").mend.reached(routed);
        }
        match stage(self) {
            Stage::Draining if self.still_looks(slot) => Ok(()),
            Stage::Draining if self.targets.is_slot_answered(&self.chunks, slot)? => {
                if self.targets.mends.by_slot[&slot].mend.keys().len() == 0 {
                    self.drop_mend(slot);
                    return Ok(());
                }
                match self.name_keys(slot) {
                    true => Ok(()),
                    false => self.ask_for(slot),
                }
            }
            Stage::Covering(until) if self.targets.is_slot_answered(&self.chunks, slot)? => {
                self.write_mend(slot, until)
            }
            _ => Ok(()),
        }
    }

    /// Whether more of what a former process sent of a slot is to come.
    fn still_looks(&mut self, slot: Slot) -> bool {
        let routed = self.routed();
        let owed = self.targets.mends.by_slot.get_mut(&slot);
        let owed = owed.expect("it is there");
        if owed.passed <= routed {
            owed.passed = Offset::default();
        }
        owed.passed > routed
    }

    /// None of the keys that a former process owed is left to be mended.
    fn drop_mend(&mut self, slot: Slot) {
        let owed = self.targets.mends.by_slot.remove(&slot);
        for unit in owed.expect("it is there").mend.into_held() {
            self.targets.deliver(&mut self.chunks, slot, unit);
        }
    }

    /// Has the slot's watermark name all keys that are owed, if it may stand behind the difference and does not yet. Whether
    /// that was sent. Everything of the slot that was sent is answered.
    fn name_keys(&mut self, slot: Slot) -> bool {
        let routed = self.routed();
        let owed = &self.targets.mends.by_slot[&slot];
        if owed
            .named
            .is_none_or(|named| named >= owed.mend.keys().len())
        {
            return false;
        }
        let from = owed.mend.owed_from();
        // What is built here stands where the lane was, which may be before what a former process sent.
        let held = owed.mend.held().find(|unit| unit.begin < unit.end);
        let until = held.map_or(routed, |unit| unit.begin.min(routed));
        let until = until.max(self.targets.marks.passed_in(slot));
        let names = self.targets.mends.name_owed(slot);
        self.write_watermark(slot, from, until, names);
        true
    }

    /// Asks the source for the values of a slot's keys.
    fn ask_for(&mut self, slot: Slot) -> Result<(), Fault> {
        // Its answer is of a history that the lane may have to leave.
        if !matches!(self.link, SourceLink::Streaming) {
            return Ok(());
        }
        let received = self.received();
        let mends = &mut self.targets.mends;
        let owed = mends.by_slot.get_mut(&slot).expect("it is there");
        if mends.now_ms < owed.ask_at_ms || mends.open_questions >= limits::MEND_QUESTIONS {
            return Ok(());
        }
        let mut keys = Vec::with_capacity(owed.mend.keys().len());
        for (database, name) in owed.mend.keys() {
            let Some(of) = self.config.database_map.only_source_of(*database) else {
                return Err(cannot_mend(format_args!(
                    "'{}' differs, and --db-map merges databases, so that it cannot be told which of the source's it is",
                    name.escape_ascii()
                )));
            };
            keys.push((of, name.clone()));
        }
        mends.ticket += 1;
        mends.open_questions += 1;
        owed.mend.ask(mends.ticket);
        owed.received = received;
        let question = MendQuestion {
            address: self.config.source.address.clone(),
            port: self.config.source.port,
            keys: mend::Question { keys },
        };
        mends.questions.push((mends.ticket, question));
        Ok(())
    }
}
