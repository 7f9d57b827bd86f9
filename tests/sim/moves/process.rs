//! The process: lanes, and what the supervisor does about them.
//!
//! Each lane has a [`World`] of its own for network and disk; the target cluster and the lane's source master are put into it
//! for its turns. Who writes what is decided as `runtime::supervisor` does it, by the same parts of the engine; orders, what lanes
//! have left, questions and answers travel as there.

use std::collections::{BTreeMap, VecDeque};
use std::mem::{swap, take};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use slotstream::checkpoint::{Start, is_bookkeeping};
use slotstream::engine::moves::{Moves, Orders};
use slotstream::engine::options::Existing;
use slotstream::engine::recopy::{ListAnswer, ListQuestion};
use slotstream::engine::records::Generations;
use slotstream::engine::roster::Roster;
use slotstream::engine::status::LaneState;
use slotstream::fault::{Fault, FaultKind, Policy};
use slotstream::limits;
use slotstream::mend::Key;
use slotstream::slot::{Slot, SlotSet, slot_of};
use slotstream::spool::{Budget, Settings};
use slotstream::topology::{Node, Topology};

use super::Sim;
use crate::cluster::Cluster;
use crate::disk;
use crate::model::{Bytes, decode, keys_of, show};
use crate::restart::bookkeeping;
use crate::rng::Rng;
use crate::source::Source;
use crate::trace;
use crate::world::{Network, TargetSocket, World};

#[derive(Debug)]
enum Order {
    Follow(Node),
    Take(SlotSet),
    Leave(SlotSet),
    End,
}

/// A question about slots, on its way.
struct Listing {
    at_ms: u64,
    ticket: u64,
    question: ListQuestion,
    /// What the source said; then the target is asked.
    source: Option<Result<(String, Vec<Key>), String>>,
    answer: Option<ListAnswer>,
}

/// A lane, and what is around it.
pub struct Link {
    pub id: u32,
    /// Which source master it is told to follow.
    pub at: usize,
    node: Node,
    pub world: World,
    orders: VecDeque<Order>,
    ends_until_ms: Option<u64>,
    listings: Vec<Listing>,
    /// It stands still until then.
    pub asleep_until_ms: u64,
    /// It hardly hears anything until then.
    slow_until_ms: u64,
    network: Network,
}

/// A lane that has to be started.
struct Opening {
    lane: u32,
    node: Node,
    slots: SlotSet,
    leaving: SlotSet,
    not_before_ms: u64,
}

pub struct Process {
    pub links: Vec<Box<Link>>,
    pub roster: Roster,
    pub moves: Moves,
    pub view: (u64, Arc<Topology>),
    seen: u64,
    next_look_ms: u64,
    openings: Vec<Opening>,
    told_left: Vec<(u32, SlotSet)>,
    restarts: Vec<u32>,
    lanes: u32,
    epoch: u32,
    generations: Generations,
    existing: Existing,
    /// Which lane was the last to write a slot.
    writers: BTreeMap<Slot, u32>,
    /// It has just begun.
    fresh: bool,
    /// Slots that lanes which are gone had copied, for tests that want some to be.
    pub copied_slots: u64,
}

impl Process {
    /// One that has nothing yet. `existing`: what it may find on the target.
    pub fn new(view: Topology, epoch: u32, existing: Existing) -> Self {
        Self {
            links: Vec::new(),
            roster: Roster::default(),
            moves: Moves::default(),
            view: (1, Arc::new(view)),
            seen: 0,
            next_look_ms: 0,
            openings: Vec::new(),
            told_left: Vec::new(),
            restarts: Vec::new(),
            lanes: 0,
            epoch,
            generations: Generations::new(epoch),
            existing,
            writers: BTreeMap::new(),
            fresh: true,
            copied_slots: 0,
        }
    }

    pub fn adopt(&mut self, view: Topology) {
        if *self.view.1 != view {
            self.view = (self.view.0 + 1, Arc::new(view));
        }
    }

    fn order(&mut self, lane: u32, order: Order) {
        trace::note(|| format!("lane {lane} is told: {order:?}"));
        if let Some(place) = self.openings.iter().position(|open| open.lane == lane) {
            let opening = &mut self.openings[place];
            match order {
                Order::Follow(node) => opening.node = node,
                Order::Take(slots) => opening.slots = opening.slots.union(&slots),
                Order::Leave(slots) => {
                    opening.slots = opening.slots.difference(&slots);
                    opening.leaving = opening.leaving.union(&slots);
                }
                Order::End => _ = self.openings.swap_remove(place),
            }
        } else if let Some(link) = self.links.iter_mut().find(|link| link.id == lane) {
            link.orders.push_back(order);
        }
    }

    fn give(&mut self, orders: Orders, now_ms: u64) {
        for (lane, slots) in orders.leave {
            self.order(lane, Order::Leave(slots));
        }
        for (lane, slots) in orders.take {
            self.order(lane, Order::Take(slots));
        }
        for lane in orders.ended {
            self.order(lane, Order::End);
        }
        for (master, slots) in orders.new {
            let lane = self.lanes;
            self.lanes += 1;
            trace::note(|| format!("lane {lane} is for {} with {slots}", master.id));
            self.roster.add(lane, master.clone(), slots.clone());
            self.openings.push(Opening {
                lane,
                node: master,
                slots,
                leaving: SlotSet::new(),
                not_before_ms: now_ms,
            });
        }
    }

    /// What the supervisor does at each tick, but for starting lanes.
    fn follow(&mut self, now_ms: u64) {
        for (lane, slots) in take(&mut self.told_left) {
            trace::note(|| format!("lane {lane} has left {slots}"));
            self.moves.left(lane, &slots);
        }
        if self.view.0 == self.seen && !self.moves.is_busy() {
            return;
        }
        let topology = Arc::clone(&self.view.1);
        if self.view.0 != self.seen {
            self.seen = self.view.0;
            for (lane, node) in self.roster.follow(&topology) {
                self.order(lane, Order::Follow(node));
            }
        }
        let orders = self.moves.look(&mut self.roster, &topology, now_ms);
        self.give(orders, now_ms);
    }

    fn begin_again(&mut self, now_ms: u64) {
        for lane in take(&mut self.restarts) {
            if let Some(place) = self.roster.place(lane).cloned() {
                self.openings.push(Opening {
                    lane,
                    node: place.master,
                    slots: place.slots,
                    leaving: self.moves.leaving(lane),
                    not_before_ms: now_ms,
                });
            }
        }
    }

    /// Whether everything is written by whom it should be, and nothing is left to do.
    pub fn is_settled(&self) -> bool {
        !self.moves.is_busy()
            && self.openings.is_empty()
            && self.restarts.is_empty()
            && self.told_left.is_empty()
            && self.view.0 == self.seen
            && self
                .links
                .iter()
                .all(|link| link.orders.is_empty() && link.ends_until_ms.is_none())
    }

    pub fn link_of_mut(&mut self, master: usize) -> &mut Link {
        let mut links = self.links.iter_mut();
        links.find(|link| link.at == master).expect("it has a lane")
    }
}

impl Link {
    pub fn slots_to_copy(&self) -> u64 {
        self.world.status.slots_to_copy.load(Relaxed)
    }

    /// For so long hardly anything comes through.
    pub fn be_slow(&mut self, until_ms: u64) {
        self.slow_until_ms = until_ms;
    }

    /// From now on nothing holds it up.
    pub fn quicken(&mut self, network: Network) {
        self.network = network;
        (self.slow_until_ms, self.asleep_until_ms) = (0, 0);
    }

    /// Everything that is on its way to the target, by connections.
    fn on_its_way(&self) -> Vec<Bytes> {
        let live = (self.world.sockets.iter().enumerate()).filter_map(|(index, socket)| {
            let TargetSocket::Up { session, wire } = socket else {
                return None;
            };
            let mut pieces = [std::io::IoSlice::new(&[]); limits::MAX_PIECES];
            let count = self.world.lane.target_gather(index, &mut pieces);
            let mut sent = [&session.input[..], wire].concat();
            pieces[..count]
                .iter()
                .for_each(|piece| sent.extend_from_slice(piece));
            Some(sent)
        });
        let given_up = self.world.forsaken.iter();
        let given_up = given_up.map(|(session, wire)| [&session.input[..], wire].concat());
        live.chain(given_up).collect()
    }

    /// Panics if anything of a slot's keys is on its way to the target.
    fn assert_clear_of(&self, slot: Slot, other: u32) {
        for sent in self.on_its_way() {
            let mut rest = &sent[..];
            while let Some((args, length)) = decode(rest) {
                rest = &rest[length..];
                let mut keys = keys_of(&args).into_iter();
                assert!(
                    !keys.any(|key| slot_of(key) == slot && !is_bookkeeping(key)),
                    "lane {other} writes slot {slot} while {} of lane {} is on its way",
                    show(&args),
                    self.id
                );
            }
        }
    }
}

impl Sim {
    /// Does something with a lane's world, with the cluster and the lane's source master in their places; and checks what was
    /// executed on the target.
    pub fn with<T>(&mut self, link: &mut Link, act: impl FnOnce(&mut World) -> T) -> T {
        link.world.now_ms = self.now_ms;
        swap(&mut link.world.cluster, &mut self.cluster);
        let master = &mut self.shards.masters[link.at];
        swap(&mut link.world.source, &mut master.source);
        let result = act(&mut link.world);
        swap(&mut link.world.source, &mut master.source);
        swap(&mut link.world.cluster, &mut self.cluster);
        // The tracker of one lane does not follow what several write.
        for socket in &mut link.world.sockets {
            if let TargetSocket::Up { session, .. } = socket {
                session.forsaken = true;
            }
        }
        let journal = self.cluster.journal.replace(Vec::new());
        let keys = journal.expect("it is kept").into_iter().flatten();
        for key in keys.filter(|key| !is_bookkeeping(key)) {
            self.check_writer(link.id, &key);
        }
        result
    }

    /// A lane has written a key on the target.
    fn check_writer(&mut self, lane: u32, key: &[u8]) {
        let slot = slot_of(key);
        let process = &mut self.process;
        let place = process.roster.place(lane);
        let writes = place.is_some_and(|place| place.slots.contains(slot));
        assert!(
            writes || process.moves.leaving(lane).contains(slot),
            "lane {lane} has written {}, of slot {slot}, which is not its own",
            key.escape_ascii()
        );
        if process.writers.insert(slot, lane) != Some(lane) {
            let others = process.links.iter().filter(|link| link.id != lane);
            others.for_each(|link| link.assert_clear_of(slot, lane));
        }
    }

    /// Does the same with the lane at this place.
    pub fn with_link<T>(&mut self, place: usize, act: impl FnOnce(&mut World) -> T) -> T {
        let mut link = self.process.links.remove(place);
        let result = self.with(&mut link, act);
        self.process.links.insert(place, link);
        result
    }

    // The supervisor.

    pub fn supervise(&mut self) {
        if self.now_ms < self.process.next_look_ms {
            return;
        }
        self.process.next_look_ms = self.now_ms + limits::TICK.as_millis() as u64;
        self.process.follow(self.now_ms);
        if take(&mut self.process.fresh) {
            self.hold_back();
        }
        self.process.begin_again(self.now_ms);
        let now_ms = self.now_ms;
        let openings = take(&mut self.process.openings);
        let (due, later) = openings
            .into_iter()
            .partition(|open| open.not_before_ms <= now_ms);
        self.process.openings = later;
        let due: Vec<Opening> = due;
        for mut opening in due {
            if opening.slots.is_empty() {
                // It has nothing to write any more: what it has left is written by nobody.
                self.process.moves.left(opening.lane, &opening.leaving);
                let roster = &mut self.process.roster;
                roster.end(|place| place.lane == opening.lane);
            } else if self.plan.trouble && self.rng.once_in(10) {
                // The target could not be asked.
                opening.not_before_ms = now_ms + 300;
                self.process.openings.push(opening);
            } else {
                self.open(opening);
            }
        }
        // What comes later finds keys there.
        self.process.existing = Existing::Replace;
    }

    /// What the supervisor does at the start: slots that records of one lane list, and that another has to write, wait for the former.
    fn hold_back(&mut self) {
        let openings = take(&mut self.process.openings);
        for opening in &openings {
            let Start::Resume(resume) = self.start_of(opening) else {
                continue;
            };
            let process = &mut self.process;
            trace::note(|| format!("lane {} still lists {}", opening.lane, resume.foreign));
            let (moves, roster) = (&mut process.moves, &mut process.roster);
            moves.hold_back(roster, opening.lane, &resume.foreign, self.now_ms);
        }
        let place = |lane| self.process.roster.place(lane).expect("it has one");
        let held_back = openings.into_iter().map(|opening| Opening {
            slots: place(opening.lane).slots.clone(),
            ..opening
        });
        self.process.openings = held_back.collect();
    }

    fn start_of(&self, opening: &Opening) -> Start {
        let (at, _) = self.shards.at(&opening.node.address);
        let histories = self.shards.masters[at].source.histories();
        let single = self.cluster.single;
        let topology = self.cluster.topology();
        let owner = |slot: Slot| topology.master_of(slot).map(|node| node.id.as_str());
        let bookkeeping = bookkeeping(&self.cluster, self.process.epoch);
        bookkeeping.start(&opening.slots, owner, single, &histories)
    }

    fn open(&mut self, opening: Opening) {
        let (at, _) = self.shards.at(&opening.node.address);
        trace::note(|| format!("lane {} begins", opening.lane));
        let mut placeholder = Cluster::new(1, self.cluster.single);
        placeholder.existing = self.process.existing;
        placeholder.on_divergence = self.cluster.on_divergence;
        placeholder.grouping = self.cluster.grouping;
        let rng = Rng::new(self.rng.next());
        let network = self.network_of(opening.lane);
        let budget = Arc::new(Budget::new(limits::SPOOL_DISK_BYTES));
        let spool = Settings::new(disk::LINK.into(), budget);
        let slots = opening.slots.clone();
        let mut world = World::with_spool(
            rng,
            network.clone(),
            Source::new(0),
            placeholder,
            slots,
            spool,
        );
        world.config.source = opening.node.clone();
        world.config.source_has_slots = true;
        world.epoch = self.process.epoch;
        world.generations = self.process.generations.clone();
        world.lossy = self.plan.lossy;
        world.tracker.looks_away = true;
        world.tracker.keeps_records = true;
        world.next_tick_ms = self.now_ms + self.rng.below(50) as u64;
        let mut link = Box::new(Link {
            id: opening.lane,
            at,
            node: opening.node.clone(),
            world,
            orders: VecDeque::new(),
            ends_until_ms: None,
            listings: Vec::new(),
            asleep_until_ms: 0,
            slow_until_ms: 0,
            network,
        });
        let mut leaving = opening.leaving.clone();
        if let Start::Resume(resume) = self.start_of(&opening) {
            let places = self.process.roster.places().iter();
            let others = places.filter(|place| place.lane != opening.lane);
            let others = others.fold(SlotSet::new(), |all, place| all.union(&place.slots));
            leaving = leaving.union(&resume.foreign.difference(&others));
        }
        if !leaving.is_empty() {
            link.orders.push_back(Order::Leave(leaving));
        }
        let slots = opening.slots;
        self.with(&mut link, |world| {
            world.cluster.lane = slots;
            world.adopted = world.cluster.topology();
            assert!(world.hold_epoch(), "nobody else has claimed the link");
            (world.lane, world.adopted) = world.lane_from_target(false);
        });
        self.process.links.push(link);
    }

    /// The process dies; what it had sent is executed in part. Another takes its place.
    pub fn crash(&mut self) {
        trace::note(|| "the process dies, and another begins".into());
        let links = take(&mut self.process.links);
        for mut link in links {
            self.process.copied_slots += link.world.status.slots_copied.load(Relaxed);
            self.forsake(&mut link);
        }
        let copied_slots = self.process.copied_slots;
        let epoch = self.process.epoch + 1;
        let view = Topology::clone(&self.process.view.1);
        self.process = Process::new(view, epoch, Existing::Replace);
        self.process.copied_slots = copied_slots;
    }

    /// A lane's connections are given up.
    fn forsake(&mut self, link: &mut Link) {
        self.with(link, |world| {
            (0..world.sockets.len()).for_each(|index| world.forsake(index));
            for (session, _) in &mut world.forsaken {
                session.forsaken = true;
            }
            world.serve_forsaken();
        });
    }

    // Lanes.

    /// One moment of the lane at this place. Whether it is still there.
    pub fn step_link(&mut self, place: usize) -> bool {
        let mut link = self.process.links.remove(place);
        let slow = self.now_ms < link.slow_until_ms;
        link.world.network = link.network.clone();
        if slow {
            link.world.network.chunk = link.network.chunk.min(30);
            link.world.network.stall_percent = 90;
        }
        let turned = self.turn(&mut link);
        match turned {
            Err(fault) if fault.policy() == Policy::Restart => {
                trace::note(|| format!("lane {} must begin again: {fault}", link.id));
                self.process.copied_slots += link.world.status.slots_copied.load(Relaxed);
                self.forsake(&mut link);
                self.process.restarts.push(link.id);
                return false;
            }
            Err(fault) => panic!("lane {} ended: {:?} {fault}", link.id, fault.kind),
            Ok(()) => {}
        }
        let over = |until_ms: u64| link.world.lane.is_done() || self.now_ms >= until_ms;
        if link.ends_until_ms.is_some_and(over) {
            trace::note(|| format!("lane {} has ended", link.id));
            self.process.copied_slots += link.world.status.slots_copied.load(Relaxed);
            link.world.lane.finish();
            self.forsake(&mut link);
            return false;
        }
        let progress = link.world.lane.progress();
        progress.check();
        self.process.links.insert(place, link);
        true
    }

    fn turn(&mut self, link: &mut Link) -> Result<(), Fault> {
        let now_ms = self.now_ms;
        let (at, _) = self.shards.at(&link.node.address);
        if at != link.at {
            assert!(
                !link.world.source_is_up(),
                "the former connection is closed"
            );
            link.at = at;
        }
        // Nobody is where a failed master was.
        link.world.source_down_until_ms = match self.shards.node(link.at) == link.node {
            true => 0,
            false => u64::MAX,
        };
        self.with(link, World::serve_all);
        if now_ms < link.asleep_until_ms {
            return Ok(());
        }
        if now_ms >= link.world.next_tick_ms {
            link.world.now_ms = now_ms;
            self.hear_orders(link)?;
            self.look_mends_up(link);
            self.talk_of_slots(link)?;
            let master = &self.shards.masters[link.at].source;
            if self.rng.once_in(10) && link.world.source_down_until_ms == 0 {
                let offset = master.offset();
                link.world.status.set_poll(&master.replid, offset, now_ms);
            }
        }
        self.with(link, World::turn)
    }

    fn hear_orders(&mut self, link: &mut Link) -> Result<(), Fault> {
        while let Some(order) = link.orders.pop_front() {
            trace::note(|| format!("lane {} hears {order:?}", link.id));
            match order {
                Order::Follow(node) => {
                    link.node = node.clone();
                    if link.world.lane.follow(node) {
                        let fault = Fault::new(FaultKind::ConnectionLost, "another is the master");
                        link.world.source_socket = crate::world::SourceSocket::None;
                        link.world.lane.source_lost(fault, self.now_ms)?;
                    }
                    let (at, _) = self.shards.at(&link.node.address);
                    link.at = at;
                    let present = self.shards.node(at) == link.node;
                    link.world.source_down_until_ms = if present { 0 } else { u64::MAX };
                }
                Order::Take(slots) => link.world.lane.take(&slots),
                Order::Leave(slots) => link.world.lane.leave(&slots),
                Order::End => {
                    link.world.lane.stop_for_now();
                    let patience_ms = limits::DRAIN_TIMEOUT.as_millis() as u64;
                    link.ends_until_ms.get_or_insert(self.now_ms + patience_ms);
                }
            }
        }
        Ok(())
    }

    /// The source looks after questions about keys.
    fn look_mends_up(&mut self, link: &mut Link) {
        for letter in &mut link.world.letters {
            if letter.answer.is_none() && letter.at_ms <= self.now_ms {
                let later = self.plan.trouble && self.rng.once_in(10);
                letter.answer = Some(match later {
                    true => slotstream::engine::mending::MendAnswer::Later("no answer".into()),
                    false => self.shards.take(&letter.question),
                });
                letter.at_ms = self.now_ms + self.rng.below(self.plan.answer_ms) as u64;
            }
        }
    }

    fn talk_of_slots(&mut self, link: &mut Link) -> Result<(), Fault> {
        for mut listing in take(&mut link.listings) {
            if listing.at_ms > self.now_ms {
                link.listings.push(listing);
                continue;
            }
            if let Some(answer) = listing.answer {
                trace::note(|| format!("lane {} hears {answer:?}", link.id));
                link.world.lane.listed(listing.ticket, answer)?;
                continue;
            }
            match listing.source.take() {
                None => listing.source = Some(self.shards.list(&listing.question)),
                Some(source) => listing.answer = Some(self.list_target(&listing.question, source)),
            }
            listing.at_ms = self.now_ms + self.rng.below(self.plan.answer_ms) as u64;
            link.listings.push(listing);
        }
        for (ticket, question) in link.world.lane.take_list_questions() {
            trace::note(|| format!("lane {} asks for the keys of {}", link.id, question.slots));
            link.listings.push(Listing {
                at_ms: self.now_ms + self.rng.below(self.plan.answer_ms) as u64,
                ticket,
                question,
                source: None,
                answer: None,
            });
        }
        let left = link.world.lane.take_left();
        if !left.is_empty() {
            self.process.told_left.push((link.id, left));
        }
        Ok(())
    }

    fn list_target(
        &mut self,
        question: &ListQuestion,
        source: Result<(String, Vec<Key>), String>,
    ) -> ListAnswer {
        let (replid, source) = match source {
            Ok(source) if !(self.plan.trouble && self.rng.once_in(10)) => source,
            Ok(_) => return ListAnswer::Later("no answer".into()),
            Err(why) => return ListAnswer::Later(why),
        };
        let moving = self.cluster.moving();
        if moving
            .iter()
            .any(|(slot, ..)| question.slots.contains(*slot))
        {
            return ListAnswer::Later("the slot moves on the target".into());
        }
        let nodes = self.cluster.nodes.iter();
        let keys = nodes.flat_map(|node| node.store.keys.keys());
        let ours = |key: &&Key| question.slots.contains(slot_of(&key.1)) && !is_bookkeeping(&key.1);
        let target = match question.target {
            true => keys.filter(ours).cloned().collect(),
            false => Vec::new(),
        };
        ListAnswer::Listed {
            replid,
            source,
            target,
        }
    }

    /// Whether a lane has nothing left to do, and nothing of it is on its way.
    pub fn is_link_equal(&mut self, place: usize) -> bool {
        let nodes = self.cluster.nodes.len();
        self.with_link(place, |world| {
            let offset = world.source.offset();
            world.lane.progress().acknowledged.0 == offset
                && world.status.state() == LaneState::Streaming
                && world.status.slots_to_copy.load(Relaxed) == 0
                && world.lane.keys_owed() == 0
                && world.letters.is_empty()
                && (0..nodes).all(|node| world.is_drained(node))
        })
    }
}
