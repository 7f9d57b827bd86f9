//! All target masters that a lane writes to: routing by slot, connections, staging of built commands.
//!
//! ```text
//! unit, slot -> routes[slot] -> connection's ledger                  the plain course
//!                            -> parked[slot], until released         see `redirect`
//! ```
//!
//! Invariant: the units of one slot reach the target in the order in which they were sent here. Each slot has
//! one connection at a time; it changes only when the former one has answered everything (`redirect`).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::parked::Parked;
use super::status::LaneStatus;
use crate::chunk::{ChunkId, Chunks};
use crate::command::{self, Learned, SlotOf};
use crate::fault::{Fault, FaultKind, Policy};
use crate::limits;
use crate::position::Offset;
use crate::resp::{Frame, push_command, scan};
use crate::slot::{SLOT_COUNT, Slot, SlotSet};
use crate::target::{Form, Greeting, Outcome, Unit, Writer, WriterError};
use crate::topology::{Node, Topology, TopologyKind};

/// Marks in `routes` beside indices of `nodes`.
pub(super) const PARKED: u16 = u16::MAX;
pub(super) const NOBODY: u16 = u16::MAX - 1;

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
    failures: u32,
    /// Owns slots that this lane will need: worth dialling before there is something to send.
    pub needed: bool,
    /// The database of what was last pushed.
    database: u32,
    staging: Option<ChunkId>,
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
    /// In the order of slots: nothing that the lane does may hang on chance.
    pub(super) parked: BTreeMap<Slot, Parked>,
    pub(super) later: Vec<Later>,
    /// Slots that a redirect gave to a connection, and until when that counts more than the topology.
    pub(super) redirected: BTreeMap<Slot, (usize, u64)>,
    /// Slots of the lane's source master.
    pub(super) slots: SlotSet,
    /// Commands that only the source could explain.
    pub learned: Learned,
    /// Slots of commands whose keys only the source could tell, by where they begin in the stream.
    pub told: BTreeMap<Offset, Slot>,
    pub(super) continue_on_divergence: bool,
    pub(super) status: Arc<LaneStatus>,
    pub(super) hint: bool,
    /// Built commands that belong to no connection yet.
    pub(super) staging: Option<ChunkId>,
    outcomes: Vec<Outcome>,
    /// Replies of questions, by connection.
    pub(super) answers: Vec<(usize, Vec<u8>)>,
}

impl Targets {
    pub fn new(
        topology: Arc<Topology>,
        slots: SlotSet,
        greeting: Greeting,
        continue_on_divergence: bool,
        status: Arc<LaneStatus>,
    ) -> Self {
        let mut targets = Self {
            topology: Arc::clone(&topology),
            greeting,
            nodes: Vec::new(),
            routes: vec![NOBODY; SLOT_COUNT].into(),
            parked: BTreeMap::new(),
            later: Vec::new(),
            redirected: BTreeMap::new(),
            slots,
            learned: Learned::default(),
            told: BTreeMap::new(),
            continue_on_divergence,
            status,
            hint: false,
            staging: None,
            outcomes: Vec::new(),
            answers: Vec::new(),
        };
        targets.learn_nodes(&topology);
        for slot in 0..SLOT_COUNT as Slot {
            targets.routes[usize::from(slot)] = targets.owner_by_topology(slot);
        }
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

    /// Adds masters that are new and takes changed addresses over.
    pub(super) fn learn_nodes(&mut self, topology: &Topology) {
        for shard in &topology.shards {
            match self.nodes.iter_mut().find(|t| t.node.id == shard.master.id) {
                Some(known) => known.node = shard.master.clone(),
                None => {
                    self.add_node(shard.master.clone());
                }
            }
        }
    }

    pub(super) fn add_node(&mut self, node: Node) -> usize {
        assert!(
            self.nodes.len() < limits::MAX_TARGET_NODES,
            "the topology bounds masters; those that left stay few"
        );
        self.nodes.push(Target {
            node,
            writer: Writer::new(self.greeting.clone()),
            link: Link::Down { redial_at_ms: 0 },
            failures: 0,
            needed: false,
            database: 0,
            staging: None,
        });
        self.nodes.len() - 1
    }

    pub(super) fn owner_by_topology(&self, slot: Slot) -> u16 {
        let owner = if self.is_single() {
            self.topology.shards.first().map(|shard| &shard.master)
        } else {
            self.topology.master_of(slot)
        };
        owner
            .and_then(|node| self.nodes.iter().position(|t| t.node.id == node.id))
            .map_or(NOBODY, |index| index as u16)
    }

    pub(super) fn mark_needed(&mut self) {
        for target in &mut self.nodes {
            target.needed = false;
        }
        for slot in self.slots.iter() {
            let route = self.routes[usize::from(slot)];
            if let Some(target) = self.nodes.get_mut(usize::from(route)) {
                target.needed = true;
            }
        }
    }

    // Sending.

    /// Hands a unit, with one hold on its chunk, to the owner of `slot`.
    #[inline]
    pub fn send(&mut self, chunks: &mut Chunks, slot: Slot, unit: Unit) {
        let route = self.routes[usize::from(slot)];
        if usize::from(route) < self.nodes.len() {
            self.push(chunks, usize::from(route), unit);
        } else {
            self.park(slot).queue(unit);
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
        let chunk = staging_chunk(chunks, &mut self.staging);
        let (range, frames) = chunks.append(chunk, write);
        Unit {
            range,
            form,
            frames: frames as u32,
            begin: like.begin,
            end: like.begin,
            asking: false,
            again: false,
            ..like
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
        let route = usize::from(self.routes[usize::from(slot)]);
        let staging = match self.nodes.get_mut(route) {
            Some(target) => &mut target.staging,
            None => &mut self.staging,
        };
        let chunk = staging_chunk(chunks, staging);
        let (range, frames) = chunks.append(chunk, write);
        if frames == 0 {
            chunks.release(range.chunk);
            return;
        }
        let form = match chunks.get(range) {
            bytes if bytes.starts_with(b"*1\r\n$5\r\nMULTI\r\n") => Form::Transaction,
            _ => Form::Command,
        };
        let unit = Unit {
            range,
            form,
            frames: frames as u32,
            begin: at,
            end: at,
            database,
            asking: false,
            again: false,
        };
        self.send(chunks, slot, unit);
    }

    /// Builds one command for every master that owns slots of this lane.
    pub fn broadcast(
        &mut self,
        chunks: &mut Chunks,
        at: Offset,
        database: u32,
        form: Form,
        write: impl Fn(&mut Vec<u8>),
    ) -> usize {
        let like = Unit {
            range: crate::chunk::Range {
                chunk: staging_chunk(chunks, &mut self.staging),
                start: 0,
                end: 0,
            },
            form,
            frames: 0,
            begin: at,
            end: at,
            database,
            asking: false,
            again: false,
        };
        let needed: Vec<usize> = (0..self.nodes.len())
            .filter(|&index| self.nodes[index].needed)
            .collect();
        for &index in &needed {
            let unit = self.build(chunks, form, like, |out| {
                write(out);
                1
            });
            self.push(chunks, index, unit);
        }
        needed.len()
    }

    /// The first master that owns slots of this lane: for what needs any one master.
    pub fn any(&self) -> Option<usize> {
        self.nodes.iter().position(|target| target.needed)
    }

    pub(super) fn park(&mut self, slot: Slot) -> &mut Parked {
        self.routes[usize::from(slot)] = PARKED;
        self.parked.entry(slot).or_default()
    }

    // Progress.

    /// Everything before this offset is answered, given that everything before `routed` was sent.
    pub fn acknowledged(&self, routed: Offset) -> Offset {
        let sent = self.nodes.iter().filter_map(|t| t.writer.unanswered_from());
        let parked = self.parked.values().filter_map(Parked::begin);
        let later = self.later.iter().map(|later| later.unit.begin);
        sent.chain(parked).chain(later).fold(routed, Offset::min)
    }

    /// Whether everything sent is answered.
    pub fn is_idle(&self) -> bool {
        self.parked.is_empty()
            && self.later.is_empty()
            && self.nodes.iter().all(|target| target.writer.is_idle())
    }

    /// Whether something is parked: the lane then looks after it more often than once a tick.
    pub fn is_waiting(&self) -> bool {
        !self.parked.is_empty() || !self.later.is_empty()
    }

    /// Gives everything up, for a lane that begins anew with a snapshot. Connections with commands on their way
    /// must be closed; their indices are returned.
    pub fn abandon(&mut self, chunks: &mut Chunks) -> Vec<usize> {
        for (slot, mut parked) in std::mem::take(&mut self.parked) {
            parked
                .drain()
                .for_each(|unit| chunks.release(unit.range.chunk));
            self.routes[usize::from(slot)] = self.owner_by_topology(slot);
        }
        for later in self.later.drain(..) {
            chunks.release(later.unit.range.chunk);
        }
        self.answers.clear();
        self.told.clear();
        let mut cut = Vec::new();
        for index in 0..self.nodes.len() {
            let target = &mut self.nodes[index];
            if target.writer.is_idle() {
                continue;
            }
            let was_up = target.link == Link::Up;
            for unit in target.writer.withdraw(chunks) {
                chunks.release(unit.range.chunk);
            }
            if was_up {
                target.link = Link::Down { redial_at_ms: 0 };
                cut.push(index);
            }
        }
        cut
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
        if fault.policy() == Policy::Stop {
            return Err(fault);
        }
        if target.link == Link::Up {
            self.status.count(super::status::ErrorCount::TargetLost);
            target.writer.lost(chunks);
            // Sent again by itself, what is in flight of a parked slot would overtake what was refused.
            if self.parked.values().any(|parked| parked.waits_on(index)) {
                self.evacuate(chunks, index);
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
        let result = self.nodes[index]
            .writer
            .replies(bytes, chunks, &mut outcomes);
        let mut fault = None;
        for outcome in outcomes.drain(..) {
            match outcome {
                Outcome::Greeted => self.nodes[index].failures = 0,
                Outcome::Answer(bytes) => self.answers.push((index, bytes)),
                Outcome::Rejected { unit, kind, text } => {
                    let rejected = self.rejected(chunks, index, unit, kind, &text, now_ms);
                    fault = fault.or(rejected.err());
                }
                Outcome::FailedInside { unit, text } => {
                    let diverged = self.diverged(chunks, index, unit, &text);
                    fault = fault.or(diverged.err());
                }
            }
        }
        self.outcomes = outcomes;
        if self.is_waiting() {
            self.release_ready(chunks, now_ms);
        }
        result.map_err(writer_fault)?;
        fault.map_or(Ok(()), Err)
    }

    /// The first slot that the frames of a unit name, and whether they name one.
    pub(super) fn slot_of_unit(&self, chunks: &Chunks, unit: Unit) -> Option<Slot> {
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

    /// The slot of a command by its keys; in a single server all keys are in one.
    pub(super) fn slot_of_frame(&self, frame: &Frame<'_>) -> SlotOf {
        let Some(command) = command::find(frame).or_else(|| self.learned.get(frame.verb())) else {
            return SlotOf::None;
        };
        match command::one_slot(frame, command) {
            Ok(SlotOf::None) | Err(_) => SlotOf::None,
            Ok(_) if self.is_single() => SlotOf::One(0),
            Ok(slot) => slot,
        }
    }
}

fn writer_fault(error: WriterError) -> Fault {
    match error {
        WriterError::Refused { command, text } => {
            let kind = FaultKind::of_reply(&text);
            let fix = match kind {
                FaultKind::NoPassword | FaultKind::WrongPassword => {
                    "; give user and password in the URI, in SLOTSTREAM_TARGET_PASSWORD or with --target-password-file"
                }
                _ => "",
            };
            Fault::new(kind, format!("{command} was refused: {text}{fix}"))
        }
        error => Fault::new(FaultKind::Protocol, error.to_string()),
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
