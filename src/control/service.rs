//! A thread that answers the lanes' questions at one desk.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::engine::desk::{Desk, Request};
use crate::engine::shared::Shared;
use crate::fault::{Fault, FaultKind};
use crate::limits::WATCH_INTERVAL_MS;

/// The running thread. Dropping it closes the desk and ends it.
#[derive(Debug)]
pub struct Service<Q: 'static, A: 'static> {
    shared: Arc<Shared>,
    desk: fn(&Shared) -> &Desk<Q, A>,
    thread: Option<JoinHandle<()>>,
}

impl<Q: Send, A: Send> Service<Q, A> {
    /// `answer` may block, for as long as the end of the process may be held up.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        name: &str,
        shared: &Arc<Shared>,
        desk: fn(&Shared) -> &Desk<Q, A>,
        mut answer: impl FnMut(&Request<Q>) -> A + Send + 'static,
    ) -> Result<Self, Fault> {
        let asked = Arc::clone(shared);
        let spawned = Builder::new().name(name.into()).spawn(move || {
            let desk = desk(&asked);
            let limit = Duration::from_millis(WATCH_INTERVAL_MS);
            while !desk.is_closed() {
                if let Some(request) = desk.next_request(limit) {
                    let answer = answer(&request);
                    desk.answer(request.lane, request.ticket, answer);
                }
            }
        });
        let failed = |error| {
            let text = format!("cannot start a thread: {error}");
            Fault::new(FaultKind::Runtime, text)
        };
        Ok(Self {
            shared: Arc::clone(shared),
            desk,
            thread: Some(spawned.map_err(failed)?),
        })
    }
}

impl<Q, A> Drop for Service<Q, A> {
    fn drop(&mut self) {
        (self.desk)(&self.shared).close();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by its own thread.
            let _ = thread.join();
        }
    }
}
