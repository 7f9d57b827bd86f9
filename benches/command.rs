//! Cost of finding a command's row, and of row and slot together, beside the obvious map of lower-cased names.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use slotstream::command::{self, COMMANDS, Command, SlotOf};
use slotstream::resp::{Frame, scan};
use std::collections::HashMap;
use std::hint::black_box;

/// A mix as a busy stream has it; the mark of origin is a lower first letter.
const VERBS: [&str; 16] = [
    "SET",
    "sET",
    "del",
    "HSET",
    "hSET",
    "INCR",
    "ZADD",
    "PEXPIREAT",
    "pEXPIREAT",
    "LPUSH",
    "unlink",
    "SADD",
    "XADD",
    "INCRBYFLOAT",
    "MULTI",
    "ZREMRANGEBYSCORE",
];

fn naive<'a>(map: &HashMap<Vec<u8>, &'a Command>, verb: &[u8]) -> Option<&'a Command> {
    map.get(&verb.to_ascii_lowercase()).copied()
}

fn lookups(criterion: &mut Criterion) {
    let map: HashMap<Vec<u8>, &Command> = COMMANDS
        .iter()
        .map(|command| (command.name.as_bytes().to_vec(), command))
        .collect();
    for verb in VERBS {
        let found = command::lookup(verb.as_bytes()).expect(verb);
        assert_eq!(
            Some(&found.name),
            naive(&map, verb.as_bytes()).map(|row| &row.name)
        );
    }
    let mut group = criterion.benchmark_group("16 verbs");
    group.throughput(Throughput::Elements(VERBS.len() as u64));
    group.bench_function("lookup", |bench| {
        bench.iter(|| {
            VERBS
                .iter()
                .filter(|verb| command::lookup(black_box(verb.as_bytes())).is_some())
                .count()
        });
    });
    group.bench_function("map of lower-cased names", |bench| {
        bench.iter(|| {
            VERBS
                .iter()
                .filter(|verb| naive(&map, black_box(verb.as_bytes())).is_some())
                .count()
        });
    });
    group.finish();
}

/// What the engine asks of each frame: row, slot, replay safety.
fn ask(frame: &Frame<'_>) -> (SlotOf, bool) {
    let command = command::find(frame).expect("a known command");
    let slot = command::one_slot(frame, command).expect("keys");
    (slot, command::replay_safe(frame, command))
}

fn questions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("row, slot and safety");
    for (name, bytes) in [
        ("SET", &b"*3\r\n$3\r\nSET\r\n$16\r\n{foo}:0123456789\r\n$1\r\nv\r\n"[..]),
        ("DEL of 1", b"*2\r\n$3\r\nDEL\r\n$16\r\n{foo}:0123456789\r\n"),
        (
            "MSET of 3",
            b"*7\r\n$4\r\nMSET\r\n$5\r\n{foo}\r\n$1\r\n1\r\n$6\r\n{foo}2\r\n$1\r\n2\r\n$6\r\n{foo}3\r\n$1\r\n3\r\n",
        ),
        (
            "SET with a time",
            b"*5\r\n$3\r\nsET\r\n$3\r\nfoo\r\n$1\r\nv\r\n$4\r\nPXAT\r\n$13\r\n1700000000000\r\n",
        ),
    ] {
        let frame = scan(bytes).unwrap().unwrap();
        assert_eq!(ask(&frame), (SlotOf::One(12182), true), "{name}");
        group.bench_function(name, |bench| bench.iter(|| ask(black_box(&frame))));
    }
    group.finish();
}

criterion_group!(benches, lookups, questions);
criterion_main!(benches);
