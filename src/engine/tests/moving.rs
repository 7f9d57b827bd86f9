//! Slots that leave a lane and come to it, with what the streams say of them meanwhile.

use super::super::mending::MendAnswer;
use super::super::recopy::{ListAnswer, ListQuestion};
use super::super::records::Generations;
use super::mending::{WRONG, names, words};
use super::*;
use crate::mend::Key;
use crate::slot::slot_of;

/// A lane that writes the slot of `a` and not that of `b`.
fn half() -> Rig {
    let ours = SlotSet::from_iter([slot_of(HIGH.as_bytes())]);
    let config = LaneConfig {
        slots: ours,
        ..config()
    };
    Rig::streaming_with(config, cluster(&["x"]))
}

fn slots(keys: &[&str]) -> SlotSet {
    keys.iter().map(|key| slot_of(key.as_bytes())).collect()
}

fn key(name: &str) -> Key {
    (0, name.into())
}

impl Rig {
    fn list_question(&mut self) -> (u64, ListQuestion) {
        self.wait(1);
        let mut questions = self.lane.take_list_questions();
        assert_eq!(questions.len(), 1, "one question");
        questions.remove(0)
    }

    fn list(&mut self, ticket: u64, source: &[&str], target: &[&str]) {
        let keys = |names: &[&str]| names.iter().map(|name| key(name)).collect();
        let answer = ListAnswer::Listed {
            replid: ID.into(),
            source: keys(source),
            target: keys(target),
        };
        self.lane.listed(ticket, answer).unwrap();
    }

    /// Executes what was sent, and gives its words.
    fn execute(&mut self) -> Vec<String> {
        let sent = self.sent(0);
        let lines = words(&sent);
        let mut queued = 0;
        let mut open = false;
        for line in &lines {
            match line.as_str() {
                "MULTI" => {
                    open = true;
                    self.reply(0, b"+OK\r\n");
                }
                "EXEC" => {
                    open = false;
                    let replies = format!("*{queued}\r\n{}", "+OK\r\n".repeat(queued));
                    self.reply(0, replies.as_bytes());
                    queued = 0;
                }
                _ if open => {
                    queued += 1;
                    self.reply(0, b"+QUEUED\r\n");
                }
                _ => self.reply(0, b"+OK\r\n"),
            }
        }
        lines
    }
}

#[test]
fn commands_of_slots_that_are_not_the_lanes_are_dropped_and_the_topology_is_looked_at() {
    let mut rig = half();
    rig.lane.take_hint();
    rig.hear(&commands(&[
        "SET a 1",
        "SET b 1",
        "INCR b",
        "PUBLISH b m",
        "SET a 2",
    ]));
    assert_eq!(
        rig.sent(0),
        commands(&["SET a 1", "PUBLISH b m", "SET a 2"])
    );
    rig.reply(0, b"+OK\r\n:0\r\n+OK\r\n");
    assert_eq!(rig.acknowledged(), rig.lane.received().0);
    assert_eq!(rig.lane.status.counted(ErrorCount::OfMovingSlot), 2);
    assert!(rig.lane.take_hint());
}

#[test]
fn of_a_transaction_the_part_is_sent_that_is_of_the_lanes_slots() {
    let mut rig = half();
    rig.hear(&commands(&[
        "MULTI",
        "SET a 1",
        "INCRBYFLOAT b 1",
        "PERSIST a",
        "EXEC",
    ]));
    assert_eq!(
        rig.sent(0),
        commands(&["MULTI", "SET a 1", "PERSIST a", "EXEC"])
    );
    rig.reply(0, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:0\r\n");
    rig.hear(&commands(&["MULTI", "SET b 1", "SET b 2", "EXEC"]));
    assert!(rig.sent(0).is_empty());
    assert_eq!(rig.acknowledged(), rig.lane.received().0);
    // The slot leaves while the transaction is open.
    rig.hear(&commands(&["MULTI", "SET a 1"]));
    rig.lane.leave(&slots(&["a"]));
    rig.hear(&commands(&["SET a 2", "EXEC"]));
    assert!(rig.sent(0).is_empty());
}

#[test]
fn a_slot_is_left_when_what_was_sent_is_answered_and_no_record_lists_it() {
    let config = LaneConfig {
        slots: slots(&["a", "b"]),
        generations: Some(Generations::new(1)),
        ..config()
    };
    let mut rig = Rig::with(config, cluster(&["x"]));
    rig.attach();
    rig.hear(GREETED);
    rig.hear(format!("+FULLRESYNC {ID} 100\r\n").as_bytes());
    rig.connect_targets();
    let (index, number, _) = rig
        .lane
        .take_fence_question()
        .expect("before it is written to");
    let answer = super::super::fence::FenceAnswer::Clear {
        run: None,
        watermarks: Default::default(),
    };
    rig.lane.fenced(index, number, answer, rig.now_ms).unwrap();
    rig.hear(b"$18\r\nREDIS0009\xff\0\0\0\0\0\0\0\0");
    rig.wait(limits::RECORD_INTERVAL_MS);
    let lists = |lines: &[u8], slot: &str| {
        let slot = slot_of(slot.as_bytes()).to_string();
        String::from_utf8_lossy(lines).contains(&slot)
    };
    let first = rig.sent(0);
    assert!(lists(&first, "a") && lists(&first, "b"));
    rig.reply(0, &b":1\r\n".repeat(words(&first).len()));
    for _ in 0..3 {
        rig.wait(limits::RECORD_INTERVAL_MS);
        rig.execute();
    }
    rig.hear(&commands(&["SET a 1", "SET b 1"]));
    rig.sent(0);
    rig.lane.leave(&slots(&["b"]));
    rig.wait(1);
    assert!(rig.lane.take_left().is_empty());
    rig.reply(0, b"+OK\r\n+OK\r\n");
    assert!(rig.lane.take_left().is_empty(), "a record lists it");
    rig.wait(1);
    let record = rig.sent(0);
    let lines = words(&record);
    assert_eq!(lines[0], "SET {b}slotstream:w:default", "of no generation");
    assert!(
        lists(&record, "a") && lines[1].starts_with("HSET"),
        "{lines:?}"
    );
    assert!(rig.lane.take_left().is_empty(), "it is not answered");
    rig.reply(0, &b":0\r\n".repeat(words(&record).len()));
    assert_eq!(rig.lane.take_left(), slots(&["b"]));
    assert!(rig.lane.take_left().is_empty(), "told once");
}

#[test]
fn a_slot_that_comes_is_copied_key_by_key_and_what_is_written_meanwhile_is_not_missed() {
    let mut rig = half();
    rig.lane.take(&slots(&["b"]));
    rig.hear(&commands(&["SET {b}before 1", "SET a 1"]));
    let (ticket, question) = rig.list_question();
    assert_eq!((question.slots, question.target), (slots(&["b"]), true));
    assert_eq!(rig.execute(), ["SET a"]);
    // Not in the list: it comes after it was made.
    rig.hear(&command("SET {b}new 1"));
    rig.list(ticket, &["{b}before", "{b}gone"], &["{b}gone", "{b}stale"]);
    let (ticket, question) = rig.question();
    let asked = ["{b}before", "{b}gone", "{b}new", "{b}stale"];
    assert_eq!(super::mending::names(&question), asked);
    let end = rig.offset();
    rig.tell(ticket, end, &[Some("1"), None, Some("2"), None]);
    let lines = rig.execute();
    let written = [
        "MULTI",
        "RESTORE {b}before",
        "UNLINK {b}gone",
        "RESTORE {b}new",
        "UNLINK {b}stale",
    ];
    assert_eq!(lines[..5], written);
    rig.wait(1);
    assert!(rig.execute()[1].contains("slotstream:w:"), "the watermark");
    assert!(rig.lane.motion.is_settled());
    rig.hear(&commands(&["INCR {b}new", "SET {b}more 1"]));
    assert!(rig.execute().contains(&"INCR {b}new".to_owned()));
    assert_eq!(rig.execute(), ["SET {b}more"]);
}

#[test]
fn a_command_that_meets_a_key_which_is_not_copied_is_left_out_and_all_its_keys_are_copied_again() {
    let mut rig = half();
    rig.lane.take(&slots(&["b"]));
    let (ticket, _) = rig.list_question();
    rig.list(ticket, &["{b}1", "{b}2"], &[]);
    let (ticket, _) = rig.question();
    let end = rig.offset();
    // Behind the values, and one that meets a key which nobody has listed.
    rig.hear(&commands(&["RENAME {b}other {b}1", "APPEND {b}2 z"]));
    rig.tell(ticket, end, &[Some("x"), Some("y")]);
    let lines = rig.execute();
    assert_eq!(lines[1..3], ["RESTORE {b}1", "RESTORE {b}2"]);
    let lines = rig.execute();
    assert_eq!(lines[..2], ["MULTI", "APPEND {b}2"]);
    let (_, question) = rig.question();
    assert_eq!(super::mending::names(&question), ["{b}1", "{b}other"]);
    assert!(!rig.lane.motion.is_settled());
}

#[test]
fn a_slot_that_leaves_while_it_is_copied_is_forgotten() {
    let mut rig = half();
    rig.lane.take(&slots(&["b"]));
    let (ticket, _) = rig.list_question();
    rig.list(ticket, &["{b}1"], &[]);
    let (ticket, _) = rig.question();
    rig.hear(&command("SET {b}1 2"));
    rig.lane.leave(&slots(&["b"]));
    rig.tell(ticket, rig.offset(), &[Some("x")]);
    rig.wait(1);
    assert!(rig.sent(0).is_empty());
    assert_eq!(rig.lane.take_left(), slots(&["b"]));
    assert!(rig.lane.motion.is_settled());
    assert_eq!(rig.acknowledged(), rig.offset());
}

#[test]
fn keys_of_a_snapshot_that_are_in_others_slots_are_not_written() {
    let ours = slots(&["a"]);
    let mut rig = Rig::with(
        LaneConfig {
            slots: ours,
            ..config()
        },
        cluster(&["x"]),
    );
    rig.attach();
    rig.hear(GREETED);
    rig.hear(format!("+FULLRESYNC {ID} 100\r\n").as_bytes());
    rig.connect_targets();
    let mut snapshot = b"REDIS0009\xfe\0".to_vec();
    for name in ["a", "b"] {
        snapshot.extend_from_slice(b"\0\x01");
        snapshot.extend_from_slice(name.as_bytes());
        snapshot.extend_from_slice(b"\x01v");
    }
    snapshot.extend_from_slice(b"\xff\0\0\0\0\0\0\0\0");
    rig.hear(format!("${}\r\n", snapshot.len()).as_bytes());
    rig.hear(&snapshot);
    assert_eq!(words(&rig.sent(0)), ["RESTORE a"]);
}

#[test]
fn a_first_copy_of_slots_that_came_before_it_says_when_keys_of_the_former_lane_may_stay() {
    for (given, unswept) in [(false, 0), (true, 1)] {
        let config = LaneConfig {
            slots: slots(&["a"]),
            existing: Existing::Keep,
            ..config()
        };
        let mut rig = Rig::with(config, cluster(&["x"]));
        if given {
            rig.lane.take(&slots(&["b"]));
        }
        rig.attach();
        rig.hear(GREETED);
        rig.hear(format!("+FULLRESYNC {ID} 100\r\n").as_bytes());
        let counted = rig.lane.status.counted(ErrorCount::UnsweptCopy);
        assert_eq!(counted, unswept, "given: {given}");
    }
}

#[test]
fn keys_of_a_slot_that_leaves_are_not_asked_for_any_more_and_what_they_held_up_on_a_single_target_goes_on()
 {
    let config = LaneConfig {
        slots: slots(&["a", "b"]),
        ..config()
    };
    let mut rig = Rig::streaming_with(config, Topology::single("h", 1));
    rig.lane.targets.mends.policy = OnDivergence::Mend;
    rig.hear(&command("HSET b f v"));
    rig.sent(0);
    rig.reply(0, WRONG);
    let (ticket, question) = rig.question();
    assert_eq!(names(&question), ["b"]);
    rig.hear(&commands(&["HSET b f w", "SET a 1"]));
    assert!(rig.sent(0).is_empty(), "a single target has one order");
    rig.lane.leave(&slots(&["b"]));
    assert!(rig.lane.take_left().is_empty(), "some of it is held back");
    let moved = MendAnswer::Later("MOVED".into());
    rig.lane.mend_answered(ticket, moved).unwrap();
    rig.wait(limits::MEND_RETRY_MS);
    assert!(rig.lane.take_mend_questions().is_empty());
    assert_eq!(words(&rig.sent(0)), ["HSET b", "SET a"]);
    assert!(rig.lane.take_left().is_empty(), "it is on its way");
    rig.reply(0, WRONG);
    rig.reply(0, b"+OK\r\n");
    assert_eq!(rig.lane.take_left(), slots(&["b"]));
    assert_eq!(rig.lane.keys_owed(), 0);
    assert_eq!(rig.acknowledged(), rig.lane.received().0);
}
