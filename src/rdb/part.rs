//! A piece of a value that is written by elements, and the commands that write it.
//!
//! Sending the parts of a key again, in order, from the start of any part on gives the same result: the
//! first part removes the key, sets, hashes and sorted sets take elements twice, strings are written at
//! an offset, lists are cut to the length they had before the part, stream entries carry their ids.
//! A list's part is one transaction of four commands: go back to the start of the part, not into it.
//! A string too long for one command comes in pieces and is put in its place behind them ([`super::gather`]).
//! How often or how long ago a key was used (`OBJECT FREQ`, `IDLETIME`) can only be said by RESTORE: a key written by elements
//! counts as just written.
//! What a target answers to a repeated XADD (id not greater) and XGROUP CREATE (BUSYGROUP) is no fault then.

use super::command::CommandWriter;
use super::gather::Gathered;
use super::{Problem, StreamId, TargetFormat};

/// Elements of one key, as many as make a command of moderate size.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    pub key: &'a [u8],
    pub database: u32,
    /// Unix time in milliseconds; written by the last part.
    pub expire_at_ms: Option<u64>,
    /// Seconds since the last use, from servers that evict by it. Commands cannot set it.
    pub idle_seconds: Option<u64>,
    /// Logarithmic access counter, from servers that evict by it. Commands cannot set it.
    pub frequency: Option<u8>,
    pub type_code: u8,
    /// Nothing of this key came before; its commands begin by removing the key.
    pub is_first: bool,
    /// Nothing of this key follows.
    pub is_last: bool,
    pub content: Content<'a>,
    /// Texts of the content that came in pieces before ([`Content::Piece`]); the content is then one element.
    pub gathered: &'a [Gathered],
}

/// The elements of a [`Part`].
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// Bytes of a string from `offset` on.
    String {
        offset: u64,
        bytes: &'a [u8],
    },
    /// `before` elements of the list came in earlier parts.
    List {
        before: u64,
        items: Texts<'a>,
    },
    Set {
        members: Texts<'a>,
    },
    SortedSet {
        members: Texts<'a>,
        scores: &'a [f64],
    },
    /// Fields and values take turns. `deadlines` is empty or has one entry for each field: Unix time in milliseconds,
    /// [`NO_DEADLINE`] for a field that stays.
    Hash {
        pairs: Texts<'a>,
        deadlines: &'a [u64],
    },
    Stream(StreamPieces<'a>),
    /// Bytes from `offset` on of a string within the element that comes next, which is too long for one command: `number` tells
    /// the strings of one element apart, `whole_bytes` is the length of all of it.
    Piece {
        number: usize,
        offset: u64,
        whole_bytes: u64,
        bytes: &'a [u8],
    },
}

impl Content<'_> {
    /// How many elements there are: entries of streams, fields of hashes; none in strings.
    pub fn element_count(&self) -> usize {
        match self {
            Content::String { .. } | Content::Piece { .. } => 0,
            Content::List { items: texts, .. } | Content::Set { members: texts } => texts.len(),
            Content::SortedSet { scores, .. } => scores.len(),
            Content::Hash { pairs, .. } => pairs.len() / 2,
            Content::Stream(pieces) => pieces
                .iter()
                .filter(|piece| matches!(piece, StreamPiece::Entry { .. }))
                .count(),
        }
    }
}

/// Marks a hash field without a deadline.
pub const NO_DEADLINE: u64 = u64::MAX;

/// Strings one behind the other.
#[derive(Debug, Clone, Copy)]
pub struct Texts<'a> {
    pub(super) bytes: &'a [u8],
    /// Where the first one starts, then where each ends.
    pub(super) start: usize,
    pub(super) ends: &'a [usize],
}

impl<'a> Texts<'a> {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        let end = *self.ends.get(index)?;
        let start = match index {
            0 => self.start,
            _ => self.ends[index - 1],
        };
        Some(&self.bytes[start..end])
    }

    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let texts = *self;
        let mut start = texts.start;
        texts.ends.iter().map(move |&end| {
            let text = &texts.bytes[start..end];
            start = end;
            text
        })
    }
}

/// A piece of a stream.
#[derive(Debug, Clone, Copy)]
pub enum StreamPiece<'a> {
    /// Fields and values take turns.
    Entry { id: StreamId, pairs: Texts<'a> },
    /// Follows all entries.
    Properties {
        last_id: StreamId,
        /// Entries ever added, and the greatest deleted id, where the source counted them.
        counters: Option<(u64, StreamId)>,
        is_empty: bool,
    },
    Group {
        name: &'a [u8],
        last_id: StreamId,
        /// -1 where the source had lost count.
        entries_read: Option<i64>,
    },
    Consumer {
        group: &'a [u8],
        name: &'a [u8],
        group_last_id: StreamId,
        /// When it last asked for something: Unix time in milliseconds.
        seen_at_ms: i64,
        /// When it last got something, where the source noted that; -1 for never.
        active_at_ms: Option<i64>,
    },
    /// Entries delivered to a consumer at the same time, equally often, and not acknowledged.
    Pending {
        group: &'a [u8],
        consumer: &'a [u8],
        group_last_id: StreamId,
        delivered_at_ms: u64,
        deliveries: u64,
        ids: &'a [StreamId],
    },
    /// Entries that consumers gave back to the group (`XNACK` of Redis 8.8): nobody's, and not acknowledged. No command is
    /// known to make just that.
    Returned {
        group: &'a [u8],
        ids: &'a [StreamId],
    },
    /// For how many seconds, and how many, entries of idempotent producers are remembered (Redis 8.6).
    Producers { seconds: u64, entries: u64 },
    /// The entry `id` was added by `producer` under `name`. How often that happened, which the snapshot tells, no command
    /// can set.
    Produced {
        producer: &'a [u8],
        name: &'a [u8],
        id: StreamId,
    },
}

/// Pieces of a stream in the order in which they must be written.
#[derive(Debug, Clone, Copy)]
pub struct StreamPieces<'a> {
    pub(super) batch: &'a super::batch::Batch,
}

impl<'a> StreamPieces<'a> {
    pub fn iter(&self) -> impl Iterator<Item = StreamPiece<'a>> + use<'a> {
        let batch = self.batch;
        batch.pieces.iter().map(move |piece| piece.view(batch))
    }
}

impl Part<'_> {
    /// Appends the commands that write this part and returns how many they are; each gets one reply.
    ///
    /// # Errors
    /// When the target cannot hold what this part says. What was appended up to there must not be sent; earlier parts of the
    /// key may have been.
    pub fn write_commands(
        &self,
        out: &mut Vec<u8>,
        target: &TargetFormat,
    ) -> Result<usize, Problem> {
        let mut commands = 0;
        // A string's first SET and a list's first transaction remove what was there themselves.
        if self.is_first && !matches!(self.content, Content::String { .. } | Content::List { .. }) {
            CommandWriter::all(out, &[b"UNLINK", self.key]);
            commands += 1;
        }
        if !self.gathered.is_empty() {
            super::gather::write_element(out, self, target)?;
            return Ok(commands + 1 + self.write_deadline(out));
        }
        commands += match self.content {
            Content::Piece {
                number,
                offset,
                bytes,
                ..
            } => {
                super::gather::write_piece(out, self.key, number, offset, bytes);
                1
            }
            Content::String { offset, bytes } => self.write_string(out, offset, bytes),
            Content::List { before, items } => self.write_list(out, before, items),
            Content::Set { members } => self.write_set(out, members),
            Content::SortedSet { members, scores } => self.write_sorted_set(out, members, scores),
            Content::Hash { pairs, deadlines } => self.write_hash(out, pairs, deadlines, target)?,
            Content::Stream(pieces) => pieces.iter().try_fold(0, |sum, piece| {
                let written = super::stream::write_piece(self.key, piece, out, target)?;
                Ok(sum + written)
            })?,
        };
        Ok(commands + self.write_deadline(out))
    }

    /// The deadline of the key goes out with the last part.
    fn write_deadline(&self, out: &mut Vec<u8>) -> usize {
        let (true, Some(at)) = (self.is_last, self.expire_at_ms) else {
            return 0;
        };
        CommandWriter::new(out, 3)
            .arg(b"PEXPIREAT")
            .arg(self.key)
            .number(at);
        1
    }

    fn write_string(&self, out: &mut Vec<u8>, offset: u64, bytes: &[u8]) -> usize {
        if self.is_first {
            CommandWriter::all(out, &[b"SET", self.key, bytes]);
        } else if bytes.is_empty() {
            return 0;
        } else {
            CommandWriter::new(out, 4)
                .arg(b"SETRANGE")
                .arg(self.key)
                .number(offset)
                .arg(bytes);
        }
        1
    }

    fn write_list(&self, out: &mut Vec<u8>, before: u64, items: Texts<'_>) -> usize {
        if items.is_empty() {
            if self.is_first {
                CommandWriter::all(out, &[b"UNLINK", self.key]);
                return 1;
            }
            return 0;
        }
        CommandWriter::all(out, &[b"MULTI"]);
        if before == 0 {
            CommandWriter::all(out, &[b"UNLINK", self.key]);
        } else {
            CommandWriter::new(out, 4)
                .arg(b"LTRIM")
                .arg(self.key)
                .arg(b"0")
                .number(before - 1);
        }
        let mut push = CommandWriter::new(out, 2 + items.len());
        push.arg(b"RPUSH").arg(self.key);
        for item in items.iter() {
            push.arg(item);
        }
        CommandWriter::all(out, &[b"EXEC"]);
        4
    }

    fn write_set(&self, out: &mut Vec<u8>, members: Texts<'_>) -> usize {
        if members.is_empty() {
            return 0;
        }
        let mut command = CommandWriter::new(out, 2 + members.len());
        command.arg(b"SADD").arg(self.key);
        for member in members.iter() {
            command.arg(member);
        }
        1
    }

    fn write_sorted_set(&self, out: &mut Vec<u8>, members: Texts<'_>, scores: &[f64]) -> usize {
        if members.is_empty() {
            return 0;
        }
        let mut command = CommandWriter::new(out, 2 + 2 * members.len());
        command.arg(b"ZADD").arg(self.key);
        for (member, score) in members.iter().zip(scores) {
            command.score(*score).arg(member);
        }
        1
    }

    fn write_hash(
        &self,
        out: &mut Vec<u8>,
        pairs: Texts<'_>,
        deadlines: &[u64],
        target: &TargetFormat,
    ) -> Result<usize, Problem> {
        if pairs.is_empty() {
            return Ok(0);
        }
        let mut command = CommandWriter::new(out, 2 + pairs.len());
        command.arg(b"HSET").arg(self.key);
        for text in pairs.iter() {
            command.arg(text);
        }
        let mut commands = 1;
        let mut index = 0;
        while index < deadlines.len() {
            let deadline = deadlines[index];
            let same = deadlines[index..]
                .iter()
                .take_while(|other| **other == deadline)
                .count();
            if deadline != NO_DEADLINE {
                if !target.knows_field_expiry() {
                    return Err(Problem::TargetLacksFieldExpiry);
                }
                let mut command = CommandWriter::new(out, 5 + same);
                command.arg(b"HPEXPIREAT").arg(self.key).number(deadline);
                command.arg(b"FIELDS").number(same);
                for field in pairs.iter().step_by(2).skip(index).take(same) {
                    command.arg(field);
                }
                commands += 1;
            }
            index += same;
        }
        Ok(commands)
    }
}
