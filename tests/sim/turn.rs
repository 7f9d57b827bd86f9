//! One turn of the lane, in the order in which `runtime::lane_task` takes its turns: timer, dials, the disk, one read from the source,
//! replies of each target, what can be done now, writes.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use slotstream::engine::lookup::{LookupAnswer, LookupQuestion};
use slotstream::fault::{Fault, FaultKind, Policy};
use slotstream::limits;
use slotstream::topology::Topology;

use crate::cluster;
use crate::model::{self, Bytes};
use crate::restart::FenceAsked;
use crate::trace;
use crate::world::{SOURCE_PORT, SourceSocket, TargetSocket, World};

impl World {
    pub fn turn(&mut self) -> Result<(), Fault> {
        if self.now_ms >= self.next_tick_ms {
            self.next_tick_ms = self.now_ms + limits::TICK.as_millis() as u64;
            self.tick()?;
        }
        self.hear_of_ends()?;
        self.dial()?;
        while let Some((ticket, result)) = self.disk.next_done(self.now_ms) {
            let heard = self.lane.spool_done(ticket, result);
            self.or_lose_source(heard)?;
        }
        self.read_source()?;
        for index in 0..self.sockets.len() {
            self.read_target(index)?;
        }
        let advanced = self.lane.advance();
        self.or_lose_source(advanced)?;
        while let Some((ticket, order)) = self.lane.take_spool_order() {
            self.disk.order(ticket, order, self.now_ms);
        }
        for index in self.lane.take_cut() {
            self.close_target(index);
        }
        for index in 0..self.sockets.len() {
            self.write_target(index);
        }
        self.write_source();
        Ok(())
    }

    fn tick(&mut self) -> Result<(), Fault> {
        let now_ms = self.now_ms;
        let due: Vec<Arc<Topology>> = {
            let (due, later) = std::mem::take(&mut self.views)
                .into_iter()
                .partition(|view| view.0 <= now_ms);
            self.views = later;
            let due: Vec<(u64, Arc<Topology>)> = due;
            due.into_iter().map(|view| view.1).collect()
        };
        for topology in due {
            if topology != self.adopted {
                trace::note(|| "the lane gets a view of the target".into());
                self.adopted = Arc::clone(&topology);
                self.lane.adopt_target(&topology, now_ms);
            }
        }
        if let Some((at_ms, question)) = self.asked.take() {
            if at_ms <= now_ms {
                self.lane.answer(answer(&question))?;
            } else {
                self.asked = Some((at_ms, question));
            }
        }
        if let Some(question) = self.lane.take_question() {
            trace::note(|| format!("the lane asks {question:?}"));
            self.questions += 1;
            self.asked = Some((now_ms + self.rng.below(200) as u64, question));
        }
        while let Some((index, number, question)) = self.lane.take_fence_question() {
            trace::note(|| format!("the lane asks about {question:?}"));
            self.fences.push(FenceAsked {
                at_ms: now_ms + self.rng.below(100) as u64,
                index,
                number,
                question,
                answer: None,
            });
        }
        for (index, number, answer) in self.answer_fences() {
            self.lane.fenced(index, number, answer, now_ms)?;
        }
        self.talk_of_mends()?;
        let ticked = self.lane.tick(now_ms);
        self.or_lose_source(ticked)?;
        if self.lane.take_hint() {
            let delay = 20 + self.rng.below(200) as u64;
            self.publish_view(delay);
        }
        Ok(())
    }

    fn or_lose_source(&mut self, result: Result<(), Fault>) -> Result<(), Fault> {
        let Err(fault) = result else { return Ok(()) };
        trace::note(|| format!("the source is given up: {fault}"));
        self.source_socket = SourceSocket::None;
        self.lane.source_lost(fault, self.now_ms)
    }

    fn dial(&mut self) -> Result<(), Fault> {
        if let Some((_, port)) = self.lane.dial_source(self.now_ms) {
            assert_eq!(port, SOURCE_PORT);
            let at_ms = self.now_ms + self.rng.below(20) as u64;
            self.source_socket = SourceSocket::Dialing { at_ms };
        }
        if let SourceSocket::Dialing { at_ms } = self.source_socket
            && at_ms <= self.now_ms
        {
            if self.now_ms < self.source_down_until_ms || self.is_rival {
                self.or_lose_source(Err(unreachable()))?;
            } else {
                trace::note(|| "the source connection is up".into());
                let session = self.source.accept();
                self.source_socket = SourceSocket::Up {
                    session,
                    to_source: Vec::new(),
                    to_lane: Vec::new(),
                };
                self.lane.source_connected();
            }
        }
        while let Some((index, _, port)) = self.lane.dial_target(self.now_ms) {
            self.sockets
                .resize_with(self.lane.target_count(), || TargetSocket::None);
            let at_ms = self.now_ms + self.rng.below(20) as u64;
            self.sockets[index] = TargetSocket::Dialing { at_ms, port };
        }
        for index in 0..self.sockets.len() {
            let TargetSocket::Dialing { at_ms, port } = self.sockets[index] else {
                continue;
            };
            if at_ms > self.now_ms {
                continue;
            }
            match self.cluster.node_at(port) {
                Some(node) => {
                    trace::note(|| format!("target connection {index} to node {node} is up"));
                    let session = cluster::Session::new(node, self.epoch);
                    self.sockets[index] = TargetSocket::Up {
                        session,
                        wire: Vec::new(),
                    };
                    self.lane.target_connected(index);
                }
                None => {
                    trace::note(|| {
                        format!("nobody is at port {port} for target connection {index}")
                    });
                    self.lose_target(index, unreachable());
                }
            }
        }
        Ok(())
    }

    fn read_source(&mut self) -> Result<(), Fault> {
        let available = self.source_wire();
        let count = self.hop(available);
        let SourceSocket::Up { to_lane, .. } = &mut self.source_socket else {
            return Ok(());
        };
        if count == 0 {
            return Ok(());
        }
        let Some(space) = self.lane.source_space() else {
            return Ok(());
        };
        let count = count.min(space.len());
        assert!(count > 0, "the lane offers no room");
        space[..count].copy_from_slice(&to_lane[..count]);
        to_lane.drain(..count);
        let result = self.lane.source_received(count, self.now_ms);
        let full_syncs = self.status.full_syncs.load(Relaxed);
        if full_syncs != self.full_syncs && !self.is_rival {
            self.full_syncs = full_syncs;
            trace::note(|| "the lane hears of a snapshot".into());
            let again = self.tracker.awaits_copy();
            self.tracker.heard_of_copy();
            for socket in &mut self.sockets {
                if let TargetSocket::Up { session, wire } = socket {
                    session.begin_anew(wire, again);
                }
            }
            // What lost connections still bring is of before as well.
            for (session, wire) in &mut self.forsaken {
                session.begin_anew(wire, again);
            }
        }
        self.or_lose_source(result)
    }

    fn read_target(&mut self, index: usize) -> Result<(), Fault> {
        let available = match &self.sockets[index] {
            TargetSocket::Up { session, .. } => session.output.len(),
            _ => 0,
        };
        let count = self.hop(available).min(limits::REPLY_READ_BYTES);
        let TargetSocket::Up { session, .. } = &mut self.sockets[index] else {
            return Ok(());
        };
        if count == 0 {
            return Ok(());
        }
        let bytes: Bytes = session.output.drain(..count).collect();
        if let Err(fault) = self.lane.target_received(index, &bytes, self.now_ms) {
            if fault.policy() != Policy::Retry {
                return Err(fault);
            }
            trace::note(|| format!("target connection {index} is given up: {fault}"));
            self.lose_target(index, fault);
        }
        Ok(())
    }

    fn write_target(&mut self, index: usize) {
        let TargetSocket::Up { session, wire } = &mut self.sockets[index] else {
            return;
        };
        for _ in 0..4 {
            let room = (self.network.chunk * 4).saturating_sub(wire.len());
            if room == 0 || self.rng.percent(self.network.stall_percent) {
                return;
            }
            let mut pieces = [IoSlice::new(&[]); limits::MAX_PIECES];
            let count = self.lane.target_gather(index, &mut pieces);
            let total: usize = pieces[..count].iter().map(|piece| piece.len()).sum();
            if count == 0 {
                return;
            }
            assert!(total > 0, "the lane gathers nothing");
            let written = self.rng.between(1, total.min(room));
            let bytes = pieces[..count]
                .iter()
                .flat_map(|piece| piece.iter().copied());
            wire.extend(bytes.take(written));
            self.lane.target_written(index, written);
        }
        let _ = session;
    }

    fn write_source(&mut self) {
        let count = self.lane.source_output().len();
        let count = self.hop(count);
        if let SourceSocket::Up { to_source, .. } = &mut self.source_socket
            && count > 0
        {
            to_source.extend_from_slice(&self.lane.source_output()[..count]);
            self.lane.source_written(count);
        }
    }
}

/// What a source that knows the commands of the simulated module answers.
fn answer(question: &LookupQuestion) -> LookupAnswer {
    match question {
        LookupQuestion::Positions { verb } if verb == b"SIM.SET" => LookupAnswer::Positions {
            first: 1,
            last: 1,
            step: 1,
            movable: false,
            write: true,
        },
        LookupQuestion::Positions { verb } if verb == b"SIM.PAIR" => LookupAnswer::Positions {
            first: 0,
            last: 0,
            step: 0,
            movable: true,
            write: true,
        },
        LookupQuestion::Keys { args } => {
            let places = model::key_places(args);
            LookupAnswer::Keys(places.into_iter().map(|at| args[at].clone()).collect())
        }
        LookupQuestion::Positions { verb } => {
            LookupAnswer::Unknown(format!("ERR unknown command {}", verb.escape_ascii()))
        }
    }
}

fn unreachable() -> Fault {
    Fault::new(FaultKind::Unreachable, "cannot connect")
}
