//! `slotstream clean` on real targets: it removes the bookkeeping of the links that it was asked for, and nothing else.

use anyhow::{Result, ensure};
use lab::{
    Client, Cluster, ClusterOptions, Command, Family, Server, ServerOptions, version_or_skip,
};
use slotstream::checkpoint::{LinkName, epoch_key, record_key, watermark_key, writer_name};
use slotstream::slot::Slot;
use std::path::Path;
use std::process::Output;

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
        client.call(&[b"SET", &watermark_key(&link("a"), slot)[..], b"1.0.5"])?;
        client.call(&[b"SET", &watermark_key(&link("b"), slot)[..], b"1.0.5"])?;
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
