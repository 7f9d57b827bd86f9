//! Where questions of lanes wait for a control thread, and answers for their lane.
//!
//! A lane asks, goes on with what does not hang on the answer, and looks at its tick whether it has come; it never waits.
//! Invariant: every question gets exactly one answer, also when nobody could be asked.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One question on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<Q> {
    pub lane: u32,
    /// Returned with the answer; no two questions have the same.
    pub ticket: u64,
    pub question: Q,
}

/// The desk for one kind of question.
#[derive(Debug)]
pub struct Desk<Q, A> {
    state: Mutex<State<Q, A>>,
    asked: Condvar,
}

#[derive(Debug)]
struct State<Q, A> {
    requests: VecDeque<Request<Q>>,
    answers: HashMap<u32, Vec<(u64, A)>>,
    tickets: u64,
    closed: bool,
}

impl<Q, A> Default for Desk<Q, A> {
    fn default() -> Self {
        let state = State {
            requests: VecDeque::new(),
            answers: HashMap::new(),
            tickets: 0,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            asked: Condvar::new(),
        }
    }
}

impl<Q, A> Desk<Q, A> {
    /// Leaves a question; gives its ticket.
    pub fn ask(&self, lane: u32, question: Q) -> u64 {
        let mut state = self.locked();
        state.tickets += 1;
        let ticket = state.tickets;
        state.requests.push_back(Request {
            lane,
            ticket,
            question,
        });
        self.asked.notify_one();
        ticket
    }

    /// The answers for `lane` that came since the last call, with their tickets.
    pub fn take_answers(&self, lane: u32) -> Vec<(u64, A)> {
        self.locked().answers.remove(&lane).unwrap_or_default()
    }

    /// The next question, after a wait of at most `limit`. `None` when none came or the desk closed.
    pub fn next_request(&self, limit: Duration) -> Option<Request<Q>> {
        let state = self.locked();
        let (mut state, _) = self
            .asked
            .wait_timeout_while(state, limit, |desk| {
                desk.requests.is_empty() && !desk.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        state.requests.pop_front()
    }

    /// Leaves the answer to a question of `lane`.
    pub fn answer(&self, lane: u32, ticket: u64, answer: A) {
        let mut state = self.locked();
        state
            .answers
            .entry(lane)
            .or_default()
            .push((ticket, answer));
    }

    /// Ends the wait of the control thread.
    pub fn close(&self) {
        self.locked().closed = true;
        self.asked.notify_all();
    }

    /// Whether [`Desk::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.locked().closed
    }

    fn locked(&self) -> MutexGuard<'_, State<Q, A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_reaches_only_the_lane_that_asked() {
        let desk = Desk::default();
        let ticket = desk.ask(3, "where?");
        let request = Request {
            lane: 3,
            ticket,
            question: "where?",
        };
        assert_ne!(desk.ask(2, "when?"), ticket);
        assert_eq!(desk.next_request(Duration::ZERO), Some(request));
        assert!(desk.next_request(Duration::ZERO).is_some());
        assert_eq!(desk.next_request(Duration::ZERO), None);
        desk.answer(3, ticket, "there");
        assert!(desk.take_answers(2).is_empty());
        assert_eq!(desk.take_answers(3), [(ticket, "there")]);
        assert!(desk.take_answers(3).is_empty());
    }
}
