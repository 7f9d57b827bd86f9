//! The primitives of the format: lengths and strings.
//!
//! ```text
//! 00LLLLLL                    length 0..63
//! 01LLLLLL LLLLLLLL           14 bits, big-endian
//! 10000000 + 4 bytes          32 bits, big-endian
//! 10000001 + 8 bytes          64 bits, big-endian
//! 11000000 / 01 / 10          (strings only) 8/16/32-bit signed integer, little-endian
//! 11000011 packed plain ...   (strings only) LZF: two lengths, then the packed bytes
//! ```

use super::error::{Halt, Problem};
use super::lzf;
use crate::limits;

/// Reads forward through a slice; every read is checked.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// How a string is stored, and how many bytes follow its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextHead {
    Raw { bytes: usize },
    Integer { bytes: usize },
    Lzf { packed: usize, plain: usize },
}

impl TextHead {
    /// How many bytes follow the head.
    pub fn stored_bytes(self) -> usize {
        match self {
            TextHead::Raw { bytes } | TextHead::Integer { bytes } => bytes,
            TextHead::Lzf { packed, .. } => packed,
        }
    }
}

/// A string as stored.
#[derive(Clone, Copy, Debug)]
pub(super) enum Text<'a> {
    Raw(&'a [u8]),
    Integer(i32),
    Lzf { packed: &'a [u8], plain: usize },
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    #[inline]
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Halt> {
        match self.rest().get(..count) {
            Some(taken) => {
                self.at += count;
                Ok(taken)
            }
            None => Err(Halt::More {
                needed: self.at as u64 + count as u64,
            }),
        }
    }

    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Halt> {
        let taken = self.take(N)?;
        Ok(*taken.first_chunk::<N>().expect("took N bytes"))
    }

    #[inline]
    pub fn u8(&mut self) -> Result<u8, Halt> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u64_le(&mut self) -> Result<u64, Halt> {
        self.array().map(u64::from_le_bytes)
    }

    /// A plain length or number.
    #[inline]
    pub fn length(&mut self) -> Result<u64, Halt> {
        let first = self.u8()?;
        self.length_after(first)
    }

    #[inline]
    fn length_after(&mut self, first: u8) -> Result<u64, Halt> {
        match first {
            0..0x40 => Ok(u64::from(first)),
            0x40..0x80 => Ok(u64::from(first & 0x3f) << 8 | u64::from(self.u8()?)),
            0x80 => self.array().map(|b| u64::from(u32::from_be_bytes(b))),
            0x81 => self.array().map(u64::from_be_bytes),
            other => Err(Problem::BadLength(other).into()),
        }
    }

    #[inline]
    pub fn text_head(&mut self) -> Result<TextHead, Halt> {
        match self.u8()? {
            0xc0 => Ok(TextHead::Integer { bytes: 1 }),
            0xc1 => Ok(TextHead::Integer { bytes: 2 }),
            0xc2 => Ok(TextHead::Integer { bytes: 4 }),
            0xc3 => {
                let packed = string_length(self.length()?)?;
                let plain = string_length(self.length()?)?;
                Ok(TextHead::Lzf { packed, plain })
            }
            first if first < 0xc0 => {
                let bytes = string_length(self.length_after(first)?)?;
                Ok(TextHead::Raw { bytes })
            }
            other => Err(Problem::BadStringEncoding(other).into()),
        }
    }

    #[inline]
    pub fn text(&mut self) -> Result<Text<'a>, Halt> {
        match self.text_head()? {
            TextHead::Raw { bytes } => self.take(bytes).map(Text::Raw),
            TextHead::Integer { bytes } => {
                let stored = self.take(bytes)?;
                Ok(Text::Integer(match *stored {
                    [a] => i32::from(a as i8),
                    [a, b] => i32::from(i16::from_le_bytes([a, b])),
                    [a, b, c, d] => i32::from_le_bytes([a, b, c, d]),
                    _ => unreachable!("integers are stored in 1, 2 or 4 bytes"),
                }))
            }
            TextHead::Lzf { packed, plain } => {
                let packed = self.take(packed)?;
                Ok(Text::Lzf { packed, plain })
            }
        }
    }
}

#[inline]
fn string_length(claimed: u64) -> Result<usize, Problem> {
    if claimed <= limits::MAX_STRING_BYTES as u64 {
        Ok(claimed as usize)
    } else {
        Err(Problem::TooLong(claimed))
    }
}

impl<'a> Text<'a> {
    /// Appends the string itself to `out`.
    pub fn append_to(&self, out: &mut Vec<u8>) -> Result<(), Problem> {
        match *self {
            Text::Raw(bytes) => out.extend_from_slice(bytes),
            Text::Integer(value) => {
                out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
            }
            Text::Lzf { packed, plain } => lzf::append(packed, plain, out)?,
        }
        Ok(())
    }

    /// The string itself, put into `scratch` unless it lies in the input as it is.
    pub fn resolve<'s>(&self, scratch: &'s mut Vec<u8>) -> Result<&'s [u8], Problem>
    where
        'a: 's,
    {
        if let Text::Raw(bytes) = *self {
            return Ok(bytes);
        }
        scratch.clear();
        self.append_to(scratch)?;
        Ok(scratch)
    }
}
