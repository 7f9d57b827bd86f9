//! Parse arguments, run, exit code.

use std::process::ExitCode;
use std::sync::Arc;

use slotstream::engine::lanes::Lanes;
use slotstream::engine::options::SyncPlan;
use slotstream::engine::shared::Shared;
use slotstream::fault::{Fault, FaultKind};

fn main() -> ExitCode {
    slotstream::cli::run(start_lanes)
}

/// Starts the runtime's lanes.
fn start_lanes(_plan: SyncPlan, _shared: Arc<Shared>) -> Result<Arc<dyn Lanes>, Fault> {
    let text = "this build holds no runtime; nothing was written";
    Err(Fault::new(FaultKind::Runtime, text))
}
