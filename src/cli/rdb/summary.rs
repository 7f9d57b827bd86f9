//! What a snapshot holds, counted: by database, type, expiry and prefix, and its largest keys.
//!
//! Sizes are bytes of the snapshot: key, value, expiry and usage of each key as they are stored there. In memory a server needs
//! more. What is counted takes a bounded amount of memory, whatever the snapshot.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::fmt::Write;

use indicatif::{HumanBytes, HumanCount};
use memchr::memchr;

use super::input::{Ending, Scan, Stop, Visitor};
use super::table::Table;
use super::text::shown;
use crate::limits::{DESCRIBED_BYTES, MAX_PREFIX_BYTES, MAX_PREFIXES};
use crate::rdb::{Item, Lineage, ModuleId, Value, value_name};

/// Keys and their bytes.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    keys: u64,
    bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.keys += 1;
        self.bytes += bytes;
    }
}

/// Upper bounds of what is left to live, in seconds; the first class is what is over already.
const TTL_CLASSES: [(&str, u64); 7] = [
    ("expired already", 0),
    ("up to a minute", 60),
    ("up to an hour", 3_600),
    ("up to a day", 86_400),
    ("up to a week", 604_800),
    ("up to 30 days", 2_592_000),
    ("longer", u64::MAX),
];

/// Counts everything.
pub struct Summary {
    lineage: Lineage,
    /// When the snapshot was made, or now: what lives is measured from there. Unix time in milliseconds.
    made_at_ms: u64,
    tells_when: bool,
    aux: Vec<(String, String)>,
    functions: Count,
    /// What stands beside keys or cannot be read, by what it is.
    skipped: BTreeMap<String, u64>,
    modules: BTreeMap<ModuleId, Count>,
    databases: BTreeMap<u32, (Count, u64)>,
    types: Vec<Count>,
    ttls: [Count; TTL_CLASSES.len()],
    lasting: Count,
    prefixes: HashMap<Vec<u8>, Count>,
    without_prefix: Count,
    other_prefixes: Count,
    largest: BinaryHeap<Reverse<Large>>,
    top: usize,
    current: Current,
}

/// The key that is being read.
#[derive(Debug, Default)]
struct Current {
    key: Vec<u8>,
    database: u32,
    type_code: u8,
    expire_at_ms: Option<u64>,
    module: Option<ModuleId>,
    /// Elements of a value that comes in parts.
    elements: usize,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Large {
    bytes: u64,
    key: Vec<u8>,
    database: u32,
    type_code: u8,
    elements: Option<usize>,
    expire_at_ms: Option<u64>,
}

impl Summary {
    /// `now_ms` stands for the time of the snapshot where it does not tell.
    pub fn new(top: usize, now_ms: u64) -> Self {
        Self {
            lineage: Lineage::Redis,
            made_at_ms: now_ms,
            tells_when: false,
            aux: Vec::new(),
            functions: Count::default(),
            skipped: BTreeMap::new(),
            modules: BTreeMap::new(),
            databases: BTreeMap::new(),
            types: vec![Count::default(); 256],
            ttls: Default::default(),
            lasting: Count::default(),
            prefixes: HashMap::new(),
            without_prefix: Count::default(),
            other_prefixes: Count::default(),
            largest: BinaryHeap::new(),
            top,
            current: Current::default(),
        }
    }

    fn open(&mut self, key: &[u8], database: u32, type_code: u8, expire_at_ms: Option<u64>) {
        let current = &mut self.current;
        current.key.clear();
        current.key.extend_from_slice(key);
        current.database = database;
        current.type_code = type_code;
        current.expire_at_ms = expire_at_ms;
        current.module = None;
        current.elements = 0;
    }

    fn count_prefix(&mut self, bytes: u64) {
        let key = &self.current.key;
        let head = &key[..key.len().min(MAX_PREFIX_BYTES)];
        let Some(colon) = memchr(b':', head) else {
            return self.without_prefix.add(bytes);
        };
        let prefix = &key[..=colon];
        if let Some(count) = self.prefixes.get_mut(prefix) {
            count.add(bytes);
        } else if self.prefixes.len() < MAX_PREFIXES {
            let mut count = Count::default();
            count.add(bytes);
            self.prefixes.insert(prefix.to_vec(), count);
        } else {
            self.other_prefixes.add(bytes);
        }
    }

    fn count_ttl(&mut self, bytes: u64) {
        let Some(at) = self.current.expire_at_ms else {
            return self.lasting.add(bytes);
        };
        let left_ms = at.saturating_sub(self.made_at_ms);
        let class = TTL_CLASSES
            .iter()
            .position(|(_, most)| left_ms <= most.saturating_mul(1000));
        self.ttls[class.unwrap_or(TTL_CLASSES.len() - 1)].add(bytes);
    }

    fn keep_if_large(&mut self, bytes: u64) {
        let is_full = self.largest.len() >= self.top;
        let least = self.largest.peek().map(|Reverse(least)| least.bytes);
        if self.top == 0 || is_full && least.is_some_and(|least| bytes <= least) {
            return;
        }
        if is_full {
            self.largest.pop();
        }
        let current = &self.current;
        self.largest.push(Reverse(Large {
            bytes,
            key: current.key.clone(),
            database: current.database,
            type_code: current.type_code,
            elements: Some(current.elements).filter(|count| *count > 0),
            expire_at_ms: current.expire_at_ms,
        }));
    }

    /// Whether a key of so many bytes will be among the largest, as far as is known.
    fn is_large(&self, bytes: u64) -> bool {
        let least = self.largest.peek().map(|Reverse(least)| least.bytes);
        self.top > 0 && (self.largest.len() < self.top || least.is_some_and(|least| bytes > least))
    }

    fn skip(&mut self, what: String) {
        if self.skipped.len() < MAX_PREFIXES {
            *self.skipped.entry(what).or_default() += 1;
        }
    }

    fn aux(&mut self, key: &[u8], value: &[u8]) {
        if key == b"ctime"
            && let Some(seconds) = std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
        {
            self.made_at_ms = seconds.saturating_mul(1000);
            self.tells_when = true;
        }
        // Old servers store whole scripts here, one for each.
        if key == b"lua" {
            return self.functions.add(value.len() as u64);
        }
        if self.aux.len() < MAX_PREFIXES {
            let text = |bytes| shown(bytes, DESCRIBED_BYTES);
            self.aux.push((text(key), text(value)));
        }
    }
}

impl Visitor for Summary {
    fn item(&mut self, item: Item<'_>) -> Result<(), Stop> {
        match item {
            Item::Header { lineage, .. } => self.lineage = lineage,
            Item::Aux { key, value } => self.aux(key, value),
            Item::Function { code } => self.functions.add(code.len() as u64),
            Item::SlotImport => self.skip("slots being imported".into()),
            Item::LeftOut(what) => self.skip(what.to_string()),
            Item::Unsupported(unsupported) => self.skip(unsupported.problem.to_string()),
            Item::Value(value) => {
                self.open(
                    value.key,
                    value.database,
                    value.type_code,
                    value.expire_at_ms,
                );
                self.current.module = value.module();
                if self.is_large(most_bytes(&value)) {
                    let counted = value.count_elements(self.lineage);
                    self.current.elements = counted.unwrap_or(0);
                }
            }
            Item::Part(part) => {
                if part.is_first {
                    self.open(part.key, part.database, part.type_code, part.expire_at_ms);
                }
                self.current.elements += part.content.element_count();
            }
            _ => {}
        }
        Ok(())
    }

    fn key_done(&mut self, bytes: u64) -> Result<(), Stop> {
        let current = &self.current;
        let (database, expiring) = self.databases.entry(current.database).or_default();
        database.add(bytes);
        *expiring += u64::from(current.expire_at_ms.is_some());
        self.types[usize::from(current.type_code)].add(bytes);
        if let Some(module) = current.module {
            self.modules.entry(module).or_default().add(bytes);
        }
        self.count_ttl(bytes);
        self.count_prefix(bytes);
        self.keep_if_large(bytes);
        Ok(())
    }
}

impl Summary {
    /// Everything, for a person.
    pub fn text(mut self, name: &str, scan: &Scan) -> String {
        let mut text = headline(name, scan);
        text.push_str("sizes are bytes of the snapshot\n\n");
        for (key, value) in &self.aux {
            _ = writeln!(text, "{key:<18} {value}");
        }
        let libraries = self.functions;
        if libraries.keys > 0 {
            let (count, size) = (HumanCount(libraries.keys), HumanBytes(libraries.bytes));
            _ = writeln!(text, "{:<18} {count}, {size}", "functions, scripts");
        }
        for (what, count) in &self.skipped {
            _ = writeln!(text, "not shown: {count} times {what}");
        }
        if !self.aux.is_empty() || libraries.keys > 0 || !self.skipped.is_empty() {
            text.push('\n');
        }
        if scan.taken_keys == 0 {
            text.push_str("no keys\n");
            return text;
        }
        let total = self.types.iter().map(|count| count.bytes).sum();
        text.push_str(&self.database_table(total));
        text.push_str(&self.type_tables(total));
        text.push_str(&self.ttl_table(total));
        text.push_str(&self.prefix_table(total));
        text.push_str(&self.largest_table());
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }

    fn database_table(&self, total: u64) -> String {
        let mut table = Table::new(&["database", "keys", "expiring", "bytes", "share"]);
        for (database, (count, expiring)) in &self.databases {
            let [keys, bytes, share] = cells(*count, total);
            let expiring = HumanCount(*expiring).to_string();
            table.row(&[database.to_string(), keys, expiring, bytes, share]);
        }
        table.text()
    }

    fn type_tables(&self, total: u64) -> String {
        let mut kinds: BTreeMap<&str, Count> = BTreeMap::new();
        let mut encodings = Table::new(&["encoding", "keys", "bytes", "share", "average"]);
        for (code, count) in self.types.iter().enumerate().filter(|(_, c)| c.keys > 0) {
            let name = value_name(code as u8, self.lineage);
            let kind = kinds.entry(name.kind).or_default();
            kind.keys += count.keys;
            kind.bytes += count.bytes;
            let title = format!("{} as {} ({code})", name.kind, name.encoding);
            encodings.row(&with_average(title, *count, total));
        }
        for (module, count) in &self.modules {
            let title = format!("module {module} version {}", module.encoding_version());
            encodings.row(&with_average(title, *count, total));
        }
        let mut types = Table::new(&["type", "keys", "bytes", "share", "average"]);
        for (kind, count) in kinds {
            types.row(&with_average(kind.to_owned(), count, total));
        }
        types.text() + &encodings.text()
    }

    fn ttl_table(&self, total: u64) -> String {
        let title = match self.tells_when {
            true => "left to live when made",
            false => "left to live now",
        };
        let mut table = Table::new(&[title, "keys", "bytes", "share"]);
        let classes = TTL_CLASSES.iter().map(|(title, _)| *title).zip(self.ttls);
        for (title, count) in classes.chain([("for ever", self.lasting)]) {
            if count.keys > 0 {
                let [keys, bytes, share] = cells(count, total);
                table.row(&[title.to_owned(), keys, bytes, share]);
            }
        }
        table.text()
    }

    fn prefix_table(&mut self, total: u64) -> String {
        let mut prefixes: Vec<(Vec<u8>, Count)> = self.prefixes.drain().collect();
        prefixes.sort_by(|(a_name, a), (b_name, b)| (b.bytes, a_name).cmp(&(a.bytes, b_name)));
        let mut others = self.other_prefixes;
        for (_, count) in prefixes.iter().skip(self.top) {
            others.keys += count.keys;
            others.bytes += count.bytes;
        }
        let mut table = Table::new(&["prefix", "keys", "bytes", "share", "average"]);
        for (prefix, count) in prefixes.iter().take(self.top) {
            table.row(&with_average(shown(prefix, DESCRIBED_BYTES), *count, total));
        }
        for (title, count) in [("(others)", others), ("(none)", self.without_prefix)] {
            if count.keys > 0 {
                table.row(&with_average(title.to_owned(), count, total));
            }
        }
        table.text()
    }

    fn largest_table(&mut self) -> String {
        let titles = [
            "largest keys",
            "database",
            "type",
            "bytes",
            "elements",
            "seconds left",
        ];
        let mut table = Table::new(&titles);
        let mut largest: Vec<Large> = self.largest.drain().map(|Reverse(large)| large).collect();
        largest.sort_by(|a, b| (b.bytes, &a.key).cmp(&(a.bytes, &b.key)));
        for large in largest {
            let name = value_name(large.type_code, self.lineage);
            let left = large
                .expire_at_ms
                .map(|at| at as i128 - i128::from(self.made_at_ms));
            table.row(&[
                shown(&large.key, DESCRIBED_BYTES),
                large.database.to_string(),
                name.kind.to_owned(),
                HumanCount(large.bytes).to_string(),
                large
                    .elements
                    .map_or("-".into(), |count| HumanCount(count as u64).to_string()),
                left.map_or("-".into(), |left| (left / 1000).to_string()),
            ]);
        }
        table.text()
    }
}

/// What a key takes of the snapshot at most: less only where the key itself is packed.
fn most_bytes(value: &Value<'_>) -> u64 {
    let length_bytes = match value.key.len() {
        0..0x40 => 1,
        0x40..0x4000 => 2,
        _ => 5,
    };
    let expiry_bytes = if value.expire_at_ms.is_some() { 9 } else { 0 };
    let usage_bytes = match (value.idle_seconds, value.frequency) {
        (None, None) => 0,
        _ => 10,
    };
    let around = 1 + length_bytes + expiry_bytes + usage_bytes;
    (around + value.key.len() + value.serialized.len() + value.metadata.len()) as u64
}

/// `dump.rdb: Redis snapshot version 10, 3 keys, 120 B, checksum right`.
pub fn headline(name: &str, scan: &Scan) -> String {
    let checksum = match scan.ending {
        Ending::Whole {
            has_checksum: true, ..
        } => "complete, checksum right",
        Ending::Whole { .. } => "complete, made without checksum",
        Ending::Cut => "cut short",
        Ending::Broken(_) => "broken",
    };
    let mut keys = HumanCount(scan.keys).to_string();
    if scan.taken_keys != scan.keys {
        keys = format!("{} of {keys}", HumanCount(scan.taken_keys));
    }
    format!(
        "{name}: {}, {keys} keys, {}, {checksum}\n",
        scan.format_name(),
        HumanBytes(scan.bytes)
    )
}

/// Keys, bytes, share of all bytes.
fn cells(count: Count, total: u64) -> [String; 3] {
    [
        HumanCount(count.keys).to_string(),
        HumanCount(count.bytes).to_string(),
        format!("{:.1}%", 100.0 * count.bytes as f64 / total.max(1) as f64),
    ]
}

fn with_average(title: String, count: Count, total: u64) -> [String; 5] {
    let [keys, bytes, share] = cells(count, total);
    let average = HumanCount(count.bytes / count.keys.max(1)).to_string();
    [title, keys, bytes, share, average]
}
