//! Writes the inputs to begin with, a folder for each target: `seeds CORPUS OUT`, where CORPUS is `tests/corpus`.
//!
//! Snapshots and commands are those of the corpus, payloads and packed strings what these snapshots hold.

use slotstream::rdb::{Decoder, Item, Lineage, Value};
use slotstream::resp::push_command;
use slotstream_fuzz::{whole, writer};
use std::fs;
use std::io::Result;
use std::path::{Path, PathBuf};

struct Seeds {
    folder: PathBuf,
    count: usize,
}

impl Seeds {
    fn write(&mut self, target: &str, seed: &[u8]) -> Result<()> {
        let folder = self.folder.join(target);
        fs::create_dir_all(&folder)?;
        self.count += 1;
        fs::write(folder.join(format!("seed-{:05}", self.count)), seed)
    }

    fn snapshot(&mut self, snapshot: &[u8]) -> Result<()> {
        if snapshot.len() < 16 << 10 {
            self.write("snapshot", snapshot)?;
        }
        let lineage = match snapshot.first() {
            Some(b'V') => Lineage::Valkey,
            _ => Lineage::Redis,
        };
        let mut decoder = Decoder::new(whole(lineage, 1 << 20));
        let mut reader = decoder.read(snapshot);
        loop {
            match reader.next() {
                Ok(Item::Value(value)) => self.value(&value)?,
                Ok(Item::End { .. }) => return Ok(()),
                Ok(Item::NeedMore) | Err(_) => panic!("the corpus holds a damaged snapshot"),
                Ok(_) => {}
            }
        }
    }

    fn value(&mut self, value: &Value<'_>) -> Result<()> {
        let mut payload = Vec::new();
        value.write_payload(&mut payload);
        if payload.len() < 8 << 10 {
            self.write("dump", &payload)?;
        }
        let (target, choice, skipped) = match value.type_code {
            16 => ("listpack", 0, 0),
            17 => ("listpack", 1, 0),
            20 => ("listpack", 2, 0),
            25 => ("listpack", 4, 8),
            15 | 19 | 21 => ("listpack", 5, 18),
            18 => ("listpack", 6, 2),
            10 => ("ziplist", 0, 0),
            12 => ("ziplist", 1, 0),
            13 => ("ziplist", 2, 0),
            14 => ("ziplist", 3, 1),
            11 => ("ziplist", 4, 0),
            9 => ("ziplist", 5, 0),
            _ => return Ok(()),
        };
        let packed = value.serialized.get(skipped..).unwrap_or_default();
        match raw_string(packed) {
            Some(pack) if pack.len() < 4 << 10 => self.write(target, &[&[choice], pack].concat()),
            _ => Ok(()),
        }
    }
}

/// The string at the start of `bytes`, if it is stored as it is.
fn raw_string(bytes: &[u8]) -> Option<&[u8]> {
    let (start, length) = match *bytes {
        [short @ 0..0x40, ..] => (1, usize::from(short)),
        [high @ 0x40..0x80, low, ..] => (2, usize::from(high & 0x3f) << 8 | usize::from(low)),
        _ => return None,
    };
    bytes.get(start..start + length)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

const REPLIES: &[&[u8]] = &[
    b"+OK\r\n:1\r\n$3\r\nabc\r\n$-1\r\n*-1\r\n*0\r\n-MOVED 5 1.2.3.4:7000\r\n",
    b"*3\r\n:1\r\n-WRONGTYPE x\r\n*1\r\n$0\r\n\r\n*2\r\n+a\r\n-ERR last\r\n:12345\r\n+OK\r\n",
    b"-ASK 16383 host:1\r\n-LOADING x\r\n-EXECABORT y\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:-1\r\n",
];

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(corpus), Some(folder)) = (arguments.next(), arguments.next()) else {
        panic!("usage: seeds CORPUS OUT");
    };
    let mut seeds = Seeds { folder, count: 0 };
    for path in files(&corpus.join("snapshots"))? {
        if path.extension().is_some_and(|extension| extension == "rdb") {
            seeds.snapshot(&fs::read(path)?)?;
        }
    }
    // Encodings that no server at hand writes, older and newer ones: chosen at random by the writer of the tests.
    for seed in 1..90 {
        let magic = [b"REDIS0007", b"REDIS0016"][usize::from(seed % 3 == 0)];
        let mut snapshot = writer::Writer::new(magic, seed);
        let texts = |count| (0..count).map(|at: i64| (at * at * 37).to_string().into_bytes());
        for (key, content) in [
            ("list", writer::Content::List(texts(9).collect())),
            ("set", writer::Content::Set(texts(9).collect())),
            (
                "zset",
                writer::Content::SortedSet(texts(5).map(|text| (text, 0.5)).collect()),
            ),
            (
                "hash",
                writer::Content::Hash(texts(5).map(|text| (text, (b"v".into(), None))).collect()),
            ),
        ] {
            snapshot.entry(&writer::Entry {
                key: key.into(),
                database: 0,
                expire_at_ms: None,
                idle_seconds: None,
                frequency: None,
                content,
            });
        }
        seeds.snapshot(&snapshot.finish(|_| 0))?;
    }
    for line in fs::read_to_string(corpus.join("commands/examples.txt"))?.lines() {
        if !line.starts_with('#') {
            seeds.write("command", line.as_bytes())?;
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let mut bytes = Vec::new();
            push_command(&mut bytes, &words);
            seeds.write("frame", &bytes)?;
        }
    }
    for replies in REPLIES {
        seeds.write("replies", replies)?;
    }
    println!("{} inputs to begin with", seeds.count);
    Ok(())
}
