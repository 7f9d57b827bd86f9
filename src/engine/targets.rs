//! All target masters that a lane writes to: routing by slot, connections, staging of built commands.
//!
//! ```text
//! unit, slot -> routes[slot] -> connection's ledger                  the plain course
//!                            -> gathered, until what was sent before is answered    see `serial`
//!                            -> parked[slot], until released         see `redirect`
//! ```
//!
//! Invariant: the units of one slot reach the target in the order in which they were sent here. Each slot has
//! one connection at a time; it changes only when the former one has answered everything (`redirect`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::fence::Fence;
use super::marks::{Marks, hold_together};
use super::mending::Mends;
use super::options::{Grouping, OnDivergence};
use super::parked::Parked;
use super::retry::Gate;
use super::serial::{MULTI, Serial};
use super::status::{ErrorCount, LaneStatus};
use crate::checkpoint::{Generation, token_key};
use crate::chunk::{ChunkId, Chunks, Range};
use crate::command::{self, Learned, SlotOf};
use crate::fault::{Fault, FaultKind, Policy, Side};
use crate::limits;
use crate::position::Offset;
use crate::resp::{Frame, push_command, scan};
use crate::slot::{SLOT_COUNT, Slot, SlotSet};
use crate::target::{Form, Greeting, Guard, Outcome, Unit, Writer, WriterError};
use crate::topology::{Node, ServerRun, Topology, TopologyKind};

/// Marks in `routes` beside indices of `nodes`.
pub(super) const PARKED: u16 = u16::MAX;
pub(super) const NOBODY: u16 = u16::MAX - 1;
pub(super) const GATED: u16 = u16::MAX - 2;

/// No database of any server: the next unit is preceded by a `SELECT`.
const UNKNOWN_DATABASE: u32 = u32::MAX;

/// The state of a connection, as far as dialling goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Down { redial_at_ms: u64 },
    Dialing,
    Up,
}

/// One target master and the connection to it.
#[derive(Debug)]
pub(super) struct Target {
    pub node: Node,
    pub writer: Writer,
    pub link: Link,
    pub fence: Fence,
    /// Not to be asked about before, in milliseconds.
    pub fence_again_ms: u64,
    /// Which run of the server was last written to.
    pub run: Option<ServerRun>,
    /// Transactions that must not be repeated are without an answer, and their watermarks are not known.
    pub uncertain: bool,
    /// What is queued shall go elsewhere as soon as they are.
    pub leaving: bool,
    /// For what it refused for now.
    pub gate: Gate,
    failures: u32,
    /// Owns slots that this lane will need: worth dialling before there is something to send.
    pub needed: bool,
    /// The database of what was last pushed.
    database: u32,
    /// When it last answered, or last had nothing to answer.
    heard_ms: u64,
}

/// A unit without a slot that was refused and will be tried again at the same master.
#[derive(Debug)]
pub(super) struct Later {
    pub at_ms: u64,
    pub target: usize,
    pub unit: Unit,
}

#[derive(Debug)]
pub struct Targets {
    pub(super) topology: Arc<Topology>,
    greeting: Greeting,
    pub(super) nodes: Vec<Target>,
    pub(super) routes: Box<[u16]>,
    /// Who owns each slot by the topology.
    pub(super) owners: Box<[u16]>,
    /// When routes are compared with the owners again.
    pub(super) reconcile_at_ms: u64,
    /// In the order of slots: nothing that the lane does may hang on chance.
    pub(super) parked: BTreeMap<Slot, Parked>,
    pub(super) later: Vec<Later>,
    /// Slots that gather what comes, until what they sent is answered.
    pub(super) serial: Serial,
    pub(super) marks: Marks,
    /// The slot that last tried whether a refusal has passed: the next one is another's turn.
    pub(super) probed: Slot,
    /// Slots that a redirect gave to a connection, and until when that counts more than the topology.
    pub(super) redirected: BTreeMap<Slot, (usize, u64)>,
    /// Slots of the lane's source master.
    pub(super) slots: SlotSet,
    /// Commands that only the source could explain.
    pub learned: Learned,
    /// Slots of commands whose keys only the source could tell, by where they begin in the stream.
    pub told: BTreeMap<Offset, Slot>,
    pub(super) mends: Mends,
    /// Whatever is sent tells by its casing that it was replicated.
    pub(super) mark: bool,
    pub(super) status: Arc<LaneStatus>,
    pub(super) hint: bool,
    /// A flush could not be applied where it was sent: it must be planned again.
    pub(super) flush_displaced: bool,
    /// How often keys may have moved between masters, or another server may have taken a master's place.
    pub(super) changes: u64,
    /// Where commands are built for connections, a few of which share one: neighbours of one connection should be
    /// neighbours in memory, but a chunk for each of many masters would be more memory than a lane may have.
    pub(super) stagings: [Option<ChunkId>; limits::STAGING_CHUNKS],
    /// Built commands that belong to no connection yet.
    pub(super) staging: Option<ChunkId>,
    outcomes: Vec<Outcome>,
    /// Whether connections are written to only when the fence has said so.
    pub(super) fenced: bool,
    /// How many questions the fence was asked.
    pub(super) fences: u64,
    /// What the masters that were met write: who followed one of these is the heir of its master.
    pub(super) histories: BTreeSet<String>,
    /// A master took another's place.
    pub(super) rewound: Option<Fault>,
    /// Records that the target refused.
    pub(super) records_refused: u64,
    /// Whatever of the stream begins before this offset may have been applied already.
    pub(super) repeated_until: Offset,
    /// Replies of questions, by connection.
    pub(super) answers: Vec<(usize, Vec<u8>)>,
}

impl Targets {
    pub fn new(
        topology: Arc<Topology>,
        slots: SlotSet,
        greeting: Greeting,
        marks: Marks,
        on_divergence: OnDivergence,
        grouping: Grouping,
        status: Arc<LaneStatus>,
    ) -> Self {
        let mut targets = Self {
            topology: Arc::clone(&topology),
            greeting,
            nodes: Vec::new(),
            routes: vec![NOBODY; SLOT_COUNT].into(),
            owners: vec![NOBODY; SLOT_COUNT].into(),
            reconcile_at_ms: 0,
            parked: BTreeMap::new(),
            later: Vec::new(),
            serial: Serial::new(grouping),
            marks,
            probed: 0,
            redirected: BTreeMap::new(),
            slots,
            learned: Learned::default(),
            told: BTreeMap::new(),
            mends: Mends::new(on_divergence),
            mark: false,
            status,
            hint: false,
            flush_displaced: false,
            changes: 0,
            stagings: [None; limits::STAGING_CHUNKS],
            staging: None,
            outcomes: Vec::new(),
            fenced: false,
            histories: BTreeSet::new(),
            fences: 0,
            rewound: None,
            records_refused: 0,
            repeated_until: Offset::default(),
            answers: Vec::new(),
        };
        targets.learn_nodes(&topology);
        targets.routes.copy_from_slice(&targets.owners);
        targets.mark_needed();
        targets
    }

    /// Whether slots mean nothing to the target.
    pub fn is_single(&self) -> bool {
        self.topology.kind == TopologyKind::Single
    }

    /// How many connections there are to look after.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The slot by which `key` is routed. A single server is one slot: its commands keep their order altogether.
    #[inline]
    pub fn slot_of(&self, key: &[u8]) -> Slot {
        if self.is_single() {
            0
        } else {
            crate::slot::slot_of(key)
        }
    }

    // Topology.

    /// Adds masters that are new, takes changed addresses and owners over.
    pub(super) fn learn_nodes(&mut self, topology: &Topology) {
        self.owners.fill(NOBODY);
        for shard in &topology.shards {
            let known = self.nodes.iter().position(|t| t.node.id == shard.master.id);
            if let Some(index) = known {
                self.nodes[index].node = shard.master.clone();
            }
            let Some(index) = known.or_else(|| self.add_node(shard.master.clone())) else {
                continue;
            };
            if topology.kind == TopologyKind::Single {
                self.owners.fill(index as u16);
                return;
            }
            for slot in shard.slots.iter() {
                self.owners[usize::from(slot)] = index as u16;
            }
        }
    }

    /// A connection for a master that has none; `None` when there are too many.
    pub(super) fn add_node(&mut self, node: Node) -> Option<usize> {
        if self.nodes.len() >= limits::MAX_TARGET_NODES {
            return None;
        }
        self.nodes.push(Target {
            node,
            writer: Writer::new(self.greeting.clone()),
            link: Link::Down { redial_at_ms: 0 },
            fence: Fence::Quiet,
            fence_again_ms: 0,
            run: None,
            uncertain: false,
            leaving: false,
            gate: Gate::default(),
            failures: 0,
            needed: false,
            database: 0,
            heard_ms: 0,
        });
        Some(self.nodes.len() - 1)
    }

    pub(super) fn mark_needed(&mut self) {
        for target in &mut self.nodes {
            target.needed = false;
        }
        for slot in self.slots.iter() {
            let mut route = self.routes[usize::from(slot)];
            if route == PARKED || route == GATED {
                route = self.owners[usize::from(slot)];
            }
            if let Some(target) = self.nodes.get_mut(usize::from(route)) {
                target.needed = true;
            }
        }
    }

    // Sending.

    /// The source's stream ends here, and so does what a former process can have sent, however far ahead its records let it.
    pub(super) fn not_sent_from(&mut self, end: Offset) {
        self.repeated_until = self.repeated_until.min(end);
    }

    /// Hands a unit, with one hold on its chunk, to the owner of `slot`.
    #[inline]
    pub fn send(&mut self, chunks: &mut Chunks, slot: Slot, mut unit: Unit) {
        unit.again |= unit.begin < self.repeated_until;
        match self.mends.watches(slot) {
            true => self.send_mended(chunks, slot, unit),
            false => self.deliver(chunks, slot, unit),
        }
    }

    /// The same, whatever is mended: for what has been looked at.
    #[inline]
    pub(super) fn deliver(&mut self, chunks: &mut Chunks, slot: Slot, unit: Unit) {
        let route = self.routes[usize::from(slot)];
        if usize::from(route) < self.nodes.len() {
            if !self.nodes[usize::from(route)].gate.is_open() {
                self.hold_back(chunks, slot, usize::from(route), unit);
            } else if unit.guard == Guard::None {
                self.push(chunks, usize::from(route), unit);
            } else {
                self.send_guarded(chunks, slot, usize::from(route), unit);
            }
        } else if route == GATED {
            self.serial.gather(chunks, slot, unit);
        } else {
            self.park(slot).queued.push_back(unit);
        }
    }

    /// Hands a unit to one connection, after the `SELECT` that it may need.
    pub fn push(&mut self, chunks: &mut Chunks, index: usize, unit: Unit) {
        let target = &mut self.nodes[index];
        if target.database != unit.database {
            target.database = unit.database;
            let select = self.build(chunks, Form::Command, unit, |out| {
                push_command(out, &[b"SELECT", unit.database.to_string().as_bytes()]);
                1
            });
            self.nodes[index].writer.push(chunks, select);
        }
        self.nodes[index].writer.push(chunks, unit);
    }

    /// Builds a unit that stands at the same place of the stream as `like`.
    pub(super) fn build(
        &mut self,
        chunks: &mut Chunks,
        form: Form,
        like: Unit,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
    ) -> Unit {
        let (range, frames) = append_staged(chunks, &mut self.staging, self.mark, write);
        Unit {
            range,
            form,
            frames: frames as u32,
            begin: like.begin,
            end: like.begin,
            asking: false,
            again: false,
            guard: Guard::None,
            ..like
        }
    }

    /// A unit of these commands, in no database's or connection's place yet.
    pub(super) fn built_unit(
        &mut self,
        chunks: &mut Chunks,
        form: Form,
        at: Offset,
        database: u32,
        commands: &[u8],
        frames: usize,
    ) -> Unit {
        let (range, frames) = append_staged(chunks, &mut self.staging, self.mark, |out| {
            out.extend_from_slice(commands);
            frames
        });
        Unit {
            range,
            form,
            frames: frames as u32,
            begin: at,
            end: at,
            database,
            asking: false,
            again: false,
            guard: Guard::None,
        }
    }

    /// Builds commands for the owner of `slot` and sends them. `at` is the offset that stays unacknowledged until
    /// they are answered; `write` gives the number of commands.
    pub fn stage(
        &mut self,
        chunks: &mut Chunks,
        slot: Slot,
        at: Offset,
        database: u32,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
    ) {
        self.stage_as(chunks, slot, at..at, database, false, write);
    }

    /// Builds what stands for the stream from `begin` to `end`, unless that is applied already; see [`Targets::stage`].
    pub fn stage_for(
        &mut self,
        chunks: &mut Chunks,
        slot: Slot,
        begin: Offset,
        end: Offset,
        database: u32,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
    ) {
        if begin < self.marks.skip_until && self.marks.is_passed(slot, end) {
            let mut commands = Vec::new();
            write(&mut commands);
            self.look_through_passed(slot, &commands, database, begin);
            self.status.count(ErrorCount::Skipped);
        } else {
            self.stage_as(chunks, slot, begin..end, database, true, write);
        }
    }

    fn stage_as(
        &mut self,
        chunks: &mut Chunks,
        slot: Slot,
        at: std::ops::Range<Offset>,
        database: u32,
        of_stream: bool,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
    ) {
        let route = usize::from(self.routes[usize::from(slot)]);
        let staging = if route < self.nodes.len() {
            &mut self.stagings[route % limits::STAGING_CHUNKS]
        } else {
            &mut self.staging
        };
        let place = self.marks.place_of(slot);
        let (mark, link) = (self.mark, &self.marks.link);
        let (range, frames) = append_staged(chunks, staging, false, |out| {
            let start = out.len();
            let frames = write(out);
            // What is of the stream is guarded instead.
            match mark && !command::mark_from(out, start) && !of_stream && frames > 0 {
                true => frames + hold_together(out, start, &token_key(link, place)),
                false => frames,
            }
        });
        if frames == 0 {
            chunks.release(range.chunk);
            return;
        }
        let form = match chunks.get(range) {
            bytes if bytes.starts_with(MULTI) => Form::Transaction,
            _ => Form::Command,
        };
        let guard = match of_stream {
            true => self.guard_of(chunks.get(range)),
            false => Guard::None,
        };
        let unit = Unit {
            range,
            form,
            frames: frames as u32,
            begin: at.start,
            end: at.end,
            database,
            asking: false,
            again: false,
            guard,
        };
        self.send(chunks, slot, unit);
    }

    /// Builds one command for every master that owns slots of this lane, as far as `wanted` is true of its node id.
    pub fn broadcast(
        &mut self,
        chunks: &mut Chunks,
        at: Offset,
        wanted: impl Fn(&str) -> bool,
        write: impl Fn(&mut Vec<u8>),
    ) {
        let like = Unit {
            range: Range {
                chunk: staging_chunk(chunks, &mut self.staging),
                start: 0,
                end: 0,
            },
            form: Form::Command,
            frames: 0,
            begin: at,
            end: at,
            database: 0,
            asking: false,
            again: false,
            guard: Guard::None,
        };
        for index in 0..self.nodes.len() {
            if !self.nodes[index].needed || !wanted(&self.nodes[index].node.id) {
                continue;
            }
            let unit = self.build(chunks, Form::Command, like, |out| {
                write(out);
                1
            });
            match self.is_single() {
                // There everything keeps its order.
                true => self.send(chunks, 0, unit),
                false => self.push(chunks, index, unit),
            }
        }
    }

    /// Everything that a master holds in database 0 will be removed, the watermarks with it.
    pub fn forget_watermarks(&mut self, index: usize) {
        for slot in 0..SLOT_COUNT as Slot {
            if usize::from(self.owners[usize::from(slot)]) == index {
                self.marks.removed(slot);
            }
        }
    }

    /// The first master that owns slots of this lane: for what needs any one master.
    pub fn any(&self) -> Option<usize> {
        self.nodes.iter().position(|target| target.needed)
    }

    pub(super) fn park(&mut self, slot: Slot) -> &mut Parked {
        self.routes[usize::from(slot)] = PARKED;
        let parked = self.parked.entry(slot).or_default();
        if let Some((queue, target, number)) = self.serial.leave(slot) {
            parked.queued = queue;
            parked.wait_for(target, number);
        }
        parked
    }

    // Progress.

    /// Everything before this offset is answered, given that everything before `routed` was sent.
    pub fn acknowledged(&self, routed: Offset) -> Offset {
        let sent = self.nodes.iter().filter_map(|t| t.writer.unanswered_from());
        let parked = self.parked.values().filter_map(Parked::begin);
        let later = self.later.iter().map(|later| later.unit.begin);
        let waiting = parked.chain(later).chain(self.serial.begin());
        let waiting = waiting.chain(self.mends.begin());
        sent.chain(waiting).fold(routed, Offset::min)
    }

    /// Whether everything sent is answered, and nothing is held back.
    pub fn is_idle(&self) -> bool {
        self.mends.is_quiet() && self.is_answered()
    }

    /// Whether everything sent is answered.
    pub(super) fn is_answered(&self) -> bool {
        self.parked.is_empty()
            && self.later.is_empty()
            && self.serial.is_idle()
            && self.nodes.iter().all(|target| target.writer.is_idle())
    }

    /// A history begins of which nothing is applied.
    pub fn set_generation(&mut self, generation: Generation) {
        self.marks.begin(generation);
    }

    /// Gives everything up, for a lane that begins anew with a snapshot. What is on its way is followed by the new copy
    /// on the same connection: were the connection cut instead, the target could execute old commands after new ones.
    pub fn abandon(&mut self, chunks: &mut Chunks) {
        self.mends.abandon(chunks);
        let parked = std::mem::take(&mut self.parked);
        // All that is on its way for a slot that gathers is with one connection, and the copy goes behind it.
        for (slot, target, queue) in self.serial.clear() {
            self.routes[usize::from(slot)] = target as u16;
            for unit in queue {
                chunks.release(unit.range.chunk);
            }
        }
        for later in self.later.drain(..) {
            chunks.release(later.unit.range.chunk);
        }
        self.answers.clear();
        self.told.clear();
        for target in &mut self.nodes {
            target.writer.abandon(chunks);
            (target.uncertain, target.leaving) = (false, false);
            // A `SELECT` may have been given up.
            target.database = UNKNOWN_DATABASE;
        }
        for (slot, former) in parked {
            for unit in former.into_units() {
                chunks.release(unit.range.chunk);
            }
            // What is on its way for such a slot may be with another master than the one that gets the copy.
            let mut waiting = Parked::default();
            for (index, target) in self.nodes.iter().enumerate() {
                if !target.writer.is_idle() {
                    waiting.wait_for(index, target.writer.next_number());
                }
            }
            self.parked.insert(slot, waiting);
        }
    }

    /// Connections that have left commands without an answer for too long, taken as lost. They must be closed.
    ///
    /// # Errors
    /// As for [`Targets::lost`].
    pub fn take_silent(&mut self, chunks: &mut Chunks, now_ms: u64) -> Result<Vec<usize>, Fault> {
        let mut silent = Vec::new();
        for index in 0..self.nodes.len() {
            let target = &mut self.nodes[index];
            if target.link != Link::Up || !target.writer.awaits() {
                target.heard_ms = now_ms;
            } else if now_ms.saturating_sub(target.heard_ms) >= limits::MAX_SILENCE_MS {
                silent.push(index);
                self.lost(chunks, index, silence(), now_ms)?;
            }
        }
        Ok(silent)
    }

    // Connections.

    /// A connection that should be dialled now: its index, and where it leads.
    pub fn next_dial(&mut self, now_ms: u64) -> Option<(usize, String, u16)> {
        let index = self.nodes.iter().position(|target| {
            let due = matches!(target.link, Link::Down { redial_at_ms } if redial_at_ms <= now_ms);
            due && (target.needed || !target.writer.is_idle())
        })?;
        let target = &mut self.nodes[index];
        target.link = Link::Dialing;
        Some((index, target.node.address.clone(), target.node.port))
    }

    pub fn connected(&mut self, index: usize) {
        let target = &mut self.nodes[index];
        target.link = Link::Up;
        // A new connection begins with database 0; the writer selects that of what waits, if something does.
        if target.writer.is_idle() {
            target.database = 0;
        }
        target.writer.connected();
    }

    /// The connection is gone, or could not be had.
    ///
    /// # Errors
    /// When trying again cannot help.
    pub fn lost(
        &mut self,
        chunks: &mut Chunks,
        index: usize,
        fault: Fault,
        now_ms: u64,
    ) -> Result<(), Fault> {
        let target = &mut self.nodes[index];
        let fault = fault.at(format_args!("target {}", target.node.name()));
        if fault.policy() != Policy::Retry {
            return Err(fault);
        }
        self.changes += 1;
        if target.link == Link::Up {
            self.status.count(ErrorCount::TargetLost);
            target.writer.lost(chunks);
            self.note_uncertain(chunks, index);
            // Sent again by itself, what is in flight of a parked slot would overtake what was refused.
            if self.parked.values().any(|parked| parked.waits_on(index)) {
                match self.nodes[index].uncertain {
                    true => self.nodes[index].leaving = true,
                    false => self.evacuate(chunks, index),
                }
            }
        }
        let target = &mut self.nodes[index];
        let wait = (limits::MIN_REDIAL_MS << target.failures.min(6)).min(limits::MAX_REDIAL_MS);
        target.failures += 1;
        target.link = Link::Down {
            redial_at_ms: now_ms + wait,
        };
        self.status.set_message(&fault.message);
        self.hint = true;
        Ok(())
    }

    /// Takes received replies of one connection.
    ///
    /// # Errors
    /// The connection must then be closed and [`Targets::lost`] be told, with this fault.
    pub fn received(
        &mut self,
        chunks: &mut Chunks,
        index: usize,
        bytes: &[u8],
        now_ms: u64,
    ) -> Result<(), Fault> {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        self.nodes[index].heard_ms = now_ms;
        let result = self.nodes[index]
            .writer
            .replies(bytes, chunks, &mut outcomes);
        let mut fault = None;
        for outcome in outcomes.drain(..) {
            match outcome {
                Outcome::Greeted => {
                    self.nodes[index].failures = 0;
                    self.greeted(index);
                }
                Outcome::Answer(bytes) => self.answers.push((index, bytes)),
                Outcome::Rejected { unit, kind, text } => {
                    let rejected = self.rejected(chunks, index, unit, kind, &text, now_ms);
                    fault = fault.or(rejected.err());
                }
                Outcome::Passed(unit) => {
                    let passed = self.passed(chunks, index, unit);
                    fault = fault.or(passed.err());
                }
                // Repeated behind what it overtook, see [`Targets::passed`].
                Outcome::FailedInside { unit, .. } if self.has_overtaken(chunks, index, unit) => {}
                Outcome::FailedInside { unit, behind, text } => {
                    let diverged = self.diverged(chunks, index, unit, Some(behind), &text);
                    fault = fault.or(diverged.err());
                }
            }
        }
        self.outcomes = outcomes;
        self.go_on(chunks, index, now_ms);
        if !self.parked.is_empty() || !self.later.is_empty() {
            self.release_ready(chunks, now_ms);
        }
        result.map_err(|error| writer_fault(&self.nodes[index].node.name(), error))?;
        fault.map_or(Ok(()), Err)
    }

    /// The slot by which a unit keeps its order; `None` for what belongs to no slot of a cluster.
    pub(super) fn slot_of_unit(&self, chunks: &Chunks, unit: Unit) -> Option<Slot> {
        if self.is_single() {
            return Some(0);
        }
        if unit.form == Form::Question {
            return None;
        }
        let mut rest = chunks.get(unit.range);
        while let Ok(Some(frame)) = scan(rest) {
            if let SlotOf::One(slot) = self.slot_of_frame(&frame) {
                return Some(slot);
            }
            rest = &rest[frame.bytes().len()..];
        }
        let at = self.told.get(&unit.begin);
        let mut within = self.told.range(unit.begin..unit.end.max(unit.begin));
        at.or_else(|| within.next().map(|(_, slot)| slot)).copied()
    }

    /// The slot of a command in a cluster, by its keys.
    pub(super) fn slot_of_frame(&self, frame: &Frame<'_>) -> SlotOf {
        command::find(frame)
            .or_else(|| self.learned.get(frame.verb()))
            .and_then(|command| command::one_slot(frame, command).ok())
            .unwrap_or(SlotOf::None)
    }
}

/// The fault of a peer that says nothing although it should.
pub(super) fn silence() -> Fault {
    Fault::new(
        FaultKind::ConnectionLost,
        format!(
            "nothing was heard for {} s although something is due",
            limits::MAX_SILENCE_MS / 1000
        ),
    )
}

fn writer_fault(who: &str, error: WriterError) -> Fault {
    match error {
        WriterError::Refused { text, .. } => Fault::from_reply(Side::Target, who, &text),
        error => Fault::new(FaultKind::Protocol, error.to_string()),
    }
}

/// Appends to the staging chunk.
fn append_staged(
    chunks: &mut Chunks,
    staging: &mut Option<ChunkId>,
    mark: bool,
    write: impl FnOnce(&mut Vec<u8>) -> usize,
) -> (Range, usize) {
    let chunk = staging_chunk(chunks, staging);
    let appended = chunks.append(chunk, |out| {
        let start = out.len();
        let frames = write(out);
        if mark {
            command::mark_from(out, start);
        }
        frames
    });
    keep_staging(chunks, staging);
    appended
}

/// Gives a staging chunk that had to grow up.
pub(super) fn keep_staging(chunks: &mut Chunks, staging: &mut Option<ChunkId>) {
    if let Some(chunk) = staging.take_if(|chunk| chunks.is_oversized(*chunk)) {
        chunks.release(chunk);
    }
}

/// A chunk with room to append to: the current one, or a fresh one when that is half full.
pub(super) fn staging_chunk(chunks: &mut Chunks, staging: &mut Option<ChunkId>) -> ChunkId {
    if let Some(id) = *staging {
        if chunks.filled(id) <= limits::CHUNK_BYTES / 2 || chunks.rewind(id) {
            return id;
        }
        chunks.release(id);
    }
    let id = chunks.take_empty(limits::CHUNK_BYTES);
    *staging = Some(id);
    id
}
