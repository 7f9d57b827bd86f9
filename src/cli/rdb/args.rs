//! What was typed behind `slotstream rdb`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::filter::Filter;
use super::glob::Glob;
use crate::cli::args::{RewriteArgs, UnsupportedArg, endpoint};
use crate::engine::options::{DatabaseMap, OnUnsupported};
use crate::fault::{Fault, Side};
use crate::topology::Endpoint;

/// Options of `rdb`, as typed.
#[derive(Debug, Args)]
pub struct RdbArgs {
    /// Snapshot to read; - is standard input
    #[arg(value_name = "FILE")]
    file: OsString,

    /// Print counts, sizes, times to live, prefixes and the largest keys (the default)
    #[arg(long, group = "mode")]
    summary: bool,

    /// Print one JSON object per key and line; bytes that are no UTF-8 as the characters U+10FF80 to U+10FFFF
    #[arg(long, group = "mode")]
    json: bool,

    /// Print the commands that rebuild it, for redis-cli --pipe
    #[arg(long, group = "mode")]
    commands: bool,

    /// With --commands: RESTORE of the stored payloads, for servers of the same or a newer version
    #[arg(long, requires = "commands")]
    restore: bool,

    /// Read everything, and tell whether structure and checksum are right
    #[arg(long, group = "mode")]
    check: bool,

    /// Write it into this deployment, redis://[user:password@]host[:port][,host:port...]: keys of the same name are replaced
    #[arg(long, group = "mode", value_name = "URI")]
    import: Option<String>,

    /// File that holds the deployment's password (or SLOTSTREAM_TARGET_PASSWORD, or in the URI)
    #[arg(long, value_name = "FILE", requires = "import")]
    target_password_file: Option<PathBuf>,

    /// With --import, connect to TO where servers announce FROM: host:port, or host for all its ports; may be given several times
    #[arg(long, value_name = "FROM=TO", requires = "import")]
    rewrite_address: Vec<String>,

    /// With --import, where numbered databases go: FROM:TO,... with * for all others and drop for nowhere
    #[arg(long, value_name = "FROM:TO,...", requires = "import")]
    db_map: Option<DatabaseMap>,

    /// With --import, what to do with what the target, of an older version or another make, cannot take in any form
    #[arg(long, value_enum, default_value = "stop", requires = "import")]
    on_unsupported: UnsupportedArg,

    /// With --import, leave out and count values and other data of modules that the target lacks, rather than stop at them
    #[arg(long, requires = "import")]
    skip_unknown: bool,

    /// Only keys that match this pattern, as in KEYS
    #[arg(long, value_name = "GLOB")]
    keys: Option<OsString>,

    /// Only keys of these databases
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    db: Vec<u32>,

    /// Only keys of these types
    #[arg(
        long = "type",
        value_name = "TYPE,...",
        value_delimiter = ',',
        value_enum
    )]
    kinds: Vec<KindArg>,

    /// How many of the largest keys and prefixes a summary lists
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    String,
    List,
    Set,
    Zset,
    Hash,
    Stream,
    Module,
}

/// What to do with the snapshot.
#[derive(Debug, Clone)]
pub enum Mode {
    Summary,
    Json,
    /// `payloads`: RESTORE instead of ordinary commands.
    Commands {
        payloads: bool,
    },
    Check,
    Import(ImportOptions),
}

/// Where a snapshot is written to.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    pub target: Endpoint,
    pub databases: DatabaseMap,
    pub on_unsupported: OnUnsupported,
    pub skip_unknown: bool,
}

/// Options of `rdb` in types.
#[derive(Debug, Clone)]
pub struct RdbOptions {
    pub file: OsString,
    pub mode: Mode,
    pub filter: Filter,
    pub top: usize,
}

impl RdbArgs {
    /// The options in types. `variable` reads an environment variable.
    pub fn options(self, variable: impl Fn(&str) -> Option<String>) -> Result<RdbOptions, Fault> {
        let mode = if let Some(uri) = &self.import {
            let password_file = self.target_password_file.as_deref();
            let mut target = endpoint("--import", Side::Target, uri, password_file, variable)?;
            RewriteArgs::of(self.rewrite_address).give(&mut target, Side::Target, &[])?;
            Mode::Import(ImportOptions {
                target,
                databases: self.db_map.unwrap_or_default(),
                on_unsupported: self.on_unsupported.into(),
                skip_unknown: self.skip_unknown,
            })
        } else if self.json {
            Mode::Json
        } else if self.commands {
            Mode::Commands {
                payloads: self.restore,
            }
        } else if self.check {
            Mode::Check
        } else {
            Mode::Summary
        };
        let kinds = self.kinds.iter().map(|kind| kind.name());
        let filter = Filter {
            keys: self
                .keys
                .map(|pattern| Glob::new(pattern.as_encoded_bytes())),
            databases: self.db,
            kinds: kinds.collect(),
        };
        Ok(RdbOptions {
            file: self.file,
            mode,
            filter,
            top: self.top,
        })
    }
}

impl KindArg {
    fn name(self) -> &'static str {
        match self {
            KindArg::String => "string",
            KindArg::List => "list",
            KindArg::Set => "set",
            KindArg::Zset => "zset",
            KindArg::Hash => "hash",
            KindArg::Stream => "stream",
            KindArg::Module => "module",
        }
    }
}
