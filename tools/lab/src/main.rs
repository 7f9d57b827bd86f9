//! `lab`: the servers of the tests, by hand.

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use lab::torture::{self, Kind, Variant};
use lab::{
    Client, Cluster, ClusterOptions, CompareOptions, Endpoint, Family, LoadOptions, Server,
    ServerOptions, Version, WriterOptions, Writers,
};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Real Redis and Valkey servers of several versions, side by side on loopback
#[derive(Parser)]
#[command(name = "lab")]
struct Arguments {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand)]
enum Job {
    /// List the versions that can be started here; fetches what is missing
    #[command(alias = "unpack")]
    Versions,
    /// Start a cluster, print its URI, and keep it until this process ends
    Cluster {
        /// Such as redis-7.0 or valkey-9; the newest that is available if not given
        #[arg(long)]
        version: Option<Family>,
        /// 0 starts a single server that is no cluster
        #[arg(long, default_value_t = 3)]
        masters: usize,
        /// Replicas of each master
        #[arg(long, default_value_t = 0)]
        replicas: usize,
        /// Of the first node; the others follow it. Free ones if not given
        #[arg(long)]
        port: Option<u16>,
        /// Of the default user
        #[arg(long)]
        password: Option<String>,
        /// Snapshots go to replicas straight from memory
        #[arg(long)]
        diskless: bool,
        /// A line of the servers' configuration; may be given several times
        #[arg(long)]
        config: Vec<String>,
    },
    /// Fill a deployment with data of every type
    Load {
        uri: String,
        #[arg(long, default_value_t = 10_000)]
        keys: usize,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Vector sets too, where the server has them
        #[arg(long)]
        vector_sets: bool,
    },
    /// Write a random mix of every kind of command
    Write {
        uri: String,
        /// Commands a second
        #[arg(long, default_value_t = 2_000)]
        rate: u64,
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Also touch the keys that `load --keys N` wrote
        #[arg(long, default_value_t = 0)]
        loaded_keys: usize,
    },
    /// Compare two deployments key by key; exits with 1 where they differ
    Compare {
        first: String,
        second: String,
        /// How many differences to list
        #[arg(long, default_value_t = 20)]
        list: usize,
        /// Leave out keys that begin with this; may be given several times
        #[arg(long)]
        ignore_prefix: Vec<String>,
    },
    /// Replicate one live cluster into another before your eyes
    Quickstart {
        /// The slotstream program
        #[arg(long)]
        program: PathBuf,
        /// The newest that can be fetched if not given
        #[arg(long)]
        version: Option<Family>,
        #[arg(long, default_value_t = 20_000)]
        keys: usize,
        /// How long to go on after the copy
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// Break things around slotstream, over and over, and see that it writes everything exactly once
    Torture {
        #[command(subcommand)]
        kind: Torture,
    },
}

#[derive(Subcommand)]
enum Torture {
    /// Crash slotstream, its connections to the target, or have two of it; exits with 1 where anything is wrong
    Crash {
        #[command(flatten)]
        run: Run,
        /// What breaks: kill, copy, proxy, twice, stop [default: kill]
        #[arg(long)]
        variant: Option<String>,
        /// How often things break [default: without an end; 10 for copy]
        #[arg(long)]
        kills: Option<u64>,
    },
    /// Move slots between the source's masters; exits with 1 where anything is wrong
    Reshard {
        #[command(flatten)]
        run: Run,
        #[command(flatten)]
        change: Change,
        /// How they move: classic, atomic (Valkey 9); all: everything at once [default: classic]
        #[arg(long)]
        variant: Option<String>,
    },
    /// Fail masters of the source over; exits with 1 where anything is wrong
    Failover {
        #[command(flatten)]
        run: Run,
        #[command(flatten)]
        change: Change,
        /// failover; all: everything at once [default: failover]
        #[arg(long)]
        variant: Option<String>,
    },
    /// Fail masters of the target over, and move its slots; exits with 1 where anything is wrong
    Target {
        #[command(flatten)]
        run: Run,
        #[command(flatten)]
        change: Change,
        /// failover; moves: slots move; reshard, atomic (Valkey 9): both; all: everything at once [default: failover]
        #[arg(long)]
        variant: Option<String>,
    },
}

/// What all kinds of torture are told.
#[derive(Args)]
struct Run {
    /// The slotstream program
    #[arg(long)]
    program: PathBuf,
    #[arg(long, value_name = "VERSION", default_value = "redis-7.0")]
    server: Family,
    /// Of everything random; another each time if not given
    #[arg(long)]
    seed: Option<u64>,
    /// How long things break [default: 60, unless it is given how often]
    #[arg(long)]
    seconds: Option<u64>,
    /// In the source before the first copy [default: 10000; 300000 for copy]
    #[arg(long)]
    keys: Option<usize>,
    /// Commands that are written in a second
    #[arg(long, default_value_t = 5_000)]
    rate: u64,
    /// Directory for logs, which stay if anything is wrong [default: a new one for temporary files]
    #[arg(long)]
    logs: Option<PathBuf>,
}

/// What those kinds are told that change the clusters.
#[derive(Args)]
struct Change {
    /// Kill slotstream now and then, too
    #[arg(long)]
    kills: bool,
    /// How often things break [default: without an end]
    #[arg(long)]
    strikes: Option<u64>,
}

fn main() -> ExitCode {
    match run(Arguments::parse().job) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(job: Job) -> Result<ExitCode> {
    match job {
        Job::Versions => list_versions(),
        Job::Cluster {
            version,
            masters,
            replicas,
            port,
            password,
            diskless,
            config,
        } => {
            let version = match version {
                Some(family) => lab::version(family)?,
                None => lab::versions()
                    .pop()
                    .context("no version is available here")?,
            };
            let server = ServerOptions {
                port,
                password,
                diskless,
                extra: config,
                ..ServerOptions::default()
            };
            keep(&version, masters, replicas, server)
        }
        Job::Load {
            uri,
            keys,
            seed,
            vector_sets,
        } => {
            let options = LoadOptions {
                keys,
                seed,
                vector_sets,
                ..LoadOptions::default()
            };
            let report = lab::load(&mut Client::connect(&Endpoint::parse(&uri)?)?, &options)?;
            println!("{} keys with {} commands", report.keys, report.commands);
            Ok(ExitCode::SUCCESS)
        }
        Job::Write {
            uri,
            rate,
            seconds,
            seed,
            loaded_keys,
        } => {
            let options = WriterOptions {
                seed,
                commands_per_second: rate,
                loaded: Some(LoadOptions {
                    keys: loaded_keys,
                    ..LoadOptions::default()
                }),
                ..WriterOptions::default()
            };
            let writers = Writers::start(&Endpoint::parse(&uri)?, &options)?;
            std::thread::sleep(Duration::from_secs_f64(seconds));
            let report = writers.stop()?;
            println!("{report}");
            Ok(ExitCode::from(u8::from(!report.errors.is_empty())))
        }
        Job::Compare {
            first,
            second,
            list,
            ignore_prefix,
        } => {
            let options = CompareOptions {
                listed: list,
                ignored_prefixes: ignore_prefix.into_iter().map(String::into_bytes).collect(),
                ..CompareOptions::default()
            };
            let (first, second) = (Endpoint::parse(&first)?, Endpoint::parse(&second)?);
            let diff = lab::compare(&first, &second, &options)?;
            println!("{diff}");
            Ok(ExitCode::from(u8::from(!diff.is_equal())))
        }
        Job::Quickstart {
            program,
            version,
            keys,
            seconds,
        } => {
            lab::quickstart::run(&lab::quickstart::Options {
                program,
                family: version,
                keys,
                live: Duration::from_secs(seconds),
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Job::Torture { kind } => torture(kind),
    }
}

fn torture(kind: Torture) -> Result<ExitCode> {
    let (kind, run, variant, strikes, kills) = match kind {
        Torture::Crash {
            run,
            variant,
            kills,
        } => (Kind::Crash, run, variant, kills, false),
        Torture::Reshard {
            run,
            change,
            variant,
        } => (Kind::Reshard, run, variant, change.strikes, change.kills),
        Torture::Failover {
            run,
            change,
            variant,
        } => (Kind::Failover, run, variant, change.strikes, change.kills),
        Torture::Target {
            run,
            change,
            variant,
        } => (Kind::Target, run, variant, change.strikes, change.kills),
    };
    let variant = Variant::find(kind, variant.as_deref())?;
    let seed = run.seed.unwrap_or_else(|| fastrand::u64(1..1_000_000));
    let mut options = torture::Options::new(run.program, variant, run.server, seed);
    let seconds = run.seconds.or(strikes.is_none().then_some(60));
    options.duration = seconds.map(Duration::from_secs);
    options.strikes = strikes;
    options.kills = kills;
    options.keys = run.keys.unwrap_or(options.keys);
    options.commands_per_second = run.rate;
    options.logs = run.logs.unwrap_or(options.logs);
    options.verbose = true;
    let summary = torture::run(&options)?;
    println!("{summary}");
    Ok(ExitCode::from(u8::from(!summary.is_clean())))
}

fn list_versions() -> Result<ExitCode> {
    for version in lab::versions() {
        println!("{:<12} {}", version.family(), version.number());
    }
    for (family, reason) in lab::skipped() {
        println!("{family:<12} not available: {reason}");
    }
    Ok(ExitCode::SUCCESS)
}

fn keep(
    version: &Version,
    masters: usize,
    replicas: usize,
    server: ServerOptions,
) -> Result<ExitCode> {
    // The values keep the processes alive.
    let _servers: (Option<Server>, Option<Cluster>) = if masters == 0 {
        let server = Server::start(version, server)?;
        println!("{}", server.uri());
        (Some(server), None)
    } else {
        let options = ClusterOptions {
            server,
            slots: None,
        };
        let cluster = Cluster::start(version, masters, replicas, options)?;
        println!("{}", cluster.uri());
        (None, Some(cluster))
    };
    loop {
        std::thread::park();
    }
}
