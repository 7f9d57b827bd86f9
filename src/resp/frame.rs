//! The command scanner: finds one command at the start of a buffer.
//!
//! Invariant: a returned frame was checked to its last byte, every length and every CRLF. A prefix of a
//! valid frame is `None` (read more), anything else is an error with the byte offset where it went wrong.
//!
//! The hot path is [`scan`]; its naive twin, used as oracle, is in `tests/` and `benches/`.

use crate::limits;

/// How many leading arguments a frame remembers the place of; later ones are found by walking.
const REMEMBERED: usize = 4;

/// One complete command, as a range of the receive buffer.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    bytes: &'a [u8],
    argc: u32,
    /// Start and length of the first arguments within `bytes`.
    heads: [(u32, u32); REMEMBERED],
}

/// Why bytes cannot be a command. Offsets count from the start of the scanned buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("byte {offset}: expected '{expected}', found 0x{found:02x}")]
    Unexpected {
        offset: usize,
        expected: char,
        found: u8,
    },
    #[error("byte {offset}: not a decimal length")]
    BadLength { offset: usize },
    #[error("byte {offset}: length {length} is over the limit of {limit}")]
    TooLong {
        offset: usize,
        length: usize,
        limit: usize,
    },
}

impl<'a> Frame<'a> {
    /// The whole command as it came.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Number of arguments, the verb included; at least 1.
    pub fn argc(&self) -> usize {
        self.argc as usize
    }

    /// The command's name as it was sent, casing kept.
    pub fn verb(&self) -> &'a [u8] {
        let (start, len) = self.heads[0];
        &self.bytes[start as usize..(start + len) as usize]
    }

    /// Where the name stands within [`Frame::bytes`].
    pub fn verb_range(&self) -> std::ops::Range<usize> {
        let (start, len) = self.heads[0];
        start as usize..(start + len) as usize
    }

    /// Argument `index` (0 is the verb). Constant time for the first four, a walk for later ones.
    pub fn arg(&self, index: usize) -> Option<&'a [u8]> {
        if index >= self.argc() {
            return None;
        }
        if index < REMEMBERED {
            let (start, len) = self.heads[index];
            return Some(&self.bytes[start as usize..(start + len) as usize]);
        }
        self.args().nth(index)
    }

    /// All arguments in order, the verb first.
    pub fn args(&self) -> Args<'a> {
        let header = 3 + digits(self.argc as usize);
        Args {
            rest: &self.bytes[header..],
            left: self.argc as usize,
        }
    }
}

impl std::fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.args().map(|arg| arg.escape_ascii().to_string()))
            .finish()
    }
}

fn digits(mut value: usize) -> usize {
    let mut count = 1;
    while value >= 10 {
        value /= 10;
        count += 1;
    }
    count
}

/// Iterator over the arguments of a checked frame.
#[derive(Clone)]
pub struct Args<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Args<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let mut at = 1;
        let mut len = 0usize;
        while self.rest[at] != b'\r' {
            len = len * 10 + usize::from(self.rest[at] - b'0');
            at += 1;
        }
        at += 2;
        let arg = &self.rest[at..at + len];
        self.rest = &self.rest[at + len + 2..];
        Some(arg)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Args<'_> {}

/// Finds the command at the start of `buffer`.
///
/// `Ok(None)` means that more bytes are needed.
///
/// # Errors
/// When the bytes cannot be the start of a command, whatever follows, or exceed a limit.
#[inline]
pub fn scan(buffer: &[u8]) -> Result<Option<Frame<'_>>, FrameError> {
    let Some(&first) = buffer.first() else {
        return Ok(None);
    };
    if first != b'*' {
        return Err(FrameError::Unexpected {
            offset: 0,
            expected: '*',
            found: first,
        });
    }
    let Some((argc, mut at)) = length(buffer, 1, limits::MAX_ARGUMENTS)? else {
        return Ok(None);
    };
    if argc == 0 {
        return Err(FrameError::BadLength { offset: 1 });
    }
    let mut heads = [(0u32, 0u32); REMEMBERED];
    for index in 0..argc {
        match buffer.get(at) {
            Some(b'$') => {}
            Some(&found) => {
                return Err(FrameError::Unexpected {
                    offset: at,
                    expected: '$',
                    found,
                });
            }
            None => return Ok(None),
        }
        let Some((len, start)) = length(buffer, at + 1, limits::MAX_FRAME_BYTES)? else {
            return Ok(None);
        };
        let end = start + len;
        if end + 2 > limits::MAX_FRAME_BYTES {
            return Err(FrameError::TooLong {
                offset: at + 1,
                length: end + 2,
                limit: limits::MAX_FRAME_BYTES,
            });
        }
        if let Some(head) = heads.get_mut(index) {
            *head = (start as u32, len as u32);
        }
        match buffer.get(end..end + 2) {
            Some(b"\r\n") => at = end + 2,
            Some(_) => return Err(crlf_missing(buffer, end)),
            None if buffer.get(end).is_some_and(|&byte| byte != b'\r') => {
                return Err(crlf_missing(buffer, end));
            }
            None => return Ok(None),
        }
    }
    Ok(Some(Frame {
        bytes: &buffer[..at],
        argc: argc as u32,
        heads,
    }))
}

#[cold]
fn crlf_missing(buffer: &[u8], at: usize) -> FrameError {
    let (offset, expected) = if buffer[at] == b'\r' {
        (at + 1, '\n')
    } else {
        (at, '\r')
    };
    FrameError::Unexpected {
        offset,
        expected,
        found: buffer[offset],
    }
}

/// Reads the decimal at `at` and its CRLF; gives the value and the offset after the CRLF.
#[inline]
fn length(buffer: &[u8], at: usize, limit: usize) -> Result<Option<(usize, usize)>, FrameError> {
    let mut value = 0usize;
    let mut pos = at;
    loop {
        let Some(&byte) = buffer.get(pos) else {
            return Ok(None);
        };
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        value = value * 10 + usize::from(digit);
        if value > limit {
            return Err(FrameError::TooLong {
                offset: at,
                length: value,
                limit,
            });
        }
        pos += 1;
    }
    // A leading zero would make two spellings of one length; no server sends it.
    if pos == at || (buffer[at] == b'0' && pos > at + 1) {
        return Err(FrameError::BadLength { offset: at });
    }
    match buffer.get(pos..pos + 2) {
        Some(b"\r\n") => Ok(Some((value, pos + 2))),
        Some(_) => Err(crlf_missing(buffer, pos)),
        None if buffer[pos] != b'\r' => Err(crlf_missing(buffer, pos)),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_of_a_command_asks_for_more() {
        let bytes = b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$0\r\n\r\n";
        for end in 0..bytes.len() {
            assert!(scan(&bytes[..end]).unwrap().is_none(), "prefix of {end}");
        }
        let frame = scan(bytes).unwrap().unwrap();
        assert_eq!(frame.bytes(), bytes);
        assert_eq!(frame.args().collect::<Vec<_>>(), [&b"SET"[..], b"key", b""]);
        assert_eq!(frame.arg(2), Some(&b""[..]));
        assert_eq!(frame.arg(3), None);
    }

    #[test]
    fn later_arguments_are_found_by_walking() {
        let bytes = b"*6\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\nd\r\n$1\r\ne\r\n$10\r\n0123456789\r\nrest";
        let frame = scan(bytes).unwrap().unwrap();
        assert_eq!(frame.arg(5), Some(&b"0123456789"[..]));
        assert_eq!(&bytes[frame.bytes().len()..], b"rest");
    }

    #[test]
    fn what_is_no_command_is_an_error_with_its_place() {
        let offset_of = |bytes: &[u8]| match scan(bytes).unwrap_err() {
            FrameError::Unexpected { offset, .. }
            | FrameError::BadLength { offset }
            | FrameError::TooLong { offset, .. } => offset,
        };
        assert_eq!(offset_of(b"+OK\r\n"), 0);
        assert_eq!(offset_of(b"*0\r\n"), 1);
        assert_eq!(offset_of(b"*x\r\n"), 1);
        assert_eq!(offset_of(b"*01\r\n"), 1);
        assert_eq!(offset_of(b"*1\n"), 2);
        assert_eq!(offset_of(b"*1\r\n:3\r\n"), 4);
        assert_eq!(offset_of(b"*1\r\n$3\r\nSETx\r\n"), 11);
        assert_eq!(offset_of(b"*1\r\n$3\r\nSET\rx"), 12);
        assert_eq!(offset_of(b"*99999999999999999999\r\n"), 1);
    }
}
