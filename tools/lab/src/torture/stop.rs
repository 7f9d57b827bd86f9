//! Asked to stop at random instants: it ends well and in time, and the next one begins where it ended.

use super::rig::{PATIENCE, Rig};
use crate::{Result, wait_until};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

const BETWEEN_MS: std::ops::Range<u64> = 100..3_000;
const AFTER_START_MS: std::ops::Range<u64> = 50..300;
/// What is in flight is given 10 s; the rest is for a busy machine.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
const SIGTERM: i32 = 15;

pub fn strike(rig: &mut Rig) -> Result<()> {
    rig.run_for(BETWEEN_MS)?;
    stop(rig)?;
    if rig.random.u8(0..4) == 0 {
        rig.launch()?;
        rig.run_for(AFTER_START_MS)?;
        stop(rig)?;
    }
    let before = rig.source_count("sync_partial_ok")?;
    rig.launch()?;
    let lanes = rig.source.masters().len();
    let started = rig.take_sync()?;
    let (number, sync) = (started.number, &started.process);
    wait_until(PATIENCE, "every lane to be attached", || {
        let status = sync.status()?;
        let attached = status["lanes"].as_array().into_iter().flatten();
        let attached = attached.filter(|lane| {
            let syncs = ["full_syncs", "partial_syncs"].map(|name| lane[name].as_u64());
            syncs.iter().any(|count| *count > Some(0))
        });
        Ok(attached.count() == lanes)
    })?;
    let status = sync.status()?;
    rig.watch(started);
    let resumed = rig.source_count("sync_partial_ok")? - before;
    if resumed != lanes as u64 {
        rig.fault(format!(
            "incarnation {number}: {resumed} partial resyncs of {lanes} lanes after a stop"
        ));
    }
    for lane in status["lanes"].as_array().into_iter().flatten() {
        let replayed = lane["errors"]["replayed"].as_u64().unwrap_or(0);
        if replayed > 0 {
            rig.fault(format!(
                "incarnation {number}: {replayed} commands replayed after a stop"
            ));
        }
    }
    Ok(())
}

fn stop(rig: &mut Rig) -> Result<()> {
    let mut stopped = rig.take_sync()?;
    rig.observe(&stopped);
    stopped.process.terminate()?;
    let number = stopped.number;
    let (status, output) = stopped.process.wait_for_exit(STOP_PATIENCE)?;
    // Before it can have written anything, it just ends: by the signal, or with the code that stands for it.
    let unbegun = status.signal() == Some(SIGTERM) || status.code() == Some(128 + SIGTERM);
    rig.struck(match unbegun {
        true => "stop before it began",
        false => "stop",
    });
    if !unbegun && status.code() != Some(0) {
        let last = output.lines().last().unwrap_or_default();
        rig.fault(format!(
            "incarnation {number} was stopped and ended with {status}: {last}"
        ));
    }
    Ok(())
}
