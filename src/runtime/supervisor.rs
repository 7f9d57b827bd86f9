//! Which lanes there are: one per source master, spread over the cores, following the source's topology.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use tracing::{info, warn};

use super::executor::{Executor, NewLane};
use super::lane_task::Order;
use super::leftovers::Leftovers;
use super::spool_files::{Directory, SpoolFiles};
use crate::checkpoint::{Generation, Start, writer_name};
use crate::control::histories;
use crate::control::takeover::{self, Claim};
use crate::engine::claims::FunctionClaims;
use crate::engine::lane::{Lane, LaneConfig};
use crate::engine::moves::{Moves, Orders};
use crate::engine::options::{Existing, Grouping, OnExisting, OnUnsupported, SyncPlan};
use crate::engine::records::Generations;
use crate::engine::roster::Roster;
use crate::engine::shared::Shared;
use crate::engine::status::{LaneState, LaneStatus};
use crate::engine::{Spooled, watched};
use crate::fault::{Fault, FaultKind, Policy};
use crate::limits;
use crate::position::ReplicationId;
use crate::rdb::TargetFormat;
use crate::slot::SlotSet;
use crate::spool::{Budget, Settings};
use crate::target;
use crate::topology::{Credentials, Node, TopologyKind};

/// The running lanes.
pub struct RuntimeHandle {
    thread: JoinHandle<Result<(), Fault>>,
}

impl RuntimeHandle {
    /// Whether all lanes have ended.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until all lanes have ended, which they do when [`Shared::request_stop`] was called. How each ended is in
    /// its status.
    ///
    /// # Errors
    /// When an executor broke.
    pub fn join(self) -> Result<(), Fault> {
        self.thread.join().unwrap_or_else(|_| {
            Err(Fault::new(
                FaultKind::Runtime,
                "the supervisor of the lanes panicked",
            ))
        })
    }
}

/// A lane that has to be started.
struct Opening {
    status: Arc<LaneStatus>,
    master: Node,
    slots: SlotSet,
    /// Slots that a lane before it has not left for good.
    leaving: SlotSet,
    /// What the source master's histories are called, if it was asked.
    histories: Vec<ReplicationId>,
    /// What the target knows, if it was just read.
    known: Option<Claim>,
    not_before: Instant,
}

struct Supervisor {
    plan: SyncPlan,
    shared: Arc<Shared>,
    format: TargetFormat,
    executors: Vec<Executor>,
    roster: Roster,
    moves: Moves,
    functions: Arc<FunctionClaims>,
    orders: HashMap<u32, Sender<Order>>,
    source_version: u64,
    spool_files: SpoolFiles,
    spool_budget: Arc<Budget>,
    leftovers: Leftovers,
    /// The names of the lanes' spools.
    spools: HashMap<u32, String>,
    generations: Generations,
    /// What lanes may remove of which no record speaks.
    existing: Existing,
    statuses: HashMap<u32, Arc<LaneStatus>>,
    openings: Vec<Opening>,
}

/// Starts an executor on every core of the plan, and a lane for every source master. `claim`: what the target knows, and
/// that nobody else writes to it for this link.
///
/// # Errors
/// When the machine refuses executors; nothing runs then.
pub fn start(plan: SyncPlan, claim: Claim, shared: Arc<Shared>) -> Result<RuntimeHandle, Fault> {
    let options = &plan.options;
    let executors = options
        .cores
        .iter()
        .map(|&core| Executor::start(core, options.pinned, Arc::clone(&shared)))
        .collect::<Result<Vec<_>, _>>()?;
    let directory = Directory::new(
        plan.options.spool_directory.clone(),
        plan.options.link.as_str(),
    );
    let spool_files = SpoolFiles::start(directory)?;
    let spool_budget = Arc::new(Budget::new(plan.options.spool_max));
    let mut leftovers = Leftovers::new(Arc::clone(&spool_budget));
    leftovers.look(&spool_files, &claim.bookkeeping);
    let mut supervisor = Supervisor {
        format: plan.target.format(Some(&plan.source.modules()))?,
        existing: existing(&plan, &claim),
        plan,
        shared,
        executors,
        roster: Roster::default(),
        moves: Moves::default(),
        functions: Arc::default(),
        orders: HashMap::new(),
        source_version: 0,
        generations: Generations::new(claim.epoch),
        openings: Vec::new(),
        statuses: HashMap::new(),
        spool_files,
        spool_budget,
        leftovers,
        spools: HashMap::new(),
    };
    supervisor.follow(Some(&claim));
    supervisor.open_lanes();
    // A master that comes later takes slots over whose keys are on the target already.
    if supervisor.existing == Existing::None {
        supervisor.existing = Existing::Replace;
    }
    let thread = std::thread::Builder::new()
        .name("supervisor".into())
        .spawn(move || supervisor.run())
        .map_err(|error| {
            Fault::new(
                FaultKind::Runtime,
                format!("cannot start a thread: {error}"),
            )
        })?;
    Ok(RuntimeHandle { thread })
}

impl Supervisor {
    fn run(mut self) -> Result<(), Fault> {
        while !self.executors.iter().all(Executor::has_ended) {
            std::thread::sleep(limits::TICK);
            if self.shared.stop_requested() {
                for opening in self.openings.drain(..) {
                    opening.status.set_state(LaneState::Stopped);
                }
                self.executors.iter_mut().for_each(Executor::close);
            } else {
                self.follow(None);
                self.begin_again();
                self.open_lanes();
            }
        }
        let joined = self.executors.iter_mut().try_for_each(Executor::join);
        self.shared.give_restarts_up();
        self.spool_files.finish();
        joined
    }

    /// Starts, moves and ends lanes as the source's topology has it.
    fn follow(&mut self, known: Option<&Claim>) {
        for (lane, slots) in self.shared.take_left() {
            self.moves.left(lane, &slots);
        }
        if self.shared.source.version() == self.source_version && !self.moves.is_busy() {
            return;
        }
        let (version, topology) = self.shared.source.load();
        if version != self.source_version {
            self.source_version = version;
            for (lane, node) in self.roster.follow(&topology) {
                self.order(lane, Order::Follow(node));
            }
        }
        let now_ms = self.shared.millis_at(Instant::now());
        let orders = self.moves.look(&mut self.roster, &topology, now_ms);
        self.give(orders, known);
        if known.is_some() {
            self.hold_back(now_ms);
        }
        self.shared.set_frozen(self.moves.frozen());
        if let Some(slots) = self.moves.overdue(now_ms) {
            warn!(
                "source: slots {slots} have been open for long, and what the target has of them stands still: finish their \
                 migration, or call it off (redis-cli --cluster fix)"
            );
        }
    }

    /// At the start: slots that records of one lane list, and that another has to write, wait for the former.
    fn hold_back(&mut self, now_ms: u64) {
        for index in 0..self.openings.len() {
            let opening = &self.openings[index];
            let Some(known) = &opening.known else {
                continue;
            };
            let Start::Resume(resume) = self.start_of(opening, known) else {
                continue;
            };
            let (lane, foreign) = (opening.status.id, resume.foreign);
            let (moves, roster) = (&mut self.moves, &mut self.roster);
            let waiting = moves.hold_back(roster, lane, &foreign, now_ms);
            if !waiting.is_empty() {
                info!(
                    "source: slots {waiting} moved meanwhile; what the target has of them stands still"
                );
            }
        }
        for opening in &mut self.openings {
            if let Some(place) = self.roster.place(opening.status.id) {
                opening.slots.clone_from(&place.slots);
                opening.leaving = self.moves.leaving(place.lane);
            }
        }
    }

    /// How a lane begins.
    fn start_of(&self, opening: &Opening, claim: &Claim) -> Start {
        let target = &claim.topology;
        let owner = |slot| target.master_of(slot).map(|node| node.id.as_str());
        let single = target.kind == TopologyKind::Single;
        let slots = &opening.slots;
        claim
            .bookkeeping
            .start(slots, owner, single, &opening.histories)
    }

    /// Tells lanes which slots are theirs.
    fn give(&mut self, orders: Orders, known: Option<&Claim>) {
        for (lane, slots) in orders.leave {
            info!("source: slots {slots} move; what the target has of them stands still");
            self.order(lane, Order::Leave(slots));
        }
        for (lane, slots) in orders.take {
            if let Some(place) = self.roster.place(lane) {
                let master = place.master.name();
                info!("source: slots {slots} are at {master}: their keys are copied");
            }
            self.order(lane, Order::Take(slots));
        }
        for lane in orders.ended {
            self.order(lane, Order::End);
        }
        for (master, slots) in orders.new {
            let status = self.shared.add_lane(&master.id, &master.name());
            self.statuses.insert(status.id, Arc::clone(&status));
            let (lane, ours) = (status.id, slots.clone());
            self.roster.add(lane, master.clone(), ours);
            self.openings.push(Opening {
                status,
                slots,
                leaving: SlotSet::new(),
                histories: match known {
                    Some(claim) => self.histories_of(&master, claim),
                    None => Vec::new(),
                },
                master,
                known: known.cloned(),
                not_before: Instant::now(),
            });
        }
    }

    fn order(&mut self, lane: u32, order: Order) {
        if let Some(place) = self.openings.iter().position(|open| open.status.id == lane) {
            let opening = &mut self.openings[place];
            match order {
                Order::Follow(node) => opening.master = node,
                Order::Take(slots) => opening.slots = opening.slots.union(&slots),
                Order::Leave(slots) => {
                    opening.slots = opening.slots.difference(&slots);
                    opening.leaving = opening.leaving.union(&slots);
                }
                Order::End => {
                    let ended = self.openings.swap_remove(place);
                    ended.status.set_state(LaneState::Stopped);
                }
            }
        } else if let Some(orders) = self.orders.get(&lane) {
            // A lane that has ended hears nothing, and needs not.
            let _ = orders.send(order);
        }
    }

    /// Lanes that ended because the target may have lost something begin again from what it has.
    fn begin_again(&mut self) {
        for (lane, why) in self.shared.take_restarts() {
            warn!("{why}");
            let place = self.roster.place(lane).cloned();
            let status = self.statuses.get(&lane).cloned();
            let (Some(place), Some(status)) = (place, status) else {
                continue;
            };
            self.openings.push(Opening {
                status,
                master: place.master,
                slots: place.slots,
                leaving: self.moves.leaving(lane),
                histories: Vec::new(),
                known: None,
                not_before: Instant::now(),
            });
        }
    }

    /// Starts lanes whose time has come.
    fn open_lanes(&mut self) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.openings)
            .into_iter()
            .partition(|opening| opening.not_before <= now);
        self.openings = later;
        let due: Vec<Opening> = due;
        for mut opening in due {
            if opening.slots.is_empty() {
                self.spare(&opening);
                continue;
            }
            let found = match opening.known.take() {
                Some(known) => Ok(known),
                None => self.ask_target(&opening),
            };
            match found {
                Ok(claim) => {
                    if opening.histories.is_empty() {
                        opening.histories = self.histories_of(&opening.master, &claim);
                    }
                    self.open_lane(opening, &claim);
                }
                Err(fault) if fault.policy() == Policy::Retry => {
                    opening.status.set_message(&fault.message);
                    opening.not_before = now + limits::REOPEN_INTERVAL;
                    self.openings.push(opening);
                }
                Err(fault) => opening.status.fail(fault),
            }
        }
    }

    /// A lane that has nothing to write any more is not started: what it has left is written by nobody.
    fn spare(&mut self, opening: &Opening) {
        let lane = opening.status.id;
        self.moves.left(lane, &opening.leaving);
        self.roster.end(|place| place.lane == lane);
        opening.status.set_state(LaneState::Stopped);
    }

    /// The histories that a source master goes on with, where there are records that could be of them; none if it does not answer.
    fn histories_of(&self, master: &Node, claim: &Claim) -> Vec<ReplicationId> {
        if claim.bookkeeping.records.is_empty() {
            return Vec::new();
        }
        let credentials = &self.plan.options.source.credentials;
        let histories = histories::of(&master.address, master.port, credentials);
        histories.unwrap_or_else(|fault| {
            warn!(
                "{}; so slots that moved meanwhile are not copied by themselves",
                fault.message
            );
            Vec::new()
        })
    }

    /// Shuts former connections of a lane out, and reads what the target knows.
    fn ask_target(&self, opening: &Opening) -> Result<Claim, Fault> {
        let options = &self.plan.options;
        let (_, topology) = self.shared.target.load();
        let (epoch, lane) = (self.generations.epoch(), opening.status.id);
        takeover::reclaim(&options.link, epoch, lane, &options.target, &topology)
    }

    /// The name of the spool that a lane begins with, and what is in it if it goes on from there.
    fn spool_of(&mut self, lane: u32, start: &Start) -> (String, Option<Spooled>) {
        let former = self.spools.remove(&lane);
        if let Some(former) = &former {
            self.leftovers.add(&self.spool_files, former);
        }
        let taken = match start {
            Start::Resume(resume) => self.leftovers.take(&self.spool_files, resume),
            Start::First | Start::Copy { .. } => None,
        };
        if let Some(former) = &former {
            self.leftovers.discard(&self.spool_files, former);
        }
        let (name, spooled) = match taken {
            Some((name, spooled)) => (name, Some(spooled)),
            None => (self.spool_files.new_name(), None),
        };
        self.spools.insert(lane, name.clone());
        (name, spooled)
    }

    fn open_lane(&mut self, opening: Opening, claim: &Claim) {
        let start = self.start_of(&opening, claim);
        let status = opening.status;
        let (orders, heard) = channel();
        let mut leaving = opening.leaving;
        if let Start::Resume(resume) = &start {
            let others = self
                .roster
                .places()
                .iter()
                .filter(|place| place.lane != status.id);
            let others = others.fold(SlotSet::new(), |all, place| all.union(&place.slots));
            leaving = leaving.union(&resume.foreign.difference(&others));
        }
        if !leaving.is_empty() {
            // It hears that before anything else.
            let _ = orders.send(Order::Leave(leaving));
        }
        self.orders.insert(status.id, orders);
        let target = Arc::new(claim.topology.clone());
        let single = target.kind == TopologyKind::Single;
        let (spool, spooled) = self.spool_of(status.id, &start);
        let options = &self.plan.options;
        let name = writer_name(&options.link, self.generations.epoch(), status.id);
        let mut config = LaneConfig {
            link: options.link.clone(),
            generation: Generation::default(),
            passed: BTreeMap::new(),
            owned: SlotSet::new(),
            source: opening.master,
            source_auth: auth(&options.source.credentials),
            slots: opening.slots,
            source_has_slots: self.shared.source.load().1.kind == TopologyKind::Cluster,
            listening_port: limits::SHOWN_PORT,
            target: target::Greeting {
                auth: auth(&options.target.credentials),
                name,
            },
            format: self.format,
            lacking: watched(&self.plan.source, &self.plan.target),
            leave_out: options.on_unsupported == OnUnsupported::Drop,
            omissions: Arc::clone(&self.shared.omissions),
            database_map: options.database_map.clone(),
            existing: self.existing,
            skip_unknown: options.skip_unknown,
            held: false,
            claimed_before: false,
            accept_empty_source: options.accept_empty_source,
            on_divergence: options.on_divergence,
            functions: Arc::clone(&self.functions),
            generations: Some(self.generations.clone()),
            resume: None,
            runs: claim.runs.clone(),
            spool: Settings::new(options.link.to_string(), Arc::clone(&self.spool_budget)),
            spooled,
            ack: options.ack,
            grouping: Grouping::default(),
            mark: options.mark,
            first_copy: false,
            record_interval_ms: options.checkpoint_every_ms,
        };
        config.begin(start, single, &status);
        let lane_status = Arc::clone(&status);
        let executor = &self.executors[status.id as usize % self.executors.len()];
        let taken = executor.add(NewLane {
            build: Box::new(move || Lane::new(config, target, lane_status)),
            status: Arc::clone(&status),
            orders: heard,
            spool: self.spool_files.named(&spool),
        });
        if !taken {
            status.fail(Fault::new(
                FaultKind::Runtime,
                format!("the executor of core {} has ended", executor.core),
            ));
        }
    }
}

fn auth(credentials: &Credentials) -> Option<(Option<String>, String)> {
    let password = credentials.password.as_ref()?;
    Some((credentials.user.clone(), password.reveal().to_owned()))
}

fn existing(plan: &SyncPlan, claim: &Claim) -> Existing {
    let records = &claim.bookkeeping.records;
    let ours = !records.is_empty() && records.iter().all(|found| found.record.exclusive);
    match plan.options.on_existing {
        // The target has writers of its own.
        _ if plan.options.mark => Existing::Keep,
        OnExisting::Replace => Existing::Replace,
        // Another lane of this link found the target empty: what is there came from here.
        _ if ours => Existing::Replace,
        _ if plan.target.keys() > 0 => Existing::Keep,
        _ => Existing::None,
    }
}
