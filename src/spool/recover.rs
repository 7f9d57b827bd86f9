//! What a former process has left on disk, and how much of it can serve.

use std::io::{self, Read};

use super::format::{self, BLOCK_HEADER_BYTES, BlockHeader, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::position::{Offset, Position, ReplicationId};

/// One segment as it was found: its whole blocks from the front on, up to the first that is torn, damaged or out of order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    header: SegmentHeader,
    blocks: Vec<BlockHeader>,
}

/// A piece of the stream on disk, without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    segments: Vec<Survey>,
}

impl Survey {
    /// The number that it was given.
    pub fn number(&self) -> u64 {
        self.header.number
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = (u64, &BlockHeader)> {
        let mut at = SEGMENT_HEADER_BYTES as u64;
        self.blocks.iter().map(move |block| {
            let here = at;
            at += (BLOCK_HEADER_BYTES + block.length) as u64;
            (here, block)
        })
    }

    pub(super) fn end(&self) -> Offset {
        self.blocks
            .last()
            .map_or(self.header.first, BlockHeader::end)
    }

    /// Bytes of the file that it takes, but for a torn end.
    pub fn bytes(&self) -> u64 {
        let blocks = self.blocks.iter();
        let blocks = blocks.map(|block| (BLOCK_HEADER_BYTES + block.length) as u64);
        SEGMENT_HEADER_BYTES as u64 + blocks.sum::<u64>()
    }
}

/// Reads a segment of `link` and checks all of it; `None` if it is none.
///
/// # Errors
/// When reading fails for another reason than that the segment ends.
pub fn survey(segment: &mut impl Read, link: &str) -> io::Result<Option<Survey>> {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    if !fill(segment, &mut header)? {
        return Ok(None);
    }
    let Some(header) = SegmentHeader::read(&header, link) else {
        return Ok(None);
    };
    let mut found = Survey {
        header,
        blocks: Vec::new(),
    };
    let mut block = Vec::new();
    loop {
        let mut start = [0; BLOCK_HEADER_BYTES];
        if !fill(segment, &mut start)? {
            return Ok(Some(found));
        }
        let Some(length) = format::claimed_length(&start) else {
            return Ok(Some(found));
        };
        block.clear();
        block.extend_from_slice(&start);
        block.resize(BLOCK_HEADER_BYTES + length, 0);
        if !fill(segment, &mut block[BLOCK_HEADER_BYTES..])? {
            return Ok(Some(found));
        }
        match format::read_block(&block) {
            Some(block) if block.begin == found.end() => found.blocks.push(block),
            _ => return Ok(Some(found)),
        }
    }
}

/// Reads as much as there is room for; whether there was as much.
fn fill(from: &mut impl Read, room: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(room) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The longest part of a lane's segments in which offset `at` lies and nothing is missing; `None` if there is none that
/// reaches beyond `at`.
pub fn recover(mut segments: Vec<Survey>, at: Offset) -> Option<Recovered> {
    segments.sort_by_key(Survey::number);
    let mut part: Vec<Survey> = Vec::new();
    for segment in segments {
        let follows = |last: &Survey| {
            last.number() + 1 == segment.number() && last.end() == segment.header.first
        };
        if !part.last().is_none_or(follows) {
            if part.last().is_some_and(|last| last.end() > at) {
                break;
            }
            part.clear();
        }
        part.push(segment);
    }
    // A segment that was begun and holds nothing is of no use.
    while part.last().is_some_and(|last| last.blocks.is_empty()) {
        part.pop();
    }
    let (first, last) = (part.first()?, part.last()?);
    let reaches = first.header.first <= at && at < last.end();
    reaches.then_some(Recovered { segments: part })
}

impl Recovered {
    /// Offset of its first byte.
    pub fn first(&self) -> Offset {
        self.segments[0].header.first
    }

    /// Where the source is to go on.
    pub fn end(&self) -> Position {
        let last = self.segments.last().expect("there is one");
        let block = last.blocks.last().expect("it holds something");
        Position {
            id: block.id,
            offset: last.end(),
        }
    }

    /// How the history is called that a lane goes on with which is at `position`, if what is here follows from there.
    /// `predecessor`: the history before that, and up to where it is the same.
    ///
    /// The bytes of a stream are the same whoever received them, so that it does not matter which process did. But those of a
    /// predecessor count only as far as it led to the present history.
    pub fn serves(
        &self,
        position: Position,
        predecessor: Option<Position>,
    ) -> Option<ReplicationId> {
        if self.holds(position) {
            return Some(self.end().id);
        }
        let before = predecessor.filter(|before| self.end().offset <= before.offset)?;
        let there = Position {
            id: before.id,
            ..position
        };
        (self.end().id == before.id && self.holds(there)).then_some(position.id)
    }

    /// Where the last part ends that was received under `id`, if any was.
    pub fn end_of(&self, id: ReplicationId) -> Option<Offset> {
        let blocks = self
            .segments
            .iter()
            .rev()
            .flat_map(|s| s.blocks.iter().rev());
        let mut of_id = blocks.filter(|block| block.id == id);
        of_id.next().map(BlockHeader::end)
    }

    /// Offsets, and when what lies before each, from the one before on, began to be received: Unix time in milliseconds.
    pub fn arrivals(&self) -> impl Iterator<Item = (Offset, u64)> {
        let blocks = self.segments.iter().flat_map(|segment| &segment.blocks);
        blocks.map(|block| (block.end(), block.received_ms))
    }

    /// The numbers of the segments that it consists of.
    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        self.segments.iter().map(Survey::number)
    }

    /// Whether a position of a history under this id lies in it. After a failover a history has more than one id.
    pub fn holds(&self, position: Position) -> bool {
        self.ids().any(|id| id == position.id)
            && self.first() <= position.offset
            && position.offset < self.end().offset
    }

    fn ids(&self) -> impl Iterator<Item = ReplicationId> {
        self.segments.iter().flat_map(|segment| {
            let blocks = segment.blocks.iter().map(|block| block.id);
            std::iter::once(segment.header.id).chain(blocks)
        })
    }

    pub(super) fn segments(&self) -> &[Survey] {
        &self.segments
    }
}
