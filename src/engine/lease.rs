//! Leases: deadlines that are held back until it is certain what the source made of them.
//!
//! A target master removes keys by its own clock. What would end before the lane has brought a renewal would be lost:
//!
//! ```text
//! source     PEXPIREAT k +3s ........ PEXPIREAT k +3s ........ DEL k (or a renewal again)
//! target     -- not listening ------------------- k is gone | PEXPIREAT k: no such key
//! ```
//!
//! So a deadline that may pass before the lane is sure to be there goes out later by [`limits::LEASE_GRACE_MS`], which is
//! more than any deadline of real use: what carries a lease can be told from what does not, wherever it is found. It is
//! *settled*, given its true deadline, by a script that changes nothing but leases whose time has come:
//!
//! - the true deadline has passed, and everything that the source emitted until then has been applied: usually the key is
//!   gone by then by the source's own `DEL`, or was renewed;
//! - or the true deadline is far again: after a copy, during which all near deadlines are leases.
//!
//! Fields of hashes have deadlines of their own, and get leases as keys do.
//!
//! Keys and fields with leases stand in a table, by deadline. It is bounded; when it is full, or when a lease goes where it
//! cannot be followed (`MOVE`, `SWAPDB`), the lane remembers that there are leases which it does not know, and walks over
//! all keys of its slots once they are due (`listing`). Since the script asks each key itself, an entry too many does no
//! harm.
//!
//! A key or field has one entry, that of its newest deadline. But a condition (`HPEXPIREAT ... GT`) may hold for some of the
//! fields that a command names, and only the target knows for which: then a field has an entry for either case.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound::{Included, Unbounded};
use std::sync::Arc;

use crate::command::rewrite::{Deadlines, Whose};
use crate::limits;

/// What a lease adds to a deadline.
pub(super) const GRACE_MS: u64 = limits::LEASE_GRACE_MS;

type Name = Arc<[u8]>;

/// What has a lease.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner {
    pub database: u32,
    pub key: Name,
    /// Of the hash `key`; `None` for the key itself.
    pub field: Option<Name>,
}

/// The leases of one lane. Times are Unix time in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// Database at the target of what is looked at.
    pub database: u32,
    /// Deadlines before this are held back.
    near_until_ms: u64,
    by_key: HashMap<(u32, Name), u64>,
    /// Database, hash, field, deadline.
    by_field: BTreeSet<(u32, Name, Name, u64)>,
    by_deadline: BTreeSet<(u64, Owner)>,
    bytes: usize,
    /// The latest true deadline of leases that are not in the table.
    unknown_until_ms: Option<u64>,
    /// Some of those are of fields.
    unknown_fields: bool,
    /// How often one was added to those.
    unknown: u64,
}

/// What is known of leases that are not in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unknown {
    /// Their latest deadline.
    pub until_ms: u64,
    /// Whether fields are among them.
    pub fields: bool,
    /// Changes when there are more.
    pub number: u64,
}

/// Which leases may be settled: those with a true deadline up to `passed_ms` or after `far_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub passed_ms: u64,
    pub far_ms: u64,
}

impl Due {
    /// All of them.
    pub const ALL: Due = Due {
        passed_ms: GRACE_MS,
        far_ms: GRACE_MS,
    };
}

impl Leases {
    /// Deadlines before `until_ms` are held back from now on.
    pub fn set_near(&mut self, until_ms: u64) {
        self.near_until_ms = until_ms;
    }

    pub fn near_until(&self) -> u64 {
        self.near_until_ms
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.by_deadline.len()
    }

    /// Whether there are none, known or not.
    pub fn is_empty(&self) -> bool {
        self.by_deadline.is_empty() && self.unknown_until_ms.is_none()
    }

    /// There may be leases that a former process left, with any deadline; of fields, if the target knows such.
    pub fn assume_unknown(&mut self, fields: bool) {
        self.lose(GRACE_MS, fields);
    }

    /// What is known of leases that are not in the table.
    pub fn unknown(&self) -> Option<Unknown> {
        Some(Unknown {
            until_ms: self.unknown_until_ms?,
            fields: self.unknown_fields,
            number: self.unknown,
        })
    }

    /// All unknown leases were asked for: those that are left end before `until_ms`, or there are none. `number`: see
    /// [`Unknown::number`], from before that.
    pub fn found_unknown(&mut self, until_ms: Option<u64>, number: u64) {
        if number == self.unknown {
            let before = self.unknown_until_ms;
            self.unknown_until_ms = until_ms.and_then(|until| before.map(|at| at.min(until)));
            self.unknown_fields &= self.unknown_until_ms.is_some();
        }
    }

    /// Takes at most `count` off the table that are due.
    pub fn take(&mut self, due: Due, count: usize) -> Vec<Owner> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let first = self.by_deadline.first();
            let last = self.by_deadline.last();
            let passed = first.filter(|entry| entry.0 <= due.passed_ms);
            let Some(entry) = passed.or_else(|| last.filter(|entry| entry.0 > due.far_ms)) else {
                break;
            };
            let entry = entry.clone();
            self.remove(entry.clone());
            taken.push(entry.1);
        }
        taken
    }

    /// Forgets leases of keys that are no more the lane's to settle.
    pub fn forget(&mut self, gone: impl Fn(&[u8]) -> bool) {
        let entries = self.by_deadline.iter();
        let entries = entries.filter(|(_, owner)| gone(&owner.key));
        let entries: Vec<(u64, Owner)> = entries.cloned().collect();
        for entry in entries {
            self.remove(entry);
        }
    }

    /// Whatever there is that is not known is nobody's.
    pub fn forget_unknown(&mut self) {
        self.unknown_until_ms = None;
        self.unknown_fields = false;
    }

    fn remove(&mut self, (at_ms, owner): (u64, Owner)) {
        match owner.field {
            None => self.forget_key(owner.database, &owner.key),
            Some(field) => self.remove_field((owner.database, owner.key, field, at_ms)),
        }
    }

    /// Whether a deadline goes out as it is. One so far away that it looks like a lease cannot be one.
    fn is_far(&self, at_ms: u64) -> bool {
        at_ms >= self.near_until_ms || at_ms >= GRACE_MS
    }

    fn grant_key(&mut self, database: u32, key: &[u8], at_ms: u64) {
        self.forget_key(database, key);
        if !self.has_room_for(cost(key.len())) {
            self.lose(at_ms, false);
            return;
        }
        self.bytes += cost(key.len());
        let name: Name = key.into();
        let owner = Owner {
            database,
            key: Arc::clone(&name),
            field: None,
        };
        self.by_deadline.insert((at_ms, owner));
        self.by_key.insert((database, name), at_ms);
    }

    fn forget_key(&mut self, database: u32, key: &[u8]) {
        if self.by_key.is_empty() {
            return;
        }
        if let Some(((_, key), at_ms)) = self.by_key.remove_entry(&(database, key.into())) {
            self.bytes -= cost(key.len());
            let owner = Owner {
                database,
                key,
                field: None,
            };
            self.by_deadline.remove(&(at_ms, owner));
        }
    }

    fn grant_field(&mut self, database: u32, key: &Name, field: Name, at_ms: u64) {
        let bytes = cost(key.len() + field.len());
        let entry = (database, Arc::clone(key), Arc::clone(&field), at_ms);
        if self.by_field.contains(&entry) {
            return;
        }
        if !self.has_room_for(bytes) {
            self.lose(at_ms, true);
            return;
        }
        self.bytes += bytes;
        self.by_field.insert(entry);
        let owner = Owner {
            database,
            key: Arc::clone(key),
            field: Some(field),
        };
        self.by_deadline.insert((at_ms, owner));
    }

    fn forget_field(&mut self, database: u32, key: &Name, field: &Name) {
        let from = (database, Arc::clone(key), Arc::clone(field), 0);
        while let Some(entry) = self.by_field.range((Included(&from), Unbounded)).next()
            && (entry.0, &entry.1, &entry.2) == (database, key, field)
        {
            self.remove_field(entry.clone());
        }
    }

    fn remove_field(&mut self, entry: (u32, Name, Name, u64)) {
        if self.by_field.remove(&entry) {
            let (database, key, field, at_ms) = entry;
            self.bytes -= cost(key.len() + field.len());
            let owner = Owner {
                database,
                key,
                field: Some(field),
            };
            self.by_deadline.remove(&(at_ms, owner));
        }
    }

    fn has_room_for(&self, bytes: usize) -> bool {
        self.bytes + bytes <= limits::LEASE_TABLE_BYTES
    }

    fn lose(&mut self, at_ms: u64, is_field: bool) {
        self.unknown += 1;
        self.unknown_until_ms = self.unknown_until_ms.max(Some(at_ms));
        self.unknown_fields |= is_field;
    }
}

/// Memory for an entry, roughly: names of so many bytes, and a node in each of two tables.
fn cost(name_bytes: usize) -> usize {
    name_bytes + limits::LEASE_ENTRY_BYTES
}

impl Deadlines for Leases {
    fn of_key(&mut self, key: &[u8], at_ms: u64) -> u64 {
        if self.is_far(at_ms) {
            self.forget_key(self.database, key);
            return at_ms;
        }
        self.grant_key(self.database, key, at_ms);
        at_ms + GRACE_MS
    }

    fn of_fields(
        &mut self,
        key: &[u8],
        fields: &mut dyn Iterator<Item = &[u8]>,
        at_ms: u64,
        whose: Whose,
    ) -> u64 {
        let is_far = self.is_far(at_ms);
        // For the fields for which its condition does not hold, an earlier entry still counts.
        let replaces = whose == Whose::All && !self.by_field.is_empty();
        let database = self.database;
        if !is_far || replaces {
            let key: Name = key.into();
            for field in fields {
                let field: Name = field.into();
                if replaces {
                    self.forget_field(database, &key, &field);
                }
                if !is_far {
                    self.grant_field(database, &key, field, at_ms);
                }
            }
        }
        if is_far { at_ms } else { at_ms + GRACE_MS }
    }

    fn of_nameless_field(&mut self, at_ms: u64) -> u64 {
        if self.is_far(at_ms) {
            return at_ms;
        }
        self.lose(at_ms, true);
        at_ms + GRACE_MS
    }

    fn fields_near_until(&self) -> u64 {
        self.near_until_ms.min(GRACE_MS)
    }

    fn carried(&mut self, from: &[u8], to: &[u8]) {
        let database = self.database;
        if !self.by_key.is_empty()
            && let Some(&at_ms) = self.by_key.get(&(database, from.into()))
        {
            self.grant_key(database, to, at_ms);
        }
        if self.by_field.is_empty() {
            return;
        }
        let from: Name = from.into();
        let first = (database, Arc::clone(&from), Name::from([]), 0);
        let fields = self.by_field.range((Included(first), Unbounded));
        let fields = fields.take_while(|entry| (entry.0, &entry.1) == (database, &from));
        let fields: Vec<(Name, u64)> = fields
            .map(|entry| (Arc::clone(&entry.2), entry.3))
            .collect();
        let to: Name = to.into();
        for (field, at_ms) in fields {
            self.grant_field(database, &to, field, at_ms);
        }
    }

    fn lost_track(&mut self) {
        let known = self.by_deadline.last().map(|&(at_ms, _)| at_ms);
        if let Some(at_ms) = known.max(self.unknown_until_ms) {
            self.lose(at_ms, !self.by_field.is_empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn leases(near_until_ms: u64) -> Leases {
        let mut leases = Leases::default();
        leases.set_near(near_until_ms);
        leases
    }

    /// Keys by their names, fields as `key.field`.
    fn names(taken: Vec<Owner>) -> Vec<String> {
        let text = |name: &Name| String::from_utf8_lossy(name).into_owned();
        let name = |owner: Owner| match owner.field {
            None => text(&owner.key),
            Some(field) => format!("{}.{}", text(&owner.key), text(&field)),
        };
        taken.into_iter().map(name).collect()
    }

    fn of_fields(leases: &mut Leases, key: &str, fields: &[&str], at_ms: u64, whose: Whose) -> u64 {
        let mut fields = fields.iter().map(|field| field.as_bytes());
        leases.of_fields(key.as_bytes(), &mut fields, at_ms, whose)
    }

    fn passed(passed_ms: u64) -> Due {
        Due {
            passed_ms,
            far_ms: u64::MAX,
        }
    }

    #[test]
    fn near_deadlines_are_held_back_and_the_newest_of_a_key_counts() {
        let mut leases = leases(1000);
        assert_eq!(leases.of_key(b"far", 1000), 1000);
        assert_eq!(leases.of_key(b"a", 500), 500 + GRACE_MS);
        assert_eq!(leases.of_key(b"b", 600), 600 + GRACE_MS);
        assert_eq!(leases.of_key(b"a", 900), 900 + GRACE_MS);
        assert_eq!(names(leases.take(passed(899), 9)), ["b"]);
        assert!(leases.take(passed(899), 9).is_empty());
        assert_eq!(names(leases.take(passed(900), 9)), ["a"]);
        assert!(leases.is_empty());
    }

    #[test]
    fn fields_have_leases_of_their_own() {
        let mut leases = leases(1000);
        let all = Whose::All;
        assert_eq!(of_fields(&mut leases, "h", &["f"], 1000, all), 1000);
        assert!(leases.is_empty());
        let held = of_fields(&mut leases, "h", &["f", "g"], 500, all);
        assert_eq!(held, 500 + GRACE_MS);
        assert_eq!(leases.of_key(b"h", 600), 600 + GRACE_MS);
        of_fields(&mut leases, "h", &["f"], 700, all);
        of_fields(&mut leases, "h2", &["f"], 650, all);
        assert_eq!(leases.len(), 4);
        assert_eq!(of_fields(&mut leases, "h2", &["f"], 2000, all), 2000);
        assert_eq!(names(leases.take(passed(500), 9)), ["h.g"]);
        assert_eq!(names(leases.take(passed(900), 9)), ["h", "h.f"]);
        assert!(leases.is_empty() && leases.bytes == 0);
    }

    #[test]
    fn where_a_condition_decides_a_field_has_an_entry_for_either_case() {
        let mut leases = leases(1000);
        of_fields(&mut leases, "h", &["f"], 500, Whose::All);
        of_fields(&mut leases, "h", &["f"], 300, Whose::Matching);
        of_fields(&mut leases, "h", &["f"], 2000, Whose::Matching);
        assert_eq!(names(leases.take(passed(300), 9)), ["h.f"]);
        assert_eq!(names(leases.take(passed(900), 9)), ["h.f"]);
        assert!(leases.is_empty());
        of_fields(&mut leases, "h", &["f"], 500, Whose::Matching);
        of_fields(&mut leases, "h", &["f"], 300, Whose::Matching);
        of_fields(&mut leases, "h", &["f"], 400, Whose::All);
        assert_eq!(leases.len(), 1);
    }

    #[test]
    fn a_renewal_that_is_far_ends_a_lease_and_far_ones_are_due_at_once() {
        let mut leases = leases(1000);
        leases.of_key(b"a", 500);
        assert_eq!(leases.of_key(b"a", 2000), 2000);
        assert!(leases.is_empty());
        leases.of_key(b"b", 700);
        leases.of_key(b"c", 800);
        let due = Due {
            passed_ms: 0,
            far_ms: 750,
        };
        assert_eq!(names(leases.take(due, 9)), ["c"]);
        assert_eq!(names(leases.take(Due::ALL, 9)), ["b"]);
    }

    #[test]
    fn leases_of_keys_that_are_anothers_are_forgotten() {
        let mut leases = leases(1000);
        leases.of_key(b"ours", 500);
        leases.of_key(b"theirs", 500);
        of_fields(&mut leases, "theirs", &["f"], 600, Whose::All);
        leases.forget(|key| key == b"theirs");
        assert_eq!(leases.len(), 1);
        assert_eq!(names(leases.take(Due::ALL, 10)), ["ours"]);
        assert!(leases.is_empty() && leases.bytes == 0);
    }

    #[test]
    fn leases_follow_their_value_to_another_name() {
        let mut leases = leases(1000);
        leases.of_key(b"a", 500);
        of_fields(&mut leases, "a", &["f", "g"], 600, Whose::All);
        of_fields(&mut leases, "aa", &["f"], 600, Whose::All);
        leases.carried(b"a", b"b");
        leases.carried(b"none", b"c");
        let taken = names(leases.take(Due::ALL, 9));
        assert_eq!(taken, ["a", "b", "a.f", "a.g", "aa.f", "b.f", "b.g"]);
    }

    #[test]
    fn what_the_table_does_not_take_is_known_to_be_unknown() {
        let mut leases = leases(u64::MAX);
        let most = limits::LEASE_TABLE_BYTES / cost(8);
        for number in 0..most as u64 + 10 {
            let deadline = leases.of_key(&number.to_be_bytes(), 1000 + number);
            assert_eq!(deadline, 1000 + number + GRACE_MS);
        }
        assert_eq!(leases.len(), most);
        let unknown = leases.unknown().expect("some");
        assert_eq!(unknown.until_ms, 1000 + most as u64 + 9);
        assert!(!unknown.fields);
        let held = of_fields(&mut leases, "h", &["field"], 1000, Whose::All);
        assert_eq!(held, 1000 + GRACE_MS);
        let unknown = leases.unknown().expect("some");
        assert!(unknown.fields);
        leases.found_unknown(Some(2000), unknown.number);
        let expected = Unknown {
            until_ms: 2000,
            ..unknown
        };
        assert_eq!(leases.unknown(), Some(expected));
        leases.lost_track();
        leases.found_unknown(None, unknown.number);
        assert!(leases.unknown().is_some(), "more came meanwhile");
        let unknown = leases.unknown().expect("some");
        leases.found_unknown(None, unknown.number);
        assert!(leases.unknown().is_none());
    }

    /// A command as the source applied it, on keys and fields by their numbers.
    #[derive(Debug, Clone)]
    enum Step {
        Set {
            key: u8,
            field: Option<u8>,
        },
        Delete {
            key: u8,
            field: Option<u8>,
        },
        ExpireKey {
            key: u8,
            at_ms: u64,
        },
        ExpireFields {
            key: u8,
            fields: Vec<u8>,
            at_ms: u64,
            condition: Condition,
        },
        Copy {
            from: u8,
            to: u8,
            moves: bool,
        },
        LoseTrack,
        Settle {
            passed_ms: u64,
            far_ms: u64,
            count: usize,
        },
    }

    #[derive(Debug, Clone, Copy)]
    enum Condition {
        None,
        Earlier,
        Later,
        Without,
    }

    impl Condition {
        fn holds(self, old: Option<u64>, at_ms: u64) -> bool {
            match self {
                Condition::None => true,
                Condition::Earlier => old.is_none_or(|old| at_ms < old),
                Condition::Later => old.is_some_and(|old| at_ms > old),
                Condition::Without => old.is_none(),
            }
        }
    }

    /// What a server holds, with deadlines: keys beside the fields of hashes of the same names.
    type Held = BTreeMap<(u8, Option<u8>), Option<u64>>;

    /// A source, and a target that is written to as a lane writes.
    struct Pair {
        source: Held,
        target: Held,
        leases: Leases,
    }

    impl Pair {
        /// What the settling scripts do.
        fn settle(at_ms: &mut Option<u64>, due: Due) {
            if let Some(at) = at_ms.and_then(|at| at.checked_sub(GRACE_MS))
                && (at <= due.passed_ms || at > due.far_ms)
            {
                *at_ms = Some(at);
            }
        }

        fn settle_known(&mut self, due: Due, count: usize) {
            for owner in self.leases.take(due, count) {
                let field = owner.field.map(|field| field[0]);
                if let Some(at_ms) = self.target.get_mut(&(owner.key[0], field)) {
                    Self::settle(at_ms, due);
                }
            }
        }

        fn walk(&mut self, due: Due) {
            let Some(unknown) = self.leases.unknown() else {
                return;
            };
            let seen = |owner: &(u8, Option<u8>)| unknown.fields || owner.1.is_none();
            let all = self.target.iter_mut().filter(|(owner, _)| seen(owner));
            all.for_each(|(_, at_ms)| Self::settle(at_ms, due));
            let left = (unknown.until_ms > due.passed_ms).then_some(due.far_ms);
            self.leases.found_unknown(left, unknown.number);
        }

        fn apply(&mut self, step: Step) {
            match step {
                Step::Set { key, field } => {
                    self.source.insert((key, field), None);
                    self.target.insert((key, field), None);
                }
                Step::Delete { key, field } => {
                    self.source.remove(&(key, field));
                    self.target.remove(&(key, field));
                }
                Step::ExpireKey { key, at_ms } => {
                    if let Some(at) = self.source.get_mut(&(key, None)) {
                        *at = Some(at_ms);
                        let given = self.leases.of_key(&[key], at_ms);
                        self.target.insert((key, None), Some(given));
                    }
                }
                Step::ExpireFields {
                    key,
                    fields,
                    at_ms,
                    condition,
                } => self.expire_fields(key, &fields, at_ms, condition),
                Step::Copy { from, to, moves } => {
                    if from == to || !self.source.keys().any(|owner| owner.0 == from) {
                        return;
                    }
                    for held in [&mut self.source, &mut self.target] {
                        held.retain(|owner, _| owner.0 != to);
                        let all = held.clone().into_iter();
                        held.extend(
                            all.filter(|entry| entry.0.0 == from)
                                .map(|((_, field), at_ms)| ((to, field), at_ms)),
                        );
                        held.retain(|owner, _| !moves || owner.0 != from);
                    }
                    self.leases.carried(&[from], &[to]);
                }
                Step::LoseTrack => self.leases.lost_track(),
                Step::Settle {
                    passed_ms,
                    far_ms,
                    count,
                } => {
                    let due = Due { passed_ms, far_ms };
                    self.settle_known(due, count);
                    self.walk(due);
                }
            }
        }

        fn expire_fields(&mut self, key: u8, fields: &[u8], at_ms: u64, condition: Condition) {
            let mut any = false;
            for field in fields {
                if let Some(at) = self.source.get_mut(&(key, Some(*field)))
                    && condition.holds(*at, at_ms)
                {
                    *at = Some(at_ms);
                    any = true;
                }
            }
            // Then nothing is replicated.
            if !any {
                return;
            }
            let whose = match condition {
                Condition::None => Whose::All,
                _ => Whose::Matching,
            };
            let mut names = fields.iter().map(std::slice::from_ref);
            let given = self.leases.of_fields(&[key], &mut names, at_ms, whose);
            for field in fields {
                if let Some(at) = self.target.get_mut(&(key, Some(*field)))
                    && condition.holds(at.map(|at| at % GRACE_MS), at_ms)
                {
                    *at = Some(given);
                }
            }
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        let condition = prop_oneof![
            Just(Condition::None),
            Just(Condition::Earlier),
            Just(Condition::Later),
            Just(Condition::Without),
        ];
        let owner = || (0..2u8, prop::option::weighted(0.7, 0..2u8));
        prop_oneof![
            4 => owner().prop_map(|(key, field)| Step::Set { key, field }),
            1 => owner().prop_map(|(key, field)| Step::Delete { key, field }),
            3 => (0..2u8, 0..300u64).prop_map(|(key, at_ms)| Step::ExpireKey { key, at_ms }),
            6 => (0..2u8, vec(0..2u8, 1..3), 0..300u64, condition).prop_map(
                |(key, fields, at_ms, condition)| Step::ExpireFields { key, fields, at_ms, condition }
            ),
            1 => (0..2u8, 0..2u8, any::<bool>())
                .prop_map(|(from, to, moves)| Step::Copy { from, to, moves }),
            1 => Just(Step::LoseTrack),
            6 => (0..300u64, 0..300u64, 1..9usize).prop_map(|(passed_ms, far_ms, count)| {
                Step::Settle { passed_ms, far_ms: far_ms.max(passed_ms), count }
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn whatever_a_source_does_its_target_ends_with_the_same_deadlines(
            steps in vec(step(), 0..80),
        ) {
            let mut pair = Pair {
                source: Held::new(),
                target: Held::new(),
                leases: leases(200),
            };
            for step in steps {
                pair.apply(step);
                let true_ones = pair.target.iter().map(|(owner, at)| (*owner, at.map(|at| at % GRACE_MS)));
                prop_assert_eq!(true_ones.collect::<Held>(), pair.source.clone());
            }
            while !pair.leases.by_deadline.is_empty() {
                pair.settle_known(Due::ALL, 3);
            }
            pair.walk(Due::ALL);
            prop_assert!(pair.leases.is_empty() && pair.leases.bytes == 0);
            prop_assert_eq!(pair.target, pair.source);
        }
    }
}
