//! Spools that nobody writes to any more: of a former process, or of a lane of this one that begins again.
//!
//! ```text
//! begins: read the records ---- a record stands in it -------> kept, until a lane takes it up: its segments go on as that lane's
//!                          '--- none does -------------------> deleted: whoever began with it would miss something
//! a lane begins again: its own spool is looked at ---- not taken up -> deleted
//! ```
//!
//! A lane whose source master cannot be reached yet finds its spool when it comes. Those that no lane has come for are looked
//! at again by the next process. They count in the budget meanwhile.

use std::sync::Arc;

use tracing::{info, warn};

use super::spool_files::{Found, SpoolFiles};
use crate::checkpoint::{Bookkeeping, Resume, State};
use crate::engine::Spooled;
use crate::position::{Position, ReplicationId};
use crate::spool::{Budget, Survey, recover};

pub(super) struct Leftovers {
    spools: Found,
    budget: Arc<Budget>,
}

impl Leftovers {
    pub fn new(budget: Arc<Budget>) -> Self {
        Self {
            spools: Found::new(),
            budget,
        }
    }

    /// Looks for what former processes left. What no record of the target stands in is deleted.
    pub fn look(&mut self, files: &SpoolFiles, target: &Bookkeeping) {
        match files.survey(None) {
            Ok(found) => {
                for (name, segments) in found {
                    if is_of_use(&segments, target) {
                        self.keep(name, segments);
                    } else {
                        info!("spool: {name} is of no use to any lane, and is deleted");
                        files.discard(&name, segments.iter().map(Survey::number));
                    }
                }
            }
            // It is told again when the directory is needed, if it ever is.
            Err(why) => warn!("spool: {why}"),
        }
    }

    /// A lane that had this spool begins again.
    pub fn add(&mut self, files: &SpoolFiles, name: &str) {
        match files.survey(Some(name)) {
            Ok(found) => {
                for (name, segments) in found {
                    self.keep(name, segments);
                }
            }
            Err(why) => warn!("spool: {why}"),
        }
    }

    fn keep(&mut self, name: String, segments: Vec<Survey>) {
        self.budget.count(bytes(&segments));
        self.spools.push((name, segments));
    }

    /// What a lane can take up that goes on from `resume`, and its name: of several what reaches farthest.
    pub fn take(&mut self, files: &SpoolFiles, resume: &Resume) -> Option<(String, Spooled)> {
        let spools = self.spools.iter().enumerate();
        let fitting = spools.filter_map(|(place, (_, segments))| {
            Some((place, Spooled::from(resume, segments.clone())?))
        });
        let (place, spooled) = fitting.max_by_key(|(_, spooled)| spooled.recovered.end().offset)?;
        let (name, segments) = self.spools.swap_remove(place);
        // The lane counts what it goes on with.
        self.budget.give_back(bytes(&segments));
        let goes_on = |segment: &u64| spooled.recovered.numbers().any(|number| number == *segment);
        let others = segments.iter().map(Survey::number);
        files.discard(&name, others.filter(|number| !goes_on(number)));
        Some((name, spooled))
    }

    /// Deletes a spool, unless it was taken up.
    pub fn discard(&mut self, files: &SpoolFiles, name: &str) {
        if let Some(place) = self.spools.iter().position(|(known, _)| known == name) {
            let (name, segments) = self.spools.swap_remove(place);
            self.budget.give_back(bytes(&segments));
            files.discard(&name, segments.iter().map(Survey::number));
        }
    }
}

fn bytes(segments: &[Survey]) -> u64 {
    segments.iter().map(Survey::bytes).sum()
}

/// Whether any record stands in what these segments hold.
fn is_of_use(segments: &[Survey], target: &Bookkeeping) -> bool {
    let records = target.records.iter().map(|found| &found.record);
    let mut known: Vec<ReplicationId> = Vec::new();
    for record in records.clone() {
        known.push(record.position.id);
        known.extend(record.predecessor.map(|before| before.id));
    }
    let mut going_on = records.filter(|record| record.state == State::Streaming);
    going_on.any(|record| {
        let offset = record.position.offset;
        let found = recover(segments.to_vec(), offset);
        let is_there = |id: &ReplicationId| {
            let position = Position { id: *id, offset };
            found.as_ref().is_some_and(|found| found.holds(position))
        };
        known.iter().any(is_there)
    })
}
