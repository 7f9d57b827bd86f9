//! `SET` in all its forms, and whatever else gives a key a deadline.
//!
//! Streams of 6.0 hold relative times; a replica counts them from when it applies them, so here they count from
//! when they were received. Later servers replicate absolute times.

use super::{Features, Lack, Rewriting, Verdict};
use crate::command::keys::{decimal, is_word};
use crate::resp::Frame;

/// Milliseconds of a unit, and whether the time is absolute, by the word before it.
fn unit_of(word: &[u8]) -> Option<(u64, bool)> {
    match word {
        word if is_word(word, "ex") => Some((1000, false)),
        word if is_word(word, "px") => Some((1, false)),
        word if is_word(word, "exat") => Some((1000, true)),
        word if is_word(word, "pxat") => Some((1, true)),
        _ => None,
    }
}

/// What a server must know to take a condition; `None` for other words.
fn condition(word: &[u8]) -> Option<Features> {
    let words = [
        ("nx", Features::NONE),
        ("xx", Features::NONE),
        ("fnx", Features::NONE),
        ("fxx", Features::NONE),
        ("get", Features::REDIS_6_2),
        ("ifeq", Features::SET_IF_EQUAL),
        ("ifne", Features::DELEX),
        ("ifdeq", Features::DELEX),
        ("ifdne", Features::DELEX),
    ];
    let mut words = words.into_iter();
    words.find_map(|(name, needs)| is_word(word, name).then_some(needs))
}

/// How long what a command sets will live.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifetime {
    Forever,
    Kept,
    /// Until this Unix time in milliseconds, as the source has it.
    Until(u64),
}

/// Options of a command that sets something, from the first on, as far as its family has them.
pub(super) struct Options {
    pub lifetime: Lifetime,
    /// The time stands there in a form that only newer servers take, or that must be counted from now.
    pub absolute: bool,
    /// What a server must know to take its conditions and `GET`, without which it does the same.
    pub needs: Features,
}

/// Reads options until `until` or the end; `None` when one is not known.
pub(super) fn options<'a>(
    mut args: impl Iterator<Item = &'a [u8]>,
    until: Option<&str>,
    rewriting: &Rewriting<'_>,
) -> Option<Options> {
    let mut found = Options {
        lifetime: Lifetime::Forever,
        absolute: false,
        needs: Features::NONE,
    };
    while let Some(arg) = args.next() {
        if until.is_some_and(|word| is_word(arg, word)) {
            return Some(found);
        }
        if let Some((unit_ms, absolute)) = unit_of(arg) {
            let moment = rewriting.moment(args.next()?, unit_ms, absolute)?;
            found.lifetime = Lifetime::Until(moment);
            found.absolute = absolute;
        } else if is_word(arg, "keepttl") {
            found.lifetime = Lifetime::Kept;
        } else if let Some(needs) = condition(arg) {
            found.needs = found.needs | needs;
            if needs.meets(Features::SET_IF_EQUAL | Features::DELEX) {
                args.next()?;
            }
        } else {
            return None;
        }
    }
    until.is_none().then_some(found)
}

/// `SET key value [condition] [GET] [lifetime]`
pub fn set(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let (Some(key), Some(value)) = (frame.arg(1), frame.arg(2)) else {
        return Ok(Verdict::Same);
    };
    let Some(options) = options(frame.args().skip(3), None, rewriting) else {
        return Ok(Verdict::Same);
    };
    let old = rewriting.lacks(Features::REDIS_6_2);
    let mut altered = rewriting.lacks(options.needs);
    let mut lifetime = options.lifetime;
    if let Lifetime::Until(at_ms) = &mut lifetime {
        let given = rewriting.deadlines.of_key(key, *at_ms);
        altered |= given != *at_ms || !options.absolute || old;
        *at_ms = given;
    }
    if !altered {
        return Ok(Verdict::Same);
    }
    set_for(frame.verb(), key, value, lifetime, rewriting);
    Ok(rewriting.rebuilt())
}

/// Appends commands that set `key` whatever it was.
fn set_for(
    verb: &[u8],
    key: &[u8],
    value: &[u8],
    lifetime: Lifetime,
    rewriting: &mut Rewriting<'_>,
) {
    match lifetime {
        Lifetime::Forever => rewriting.push(&[verb, key, value]),
        Lifetime::Kept => rewriting.push(&[verb, key, value, b"KEEPTTL"]),
        Lifetime::Until(at_ms) if rewriting.lacks(Features::REDIS_6_2) => {
            rewriting.push(&[verb, key, value]);
            expire_key(key, at_ms, rewriting);
        }
        Lifetime::Until(at_ms) => {
            let mut command = rewriting.begin(5);
            command.arg(verb).arg(key).arg(value).arg(b"PXAT");
            command.number(at_ms);
        }
    }
}

fn expire_key(key: &[u8], at_ms: u64, rewriting: &mut Rewriting<'_>) {
    let mut command = rewriting.begin(3);
    command.arg(b"PEXPIREAT").arg(key).number(at_ms);
}

/// `SETEX key seconds value`, `PSETEX key milliseconds value`
pub fn setex<const UNIT_MS: u64>(
    frame: &Frame<'_>,
    rewriting: &mut Rewriting<'_>,
) -> Result<Verdict, Lack> {
    let (Some(key), Some(time), Some(value)) = (frame.arg(1), frame.arg(2), frame.arg(3)) else {
        return Ok(Verdict::Same);
    };
    let Some(at_ms) = rewriting.moment(time, UNIT_MS, false) else {
        return Ok(Verdict::Same);
    };
    let at_ms = rewriting.deadlines.of_key(key, at_ms);
    set_for(b"SET", key, value, Lifetime::Until(at_ms), rewriting);
    Ok(rewriting.rebuilt())
}

/// `EXPIRE key seconds [condition]`, with a number of another unit, or one that counts from 1970
pub fn expire<const UNIT_MS: u64, const ABSOLUTE: bool>(
    frame: &Frame<'_>,
    rewriting: &mut Rewriting<'_>,
) -> Result<Verdict, Lack> {
    let (Some(key), Some(time)) = (frame.arg(1), frame.arg(2)) else {
        return Ok(Verdict::Same);
    };
    let Some(at_ms) = rewriting.moment(time, UNIT_MS, ABSOLUTE) else {
        return Ok(Verdict::Same);
    };
    let given = rewriting.deadlines.of_key(key, at_ms);
    // An altered deadline is not what the condition compared with.
    let unknown_condition =
        frame.argc() > 3 && rewriting.lacks(Features::REDIS_7_0 | Features::DEADLINE);
    if ABSOLUTE && given == at_ms && !unknown_condition {
        return Ok(Verdict::Same);
    }
    // Without its condition: that it stands in the stream says that the condition held.
    expire_key(key, given, rewriting);
    Ok(rewriting.rebuilt())
}

/// `GETEX key [PERSIST|lifetime]`: for servers that do not know it.
pub fn getex(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let Some(key) = frame.arg(1) else {
        return Ok(Verdict::Same);
    };
    match frame.arg(2) {
        None => {}
        Some(word) if is_word(word, "persist") => rewriting.push(&[b"PERSIST", key]),
        Some(_) => {
            let options = options(frame.args().skip(2), None, rewriting);
            let Some(Lifetime::Until(at_ms)) = options.map(|options| options.lifetime) else {
                return rewriting.nothing(Lack::Command);
            };
            let at_ms = rewriting.deadlines.of_key(key, at_ms);
            expire_key(key, at_ms, rewriting);
        }
    }
    Ok(rewriting.rebuilt())
}

/// `RENAME from to`, `RENAMENX from to`: the deadline goes with the value.
pub fn rename(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    if let (Some(from), Some(to)) = (frame.arg(1), frame.arg(2)) {
        rewriting.deadlines.carried(from, to);
    }
    Ok(Verdict::Same)
}

/// `MOVE key database`, `SWAPDB a b`: deadlines go to another database.
pub fn leave_database(_: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    rewriting.deadlines.lost_track();
    Ok(Verdict::Same)
}

/// `GETDEL key`, and removals under a condition that held: `DELIFEQ key value`, `DELEX key condition`.
pub fn delete(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let Some(key) = frame.arg(1) else {
        return Ok(Verdict::Same);
    };
    rewriting.push(&[b"DEL", key]);
    Ok(rewriting.rebuilt())
}

/// `MSETEX n key value ... [NX|XX] [lifetime]`: sets all or, where its condition fails, none, and is then not replicated.
pub fn msetex(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let pairs = frame.arg(1).and_then(decimal).unwrap_or(0);
    let end = pairs.saturating_mul(2).saturating_add(2);
    if pairs == 0 || end > frame.argc() {
        return Ok(Verdict::Same);
    }
    let Some(options) = options(frame.args().skip(end), None, rewriting) else {
        return rewriting.nothing(Lack::Command);
    };
    let mut altered = rewriting.lacks(Features::MSETEX);
    let keys = || frame.args().skip(2).step_by(2).take(pairs);
    let mut lifetimes = Vec::with_capacity(pairs);
    for key in keys() {
        let mut lifetime = options.lifetime;
        if let Lifetime::Until(at_ms) = &mut lifetime {
            let given = rewriting.deadlines.of_key(key, *at_ms);
            altered |= given != *at_ms || !options.absolute;
            *at_ms = given;
        }
        lifetimes.push(lifetime);
    }
    if !altered {
        return Ok(Verdict::Same);
    }
    if options.lifetime == Lifetime::Forever {
        let mut command = rewriting.begin(1 + 2 * pairs);
        command.arg(b"MSET");
        for arg in frame.args().skip(2).take(2 * pairs) {
            command.arg(arg);
        }
    } else {
        let values = frame.args().skip(3).step_by(2);
        for ((key, value), lifetime) in keys().zip(values).zip(lifetimes) {
            set_for(b"SET", key, value, lifetime, rewriting);
        }
    }
    Ok(rewriting.rebuilt())
}

/// `FLUSHALL|FLUSHDB [SYNC|ASYNC]`: 6.0 knows the word `ASYNC` only.
pub fn flush(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    match frame.arg(1) {
        Some(word) if is_word(word, "sync") => {
            rewriting.push(&[frame.verb()]);
            Ok(rewriting.rebuilt())
        }
        _ => Ok(Verdict::Same),
    }
}
