//! The snapshot decoder: what a key costs on its way from snapshot to RESTORE, and its parts.
//!
//! Each benchmark first checks its answer. `cargo bench --bench rdb`.

#[path = "../tests/rdb/writer.rs"]
#[allow(dead_code, reason = "the snapshot writer of the tests")]
mod writer;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use slotstream::cli::rdb::json::JsonWriter;
use slotstream::rdb::{Decoder, Form, Item, Lineage, Options, TargetFormat, crc64};
use std::collections::BTreeMap;
use std::hint::black_box;
use writer::{Content, Entry, Writer};

/// The classic table, a byte at a time: what the servers do.
fn naive_crc64(table: &[u64; 256], crc: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(crc, |crc, byte| {
        table[usize::from(crc as u8 ^ byte)] ^ (crc >> 8)
    })
}

fn crc64_table() -> [u64; 256] {
    std::array::from_fn(|byte| {
        (0..8).fold(byte as u64, |crc, _| {
            (crc >> 1) ^ (0x95ac_9329_ac4b_c9b5 * (crc & 1))
        })
    })
}

/// The decoder as one would write it first: the whole snapshot in memory, every key and value copied, the footer's
/// checksum by the table. Knows what these benchmarks hold: strings, and hashes of plain strings or in one listpack.
struct Naive<'a> {
    rest: &'a [u8],
    table: [u64; 256],
}

impl Naive<'_> {
    fn take(&mut self, count: usize) -> Vec<u8> {
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        taken.to_vec()
    }

    fn length(&mut self) -> usize {
        let first = self.take(1)[0];
        match first >> 6 {
            0 => usize::from(first & 0x3f),
            1 => usize::from(first & 0x3f) << 8 | usize::from(self.take(1)[0]),
            2 if first == 0x80 => u32::from_be_bytes(self.take(4).try_into().unwrap()) as usize,
            _ => panic!("no plain length"),
        }
    }

    fn string(&mut self) -> Vec<u8> {
        let length = self.length();
        self.take(length)
    }

    /// All keys as RESTORE commands.
    fn restore_all(mut self, footer_version: u16) -> Vec<u8> {
        let mut out = Vec::new();
        self.take(9);
        loop {
            let code = self.take(1)[0];
            match code {
                0xfe => drop(self.length()),
                0xff => return out,
                0xfa => drop((self.string(), self.string())),
                0xfb => drop((self.length(), self.length())),
                0 | 4 | 16 | 17 | 20 => {
                    let key = self.string();
                    let before = self.rest;
                    let strings = if code == 4 { 2 * self.length() } else { 1 };
                    (0..strings).for_each(|_| drop(self.string()));
                    let mut payload = vec![code];
                    payload.extend_from_slice(&before[..before.len() - self.rest.len()]);
                    payload.extend_from_slice(&footer_version.to_le_bytes());
                    let checksum = naive_crc64(&self.table, 0, &payload);
                    payload.extend_from_slice(&checksum.to_le_bytes());
                    let args: [&[u8]; 6] =
                        [b"RESTORE", &key, b"0", &payload, b"REPLACE", b"ABSTTL"];
                    out.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
                    for arg in args {
                        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
                        out.extend_from_slice(arg);
                        out.extend_from_slice(b"\r\n");
                    }
                }
                other => panic!("code {other} is not in these benchmarks"),
            }
        }
    }
}

/// JSON as one would write it first: a tree for each key, printed. For snapshots of plain strings only.
fn naive_json(snapshot: &[u8]) -> Vec<u8> {
    let mut naive = Naive {
        rest: &snapshot[9..],
        table: [0; 256],
    };
    let mut out = b"{\"snapshot\":\"redis\",\"version\":12}\n".to_vec();
    loop {
        match naive.take(1)[0] {
            0xfe => drop(naive.length()),
            0xff => return out,
            0 => {
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                let key = serde_json::Value::from(text(naive.string()));
                let value = serde_json::Value::from(text(naive.string()));
                let line = format!(
                    "{{\"db\":0,\"key\":{key},\"type\":\"string\",\"encoding\":\"string\",\"value\":{value}}}\n"
                );
                out.extend_from_slice(line.as_bytes());
            }
            other => panic!("code {other} is not in these benchmarks"),
        }
    }
}

fn entry(key: String, content: Content) -> Entry {
    Entry {
        key: key.into_bytes(),
        database: 0,
        expire_at_ms: None,
        idle_seconds: None,
        frequency: None,
        content,
    }
}

fn snapshot(entries: impl Iterator<Item = Entry>) -> Vec<u8> {
    let mut writer = Writer::plain(b"REDIS0012");
    writer.select(0);
    entries.for_each(|entry| writer.entry(&entry));
    writer.finish(|bytes| crc64(0, bytes))
}

/// Keys of 16 bytes with values of `bytes` bytes.
fn small_strings(count: usize, bytes: usize) -> Vec<u8> {
    snapshot((0..count).map(|index| {
        let value = format!("{index:0bytes$}").into_bytes();
        entry(format!("key:{index:012}"), Content::String(value))
    }))
}

/// Values of one listpack each.
fn packed(count: usize, type_code: u8, items: impl Fn(usize) -> Vec<String>) -> Vec<u8> {
    let mut writer = Writer::plain(b"REDIS0012");
    writer.select(0);
    for index in 0..count {
        writer.out.push(type_code);
        writer.text(format!("key:{index:012}").as_bytes());
        let items = items(index).into_iter().map(String::into_bytes);
        writer.text(&writer::listpack(&items.collect::<Vec<_>>()));
    }
    writer.finish(|bytes| crc64(0, bytes))
}

fn small_sorted_sets(count: usize) -> Vec<u8> {
    packed(count, 17, |index| {
        let pair = |rank| [format!("member {rank} of {index}"), format!("{rank}.25")];
        (0..20).flat_map(pair).collect()
    })
}

fn small_sets(count: usize) -> Vec<u8> {
    packed(count, 20, |index| {
        (0..20)
            .map(|rank| format!("member {rank} of {index}"))
            .collect()
    })
}

fn small_hashes(count: usize) -> Vec<u8> {
    snapshot((0..count).map(|index| {
        let field = |field| {
            let value = format!("value {index} {field:030}").into_bytes();
            (format!("field{field}").into_bytes(), (value, None))
        };
        let fields: BTreeMap<_, _> = (0..20).map(field).collect();
        entry(format!("key:{index:012}"), Content::Hash(fields))
    }))
}

fn options(value_threshold_bytes: usize) -> Options {
    Options {
        value_threshold_bytes,
        ..Options::new(TargetFormat::of_server(Lineage::Redis, 8, 0))
    }
}

/// Reads all of `snapshot` in pieces of 1 MiB; returns values and the commands' bytes that `write` made.
fn decode(
    snapshot: &[u8],
    options: Options,
    out: &mut Vec<u8>,
    mut write: impl FnMut(Item<'_>, &mut Vec<u8>) -> usize,
) -> (usize, usize) {
    let mut decoder = Decoder::new(options);
    let (mut count, mut bytes) = (0, 0);
    let (mut start, mut end) = (0, 0);
    loop {
        end = (end + (1 << 20)).min(snapshot.len());
        let mut reader = decoder.read(&snapshot[start..end]);
        out.clear();
        loop {
            match reader.next().expect("the snapshot is sound") {
                Item::NeedMore => break,
                Item::End { has_checksum } => {
                    assert!(has_checksum);
                    return (count, bytes + out.len());
                }
                item => count += write(item, out),
            }
        }
        bytes += out.len();
        start += reader.consumed_bytes();
    }
}

fn skip(item: Item<'_>, _: &mut Vec<u8>) -> usize {
    usize::from(matches!(black_box(item), Item::Value(_)))
}

fn restore(item: Item<'_>, out: &mut Vec<u8>) -> usize {
    match item {
        Item::Value(value) => value.write_restore(out),
        _ => 0,
    }
}

fn rebuild(item: Item<'_>, out: &mut Vec<u8>) -> usize {
    match item {
        Item::Part(part) => part
            .write_commands(out, &options(0).target)
            .expect("it is known"),
        _ => 0,
    }
}

fn snapshots(criterion: &mut Criterion) {
    const KEYS: usize = 100_000;
    const PACKS: usize = KEYS / 10;
    for (name, keys, snapshot) in [
        ("strings of 64 bytes", KEYS, small_strings(KEYS, 64)),
        ("strings of 100 bytes", KEYS, small_strings(KEYS, 100)),
        ("hashes", PACKS, small_hashes(PACKS)),
        ("sorted sets", PACKS, small_sorted_sets(PACKS)),
        ("sets", PACKS, small_sets(PACKS)),
    ] {
        let mut out = Vec::with_capacity(4 << 20);
        assert_eq!(decode(&snapshot, options(1 << 20), &mut out, skip).0, keys);
        assert_eq!(
            decode(&snapshot, options(1 << 20), &mut out, restore).0,
            keys
        );

        let naive = || {
            Naive {
                rest: black_box(&snapshot),
                table: crc64_table(),
            }
            .restore_all(12)
        };
        let mut all = Vec::new();
        decode(&snapshot, options(1 << 20), &mut out, |item, out| {
            let before = out.len();
            let written = restore(item, out);
            all.extend_from_slice(&out[before..]);
            written
        });
        assert!(all == naive(), "decoder and naive twin disagree");

        let mut group = criterion.benchmark_group(format!("scan {name}"));
        group.throughput(Throughput::Bytes(snapshot.len() as u64));
        group.bench_function("bytes", |bencher| {
            bencher.iter(|| decode(&snapshot, options(1 << 20), &mut out, skip));
        });
        group.finish();

        let mut group = criterion.benchmark_group(format!("RESTORE {name}"));
        group.throughput(Throughput::Bytes(snapshot.len() as u64));
        group.bench_function("bytes", |bencher| {
            bencher.iter(|| decode(&snapshot, options(1 << 20), &mut out, restore));
        });
        group.bench_function("naive", |bencher| bencher.iter(naive));
        group.finish();

        let mut group = criterion.benchmark_group(format!("elements of {name}"));
        group.throughput(Throughput::Bytes(snapshot.len() as u64));
        group.bench_function("bytes", |bencher| {
            bencher.iter(|| decode(&snapshot, options(0), &mut out, rebuild));
        });
        group.finish();
    }
}

fn json(criterion: &mut Criterion) {
    const KEYS: usize = 100_000;
    const PACKS: usize = KEYS / 10;
    let reading = Options::without_target(Form::Elements).with_whole_texts();
    for (name, snapshot) in [
        ("strings of 64 bytes", small_strings(KEYS, 64)),
        ("hashes", small_hashes(PACKS)),
        ("sorted sets", small_sorted_sets(PACKS)),
        ("sets", small_sets(PACKS)),
    ] {
        let mut unused = Vec::new();
        let is_plain = name.starts_with("strings");
        if is_plain {
            let mut writer = JsonWriter::new();
            decode(&snapshot, reading, &mut unused, |item, _| {
                writer.write(&item);
                0
            });
            assert!(*writer.written() == naive_json(&snapshot));
        }
        let mut group = criterion.benchmark_group(format!("JSON of {name}"));
        group.throughput(Throughput::Bytes(snapshot.len() as u64));
        group.bench_function("bytes", |bencher| {
            let mut writer = JsonWriter::new();
            bencher.iter(|| {
                decode(&snapshot, reading, &mut unused, |item, _| {
                    writer.write(&item);
                    // As often as it would be written to a file.
                    if writer.written().len() > 256 * 1024 {
                        black_box(writer.written()).clear();
                    }
                    0
                })
            });
        });
        if is_plain {
            group.bench_function("naive", |bencher| {
                bencher.iter(|| naive_json(black_box(&snapshot)));
            });
        }
        group.finish();
    }
}

fn checksums(criterion: &mut Criterion) {
    let table = crc64_table();
    for length in [24, 77, 100, 130, 1024, 64 * 1024] {
        let bytes: Vec<u8> = (0..length).map(|index| (index * 31) as u8).collect();
        assert_eq!(crc64(7, &bytes), naive_crc64(&table, 7, &bytes));
        let mut group = criterion.benchmark_group(format!("checksum of {length} bytes"));
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function("ours", |bencher| {
            bencher.iter(|| crc64(0, black_box(&bytes)));
        });
        group.bench_function("table", |bencher| {
            bencher.iter(|| naive_crc64(&table, 0, black_box(&bytes)));
        });
        group.finish();
    }
}

criterion_group!(benches, snapshots, json, checksums);
criterion_main!(benches);
