//! The values and the offset that a source tells are of one moment of its stream, whatever is written meanwhile.

use anyhow::{Result, ensure};
use lab::{Command, Family, Server, ServerOptions, version_or_skip};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::replica::Replica;
use slotstream::control::mend::Asker;
use slotstream::engine::mending::{MendAnswer, MendQuestion};
use slotstream::mend::{Question, Snapshot, Write};
use slotstream::rdb::{Lineage, TargetFormat};
use slotstream::topology::Credentials;

const SNAPSHOTS: usize = 300;
const KEYS: [&str; 5] = ["counter", "list", "hash", "text", "none"];

/// What the stream has done to the keys.
#[derive(Debug, Default, PartialEq, Eq)]
struct Model {
    counter: usize,
    list: usize,
    hash: usize,
    text: Option<String>,
    /// Of `text`; not known of 6.0, which replicates how long it still lives.
    deadline: Option<u64>,
}

impl Model {
    fn apply(&mut self, words: &[String]) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["INCR", ..] => self.counter += 1,
            ["RPUSH", ..] => self.list += 1,
            ["HINCRBY", ..] => self.hash += 1,
            ["SET", "text", value] => {
                self.text = Some(value.to_owned());
                self.deadline = None;
            }
            ["PEXPIREAT", "text", at] => self.deadline = at.parse().ok(),
            ["PEXPIRE", ..] | ["SELECT", ..] | ["MULTI"] | ["EXEC"] | ["PING" | "ping"] => {}
            ["DEL" | "UNLINK", "text"] => (self.text, self.deadline) = (None, None),
            _ => panic!("the writer does not send {words:?}"),
        }
    }

    /// What the server holds that got the values, and the deadline that the source told.
    fn read(server: &Server, deadline: Option<u64>) -> Result<Self> {
        let mut client = server.connect()?;
        let mut call = |words: &[&str]| client.call(words)?.ok();
        let number = |value: lab::Value| value.integer().unwrap_or(0) as usize;
        Ok(Self {
            counter: number(call(&["GET", "counter"])?),
            list: number(call(&["LLEN", "list"])?),
            hash: number(call(&["HGET", "hash", "f"])?),
            text: match call(&["GET", "text"])? {
                lab::Value::Nil => None,
                value => Some(value.text()),
            },
            deadline,
        })
    }
}

/// Writes as fast as the server takes it, alone and in transactions.
fn keep_writing(server: &Server, stop: &AtomicBool) -> Result<()> {
    let mut client = server.connect()?;
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (value, life) = (number.to_string(), (100_000 + number).to_string());
        let mut commands = vec![
            Command::new(&["INCR", "counter"]),
            Command::new(&["RPUSH", "list", &value]),
            Command::new(&["SET", "text", &value]),
        ];
        match number % 4 {
            0 => commands.push(Command::new(&["HINCRBY", "hash", "f", "1"])),
            1 => commands.push(Command::new(&["PEXPIRE", "text", &life])),
            2 => commands.push(Command::new(&["DEL", "text"])),
            _ => {
                commands.insert(0, Command::new(&["MULTI"]));
                commands.push(Command::new(&["EXEC"]));
            }
        }
        for reply in client.pipeline(&commands)? {
            reply.ok()?;
        }
    }
    Ok(())
}

fn take(server: &Server) -> Result<Vec<Snapshot>> {
    let mut asker = Asker::new(&Credentials::default());
    let keys = KEYS.iter().map(|key| (0, key.as_bytes().to_vec()));
    let question = MendQuestion {
        address: "127.0.0.1".into(),
        port: server.port(),
        keys: Question {
            keys: keys.collect(),
        },
    };
    let mut taken = Vec::new();
    while taken.len() < SNAPSHOTS {
        match asker.answer(&question) {
            MendAnswer::Taken(snapshot) => taken.push(snapshot),
            other => anyhow::bail!("no values: {other:?}"),
        }
    }
    Ok(taken)
}

fn format_of(family: Family) -> TargetFormat {
    let (lineage, major, minor) = match family {
        Family::Redis60 => (Lineage::Redis, 6, 0),
        Family::Redis70 => (Lineage::Redis, 7, 0),
        Family::Redis80 => (Lineage::Redis, 8, 0),
        Family::Valkey80 => (Lineage::Valkey, 8, 0),
        Family::Valkey81 => (Lineage::Valkey, 8, 1),
        Family::Valkey9 => (Lineage::Valkey, 9, 0),
    };
    TargetFormat::of_server(lineage, major, minor)
}

/// Writes the values of a snapshot to a server, as a mend would.
fn restore(snapshot: &Snapshot, server: &Server, format: TargetFormat) -> Result<()> {
    let mut client = server.connect()?;
    for (key, taken) in KEYS.iter().zip(&snapshot.values) {
        let Some(taken) = taken else {
            client.call(&["DEL", *key])?.ok()?;
            continue;
        };
        let write = Write {
            key: key.as_bytes(),
            temporary: b"temporary",
            payload: &taken.payload,
            expire_at_ms: taken.expire_at_ms,
            format,
        };
        let mut commands = Vec::new();
        let written = write.write(|part, _| commands.extend_from_slice(part));
        ensure!(written.problem.is_none(), "{:?}", written.problem);
        commands.extend_from_slice(&written.commands);
        let mut rest = &commands[..];
        while let Some(frame) = slotstream::resp::scan(rest)? {
            let words: Vec<&[u8]> = frame.args().collect();
            client.call(&words)?.ok()?;
            rest = &rest[frame.bytes().len()..];
        }
    }
    Ok(())
}

fn snapshots_are_exact(family: Family) -> Result<()> {
    let Some(version) = version_or_skip(family) else {
        return Ok(());
    };
    let source = Server::start(&version, ServerOptions::default())?;
    let copy = Server::start(&version, ServerOptions::default())?;
    let mut replica = Replica::attach(&source.address())?;
    let stop = AtomicBool::new(false);
    let taken = std::thread::scope(|scope| {
        let writer = scope.spawn(|| keep_writing(&source, &stop));
        let taken = take(&source);
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("no panic")?;
        taken
    })?;
    let mut model = Model::default();
    let mut distinct = 0;
    for snapshot in &taken {
        ensure!(snapshot.replid == replica.replid, "another history");
        let before = replica.offset();
        while replica.offset() < snapshot.offset.0 {
            let (words, _) = replica.next()?;
            model.apply(&words);
        }
        distinct += usize::from(replica.offset() > before);
        ensure!(
            replica.offset() == snapshot.offset.0,
            "{} is inside of a command",
            snapshot.offset
        );
        restore(snapshot, &copy, format_of(family))?;
        let told = snapshot.values[3]
            .as_ref()
            .and_then(|taken| taken.expire_at_ms);
        let told = told.filter(|_| family != Family::Redis60);
        let read = Model::read(&copy, told)?;
        ensure!(
            read == model,
            "at {}: {read:?}, not {model:?}",
            snapshot.offset
        );
    }
    ensure!(distinct > SNAPSHOTS / 10, "little was written meanwhile");
    Ok(())
}

#[test]
fn redis_6_0_tells_values_of_one_moment() -> Result<()> {
    snapshots_are_exact(Family::Redis60)
}

#[test]
fn redis_7_0_tells_values_of_one_moment() -> Result<()> {
    snapshots_are_exact(Family::Redis70)
}

#[test]
fn redis_8_0_tells_values_of_one_moment() -> Result<()> {
    snapshots_are_exact(Family::Redis80)
}

#[test]
fn valkey_8_0_tells_values_of_one_moment() -> Result<()> {
    snapshots_are_exact(Family::Valkey80)
}

#[test]
fn valkey_8_1_tells_values_of_one_moment() -> Result<()> {
    snapshots_are_exact(Family::Valkey81)
}

#[test]
fn valkey_9_tells_values_of_one_moment() -> Result<()> {
    snapshots_are_exact(Family::Valkey9)
}
