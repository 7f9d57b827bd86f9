//! Snapshots of real servers against what these servers said of their keys.
//!
//! `tests/corpus/snapshots/<server>` was recorded by `tools/record-snapshots`, which says what is there. The expected
//! content was read by commands, so nothing here is taken from the decoder itself.

use crate::collect::collect;
use crate::writer::{Bytes, Content, Entry, Group, Id, Stream, Writer};
use crate::{REDIS, by_elements, checksum, same_server};
use serde_json::Value as Json;
use slotstream::rdb::{Decoder, Item, Lineage, Options, TargetFormat};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

pub struct Recorded {
    /// Such as `redis-7.0/types.rdb`.
    pub name: String,
    pub snapshot: Bytes,
    expected: Json,
}

impl Recorded {
    /// A server of the kind that wrote it, which takes everything in one piece.
    pub fn same_server(&self) -> Options {
        let target = match self.name.split('/').next().unwrap() {
            "redis-6.0" => TargetFormat::of_server(Lineage::Redis, 6, 0),
            "redis-7.0" => TargetFormat::of_server(Lineage::Redis, 7, 0),
            "redis-8.0" => TargetFormat::of_server(Lineage::Redis, 8, 0),
            "valkey-8.0" => TargetFormat::of_server(Lineage::Valkey, 8, 0),
            "valkey-8.1" => TargetFormat::of_server(Lineage::Valkey, 8, 1),
            "valkey-9" => TargetFormat::of_server(Lineage::Valkey, 9, 1),
            other => panic!("which server is {other}?"),
        };
        Options {
            value_threshold_bytes: 1 << 20,
            ..Options::new(target)
        }
    }

    fn keys(&self) -> &[Json] {
        self.expected["keys"].as_array().unwrap()
    }

    fn functions(&self) -> Vec<Bytes> {
        let functions = self.expected["functions"].as_array().unwrap();
        functions.iter().map(bytes).collect()
    }
}

/// All recorded snapshots.
pub fn recorded() -> Vec<Recorded> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/snapshots");
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let mut all = Vec::new();
    for path in entries(&root).iter().flat_map(|folder| entries(folder)) {
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
        if let Some(stem) = name.strip_suffix(".rdb") {
            let stem = stem.strip_suffix("-plain").unwrap_or(stem);
            let text = fs::read_to_string(root.join(format!("{stem}.json"))).unwrap();
            all.push(Recorded {
                name: name.to_owned(),
                snapshot: fs::read(&path).unwrap(),
                expected: serde_json::from_str(&text).unwrap(),
            });
        }
    }
    all.sort_by(|one, other| one.name.cmp(&other.name));
    assert_eq!(all.len(), 6 * 5 + 1);
    all
}

/// Bytes are written as characters of the same number.
fn bytes(text: &Json) -> Bytes {
    let text = text.as_str().unwrap_or_else(|| panic!("{text} is no text"));
    let byte = |character| u8::try_from(u32::from(character)).unwrap();
    text.chars().map(byte).collect()
}

fn id(text: &Json) -> Id {
    let (milliseconds, sequence) = text.as_str().unwrap().split_once('-').unwrap();
    (milliseconds.parse().unwrap(), sequence.parse().unwrap())
}

fn content(key: &Json) -> Content {
    let value = &key["value"];
    let items = || value.as_array().unwrap().iter();
    match key["type"].as_str().unwrap() {
        "string" => Content::String(bytes(value)),
        "list" => Content::List(items().map(bytes).collect()),
        "set" => Content::Set(items().map(bytes).collect()),
        "zset" => Content::SortedSet(
            items()
                .map(|pair| (bytes(&pair[0]), pair[1].as_str().unwrap().parse().unwrap()))
                .collect(),
        ),
        "hash" => Content::Hash(
            items()
                .map(|field| (bytes(&field[0]), (bytes(&field[1]), field[2].as_u64())))
                .collect(),
        ),
        "stream" => Content::Stream(stream(value)),
        other => panic!("what is a {other}?"),
    }
}

fn stream(value: &Json) -> Stream {
    let list = |value: &Json| value.as_array().unwrap().clone();
    let pairs = |flat: &Json| {
        let texts: Vec<Bytes> = list(flat).iter().map(bytes).collect();
        let pairs = texts.chunks(2);
        pairs
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect()
    };
    let pending = |consumer: &Json| {
        let pending = list(&consumer["pending"]).into_iter();
        pending
            .map(|one| {
                (
                    id(&one[0]),
                    (one[1].as_u64().unwrap(), one[2].as_u64().unwrap()),
                )
            })
            .collect()
    };
    let group = |group: &Json| Group {
        last_id: id(&group["last_id"]),
        entries_read: group["entries_read"].as_i64().unwrap(),
        consumers: list(&group["consumers"])
            .iter()
            .map(|consumer| (bytes(&consumer["name"]), pending(consumer)))
            .collect(),
        ..Group::default()
    };
    Stream {
        entries: list(&value["entries"])
            .iter()
            .map(|entry| (id(&entry[0]), pairs(&entry[1])))
            .collect(),
        last_id: id(&value["last_id"]),
        max_deleted_id: id(&value["max_deleted_id"]),
        entries_added: value["entries_added"].as_u64().unwrap(),
        groups: list(&value["groups"])
            .iter()
            .map(|one| (bytes(&one["name"]), group(one)))
            .collect(),
        ..Stream::default()
    }
}

/// Members of a set have no order.
pub fn sorted(content: Content) -> Content {
    match content {
        Content::Set(mut members) => {
            members.sort();
            Content::Set(members)
        }
        other => other,
    }
}

fn by_place(entries: Vec<Entry>) -> BTreeMap<(u32, Bytes), Entry> {
    let place = |entry: Entry| ((entry.database, entry.key.clone()), entry);
    entries.into_iter().map(place).collect()
}

fn place(key: &Json) -> (u32, Bytes) {
    (key["database"].as_u64().unwrap() as u32, bytes(&key["key"]))
}

/// A value as it passes whole.
struct Whole {
    type_code: u8,
    expire_at_ms: Option<u64>,
    idle_seconds: Option<u64>,
    frequency: Option<u8>,
    serialized: Bytes,
}

fn whole_values(recorded: &Recorded) -> BTreeMap<(u32, Bytes), Whole> {
    let mut decoder = Decoder::new(recorded.same_server());
    let mut reader = decoder.read(&recorded.snapshot);
    let mut values = BTreeMap::new();
    loop {
        match reader.next().unwrap() {
            Item::Value(value) => {
                let whole = Whole {
                    type_code: value.type_code,
                    expire_at_ms: value.expire_at_ms,
                    idle_seconds: value.idle_seconds,
                    frequency: value.frequency,
                    serialized: value.serialized.to_vec(),
                };
                values.insert((value.database, value.key.to_vec()), whole);
            }
            Item::Part(part) => panic!("{}: {:?} came in parts", recorded.name, part.key),
            Item::NeedMore => panic!("{} ends early", recorded.name),
            Item::End { has_checksum } => {
                assert!(has_checksum);
                return values;
            }
            _ => {}
        }
    }
}

#[test]
fn every_recorded_snapshot_holds_what_its_server_said() {
    for recorded in recorded() {
        if recorded.name.ends_with("vectors.rdb") {
            continue;
        }
        let length = recorded.snapshot.len();
        for step in [length, 1, 7, 1000] {
            let got = collect(&recorded.snapshot, by_elements(), || step).unwrap();
            assert!(got.has_ended && got.has_checksum, "{}", recorded.name);
            let mut functions = got.functions;
            functions.sort();
            assert_eq!(functions, recorded.functions(), "{}", recorded.name);
            let entries = by_place(got.entries);
            assert_eq!(entries.len(), recorded.keys().len(), "{}", recorded.name);
            for key in recorded.keys() {
                let entry = &entries[&place(key)];
                let name = format!("{} {}", recorded.name, key["key"]);
                assert_eq!(entry.expire_at_ms, key["expire_at_ms"].as_u64(), "{name}");
                if !key["value"].is_null() {
                    let content_of_entry = sorted(entry.content.clone());
                    assert_eq!(content_of_entry, sorted(content(key)), "{name}");
                }
            }
        }
    }
}

#[test]
fn every_recorded_value_passes_whole_with_its_deadline_and_usage() {
    let mut used = 0;
    for recorded in recorded() {
        let values = whole_values(&recorded);
        assert_eq!(values.len(), recorded.keys().len(), "{}", recorded.name);
        for key in recorded.keys() {
            let value = &values[&place(key)];
            let name = format!("{} {}", recorded.name, key["key"]);
            assert_eq!(value.expire_at_ms, key["expire_at_ms"].as_u64(), "{name}");
            assert_eq!(value.idle_seconds, key["idle_seconds"].as_u64(), "{name}");
            let frequency = value.frequency.map(u64::from);
            assert_eq!(frequency, key["frequency"].as_u64(), "{name}");
            used += usize::from(value.idle_seconds.is_some() || frequency.is_some());
            if key["type"] == "vectorset" {
                assert_eq!(value.type_code, 7);
            } else if !key["value"].is_null() {
                // The bytes alone are the same value again.
                let mut alone = recorded.snapshot[..9].to_vec();
                alone.extend([value.type_code, 1, b'k']);
                alone.extend(&value.serialized);
                alone.push(255);
                let sum = checksum(&alone);
                alone.extend(sum.to_le_bytes());
                let again = collect(&alone, by_elements(), || 1 << 20).unwrap();
                let again = sorted(again.entries[0].content.clone());
                assert_eq!(again, sorted(content(key)), "{name}");
            }
        }
    }
    assert_eq!(used, 6 * 2 * 5);
}

/// The earliest deadline of a field.
fn first_field_end(key: &Json) -> Option<u64> {
    let Content::Hash(fields) = content(key) else {
        return None;
    };
    fields.values().filter_map(|(_, deadline)| *deadline).min()
}

#[test]
fn hashes_come_by_elements_when_one_of_their_fields_ends_before_the_time_that_was_given() {
    let mut seen = BTreeSet::new();
    for recorded in recorded() {
        let with_value = |key: &&Json| !key["value"].is_null();
        let keys = recorded.keys().iter().filter(with_value);
        let ends: Vec<(Bytes, u64)> = keys
            .filter_map(|key| Some((bytes(&key["key"]), first_field_end(key)?)))
            .collect();
        let moments: BTreeSet<u64> = ends.iter().flat_map(|(_, at)| [*at, at + 1]).collect();
        for until_ms in moments {
            let options = Options {
                fields_near_until_ms: until_ms,
                ..recorded.same_server()
            };
            let got = collect(&recorded.snapshot, options, || 1000).unwrap();
            let parts: BTreeSet<&Bytes> = got.entries.iter().map(|entry| &entry.key).collect();
            let near = ends.iter().filter(|(_, at)| *at < until_ms);
            let near: BTreeSet<&Bytes> = near.map(|(key, _)| key).collect();
            assert_eq!(parts, near, "{} before {until_ms}", recorded.name);
            let whole = got.whole.iter().filter(|(key, ..)| {
                let mut ends = ends.iter();
                ends.any(|(other, _)| other == key)
            });
            seen.extend(whole.map(|(_, type_code, _)| (recorded.name.clone(), *type_code)));
        }
    }
    let types: BTreeSet<u8> = seen.into_iter().map(|(_, type_code)| type_code).collect();
    assert_eq!(types, [22, 24, 25].into());
}

#[test]
fn the_recorded_snapshots_hold_every_encoding_that_their_servers_write() {
    let mut found: BTreeMap<String, BTreeSet<u8>> = BTreeMap::new();
    for recorded in recorded() {
        let server = recorded.name.split('/').next().unwrap();
        let types = found.entry(server.to_owned()).or_default();
        types.extend(whole_values(&recorded).values().map(|v| v.type_code));
        if recorded.name.ends_with("types.rdb") {
            let compressed = whole_values(&recorded);
            let is_packed = |value: &Whole| value.type_code == 0 && value.serialized[0] == 0xc3;
            assert!(compressed.values().any(is_packed), "{}", recorded.name);
        }
    }
    let expected: [(&str, &[u8]); 6] = [
        ("redis-6.0", &[0, 2, 4, 5, 11, 12, 13, 14, 15]),
        ("redis-7.0", &[0, 2, 4, 5, 11, 16, 17, 18, 19]),
        (
            "redis-8.0",
            &[0, 2, 4, 5, 7, 11, 16, 17, 18, 20, 21, 24, 25],
        ),
        ("valkey-8.0", &[0, 2, 4, 5, 11, 16, 17, 18, 20, 21]),
        ("valkey-8.1", &[0, 2, 4, 5, 11, 16, 17, 18, 20, 21]),
        ("valkey-9", &[0, 2, 4, 5, 11, 16, 17, 18, 20, 21, 22]),
    ];
    let expected =
        expected.map(|(server, types)| (server.to_owned(), types.iter().copied().collect()));
    assert_eq!(found, BTreeMap::from(expected));
}

/// Encodings and versions that none of the six writes any more, made by hand.
#[test]
fn every_older_version_and_encoding_is_read() {
    let texts = |count: u32| (0..count).map(|at| (at * at * 91).to_string().into_bytes());
    let contents = [
        Content::String(b"text ".repeat(9)),
        Content::List(texts(9).collect()),
        Content::Set(texts(9).collect()),
        Content::SortedSet(texts(9).map(|text| (text, -0.25)).collect()),
        Content::Hash(texts(9).map(|text| (text.clone(), (text, None))).collect()),
    ];
    let mut types = BTreeSet::new();
    for version in 1..=12 {
        for seed in 1..30 {
            let magic: [u8; 9] = format!("REDIS{version:04}")
                .into_bytes()
                .try_into()
                .unwrap();
            let mut writer = Writer::new(&magic, seed);
            for (index, content) in contents.iter().enumerate() {
                writer.entry(&Entry {
                    key: index.to_string().into_bytes(),
                    database: 0,
                    expire_at_ms: Some(1_900_000_000_000),
                    idle_seconds: None,
                    frequency: None,
                    content: content.clone(),
                });
            }
            let mut snapshot = writer.finish(checksum);
            if version < 5 {
                snapshot.truncate(snapshot.len() - 8);
            }
            let got = collect(&snapshot, by_elements(), || 50).unwrap();
            assert!(got.has_ended && got.has_checksum == (version >= 5));
            for (entry, content) in got.entries.iter().zip(&contents) {
                assert_eq!(entry.content, *content, "version {version}, seed {seed}");
            }
            let whole = collect(&snapshot, same_server(REDIS, 1 << 20), || 50).unwrap();
            assert_eq!(whole.whole.len(), contents.len());
            types.extend(whole.whole.iter().map(|(_, type_code, _)| *type_code));
        }
    }
    let expected = [0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 14, 16, 17, 18, 20];
    assert_eq!(types, BTreeSet::from(expected));
}
