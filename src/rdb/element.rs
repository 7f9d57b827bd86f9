//! Takes a value apart into batches of elements, in memory bounded by the largest single element.

use super::Lineage;
use super::batch::{Batch, PieceRecord};
use super::error::{Halt, Problem};
use super::flow::Flow;
use super::gather::Gathered;
use super::grammar::{self, Op, Role};
use super::packed::{Element, LongString, Packing, Read};
use super::part::{Content, NO_DEADLINE, StreamPieces};
use super::stream::NodeReader;
use super::template::{TemplateState, Templates};
use super::unpack::{LongText, LongUse, Pack, Placed, Purpose, Receiver, push};
use super::walk::{StreamId, Token, Walk};
use super::wire::{Cursor, Text, TextHead};
use crate::limits;

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

/// Whether a field of a serialized hash ends before `until_ms`. Asked of values that a server restores; other types have no
/// such fields, nor have damaged values.
pub fn has_near_field(type_code: u8, lineage: Lineage, value: &[u8], until_ms: u64) -> bool {
    if until_ms == 0 || !grammar::restores_field_deadlines(type_code, lineage) {
        return false;
    }
    let Some(program) = grammar::value_program(type_code, lineage) else {
        return false;
    };
    let mut walk = Walk::new(program);
    let mut cursor = Cursor::new(value, 0);
    loop {
        match walk.next(&mut cursor) {
            Ok(Token::Number(Role::DeadlineBase, earliest)) => return earliest < until_ms,
            Ok(Token::Number(Role::DeadlineAfter, at)) if deadline_after(at) < until_ms => {
                return true;
            }
            Ok(Token::End) | Err(_) => return false,
            Ok(_) => {}
        }
    }
}

/// -1 for none; a negative one lies in the past.
fn deadline_after(stored: u64) -> u64 {
    match stored as i64 {
        -1 => NO_DEADLINE,
        other => other.max(0) as u64,
    }
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
    consumer_seen_ms: i64,
    consumer_active_ms: Option<i64>,
    /// Whether the last piece of the batch is the current consumer's.
    consumer_is_last: bool,
    producer_seconds: u64,
    producer: Vec<u8>,
    producer_entry: Vec<u8>,
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
    /// The byte of the snapshot with which the piece begins that is being read: a number, or a string with all that is
    /// packed in it. An error is told to be there, so that its place does not depend on how much had arrived.
    piece_at: u64,
    batch: Batch,
    /// Elements or bytes handed out in earlier parts.
    before: u64,
    is_handed_out: bool,
    node_is_plain: bool,
    deadline_base: u64,
    /// Strings of elements that are longer are gathered at the target.
    long_bytes: usize,
    /// A packed string, or a string too long for one command, as it comes.
    flow: Flow,
    pack: Option<Pack>,
    long: Option<LongText>,
    long_role: Role,
    /// A piece of the long string is handed out, of so many bytes.
    piece: Option<usize>,
    stream: StreamState,
    template: TemplateState,
    pub templates: Templates,
}

/// What was done about a string that comes next.
enum Opened {
    /// It is to be read as one.
    Nothing,
    Flow,
    /// The elements before it must be handed out first.
    AfterBatch,
}

/// Types that name a template of the snapshot.
const TEMPLATE_REFERENCES: [u8; 2] = [30, 32];

impl Elements {
    /// Begins the value of `type_code`, which must be one that [`has_elements`]. Strings of elements that are longer than
    /// `long_bytes` come in pieces.
    pub fn open(
        &mut self,
        type_code: u8,
        lineage: Lineage,
        program: &'static [Op],
        long_bytes: usize,
    ) {
        self.kind = Kind::of(type_code, lineage).expect("its elements were asked for");
        self.walk = Walk::new(program);
        self.batch.clear();
        self.before = 0;
        self.is_handed_out = false;
        self.long_bytes = long_bytes;
        self.pack = None;
        self.long = None;
        self.piece = None;
        self.stream.reset();
        let is_reference = TEMPLATE_REFERENCES.contains(&type_code);
        self.template = TemplateState::new(is_reference, &self.templates);
    }

    /// Reads until a batch is full or the value ends: then `Ok`, with whether it ended. `cursor` moves past
    /// what is used up; on [`Halt::More`] what was gathered so far is kept. `consumed`: bytes of the snapshot before those
    /// of the cursor.
    pub fn fill(&mut self, cursor: &mut Cursor<'_>, consumed: u64) -> Result<bool, Halt> {
        if self.is_handed_out {
            self.forget_handed_out();
        }
        let result = self.collect(cursor, consumed);
        self.is_handed_out = result.is_ok();
        result
    }

    fn collect(&mut self, cursor: &mut Cursor<'_>, consumed: u64) -> Result<bool, Halt> {
        loop {
            if let Some(long) = self.long {
                if let Some(is_last) = self.read_long(long, cursor)? {
                    return Ok(is_last);
                }
                continue;
            }
            if self.batch.is_full() {
                return Ok(false);
            }
            if self.pack.is_some() {
                if self.unpack(cursor)? {
                    return Ok(false);
                }
                continue;
            }
            self.piece_at = consumed + cursor.at() as u64;
            if let Some(role) = self.walk.text_role() {
                match self.open_text(role, cursor)? {
                    Opened::Flow => continue,
                    Opened::AfterBatch => return Ok(false),
                    Opened::Nothing => {}
                }
            }
            match self.walk.next(cursor)? {
                Token::End => {
                    self.template.forget_names(&mut self.templates);
                    return Ok(true);
                }
                token => {
                    if self.take(token)? {
                        self.batch.mark_complete();
                    }
                }
            }
        }
    }

    /// Where in the snapshot the piece begins that [`Elements::fill`] failed at.
    pub fn piece_at(&self) -> u64 {
        self.piece_at
    }

    /// What [`Elements::fill`] gathered.
    pub fn content(&self) -> Content<'_> {
        if let (Some(bytes), Some(long)) = (self.piece, &self.long) {
            let bytes = &self.flow.rest()[..bytes];
            return match long.purpose {
                Purpose::Value => Content::String {
                    offset: long.done as u64,
                    bytes,
                },
                _ => Content::Piece {
                    number: long.number,
                    offset: long.done as u64,
                    whole_bytes: long.bytes as u64,
                    bytes,
                },
            };
        }
        let texts = self.batch.complete_texts();
        match self.kind {
            Kind::String => Content::String {
                offset: self.before,
                bytes: self.batch.first_text(),
            },
            Kind::List => Content::List {
                before: self.before,
                items: texts,
            },
            Kind::Set => Content::Set { members: texts },
            Kind::SortedSet => Content::SortedSet {
                members: texts,
                scores: self.batch.complete_scores(),
            },
            Kind::Hash => Content::Hash {
                pairs: texts,
                deadlines: self.batch.complete_deadlines(),
            },
            Kind::Stream => Content::Stream(StreamPieces { batch: &self.batch }),
        }
    }

    /// Strings of the part that were handed out in pieces before.
    pub fn gathered(&self) -> &[Gathered] {
        match self.piece {
            Some(_) => &[],
            None => self.batch.gathered(),
        }
    }

    fn forget_handed_out(&mut self) {
        if let (Some(bytes), Some(long)) = (self.piece.take(), &mut self.long) {
            self.flow.skip(bytes);
            long.done += bytes;
            return;
        }
        self.before += self.batch.complete_texts().len() as u64;
        self.batch.remove_complete();
        self.stream.consumer_is_last = false;
    }

    /// Looks at a string before it is read: one that is packed, or too long to be read as one, begins to flow.
    #[inline]
    fn open_text(&mut self, role: Role, cursor: &mut Cursor<'_>) -> Result<Opened, Halt> {
        let mut ahead = *cursor;
        let head = ahead.text_head()?;
        let plain_bytes = match head {
            TextHead::Integer { .. } => return Ok(Opened::Nothing),
            TextHead::Raw { bytes } => bytes,
            TextHead::Lzf { plain, .. } => plain,
        };
        let purpose = match role {
            Role::Whole => Purpose::Value,
            _ if self.packing_of(role).is_some() && head.stored_bytes() > ahead.rest().len() => {
                Purpose::Packed
            }
            _ if plain_bytes <= self.longest_text() => return Ok(Opened::Nothing),
            Role::Item | Role::Member | Role::Field | Role::FieldValue => Purpose::Text,
            Role::FieldValueBeforeDeadline | Role::TemplateValue => Purpose::Text,
            Role::ListPackOrPlain if self.node_is_plain => Purpose::Text,
            _ if self.packing_of(role).is_some() => Purpose::Packed,
            // Names of groups, consumers and producers, which are needed again and again.
            _ => return Ok(Opened::Nothing),
        };
        if purpose == Purpose::Text && self.batch.has_complete() {
            return Ok(Opened::AfterBatch);
        }
        *cursor = ahead;
        self.walk.skip_text();
        self.flow.open(head)?;
        if let (Purpose::Packed, Some(packing)) = (purpose, self.packing_of(role)) {
            self.open_pack(role, packing);
            return Ok(Opened::Flow);
        }
        if role == Role::TemplateValue {
            self.template.push_name(&self.templates, &mut self.batch)?;
        }
        self.long_role = role;
        self.long = Some(LongText {
            bytes: plain_bytes,
            done: 0,
            behind: 0,
            number: self.batch.next_gathered(),
            purpose,
        });
        Ok(Opened::Flow)
    }

    /// The longest string that is read as one. An element that already has long ones may have no more of them: all of it is
    /// one command.
    #[inline]
    fn longest_text(&self) -> usize {
        match self.batch.byte_count() < self.long_bytes {
            true => self.long_bytes,
            false => self.long_bytes.min(limits::PART_BYTES),
        }
    }

    /// Hands out the next piece of a long string: `Some`, with whether the value ends with it. `None`: all of it was.
    fn read_long(&mut self, long: LongText, cursor: &mut Cursor<'_>) -> Result<Option<bool>, Halt> {
        let left = long.bytes - long.done;
        if left > 0 || (long.purpose == Purpose::Value && self.piece.is_none()) {
            self.flow.fill(cursor, left.min(limits::PART_BYTES))?;
            let there = self.flow.rest().len().min(left).min(limits::PART_BYTES);
            self.piece = Some(there);
            if long.purpose == Purpose::Discarded {
                self.forget_handed_out();
                return Ok(None);
            }
            return Ok(Some(long.purpose == Purpose::Value && there == left));
        }
        self.flow.fill(cursor, long.behind)?;
        self.flow.skip(long.behind);
        self.long = None;
        let placed = match long.purpose {
            Purpose::Discarded => Placed::Element(Element::Text(b"")),
            _ => Placed::Gathered(long.bytes as u64),
        };
        let is_complete = match &mut self.pack {
            Some(pack) => pack.take(
                placed,
                &mut Receiver {
                    batch: &mut self.batch,
                    node: &mut self.stream.node,
                    template: &mut self.template,
                    templates: &self.templates,
                },
            )?,
            None => {
                push(&placed, &mut self.batch);
                self.completes(self.long_role)
            }
        };
        if is_complete {
            self.batch.mark_complete();
        }
        Ok(None)
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

    /// Whether a string of this meaning is the last part of an element.
    fn completes(&self, role: Role) -> bool {
        match role {
            Role::Member => self.kind == Kind::Set,
            Role::Field | Role::FieldValueBeforeDeadline => false,
            _ => true,
        }
    }

    fn take_text(&mut self, role: Role, text: Text<'_>) -> Result<bool, Problem> {
        if let Some(packing) = self.packing_of(role) {
            self.flow.open_whole(text)?;
            self.open_pack(role, packing);
            return Ok(false);
        }
        match role {
            Role::TemplateField => {
                self.templates.add_name(|names| text.append_to(names))?;
                self.template.count_name();
                return Ok(false);
            }
            Role::TemplateFields => {
                let mut plain = Vec::new();
                let bytes = text.resolve(&mut plain)?;
                let mut at = Packing::Listpack.header_bytes();
                while let Some(name) = Packing::Listpack.next(bytes, &mut at)? {
                    self.templates.add_name(|names| {
                        name.append_to(names);
                        Ok(())
                    })?;
                    self.template.count_name();
                }
                return Ok(false);
            }
            Role::TemplateValue => {
                self.template.push_name(&self.templates, &mut self.batch)?;
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
                let mut plain = Vec::new();
                let key = text.resolve(&mut plain)?;
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
            _ => self.batch.push_text(text)?,
        }
        Ok(self.completes(role))
    }

    /// How a string of this meaning is packed, if it is.
    fn packing_of(&self, role: Role) -> Option<Packing> {
        Some(match role {
            Role::ListPackOrPlain if self.node_is_plain => return None,
            Role::ListZiplist | Role::SortedSetZiplist | Role::HashZiplist => Packing::Ziplist,
            Role::SetIntset => Packing::Intset,
            Role::HashZipmap => Packing::Zipmap,
            Role::ListPackOrPlain
            | Role::SetPack
            | Role::SortedSetPack
            | Role::HashPack
            | Role::HashPackDeadlines
            | Role::StreamNode
            | Role::TemplateValues => Packing::Listpack,
            _ => return None,
        })
    }

    /// The flow is a packed string, from its first byte on.
    fn open_pack(&mut self, role: Role, packing: Packing) {
        self.pack = Some(Pack::new(role, packing));
        if role == Role::StreamNode {
            self.stream.node.open(self.stream.node_id);
        }
    }

    /// Reads on in the packed string until the batch is full, the string ends, or an element is too long for that; whether
    /// the batch should be handed out before it goes on.
    fn unpack(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Halt> {
        let mut pack = self.pack.expect("a packed string is open");
        let result = self.unpack_with(&mut pack, cursor);
        if self.pack.is_some() {
            self.pack = Some(pack);
        }
        result
    }

    fn unpack_with(&mut self, pack: &mut Pack, cursor: &mut Cursor<'_>) -> Result<bool, Halt> {
        if !pack.has_header() {
            let header_bytes = pack.packing.header_bytes();
            if self.flow.left() < header_bytes {
                return Err(pack.packing.corrupt().into());
            }
            self.flow.fill(cursor, header_bytes)?;
            pack.take_header(self.flow.rest())?;
            self.flow.skip(header_bytes);
        }
        let mut long_bytes = self.longest_text();
        while !self.batch.is_full() {
            let rest = self.flow.rest();
            let read = pack
                .packing
                .read(rest, pack.width, pack.is_at_value(), long_bytes);
            let mut receiver = Receiver {
                batch: &mut self.batch,
                node: &mut self.stream.node,
                template: &mut self.template,
                templates: &self.templates,
            };
            match read {
                Ok(Read::Element(element, size)) => {
                    if pack.take(Placed::Element(element), &mut receiver)? {
                        self.batch.mark_complete();
                    }
                    self.flow.skip(size);
                    long_bytes = self.longest_text();
                }
                // It would never be whole, whatever it is good for.
                Ok(Read::Long(string)) if string.stored_bytes() > self.flow.left() => {
                    return Err(pack.packing.corrupt().into());
                }
                Ok(Read::Long(string)) => match pack.long_use(&self.stream.node)? {
                    LongUse::Whole => long_bytes = usize::MAX,
                    LongUse::Gather if self.batch.has_complete() => return Ok(true),
                    wanted => return self.open_long(string, wanted, cursor),
                },
                Ok(Read::End(size)) if self.flow.left() > size => {
                    if pack.packing != Packing::Intset {
                        return Err(pack.packing.corrupt().into());
                    }
                    self.flow.fill(cursor, 1)?;
                }
                Ok(Read::End(size)) => {
                    pack.end(&self.stream.node, &self.template)?;
                    self.flow.skip(size);
                    self.pack = None;
                    self.stream.has_entries |=
                        pack.role == Role::StreamNode && self.stream.node.has_entries();
                    return Ok(false);
                }
                Err(Halt::More { needed }) => {
                    let needed = usize::try_from(needed).unwrap_or(usize::MAX);
                    if needed > self.flow.left() {
                        return Err(pack.packing.corrupt().into());
                    }
                    self.flow.fill(cursor, needed)?;
                }
                Err(bad) => return Err(bad),
            }
        }
        Ok(false)
    }

    /// A string in the packed one, which is as long as it says, is too long for one command.
    fn open_long(
        &mut self,
        string: LongString,
        wanted: LongUse,
        cursor: &mut Cursor<'_>,
    ) -> Result<bool, Halt> {
        self.flow.fill(cursor, string.before)?;
        self.flow.skip(string.before);
        let purpose = match wanted {
            LongUse::Discard => Purpose::Discarded,
            _ => Purpose::Packed,
        };
        let number = self.batch.next_gathered();
        self.long = Some(LongText::packed(string, number, purpose));
        Ok(false)
    }

    fn take_number(&mut self, role: Role, value: u64) -> Result<bool, Problem> {
        match role {
            Role::TemplateId => {
                let count = self.template.refer(&self.templates, value)?;
                self.walk.set_count(count as u64);
            }
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
                self.batch.deadlines.push(deadline_after(value));
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
            Role::ConsumerSeen => self.stream.consumer_seen_ms = value as i64,
            Role::ConsumerActive => self.stream.consumer_active_ms = Some(value as i64),
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
                    seen_at_ms: stream.consumer_seen_ms,
                    active_at_ms: stream.consumer_active_ms.take(),
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
