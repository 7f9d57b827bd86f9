//! The decoder against snapshots written in every encoding, cut into pieces of every length, and damaged.

mod collect;
mod corpus;
mod differential;
mod hostile;
mod servers;
mod special;
mod writer;

use collect::collect;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use slotstream::rdb::{Lineage, Modules, Options, TargetFormat};
use std::collections::BTreeMap;
use writer::{Bytes, Content, Dice, Entry, Group, Producers, Stream, Writer};

const REDIS: &[u8; 9] = b"REDIS0012";
const REDIS_NEWEST: &[u8; 9] = b"REDIS0016";
const VALKEY: &[u8; 9] = b"VALKEY080";

/// A target that cannot restore anything, so that every value comes by elements.
fn by_elements() -> Options {
    Options {
        value_threshold_bytes: 1 << 20,
        ..Options::new(TargetFormat {
            lineage: Lineage::Redis,
            max_rdb_version: 0,
            modules: Modules::NONE,
        })
    }
}

fn same_server(magic: &[u8; 9], value_threshold_bytes: usize) -> Options {
    let target = match magic {
        REDIS => TargetFormat::of_server(Lineage::Redis, 8, 0),
        REDIS_NEWEST => TargetFormat::of_server(Lineage::Redis, 8, 10),
        _ => TargetFormat::of_server(Lineage::Valkey, 9, 1),
    };
    Options {
        value_threshold_bytes,
        ..Options::new(target)
    }
}

/// The definition, bit by bit.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0u64, |crc, byte| {
        (0..8).fold(crc ^ u64::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x95ac_9329_ac4b_c9b5 * (crc & 1))
        })
    })
}

fn text() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => vec(any::<u8>(), 0..20),
        3 => any::<i64>().prop_map(|value| value.to_string().into_bytes()),
        2 => any::<i16>().prop_map(|value| value.to_string().into_bytes()),
        1 => (0i64..200).prop_map(|value| value.to_string().into_bytes()),
        1 => vec(any::<u8>(), 60..70),
        1 => (any::<u8>(), 1usize..9000).prop_map(|(byte, count)| vec![byte; count]),
        1 => vec(prop_oneof![Just(b'a'), Just(b'b')], 100..600),
    ]
}

fn score() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<i32>().prop_map(f64::from),
        any::<f64>().prop_filter("not a number", |score| !score.is_nan()),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
    ]
}

fn id() -> impl Strategy<Value = (u64, u64)> {
    (1u64..50, 0u64..1000)
}

/// Groups over the given entries: each id is pending with one consumer at most.
fn group() -> impl Strategy<Value = Group> {
    let consumer = btree_set(id(), 0..6);
    (
        id(),
        -1i64..9,
        btree_map(text(), consumer, 0..3),
        vec((any::<u32>(), 1u64..4), 1..5),
        vec(id(), 0..3),
    )
        .prop_map(|(last_id, entries_read, wishes, deliveries, returned)| {
            let mut taken = BTreeMap::new();
            let mut consumers = BTreeMap::new();
            for (name, ids) in wishes {
                let ids = ids.into_iter().filter(|id| taken.insert(*id, ()).is_none());
                let pending = ids.enumerate().map(|(index, id)| {
                    let (at, count) = deliveries[index / 2 % deliveries.len()];
                    (id, (u64::from(at), count))
                });
                consumers.insert(name, pending.collect());
            }
            Group {
                last_id,
                entries_read,
                consumers,
                returned,
            }
        })
}

fn stream() -> impl Strategy<Value = Stream> {
    let pairs = vec((text(), text()), 1..4);
    (
        btree_map(id(), pairs, 0..14),
        any::<bool>(),
        id(),
        any::<u64>(),
        btree_map(text(), group(), 0..3),
        producers(),
    )
        .prop_map(
            |(mut entries, alike, max_deleted_id, entries_added, groups, producers)| {
                if alike && let Some(first) = entries.values().next().cloned() {
                    entries
                        .values_mut()
                        .for_each(|pairs| *pairs = first.clone());
                }
                let last_id = entries.keys().next_back().copied().unwrap_or((60, 1));
                Stream {
                    entries,
                    last_id,
                    max_deleted_id,
                    entries_added,
                    groups,
                    producers,
                }
            },
        )
}

fn producers() -> impl Strategy<Value = Producers> {
    let names = btree_map(text(), vec((text(), id()), 1..3), 0..3);
    (any::<u32>(), any::<u32>(), names).prop_map(|(seconds, entries, names)| {
        let names = names.into_iter().flat_map(|(producer, entries)| {
            let name = move |(name, id)| (producer.clone(), name, id);
            entries.into_iter().map(name)
        });
        Producers {
            limits: Some((seconds.into(), entries.into())),
            names: names.collect(),
        }
    })
}

fn content() -> impl Strategy<Value = Content> {
    let integers = btree_set(any::<i64>(), 1..20).prop_map(|set| {
        set.into_iter()
            .map(|value| value.to_string().into_bytes())
            .collect()
    });
    let texts = btree_set(text(), 1..20).prop_map(|set| set.into_iter().collect());
    let deadline = option::of(1_700_000_000_000u64..1_900_000_000_000);
    prop_oneof![
        text().prop_map(Content::String),
        vec(text(), 1..20).prop_map(Content::List),
        prop_oneof![integers, texts].prop_map(Content::Set),
        btree_map(text(), score(), 1..20).prop_map(Content::SortedSet),
        btree_map(text(), (text(), Just(None)), 1..20).prop_map(Content::Hash),
        btree_map(text(), (text(), deadline), 1..20).prop_map(Content::Hash),
        stream().prop_map(Content::Stream),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let expiry = option::of(1u64..2_000_000_000_000);
    (
        text(),
        expiry,
        option::of(0u64..1_000_000),
        option::of(any::<u8>()),
        content(),
    )
        .prop_map(
            |(key, expire_at_ms, idle_seconds, frequency, content)| Entry {
                key,
                database: 0,
                expire_at_ms,
                idle_seconds,
                frequency: frequency.filter(|_| idle_seconds.is_none()),
                content,
            },
        )
}

fn write(magic: &[u8; 9], entries: &[Entry], seed: u64) -> Bytes {
    let mut writer = Writer::new(magic, seed);
    writer.aux(b"redis-ver", b"1234");
    writer.function(b"#!lua name=a\n");
    writer.select(7);
    entries.iter().for_each(|entry| writer.entry(entry));
    writer.finish(checksum)
}

/// What the format itself does not keep in the encoding that was chosen.
fn comparable(content: &Content, other: &Content) -> Content {
    let mut content = content.clone();
    if let (Content::Stream(stream), Content::Stream(other)) = (&mut content, other)
        && (other.entries_added, other.max_deleted_id) == (0, (0, 0))
    {
        // Version 1 of the encoding has no counters.
        (stream.entries_added, stream.max_deleted_id) = (0, (0, 0));
        for group in stream.groups.values_mut() {
            group.entries_read = 0;
        }
    }
    if let (Content::Stream(stream), Content::Stream(other)) = (&mut content, other) {
        // Those before version 4 know no producers, those before 5 no returned entries.
        if other.producers.limits.is_none() {
            stream.producers = Producers::default();
        }
        if other.groups.values().all(|group| group.returned.is_empty()) {
            let groups = stream.groups.values_mut();
            groups.for_each(|group| group.returned.clear());
        }
    }
    content
}

fn count_commands(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Ok(Some(frame)) = slotstream::resp::scan(bytes) {
        bytes = &bytes[frame.bytes().len()..];
        count += 1;
    }
    assert!(bytes.is_empty(), "{:?}", String::from_utf8_lossy(bytes));
    count
}

fn magics() -> impl Strategy<Value = &'static [u8; 9]> {
    prop_oneof![Just(REDIS), Just(REDIS_NEWEST), Just(VALKEY)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_was_written_comes_out_by_elements(
        magic in magics(),
        entries in vec(entry(), 0..8),
        seed in any::<u64>(),
        longest_piece in prop_oneof![Just(1usize), 2usize..40, 100usize..5000],
        long_text_bytes in prop_oneof![Just(usize::MAX), 0usize..100, 100usize..9000],
    ) {
        let snapshot = write(magic, &entries, seed);
        let mut dice = Dice::new(seed);
        let options = Options { long_text_bytes, ..by_elements() };
        let got = collect(&snapshot, options, || 1 + dice.below(longest_piece)).unwrap();
        prop_assert!(got.has_ended && got.has_checksum);
        prop_assert_eq!(&got.aux, &vec![(b"redis-ver".to_vec(), b"1234".to_vec())]);
        prop_assert_eq!(&got.functions, &vec![b"#!lua name=a\n".to_vec()]);
        prop_assert_eq!(got.entries.len(), entries.len());
        for (got, put) in got.entries.iter().zip(&entries) {
            prop_assert_eq!(&got.key, &put.key);
            prop_assert_eq!(got.database, 7);
            prop_assert_eq!(got.expire_at_ms, put.expire_at_ms);
            prop_assert_eq!(&got.content, &comparable(&put.content, &got.content));
        }
    }

    #[test]
    fn values_that_pass_whole_keep_their_bytes_and_their_command_counts_are_right(
        magic in magics(),
        entries in vec(entry(), 0..8),
        seed in any::<u64>(),
        longest_piece in prop_oneof![Just(1usize), 2usize..40, 100usize..5000],
        threshold in prop_oneof![Just(0usize), 1usize..2000, Just(1 << 20)],
        long_text_bytes in prop_oneof![Just(usize::MAX), 0usize..9000],
    ) {
        let snapshot = write(magic, &entries, seed);
        let mut dice = Dice::new(seed);
        let options = Options { long_text_bytes, ..same_server(magic, threshold) };
        let got = collect(&snapshot, options, || 1 + dice.below(longest_piece)).unwrap();
        prop_assert_eq!(got.whole.len() + got.entries.len(), entries.len());
        prop_assert_eq!(count_commands(&got.commands), got.command_count);
        for (key, type_code, serialized) in &got.whole {
            prop_assert!(serialized.len() <= threshold);
            prop_assert!(entries.iter().any(|entry| entry.key == *key));
            // The bytes alone are the same value again.
            let mut alone = Writer::new(magic, seed);
            alone.out.push(*type_code);
            alone.text(key);
            alone.out.extend(serialized);
            let again = collect(&alone.finish(|_| 0), by_elements(), || 1 << 20).unwrap();
            prop_assert!(again.has_ended && !again.has_checksum);
            let again = &again.entries[0].content;
            let same = |put: &Entry| put.key == *key && comparable(&put.content, again) == *again;
            prop_assert!(entries.iter().any(same));
        }
    }

    #[test]
    fn damage_is_an_error_or_a_different_snapshot_but_never_a_panic(
        magic in magics(),
        entries in vec(entry(), 1..5),
        seed in any::<u64>(),
        flips in vec((any::<prop::sample::Index>(), 1u8..=255), 1..4),
        cut in any::<prop::sample::Index>(),
        threshold in prop_oneof![Just(0usize), 1usize..2000, Just(1 << 20)],
        truncate in any::<bool>(),
    ) {
        let mut snapshot = write(magic, &entries, seed);
        if truncate {
            snapshot.truncate(cut.index(snapshot.len()));
        } else {
            for (index, bits) in &flips {
                let at = index.index(snapshot.len());
                snapshot[at] ^= bits;
            }
        }
        let in_pieces = Options { long_text_bytes: 50, ..by_elements() };
        for options in [by_elements(), in_pieces, same_server(magic, threshold)] {
            let mut dice = Dice::new(seed);
            match collect(&snapshot, options, || 1 + dice.below(500)) {
                Ok(got) => prop_assert!(!(got.has_ended && got.has_checksum)),
                Err(error) => prop_assert!(error.offset <= snapshot.len() as u64),
            }
        }
    }
}
