//! When how much had been received: the age of what is not answered, and what relative times count from.
//!
//! One entry per millisecond, until there are too many: then pairs are merged, and from there on one entry covers twice the
//! time. So however long the target stands still, an age is at most a two-thousandth of the longest one too high.

use std::collections::VecDeque;

use crate::limits;
use crate::position::Offset;

#[derive(Debug, Default)]
pub struct Arrivals {
    /// Everything before the offset, from that of the entry before on, came at this time or later.
    entries: VecDeque<(Offset, u64)>,
    /// How often the time that one entry covers was doubled, from a millisecond.
    doublings: u32,
    /// The same of what a former process received, in Unix time.
    former: VecDeque<(Offset, u64)>,
}

impl Arrivals {
    /// Everything before `offset` has been received by now.
    pub fn note(&mut self, offset: Offset, now_ms: u64) {
        match self.entries.back_mut() {
            Some(last) if now_ms < last.1 + (1 << self.doublings) => last.0 = offset,
            _ => {
                if self.entries.len() >= limits::MAX_ARRIVALS {
                    self.thin_out();
                }
                self.entries.push_back((offset, now_ms));
            }
        }
    }

    fn thin_out(&mut self) {
        self.doublings += 1;
        let pairs = self.entries.make_contiguous().chunks(2);
        self.entries = pairs
            .map(|pair| (pair[pair.len() - 1].0, pair[0].1))
            .collect();
    }

    /// What a former process received begins with this: offsets, and when what lies before each came, in Unix time.
    pub fn note_former(&mut self, former: impl Iterator<Item = (Offset, u64)>) {
        self.former = former.collect();
    }

    /// Everything before `offset` is answered.
    pub fn forget(&mut self, offset: Offset) {
        while self.former.front().is_some_and(|(end, _)| *end <= offset) {
            self.former.pop_front();
        }
        while self.entries.front().is_some_and(|(end, _)| *end <= offset) {
            self.entries.pop_front();
        }
        if self.entries.is_empty() {
            self.doublings = 0;
        }
    }

    /// What lies behind `offset` has to be received again.
    pub fn cut(&mut self, offset: Offset) {
        // One that ends behind it still tells of what is before it.
        let within = self.former.partition_point(|(end, _)| *end < offset);
        self.former.truncate(within + 1);
        if let Some(last) = self.former.get_mut(within) {
            last.0 = offset;
        }
        while let Some(last) = self.entries.back().copied()
            && last.0 > offset
        {
            self.entries.pop_back();
            let before = self.entries.back().map(|(end, _)| *end);
            if before.is_none_or(|before| before < offset) {
                self.entries.push_back((offset, last.1));
            }
        }
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// When the oldest came.
    pub fn oldest_ms(&self) -> Option<u64> {
        self.entries.front().map(|(_, ms)| *ms)
    }

    /// When the byte at `offset` came, in Unix time, if a former process received it.
    pub fn former_at(&self, offset: Offset) -> Option<u64> {
        let later = self.former.partition_point(|(end, _)| *end <= offset);
        self.former.get(later).map(|(_, ms)| *ms)
    }

    /// When the byte at `offset` came, if that is known.
    pub fn at(&self, offset: Offset) -> Option<u64> {
        let later = self.entries.partition_point(|(end, _)| *end <= offset);
        self.entries.get(later).map(|(_, ms)| *ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_stay_close_however_much_is_received() {
        let mut arrivals = Arrivals::default();
        let last = 50 * limits::MAX_ARRIVALS as u64;
        for ms in 0..last {
            arrivals.note(Offset(ms * 10 + 10), ms);
        }
        assert!(arrivals.entries.len() <= limits::MAX_ARRIVALS);
        for ms in (0..last).step_by(97) {
            let told = arrivals.at(Offset(ms * 10)).expect("received");
            let most = 2 * last / limits::MAX_ARRIVALS as u64 + 1;
            assert!(
                (ms.saturating_sub(most)..=ms).contains(&told),
                "{ms}: {told}"
            );
        }
        assert_eq!(arrivals.at(Offset(last * 10)), None);
    }

    #[test]
    fn what_a_former_process_received_came_when_it_says() {
        let mut arrivals = Arrivals::default();
        let former = [(10, 500), (20, 600), (30, 700)];
        arrivals.note_former(former.into_iter().map(|(end, ms)| (Offset(end), ms)));
        let told = |arrivals: &Arrivals, at| arrivals.former_at(Offset(at));
        assert_eq!(
            [9, 10, 29, 30].map(|at| told(&arrivals, at)),
            [Some(500), Some(600), Some(700), None]
        );
        arrivals.cut(Offset(15));
        assert_eq!([14, 15].map(|at| told(&arrivals, at)), [Some(600), None]);
        arrivals.forget(Offset(15));
        assert_eq!(told(&arrivals, 14), None);
    }

    #[test]
    fn what_is_answered_or_lost_is_forgotten() {
        let mut arrivals = Arrivals::default();
        for ms in 0..10 {
            arrivals.note(Offset(ms * 10 + 10), ms);
        }
        arrivals.forget(Offset(25));
        assert_eq!(arrivals.oldest_ms(), Some(2));
        arrivals.cut(Offset(55));
        assert_eq!(arrivals.at(Offset(54)), Some(5));
        assert_eq!(arrivals.at(Offset(55)), None);
        arrivals.note(Offset(60), 20);
        assert_eq!(arrivals.at(Offset(55)), Some(20));
        arrivals.forget(Offset(60));
        assert_eq!(arrivals.oldest_ms(), None);
    }
}
