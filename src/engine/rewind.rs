//! A source that has lost what the lane had handed over: it failed over to a replica that lagged, or was restarted from its own
//! snapshot.
//!
//! ```text
//! what was handed over   ... x | k  a  k  b
//!                              ^ shared: both histories are the same up to here
//! what the source has    ... x | a  c ...
//! ```
//!
//! The target may hold what was done to `k`, `a` and `b` behind the shared offset, so these keys get the values that the source
//! has ([`crate::mend`]), and all others have them already:
//!
//! 1. The keys are read from the stream, of which the intake keeps the last [`limits::KEPT_STREAM_BYTES`].
//! 2. What is on its way is answered, or what of it may come again would come after its key was mended.
//! 3. The lane goes back to the shared offset, in a generation of its own: watermarks of the former one say nothing about the
//!    stream from here on. Its records say that there is nothing to go on from.
//! 4. The stream goes on, the keys are mended meanwhile. Once that is answered the records say how far the lane is.
//!
//! A snapshot comes instead where the keys cannot be told: the stream is not kept as far back, or holds what concerns more keys
//! than it names; another process handed it over; the copy is not finished; what the values are cannot be asked.
//!
//! Of what a process that died handed over behind the shared offset nobody can tell the keys: the source has lost it, what it has in
//! that place is something else, and a spool that has some of it is not read for this. So the doubt is kept small ([`super::records`]):
//! it reaches to the high-water offset, and no farther than the source's stream came when the next process asked (unless that was lost
//! before it could ask). A shared offset at or behind that needs no snapshot.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::echo::without_echoes;
use super::hold::Hold;
use super::lane::Lane;
use super::options::Destination;
use super::status::ResumeStep;
use super::targets::Targets;
use crate::command::{self, Kind, SlotOp};
use crate::fault::{Fault, FaultKind, Policy};
use crate::limits;
use crate::mend::Key;
use crate::position::Offset;
use crate::resp::{Frame, scan};
use crate::slot::{Slot, slot_of};

/// The way back to where two histories part.
#[derive(Debug)]
pub(super) struct Rewind {
    /// The last offset that both have.
    shared: Offset,
    /// The source's database that is selected there.
    database: u32,
    /// Keys that were written behind it.
    keys: BTreeSet<Key>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// What was handed over is waited for. The source is not asked for more meanwhile.
    Answering,
    /// The keys are owed.
    Mending,
    /// They are on their way: answered when this offset is.
    Writing(Offset),
}

impl Rewind {
    /// Whether the source may be connected to.
    pub fn may_dial(&self) -> bool {
        self.stage != Stage::Answering
    }
}

impl Lane {
    /// The source has lost what it wrote behind `shared`, and the target may have it up to `sent`. Whether the lane can go back
    /// there: else a snapshot must come.
    ///
    /// # Errors
    /// Always: the source is to be asked again, from another offset or for a snapshot, once the fault was passed to
    /// [`Lane::source_lost`].
    pub(super) fn go_back(&mut self, shared: Offset, sent: Offset) -> Result<(), Fault> {
        let lost = format!(
            "the source lost what it had written after offset {shared}, and the target may have it up to {sent}"
        );
        let text = match self.way_back(shared, sent) {
            Ok(rewind) => {
                let text = format!("{lost}: {} keys are to be mended", rewind.keys.len());
                self.forget_unrouted();
                self.rewind = Some(rewind);
                text
            }
            Err(why) => {
                let text = format!("{lost}; everything is copied, since {why}");
                self.copy_instead(&text);
                text
            }
        };
        Err(Fault::new(FaultKind::ConnectionLost, text))
    }

    /// # Errors
    /// Why there is none.
    fn way_back(&mut self, shared: Offset, sent: Offset) -> Result<Rewind, &'static str> {
        let Some(records) = &self.records else {
            return Err("no records are kept");
        };
        if !self.settled || self.sweep.is_some() || self.unswept || self.copied_at > shared {
            return Err("the copy was not finished then");
        }
        if self.rewind.is_some() {
            return Err("it had just lost others");
        }
        let routed = self.routed();
        if sent > routed || matches!(self.hold, Some(Hold::Flush(_))) {
            return Err("it is not known which keys that were");
        }
        let mut rewind = Rewind {
            shared,
            database: records.selected_at(shared),
            keys: self.targets.mends.all_keys(),
            stage: Stage::Answering,
        };
        let mut stream = vec![0; routed.since(shared) as usize];
        let kept = self.intake.copy_out(&self.chunks, shared, &mut stream);
        if kept < stream.len() {
            return Err("these are more than it keeps in mind");
        }
        self.collect_keys(&stream, &mut rewind)?;
        check_number(&self.targets, &rewind.keys)?;
        Ok(rewind)
    }

    /// Adds the keys that these commands of the source wrote.
    fn collect_keys(&self, stream: &[u8], rewind: &mut Rewind) -> Result<(), &'static str> {
        let map = &self.config.database_map;
        let kind = self.targets.topology.kind;
        let mut source = rewind.database;
        // Of what came from the target the source has no better value: the other direction brings it there again.
        let own = match self.config.mark {
            true => Cow::Owned(without_echoes(stream)),
            false => Cow::Borrowed(stream),
        };
        let mut rest = &own[..];
        while let Ok(Some(frame)) = scan(rest) {
            rest = &rest[frame.bytes().len()..];
            let unknown = "what it lost holds a command whose keys are not known";
            let command = command::find(&frame).or_else(|| self.targets.learned.get(frame.verb()));
            match command.ok_or(unknown)?.kind {
                Kind::Select => {
                    source = command::database_of_select(&frame).map_err(|_| unknown)?;
                    continue;
                }
                command_kind if is_of_no_key(command_kind) => continue,
                command_kind if is_of_any_key(command_kind) => {
                    return Err("what it lost concerns more than single keys");
                }
                _ => {}
            }
            let Ok(Destination::Database(database)) = map.destination(source, kind) else {
                continue;
            };
            self.add_keys(&frame, database, &mut rewind.keys)
                .ok_or(unknown)?;
        }
        match rest.is_empty() {
            true => Ok(()),
            false => Err("it is not known where its commands begin"),
        }
    }

    fn add_keys(&self, frame: &Frame<'_>, database: u32, to: &mut BTreeSet<Key>) -> Option<()> {
        let mut keys = Vec::new();
        let swapped = self.targets.touched_by_one(frame, database, &mut keys)?;
        let asked = |(database, _): &Key| self.config.database_map.only_source_of(*database);
        let told = swapped.is_none() && keys.iter().all(|key| asked(key).is_some());
        to.extend(keys);
        told.then_some(())
    }

    /// Does what can be done on the way back.
    pub(super) fn rewind_on(&mut self) {
        let Some(rewind) = &self.rewind else {
            return;
        };
        match rewind.stage {
            Stage::Answering if self.targets.is_answered() => self.stand_at_shared(),
            Stage::Answering => {}
            Stage::Mending if self.targets.mends.keys() == 0 => {
                let routed = self.routed();
                self.rewind.as_mut().expect("it is there").stage = Stage::Writing(routed);
            }
            Stage::Mending => {}
            Stage::Writing(until) if self.progress().acknowledged >= until => {
                let count = rewind.keys.len();
                self.rewind = None;
                self.status
                    .set_message(&format!("{count} keys that the source had lost are mended"));
            }
            Stage::Writing(_) => {}
        }
    }

    /// Everything that the source lost is answered: the lane goes on from where both histories part.
    fn stand_at_shared(&mut self) {
        let rewind = self.rewind.as_mut().expect("it is there");
        rewind.stage = Stage::Mending;
        let (shared, database, keys) = (rewind.shared, rewind.database, rewind.keys.clone());
        // Nothing of what was held back for a mend is applied, be it of other keys in its slot.
        let map = &self.config.database_map;
        let held = self.targets.keys_of_held(&self.chunks);
        let told = |keys: &Vec<Key>| keys.iter().all(|key| map.only_source_of(key.0).is_some());
        let Some(held) = held.filter(told) else {
            return self
                .copy_instead("it is not known to which keys what waited for a mend belongs");
        };
        let mut keys = keys;
        keys.extend(self.targets.mends.all_keys());
        keys.extend(held);
        let mut by_slot: BTreeMap<Slot, Vec<Key>> = BTreeMap::new();
        // Slots that are not the lane's are not its to mend, and those that came to it are copied whole.
        let ours = self.whole_slots();
        for key in keys
            .into_iter()
            .filter(|key| ours.contains(slot_of(&key.1)))
        {
            let slot = self.targets.slot_of(&key.1);
            by_slot.entry(slot).or_default().push(key);
        }
        // Commands that were left out for a key count once it is mended.
        let owed_from = self.targets.mends.begin().unwrap_or(shared).min(shared);
        self.targets.mends.abandon(&mut self.chunks);
        self.begin_records(shared);
        if let Some(records) = &mut self.records {
            records.stand_at(shared, database);
        }
        self.scanned = shared;
        self.copied_at = shared;
        self.intake.begin(&mut self.chunks, shared);
        self.router.go_back(database);
        self.targets.told.clear();
        self.arrivals.cut(shared);
        self.ack_wanted = None;
        for (slot, keys) in by_slot {
            let owed = self
                .targets
                .owe(slot, keys, owed_from, "the source lost writes");
            if let Err(fault) = owed {
                return self.copy_instead(&fault.message);
            }
        }
    }

    /// What cannot be mended on the way back is copied.
    pub(super) fn or_copy_instead(&mut self, result: Result<(), Fault>) -> Result<(), Fault> {
        match result {
            Err(fault) if self.rewind.is_some() && fault.policy() != Policy::Retry => {
                self.copy_instead(&fault.message);
                Err(Fault::new(FaultKind::ConnectionLost, fault.message))
            }
            result => result,
        }
    }

    fn copy_instead(&mut self, why: &str) {
        self.start_over = true;
        self.status.set_resume(ResumeStep::FullCopy, why);
    }
}

/// Commands that change no key.
fn is_of_no_key(kind: Kind) -> bool {
    match kind {
        Kind::Ping | Kind::Replconf | Kind::NoEffect => true,
        Kind::Multi | Kind::Exec | Kind::Discard => true,
        Kind::Publish | Kind::ShardPublish | Kind::Script(_) => true,
        Kind::Slots(op) => matches!(op, SlotOp::SyncSlots | SlotOp::SetSlot),
        _ => false,
    }
}

/// Commands that change more than the keys that they name.
fn is_of_any_key(kind: Kind) -> bool {
    match kind {
        Kind::FlushAll | Kind::FlushDb | Kind::SwapDb => true,
        Kind::Eval | Kind::Function(_) | Kind::Container => true,
        Kind::Slots(op) => op != SlotOp::RestoreAsking,
        _ => false,
    }
}

/// # Errors
/// When so many keys cannot be mended.
fn check_number(targets: &Targets, keys: &BTreeSet<Key>) -> Result<(), &'static str> {
    let mut by_slot: BTreeMap<Slot, usize> = BTreeMap::new();
    for (_, name) in keys {
        *by_slot.entry(targets.slot_of(name)).or_default() += 1;
    }
    let most = by_slot.values().max().copied().unwrap_or_default();
    match keys.len() <= limits::MEND_OWED_KEYS && most <= limits::MEND_KEYS {
        true => Ok(()),
        false => Err("these are too many keys to be mended"),
    }
}
