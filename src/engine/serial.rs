//! Commands that must not be applied twice: nothing of their slot is on its way together with them, and a watermark
//! is set with them.
//!
//! ```text
//! INCR k comes  -> its connection is idle -> goes out at once       -> the slot gathers, until that is answered
//!               -> otherwise              -> the slot gathers, until everything sent before is answered
//! gathered      -> nothing                -> the slot is open again
//!               -> all may be repeated    -> goes out as it is, and the slot is open again
//!               -> something may not      -> goes out as one group:  MULTI .. INCR k .. SET watermark .. EXEC
//! ```
//!
//! So whether a group was applied can be read from its slot, and a busy slot makes larger groups by itself. What is sent
//! before is known by the numbers of its connection's runs, for all slots alike: a slot that gathers waits for one number,
//! and slots that wait for the same connection stand in line by these. When a command of the slot is refused, what was
//! gathered waits behind it (`parked`).
//!
//! Where many slots are each written to seldom, groups of one or two would cost the target three times what their commands do.
//! So when a lane has many such commands, a slot that may go on is held until it has gathered enough or some time has passed
//! ([`Grouping`]). It goes on at once when a command comes that gains nothing from this, if a client of the source waits for its
//! writes (`WAIT`), if the lane must stand still or ends, and when memory gets short.
//!
//! Not guarded: what a copy writes, since a copy that broke off is made again; what settles leases and removes stale keys,
//! which may be repeated; what belongs to no slot.

use std::collections::{BTreeSet, VecDeque};

use super::options::Grouping;
use super::redirect::first_frame_settles;
use super::targets::{GATED, NOBODY, Targets, staging_chunk};
use crate::chunk::{Chunks, Piece};
use crate::command::{self, Replay};
use crate::limits;
use crate::position::Offset;
use crate::resp::{Frame, push_command, scan};
use crate::slot::Slot;
use crate::target::{Form, Guard, Unit};

pub(super) const MULTI: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";
pub(super) const EXEC: &[u8] = b"*1\r\n$4\r\nEXEC\r\n";

/// No place in [`Serial::lines`].
const NONE: u16 = u16::MAX;

/// Slots that gather. They are all that `routes` calls [`GATED`].
#[derive(Debug)]
pub(super) struct Serial {
    /// The place in `lines` of each slot.
    places: Box<[u16]>,
    lines: Vec<Line>,
    /// Places without a slot.
    free: Vec<u16>,
    /// By connection: run numbers that are waited for, rising, and by whom. Whoever has left meanwhile is passed over.
    waiting: Vec<VecDeque<(u64, Slot)>>,
    /// Where what is gathered begins, of each slot that has gathered something.
    begins: BTreeSet<(Offset, Slot)>,
    grouping: Grouping,
    /// Slots that may go on and are held, and since when. Whoever has left, or has gathered enough, is passed over.
    held: VecDeque<(u64, Slot)>,
    /// Slots that were held and have gathered enough.
    full: Vec<Slot>,
    /// Nothing shall be held.
    pub hurry: bool,
    rate: Rate,
    pub now_ms: u64,
    /// The commands behind a group's own.
    tail: Vec<u8>,
}

/// What a slot has gathered, and what it waits for.
#[derive(Debug)]
struct Line {
    /// `None` for one that is free.
    slot: Option<Slot>,
    queue: VecDeque<Unit>,
    /// Commands in `queue`.
    frames: u32,
    /// Where the earliest of these begins.
    begin: Offset,
    standing: Standing,
    /// The connection that has everything that is on its way for the slot.
    target: usize,
    /// The slot goes on when every run of that connection below this number is answered.
    number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Something of the slot may be on its way.
    Waits,
    /// It may go on, and is held.
    Held,
    /// It has been held, and has gathered enough.
    Full,
}

/// How many commands come that must not be applied twice.
#[derive(Debug, Default)]
struct Rate {
    count: u64,
    since_ms: u64,
    /// So many that slots are held.
    is_high: bool,
}

impl Rate {
    /// So many have come. When they are many for a whole measure, its end is not waited for: loads may be short.
    fn add(&mut self, count: u32, high: u64) {
        self.count += u64::from(count);
        self.is_high |= self.count * 1000 >= high.saturating_mul(limits::GROUPING_MEASURE_MS);
    }

    /// To be called with every tick. `high`: how many a second are many.
    fn measure(&mut self, high: u64, now_ms: u64) {
        let elapsed = now_ms.saturating_sub(self.since_ms);
        if elapsed >= limits::GROUPING_MEASURE_MS {
            self.is_high = self.count * 1000 >= high.saturating_mul(elapsed);
            self.count = 0;
            self.since_ms = now_ms;
        }
    }
}

impl Serial {
    pub fn new(grouping: Grouping) -> Self {
        Self {
            places: vec![NONE; crate::slot::SLOT_COUNT].into(),
            lines: Vec::new(),
            free: Vec::new(),
            waiting: Vec::new(),
            begins: BTreeSet::new(),
            grouping,
            held: VecDeque::new(),
            full: Vec::new(),
            hurry: false,
            rate: Rate::default(),
            now_ms: 0,
            tail: Vec::new(),
        }
    }

    /// Whether nothing is gathered.
    pub fn is_idle(&self) -> bool {
        self.begins.is_empty()
    }

    /// Where the first of what is gathered begins.
    pub fn begin(&self) -> Option<Offset> {
        self.begins.first().map(|(begin, _)| *begin)
    }

    /// The connection whose answers a slot waits for.
    pub fn target_of(&self, slot: Slot) -> Option<usize> {
        let line = self
            .lines
            .get(usize::from(self.places[usize::from(slot)]))?;
        Some(line.target)
    }

    /// What a slot has gathered.
    pub fn units(&self, slot: Slot) -> impl Iterator<Item = Unit> {
        let line = self.lines.get(usize::from(self.places[usize::from(slot)]));
        line.into_iter().flat_map(|line| line.queue.iter().copied())
    }

    /// Whether a slot waits for answers of connection `index`.
    pub fn waits_on(&self, index: usize) -> bool {
        let mut lines = self.lines.iter();
        lines.any(|line| line.slot.is_some() && line.target == index)
    }

    /// A slot begins to gather.
    fn open(&mut self, slot: Slot) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.lines.push(Line {
                slot: None,
                queue: VecDeque::new(),
                frames: 0,
                begin: Offset::default(),
                standing: Standing::Waits,
                target: 0,
                number: 0,
            });
            (self.lines.len() - 1) as u16
        });
        self.places[usize::from(slot)] = place;
        self.lines[usize::from(place)].slot = Some(slot);
    }

    fn line(&mut self, slot: Slot) -> &mut Line {
        &mut self.lines[usize::from(self.places[usize::from(slot)])]
    }

    /// Adds what came for a slot that gathers.
    pub fn gather(&mut self, chunks: &mut Chunks, slot: Slot, unit: Unit) {
        if unit.guard == Guard::Needed {
            self.rate.add(unit.frames, self.grouping.high_rate);
        }
        let line = &mut self.lines[usize::from(self.places[usize::from(slot)])];
        line.frames = line.frames.saturating_add(unit.frames);
        let enough = line.frames >= self.grouping.enough || unit.guard != Guard::Needed;
        if line.standing == Standing::Held && enough {
            line.standing = Standing::Full;
            self.full.push(slot);
        }
        let Some(last) = line.queue.back_mut() else {
            line.queue.push_back(unit);
            line.begin = unit.begin;
            self.begins.insert((unit.begin, slot));
            return;
        };
        let fits = last.frames + unit.frames <= limits::GROUP_COMMANDS;
        if fits && last.join(&unit, limits::GROUP_BYTES) {
            chunks.release(unit.range.chunk);
        } else {
            line.queue.push_back(unit);
        }
        // A question that was refused goes before what came sooner.
        if unit.begin < line.begin {
            let former = std::mem::replace(&mut line.begin, unit.begin);
            self.begins.remove(&(former, slot));
            self.begins.insert((unit.begin, slot));
        }
    }

    /// Takes everything that was gathered out, to be put back or closed.
    fn take(&mut self, slot: Slot) -> VecDeque<Unit> {
        let line = self.line(slot);
        let queue = std::mem::take(&mut line.queue);
        let begin = line.begin;
        if !queue.is_empty() {
            self.begins.remove(&(begin, slot));
        }
        queue
    }

    /// Has a slot wait until connection `target` has answered every run below `number`.
    fn wait(&mut self, slot: Slot, queue: VecDeque<Unit>, target: usize, number: u64) {
        let begin = queue.iter().map(|unit| unit.begin).min();
        let frames = queue.iter().map(|unit| unit.frames);
        let frames = frames.fold(0, u32::saturating_add);
        if let Some(begin) = begin {
            self.begins.insert((begin, slot));
        }
        if self.waiting.len() <= target {
            self.waiting.resize_with(target + 1, VecDeque::new);
        }
        self.waiting[target].push_back((number, slot));
        let line = self.line(slot);
        line.frames = frames;
        line.queue = queue;
        line.begin = begin.unwrap_or_default();
        line.standing = Standing::Waits;
        line.target = target;
        line.number = number;
    }

    /// The slot gathers no more. `queue` is empty, and kept for the next one.
    fn close(&mut self, slot: Slot, mut queue: VecDeque<Unit>) {
        if queue.capacity() > limits::KEPT_QUEUE_UNITS {
            queue = VecDeque::new();
        }
        let line = self.line(slot);
        line.queue = queue;
        line.frames = 0;
        line.standing = Standing::Waits;
        line.slot = None;
        let place = std::mem::replace(&mut self.places[usize::from(slot)], NONE);
        self.free.push(place);
    }

    /// The slot gathers no more: what it has gathered, and the connection and the run number that it waited for.
    pub fn leave(&mut self, slot: Slot) -> Option<(VecDeque<Unit>, usize, u64)> {
        if self.places[usize::from(slot)] == NONE {
            return None;
        }
        let queue = self.take(slot);
        let (target, number) = (self.line(slot).target, self.line(slot).number);
        self.close(slot, VecDeque::new());
        Some((queue, target, number))
    }

    /// A slot that has waited long enough for connection `index`, which has answered every run below `answered_to`.
    fn next_ready(&mut self, index: usize, answered_to: u64) -> Option<Slot> {
        let waiting = self.waiting.get_mut(index)?;
        while let Some(&(number, slot)) = waiting.front()
            && number <= answered_to
        {
            waiting.pop_front();
            let line = self.lines.get(usize::from(self.places[usize::from(slot)]));
            if line.is_some_and(|line| line.target == index && line.number == number) {
                return Some(slot);
            }
        }
        None
    }

    /// Whether a slot that may go on shall gather more before; it is noted then.
    fn holds(&mut self, slot: Slot) -> bool {
        let line = &mut self.lines[usize::from(self.places[usize::from(slot)])];
        let wanted = self.rate.is_high && !self.hurry && line.frames < self.grouping.enough;
        let other = || line.queue.iter().any(|unit| unit.guard != Guard::Needed);
        if !wanted || line.queue.is_empty() || other() {
            return false;
        }
        line.standing = Standing::Held;
        self.held.push_back((self.now_ms, slot));
        true
    }

    /// A slot that has been held long enough, and the connection that it had waited for. `short`: memory is.
    fn next_held(&mut self, short: bool) -> Option<(Slot, usize)> {
        while let Some(slot) = self.full.pop() {
            if let Some(index) = self.let_go(slot, Standing::Full) {
                return Some((slot, index));
            }
        }
        let all = short || self.hurry || !self.rate.is_high;
        while let Some(&(since_ms, slot)) = self.held.front()
            && (all || self.now_ms.saturating_sub(since_ms) >= self.grouping.wait_ms)
        {
            self.held.pop_front();
            if let Some(index) = self.let_go(slot, Standing::Held) {
                return Some((slot, index));
            }
        }
        None
    }

    fn let_go(&mut self, slot: Slot, standing: Standing) -> Option<usize> {
        let place = usize::from(self.places[usize::from(slot)]);
        let line = self.lines.get_mut(place)?;
        if line.standing != standing {
            return None;
        }
        line.standing = Standing::Waits;
        Some(line.target)
    }

    /// Time has passed.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.rate.measure(self.grouping.high_rate, now_ms);
    }

    /// Forgets everything. Gives the slots that gathered, with their connections, and what they had.
    pub fn clear(&mut self) -> Vec<(Slot, usize, VecDeque<Unit>)> {
        let former = std::mem::replace(self, Self::new(self.grouping));
        self.now_ms = former.now_ms;
        let lines = former.lines.into_iter();
        lines
            .filter_map(|line| Some((line.slot?, line.target, line.queue)))
            .collect()
    }
}

/// What goes out next of what was gathered.
enum Batch {
    /// So many units as they are.
    Plain(usize),
    /// So many units as one group.
    Group(usize),
}

impl Targets {
    /// What the commands of `bytes` need, those of a transaction included.
    pub(super) fn guard_of(&self, bytes: &[u8]) -> Guard {
        let mut rest = bytes;
        while let Ok(Some(frame)) = scan(rest) {
            rest = &rest[frame.bytes().len()..];
            if self.must_not_repeat(&frame) {
                return Guard::Needed;
            }
        }
        Guard::None
    }

    /// Whether a command must not be applied twice, as far as is known.
    pub(super) fn must_not_repeat(&self, frame: &Frame<'_>) -> bool {
        let command = command::find(frame).or_else(|| self.learned.get(frame.verb()));
        command.is_none_or(|command| {
            let loses_mark = self.mark && !command::keeps_mark(frame, command);
            loses_mark || command::replay(frame, command) != Replay::Same
        })
    }

    /// Sends a unit that needs a guard, when it may go.
    #[cold]
    pub(super) fn send_guarded(
        &mut self,
        chunks: &mut Chunks,
        slot: Slot,
        index: usize,
        unit: Unit,
    ) {
        self.serial.open(slot);
        self.serial.gather(chunks, slot, unit);
        if self.nodes[index].writer.is_idle() {
            self.send_gathered(chunks, slot, index);
        } else {
            let queue = self.serial.take(slot);
            self.gate(slot, index, queue);
        }
    }

    /// Sends a unit that sets its watermark itself, of a slot that nothing is on its way for and that does not gather. What
    /// comes behind it gathers.
    pub(super) fn send_given(&mut self, chunks: &mut Chunks, slot: Slot, unit: Unit) {
        let index = usize::from(self.routes[usize::from(slot)]);
        let target = self.nodes.get(index);
        if target.is_none_or(|target| !target.gate.is_open()) {
            return self.deliver(chunks, slot, unit);
        }
        self.serial.open(slot);
        self.push(chunks, index, unit);
        self.gate(slot, index, VecDeque::new());
    }

    /// Sends `units` of a slot that nothing is on its way for, and that does not gather, as far as they may go.
    pub(super) fn send_all(
        &mut self,
        chunks: &mut Chunks,
        slot: Slot,
        index: usize,
        units: impl Iterator<Item = Unit>,
    ) {
        self.serial.open(slot);
        for unit in units {
            self.serial.gather(chunks, slot, unit);
        }
        self.send_gathered(chunks, slot, index);
    }

    /// Lets slots go on that waited for what connection `index` has answered.
    pub(super) fn go_on(&mut self, chunks: &mut Chunks, index: usize, now_ms: u64) {
        let answered_to = self.nodes[index].writer.answered_to();
        self.serial.now_ms = now_ms;
        while let Some(slot) = self.serial.next_ready(index, answered_to) {
            if !self.serial.holds(slot) {
                self.serve(chunks, slot, index, now_ms);
            }
        }
    }

    /// Lets slots go on that were held to gather more.
    pub(super) fn release_held(&mut self, chunks: &mut Chunks) {
        let short = chunks.in_use() > limits::HELD_BUFFER_BYTES;
        while let Some((slot, former)) = self.serial.next_held(short) {
            self.serve(chunks, slot, former, self.serial.now_ms);
        }
    }

    /// A slot goes on: nothing is on its way for it.
    fn serve(&mut self, chunks: &mut Chunks, slot: Slot, former: usize, now_ms: u64) {
        let owner = self.next_owner(slot, now_ms);
        let refuses = |targets: &Self| !targets.nodes[usize::from(owner)].gate.is_open();
        if self.serial.line(slot).queue.is_empty() {
            let queue = self.serial.take(slot);
            self.serial.close(slot, queue);
            self.routes[usize::from(slot)] = match owner {
                NOBODY => former as u16,
                owner => owner,
            };
        } else if owner == NOBODY {
            self.park(slot);
        } else if refuses(self) {
            self.park(slot).retry.get_or_insert_default();
        } else {
            self.send_gathered(chunks, slot, usize::from(owner));
        }
    }

    /// Sends the next of what a slot has gathered, which nothing is on its way for.
    fn send_gathered(&mut self, chunks: &mut Chunks, slot: Slot, index: usize) {
        let mut queue = self.serial.take(slot);
        let mut guarded = false;
        match self.next_batch(chunks, &queue) {
            Batch::Plain(count) => {
                for unit in queue.drain(..count) {
                    guarded |= unit.guard != Guard::None;
                    self.push(chunks, index, unit);
                }
            }
            Batch::Group(count) => {
                let units = &queue.make_contiguous()[..count];
                let group = self.group(chunks, slot, index, units);
                queue.drain(..count);
                guarded = true;
                self.push(chunks, index, group);
            }
        }
        if guarded || !queue.is_empty() {
            self.gate(slot, index, queue);
        } else {
            self.serial.close(slot, queue);
            self.routes[usize::from(slot)] = index as u16;
        }
    }

    /// The slot gathers until everything that connection `index` was given is answered.
    fn gate(&mut self, slot: Slot, index: usize, queue: VecDeque<Unit>) {
        let number = self.nodes[index].writer.next_number();
        self.serial.wait(slot, queue, index, number);
        self.routes[usize::from(slot)] = GATED;
    }

    /// How many of these units may go out together, and how.
    fn next_batch(&self, chunks: &Chunks, queue: &VecDeque<Unit>) -> Batch {
        if queue.iter().all(|unit| unit.guard == Guard::None) {
            return Batch::Plain(queue.len());
        }
        let first = queue[0];
        // A script that settles leases may fail for reasons that pass, and is then tried again by itself.
        let alone = |unit: &Unit| {
            let asks = unit.form == Form::Question;
            unit.guard == Guard::Given || asks || first_frame_settles(chunks, *unit)
        };
        if alone(&first) {
            return Batch::Plain(1);
        }
        let (mut bytes, mut frames) = (0, 0u32);
        let together = queue.iter().take_while(|unit| {
            let fits = unit.database == first.database && unit.again == first.again && !alone(unit);
            bytes += unit.range.len();
            frames = frames.saturating_add(unit.frames);
            fits && bytes <= limits::GROUP_BYTES && frames <= limits::GROUP_COMMANDS
        });
        // One alone may be larger.
        let count = together.count().max(1);
        match queue.range(..count).all(|unit| unit.guard == Guard::None) {
            true => Batch::Plain(count),
            false => Batch::Group(count),
        }
    }

    /// The same unit as it may be sent.
    pub(super) fn guarded(
        &mut self,
        chunks: &mut Chunks,
        slot: Slot,
        index: usize,
        unit: Unit,
    ) -> Unit {
        match unit.guard {
            Guard::Needed => self.group(chunks, slot, index, &[unit]),
            _ => unit,
        }
    }

    /// Makes one transaction of `units`, with the watermark behind them; takes their holds over.
    pub(super) fn group(
        &mut self,
        chunks: &mut Chunks,
        slot: Slot,
        index: usize,
        units: &[Unit],
    ) -> Unit {
        let first = units[0];
        let begin = units
            .iter()
            .map(|unit| unit.begin)
            .fold(first.begin, Offset::min);
        // What was built here may stand before what came sooner, when it was refused, and tells nothing of the stream.
        let of_stream = units.iter().filter(|unit| unit.begin < unit.end);
        let end = of_stream.map(|unit| unit.end).fold(begin, Offset::max);
        let owed = self.mends.name_owed(slot);
        let tail = &mut self.serial.tail;
        tail.clear();
        let elsewhere = first.database != 0;
        if elsewhere {
            push_command(tail, &[b"SELECT", b"0"]);
        }
        self.marks.write(slot, end, owed, tail);
        if elsewhere {
            push_command(tail, &[b"SELECT", first.database.to_string().as_bytes()]);
        }
        if self.mark {
            command::mark_from(tail, 0);
        }
        tail.extend_from_slice(EXEC);
        let around = if elsewhere { 5 } else { 3 };
        let own = |unit: &Unit| match unit.form {
            Form::Transaction => {
                let mut range = unit.range;
                range.start += MULTI.len() as u32;
                range.end -= EXEC.len() as u32;
                (range, unit.frames - 2)
            }
            _ => (unit.range, unit.frames),
        };
        let frames: u32 = units.iter().map(|unit| own(unit).1).sum();
        let staging = &mut self.stagings[index % limits::STAGING_CHUNKS];
        let chunk = staging_chunk(chunks, staging);
        let pieces = std::iter::once(Piece::Bytes(MULTI))
            .chain(units.iter().map(|unit| Piece::Of(own(unit).0)))
            .chain(std::iter::once(Piece::Bytes(tail)));
        let range = chunks.assemble(chunk, pieces);
        super::targets::keep_staging(chunks, staging);
        for unit in units {
            chunks.release(unit.range.chunk);
        }
        Unit {
            range,
            form: Form::Transaction,
            frames: frames + around,
            begin,
            end,
            guard: Guard::Given,
            ..first
        }
    }
}
