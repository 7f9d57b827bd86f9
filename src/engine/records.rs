//! The records that a lane keeps on its target masters; see [`crate::checkpoint`].
//!
//! Once a second, and whenever the stream comes near the high-water offset, each master gets the lane's record anew, on the
//! connection of the data:
//!
//! ```text
//! to master 1   SET SET SET | HSET record: acked C, high H | SET SET ...... never past H before the next record is answered
//! ```
//!
//! - The high-water offset is as near as the stream's pace lets it be, and after some seconds without a write right where the
//!   stream is ([`limits::QUIET_INTERVALS`]): what a crash leaves in doubt is what lies below it. A new one may be lower: from when
//!   it is written, nothing behind it is sent.
//! - What a record claims was answered before it was written, and the record travels behind that data: a replica of the master
//!   that has the record has the data.
//! - A slot that goes to another master stays listed at the former one until the record of the next is answered: no moment
//!   without a record that speaks for it.
//! - While slots are on their way between masters, only the high-water offset is raised: who holds what is not certain.
//! - A refused record is not sent again, and never follows its slot to another master: it would speak for the wrong one.
//!   The next one will be written where it belongs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::hold::Hold;
use super::lane::{Lane, LaneConfig, SourceLink};
use super::options::Existing;
use super::pace::{Pace, is_talk};
use super::status::{LaneStatus, ResumeStep};
use super::stream::Router;
use super::targets::Targets;
use crate::checkpoint::{
    Former, Generation, LinkName, Record, Resume, Start, State, epoch_key, record_key,
};
use crate::fault::{Fault, FaultKind};
use crate::limits;
use crate::position::{Offset, Position, ReplicationId};
use crate::resp::{push_command, scan};
use crate::slot::{Slot, SlotSet};
use crate::source::Continued;
use crate::target::Form;

/// Numbers of generations, for all lanes of a process.
#[derive(Debug, Clone)]
pub struct Generations {
    epoch: u32,
    used: Arc<AtomicU32>,
}

impl Generations {
    /// `epoch`: the one that this process has claimed.
    pub fn new(epoch: u32) -> Self {
        Self {
            epoch,
            used: Arc::default(),
        }
    }

    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// One that no lane has had.
    pub fn next(&self) -> Generation {
        Generation {
            epoch: self.epoch,
            number: self.used.fetch_add(1, Relaxed) + 1,
        }
    }
}

/// What a lane has told its target masters about itself.
#[derive(Debug)]
pub(super) struct Records {
    link: LinkName,
    generations: Generations,
    pub generation: Generation,
    /// The field of the generation before, to be removed.
    pub(super) superseded: Option<Generation>,
    pub(super) former: Option<Former>,
    /// From where on the former generation is of no use.
    pub(super) settled_at: Offset,
    /// The history before the last failover of the source, and where it was left.
    pub predecessor: Option<Position>,
    /// Databases that were selected in the stream, and from where on.
    databases: Vec<(Offset, u32)>,
    /// Every record says that nothing from here on was sent.
    high: Offset,
    /// Where a process that starts anew begins, as far as is known: before that it asks for nothing. `None` while it would
    /// have to copy.
    pub(super) told: Option<Offset>,
    /// By connection.
    nodes: Vec<Written>,
    promise: Option<Promise>,
    next_ms: u64,
    /// How many commands had been handed over when that was last looked at, and where the stream stood then.
    handed_over: (u64, Offset),
    pace: Pace,
    /// The last records of a lane that ends are written.
    ending: bool,
    /// Some were refused, or may not have arrived: not again before the next tick.
    blocked: bool,
    /// All masters have the records of this lane.
    pub(super) was_written: bool,
}

/// What one target master was last told, as far as it is answered.
#[derive(Debug, Default, Clone)]
struct Written {
    /// Where its key is.
    slot: Slot,
    record: Option<Record>,
    /// Another one may be there: what became of the last that was sent is not known.
    unsure: bool,
}

/// Records on their way.
#[derive(Debug)]
struct Promise {
    high: Offset,
    /// What [`Records::told`] is when it is kept; `None` if these records say nothing about it.
    tells: Option<Option<Offset>>,
    /// Connections, and the run number that each must have answered.
    barriers: Vec<(usize, u64)>,
    written: Vec<(usize, Written)>,
    /// [`Targets::changes`] and refused records when they were written.
    seen: (u64, u64),
}

impl Written {
    fn may_list_anything(&self) -> bool {
        let record = self.record.as_ref();
        self.unsure || record.is_some_and(|record| !record.slots.is_empty())
    }

    fn new(slot: Slot, record: Option<Record>) -> Self {
        Self {
            slot,
            record,
            unsure: false,
        }
    }
}

impl Records {
    pub fn new(link: LinkName, generations: Generations, generation: Generation) -> Self {
        Self {
            link,
            generation,
            generations,
            superseded: None,
            former: None,
            settled_at: Offset::default(),
            predecessor: None,
            databases: Vec::new(),
            high: Offset::default(),
            told: None,
            nodes: Vec::new(),
            promise: None,
            next_ms: 0,
            handed_over: (0, Offset::default()),
            pace: Pace::beginning_at(Offset::default()),
            ending: false,
            blocked: false,
            was_written: false,
        }
    }

    /// Goes on where a former process, or lane, stopped.
    pub fn resume(&mut self, resume: &Resume) {
        self.former = resume.former;
        // All watermarks of a former process are known.
        let passed = resume.passed.values().max().copied();
        self.settled_at = passed.unwrap_or_default();
        self.predecessor = resume.predecessor;
        self.databases = vec![(resume.position.offset, resume.database)];
        self.pace = Pace::beginning_at(resume.position.offset);
        self.told = Some(resume.position.offset);
    }

    /// Another history begins, of which nothing was sent before `at`.
    pub fn begin_anew(&mut self, at: Offset) {
        self.superseded = Some(self.generation);
        self.generation = self.next_generation();
        self.settled_at = Offset::default();
        self.former = None;
        self.predecessor = None;
        self.databases = vec![(at, 0)];
        self.pace = Pace::beginning_at(at);
        self.high = Offset::default();
        self.handed_over.1 = at;
        self.told = None;
        self.promise = None;
        self.nodes.clear();
        self.was_written = false;
    }

    pub fn next_generation(&self) -> Generation {
        self.generations.next()
    }

    /// Something has changed that records should tell of.
    fn write_soon(&mut self) {
        self.next_ms = 0;
    }

    /// Whether records were written, and none lists any of these slots.
    pub fn has_left(&self, slots: &SlotSet) -> bool {
        let mut records = self.nodes.iter().filter_map(|node| node.record.as_ref());
        let unsure = self.nodes.iter().any(|node| node.unsure);
        self.promise.is_none()
            && !unsure
            && self.was_written
            && records.all(|record| record.slots.is_disjoint(slots))
    }

    /// The stream selects a database.
    pub fn select(&mut self, at: Offset, database: u32) {
        self.databases.push((at, database));
    }

    /// The stream goes on from `at`, where this database is selected.
    pub fn stand_at(&mut self, at: Offset, database: u32) {
        self.databases = vec![(at, database)];
        self.handed_over.1 = at;
    }

    /// The database that is selected at `at`.
    pub fn selected_at(&self, at: Offset) -> u32 {
        let later = self.databases.partition_point(|(from, _)| *from <= at);
        let before = self.databases[..later].last();
        before.map_or(0, |(_, database)| *database)
    }

    /// Nobody will ask for a database that was selected before the one at `at`.
    fn forget_before(&mut self, at: Offset) {
        let later = self.databases.partition_point(|(from, _)| *from <= at);
        self.databases.drain(..later.saturating_sub(1));
    }
}

impl LaneConfig {
    /// What the target knows decides how the lane begins.
    pub fn begin(&mut self, start: Start, single: bool, status: &LaneStatus) {
        let first_copy = "the target has no record of this link for these slots";
        let (existing, resume) = match start {
            Start::First => {
                self.claimed_before = false;
                status.set_resume(ResumeStep::FirstCopy, first_copy);
                self.first_copy = true;
                (None, None)
            }
            Start::Copy {
                why,
                exclusive,
                held,
            } => {
                self.held = held;
                self.claimed_before = true;
                status.set_resume(ResumeStep::FullCopy, &why.to_string());
                (Some(exclusive), None)
            }
            Start::Resume(resume) => {
                self.held = resume.held;
                self.claimed_before = true;
                (Some(resume.exclusive), Some(*resume))
            }
        };
        self.existing = match (existing, self.existing) {
            (None, existing) => existing,
            (Some(true), _) | (_, Existing::Replace) => Existing::Replace,
            (Some(false), _) => Existing::Keep,
        };
        let generations = self.generations.as_ref();
        self.generation = match (&resume, generations) {
            (Some(resume), _) => resume.generation,
            (None, Some(generations)) => generations.next(),
            (None, None) => self.generation,
        };
        if let Some(resume) = &resume {
            self.passed.clone_from(&resume.passed);
            self.owned.clone_from(&resume.owned);
        }
        if single && let Some(anchor) = self.slots.iter().next() {
            // One watermark stands for the whole lane.
            let passed = self.passed.values().max().copied();
            self.passed = passed.into_iter().map(|offset| (anchor, offset)).collect();
            self.owned = self.owned.iter().map(|_| anchor).collect();
        }
        self.resume = resume;
    }
}

impl Lane {
    /// Goes on where a former process, or lane, stopped.
    pub(super) fn resume(&mut self, resume: &Resume) {
        if let Some(records) = &mut self.records {
            records.resume(resume);
        }
        self.begin_at(resume.position.id, resume.position.offset);
        self.status.set_replid(resume.position.id.as_str());
        self.copied = true;
        self.settled = true;
        self.router = Router::new(resume.database);
        self.targets.repeated_until = resume.high;
        for (slot, owed) in &resume.owed {
            let slot = if self.targets.is_single() { 0 } else { *slot };
            let passed = resume.passed.get(&slot).copied().unwrap_or_default();
            self.targets
                .owe_found(slot, owed, resume.position.offset, passed);
        }
        if resume.leases {
            // Which keys carry one is not known: all are looked at when the source is quiet, or the last of them is due.
            self.rebuild
                .deadlines
                .assume_unknown(self.config.format.knows_field_expiry());
        }
    }

    /// What records say of the lane's slots is not true any more: a crash or a failover now would cost more than it must.
    pub(super) fn tell_soon(&mut self) {
        if let Some(records) = &mut self.records {
            records.write_soon();
        }
    }

    /// A snapshot of another history will be written.
    pub(super) fn begin_records(&mut self, at: Offset) {
        if let Some(records) = &mut self.records {
            records.begin_anew(at);
            self.route_until = Offset::default();
            self.targets.repeated_until = Offset::default();
            self.targets.set_generation(records.generation);
        }
    }

    /// The source goes on, perhaps under another name, and perhaps before the place where the lane stopped.
    ///
    /// # Errors
    /// When the target may hold writes that the source has lost: see [`super::rewind`].
    pub(super) fn continue_from(&mut self, continued: &Continued) -> Result<(), Fault> {
        let before = self.history.expect("asked for by its name");
        let received = self.received();
        let from = continued.from;
        // What a former process sent is known only as far as its high-water offset tells.
        let handed_over = match &self.hold {
            Some(Hold::Flush(_)) => self.scanned,
            _ => self.routed(),
        };
        let sent = handed_over.max(self.targets.repeated_until);
        if let Some(shared) = continued.shared_until
            && shared < sent
        {
            return self.go_back(shared, sent);
        }
        if from < received {
            // Nothing of what the source lost was handed over: it is asked for what comes behind that.
            self.forget_received(from);
            let why = format!("the source lost what it had written after offset {from}");
            return Err(Fault::new(FaultKind::ConnectionLost, why));
        }
        let other = continued.id.filter(|id| *id != before);
        let (step, why) = match other {
            None => (
                ResumeStep::PartialSame,
                format!("the source goes on from offset {from}"),
            ),
            Some(id) => (
                ResumeStep::PartialPromoted,
                format!("history {before} goes on from offset {from} as {id}"),
            ),
        };
        match self.taken_up.take() {
            Some(begin) => {
                let why = format!("what is spooled on disk begins at offset {begin}, and {why}");
                self.status.set_resume(ResumeStep::Spool, &why);
            }
            None if self.rewind.is_some() => {
                let count = self.targets.mends.keys();
                let why = format!("{why}; {count} keys that it lost writes of are mended");
                self.status.set_resume(ResumeStep::PartialRewound, &why);
            }
            None => self.status.set_resume(step, &why),
        }
        if let Some(id) = other {
            if let Some(records) = &mut self.records {
                records.predecessor = Some(Position {
                    id: before,
                    offset: continued.shared_until.unwrap_or(from),
                });
            }
            self.targets.mends.history_changed(received);
            self.history = Some(id);
            self.spool.set_id(id);
            self.status.set_replid(id.as_str());
        }
        Ok(())
    }

    /// What was received behind `from` is not of the history any more, and was not handed over.
    fn forget_received(&mut self, from: Offset) {
        let in_intake = self.scanned.advanced(self.intake.rest(&self.chunks).len());
        if from < in_intake {
            return self.forget_unrouted();
        }
        self.spool.cut(from);
        if self.spool.is_empty() {
            self.taken_up = None;
        }
        self.targets.mends.history_changed(from);
        let received = self.received();
        self.arrivals.cut(received);
    }

    /// The same, of all that was not handed over.
    pub(super) fn forget_unrouted(&mut self) {
        let routed = self.routed();
        if matches!(self.hold, Some(Hold::Lookup { .. })) {
            self.hold = None;
            self.question = None;
        }
        self.targets.mends.history_changed(routed);
        self.intake.begin(&mut self.chunks, routed);
        self.spool.clear();
        self.taken_up = None;
        self.arrivals.cut(routed);
        self.scanned = routed;
        self.router.forget_open();
    }

    /// The source does not go on where the lane stopped.
    pub(super) fn note_full_copy(&self, before: ReplicationId, offered: Position) {
        // It was not asked to, and the reason is told already.
        if self.start_over {
            return;
        }
        let why = match before == offered.id {
            true => format!(
                "the source's backlog does not reach back to offset {}: raise its repl-backlog-size",
                self.received()
            ),
            false => format!(
                "the source does not know offset {} of history {before}: its history is {}",
                self.received(),
                offered.id
            ),
        };
        self.status.set_resume(ResumeStep::FullCopy, &why);
    }

    /// Writes records when it is time, and takes note of those that are answered. `tick`: the time, at a tick.
    pub(super) fn record_on(&mut self, tick: Option<u64>) {
        self.take_promise();
        let waiting = match self.config.mark && !self.awaits_record {
            // Perhaps there are only echoes.
            true => 0,
            false => self.waiting(),
        };
        let routed = self.routed();
        let Some(records) = &mut self.records else {
            return;
        };
        if records.handed_over.0 != self.commands {
            records.handed_over = (self.commands, routed);
        }
        records.blocked &= tick.is_none();
        let attached = self.copied || matches!(self.link, SourceLink::Copying(_));
        if records.promise.is_some() || records.blocked || self.history.is_none() || !attached {
            return;
        }
        // A command that is longer than a step waits for a record that reaches beyond it.
        let ahead = waiting.max(records.pace.step() / 4);
        let near = self.scanned.advanced(ahead) > records.high;
        let due = tick.is_some_and(|now_ms| now_ms >= records.next_ms);
        // What they do not tell of is kept in memory, for a spool to begin with.
        let applied = Offset(self.status.acknowledged_offset.load(Relaxed));
        let untold = records.told.map_or(0, |told| applied.since(told));
        let behind = untold >= limits::UNTOLD_BYTES && self.targets.routes_are_certain();
        let ended = records.ending;
        if self.stopping && self.is_drained() {
            if !ended {
                // Whatever is left goes to the next process: the last records must stay true.
                let routed = self.routed();
                self.route_until = routed;
                self.write_records(routed, true);
            }
        } else if near || due || behind {
            let news = behind || self.has_news();
            self.records_due(tick.filter(|_| due || news), waiting, news);
        }
    }

    /// Whether records have more to tell than that echoes were passed over.
    fn has_news(&self) -> bool {
        let untold = |records: &Records| {
            let told = records.told.is_none_or(|told| told < records.handed_over.1);
            told || records.next_ms == 0 || records.nodes.iter().any(|node| node.unsure)
        };
        let records = self.records.as_ref();
        let waits = self.awaits_record || self.wants_renewal();
        !self.config.mark || waits || records.is_some_and(untold)
    }

    /// Whether records of this moment would differ in more than offsets from those that are there.
    fn tells_otherwise(&mut self) -> bool {
        let Some(mut records) = self.records.take() else {
            return false;
        };
        records.nodes.resize(self.targets.len(), Written::default());
        let drafts = match self.targets.routes_are_certain() {
            true => self.draft(&mut records, Offset::default(), false),
            false => Vec::new(),
        };
        let differs = |(index, draft): &(usize, Written)| {
            let written = &records.nodes[*index];
            let without_offsets = |record: &Option<Record>| {
                let mut record = record.clone()?;
                (record.position.offset, record.high) = Default::default();
                Some(record)
            };
            let same = without_offsets(&written.record) == without_offsets(&draft.record);
            written.slot != draft.slot || !same
        };
        let differs = drafts.iter().any(differs);
        self.records = Some(records);
        differs
    }

    /// How many bytes are yet to be handed over. What a source says while nobody writes is none.
    fn waiting(&self) -> usize {
        let mut rest = self.intake.rest(&self.chunks);
        let waiting = rest.len();
        let is_quiet = |records: &Records| records.pace.step() == 0;
        if waiting > limits::QUIET_BYTES as usize || !self.records.as_ref().is_some_and(is_quiet) {
            return waiting;
        }
        while let Ok(Some(frame)) = scan(rest) {
            if !is_talk(&frame) {
                return waiting;
            }
            rest = &rest[frame.bytes().len()..];
        }
        0
    }

    /// `news`: whether there is anything to tell but that the high-water offset may be lower.
    fn records_due(&mut self, tick: Option<u64>, waiting: usize, news: bool) {
        let Some(records) = &mut self.records else {
            return;
        };
        let came_to = self.scanned.advanced(waiting);
        if let Some(now_ms) = tick {
            records.next_ms = now_ms + self.config.record_interval_ms;
            records.pace.end_interval(came_to, self.commands);
        }
        let mut step = records.pace.take_step(came_to, waiting);
        let lower = step == 0 && records.high > came_to;
        let worth_it = news || lower || (tick.is_some() && self.tells_otherwise());
        if !worth_it {
            return;
        }
        if !self.settled {
            step = step.max(limits::COPYING_HIGH_STEP_BYTES);
        }
        self.write_records(came_to.advanced(step), false);
    }

    /// Whether the last records of a lane that stops are answered.
    pub(super) fn records_ended(&self) -> bool {
        self.records.as_ref().is_none_or(|records| {
            let nothing_to_tell = self.history.is_none() || !self.copied;
            nothing_to_tell || (records.ending && records.promise.is_none())
        })
    }

    /// Records on their way may have been answered, or be void.
    fn take_promise(&mut self) {
        let Some(records) = &mut self.records else {
            return;
        };
        let Some(promise) = &records.promise else {
            return;
        };
        let targets = &self.targets;
        if promise.seen != (targets.changes, targets.records_refused) {
            // Whatever became of them, they are written again.
            records.break_promise();
            records.next_ms = 0;
            records.ending = false;
            records.blocked = true;
            return;
        }
        let answered =
            |&(index, number): &(usize, u64)| targets.nodes[index].writer.answered_to() >= number;
        if !promise.barriers.iter().all(answered) {
            return;
        }
        let promise = records.promise.take().expect("looked at above");
        records.high = promise.high;
        if let Some(told) = promise.tells {
            records.told = told;
            records.was_written = true;
        }
        if !records.ending {
            self.route_until = promise.high;
        }
        for (index, written) in promise.written {
            records.nodes[index] = written;
        }
        records.superseded = None;
        let told = records.told;
        let settled = records.settled_at;
        let generation = records.generation;
        if self.renewed(generation) {
            let routed = self.routed();
            if let Some(records) = &mut self.records {
                // Watermarks of a former process may lie farther ahead.
                records.settled_at = records.settled_at.max(routed);
            }
        } else if told >= Some(settled) {
            self.targets.marks.settle();
        }
    }

    /// Gives every target master that this lane writes to its record; none, as long as one of them cannot be reached.
    fn write_records(&mut self, high: Offset, ending: bool) {
        let Some(mut records) = self.records.take() else {
            return;
        };
        records.nodes.resize(self.targets.len(), Written::default());
        // A former process may have written so far ahead.
        let high = high.max(self.targets.repeated_until);
        let (drafts, tells) = match self.targets.routes_are_certain() {
            true => {
                let (state, acked) = self.recordable();
                let tells = (state == State::Streaming).then_some(acked);
                let mut drafts = self.draft(&mut records, high, ending);
                let certain = tells.is_some() && self.gone_elsewhere(&records, &drafts).is_empty();
                if certain && !ending && self.wants_renewal() && records.may_renew() {
                    self.renew(&mut records);
                    drafts = self.draft(&mut records, high, ending);
                }
                (drafts, Some(tells))
            }
            false => (records.raised(high), None),
        };
        let gone = match tells {
            Some(_) => self.gone_elsewhere(&records, &drafts),
            None => Vec::new(),
        };
        for (index, _) in &drafts {
            // Nothing else may be left to be written there.
            self.targets.nodes[*index].needed = true;
        }
        let ready = |(index, _): &(usize, Written)| self.targets.nodes[*index].writer.is_ready();
        let nothing_to_list = tells.is_some() && self.whole_slots().is_empty();
        if (nothing_to_list || !drafts.is_empty()) && drafts.iter().all(ready) {
            records.ending = ending;
            // It may be lower than what the last ones promised.
            self.route_until = self.route_until.min(high);
            records.high = records.high.min(high);
            let seen = (self.targets.changes, self.targets.records_refused);
            let mut barriers = Vec::new();
            for (index, draft) in &drafts {
                if self.write_record(&records, *index, draft) {
                    barriers.push((*index, self.targets.nodes[*index].writer.next_number()));
                }
            }
            let mut drafts = drafts;
            if !gone.is_empty() {
                gone.iter()
                    .for_each(|index| self.remove_record(&records, *index, &drafts));
                barriers.extend(self.targets.fence());
                let emptied = |index: usize| Written::new(records.nodes[index].slot, None);
                drafts.extend(gone.into_iter().map(|index| (index, emptied(index))));
            }
            records.promise = Some(Promise {
                high,
                tells,
                barriers,
                written: drafts,
                seen,
            });
        }
        self.records = Some(records);
    }

    /// What records of this moment say of how far the lane is.
    fn recordable(&self) -> (State, Offset) {
        let settled = self.settled && self.sweep.is_none() && !self.unswept;
        match settled && self.rewind.is_none() {
            true => (State::Streaming, self.progress().acknowledged),
            false => (State::Copying, self.copied_at),
        }
    }

    /// Where a process that starts anew begins: what is before need not be kept for it. When it would have to copy, that is
    /// what is `acknowledged`.
    pub(super) fn recorded(&self, acknowledged: Offset) -> Offset {
        let records = self.records.as_ref();
        let told = records.and_then(|records| {
            let coming = records.promise.as_ref().and_then(|promise| promise.tells?);
            records.told.or(coming)
        });
        told.unwrap_or(acknowledged).min(acknowledged)
    }

    /// The records of this moment, by connection.
    fn draft(&self, records: &mut Records, high: Offset, ending: bool) -> Vec<(usize, Written)> {
        let (state, acked) = self.recordable();
        records.forget_before(acked.min(self.intake.kept_from()));
        let database = records.selected_at(acked);
        let mut drafts = Vec::new();
        let listed = self.whole_slots();
        let by_node = self.targets.slots_by_node(&listed);
        // A record that lists what the lane does not write any more is written again, without.
        let emptied = (0..records.nodes.len())
            .filter(|index| by_node.iter().all(|(other, _)| other != index))
            .filter(|&index| records.nodes[index].may_list_anything())
            .filter(|&index| self.targets.is_at(records.nodes[index].slot, index))
            .map(|index| (index, SlotSet::new()));
        for (index, routed) in by_node.iter().cloned().chain(emptied.collect::<Vec<_>>()) {
            let slots = routed.union(&records.only_at(index).intersection(&listed));
            let record = Record {
                state,
                node: self.targets.nodes[index].node.id.clone(),
                position: Position {
                    id: self.history.expect("checked by the caller"),
                    offset: acked,
                },
                predecessor: records.predecessor,
                database,
                high,
                watermarks: self.targets.marks.named().intersection(&slots),
                slots,
                former: records.former,
                exclusive: self.config.existing != Existing::Keep,
                // While the lane runs, the next command may be given one.
                leases: !ending || !self.rebuild.deadlines.is_empty(),
                held: self.config.held,
            };
            let slot = routed.iter().next().unwrap_or(records.nodes[index].slot);
            let record = Some(record);
            drafts.push((index, Written::new(slot, record)));
        }
        drafts
    }

    /// Masters to which the lane writes nothing any more, and whose records have gone to others with the slots of their keys.
    fn gone_elsewhere(&self, records: &Records, drafts: &[(usize, Written)]) -> Vec<usize> {
        let drafted = |index: &usize| drafts.iter().any(|(other, _)| other == index);
        (0..records.nodes.len())
            .filter(|index| !drafted(index) && records.nodes[*index].may_list_anything())
            .collect()
    }

    /// Removes the record of such a master, wherever it is, unless that of another is about to take its place.
    fn remove_record(&mut self, records: &Records, index: usize, drafts: &[(usize, Written)]) {
        let slot = records.nodes[index].slot;
        if drafts.iter().any(|(_, draft)| draft.slot == slot) {
            return;
        }
        let key = record_key(&records.link, slot);
        let (place, at) = (self.targets.slot_of(&key), self.routed());
        self.targets.stage(&mut self.chunks, place, at, 0, |out| {
            records.push_removal(&key, out)
        });
    }

    /// What a target master held about this lane goes with its keys: it gets it back, right behind.
    pub(super) fn write_record_again(&mut self, index: usize) {
        let Some(mut records) = self.records.take() else {
            return;
        };
        let written = records.nodes.get_mut(index).map(std::mem::take);
        if let Some(mut written) = written.filter(|written| written.record.is_some()) {
            if let Some(record) = &mut written.record {
                record.watermarks = SlotSet::new();
                record.former = records.former;
            }
            let key = epoch_key(&records.link, written.slot);
            let epoch = records.generations.epoch().to_string();
            let at = self.routed();
            self.push_built(index, 0, at, Form::Command, |out| {
                push_command(out, &[b"SET", &key, epoch.as_bytes()]);
                1
            });
            self.write_record(&records, index, &written);
            records.nodes[index] = written;
        }
        // What is on its way said more than there is now.
        records.break_promise();
        records.next_ms = 0;
        self.records = Some(records);
    }

    /// Sends a record if it says something new; whether it was sent.
    fn write_record(&mut self, records: &Records, index: usize, draft: &Written) -> bool {
        let before = &records.nodes[index];
        if before.record == draft.record && before.slot == draft.slot && !before.unsure {
            return false;
        }
        let Some(record) = &draft.record else {
            return false;
        };
        let key = record_key(&records.link, draft.slot);
        let field = records.generation.to_string();
        let superseded = records.superseded.map(|generation| generation.to_string());
        let at = self.routed();
        self.push_built(index, 0, at, Form::Command, |out| {
            push_command(
                out,
                &[b"HSET", &key, field.as_bytes(), record.encode().as_bytes()],
            );
            if let Some(old) = &superseded {
                push_command(out, &[b"HDEL", &key, old.as_bytes()]);
            }
            1 + usize::from(superseded.is_some())
        });
        // Its key was in a slot that has gone to another master since.
        if before.record.is_some() && before.slot != draft.slot {
            let key = record_key(&records.link, before.slot);
            let slot = self.targets.slot_of(&key);
            self.targets.stage(&mut self.chunks, slot, at, 0, |out| {
                records.push_removal(&key, out)
            });
        }
        true
    }
}

impl Records {
    /// Records on their way may be there or not: those that were there before tell nothing of that.
    fn break_promise(&mut self) {
        for (index, written) in self.promise.take().into_iter().flat_map(|p| p.written) {
            let node = &mut self.nodes[index];
            node.unsure = true;
            if node.record.is_none() && written.record.is_some() {
                node.slot = written.slot;
            }
        }
    }

    /// Writes the command that removes the record at a key, whichever generation it is of; how many frames that are.
    fn push_removal(&self, key: &[u8], out: &mut Vec<u8>) -> usize {
        let field = self.generation.to_string();
        let superseded = self.superseded.map(|generation| generation.to_string());
        let mut command: Vec<&[u8]> = vec![b"HDEL", key, field.as_bytes()];
        command.extend(superseded.as_ref().map(String::as_bytes));
        push_command(out, &command);
        1
    }

    /// Slots that only this master's record lists so far.
    fn only_at(&self, index: usize) -> SlotSet {
        let listed = |node: &Written| node.record.as_ref().map(|record| record.slots.clone());
        let own = self.nodes.get(index).and_then(listed).unwrap_or_default();
        let others = self.nodes.iter().enumerate();
        others
            .filter(|(other, _)| *other != index)
            .filter_map(|(_, node)| listed(node))
            .fold(own, |own, other| own.difference(&other))
    }

    /// The records as they are, with another high-water offset.
    fn raised(&self, high: Offset) -> Vec<(usize, Written)> {
        let nodes = self.nodes.iter().enumerate();
        let known =
            nodes.filter_map(|(index, node)| Some((index, node.slot, node.record.clone()?)));
        known
            .map(|(index, slot, record)| {
                let record = Some(Record {
                    high,
                    former: self.former,
                    ..record
                });
                (index, Written::new(slot, record))
            })
            .collect()
    }
}

impl Targets {
    /// Whether the topology says where everything goes: no slot is on its way between masters, as far as is known.
    fn routes_are_certain(&self) -> bool {
        self.redirected.is_empty() && self.parked.values().all(|parked| parked.ask.is_none())
    }

    /// Whether a slot is at this master, by the topology.
    fn is_at(&self, slot: Slot, index: usize) -> bool {
        self.is_single() || usize::from(self.owners[usize::from(slot)]) == index
    }

    /// Which of these slots go to which connection.
    fn slots_by_node(&self, slots: &SlotSet) -> Vec<(usize, SlotSet)> {
        let mut nodes = vec![SlotSet::new(); self.nodes.len()];
        for slot in slots.iter() {
            let mut route = self.routes[usize::from(slot)];
            if usize::from(route) >= nodes.len() {
                route = self.owners[usize::from(slot)];
            }
            if let Some(slots) = nodes.get_mut(usize::from(route)) {
                slots.insert(slot);
            }
        }
        let nodes = nodes.into_iter().enumerate();
        nodes.filter(|(_, slots)| !slots.is_empty()).collect()
    }
}
