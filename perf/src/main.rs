//! Measures slotstream and a stock replica (`REPLICAOF`) side by side, in one run, under the same load.
//!
//! ```text
//!                      +--> slotstream --> target: cluster of three masters
//! source: cluster of --+
//! three masters        +--> three stock servers as replicas
//! ```
//!
//! Beside them the target's masters are measured under the same commands from a client.
//!
//! One contender is attached at a time, and they take turns for several rounds, of which the medians are
//! compared: machines drift, and few cores are shared. `perf/run` builds everything and starts this.
//!
//! In reading order: [`data`] and [`loader`] make the load, [`follower`] starts the contenders,
//! [`round`] measures one of them once, [`relay`] is the least that could be in their place, [`process`] reads what the kernel knows, [`profile`] asks `perf`,
//! [`report`] holds what is measured and the bars.

mod data;
mod follower;
mod loader;
mod process;
mod profile;
mod relay;
mod report;
mod round;

use crate::data::Keyspace;
use crate::follower::{Contender, Stage, server_options};
use crate::profile::Profiler;
use crate::report::{Kind, Series};
use crate::round::{Part, Parts, Plan};
use anyhow::{Context, Result, bail};
use clap::Parser;
use lab::{Cluster, ClusterOptions, Family};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const MASTERS: usize = 3;
/// Fewer give so few samples that they show nothing.
const PROFILED_COMMANDS: u64 = 1_000_000;
const LARGE_VALUE_BYTES: usize = 256 * 1024;

/// Measure slotstream and a stock replica side by side, on real servers on this machine
#[derive(Parser)]
#[command(name = "perf/run")]
struct Arguments {
    /// The program to measure
    #[arg(long, hide = true)]
    program: PathBuf,
    /// Of the servers: redis-6.0, redis-7.0, redis-8.0, valkey-8.0, valkey-8.1, valkey-9
    #[arg(long, default_value = "redis-7.0")]
    version: Family,
    /// Write all figures to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A tenth of everything
    #[arg(long)]
    quick: bool,
    /// A thousandth of everything, once: only that all of it works
    #[arg(long, conflicts_with = "quick")]
    check: bool,
    /// Show where the program's time goes in one more round (needs `perf`, package linux-perf)
    #[arg(long)]
    profile: bool,
    /// Rounds of each contender
    #[arg(long)]
    rounds: Option<usize>,
    /// Another build of the program, to compare with
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
    /// Measure only this part, behind a first copy; may be given several times
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
    /// Without the stock replica and the bare relay
    #[arg(long)]
    alone: bool,
    /// One more argument for another `slotstream sync` to compare with, of the same build unless `--against` names another; may
    /// be given several times
    #[arg(long, value_name = "ARGUMENT")]
    other: Vec<String>,
    /// One more argument for `slotstream sync`, such as --with=--cores=0; may be given several times
    #[arg(long = "with", value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// The sizes of a run.
struct Sizes {
    plan: Plan,
    rounds: usize,
    large_values: u64,
}

impl Sizes {
    fn new(arguments: &Arguments) -> Sizes {
        let divisor = match arguments {
            Arguments { check: true, .. } => 1000,
            Arguments { quick: true, .. } => 10,
            _ => 1,
        };
        Sizes {
            plan: Plan {
                keys: 1_000_000 / divisor,
                commands: 1_000_000 / divisor,
                lag_samples: (1_500 / divisor as usize).max(30),
                lag_rate: 500.0,
                idle: Duration::from_millis((2_000 / divisor).max(100)),
                parts: Parts(arguments.only.clone()),
            },
            rounds: arguments
                .rounds
                .unwrap_or(if arguments.check { 1 } else { 3 }),
            // Ten times the bar on memory, so that nobody who keeps the snapshot stays under it.
            large_values: 4_480 / divisor,
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perf: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let sizes = Sizes::new(arguments);
    if sizes.rounds == 0 {
        bail!("without rounds there is nothing to compare");
    }
    let contenders = contenders(arguments);
    let version = lab::version(arguments.version)?;
    let cluster = || {
        let options = ClusterOptions {
            server: server_options(),
            slots: None,
        };
        Cluster::start(&version, MASTERS, 0, options)
    };
    let stage = Stage {
        source: cluster()?,
        target: cluster()?,
        version: version.clone(),
    };
    let about = json!({
        "server": version.to_string(),
        "masters": MASTERS,
        "keys": sizes.plan.keys,
        "commands": sizes.plan.commands,
        "value_bytes": data::VALUE_BYTES,
        "rounds": sizes.rounds,
        "arguments": arguments.arguments,
        "machine": machine(),
    });
    println!("{}", describe(&about));

    let mut series: Vec<Series> = contenders
        .iter()
        .map(|contender| Series {
            name: contender.name().to_owned(),
            kind: match contender {
                Contender::Slotstream { .. } => Kind::Program,
                Contender::Replica => Kind::Replica,
            },
            rounds: Vec::new(),
        })
        .collect();
    if !arguments.alone {
        series.push(Series {
            name: "bare relay".to_owned(),
            kind: Kind::Relay,
            rounds: Vec::new(),
        });
    }
    series.push(Series {
        name: "plain client".to_owned(),
        kind: Kind::Plain,
        rounds: Vec::new(),
    });
    let mut profiler = arguments.profile.then(Profiler::new).transpose()?;
    measure(&stage, &contenders, &sizes, &mut series, profiler.as_mut())?;

    if let Some(profiler) = &profiler {
        for (section, text) in &profiler.sections {
            println!("Where slotstream's time goes, {section}:\n{text}\n");
        }
    }
    if !arguments.check {
        println!("{}", report::table(&series));
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report::to_json(about, &series))?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    for one in series.iter().filter(|_| arguments.only.is_empty()) {
        one.check()?;
    }
    println!("Every copy was equal to its source.");
    Ok(())
}

fn contenders(arguments: &Arguments) -> Vec<Contender> {
    let program = |name: &str, program: &Path, more: &[String]| Contender::Slotstream {
        name: name.to_owned(),
        program: program.to_owned(),
        arguments: [&arguments.arguments, more].concat(),
    };
    let mut contenders = vec![program("slotstream", &arguments.program, &[])];
    if !arguments.alone {
        contenders.push(Contender::Replica);
    }
    if arguments.against.is_some() || !arguments.other.is_empty() {
        let other = arguments.against.as_ref().unwrap_or(&arguments.program);
        contenders.push(program("other", other, &arguments.other));
    }
    contenders
}

/// All rounds, a profiled one of the first contender if wanted, and the large snapshot.
fn measure(
    stage: &Stage,
    contenders: &[Contender],
    sizes: &Sizes,
    series: &mut [Series],
    mut profiler: Option<&mut Profiler>,
) -> Result<()> {
    let addresses = stage.source_addresses();
    let client = stage.source.client()?;
    let mut keyspace = Keyspace::new(&client, &addresses, sizes.plan.keys, 1)?;
    loader::load(&addresses, &keyspace.fill())?;
    for number in 1..=sizes.rounds {
        for (contender, series) in contenders.iter().zip(&mut *series) {
            eprintln!("round {number} of {}: {}", sizes.rounds, contender.name());
            let figures = round::run(stage, contender, &mut keyspace, &sizes.plan, None)?;
            series.rounds.push(figures);
        }
        for one in &mut *series {
            match one.kind {
                Kind::Program | Kind::Replica => {}
                Kind::Relay if !sizes.plan.parts.has(Part::Lag) => {}
                Kind::Relay => one
                    .rounds
                    .push(round::relay(stage, &keyspace, &sizes.plan)?),
                Kind::Plain => one
                    .rounds
                    .push(round::plain(stage, &mut keyspace, &sizes.plan)?),
            }
        }
    }
    if let Some(profiler) = profiler.as_deref_mut() {
        eprintln!("profile: {}", contenders[0].name());
        let plan = Plan {
            commands: sizes.plan.commands.max(PROFILED_COMMANDS),
            ..sizes.plan.clone()
        };
        round::run(stage, &contenders[0], &mut keyspace, &plan, Some(profiler))?;
    }
    if !sizes.plan.parts.has(Part::Large) {
        return Ok(());
    }
    let large = keyspace.large(sizes.large_values, LARGE_VALUE_BYTES);
    let bytes = large.iter().map(|batch| batch.bytes.len() as u64).sum();
    loader::load(&addresses, &large)?;
    drop(large);
    for (contender, series) in contenders.iter().zip(series) {
        if series.kind == Kind::Program {
            eprintln!("large snapshot: {}", contender.name());
            let figures = round::large_copy(stage, contender, bytes, profiler.take())?;
            series.rounds.push(figures);
        }
    }
    Ok(())
}

/// What the figures depend on besides the programs.
fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model);
    json!({
        "cpu": model,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load_average_before": read("/proc/loadavg").split(' ').next(),
    })
}

fn describe(about: &Value) -> String {
    let machine = &about["machine"];
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    format!(
        "{}, {MASTERS} masters to {MASTERS} masters, {} keys, {} commands, {} rounds\n{} cores of {}, kernel {}, load average {} before\n",
        text(&about["server"]),
        about["keys"],
        about["commands"],
        about["rounds"],
        machine["cores"],
        text(&machine["cpu"]),
        text(&machine["kernel"]),
        text(&machine["load_average_before"]),
    )
}
