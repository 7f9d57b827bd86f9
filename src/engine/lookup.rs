//! Questions of lanes about commands that the table does not know, answered by a control thread.
//!
//! A lane asks, parks the command, and looks at its tick whether the answer has come; it never waits.
//! Invariant: every question gets exactly one answer, also when the source cannot be reached.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::fault::Fault;

/// What a lane wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupQuestion {
    /// Where the keys of every command of this name are: `COMMAND INFO verb`.
    Positions { verb: Vec<u8> },
    /// Which keys this very command has: `COMMAND GETKEYS arg ...`, the verb first.
    Keys { args: Vec<Vec<u8>> },
}

/// What the source said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupAnswer {
    /// `first` 0: no keys. `last` counts from the end when negative. `movable`: ask for the keys of
    /// each command instead. `write`: the command may change data.
    Positions {
        first: i64,
        last: i64,
        step: i64,
        movable: bool,
        write: bool,
    },
    Keys(Vec<Vec<u8>>),
    /// The source does not know the command, or cannot tell its keys; holds what it answered.
    Unknown(String),
    /// Nobody could be asked; ask again.
    Failed(Fault),
}

/// One question on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookupRequest {
    pub lane: u32,
    /// Chosen by the lane, returned with the answer.
    pub ticket: u64,
    pub question: LookupQuestion,
}

/// Where questions wait for the control thread and answers for their lane.
#[derive(Debug, Default)]
pub struct LookupDesk {
    state: Mutex<Desk>,
    asked: Condvar,
}

#[derive(Debug, Default)]
struct Desk {
    requests: VecDeque<LookupRequest>,
    answers: HashMap<u32, Vec<(u64, LookupAnswer)>>,
    closed: bool,
}

impl LookupDesk {
    /// Leaves a question.
    pub fn ask(&self, request: LookupRequest) {
        self.locked().requests.push_back(request);
        self.asked.notify_one();
    }

    /// The answers for `lane` that came since the last call, with their tickets.
    pub fn take_answers(&self, lane: u32) -> Vec<(u64, LookupAnswer)> {
        self.locked().answers.remove(&lane).unwrap_or_default()
    }

    /// The next question, after a wait of at most `limit`. `None` when none came or the desk closed.
    pub fn next_request(&self, limit: Duration) -> Option<LookupRequest> {
        let state = self.locked();
        let (mut state, _) = self
            .asked
            .wait_timeout_while(state, limit, |desk| {
                desk.requests.is_empty() && !desk.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        state.requests.pop_front()
    }

    /// Leaves the answer to `request`.
    pub fn answer(&self, request: &LookupRequest, answer: LookupAnswer) {
        let mut state = self.locked();
        let answers = state.answers.entry(request.lane).or_default();
        answers.push((request.ticket, answer));
    }

    /// Ends the wait of the control thread.
    pub fn close(&self) {
        self.locked().closed = true;
        self.asked.notify_all();
    }

    /// Whether [`LookupDesk::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.locked().closed
    }

    fn locked(&self) -> MutexGuard<'_, Desk> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_reaches_only_the_lane_that_asked() {
        let desk = LookupDesk::default();
        let question = LookupQuestion::Positions {
            verb: b"X".to_vec(),
        };
        let request = LookupRequest {
            lane: 3,
            ticket: 9,
            question,
        };
        desk.ask(request.clone());
        assert_eq!(desk.next_request(Duration::ZERO), Some(request.clone()));
        assert_eq!(desk.next_request(Duration::ZERO), None);
        desk.answer(&request, LookupAnswer::Keys(vec![b"k".to_vec()]));
        assert!(desk.take_answers(2).is_empty());
        assert_eq!(
            desk.take_answers(3),
            [(9, LookupAnswer::Keys(vec![b"k".to_vec()]))]
        );
        assert!(desk.take_answers(3).is_empty());
    }
}
