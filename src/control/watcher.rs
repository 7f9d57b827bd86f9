//! Refreshes topologies and source offsets, once a second and on every hint.
//!
//! One thread per side, so that a hung target does not hold up the offsets of the source. In each round all
//! masters are asked at once (requests first, then replies), because each knows its own open slots best; of
//! their views of the cluster the one with the highest config epochs is taken, so that a node
//! that was cut off cannot bring back an old one. When no master answers, replicas are asked, then the seeds.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::client::{Client, value_text};
use super::discover::{View, from_seeds, member, merge, single, view, view_of_nodes};
use crate::engine::shared::Shared;
use crate::fault::{Fault, FaultKind, Side};
use crate::limits::{
    WATCH_HINT_INTERVAL_MS, WATCH_INTERVAL_MS, WATCH_OLDER_VIEWS, WATCH_REPLY_TIMEOUT_MS,
    WATCH_RETRY_MS,
};
use crate::topology::nodes::Epochs;
use crate::topology::server::replication_position;
use crate::topology::{
    Endpoint, Node, Topology, TopologyCell, TopologyChange, TopologyKind, Value,
};

/// The running threads. Dropping it ends them after their current round.
#[derive(Debug)]
pub struct Watcher {
    closed: Arc<AtomicBool>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Watcher {
    /// Starts a thread per side.
    pub fn start(
        shared: &Arc<Shared>,
        source: &Endpoint,
        target: &Endpoint,
    ) -> Result<Self, Fault> {
        let mut watcher = Self {
            closed: Arc::default(),
            shared: Arc::clone(shared),
            threads: Vec::new(),
        };
        watcher.spawn(SideWatch::new(Side::Source, source))?;
        watcher.spawn(SideWatch::new(Side::Target, target))?;
        Ok(watcher)
    }

    fn spawn(&mut self, mut side: SideWatch) -> Result<(), Fault> {
        let (shared, closed) = (Arc::clone(&self.shared), Arc::clone(&self.closed));
        let name = format!("watch-{}", side.side);
        let thread = Builder::new().name(name).spawn(move || {
            let mut seen = 0;
            while !closed.load(Ordering::Acquire) {
                side.round(&shared);
                std::thread::sleep(Duration::from_millis(WATCH_HINT_INTERVAL_MS));
                let limit = Duration::from_millis(WATCH_INTERVAL_MS - WATCH_HINT_INTERVAL_MS);
                seen = shared.wait_for_hint(seen, limit);
            }
        });
        let thread = thread.map_err(|error| {
            Fault::new(
                FaultKind::Runtime,
                format!("cannot start a thread: {error}"),
            )
        })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
        self.shared.hint();
        for thread in self.threads.drain(..) {
            // A panic there was reported by its own thread.
            let _ = thread.join();
        }
    }
}

/// One side's connections and what was last believed.
#[derive(Debug)]
struct SideWatch {
    side: Side,
    endpoint: Endpoint,
    /// By node id.
    links: HashMap<String, Link>,
    epochs: Epochs,
    /// Rounds in a row that only showed older views.
    older_views: u32,
    /// Whether the last round found nobody; told once.
    lost: bool,
}

#[derive(Debug)]
enum Link {
    Open(Client),
    /// Not before this moment again.
    Waiting(Instant),
}

/// What one master answered.
struct Answer {
    view: Option<View>,
    replid: String,
    offset: u64,
}

impl Answer {
    fn said_by(&self) -> Option<&str> {
        self.view.as_ref()?.said_by.as_deref()
    }

    /// Whether it may be this node that answered.
    fn is_of(&self, id: &str) -> bool {
        self.said_by().is_none_or(|said_by| said_by == id)
    }

    fn is_of_any(&self, topology: &Topology) -> bool {
        self.said_by().is_some_and(|id| topology.has_node(id))
    }
}

impl SideWatch {
    fn new(side: Side, endpoint: &Endpoint) -> Self {
        Self {
            side,
            endpoint: endpoint.clone(),
            links: HashMap::new(),
            epochs: Epochs::default(),
            older_views: 0,
            lost: false,
        }
    }

    fn round(&mut self, shared: &Shared) {
        let cell = match self.side {
            Side::Source => &shared.source,
            Side::Target => &shared.target,
        };
        let (_, current) = cell.load();
        let asked_ms = shared.millis_at(Instant::now());
        let (answers, strays) = self.ask_masters(&current);
        if self.side == Side::Source {
            publish_offsets(shared, &current, &answers, asked_ms);
        }
        let found = match current.kind {
            TopologyKind::Single => self.find_single(&answers, &current),
            TopologyKind::Cluster => self.find_cluster(answers, strays, &current),
        };
        let Some(topology) = found else {
            return;
        };
        let change = current.change_to(&topology);
        publish(self.side, cell, topology, &change);
    }

    /// Asks every master that can be reached; the answers by node id, in the order of the shards, and the views of other members
    /// that were met at a master's address.
    fn ask_masters(&mut self, topology: &Topology) -> (Vec<(String, Answer)>, Vec<View>) {
        let masters: Vec<&Node> = topology.shards.iter().map(|shard| &shard.master).collect();
        self.links.retain(|id, link| {
            masters.iter().any(|node| match link {
                Link::Open(client) => {
                    node.id == *id && client.host() == node.address && client.port() == node.port
                }
                Link::Waiting(_) => node.id == *id,
            })
        });
        let in_cluster = topology.kind == TopologyKind::Cluster;
        let asked: Vec<&Node> = masters
            .into_iter()
            .filter(|node| self.ask(node, in_cluster).is_some())
            .collect();
        let (mut answers, mut strays) = (Vec::new(), Vec::new());
        for node in asked {
            let Some(Link::Open(client)) = self.links.get_mut(&node.id) else {
                continue;
            };
            match receive(client, in_cluster) {
                Ok(answer) if answer.is_of(&node.id) => answers.push((node.id.clone(), answer)),
                // Another node has taken its address. One of the same cluster knows where both are.
                Ok(answer) => {
                    self.links.remove(&node.id);
                    if answer.is_of_any(topology) {
                        strays.extend(answer.view);
                    } else {
                        self.wait(node);
                    }
                }
                Err(_) => self.wait(node),
            }
        }
        (answers, strays)
    }

    /// Connects if needed and due, and sends the questions; `None` when the node cannot be reached now.
    fn ask(&mut self, node: &Node, in_cluster: bool) -> Option<()> {
        if let Some(Link::Waiting(until)) = self.links.get(&node.id)
            && Instant::now() < *until
        {
            return None;
        }
        if !matches!(self.links.get(&node.id), Some(Link::Open(_))) {
            match self.open(node, in_cluster) {
                Ok(client) => _ = self.links.insert(node.id.clone(), Link::Open(client)),
                Err(_) => {
                    self.wait(node);
                    return None;
                }
            }
        }
        let Some(Link::Open(client)) = self.links.get_mut(&node.id) else {
            return None;
        };
        let mut sent = client.send(&["INFO", "replication"]);
        if in_cluster {
            sent = sent.and_then(|()| client.send(&["CLUSTER", "NODES"]));
        }
        if sent.is_err() {
            self.wait(node);
            return None;
        }
        Some(())
    }

    fn open(&self, node: &Node, in_cluster: bool) -> Result<Client, Fault> {
        let credentials = &self.endpoint.credentials;
        let mut client = match in_cluster {
            true => member(self.side, &self.endpoint, node)?,
            false => Client::connect(self.side, &node.address, node.port, credentials)?,
        };
        client.set_reply_timeout(Duration::from_millis(WATCH_REPLY_TIMEOUT_MS))?;
        Ok(client)
    }

    fn wait(&mut self, node: &Node) {
        let until = Instant::now() + Duration::from_millis(WATCH_RETRY_MS);
        self.links.insert(node.id.clone(), Link::Waiting(until));
    }

    /// A single server stays where it is while it answers; then its name may lead elsewhere.
    fn find_single(
        &mut self,
        answers: &[(String, Answer)],
        current: &Topology,
    ) -> Option<Topology> {
        if !answers.is_empty() {
            self.note_found();
            return None;
        }
        for (host, port) in &self.endpoint.seeds {
            let opened = Client::connect(self.side, host, *port, &self.endpoint.credentials);
            if let Ok(client) = opened {
                let mut found = single(&client);
                // The same server by another of its names is no change.
                if found.shards[0].master.address == current.shards[0].master.address
                    && found.shards[0].master.port == current.shards[0].master.port
                {
                    found = current.clone();
                }
                self.links.remove(&found.shards[0].master.id);
                return Some(found);
            }
        }
        self.note_lost();
        None
    }

    fn find_cluster(
        &mut self,
        answers: Vec<(String, Answer)>,
        strays: Vec<View>,
        current: &Topology,
    ) -> Option<Topology> {
        let views = answers.into_iter().filter_map(|(_, a)| a.view);
        let Some(best) = merge(views.chain(strays).collect()) else {
            return self.ask_others(current);
        };
        self.note_found();
        if best.epochs < self.epochs && self.older_views < WATCH_OLDER_VIEWS {
            self.older_views += 1;
            return None;
        }
        self.older_views = 0;
        self.epochs = best.epochs;
        Some(best.topology)
    }

    /// No master answers: what do replicas and seeds know?
    fn ask_others(&mut self, current: &Topology) -> Option<Topology> {
        let replicas = current.shards.iter().flat_map(|shard| &shard.replicas);
        for node in replicas {
            let found = self.open(node, true).and_then(|mut c| view(&mut c));
            if let Ok(found) = found
                && found.epochs >= self.epochs
                && found.topology.is_related(current)
            {
                self.epochs = found.epochs;
                return Some(found.topology);
            }
        }
        match from_seeds(self.side, &self.endpoint) {
            Ok(topology) if topology.is_related(current) => Some(topology),
            _ => {
                self.note_lost();
                None
            }
        }
    }

    fn note_lost(&mut self) {
        if !std::mem::replace(&mut self.lost, true) {
            warn!("no node of the {} can be reached; trying on", self.side);
        }
    }

    fn note_found(&mut self) {
        if std::mem::replace(&mut self.lost, false) {
            info!("the {} can be reached again", self.side);
        }
    }
}

/// The replies to what [`SideWatch::ask`] sent.
fn receive(client: &mut Client, in_cluster: bool) -> Result<Answer, Fault> {
    let info = client.receive()?;
    let nodes = match in_cluster {
        true => Some(client.receive()?),
        false => None,
    };
    let text = match info {
        Value::Error(reply) => return Err(client.reply_fault(&reply)),
        value => value_text(value).unwrap_or_default(),
    };
    let (replid, offset) = replication_position(&text)
        .map_err(|error| client.shape_fault("INFO replication", error))?;
    let view = match nodes {
        None => None,
        Some(Value::Bulk(bytes)) => Some(view_of_nodes(client, &String::from_utf8_lossy(&bytes))?),
        // Not allowed, perhaps, while CLUSTER SHARDS is.
        Some(_) => Some(view(client)?),
    };
    Ok(Answer {
        view,
        replid,
        offset,
    })
}

/// A lane is found by the address that it follows, which a failover changes.
fn publish_offsets(
    shared: &Shared,
    topology: &Topology,
    answers: &[(String, Answer)],
    asked_ms: u64,
) {
    let lanes = shared.lanes();
    for (node_id, answer) in answers {
        let Some(shard) = topology.shard_by_id(node_id) else {
            continue;
        };
        let name = shard.master.name();
        for lane in lanes.iter().filter(|lane| !lane.state().is_final()) {
            if lane.source() == name {
                lane.set_poll(&answer.replid, answer.offset, asked_ms);
            }
        }
    }
}

fn publish(side: Side, cell: &TopologyCell, topology: Topology, change: &TopologyChange) -> bool {
    if !cell.store(topology) {
        return false;
    }
    for node in &change.new_masters {
        info!("{side}: new master {}", node.name());
    }
    for node in &change.gone_masters {
        info!("{side}: master {} is gone", node.name());
    }
    for promotion in &change.promotions {
        info!("{side}: {} took its master's place", promotion.to.name());
    }
    for node in &change.readdressed {
        info!("{side}: a master is now at {}", node.name());
    }
    let moved: usize = change.moved.iter().map(|moved| moved.slots.len()).sum();
    if moved > 0 {
        info!("{side}: {moved} slots changed their master");
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::nodes;

    fn seen_from(text: &str) -> View {
        View {
            topology: nodes::parse(text, "h").expect("valid"),
            epochs: nodes::epochs(text),
            said_by: nodes::myself(text).map(str::to_owned),
        }
    }

    #[test]
    fn the_latest_view_wins_and_keeps_the_open_slots_of_all() {
        let old = seen_from(
            "a 1.1.1.1:1@2 myself,master - 0 0 1 connected 0-16383 [7->-b]\n\
             b 1.1.1.1:2@3 master - 0 0 2 connected",
        );
        let new = seen_from(
            "a 1.1.1.1:1@2 master - 0 0 1 connected 1-16383\n\
             b 1.1.1.1:2@3 myself,master - 0 0 3 connected 0 [7-<-a]",
        );
        for views in [vec![old.clone(), new.clone()], vec![new, old]] {
            let best = merge(views).expect("a view");
            assert_eq!(best.topology.master_of(0).map(|n| n.port), Some(2));
            assert_eq!(best.topology.open_slots.len(), 1, "told by both ends");
        }
        assert!(merge(vec![]).is_none());
    }

    #[test]
    fn a_view_that_lacks_the_address_of_a_master_goes_behind_others() {
        let lacking = seen_from(
            "a :0@0 master,noaddr - 0 0 2 disconnected 0-99\n\
             b 1.1.1.2:2@3 myself,master - 0 0 1 connected 100-16383",
        );
        let knowing = seen_from(
            "a 1.1.1.1:1@2 master - 0 0 2 connected 0-99\n\
             b 1.1.1.2:2@3 master - 0 0 1 connected 100-16383\n\
             c 1.1.1.3:3@4 myself,master - 0 0 1 connected",
        );
        let best = merge(vec![lacking, knowing]).expect("a view");
        assert!(best.topology.missing_slots().is_empty());
    }

    #[test]
    fn where_a_node_is_others_know_better_than_itself() {
        // Started again at 1.1.1.9 with its former nodes.conf.
        let own = "a 1.1.1.1:1@2 myself,master - 0 0 2 connected 0-16383\n\
                   b 1.1.1.2:2@3 master - 0 0 1 connected";
        let other = "a 1.1.1.9:1@2 master - 0 0 2 connected 0-16383\n\
                     b 1.1.1.2:2@3 myself,master - 0 0 1 connected";
        let (own, other) = (seen_from(own), seen_from(other));
        for views in [vec![own.clone(), other.clone()], vec![other, own.clone()]] {
            let best = merge(views).expect("a view");
            let master = best.topology.master_of(0).expect("owned");
            assert_eq!(master.name(), "1.1.1.9:1");
        }
        let best = merge(vec![own]).expect("a view");
        let master = best.topology.master_of(0).expect("owned");
        assert_eq!(master.name(), "1.1.1.1:1", "there is nobody else");
    }

    #[test]
    fn an_older_view_is_believed_only_when_it_stays() {
        let current = seen_from("a 1.1.1.1:1@2 myself,master - 0 0 9 connected 0-16383");
        let older = "a 1.1.1.1:1@2 myself,master - 0 0 4 connected 0-16382";
        let endpoint = "redis://127.0.0.1:1".parse().expect("valid");
        let mut watch = SideWatch::new(Side::Source, &endpoint);
        watch.epochs = current.epochs;
        let answer = || {
            let view = Some(seen_from(older));
            let (replid, offset) = ("r".into(), 0);
            vec![(
                "a".into(),
                Answer {
                    view,
                    replid,
                    offset,
                },
            )]
        };
        for _ in 0..WATCH_OLDER_VIEWS {
            assert_eq!(
                watch.find_cluster(answer(), vec![], &current.topology),
                None
            );
        }
        assert!(
            watch
                .find_cluster(answer(), vec![], &current.topology)
                .is_some()
        );
    }
}
