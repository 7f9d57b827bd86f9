//! One live deployment into another, with real servers of every version that is available.
//!
//! Each test loads data of every type into the source, keeps writing while the copy runs and after it, and
//! compares both sides key by key in the end. `SLOTSTREAM_TEST_KEYS` sets how many keys are loaded.

use anyhow::{Context, Result, ensure};
use lab::{
    Client, Cluster, ClusterOptions, CompareOptions, Endpoint, Family, LoadOptions, Server,
    ServerOptions, Slotstream, Version, WriterOptions, Writers, compare, load, version_or_skip,
    wait_until,
};
use std::path::Path;
use std::time::Duration;

const COPY_TIMEOUT: Duration = Duration::from_secs(180);
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);
/// Commands written after the copy, before the writers stop.
const COMMANDS_AFTER_COPY: u64 = 4_000;
/// 6.0 sends how long a key still lives, not when it ends, so what waits for the copy to finish ends later
/// by as much as it waited: less than any lifetime in these tests, which are 100 s and more.
const RELATIVE_TTL_TOLERANCE: Duration = Duration::from_secs(60);

/// The program under test.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slotstream"))
}

fn loaded_keys() -> usize {
    match std::env::var("SLOTSTREAM_TEST_KEYS") {
        Ok(text) => text.parse().expect("SLOTSTREAM_TEST_KEYS is a number"),
        Err(_) => 100_000,
    }
}

/// What a deployment is made of.
#[derive(Clone, Copy)]
enum Shape {
    Single,
    Masters(usize),
}

enum Deployment {
    Single(Server),
    Cluster(Cluster),
}

impl Deployment {
    fn start(version: &Version, shape: Shape, server: ServerOptions) -> Result<Deployment> {
        Ok(match shape {
            Shape::Single => Deployment::Single(Server::start(version, server)?),
            Shape::Masters(count) => {
                let options = ClusterOptions {
                    server,
                    slots: None,
                };
                Deployment::Cluster(Cluster::start(version, count, 0, options)?)
            }
        })
    }

    fn endpoint(&self) -> Endpoint {
        match self {
            Deployment::Single(server) => server.endpoint(),
            Deployment::Cluster(cluster) => cluster.endpoint(),
        }
    }

    fn masters(&self) -> usize {
        match self {
            Deployment::Single(_) => 1,
            Deployment::Cluster(cluster) => cluster.masters().len(),
        }
    }
}

/// How the source hands over its snapshot.
#[derive(Clone, Copy)]
enum Snapshot {
    FromDisk,
    FromMemory,
}

/// Replicates with live writes and compares.
fn replicates(family: Family, from: Shape, to: Shape, snapshot: Snapshot) -> Result<()> {
    let Some(version) = version_or_skip(family) else {
        return Ok(());
    };
    let server = ServerOptions {
        diskless: matches!(snapshot, Snapshot::FromMemory),
        // What is written meanwhile waits in the source while the target loads.
        extra: vec!["client-output-buffer-limit replica 0 0 0".to_owned()],
        ..ServerOptions::default()
    };
    let source = Deployment::start(&version, from, server)?;
    let target = Deployment::start(&version, to, ServerOptions::default())?;
    let loaded = LoadOptions {
        keys: loaded_keys(),
        ..LoadOptions::default()
    };
    load(&mut Client::connect(&source.endpoint())?, &loaded)?;
    let writers = Writers::start(
        &source.endpoint(),
        &WriterOptions {
            threads: 1,
            commands_per_second: 1_500,
            loaded: Some(loaded),
            short_lives: true,
            ..WriterOptions::default()
        },
    )?;

    let mut sync = Slotstream::start(program(), &source.endpoint(), &target.endpoint(), &[])?;
    sync.wait_until_caught_up(COPY_TIMEOUT)?;
    let written = writers.commands_so_far();
    wait_until(CATCH_UP_TIMEOUT, "more writes", || {
        Ok(writers.commands_so_far() >= written + COMMANDS_AFTER_COPY)
    })?;
    let report = writers.stop()?;
    ensure!(report.errors.is_empty(), "{version}: {report}");
    sync.wait_until_settled(CATCH_UP_TIMEOUT)?;

    let status = sync.status()?;
    let lanes = status["lanes"].as_array().cloned().unwrap_or_default();
    ensure!(lanes.len() == source.masters(), "a lane each: {status}");
    for lane in &lanes {
        ensure!(lane["full_syncs"] == 1, "one copy each: {status}");
        ensure!(lane["errors"]["divergence"].is_null(), "{status}");
    }
    let (exit, output) = sync.stop()?;
    ensure!(exit.code() == Some(0), "{exit}: {output}");
    must_be_equal(&version, &source, &target)
}

fn must_be_equal(version: &Version, source: &Deployment, target: &Deployment) -> Result<()> {
    let options = CompareOptions {
        relative_ttl_tolerance: RELATIVE_TTL_TOLERANCE,
        ..CompareOptions::default()
    };
    let diff = compare(&source.endpoint(), &target.endpoint(), &options)?;
    ensure!(diff.is_equal(), "{version}: {diff}");
    ensure!(diff.keys > loaded_keys() / 2, "{version}: {diff}");
    Ok(())
}

/// All shapes for one family.
macro_rules! family {
    ($name:ident, $family:expr) => {
        mod $name {
            use super::*;
            use Shape::{Masters, Single};

            #[test]
            fn three_masters_become_three() -> Result<()> {
                replicates($family, Masters(3), Masters(3), Snapshot::FromMemory)
            }

            #[test]
            fn three_masters_become_two() -> Result<()> {
                replicates($family, Masters(3), Masters(2), Snapshot::FromDisk)
            }

            #[test]
            fn one_master_becomes_three() -> Result<()> {
                replicates($family, Masters(1), Masters(3), Snapshot::FromMemory)
            }

            #[test]
            fn a_single_server_becomes_a_cluster() -> Result<()> {
                replicates($family, Single, Masters(3), Snapshot::FromDisk)
            }
        }
    };
}

family!(redis_6_0, Family::Redis60);
family!(redis_7_0, Family::Redis70);
family!(redis_8_0, Family::Redis80);
family!(valkey_8_0, Family::Valkey80);
family!(valkey_8_1, Family::Valkey81);
family!(valkey_9, Family::Valkey9);

#[test]
fn a_cluster_becomes_a_single_server() -> Result<()> {
    replicates(
        Family::Redis70,
        Shape::Masters(2),
        Shape::Single,
        Snapshot::FromMemory,
    )
}

#[test]
fn a_single_server_becomes_a_single_server() -> Result<()> {
    replicates(
        Family::Valkey81,
        Shape::Single,
        Shape::Single,
        Snapshot::FromMemory,
    )
}

/// Passwords from the environment, an ACL user with just the rules that are needed, and an end by itself.
#[test]
fn once_ends_when_everything_is_copied_and_credentials_may_come_from_the_environment() -> Result<()>
{
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let server = ServerOptions {
        password: Some("open sesame".to_owned()),
        ..ServerOptions::default()
    };
    let source = Deployment::start(&version, Shape::Masters(2), server)?;
    let target = Deployment::start(&version, Shape::Masters(2), ServerOptions::default())?;
    let mut client = Client::connect(&source.endpoint())?;
    load(
        &mut client,
        &LoadOptions {
            keys: loaded_keys() / 20,
            ..LoadOptions::default()
        },
    )?;
    let output = std::process::Command::new(program())
        .args(["sync", "--once", "--source"])
        .arg(source.endpoint().with_password(None).to_string())
        .arg("--target")
        .arg(target.endpoint().to_string())
        .env("SLOTSTREAM_SOURCE_PASSWORD", "open sesame")
        .output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(0), "{complaint}");
    let diff = compare(
        &source.endpoint(),
        &target.endpoint(),
        &CompareOptions::default(),
    )?;
    ensure!(diff.is_equal(), "{diff}");
    Ok(())
}

#[test]
fn threads_keep_to_the_cores_that_are_named() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let source = Server::start(&version, ServerOptions::default())?;
    let target = Server::start(&version, ServerOptions::default())?;
    let (from, to) = (source.endpoint(), target.endpoint());
    let allowed = cores_of("self", |_| true)?.pop().context("this thread")?;
    let first = allowed.split([',', '-']).next().context("a core")?;
    let named = ["--cores", first];
    for (arguments, cores) in [(&named[..], first), (&[], &allowed)] {
        let mut sync = Slotstream::start(program(), &from, &to, arguments)?;
        sync.wait_until_caught_up(CATCH_UP_TIMEOUT)?;
        let found = cores_of(&sync.pid().to_string(), |name| name.starts_with("core-"))?;
        let as_wanted = !found.is_empty() && found.iter().all(|found| found == cores);
        ensure!(as_wanted, "{arguments:?}: the threads may run on {found:?}");
        sync.stop()?;
    }
    Ok(())
}

/// Which cores the threads of a process may run on, of those whose name is wanted.
fn cores_of(process: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut cores = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let status = std::fs::read_to_string(thread?.path().join("status"))?;
        let line = |name: &str| {
            let mut lines = status.lines();
            lines.find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
        };
        if line("Name:").is_some_and(|name| wanted(&name)) {
            cores.extend(line("Cpus_allowed_list:"));
        }
    }
    Ok(cores)
}
