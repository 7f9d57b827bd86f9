//! Puts parts together again, to compare them with what was written.

use crate::writer::{Bytes, Content, Entry, Group, Id, Stream};
use slotstream::rdb::{
    self, Decoder, Item, LeftOut, NO_DEADLINE, Options, Part, Problem, RdbError, StreamPiece, Texts,
};
use std::collections::BTreeMap;

/// What a decoder said about a snapshot.
#[derive(Debug, Default)]
pub struct Collected {
    pub entries: Vec<Entry>,
    pub aux: Vec<(Bytes, Bytes)>,
    pub functions: Vec<Bytes>,
    /// Type and serialized bytes of the values that passed whole, with the key.
    pub whole: Vec<(Bytes, u8, Bytes)>,
    pub commands: Bytes,
    pub command_count: usize,
    pub has_ended: bool,
    pub has_checksum: bool,
    pub unsupported: Vec<(Bytes, Problem)>,
    pub left_out: Vec<LeftOut>,
    /// Metadata of the values that passed whole with some.
    pub metadata: Vec<Bytes>,
    /// The key of the next part did not have one yet that is more than a piece.
    is_new: bool,
    /// What came in pieces of the next element.
    gathered: Vec<Bytes>,
}

type Gathered = BTreeMap<usize, Bytes>;

/// The texts, with those that came in pieces in their places.
fn plain_texts(texts: Texts<'_>, gathered: &Gathered) -> Vec<Bytes> {
    let plain = texts.iter().enumerate();
    plain
        .map(|(index, text)| match gathered.get(&index) {
            Some(whole) => {
                assert!(text.is_empty());
                whole.clone()
            }
            None => text.to_vec(),
        })
        .collect()
}

/// Decodes `snapshot`, given in pieces of the lengths that `next_length` says.
pub fn collect(
    snapshot: &[u8],
    options: Options,
    mut next_length: impl FnMut() -> usize,
) -> Result<Collected, RdbError> {
    let mut decoder = Decoder::new(options);
    let mut collected = Collected::default();
    let (mut start, mut end) = (0, 0);
    loop {
        let mut reader = decoder.read(&snapshot[start..end]);
        loop {
            match reader.next()? {
                Item::NeedMore => break,
                item => collected.take(item, &options),
            }
            if collected.has_ended {
                assert_eq!(start + reader.consumed_bytes(), snapshot.len());
                return Ok(collected);
            }
        }
        start += reader.consumed_bytes();
        drop(reader);
        assert_eq!(decoder.consumed_bytes(), start as u64);
        if end == snapshot.len() {
            return Ok(collected);
        }
        end = (end + next_length().max(1)).min(snapshot.len());
    }
}

impl Collected {
    fn take(&mut self, item: Item<'_>, options: &Options) {
        match item {
            Item::Value(value) => {
                self.command_count += value.write_restore(&mut self.commands);
                let whole = (
                    value.key.to_vec(),
                    value.type_code,
                    value.serialized.to_vec(),
                );
                self.whole.push(whole);
                if !value.metadata.is_empty() {
                    self.metadata.push(value.metadata.to_vec());
                }
            }
            Item::Unsupported(unsupported) => {
                self.unsupported
                    .push((unsupported.key.to_vec(), unsupported.problem));
            }
            Item::LeftOut(what) => self.left_out.push(what),
            Item::Part(part) => {
                let before = self.commands.len();
                match part.write_commands(&mut self.commands, &options.target) {
                    Ok(written) => self.command_count += written,
                    Err(_) => self.commands.truncate(before),
                }
                self.take_part(&part);
            }
            Item::Aux { key, value } => self.aux.push((key.to_vec(), value.to_vec())),
            Item::Function { code } => self.functions.push(code.to_vec()),
            Item::End { has_checksum } => {
                self.has_ended = true;
                self.has_checksum = has_checksum;
            }
            _ => {}
        }
    }

    fn take_part(&mut self, part: &Part<'_>) {
        self.is_new |= part.is_first;
        if let rdb::Content::Piece {
            number,
            offset,
            whole_bytes,
            bytes,
        } = part.content
        {
            assert!(part.gathered.is_empty() && !part.is_last);
            self.gathered.resize(number + 1, Vec::new());
            assert_eq!(self.gathered[number].len() as u64, offset);
            self.gathered[number].extend(bytes);
            assert!(self.gathered[number].len() as u64 <= whole_bytes);
            return;
        }
        let mut gathered = BTreeMap::new();
        for known in part.gathered {
            let text = std::mem::take(&mut self.gathered[known.number]);
            assert_eq!(text.len() as u64, known.bytes);
            gathered.insert(known.text, text);
        }
        if std::mem::take(&mut self.is_new) {
            self.entries.push(Entry {
                key: part.key.to_vec(),
                database: part.database,
                expire_at_ms: part.expire_at_ms,
                idle_seconds: None,
                frequency: None,
                content: empty(&part.content),
            });
        }
        let entry = self.entries.last_mut().expect("the first part came first");
        assert_eq!(entry.key, part.key);
        append(&mut entry.content, &part.content, &gathered);
    }
}

fn empty(content: &rdb::Content<'_>) -> Content {
    match content {
        rdb::Content::String { .. } => Content::String(Vec::new()),
        rdb::Content::List { .. } => Content::List(Vec::new()),
        rdb::Content::Set { .. } => Content::Set(Vec::new()),
        rdb::Content::SortedSet { .. } => Content::SortedSet(BTreeMap::new()),
        rdb::Content::Hash { .. } => Content::Hash(BTreeMap::new()),
        rdb::Content::Stream(_) => Content::Stream(Stream::default()),
        rdb::Content::Piece { .. } => unreachable!("pieces are no contents of their own"),
    }
}

fn append(whole: &mut Content, part: &rdb::Content<'_>, gathered: &Gathered) {
    match (whole, *part) {
        (Content::String(whole), rdb::Content::String { offset, bytes }) => {
            assert_eq!(whole.len() as u64, offset);
            whole.extend(bytes);
        }
        (Content::List(whole), rdb::Content::List { before, items }) => {
            assert_eq!(whole.len() as u64, before);
            whole.extend(plain_texts(items, gathered));
        }
        (Content::Set(whole), rdb::Content::Set { members }) => {
            whole.extend(plain_texts(members, gathered));
        }
        (Content::SortedSet(whole), rdb::Content::SortedSet { members, scores }) => {
            assert_eq!(members.len(), scores.len());
            let members = plain_texts(members, gathered).into_iter();
            whole.extend(members.zip(scores.iter().copied()));
        }
        (Content::Hash(whole), rdb::Content::Hash { pairs, deadlines }) => {
            assert!(deadlines.is_empty() || deadlines.len() * 2 == pairs.len());
            for (index, pair) in plain_texts(pairs, gathered).chunks(2).enumerate() {
                let (field, value) = (pair[0].clone(), pair[1].clone());
                let deadline = deadlines
                    .get(index)
                    .copied()
                    .filter(|at| *at != NO_DEADLINE);
                whole.insert(field, (value, deadline));
            }
        }
        (Content::Stream(whole), rdb::Content::Stream(pieces)) => {
            let pieces = pieces.iter();
            pieces.for_each(|piece| append_piece(whole, piece, gathered));
        }
        (whole, part) => panic!("{whole:?} goes on as {part:?}"),
    }
}

fn plain(id: rdb::StreamId) -> Id {
    (id.milliseconds, id.sequence)
}

fn append_piece(stream: &mut Stream, piece: StreamPiece<'_>, gathered: &Gathered) {
    match piece {
        StreamPiece::Entry { id, pairs } => {
            let texts = plain_texts(pairs, gathered);
            let pairs = texts
                .chunks(2)
                .map(|pair| (pair[0].clone(), pair[1].clone()));
            stream.entries.insert(plain(id), pairs.collect());
        }
        StreamPiece::Properties {
            last_id,
            counters,
            is_empty,
        } => {
            assert_eq!(is_empty, stream.entries.is_empty());
            stream.last_id = plain(last_id);
            if let Some((entries_added, max_deleted)) = counters {
                stream.entries_added = entries_added;
                stream.max_deleted_id = plain(max_deleted);
            }
        }
        StreamPiece::Group {
            name,
            last_id,
            entries_read,
        } => {
            let group = Group {
                last_id: plain(last_id),
                entries_read: entries_read.unwrap_or(0),
                consumers: BTreeMap::new(),
                returned: Vec::new(),
            };
            assert!(stream.groups.insert(name.to_vec(), group).is_none());
        }
        StreamPiece::Consumer { group, name, .. } => {
            let group = stream.groups.get_mut(group).expect("the group came first");
            group.consumers.insert(name.to_vec(), BTreeMap::new());
        }
        StreamPiece::Pending {
            group,
            consumer,
            delivered_at_ms,
            deliveries,
            ids,
            ..
        } => {
            let group = stream.groups.get_mut(group).expect("the group came first");
            let consumer = group
                .consumers
                .get_mut(consumer)
                .expect("so did the consumer");
            let ids = ids
                .iter()
                .map(|id| (plain(*id), (delivered_at_ms, deliveries)));
            consumer.extend(ids);
        }
        StreamPiece::Returned { group, ids } => {
            let group = stream.groups.get_mut(group).expect("the group came first");
            group.returned.extend(ids.iter().map(|id| plain(*id)));
        }
        StreamPiece::Producers { seconds, entries } => {
            stream.producers.limits = Some((seconds, entries));
        }
        StreamPiece::Produced { producer, name, id } => {
            let names = &mut stream.producers.names;
            names.push((producer.to_vec(), name.to_vec(), plain(id)));
        }
    }
}
