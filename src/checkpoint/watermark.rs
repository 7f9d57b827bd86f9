//! Watermarks: up to where the commands of one slot have been applied, exactly.

use std::fmt;
use std::str::FromStr;

use crate::position::Offset;

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
        write!(f, "{}.{}", self.generation, self.offset)
    }
}

impl FromStr for Watermark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (generation, offset) = text.rsplit_once('.').ok_or(())?;
        Ok(Self {
            generation: generation.parse()?,
            offset: Offset(decimal(offset)?),
        })
    }
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
        let watermark = Watermark {
            generation: Generation {
                epoch: u32::MAX,
                number: 7,
            },
            offset: Offset(u64::MAX),
        };
        assert_eq!(watermark.to_string().parse(), Ok(watermark));
        for text in [
            "", "1", "1.2", "1.2.", "1.2.-3", "a.2.3", "1.2.3.4", "1.+2.3",
        ] {
            assert!(text.parse::<Watermark>().is_err(), "{text}");
        }
    }
}
