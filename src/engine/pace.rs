//! How fast the stream comes: so far ahead of it the high-water offset of the [`super::records`] is set.
//!
//! ```text
//! bytes a second   many ............... few ......... none for some seconds
//! ahead            twice as many        the least     0: nothing is in doubt after a crash
//! ```

use crate::command::{self, Kind};
use crate::limits;
use crate::position::Offset;
use crate::resp::Frame;

/// How much the stream brings.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Where the stream was, and how many commands had been handed over, when the last interval began.
    came_to: Offset,
    commands: u64,
    /// What an interval brought lately.
    bytes: u64,
    /// Intervals since anything was written.
    quiet: u32,
    /// How far ahead the high-water offset was last set.
    step: usize,
}

impl Pace {
    pub fn beginning_at(came_to: Offset) -> Self {
        Self {
            came_to,
            step: limits::MIN_HIGH_STEP_BYTES,
            ..Self::default()
        }
    }

    /// An interval ends, with the stream here.
    pub fn end_interval(&mut self, came_to: Offset, commands: u64) {
        let brought = came_to.since(self.came_to);
        let quiet = commands == self.commands && brought <= limits::QUIET_BYTES;
        self.quiet = if quiet { self.quiet + 1 } else { 0 };
        let before = (self.bytes / 2).min(limits::REMEMBERED_PACE_BYTES);
        self.bytes = brought.max(before);
        (self.came_to, self.commands) = (came_to, commands);
    }

    /// How far ahead of the stream, which is here with so many bytes yet to be handed over, the high-water offset is set: far enough
    /// that a record in flight is not waited for, and no farther than need be.
    pub fn take_step(&mut self, came_to: Offset, waiting: usize) -> usize {
        if waiting > 0 {
            self.quiet = 0;
        }
        let bytes = came_to.since(self.came_to).max(self.bytes);
        let ahead = usize::try_from(bytes.saturating_mul(2)).unwrap_or(usize::MAX);
        self.step = match self.quiet < limits::QUIET_INTERVALS {
            true => ahead.clamp(limits::MIN_HIGH_STEP_BYTES, limits::MAX_HIGH_STEP_BYTES),
            false => 0,
        };
        self.step
    }
    /// How far ahead the high-water offset was last set.
    pub fn step(&self) -> usize {
        self.step
    }
}

/// What a source says while nobody writes, and what is not sent on.
pub(super) fn is_talk(frame: &Frame<'_>) -> bool {
    let kind = command::find(frame).map(|command| command.kind);
    matches!(kind, Some(Kind::Ping | Kind::Replconf))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: usize = limits::MIN_HIGH_STEP_BYTES;

    /// The steps at the ends of intervals that bring so many bytes of commands each.
    fn steps(pace: &mut Pace, intervals: &[u64]) -> Vec<usize> {
        let mut at = pace.came_to;
        let mut commands = pace.commands;
        let step = |&bytes: &u64| {
            at = at.advanced(bytes as usize);
            commands += u64::from(bytes > 0);
            pace.end_interval(at, commands);
            pace.take_step(at, 0)
        };
        intervals.iter().map(step).collect()
    }

    fn pace() -> Pace {
        Pace::beginning_at(Offset(1 << 40))
    }

    #[test]
    fn the_step_is_twice_what_an_interval_brought() {
        let bytes = MIN as u64;
        let taken = steps(&mut pace(), &[bytes, 3 * bytes, 10, 1 << 40]);
        let max = limits::MAX_HIGH_STEP_BYTES;
        assert_eq!(taken, [2 * MIN, 6 * MIN, 3 * MIN, max]);
    }

    #[test]
    fn what_an_interval_brings_at_once_counts_before_it_ends() {
        let mut pace = pace();
        let at = pace.came_to.advanced(10 * MIN);
        assert_eq!(pace.take_step(at, MIN), 20 * MIN);
    }

    #[test]
    fn a_load_is_forgotten_by_halves_and_then_a_silence_leaves_no_step() {
        let mut pace = pace();
        let quiet = limits::QUIET_INTERVALS as usize;
        let mut intervals = vec![0; quiet + 1];
        intervals[0] = 1 << 30;
        let taken = steps(&mut pace, &intervals);
        assert_eq!(taken[1], 2 * limits::REMEMBERED_PACE_BYTES as usize);
        assert!(taken.is_sorted_by(|a, b| a > b || *b == MIN), "{taken:?}");
        assert_eq!((taken[quiet - 1], taken[quiet]), (MIN, 0));
        // The next write does not find it so.
        assert_eq!(pace.take_step(pace.came_to.advanced(10), 10), MIN);
    }

    #[test]
    fn a_single_command_ends_a_silence_and_what_the_source_says_does_not() {
        let mut pace = pace();
        let quiet = limits::QUIET_INTERVALS;
        for _ in 0..quiet {
            let at = pace.came_to.advanced(limits::QUIET_BYTES as usize);
            pace.end_interval(at, 0);
        }
        assert_eq!(pace.take_step(pace.came_to, 0), 0);
        pace.end_interval(pace.came_to.advanced(1), 1);
        assert_eq!(pace.take_step(pace.came_to, 0), MIN);
        pace.end_interval(pace.came_to.advanced(MIN), 1);
        assert_eq!(pace.quiet, 0, "that were too many bytes");
    }
}
