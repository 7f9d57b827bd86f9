//! One command for each slot of a target, or for each of its masters: pipelined, and answered by the owners.
//!
//! A slot that has moved is answered `MOVED`, one that is about to move and lacks the key `ASK`. The latter is followed for
//! that key; the former ends what was begun with a fault of a kind that is tried again, since what other masters said may be
//! out of date as well. After any fault connections are given up: replies may still be on their way.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::info;

use super::client::Client;
use super::discover::{View, from_seeds, member, merge, single, view, view_of_nodes};
use crate::fault::{Fault, FaultKind, Policy, Side};
use crate::limits::{self, TAKEOVER_BATCH_SLOTS, TAKEOVER_VIEWS};
use crate::slot::{SLOT_COUNT, Slot, SlotSet};
use crate::topology::{Endpoint, Health, ServerRun, Topology, TopologyKind, Value};

/// Connections to all masters of a target.
#[derive(Debug)]
pub struct Masters {
    endpoint: Endpoint,
    topology: Topology,
    /// By node id.
    clients: HashMap<String, Client>,
}

const SIDE: Side = Side::Target;

/// Does `attempt` with connected masters until it succeeds, fails for good, or has taken too long.
pub fn persist<T>(
    what: &str,
    target: &Endpoint,
    topology: &Topology,
    mut attempt: impl FnMut(&mut Masters) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let begun = Instant::now();
    let patience = Duration::from_millis(limits::TAKEOVER_PATIENCE_MS);
    let mut pause_ms = limits::MIN_TAKEOVER_PAUSE_MS;
    let mut masters = Masters::new(target, topology);
    loop {
        let fault = match masters.refresh().and_then(|()| attempt(&mut masters)) {
            Ok(done) => return Ok(done),
            Err(fault) if fault.policy() == Policy::Stop => return Err(fault),
            Err(fault) => fault,
        };
        if begun.elapsed() >= patience {
            let text = format!(
                "{what} did not succeed within {} s: {fault}",
                patience.as_secs()
            );
            return Err(Fault::new(fault.kind, text));
        }
        info!("{what}: {fault}; trying again");
        masters.clients.clear();
        let by_chance = u64::from(begun.elapsed().subsec_nanos()) % pause_ms;
        std::thread::sleep(Duration::from_millis(pause_ms + by_chance));
        pause_ms = (2 * pause_ms).min(limits::MAX_TAKEOVER_PAUSE_MS);
    }
}

impl Masters {
    /// No connection is made yet.
    pub fn new(endpoint: &Endpoint, topology: &Topology) -> Self {
        Self {
            endpoint: endpoint.clone(),
            topology: topology.clone(),
            clients: HashMap::new(),
        }
    }

    /// Gives up all connections: replies may still be on their way.
    pub fn disconnect(&mut self) {
        self.clients.clear();
    }

    /// What was last believed.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Connects to every master, of the latest topology that they tell. One without slots need not answer.
    pub fn refresh(&mut self) -> Result<(), Fault> {
        if self.topology.kind == TopologyKind::Single {
            return self.refresh_single();
        }
        for _ in 0..TAKEOVER_VIEWS {
            let failed = self.connect();
            let Some(best) = merge(self.views()?) else {
                self.topology = self.ask_others()?;
                continue;
            };
            let latest = best.topology;
            let settled = same_owners(&latest, &self.topology);
            self.topology = latest;
            if settled {
                return failed;
            }
        }
        let text = "the target's masters keep changing places; wait until failovers and resharding are over";
        Err(Fault::new(FaultKind::TryAgain, text))
    }

    /// A name may lead elsewhere after a while.
    fn refresh_single(&mut self) -> Result<(), Fault> {
        if !self.clients.is_empty() {
            return Ok(());
        }
        let mut failed = None;
        for (host, port) in &self.endpoint.seeds {
            match Client::connect(SIDE, host, *port, &self.endpoint.credentials) {
                Ok(client) => {
                    self.topology = single(&client);
                    let id = self.topology.shards[0].master.id.clone();
                    self.clients.insert(id, client);
                    return Ok(());
                }
                Err(fault) => _ = failed.get_or_insert(fault),
            }
        }
        Err(failed.unwrap_or_else(|| Fault::new(FaultKind::NoTopology, "target names no node")))
    }

    /// Connects to the masters of the current topology, and to no others. The fault of the first with slots that failed.
    fn connect(&mut self) -> Result<(), Fault> {
        let shards = &self.topology.shards;
        self.clients.retain(|id, client| {
            shards.iter().any(|shard| {
                let node = &shard.master;
                node.id == *id && node.address == client.host() && node.port == client.port()
            })
        });
        let mut result = Ok(());
        for shard in shards {
            let node = &shard.master;
            if self.clients.contains_key(&node.id) {
                continue;
            }
            match member(SIDE, &self.endpoint, node) {
                Ok(client) => _ = self.clients.insert(node.id.clone(), client),
                Err(fault) if result.is_ok() && !shard.slots.is_empty() => result = Err(fault),
                Err(_) => {}
            }
        }
        result
    }

    /// What each connected master knows of its cluster.
    fn views(&mut self) -> Result<Vec<View>, Fault> {
        use FaultKind::{ConnectionLost, Protocol};
        let mut views = Vec::new();
        self.clients
            .retain(|_, client| client.send(&["CLUSTER", "NODES"]).is_ok());
        let mut lost = Vec::new();
        for (id, client) in &mut self.clients {
            let view = match client.receive() {
                Ok(Value::Bulk(bytes)) => view_of_nodes(client, &String::from_utf8_lossy(&bytes)),
                // Not allowed, perhaps, while CLUSTER SHARDS is.
                Ok(_) => view(client),
                Err(fault) => Err(fault),
            };
            match view {
                Ok(view) => {
                    // Another node may have the address by now; one of the same cluster knows where both are.
                    let said_by = view.said_by.as_ref();
                    if said_by.is_some_and(|said_by| said_by != id) {
                        lost.push(id.clone());
                    }
                    if said_by.is_none_or(|said_by| self.topology.has_node(said_by)) {
                        views.push(view);
                    }
                }
                // Gone, or not a member of any cluster at the moment.
                Err(fault) if matches!(fault.kind, ConnectionLost | Protocol) => {
                    lost.push(id.clone());
                }
                Err(fault) => return Err(fault),
            }
        }
        for id in lost {
            self.clients.remove(&id);
        }
        Ok(views)
    }

    /// No master answers: what do replicas and seeds know?
    fn ask_others(&self) -> Result<Topology, Fault> {
        let replicas = self.topology.shards.iter().flat_map(|s| &s.replicas);
        for node in replicas {
            let client = member(SIDE, &self.endpoint, node);
            if let Ok(found) = client.and_then(|mut client| view(&mut client))
                && found.topology.is_related(&self.topology)
            {
                return Ok(found.topology);
            }
        }
        let found = from_seeds(SIDE, &self.endpoint)?;
        if found.is_related(&self.topology) {
            return Ok(found);
        }
        let text = "none of the target's nodes answers, and what was named leads to another deployment; start them again, or \
                    this program if the other one is meant";
        Err(Fault::new(FaultKind::Unreachable, text))
    }

    /// Takes over what others have found out: all nodes may have other addresses since the last look.
    pub fn suggest(&mut self, topology: &Topology) {
        self.topology = topology.clone();
    }

    /// The masters that are connected, with and without slots.
    pub fn clients(&mut self) -> impl Iterator<Item = &mut Client> {
        self.clients.values_mut()
    }

    /// Which run of its server each master is, by node id.
    pub fn runs(&mut self) -> Result<Vec<(String, ServerRun)>, Fault> {
        let mut runs = Vec::new();
        for (id, client) in &mut self.clients {
            runs.extend(run_of(client)?.map(|run| (id.clone(), run)));
        }
        Ok(runs)
    }

    /// Connections to the masters' replicas that are said to be up.
    pub fn replicas(&self) -> impl Iterator<Item = Result<Client, Fault>> + '_ {
        let credentials = &self.endpoint.credentials;
        let replicas = self.topology.shards.iter().flat_map(|s| &s.replicas);
        replicas
            .filter(|node| node.health == Health::Online)
            .map(|node| Client::connect(SIDE, &node.address, node.port, credentials))
    }

    /// The node id of each slot's owner.
    pub fn owner(&self, slot: Slot) -> Option<&str> {
        self.topology.master_of(slot).map(|node| node.id.as_str())
    }

    /// One command for each of these slots, written by `command`, and the owner's reply. Of errors only `WRONGTYPE`, about the
    /// key that was asked for, and `TRYAGAIN`, about several of which not all are at one master, are given as replies.
    pub fn ask_slots(
        &mut self,
        slots: &SlotSet,
        command: impl Fn(Slot, &mut Vec<u8>),
    ) -> Result<Vec<(Slot, Value)>, Fault> {
        let mut work: Vec<(String, Vec<Slot>)> = Vec::new();
        for shard in self.topology.serving() {
            let asked = shard.slots.intersection(slots);
            if !asked.is_empty() {
                work.push((shard.master.id.clone(), asked.iter().collect()));
            }
        }
        let owned: usize = work.iter().map(|(_, slots)| slots.len()).sum();
        if owned < slots.len() {
            let text = "the target cluster has slots without a master; assign them (redis-cli --cluster fix)";
            return Err(Fault::new(FaultKind::ClusterDown, text));
        }
        let mut replies = Vec::with_capacity(owned);
        let rounds = SLOT_COUNT.div_ceil(TAKEOVER_BATCH_SLOTS);
        for round in 0..rounds {
            let part = |slots: &Vec<Slot>| -> Vec<Slot> {
                let parts = slots.chunks(TAKEOVER_BATCH_SLOTS);
                parts.into_iter().nth(round).unwrap_or_default().to_vec()
            };
            // All masters work at the same time.
            for (id, slots) in &work {
                let mut batch = Vec::new();
                for slot in part(slots) {
                    command(slot, &mut batch);
                }
                self.client(id)?.send_bytes(&batch)?;
            }
            for (id, slots) in &work {
                for slot in part(slots) {
                    let reply = self.client(id)?.receive()?;
                    replies.push((slot, reply));
                }
            }
        }
        for (slot, reply) in &mut replies {
            if let Value::Error(text) = reply {
                let text = text.clone();
                *reply = self.settle(*slot, &text, &command)?;
            }
        }
        replies.sort_unstable_by_key(|(slot, _)| *slot);
        Ok(replies)
    }

    /// [`Masters::ask_slots`] for one.
    pub fn ask_slot(
        &mut self,
        slot: Slot,
        command: impl Fn(Slot, &mut Vec<u8>),
    ) -> Result<Value, Fault> {
        let replies = self.ask_slots(&SlotSet::from_iter([slot]), command)?;
        Ok(replies.into_iter().next().expect("one for each slot").1)
    }

    fn client(&mut self, id: &str) -> Result<&mut Client, Fault> {
        let unknown = || {
            Fault::new(
                FaultKind::TryAgain,
                "a master of the target is not connected",
            )
        };
        self.clients.get_mut(id).ok_or_else(unknown)
    }

    /// What follows from an error reply.
    fn settle(
        &mut self,
        slot: Slot,
        error: &str,
        command: &impl Fn(Slot, &mut Vec<u8>),
    ) -> Result<Value, Fault> {
        let mut words = error.split_ascii_whitespace();
        let moves = || {
            let text = format!("slot {slot} of the target is moving ({error}); wait until it has");
            Fault::new(FaultKind::TryAgain, text)
        };
        match words.next() {
            Some("MOVED") => Err(moves()),
            Some("WRONGTYPE" | "TRYAGAIN") => Ok(Value::Error(error.to_owned())),
            Some("ASK") => {
                let owner = self.topology.master_of(slot).ok_or_else(moves)?;
                let index = words
                    .nth(1)
                    .and_then(|address| self.topology.shard_redirected(owner, address));
                let index = index.ok_or_else(moves)?;
                let id = self.topology.shards[index].master.id.clone();
                let mut batch = b"*1\r\n$6\r\nASKING\r\n".to_vec();
                command(slot, &mut batch);
                let client = self.client(&id)?;
                client.send_bytes(&batch)?;
                client.receive()?;
                match client.receive()? {
                    Value::Error(text)
                        if text.starts_with("WRONGTYPE") || text.starts_with("TRYAGAIN") =>
                    {
                        Ok(Value::Error(text))
                    }
                    Value::Error(text) if text.starts_with("MOVED") || text.starts_with("ASK") => {
                        Err(moves())
                    }
                    Value::Error(text) => Err(client.reply_fault(cause(&text))),
                    reply => Ok(reply),
                }
            }
            _ => {
                let id = self.owner(slot).unwrap_or_default().to_owned();
                let client = self.client(&id)?;
                Err(client.reply_fault(cause(error)))
            }
        }
    }
}

/// Which run of its server is behind `client`.
pub fn run_of(client: &mut Client) -> Result<Option<ServerRun>, Fault> {
    let server = client.text(&["INFO", "server"])?;
    let replication = client.text(&["INFO", "replication"])?;
    Ok(ServerRun::parse(&(server + &replication)))
}

/// The error of the command in a script that failed: 6.0 puts it into its own words.
fn cause(error: &str) -> &str {
    let inside = error.starts_with("ERR Error running script");
    let inner = error.rsplit_once(": -").filter(|_| inside);
    inner.map_or(error, |(_, inner)| inner)
}

/// Whether both name the same masters at the same addresses, with the same slots.
fn same_owners(one: &Topology, other: &Topology) -> bool {
    let pairs = one.shards.iter().zip(&other.shards);
    one.shards.len() == other.shards.len()
        && pairs.into_iter().all(|(one, other)| {
            let (a, b) = (&one.master, &other.master);
            a.id == b.id && a.address == b.address && a.port == b.port && one.slots == other.slots
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Node, Shard};

    #[test]
    fn what_stopped_a_script_is_told_apart_as_without_one() {
        let wrapped = "ERR Error running script (call to f_0a): @user_script:1: @user_script: 1: -READONLY You can't write";
        assert_eq!(FaultKind::of_reply(cause(wrapped)), FaultKind::ReadOnly);
        let plain = "OOM command not allowed: -x";
        assert_eq!(cause(plain), plain);
        let own = "ERR Error running script (call to f_0a): @user_script:1: nil value";
        assert_eq!(cause(own), own);
    }

    #[test]
    fn a_view_is_settled_when_owners_and_addresses_are_the_same() {
        let cluster = |id: &str, port, first: Slot| {
            let mut slots = SlotSet::new();
            slots.insert_range(first, 16383);
            let master = Node::new(id, "h", port);
            let replicas = Vec::new();
            let shard = Shard {
                master,
                replicas,
                slots,
            };
            Topology::cluster(vec![shard], vec![]).expect("valid")
        };
        let one = cluster("a", 1, 0);
        assert!(same_owners(&one, &cluster("a", 1, 0)));
        for other in [cluster("b", 1, 0), cluster("a", 2, 0), cluster("a", 1, 1)] {
            assert!(!same_owners(&one, &other));
        }
    }
}
