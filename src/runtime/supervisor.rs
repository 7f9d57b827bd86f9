//! Which lanes there are: one per source master, spread over the cores, following the source's topology.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use super::executor::{Executor, NewLane};
use super::lane_task::Order;
use crate::checkpoint::Generation;
use crate::engine::claims::FunctionClaims;
use crate::engine::lane::{Lane, LaneConfig};
use crate::engine::options::{Existing, OnExisting, OnUnsupported, SyncPlan};
use crate::engine::roster::{Place, Roster};
use crate::engine::shared::Shared;
use crate::engine::watched;
use crate::fault::{Fault, FaultKind};
use crate::limits;
use crate::rdb::TargetFormat;
use crate::slot::SlotSet;
use crate::target;
use crate::topology::{Credentials, Node};

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

struct Supervisor {
    plan: SyncPlan,
    shared: Arc<Shared>,
    format: TargetFormat,
    executors: Vec<Executor>,
    roster: Roster,
    functions: Arc<FunctionClaims>,
    orders: HashMap<u32, Sender<Order>>,
    source_version: u64,
    /// What new lanes may remove.
    existing: Existing,
}

/// Starts an executor on every core of the plan, and a lane for every source master.
///
/// # Errors
/// When the machine refuses executors; nothing runs then.
pub fn start(plan: SyncPlan, shared: Arc<Shared>) -> Result<RuntimeHandle, Fault> {
    let executors = plan
        .options
        .cores
        .iter()
        .map(|&core| Executor::start(core, Arc::clone(&shared)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut supervisor = Supervisor {
        format: plan.target.format(Some(&plan.source.modules()))?,
        existing: existing(&plan),
        plan,
        shared,
        executors,
        roster: Roster::default(),
        functions: Arc::default(),
        orders: HashMap::new(),
        source_version: 0,
    };
    supervisor.follow();
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
                self.executors.iter_mut().for_each(Executor::close);
            } else {
                self.follow();
            }
        }
        self.executors.iter_mut().try_for_each(Executor::join)
    }

    /// Starts, moves and ends lanes as the source's topology has it.
    fn follow(&mut self) {
        if self.shared.source.version() == self.source_version {
            return;
        }
        let (version, topology) = self.shared.source.load();
        self.source_version = version;
        let changes = self.roster.follow(&topology);
        for (lane, node) in changes.moved {
            self.order(lane, Order::Follow(node));
        }
        for lane in changes.ended {
            self.order(lane, Order::End);
        }
        for (master, slots) in changes.new {
            self.add_lane(master, slots);
        }
    }

    fn order(&self, lane: u32, order: Order) {
        if let Some(orders) = self.orders.get(&lane) {
            // A lane that has ended hears nothing, and needs not.
            let _ = orders.send(order);
        }
    }

    fn add_lane(&mut self, master: Node, slots: SlotSet) {
        let status = self.shared.add_lane(&master.id, &master.name());
        let (orders, heard) = channel();
        self.orders.insert(status.id, orders);
        self.roster.add(Place {
            lane: status.id,
            master: master.clone(),
            slots: slots.clone(),
        });
        let options = &self.plan.options;
        let config = LaneConfig {
            link: options.link.clone(),
            generation: Generation {
                epoch: 1,
                number: status.id + 1,
            },
            passed: BTreeMap::new(),
            owned: SlotSet::new(),
            source: master,
            source_auth: auth(&options.source.credentials),
            slots,
            listening_port: limits::SHOWN_PORT,
            target: target::Greeting {
                auth: auth(&options.target.credentials),
                name: format!("slotstream:{}:{}", options.link, status.id),
            },
            format: self.format,
            lacking: watched(&self.plan.source, &self.plan.target),
            leave_out: options.on_unsupported == OnUnsupported::Drop,
            omissions: Arc::clone(&self.shared.omissions),
            database_map: options.database_map.clone(),
            existing: self.existing,
            skip_unknown: options.skip_unknown,
            on_divergence: options.on_divergence,
            functions: Arc::clone(&self.functions),
        };
        let (_, target) = self.shared.target.load();
        let lane_status = Arc::clone(&status);
        let executor = &self.executors[status.id as usize % self.executors.len()];
        let taken = executor.add(NewLane {
            build: Box::new(move || Lane::new(config, target, lane_status)),
            status: Arc::clone(&status),
            orders: heard,
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

fn existing(plan: &SyncPlan) -> Existing {
    let holds_keys = plan
        .target
        .servers
        .iter()
        .any(|(_, server)| server.keys() > 0);
    match plan.options.on_existing {
        OnExisting::Replace => Existing::Replace,
        _ if holds_keys => Existing::Keep,
        _ => Existing::None,
    }
}
