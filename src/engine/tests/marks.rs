//! Marks of origin: what is written carries them, what carries them is dropped.

use super::*;

fn marking() -> LaneConfig {
    LaneConfig {
        mark: true,
        existing: Existing::Keep,
        lacking: Features::lacking_in(Lineage::Redis, 7, 0),
        ..config()
    }
}

#[test]
fn what_is_passed_on_is_marked_and_what_is_marked_is_not_passed_on() {
    let mut rig = Rig::streaming_with(marking(), cluster(&["x"]));
    let stream = commands(&[
        "SET a 1",
        "sET b 1",
        "set c 1",
        "SET {06S}slotstream:w:other 1",
        "Del d",
        "PING",
    ]);
    rig.hear(&stream);
    assert_eq!(
        String::from_utf8_lossy(&rig.sent(0)),
        String::from_utf8_lossy(&commands(&["sET a 1", "sET c 1", "dEL d"]))
    );
    rig.reply(0, b"+OK\r\n+OK\r\n:1\r\n");
    assert_eq!(rig.acknowledged(), 100 + stream.len() as u64);
    let echoes = rig
        .lane
        .status
        .echoes
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(echoes, 2);
}

#[test]
fn what_loses_its_mark_travels_with_a_watermark_that_keeps_its() {
    let mut rig = Rig::streaming_with(marking(), cluster(&["x"]));
    for line in ["SET a 1 PXAT 99999999999999", "INCR a", "SPOP a"] {
        rig.hear(&command(line));
        let sent = String::from_utf8(rig.sent(0)).unwrap();
        assert!(sent.starts_with("*1\r\n$5\r\nMULTI\r\n"), "{sent}");
        assert!(
            sent.contains("sET\r\n$") && sent.contains("slotstream:w:"),
            "{sent}"
        );
        assert!(!sent.contains("SET") && !sent.contains("INCR") && !sent.contains("SPOP"));
        rig.reply(0, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n+OK\r\n");
    }
    let transaction = ["MULTI", "SET a 1", "PERSIST a", "EXEC"];
    rig.hear(&commands(&transaction));
    let marked = ["MULTI", "sET a 1", "pERSIST a", "EXEC"];
    assert_eq!(rig.sent(0), commands(&marked));
}

#[test]
fn a_transaction_with_an_echo_is_dropped_whole_and_counts_as_applied() {
    let mut rig = Rig::streaming_with(marking(), cluster(&["x"]));
    let stream = commands(&[
        "MULTI", "DEL a", "iNCR b", "EXEC", "MULTI", "INCR c", "sET d 1", "EXEC",
    ]);
    rig.hear(&stream);
    assert!(rig.sent(0).is_empty());
    assert_eq!(rig.acknowledged(), 100 + stream.len() as u64);
    assert_eq!(rig.lane.status.errors()["local_removals"], 1);
    rig.hear(&command("SET a 2"));
    assert_eq!(rig.sent(0), command("sET a 2"));
}

#[test]
fn what_is_split_or_rebuilt_is_marked_in_each_part() {
    let mut rig = Rig::streaming_with(marking(), cluster(&["x", "y"]));
    rig.hear(&command("DEL a b"));
    assert_eq!(
        (rig.sent(1), rig.sent(0)),
        (command("dEL a"), command("dEL b"))
    );
}
