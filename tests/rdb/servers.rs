//! What parts write, on real servers of every version that is available: read back by DUMP, it is what was in the snapshot.

use crate::collect::collect;
use crate::writer::{Bytes, Content, Entry, Stream, Writer};
use crate::{by_elements, checksum};
use anyhow::{Context, Result, ensure};
use lab::{Command, Connection, Family, Server, ServerOptions, Value, version_or_skip};
use slotstream::rdb::{Decoder, Item, Lineage, Options, TargetFormat};
use std::collections::BTreeMap;

const REDIS: &[u8; 9] = b"REDIS0012";

fn format_of(family: Family) -> TargetFormat {
    let (lineage, major, minor) = match family {
        Family::Redis60 => (Lineage::Redis, 6, 0),
        Family::Redis70 => (Lineage::Redis, 7, 0),
        Family::Redis80 => (Lineage::Redis, 8, 0),
        Family::Valkey80 => (Lineage::Valkey, 8, 0),
        Family::Valkey81 => (Lineage::Valkey, 8, 1),
        Family::Valkey9 => (Lineage::Valkey, 9, 1),
    };
    TargetFormat::of_server(lineage, major, minor)
}

/// Text of `bytes` bytes that differs from place to place.
fn text(seed: u8, bytes: usize) -> Bytes {
    (0..bytes)
        .map(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed)
        .collect()
}

/// Values with strings that are long and others that are not, in every place where one may be.
fn contents(target: &TargetFormat) -> Vec<Content> {
    let (short, long) = (|seed| text(seed, 20), |seed| text(seed, 200_000));
    let deadline = target.knows_field_expiry().then_some(4_000_000_000_000);
    let entries = BTreeMap::from([
        ((1, 1), vec![(short(1), short(2))]),
        (
            (1, 2),
            vec![(short(1), long(3)), (long(4), short(5)), (long(6), long(7))],
        ),
        ((2, 0), vec![(short(1), long(8))]),
    ]);
    vec![
        Content::String(long(9)),
        Content::List(vec![
            short(1),
            long(2),
            long(2),
            short(3),
            short(4),
            long(5),
        ]),
        Content::List(vec![long(1)]),
        Content::Set(vec![short(1), long(2), short(3)]),
        Content::SortedSet(BTreeMap::from([
            (short(1), 1.5),
            (long(2), -2e300),
            (long(3), 7.0),
        ])),
        Content::Hash(BTreeMap::from([
            (short(1), (long(2), None)),
            (long(3), (short(4), deadline)),
            (long(5), (long(6), None)),
            (short(7), (long(8), deadline)),
            (short(9), (short(10), None)),
        ])),
        Content::Stream(Stream {
            last_id: (2, 0),
            entries_added: 3,
            entries,
            ..Stream::default()
        }),
    ]
}

/// The commands of each part.
fn parts(snapshot: &[u8], options: Options) -> Result<Vec<Vec<Command>>> {
    let mut decoder = Decoder::new(options);
    let mut reader = decoder.read(snapshot);
    let mut parts = Vec::new();
    loop {
        match reader.next()? {
            Item::End { .. } => return Ok(parts),
            Item::Part(part) => {
                let mut bytes = Vec::new();
                let count = part.write_commands(&mut bytes, &options.target)?;
                let mut commands = Vec::new();
                let mut rest = &bytes[..];
                while let Some(frame) = slotstream::resp::scan(rest)? {
                    let arguments: Vec<_> = frame.args().collect();
                    commands.push(Command::new(&arguments));
                    rest = &rest[frame.bytes().len()..];
                }
                ensure!(commands.len() == count && rest.is_empty());
                parts.push(commands);
            }
            Item::NeedMore => anyhow::bail!("the snapshot is whole"),
            _ => {}
        }
    }
}

fn send(connection: &mut Connection, parts: &[Vec<Command>], is_again: bool) -> Result<()> {
    for reply in connection.pipeline(&parts.concat())? {
        if let Value::Error(error) = reply {
            let is_known = error.contains("equal or smaller");
            ensure!(is_again && is_known, "{error}");
        }
    }
    Ok(())
}

/// What the server holds under `k`.
fn read_back(connection: &mut Connection) -> Result<Content> {
    let dumped = connection.call(&["DUMP", "k"])?;
    let dumped = dumped.bytes().context("the key is there")?;
    let (body, footer) = dumped.split_at(dumped.len() - 10);
    let magic = match footer[0] {
        80.. => format!("VALKEY{:03}", footer[0]),
        version => format!("REDIS{version:04}"),
    };
    let snapshot = [
        magic.as_bytes(),
        &body[..1],
        &[1, b'k'],
        &body[1..],
        &[255],
        &[0; 8],
    ]
    .concat();
    let mut got = collect(&snapshot, by_elements(), || 1 << 20)?;
    Ok(got.entries.pop().context("one key")?.content)
}

fn same(put: &Content, got: Content) -> bool {
    match (put, got) {
        (Content::Set(put), Content::Set(mut got)) => {
            let mut put = put.clone();
            put.sort();
            got.sort();
            put == got
        }
        (Content::Stream(put), Content::Stream(got)) => put.entries == got.entries,
        (put, got) => *put == got,
    }
}

#[test]
fn long_strings_within_elements_arrive_whole_and_once() -> Result<()> {
    for family in Family::ALL {
        let Some(version) = version_or_skip(family) else {
            continue;
        };
        let server = Server::start(&version, ServerOptions::default())?;
        let mut connection = Connection::open(&server.address())?;
        let target = format_of(family);
        for (seed, content) in contents(&target).into_iter().enumerate() {
            let mut writer = Writer::new(REDIS, 77 + seed as u64);
            writer.entry(&Entry {
                key: b"k".to_vec(),
                database: 0,
                expire_at_ms: None,
                idle_seconds: None,
                frequency: None,
                content: content.clone(),
            });
            let options = Options {
                value_threshold_bytes: 0,
                long_text_bytes: 1000,
                ..Options::new(target)
            };
            let parts = parts(&writer.finish(checksum), options)?;
            ensure!(parts.len() > 3, "{version}: long strings come in pieces");
            // Over something else, and then again from every part on, as after a lost connection.
            connection.call(&["DEL", "k"])?;
            connection.call(&["RPUSH", "k", "stale"])?;
            send(&mut connection, &parts, false)?;
            for from in 0..=parts.len() {
                if from > 0 {
                    send(&mut connection, &parts[from - 1..], true)?;
                }
                let got = read_back(&mut connection)?;
                ensure!(
                    same(&content, got),
                    "{version}: content {seed}, again from {from}"
                );
            }
            let keys = connection.call(&["DBSIZE"])?.integer();
            ensure!(keys == Some(1), "{version}: {keys:?} keys, content {seed}");
        }
    }
    Ok(())
}
