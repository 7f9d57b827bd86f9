//! Commands that do not reach the target as they came: the target is of another version, or something in them is altered.
//!
//! There is one way for all of these. [`Rebuild::watched`] says what commands are looked at for; the row of a command
//! says whether that concerns it; [`Rewriting`] writes what the target gets. What is not watched takes the plain course
//! and pays one branch.
//!
//! ```text
//! single command:  watched -> look -> Same     -> the plain course
//!                                     Rebuilt  -> staged, several in MULTI ... EXEC
//! transaction:     any watched -> all of it staged, what is rebuilt in the place of what came
//! several slots:   split first, then each part looked at
//! ```
//!
//! Every deadline of every command that is sent is asked for once at [`Leases`], in the order of the stream.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::lane::{Lane, LaneConfig};
use super::lease::Leases;
use super::motion::split_passing;
use super::options::Deployment;
use super::status::{ErrorCount, LaneStatus};
use super::stream::{Run, Step, cross_slot};
use super::targets::Targets;
use crate::command::rewrite::{Features, Lack, Rewriting, Target, Verdict};
use crate::command::{self, Command, Kind, SlotOf};
use crate::fault::{Fault, FaultKind};
use crate::position::Offset;
use crate::rdb::Lineage;
use crate::resp::{Frame, push_command, scan};
use crate::slot::Slot;
use crate::topology::{Flavour, ServerInfo};

/// What a lane knows of rebuilding.
pub(super) struct Rebuild {
    /// What commands are looked at for.
    pub watched: Features,
    target: Target,
    /// Near deadlines are held back.
    pub deadlines: Leases,
    /// What a command became.
    built: Vec<u8>,
}

/// What all lanes of a process left out because the target cannot take it. Each kind is named once.
#[derive(Debug, Default)]
pub struct Omissions {
    named: AtomicU32,
    news: Mutex<Vec<String>>,
}

impl Omissions {
    /// Counts something that `status`' lane leaves out; `what` names it, for the first of its kind.
    pub fn note(&self, status: &LaneStatus, lack: Lack, what: impl FnOnce() -> String) {
        status.count_left_out(lack);
        let bit = 1 << lack as u32;
        if self.named.fetch_or(bit, Relaxed) & bit == 0 {
            let text = format!(
                "{} is left out: the target knows no {}; more of this kind is counted as {}",
                what(),
                lack.name(),
                lack.counter()
            );
            let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
            news.push(text);
        }
    }

    /// What is to be told to the user, each once.
    pub fn take_news(&self) -> Vec<String> {
        std::mem::take(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The fault of something that the target cannot take, where nothing may be left out.
pub(super) fn lacking(what: impl std::fmt::Display, lack: Lack) -> Fault {
    Fault::new(
        FaultKind::Unsupported,
        format!(
            "{what} cannot be written to the target, which knows no {}; use a newer target, or --on-unsupported drop to leave such things out",
            lack.name()
        ),
    )
}

/// The lineage of a server, and the two numbers of its release that say what it knows.
pub fn release(server: &ServerInfo) -> (Lineage, u32, u32) {
    let lineage = match server.flavour {
        Flavour::Redis => Lineage::Redis,
        Flavour::Valkey => Lineage::Valkey,
    };
    let version = server.version;
    (lineage, version.major.into(), version.minor.into())
}

/// What commands must be looked at for: what any target master lacks, and what the source does that none may see.
pub fn watched(source: &Deployment, target: &Deployment) -> Features {
    let lacking = target.servers.iter().map(|(_, server)| {
        let (lineage, major, minor) = release(server);
        Features::lacking_in(lineage, major, minor)
    });
    let unfit = source.servers.iter().map(|(_, server)| {
        let (lineage, major, _) = release(server);
        Features::unfit_from(lineage, major)
    });
    lacking.chain(unfit).fold(Features::NONE, Features::and)
}

impl LaneConfig {
    /// Takes note of something in the snapshot that the target cannot take.
    ///
    /// # Errors
    /// Unless it may be left out.
    pub(super) fn leave_out(
        &self,
        status: &LaneStatus,
        lack: Lack,
        what: impl FnOnce() -> String,
    ) -> Result<(), Fault> {
        if !self.leave_out {
            return Err(lacking(what(), lack));
        }
        self.omissions.note(status, lack, what);
        Ok(())
    }
}

impl Rebuild {
    pub fn new(config: &LaneConfig) -> Self {
        Self {
            watched: config.lacking | Features::DEADLINE,
            target: Target {
                lacking: config.lacking | Features::DEADLINE,
                format: config.format,
                leave_out: config.leave_out,
            },
            deadlines: Leases::default(),
            built: Vec::new(),
        }
    }

    /// Looks at one command; what it became is in `built`, behind what is there already.
    fn look(
        &mut self,
        frame: &Frame<'_>,
        command: &Command,
        context: &Context<'_>,
    ) -> Result<Verdict, Fault> {
        if !command.watch.wants(self.watched, frame) {
            return Ok(Verdict::Same);
        }
        let (out, deadlines) = (&mut self.built, &mut self.deadlines);
        let mut rewriting = Rewriting::new(self.target, context.received_at_ms, deadlines, out);
        let verdict = rewriting.look(frame, command).map_err(|lack| {
            let what = format!("at offset {}: {}", context.at, command::describe(frame));
            lacking(what, lack)
        })?;
        for lack in rewriting.left_out {
            let what = || format!("{} at offset {}", command::describe(frame), context.at);
            context.omissions.note(context.status, lack, what);
        }
        Ok(verdict)
    }
}

/// What must be known of a command beside its bytes.
struct Context<'a> {
    at: Offset,
    received_at_ms: u64,
    status: &'a LaneStatus,
    omissions: &'a Omissions,
}

/// Appends `frames` commands as one unit; gives their number in the end.
fn as_unit(out: &mut Vec<u8>, commands: &[u8], frames: usize) -> usize {
    if frames < 2 {
        out.extend_from_slice(commands);
        return frames;
    }
    push_command(out, &[b"MULTI"]);
    out.extend_from_slice(commands);
    push_command(out, &[b"EXEC"]);
    frames + 2
}

impl Lane {
    /// Looks at the watched command at the cursor, `length` bytes. Whether it is done with: if not, it takes its course as
    /// it came. In an open transaction it is looked at with the others, when that is whole.
    pub(super) fn rebuild_at_cursor(
        &mut self,
        run: &mut Option<Run>,
        step: &Step,
        length: usize,
    ) -> Result<bool, Fault> {
        let global = matches!(step, Step::Flush(Kind::FlushAll) | Step::Broadcast(_));
        let dropped = self.router.target_database.is_none() && !global;
        if self.watch_open() || dropped || matches!(step, Step::Ask(_)) {
            return Ok(false);
        }
        let at = self.scanned;
        let received_at_ms = self.received_at_unix_ms(at);
        let frame = scan(self.intake.rest(&self.chunks)).ok().flatten();
        let frame = frame.expect("scanned before");
        let known = command::find(&frame).or_else(|| self.targets.learned.get(frame.verb()));
        let Some(command) = known else {
            return Ok(false);
        };
        let context = Context {
            at,
            received_at_ms,
            status: &self.status,
            omissions: &self.config.omissions,
        };
        self.rebuild.built.clear();
        self.rebuild.deadlines.database = self.router.target_database.unwrap_or(0);
        let Verdict::Rebuilt(frames) = self.rebuild.look(&frame, command, &context)? else {
            return Ok(false);
        };
        self.flush_run(run);
        let built = std::mem::take(&mut self.rebuild.built);
        let database = self.router.target_database.unwrap_or(0);
        match *step {
            _ if frames == 0 => self.pass_counted(length),
            Step::Flush(kind) => self.begin_flush(kind, built, length)?,
            Step::Broadcast(op) => self.broadcast(op, &built, length),
            Step::Several => self.rebuild_parts(length, &built)?,
            ref step => {
                let slot = match *step {
                    Step::Slot(slot) => slot,
                    _ => 0,
                };
                let end = at.advanced(length);
                let chunks = &mut self.chunks;
                self.targets
                    .stage_for(chunks, slot, at, end, database, |out| {
                        as_unit(out, &built, frames)
                    });
                self.rebuild.built = built;
                self.pass_counted(length);
            }
        }
        Ok(true)
    }

    fn pass_counted(&mut self, length: usize) {
        self.commands += 1;
        self.pass(length);
    }

    /// A rebuilt command over several slots of a cluster: the commands that it became are split, and those of one slot are
    /// one unit.
    fn rebuild_parts(&mut self, length: usize, built: &[u8]) -> Result<(), Fault> {
        let at = self.scanned;
        let groups = self.grouped(built, at, false)?;
        self.status.count(ErrorCount::SplitCommands);
        let database = self.router.target_database.unwrap_or(0);
        self.send_groups(&groups, at, at.advanced(length), database);
        self.pass_counted(length);
        Ok(())
    }

    /// A transaction that holds watched commands, or keys in several slots of a cluster: as one transaction for each slot,
    /// with what the target gets in the place of what came. The scan stands behind it.
    pub(super) fn rebuild_transaction(
        &mut self,
        bytes: &[u8],
        begin: Offset,
        database: u32,
    ) -> Result<(), Fault> {
        self.rebuild.deadlines.database = database;
        let groups = self.grouped(bytes, begin, true)?;
        self.send_groups(&groups, begin, self.scanned, database);
        Ok(())
    }

    /// Commands by slot, in their order, without the `MULTI` and `EXEC` around them; `look`: rebuilt for the target.
    fn grouped(&mut self, bytes: &[u8], begin: Offset, look: bool) -> Result<Vec<Group>, Fault> {
        let mut groups = Vec::new();
        let mut rest = bytes;
        while let Ok(Some(frame)) = scan(rest) {
            let at = begin.advanced(bytes.len() - rest.len());
            rest = &rest[frame.bytes().len()..];
            let known = command::find(&frame).or_else(|| self.targets.learned.get(frame.verb()));
            let Some(command) = known else { continue };
            if matches!(command.kind, Kind::Multi | Kind::Exec) {
                continue;
            }
            self.rebuild.built.clear();
            let context = Context {
                at,
                received_at_ms: self.received_at_unix_ms(at),
                status: &self.status,
                omissions: &self.config.omissions,
            };
            let (ours, motion, targets) = (&self.config.slots, &self.motion, &self.targets);
            let passes = |slot: Slot| motion.passes(ours, targets, slot);
            let passes: Option<&dyn Fn(Slot) -> bool> = match self.config.source_has_slots {
                true => Some(&passes),
                false => None,
            };
            if !look || self.rebuild.look(&frame, command, &context)? == Verdict::Same {
                place(targets, passes, &frame, at, &mut groups)?;
                continue;
            }
            let mut built = &self.rebuild.built[..];
            while let Ok(Some(frame)) = scan(built) {
                place(targets, passes, &frame, at, &mut groups)?;
                built = &built[frame.bytes().len()..];
            }
        }
        Ok(groups)
    }

    /// Sends each group as one unit. `end`: where in the stream what they stand for ends.
    fn send_groups(&mut self, groups: &[Group], begin: Offset, end: Offset, database: u32) {
        for group in groups {
            let chunks = &mut self.chunks;
            self.targets
                .stage_for(chunks, group.slot, begin, end, database, |out| {
                    as_unit(out, &group.commands, group.frames)
                });
        }
    }
}

/// Commands for one slot.
struct Group {
    slot: Slot,
    frames: usize,
    commands: Vec<u8>,
}

/// Adds a command, or its parts, to the groups of their slots; of those slots of the source that pass, if they are told.
fn place(
    targets: &Targets,
    passes: Option<&dyn Fn(Slot) -> bool>,
    frame: &Frame<'_>,
    at: Offset,
    groups: &mut Vec<Group>,
) -> Result<(), Fault> {
    let mut add = |slot: Slot, part: &[u8]| match groups.iter_mut().find(|g| g.slot == slot) {
        Some(group) => {
            group.frames += 1;
            group.commands.extend_from_slice(part);
        }
        None => groups.push(Group {
            slot,
            frames: 1,
            commands: part.to_vec(),
        }),
    };
    if targets.is_single() {
        return match passes {
            Some(passes) => split_passing(frame, at, passes, |part| add(0, part)),
            None => {
                add(0, frame.bytes());
                Ok(())
            }
        };
    }
    let mut add = |slot: Slot, part: &[u8]| {
        if passes.is_none_or(|passes| passes(slot)) {
            add(slot, part);
        }
    };
    match (targets.slot_of_frame(frame), targets.told.get(&at)) {
        (SlotOf::One(slot), _) | (_, Some(&slot)) => {
            add(slot, frame.bytes());
            Ok(())
        }
        _ => {
            let command = command::find(frame).ok_or_else(|| cross_slot(frame, at))?;
            command::split_by_slot(frame, command, add).map_err(|_| cross_slot(frame, at))
        }
    }
}
