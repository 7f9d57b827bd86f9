//! Commands that must not be applied twice, and share a transaction with others of their slot.

use super::super::options::Grouping;
use super::*;
use crate::checkpoint::{Watermark, watermark_key};
use crate::position::Offset;
use crate::target::{Form, Guard, Unit};

/// The watermark that is set at `end`.
pub(super) fn mark_at(end: u64) -> Watermark {
    Watermark {
        generation: GENERATION,
        offset: Offset(end),
    }
}

/// The transaction of commands that must not be applied twice, the last of which ends at `end`.
pub(super) fn group(lines: &[&str], slot: Slot, end: u64) -> Vec<u8> {
    let link = "default".parse().unwrap();
    let key = String::from_utf8(watermark_key(&link, slot)).unwrap();
    let mark = format!("SET {key} {}", mark_at(end));
    [
        command("MULTI"),
        commands(lines),
        command(&mark),
        command("EXEC"),
    ]
    .concat()
}

/// The replies to a group of so many commands.
pub(super) fn executed(count: usize) -> Vec<u8> {
    let queued = b"+QUEUED\r\n".repeat(count + 1);
    let results = b":1\r\n".repeat(count);
    let head = format!("*{}\r\n", count + 1).into_bytes();
    [
        b"+OK\r\n".to_vec(),
        queued,
        head,
        results,
        b"+OK\r\n".to_vec(),
    ]
    .concat()
}

/// Any rate is high, three commands are enough, and 100 ms.
fn held() -> Rig {
    let config = LaneConfig {
        grouping: Grouping {
            high_rate: 0,
            enough: 3,
            wait_ms: 100,
        },
        ..config()
    };
    let mut rig = Rig::streaming_with(config, cluster(&["x"]));
    rig.wait(100);
    rig
}

/// Sends the first `INCR a`, which nothing holds, and has two come while it is on its way; gives where they end.
fn with_two_behind_one(rig: &mut Rig) -> (Slot, u64) {
    let (slot, incr) = (crate::slot::slot_of(b"a"), command("INCR a"));
    rig.hear(&incr);
    let first = 100 + incr.len() as u64;
    assert_eq!(rig.sent(0), group(&["INCR a"], slot, first));
    rig.hear(&incr.repeat(2));
    rig.reply(0, &executed(1));
    assert_eq!(rig.acknowledged(), first);
    (slot, first + 2 * incr.len() as u64)
}

#[test]
fn at_a_high_rate_a_slot_gathers_enough_before_it_goes_on() {
    let mut rig = held();
    let (slot, end) = with_two_behind_one(&mut rig);
    assert!(rig.sent(0).is_empty());
    rig.hear(&commands(&["SET b 1", "INCR a"]));
    let (set, end) = (command("SET b 1"), end + command("INCR a").len() as u64);
    let behind = [
        set.clone(),
        group(&["INCR a"; 3], slot, end + set.len() as u64),
    ]
    .concat();
    assert_eq!(rig.sent(0), behind);
    rig.reply(0, &[&b"+OK\r\n"[..], &executed(3)].concat());
    assert_eq!(rig.acknowledged(), end + set.len() as u64);
}

#[test]
fn a_slot_that_does_not_gather_enough_goes_on_after_a_while() {
    let mut rig = held();
    let (slot, end) = with_two_behind_one(&mut rig);
    rig.wait(99);
    assert!(rig.sent(0).is_empty());
    rig.wait(1);
    assert_eq!(rig.sent(0), group(&["INCR a"; 2], slot, end));
}

#[test]
fn a_client_that_waits_at_the_source_makes_a_slot_go_on_at_once() {
    let mut rig = held();
    let (slot, end) = with_two_behind_one(&mut rig);
    rig.hear(&command("REPLCONF GETACK *"));
    assert_eq!(rig.sent(0), group(&["INCR a"; 2], slot, end));
}

#[test]
fn what_needs_the_lane_to_stand_still_makes_a_slot_go_on_at_once() {
    let mut rig = held();
    let (slot, end) = with_two_behind_one(&mut rig);
    rig.hear(&command("FLUSHALL"));
    assert_eq!(rig.sent(0), group(&["INCR a"; 2], slot, end));
    let mut rig = held();
    let (slot, end) = with_two_behind_one(&mut rig);
    rig.lane.stop();
    rig.wait(1);
    assert_eq!(rig.sent(0), group(&["INCR a"; 2], slot, end));
}

#[test]
fn at_a_low_rate_nothing_is_held() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    rig.wait(100);
    let (slot, end) = with_two_behind_one(&mut rig);
    assert_eq!(rig.sent(0), group(&["INCR a"; 2], slot, end));
}

#[test]
fn what_may_be_repeated_waits_for_no_more_than_what_came_before_it() {
    let mut rig = held();
    let (slot, end) = with_two_behind_one(&mut rig);
    rig.hear(&command("SET a 1"));
    let end = end + command("SET a 1").len() as u64;
    assert_eq!(
        rig.sent(0),
        group(&["INCR a", "INCR a", "SET a 1"], slot, end)
    );
}

#[test]
fn a_rate_is_high_as_soon_as_enough_have_come_and_low_when_they_come_no_more() {
    let config = LaneConfig {
        grouping: Grouping {
            high_rate: 60,
            ..Grouping::default()
        },
        ..config()
    };
    let mut rig = Rig::streaming_with(config, cluster(&["x"]));
    rig.wait(100);
    // In a twentieth of a second three are many.
    let (slot, end) = with_two_behind_one(&mut rig);
    assert!(rig.sent(0).is_empty());
    rig.wait(50);
    assert!(rig.sent(0).is_empty());
    rig.wait(50);
    assert_eq!(rig.sent(0), group(&["INCR a"; 2], slot, end));
}

#[test]
fn what_is_sent_again_before_what_came_sooner_moves_neither_end_of_a_group() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    let (targets, chunks) = (&mut rig.lane.targets, &mut rig.lane.chunks);
    let mut built = |line, at| {
        let command = command(line);
        targets.built_unit(chunks, Form::Command, Offset(at), 0, &command, 1)
    };
    // The removal of a record, refused once: the stream had come farther then.
    let refused = built("HDEL a 1.1", 500);
    let sooner = Unit {
        end: Offset(120),
        guard: Guard::Needed,
        ..built("INCR a", 100)
    };
    let slot = crate::slot::slot_of(b"a");
    let group = targets.group(chunks, slot, 0, &[refused, sooner]);
    assert_eq!((group.begin, group.end), (Offset(100), Offset(120)));
    let sent = super::grouping::group(&["HDEL a 1.1", "INCR a"], slot, 120);
    assert_eq!(chunks.get(group.range), sent);
}
