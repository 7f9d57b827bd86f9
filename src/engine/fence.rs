//! Before anything is written on a connection to a target master: that nobody else writes for this lane.
//!
//! ```text
//! lane       dial, AUTH, CLIENT SETNAME ---- answered        ask ------------------------> answer: data may go
//! control                                     is our epoch still the newest, on every master?
//!                                             kill this lane's former connections there
//!                                             which run of the server is it? which watermarks?
//! ```
//!
//! - A process that takes the link over claims a higher epoch and kills what is named as ours: what it finds named is gone
//!   then, and what is not named yet finds the higher epoch.
//! - A former connection may still hold commands that the server has not read. Executed after what is sent here, they would
//!   put old values over new ones.
//! - Transactions without an answer may have been applied: their watermarks tell.
//! - A server that was restarted may have lost what it had answered, and so may a replica that was promoted: the lane must
//!   begin again from the records that are there. The history of its data tells of a promotion that nobody saw.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::desk::Desk;
use super::lane::Lane;
use super::status::ErrorCount;
use super::targets::{Link, Targets};
use crate::checkpoint::{Mark, Watermark, bookkeeping_of};
use crate::chunk::Chunks;
use crate::fault::{Fault, FaultKind, Policy};
use crate::limits;
use crate::resp::scan;
use crate::slot::{Slot, slot_of};
use crate::target::{Form, Unit};
use crate::topology::{Node, ServerRun, Topology};

/// Where the questions wait.
pub type FenceDesk = Desk<FenceQuestion, FenceAnswer>;

/// What a lane asks about one target master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceQuestion {
    pub node: Node,
    /// The lane is connected to it. Otherwise it has given the master up, and only wants to know the watermarks.
    pub connected: bool,
    /// Whose watermarks it must know, wherever they are by now.
    pub slots: Vec<Slot>,
}

/// What a control thread found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FenceAnswer {
    /// No other connection of the lane to that master is left.
    Clear {
        /// Which run of the server it is, if that was asked.
        run: Option<ServerRun>,
        /// Those that exist.
        watermarks: BTreeMap<Slot, Watermark>,
    },
    Failed(Fault),
}

/// How far the question about a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fence {
    /// Nothing to ask.
    Quiet,
    /// To be asked.
    Wanted,
    /// Asked, under this number.
    Asked(u64),
}

impl Lane {
    /// A question about a target master, to be answered with [`Lane::fenced`]: the connection, a number for the answer, and the
    /// question.
    pub fn take_fence_question(&mut self) -> Option<(usize, u64, FenceQuestion)> {
        let targets = &mut self.targets;
        let index = targets
            .nodes
            .iter()
            .position(|target| target.fence == Fence::Wanted)?;
        targets.fences += 1;
        let number = targets.fences;
        let target = &mut targets.nodes[index];
        target.fence = Fence::Asked(number);
        let connected = target.writer.is_greeted();
        let node = target.node.clone();
        let units = targets.nodes[index].writer.units();
        let marks = units
            .filter(|unit| unit.again)
            .filter_map(|unit| watermark_of(&self.chunks, unit));
        let mut slots: Vec<Slot> = marks.map(|(slot, _)| slot).collect();
        slots.sort_unstable();
        slots.dedup();
        let question = FenceQuestion {
            node,
            connected,
            slots,
        };
        Some((index, number, question))
    }

    /// The answer to a question of [`Lane::take_fence_question`].
    ///
    /// # Errors
    /// When the lane cannot go on as it is.
    pub fn fenced(
        &mut self,
        index: usize,
        number: u64,
        answer: FenceAnswer,
        now_ms: u64,
    ) -> Result<(), Fault> {
        let target = &mut self.targets.nodes[index];
        // Of a connection that is gone since.
        if target.fence != Fence::Asked(number) {
            return Ok(());
        }
        target.fence = Fence::Quiet;
        // It was asked before the connection was had, or greeted: that asks again.
        if target.link == Link::Up && !target.writer.is_greeted() {
            return Ok(());
        }
        match answer {
            FenceAnswer::Failed(fault) if fault.policy() == Policy::Retry => {
                target.fence_again_ms = now_ms + limits::RETRY_REFUSED_MS;
                if target.writer.is_greeted() {
                    self.cut_target(index, fault, now_ms)?;
                }
            }
            FenceAnswer::Failed(fault) => return Err(fault),
            FenceAnswer::Clear { run, watermarks } => {
                if let Some(run) = run {
                    self.targets.check_run(index, run)?;
                }
                let chunks = &mut self.chunks;
                self.targets.resolve(chunks, index, &watermarks);
                let writer = &mut self.targets.nodes[index].writer;
                if writer.is_greeted() {
                    writer.clear();
                }
            }
        }
        Ok(())
    }
}

impl Targets {
    /// Which runs of their servers the bookkeeping is of.
    pub(super) fn note_runs(&mut self, runs: &[(String, ServerRun)]) {
        for (id, run) in runs {
            self.histories.insert(run.replid.clone());
            if let Some(target) = self.nodes.iter_mut().find(|target| target.node.id == *id) {
                target.run = Some(run.clone());
            }
        }
    }

    /// A connection leads to this run of its server. One that is met for the first time has taken a master's place if it
    /// followed that one's history, whether anybody saw it do so or not.
    fn check_run(&mut self, index: usize, run: ServerRun) -> Result<(), Fault> {
        let target = &mut self.nodes[index];
        let lost = match &target.run {
            Some(before) => run.lost_since(before),
            None => {
                let heir = |id: &String| self.histories.contains(id);
                let heir = run.followed.as_ref().is_some_and(heir);
                heir.then_some("was promoted")
            }
        };
        if self.histories.len() >= limits::MAX_TARGET_NODES {
            self.histories.clear();
        }
        self.histories.insert(run.replid.clone());
        target.run = Some(run);
        match lost {
            Some(how) => Err(rewound(&target.node, how)),
            None => Ok(()),
        }
    }

    /// A connection was greeted: nothing goes out on it before the fence has answered.
    pub(super) fn greeted(&mut self, index: usize) {
        let target = &mut self.nodes[index];
        match self.fenced {
            true => target.fence = Fence::Wanted,
            false => target.writer.clear(),
        }
    }

    /// A connection was lost. What of it may have been applied, and must not be repeated, is known only when the fence
    /// has answered.
    pub(super) fn note_uncertain(&mut self, chunks: &Chunks, index: usize) {
        let target = &mut self.nodes[index];
        target.fence = Fence::Quiet;
        let mut repeated = target.writer.units().filter(|unit| unit.again);
        let uncertain = repeated.any(|unit| watermark_of(chunks, unit).is_some());
        target.uncertain |= uncertain && self.fenced;
    }

    /// Whether what is queued for a connection may go elsewhere; asks the fence if that is not known.
    pub(super) fn may_leave(&mut self, index: usize, now_ms: u64) -> bool {
        let target = &mut self.nodes[index];
        let down = !matches!(target.link, Link::Up);
        let due = target.fence == Fence::Quiet && now_ms >= target.fence_again_ms;
        // Once it is connected, that is asked anyway.
        if target.uncertain && down && due {
            target.fence = Fence::Wanted;
        }
        !target.uncertain
    }

    /// The watermarks of a connection's uncertain transactions are known: those that were applied are not sent again.
    fn resolve(
        &mut self,
        chunks: &mut Chunks,
        index: usize,
        watermarks: &BTreeMap<Slot, Watermark>,
    ) {
        let is_applied = |unit: Unit, chunks: &Chunks| {
            let of_unit = unit.again.then(|| watermark_of(chunks, unit)).flatten();
            of_unit.is_some_and(|(slot, sent)| {
                // What a mend writes may be of the offset that the slot had before, and may be repeated.
                let least = sent.offset.0 + u64::from(unit.begin == unit.end);
                let found = watermarks.get(&slot);
                found.is_some_and(|found| {
                    found.generation == sent.generation && found.offset.0 >= least
                })
            })
        };
        for place in 0..self.nodes[index].writer.run_count() {
            let unit = self.nodes[index].writer.unit_at(place);
            if !is_applied(unit, chunks) {
                continue;
            }
            // The runs behind it keep their numbers.
            let ping = self.build(chunks, Form::Command, unit, |out| {
                out.extend_from_slice(PING);
                1
            });
            self.nodes[index].writer.replace(chunks, place, ping);
            self.status.count(ErrorCount::Skipped);
        }
        let target = &mut self.nodes[index];
        target.uncertain = false;
        if std::mem::take(&mut target.leaving) {
            self.evacuate(chunks, index);
        }
    }

    /// Looks for masters that took the place of others: they may lack what those had answered.
    pub(super) fn note_failovers(&mut self, topology: &Topology) {
        for shard in &topology.shards {
            let id = &shard.master.id;
            let former = self.topology.shards.iter().find(|former| {
                former.master.id != *id
                    && self.topology.same_family(&former.master.id, id)
                    && !former.slots.is_disjoint(&shard.slots)
            });
            if let Some(former) = former
                && !former.slots.is_disjoint(&self.slots)
            {
                self.note_promoted(&shard.master);
            }
        }
    }

    /// A redirect of a master leads to this address for good.
    pub(super) fn note_redirect(&mut self, from: usize, named: &Node) {
        let from = &self.nodes[from].node.id;
        let topology = Arc::clone(&self.topology);
        let found = topology.nodes().find(|node| node.is_same_place(named));
        let heir = found.filter(|node| match topology.shard_by_id(&node.id) {
            None => true,
            // Not yet listed as the replica that it became.
            Some(shard) => {
                let family = topology.same_family(from, &node.id);
                family && node.id != *from && shard.slots.is_empty()
            }
        });
        if let Some(node) = heir {
            self.note_promoted(node);
        }
    }

    fn note_promoted(&mut self, node: &Node) {
        if self.fenced {
            let fault = rewound(node, "was promoted");
            self.rewound.get_or_insert(fault);
        }
    }
}

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// Whether a unit stands in the place of one that had been applied.
pub(super) fn is_placeholder(chunks: &Chunks, unit: Unit) -> bool {
    chunks.get(unit.range) == PING
}

fn rewound(node: &Node, what: &str) -> Fault {
    let text = format!(
        "target {} {what} and may lack its last writes: going on from what it has",
        node.name()
    );
    Fault::new(FaultKind::TargetRewound, text)
}

/// The watermark that a transaction sets, and its slot.
fn watermark_of(chunks: &Chunks, unit: Unit) -> Option<(Slot, Watermark)> {
    if unit.form != Form::Transaction {
        return None;
    }
    let mut rest = chunks.get(unit.range);
    while let Ok(Some(frame)) = scan(rest) {
        rest = &rest[frame.bytes().len()..];
        if let Some(key) = frame.arg(1)
            && bookkeeping_of(key).is_some_and(|(kind, _)| kind == 'w')
            && let Some(text) = frame.arg(2)
        {
            let mark: Mark = std::str::from_utf8(text).ok()?.parse().ok()?;
            return Some((slot_of(key), mark.watermark));
        }
    }
    None
}
