//! What makes a lane stand still for a moment: removals of all its keys, and commands that only the source knows.
//!
//! A flush in one shard's stream concerns that shard's slots only. Where the target master holds nothing else it is
//! passed on as it came; otherwise the keys of the lane's slots are found with `SCAN` and removed one by one, while
//! later commands wait. Keys that other lanes write meanwhile belong to other slots and are not touched.

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
use crate::slot::{SLOT_COUNT, Slot, SlotSet};
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
    /// Removals still to be made: connection, database, slots.
    purges: Vec<Purge>,
    started: bool,
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
            purges: Vec::new(),
            started: false,
        }))
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
    pub(super) fn hold_on(&mut self) -> Result<(), Fault> {
        match self.hold.take() {
            None => Ok(()),
            Some(Hold::Lookup { begin }) => {
                self.hold = Some(Hold::Lookup { begin });
                Ok(())
            }
            Some(Hold::Flush(flush)) => self.flush_on(flush),
        }
    }

    fn flush_on(&mut self, mut flush: Flush) -> Result<(), Fault> {
        if std::mem::take(&mut self.targets.flush_displaced) {
            flush.purges.clear();
            flush.started = false;
        }
        if !flush.started {
            if !self.targets.is_idle() {
                self.hold = Some(Hold::Flush(flush));
                return Ok(());
            }
            flush.started = true;
            self.plan_flush(&mut flush)?;
        }
        self.take_answers(&mut flush)?;
        let Some(purge) = flush.purges.first_mut() else {
            // A flush that is refused and tried again must not remove what comes after it.
            if !flush.started || !self.targets.is_idle() {
                self.hold = Some(Hold::Flush(flush));
            }
            return Ok(());
        };
        if !purge.asked && self.targets.is_idle() {
            purge.asked = true;
            let cursor = purge.cursor.clone();
            let (target, database) = (purge.target, purge.database);
            self.ask(target, database, flush.begin, &cursor);
        }
        self.hold = Some(Hold::Flush(flush));
        Ok(())
    }

    /// Passes the flush on where that is exact, and lists what must be removed key by key.
    fn plan_flush(&mut self, flush: &mut Flush) -> Result<(), Fault> {
        let mut slots = self.flushed_slots(flush)?;
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
                    continue;
                }
                flush.purges.push(Purge {
                    target,
                    database,
                    slots: slots.clone(),
                    cursor: b"0".to_vec(),
                    asked: false,
                });
            }
        }
        Ok(())
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

    /// Removes the keys that `SCAN` has told.
    fn take_answers(&mut self, flush: &mut Flush) -> Result<(), Fault> {
        let Some(purge) = flush.purges.first_mut() else {
            return Ok(());
        };
        // One question is asked at a time.
        let Some((target, answer)) = self.targets.answers.pop() else {
            return Ok(());
        };
        purge.asked = false;
        if target != purge.target {
            // The master that was asked is gone, and another got the question: its slots are elsewhere now.
            flush.purges.clear();
            flush.started = false;
            return Ok(());
        }
        let Some(page) = parse_scan(&answer)? else {
            return Ok(());
        };
        let slots = &purge.slots;
        let of_slots =
            |key: &Vec<u8>| slots.contains(crate::slot::slot_of(key)) && !is_bookkeeping(key);
        let doomed: Vec<Vec<u8>> = page.keys.into_iter().filter(of_slots).collect();
        purge.cursor = page.cursor;
        let (target, database) = (purge.target, purge.database);
        if !doomed.is_empty() {
            self.push_built(target, database, flush.begin, Form::Command, |out| {
                for key in &doomed {
                    push_command(out, &[b"UNLINK", key]);
                }
                doomed.len()
            });
        }
        if purge.cursor == b"0" {
            flush.purges.remove(0);
        }
        Ok(())
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
