//! Whether a command may be applied twice.
//!
//! After a crash the engine knows that everything up to an offset was applied, and that some of what follows may
//! have been. A command is *replay-safe* when applying a suffix of the stream again, in order, on a state that is
//! already ahead of it ends in the same data. Commands are blind writes (`SET`, `HSET`), or refuse what they already
//! did (`XADD` with an id), or are not safe. Calling a safe command unsafe costs time; the reverse costs data. So
//! options are accepted by name, and whatever is not known is unsafe.
//!
//! Two limits of "safe", which the engine has to respect:
//!
//! - Errors of a replayed command (`WRONGTYPE`, an id that is not greater, `BUSYGROUP`) mean that the state is ahead.
//! - A deadline that has passed meanwhile deletes at once what the next command in the suffix would have renewed.
//!
//! And a third kind between safe and unsafe, [`Replay::MayChangeTtl`]: removing the last member of a key removes the
//! key and its TTL. Applied again, a removal may empty a key that it left alone the first time, or the reverse
//! (`GETDEL` is one too: where the key has become of another type, it is refused):
//!
//! ```text
//! k = {f, g} with a TTL                    k is missing
//! suffix       first time     again        suffix           first time       again
//! HDEL k f     {g} TTL        gone         HSET k f v       {f}              {f, g}
//! HSET k f v   {f, g} TTL     {f}          PEXPIREAT k t    {f} TTL          {f, g} TTL
//! HDEL k g     {f} TTL        {f}          HDEL k f         gone             {g} TTL
//!                                          HSET k g v       {g}              {g} TTL
//! ```
//!
//! A command with several members is passed on when one of them changed something. The others were no-ops, and need not
//! be again: that makes `XDEL` of several ids unsafe, and `HSETEX KEEPTTL` behind an `HPEXPIREAT` a case of the third kind.
//! Unsafe, because they read what plain writes on strings (`SETRANGE`) may have changed: `PFADD`, and `PFCOUNT`, whose
//! cached count becomes part of the value.
//!
//! `XSETID` is unsafe whatever its arguments: it may lower the last id, after which an `XADD` is not refused when it comes again.
//! Commands of slots, databases and whole shards (`FLUSHALL`, `SWAPDB`) are judged for data alone, by the same
//! rule; the engine treats them by their kind first.
//!
//! `tests/replay` holds all of this against real servers.

use super::Command;
use super::keys::{decimal, is_word};
use crate::resp::Frame;

/// A row's entry: the answer, or the rule that finds it in the arguments.
#[derive(Debug, Clone, Copy)]
pub enum Safety {
    Always(Replay),
    When(fn(&Frame<'_>) -> Replay),
}

/// What applying a suffix of the stream again does to the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// Ends in the same data.
    Same,
    /// Ends in the same values, but a key or field may lack a TTL that it should have or have one that it should lack.
    MayChangeTtl,
    /// May end in other data.
    Differs,
}

impl Safety {
    pub(super) const SAFE: Safety = Safety::Always(Replay::Same);
    pub(super) const REMOVAL: Safety = Safety::Always(Replay::MayChangeTtl);
    pub(super) const UNSAFE: Safety = Safety::Always(Replay::Differs);
}

/// What applying `frame` again, with all that follows it, does to the data.
#[inline]
pub fn replay(frame: &Frame<'_>, command: &Command) -> Replay {
    match command.safety {
        Safety::Always(answer) => answer,
        Safety::When(rule) => rule(frame),
    }
}

/// Whether applying `frame` again, with all that follows it, ends in the same data, TTLs included.
#[inline]
pub fn replay_safe(frame: &Frame<'_>, command: &Command) -> bool {
    replay(frame, command) == Replay::Same
}

fn same_if(safe: bool) -> Replay {
    if safe { Replay::Same } else { Replay::Differs }
}

/// `SET key value [options]`. Conditions (`NX`, `XX`, `IFEQ` ...), `GET` and relative times are not safe.
pub(super) fn set(frame: &Frame<'_>) -> Replay {
    same_if(frame.argc() == 3 || lasting_options(frame, 3, None))
}

/// Whether the options from argument `from` to the word `until` (or the end) only say how long values live, in absolute
/// time: `KEEPTTL`, `PXAT ms`, `EXAT s`.
fn lasting_options(frame: &Frame<'_>, from: usize, until: Option<&str>) -> bool {
    let mut args = frame.args().skip(from);
    while let Some(arg) = args.next() {
        if until.is_some_and(|word| is_word(arg, word)) {
            return true;
        }
        let known = is_word(arg, "keepttl")
            || ((is_word(arg, "pxat") || is_word(arg, "exat")) && args.next().is_some());
        if !known {
            return false;
        }
    }
    until.is_none()
}

/// `MSETEX numkeys key value ... [options]`
pub(super) fn msetex(frame: &Frame<'_>) -> Replay {
    same_if(msetex_options_at(frame).is_some_and(|at| lasting_options(frame, at, None)))
}

/// Whether an `MSETEX` sets all its pairs whatever stood there, so that it is the sum of what it does to each.
pub(super) fn msetex_is_unconditional(frame: &Frame<'_>) -> bool {
    msetex_options_at(frame).is_some_and(|at| {
        let mut args = frame.args().skip(at);
        while let Some(arg) = args.next() {
            let lifetime = ["ex", "px", "exat", "pxat"]
                .iter()
                .any(|word| is_word(arg, word));
            let known = is_word(arg, "keepttl") || (lifetime && args.next().is_some());
            if !known {
                return false;
            }
        }
        true
    })
}

/// Where the options of an `MSETEX` begin, if it has as many pairs as it says.
fn msetex_options_at(frame: &Frame<'_>) -> Option<usize> {
    let pairs = decimal(frame.arg(1)?)?;
    let at = pairs.checked_mul(2)?.checked_add(2)?;
    (at <= frame.argc()).then_some(at)
}

/// `HSETEX key [options] FIELDS n field value ...`. With `KEEPTTL` a field keeps what time it has, and one that an
/// `HPEXPIREAT` of several fields did not find the first time has one the second time.
pub(super) fn hsetex(frame: &Frame<'_>) -> Replay {
    let keeps = frame.args().skip(2).any(|arg| is_word(arg, "keepttl"));
    match same_if(lasting_options(frame, 2, Some("fields"))) {
        Replay::Same if keeps => Replay::MayChangeTtl,
        answer => answer,
    }
}

/// `GETEX key [options]`: without an option it only reads.
pub(super) fn getex(frame: &Frame<'_>) -> Replay {
    let persists = frame.argc() == 3 && frame.arg(2).is_some_and(|arg| is_word(arg, "persist"));
    same_if(persists || lasting_options(frame, 2, None))
}

/// `HGETEX key [options] FIELDS n field ...`
pub(super) fn hgetex(frame: &Frame<'_>) -> Replay {
    let persists = frame.arg(2).is_some_and(|arg| is_word(arg, "persist"))
        && frame.arg(3).is_some_and(|arg| is_word(arg, "fields"));
    same_if(persists || lasting_options(frame, 2, Some("fields")))
}

/// `PEXPIREAT key time` and `EXPIREAT`: safe without a condition (`NX`, `XX`, `GT`, `LT`).
pub(super) fn expire_at(frame: &Frame<'_>) -> Replay {
    same_if(frame.argc() == 3)
}

/// `HPEXPIREAT key time FIELDS n field ...` and `HEXPIREAT`: safe without a condition.
pub(super) fn hash_expire_at(frame: &Frame<'_>) -> Replay {
    same_if(frame.arg(3).is_some_and(|arg| is_word(arg, "fields")))
}

/// `ZADD key [CH] score member ...`, safe without `NX`, `XX`, `GT`, `LT`, `INCR`.
pub(super) fn zadd(frame: &Frame<'_>) -> Replay {
    // What is neither a known harmless word nor a number is a condition; the first number ends the options.
    for arg in frame.args().skip(2) {
        if !is_word(arg, "ch") {
            return same_if(is_number(arg));
        }
    }
    Replay::Differs
}

/// `GEOADD key [CH] longitude latitude member ...`
pub(super) fn geoadd(frame: &Frame<'_>) -> Replay {
    zadd(frame)
}

fn is_number(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| text.parse::<f64>().is_ok())
}

/// `BITFIELD key [GET t o] [SET t o v] [OVERFLOW w] [INCRBY t o n]`: safe without `INCRBY`.
pub(super) fn bitfield(frame: &Frame<'_>) -> Replay {
    let mut args = frame.args().skip(2);
    while let Some(arg) = args.next() {
        let values = match arg {
            word if is_word(word, "set") => 3,
            word if is_word(word, "get") => 2,
            word if is_word(word, "overflow") => 1,
            _ => return Replay::Differs,
        };
        for _ in 0..values {
            args.next();
        }
    }
    Replay::Same
}

/// `XADD key [NOMKSTREAM] [KEEPREF|DELREF|ACKED] [MAXLEN|MINID [=|~] n [LIMIT n]] id field value ...`: safe with an
/// explicit id, as the stream refuses an id that is not above its last one, before it trims anything.
pub(super) fn xadd(frame: &Frame<'_>) -> Replay {
    let mut args = frame.args().skip(2);
    while let Some(arg) = args.next() {
        let trims = is_word(arg, "maxlen") || is_word(arg, "minid");
        if trims {
            let threshold = match args.next() {
                Some(b"=" | b"~") => args.next(),
                other => other,
            };
            if threshold.is_none() {
                return Replay::Differs;
            }
        } else if is_word(arg, "limit") {
            args.next();
        } else if !["nomkstream", "keepref", "delref"]
            .iter()
            .any(|word| is_word(arg, word))
        {
            return same_if(is_stream_id(arg));
        }
    }
    Replay::Differs
}

/// `XDEL key id ...`: servers pass on one that removed something. An id beside that which was not there may be added
/// behind it, and is not added again where it is removed again.
pub(super) fn xdel(frame: &Frame<'_>) -> Replay {
    same_if(frame.argc() == 3)
}

/// `ms` or `ms-seq`, nothing left for the server to choose.
fn is_stream_id(text: &[u8]) -> bool {
    let (millis, sequence) = match memchr::memchr(b'-', text) {
        Some(dash) => (&text[..dash], &text[dash + 1..]),
        None => (text, &b"0"[..]),
    };
    decimal(millis).is_some() && decimal(sequence).is_some()
}

/// `XGROUP CREATE|SETID key group id ...`: safe when the id is explicit, not `$`.
pub(super) fn group_at_id(frame: &Frame<'_>) -> Replay {
    same_if(frame.arg(4).is_some_and(is_stream_id))
}

/// `RESTORE key ttl payload [REPLACE] [ABSTTL] ...`: safe with `REPLACE`, and with `ABSTTL` if it has a TTL.
pub(super) fn restore(frame: &Frame<'_>) -> Replay {
    let has = |word: &str| frame.args().skip(4).any(|arg| is_word(arg, word));
    same_if(has("replace") && (has("absttl") || frame.arg(2) == Some(b"0")))
}

/// `FUNCTION LOAD [REPLACE] code`: safe with `REPLACE`.
pub(super) fn function_load(frame: &Frame<'_>) -> Replay {
    same_if(frame.argc() == 4 && frame.arg(2).is_some_and(|arg| is_word(arg, "replace")))
}

/// `FUNCTION RESTORE payload [FLUSH|APPEND|REPLACE]`: `APPEND`, the default, refuses what is there, and all of it.
pub(super) fn function_restore(frame: &Frame<'_>) -> Replay {
    same_if(
        frame
            .arg(3)
            .is_some_and(|arg| is_word(arg, "replace") || is_word(arg, "flush")),
    )
}

/// `DELEX key [condition]` (Redis 8.4): without a condition it is a `DEL`.
pub(super) fn delex(frame: &Frame<'_>) -> Replay {
    same_if(frame.argc() == 2)
}

#[cfg(test)]
mod tests {
    use super::super::find;
    use super::super::testing::with_frame;
    use super::*;

    fn judge(line: &str) -> Replay {
        with_frame(line, |frame| {
            let command = find(frame).unwrap_or_else(|| panic!("{line} is unknown"));
            assert_eq!(
                replay_safe(frame, command),
                replay(frame, command) == Replay::Same
            );
            replay(frame, command)
        })
    }

    #[test]
    fn blind_writes_and_refused_repetitions_are_safe() {
        for line in [
            "SET k v",
            "SET k v KEEPTTL",
            "set k v pxat 1700000000000",
            "SET k v EXAT 1700000000",
            "MSET a 1 b 2",
            "MSETEX 1 a NX PXAT 5",
            "MSETEX 2 a 1 b 2",
            "SETRANGE k 3 x",
            "SETBIT k 3 1",
            "BITFIELD k SET u8 0 200 GET u8 0",
            "BITFIELD k OVERFLOW SAT SET u8 #1 3",
            "DEL k",
            "UNLINK a b",
            "GETSET k v",
            "PEXPIREAT k 1700000000000",
            "GETEX k PERSIST",
            "GETEX k PXAT 5",
            "PERSIST k",
            "HSET k f v",
            "HMSET k f v",
            "HSETEX k PXAT 5 FIELDS 1 f v",
            "HSETEX k PXAT 5 FIELDS 1 FNX v",
            "HSETEX k FIELDS 1 f v",
            "HPEXPIREAT k 5 FIELDS 1 f",
            "HPERSIST k FIELDS 1 f",
            "HGETEX k PERSIST FIELDS 1 f",
            "SADD k m",
            "ZADD k 1 m",
            "ZADD k CH 1 m",
            "ZADD k -inf NX",
            "ZADD k +inf m 1e300 n",
            "GEOADD k 1.5 2 m",
            "XADD s 5-1 f v",
            "XADD s 5 f v",
            "XADD s NOMKSTREAM MAXLEN = 10 5-1 f v",
            "XADD s MINID ~ 3-1 LIMIT 100 5-1 f v",
            "XADD s MAXLEN 10 5-1 f v",
            "XADD s DELREF MAXLEN = 10 5-1 f v",
            "XDEL s 5-1",
            "XACK s g 5-1",
            "XGROUP CREATE s g 0-0 MKSTREAM ENTRIESREAD 3",
            "XGROUP SETID s g 5-1",
            "XGROUP DESTROY s g",
            "XGROUP CREATECONSUMER s g c",
            "XGROUP DELCONSUMER s g c",
            "RESTORE k 0 p REPLACE",
            "RESTORE k 17 p ABSTTL REPLACE FREQ 3",
            "RESTORE-ASKING k 17 p REPLACE ABSTTL",
            "FUNCTION LOAD REPLACE code",
            "FUNCTION DELETE lib",
            "FUNCTION FLUSH",
            "FUNCTION RESTORE p FLUSH",
            "SELECT 0",
            "PING",
            "GET k",
        ] {
            assert_eq!(judge(line), Replay::Same, "{line}");
        }
    }

    #[test]
    fn removals_of_members_may_change_the_ttl_of_a_key_that_they_empty() {
        for line in [
            "HDEL k f",
            "SREM k m",
            "ZREM k m",
            "HGETDEL k FIELDS 1 f",
            "HSETEX k KEEPTTL FIELDS 1 f v",
            "GETDEL k",
            "ZREMRANGEBYSCORE k 0 5",
        ] {
            assert_eq!(judge(line), Replay::MayChangeTtl, "{line}");
        }
    }

    #[test]
    fn what_depends_on_the_state_is_unsafe() {
        for line in [
            "SET k v NX",
            "SET k v XX",
            "SET k v GET",
            "SET k v IFEQ old",
            "SET k v EX 5",
            "SET k v PX 5",
            "SET k v PXAT",
            "SET k v KEEPTTL NX",
            "SETNX k v",
            "SETEX k 5 v",
            "PSETEX k 5 v",
            "MSETNX a 1",
            "MSETEX 1 a 1 NX",
            "MSETEX 1 a 1 EX 5",
            "MSETEX x a 1",
            "MSETEX 18446744073709551615 a 1",
            "APPEND k v",
            "INCR k",
            "DECRBY k 2",
            "INCRBYFLOAT k 2",
            "BITFIELD k INCRBY u8 0 1",
            "BITFIELD k SET u8 0 1 INCRBY u8 0 1",
            "BITOP AND d a",
            "EXPIRE k 5",
            "PEXPIRE k 5",
            "PEXPIREAT k 5 NX",
            "GETEX k EX 5",
            "HSETNX k f v",
            "HINCRBY k f 1",
            "HINCRBYFLOAT k f 1",
            "HSETEX k FNX PXAT 5 FIELDS 1 f v",
            "HSETEX k PX 5 FIELDS 1 f v",
            "HSETEX k PXAT 5",
            "HEXPIRE k 5 FIELDS 1 f",
            "HPEXPIRE k 5 FIELDS 1 f",
            "HPEXPIREAT k 5 GT FIELDS 1 f",
            "LPUSH k v",
            "RPUSHX k v",
            "LSET k 0 v",
            "LREM k 0 v",
            "LTRIM k 0 5",
            "LINSERT k BEFORE a b",
            "LPOP k",
            "LMOVE a b LEFT RIGHT",
            "RPOPLPUSH a b",
            "LMPOP 1 a LEFT",
            "SPOP k",
            "SMOVE a b m",
            "SUNIONSTORE d a",
            "ZADD k NX 1 m",
            "ZADD k CH XX 1 m",
            "ZADD k GT 1 m",
            "ZADD k INCR 1 m",
            "ZINCRBY k 1 m",
            "ZPOPMIN k",
            "ZREMRANGEBYRANK k 0 1",
            "ZREMRANGEBYLEX k - +",
            "ZUNIONSTORE d 1 a",
            "ZRANGESTORE d a 0 1",
            "GEOADD k NX 1 2 m",
            "GEOSEARCHSTORE d a",
            "GEORADIUS a 1 2 3 km STORE d",
            "SORT a STORE d",
            "PFADD k a",
            "PFMERGE d a",
            "PFCOUNT k",
            "XADD s * f v",
            "XADD s 5-* f v",
            "XADD s MAXLEN = 5 * f v",
            "XADD s ACKED MAXLEN = 5 5-1 f v",
            "XDEL s 5-1 6-1",
            "XTRIM s MAXLEN = 5",
            "XSETID s 5-1",
            "XSETID s 5-1 ENTRIESADDED 3 MAXDELETEDID 2-0",
            "XCLAIM s g c 0 5-1 FORCE JUSTID LASTID 5-1",
            "XAUTOCLAIM s g c 0 0",
            "XREADGROUP GROUP g c STREAMS s >",
            "XGROUP CREATE s g $",
            "XGROUP SETID s g $",
            "RENAME a b",
            "RENAMENX a b",
            "COPY a b",
            "MOVE a 1",
            "SWAPDB 0 1",
            "RESTORE k 0 p",
            "RESTORE k 17 p REPLACE",
            "RESTORE k 17 p ABSTTL",
            "FUNCTION LOAD code",
            "FUNCTION RESTORE p",
            "FUNCTION RESTORE p APPEND",
            "EVAL s 1 k",
            "FCALL f 1 k",
            "DELEX k IFEQ v",
            "DELIFEQ k v",
            "VADD k VALUES 1 1 e",
        ] {
            assert_eq!(judge(line), Replay::Differs, "{line}");
        }
    }
}
