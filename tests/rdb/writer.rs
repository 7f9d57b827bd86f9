//! Writes snapshots: every encoding, chosen at random. The oracle of the decoder: what was written must
//! come out again.

use std::collections::BTreeMap;

/// A small generator, so that the choice of encodings replays from a seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }
}

pub type Bytes = Vec<u8>;
pub type Id = (u64, u64);

/// What a key holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    String(Bytes),
    List(Vec<Bytes>),
    Set(Vec<Bytes>),
    SortedSet(BTreeMap<Bytes, f64>),
    /// Value and deadline of each field.
    Hash(BTreeMap<Bytes, (Bytes, Option<u64>)>),
    Stream(Stream),
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stream {
    pub entries: BTreeMap<Id, Vec<(Bytes, Bytes)>>,
    pub last_id: Id,
    pub max_deleted_id: Id,
    pub entries_added: u64,
    pub groups: BTreeMap<Bytes, Group>,
    pub producers: Producers,
}

/// What a stream knows of idempotent producers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Producers {
    /// Seconds and entries.
    pub limits: Option<(u64, u64)>,
    /// Producer, name, entry; by producer.
    pub names: Vec<(Bytes, Bytes, Id)>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Group {
    pub last_id: Id,
    pub entries_read: i64,
    /// By consumer: the ids it has not acknowledged, with time and count of delivery.
    pub consumers: BTreeMap<Bytes, BTreeMap<Id, (u64, u64)>>,
    /// Given back by their consumers.
    pub returned: Vec<Id>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: Bytes,
    pub database: u32,
    pub expire_at_ms: Option<u64>,
    pub idle_seconds: Option<u64>,
    pub frequency: Option<u8>,
    pub content: Content,
}

/// A snapshot being written.
pub struct Writer {
    pub out: Bytes,
    pub dice: Dice,
    valkey: bool,
    /// Of the format: encodings that came later are not written.
    version: u32,
    is_plain: bool,
    templates: u64,
    /// What has to stand before the key that is being written.
    before_key: Bytes,
}

impl Writer {
    pub fn new(magic: &[u8; 9], seed: u64) -> Self {
        Self {
            out: magic.to_vec(),
            dice: Dice::new(seed),
            valkey: magic.starts_with(b"V"),
            version: (magic[6..].iter())
                .fold(0, |version, digit| 10 * version + u32::from(digit - b'0')),
            is_plain: false,
            templates: 0,
            before_key: Vec::new(),
        }
    }

    /// Writes as the servers do by default, but without compression.
    #[allow(dead_code, reason = "benchmarks use it, tests do not")]
    pub fn plain(magic: &[u8; 9]) -> Self {
        Self {
            is_plain: true,
            ..Self::new(magic, 1)
        }
    }

    pub fn select(&mut self, database: u32) {
        self.out.push(254);
        self.length(u64::from(database));
    }

    pub fn aux(&mut self, key: &[u8], value: &[u8]) {
        self.out.push(250);
        self.text(key);
        self.text(value);
    }

    pub fn function(&mut self, code: &[u8]) {
        self.out.push(245);
        self.text(code);
    }

    /// Ends the snapshot; `checksum` as the servers compute it, or 0.
    pub fn finish(mut self, checksum: impl Fn(&[u8]) -> u64) -> Bytes {
        self.out.push(255);
        let checksum = checksum(&self.out);
        self.out.extend(checksum.to_le_bytes());
        self.out
    }

    pub fn length(&mut self, value: u64) {
        let least = match value {
            0..64 => 0,
            64..16_384 => 1,
            16_384..0x1_0000_0000 => 2,
            _ => 3,
        };
        // Longer forms than needed are legal.
        let form = if !self.is_plain && self.dice.below(4) == 0 {
            least + self.dice.below(4 - least)
        } else {
            least
        };
        match form {
            0 => self.out.push(value as u8),
            1 => self.out.extend([0x40 | (value >> 8) as u8, value as u8]),
            2 => {
                self.out.push(0x80);
                self.out.extend((value as u32).to_be_bytes());
            }
            _ => {
                self.out.push(0x81);
                self.out.extend(value.to_be_bytes());
            }
        }
    }

    pub fn text(&mut self, text: &[u8]) {
        if let Some(value) = canonical_integer(text)
            && self.dice.below(4) != 0
            && let Ok(value) = i32::try_from(value)
        {
            if let Ok(small) = i8::try_from(value) {
                self.out.extend([0xc0, small as u8]);
            } else if let Ok(medium) = i16::try_from(value) {
                self.out.push(0xc1);
                self.out.extend(medium.to_le_bytes());
            } else {
                self.out.push(0xc2);
                self.out.extend(value.to_le_bytes());
            }
            return;
        }
        if !self.is_plain && !text.is_empty() && self.dice.below(3) == 0 {
            let packed = compress(text);
            self.out.push(0xc3);
            self.length(packed.len() as u64);
            self.length(text.len() as u64);
            self.out.extend(packed);
            return;
        }
        self.length(text.len() as u64);
        self.out.extend(text);
    }

    pub fn entry(&mut self, entry: &Entry) {
        let start = self.out.len();
        if let Some(at) = entry.expire_at_ms {
            self.out.push(252);
            self.out.extend(at.to_le_bytes());
        }
        if let Some(seconds) = entry.idle_seconds {
            self.out.push(248);
            self.length(seconds);
        } else if let Some(frequency) = entry.frequency {
            self.out.extend([249, frequency]);
        }
        let type_at = self.out.len();
        self.out.push(0);
        self.text(&entry.key);
        self.out[type_at] = self.content(&entry.content);
        let before = std::mem::take(&mut self.before_key);
        self.out.splice(start..start, before);
    }

    /// Appends a value and returns its type.
    fn content(&mut self, content: &Content) -> u8 {
        match content {
            Content::String(text) => {
                self.text(text);
                0
            }
            Content::List(items) => self.list(items),
            Content::Set(members) => self.set(members),
            Content::SortedSet(scores) => self.sorted_set(scores),
            Content::Hash(fields) => self.hash(fields),
            Content::Stream(stream) => self.stream(stream),
        }
    }

    fn list(&mut self, items: &[Bytes]) -> u8 {
        let form = self.dice.below(4);
        match form {
            0 => {
                self.length(items.len() as u64);
                items.iter().for_each(|item| self.text(item));
                1
            }
            1 => {
                let pack = ziplist(items);
                self.text(&pack);
                10
            }
            2 => {
                let nodes: Vec<_> = items.chunks(3).collect();
                self.length(nodes.len() as u64);
                nodes.iter().for_each(|node| self.text(&ziplist(node)));
                14
            }
            _ => {
                let nodes: Vec<_> = items.chunks(3).collect();
                let plain_first =
                    self.dice.below(2) == 0 && items.first().is_some_and(|item| !item.is_empty());
                if plain_first {
                    let nodes: Vec<_> = items[1..].chunks(4).collect();
                    self.length(1 + nodes.len() as u64);
                    self.length(1);
                    self.text(&items[0]);
                    self.nodes(&nodes);
                } else {
                    self.length(nodes.len() as u64);
                    self.nodes(&nodes);
                }
                18
            }
        }
    }

    fn nodes(&mut self, nodes: &[&[Bytes]]) {
        for node in nodes {
            self.length(2);
            self.text(&listpack(node));
        }
    }

    fn set(&mut self, members: &[Bytes]) -> u8 {
        let integers: Option<Vec<i64>> = members.iter().map(|m| canonical_integer(m)).collect();
        if let Some(integers) = integers
            && integers.is_sorted()
            && self.dice.below(2) == 0
        {
            self.text(&intset(&integers));
            return 11;
        }
        if self.dice.below(2) == 0 {
            self.text(&listpack(members));
            return 20;
        }
        self.length(members.len() as u64);
        members.iter().for_each(|member| self.text(member));
        2
    }

    fn sorted_set(&mut self, scores: &BTreeMap<Bytes, f64>) -> u8 {
        let flat = || {
            // Servers search packed ones, so their order matters.
            let mut pairs: Vec<_> = scores.iter().collect();
            pairs.sort_by(|one, other| one.1.total_cmp(other.1));
            pairs
                .into_iter()
                .flat_map(|(member, score)| [member.clone(), score.to_string().into_bytes()])
        };
        let form = self.dice.below(4);
        if form < 2 {
            self.length(scores.len() as u64);
        }
        match form {
            0 => {
                for (member, score) in scores {
                    self.text(member);
                    match *score {
                        f64::INFINITY => self.out.push(254),
                        f64::NEG_INFINITY => self.out.push(255),
                        finite => {
                            let text = format!("{finite:e}");
                            self.out.push(text.len() as u8);
                            self.out.extend(text.bytes());
                        }
                    }
                }
                3
            }
            1 => {
                for (member, score) in scores {
                    self.text(member);
                    self.out.extend(score.to_le_bytes());
                }
                5
            }
            2 => {
                self.text(&ziplist(&flat().collect::<Vec<_>>()));
                12
            }
            _ => {
                self.text(&listpack(&flat().collect::<Vec<_>>()));
                17
            }
        }
    }

    fn hash(&mut self, fields: &BTreeMap<Bytes, (Bytes, Option<u64>)>) -> u8 {
        if fields.values().any(|(_, deadline)| deadline.is_some()) {
            return self.hash_with_deadlines(fields);
        }
        let flat: Vec<_> = fields
            .iter()
            .flat_map(|(f, (v, _))| [f.clone(), v.clone()])
            .collect();
        let form = if self.is_plain { 1 } else { self.dice.below(4) };
        let knows_templates = !self.valkey && self.version >= 15;
        if self.dice.below(3) == 0 && knows_templates && !self.is_plain {
            return self.hash_with_template(fields);
        }
        let pack = match form {
            0 => (ziplist(&flat), 13),
            1 => (listpack(&flat), 16),
            2 => (zipmap(&flat), 9),
            _ => {
                self.length(fields.len() as u64);
                flat.iter().for_each(|text| self.text(text));
                return 4;
            }
        };
        self.text(&pack.0);
        pack.1
    }

    /// A hash of one of the types that name their fields apart from the values.
    fn hash_with_template(&mut self, fields: &BTreeMap<Bytes, (Bytes, Option<u64>)>) -> u8 {
        let values: Vec<_> = fields.values().map(|(value, _)| value.clone()).collect();
        let names: Vec<_> = fields.keys().cloned().collect();
        let form = self.dice.below(4);
        let mut id = 0;
        if form & 1 == 0 {
            // Types 29 and 31 bring the names along.
            if self.dice.below(2) == 0 {
                self.length(0);
                self.text(&listpack(&names));
            } else {
                self.length(1);
                self.length(names.len() as u64);
                names.iter().for_each(|name| self.text(name));
            }
        } else {
            id = self.last_template(&names);
        }
        if form < 2 {
            let mut flat = vec![id.to_string().into_bytes()];
            flat.extend(values);
            self.text(&listpack(&flat));
        } else {
            if form == 3 {
                self.length(id);
            }
            values.iter().for_each(|value| self.text(value));
        }
        29 + form as u8
    }

    /// Puts a template before the key that is being written; gives its id.
    fn last_template(&mut self, names: &[Bytes]) -> u64 {
        self.templates += 1;
        let id = self.templates * 7;
        let key = std::mem::take(&mut self.out);
        self.out.push(242);
        self.length(id);
        self.length(names.len() as u64);
        names.iter().for_each(|name| self.text(name));
        let template = std::mem::replace(&mut self.out, key);
        self.before_key.extend(template);
        id
    }

    fn hash_with_deadlines(&mut self, fields: &BTreeMap<Bytes, (Bytes, Option<u64>)>) -> u8 {
        if self.valkey {
            self.length(fields.len() as u64);
            for (field, (value, deadline)) in fields {
                self.text(field);
                self.text(value);
                let deadline = deadline.map_or(-1, |at| at as i64);
                self.out.extend(deadline.to_le_bytes());
            }
            return 22;
        }
        let least = fields.values().filter_map(|(_, deadline)| *deadline).min();
        let least = least.expect("some field has a deadline");
        let form = self.dice.below(4);
        if form & 1 == 1 {
            self.out.extend(least.to_le_bytes());
        }
        if form >= 2 {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(_, (_, deadline))| deadline.unwrap_or(u64::MAX));
            let flat: Vec<_> = fields
                .into_iter()
                .flat_map(|(field, (value, deadline))| {
                    let deadline = deadline.unwrap_or(0).to_string().into_bytes();
                    [field.clone(), value.clone(), deadline]
                })
                .collect();
            self.text(&listpack(&flat));
            return 22 + form as u8 / 2 + 2 * (form as u8 & 1);
        }
        self.length(fields.len() as u64);
        for (field, (value, deadline)) in fields {
            self.length(match (deadline, form) {
                (None, _) => 0,
                (Some(at), 0) => *at,
                (Some(at), _) => at - least + 1,
            });
            self.text(field);
            self.text(value);
        }
        22 + 2 * form as u8
    }

    fn stream(&mut self, stream: &Stream) -> u8 {
        let newest = match self.version {
            _ if self.valkey => 3,
            0..13 => 3,
            13 => 4,
            _ => 5,
        };
        let version = 1 + self.dice.below(newest);
        let entries: Vec<_> = stream.entries.iter().collect();
        let nodes: Vec<_> = entries.chunks(5).collect();
        self.length(nodes.len() as u64);
        for node in nodes {
            let master = *node[0].0;
            self.text(&id_key(master));
            let pack = stream_node(master, node, &mut self.dice);
            self.text(&pack);
        }
        self.length(entries.len() as u64);
        self.id(stream.last_id);
        if version >= 2 {
            self.id(entries.first().map_or((0, 0), |(id, _)| **id));
            self.id(stream.max_deleted_id);
            self.length(stream.entries_added);
        }
        self.length(stream.groups.len() as u64);
        for (name, group) in &stream.groups {
            self.text(name);
            self.id(group.last_id);
            if version >= 2 {
                self.length(group.entries_read as u64);
            }
            let pending: BTreeMap<_, _> = group.consumers.values().flatten().collect();
            self.length(pending.len() as u64);
            for (id, (at, count)) in pending {
                self.out.extend(id_key(*id));
                self.out.extend(at.to_le_bytes());
                self.length(*count);
            }
            self.length(group.consumers.len() as u64);
            for (consumer, pending) in &group.consumers {
                self.text(consumer);
                self.out.extend([1; 8]);
                if version >= 3 {
                    self.out.extend([2; 8]);
                }
                self.length(pending.len() as u64);
                pending.keys().for_each(|id| self.out.extend(id_key(*id)));
            }
            if version >= 5 {
                self.length(group.returned.len() as u64);
                for id in &group.returned {
                    self.out.extend(id_key(*id));
                }
            }
        }
        if version >= 4 {
            self.producers(&stream.producers);
        }
        [15, 19, 21, 26, 27][version - 1]
    }

    fn producers(&mut self, producers: &Producers) {
        let (seconds, entries) = producers.limits.unwrap_or((100, 100));
        self.length(seconds);
        self.length(entries);
        let runs: Vec<_> = producers.names.chunk_by(|a, b| a.0 == b.0).collect();
        // One whose names are all out of date is still told of.
        self.length(runs.len() as u64 + 1);
        self.text(b"outdated");
        self.length(0);
        for run in runs {
            self.text(&run[0].0);
            self.length(run.len() as u64);
            for (_, name, id) in run {
                self.text(name);
                self.id(*id);
            }
        }
        self.length(77);
        self.length(1);
    }

    fn id(&mut self, (milliseconds, sequence): Id) {
        self.length(milliseconds);
        self.length(sequence);
    }
}

fn id_key((milliseconds, sequence): Id) -> [u8; 16] {
    (u128::from(milliseconds) << 64 | u128::from(sequence)).to_be_bytes()
}

/// The integer whose decimal text this is, exactly.
fn canonical_integer(text: &[u8]) -> Option<i64> {
    let value: i64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (value.to_string().as_bytes() == text).then_some(value)
}

/// LZF, greedily.
pub fn compress(text: &[u8]) -> Bytes {
    let mut out = Vec::new();
    let mut seen: BTreeMap<&[u8], usize> = BTreeMap::new();
    let (mut at, mut literal) = (0, 0);
    let flush = |out: &mut Bytes, literal: &[u8]| {
        for chunk in literal.chunks(32) {
            out.push(chunk.len() as u8 - 1);
            out.extend(chunk);
        }
    };
    while at < text.len() {
        let known = text.get(at..at + 3).and_then(|head| seen.insert(head, at));
        let Some(from) = known.filter(|from| at - from <= 8192) else {
            at += 1;
            continue;
        };
        flush(&mut out, &text[literal..at]);
        let same = |n: &usize| text[from + n] == text[at + n];
        let longest = (text.len() - at).min(264);
        let length = (0..longest).take_while(same).count();
        let distance = at - from - 1;
        if length < 9 {
            out.push((length as u8 - 2) << 5 | (distance >> 8) as u8);
        } else {
            out.extend([7 << 5 | (distance >> 8) as u8, (length - 9) as u8]);
        }
        out.push(distance as u8);
        at += length;
        literal = at;
    }
    flush(&mut out, &text[literal..]);
    out
}

fn listpack_entry(out: &mut Bytes, text: &[u8]) {
    let start = out.len();
    match canonical_integer(text) {
        Some(value @ 0..=127) => out.push(value as u8),
        Some(value @ -4096..=4095) => {
            out.extend([0xc0 | (value >> 8) as u8 & 0x1f, value as u8]);
        }
        Some(value) => {
            let (code, width) = match value {
                -0x8000..=0x7fff => (0xf1, 2),
                -0x80_0000..=0x7f_ffff => (0xf2, 3),
                -0x8000_0000..=0x7fff_ffff => (0xf3, 4),
                _ => (0xf4, 8),
            };
            out.push(code);
            out.extend(&value.to_le_bytes()[..width]);
        }
        None => {
            match text.len() {
                short @ 0..64 => out.push(0x80 | short as u8),
                medium @ 64..4096 => out.extend([0xe0 | (medium >> 8) as u8, medium as u8]),
                long => {
                    out.push(0xf0);
                    out.extend((long as u32).to_le_bytes());
                }
            }
            out.extend(text);
        }
    }
    let length = out.len() - start;
    let width = [128, 1 << 14, 1 << 21, 1 << 28]
        .iter()
        .filter(|bound| length >= **bound)
        .count();
    for index in (0..=width).rev() {
        let more = if index < width { 0x80 } else { 0 };
        out.push((length >> (7 * (index))) as u8 & 0x7f | more);
    }
}

pub fn listpack(items: &[Bytes]) -> Bytes {
    let mut out = vec![0; 6];
    items.iter().for_each(|item| listpack_entry(&mut out, item));
    out.push(0xff);
    let total = out.len() as u32;
    out[..4].copy_from_slice(&total.to_le_bytes());
    out[4..6].copy_from_slice(&(items.len().min(0xffff) as u16).to_le_bytes());
    out
}

fn ziplist(items: &[Bytes]) -> Bytes {
    let mut out = vec![0; 10];
    let (mut before, mut tail) = (0, out.len());
    for item in items {
        let start = out.len();
        if before < 254 {
            out.push(before as u8);
        } else {
            out.push(254);
            out.extend((before as u32).to_le_bytes());
        }
        match (canonical_integer(item), item.len()) {
            (Some(value @ 0..=12), _) => out.push(0xf1 + value as u8),
            (Some(value), _) => {
                let (code, width) = match value {
                    -0x80..=0x7f => (0xfe, 1),
                    -0x8000..=0x7fff => (0xc0, 2),
                    -0x80_0000..=0x7f_ffff => (0xf0, 3),
                    -0x8000_0000..=0x7fff_ffff => (0xd0, 4),
                    _ => (0xe0, 8),
                };
                out.push(code);
                out.extend(&value.to_le_bytes()[..width]);
            }
            (None, length) => {
                match length {
                    0..64 => out.push(length as u8),
                    64..16_384 => out.extend([0x40 | (length >> 8) as u8, length as u8]),
                    _ => {
                        out.push(0x80);
                        out.extend((length as u32).to_be_bytes());
                    }
                }
                out.extend(item);
            }
        }
        before = out.len() - start;
        tail = start;
    }
    out.push(0xff);
    let total = out.len() as u32;
    out[..4].copy_from_slice(&total.to_le_bytes());
    out[4..8].copy_from_slice(&(tail as u32).to_le_bytes());
    out[8..10].copy_from_slice(&(items.len().min(0xffff) as u16).to_le_bytes());
    out
}

fn intset(integers: &[i64]) -> Bytes {
    let fits = |width: u32| {
        let bound = 1i128 << (8 * width - 1);
        integers
            .iter()
            .all(|i| (-bound..bound).contains(&i128::from(*i)))
    };
    let width = [2, 4, 8]
        .into_iter()
        .find(|width| fits(*width))
        .expect("8 bytes hold it");
    let mut out = width.to_le_bytes().to_vec();
    out.extend((integers.len() as u32).to_le_bytes());
    for integer in integers {
        out.extend(&integer.to_le_bytes()[..width as usize]);
    }
    out
}

fn zipmap(flat: &[Bytes]) -> Bytes {
    let mut out = vec![(flat.len() / 2).min(254) as u8];
    for (index, text) in flat.iter().enumerate() {
        if text.len() < 254 {
            out.push(text.len() as u8);
        } else {
            out.push(254);
            out.extend((text.len() as u32).to_le_bytes());
        }
        let free = if index % 2 == 1 { index % 3 } else { 0 };
        if index % 2 == 1 {
            out.push(free as u8);
        }
        out.extend(text);
        out.extend(vec![0xaa; free]);
    }
    out.push(0xff);
    out
}

/// A node whose master fields are those of its first entry; deleted entries are strewn in.
fn stream_node(master: Id, node: &[(&Id, &Vec<(Bytes, Bytes)>)], dice: &mut Dice) -> Bytes {
    let number = |value: i64| value.to_string().into_bytes();
    let names: Vec<Bytes> = node[0].1.iter().map(|(name, _)| name.clone()).collect();
    let mut flat = vec![number(names.len() as i64)];
    flat.extend(names.iter().cloned());
    flat.push(number(0));
    let mut deleted = 0;
    for (id, pairs) in node {
        if dice.below(3) == 0 {
            deleted += 1;
            flat.extend([1, 0, 0, 1].map(number));
            flat.extend([b"dead".to_vec(), b"x".to_vec(), number(6)]);
        }
        let same = pairs.iter().map(|(name, _)| name).eq(names.iter());
        flat.push(number(if same { 2 } else { 0 }));
        flat.push(number((id.0 - master.0) as i64));
        flat.push(number((id.1 as i64).wrapping_sub(master.1 as i64)));
        let elements = if same {
            flat.extend(pairs.iter().map(|(_, value)| value.clone()));
            3 + pairs.len()
        } else {
            flat.push(number(pairs.len() as i64));
            flat.extend(
                pairs
                    .iter()
                    .flat_map(|(name, value)| [name.clone(), value.clone()]),
            );
            4 + 2 * pairs.len()
        };
        flat.push(number(elements as i64));
    }
    flat.splice(0..0, [number(node.len() as i64), number(deleted)]);
    listpack(&flat)
}
