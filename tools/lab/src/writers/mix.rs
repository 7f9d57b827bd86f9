//! Which commands the writers send.
//!
//! Keys come in groups: the keys `{w7}:...` share a slot, so commands with several keys work in a cluster.
//! Each name stands for one type throughout, so a WRONGTYPE is an error of the mix.

use super::{Commands, WriterOptions, plain};
use crate::load::{Kind, key_name, lives_for_seconds};
use crate::resp::Command;
use crate::version::Family;
use fastrand::Rng;
use std::time::{SystemTime, UNIX_EPOCH};

/// What lists, streams and other collections are cut back to now and then.
const KEPT_ELEMENTS: &str = "60";
/// How long blocking commands wait, in seconds, and in milliseconds where they take those.
const BLOCK_SECONDS: &str = "0.05";
const BLOCK_MS: &str = "50";

pub struct Mix {
    family: Family,
    kinds: Commands,
    random: Rng,
    letter: char,
    groups: usize,
    cold_groups: usize,
    loaded: Vec<Kind>,
    loaded_keys: usize,
    short_lives: bool,
    tied_keys: usize,
}

/// The commands under construction for one group of keys.
pub struct Group<'a> {
    tag: String,
    short_lives: bool,
    pub random: &'a mut Rng,
    commands: &'a mut Vec<Command>,
}

impl Group<'_> {
    pub fn key(&mut self, name: &str, count: usize) -> String {
        format!("{}:{name}{}", self.tag, self.random.usize(0..count))
    }

    /// Words are separated by spaces; what holds other bytes goes through [`Group::send_words`].
    pub fn send(&mut self, line: &str) {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        self.send_words(&words);
    }

    pub fn send_words(&mut self, words: &[&[u8]]) {
        self.commands.push(Command::routed(&self.tag, words));
    }

    pub fn number(&mut self) -> i64 {
        self.random.i64(-1000..1000)
    }

    /// A short element, few enough of them that they meet again.
    pub fn element(&mut self) -> String {
        match self.random.u8(0..4) {
            0 => self.random.u32(0..200).to_string(),
            _ => format!("e{}", self.random.u32(0..100)),
        }
    }

    pub fn value(&mut self) -> Vec<u8> {
        let length = match self.random.u8(0..20) {
            0 => self.random.usize(1000..5000),
            _ => self.random.usize(0..100),
        };
        let mut bytes = vec![0; length];
        self.random.fill(&mut bytes);
        bytes
    }

    /// Milliseconds to live: half of them short, unless nothing may be.
    fn lifetime_ms(&mut self) -> u32 {
        match self.random.u8(0..4) {
            _ if !self.short_lives => self.random.u32(100_000..1_000_000),
            0 => self.random.u32(50..1000),
            1 => self.random.u32(1000..5000),
            _ => self.random.u32(100_000..1_000_000),
        }
    }
}

impl Mix {
    pub fn new(family: Family, random: Rng, options: &WriterOptions) -> Mix {
        let loaded = options.loaded.as_ref();
        Mix {
            family,
            kinds: options.commands,
            random,
            letter: options.letter,
            groups: options.key_groups.max(1),
            cold_groups: options.cold_groups,
            loaded: Kind::of(family, loaded.is_some_and(|loaded| loaded.vector_sets)),
            loaded_keys: loaded.map_or(0, |loaded| loaded.keys),
            short_lives: options.short_lives,
            tied_keys: options.tied_keys,
        }
    }

    /// Adds one command, or a few that belong together.
    pub fn next(&mut self, commands: &mut Vec<Command>) {
        let (family, kinds) = (self.family, self.kinds);
        if kinds == Commands::All && self.loaded_keys > 0 && self.random.u8(0..8) == 0 {
            return self.touch_loaded(commands);
        }
        if self.tied_keys > 0 && self.random.u8(0..4) == 0 {
            let mut group = Group {
                tag: format!("{{{}{}}}", self.letter, self.random.usize(0..self.groups)),
                short_lives: self.short_lives,
                random: &mut self.random,
                commands,
            };
            return tied(&mut group, self.tied_keys);
        }
        let tag = match self.cold_groups {
            cold @ 1.. if self.random.u8(0..4) == 0 => {
                format!("{{c{}}}", self.random.usize(0..cold))
            }
            _ => format!("{{{}{}}}", self.letter, self.random.usize(0..self.groups)),
        };
        let choice = self.random.u8(0..25);
        let mut group = Group {
            tag,
            short_lives: self.short_lives,
            random: &mut self.random,
            commands,
        };
        let group = &mut group;
        match choice {
            _ if kinds != Commands::All => plain::next(group, kinds),
            0..3 => strings(group, family),
            3 => counters(group),
            4 => bits(group),
            5..7 => lists(group, family),
            7..9 => hashes(group),
            9 if family.has_hash_field_ttl() => field_times(group, family),
            9 => hashes(group),
            10..12 => sets(group),
            12..14 => sorted_sets(group, family),
            14..16 => streams(group, family),
            16 => hyperloglogs(group),
            17 => places(group, family),
            18 | 19 => expiries(group, family),
            20 => transaction(group),
            21 => script(group),
            22 => functions(group, family),
            23 => lease(group, family),
            _ => keys(group, family),
        }
    }

    /// One command that waits for what others push.
    pub fn next_blocking(&mut self) -> Command {
        let mut commands = Vec::new();
        let tag = format!(
            "{{{}{}}}",
            self.letter,
            self.random.usize(0..self.groups.min(10))
        );
        let newer = self.family.has_redis_7_commands();
        let mut group = Group {
            tag,
            short_lives: self.short_lives,
            random: &mut self.random,
            commands: &mut commands,
        };
        let (queue, ranking) = (group.key("queue", 2), group.key("ranking", 2));
        let (list, stream) = (group.key("list", 3), group.key("stream", 2));
        let line = match group.random.u8(0..8) {
            0 => format!("BLPOP {queue} {BLOCK_SECONDS}"),
            1 => format!("BRPOP {queue} {BLOCK_SECONDS}"),
            2 => format!("BRPOPLPUSH {queue} {list} {BLOCK_SECONDS}"),
            3 => format!("BZPOPMIN {ranking} {BLOCK_SECONDS}"),
            4 if newer => format!("BLMOVE {queue} {list} LEFT RIGHT {BLOCK_SECONDS}"),
            5 if newer => format!("BLMPOP {BLOCK_SECONDS} 1 {queue} LEFT COUNT 2"),
            6 if newer => format!("BZMPOP {BLOCK_SECONDS} 1 {ranking} MAX COUNT 2"),
            4..7 => format!("BZPOPMAX {ranking} {BLOCK_SECONDS}"),
            _ => format!("XREADGROUP GROUP g blocked BLOCK {BLOCK_MS} STREAMS {stream} >"),
        };
        group.send(&line);
        commands.remove(0)
    }

    /// Commands on what [`crate::load`] wrote.
    fn touch_loaded(&mut self, commands: &mut Vec<Command>) {
        let number = self.random.usize(0..self.loaded_keys);
        let kind = self.loaded[number % self.loaded.len()];
        let key = key_name(kind, number);
        let short_lived = kind == Kind::HashWithFieldTtl || lives_for_seconds(number);
        if short_lived && !self.short_lives {
            return;
        }
        let number = self.random.u32(100..1000).to_string();
        let number = number.as_bytes();
        let typed: &[&[u8]] = match kind {
            Kind::List | Kind::ListOfLargeElements => &[b"RPUSH", &key, number],
            Kind::IntegerSet | Kind::Set => &[b"SADD", &key, number],
            Kind::SortedSet | Kind::Geo => &[b"ZADD", &key, number, number],
            Kind::Hash | Kind::HashOfLongValues | Kind::HashWithFieldTtl => {
                &[b"HSET", &key, number, number]
            }
            Kind::Stream | Kind::StreamWithGroups => &[b"XADD", &key, b"*", b"f", number],
            Kind::HyperLogLog => &[b"PFADD", &key, number],
            Kind::VectorSet => &[b"PERSIST", &key],
            _ => &[b"APPEND", &key, number],
        };
        let any: &[&[u8]] = match self.random.u8(0..6) {
            0 => &[b"DEL", &key],
            1 => &[b"PERSIST", &key],
            2 => &[b"EXPIRE", &key, number],
            _ => typed,
        };
        commands.push(Command::new(any));
    }
}

fn strings(group: &mut Group, family: Family) {
    let (a, b) = (group.key("string", 4), group.key("string", 4));
    let (value, lifetime) = (group.value(), group.lifetime_ms());
    let lifetime = lifetime.to_string();
    let (a, b, lifetime) = (a.as_bytes(), b.as_bytes(), lifetime.as_bytes());
    let newer = family.has_redis_7_commands();
    match group.random.u8(0..16) {
        0 => group.send_words(&[b"SET", a, &value, b"PX", lifetime]),
        1 => group.send_words(&[b"SET", a, &value, b"KEEPTTL"]),
        2 => group.send_words(&[b"SET", a, &value, b"XX"]),
        3 => group.send_words(&[b"SETNX", a, &value]),
        4 => group.send_words(&[b"PSETEX", a, lifetime, &value]),
        5 => group.send_words(&[b"GETSET", a, &value]),
        6 => group.send_words(&[b"APPEND", a, b"more"]),
        7 => group.send_words(&[b"SETRANGE", a, b"17", &value]),
        8 => group.send_words(&[b"MSET", a, &value, b, b"second"]),
        9 => group.send_words(&[b"MSETNX", a, &value, b, b"second"]),
        10 if newer => group.send_words(&[b"GETDEL", a]),
        11 if newer => group.send_words(&[b"GETEX", a, b"PX", lifetime]),
        12 if newer => group.send_words(&[b"SET", a, &value, b"NX", b"GET"]),
        13 if family.has_set_ifeq() => group.send_words(&[b"SET", a, &value, b"IFEQ", b"second"]),
        14 if family.has_delifeq() => group.send_words(&[b"DELIFEQ", a, b"second"]),
        _ => group.send_words(&[b"SET", a, &value]),
    }
}

fn counters(group: &mut Group) {
    let (counter, float) = (group.key("counter", 3), group.key("float", 2));
    let number = group.number();
    let line = match group.random.u8(0..5) {
        0 => format!("INCR {counter}"),
        1 => format!("DECRBY {counter} {number}"),
        2 => format!("INCRBY {counter} {number}"),
        3 => format!("INCRBYFLOAT {float} {number}.25"),
        _ => format!("DECR {counter}"),
    };
    group.send(&line);
}

fn bits(group: &mut Group) {
    let (a, b) = (group.key("bits", 3), group.key("bits", 3));
    let number = group.random.u32(0..3000);
    let line = match group.random.u8(0..4) {
        0 => format!("SETBIT {a} {number} 1"),
        1 => format!("BITFIELD {a} SET u8 {number} 200 INCRBY i5 100 1"),
        2 => format!("BITFIELD {a} OVERFLOW FAIL INCRBY u2 {number} 1"),
        _ => format!("BITOP XOR {a} {a} {b}"),
    };
    group.send(&line);
}

fn lists(group: &mut Group, family: Family) {
    let (a, b) = (group.key("list", 3), group.key("list", 3));
    let queue = group.key("queue", 2);
    let (element, other) = (group.element(), group.element());
    let newer = family.has_redis_7_commands();
    let line = match group.random.u8(0..18) {
        0 => format!("LPUSH {a} {element} {other}"),
        1 => format!("LPUSHX {a} {element}"),
        2 => format!("RPUSHX {a} {element}"),
        3 => format!("LPOP {a}"),
        4 => format!("RPOP {a}"),
        5 => format!("LINSERT {a} BEFORE {element} {other}"),
        6 => format!("LREM {a} 1 {element}"),
        7 => format!("LSET {a} 0 {element}"),
        8 => format!("LTRIM {a} 0 {KEPT_ELEMENTS}"),
        9 => format!("RPOPLPUSH {a} {b}"),
        10 if newer => format!("LMOVE {a} {b} LEFT LEFT"),
        11 if newer => format!("LMPOP 2 {a} {b} RIGHT COUNT 3"),
        12 if newer => format!("LPOP {a} 2"),
        13 => format!("SORT {a} ALPHA STORE {b}"),
        14 | 15 => format!("RPUSH {queue} {element}"),
        _ => format!("RPUSH {a} {element} {other}"),
    };
    group.send(&line);
}

fn hashes(group: &mut Group) {
    let key = group.key("hash", 3);
    let (field, other, number) = (group.element(), group.element(), group.number());
    let value = group.value();
    let line = match group.random.u8(0..8) {
        0 => format!("HSET {key} {field} {number} {other} text"),
        1 => format!("HSETNX {key} {field} {number}"),
        2 => format!("HDEL {key} {field} {other}"),
        3 => format!("HINCRBY {key} count {number}"),
        4 => format!("HINCRBYFLOAT {key} float {number}.5"),
        5 => format!("HMSET {key} {field} {number}"),
        _ => return group.send_words(&[b"HSET", key.as_bytes(), field.as_bytes(), &value]),
    };
    group.send(&line);
}

fn field_times(group: &mut Group, family: Family) {
    let key = group.key("timed", 3);
    let (field, other, time) = (group.element(), group.element(), group.lifetime_ms());
    let seconds = time / 1000 + 1;
    let line = match group.random.u8(0..11) {
        0 | 1 => format!("HSET {key} {field} 1 {other} 2"),
        2 => format!("HPEXPIRE {key} {time} FIELDS 2 {field} {other}"),
        3 => format!("HEXPIRE {key} {seconds} NX FIELDS 1 {field}"),
        4 => {
            let at = now_ms() + u128::from(time);
            format!("HPEXPIREAT {key} {at} FIELDS 1 {field}")
        }
        5 => format!("HPERSIST {key} FIELDS 1 {field}"),
        6 => format!("HSETEX {key} PX {time} FIELDS 2 {field} 3 {other} 4"),
        7 => format!("HSETEX {key} FNX EX {seconds} FIELDS 1 {field} 5"),
        8 => format!("HGETEX {key} PX {time} FIELDS 1 {field}"),
        9 if family.has_hgetdel() => format!("HGETDEL {key} FIELDS 1 {field}"),
        _ => format!("HDEL {key} {other}"),
    };
    group.send(&line);
}

fn sets(group: &mut Group) {
    let (a, b) = (group.key("set", 3), group.key("set", 3));
    let integers = group.key("integers", 2);
    let (member, other, number) = (group.element(), group.element(), group.number());
    let line = match group.random.u8(0..12) {
        0 => format!("SREM {a} {member} {other}"),
        1 => format!("SPOP {a}"),
        2 => format!("SPOP {a} 3"),
        3 => format!("SMOVE {a} {b} {member}"),
        4 => format!("SUNIONSTORE {a} {a} {b}"),
        5 => format!("SINTERSTORE {a} {a} {b}"),
        6 => format!("SDIFFSTORE {a} {b} {integers}"),
        7 | 8 => format!("SADD {integers} {number}"),
        _ => format!("SADD {a} {member} {other}"),
    };
    group.send(&line);
}

fn sorted_sets(group: &mut Group, family: Family) {
    let (a, b) = (group.key("zset", 3), group.key("zset", 3));
    let ranking = group.key("ranking", 2);
    let (member, other, score) = (group.element(), group.element(), group.number());
    let newer = family.has_redis_7_commands();
    let line = match group.random.u8(0..20) {
        0 => format!("ZADD {a} NX {score} {member}"),
        1 => format!("ZADD {a} XX CH {score} {member}"),
        2 => format!("ZADD {a} INCR {score} {member}"),
        3 => format!("ZINCRBY {a} {score}.5 {member}"),
        4 => format!("ZREM {a} {member}"),
        5 => format!("ZPOPMIN {a}"),
        6 => format!("ZPOPMAX {a} 2"),
        7 => format!("ZREMRANGEBYRANK {a} {KEPT_ELEMENTS} -1"),
        8 => format!("ZREMRANGEBYSCORE {a} -inf -990"),
        9 => format!("ZREMRANGEBYLEX {a} [e97 (e98"),
        10 => format!("ZUNIONSTORE {a} 2 {a} {b} WEIGHTS 1 0.5 AGGREGATE MAX"),
        11 => format!("ZINTERSTORE {a} 2 {a} {b}"),
        12 if newer => format!("ZDIFFSTORE {a} 2 {a} {b}"),
        13 if newer => format!("ZRANGESTORE {a} {b} 0 20"),
        14 if newer => format!("ZADD {a} GT {score} {member}"),
        15 if newer => format!("ZMPOP 2 {a} {b} MIN COUNT 2"),
        16 | 17 => format!("ZADD {ranking} {score} {member}"),
        _ => format!("ZADD {a} {score} {member} inf {other}"),
    };
    group.send(&line);
}

fn streams(group: &mut Group, family: Family) {
    let key = group.key("stream", 2);
    let (field, number, consumer) = (group.element(), group.number(), group.random.u8(0..3));
    let some_ms = now_ms() - group.random.u128(0..2000);
    let line = match group.random.u8(0..23) {
        0 => format!("XADD {key} MAXLEN ~ {KEPT_ELEMENTS} * {field} {number}"),
        1 => format!("XADD {key} MAXLEN = {KEPT_ELEMENTS} * {field} {number} more text"),
        2 => format!("XTRIM {key} MAXLEN {KEPT_ELEMENTS}"),
        3 => format!("XGROUP CREATE {key} g 0 MKSTREAM"),
        4 => format!("XGROUP CREATE {key} other $ MKSTREAM"),
        5 if group.random.u8(0..4) == 0 => format!("XGROUP SETID {key} other 0"),
        6 if group.random.u8(0..8) == 0 => format!("XGROUP DESTROY {key} other"),
        7 if group.random.u8(0..8) == 0 => format!("XGROUP DELCONSUMER {key} g c{consumer}"),
        8..13 => format!("XREADGROUP GROUP g c{consumer} COUNT 3 STREAMS {key} >"),
        13 => format!("XREADGROUP GROUP other c{consumer} COUNT 2 NOACK STREAMS {key} >"),
        14 => format!("XCLAIM {key} g c{consumer} 0 {some_ms}-0 {some_ms}-1"),
        15 => format!("XDEL {key} {some_ms}-0"),
        16 | 17 => return script_on_pending(group, &key),
        18 if family.has_redis_7_commands() => {
            format!("XAUTOCLAIM {key} g c{consumer} 0 0 COUNT 3")
        }
        _ => format!("XADD {key} * {field} {number}"),
    };
    group.send(&line);
}

/// XACK, XDEL and XCLAIM need ids that are there: a script finds one.
fn script_on_pending(group: &mut Group, key: &str) {
    const SCRIPT: &str = "local found = redis.pcall('XPENDING', KEYS[1], 'g', '-', '+', 2)\n\
        if not found or found.err or not found[1] then return 0 end\n\
        if ARGV[1] == 'XCLAIM' then\n\
        redis.call('XCLAIM', KEYS[1], 'g', 'c0', 0, found[1][1])\n\
        elseif ARGV[1] == 'XDEL' then redis.call('XDEL', KEYS[1], found[1][1])\n\
        else redis.call('XACK', KEYS[1], 'g', found[1][1]) end\n\
        return 1";
    let verb = ["XACK", "XACK", "XCLAIM", "XDEL"][group.random.usize(0..4)];
    let words = ["EVAL", SCRIPT, "1", key, verb];
    group.send_words(&words.map(str::as_bytes));
}

fn hyperloglogs(group: &mut Group) {
    let (a, b, element) = (group.key("hll", 3), group.key("hll", 3), group.element());
    let line = match group.random.u8(0..4) {
        0 => format!("PFMERGE {a} {b}"),
        _ => format!("PFADD {a} {element}"),
    };
    group.send(&line);
}

fn places(group: &mut Group, family: Family) {
    let (a, b, member) = (group.key("geo", 2), group.key("geo", 2), group.element());
    let (longitude, latitude) = (group.random.i32(-170..170), group.random.i32(-80..80));
    let line = match group.random.u8(0..5) {
        0 => format!("GEORADIUS {a} {longitude} {latitude} 3000 km STORE {b}"),
        1 if family.has_redis_7_commands() => {
            format!("GEOSEARCHSTORE {a} {b} FROMLONLAT {longitude} {latitude} BYRADIUS 5000 km")
        }
        _ => format!("GEOADD {a} {longitude}.25 {latitude}.5 {member}"),
    };
    group.send(&line);
}

const NAMES: [&str; 9] = [
    "string", "counter", "list", "hash", "set", "zset", "stream", "hll", "bits",
];

fn expiries(group: &mut Group, family: Family) {
    let name = NAMES[group.random.usize(0..NAMES.len())];
    let (key, time) = (group.key(name, 3), group.lifetime_ms());
    let seconds = time / 1000 + 1;
    let now_ms = now_ms();
    let at_ms = now_ms + u128::from(time);
    let condition = ["NX", "XX", "GT", "LT"][group.random.usize(0..4)];
    let line = match group.random.u8(0..9) {
        0 => format!("EXPIRE {key} {seconds}"),
        7 if family.has_redis_7_commands() => format!("EXPIRE {key} {seconds} {condition}"),
        8 if family.has_redis_7_commands() => format!("PEXPIREAT {key} {at_ms} {condition}"),
        1 => format!("EXPIREAT {key} {}", at_ms / 1000),
        2 => format!("PEXPIREAT {key} {at_ms}"),
        3 => format!("PEXPIREAT {key} {}", now_ms - 1000),
        4 | 5 => format!("PERSIST {key}"),
        _ => format!("PEXPIRE {key} {time}"),
    };
    group.send(&line);
}

fn transaction(group: &mut Group) {
    let discard = group.random.u8(0..20) == 0;
    group.send("MULTI");
    for _ in 0..group.random.u8(0..6) {
        // Only what every version has: older targets take transactions as they are.
        match group.random.u8(0..9) {
            0 => counters(group),
            1 => sets(group),
            2 => hashes(group),
            3 => expiries(group, Family::Redis60),
            4 => hyperloglogs(group),
            5 => lists(group, Family::Redis60),
            6 => sorted_sets(group, Family::Redis60),
            7 => keys(group, Family::Redis60),
            _ => strings(group, Family::Redis60),
        }
    }
    group.send(if discard { "DISCARD" } else { "EXEC" });
}

fn script(group: &mut Group) {
    const SEVERAL: &str = "redis.call('INCRBY', KEYS[1], ARGV[1])\n\
        redis.call('HSET', KEYS[2], ARGV[2], ARGV[1])\n\
        redis.call('RPUSH', KEYS[3], ARGV[2])\n\
        redis.call('LTRIM', KEYS[3], -20, -1)\n\
        return 1";
    const ONE: &str = "return redis.call('SADD', KEYS[1], ARGV[1])";
    const EXPIRING: &str = "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])\n\
        redis.call('PEXPIRE', KEYS[2], ARGV[2])\n\
        return redis.call('DEL', KEYS[3])";
    const READING: &str = "return redis.call('EXISTS', KEYS[1])";
    let (counter, hash) = (group.key("counter", 3), group.key("hash", 3));
    let (list, set) = (group.key("list", 3), group.key("set", 3));
    let string = group.key("string", 4);
    let (number, element) = (group.number().to_string(), group.element());
    let lifetime = group.lifetime_ms().to_string();
    let words: Vec<&str> = match group.random.u8(0..4) {
        0 => vec![
            "EVAL", SEVERAL, "3", &counter, &hash, &list, &number, &element,
        ],
        1 => vec!["EVAL", ONE, "1", &set, &element],
        2 => vec![
            "EVAL", EXPIRING, "3", &string, &hash, &list, &number, &lifetime,
        ],
        _ => vec!["EVAL", READING, "1", &set],
    };
    let words: Vec<&[u8]> = words.into_iter().map(str::as_bytes).collect();
    group.send_words(&words);
}

/// The functions that [`crate::load`] installs; a writer may run without it.
fn functions(group: &mut Group, family: Family) {
    if !family.has_redis_7_commands() {
        return script(group);
    }
    let (string, number) = (group.key("string", 4), group.number());
    let (hash, counter) = (group.key("hash", 3), group.key("counter", 3));
    let line = match group.random.u8(0..2) {
        0 => format!("FCALL lab_set 1 {string} {number}"),
        _ => format!("FCALL lab_add 2 {hash} {counter} {number}"),
    };
    group.send(&line);
}

fn keys(group: &mut Group, family: Family) {
    let name = NAMES[group.random.usize(0..NAMES.len())];
    let (a, b) = (group.key(name, 3), group.key(name, 3));
    let line = match group.random.u8(0..7) {
        0 => format!("DEL {a} {b}"),
        1 => format!("UNLINK {a}"),
        2 => format!("RENAME {a} {b}"),
        3 => format!("RENAMENX {a} {b}"),
        4 if family.has_redis_7_commands() => format!("COPY {a} {b} REPLACE"),
        5 if family.has_redis_7_commands() => format!("COPY {a} {b}"),
        _ => format!("TOUCH {a}"),
    };
    group.send(&line);
}

/// The name of a number that [`tied`] works on.
pub fn tied_key(tag: &str, number: usize) -> String {
    format!("{tag}:tied{number}")
}

/// What ties keys of one slot to each other, on numbers that are there or not.
fn tied(group: &mut Group, count: usize) {
    const MOVE: &str = "local n = redis.call('GET', KEYS[1])\n\
        if not n then return 0 end\n\
        redis.call('INCRBY', KEYS[2], ARGV[1])\n\
        redis.call('DECRBY', KEYS[1], ARGV[1])\n\
        return 1";
    let mut key = || tied_key(&group.tag, group.random.usize(0..count));
    let (a, b, c) = (key(), key(), key());
    let number = group.number();
    let transaction: &[String] = match group.random.u8(0..11) {
        0 => &[format!("RENAME {a} {b}")],
        1 => &[format!("RENAMENX {a} {b}")],
        2 => &[format!("MSET {a} {number} {b} {number} {c} 0")],
        3 => &[format!("MSETNX {a} {number} {b} 1")],
        4 => &[format!("DEL {a} {b}")],
        5 => &[format!("INCRBY {a} {number}")],
        6 => &[format!("SET {a} {number}")],
        7 => {
            let words = ["EVAL", MOVE, "2", &a, &b, "3"];
            return group.send_words(&words.map(str::as_bytes));
        }
        8 => &[format!("RENAME {a} {b}"), format!("SET {a} {number}")],
        _ => &[
            format!("INCR {a}"),
            format!("DECR {b}"),
            format!("SET {c} {number}"),
        ],
    };
    let several = transaction.len() > 1;
    if several {
        group.send("MULTI");
    }
    for line in transaction {
        group.send(line);
    }
    if several {
        group.send("EXEC");
    }
}

/// A lock that is taken for a moment, renewed by whoever holds it, and given back.
fn lease(group: &mut Group, family: Family) {
    const RENEW: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end\n\
        return redis.call('PEXPIRE', KEYS[1], ARGV[2])";
    const RELEASE: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end\n\
        return redis.call('DEL', KEYS[1])";
    let key = group.key("lease", 2);
    let holder = format!("h{}", group.random.u8(0..2));
    let time = match group.short_lives {
        true => group.random.u32(100..800),
        false => group.random.u32(100_000..800_000),
    }
    .to_string();
    let line = match group.random.u8(0..8) {
        0..3 => format!("SET {key} {holder} NX PX {time}"),
        3 if family.has_redis_7_commands() => format!("GETEX {key} PX {time}"),
        3 | 4 => format!("PEXPIRE {key} {time}"),
        5 | 6 => {
            let words = ["EVAL", RENEW, "1", &key, &holder, &time];
            return group.send_words(&words.map(str::as_bytes));
        }
        _ => {
            let words = ["EVAL", RELEASE, "1", &key, &holder];
            return group.send_words(&words.map(str::as_bytes));
        }
    };
    group.send(&line);
}

fn now_ms() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis())
}
