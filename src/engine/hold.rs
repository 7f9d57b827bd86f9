//! What makes a lane stand still for a moment: removals of all its keys, and commands that only the source knows.
//!
//! A flush in one shard's stream concerns that shard's slots only. Where the target master holds nothing else it is
//! passed on as it came; otherwise the keys of the lane's slots are found with `SCAN` and removed one by one, while
//! later commands wait. Keys that other lanes write meanwhile belong to other slots and are not touched.
//!
//! ```text
//! Waiting -> everything is answered -> Removing -> everything is removed -> Checking -> no slot has moved: done
//!    ^------------------------------ some time later ----------------------------------' some have
//! ```
//!
//! A key that moves from a master which was not flushed yet to one that was would be missed. Whether one may have is
//! found out by a command for every slot on a key that does not exist: only a master that owns the slot, and is not giving
//! it away, executes it.

use super::lane::Lane;
use super::listing::parse_scan;
use super::lookup::{LookupAnswer, LookupQuestion};
use super::options::DatabaseMap;
use crate::checkpoint::is_bookkeeping;
use crate::chunk::Range;
use crate::command::{KeySpec, Kind, SlotOf, SlotOp};
use crate::fault::{Fault, FaultKind};
use crate::limits;
use crate::position::Offset;
use crate::resp::{push_command, scan};
use crate::slot::{SLOT_COUNT, Slot, SlotSet, shortest_tag, slot_of};
use crate::target::{Form, Guard, Unit};

/// Why the lane routes nothing at present.
#[derive(Debug)]
pub(super) enum Hold {
    /// A question is on its way to the source.
    Lookup { begin: Offset },
    /// A flush waits until everything before it is answered, or is under way.
    Flush(Flush),
}

#[derive(Debug)]
pub(super) struct Flush {
    begin: Offset,
    kind: Kind,
    /// The command as it came.
    bytes: Vec<u8>,
    database: Option<u32>,
    stage: Stage,
    /// [`super::targets::Targets::changes`] when the removal began, and of what slots.
    changes: u64,
    slots: SlotSet,
}

#[derive(Debug)]
enum Stage {
    /// For answers to everything before, and until that time of a tick, if there is one.
    Waiting { until_ms: u64 },
    /// Removals still to be made key by key.
    Removing(Vec<Purge>),
    /// Whether the slots have stayed where they were.
    Checking,
}

#[derive(Debug)]
struct Purge {
    target: usize,
    database: u32,
    slots: SlotSet,
    cursor: Vec<u8>,
    asked: bool,
}

impl Hold {
    pub fn flush(
        begin: Offset,
        kind: Kind,
        bytes: Vec<u8>,
        database: Option<u32>,
    ) -> Result<Self, Fault> {
        Ok(Self::Flush(Flush {
            begin,
            kind,
            bytes,
            database,
            stage: Stage::Waiting { until_ms: 0 },
            changes: 0,
            slots: SlotSet::new(),
        }))
    }

    /// These slots are another lane's from now on: their keys must not be removed any more.
    pub fn leave(&mut self, gone: &SlotSet) {
        let Self::Flush(flush) = self else { return };
        flush.slots = flush.slots.difference(gone);
        if let Stage::Removing(purges) = &mut flush.stage {
            for purge in purges {
                purge.slots = purge.slots.difference(gone);
            }
        }
    }

    /// Offset before the command that made the lane stand still.
    pub fn begin(&self) -> Offset {
        match self {
            Self::Lookup { begin } => *begin,
            Self::Flush(flush) => flush.begin,
        }
    }
}

impl Lane {
    /// Does what can be done about what the lane waits for.
    pub(super) fn hold_on(&mut self, tick: Option<u64>) -> Result<(), Fault> {
        match self.hold.take() {
            None => Ok(()),
            Some(Hold::Lookup { begin }) => {
                self.hold = Some(Hold::Lookup { begin });
                Ok(())
            }
            Some(Hold::Flush(flush)) => self.flush_on(flush, tick),
        }
    }

    fn flush_on(&mut self, mut flush: Flush, tick: Option<u64>) -> Result<(), Fault> {
        if std::mem::take(&mut self.targets.flush_displaced) {
            flush.stage = Stage::Waiting { until_ms: 0 };
        }
        let idle = self.targets.is_idle();
        match &mut flush.stage {
            Stage::Waiting { until_ms } => {
                if idle && (*until_ms == 0 || tick.is_some_and(|now_ms| now_ms >= *until_ms)) {
                    flush.changes = self.targets.changes;
                    flush.stage = Stage::Removing(self.plan_flush(&mut flush)?);
                    return self.flush_on(flush, tick);
                }
            }
            Stage::Removing(purges) => {
                let mut purges = std::mem::take(purges);
                if !self.purge_on(flush.begin, &mut purges)? {
                    flush.stage = Stage::Waiting { until_ms: 0 };
                } else if purges.is_empty() && self.targets.is_idle() {
                    // A flush that is refused and tried again must not remove what comes after it.
                    if self.targets.is_single() {
                        return Ok(());
                    }
                    self.check_places(flush.begin, &flush.slots);
                    flush.stage = Stage::Checking;
                } else {
                    flush.stage = Stage::Removing(purges);
                }
            }
            Stage::Checking if idle => {
                if self.targets.changes == flush.changes {
                    return Ok(());
                }
                if let Some(now_ms) = tick {
                    self.targets.hint = true;
                    flush.stage = Stage::Waiting {
                        until_ms: now_ms + limits::FLUSH_AGAIN_MS,
                    };
                }
            }
            Stage::Checking => {}
        }
        self.hold = Some(Hold::Flush(flush));
        Ok(())
    }

    /// Has each slot's owner execute something on a key that does not exist: see the module's documentation.
    fn check_places(&mut self, at: Offset, slots: &SlotSet) {
        for slot in slots.iter() {
            let key = format!("{{{}}}slotstream", shortest_tag(slot));
            let chunks = &mut self.chunks;
            self.targets.stage(chunks, slot, at, 0, |out| {
                push_command(out, &[b"UNLINK", key.as_bytes()]);
                1
            });
        }
    }

    /// Goes on with removals key by key; whether they mean what they did when they were planned.
    fn purge_on(&mut self, at: Offset, purges: &mut Vec<Purge>) -> Result<bool, Fault> {
        if !self.take_answers(at, purges)? {
            return Ok(false);
        }
        if let Some(purge) = purges.first_mut()
            && !purge.asked
            && self.targets.is_idle()
        {
            purge.asked = true;
            let cursor = purge.cursor.clone();
            self.ask(purge.target, purge.database, at, &cursor);
        }
        Ok(true)
    }

    /// Passes the flush on where that is exact, and lists what must be removed key by key.
    fn plan_flush(&mut self, flush: &mut Flush) -> Result<Vec<Purge>, Fault> {
        let mut purges = Vec::new();
        // Redirects may have told of owners, and what was asked before was about something else.
        self.targets.mark_needed();
        self.targets.answers.clear();
        let mut slots = self.flushed_slots(flush)?;
        if slots.is_empty() {
            return Ok(purges);
        }
        // There it is applied already, and so is what came after it.
        for slot in self.targets.marks.ahead_of(flush.begin) {
            slots.remove(slot);
        }
        self.targets.mends.flushed(|(database, key)| {
            let all = flush.kind == Kind::FlushAll || flush.database == Some(*database);
            all && slots.contains(crate::slot::slot_of(key))
        });
        let plain = self.config.database_map == DatabaseMap::default();
        let whole = slots == self.config.slots;
        let needed: Vec<usize> = (0..self.targets.len())
            .filter(|&index| self.targets.nodes[index].needed)
            .collect();
        let databases: Vec<u32> = match (flush.kind, flush.database) {
            (Kind::FlushAll, _) if !self.targets.is_single() => vec![0],
            (Kind::FlushAll, _) => self.router.used_databases.iter().copied().collect(),
            (_, database) => database.into_iter().collect(),
        };
        for target in needed {
            let alone = whole && self.owns_only(target, &slots);
            let as_it_came = alone && (plain || flush.kind == Kind::FlushDb);
            if as_it_came && matches!(flush.kind, Kind::FlushAll | Kind::FlushDb) {
                if flush.kind == Kind::FlushAll || flush.database.unwrap_or(0) == 0 {
                    self.targets.forget_watermarks(target);
                }
                let bytes = flush.bytes.clone();
                self.push_built(
                    target,
                    flush.database.unwrap_or(0),
                    flush.begin,
                    Form::Command,
                    |out| {
                        out.extend_from_slice(&bytes);
                        1
                    },
                );
                self.write_record_again(target);
                continue;
            }
            for &database in &databases {
                if alone {
                    if database == 0 {
                        self.targets.forget_watermarks(target);
                    }
                    self.push_built(target, database, flush.begin, Form::Command, |out| {
                        push_command(out, &[b"FLUSHDB"]);
                        1
                    });
                    self.write_record_again(target);
                    continue;
                }
                purges.push(Purge {
                    target,
                    database,
                    slots: slots.clone(),
                    cursor: b"0".to_vec(),
                    asked: false,
                });
            }
        }
        flush.slots = slots;
        Ok(purges)
    }

    /// The slots whose keys go.
    fn flushed_slots(&self, flush: &Flush) -> Result<SlotSet, Fault> {
        let ranged = match flush.kind {
            Kind::Slots(SlotOp::FlushSlot) => Some(2),
            Kind::Slots(SlotOp::SlotFlush) => Some(1),
            _ => None,
        };
        let Some(first) = ranged else {
            return Ok(self.config.slots.clone());
        };
        let frame = scan(&flush.bytes).ok().flatten().expect("scanned before");
        let number = |arg: &[u8]| -> Option<Slot> {
            let slot: Slot = std::str::from_utf8(arg).ok()?.parse().ok()?;
            (usize::from(slot) < SLOT_COUNT).then_some(slot)
        };
        let numbers: Vec<Slot> = frame.args().skip(first).map_while(number).collect();
        let mut slots = SlotSet::new();
        if first == 2 {
            if let Some(&slot) = numbers.first() {
                slots.insert(slot);
            }
        } else {
            for pair in numbers.chunks_exact(2).filter(|pair| pair[0] <= pair[1]) {
                slots.insert_range(pair[0], pair[1]);
            }
        }
        Ok(slots.intersection(&self.config.slots))
    }

    /// Whether a target master holds keys of these slots only.
    fn owns_only(&self, target: usize, slots: &SlotSet) -> bool {
        if self.targets.is_single() {
            return slots.len() == SLOT_COUNT;
        }
        let id = &self.targets.nodes[target].node.id;
        let topology = &self.targets.topology;
        topology
            .shard_by_id(id)
            .is_some_and(|shard| shard.slots.is_subset(slots))
    }

    fn ask(&mut self, target: usize, database: u32, at: Offset, cursor: &[u8]) {
        self.push_built(target, database, at, Form::Question, |out| {
            push_command(out, &[b"SCAN", cursor, b"COUNT", limits::PURGE_SCAN_COUNT]);
            1
        });
    }

    /// Builds commands, or a question, for one connection.
    pub(super) fn push_built(
        &mut self,
        target: usize,
        database: u32,
        at: Offset,
        form: Form,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
    ) {
        let range = Range {
            chunk: super::targets::staging_chunk(&mut self.chunks, &mut self.targets.staging),
            start: 0,
            end: 0,
        };
        let like = Unit {
            range,
            form,
            frames: 0,
            begin: at,
            end: at,
            database,
            asking: false,
            again: false,
            guard: Guard::None,
        };
        let unit = self.targets.build(&mut self.chunks, form, like, write);
        self.targets.push(&mut self.chunks, target, unit);
    }

    /// Removes the keys that `SCAN` has told; `false` if the master that was asked is gone.
    fn take_answers(&mut self, at: Offset, purges: &mut Vec<Purge>) -> Result<bool, Fault> {
        let Some(purge) = purges.first_mut() else {
            return Ok(true);
        };
        // One question is asked at a time.
        let Some((target, answer)) = self.targets.answers.pop() else {
            return Ok(true);
        };
        purge.asked = false;
        if target != purge.target {
            // Another got the question: its slots are elsewhere now.
            return Ok(false);
        }
        let Some(page) = parse_scan(&answer)? else {
            return Ok(true);
        };
        let slots = &purge.slots;
        let doomed: Vec<Vec<u8>> = page
            .keys
            .into_iter()
            .filter(|key| slots.contains(slot_of(key)) && !is_bookkeeping(key))
            .collect();
        purge.cursor = page.cursor;
        let (target, database) = (purge.target, purge.database);
        if !doomed.is_empty() {
            self.push_built(target, database, at, Form::Command, |out| {
                for key in &doomed {
                    push_command(out, &[b"UNLINK", key]);
                }
                doomed.len()
            });
        }
        if purge.cursor == b"0" {
            purges.remove(0);
        }
        Ok(true)
    }

    /// Takes the source's answer to a question over.
    pub(super) fn answered(&mut self, answer: LookupAnswer) -> Result<(), Fault> {
        let Some(Hold::Lookup { .. }) = self.hold else {
            return Ok(());
        };
        if let LookupAnswer::Keys(keys) = &answer {
            self.meet_told_keys(keys);
        }
        let frame = scan(self.intake.rest(&self.chunks)).ok().flatten();
        let frame = frame.expect("the command that was asked about stands at the cursor");
        match answer {
            LookupAnswer::Positions {
                first,
                last,
                step,
                movable,
                ..
            } => {
                let keys = KeySpec::from_command_info(first, last, step, movable);
                let verb = frame.verb().to_vec();
                self.targets
                    .learned
                    .learn(&verb, keys)
                    .map_err(|full| Fault::new(FaultKind::UnknownCommand, full.to_string()))?;
            }
            LookupAnswer::Keys(keys) => {
                let mut slots = keys.iter().map(|key| self.targets.slot_of(key));
                let first = slots.next();
                let slot = match first {
                    None => SlotOf::None,
                    Some(slot) if slots.all(|other| other == slot) => SlotOf::One(slot),
                    Some(_) => SlotOf::Several,
                };
                self.router.told = Some((self.scanned, slot));
                if let SlotOf::One(slot) = slot {
                    let open = self.progress().acknowledged;
                    self.targets.told = self.targets.told.split_off(&open);
                    self.targets.told.insert(self.scanned, slot);
                }
                let verb = frame.verb().to_vec();
                if crate::command::find(&frame).is_none()
                    && self.targets.learned.get(&verb).is_none()
                {
                    self.targets
                        .learned
                        .learn(&verb, KeySpec::AskSource)
                        .map_err(|full| Fault::new(FaultKind::UnknownCommand, full.to_string()))?;
                }
            }
            LookupAnswer::Unknown(text) => {
                return Err(Fault::new(
                    FaultKind::UnknownCommand,
                    format!(
                        "at offset {}: {} is unknown to this program, and the source cannot tell its keys ({text}); a newer version may know it",
                        self.scanned,
                        crate::command::describe(&frame),
                    ),
                ));
            }
            LookupAnswer::Failed(fault) => {
                self.status.set_message(&fault.message);
                self.question = Some(LookupQuestion::Positions {
                    verb: frame.verb().to_vec(),
                });
                return Ok(());
            }
        }
        self.hold = None;
        Ok(())
    }
}
