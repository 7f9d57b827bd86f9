//! Who did what in which order: every write of the source, key by key, against what target masters execute.
//!
//! ```text
//! key a:   RESTORE | SET 7 | DEL | FLUSH | SET 12 ...        in the order of the source's stream
//!                          ^ next: what a target master must execute next on this key
//! ```
//!
//! Invariants that it checks as the run goes: each key sees its commands in stream order; where no reply is ever lost,
//! each exactly once, and always so what must not be applied twice; nothing outside the lane is touched; nothing is acknowledged
//! before it was executed; when a watermark is set, everything of its slot before it was executed, nothing behind it, and
//! none as high was there; a record claims only what was executed in its slots, and nothing is executed from beyond the offset
//! up to which records say that it may have been.
//!
//! A command that may be applied twice may also be executed before one on the same key that was refused. That does not count:
//! it must come again in its turn.

use std::collections::{BTreeMap, BTreeSet};

use slotstream::checkpoint::{
    Generation, Mark as Vouched, Owed, Record, State, bookkeeping_of, is_bookkeeping,
};
use slotstream::slot::{SLOT_COUNT, Slot, slot_of};

use crate::model::{
    Bytes, Key, hash, key_places, must_not_repeat, number, show, verb, without_grace,
};

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Where the command begins in the stream, or the transaction that it is in.
    begin: u64,
    /// Offset of the stream that must not be acknowledged before this is executed.
    end: u64,
    what: Mark,
    /// Nothing may overtake it, nor may it overtake anything.
    firm: bool,
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
    /// What was executed before a flush that took the watermark of the slot along.
    unmarked: usize,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Tracker {
    /// Commands may come again: replies are lost in this run.
    pub repeats: bool,
    /// The target is a single server: all keys are one slot.
    single: bool,
    /// A master has lost what it had executed, and the lane has not begun again since.
    lost: bool,
    /// Keys and offsets at which the source told their values.
    told: BTreeSet<(Key, u64)>,
    /// Keys that were broken, and keys that commands have tied together.
    broken: BTreeSet<Key>,
    ties: BTreeSet<Vec<Key>>,
    /// Keys on which a command failed, since they were last broken: whatever happens, the lane has to mend them. And those of
    /// which only an answer tells that, which may get lost.
    noticed: BTreeSet<Key>,
    unnamed: BTreeSet<Key>,
    /// What the source has lost: the target may execute it until the lane knows, and has mended these keys then.
    undone: BTreeMap<Key, Vec<Mark>>,
    /// The history before that, and where it ended.
    left: Option<(String, u64)>,
    /// The last generation of which the target had records then.
    left_generation: Generation,
    /// Keys of the transaction that the source is in.
    transaction: Option<(u64, Vec<Key>)>,
    /// The watermark that comes next is that of a mend.
    mending: bool,
    /// The last command came before its turn.
    pub early: bool,
    now: Plan,
    /// What will count once the lane has heard that a snapshot comes.
    next: Option<Plan>,
    /// The lane has heard of it, and no target master has a record that says so: if the process dies now, the next one goes
    /// on where the records of before are.
    heard: Option<Plan>,
    /// The newest generation that a master has a record of, and how many plans have been begun.
    generation: Option<Generation>,
    pub copies: u32,
    pub executed: u64,
    /// Up to where the records let the lane send, by the master that holds them; empty where none are kept.
    high: BTreeMap<usize, u64>,
    pub keeps_records: bool,
    /// Nothing is followed: what is checked is checked elsewhere.
    pub looks_away: bool,
}

/// How far the keys of some slots were at some moment.
#[derive(Debug)]
pub struct Reached {
    slots: BTreeSet<Slot>,
    lines: BTreeMap<Key, (usize, usize)>,
    latest: BTreeMap<Slot, u64>,
    marked: BTreeMap<Slot, (Generation, u64)>,
    high: Option<u64>,
}

/// What is expected since one snapshot.
#[derive(Debug, Default)]
struct Plan {
    lines: BTreeMap<Key, Line>,
    pending: BTreeSet<(u64, Key)>,
    /// A record says that the copy is over, and with it the search for stale keys.
    swept: bool,
    /// The highest offset that was executed in each slot, and the highest watermark.
    latest: BTreeMap<Slot, u64>,
    marked: BTreeMap<Slot, (Generation, u64)>,
}

impl Tracker {
    pub fn new(single: bool) -> Self {
        Self {
            single,
            ..Self::default()
        }
    }

    /// A snapshot of these keys, taken at offset `at`, replaces everything that was expected.
    pub fn begin_copy(&mut self, at: u64, keys: impl Iterator<Item = Key>) {
        let mut plan = Plan::default();
        for key in keys {
            if !is_bookkeeping(&key.1) {
                plan.expect(at, at + 1, key, Mark::new("RESTORE", &[]), false);
            }
        }
        self.next = Some(plan);
    }

    /// The lane has heard that a snapshot comes: it gives up what it was doing. What is on its way to the target is still of
    /// before, and counts until a record of the copy is there.
    pub fn heard_of_copy(&mut self) {
        self.heard = Some(self.next.take().expect("a snapshot was announced"));
        if !self.keeps_records {
            self.begin_heard();
        }
    }

    /// Whether the target has nothing yet of the copy that the lane has heard of.
    pub fn awaits_copy(&self) -> bool {
        self.heard.is_some()
    }

    fn begin_heard(&mut self) {
        if let Some(plan) = self.heard.take() {
            self.now = plan;
            self.copies += 1;
            self.high.clear();
            self.told.clear();
        }
    }

    /// What the lane knows to come.
    fn known(&self) -> &Plan {
        self.heard.as_ref().unwrap_or(&self.now)
    }

    /// The source wrote this command, from `begin` to the byte before `end`.
    pub fn wrote(&mut self, database: u32, args: &[Bytes], begin: u64, end: u64) {
        let firm = must_not_repeat(args);
        let keys = marks(database, args).into_iter().map(|(key, _)| key);
        let keys: Vec<Key> = keys.collect();
        match &mut self.transaction {
            Some((_, open)) => open.extend(keys),
            None => self.tie(keys),
        }
        let begin = self.transaction.as_ref().map_or(begin, |(at, _)| *at);
        for (key, mark) in marks(database, args) {
            self.expect(begin, end, key, mark, firm);
        }
    }

    /// The source removed all keys, these.
    pub fn flushed(&mut self, keys: impl Iterator<Item = Key>, begin: u64, end: u64) {
        for key in keys {
            self.expect(begin, end, key, Mark::new("FLUSH", &[]), true);
        }
    }

    fn expect(&mut self, begin: u64, end: u64, key: Key, what: Mark, firm: bool) {
        for plan in self.next.iter_mut().chain(&mut self.heard) {
            plan.expect(begin, end, key.clone(), what.clone(), firm);
        }
        self.now.expect(begin, end, key, what, firm);
    }

    /// A target master executed this command. `maybe_old`: what was sent before the last snapshot may still come on its
    /// connection. Gives whether more of that may follow.
    pub fn executes(
        &mut self,
        node: usize,
        database: u32,
        args: &[Bytes],
        maybe_old: bool,
    ) -> bool {
        self.executed += 1;
        self.early = false;
        if maybe_old && !self.is_awaited(database, args) {
            return true;
        }
        let once = must_not_repeat(args);
        for (key, mark) in marks(database, args) {
            self.meets(node, &key, &mark, once, maybe_old);
        }
        // It may carry on what nobody has noticed.
        if verb(args) == "RENAME" {
            for (key, _) in marks(database, args) {
                self.noticed.remove(&key);
                self.unnamed.remove(&key);
            }
        }
        // A key may have been restored before, too.
        maybe_old && matches!(verb(args).as_str(), "RESTORE" | "FUNCTION" | "PUBLISH")
    }

    /// Whether a command is what comes next for each of its keys, and the records let it be sent.
    fn is_awaited(&self, database: u32, args: &[Bytes]) -> bool {
        let high = self.high();
        marks(database, args).iter().all(|(key, mark)| {
            let line = self.now.lines.get(key);
            line.is_some_and(|line| {
                line.awaits(mark) && line.entries[line.next].begin < high
                    || line.repeats_restore(mark)
            })
        })
    }

    /// Nothing from here on may be sent before a record says so.
    fn high(&self) -> u64 {
        match self.keeps_records {
            true => self.high.values().max().copied().unwrap_or_default(),
            false => u64::MAX,
        }
    }

    /// A target master is about to remove all these keys at once. `maybe_old`: see [`Tracker::executes`].
    pub fn executes_flush(&mut self, node: usize, keys: Vec<Key>, maybe_old: bool) {
        let single = self.single;
        let slot_of = |key: &Key| if single { 0 } else { slot_of(&key.1) };
        let is_watermark = |key: &&Key| bookkeeping_of(&key.1).is_some_and(|(kind, _)| kind == 'w');
        let unmarked: BTreeSet<Slot> = keys.iter().filter(is_watermark).map(slot_of).collect();
        for key in keys {
            self.meets(node, &key, &Mark::new("FLUSH", &[]), false, maybe_old);
        }
        self.now.marked.retain(|slot, _| !unmarked.contains(slot));
        for (key, line) in &mut self.now.lines {
            if unmarked.contains(&slot_of(key)) {
                line.unmarked = line.next;
            }
        }
    }

    /// `once`: it must not be applied twice. `maybe_old`: it may be what is left of a former copy.
    fn meets(&mut self, node: usize, key: &Key, mark: &Mark, once: bool, maybe_old: bool) {
        let high = self.high();
        let name = format!("{}:{}", key.0, key.1.escape_ascii());
        let undone = self.undone.get(key).is_some_and(|of| of.contains(mark));
        let Some(line) = self.now.lines.get_mut(key) else {
            if matches!(mark.text.as_str(), "UNLINK" | "FLUSH") || undone {
                return;
            }
            panic!(
                "node {node} executed {} on {name}, which the source never wrote",
                mark.text
            );
        };
        let slot = match self.single {
            true => 0,
            false => slot_of(&key.1),
        };
        let latest = self.now.latest.entry(slot).or_default();
        let entry = line.entries.get(line.next);
        let begin = entry.map_or(0, |entry| entry.begin);
        if line.awaits(mark) && begin < high {
            let entry = &line.entries[line.next];
            // It may have been the removal of a key that the snapshot did not have, or one that the source lost: they look the same.
            let swept = mark.text != "UNLINK" || line.is_restored() || self.now.swept;
            if swept && !undone {
                *latest = entry.offset().max(*latest);
            }
            self.now.pending.remove(&(entry.end, key.clone()));
            line.next += 1;
            return;
        }
        if undone {
            return;
        }
        let before = &line.entries[..line.next];
        // A flush takes watermarks along. What came before it may be repeated with it: it ends as it did.
        let repeatable = match once {
            true => &before[..line.unmarked.min(line.next)],
            false => before,
        };
        if line.is_stale(mark, self.repeats) && !self.now.swept
            || line.repeats_restore(mark)
            || self.repeats && repeatable.iter().any(|entry| entry.is(mark))
        {
            return;
        }
        if line.awaits(mark) {
            assert!(
                maybe_old,
                "node {node} executed {} on {name}, from offset {begin}, but the records let no more be sent than up to {high}",
                mark.text,
            );
            return;
        }
        // Which of two removals came early cannot be told.
        let last = line.next.checked_sub(1).map(|last| &line.entries[last]);
        if last.is_some_and(|last| last.is(mark) && matches!(mark.text.as_str(), "DEL" | "UNLINK"))
        {
            return;
        }
        if let Some(end) = line.awaits_later(mark, high) {
            if mark.text != "UNLINK" || line.is_restored() || self.now.swept {
                *latest = end.max(*latest);
            }
            self.early = true;
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

    // Mends.

    /// Somebody has changed this key at the target.
    pub fn suspect(&mut self, key: Key) {
        self.noticed.remove(&key);
        self.unnamed.remove(&key);
        self.broken.insert(key);
    }

    /// A command failed. `marked`: together with a watermark, so that it is not repeated after a crash.
    pub fn failed(&mut self, database: u32, args: &[Bytes], marked: bool) {
        // It will come again.
        if self.early {
            return;
        }
        let keys = marks(database, args).into_iter().map(|(key, _)| key);
        match marked {
            true => self.unnamed.extend(keys),
            false => self.noticed.extend(keys),
        }
    }

    /// A watermark says of some keys that it does not speak for them.
    fn names(&mut self, slot: Slot, mark: &Vouched) {
        let single = self.single;
        match &mark.owed {
            None => {}
            Some(Owed::Keys(keys)) => {
                for key in keys.iter().filter(|key| self.unnamed.contains(key)) {
                    self.noticed.insert(key.clone());
                }
            }
            Some(Owed::Some) => {
                let keys = self.unnamed.iter();
                let of_slot = keys.filter(|key| single || slot_of(&key.1) == slot);
                self.noticed.extend(of_slot.cloned());
            }
        }
    }

    /// Keys whose difference must have been noticed.
    pub fn noticed(&self) -> &BTreeSet<Key> {
        &self.noticed
    }

    /// The source begins a transaction at this offset, or ends one.
    pub fn in_transaction(&mut self, begin: Option<u64>) {
        let open = begin.map(|begin| (begin, Vec::new()));
        let former = std::mem::replace(&mut self.transaction, open);
        self.tie(former.unwrap_or_default().1);
    }

    fn tie(&mut self, keys: Vec<Key>) {
        if keys.len() > 1 {
            self.ties.insert(keys);
        }
    }

    /// Keys that were broken, and all that are tied to them.
    pub fn suspects(&self) -> BTreeSet<Key> {
        let mut suspects = self.broken.clone();
        loop {
            let before = suspects.len();
            for tie in &self.ties {
                if tie.iter().any(|key| suspects.contains(key)) {
                    suspects.extend(tie.iter().cloned());
                }
            }
            if suspects.len() == before {
                return suspects;
            }
        }
    }

    /// Whether a command touches a key that may be broken.
    pub fn is_suspect(&self, database: u32, args: &[Bytes]) -> bool {
        let suspects = self.suspects();
        let mut keys = marks(database, args).into_iter();
        keys.any(|(key, _)| suspects.contains(&key))
    }

    /// The source tells the value that a key has at this offset.
    pub fn told_at(&mut self, key: Key, offset: u64) {
        self.told.insert((key, offset));
    }

    /// Whether a command, in a transaction with the watermark `offset`, writes what the source told of that offset: then it
    /// stands for everything on the key up to there, and nothing behind it may have been executed.
    pub fn mends(&mut self, database: u32, args: &[Bytes], offset: u64) -> bool {
        if !matches!(verb(args).as_str(), "RESTORE" | "UNLINK") {
            return false;
        }
        let key = (database, args[1].clone());
        if is_bookkeeping(&key.1) || !self.told.contains(&(key.clone(), offset)) {
            return false;
        }
        self.mending = true;
        let name = key.1.escape_ascii().to_string();
        let Some(line) = self.now.lines.get_mut(&key) else {
            return true;
        };
        while let Some(entry) = line
            .entries
            .get(line.next)
            .filter(|entry| entry.offset() <= offset)
        {
            self.now.pending.remove(&(entry.end, key.clone()));
            line.next += 1;
        }
        let last = line
            .next
            .checked_sub(1)
            .map(|last| line.entries[last].offset());
        assert!(
            last.is_none_or(|end| end <= offset),
            "{name} is mended as of {offset}, but has seen {last:?}"
        );
        true
    }

    /// A target master executed the command that sets this watermark, in `slot`.
    pub fn sets_watermark(&mut self, slot: Slot, mark: &Vouched) {
        let watermark = mark.watermark;
        let (single, offset) = (self.single, watermark.offset.0);
        let slot = if single { 0 } else { slot };
        self.names(slot, mark);
        // It may tell of what the source has lost since.
        if !self.undone.is_empty() && watermark.generation <= self.left_generation {
            return;
        }
        // It says that older records are void, and nothing else.
        if offset == 0 {
            return;
        }
        let mending = std::mem::take(&mut self.mending) || mark.owed.is_some();
        let suspects = self.suspects();
        let of_slot = |key: &Key| single || slot_of(&key.1) == slot;
        let mut before = self
            .now
            .pending
            .iter()
            .take_while(|(end, _)| *end <= offset);
        // What a mend stands for is owed until it is written.
        if let Some((end, key)) = before.find(|(_, key)| of_slot(key) && !suspects.contains(key)) {
            let key = key.1.escape_ascii();
            panic!("slot {slot} has watermark {watermark}, but {key} has not seen offset {end}");
        }
        // Where commands come again, one that looks like a later one may be taken for that.
        let latest = self.now.latest.get(&slot).copied().unwrap_or_default();
        assert!(
            latest <= offset || self.repeats,
            "slot {slot} gets watermark {watermark}, but offset {latest} was executed in it"
        );
        let now = (watermark.generation, offset);
        let former = self.now.marked.insert(slot, now).unwrap_or_default();
        assert!(
            former < now || mending && former == now,
            "slot {slot} had watermark {former:?} before {watermark}"
        );
    }

    /// A master holds this record from now on. Gives whether it is of the copy that counts.
    pub fn records(&mut self, node: usize, generation: Generation, record: &Record) -> bool {
        if self.generation < Some(generation) {
            self.generation = Some(generation);
            self.begin_heard();
        }
        let counts = self.generation == Some(generation) && self.heard.is_none();
        self.now.swept |= record.state == State::Streaming && counts;
        self.high.insert(node, record.high.0);
        let acknowledged = self.shared_with(record.position.id.as_str(), record.position.offset.0);
        if record.state == State::Copying || self.lost {
            return counts;
        }
        let speaks = |key: &Key| self.single || record.slots.contains(slot_of(&key.1));
        let mut before = self
            .now
            .pending
            .iter()
            .take_while(|(end, _)| *end <= acknowledged);
        if let Some((end, key)) = before.find(|(_, key)| speaks(key)) {
            let key = key.1.escape_ascii();
            panic!(
                "node {node} holds a record that claims {acknowledged}, but {key} has not seen offset {end}"
            );
        }
        counts
    }

    /// How far the keys of these slots are.
    pub fn progress(&self, node: usize, is_there: impl Fn(Slot) -> bool) -> Reached {
        let lines = self
            .now
            .lines
            .iter()
            .filter(|(key, _)| is_there(slot_of(&key.1)));
        Reached {
            slots: (0..SLOT_COUNT as Slot)
                .filter(|slot| is_there(*slot))
                .collect(),
            lines: lines
                .map(|(key, line)| (key.clone(), (line.next, line.unmarked)))
                .collect(),
            latest: self.now.latest.clone(),
            marked: self.now.marked.clone(),
            high: self.high.get(&node).copied(),
        }
    }

    /// The keys of some slots are as they were; the lane does not know.
    pub fn goes_back(&mut self, node: usize, to: &Reached) {
        self.lost = true;
        match to.high {
            Some(high) => self.high.insert(node, high),
            None => self.high.remove(&node),
        };
        self.noticed.clear();
        self.unnamed.clear();
        for (key, line) in &mut self.now.lines {
            let slot = slot_of(&key.1);
            if !to.slots.contains(&slot) {
                continue;
            }
            (line.next, line.unmarked) = to.lines.get(key).copied().unwrap_or_default();
            let open = line.entries[line.next..].iter();
            self.now
                .pending
                .extend(open.map(|entry| (entry.end, key.clone())));
        }
        let there = |slot: &Slot| self.single || to.slots.contains(slot);
        go_back(&mut self.now.latest, &to.latest, there);
        go_back(&mut self.now.marked, &to.marked, there);
    }

    /// The source has lost what it had written behind this offset, in a history of that name.
    pub fn source_lost(&mut self, replid: String, offset: u64) {
        self.left = Some((replid, offset));
        self.left_generation = self.generation.unwrap_or_default();
        let plans = std::iter::once(&mut self.now).chain(&mut self.next);
        for plan in plans.chain(&mut self.heard) {
            plan.pending.retain(|(end, _)| *end <= offset);
            plan.latest
                .values_mut()
                .for_each(|at| *at = offset.min(*at));
            for (key, line) in &mut plan.lines {
                let lost = |entry: &&Entry| entry.offset() > offset;
                let marks: Vec<Mark> = line
                    .entries
                    .iter()
                    .filter(lost)
                    .map(|e| e.what.clone())
                    .collect();
                if !marks.is_empty() {
                    self.broken.insert(key.clone());
                    self.undone.entry(key.clone()).or_default().extend(marks);
                }
                line.entries.retain(|entry| entry.offset() <= offset);
                line.next = line.next.min(line.entries.len());
            }
        }
    }

    /// The source has no keys any more, and nothing is expected of it.
    pub fn begins_empty(&mut self) {
        self.now = Plan::default();
    }

    /// What `offset`, of a history of that name, stands for in the source's present one.
    pub fn shared_with(&self, replid: &str, offset: u64) -> u64 {
        match &self.left {
            Some((left, until)) if left == replid => offset.min(*until),
            _ => offset,
        }
    }

    /// The lane begins again, and knows what the target has.
    pub fn restarts(&mut self) {
        self.lost = false;
        self.heard = None;
    }

    /// Panics if something up to `acknowledged` was not executed.
    pub fn check_acknowledged(&self, acknowledged: u64) {
        // It was executed, and the lane has not heard yet that it is lost.
        if self.lost || self.looks_away {
            return;
        }
        let plan = self.known();
        if let Some((end, key)) = plan.pending.first()
            && *end <= acknowledged
        {
            let line = &plan.lines[key];
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
        self.known().pending.len()
    }
}

fn go_back<T: Copy>(
    now: &mut BTreeMap<Slot, T>,
    then: &BTreeMap<Slot, T>,
    there: impl Fn(&Slot) -> bool,
) {
    now.retain(|slot, _| !there(slot));
    let back = then.iter().filter(|(slot, _)| there(slot));
    now.extend(back.map(|(slot, at)| (*slot, *at)));
}

impl Entry {
    /// Where it stands in the stream. What a snapshot holds is of its offset, and counts as acknowledged behind that.
    fn offset(&self) -> u64 {
        self.end - u64::from(self.what.text == "RESTORE")
    }

    fn is(&self, mark: &Mark) -> bool {
        // A flush that must not touch other keys removes one by one.
        self.what == *mark || (self.what.text == "FLUSH" && mark.text == "UNLINK")
    }
}

impl Line {
    fn awaits(&self, mark: &Mark) -> bool {
        self.entries
            .get(self.next)
            .is_some_and(|entry| entry.is(mark))
    }

    /// The offset of a later command that this one is, if it may overtake what comes next.
    fn awaits_later(&self, mark: &Mark, high: u64) -> Option<u64> {
        let mut later = self.entries[self.next..]
            .iter()
            .take_while(|entry| !entry.firm && entry.begin < high);
        later.find(|entry| entry.is(mark)).map(Entry::offset)
    }

    /// The snapshot has the key.
    fn is_restored(&self) -> bool {
        let first = self.entries.first();
        first.is_some_and(|entry| entry.what.text == "RESTORE")
    }

    /// A key that the snapshot did not have may be removed until it is written; and after that, when all is sent again.
    fn is_stale(&self, mark: &Mark, repeats: bool) -> bool {
        let removes = |what: &Mark| what.text == "UNLINK";
        let restored = self.is_restored();
        // The removal may have been taken for the first write, if that is one as well.
        let before = &self.entries[..self.next];
        let removed = removes(mark) || mark.text == "FLUSH";
        removed && !restored && (repeats || before.iter().all(|entry| removes(&entry.what)))
    }

    /// A copy that was given up may have restored the key before, indistinguishably.
    fn repeats_restore(&self, mark: &Mark) -> bool {
        mark.text == "RESTORE" && self.next == 1 && self.entries[0].is(mark)
    }
}

impl Plan {
    fn expect(&mut self, begin: u64, end: u64, key: Key, what: Mark, firm: bool) {
        self.pending.insert((end, key.clone()));
        let line = self.lines.entry(key).or_default();
        line.entries.push(Entry {
            begin,
            end,
            what,
            firm,
        });
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
        "PEXPIREAT" => Mark::new(&verb, &as_written(&args[1..])),
        "SET" if args.len() == 5 => Mark::new(&verb, &as_written(&args[1..])),
        _ => Mark::new(&verb, &args[1..]),
    };
    places
        .into_iter()
        .map(|at| ((database, args[at].clone()), mark(at)))
        .collect()
}

/// Arguments that end in a deadline, as they were before that was held back.
fn as_written(args: &[Bytes]) -> Vec<Bytes> {
    let mut args = args.to_vec();
    if let Some(deadline) = args.last_mut()
        && let Some(at_ms) = without_grace(number(deadline))
    {
        *deadline = at_ms.to_string().into_bytes();
    }
    args
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
