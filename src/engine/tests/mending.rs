//! Keys that differ, and what becomes of the commands around them.

use std::collections::BTreeMap;

use super::super::fence::FenceAnswer;
use super::super::mending::{MendAnswer, MendQuestion};
use super::super::options::OnDivergence;
use super::*;
use crate::checkpoint::{Mark, Owed, Resume, Watermark, watermark_key};
use crate::mend::{Snapshot, Taken};
use crate::position::{Offset, Position, ReplicationId};
use crate::rdb::Payload;

pub(super) const WRONG: &[u8] =
    b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";

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
    pub(super) fn question(&mut self) -> (u64, MendQuestion) {
        self.wait(limits::MEND_RETRY_MS);
        let mut questions = self.lane.take_mend_questions();
        assert_eq!(questions.len(), 1, "one question");
        questions.remove(0)
    }

    /// Answers a question: the texts of its keys at an offset, in the order of the keys.
    pub(super) fn tell(&mut self, ticket: u64, offset: u64, values: &[Option<&str>]) {
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

    pub(super) fn offset(&self) -> u64 {
        self.lane.progress().received.0
    }
}

pub(super) fn names(question: &MendQuestion) -> Vec<&str> {
    let keys = question.keys.keys.iter();
    keys.map(|(_, key)| std::str::from_utf8(key).unwrap())
        .collect()
}

pub(super) fn words(commands: &[u8]) -> Vec<String> {
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
fn a_lane_that_stops_at_a_difference_names_the_command_of_a_group_that_failed() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    rig.hear(&commands(&[
        "INCR {a}1",
        "INCR {a}2",
        "INCR {a}3",
        "INCR {a}4",
    ]));
    rig.sent(0);
    rig.reply(0, &executed(1));
    let sent = words(&rig.sent(0));
    assert_eq!(sent[1..4], ["INCR {a}2", "INCR {a}3", "INCR {a}4"]);
    let replies = [
        b"+OK\r\n",
        &b"+QUEUED\r\n".repeat(4)[..],
        b"*4\r\n:1\r\n",
        WRONG,
        b":1\r\n+OK\r\n",
    ];
    let fault = rig.try_reply(0, &replies.concat()).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Divergence);
    let told = "to INCR '{a}3' (2 arguments), in a transaction: target and source differ; make that key equal";
    assert!(fault.message.contains(told), "{fault}");
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
    for _ in 0..2 {
        let named = words(&rig.sent(0));
        assert!(
            named.len() == 3 && named[1].starts_with("SET "),
            "{named:?}"
        );
        assert!(!rig.lane.keys_noted());
        rig.reply(0, NAMED);
    }
    rig.wait(limits::MEND_RETRY_MS);
    assert!(rig.lane.keys_noted());
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

/// The transaction that sets a watermark, which does not speak for these keys.
fn naming(slot: Slot, end: u64, keys: &[&str]) -> Vec<u8> {
    let keys: Vec<_> = keys
        .iter()
        .map(|key| (0, key.as_bytes().to_vec()))
        .collect();
    let watermark = Watermark {
        generation: GENERATION,
        offset: Offset(end),
    };
    let mark = Mark {
        watermark,
        owed: Some(Owed::of(keys.iter())),
    };
    let mut out = command("MULTI");
    let key = watermark_key(&"default".parse().unwrap(), slot);
    push_command(&mut out, &[b"SET", &key, mark.to_string().as_bytes()]);
    out.extend(command("EXEC"));
    out
}

/// `INCR a` fails together with its watermark; gives where it ends.
fn fail_behind_a_watermark(rig: &mut Rig) -> u64 {
    rig.hear(&command("INCR a"));
    let end = rig.offset();
    assert_eq!(rig.sent(0), group(&["INCR a"], 15495, end));
    let replies = [b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n", WRONG, b"+OK\r\n"];
    rig.reply(0, &replies.concat());
    end
}

const NAMED: &[u8] = b"+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n";

#[test]
fn a_watermark_behind_a_failure_names_the_key_before_the_source_is_asked() {
    let mut rig = mending(cluster(&["x"]));
    let end = fail_behind_a_watermark(&mut rig);
    assert_eq!(rig.sent(0), naming(15495, end, &["a"]));
    rig.wait(limits::MEND_RETRY_MS);
    assert!(rig.lane.take_mend_questions().is_empty() && !rig.lane.keys_noted());
    rig.reply(0, NAMED);
    let (ticket, question) = rig.question();
    assert!(names(&question) == ["a"] && rig.lane.keys_noted());
    // What goes out meanwhile does not hide it.
    let until = end + 1000;
    rig.tell(ticket, until, &[Some("text")]);
    rig.hear(&command("INCR {a}other"));
    let sent = String::from_utf8(rig.sent(0)).unwrap();
    let watermark = Watermark {
        generation: GENERATION,
        offset: Offset(rig.offset()),
    };
    assert!(sent.contains(&format!("{watermark} 0:61\r\n")), "{sent}");
}

#[test]
fn a_mend_that_was_on_its_way_is_sent_again_although_the_slot_was_as_far_before() {
    let mut rig = mending(cluster(&["x"]));
    rig.lane.targets.fenced = true;
    let end = fail_behind_a_watermark(&mut rig);
    rig.sent(0);
    rig.reply(0, NAMED);
    let (ticket, _) = rig.question();
    rig.tell(ticket, end, &[Some("text")]);
    let mend = rig.sent(0);
    assert!(words(&mend).contains(&"RESTORE a".into()));
    rig.lane.target_lost(0, lost(), rig.now_ms).unwrap();
    rig.wait(10_000);
    rig.connect_targets();
    let (index, number, question) = rig.lane.take_fence_question().unwrap();
    assert_eq!(question.slots, [15495]);
    let watermark = Watermark {
        generation: GENERATION,
        offset: Offset(end),
    };
    let answer = FenceAnswer::Clear {
        run: None,
        watermarks: [(15495, watermark)].into(),
    };
    rig.lane.fenced(index, number, answer, rig.now_ms).unwrap();
    assert_eq!(rig.sent(0), mend);
}

/// A lane that goes on from offset 100, where a former process may have sent `passed` bytes of the slot of `a`, and 10,000
/// bytes of all else.
fn resumed(passed: usize, owed: Option<Owed>, policy: OnDivergence) -> Rig {
    let position = Position {
        id: ReplicationId::parse(ID.as_bytes()).unwrap(),
        offset: Offset(100),
    };
    let passed: BTreeMap<Slot, Offset> = [(15495, position.offset.advanced(passed))].into();
    let resume = Resume {
        generation: GENERATION,
        position,
        predecessor: None,
        database: 0,
        high: Offset(10_000),
        former: None,
        passed: passed.clone(),
        owned: SlotSet::new(),
        recopy: SlotSet::new(),
        foreign: SlotSet::new(),
        owed: owed.into_iter().map(|owed| (15495, owed)).collect(),
        exclusive: true,
        held: true,
        leases: false,
    };
    let config = LaneConfig {
        passed,
        resume: Some(resume),
        on_divergence: policy,
        ..config()
    };
    let mut rig = Rig::with(config, cluster(&["x"]));
    rig.greet_again();
    rig.hear(b"+CONTINUE\r\n");
    rig.connect_targets();
    rig
}

#[test]
fn keys_that_a_former_process_owed_are_mended_with_what_it_tied_to_them() {
    let stream = commands(&["INCR {a}k", "RENAME {a}k {a}x", "INCR {a}y"]);
    for owed in [Owed::of([(0, b"{a}k".to_vec())].iter()), Owed::Some] {
        let all = owed == Owed::Some;
        let mut rig = resumed(stream.len(), Some(owed), OnDivergence::Stop);
        rig.hear(&stream[..10]);
        rig.wait(limits::MEND_RETRY_MS);
        assert!(
            rig.lane.take_mend_questions().is_empty(),
            "more may be tied to it"
        );
        rig.hear(&stream[10..]);
        rig.hear(&command("SET {a}z 1"));
        assert_eq!(rig.acknowledged(), 100);
        let keys: &[&str] = match all {
            true => &["{a}k", "{a}x", "{a}y"],
            false => &["{a}k", "{a}x"],
        };
        assert_eq!(words(&rig.sent(0)).len(), 3, "the watermark names them");
        rig.reply(0, NAMED);
        let (_, question) = rig.question();
        assert_eq!(names(&question), keys);
        assert!(rig.sent(0).is_empty(), "what comes behind waits");
    }
}

#[test]
fn what_fails_when_it_is_repeated_is_mended_unless_it_says_that_its_effect_is_there() {
    let again = |policy, line: &str, text: &[u8]| {
        let mut rig = resumed(0, None, policy);
        rig.hear(&command(line));
        rig.sent(0);
        rig.reply(0, text);
        assert_eq!(rig.lane.status.counted(ErrorCount::Replayed), 1);
        assert_eq!(rig.lane.status.counted(ErrorCount::Divergence), 0);
        rig.lane.keys_owed()
    };
    let add = "XADD a 5-1 f v";
    let added =
        b"-ERR The ID specified in XADD is equal or smaller than the target stream top item\r\n";
    assert_eq!(again(OnDivergence::Mend, "HSET a f v", WRONG), 1);
    assert_eq!(again(OnDivergence::Mend, add, added), 0);
    assert_eq!(again(OnDivergence::Stop, "HSET a f v", WRONG), 0);
    assert_eq!(again(OnDivergence::Continue, "HSET a f v", WRONG), 0);
}

#[test]
fn a_lane_that_stops_reads_on_until_what_differs_has_the_values() {
    let mut rig = mending(cluster(&["x"]));
    rig.hear(&command("HSET a f v"));
    rig.sent(0);
    rig.reply(0, WRONG);
    let (ticket, _) = rig.question();
    rig.lane.stop();
    assert!(rig.lane.source_space().is_none());
    let rest = commands(&["SET b 1", "SET c 1"]);
    rig.tell(ticket, rig.offset() + rest.len() as u64, &[Some("text")]);
    assert!(!rig.lane.is_done());
    rig.hear(&rest);
    assert!(rig.lane.source_space().is_none(), "no more is needed");
    rig.sent(0);
    rig.reply(0, b"+OK\r\n+OK\r\n");
    assert!(words(&rig.sent(0)).contains(&"RESTORE a".into()));
    assert!(!rig.lane.is_done());
    rig.reply(0, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n+OK\r\n");
    assert!(rig.lane.is_done() && rig.acknowledged() == rig.offset());
}

#[test]
fn a_lane_that_stops_leaves_what_it_cannot_mend_to_the_next_process() {
    let mut rig = mending(cluster(&["x"]));
    rig.hear(&command("HSET a f v"));
    rig.sent(0);
    rig.reply(0, WRONG);
    rig.question();
    rig.hear(&command("HSET a g w"));
    rig.lane.stop();
    rig.wait(0);
    assert!(!rig.lane.is_done());
    rig.wait(limits::SPOOL_DRAIN_MS);
    assert!(rig.lane.is_done());
    assert_eq!(rig.acknowledged(), 100);
}

#[test]
fn a_flush_does_not_wait_for_keys_that_wait_for_what_comes_behind_it() {
    let owed = Owed::of([(0, b"a".to_vec())].iter());
    let mut rig = resumed(1000, Some(owed), OnDivergence::Mend);
    rig.hear(&commands(&["FLUSHALL", "SET b 1"]));
    assert_eq!(words(&rig.sent(0)), ["SCAN 0"]);
    rig.reply(0, b"*2\r\n$1\r\n0\r\n*0\r\n");
    rig.reply_to_checks(0);
    assert_eq!(words(&rig.sent(0)), ["SET b"]);
    assert_eq!(rig.lane.keys_owed(), 1);
}
