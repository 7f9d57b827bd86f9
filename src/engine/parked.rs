//! A slot that waits: its commands are kept in order until they may go on.
//!
//! A slot parks when the target refused one of its commands (a redirect, a passing failure), or when its owner
//! changed while commands for the former owner have no answer yet. While it is parked, later commands queue behind;
//! refused ones come first, in the order in which they were sent. It is released when the connections that it
//! waits for have answered everything that they were given before, so that nothing can overtake.

use std::collections::VecDeque;

use crate::position::Offset;
use crate::target::Unit;

#[derive(Debug, Default)]
pub struct Parked {
    /// Refused units first (`refused` of them), then those taken back from a connection, then those that came later.
    units: VecDeque<Unit>,
    refused: usize,
    returned: usize,
    /// Connections, by index, and the run number up to which each must have answered.
    barriers: Vec<(usize, u64)>,
    /// Who shall get the refused units behind `ASKING`.
    pub ask: Option<usize>,
    /// Not to be released before this time, in milliseconds.
    pub not_before_ms: u64,
}

impl Parked {
    /// Adds a unit that was refused, behind those refused before.
    pub fn refuse(&mut self, unit: Unit) {
        self.units.insert(self.refused, unit);
        self.refused += 1;
    }

    /// Adds a unit that was taken back from a lost connection: it was sent before whatever came since.
    pub fn give_back(&mut self, unit: Unit) {
        let mut place = self.refused + self.returned;
        while place > 0 && self.units[place - 1].begin > unit.begin {
            place -= 1;
        }
        self.units.insert(place, unit);
        if place < self.refused {
            self.refused += 1;
        } else {
            self.returned += 1;
        }
    }

    /// Adds a unit that came while the slot was parked.
    pub fn queue(&mut self, unit: Unit) {
        self.units.push_back(unit);
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

    /// The units, and how many at the front were refused.
    pub fn into_units(self) -> (VecDeque<Unit>, usize) {
        (self.units, self.refused)
    }

    /// Where the earliest unit begins.
    pub fn begin(&self) -> Option<Offset> {
        self.units.iter().map(|unit| unit.begin).min()
    }

    /// Takes all units out, for a lane that begins anew.
    pub fn drain(&mut self) -> impl Iterator<Item = Unit> + '_ {
        self.refused = 0;
        self.returned = 0;
        self.units.drain(..)
    }
}
