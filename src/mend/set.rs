//! The keys of one slot that are mended together, and what becomes of the slot's units meanwhile.
//!
//! ```text
//! Draining -> Asked -> Catching -> Covering -> written
//!    ^  ^______|          |           |
//!    |  (in vain)         |           |            a key joins
//!    |____________________|___________|___________________________
//! ```
//!
//! | stage | units of the slot |
//! |---|---|
//! | `Draining` | held; those on their way are waited for: they may show more keys |
//! | `Asked` | held |
//! | `Catching` | before the answer's offset: sent, or left out if they touch a key of the set; from it on: held |
//! | `Covering` | held; those on their way are waited for |
//!
//! Invariant: units leave in the order in which they came, and none from the answer's offset on leaves before the write.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::question::{Snapshot, Taken};
use crate::limits;
use crate::position::Offset;

/// A key of the target: database, name.
pub type Key = (u32, Vec<u8>);

/// What the source has for keys; `None`: nothing.
pub type Values = BTreeMap<Key, Option<Taken>>;

/// Where a mend stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Draining,
    /// The number of the question.
    Asked(u64),
    /// The offset at which the values held.
    Catching(Offset),
    Covering(Offset),
}

/// What a unit has to do with keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    Keys(Vec<Key>),
    /// Two databases change places.
    Swap(u32, u32),
    /// It cannot be told.
    Unknown,
}

/// What becomes of a unit from before the answer's offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Send,
    /// What it does to keys of the set is part of their values.
    LeaveOut,
}

/// More keys hang together than are mended at a time, or which they are cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyKeys;

/// A set of keys being mended. `U` is what is sent, held or left out as one.
#[derive(Debug)]
pub struct Mend<U> {
    keys: BTreeSet<Key>,
    /// Nothing from here on may count as applied before the mend is.
    owed_from: Offset,
    stage: Stage,
    /// What is on its way was noted, to be waited for.
    fenced: bool,
    values: Values,
    held: VecDeque<(Offset, U)>,
}

impl<U> Mend<U> {
    /// Nothing is mended yet; `from` is where what showed the difference begins.
    pub fn new(from: Offset) -> Self {
        Self {
            keys: BTreeSet::new(),
            owed_from: from,
            stage: Stage::Draining,
            fenced: false,
            values: BTreeMap::new(),
            held: VecDeque::new(),
        }
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    pub fn owed_from(&self) -> Offset {
        self.owed_from
    }

    /// In the order in which they are asked for.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &Key> + Clone {
        self.keys.iter()
    }

    pub fn contains(&self, key: &Key) -> bool {
        self.keys.contains(key)
    }

    /// Nothing is held back: what waits for the slot to be quiet need not wait for this.
    pub fn is_quiet(&self) -> bool {
        matches!(self.stage, Stage::Catching(_)) && self.held.is_empty()
    }

    /// Everything that is held, in order.
    pub fn held(&self) -> impl Iterator<Item = &U> {
        self.held.iter().map(|(_, unit)| unit)
    }

    /// Keys turned out to differ, by a unit that begins at `from`.
    ///
    /// # Errors
    /// When they are too many.
    pub fn join(
        &mut self,
        keys: impl IntoIterator<Item = Key>,
        from: Offset,
    ) -> Result<(), TooManyKeys> {
        let before = self.keys.len();
        for key in keys {
            if self.keys.len() >= limits::MEND_KEYS && !self.keys.contains(&key) {
                return Err(TooManyKeys);
            }
            self.keys.insert(key);
        }
        self.owed_from = self.owed_from.min(from);
        if self.keys.len() > before {
            self.drain();
        }
        Ok(())
    }

    fn drain(&mut self) {
        self.stage = Stage::Draining;
        self.fenced = false;
        self.values.clear();
    }

    /// Whether what is on its way must be noted now. Told once for each time of waiting.
    pub fn wants_fence(&mut self) -> bool {
        let waits = matches!(self.stage, Stage::Draining | Stage::Covering(_));
        waits && !std::mem::replace(&mut self.fenced, true)
    }

    /// What was on its way is answered, and the source is asked by this number.
    pub fn ask(&mut self, ticket: u64) {
        assert!(
            self.stage == Stage::Draining && self.fenced,
            "asked too early"
        );
        self.stage = Stage::Asked(ticket);
    }

    /// The answer to the last question, if that is what `ticket` names. Whether it was taken.
    pub fn answered(&mut self, ticket: u64, snapshot: Snapshot) -> bool {
        if self.stage != Stage::Asked(ticket) || snapshot.values.len() != self.keys.len() {
            return false;
        }
        self.values = self.keys.iter().cloned().zip(snapshot.values).collect();
        self.stage = Stage::Catching(snapshot.offset);
        true
    }

    /// The last question got no answer, or none that counts.
    pub fn asked_in_vain(&mut self) {
        self.drain();
    }

    /// Nothing is to be mended after all; what is held stays held.
    pub fn give_up(&mut self) {
        self.keys.clear();
        self.drain();
    }

    /// The next held unit, whatever it has to do with the keys.
    pub fn take_held(&mut self) -> Option<(Offset, U)> {
        self.held.pop_front()
    }

    /// The source has another history, which is the former one up to `until`: what was seen behind that may be undone.
    pub fn history_changed(&mut self, until: Offset) {
        match self.stage {
            Stage::Draining => {}
            Stage::Catching(offset) | Stage::Covering(offset) if offset <= until => {}
            _ => self.drain(),
        }
    }

    /// A unit of the slot has come. Given back if it is to be judged at once.
    pub fn arrives(&mut self, begin: Offset, unit: U) -> Option<U> {
        if self.held.is_empty() && self.is_before_values(begin) {
            return Some(unit);
        }
        self.held.push_back((begin, unit));
        None
    }

    /// The next held unit that is to be judged.
    pub fn next_to_judge(&mut self) -> Option<(Offset, U)> {
        let (begin, _) = self.held.front()?;
        match self.is_before_values(*begin) {
            true => self.held.pop_front(),
            false => None,
        }
    }

    fn is_before_values(&self, begin: Offset) -> bool {
        matches!(self.stage, Stage::Catching(until) if begin < until)
    }

    /// Decides about a unit; keys that it draws in join the set.
    ///
    /// # Errors
    /// When these are too many.
    pub fn judge(&mut self, touched: &Touched, begin: Offset) -> Result<Verdict, TooManyKeys> {
        match touched {
            Touched::Unknown => Err(TooManyKeys),
            Touched::Keys(keys) if keys.iter().any(|key| self.keys.contains(key)) => {
                self.join(keys.iter().cloned(), begin)?;
                Ok(Verdict::LeaveOut)
            }
            Touched::Keys(_) => Ok(Verdict::Send),
            Touched::Swap(one, other) => {
                let moved = self.keys.iter().filter_map(|(database, name)| {
                    let to = match *database {
                        at if at == *one => other,
                        at if at == *other => one,
                        _ => return None,
                    };
                    Some((*to, name.clone()))
                });
                let moved: Vec<Key> = moved.collect();
                self.join(moved, begin)?;
                Ok(Verdict::Send)
            }
        }
    }

    /// Everything before `routed` has come. Whether that is all that comes before the values.
    pub fn reached(&mut self, routed: Offset) -> bool {
        match self.stage {
            Stage::Catching(until) if until <= routed && self.next_is_behind(until) => {
                self.stage = Stage::Covering(until);
                self.fenced = false;
                true
            }
            _ => false,
        }
    }

    fn next_is_behind(&self, until: Offset) -> bool {
        self.held.front().is_none_or(|(begin, _)| *begin >= until)
    }

    /// Keys need not be mended any more: they are removed at the source and the target alike, at an offset before the values; or
    /// somebody else takes care of them. Whether none is left.
    pub fn forget(&mut self, gone: impl Fn(&Key) -> bool) -> bool {
        self.keys.retain(|key| !gone(key));
        self.values.retain(|key, _| !gone(key));
        self.keys.is_empty()
    }

    /// What the source has for each key; nothing before it has answered.
    pub fn values(&self) -> impl Iterator<Item = (&Key, &Option<Taken>)> {
        self.values.iter()
    }

    /// What was on its way is answered: the values, and everything that is held, in order.
    pub fn finish(self) -> (Values, VecDeque<(Offset, U)>) {
        assert!(
            matches!(self.stage, Stage::Covering(_)) && self.fenced,
            "written too early"
        );
        (self.values, self.held)
    }

    /// Everything that is held, for a mend that is given up.
    pub fn into_held(self) -> impl Iterator<Item = U> {
        self.held.into_iter().map(|(_, unit)| unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        (0, name.into())
    }

    fn touched(names: &[&str]) -> Touched {
        Touched::Keys(names.iter().map(|name| key(name)).collect())
    }

    fn mend(names: &[&str], from: u64) -> Mend<u64> {
        let mut mend = Mend::new(Offset(from));
        mend.join(names.iter().map(|name| key(name)), Offset(from))
            .expect("a few");
        mend
    }

    fn snapshot(mend: &Mend<u64>, offset: u64) -> Snapshot {
        let taken = |n: usize| Taken {
            payload: vec![n as u8],
            expire_at_ms: None,
        };
        Snapshot {
            replid: "id".into(),
            offset: Offset(offset),
            values: (0..mend.keys().len()).map(|n| Some(taken(n))).collect(),
        }
    }

    /// A mend whose values held at `offset`.
    fn catching(names: &[&str], from: u64, offset: u64) -> Mend<u64> {
        let mut mend = mend(names, from);
        ask(&mut mend, 1, offset);
        mend
    }

    fn ask(mend: &mut Mend<u64>, ticket: u64, offset: u64) {
        assert!(mend.wants_fence() && !mend.wants_fence());
        mend.ask(ticket);
        let snapshot = snapshot(mend, offset);
        assert!(mend.answered(ticket, snapshot));
    }

    /// Gives a unit that begins at `at`; what became of it, `None` if it is held.
    fn give(mend: &mut Mend<u64>, at: u64, keys: &[&str]) -> Option<Verdict> {
        let unit = mend.arrives(Offset(at), at)?;
        Some(mend.judge(&touched(keys), Offset(unit)).expect("a few"))
    }

    #[test]
    fn everything_is_held_until_the_source_has_answered() {
        let mut mend = mend(&["k"], 10);
        assert_eq!(give(&mut mend, 20, &["other"]), None);
        assert!(mend.wants_fence());
        mend.ask(7);
        assert_eq!(give(&mut mend, 30, &["k"]), None);
        let late = snapshot(&mend, 25);
        assert!(!mend.answered(6, late.clone()), "another question's answer");
        assert!(mend.answered(7, late));
        assert_eq!(mend.next_to_judge(), Some((Offset(20), 20)));
        assert_eq!(
            mend.next_to_judge(),
            None,
            "the next one is behind the values"
        );
        assert!(!mend.is_quiet());
    }

    #[test]
    fn before_the_values_only_what_touches_the_keys_is_left_out() {
        let mut mend = catching(&["k"], 10, 100);
        assert!(mend.is_quiet());
        assert_eq!(give(&mut mend, 20, &["a"]), Some(Verdict::Send));
        assert_eq!(give(&mut mend, 30, &["k"]), Some(Verdict::LeaveOut));
        assert_eq!(give(&mut mend, 40, &[]), Some(Verdict::Send));
        assert_eq!(give(&mut mend, 100, &["a"]), None);
        assert!(!mend.reached(Offset(99)));
        assert!(mend.reached(Offset(100)));
        assert!(mend.wants_fence());
        let (values, held) = mend.finish();
        assert_eq!(
            values[&key("k")].as_ref().map(|taken| &taken.payload[..]),
            Some(&[0][..])
        );
        assert_eq!(held, [(Offset(100), 100)]);
    }

    #[test]
    fn what_a_unit_draws_in_is_asked_for_again_with_all_the_others() {
        let mut mend = catching(&["k"], 10, 100);
        assert_eq!(give(&mut mend, 20, &["k", "x"]), Some(Verdict::LeaveOut));
        assert_eq!(mend.stage(), Stage::Draining);
        assert_eq!(give(&mut mend, 30, &["x"]), None, "held until asked again");
        ask(&mut mend, 2, 200);
        assert_eq!(mend.keys().len(), 2);
        let (begin, unit) = mend.next_to_judge().expect("it is before the new offset");
        assert_eq!(
            mend.judge(&touched(&["x"]), Offset(unit)),
            Ok(Verdict::LeaveOut)
        );
        assert_eq!(begin, Offset(30));
        assert_eq!(give(&mut mend, 150, &["x"]), Some(Verdict::LeaveOut));
        assert_eq!(mend.owed_from(), Offset(10));
    }

    #[test]
    fn a_key_that_fails_while_others_are_mended_joins_them_and_one_of_them_does_not_start_anew() {
        let mut mend = catching(&["k"], 10, 100);
        mend.join([key("k")], Offset(12)).expect("a few");
        assert_eq!(mend.stage(), Stage::Catching(Offset(100)));
        assert!(mend.reached(Offset(100)));
        mend.join([key("y")], Offset(8)).expect("a few");
        assert_eq!(mend.stage(), Stage::Draining);
        assert_eq!(mend.owed_from(), Offset(8));
        assert!(
            mend.wants_fence(),
            "what is on its way is other than before"
        );
    }

    #[test]
    fn a_set_does_not_grow_without_bound() {
        let mut mend = catching(&["k"], 10, 100);
        let many = (0..limits::MEND_KEYS).map(|n| key(&n.to_string()));
        let many = Touched::Keys(many.chain([key("k")]).collect());
        assert_eq!(mend.judge(&many, Offset(20)), Err(TooManyKeys));
        assert_eq!(mend.judge(&Touched::Unknown, Offset(20)), Err(TooManyKeys));
    }

    #[test]
    fn keys_follow_databases_that_change_places() {
        let mut mend = catching(&["k"], 10, 100);
        let elsewhere = Touched::Swap(1, 2);
        assert_eq!(mend.judge(&elsewhere, Offset(20)), Ok(Verdict::Send));
        assert!(mend.is_quiet());
        assert_eq!(
            mend.judge(&Touched::Swap(3, 0), Offset(20)),
            Ok(Verdict::Send)
        );
        let keys: Vec<Key> = mend.keys().cloned().collect();
        assert_eq!(keys, [key("k"), (3, b"k".to_vec())]);
        assert_eq!(mend.stage(), Stage::Draining);
    }

    #[test]
    fn values_of_a_history_that_was_given_up_are_asked_for_again() {
        let mut mend = catching(&["k"], 10, 100);
        mend.history_changed(Offset(100));
        assert_eq!(mend.stage(), Stage::Catching(Offset(100)));
        mend.history_changed(Offset(99));
        assert_eq!(mend.stage(), Stage::Draining);
        assert!(mend.wants_fence());
        mend.ask(2);
        mend.history_changed(Offset(500));
        assert_eq!(mend.stage(), Stage::Draining, "the answer may be of either");
    }

    #[test]
    fn flushed_keys_need_no_mending() {
        let mut mend = catching(&["a", "b"], 10, 100);
        assert!(!mend.forget(|key| key.1 == b"a"));
        assert!(mend.reached(Offset(100)) && mend.wants_fence());
        let (values, _) = mend.finish();
        assert_eq!(values.keys().cloned().collect::<Vec<_>>(), [key("b")]);
        let mut all = catching(&["a"], 10, 100);
        assert!(all.forget(|_| true));
    }

    #[test]
    fn an_answer_that_does_not_fit_the_question_is_not_taken() {
        let mut mend = mend(&["k"], 10);
        assert!(mend.wants_fence());
        mend.ask(1);
        let mut short = snapshot(&mend, 50);
        short.values.clear();
        assert!(!mend.answered(1, short));
        mend.asked_in_vain();
        assert_eq!(mend.stage(), Stage::Draining);
        assert_eq!(mend.into_held().count(), 0);
    }
}
