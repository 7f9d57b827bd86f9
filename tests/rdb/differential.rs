//! Random datasets through real servers: a snapshot is written by hand, decoded, sent to a server as commands, and
//! what the server then saves must decode to the same.
//!
//! Each dataset goes as whole payloads where the server takes them, and element by element. A failure names its seed:
//! `SLOTSTREAM_TEST_SEED=17` begins there, `SLOTSTREAM_TEST_ROUNDS=500` tries that many.

use crate::collect::{Collected, collect};
use crate::corpus::sorted;
use crate::writer::{Bytes, Content, Dice, Entry, Stream};
use crate::{REDIS, VALKEY, by_elements, entry, write};
use lab::{Connection, Family, Server, ServerOptions};
use proptest::collection::vec;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use slotstream::rdb::{Lineage, Options, TargetFormat};
use slotstream::resp::{Value, parse_value};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

/// Later than any test runs: what has expired is removed by the server.
const FUTURE_MS: u64 = 4_000_000_000_000;

fn from_environment(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

fn format_of(family: Family) -> TargetFormat {
    match family {
        Family::Redis60 => TargetFormat::of_server(Lineage::Redis, 6, 0),
        Family::Redis70 => TargetFormat::of_server(Lineage::Redis, 7, 0),
        Family::Redis80 => TargetFormat::of_server(Lineage::Redis, 8, 0),
        Family::Valkey80 => TargetFormat::of_server(Lineage::Valkey, 8, 0),
        Family::Valkey81 => TargetFormat::of_server(Lineage::Valkey, 8, 1),
        Family::Valkey9 => TargetFormat::of_server(Lineage::Valkey, 9, 1),
    }
}

/// Keys with content that such a server can hold.
fn dataset(seed: u64, target: &TargetFormat) -> Vec<Entry> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    let tree = vec(entry(), 30..60).new_tree(&mut runner);
    let mut entries = tree.expect("entries are made").current();
    entries.sort_by(|one, other| one.key.cmp(&other.key));
    entries.dedup_by(|one, other| one.key == other.key);
    for entry in &mut entries {
        entry.expire_at_ms = entry.expire_at_ms.map(|at| FUTURE_MS + at);
        match &mut entry.content {
            Content::Hash(fields) => fields.values_mut().for_each(|(_, deadline)| {
                *deadline = deadline.filter(|_| target.knows_field_expiry());
                *deadline = deadline.map(|at| FUTURE_MS + at);
            }),
            Content::Stream(stream) => make_possible(stream),
            _ => {}
        }
    }
    entries
}

/// Servers refuse by command what could not have come about: properties behind the entries, and, from 7.0 on, pending
/// entries that are deleted.
fn make_possible(stream: &mut Stream) {
    stream.max_deleted_id = stream.max_deleted_id.min(stream.last_id);
    stream.entries_added = stream.entries.len() as u64 + 1 + stream.entries_added % 100;
    for group in stream.groups.values_mut() {
        for pending in group.consumers.values_mut() {
            pending.retain(|id, _| stream.entries.contains_key(id));
        }
    }
}

/// Sends commands and expects that none is refused.
fn send(server: &Server, collected: &Collected) {
    let mut stream = TcpStream::connect(server.address()).expect("the server listens");
    let mut writer = stream.try_clone().expect("a second handle");
    let commands = collected.commands.clone();
    let sending = std::thread::spawn(move || writer.write_all(&commands));
    let (mut buffer, mut at, mut count) = (Vec::new(), 0, 0);
    while count < collected.command_count {
        if let Some((reply, length)) = parse_value(&buffer[at..]) {
            assert!(!is_refused(&reply), "command {count}: {reply:?}");
            at += length;
            count += 1;
            continue;
        }
        let mut piece = [0; 1 << 14];
        let length = stream.read(&mut piece).expect("replies come");
        assert!(length > 0, "the server closed: {}", server.log());
        buffer.extend(&piece[..length]);
    }
    sending
        .join()
        .expect("it did not panic")
        .expect("all was sent");
}

fn is_refused(reply: &Value) -> bool {
    match reply {
        Value::Error(_) => true,
        Value::Array(items) => items.iter().any(is_refused),
        _ => false,
    }
}

/// The server's own snapshot of what it holds.
fn saved(connection: &mut Connection) -> Bytes {
    let mut setting = |name| {
        let reply = connection
            .call(&["CONFIG", "GET", name])
            .expect("an answer");
        reply.array()[1].text()
    };
    let path = PathBuf::from(setting("dir")).join(setting("dbfilename"));
    let reply = connection.call(&["SAVE"]).and_then(lab::Value::ok);
    reply.expect("the server saves");
    std::fs::read(path).expect("there is a snapshot")
}

fn by_key(entries: Vec<Entry>) -> BTreeMap<Bytes, Entry> {
    let keyed = entries.into_iter().map(|entry| (entry.key.clone(), entry));
    keyed.collect()
}

/// Counters of streams are kept only where both sides know them.
fn without_unknown_counters(content: Content, other: &Content) -> Content {
    match (sorted(content), other) {
        (Content::Stream(mut stream), Content::Stream(other)) => {
            if stream.entries_added == 0 || other.entries_added == 0 {
                (stream.entries_added, stream.max_deleted_id) = (0, (0, 0));
                for group in stream.groups.values_mut() {
                    group.entries_read = 0;
                }
            }
            Content::Stream(stream)
        }
        (content, _) => content,
    }
}

fn check_round(server: &Server, seed: u64, value_threshold_bytes: usize) {
    let target = format_of(server.version().family());
    let magic = match target.lineage {
        Lineage::Redis => REDIS,
        Lineage::Valkey => VALKEY,
    };
    let snapshot = write(magic, &dataset(seed, &target), seed);
    let written = collect(&snapshot, by_elements(), || snapshot.len()).expect("it is sound");
    assert!(written.entries.len() >= 20);
    let options = Options {
        value_threshold_bytes,
        ..Options::new(target)
    };
    let mut dice = Dice::new(seed);
    let commands = collect(&snapshot, options, || 1 + dice.below(5000)).expect("it is sound");
    let mut connection = server.connect().expect("the server answers");
    let flushed = connection.call(&["FLUSHALL"]).and_then(lab::Value::ok);
    flushed.expect("the server is emptied");
    send(server, &commands);
    let saved = saved(&mut connection);
    let got =
        collect(&saved, by_elements(), || saved.len()).expect("the server's snapshot is sound");
    let (written, got) = (by_key(written.entries), by_key(got.entries));
    assert!(written.keys().eq(got.keys()), "other keys");
    for (key, put) in &written {
        let came = &got[key];
        let key = key.escape_ascii();
        assert_eq!(put.expire_at_ms, came.expire_at_ms, "{key}");
        let expected = without_unknown_counters(put.content.clone(), &came.content);
        let found = without_unknown_counters(came.content.clone(), &put.content);
        assert_eq!(expected, found, "{key}");
    }
}

fn check(family: Family) {
    let Some(version) = lab::version_or_skip(family) else {
        return;
    };
    let server = Server::start(&version, ServerOptions::default()).expect("the server starts");
    let first = from_environment("SLOTSTREAM_TEST_SEED", 1);
    let rounds = from_environment("SLOTSTREAM_TEST_ROUNDS", 6);
    for seed in first..first + rounds {
        for (way, threshold) in [("as payloads", 1 << 20), ("by elements", 0)] {
            // Seen only when the test fails.
            println!("{family}, {way}: SLOTSTREAM_TEST_SEED={seed} SLOTSTREAM_TEST_ROUNDS=1");
            check_round(&server, seed, threshold);
        }
    }
}

#[test]
fn redis_6_0_saves_what_it_was_sent() {
    check(Family::Redis60);
}

#[test]
fn redis_7_0_saves_what_it_was_sent() {
    check(Family::Redis70);
}

#[test]
fn redis_8_0_saves_what_it_was_sent() {
    check(Family::Redis80);
}

#[test]
fn valkey_8_0_saves_what_it_was_sent() {
    check(Family::Valkey80);
}

#[test]
fn valkey_8_1_saves_what_it_was_sent() {
    check(Family::Valkey81);
}

#[test]
fn valkey_9_saves_what_it_was_sent() {
    check(Family::Valkey9);
}
