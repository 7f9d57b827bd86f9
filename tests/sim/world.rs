//! The network, the clock and the lane between the simulated source and the simulated target.
//!
//! ```text
//! source -> to_lane  -> [ Lane ] -> wire    -> session.input  -> cluster
//!        <- to_source <-         <- session.output            <-
//! ```
//!
//! Every arrow moves a random part of what is there, or nothing. [`World::step`] is one moment: time passes, servers do
//! something, then the lane has one turn, in the order in which `runtime::lane_task` has its turns. Nothing here reads a
//! clock or a socket; the seed decides everything.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use slotstream::checkpoint::{Generation, is_bookkeeping};
use slotstream::command::rewrite::Features;
use slotstream::engine::Spooled;
use slotstream::engine::lane::{Lane, LaneConfig};
use slotstream::engine::lookup::LookupQuestion;
use slotstream::engine::options::DatabaseMap;
use slotstream::engine::records::Generations;
use slotstream::engine::status::{LaneState, LaneStatus};
use slotstream::fault::{Fault, FaultKind, Policy};
use slotstream::limits;
use slotstream::position::Offset;
use slotstream::rdb::{Lineage, Modules, TargetFormat};
use slotstream::slot::SlotSet;
use slotstream::spool::{BLOCK_HEADER_BYTES, Budget, Settings};
use slotstream::target::Greeting;
use slotstream::topology::{Node, Topology};

use crate::cluster::{self, Cluster};
use crate::disk::{self, Disk};
use crate::mends::Letter;
use crate::model::{self, Bytes, Store};
use crate::restart::{FenceAsked, Saved};
use crate::rival::{Ended, Process, Takeover};
use crate::rng::Rng;
use crate::source::{self, Source};
use crate::trace;
use crate::tracker::Tracker;

pub const GENERATION: Generation = Generation {
    epoch: 1,
    number: 1,
};
pub const SOURCE_PORT: u16 = 6400;

/// How the network behaves.
#[derive(Debug, Clone)]
pub struct Network {
    /// The most bytes that one hop moves at a time.
    pub chunk: usize,
    /// How often a hop moves nothing, in percent.
    pub stall_percent: usize,
    /// The most that one step of time lasts.
    pub step_ms: usize,
    /// The most commands that a target executes at a time.
    pub commands: usize,
}

pub enum SourceSocket {
    None,
    Dialing {
        at_ms: u64,
    },
    Up {
        session: source::Session,
        to_source: Bytes,
        to_lane: Bytes,
    },
}

pub enum TargetSocket {
    None,
    Dialing {
        at_ms: u64,
        port: u16,
    },
    Up {
        session: cluster::Session,
        wire: Bytes,
    },
}

/// What a run made of the disk: blocks written, and how often a lane went on with what it found there. And how many keys
/// were mended.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    pub blocks: u64,
    pub taken_up: u64,
    pub mended: u64,
}

pub struct World {
    pub now_ms: u64,
    pub rng: Rng,
    pub network: Network,
    pub lane: Lane,
    /// What the lane was made from.
    pub config: LaneConfig,
    pub disk: Disk,
    pub status: Arc<LaneStatus>,
    pub source: Source,
    /// Nobody listens there until then.
    pub source_down_until_ms: u64,
    pub cluster: Cluster,
    pub tracker: Tracker,
    /// Cut connections may lose replies of what was executed.
    pub lossy: bool,
    /// The target stands still: nothing is read there.
    pub frozen: bool,
    /// The same until then.
    pub frozen_until_ms: u64,
    /// The process dies then.
    pub dies_at_ms: Option<u64>,
    pub source_socket: SourceSocket,
    pub sockets: Vec<TargetSocket>,
    pub views: Vec<(u64, Arc<Topology>)>,
    pub adopted: Arc<Topology>,
    pub asked: Option<(u64, LookupQuestion)>,
    pub questions: u32,
    /// Questions about keys and their answers, on their way.
    pub letters: Vec<Letter>,
    pub next_tick_ms: u64,
    pub full_syncs: u64,
    /// The fault that ended the lane.
    pub ended: Option<Fault>,
    pub epoch: u32,
    pub generations: Generations,
    /// Connections that were given up, with what is on their way.
    pub forsaken: Vec<(cluster::Session, Bytes)>,
    pub fences: Vec<FenceAsked>,
    pub saved: Option<Saved>,
    /// A process that is about to take the link over, and then the one that it was taken from.
    pub takeover: Option<Takeover>,
    pub rival: Option<Box<Process>>,
    /// The former process has its turn.
    pub is_rival: bool,
    /// The process has heard that another takes the link over, and has ended.
    pub gave_way: bool,
    /// The process was asked to end; it is killed if it has not done so by then.
    pub stops_until_ms: Option<u64>,
    /// The process stands still until then.
    pub asleep_until_ms: u64,
    pub ended_connections: Vec<Ended>,
    /// How often a lane went on with what it found on the disk.
    pub taken_up: u64,
    /// How often a lane began again.
    pub begun: u32,
}

impl World {
    /// `slots`: of the source master.
    pub fn new(
        rng: Rng,
        network: Network,
        source: Source,
        cluster: Cluster,
        slots: SlotSet,
    ) -> Self {
        let budget = Arc::new(Budget::new(limits::SPOOL_DISK_BYTES));
        let spool = Settings::new(disk::LINK.into(), budget);
        Self::with_spool(rng, network, source, cluster, slots, spool)
    }

    pub fn with_spool(
        rng: Rng,
        network: Network,
        source: Source,
        mut cluster: Cluster,
        slots: SlotSet,
        spool: Settings,
    ) -> Self {
        let topology = cluster.topology();
        let status = Arc::new(LaneStatus::new(0, "source".into(), "10.0.0.2:6400".into()));
        let auth = |password: &Option<String>| password.clone().map(|password| (None, password));
        let config = LaneConfig {
            link: "default".parse().expect("valid"),
            generation: GENERATION,
            passed: Default::default(),
            owned: SlotSet::new(),
            source: Node::new("source", "10.0.0.2", SOURCE_PORT),
            source_auth: auth(&source.password),
            source_has_slots: slots != SlotSet::all(),
            slots: slots.clone(),
            listening_port: 1,
            target: Greeting {
                auth: auth(&cluster.password),
                name: "sim".into(),
            },
            format: TargetFormat {
                lineage: Lineage::Redis,
                max_rdb_version: 9,
                modules: Modules::NONE,
            },
            database_map: DatabaseMap::default(),
            existing: cluster.existing,
            lacking: Features::lacking_in(Lineage::Redis, 7, 0),
            leave_out: false,
            omissions: Default::default(),
            on_divergence: cluster.on_divergence,
            skip_unknown: false,
            held: false,
            claimed_before: false,
            // Keys come and go by chance.
            accept_empty_source: true,
            functions: Default::default(),
            generations: None,
            resume: None,
            runs: Vec::new(),
            spool,
            spooled: None,
            ack: Default::default(),
            grouping: cluster.grouping,
            mark: false,
            first_copy: false,
            record_interval_ms: limits::RECORD_INTERVAL_MS,
        };
        cluster.lane = slots;
        let single = cluster.single;
        Self {
            now_ms: 0,
            rng,
            network,
            lane: Lane::new(config.clone(), Arc::clone(&topology), Arc::clone(&status)),
            config,
            epoch: 1,
            generations: Generations::new(1),
            forsaken: Vec::new(),
            fences: Vec::new(),
            saved: None,
            takeover: None,
            rival: None,
            is_rival: false,
            gave_way: false,
            stops_until_ms: None,
            asleep_until_ms: 0,
            ended_connections: Vec::new(),
            taken_up: 0,
            begun: 0,
            disk: Disk::new(),
            status,
            source,
            source_down_until_ms: 0,
            cluster,
            tracker: Tracker::new(single),
            lossy: false,
            frozen: false,
            frozen_until_ms: 0,
            dies_at_ms: None,
            source_socket: SourceSocket::None,
            sockets: Vec::new(),
            views: Vec::new(),
            adopted: topology,
            asked: None,
            questions: 0,
            letters: Vec::new(),
            next_tick_ms: 0,
            full_syncs: 0,
            ended: None,
        }
    }

    /// One moment.
    pub fn step(&mut self) {
        let before_ms = self.now_ms;
        // While nothing is answered, time may pass faster.
        let least_ms = match self.now_ms < self.frozen_until_ms {
            true => 20,
            false => 0,
        };
        let most_ms = self.network.step_ms.max(least_ms);
        self.now_ms += self.rng.below(most_ms + 1) as u64;
        if self.now_ms / 1000 != before_ms / 1000 {
            let (replid, offset) = (&self.source.replid, self.source.offset());
            self.status.set_poll(replid, offset, self.now_ms);
        }
        trace::at(self.now_ms);
        self.source.expire(&mut self.tracker, self.now_ms);
        self.cluster.expire(self.now_ms);
        self.serve_all();
        match self.turn_if_awake() {
            Err(fault) if fault.kind == FaultKind::TakenOver && self.takeover.is_some() => {
                trace::note(|| "the process gives way".into());
                self.gave_way = true;
            }
            Err(fault) if fault.policy() == Policy::Restart => {
                trace::note(|| format!("the lane must begin again: {fault}"));
                self.leave_and_begin_again();
            }
            Err(fault) => {
                trace::note(|| format!("the lane ends: {fault}"));
                self.ended.get_or_insert(fault);
            }
            Ok(()) => {}
        }
        let progress = self.lane.progress();
        progress.check();
        // Offsets of a history that the source has left say nothing about its present one.
        let replid = self.status.replid();
        let now = |at: Offset| self.tracker.shared_with(&replid, at.0);
        assert!(now(progress.received) <= self.source.offset());
        self.tracker.check_acknowledged(now(progress.acknowledged));
        self.take_over_on();
        self.step_rival();
        if self
            .stops_until_ms
            .is_some_and(|at_ms| self.lane.is_done() || at_ms <= self.now_ms)
        {
            self.lane.finish();
            self.crash();
        }
    }

    /// What servers and network do in one moment.
    pub fn serve_all(&mut self) {
        self.serve_source();
        let frozen = self.frozen || self.now_ms < self.frozen_until_ms;
        if !frozen {
            (0..self.sockets.len()).for_each(|index| self.serve_target(index));
        }
        if !frozen && self.rng.percent(20) {
            self.serve_forsaken();
        }
    }

    fn turn_if_awake(&mut self) -> Result<(), Fault> {
        match self.gave_way || self.now_ms < self.asleep_until_ms {
            true => Ok(()),
            false => self.turn(),
        }
    }

    /// Runs until `done`, at most for `limit_ms` of virtual time.
    pub fn run_until(
        &mut self,
        limit_ms: u64,
        what: &str,
        mut done: impl FnMut(&mut World) -> bool,
    ) {
        let end = self.now_ms + limit_ms;
        while !done(self) {
            self.check_running();
            assert!(
                self.now_ms < end,
                "no progress: {what} has not come in {limit_ms} ms; {:?}, source at {}, {} writes not executed",
                self.lane.progress(),
                self.source.offset(),
                self.tracker.open()
            );
            self.step();
        }
    }

    /// Runs until everything written is executed, answered, and told to the source.
    pub fn run_until_equal(&mut self) {
        self.run_until(120_000 + self.longest_on_disk_ms(), "everything", |world| {
            let offset = world.source.offset();
            world.lane.progress().acknowledged.0 == offset
                && world.source.acked == offset
                && world.tracker.open() == 0
                && world.is_mended()
                && !world.is_contested()
                && world.stops_until_ms.is_none()
                && world.status.state() == LaneState::Streaming
        });
    }

    /// No offset tells of what the source lost last, when it has written nothing since.
    fn is_mended(&self) -> bool {
        let mut nodes = 0..self.cluster.nodes.len();
        self.lane.keys_owed() == 0 && nodes.all(|node| self.is_drained(node))
    }

    /// What the disk may take when all that is left goes through it: a block is written and read back, and may have a segment of
    /// its own, that is made and deleted. One order follows the other, and each is heard of in the next step.
    fn longest_on_disk_ms(&self) -> u64 {
        let acknowledged = self.lane.progress().acknowledged.0;
        let left = self.source.offset().saturating_sub(acknowledged);
        let block_bytes = self.config.spool.block_bytes - BLOCK_HEADER_BYTES;
        let orders = 4 * left.div_ceil(block_bytes as u64);
        orders * (self.disk.delay_ms + self.network.step_ms) as u64
    }

    /// Runs until the target has records that a new process can go on from.
    pub fn run_until_resumable(&mut self) {
        self.run_until(120_000, "the copy", |world| {
            world.status.state() == LaneState::Streaming
        });
        let end_ms = self.now_ms + 2 * limits::RECORD_INTERVAL_MS;
        self.run_until(120_000, "a record", |world| world.now_ms >= end_ms);
    }

    pub fn used(&self) -> Used {
        Used {
            blocks: self.disk.written,
            taken_up: self.taken_up,
            mended: self.status.mends.load(Relaxed),
        }
    }

    pub fn check_running(&self) {
        if let Some(fault) = &self.ended {
            panic!("the lane ended: {:?} {fault}", fault.kind);
        }
    }

    /// The process ends without warning, and another goes on from what is on disk. The target must stand still: what
    /// it answers now would be lost.
    pub fn restart(&mut self) {
        trace::note(|| "the process starts anew".into());
        let acknowledged = self.lane.progress().acknowledged;
        self.disk.lose_process();
        let recovered = self.disk.recover(acknowledged).expect("the spool is there");
        let mut config = self.config.clone();
        config.spool.budget = Arc::new(Budget::new(limits::SPOOL_DISK_BYTES));
        config.spooled = Some(Spooled {
            id: recovered.end().id,
            recovered,
            acknowledged,
            database: 0,
        });
        self.source_socket = SourceSocket::None;
        self.sockets.clear();
        let status = Arc::clone(&self.status);
        self.lane = Lane::new(config, Arc::clone(&self.adopted), status);
    }

    // Servers.

    pub fn hop(&mut self, available: usize) -> usize {
        if available == 0 || self.rng.percent(self.network.stall_percent) {
            return 0;
        }
        self.rng.between(1, self.network.chunk.min(available))
    }

    fn serve_source(&mut self) {
        if !self.source_is_up() {
            return;
        }
        let socket = std::mem::replace(&mut self.source_socket, SourceSocket::None);
        let SourceSocket::Up {
            mut session,
            mut to_source,
            mut to_lane,
        } = socket
        else {
            unreachable!("checked before");
        };
        let arrived = self.hop(to_source.len());
        let bytes: Bytes = to_source.drain(..arrived).collect();
        self.source.serve(
            &mut session,
            &bytes,
            &mut self.tracker,
            &mut self.rng,
            self.now_ms,
        );
        let sent = self.hop(session.output.len());
        to_lane.extend(session.output.drain(..sent));
        self.source_socket = SourceSocket::Up {
            session,
            to_source,
            to_lane,
        };
    }

    fn serve_target(&mut self, index: usize) {
        let TargetSocket::Up {
            mut session,
            mut wire,
        } = self.take_socket(index)
        else {
            return;
        };
        let arrived = self.hop(wire.len());
        session.input.extend(wire.drain(..arrived));
        let commands = self.rng.below(self.network.commands + 1);
        self.cluster
            .serve(&mut session, commands, &mut self.tracker);
        self.sockets[index] = TargetSocket::Up { session, wire };
    }

    /// Takes a connection out; one that is not up stays where it is.
    fn take_socket(&mut self, index: usize) -> TargetSocket {
        match self.sockets[index] {
            TargetSocket::Up { .. } => {
                std::mem::replace(&mut self.sockets[index], TargetSocket::None)
            }
            _ => TargetSocket::None,
        }
    }

    // Faults.

    pub fn source_is_up(&self) -> bool {
        matches!(self.source_socket, SourceSocket::Up { .. })
    }

    /// Bytes on their way to the lane.
    pub fn source_wire(&self) -> usize {
        match &self.source_socket {
            SourceSocket::Up { to_lane, .. } => to_lane.len(),
            _ => 0,
        }
    }

    /// The source connection breaks; what is on its way is lost.
    pub fn cut_source(&mut self) {
        if self.source_is_up() {
            trace::note(|| "the source connection is cut".into());
            self.source_socket = SourceSocket::None;
            self.lose_source(lost());
        }
    }

    pub fn connections(&self) -> usize {
        self.sockets.len()
    }

    /// Whether nothing that the lane meant for this master is on its way, or waits to be sent to it.
    pub fn is_drained(&self, node: usize) -> bool {
        (0..self.sockets.len()).all(|index| match &self.sockets[index] {
            TargetSocket::Up { session, wire } if session.node == node => {
                let mut pieces = [IoSlice::new(&[]); limits::MAX_PIECES];
                wire.is_empty()
                    && session.input.is_empty()
                    && session.output.is_empty()
                    && self.lane.target_gather(index, &mut pieces) == 0
            }
            _ => true,
        })
    }

    /// The master that a connection leads to.
    pub fn node_of(&self, index: usize) -> Option<usize> {
        match self.sockets.get(index) {
            Some(TargetSocket::Up { session, .. }) => Some(session.node),
            _ => None,
        }
    }

    /// A target connection breaks. In a lossy run some of what is on its way is executed and some replies are lost;
    /// otherwise all replies arrive and the rest was never seen by the target.
    pub fn cut_target(&mut self, index: usize) {
        if index >= self.sockets.len() {
            return;
        }
        let TargetSocket::Up {
            mut session,
            mut wire,
        } = self.take_socket(index)
        else {
            return;
        };
        trace::note(|| format!("target connection {index} is cut"));
        if self.lossy {
            let arrived = self.rng.below(wire.len() + 1);
            session.input.extend(wire.drain(..arrived));
            let commands = self.rng.below(40);
            self.cluster
                .serve(&mut session, commands, &mut self.tracker);
            let told = self.rng.below(session.output.len() + 1);
            session.output.truncate(told);
        }
        let heard = std::mem::take(&mut session.output);
        if self.lossy && self.config.generations.is_some() {
            self.forsaken.push((session, wire));
        }
        let result = self.lane.target_received(index, &heard, self.now_ms);
        let fault = result.err().unwrap_or_else(lost);
        self.lose_target(index, fault);
    }

    /// All connections to a master break.
    pub fn cut_targets_of(&mut self, node: usize) {
        for index in 0..self.connections() {
            if self.node_of(index) == Some(node) {
                self.cut_target(index);
            }
        }
    }

    /// The lane has given a connection up: it may still do some of what it was sent.
    pub fn close_target(&mut self, index: usize) {
        trace::note(|| format!("the lane closes target connection {index}"));
        if let TargetSocket::Up {
            mut session,
            mut wire,
        } = self.take_socket(index)
        {
            session.forsaken = true;
            let arrived = self.rng.below(wire.len() + 1);
            session.input.extend(wire.drain(..arrived));
            let commands = self.rng.below(40);
            self.cluster
                .serve(&mut session, commands, &mut self.tracker);
        }
        self.sockets[index] = TargetSocket::None;
    }

    /// Another view of the target is on its way to the lane.
    pub fn publish_view(&mut self, delay_ms: u64) {
        self.views
            .push((self.now_ms + delay_ms, self.cluster.topology()));
    }

    fn or_end(&mut self, result: Result<(), Fault>) {
        if let Err(fault) = result {
            trace::note(|| format!("the lane ends: {fault}"));
            self.ended.get_or_insert(fault);
        }
    }

    fn lose_source(&mut self, fault: Fault) {
        let result = self.lane.source_lost(fault, self.now_ms);
        self.or_end(result);
    }

    pub fn lose_target(&mut self, index: usize, fault: Fault) {
        self.sockets[index] = TargetSocket::None;
        let result = self.lane.target_lost(index, fault, self.now_ms);
        self.or_end(result);
    }

    // The end.

    /// All keys of the target's masters that belong to the lane, each at the owner of its slot.
    pub fn union_of_targets(&self) -> Store {
        let mut union = Store::default();
        for (index, node) in self.cluster.nodes.iter().enumerate() {
            for (key, value) in &node.store.keys {
                if is_bookkeeping(&key.1) {
                    continue;
                }
                let slot = slotstream::slot::slot_of(&key.1);
                let owner = self.cluster.owners[usize::from(slot)];
                assert!(
                    self.cluster.single || owner == index,
                    "{key:?} is at node {index}, not at {owner}"
                );
                if self.cluster.lane.contains(slot) {
                    union.keys.insert(key.clone(), value.clone());
                    let deadline = node.store.deadlines.get_key_value(key);
                    let deadline = deadline.map(|(key, at_ms)| (key.clone(), *at_ms));
                    union.deadlines.extend(deadline);
                }
            }
        }
        union
    }

    /// Panics with the first difference between source and target.
    pub fn check_equal(&self) {
        let target = self.union_of_targets();
        for (key, value) in &self.source.store.keys {
            assert_eq!(
                target.keys.get(key),
                Some(value),
                "the target differs at {}",
                name(key)
            );
        }
        for key in target.keys.keys() {
            assert!(
                self.source.store.keys.contains_key(key),
                "the target has {} too much",
                name(key)
            );
        }
    }
}

fn name(key: &model::Key) -> String {
    format!("{}:{}", key.0, key.1.escape_ascii())
}

pub fn lost() -> Fault {
    Fault::new(
        FaultKind::ConnectionLost,
        "the connection was closed by the other side",
    )
}
