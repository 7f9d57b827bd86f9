//! A replica takes its master's place: asked to, forced to, or because the master is dead or stands still.
//!
//! What the master had answered and its replica does not have is lost, for clients as well; slotstream may have had it.

use super::rig::{PATIENCE, Rig};
use super::shape::{Outage, Side, ask, bring_back, is_master, pair_in_step};
use crate::server::Server;
use crate::{Result, wait_until};
use anyhow::Context;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Shards of which each has one vote when a replica asks for its master's place.
const VOTING_SHARDS: usize = 3;
/// A failover that was asked for is given up by the servers after 5 s.
const ASK_AGAIN: Duration = Duration::from_secs(6);
/// How long a dead or frozen master stays that after its replica took over.
const OUT_MS: Range<u64> = 0..8_000;
/// When an operator helps, so long after the master went.
const HELP_MS: Range<u64> = 0..1_500;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Asked,
    Forced,
    TakenOver,
    Killed,
    Stopped,
}

const WAYS: [Way; 5] = [
    Way::Asked,
    Way::Forced,
    Way::TakenOver,
    Way::Killed,
    Way::Stopped,
];

impl Way {
    fn strike(self, side: Side) -> &'static str {
        match (side, self) {
            (Side::Source, Way::Asked) => "source failover",
            (Side::Source, Way::Forced) => "source failover forced",
            (Side::Source, Way::TakenOver) => "source takeover",
            (Side::Source, Way::Killed) => "source master killed",
            (Side::Source, Way::Stopped) => "source master stopped",
            (Side::Target, Way::Asked) => "target failover",
            (Side::Target, Way::Forced) => "target failover forced",
            (Side::Target, Way::TakenOver) => "target takeover",
            (Side::Target, Way::Killed) => "target master killed",
            (Side::Target, Way::Stopped) => "target master stopped",
        }
    }
}

pub fn strike(rig: &mut Rig, side: Side) -> Result<()> {
    let shards = rig.shards_with_slots(side);
    let shard = rig.random.usize(0..shards);
    let way = WAYS[rig.random.usize(0..WAYS.len())];
    let (out, help) = (rig.random_time(OUT_MS), rig.random_time(HELP_MS));
    // Two masters are no majority without the one that is gone: there somebody has to help.
    let helped = rig.random.u8(0..3) == 0 || shards < VOTING_SHARDS;

    let masters = rig.cluster(side).masters().len();
    bring_back(rig, |outage| {
        outage.side == side && outage.node % masters == shard
    })?;
    let (master, replica) = pair_in_step(rig, side, shard)?;
    match way {
        Way::Killed => rig.cluster_mut(side).nodes_mut()[master].kill(),
        Way::Stopped => rig.cluster(side).nodes()[master].freeze()?,
        Way::Asked | Way::Forced | Way::TakenOver => {}
    }
    rig.struck(way.strike(side));
    let gone = matches!(way, Way::Killed | Way::Stopped);
    let words: Option<&[&str]> = match way {
        Way::Asked => Some(&["CLUSTER", "FAILOVER"]),
        Way::Forced => Some(&["CLUSTER", "FAILOVER", "FORCE"]),
        Way::Killed | Way::Stopped if !helped => None,
        _ => Some(&["CLUSTER", "FAILOVER", "TAKEOVER"]),
    };
    if gone && helped {
        std::thread::sleep(help);
    }
    let heir = &rig.cluster(side).nodes()[replica];
    let promoted = promote(heir, words);
    let told = format!("{side:?} node {} took over", heir.address());
    if gone {
        rig.outages.push(Outage {
            side,
            node: master,
            frozen: way == Way::Stopped,
            until: Instant::now() + out,
        });
    }
    promoted?;
    rig.journal.note(&told);
    Ok(())
}

/// Waits until a replica is master, which it is told to become, or becomes by itself.
fn promote(heir: &Server, words: Option<&[&str]>) -> Result<()> {
    let mut asked: Option<Instant> = None;
    let mut last_answer = None;
    wait_until(PATIENCE, "a replica to take over", || {
        if let Some(words) = words
            && asked.is_none_or(|at| at.elapsed() > ASK_AGAIN)
        {
            // It may say that its master is not as it should be, and be right a moment later.
            last_answer = ask(heir)?.call(words).err();
            asked = Some(Instant::now());
        }
        is_master(heir)
    })
    .with_context(|| {
        let answer = last_answer.map_or_else(String::new, |error| format!("{error:#}"));
        format!("{}: {answer}", heir.address())
    })
}
