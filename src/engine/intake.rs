//! The receive buffer of a lane: where the source's bytes arrive, and what of them is still open.
//!
//! ```text
//! chunk   [ taken (lent to writers, or done) | open unit, scanned | open unit, not scanned |   free   ]
//!                                            ^ open               ^ cursor                 ^ filled
//! ```
//!
//! An open unit (a command not complete yet, a transaction without its `EXEC`) is always contiguous: when the chunk
//! is full it is carried to the front of the next one. That is the only copy, one unit per chunk at most.
//!
//! Chunks that were filled are kept until all in them is acknowledged, also what was not lent, and of what is acknowledged the last
//! [`limits::KEPT_STREAM_BYTES`]: should the spool need the disk, it begins with what the target's records do not tell of yet, and
//! should the source have lost them, these keys are mended ([`Intake::copy_out`]). Chunks of unusual size are kept until they are
//! acknowledged, and those of single large commands not at all.

use std::collections::VecDeque;

use crate::chunk::{ChunkId, Chunks, Range};
use crate::command;
use crate::limits;
use crate::position::Offset;
use crate::resp::scan;

#[derive(Debug)]
pub struct Intake {
    chunk: ChunkId,
    open: usize,
    cursor: usize,
    /// Offset of the chunk's first byte.
    origin: Offset,
    acknowledged: Offset,
    /// Places in the chunk of verbs that were marked there, rising: four bytes for each command that was handed over.
    marked: Vec<u32>,
    /// Filled before, oldest first: the stream from where the first begins to the chunk's origin.
    former: VecDeque<Former>,
}

#[derive(Debug)]
struct Former {
    chunk: ChunkId,
    begin: Offset,
    /// What follows in the chunk was carried to the next.
    length: usize,
    marked: Vec<u32>,
}

impl Intake {
    pub fn new(chunks: &mut Chunks) -> Self {
        Self {
            chunk: chunks.take(limits::CHUNK_BYTES),
            open: 0,
            cursor: 0,
            origin: Offset::default(),
            acknowledged: Offset::default(),
            marked: Vec::new(),
            former: VecDeque::new(),
        }
    }

    /// Forgets everything received, for a history of which offset `begin` comes next.
    pub fn begin(&mut self, chunks: &mut Chunks, begin: Offset) {
        self.forget_former(chunks);
        chunks.release(self.chunk);
        *self = Self::new(chunks);
        self.origin = begin;
    }

    /// Everything before `offset` is answered.
    pub fn acknowledge(&mut self, chunks: &mut Chunks, offset: Offset) {
        self.acknowledged = offset;
        while let Some(oldest) = self.former.front()
            && let oldest_end = oldest.begin.advanced(oldest.length)
            && oldest_end <= offset
            && (offset.since(oldest_end) >= limits::KEPT_STREAM_BYTES as u64
                || chunks.is_oversized(oldest.chunk))
        {
            chunks.release(oldest.chunk);
            self.former.pop_front();
        }
    }

    /// From here on the stream is kept, up to its end.
    pub fn kept_from(&self) -> Offset {
        let mut from = self.origin;
        for former in self.former.iter().rev() {
            if former.begin.advanced(former.length) != from {
                break;
            }
            from = former.begin;
        }
        from
    }

    fn forget_former(&mut self, chunks: &mut Chunks) {
        for former in self.former.drain(..) {
            chunks.release(former.chunk);
        }
    }

    /// Copies the stream from offset `from` on, as far as it is still there and there is room; gives how much. Verbs that were
    /// marked here are not marked in it.
    pub fn copy_out(&self, chunks: &Chunks, from: Offset, room: &mut [u8]) -> usize {
        let former = self.former.iter().map(|former| {
            let bytes = &chunks.bytes(former.chunk)[..former.length];
            (former.begin, bytes, &former.marked)
        });
        let current = (self.origin, chunks.bytes(self.chunk), &self.marked);
        let mut copied = 0;
        for (begin, bytes, marked) in former.chain(std::iter::once(current)) {
            let at = from.advanced(copied);
            if begin <= at && at < begin.advanced(bytes.len()) {
                let start = at.since(begin) as usize;
                let bytes = &bytes[start..];
                let count = bytes.len().min(room.len() - copied);
                let room = &mut room[copied..copied + count];
                room.copy_from_slice(&bytes[..count]);
                let first = marked.partition_point(|&place| (place as usize) < start);
                let marked = marked[first..].iter();
                for place in marked.map(|&place| place as usize - start) {
                    let Some(letter) = room.get_mut(place) else {
                        break;
                    };
                    letter.make_ascii_uppercase();
                }
                copied += count;
            }
        }
        copied
    }

    /// Where to receive into; `None` while the lane's buffers are in use and nothing may be read. `alone`: nothing
    /// is waiting for an answer, so that only a unit larger than the buffers can be the reason, and gets its room.
    pub fn space<'a>(&mut self, chunks: &'a mut Chunks, alone: bool) -> Option<&'a mut [u8]> {
        self.make_room(chunks, alone).then(|| self.free(chunks))
    }

    /// The space that [`Intake::make_room`] has seen to.
    pub fn free<'a>(&self, chunks: &'a mut Chunks) -> &'a mut [u8] {
        chunks.free(self.chunk)
    }

    /// Sees that there is space; whether there is.
    pub fn make_room(&mut self, chunks: &mut Chunks, alone: bool) -> bool {
        let filled = chunks.filled(self.chunk);
        let pending = filled - self.open;
        let oversized = chunks.is_oversized(self.chunk) && pending < limits::MIN_READ_BYTES;
        if oversized || chunks.free(self.chunk).len() < limits::MIN_READ_BYTES {
            let wanted = (pending * 2).clamp(limits::CHUNK_BYTES, limits::MAX_UNIT_CHUNK_BYTES);
            if chunks.allocated() + wanted > limits::STREAM_BUFFER_BYTES
                && !alone
                && !chunks.has_spare(wanted)
            {
                return false;
            }
            let next = chunks.take(wanted);
            chunks.carry(self.chunk, self.open, next);
            // A large one is kept until it is answered: mostly it is lent as long.
            let answered = self.acknowledged >= self.origin.advanced(self.open);
            let large = chunks.is_oversized(self.chunk)
                && (answered || chunks.size(self.chunk) > limits::LANE_BUFFER_BYTES);
            if large || self.open == 0 {
                chunks.release(self.chunk);
            } else {
                self.former.push_back(Former {
                    chunk: self.chunk,
                    begin: self.origin,
                    length: self.open,
                    marked: std::mem::take(&mut self.marked),
                });
            }
            self.marked.clear();
            self.chunk = next;
            self.move_origin();
        }
        true
    }

    /// The open unit stands at the front of the chunk now.
    fn move_origin(&mut self) {
        self.origin = self.origin.advanced(self.open);
        self.cursor -= self.open;
        self.open = 0;
    }

    /// Counts bytes that were received into [`Intake::space`].
    pub fn received(&mut self, chunks: &mut Chunks, bytes: usize) {
        chunks.fill(self.chunk, bytes);
    }

    /// Everything not scanned yet.
    pub fn rest<'a>(&self, chunks: &'a Chunks) -> &'a [u8] {
        &chunks.bytes(self.chunk)[self.cursor..]
    }

    /// The place of the scan within the chunk.
    pub fn cursor(&self) -> u32 {
        self.cursor as u32
    }

    /// Marks the verb that stands so far behind the scan. What is handed over is marked in place, and noted, since what is kept
    /// of the stream must stay what the source sent: a mark in it would be taken for one of the source's.
    #[inline]
    pub fn mark(&mut self, chunks: &mut Chunks, verb: std::ops::Range<usize>) {
        let place = self.cursor + verb.start;
        let range = self.range(place as u32, (self.cursor + verb.end) as u32);
        command::mark(chunks.get_mut(range));
        self.marked.push(place as u32);
    }

    /// Marks all commands of the open unit, as far as it is scanned.
    pub fn mark_open(&mut self, chunks: &mut Chunks) {
        let end = std::mem::replace(&mut self.cursor, self.open);
        while self.cursor < end {
            let rest = &chunks.bytes(self.chunk)[self.cursor..end];
            let frame = scan(rest).ok().flatten().expect("scanned before");
            let length = frame.bytes().len();
            if command::is_to_be_marked(&frame) {
                let verb = frame.verb_range();
                self.mark(chunks, verb);
            }
            self.cursor += length;
        }
    }

    /// Moves the scan on by `bytes`; they stay part of the open unit.
    pub fn scanned(&mut self, bytes: usize) {
        self.cursor += bytes;
    }

    /// Ends the open unit where the scan is.
    pub fn close(&mut self) {
        self.open = self.cursor;
    }

    /// The open unit as far as it is scanned.
    pub fn open_range(&self) -> Range {
        self.range(self.open as u32, self.cursor as u32)
    }

    /// Moves the scan back to the start of the open unit.
    pub fn reopen(&mut self) {
        self.cursor = self.open;
    }

    /// Bytes of the open unit that are scanned.
    pub fn open_bytes(&self) -> usize {
        self.cursor - self.open
    }

    /// The range of the current chunk from place `start` to place `end`.
    pub fn range(&self, start: u32, end: u32) -> Range {
        Range {
            chunk: self.chunk,
            start,
            end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(intake: &mut Intake, chunks: &mut Chunks, bytes: &[u8]) {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let space = intake.space(chunks, true).unwrap();
            let count = space.len().min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            intake.received(chunks, count);
            bytes = &bytes[count..];
        }
    }

    #[test]
    fn an_open_unit_stays_whole_across_chunks_of_any_size() {
        let mut chunks = Chunks::new(limits::CHUNK_BYTES, 2);
        let mut intake = Intake::new(&mut chunks);
        let unit: Vec<u8> = (0..3 * limits::CHUNK_BYTES).map(|i| i as u8).collect();
        feed(&mut intake, &mut chunks, b"taken");
        intake.scanned(5);
        intake.close();
        feed(&mut intake, &mut chunks, &unit);
        assert_eq!(intake.rest(&chunks), unit);
    }

    #[test]
    fn lent_bytes_stay_and_reading_stops_at_the_limit() {
        let mut chunks = Chunks::new(limits::CHUNK_BYTES, 2);
        let mut intake = Intake::new(&mut chunks);
        let mut lent = Vec::new();
        while let Some(space) = intake.space(&mut chunks, false) {
            let count = space.len();
            space[0] = lent.len() as u8;
            intake.received(&mut chunks, count);
            let start = intake.cursor();
            intake.scanned(count);
            intake.close();
            let range = intake.range(start, start + count as u32);
            chunks.hold(range.chunk);
            lent.push(range);
            assert!(lent.len() < 1000);
        }
        assert!(chunks.allocated() <= limits::STREAM_BUFFER_BYTES);
        for (index, range) in lent.iter().enumerate() {
            assert_eq!(chunks.get(*range)[0], index as u8);
        }
        chunks.release(lent[0].chunk);
        assert!(intake.space(&mut chunks, false).is_none(), "it is kept");
        let first = Offset(lent[0].len() as u64);
        intake.acknowledge(&mut chunks, first.advanced(limits::KEPT_STREAM_BYTES));
        assert!(intake.space(&mut chunks, false).is_some());
    }

    #[test]
    fn what_is_not_acknowledged_can_be_had_again() {
        let mut chunks = Chunks::new(limits::CHUNK_BYTES, 2);
        let mut intake = Intake::new(&mut chunks);
        intake.begin(&mut chunks, Offset(100));
        let stream: Vec<u8> = (0..4 * limits::KEPT_STREAM_BYTES)
            .map(|i| (i / 7) as u8)
            .collect();
        // Units of 1000 bytes, of which none is lent: they may have been written in another form.
        for piece in stream.chunks(777) {
            feed(&mut intake, &mut chunks, piece);
            while intake.rest(&chunks).len() >= 1000 {
                intake.scanned(1000);
                intake.close();
            }
        }
        let out = |intake: &Intake, chunks: &Chunks, from, most: usize| {
            let mut room = vec![0_u8; most];
            let count = intake.copy_out(chunks, Offset(from), &mut room);
            room.truncate(count);
            room
        };
        assert_eq!(out(&intake, &chunks, 100, stream.len()), stream);
        assert_eq!(out(&intake, &chunks, 100 + 5, 50), stream[5..55]);
        let end = 100 + stream.len() as u64;
        assert_eq!(out(&intake, &chunks, end, 50).len(), 0);
        assert_eq!(out(&intake, &chunks, 99, 50).len(), 0);
        // What is not acknowledged is kept, and some of the rest.
        let middle = limits::CHUNK_BYTES as u64 * 3 / 2;
        intake.acknowledge(&mut chunks, Offset(100 + middle));
        let rest = out(&intake, &chunks, 100 + middle, stream.len());
        assert_eq!(rest, stream[middle as usize..]);
        intake.acknowledge(&mut chunks, Offset(end));
        let from = intake.kept_from();
        let kept = Offset(end).since(from) as usize;
        let most = limits::KEPT_STREAM_BYTES + 2 * limits::CHUNK_BYTES;
        assert!((limits::KEPT_STREAM_BYTES..=most).contains(&kept), "{kept}");
        let last = out(&intake, &chunks, from.0, stream.len());
        assert_eq!(last, stream[stream.len() - kept..]);
        assert_eq!(out(&intake, &chunks, from.0 - 1, 50).len(), 0);
    }

    #[test]
    fn what_is_marked_here_is_kept_as_the_source_sent_it() {
        let mut chunks = Chunks::new(limits::CHUNK_BYTES, 2);
        let mut intake = Intake::new(&mut chunks);
        intake.begin(&mut chunks, Offset(100));
        let command = b"*2\r\n$4\r\nINCR\r\n$3\r\nkey\r\n";
        // One that the source has marked stays so.
        let echo = b"*2\r\n$4\r\niNCR\r\n$3\r\nkey\r\n";
        let mut stream = Vec::new();
        while stream.len() < 3 * limits::CHUNK_BYTES {
            stream.extend_from_slice(command);
            stream.extend_from_slice(echo);
            stream.extend_from_slice(command);
        }
        for pair in stream.chunks(3 * command.len()) {
            feed(&mut intake, &mut chunks, pair);
            intake.mark(&mut chunks, 8..12);
            intake.scanned(command.len());
            intake.close();
            intake.scanned(echo.len());
            intake.close();
            intake.scanned(command.len());
            intake.mark_open(&mut chunks);
            assert_eq!(chunks.get(intake.open_range()), echo);
            intake.close();
        }
        for (from, most) in [(0, stream.len()), (8, 1), (9, 100), (33, 40_000)] {
            let mut room = vec![0; most];
            let count = intake.copy_out(&chunks, Offset(100 + from as u64), &mut room);
            assert_eq!(room[..count], stream[from..from + count], "from {from}");
            assert!(count > 0);
        }
    }
}
