//! Source slots that change owner: several source masters with a lane each, and the coordinator that says who writes what.
//!
//! ```text
//! master 0 -> lane 0 -.                      .- views of the source, late, old, or without open slots
//! master 1 -> lane 1 --> target cluster      v
//! master 2 -> lane 2 -'   ^            Roster, Moves -> take, leave, follow, end -> lanes
//!                         '- who writes what is checked with every command that is executed there
//! ```
//!
//! | file | part |
//! |---|---|
//! | `shards` | the source cluster |
//! | `process` | lanes, and what the supervisor does |
//! | `chaos` | what a seed makes happen |
//! | `named` | sequences of events by name |
//!
//! Invariants: in the end the target holds what the source masters hold in the slots that they own; a key is written by no
//! other lane than the one to which its slot was given, or that has not confirmed yet that it has left it; and while a lane writes
//! a slot, nothing of it is on the way of another; no lane ends by a fault.

pub mod chaos;
mod named;
mod process;
mod shards;

use std::collections::BTreeMap;

use slotstream::checkpoint::is_bookkeeping;
use slotstream::engine::options::Existing;
use slotstream::topology::Topology;

use crate::cluster::Cluster;
use crate::model::{Bytes, Value};
use crate::rng::Rng;
use crate::trace;
use crate::world::Network;
use process::Process;
use shards::Shards;

/// How a run is.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Refusals of control threads.
    pub trouble: bool,
    pub lossy: bool,
    /// The most that a part of an answer takes.
    pub answer_ms: usize,
    pub step_ms: usize,
    /// Of which each lane has one.
    pub networks: Vec<Network>,
}

pub struct Sim {
    pub now_ms: u64,
    pub rng: Rng,
    pub plan: Plan,
    pub shards: Shards,
    pub cluster: Cluster,
    pub process: Process,
    /// Views of the source on their way.
    pub views: Vec<(u64, Topology)>,
}

impl Sim {
    pub fn new(rng: Rng, plan: Plan, shards: Shards, mut cluster: Cluster) -> Self {
        cluster.journal = Some(Vec::new());
        let view = shards.topology(true);
        Self {
            now_ms: 0,
            rng,
            plan,
            shards,
            cluster,
            process: Process::new(view, 1, Existing::None),
            views: Vec::new(),
        }
    }

    pub fn network_of(&self, lane: u32) -> Network {
        let networks = &self.plan.networks;
        networks[lane as usize % networks.len()].clone()
    }

    /// One moment.
    pub fn step(&mut self) {
        self.now_ms += self.rng.below(self.plan.step_ms + 1) as u64;
        trace::at(self.now_ms);
        let now_ms = self.now_ms;
        let views = std::mem::take(&mut self.views);
        let (due, later): (Vec<_>, Vec<_>) = views.into_iter().partition(|view| view.0 <= now_ms);
        self.views = later;
        for (_, view) in due {
            self.process.adopt(view);
        }
        self.supervise();
        let mut place = 0;
        while place < self.process.links.len() {
            place += usize::from(self.step_link(place));
        }
    }

    /// A view of the source as it is, on its way.
    pub fn publish(&mut self, open: bool, delay_ms: u64) {
        self.views
            .push((self.now_ms + delay_ms, self.shards.topology(open)));
    }

    pub fn run_for(&mut self, ms: u64) {
        let end_ms = self.now_ms + ms;
        while self.now_ms < end_ms {
            self.step();
        }
    }

    pub fn run_until(
        &mut self,
        limit_ms: u64,
        what: &str,
        mut done: impl FnMut(&mut Self) -> bool,
    ) {
        let end_ms = self.now_ms + limit_ms;
        while !done(self) {
            let links = || self.process.links.iter();
            assert!(
                self.now_ms < end_ms,
                "no progress: {what} has not come in {limit_ms} ms; {:?}; frozen {:?}",
                links()
                    .map(|link| (link.id, link.world.lane.progress(), link.slots_to_copy()))
                    .collect::<Vec<_>>(),
                self.process.moves.frozen(),
            );
            self.step();
        }
    }

    pub fn is_equal(&mut self) -> bool {
        self.views.is_empty()
            && self.process.is_settled()
            && (0..self.process.links.len()).all(|place| self.is_link_equal(place))
    }

    pub fn settle_and_compare(&mut self) {
        self.views.clear();
        self.publish(true, 0);
        self.run_until(180_000, "everything", Self::is_equal);
        // What was copied counts as applied with the next command.
        for master in &mut self.shards.masters {
            master.source.say(&["ping"]);
        }
        self.run_until(180_000, "the last of it", Self::is_equal);
        self.check_equal();
    }

    fn on_target(&self) -> BTreeMap<Bytes, Value> {
        let mut all = BTreeMap::new();
        for (index, node) in self.cluster.nodes.iter().enumerate() {
            for ((_, key), value) in &node.store.keys {
                let slot = slotstream::slot::slot_of(key);
                if is_bookkeeping(key) {
                    continue;
                }
                let owner = self.cluster.owners[usize::from(slot)];
                assert!(
                    self.cluster.single || owner == index,
                    "a key is not at its owner"
                );
                all.insert(key.clone(), value.clone());
            }
        }
        all
    }

    /// Panics with the first difference between source and target.
    pub fn check_equal(&self) {
        let (source, target) = (self.shards.union(), self.on_target());
        for (key, value) in &source {
            assert_eq!(
                target.get(key),
                Some(value),
                "the target differs at {}, of slot {}",
                key.escape_ascii(),
                slotstream::slot::slot_of(key)
            );
        }
        for key in target.keys() {
            assert!(
                source.contains_key(key),
                "the target has {} too much",
                key.escape_ascii()
            );
        }
    }
}
