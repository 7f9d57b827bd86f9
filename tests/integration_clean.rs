//! `slotstream clean` on real targets: it removes the bookkeeping of the links that it was asked for, and nothing else.

use anyhow::{Result, ensure};
use lab::{
    Client, Cluster, ClusterOptions, Command, Family, Server, ServerOptions, Slotstream, Value,
    version_or_skip,
};
use slotstream::checkpoint::{LinkName, epoch_key, record_key, watermark_key, writer_name};
use slotstream::slot::{SLOT_COUNT, Slot, shortest_tag};
use std::path::Path;
use std::process::Output;
use std::time::Duration;

/// What a link may keep on a target altogether.
const BOOKKEEPING_BYTES: i64 = 2_000_000;
const TIMEOUT: Duration = Duration::from_secs(60);

const USAGE: i32 = 2;
const CONNECTION: i32 = 4;
const DATA: i32 = 5;

fn clean(arguments: &[&str]) -> Result<Output> {
    let program = Path::new(env!("CARGO_BIN_EXE_slotstream"));
    let mut command = std::process::Command::new("timeout");
    command.arg("60").arg(program).arg("clean").args(arguments);
    command.env_remove("SLOTSTREAM_TARGET_PASSWORD");
    Ok(command.output()?)
}

/// What it printed, when it succeeded.
fn cleaned(arguments: &[&str]) -> Result<String> {
    let output = clean(arguments)?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(0), "{}: {told}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Checks the exit code, and that one line holds all the words.
fn must_fail(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "{}: {told}",
        output.status
    );
    let named = |line: &str| words.iter().all(|word| line.contains(word));
    ensure!(told.lines().any(named), "no line names {words:?}: {told}");
    Ok(())
}

fn single(options: ServerOptions) -> Result<Option<Server>> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(None);
    };
    Server::start(&version, options).map(Some)
}

fn link(name: &str) -> LinkName {
    name.parse().expect("a name of a link")
}

/// Bookkeeping of two links, and keys that only look like it.
fn fill(client: &mut Client) -> Result<()> {
    let slots: [Slot; 4] = [0, 8191, 8192, 16383];
    for slot in slots {
        client.call(&[b"SET", &watermark_key(&link("a"), slot)[..], b"1:0:5"])?;
        client.call(&[b"SET", &watermark_key(&link("b"), slot)[..], b"1:0:5"])?;
    }
    for name in ["a", "b"] {
        client.call(&[b"SET", &epoch_key(&link(name), 0)[..], b"1"])?;
        client.call(&[b"HSET", &record_key(&link(name), 0)[..], b"1.0", b"text"])?;
    }
    for key in others() {
        client.call(&["SET", &key, "v"])?;
    }
    Ok(())
}

fn others() -> Vec<String> {
    let alike = [
        "slotstream:w:a",
        "{06S}slotstream:x:a",
        "{06S}slotstream:w:a b",
        "x{06S}slotstream:w:a",
    ];
    let plain = (0..3_000).map(|number| format!("key:{number}"));
    plain.chain(alike.map(str::to_owned)).collect()
}

fn keys(client: &mut Client) -> Result<i64> {
    let counts = client.call_each_master(&["DBSIZE"])?;
    Ok(counts.iter().filter_map(lab::Value::integer).sum())
}

fn must_hold_the_others(client: &mut Client, and: i64) -> Result<()> {
    let gets = others().into_iter().map(|key| Command::new(&["GET", &key]));
    let replies = client.pipeline(&gets.collect::<Vec<_>>())?;
    ensure!(
        replies.iter().all(|reply| reply.text() == "v"),
        "a key of others is gone"
    );
    let count = keys(client)?;
    ensure!(count == replies.len() as i64 + and, "{count} keys");
    Ok(())
}

fn removes_what_it_was_asked_for(family: Family) -> Result<()> {
    let Some(version) = version_or_skip(family) else {
        return Ok(());
    };
    let target = Cluster::start(&version, 2, 0, ClusterOptions::default())?;
    let mut client = target.client()?;
    fill(&mut client)?;
    let before = keys(&mut client)?;

    let told = cleaned(&[&target.uri(), "--dry-run"])?;
    ensure!(
        told.lines().count() == 2 && told.contains("link a: 6 keys with"),
        "{told}"
    );
    ensure!(keys(&mut client)? == before);

    let told = cleaned(&[&target.uri(), "--link", "a"])?;
    ensure!(
        told.starts_with("link a: 6 keys with ") && told.lines().count() == 1,
        "{told}"
    );
    must_hold_the_others(&mut client, 6)?;
    let told = cleaned(&[&target.uri(), "--link", "a"])?;
    ensure!(told.contains("no bookkeeping"), "{told}");

    let told = cleaned(&[&target.uri()])?;
    ensure!(told.starts_with("link b: 6 keys with "), "{told}");
    must_hold_the_others(&mut client, 0)?;
    let told = cleaned(&[&target.uri()])?;
    ensure!(told.contains("no bookkeeping"), "{told}");
    Ok(())
}

/// What all masters have in memory.
fn used_memory(client: &mut Client) -> Result<i64> {
    let replies = client.call_each_master(&["INFO", "memory"])?;
    let sizes = replies.iter().map(|reply| {
        let text = reply.text();
        let mut lines = text.lines();
        let size = lines.find_map(|line| line.strip_prefix("used_memory:"));
        Ok(size.unwrap_or_default().trim().parse::<i64>()?)
    });
    sizes.sum()
}

/// One command for each of these keys.
fn each(client: &mut Client, words: &[&str], keys: &[Vec<u8>]) -> Result<Vec<Value>> {
    let commands = keys.iter().map(|key| {
        let words = words.iter().map(|word| word.as_bytes());
        let arguments: Vec<&[u8]> = words.chain([&key[..]]).collect();
        Command::routed(key, &arguments)
    });
    client.pipeline(&commands.collect::<Vec<_>>())
}

/// The most that a link comes to: every slot has seen a command that must not be repeated, by lanes of several masters.
fn bookkeeping_of_all_slots_is_small(family: Family) -> Result<()> {
    let Some(version) = version_or_skip(family) else {
        return Ok(());
    };
    let source = Cluster::start(&version, 3, 0, ClusterOptions::default())?;
    let target = Cluster::start(&version, 3, 0, ClusterOptions::default())?;
    let slots = 0..SLOT_COUNT as Slot;
    let counters: Vec<Vec<u8>> = slots
        .clone()
        .map(|slot| format!("{{{}}}n", shortest_tag(slot)).into_bytes())
        .collect();
    let mut writer = source.client()?;
    each(&mut writer, &["INCR"], &counters)?;
    let program = Path::new(env!("CARGO_BIN_EXE_slotstream"));
    let mut sync = Slotstream::start(program, &source.endpoint(), &target.endpoint(), &[])?;
    sync.wait_until_caught_up(TIMEOUT)?;
    each(&mut writer, &["INCR"], &counters)?;
    sync.wait_until_applied(TIMEOUT)?;
    let (status, said) = sync.stop()?;
    ensure!(status.success(), "{said}");

    let mut client = target.client()?;
    let link = link("default");
    let names = [epoch_key, record_key, watermark_key];
    let keys: Vec<Vec<u8>> = slots
        .flat_map(|slot| names.map(|name| name(&link, slot)))
        .collect();
    let usage = each(&mut client, &["MEMORY", "USAGE"], &keys)?;
    let usage: Vec<i64> = usage.iter().filter_map(Value::integer).collect();
    let bytes: i64 = usage.iter().sum();
    ensure!(usage.len() >= SLOT_COUNT + 6, "{} keys", usage.len());
    ensure!(bytes <= BOOKKEEPING_BYTES, "{bytes} bytes by MEMORY USAGE");
    // Not all of which that knows of.
    let before = used_memory(&mut client)?;
    let removed = each(&mut client, &["DEL"], &keys)?;
    let removed: i64 = removed.iter().filter_map(Value::integer).sum();
    ensure!(removed as usize == usage.len(), "{removed} keys");
    let freed = before - used_memory(&mut client)?;
    println!("{version}: {bytes} bytes by MEMORY USAGE, {freed} by used_memory");
    ensure!(
        (SLOT_COUNT as i64 * 32..=BOOKKEEPING_BYTES).contains(&freed),
        "{freed} bytes were freed"
    );
    Ok(())
}

#[test]
fn bookkeeping_of_all_slots_is_small_on_redis_7_0() -> Result<()> {
    bookkeeping_of_all_slots_is_small(Family::Redis70)
}

#[test]
fn bookkeeping_of_all_slots_is_small_on_valkey_8_1() -> Result<()> {
    bookkeeping_of_all_slots_is_small(Family::Valkey81)
}

#[test]
fn redis_6_0_is_cleaned() -> Result<()> {
    removes_what_it_was_asked_for(Family::Redis60)
}

#[test]
fn redis_8_0_is_cleaned() -> Result<()> {
    removes_what_it_was_asked_for(Family::Redis80)
}

#[test]
fn valkey_9_is_cleaned() -> Result<()> {
    removes_what_it_was_asked_for(Family::Valkey9)
}

#[test]
fn a_single_server_is_cleaned_of_what_is_no_bookkeeping_of_its_kind_too() -> Result<()> {
    let Some(target) = single(ServerOptions::default())? else {
        return Ok(());
    };
    let mut client = Client::connect(&target.endpoint())?;
    fill(&mut client)?;
    // In the way of a link of that name, whoever wrote it.
    client.call(&[b"RPUSH", &epoch_key(&link("c"), 9)[..], b"1"])?;
    let told = cleaned(&[&target.uri()])?;
    ensure!(
        told.lines().count() == 3 && told.contains("link c: 1 key with"),
        "{told}"
    );
    must_hold_the_others(&mut client, 0)
}

#[test]
fn a_link_in_use_is_left_alone_unless_forced() -> Result<()> {
    let Some(target) = single(ServerOptions::default())? else {
        return Ok(());
    };
    let mut client = Client::connect(&target.endpoint())?;
    fill(&mut client)?;
    let mut writer = target.connect()?;
    writer.call(&["CLIENT", "SETNAME", &writer_name(&link("a"), 1, 0)])?;
    let uri = target.uri();
    for arguments in [
        vec![uri.as_str()],
        vec![&uri, "--link", "a"],
        vec![&uri, "--dry-run"],
    ] {
        must_fail(&clean(&arguments)?, DATA, &["link a is in use", "--force"])?;
    }
    must_hold_the_others(&mut client, 12)?;
    cleaned(&[&uri, "--link", "b"])?;
    cleaned(&[&uri, "--link", "a", "--force"])?;
    must_hold_the_others(&mut client, 0)
}

#[test]
fn what_a_user_can_get_wrong_is_named() -> Result<()> {
    must_fail(&clean(&[])?, USAGE, &["<URI>"])?;
    must_fail(&clean(&["127.0.0.1:1"])?, USAGE, &["URI", "redis://"])?;
    let output = clean(&["redis://127.0.0.1:1", "--link", "a:b"])?;
    must_fail(&output, USAGE, &["--link", "letters"])?;
    let nobody = format!("127.0.0.1:{}", lab::server::free_port()?);
    let output = clean(&[&format!("redis://{nobody}")])?;
    must_fail(&output, CONNECTION, &["nobody listens", &nobody])?;
    let Some(locked) = single(ServerOptions {
        password: Some("right".to_owned()),
        ..ServerOptions::default()
    })?
    else {
        return Ok(());
    };
    let open = format!("redis://{}", locked.address());
    must_fail(
        &clean(&[&open])?,
        CONNECTION,
        &["SLOTSTREAM_TARGET_PASSWORD"],
    )?;
    let file = std::env::temp_dir().join(format!("slotstream-clean-{}", std::process::id()));
    std::fs::write(&file, "right\n")?;
    let path = file.to_string_lossy();
    let by_file = cleaned(&[&open, "--password-file", &path]);
    let twice = clean(&[&locked.uri(), "--target-password-file", &path]);
    std::fs::remove_file(&file)?;
    ensure!(by_file?.contains("no bookkeeping"));
    must_fail(&twice?, USAGE, &["use one"])
}
