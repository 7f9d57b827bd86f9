//! The commands that rebuild a snapshot, for `redis-cli --pipe` and everything else that speaks RESP.
//!
//! They are those of the server that made the snapshot: a newer one takes them as well. Values of modules can only be
//! restored from their payload.

use super::input::{Stop, Visitor};
use super::output::Output;
use super::text::shown;
use crate::fault::{Fault, FaultKind};
use crate::limits::DESCRIBED_BYTES;
use crate::rdb::{Item, Lineage, TargetFormat};
use crate::resp::{Encoder, push_command};

/// Writes commands.
pub struct CommandsWriter {
    pub output: Output,
    format: TargetFormat,
    database: u32,
    /// Values of modules, as RESTORE.
    pub module_values: u64,
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
                restores_modules: true,
            },
            database: 0,
            module_values: 0,
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
                self.module_values += u64::from(value.module().is_some());
                value.write_restore(&mut self.output.buffer);
            }
            Item::Part(part) => {
                self.select(part.database);
                let written = part.write_commands(&mut self.output.buffer, &self.format);
                written.map_err(|problem| {
                    let key = shown(part.key, DESCRIBED_BYTES);
                    Fault::new(
                        FaultKind::SnapshotUnsupported,
                        format!("key '{key}': {problem}"),
                    )
                })?;
            }
            Item::Skipped { .. } | Item::SlotImport => self.skipped += 1,
            _ => {}
        }
        self.output.flush_if_full()
    }

    fn paused(&mut self) -> Result<(), Stop> {
        self.output.flush()
    }
}
