//! The decoder's memory: whatever a value holds, it stays under one bound.
//!
//! Snapshots are made while they are read, piece by piece, and decoded as the engine does: into a buffer that grows only when
//! the decoder cannot go on otherwise, each item turned into commands. An allocator counts what all of that holds at a time.
//!
//! By default values have some 50 MB, more than the bound. `SLOTSTREAM_FULL_SIZES=1` takes a list of 2 GiB, a hash of 5
//! million fields (`SLOTSTREAM_FULL_SIZES=50` for 50 million) and strings of 512 MiB; best with `--release`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use slotstream::limits;
use slotstream::rdb::{Content, Decoder, Item, Lineage, Options, TargetFormat};

/// What decoder, input buffer and commands may hold.
const BOUND: usize = 32 << 20;

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// One measurement at a time: all threads count together.
static TURN: Mutex<()> = Mutex::new(());

fn count(bytes: usize) {
    let held = HELD.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(held, Relaxed);
}

// SAFETY: every call is passed on to the system's allocator as it is, which keeps the contract; only numbers are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `block` came from the system's allocator by `alloc` or `realloc` with this layout.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as for `dealloc`, and `size` is the caller's.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many million fields the large hash has, if full sizes are asked for.
fn full_sizes() -> Option<u64> {
    let asked = std::env::var("SLOTSTREAM_FULL_SIZES").ok()?;
    Some(asked.parse::<u64>().map_or(5, |million| million.max(5)))
}

fn sized(full: u64, usual: u64) -> u64 {
    if full_sizes().is_some() { full } else { usual }
}

fn length(value: u64) -> Vec<u8> {
    [&[0x81][..], &value.to_be_bytes()].concat()
}

fn text(text: &[u8]) -> Vec<u8> {
    [&length(text.len() as u64), text].concat()
}

/// The same bytes again and again, a megabyte at a time.
fn repeated(unit: &[u8], times: u64) -> impl Iterator<Item = Vec<u8>> + use<> {
    let unit_bytes = unit.len();
    let per_block = (1 << 20) / unit_bytes as u64 + 1;
    let block = unit.repeat(per_block as usize);
    (0..times.div_ceil(per_block)).map(move |index| {
        let count = per_block.min(times - index * per_block) as usize;
        block[..count * unit_bytes].to_vec()
    })
}

/// A value as it comes.
type Blocks = Box<dyn Iterator<Item = Vec<u8>>>;

/// What the decoder made of a snapshot.
#[derive(Debug, Default)]
struct Seen {
    texts: u64,
    text_bytes: u64,
    pieces: u64,
    peak: usize,
    longest_command: usize,
}

/// Decodes a snapshot of one key of `type_code`, whose value comes in blocks.
fn decode(type_code: u8, value: impl Iterator<Item = Vec<u8>>) -> Seen {
    let _turn = TURN.lock().unwrap_or_else(|broken| broken.into_inner());
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    let target = TargetFormat::of_server(Lineage::Redis, 8, 0);
    let mut decoder = Decoder::new(Options::new(target));
    let mut seen = Seen::default();
    let mut buffer: Vec<u8> = Vec::with_capacity(limits::CHUNK_BYTES);
    let mut commands = Vec::new();
    let head = [&b"REDIS0012"[..], &[type_code, 1, b'k']].concat();
    let blocks = std::iter::once(head).chain(value);
    let mut has_ended = false;
    for block in blocks.chain(std::iter::once([&[255][..], &[0; 8]].concat())) {
        for input in block.chunks(200_000) {
            buffer.extend_from_slice(input);
            let mut reader = decoder.read(&buffer);
            loop {
                match reader.next().unwrap() {
                    Item::NeedMore => break,
                    Item::End { .. } => {
                        has_ended = true;
                        break;
                    }
                    Item::Part(part) => {
                        commands.clear();
                        part.write_commands(&mut commands, &target).unwrap();
                        seen.longest_command = seen.longest_command.max(commands.len());
                        seen.see(&part.content);
                        let gathered = part.gathered.iter().map(|text| text.bytes);
                        seen.text_bytes += gathered.sum::<u64>();
                    }
                    Item::Header { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            let consumed = reader.consumed_bytes();
            drop(reader);
            buffer.drain(..consumed);
        }
    }
    assert!(has_ended);
    seen.peak = PEAK.load(Relaxed) - before;
    assert!(seen.peak < BOUND, "{seen:?}");
    // Commands that a target executes in a few milliseconds.
    assert!(
        seen.longest_command < 2 * limits::LONG_TEXT_BYTES,
        "{seen:?}"
    );
    seen
}

impl Seen {
    fn see(&mut self, content: &Content<'_>) {
        let texts = match *content {
            Content::Piece { .. } => {
                self.pieces += 1;
                return;
            }
            Content::String { bytes, .. } => {
                self.text_bytes += bytes.len() as u64;
                return;
            }
            Content::List { items, .. } => items,
            Content::Set { members } => members,
            Content::SortedSet { members, .. } => members,
            Content::Hash { pairs, .. } => pairs,
            Content::Stream(pieces) => {
                for piece in pieces.iter() {
                    if let slotstream::rdb::StreamPiece::Entry { pairs, .. } = piece {
                        self.texts += pairs.len() as u64;
                        self.text_bytes += pairs.iter().map(|text| text.len() as u64).sum::<u64>();
                    }
                }
                return;
            }
        };
        self.texts += texts.len() as u64;
        self.text_bytes += texts.iter().map(|text| text.len() as u64).sum::<u64>();
    }
}

/// A listpack of `elements` (each as stored), as the string that a snapshot holds: head, blocks, end.
fn listpack(bytes: u64, elements: impl Iterator<Item = Vec<u8>>) -> impl Iterator<Item = Vec<u8>> {
    let head = [length(bytes + 7), vec![0; 6]].concat();
    let blocks = std::iter::once(head).chain(elements);
    blocks.chain(std::iter::once(vec![0xff]))
}

/// One listpack string of `bytes` bytes, and how long it is as stored.
fn listpack_string(bytes: u64) -> (u64, impl Iterator<Item = Vec<u8>>) {
    let head = [&[0xf0][..], &(bytes as u32).to_le_bytes()].concat();
    let behind = match bytes + 5 {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        2_097_152..=268_435_455 => 4,
        _ => 5,
    };
    let blocks = std::iter::once(head).chain(repeated(b"x", bytes));
    let all = blocks.chain(std::iter::once(vec![0; behind]));
    (5 + bytes + behind as u64, all)
}

#[test]
fn a_list_of_short_elements() {
    let count = sized((2 << 30) / 64, 1_000_000);
    let element = text(&[b'e'; 55]);
    let blocks = std::iter::once(length(count)).chain(repeated(&element, count));
    let seen = decode(1, blocks);
    assert_eq!((seen.texts, seen.text_bytes), (count, 55 * count));
}

#[test]
fn a_list_of_nodes() {
    // Nodes of 8 KiB, as servers make them.
    let count = sized((2 << 30) / 8192, 7000);
    let entries: Vec<u8> = [&[0x80 | 60][..], &[b'e'; 60], &[61]].concat().repeat(132);
    let node = listpack(entries.len() as u64, std::iter::once(entries.clone()));
    let node: Vec<u8> = std::iter::once(vec![2]).chain(node).flatten().collect();
    let blocks = std::iter::once(length(count)).chain(repeated(&node, count));
    assert_eq!(decode(18, blocks).texts, count * 132);
}

#[test]
fn a_hash_of_many_fields() {
    let count = full_sizes().map_or(700_000, |million| million * 1_000_000);
    let fields = (0..count).step_by(1000).map(|first| {
        let numbers = first..first + 1000;
        numbers
            .flat_map(|number| {
                [
                    text(format!("field:{number}").as_bytes()),
                    text(&[b'v'; 40]),
                ]
            })
            .flatten()
            .collect()
    });
    let seen = decode(4, std::iter::once(length(count)).chain(fields));
    assert_eq!(seen.texts, 2 * count);
}

#[test]
fn a_long_string() {
    let bytes = sized(512 << 20, 50_000_000);
    let raw = std::iter::once(length(bytes)).chain(repeated(b"0123456789", bytes / 10));
    let raw = raw.chain(std::iter::once(vec![b'0'; (bytes % 10) as usize]));
    assert_eq!(decode(0, raw).text_bytes, bytes);
    // Compressed: one letter, then copies of 264 from one back.
    let copies = bytes / 264;
    let plain = 1 + copies * 264;
    let head = [
        &[0xc3][..],
        &length(2 + 3 * copies),
        &length(plain),
        &[0, b'z'],
    ]
    .concat();
    let packed = std::iter::once(head).chain(repeated(&[0xe0, 255, 0], copies));
    assert_eq!(decode(0, packed).text_bytes, plain);
}

#[test]
fn single_long_elements() {
    let bytes = sized(512 << 20, 50_000_000);
    let long = || std::iter::once(length(bytes)).chain(repeated(b"x", bytes));
    let head = |count| std::iter::once(length(count));
    let short = || std::iter::once(text(b"short"));
    // A list, a set, a sorted set, a hash.
    let values: [(u8, Blocks, u64); 5] = [
        (1, Box::new(head(2).chain(short()).chain(long())), 2),
        (2, Box::new(head(2).chain(long()).chain(short())), 2),
        (5, Box::new(head(1).chain(long()).chain([vec![0; 8]])), 1),
        (4, Box::new(head(1).chain(short()).chain(long())), 2),
        (4, Box::new(head(1).chain(long()).chain(long())), 2),
    ];
    for (type_code, value, texts) in values {
        let seen = decode(type_code, value);
        assert_eq!(seen.texts, texts);
        assert!(seen.pieces >= bytes / limits::PART_BYTES as u64);
        assert!(seen.text_bytes >= bytes);
    }
}

#[test]
fn large_packed_strings() {
    // A sorted set in one listpack, by configuration of the source.
    let count = sized(3_000_000, 1_000_000);
    let pair: Vec<u8> = [&[0x80 | 40][..], &[b'm'; 40], &[41], &[5, 1]].concat();
    let seen = decode(
        17,
        listpack(count * pair.len() as u64, repeated(&pair, count)),
    );
    assert_eq!(seen.texts, count);
    // A set of integers.
    let head = [length(8 + 8 * count), 8u32.to_le_bytes().into(), vec![0; 4]].concat();
    let intset = std::iter::once(head).chain(repeated(&7u64.to_le_bytes(), count));
    assert_eq!(decode(11, intset).texts, count);
    // A hash in a listpack with one long value, and a node of a stream with another.
    let bytes = sized(512 << 20, 50_000_000);
    let (stored, value) = listpack_string(bytes);
    let hash = std::iter::once(vec![0x81, b'f', 2]).chain(value);
    let seen = decode(16, listpack(3 + stored, hash));
    assert_eq!((seen.texts, seen.text_bytes), (2, 1 + bytes));
    assert!(seen.pieces > 0);
    // Count, deleted, fields, name, end | flags, two deltas | length.
    let (stored, value) = listpack_string(bytes);
    let before = vec![1, 1, 0, 1, 1, 1, 0x81, b'n', 2, 0, 1, 2, 1, 0, 1, 0, 1];
    let node_bytes = before.len() as u64 + stored + 2;
    let node = std::iter::once(before).chain(value).chain([vec![4, 1]]);
    let head = [&[1][..], &text(&[0; 16])].concat();
    let stream = std::iter::once(head)
        .chain(listpack(node_bytes, node))
        .chain([vec![1, 0, 0, 0]]);
    let seen = decode(15, stream);
    assert_eq!((seen.texts, seen.text_bytes), (2, 1 + bytes));
    assert!(seen.pieces > 0);
}
