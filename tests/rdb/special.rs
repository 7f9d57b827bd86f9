//! Cases that random snapshots do not reach: large values, opcodes beside keys, lying lengths, old versions.

use crate::collect::{Collected, collect};
use crate::writer::{Bytes, Content, Entry, Writer};
use crate::{REDIS, VALKEY, by_elements, checksum, same_server};
use slotstream::limits;
use slotstream::rdb::{Decoder, Item, Lineage, Options, Problem, RdbError, TargetFormat};
use std::collections::BTreeMap;

fn entry(key: &str, content: Content) -> Entry {
    Entry {
        key: key.into(),
        database: 0,
        expire_at_ms: Some(1_900_000_000_000),
        idle_seconds: None,
        frequency: None,
        content,
    }
}

fn decode(snapshot: &[u8], options: Options) -> Result<Collected, RdbError> {
    collect(snapshot, options, || 4096)
}

fn problem(snapshot: &[u8]) -> Problem {
    decode(snapshot, by_elements())
        .expect_err("it is corrupt")
        .problem
}

fn raw(magic: &[u8; 9], body: &[u8]) -> Bytes {
    let mut writer = Writer::new(magic, 1);
    writer.out.extend(body);
    writer.finish(checksum)
}

fn numbered(count: usize) -> impl Iterator<Item = Bytes> {
    (0..count).map(|index| format!("element {index}").into_bytes())
}

#[test]
fn large_values_come_in_parts_of_bounded_size() {
    let mixed: Bytes = (0..250_000u32)
        .flat_map(|i| i.wrapping_mul(i).to_le_bytes())
        .collect();
    let contents = [
        Content::String(vec![b'x'; 1_000_000]),
        Content::String(mixed),
        Content::List(numbered(30_000).collect()),
        Content::Set(numbered(30_000).collect()),
        Content::SortedSet(numbered(30_000).map(|text| (text, 1.5)).collect()),
        Content::Hash(
            numbered(30_000)
                .map(|text| (text.clone(), (text, None)))
                .collect(),
        ),
    ];
    for seed in 1..8 {
        for content in &contents {
            let mut writer = Writer::new(REDIS, seed);
            writer.entry(&entry("large", content.clone()));
            let snapshot = writer.finish(|_| 0);
            let options = same_server(REDIS, limits::PART_BYTES);
            let mut decoder = Decoder::new(options);
            let (mut start, mut commands, mut parts) = (0, Vec::new(), 0);
            let mut end = 0;
            'snapshot: while end < snapshot.len() {
                end = (end + 50_000).min(snapshot.len());
                let mut reader = decoder.read(&snapshot[start..end]);
                loop {
                    match reader.next().unwrap() {
                        Item::NeedMore => break,
                        Item::End { .. } => break 'snapshot,
                        Item::Part(part) => {
                            commands.clear();
                            part.write_commands(&mut commands, &options.target).unwrap();
                            assert!(
                                commands.len() < 2 * limits::PART_BYTES,
                                "{}",
                                commands.len()
                            );
                            parts += 1;
                        }
                        Item::Value(_) => parts = usize::MAX / 2,
                        _ => {}
                    }
                }
                start += reader.consumed_bytes();
            }
            assert!(parts > 10);
            let got = decode(&snapshot, by_elements()).unwrap();
            assert!(got.entries[0].content == *content);
        }
    }
}

#[test]
fn a_value_that_dribbles_in_is_read_once() {
    // Starting over at each byte would take some 10^10 steps.
    let mut writer = Writer::new(REDIS, 3);
    let members = (0..150_000u32).map(|index| index.to_string().into_bytes());
    writer.out.push(2);
    writer.text(b"set");
    writer.length(150_000);
    members.for_each(|member| writer.text(&member));
    let snapshot = writer.finish(|_| 0);
    let got = collect(&snapshot, same_server(REDIS, 1 << 24), || 1).unwrap();
    assert_eq!(got.whole.len(), 1);
}

#[test]
fn the_parser_state_between_reads_does_not_depend_on_dropped_readers() {
    let mut writer = Writer::new(REDIS, 5);
    writer.entry(&entry("a", Content::String(b"1".to_vec())));
    writer.entry(&entry("b", Content::String(b"2".to_vec())));
    let snapshot = writer.finish(checksum);
    let mut decoder = Decoder::new(same_server(REDIS, 1000));
    let (mut start, mut keys) = (0, 0);
    loop {
        // One item of each reader.
        let mut reader = decoder.read(&snapshot[start..]);
        match reader.next().unwrap() {
            Item::Value(_) => keys += 1,
            Item::End { has_checksum } => {
                assert!(has_checksum);
                break;
            }
            _ => {}
        }
        start += reader.consumed_bytes();
    }
    assert_eq!(keys, 2);
}

#[test]
fn module_values_pass_to_targets_that_have_the_module() {
    let id: u64 = (0..9).fold(0, |id, _| id << 6 | 1) << 10 | 3;
    let mut writer = Writer::new(REDIS, 1);
    writer.out.extend([7, 1, b'k']);
    writer.out.push(0x81);
    writer.out.extend(id.to_be_bytes());
    let data = [
        2, 5, 1, 9, 3, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 5, 2, b'h', b'i', 0,
    ];
    writer.out.extend(data);
    let snapshot = writer.finish(checksum);
    let got = decode(&snapshot, same_server(REDIS, 0)).unwrap();
    assert_eq!(got.whole[0].1, 7);
    assert_eq!(got.whole[0].2[9..], data);
    let lacking = Options::new(TargetFormat::of_server(Lineage::Redis, 7, 0));
    let error = decode(&snapshot, lacking).unwrap_err();
    assert_eq!(error.offset, 9);
    assert!(error.to_string().contains("module BBBBBBBBB"), "{error}");
}

#[test]
fn what_stands_beside_keys_is_told_or_skipped() {
    let items = |magic, body: &[u8]| {
        let snapshot = raw(magic, body);
        let mut decoder = Decoder::new(same_server(magic, 0));
        let mut reader = decoder.read(&snapshot);
        let mut told = Vec::new();
        while !told
            .last()
            .is_some_and(|last: &String| last.starts_with("End"))
        {
            told.push(format!("{:?}", reader.next().unwrap()));
        }
        told[1..told.len() - 1].join("; ")
    };
    assert_eq!(items(REDIS, &[254, 0x42, 0x00]), "SelectDatabase(512)");
    assert_eq!(
        items(REDIS, &[251, 9, 4]),
        "SizeHint { keys: 9, expiring: 4 }"
    );
    assert_eq!(
        items(REDIS, &[244, 0x7f, 0xff, 2, 1]),
        "SlotHint { slot: 16383, keys: 2, expiring: 1 }"
    );
    // Module data with a number and a string.
    let module = [247, 1, 2, 1, 1, 5, 5, 2, b'h', b'i', 0];
    assert_eq!(items(REDIS, &module), "Skipped { opcode: 247 }");
    // The same opcode: slots being imported on one side, metadata of modules on the other.
    let imports = [243, 3, b'j', b'o', b'b', 2, 0, 9, 0x40, 100, 0x40, 200];
    assert_eq!(items(VALKEY, &imports), "SlotImport");
    let metadata = [243, 1, 1, 2, 3, 4, 1, 7, 0];
    assert_eq!(items(REDIS, &metadata), "Skipped { opcode: 243 }");
}

#[test]
fn old_snapshots_without_checksum_and_with_expiry_in_seconds_are_read() {
    let mut snapshot = b"REDIS0002".to_vec();
    snapshot.extend([254, 0, 253]);
    snapshot.extend(1_800_000_000u32.to_le_bytes());
    snapshot.extend([0, 1, b'k', 1, b'v', 255]);
    let got = decode(&snapshot, by_elements()).unwrap();
    assert!(got.has_ended && !got.has_checksum);
    assert_eq!(got.entries[0].expire_at_ms, Some(1_800_000_000_000));
}

#[test]
fn a_deadline_belongs_to_its_own_key_only() {
    let mut writer = Writer::new(REDIS, 7);
    writer.entry(&entry("with", Content::String(b"1".to_vec())));
    let without = Entry {
        expire_at_ms: None,
        ..entry("without", Content::List(vec![b"1".to_vec()]))
    };
    writer.entry(&without);
    let snapshot = writer.finish(checksum);
    let got = decode(&snapshot, by_elements()).unwrap();
    assert_eq!(got.entries[1].expire_at_ms, None);
    let got = decode(&snapshot, same_server(REDIS, 1000)).unwrap();
    let commands = String::from_utf8_lossy(&got.commands).into_owned();
    assert_eq!(commands.matches("1900000000000").count(), 1);
}

#[test]
fn lying_lengths_are_errors_or_wait_for_more_and_take_no_memory() {
    let huge = [0x81, 0x0f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let string = [&[0, 1, b'k'][..], &huge].concat();
    assert!(matches!(problem(&raw(REDIS, &string)), Problem::TooLong(_)));
    for count_type in [1, 2, 3, 4, 5, 14, 18, 15, 19, 21, 22] {
        let body = [&[count_type, 1, b'k'][..], &huge].concat();
        let snapshot = [&REDIS[..], &body].concat();
        let got = decode(&snapshot, by_elements()).unwrap();
        assert!(!got.has_ended && got.entries.is_empty());
    }
    // A gigabyte promised in three compressed bytes.
    let packed = [
        0, 1, b'k', 0xc3, 3, 0x80, 0x3f, 0xff, 0xff, 0xff, 0, b'a', 0,
    ];
    assert_eq!(problem(&raw(REDIS, &packed)), Problem::BadCompression);
}

#[test]
fn errors_name_what_is_wrong_and_where() {
    assert_eq!(problem(b"RUBBISH00"), Problem::BadMagic);
    assert_eq!(problem(b"REDIS00x2"), Problem::BadMagic);
    assert_eq!(problem(b"REDIS0099"), Problem::UnknownVersion(99));
    assert_eq!(problem(b"VALKEY081"), Problem::UnknownVersion(81));
    assert_eq!(problem(&raw(REDIS, &[99])), Problem::UnknownType(99));
    assert_eq!(
        problem(&raw(VALKEY, &[24, 1, b'k'])),
        Problem::UnknownType(24)
    );
    let mut snapshot = raw(REDIS, &[0, 1, b'k', 1, b'v']);
    snapshot[13] ^= 1;
    assert!(matches!(problem(&snapshot), Problem::BadChecksum { .. }));
    let unsound = raw(REDIS, &[0, 1, b'a', 1, b'a', 0, 1, b'b', 0xff]);
    let error = decode(&unsound, by_elements()).unwrap_err();
    assert_eq!(error.offset, 9 + 5 + 3);
    assert_eq!(
        error.to_string(),
        "snapshot byte 17: a string has the unknown encoding 0xff"
    );
}

#[test]
fn the_same_error_comes_again() {
    let mut decoder = Decoder::new(by_elements());
    let mut reader = decoder.read(b"RUBBISH00");
    let first = reader.next().unwrap_err();
    assert_eq!(reader.next().unwrap_err(), first);
    drop(reader);
    assert_eq!(decoder.read(REDIS).next().unwrap_err(), first);
}

#[test]
fn field_deadlines_are_refused_for_a_target_without_them() {
    let fields = BTreeMap::from([(b"f".to_vec(), (b"v".to_vec(), Some(1_900_000_000_000)))]);
    let mut writer = Writer::new(VALKEY, 1);
    writer.entry(&entry("h", Content::Hash(fields)));
    let snapshot = writer.finish(checksum);
    let target = TargetFormat::of_server(Lineage::Redis, 7, 0);
    let mut decoder = Decoder::new(Options::new(target));
    let mut reader = decoder.read(&snapshot);
    let written = loop {
        if let Item::Part(part) = reader.next().unwrap() {
            break part.write_commands(&mut Vec::new(), &target);
        }
    };
    assert_eq!(written, Err(Problem::TargetLacksFieldExpiry));
}
