//! The clusters themselves change: masters fail over, slots move, and slotstream may be killed meanwhile.
//!
//! | strikes | file |
//! |---|---|
//! | failovers of the source, of the target | `failover` |
//! | slots that move in the source, in the target | `moving` |
//! | kills of slotstream | here |

use super::rig::Rig;
use super::shape::{Side, bring_back};
use super::{Options, Variant, failover, moving};
use crate::Result;
use crate::version::Family;
use moving::Way;

const BETWEEN_MS: std::ops::Range<u64> = 100..2_500;

/// What a variant breaks.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub source_failovers: bool,
    pub target_failovers: bool,
    pub source_moves: &'static [Way],
    pub target_moves: &'static [Way],
    pub kills: bool,
}

#[derive(Clone, Copy)]
enum Strike {
    Failover(Side),
    Move(Side),
    Kill,
}

impl Plan {
    /// `None` where the clusters stay as they are.
    pub fn of(options: &Options) -> Option<Plan> {
        let every_way: &[Way] = match options.family {
            Family::Valkey9 => &[Way::Classic, Way::Atomic],
            _ => &[Way::Classic],
        };
        let nothing = Plan {
            source_failovers: false,
            target_failovers: false,
            source_moves: &[],
            target_moves: &[],
            kills: options.kills,
        };
        let plan = match options.variant {
            Variant::Kill | Variant::Copy | Variant::Proxy | Variant::Twice | Variant::Stop => {
                return None;
            }
            Variant::SourceFailover => Plan {
                source_failovers: true,
                ..nothing
            },
            Variant::SourceClassic => Plan {
                source_moves: &[Way::Classic],
                ..nothing
            },
            Variant::SourceAtomic => Plan {
                source_moves: &[Way::Atomic],
                ..nothing
            },
            Variant::TargetFailover => Plan {
                target_failovers: true,
                ..nothing
            },
            Variant::TargetMoves => Plan {
                target_moves: &[Way::Classic],
                ..nothing
            },
            Variant::TargetClassic => Plan {
                target_failovers: true,
                target_moves: &[Way::Classic],
                ..nothing
            },
            Variant::TargetAtomic => Plan {
                target_failovers: true,
                target_moves: &[Way::Atomic],
                ..nothing
            },
            Variant::All => Plan {
                source_failovers: true,
                target_failovers: true,
                source_moves: every_way,
                target_moves: every_way,
                kills: true,
            },
        };
        Some(plan)
    }

    pub fn moves_slots(&self) -> bool {
        !self.source_moves.is_empty() || !self.target_moves.is_empty()
    }

    fn strikes(&self) -> Vec<Strike> {
        let mut strikes = Vec::new();
        let mut add = |wanted: bool, strike: Strike| strikes.extend(wanted.then_some(strike));
        add(self.source_failovers, Strike::Failover(Side::Source));
        add(self.target_failovers, Strike::Failover(Side::Target));
        add(!self.source_moves.is_empty(), Strike::Move(Side::Source));
        add(!self.target_moves.is_empty(), Strike::Move(Side::Target));
        add(self.kills, Strike::Kill);
        strikes
    }
}

pub fn strike(rig: &mut Rig, plan: &Plan) -> Result<()> {
    bring_back(rig, |_| false)?;
    // Now and then right behind the last one.
    let pause = match rig.random.u8(0..4) {
        0 => 0..50,
        _ => BETWEEN_MS,
    };
    rig.run_for(pause)?;
    let strikes = plan.strikes();
    match strikes[rig.random.usize(0..strikes.len())] {
        Strike::Failover(side) => failover::strike(rig, side)?,
        Strike::Move(side) => {
            let ways = match side {
                Side::Source => plan.source_moves,
                Side::Target => plan.target_moves,
            };
            let way = ways[rig.random.usize(0..ways.len())];
            moving::strike(rig, side, way)?;
        }
        Strike::Kill => rig.kill_and_restart()?,
    }
    rig.look_at_lanes();
    Ok(())
}
