//! The simulated source master: its data, its stream, and what it says to a replica.
//!
//! ```text
//! log   [ lost from the backlog | backlog                    ]
//!       first                   ^ backlog_start              ^ offset
//! ```
//!
//! A connection is served as `replication.c` of the servers does: greeting, `PSYNC`, `+CONTINUE` where the offset is in
//! the backlog, else a snapshot of the moment, keepalive newlines before it, and the stream behind it.

use crate::model::{Bytes, Key, Store, decode, encode, hash, show, verb};
use crate::rdb;
use crate::rng::Rng;
use crate::tracker::Tracker;
use slotstream::position::ReplicationId;

pub struct Source {
    pub store: Store,
    pub replid: String,
    /// The history before this one, and up to where it is the same.
    former: Option<(String, u64)>,
    /// How many there were before this one.
    histories: u64,
    /// The stream from offset `first` on.
    log: Bytes,
    first: u64,
    pub backlog_start: u64,
    /// The database that the stream has selected; none where the next command must select it.
    selected: Option<u32>,
    pub password: Option<String>,
    pub diskless: bool,
    pub full_syncs: u32,
    pub partial_syncs: u32,
    /// The highest offset that a replica acknowledged.
    pub acked: u64,
    pub acks: u32,
    pub snapshot_delay_ms: u64,
}

/// A replica that has seen nothing since it was saved.
pub struct Replica {
    store: Store,
    replid: String,
    offset: u64,
}

impl Replica {
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// One replica connection, as the server sees it.
pub struct Session {
    input: Bytes,
    authenticated: bool,
    stage: Stage,
    /// Bytes to be sent before the stream: replies, snapshot.
    pub output: Bytes,
}

enum Stage {
    Greeting,
    /// The snapshot is being made.
    Saving {
        ready_at_ms: u64,
        newline_at_ms: u64,
        snapshot: Bytes,
        at: u64,
    },
    /// The snapshot is sent, the stream waits for an acknowledgement (diskless).
    Waiting {
        at: u64,
    },
    Streaming {
        sent: u64,
    },
}

impl Session {
    /// Whether it goes on with the stream, whatever of a snapshot is still to be sent.
    pub fn is_streaming(&self) -> bool {
        matches!(self.stage, Stage::Waiting { .. } | Stage::Streaming { .. })
    }
}

impl Source {
    pub fn new(first: u64) -> Self {
        Self {
            store: Store::default(),
            replid: replid(first << 44 | 1),
            former: None,
            histories: 0,
            log: Vec::new(),
            first,
            backlog_start: first,
            selected: None,
            password: None,
            diskless: false,
            full_syncs: 0,
            partial_syncs: 0,
            acked: 0,
            acks: 0,
            snapshot_delay_ms: 0,
        }
    }

    /// The stream's offset: how many bytes were ever written to it.
    pub fn offset(&self) -> u64 {
        self.first + self.log.len() as u64
    }

    /// Executes a write and puts it into the stream.
    pub fn write(&mut self, tracker: &mut Tracker, database: u32, args: &[Bytes]) {
        self.select(database);
        let flush = matches!(verb(args).as_str(), "FLUSHALL" | "FLUSHDB");
        let doomed: Vec<Key> = match flush {
            true => self.store.keys.keys().cloned().collect(),
            false => Vec::new(),
        };
        let reply = self.store.execute(database, args);
        assert!(
            !reply.is_error(),
            "the workload sends what works: {} -> {reply:?}",
            show(args)
        );
        let begin = self.offset();
        self.log.extend_from_slice(&encode(args));
        let end = self.offset();
        tracker.wrote(database, args, begin, end);
        let gone = doomed
            .into_iter()
            .filter(|key| !self.store.keys.contains_key(key));
        tracker.flushed(gone, begin, end);
    }

    /// Keys that have ended are removed, and replicas hear of it by a command.
    pub fn expire(&mut self, tracker: &mut Tracker, now_ms: u64) {
        for (database, key) in self.store.expire(now_ms) {
            self.write(tracker, database, &[b"DEL".to_vec(), key]);
        }
    }

    /// Puts a command without data into the stream.
    pub fn say(&mut self, words: &[&str]) {
        let args: Vec<Bytes> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        self.log.extend_from_slice(&encode(&args));
    }

    pub fn select(&mut self, database: u32) {
        if self.selected != Some(database) {
            self.selected = Some(database);
            self.say(&["SELECT", &database.to_string()]);
        }
    }

    /// Keeps only the last `bytes` of the stream for partial resyncs.
    pub fn shrink_backlog(&mut self, bytes: u64) {
        self.backlog_start = self.backlog_start.max(self.offset().saturating_sub(bytes));
    }

    /// Another node has taken over, with the same data and a history of a new name.
    pub fn rename_history(&mut self) {
        self.histories += 1;
        let next = replid(self.first << 44 | self.histories << 32 | self.offset());
        self.former = Some((std::mem::replace(&mut self.replid, next), self.offset()));
        // A promoted node has selected nothing yet.
        self.selected = None;
    }

    /// The names of its history, the present one first.
    pub fn histories(&self) -> Vec<ReplicationId> {
        let former = self.former.iter().map(|(id, _)| id);
        let ids = std::iter::once(&self.replid).chain(former);
        let ids = ids.map(|id| ReplicationId::parse(id.as_bytes()).expect("valid"));
        ids.collect()
    }

    /// What a replica has at this moment.
    pub fn save(&self) -> Replica {
        Replica {
            store: self.store.clone(),
            replid: self.replid.clone(),
            offset: self.offset(),
        }
    }

    /// Whether what a replica has is of the present history.
    pub fn has_been_at(&self, replica: &Replica) -> bool {
        replica.replid == self.replid
    }

    /// A replica takes over that lacks whatever was written since.
    pub fn promote(&mut self, replica: Replica, tracker: &mut Tracker) {
        self.log.truncate((replica.offset - self.first) as usize);
        self.backlog_start = self.backlog_start.min(replica.offset);
        self.acked = 0;
        self.store = replica.store;
        tracker.source_lost(self.replid.clone(), replica.offset);
        self.rename_history();
    }

    pub fn accept(&self) -> Session {
        Session {
            input: Vec::new(),
            authenticated: self.password.is_none(),
            stage: Stage::Greeting,
            output: Vec::new(),
        }
    }

    /// Takes received bytes of one connection, and lets it do what is due.
    pub fn serve(
        &mut self,
        session: &mut Session,
        received: &[u8],
        tracker: &mut Tracker,
        rng: &mut Rng,
        now_ms: u64,
    ) {
        session.input.extend_from_slice(received);
        while let Some((args, length)) = decode(&session.input) {
            session.input.drain(..length);
            self.hear(session, &args, tracker, rng, now_ms);
        }
        match &mut session.stage {
            Stage::Saving {
                ready_at_ms,
                newline_at_ms,
                snapshot,
                at,
            } => {
                if now_ms >= *ready_at_ms {
                    let at = *at;
                    self.frame(&mut session.output, snapshot, rng);
                    session.stage = match self.diskless {
                        true => Stage::Waiting { at },
                        false => Stage::Streaming { sent: at },
                    };
                } else if now_ms >= *newline_at_ms {
                    *newline_at_ms = now_ms + 20;
                    session.output.push(b'\n');
                }
            }
            Stage::Streaming { sent } if session.output.is_empty() => {
                let from = (*sent - self.first) as usize;
                let most = (self.log.len() - from).min(256 * 1024);
                session
                    .output
                    .extend_from_slice(&self.log[from..from + most]);
                *sent += most as u64;
            }
            _ => {}
        }
    }

    fn hear(
        &mut self,
        session: &mut Session,
        args: &[Bytes],
        tracker: &mut Tracker,
        rng: &mut Rng,
        now_ms: u64,
    ) {
        let out = &mut session.output;
        match verb(args).as_str() {
            "AUTH" => {
                let right = self.password.as_deref().map(str::as_bytes);
                session.authenticated = args.last().map(Vec::as_slice) == right;
                assert!(session.authenticated, "the lane knows the password");
                out.extend_from_slice(b"+OK\r\n");
            }
            _ if !session.authenticated => {
                out.extend_from_slice(b"-NOAUTH Authentication required.\r\n")
            }
            "PING" => out.extend_from_slice(b"+PONG\r\n"),
            "REPLCONF" if args[1].eq_ignore_ascii_case(b"ack") => {
                let offset: u64 = String::from_utf8_lossy(&args[2]).parse().expect("a number");
                assert!(
                    offset <= self.offset(),
                    "acknowledged what was never written: {offset}"
                );
                self.acked = self.acked.max(offset);
                self.acks += 1;
                tracker.check_acknowledged(offset);
                if let Stage::Waiting { at } = session.stage {
                    session.stage = Stage::Streaming { sent: at };
                }
            }
            "REPLCONF" if args[1] == b"version" && rng.percent(50) => {
                out.extend_from_slice(b"-ERR Unrecognized REPLCONF option: version\r\n");
            }
            "REPLCONF" => out.extend_from_slice(b"+OK\r\n"),
            "INFO" => {
                let mut info = format!("role:master\r\nmaster_replid:{}\r\n", self.replid);
                if let Some((id, until)) = &self.former {
                    let second = until + 1;
                    info += &format!("master_replid2:{id}\r\nsecond_repl_offset:{second}\r\n");
                }
                out.extend_from_slice(format!("${}\r\n{info}\r\n", info.len()).as_bytes());
            }
            // A user who may not ask who it is.
            "CLUSTER" => out.extend_from_slice(b"-NOPERM no permission to run 'cluster|myid'\r\n"),
            "PSYNC" => self.psync(session, args, tracker, now_ms),
            other => panic!("a replica does not say {other}"),
        }
    }

    fn psync(&mut self, session: &mut Session, args: &[Bytes], tracker: &mut Tracker, now_ms: u64) {
        let id = String::from_utf8_lossy(&args[1]).into_owned();
        let wanted = String::from_utf8_lossy(&args[2])
            .parse::<u64>()
            .unwrap_or(0);
        let same = id == self.replid
            || self
                .former
                .as_ref()
                .is_some_and(|(former, until)| *former == id && wanted <= until + 1);
        // The byte after the last received one is asked for by its number, counted from 1.
        if same && wanted > self.backlog_start && wanted <= self.offset() + 1 {
            self.partial_syncs += 1;
            let line = format!("+CONTINUE {}\r\n", self.replid);
            session.output.extend_from_slice(line.as_bytes());
            session.stage = Stage::Streaming { sent: wanted - 1 };
            return;
        }
        self.full_syncs += 1;
        self.selected = None;
        let at = self.offset();
        tracker.begin_copy(at, self.store.keys.keys().cloned());
        let line = format!("+FULLRESYNC {} {at}\r\n", self.replid);
        session.output.extend_from_slice(line.as_bytes());
        session.stage = Stage::Saving {
            ready_at_ms: now_ms + self.snapshot_delay_ms,
            newline_at_ms: now_ms,
            snapshot: rdb::snapshot(&self.store),
            at,
        };
    }

    fn frame(&self, out: &mut Bytes, snapshot: &[u8], rng: &mut Rng) {
        if self.diskless {
            let mark = format!("{:020}{:020}", rng.next(), rng.next());
            out.extend_from_slice(format!("$EOF:{mark}\r\n").as_bytes());
            out.extend_from_slice(snapshot);
            out.extend_from_slice(mark.as_bytes());
        } else {
            out.extend_from_slice(format!("${}\r\n", snapshot.len()).as_bytes());
            out.extend_from_slice(snapshot);
        }
    }
}

fn replid(number: u64) -> String {
    format!("{:016x}{:024x}", hash(&number.to_le_bytes()), number)
}
