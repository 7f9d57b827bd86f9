//! When what waits goes on: barriers passed, and refusals that may have ended.
//!
//! What a master refused for now is not all sent again to find out whether it takes it:
//!
//! ```text
//! master refuses -> its gate closes -> after a while one slot sends its first command   -> refused: a longer while
//!                                      (a slot that alone was refused has no gate)      -> taken: the gate opens
//! gate open      -> every waiting slot sends its first command -> taken: it sends all else
//! ```
//!
//! While the gate is closed, slots that were not refused wait too. So a master that refuses for long is asked once a
//! second, and, once what was on its way when it began to refuse is answered, no two commands of one slot are on their way
//! to it: were they when the refusal ends, the first could be refused and the second be taken, in the wrong order.

use super::parked::Parked;
use super::redirect::split_first;
use super::targets::{NOBODY, Targets};
use crate::chunk::Chunks;
use crate::limits;
use crate::slot::Slot;
use crate::target::Unit;

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

/// Whether slots may send to a target master that refused something for now.
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
    #[inline]
    pub fn is_open(&self) -> bool {
        self.refusals == 0
    }

    pub fn admits(&self, now_ms: u64) -> bool {
        self.is_open() || now_ms >= self.next_ms
    }

    /// Somebody whom it admits goes through while it is closed: nobody else may until it is known how that went.
    pub fn pass(&mut self, now_ms: u64) {
        self.next_ms = now_ms + retry_wait_ms(self.refusals);
    }

    /// The master refused something. What was on its way together with the first one refused changes nothing more.
    pub fn refused(&mut self, now_ms: u64, through_gate: bool) {
        if self.is_open() || through_gate {
            self.next_ms = now_ms + retry_wait_ms(self.refusals);
            self.refusals = self.refusals.saturating_add(1);
        }
    }

    pub fn open(&mut self) {
        self.refusals = 0;
    }
}

impl Targets {
    /// Keeps a unit back from a master whose gate is closed. It may hold commands of several slots: each waits with its own.
    #[cold]
    pub(super) fn hold_back(&mut self, chunks: &mut Chunks, slot: Slot, index: usize, unit: Unit) {
        let barrier = self.nodes[index].writer.next_number();
        let mut next = Some(unit);
        while let Some(unit) = next {
            let (first, rest) = split_first(chunks, unit);
            let slot = self.slot_of_unit(chunks, first).unwrap_or(slot);
            let parked = self.park(slot);
            parked.retry.get_or_insert_default();
            parked.wait_for(index, barrier);
            parked.queued.push_back(first);
            next = rest;
        }
    }

    /// Releases every slot and unit whose wait is over.
    pub(super) fn release_ready(&mut self, chunks: &mut Chunks, now_ms: u64) {
        let mut due = Vec::new();
        self.later.retain(|later| {
            let wait = later.at_ms > now_ms;
            if !wait {
                due.push((later.target, later.unit));
            }
            wait
        });
        for (index, unit) in due {
            self.push(chunks, index, unit);
        }
        for index in 0..self.nodes.len() {
            self.go_on(chunks, index, now_ms);
        }
        let nodes = &self.nodes;
        let answered_to = |index: usize| nodes[index].writer.answered_to();
        let ready: Vec<Slot> = self
            .parked
            .iter()
            .filter(|(slot, parked)| {
                parked.is_ready(now_ms, answered_to) && self.may_go(**slot, parked, now_ms)
            })
            .map(|(slot, _)| *slot)
            .collect();
        let turn = ready.partition_point(|slot| *slot <= self.probed);
        for &slot in ready[turn..].iter().chain(&ready[..turn]) {
            self.release(chunks, slot, now_ms);
        }
    }

    /// Who gets a slot when it is released, unless a redirect is for its refused commands only.
    pub(super) fn next_owner(&self, slot: Slot, now_ms: u64) -> u16 {
        match self.redirected.get(&slot) {
            Some(&(index, until)) if until > now_ms => index as u16,
            _ => self.owners[usize::from(slot)],
        }
    }

    /// Whether no closed gate is in the way of a slot.
    fn may_go(&self, slot: Slot, parked: &Parked, now_ms: u64) -> bool {
        let heir = || usize::from(self.next_owner(slot, now_ms));
        let target = self
            .nodes
            .get(parked.ask.map_or_else(heir, |(other, _)| other));
        let slot_only = |parked: &Parked| parked.retry.as_ref().is_some_and(|r| r.slot_only);
        parked.is_probing()
            || slot_only(parked)
            || target.is_none_or(|target| target.gate.admits(now_ms))
    }

    fn release(&mut self, chunks: &mut Chunks, slot: Slot, now_ms: u64) {
        let Some(mut parked) = self.parked.remove(&slot) else {
            return;
        };
        if let Some(probe) = parked.retry.as_ref().and_then(|retry| retry.probe) {
            // Answered, and not refused.
            self.nodes[probe.node].gate.open();
            parked.retry = None;
        }
        parked.ahead = None;
        let owner = self.next_owner(slot, now_ms);
        let goes = owner != NOBODY && self.may_go(slot, &parked, now_ms);
        if owner == NOBODY {
            parked.not_before_ms = now_ms + limits::RETRY_REFUSED_MS;
            self.hint = true;
        } else if goes && let Some((other, count)) = parked.ask {
            self.send_asking(chunks, &mut parked, other, count, now_ms);
        } else if goes && !self.send_first(chunks, slot, &mut parked, usize::from(owner), now_ms) {
            self.send_all(chunks, slot, usize::from(owner), parked.into_units());
            return;
        }
        self.parked.insert(slot, parked);
    }

    /// Sends the first `count` refused units behind `ASKING`, only one of them through a closed gate.
    ///
    /// All else of the slot waits for the answers: otherwise commands of one slot would be on their way to two
    /// masters, and a refusal by one of them would let the other overtake.
    fn send_asking(
        &mut self,
        chunks: &mut Chunks,
        parked: &mut Parked,
        other: usize,
        count: usize,
        now_ms: u64,
    ) {
        let gate = &mut self.nodes[other].gate;
        let through_gate = !gate.is_open();
        let sent = if through_gate { 1 } else { count };
        if through_gate {
            gate.pass(now_ms);
            parked.retry.get_or_insert_default().probe = Some(Probe {
                node: other,
                through_gate,
            });
        }
        parked.ask = (count > sent).then_some((other, count - sent));
        parked.ahead = Some(0);
        let units: Vec<Unit> = parked.refused.drain(..sent).collect();
        for unit in units {
            let asking = self.behind_asking(chunks, unit);
            self.push(chunks, other, asking);
        }
        parked.wait_for(other, self.nodes[other].writer.next_number());
    }

    /// Sends the first command of a slot alone, if that must find out whether a refusal has passed. Whether it was sent.
    fn send_first(
        &mut self,
        chunks: &mut Chunks,
        slot: Slot,
        parked: &mut Parked,
        owner: usize,
        now_ms: u64,
    ) -> bool {
        let gate = &mut self.nodes[owner].gate;
        if parked.retry.is_none() && gate.is_open() {
            return false;
        }
        let Some(first) = parked.take_first(chunks) else {
            return false;
        };
        let retry = parked.retry.get_or_insert_default();
        let through_gate = !retry.slot_only && !gate.is_open();
        if through_gate {
            gate.pass(now_ms);
        }
        retry.probe = Some(Probe {
            node: owner,
            through_gate,
        });
        self.probed = slot;
        let first = self.guarded(chunks, slot, owner, first);
        self.push(chunks, owner, first);
        parked.wait_for(owner, self.nodes[owner].writer.next_number());
        true
    }
}

impl Parked {
    /// Takes the first command out.
    fn take_first(&mut self, chunks: &mut Chunks) -> Option<Unit> {
        let queues = [&mut self.refused, &mut self.returned, &mut self.queued];
        let queue = queues.into_iter().find(|queue| !queue.is_empty())?;
        let (first, rest) = split_first(chunks, queue.pop_front()?);
        if let Some(rest) = rest {
            queue.push_front(rest);
        }
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_lets_one_through_at_a_time_after_longer_and_longer_waits() {
        let mut gate = Gate::default();
        assert!(gate.admits(0) && gate.is_open());
        let (mut now_ms, mut waits) = (0, Vec::new());
        gate.refused(now_ms, false);
        gate.refused(now_ms, false);
        for _ in 0..6 {
            let since_ms = now_ms;
            while !gate.admits(now_ms) {
                now_ms += 10;
            }
            waits.push(now_ms - since_ms);
            gate.pass(now_ms);
            assert!(!gate.admits(now_ms), "one is on its way");
            gate.refused(now_ms, false);
            gate.refused(now_ms, true);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        gate.open();
        assert!(gate.admits(now_ms));
    }
}
