//! Input that was made to hurt, or was damaged on its way: a typed error with its place, and nothing worse.

use crate::collect::{Collected, collect};
use crate::corpus::recorded;
use crate::writer::{Bytes, Content, Writer, listpack};
use crate::{REDIS, REDIS_NEWEST, VALKEY, by_elements, same_server};
use slotstream::limits;
use slotstream::rdb::{Decoder, Item, LeftOut, Options, Problem, RdbError};

/// Decodes in steps of `step` bytes.
fn decode(snapshot: &[u8], threshold: usize, step: usize) -> Result<Collected, RdbError> {
    collect(snapshot, same_server(REDIS, threshold), || step)
}

/// Found by fuzzing: a value was given up whole or in parts, with different errors, depending on where the input was cut.
#[test]
fn damage_is_told_alike_however_the_input_is_cut() {
    for (type_code, count_of_good, damage) in [
        // Strings of a list, then one with an unknown encoding.
        (1, 9, &[0xff; 40][..]),
        // Ziplists of a list: the first is corrupt, and a length after them too.
        (14, 3, &[0x9d; 40]),
        // A length that is over every limit just before the threshold.
        (1, 1, &[0x81; 40]),
    ] {
        let mut writer = Writer::new(REDIS, 1);
        writer.out.extend([type_code, 1, b'k', 30]);
        for _ in 0..count_of_good {
            writer.out.extend(*b"\x05hello");
        }
        writer.out.extend(damage);
        let snapshot = writer.finish(|_| 0);
        for threshold in 0..90 {
            let at_once = decode(&snapshot, threshold, snapshot.len()).unwrap_err();
            for step in 1..40 {
                let in_pieces = decode(&snapshot, threshold, step).unwrap_err();
                assert_eq!(
                    at_once, in_pieces,
                    "type {type_code}, threshold {threshold}"
                );
            }
        }
    }
}

#[test]
fn damage_is_told_where_its_string_starts_however_the_input_is_cut() {
    let element_over_the_end = b"\x20\0\0\0\x0a\0\0\0\x02\0\0\x01a\0\x3fhello\xff";
    let no_such_distance = b"\xc3\x04\x05\x00a\x20\xff";
    let mut ziplist = Writer::new(REDIS, 1);
    ziplist.out.extend([10, 1, b'k']);
    ziplist.out.push(element_over_the_end.len() as u8);
    ziplist.out.extend(element_over_the_end);
    let mut compressed = Writer::new(REDIS, 1);
    compressed.out.extend([1, 1, b'k', 2, 1, b'a']);
    compressed.out.extend(no_such_distance);
    let mut key = Writer::new(REDIS, 1);
    key.out.push(0);
    key.out.extend(no_such_distance);
    key.out.extend(*b"\x05hello");
    for (writer, offset, problem) in [
        (ziplist, 12, Problem::BadPacked("ziplist")),
        (compressed, 15, Problem::BadCompression),
        (key, 9, Problem::BadCompression),
    ] {
        let snapshot = writer.finish(|_| 0);
        // By elements, and where its value would pass whole.
        for options in [by_elements(), same_server(REDIS, 100)] {
            for step in 1..=snapshot.len() {
                match collect(&snapshot, options, || step) {
                    Err(error) => assert_eq!((error.offset, error.problem), (offset, problem)),
                    // Values that pass whole are not looked into.
                    Ok(got) => assert!(offset > 9 && got.whole.len() == 1),
                }
            }
        }
    }
}

/// What was told of a snapshot up to an error, or to where it breaks off.
#[derive(Debug, PartialEq)]
struct Told {
    commands: Bytes,
    left_out: Vec<LeftOut>,
    error: Option<RdbError>,
}

/// Decodes in pieces of the lengths that `next_length` says.
fn told(snapshot: &[u8], options: Options, mut next_length: impl FnMut() -> usize) -> Told {
    let mut decoder = Decoder::new(options);
    let mut told = Told {
        commands: Vec::new(),
        left_out: Vec::new(),
        error: None,
    };
    let (mut start, mut end) = (0, 0);
    loop {
        let mut reader = decoder.read(&snapshot[start..end]);
        loop {
            match reader.next() {
                Err(error) => {
                    told.error = Some(error);
                    return told;
                }
                Ok(Item::NeedMore) => break,
                Ok(Item::Part(part)) => {
                    part.write_commands(&mut told.commands, &options.target)
                        .unwrap();
                }
                Ok(Item::LeftOut(what)) => told.left_out.push(what),
                Ok(_) => {}
            }
        }
        start += reader.consumed_bytes();
        if end == snapshot.len() {
            return told;
        }
        end = (end + next_length()).min(snapshot.len());
    }
}

/// The same, cut once.
fn told_with_cut(snapshot: &[u8], options: Options, cut: usize) -> Told {
    let mut lengths = [cut, snapshot.len()].into_iter();
    told(snapshot, options, || lengths.next().unwrap())
}

/// Found by fuzzing: what came before was handed out, or another error told, where the whole of the length had arrived.
#[test]
fn a_long_string_over_the_end_of_its_pack_is_told_alike_however_the_input_is_cut() {
    let filler = [1; 40];
    let listpack = [
        &[0; 6][..],
        b"\x01\x01\x02\x01",
        b"\xf0\xff\xff\xff\x3f",
        &filler,
    ]
    .concat();
    let ziplist = [
        &[0; 10][..],
        b"\0\xf2\x02\xf3",
        b"\x02\x80\x3f\xff\xff\xff",
        &filler,
    ]
    .concat();
    let zipmap = [&b"\x02\x01a\x01\0b"[..], b"\xfe\xff\xff\xff\x3f", &filler].concat();
    let corrupt = Problem::BadPacked;
    for (before, pack, problem) in [
        (&[16, 1, b'k'][..], &listpack, corrupt("listpack")),
        (&[17, 1, b'k'], &listpack, corrupt("listpack")),
        (&[20, 1, b'k'], &listpack, corrupt("listpack")),
        (&[18, 1, b'k', 1, 2], &listpack, corrupt("listpack")),
        // A number is wanted there.
        (
            &[&[15, 1, b'k', 1, 16][..], &[0; 16]].concat(),
            &listpack,
            corrupt("listpack"),
        ),
        (&[10, 1, b'k'], &ziplist, corrupt("ziplist")),
        (&[13, 1, b'k'], &ziplist, corrupt("ziplist")),
        (&[9, 1, b'k'], &zipmap, corrupt("zipmap")),
    ] {
        let mut writer = Writer::new(REDIS, 1);
        writer.out.extend(before);
        writer.out.push(pack.len() as u8);
        writer.out.extend(pack);
        let snapshot = writer.finish(|_| 0);
        let at_once = told(&snapshot, by_elements(), || snapshot.len());
        let offset = 9 + before.len() as u64;
        assert_eq!(at_once.error, Some(RdbError { offset, problem }));
        for step in 1..snapshot.len() {
            let in_pieces = told(&snapshot, by_elements(), || step);
            assert_eq!(at_once, in_pieces, "type {}, step {step}", before[0]);
        }
    }
}

/// A type and what stands before its pack; the pack, with a long string behind some elements; what is wrong with that string, if
/// anything is. Pack and string claim hundreds of megabytes, and break off behind one piece of the string.
fn breaking_off() -> Vec<(Bytes, Bytes, Option<Problem>)> {
    let length = 0x2fff_ffffu32;
    let (little, big) = (length.to_le_bytes(), length.to_be_bytes());
    let text = vec![b'x'; limits::PART_BYTES + 20];
    let pack = |elements: &[u8], length: [u8; 4], behind_length: &[u8]| {
        [elements, &length, behind_length, &text].concat()
    };
    let in_listpack = pack(b"\0\0\0\0\0\0\x01\x01\x02\x01\xf0", little, b"");
    let elements = [&[0; 10][..], b"\0\xf2\x02\xf3"].concat();
    let near = pack(&[&elements[..], b"\x02\x80"].concat(), big, b"");
    let far = pack(&[&elements[..], b"\xfe\x02\0\0\0\x80"].concat(), big, b"");
    let zipmap_field = pack(b"\x02\x01a\x01\0b\xfe", little, b"");
    let zipmap_value = pack(b"\x02\x01a\x01\0b\x01c\xfe", little, b"\x03");
    // An entry of a stream, and another with this value.
    let numbers = "2 0 1 name 0 2 0 0 value 4 2 0 1".split(' ');
    let mut node = listpack(&numbers.map(Bytes::from).collect::<Vec<_>>());
    *node.last_mut().unwrap() = 0xf0;
    let node = pack(&node, little, b"");
    let stream = [&[15, 1, b'k', 1, 16][..], &[0; 16]].concat();
    vec![
        (b"\x10\x01k".into(), in_listpack.clone(), None),
        (b"\x11\x01k".into(), in_listpack.clone(), None),
        (b"\x12\x01k\x01\x02".into(), in_listpack.clone(), None),
        (b"\x14\x01k".into(), in_listpack.clone(), None),
        (b"\x0a\x01k".into(), near.clone(), None),
        (b"\x0a\x01k".into(), far.clone(), None),
        (b"\x0c\x01k".into(), near.clone(), None),
        (b"\x0d\x01k".into(), far, None),
        (b"\x0e\x01k\x01".into(), near, None),
        (b"\x09\x01k".into(), zipmap_field, None),
        (b"\x09\x01k".into(), zipmap_value, None),
        (stream.clone(), node, None),
        // A number is wanted there.
        (stream, in_listpack, Some(Problem::BadStream)),
    ]
}

/// Found by fuzzing: cut right behind its length, what came before it was held back, and all of it that had arrived.
#[test]
fn a_long_string_is_told_of_wherever_its_pack_is_cut() {
    for (before, pack, problem) in breaking_off() {
        // Short runs, so that the length arrives before what is behind it.
        let runs = pack.chunks(2);
        let compressed = runs.flat_map(|run| [&[run.len() as u8 - 1], run].concat());
        let long = b"\x80\x3f\xff\xff\xff";
        for stored in [
            [&long[..], &pack].concat(),
            [&b"\xc3"[..], long, long, &compressed.collect::<Bytes>()].concat(),
        ] {
            let snapshot = [&REDIS[..], &before, &stored].concat();
            let at_once = told(&snapshot, by_elements(), || snapshot.len());
            assert_eq!(at_once.error.map(|error| error.problem), problem);
            // The elements before it, and a piece of it.
            assert_eq!(at_once.commands.is_empty(), problem.is_some());
            assert_eq!(
                at_once.commands.len() > limits::PART_BYTES,
                problem.is_none()
            );
            // Somewhat farther than its length, which is within the first bytes of the pack.
            for cut in 1..snapshot.len() - stored.len() + 150 {
                let in_pieces = told_with_cut(&snapshot, by_elements(), cut);
                assert!(at_once == in_pieces, "type {}, cut at {cut}", before[0]);
            }
        }
    }
}

/// The names of a hash are looked into before it passes, when they are there as a whole.
#[test]
fn names_of_a_hash_that_are_wrong_are_told_alike_however_the_input_is_cut() {
    let metadata = [243, 1, 1, 2, 3, 4, 0];
    let broken_key = b"\xc3\x04\x05\x00a\x20\xff";
    for type_code in [29, 31] {
        for before in [
            [&metadata[..], &[type_code, 1, b'k']].concat(),
            [&[type_code][..], broken_key].concat(),
        ] {
            let mut writer = Writer::new(REDIS_NEWEST, 1);
            writer.out.extend(before);
            writer.out.push(0);
            writer.out.extend([0x41, 0x90]);
            writer.out.extend([0xfe; 400]);
            let snapshot = writer.finish(|_| 0);
            for threshold in [100, 255, 257, 300, 402, 403, 404, 1000] {
                let options = same_server(REDIS_NEWEST, threshold);
                let at_once = told(&snapshot, options, || snapshot.len());
                assert!(at_once.error.is_some());
                for cut in 1..snapshot.len() {
                    let in_pieces = told_with_cut(&snapshot, options, cut);
                    assert_eq!(at_once, in_pieces, "threshold {threshold}, cut at {cut}");
                }
            }
        }
    }
}

#[test]
fn metadata_that_is_wrong_is_told_alike_however_the_input_is_cut() {
    let limit = limits::MAX_KEY_METADATA_BYTES;
    for text_bytes in [10, limit - 30, limit - 14, limit, 2 * limit] {
        for damage in [&[9][..], &[5, 0x81, 255, 0, 0, 0, 0, 0, 0, 0]] {
            let mut writer = Writer::new(REDIS_NEWEST, 1);
            writer.out.extend([243, 1, 1, 2, 3, 4, 5]);
            writer.length(text_bytes as u64);
            writer.out.extend(vec![b'x'; text_bytes]);
            let offset = writer.out.len() as u64;
            writer.out.extend(damage);
            let snapshot = writer.finish(|_| 0);
            // One target takes metadata, the other does not.
            for options in [same_server(REDIS_NEWEST, 100), same_server(REDIS, 100)] {
                let at_once = told(&snapshot, options, || snapshot.len());
                assert_eq!(at_once.error.map(|error| error.offset), Some(offset));
                let places = [20, limit / 2, limit, 3 * limit / 2, offset as usize + 1];
                for cut in places
                    .into_iter()
                    .chain(offset as usize - 10..snapshot.len())
                {
                    let in_pieces = told_with_cut(&snapshot, options, cut);
                    assert_eq!(at_once, in_pieces, "{text_bytes} bytes, cut at {cut}");
                }
            }
        }
    }
}

#[test]
fn a_score_that_is_no_number_is_told_alike_however_the_input_is_cut() {
    let mut writer = Writer::new(REDIS, 1);
    writer.out.extend([3, 1, b'k', 1, 1, b'm', 252]);
    writer.out.extend([b'x'; 252]);
    let snapshot = writer.finish(|_| 0);
    for threshold in [0, 1, 100, 254, 255, 256, 257, 1000] {
        for step in [1, 7, 100, 1000] {
            let error = decode(&snapshot, threshold, step).unwrap_err();
            assert_eq!((error.problem, error.offset), (Problem::BadScore, 15));
        }
    }
}

/// How a decoder ends that is given all of `snapshot`: whether it is complete, and has a checksum that is right.
fn end_of(snapshot: &[u8], options: Options) -> Result<(bool, bool), RdbError> {
    let mut decoder = Decoder::new(options);
    let mut reader = decoder.read(snapshot);
    let mut commands = Vec::new();
    let end = loop {
        match reader.next()? {
            Item::NeedMore => break (false, false),
            Item::End { has_checksum } => break (true, has_checksum),
            Item::Value(value) => drop(value.write_restore(&mut commands)),
            Item::Part(part) => drop(part.write_commands(&mut commands, &options.target)),
            _ => {}
        }
        commands.clear();
    };
    assert!(reader.consumed_bytes() <= snapshot.len());
    Ok(end)
}

/// As a target that takes everything in one piece, one that takes only what is small, and one that takes nothing.
fn all_ways(magic: &[u8]) -> [Options; 3] {
    let magic = if magic[0] == b'V' { VALKEY } else { REDIS };
    [
        same_server(magic, 1 << 20),
        same_server(magic, 60),
        by_elements(),
    ]
}

#[test]
fn a_recorded_snapshot_cut_at_any_byte_asks_for_more() {
    let mut cuts = 0;
    for recorded in recorded() {
        let snapshot = &recorded.snapshot;
        let step = if snapshot.len() < 8_000 { 1 } else { 97 };
        for options in all_ways(snapshot) {
            for cut in (0..snapshot.len()).step_by(step) {
                match end_of(&snapshot[..cut], options) {
                    Ok(end) => assert_eq!(end, (false, false), "{} cut at {cut}", recorded.name),
                    Err(error) => panic!("{} cut at {cut}: {error}", recorded.name),
                }
                cuts += 1;
            }
        }
    }
    assert!(cuts > 100_000);
}

#[test]
fn a_recorded_snapshot_with_any_bit_flipped_is_never_taken_as_sound() {
    let mut flips = 0;
    for recorded in recorded() {
        let mut snapshot = recorded.snapshot.clone();
        let bits: Vec<usize> = match snapshot.len() {
            0..1_000 => (0..8 * snapshot.len()).collect(),
            1_000..8_000 => (0..8 * snapshot.len()).step_by(25).collect(),
            // Little in it that the compressed one does not have, at five times the length.
            _ => continue,
        };
        for options in all_ways(&recorded.snapshot) {
            for bit in &bits {
                snapshot[bit / 8] ^= 1 << (bit % 8);
                match end_of(&snapshot, options) {
                    // A version before checksums were invented.
                    Ok((true, has_checksum)) => assert!(!has_checksum && bit / 8 < 9),
                    Ok((false, _)) => {}
                    Err(error) => assert!(error.offset <= snapshot.len() as u64),
                }
                snapshot[bit / 8] ^= 1 << (bit % 8);
                flips += 1;
            }
        }
    }
    assert!(flips > 100_000);
}

#[test]
fn lengths_near_every_limit_are_errors_or_wait_for_more() {
    let limits = [
        u64::MAX,
        u64::MAX - 1,
        1 << 63,
        (1 << 63) - 1,
        u64::from(u32::MAX),
        slotstream::limits::MAX_STRING_BYTES as u64,
        slotstream::limits::MAX_STRING_BYTES as u64 + 1,
    ];
    for magic in [REDIS, VALKEY] {
        for code in 0..=254u8 {
            // In the place of each of the first numbers of a value.
            for small in 0..12 {
                for length in limits {
                    for filler in [0, 1] {
                        let mut snapshot = magic.to_vec();
                        snapshot.extend([code, 1, b'k']);
                        snapshot.extend(vec![filler; small]);
                        snapshot.push(0x81);
                        snapshot.extend(length.to_be_bytes());
                        snapshot.extend([1; 40]);
                        for options in all_ways(magic) {
                            match end_of(&snapshot, options) {
                                Ok((has_ended, _)) => assert!(!has_ended),
                                Err(error) => assert!(error.offset <= snapshot.len() as u64),
                            }
                        }
                    }
                }
            }
        }
    }
}

fn list_of(type_code: u8, node_form: &[u8], pack: &[u8]) -> Result<Vec<Bytes>, RdbError> {
    let mut writer = Writer::new(REDIS, 1);
    writer.out.extend([type_code, 1, b'k']);
    writer.out.extend(node_form);
    writer.length(pack.len() as u64);
    writer.out.extend(pack);
    let snapshot = writer.finish(|_| 0);
    let got = collect(&snapshot, by_elements(), || snapshot.len())?;
    match got.entries.into_iter().next().map(|entry| entry.content) {
        Some(Content::List(items) | Content::Set(items)) => Ok(items),
        other => panic!("no list but {other:?}"),
    }
}

#[test]
fn a_listpack_may_lie_about_its_size_and_count() {
    let items: Vec<Bytes> = [&b"a"[..], b"17", b"-300", &[b'x'; 100]]
        .map(<[u8]>::to_vec)
        .to_vec();
    let honest = listpack(&items);
    for total in [
        0u32,
        1,
        7,
        honest.len() as u32 - 1,
        honest.len() as u32 + 1,
        u32::MAX,
    ] {
        for count in [0u16, 1, 3, 5, u16::MAX - 1, u16::MAX] {
            let mut pack = honest.clone();
            pack[..4].copy_from_slice(&total.to_le_bytes());
            pack[4..6].copy_from_slice(&count.to_le_bytes());
            // The elements themselves tell where they end.
            assert_eq!(list_of(18, &[1, 2], &pack).unwrap(), items);
        }
    }
    let corrupt = Problem::BadPacked("listpack");
    for end in 0..honest.len() {
        let error = list_of(18, &[1, 2], &honest[..end]).unwrap_err();
        assert_eq!(error.problem, corrupt);
    }
    // An element that claims more than there is, in each form of length.
    for claim in [
        &[0xbf][..],
        &[0xef, 0xff],
        &[0xf0, 0xff, 0xff, 0xff, 0xff],
        &[0xf4, 1],
    ] {
        let pack = [&[0; 6], claim, &[b'x', 2, 0xff]].concat();
        assert_eq!(list_of(18, &[1, 2], &pack).unwrap_err().problem, corrupt);
    }
}

#[test]
fn what_stands_behind_the_end_of_a_pack_is_an_error_and_not_lost() {
    let items = vec![b"a".to_vec(), b"17".to_vec()];
    let more = |pack: &[u8]| [pack, b"\x01\x01\xff"].concat();
    let listpack = listpack(&items);
    assert_eq!(list_of(18, &[1, 2], &listpack).unwrap(), items);
    let error = list_of(18, &[1, 2], &more(&listpack)).unwrap_err();
    assert_eq!(error.problem, Problem::BadPacked("listpack"));
    let ziplist = [&[0; 10][..], b"\0\x01a\x03\xfe\x11\xff"].concat();
    assert_eq!(list_of(10, &[], &ziplist).unwrap(), items);
    let error = list_of(10, &[], &more(&ziplist)).unwrap_err();
    assert_eq!(error.problem, Problem::BadPacked("ziplist"));
}

#[test]
fn an_intset_or_ziplist_may_lie_about_its_count() {
    let intset = |count: u32| [&[2, 0, 0, 0][..], &count.to_le_bytes(), &[5, 0, 6, 0]].concat();
    let ziplist = |tail: u32, count: u16| {
        let head = [
            &u32::MAX.to_le_bytes()[..],
            &tail.to_le_bytes(),
            &count.to_le_bytes(),
        ]
        .concat();
        [&head[..], &[0, 0xfe, 5, 3, 0xfe, 6, 0xff]].concat()
    };
    let items = vec![b"5".to_vec(), b"6".to_vec()];
    for count in [0, 1, 3, u32::MAX] {
        assert_eq!(list_of(11, &[], &intset(count)).unwrap(), items);
        assert_eq!(
            list_of(10, &[], &ziplist(count, count as u16)).unwrap(),
            items
        );
    }
}

#[test]
fn a_stream_node_that_lies_is_an_error() {
    let number = |value: i64| value.to_string().into_bytes();
    // Entries, deleted entries, names, and a name; then one entry with that name.
    for names in [-1, 2, 3, 1000, i64::MAX, i64::MIN] {
        for count in [1, 0, -1, i64::MAX] {
            let head = [
                number(count),
                number(count),
                number(names),
                b"name".to_vec(),
                number(0),
            ];
            let entry = [
                number(2),
                number(0),
                number(0),
                b"value".to_vec(),
                number(4),
            ];
            let node = listpack(&[&head[..], &entry].concat());
            let mut writer = Writer::new(REDIS, 1);
            writer.out.extend([15, 1, b'k', 1, 16]);
            writer.out.extend([1; 16]);
            writer.length(node.len() as u64);
            writer.out.extend(node);
            writer.out.extend([1, 1, 1, 0]);
            let error = collect(&writer.finish(|_| 0), by_elements(), || 100).unwrap_err();
            assert_eq!(error.problem, Problem::BadStream, "{names} names");
        }
    }
}
