//! Which nodes have taken each other's place, or could: a shard's master and replicas, as far back as they were seen.
//!
//! Between two looks, slots can go from a master to its replica and back, or the loser of a failover can be listed as a
//! master without slots for a moment: then the lists alone do not tell a failover, behind which writes may be lacking, from
//! slots that were moved with all that they hold.
//!
//! ```text
//! seen          a+r        r, a without slots        a
//! family        a: {a, r}  {a, r}                    {a, r}: another failover
//! ```

use std::collections::BTreeMap;

use super::Topology;
use crate::limits;

/// The name of each node's family, by node id.
pub(super) type Families = BTreeMap<String, String>;

impl Topology {
    /// Whether both nodes were seen as master and replica of one shard.
    pub fn same_family(&self, one: &str, other: &str) -> bool {
        let family = |id| self.families.get(id);
        one == other || (family(one).is_some() && family(one) == family(other))
    }

    /// Takes over what was known of the nodes before.
    pub(super) fn remember(&mut self, before: &Topology) {
        self.sort_into(before.families.clone());
    }

    /// Adds all nodes to the families that are known.
    pub(super) fn sort_into(&mut self, mut families: Families) {
        for shard in &self.shards {
            let members = std::iter::once(&shard.master).chain(&shard.replicas);
            let mut known = members.clone().filter_map(|node| families.get(&node.id));
            let name = known.next().unwrap_or(&shard.master.id).clone();
            for node in members {
                families.insert(node.id.clone(), name.clone());
            }
        }
        if families.len() > limits::MAX_REMEMBERED_NODES {
            // Nodes that are gone for good, most of them.
            families.retain(|id, _| self.nodes().any(|node| node.id == *id));
        }
        self.families = families;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::shard;
    use super::super::{Node, Shard};
    use super::*;

    fn with_replica(mut shard: Shard, id: &str, port: u16) -> Shard {
        shard.replicas.push(Node::new(id, "127.0.0.1", port));
        shard
    }

    fn seen(shards: Vec<Shard>) -> Topology {
        Topology::cluster(shards, vec![]).expect("valid")
    }

    #[test]
    fn a_master_that_lost_its_place_and_is_not_yet_a_replica_stays_in_the_family() {
        let before = seen(vec![
            with_replica(shard("a", 1, "0-9"), "r", 2),
            shard("b", 3, "10-16383"),
        ]);
        let between = vec![
            shard("a", 1, ""),
            shard("r", 2, "0-9"),
            shard("b", 3, "10-16383"),
        ];
        let mut between = seen(between);
        assert!(!between.same_family("a", "r"), "by itself it tells nothing");
        between.remember(&before);
        assert!(between.same_family("a", "r") && between.same_family("r", "a"));
        assert!(!between.same_family("a", "b") && !between.same_family("b", "x"));
    }

    #[test]
    fn a_node_that_is_away_for_a_while_stays_in_the_family() {
        let mut before = seen(vec![with_replica(shard("a", 1, "0-16383"), "r", 2)]);
        for _ in 0..2 {
            let mut without = seen(vec![shard("r", 2, "0-16383")]);
            without.remember(&before);
            before = without;
        }
        assert!(before.same_family("a", "r"));
    }

    #[test]
    fn a_replica_that_changes_its_shard_changes_its_family() {
        let one = vec![
            with_replica(shard("a", 1, "0-9"), "r", 2),
            shard("b", 3, "10-16383"),
        ];
        let other = vec![
            shard("a", 1, "0-9"),
            with_replica(shard("b", 3, "10-16383"), "r", 2),
        ];
        let mut after = seen(other);
        after.remember(&seen(one));
        assert!(after.same_family("b", "r") && !after.same_family("a", "r"));
    }

    #[test]
    fn nodes_that_are_gone_are_forgotten_when_there_are_too_many() {
        let mut crowded = shard("a", 1, "0-16383");
        let numbers = 0..limits::MAX_REMEMBERED_NODES;
        let replicas = numbers.map(|number| Node::new(format!("r{number}"), "127.0.0.1", 2));
        crowded.replicas.extend(replicas);
        let before = seen(vec![crowded]);
        let mut after = seen(vec![with_replica(shard("a", 1, "0-16383"), "last", 2)]);
        after.remember(&before);
        assert!(after.same_family("a", "last") && !after.same_family("a", "r1"));
    }
}
