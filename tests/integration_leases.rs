//! Keys that live for seconds and are renewed in time survive on a target that is far behind, and end in time after it.
//!
//! `SLOTSTREAM_TEST_FULL=1` takes four times as long, with ten thousand keys.

use anyhow::{Result, ensure};
use lab::{
    Client, Cluster, ClusterOptions, Command, CompareOptions, Endpoint, Family, Proxy, Server,
    ServerOptions, Slotstream, Version, compare, version_or_skip,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(120);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slotstream"))
}

fn is_full() -> bool {
    std::env::var_os("SLOTSTREAM_TEST_FULL").is_some()
}

/// How many keys are renewed each second.
fn key_count() -> usize {
    if is_full() { 10_000 } else { 2_000 }
}

/// How long the target gets nothing, or the copy takes.
fn trouble() -> Duration {
    Duration::from_secs(if is_full() { 20 } else { 5 })
}

/// One to five seconds, or less where the trouble is shorter.
fn lifetime_ms(number: usize) -> u64 {
    let spread = if is_full() { 4_000 } else { 2_000 };
    1_000 + scattered(number as u64) % spread
}

/// A number that looks like chance (one step of SplitMix64).
fn scattered(number: u64) -> u64 {
    let mixed = (number.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 27)
}

/// Text that cannot be compressed.
fn noise(number: usize, bytes: usize) -> String {
    let words =
        (0..bytes / 16).map(|word| format!("{:016x}", scattered((number * bytes + word) as u64)));
    words.collect()
}

fn key(number: usize) -> String {
    format!("lease:{number}")
}

/// Writes that make each key live for some time: a third by `SET`, the others by a new deadline only.
fn renewals(lifetime_ms: impl Fn(usize) -> u64) -> Vec<Command> {
    let renew = |number| {
        let (key, lifetime) = (key(number), lifetime_ms(number).to_string());
        match number % 3 {
            0 => Command::new(&["SET", &key, "v", "PX", &lifetime]),
            _ => Command::new(&["PEXPIRE", &key, &lifetime]),
        }
    };
    (0..key_count()).map(renew).collect()
}

/// Renews all keys each second until it is told to stop.
struct Renewer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Renewer {
    fn start(source: &Endpoint) -> Result<Renewer> {
        let mut client = Client::connect(source)?;
        let fresh: Vec<Command> = (0..key_count())
            .map(|number| match number % 3 {
                1 => Command::new(&["HSET", &key(number), "f", "v"]),
                2 => Command::new(&["RPUSH", &key(number), "v"]),
                _ => Command::new(&["SET", &key(number), "v"]),
            })
            .collect();
        client.pipeline(&fresh)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                // Never so short that a key could end at the source before its next turn.
                client.pipeline(&renewals(|number| 600 + lifetime_ms(number)))?;
                std::thread::sleep(Duration::from_millis(900).saturating_sub(begun.elapsed()));
            }
            // In the end one half lives on for long, and the other for seconds.
            let last = renewals(lifetime_ms);
            let long = |number| Command::new(&["PEXPIRE", &key(number), "900000"]);
            let ends = last.into_iter().enumerate().map(|(number, command)| {
                if number % 2 == 0 {
                    long(number)
                } else {
                    command
                }
            });
            client.pipeline(&ends.collect::<Vec<_>>())?;
            Ok(())
        });
        Ok(Renewer { stop, thread })
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the renewer does not panic")
    }
}

/// Waits until no deadline is held back any more, and compares.
fn must_end_equal(sync: &mut Slotstream, source: &Endpoint, target: &Endpoint) -> Result<()> {
    sync.wait_until_settled(TIMEOUT)?;
    let status = sync.status()?;
    for lane in status["lanes"].as_array().cloned().unwrap_or_default() {
        ensure!(lane["errors"]["divergence"].is_null(), "{status}");
    }
    let options = CompareOptions {
        // 6.0 says how long a key lives from when its command is executed.
        relative_ttl_tolerance: Duration::from_millis(1_500),
        ..CompareOptions::default()
    };
    // Redis finds ended keys sooner or later, and looks at each when it is compared.
    let diff = compare(source, target, &options)?;
    ensure!(diff.is_equal(), "{diff}\n{}", sync.output());
    ensure!(diff.keys >= key_count() / 2, "{diff}");
    Ok(())
}

fn survives_a_slow_copy(version: &Version, target: &Endpoint) -> Result<()> {
    let source = Server::start(version, ServerOptions::default())?;
    let renewer = Renewer::start(&source.endpoint())?;
    let mut client = Client::connect(&source.endpoint())?;
    // What is not compressed, of a size that takes as long as it shall.
    let bytes = 2_000_000;
    let fill = (0..3 * bytes / 2 / 1_024)
        .map(|number| Command::new(&["SET", &format!("fill:{number}"), &noise(number, 1_024)]));
    client.pipeline(&fill.collect::<Vec<_>>())?;
    let proxy = Proxy::start(&source.address())?;
    proxy.limit(Some(bytes as u64 / trouble().as_secs()));
    let through = Endpoint::at(proxy.address());
    let mut sync = Slotstream::start(program(), &through, target, &[])?;
    std::thread::sleep(trouble());
    let status = sync.status()?;
    ensure!(status["lanes"][0]["state"] == "copying", "{status}");
    proxy.limit(None);
    sync.wait_until_caught_up(TIMEOUT)?;
    std::thread::sleep(Duration::from_secs(2));
    renewer.stop()?;
    must_end_equal(&mut sync, &source.endpoint(), target)?;
    let (exit, output) = sync.stop()?;
    ensure!(exit.code() == Some(0), "{exit}: {output}");
    Ok(())
}

fn survives_a_target_that_stands_still(family: Family) -> Result<()> {
    let Some(version) = version_or_skip(family) else {
        return Ok(());
    };
    let source = Server::start(&version, ServerOptions::default())?;
    let target = Server::start(&version, ServerOptions::default())?;
    let renewer = Renewer::start(&source.endpoint())?;
    let mut sync = Slotstream::start(program(), &source.endpoint(), &target.endpoint(), &[])?;
    sync.wait_until_caught_up(TIMEOUT)?;
    std::thread::sleep(Duration::from_secs(2));
    target.freeze()?;
    std::thread::sleep(trouble());
    target.thaw()?;
    std::thread::sleep(Duration::from_secs(2));
    renewer.stop()?;
    must_end_equal(&mut sync, &source.endpoint(), &target.endpoint())
}

#[test]
fn keys_renewed_during_a_slow_copy_into_a_server_of_7_0_survive() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let target = Server::start(&version, ServerOptions::default())?;
    survives_a_slow_copy(&version, &target.endpoint())
}

#[test]
fn keys_renewed_during_a_slow_copy_into_a_cluster_survive() -> Result<()> {
    let Some(version) = version_or_skip(Family::Valkey9) else {
        return Ok(());
    };
    let options = ClusterOptions {
        server: ServerOptions::default(),
        slots: None,
    };
    let target = Cluster::start(&version, 2, 0, options)?;
    survives_a_slow_copy(&version, &target.endpoint())
}

#[test]
fn keys_renewed_while_a_server_of_6_0_stands_still_survive() -> Result<()> {
    survives_a_target_that_stands_still(Family::Redis60)
}

#[test]
fn keys_renewed_while_a_server_of_valkey_8_1_stands_still_survive() -> Result<()> {
    survives_a_target_that_stands_still(Family::Valkey81)
}

/// A process that ends gives every key its true deadline.
#[test]
fn no_lease_outlives_the_process() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis80) else {
        return Ok(());
    };
    let source = Server::start(&version, ServerOptions::default())?;
    let target = Server::start(&version, ServerOptions::default())?;
    let mut client = Client::connect(&source.endpoint())?;
    // In full more than the table takes: a walk over the target finds the others.
    let count = if is_full() { 600_000 } else { 5_000 };
    let keys = (0..count).map(|number| {
        let lifetime = if number % 2 == 0 { "200" } else { "3600" };
        Command::new(&["SET", &key(number), "v", "EX", lifetime])
    });
    client.pipeline(&keys.collect::<Vec<_>>())?;
    let arguments = &["--once"];
    let mut sync = Slotstream::start(program(), &source.endpoint(), &target.endpoint(), arguments)?;
    let (exit, output) = sync.wait_for_exit(TIMEOUT)?;
    ensure!(exit.code() == Some(0), "{exit}: {output}");
    let diff = compare(
        &source.endpoint(),
        &target.endpoint(),
        &CompareOptions::default(),
    )?;
    ensure!(diff.is_equal() && diff.keys == count, "{diff}\n{output}");
    Ok(())
}
