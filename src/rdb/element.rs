//! Takes a value apart into batches of elements, in memory bounded by the largest single element.

use super::Lineage;
use super::error::{Halt, Problem};
use super::grammar::{Op, Role};
use super::lzf;
use super::packed::{Element, Packing};
use super::part::{Content, NO_DEADLINE, StreamPiece, StreamPieces, Texts};
use super::stream::NodeReader;
use super::template::Templates;
use super::walk::{StreamId, Token, Walk, parse_score};
use super::wire::{Cursor, Text, TextHead};
use crate::limits;

/// Elements gathered for one [`Part`](super::Part).
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    scores: Vec<f64>,
    deadlines: Vec<u64>,
    ids: Vec<StreamId>,
    pub pieces: Vec<PieceRecord>,
}

/// A [`StreamPiece`] by the places of its texts in the batch.
#[derive(Debug)]
pub(super) enum PieceRecord {
    Entry {
        id: StreamId,
        first: usize,
        end: usize,
    },
    Properties {
        last_id: StreamId,
        counters: Option<(u64, StreamId)>,
        is_empty: bool,
    },
    Group {
        name: usize,
        last_id: StreamId,
        entries_read: Option<i64>,
    },
    /// The group's name is the text before the consumer's.
    Consumer {
        name: usize,
        group_last_id: StreamId,
    },
    Pending {
        consumer: usize,
        group_last_id: StreamId,
        delivered_at_ms: u64,
        deliveries: u64,
        first_id: usize,
        end_id: usize,
    },
    Returned {
        group: usize,
        first_id: usize,
        end_id: usize,
    },
    Producers {
        seconds: u64,
        entries: u64,
    },
    /// The producer's name is the text before the entry's.
    Produced {
        name: usize,
        id: StreamId,
    },
}

impl PieceRecord {
    pub fn view<'a>(&self, batch: &'a Batch) -> StreamPiece<'a> {
        match *self {
            PieceRecord::Entry { id, first, end } => StreamPiece::Entry {
                id,
                pairs: batch.texts(first, end),
            },
            PieceRecord::Properties {
                last_id,
                counters,
                is_empty,
            } => StreamPiece::Properties {
                last_id,
                counters,
                is_empty,
            },
            PieceRecord::Group {
                name,
                last_id,
                entries_read,
            } => StreamPiece::Group {
                name: batch.text(name),
                last_id,
                entries_read,
            },
            PieceRecord::Consumer {
                name,
                group_last_id,
            } => StreamPiece::Consumer {
                group: batch.text(name - 1),
                name: batch.text(name),
                group_last_id,
            },
            PieceRecord::Pending {
                consumer,
                group_last_id,
                delivered_at_ms,
                deliveries,
                first_id,
                end_id,
            } => StreamPiece::Pending {
                group: batch.text(consumer - 1),
                consumer: batch.text(consumer),
                group_last_id,
                delivered_at_ms,
                deliveries,
                ids: &batch.ids[first_id..end_id],
            },
            PieceRecord::Returned {
                group,
                first_id,
                end_id,
            } => StreamPiece::Returned {
                group: batch.text(group),
                ids: &batch.ids[first_id..end_id],
            },
            PieceRecord::Producers { seconds, entries } => {
                StreamPiece::Producers { seconds, entries }
            }
            PieceRecord::Produced { name, id } => StreamPiece::Produced {
                producer: batch.text(name - 1),
                name: batch.text(name),
                id,
            },
        }
    }
}

impl Batch {
    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(2 * limits::PART_BYTES);
        self.ends.clear();
        self.scores.clear();
        self.deadlines.clear();
        self.ids.clear();
        self.pieces.clear();
    }

    fn is_full(&self) -> bool {
        let elements = self.ends.len().max(self.ids.len()).max(self.pieces.len());
        self.bytes.len() >= limits::PART_BYTES || elements >= limits::PART_ELEMENTS
    }

    pub fn text_count(&self) -> usize {
        self.ends.len()
    }

    fn text(&self, index: usize) -> &[u8] {
        &self.bytes[self.text_start(index)..self.ends[index]]
    }

    fn text_start(&self, index: usize) -> usize {
        match index {
            0 => 0,
            _ => self.ends[index - 1],
        }
    }

    fn texts(&self, first: usize, end: usize) -> Texts<'_> {
        Texts {
            bytes: &self.bytes,
            start: self.text_start(first),
            ends: &self.ends[first..end],
        }
    }

    fn all_texts(&self) -> Texts<'_> {
        self.texts(0, self.ends.len())
    }

    fn push_text(&mut self, text: Text<'_>) -> Result<(), Problem> {
        text.append_to(&mut self.bytes)?;
        self.ends.push(self.bytes.len());
        Ok(())
    }

    pub fn push_element(&mut self, element: &Element<'_>) {
        element.append_to(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    pub fn truncate_texts(&mut self, count: usize) {
        let end = self.text_start(count);
        self.ends.truncate(count);
        self.bytes.truncate(end);
    }

    pub fn push_entry(&mut self, id: StreamId, first: usize) {
        let end = self.ends.len();
        self.pieces.push(PieceRecord::Entry { id, first, end });
    }

    fn push_name(&mut self, name: &[u8]) -> usize {
        self.bytes.extend_from_slice(name);
        self.ends.push(self.bytes.len());
        self.ends.len() - 1
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    String,
    List,
    Set,
    SortedSet,
    Hash,
    Stream,
}

impl Kind {
    fn of(type_code: u8, lineage: Lineage) -> Option<Self> {
        Some(match type_code {
            0 => Kind::String,
            1 | 10 | 14 | 18 => Kind::List,
            2 | 11 | 20 => Kind::Set,
            3 | 5 | 12 | 17 => Kind::SortedSet,
            4 | 9 | 13 | 16 | 24 | 25 | 29..=32 => Kind::Hash,
            15 | 19 | 21 | 26 | 27 => Kind::Stream,
            22 => Kind::Hash,
            // The same number is a hash of Redis and a path hash of Valkey.
            23 if lineage == Lineage::Redis => Kind::Hash,
            _ => return None,
        })
    }
}

/// Whether a value of `type_code` can be written by elements.
pub(super) fn has_elements(type_code: u8, lineage: Lineage) -> bool {
    Kind::of(type_code, lineage).is_some()
}

/// A string whose bytes are still to come.
enum LongText {
    Raw {
        left: usize,
    },
    /// `self.plain[fresh_from..]` is not handed out yet; what is before it is the window.
    Lzf {
        packed_left: usize,
        plain_left: usize,
    },
}

/// A delivered entry that no consumer has acknowledged.
struct Delivery {
    id: StreamId,
    at_ms: u64,
    count: u64,
}

#[derive(Default)]
struct StreamState {
    node_id: StreamId,
    node: NodeReader,
    has_entries: bool,
    last_id: StreamId,
    max_deleted_id: Option<StreamId>,
    entries_added: u64,
    group: Vec<u8>,
    group_last_id: StreamId,
    group_entries_read: Option<i64>,
    /// Of the current group, ascending by id.
    deliveries: Vec<Delivery>,
    consumer: Vec<u8>,
    /// Whether the last piece of the batch is the current consumer's.
    consumer_is_last: bool,
    producer_seconds: u64,
    producer: Vec<u8>,
    producer_entry: Vec<u8>,
}

/// Names for the values of a hash that stores none itself.
#[derive(Default)]
struct TemplateState {
    /// The value names its template; else the names come with it.
    is_reference: bool,
    /// Number of its first name, how many there are, and how many have their value.
    first: usize,
    count: usize,
    used: usize,
    /// Names that belong to templates of the snapshot; those of the value itself stand behind them.
    shared_names: usize,
}

impl StreamState {
    /// Forgets a stream before, but not its buffers.
    fn reset(&mut self) {
        self.has_entries = false;
        self.max_deleted_id = None;
        self.deliveries.clear();
        self.consumer_is_last = false;
    }
}

/// A value being taken apart. One is used for all values, for its buffers.
#[derive(Default)]
pub(super) struct Elements {
    kind: Kind,
    walk: Walk,
    batch: Batch,
    /// Elements or bytes handed out in earlier parts.
    before: u64,
    is_handed_out: bool,
    node_is_plain: bool,
    deadline_base: u64,
    long_text: Option<LongText>,
    plain: Vec<u8>,
    fresh_from: usize,
    /// The packed string being read: its meaning, its bytes, the place within.
    pack: Option<(Role, Packing)>,
    pack_bytes: Vec<u8>,
    pack_at: usize,
    stream: StreamState,
    template: TemplateState,
    pub templates: Templates,
}

/// Types that name a template of the snapshot.
const TEMPLATE_REFERENCES: [u8; 2] = [30, 32];

impl Elements {
    /// Begins the value of `type_code`, which must be one that [`has_elements`].
    pub fn open(&mut self, type_code: u8, lineage: Lineage, program: &'static [Op]) {
        self.kind = Kind::of(type_code, lineage).expect("its elements were asked for");
        self.walk = Walk::new(program);
        self.batch.clear();
        self.before = 0;
        self.is_handed_out = false;
        self.long_text = None;
        self.plain.clear();
        self.fresh_from = 0;
        self.pack = None;
        self.stream.reset();
        let names = self.templates.name_count();
        self.template = TemplateState {
            is_reference: TEMPLATE_REFERENCES.contains(&type_code),
            first: names,
            shared_names: names,
            ..TemplateState::default()
        };
    }

    /// Reads until a batch is full or the value ends: then `Ok`, with whether it ended. `cursor` moves past
    /// what is used up; on [`Halt::More`] what was gathered so far is kept.
    pub fn fill(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Halt> {
        if self.is_handed_out {
            self.clear_batch();
        }
        let result = self.gather(cursor);
        self.is_handed_out = result.is_ok();
        result
    }

    fn gather(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Halt> {
        loop {
            if self.long_text.is_some() {
                return self.fill_long_text(cursor);
            }
            if self.pack.is_some() {
                if self.unpack()? {
                    return Ok(false);
                }
                continue;
            }
            if self.walk.is_at_whole_text() && self.open_long_text(cursor)? {
                continue;
            }
            match self.walk.next(cursor)? {
                Token::End => {
                    self.templates.truncate(self.template.shared_names);
                    return Ok(true);
                }
                token => {
                    if self.take(token)? && self.batch.is_full() {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// What [`Elements::fill`] gathered.
    pub fn content(&self) -> Content<'_> {
        let texts = self.batch.all_texts();
        match self.kind {
            Kind::String => Content::String {
                offset: self.before,
                bytes: match self.long_text {
                    Some(LongText::Lzf { .. }) => &self.plain[self.fresh_from..],
                    _ => &self.batch.bytes,
                },
            },
            Kind::List => Content::List {
                before: self.before,
                items: texts,
            },
            Kind::Set => Content::Set { members: texts },
            Kind::SortedSet => Content::SortedSet {
                members: texts,
                scores: &self.batch.scores,
            },
            Kind::Hash => Content::Hash {
                pairs: texts,
                deadlines: &self.batch.deadlines,
            },
            Kind::Stream => Content::Stream(StreamPieces { batch: &self.batch }),
        }
    }

    /// Forgets what was handed out.
    fn clear_batch(&mut self) {
        self.before += match self.kind {
            Kind::String => match self.content() {
                Content::String { bytes, .. } => bytes.len() as u64,
                _ => 0,
            },
            _ => self.batch.ends.len() as u64,
        };
        self.batch.clear();
        self.stream.consumer_is_last = false;
        if self.plain.len() > lzf::WINDOW_BYTES {
            let surplus = self.plain.len() - lzf::WINDOW_BYTES;
            self.plain.drain(..surplus);
        }
        self.fresh_from = self.plain.len();
    }

    /// Begins a string that is handed out as it comes; `false` for one that is a small integer.
    fn open_long_text(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Halt> {
        let mut ahead = *cursor;
        self.long_text = Some(match ahead.text_head()? {
            TextHead::Integer { .. } => return Ok(false),
            TextHead::Raw { bytes } => LongText::Raw { left: bytes },
            TextHead::Lzf { packed, plain } => LongText::Lzf {
                packed_left: packed,
                plain_left: plain,
            },
        });
        *cursor = ahead;
        Ok(true)
    }

    fn fill_long_text(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Halt> {
        match self.long_text.as_mut().expect("a long text is open") {
            LongText::Raw { left } => {
                let bytes = cursor.take((*left).min(limits::PART_BYTES))?;
                self.batch.bytes.extend_from_slice(bytes);
                *left -= bytes.len();
                Ok(*left == 0)
            }
            LongText::Lzf {
                packed_left,
                plain_left,
            } => {
                let rest = cursor.rest();
                let packed = &rest[..rest.len().min(*packed_left)];
                let had = self.plain.len();
                let stop_at = self.fresh_from + limits::PART_BYTES;
                let used = lzf::decompress_some(packed, &mut self.plain, stop_at)?;
                cursor.take(used)?;
                let more_packed = packed.len() < *packed_left;
                *packed_left -= used;
                *plain_left = plain_left
                    .checked_sub(self.plain.len() - had)
                    .ok_or(Problem::BadCompression)?;
                if *packed_left == 0 {
                    return if *plain_left == 0 {
                        Ok(true)
                    } else {
                        Err(Problem::BadCompression.into())
                    };
                }
                if self.plain.len() >= stop_at {
                    return Ok(false);
                }
                if more_packed {
                    return Err(Halt::More {
                        needed: cursor.at() as u64 + 1,
                    });
                }
                Err(Problem::BadCompression.into())
            }
        }
    }

    /// Takes one piece; whether an element is complete with it.
    fn take(&mut self, token: Token<'_>) -> Result<bool, Problem> {
        match token {
            Token::Text(role, text) => return self.take_text(role, text),
            Token::Score(score) => self.batch.scores.push(score),
            Token::Number(role, value) => return self.take_number(role, value),
            Token::Id(role, id) => return self.take_id(role, id),
            Token::Count(role) => return Ok(self.take_count(role)),
            Token::Skipped | Token::End => return Ok(false),
        }
        Ok(true)
    }

    fn take_text(&mut self, role: Role, text: Text<'_>) -> Result<bool, Problem> {
        let packing = match role {
            Role::Whole | Role::Item | Role::FieldValue => {
                self.batch.push_text(text)?;
                if self.kind == Kind::Hash && !self.batch.deadlines.is_empty() {
                    debug_assert_eq!(self.batch.deadlines.len() * 2, self.batch.ends.len());
                }
                return Ok(true);
            }
            Role::Member => {
                self.batch.push_text(text)?;
                return Ok(self.kind == Kind::Set);
            }
            Role::Field | Role::FieldValueBeforeDeadline => {
                self.batch.push_text(text)?;
                return Ok(false);
            }
            Role::ListPackOrPlain if self.node_is_plain => {
                self.batch.push_text(text)?;
                return Ok(true);
            }
            Role::TemplateField => {
                self.templates.add_name(|names| text.append_to(names))?;
                self.template.count += 1;
                return Ok(false);
            }
            Role::TemplateFields => {
                let bytes = text.resolve(&mut self.pack_bytes)?;
                let mut at = Packing::Listpack.start(bytes)?;
                while let Some(name) = Packing::Listpack.next(bytes, &mut at)? {
                    self.templates.add_name(|names| {
                        name.append_to(names);
                        Ok(())
                    })?;
                    self.template.count += 1;
                }
                return Ok(false);
            }
            Role::TemplateValue => {
                self.push_template_name()?;
                self.batch.push_text(text)?;
                return Ok(true);
            }
            Role::ProducerName | Role::ProducerEntryName => {
                let name = match role {
                    Role::ProducerName => &mut self.stream.producer,
                    _ => &mut self.stream.producer_entry,
                };
                name.clear();
                text.append_to(name)?;
                return Ok(false);
            }
            Role::StreamNodeId => {
                let key = text.resolve(&mut self.pack_bytes)?;
                let key: &[u8; 16] = key.try_into().map_err(|_| Problem::BadStream)?;
                self.stream.node_id = StreamId::from_key(*key);
                return Ok(false);
            }
            Role::GroupName | Role::ConsumerName => {
                let name = match role {
                    Role::GroupName => &mut self.stream.group,
                    _ => &mut self.stream.consumer,
                };
                name.clear();
                text.append_to(name)?;
                self.stream.group_entries_read = match role {
                    Role::GroupName => None,
                    _ => self.stream.group_entries_read,
                };
                return Ok(false);
            }
            Role::ListZiplist | Role::SortedSetZiplist | Role::HashZiplist => Packing::Ziplist,
            Role::SetIntset => Packing::Intset,
            Role::HashZipmap => Packing::Zipmap,
            _ => Packing::Listpack,
        };
        self.pack_bytes.clear();
        text.append_to(&mut self.pack_bytes)?;
        self.pack_at = packing.start(&self.pack_bytes)?;
        if role == Role::StreamNode {
            self.stream
                .node
                .open(self.stream.node_id, &self.pack_bytes)?;
        }
        if role == Role::TemplateValues {
            let id = packing.next(&self.pack_bytes, &mut self.pack_at)?;
            let id = id.and_then(|id| id.as_integer());
            let id = id.ok_or(Problem::BadTemplate)?;
            if self.template.is_reference {
                self.use_template(id as u64)?;
            }
        }
        self.pack = Some((role, packing));
        Ok(false)
    }

    /// The values that follow are those of the template `id`.
    fn use_template(&mut self, id: u64) -> Result<(), Problem> {
        (self.template.first, self.template.count) = self.templates.find(id)?;
        self.walk.set_count(self.template.count as u64);
        Ok(())
    }

    /// Adds the name to which the next value belongs.
    fn push_template_name(&mut self) -> Result<(), Problem> {
        let template = &mut self.template;
        if template.used == template.count {
            return Err(Problem::BadTemplate);
        }
        self.batch
            .push_name(self.templates.name(template.first + template.used));
        template.used += 1;
        Ok(())
    }

    /// Reads on in the packed string; whether the batch is full before it ends.
    fn unpack(&mut self) -> Result<bool, Problem> {
        let (role, packing) = self.pack.expect("a packed string is open");
        if role == Role::TemplateValues {
            return self.unpack_template_values();
        }
        let bytes = &self.pack_bytes;
        let at = &mut self.pack_at;
        while !self.batch.is_full() {
            let more = match role {
                Role::StreamNode => {
                    let more = self.stream.node.next_entry(bytes, &mut self.batch)?;
                    self.stream.has_entries |= more;
                    more
                }
                Role::SortedSetPack | Role::SortedSetZiplist => {
                    match packing.next_pair(bytes, at)? {
                        Some([member, score]) => {
                            self.batch.push_element(&member);
                            self.batch.scores.push(element_score(&score)?);
                            true
                        }
                        None => false,
                    }
                }
                Role::HashPack | Role::HashZiplist | Role::HashZipmap | Role::HashPackDeadlines => {
                    match packing.next_pair(bytes, at)? {
                        Some([field, value]) => {
                            self.batch.push_element(&field);
                            self.batch.push_element(&value);
                            if role == Role::HashPackDeadlines {
                                let deadline = packing.next(bytes, at)?;
                                self.batch.deadlines.push(element_deadline(deadline)?);
                            }
                            true
                        }
                        None => false,
                    }
                }
                _ => match packing.next(bytes, at)? {
                    Some(element) => {
                        self.batch.push_element(&element);
                        true
                    }
                    None => false,
                },
            };
            if !more {
                self.pack = None;
                self.pack_bytes.shrink_to(limits::PART_BYTES);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// As [`Elements::unpack`], for values without names.
    fn unpack_template_values(&mut self) -> Result<bool, Problem> {
        while !self.batch.is_full() {
            let mut at = self.pack_at;
            let is_end = Packing::Listpack.next(&self.pack_bytes, &mut at)?.is_none();
            if is_end {
                self.pack = None;
                return if self.template.used == self.template.count {
                    Ok(false)
                } else {
                    Err(Problem::BadTemplate)
                };
            }
            self.push_template_name()?;
            if let Some(value) = Packing::Listpack.next(&self.pack_bytes, &mut self.pack_at)? {
                self.batch.push_element(&value);
            }
        }
        Ok(true)
    }

    fn take_number(&mut self, role: Role, value: u64) -> Result<bool, Problem> {
        match role {
            Role::TemplateId => self.use_template(value)?,
            Role::ProducerSeconds => self.stream.producer_seconds = value,
            Role::ProducerEntries => {
                self.batch.pieces.push(PieceRecord::Producers {
                    seconds: self.stream.producer_seconds,
                    entries: value,
                });
                return Ok(true);
            }
            Role::NodeForm => self.node_is_plain = value == 1,
            Role::DeadlineBase => self.deadline_base = value,
            Role::DeadlineAfter => {
                // -1 for none; a negative one lies in the past.
                let deadline = match value as i64 {
                    -1 => NO_DEADLINE,
                    other => other.max(0) as u64,
                };
                self.batch.deadlines.push(deadline);
                return Ok(true);
            }
            Role::DeadlineBeforeRelative | Role::DeadlineBeforeAbsolute => {
                let deadline = match (value, role) {
                    (0, _) => NO_DEADLINE,
                    (more, Role::DeadlineBeforeRelative) => {
                        self.deadline_base.saturating_add(more - 1)
                    }
                    (absolute, _) => absolute,
                };
                self.batch.deadlines.push(deadline);
            }
            Role::StreamEntriesAdded => self.stream.entries_added = value,
            Role::GroupEntriesRead => self.stream.group_entries_read = Some(value as i64),
            Role::PendingTime => {
                if let Some(delivery) = self.stream.deliveries.last_mut() {
                    delivery.at_ms = value;
                }
            }
            Role::PendingDeliveries => {
                if let Some(delivery) = self.stream.deliveries.last_mut() {
                    delivery.count = value;
                }
            }
            _ => {}
        }
        Ok(false)
    }

    fn take_id(&mut self, role: Role, id: StreamId) -> Result<bool, Problem> {
        let stream = &mut self.stream;
        match role {
            Role::StreamLastId => stream.last_id = id,
            Role::StreamMaxDeletedId => stream.max_deleted_id = Some(id),
            Role::GroupLastId => stream.group_last_id = id,
            Role::PendingId => {
                if stream.deliveries.last().is_some_and(|last| last.id >= id) {
                    return Err(Problem::BadStream);
                }
                stream.deliveries.push(Delivery {
                    id,
                    at_ms: 0,
                    count: 0,
                });
            }
            Role::ConsumerPendingId => {
                let found = stream
                    .deliveries
                    .binary_search_by_key(&id, |known| known.id);
                let delivery = &stream.deliveries[found.map_err(|_| Problem::BadStream)?];
                push_pending(&mut self.batch, stream, delivery);
                stream.consumer_is_last = true;
                return Ok(true);
            }
            Role::ReturnedId => {
                self.batch.ids.push(id);
                let ids = self.batch.ids.len();
                let group = self.batch.push_name(&stream.group);
                self.batch.pieces.push(PieceRecord::Returned {
                    group,
                    first_id: ids - 1,
                    end_id: ids,
                });
                return Ok(true);
            }
            Role::ProducerEntryId => {
                self.batch.push_name(&stream.producer);
                let name = self.batch.push_name(&stream.producer_entry);
                self.batch.pieces.push(PieceRecord::Produced { name, id });
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    fn take_count(&mut self, role: Role) -> bool {
        let (stream, batch) = (&mut self.stream, &mut self.batch);
        let piece = match role {
            Role::StreamGroups => PieceRecord::Properties {
                last_id: stream.last_id,
                counters: stream.max_deleted_id.map(|id| (stream.entries_added, id)),
                is_empty: !stream.has_entries,
            },
            Role::GroupPending => {
                stream.deliveries.clear();
                PieceRecord::Group {
                    name: batch.push_name(&stream.group),
                    last_id: stream.group_last_id,
                    entries_read: stream.group_entries_read,
                }
            }
            Role::ConsumerPending => {
                stream.consumer_is_last = false;
                batch.push_name(&stream.group);
                PieceRecord::Consumer {
                    name: batch.push_name(&stream.consumer),
                    group_last_id: stream.group_last_id,
                }
            }
            _ => return false,
        };
        batch.pieces.push(piece);
        true
    }
}

/// Adds an entry to the consumer's piece before it if they were delivered alike, else makes a new one.
fn push_pending(batch: &mut Batch, stream: &StreamState, delivery: &Delivery) {
    batch.ids.push(delivery.id);
    let ids = batch.ids.len();
    if let Some(PieceRecord::Pending {
        delivered_at_ms,
        deliveries,
        end_id,
        ..
    }) = batch.pieces.last_mut()
        && stream.consumer_is_last
        && (*delivered_at_ms, *deliveries) == (delivery.at_ms, delivery.count)
    {
        *end_id = ids;
        return;
    }
    batch.push_name(&stream.group);
    let consumer = batch.push_name(&stream.consumer);
    batch.pieces.push(PieceRecord::Pending {
        consumer,
        group_last_id: stream.group_last_id,
        delivered_at_ms: delivery.at_ms,
        deliveries: delivery.count,
        first_id: ids - 1,
        end_id: ids,
    });
}

fn element_score(element: &Element<'_>) -> Result<f64, Problem> {
    match *element {
        Element::Integer(value) => Ok(value as f64),
        Element::Text(text) => parse_score(text),
    }
}

fn element_deadline(element: Option<Element<'_>>) -> Result<u64, Problem> {
    let value = element.and_then(|element| element.as_integer());
    match value.ok_or(Problem::BadPacked("listpack"))? {
        0 => Ok(NO_DEADLINE),
        other => Ok(other.max(0) as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdb::Lineage;
    use crate::rdb::grammar::{TYPE_MODULE, value_program};

    #[test]
    fn every_type_has_elements_but_those_that_only_restore_writes() {
        for lineage in [Lineage::Redis, Lineage::Valkey] {
            for code in 0..=255 {
                let whole_only = match lineage {
                    Lineage::Redis => matches!(code, TYPE_MODULE | 28 | 33),
                    Lineage::Valkey => matches!(code, TYPE_MODULE | 23),
                };
                let is_known = value_program(code, lineage).is_some();
                assert!(!is_known || has_elements(code, lineage) != whole_only);
            }
        }
    }
}
