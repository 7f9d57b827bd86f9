//! `slotstream rdb` on snapshots of real servers: what it prints is what the server answers, what it writes is what the
//! snapshot holds, and what is broken is named.

mod content;
mod exact;

use anyhow::{Context, Result, ensure};
use lab::{
    Client, Cluster, ClusterOptions, CompareOptions, Endpoint, Family, LoadOptions, Server,
    ServerOptions, Version, compare, load, version_or_skip, wait_until,
};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const DATA: i32 = 5;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slotstream"))
}

/// Runs `slotstream rdb` with the snapshot on standard input.
fn rdb(snapshot: &[u8], arguments: &[&str]) -> Result<Output> {
    let mut child = Command::new(program())
        .args(["rdb", "-"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("it was asked for")?;
    let snapshot = snapshot.to_vec();
    // It may end before it has read everything.
    let feeder = std::thread::spawn(move || _ = input.write_all(&snapshot));
    let output = child.wait_with_output()?;
    feeder.join().expect("the feeder only writes");
    Ok(output)
}

/// The output of a run that succeeds.
fn rdb_ok(snapshot: &[u8], arguments: &[&str]) -> Result<Vec<u8>> {
    let output = rdb(snapshot, arguments)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(0),
        "{arguments:?}: {complaint}"
    );
    Ok(output.stdout)
}

/// Checks that a run ends with a fault of the data whose line holds the words.
fn must_complain(output: &Output, words: &[&str]) -> Result<String> {
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(DATA),
        "{}: {printed}",
        output.status
    );
    for word in words {
        ensure!(printed.contains(word), "no '{word}' in: {printed}");
    }
    ensure!(printed.trim_end().lines().count() == 1, "{printed}");
    Ok(printed)
}

fn start(version: &Version) -> Result<Server> {
    Server::start(version, ServerOptions::default())
}

/// A server with data of every type, two databases in use.
fn filled(version: &Version, keys: usize, vector_sets: bool) -> Result<Server> {
    let server = start(version)?;
    let mut client = Client::connect(&server.endpoint())?;
    load(
        &mut client,
        &LoadOptions {
            keys,
            vector_sets,
            ..LoadOptions::default()
        },
    )?;
    let mut connection = server.connect()?;
    connection.call(&["SELECT", "3"])?;
    connection.call(&["SET", "in:three", "3"])?;
    connection.call(&["RPUSH", "list:three", "a", "", "\u{0}"])?;
    Ok(server)
}

/// What `SAVE` writes.
fn snapshot_of(server: &Server) -> Result<Vec<u8>> {
    let mut connection = server.connect()?;
    connection.call(&["SAVE"])?;
    let mut setting = |name: &str| -> Result<String> {
        let reply = connection.call(&["CONFIG", "GET", name])?;
        let value = reply.array().get(1).context("CONFIG GET knows it")?;
        Ok(value.text())
    };
    let path = Path::new(&setting("dir")?).join(setting("dbfilename")?);
    Ok(std::fs::read(path)?)
}

fn must_be_equal(first: &Endpoint, second: &Endpoint) -> Result<()> {
    let options = CompareOptions {
        // 6.0 tells only what is left of a key's time, measured when it is asked.
        relative_ttl_tolerance: Duration::from_secs(2),
        ..CompareOptions::default()
    };
    let diff = compare(first, second, &options)?;
    ensure!(diff.is_equal(), "{diff}");
    ensure!(diff.keys > 500, "{diff}");
    Ok(())
}

/// Compares what both servers, of whatever version, hold; their own snapshots tell.
fn must_hold_the_same(snapshot: &[u8], servers: &[&Server]) -> Result<()> {
    let mut copies = Vec::new();
    for server in servers {
        copies.push(snapshot_of(server)?);
    }
    let copies: Vec<&[u8]> = copies.iter().map(Vec::as_slice).collect();
    content::must_be_equal(snapshot, &copies)
}

/// Sends commands as `redis-cli --pipe` does, and checks every answer.
fn pipe_into(server: &Server, commands: &[u8]) -> Result<()> {
    let mut stream = std::net::TcpStream::connect(server.address())?;
    let mut reader = stream.try_clone()?;
    let answers = std::thread::spawn(move || {
        let mut answers = Vec::new();
        reader.read_to_end(&mut answers).map(|_| answers)
    });
    stream.write_all(commands)?;
    stream.write_all(b"*1\r\n$4\r\nQUIT\r\n")?;
    let answers = answers.join().expect("the reader only reads")?;
    let answers = String::from_utf8_lossy(&answers);
    let errors: Vec<&str> = answers
        .lines()
        .filter(|line| line.starts_with('-'))
        .collect();
    // Dashes also begin lines of strings, but nothing here answers with one.
    ensure!(errors.is_empty(), "{:?}", &errors[..errors.len().min(5)]);
    Ok(())
}

fn commands_rebuild(from: Family, to: Family, arguments: &[&str]) -> Result<()> {
    let (Some(from), Some(to)) = (version_or_skip(from), version_or_skip(to)) else {
        return Ok(());
    };
    let source = filled(&from, 2_000, false)?;
    let target = start(&to)?;
    let snapshot = snapshot_of(&source)?;
    let commands = rdb_ok(&snapshot, arguments)?;
    pipe_into(&target, &commands)?;
    if source.version().family() == target.version().family() {
        must_be_equal(&source.endpoint(), &target.endpoint())?;
    }
    must_hold_the_same(&snapshot, &[&target])?;
    let mut connection = target.connect()?;
    connection.call(&["SELECT", "3"])?;
    let list = connection.call(&["LRANGE", "list:three", "0", "-1"])?;
    ensure!(list.array().len() == 3, "{list:?}");
    Ok(())
}

#[test]
fn commands_rebuild_it_on_the_same_server() -> Result<()> {
    commands_rebuild(Family::Redis80, Family::Redis80, &["--commands"])?;
    commands_rebuild(Family::Valkey9, Family::Valkey9, &["--commands"])
}

#[test]
fn commands_rebuild_it_on_a_newer_server_of_either_family() -> Result<()> {
    commands_rebuild(Family::Redis60, Family::Redis60, &["--commands"])?;
    commands_rebuild(Family::Redis60, Family::Valkey81, &["--commands"])
}

#[test]
fn payloads_rebuild_it_too() -> Result<()> {
    let arguments = ["--commands", "--restore"];
    commands_rebuild(Family::Redis70, Family::Redis80, &arguments)
}

/// A cluster as target, without the second database, which a cluster has no room for.
fn imports_into_cluster(from: Family, to: Family) -> Result<()> {
    let (Some(from), Some(to)) = (version_or_skip(from), version_or_skip(to)) else {
        return Ok(());
    };
    let source = filled(&from, 2_000, false)?;
    let cluster = Cluster::start(&to, 3, 0, ClusterOptions::default())?;
    let snapshot = snapshot_of(&source)?;
    let uri = cluster.uri();
    // All types; with a filter functions stay out, which 6.0 does not know.
    let into = [
        "--import",
        &uri,
        "--type",
        "string,list,set,zset,hash,stream",
    ];
    let refused = rdb(&snapshot, &into)?;
    must_complain(&refused, &["database 3", "--db-map"])?;
    // Twice: keys of the same name are replaced.
    for _ in 0..2 {
        let mapped = [&into[..], &["--db-map", "3:0"]].concat();
        let printed = String::from_utf8(rdb_ok(&snapshot, &mapped)?)?;
        ensure!(
            printed.contains("keys of the same name were replaced"),
            "{printed}"
        );
        let masters: Vec<&Server> = cluster.masters().iter().collect();
        must_hold_the_same(&snapshot, &masters)?;
    }
    let cluster = Cluster::start(&to, 3, 0, ClusterOptions::default())?;
    let arguments = [
        "--keys",
        "*three",
        "--import",
        &cluster.uri(),
        "--db-map",
        "3:drop",
    ];
    let printed = String::from_utf8(rdb_ok(&snapshot, &arguments)?)?;
    ensure!(printed.contains("2 keys left out by --db-map"), "{printed}");
    Ok(())
}

#[test]
fn an_import_fills_a_cluster() -> Result<()> {
    imports_into_cluster(Family::Redis70, Family::Valkey81)
}

#[test]
fn an_import_takes_values_apart_for_an_older_cluster() -> Result<()> {
    imports_into_cluster(Family::Valkey80, Family::Redis60)
}

#[test]
fn an_import_fills_all_databases_of_a_single_server() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis80) else {
        return Ok(());
    };
    let source = filled(&version, 2_000, true)?;
    let target = start(&version)?;
    rdb_ok(&snapshot_of(&source)?, &["--import", &target.uri()])?;
    must_be_equal(&source.endpoint(), &target.endpoint())?;
    let mut connection = target.connect()?;
    connection.call(&["SELECT", "3"])?;
    ensure!(connection.call(&["DBSIZE"])?.integer() == Some(2));
    Ok(())
}

/// Two masters, and one slot: with the ids of both masters.
struct Moving {
    cluster: Cluster,
    slot: String,
    from: usize,
    ids: [String; 2],
}

impl Moving {
    fn start(version: &Version, key: &str) -> Result<Moving> {
        let cluster = Cluster::start(version, 2, 0, ClusterOptions::default())?;
        let slot = lab::client::slot_of(key.as_bytes());
        let owner = cluster.client()?.owner_of_slot(slot).to_owned();
        let mut ids = Vec::new();
        for node in cluster.masters() {
            ids.push(node.connect()?.call(&["CLUSTER", "MYID"])?.text());
        }
        let from = usize::from(cluster.masters()[0].address() != owner);
        Ok(Moving {
            slot: slot.to_string(),
            from,
            ids: ids.try_into().ok().context("two masters")?,
            cluster,
        })
    }

    fn set_slot(&self, node: usize, state: &str, id: usize) -> Result<()> {
        let mut connection = self.cluster.masters()[node].connect()?;
        let command = ["CLUSTER", "SETSLOT", &self.slot, state, &self.ids[id]];
        connection.call(&command)?.ok()?;
        Ok(())
    }

    /// The slot goes over, keys or not.
    fn finish(&self) -> Result<()> {
        let to = 1 - self.from;
        self.set_slot(to, "NODE", to)?;
        self.set_slot(self.from, "NODE", to)
    }
}

/// A snapshot of values of every kind, all in one slot, the large ones written in several parts.
fn one_slot(version: &Version) -> Result<(Server, Vec<u8>)> {
    let server = start(version)?;
    let mut connection = server.connect()?;
    for index in 0..300 {
        connection.call(&["SET", &format!("{{one}}:{index:03}"), "value"])?;
    }
    let large = "x".repeat(3_000);
    for index in 0..400 {
        let number = index.to_string();
        connection.call(&["RPUSH", "{one}:list", &number, &large])?;
        connection.call(&["HSET", "{one}:hash", &number, &large])?;
        connection.call(&["XADD", "{one}:stream", "*", &number, &large])?;
    }
    connection.call(&["XGROUP", "CREATE", "{one}:stream", "group", "0"])?;
    for index in 0..300 {
        connection.call(&["SET", &format!("{{two}}:{index:03}"), "value"])?;
    }
    let snapshot = snapshot_of(&server)?;
    Ok((server, snapshot))
}

#[test]
fn an_import_follows_a_slot_that_is_under_way() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let (source, snapshot) = one_slot(&version)?;
    let moving = Moving::start(&version, "{one}")?;
    // The slot is empty and under way: every new key of it is redirected with ASK.
    moving.set_slot(1 - moving.from, "IMPORTING", moving.from)?;
    moving.set_slot(moving.from, "MIGRATING", 1 - moving.from)?;
    let uri = moving.cluster.uri();
    let printed = String::from_utf8(rdb_ok(&snapshot, &["--import", &uri])?)?;
    ensure!(printed.contains("writes repeated"), "{printed}");
    moving.finish()?;
    must_be_equal(&source.endpoint(), &moving.cluster.endpoint())
}

/// Imports, and does something in the middle of it: when so many bytes were given to it, which it may have read and written
/// or not.
fn import_around(
    snapshot: &[u8],
    uri: &str,
    before: usize,
    middle: impl FnOnce() -> Result<()>,
) -> Result<String> {
    let mut child = Command::new(program())
        .args(["rdb", "-", "--import", uri])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("it was asked for")?;
    input.write_all(&snapshot[..before])?;
    input.flush()?;
    std::thread::sleep(Duration::from_millis(500));
    middle()?;
    // If it has ended, its own words tell why.
    let fed = input.write_all(&snapshot[before..]);
    drop(input);
    let output = child.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(0), "{complaint}");
    fed?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn an_import_follows_a_slot_that_has_moved() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let (source, snapshot) = one_slot(&version)?;
    let moving = Moving::start(&version, "{one}")?;
    let uri = moving.cluster.uri();
    // With the first bytes it reads the topology at the latest, and then the slot moves.
    let printed = import_around(&snapshot, &uri, 20, || moving.finish())?;
    ensure!(printed.contains("writes repeated"), "{printed}");
    must_be_equal(&source.endpoint(), &moving.cluster.endpoint())
}

/// Replicas of both masters take over one after the other while an import is under way.
fn import_survives_failovers(family: Family) -> Result<()> {
    let Some(version) = version_or_skip(family) else {
        return Ok(());
    };
    let source = start(&version)?;
    let keys = 20_000;
    load(
        &mut Client::connect(&source.endpoint())?,
        &LoadOptions {
            keys,
            ..LoadOptions::default()
        },
    )?;
    let snapshot = snapshot_of(&source)?;
    let cluster = Cluster::start(&version, 3, 1, ClusterOptions::default())?;
    let replicas = &cluster.nodes()[cluster.masters().len()..];
    let fail_over = || -> Result<()> {
        for replica in &replicas[..2] {
            let mut node = replica.connect()?;
            // It is refused while the replica is not in step, and given up when the vote takes too long.
            wait_until(Duration::from_secs(60), "the replica to take over", || {
                if replica.info("replication", "role")? == "master" {
                    return Ok(true);
                }
                node.call(&["CLUSTER", "FAILOVER"])?;
                std::thread::sleep(Duration::from_millis(500));
                Ok(false)
            })?;
        }
        Ok(())
    };
    let middle = snapshot.len() / 2;
    let printed = import_around(&snapshot, &cluster.uri(), middle, fail_over)?;
    ensure!(printed.contains("writes repeated"), "{printed}");
    must_be_equal(&source.endpoint(), &replicas[0].endpoint())
}

#[test]
fn an_import_into_redis_7_0_goes_on_through_failovers() -> Result<()> {
    import_survives_failovers(Family::Redis70)
}

#[test]
fn an_import_into_valkey_9_goes_on_through_failovers() -> Result<()> {
    import_survives_failovers(Family::Valkey9)
}

#[test]
fn an_import_names_the_value_that_a_target_cannot_take() -> Result<()> {
    let (Some(from), Some(to)) = (
        version_or_skip(Family::Redis80),
        version_or_skip(Family::Redis70),
    ) else {
        return Ok(());
    };
    let source = start(&from)?;
    let mut connection = source.connect()?;
    connection.call(&["HSET", "short", "a", "b"])?;
    connection.call(&["HPEXPIRE", "short", "1000000", "FIELDS", "1", "a"])?;
    let target = start(&to)?;
    let output = rdb(&snapshot_of(&source)?, &["--import", &target.uri()])?;
    must_complain(
        &output,
        &["'short'", "fields that expire", "--on-unsupported drop"],
    )?;
    Ok(())
}

#[test]
fn an_import_leaves_out_what_a_target_cannot_take_if_told_so() -> Result<()> {
    let (Some(from), Some(to)) = (
        version_or_skip(Family::Redis80),
        version_or_skip(Family::Redis60),
    ) else {
        return Ok(());
    };
    let source = start(&from)?;
    let mut connection = source.connect()?;
    let large = "x".repeat(3_000);
    for index in 0..400 {
        // Several parts.
        connection.call(&["HSET", "short", &index.to_string(), &large])?;
    }
    connection.call(&["HPEXPIRE", "short", "10000000", "FIELDS", "2", "7", "399"])?;
    connection.call(&["VADD", "vectors", "VALUES", "2", "1", "0", "one"])?;
    connection.call(&["SET", "plain", "value"])?;
    let library = "#!lua name=lib\nredis.register_function('f', function() return 1 end)";
    connection.call(&["FUNCTION", "LOAD", library])?;
    let target = start(&to)?;
    let arguments = ["--import", &target.uri(), "--on-unsupported", "drop"];
    let printed = String::from_utf8(rdb_ok(&snapshot_of(&source)?, &arguments)?)?;
    for what in [
        "1 left out by --on-unsupported drop, since the target knows no expiry of hash fields; the first: key 'short'",
        "1 left out by --on-unsupported drop, since the target knows no functions",
        "1 left out by --on-unsupported drop, since the target knows no vector sets; the first: key 'vectors'",
    ] {
        ensure!(printed.contains(what), "no '{what}' in: {printed}");
    }
    let mut copy = target.connect()?;
    ensure!(copy.call(&["DBSIZE"])?.integer() == Some(2), "{printed}");
    ensure!(copy.call(&["GET", "plain"])?.text() == "value", "{printed}");
    let fields = |connection: &mut lab::Connection| -> Result<Vec<String>> {
        let reply = connection.call(&["HGETALL", "short"])?;
        let mut texts: Vec<_> = reply.array().iter().map(lab::Value::text).collect();
        texts.sort();
        Ok(texts)
    };
    ensure!(fields(&mut copy)? == fields(&mut connection)?);
    Ok(())
}

#[test]
fn key_patterns_match_what_keys_matches() -> Result<()> {
    let text = include_str!("../corpus/key-patterns.txt");
    let cases = text.lines().filter(|line| !line.starts_with('#'));
    let cases: Vec<Vec<&str>> = cases.map(|line| line.split('\t').collect()).collect();
    for family in [Family::Redis70, Family::Valkey9] {
        let Some(version) = version_or_skip(family) else {
            continue;
        };
        let server = start(&version)?;
        let mut connection = server.connect()?;
        for case in &cases {
            let [pattern, key, matches] = case[..] else {
                anyhow::bail!("{case:?} is not: pattern, key, yes or no");
            };
            connection.call(&["FLUSHALL"])?;
            connection.call(&["SET", key, ""])?;
            let found = connection.call(&["KEYS", pattern])?.array().len();
            let expected = usize::from(matches == "yes");
            ensure!(found == expected, "{version}: {pattern} on {key}: {found}");
        }
    }
    Ok(())
}

#[test]
fn a_snapshot_that_is_cut_short_is_read_as_far_as_it_goes() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let snapshot = snapshot_of(&filled(&version, 300, false)?)?;
    let whole = rdb_ok(&snapshot, &["--json"])?;
    let whole: Vec<&[u8]> = whole.split(|byte| *byte == b'\n').collect();
    for cut in [
        0,
        5,
        9,
        100,
        snapshot.len() / 3,
        snapshot.len() / 2,
        snapshot.len() - 3,
    ] {
        let output = rdb(&snapshot[..cut], &["--json"])?;
        let place = if cut == 0 {
            "it is empty".to_owned()
        } else {
            format!("it ends at byte {cut},")
        };
        must_complain(&output, &[&place])?;
        let lines: Vec<&[u8]> = output.stdout.split(|byte| *byte == b'\n').collect();
        for (index, line) in lines
            .iter()
            .enumerate()
            .filter(|(_, line)| !line.is_empty())
        {
            serde_json::from_slice::<serde_json::Value>(line)?;
            ensure!(
                whole[index] == *line || line.ends_with(b",\"truncated\":true}"),
                "line {index} differs: {}",
                String::from_utf8_lossy(line)
            );
        }
        let summary = rdb(&snapshot[..cut], &[])?;
        must_complain(&summary, &[&place])?;
        ensure!(
            String::from_utf8_lossy(&summary.stdout).contains("cut short"),
            "the summary does not say it"
        );
    }
    let output = rdb(&snapshot[..snapshot.len() / 2], &["--check"])?;
    must_complain(
        &output,
        &["keys were read whole, the last one '", "which ends at byte"],
    )?;
    Ok(())
}

#[test]
fn damage_is_found_and_located() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let snapshot = snapshot_of(&filled(&version, 300, false)?)?;
    let sound = String::from_utf8(rdb_ok(&snapshot, &["--check"])?)?;
    ensure!(sound.contains("complete, checksum right"), "{sound}");
    for at in [3, 12, 1000, snapshot.len() / 2, snapshot.len() - 2] {
        let mut damaged = snapshot.clone();
        damaged[at] ^= 0x55;
        let output = rdb(&damaged, &["--check"])?;
        must_complain(&output, &["byte "])?;
    }
    let output = rdb(b"no snapshot at all", &["--json"])?;
    must_complain(&output, &["byte 0", "not a snapshot"])?;
    Ok(())
}

#[test]
fn what_follows_a_snapshot_is_said() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let mut snapshot = snapshot_of(&filled(&version, 50, false)?)?;
    let bytes = snapshot.len();
    snapshot.extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
    let output = rdb(&snapshot, &["--check"])?;
    ensure!(output.status.success());
    let note = String::from_utf8(output.stderr)?;
    ensure!(note.contains(&format!("ends at byte {bytes},")), "{note}");
    Ok(())
}

#[test]
fn filters_narrow_every_mode() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let source = filled(&version, 500, false)?;
    let snapshot = snapshot_of(&source)?;
    let json = String::from_utf8(rdb_ok(&snapshot, &["--json", "--keys", "in:t?r[e]e"])?)?;
    let lines: Vec<&str> = json.lines().collect();
    ensure!(lines.len() == 2, "{json}");
    let expected = "{\"db\":3,\"key\":\"in:three\",\"type\":\"string\",\"encoding\":\"string\",\"value\":\"3\"}";
    ensure!(lines[1] == expected, "{json}");
    let json = String::from_utf8(rdb_ok(
        &snapshot,
        &["--json", "--db", "3", "--type", "list"],
    )?)?;
    ensure!(
        json.contains("\"value\":[\"a\",\"\",\"\\u0000\"]"),
        "{json}"
    );
    let commands = rdb_ok(&snapshot, &["--commands", "--keys", "in:three"])?;
    let expected =
        "*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n*3\r\n$3\r\nSET\r\n$8\r\nin:three\r\n$1\r\n3\r\n";
    ensure!(
        commands == expected.as_bytes(),
        "{}",
        String::from_utf8_lossy(&commands)
    );
    let summary = String::from_utf8(rdb_ok(&snapshot, &["--type", "hash", "--top", "2"])?)?;
    ensure!(summary.contains(" of 509 keys"), "{summary}");
    ensure!(!summary.contains("zset"), "{summary}");
    let target = start(&version)?;
    rdb_ok(&snapshot, &["--keys", "*three", "--import", &target.uri()])?;
    ensure!(target.connect()?.call(&["DBSIZE"])?.integer() == Some(0));
    let keyspace = target.connect()?.call(&["INFO", "keyspace"])?.text();
    ensure!(keyspace.contains("db3:keys=2,"), "{keyspace}");
    Ok(())
}

#[test]
fn a_summary_counts_everything_once() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let source = start(&version)?;
    let mut connection = source.connect()?;
    for index in 0..100 {
        connection.call(&["SET", &format!("user:{index}"), "value"])?;
    }
    connection.call(&["SET", "short", "x", "EX", "600"])?;
    let big = "y".repeat(700_000);
    connection.call(&["RPUSH", "queue:big", &big, &big])?;
    let snapshot = snapshot_of(&source)?;
    let summary = String::from_utf8(rdb_ok(&snapshot, &["--summary"])?)?;
    let has_row = |cells: &[&str]| {
        let rows = summary.lines().map(|line| line.split_whitespace());
        rows.map(Iterator::collect::<Vec<_>>)
            .any(|row| row.starts_with(cells))
    };
    ensure!(summary.contains("102 keys"), "{summary}");
    ensure!(has_row(&["0", "102", "1"]), "{summary}");
    ensure!(has_row(&["string", "101"]), "{summary}");
    ensure!(has_row(&["list", "1"]), "{summary}");
    ensure!(has_row(&["up", "to", "an", "hour", "1"]), "{summary}");
    ensure!(has_row(&["for", "ever", "101"]), "{summary}");
    ensure!(has_row(&["user:", "100"]), "{summary}");
    ensure!(has_row(&["(none)", "1"]), "{summary}");
    let largest = summary.lines().find(|line| line.starts_with("queue:big "));
    let largest = largest.with_context(|| summary.clone())?;
    let cells: Vec<&str> = largest.split_whitespace().collect();
    ensure!(cells[1..3] == ["0", "list"] && cells[4] == "2", "{largest}");
    Ok(())
}

#[test]
fn nobody_listening_to_the_output_is_no_fault() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let snapshot = snapshot_of(&filled(&version, 500, false)?)?;
    let directory = std::env::temp_dir().join(format!("slotstream-rdb-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("dump.rdb");
    std::fs::write(&file, snapshot)?;
    let mut child = Command::new(program())
        .arg("rdb")
        .arg(&file)
        .arg("--json")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut first = [0; 10];
    child
        .stdout
        .take()
        .context("it was asked for")?
        .read_exact(&mut first)?;
    let output = child.wait_with_output()?;
    std::fs::remove_dir_all(&directory)?;
    ensure!(first == *b"{\"snapshot");
    ensure!(
        output.status.code() == Some(0) && output.stderr.is_empty(),
        "{output:?}"
    );
    Ok(())
}

#[test]
fn what_cannot_be_opened_is_named() -> Result<()> {
    for (arguments, code, words) in [
        (&["/nonexistent/dump.rdb"][..], 3, "/nonexistent/dump.rdb"),
        (&["/tmp"][..], 3, "cannot read /tmp"),
        (&["-", "--json", "--check"][..], 2, "cannot be used with"),
        (&["-", "--restore"][..], 2, "--commands"),
        (&["-", "--import", "http://x"][..], 2, "--import: the URI"),
        (
            &["-", "--import", "redis://127.0.0.1:1"][..],
            4,
            "127.0.0.1:1",
        ),
        (&[][..], 2, "<FILE>"),
    ] {
        let output = Command::new(program())
            .arg("rdb")
            .args(arguments)
            .stdin(Stdio::null())
            .output()?;
        let printed = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(code),
            "{arguments:?}: {printed}"
        );
        ensure!(printed.contains(words), "{arguments:?}: {printed}");
    }
    Ok(())
}
