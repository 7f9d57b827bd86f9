//! Cases that random snapshots do not reach: large values, opcodes beside keys, lying lengths, old versions.

use crate::collect::{Collected, collect};
use crate::writer::{Bytes, Content, Entry, Writer};
use crate::{REDIS, VALKEY, by_elements, checksum, same_server};
use slotstream::limits;
use slotstream::rdb::{
    Decoder, Item, LeftOut, Lineage, MetadataClass, Modules, Options, Problem, RdbError,
    TargetFormat,
};
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
    let mut having = same_server(REDIS, 0);
    having.target.modules = Modules::of(&["mine"], Some(&["mine"]));
    let got = decode(&snapshot, having).unwrap();
    assert_eq!(got.whole[0].1, 7);
    assert_eq!(got.whole[0].2[9..], data);
    let lacking = Options::new(TargetFormat::of_server(Lineage::Redis, 7, 0));
    let snapshot = {
        // What follows the value is still read.
        let mut longer = snapshot[..snapshot.len() - 9].to_vec();
        longer.extend([0, 1, b's', 1, b'v', 255]);
        longer.extend(checksum(&longer).to_le_bytes());
        longer
    };
    let got = decode(&snapshot, lacking).unwrap();
    let [(key, problem)] = &got.unsupported[..] else {
        panic!("{:?}", got.unsupported);
    };
    assert_eq!(key, b"k");
    assert!(
        problem.to_string().contains("module BBBBBBBBB"),
        "{problem}"
    );
    assert_eq!(problem.kind(), "module");
    assert_eq!(got.whole.len(), 1);
    assert!(got.has_ended && got.has_checksum);
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
    assert_eq!(
        items(REDIS, &module),
        "LeftOut(ModuleData { module: AAAAAAAAA, when: 1 })"
    );
    // The same opcode: slots being imported on one side, metadata of modules on the other.
    let imports = [243, 3, b'j', b'o', b'b', 2, 0, 9, 0x40, 100, 0x40, 200];
    assert_eq!(items(VALKEY, &imports), "SlotImport");
    let metadata = [243, 1, 1, 2, 3, 4, 1, 7, 0];
    assert_eq!(
        items(REDIS, &metadata),
        "LeftOut(KeyMetadata { class: BAMC })"
    );
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
    assert_eq!(problem(b"REDIS0017"), Problem::UnknownVersion(17));
    assert_eq!(problem(b"VALKEY082"), Problem::UnknownVersion(82));
    let unknown = |lineage, code, version| Problem::UnknownType {
        code,
        lineage,
        version,
    };
    let redis = |code| unknown(Lineage::Redis, code, 12);
    let valkey = |code| unknown(Lineage::Valkey, code, 80);
    assert_eq!(problem(&raw(REDIS, &[99])), redis(99));
    assert_eq!(problem(&raw(REDIS, &[34, 1, b'k'])), redis(34));
    assert_eq!(problem(&raw(VALKEY, &[24, 1, b'k'])), valkey(24));
    assert_eq!(problem(&raw(VALKEY, &[242, 1, 1, 1, b'k'])), valkey(242));
    assert_eq!(
        problem(&raw(REDIS, &[6, 1, b'k', 5])),
        Problem::ModuleBeforeRelease
    );
    assert_eq!(
        problem(&raw(REDIS, &[246, 1, b'a'])),
        Problem::FunctionBeforeRelease
    );
    let error = decode(&raw(VALKEY, &[254, 3, 24, 1, b'k']), by_elements()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "snapshot byte 11: opcode or type 24 is not known in version 80 of the Valkey format"
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

/// An array of three elements, one of each form, with a place to insert at; then a string.
fn array() -> Bytes {
    let mut body = vec![28, 1, b'a', 3, 1, 9];
    body.extend([0, 0, 2, b'h', b'i']);
    body.extend([&[4, 1][..], &(-5i64).to_le_bytes()].concat());
    body.extend([&[8, 2][..], &1.5f64.to_le_bytes()].concat());
    body.extend([0, 1, b's', 1, b'v']);
    body
}

#[test]
fn types_that_only_restore_writes_pass_or_are_told_of_and_passed_over() {
    let path_hash = [
        23, 1, b'a', 2, 1, b'p', 1, 1, b'f', 1, b'v', 1, b'q', 1, 1, b'f', 1, b'w',
    ];
    let path_hash = [&path_hash[..], &[0, 1, b's', 1, b'v']].concat();
    let rate_limit = [
        33, 1, b'a', 0x81, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, b's', 1, b'v',
    ];
    let redis = |minor| TargetFormat::of_server(Lineage::Redis, 8, minor);
    let valkey = |minor| TargetFormat::of_server(Lineage::Valkey, 9, minor);
    let cases: [(&[u8; 9], Bytes, TargetFormat, Option<&str>); 6] = [
        (crate::REDIS_NEWEST, array(), redis(8), None),
        (crate::REDIS_NEWEST, array(), redis(6), Some("array")),
        (b"VALKEY081", path_hash.clone(), valkey(2), None),
        (
            b"VALKEY081",
            path_hash.clone(),
            valkey(1),
            Some("path_hash"),
        ),
        (b"VALKEY081", path_hash, redis(10), Some("path_hash")),
        (
            crate::REDIS_NEWEST,
            rate_limit.to_vec(),
            redis(10),
            Some("rate_limit"),
        ),
    ];
    for (magic, body, target, kind) in cases {
        for pieces in [1, 4096] {
            let snapshot = raw(magic, &body);
            let got = collect(&snapshot, Options::new(target), || pieces).unwrap();
            assert!(got.has_ended && got.has_checksum);
            let told = got.unsupported.iter().map(|(_, problem)| problem.kind());
            assert_eq!(told.collect::<Vec<_>>(), Vec::from_iter(kind));
            assert_eq!(got.whole.len(), 2 - got.unsupported.len());
            if kind.is_none() {
                assert_eq!(got.whole[0].2, body[3..body.len() - 5]);
            }
        }
    }
    let bad = [28, 1, b'a', 1, 0, 0, 4, 1];
    let newest = Options::new(redis(10));
    let error = decode(&raw(crate::REDIS_NEWEST, &bad), newest).unwrap_err();
    assert_eq!(error.problem, Problem::BadForm(4));
}

#[test]
fn metadata_passes_with_its_key_or_is_told_of() {
    let metadata = [243, 1, 1, 2, 3, 4, 5, 2, b'm', b'd', 0];
    let body = [
        &[252, 1, 0, 0, 0, 0, 0, 0, 0][..],
        &metadata,
        &[0, 1, b'k', 1, b'v'],
    ]
    .concat();
    let body = [&body[..], &[0, 1, b's', 1, b'v']].concat();
    let snapshot = raw(crate::REDIS_NEWEST, &body);
    for pieces in [1, 4096] {
        let target = TargetFormat::of_server(Lineage::Redis, 8, 6);
        let got = collect(&snapshot, Options::new(target), || pieces).unwrap();
        assert_eq!(got.metadata, [metadata.to_vec()]);
        let payload = [&b"$24\r\n"[..], &metadata, b"\x00\x01v\x0d\x00"].concat();
        let sent = got.commands.windows(payload.len()).any(|at| at == payload);
        assert!(sent, "{}", got.commands.escape_ascii());
        // Too old a target, and a key that goes by elements.
        let older = Options::new(TargetFormat::of_server(Lineage::Redis, 8, 0));
        let mut by_parts = Options::new(target);
        by_parts.value_threshold_bytes = 1;
        for options in [older, by_parts] {
            let got = collect(&snapshot, options, || pieces).unwrap();
            let class = MetadataClass(0x0403_0201);
            assert_eq!(got.left_out, [LeftOut::KeyMetadata { class }]);
            assert!(got.metadata.is_empty());
            assert_eq!(got.whole.len() + got.entries.len(), 2);
        }
    }
    // A hash passes whole with it although a field ends soon; by elements without it.
    let hash = [
        &[24, 1, b'h', 5, 0, 0, 0, 0, 0, 0, 0, 1][..],
        &[1, 1, b'f', 1, b'v'],
    ]
    .concat();
    let options = Options {
        fields_near_until_ms: 6,
        ..Options::new(TargetFormat::of_server(Lineage::Redis, 8, 6))
    };
    let with = raw(crate::REDIS_NEWEST, &[&metadata[..], &hash].concat());
    assert_eq!(decode(&with, options).unwrap().whole.len(), 1);
    let without = decode(&raw(crate::REDIS_NEWEST, &hash), options).unwrap();
    assert_eq!((without.whole.len(), without.entries.len()), (0, 1));
}

#[test]
fn hashes_with_a_template_that_is_not_there_are_errors() {
    let newest = |body: &[u8]| {
        let snapshot = raw(crate::REDIS_NEWEST, body);
        decode(&snapshot, by_elements()).map(|got| got.entries.len())
    };
    let template = [242, 3, 2, 1, b'f', 1, b'g'];
    let hash = |id, values: u8| {
        let mut body = [&template[..], &[32, 1, b'h', id]].concat();
        (0..values).for_each(|_| body.extend([1, b'v']));
        body
    };
    assert_eq!(newest(&hash(3, 2)).unwrap(), 1);
    let unknown = newest(&hash(4, 2)).unwrap_err();
    assert_eq!(unknown.problem, Problem::UnknownTemplate(4));
    // A listpack with one value too few, and one too many.
    for values in [&[1u8][..], &[1, 2, 3]] {
        let mut pack = vec![0, 0, 0, 0, 0, 0, 3, 1];
        values.iter().for_each(|value| pack.extend([*value, 1]));
        pack.push(0xff);
        let body = [&template[..], &[30, 1, b'h', pack.len() as u8], &pack].concat();
        assert_eq!(newest(&body).unwrap_err().problem, Problem::BadTemplate);
    }
}
