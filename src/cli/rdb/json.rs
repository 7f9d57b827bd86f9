//! JSON lines: one object for each key, and before them one for each thing that belongs to no key.
//!
//! ```text
//! {"snapshot":"redis","version":12}
//! {"aux":"redis-ver","value":"8.0.2"}
//! {"function":"#!lua name=lib\n..."}
//! {"skipped":"data of the module x outside keys"}
//! {"db":0,"key":"k","type":"string","encoding":"string",...,"value":"v"}
//!     "expires_at_ms": Unix time in milliseconds, "idle_seconds", "frequency": where the snapshot has them
//! "value" by type:
//!     string  "..."
//!     list    ["a", ...]        set  ["a", ...]        in the snapshot's order
//!     zset    [["member", 1.5], ...]                   scores are numbers, or "inf", "-inf"
//!     hash    {"field": "value", ...}                  a field that expires: {"value": "...", "expires_at_ms": 1}
//!     stream  {"entries": [{"id": "1-1", "fields": ["name", "value", ...]}, ...], "last_id": "1-1",
//!              "entries_added": 1, "max_deleted_id": "0-0",      from version 2 of the encoding on
//!              "groups": [{"name": "g", "last_id": "1-1", "entries_read": 1, "consumers": [{"name": "c",
//!                          "seen_at_ms": 1, "active_at_ms": 1,      the latter from version 3 on, -1 for never
//!                          "pending": [{"id": "1-1", "delivered_at_ms": 1, "deliveries": 1}, ...]}, ...]}, ...]}
//!     module  {"module": "name", "version": 1, "serialized": "hex, as in the snapshot"}
//! "truncated": true, where the snapshot ended within the value
//! ```
//!
//! Strings are exact; [`text`](super::text) tells how bytes that are no UTF-8 are written. Large values are written as they
//! come: no value is held whole, but each element is (reading with [`Options::with_whole_texts`](crate::rdb::Options)).

use super::input::{Stop, Visitor};
use super::output::Output;
use super::text::{TextWriter, write_hex, write_number, write_score, write_string};
use crate::rdb::{
    Content, Item, Lineage, NO_DEADLINE, Part, StreamId, StreamPiece, Texts, Value, value_name,
};

/// Writes JSON lines.
pub struct JsonWriter {
    output: Output,
    lineage: Lineage,
    /// What has to be written to end the value that is open, in reverse; empty between keys.
    open: Vec<&'static [u8]>,
    /// Whether the innermost array or object holds something already.
    has_items: bool,
    text: TextWriter,
    /// Where in a stream the writer is.
    section: Section,
}

/// The arrays of a stream, from the outside to the inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Entries,
    Groups,
    Consumers,
    /// Follows the consumers of a group, as deep as they are.
    Returned,
    Pending,
}

impl Default for JsonWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl JsonWriter {
    pub fn new() -> Self {
        Self {
            output: Output::new(),
            lineage: Lineage::Redis,
            open: Vec::new(),
            has_items: false,
            text: TextWriter::default(),
            section: Section::Entries,
        }
    }

    /// Ends the line of a value that the snapshot does not hold whole.
    pub fn finish(&mut self) -> Result<(), Stop> {
        if !self.open.is_empty() {
            self.close_value();
            self.raw(b",\"truncated\":true}\n");
        }
        self.output.flush()
    }

    /// Adds an item to the output.
    pub fn write(&mut self, item: &Item<'_>) {
        match item {
            Item::Part(part) => self.part(part),
            Item::Value(value) => self.stored(value),
            other => self.line(other),
        }
    }

    /// What was written and has not gone to standard output, for whoever wants it elsewhere.
    pub fn written(&mut self) -> &mut Vec<u8> {
        &mut self.output.buffer
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.output.buffer.extend_from_slice(bytes);
    }

    fn string(&mut self, bytes: &[u8]) {
        write_string(&mut self.output.buffer, bytes);
    }

    fn number(&mut self, name: &[u8], number: impl itoa::Integer) {
        self.raw(name);
        write_number(&mut self.output.buffer, number);
    }

    /// Separates from the item before.
    fn comma(&mut self) {
        if std::mem::replace(&mut self.has_items, true) {
            self.raw(b",");
        }
    }

    /// Begins an array, object or string, which ends with `end`.
    fn open(&mut self, begin: &'static [u8], end: &'static [u8]) {
        self.raw(begin);
        self.open.push(end);
        self.has_items = false;
    }

    fn close(&mut self) {
        if let Some(end) = self.open.pop() {
            self.raw(end);
            self.has_items = true;
        }
    }

    fn close_value(&mut self) {
        self.text.finish(&mut self.output.buffer);
        while !self.open.is_empty() {
            self.close();
        }
    }

    /// A line that belongs to no key.
    fn line(&mut self, item: &Item<'_>) {
        match *item {
            Item::Header { lineage, version } => {
                self.lineage = lineage;
                let name: &[u8] = match lineage {
                    Lineage::Redis => b"redis",
                    Lineage::Valkey => b"valkey",
                };
                self.raw(b"{\"snapshot\":");
                self.string(name);
                self.number(b",\"version\":", version);
            }
            Item::Aux { key, value } => {
                self.raw(b"{\"aux\":");
                self.string(key);
                self.raw(b",\"value\":");
                self.string(value);
            }
            Item::Function { code } => {
                self.raw(b"{\"function\":");
                self.string(code);
            }
            Item::SizeHint { keys, expiring } => {
                self.number(b"{\"keys_announced\":", keys);
                self.number(b",\"expiring\":", expiring);
            }
            Item::SlotImport => self.raw(b"{\"skipped\":\"slots being imported\""),
            Item::LeftOut(what) => {
                self.raw(b"{\"skipped\":");
                self.string(what.to_string().as_bytes());
            }
            Item::Unsupported(unsupported) => {
                let name = value_name(unsupported.type_code, self.lineage);
                self.number(b"{\"db\":", unsupported.database);
                self.raw(b",\"key\":");
                self.string(unsupported.key);
                self.raw(b",\"type\":");
                self.string(name.kind.as_bytes());
                self.raw(b",\"unsupported\":");
                self.string(unsupported.problem.to_string().as_bytes());
            }
            // Keys name their database; a slot follows from the key.
            _ => return,
        }
        self.raw(b"}\n");
    }

    fn key(&mut self, key: Key<'_>) {
        let name = value_name(key.type_code, self.lineage);
        self.number(b"{\"db\":", key.database);
        self.raw(b",\"key\":");
        self.string(key.key);
        self.raw(b",\"type\":\"");
        self.raw(name.kind.as_bytes());
        self.raw(b"\",\"encoding\":\"");
        self.raw(name.encoding.as_bytes());
        self.raw(b"\"");
        if let Some(at) = key.expire_at_ms {
            self.number(b",\"expires_at_ms\":", at);
        }
        if let Some(seconds) = key.idle_seconds {
            self.number(b",\"idle_seconds\":", seconds);
        }
        if let Some(frequency) = key.frequency {
            self.number(b",\"frequency\":", frequency);
        }
        self.raw(b",\"value\":");
    }

    /// A value that cannot be taken apart: a module's.
    fn stored(&mut self, value: &Value<'_>) {
        self.key(Key {
            key: value.key,
            database: value.database,
            type_code: value.type_code,
            expire_at_ms: value.expire_at_ms,
            idle_seconds: value.idle_seconds,
            frequency: value.frequency,
        });
        self.raw(b"{");
        if let Some(module) = value.module() {
            self.raw(b"\"module\":");
            self.string(module.to_string().as_bytes());
            self.number(b",\"version\":", module.encoding_version());
            self.raw(b",");
        }
        self.raw(b"\"serialized\":\"");
        write_hex(&mut self.output.buffer, value.serialized);
        self.raw(b"\"}}\n");
    }

    fn part(&mut self, part: &Part<'_>) {
        if part.is_first {
            self.key(Key {
                key: part.key,
                database: part.database,
                type_code: part.type_code,
                expire_at_ms: part.expire_at_ms,
                idle_seconds: part.idle_seconds,
                frequency: part.frequency,
            });
            self.begin_value(&part.content);
        }
        match part.content {
            Content::String { bytes, .. } => {
                self.text
                    .write(&mut self.output.buffer, bytes, part.is_last);
            }
            Content::List { items, .. } | Content::Set { members: items } => self.strings(items),
            Content::SortedSet { members, scores } => {
                for (member, score) in members.iter().zip(scores) {
                    self.comma();
                    self.raw(b"[");
                    self.string(member);
                    self.raw(b",");
                    write_score(&mut self.output.buffer, *score);
                    self.raw(b"]");
                }
            }
            Content::Hash { pairs, deadlines } => self.fields(pairs, deadlines),
            Content::Stream(pieces) => pieces.iter().for_each(|piece| self.piece(piece)),
            Content::Piece { .. } => unreachable!("JSON is made of whole texts"),
        }
        if part.is_last {
            self.close_value();
            self.raw(b"}\n");
        }
    }

    fn begin_value(&mut self, content: &Content<'_>) {
        match content {
            Content::String { .. } => self.open(b"\"", b"\""),
            Content::Hash { .. } => self.open(b"{", b"}"),
            Content::List { .. } | Content::Set { .. } | Content::SortedSet { .. } => {
                self.open(b"[", b"]");
            }
            Content::Stream(_) => {
                self.open(b"{", b"}");
                self.open(b"\"entries\":[", b"]");
                self.section = Section::Entries;
            }
            Content::Piece { .. } => unreachable!("JSON is made of whole texts"),
        }
    }

    fn strings(&mut self, texts: Texts<'_>) {
        for text in texts.iter() {
            self.comma();
            self.string(text);
        }
    }

    fn fields(&mut self, pairs: Texts<'_>, deadlines: &[u64]) {
        let mut texts = pairs.iter();
        let mut index = 0;
        while let (Some(field), Some(value)) = (texts.next(), texts.next()) {
            self.comma();
            self.string(field);
            self.raw(b":");
            match deadlines.get(index) {
                None | Some(&NO_DEADLINE) => self.string(value),
                Some(&at) => {
                    self.raw(b"{\"value\":");
                    self.string(value);
                    self.number(b",\"expires_at_ms\":", at);
                    self.raw(b"}");
                }
            }
            index += 1;
        }
    }

    /// Goes out to the array of `section`, or stays in it.
    fn leave_to(&mut self, section: Section) {
        while self.section > section {
            // The array, and the object of which it was the last member.
            self.close();
            self.close();
            self.section = match self.section {
                Section::Pending => Section::Consumers,
                Section::Consumers | Section::Returned => Section::Groups,
                Section::Groups | Section::Entries => Section::Entries,
            };
        }
    }

    fn piece(&mut self, piece: StreamPiece<'_>) {
        match piece {
            StreamPiece::Entry { id, pairs } => self.entry(id, pairs),
            StreamPiece::Properties {
                last_id, counters, ..
            } => self.properties(last_id, counters),
            StreamPiece::Group {
                name,
                last_id,
                entries_read,
            } => self.group(name, last_id, entries_read),
            StreamPiece::Consumer {
                name,
                seen_at_ms,
                active_at_ms,
                ..
            } => self.consumer(name, seen_at_ms, active_at_ms),
            StreamPiece::Pending {
                delivered_at_ms,
                deliveries,
                ids,
                ..
            } => {
                for id in ids {
                    self.comma();
                    self.raw(b"{\"id\":");
                    self.id(*id);
                    self.number(b",\"delivered_at_ms\":", delivered_at_ms);
                    self.number(b",\"deliveries\":", deliveries);
                    self.raw(b"}");
                }
            }
            StreamPiece::Returned { ids, .. } => self.returned(ids),
            StreamPiece::Producers { seconds, entries } => self.producers(seconds, entries),
            StreamPiece::Produced { producer, name, id } => {
                self.comma();
                self.raw(b"{\"producer\":");
                self.string(producer);
                self.raw(b",\"name\":");
                self.string(name);
                self.raw(b",\"id\":");
                self.id(id);
                self.raw(b"}");
            }
        }
    }

    fn entry(&mut self, id: StreamId, pairs: Texts<'_>) {
        self.comma();
        self.raw(b"{\"id\":");
        self.id(id);
        self.raw(b",\"fields\":[");
        self.has_items = false;
        self.strings(pairs);
        self.raw(b"]}");
        self.has_items = true;
    }

    /// Ends the entries, and begins the groups.
    fn properties(&mut self, last_id: StreamId, counters: Option<(u64, StreamId)>) {
        self.close();
        self.raw(b",\"last_id\":");
        self.id(last_id);
        if let Some((entries_added, max_deleted_id)) = counters {
            self.number(b",\"entries_added\":", entries_added);
            self.raw(b",\"max_deleted_id\":");
            self.id(max_deleted_id);
        }
        self.open(b",\"groups\":[", b"]");
        self.section = Section::Groups;
    }

    /// Begins a group, up to its consumers.
    fn group(&mut self, name: &[u8], last_id: StreamId, entries_read: Option<i64>) {
        self.leave_to(Section::Groups);
        self.comma();
        self.open(b"{\"name\":", b"}");
        self.string(name);
        self.raw(b",\"last_id\":");
        self.id(last_id);
        if let Some(count) = entries_read {
            self.number(b",\"entries_read\":", count);
        }
        self.open(b",\"consumers\":[", b"]");
        self.section = Section::Consumers;
    }

    /// Begins a consumer, up to its pending entries.
    fn consumer(&mut self, name: &[u8], seen_at_ms: i64, active_at_ms: Option<i64>) {
        self.leave_to(Section::Consumers);
        self.comma();
        self.open(b"{\"name\":", b"}");
        self.string(name);
        self.number(b",\"seen_at_ms\":", seen_at_ms);
        if let Some(active_at_ms) = active_at_ms {
            self.number(b",\"active_at_ms\":", active_at_ms);
        }
        self.open(b",\"pending\":[", b"]");
        self.section = Section::Pending;
    }

    fn returned(&mut self, ids: &[StreamId]) {
        self.leave_to(Section::Returned);
        if self.section != Section::Returned {
            self.leave_to(Section::Consumers);
            self.close();
            self.open(b",\"returned\":[", b"]");
            self.section = Section::Returned;
        }
        for id in ids {
            self.comma();
            self.id(*id);
        }
    }

    /// Ends the groups, and begins what producers added.
    fn producers(&mut self, seconds: u64, entries: u64) {
        self.leave_to(Section::Groups);
        self.close();
        self.open(b",\"producers\":{", b"}");
        self.number(b"\"seconds\":", seconds);
        self.number(b",\"entries\":", entries);
        self.open(b",\"produced\":[", b"]");
        self.section = Section::Entries;
    }

    fn id(&mut self, id: StreamId) {
        self.number(b"\"", id.milliseconds);
        self.number(b"-", id.sequence);
        self.raw(b"\"");
    }
}

/// What stands before a value.
struct Key<'a> {
    key: &'a [u8],
    database: u32,
    type_code: u8,
    expire_at_ms: Option<u64>,
    idle_seconds: Option<u64>,
    frequency: Option<u8>,
}

impl Visitor for JsonWriter {
    fn item(&mut self, item: Item<'_>) -> Result<(), Stop> {
        self.write(&item);
        self.output.flush_if_full()
    }

    fn paused(&mut self) -> Result<(), Stop> {
        // Whoever reads a pipe sees what there is before the next piece of input comes.
        self.output.flush()
    }
}
