//! What the user asked `sync` to do, checked and in types.

use std::path::PathBuf;
use std::str::FromStr;

use super::release;
use crate::checkpoint::LinkName;
use crate::fault::{Fault, FaultKind};
use crate::limits;
use crate::rdb::{Modules, TargetFormat};
use crate::topology::{Endpoint, ServerInfo, Topology, TopologyKind};

/// All options of `sync`.
#[derive(Debug, Clone)]
pub struct SyncOptions {
    /// Name of this replication.
    pub link: LinkName,
    pub source: Endpoint,
    pub target: Endpoint,
    /// Cores that executors are for, without repeats, in the order given; at least one.
    pub cores: Vec<usize>,
    /// The user named them: each executor keeps to its own.
    pub pinned: bool,
    /// End as soon as every lane has caught up.
    pub once: bool,
    /// `HOST:PORT` of the status page.
    pub status_address: Option<String>,
    pub on_existing: OnExisting,
    /// The other direction runs, too: see [`crate::command::Origin`].
    pub mark: bool,
    pub on_divergence: OnDivergence,
    pub on_unsupported: OnUnsupported,
    /// Leave out what belongs to modules that the target lacks, and count it; else it is a fault.
    pub skip_unknown: bool,
    /// Mirror a source master that had keys and comes back without any.
    pub accept_empty_source: bool,
    pub database_map: DatabaseMap,
    pub ack: Ack,
    /// How often it is written down on the target how far each lane is.
    pub checkpoint_every_ms: u64,
    /// Where the spool's files go; `None` where no directory is known.
    pub spool_directory: Option<PathBuf>,
    /// Disk space for the spools of all lanes, in bytes.
    pub spool_max: u64,
}

/// Everything that is known before the first lane starts.
#[derive(Debug, Clone)]
pub struct SyncPlan {
    pub options: SyncOptions,
    pub source: Deployment,
    pub target: Deployment,
}

/// One side, as it was found.
#[derive(Debug, Clone)]
pub struct Deployment {
    pub topology: Topology,
    /// Every master that answered, by node id, in the order of the topology's shards.
    pub servers: Vec<(String, ServerInfo)>,
    /// Of a target: what this program wrote about its own state.
    pub bookkeeping: OwnKeys,
}

/// Keys of this program that a target holds for one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnKeys {
    pub keys: u64,
    /// There are records, so the data beside them is (also) ours.
    pub records: bool,
}

/// What to do with keys that the target holds already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExisting {
    /// Leave them; keys of the same name are overwritten.
    #[default]
    Keep,
    /// Do not begin.
    Refuse,
    /// Remove those that the source does not have, once everything is copied.
    Replace,
}

/// What may be removed from the target after a copy: keys of a lane's slots that the source does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// The target was empty before the lane began: whatever it holds since came from here.
    None,
    /// The target held keys that must stay. What an earlier copy left behind cannot be told from them.
    Keep,
    /// The target shall hold what the source holds and nothing else.
    Replace,
}

/// What to do when a write's failure shows that target and source differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDivergence {
    /// Give the keys the source's values, and go on.
    #[default]
    Mend,
    /// End with a message that names the command.
    Stop,
    /// Count it, log it, go on.
    Continue,
}

/// What to do with what the target cannot take in any form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnsupported {
    /// End with a message that names it, before the copy if it can be known by then.
    #[default]
    Stop,
    /// Leave it out, count it, log the first of its kind.
    Drop,
}

/// When commands that must not be applied twice wait for others of their slot, to share a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grouping {
    /// From so many of them a second on,
    pub high_rate: u64,
    /// until the slot has so many,
    pub enough: u32,
    /// or for so long, in milliseconds.
    pub wait_ms: u64,
}

impl Default for Grouping {
    fn default() -> Self {
        Self {
            high_rate: limits::GROUPING_HIGH_RATE,
            enough: limits::GROUPING_ENOUGH,
            wait_ms: limits::GROUPING_WAIT_MS,
        }
    }
}

/// What `REPLCONF ACK` tells the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ack {
    /// What the target has applied, so that `WAIT` on the source is true.
    #[default]
    Applied,
    /// What was received, spooled or not.
    Received,
}

/// Where the databases of the source go; empty means each to its own number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatabaseMap {
    /// For single databases, the last rule of a number counts.
    rules: Vec<(u32, Destination)>,
    /// For all others (`*`).
    others: Option<Destination>,
}

/// Where one database goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    Database(u32),
    /// Nowhere: its keys and commands are left out and counted.
    Drop,
}

impl Deployment {
    /// What the master with this node id said about itself.
    pub fn server(&self, node_id: &str) -> Option<&ServerInfo> {
        let mut servers = self.servers.iter();
        servers.find_map(|(id, server)| (id == node_id).then_some(server))
    }

    /// Keys that this program did not write about itself.
    pub fn keys(&self) -> u64 {
        let all: u64 = self.servers.iter().map(|(_, server)| server.keys()).sum();
        all.saturating_sub(self.bookkeeping.keys)
    }

    pub fn is_cluster(&self) -> bool {
        self.topology.kind == TopologyKind::Cluster
    }

    /// What every master takes: the oldest of them decides, and only modules that all of them have count.
    /// `source_modules`: what the source lists, `None` where that is not known.
    pub fn format(&self, source_modules: Option<&[&str]>) -> Result<TargetFormat, Fault> {
        let formats = self.servers.iter().map(|(_, server)| {
            let (lineage, major, minor) = release(server);
            let mut format = TargetFormat::of_server(lineage, major, minor);
            let listed = Modules::of(&server.modules, source_modules);
            format.modules = format.modules.either(listed);
            format
        });
        formats
            .reduce(|one, other| {
                let modules = one.modules.common(other.modules);
                let older = if one.max_rdb_version <= other.max_rdb_version {
                    one
                } else {
                    other
                };
                TargetFormat { modules, ..older }
            })
            .ok_or_else(|| {
                Fault::new(
                    FaultKind::NoTopology,
                    "no target master has told its version",
                )
            })
    }

    /// The modules that the masters list together.
    pub fn modules(&self) -> Vec<&str> {
        let servers = self.servers.iter();
        servers
            .flat_map(|(_, server)| server.modules.iter().map(String::as_str))
            .collect()
    }
}

impl DatabaseMap {
    /// Whether anything of the source can go to database `target` of a single server.
    pub fn reaches(&self, target: u32) -> bool {
        let to = Destination::Database(target);
        // The last rule of a number counts.
        let latest = |from: u32| {
            let rule = self.rules.iter().rev().find(|(number, _)| *number == from);
            rule.map(|(_, to)| *to)
        };
        let by_rule = self.rules.iter().any(|&(from, _)| latest(from) == Some(to));
        let by_others = match self.others {
            Some(others) => others == to,
            None => latest(target).is_none(),
        };
        by_rule || by_others
    }

    /// The only database of the source that can go to database `target`; `None` where several can.
    pub fn only_source_of(&self, target: u32) -> Option<u32> {
        if *self == Self::default() {
            return Some(target);
        }
        // The last rule of a number counts.
        let latest = |from: u32| {
            let rule = self.rules.iter().rev().find(|(number, _)| *number == from);
            rule.map(|(_, to)| *to)
        };
        let to = Destination::Database(target);
        let mut sources: Vec<u32> = self.rules.iter().map(|(from, _)| *from).collect();
        sources.retain(|from| latest(*from) == Some(to));
        match self.others {
            Some(others) if others == to => return None,
            None if latest(target).is_none() => sources.push(target),
            _ => {}
        }
        sources.sort_unstable();
        sources.dedup();
        match sources[..] {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Where commands of the source's database `database` go. Into a cluster only database 0 fits.
    pub fn destination(&self, database: u32, into: TopologyKind) -> Result<Destination, Fault> {
        let rule = self.rules.iter().rev().find(|(from, _)| *from == database);
        let mapped = rule
            .map(|(_, to)| *to)
            .or(self.others)
            .unwrap_or(Destination::Database(database));
        match mapped {
            Destination::Database(to) if to != 0 && into == TopologyKind::Cluster => {
                Err(Fault::new(
                    FaultKind::Database,
                    format!(
                        "database {database} would go to database {to} of the target, but a cluster has \
                         only database 0; use --db-map {database}:0 to merge it or {database}:drop to leave it out"
                    ),
                ))
            }
            mapped => Ok(mapped),
        }
    }
}

impl FromStr for DatabaseMap {
    type Err = String;

    /// `FROM:TO,...` with `*` for all other sources and `drop` for no target.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut map = Self::default();
        for rule in text.split(',') {
            let bad =
                || format!("'{rule}' is no rule FROM:TO (numbers, '*' as FROM, 'drop' as TO)");
            let (from, to) = rule.split_once(':').ok_or_else(bad)?;
            let to = match to {
                "drop" => Destination::Drop,
                number => Destination::Database(number.parse().map_err(|_| bad())?),
            };
            match from {
                "*" => map.others = Some(to),
                number => map.rules.push((number.parse().map_err(|_| bad())?, to)),
            }
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Destination::{Database, Drop};

    #[test]
    fn without_a_map_databases_keep_their_number() {
        let map = DatabaseMap::default();
        assert_eq!(map.destination(3, TopologyKind::Single), Ok(Database(3)));
        assert_eq!(map.destination(0, TopologyKind::Cluster), Ok(Database(0)));
    }

    #[test]
    fn a_database_that_does_not_fit_names_the_option() {
        let fault = DatabaseMap::default().destination(3, TopologyKind::Cluster);
        let fault = fault.expect_err("a cluster has no database 3");
        assert!(fault.message.contains("--db-map 3:0"), "{fault}");
        assert_eq!(fault.kind, FaultKind::Database);
    }

    #[test]
    fn rules_for_one_number_go_before_the_star() {
        let map: DatabaseMap = "*:drop,1:0,2:7".parse().expect("valid");
        assert_eq!(map.destination(1, TopologyKind::Cluster), Ok(Database(0)));
        assert_eq!(map.destination(2, TopologyKind::Single), Ok(Database(7)));
        assert_eq!(map.destination(0, TopologyKind::Cluster), Ok(Drop));
    }

    #[test]
    fn databases_that_the_map_leads_to_are_known() {
        let reached = |map: &str| -> Vec<u32> {
            let map: DatabaseMap = map.parse().expect("valid");
            (0..8).filter(|&database| map.reaches(database)).collect()
        };
        assert_eq!(reached("1:0"), [0, 2, 3, 4, 5, 6, 7]);
        assert_eq!(reached("1:0,*:drop"), [0]);
        assert_eq!(reached("1:5,1:6,*:2"), [2, 6]);
        assert!(DatabaseMap::default().reaches(7));
    }

    #[test]
    fn where_a_database_comes_from_is_known_unless_several_are_merged() {
        let map: DatabaseMap = "1:0,2:5,3:drop".parse().expect("valid");
        let sources: Vec<_> = (0..6).map(|target| map.only_source_of(target)).collect();
        assert_eq!(sources, [None, None, None, None, Some(4), None]);
        let map: DatabaseMap = "0:7,1:0,1:0".parse().expect("valid");
        assert_eq!(map.only_source_of(0), Some(1));
        let map: DatabaseMap = "*:2".parse().expect("valid");
        assert_eq!(map.only_source_of(2), None);
        assert_eq!(DatabaseMap::default().only_source_of(9), Some(9));
    }

    #[test]
    fn bad_rules_are_named() {
        for text in ["", "1", "1:", "a:0", "1:x", "0:0,,1:1", "-1:0"] {
            assert!(text.parse::<DatabaseMap>().is_err(), "{text}");
        }
    }
}
