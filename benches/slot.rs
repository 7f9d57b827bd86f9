//! Cost of `slot_of` beside the same rule over the `crc16` crate; both must give the same slots.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use slotstream::slot::{hashed_part, slot_of};
use std::hint::black_box;

fn naive(key: &[u8]) -> u16 {
    crc16::State::<crc16::XMODEM>::calculate(hashed_part(key)) % 16384
}

/// Keys as applications name them: all of `len` bytes, with digits that vary.
fn keys(len: usize, tagged: bool) -> Vec<Vec<u8>> {
    (0..1024u32)
        .map(|number| {
            let prefix = if tagged { "{user}:" } else { "user:" };
            let digits = len - prefix.len();
            format!("{prefix}{:0digits$}", number.wrapping_mul(7919)).into_bytes()
        })
        .collect()
}

fn slots(criterion: &mut Criterion) {
    for (name, len, tagged) in [
        ("16 bytes", 16, false),
        ("24 bytes", 24, false),
        ("64 bytes", 64, false),
        ("tagged 24 bytes", 24, true),
    ] {
        let keys = keys(len, tagged);
        for key in &keys {
            assert_eq!(slot_of(key), naive(key), "{}", key.escape_ascii());
        }
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(keys.len() as u64));
        group.bench_function("slot_of", |bench| {
            bench.iter(|| {
                keys.iter()
                    .fold(0u16, |sum, key| sum ^ slot_of(black_box(key)))
            });
        });
        group.bench_function("crc16 crate", |bench| {
            bench.iter(|| {
                keys.iter()
                    .fold(0u16, |sum, key| sum ^ naive(black_box(key)))
            });
        });
        group.finish();
    }
}

criterion_group!(benches, slots);
criterion_main!(benches);
