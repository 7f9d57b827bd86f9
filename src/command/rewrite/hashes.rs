//! Deadlines of hash fields, and the commands that came with them.

use super::lifetimes::{Lifetime, options};
use super::{Features, Lack, Rewriting, Verdict};
use crate::command::keys::{decimal, is_word};
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
        let given = rewriting.deadlines.of_fields(key, &mut fields, *at_ms);
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
            expire_fields(b"HPEXPIREAT", key, at_ms, count, fields, rewriting);
        }
    }
    Ok(rewriting.rebuilt())
}

fn expire_fields<'a>(
    verb: &[u8],
    key: &[u8],
    at_ms: u64,
    count: usize,
    fields: impl Iterator<Item = &'a [u8]>,
    rewriting: &mut Rewriting<'_>,
) {
    let mut command = rewriting.begin(5 + count);
    command.arg(verb).arg(key).number(at_ms);
    command.arg(b"FIELDS").number(count as u64);
    for field in fields {
        command.arg(field);
    }
}

/// `HEXPIRE key seconds [condition] FIELDS n field ...`
pub fn hexpire(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    expire_in(frame, 1000, false, rewriting)
}

/// `HPEXPIRE key milliseconds [condition] FIELDS n field ...`
pub fn hpexpire(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    expire_in(frame, 1, false, rewriting)
}

/// `HEXPIREAT key seconds [condition] FIELDS n field ...`
pub fn hexpireat(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    expire_in(frame, 1000, true, rewriting)
}

/// `HPEXPIREAT key milliseconds [condition] FIELDS n field ...`
pub fn hpexpireat(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    expire_in(frame, 1, true, rewriting)
}

fn expire_in(
    frame: &Frame<'_>,
    unit_ms: u64,
    absolute: bool,
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
    let Some(at_ms) = rewriting.moment(time, unit_ms, absolute) else {
        return Ok(Verdict::Same);
    };
    let fields = || frame.args().skip(first).take(count);
    let given = rewriting.deadlines.of_fields(key, &mut fields(), at_ms);
    if absolute && given == at_ms {
        return Ok(Verdict::Same);
    }
    // A condition may hold for some fields only: it stays.
    let condition = frame.arg(3).filter(|arg| !is_word(arg, "fields"));
    match condition {
        None => expire_fields(b"HPEXPIREAT", key, given, count, fields(), rewriting),
        Some(condition) => {
            let mut command = rewriting.begin(6 + count);
            command.arg(b"HPEXPIREAT").arg(key).number(given);
            command.arg(condition).arg(b"FIELDS").number(count as u64);
            for field in fields() {
                command.arg(field);
            }
        }
    }
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
    let given = rewriting.deadlines.of_fields(key, &mut fields(), at_ms);
    expire_fields(b"HPEXPIREAT", key, given, count, fields(), rewriting);
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
