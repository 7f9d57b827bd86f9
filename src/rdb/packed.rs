//! Elements of the packed encodings: listpack, ziplist, intset and zipmap.
//!
//! ```text
//! listpack  total:u32 count:u16 | entry, its length backwards | ... | ff
//! ziplist   total:u32 tail:u32 count:u16 | length of the one before, entry | ... | ff
//! intset    width:u32 count:u32 | integers, little-endian
//! zipmap    count:u8 | length field | length free value free-bytes | ... | ff
//! ```
//!
//! The counts and totals are claims; only the bytes that are there are read, so no content can make a
//! reader run past its end or for ever: every element takes at least one byte.
//!
//! Elements are read from the front of whatever part of the packed string is there; one that is not whole asks for more.

use super::error::{Halt, Problem};
use super::wire::Cursor;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Listpack,
    Ziplist,
    Intset,
    Zipmap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element<'a> {
    Text(&'a [u8]),
    Integer(i64),
}

impl Element<'_> {
    pub fn append_to(&self, out: &mut Vec<u8>) {
        match *self {
            Element::Text(text) => out.extend_from_slice(text),
            Element::Integer(value) => {
                out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
            }
        }
    }

    pub fn as_integer(&self) -> Option<i64> {
        match *self {
            Element::Integer(value) => Some(value),
            Element::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        }
    }
}

impl Packing {
    fn name(self) -> &'static str {
        match self {
            Packing::Listpack => "listpack",
            Packing::Ziplist => "ziplist",
            Packing::Intset => "intset",
            Packing::Zipmap => "zipmap",
        }
    }

    pub fn corrupt(self) -> Problem {
        Problem::BadPacked(self.name())
    }

    /// How many bytes stand before the first element.
    pub fn header_bytes(self) -> usize {
        match self {
            Packing::Listpack => 6,
            Packing::Ziplist => 10,
            Packing::Intset => 8,
            Packing::Zipmap => 1,
        }
    }

    /// The width of an intset's integers, from its header; nothing for the others.
    pub fn width(self, header: &[u8]) -> Result<u8, Problem> {
        match (
            self,
            header.first_chunk().map(|width| u32::from_le_bytes(*width)),
        ) {
            (Packing::Intset, Some(width @ (2 | 4 | 8))) => Ok(width as u8),
            (Packing::Intset, _) => Err(self.corrupt()),
            _ => Ok(0),
        }
    }

    /// Reads what stands at the front of `bytes`. A string longer than `long` is only measured, as soon as its length is
    /// there: nobody should wait for the whole of it.
    pub fn read(
        self,
        bytes: &[u8],
        width: u8,
        is_value: bool,
        long: usize,
    ) -> Result<Read<'_>, Halt> {
        let mut cursor = Cursor::new(bytes, 0);
        if let Some(string) = self.long_string(bytes, is_value)
            && string.bytes > long
        {
            return Ok(Read::Long(string));
        }
        let element = match self {
            Packing::Listpack => listpack_element(&mut cursor)?,
            Packing::Ziplist => ziplist_element(&mut cursor)?,
            Packing::Intset if bytes.is_empty() => None,
            Packing::Intset => Some(Element::Integer(sign_extended(cursor.take(width.into())?))),
            Packing::Zipmap => zipmap_element(&mut cursor, is_value)?,
        };
        Ok(match element {
            Some(element) => Read::Element(element, cursor.at()),
            None => Read::End(cursor.at()),
        })
    }

    /// The string at the front, if its length is stored in four bytes, and all that stands before it is there.
    fn long_string(self, bytes: &[u8], is_value: bool) -> Option<LongString> {
        let four = |at: usize| bytes.get(at..)?.first_chunk::<4>().copied();
        let first = *bytes.first()?;
        Some(match self {
            Packing::Listpack if first == 0xf0 => {
                let length = u32::from_le_bytes(four(1)?) as usize;
                LongString {
                    before: 5,
                    bytes: length,
                    behind: backward_length_bytes(5 + length),
                }
            }
            Packing::Ziplist => {
                let at = if first == 0xfe { 5 } else { 1 };
                if first == 0xff || !(0x80..0xc0).contains(bytes.get(at)?) {
                    return None;
                }
                LongString {
                    before: at + 5,
                    bytes: u32::from_be_bytes(four(at + 1)?) as usize,
                    behind: 0,
                }
            }
            Packing::Zipmap if first == 0xfe => LongString {
                before: 5 + usize::from(is_value),
                bytes: u32::from_le_bytes(four(1)?) as usize,
                behind: if is_value {
                    usize::from(*bytes.get(5)?)
                } else {
                    0
                },
            },
            _ => return None,
        })
    }

    /// The element at `at` of a whole packed string, which moves behind it; `None` at the end.
    pub fn next<'a>(self, bytes: &'a [u8], at: &mut usize) -> Result<Option<Element<'a>>, Problem> {
        let rest = bytes.get(*at..).unwrap_or_default();
        let width = self.width(bytes)?;
        match self.read(rest, width, false, usize::MAX) {
            Ok(Read::Element(element, size)) => {
                *at += size;
                Ok(Some(element))
            }
            Ok(_) => Ok(None),
            Err(halt) => Err(halt.or(self.corrupt())),
        }
    }
}

/// What stands at the front of a packed string.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read<'a> {
    /// The end, and how many bytes mark it.
    End(usize),
    /// An element, and how many bytes it takes.
    Element(Element<'a>, usize),
    Long(LongString),
}

/// A string that is too long to be read as one: bytes before it, its own, and those behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LongString {
    pub before: usize,
    pub bytes: usize,
    pub behind: usize,
}

impl LongString {
    /// All that it takes.
    pub fn stored_bytes(&self) -> usize {
        self.bytes.saturating_add(self.before + self.behind)
    }
}

fn sign_extended(bytes: &[u8]) -> i64 {
    let mut wide = [0u8; 8];
    wide[8 - bytes.len()..].copy_from_slice(bytes);
    i64::from_le_bytes(wide) >> (8 * (8 - bytes.len()))
}

/// ```text
/// 0xxxxxxx                 7 bits, unsigned       10LLLLLL            string of up to 63 bytes
/// 110xxxxx xxxxxxxx        13 bits, signed        1110LLLL LLLLLLLL   string of up to 4095
/// f1 f2 f3 f4              2, 3, 4, 8 bytes       f0 + u32            longer string
/// ```
fn listpack_element<'a>(cursor: &mut Cursor<'a>) -> Result<Option<Element<'a>>, Halt> {
    let start = cursor.at();
    let element = match cursor.u8()? {
        0xff => return Ok(None),
        small @ 0..0x80 => Element::Integer(i64::from(small)),
        short @ 0x80..0xc0 => Element::Text(cursor.take(usize::from(short & 0x3f))?),
        high @ 0xc0..0xe0 => {
            let unsigned = i64::from(high & 0x1f) << 8 | i64::from(cursor.u8()?);
            Element::Integer(unsigned << 51 >> 51)
        }
        high @ 0xe0..0xf0 => {
            let length = usize::from(high & 0x0f) << 8 | usize::from(cursor.u8()?);
            Element::Text(cursor.take(length)?)
        }
        0xf0 => {
            let length = u32::from_le_bytes(cursor.array()?);
            Element::Text(cursor.take(length as usize)?)
        }
        0xf1 => Element::Integer(sign_extended(cursor.take(2)?)),
        0xf2 => Element::Integer(sign_extended(cursor.take(3)?)),
        0xf3 => Element::Integer(sign_extended(cursor.take(4)?)),
        0xf4 => Element::Integer(sign_extended(cursor.take(8)?)),
        _ => return Err(Packing::Listpack.corrupt().into()),
    };
    cursor.take(backward_length_bytes(cursor.at() - start))?;
    Ok(Some(element))
}

/// How many bytes a listpack spends on saying that an entry has `entry_bytes`, seven bits each.
fn backward_length_bytes(entry_bytes: usize) -> usize {
    match entry_bytes {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        2_097_152..=268_435_455 => 4,
        _ => 5,
    }
}

/// ```text
/// 00LLLLLL / 01LLLLLL LLLLLLLL / 10...... + u32 big-endian     string
/// c0 d0 e0 f0 fe           2, 4, 8, 3, 1 bytes, signed          f1..fd  0..12
/// ```
fn ziplist_element<'a>(cursor: &mut Cursor<'a>) -> Result<Option<Element<'a>>, Halt> {
    match cursor.u8()? {
        0xff => return Ok(None),
        0xfe => drop(cursor.take(4)?),
        _ => {}
    }
    Ok(Some(match cursor.u8()? {
        short @ 0..0x40 => Element::Text(cursor.take(usize::from(short))?),
        high @ 0x40..0x80 => {
            let length = usize::from(high & 0x3f) << 8 | usize::from(cursor.u8()?);
            Element::Text(cursor.take(length)?)
        }
        0x80..0xc0 => {
            let length = u32::from_be_bytes(cursor.array()?);
            Element::Text(cursor.take(length as usize)?)
        }
        0xc0 => Element::Integer(sign_extended(cursor.take(2)?)),
        0xd0 => Element::Integer(sign_extended(cursor.take(4)?)),
        0xe0 => Element::Integer(sign_extended(cursor.take(8)?)),
        0xf0 => Element::Integer(sign_extended(cursor.take(3)?)),
        0xfe => Element::Integer(sign_extended(cursor.take(1)?)),
        immediate @ 0xf1..=0xfd => Element::Integer(i64::from(immediate) - 0xf1),
        _ => return Err(Packing::Ziplist.corrupt().into()),
    }))
}

/// A field, or a value and the free bytes behind it.
fn zipmap_element<'a>(
    cursor: &mut Cursor<'a>,
    is_value: bool,
) -> Result<Option<Element<'a>>, Halt> {
    let Some(length) = zipmap_length(cursor)? else {
        return Ok(None);
    };
    let free = if is_value {
        usize::from(cursor.u8()?)
    } else {
        0
    };
    let text = cursor.take(length)?;
    cursor.take(free)?;
    Ok(Some(Element::Text(text)))
}

fn zipmap_length(cursor: &mut Cursor<'_>) -> Result<Option<usize>, Halt> {
    match cursor.u8()? {
        0xff => Ok(None),
        0xfe => Ok(Some(u32::from_le_bytes(cursor.array()?) as usize)),
        short => Ok(Some(usize::from(short))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(packing: Packing, bytes: &[u8]) -> Result<Vec<String>, Problem> {
        let mut at = packing.header_bytes();
        let mut out = Vec::new();
        while let Some(element) = packing.next(bytes, &mut at)? {
            let mut text = Vec::new();
            element.append_to(&mut text);
            out.push(String::from_utf8_lossy(&text).into_owned());
        }
        Ok(out)
    }

    #[test]
    fn every_listpack_entry_form_is_read() {
        let mut pack = vec![0; 6];
        pack.extend([0x7f, 1]); // 127
        pack.extend([0x83, b'a', b'b', b'c', 4]);
        pack.extend([0xdf, 0xff, 2]); // -1 in 13 bits
        pack.extend([0xcf, 0xff, 2]); // 4095
        pack.extend([0xf1, 0x00, 0x80, 3]); // i16::MIN
        pack.extend([0xf2, 0xff, 0xff, 0x7f, 4]); // 2^23 - 1
        pack.extend([0xf3, 0, 0, 0, 0x80, 5]); // i32::MIN
        pack.extend([0xf4, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 9]);
        pack.extend([0xe0, 100]);
        pack.extend([b'x'; 100]);
        pack.push(102);
        pack.extend([0xf0, 200, 0, 0, 0]);
        pack.extend([b'y'; 200]);
        pack.extend([0, 0]);
        pack.push(0xff);
        let expected = vec![
            "127".to_string(),
            "abc".into(),
            "-1".into(),
            "4095".into(),
            "-32768".into(),
            "8388607".into(),
            "-2147483648".into(),
            "9223372036854775807".into(),
            "x".repeat(100),
            "y".repeat(200),
        ];
        assert_eq!(all(Packing::Listpack, &pack), Ok(expected));
    }

    #[test]
    fn every_ziplist_entry_form_is_read() {
        let mut list = vec![0; 10];
        list.extend([0, 0x02, b'h', b'i']);
        list.extend([4, 0x40, 3, b'a', b'b', b'c']);
        list.extend([0xfe, 9, 0, 0, 0, 0x80, 0, 0, 0, 1, b'z']);
        list.extend([6, 0xc0, 0xff, 0xff]);
        list.extend([4, 0xd0, 1, 0, 0, 0]);
        list.extend([6, 0xe0, 2, 0, 0, 0, 0, 0, 0, 0]);
        list.extend([10, 0xf0, 0, 0, 0x80]);
        list.extend([5, 0xfe, 0x80]);
        list.extend([3, 0xf1]);
        list.extend([2, 0xfd]);
        list.push(0xff);
        let expected = [
            "hi", "abc", "z", "-1", "1", "2", "-8388608", "-128", "0", "12",
        ];
        assert_eq!(
            all(Packing::Ziplist, &list),
            Ok(expected.map(String::from).to_vec())
        );
    }

    #[test]
    fn intsets_of_each_width_are_read() {
        for (width, bytes) in [
            (2u32, (-5i16).to_le_bytes().to_vec()),
            (4, (-5i32).to_le_bytes().to_vec()),
            (8, (-5i64).to_le_bytes().to_vec()),
        ] {
            let set = [&width.to_le_bytes()[..], &[1, 0, 0, 0], &bytes].concat();
            assert_eq!(all(Packing::Intset, &set), Ok(vec!["-5".to_string()]));
            assert!(all(Packing::Intset, &set[..set.len() - 1]).is_err());
        }
        assert!(all(Packing::Intset, &[3, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn zipmap_pairs_skip_free_space() {
        let map = [2, 1, b'f', 2, 3, b'v', b'w', 0, 0, 0, 1, b'g', 0, 0, 0xff];
        let read = |at: usize, is_value| Packing::Zipmap.read(&map[at..], 0, is_value, usize::MAX);
        let text = |text: &'static [u8], size| Ok(Read::Element(Element::Text(text), size));
        assert_eq!(read(1, false), text(b"f", 2));
        assert_eq!(read(3, true), text(b"vw", 7));
        assert_eq!(read(10, false), text(b"g", 2));
        assert_eq!(read(12, true), text(b"", 2));
        assert_eq!(read(14, false), Ok(Read::End(1)));
    }

    #[test]
    fn a_long_string_is_measured_before_it_is_there() {
        let long = |before, bytes, behind| {
            Ok(Read::Long(LongString {
                before,
                bytes,
                behind,
            }))
        };
        let listpack = [&[0xf0, 0, 0, 1, 0][..], &[7; 6]].concat();
        let ziplist = [&[0xfe, 9, 9, 0, 0, 0x80, 0, 1, 0, 0][..], &[7; 6]].concat();
        let zipmap = [&[0xfe, 0, 0, 1, 0, 2][..], &[7; 6]].concat();
        for (packing, bytes, before, behind) in [
            (Packing::Listpack, &listpack, 5, 3),
            (Packing::Ziplist, &ziplist, 10, 0),
            (Packing::Zipmap, &zipmap, 6, 2),
        ] {
            for end in 0..=bytes.len() {
                let read = packing.read(&bytes[..end], 0, true, 1000);
                if end >= before {
                    assert_eq!(read, long(before, 65536, behind));
                } else {
                    // Of the string itself nothing is asked for.
                    assert!(matches!(read, Err(Halt::More { needed }) if needed <= before as u64));
                }
            }
        }
        let more = Packing::Listpack.read(&listpack, 0, true, 1 << 20);
        assert_eq!(more, Err(Halt::More { needed: 65541 }));
    }

    #[test]
    fn a_pack_that_ends_early_is_an_error() {
        let pack = [0, 0, 0, 0, 0, 0, 0x83, b'a', b'b', b'c', 4];
        assert!(all(Packing::Listpack, &pack).is_err());
        assert!(all(Packing::Listpack, &pack[..5]).is_err());
        assert!(all(Packing::Ziplist, &[0; 10]).is_err());
    }
}
