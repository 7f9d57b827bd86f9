//! A replication under way between two clusters, with writers, that is compared in the end.

use anyhow::{Context, Result, ensure};
use lab::{
    Cluster, ClusterOptions, Commands, CompareOptions, Endpoint, Family, LoadOptions, Server,
    ServerOptions, Slotstream, Version, WriterOptions, Writers, compare, load, version_or_skip,
    wait_until,
};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

pub const PATIENCE: Duration = Duration::from_secs(60);
/// Loaded before the start: enough that a copy is more than its first read.
const LOADED_KEYS: usize = 2_000;
pub const COMMANDS_PER_SECOND: u64 = 2_000;
/// Commands that are written between two events.
pub const COMMANDS_BETWEEN: u64 = 1_500;
/// 6.0 sends how long a key still lives, so what waits ends later by as much as it waited: less than any
/// lifetime in these tests.
const RELATIVE_TTL_TOLERANCE: Duration = Duration::from_secs(60);

/// What a test begins with.
pub struct Setup {
    /// Masters, and replicas of each.
    pub source: (usize, usize),
    pub target: (usize, usize),
    pub commands: Commands,
    /// Sets of keys, each in a slot of its own.
    pub key_groups: usize,
    /// The slots of each master of the source, if they are not shared out evenly.
    pub source_slots: Option<Vec<Vec<RangeInclusive<usize>>>>,
    /// More lines of the configuration of the source's nodes.
    pub source_lines: &'static [&'static str],
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            source: (2, 0),
            target: (2, 0),
            commands: Commands::All,
            key_groups: 100,
            source_slots: None,
            source_lines: &[],
        }
    }
}

/// A replication under way, with writers.
pub struct Rig {
    pub version: Version,
    pub setup: Setup,
    seed: u64,
    pub source: Cluster,
    pub target: Cluster,
    pub sync: Slotstream,
    writers: Option<Writers>,
}

/// Runs `act` between the start and the comparison; what went wrong is told with the program's own view of it.
pub fn while_replicating(
    family: Family,
    setup: Setup,
    act: impl FnOnce(&mut Rig) -> Result<()>,
) -> Result<()> {
    let Some(version) = version_or_skip(family) else {
        return Ok(());
    };
    let mut rig = Rig::start(version, setup)?;
    let result = act(&mut rig).and_then(|()| rig.finish());
    result.with_context(|| rig.told())
}

impl Rig {
    fn start(version: Version, setup: Setup) -> Result<Rig> {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        let options = |extra| ClusterOptions {
            server: ServerOptions {
                extra,
                diskless: true,
                ..ServerOptions::default()
            },
            slots: None,
        };
        let (masters, replicas) = setup.source;
        let source = Cluster::start(
            &version,
            masters,
            replicas,
            ClusterOptions {
                slots: setup.source_slots.clone(),
                ..options(lines(setup.source_lines))
            },
        )?;
        let (masters, replicas) = setup.target;
        let target = Cluster::start(&version, masters, replicas, options(Vec::new()))?;
        load(&mut source.client()?, &loaded())?;
        let sync = Slotstream::start(program(), &any_node(&source), &any_node(&target), &[])?;
        let mut rig = Rig {
            version,
            setup,
            seed: u64::from(std::process::id()),
            source,
            target,
            sync,
            writers: None,
        };
        rig.go_on_writing()?;
        rig.sync.wait_until_caught_up(PATIENCE)?;
        rig.write_more()?;
        Ok(rig)
    }

    fn told(&self) -> String {
        let status = match self.sync.status() {
            Ok(status) => format!("{status:#}"),
            Err(error) => format!("{error:#}"),
        };
        format!(
            "{}, writers' seed {}\nstatus: {status}\nlog: {}",
            self.version,
            self.seed,
            self.sync.output()
        )
    }

    /// Starts the program where another one was killed.
    pub fn start_again(&mut self) -> Result<()> {
        let (source, target) = (any_node(&self.source), any_node(&self.target));
        self.sync = Slotstream::start(program(), &source, &target, &[])?;
        Ok(())
    }

    pub fn go_on_writing(&mut self) -> Result<()> {
        let options = WriterOptions {
            seed: self.seed,
            commands: self.setup.commands,
            threads: 1,
            commands_per_second: COMMANDS_PER_SECOND,
            key_groups: self.setup.key_groups,
            loaded: Some(loaded()),
            short_lives: false,
            ..WriterOptions::default()
        };
        self.writers = Some(Writers::start(&any_node(&self.source), &options)?);
        Ok(())
    }

    pub fn stop_writing(&mut self) -> Result<()> {
        let Some(writers) = self.writers.take() else {
            return Ok(());
        };
        stop(writers)
    }

    /// Waits until some more commands are written.
    pub fn write_more(&self) -> Result<()> {
        let writers = self.writers.as_ref().context("nobody writes")?;
        let goal = writers.commands_so_far() + COMMANDS_BETWEEN;
        wait_until(PATIENCE, "more writes", || {
            Ok(writers.commands_so_far() >= goal)
        })
    }

    /// The sum of a field over all lanes; `errors.x` is a count of the lane's errors.
    pub fn sum(&self, field: &str) -> Result<u64> {
        let status = self.sync.status()?;
        let lanes = status["lanes"].as_array().context("no lanes")?;
        let count = |lane: &serde_json::Value| match field.strip_prefix("errors.") {
            Some(error) => lane["errors"][error].as_u64(),
            None => field.split('.').fold(lane, |at, name| &at[name]).as_u64(),
        };
        Ok(lanes.iter().filter_map(count).sum())
    }

    pub fn wait_for_sum(&self, field: &str, more_than: u64) -> Result<()> {
        wait_until(PATIENCE, &format!("{field} above {more_than}"), || {
            Ok(self.sum(field)? > more_than)
        })
    }

    /// Commands have met a slot that is half moved. A group whose keys are on both sides is refused like `TRYAGAIN`.
    pub fn wait_for_hint(&self) -> Result<()> {
        wait_until(PATIENCE, "errors.ask or errors.tryagain above 0", || {
            Ok(self.sum("errors.ask")? + self.sum("errors.tryagain")? > 0)
        })
    }

    /// No writers any more, everything applied, both sides equal, a clean end.
    fn finish(&mut self) -> Result<()> {
        self.stop_writing()?;
        self.sync.wait_until_settled(PATIENCE)?;
        ensure!(self.sum("errors.divergence")? == 0, "a divergence");
        must_be_equal(&any_node(&self.source), &any_node(&self.target))
    }

    /// Each master was copied once, and followed without a gap ever since.
    pub fn copied_once(&self) -> Result<()> {
        let copies = self.sum("full_syncs")?;
        ensure!(
            copies == self.setup.source.0 as u64,
            "{copies} copies instead of one for each master"
        );
        Ok(())
    }
}

/// Ends writers, who may have met nodes that have just become replicas, or slots that were about to move.
pub fn stop(writers: Writers) -> Result<()> {
    let report = writers.stop()?;
    let of_a_change = ["UNBLOCKED", "EXECABORT", "ERR EXEC without MULTI"];
    let unexpected = |error: &&String| !of_a_change.iter().any(|e| error.starts_with(e));
    ensure!(!report.errors.keys().any(|e| unexpected(&e)), "{report}");
    Ok(())
}

pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slotstream"))
}

pub fn loaded() -> LoadOptions {
    LoadOptions {
        keys: LOADED_KEYS,
        big_keys: false,
        ..LoadOptions::default()
    }
}

/// A cluster, to be found through whichever of its nodes lives.
pub fn any_node(cluster: &Cluster) -> Endpoint {
    Endpoint {
        seeds: cluster.nodes().iter().map(Server::address).collect(),
        ..cluster.endpoint()
    }
}

pub fn must_be_equal(source: &Endpoint, target: &Endpoint) -> Result<()> {
    let options = CompareOptions {
        relative_ttl_tolerance: RELATIVE_TTL_TOLERANCE,
        ..CompareOptions::default()
    };
    let diff = compare(source, target, &options)?;
    ensure!(diff.is_equal(), "{diff}");
    ensure!(diff.keys > LOADED_KEYS / 2, "{diff}");
    Ok(())
}
