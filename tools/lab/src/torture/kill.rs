//! Killed at random instants, sometimes again while it recovers.

use super::rig::Rig;
use crate::Result;

const BETWEEN_MS: std::ops::Range<u64> = 200..3_000;
/// After its start: while it takes over, reads what the target knows, and attaches.
const IN_RECOVERY_MS: std::ops::Range<u64> = 50..300;

pub fn strike(rig: &mut Rig) -> Result<()> {
    rig.run_for(BETWEEN_MS)?;
    rig.kill_and_restart()?;
    if rig.random.u8(0..4) == 0 {
        for _ in 0..rig.random.u8(1..3) {
            rig.run_for(IN_RECOVERY_MS)?;
            rig.kill_and_restart()?;
        }
    }
    Ok(())
}
