//! The last events of a run, kept only while a failed seed is run again.

use std::cell::RefCell;
use std::collections::VecDeque;

/// How many events are shown unless `SIM_EVENTS` says otherwise.
const SHOWN: u64 = 150;

struct Events {
    now_ms: u64,
    most: usize,
    kept: VecDeque<String>,
}

thread_local! {
    static EVENTS: RefCell<Option<Events>> = const { RefCell::new(None) };
}

pub fn start() {
    let most = crate::number("SIM_EVENTS").unwrap_or(SHOWN) as usize;
    EVENTS.set(Some(Events {
        now_ms: 0,
        most,
        kept: VecDeque::new(),
    }));
}

/// Ends the trace and gives its events.
pub fn take() -> Vec<String> {
    EVENTS
        .take()
        .map_or_else(Vec::new, |events| events.kept.into())
}

pub fn is_on() -> bool {
    EVENTS.with_borrow(Option::is_some)
}

/// The time of the events that follow.
pub fn at(now_ms: u64) {
    EVENTS.with_borrow_mut(|events| {
        if let Some(events) = events {
            events.now_ms = now_ms;
        }
    });
}

pub fn note(event: impl FnOnce() -> String) {
    EVENTS.with_borrow_mut(|events| {
        if let Some(events) = events {
            if events.kept.len() == events.most {
                events.kept.pop_front();
            }
            events
                .kept
                .push_back(format!("{:>7} ms  {}", events.now_ms, event()));
        }
    });
}
