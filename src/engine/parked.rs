//! A slot that waits: its commands are kept in order until they may go on.
//!
//! A slot parks when the target refused one of its commands (a redirect, a passing failure), or when its owner
//! changed while commands for the former owner have no answer yet. While it is parked, later commands queue behind;
//! refused ones come first, in the order in which they were sent. It is released when the connections that it
//! waits for have answered everything that they were given before, so that nothing can overtake.
//!
//! What was refused for now is not all sent again to find out whether the refusal has passed:
//!
//! ```text
//! master refuses -> its gate closes -> after a while one slot sends its first command   -> refused: a longer while
//!                                      (a slot that alone was refused has no gate)      -> taken: the gate opens
//! gate open      -> every such slot sends its first command -> taken: it sends all else
//! ```
//!
//! So a master that refuses for long is asked once a second. And of one slot no two commands are on their way when a
//! refusal ends: the first could be refused and the second taken, in the wrong order.

use std::collections::VecDeque;

use crate::limits;
use crate::position::Offset;
use crate::target::Unit;

/// Units of one slot, in the order of its three queues.
#[derive(Debug, Default)]
pub struct Parked {
    /// Refused by the target, in the order in which they were sent.
    pub refused: VecDeque<Unit>,
    /// Sent behind those, to a connection that was lost before it answered.
    pub returned: VecDeque<Unit>,
    /// Came while the slot was parked.
    pub queued: VecDeque<Unit>,
    /// Connections, by index, and the run number up to which each must have answered.
    barriers: Vec<(usize, u64)>,
    /// Who shall get the refused units behind `ASKING`.
    pub ask: Option<usize>,
    /// Not to be released before this time, in milliseconds.
    pub not_before_ms: u64,
    /// Its first command was refused for now, and goes out alone.
    pub retry: Option<Retry>,
}

/// How a slot that was refused for now is tried again.
#[derive(Debug, Default)]
pub struct Retry {
    pub attempts: u32,
    /// The refusal was about this slot, not about the master: its gate means nothing.
    pub slot_only: bool,
    /// The first command is on its way alone.
    pub probe: Option<Probe>,
}

/// A single command that finds out whether a refusal has passed.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// The connection, by index.
    pub node: usize,
    /// It was let through a closed gate.
    pub through_gate: bool,
}

/// Whether slots that a target master refused for now may try again.
#[derive(Debug, Default)]
pub struct Gate {
    /// In a row; zero while it is open.
    refusals: u32,
    /// When one may go through the closed gate.
    next_ms: u64,
}

/// How long to wait after so many refusals before the last.
pub fn retry_wait_ms(refusals: u32) -> u64 {
    (limits::RETRY_REFUSED_MS << refusals.min(8)).min(limits::MAX_RETRY_REFUSED_MS)
}

impl Gate {
    pub fn admits(&self, now_ms: u64) -> bool {
        self.refusals == 0 || now_ms >= self.next_ms
    }

    /// Somebody whom it admits goes. Whether through the closed gate: then nobody else may until it is known how that went.
    pub fn pass(&mut self, now_ms: u64) -> bool {
        self.next_ms = now_ms + retry_wait_ms(self.refusals);
        self.refusals > 0
    }

    /// The master refused something. What was on its way together with the first one refused changes nothing more.
    pub fn refused(&mut self, now_ms: u64, through_gate: bool) {
        if self.refusals == 0 || through_gate {
            self.next_ms = now_ms + retry_wait_ms(self.refusals);
            self.refusals = self.refusals.saturating_add(1);
        }
    }

    pub fn open(&mut self) {
        self.refusals = 0;
    }
}

impl Parked {
    /// Adds a unit that was taken back from a lost connection: it was sent before whatever came since, and may have been
    /// sent before what another connection refused or gave back.
    pub fn give_back(&mut self, unit: Unit) {
        if let Some(retry) = &mut self.retry {
            retry.probe = None;
        }
        let queue = match self.refused.back() {
            Some(last) if last.begin > unit.begin => &mut self.refused,
            _ => &mut self.returned,
        };
        let place = queue.partition_point(|other| other.begin <= unit.begin);
        queue.insert(place, unit);
    }

    /// Whether nothing of this slot is on its way but its first command.
    pub fn is_probing(&self) -> bool {
        self.retry
            .as_ref()
            .is_some_and(|retry| retry.probe.is_some())
    }

    /// Waits until connection `index` has answered every run below `number`.
    pub fn wait_for(&mut self, index: usize, number: u64) {
        match self.barriers.iter_mut().find(|(at, _)| *at == index) {
            Some((_, barrier)) => *barrier = (*barrier).max(number),
            None => self.barriers.push((index, number)),
        }
    }

    /// Whether it waits for answers of connection `index`.
    pub fn waits_on(&self, index: usize) -> bool {
        self.barriers.iter().any(|(at, _)| *at == index)
    }

    /// Whether it may be released now. `answered_to` gives the run number that a connection has reached.
    pub fn is_ready(&self, now_ms: u64, answered_to: impl Fn(usize) -> u64) -> bool {
        now_ms >= self.not_before_ms
            && self
                .barriers
                .iter()
                .all(|&(index, number)| answered_to(index) >= number)
    }

    /// All units, in order.
    pub fn into_units(self) -> impl Iterator<Item = Unit> {
        let first = self.refused.into_iter().chain(self.returned);
        first.chain(self.queued)
    }

    /// Where the earliest unit begins.
    pub fn begin(&self) -> Option<Offset> {
        let first = self.refused.iter().chain(&self.returned);
        first.chain(&self.queued).map(|unit| unit.begin).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_lets_one_through_at_a_time_after_longer_and_longer_waits() {
        let mut gate = Gate::default();
        assert!(gate.admits(0) && !gate.pass(0), "it is open");
        let (mut now_ms, mut waits) = (0, Vec::new());
        gate.refused(now_ms, false);
        gate.refused(now_ms, false);
        for _ in 0..6 {
            let since_ms = now_ms;
            while !gate.admits(now_ms) {
                now_ms += 10;
            }
            waits.push(now_ms - since_ms);
            assert!(gate.pass(now_ms));
            assert!(!gate.admits(now_ms), "one is on its way");
            gate.refused(now_ms, false);
            gate.refused(now_ms, true);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        gate.open();
        assert!(gate.admits(now_ms));
    }
}
