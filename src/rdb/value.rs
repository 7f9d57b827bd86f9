//! A whole value as RESTORE carries it.
//!
//! ```text
//! payload of RESTORE: [metadata] | type:u8 | serialized value | version:u16 LE | CRC-64 of all before, LE
//! ```

use super::Lineage;
use super::command::CommandWriter;
use super::crc::crc64;
use super::element::{Elements, has_elements};
use super::error::ModuleId;
use super::grammar;
use super::wire::Cursor;
use crate::limits;

/// A key whose serialized value lies in the input as one piece.
#[derive(Debug, Clone, Copy)]
pub struct Value<'a> {
    pub key: &'a [u8],
    pub database: u32,
    /// Unix time in milliseconds.
    pub expire_at_ms: Option<u64>,
    /// Seconds since the last use, from servers that evict by it.
    pub idle_seconds: Option<u64>,
    /// Logarithmic access counter, from servers that evict by it.
    pub frequency: Option<u8>,
    pub type_code: u8,
    /// The value as the snapshot holds it, without the type byte.
    pub serialized: &'a [u8],
    /// Version to write behind it: one that the target accepts.
    pub footer_version: u16,
    /// What modules keep with the key: opcode 243 of Redis with what follows it. Empty for nearly every key.
    pub metadata: &'a [u8],
}

const FOOTER_BYTES: usize = 2 + 8;

impl Value<'_> {
    /// Appends `RESTORE key ttl payload REPLACE ABSTTL [IDLETIME s | FREQ f]` and returns the number of
    /// commands, which is 1. Change `expire_at_ms` first to write another deadline.
    #[inline]
    pub fn write_restore(&self, out: &mut Vec<u8>) -> usize {
        self.write_restore_as(out, true)
    }

    /// The same without `REPLACE`: refused with `BUSYKEY` where the key exists.
    pub fn write_restore_new(&self, out: &mut Vec<u8>) -> usize {
        self.write_restore_as(out, false)
    }

    #[inline]
    fn write_restore_as(&self, out: &mut Vec<u8>, replace: bool) -> usize {
        out.reserve(self.key.len() + self.serialized.len() + 160);
        // RESTORE knows one of the two; snapshots hold at most one as well.
        let usage = self.idle_seconds.is_some() || self.frequency.is_some();
        // What is always the same goes out in one piece: this is the path of every key.
        out.extend_from_slice(match (usage, replace) {
            (true, true) => b"*8\r\n$7\r\nRESTORE\r\n",
            (false, true) => b"*6\r\n$7\r\nRESTORE\r\n",
            (true, false) => b"*7\r\n$7\r\nRESTORE\r\n",
            (false, false) => b"*5\r\n$7\r\nRESTORE\r\n",
        });
        let mut command = CommandWriter::within(out);
        command.arg(self.key);
        match self.expire_at_ms {
            Some(at) => _ = command.number(at),
            None => command.buffer().extend_from_slice(b"$1\r\n0\r\n"),
        }
        command.head(self.metadata.len() + 1 + self.serialized.len() + FOOTER_BYTES);
        self.write_payload(command.buffer());
        command.buffer().extend_from_slice(match replace {
            true => b"\r\n$7\r\nREPLACE\r\n$6\r\nABSTTL\r\n",
            false => b"\r\n$6\r\nABSTTL\r\n",
        });
        if let Some(frequency) = self.frequency {
            command.arg(b"FREQ").number(frequency);
        } else if let Some(seconds) = self.idle_seconds {
            command.arg(b"IDLETIME").number(seconds);
        }
        1
    }

    /// Whose value it is, if a module's.
    pub fn module(&self) -> Option<ModuleId> {
        let mut cursor = Cursor::new(self.serialized, 0);
        let id = cursor.length().ok()?;
        (self.type_code == grammar::TYPE_MODULE).then_some(ModuleId(id))
    }

    /// How many elements it has, by reading all of it; `None` for values of modules, and for what cannot be read.
    /// `lineage` is that of the snapshot.
    pub fn count_elements(&self, lineage: Lineage) -> Option<usize> {
        if !has_elements(self.type_code, lineage) {
            return None;
        }
        let mut elements = Elements::default();
        let program = grammar::value_program(self.type_code, lineage)?;
        elements.open(self.type_code, lineage, program, limits::LONG_TEXT_BYTES);
        let mut cursor = Cursor::new(self.serialized, 0);
        let mut count = 0;
        loop {
            let is_last = elements.fill(&mut cursor, 0).ok()?;
            count += elements.content().element_count();
            if is_last {
                return Some(count);
            }
        }
    }

    /// Appends what DUMP would answer.
    #[inline]
    pub fn write_payload(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(self.metadata);
        out.push(self.type_code);
        out.extend_from_slice(self.serialized);
        out.extend_from_slice(&self.footer_version.to_le_bytes());
        let checksum = crc64(0, &out[start..]);
        out.extend_from_slice(&checksum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'a>() -> Value<'a> {
        Value {
            key: b"k",
            database: 0,
            expire_at_ms: None,
            idle_seconds: None,
            frequency: None,
            type_code: 0,
            serialized: b"\x05hello",
            footer_version: 10,
            metadata: &[],
        }
    }

    fn payload(value: &Value<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        value.write_payload(&mut out);
        out
    }

    #[test]
    fn the_payload_is_what_dump_of_redis_7_answers() {
        // DUMP of `SET k hello` on Redis 7.0.15.
        let dumped = b"\x00\x05hello\x0a\x00cr\xdfve4 \n";
        assert_eq!(payload(&value()), dumped);
    }

    #[test]
    fn deadline_and_usage_become_arguments() {
        let mut out = Vec::new();
        let with_idle = Value {
            expire_at_ms: Some(1_700_000_000_123),
            idle_seconds: Some(77),
            ..value()
        };
        assert_eq!(with_idle.write_restore(&mut out), 1);
        let expected = [
            b"*8\r\n$7\r\nRESTORE\r\n$1\r\nk\r\n$13\r\n1700000000123\r\n$17\r\n".as_slice(),
            &payload(&with_idle),
            b"\r\n$7\r\nREPLACE\r\n$6\r\nABSTTL\r\n$8\r\nIDLETIME\r\n$2\r\n77\r\n",
        ]
        .concat();
        assert_eq!(out, expected);

        let mut out = Vec::new();
        let with_frequency = Value {
            frequency: Some(255),
            ..value()
        };
        with_frequency.write_restore(&mut out);
        assert!(out.starts_with(b"*8\r\n"));
        assert!(out.ends_with(b"$4\r\nFREQ\r\n$3\r\n255\r\n"));
        let mut out = Vec::new();
        value().write_restore_new(&mut out);
        assert!(out.starts_with(b"*5\r\n") && out.ends_with(b"\r\n$6\r\nABSTTL\r\n"));
        assert!(!out.windows(7).any(|part| part == b"REPLACE"));
        let mut out = Vec::new();
        value().write_restore(&mut out);
        assert!(out.starts_with(b"*6\r\n$7\r\nRESTORE\r\n$1\r\nk\r\n$1\r\n0\r\n$17\r\n"));
    }
}
