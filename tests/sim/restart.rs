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
use slotstream::engine::lane::Lane;
use slotstream::engine::records::Generations;
use slotstream::limits;
use slotstream::slot::{Slot, slot_of};

use crate::cluster::Node;
use crate::model::{Bytes, Store, Value};
use crate::trace;
use crate::world::{SourceSocket, TargetSocket, World};

/// A question of the lane about a target master, on its way.
pub struct FenceAsked {
    pub at_ms: u64,
    pub index: usize,
    pub number: u64,
    pub question: FenceQuestion,
}

impl World {
    /// The lane keeps records from its start.
    pub fn keep_records(&mut self) {
        self.config.generations = Some(self.generations.clone());
        let repeats = self.tracker.repeats;
        self.begin_again();
        self.tracker.repeats = repeats;
    }

    /// The process dies, and another takes its place at once.
    pub fn crash(&mut self) {
        trace::note(|| "the process dies, and another begins".into());
        self.epoch += 1;
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
        self.begin_again();
    }

    /// The lane begins again from what the target has.
    pub fn begin_again(&mut self) {
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
        let bookkeeping = self.bookkeeping();
        let topology = self.cluster.topology();
        let owner = |slot: Slot| topology.master_of(slot).map(|node| node.id.as_str());
        let start = bookkeeping.start(&self.cluster.lane, owner, self.cluster.single);
        trace::note(|| format!("the lane begins with {start:?}"));
        let mut config = self.config.clone();
        config.generations = Some(self.generations.clone());
        config.runs = self.runs();
        config.begin(start, self.cluster.single, &self.status);
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
        self.lane = Lane::new(config, Arc::clone(&topology), Arc::clone(&self.status));
        self.adopted = topology;
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
    pub fn runs(&self) -> Vec<(String, String)> {
        let nodes = self.cluster.nodes.iter();
        nodes.map(|node| (self.id_of(node), run_id(node))).collect()
    }

    fn id_of(&self, node: &Node) -> String {
        match self.cluster.single {
            true => self.adopted.shards[0].master.id.clone(),
            false => node.id.clone(),
        }
    }

    /// Everything that the masters hold of the link.
    pub fn bookkeeping(&self) -> Bookkeeping {
        let mut found = Bookkeeping {
            epoch: self.epoch,
            ..Bookkeeping::default()
        };
        for (held_by, key, value) in self.own_keys() {
            match value {
                Value::Hash(fields) => {
                    found
                        .records
                        .extend(fields.iter().map(|(field, text)| Found {
                            held_by: held_by.clone(),
                            slot: slot_of(key),
                            generation: text_of(field).parse().expect("a generation"),
                            record: Record::decode(text).expect("a record"),
                        }))
                }
                // The epoch.
                Value::Text(_) if bookkeeping_of(key).is_some_and(|(kind, _)| kind == 'e') => {}
                Value::Text(text) => {
                    let watermark = text_of(text).parse().expect("a watermark");
                    found.watermarks.insert(slot_of(key), watermark);
                }
                other => panic!("bookkeeping is {other:?}"),
            }
        }
        found
    }

    /// Keys of the link, each with the master that holds it.
    fn own_keys(&self) -> impl Iterator<Item = (String, &Bytes, &Value)> {
        self.cluster.nodes.iter().flat_map(|node| {
            let own = node
                .store
                .keys
                .iter()
                .filter(|((_, key), _)| is_bookkeeping(key));
            let id = self.id_of(node);
            own.map(move |((_, key), value)| (id.clone(), key, value))
        })
    }

    /// Answers questions whose time has come.
    pub fn answer_fences(&mut self) -> Vec<(usize, u64, FenceAnswer)> {
        let now_ms = self.now_ms;
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.fences)
            .into_iter()
            .partition(|asked| asked.at_ms <= now_ms);
        self.fences = later;
        due.into_iter()
            .map(|asked| (asked.index, asked.number, self.look(&asked.question)))
            .collect()
    }

    fn look(&mut self, question: &FenceQuestion) -> FenceAnswer {
        // Killed: whatever has not been executed by now never will be.
        let port = question.node.port;
        let nodes = &self.cluster.nodes;
        self.forsaken
            .retain(|(session, _)| nodes[session.node].port != port);
        let node = nodes.iter().find(|node| node.port == port && node.alive);
        let run_id = node.map(run_id);
        let marks: BTreeMap<Slot, Watermark> = self.bookkeeping().watermarks;
        let asked = question.slots.iter();
        FenceAnswer::Clear {
            run_id: run_id.filter(|_| question.connected),
            watermarks: asked
                .filter_map(|slot| Some((*slot, *marks.get(slot)?)))
                .collect(),
        }
    }

    /// A master is restarted from what it had saved a while ago.
    pub fn restart_from_snapshot(&mut self, saved: &Saved) {
        let node = saved.node;
        trace::note(|| format!("node {node} is restarted with what it had saved"));
        for index in 0..self.connections() {
            if self.node_of(index) == Some(node) {
                self.cut_target(index);
            }
        }
        self.forsaken.retain(|(session, _)| session.node != node);
        let node = &mut self.cluster.nodes[node];
        node.runs += 1;
        node.store = saved.store.clone();
        self.tracker.goes_back(&saved.progress);
    }

    /// What a master could be restarted with.
    pub fn save(&self, node: usize) -> Saved {
        let store = self.cluster.nodes[node].store.clone();
        let owners = &self.cluster.owners;
        let single = self.cluster.single;
        let is_there = |slot: Slot| single || owners[usize::from(slot)] == node;
        Saved {
            node,
            full_syncs: self.full_syncs,
            store,
            progress: self.tracker.progress(is_there),
        }
    }
}

/// What a master had at some moment.
pub struct Saved {
    node: usize,
    /// Which copy it is of.
    pub full_syncs: u64,
    store: Store,
    progress: crate::tracker::Reached,
}

fn run_id(node: &Node) -> String {
    format!("{}-{}", node.id, node.runs)
}

fn text_of(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("bookkeeping is text")
}
