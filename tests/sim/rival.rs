//! Two processes for one link: one takes it over while the other still runs.
//!
//! ```text
//! former   writes .......... loses its connections ....... dials, is greeted, asks -> "taken over": ends
//!                  (it may stand still for a while, anywhere)
//! next     claims the epoch, slot by slot -> ends connections, master by master -> reads -> begins
//! ```
//!
//! Both are whole lanes in one world. The one that counts is [`World`]'s own; the parts of the former one stand in [`Process`] and
//! are put in their place for its turns. Once its connections to a master were ended, nothing of the former one may be
//! executed there: [`crate::cluster`] looks after that.

use std::mem::{replace, swap, take};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use slotstream::checkpoint::{bookkeeping_of, epoch_key};
use slotstream::engine::lane::{Lane, LaneConfig};
use slotstream::engine::lookup::LookupQuestion;
use slotstream::engine::records::Generations;
use slotstream::engine::status::LaneStatus;
use slotstream::fault::{Fault, FaultKind, Policy};
use slotstream::slot::Slot;
use slotstream::topology::Topology;

use crate::cluster;
use crate::disk::Disk;
use crate::mends::Letter;
use crate::model::{Bytes, Value};
use crate::restart::{self, FenceAsked};
use crate::rng::Rng;
use crate::trace;
use crate::world::{SourceSocket, TargetSocket, World};

/// How many former processes were there beside the next one, in all runs.
pub static RIVALS: AtomicU64 = AtomicU64::new(0);

/// The process that has lost the link, with all that is its own.
pub struct Process {
    lane: Lane,
    config: LaneConfig,
    disk: Disk,
    status: Arc<LaneStatus>,
    source_socket: SourceSocket,
    sockets: Vec<TargetSocket>,
    views: Vec<(u64, Arc<Topology>)>,
    adopted: Arc<Topology>,
    asked: Option<(u64, LookupQuestion)>,
    letters: Vec<Letter>,
    next_tick_ms: u64,
    full_syncs: u64,
    epoch: u32,
    generations: Generations,
    forsaken: Vec<(cluster::Session, Bytes)>,
    fences: Vec<FenceAsked>,
    ended: Vec<Ended>,
    asleep_until_ms: u64,
}

/// A connection that a target master has ended, of which the lane has not heard yet.
pub struct Ended {
    at_ms: u64,
    index: usize,
    /// What came before the end.
    heard: Bytes,
}

/// A process that is about to take the link over.
pub struct Takeover {
    epoch: u32,
    /// How the target was when it began: a change makes it begin again.
    topology: Arc<Topology>,
    /// Slots whose keys are to hold the epoch.
    to_claim: Vec<Slot>,
    /// Masters whose connections are to be ended.
    to_shut: Vec<usize>,
}

impl World {
    // The next process.

    /// Another process begins to take the link over; the one that runs stands still for so long.
    pub fn begin_takeover(&mut self, asleep_ms: u64) {
        trace::note(|| "another process begins to take the link over".into());
        self.asleep_until_ms = self.now_ms + asleep_ms;
        self.takeover = Some(self.first_claim());
    }

    /// Whether a second process is there, or comes.
    pub fn is_contested(&self) -> bool {
        self.takeover.is_some() || self.rival.is_some()
    }

    fn first_claim(&self) -> Takeover {
        Takeover {
            epoch: self.highest_epoch().max(self.epoch) + 1,
            topology: self.cluster.topology(),
            to_claim: self.places(),
            to_shut: (0..self.cluster.nodes.len()).collect(),
        }
    }

    /// The next step of a takeover, if one is under way.
    pub fn take_over_on(&mut self) {
        let Some(mut takeover) = self.takeover.take() else {
            return;
        };
        // Without a process that comes to know of a refusal, it would last for ever.
        let refuses =
            self.cluster.nodes.iter().any(|node| node.refusal.is_some()) && !self.gave_way;
        if refuses || self.frozen || self.rng.percent(50) {
            self.takeover = Some(takeover);
        } else if takeover.topology != self.cluster.topology() {
            trace::note(|| "the takeover begins again: the target has changed".into());
            self.takeover = Some(self.first_claim());
        } else if !takeover.to_claim.is_empty() {
            // That of slot 0 is the first: of two processes one gets it.
            let slot = takeover.to_claim.remove(0);
            self.set_epoch(slot, takeover.epoch);
            self.takeover = Some(takeover);
        } else if !takeover.to_shut.is_empty() {
            let place = self.rng.below(takeover.to_shut.len());
            let node = takeover.to_shut.swap_remove(place);
            self.shut_out(node, takeover.epoch);
            self.takeover = Some(takeover);
        } else if self.lacks_epoch(takeover.epoch) {
            trace::note(|| "the takeover begins again: its epoch was removed".into());
            self.takeover = Some(self.first_claim());
        } else {
            self.end_takeover(takeover.epoch);
        }
    }

    /// Ends what writes to a master with a lower epoch, as far as it has a name.
    fn shut_out(&mut self, node: usize, epoch: u32) {
        trace::note(|| format!("connections to node {node} below epoch {epoch} are ended"));
        let is_former = |session: &cluster::Session| {
            session.node == node && session.is_named() && session.epoch < epoch
        };
        for index in 0..self.sockets.len() {
            if !matches!(&self.sockets[index], TargetSocket::Up { session, .. } if is_former(session))
            {
                continue;
            }
            let socket = replace(&mut self.sockets[index], TargetSocket::None);
            let TargetSocket::Up { mut session, .. } = socket else {
                unreachable!("looked at above");
            };
            let mut heard = take(&mut session.output);
            if self.lossy {
                heard.truncate(self.rng.below(heard.len() + 1));
            }
            let at_ms = self.now_ms + self.rng.below(50) as u64;
            self.ended_connections.push(Ended {
                at_ms,
                index,
                heard,
            });
        }
        self.forsaken.retain(|(session, _)| !is_former(session));
        let node = &mut self.cluster.nodes[node];
        node.shut_out = node.shut_out.max(epoch);
    }

    /// The link is the next process's, which begins; the former one goes on beside it.
    fn end_takeover(&mut self, epoch: u32) {
        trace::note(|| format!("the link is taken over with epoch {epoch}"));
        let config = self.config.clone();
        let former_epoch = replace(&mut self.epoch, epoch);
        let generations = replace(&mut self.generations, Generations::new(epoch));
        let status = LaneStatus::new(0, "source".into(), "10.0.0.2:6400".into());
        let status = replace(&mut self.status, Arc::new(status));
        let mut disk = Disk::new();
        disk.rng = Rng::new(self.rng.next());
        disk.delay_ms = self.disk.delay_ms;
        disk.written = self.disk.written;
        self.tracker.restarts();
        self.tracker.repeats = true;
        let (lane, topology) = self.lane_from_target(false);
        self.saved = None;
        let former = Process {
            lane: replace(&mut self.lane, lane),
            config,
            disk: replace(&mut self.disk, disk),
            status,
            source_socket: replace(&mut self.source_socket, SourceSocket::None),
            sockets: take(&mut self.sockets),
            views: take(&mut self.views),
            adopted: replace(&mut self.adopted, topology),
            asked: self.asked.take(),
            letters: take(&mut self.letters),
            next_tick_ms: replace(&mut self.next_tick_ms, self.now_ms),
            full_syncs: take(&mut self.full_syncs),
            epoch: former_epoch,
            generations,
            forsaken: take(&mut self.forsaken),
            fences: take(&mut self.fences),
            ended: take(&mut self.ended_connections),
            asleep_until_ms: take(&mut self.asleep_until_ms),
        };
        if take(&mut self.gave_way) {
            return;
        }
        RIVALS.fetch_add(1, Relaxed);
        self.rival = Some(Box::new(former));
        // It reads on, but what it would be told of another snapshot is not for the tracker.
        self.as_rival(|world| {
            if matches!(&world.source_socket, SourceSocket::Up { session, .. } if !session.is_streaming()) {
                world.cut_source();
            }
        });
    }

    // The former process.

    /// Does something with the former process in place of the one that counts, if there is one.
    pub fn as_rival<T>(&mut self, act: impl FnOnce(&mut World) -> T) -> Option<T> {
        let mut rival = self.rival.take()?;
        self.exchange(&mut rival);
        self.is_rival = true;
        let result = act(self);
        self.is_rival = false;
        self.exchange(&mut rival);
        self.rival = Some(rival);
        Some(result)
    }

    fn exchange(&mut self, other: &mut Process) {
        swap(&mut self.lane, &mut other.lane);
        swap(&mut self.config, &mut other.config);
        swap(&mut self.disk, &mut other.disk);
        swap(&mut self.status, &mut other.status);
        swap(&mut self.source_socket, &mut other.source_socket);
        swap(&mut self.sockets, &mut other.sockets);
        swap(&mut self.views, &mut other.views);
        swap(&mut self.adopted, &mut other.adopted);
        swap(&mut self.asked, &mut other.asked);
        swap(&mut self.letters, &mut other.letters);
        swap(&mut self.next_tick_ms, &mut other.next_tick_ms);
        swap(&mut self.full_syncs, &mut other.full_syncs);
        swap(&mut self.epoch, &mut other.epoch);
        swap(&mut self.generations, &mut other.generations);
        swap(&mut self.forsaken, &mut other.forsaken);
        swap(&mut self.fences, &mut other.fences);
        swap(&mut self.ended_connections, &mut other.ended);
        swap(&mut self.asleep_until_ms, &mut other.asleep_until_ms);
    }

    /// One moment of the former process. It ends when it hears that the link is not its own any more, and for no other reason.
    pub fn step_rival(&mut self) {
        let ended = self.as_rival(|world| {
            world.serve_all();
            if world.now_ms < world.asleep_until_ms {
                return None;
            }
            let fault = world.turn().err()?;
            let fault = match fault.policy() {
                // It would read the bookkeeping again, and sees the epoch first.
                Policy::Restart if world.highest_epoch() > world.epoch => restart::taken_over(),
                _ => fault,
            };
            Some(fault)
        });
        if let Some(Some(fault)) = ended {
            assert_eq!(fault.kind, FaultKind::TakenOver, "{fault}");
            trace::note(|| "the former process gives way".into());
            self.rival = None;
        }
    }

    /// Tells the lane of connections that were ended.
    pub fn hear_of_ends(&mut self) -> Result<(), Fault> {
        let now_ms = self.now_ms;
        let (due, later): (Vec<Ended>, Vec<Ended>) = take(&mut self.ended_connections)
            .into_iter()
            .partition(|ended| ended.at_ms <= now_ms);
        self.ended_connections = later;
        for Ended { index, heard, .. } in due {
            // Unless it has given the connection up itself.
            if matches!(self.sockets.get(index), Some(TargetSocket::None)) {
                let heard = self.lane.target_received(index, &heard, now_ms);
                let fault = heard.err().unwrap_or_else(crate::world::lost);
                self.sockets[index] = TargetSocket::None;
                self.lane.target_lost(index, fault, now_ms)?;
            }
        }
        Ok(())
    }

    // The epoch.

    /// Slots whose keys hold the epoch: slot 0, and one of each master.
    fn places(&self) -> Vec<Slot> {
        let moving = self.cluster.moving();
        let mut places = vec![0];
        for node in 0..self.cluster.nodes.len() {
            let mut slots = 0..self.cluster.owners.len();
            let stays = |slot: &usize| {
                self.cluster.owners[*slot] == node
                    && !moving.iter().any(|(open, ..)| usize::from(*open) == *slot)
            };
            if let Some(slot) = slots.find(stays)
                && slot > 0
            {
                places.push(slot as Slot);
            }
        }
        places
    }

    /// The highest epoch that any key holds.
    pub fn highest_epoch(&self) -> u32 {
        let nodes = self.cluster.nodes.iter();
        let keys = nodes.flat_map(|node| &node.store.keys);
        let epochs =
            keys.filter(|((_, key), _)| bookkeeping_of(key).is_some_and(|(kind, _)| kind == 'e'));
        epochs.map(|(_, value)| epoch_of(value)).max().unwrap_or(0)
    }

    /// Sets the epoch of a slot where it is lower; what it held before.
    fn set_epoch(&mut self, slot: Slot, epoch: u32) -> u32 {
        let key = (0, epoch_key(&self.config.link, slot));
        let owner = self.cluster.owners[usize::from(slot)];
        let mut nodes = self.cluster.nodes.iter();
        // A slot on its way is asked for at both.
        let holder = nodes.position(|node| node.store.keys.contains_key(&key));
        let store = &mut self.cluster.nodes[holder.unwrap_or(owner)].store;
        let held = store.keys.get(&key).map_or(0, epoch_of);
        if held < epoch {
            let text = Value::Text(epoch.to_string().into_bytes());
            store.keys.insert(key, text);
        }
        held
    }

    /// Whether a master lacked an epoch that it had; it has it then.
    fn lacks_epoch(&mut self, epoch: u32) -> bool {
        let places = self.places().into_iter();
        let held: Vec<u32> = places.map(|slot| self.set_epoch(slot, epoch)).collect();
        held.iter().any(|held| *held != epoch)
    }

    /// Whether the link is still the process's own; masters that lack the epoch get it.
    pub fn hold_epoch(&mut self) -> bool {
        let places = self.places().into_iter();
        let held: Vec<u32> = places
            .map(|slot| self.set_epoch(slot, self.epoch))
            .collect();
        held.iter().all(|held| *held <= self.epoch)
    }
}

fn epoch_of(value: &Value) -> u32 {
    let Value::Text(text) = value else {
        panic!("an epoch is {value:?}");
    };
    let text = std::str::from_utf8(text).expect("an epoch is text");
    text.parse().expect("an epoch")
}
