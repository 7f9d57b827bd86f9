//! The command scanner and the reply scanner beside their naive twins; all must give the same answers.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use slotstream::resp::{ReplyScanner, ReplySink, parse_value, scan};
use std::hint::black_box;

/// The scanner as one would write it first: every argument copied.
fn naive_command(bytes: &[u8]) -> (Vec<Vec<u8>>, usize) {
    fn line(bytes: &[u8], at: usize) -> (usize, usize) {
        let end = at + bytes[at..].windows(2).position(|w| w == b"\r\n").unwrap();
        let number = std::str::from_utf8(&bytes[at + 1..end]).unwrap();
        (number.parse().unwrap(), end + 2)
    }
    let (count, mut at) = line(bytes, 0);
    let mut args = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, start) = line(bytes, at);
        args.push(bytes[start..start + length].to_vec());
        at = start + length + 2;
    }
    (args, at)
}

fn set(key: usize, value: usize) -> Vec<u8> {
    let (key, value) = (format!("key:{key:012}"), "x".repeat(value));
    format!(
        "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{value}\r\n",
        key.len(),
        value.len()
    )
    .into_bytes()
}

fn commands(criterion: &mut Criterion) {
    let fixed: Vec<u8> = (0..1000).flat_map(|number| set(number, 64)).collect();
    // Lengths that no predictor learns.
    let mixed: Vec<u8> = (0..1000)
        .flat_map(|number| set(number, (number * 7919) % 300))
        .collect();
    for (name, bytes) in [("SET of 64 bytes", fixed), ("SET of 0 to 299 bytes", mixed)] {
        let mut at = 0;
        while at < bytes.len() {
            let frame = scan(&bytes[at..]).unwrap().unwrap();
            let (args, length) = naive_command(&bytes[at..]);
            assert_eq!(frame.bytes().len(), length);
            assert!(frame.args().eq(args.iter().map(Vec::as_slice)));
            at += length;
        }
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(1000));
        group.bench_function("scan", |bench| {
            bench.iter(|| {
                let mut rest = black_box(bytes.as_slice());
                let mut args = 0;
                while let Some(frame) = scan(rest).unwrap() {
                    args += frame.argc();
                    rest = &rest[frame.bytes().len()..];
                }
                assert_eq!(args, 3000);
            });
        });
        group.bench_function("naive", |bench| {
            bench.iter(|| {
                let mut rest = black_box(bytes.as_slice());
                let mut args = 0;
                while !rest.is_empty() {
                    let (found, length) = naive_command(rest);
                    args += found.len();
                    rest = &rest[length..];
                }
                assert_eq!(args, 3000);
            });
        });
        group.finish();
    }
}

#[derive(Default)]
struct Count {
    succeeded: u64,
    failed: u64,
}

impl ReplySink for Count {
    fn succeeded(&mut self, count: u64) {
        self.succeeded += count;
    }
    fn failed(&mut self, _: &[u8], _: Option<usize>) {
        self.failed += 1;
    }
}

fn replies(criterion: &mut Criterion) {
    let plain = b"+OK\r\n".repeat(1000);
    let mixed = b"+OK\r\n:12345\r\n$5\r\nhello\r\n*2\r\n:1\r\n$-1\r\n:7\r\n".repeat(200);
    for (name, bytes) in [("+OK", plain), ("mixed replies", mixed)] {
        let naive = |bytes: &[u8]| {
            let (mut count, mut at) = (0, 0);
            while let Some((_, length)) = parse_value(&bytes[at..]) {
                count += 1;
                at += length;
            }
            count
        };
        let scanned = |bytes: &[u8]| {
            let mut count = Count::default();
            ReplyScanner::default().feed(bytes, &mut count).unwrap();
            assert_eq!(count.failed, 0);
            count.succeeded
        };
        assert_eq!((scanned(&bytes), naive(&bytes)), (1000, 1000));
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(1000));
        group.bench_function("scanner", |bench| bench.iter(|| scanned(black_box(&bytes))));
        group.bench_function("values", |bench| bench.iter(|| naive(black_box(&bytes))));
        group.finish();
    }
}

criterion_group!(benches, commands, replies);
criterion_main!(benches);
