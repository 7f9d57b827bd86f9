//! Streams: the entries inside a node, and the commands that rebuild a stream.
//!
//! A node is a listpack. Its first elements describe all of its entries:
//!
//! ```text
//! count deleted fields name... 0 | flags ms-delta seq-delta [fields name value ... or value ...] length | ...
//! ```
//!
//! Ids are relative to the node's own id. Flag 1: deleted; flag 2: the names are those at the head.
//!
//! What commands cannot express, and is lost where a stream goes by elements: when a consumer was last seen and last active
//! (both become the time of the copy), a pending entry whose stream entry is deleted (servers from 7.0 on refuse to claim
//! it), and how many entries idempotent producers added and repeated.

use super::batch::Batch;
use super::command::CommandWriter;
use super::error::Problem;
use super::part::{StreamPiece, Texts};
use super::unpack::{Placed, integer, push};
use super::{StreamId, TargetFormat};

const FLAG_DELETED: i64 = 1;
const FLAG_SAME_FIELDS: i64 = 2;

/// A place within a node's listpack.
#[derive(Default)]
pub(super) struct NodeReader {
    id: StreamId,
    step: Step,
    /// Elements of the current step that are still to come.
    left: u64,
    /// The names at the head, and where each ends.
    names: Vec<u8>,
    name_ends: Vec<usize>,
    flags: i64,
    entry: StreamId,
    /// Texts of the current entry in the batch, and how many of the names at the head were used for it.
    texts: usize,
    used_names: usize,
    has_entries: bool,
}

/// What the next element of a node is.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Step {
    #[default]
    Count,
    Deleted,
    NameCount,
    Name,
    HeadEnd,
    Flags,
    Milliseconds,
    Sequence,
    FieldCount,
    /// A value whose name is at the head.
    Value,
    /// A name or a value.
    Text,
    Length,
}

/// What a node can use at its place.
pub(super) enum Wants {
    Number,
    /// A name at the head, which is needed again and again.
    Name,
    Text,
    /// A text of an entry that does not exist any more.
    DeletedText,
}

impl NodeReader {
    /// Begins the node `id`.
    pub fn open(&mut self, id: StreamId) {
        self.id = id;
        self.step = Step::Count;
        self.names.clear();
        self.name_ends.clear();
        self.has_entries = false;
    }

    pub fn wants(&self) -> Wants {
        match self.step {
            Step::Name => Wants::Name,
            Step::Value | Step::Text if self.flags & FLAG_DELETED != 0 => Wants::DeletedText,
            Step::Value | Step::Text => Wants::Text,
            _ => Wants::Number,
        }
    }

    /// Whether the node may end here.
    pub fn is_between_entries(&self) -> bool {
        self.step == Step::Flags
    }

    /// Whether an entry that exists was read of this node.
    pub fn has_entries(&self) -> bool {
        self.has_entries
    }

    /// Takes the next element; whether it completes an entry that is not deleted, which is then in `batch`.
    pub fn take(&mut self, placed: Placed<'_>, batch: &mut Batch) -> Result<bool, Problem> {
        let number = || integer(&placed).ok_or(Problem::BadStream);
        self.step = match self.step {
            Step::Count | Step::Deleted => {
                number()?;
                match self.step {
                    Step::Count => Step::Deleted,
                    _ => Step::NameCount,
                }
            }
            Step::NameCount => {
                self.left = number()?.max(0) as u64;
                self.if_left(Step::Name, Step::HeadEnd)
            }
            Step::Name => {
                let Placed::Element(name) = placed else {
                    return Err(Problem::BadStream);
                };
                name.append_to(&mut self.names);
                self.name_ends.push(self.names.len());
                self.left -= 1;
                self.if_left(Step::Name, Step::HeadEnd)
            }
            Step::HeadEnd => match number()? {
                0 => Step::Flags,
                _ => return Err(Problem::BadStream),
            },
            Step::Flags => {
                self.flags = number()?;
                (self.texts, self.used_names) = (0, 0);
                Step::Milliseconds
            }
            Step::Milliseconds => {
                self.entry.milliseconds = self.id.milliseconds.wrapping_add(number()? as u64);
                Step::Sequence
            }
            Step::Sequence => {
                self.entry.sequence = self.id.sequence.wrapping_add(number()? as u64);
                if self.flags & FLAG_SAME_FIELDS == 0 {
                    Step::FieldCount
                } else {
                    self.left = self.name_ends.len() as u64;
                    self.if_left(Step::Value, Step::Length)
                }
            }
            Step::FieldCount => {
                self.left = 2 * u64::try_from(number()?).unwrap_or(0);
                self.if_left(Step::Text, Step::Length)
            }
            Step::Value => {
                self.push_name(batch);
                push(&placed, batch);
                self.texts += 2;
                self.left -= 1;
                self.if_left(Step::Value, Step::Length)
            }
            Step::Text => {
                push(&placed, batch);
                self.texts += 1;
                self.left -= 1;
                self.if_left(Step::Text, Step::Length)
            }
            Step::Length => {
                number()?;
                self.step = Step::Flags;
                return Ok(self.end_entry(batch));
            }
        };
        Ok(false)
    }

    fn if_left(&self, then: Step, otherwise: Step) -> Step {
        if self.left > 0 { then } else { otherwise }
    }

    /// Adds the name at the head to which the next value belongs.
    fn push_name(&mut self, batch: &mut Batch) {
        let start = match self.used_names {
            0 => 0,
            used => self.name_ends[used - 1],
        };
        batch.push_name(&self.names[start..self.name_ends[self.used_names]]);
        self.used_names += 1;
    }

    fn end_entry(&mut self, batch: &mut Batch) -> bool {
        let first = batch.text_count() - self.texts;
        if self.flags & FLAG_DELETED != 0 || self.texts == 0 {
            batch.truncate_texts(first);
            return false;
        }
        batch.push_entry(self.entry, first);
        self.has_entries = true;
        true
    }
}

/// A group that exists only while an empty stream is made.
const PLACEHOLDER_GROUP: &[u8] = b"slotstream";

/// Appends the commands for one piece and returns their number; an error when there are none for this target.
pub(super) fn write_piece(
    key: &[u8],
    piece: StreamPiece<'_>,
    out: &mut Vec<u8>,
    target: &TargetFormat,
) -> Result<usize, Problem> {
    match piece {
        StreamPiece::Entry { id, pairs } => write_entry(key, id, pairs, out),
        StreamPiece::Properties {
            last_id,
            counters,
            is_empty,
        } => {
            write_properties(key, last_id, counters, is_empty, out, target);
            return Ok(if is_empty { 3 } else { 1 });
        }
        StreamPiece::Group {
            name,
            last_id,
            entries_read,
        } => write_group(key, name, last_id, entries_read, out, target),
        StreamPiece::Consumer { group, name, .. } => write_consumer(key, group, name, out, target),
        StreamPiece::Pending {
            group,
            consumer,
            group_last_id,
            delivered_at_ms,
            deliveries,
            ids,
        } => {
            let mut command = CommandWriter::new(out, 13 + ids.len());
            command.arg(b"XCLAIM").arg(key).arg(group);
            command.arg(consumer).arg(b"0");
            for id in ids {
                command.stream_id(*id);
            }
            command.arg(b"TIME").number(delivered_at_ms);
            command.arg(b"RETRYCOUNT").number(deliveries);
            command.arg(b"FORCE").arg(b"JUSTID");
            command.arg(b"LASTID").stream_id(group_last_id);
        }
        StreamPiece::Returned { .. } => return Err(Problem::ReturnedEntries),
        // A target without the feature has nothing to configure.
        StreamPiece::Producers { .. } if !target.knows_stream_producers() => return Ok(0),
        StreamPiece::Producers { seconds, entries } => {
            let mut command = CommandWriter::new(out, 6);
            command.arg(b"XCFGSET").arg(key);
            command.arg(b"IDMP-DURATION").number(seconds);
            command.arg(b"IDMP-MAXSIZE").number(entries);
        }
        StreamPiece::Produced { .. } if !target.knows_stream_producers() => {
            return Err(Problem::TargetLacksProducers);
        }
        StreamPiece::Produced { producer, name, id } => {
            let mut command = CommandWriter::new(out, 5);
            command.arg(b"XIDMPRECORD").arg(key).arg(producer).arg(name);
            command.stream_id(id);
        }
    }
    Ok(1)
}

fn write_entry(key: &[u8], id: StreamId, pairs: Texts<'_>, out: &mut Vec<u8>) {
    let mut command = CommandWriter::new(out, 3 + pairs.len());
    command.arg(b"XADD").arg(key).stream_id(id);
    for text in pairs.iter() {
        command.arg(text);
    }
}

/// Three commands for a stream without entries, otherwise one.
fn write_properties(
    key: &[u8],
    last_id: StreamId,
    counters: Option<(u64, StreamId)>,
    is_empty: bool,
    out: &mut Vec<u8>,
    target: &TargetFormat,
) {
    if is_empty {
        let group = PLACEHOLDER_GROUP;
        CommandWriter::all(out, &[b"XGROUP", b"CREATE", key, group, b"0", b"MKSTREAM"]);
        CommandWriter::all(out, &[b"XGROUP", b"DESTROY", key, group]);
    }
    let counters = counters.filter(|_| target.knows_stream_counters());
    let mut command = CommandWriter::new(out, if counters.is_some() { 7 } else { 3 });
    command.arg(b"XSETID").arg(key).stream_id(last_id);
    if let Some((entries_added, max_deleted)) = counters {
        command.arg(b"ENTRIESADDED").number(entries_added);
        command.arg(b"MAXDELETEDID").stream_id(max_deleted);
    }
}

fn write_group(
    key: &[u8],
    name: &[u8],
    last_id: StreamId,
    entries_read: Option<i64>,
    out: &mut Vec<u8>,
    target: &TargetFormat,
) {
    let entries_read = entries_read.filter(|_| target.knows_stream_counters());
    let mut command = CommandWriter::new(out, if entries_read.is_some() { 7 } else { 5 });
    command.arg(b"XGROUP").arg(b"CREATE").arg(key).arg(name);
    command.stream_id(last_id);
    if let Some(count) = entries_read {
        command.arg(b"ENTRIESREAD").number(count);
    }
}

fn write_consumer(key: &[u8], group: &[u8], name: &[u8], out: &mut Vec<u8>, target: &TargetFormat) {
    if target.knows_stream_counters() {
        CommandWriter::all(out, &[b"XGROUP", b"CREATECONSUMER", key, group, name]);
        return;
    }
    // Reading its history makes a consumer, and changes nothing else.
    let mut command = CommandWriter::new(out, 9);
    command
        .arg(b"XREADGROUP")
        .arg(b"GROUP")
        .arg(group)
        .arg(name);
    command.arg(b"COUNT").arg(b"1");
    command.arg(b"STREAMS").arg(key).arg(b"0");
}
