//! Streams: what `XADD`, `XTRIM`, `XGROUP` and `XSETID` learned after 6.0, and a word that only a master may say.
//!
//! Servers replicate an approximate trim with the length or id that it came to, and leave `LIMIT` there, which they
//! accept beside `=` from their master only: `XADD s MAXLEN = 6 LIMIT 10 8-1 f v`. So it is taken out for every target.

use super::{Features, Lack, Rewriting, Verdict};
use crate::command::keys::{decimal, is_word};
use crate::rdb::StreamId;
use crate::resp::Frame;

/// Removes all entries up to an id. The exact trim of 6.0 knows lengths only.
const TRIM_UP_TO: &[u8] = b"while true do \
    local r=redis.call('XRANGE',KEYS[1],'-',ARGV[1],'COUNT',100) \
    if #r==0 then return end \
    for _,e in ipairs(r) do redis.call('XDEL',KEYS[1],e[1]) end \
    end";

/// How a command trims.
struct Trim<'a> {
    /// `MINID`, not `MAXLEN`.
    by_id: bool,
    exact: bool,
    threshold: &'a [u8],
    limit: bool,
}

/// Options of `XADD` and `XTRIM`.
#[derive(Default)]
struct Options<'a> {
    trim: Option<Trim<'a>>,
    no_stream: bool,
    /// `DELREF` or `ACKED`.
    references: Option<&'a [u8]>,
    /// `KEEPREF`, the default.
    keep: bool,
    /// Arguments read.
    count: usize,
}

/// Reads options up to the first word that is none; `None` when one is cut short.
fn options<'a>(args: impl Iterator<Item = &'a [u8]>) -> Option<Options<'a>> {
    let mut args = args.peekable();
    let mut found = Options::default();
    while let Some(&arg) = args.peek() {
        match arg {
            word if is_word(word, "nomkstream") => found.no_stream = true,
            word if is_word(word, "delref") || is_word(word, "acked") => {
                found.references = Some(arg)
            }
            word if is_word(word, "keepref") => found.keep = true,
            word if is_word(word, "maxlen") || is_word(word, "minid") => {
                args.next();
                found.count += 1;
                let mut threshold = *args.peek()?;
                let exact = threshold != b"~";
                if matches!(threshold, b"=" | b"~") {
                    args.next();
                    found.count += 1;
                    threshold = *args.peek()?;
                }
                found.trim = Some(Trim {
                    by_id: is_word(arg, "minid"),
                    exact,
                    threshold,
                    limit: false,
                });
            }
            word if is_word(word, "limit") => {
                args.next();
                found.count += 1;
                args.peek()?;
                found.trim.as_mut()?.limit = true;
            }
            _ => break,
        }
        args.next();
        found.count += 1;
    }
    Some(found)
}

impl Options<'_> {
    /// Whether the target does not take these as they are.
    fn alter(&self, rewriting: &Rewriting<'_>) -> Result<bool, Lack> {
        if self.references.is_some() && rewriting.lacks(Features::REDIS_8_2) {
            return Err(Lack::Command);
        }
        let trim = self.trim.as_ref();
        Ok(trim.is_some_and(|trim| trim.limit && trim.exact)
            || self.keep && rewriting.lacks(Features::REDIS_8_2)
            || rewriting.lacks(Features::REDIS_6_2)
                && (self.no_stream || trim.is_some_and(|trim| trim.by_id || trim.limit)))
    }

    /// Words of the trim that go into the command itself.
    fn words(&self, rewriting: &Rewriting<'_>) -> Vec<&[u8]> {
        let mut words: Vec<&[u8]> = self.references.into_iter().collect();
        if let Some(trim) = &self.trim
            && !(trim.by_id && rewriting.lacks(Features::REDIS_6_2))
        {
            words.push(if trim.by_id { b"MINID" } else { b"MAXLEN" });
            words.push(if trim.exact { b"=" } else { b"~" });
            words.push(trim.threshold);
        }
        words
    }

    /// The trim by id as a script, for 6.0.
    fn trim_by_script(&self, key: &[u8], rewriting: &mut Rewriting<'_>) {
        let Some(trim) = &self.trim else { return };
        if !trim.by_id || !rewriting.lacks(Features::REDIS_6_2) {
            return;
        }
        if let Some(last) = id_before(trim.threshold) {
            let last = format!("{}-{}", last.milliseconds, last.sequence);
            rewriting.push(&[b"EVAL", TRIM_UP_TO, b"1", key, last.as_bytes()]);
        }
    }
}

/// The greatest id below `id`, which is `ms` or `ms-seq`; `None` if there is none.
fn id_before(id: &[u8]) -> Option<StreamId> {
    let (milliseconds, sequence) = match memchr::memchr(b'-', id) {
        Some(dash) => (&id[..dash], &id[dash + 1..]),
        None => (id, &b"0"[..]),
    };
    let milliseconds = decimal(milliseconds)? as u64;
    let sequence = decimal(sequence)? as u64;
    match sequence.checked_sub(1) {
        Some(sequence) => Some(StreamId {
            milliseconds,
            sequence,
        }),
        None => Some(StreamId {
            milliseconds: milliseconds.checked_sub(1)?,
            sequence: u64::MAX,
        }),
    }
}

/// `XADD key [NOMKSTREAM] [KEEPREF|DELREF|ACKED] [MAXLEN|MINID [=|~] n [LIMIT n]] id field value ...`
pub fn xadd(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let (Some(key), Some(options)) = (frame.arg(1), options(frame.args().skip(2))) else {
        return Ok(Verdict::Same);
    };
    match options.alter(rewriting) {
        Ok(false) => return Ok(Verdict::Same),
        Err(lack) => return rewriting.nothing(lack),
        Ok(true) => {}
    }
    let words = options.words(rewriting);
    let rest = 2 + options.count;
    let mut command = rewriting.begin(2 + words.len() + frame.argc() - rest);
    command.arg(frame.verb()).arg(key);
    for word in words {
        command.arg(word);
    }
    for arg in frame.args().skip(rest) {
        command.arg(arg);
    }
    drop(command);
    options.trim_by_script(key, rewriting);
    Ok(rewriting.rebuilt())
}

/// `XTRIM key MAXLEN|MINID [=|~] n [LIMIT n] [KEEPREF|DELREF|ACKED]`
pub fn xtrim(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let (Some(key), Some(options)) = (frame.arg(1), options(frame.args().skip(2))) else {
        return Ok(Verdict::Same);
    };
    match options.alter(rewriting) {
        Ok(false) => return Ok(Verdict::Same),
        Err(lack) => return rewriting.nothing(lack),
        Ok(true) => {}
    }
    let words = options.words(rewriting);
    if !words.is_empty() {
        let mut command = rewriting.begin(2 + words.len());
        command.arg(frame.verb()).arg(key);
        for word in words {
            command.arg(word);
        }
    }
    options.trim_by_script(key, rewriting);
    Ok(rewriting.rebuilt())
}

/// `XGROUP CREATE|SETID key group id [MKSTREAM] [ENTRIESREAD n]` without what 6.0 does not count.
pub fn group(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let mut kept: Vec<&[u8]> = Vec::with_capacity(frame.argc());
    let mut args = frame.args();
    while let Some(arg) = args.next() {
        if kept.len() >= 5 && is_word(arg, "entriesread") {
            args.next();
        } else {
            kept.push(arg);
        }
    }
    if kept.len() == frame.argc() {
        return Ok(Verdict::Same);
    }
    rewriting.push(&kept);
    Ok(rewriting.rebuilt())
}

/// `XGROUP CREATECONSUMER key group consumer`: on 6.0 reading one's own history makes a consumer, and changes nothing else.
pub fn create_consumer(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let (Some(key), Some(group), Some(consumer)) = (frame.arg(2), frame.arg(3), frame.arg(4))
    else {
        return Ok(Verdict::Same);
    };
    rewriting.push(&[
        b"XREADGROUP",
        b"GROUP",
        group,
        consumer,
        b"COUNT",
        b"1",
        b"STREAMS",
        key,
        b"0",
    ]);
    Ok(rewriting.rebuilt())
}

/// `XSETID key id [ENTRIESADDED n MAXDELETEDID id]` without what 6.0 does not count.
pub fn xsetid(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let (Some(key), Some(id)) = (frame.arg(1), frame.arg(2)) else {
        return Ok(Verdict::Same);
    };
    rewriting.push(&[frame.verb(), key, id]);
    Ok(rewriting.rebuilt())
}
