//! A second snapshot into a filled target: afterwards the target holds exactly the source's keys.

use anyhow::{Result, ensure};
use lab::{
    Client, Cluster, ClusterOptions, Command, CompareOptions, Connection, Endpoint, Family,
    LoadOptions, Server, ServerOptions, Slotstream, WriterOptions, Writers, compare, load,
    version_or_skip, wait_until,
};
use std::path::Path;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(120);
/// 6.0 sends how long a key still lives, not when it ends.
const RELATIVE_TTL_TOLERANCE: Duration = Duration::from_secs(60);
const KEYS: usize = 30_000;
/// Keys that the source removes while the link is down.
const REMOVED: usize = 2_000;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slotstream"))
}

/// A backlog that a single large write pushes everything out of.
fn forgetful() -> ServerOptions {
    ServerOptions {
        extra: vec![
            "repl-backlog-size 16384".to_owned(),
            "client-output-buffer-limit replica 0 0 0".to_owned(),
        ],
        ..ServerOptions::default()
    }
}

/// Short keys that `number`s lead to, of several types.
fn stale_keys() -> Vec<String> {
    (0..REMOVED)
        .map(|number| format!("stale:{number}"))
        .collect()
}

fn fill(source: &Endpoint) -> Result<LoadOptions> {
    let loaded = LoadOptions {
        keys: KEYS,
        ..LoadOptions::default()
    };
    let mut client = Client::connect(source)?;
    load(&mut client, &loaded)?;
    let commands: Vec<Command> = stale_keys()
        .iter()
        .enumerate()
        .map(|(number, key)| match number % 3 {
            0 => Command::new(&["SET", key, "v"]),
            1 => Command::new(&["RPUSH", key, "a", "b"]),
            _ => Command::new(&["HSET", key, "f", "v"]),
        })
        .collect();
    client.pipeline(&commands)?;
    Ok(loaded)
}

/// Throws the lane out of one master, and makes the master forget where it was before it is back.
fn throw_out(master: &mut Connection, doomed: &[&String]) -> Result<()> {
    master.queue(&Command::new(&["CLIENT", "KILL", "TYPE", "replica"]));
    for key in doomed {
        master.queue(&Command::new(&["DEL", key]));
    }
    // Some come to life again, as something else.
    for key in doomed.iter().step_by(7) {
        master.queue(&Command::new(&["LPUSH", key, "new"]));
    }
    let large = "x".repeat(200_000);
    let first = doomed.first().map_or("large", |key| key.as_str());
    master.queue(&Command::new(&["SET", first, &large]));
    master.flush()?;
    let replies = 2 + doomed.len() + doomed.len().div_ceil(7);
    for _ in 0..replies {
        master.read()?.ok()?;
    }
    Ok(())
}

fn full_syncs(sync: &Slotstream) -> Result<Vec<u64>> {
    let status = sync.status()?;
    let lanes = status["lanes"].as_array().cloned().unwrap_or_default();
    let count = |lane: &serde_json::Value| lane["full_syncs"].as_u64().unwrap_or(0);
    Ok(lanes.iter().map(count).collect())
}

fn resyncs_exactly(source: &Endpoint, target: &Endpoint, databases: bool) -> Result<()> {
    let loaded = fill(source)?;
    let mut sync = Slotstream::start(program(), source, target, &[])?;
    sync.wait_until_caught_up(TIMEOUT)?;
    let writers = Writers::start(
        source,
        &WriterOptions {
            threads: 1,
            commands_per_second: 1_500,
            loaded: Some(loaded),
            short_lives: false,
            ..WriterOptions::default()
        },
    )?;
    let mut client = Client::connect(source)?;
    let keys = stale_keys();
    for address in client.masters().to_vec() {
        let slots = keys.iter().map(|key| lab::client::slot_of(key.as_bytes()));
        let owned = keys.iter().zip(slots);
        let doomed: Vec<&String> = owned
            .filter(|(_, slot)| client.owner_of_slot(*slot) == address)
            .map(|(key, _)| key)
            .collect();
        throw_out(client.connection(&address)?, &doomed)?;
    }
    if databases {
        // Written behind the tool's back, in a database that the source does not use.
        let mut theirs = target.connect(&target.seeds[0])?;
        theirs.call(&["SELECT", "5"])?;
        theirs.call(&["SET", "theirs", "x"])?;
    }
    wait_until(TIMEOUT, "a second snapshot of each master", || {
        Ok(full_syncs(&sync)?.iter().all(|&count| count >= 2))
    })?;
    sync.wait_until_caught_up(TIMEOUT)?;
    let report = writers.stop()?;
    ensure!(report.errors.is_empty(), "{report}");
    sync.wait_until_settled(TIMEOUT)?;
    let status = sync.status()?;
    let (exit, output) = sync.stop()?;
    ensure!(exit.code() == Some(0), "{exit}: {output}");
    let lanes = status["lanes"].as_array().cloned().unwrap_or_default();
    for lane in &lanes {
        ensure!(lane["stale"]["removed"].as_u64() > Some(0), "{status}");
        ensure!(lane["errors"]["divergence"].is_null(), "{status}");
    }
    let options = CompareOptions {
        relative_ttl_tolerance: RELATIVE_TTL_TOLERANCE,
        ..CompareOptions::default()
    };
    let diff = compare(source, target, &options)?;
    ensure!(diff.is_equal(), "{diff}\n{output}");
    ensure!(diff.keys > KEYS / 2, "{diff}");
    Ok(())
}

fn between_clusters(family: Family, from: usize, to: usize) -> Result<()> {
    let Some(version) = version_or_skip(family) else {
        return Ok(());
    };
    let options = |server| ClusterOptions {
        server,
        slots: None,
    };
    let source = Cluster::start(&version, from, 0, options(forgetful()))?;
    let target = Cluster::start(&version, to, 0, options(ServerOptions::default()))?;
    resyncs_exactly(&source.endpoint(), &target.endpoint(), false)
}

#[test]
fn a_cluster_of_7_0_that_forgot_the_lanes_leaves_no_stale_key() -> Result<()> {
    between_clusters(Family::Redis70, 2, 2)
}

#[test]
fn a_cluster_of_valkey_9_that_forgot_the_lanes_leaves_no_stale_key() -> Result<()> {
    between_clusters(Family::Valkey9, 2, 3)
}

#[test]
fn a_single_server_of_6_0_that_forgot_the_lane_leaves_no_stale_key() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis60) else {
        return Ok(());
    };
    let source = Server::start(&version, forgetful())?;
    let target = Server::start(&version, ServerOptions::default())?;
    resyncs_exactly(&source.endpoint(), &target.endpoint(), true)
}

/// Several lanes into one server: each removes keys of its own slots only. And what was there before goes only if asked.
#[test]
fn keys_on_the_target_are_replaced_only_where_that_was_asked_for() -> Result<()> {
    let Some(version) = version_or_skip(Family::Valkey81) else {
        return Ok(());
    };
    let options = ClusterOptions {
        server: ServerOptions::default(),
        slots: None,
    };
    let source = Cluster::start(&version, 3, 0, options)?;
    let target = Server::start(&version, ServerOptions::default())?;
    fill(&source.endpoint())?;
    let mut there = target.connect()?;
    for number in 0..5_000 {
        there.queue(&Command::new(&["SET", &format!("theirs:{number}"), "x"]));
    }
    there.flush()?;
    for _ in 0..5_000 {
        there.read()?.ok()?;
    }
    for (choice, left) in [("keep", 5_000), ("replace", 0)] {
        let mut sync = Slotstream::start(
            program(),
            &source.endpoint(),
            &target.endpoint(),
            // Another link each time: one that left its records would go on, and copy nothing.
            &["--on-existing", choice, "--once", "--link", choice],
        )?;
        let (exit, output) = sync.wait_for_exit(TIMEOUT)?;
        ensure!(exit.code() == Some(0), "{exit}: {output}");
        let options = CompareOptions::default();
        let diff = compare(&source.endpoint(), &target.endpoint(), &options)?;
        ensure!(diff.is_equal() == (left == 0), "{choice}: {diff}\n{output}");
        let theirs: usize = (0..5_000)
            .filter(|number| {
                let key = format!("theirs:{number}");
                let there = there.call(&["EXISTS", &key]);
                there.is_ok_and(|reply| reply.integer() == Some(1))
            })
            .count();
        ensure!(theirs == left, "{choice}: {theirs} are left");
    }
    Ok(())
}
