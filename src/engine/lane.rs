//! A lane: one source master's replica connection and the connections to the target masters that own its slots.
//!
//! It composes what the lower layers know and holds the order of things. Its verbs are called by whoever owns the
//! sockets and the clock (`runtime`, or a simulation):
//!
//! ```text
//! source_space, source_received, source_output, source_written, source_connected, source_lost, dial_source
//! target_gather, target_written, target_received, target_connected, target_lost, dial_target, take_cut
//! adopt_target, follow, take_question, answer, tick, stop, is_done
//! mend, take_mend_questions, mend_answered
//! take, leave, take_left, take_list_questions, listed
//! take_spool_order, spool_done, save
//! ```
//!
//! | file | part of the lane |
//! |---|---|
//! | `lane` | connections, positions, status |
//! | `copy` | the snapshot: decode, build, send |
//! | `stream` | the stream: scan, classify, route |
//! | `rebuild` | the stream: commands that the target gets in another form |
//! | `echo` | the stream: what was replicated into the source, and is dropped |
//! | `hold` | what needs the lane to stand still: flushes, unknown commands |
//! | `spooling` | what is received while the target does not keep up |
//! | `lease`, `settle` | deadlines that are held back while the target is behind |
//! | `sweep`, `listing` | keys that the source does not have |
//! | `fence` | who else may write to a target master, and what it has lost |
//! | `records` | what the target is told of how far the lane is |
//! | `mending`, `touched` | keys that differ, and get the source's values |
//! | `rewind` | a source that has lost what it had written |
//! | `motion`, `recopy` | slots that move between source masters |
//! | `targets`, `redirect`, `parked`, `retry` | delivery |
//! | `serial`, `marks` | delivery of what must not be applied twice |
//!
//! Invariant: `received >= routed >= acknowledged`, see [`Progress`].

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::arrivals::Arrivals;
use super::claims::FunctionClaims;
use super::copy::Copy;
use super::hold::Hold;
use super::intake::Intake;
use super::lookup::{LookupAnswer, LookupQuestion};
use super::marks::Marks;
use super::motion::Motion;
use super::options::{Ack, DatabaseMap, Existing, Grouping, OnDivergence};
use super::rebuild::{Omissions, Rebuild};
use super::records::{Generations, Records};
use super::rewind::Rewind;
use super::settle::Settling;
use super::spooling::{Draining, Spooled};
use super::status::{ErrorCount, LaneState, LaneStatus};
use super::stream::Router;
use super::sweep::Sweep;
use super::targets::{Targets, silence};
use crate::checkpoint::{Generation, LinkName, Resume};
use crate::chunk::Chunks;
use crate::command::rewrite::Features;
use crate::fault::{Fault, FaultKind, Policy, Side};
use crate::limits;
use crate::position::{Offset, Position, Progress, ReplicationId};
use crate::rdb::TargetFormat;
use crate::slot::{Slot, SlotSet};
use crate::source::{self, Event, Session, SourceError};
use crate::spool::{self, Spool};
use crate::target;
use crate::topology::{Node, ServerRun, Topology, TopologyKind};

/// What a lane must know from the start.
#[derive(Debug, Clone)]
pub struct LaneConfig {
    /// The name of the replication, in the watermarks.
    pub link: LinkName,
    /// The history that this lane writes, and what of it is on the target already: by slots, or for a single server by the
    /// smallest of the lane's slots alone.
    pub generation: Generation,
    pub passed: BTreeMap<Slot, Offset>,
    /// Where that history has watermarks, by the same slots.
    pub owned: SlotSet,
    /// The source master.
    pub source: Node,
    pub source_auth: Option<(Option<String>, String)>,
    /// Slots of the source master that the lane writes; all for a single server.
    pub slots: SlotSet,
    /// The source has slots, which may move between masters.
    pub source_has_slots: bool,
    /// Whether records of a generation before list slots of the lane.
    pub claimed_before: bool,
    /// Told to the source as our port: it shows in the source's `INFO replication` and nothing connects to it.
    pub listening_port: u16,
    pub target: target::Greeting,
    pub format: TargetFormat,
    /// What commands are looked at for: [`Features`] that some target master lacks, or the source does not heed.
    pub lacking: Features,
    /// Leave out what the target cannot take, instead of stopping.
    pub leave_out: bool,
    /// Shared by all lanes of the process.
    pub omissions: Arc<Omissions>,
    pub database_map: DatabaseMap,
    pub existing: Existing,
    pub on_divergence: OnDivergence,
    /// The other direction runs, too: what is written is marked, and what the source's stream has of that kind is dropped.
    pub mark: bool,
    /// Nothing of this link was on the target when the lane began.
    pub first_copy: bool,
    /// Leave out what belongs to modules that the target lacks.
    pub skip_unknown: bool,
    /// The source had keys for this target.
    pub held: bool,
    /// Take a source for what it is that had keys and has none.
    pub accept_empty_source: bool,
    /// Shared by all lanes of the process.
    pub functions: Arc<FunctionClaims>,
    /// For the records that it keeps on the target; without them nothing can be gone on from.
    pub generations: Option<Generations>,
    /// Where a former process, or lane, stopped.
    pub resume: Option<Resume>,
    /// Node id of each target master whose bookkeeping was read, and the run of its server before that.
    pub runs: Vec<(String, ServerRun)>,
    pub spool: spool::Settings,
    /// What a former process left, if the lane goes on with that.
    pub spooled: Option<Spooled>,
    pub ack: Ack,
    pub grouping: Grouping,
    /// How often records are written, in milliseconds.
    pub record_interval_ms: u64,
}

pub(super) enum SourceLink {
    Down { redial_at_ms: u64 },
    Dialing,
    Handshake(Session),
    Copying(Box<Copy>),
    Streaming,
}

pub struct Lane {
    pub(super) config: LaneConfig,
    pub(super) status: Arc<LaneStatus>,
    pub(super) chunks: Chunks,
    pub(super) intake: Intake,
    pub(super) spool: Spool,
    /// The last space for the stream was the spool's.
    pub(super) to_spool: bool,
    pub(super) draining: Draining,
    /// When the spool was last told to bring everything to disk.
    pub(super) spooled_ms: u64,
    /// The lane goes on with what is spooled from here on, and the source has not yet said that this is its history.
    pub(super) taken_up: Option<Offset>,
    /// What the spool last had to say.
    pub(super) spool_message: Option<String>,
    pub(super) targets: Targets,
    pub(super) link: SourceLink,
    failures: u32,
    /// The history that offsets belong to, once there is one.
    pub(super) history: Option<ReplicationId>,
    /// Offset at the intake's cursor.
    pub(super) scanned: Offset,
    /// Where the snapshot of this history was taken; the copy is applied once acknowledged passes it.
    pub(super) copied_at: Offset,
    /// Whether the whole snapshot was decoded and handed to the target connections. Before, there is nothing to resume.
    pub(super) copied: bool,
    /// The history cannot be gone on with: a snapshot must come.
    pub(super) start_over: bool,
    /// Whether everything of the snapshot is answered.
    pub(super) settled: bool,
    /// When the source last said something, or was last not listened to.
    pub(super) heard_ms: u64,
    /// Handshake bytes that were received and not understood yet.
    hello: Vec<u8>,
    hello_filled: usize,
    output: Vec<u8>,
    next_ack_ms: u64,
    /// The source asked for our offset, or there is another reason to tell it at once.
    pub(super) ack_now: bool,
    /// The source asked when we stood here: it is told once more when everything before is applied, since a client may
    /// be waiting for that (`WAIT`).
    pub(super) ack_wanted: Option<Offset>,
    pub(super) router: Router,
    pub(super) rebuild: Rebuild,
    pub(super) hold: Option<Hold>,
    pub(super) rewind: Option<Rewind>,
    /// After a copy into a target that may hold stale keys.
    pub(super) sweep: Option<Box<Sweep>>,
    pub(super) question: Option<LookupQuestion>,
    /// The last question was taken, and the lane still waits for its answer.
    asked: bool,
    pub(super) arrivals: Arrivals,
    /// Unix time at the zero of `now_ms`, in milliseconds.
    pub(super) unix_ms_at_zero: u64,
    pub(super) settling: Settling,
    pub(super) motion: Motion,
    pub(super) records: Option<Records>,
    /// Nothing from here on is sent before the records say so.
    pub(super) route_until: Offset,
    /// The stream stands at a command for that reason.
    pub(super) awaits_record: bool,
    cut: Vec<usize>,
    pub(super) stopping: bool,
    /// Another process will go on: deadlines stay held back.
    pub(super) keep_leases: bool,
    /// The search for stale keys was broken off.
    pub(super) unswept: bool,
    pub(super) commands: u64,
    sent_bytes: u64,
}

impl Lane {
    pub fn new(mut config: LaneConfig, target: Arc<Topology>, status: Arc<LaneStatus>) -> Self {
        let resume = config.resume.take();
        let mut chunks = Chunks::new(limits::CHUNK_BYTES, limits::SPARE_CHUNKS);
        let single = target.kind == TopologyKind::Single;
        let marks = Marks::new(
            config.link.clone(),
            config.generation,
            config.slots.iter().next().filter(|_| single),
            config.passed.clone(),
            config.owned.clone(),
        );
        let targets = Targets::new(
            target,
            config.slots.clone(),
            config.target.clone(),
            marks,
            config.on_divergence,
            config.grouping,
            Arc::clone(&status),
        );
        let mut lane = Self {
            intake: Intake::new(&mut chunks),
            spool: config.new_spool(),
            to_spool: false,
            draining: Draining::default(),
            spooled_ms: 0,
            taken_up: None,
            spool_message: None,
            targets,
            chunks,
            link: SourceLink::Down { redial_at_ms: 0 },
            failures: 0,
            history: None,
            scanned: Offset::default(),
            copied_at: Offset::default(),
            copied: false,
            start_over: false,
            settled: false,
            heard_ms: 0,
            hello: Vec::new(),
            hello_filled: 0,
            output: Vec::new(),
            next_ack_ms: 0,
            ack_now: false,
            ack_wanted: None,
            router: Router::new(0),
            rebuild: Rebuild::new(&config),
            hold: None,
            rewind: None,
            sweep: None,
            question: None,
            asked: false,
            arrivals: Arrivals::default(),
            unix_ms_at_zero: 0,
            settling: Settling::default(),
            motion: Motion::new(&config, resume.as_ref()),
            route_until: match config.generations {
                Some(_) => Offset::default(),
                None => Offset(u64::MAX),
            },
            records: (config.generations.clone()).map(|generations| {
                Records::new(config.link.clone(), generations, config.generation)
            }),
            awaits_record: false,
            cut: Vec::new(),
            stopping: false,
            keep_leases: false,
            unswept: false,
            commands: status.commands.load(Relaxed),
            sent_bytes: status.bytes.load(Relaxed),
            status,
            config,
        };
        lane.targets.mark = lane.config.mark;
        lane.targets.fenced = lane.records.is_some();
        lane.targets
            .note_runs(&std::mem::take(&mut lane.config.runs));
        if let Some(resume) = resume {
            lane.resume(&resume);
        }
        lane.take_up();
        lane
    }

    // The source connection.

    /// Where to connect to now, if the source should be dialled.
    pub fn dial_source(&mut self, now_ms: u64) -> Option<(String, u16)> {
        match self.link {
            SourceLink::Down { redial_at_ms }
                if redial_at_ms <= now_ms
                    && !self.stopping
                    && self.rewind.as_ref().is_none_or(Rewind::may_dial) =>
            {
                self.link = SourceLink::Dialing;
                let first = self.history.is_none();
                self.set_state(if first {
                    LaneState::Connecting
                } else {
                    LaneState::Reconnecting
                });
                Some((self.config.source.address.clone(), self.config.source.port))
            }
            _ => None,
        }
    }

    pub fn source_connected(&mut self) {
        self.output.clear();
        self.hello.resize(limits::MIN_READ_BYTES, 0);
        self.hello_filled = 0;
        let wanted = self.copied && !self.start_over;
        let resume = self.history.filter(|_| wanted).map(|id| Position {
            id,
            offset: self.received(),
        });
        let in_cluster = self.config.source_has_slots;
        let greeting = source::Greeting {
            auth: self.config.source_auth.clone(),
            listening_port: self.config.listening_port,
            resume,
            node_id: in_cluster.then(|| self.config.source.id.clone()),
        };
        self.link = SourceLink::Handshake(Session::start(&greeting, &mut self.output));
        self.set_state(LaneState::Handshake);
    }

    /// The source connection is gone, or could not be had.
    ///
    /// # Errors
    /// When trying again cannot help.
    pub fn source_lost(&mut self, fault: Fault, now_ms: u64) -> Result<(), Fault> {
        let fault = fault.at(format_args!("source {}", self.config.source.name()));
        if fault.policy() != Policy::Retry {
            return Err(fault);
        }
        if matches!(
            self.link,
            SourceLink::Copying(_) | SourceLink::Streaming | SourceLink::Handshake(_)
        ) {
            self.status.count(ErrorCount::SourceLost);
        }
        if self.history.is_some() && !self.copied {
            self.begin_anew();
        }
        self.output.clear();
        let wait = (limits::MIN_REDIAL_MS << self.failures.min(6)).min(limits::MAX_REDIAL_MS);
        self.failures += 1;
        self.link = SourceLink::Down {
            redial_at_ms: now_ms + wait,
        };
        self.status.set_message(&fault.message);
        self.targets.hint = true;
        self.set_state(LaneState::Reconnecting);
        Ok(())
    }

    /// Where to receive into; `None` while nothing may be read.
    pub fn source_space(&mut self) -> Option<&mut [u8]> {
        // A lane that stops reads no farther than it must to give keys that differ their values.
        let wanted = || {
            let wanted = self.targets.mends.wanted();
            wanted.is_some_and(|until| until > self.received())
        };
        if matches!(self.link, SourceLink::Streaming) && (!self.stopping || wanted()) {
            return self.stream_space();
        }
        match &mut self.link {
            SourceLink::Handshake(_) => Some(&mut self.hello[self.hello_filled..]),
            SourceLink::Copying(copy) if !self.stopping => copy.space(),
            _ => None,
        }
    }

    /// Bytes have been received into [`Lane::source_space`].
    ///
    /// # Errors
    /// The connection must be closed and [`Lane::source_lost`] be told, with this fault.
    pub fn source_received(&mut self, bytes: usize, now_ms: u64) -> Result<(), Fault> {
        self.heard_ms = now_ms;
        self.targets.serial.now_ms = now_ms;
        match &mut self.link {
            SourceLink::Handshake(_) => {
                self.hello_filled += bytes;
                self.handshake()?;
            }
            SourceLink::Copying(copy) => copy.received(bytes),
            SourceLink::Streaming => {
                self.stream_received(bytes, now_ms);
                self.arrivals.note(self.received(), now_ms);
            }
            _ => unreachable!("nothing is read from a source that is not connected"),
        }
        self.advance()
    }

    fn handshake(&mut self) -> Result<(), Fault> {
        loop {
            let SourceLink::Handshake(session) = &mut self.link else {
                return Ok(());
            };
            let input = &self.hello[..self.hello_filled];
            let (used, event) = session
                .handle(input, &mut self.output)
                .map_err(|error| source_fault(&self.config.source, error))?;
            self.hello.copy_within(used..self.hello_filled, 0);
            self.hello_filled -= used;
            match event {
                Event::More => return Ok(()),
                Event::FullResync(position) => {
                    if let Some(before) = self.history {
                        self.note_full_copy(before, position);
                        self.begin_anew();
                    }
                    self.begin_records(position.offset);
                    self.begin_at(position.id, position.offset);
                    self.status.full_syncs.fetch_add(1, Relaxed);
                    self.status.set_replid(position.id.as_str());
                    self.prepare_sweep();
                    self.set_state(LaneState::WaitingForSnapshot);
                }
                Event::Snapshot(framing) => {
                    let early = self.take_hello();
                    let copy = Copy::new(framing, self.copied_at, self.config.format, &early);
                    self.status.snapshot_bytes_done.store(0, Relaxed);
                    self.status
                        .snapshot_bytes_total
                        .store(copy.total_bytes().unwrap_or(0), Relaxed);
                    self.status.snapshot_keys.store(0, Relaxed);
                    self.link = SourceLink::Copying(Box::new(copy));
                    self.set_state(LaneState::Copying);
                }
                Event::Continue(continued) => {
                    self.continue_from(&continued)?;
                    self.status.partial_syncs.fetch_add(1, Relaxed);
                    let early = self.take_hello();
                    self.start_streaming(&early);
                }
            }
        }
    }

    fn take_hello(&mut self) -> Vec<u8> {
        let mut early = std::mem::take(&mut self.hello);
        early.truncate(std::mem::take(&mut self.hello_filled));
        early
    }

    /// Goes on with the stream, whose first bytes came together with what was before it.
    pub(super) fn start_streaming(&mut self, early: &[u8]) {
        self.link = SourceLink::Streaming;
        self.copied = true;
        self.failures = 0;
        self.take_early(early);
        self.ack_now = true;
        self.set_state(self.state_of_stream());
    }

    /// Follows a history from this offset on.
    pub(super) fn begin_at(&mut self, id: ReplicationId, offset: Offset) {
        self.history = Some(id);
        self.scanned = offset;
        self.copied_at = offset;
        self.intake.begin(&mut self.chunks, offset);
        self.spool.set_id(id);
    }

    /// Forgets the history: a snapshot will come.
    fn begin_anew(&mut self) {
        self.history = None;
        self.copied = false;
        self.start_over = false;
        self.settled = false;
        self.unswept = false;
        self.targets.abandon(&mut self.chunks);
        self.motion.begin_anew();
        let leaving = self.motion.leaving();
        self.disown(&leaving);
        self.targets.set_generation(self.config.generation);
        self.intake.begin(&mut self.chunks, Offset::default());
        self.spool.clear();
        self.taken_up = None;
        self.publish_spool();
        self.router = Router::new(0);
        self.hold = None;
        self.rewind = None;
        self.sweep = None;
        self.forget_polls();
        self.question = None;
        self.asked = false;
        self.ack_wanted = None;
        self.arrivals.clear();
    }

    /// What is to be written to the source.
    pub fn source_output(&self) -> &[u8] {
        &self.output
    }

    pub fn source_written(&mut self, bytes: usize) {
        self.output.drain(..bytes);
    }

    // The target connections.

    /// A connection to dial: its index, host and port.
    pub fn dial_target(&mut self, now_ms: u64) -> Option<(usize, String, u16)> {
        // First the old connection is closed: closed later, the new one would be taken for it.
        if !self.cut.is_empty() {
            return None;
        }
        self.targets.next_dial(now_ms)
    }

    /// How many target connections there are; indices below this are valid.
    pub fn target_count(&self) -> usize {
        self.targets.len()
    }

    pub fn target_connected(&mut self, index: usize) {
        self.targets.connected(index);
    }

    /// A target connection is gone, or could not be had.
    ///
    /// # Errors
    /// When trying again cannot help.
    pub fn target_lost(&mut self, index: usize, fault: Fault, now_ms: u64) -> Result<(), Fault> {
        self.targets.lost(&mut self.chunks, index, fault, now_ms)
    }

    /// Whether anything waits to be written to a target connection; [`Lane::target_gather`] may still hold it back.
    pub fn target_has_output(&self, index: usize) -> bool {
        self.targets.nodes[index].writer.has_output()
    }

    /// What should be written to a target connection now; see [`target::Writer::gather`].
    pub fn target_gather<'a>(
        &'a self,
        index: usize,
        pieces: &mut [IoSlice<'a>; limits::MAX_PIECES],
    ) -> usize {
        self.targets.nodes[index]
            .writer
            .gather(&self.chunks, pieces)
    }

    pub fn target_written(&mut self, index: usize, bytes: usize) {
        self.sent_bytes += bytes as u64;
        self.targets.nodes[index].writer.transmitted(bytes);
    }

    /// How many replies a target connection owes us.
    pub fn target_replies_due(&self, index: usize) -> u64 {
        self.targets.nodes[index].writer.replies_due()
    }

    /// Replies of a target connection.
    ///
    /// # Errors
    /// The connection must be closed and [`Lane::target_lost`] be told, with this fault.
    pub fn target_received(
        &mut self,
        index: usize,
        bytes: &[u8],
        now_ms: u64,
    ) -> Result<(), Fault> {
        // What it answers was given up, and is not waited for any more.
        if self.cut.contains(&index) {
            return Ok(());
        }
        self.targets
            .received(&mut self.chunks, index, bytes, now_ms)
    }

    /// Gives a target connection up; it will be closed.
    pub(super) fn cut_target(
        &mut self,
        index: usize,
        fault: Fault,
        now_ms: u64,
    ) -> Result<(), Fault> {
        self.cut.push(index);
        self.targets.lost(&mut self.chunks, index, fault, now_ms)
    }

    /// Connections that must be closed at once: they were given up because nothing came from them.
    pub fn take_cut(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.cut)
    }

    // The world.

    /// A new view of the target.
    pub fn adopt_target(&mut self, topology: &Arc<Topology>, now_ms: u64) {
        self.targets.adopt(&mut self.chunks, topology, now_ms);
    }

    /// The source master has another address, or another node has taken its place. Whether the connection to the
    /// former one must be given up: a master that was cut off from its cluster would keep it for ever.
    #[must_use]
    pub fn follow(&mut self, master: Node) -> bool {
        self.status.set_source(&master.name());
        let other = self.config.source.id != master.id;
        self.config.source = master;
        other && !matches!(self.link, SourceLink::Down { .. })
    }

    /// A question for the source that must be answered before the lane can go on.
    pub fn take_question(&mut self) -> Option<LookupQuestion> {
        let question = self.question.take();
        self.asked |= question.is_some();
        question
    }

    /// The answer to the last question that was taken. It means nothing to a lane that began anew since.
    ///
    /// # Errors
    /// When the lane cannot go on.
    pub fn answer(&mut self, answer: LookupAnswer) -> Result<(), Fault> {
        if !std::mem::take(&mut self.asked) {
            return Ok(());
        }
        self.answered(answer)?;
        self.advance()
    }

    /// Whether something happened that a new topology may explain.
    pub fn take_hint(&mut self) -> bool {
        std::mem::take(&mut self.targets.hint)
    }

    /// What the clock on the wall showed at the zero of `now_ms`: Unix time in milliseconds. To be told before the source
    /// is connected, and again now and then, because that clock may be set.
    pub fn set_wall_clock(&mut self, unix_ms_at_zero: u64) {
        self.unix_ms_at_zero = unix_ms_at_zero;
    }

    /// Time has passed: acknowledgements, retries.
    ///
    /// # Errors
    /// As for [`Lane::advance`].
    pub fn tick(&mut self, now_ms: u64) -> Result<(), Fault> {
        self.targets.tick(&mut self.chunks, now_ms);
        if let Some(fault) = self.targets.rewound.take() {
            return Err(fault);
        }
        let silent = self.targets.take_silent(&mut self.chunks, now_ms)?;
        self.cut.extend(silent);
        self.tick_spool(now_ms);
        self.advance_at(Some(now_ms))?;
        self.settle_on(now_ms);
        self.check_silence(now_ms)?;
        let due = now_ms >= self.next_ack_ms || self.ack_now;
        let attached = matches!(self.link, SourceLink::Copying(_) | SourceLink::Streaming);
        if attached && due {
            self.next_ack_ms = now_ms + limits::ACK_INTERVAL_MS;
            self.send_ack();
        }
        Ok(())
    }

    /// Does whatever can be done now: decode more of the snapshot, route more of the stream. To be called after
    /// replies were taken, since they make room.
    ///
    /// # Errors
    /// When the source must be given up: pass the fault to [`Lane::source_lost`].
    pub fn advance(&mut self) -> Result<(), Fault> {
        self.advance_at(None)
    }

    fn advance_at(&mut self, tick: Option<u64>) -> Result<(), Fault> {
        self.record_on(tick);
        if matches!(self.link, SourceLink::Copying(_)) && self.route_until > self.copied_at {
            self.claim_slots();
            self.copy_on()?;
        }
        if self.sweep.is_some() {
            self.sweep_on(tick)?;
        } else if self.settling.walk.is_some() {
            self.walk_on(tick)?;
        }
        self.rewind_on();
        self.start_recopies();
        self.mend_on(tick)?;
        self.hold_on(tick)?;
        // Also while the source is away: what was received holds, as long as the history does.
        if self.copied && self.taken_up.is_none() && !self.start_over {
            self.stream_on()?;
        }
        if self.awaits_record && self.config.mark {
            self.record_on(None);
        }
        // A client of the source may be waiting, or the lane for everything to be answered.
        self.targets.serial.hurry = self.ack_wanted.is_some()
            || self.hold.is_some()
            || self.rewind.is_some()
            || self.stopping;
        self.targets.release_held(&mut self.chunks);
        let wanted = self.ack_wanted;
        if wanted.is_some_and(|wanted| self.progress().acknowledged >= wanted) {
            self.ack_wanted = None;
            self.ack_now = true;
        }
        if self.ack_now && matches!(self.link, SourceLink::Streaming) {
            self.send_ack();
        }
        self.publish();
        Ok(())
    }

    /// Finds a source that says nothing although it is listened to.
    fn check_silence(&mut self, now_ms: u64) -> Result<(), Fault> {
        if self.source_space().is_none() {
            self.heard_ms = now_ms;
        } else if now_ms.saturating_sub(self.heard_ms) >= limits::MAX_SILENCE_MS {
            self.heard_ms = now_ms;
            return Err(silence());
        }
        Ok(())
    }

    fn send_ack(&mut self) {
        self.ack_now = false;
        source::acknowledgement(self.offset_to_tell(), &mut self.output);
    }

    // Ending.

    /// Stop reading for good; what was received is still delivered, and all keys get their true deadlines.
    pub fn stop(&mut self) {
        if !self.stopping {
            self.stopping = true;
            self.unswept |= self.sweep.take().is_some();
            self.suspend_recopies();
            self.set_state(LaneState::Stopping);
        }
    }

    /// Stop reading until another process goes on. Deadlines that are held back stay so: their keys may be renewed meanwhile.
    pub fn stop_for_now(&mut self) {
        self.keep_leases = self.records.is_some();
        if self.keep_leases {
            // It would give them their true deadlines, before which the next process may not be there.
            self.settling.walk = None;
        }
        self.stop();
    }

    /// Whether a stopping lane has nothing left to do. A lane in its first copy has nothing to finish but what is
    /// in flight: the copy must be made again anyway.
    pub fn is_done(&self) -> bool {
        self.stopping && self.is_drained() && self.records_ended()
    }

    /// Whether nothing is left of what was read.
    pub(super) fn is_drained(&self) -> bool {
        self.hold.is_none()
            && (self.keep_leases || self.rebuild.deadlines.is_empty())
            && self.targets.is_answered()
            && self.is_mended()
            && self.is_spool_done()
    }

    /// Whether no key is owed, or there is no time left: what is owed stays unacknowledged, and the next process mends it.
    fn is_mended(&self) -> bool {
        self.targets.mends.keys() == 0 || self.draining == Draining::Over
    }

    /// Ends the lane for display.
    pub fn finish(&mut self) {
        self.publish();
        if self.targets.mends.keys() > 0 {
            self.status.set_message(&format!(
                "{} keys are known to differ, and there was no time to mend them: that is done at the next start",
                self.targets.mends.keys()
            ));
        }
        if !self.keep_leases && !self.rebuild.deadlines.is_empty() {
            self.status.set_message(
                "there was no time to give all keys and fields their true deadline: some that end soon keep one of 1,100 \
                 years more, until they are written again or another copy is made",
            );
        }
        self.status.set_state(LaneState::Stopped);
    }

    // Positions.

    /// Everything up to here has been read from the source.
    pub(super) fn received(&self) -> Offset {
        if self.spool.is_empty() {
            return self.scanned.advanced(self.intake.rest(&self.chunks).len());
        }
        self.spool.end()
    }

    /// Everything before this offset was handed to the target connections.
    pub(super) fn routed(&self) -> Offset {
        match &self.hold {
            Some(hold) => hold.begin(),
            None => Offset(self.scanned.0 - self.intake.open_bytes() as u64),
        }
    }

    pub fn progress(&self) -> Progress {
        let routed = self.routed();
        let progress = Progress {
            received: self.received(),
            routed,
            acknowledged: self.targets.acknowledged(routed),
        };
        progress.check();
        progress
    }

    fn publish(&mut self) {
        if self.history.is_none() {
            return;
        }
        let progress = self.progress();
        let applied = progress.acknowledged > self.copied_at || self.targets.is_idle();
        if !self.settled && matches!(self.link, SourceLink::Streaming) && applied {
            self.settled = true;
            self.ack_now = true;
            self.tell_soon();
            self.settling.copy_left_unknown = self.rebuild.deadlines.unknown().is_some();
        }
        let state = self.state_of_stream();
        if matches!(self.link, SourceLink::Streaming) && self.status.state() != state {
            self.set_state(state);
        }
        self.arrivals.forget(progress.acknowledged);
        self.spool_on(progress.acknowledged);
        self.publish_motion();
        let status = &self.status;
        status.received_offset.store(progress.received.0, Relaxed);
        status
            .acknowledged_offset
            .store(progress.acknowledged.0, Relaxed);
        status.set_oldest_unanswered(self.arrivals.oldest_ms());
        self.config.held |= status.commands.swap(self.commands, Relaxed) < self.commands;
        status.bytes.store(self.sent_bytes, Relaxed);
    }

    /// How far a lane that reads the stream is.
    fn state_of_stream(&self) -> LaneState {
        let sweeping = self.sweep.is_some() || self.settling.copy_left_unknown;
        match (self.settled, sweeping) {
            (false, _) => LaneState::Copying,
            (true, true) => LaneState::Sweeping,
            (true, false) => LaneState::Streaming,
        }
    }

    fn set_state(&self, state: LaneState) {
        if !self.stopping || state == LaneState::Stopping {
            self.status.set_state(state);
        }
    }
}

fn source_fault(source: &Node, error: SourceError) -> Fault {
    match error {
        SourceError::NotReady(_) => Fault::new(FaultKind::MasterLinkDown, error.to_string()),
        // Where the right one is, the next view of the cluster tells.
        SourceError::OtherNode(_) => Fault::new(FaultKind::Unreachable, error.to_string()),
        SourceError::Refused { ref text, .. } => {
            Fault::from_reply(Side::Source, &source.name(), text)
        }
        SourceError::Protocol { .. } => Fault::new(FaultKind::Protocol, error.to_string()),
    }
}
