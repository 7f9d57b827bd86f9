//! The stream: commands found in the receive buffer, classified, and lent to the owners of their slots.
//!
//! The plain course, a data command with its keys in one slot, allocates nothing and copies nothing: the command
//! joins the run of its neighbours for the same master, and the run is handed over as one range.
//!
//! ```text
//! SET a | SET b | SET c | PING | MULTI SET d INCR d EXEC | ...
//! [ run for master 1    ]        [ transaction, one unit ]
//! ```
//!
//! A transaction is looked at whole, when its `EXEC` has come. One that touches several slots of a cluster is split
//! into one per slot; one that holds what is no data command is taken apart.

use std::collections::BTreeSet;

use super::echo;
use super::hold::Hold;
use super::lane::{Lane, LaneConfig};
use super::lookup::LookupQuestion;
use super::motion::Passing;
use super::options::DatabaseMap;
use super::pace::is_talk;
use super::status::ErrorCount;
use super::targets::Targets;
use crate::command::rewrite::Features;
use crate::command::{self, Command, FunctionOp, KeySpec, Kind, SlotOf, SlotOp};
use crate::fault::{Fault, FaultKind};
use crate::limits;
use crate::position::Offset;
use crate::resp::{Frame, push_command, scan};
use crate::slot::Slot;
use crate::target::{Form, Guard, Unit};

/// What the router must remember between commands.
pub(super) struct Router {
    /// The source's selected database.
    database: u32,
    /// Where its commands go; `None` if they are dropped.
    pub target_database: Option<u32>,
    pub open: Option<Open>,
    /// Commands before this offset are taken one by one although they stand in a transaction.
    apart_until: Offset,
    /// Keys of the command at this offset, as the source told them.
    pub told: Option<(Offset, SlotOf)>,
    pub last_mapped: Option<(u32, Option<u32>)>,
    /// Target databases that were written to.
    pub used_databases: BTreeSet<u32>,
}

/// A transaction without its `EXEC`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    pub frames: u32,
    slot: Option<Slot>,
    /// It touches more than one slot of a cluster.
    several: bool,
    /// It holds a command that is not plain data.
    special: bool,
    /// It holds a command that may have to be rebuilt for the target.
    watched: bool,
    /// It holds a command that must not be applied twice.
    once: bool,
    /// It holds a command of a slot that the lane does not write.
    moving: bool,
    /// It holds a command that was replicated into the source.
    pub echo: bool,
}

/// Neighbouring commands for one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    slot: Slot,
    route: u16,
    start: u32,
    frames: u32,
    begin: Offset,
}

/// What was found out about a command.
struct Found {
    step: Step,
    /// It may have to be rebuilt for the target.
    watched: bool,
    /// It must not be applied twice.
    once: bool,
}

/// What a command asks for, without borrowing it.
pub(super) enum Step {
    /// To the owner of the slot.
    Slot(Slot),
    /// Keys in several slots of a cluster.
    Several,
    /// To any one master.
    Anywhere,
    /// Counts in the offset only.
    Skip,
    /// The source wants to know how far we are.
    AckWanted,
    Select(u32),
    Multi,
    Exec,
    Discard,
    /// Remove all keys of this lane's slots, or of some of them.
    Flush(Kind),
    /// To every master, as built here.
    Broadcast(Option<FunctionOp>),
    Ask(LookupQuestion),
}

impl Router {
    /// `database`: the one that is selected in the source's stream.
    pub fn new(database: u32) -> Self {
        Self {
            database,
            target_database: Some(0),
            open: None,
            apart_until: Offset::default(),
            told: None,
            last_mapped: None,
            used_databases: BTreeSet::new(),
        }
    }

    /// The stream goes on where this database was selected.
    pub fn resume(&mut self, database: u32) {
        self.database = database;
    }

    /// The stream goes on from an offset that it had passed, in another history, where this database is selected.
    pub fn go_back(&mut self, database: u32) {
        let used_databases = std::mem::take(&mut self.used_databases);
        *self = Self {
            used_databases,
            ..Self::new(database)
        };
    }
}

impl Router {
    /// The open transaction is looked at from its start again.
    pub fn forget_open(&mut self) {
        self.open = None;
    }

    /// Where commands go at present; `None` if they are dropped.
    pub fn target_database(&self) -> Option<u32> {
        self.target_database
    }
}

impl Lane {
    /// Routes everything received, up to what is incomplete or must wait.
    pub(super) fn route_on(&mut self) -> Result<(), Fault> {
        // The copy will be made again, and commands could meet keys that its sweep had not removed.
        if self.stopping && self.unswept {
            return Ok(());
        }
        if self.router.last_mapped.is_none() {
            self.select(self.router.database)?;
        }
        self.awaits_record = false;
        // A transaction that is open may be gone through again, command by command.
        self.targets.marks.come_to(self.routed());
        let mut run = None;
        let result = self.route_frames(&mut run);
        self.flush_run(&mut run);
        result
    }

    fn route_frames(&mut self, run: &mut Option<Run>) -> Result<(), Fault> {
        while self.hold.is_none() {
            let frame = match scan(self.intake.rest(&self.chunks)) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
                Err(error) => {
                    return Err(Fault::new(
                        FaultKind::Protocol,
                        format!(
                            "the stream at offset {} is no command: {error}",
                            self.scanned
                        ),
                    ));
                }
            };
            let length = frame.bytes().len();
            if self.config.mark && echo::is_echo(&frame) {
                self.drop_echo(run, length);
                continue;
            }
            if self.scanned.advanced(length) > self.route_until && self.needs_record(&frame) {
                self.awaits_record = true;
                return Ok(());
            }
            let verb = frame.verb_range();
            let Found {
                step,
                watched,
                once,
            } = classify(
                &frame,
                &self.targets,
                &self.router,
                &self.config,
                self.rebuild.watched,
                self.scanned,
            )?;
            if self.scanned < self.targets.marks.skip_until
                && self.router.open.is_none()
                && is_applied(&mut self.targets, &step, self.scanned.advanced(length))
            {
                self.flush_run(run);
                self.skip_passed(&step, length);
                continue;
            }
            if self.is_of_others(&frame, &step) {
                self.drop_moving(run, length);
                continue;
            }
            if let Some(sweep) = &mut self.sweep
                && !matches!(step, Step::Ask(_))
            {
                let fresh = sweep.meet(&frame, &self.targets, &self.router);
                self.clear_the_way(run, fresh);
            }
            if watched && self.rebuild_at_cursor(run, &step, length)? {
                continue;
            }
            if let Step::Slot(slot) = step
                && self.router.open.is_none()
                && self.router.target_database.is_some()
            {
                if self.config.mark {
                    self.intake.mark(&mut self.chunks, verb);
                }
                self.extend_run(run, slot, length, once);
                continue;
            }
            self.special(run, step, length, once)?;
        }
        Ok(())
    }

    /// Whether a command may not be handed over before a record has told of it. What a source says while nobody writes needs
    /// none, and of a transaction it is seen at its end whether it is an echo.
    fn needs_record(&self, frame: &Frame<'_>) -> bool {
        let is = |verb: &[u8]| frame.verb().eq_ignore_ascii_case(verb);
        match &self.router.open {
            Some(open) if self.config.mark => !open.echo && is(b"EXEC"),
            None if self.config.mark && is(b"MULTI") => false,
            Some(_) => true,
            None => !is_talk(frame),
        }
    }

    /// The command at the cursor is applied already.
    #[cold]
    fn skip_passed(&mut self, step: &Step, length: usize) {
        let slot = match *step {
            Step::Slot(slot) => slot,
            _ => 0,
        };
        let bytes = &self.intake.rest(&self.chunks)[..length];
        let database = self.router.target_database.unwrap_or(0);
        self.targets
            .look_through_passed(slot, bytes, database, self.scanned);
        self.status.count(ErrorCount::Skipped);
        self.pass(length);
    }

    /// The command at the cursor is of slots that the lane does not write.
    #[cold]
    fn drop_moving(&mut self, run: &mut Option<Run>, length: usize) {
        match &mut self.router.open {
            // It is known at the end what of the transaction is to be sent.
            Some(open) => {
                open.frames += 1;
                open.moving = true;
                self.keep_open(length);
            }
            None => {
                self.flush_run(run);
                self.note_dropped(1);
                self.pass(length);
            }
        }
    }

    /// Removes what stale keys a command would meet.
    fn clear_the_way(&mut self, run: &mut Option<Run>, fresh: Option<Vec<(u32, Vec<u8>)>>) {
        let Some(fresh) = fresh else {
            let why = "a script was replicated as it was called, and may write any key";
            return self.give_sweep_up(why);
        };
        for (database, key) in fresh {
            self.flush_run(run);
            self.remove_stale(database, &key);
        }
    }

    /// The plain course.
    #[inline]
    fn extend_run(&mut self, run: &mut Option<Run>, slot: Slot, length: usize, once: bool) {
        if once {
            return self.send_once(run, slot, length);
        }
        let route = self.targets.routes[usize::from(slot)];
        let start = self.intake.cursor();
        let begin = self.scanned;
        self.commands += 1;
        self.intake.scanned(length);
        self.intake.close();
        self.scanned = begin.advanced(length);
        let connected =
            usize::from(route) < self.targets.len() && !self.targets.mends.watches(slot);
        match run {
            Some(open) if open.route == route && connected => open.frames += 1,
            _ => {
                // What this command is not part of ends before it.
                if let Some(finished) = run.take() {
                    self.send_run(finished, start, begin);
                }
                *run = Some(Run {
                    slot,
                    route,
                    start,
                    frames: 1,
                    begin,
                });
                if !connected {
                    // Each command of a parked slot is kept by itself.
                    self.flush_run(run);
                }
            }
        }
    }

    /// A command that must not be applied twice, `length` bytes at the cursor.
    fn send_once(&mut self, run: &mut Option<Run>, slot: Slot, length: usize) {
        self.flush_run(run);
        let unit = Unit {
            guard: Guard::Needed,
            ..self.unit_at_cursor(length, 1, Form::Command)
        };
        self.pass(length);
        self.commands += 1;
        self.targets.send(&mut self.chunks, slot, unit);
    }

    /// Hands the run over; it ends where the scan is.
    pub(super) fn flush_run(&mut self, run: &mut Option<Run>) {
        if let Some(finished) = run.take() {
            self.send_run(finished, self.intake.cursor(), self.scanned);
        }
    }

    fn send_run(&mut self, run: Run, end: u32, end_offset: Offset) {
        let range = self.intake.range(run.start, end);
        self.chunks.hold(range.chunk);
        let unit = Unit {
            range,
            form: Form::Command,
            frames: run.frames,
            begin: run.begin,
            end: end_offset,
            database: self
                .router
                .target_database
                .expect("dropped commands form no run"),
            asking: false,
            again: false,
            guard: Guard::None,
        };
        self.targets.send(&mut self.chunks, run.slot, unit);
    }

    /// Everything that is not the plain course. The command is `length` bytes at the intake's cursor.
    fn special(
        &mut self,
        run: &mut Option<Run>,
        step: Step,
        length: usize,
        once: bool,
    ) -> Result<(), Fault> {
        if let Some(open) = &mut self.router.open {
            open.once |= once;
            return self.inside_transaction(run, step, length);
        }
        self.flush_run(run);
        let dropped = self.router.target_database.is_none();
        let begin = self.scanned;
        let apart = begin < self.router.apart_until;
        let counts = !matches!(
            step,
            Step::Skip | Step::AckWanted | Step::Select(_) | Step::Ask(_)
        );
        if counts && dropped {
            self.status.count(ErrorCount::DroppedDatabase);
            // FLUSHALL and functions concern more than the selected database.
            let global = matches!(step, Step::Flush(Kind::FlushAll) | Step::Broadcast(_));
            if !global {
                self.pass(length);
                return Ok(());
            }
        }
        match step {
            Step::Skip => self.pass(length),
            Step::AckWanted => {
                self.ack_now = true;
                self.ack_wanted = Some(begin);
                self.pass(length);
            }
            Step::Select(database) => {
                self.select(database)?;
                self.pass(length);
            }
            Step::Multi if apart => self.pass(length),
            Step::Multi => {
                self.router.open = Some(Open {
                    frames: 1,
                    slot: None,
                    several: false,
                    special: false,
                    watched: false,
                    once: false,
                    moving: false,
                    echo: false,
                });
                self.keep_open(length);
            }
            // The end of a transaction that was taken apart, or one that is not open: nothing to do.
            Step::Exec | Step::Discard => self.pass(length),
            Step::Slot(slot) => {
                self.extend_run(run, slot, length, once);
            }
            Step::Several => self.split_command(length)?,
            Step::Anywhere => self.send_anywhere(length, once),
            Step::Flush(kind) => {
                let bytes = self.intake.rest(&self.chunks)[..length].to_vec();
                self.begin_flush(kind, bytes, length)?;
            }
            Step::Broadcast(op) => {
                let bytes = self.intake.rest(&self.chunks)[..length].to_vec();
                self.broadcast(op, &bytes, length);
            }
            Step::Ask(question) => {
                self.hold = Some(Hold::Lookup { begin });
                self.question = Some(question);
            }
        }
        Ok(())
    }

    /// Takes the command at the cursor as done.
    pub(super) fn pass(&mut self, length: usize) {
        self.intake.scanned(length);
        self.intake.close();
        self.scanned = self.scanned.advanced(length);
    }

    /// Takes the command at the cursor into the open transaction.
    pub(super) fn keep_open(&mut self, length: usize) {
        self.intake.scanned(length);
        self.scanned = self.scanned.advanced(length);
    }

    fn select(&mut self, database: u32) -> Result<(), Fault> {
        self.router.database = database;
        if let Some(records) = &mut self.records {
            records.select(self.scanned, database);
        }
        self.router.target_database =
            self.router
                .target_of(&self.config, &self.targets, database)?;
        Ok(())
    }

    fn send_anywhere(&mut self, length: usize, once: bool) {
        if self.config.mark {
            self.intake.scanned(length);
            self.intake.mark_open(&mut self.chunks);
            self.intake.reopen();
        }
        let mut unit = self.unit_at_cursor(length, 1, Form::Command);
        // In a cluster it belongs to no slot.
        if once && self.targets.is_single() {
            unit.guard = Guard::Needed;
        }
        self.pass(length);
        self.commands += 1;
        match self.targets.any() {
            // In a single server everything keeps its order, and the one slot may be waiting.
            Some(index) if !self.targets.is_single() => {
                self.targets.push(&mut self.chunks, index, unit);
            }
            _ => self.targets.send(&mut self.chunks, 0, unit),
        }
    }

    fn unit_at_cursor(&mut self, length: usize, frames: u32, form: Form) -> Unit {
        let start = self.intake.cursor();
        let range = self.intake.range(start, start + length as u32);
        self.chunks.hold(range.chunk);
        Unit {
            range,
            form,
            frames,
            begin: self.scanned,
            end: self.scanned.advanced(length),
            database: self.router.target_database.unwrap_or(0),
            asking: false,
            again: false,
            guard: Guard::None,
        }
    }

    /// One command over several slots, as one command per slot.
    fn split_command(&mut self, length: usize) -> Result<(), Fault> {
        let bytes = self.intake.rest(&self.chunks)[..length].to_vec();
        let begin = self.scanned;
        self.split_into_slots(&bytes, begin, |lane, slot, part| {
            if !lane.passes(slot) {
                return lane.note_dropped(1);
            }
            let database = lane.router.target_database.unwrap_or(0);
            let chunks = &mut lane.chunks;
            let end = begin.advanced(length);
            lane.targets
                .stage_for(chunks, slot, begin, end, database, |out| {
                    out.extend_from_slice(part);
                    1
                });
        })?;
        self.status.count(ErrorCount::SplitCommands);
        self.commands += 1;
        self.pass(length);
        Ok(())
    }

    /// Removes what the flush `bytes`, `length` bytes at the cursor as it came, is to remove; later commands wait.
    pub(super) fn begin_flush(
        &mut self,
        kind: Kind,
        bytes: Vec<u8>,
        length: usize,
    ) -> Result<(), Fault> {
        let begin = self.scanned;
        self.commands += 1;
        self.pass(length);
        let database = self.router.target_database;
        self.hold = Some(Hold::flush(begin, kind, bytes, database)?);
        self.hold_on(None)
    }

    pub(super) fn split_into_slots(
        &mut self,
        bytes: &[u8],
        at: Offset,
        mut sink: impl FnMut(&mut Self, Slot, &[u8]),
    ) -> Result<(), Fault> {
        let frame = scan(bytes).ok().flatten().expect("scanned before");
        let command = command::find(&frame).ok_or_else(|| cross_slot(&frame, at))?;
        command::split_by_slot(&frame, command, |slot, part| sink(self, slot, part))
            .map_err(|_| cross_slot(&frame, at))
    }

    /// Sends the command `bytes`, `length` bytes at the cursor as it came, to every master.
    pub(super) fn broadcast(&mut self, op: Option<FunctionOp>, bytes: &[u8], length: usize) {
        let frame = scan(bytes).ok().flatten().expect("scanned before");
        let (chunks, at) = (&mut self.chunks, self.scanned);
        self.targets.broadcast(
            chunks,
            at,
            |_| true,
            |out| match op {
                // Every lane brings the same library to each master: the second time it is there already.
                Some(FunctionOp::Load) => {
                    let code = frame.args().last().unwrap_or_default();
                    push_command(out, &[b"FUNCTION", b"LOAD", b"REPLACE", code]);
                }
                Some(FunctionOp::Restore) if frame.argc() == 3 || policy_is(&frame, b"APPEND") => {
                    let payload = frame.arg(2).unwrap_or_default();
                    push_command(out, &[b"FUNCTION", b"RESTORE", payload, b"REPLACE"]);
                }
                _ => out.extend_from_slice(frame.bytes()),
            },
        );
        self.commands += 1;
        self.pass(length);
    }

    // Transactions.

    /// Notes that the command at the cursor may have to be rebuilt, if a transaction is open.
    pub(super) fn watch_open(&mut self) -> bool {
        match &mut self.router.open {
            Some(open) => {
                open.watched = true;
                true
            }
            None => false,
        }
    }

    fn inside_transaction(
        &mut self,
        run: &mut Option<Run>,
        step: Step,
        length: usize,
    ) -> Result<(), Fault> {
        let cluster = !self.targets.is_single();
        let open = self.router.open.as_mut().expect("checked by the caller");
        match step {
            Step::Exec => {
                let open = *open;
                self.router.open = None;
                self.keep_open(length);
                return self.close_transaction(run, open);
            }
            Step::Discard => {
                self.router.open = None;
                self.pass(length);
                return Ok(());
            }
            Step::Ask(question) => {
                let begin = Offset(self.scanned.0 - self.intake.open_bytes() as u64);
                self.hold = Some(Hold::Lookup { begin });
                self.question = Some(question);
                return Ok(());
            }
            Step::Slot(slot) => match open.slot {
                None => open.slot = Some(slot),
                Some(other) => open.several |= other != slot,
            },
            Step::Several => open.several = true,
            Step::Anywhere => open.special |= cluster,
            // Talk of the source may stand anywhere; it must not reach the target.
            Step::Skip | Step::AckWanted => open.special = true,
            Step::Select(_) | Step::Multi | Step::Flush(_) | Step::Broadcast(_) => {
                open.special = true;
            }
        }
        open.frames += 1;
        self.keep_open(length);
        if self.intake.open_bytes() > limits::MAX_TRANSACTION_BYTES {
            let text = format!(
                "the transaction before offset {} is larger than {} bytes",
                self.scanned,
                limits::MAX_TRANSACTION_BYTES
            );
            return Err(Fault::new(FaultKind::TooLarge, text));
        }
        Ok(())
    }

    /// The scan stands behind the `EXEC`.
    fn close_transaction(&mut self, run: &mut Option<Run>, open: Open) -> Result<(), Fault> {
        let length = self.intake.open_bytes();
        let begin = Offset(self.scanned.0 - length as u64);
        let data = open.frames - 1;
        if open.echo {
            return match self.drop_echoes(data) {
                Some(database) => self.select(database),
                None => Ok(()),
            };
        }
        if data == 0 {
            self.intake.close();
            return Ok(());
        }
        if open.special {
            // Again from its start, command by command.
            self.status.count(ErrorCount::SplitTransactions);
            self.router.apart_until = self.scanned;
            self.intake.reopen();
            self.scanned = begin;
            return Ok(());
        }
        self.commands += u64::from(data);
        let Some(database) = self.router.target_database else {
            self.status
                .count_many(ErrorCount::DroppedDatabase, u64::from(data));
            self.intake.close();
            return Ok(());
        };
        debug_assert!(run.is_none(), "a run ends before a transaction opens");
        if self.is_of_moving(&open) {
            let bytes = { self.chunks.get(self.intake.open_range()).to_vec() };
            self.intake.close();
            self.note_dropped(u64::from(data));
            return match self.passing_in(&bytes) {
                Passing::Nothing => Ok(()),
                _ => self.rebuild_transaction(&bytes, begin, database),
            };
        }
        if open.several || open.watched {
            let bytes = { self.chunks.get(self.intake.open_range()).to_vec() };
            self.intake.close();
            if open.several {
                self.status.count(ErrorCount::SplitTransactions);
            }
            return self.rebuild_transaction(&bytes, begin, database);
        }
        let slot = open.slot.unwrap_or(0);
        if begin < self.targets.marks.skip_until && self.targets.marks.is_passed(slot, self.scanned)
        {
            let bytes = self.chunks.get(self.intake.open_range());
            self.targets
                .look_through_passed(slot, bytes, database, begin);
            self.status.count(ErrorCount::Skipped);
            self.intake.close();
            return Ok(());
        }
        if self.config.mark {
            self.intake.mark_open(&mut self.chunks);
        }
        let range = self.intake.open_range();
        self.chunks.hold(range.chunk);
        let unit = Unit {
            range,
            form: Form::Transaction,
            frames: open.frames + 1,
            begin,
            end: self.scanned,
            database,
            asking: false,
            again: false,
            guard: match open.once {
                true => Guard::Needed,
                false => Guard::None,
            },
        };
        self.intake.close();
        self.targets.send(&mut self.chunks, slot, unit);
        Ok(())
    }
}

impl Lane {
    /// Whether slots in a transaction have left the lane, by now.
    fn is_of_moving(&self, open: &Open) -> bool {
        let whole = open.slot.filter(|_| !self.targets.is_single());
        let left = whole.is_some_and(|slot| !self.passes(slot));
        open.moving || left
    }
}

fn policy_is(frame: &Frame<'_>, policy: &[u8]) -> bool {
    frame
        .arg(3)
        .is_some_and(|arg| arg.eq_ignore_ascii_case(policy))
}

/// Whether a command that ends at `end` is applied already. Those that go to several slots, and transactions, are asked
/// about when it is known what of them goes where.
#[cold]
fn is_applied(targets: &mut Targets, step: &Step, end: Offset) -> bool {
    let slot = match *step {
        Step::Slot(slot) => slot,
        Step::Anywhere | Step::Flush(_) if targets.is_single() => 0,
        _ => return false,
    };
    targets.marks.is_passed(slot, end)
}

/// What the command asks for; it is watched if it must be looked at for a target that lacks `lacking`.
#[inline]
fn classify(
    frame: &Frame<'_>,
    targets: &Targets,
    router: &Router,
    config: &LaneConfig,
    lacking: Features,
    at: Offset,
) -> Result<Found, Fault> {
    let Some(command) = command::find(frame).or_else(|| targets.learned.get(frame.verb())) else {
        let verb = frame.verb().to_vec();
        return Ok(Found {
            step: Step::Ask(LookupQuestion::Positions { verb }),
            watched: false,
            once: true,
        });
    };
    let watched = command.watch.wants(lacking, frame);
    let once = !command::replay_safe(frame, command)
        || (config.mark && !command::keeps_mark(frame, command));
    let found = |step| Found {
        step,
        watched,
        once,
    };
    if matches!(command.kind, Kind::Data) && command.key_is_first_argument() {
        // The plain course: one key, the first argument.
        if let Some(key) = frame.arg(1) {
            return Ok(found(Step::Slot(targets.slot_of(key))));
        }
    }
    step_of(frame, command, targets, router, config, at).map(found)
}

/// What a command asks for that is not of the plain course.
fn step_of(
    frame: &Frame<'_>,
    command: &Command,
    targets: &Targets,
    router: &Router,
    config: &LaneConfig,
    at: Offset,
) -> Result<Step, Fault> {
    match command.kind {
        Kind::Data | Kind::Eval | Kind::ShardPublish => {
            check_database_of_copy(frame, command, config)?;
            by_keys(frame, command, targets, router, at)
        }
        Kind::Slots(SlotOp::RestoreAsking) => by_keys(frame, command, targets, router, at),
        Kind::Slots(SlotOp::FlushSlot | SlotOp::SlotFlush) | Kind::FlushAll | Kind::FlushDb => {
            Ok(Step::Flush(command.kind))
        }
        Kind::Slots(_) | Kind::NoEffect | Kind::Ping => Ok(Step::Skip),
        Kind::Replconf => Ok(match frame.arg(1) {
            Some(option) if option.eq_ignore_ascii_case(b"getack") => Step::AckWanted,
            _ => Step::Skip,
        }),
        Kind::Select => command::database_of_select(frame)
            .map(Step::Select)
            .map_err(|error| Fault::new(FaultKind::Protocol, error.to_string())),
        Kind::Multi => Ok(Step::Multi),
        Kind::Exec => Ok(Step::Exec),
        Kind::Discard => Ok(Step::Discard),
        Kind::SwapDb | Kind::Move => databases_kept(config, targets, frame).map(|()| {
            if command.kind == Kind::Move {
                Step::Slot(0)
            } else {
                Step::Anywhere
            }
        }),
        Kind::Function(op) => Ok(Step::Broadcast(Some(op))),
        Kind::Script(_) => Ok(Step::Broadcast(None)),
        Kind::Publish => Ok(Step::Anywhere),
        Kind::Container => Ok(Step::Ask(LookupQuestion::Keys {
            args: frame.args().map(<[u8]>::to_vec).collect(),
        })),
    }
}

/// Where a command goes by its keys.
fn by_keys(
    frame: &Frame<'_>,
    command: &Command,
    targets: &Targets,
    router: &Router,
    at: Offset,
) -> Result<Step, Fault> {
    let slot = if let Some((_, told)) = router.told.filter(|(offset, _)| *offset == at) {
        told
    } else if command.keys == KeySpec::AskSource {
        return Ok(Step::Ask(LookupQuestion::Keys {
            args: frame.args().map(<[u8]>::to_vec).collect(),
        }));
    } else {
        command::one_slot(frame, command).map_err(|error| {
            Fault::new(
                FaultKind::UnknownCommand,
                format!("at offset {at}: {error}"),
            )
        })?
    };
    Ok(match slot {
        SlotOf::None => Step::Anywhere,
        _ if targets.is_single() => Step::Slot(0),
        SlotOf::One(slot) => Step::Slot(slot),
        SlotOf::Several => Step::Several,
    })
}

/// `COPY ... DB n` names a database by number, which a map would change.
fn check_database_of_copy(
    frame: &Frame<'_>,
    command: &Command,
    config: &LaneConfig,
) -> Result<(), Fault> {
    if command.name != "copy" {
        return Ok(());
    }
    match command::database_of_copy(frame) {
        Ok(None) => Ok(()),
        Ok(Some(_)) if config.database_map == DatabaseMap::default() => Ok(()),
        _ => Err(across_databases(frame)),
    }
}

/// Commands over two databases pass only where both exist under their own number.
fn databases_kept(config: &LaneConfig, targets: &Targets, frame: &Frame<'_>) -> Result<(), Fault> {
    if targets.is_single() && config.database_map == DatabaseMap::default() {
        Ok(())
    } else {
        Err(across_databases(frame))
    }
}

fn across_databases(frame: &Frame<'_>) -> Fault {
    Fault::new(
        FaultKind::Database,
        format!(
            "{} works on two databases, which a cluster or --db-map does not allow; copy into a single server without --db-map",
            command::describe(frame)
        ),
    )
}

pub(super) fn cross_slot(frame: &Frame<'_>, at: Offset) -> Fault {
    Fault::new(
        FaultKind::CrossSlot,
        format!(
            "at offset {at}: {} has keys in several slots, which a cluster cannot apply as one; give the keys a common hash tag, or copy into a single server",
            command::describe(frame)
        ),
    )
}
