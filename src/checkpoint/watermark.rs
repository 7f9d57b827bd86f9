//! Watermarks: up to where the commands of one slot have been applied, exactly.
//!
//! ```text
//! 3:1:15ftgG                     all of the slot before that offset: epoch and number of the generation, and the
//!                                offset, each in base 62
//! 3:1:15ftgG 0:6b31,2:6b32       all but what concerns these keys (database:name in hexadecimal digits)
//! 3:1:15ftgG *                   all but what concerns some keys, too many to be named
//! ```
//!
//! There may be one for each slot, so a few bytes count: with up to twelve, which most have, a Redis 7.0 takes 104 bytes for a
//! watermark with its key, and 120 with more.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use crate::limits;
use crate::position::Offset;
use crate::slot::BASE_62;

/// Names a history of one lane as the target saw it. Offsets of two generations are never compared.
///
/// A lane gets a new one with every copy, and whenever the source lost writes that the target may have. It is made of
/// the epoch of the process, which grows with every start, and a number that grows within it: no two are ever the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation {
    pub epoch: u32,
    pub number: u32,
}

/// Everything of the slot before this offset is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermark {
    pub generation: Generation,
    /// Where the last command that must not be repeated ends in the source's stream.
    pub offset: Offset,
}

/// Keys of a slot that differ from the source's, for which its watermark does not speak: they are to be mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owed {
    /// By database and name.
    Keys(Vec<(u32, Vec<u8>)>),
    /// Too many to be named. Each had a command before the watermark.
    Some,
}

/// What the key of a watermark holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub watermark: Watermark,
    /// `None`: it speaks for all keys.
    pub owed: Option<Owed>,
}

impl Owed {
    /// These keys, if their names are not too long together.
    pub fn of<'k>(keys: impl Iterator<Item = &'k (u32, Vec<u8>)> + Clone) -> Self {
        // A database has at most ten digits.
        let bytes: usize = keys.clone().map(|(_, name)| 2 * name.len() + 12).sum();
        match bytes <= limits::OWED_BYTES {
            true => Self::Keys(keys.cloned().collect()),
            false => Self::Some,
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.watermark)?;
        match &self.owed {
            None => Ok(()),
            Some(Owed::Some) => f.write_str(" *"),
            Some(Owed::Keys(keys)) => {
                for (place, (database, name)) in keys.iter().enumerate() {
                    let before = if place == 0 { ' ' } else { ',' };
                    write!(f, "{before}{database}:")?;
                    name.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                }
                Ok(())
            }
        }
    }
}

impl FromStr for Mark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (watermark, owed) = match text.split_once(' ') {
            None => (text, None),
            Some((watermark, "*")) => (watermark, Some(Owed::Some)),
            Some((watermark, keys)) => {
                let keys: Result<Vec<_>, ()> = keys.split(',').map(owed_key).collect();
                (watermark, Some(Owed::Keys(keys?)))
            }
        };
        Ok(Self {
            watermark: watermark.parse()?,
            owed,
        })
    }
}

/// A key as `Display` writes it.
fn owed_key(text: &str) -> Result<(u32, Vec<u8>), ()> {
    let (database, name) = text.split_once(':').ok_or(())?;
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(());
    let pair = |pair: &[u8]| match pair {
        [high, low] => Ok((digit(*high)? << 4 | digit(*low)?) as u8),
        _ => Err(()),
    };
    let name: Result<Vec<u8>, ()> = name.as_bytes().chunks(2).map(pair).collect();
    Ok((decimal(database)?, name?))
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.number)
    }
}

impl FromStr for Generation {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (epoch, number) = text.split_once('.').ok_or(())?;
        Ok(Self {
            epoch: decimal(epoch)?,
            number: decimal(number)?,
        })
    }
}

impl fmt::Display for Watermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Generation { epoch, number } = self.generation;
        let parts = [u64::from(epoch), u64::from(number), self.offset.0];
        for (place, part) in parts.into_iter().enumerate() {
            if place > 0 {
                f.write_char(':')?;
            }
            let mut digits = [0; MAX_DIGITS];
            f.write_str(in_base_62(part, &mut digits))?;
        }
        Ok(())
    }
}

impl FromStr for Watermark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(':');
        let mut next = || from_base_62(parts.next()?);
        let watermark = Self {
            generation: Generation {
                epoch: narrow(next())?,
                number: narrow(next())?,
            },
            offset: Offset(next().ok_or(())?),
        };
        parts.next().is_none().then_some(watermark).ok_or(())
    }
}

fn narrow(number: Option<u64>) -> Result<u32, ()> {
    number.and_then(|n| n.try_into().ok()).ok_or(())
}

/// Of the largest number.
const MAX_DIGITS: usize = 11;

fn in_base_62(mut number: u64, digits: &mut [u8; MAX_DIGITS]) -> &str {
    let mut first = MAX_DIGITS;
    loop {
        first -= 1;
        digits[first] = BASE_62[(number % 62) as usize];
        number /= 62;
        if number == 0 {
            return std::str::from_utf8(&digits[first..]).expect("digits are ASCII");
        }
    }
}

/// `None` for what [`in_base_62`] does not write.
fn from_base_62(digits: &str) -> Option<u64> {
    let canonical = digits == "0" || !digits.starts_with('0');
    let mut number = (canonical && !digits.is_empty()).then_some(0u64)?;
    for digit in digits.bytes() {
        let value = BASE_62.iter().position(|other| *other == digit)?;
        number = number.checked_mul(62)?.checked_add(value as u64)?;
    }
    Some(number)
}

/// A number as `Display` writes it: no sign, nothing around it.
fn decimal<N: FromStr>(text: &str) -> Result<N, ()> {
    match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().map_err(|_| ()),
        false => Err(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermarks_read_what_they_write() {
        let watermark = |epoch, number, offset| Watermark {
            generation: Generation { epoch, number },
            offset: Offset(offset),
        };
        for (epoch, number, offset) in [
            (0, 0, 0),
            (1, 61, 62),
            (u32::MAX, 7, u64::MAX),
            (62, u32::MAX, 1 << 40),
        ] {
            let watermark = watermark(epoch, number, offset);
            assert_eq!(watermark.to_string().parse(), Ok(watermark));
        }
        assert_eq!(watermark(3, 1, 1_000_000_000).to_string(), "3:1:15ftgG");
        for text in [
            "",
            "1",
            "1:2",
            "1:2:",
            "1:2:-3",
            "1.2.3",
            "1:2:3:4",
            "1:+2:3",
            "1:2:03",
            "1::3",
            "zzzzzzz:2:3",
            "1:2:zzzzzzzzzzz",
        ] {
            assert!(text.parse::<Watermark>().is_err(), "{text}");
            assert!(text.parse::<Mark>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_watermark_names_keys_that_it_does_not_speak_for() {
        let watermark: Watermark = "1:2:3".parse().unwrap();
        let keys = [
            (0, b"a b,:*".to_vec()),
            (7, Vec::new()),
            (u32::MAX, vec![0, 255]),
        ];
        for owed in [None, Some(Owed::Some), Some(Owed::of(keys.iter()))] {
            let mark = Mark { watermark, owed };
            assert_eq!(mark.to_string().parse(), Ok(mark));
        }
        let long = [(0, vec![b'k'; limits::OWED_BYTES / 2])];
        assert_eq!(Owed::of(long.iter()), Owed::Some);
        for text in [
            "1:2:3 ",
            "1:2:3 6b",
            "1:2:3 0:6",
            "1:2:3 0:6x",
            "1:2:3 -1:6b",
            "1:2:3 0:6b,",
            "1:2 *",
        ] {
            assert!(text.parse::<Mark>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_watermark_of_a_long_history_is_short() {
        let watermark = Watermark {
            generation: Generation {
                epoch: 1000,
                number: 9,
            },
            offset: Offset(3_000_000_000_000),
        };
        assert!(watermark.to_string().len() <= 12, "{watermark}");
    }
}
