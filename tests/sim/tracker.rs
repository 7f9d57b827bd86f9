//! Who did what in which order: every write of the source, key by key, against what target masters execute.
//!
//! ```text
//! key a:   RESTORE | SET 7 | DEL | FLUSH | SET 12 ...        in the order of the source's stream
//!                          ^ next: what a target master must execute next on this key
//! ```
//!
//! Invariants that it checks as the run goes: each key sees its commands in stream order; where no reply is ever lost,
//! each exactly once; nothing outside the lane is touched; nothing is acknowledged before it was executed.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Bytes, Key, hash, key_places, show, verb};

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Offset of the stream that must not be acknowledged before this is executed.
    end: u64,
    what: Mark,
}

/// What one command does to one key, short enough to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    text: String,
    hash: u64,
}

#[derive(Debug, Default)]
struct Line {
    entries: Vec<Entry>,
    next: usize,
    /// What was met so far may belong to a history that was given up.
    doubtful: bool,
}

impl Entry {
    /// Whether a command that does this is what is expected here.
    fn fits(&self, mark: &Mark) -> bool {
        // A flush that must not touch other keys removes one by one.
        self.what == *mark || (self.what.text == "FLUSH" && mark.text == "UNLINK")
    }
}

impl Line {
    /// Passes the next such entry; whether there is one.
    fn take(&mut self, mark: &Mark) -> bool {
        let mut left = self.entries[self.next..].iter();
        let found = left.position(|entry| entry.fits(mark));
        self.next += found.map_or(0, |at| at + 1);
        found.is_some()
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Tracker {
    /// Commands may come again: replies are lost in this run.
    pub repeats: bool,
    now: Plan,
    /// What will count once the lane has heard that a snapshot comes.
    next: Option<Plan>,
    /// What was given up for a new copy. What was on its way then may still be executed, before the copy of its key.
    former: Vec<Plan>,
    pub executed: u64,
}

/// What is expected since one snapshot.
#[derive(Debug, Default)]
struct Plan {
    lines: BTreeMap<Key, Line>,
    pending: BTreeSet<(u64, Key)>,
}

impl Tracker {
    /// A snapshot of these keys, taken at offset `at`, replaces everything that was expected.
    pub fn begin_copy(&mut self, at: u64, keys: impl Iterator<Item = Key>) {
        let mut plan = Plan::default();
        for key in keys {
            plan.expect(at + 1, key, Mark::new("RESTORE", &[]));
        }
        self.next = Some(plan);
    }

    /// The lane has heard that a snapshot comes: it gives up what it was doing.
    pub fn heard_of_copy(&mut self) {
        let next = self.next.take().expect("a snapshot was announced");
        self.former.push(std::mem::replace(&mut self.now, next));
    }

    /// The source wrote this command; its last byte is the one before `end`.
    pub fn wrote(&mut self, database: u32, args: &[Bytes], end: u64) {
        for (key, mark) in marks(database, args) {
            self.expect(end, key, mark);
        }
    }

    /// The source removed all keys, these.
    pub fn flushed(&mut self, keys: impl Iterator<Item = Key>, end: u64) {
        for key in keys {
            self.expect(end, key, Mark::new("FLUSH", &[]));
        }
    }

    fn expect(&mut self, end: u64, key: Key, what: Mark) {
        if let Some(next) = &mut self.next {
            next.expect(end, key.clone(), what.clone());
        }
        self.now.expect(end, key, what);
    }

    /// A target master executed this command.
    pub fn executes(&mut self, node: usize, database: u32, args: &[Bytes]) {
        self.executed += 1;
        for (key, mark) in marks(database, args) {
            self.meets(node, &key, &mark);
        }
    }

    /// A target master is about to remove all these keys at once.
    pub fn executes_flush(&mut self, node: usize, keys: Vec<Key>) {
        for key in keys {
            self.meets(node, &key, &Mark::new("FLUSH", &[]));
        }
    }

    fn meets(&mut self, node: usize, key: &Key, mark: &Mark) {
        if self.was_given_up(key, mark) {
            return;
        }
        let name = format!("{}:{}", key.0, key.1.escape_ascii());
        let Some(line) = self.now.lines.get_mut(key) else {
            panic!(
                "node {node} executed {} on {name}, which the source never wrote",
                mark.text
            );
        };
        let fits = |entry: &Entry| entry.fits(mark);
        if line.entries.get(line.next).is_some_and(fits) {
            self.now
                .pending
                .remove(&(line.entries[line.next].end, key.clone()));
            line.next += 1;
            return;
        }
        if self.repeats && line.entries[..line.next].iter().any(fits) {
            return;
        }
        let around = line.next.saturating_sub(3)..(line.next + 4).min(line.entries.len());
        panic!(
            "out of order: node {node} executed {} on {name}; expected entry {} of {:?} (from {})",
            mark.text,
            line.next,
            &line.entries[around.clone()],
            around.start,
        );
    }

    /// Whether this is the rest of a history that was given up, and comes before anything of the present one. What may
    /// belong to either counts as the present one's, until something follows that can only belong to the former.
    fn was_given_up(&mut self, key: &Key, mark: &Mark) -> bool {
        let begun = |line: &&mut Line| line.next == 0 || line.doubtful;
        let present = self.now.lines.get_mut(key);
        let is_known = present.is_some();
        let mut present = present.filter(begun);
        if is_known && present.is_none() {
            return false;
        }
        let former = self
            .former
            .iter_mut()
            .filter_map(|plan| plan.lines.get_mut(key))
            .any(|line| line.take(mark));
        let Some(line) = &mut present else {
            return former;
        };
        let next = line.entries.get(line.next);
        let fits = next.is_some_and(|entry| entry.fits(mark));
        let mut before = line.entries[..line.next].iter();
        let again = self.repeats && before.any(|entry| entry.fits(mark));
        if fits || !former || again {
            line.doubtful = former;
            return false;
        }
        for entry in &line.entries[..line.next] {
            self.now.pending.insert((entry.end, key.clone()));
        }
        line.next = 0;
        line.doubtful = false;
        true
    }

    /// Panics if something up to `acknowledged` was not executed.
    pub fn check_acknowledged(&self, acknowledged: u64) {
        if let Some((end, key)) = self.now.pending.first()
            && *end <= acknowledged
        {
            let line = &self.now.lines[key];
            panic!(
                "offset {acknowledged} is acknowledged, but {:?} on {}:{} was not executed",
                line.entries[line.next],
                key.0,
                key.1.escape_ascii()
            );
        }
    }

    /// How much was written and not executed.
    pub fn open(&self) -> usize {
        self.now.pending.len()
    }
}

impl Plan {
    fn expect(&mut self, end: u64, key: Key, what: Mark) {
        self.pending.insert((end, key.clone()));
        let line = self.lines.entry(key).or_default();
        line.entries.push(Entry { end, what });
    }
}

/// What a command does, key by key. `DEL a b` is the same as `DEL a` and `DEL b`.
fn marks(database: u32, args: &[Bytes]) -> Vec<(Key, Mark)> {
    let verb = verb(args);
    let places = key_places(args);
    let mark = |at: usize| match verb.as_str() {
        "DEL" | "UNLINK" => Mark::new(&verb, &[]),
        "RESTORE" => Mark::new("RESTORE", &[]),
        "MSET" => Mark::new(&verb, &args[at + 1..at + 2]),
        _ => Mark::new(&verb, &args[1..]),
    };
    places
        .into_iter()
        .map(|at| ((database, args[at].clone()), mark(at)))
        .collect()
}

impl Mark {
    fn new(verb: &str, args: &[Bytes]) -> Self {
        let mut whole = Vec::new();
        args.iter()
            .for_each(|arg| whole.extend_from_slice(&hash(arg).to_le_bytes()));
        let text = match args {
            [] => verb.to_owned(),
            args => format!("{verb} {}", show(args)),
        };
        Self {
            text,
            hash: hash(&whole),
        }
    }
}
