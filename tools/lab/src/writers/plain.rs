//! Narrower mixes than [`super::mix`], for tests in which not every command can be exact.
//!
//! All commands but `MSET` have one key; each key holds one type throughout.

use super::Commands;
use super::mix::Group;

/// Adds one command of a narrow mix.
pub fn next(group: &mut Group, commands: Commands) {
    match commands {
        Commands::OneKey if group.random.u8(0..3) == 0 => shrinking(group),
        Commands::OneKey | Commands::Growing => growing(group),
        Commands::All | Commands::Repeatable => repeatable(group),
    }
}

/// Adds to something, or sets it; never removes. Servers refuse all of these when they are out of memory.
fn growing(group: &mut Group) {
    let (element, other, number) = (group.element(), group.element(), group.number());
    let (string, counter) = (group.key("string", 4), group.key("counter", 3));
    let (list, hash) = (group.key("list", 3), group.key("hash", 3));
    let (set, zset) = (group.key("set", 3), group.key("zset", 3));
    let line = match group.random.u8(0..11) {
        0 | 1 => {
            let value = group.value();
            return group.send_words(&[b"SET", string.as_bytes(), &value]);
        }
        2 => format!("APPEND {string} {element}"),
        3 => format!("INCR {counter}"),
        4 => format!("INCRBY {counter} {number}"),
        5 => format!("RPUSH {list} {element} {other}"),
        6 => format!("LPUSH {list} {element}"),
        7 => format!("HSET {hash} {element} {number} {other} text"),
        8 => format!("HINCRBY {hash} count {number}"),
        9 => format!("SADD {set} {element} {other}"),
        _ => format!("ZINCRBY {zset} {number} {element}"),
    };
    group.send(&line);
}

/// Takes from something, or removes it.
fn shrinking(group: &mut Group) {
    let element = group.element();
    let (string, counter) = (group.key("string", 4), group.key("counter", 3));
    let (list, hash) = (group.key("list", 3), group.key("hash", 3));
    let (set, zset) = (group.key("set", 3), group.key("zset", 3));
    let line = match group.random.u8(0..10) {
        0 => format!("DEL {string}"),
        1 => format!("UNLINK {counter}"),
        2 => format!("LPOP {list}"),
        3 => format!("LTRIM {list} 0 30"),
        4 => format!("HDEL {hash} {element}"),
        5 => format!("SPOP {set}"),
        6 => format!("SREM {set} {element}"),
        7 => format!("ZPOPMIN {zset}"),
        8 => format!("EXPIRE {string} 900"),
        _ => format!("PERSIST {string}"),
    };
    group.send(&line);
}

/// What ends in the same values when a part of it is done again in the same order.
fn repeatable(group: &mut Group) {
    let (element, other, number) = (group.element(), group.element(), group.number());
    let (a, b) = (group.key("string", 4), group.key("string", 4));
    let (hash, set) = (group.key("hash", 3), group.key("set", 3));
    let zset = group.key("zset", 3);
    let line = match group.random.u8(0..12) {
        0..3 => {
            let value = group.value();
            return group.send_words(&[b"SET", a.as_bytes(), &value]);
        }
        3 => format!("MSET {a} {element} {b} {other}"),
        4 => format!("SETRANGE {a} 3 {element}"),
        5 => format!("DEL {a}"),
        6 => format!("HSET {hash} {element} {number} {other} text"),
        7 => format!("HDEL {hash} {element}"),
        8 => format!("SADD {set} {element} {other}"),
        9 => format!("SREM {set} {element}"),
        10 => format!("ZADD {zset} {number} {element}"),
        _ => format!("ZREM {zset} {element}"),
    };
    group.send(&line);
}
