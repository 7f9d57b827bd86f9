//! Units and runs: what is sent, rejected and sent again as one, and how units are kept in numbers.

use crate::chunk::{Chunks, Range};
use crate::position::Offset;
use crate::resp::scan;

/// What the bytes of a unit are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One command, one reply.
    Command,
    /// `MULTI`, commands, `EXEC`: applied whole or not at all.
    Transaction,
    /// One command whose reply is wanted, see [`super::Outcome::Answer`].
    Question,
}

/// What keeps the commands of a unit from being applied twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Nothing, and nothing is needed: applying it again, with all that follows, ends in the same data.
    None,
    /// It may hold a command that must not be applied twice: nothing of its slot may be on its way together with it, and a
    /// watermark must be set with it.
    Needed,
    /// It is a transaction that sets a watermark with its commands.
    Given,
}

/// The smallest thing that is sent, rejected and sent again as one. Always contiguous in one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    pub range: Range,
    pub form: Form,
    /// Commands in `range`, and so replies.
    pub frames: u32,
    /// The stream's offset before the unit and after it. The same for what is not from the stream.
    pub begin: Offset,
    pub end: Offset,
    /// The target database that it is for.
    pub database: u32,
    /// The range begins with an `ASKING` command (counted in `frames`) that is ours.
    pub asking: bool,
    /// It was sent on an earlier connection and its answer was lost: it may have been applied.
    pub again: bool,
    pub guard: Guard,
}

impl Unit {
    /// Takes `next` in, if the stream brought it right behind this unit and it stands right behind it in memory.
    pub fn join(&mut self, next: &Unit, limit: usize) -> bool {
        let plain = |unit: &Unit| {
            unit.form == Form::Command
                && !unit.asking
                && unit.guard != Guard::Given
                && is_verbatim(unit)
        };
        let joins = plain(self)
            && plain(next)
            && self.end == next.begin
            && self.range.chunk == next.range.chunk
            && self.range.end == next.range.start
            && self.database == next.database
            && self.again == next.again
            && self.range.len() + next.range.len() <= limit;
        if joins {
            self.range.end = next.range.end;
            self.frames += next.frames;
            self.end = next.end;
            if next.guard == Guard::Needed {
                self.guard = Guard::Needed;
            }
        }
        joins
    }
}

/// Neighbouring commands, or one transaction or question, in the ledger.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub unit: Unit,
    /// Replies so far.
    pub answered: u32,
    /// Place of frame number `cursor.0` within the range, so that a row of errors is found in one pass.
    cursor: (u32, u32),
}

impl Run {
    pub fn new(unit: Unit) -> Self {
        Self {
            unit,
            answered: 0,
            cursor: (0, 0),
        }
    }

    /// Whether replies count command by command.
    pub fn is_plain(&self) -> bool {
        self.unit.form == Form::Command && !self.unit.asking
    }

    /// Takes `unit` in, if it continues this run.
    pub fn merge(&mut self, unit: &Unit, limit: usize) -> bool {
        let joins = self.is_plain()
            && unit.form == Form::Command
            && !unit.asking
            && self.unit.guard == unit.guard
            && self.unit.range.chunk == unit.range.chunk
            && self.unit.range.end == unit.range.start
            && self.unit.database == unit.database
            && self.unit.again == unit.again
            && self.unit.begin <= unit.begin
            && is_verbatim(&self.unit) == is_verbatim(unit)
            && self.unit.range.len() + unit.range.len() <= limit;
        if joins {
            self.unit.range.end = unit.range.end;
            self.unit.frames += unit.frames;
            // What was built here stands at one offset, and must not come to look like a piece of the stream.
            if is_verbatim(unit) {
                self.unit.end = unit.end;
            }
        }
        joins
    }

    /// The first command without an answer, as a unit of its own.
    pub fn unanswered(&mut self, chunks: &Chunks) -> Unit {
        if !self.is_plain() {
            return self.unit;
        }
        let start = self.seek(chunks);
        let bytes = chunks.get(self.unit.range);
        let length = frame_length(&bytes[start as usize..]);
        let begin = self.offset_at(start);
        let range = Range {
            start: self.unit.range.start + start,
            end: self.unit.range.start + start + length,
            ..self.unit.range
        };
        Unit {
            range,
            frames: 1,
            begin,
            end: self.offset_at(start + length),
            ..self.unit
        }
    }

    /// Drops what is answered from the front, so that the run begins with what is not.
    pub fn forget_answered(&mut self, chunks: &Chunks) {
        if self.is_plain() && self.answered > 0 {
            let start = self.seek(chunks);
            self.unit.begin = self.offset_at(start);
            self.unit.range.start += start;
            self.unit.frames -= self.answered;
            self.cursor = (0, 0);
        }
        self.answered = 0;
    }

    /// The place within the range of the first command without an answer.
    fn seek(&mut self, chunks: &Chunks) -> u32 {
        let bytes = chunks.get(self.unit.range);
        let (mut frame, mut at) = self.cursor;
        while frame < self.answered {
            at += frame_length(&bytes[at as usize..]);
            frame += 1;
        }
        self.cursor = (frame, at);
        at
    }

    /// The stream's offset at a place of the range: bytes count only if the range is the stream's own.
    fn offset_at(&self, place: u32) -> Offset {
        if is_verbatim(&self.unit) {
            self.unit.begin.advanced(place as usize)
        } else if place as usize == self.unit.range.len() {
            self.unit.end
        } else {
            self.unit.begin
        }
    }
}

/// Whether the range is a piece of the stream as it came, so that its bytes are offsets.
fn is_verbatim(unit: &Unit) -> bool {
    unit.end.since(unit.begin) == unit.range.len() as u64
}

fn frame_length(bytes: &[u8]) -> u32 {
    let frame = scan(bytes)
        .ok()
        .flatten()
        .expect("runs hold checked commands");
    frame.bytes().len() as u32
}
