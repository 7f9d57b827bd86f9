//! The way to the target breaks: in the middle of a command, with replies late or lost, with requests that arrive
//! after those of the next connection. In every second round slotstream is killed too, also in the midst of that.

use super::rig::Rig;
use crate::proxy::Proxy;
use crate::{Result, wait_until};
use std::time::Duration;

const BETWEEN_MS: std::ops::Range<u64> = 50..1_500;
/// How long replies and requests wait.
const HELD_MS: std::ops::Range<u64> = 0..2_000;
/// How long the target works on without telling, before the connection goes too.
const LOST_MS: std::ops::Range<u64> = 0..500;
/// Requests that pass before a cut. Where less is written, the cut is made without.
const CUT_BYTES: std::ops::Range<u32> = 1..60_000;
const CUT_PATIENCE: Duration = Duration::from_secs(2);

pub fn strike(rig: &mut Rig) -> Result<()> {
    rig.run_for(BETWEEN_MS)?;
    let chosen = choose(rig);
    let kill = rig.round.is_multiple_of(2) && rig.random.u8(0..3) == 0;
    let broken = break_one(rig, &chosen, kill);
    // Whatever happened: the next strike begins with a whole network.
    for proxy in &rig.proxies {
        proxy.hold_replies(false);
        proxy.release_requests();
        proxy.refuse(false);
    }
    broken
}

/// One proxy, or all of them.
fn choose(rig: &mut Rig) -> Vec<usize> {
    let count = rig.proxies.len();
    match rig.random.u8(0..3) {
        0 => (0..count).collect(),
        _ => vec![rig.random.usize(0..count)],
    }
}

fn break_one(rig: &mut Rig, chosen: &[usize], kill: bool) -> Result<()> {
    match rig.random.u8(0..7) {
        0 => rig.struck("cut"),
        1 => {
            for index in chosen {
                let bytes = rig.random.u32(CUT_BYTES);
                rig.proxies[*index].cut_after(bytes);
            }
            rig.struck("cut within a command");
            // Nothing may be written there: then it is cut below.
            let _ = wait_until(CUT_PATIENCE, "the cuts", || {
                let all = chosen.iter().all(|index| !rig.proxies[*index].is_to_cut());
                Ok(all)
            });
        }
        2 => {
            each(rig, chosen, |proxy| proxy.hold_replies(true));
            rig.struck("replies held");
            return end_of_a_wait(rig, kill, HELD_MS);
        }
        3 => {
            each(rig, chosen, |proxy| proxy.hold_replies(true));
            rig.struck("replies held, then cut");
            end_of_a_wait(rig, kill, HELD_MS)?;
        }
        4 => {
            each(rig, chosen, Proxy::lose_replies);
            rig.struck("replies lost");
            end_of_a_wait(rig, kill, LOST_MS)?;
        }
        5 => {
            each(rig, chosen, Proxy::hold_requests);
            rig.struck("requests late");
            end_of_a_wait(rig, false, LOST_MS)?;
            for index in chosen {
                rig.proxies[*index].orphan()?;
            }
            return end_of_a_wait(rig, kill, HELD_MS);
        }
        _ => {
            each(rig, chosen, |proxy| proxy.refuse(true));
            rig.struck("cut and refused");
            for index in chosen {
                rig.proxies[*index].cut()?;
            }
            // A process that is started while it cannot reach the target has every right to end.
            rig.run_for(HELD_MS)?;
            each(rig, chosen, |proxy| proxy.refuse(false));
        }
    }
    for index in chosen {
        rig.proxies[*index].cut()?;
    }
    if kill {
        rig.kill_and_restart()?;
    }
    Ok(())
}

fn each(rig: &Rig, chosen: &[usize], act: impl Fn(&Proxy)) {
    for index in chosen {
        act(&rig.proxies[*index]);
    }
}

/// Waits; kills slotstream at some instant of that if asked to.
fn end_of_a_wait(rig: &mut Rig, kill: bool, milliseconds: std::ops::Range<u64>) -> Result<()> {
    rig.run_for(milliseconds.clone())?;
    if kill {
        rig.kill_and_restart()?;
        rig.run_for(milliseconds)?;
    }
    Ok(())
}
