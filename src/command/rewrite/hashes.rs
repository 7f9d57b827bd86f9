//! Deadlines of hash fields, and the commands that came with them.

use super::lifetimes::{Lifetime, options};
use super::{Features, Lack, Rewriting, Verdict, Whose};
use crate::command::keys::{decimal, is_word};
use crate::limits;
use crate::resp::Frame;

/// Where the fields of `... FIELDS n field ...` begin, and how many there are; `width` is 2 where values stand between.
fn fields_at(frame: &Frame<'_>, width: usize) -> Option<(usize, usize)> {
    let word_at = frame
        .args()
        .enumerate()
        .skip(2)
        .find_map(|(at, arg)| is_word(arg, "fields").then_some(at))?;
    let count = decimal(frame.arg(word_at + 1)?)?;
    let first = word_at + 2;
    let end = count.checked_mul(width)?.checked_add(first)?;
    (count > 0 && end <= frame.argc()).then_some((first, count))
}

/// `HSETEX key [condition] [lifetime] FIELDS n field value ...`
///
/// A hash that keeps no deadlines of fields cannot lose them either, so `KEEPTTL` and no option are a `HSET` there.
pub fn hsetex(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let (Some(key), Some((first, count))) = (frame.arg(1), fields_at(frame, 2)) else {
        return Ok(Verdict::Same);
    };
    let Some(options) = options(frame.args().skip(2), Some("fields"), rewriting) else {
        return rewriting.nothing(Lack::Command);
    };
    let mut lifetime = options.lifetime;
    let mut altered = rewriting.lacks(Features::HSETEX);
    if let Lifetime::Until(at_ms) = &mut lifetime {
        let mut fields = frame.args().skip(first).step_by(2).take(count);
        let given = rewriting
            .deadlines
            .of_fields(key, &mut fields, *at_ms, Whose::All);
        altered |= given != *at_ms || !options.absolute;
        *at_ms = given;
    }
    if !altered {
        return Ok(Verdict::Same);
    }
    let knows_deadlines = !rewriting.lacks(Features::FIELD_TTL);
    if !rewriting.lacks(Features::HSETEX)
        && let Lifetime::Until(at_ms) = lifetime
    {
        let mut command = rewriting.begin(6 + 2 * count);
        command.arg(frame.verb()).arg(key).arg(b"PXAT");
        command.number(at_ms).arg(b"FIELDS").number(count as u64);
        for arg in frame.args().skip(first).take(2 * count) {
            command.arg(arg);
        }
    } else {
        if lifetime == Lifetime::Kept && knows_deadlines {
            // HSET would remove the deadlines that are to be kept.
            return rewriting.nothing(Lack::Command);
        }
        if !knows_deadlines && matches!(lifetime, Lifetime::Until(_)) {
            rewriting.leave_out(Lack::FieldTtl)?;
        }
        let mut command = rewriting.begin(2 + 2 * count);
        command.arg(b"HSET").arg(key);
        for arg in frame.args().skip(first).take(2 * count) {
            command.arg(arg);
        }
        drop(command);
        if let (true, Lifetime::Until(at_ms)) = (knows_deadlines, lifetime) {
            let fields = frame.args().skip(first).step_by(2).take(count);
            expire_fields(key, at_ms, count, fields, rewriting);
        }
    }
    Ok(rewriting.rebuilt())
}

fn expire_fields<'a>(
    key: &[u8],
    at_ms: u64,
    count: usize,
    fields: impl Iterator<Item = &'a [u8]>,
    rewriting: &mut Rewriting<'_>,
) {
    let mut command = rewriting.begin(5 + count);
    command.arg(b"HPEXPIREAT").arg(key).number(at_ms);
    command.arg(b"FIELDS").number(count as u64);
    for field in fields {
        command.arg(field);
    }
}

/// Sets a deadline where it is later (or earlier) than the one before, of which a grace that was added does not count.
/// Arguments: the deadline, what to write for it, `gt` or `lt`, the fields.
const COMPARE: &[u8] = b"local at,later=tonumber(ARGV[1]),ARGV[3]=='gt' for i=4,#ARGV do \
local old=redis.call('HPEXPIRETIME',KEYS[1],'FIELDS',1,ARGV[i]) old=type(old)=='table' and old[1] or -2 \
if old>=35184372088832 then old=old-35184372088832 end local holds=old>=0 and at<old or old==-1 \
if later then holds=old>=0 and at>old end \
if holds then redis.call('HPEXPIREAT',KEYS[1],ARGV[2],'FIELDS',1,ARGV[i]) end end";

const _: () = assert!(limits::LEASE_GRACE_MS == 35_184_372_088_832);

/// `HEXPIRE key seconds [condition] FIELDS n field ...`, with a number of another unit, or one that counts from 1970
///
/// A condition stays: Valkey replicates also the fields for which it does not hold, as long as it holds for one.
pub fn expire<const UNIT_MS: u64, const ABSOLUTE: bool>(
    frame: &Frame<'_>,
    rewriting: &mut Rewriting<'_>,
) -> Result<Verdict, Lack> {
    if rewriting.lacks(Features::FIELD_TTL) {
        return rewriting.nothing(Lack::FieldTtl);
    }
    let (Some(key), Some(time), Some((first, count))) =
        (frame.arg(1), frame.arg(2), fields_at(frame, 1))
    else {
        return Ok(Verdict::Same);
    };
    let Some(at_ms) = rewriting.moment(time, UNIT_MS, ABSOLUTE) else {
        return Ok(Verdict::Same);
    };
    let fields = || frame.args().skip(first).take(count);
    let condition = frame.arg(3).filter(|arg| !is_word(arg, "fields"));
    let whose = condition.map_or(Whose::All, |_| Whose::Matching);
    let given = rewriting
        .deadlines
        .of_fields(key, &mut fields(), at_ms, whose);
    // An altered deadline is not what the source's condition compared with.
    let order = ["gt", "lt"].into_iter().find(|order| {
        rewriting.lacks(Features::DEADLINE) && condition.is_some_and(|word| is_word(word, order))
    });
    if ABSOLUTE && given == at_ms && order.is_none() {
        return Ok(Verdict::Same);
    }
    let mut command = match (order, condition) {
        (None, None) => {
            expire_fields(key, given, count, fields(), rewriting);
            return Ok(rewriting.rebuilt());
        }
        (Some(order), _) => {
            let mut command = rewriting.begin(7 + count);
            command.arg(b"EVAL").arg(COMPARE).arg(b"1").arg(key);
            command.number(at_ms).number(given).arg(order.as_bytes());
            command
        }
        (None, Some(condition)) => {
            let mut command = rewriting.begin(6 + count);
            command.arg(b"HPEXPIREAT").arg(key).number(given);
            command.arg(condition).arg(b"FIELDS").number(count as u64);
            command
        }
    };
    for field in fields() {
        command.arg(field);
    }
    drop(command);
    Ok(rewriting.rebuilt())
}

/// `HPERSIST key FIELDS n field ...`: where no field has a deadline there is none to remove.
pub fn hpersist(_frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    match rewriting.lacks(Features::FIELD_TTL) {
        true => Ok(Verdict::Rebuilt(0)),
        false => Ok(Verdict::Same),
    }
}

/// `HGETEX key [PERSIST|lifetime] FIELDS n field ...`
pub fn hgetex(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let (Some(key), Some((first, count))) = (frame.arg(1), fields_at(frame, 1)) else {
        return Ok(Verdict::Same);
    };
    let fields = || frame.args().skip(first).take(count);
    if frame.arg(2).is_some_and(|arg| is_word(arg, "persist")) {
        if rewriting.lacks(Features::FIELD_TTL) {
            return Ok(Verdict::Rebuilt(0));
        }
        if !rewriting.lacks(Features::HSETEX) {
            return Ok(Verdict::Same);
        }
        let mut command = rewriting.begin(4 + count);
        command.arg(b"HPERSIST").arg(key);
        command.arg(b"FIELDS").number(count as u64);
        for field in fields() {
            command.arg(field);
        }
        drop(command);
        return Ok(rewriting.rebuilt());
    }
    let options = options(frame.args().skip(2), Some("fields"), rewriting);
    let Some(Lifetime::Until(at_ms)) = options.map(|options| options.lifetime) else {
        return Ok(Verdict::Rebuilt(0));
    };
    if rewriting.lacks(Features::FIELD_TTL) {
        return rewriting.nothing(Lack::FieldTtl);
    }
    let given = rewriting
        .deadlines
        .of_fields(key, &mut fields(), at_ms, Whose::All);
    expire_fields(key, given, count, fields(), rewriting);
    Ok(rewriting.rebuilt())
}

/// `HGETDEL key FIELDS n field ...`
pub fn hgetdel(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let (Some(key), Some((first, count))) = (frame.arg(1), fields_at(frame, 1)) else {
        return Ok(Verdict::Same);
    };
    let mut command = rewriting.begin(2 + count);
    command.arg(b"HDEL").arg(key);
    for field in frame.args().skip(first).take(count) {
        command.arg(field);
    }
    drop(command);
    Ok(rewriting.rebuilt())
}
