//! What the targets share: decoding a snapshot in every way that must give the same, and wrapping pieces into one.
//!
//! All choices (how input is cut, which server is the target) follow from the input itself, so a seed is a plain
//! snapshot, payload or command, and a finding is reproduced by its bytes alone.

#[path = "../../rdb/collect.rs"]
pub mod collect;
#[path = "../../resp/naive.rs"]
pub mod naive;
#[path = "../../rdb/writer.rs"]
pub mod writer;

use slotstream::rdb::{
    Decoder, Item, Lineage, Modules, Options, Problem, RdbError, TargetFormat, crc64,
};
use std::io::Write;
use writer::Dice;

/// A target that cannot restore anything, so that every value comes by elements.
pub fn by_elements() -> Options {
    let target = TargetFormat {
        lineage: Lineage::Redis,
        max_rdb_version: 0,
        modules: Modules::NONE,
    };
    Options {
        value_threshold_bytes: 1 << 20,
        ..Options::new(target)
    }
}

/// A target that takes whatever the source has, up to this size, in one piece.
pub fn whole(lineage: Lineage, value_threshold_bytes: usize) -> Options {
    let target = match lineage {
        Lineage::Redis => TargetFormat::of_server(lineage, 8, 0),
        Lineage::Valkey => TargetFormat::of_server(lineage, 9, 1),
    };
    Options {
        value_threshold_bytes,
        ..Options::new(target)
    }
}

/// A target that takes metadata of keys, and hashes that bring their names; strings longer than this come in pieces.
pub fn newest(long_text_bytes: usize, value_threshold_bytes: usize) -> Options {
    Options {
        value_threshold_bytes,
        long_text_bytes,
        ..Options::new(TargetFormat::of_server(Lineage::Redis, 8, 10))
    }
}

/// Random choices that follow from `data`.
pub fn dice(data: &[u8]) -> Dice {
    Dice::new(crc64(0, data))
}

/// Everything that a decoder said.
#[derive(PartialEq)]
pub struct Told {
    /// Of values, the commands that write them.
    pub commands: Vec<u8>,
    /// Why parts of values cannot be written; with the length of `notes` then, which keeps their order.
    pub refusals: Vec<(usize, Problem)>,
    /// Everything else, in words.
    pub notes: Vec<u8>,
    pub end: Result<bool, RdbError>,
}

/// Decodes `snapshot`, given in pieces of the lengths that `next_length` says.
pub fn decode(snapshot: &[u8], options: Options, mut next_length: impl FnMut() -> usize) -> Told {
    let mut decoder = Decoder::new(options);
    let mut told = Told {
        commands: Vec::new(),
        refusals: Vec::new(),
        notes: Vec::new(),
        end: Ok(false),
    };
    let (mut start, mut end, mut count) = (0, 0, 0);
    while told.end == Ok(false) {
        let mut reader = decoder.read(&snapshot[start..end]);
        loop {
            match reader.next() {
                Err(error) => told.end = Err(error),
                Ok(Item::NeedMore) => {}
                Ok(Item::End { .. }) => told.end = Ok(true),
                Ok(item) => {
                    count += note(item, &options, &mut told);
                    continue;
                }
            }
            break;
        }
        let used = reader.consumed_bytes();
        assert!(used <= end - start);
        start += used;
        drop(reader);
        assert_eq!(decoder.consumed_bytes(), start as u64);
        if end == snapshot.len() {
            break;
        }
        end = (end + next_length().max(1)).min(snapshot.len());
    }
    if let Err(error) = told.end {
        assert!(error.offset <= snapshot.len() as u64, "{error}");
    }
    assert_eq!(count_commands(&told.commands), count);
    told
}

/// Returns how many commands were written.
fn note(item: Item<'_>, options: &Options, told: &mut Told) -> usize {
    match item {
        Item::Value(value) => value.write_restore(&mut told.commands),
        Item::Part(part) => {
            let before = told.commands.len();
            match part.write_commands(&mut told.commands, &options.target) {
                Ok(count) => count,
                Err(problem) => {
                    told.commands.truncate(before);
                    told.refusals.push((told.notes.len(), problem));
                    0
                }
            }
        }
        other => {
            writeln!(told.notes, "{other:?}").expect("memory takes all");
            0
        }
    }
}

fn count_commands(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Some(frame) = slotstream::resp::scan(bytes).expect("a command was written") {
        bytes = &bytes[frame.bytes().len()..];
        count += 1;
    }
    assert!(bytes.is_empty());
    count
}

/// Decodes `snapshot` for several targets: at once, and in pieces, with the same result.
pub fn check_snapshot(snapshot: &[u8]) {
    let mut dice = dice(snapshot);
    let lineage = match snapshot.first() {
        Some(b'V') => Lineage::Valkey,
        _ => Lineage::Redis,
    };
    let threshold = dice.below(300);
    let long_text_bytes = dice.below(100);
    for options in [
        by_elements(),
        whole(lineage, threshold),
        whole(Lineage::Redis, 1 << 20),
        newest(long_text_bytes, threshold),
    ] {
        let at_once = decode(snapshot, options, || snapshot.len());
        let longest = 1 + snapshot.len() / [40, 8, 2][dice.below(3)];
        let in_pieces = decode(snapshot, options, || 1 + dice.below(longest));
        at_once.assert_same(&in_pieces);
    }
}

impl Told {
    /// Of a compressed string that is broken, as much is used as had arrived before the break was met: what it holds
    /// before may be told or not (as commands, or that there are none), and may be found wrong first. Else all is the same,
    /// however the input was cut.
    fn assert_same(&self, other: &Told) {
        assert!(self.notes == other.notes);
        if ![self, other]
            .iter()
            .any(|told| told.met_broken_compression())
        {
            assert!(self.commands == other.commands);
            assert_eq!(self.refusals, other.refusals);
            assert_eq!(self.end, other.end);
            return;
        }
        assert!(self.goes_on_from(other) || other.goes_on_from(self));
        let place = |told: &Told| told.end.map_err(|error| error.offset);
        assert_eq!(place(self), place(other));
    }

    fn goes_on_from(&self, other: &Told) -> bool {
        self.commands.starts_with(&other.commands) && self.refusals.starts_with(&other.refusals)
    }

    fn met_broken_compression(&self) -> bool {
        matches!(self.end, Err(error) if error.problem == Problem::BadCompression)
    }
}

/// A snapshot with one key, whose value is `serialized`.
pub fn snapshot_of(lineage: Lineage, type_code: u8, serialized: &[u8]) -> Vec<u8> {
    let mut snapshot = match lineage {
        Lineage::Redis => b"REDIS0012".to_vec(),
        Lineage::Valkey => b"VALKEY080".to_vec(),
    };
    snapshot.extend([type_code, 1, b'k']);
    snapshot.extend(serialized);
    snapshot.push(0xff);
    snapshot.extend([0; 8]);
    snapshot
}

/// A string as snapshots hold it.
pub fn string(text: &[u8]) -> Vec<u8> {
    let mut out = vec![0x80];
    out.extend((text.len() as u32).to_be_bytes());
    out.extend(text);
    out
}

/// What a list decodes to that is stored as `type_code`; `None` where it is corrupt.
pub fn list_elements(type_code: u8, serialized: &[u8]) -> Option<Vec<Vec<u8>>> {
    let snapshot = snapshot_of(Lineage::Redis, type_code, serialized);
    let got = collect::collect(&snapshot, by_elements(), || snapshot.len()).ok()?;
    match got.entries.into_iter().next()?.content {
        writer::Content::List(items) => Some(items),
        other => panic!("a list became {other:?}"),
    }
}
