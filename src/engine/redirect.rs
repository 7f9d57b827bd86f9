//! What happens to a command that the target did not take: follow the slot, wait, or stop.
//!
//! | reply | what is done |
//! |---|---|
//! | `MOVED` | the slot parks until everything given to the former owner is answered, then goes on at the new one |
//! | `ASK` | the same, and the refused commands go to the importing master behind `ASKING`, once |
//! | `TRYAGAIN` `LOADING` `CLUSTERDOWN` `READONLY` `OOM` `BUSY` `MASTERDOWN` `NOREPLICAS` `MISCONF` | the slot parks, and its commands are tried again at whoever owns it then, first one of them alone: see `retry` |
//! | everything else | target and source differ: mend the keys, stop, or count and go on |

use std::sync::Arc;

use super::fence::is_placeholder;
use super::options::OnDivergence;
use super::retry::retry_wait_ms;
use super::settle;
use super::status::ErrorCount;
use super::targets::{GATED, Later, Link, NOBODY, PARKED, Targets};
use crate::checkpoint::bookkeeping_of;
use crate::chunk::Chunks;
use crate::command::{self, Kind, Replay};
use crate::fault::{Fault, FaultKind, Side};
use crate::limits;
use crate::resp::{ErrorKind, Frame, scan};
use crate::slot::{SLOT_COUNT, Slot};
use crate::target::{Form, Unit};
use crate::topology::Topology;

const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";

const RETRY_SLOT: Next = Next::Retry { slot_only: true };

/// Where a refused unit shall go.
enum Next {
    /// A redirect named this connection.
    Owner(usize),
    /// A redirect named this connection for this command only.
    Ask(usize),
    /// To the owner, a little later. Whether it was refused for its slot, not by the master as such.
    Retry { slot_only: bool },
}

impl Targets {
    /// Deals with a unit that the target did not apply; owns a hold on its chunk.
    pub(super) fn rejected(
        &mut self,
        chunks: &mut Chunks,
        index: usize,
        unit: Unit,
        kind: ErrorKind,
        text: &str,
        now_ms: u64,
    ) -> Result<(), Fault> {
        let unit = without_asking(unit);
        if is_record(chunks, unit) {
            // Wherever else it went, it would speak for the wrong master.
            self.records_refused += 1;
            self.hint = true;
            chunks.release(unit.range.chunk);
            return Ok(());
        }
        let who = self.nodes[index].node.name();
        if is_select(chunks, unit) {
            // What follows would go to another database: nothing more may be sent on this connection.
            chunks.release(unit.range.chunk);
            return Err(Fault::from_reply(Side::Target, &who, text));
        }
        // Of a first copy, which leaves keys alone that the target has.
        if self.mark && unit.begin == unit.end && text.starts_with("BUSYKEY") {
            self.status.count(ErrorCount::KeptExisting);
            chunks.release(unit.range.chunk);
            return Ok(());
        }
        if let Some(count) = counted_as(&kind) {
            self.status.count(count);
        }
        let next = match &kind {
            ErrorKind::Moved { address, .. } => Some(
                self.node_at(index, address, true)
                    .map_or(RETRY_SLOT, Next::Owner),
            ),
            ErrorKind::Ask { address, .. } => Some(
                self.node_at(index, address, false)
                    .map_or(RETRY_SLOT, Next::Ask),
            ),
            ErrorKind::NoAuth | ErrorKind::NoPermission => None,
            ErrorKind::TryAgain => Some(RETRY_SLOT),
            kind => counted_as(kind).map(|_| Next::Retry { slot_only: false }),
        };
        let pauses = || {
            kind == ErrorKind::Other && settle::will_pass(text) && first_frame_settles(chunks, unit)
        };
        let next = next.or_else(|| pauses().then_some(RETRY_SLOT));
        let Some(next) = next else {
            // It failed because one on the same key that was sent before it was refused: it waits behind that.
            if kind == ErrorKind::Other
                && let Some((slot, _)) = self.overtaken(chunks, index, unit)
            {
                self.park(slot).put_refused(unit);
                return Ok(());
            }
            let result = self.diverged(chunks, index, unit, None, text);
            chunks.release(unit.range.chunk);
            return result;
        };
        self.hint = true;
        let told = match kind {
            ErrorKind::Moved { slot, .. } | ErrorKind::Ask { slot, .. } => Some(slot),
            _ => None,
        };
        match self.slot_of_unit(chunks, unit).or(told) {
            Some(slot) => self.park_refused(index, slot, unit, next, now_ms),
            None => {
                let target = match next {
                    Next::Owner(other) | Next::Ask(other) => other,
                    Next::Retry { .. } => index,
                };
                let at_ms = now_ms + limits::RETRY_REFUSED_MS;
                self.later.push(Later {
                    at_ms,
                    target,
                    unit,
                });
            }
        }
        Ok(())
    }

    fn park_refused(&mut self, index: usize, slot: Slot, unit: Unit, next: Next, now_ms: u64) {
        let barrier = self.nodes[index].writer.next_number();
        // A slot that is parked already is refused for commands that were on their way: no new redirect.
        let bounced = !self.parked.contains_key(&slot)
            && self
                .redirected
                .get(&slot)
                .is_some_and(|&(_, until)| until > now_ms);
        let mut wait = match next {
            Next::Owner(_) if bounced => limits::RETRY_REDIRECT_MS,
            _ => 0,
        };
        if let Next::Owner(owner) = next {
            let until = now_ms + limits::TRUST_REDIRECT_MS;
            self.redirected.insert(slot, (owner, until));
        }
        self.changes += u64::from(!matches!(next, Next::Retry { .. }));
        let parked = self.park(slot);
        let retry = parked.retry.take();
        let probe = retry.as_ref().and_then(|retry| retry.probe);
        let place = match probe {
            Some(_) => {
                parked.refused.push_front(unit);
                0
            }
            None => parked.put_refused(unit),
        };
        parked.wait_for(index, barrier);
        match next {
            Next::Ask(other) => parked.ask_for(other, place),
            Next::Owner(_) => parked.ask = None,
            Next::Retry { slot_only } => {
                let mut retry = retry.unwrap_or_default();
                wait = limits::RETRY_REFUSED_MS;
                if slot_only {
                    wait = retry_wait_ms(retry.attempts);
                }
                // Those refused together are one attempt.
                retry.attempts += u32::from(probe.is_some() || retry.attempts == 0);
                retry.slot_only = slot_only;
                retry.probe = None;
                parked.ask = None;
                parked.retry = Some(retry);
                self.redirected.remove(&slot);
                if !slot_only {
                    let through_gate = probe.is_some_and(|probe| probe.through_gate);
                    self.nodes[index].gate.refused(now_ms, through_gate);
                }
            }
        }
        let parked = self.park(slot);
        parked.not_before_ms = parked.not_before_ms.max(now_ms + wait);
    }

    /// A unit was applied although one of its slot that was sent before it was refused; owns a hold on its chunk.
    ///
    /// If they have no key in common, nothing is lost. If they have, the refused one will be applied too late; when both
    /// give the same result however often they are repeated in order, repeating this one behind it sets that right.
    pub(super) fn passed(
        &mut self,
        chunks: &mut Chunks,
        index: usize,
        unit: Unit,
    ) -> Result<(), Fault> {
        let unit = without_asking(unit);
        let result = match self.overtaken(chunks, index, unit) {
            Some((slot, true)) => {
                let again = Unit {
                    again: true,
                    ..unit
                };
                self.park(slot).put_refused(again);
                return Ok(());
            }
            // Pieces of one value of a snapshot that is written by elements. All else that must not be applied twice is
            // alone on its way.
            Some((_, false)) => {
                let text = "OK, before a refused command on the same key";
                self.diverged(chunks, index, unit, None, text)
            }
            None => Ok(()),
        };
        chunks.release(unit.range.chunk);
        result
    }

    /// Whether a transaction has gone before one on the same key that was refused.
    pub(super) fn has_overtaken(&self, chunks: &Chunks, index: usize, unit: Unit) -> bool {
        matches!(
            self.overtaken(chunks, index, without_asking(unit)),
            Some((_, true))
        )
    }

    /// Whether a unit just answered by connection `index` was sent behind one on the same key that the same connection
    /// refused: the slot in which that waits, and whether repeating both in order sets things right.
    fn overtaken(&self, chunks: &Chunks, index: usize, unit: Unit) -> Option<(Slot, bool)> {
        let slot = self.slot_of_unit(chunks, unit)?;
        let parked = self.parked.get(&slot)?;
        // What waits was sent behind it.
        if parked.is_probing() || !parked.waits_on(index) {
            return None;
        }
        let (keys, mut exact) = self.effects(chunks, unit);
        let mut shares = false;
        for refused in &parked.refused {
            let (others, safe) = self.effects(chunks, *refused);
            if others.iter().any(|key| keys.contains(key)) {
                shares = true;
                exact &= safe;
            }
        }
        shares.then_some((slot, exact))
    }

    /// The keys of a unit's commands, and whether repeating them in order ends in the same values.
    fn effects<'a>(&self, chunks: &'a Chunks, unit: Unit) -> (Vec<&'a [u8]>, bool) {
        let (mut keys, mut safe) = (Vec::new(), true);
        let mut rest = chunks.get(unit.range);
        while let Ok(Some(frame)) = scan(rest) {
            rest = &rest[frame.bytes().len()..];
            let command = command::find(&frame).or_else(|| self.learned.get(frame.verb()));
            // What a lease is settled with asks the key first.
            let command = command.filter(|_| !settle::is_settling(&frame));
            let Some(command) = command else { continue };
            let before = keys.len();
            if let Ok(found) = command::keys(&frame, command) {
                keys.extend(found);
            }
            let differs = command::replay(&frame, command) == Replay::Differs;
            safe &= keys.len() == before || !differs;
        }
        (keys, safe)
    }

    /// A command failed in a way that no redirect or wait explains.
    /// `behind`: how many commands of a transaction follow the one that failed.
    pub(super) fn diverged(
        &mut self,
        chunks: &Chunks,
        index: usize,
        unit: Unit,
        behind: Option<usize>,
        text: &str,
    ) -> Result<(), Fault> {
        let who = self.nodes[index].node.name();
        let kind = FaultKind::of_reply(text);
        if matches!(kind, FaultKind::NoPermission | FaultKind::NoPassword) {
            return Err(Fault::from_reply(Side::Target, &who, text));
        }
        if is_harmless(text, unit) {
            self.status.count(ErrorCount::Replayed);
            return Ok(());
        }
        let what = describe_failed(chunks, unit, behind);
        let said = format!("target {who} answered '{text}' to {what}");
        // What the data makes it fail with now, it may have succeeded with before. Only mending is right in both cases.
        let repeated = unit.again && !is_never_applied(text);
        if repeated {
            self.status.count(ErrorCount::Replayed);
            let message = format!("{said}, when it was repeated");
            return match self.mends.policy {
                OnDivergence::Mend => self.owe_keys_of(chunks, unit, behind, text, &message),
                _ => Ok(()),
            };
        }
        self.status.count(ErrorCount::Divergence);
        let message = format!("{said}: target and source differ");
        match self.mends.policy {
            OnDivergence::Stop => {}
            OnDivergence::Mend => return self.owe_keys_of(chunks, unit, behind, text, &message),
            OnDivergence::Continue => {
                self.status.set_message(&message);
                return Ok(());
            }
        }
        Err(Fault::new(
            FaultKind::Divergence,
            format!(
                "{message}; make that key equal and start again, or use --on-divergence mend, which does so"
            ),
        ))
    }

    /// The connection that a redirect names, new if it must be; `moved` if for good.
    fn node_at(&mut self, from: usize, address: &str, moved: bool) -> Option<usize> {
        let named = self.topology.redirected(&self.nodes[from].node, address)?;
        if moved {
            self.note_redirect(from, &named);
        }
        let mut nodes = self.nodes.iter();
        let known = nodes.position(|target| target.node.is_same_place(&named));
        // Its id will be known with the next topology; until then the address stands for it.
        known.or_else(|| self.add_node(named))
    }

    /// Takes a new view of the target over.
    pub fn adopt(&mut self, chunks: &mut Chunks, topology: &Arc<Topology>, now_ms: u64) {
        self.note_failovers(topology);
        self.topology = Arc::clone(topology);
        self.changes += 1;
        self.merge_provisional(topology);
        self.learn_nodes(topology);
        self.reconcile(chunks, now_ms);
    }

    /// Gives every slot to its owner by the topology, unless a redirect knows better or the slot waits for something.
    /// Done again and again, since both pass without a new topology.
    fn reconcile(&mut self, chunks: &mut Chunks, now_ms: u64) {
        self.reconcile_at_ms = now_ms + limits::RECONCILE_INTERVAL_MS;
        let nodes = &self.nodes;
        self.redirected
            .retain(|_, (index, until)| *until > now_ms && nodes[*index].link == Link::Up);
        let mut left = vec![false; self.nodes.len()];
        for slot in 0..SLOT_COUNT as Slot {
            let owner = self.owners[usize::from(slot)];
            let mut current = self.routes[usize::from(slot)];
            let gathers = current == GATED;
            if let Some(target) = self.serial.target_of(slot) {
                current = target as u16;
            }
            if owner == NOBODY || owner == current || current == PARKED {
                continue;
            }
            if self.redirected.contains_key(&slot) {
                continue;
            }
            if gathers {
                // It goes on at the new owner as soon as the former one has answered, or never will.
                let index = usize::from(current);
                let down = self.nodes[index].link != Link::Up;
                left[index] |= down && self.may_leave(index, now_ms);
            } else if current == NOBODY || self.nodes[usize::from(current)].writer.is_idle() {
                self.routes[usize::from(slot)] = owner;
            } else if self.nodes[usize::from(current)].link == Link::Up {
                let index = usize::from(current);
                let barrier = self.nodes[index].writer.next_number();
                let parked = self.park(slot);
                parked.wait_for(index, barrier);
            } else if self.may_leave(usize::from(current), now_ms) {
                self.routes[usize::from(slot)] = owner;
                left[usize::from(current)] = true;
            }
        }
        self.mark_needed();
        for index in (0..left.len()).filter(|&index| left[index]) {
            self.evacuate(chunks, index);
        }
        self.release_ready(chunks, now_ms);
    }

    /// Nodes first known by an address in a redirect get the id that the topology gives that address.
    fn merge_provisional(&mut self, topology: &Topology) {
        for shard in &topology.shards {
            let master = &shard.master;
            if self.nodes.iter().any(|t| t.node.id == master.id) {
                continue;
            }
            let provisional = self
                .nodes
                .iter_mut()
                .find(|t| t.node.is_same_place(master) && t.node.id.contains(':'));
            if let Some(target) = provisional {
                target.node = master.clone();
            }
        }
    }

    /// Gives what a lost connection was given to the present owners, in order.
    pub(super) fn evacuate(&mut self, chunks: &mut Chunks, index: usize) {
        let target = &mut self.nodes[index];
        let units = match target.link {
            // Greeted, and not written to yet.
            Link::Up => target.writer.withdraw_queued(),
            _ => target.writer.withdraw(chunks),
        };
        for unit in units {
            self.resend(chunks, index, unit);
        }
    }

    fn resend(&mut self, chunks: &mut Chunks, former: usize, unit: Unit) {
        let mut next = Some(unit);
        while let Some(unit) = next {
            let (first, rest) = split_first(chunks, unit);
            self.resend_whole(chunks, former, without_asking(first));
            next = rest;
        }
    }

    fn resend_whole(&mut self, chunks: &mut Chunks, former: usize, unit: Unit) {
        if is_record(chunks, unit) || is_placeholder(chunks, unit) {
            self.records_refused += u64::from(is_record(chunks, unit));
            chunks.release(unit.range.chunk);
            return;
        }
        let slot = self.slot_of_unit(chunks, unit);
        let owner =
            slot.and_then(|slot| self.nodes.get(usize::from(self.routes[usize::from(slot)])));
        match slot {
            Some(slot) if owner.is_none() => self.park(slot).give_back(unit),
            // What comes behind it finds the slot parked, and goes behind it there.
            Some(slot) if owner.is_some_and(|owner| !owner.gate.is_open()) => {
                let parked = self.park(slot);
                parked.retry.get_or_insert_default();
                parked.give_back(unit);
            }
            Some(slot) => self.deliver(chunks, slot, unit),
            // Elsewhere it would remove what other lanes own; who holds the keys now is found anew.
            None if is_flush(chunks, unit) => {
                chunks.release(unit.range.chunk);
                self.flush_displaced = true;
            }
            // A command for a master as such (FUNCTION ...): its successor gets it with the topology's copy.
            None => self.push(chunks, self.any().unwrap_or(former), unit),
        }
    }

    /// Looks after everything that waits.
    pub fn tick(&mut self, chunks: &mut Chunks, now_ms: u64) {
        self.serial.tick(now_ms);
        for index in 0..self.nodes.len() {
            let target = &self.nodes[index];
            let down = matches!(target.link, Link::Down { .. });
            let left = down && !target.writer.is_idle() && !self.owns_anything(index);
            let leaving = down && target.leaving;
            if (left || leaving) && self.may_leave(index, now_ms) {
                self.evacuate(chunks, index);
            }
        }
        if now_ms >= self.reconcile_at_ms {
            self.reconcile(chunks, now_ms);
        }
        self.release_ready(chunks, now_ms);
    }

    fn owns_anything(&self, index: usize) -> bool {
        self.is_single() || self.routes.contains(&(index as u16)) || self.serial.waits_on(index)
    }

    /// The same unit with `ASKING` before it; `MULTI` keeps the permission until `EXEC`.
    pub(super) fn behind_asking(&mut self, chunks: &mut Chunks, unit: Unit) -> Unit {
        let mut bytes = Vec::with_capacity(ASKING.len() + unit.range.len());
        bytes.extend_from_slice(ASKING);
        bytes.extend_from_slice(chunks.get(unit.range));
        chunks.release(unit.range.chunk);
        let built = self.build(chunks, unit.form, unit, |out| {
            out.extend_from_slice(&bytes);
            unit.frames as usize + 1
        });
        Unit {
            asking: true,
            end: unit.end,
            again: unit.again,
            guard: unit.guard,
            ..built
        }
    }
}

/// The first command of a unit, and the rest, each with a hold on the chunk.
pub(super) fn split_first(chunks: &mut Chunks, unit: Unit) -> (Unit, Option<Unit>) {
    if unit.form != Form::Command || unit.asking || unit.frames < 2 {
        return (unit, None);
    }
    let frame = scan(chunks.get(unit.range)).ok().flatten();
    let length = frame.expect("units hold whole commands").bytes().len();
    let verbatim = unit.end.since(unit.begin) == unit.range.len() as u64;
    let (mut first, mut rest) = (unit, unit);
    first.range.end = unit.range.start + length as u32;
    rest.range.start = first.range.end;
    first.frames = 1;
    rest.frames -= 1;
    if verbatim {
        rest.begin = unit.begin.advanced(length);
    }
    first.end = rest.begin;
    chunks.hold(unit.range.chunk);
    (first, Some(rest))
}

/// The unit without the `ASKING` that was put before it.
fn without_asking(mut unit: Unit) -> Unit {
    if unit.asking {
        unit.range.start += ASKING.len() as u32;
        unit.frames -= 1;
        unit.asking = false;
    }
    unit
}

/// How a refusal that will pass is counted; `None` for what will not.
fn counted_as(kind: &ErrorKind) -> Option<ErrorCount> {
    Some(match kind {
        ErrorKind::Moved { .. } => ErrorCount::Moved,
        ErrorKind::Ask { .. } => ErrorCount::Ask,
        ErrorKind::TryAgain => ErrorCount::TryAgain,
        ErrorKind::Loading => ErrorCount::Loading,
        ErrorKind::ClusterDown => ErrorCount::ClusterDown,
        ErrorKind::ReadOnly => ErrorCount::ReadOnly,
        ErrorKind::OutOfMemory => ErrorCount::OutOfMemory,
        ErrorKind::Busy => ErrorCount::Busy,
        ErrorKind::MasterDown => ErrorCount::MasterDown,
        ErrorKind::NoReplicas | ErrorKind::Misconf | ErrorKind::ExecAbort => {
            ErrorCount::WritesPaused
        }
        ErrorKind::NoAuth | ErrorKind::NoPermission | ErrorKind::Other => return None,
    })
}

/// Whether a unit is the `SELECT` that we put before others; those of the stream are never sent.
fn is_select(chunks: &Chunks, unit: Unit) -> bool {
    let frame = scan(chunks.get(unit.range)).ok().flatten();
    frame.is_some_and(|frame| frame.verb().eq_ignore_ascii_case(b"SELECT"))
}

/// Whether a unit is (part of) a record of this program.
fn is_record(chunks: &Chunks, unit: Unit) -> bool {
    let frame = scan(chunks.get(unit.range)).ok().flatten();
    let kind = frame.and_then(|frame| Some(bookkeeping_of(frame.arg(1)?)?.0));
    // What a mend builds goes wherever its key goes.
    kind.is_some_and(|kind| kind != 'm')
}

/// Whether a unit is a script that settles leases.
pub(super) fn first_frame_settles(chunks: &Chunks, unit: Unit) -> bool {
    if unit.begin != unit.end || unit.form != Form::Command {
        return false;
    }
    let frame = scan(chunks.get(unit.range)).ok().flatten();
    frame.is_some_and(|frame| settle::is_settling(&frame))
}

/// Whether a unit is a flush passed on as it came.
fn is_flush(chunks: &Chunks, unit: Unit) -> bool {
    let frame = scan(chunks.get(unit.range)).ok().flatten();
    let command = frame.and_then(|frame| command::find(&frame));
    command.is_some_and(|command| matches!(command.kind, Kind::FlushAll | Kind::FlushDb))
}

/// The command of a transaction that has `behind` others behind it. What goes before its `MULTI` does not count.
pub(super) fn failed_inside(transaction: &[u8], behind: usize) -> Option<Frame<'_>> {
    let mut inside = Vec::new();
    let mut rest = transaction;
    while let Ok(Some(frame)) = scan(rest) {
        rest = &rest[frame.bytes().len()..];
        match command::find(&frame).map(|command| command.kind) {
            Some(Kind::Multi) => inside.clear(),
            Some(Kind::Exec) => break,
            _ => inside.push(frame),
        }
    }
    let failed = inside.len().checked_sub(behind + 1)?;
    inside.get(failed).copied()
}

/// What failed, in a few words: of a transaction the command with `behind` others behind it, where that is known, else the
/// first one.
fn describe_failed(chunks: &Chunks, unit: Unit, behind: Option<usize>) -> String {
    let bytes = chunks.get(unit.range);
    if let Some(frame) = behind.and_then(|behind| failed_inside(bytes, behind)) {
        return format!("{}, in a transaction", command::describe(&frame));
    }
    let mut rest = bytes;
    while let Ok(Some(frame)) = scan(rest) {
        if unit.form != Form::Transaction {
            return command::describe(&frame);
        }
        if !frame.verb().eq_ignore_ascii_case(b"MULTI") {
            return format!("the transaction with {}", command::describe(&frame));
        }
        rest = &rest[frame.bytes().len()..];
    }
    String::new()
}

/// Failures that do not depend on what the keys hold, so that a command which meets one was never applied.
const NEVER_APPLIED: &[&str] = &[
    "ERR unknown command",
    "ERR unknown subcommand",
    "ERR wrong number of arguments",
    "ERR syntax error",
    "ERR Bad data format",
    "ERR DUMP payload version or checksum are wrong",
    "CROSSSLOT",
];

pub(super) fn is_never_applied(text: &str) -> bool {
    NEVER_APPLIED.iter().any(|start| text.starts_with(start))
}

/// Failures that say no more than that the effect is there already.
fn is_harmless(text: &str, unit: Unit) -> bool {
    let built = unit.begin == unit.end;
    text.starts_with("BUSYGROUP")
        // FUNCTION DELETE reaches every lane, and each sends it to each master.
        || text.starts_with("ERR Library not found")
        // A stream written by elements, over one that holds them; or its additions repeated.
        || ((built || unit.again) && text.contains("smaller than the target stream top item"))
}
