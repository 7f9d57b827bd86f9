//! One target connection: the ledger, the window, the replies.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::run::{Form, Run, Unit};
use crate::chunk::{Chunks, Range};
use crate::fault::FaultKind;
use crate::limits;
use crate::position::Offset;
use crate::resp::{ErrorKind, ReplyError, ReplyScanner, ReplySink, push_command};

/// What is said first on every connection.
#[derive(Debug, Clone)]
pub struct Greeting {
    pub auth: Option<(Option<String>, String)>,
    /// Shown by `CLIENT LIST` on the target.
    pub name: String,
}

/// What replies have come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The connection serves us.
    Greeted,
    /// The target did not apply the unit. The receiver owns a hold on its chunk.
    Rejected {
        unit: Unit,
        kind: ErrorKind,
        text: String,
    },
    /// A command inside a transaction failed while the rest of it was applied, `behind` commands before the `EXEC`. The
    /// receiver owns no hold.
    FailedInside {
        unit: Unit,
        behind: usize,
        text: String,
    },
    /// The target applied the unit although it was on its way behind one that was refused. Only told then. The receiver
    /// owns a hold on its chunk.
    Passed(Unit),
    /// The reply of a question, as it came.
    Answer(Vec<u8>),
}

/// Why a connection to the target cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriterError {
    #[error("the target refused {command}: {text}")]
    Refused { command: &'static str, text: String },
    #[error("the target sent what is no reply: {0}")]
    Reply(#[from] ReplyError),
    #[error("the target sent more replies than it was sent commands")]
    Unasked,
}

/// Refusals of commands in a transaction that is not answered whole.
#[derive(Debug, Clone)]
struct Refusal {
    /// The first one.
    text: String,
    /// How many said `ASK`.
    asks: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    /// Connected; the greeting is under way.
    Greeting,
    Ready,
}

/// One target connection. See the module's documentation for its picture.
#[derive(Debug)]
pub struct Writer {
    greeting: Greeting,
    link: Link,
    /// Data may be sent; see [`Writer::clear`].
    cleared: bool,
    scanner: ReplyScanner,
    /// Greeting bytes not sent yet, and the commands whose replies are due.
    hello: Vec<u8>,
    hello_due: VecDeque<&'static str>,
    runs: VecDeque<Run>,
    /// Number of the front run since the start; a run's number never changes.
    front: u64,
    /// Number and begin of each run that begins before the one that it was pushed behind (redirected, or sent again),
    /// without those that a later one undercuts: rising. Together with the front they bound what is acknowledged.
    behind: VecDeque<(u64, Offset)>,
    /// How many runs are sent whole, and how much of the next.
    sent: usize,
    sent_bytes: usize,
    /// Runs below this number were pushed before the last refusal was known: what succeeds of them is told.
    watched_to: u64,
    flight_bytes: usize,
    flight_frames: u64,
    queued_bytes: usize,
    /// Runs at the front that were given up after they were sent: their replies are counted and mean nothing.
    void: usize,
    /// Why the open transaction of the front run will be refused.
    refused: Option<Refusal>,
    answer: Vec<u8>,
}

impl Writer {
    pub fn new(greeting: Greeting) -> Self {
        Self {
            greeting,
            link: Link::Down,
            cleared: false,
            scanner: ReplyScanner::default(),
            hello: Vec::new(),
            hello_due: VecDeque::new(),
            runs: VecDeque::new(),
            front: 0,
            behind: VecDeque::new(),
            sent: 0,
            sent_bytes: 0,
            watched_to: 0,
            flight_bytes: 0,
            flight_frames: 0,
            queued_bytes: 0,
            void: 0,
            refused: None,
            answer: Vec::new(),
        }
    }

    /// Takes a unit over, with one hold on its chunk.
    pub fn push(&mut self, chunks: &mut Chunks, unit: Unit) {
        self.queued_bytes += unit.range.len();
        if self.runs.len() > self.touched()
            && let Some(last) = self.runs.back_mut()
            && last.merge(&unit, limits::MAX_RUN_BYTES)
        {
            chunks.release(unit.range.chunk);
            return;
        }
        if let Some(last) = self.runs.back()
            && unit.begin < last.unit.begin
        {
            while self
                .behind
                .back()
                .is_some_and(|(_, begin)| *begin >= unit.begin)
            {
                self.behind.pop_back();
            }
            self.behind.push_back((self.next_number(), unit.begin));
        }
        self.runs.push_back(Run::new(unit));
    }

    /// Whether nothing is queued or on its way.
    pub fn is_idle(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether the connection has been greeted and serves us.
    pub fn is_greeted(&self) -> bool {
        self.link == Link::Ready
    }

    /// Data may be sent from now on, until the connection is lost: the owner has made sure that nobody else writes.
    pub fn clear(&mut self) {
        self.cleared = true;
    }

    /// Whether data is sent.
    pub fn is_ready(&self) -> bool {
        self.link == Link::Ready && self.cleared
    }

    /// How many runs there are.
    pub fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// What run number `place` from the front holds.
    pub fn unit_at(&self, place: usize) -> Unit {
        self.runs[place].unit
    }

    /// Puts `unit` in the place of a run, none of which may be sent.
    pub fn replace(&mut self, chunks: &mut Chunks, place: usize, unit: Unit) {
        assert!(place >= self.touched(), "what is on its way stays as it is");
        let former = std::mem::replace(&mut self.runs[place], Run::new(unit)).unit;
        self.queued_bytes = self.queued_bytes - former.range.len() + unit.range.len();
        chunks.release(former.range.chunk);
    }

    /// Bytes held: queued and on their way.
    pub fn held_bytes(&self) -> usize {
        self.queued_bytes + self.flight_bytes
    }

    /// The number that the next pushed unit's run will have at least: everything pushed so far is answered once
    /// [`Writer::answered_to`] has reached it.
    pub fn next_number(&self) -> u64 {
        self.front + self.runs.len() as u64
    }

    /// Every run below this number is answered.
    pub fn answered_to(&self) -> u64 {
        self.front
    }

    /// Everything before this offset that was pushed is answered; `None` if that is all.
    pub fn unanswered_from(&self) -> Option<Offset> {
        let front = self.runs.get(self.void)?.unit.begin;
        // Every other run begins no earlier than the one before it.
        let behind = self.behind.front().map_or(front, |(_, begin)| *begin);
        Some(front.min(behind))
    }

    /// What has no answer yet, runs of it as one; what was given up is not part of it.
    pub fn units(&self) -> impl Iterator<Item = Unit> {
        self.runs.range(self.void..).map(|run| run.unit)
    }

    /// Whether something was sent that has no answer yet.
    pub fn awaits(&self) -> bool {
        self.flight_frames > 0 || !self.hello_due.is_empty()
    }

    /// How many replies are due for what was sent, one sent in part included.
    pub fn replies_due(&self) -> u64 {
        let answered = self.runs.front().map_or(0, |run| run.answered);
        self.flight_frames - u64::from(answered) + self.hello_due.len() as u64
    }

    /// Starts on a new connection.
    pub fn connected(&mut self) {
        debug_assert!(self.link == Link::Down);
        self.link = Link::Greeting;
        self.scanner.reset();
        self.hello.clear();
        self.hello_due.clear();
        if let Some((user, password)) = &self.greeting.auth {
            match user {
                Some(user) => push_command(
                    &mut self.hello,
                    &[b"AUTH", user.as_bytes(), password.as_bytes()],
                ),
                None => push_command(&mut self.hello, &[b"AUTH", password.as_bytes()]),
            }
            self.hello_due.push_back("AUTH");
        }
        push_command(
            &mut self.hello,
            &[b"CLIENT", b"SETNAME", self.greeting.name.as_bytes()],
        );
        self.hello_due.push_back("CLIENT SETNAME");
        let database = self.runs.front().map_or(0, |run| run.unit.database);
        if database != 0 {
            push_command(
                &mut self.hello,
                &[b"SELECT", database.to_string().as_bytes()],
            );
            self.hello_due.push_back("SELECT");
        }
    }

    /// The connection is gone: everything without an answer is queued again.
    pub fn lost(&mut self, chunks: &mut Chunks) {
        self.link = Link::Down;
        self.cleared = false;
        self.scanner.reset();
        self.refused = None;
        self.watched_to = 0;
        self.answer.clear();
        for run in self.runs.drain(..self.void) {
            chunks.release(run.unit.range.chunk);
        }
        let touched = self.touched().saturating_sub(self.void);
        self.front += std::mem::take(&mut self.void) as u64;
        for run in self.runs.iter_mut().take(touched) {
            run.forget_answered(chunks);
            run.unit.again = true;
        }
        self.sent = 0;
        self.sent_bytes = 0;
        self.flight_bytes = 0;
        self.flight_frames = 0;
        self.queued_bytes = self.runs.iter().map(|run| run.unit.range.len()).sum();
    }

    /// Takes back everything without an answer, in order, each unit with its hold; the connection must be down.
    pub fn withdraw(&mut self, chunks: &mut Chunks) -> Vec<Unit> {
        self.lost(chunks);
        self.front += self.runs.len() as u64;
        self.queued_bytes = 0;
        self.behind.clear();
        self.runs.drain(..).map(|run| run.unit).collect()
    }

    /// Takes back everything that is queued, in order, each unit with its hold; nothing may be on its way.
    pub fn withdraw_queued(&mut self) -> Vec<Unit> {
        assert!(
            self.touched() == 0,
            "what is on its way cannot be taken back"
        );
        self.front += self.runs.len() as u64;
        self.queued_bytes = 0;
        self.behind.clear();
        self.runs.drain(..).map(|run| run.unit).collect()
    }

    /// Gives everything up. What is on its way stays on its way, so that what is pushed from now on reaches the target
    /// behind it; its replies mean nothing any more, and a lost connection does not send it again.
    pub fn abandon(&mut self, chunks: &mut Chunks) {
        self.void = self.touched();
        self.behind.clear();
        for run in self.runs.drain(self.void..) {
            chunks.release(run.unit.range.chunk);
        }
        self.queued_bytes = match self.sent_bytes {
            0 => 0,
            sent => self.runs[self.sent].unit.range.len() - sent,
        };
    }

    /// How many runs are sent, one sent in part included.
    fn touched(&self) -> usize {
        self.sent + usize::from(self.sent_bytes > 0)
    }

    /// Whether anything waits to be written.
    pub fn has_output(&self) -> bool {
        self.queued_bytes > 0 || !self.hello.is_empty()
    }

    /// Fills `pieces` with what should be written now, in order; gives how many. Nothing while answers are due
    /// and little has gathered: then the answers' arrival is the time to send.
    pub fn gather<'a>(
        &'a self,
        chunks: &'a Chunks,
        pieces: &mut [IoSlice<'a>; limits::MAX_PIECES],
    ) -> usize {
        if self.link == Link::Down {
            return 0;
        }
        if !self.hello.is_empty() {
            pieces[0] = IoSlice::new(&self.hello);
            return 1;
        }
        // Data goes out only to a target that has accepted us.
        if !self.is_ready() || self.queued_bytes == 0 {
            return 0;
        }
        let unfinished = self.sent_bytes > 0;
        if self.sent > 0 && self.awaits_answer() {
            return 0;
        }
        if self.flight_frames > 0 && self.queued_bytes < limits::BATCH_BYTES && !unfinished {
            return 0;
        }
        self.gather_runs(chunks, pieces)
    }

    fn gather_runs<'a>(
        &'a self,
        chunks: &'a Chunks,
        pieces: &mut [IoSlice<'a>; limits::MAX_PIECES],
    ) -> usize {
        let mut count = 0;
        let (mut bytes, mut frames) = (self.flight_bytes, self.flight_frames);
        let mut open: Option<Range> = None;
        let mut skip = self.sent_bytes;
        for run in self.runs.range(self.sent..) {
            // A question travels alone: its answer is then told from the replies around it.
            let question = run.unit.form == Form::Question;
            if question && (self.flight_frames > 0 || open.is_some()) && skip == 0 {
                break;
            }
            let mut range = run.unit.range;
            range.start += skip as u32;
            bytes += range.len();
            frames += u64::from(run.unit.frames);
            let over =
                bytes > limits::MAX_FLIGHT_BYTES || frames > limits::MAX_FLIGHT_FRAMES as u64;
            // One unit alone may be larger than the window; a begun one must be finished.
            if over && skip == 0 && (self.flight_frames > 0 || open.is_some()) {
                break;
            }
            skip = 0;
            match &mut open {
                Some(joined) if joined.chunk == range.chunk && joined.end == range.start => {
                    joined.end = range.end;
                }
                Some(full) => {
                    pieces[count] = IoSlice::new(chunks.get(*full));
                    count += 1;
                    open = (count < pieces.len()).then_some(range);
                    if open.is_none() {
                        break;
                    }
                }
                None => open = Some(range),
            }
            if question {
                break;
            }
        }
        if let Some(last) = open {
            pieces[count] = IoSlice::new(chunks.get(last));
            count += 1;
        }
        count
    }

    /// Counts `bytes` of what was gathered as written.
    pub fn transmitted(&mut self, mut bytes: usize) {
        if !self.hello.is_empty() {
            self.hello.drain(..bytes);
            return;
        }
        self.queued_bytes -= bytes;
        self.flight_bytes += bytes;
        while bytes > 0 {
            let run = &self.runs[self.sent];
            if self.sent_bytes == 0 {
                self.flight_frames += u64::from(run.unit.frames);
            }
            let left = run.unit.range.len() - self.sent_bytes;
            if bytes < left {
                self.sent_bytes += bytes;
                return;
            }
            bytes -= left;
            self.sent += 1;
            self.sent_bytes = 0;
        }
    }

    /// Takes received replies; appends what they came to.
    ///
    /// # Errors
    /// When the connection must be given up.
    pub fn replies(
        &mut self,
        bytes: &[u8],
        chunks: &mut Chunks,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), WriterError> {
        let mut scanner = std::mem::take(&mut self.scanner);
        let mut bytes = bytes;
        let mut result = Ok(());
        // A question's reply is kept whole, so it is fed line by line: only a handful are ever asked.
        while result.is_ok() && !bytes.is_empty() {
            let asked = self.awaits_answer();
            let part = match memchr::memchr(b'\n', bytes) {
                Some(end) if asked => &bytes[..=end],
                _ => bytes,
            };
            bytes = &bytes[part.len()..];
            if asked {
                self.answer.extend_from_slice(part);
            }
            let mut sink = Sink {
                writer: self,
                chunks,
                outcomes,
                error: None,
            };
            result = scanner.feed(part, &mut sink).map_err(WriterError::from);
            if let Some(error) = sink.error {
                result = Err(error);
            }
        }
        self.scanner = scanner;
        result
    }

    fn awaits_answer(&self) -> bool {
        self.link == Link::Ready
            && self
                .runs
                .front()
                .is_some_and(|run| run.unit.form == Form::Question)
    }

    /// The front run, and how many replies may come for what of it has been sent, if any may.
    fn awaited(&mut self) -> Option<(&mut Run, u32)> {
        if self.touched() == 0 {
            return None;
        }
        // The last command of a run that is sent in part is on its way at most in part.
        let unsent = u32::from(self.sent == 0);
        let run = self.runs.front_mut()?;
        let due = (run.unit.frames - run.answered).saturating_sub(unsent);
        (due > 0).then_some((run, due))
    }

    fn answered(
        &mut self,
        mut count: u64,
        chunks: &mut Chunks,
        outcomes: &mut Vec<Outcome>,
    ) -> bool {
        while count > 0 && self.link == Link::Greeting {
            self.hello_due.pop_front();
            count -= 1;
            if self.hello_due.is_empty() {
                self.link = Link::Ready;
                outcomes.push(Outcome::Greeted);
            }
        }
        while count > 0 {
            let void = self.void > 0;
            let refused = self.refused.is_some();
            let watched = self.front < self.watched_to;
            let Some((run, due)) = self.awaited() else {
                return false;
            };
            let mut now = u64::from(due).min(count);
            if watched && !void && run.is_plain() {
                let unit = run.unanswered(chunks);
                chunks.hold(unit.range.chunk);
                outcomes.push(Outcome::Passed(unit));
                now = 1;
            }
            run.answered += now as u32;
            count -= now;
            let (unit, whole) = (run.unit, run.answered == run.unit.frames);
            if watched
                && !void
                && whole
                && !refused
                && !run.is_plain()
                && unit.form != Form::Question
            {
                chunks.hold(unit.range.chunk);
                outcomes.push(Outcome::Passed(unit));
            }
            if unit.form == Form::Question {
                let answer = std::mem::take(&mut self.answer);
                if !void {
                    outcomes.push(Outcome::Answer(answer));
                }
            } else if unit.form == Form::Transaction && whole && refused && !void {
                // What follows the `EXEC` succeeded, but the transaction itself did not.
                let text = verdict(unit, self.refused.take(), String::new());
                chunks.hold(unit.range.chunk);
                self.reject(unit, text, outcomes);
            }
            self.settle(chunks);
        }
        true
    }

    /// Takes the front run off if it is answered whole.
    fn settle(&mut self, chunks: &mut Chunks) {
        let Some(run) = self.runs.front() else { return };
        if run.answered < run.unit.frames || self.sent == 0 {
            return;
        }
        self.flight_frames -= u64::from(run.unit.frames);
        self.flight_bytes -= run.unit.range.len();
        chunks.release(run.unit.range.chunk);
        self.runs.pop_front();
        if self
            .behind
            .front()
            .is_some_and(|(number, _)| *number == self.front)
        {
            self.behind.pop_front();
        }
        self.front += 1;
        self.sent -= 1;
        self.void = self.void.saturating_sub(1);
        self.refused = None;
    }

    fn refused(
        &mut self,
        text: &[u8],
        behind: Option<usize>,
        chunks: &mut Chunks,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), WriterError> {
        let text = String::from_utf8_lossy(text).into_owned();
        if self.link == Link::Greeting {
            let command = self.hello_due.front().copied().unwrap_or("the greeting");
            // Without permission to name itself a connection still works.
            if command == "CLIENT SETNAME" && is_about_the_command(&text) {
                self.answered(1, chunks, outcomes);
                return Ok(());
            }
            return Err(WriterError::Refused { command, text });
        }
        if behind.is_some() && (self.void > 0 || self.awaits_answer()) {
            return Ok(());
        }
        if self.void > 0 || self.awaits_answer() {
            return match self.answered(1, chunks, outcomes) {
                true => Ok(()),
                false => Err(WriterError::Unasked),
            };
        }
        let transaction_refusal = self.refused.clone();
        let Some((run, _)) = self.awaited() else {
            return Err(WriterError::Unasked);
        };
        if let Some(behind) = behind {
            let unit = run.unit;
            outcomes.push(Outcome::FailedInside { unit, behind, text });
            return Ok(());
        }
        let last = run.answered + 1 == run.unit.frames;
        if !run.is_plain() && !last {
            // A refusal while the transaction is being queued (or of ASKING): the reply of the last command decides.
            run.answered += 1;
            let asks = matches!(ErrorKind::of(text.as_bytes()), ErrorKind::Ask { .. });
            let refusal = self.refused.get_or_insert(Refusal { text, asks: 0 });
            refusal.asks += u32::from(asks);
            return Ok(());
        }
        let unit = run.unanswered(chunks);
        let text = verdict(unit, transaction_refusal, text);
        chunks.hold(unit.range.chunk);
        run.answered += 1;
        self.reject(unit, text, outcomes);
        self.settle(chunks);
        Ok(())
    }

    fn reject(&mut self, unit: Unit, text: String, outcomes: &mut Vec<Outcome>) {
        let kind = ErrorKind::of(text.as_bytes());
        if kind.passes() {
            self.watched_to = self.next_number();
        }
        outcomes.push(Outcome::Rejected { unit, kind, text });
    }
}

/// Why a unit was refused whole, `last` being the last reply.
///
/// A transaction follows a slot on its way only when none of its keys is left where it came from: the importing master
/// would take a key that it lacks for one that does not exist.
fn verdict(unit: Unit, inside: Option<Refusal>, last: String) -> String {
    if unit.form != Form::Transaction {
        return last;
    }
    let commands = unit.frames - 2 - u32::from(unit.asking);
    let (text, asks) = match inside {
        Some(refusal) if aborts(&last) => (refusal.text, refusal.asks),
        _ => (last, 0),
    };
    match ErrorKind::of(text.as_bytes()) {
        ErrorKind::Ask { .. } if asks < commands => format!("TRYAGAIN for {text}"),
        _ => text,
    }
}

/// Whether the reply to an `EXEC` says no more than what was said of the commands before it.
fn aborts(reply: &str) -> bool {
    reply.is_empty() || ErrorKind::of(reply.as_bytes()) == ErrorKind::ExecAbort
}

/// Whether a refusal concerns one command and not the connection as such.
fn is_about_the_command(text: &str) -> bool {
    match FaultKind::of_reply(text) {
        FaultKind::NoPermission => true,
        FaultKind::Refused => !text.starts_with("DENIED"),
        _ => false,
    }
}

struct Sink<'a> {
    writer: &'a mut Writer,
    chunks: &'a mut Chunks,
    outcomes: &'a mut Vec<Outcome>,
    error: Option<WriterError>,
}

impl ReplySink for Sink<'_> {
    fn succeeded(&mut self, count: u64) {
        if self.error.is_none() && !self.writer.answered(count, self.chunks, self.outcomes) {
            self.error = Some(WriterError::Unasked);
        }
    }

    fn failed(&mut self, text: &[u8], behind: Option<usize>) {
        if self.error.is_none()
            && let Err(error) = self
                .writer
                .refused(text, behind, self.chunks, self.outcomes)
        {
            self.error = Some(error);
        }
    }
}
