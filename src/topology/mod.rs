//! Which masters a deployment has, where they listen, and which slots they own.
//!
//! Pure: replies come in as text or as values, a [`Topology`] goes out; nothing here resolves a name or opens
//! a socket. A single server is a topology of one shard that owns every slot, so that lanes need no second case.
//!
//! - [`nodes`] reads `CLUSTER NODES`, which every version answers, with exact owners and open slots;
//! - [`shards`] reads `CLUSTER SHARDS` (7.0 and later), for users who may not run the former;
//! - [`change`] says what differs between two topologies;
//! - `family` remembers which nodes have been master and replica of each other;
//! - [`cell`] hands the current one to the lanes;
//! - [`rewrite`] says where to connect to, given what servers announce;
//! - `run` tells whether a server is still the one that it was; [`server`] reads `INFO`; [`value`] decodes small replies; [`uri`] reads what the user typed.
//!
//! Invariants of a [`Topology`]: no slot belongs to two shards; no node id occurs twice; every shard has exactly
//! one master.

pub mod cell;
pub mod change;
mod family;
pub mod nodes;
pub mod redirect;
pub mod rewrite;
mod run;
pub mod server;
pub mod shards;
pub mod uri;
pub mod value;

use std::sync::Arc;

pub use cell::TopologyCell;
pub use change::TopologyChange;
pub use rewrite::{Preferred, Rewrite, Rewrites};
pub use run::{ServerRun, histories};
pub use server::{Flavour, Role, ServerInfo, Version};
pub use uri::{Credentials, Endpoint, Secret};
pub use value::Value;

use crate::slot::{SLOT_COUNT, Slot, SlotSet};

/// Id of the only node of a single server: stable over restarts, unlike its run id.
pub const SINGLE_NODE_ID: &str = "single";

/// Whether slots mean anything to the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopologyKind {
    Cluster,
    Single,
}

/// What the cluster believes about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Reachable for the node that was asked.
    Online,
    /// Not answering, not yet agreed upon (`fail?`), or loading its data.
    Suspect,
    /// Failed by agreement.
    Failed,
}

/// One server process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Node id in a cluster; [`SINGLE_NODE_ID`] otherwise.
    pub id: String,
    /// Where it is for us, without brackets: what its cluster announces, where no rule leads elsewhere.
    pub host: String,
    /// What to connect to: `host`, or of a single server the IP address that answered there.
    pub address: String,
    pub port: u16,
    /// What its cluster calls it, in redirects too.
    pub announced: (String, u16),
    /// Announced host name; redirects may use it instead of the IP address.
    pub hostname: Option<String>,
    pub health: Health,
}

/// A master, its replicas, and its slots (none while it is new, or has given all of them away).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    pub master: Node,
    pub replicas: Vec<Node>,
    pub slots: SlotSet,
}

/// A slot that is between two owners, as seen by the node that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSlot {
    pub slot: Slot,
    /// Node that gives it away.
    pub from: String,
    /// Node that takes it.
    pub to: String,
}

/// All masters of a deployment.
#[derive(Clone, PartialEq, Eq)]
pub struct Topology {
    pub kind: TopologyKind,
    /// Sorted by the id of the master, so that equal deployments compare equal whichever node was asked.
    pub shards: Vec<Shard>,
    pub open_slots: Vec<OpenSlot>,
    /// Index into `shards` by slot, [`NOBODY`] where no master owns it.
    owners: Box<[u16]>,
    families: family::Families,
    /// Where addresses lead that are still to come, in redirects.
    rewrites: Arc<Rewrites>,
}

const NOBODY: u16 = u16::MAX;

/// A reply that does not have the shape that its command answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    #[error("line {line} of CLUSTER NODES: {what}")]
    Nodes { line: usize, what: &'static str },
    #[error("CLUSTER SHARDS: {0}")]
    Shards(&'static str),
    #[error("slot {0} belongs to two masters")]
    TwoOwners(Slot),
    #[error("node {0} is listed twice")]
    TwiceListed(String),
    #[error("no master")]
    NoMaster,
    #[error("more than {0} masters")]
    TooManyMasters(usize),
}

impl Node {
    /// A node that is taken for reachable.
    pub fn new(id: impl Into<String>, host: impl Into<String>, port: u16) -> Self {
        let host = host.into();
        Self {
            id: id.into(),
            address: host.clone(),
            announced: (host.clone(), port),
            host,
            port,
            hostname: None,
            health: Health::Online,
        }
    }

    /// `host:port` for messages.
    pub fn name(&self) -> String {
        uri::host_port(&self.host, self.port)
    }

    /// Whether a redirect to `host:port` means this node.
    pub fn is_at(&self, host: &str, port: u16) -> bool {
        let (announced, at) = &self.announced;
        let names = [announced, &self.host, &self.address];
        let names = names.into_iter().chain(&self.hostname);
        *at == port && names.into_iter().any(|name| name == host)
    }

    /// Sets where it is for us.
    fn set_place(&mut self, rewrites: &Rewrites, preferred: Preferred, asked_host: &str) {
        let (announced, port) = (self.announced.0.as_str(), self.announced.1);
        let hostname = self.hostname.as_deref();
        let names = std::iter::once(announced).chain(hostname);
        let (host, port) = match (rewrites.rule(names, port), preferred) {
            (Some(rule), _) => rule.apply(port),
            (None, Preferred::Ip) => (announced, port),
            (None, Preferred::Hostname) => (hostname.unwrap_or(announced), port),
            (None, Preferred::Asked) => (asked_host, port),
        };
        (self.host, self.port) = (host.to_owned(), port);
        self.address.clone_from(&self.host);
    }
}

impl Topology {
    /// One server that owns everything.
    pub fn single(host: impl Into<String>, port: u16) -> Self {
        let shard = Shard {
            master: Node::new(SINGLE_NODE_ID, host, port),
            replicas: Vec::new(),
            slots: SlotSet::all(),
        };
        let mut topology = Self {
            kind: TopologyKind::Single,
            shards: vec![shard],
            open_slots: Vec::new(),
            owners: vec![0; SLOT_COUNT].into(),
            families: family::Families::new(),
            rewrites: Arc::default(),
        };
        topology.sort_into(family::Families::new());
        topology
    }

    /// A cluster of these shards. Failed masters without slots are left out: they were replaced.
    pub fn cluster(
        mut shards: Vec<Shard>,
        mut open_slots: Vec<OpenSlot>,
    ) -> Result<Self, TopologyError> {
        let most = crate::limits::MAX_MASTERS;
        shards.retain(|s| s.master.health != Health::Failed || !s.slots.is_empty());
        if shards.is_empty() {
            return Err(TopologyError::NoMaster);
        }
        if shards.len() > most {
            return Err(TopologyError::TooManyMasters(most));
        }
        shards.sort_by(|a, b| a.master.id.cmp(&b.master.id));
        let mut owners = vec![NOBODY; SLOT_COUNT];
        let mut seen = std::collections::HashSet::new();
        for (index, shard) in shards.iter_mut().enumerate() {
            shard.replicas.sort_by(|a, b| a.id.cmp(&b.id));
            for node in std::iter::once(&shard.master).chain(&shard.replicas) {
                if !seen.insert(node.id.clone()) {
                    return Err(TopologyError::TwiceListed(node.id.clone()));
                }
            }
            for slot in shard.slots.iter() {
                let owner = &mut owners[usize::from(slot)];
                if *owner != NOBODY {
                    return Err(TopologyError::TwoOwners(slot));
                }
                *owner = index as u16;
            }
        }
        open_slots.sort_by_key(|open| open.slot);
        let mut topology = Self {
            kind: TopologyKind::Cluster,
            shards,
            open_slots,
            owners: owners.into(),
            families: family::Families::new(),
            rewrites: Arc::default(),
        };
        topology.sort_into(family::Families::new());
        Ok(topology)
    }

    /// The shard that owns `slot`, as an index into [`Topology::shards`].
    pub fn shard_of(&self, slot: Slot) -> Option<usize> {
        match self.owners.get(usize::from(slot)) {
            None | Some(&NOBODY) => None,
            Some(&index) => Some(usize::from(index)),
        }
    }

    /// The master that owns `slot`.
    pub fn master_of(&self, slot: Slot) -> Option<&Node> {
        self.shard_of(slot).map(|index| &self.shards[index].master)
    }

    /// The shard whose master has this id.
    pub fn shard_by_id(&self, id: &str) -> Option<&Shard> {
        self.shards.iter().find(|shard| shard.master.id == id)
    }

    /// The shard whose master a redirect of `from` names.
    pub fn shard_redirected(&self, from: &Node, text: &str) -> Option<usize> {
        let named = self.redirected(from, text)?;
        let mut shards = self.shards.iter();
        shards.position(|shard| shard.master.is_same_place(&named))
    }

    /// Shards that own slots: each is worth a lane.
    pub fn serving(&self) -> impl Iterator<Item = &Shard> {
        self.shards.iter().filter(|shard| !shard.slots.is_empty())
    }

    /// All nodes, masters first.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        let masters = self.shards.iter().map(|shard| &shard.master);
        masters.chain(self.shards.iter().flat_map(|shard| &shard.replicas))
    }

    /// Slots that no master owns.
    pub fn missing_slots(&self) -> SlotSet {
        let slots = 0..SLOT_COUNT as Slot;
        slots
            .filter(|&slot| self.shard_of(slot).is_none())
            .collect()
    }

    /// Sets where each node is for us, as seen from the node that was asked at `asked_host`.
    pub fn set_places(&mut self, rewrites: &Arc<Rewrites>, preferred: Preferred, asked_host: &str) {
        let preferred = match preferred {
            // One host for all does not do where nodes share a port.
            Preferred::Asked if !self.has_distinct_ports() => Preferred::Ip,
            preferred => preferred,
        };
        for shard in &mut self.shards {
            for node in std::iter::once(&mut shard.master).chain(&mut shard.replicas) {
                node.set_place(rewrites, preferred, asked_host);
            }
        }
        self.rewrites = Arc::clone(rewrites);
    }

    fn has_distinct_ports(&self) -> bool {
        let mut seen = std::collections::HashSet::new();
        self.nodes().all(|node| seen.insert(node.announced.1))
    }

    /// Takes over where another view has a node.
    pub fn set_place_of(&mut self, id: &str, view: &Topology) {
        let nodes = self.shards.iter_mut().flat_map(|shard| {
            let masters = std::iter::once(&mut shard.master);
            masters.chain(&mut shard.replicas)
        });
        for node in nodes.filter(|node| node.id == id) {
            if let Some(other) = view.nodes().find(|node| node.id == id) {
                let health = node.health;
                *node = Node {
                    health,
                    ..other.clone()
                };
            }
        }
    }

    /// Whether a node of this id is a member.
    pub fn has_node(&self, id: &str) -> bool {
        self.nodes().any(|node| node.id == id)
    }

    /// Whether both have a node in common. Deployments that have none are two.
    pub fn is_related(&self, other: &Topology) -> bool {
        self.nodes().any(|node| other.has_node(&node.id))
    }

    /// Rules that lead to nodes of this topology.
    pub fn used_rewrites(&self) -> Vec<&Rewrite> {
        let rule = |node: &Node| {
            let names = std::iter::once(node.announced.0.as_str()).chain(node.hostname.as_deref());
            self.rewrites.rule(names, node.announced.1)
        };
        self.nodes().filter_map(rule).collect()
    }

    /// The single server's address, of those that its name has.
    pub fn set_single_address(&mut self, address: String) {
        self.shards[0].master.address = address;
    }

    /// What has to happen to get from this topology to `new`.
    pub fn change_to(&self, new: &Topology) -> TopologyChange {
        TopologyChange::between(self, new)
    }
}

impl std::fmt::Debug for Topology {
    /// Without the table of owners, which repeats the shards' slots.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Topology")
            .field("kind", &self.kind)
            .field("shards", &self.shards)
            .field("open_slots", &self.open_slots)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A shard `id` at port `port` with the slots `slots`.
    pub(crate) fn shard(id: &str, port: u16, slots: &str) -> Shard {
        Shard {
            master: Node::new(id, "127.0.0.1", port),
            replicas: Vec::new(),
            slots: slots.parse().expect("slots"),
        }
    }

    #[test]
    fn a_slot_is_found_at_its_owner_and_nowhere_else() {
        let shards = vec![shard("b", 2, "10-16383"), shard("a", 1, "0-8")];
        let topology = Topology::cluster(shards, vec![]).expect("valid");
        assert_eq!(topology.master_of(8).map(|n| n.port), Some(1));
        assert_eq!(topology.master_of(9), None);
        assert_eq!(topology.master_of(16383).map(|n| n.port), Some(2));
        assert_eq!(topology.master_of(16384), None);
        assert_eq!(topology.missing_slots().to_string(), "9");
    }

    #[test]
    fn a_single_server_owns_everything() {
        let topology = Topology::single("::1", 6379);
        assert_eq!(
            topology.master_of(12345).map(Node::name),
            Some("[::1]:6379".into())
        );
        assert!(topology.missing_slots().is_empty());
    }

    #[test]
    fn contradictions_are_refused() {
        let twice = vec![shard("a", 1, "0-8"), shard("b", 2, "8")];
        assert_eq!(
            Topology::cluster(twice, vec![]),
            Err(TopologyError::TwoOwners(8))
        );
        let same = vec![shard("a", 1, "0"), shard("a", 2, "1")];
        let error = TopologyError::TwiceListed("a".into());
        assert_eq!(Topology::cluster(same, vec![]), Err(error));
        assert_eq!(
            Topology::cluster(vec![], vec![]),
            Err(TopologyError::NoMaster)
        );
    }

    #[test]
    fn a_failed_master_is_kept_only_while_it_owns_slots() {
        let mut gone = shard("a", 1, "");
        gone.master.health = Health::Failed;
        let mut waiting = shard("b", 2, "5");
        waiting.master.health = Health::Failed;
        let topology = Topology::cluster(vec![gone, waiting], vec![]).expect("valid");
        assert_eq!(topology.shards.len(), 1);
        assert_eq!(topology.shards[0].master.id, "b");
    }

    #[test]
    fn a_node_is_where_its_rule_leads_and_is_known_by_what_its_cluster_calls_it() {
        let mut a = shard("a", 1, "0");
        a.master.hostname = Some("a.example".into());
        let mut topology = Topology::cluster(vec![a, shard("b", 2, "1")], vec![]).expect("valid");
        let rule = "127.0.0.1:1=[::1]:9".parse::<Rewrite>().expect("valid");
        let rewrites = Arc::new(Rewrites::new(&[], &[rule]).expect("valid"));
        topology.set_places(&rewrites, Preferred::Hostname, "h");
        assert_eq!(topology.shards[0].master.name(), "[::1]:9");
        assert_eq!(topology.shards[1].master.name(), "127.0.0.1:2");
        let [a, b] = [0, 1].map(|index| &topology.shards[index].master);
        for redirect in ["127.0.0.1:1", "a.example:1"] {
            assert_eq!(
                topology.shard_redirected(b, redirect),
                Some(0),
                "{redirect}"
            );
        }
        assert_eq!(topology.shard_redirected(a, "127.0.0.1:9"), None);
        assert_eq!(topology.used_rewrites().len(), 1);
    }

    #[test]
    fn nodes_are_connected_to_by_the_name_that_their_cluster_prefers() {
        let mut a = shard("a", 1, "0");
        a.master.hostname = Some("a.example".into());
        let mut topology = Topology::cluster(vec![a, shard("b", 2, "1")], vec![]).expect("valid");
        let same = vec![shard("a", 1, "0"), shard("b", 1, "1")];
        let mut same = Topology::cluster(same, vec![]).expect("valid");
        same.set_places(&Arc::default(), Preferred::Asked, "h");
        assert_eq!(same.shards[0].master.name(), "127.0.0.1:1");
        let places = [
            (Preferred::Hostname, "a.example:1", "127.0.0.1:2"),
            (Preferred::Asked, "h:1", "h:2"),
            (Preferred::Ip, "127.0.0.1:1", "127.0.0.1:2"),
        ];
        for (preferred, one, other) in places {
            topology.set_places(&Arc::default(), preferred, "h");
            let names: Vec<String> = topology.nodes().map(Node::name).collect();
            assert_eq!(names, [one, other], "{preferred:?}");
        }
    }
}
