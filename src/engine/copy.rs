//! The snapshot: decoded as it arrives, written to the target key by key.
//!
//! ```text
//! buffer  [ decoded | not decoded yet |   free   ]     its bytes become RESTORE commands in the staging chunks
//!                   ^ start           ^ filled
//! ```
//!
//! Decoding pauses while the lane's buffers are full of commands without an answer, and goes on as answers come:
//! so a snapshot of any size passes in bounded memory, at the pace of the slowest target.
//!
//! With `--mark` the target has writers of its own. What a first copy finds there stays: whole values are restored without
//! `REPLACE`, others are built under a key of ours and renamed where the name is free. Later copies write over what is there, since
//! most of that is their own of before. Keys with a lease came from the other direction, and are never copied. Keys of this program
//! are no data in any snapshot.

use std::sync::atomic::Ordering::Relaxed;

use super::lane::{Lane, LaneConfig, SourceLink};
use super::lease::{GRACE_MS, Leases};
use super::options::Destination;
use super::status::{ErrorCount, LaneStatus};
use super::stream::Router;
use super::sweep::Sweep;
use super::targets::Targets;
use crate::checkpoint::{is_bookkeeping, part_key};
use crate::chunk::Chunks;
use crate::command::rewrite::{
    Deadlines, Features, Lack, lack_behind, with_altered_deadlines, without_lost_deadlines,
};
use crate::fault::{Fault, FaultKind};
use crate::limits;
use crate::position::Offset;
use crate::rdb::{
    Decoder, Item, LeftOut, Options, Part, Problem, RdbError, TargetFormat, Unsupported, Value,
};
use crate::resp::push_command;
use crate::slot::{Slot, SlotSet, slot_of};
use crate::source::Framing;

/// A snapshot under way.
pub(super) struct Copy {
    framing: Framing,
    /// Offset of the stream at which it was taken.
    at: Offset,
    format: TargetFormat,
    decoder: Decoder,
    buffer: Vec<u8>,
    start: usize,
    filled: usize,
    /// The decoder has come to the end; only a diskless snapshot's mark may be missing.
    decoded: bool,
    /// It had no keys so far.
    is_empty: bool,
    keys: u64,
    /// Of the hash that arrives, deadlines of fields were left out.
    lost_deadlines: bool,
    /// Deadlines of fields as they are written.
    field_deadlines: Vec<u64>,
}

impl Copy {
    /// `early`: bytes of it that came together with the handshake.
    pub fn new(framing: Framing, at: Offset, format: TargetFormat, early: &[u8]) -> Self {
        let mut buffer = vec![0; limits::CHUNK_BYTES];
        buffer[..early.len()].copy_from_slice(early);
        Self {
            framing,
            at,
            format,
            decoder: Decoder::new(Options::new(format)),
            buffer,
            start: 0,
            filled: early.len(),
            decoded: false,
            is_empty: true,
            keys: 0,
            lost_deadlines: false,
            field_deadlines: Vec::new(),
        }
    }

    /// Its size, where the source tells.
    pub fn total_bytes(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(bytes) => Some(bytes),
            Framing::Mark(_) => None,
        }
    }

    /// Where to receive into; `None` while enough waits to be decoded.
    pub fn space(&mut self) -> Option<&mut [u8]> {
        let pending = self.filled - self.start;
        if self.buffer.len() - self.filled < limits::MIN_READ_BYTES {
            self.buffer.copy_within(self.start..self.filled, 0);
            self.start = 0;
            self.filled = pending;
        }
        // What the decoder left is less than it needs, so a full buffer is one that is too small for one element; or
        // decoding pauses, and then there is nothing to read for.
        if self.buffer.len() - self.filled < limits::MIN_READ_BYTES {
            return None;
        }
        Some(&mut self.buffer[self.filled..])
    }

    pub fn received(&mut self, bytes: usize) {
        self.filled += bytes;
    }

    /// Makes room for an element that is larger than the buffer.
    fn grow_if_full(&mut self) {
        let pending = self.filled - self.start;
        if pending + limits::MIN_READ_BYTES > self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
    }

    /// Checks what follows the decoded snapshot; `true` when it is complete.
    fn is_complete(&mut self) -> Result<bool, Fault> {
        match self.framing {
            Framing::Length(announced) => {
                let decoded = self.decoder.consumed_bytes();
                if decoded != announced {
                    return Err(Fault::new(
                        FaultKind::SnapshotCorrupt,
                        format!(
                            "the snapshot ends after {decoded} bytes, but {announced} were announced"
                        ),
                    ));
                }
                Ok(true)
            }
            Framing::Mark(mark) => {
                let rest = &self.buffer[self.start..self.filled];
                let Some(end) = rest.get(..mark.len()) else {
                    return Ok(false);
                };
                if end != mark {
                    return Err(Fault::new(
                        FaultKind::SnapshotCorrupt,
                        "the snapshot is not followed by the mark that was announced",
                    ));
                }
                self.start += mark.len();
                Ok(true)
            }
        }
    }
}

impl Lane {
    /// Decodes and sends as much as there is and as buffers allow; starts the stream behind the last byte.
    pub(super) fn copy_on(&mut self) -> Result<(), Fault> {
        let SourceLink::Copying(copy) = &mut self.link else {
            return Ok(());
        };
        // Taken out of the lane meanwhile: items borrow its buffer while the rest of the lane works on them.
        let mut buffer = std::mem::take(&mut copy.buffer);
        let result = self.copy_items(&mut buffer);
        let SourceLink::Copying(copy) = &mut self.link else {
            unreachable!("the link does not change while items are sent");
        };
        copy.buffer = buffer;
        result?;
        let done = copy.decoder.consumed_bytes();
        self.status.snapshot_bytes_done.store(done, Relaxed);
        self.status.snapshot_keys.store(copy.keys, Relaxed);
        if copy.decoded && copy.is_complete()? {
            let early = copy.buffer[copy.start..copy.filled].to_vec();
            self.start_sweep();
            self.start_streaming(&early);
        } else if !is_full(&self.chunks, &self.targets) {
            copy.grow_if_full();
        }
        Ok(())
    }

    fn copy_items(&mut self, buffer: &mut [u8]) -> Result<(), Fault> {
        let SourceLink::Copying(copy) = &mut self.link else {
            return Ok(());
        };
        if copy.decoded {
            return Ok(());
        }
        let near_ms = self.rebuild.deadlines.fields_near_until();
        copy.decoder.set_fields_near_until(near_ms);
        let mut reader = copy.decoder.read(&buffer[copy.start..copy.filled]);
        let mut writing = Writing {
            at: copy.at,
            format: copy.format,
            config: &self.config,
            status: &self.status,
            router: &mut self.router,
            chunks: &mut self.chunks,
            targets: &mut self.targets,
            sweep: self.sweep.as_deref_mut(),
            to_copy: &self.motion.to_copy,
            unclaimed: &mut self.motion.unclaimed,
            deadlines: &mut self.rebuild.deadlines,
            lost_deadlines: &mut copy.lost_deadlines,
            field_deadlines: &mut copy.field_deadlines,
        };
        while !is_full(writing.chunks, writing.targets) {
            let item = reader.next().map_err(snapshot_fault)?;
            let of_key = matches!(item, Item::Value(_) | Item::Part(_) | Item::Unsupported(_));
            copy.is_empty &= !of_key;
            match item {
                Item::NeedMore => break,
                Item::End { .. } => {
                    self.config.check_emptiness(copy.is_empty)?;
                    copy.decoded = true;
                    break;
                }
                Item::Value(value) => {
                    copy.keys += 1;
                    writing.value(value)?;
                }
                Item::Part(part) => {
                    copy.keys += u64::from(part.is_last);
                    writing.part(part)?;
                }
                Item::Function { code } => writing.function(code)?,
                Item::SizeHint { keys, .. } => {
                    if let Some(sweep) = &mut writing.sweep {
                        sweep.expect(keys);
                    }
                }
                Item::Header { .. }
                | Item::Aux { .. }
                | Item::SelectDatabase(_)
                | Item::SlotHint { .. }
                | Item::SlotImport => {}
                Item::Unsupported(Unsupported { key, problem, .. }) => {
                    self.config.leave_out_of_key(&self.status, problem, key)?;
                }
                Item::LeftOut(what) => self.config.leave_out_beside(&self.status, what)?,
            }
        }
        copy.start += reader.consumed_bytes();
        Ok(())
    }
}

/// What is needed to write items of a snapshot, while the decoder that lends them is part of the same lane.
struct Writing<'a> {
    /// Offset of the stream at which the snapshot was taken.
    at: Offset,
    format: TargetFormat,
    config: &'a LaneConfig,
    status: &'a LaneStatus,
    router: &'a mut Router,
    chunks: &'a mut Chunks,
    targets: &'a mut Targets,
    sweep: Option<&'a mut Sweep>,
    /// Slots that are copied by themselves later.
    to_copy: &'a SlotSet,
    /// Slots of which older records may speak.
    unclaimed: &'a mut SlotSet,
    deadlines: &'a mut Leases,
    lost_deadlines: &'a mut bool,
    field_deadlines: &'a mut Vec<u64>,
}

impl Writing<'_> {
    #[inline]
    fn value(&mut self, mut value: Value<'_>) -> Result<(), Fault> {
        if self.is_of_others(value.key) {
            return Ok(());
        }
        let Some(database) = self.database(value.database)? else {
            self.status.count(ErrorCount::DroppedDatabase);
            return Ok(());
        };
        if let Some(sweep) = &mut self.sweep {
            sweep.note(database, value.key);
        }
        if self.config.mark && value.expire_at_ms.is_some_and(|at_ms| at_ms >= GRACE_MS) {
            return Ok(());
        }
        value.expire_at_ms = value
            .expire_at_ms
            .map(|at_ms| self.deadlines.of_key(value.key, at_ms));
        let slot = self.slot_of(value.key);
        let keeps = self.keeps_existing();
        self.targets
            .stage(self.chunks, slot, self.at, database, |out| match keeps {
                true => value.write_restore_new(out),
                false => value.write_restore(out),
            });
        Ok(())
    }

    fn part(&mut self, part: Part<'_>) -> Result<(), Fault> {
        if self.is_of_others(part.key) {
            return Ok(());
        }
        if self.config.mark && part.expire_at_ms.is_some_and(|at_ms| at_ms >= GRACE_MS) {
            return Ok(());
        }
        let (mut part, lost) = without_lost_deadlines(part, self.format);
        // Once for each hash, however many parts it has.
        if lost && !*self.lost_deadlines {
            let what = || format!("the expiry of fields of '{}'", part.key.escape_ascii());
            self.config.leave_out(self.status, Lack::FieldTtl, what)?;
        }
        *self.lost_deadlines = !part.is_last && (lost || *self.lost_deadlines);
        let Some(database) = self.database(part.database)? else {
            if part.is_last {
                self.status.count(ErrorCount::DroppedDatabase);
            }
            return Ok(());
        };
        if part.is_first
            && let Some(sweep) = &mut self.sweep
        {
            sweep.note(database, part.key);
        }
        part.expire_at_ms = part
            .expire_at_ms
            .filter(|_| part.is_last)
            .map(|at_ms| self.deadlines.of_key(part.key, at_ms));
        let (slot, name) = (self.slot_of(part.key), part.key);
        let kept = self.keeps_existing().then(|| {
            let slot = self.targets.marks.place_of(slot);
            part_key(&self.targets.marks.link, slot)
        });
        let part = with_altered_deadlines(part, self.deadlines, self.field_deadlines);
        let part = Part {
            key: kept.as_deref().unwrap_or(name),
            ..part
        };
        let mut written = Ok(0);
        let format = &self.format;
        self.targets
            .stage(self.chunks, slot, self.at, database, |out| {
                written = part.write_commands(out, format);
                let count = *written.as_ref().unwrap_or(&0);
                match &kept {
                    Some(key) if part.is_last && count > 0 => {
                        push_command(out, &[b"RENAMENX", key, name]);
                        push_command(out, &[b"UNLINK", key]);
                        count + 2
                    }
                    _ => count,
                }
            });
        match written {
            Ok(_) => Ok(()),
            Err(problem) => self.config.leave_out_of_key(self.status, problem, name),
        }
    }

    /// Where a key goes. Before the first of a slot, what older records say of the slot is made void.
    #[inline]
    fn slot_of(&mut self, key: &[u8]) -> Slot {
        let slot = self.targets.slot_of(key);
        if self.unclaimed.remove(slot) {
            let generation = self.targets.marks.generation;
            self.targets
                .void_older(self.chunks, slot, generation, self.at);
        }
        slot
    }

    /// Whether keys of the target stay that have the name of one of the source: of the first copy of one of two directions. Only
    /// who writes these keys knows which is the newer value, and what the other direction has brought here is mostly older. What
    /// broke off is made again over what is there.
    fn keeps_existing(&self) -> bool {
        let first = self.config.first_copy && self.status.full_syncs.load(Relaxed) == 1;
        first && self.config.mark
    }

    /// Whether a key is no data, or is in a slot that the lane does not write, or that is copied by itself later.
    #[inline]
    fn is_of_others(&self, key: &[u8]) -> bool {
        if key.first() == Some(&b'{') && is_bookkeeping(key) {
            return true;
        }
        let is_ours = |slot| self.config.slots.contains(slot) && !self.to_copy.contains(slot);
        self.config.source_has_slots && !is_ours(slot_of(key))
    }

    fn function(&mut self, code: &[u8]) -> Result<(), Fault> {
        if self.config.lacking.meets(Features::REDIS_7_0) {
            let what = || "a function library".to_owned();
            return self.config.leave_out(self.status, Lack::Functions, what);
        }
        let ours = |node: &str| self.config.functions.claim(self.status.id, node, code);
        self.targets.broadcast(self.chunks, self.at, ours, |out| {
            push_command(out, &[b"FUNCTION", b"LOAD", b"REPLACE", code]);
        });
        Ok(())
    }

    /// The target's database for one of the source, `None` if its keys are dropped.
    #[inline]
    fn database(&mut self, database: u32) -> Result<Option<u32>, Fault> {
        let mapped = self.router.target_of(self.config, self.targets, database)?;
        if let Some(database) = mapped {
            self.deadlines.database = database;
        }
        Ok(mapped)
    }
}

impl LaneConfig {
    /// A master without replicas that is restarted without its data has an empty snapshot: taken for what it is, the copy
    /// would lose all keys as well.
    fn check_emptiness(&mut self, is_empty: bool) -> Result<(), Fault> {
        if is_empty && self.held && !self.accept_empty_source {
            let text = format!(
                "source {} has no keys any more, although it had some: it may have been restarted without its data. The target \
                 keeps what it has; bring the source's data back, or start with --accept-empty-source to go on with none",
                self.source.name()
            );
            return Err(Fault::new(FaultKind::SourceEmpty, text));
        }
        self.held = !is_empty;
        Ok(())
    }

    /// A key, or a piece of one, that the target cannot hold: left out and counted, or a fault.
    pub(super) fn leave_out_of_key(
        &self,
        status: &LaneStatus,
        problem: Problem,
        key: &[u8],
    ) -> Result<(), Fault> {
        if self.leave_out {
            let what = || format!("key '{}' ({problem})", key.escape_ascii());
            return self.leave_out(status, lack_behind(problem), what);
        }
        if !self.skip_unknown || !matches!(problem, Problem::TargetLacksModule(_)) {
            return Err(self::unsupported(problem, key));
        }
        status.count(ErrorCount::SkippedModule);
        status.set_message(&format!(
            "key '{}' is left out (--skip-unknown): {problem}",
            key.escape_ascii()
        ));
        Ok(())
    }

    /// The same for what stands beside keys. Servers have no command to load it.
    pub(super) fn leave_out_beside(&self, status: &LaneStatus, what: LeftOut) -> Result<(), Fault> {
        if self.leave_out {
            return self.leave_out(status, Lack::Modules, || what.to_string());
        }
        if !self.skip_unknown {
            return Err(Fault::new(
                FaultKind::SnapshotUnsupported,
                format!(
                    "the source's snapshot holds {what}, which no command can write; --skip-unknown leaves it out"
                ),
            ));
        }
        status.count(ErrorCount::SkippedModule);
        status.set_message(&format!("left out (--skip-unknown): {what}"));
        Ok(())
    }
}

/// Whether so much waits for answers that no more should be built.
pub(super) fn is_full(chunks: &Chunks, targets: &Targets) -> bool {
    chunks.in_use() > limits::LANE_BUFFER_BYTES && !targets.is_idle()
}

fn snapshot_fault(error: RdbError) -> Fault {
    Fault::new(
        FaultKind::SnapshotCorrupt,
        format!(
            "the snapshot cannot be read: {error}; if it comes again, check the source's memory and disk"
        ),
    )
}

/// What a user can do about a key that the target cannot hold; the end of a message.
pub fn remedy(problem: Problem) -> &'static str {
    match problem {
        Problem::TargetLacksModule(_) => {
            "; load the module there, or use --skip-unknown to leave such keys out"
        }
        _ => "; use a newer target, or --on-unsupported drop to leave such things out",
    }
}

fn unsupported(problem: Problem, key: &[u8]) -> Fault {
    let fix = remedy(problem);
    Fault::new(
        FaultKind::SnapshotUnsupported,
        format!(
            "key '{}' cannot be written to the target: {problem}{fix}",
            key.escape_ascii()
        ),
    )
}

impl Router {
    /// The target database for one of the source, `None` if it is dropped.
    pub(super) fn target_of(
        &mut self,
        config: &LaneConfig,
        targets: &Targets,
        database: u32,
    ) -> Result<Option<u32>, Fault> {
        if let Some((known, destination)) = self.last_mapped
            && known == database
        {
            return Ok(destination);
        }
        let kind = targets.topology.kind;
        let destination = match config.database_map.destination(database, kind)? {
            Destination::Database(to) => {
                self.used_databases.insert(to);
                Some(to)
            }
            Destination::Drop => None,
        };
        self.last_mapped = Some((database, destination));
        Ok(destination)
    }
}
