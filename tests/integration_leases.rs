//! Keys and fields that live for seconds and are renewed in time survive on a target that is far behind, and end in time
//! after it.
//!
//! `SLOTSTREAM_TEST_FULL=1` takes four times as long, with ten thousand of them.

use anyhow::{Context, Result, ensure};
use lab::{
    Client, Cluster, ClusterOptions, Command, CompareOptions, Endpoint, Family, Proxy, Server,
    ServerOptions, Slotstream, Value, Version, compare, version_or_skip, wait_until,
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

/// How many keys or fields are renewed each second.
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

/// What lives for seconds and is renewed.
#[derive(Clone, Copy)]
enum Renewed {
    Keys,
    Fields,
}

/// Hashes that are renamed, copied, dumped and restored each second.
const TURNING: usize = 20;

/// The hash and the name of a field: a third are alone in theirs.
fn field(number: usize) -> (String, String) {
    match number % 3 {
        0 => (format!("alone:{number}"), "f".to_owned()),
        _ => (format!("hash:{}", number / 10), format!("f{number}")),
    }
}

impl Renewed {
    /// Writes that make them.
    fn fresh(self) -> Vec<Command> {
        let numbers = 0..key_count();
        match self {
            Renewed::Keys => numbers
                .map(|number| match number % 3 {
                    1 => Command::new(&["HSET", &key(number), "f", "v"]),
                    2 => Command::new(&["RPUSH", &key(number), "v"]),
                    _ => Command::new(&["SET", &key(number), "v"]),
                })
                .collect(),
            Renewed::Fields => {
                let field = |number| {
                    let (hash, field) = field(number);
                    // The last field takes the key with it, and the deadline of that.
                    let end = ["PEXPIRE", &hash, "900000"];
                    let far = ["HSETEX", &hash, "PX", "900000", "FIELDS", "1", "far", "v"];
                    let beside = match number % 3 {
                        0 => Command::new(&end),
                        _ => Command::new(&far),
                    };
                    // Some are renewed only where they have a deadline already.
                    let begin = ["HSETEX", &hash, "PX", "5000", "FIELDS", "1", &field, "v"];
                    [Command::new(&begin), beside]
                };
                numbers.flat_map(field).collect()
            }
        }
    }

    /// A write that makes one live for some time: a third of the keys by `SET`, the others by a new deadline only; fields in
    /// each way there is, one of which names a field that keeps its own deadline.
    fn renewal(self, number: usize, lifetime_ms: u64) -> Command {
        let lifetime = lifetime_ms.to_string();
        match self {
            Renewed::Keys => match number % 3 {
                0 => Command::new(&["SET", &key(number), "v", "PX", &lifetime]),
                _ => Command::new(&["PEXPIRE", &key(number), &lifetime]),
            },
            Renewed::Fields => {
                let (hash, field) = field(number);
                match number % 4 {
                    0 => Command::new(&[
                        "HSETEX", &hash, "PX", &lifetime, "FIELDS", "1", &field, "v",
                    ]),
                    1 => Command::new(&["HPEXPIRE", &hash, &lifetime, "FIELDS", "1", &field]),
                    2 => Command::new(&["HGETEX", &hash, "PX", &lifetime, "FIELDS", "1", &field]),
                    _ => Command::new(&[
                        "HPEXPIRE", &hash, &lifetime, "GT", "FIELDS", "2", &field, "far",
                    ]),
                }
            }
        }
    }

    /// A write that makes one live on after the test.
    fn long_renewal(self, number: usize) -> Command {
        match self {
            Renewed::Keys => Command::new(&["PEXPIRE", &key(number), "900000"]),
            Renewed::Fields => {
                let (hash, field) = field(number);
                Command::new(&["HPEXPIRE", &hash, "900000", "FIELDS", "1", &field])
            }
        }
    }

    fn renew_all(self, client: &mut Client, lifetime_ms: impl Fn(usize) -> u64) -> Result<()> {
        let renewals = (0..key_count()).map(|number| self.renewal(number, lifetime_ms(number)));
        let answers = client.pipeline(&renewals.collect::<Vec<_>>())?;
        let error = answers.iter().find_map(Value::error);
        ensure!(error.is_none(), "{error:?}");
        match self {
            Renewed::Keys => Ok(()),
            Renewed::Fields => turn_hashes(client, lifetime_ms),
        }
    }

    /// How many keys there are in the end, at least.
    fn lasting_keys(self) -> usize {
        match self {
            Renewed::Keys => key_count() / 2,
            Renewed::Fields => key_count() / 6 + key_count() / 10,
        }
    }
}

/// Deadlines of fields that go where their hash goes.
fn turn_hashes(client: &mut Client, lifetime_ms: impl Fn(usize) -> u64) -> Result<()> {
    let name = |number| format!("{{turn:{number}}}");
    let turn = |number| {
        let name = name(number);
        let (other, copy) = (format!("{name}:other"), format!("{name}:copy"));
        let lifetime = lifetime_ms(number).to_string();
        [
            Command::new(&["HSETEX", &name, "PX", &lifetime, "FIELDS", "1", "f", "v"]),
            Command::new(&["COPY", &name, &copy, "REPLACE"]),
            Command::new(&["RENAME", &name, &other]),
            Command::new(&["RENAME", &other, &name]),
            Command::new(&["DUMP", &name]),
        ]
    };
    let answers = client.pipeline(&(0..TURNING).flat_map(turn).collect::<Vec<_>>())?;
    let restore = |(number, answers): (usize, &[Value])| {
        let payload = answers.last().and_then(Value::bytes);
        let payload = payload.with_context(|| format!("{answers:?}"))?;
        let restored = format!("restored:{number}");
        let words = [b"RESTORE", restored.as_bytes(), b"0", payload, b"REPLACE"];
        Ok(Command::new::<&[u8]>(&words))
    };
    let restores = answers.chunks(5).enumerate().map(restore);
    let answers = client.pipeline(&restores.collect::<Result<Vec<_>>>()?)?;
    ensure!(
        answers.iter().all(|answer| answer.error().is_none()),
        "{answers:?}"
    );
    Ok(())
}

/// Renews all of them each second until it is told to stop.
struct Renewer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Renewer {
    fn start(renewed: Renewed, source: &Endpoint) -> Result<Renewer> {
        let mut client = Client::connect(source)?;
        client.pipeline(&renewed.fresh())?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                // Never so short that one could end at the source before its next turn.
                renewed.renew_all(&mut client, |number| 600 + lifetime_ms(number))?;
                std::thread::sleep(Duration::from_millis(900).saturating_sub(begun.elapsed()));
            }
            // In the end one half lives on for long, and the other for seconds.
            let ends = (0..key_count()).map(|number| match number % 2 {
                0 => renewed.long_renewal(number),
                _ => renewed.renewal(number, lifetime_ms(number)),
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
fn must_end_equal(
    renewed: Renewed,
    sync: &mut Slotstream,
    source: &Endpoint,
    target: &Endpoint,
) -> Result<()> {
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
    ensure!(diff.keys >= renewed.lasting_keys(), "{diff}");
    Ok(())
}

fn survives_a_slow_copy(renewed: Renewed, version: &Version, target: &Endpoint) -> Result<()> {
    let source = Server::start(version, ServerOptions::default())?;
    let renewer = Renewer::start(renewed, &source.endpoint())?;
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
    must_end_equal(renewed, &mut sync, &source.endpoint(), target)?;
    let (exit, output) = sync.stop()?;
    ensure!(exit.code() == Some(0), "{exit}: {output}");
    Ok(())
}

fn survives_a_target_that_stands_still(renewed: Renewed, family: Family) -> Result<()> {
    let Some(version) = version_or_skip(family) else {
        return Ok(());
    };
    let source = Server::start(&version, ServerOptions::default())?;
    let target = Server::start(&version, ServerOptions::default())?;
    let renewer = Renewer::start(renewed, &source.endpoint())?;
    let mut sync = Slotstream::start(program(), &source.endpoint(), &target.endpoint(), &[])?;
    sync.wait_until_caught_up(TIMEOUT)?;
    std::thread::sleep(Duration::from_secs(2));
    target.freeze()?;
    std::thread::sleep(trouble());
    target.thaw()?;
    std::thread::sleep(Duration::from_secs(2));
    renewer.stop()?;
    must_end_equal(renewed, &mut sync, &source.endpoint(), &target.endpoint())
}

fn survives_a_slow_copy_into_a_server(renewed: Renewed, family: Family) -> Result<()> {
    let Some(version) = version_or_skip(family) else {
        return Ok(());
    };
    let target = Server::start(&version, ServerOptions::default())?;
    survives_a_slow_copy(renewed, &version, &target.endpoint())
}

fn survives_a_slow_copy_into_a_cluster(renewed: Renewed, family: Family) -> Result<()> {
    let Some(version) = version_or_skip(family) else {
        return Ok(());
    };
    let options = ClusterOptions {
        server: ServerOptions::default(),
        slots: None,
    };
    let target = Cluster::start(&version, 2, 0, options)?;
    survives_a_slow_copy(renewed, &version, &target.endpoint())
}

#[test]
fn keys_renewed_during_a_slow_copy_into_a_server_of_7_0_survive() -> Result<()> {
    survives_a_slow_copy_into_a_server(Renewed::Keys, Family::Redis70)
}

#[test]
fn keys_renewed_during_a_slow_copy_into_a_cluster_survive() -> Result<()> {
    survives_a_slow_copy_into_a_cluster(Renewed::Keys, Family::Valkey9)
}

#[test]
fn fields_renewed_during_a_slow_copy_into_a_server_of_8_0_survive() -> Result<()> {
    survives_a_slow_copy_into_a_server(Renewed::Fields, Family::Redis80)
}

#[test]
fn fields_renewed_during_a_slow_copy_into_a_cluster_survive() -> Result<()> {
    survives_a_slow_copy_into_a_cluster(Renewed::Fields, Family::Valkey9)
}

#[test]
fn keys_renewed_while_a_server_of_6_0_stands_still_survive() -> Result<()> {
    survives_a_target_that_stands_still(Renewed::Keys, Family::Redis60)
}

#[test]
fn keys_renewed_while_a_server_of_valkey_8_1_stands_still_survive() -> Result<()> {
    survives_a_target_that_stands_still(Renewed::Keys, Family::Valkey81)
}

#[test]
fn fields_renewed_while_a_server_of_8_0_stands_still_survive() -> Result<()> {
    survives_a_target_that_stands_still(Renewed::Fields, Family::Redis80)
}

#[test]
fn fields_renewed_while_a_server_of_valkey_9_stands_still_survive() -> Result<()> {
    survives_a_target_that_stands_still(Renewed::Fields, Family::Valkey9)
}

/// Copies once, and compares with nothing left to wait for.
fn must_copy_exactly(source: &Endpoint, target: &Endpoint, keys: usize) -> Result<()> {
    let mut sync = Slotstream::start(program(), source, target, &["--once"])?;
    let (exit, output) = sync.wait_for_exit(TIMEOUT)?;
    ensure!(exit.code() == Some(0), "{exit}: {output}");
    let diff = compare(source, target, &CompareOptions::default())?;
    ensure!(diff.is_equal() && diff.keys == keys, "{diff}\n{output}");
    Ok(())
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
    must_copy_exactly(&source.endpoint(), &target.endpoint(), count)
}

/// Nor does one of a field, in hashes of any size.
#[test]
fn no_lease_of_a_field_outlives_the_process() -> Result<()> {
    let Some(version) = version_or_skip(Family::Valkey9) else {
        return Ok(());
    };
    let source = Server::start(&version, ServerOptions::default())?;
    let options = ClusterOptions {
        server: ServerOptions::default(),
        slots: None,
    };
    let target = Cluster::start(&version, 2, 0, options)?;
    let mut client = Client::connect(&source.endpoint())?;
    let count = if is_full() { 600_000 } else { 20_000 };
    let fields = (0..count).map(|number| {
        let lifetime = if number % 2 == 0 { "200" } else { "3600" };
        let hash = if number % 4 < 2 {
            "large".to_owned()
        } else {
            key(number / 8)
        };
        let field = number.to_string();
        Command::new(&["HSETEX", &hash, "EX", lifetime, "FIELDS", "1", &field, "v"])
    });
    client.pipeline(&fields.collect::<Vec<_>>())?;
    must_copy_exactly(&source.endpoint(), &target.endpoint(), 1 + count / 8)
}

/// Where leases cannot be followed, a walk looks for them in every hash.
#[test]
fn fields_that_went_to_another_database_end_in_time() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis80) else {
        return Ok(());
    };
    let source = Server::start(&version, ServerOptions::default())?;
    let target = Server::start(&version, ServerOptions::default())?;
    let mut sync = Slotstream::start(program(), &source.endpoint(), &target.endpoint(), &[])?;
    sync.wait_until_caught_up(TIMEOUT)?;
    let mut connection = source.endpoint().connect(&source.address())?;
    // More fields than are looked at by one script.
    let count = 10_000;
    for number in 0..count {
        let (hash, field) = (format!("hash:{}", number % 2), number.to_string());
        let words = ["HSETEX", &hash, "EX", "20", "FIELDS", "1", &field, "v"];
        connection.queue(&Command::new(&words));
    }
    for hash in ["hash:0", "hash:1"] {
        connection.queue(&Command::new(&["MOVE", hash, "5"]));
    }
    connection.flush()?;
    for _ in 0..count + 2 {
        ensure!(connection.read()?.integer() == Some(1));
    }
    let mut there = target.endpoint().connect(&target.address())?;
    for connection in [&mut connection, &mut there] {
        connection.call(&["SELECT", "5"])?.ok()?;
    }
    for number in [0, 1, count - 2, count - 1] {
        let (hash, field) = (format!("hash:{}", number % 2), number.to_string());
        let question = ["HPEXPIRETIME", &hash, "FIELDS", "1", &field];
        let wanted = connection.call(&question)?;
        ensure!(wanted.array()[0].integer() > Some(0), "{wanted:?}");
        wait_until(Duration::from_secs(15), "the true deadline", || {
            Ok(there.call(&question)?.array() == wanted.array())
        })?;
    }
    sync.wait_until_settled(TIMEOUT)?;
    let options = CompareOptions::default();
    let diff = compare(&source.endpoint(), &target.endpoint(), &options)?;
    ensure!(diff.is_equal(), "{diff}\n{}", sync.output());
    Ok(())
}
