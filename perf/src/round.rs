//! One round of one contender: first copy, idling, load, lag, counters, comparison.
//!
//! Rounds of the contenders take turns (A, B, A, B, ...), and only one contender is attached at a time: on a
//! machine with few cores each would else be measured with the other's work in its way. Everything seen is seen
//! from outside, in the same way for all: the copy is whole when its nodes hold as many keys as the source's,
//! the load has arrived when the last key of each master shows its new value. That says nothing of other slots where
//! commands that must not be repeated wait for each other: increments have arrived when nobody works any more.

use crate::data::{Batch, Counters, Keyspace, random_value};
use crate::follower::{Contender, Follower, Stage};
use crate::loader::load;
use crate::process::{self, Cpu};
use crate::profile::Profiler;
use crate::relay::Relay;
use crate::report::{Figures, percentile};
use anyhow::{Context, Result, bail};
use lab::{Command, Connection, Server, Value};
use std::time::{Duration, Instant};

/// How much is done in a round.
#[derive(Clone, Debug)]
pub struct Plan {
    pub keys: u64,
    pub commands: u64,
    pub lag_samples: usize,
    /// Writes per second while the lag is measured.
    pub lag_rate: f64,
    pub idle: Duration,
    pub parts: Parts,
}

/// What is measured behind the first copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    Stream,
    Lag,
    Increments,
    /// The snapshot of large values.
    Large,
}

/// Those that are wanted; all if none is named.
#[derive(Clone, Debug)]
pub struct Parts(pub Vec<Part>);

impl Parts {
    pub fn has(&self, part: Part) -> bool {
        self.0.is_empty() || self.0.contains(&part)
    }
}

const COPY_TIMEOUT: Duration = Duration::from_secs(120);
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(120);
const LAG_TIMEOUT: Duration = Duration::from_secs(10);
/// Seldom enough that the servers do not feel it.
const COPY_POLL: Duration = Duration::from_millis(5);
const CATCH_UP_POLL: Duration = Duration::from_micros(500);
/// From when the last key is seen to when the follower's CPU time is read: its last replies have arrived then.
const SETTLE: Duration = Duration::from_millis(20);

const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// Runs a round and returns what it measured; `profiler` records while the copy and the load run.
pub fn run(
    stage: &Stage,
    contender: &Contender,
    keyspace: &mut Keyspace,
    plan: &Plan,
    mut profiler: Option<&mut Profiler>,
) -> Result<Figures> {
    let mut figures = Figures::new();
    let mut follower = Follower::prepare(contender, stage)?;
    copy(
        stage,
        &mut follower,
        keyspace,
        &mut figures,
        profiler.as_deref_mut(),
    )?;
    let idle = idle(stage, &follower, plan.idle, &mut figures)?;
    if plan.parts.has(Part::Stream) {
        let batches = keyspace.overwrite(plan.commands);
        if let Some(profiler) = profiler.as_deref_mut() {
            profiler.start("stream", &follower.pids())?;
        }
        stream(stage, &mut follower, &batches, &idle, &mut figures)?;
        if let Some(profiler) = profiler.as_deref_mut() {
            profiler.stop()?;
        }
    }
    if plan.parts.has(Part::Lag) {
        lag(stage, follower.nodes(), keyspace, plan, &mut figures)
            .with_context(|| follower.output())?;
    }
    let counters = COUNTERS.iter().copied();
    for counters in counters.filter(|_| plan.parts.has(Part::Increments)) {
        let profiler = profiler.as_deref_mut();
        let used = increment(stage, &mut follower, counters, keyspace, plan, profiler)?;
        used.insert(counters, &idle, &follower, &mut figures);
    }
    let mut peak = 0;
    for pid in follower.pids() {
        peak += process::peak_memory_bytes(pid)?;
    }
    figures.insert("peak_memory_mib", peak as f64 / MEBIBYTE);
    follower.stop()?;
    compare(stage, &follower)?;
    drop(follower);
    // What was not begun is not there either.
    for counters in COUNTERS {
        load(&stage.source_addresses(), &keyspace.end_counters(counters))?;
    }
    Ok(figures)
}

/// What the target's masters use for the same commands when a client sends them: the plain price.
pub fn plain(stage: &Stage, keyspace: &mut Keyspace, plan: &Plan) -> Result<Figures> {
    let mut figures = Figures::new();
    let masters = stage.target.masters();
    let addresses: Vec<String> = masters.iter().map(Server::address).collect();
    let pids: Vec<u32> = masters.iter().filter_map(Server::pid).collect();
    let mut measure = |key, batches: &[Batch]| -> Result<()> {
        let before = process::cpu(&pids)?;
        load(&addresses, batches)?;
        let used = process::cpu(&pids)? - before;
        figures.insert(key, used.total * 1e6 / commands(batches));
        Ok(())
    };
    if plan.parts.has(Part::Stream) {
        measure(
            "stream_target_cpu_us_per_command",
            &keyspace.overwrite(plan.commands),
        )?;
    }
    let counters = COUNTERS.iter().copied();
    for counters in counters.filter(|_| plan.parts.has(Part::Increments)) {
        load(&addresses, &keyspace.begin_counters(counters))?;
        let batches = keyspace.increments(counters, plan.commands);
        measure(increment_keys(counters).target, &batches)?;
    }
    Ok(figures)
}

/// Copies a source that holds `bytes` of large values.
pub fn large_copy(
    stage: &Stage,
    contender: &Contender,
    bytes: u64,
    profiler: Option<&mut Profiler>,
) -> Result<Figures> {
    let mut figures = Figures::new();
    let mut follower = Follower::prepare(contender, stage)?;
    let (seconds, cpu) = copied(stage, &mut follower, "large copy", profiler)?;
    let mut peak = 0;
    for pid in follower.pids() {
        peak += process::peak_memory_bytes(pid)?;
    }
    follower.stop()?;
    compare(stage, &follower)?;
    figures.insert("large_copy_mb_per_second", bytes as f64 / 1e6 / seconds);
    figures.insert(
        "large_copy_cpu_seconds_per_gb",
        cpu.total / bytes as f64 * 1e9,
    );
    figures.insert("large_peak_memory_mib", peak as f64 / MEBIBYTE);
    Ok(figures)
}

/// From the order to follow until the copy is whole, then until it streams.
fn copy(
    stage: &Stage,
    follower: &mut Follower<'_>,
    keyspace: &Keyspace,
    figures: &mut Figures,
    profiler: Option<&mut Profiler>,
) -> Result<()> {
    let keys: i64 = sizes(&mut connections(stage.source.masters())?)?
        .iter()
        .sum();
    let targets_before = process::cpu(&follower.target_pids())?;
    let (seconds, cpu) = copied(stage, follower, "copy", profiler)?;
    let targets = process::cpu(&follower.target_pids())? - targets_before;
    let per_key = |seconds: f64| seconds * 1e6 / keys as f64;
    figures.insert("copy_seconds", seconds);
    figures.insert("copy_cpu_us_per_key", per_key(cpu.total));
    figures.insert("copy_system_us_per_key", per_key(cpu.system));
    if !follower.target_pids().is_empty() {
        figures.insert("copy_target_cpu_us_per_key", per_key(targets.total));
    }

    let mut sources = connections(stage.source.masters())?;
    let mut nodes = follower.connect()?;
    for (index, key) in keyspace.last_keys().iter().enumerate() {
        let value = random_value(&mut fastrand::Rng::new(), crate::data::VALUE_BYTES);
        sources[index].call(&[b"SET", key.as_bytes(), &value])?;
        await_value(&mut nodes[index], key, &value, follower)?;
    }
    Ok(())
}

/// Attaches and waits for the whole copy: how long that took, and the follower's CPU time.
fn copied(
    stage: &Stage,
    follower: &mut Follower<'_>,
    section: &'static str,
    mut profiler: Option<&mut Profiler>,
) -> Result<(f64, Cpu)> {
    let before = process::cpu(&follower.pids())?;
    let start = Instant::now();
    follower.attach()?;
    if let Some(profiler) = &mut profiler {
        profiler.start(section, &follower.pids())?;
    }
    await_copy(stage, follower)?;
    let seconds = start.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let cpu = process::cpu(&follower.pids())? - before;
    profiler.map_or(Ok(()), Profiler::stop)?;
    Ok((seconds, cpu))
}

fn await_copy(stage: &Stage, follower: &mut Follower<'_>) -> Result<()> {
    let expected = sizes(&mut connections(stage.source.masters())?)?;
    let mut nodes = follower.connect()?;
    let deadline = Instant::now() + COPY_TIMEOUT;
    loop {
        let found = sizes(&mut nodes)?;
        // The program keeps a few keys of its own there.
        if found.iter().zip(&expected).all(|(found, all)| found >= all) {
            return Ok(());
        }
        follower.check()?;
        if Instant::now() > deadline {
            let said = follower.output();
            bail!("the copy holds {found:?} keys, the source {expected:?}: {said}");
        }
        std::thread::sleep(COPY_POLL);
    }
}

/// The number of keys of each node; a replica that is loading does not say, and has none yet.
fn sizes(nodes: &mut [Connection]) -> Result<Vec<i64>> {
    let size = |node: &mut Connection| {
        let replies = node.pipeline(&[Command::new(&["DBSIZE"])])?;
        Ok(replies.first().and_then(Value::integer).unwrap_or(0))
    };
    nodes.iter_mut().map(size).collect()
}

/// What everyone uses when nothing is written, in CPU seconds per second.
struct Idle {
    follower: f64,
    targets: f64,
    sources: f64,
}

fn idle(
    stage: &Stage,
    follower: &Follower<'_>,
    time: Duration,
    figures: &mut Figures,
) -> Result<Idle> {
    let before = Usage::now(stage, follower)?;
    let start = Instant::now();
    std::thread::sleep(time);
    let used = Usage::now(stage, follower)?.since(before);
    let seconds = start.elapsed().as_secs_f64();
    let idle = Idle {
        follower: used.follower.total / seconds,
        targets: used.targets.total / seconds,
        sources: used.sources.total / seconds,
    };
    figures.insert("idle_cpu_percent", idle.follower * 100.0);
    Ok(idle)
}

#[derive(Clone, Copy)]
struct Usage {
    follower: Cpu,
    targets: Cpu,
    sources: Cpu,
}

impl Usage {
    fn now(stage: &Stage, follower: &Follower<'_>) -> Result<Usage> {
        let masters = stage.source.masters().iter();
        let sources: Vec<u32> = masters.filter_map(Server::pid).collect();
        Ok(Usage {
            follower: process::cpu(&follower.pids())?,
            targets: process::cpu(&follower.target_pids())?,
            sources: process::cpu(&sources)?,
        })
    }

    fn since(self, before: Usage) -> Usage {
        Usage {
            follower: self.follower - before.follower,
            targets: self.targets - before.targets,
            sources: self.sources - before.sources,
        }
    }
}

/// The load, until its last write shows on every node of the copy.
fn stream(
    stage: &Stage,
    follower: &mut Follower<'_>,
    batches: &[Batch],
    idle: &Idle,
    figures: &mut Figures,
) -> Result<()> {
    let mut nodes = follower.connect()?;
    let records = executed(follower, "hset")?;
    let before = Usage::now(stage, follower)?;
    let load = load(&stage.source_addresses(), batches)?;
    for (node, batch) in nodes.iter_mut().zip(batches) {
        await_value(node, &batch.last_key, &batch.last_value, follower)?;
    }
    let arrived = Instant::now();
    std::thread::sleep(SETTLE);
    let used = Usage::now(stage, follower)?.since(before);

    let seconds = (arrived - load.started).as_secs_f64();
    let commands = commands(batches);
    let per_command = |cpu: f64, idle: f64| (cpu - idle * seconds).max(0.0) * 1e6 / commands;
    let us = [
        (
            "stream_cpu_us_per_command",
            per_command(used.follower.total, idle.follower),
        ),
        (
            "stream_system_us_per_command",
            per_command(used.follower.system, 0.0),
        ),
        (
            "stream_source_cpu_us_per_command",
            per_command(used.sources.total, idle.sources),
        ),
    ];
    figures.extend(us);
    if !follower.target_pids().is_empty() {
        let targets = per_command(used.targets.total, idle.targets);
        figures.insert("stream_target_cpu_us_per_command", targets);
        let records = executed(follower, "hset")? - records;
        figures.insert("stream_records_per_second", records / seconds);
    }
    figures.insert("load_seconds", (load.ended - load.started).as_secs_f64());
    figures.insert("catch_up_seconds", seconds);
    let after = arrived.saturating_duration_since(load.ended);
    figures.insert("catch_up_after_load_ms", after.as_secs_f64() * 1e3);
    Ok(())
}

fn commands(batches: &[Batch]) -> f64 {
    batches.iter().map(Batch::commands).sum::<usize>() as f64
}

/// The order in which counters are incremented.
const COUNTERS: [Counters; 2] = [Counters::Spread, Counters::Hot];

/// The names of figures about increments.
struct IncrementKeys {
    follower: &'static str,
    together: &'static str,
    target: &'static str,
    source: &'static str,
    seconds: &'static str,
}

fn increment_keys(counters: Counters) -> IncrementKeys {
    match counters {
        Counters::Spread => IncrementKeys {
            follower: "incr_cpu_us_per_command",
            together: "incr_per_transaction",
            target: "incr_target_cpu_us_per_command",
            source: "incr_source_cpu_us_per_command",
            seconds: "incr_catch_up_seconds",
        },
        Counters::Hot => IncrementKeys {
            follower: "hot_incr_cpu_us_per_command",
            together: "hot_incr_per_transaction",
            target: "hot_incr_target_cpu_us_per_command",
            source: "hot_incr_source_cpu_us_per_command",
            seconds: "hot_incr_catch_up_seconds",
        },
    }
}

/// What a load of increments took.
struct Increments {
    commands: f64,
    used: Usage,
    /// Over which that was used.
    seconds: f64,
    /// Until they had arrived.
    arrived_seconds: f64,
    /// In which the target's masters got them.
    transactions: f64,
}

impl Increments {
    fn insert(self, counters: Counters, idle: &Idle, follower: &Follower<'_>, to: &mut Figures) {
        let keys = increment_keys(counters);
        let per_command =
            |cpu: Cpu, idle: f64| (cpu.total - idle * self.seconds).max(0.0) * 1e6 / self.commands;
        to.insert(
            keys.follower,
            per_command(self.used.follower, idle.follower),
        );
        to.insert(keys.source, per_command(self.used.sources, idle.sources));
        if !follower.target_pids().is_empty() {
            to.insert(keys.target, per_command(self.used.targets, idle.targets));
            to.insert(keys.together, self.commands / self.transactions.max(1.0));
        }
        to.insert(keys.seconds, self.arrived_seconds);
    }
}

/// Pipelined increments, until they have arrived.
fn increment(
    stage: &Stage,
    follower: &mut Follower<'_>,
    counters: Counters,
    keyspace: &mut Keyspace,
    plan: &Plan,
    mut profiler: Option<&mut Profiler>,
) -> Result<Increments> {
    let begin = keyspace.begin_counters(counters);
    load(&stage.source_addresses(), &begin)?;
    await_quiet(stage, follower, &begin)?;
    let batches = keyspace.increments(counters, plan.commands);
    if let Some(profiler) = profiler.as_deref_mut() {
        let section = match counters {
            Counters::Spread => "increments",
            Counters::Hot => "increments of hot keys",
        };
        profiler.start(section, &follower.pids())?;
    }
    let transactions = executed(follower, "exec")?;
    let before = Usage::now(stage, follower)?;
    let load = load(&stage.source_addresses(), &batches)?;
    let arrived = await_quiet(stage, follower, &batches)?;
    let used = Usage::now(stage, follower)?.since(before);
    let transactions = executed(follower, "exec")? - transactions;
    let seconds = load.started.elapsed().as_secs_f64();
    profiler.map_or(Ok(()), Profiler::stop)?;
    Ok(Increments {
        commands: commands(&batches),
        used,
        seconds,
        arrived_seconds: (arrived - load.started).as_secs_f64(),
        transactions,
    })
}

/// How often the nodes of the copy have executed a command.
fn executed(follower: &Follower<'_>, command: &str) -> Result<f64> {
    let prefix = format!("cmdstat_{command}:calls=");
    let count = |node: &mut Connection| -> Result<f64> {
        let statistics = node.call(&["INFO", "commandstats"])?.text();
        let calls = |line: &str| line.strip_prefix(&prefix)?.split(',').next()?.parse().ok();
        Ok(statistics.lines().find_map(calls).unwrap_or(0.0))
    };
    follower.connect()?.iter_mut().map(count).sum()
}

/// How long nobody may work for all to have arrived, and what is not counted as work: the share of one core.
const QUIET: Duration = Duration::from_millis(150);
const QUIET_POLL: Duration = Duration::from_millis(10);
const QUIET_SHARE: f64 = 0.2;

/// Waits until the batches' last commands show and neither the follower nor the targets work; when that began.
fn await_quiet(stage: &Stage, follower: &mut Follower<'_>, batches: &[Batch]) -> Result<Instant> {
    for (node, batch) in follower.connect()?.iter_mut().zip(batches) {
        await_value(node, &batch.last_key, &batch.last_value, follower)?;
    }
    let deadline = Instant::now() + CATCH_UP_TIMEOUT;
    let mut quiet_since = Instant::now();
    let mut before = Usage::now(stage, follower)?;
    let mut looked = Instant::now();
    while quiet_since.elapsed() < QUIET {
        std::thread::sleep(QUIET_POLL);
        let now = Usage::now(stage, follower)?;
        let used = now.since(before);
        if used.follower.total + used.targets.total > QUIET_SHARE * looked.elapsed().as_secs_f64() {
            quiet_since = Instant::now();
        }
        (before, looked) = (now, Instant::now());
        if Instant::now() > deadline {
            bail!("the increments do not end: {}", follower.output());
        }
    }
    Ok(quiet_since)
}

fn await_value(
    node: &mut Connection,
    key: &str,
    value: &[u8],
    follower: &mut Follower<'_>,
) -> Result<()> {
    let deadline = Instant::now() + CATCH_UP_TIMEOUT;
    loop {
        if node.call(&["GET", key])?.bytes() == Some(value) {
            return Ok(());
        }
        follower.check()?;
        if Instant::now() > deadline {
            bail!("{key} did not arrive: {}", follower.output());
        }
        std::thread::sleep(CATCH_UP_POLL);
    }
}

/// The lag of a bare relay into the target, which holds what the source holds.
pub fn relay(stage: &Stage, keyspace: &Keyspace, plan: &Plan) -> Result<Figures> {
    let mut figures = Figures::new();
    let _relay = Relay::attach(stage)?;
    lag(stage, stage.target.masters(), keyspace, plan, &mut figures)?;
    Ok(figures)
}

/// Single writes, one at a time: each is written on one connection, and seen on another of the copy's node.
fn lag(
    stage: &Stage,
    nodes: &[Server],
    keyspace: &Keyspace,
    plan: &Plan,
    figures: &mut Figures,
) -> Result<()> {
    let mut heard = lags(stage, nodes, keyspace, plan, Seen::ByMessage)?;
    figures.insert("lag_p50_ms", percentile(&mut heard, 50.0));
    figures.insert("lag_p99_ms", percentile(&mut heard, 99.0));
    let mut polled = lags(stage, nodes, keyspace, plan, Seen::ByPolling)?;
    figures.insert("lag_polled_p50_ms", percentile(&mut polled, 50.0));
    figures.insert("lag_polled_p99_ms", percentile(&mut polled, 99.0));
    Ok(())
}

/// How a write is seen on the copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// A client of the node sleeps until the node tells of it (keyspace notifications): nobody else needs the cores.
    ByMessage,
    /// A client asks without pause: it and the node keep a core and a half busy meanwhile.
    ByPolling,
}

/// Milliseconds from sending a write to seeing it, of each sample.
fn lags(
    stage: &Stage,
    servers: &[Server],
    keyspace: &Keyspace,
    plan: &Plan,
    seen: Seen,
) -> Result<Vec<f64>> {
    let mut sources = connections(stage.source.masters())?;
    let mut nodes = connections(servers)?;
    if seen == Seen::ByMessage {
        for (node, key) in nodes.iter_mut().zip(keyspace.last_keys()) {
            node.call(&["CONFIG", "SET", "notify-keyspace-events", "K$"])?;
            node.call(&["SUBSCRIBE", &format!("__keyspace@0__:{key}")])?;
        }
    }
    let mut random = fastrand::Rng::new();
    let mut lags = Vec::new();
    let start = Instant::now();
    for sample in 0..plan.lag_samples {
        let due = start + Duration::from_secs_f64(sample as f64 / plan.lag_rate);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let index = sample % sources.len();
        let key = &keyspace.last_keys()[index];
        let value = random_value(&mut random, crate::data::VALUE_BYTES);
        let set = Command::new(&[b"SET", key.as_bytes(), &value]);
        let get = Command::new(&["GET", key]);
        let sent = Instant::now();
        ask(&mut sources[index], &set)?;
        if seen == Seen::ByMessage {
            nodes[index].read()?.ok()?;
        }
        while seen == Seen::ByPolling && ask(&mut nodes[index], &get)?.bytes() != Some(&value) {
            if sent.elapsed() > LAG_TIMEOUT {
                bail!("{key} did not arrive");
            }
        }
        lags.push(sent.elapsed().as_secs_f64() * 1e3);
    }
    if seen == Seen::ByMessage {
        for node in &mut connections(servers)? {
            node.call(&["CONFIG", "SET", "notify-keyspace-events", ""])?;
        }
    }
    Ok(lags)
}

fn ask(connection: &mut Connection, command: &Command) -> Result<Value> {
    connection.queue(command);
    connection.flush()?;
    connection.read()?.ok()
}

/// Compares each node of the copy with its source master by the digest of all keys and values.
fn compare(stage: &Stage, follower: &Follower<'_>) -> Result<()> {
    let digests = |nodes: &mut [Connection]| -> Result<Vec<String>> {
        let digest = |node: &mut Connection| Ok(node.call(&["DEBUG", "DIGEST"])?.text());
        nodes.iter_mut().map(digest).collect()
    };
    let source = digests(&mut connections(stage.source.masters())?)?;
    let copy = digests(&mut follower.connect()?)?;
    if source != copy {
        bail!("the copy differs from the source: digests {copy:?}, not {source:?}");
    }
    Ok(())
}

fn connections(servers: &[Server]) -> Result<Vec<Connection>> {
    let opened: Result<Vec<_>> = servers.iter().map(Server::connect).collect();
    opened.context("a source master does not answer")
}
