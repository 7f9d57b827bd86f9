//! Which lane follows which source master.
//!
//! A lane stays with its master while that is one; when another node has taken over its slots (a failover), it follows
//! that node. A master with slots that no lane follows gets a lane of its own. A lane whose master is gone, and whose
//! slots are all in other hands, ends.

use crate::slot::SlotSet;
use crate::topology::{Node, Shard, Topology, TopologyKind};

/// One lane's place.
#[derive(Debug, Clone)]
pub struct Place {
    pub lane: u32,
    pub master: Node,
    pub slots: SlotSet,
}

/// What a new topology asks for.
#[derive(Debug, Default)]
pub struct Changes {
    /// Lanes whose master has another address or is another node.
    pub moved: Vec<(u32, Node)>,
    /// Masters that need a new lane.
    pub new: Vec<(Node, SlotSet)>,
    /// Lanes that have nothing left to follow.
    pub ended: Vec<u32>,
}

/// All lanes' places.
#[derive(Debug, Default)]
pub struct Roster {
    places: Vec<Place>,
}

impl Roster {
    pub fn add(&mut self, place: Place) {
        self.places.push(place);
    }

    /// Where a lane is.
    pub fn place(&self, lane: u32) -> Option<&Place> {
        self.places.iter().find(|place| place.lane == lane)
    }

    /// Compares the lanes with a topology, and follows it.
    pub fn follow(&mut self, topology: &Topology) -> Changes {
        let mut changes = Changes::default();
        // A former master may be listed as one for a while after a failover, without slots: it is not what to follow.
        let own = |place: &Place| match topology.kind {
            TopologyKind::Single => topology.shards.first(),
            TopologyKind::Cluster => topology
                .shard_by_id(&place.master.id)
                .filter(|shard| !shard.slots.is_empty()),
        };
        // A master that is still one belongs to its lane before any heir is looked for.
        let mut taken: Vec<&str> = self.places.iter().filter_map(own).map(id_of).collect();
        self.places.retain_mut(|place| {
            let heir = || {
                let slot = place.slots.iter().next()?;
                topology.shard_of(slot).map(|index| &topology.shards[index])
            };
            let same = own(place);
            let shard = same.or_else(heir);
            match shard.filter(|shard| same.is_some() || !taken.contains(&id_of(shard))) {
                Some(shard) => {
                    taken.push(id_of(shard));
                    if shard.master != place.master {
                        changes.moved.push((place.lane, shard.master.clone()));
                        place.master = shard.master.clone();
                    }
                    true
                }
                // Taken by another lane: this one's slots went there with a reshard.
                None if shard.is_some() => {
                    changes.ended.push(place.lane);
                    false
                }
                // Nobody owns its slots at present: wait for the failover.
                None => true,
            }
        });
        for shard in &topology.shards {
            if !shard.slots.is_empty() && !taken.contains(&id_of(shard)) {
                changes
                    .new
                    .push((shard.master.clone(), shard.slots.clone()));
            }
        }
        changes
    }
}

fn id_of(shard: &Shard) -> &str {
    &shard.master.id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: &str, port: u16, first: u16, last: u16) -> Shard {
        let mut slots = SlotSet::new();
        slots.insert_range(first, last);
        Shard {
            master: Node::new(id, "127.0.0.1", port),
            replicas: Vec::new(),
            slots,
        }
    }

    fn cluster(shards: Vec<Shard>) -> Topology {
        Topology::cluster(shards, Vec::new()).unwrap()
    }

    fn roster(topology: &Topology) -> Roster {
        let mut roster = Roster::default();
        for (lane, (master, slots)) in roster.follow(topology).new.into_iter().enumerate() {
            roster.add(Place {
                lane: lane as u32,
                master,
                slots,
            });
        }
        roster
    }

    #[test]
    fn a_promoted_node_is_followed_and_a_new_master_gets_a_lane() {
        let before = cluster(vec![shard("a", 1, 0, 8000), shard("b", 2, 8001, 16383)]);
        let mut roster = roster(&before);
        let unchanged = roster.follow(&before);
        assert!(unchanged.moved.is_empty() && unchanged.new.is_empty());
        let after = cluster(vec![
            shard("c", 3, 0, 8000),
            shard("b", 2, 8001, 16000),
            shard("d", 4, 16001, 16383),
        ]);
        let changes = roster.follow(&after);
        assert_eq!(changes.moved.len(), 1);
        assert_eq!((changes.moved[0].0, changes.moved[0].1.port), (0, 3));
        assert_eq!(changes.new.len(), 1);
        assert_eq!(changes.new[0].0.id, "d");
        assert!(changes.ended.is_empty());
    }

    #[test]
    fn a_former_master_that_is_still_listed_without_slots_is_left_for_its_heir() {
        let before = cluster(vec![shard("a", 1, 0, 8000), shard("b", 2, 8001, 16383)]);
        let mut roster = roster(&before);
        let mut former = shard("a", 1, 0, 0);
        former.slots = SlotSet::new();
        let between = cluster(vec![
            former,
            shard("b", 2, 8001, 16383),
            shard("c", 3, 0, 8000),
        ]);
        let changes = roster.follow(&between);
        assert!(changes.new.is_empty(), "two lanes would apply one stream");
        assert_eq!((changes.moved[0].0, changes.moved[0].1.port), (0, 3));
        let after = cluster(vec![shard("b", 2, 8001, 16383), shard("c", 3, 0, 8000)]);
        let changes = roster.follow(&after);
        assert!(changes.new.is_empty() && changes.moved.is_empty() && changes.ended.is_empty());
    }

    #[test]
    fn a_lane_whose_slots_all_went_to_a_followed_master_ends() {
        let mut roster = roster(&cluster(vec![
            shard("a", 1, 0, 8000),
            shard("b", 2, 8001, 16383),
        ]));
        let changes = roster.follow(&cluster(vec![shard("b", 2, 0, 16383)]));
        assert_eq!(changes.ended, [0]);
    }

    #[test]
    fn a_lane_waits_while_nobody_owns_its_slots() {
        let mut roster = roster(&cluster(vec![
            shard("a", 1, 0, 8000),
            shard("b", 2, 8001, 16383),
        ]));
        let changes = roster.follow(&cluster(vec![shard("b", 2, 8001, 16383)]));
        assert!(changes.ended.is_empty() && changes.moved.is_empty() && changes.new.is_empty());
    }
}
