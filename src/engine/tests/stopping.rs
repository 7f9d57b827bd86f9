//! Lanes that are told to stop: for good, or for another process to go on.

use super::*;
use crate::engine::records::{Generations, Records};

#[test]
fn a_lane_that_stops_leaves_no_deadline_held_back() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    rig.wait(0);
    rig.hear(&command("PEXPIREAT a 20000"));
    rig.sent(0);
    rig.reply(0, b":1\r\n");
    rig.lane.stop();
    assert!(!rig.lane.is_done());
    rig.wait(0);
    assert!(rig.sent(0).starts_with(b"*6\r\n$4\r\nEVAL\r\n"));
    assert!(!rig.lane.is_done());
    rig.reply(0, b"$-1\r\n");
    assert!(rig.lane.is_done());
}

#[test]
fn a_lane_that_another_will_follow_settles_no_deadline_that_it_is_about_to_look_at() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    let link = "default".parse().unwrap();
    rig.lane.records = Some(Records::new(link, Generations::new(1), GENERATION));
    rig.lane.rebuild.deadlines.assume_unknown(false);
    let mut sent = String::new();
    for _ in 0..10 {
        rig.wait(limits::LISTING_QUIET_MS);
        sent = String::from_utf8(rig.sent(0)).unwrap();
        if sent.contains("SCAN") {
            break;
        }
        rig.reply(0, &b":1\r\n".repeat(sent.matches("HSET").count()));
    }
    assert!(sent.contains("SCAN"), "it walks over all keys: {sent}");
    rig.lane.stop_for_now();
    let records = sent.matches("HSET").count();
    rig.reply(0, &b":1\r\n".repeat(records));
    rig.reply(0, b"*2\r\n$1\r\n0\r\n*1\r\n$1\r\na\r\n");
    for _ in 0..5 {
        rig.wait(limits::LISTING_QUIET_MS);
        let sent = String::from_utf8(rig.sent(0)).unwrap();
        assert!(!sent.contains("EVAL"), "{sent}");
        rig.reply(0, &b":1\r\n".repeat(sent.matches("HSET").count()));
    }
    assert!(rig.lane.is_done());
}
