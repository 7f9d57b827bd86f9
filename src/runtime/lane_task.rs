//! One lane's task: turns of reading, advancing, writing, until the lane is done.
//!
//! ```text
//! turn:  tick -> dials that came through -> results of the spool's files -> one read from the source -> writes to each target
//!        -> replies of each target -> advance -> writes to each target -> writes to the source
//! ```
//!
//! A turn that found anything to do is followed by another after the core's other lanes had theirs; when none found
//! anything, the core sleeps until a socket or the tick. So at low rates each byte is passed on in the turn that its arrival
//! wakes, without a timer on its way, and at high rates each turn moves as much as a read brings.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::connection::{Connection, Dial};
use super::ring::Ring;
use super::spool_files::LaneDesk;
use crate::engine::lane::Lane;
use crate::engine::shared::Shared;
use crate::engine::status::{LaneState, LaneStatus};
use crate::fault::{Fault, FaultKind, Policy};
use crate::limits;
use crate::slot::SlotSet;
use crate::topology::Node;

/// What the supervisor tells a lane.
pub(super) enum Order {
    /// The source master is this node now.
    Follow(Node),
    /// These slots are the lane's from now on.
    Take(SlotSet),
    /// These are no more.
    Leave(SlotSet),
    /// There is nothing left to follow.
    End,
}

/// What a lane's task needs beside the lane.
pub(super) struct Surroundings {
    pub status: Arc<LaneStatus>,
    pub shared: Arc<Shared>,
    pub orders: Receiver<Order>,
    pub ring: Ring,
    pub spool: LaneDesk,
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// There may be more to do.
    Busy,
    /// There is nothing to do before a socket is ready or the next tick.
    Idle,
    /// The lane has ended; how is in its status.
    Done,
}

/// One end of a lane: being dialled, connected, or neither.
enum Socket {
    None,
    Dialing(Dial),
    Up(Connection),
}

/// A lane with its sockets.
pub(super) struct LaneTask {
    lane: Lane,
    around: Surroundings,
    source: Socket,
    targets: Vec<Socket>,
    replies: Box<[u8]>,
    target_version: u64,
    /// Ticket of the last question to the source.
    ticket: u64,
    /// Tickets of questions about target connections: connection, and the lane's number.
    fences: HashMap<u64, (usize, u64)>,
    /// Tickets of questions about keys: the lane's number.
    mends: HashMap<u64, u64>,
    /// The same of questions about slots.
    listings: HashMap<u64, u64>,
    /// When the lane was told to stop; it then has so long to finish.
    stopping_since: Option<Instant>,
    /// Why the lane begins again, and when that was decided: what it received is brought to disk before.
    leaving: Option<(Fault, Instant)>,
}

/// A lane whose thread panics is shown as failed: nobody else would notice that it is gone.
impl Drop for LaneTask {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = "a lane ended by a mistake of this program; please report what stands above";
            self.fail(Fault::new(FaultKind::Runtime, text));
        }
    }
}

/// Unix time in milliseconds.
fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |elapsed| {
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    })
}

impl LaneTask {
    pub fn new(lane: Lane, around: Surroundings) -> Self {
        Self {
            lane,
            around,
            target_version: 0,
            ticket: 0,
            fences: HashMap::new(),
            mends: HashMap::new(),
            listings: HashMap::new(),
            source: Socket::None,
            targets: Vec::new(),
            replies: vec![0; limits::REPLY_READ_BYTES].into(),
            stopping_since: None,
            leaving: None,
        }
    }

    /// Does what can be done now; `tick` says that it is time for what no socket tells of.
    pub fn turn(&mut self, now: Instant, tick: bool) -> Turn {
        if self.leaving.is_some() {
            return self.leave(now);
        }
        match self.try_turn(now, tick) {
            Err(fault) if fault.policy() == Policy::Restart => {
                self.around.status.set_message(&fault.message);
                self.around.status.set_state(LaneState::Recovering);
                self.source = Socket::None;
                self.targets.clear();
                self.leaving = Some((fault, now));
                self.leave(now)
            }
            Err(fault) => {
                self.fail(fault);
                Turn::Done
            }
            Ok(_) if self.is_done() => {
                self.lane.finish();
                Turn::Done
            }
            Ok(true) => Turn::Busy,
            Ok(false) => Turn::Idle,
        }
    }

    /// The lane that begins again will find what this one received.
    fn leave(&mut self, now: Instant) -> Turn {
        for (ticket, result) in self.around.spool.take_results() {
            // What was damaged is lost to it, and it asks the source.
            let _ = self.lane.spool_done(ticket, result);
        }
        let saved = self.lane.save();
        self.order_spool();
        let patience = Duration::from_millis(limits::SPOOL_SAVE_MS);
        let over = |since: Instant| saved || now.duration_since(since) > patience;
        match self.leaving.take_if(|(_, since)| over(*since)) {
            Some((fault, _)) => {
                self.around.shared.ask_restart(self.around.status.id, fault);
                Turn::Done
            }
            None => Turn::Idle,
        }
    }

    pub fn fail(&self, fault: Fault) {
        self.around.status.fail(fault);
    }

    fn try_turn(&mut self, now: Instant, tick: bool) -> Result<bool, Fault> {
        let now_ms = self.around.shared.millis_at(now);
        if tick {
            self.tick(now_ms)?;
        }
        let mut busy = tick | self.dial(now, now_ms)?;
        if self.around.spool.has_results() {
            self.hear_spool(now_ms)?;
            busy = true;
        }
        // What the source brings is passed on before anything else is looked at: that is the lag.
        if self.read_source(now_ms)? {
            self.write_targets(now_ms)?;
            busy = true;
        }
        for index in 0..self.targets.len() {
            busy |= self.read_target(index, now_ms, tick)?;
        }
        if busy {
            let advanced = self.lane.advance();
            self.or_lose_source(advanced, now_ms)?;
            self.order_spool();
        }
        for index in self.lane.take_cut() {
            self.targets[index] = Socket::None;
            busy = true;
        }
        busy |= self.write_targets(now_ms)?;
        busy |= self.write_source(now_ms)?;
        if !busy {
            self.set_read_floors();
        }
        Ok(busy)
    }

    fn hear_spool(&mut self, now_ms: u64) -> Result<(), Fault> {
        for (ticket, result) in self.around.spool.take_results() {
            let heard = self.lane.spool_done(ticket, result);
            self.or_lose_source(heard, now_ms)?;
        }
        Ok(())
    }

    fn order_spool(&mut self) {
        while let Some((ticket, order)) = self.lane.take_spool_order() {
            self.around.spool.submit(&self.around.ring, ticket, order);
        }
    }

    /// Instants never jump, the wall clock may: their distance is told anew with every tick.
    fn set_wall_clock(&mut self) {
        let now_ms = self.around.shared.millis_at(Instant::now());
        self.lane.set_wall_clock(unix_ms().saturating_sub(now_ms));
    }

    fn write_targets(&mut self, now_ms: u64) -> Result<bool, Fault> {
        let mut busy = false;
        for index in 0..self.targets.len() {
            busy |= self.write_target(index, now_ms)?;
        }
        Ok(busy)
    }

    /// Lets replies gather in the kernel while many are due.
    fn set_read_floors(&mut self) {
        for (index, socket) in self.targets.iter_mut().enumerate() {
            if let Socket::Up(connection) = socket {
                let due = self.lane.target_replies_due(index);
                connection.set_read_floor(read_floor(due));
            }
        }
    }

    fn tick(&mut self, now_ms: u64) -> Result<(), Fault> {
        self.set_wall_clock();
        self.hear_orders(now_ms)?;
        if self.around.shared.stop_requested() {
            self.stop();
        }
        let version = self.around.shared.target.version();
        if version != self.target_version {
            let (version, topology) = self.around.shared.target.load();
            self.target_version = version;
            self.lane.adopt_target(&topology, now_ms);
        }
        let answers = {
            let (desk, lane) = (&self.around.shared.lookup, self.around.status.id);
            desk.take_answers(lane)
        };
        for (ticket, answer) in answers {
            // It may have asked for something else in the meantime.
            if ticket == self.ticket {
                let answered = self.lane.answer(answer);
                self.or_lose_source(answered, now_ms)?;
            }
        }
        self.talk_of_mends(now_ms)?;
        self.talk_of_slots(now_ms)?;
        if let Some(question) = self.lane.take_question() {
            let desk = &self.around.shared.lookup;
            self.ticket = desk.ask(self.around.status.id, question);
        }
        self.hear_fence(now_ms)?;
        let ticked = self.lane.tick(now_ms);
        self.or_lose_source(ticked, now_ms)?;
        if self.lane.take_hint() {
            self.around.shared.hint();
        }
        Ok(())
    }

    /// Passes questions about target connections on, and answers back.
    fn hear_fence(&mut self, now_ms: u64) -> Result<(), Fault> {
        let (desk, lane) = (&self.around.shared.fence, self.around.status.id);
        while let Some((index, number, question)) = self.lane.take_fence_question() {
            self.fences
                .insert(desk.ask(lane, question), (index, number));
        }
        for (ticket, answer) in desk.take_answers(lane) {
            // The answers to a lane that had this number before are not among them.
            if let Some((index, number)) = self.fences.remove(&ticket) {
                self.lane.fenced(index, number, answer, now_ms)?;
            }
        }
        Ok(())
    }

    /// Answers about keys that are to be mended, and the next questions.
    fn talk_of_mends(&mut self, now_ms: u64) -> Result<(), Fault> {
        let lane = self.around.status.id;
        for (ticket, answer) in self.around.shared.mend.take_answers(lane) {
            // The answers to a lane that had this number before are not among them.
            if let Some(number) = self.mends.remove(&ticket) {
                let answered = self.lane.mend_answered(number, answer);
                self.or_lose_source(answered, now_ms)?;
            }
        }
        for (number, question) in self.lane.take_mend_questions() {
            let ticket = self.around.shared.mend.ask(lane, question);
            self.mends.insert(ticket, number);
        }
        Ok(())
    }

    /// The same about slots that have moved; and what the lane has left for good.
    fn talk_of_slots(&mut self, now_ms: u64) -> Result<(), Fault> {
        let lane = self.around.status.id;
        for (ticket, answer) in self.around.shared.listing.take_answers(lane) {
            // As above.
            if let Some(number) = self.listings.remove(&ticket) {
                let answered = self.lane.listed(number, answer);
                self.or_lose_source(answered, now_ms)?;
            }
        }
        for (number, question) in self.lane.take_list_questions() {
            let ticket = self.around.shared.listing.ask(lane, question);
            self.listings.insert(ticket, number);
        }
        let left = self.lane.take_left();
        if !left.is_empty() {
            self.around.shared.tell_left(lane, left);
        }
        Ok(())
    }

    fn hear_orders(&mut self, now_ms: u64) -> Result<(), Fault> {
        loop {
            match self.around.orders.try_recv() {
                Ok(Order::Follow(node)) => {
                    if self.lane.follow(node) {
                        let moved = "another node is the master now";
                        let fault = Fault::new(FaultKind::ConnectionLost, moved);
                        self.or_lose_source(Err(fault), now_ms)?;
                    }
                }
                Ok(Order::Take(slots)) => self.lane.take(&slots),
                Ok(Order::Leave(slots)) => self.lane.leave(&slots),
                Ok(Order::End) | Err(TryRecvError::Disconnected) => {
                    self.stop();
                    return Ok(());
                }
                Err(TryRecvError::Empty) => return Ok(()),
            }
        }
    }

    fn stop(&mut self) {
        match self.around.shared.ends_for_good() {
            true => self.lane.stop(),
            false => self.lane.stop_for_now(),
        }
        self.stopping_since.get_or_insert_with(Instant::now);
    }

    fn is_done(&self) -> bool {
        self.stopping_since
            .is_some_and(|since| self.lane.is_done() || since.elapsed() > limits::DRAIN_TIMEOUT)
    }

    /// A fault of the source side: the connection is closed, and the lane decides whether to try again.
    fn or_lose_source(&mut self, result: Result<(), Fault>, now_ms: u64) -> Result<(), Fault> {
        let Err(fault) = result else { return Ok(()) };
        self.source = Socket::None;
        self.lane.source_lost(fault, now_ms)
    }

    fn lose_target(&mut self, index: usize, fault: Fault, now_ms: u64) -> Result<(), Fault> {
        self.targets[index] = Socket::None;
        self.lane.target_lost(index, fault, now_ms)
    }

    fn dial(&mut self, now: Instant, now_ms: u64) -> Result<bool, Fault> {
        let mut busy = false;
        if let Some((host, port)) = self.lane.dial_source(now_ms) {
            self.source = Socket::Dialing(Dial::start(host, port));
        }
        if let Socket::Dialing(dialing) = &mut self.source
            && let Some(result) = dialing.poll(&self.around.ring, now)
        {
            busy = true;
            match result {
                Ok(connection) => {
                    self.source = Socket::Up(connection);
                    self.lane.source_connected();
                }
                Err(fault) => self.or_lose_source(Err(fault), now_ms)?,
            }
        }
        while let Some((index, host, port)) = self.lane.dial_target(now_ms) {
            self.targets
                .resize_with(self.lane.target_count(), || Socket::None);
            self.targets[index] = Socket::Dialing(Dial::start(host, port));
        }
        for index in 0..self.targets.len() {
            if let Socket::Dialing(dialing) = &mut self.targets[index]
                && let Some(result) = dialing.poll(&self.around.ring, now)
            {
                busy = true;
                match result {
                    Ok(connection) => {
                        self.targets[index] = Socket::Up(connection);
                        self.lane.target_connected(index);
                    }
                    Err(fault) => self.lose_target(index, fault, now_ms)?,
                }
            }
        }
        Ok(busy)
    }

    fn read_source(&mut self, now_ms: u64) -> Result<bool, Fault> {
        let Socket::Up(connection) = &self.source else {
            return Ok(false);
        };
        if !connection.is_readable() {
            return Ok(false);
        }
        let Some(space) = self.lane.source_space() else {
            return Ok(false);
        };
        let result = match connection.read(space) {
            Ok(None) => return Ok(false),
            Ok(Some(0)) => Err(closed()),
            Ok(Some(count)) => self.lane.source_received(count, now_ms),
            Err(error) => Err(broken(&error)),
        };
        self.or_lose_source(result, now_ms)?;
        Ok(true)
    }

    /// At a tick also what the kernel has not told of is read.
    fn read_target(&mut self, index: usize, now_ms: u64, tick: bool) -> Result<bool, Fault> {
        let Socket::Up(connection) = &self.targets[index] else {
            return Ok(false);
        };
        if !connection.is_readable() && !tick {
            return Ok(false);
        }
        let result = match connection.read(&mut self.replies) {
            Ok(None) => return Ok(false),
            Ok(Some(0)) => Err(closed()),
            Ok(Some(count)) => self
                .lane
                .target_received(index, &self.replies[..count], now_ms),
            Err(error) => Err(broken(&error)),
        };
        if let Err(fault) = result {
            // What stops the lane is not a matter of this connection.
            if fault.policy() != Policy::Retry {
                return Err(fault);
            }
            self.lose_target(index, fault, now_ms)?;
        }
        Ok(true)
    }

    fn write_target(&mut self, index: usize, now_ms: u64) -> Result<bool, Fault> {
        let Socket::Up(connection) = &mut self.targets[index] else {
            return Ok(false);
        };
        let mut busy = false;
        while self.lane.target_has_output(index) {
            let mut pieces = [IoSlice::new(&[]); limits::MAX_PIECES];
            let count = self.lane.target_gather(index, &mut pieces);
            if count == 0 {
                break;
            }
            match connection.write(&pieces[..count]) {
                Ok(None) => return Ok(busy),
                Ok(Some(written)) => self.lane.target_written(index, written),
                Err(error) => {
                    self.lose_target(index, broken(&error), now_ms)?;
                    return Ok(true);
                }
            }
            busy = true;
        }
        Ok(busy)
    }

    fn write_source(&mut self, now_ms: u64) -> Result<bool, Fault> {
        let Socket::Up(connection) = &mut self.source else {
            return Ok(false);
        };
        let output = self.lane.source_output();
        if output.is_empty() {
            return Ok(false);
        }
        match connection.write(&[IoSlice::new(output)]) {
            Ok(None) => return Ok(false),
            Ok(Some(written)) => self.lane.source_written(written),
            Err(error) => self.or_lose_source(Err(broken(&error)), now_ms)?,
        }
        Ok(true)
    }
}

/// How many bytes of replies are worth a wake-up when so many replies are due. Fewer than those must bring, even if one
/// was read in part, so that the last one always wakes.
fn read_floor(due: u64) -> usize {
    let together = limits::REPLIES_TOGETHER
        .iter()
        .find(|(least, _)| due >= *least);
    together.map_or(1, |(_, replies)| {
        *replies as usize * limits::MIN_REPLY_BYTES
    })
}

fn closed() -> Fault {
    Fault::new(
        FaultKind::ConnectionLost,
        "the connection was closed by the other side",
    )
}

fn broken(error: &io::Error) -> Fault {
    Fault::new(
        FaultKind::ConnectionLost,
        format!("the connection broke: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_due_reply_always_wakes() {
        for due in 0..10_000_u64 {
            // One reply may have been read but for its last byte.
            let least = due.saturating_sub(1) as usize * limits::MIN_REPLY_BYTES + 1;
            assert!((1..=least).contains(&read_floor(due)), "{due} due");
        }
    }
}
