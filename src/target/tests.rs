//! A connection's ledger against every way in which a target may answer.

use std::io::IoSlice;

use super::{Form, Greeting, Guard, Outcome, Unit, Writer, WriterError};
use crate::chunk::Chunks;
use crate::limits;
use crate::position::Offset;
use crate::resp::{ErrorKind, push_command};

struct Rig {
    chunks: Chunks,
    writer: Writer,
    chunk: crate::chunk::ChunkId,
    at: u64,
}

impl Rig {
    fn new() -> Self {
        let mut chunks = Chunks::new(1 << 20, 4);
        let chunk = chunks.take_empty(1);
        let greeting = Greeting {
            auth: None,
            name: "n".into(),
        };
        let mut rig = Self {
            writer: Writer::new(greeting),
            chunks,
            chunk,
            at: 100,
        };
        rig.connect();
        rig
    }

    fn connect(&mut self) {
        self.writer.connected();
        assert!(
            self.send()
                .starts_with(b"*3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME")
        );
        assert_eq!(self.reply(b"+OK\r\n"), [Outcome::Greeted]);
        self.writer.clear();
    }

    /// A unit of these commands at the next offset of the stream.
    fn unit(&mut self, commands: &[&[&[u8]]], form: Form) -> Unit {
        let (range, ()) = self.chunks.append(self.chunk, |out| {
            commands.iter().for_each(|args| push_command(out, args));
        });
        let begin = Offset(self.at);
        self.at += range.len() as u64;
        Unit {
            range,
            form,
            frames: commands.len() as u32,
            begin,
            end: Offset(self.at),
            database: 0,
            asking: false,
            again: false,
            guard: Guard::None,
        }
    }

    fn push(&mut self, commands: &[&[&[u8]]], form: Form) -> Unit {
        let unit = self.unit(commands, form);
        self.writer.push(&mut self.chunks, unit);
        unit
    }

    fn set(&mut self, key: &[u8]) -> Unit {
        self.push(&[&[b"SET", key, b"v"]], Form::Command)
    }

    /// Writes everything that may be written now.
    fn send(&mut self) -> Vec<u8> {
        self.send_in_steps(usize::MAX)
    }

    fn send_in_steps(&mut self, step: usize) -> Vec<u8> {
        let mut sent = Vec::new();
        while let Some(part) = self.send_once(step) {
            sent.extend(part);
        }
        sent
    }

    fn send_once(&mut self, step: usize) -> Option<Vec<u8>> {
        let mut pieces = [IoSlice::new(&[]); limits::MAX_PIECES];
        let count = self.writer.gather(&self.chunks, &mut pieces);
        let mut bytes: Vec<u8> = pieces[..count]
            .iter()
            .flat_map(|piece| piece.to_vec())
            .collect();
        bytes.truncate(step);
        self.writer.transmitted(bytes.len());
        (!bytes.is_empty()).then_some(bytes)
    }

    fn reply(&mut self, bytes: &[u8]) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        self.writer
            .replies(bytes, &mut self.chunks, &mut outcomes)
            .unwrap();
        outcomes
    }

    fn lose(&mut self) {
        self.writer.lost(&mut self.chunks);
    }

    fn bytes(&self, unit: Unit) -> &[u8] {
        self.chunks.get(unit.range)
    }

    /// Nothing is left, and nobody holds the chunk but this rig.
    fn assert_done(&self) {
        assert!(self.writer.is_idle());
        assert_eq!(self.writer.held_bytes(), 0);
        assert!(!self.writer.awaits());
        assert!(self.chunks.is_sole(self.chunk));
    }
}

fn rejections(outcomes: &[Outcome]) -> Vec<(Unit, ErrorKind)> {
    outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Rejected { unit, kind, .. } => (*unit, kind.clone()),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn while_answers_are_due_little_is_gathered_until_they_come() {
    let mut rig = Rig::new();
    rig.set(b"a");
    assert!(!rig.send().is_empty());
    rig.set(b"b");
    rig.set(b"c");
    assert!(rig.send().is_empty());
    rig.reply(b"+OK\r\n");
    let sent = rig.send();
    assert_eq!(sent.windows(3).filter(|part| part == b"SET").count(), 2);
    rig.reply(b"+OK\r\n+OK\r\n");
    rig.assert_done();
}

#[test]
fn the_window_bounds_what_is_on_its_way_but_lets_one_large_unit_pass() {
    let mut rig = Rig::new();
    let value = vec![b'x'; limits::MAX_RUN_BYTES];
    for _ in 0..20 {
        rig.push(&[&[b"SET", b"k", &value]], Form::Command);
    }
    assert!(rig.send().len() <= limits::MAX_FLIGHT_BYTES);
    rig.reply(&b"+OK\r\n".repeat(15));
    rig.send();
    rig.reply(&b"+OK\r\n".repeat(5));
    rig.assert_done();
    let huge = vec![b'x'; limits::MAX_FLIGHT_BYTES + 1];
    rig.push(&[&[b"SET", b"k", &huge]], Form::Command);
    assert!(rig.send_in_steps(100_000).len() > limits::MAX_FLIGHT_BYTES);
    rig.reply(b"+OK\r\n");
    rig.assert_done();
}

#[test]
fn what_has_no_answer_is_sent_again_from_the_middle_of_a_run() {
    for step in [7, 30, 1000] {
        let mut rig = Rig::new();
        for key in [b"a", b"b", b"c", b"d"] {
            rig.set(key);
        }
        let third = rig.at - 2 * 27;
        let all = rig.send_in_steps(step);
        rig.reply(b"+OK\r\n+OK\r\n+O");
        rig.lose();
        assert_eq!(rig.writer.unanswered_from(), Some(Offset(third)));
        rig.connect();
        assert_eq!(rig.send(), all[2 * 27..]);
        let rejected = rejections(&rig.reply(b"+OK\r\n-ERR no\r\n"));
        assert!(rejected[0].0.again);
        assert_eq!(rejected[0].0.end, Offset(rig.at));
        rig.chunks.release(rejected[0].0.range.chunk);
        rig.assert_done();
    }
}

#[test]
fn a_run_sent_in_part_is_finished_before_anything_else_and_sent_whole_after_a_loss() {
    let mut rig = Rig::new();
    rig.set(b"a");
    rig.set(b"b");
    let first = rig.send_once(30).unwrap();
    rig.set(b"c");
    rig.reply(b"+OK\r\n");
    assert_eq!(first.len() + rig.send_once(1000).unwrap().len(), 3 * 27);
    rig.lose();
    rig.connect();
    assert_eq!(rig.send().len(), 2 * 27);
    rig.reply(b"+OK\r\n+OK\r\n");
    rig.assert_done();
}

#[test]
fn a_refused_command_within_a_run_is_found_and_what_passed_behind_it_is_told() {
    let mut rig = Rig::new();
    rig.set(b"a");
    let middle = rig.set(b"b");
    let last = rig.set(b"c");
    rig.send();
    let outcomes = rig.reply(b"+OK\r\n-MOVED 7 h:1\r\n+OK\r\n");
    let address = "h:1".to_owned();
    let rejected = rejections(&outcomes[..1]);
    assert_eq!(rejected, [(middle, ErrorKind::Moved { slot: 7, address })]);
    assert_eq!(rig.bytes(middle), rig.bytes(rejected[0].0));
    assert_eq!(outcomes[1..], [Outcome::Passed(last)]);
    rig.chunks.release(middle.range.chunk);
    rig.chunks.release(last.range.chunk);
    rig.assert_done();
    rig.set(b"d");
    rig.send();
    assert_eq!(
        rig.reply(b"+OK\r\n"),
        [],
        "sent after the refusal was known"
    );
}

#[test]
fn the_replies_that_are_due_are_counted_one_by_one() {
    let mut rig = Rig::new();
    assert_eq!(rig.writer.replies_due(), 0);
    let set: &[&[u8]] = &[b"SET", b"a", b"v"];
    rig.push(&[&[b"MULTI"], set, &[b"EXEC"]], Form::Transaction);
    for _ in 0..4 {
        rig.set(b"b");
    }
    rig.send();
    let mut due = 7;
    for reply in [
        "+OK\r\n",
        "+QUEUED\r\n",
        "*1\r\n+OK\r\n",
        "+OK\r\n",
        "-ERR\r\n",
        "+OK\r\n",
        "+OK\r\n",
    ] {
        assert_eq!(rig.writer.replies_due(), due);
        rig.reply(reply.as_bytes());
        due -= 1;
    }
    assert_eq!(rig.writer.replies_due(), 0);
    rig.lose();
    rig.writer.connected();
    assert_eq!(rig.writer.replies_due(), 1, "the greeting's");
}

#[test]
fn a_transaction_is_refused_as_one_with_the_first_cause() {
    let mut rig = Rig::new();
    let commands: &[&[&[u8]]] = &[&[b"MULTI"], &[b"SET", b"a", b"1"], &[b"EXEC"]];
    let unit = rig.push(commands, Form::Transaction);
    rig.send();
    let replies = b"+OK\r\n-MOVED 7 h:1\r\n-EXECABORT Transaction discarded\r\n";
    let rejected = rejections(&rig.reply(replies));
    assert_eq!(rejected[0].0, unit);
    assert!(matches!(rejected[0].1, ErrorKind::Moved { slot: 7, .. }));
    rig.chunks.release(unit.range.chunk);
    rig.assert_done();
}

#[test]
fn a_transaction_whose_exec_is_refused_is_not_saved_by_what_follows_it() {
    let mut rig = Rig::new();
    let commands: &[&[&[u8]]] = &[
        &[b"MULTI"],
        &[b"RPUSH", b"a", b"1"],
        &[b"EXEC"],
        &[b"PEXPIREAT", b"a", b"9"],
    ];
    let unit = rig.push(commands, Form::Transaction);
    rig.send();
    let rejected = rejections(&rig.reply(b"+OK\r\n-OOM x\r\n-EXECABORT x\r\n:0\r\n"));
    assert_eq!(rejected, [(unit, ErrorKind::OutOfMemory)]);
    rig.chunks.release(unit.range.chunk);
    rig.assert_done();
}

#[test]
fn a_failure_inside_exec_is_told_and_the_transaction_counts() {
    let mut rig = Rig::new();
    let commands: &[&[&[u8]]] = &[&[b"MULTI"], &[b"INCR", b"a"], &[b"EXEC"]];
    let unit = rig.push(commands, Form::Transaction);
    rig.send();
    let outcomes = rig.reply(b"+OK\r\n+QUEUED\r\n*1\r\n-WRONGTYPE x\r\n");
    let text = "WRONGTYPE x".to_owned();
    assert_eq!(
        outcomes,
        [Outcome::FailedInside {
            unit,
            behind: 0,
            text
        }]
    );
    rig.assert_done();
}

#[test]
fn a_question_travels_alone_and_its_reply_is_kept_however_it_is_cut() {
    let reply = b"*2\r\n$1\r\n0\r\n*1\r\n$3\r\na\nb\r\n";
    for step in 1..reply.len() {
        let mut rig = Rig::new();
        rig.set(b"a");
        rig.push(&[&[b"SCAN", b"0"]], Form::Question);
        rig.set(b"b");
        assert_eq!(rig.send().len(), 27);
        rig.reply(b"+OK\r\n");
        assert!(rig.send().starts_with(b"*2\r\n$4\r\nSCAN"));
        let mut outcomes = Vec::new();
        for part in reply.chunks(step) {
            outcomes.extend(rig.reply(part));
        }
        assert_eq!(outcomes, [Outcome::Answer(reply.to_vec())]);
        assert_eq!(rig.send().len(), 27);
        rig.reply(b"+OK\r\n");
        rig.assert_done();
    }
}

#[test]
fn replies_that_nobody_asked_for_end_the_connection() {
    let mut outcomes = Vec::new();
    for (step, replies) in [
        (0, &b"+OK\r\n"[..]),
        (0, b"-ERR x\r\n"),
        (20, b"+OK\r\n"),
        (20, b"-ERR x\r\n-ERR y\r\n"),
        (100, b"+OK\r\n+OK\r\n"),
    ] {
        let mut rig = Rig::new();
        rig.set(b"a");
        if step > 0 {
            rig.send_once(step);
        }
        let result = rig.writer.replies(replies, &mut rig.chunks, &mut outcomes);
        assert_eq!(result, Err(WriterError::Unasked), "{step}");
    }
}

#[test]
fn a_refused_greeting_ends_the_connection_but_a_refused_name_does_not() {
    for (text, serves) in [
        ("NOPERM no", true),
        ("ERR unknown command 'CLIENT'", true),
        ("NOAUTH Authentication required.", false),
        ("ERR max number of clients reached", false),
        ("LOADING wait", false),
    ] {
        let mut rig = Rig::new();
        rig.lose();
        rig.writer.connected();
        rig.send();
        let reply = format!("-{text}\r\n");
        let mut outcomes = Vec::new();
        let result = rig
            .writer
            .replies(reply.as_bytes(), &mut rig.chunks, &mut outcomes);
        assert_eq!(result.is_ok(), serves, "{text}");
        assert_eq!(rig.writer.is_greeted(), serves);
    }
}

#[test]
fn a_unit_from_an_earlier_offset_holds_the_acknowledged_one() {
    let mut rig = Rig::new();
    let late = rig.unit(&[&[b"SET", b"l", b"v"]], Form::Command);
    let first = rig.set(b"a");
    rig.set(b"b");
    rig.writer.push(&mut rig.chunks, late);
    assert_eq!(rig.writer.unanswered_from(), Some(late.begin));
    rig.send();
    rig.reply(b"+OK\r\n+OK\r\n");
    assert_eq!(rig.writer.unanswered_from(), Some(late.begin));
    let again = rig.unit(&[&[b"SET", b"x", b"v"]], Form::Command);
    rig.writer.push(&mut rig.chunks, again);
    rig.reply(b"+OK\r\n");
    assert_eq!(rig.writer.unanswered_from(), Some(again.begin));
    assert!(again.begin > first.begin);
    rig.send();
    rig.reply(b"+OK\r\n");
    rig.assert_done();
}

#[test]
fn what_was_given_up_is_finished_ahead_of_what_follows_and_means_nothing() {
    let mut rig = Rig::new();
    rig.set(b"a");
    rig.set(b"b");
    let begun = rig.send_once(30).unwrap();
    rig.push(&[&[b"SCAN", b"0"]], Form::Question);
    rig.writer.abandon(&mut rig.chunks);
    assert_eq!(rig.writer.unanswered_from(), None);
    let next = rig.set(b"n");
    assert_eq!(rig.writer.unanswered_from(), Some(next.begin));
    let rest = rig.send_once(24).unwrap();
    assert_eq!(begun.len() + rest.len(), 2 * 27);
    assert!(rig.reply(b"+OK\r\n-ERR x\r\n").is_empty());
    assert_eq!(rig.send().len(), 27);
    rig.reply(b"+OK\r\n");
    rig.assert_done();
}

#[test]
fn what_was_given_up_is_not_sent_again_after_a_loss() {
    let mut rig = Rig::new();
    rig.set(b"a");
    rig.send_once(10);
    rig.writer.abandon(&mut rig.chunks);
    rig.push(&[&[b"DEL", b"k"]], Form::Command);
    rig.lose();
    rig.connect();
    assert!(rig.send().starts_with(b"*2\r\n$3\r\nDEL"));
    rig.reply(b":1\r\n");
    rig.assert_done();
}

#[test]
fn withdrawn_units_come_back_in_order_with_their_holds() {
    let mut rig = Rig::new();
    rig.set(b"a");
    rig.set(b"b");
    rig.send();
    rig.set(b"c");
    rig.reply(b"+OK\r\n");
    let number = rig.writer.next_number();
    let units = rig.writer.withdraw(&mut rig.chunks);
    assert_eq!(units.iter().map(|unit| unit.frames).sum::<u32>(), 2);
    assert_eq!(
        units.iter().map(|unit| unit.again).collect::<Vec<_>>(),
        [true, false]
    );
    assert_eq!(rig.writer.answered_to(), number);
    for unit in units {
        rig.chunks.release(unit.range.chunk);
    }
    rig.assert_done();
}

#[test]
fn behind_asking_only_the_commands_own_reply_decides() {
    let mut rig = Rig::new();
    let commands: &[&[&[u8]]] = &[&[b"ASKING"], &[b"SET", b"a", b"1"]];
    for (replies, refused) in [
        (&b"+OK\r\n+OK\r\n"[..], false),
        (b"+OK\r\n-TRYAGAIN x\r\n", true),
    ] {
        let unit = Unit {
            asking: true,
            ..rig.unit(commands, Form::Command)
        };
        rig.writer.push(&mut rig.chunks, unit);
        rig.send();
        let rejected = rejections(&rig.reply(replies));
        assert_eq!(rejected.len(), usize::from(refused));
        for (unit, kind) in rejected {
            assert_eq!(kind, ErrorKind::TryAgain);
            assert!(unit.asking);
            rig.chunks.release(unit.range.chunk);
        }
    }
    rig.assert_done();
}
