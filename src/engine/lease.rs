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
//! Keys with leases stand in a table, by deadline. It is bounded; when it is full, or when a lease goes where it cannot be
//! followed (`MOVE`, `SWAPDB`), the lane remembers that there are leases which it does not know, and walks over all keys
//! of its slots once they are due (`listing`). Since the script asks each key itself, an entry too many does no harm.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::command::rewrite::Deadlines;
use crate::limits;

/// What a lease adds to a deadline.
pub(super) const GRACE_MS: u64 = limits::LEASE_GRACE_MS;

type Name = Arc<[u8]>;

/// The leases of one lane. Times are Unix time in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// Database at the target of what is looked at.
    pub database: u32,
    /// Deadlines before this are held back.
    near_until_ms: u64,
    by_key: HashMap<(u32, Name), u64>,
    by_deadline: BTreeSet<(u64, u32, Name)>,
    bytes: usize,
    /// The latest true deadline of leases that are not in the table.
    unknown_until_ms: Option<u64>,
    /// How often one was added to those.
    unknown: u64,
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
        self.by_key.len()
    }

    /// Whether there are none, known or not.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty() && self.unknown_until_ms.is_none()
    }

    /// The latest deadline of leases that are not known, and a number that changes when there are more.
    pub fn unknown(&self) -> Option<(u64, u64)> {
        Some((self.unknown_until_ms?, self.unknown))
    }

    /// All unknown leases were asked for: those that are left end before `until_ms`, or there are none. `number`: see
    /// [`Leases::unknown`], from before that.
    pub fn found_unknown(&mut self, until_ms: Option<u64>, number: u64) {
        if number == self.unknown {
            let before = self.unknown_until_ms;
            self.unknown_until_ms = until_ms.and_then(|until| before.map(|at| at.min(until)));
        }
    }

    /// Takes at most `count` keys off the table that are due: database, key.
    pub fn take(&mut self, due: Due, count: usize) -> Vec<(u32, Name)> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let first = self.by_deadline.first();
            let last = self.by_deadline.last();
            let passed = first.filter(|entry| entry.0 <= due.passed_ms);
            let Some(entry) = passed.or_else(|| last.filter(|entry| entry.0 > due.far_ms)) else {
                break;
            };
            let (_, database, key) = entry.clone();
            self.forget(database, &key);
            taken.push((database, key));
        }
        taken
    }

    fn grant(&mut self, database: u32, key: &[u8], at_ms: u64) {
        self.forget(database, key);
        let bytes = cost(key);
        if self.bytes + bytes > limits::LEASE_TABLE_BYTES {
            self.lose(at_ms);
            return;
        }
        self.bytes += bytes;
        let name: Name = key.into();
        self.by_deadline
            .insert((at_ms, database, Arc::clone(&name)));
        self.by_key.insert((database, name), at_ms);
    }

    fn forget(&mut self, database: u32, key: &[u8]) {
        if self.by_key.is_empty() {
            return;
        }
        if let Some(((_, name), at_ms)) = self.by_key.remove_entry(&(database, key.into())) {
            self.bytes -= cost(key);
            self.by_deadline.remove(&(at_ms, database, name));
        }
    }

    fn lose(&mut self, at_ms: u64) {
        self.unknown += 1;
        self.unknown_until_ms = self.unknown_until_ms.max(Some(at_ms));
    }
}

/// Memory for an entry, roughly: the key, and a node in each of two tables.
fn cost(key: &[u8]) -> usize {
    key.len() + limits::LEASE_ENTRY_BYTES
}

impl Deadlines for Leases {
    fn of_key(&mut self, key: &[u8], at_ms: u64) -> u64 {
        // One so far away that it looks like a lease cannot be one.
        if at_ms >= self.near_until_ms || at_ms >= GRACE_MS {
            self.forget(self.database, key);
            return at_ms;
        }
        self.grant(self.database, key, at_ms);
        at_ms + GRACE_MS
    }

    fn carried(&mut self, from: &[u8], to: &[u8]) {
        if self.by_key.is_empty() {
            return;
        }
        if let Some(&at_ms) = self.by_key.get(&(self.database, from.into())) {
            self.grant(self.database, to, at_ms);
        }
    }

    fn lost_track(&mut self) {
        if let Some((at_ms, ..)) = self.by_deadline.last() {
            self.lose(*at_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leases(near_until_ms: u64) -> Leases {
        let mut leases = Leases::default();
        leases.set_near(near_until_ms);
        leases
    }

    fn names(taken: Vec<(u32, Name)>) -> Vec<String> {
        let name = |(_, key): (u32, Name)| String::from_utf8_lossy(&key).into_owned();
        taken.into_iter().map(name).collect()
    }

    #[test]
    fn near_deadlines_are_held_back_and_the_newest_of_a_key_counts() {
        let mut leases = leases(1000);
        assert_eq!(leases.of_key(b"far", 1000), 1000);
        assert_eq!(leases.of_key(b"a", 500), 500 + GRACE_MS);
        assert_eq!(leases.of_key(b"b", 600), 600 + GRACE_MS);
        assert_eq!(leases.of_key(b"a", 900), 900 + GRACE_MS);
        let due = |passed_ms| Due {
            passed_ms,
            far_ms: 1000,
        };
        assert_eq!(names(leases.take(due(899), 9)), ["b"]);
        assert!(leases.take(due(899), 9).is_empty());
        assert_eq!(names(leases.take(due(900), 9)), ["a"]);
        assert!(leases.is_empty());
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
    fn a_lease_follows_its_value_to_another_name() {
        let mut leases = leases(1000);
        leases.of_key(b"a", 500);
        leases.carried(b"a", b"b");
        leases.carried(b"none", b"c");
        assert_eq!(names(leases.take(Due::ALL, 9)), ["a", "b"]);
    }

    #[test]
    fn what_the_table_does_not_take_is_known_to_be_unknown() {
        let mut leases = leases(u64::MAX);
        let most = limits::LEASE_TABLE_BYTES / cost(b"12345678");
        for number in 0..most as u64 + 10 {
            let deadline = leases.of_key(&number.to_be_bytes(), 1000 + number);
            assert_eq!(deadline, 1000 + number + GRACE_MS);
        }
        assert_eq!(leases.len(), most);
        let (until, number) = leases.unknown().expect("some");
        assert_eq!(until, 1000 + most as u64 + 9);
        leases.found_unknown(Some(2000), number);
        assert_eq!(leases.unknown(), Some((2000, number)));
        leases.lost_track();
        leases.found_unknown(None, number);
        assert!(leases.unknown().is_some(), "more came meanwhile");
        let (_, number) = leases.unknown().expect("some");
        leases.found_unknown(None, number);
        assert!(leases.unknown().is_none());
    }
}
