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
//! # For the next process
//!
//! ```text
//! source's backlog                              [ ................... ]
//! on disk         [ kept ................................... ]
//!                 ^ recorded on the target                   ^ PSYNC
//! ```
//!
//! While the target is behind by more than [`limits::SPOOL_LAG_MS`], all that is received goes to disk as often, be it much or
//! little. A process that starts anew, or a lane that begins again from what the target has, takes it up from the offset that
//! is recorded there ([`Spooled`]), and asks the source for what comes behind it. It delivers nothing of it before the source
//! has said that it goes on from there: what a failover has lost must not reach the target.
//!
//! A lane that stops goes on to deliver what is spooled for [`limits::SPOOL_DRAIN_MS`]. What is left then is brought to disk,
//! and the lane ends as soon as what is in flight is answered. One that begins again brings all to disk before
//! ([`Lane::save`]).

use std::sync::atomic::Ordering::Relaxed;

use super::arrivals::Arrivals;
use super::lane::{Lane, LaneConfig, SourceLink};
use super::options::Ack;
use super::status::ResumeStep;
use crate::checkpoint::Resume;
use crate::fault::{Fault, FaultKind};
use crate::limits;
use crate::position::{Offset, Position, ReplicationId};
use crate::spool::{Order, Recovered, Spool, State, Survey, recover};

/// Where a lane goes on that finds the spool of a former process.
#[derive(Debug, Clone)]
pub struct Spooled {
    pub recovered: Recovered,
    /// The name of the history at its end.
    pub id: ReplicationId,
    /// Everything before is applied; it lies in what was recovered.
    pub acknowledged: Offset,
    /// The source's database that was selected there.
    pub database: u32,
}

impl Spooled {
    /// What a lane that goes on from `resume` can take up of these segments, if anything.
    pub fn from(resume: &Resume, segments: Vec<Survey>) -> Option<Self> {
        let recovered = recover(segments, resume.position.offset)?;
        Some(Self {
            id: recovered.serves(resume.position, resume.predecessor)?,
            recovered,
            acknowledged: resume.position.offset,
            database: resume.database,
        })
    }
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
        let (recovered, id) = (&spooled.recovered, spooled.id);
        let (begin, end) = (spooled.acknowledged, recovered.end().offset);
        if let Some(before) = self.history.filter(|before| *before != id)
            && let Some(records) = &mut self.records
        {
            let shared = recovered.end_of(before).unwrap_or_default();
            records.predecessor = Some(Position {
                id: before,
                offset: shared.max(begin),
            });
        }
        self.begin_at(id, begin);
        self.copied = true;
        self.taken_up = Some(begin);
        self.router.resume(spooled.database);
        self.arrivals.note_former(recovered.arrivals());
        // Its age counts from when this process began.
        self.arrivals.note(end, 0);
        let why = format!("what is spooled on disk reaches from offset {begin} to {end}");
        self.status.set_resume(ResumeStep::Spool, &why);
        self.status.set_replid(id.as_str());
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
    pub(super) fn stream_received(&mut self, bytes: usize, now_ms: u64) {
        match self.to_spool {
            false => self.intake.received(&mut self.chunks, bytes),
            true => {
                let unix_ms = self.unix_ms_at_zero + now_ms;
                self.spool.received(bytes, self.received(), unix_ms);
            }
        }
    }

    /// Takes in bytes of the stream that came together with what was before it.
    pub(super) fn take_early(&mut self, mut early: &[u8]) {
        if !self.spool.is_empty() {
            let unix_ms = self.unix_ms_at_zero + self.heard_ms;
            return self.spool.append(early, self.received(), unix_ms);
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
        let recorded = self.recorded(acknowledged);
        self.intake.acknowledge(&mut self.chunks, acknowledged);
        let shown = self.status.spool_state() != State::Empty;
        if !self.spool.is_active() && !shown && self.draining != Draining::Over {
            return;
        }
        self.spool.acknowledge(acknowledged, recorded);
        self.pump_spool();
        self.publish_spool();
    }

    fn pump_spool(&mut self) {
        let (intake, chunks, arrivals) = (&self.intake, &self.chunks, &self.arrivals);
        let (zero, heard_ms) = (self.unix_ms_at_zero, self.heard_ms);
        self.spool.pump(intake.kept_from(), |from, room| {
            let received_ms = received_at(arrivals, from, zero, heard_ms);
            (intake.copy_out(chunks, from, room), received_ms)
        });
    }

    /// When the byte at offset `at`, which is not acknowledged, was received: Unix time in milliseconds.
    pub(super) fn received_at_unix_ms(&self, at: Offset) -> u64 {
        received_at(&self.arrivals, at, self.unix_ms_at_zero, self.heard_ms)
    }

    /// Brings all that was received to disk, for the lane that takes this one's place; whether that has come to an end, one way
    /// or the other. To be called again when orders were executed.
    pub fn save(&mut self) -> bool {
        if !self.settled {
            return true;
        }
        if self.draining != Draining::Over {
            self.draining = Draining::Over;
            self.spool.flush(self.received());
        }
        self.pump_spool();
        self.spool.is_written()
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
        self.taken_up = None;
        let received = self.received();
        self.arrivals.cut(received);
        let text = format!("spool: {why}; asking the source again from offset {received}");
        Err(Fault::new(FaultKind::ConnectionLost, text))
    }

    /// Time has passed.
    pub(super) fn tick_spool(&mut self, now_ms: u64) {
        self.spool.tick(now_ms);
        if !self.stopping {
            let begun_ms = self.arrivals.oldest_ms().unwrap_or(now_ms);
            let since_ms = begun_ms.max(self.spooled_ms);
            if self.settled && since_ms + limits::SPOOL_LAG_MS <= now_ms {
                self.spooled_ms = now_ms;
                self.spool.flush(self.received());
            }
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

fn received_at(arrivals: &Arrivals, at: Offset, unix_ms_at_zero: u64, heard_ms: u64) -> u64 {
    let by_this_process = || unix_ms_at_zero + arrivals.at(at).unwrap_or(heard_ms);
    arrivals.former_at(at).unwrap_or_else(by_this_process)
}
