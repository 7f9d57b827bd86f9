//! The receive buffer of a lane: where the source's bytes arrive, and what of them is still open.
//!
//! ```text
//! chunk   [ taken (lent to writers, or done) | open unit, scanned | open unit, not scanned |   free   ]
//!                                            ^ open               ^ cursor                 ^ filled
//! ```
//!
//! An open unit (a command not complete yet, a transaction without its `EXEC`) is always contiguous: when the chunk
//! is full it is carried to the front of the next one. That is the only copy, one unit per chunk at most.

use crate::chunk::{ChunkId, Chunks, Range};
use crate::limits;

#[derive(Debug)]
pub struct Intake {
    chunk: ChunkId,
    open: usize,
    cursor: usize,
}

impl Intake {
    pub fn new(chunks: &mut Chunks) -> Self {
        Self {
            chunk: chunks.take(limits::CHUNK_BYTES),
            open: 0,
            cursor: 0,
        }
    }

    /// Forgets everything received, for a connection that begins anew.
    pub fn clear(&mut self, chunks: &mut Chunks) {
        chunks.release(self.chunk);
        *self = Self::new(chunks);
    }

    /// Where to receive into; `None` while the lane's buffers are in use and nothing may be read. `alone`: nothing
    /// is waiting for an answer, so that only a unit larger than the buffers can be the reason, and gets its room.
    pub fn space<'a>(&mut self, chunks: &'a mut Chunks, alone: bool) -> Option<&'a mut [u8]> {
        let filled = chunks.filled(self.chunk);
        let pending = filled - self.open;
        if chunks.is_sole(self.chunk) && (pending == 0 || self.open >= limits::MIN_READ_BYTES) {
            chunks.compact(self.chunk, self.open);
            self.cursor -= self.open;
            self.open = 0;
        }
        let oversized = chunks.is_oversized(self.chunk) && pending < limits::MIN_READ_BYTES;
        if oversized || chunks.free(self.chunk).len() < limits::MIN_READ_BYTES {
            let wanted = (pending * 2).clamp(limits::CHUNK_BYTES, limits::MAX_UNIT_CHUNK_BYTES);
            if chunks.allocated() + wanted > limits::LANE_BUFFER_BYTES + limits::CHUNK_BYTES
                && !alone
                && !chunks.has_spare(wanted)
            {
                return None;
            }
            let next = chunks.take(wanted);
            chunks.carry(self.chunk, self.open, next);
            chunks.release(self.chunk);
            self.chunk = next;
            self.cursor -= self.open;
            self.open = 0;
        }
        Some(chunks.free(self.chunk))
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
        assert!(chunks.allocated() <= limits::LANE_BUFFER_BYTES + limits::CHUNK_BYTES);
        for (index, range) in lent.iter().enumerate() {
            assert_eq!(chunks.get(*range)[0], index as u8);
        }
        chunks.release(lent[0].chunk);
        assert!(intake.space(&mut chunks, false).is_some());
    }
}
