//! A slot that waits: its commands are kept in order until they may go on.
//!
//! A slot parks when the target refused one of its commands (a redirect, a passing failure), or when its owner
//! changed while commands for the former owner have no answer yet. While it is parked, later commands queue behind;
//! refused ones come first, in the order in which they were sent. It is released when the connections that it
//! waits for have answered everything that they were given before, so that nothing can overtake.

use std::collections::VecDeque;

use super::retry::Retry;
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
    /// Who shall get so many of the first refused units behind `ASKING`: those that were refused for just that. Others may be
    /// about keys that have not moved yet.
    pub ask: Option<(usize, usize)>,
    /// The first of the refused units are on their way alone: so many of them were refused again since.
    pub ahead: Option<usize>,
    /// Not to be released before this time, in milliseconds.
    pub not_before_ms: u64,
    /// Something was refused for now, so that the first command goes out alone; see `retry`.
    pub retry: Option<Retry>,
}

impl Parked {
    /// Adds a unit that was taken back from a lost connection: it was sent before whatever came since, and may have been
    /// sent before what another connection refused or gave back.
    pub fn give_back(&mut self, unit: Unit) {
        // They may not be the first any more; the owner will say it again.
        self.ask = None;
        if let Some(retry) = &mut self.retry
            && retry.probe.take().is_some()
        {
            // The only one that was on its way: it was the first.
            self.refused.push_front(unit);
            return;
        }
        if self.ahead.is_some() {
            self.put_refused(unit);
            return;
        }
        let queue = match self.refused.back() {
            Some(last) if last.begin > unit.begin => &mut self.refused,
            _ => &mut self.returned,
        };
        let place = queue.partition_point(|other| other.begin <= unit.begin);
        queue.insert(place, unit);
    }

    /// Puts a unit that was refused, or that must be repeated behind one, where it stood. Gives its place.
    pub fn put_refused(&mut self, unit: Unit) -> usize {
        let place = self.ahead.unwrap_or(self.refused.len());
        self.refused.insert(place, unit);
        self.ahead = self.ahead.map(|ahead| ahead + 1);
        place
    }

    /// Connection `other` was named for the unit that was just put at this place among the refused ones.
    pub fn ask_for(&mut self, other: usize, place: usize) {
        let asked = match self.ask {
            Some((known, count)) if known == other && place > 0 => count,
            _ => 0,
        };
        if place == asked {
            self.ask = Some((other, asked + 1));
        }
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

    /// All units, in order.
    pub fn units(&self) -> impl Iterator<Item = Unit> {
        let first = self.refused.iter().chain(&self.returned);
        first.chain(&self.queued).copied()
    }

    /// Where the earliest unit begins.
    pub fn begin(&self) -> Option<Offset> {
        self.units().map(|unit| unit.begin).min()
    }
}
