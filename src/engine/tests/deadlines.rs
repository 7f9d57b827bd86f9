//! Deadlines that are held back while the target is behind.

use super::*;

#[test]
fn a_near_deadline_is_held_back_until_the_source_is_known_to_have_passed_it() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    let zero = 1_000_000;
    rig.lane.set_wall_clock(zero);
    rig.wait(0);
    let end = zero + rig.now_ms + 5_000;
    let held = end + limits::LEASE_GRACE_MS;
    rig.hear(&command(&format!("PEXPIREAT a {end}")));
    assert_eq!(rig.sent(0), command(&format!("PEXPIREAT a {held}")));
    rig.reply(0, b":1\r\n");
    rig.hear(&command("RENAME a {a}b"));
    let end = rig.lane.received().0;
    assert_eq!(rig.sent(0), group(&["RENAME a {a}b"], 15495, end));
    rig.reply(0, &executed(1));
    // Time alone proves nothing, nor does an offset that was asked for before.
    rig.wait(6_000);
    rig.poll(rig.now_ms - 1_500);
    rig.wait(0);
    assert!(rig.sent(0).is_empty());
    rig.wait(limits::LEASE_SKEW_MS);
    rig.poll(rig.now_ms);
    rig.wait(0);
    let sent = String::from_utf8(rig.sent(0)).unwrap();
    assert!(sent.starts_with("*7\r\n$4\r\nEVAL\r\n"), "{sent}");
    for key in ["$1\r\na\r\n", "$4\r\n{a}b\r\n"] {
        assert!(sent.contains(key), "{sent}");
    }
    assert!(rig.lane.rebuild.deadlines.is_empty());
}

#[test]
fn a_source_that_writes_nothing_has_its_deadlines_shown_as_they_are() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    let zero = 1_000_000;
    rig.lane.set_wall_clock(zero);
    rig.wait(0);
    let end = zero + rig.now_ms + 25_000;
    for quiet_ms in [limits::LEASE_QUIET_MS / 2, limits::LEASE_QUIET_MS] {
        assert!(rig.sent(0).is_empty());
        rig.hear(&command(&format!("PEXPIREAT a {end}")));
        rig.sent(0);
        rig.reply(0, b":1\r\n");
        rig.wait(0);
        rig.wait(quiet_ms);
        let offset = rig.lane.received().0;
        rig.lane.status.set_poll(ID, offset, rig.now_ms);
        rig.wait(0);
    }
    assert!(rig.sent(0).starts_with(b"*6\r\n$4\r\nEVAL\r\n"));
}

#[test]
fn a_source_that_is_not_heard_of_during_a_copy_is_not_one_that_writes_nothing() {
    let mut rig = Rig::new(cluster(&["x"]));
    rig.lane.set_wall_clock(1_000_000);
    rig.wait(0);
    rig.attach();
    rig.hear(GREETED);
    rig.hear(format!("+FULLRESYNC {ID} 100\r\n").as_bytes());
    let mut snapshot = b"REDIS0009\xfc".to_vec();
    let end = 1_000_000 + rig.now_ms + 1_000;
    snapshot.extend_from_slice(&end.to_le_bytes());
    snapshot.extend_from_slice(b"\0\x01a\x01v\xff\0\0\0\0\0\0\0\0");
    rig.hear(format!("${}\r\n", snapshot.len()).as_bytes());
    rig.hear(&snapshot);
    // The source's offset as it was when the copy began.
    rig.lane.status.set_poll(ID, 100, rig.now_ms);
    rig.wait(10_000);
    rig.connect_targets();
    assert!(rig.sent(0).starts_with(b"*6\r\n$7\r\nRESTORE"));
    rig.reply(0, b"+OK\r\n");
    rig.wait(0);
    rig.wait(1);
    assert_eq!(rig.lane.status.state(), LaneState::Streaming);
    assert!(rig.sent(0).is_empty(), "a renewal may be on its way");
    rig.wait(limits::LEASE_QUIET_MS);
    rig.lane.status.set_poll(ID, 100, rig.now_ms);
    rig.wait(0);
    assert!(rig.sent(0).starts_with(b"*6\r\n$4\r\nEVAL\r\n"));
}

/// The arguments of one command behind those that are long.
fn words_from(bytes: &[u8], first: usize) -> Vec<String> {
    let frame = scan(bytes).unwrap().expect("whole");
    assert_eq!(frame.bytes().len(), bytes.len(), "one command");
    let words = frame.args().skip(first);
    words.map(|word| word.escape_ascii().to_string()).collect()
}

#[test]
fn near_deadlines_of_fields_are_held_back_and_settled_by_hash() {
    let mut rig = Rig::streaming_with(valkey_9(), cluster(&["x"]));
    let zero = 1_000_000;
    rig.lane.set_wall_clock(zero);
    rig.wait(0);
    let end = zero + rig.now_ms + 5_000;
    let held = end + limits::LEASE_GRACE_MS;
    rig.hear(&command(&format!("HPEXPIREAT a {end} FIELDS 2 g f")));
    let expected = command(&format!("HPEXPIREAT a {held} FIELDS 2 g f"));
    assert_eq!(rig.sent(0), expected);
    rig.reply(0, b"*2\r\n:1\r\n:1\r\n");
    rig.hear(&command(&format!("HSETEX b PXAT {end} FIELDS 1 f v")));
    let expected = command(&format!("HSETEX b PXAT {held} FIELDS 1 f v"));
    assert_eq!(rig.sent(0), expected);
    rig.reply(0, b":1\r\n");
    rig.hear(&command("RENAME a {a}b"));
    rig.sent(0);
    rig.reply(0, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n+OK\r\n");
    rig.wait(0);
    assert_eq!(rig.lane.status.leases.load(Relaxed), 5);
    rig.wait(5_000 + limits::LEASE_SKEW_MS);
    rig.poll(rig.now_ms);
    rig.wait(0);
    let sent = rig.sent(0);
    let rest = scan(&sent).unwrap().expect("whole").bytes().len();
    // The source has written nothing for long enough.
    let due = format!("{0} {0}", limits::LEASE_GRACE_MS);
    let expected = format!("1 b {due} 1 f");
    assert_eq!(words_from(&sent[..rest], 2).join(" "), expected);
    let expected = format!("2 a {{a}}b {due} 2 f g 2 f g");
    assert_eq!(words_from(&sent[rest..], 2).join(" "), expected);
    rig.wait(0);
    assert_eq!(rig.lane.status.leases.load(Relaxed), 0);
}

#[test]
fn leases_of_unknown_fields_are_looked_for_in_every_hash_a_part_at_a_time() {
    let mut rig = Rig::streaming_with(valkey_9(), cluster(&["x"]));
    rig.wait(0);
    rig.hear(&command("HPEXPIREAT a 20000 FIELDS 1 f"));
    rig.sent(0);
    rig.reply(0, b"*1\r\n:1\r\n");
    rig.lane.rebuild.deadlines.lost_track();
    rig.lane.stop();
    rig.wait(0);
    assert!(
        rig.sent(0).starts_with(b"*8\r\n$4\r\nEVAL"),
        "the field that is known"
    );
    rig.reply(0, b"$-1\r\n");
    rig.wait(0);
    assert_eq!(rig.sent(0), command("SCAN 0 COUNT 1000"));
    rig.reply(0, b"*2\r\n$1\r\n0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n");
    rig.wait(0);
    let keys = rig.sent(0);
    assert!(keys.starts_with(b"*6\r\n$4\r\nEVAL"), "the keys themselves");
    rig.reply(0, b"$-1\r\n$-1\r\n");
    let all = limits::LEASE_GRACE_MS;
    let look = |cursor: &str, keys: &str| {
        format!(
            "0 {all} {all} {} {cursor} {keys}",
            limits::SETTLE_WALK_FIELDS
        )
    };
    for (expected, answer) in [
        (look("0", "a b"), b"*2\r\n:0\r\n$2\r\n17\r\n".as_slice()),
        (look("17", "a b"), b"-LOADING it\r\n"),
        (look("17", "a b"), b"*2\r\n:1\r\n$1\r\n0\r\n"),
        (look("0", "b"), b"*2\r\n:1\r\n$1\r\n0\r\n"),
    ] {
        rig.wait(0);
        assert_eq!(words_from(&rig.sent(0), 2).join(" "), expected);
        assert!(!rig.lane.is_done());
        rig.reply(0, answer);
    }
    rig.wait(0);
    rig.wait(limits::LISTING_QUIET_MS);
    assert!(rig.sent(0).is_empty());
    assert!(rig.lane.is_done());
}

#[test]
fn hashes_of_a_snapshot_are_written_by_elements_where_a_field_ends_soon() {
    let mut rig = Rig::with(valkey_9(), cluster(&["x"]));
    rig.lane.set_wall_clock(1_000_000);
    rig.wait(0);
    rig.attach();
    rig.hear(GREETED);
    rig.hear(format!("+FULLRESYNC {ID} 100\r\n").as_bytes());
    let now = 1_000_000 + rig.now_ms;
    let (soon, late) = (now + 1_000, now + 2 * limits::LEASE_COPY_MS);
    let mut snapshot = b"VALKEY080".to_vec();
    for (key, end) in [(b'a', soon), (b'b', late)] {
        snapshot.extend_from_slice(&[0x16, 1, key, 1]);
        snapshot.extend_from_slice(b"\x01f\x01v");
        snapshot.extend_from_slice(&end.to_le_bytes());
    }
    snapshot.extend_from_slice(b"\xff\0\0\0\0\0\0\0\0");
    rig.lane.tick(rig.now_ms).unwrap();
    rig.hear(format!("${}\r\n", snapshot.len()).as_bytes());
    rig.hear(&snapshot);
    rig.connect_targets();
    let held = soon + limits::LEASE_GRACE_MS;
    let elements = commands(&[
        "UNLINK a",
        "HSET a f v",
        &format!("HPEXPIREAT a {held} FIELDS 1 f"),
    ]);
    let sent = rig.sent(0);
    let (first, second) = sent.split_at(elements.len());
    assert_eq!(first, elements);
    assert!(second.starts_with(b"*6\r\n$7\r\nRESTORE\r\n$1\r\nb\r\n"));
    rig.wait(0);
    assert_eq!(rig.lane.status.leases.load(Relaxed), 1);
}
