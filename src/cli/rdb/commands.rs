//! The commands that rebuild a snapshot, for `redis-cli --pipe` and everything else that speaks RESP.
//!
//! They are those of the server that made the snapshot: a newer one takes them as well. Values of modules and of a few
//! types that no other command writes are restored from their payload.

use super::input::{Stop, Visitor};
use super::output::Output;
use super::text::shown;
use crate::fault::{Fault, FaultKind};
use crate::limits::DESCRIBED_BYTES;
use crate::rdb::{Item, Lineage, Modules, Problem, TargetFormat};
use crate::resp::{Encoder, push_command};

/// Writes commands.
pub struct CommandsWriter {
    pub output: Output,
    format: TargetFormat,
    database: u32,
    /// Values that went as RESTORE.
    pub restored: u64,
    /// What no command can carry.
    pub skipped: u64,
}

impl CommandsWriter {
    pub fn new() -> Self {
        Self {
            output: Output::new(),
            format: TargetFormat {
                lineage: Lineage::Redis,
                max_rdb_version: 0,
                modules: Modules::NONE,
            },
            database: 0,
            restored: 0,
            skipped: 0,
        }
    }

    fn select(&mut self, database: u32) {
        if database != self.database {
            Encoder::begin(&mut self.output.buffer, 2)
                .arg(b"SELECT")
                .number(database.into());
            self.database = database;
        }
    }
}

fn unsupported_key(key: &[u8], problem: Problem) -> Fault {
    let key = shown(key, DESCRIBED_BYTES);
    let text =
        format!("no command writes key '{key}': {problem}; leave it out with --type or --keys");
    Fault::new(FaultKind::SnapshotUnsupported, text)
}

impl Visitor for CommandsWriter {
    fn item(&mut self, item: Item<'_>) -> Result<(), Stop> {
        match item {
            Item::Header { lineage, version } => {
                self.format.lineage = lineage;
                self.format.max_rdb_version = version;
            }
            Item::Function { code } => {
                let load: [&[u8]; 4] = [b"FUNCTION", b"LOAD", b"REPLACE", code];
                push_command(&mut self.output.buffer, &load);
            }
            // Servers before 7.0 keep the scripts that EVALSHA knows in their snapshots.
            Item::Aux { key: b"lua", value } => {
                push_command(&mut self.output.buffer, &[b"SCRIPT", b"LOAD", value]);
            }
            Item::Value(value) => {
                self.select(value.database);
                self.restored += 1;
                value.write_restore(&mut self.output.buffer);
            }
            Item::Part(part) => {
                self.select(part.database);
                let written = part.write_commands(&mut self.output.buffer, &self.format);
                written.map_err(|problem| unsupported_key(part.key, problem))?;
            }
            Item::LeftOut(_) | Item::SlotImport => self.skipped += 1,
            Item::Unsupported(unsupported) => {
                return Err(unsupported_key(unsupported.key, unsupported.problem).into());
            }
            _ => {}
        }
        self.output.flush_if_full()
    }

    fn paused(&mut self) -> Result<(), Stop> {
        self.output.flush()
    }
}
