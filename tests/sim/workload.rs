//! What clients write to the source: random commands that fit the data of the moment.
//!
//! Every value carries a serial number, so that no two commands are alike and each can be followed to the target.

use slotstream::slot::{SlotSet, slot_of};

use crate::model::{Bytes, Value};
use crate::rng::Rng;
use crate::source::Source;
use crate::tracker::Tracker;

/// Which commands may come.
#[derive(Debug, Clone)]
pub struct Mix {
    /// Commands that must not be applied twice.
    pub once_only: bool,
    /// Commands that can make a key go away.
    pub removals: bool,
    /// Commands with several keys in one slot.
    pub several_keys: bool,
    /// `DEL` and `MSET` over several slots, as a single server's clients send them.
    pub across_slots: bool,
    /// Transactions, in one slot or (effects of scripts) in several.
    pub transactions: bool,
    pub flushes: bool,
    /// Commands that only the source knows.
    pub unknown: bool,
    pub functions: bool,
    pub publish: bool,
    pub databases: u32,
    /// Values of hundreds of kilobytes now and then.
    pub fat: bool,
    /// Keys end.
    pub deadlines: bool,
}

pub struct Workload {
    pub mix: Mix,
    /// Keys by hash tag.
    pub groups: Vec<Vec<Bytes>>,
    serial: u64,
    database: u32,
}

impl Workload {
    /// Keys in `groups` slots out of `slots`, `each` per slot.
    pub fn new(mix: Mix, rng: &mut Rng, slots: &SlotSet, groups: usize, each: usize) -> Self {
        let mut tags = Vec::new();
        while tags.len() < groups {
            let tag = format!("{{t{}}}", rng.below(100_000));
            if slots.contains(slot_of(tag.as_bytes())) {
                tags.push(tag);
            }
        }
        let keys = |tag: &String| {
            (0..each)
                .map(|n| format!("{tag}{n}").into_bytes())
                .collect()
        };
        Self {
            mix,
            groups: tags.iter().map(keys).collect(),
            serial: 0,
            database: 0,
        }
    }

    /// One thing that happens at the source.
    pub fn act(&mut self, source: &mut Source, tracker: &mut Tracker, rng: &mut Rng) {
        if self.mix.databases > 1 && rng.once_in(10) {
            self.database = rng.below(self.mix.databases as usize) as u32;
        }
        match rng.below(100) {
            0..3 => source.say(&["ping"]),
            3..5 => source.say(&["REPLCONF", "GETACK", "*"]),
            5 => source.select(self.database),
            6..8 if self.mix.transactions => {
                source.say(&["MULTI"]);
                source.say(&["EXEC"]);
            }
            8..20 if self.mix.transactions => self.transaction(source, tracker, rng),
            20..25 if self.mix.across_slots => self.across(source, tracker, rng),
            25 if self.mix.flushes && rng.once_in(8) => {
                let verb: &[u8] = if rng.percent(50) {
                    b"FLUSHALL"
                } else {
                    b"FLUSHDB"
                };
                source.write(tracker, self.database, &[verb.to_vec()]);
            }
            26..28 if self.mix.functions => {
                let load = ["FUNCTION", "LOAD", "#!lua name=f"];
                let load: Vec<Bytes> = load.iter().map(|word| word.as_bytes().to_vec()).collect();
                source.write(tracker, self.database, &load);
            }
            28..30 if self.mix.publish => source.say(&["PUBLISH", "channel", "message"]),
            30..33 if self.mix.unknown => self.unknown(source, tracker, rng),
            _ => {
                let group = rng.below(self.groups.len());
                self.write(group, source, tracker, rng);
            }
        }
    }

    /// One write of data with keys in one slot.
    pub fn write(
        &mut self,
        group: usize,
        source: &mut Source,
        tracker: &mut Tracker,
        rng: &mut Rng,
    ) {
        let args = self.command(group, source, rng);
        source.write(tracker, self.database, &args);
    }

    fn transaction(&mut self, source: &mut Source, tracker: &mut Tracker, rng: &mut Rng) {
        source.select(self.database);
        tracker.in_transaction(Some(source.offset()));
        source.say(&["MULTI"]);
        let group = rng.below(self.groups.len());
        let several = rng.percent(30);
        for _ in 0..rng.between(1, 6) {
            let group = if several {
                rng.below(self.groups.len())
            } else {
                group
            };
            self.write(group, source, tracker, rng);
            if rng.once_in(40) {
                // Servers keep these out of transactions; an old one did not always.
                source.say(&["REPLCONF", "GETACK", "*"]);
            }
        }
        tracker.in_transaction(None);
        source.say(&["EXEC"]);
    }

    fn across(&mut self, source: &mut Source, tracker: &mut Tracker, rng: &mut Rng) {
        let remove = self.mix.removals && rng.percent(40);
        let mut args = vec![if remove {
            b"DEL".to_vec()
        } else {
            b"MSET".to_vec()
        }];
        for _ in 0..rng.between(2, 6) {
            let group = rng.below(self.groups.len());
            let key = rng.pick(&self.groups[group]).clone();
            if args.contains(&key) {
                continue;
            }
            args.push(key);
            if !remove {
                args.push(self.value(rng));
            }
        }
        source.write(tracker, self.database, &args);
    }

    fn unknown(&mut self, source: &mut Source, tracker: &mut Tracker, rng: &mut Rng) {
        let group = rng.below(self.groups.len());
        let value = self.value(rng);
        let first = rng.pick(&self.groups[group]).clone();
        let second = rng.pick(&self.groups[group]).clone();
        let args = if self.mix.several_keys && first != second && rng.percent(50) {
            vec![b"SIM.PAIR".to_vec(), b"x".to_vec(), first, second, value]
        } else {
            vec![b"SIM.SET".to_vec(), first, value]
        };
        source.write(tracker, self.database, &args);
    }

    fn value(&mut self, rng: &mut Rng) -> Bytes {
        self.serial += 1;
        let length = match rng.below(100) {
            0 if self.mix.fat => rng.between(10_000, 400_000),
            0..60 => 0,
            60..95 => rng.below(200),
            _ => rng.below(5_000),
        };
        let mut value = format!("v{}:", self.serial).into_bytes();
        value.resize(value.len() + length, b'.');
        value
    }

    /// A command on keys of a group that fits what this master has.
    pub fn command(&mut self, group: usize, source: &Source, rng: &mut Rng) -> Vec<Bytes> {
        let place = rng.below(self.groups[group].len());
        let key = self.groups[group][place].clone();
        let other = rng.pick(&self.groups[group]).clone();
        let there = source.store.keys.get(&(self.database, key.clone()));
        let value = self.value(rng);
        let short = || value[..value.len().min(20)].to_vec();
        let once = self.mix.once_only;
        let verb = |verb: &[u8]| verb.to_vec();
        if self.mix.deadlines && rng.percent(25) {
            let most_ms = *rng.pick(&[500, 5_000, 25_000, 100_000]);
            let at_ms = source.store.now_ms() + rng.between(50, most_ms) as u64;
            let at_ms = at_ms.to_string().into_bytes();
            return match rng.below(5) {
                0 => vec![verb(b"SET"), key, value, verb(b"PXAT"), at_ms],
                1 => vec![verb(b"PERSIST"), key],
                _ => vec![verb(b"PEXPIREAT"), key, at_ms],
            };
        }
        match rng.below(20) {
            0 if self.mix.removals => return vec![verb(b"DEL"), key],
            1 if self.mix.removals => return vec![verb(b"UNLINK"), key],
            2 if self.mix.several_keys && key != other => {
                return vec![verb(b"MSET"), key, value.clone(), other, value];
            }
            3 if self.mix.several_keys && self.mix.removals && key != other => {
                return vec![verb(b"DEL"), key, other];
            }
            4 if self.mix.several_keys
                && self.mix.removals
                && once
                && key != other
                && there.is_some() =>
            {
                return vec![verb(b"RENAME"), key, other];
            }
            5..8 => return vec![verb(b"SET"), key, value],
            _ => {}
        }
        let member = vec![b'a' + rng.below(6) as u8];
        match there {
            Some(Value::Text(text)) if once && text.iter().all(u8::is_ascii_digit) => {
                vec![verb(b"INCR"), key]
            }
            Some(Value::Text(text)) if once && text.len() < 10_000 => {
                vec![verb(b"APPEND"), key, short()]
            }
            Some(Value::List(list)) if once => match rng.below(4) {
                0 => vec![verb(b"LPUSH"), key, short()],
                1 if self.mix.removals || list.len() > 1 => vec![verb(b"LPOP"), key],
                _ => vec![verb(b"RPUSH"), key, short(), short()],
            },
            Some(Value::Hash(hash)) => match rng.below(3) {
                0 if self.mix.removals || hash.len() > 1 => vec![verb(b"HDEL"), key, member],
                _ => vec![verb(b"HSET"), key, member, short()],
            },
            Some(Value::Set(set)) => match rng.below(3) {
                0 if self.mix.removals || set.len() > 1 => vec![verb(b"SREM"), key, member],
                _ => vec![verb(b"SADD"), key, member],
            },
            None => match rng.below(5) {
                0 if once => vec![verb(b"RPUSH"), key, short()],
                1 if once => vec![verb(b"INCR"), key],
                2 => vec![verb(b"HSET"), key, member, short()],
                3 => vec![verb(b"SADD"), key, member],
                _ => vec![verb(b"SET"), key, value],
            },
            _ => vec![verb(b"SET"), key, value],
        }
    }
}
