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

use super::command::CommandWriter;
use super::element::Batch;
use super::error::Problem;
use super::packed::{Element, Packing};
use super::part::StreamPiece;
use super::{StreamId, TargetFormat};

const FLAG_DELETED: i64 = 1;
const FLAG_SAME_FIELDS: i64 = 2;

/// A place within a node's listpack.
#[derive(Default)]
pub(super) struct NodeReader {
    id: StreamId,
    at: usize,
    /// Where the names at the head are.
    names_at: Vec<usize>,
}

const PACK: Packing = Packing::Listpack;

fn element<'a>(bytes: &'a [u8], at: &mut usize) -> Result<Element<'a>, Problem> {
    PACK.next(bytes, at)?.ok_or(Problem::BadStream)
}

fn integer(bytes: &[u8], at: &mut usize) -> Result<i64, Problem> {
    element(bytes, at)?.as_integer().ok_or(Problem::BadStream)
}

impl NodeReader {
    /// Goes to the first entry of the node `id`.
    pub fn open(&mut self, id: StreamId, bytes: &[u8]) -> Result<(), Problem> {
        self.id = id;
        self.names_at.clear();
        let mut at = PACK.start(bytes)?;
        let _count = integer(bytes, &mut at)?;
        let _deleted = integer(bytes, &mut at)?;
        for _ in 0..integer(bytes, &mut at)? {
            self.names_at.push(at);
            element(bytes, &mut at)?;
        }
        if integer(bytes, &mut at)? != 0 {
            return Err(Problem::BadStream);
        }
        self.at = at;
        Ok(())
    }

    /// Puts the next entry that is not deleted into `batch`; `false` at the end.
    pub fn next_entry(&mut self, bytes: &[u8], batch: &mut Batch) -> Result<bool, Problem> {
        let at = &mut self.at;
        while let Some(flags) = PACK.next(bytes, at)? {
            let flags = flags.as_integer().ok_or(Problem::BadStream)?;
            let id = StreamId {
                milliseconds: (self.id.milliseconds).wrapping_add(integer(bytes, at)? as u64),
                sequence: (self.id.sequence).wrapping_add(integer(bytes, at)? as u64),
            };
            let first = batch.text_count();
            if flags & FLAG_SAME_FIELDS != 0 {
                for name_at in &self.names_at {
                    batch.push_element(&element(bytes, &mut name_at.clone())?);
                    batch.push_element(&element(bytes, at)?);
                }
            } else {
                for _ in 0..integer(bytes, at)? {
                    batch.push_element(&element(bytes, at)?);
                    batch.push_element(&element(bytes, at)?);
                }
            }
            let _length = integer(bytes, at)?;
            if flags & FLAG_DELETED != 0 || batch.text_count() == first {
                batch.truncate_texts(first);
                continue;
            }
            batch.push_entry(id, first);
            return Ok(true);
        }
        Ok(false)
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
    Ok(match piece {
        StreamPiece::Entry { id, pairs } => {
            let mut command = CommandWriter::new(out, 3 + pairs.len());
            command.arg(b"XADD").arg(key).stream_id(id);
            for text in pairs.iter() {
                command.arg(text);
            }
            1
        }
        StreamPiece::Properties {
            last_id,
            counters,
            is_empty,
        } => {
            let mut commands = 1;
            if is_empty {
                let create = [
                    b"XGROUP",
                    b"CREATE",
                    key,
                    PLACEHOLDER_GROUP,
                    b"0",
                    b"MKSTREAM",
                ];
                CommandWriter::all(out, &create);
                CommandWriter::all(out, &[b"XGROUP", b"DESTROY", key, PLACEHOLDER_GROUP]);
                commands += 2;
            }
            write_properties(key, last_id, counters, out, target);
            commands
        }
        StreamPiece::Group {
            name,
            last_id,
            entries_read,
        } => {
            let entries_read = entries_read.filter(|_| target.knows_stream_counters());
            let mut command = CommandWriter::new(out, if entries_read.is_some() { 7 } else { 5 });
            command.arg(b"XGROUP").arg(b"CREATE").arg(key).arg(name);
            command.stream_id(last_id);
            if let Some(count) = entries_read {
                command.arg(b"ENTRIESREAD").number(count);
            }
            1
        }
        StreamPiece::Consumer { group, name, .. } => {
            if target.knows_stream_counters() {
                CommandWriter::all(out, &[b"XGROUP", b"CREATECONSUMER", key, group, name]);
            } else {
                // Reading its history makes a consumer, and changes nothing else.
                let read: [&[u8]; 9] = [
                    b"XREADGROUP",
                    b"GROUP",
                    group,
                    name,
                    b"COUNT",
                    b"1",
                    b"STREAMS",
                    key,
                    b"0",
                ];
                CommandWriter::all(out, &read);
            }
            1
        }
        StreamPiece::Pending {
            group,
            consumer,
            group_last_id,
            delivered_at_ms,
            deliveries,
            ids,
        } => {
            let mut command = CommandWriter::new(out, 5 + ids.len() + 8);
            command
                .arg(b"XCLAIM")
                .arg(key)
                .arg(group)
                .arg(consumer)
                .arg(b"0");
            for id in ids {
                command.stream_id(*id);
            }
            command.arg(b"TIME").number(delivered_at_ms);
            command.arg(b"RETRYCOUNT").number(deliveries);
            command.arg(b"FORCE").arg(b"JUSTID");
            command.arg(b"LASTID").stream_id(group_last_id);
            1
        }
        StreamPiece::Returned { .. } => return Err(Problem::ReturnedEntries),
        // A target without the feature has nothing to configure.
        StreamPiece::Producers { .. } if !target.knows_stream_producers() => 0,
        StreamPiece::Producers { seconds, entries } => {
            let mut command = CommandWriter::new(out, 6);
            command.arg(b"XCFGSET").arg(key);
            command.arg(b"IDMP-DURATION").number(seconds);
            command.arg(b"IDMP-MAXSIZE").number(entries);
            1
        }
        StreamPiece::Produced { .. } if !target.knows_stream_producers() => {
            return Err(Problem::TargetLacksProducers);
        }
        StreamPiece::Produced { producer, name, id } => {
            let mut command = CommandWriter::new(out, 5);
            command.arg(b"XIDMPRECORD").arg(key).arg(producer).arg(name);
            command.stream_id(id);
            1
        }
    })
}

fn write_properties(
    key: &[u8],
    last_id: StreamId,
    counters: Option<(u64, StreamId)>,
    out: &mut Vec<u8>,
    target: &TargetFormat,
) {
    let counters = counters.filter(|_| target.knows_stream_counters());
    let mut command = CommandWriter::new(out, if counters.is_some() { 7 } else { 3 });
    command.arg(b"XSETID").arg(key).stream_id(last_id);
    if let Some((entries_added, max_deleted)) = counters {
        command.arg(b"ENTRIESADDED").number(entries_added);
        command.arg(b"MAXDELETEDID").stream_id(max_deleted);
    }
}
