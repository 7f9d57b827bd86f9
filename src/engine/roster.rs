//! Which lane follows which source master.
//!
//! A lane stays with its master while that is one; when a replica has taken its place (a failover), it follows that node. What
//! it writes of the slots there is another question: see [`super::moves`].

use crate::slot::SlotSet;
use crate::topology::{Node, Shard, Topology, TopologyKind};

/// One lane's place.
#[derive(Debug, Clone)]
pub struct Place {
    pub lane: u32,
    pub master: Node,
    /// What the lane writes.
    pub slots: SlotSet,
}

/// All lanes' places.
#[derive(Debug, Default)]
pub struct Roster {
    places: Vec<Place>,
    /// The view that was followed last.
    before: Option<Topology>,
}

impl Roster {
    /// A lane that begins to follow a master.
    pub fn add(&mut self, lane: u32, master: Node, slots: SlotSet) {
        self.places.push(Place {
            lane,
            master,
            slots,
        });
    }

    pub fn places(&self) -> &[Place] {
        &self.places
    }

    pub(super) fn places_mut(&mut self) -> impl Iterator<Item = &mut Place> {
        self.places.iter_mut()
    }

    /// Where a lane is.
    pub fn place(&self, lane: u32) -> Option<&Place> {
        self.places.iter().find(|place| place.lane == lane)
    }

    /// The lane that follows a master.
    pub(super) fn place_of_master(&mut self, id: &str) -> Option<&mut Place> {
        self.places.iter_mut().find(|place| place.master.id == id)
    }

    /// Removes places, and tells whose they were.
    pub fn end(&mut self, ends: impl Fn(&Place) -> bool) -> Vec<u32> {
        let (ended, left) = std::mem::take(&mut self.places)
            .into_iter()
            .partition(|place| ends(place));
        self.places = left;
        let ended: Vec<Place> = ended;
        ended.into_iter().map(|place| place.lane).collect()
    }

    /// Compares the lanes with a topology, and follows it: lanes whose master has another address or is another node.
    pub fn follow(&mut self, topology: &Topology) -> Vec<(u32, Node)> {
        let mut moved = Vec::new();
        // A former master may be listed as one for a while after a failover, without slots: it is not what to follow.
        let own = |place: &Place| match topology.kind {
            TopologyKind::Single => topology.shards.first(),
            TopologyKind::Cluster => topology
                .shard_by_id(&place.master.id)
                .filter(|shard| !shard.slots.is_empty()),
        };
        // A master that is still one belongs to its lane before any heir is looked for.
        let mut taken: Vec<&str> = self.places.iter().filter_map(own).map(id_of).collect();
        for place in &mut self.places {
            let same = own(place);
            let heir = || place.heir(topology, &taken, self.before.as_ref()?);
            let Some(shard) = same.or_else(heir) else {
                continue;
            };
            taken.push(id_of(shard));
            if shard.master != place.master {
                moved.push((place.lane, shard.master.clone()));
                place.master = shard.master.clone();
            }
        }
        self.before = Some(topology.clone());
        moved
    }
}

impl Place {
    /// The shard whose master has taken the place of this one's: a node of its family, whoever has it as a replica now, or one
    /// that has everything where nothing is known of this one any more. None of them was a master before: one that has
    /// given all its slots away becomes a replica of the master that got the last.
    fn heir<'t>(
        &self,
        topology: &'t Topology,
        taken: &[&str],
        before: &Topology,
    ) -> Option<&'t Shard> {
        let may_be = |shard: &&Shard| {
            let id = id_of(shard);
            !shard.slots.is_empty() && !taken.contains(&id) && before.shard_by_id(id).is_none()
        };
        let mut shards = topology.shards.iter().filter(may_be);
        let is_of_family = |shard: &&Shard| before.same_family(&self.master.id, id_of(shard));
        if let Some(heir) = shards.clone().find(is_of_family) {
            return Some(heir);
        }
        let is_followed = |shard: &&Shard| {
            let mut replicas = shard.replicas.iter();
            replicas.any(|node| node.id == self.master.id)
        };
        if let Some(heir) = shards.clone().find(is_followed) {
            return Some(heir);
        }
        let is_known = topology.nodes().any(|node| node.id == self.master.id);
        let has_all = |shard: &&Shard| !self.slots.is_empty() && self.slots.is_subset(&shard.slots);
        shards.find(has_all).filter(|_| !is_known)
    }
}

fn id_of(shard: &Shard) -> &str {
    &shard.master.id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: &str, replicas: &[&str], slots: &str) -> Shard {
        let node = |id: &str| Node::new(id, "127.0.0.1", u16::from(id.as_bytes()[0]));
        Shard {
            master: node(id),
            replicas: replicas.iter().map(|id| node(id)).collect(),
            slots: slots.parse().expect("slots"),
        }
    }

    fn cluster(shards: Vec<Shard>) -> Topology {
        Topology::cluster(shards, Vec::new()).expect("valid")
    }

    /// Lanes of `a` with 0-99, and of `b` with the rest.
    fn roster(replicas_of_a: &[&str]) -> Roster {
        let before = cluster(vec![
            shard("a", replicas_of_a, "0-99"),
            shard("b", &[], "100-16383"),
        ]);
        let mut roster = Roster::default();
        assert!(roster.follow(&before).is_empty());
        for (lane, shard) in before.shards.iter().enumerate() {
            let (master, slots) = (shard.master.clone(), shard.slots.clone());
            roster.add(lane as u32, master, slots);
        }
        roster
    }

    fn moved(roster: &mut Roster, shards: Vec<Shard>) -> Vec<(u32, String)> {
        let moved = roster.follow(&cluster(shards));
        moved
            .into_iter()
            .map(|(lane, node)| (lane, node.id))
            .collect()
    }

    #[test]
    fn a_promoted_replica_is_followed() {
        let after = vec![shard("c", &[], "0-99"), shard("b", &[], "100-16383")];
        assert_eq!(moved(&mut roster(&["c"]), after), [(0, "c".to_owned())]);
    }

    #[test]
    fn a_former_master_that_is_still_listed_without_slots_is_left_for_its_heir() {
        let mut roster = roster(&["c"]);
        let between = vec![
            shard("a", &[], ""),
            shard("b", &[], "100-16383"),
            shard("c", &[], "0-99"),
        ];
        assert_eq!(moved(&mut roster, between), [(0, "c".to_owned())]);
        let after = vec![shard("b", &[], "100-16383"), shard("c", &["a"], "0-99")];
        assert!(moved(&mut roster, after).is_empty());
    }

    #[test]
    fn a_master_whose_slots_all_went_to_one_that_is_no_replica_of_it_has_no_heir() {
        let drained = vec![
            shard("a", &[], ""),
            shard("b", &[], "100-16383"),
            shard("x", &[], "0-99"),
        ];
        assert!(moved(&mut roster(&["c"]), drained).is_empty());
        let taken = vec![shard("b", &[], "0-16383")];
        assert!(moved(&mut roster(&["c"]), taken).is_empty());
    }

    #[test]
    fn a_master_that_got_all_slots_of_another_and_that_one_as_its_replica_is_no_heir() {
        let mut roster = roster(&[]);
        let filling = vec![
            shard("a", &[], "0-50"),
            shard("b", &[], "100-16383"),
            shard("x", &[], "51-99"),
        ];
        assert!(moved(&mut roster, filling).is_empty());
        let full = vec![shard("x", &["a"], "0-99"), shard("b", &[], "100-16383")];
        assert!(moved(&mut roster, full).is_empty());
    }

    #[test]
    fn a_replica_that_came_in_the_same_moment_is_an_heir_where_the_master_is_gone_or_follows_it() {
        let gone = vec![shard("x", &[], "0-99"), shard("b", &[], "100-16383")];
        assert_eq!(moved(&mut roster(&[]), gone), [(0, "x".to_owned())]);
        let follows = vec![shard("x", &["a"], "0-50"), shard("b", &[], "51-16383")];
        assert_eq!(moved(&mut roster(&[]), follows), [(0, "x".to_owned())]);
    }

    #[test]
    fn a_lane_waits_while_nobody_owns_its_slots() {
        assert!(moved(&mut roster(&["c"]), vec![shard("b", &[], "100-16383")]).is_empty());
    }
}
