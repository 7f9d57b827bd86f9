//! SIGINT and SIGTERM: the first asks for a clean stop, the second ends at once.
//!
//! Both are blocked before any other thread starts, so that every thread inherits the mask and no system call
//! of an executor is interrupted; one thread waits for them.

use std::sync::{Arc, OnceLock};
use std::thread::Builder;

use nix::sys::signal::{SigSet, Signal};

use crate::engine::shared::Shared;
use crate::fault::{Fault, FaultKind};

/// What a first signal stops; nothing until the lanes are about to start, and then the process just ends.
pub type StopSwitch = Arc<OnceLock<Arc<Shared>>>;

/// Blocks both signals for this thread and all later ones, and starts the thread that waits for them.
/// To be called before any thread is started.
pub fn install() -> Result<StopSwitch, Fault> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals
        .thread_block()
        .map_err(|error| runtime_fault("cannot block signals", error))?;
    let switch = StopSwitch::default();
    let seen = Arc::clone(&switch);
    Builder::new()
        .name("signals".into())
        .spawn(move || wait(signals, &seen))
        .map_err(|error| runtime_fault("cannot start a thread", error))?;
    Ok(switch)
}

fn wait(signals: SigSet, switch: &OnceLock<Arc<Shared>>) {
    while let Ok(signal) = signals.wait() {
        match switch.get() {
            Some(shared) if !shared.stop_requested() => {
                tracing::info!("{signal}: finishing what is in flight; once more ends at once");
                shared.request_stop();
            }
            _ => std::process::exit(128 + signal as i32),
        }
    }
}

fn runtime_fault(what: &str, error: impl std::fmt::Display) -> Fault {
    Fault::new(FaultKind::Runtime, format!("{what}: {error}"))
}
