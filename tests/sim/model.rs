//! What a server holds, and what commands do to it: strings, lists, hashes and sets in numbered databases, and when they end.
//!
//! Used for the source and for every target master alike, so that equal commands give equal data. It implements the
//! commands that the simulated workload sends and those that the lane sends on its own account, nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use slotstream::checkpoint::{Mark, bookkeeping_of};
use slotstream::command;
use slotstream::limits;
use slotstream::resp::scan;
use slotstream::slot::{Slot, slot_of};

use crate::rdb;

pub type Bytes = Vec<u8>;

/// A key with the number of its database.
pub type Key = (u32, Bytes);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(Bytes),
    List(VecDeque<Bytes>),
    Hash(BTreeMap<Bytes, Bytes>),
    Set(BTreeSet<Bytes>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Simple(&'static str),
    Integer(i64),
    Bulk(Option<Bytes>),
    Array(Vec<Reply>),
    Error(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Store {
    pub keys: BTreeMap<Key, Value>,
    /// When keys end. Unix time begins with the simulation.
    pub deadlines: BTreeMap<Key, u64>,
    now_ms: u64,
}

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

/// Where the keys of a command stand among its arguments.
pub fn key_places(args: &[Bytes]) -> Vec<usize> {
    match verb(args).as_str() {
        "MSET" => (1..args.len()).step_by(2).collect(),
        "DEL" | "UNLINK" => (1..args.len()).collect(),
        "RENAME" => vec![1, 2],
        "SIM.PAIR" => vec![2, 3],
        "SET" | "INCR" | "APPEND" | "LPUSH" | "RPUSH" | "LPOP" | "HSET" | "HDEL" | "HINCRBY"
        | "SADD" | "SREM" | "RESTORE" | "RESTORE-ASKING" | "SIM.SET" | "PEXPIREAT" | "PERSIST" => {
            vec![1]
        }
        _ => Vec::new(),
    }
}

/// The keys that a command is sent by.
pub fn keys_of(args: &[Bytes]) -> Vec<&Bytes> {
    if verb(args) == "EVAL" {
        let count = number(&args[2]) as usize;
        return args[3..3 + count].iter().collect();
    }
    key_places(args).into_iter().map(|at| &args[at]).collect()
}

/// Whether a command of the stream must not be applied twice.
pub fn must_not_repeat(args: &[Bytes]) -> bool {
    let bytes = encode(args);
    let frame = scan(&bytes).expect("sound").expect("whole");
    let known = command::find(&frame);
    let own = args.get(1).is_some_and(|key| bookkeeping_of(key).is_some());
    !own && !key_places(args).is_empty()
        && known.is_none_or(|command| !command::replay_safe(&frame, command))
}

/// The slot and the watermark that a command sets, if it is such a one.
pub fn watermark_of(args: &[Bytes]) -> Option<(Slot, Mark)> {
    let [verb, key, value] = args else {
        return None;
    };
    if verb != b"SET" || bookkeeping_of(key)?.0 != 'w' {
        return None;
    }
    let value = std::str::from_utf8(value).expect("a watermark is text");
    Some((slot_of(key), value.parse().expect("a watermark")))
}

pub fn verb(args: &[Bytes]) -> String {
    String::from_utf8_lossy(&args[0]).to_ascii_uppercase()
}

/// A command as readable text.
pub fn show(args: &[Bytes]) -> String {
    let words = args.iter().map(|arg| match arg.get(..40) {
        Some(head) => format!("{}..({})", head.escape_ascii(), arg.len()),
        None => arg.escape_ascii().to_string(),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The same command in RESP.
pub fn encode(args: &[Bytes]) -> Bytes {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Takes one command from the front of `input`: its arguments and its length; `None` when it is not complete.
pub fn decode(input: &[u8]) -> Option<(Vec<Bytes>, usize)> {
    let number = |at: usize, mark: u8| -> Option<(usize, usize)> {
        let rest = input.get(at..)?;
        let end = rest.iter().position(|&byte| byte == b'\n')?;
        assert!(
            rest[0] == mark && rest[end - 1] == b'\r',
            "no RESP: {:?}",
            show(&[rest[..end].to_vec()])
        );
        let text = std::str::from_utf8(&rest[1..end - 1]).expect("digits");
        Some((text.parse().expect("a length"), at + end + 1))
    };
    let (count, mut at) = number(0, b'*')?;
    let mut args = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, start) = number(at, b'$')?;
        args.push(input.get(start..start + length)?.to_vec());
        let end = input.get(start + length..start + length + 2)?;
        assert_eq!(end, b"\r\n");
        at = start + length + 2;
    }
    Some((args, at))
}

impl Reply {
    pub fn encode(&self, out: &mut Bytes) {
        match self {
            Reply::Simple(text) => out.extend_from_slice(format!("+{text}\r\n").as_bytes()),
            Reply::Integer(number) => out.extend_from_slice(format!(":{number}\r\n").as_bytes()),
            Reply::Bulk(None) => out.extend_from_slice(b"$-1\r\n"),
            Reply::Bulk(Some(bytes)) => {
                out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Reply::Array(items) => {
                out.extend_from_slice(format!("*{}\r\n", items.len()).as_bytes());
                items.iter().for_each(|item| item.encode(out));
            }
            Reply::Error(text) => out.extend_from_slice(format!("-{text}\r\n").as_bytes()),
        }
    }

    pub fn is_error(&self) -> bool {
        matches!(self, Reply::Error(_))
    }
}

impl Store {
    /// It is so late: gives the keys that have ended, and are gone.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Key> {
        self.now_ms = now_ms;
        let ended = self.deadlines.iter().filter(|(_, at_ms)| **at_ms < now_ms);
        let ended: Vec<Key> = ended.map(|(key, _)| key.clone()).collect();
        for key in &ended {
            self.keys.remove(key);
            self.deadlines.remove(key);
        }
        ended
    }

    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    pub fn execute(&mut self, database: u32, args: &[Bytes]) -> Reply {
        let reply = self.apply(database, args);
        let keys = &self.keys;
        self.deadlines.retain(|key, _| keys.contains_key(key));
        reply
    }

    /// Gives a key a value without a deadline.
    fn put(&mut self, key: Key, value: Value) {
        self.deadlines.remove(&key);
        self.keys.insert(key, value);
    }

    /// Gives a key a deadline; one that has passed ends it.
    fn end_at(&mut self, key: Key, at_ms: u64) -> Reply {
        let is_there = self.keys.contains_key(&key);
        if at_ms <= self.now_ms {
            self.keys.remove(&key);
        } else if is_there {
            self.deadlines.insert(key, at_ms);
        }
        Reply::Integer(i64::from(is_there))
    }

    /// What the script does that settles leases of keys; its text says so, see `engine::settle`.
    fn settle(&mut self, database: u32, args: &[Bytes]) -> Reply {
        let script = String::from_utf8_lossy(&args[1]);
        let known = script.contains("'PEXPIRETIME',key)")
            && script.contains("at=at-35184372088832 if at>=0 and at<35184372088832 and (at<=passed or at>far) then")
            && script.ends_with("redis.call('PEXPIREAT',key,string.format('%.0f',at)) end end");
        assert!(known, "the model does not know the script {script}");
        let last = 3 + number(&args[2]) as usize;
        let (passed, far) = (number(&args[last]), number(&args[last + 1]));
        for name in &args[3..last] {
            let key = (database, name.clone());
            let held_back = self.deadlines.get(&key).copied();
            if let Some(at_ms) = held_back.and_then(without_grace)
                && (at_ms <= passed || at_ms > far)
            {
                self.end_at(key, at_ms);
            }
        }
        Reply::Bulk(None)
    }

    fn apply(&mut self, database: u32, args: &[Bytes]) -> Reply {
        let key = |at: usize| (database, args[at].clone());
        match verb(args).as_str() {
            "SET" | "SIM.SET" => {
                self.put(key(1), Value::Text(args[2].clone()));
                if let [option, at_ms] = &args[3..] {
                    assert_eq!(option, b"PXAT");
                    self.end_at(key(1), number(at_ms));
                }
                Reply::Simple("OK")
            }
            "PEXPIREAT" => self.end_at(key(1), number(&args[2])),
            "PERSIST" => Reply::Integer(i64::from(self.deadlines.remove(&key(1)).is_some())),
            "SIM.PAIR" => {
                self.put(key(2), Value::Text(args[4].clone()));
                self.put(key(3), Value::Text(args[4].clone()));
                Reply::Simple("OK")
            }
            "MSET" => {
                for at in (1..args.len()).step_by(2) {
                    self.put(key(at), Value::Text(args[at + 1].clone()));
                }
                Reply::Simple("OK")
            }
            "DEL" | "UNLINK" => {
                let gone = (1..args.len()).filter(|&at| self.keys.remove(&key(at)).is_some());
                Reply::Integer(gone.count() as i64)
            }
            "RENAME" => match self.keys.remove(&key(1)) {
                Some(value) => {
                    let at_ms = self.deadlines.remove(&key(1));
                    self.put(key(2), value);
                    self.deadlines.extend(at_ms.map(|at_ms| (key(2), at_ms)));
                    Reply::Simple("OK")
                }
                None => Reply::Error("ERR no such key".into()),
            },
            "RESTORE" | "RESTORE-ASKING" => self.restore(key(1), args),
            "FLUSHALL" => {
                self.keys.clear();
                Reply::Simple("OK")
            }
            "FLUSHDB" => {
                self.keys.retain(|key, _| key.0 != database);
                Reply::Simple("OK")
            }
            "SCAN" => self.scan(database, args),
            "INFO" => self.keyspace(),
            "INCR" | "APPEND" => self.text(key(1), args),
            "LPUSH" | "RPUSH" | "LPOP" => self.list(key(1), args),
            "HSET" | "HDEL" | "HINCRBY" => self.hash(key(1), args),
            "SADD" | "SREM" => self.set(key(1), args),
            "PUBLISH" => Reply::Integer(0),
            "PING" => Reply::Simple("PONG"),
            "EVAL" => self.settle(database, args),
            "FUNCTION" => Reply::Simple("OK"),
            other => panic!("the model does not know {other}"),
        }
    }

    fn restore(&mut self, key: Key, args: &[Bytes]) -> Reply {
        let options: Vec<String> = args[4..]
            .iter()
            .map(|arg| verb(std::slice::from_ref(arg)))
            .collect();
        // `MIGRATE` says no more than it must.
        let wanted: &[&str] = match verb(args).as_str() {
            "RESTORE" => &["REPLACE", "ABSTTL"],
            _ => &["REPLACE"],
        };
        assert_eq!(options, wanted);
        match rdb::decode_payload(&args[3]) {
            Some(value) => {
                self.put(key.clone(), value);
                match number(&args[2]) {
                    0 => {}
                    at_ms => _ = self.end_at(key, at_ms),
                }
                Reply::Simple("OK")
            }
            None => Reply::Error("ERR Bad data format".into()),
        }
    }

    fn keyspace(&self) -> Reply {
        let databases: BTreeSet<u32> = self.keys.keys().map(|key| key.0).collect();
        let lines = databases
            .iter()
            .map(|n| format!("db{n}:keys=1,expires=0\r\n"));
        let text = format!("# Keyspace\r\n{}", lines.collect::<String>());
        Reply::Bulk(Some(text.into_bytes()))
    }

    /// The cursor is the place in the order of the keys' hashes: a key that stays is found, whatever comes and goes.
    fn scan(&self, database: u32, args: &[Bytes]) -> Reply {
        let number =
            |at: usize| -> u64 { std::str::from_utf8(&args[at]).unwrap().parse().unwrap() };
        let from = number(1);
        // A few at a time, whatever was asked for: SCAN may.
        let count = (number(3) as usize).min(4);
        let all = self.keys.keys().filter(|key| key.0 == database);
        let mut left: Vec<(u64, &Bytes)> = all
            .map(|key| (hash(&key.1), &key.1))
            .filter(|(place, _)| *place >= from)
            .collect();
        left.sort();
        let next = left.get(count).map_or(0, |(place, _)| *place);
        let listed = left
            .iter()
            .take(count)
            .map(|(_, key)| Reply::Bulk(Some((*key).clone())));
        Reply::Array(vec![
            Reply::Bulk(Some(next.to_string().into_bytes())),
            Reply::Array(listed.collect()),
        ])
    }

    fn text(&mut self, key: Key, args: &[Bytes]) -> Reply {
        let slot = self
            .keys
            .entry(key)
            .or_insert_with(|| Value::Text(Vec::new()));
        let Value::Text(text) = slot else {
            return Reply::Error(WRONG_TYPE.into());
        };
        if verb(args) == "APPEND" {
            text.extend_from_slice(&args[2]);
            return Reply::Integer(text.len() as i64);
        }
        let number = match std::str::from_utf8(text) {
            Ok("") => Some(0),
            Ok(digits) => digits.parse::<i64>().ok(),
            Err(_) => None,
        };
        let Some(number) = number else {
            return Reply::Error("ERR value is not an integer or out of range".into());
        };
        *text = (number + 1).to_string().into_bytes();
        Reply::Integer(number + 1)
    }

    fn list(&mut self, key: Key, args: &[Bytes]) -> Reply {
        if verb(args) == "LPOP" && !self.keys.contains_key(&key) {
            return Reply::Bulk(None);
        }
        let slot = self
            .keys
            .entry(key.clone())
            .or_insert_with(|| Value::List(VecDeque::new()));
        let Value::List(list) = slot else {
            return Reply::Error(WRONG_TYPE.into());
        };
        match verb(args).as_str() {
            "LPUSH" => list.push_front(args[2].clone()),
            "RPUSH" => list.extend(args[2..].iter().cloned()),
            _ => {
                let popped = list.pop_front();
                if list.is_empty() {
                    self.keys.remove(&key);
                }
                return Reply::Bulk(popped);
            }
        }
        Reply::Integer(list.len() as i64)
    }

    fn hash(&mut self, key: Key, args: &[Bytes]) -> Reply {
        let slot = self
            .keys
            .entry(key.clone())
            .or_insert_with(|| Value::Hash(BTreeMap::new()));
        let Value::Hash(hash) = slot else {
            return Reply::Error(WRONG_TYPE.into());
        };
        let changed = match verb(args).as_str() {
            "HSET" => hash.insert(args[2].clone(), args[3].clone()).is_none(),
            "HDEL" => hash.remove(&args[2]).is_some(),
            _ => {
                let field = hash.entry(args[2].clone()).or_insert_with(|| b"0".to_vec());
                let sum = number(field) + number(&args[3]);
                *field = sum.to_string().into_bytes();
                return Reply::Integer(sum as i64);
            }
        };
        if hash.is_empty() {
            self.keys.remove(&key);
        }
        Reply::Integer(i64::from(changed))
    }

    fn set(&mut self, key: Key, args: &[Bytes]) -> Reply {
        let slot = self
            .keys
            .entry(key.clone())
            .or_insert_with(|| Value::Set(BTreeSet::new()));
        let Value::Set(set) = slot else {
            return Reply::Error(WRONG_TYPE.into());
        };
        let changed = if verb(args) == "SADD" {
            set.insert(args[2].clone())
        } else {
            set.remove(&args[2])
        };
        if set.is_empty() {
            self.keys.remove(&key);
        }
        Reply::Integer(i64::from(changed))
    }
}

/// The true deadline of one that is held back.
pub fn without_grace(at_ms: u64) -> Option<u64> {
    let grace_ms = limits::LEASE_GRACE_MS;
    let at_ms = at_ms.checked_sub(grace_ms)?;
    (at_ms < grace_ms).then_some(at_ms)
}

pub fn number(text: &[u8]) -> u64 {
    let text = std::str::from_utf8(text).expect("digits");
    text.parse().expect("a number")
}

/// FNV-1a.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
