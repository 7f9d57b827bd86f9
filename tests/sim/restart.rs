//! What a target remembers of the lane, and what becomes of it: processes that die and come again, connections that are
//! written to after they were given up, masters that lose what they had answered.
//!
//! A dead process leaves its connections behind. What was on their way is executed bit by bit, until somebody kills them:
//! the next process before it reads the bookkeeping, or the same one before it writes again (`fence`).

use std::collections::BTreeMap;
use std::sync::Arc;

use slotstream::checkpoint::{
    Bookkeeping, Found, Record, Watermark, bookkeeping_of, is_bookkeeping,
};
use slotstream::engine::Spooled;
use slotstream::engine::fence::{FenceAnswer, FenceQuestion};
use slotstream::engine::lane::{Lane, LaneConfig};
use slotstream::engine::records::Generations;
use slotstream::fault::{Fault, FaultKind};
use slotstream::limits;
use slotstream::slot::{Slot, slot_of};
use slotstream::topology::{ServerRun, Topology};

use crate::cluster::{Cluster, Node};
use crate::model::{Bytes, Store, Value};
use crate::trace;
use crate::world::{SourceSocket, TargetSocket, World};

/// A question of the lane about a target master, on its way.
pub struct FenceAsked {
    /// When somebody looks, and then when the answer comes.
    pub at_ms: u64,
    pub index: usize,
    pub number: u64,
    pub question: FenceQuestion,
    pub answer: Option<FenceAnswer>,
}

impl World {
    /// The lane keeps records from its start.
    pub fn keep_records(&mut self) {
        self.config.generations = Some(self.generations.clone());
        let repeats = self.tracker.repeats;
        self.tracker.keeps_records = true;
        self.begin_again();
        self.tracker.repeats = repeats;
    }

    /// The process is asked to end; once it has, another takes its place.
    pub fn stop(&mut self) {
        trace::note(|| "the process is asked to end".into());
        self.lane.stop_for_now();
        self.stops_until_ms = Some(self.now_ms + 10_000);
    }

    /// The process dies, and another takes its place at once.
    pub fn crash(&mut self) {
        self.stops_until_ms = None;
        trace::note(|| "the process dies, and another begins".into());
        self.epoch = self.epoch.max(self.highest_epoch()) + 1;
        self.generations = Generations::new(self.epoch);
        self.disk.lose_process();
        self.begin_again();
    }

    /// The lane has found that it must begin again: what it received goes to disk before.
    pub fn leave_and_begin_again(&mut self) {
        let patience_ms = self.now_ms + limits::SPOOL_SAVE_MS;
        while !self.lane.save() && self.now_ms < patience_ms {
            while let Some((ticket, order)) = self.lane.take_spool_order() {
                self.disk.order(ticket, order, self.now_ms);
            }
            self.now_ms += 1;
            while let Some((ticket, result)) = self.disk.next_done(self.now_ms) {
                let _ = self.lane.spool_done(ticket, result);
            }
        }
        self.disk.work_off(self.now_ms);
        match self.stops_until_ms {
            // The process was to end anyway: with that it does, and the next one begins again.
            Some(_) => self.crash(),
            None => self.begin_again(),
        }
    }

    /// The lane begins again from what the target has, unless the link is another process's.
    pub fn begin_again(&mut self) {
        if !self.hold_epoch() {
            assert!(self.takeover.is_some(), "nobody else has claimed the link");
            self.gave_way = true;
            return;
        }
        self.begun += 1;
        self.source_socket = SourceSocket::None;
        for index in 0..self.sockets.len() {
            self.forsake(index);
        }
        self.sockets.clear();
        self.tracker.repeats = true;
        self.serve_forsaken();
        self.forsaken.clear();
        self.asked = None;
        self.fences.clear();
        self.letters.clear();
        self.views.clear();
        self.tracker.restarts();
        self.ended_connections.clear();
        (self.lane, self.adopted) = self.lane_from_target(true);
    }

    /// A lane that begins from what the target has, and the view of the target that it begins with.
    pub fn lane_from_target(&mut self, same_machine: bool) -> (Lane, Arc<Topology>) {
        let bookkeeping = self.bookkeeping();
        let topology = self.cluster.topology();
        let owner = |slot: Slot| topology.master_of(slot).map(|node| node.id.as_str());
        // The tracker of one lane expects every command, and slots that are copied by themselves leave some out.
        let known = match self.tracker.looks_away {
            true => self.source.histories(),
            false => Vec::new(),
        };
        let single = self.cluster.single;
        let start = bookkeeping.start(&self.cluster.lane, owner, single, &known);
        trace::note(|| format!("the lane begins with {start:?}"));
        let mut config = self.config.clone();
        config.generations = Some(self.generations.clone());
        config.runs = self.runs();
        config.begin(start, self.cluster.single, &self.status);
        if same_machine {
            self.take_up_spool(&mut config);
        }
        let lane = Lane::new(config, Arc::clone(&topology), Arc::clone(&self.status));
        (lane, topology)
    }

    /// What a former process left on the disk, if a lane can go on from there.
    fn take_up_spool(&mut self, config: &mut LaneConfig) {
        let surveys = self.disk.surveys();
        let resume = config.resume.as_ref();
        config.spooled = resume.and_then(|resume| Spooled::from(resume, surveys));
        let recovered = config.spooled.as_ref().map(|spooled| &spooled.recovered);
        self.disk.keep_only(recovered);
        if let Some(recovered) = recovered {
            self.taken_up += 1;
            trace::note(|| {
                format!(
                    "the disk holds {:?} to {:?}",
                    recovered.first(),
                    recovered.end()
                )
            });
        }
    }

    /// A connection is given up by the lane, but the target has not heard of it.
    pub fn forsake(&mut self, index: usize) {
        let socket = std::mem::replace(&mut self.sockets[index], TargetSocket::None);
        if let TargetSocket::Up { session, wire } = socket {
            self.forsaken.push((session, wire));
        }
    }

    /// Forsaken connections bring a little more of what was on its way.
    pub fn serve_forsaken(&mut self) {
        let mut forsaken = std::mem::take(&mut self.forsaken);
        for (session, wire) in &mut forsaken {
            let arrived = self.rng.below(wire.len() + 1);
            session.input.extend(wire.drain(..arrived));
            let commands = self.rng.below(40);
            self.cluster.serve(session, commands, &mut self.tracker);
        }
        self.forsaken = forsaken;
    }

    /// Which run of its server each master is.
    pub fn runs(&self) -> Vec<(String, ServerRun)> {
        let nodes = self.cluster.nodes.iter();
        nodes
            .map(|node| (id_of(&self.cluster, node), run_of(node)))
            .collect()
    }

    /// Everything that the masters hold of the link.
    pub fn bookkeeping(&self) -> Bookkeeping {
        bookkeeping(&self.cluster, self.epoch)
    }

    /// Looks after questions about masters; gives the answers whose time has come.
    pub fn answer_fences(&mut self) -> Vec<(usize, u64, FenceAnswer)> {
        let mut answers = Vec::new();
        for mut asked in std::mem::take(&mut self.fences) {
            if asked.at_ms > self.now_ms {
                self.fences.push(asked);
            } else if let Some(answer) = asked.answer.take() {
                answers.push((asked.index, asked.number, answer));
            } else {
                asked.answer = Some(self.look(&asked.question));
                asked.at_ms = self.now_ms + self.rng.below(30) as u64;
                self.fences.push(asked);
            }
        }
        answers
    }

    fn look(&mut self, question: &FenceQuestion) -> FenceAnswer {
        if !self.hold_epoch() {
            return FenceAnswer::Failed(taken_over());
        }
        // Killed: whatever has not been executed by now never will be.
        let port = question.node.port;
        let nodes = &self.cluster.nodes;
        self.forsaken
            .retain(|(session, _)| nodes[session.node].port != port);
        let node = nodes.iter().find(|node| node.port == port && node.alive);
        let run = node.map(run_of);
        let marks: BTreeMap<Slot, Watermark> = self.bookkeeping().watermarks;
        let asked = question.slots.iter();
        FenceAnswer::Clear {
            run: run.filter(|_| question.connected),
            watermarks: asked
                .filter_map(|slot| Some((*slot, *marks.get(slot)?)))
                .collect(),
        }
    }

    /// A master is restarted from what it had saved a while ago.
    pub fn restart_from_snapshot(&mut self, saved: &Saved) {
        let node = saved.node;
        trace::note(|| format!("node {node} is restarted with what it had saved"));
        self.fall_back(saved);
    }

    /// A replica takes a master's place that lacks what came since.
    pub fn promote_lagging(&mut self, saved: &Saved) {
        let node = saved.node;
        trace::note(|| format!("node {node} fails over to a replica that lags"));
        let followed = run_of(&self.cluster.nodes[node]).replid;
        self.fall_back(saved);
        self.cluster.fail_over(node);
        self.cluster.nodes[node].followed = Some(followed);
    }

    fn fall_back(&mut self, saved: &Saved) {
        let node = saved.node;
        self.cut_targets_of(node);
        self.as_rival(|world| world.cut_targets_of(node));
        self.forsaken.retain(|(session, _)| session.node != node);
        let node = &mut self.cluster.nodes[node];
        node.runs += 1;
        node.store = saved.store.clone();
        self.tracker.goes_back(saved.node, &saved.progress);
    }

    /// What a master could be restarted with.
    pub fn save(&self, node: usize) -> Saved {
        let store = self.cluster.nodes[node].store.clone();
        let owners = &self.cluster.owners;
        let single = self.cluster.single;
        let is_there = |slot: Slot| single || owners[usize::from(slot)] == node;
        Saved {
            node,
            copy: self.tracker.copies,
            store,
            progress: self.tracker.progress(node, is_there),
        }
    }
}

/// What a master had at some moment.
pub struct Saved {
    node: usize,
    /// Which copy it is of.
    pub copy: u32,
    store: Store,
    progress: crate::tracker::Reached,
}

/// What a process hears whose link is another's.
pub fn taken_over() -> Fault {
    Fault::new(FaultKind::TakenOver, "the link was taken over")
}

fn run_of(node: &Node) -> ServerRun {
    let run_id = format!("{}-{}", node.id, node.runs);
    ServerRun {
        replid: format!("history of {run_id}"),
        run_id,
        followed: node.followed.clone(),
    }
}

fn text_of(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("bookkeeping is text")
}

/// Everything that the masters of a cluster hold of the link, for a process of this epoch.
pub fn bookkeeping(cluster: &Cluster, epoch: u32) -> Bookkeeping {
    let mut found = Bookkeeping {
        epoch,
        ..Bookkeeping::default()
    };
    for (held_by, key, value) in own_keys(cluster) {
        match value {
            Value::Hash(fields) => found
                .records
                .extend(fields.iter().map(|(field, text)| Found {
                    held_by: held_by.clone(),
                    slot: slot_of(key),
                    generation: text_of(field).parse().expect("a generation"),
                    record: Record::decode(text).expect("a record"),
                })),
            // The epoch.
            Value::Text(_) if bookkeeping_of(key).is_some_and(|(kind, _)| kind == 'e') => {}
            Value::Text(text) => {
                let mark = text_of(text).parse().expect("a watermark");
                found.found_mark(slot_of(key), mark);
            }
            other => panic!("bookkeeping is {other:?}"),
        }
    }
    found
}

/// Keys of the link, each with the master that holds it.
fn own_keys(cluster: &Cluster) -> impl Iterator<Item = (String, &Bytes, &Value)> {
    let nodes = cluster.nodes.iter().enumerate();
    nodes.flat_map(move |(index, node)| {
        let own = node.store.keys.iter();
        let own = own.filter(move |((_, key), _)| {
            is_bookkeeping(key) && cluster.serves(index, slot_of(key))
        });
        let id = id_of(cluster, node);
        own.map(move |((_, key), value)| (id.clone(), key, value))
    })
}

fn id_of(cluster: &Cluster, node: &Node) -> String {
    match cluster.single {
        true => cluster.topology().shards[0].master.id.clone(),
        false => node.id.clone(),
    }
}
