//! Two processes for one link: one of them ends by itself and says why, the other goes on as if nothing had been.

use super::rig::{Incarnation, LINK, Rig};
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
    let mut first = rig.take_sync()?;
    let mut second = rig.launch_beside(&first)?;
    let numbers = format!("incarnations {} and {}", first.number, second.number);
    rig.struck("second process");
    let waited = wait_until(TAKEOVER_PATIENCE, "one of two processes to end", || {
        Ok(first.process.ended()?.is_some() || second.process.ended()?.is_some())
    });
    if waited.is_err() {
        rig.fault(format!("{numbers} both run for one link"));
        rig.observe(&second);
        rig.watch(first);
        return Ok(());
    }
    // Longer than one needs to end because of the other.
    std::thread::sleep(rig.random_time(BETWEEN_MS));
    let (survivor, loser) = match (first.process.ended()?, second.process.ended()?) {
        (Some(_), None) => (second, first),
        (None, _) => (first, second),
        (Some(_), Some(_)) => bail!(
            "{numbers} both ended: {} / {}",
            last_line(&first.process.output()),
            last_line(&second.process.output())
        ),
    };
    check_end(rig, loser)?;
    rig.observe(&survivor);
    rig.watch(survivor);
    Ok(())
}

fn check_end(rig: &mut Rig, mut loser: Incarnation) -> Result<()> {
    let number = loser.number;
    let (status, output) = loser.process.wait_for_exit(TAKEOVER_PATIENCE)?;
    let last = last_line(&output);
    rig.journal
        .note(&format!("incarnation {number} gave way: {last}"));
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
