//! The status page's content. Field names and meanings are stable; fields may be added.
//!
//! | field | meaning |
//! |---|---|
//! | `link` | name of this replication |
//! | `caught_up` | every lane streams, and the target has answered everything its source held at the last poll |
//! | `uptime_seconds` | since the process began |
//! | `frozen[]` | slots of the source that are on their way between masters, which nobody writes: `slots` as ranges, for how long (`seconds`), and `why` |
//! | `lanes[].source` | `host:port` of the source master |
//! | `lanes[].state` | `connecting`, `handshake`, `waiting_for_snapshot`, `copying`, `sweeping`, `streaming`, `recovering`, `reconnecting`, `stopping`, `stopped`, `failed` |
//! | `lanes[].resume` | how the lane came to go on where it did last: `step` (`first_copy`, `spool`, `partial_same`, `partial_promoted`, `partial_rewound`, `full_copy`) and `why`; null before |
//! | `lanes[].replid` | replication id that the offsets belong to |
//! | `lanes[].received_offset` | bytes of the source's stream received |
//! | `lanes[].acknowledged_offset` | of these, answered by the target |
//! | `lanes[].lag_bytes` | bytes of the stream not yet answered, as far as the source's last polled offset |
//! | `lanes[].lag_seconds` | age of the oldest command received and not yet answered |
//! | `lanes[].spool_bytes` | bytes of the stream received and not yet routed that wait in the spool, in memory or on disk |
//! | `lanes[].spool_state` | `empty`, `memory`, `disk`, `full` or `failed` |
//! | `lanes[].snapshot.bytes_done` | bytes of the snapshot read |
//! | `lanes[].snapshot.bytes_total` | its size; 0 when the source does not tell (diskless) |
//! | `lanes[].snapshot.keys` | its keys acknowledged by the target |
//! | `lanes[].stale.checked` | keys of the target looked at after the last copy, since the source might not have them |
//! | `lanes[].stale.removed` | of these, removed |
//! | `lanes[].leases` | keys and fields of hashes whose deadline is held back on the target until it is certain, and one more while there may be others |
//! | `lanes[].mends` | keys that differed and were given the source's value |
//! | `lanes[].slots.to_copy` | slots that came from another source master and are not copied yet |
//! | `lanes[].slots.copied`, `.keys`, `.bytes` | slots that were copied so, their keys, and the size of the values |
//! | `lanes[].commands` | commands of the stream acknowledged by the target |
//! | `lanes[].echoes` | commands of the stream dropped because they had been replicated into the source (`--mark`) |
//! | `lanes[].bytes` | bytes sent to the target, snapshot and stream |
//! | `lanes[].errors` | events by kind, only those that occurred |
//! | `lanes[].full_syncs`, `lanes[].partial_syncs` | how often the source sent a snapshot, or resumed |
//! | `lanes[].message` | the last fault, one line; empty when there was none |

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use serde::Serialize;

use crate::engine::shared::Shared;
use crate::engine::status::LaneStatus;

/// The whole page.
#[derive(Debug, Serialize)]
pub struct Report {
    pub link: String,
    pub caught_up: bool,
    pub uptime_seconds: f64,
    pub frozen: Vec<FrozenReport>,
    pub lanes: Vec<LaneReport>,
}

/// Slots that nobody writes at present.
#[derive(Debug, Serialize)]
pub struct FrozenReport {
    pub slots: String,
    pub seconds: f64,
    pub why: &'static str,
}

/// One lane.
#[derive(Debug, Serialize)]
pub struct LaneReport {
    pub source: String,
    pub state: &'static str,
    pub resume: Option<ResumeReport>,
    pub replid: String,
    pub received_offset: u64,
    pub acknowledged_offset: u64,
    pub lag_bytes: u64,
    pub lag_seconds: f64,
    pub spool_bytes: u64,
    pub spool_state: &'static str,
    pub snapshot: SnapshotReport,
    pub stale: StaleReport,
    pub leases: u64,
    pub mends: u64,
    pub slots: SlotsReport,
    pub commands: u64,
    pub echoes: u64,
    pub bytes: u64,
    pub errors: BTreeMap<&'static str, u64>,
    pub full_syncs: u64,
    pub partial_syncs: u64,
    pub message: String,
}

/// How a lane came to go on where it did.
#[derive(Debug, Serialize)]
pub struct ResumeReport {
    pub step: &'static str,
    pub why: String,
}

/// A lane's last snapshot.
#[derive(Debug, Serialize)]
pub struct SnapshotReport {
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub keys: u64,
}

/// The search for keys that the source does not have, after a lane's last snapshot.
#[derive(Debug, Serialize)]
pub struct StaleReport {
    pub checked: u64,
    pub removed: u64,
}

/// Slots that came to a lane from another source master.
#[derive(Debug, Serialize)]
pub struct SlotsReport {
    pub to_copy: u64,
    pub copied: u64,
    pub keys: u64,
    pub bytes: u64,
}

impl Report {
    /// The state at `now`.
    pub fn of(shared: &Shared, now: Instant) -> Self {
        let now_ms = shared.millis_at(now);
        let lanes = shared.lanes();
        Self {
            link: shared.link.clone(),
            caught_up: shared.caught_up(),
            uptime_seconds: seconds(now_ms),
            frozen: shared
                .frozen()
                .into_iter()
                .map(|frozen| FrozenReport {
                    slots: frozen.slots.to_string(),
                    seconds: seconds(now_ms.saturating_sub(frozen.since_ms)),
                    why: frozen.why,
                })
                .collect(),
            lanes: lanes
                .iter()
                .map(|lane| LaneReport::of(lane, now_ms))
                .collect(),
        }
    }
}

impl LaneReport {
    fn of(lane: &LaneStatus, now_ms: u64) -> Self {
        // Acknowledged before received, so that a page never shows more answered than received.
        let acknowledged_offset = lane.acknowledged_offset.load(Relaxed);
        Self {
            source: lane.source(),
            state: lane.state().name(),
            resume: lane.resume().map(|(step, why)| ResumeReport {
                step: step.name(),
                why,
            }),
            replid: lane.replid(),
            received_offset: lane.received_offset.load(Relaxed),
            acknowledged_offset,
            lag_bytes: lane.lag_bytes(),
            lag_seconds: seconds(lane.lag_ms(now_ms)),
            spool_bytes: lane.spool_bytes.load(Relaxed),
            spool_state: lane.spool_state().name(),
            snapshot: SnapshotReport {
                bytes_done: lane.snapshot_bytes_done.load(Relaxed),
                bytes_total: lane.snapshot_bytes_total.load(Relaxed),
                keys: lane.snapshot_keys.load(Relaxed),
            },
            stale: StaleReport {
                checked: lane.stale_checked.load(Relaxed),
                removed: lane.stale_removed.load(Relaxed),
            },
            leases: lane.leases.load(Relaxed),
            mends: lane.mends.load(Relaxed),
            slots: SlotsReport {
                to_copy: lane.slots_to_copy.load(Relaxed),
                copied: lane.slots_copied.load(Relaxed),
                keys: lane.slot_keys_copied.load(Relaxed),
                bytes: lane.slot_bytes_copied.load(Relaxed),
            },
            commands: lane.commands.load(Relaxed),
            echoes: lane.echoes.load(Relaxed),
            bytes: lane.bytes.load(Relaxed),
            errors: lane.errors(),
            full_syncs: lane.full_syncs.load(Relaxed),
            partial_syncs: lane.partial_syncs.load(Relaxed),
            message: lane.message(),
        }
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::moves::Frozen;
    use crate::engine::status::{ErrorCount, ResumeStep};
    use crate::topology::Topology;
    use std::time::Duration;

    #[test]
    fn the_page_has_exactly_the_documented_fields() {
        let start = Instant::now();
        let single = Topology::single;
        let shared = Shared::new("l".into(), start, single("a", 1), single("b", 2));
        let lane = shared.add_lane("single", "a:1");
        lane.count(ErrorCount::Moved);
        lane.set_oldest_unanswered(Some(500));
        lane.set_resume(ResumeStep::FirstCopy, "nothing");
        shared.set_frozen(vec![Frozen {
            slots: "5-6".parse().expect("slots"),
            since_ms: 1500,
            why: "so",
        }]);
        let report = Report::of(&shared, start + Duration::from_millis(2500));
        let json = serde_json::to_value(&report).expect("plain data");
        let expected = serde_json::json!({
            "link": "l", "caught_up": false, "uptime_seconds": 2.5,
            "frozen": [{"slots": "5-6", "seconds": 1.0, "why": "so"}],
            "lanes": [{
                "source": "a:1", "state": "connecting",
                "resume": {"step": "first_copy", "why": "nothing"}, "replid": "", "received_offset": 0,
                "acknowledged_offset": 0, "lag_bytes": 0, "lag_seconds": 2.0,
                "spool_bytes": 0, "spool_state": "empty",
                "snapshot": {"bytes_done": 0, "bytes_total": 0, "keys": 0},
                "stale": {"checked": 0, "removed": 0}, "leases": 0, "mends": 0,
                "slots": {"to_copy": 0, "copied": 0, "keys": 0, "bytes": 0},
                "commands": 0, "echoes": 0, "bytes": 0, "errors": {"moved": 1},
                "full_syncs": 0, "partial_syncs": 0, "message": "",
            }],
        });
        assert_eq!(json, expected);
    }
}
