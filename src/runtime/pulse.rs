//! Ticks for the tasks of every executor, and a nudge for an executor that does not hear them.
//!
//! Lanes look at what does not wake them (orders, topologies, retries, acknowledgements) at a tick. The supervisor's thread
//! gives it, through the tasks' wakers: a timer of glommio's own would be armed and cancelled in the ring around every
//! sleep, two system calls and a write to the clock's register on the path of every command at low rates.
//!
//! glommio 0.9 can oversleep: seen once in about 200 starts on kernel 6.18, a thread waited in `io_uring_enter` for ten
//! seconds although timers of its latency ring had long been due, and went on at once when a debugger interrupted the
//! system call. A lane that misses its wake-up would be a lane that stands still, so ticks heard are counted, and the
//! supervisor interrupts the sleep of an executor that has heard none for a while, with a signal that does nothing else.
//! glommio takes the interrupted call for an ordinary wake-up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Waker};
use std::time::Instant;

use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::fault::{Fault, FaultKind};
use crate::limits;

/// Not used by anything else here, and ignored by default.
const NUDGE: Signal = Signal::SIGURG;

/// One executor's pulse. Its thread holds a [`Guard`] as long as it runs.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// Ticks heard.
    beats: AtomicU64,
    ticks: Mutex<Vec<Arc<Tick>>>,
    thread: OnceLock<Pthread>,
    ended: AtomicBool,
    broken: AtomicBool,
}

/// What the supervisor and one task share.
#[derive(Debug)]
struct Tick {
    due: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// A task's end of its tick.
#[derive(Debug)]
pub(super) struct Ticker {
    pulse: Arc<Pulse>,
    tick: Arc<Tick>,
    /// The waker that the supervisor has.
    registered: Option<Waker>,
}

impl Ticker {
    /// Whether a tick is due; if not, the next one wakes the task.
    pub fn is_due(&mut self, cx: &Context<'_>) -> bool {
        let known = self
            .registered
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()));
        if !known {
            self.register(Some(cx.waker().clone()));
        }
        // After registering: a tick in between is seen here, a later one wakes.
        let due = self.tick.due.swap(false, Ordering::Acquire);
        if due {
            self.pulse.beats.fetch_add(1, Ordering::Relaxed);
        }
        due
    }

    fn register(&mut self, waker: Option<Waker>) {
        let mut shared = self
            .tick
            .waker
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        shared.clone_from(&waker);
        self.registered = waker;
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        // A waker of glommio must not outlive its executor.
        self.register(None);
        let tick = &self.tick;
        self.pulse
            .locked_ticks()
            .retain(|other| !Arc::ptr_eq(other, tick));
    }
}

/// Tells, when dropped, that the executor has ended, and whether by a panic.
pub(super) struct Guard(Arc<Pulse>);

impl Pulse {
    /// To be called on the executor's own thread.
    pub fn begin(self: &Arc<Self>) -> Guard {
        self.thread.get_or_init(pthread_self);
        Guard(Arc::clone(self))
    }

    /// A tick for one more task of this executor; the first one is due at once.
    pub fn ticker(self: &Arc<Self>) -> Ticker {
        let tick = Arc::new(Tick {
            due: AtomicBool::new(true),
            waker: Mutex::new(None),
        });
        self.locked_ticks().push(Arc::clone(&tick));
        Ticker {
            pulse: Arc::clone(self),
            tick,
            registered: None,
        }
    }

    /// Gives a tick to every task.
    pub fn tick(&self) {
        for tick in self.locked_ticks().iter() {
            tick.due.store(true, Ordering::Release);
            let waker = tick.waker.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(waker) = &*waker {
                waker.wake_by_ref();
            }
        }
    }

    fn locked_ticks(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Tick>>> {
        self.ticks.lock().unwrap_or_else(PoisonError::into_inner)
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
