//! Keys that differ, and what becomes of the commands around them.

use super::super::mending::{MendAnswer, MendQuestion};
use super::super::options::OnDivergence;
use super::*;
use crate::mend::{Snapshot, Taken};
use crate::position::Offset;
use crate::rdb::Payload;

const WRONG: &[u8] = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";

fn mending(target: Topology) -> Rig {
    let mut rig = Rig::streaming(target);
    rig.lane.targets.mends.policy = OnDivergence::Mend;
    rig
}

fn dumped(text: &str) -> Vec<u8> {
    let mut value = vec![text.len() as u8];
    value.extend_from_slice(text.as_bytes());
    let payload = Payload {
        type_code: 0,
        value: &value,
        version: 10,
    };
    payload.with_version(10)
}

impl Rig {
    fn question(&mut self) -> (u64, MendQuestion) {
        self.wait(limits::MEND_RETRY_MS);
        let mut questions = self.lane.take_mend_questions();
        assert_eq!(questions.len(), 1, "one question");
        questions.remove(0)
    }

    /// Answers a question: the texts of its keys at an offset, in the order of the keys.
    fn tell(&mut self, ticket: u64, offset: u64, values: &[Option<&str>]) {
        let taken = |text: &Option<&str>| {
            text.map(|text| Taken {
                payload: dumped(text),
                expire_at_ms: None,
            })
        };
        let snapshot = Snapshot {
            replid: ID.into(),
            offset: Offset(offset),
            values: values.iter().map(taken).collect(),
        };
        self.lane
            .mend_answered(ticket, MendAnswer::Taken(snapshot))
            .unwrap();
    }

    fn offset(&self) -> u64 {
        self.lane.progress().received.0
    }
}

fn names(question: &MendQuestion) -> Vec<&str> {
    let keys = question.keys.keys.iter();
    keys.map(|(_, key)| std::str::from_utf8(key).unwrap())
        .collect()
}

fn words(commands: &[u8]) -> Vec<String> {
    let mut rest = commands;
    let mut lines = Vec::new();
    while let Ok(Some(frame)) = crate::resp::scan(rest) {
        let words: Vec<String> = frame
            .args()
            .take(2)
            .map(|arg| String::from_utf8_lossy(arg).into_owned())
            .collect();
        lines.push(words.join(" "));
        rest = &rest[frame.bytes().len()..];
    }
    lines
}

#[test]
fn a_key_that_differs_gets_the_sources_value_in_the_place_of_what_comes_before_it() {
    let mut rig = mending(cluster(&["x"]));
    rig.hear(&command("HSET {a}k f v"));
    rig.sent(0);
    rig.reply(0, WRONG);
    assert_eq!(rig.acknowledged(), 100, "it is owed");
    let (ticket, question) = rig.question();
    assert_eq!((names(&question), question.port), (vec!["{a}k"], 1));
    rig.hear(&commands(&["SET {a}other 1", "HSET {a}k g w", "SET b 1"]));
    assert_eq!(words(&rig.sent(0)), ["SET b"], "the slot waits");
    rig.reply(0, b"+OK\r\n");
    let end = rig.offset() + command("HSET {a}k h x").len() as u64;
    rig.tell(ticket, end, &[Some("true")]);
    assert_eq!(words(&rig.sent(0)), ["SET {a}other"]);
    rig.hear(&commands(&["HSET {a}k h x", "SET {a}k 2"]));
    assert!(rig.sent(0).is_empty(), "what is before is not answered");
    assert_eq!(rig.acknowledged(), 100);
    rig.reply(0, b"+OK\r\n");
    let sent = rig.sent(0);
    let lines = words(&sent);
    assert_eq!(
        (lines.len(), &lines[..2]),
        (4, &["MULTI".into(), "RESTORE {a}k".into()][..])
    );
    assert!(lines[2].ends_with("slotstream:w:default") && lines[3] == "EXEC");
    let watermark = format!("\r\n{}\r\n", mark_at(end));
    assert!(
        sent.windows(watermark.len())
            .any(|part| part == watermark.as_bytes())
    );
    assert_eq!(rig.acknowledged(), 100);
    rig.reply(0, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n+OK\r\n");
    assert_eq!(words(&rig.sent(0)), ["SET {a}k"]);
    rig.reply(0, b"+OK\r\n");
    assert_eq!(rig.acknowledged(), rig.offset());
    let status = &rig.lane.status;
    assert_eq!(status.mends.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(status.counted(ErrorCount::CoveredByMend), 2);
    assert_eq!(rig.lane.keys_owed(), 0);
}

#[test]
fn what_was_on_its_way_and_carried_the_difference_on_is_mended_with_it() {
    let mut rig = mending(cluster(&["x"]));
    let stream = [
        "HSET {a}k f v",
        "MSET {a}k 1 {a}x 2",
        "MSET {a}x 1 {a}y 2",
        "MSET {a}v 1 {a}w 2",
    ];
    rig.hear(&commands(&stream));
    rig.sent(0);
    rig.reply(0, WRONG);
    rig.wait(limits::MEND_RETRY_MS);
    let early = rig.lane.take_mend_questions();
    assert!(early.is_empty(), "what is on its way may fail, too");
    rig.reply(0, b"+OK\r\n+OK\r\n+OK\r\n");
    let (_, question) = rig.question();
    assert_eq!(names(&question), ["{a}k", "{a}x", "{a}y"]);
}

#[test]
fn of_a_transaction_only_the_keys_of_the_command_that_failed_are_mended() {
    let mut rig = mending(cluster(&["x"]));
    rig.hear(&commands(&[
        "MULTI",
        "SET {a}1 x",
        "HSET {a}2 f v",
        "SET {a}3 x",
        "EXEC",
    ]));
    rig.sent(0);
    let inside = [
        b"+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n+OK\r\n",
        WRONG,
        b"+OK\r\n",
    ];
    rig.reply(0, &inside.concat());
    let (_, question) = rig.question();
    assert_eq!(names(&question), ["{a}2"]);
}

#[test]
fn a_failure_that_no_value_cures_ends_the_lane() {
    for text in [
        "ERR unknown command 'X'",
        "ERR wrong number of arguments for 'set' command",
    ] {
        let mut rig = mending(cluster(&["x"]));
        rig.hear(&command("SET a 1"));
        rig.sent(0);
        let fault = rig.try_reply(0, format!("-{text}\r\n").as_bytes());
        assert_eq!(fault.unwrap_err().kind, FaultKind::Divergence, "{text}");
    }
}

#[test]
fn a_key_that_never_heals_ends_the_lane() {
    let mut rig = mending(cluster(&["x"]));
    for _ in 0..limits::MEND_REPEATS {
        rig.hear(&command("HSET a f v"));
        rig.sent(0);
        rig.reply(0, WRONG);
        let (ticket, _) = rig.question();
        let offset = rig.offset();
        rig.tell(ticket, offset, &[Some("text")]);
        assert!(!rig.sent(0).is_empty());
        rig.reply(0, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n+OK\r\n");
    }
    rig.hear(&command("HSET a f v"));
    rig.sent(0);
    let fault = rig.try_reply(0, WRONG).unwrap_err();
    assert!(
        fault.message.contains("something else writes to it"),
        "{fault}"
    );
}

#[test]
fn a_flush_makes_a_mend_that_it_covers_needless() {
    let mut rig = mending(cluster(&["x"]));
    rig.hear(&command("HSET a f v"));
    rig.sent(0);
    rig.reply(0, WRONG);
    let (ticket, _) = rig.question();
    let later = rig.offset() + 1000;
    rig.tell(ticket, later, &[Some("text")]);
    rig.hear(&commands(&["FLUSHALL", "SET a 1"]));
    assert_eq!(words(&rig.sent(0)), ["FLUSHALL"]);
    rig.reply(0, b"+OK\r\n");
    // Whether every slot has stayed where it was.
    let places = words(&rig.sent(0));
    assert!(places.iter().all(|place| place.starts_with("UNLINK ")));
    rig.reply(0, &b":0\r\n".repeat(places.len()));
    assert_eq!(words(&rig.sent(0)), ["SET a"]);
    rig.reply(0, b"+OK\r\n");
    assert_eq!(
        (rig.lane.keys_owed(), rig.acknowledged()),
        (0, rig.offset())
    );
}

#[test]
fn an_answer_of_another_history_or_of_the_past_is_asked_for_again() {
    let mut rig = mending(cluster(&["x"]));
    rig.hear(&command("HSET a f v"));
    rig.sent(0);
    rig.reply(0, WRONG);
    let (first, _) = rig.question();
    rig.tell(first, 100, &[Some("text")]);
    let (second, _) = rig.question();
    let other = Snapshot {
        replid: "f".repeat(40),
        offset: Offset(1000),
        values: vec![None],
    };
    let answer = MendAnswer::Taken(other);
    rig.lane.mend_answered(second, answer).unwrap();
    let (third, _) = rig.question();
    assert!(first < second && second < third);
    assert!(rig.sent(0).is_empty());
}

#[test]
fn keys_that_the_lane_is_told_of_are_mended_by_slot() {
    let mut rig = mending(cluster(&["x"]));
    let keys = ["{a}1", "{a}2", "{b}1"].map(|key| (0, key.as_bytes().to_vec()));
    rig.lane.mend(keys.to_vec()).unwrap();
    rig.wait(limits::MEND_RETRY_MS);
    let questions = rig.lane.take_mend_questions();
    assert_eq!(questions.len(), 2);
    let now = rig.offset();
    for (ticket, question) in questions {
        let values = vec![None; names(&question).len()];
        rig.tell(ticket, now, &values);
    }
    let mut lines = words(&rig.sent(0));
    rig.reply(0, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n+OK\r\n");
    lines.extend(words(&rig.sent(0)));
    let removed = lines.iter().filter(|line| line.starts_with("UNLINK"));
    assert_eq!((removed.count(), rig.lane.keys_owed()), (3, 0));
}
