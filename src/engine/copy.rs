//! The snapshot: decoded as it arrives, written to the target key by key.
//!
//! ```text
//! buffer  [ decoded | not decoded yet |   free   ]     its bytes become RESTORE commands in the staging chunks
//!                   ^ start           ^ filled
//! ```
//!
//! Decoding pauses while the lane's buffers are full of commands without an answer, and goes on as answers come:
//! so a snapshot of any size passes in bounded memory, at the pace of the slowest target.

use std::sync::atomic::Ordering::Relaxed;

use super::lane::{Lane, SourceLink};
use super::options::Destination;
use super::status::{ErrorCount, LaneStatus};
use super::targets::Targets;
use crate::chunk::Chunks;
use crate::command::rewrite::{Deadlines, Features, Lack, lack_behind, without_lost_deadlines};
use crate::fault::{Fault, FaultKind};
use crate::limits;
use crate::position::Offset;
use crate::rdb::{Decoder, Item, LeftOut, Options, Problem, RdbError, TargetFormat, Unsupported};
use crate::resp::push_command;
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
    keys: u64,
    /// Of the hash that arrives, deadlines of fields were left out.
    lost_deadlines: bool,
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
            keys: 0,
            lost_deadlines: false,
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
        let (at, format) = (copy.at, copy.format);
        let mut reader = copy.decoder.read(&buffer[copy.start..copy.filled]);
        let (chunks, targets) = (&mut self.chunks, &mut self.targets);
        while !is_full(chunks, targets) {
            match reader.next().map_err(snapshot_fault)? {
                Item::NeedMore => break,
                Item::End { .. } => {
                    copy.decoded = true;
                    break;
                }
                Item::Value(mut value) => {
                    copy.keys += 1;
                    if let Some(database) =
                        self.router
                            .target_of(&self.config, targets, value.database)?
                    {
                        if let Some(sweep) = &mut self.sweep {
                            sweep.note(database, value.key);
                        }
                        let deadlines = &mut self.rebuild.deadlines;
                        deadlines.database = database;
                        let lease = |at_ms| deadlines.of_key(value.key, at_ms);
                        value.expire_at_ms = value.expire_at_ms.map(lease);
                        let slot = targets.slot_of(value.key);
                        targets.stage(chunks, slot, at, database, |out| value.write_restore(out));
                    } else {
                        self.status.count(ErrorCount::DroppedDatabase);
                    }
                }
                Item::Part(part) => {
                    copy.keys += u64::from(part.is_last);
                    let (mut part, lost) = without_lost_deadlines(part, format);
                    // Once for each hash, however many parts it has.
                    if lost && !copy.lost_deadlines {
                        let what =
                            || format!("the expiry of fields of '{}'", part.key.escape_ascii());
                        self.config.leave_out(&self.status, Lack::FieldTtl, what)?;
                    }
                    copy.lost_deadlines = !part.is_last && (lost || copy.lost_deadlines);
                    if let Some(database) =
                        self.router
                            .target_of(&self.config, targets, part.database)?
                    {
                        if let Some(sweep) = self.sweep.as_mut().filter(|_| part.is_first) {
                            sweep.note(database, part.key);
                        }
                        let deadlines = &mut self.rebuild.deadlines;
                        deadlines.database = database;
                        let lease = |at_ms| deadlines.of_key(part.key, at_ms);
                        part.expire_at_ms = part.expire_at_ms.filter(|_| part.is_last).map(lease);
                        let slot = targets.slot_of(part.key);
                        let mut written = Ok(0);
                        targets.stage(chunks, slot, at, database, |out| {
                            written = part.write_commands(out, &format);
                            *written.as_ref().unwrap_or(&0)
                        });
                        if let Err(problem) = written {
                            self.config
                                .leave_out_of_key(&self.status, problem, part.key)?;
                        }
                    } else if part.is_last {
                        self.status.count(ErrorCount::DroppedDatabase);
                    }
                }
                Item::Function { .. } if self.config.lacking.meets(Features::REDIS_7_0) => {
                    let what = || "a function library".to_owned();
                    self.config.leave_out(&self.status, Lack::Functions, what)?;
                }
                Item::Function { code } => {
                    let ours = |node: &str| self.config.functions.claim(self.status.id, node, code);
                    targets.broadcast(chunks, at, ours, |out| {
                        push_command(out, &[b"FUNCTION", b"LOAD", b"REPLACE", code]);
                    });
                }
                Item::SizeHint { keys, .. } => {
                    if let Some(sweep) = &mut self.sweep {
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

impl super::lane::LaneConfig {
    /// A key, or a piece of one, that the target cannot hold: left out and counted, or a fault.
    fn leave_out_of_key(
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
    fn leave_out_beside(&self, status: &LaneStatus, what: LeftOut) -> Result<(), Fault> {
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

impl super::stream::Router {
    /// The target database for one of the source, `None` if it is dropped.
    pub(super) fn target_of(
        &mut self,
        config: &super::lane::LaneConfig,
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
