//! The queue of one lane: bytes in at its tail, out at its head, and meanwhile in memory or on disk.
//!
//! Sealed blocks that are on disk come before those that are not, since they are written in order. A block that was written
//! leaves memory unless it is among the next that the lane needs.

use std::collections::VecDeque;
use std::sync::Arc;

use super::format::{self, BLOCK_HEADER_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::{Order, Recovered, Settings, State};
use crate::limits;
use crate::position::{Offset, ReplicationId};

/// See the module.
#[derive(Debug)]
pub struct Spool {
    settings: Settings,
    /// Blocks at the head that are kept, or read back, before they are needed.
    read_ahead: usize,
    id: Option<ReplicationId>,
    acknowledged: Offset,
    /// A process that starts anew asks for nothing before: what lies there need not be on disk.
    recorded: Offset,
    /// Everything before has been handed to the lane.
    taken: Offset,
    /// Everything before has been received.
    end: Offset,
    /// Sealed, and not wholly taken.
    blocks: VecDeque<Block>,
    tail: Option<Tail>,
    /// Blocks that have memory, the tail included.
    in_memory: usize,
    spare: Option<Vec<u8>>,

    segments: VecDeque<Segment>,
    next_segment: u64,
    /// What is written next begins here.
    write_at: Offset,
    writing: Option<Writing>,
    /// Everything up to here is to be written, whether or not there is memory.
    flush_to: Option<Offset>,
    /// The disk may take no more.
    refused: bool,
    /// Why the disk refused.
    trouble: Option<String>,
    retry_at_ms: Option<u64>,
    damage: Option<String>,
    orders: VecDeque<(u64, Order)>,
    last_ticket: u64,
}

/// Bytes of the stream behind the room for a header.
#[derive(Debug)]
struct Tail {
    begin: Offset,
    bytes: Vec<u8>,
    /// The room for the header included.
    filled: usize,
    /// When its first byte was received.
    received_ms: u64,
}

impl Tail {
    fn is_empty(&self) -> bool {
        self.filled == BLOCK_HEADER_BYTES
    }

    fn end(&self) -> Offset {
        self.begin.advanced(self.filled - BLOCK_HEADER_BYTES)
    }
}

#[derive(Debug)]
struct Block {
    begin: Offset,
    length: usize,
    held: Held,
    /// Segment, and where in it.
    place: Option<(u64, u64)>,
}

#[derive(Debug)]
enum Held {
    /// With its header.
    Memory(Arc<Vec<u8>>),
    /// Being read under this ticket.
    Coming(u64),
    Disk,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    /// Offset behind its last block, once that is written.
    end: Offset,
    bytes: u64,
    blocks: u32,
}

/// The one order to write that is not answered yet, or was refused.
#[derive(Debug)]
struct Writing {
    ticket: u64,
    order: Order,
    /// `None`: the segment is being made.
    begin: Option<Offset>,
    failed: bool,
}

impl Spool {
    pub fn new(settings: Settings) -> Self {
        assert!(settings.memory_blocks >= limits::SPOOL_LEAST_BLOCKS);
        assert!(settings.block_bytes > BLOCK_HEADER_BYTES);
        Self {
            read_ahead: settings.memory_blocks / limits::SPOOL_LEAST_BLOCKS,
            settings,
            id: None,
            acknowledged: Offset::default(),
            recorded: Offset::default(),
            taken: Offset::default(),
            end: Offset::default(),
            blocks: VecDeque::new(),
            tail: None,
            in_memory: 0,
            spare: None,
            segments: VecDeque::new(),
            next_segment: 0,
            write_at: Offset::default(),
            writing: None,
            flush_to: None,
            refused: false,
            trouble: None,
            retry_at_ms: None,
            damage: None,
            orders: VecDeque::new(),
            last_ticket: 0,
        }
    }

    /// A spool that goes on with what a former process left; all before `at` is acknowledged.
    pub fn resumed(settings: Settings, recovered: &Recovered, at: Offset) -> Self {
        let mut spool = Self::new(settings);
        let end = recovered.end();
        spool.id = Some(end.id);
        spool.taken = at;
        spool.end = end.offset;
        spool.write_at = end.offset;
        for survey in recovered.segments() {
            let bytes = survey.bytes();
            spool.settings.budget.count(bytes);
            spool.next_segment = survey.number() + 1;
            spool.segments.push_back(Segment {
                number: survey.number(),
                end: survey.end(),
                bytes,
                // It may end with a torn block: what comes goes into another.
                blocks: u32::MAX,
            });
            let blocks = survey.blocks().filter(|(_, block)| block.end() > at);
            spool.blocks.extend(blocks.map(|(place, block)| Block {
                begin: block.begin,
                length: block.length,
                held: Held::Disk,
                place: Some((survey.number(), place)),
            }));
        }
        spool.acknowledge(at, at);
        spool
    }

    // In and out.

    /// Whether nothing waits in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.taken == self.end
    }

    /// Whether it needs to be told of what happens: it holds something, has files, or is to have some.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.is_to_write() || !self.segments.is_empty()
    }

    /// Offset behind the last byte, while there is one.
    pub fn end(&self) -> Offset {
        self.end
    }

    /// Bytes that wait in it.
    pub fn bytes(&self) -> u64 {
        self.end.since(self.taken)
    }

    /// The history that is received has this id from here on.
    pub fn set_id(&mut self, id: ReplicationId) {
        // A block tells the name that its bytes came under.
        if self.id != Some(id) && !self.is_empty() {
            self.seal();
        }
        self.id = Some(id);
    }

    /// Where to receive into; `None` while there is no memory for more.
    pub fn space(&mut self) -> Option<&mut [u8]> {
        if self.tail.is_none() && self.is_full() {
            return None;
        }
        Some(self.room())
    }

    fn is_full(&self) -> bool {
        self.in_memory + self.read_ahead >= self.settings.memory_blocks
    }

    fn room(&mut self) -> &mut [u8] {
        if self.tail.is_none() {
            self.in_memory += 1;
            self.tail = Some(Tail {
                begin: self.end,
                bytes: self.buffer(),
                filled: BLOCK_HEADER_BYTES,
                received_ms: 0,
            });
        }
        let tail = self.tail.as_mut().expect("made above");
        &mut tail.bytes[tail.filled..]
    }

    /// Bytes were received into [`Spool::space`]; `at`: offset of the first of them. `unix_ms`: what time it is.
    pub fn received(&mut self, bytes: usize, at: Offset, unix_ms: u64) {
        if self.is_empty() {
            debug_assert!(self.blocks.is_empty());
            (self.taken, self.end) = (at, at);
        }
        debug_assert!(self.end == at, "the stream has no gaps");
        let tail = self.tail.as_mut().expect("space was asked for");
        if tail.is_empty() {
            tail.begin = at;
            tail.received_ms = unix_ms;
        }
        tail.filled += bytes;
        self.end = at.advanced(bytes);
        // Reads of a few bytes at the end of each block would cost more than the memory.
        let least = (tail.bytes.len() / 16).min(limits::MIN_READ_BYTES);
        if tail.bytes.len() - tail.filled < least.max(1) {
            self.seal();
        }
    }

    /// Takes bytes in whether or not memory is left: what came together with the end of a handshake.
    pub fn append(&mut self, mut bytes: &[u8], at: Offset, unix_ms: u64) {
        let mut at = at;
        while !bytes.is_empty() {
            let room = self.room();
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            self.received(count, at, unix_ms);
            at = at.advanced(count);
            bytes = &bytes[count..];
        }
    }

    /// Ends the tail as a block.
    fn seal(&mut self) {
        let Some(mut tail) = self.tail.take_if(|tail| !tail.is_empty()) else {
            return;
        };
        let id = self.id.expect("what is streamed has a history");
        tail.bytes.truncate(tail.filled);
        format::seal_block(&mut tail.bytes, tail.begin, tail.received_ms, id);
        self.blocks.push_back(Block {
            begin: tail.begin,
            length: tail.filled - BLOCK_HEADER_BYTES,
            held: Held::Memory(Arc::new(tail.bytes)),
            place: None,
        });
    }

    /// The next bytes, as far as they are together in memory; none while they are still to be read.
    pub fn head(&self) -> &[u8] {
        let (begin, bytes) = match (self.blocks.front(), &self.tail) {
            (Some(block), _) => match &block.held {
                Held::Memory(bytes) => (block.begin, &bytes[..]),
                Held::Coming(_) | Held::Disk => return &[],
            },
            (None, Some(tail)) if !self.is_empty() => (tail.begin, &tail.bytes[..tail.filled]),
            _ => return &[],
        };
        &bytes[BLOCK_HEADER_BYTES + self.taken.since(begin) as usize..]
    }

    /// So many bytes of [`Spool::head`] are taken.
    pub fn take(&mut self, bytes: usize) {
        self.taken = self.taken.advanced(bytes);
        if let Some(block) = self.blocks.front()
            && block.begin.advanced(block.length) == self.taken
            && let Some(block) = self.blocks.pop_front()
        {
            self.forget(block.held);
        }
        if self.is_empty() {
            if let Some(tail) = self.tail.take() {
                self.in_memory -= 1;
                self.spare = Some(tail.bytes);
            }
            self.refused = false;
        }
    }

    fn buffer(&mut self) -> Vec<u8> {
        let mut bytes = self.spare.take().unwrap_or_default();
        if bytes.capacity() < self.settings.block_bytes {
            // Fresh memory comes as zeros without being touched.
            return vec![0; self.settings.block_bytes];
        }
        bytes.resize(self.settings.block_bytes, 0);
        bytes
    }

    /// Gives a block's memory back.
    fn forget(&mut self, held: Held) {
        match held {
            Held::Memory(bytes) => {
                self.in_memory -= 1;
                if let Some(bytes) = Arc::into_inner(bytes) {
                    self.spare = Some(bytes);
                }
            }
            Held::Coming(_) => self.in_memory -= 1,
            Held::Disk => {}
        }
    }

    // The disk.

    /// What is to be done with files next, with its ticket.
    pub fn take_order(&mut self) -> Option<(u64, Order)> {
        self.orders.pop_front()
    }

    fn order(&mut self, order: Order) -> u64 {
        self.last_ticket += 1;
        self.orders.push_back((self.last_ticket, order));
        self.last_ticket
    }

    /// Everything before `acknowledged` has been answered by the target, and a process that starts anew begins at `recorded` or
    /// behind.
    pub fn acknowledge(&mut self, acknowledged: Offset, recorded: Offset) {
        self.acknowledged = self.acknowledged.max(acknowledged);
        self.recorded = self.recorded.max(recorded);
        if self.is_empty() {
            let answered = |until: &mut Offset| *until <= self.acknowledged;
            self.flush_to.take_if(answered);
        }
        // One that has just been begun ends where the next block begins.
        while let Some(oldest) = self.segments.front()
            && oldest.end <= self.recorded
            && (oldest.blocks > 0 || !self.is_to_write())
        {
            self.delete_oldest();
        }
    }

    /// Whether anything waits, or is wanted on disk.
    fn is_to_write(&self) -> bool {
        !self.is_empty() || self.flush_to.is_some()
    }

    fn delete_oldest(&mut self) {
        let Some(Segment { number, bytes, .. }) = self.segments.pop_front() else {
            return;
        };
        self.settings.budget.give_back(bytes);
        self.order(Order::Delete { segment: number });
        let writing = self
            .writing
            .as_ref()
            .map(|writing| segment_of(&writing.order));
        if writing == Some(number) {
            self.writing = None;
            self.trouble = None;
        }
    }

    /// Reads ahead and writes what should leave memory. `lent` gives bytes that were taken, from offset `lent_from` on: it
    /// copies those from an offset on, and tells how many it had and when they were received.
    pub fn pump(
        &mut self,
        lent_from: Offset,
        lent: impl FnOnce(Offset, &mut [u8]) -> (usize, u64),
    ) {
        for index in 0..self.blocks.len().min(self.read_ahead) {
            let block = &self.blocks[index];
            if let (Held::Disk, Some((segment, at))) = (&block.held, block.place) {
                let length = BLOCK_HEADER_BYTES + block.length;
                let read = Order::Read {
                    segment,
                    at,
                    length,
                };
                self.blocks[index].held = Held::Coming(self.last_ticket + 1);
                self.in_memory += 1;
                self.order(read);
            }
        }
        if self.writing.is_none() && !self.settings.budget.is_none() {
            self.write_on(lent_from, lent);
        }
    }

    fn write_on(
        &mut self,
        lent_from: Offset,
        lent: impl FnOnce(Offset, &mut [u8]) -> (usize, u64),
    ) {
        let first = self.blocks.partition_point(|block| block.place.is_some());
        let waiting = self.blocks.len() - first;
        let wanted = self.flush_to.is_some() || waiting > self.settings.memory_blocks / 2;
        let Some(id) = self.id.filter(|_| wanted) else {
            return;
        };
        // What the lane has taken goes first: the disk holds all that a new process asks for, or a part that begins later.
        let begin = self.blocks.get(first).map(|block| block.begin);
        let lent_until = begin.or(self.flush_to).unwrap_or_default();
        let is_gone = self.write_at < lent_from && self.write_at < lent_until;
        if is_gone && !self.segments.is_empty() {
            self.drop_segments();
        }
        if self.segments.is_empty() {
            let begin = self.write_at.max(self.recorded).max(lent_from);
            self.write_at = begin.min(lent_until);
        }
        let missing = lent_until.since(self.write_at) as usize;
        if missing == 0 && waiting == 0 {
            return;
        }
        if !self.has_segment(id) {
            return;
        }
        let block = match missing {
            0 => match &self.blocks[first].held {
                Held::Memory(bytes) => Arc::clone(bytes),
                Held::Coming(_) | Held::Disk => unreachable!("it is nowhere but in memory"),
            },
            _ => {
                let mut block = self.buffer();
                let room = missing.min(block.len() - BLOCK_HEADER_BYTES);
                let room = &mut block[BLOCK_HEADER_BYTES..][..room];
                let (count, received_ms) = lent(self.write_at, room);
                if count == 0 {
                    self.spare = Some(block);
                    self.drop_segments();
                    self.write_at = lent_until;
                    return;
                }
                block.truncate(BLOCK_HEADER_BYTES + count);
                format::seal_block(&mut block, self.write_at, received_ms, id);
                Arc::new(block)
            }
        };
        self.write_block(block);
    }

    /// Whether there is a segment with room; if not, one is made, if it may be.
    fn has_segment(&mut self, id: ReplicationId) -> bool {
        let most = self.settings.segment_blocks;
        if self.segments.back().is_some_and(|last| last.blocks < most) {
            return true;
        }
        // A block is all that a segment of a small budget has.
        let room = (SEGMENT_HEADER_BYTES + self.settings.block_bytes) as u64;
        self.refused = !self.settings.budget.take(room);
        if self.refused {
            return false;
        }
        let bytes = SEGMENT_HEADER_BYTES as u64;
        self.settings.budget.give_back(room - bytes);
        let header = SegmentHeader {
            number: self.next_segment,
            first: self.write_at,
            id,
        };
        self.next_segment += 1;
        self.segments.push_back(Segment {
            number: header.number,
            end: self.write_at,
            bytes,
            blocks: 0,
        });
        let order = Order::Create {
            segment: header.number,
            bytes: Arc::new(header.write(&self.settings.link)),
        };
        self.write(order, None);
        false
    }

    fn write_block(&mut self, block: Arc<Vec<u8>>) {
        let bytes = block.len() as u64;
        self.refused = !self.settings.budget.take(bytes);
        if self.refused {
            return;
        }
        let begin = self.write_at;
        self.write_at = begin.advanced(block.len() - BLOCK_HEADER_BYTES);
        let segment = self.segments.back_mut().expect("has_segment was asked");
        let order = Order::Write {
            segment: segment.number,
            at: segment.bytes,
            bytes: block,
        };
        segment.bytes += bytes;
        segment.blocks += 1;
        segment.end = self.write_at;
        self.write(order, Some(begin));
    }

    fn write(&mut self, order: Order, begin: Option<Offset>) {
        let ticket = self.order(order.clone());
        self.writing = Some(Writing {
            ticket,
            order,
            begin,
            failed: false,
        });
    }

    /// The result of an order.
    pub fn done(&mut self, ticket: u64, result: Result<Vec<u8>, String>) {
        if let Some(writing) = self.writing.take_if(|writing| writing.ticket == ticket) {
            match result {
                Ok(_) => self.written(writing),
                Err(why) => {
                    self.trouble = Some(why);
                    self.retry_at_ms = None;
                    self.writing = Some(Writing {
                        failed: true,
                        ..writing
                    });
                }
            }
            return;
        }
        // Reads are of the first blocks. What else is answered needs nothing: a file that cannot be deleted is deleted by the
        // next process.
        let mut coming = self.blocks.iter_mut().take(self.read_ahead);
        let read = coming.find(|block| matches!(block.held, Held::Coming(of) if of == ticket));
        if let Some(block) = read {
            match result {
                Ok(bytes)
                    if format::read_block(&bytes).is_some_and(|header| {
                        header.begin == block.begin && header.length == block.length
                    }) =>
                {
                    block.held = Held::Memory(Arc::new(bytes));
                }
                Ok(_) => {
                    self.damage = Some("what was read back is not what was written".into());
                }
                Err(why) => self.damage = Some(why),
            }
        }
    }

    fn written(&mut self, writing: Writing) {
        self.trouble = None;
        let (Order::Write { segment, at, .. }, Some(begin)) = (writing.order, writing.begin) else {
            return;
        };
        let index = self.blocks.partition_point(|block| block.begin < begin);
        // It may have been taken meanwhile.
        if let Some(block) = self.blocks.get_mut(index)
            && block.begin == begin
        {
            block.place = Some((segment, at));
            if index >= self.read_ahead {
                let held = std::mem::replace(&mut block.held, Held::Disk);
                self.forget(held);
            }
        }
    }

    /// Time has passed: what the disk refused is tried again.
    pub fn tick(&mut self, now_ms: u64) {
        let needed = self.is_to_write();
        let Some(writing) = self.writing.as_mut().filter(|writing| writing.failed) else {
            return;
        };
        match self.retry_at_ms {
            None => self.retry_at_ms = Some(now_ms + limits::SPOOL_RETRY_MS),
            Some(at_ms) if at_ms <= now_ms && needed => {
                self.last_ticket += 1;
                writing.failed = false;
                writing.ticket = self.last_ticket;
                self.orders
                    .push_back((self.last_ticket, writing.order.clone()));
            }
            Some(_) => {}
        }
    }

    // Ends.

    /// All up to `offset`, the end of what was received, shall be on disk; and what comes behind it as soon as it makes a block,
    /// until all is answered.
    pub fn flush(&mut self, offset: Offset) {
        if self.tail.as_ref().is_some_and(|_| !self.is_empty()) {
            self.seal();
        }
        self.flush_to = Some(offset);
    }

    /// Whether a flush has come to its end, one way or the other.
    pub fn is_flushed(&self) -> bool {
        let answered = self
            .flush_to
            .is_some_and(|until| self.acknowledged >= until);
        self.is_written() || (answered && self.orders.is_empty())
    }

    /// The same, also of what the target has answered.
    pub fn is_written(&self) -> bool {
        let Some(until) = self.flush_to else {
            return false;
        };
        let written = self.writing.is_none() && self.write_at >= until;
        let hopeless = self.settings.budget.is_none() || self.refused || self.trouble.is_some();
        self.orders.is_empty() && (written || hopeless)
    }

    /// What was found damaged, once: nothing behind the bytes that were taken can be had any more, and they must come from the
    /// source again.
    pub fn take_damage(&mut self) -> Option<String> {
        let damage = self.damage.take()?;
        self.clear();
        Some(damage)
    }

    /// Forgets what is not of the history any more, which is all from offset `at` on. What is left ends where a block does.
    ///
    /// Files keep what was forgotten. A process that takes them up finds out in the same way.
    pub fn cut(&mut self, at: Offset) {
        let reaches = |tail: &mut Tail| !tail.is_empty() && at < tail.end();
        if self.tail.take_if(reaches).is_some() {
            self.in_memory -= 1;
        }
        while let Some(last) = self.blocks.back()
            && at < last.begin.advanced(last.length)
            && let Some(last) = self.blocks.pop_back()
        {
            self.forget(last.held);
        }
        let last = self.blocks.back();
        let end = last.map_or(self.taken, |last| last.begin.advanced(last.length));
        let tail = self.tail.as_ref().filter(|tail| !tail.is_empty());
        self.end = tail.map_or(end, Tail::end);
        if self.is_empty() {
            return self.clear();
        }
        if self.end < self.write_at {
            self.write_at = self.end;
            self.writing = None;
            self.trouble = None;
            for segment in &mut self.segments {
                segment.end = segment.end.min(self.end);
            }
            // What comes goes into another.
            if let Some(last) = self.segments.back_mut() {
                last.blocks = u32::MAX;
            }
        }
        self.flush_to = self.flush_to.map(|until| until.min(self.end));
    }

    /// Forgets all that waits, for a history that begins anew.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.tail = None;
        self.in_memory = 0;
        self.end = self.taken;
        self.drop_segments();
        self.write_at = Offset::default();
        self.acknowledged = Offset::default();
        self.recorded = Offset::default();
        self.flush_to = None;
        self.refused = false;
        self.damage = None;
    }

    fn drop_segments(&mut self) {
        while !self.segments.is_empty() {
            self.delete_oldest();
        }
    }

    // Looks.

    pub fn state(&self) -> State {
        let on_disk = self
            .blocks
            .front()
            .is_some_and(|block| block.place.is_some());
        match () {
            () if self.is_empty() => State::Empty,
            () if self.trouble.is_some() => State::Failed,
            () if self.is_full() && (self.refused || self.settings.budget.is_none()) => State::Full,
            () if on_disk => State::Disk,
            () => State::Memory,
        }
    }

    /// What a person should know, if anything; one line.
    pub fn message(&self) -> Option<String> {
        match self.state() {
            State::Failed => {
                let why = self.trouble.as_deref().unwrap_or_default();
                let effect = match self.is_full() {
                    true => "not reading from the source",
                    false => "keeping what comes in memory",
                };
                Some(format!("spool: {why}: {effect}, retrying"))
            }
            State::Full => Some(format!(
                "spool: --spool-max ({} MiB) is used up: not reading from the source until the target has caught up with some",
                self.settings.budget.limit >> 20
            )),
            State::Empty | State::Memory | State::Disk => None,
        }
    }
}

/// What is on disk stays there, and counts no more.
impl Drop for Spool {
    fn drop(&mut self) {
        let bytes = self.segments.iter().map(|segment| segment.bytes).sum();
        self.settings.budget.give_back(bytes);
    }
}

#[cfg(test)]
impl Spool {
    pub fn blocks_in_memory(&self) -> usize {
        self.in_memory
    }

    pub fn budget(&self) -> &super::Budget {
        &self.settings.budget
    }

    pub fn written_until(&self) -> Offset {
        self.write_at
    }
}

fn segment_of(order: &Order) -> u64 {
    match order {
        Order::Create { segment, .. }
        | Order::Write { segment, .. }
        | Order::Read { segment, .. }
        | Order::Delete { segment } => *segment,
    }
}
