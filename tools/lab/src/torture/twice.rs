//! Two processes for one link: one of them ends by itself and says why, the other goes on as if nothing had been.

use super::rig::{LINK, Rig};
use crate::slotstream::Slotstream;
use crate::{Result, wait_until};
use anyhow::bail;
use std::time::Duration;

/// How far apart both are started, unless the first has been running for a while.
const APART_MS: std::ops::Range<u64> = 0..500;
const BETWEEN_MS: std::ops::Range<u64> = 200..2_000;
/// Within this one of two has understood.
const TAKEOVER_PATIENCE: Duration = Duration::from_secs(30);

pub fn strike(rig: &mut Rig) -> Result<()> {
    rig.run_for(BETWEEN_MS)?;
    if rig.random.bool() {
        rig.kill_and_restart()?;
        std::thread::sleep(rig.random_time(APART_MS));
    }
    let first_number = rig.incarnation();
    let mut first = rig.take_sync()?;
    let mut second = rig.launch_beside(&first)?;
    let second_number = rig.incarnation();
    rig.struck("second process");
    let waited = wait_until(TAKEOVER_PATIENCE, "one of two processes to end", || {
        Ok(first.ended()?.is_some() || second.ended()?.is_some())
    });
    if waited.is_err() {
        rig.fault(format!(
            "incarnations {first_number} and {second_number} both run for one link"
        ));
        rig.observe(&second);
        rig.watch(first);
        return Ok(());
    }
    // Longer than one needs to end because of the other.
    std::thread::sleep(rig.random_time(BETWEEN_MS));
    let (survivor, mut loser, number) = match (first.ended()?, second.ended()?) {
        (Some(_), None) => (second, first, first_number),
        (None, _) => (first, second, second_number),
        (Some(_), Some(_)) => bail!(
            "incarnations {first_number} and {second_number} both ended: {} / {}",
            last_line(&first.output()),
            last_line(&second.output())
        ),
    };
    rig.journal.note(&format!("incarnation {number} gave way"));
    check_end(rig, &mut loser, number)?;
    rig.watch(survivor);
    Ok(())
}

fn check_end(rig: &mut Rig, loser: &mut Slotstream, number: u64) -> Result<()> {
    let (status, output) = loser.wait_for_exit(TAKEOVER_PATIENCE)?;
    let last = last_line(&output);
    if !matches!(status.code(), Some(1..)) {
        rig.fault(format!(
            "incarnation {number} gave way with {status}: {last}"
        ));
    } else if !last.contains(LINK) {
        rig.fault(format!(
            "incarnation {number} does not name its link: {last}"
        ));
    }
    Ok(())
}

fn last_line(output: &str) -> &str {
    output.lines().next_back().unwrap_or_default()
}
