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
//! - `run` tells whether a server is still the one that it was; [`server`] reads `INFO`; [`value`] decodes small replies; [`uri`] reads what the user typed.
//!
//! Invariants of a [`Topology`]: no slot belongs to two shards; no node id occurs twice; every shard has exactly
//! one master.

pub mod cell;
pub mod change;
mod family;
pub mod nodes;
mod run;
pub mod server;
pub mod shards;
pub mod uri;
pub mod value;

use std::collections::BTreeMap;

pub use cell::TopologyCell;
pub use change::TopologyChange;
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
    /// Host as announced by the cluster or named by the user, without brackets.
    pub host: String,
    /// What to connect to: `host`, or the IP address that it was last resolved to.
    pub address: String,
    pub port: u16,
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
        self.port == port
            && (self.host == host || self.address == host || self.hostname.as_deref() == Some(host))
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

    /// The shard whose master listens at `host:port`, for redirects.
    pub fn shard_at(&self, host: &str, port: u16) -> Option<usize> {
        self.shards
            .iter()
            .position(|shard| shard.master.is_at(host, port))
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

    /// Sets what to connect to, for every node whose host `resolve` knows an address of.
    pub fn resolve(&mut self, mut resolve: impl FnMut(&str) -> Option<String>) {
        let mut known: BTreeMap<String, Option<String>> = BTreeMap::new();
        for shard in &mut self.shards {
            for node in std::iter::once(&mut shard.master).chain(&mut shard.replicas) {
                let found = known
                    .entry(node.host.clone())
                    .or_insert_with(|| resolve(&node.host));
                if let Some(address) = found {
                    node.address.clone_from(address);
                }
            }
        }
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
    fn redirects_by_hostname_and_by_address_find_the_same_shard() {
        let mut a = shard("a", 1, "0");
        a.master.hostname = Some("a.example".into());
        let topology = Topology::cluster(vec![a], vec![]).expect("valid");
        assert_eq!(topology.shard_at("a.example", 1), Some(0));
        assert_eq!(topology.shard_at("127.0.0.1", 1), Some(0));
        assert_eq!(topology.shard_at("127.0.0.1", 2), None);
    }

    #[test]
    fn a_name_is_resolved_once_and_failure_keeps_the_old_address() {
        let mut topology = Topology::single("db.example", 1);
        topology.resolve(|_| Some("10.0.0.1".into()));
        topology.resolve(|_| None);
        assert_eq!(topology.shards[0].master.address, "10.0.0.1");
        assert_eq!(topology.shards[0].master.name(), "db.example:1");
    }
}
