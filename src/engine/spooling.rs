//! The lane and its spool: what is received while the lane's buffers are full, or while it has to stand still.
//!
//! ```text
//! source -> [ spool, if it holds anything or the intake has no room ] -> intake -> commands
//! ```
//!
//! What asks for an answer in the stream (`REPLCONF GETACK`, which `WAIT` sends) is seen when it is routed: behind a spool it
//! is answered late. `REPLCONF ACK` every second is not, so the source keeps its replica. It says what is applied, unless
//! `--ack received` asks for what was received.
//!
//! A lane that stops goes on to deliver what is spooled for [`limits::SPOOL_DRAIN_MS`]. What is left then is brought to disk,
//! from the acknowledged offset on, and the lane ends as soon as what is in flight is answered: a process that starts from
//! that offset can take it from there ([`Spooled`]).

use std::sync::atomic::Ordering::Relaxed;

use super::lane::{Lane, LaneConfig, SourceLink};
use super::options::Ack;
use crate::fault::{Fault, FaultKind};
use crate::limits;
use crate::position::Offset;
use crate::spool::{Order, Recovered, Spool, State};

/// Where a lane goes on that finds the spool of a former process.
#[derive(Debug, Clone)]
pub struct Spooled {
    pub recovered: Recovered,
    /// Everything before is applied; it lies in what was recovered.
    pub acknowledged: Offset,
    /// The source's database that was selected there.
    pub database: u32,
}

/// How a lane that stops comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Draining {
    #[default]
    No,
    /// The lane delivers what is spooled until then.
    Until(u64),
    /// What is left goes to disk.
    Over,
}

impl LaneConfig {
    pub(super) fn new_spool(&self) -> Spool {
        let settings = self.spool.clone();
        match &self.spooled {
            None => Spool::new(settings),
            Some(spooled) => Spool::resumed(settings, &spooled.recovered, spooled.acknowledged),
        }
    }
}

impl Lane {
    /// Takes up what a former process left: the source is asked for what comes after it.
    pub(super) fn take_up(&mut self) {
        let Some(spooled) = self.config.spooled.take() else {
            return;
        };
        let end = spooled.recovered.end();
        let begin = spooled.acknowledged;
        self.status.set_replid(end.id.as_str());
        self.begin_at(end.id, begin);
        self.copied = true;
        self.router.resume(spooled.database);
        // When it was received is not known: for all that counts, when this process began.
        self.arrivals.note(end.offset, 0);
    }

    /// Where to receive the stream into; `None` while nothing may be read.
    pub(super) fn stream_space(&mut self) -> Option<&mut [u8]> {
        self.to_spool = !self.spool.is_empty() || self.hold.is_some() || {
            let alone = self.targets.is_idle();
            !self.intake.make_room(&mut self.chunks, alone)
        };
        match self.to_spool {
            false => Some(self.intake.free(&mut self.chunks)),
            true => self.spool.space(),
        }
    }

    /// Bytes were received into [`Lane::stream_space`].
    pub(super) fn stream_received(&mut self, bytes: usize) {
        match self.to_spool {
            false => self.intake.received(&mut self.chunks, bytes),
            true => self.spool.received(bytes, self.received()),
        }
    }

    /// Takes in bytes of the stream that came together with what was before it.
    pub(super) fn take_early(&mut self, mut early: &[u8]) {
        if !self.spool.is_empty() {
            return self.spool.append(early, self.received());
        }
        while !early.is_empty() {
            let space = self
                .intake
                .space(&mut self.chunks, true)
                .expect("there is always room for a single command");
            let count = space.len().min(early.len());
            space[..count].copy_from_slice(&early[..count]);
            self.intake.received(&mut self.chunks, count);
            early = &early[count..];
        }
    }

    /// Routes what was received, and what is spooled as far as there is room for it.
    pub(super) fn stream_on(&mut self) -> Result<(), Fault> {
        self.route_on()?;
        while self.refill() {
            self.route_on()?;
        }
        Ok(())
    }

    /// Moves bytes from the spool's head to the intake; whether there were any.
    fn refill(&mut self) -> bool {
        if self.spool.is_empty() || self.hold.is_some() || self.draining == Draining::Over {
            return false;
        }
        let head = self.spool.head();
        let alone = self.targets.is_idle();
        if head.is_empty() || !self.intake.make_room(&mut self.chunks, alone) {
            return false;
        }
        let room = self.intake.free(&mut self.chunks);
        let count = room.len().min(head.len());
        room[..count].copy_from_slice(&head[..count]);
        self.intake.received(&mut self.chunks, count);
        self.spool.take(count);
        true
    }

    /// Tells the spool how far the target is, and lets it read and write.
    pub(super) fn spool_on(&mut self, acknowledged: Offset) {
        self.intake.acknowledge(&mut self.chunks, acknowledged);
        let shown = self.status.spool_state() != State::Empty;
        if !self.spool.is_active() && !shown && self.draining != Draining::Over {
            return;
        }
        self.spool.acknowledge(acknowledged);
        let (intake, chunks) = (&self.intake, &self.chunks);
        self.spool
            .pump(|from, room| intake.copy_out(chunks, from, room));
        self.publish_spool();
    }

    pub(super) fn publish_spool(&mut self) {
        let bytes = self.spool.bytes();
        self.status.spool_bytes.store(bytes, Relaxed);
        self.status.set_spool_state(self.spool.state());
        let message = self.spool.message();
        if self.spool_message != message {
            if let Some(message) = &message {
                self.status.set_message(message);
            }
            self.spool_message = message;
        }
    }

    /// What is to be done with the spool's files, with a ticket for its result.
    pub fn take_spool_order(&mut self) -> Option<(u64, Order)> {
        self.spool.take_order()
    }

    /// The result of an order: what was read, or why it failed.
    ///
    /// # Errors
    /// The source connection must be closed and [`Lane::source_lost`] be told, with this fault.
    pub fn spool_done(
        &mut self,
        ticket: u64,
        result: Result<Vec<u8>, String>,
    ) -> Result<(), Fault> {
        self.spool.done(ticket, result);
        let Some(why) = self.spool.take_damage() else {
            return Ok(());
        };
        // What was spooled behind the damage is lost; the source may still have it.
        let received = self.received();
        self.arrivals.cut(received);
        let text = format!("spool: {why}; asking the source again from offset {received}");
        Err(Fault::new(FaultKind::ConnectionLost, text))
    }

    /// Time has passed.
    pub(super) fn tick_spool(&mut self, now_ms: u64) {
        self.spool.tick(now_ms);
        if !self.stopping {
            return;
        }
        match self.draining {
            Draining::No => self.draining = Draining::Until(now_ms + limits::SPOOL_DRAIN_MS),
            Draining::Until(at_ms) if at_ms <= now_ms => {
                self.draining = Draining::Over;
                if self.settled {
                    self.spool.flush(self.received());
                }
            }
            _ => {}
        }
    }

    /// Whether a stopping lane needs its spool no more.
    pub(super) fn is_spool_done(&self) -> bool {
        self.spool.is_empty() || (self.draining == Draining::Over && self.is_saved())
    }

    fn is_saved(&self) -> bool {
        !self.settled || self.spool.is_flushed()
    }

    /// What the source is to be told: how far we are.
    pub(super) fn offset_to_tell(&self) -> Offset {
        let streaming = matches!(self.link, SourceLink::Streaming);
        match self.config.ack {
            Ack::Received if streaming => self.received(),
            _ if self.settled => self.progress().acknowledged,
            _ => Offset::default(),
        }
    }
}
