//! A beat for every executor, and a nudge for one that has stopped beating.
//!
//! glommio 0.9 can sleep past its own timers: seen once in about 200 starts on kernel 6.18, a thread waited in
//! `io_uring_enter` for ten seconds although timers of its latency ring had long been due, and went on at once when a
//! debugger interrupted the system call. A lane that misses its wake-up would be a lane that stands still, so each executor
//! counts its ticks, and the supervisor interrupts the sleep of one that has not ticked for a while, with a signal that
//! does nothing else. glommio takes the interrupted call for an ordinary wake-up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::fault::{Fault, FaultKind};
use crate::limits;

/// Not used by anything else here, and ignored by default.
const NUDGE: Signal = Signal::SIGURG;

/// One executor's beat. Its thread holds a [`Guard`] as long as it runs.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    beats: AtomicU64,
    thread: OnceLock<Pthread>,
    ended: AtomicBool,
    broken: AtomicBool,
}

/// Tells, when dropped, that the executor has ended, and whether by a panic.
pub(super) struct Guard(Arc<Pulse>);

impl Pulse {
    /// To be called on the executor's own thread.
    pub fn begin(self: &Arc<Self>) -> Guard {
        self.thread.get_or_init(pthread_self);
        Guard(Arc::clone(self))
    }

    /// The executor's timers work.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0
            .broken
            .store(std::thread::panicking(), Ordering::Release);
        self.0.ended.store(true, Ordering::Release);
    }
}

/// Watches one executor from another thread.
#[derive(Debug)]
pub(super) struct Watch {
    pulse: Arc<Pulse>,
    seen: u64,
    since: Instant,
}

impl Watch {
    pub fn new(pulse: Arc<Pulse>) -> Self {
        Self {
            pulse,
            seen: 0,
            since: Instant::now(),
        }
    }

    /// Interrupts the executor's sleep if it has not beaten for too long; whether it did.
    pub fn look(&mut self) -> bool {
        let beats = self.pulse.beats.load(Ordering::Relaxed);
        if beats != self.seen || self.pulse.has_ended() {
            self.seen = beats;
            self.since = Instant::now();
            return false;
        }
        let Some(&thread) = self.pulse.thread.get() else {
            return false;
        };
        if self.since.elapsed() < limits::MISSED_BEAT {
            return false;
        }
        self.since = Instant::now();
        // The thread is not joined before the process ends, so its handle stays valid; one that has just ended by itself
        // is an error that needs no answer.
        pthread_kill(thread, NUDGE).is_ok()
    }
}

/// Makes the nudge interrupt a system call and do nothing else.
///
/// # Errors
/// When the kernel refuses the handler.
pub(super) fn install() -> Result<(), Fault> {
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler touches nothing, so it may run at any point of any thread; nobody else handles this signal.
    unsafe { sigaction(NUDGE, &action) }
        .map(|_| ())
        .map_err(|error| {
            Fault::new(
                FaultKind::Runtime,
                format!("cannot handle {NUDGE}: {error}"),
            )
        })
}
