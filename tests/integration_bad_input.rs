//! What a user can get wrong: each ends with the exit code of its class and a line that names the cause and
//! the fix, and writes nothing.

use anyhow::{Context, Result, ensure};
use lab::{Cluster, ClusterOptions, Server, ServerOptions, Version, wait_until};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

const USAGE: i32 = 2;
const ENVIRONMENT: i32 = 3;
const CONNECTION: i32 = 4;
const DATA: i32 = 5;

/// No case may hang: a minute is far more than any connection timeout.
const LONGEST_RUN_SECONDS: &str = "60";

/// The program under test.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slotstream"))
}

fn newest() -> Result<Version> {
    lab::versions()
        .pop()
        .context("no version of any server is available")
}

fn single(options: ServerOptions) -> Result<Server> {
    Server::start(&newest()?, options)
}

fn sync(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new("timeout");
    command.arg(LONGEST_RUN_SECONDS).arg(program()).arg("sync");
    Ok(command.args(arguments).output()?)
}

/// Checks the exit code, and that one line holds all the words.
fn must_fail(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let printed = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "expected exit code {code}, got {}: {printed}",
        output.status
    );
    ensure!(!printed.contains("panicked"), "{printed}");
    let named = printed.lines().any(|line| {
        let line = line.to_lowercase();
        words.iter().all(|word| line.contains(&word.to_lowercase()))
    });
    ensure!(named, "no line names {words:?}: {printed}");
    Ok(())
}

fn must_be_empty(server: &Server) -> Result<()> {
    let keys = server.connect()?.call(&["DBSIZE"])?;
    ensure!(keys.integer() == Some(0), "{keys:?} keys were written");
    Ok(())
}

#[test]
fn a_wrong_password_is_named_with_the_side_that_refused_it() -> Result<()> {
    let locked = single(ServerOptions {
        password: Some("right".to_owned()),
        ..ServerOptions::default()
    })?;
    let open = single(ServerOptions::default())?;
    let wrong = format!("redis://:wrong@{}", locked.address());
    let output = sync(&["--source", &wrong, "--target", &open.uri()])?;
    must_fail(&output, CONNECTION, &["password", &locked.address()])?;
    let output = sync(&["--source", &open.uri(), "--target", &wrong])?;
    must_fail(&output, CONNECTION, &["password", &locked.address()])?;
    must_be_empty(&open)?;
    must_be_empty(&locked)
}

#[test]
fn a_missing_password_is_named_with_the_ways_to_give_it() -> Result<()> {
    let locked = single(ServerOptions {
        password: Some("right".to_owned()),
        ..ServerOptions::default()
    })?;
    let open = single(ServerOptions::default())?;
    let without = format!("redis://{}", locked.address());
    let output = sync(&["--source", &without, "--target", &open.uri()])?;
    must_fail(
        &output,
        CONNECTION,
        &["password", "SLOTSTREAM_SOURCE_PASSWORD"],
    )?;
    must_be_empty(&open)
}

#[test]
fn a_missing_acl_rule_is_named() -> Result<()> {
    // May look around, but not replicate.
    let source = single(ServerOptions {
        users: vec!["reader on >secret ~* +@all -psync".to_owned()],
        ..ServerOptions::default()
    })?;
    let target = single(ServerOptions::default())?;
    let uri = format!("redis://reader:secret@{}", source.address());
    let output = sync(&["--source", &uri, "--target", &target.uri()])?;
    must_fail(&output, CONNECTION, &["+psync", &source.address()])?;
    must_be_empty(&target)
}

#[test]
fn a_right_that_bookkeeping_takes_is_named() -> Result<()> {
    let source = single(ServerOptions::default())?;
    for (rights, rule) in [
        ("~* &* +@all -client|kill", "+client|kill"),
        ("~* &* +@all -hset", "+hset"),
        // Keys of slot 0, and none that has more than the tag.
        ("~{06S} &* +@all", "~{*}slotstream:*"),
    ] {
        let target = single(ServerOptions {
            users: vec![format!("writer on >secret {rights}")],
            ..ServerOptions::default()
        })?;
        let uri = format!("redis://writer:secret@{}", target.address());
        let output = sync(&["--source", &source.uri(), "--target", &uri])?;
        must_fail(&output, CONNECTION, &[rule, &target.address()])?;
        must_be_empty(&target)?;
    }
    Ok(())
}

#[test]
fn nobody_listening_is_said_with_the_address() -> Result<()> {
    let server = single(ServerOptions::default())?;
    let nobody = format!("127.0.0.1:{}", lab::server::free_port()?);
    let uri = format!("redis://{nobody}");
    let output = sync(&["--source", &uri, "--target", &server.uri()])?;
    must_fail(&output, CONNECTION, &[&nobody])?;
    let output = sync(&["--source", &server.uri(), "--target", &uri])?;
    must_fail(&output, CONNECTION, &[&nobody])?;
    must_be_empty(&server)
}

#[test]
fn a_name_that_does_not_resolve_is_named() -> Result<()> {
    let server = single(ServerOptions::default())?;
    // RFC 6761 keeps "invalid" from ever resolving.
    let uri = "redis://no-such-host.invalid:6379";
    let output = sync(&["--source", uri, "--target", &server.uri()])?;
    must_fail(&output, CONNECTION, &["no-such-host.invalid", "resolve"])?;
    must_be_empty(&server)
}

#[test]
fn the_same_cluster_on_both_sides_is_refused_whatever_the_node() -> Result<()> {
    let cluster = Cluster::start(&newest()?, 2, 0, ClusterOptions::default())?;
    let (one, other) = (&cluster.nodes()[0], &cluster.nodes()[1]);
    let output = sync(&["--source", &one.uri(), "--target", &other.uri()])?;
    must_fail(&output, DATA, &["same"])?;
    must_be_empty(one)?;
    must_be_empty(other)
}

#[test]
fn the_same_server_on_both_sides_is_refused_whatever_the_name() -> Result<()> {
    let server = single(ServerOptions::default())?;
    let named = format!("redis://localhost:{}", server.port());
    let output = sync(&["--source", &server.uri(), "--target", &named])?;
    must_fail(&output, DATA, &["same"])?;
    must_be_empty(&server)
}

#[test]
fn a_target_that_is_a_replica_is_refused() -> Result<()> {
    let source = single(ServerOptions::default())?;
    let master = single(ServerOptions::default())?;
    let replica = single(ServerOptions {
        extra: vec![format!("replicaof 127.0.0.1 {}", master.port())],
        ..ServerOptions::default()
    })?;
    wait_until(Duration::from_secs(30), "the replica's link", || {
        Ok(replica.info("replication", "master_link_status")? == "up")
    })?;
    let output = sync(&["--source", &source.uri(), "--target", &replica.uri()])?;
    must_fail(&output, CONNECTION, &["replica", &replica.address()])?;
    must_be_empty(&master)
}

#[test]
fn a_target_with_data_is_refused_where_the_user_asked_for_that() -> Result<()> {
    let source = single(ServerOptions::default())?;
    let target = single(ServerOptions::default())?;
    source.connect()?.call(&["SET", "from", "source"])?;
    target.connect()?.call(&["SET", "already", "here"])?;
    let output = sync(&[
        "--source",
        &source.uri(),
        "--target",
        &target.uri(),
        "--on-existing",
        "refuse",
    ])?;
    must_fail(&output, DATA, &["--on-existing"])?;
    let keys = target.connect()?.call(&["DBSIZE"])?;
    ensure!(keys.integer() == Some(1), "{keys:?} keys");
    Ok(())
}

#[test]
fn a_malformed_uri_is_a_usage_error() -> Result<()> {
    let server = single(ServerOptions::default())?;
    for (uri, cause) in [
        ("http://127.0.0.1:6379", "redis://"),
        ("redis://", "host"),
        ("redis://127.0.0.1:notaport", "port"),
        ("redis://127.0.0.1:99999", "port"),
        ("", "redis://"),
    ] {
        let output = sync(&["--source", uri, "--target", &server.uri()])?;
        must_fail(&output, USAGE, &["--source", cause])
            .with_context(|| format!("source {uri:?}"))?;
    }
    must_be_empty(&server)
}

#[test]
fn a_missing_or_unknown_option_is_a_usage_error() -> Result<()> {
    let output = sync(&["--source", "redis://127.0.0.1:1"])?;
    must_fail(&output, USAGE, &["--target"])?;
    let output = sync(&["--sauce", "redis://127.0.0.1:1"])?;
    must_fail(&output, USAGE, &["--sauce"])
}

#[test]
fn a_core_that_the_machine_lacks_is_named() -> Result<()> {
    let source = single(ServerOptions::default())?;
    let target = single(ServerOptions::default())?;
    let (from, to) = (source.uri(), target.uri());
    let output = sync(&["--source", &from, "--target", &to, "--cores", "9999"])?;
    must_fail(&output, ENVIRONMENT, &["core", "9999"])?;
    must_be_empty(&target)
}

#[test]
fn a_status_address_that_is_taken_is_named() -> Result<()> {
    let source = single(ServerOptions::default())?;
    let target = single(ServerOptions::default())?;
    let (from, to, taken) = (source.uri(), target.uri(), source.address());
    let output = sync(&["--source", &from, "--target", &to, "--status-addr", &taken])?;
    must_fail(&output, ENVIRONMENT, &[&taken])?;
    must_be_empty(&target)
}

#[test]
fn a_password_file_that_cannot_be_read_is_named() -> Result<()> {
    let source = single(ServerOptions::default())?;
    let target = single(ServerOptions::default())?;
    let (from, to) = (source.uri(), target.uri());
    let file = "/nonexistent/password";
    let output = sync(&[
        "--source",
        &from,
        "--target",
        &to,
        "--source-password-file",
        file,
    ])?;
    must_fail(&output, ENVIRONMENT, &[file])?;
    must_be_empty(&target)
}

#[test]
fn no_locked_memory_is_needed() -> Result<()> {
    let source = single(ServerOptions::default())?;
    let target = single(ServerOptions::default())?;
    let (from, to) = (source.uri(), target.uri());
    let output = Command::new("prlimit")
        .args(["--memlock=0:0", "timeout", LONGEST_RUN_SECONDS])
        .arg(program())
        .args(["sync", "--once", "--source", &from, "--target", &to])
        .output()?;
    anyhow::ensure!(output.status.success(), "{output:?}");
    Ok(())
}
