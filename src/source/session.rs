//! The handshake as a state machine over received bytes.

use std::collections::VecDeque;

use crate::limits;
use crate::position::{Offset, Position, ReplicationId};
use crate::resp::{Encoder, push_command};

/// What we tell the source about us, and where we want to go on.
#[derive(Debug, Clone)]
pub struct Greeting {
    /// User (ACL, Redis 6.0 and later) and password.
    pub auth: Option<(Option<String>, String)>,
    /// Shown as `port` in the source's `INFO replication`; nothing connects to it.
    pub listening_port: u16,
    /// Where the stream was left: everything up to this position has been received.
    pub resume: Option<Position>,
    /// The node that should be there, by its id in a cluster. Addresses change hands: what another node has would replace all
    /// that came from this one.
    pub node_id: Option<String>,
}

/// How the end of a snapshot is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Disk-based: so many bytes.
    Length(u64),
    /// Diskless: these bytes follow it.
    Mark([u8; 40]),
}

/// What the handshake has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// More bytes are needed.
    More,
    /// A full resync: a snapshot taken at this position will come.
    FullResync(Position),
    /// The snapshot's first byte is next.
    Snapshot(Framing),
    /// A partial resync: the stream's next byte is next.
    Continue(Continued),
}

/// Where a partial resync goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continued {
    /// The name of the history from here on, if it was told.
    pub id: Option<ReplicationId>,
    /// The offset that comes next. Below the one that was asked for, the source had lost what came after it.
    pub from: Offset,
    /// The last offset that the history we knew and the source's present one have in common, if these differ.
    pub shared_until: Option<Offset>,
}

/// Why the source does not serve us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It will serve us later: it is failing over, or waits for its own master. Other passing refusals are told by the
    /// first word of `Refused`.
    #[error("the source is not ready: {0}")]
    NotReady(String),
    /// The address has changed hands.
    #[error("another node listens there by now: {0}")]
    OtherNode(String),
    #[error("the source refused {command}: {text}")]
    Refused { command: &'static str, text: String },
    #[error("the source answered {command} with something that no server sends: {text}")]
    Protocol { command: &'static str, text: String },
}

#[derive(Debug)]
enum State {
    /// Replies of the greeting still to come, by the command they answer.
    Greeting(VecDeque<&'static str>),
    /// `INFO replication` is to be answered.
    Info,
    /// So many bytes of the answer, the line's end included, are to come.
    InfoText(usize),
    Psync,
    AwaitSnapshot,
    Done,
}

/// One connection's handshake.
#[derive(Debug)]
pub struct Session {
    state: State,
    resume: Option<Position>,
    node_id: Option<String>,
    shared_until: Option<Offset>,
}

/// A reply that takes two lines, the second of which is the id.
const WHO: &str = "CLUSTER MYID";
const WHO_TEXT: &str = "the id";

impl Session {
    /// Starts the handshake; what to send first is appended to `out`.
    pub fn start(greeting: &Greeting, out: &mut Vec<u8>) -> Self {
        let mut awaited = VecDeque::new();
        if let Some((user, password)) = &greeting.auth {
            match user {
                Some(user) => push_command(out, &[b"AUTH", user.as_bytes(), password.as_bytes()]),
                None => push_command(out, &[b"AUTH", password.as_bytes()]),
            }
            awaited.push_back("AUTH");
        }
        push_command(out, &[b"PING"]);
        awaited.push_back("PING");
        if greeting.node_id.is_some() {
            push_command(out, &[b"CLUSTER", b"MYID"]);
            awaited.push_back(WHO);
        }
        Encoder::begin(out, 3)
            .arg(b"REPLCONF")
            .arg(b"listening-port")
            .number(u64::from(greeting.listening_port));
        awaited.push_back("REPLCONF");
        push_command(out, &[b"REPLCONF", b"capa", b"eof", b"capa", b"psync2"]);
        awaited.push_back("REPLCONF");
        // Valkey 9 sends a snapshot of Redis' format 11 to replicas that do not tell their version, and fails when it
        // has data that this format cannot hold. Others answer an error, which does no harm.
        push_command(out, &[b"REPLCONF", b"version", b"9.0.0"]);
        awaited.push_back("REPLCONF");
        Self {
            state: State::Greeting(awaited),
            resume: greeting.resume,
            node_id: greeting.node_id.clone(),
            shared_until: None,
        }
    }

    /// Takes received bytes up to the next event; gives how many it used.
    ///
    /// # Errors
    /// When the source refuses us or talks nonsense; the connection is useless then.
    pub fn handle(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Event), SourceError> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            if let State::InfoText(length) = self.state {
                let Some(text) = rest.get(..length) else {
                    return Ok((used, Event::More));
                };
                self.hear_info(&String::from_utf8_lossy(text));
                self.send_psync(out);
                used += length;
                continue;
            }
            // Keepalives: bare newlines while the source prepares.
            if rest.first() == Some(&b'\n') {
                used += 1;
                continue;
            }
            let Some(end) = memchr::memchr(b'\n', rest) else {
                if rest.len() >= limits::MAX_REPLY_LINE {
                    return Err(self.protocol(&rest[..80]));
                }
                return Ok((used, Event::More));
            };
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            used += end + 1;
            match self.line(line, out)? {
                Event::More => {}
                event => return Ok((used, event)),
            }
        }
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> Result<Event, SourceError> {
        match &mut self.state {
            State::Greeting(awaited) => {
                let command = awaited
                    .pop_front()
                    .expect("left when the last was answered");
                match command {
                    WHO if parse_framing(line).is_some() => awaited.push_front(WHO_TEXT),
                    WHO if line.first() == Some(&b'-') => check_membership(line)?,
                    WHO_TEXT => check_id(self.node_id.as_deref(), line)?,
                    _ => check_greeting_reply(command, line)?,
                }
                let last = awaited.is_empty();
                if last && self.resume.is_some() {
                    push_command(out, &[b"INFO", b"replication"]);
                    self.state = State::Info;
                } else if last {
                    self.send_psync(out);
                }
                Ok(Event::More)
            }
            State::Info => {
                match parse_framing(line) {
                    Some(Framing::Length(length)) if length < limits::MAX_REPLY_LINE as u64 => {
                        self.state = State::InfoText(length as usize + 2);
                    }
                    // Without permission to ask, `PSYNC` itself tells whether the source goes on.
                    _ if line.first() == Some(&b'-') => self.send_psync(out),
                    _ => return Err(self.protocol(line)),
                }
                Ok(Event::More)
            }
            State::InfoText(_) => unreachable!("taken whole, not by lines"),
            State::Psync => self.psync_reply(line),
            State::AwaitSnapshot => {
                let framing = parse_framing(line).ok_or_else(|| self.protocol(line))?;
                self.state = State::Done;
                Ok(Event::Snapshot(framing))
            }
            State::Done => unreachable!("the lane reads the stream itself"),
        }
    }

    /// A reader that is ahead of a node which was promoted, or which was restarted from its own snapshot, gets a snapshot
    /// for the offset that it is at, but a partial resync for the last one that both have.
    fn hear_info(&mut self, info: &str) {
        let field = |name: &str| {
            let mut lines = info.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        };
        let Some(resume) = &mut self.resume else {
            return;
        };
        if field("master_replid2") != Some(resume.id.as_str())
            || field("master_replid") == Some(resume.id.as_str())
        {
            return;
        }
        // `second_repl_offset` is the first one that the former history does not have.
        let second = field("second_repl_offset").and_then(|text| text.parse::<u64>().ok());
        if let Some(shared) = second.and_then(|second| second.checked_sub(1)) {
            self.shared_until = Some(Offset(shared));
            resume.offset = resume.offset.min(Offset(shared));
        }
    }

    fn send_psync(&mut self, out: &mut Vec<u8>) {
        match self.resume {
            Some(Position { id, offset }) => {
                Encoder::begin(out, 3)
                    .arg(b"PSYNC")
                    .arg(id.as_str().as_bytes())
                    .number(offset.0 + 1);
            }
            None => push_command(out, &[b"PSYNC", b"?", b"-1"]),
        }
        self.state = State::Psync;
    }

    fn psync_reply(&mut self, line: &[u8]) -> Result<Event, SourceError> {
        if line.first() == Some(&b'-') {
            return Err(refusal("PSYNC", line));
        }
        let mut words = line.split(|&byte| byte == b' ');
        match words.next() {
            Some(b"+FULLRESYNC") => {
                let id = words.next().and_then(ReplicationId::parse);
                let offset = words
                    .next()
                    .and_then(|word| std::str::from_utf8(word).ok()?.parse::<i64>().ok())
                    .and_then(|offset| u64::try_from(offset).ok());
                let (Some(id), Some(offset)) = (id, offset) else {
                    return Err(self.protocol(line));
                };
                self.state = State::AwaitSnapshot;
                Ok(Event::FullResync(Position {
                    id,
                    offset: Offset(offset),
                }))
            }
            Some(b"+CONTINUE") => {
                let Some(resume) = self.resume else {
                    return Err(self.protocol(line));
                };
                self.state = State::Done;
                Ok(Event::Continue(Continued {
                    id: words.next().and_then(ReplicationId::parse),
                    from: resume.offset,
                    shared_until: self.shared_until,
                }))
            }
            _ => Err(self.protocol(line)),
        }
    }

    fn protocol(&self, line: &[u8]) -> SourceError {
        let command = match self.state {
            State::Greeting(_) => "the greeting",
            State::Info | State::InfoText(_) => "INFO",
            _ => "PSYNC",
        };
        SourceError::Protocol {
            command,
            text: line.escape_ascii().to_string(),
        }
    }
}

fn check_greeting_reply(command: &'static str, line: &[u8]) -> Result<(), SourceError> {
    match line.first() {
        Some(b'+') => Ok(()),
        Some(b'-') => {
            // An option that this server does not know is an error that does no harm.
            if command == "REPLCONF" && line.starts_with(b"-ERR") {
                return Ok(());
            }
            Err(refusal(command, line))
        }
        _ => Err(SourceError::Protocol {
            command,
            text: line.escape_ascii().to_string(),
        }),
    }
}

/// Who may not ask goes on without knowing.
fn check_membership(error: &[u8]) -> Result<(), SourceError> {
    let text = String::from_utf8_lossy(&error[1..]);
    match text.contains("cluster support disabled") {
        true => Err(SourceError::OtherNode(text.into_owned())),
        false => Ok(()),
    }
}

fn check_id(expected: Option<&str>, line: &[u8]) -> Result<(), SourceError> {
    match expected {
        Some(id) if id.as_bytes() != line => {
            Err(SourceError::OtherNode(line.escape_ascii().to_string()))
        }
        _ => Ok(()),
    }
}

fn refusal(command: &'static str, line: &[u8]) -> SourceError {
    let text = String::from_utf8_lossy(&line[1..]).into_owned();
    // `-ERR Can't SYNC while failing over`, `... while not connected with my master`.
    if text.starts_with("ERR") && text.contains("SYNC while") {
        return SourceError::NotReady(text);
    }
    SourceError::Refused { command, text }
}

fn parse_framing(line: &[u8]) -> Option<Framing> {
    let rest = line.strip_prefix(b"$")?;
    if let Some(mark) = rest.strip_prefix(b"EOF:") {
        return Some(Framing::Mark(mark.try_into().ok()?));
    }
    let length = std::str::from_utf8(rest).ok()?.parse().ok()?;
    Some(Framing::Length(length))
}

/// Appends `REPLCONF ACK`: the target has everything up to `applied`.
///
/// Sent every second and when asked, also during a snapshot: a diskless source starts the stream only at an ACK,
/// and loses one that comes too early; any source drops a replica that is silent for `repl-timeout`.
pub fn acknowledgement(applied: Offset, out: &mut Vec<u8>) {
    Encoder::begin(out, 3)
        .arg(b"REPLCONF")
        .arg(b"ACK")
        .number(applied.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    fn greeting(resume: Option<Position>) -> Greeting {
        Greeting {
            auth: None,
            listening_port: 7,
            resume,
            node_id: None,
        }
    }

    fn position(offset: u64) -> Position {
        Position {
            id: ReplicationId::parse(ID.as_bytes()).unwrap(),
            offset: Offset(offset),
        }
    }

    /// Feeds everything in pieces of `step`; gives the events and what is left of the input.
    fn run(
        session: &mut Session,
        input: &[u8],
        step: usize,
    ) -> Result<(Vec<Event>, usize), SourceError> {
        let (mut out, mut events, mut used, mut end) = (Vec::new(), Vec::new(), 0, 0);
        loop {
            let (took, event) = session.handle(&input[used..end], &mut out)?;
            used += took;
            match event {
                Event::More if end == input.len() => break,
                Event::More => end = (end + step).min(input.len()),
                Event::Snapshot(_) | Event::Continue(_) => {
                    events.push(event);
                    break;
                }
                event => events.push(event),
            }
        }
        Ok((events, input.len() - used))
    }

    #[test]
    fn a_full_resync_leads_to_the_first_byte_of_the_snapshot() {
        let text = format!(
            "+PONG\r\n+OK\r\n+OK\r\n-ERR Unrecognized REPLCONF option\r\n\n\n+FULLRESYNC {ID} 42\r\n\n\n$176\r\nREDIS"
        );
        for step in 1..text.len() {
            let mut session = Session::start(&greeting(None), &mut Vec::new());
            let (events, _) = run(&mut session, text.as_bytes(), step).unwrap();
            assert_eq!(
                events,
                [
                    Event::FullResync(position(42)),
                    Event::Snapshot(Framing::Length(176))
                ]
            );
        }
    }

    #[test]
    fn a_partial_resync_asks_for_the_byte_after_the_last_received() {
        let mut out = Vec::new();
        let mut session = Session::start(&greeting(Some(position(99))), &mut out);
        out.clear();
        let info = format!("role:master\r\nmaster_replid:{ID}\r\n");
        let greeted = format!(
            "+PONG\r\n+OK\r\n+OK\r\n+OK\r\n${}\r\n{info}\r\n",
            info.len()
        );
        assert_eq!(
            session.handle(greeted.as_bytes(), &mut out).unwrap(),
            (greeted.len(), Event::More)
        );
        assert!(out.ends_with(format!("{ID}\r\n$3\r\n100\r\n").as_bytes()));
        let reply = format!("+CONTINUE {ID}\r\n*1\r\n");
        let (used, event) = session.handle(reply.as_bytes(), &mut out).unwrap();
        let continued = Continued {
            id: Some(position(0).id),
            from: Offset(99),
            shared_until: None,
        };
        assert_eq!(event, Event::Continue(continued));
        assert_eq!(&reply[used..], "*1\r\n");
    }

    /// What is asked for at a promoted node whose history is `new`, and what comes of it.
    fn resumed(info: &str, offset: u64) -> (String, Continued) {
        let mut out = Vec::new();
        let mut session = Session::start(&greeting(Some(position(offset))), &mut out);
        let greeted = format!(
            "+PONG\r\n+OK\r\n+OK\r\n+OK\r\n${}\r\n{info}\r\n",
            info.len()
        );
        // In pieces, as it may come.
        let mut used = 0;
        for end in 1..=greeted.len() {
            let (took, event) = session
                .handle(&greeted.as_bytes()[used..end], &mut out)
                .unwrap();
            assert_eq!(event, Event::More);
            used += took;
        }
        let asked = String::from_utf8(out).unwrap();
        let asked = asked.rsplit("\r\n").nth(1).unwrap().to_owned();
        match session.handle(b"+CONTINUE\r\n", &mut Vec::new()).unwrap() {
            (_, Event::Continue(continued)) => (asked, continued),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_reader_ahead_of_a_promoted_node_goes_back_to_what_both_have() {
        let other = "f".repeat(40);
        let promoted = |second: u64| {
            format!(
                "master_replid:{other}\r\nmaster_replid2:{ID}\r\nsecond_repl_offset:{second}\r\n"
            )
        };
        let (asked, continued) = resumed(&promoted(91), 99);
        assert_eq!((asked.as_str(), continued.from), ("91", Offset(90)));
        assert_eq!(continued.shared_until, Some(Offset(90)));
        let (asked, continued) = resumed(&promoted(200), 99);
        assert_eq!((asked.as_str(), continued.from), ("100", Offset(99)));
        assert_eq!(continued.shared_until, Some(Offset(199)));
        let same =
            format!("master_replid:{ID}\r\nmaster_replid2:{ID}\r\nsecond_repl_offset:91\r\n");
        for info in [same, "role:master\r\n".into(), promoted(0), String::new()] {
            let (asked, continued) = resumed(&info, 99);
            assert_eq!(
                (asked.as_str(), continued.shared_until),
                ("100", None),
                "{info}"
            );
        }
    }

    #[test]
    fn a_node_that_is_another_one_is_not_followed() {
        let expecting = || Greeting {
            node_id: Some(ID.into()),
            ..greeting(None)
        };
        let heard = |text: &str| {
            let text = format!("+PONG\r\n{text}+OK\r\n+OK\r\n+OK\r\n+FULLRESYNC {ID} 42\r\n");
            let results = [1, 1000].map(|step| {
                let mut session = Session::start(&expecting(), &mut Vec::new());
                run(&mut session, text.as_bytes(), step).map(|(events, _)| events)
            });
            assert_eq!(results[0], results[1]);
            let [result, _] = results;
            result
        };
        let resync = Ok(vec![Event::FullResync(position(42))]);
        assert_eq!(heard(&format!("$40\r\n{ID}\r\n")), resync);
        assert_eq!(heard("-NOPERM this user has no permissions\r\n"), resync);
        let other = "f".repeat(40);
        let refused = Err(SourceError::OtherNode(other.clone()));
        assert_eq!(heard(&format!("$40\r\n{other}\r\n")), refused);
        let single = "ERR This instance has cluster support disabled";
        let refused = Err(SourceError::OtherNode(single.into()));
        assert_eq!(heard(&format!("-{single}\r\n")), refused);
    }

    #[test]
    fn a_diskless_snapshot_names_its_end_mark() {
        let mark = "f".repeat(40);
        let text = format!("+PONG\r\n+OK\r\n+OK\r\n+OK\r\n+FULLRESYNC {ID} 1\r\n$EOF:{mark}\r\n");
        let mut session = Session::start(&greeting(None), &mut Vec::new());
        let (events, left) = run(&mut session, text.as_bytes(), 7).unwrap();
        assert_eq!(left, 0);
        assert_eq!(events[1], Event::Snapshot(Framing::Mark([b'f'; 40])));
    }

    #[test]
    fn each_refusal_is_told_apart() {
        let refused = |text: &str| {
            let mut session = Session::start(&greeting(None), &mut Vec::new());
            run(&mut session, text.as_bytes(), 1000).unwrap_err()
        };
        assert!(matches!(
            refused("-NOAUTH Authentication required.\r\n"),
            SourceError::Refused {
                command: "PING",
                ..
            }
        ));
        let greeted = "+PONG\r\n+OK\r\n+OK\r\n+OK\r\n";
        assert!(matches!(
            refused(&format!("{greeted}-NOPERM this user\r\n")),
            SourceError::Refused {
                command: "PSYNC",
                ..
            }
        ));
        assert!(matches!(
            refused(&format!("{greeted}-ERR Can't SYNC while failing over\r\n")),
            SourceError::NotReady(_)
        ));
        assert!(matches!(
            refused("HTTP/1.1 400\r\n"),
            SourceError::Protocol { .. }
        ));
        // Without an offset of ours there is nothing to continue.
        assert!(matches!(
            refused(&format!("{greeted}+CONTINUE\r\n")),
            SourceError::Protocol { .. }
        ));
    }
}
