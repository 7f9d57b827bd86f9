//! Reads a snapshot from a file or standard input, and hands out what it holds, as far as it goes.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;

use super::filter::Filter;
use super::progress::Progress;
use super::text::shown;
use crate::fault::{Fault, FaultKind};
use crate::limits::{DESCRIBED_BYTES, MIN_READ_BYTES, SNAPSHOT_READ_BYTES};
use crate::rdb::{Decoder, Item, Lineage, Options, RdbError};

/// Where a snapshot comes from.
pub struct Input {
    bytes: Box<dyn Read>,
    /// For messages.
    pub name: String,
    /// Unknown of pipes.
    pub total_bytes: Option<u64>,
}

/// Why reading ended before the snapshot did.
#[derive(Debug)]
pub enum Stop {
    Fault(Fault),
    /// Nobody reads the output any more: not worth a word.
    OutputClosed,
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Stop::Fault(fault)
    }
}

/// Takes what a snapshot holds.
pub trait Visitor {
    /// Everything but [`Item::NeedMore`] and [`Item::End`]; of keys only those that the filter takes.
    fn item(&mut self, item: Item<'_>) -> Result<(), Stop>;

    /// The key of the last value or part is complete; it took so many bytes of the snapshot, with all that belongs to it.
    fn key_done(&mut self, _bytes: u64) -> Result<(), Stop> {
        Ok(())
    }

    /// As much as was read at once has been handed out.
    fn paused(&mut self) -> Result<(), Stop> {
        Ok(())
    }
}

/// How a snapshot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// As it should; `is_followed`: by bytes that are no part of it.
    Whole {
        has_checksum: bool,
        is_followed: bool,
    },
    /// The input ended before the snapshot.
    Cut,
    Broken(RdbError),
}

/// How far a snapshot was read.
#[derive(Debug)]
pub struct Scan {
    pub header: Option<(Lineage, u16)>,
    /// Keys that were read whole, and how many of them the filter took.
    pub keys: u64,
    pub taken_keys: u64,
    pub bytes: u64,
    pub ending: Ending,
    /// The last key that was read whole, its database, and where it ended.
    last_key: Vec<u8>,
    last_database: u32,
    last_key_end: u64,
    /// A key of which some parts were read.
    has_open_key: bool,
    open_key: Vec<u8>,
}

impl Input {
    /// `-` is standard input.
    pub fn open(path: &OsStr) -> Result<Self, Fault> {
        if path == "-" {
            return Ok(Self {
                bytes: Box::new(std::io::stdin()),
                name: "standard input".into(),
                total_bytes: None,
            });
        }
        let name = path.to_string_lossy().into_owned();
        let opened = File::open(path).and_then(|file| {
            let metadata = file.metadata()?;
            Ok((file, metadata))
        });
        let (file, metadata) = opened.map_err(|error| read_fault(&name, &error))?;
        Ok(Self {
            bytes: Box::new(file),
            name,
            total_bytes: metadata.is_file().then_some(metadata.len()),
        })
    }

    /// Reads to the end of the snapshot or as far as it goes. Only what the machine or the visitor refuses is an error.
    pub fn scan(
        &mut self,
        options: Options,
        filter: &Filter,
        visitor: &mut impl Visitor,
        progress: &mut Progress,
    ) -> Result<Scan, Stop> {
        let mut decoder = Decoder::new(options);
        let mut scan = Scan::new();
        let mut buffer = vec![0; SNAPSHOT_READ_BYTES];
        let (mut start, mut filled) = (0, 0);
        let ending = loop {
            buffer.copy_within(start..filled, 0);
            (start, filled) = (0, filled - start);
            if buffer.len() - filled < MIN_READ_BYTES {
                // One element is larger than the buffer.
                buffer.resize(buffer.len() * 2, 0);
            }
            let read = self.read(&mut buffer[filled..])?;
            filled += read;
            let mut feed = Feed {
                scan: &mut scan,
                filter,
                visitor,
            };
            let found = feed.take(&mut decoder, &buffer[..filled], &mut start)?;
            visitor.paused()?;
            progress.show(decoder.consumed_bytes(), scan.keys);
            match found {
                Some(Ending::Whole { has_checksum, .. }) => {
                    let is_followed = start < filled || self.read(&mut buffer[filled..])? > 0;
                    break Ending::Whole {
                        has_checksum,
                        is_followed,
                    };
                }
                Some(ending) => break ending,
                None if read == 0 => break Ending::Cut,
                None => {}
            }
        };
        scan.bytes = decoder.consumed_bytes();
        if ending == Ending::Cut {
            scan.bytes += (filled - start) as u64;
        }
        scan.ending = ending;
        Ok(scan)
    }

    fn read(&mut self, space: &mut [u8]) -> Result<usize, Fault> {
        loop {
            match self.bytes.read(space) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => return result.map_err(|error| read_fault(&self.name, &error)),
            }
        }
    }
}

fn read_fault(name: &str, error: &std::io::Error) -> Fault {
    let text = format!("cannot read {name}: {error}; check the path and its permissions");
    Fault::new(FaultKind::File, text)
}

/// What one piece of input is read with.
struct Feed<'a, V> {
    scan: &'a mut Scan,
    filter: &'a Filter,
    visitor: &'a mut V,
}

impl<V: Visitor> Feed<'_, V> {
    /// Hands out all items of `input`; sets `start` to what is used up. `None`: more input is needed.
    fn take(
        &mut self,
        decoder: &mut Decoder,
        input: &[u8],
        start: &mut usize,
    ) -> Result<Option<Ending>, Stop> {
        let base = decoder.consumed_bytes();
        let mut reader = decoder.read(input);
        // Where the record began that is read now.
        let mut record_at = self.scan.bytes;
        let ending = loop {
            let (is_key, is_taken) = match reader.next() {
                Ok(Item::NeedMore) => break None,
                Ok(Item::End { has_checksum }) => {
                    break Some(Ending::Whole {
                        has_checksum,
                        is_followed: false,
                    });
                }
                Ok(item) => self.hand_out(item)?,
                Err(error) => break Some(Ending::Broken(error)),
            };
            let at = base + reader.consumed_bytes() as u64;
            if is_key {
                self.scan.key_done(at, is_taken);
                if is_taken {
                    self.visitor.key_done(at - record_at)?;
                }
            }
            if is_key || !self.scan.has_open_key {
                record_at = at;
            }
        };
        *start = reader.consumed_bytes();
        self.scan.bytes = record_at;
        Ok(ending)
    }

    /// Whether a key is complete with it, and whether the filter takes that.
    fn hand_out(&mut self, item: Item<'_>) -> Result<(bool, bool), Stop> {
        let scan = &mut *self.scan;
        let (is_first, is_last, key, database, type_code) = match &item {
            Item::Value(value) => (true, true, value.key, value.database, value.type_code),
            Item::Part(part) => (
                part.is_first,
                part.is_last,
                part.key,
                part.database,
                part.type_code,
            ),
            Item::Unsupported(unsupported) => (
                true,
                true,
                unsupported.key,
                unsupported.database,
                unsupported.type_code,
            ),
            other => {
                if let Item::Header { lineage, version } = other {
                    scan.header = Some((*lineage, *version));
                }
                if self.filter.takes_all() || matches!(other, Item::Header { .. }) {
                    self.visitor.item(item)?;
                }
                return Ok((false, false));
            }
        };
        let lineage = scan.header.map_or(Lineage::Redis, |(lineage, _)| lineage);
        let is_taken = self.filter.takes(key, database, type_code, lineage);
        if is_first {
            scan.open_key.clear();
            scan.open_key.extend_from_slice(key);
            scan.last_database = database;
            scan.has_open_key = true;
        }
        if is_taken {
            self.visitor.item(item)?;
        }
        Ok((is_last, is_taken))
    }
}

impl Scan {
    fn new() -> Self {
        Self {
            header: None,
            keys: 0,
            taken_keys: 0,
            bytes: 0,
            ending: Ending::Cut,
            last_key: Vec::new(),
            last_database: 0,
            last_key_end: 0,
            has_open_key: false,
            open_key: Vec::new(),
        }
    }

    fn key_done(&mut self, at: u64, is_taken: bool) {
        self.keys += 1;
        self.taken_keys += u64::from(is_taken);
        std::mem::swap(&mut self.last_key, &mut self.open_key);
        self.last_key_end = at;
        self.has_open_key = false;
    }

    /// `REDIS 10`, as the first bytes say.
    pub fn format_name(&self) -> String {
        match self.header {
            None => "unknown format".into(),
            Some((lineage, version)) => {
                let name = match lineage {
                    Lineage::Redis => "Redis",
                    Lineage::Valkey => "Valkey",
                };
                format!("{name} snapshot version {version}")
            }
        }
    }

    /// The fault of a snapshot that did not end as it should.
    pub fn fault(&self, name: &str) -> Option<Fault> {
        let bytes = self.bytes;
        let what = match self.ending {
            Ending::Whole { .. } => return None,
            Ending::Cut if bytes == 0 => "it is empty".to_owned(),
            Ending::Cut => format!("it ends at byte {bytes}, before the snapshot does"),
            Ending::Broken(error) => error.to_string(),
        };
        let text = format!("{name}: {what}; {}", self.progress_text());
        Some(Fault::new(FaultKind::SnapshotCorrupt, text))
    }

    /// What had been read when it ended.
    fn progress_text(&self) -> String {
        let keys = self.keys;
        let mut text = match keys {
            0 => "no key was read whole".to_owned(),
            _ => format!(
                "{keys} keys were read whole, the last one '{}', which ends at byte {}",
                shown(&self.last_key, DESCRIBED_BYTES),
                self.last_key_end
            ),
        };
        if self.has_open_key {
            let key = shown(&self.open_key, DESCRIBED_BYTES);
            text.push_str(&format!("; of key '{key}' only the beginning was read"));
        }
        text
    }
}
