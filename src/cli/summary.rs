//! What one run did, for a person to read.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use indicatif::{HumanBytes, HumanCount};

use crate::engine::shared::Shared;
use crate::engine::status::{LaneState, LaneStatus};

/// Several lines, the last without a line break.
pub fn text(shared: &Shared, now: Instant) -> String {
    let lanes = shared.lanes();
    let sum = |number: fn(&LaneStatus) -> &AtomicU64| -> u64 {
        lanes.iter().map(|lane| number(lane).load(Relaxed)).sum()
    };
    let now_ms = shared.millis_at(now);
    let lag_bytes: u64 = lanes.iter().map(|lane| lane.lag_bytes()).sum();
    let lag_ms = lanes.iter().map(|lane| lane.lag_ms(now_ms)).max();
    let mut text = format!(
        "slotstream {}: {} lanes, {:.1} s\n",
        shared.link,
        lanes.len(),
        now_ms as f64 / 1000.0
    );
    let mut line = |name: &str, value: String| _ = writeln!(text, "  {name:<10} {value}");
    line(
        "keys",
        format!("{} copied", HumanCount(sum(|lane| &lane.snapshot_keys))),
    );
    line(
        "commands",
        format!("{} replayed", HumanCount(sum(|lane| &lane.commands))),
    );
    let echoes = sum(|lane| &lane.echoes);
    if echoes > 0 {
        line("echoes", format!("{} dropped", HumanCount(echoes)));
    }
    line(
        "bytes",
        format!("{} written", HumanBytes(sum(|lane| &lane.bytes))),
    );
    line(
        "syncs",
        format!(
            "{} full, {} partial",
            sum(|lane| &lane.full_syncs),
            sum(|lane| &lane.partial_syncs)
        ),
    );
    line(
        "lag",
        format!(
            "{}, {:.3} s",
            HumanBytes(lag_bytes),
            lag_ms.unwrap_or(0) as f64 / 1000.0
        ),
    );
    line("errors", errors(&lanes));
    for lane in lanes
        .iter()
        .filter(|lane| lane.state() == LaneState::Failed)
    {
        line("failed", format!("{}: {}", lane.source(), lane.message()));
    }
    text.truncate(text.trim_end().len());
    text
}

/// `none`, or every kind that occurred with its count.
fn errors<L: std::ops::Deref<Target = LaneStatus>>(lanes: &[L]) -> String {
    let mut total: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, count) in lanes.iter().flat_map(|lane| lane.errors()) {
        *total.entry(name).or_default() += count;
    }
    if total.is_empty() {
        return "none".into();
    }
    let parts: Vec<String> = total
        .iter()
        .map(|(name, count)| format!("{} {name}", HumanCount(*count)))
        .collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::status::ErrorCount;
    use crate::fault::{Fault, FaultKind};
    use crate::topology::Topology;

    #[test]
    fn numbers_of_all_lanes_are_added_and_failures_named() {
        let start = Instant::now();
        let single = Topology::single;
        let shared = Shared::new("l".into(), start, single("a", 1), single("b", 2));
        for (keys, moved) in [(1000, 1), (234, 2)] {
            let lane = shared.add_lane("n", "a:1");
            lane.snapshot_keys.store(keys, Relaxed);
            lane.count_many(ErrorCount::Moved, moved);
        }
        shared.lanes()[1].fail(Fault::new(FaultKind::CrossSlot, "because"));
        let text = text(&shared, start);
        assert!(text.contains("1,234 copied"), "{text}");
        assert!(text.contains("3 moved"), "{text}");
        assert!(text.ends_with("failed     a:1: because"), "{text}");
    }
}
