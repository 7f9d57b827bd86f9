//! `--import`: writes a snapshot into a live deployment, a single server or a cluster.
//!
//! Keys of the same name are replaced; others are left alone. Values go as RESTORE where the target takes them, else by
//! elements, as in `sync`. Every reply is checked: the import ends with the first key that is refused for good.

mod node;
mod writer;

use std::time::Instant;

use indicatif::{HumanBytes, HumanCount};

use self::writer::Writer;
use super::args::{ImportOptions, RdbOptions};
use super::input::{Input, Scan, Stop, Visitor};
use super::progress::Progress;
use super::text::shown;
use crate::command::rewrite::{Lack, lack_behind, without_lost_deadlines};
use crate::control::discover::discover;
use crate::control::preflight;
use crate::engine::options::{DatabaseMap, Destination, OnUnsupported};
use crate::engine::remedy;
use crate::fault::{Fault, FaultKind, Side};
use crate::limits::DESCRIBED_BYTES;
use crate::rdb::{Item, Options, Part, Problem, TargetFormat, Unsupported};
use crate::topology::TopologyKind;

/// Hands what a snapshot holds to the deployment.
struct Importer {
    writer: Writer,
    format: TargetFormat,
    kind: TopologyKind,
    databases: DatabaseMap,
    /// Keys by how they were written.
    restored: u64,
    by_elements: u64,
    /// Keys of databases that go nowhere.
    dropped: u64,
    functions: u64,
    skip_unknown: bool,
    /// Left out because of that.
    skipped: u64,
    on_unsupported: OnUnsupported,
    /// Left out because of that: how often, and the first, by what the target lacks.
    left_out: [(u64, String); Lack::ALL.len()],
    /// Of the hash that is being written, that its fields do not expire any more was counted.
    lost_deadlines: bool,
}

/// How far it went, and a line that says what was done.
pub struct Imported {
    pub scan: Scan,
    pub summary: String,
}

/// Reads the snapshot and writes it.
pub fn import(
    options: &RdbOptions,
    import: &ImportOptions,
    input: &mut Input,
) -> Result<Imported, Stop> {
    let started = Instant::now();
    let deployment = discover(Side::Target, &import.target)?;
    preflight::check_target(&deployment, &import.target.credentials)?;
    let format = deployment.format(None)?;
    let mut importer = Importer {
        kind: deployment.topology.kind,
        writer: Writer::new(import.target.clone(), deployment.topology),
        format,
        databases: import.databases.clone(),
        restored: 0,
        by_elements: 0,
        dropped: 0,
        functions: 0,
        skip_unknown: import.skip_unknown,
        skipped: 0,
        on_unsupported: import.on_unsupported,
        left_out: Default::default(),
        lost_deadlines: false,
    };
    let mut progress = Progress::new(input.total_bytes, false);
    let scan = input.scan(
        Options::new(format),
        &options.filter,
        &mut importer,
        &mut progress,
    );
    progress.finish();
    let scan = scan?;
    importer.writer.finish()?;
    let summary = importer.summary(&scan, started.elapsed().as_secs_f64());
    Ok(Imported { scan, summary })
}

impl Importer {
    fn destination(&self, database: u32) -> Result<Option<u32>, Fault> {
        Ok(match self.databases.destination(database, self.kind)? {
            Destination::Database(to) => Some(to),
            Destination::Drop => None,
        })
    }

    fn on_every_master(&mut self, command: &[&[u8]]) -> Result<(), Fault> {
        self.functions += 1;
        self.writer.broadcast(command)
    }

    fn summary(&self, scan: &Scan, seconds: f64) -> String {
        let keys = self.restored + self.by_elements;
        let mut text = format!(
            "imported {} keys ({} restored, {} by elements) from {} in {seconds:.1} s; keys of the same name were replaced\n",
            HumanCount(keys),
            HumanCount(self.restored),
            HumanCount(self.by_elements),
            HumanBytes(scan.bytes),
        );
        let mut line = |count: u64, what: &str| {
            if count > 0 {
                text.push_str(&format!("{} {what}\n", HumanCount(count)));
            }
        };
        line(self.functions, "function libraries or scripts loaded");
        line(scan.keys - scan.taken_keys, "keys left out by the filter");
        line(self.dropped, "keys left out by --db-map");
        line(
            self.skipped,
            "keys or other data of modules left out by --skip-unknown",
        );
        line(
            self.writer.repeated,
            "writes repeated after a redirect, a refusal or a lost connection",
        );
        for (lack, (count, first)) in Lack::ALL.iter().zip(&self.left_out) {
            let what = format!(
                "left out by --on-unsupported drop, since the target knows no {}; the first: {first}",
                lack.name()
            );
            line(*count, &what);
        }
        text
    }

    /// Counts what `what` names, or fails as `fault` says.
    fn leave_out(
        &mut self,
        lack: Lack,
        what: impl FnOnce() -> String,
        fault: impl FnOnce() -> Fault,
    ) -> Result<(), Fault> {
        if self.on_unsupported == OnUnsupported::Stop {
            return Err(fault());
        }
        let (count, first) = &mut self.left_out[lack as usize];
        if *count == 0 {
            *first = what();
        }
        *count += 1;
        Ok(())
    }

    /// A key, or a piece of one, that the target cannot hold.
    fn leave_out_of_key(&mut self, key: &[u8], problem: Problem) -> Result<(), Fault> {
        let what = || format!("key '{}' ({problem})", shown(key, DESCRIBED_BYTES));
        self.leave_out(lack_behind(problem), what, || unsupported(key, problem))
    }

    fn part(&mut self, part: Part<'_>) -> Result<(), Fault> {
        let Some(database) = self.destination(part.database)? else {
            self.dropped += u64::from(part.is_last);
            return Ok(());
        };
        self.by_elements += u64::from(part.is_last);
        let format = self.format;
        let (part, lost) = without_lost_deadlines(part, format);
        // Once for each hash, however many parts it has.
        if lost && !self.lost_deadlines {
            self.leave_out_of_key(part.key, Problem::TargetLacksFieldExpiry)?;
        }
        self.lost_deadlines = !part.is_last && (lost || self.lost_deadlines);
        let mut problem = None;
        self.writer.write(part.key, database, |out| {
            let written = part.write_commands(out, &format);
            Ok(written.unwrap_or_else(|cause| {
                problem = Some(cause);
                0
            }))
        })?;
        problem.map_or(Ok(()), |problem| self.leave_out_of_key(part.key, problem))
    }

    fn function(&mut self, code: &[u8]) -> Result<(), Fault> {
        if self.format.knows_functions() {
            return self.on_every_master(&[b"FUNCTION", b"LOAD", b"REPLACE", code]);
        }
        let fault = || {
            let text = "the snapshot holds functions, which the target does not know; import into a server of 7.0 or \
                        newer, or leave them out with --on-unsupported drop";
            Fault::new(FaultKind::SnapshotUnsupported, text)
        };
        self.leave_out(Lack::Functions, || "a function library".to_owned(), fault)
    }
}

fn unsupported(key: &[u8], problem: Problem) -> Fault {
    let key = shown(key, DESCRIBED_BYTES);
    let text = format!(
        "key '{key}' cannot be written to the target: {problem}{}",
        remedy(problem)
    );
    Fault::new(FaultKind::SnapshotUnsupported, text)
}

impl Visitor for Importer {
    fn item(&mut self, item: Item<'_>) -> Result<(), Stop> {
        match item {
            Item::Value(value) => match self.destination(value.database)? {
                Some(database) => {
                    self.restored += 1;
                    self.writer
                        .write(value.key, database, |out| Ok(value.write_restore(out)))?;
                }
                None => self.dropped += 1,
            },
            Item::Part(part) => self.part(part)?,
            Item::Function { code } => self.function(code)?,
            // Servers before 7.0 keep the scripts that EVALSHA knows in their snapshots.
            Item::Aux { key: b"lua", value } => {
                self.on_every_master(&[b"SCRIPT", b"LOAD", value])?;
            }
            Item::Unsupported(Unsupported { key, problem, .. }) => {
                let is_module = matches!(problem, Problem::TargetLacksModule(_));
                match self.skip_unknown && is_module {
                    true => self.skipped += 1,
                    false => self.leave_out_of_key(key, problem)?,
                }
            }
            Item::LeftOut(_) if self.skip_unknown => self.skipped += 1,
            Item::LeftOut(what) => {
                let fault = || {
                    let text = format!(
                        "the snapshot holds {what}, which no command can write; --skip-unknown leaves it out"
                    );
                    Fault::new(FaultKind::SnapshotUnsupported, text)
                };
                self.leave_out(Lack::Modules, || what.to_string(), fault)?;
            }
            _ => {}
        }
        Ok(())
    }
}
