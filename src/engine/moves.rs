//! Which lane writes which slot of the source, while slots move between its masters.
//!
//! ```text
//! written by a lane -> frozen: the lane leaves it -> left -> one master owns it, and has for a while -> that master's lane takes it
//!        ^                                                                                                        |
//!        '------------------------------------------------- copied ------------------------------------------------'
//! ```
//!
//! A slot has no more than one writer: the next lane gets it only when the former one has confirmed that nothing of it is on its
//! way and that none of its records lists it. A slot moves when a view of the cluster shows it open, or at another master than the
//! one whose lane writes it. Views may be old: what was granted by one is taken back by the next, and copied from whoever has
//! it then.

use std::collections::BTreeMap;

use super::roster::Roster;
use crate::limits;
use crate::slot::{SLOT_COUNT, Slot, SlotSet};
use crate::topology::{Node, Topology, TopologyKind};

/// Slots that no lane writes.
#[derive(Debug, Default)]
pub struct Moves {
    frozen: BTreeMap<Slot, State>,
    /// When slots were last warned of.
    warned_ms: u64,
}

#[derive(Debug)]
struct State {
    /// The lane that has not confirmed yet that it has left the slot.
    by: Option<u32>,
    since_ms: u64,
    /// Who was last seen to own it, and since when nothing else was seen.
    owner: String,
    quiet_since_ms: Option<u64>,
}

impl State {
    fn left_by(by: Option<u32>, now_ms: u64) -> Self {
        Self {
            by,
            since_ms: now_ms,
            owner: String::new(),
            quiet_since_ms: None,
        }
    }
}

/// What follows from a view of the source.
#[derive(Debug, Default)]
pub struct Orders {
    /// Slots that lanes must not write any more.
    pub leave: BTreeMap<u32, SlotSet>,
    /// Slots that lanes write from now on.
    pub take: BTreeMap<u32, SlotSet>,
    /// Masters that need a new lane.
    pub new: Vec<(Node, SlotSet)>,
    /// Lanes that have nothing left to write.
    pub ended: Vec<u32>,
}

/// Slots that nobody writes at present, for display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    pub slots: SlotSet,
    /// Of the one that has been so longest: milliseconds since the process began.
    pub since_ms: u64,
    pub why: &'static str,
}

impl Moves {
    /// Whether time alone may change something.
    pub fn is_busy(&self) -> bool {
        !self.frozen.is_empty()
    }

    /// A lane has left slots for good.
    pub fn left(&mut self, lane: u32, slots: &SlotSet) {
        for slot in slots.iter() {
            if let Some(state) = self.frozen.get_mut(&slot)
                && state.by == Some(lane)
            {
                state.by = None;
            }
        }
    }

    /// Slots that records of this lane list although it does not write them any more, at the start of a process: nobody may
    /// write them before it has left them. Gives those that wait for it: a lane of which they are half or more copies everything
    /// at once, and does not wait.
    pub fn hold_back(
        &mut self,
        roster: &mut Roster,
        lane: u32,
        slots: &SlotSet,
        now_ms: u64,
    ) -> SlotSet {
        let mut waiting = SlotSet::new();
        for place in roster.places_mut().filter(|place| place.lane != lane) {
            let listed = place.slots.intersection(slots);
            if listed.len() * 2 < place.slots.len() {
                place.slots = place.slots.difference(&listed);
                waiting = waiting.union(&listed);
            }
        }
        for slot in waiting.iter() {
            self.frozen.insert(slot, State::left_by(Some(lane), now_ms));
        }
        waiting
    }

    /// What a lane has not confirmed to have left.
    pub fn leaving(&self, lane: u32) -> SlotSet {
        let frozen = self.frozen.iter();
        let of_it = frozen.filter(|(_, state)| state.by == Some(lane));
        of_it.map(|(slot, _)| *slot).collect()
    }

    /// Slots that have been on their way for so long that somebody should be told; now and then.
    pub fn overdue(&mut self, now_ms: u64) -> Option<SlotSet> {
        let overdue = |state: &State| {
            let open = state.quiet_since_ms.is_none();
            open && now_ms >= state.since_ms + limits::SLOT_FROZEN_MS
        };
        let slots = self.frozen.iter().filter(|(_, state)| overdue(state));
        let slots: SlotSet = slots.map(|(slot, _)| *slot).collect();
        if slots.is_empty() || now_ms < self.warned_ms + limits::SLOT_FROZEN_MS {
            return None;
        }
        self.warned_ms = now_ms;
        Some(slots)
    }

    /// What is frozen, by what it waits for.
    pub fn frozen(&self) -> Vec<Frozen> {
        let mut frozen: Vec<Frozen> = Vec::new();
        for (&slot, state) in &self.frozen {
            let why = match (state.quiet_since_ms, state.by) {
                (_, Some(_)) => "its former lane finishes what it has sent",
                (None, None) => "it is on its way between source masters",
                (Some(_), None) => "its owner must stay the same for a moment",
            };
            match frozen.iter_mut().find(|other| other.why == why) {
                Some(other) => {
                    other.slots.insert(slot);
                    other.since_ms = other.since_ms.min(state.since_ms);
                }
                None => frozen.push(Frozen {
                    slots: SlotSet::from_iter([slot]),
                    since_ms: state.since_ms,
                    why,
                }),
            }
        }
        frozen
    }

    /// Compares who writes what with a view of the source. The roster follows.
    pub fn look(&mut self, roster: &mut Roster, topology: &Topology, now_ms: u64) -> Orders {
        let mut orders = Orders::default();
        let open: SlotSet = match topology.kind {
            TopologyKind::Single => SlotSet::new(),
            TopologyKind::Cluster => topology.open_slots.iter().map(|open| open.slot).collect(),
        };
        self.freeze(roster, topology, &open, now_ms, &mut orders);
        let written = roster
            .places()
            .iter()
            .fold(SlotSet::new(), |all, place| all.union(&place.slots));
        let mut granted: BTreeMap<usize, SlotSet> = BTreeMap::new();
        for slot in 0..SLOT_COUNT as Slot {
            if written.contains(slot) {
                continue;
            }
            let owner = topology.shard_of(slot);
            let id = owner.map(|index| topology.shards[index].master.id.as_str());
            if self.may_be_written(slot, id, open.contains(slot), now_ms)
                && let Some(owner) = owner
            {
                self.frozen.remove(&slot);
                granted.entry(owner).or_default().insert(slot);
            }
        }
        for (owner, slots) in granted {
            let master = &topology.shards[owner].master;
            match roster.place_of_master(&master.id) {
                Some(place) => {
                    place.slots = place.slots.union(&slots);
                    orders.take.insert(place.lane, slots);
                }
                None => orders.new.push((master.clone(), slots)),
            }
        }
        let waits = |lane| self.frozen.values().any(|state| state.by == Some(lane));
        orders.ended = roster.end(|place| place.slots.is_empty() && !waits(place.lane));
        orders
    }

    /// Takes slots that move from the lanes that write them.
    fn freeze(
        &mut self,
        roster: &mut Roster,
        topology: &Topology,
        open: &SlotSet,
        now_ms: u64,
        orders: &mut Orders,
    ) {
        if topology.kind == TopologyKind::Single {
            return;
        }
        for place in roster.places_mut() {
            let gone = |slot: &Slot| {
                let owner = topology.master_of(*slot);
                owner.is_some_and(|owner| owner.id != place.master.id || open.contains(*slot))
            };
            let leave: SlotSet = place.slots.iter().filter(gone).collect();
            if leave.is_empty() {
                continue;
            }
            place.slots = place.slots.difference(&leave);
            for slot in leave.iter() {
                let state = State::left_by(Some(place.lane), now_ms);
                self.frozen.insert(slot, state);
            }
            orders.leave.insert(place.lane, leave);
        }
    }

    /// Whether a slot that nobody writes may be given to its owner now.
    fn may_be_written(
        &mut self,
        slot: Slot,
        owner: Option<&str>,
        is_open: bool,
        now_ms: u64,
    ) -> bool {
        let Some(state) = self.frozen.get_mut(&slot) else {
            if is_open {
                self.frozen.insert(slot, State::left_by(None, now_ms));
            }
            return owner.is_some() && !is_open;
        };
        let Some(owner) = owner.filter(|_| !is_open) else {
            state.quiet_since_ms = None;
            return false;
        };
        if state.owner != owner {
            owner.clone_into(&mut state.owner);
            state.quiet_since_ms = None;
        }
        let since = *state.quiet_since_ms.get_or_insert(now_ms);
        state.by.is_none() && now_ms >= since + limits::SLOT_QUIET_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{OpenSlot, Shard};

    fn shard(id: &str, slots: &str) -> Shard {
        Shard {
            master: Node::new(id, "127.0.0.1", u16::from(id.as_bytes()[0])),
            replicas: Vec::new(),
            slots: slots.parse().expect("slots"),
        }
    }

    fn cluster(shards: &[(&str, &str)], open: &[(Slot, &str, &str)]) -> Topology {
        let open = open.iter().map(|&(slot, from, to)| OpenSlot {
            slot,
            from: from.into(),
            to: to.into(),
        });
        let shards = shards.iter().map(|(id, slots)| shard(id, slots)).collect();
        Topology::cluster(shards, open.collect()).expect("valid")
    }

    struct World {
        roster: Roster,
        moves: Moves,
        now_ms: u64,
    }

    impl World {
        fn new(topology: &Topology) -> Self {
            let mut world = Self {
                roster: Roster::default(),
                moves: Moves::default(),
                now_ms: 0,
            };
            let orders = world.look(topology, 0);
            world.open(orders);
            world
        }

        fn look(&mut self, topology: &Topology, later_ms: u64) -> Orders {
            self.now_ms += later_ms;
            self.roster.follow(topology);
            self.moves.look(&mut self.roster, topology, self.now_ms)
        }

        fn open(&mut self, orders: Orders) {
            for (master, slots) in orders.new {
                let lane = self.roster.places().len() as u32;
                self.roster.add(lane, master, slots);
            }
        }

        fn slots(&self, lane: u32) -> String {
            let place = self.roster.place(lane).expect("it is there");
            place.slots.to_string()
        }
    }

    const BEFORE: &[(&str, &str)] = &[("a", "0-99"), ("b", "100-16383")];
    const AFTER: &[(&str, &str)] = &[("a", "0-98"), ("b", "99-16383")];

    #[test]
    fn a_slot_that_moves_is_left_by_one_lane_before_the_other_takes_it() {
        let mut world = World::new(&cluster(BEFORE, &[]));
        let open = [(99, "a", "b")];
        let orders = world.look(&cluster(BEFORE, &open), 10);
        assert_eq!(orders.leave[&0].to_string(), "99");
        assert_eq!(world.slots(0), "0-98");
        let orders = world.look(&cluster(AFTER, &[]), 10);
        assert!(orders.take.is_empty(), "its former lane has not left it");
        let orders = world.look(&cluster(AFTER, &[]), limits::SLOT_QUIET_MS);
        assert!(orders.take.is_empty(), "still not");
        world.moves.left(0, &"99".parse().expect("slots"));
        let orders = world.look(&cluster(AFTER, &[]), 1);
        assert_eq!(orders.take[&1].to_string(), "99");
        assert_eq!(world.slots(1), "99-16383");
        assert!(!world.moves.is_busy());
    }

    #[test]
    fn a_slot_that_records_of_another_lane_list_is_held_back_at_the_start() {
        let mut world = World::new(&cluster(AFTER, &[]));
        let slots: SlotSet = "99".parse().expect("slots");
        let all = SlotSet::all();
        let waiting = world.moves.hold_back(&mut world.roster, 0, &all, 0);
        assert!(waiting.is_empty(), "too many");
        let waiting = world.moves.hold_back(&mut world.roster, 0, &slots, 0);
        assert_eq!(waiting, slots);
        assert_eq!(
            (world.slots(0), world.slots(1)),
            ("0-98".into(), "100-16383".into())
        );
        assert_eq!(world.moves.leaving(0), slots);
        let after = cluster(AFTER, &[]);
        assert!(world.look(&after, 10).take.is_empty());
        assert!(world.look(&after, limits::SLOT_QUIET_MS).take.is_empty());
        world.moves.left(0, &slots);
        assert_eq!(world.look(&after, 1).take[&1], slots);
    }

    #[test]
    fn a_slot_is_not_given_to_a_master_that_has_it_only_for_a_moment() {
        let mut world = World::new(&cluster(BEFORE, &[]));
        world.look(&cluster(AFTER, &[]), 10);
        world.moves.left(0, &"99".parse().expect("slots"));
        let orders = world.look(&cluster(BEFORE, &[]), limits::SLOT_QUIET_MS);
        assert!(orders.take.is_empty());
        let orders = world.look(&cluster(AFTER, &[]), limits::SLOT_QUIET_MS);
        assert!(orders.take.is_empty());
        let orders = world.look(&cluster(AFTER, &[]), limits::SLOT_QUIET_MS);
        assert_eq!(orders.take[&1].to_string(), "99");
    }

    #[test]
    fn a_migration_that_is_called_off_brings_the_slot_back_to_its_lane() {
        let mut world = World::new(&cluster(BEFORE, &[]));
        let open = [(99, "a", "b")];
        world.look(&cluster(BEFORE, &open), 10);
        world.moves.left(0, &"99".parse().expect("slots"));
        world.look(&cluster(BEFORE, &[]), 10);
        let orders = world.look(&cluster(BEFORE, &[]), limits::SLOT_QUIET_MS);
        assert_eq!(orders.take[&0].to_string(), "99");
    }

    #[test]
    fn an_old_view_moves_a_slot_back_and_the_next_one_forth() {
        let mut world = World::new(&cluster(AFTER, &[]));
        let orders = world.look(&cluster(BEFORE, &[]), 10);
        assert_eq!(orders.leave[&1].to_string(), "99");
        world.moves.left(1, &"99".parse().expect("slots"));
        let orders = world.look(&cluster(BEFORE, &[]), limits::SLOT_QUIET_MS);
        assert_eq!(orders.take[&0].to_string(), "99");
        let orders = world.look(&cluster(AFTER, &[]), 10);
        assert_eq!(orders.leave[&0].to_string(), "99");
        world.moves.left(1, &"99".parse().expect("slots"));
        assert_eq!(world.moves.leaving(0).to_string(), "99", "not its word");
        world.moves.left(0, &"99".parse().expect("slots"));
        let orders = world.look(&cluster(AFTER, &[]), limits::SLOT_QUIET_MS);
        assert_eq!(orders.take[&1].to_string(), "99");
    }

    #[test]
    fn a_slot_that_is_open_at_the_start_is_written_by_nobody() {
        let open = [(99, "a", "b")];
        let mut world = World::new(&cluster(BEFORE, &open));
        assert_eq!(world.slots(0), "0-98");
        assert_eq!(world.moves.frozen()[0].slots.to_string(), "99");
        world.look(&cluster(AFTER, &[]), 10);
        let orders = world.look(&cluster(AFTER, &[]), limits::SLOT_QUIET_MS);
        assert_eq!(orders.take[&1].to_string(), "99");
    }

    #[test]
    fn a_slot_that_stays_open_is_told_of_once_a_minute() {
        let open = [(99, "a", "b")];
        let mut world = World::new(&cluster(BEFORE, &open));
        let mut told = 0;
        for _ in 0..25 {
            world.look(&cluster(BEFORE, &open), limits::SLOT_FROZEN_MS / 10);
            told += usize::from(world.moves.overdue(world.now_ms).is_some());
        }
        assert_eq!(told, 2);
    }

    #[test]
    fn a_master_that_was_empty_gets_a_lane_and_one_that_is_drained_loses_it() {
        let before = cluster(&[("a", "0-99"), ("b", "100-16383"), ("c", "")], &[]);
        let mut world = World::new(&before);
        assert_eq!(world.roster.places().len(), 2);
        let after = cluster(&[("a", ""), ("b", "100-16383"), ("c", "0-99")], &[]);
        let orders = world.look(&after, 10);
        assert_eq!(orders.leave[&0].to_string(), "0-99");
        assert!(orders.ended.is_empty(), "it has not left yet");
        world.moves.left(0, &"0-99".parse().expect("slots"));
        let orders = world.look(&after, limits::SLOT_QUIET_MS);
        assert_eq!(orders.ended, [0]);
        assert_eq!(orders.new.len(), 1);
        assert_eq!(orders.new[0].0.id, "c");
        assert_eq!(orders.new[0].1.to_string(), "0-99");
    }

    #[test]
    fn a_slot_that_nobody_owns_for_a_while_stays_with_its_lane() {
        let mut world = World::new(&cluster(BEFORE, &[]));
        let orders = world.look(&cluster(&[("b", "100-16383")], &[]), 10);
        assert!(orders.leave.is_empty() && orders.ended.is_empty());
        assert_eq!(world.slots(0), "0-99");
    }

    #[test]
    fn a_single_server_has_one_lane_for_ever() {
        let single = Topology::single("h", 1);
        let mut world = World::new(&single);
        assert_eq!(world.roster.places().len(), 1);
        let orders = world.look(&Topology::single("other", 2), 10);
        assert!(orders.leave.is_empty() && orders.new.is_empty() && orders.ended.is_empty());
    }
}
