//! Where the keys of a command stand, and the slot they share.
//!
//! Rules are those of the servers' own key extraction (`COMMAND GETKEYS`). A command that does not have the keys
//! it claims is an error: it cannot be routed, and no server would have executed it.
//!
//! ```text
//! Range           MSET k v k v            every second argument from 1 to the last
//! Counted         EVAL s 2 k k a a        a count at 2, keys right after it
//! DestinationAnd  ZUNIONSTORE d 2 k k     a key at 1 before such a count
//! OneAndStore     SORT k ... STORE d      a key at 1 and another after an option
//! Streams         XREADGROUP ... STREAMS k k id id
//! ```

use super::Command;
use crate::resp::{Args, Frame};
use crate::slot::slot_of;

/// Where a command's keys stand among its arguments; argument 0 is the verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySpec {
    /// No key.
    None,
    /// One key, argument 1.
    One,
    /// Every `step`th argument from `first` to `last`; a negative `last` counts from the end, -1 being the last argument.
    Range { first: u8, last: i8, step: u8 },
    /// The number of keys stands at `count_at`, the keys follow it, every `step`th argument.
    Counted { count_at: u8, step: u8 },
    /// A key at 1, then as `Counted` with the number at 2.
    DestinationAndCounted,
    /// A key at 1, and the one that follows the last `STORE`.
    SortStore,
    /// A key at 1, and the one that follows the last `STORE` or `STOREDIST` among the options, which start at `options_at`.
    GeoStore { options_at: u8 },
    /// The first half of what follows the word `STREAMS`.
    Streams,
    /// `MIGRATE`: argument 3, or when that is empty everything after the word `KEYS`.
    Migrate,
    /// Only the source can tell, for each command anew.
    AskSource,
}

impl KeySpec {
    /// Arguments `first` and `first + 1`.
    pub const fn pair() -> KeySpec {
        KeySpec::Range {
            first: 1,
            last: 2,
            step: 1,
        }
    }

    /// One key, at another place than 1.
    pub const fn at(place: u8) -> KeySpec {
        KeySpec::Range {
            first: place,
            last: place as i8,
            step: 1,
        }
    }

    /// Every argument from 1 on.
    pub const fn all() -> KeySpec {
        KeySpec::Range {
            first: 1,
            last: -1,
            step: 1,
        }
    }

    /// The indices of `frame`'s keys.
    ///
    /// # Errors
    /// When the arguments do not hold the keys that the command must have.
    pub fn positions(self, frame: &Frame<'_>) -> Result<Positions, KeyError> {
        let argc = frame.argc();
        match self {
            KeySpec::None => Ok(Positions::run(1, 0, 1)),
            KeySpec::One if argc > 1 => Ok(Positions::run(1, 1, 1)),
            KeySpec::One => Err(KeyError::missing(frame)),
            KeySpec::Range { first, last, step } => range(frame, first, last, step),
            KeySpec::Counted { count_at, step } => counted(frame, count_at, step),
            KeySpec::DestinationAndCounted => {
                let sources = counted(frame, 2, 1)?;
                Ok(Positions {
                    lead: true,
                    ..sources
                })
            }
            KeySpec::SortStore => first_and(frame, sort_store(frame)),
            KeySpec::GeoStore { options_at } => first_and(frame, geo_store(frame, options_at)),
            KeySpec::Streams => streams(frame),
            KeySpec::Migrate => migrate(frame),
            KeySpec::AskSource => Err(KeyError::OnlySourceKnows {
                command: describe_verb(frame),
            }),
        }
    }
}

/// Why a command's keys cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("{command} lacks the key that it must have")]
    Missing { command: String },
    #[error("{command} has no valid number of keys at argument {at}")]
    BadCount { command: String, at: usize },
    #[error("{command} claims more keys than it has arguments")]
    TooFew { command: String },
    #[error("{command} does not pair its streams with ids")]
    UnpairedStreams { command: String },
    #[error("the keys of {command} can only be told by the source")]
    OnlySourceKnows { command: String },
}

impl KeyError {
    #[cold]
    fn missing(frame: &Frame<'_>) -> KeyError {
        KeyError::Missing {
            command: describe_verb(frame),
        }
    }
}

/// Names the command without asking for its keys, which is what just failed.
#[cold]
fn describe_verb(frame: &Frame<'_>) -> String {
    format!(
        "{} ({} arguments)",
        super::shortened(frame.verb()),
        frame.argc()
    )
}

/// Indices of keys in rising order: argument 1 if `lead`, then `count` arguments from `first` by `step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    lead: bool,
    first: usize,
    count: usize,
    step: usize,
}

impl Positions {
    fn run(first: usize, count: usize, step: usize) -> Positions {
        Positions {
            lead: false,
            first,
            count,
            step,
        }
    }
}

impl Iterator for Positions {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.lead {
            self.lead = false;
            return Some(1);
        }
        self.count = self.count.checked_sub(1)?;
        let at = self.first;
        self.first += self.step;
        Some(at)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.count + usize::from(self.lead);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Positions {}

/// The keys of a frame in the order in which they stand, found in one walk over its arguments.
#[derive(Clone)]
pub struct Keys<'a> {
    args: Args<'a>,
    /// Index of the argument that `args` gives next.
    at: usize,
    positions: Positions,
}

impl<'a> Iterator for Keys<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let position = self.positions.next()?;
        let key = self.args.nth(position - self.at);
        self.at = position + 1;
        key
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.positions.size_hint()
    }
}

impl ExactSizeIterator for Keys<'_> {}

/// The keys of `frame`, whose row is `command`.
///
/// # Errors
/// When the arguments do not hold the keys that the command must have.
pub fn keys<'a>(frame: &Frame<'a>, command: &Command) -> Result<Keys<'a>, KeyError> {
    Ok(Keys {
        positions: command.keys.positions(frame)?,
        args: frame.args(),
        at: 0,
    })
}

/// The slots of a command's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotOf {
    /// The command has no key.
    None,
    /// All keys are in this slot.
    One(u16),
    /// The keys are in two slots or more.
    Several,
}

/// The slot that all keys of `frame` share; looks no further than the first key elsewhere.
///
/// # Errors
/// When the arguments do not hold the keys that the command must have.
#[inline]
pub fn one_slot(frame: &Frame<'_>, command: &Command) -> Result<SlotOf, KeyError> {
    if let (true, Some(key)) = (command.key_is_first_argument(), frame.arg(1)) {
        return Ok(SlotOf::One(slot_of(key)));
    }
    let mut keys = keys(frame, command)?;
    let Some(slot) = keys.next().map(slot_of) else {
        return Ok(SlotOf::None);
    };
    if keys.all(|key| slot_of(key) == slot) {
        Ok(SlotOf::One(slot))
    } else {
        Ok(SlotOf::Several)
    }
}

fn range(frame: &Frame<'_>, first: u8, last: i8, step: u8) -> Result<Positions, KeyError> {
    let argc = frame.argc();
    let (first, step) = (usize::from(first), usize::from(step));
    assert!(step > 0, "a range of keys needs a step");
    let end = if last < 0 {
        (argc + 1).saturating_sub(usize::from(last.unsigned_abs()))
    } else {
        last as usize + 1
    };
    if first >= end || end > argc {
        return Err(KeyError::missing(frame));
    }
    Ok(Positions::run(first, (end - first).div_ceil(step), step))
}

fn counted(frame: &Frame<'_>, count_at: u8, step: u8) -> Result<Positions, KeyError> {
    let (at, step) = (usize::from(count_at), usize::from(step));
    let count = frame
        .arg(at)
        .and_then(decimal)
        .ok_or_else(|| KeyError::BadCount {
            command: describe_verb(frame),
            at,
        })?;
    let room = (frame.argc() - at - 1) / step;
    if count > room {
        return Err(KeyError::TooFew {
            command: describe_verb(frame),
        });
    }
    Ok(Positions::run(at + 1, count, step))
}

/// A plain decimal number, as servers write counts.
pub(super) fn decimal(text: &[u8]) -> Option<usize> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Key 1 and, when there is one, key `other`: a run of two whose step is their distance.
fn first_and(frame: &Frame<'_>, other: Option<usize>) -> Result<Positions, KeyError> {
    match other {
        _ if frame.argc() < 2 => Err(KeyError::missing(frame)),
        None => Ok(Positions::run(1, 1, 1)),
        Some(other) => Ok(Positions::run(1, 2, other - 1)),
    }
}

/// `SORT key [BY p] [LIMIT o n] [GET p ...] [ASC|DESC] [ALPHA] [STORE d]`: the last `STORE` counts.
fn sort_store(frame: &Frame<'_>) -> Option<usize> {
    let mut store = None;
    let mut args = frame.args().enumerate().skip(2);
    while let Some((at, arg)) = args.next() {
        let values = match arg {
            word if is_word(word, "limit") => 2,
            word if is_word(word, "by") || is_word(word, "get") => 1,
            word if is_word(word, "store") && at + 1 < frame.argc() => {
                store = Some(at + 1);
                1
            }
            _ => 0,
        };
        for _ in 0..values {
            args.next();
        }
    }
    store
}

/// `GEORADIUS key lon lat radius unit [...] [STORE d|STOREDIST d]`: the last one counts.
fn geo_store(frame: &Frame<'_>, options_at: u8) -> Option<usize> {
    let mut store = None;
    let mut args = frame.args().enumerate().skip(usize::from(options_at));
    while let Some((at, arg)) = args.next() {
        if (is_word(arg, "store") || is_word(arg, "storedist")) && at + 1 < frame.argc() {
            store = Some(at + 1);
            args.next();
        }
    }
    store
}

fn streams(frame: &Frame<'_>) -> Result<Positions, KeyError> {
    let mut args = frame.args().enumerate().skip(1);
    let mut first = None;
    while let Some((at, arg)) = args.next() {
        if is_word(arg, "streams") {
            first = Some(at + 1);
            break;
        }
        // Group and consumer may be called STREAMS too.
        let values = match arg {
            word if is_word(word, "group") => 2,
            word if is_word(word, "count") || is_word(word, "block") || is_word(word, "claim") => 1,
            _ => 0,
        };
        for _ in 0..values {
            args.next();
        }
    }
    let first = first.ok_or_else(|| KeyError::missing(frame))?;
    let rest = frame.argc() - first;
    if rest == 0 || !rest.is_multiple_of(2) {
        return Err(KeyError::UnpairedStreams {
            command: describe_verb(frame),
        });
    }
    Ok(Positions::run(first, rest / 2, 1))
}

/// `MIGRATE host port key|"" db timeout [COPY] [REPLACE] [AUTH p|AUTH2 u p] [KEYS k ...]`
fn migrate(frame: &Frame<'_>) -> Result<Positions, KeyError> {
    match frame.arg(3) {
        None => return Err(KeyError::missing(frame)),
        Some(b"") => {}
        Some(_) => return Ok(Positions::run(3, 1, 1)),
    }
    let mut args = frame.args().enumerate().skip(6);
    while let Some((at, arg)) = args.next() {
        let values = match arg {
            word if is_word(word, "auth") => 1,
            word if is_word(word, "auth2") => 2,
            word if is_word(word, "keys") && at + 1 < frame.argc() => {
                return Ok(Positions::run(at + 1, frame.argc() - at - 1, 1));
            }
            _ => 0,
        };
        for _ in 0..values {
            args.next();
        }
    }
    Err(KeyError::missing(frame))
}

/// Whether `arg` is the lower-case `word` in any casing.
pub(super) fn is_word(arg: &[u8], word: &str) -> bool {
    arg.eq_ignore_ascii_case(word.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::testing::with_frame;
    use super::super::{find, lookup};
    use super::*;

    fn keys_of(line: &str) -> Result<Vec<String>, KeyError> {
        with_frame(line, |frame| {
            let command = find(frame).unwrap_or_else(|| panic!("{line} is unknown"));
            let found = keys(frame, command)?;
            let promised = found.len();
            let found: Vec<String> = found
                .map(|key| String::from_utf8_lossy(key).into_owned())
                .collect();
            assert_eq!(found.len(), promised, "{line}");
            let by_index: Vec<String> = command
                .keys
                .positions(frame)?
                .map(|at| String::from_utf8_lossy(frame.arg(at).unwrap()).into_owned())
                .collect();
            assert_eq!(found, by_index, "{line}");
            Ok(found)
        })
    }

    #[test]
    fn keys_are_found_in_every_form() {
        for (line, expected) in [
            ("SET k v", "k"),
            ("set k v PX 5", "k"),
            ("PING", ""),
            ("DEL a", "a"),
            ("DEL a b c d e f", "a b c d e f"),
            ("MSET a 1 b 2 c 3", "a b c"),
            ("MSETEX 2 a 1 b 2 PXAT 9", "a b"),
            ("RENAME a b", "a b"),
            ("COPY a b DB 3 REPLACE", "a b"),
            ("LMOVE a b LEFT RIGHT", "a b"),
            ("BLPOP a b c 0", "a b c"),
            ("BITOP AND d a b", "d a b"),
            ("PFMERGE d a b", "d a b"),
            ("SINTERSTORE d a b", "d a b"),
            ("ZUNIONSTORE d 2 a b WEIGHTS 1 2", "d a b"),
            ("ZDIFFSTORE d 1 a", "d a"),
            ("ZRANGESTORE d a 0 -1", "d a"),
            ("GEOSEARCHSTORE d a FROMMEMBER m BYRADIUS 1 m", "d a"),
            ("LMPOP 2 a b LEFT", "a b"),
            ("BLMPOP 0 2 a b LEFT COUNT 3", "a b"),
            ("ZMPOP 1 a MIN", "a"),
            ("BZMPOP 0 1 a MAX", "a"),
            ("EVAL script 2 a b x y", "a b"),
            ("EVALSHA sha 0 x", ""),
            ("FCALL f 1 a", "a"),
            ("SORT a", "a"),
            ("SORT a BY store LIMIT 0 store GET store", "a"),
            (
                "SORT a BY p LIMIT 0 5 GET x DESC ALPHA STORE wrong STORE d",
                "a d",
            ),
            ("GEORADIUS a 1 2 3 km", "a"),
            ("GEORADIUS a 1 2 3 km COUNT 5 ANY STORE d ASC", "a d"),
            ("GEORADIUSBYMEMBER a store 3 km STOREDIST d", "a d"),
            ("GEORADIUSBYMEMBER a m 3 km", "a"),
            ("XREADGROUP GROUP streams c COUNT 1 STREAMS a b > >", "a b"),
            ("XREAD BLOCK 0 STREAMS a 0", "a"),
            ("XGROUP CREATE s g 0", "s"),
            ("XADD s 1-1 f v", "s"),
            ("MIGRATE h 1 a 0 5", "a"),
            ("MIGRATE h 1  0 5 COPY AUTH keys KEYS a b", "a b"),
            ("RESTORE-ASKING a 0 payload REPLACE", "a"),
            ("SPUBLISH c m", "c"),
            ("PUBLISH c m", ""),
            ("OBJECT ENCODING a", "a"),
            ("VADD a VALUES 1 2 e", "a"),
            ("FLUSHALL ASYNC", ""),
        ] {
            let expected: Vec<&str> = expected.split(' ').filter(|key| !key.is_empty()).collect();
            assert_eq!(keys_of(line).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn a_command_without_the_keys_it_must_have_is_an_error() {
        for line in [
            "SET",
            "DEL",
            "RENAME a",
            "BITOP AND",
            "BLPOP 0",
            "EVAL script",
            "EVAL script x a",
            "EVAL script -1 a",
            "EVAL script 2 a",
            "EVAL script 99999999999999999999999 a",
            "ZUNIONSTORE d 3 a b",
            "MSETEX 2 a 1 b",
            "SORT",
            "GEORADIUS",
            "XREADGROUP GROUP g c",
            "XREADGROUP GROUP g c STREAMS",
            "XREADGROUP GROUP g c STREAMS a b 0",
            "MIGRATE h 1",
            "MIGRATE h 1  0 5 KEYS",
            "XGROUP CREATE",
        ] {
            assert!(keys_of(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_slot_of_a_command_is_that_of_all_its_keys() {
        let slot =
            |line: &str| with_frame(line, |frame| one_slot(frame, find(frame).unwrap()).unwrap());
        assert_eq!(slot("SET foo v"), SlotOf::One(12182));
        assert_eq!(slot("MSET foo 1 {foo}2 2"), SlotOf::One(12182));
        assert_eq!(slot("MSET foo 1 bar 2"), SlotOf::Several);
        assert_eq!(slot("PING"), SlotOf::None);
        assert_eq!(slot("EVAL s 0 x"), SlotOf::None);
        with_frame("GET", |frame| {
            assert!(one_slot(frame, lookup(b"get").unwrap()).is_err());
        });
    }
}
