//! Lists, sorted sets and whole keys: what 6.0 lacks.
//!
//! A command whose effect depends on values that only the target holds becomes a small script, which is atomic there as
//! the command was. All of its keys are declared, so it goes to the same slot. Scripts write what they read, so they ask
//! for replication of their effects first, where a server still has to be asked.

use super::{Features, Lack, Rewriting, Verdict};
use crate::command::keys::{decimal, is_word};
use crate::resp::Frame;

/// `ARGV`: `LPOP` or `RPOP`, then `LPUSH` or `RPUSH`.
const MOVE_ELEMENT: &[u8] =
    b"local v=redis.call(ARGV[1],KEYS[1]) if v then redis.call(ARGV[2],KEYS[2],v) end";

/// `ARGV`: the target database, or nothing.
const COPY_KEY: &[u8] = b"redis.replicate_commands() \
    local v=redis.call('DUMP',KEYS[1]) local t=redis.call('PTTL',KEYS[1]) \
    if t<0 then t=0 elseif t==0 then t=1 end \
    if ARGV[1] then redis.call('SELECT',ARGV[1]) end \
    redis.call('RESTORE',KEYS[2],t,v,'REPLACE')";

/// `ARGV`: `GT` or `LT`, `XX` or nothing, then scores and members.
const ADD_IF: &[u8] = b"for i=3,#ARGV,2 do \
    local c=redis.call('ZSCORE',KEYS[1],ARGV[i+1]) local put=ARGV[2]~='XX' \
    if c then local a,b=tonumber(ARGV[i]),tonumber(c) \
    if ARGV[1]=='GT' then put=a>b else put=a<b end end \
    if put then redis.call('ZADD',KEYS[1],ARGV[i],ARGV[i+1]) end end";

/// `ARGV`: the read command with scores.
const STORE_RANGE: &[u8] = b"local r=redis.call(unpack(ARGV)) redis.call('DEL',KEYS[1]) \
    for i=1,#r,2 do redis.call('ZADD',KEYS[1],r[i+1],r[i]) end";

/// `ARGV`: the read command, which gives no scores.
const STORE_LEX_RANGE: &[u8] = b"local r,s=redis.call(unpack(ARGV)),{} \
    for i=1,#r do s[i]=redis.call('ZSCORE',KEYS[2],r[i]) end redis.call('DEL',KEYS[1]) \
    for i=1,#r do redis.call('ZADD',KEYS[1],s[i],r[i]) end";

const STORE_DIFFERENCE: &[u8] = b"local function all(k) \
    if redis.call('TYPE',k).ok~='set' then return redis.call('ZRANGE',k,0,-1,'WITHSCORES') end \
    local r={} for _,m in ipairs(redis.call('SMEMBERS',k)) do r[#r+1]=m r[#r+1]='1' end return r end \
    local kept,gone=all(KEYS[2]),{} \
    for i=3,#KEYS do local r=all(KEYS[i]) for j=1,#r,2 do gone[r[j]]=true end end \
    redis.call('DEL',KEYS[1]) \
    for i=1,#kept,2 do if not gone[kept[i]] then redis.call('ZADD',KEYS[1],kept[i+1],kept[i]) end end";

/// `LMOVE source destination LEFT|RIGHT LEFT|RIGHT`, `BLMOVE` with a time at the end
pub fn lmove(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let (Some(source), Some(destination), Some(from), Some(to)) =
        (frame.arg(1), frame.arg(2), frame.arg(3), frame.arg(4))
    else {
        return Ok(Verdict::Same);
    };
    let (from_left, to_left) = (is_word(from, "left"), is_word(to, "left"));
    if !from_left && to_left {
        rewriting.push(&[b"RPOPLPUSH", source, destination]);
        return Ok(rewriting.rebuilt());
    }
    let pop: &[u8] = if from_left { b"LPOP" } else { b"RPOP" };
    let push: &[u8] = if to_left { b"LPUSH" } else { b"RPUSH" };
    rewriting.push(&[b"EVAL", MOVE_ELEMENT, b"2", source, destination, pop, push]);
    Ok(rewriting.rebuilt())
}

/// `LPOP key count`
pub fn lpop(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    match (frame.arg(1), frame.arg(2)) {
        (Some(key), Some(count)) => {
            rewriting.push(&[b"LTRIM", key, count, b"-1"]);
            Ok(rewriting.rebuilt())
        }
        _ => Ok(Verdict::Same),
    }
}

/// `RPOP key count`
pub fn rpop(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    match (frame.arg(1), frame.arg(2).and_then(decimal)) {
        (Some(key), Some(count)) => {
            let last = format!("-{}", count.saturating_add(1));
            rewriting.push(&[b"LTRIM", key, b"0", last.as_bytes()]);
            Ok(rewriting.rebuilt())
        }
        _ => Ok(Verdict::Same),
    }
}

/// `COPY source destination [DB n] [REPLACE]`. That it stands in the stream says that nothing was in its way.
pub fn copy(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let (Some(source), Some(destination)) = (frame.arg(1), frame.arg(2)) else {
        return Ok(Verdict::Same);
    };
    let mut args = frame.args().skip(3);
    let database = args
        .find(|arg| is_word(arg, "db"))
        .and_then(|_| args.next());
    match database {
        None => rewriting.deadlines.carried(source, destination),
        Some(_) => rewriting.deadlines.lost_track(),
    }
    if !rewriting.lacks(Features::REDIS_6_2) {
        return Ok(Verdict::Same);
    }
    match database {
        Some(database) => {
            rewriting.push(&[b"EVAL", COPY_KEY, b"2", source, destination, database]);
        }
        None => rewriting.push(&[b"EVAL", COPY_KEY, b"2", source, destination]),
    }
    Ok(rewriting.rebuilt())
}

/// `ZADD key [NX|XX] [GT|LT] [CH] [INCR] score member ...`
pub fn zadd(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let Some(key) = frame.arg(1) else {
        return Ok(Verdict::Same);
    };
    let mut first = 2;
    let (mut condition, mut existing, mut increments) = (None, false, false);
    for arg in frame.args().skip(2) {
        match arg {
            word if is_word(word, "gt") => condition = Some(&b"GT"[..]),
            word if is_word(word, "lt") => condition = Some(&b"LT"[..]),
            word if is_word(word, "xx") => existing = true,
            word if is_word(word, "incr") => increments = true,
            word if is_word(word, "nx") || is_word(word, "ch") => {}
            _ => break,
        }
        first += 1;
    }
    let (Some(condition), true) = (condition, first < frame.argc()) else {
        return Ok(Verdict::Same);
    };
    if let (true, Some(by), Some(member)) = (increments, frame.arg(first), frame.arg(first + 1)) {
        // One member, and the condition held.
        rewriting.push(&[b"ZINCRBY", key, by, member]);
        return Ok(rewriting.rebuilt());
    }
    let mut command = rewriting.begin(6 + frame.argc() - first);
    command.arg(b"EVAL").arg(ADD_IF).arg(b"1").arg(key);
    command
        .arg(condition)
        .arg(if existing { b"XX" } else { b"" });
    for arg in frame.args().skip(first) {
        command.arg(arg);
    }
    drop(command);
    Ok(rewriting.rebuilt())
}

/// `ZRANGESTORE destination source min max [BYSCORE|BYLEX] [REV] [LIMIT offset count]`
pub fn zrangestore(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let args: Vec<&[u8]> = frame.args().collect();
    let [_, destination, source, min, max, options @ ..] = args.as_slice() else {
        return Ok(Verdict::Same);
    };
    let has = |word| options.iter().any(|arg| is_word(arg, word));
    let limit_at = options.iter().position(|arg| is_word(arg, "limit"));
    let limit = limit_at
        .and_then(|at| options.get(at..at + 3))
        .unwrap_or(&[]);
    let lex = has("bylex");
    let read: &[u8] = match (has("byscore"), lex, has("rev")) {
        (true, _, false) => b"ZRANGEBYSCORE",
        (true, _, true) => b"ZREVRANGEBYSCORE",
        (_, true, false) => b"ZRANGEBYLEX",
        (_, true, true) => b"ZREVRANGEBYLEX",
        (_, _, false) => b"ZRANGE",
        (_, _, true) => b"ZREVRANGE",
    };
    let script = if lex { STORE_LEX_RANGE } else { STORE_RANGE };
    let mut words: Vec<&[u8]> = vec![b"EVAL", script, b"2", destination, source];
    words.extend([read, source, min, max]);
    if !lex {
        words.push(b"WITHSCORES");
    }
    words.extend(limit);
    rewriting.push(&words);
    Ok(rewriting.rebuilt())
}

/// `ZDIFFSTORE destination n key ...`
pub fn zdiffstore(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let args: Vec<&[u8]> = frame.args().collect();
    let [_, destination, count, keys @ ..] = args.as_slice() else {
        return Ok(Verdict::Same);
    };
    if decimal(count) != Some(keys.len()) {
        return Ok(Verdict::Same);
    }
    let count = (keys.len() + 1).to_string();
    let mut words: Vec<&[u8]> = vec![b"EVAL", STORE_DIFFERENCE, count.as_bytes(), destination];
    words.extend(keys);
    rewriting.push(&words);
    Ok(rewriting.rebuilt())
}

/// `GEOSEARCHSTORE destination source FROMMEMBER m|FROMLONLAT x y BYRADIUS r unit|BYBOX w h unit [ASC|DESC]
/// [COUNT n [ANY]] [STOREDIST]`: 6.0 knows circles, and not `ANY`.
pub fn geosearchstore(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let args: Vec<&[u8]> = frame.args().collect();
    let Some(words) = circle(&args) else {
        return rewriting.nothing(Lack::Command);
    };
    store_found(args[2], args[1], &words, rewriting);
    Ok(rewriting.rebuilt())
}

/// A search that stores what it finds. Where `source` is missing 6.0 leaves the destination alone; later versions remove it.
fn store_found(source: &[u8], destination: &[u8], search: &[&[u8]], rewriting: &mut Rewriting<'_>) {
    if source != destination {
        rewriting.push(&[b"DEL", destination]);
    }
    rewriting.push(search);
}

/// The words of the same search for 6.0, if it is one in a circle.
fn circle<'a>(args: &[&'a [u8]]) -> Option<Vec<&'a [u8]>> {
    let [_, destination, source, options @ ..] = args else {
        return None;
    };
    let (mut center, mut radius, mut rest) = (None, None, Vec::new());
    let mut store: &[u8] = b"STORE";
    let mut options = options.iter().copied();
    while let Some(word) = options.next() {
        if is_word(word, "frommember") {
            center = Some(vec![options.next()?]);
        } else if is_word(word, "fromlonlat") {
            center = Some(vec![options.next()?, options.next()?]);
        } else if is_word(word, "byradius") {
            radius = Some([options.next()?, options.next()?]);
        } else if is_word(word, "asc") || is_word(word, "desc") {
            rest.push(word);
        } else if is_word(word, "count") {
            rest.extend([word, options.next()?]);
        } else if is_word(word, "storedist") {
            store = b"STOREDIST";
        } else {
            return None;
        }
    }
    let center = center?;
    let verb: &[u8] = match center.len() {
        1 => b"GEORADIUSBYMEMBER",
        _ => b"GEORADIUS",
    };
    let mut words = vec![verb, source];
    words.extend(center);
    words.extend(radius?);
    words.extend(rest);
    words.extend([store, destination]);
    Some(words)
}

/// `GEORADIUS key lon lat radius unit [COUNT n [ANY]] ... STORE|STOREDIST key`, and `GEORADIUSBYMEMBER`
pub fn georadius(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let args: Vec<&[u8]> = frame.args().collect();
    let source = args[1];
    let mut destination = None;
    let mut options = args.iter().copied().skip(5);
    while let Some(word) = options.next() {
        if is_word(word, "store") || is_word(word, "storedist") {
            destination = options.next();
        } else if is_word(word, "count") {
            options.next();
        } else if is_word(word, "any") {
            // Any few of those found, not the nearest: which ones is the server's own choice.
            return rewriting.nothing(Lack::Command);
        }
    }
    let Some(destination) = destination else {
        return Ok(Verdict::Same);
    };
    store_found(source, destination, &args, rewriting);
    Ok(rewriting.rebuilt())
}

/// `BITOP operation destination key ...`: from 8.2 on with `DIFF`, `DIFF1`, `ANDOR`, `ONE`.
pub fn bitop(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let known = ["and", "or", "xor", "not"];
    let operation = frame.arg(1).unwrap_or_default();
    if known.iter().any(|word| is_word(operation, word)) || !rewriting.lacks(Features::REDIS_8_2) {
        return Ok(Verdict::Same);
    }
    rewriting.nothing(Lack::Command)
}
