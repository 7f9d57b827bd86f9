//! What differs between two topologies of one deployment.

use super::{Node, Topology};
use crate::slot::{SLOT_COUNT, Slot, SlotSet};

/// Slots that went from one master to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedSlots {
    /// Id of the former owner; `None` when nobody owned them.
    pub from: Option<String>,
    /// Id of the new owner; `None` when nobody does.
    pub to: Option<String>,
    pub slots: SlotSet,
}

/// A replica that took its master's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotion {
    /// Id of the former master.
    pub from: String,
    /// The former replica.
    pub to: Node,
}

/// The difference, by node ids. Promotions are not repeated under the other headings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopologyChange {
    /// Masters that were none before, except promoted ones.
    pub new_masters: Vec<Node>,
    /// Masters that are none any more, except replaced ones.
    pub gone_masters: Vec<Node>,
    pub promotions: Vec<Promotion>,
    /// Masters that kept their id and listen elsewhere now.
    pub readdressed: Vec<Node>,
    /// Slots that changed hands other than by promotion.
    pub moved: Vec<MovedSlots>,
}

impl TopologyChange {
    pub(super) fn between(old: &Topology, new: &Topology) -> Self {
        let mut change = Self::default();
        for shard in &new.shards {
            let node = &shard.master;
            match old.shard_by_id(&node.id) {
                Some(before)
                    if before.master.address != node.address || before.master.port != node.port =>
                {
                    change.readdressed.push(node.clone());
                }
                Some(_) => {}
                None => match replaced_by(old, new, &node.id) {
                    Some(from) => change.promotions.push(Promotion {
                        from,
                        to: node.clone(),
                    }),
                    None => change.new_masters.push(node.clone()),
                },
            }
        }
        let replaced = |id: &str| change.promotions.iter().any(|p| p.from == id);
        let gone = old.shards.iter().map(|shard| &shard.master);
        change.gone_masters = gone
            .filter(|node| new.shard_by_id(&node.id).is_none() && !replaced(&node.id))
            .cloned()
            .collect();
        change.moved = change.moved_slots(old, new);
        change
    }

    /// Whether nothing differs that matters to a lane.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn moved_slots(&self, old: &Topology, new: &Topology) -> Vec<MovedSlots> {
        let mut moved: Vec<MovedSlots> = Vec::new();
        for slot in 0..SLOT_COUNT as Slot {
            let from = old.master_of(slot).map(|node| node.id.as_str());
            let to = new.master_of(slot).map(|node| node.id.as_str());
            if from == to || self.is_promotion(from, to) {
                continue;
            }
            let entry = moved
                .iter_mut()
                .find(|m| m.from.as_deref() == from && m.to.as_deref() == to);
            match entry {
                Some(entry) => _ = entry.slots.insert(slot),
                None => moved.push(MovedSlots {
                    from: from.map(str::to_owned),
                    to: to.map(str::to_owned),
                    slots: [slot].into_iter().collect(),
                }),
            }
        }
        moved
    }

    fn is_promotion(&self, from: Option<&str>, to: Option<&str>) -> bool {
        self.promotions
            .iter()
            .any(|p| Some(p.from.as_str()) == from && Some(p.to.id.as_str()) == to)
    }
}

/// The master that the new master `id` was a replica of, when that one has lost its slots or its place.
fn replaced_by(old: &Topology, new: &Topology, id: &str) -> Option<String> {
    let shard = old
        .shards
        .iter()
        .find(|shard| shard.replicas.iter().any(|r| r.id == id))?;
    let former = &shard.master.id;
    let took_over = match new.shard_by_id(former) {
        None => true,
        Some(left) => left.slots.is_empty() && !shard.slots.is_empty(),
    };
    took_over.then(|| former.clone())
}

#[cfg(test)]
mod tests {
    use super::super::tests::shard;
    use super::*;

    fn cluster(shards: Vec<super::super::Shard>) -> Topology {
        Topology::cluster(shards, vec![]).expect("valid")
    }

    #[test]
    fn equal_topologies_do_not_differ() {
        let topology = cluster(vec![shard("a", 1, "0-9")]);
        assert!(topology.change_to(&topology.clone()).is_empty());
    }

    #[test]
    fn a_failover_is_a_promotion_and_moves_no_slots() {
        let mut before = shard("a", 1, "0-16383");
        before.replicas.push(Node::new("r", "127.0.0.1", 2));
        let mut after = shard("r", 2, "0-16383");
        after.replicas.push(Node::new("a", "127.0.0.1", 1));
        let change = cluster(vec![before]).change_to(&cluster(vec![after]));
        assert_eq!(change.promotions.len(), 1);
        assert_eq!(change.promotions[0].from, "a");
        assert!(change.moved.is_empty() && change.new_masters.is_empty());
        assert!(change.gone_masters.is_empty());
    }

    #[test]
    fn resharding_to_a_new_master_names_the_slots() {
        let before = cluster(vec![shard("a", 1, "0-9"), shard("b", 2, "10-16383")]);
        let after = cluster(vec![
            shard("a", 1, "0-4"),
            shard("b", 2, "10-16383"),
            shard("c", 3, "5-9"),
        ]);
        let change = before.change_to(&after);
        assert_eq!(change.new_masters.len(), 1);
        assert_eq!(change.moved.len(), 1);
        assert_eq!(change.moved[0].to.as_deref(), Some("c"));
        assert_eq!(change.moved[0].slots.to_string(), "5-9");
        let back = after.change_to(&before);
        assert_eq!(back.gone_masters[0].id, "c");
    }

    #[test]
    fn a_replica_that_became_an_empty_master_beside_its_former_one_is_new() {
        let mut before = shard("a", 1, "0-16383");
        before.replicas.push(Node::new("r", "127.0.0.1", 2));
        let after = cluster(vec![shard("a", 1, "0-16383"), shard("r", 2, "")]);
        let change = cluster(vec![before]).change_to(&after);
        assert_eq!(change.new_masters[0].id, "r");
        assert!(change.promotions.is_empty());
    }

    #[test]
    fn a_restart_on_another_port_is_noticed() {
        let before = cluster(vec![shard("a", 1, "0-16383")]);
        let change = before.change_to(&cluster(vec![shard("a", 9, "0-16383")]));
        assert_eq!(change.readdressed[0].port, 9);
        assert!(change.moved.is_empty());
    }
}
