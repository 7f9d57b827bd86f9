//! The reply scanner: counts replies and spots errors, without building values.
//!
//! Replies come in the order of the commands, so a count is all that an acknowledgement needs. Only two kinds
//! are looked into: errors, because they need an answer, and the replies of our own questions, whose bytes
//! are kept when the caller asks for it ([`parse_value`] then reads them).
//!
//! ```text
//! +OK\r\n  :1\r\n  $3\r\nabc\r\n  $-1\r\n  *2\r\n:1\r\n-ERR x\r\n   <- the last holds an error inside (EXEC)
//! ```
//!
//! Invariant: the scanner's state is a function of the bytes seen, however they were cut into reads.

use crate::limits;

/// What the scanner finds, in order.
pub trait ReplySink {
    /// `count` replies in a row that are no errors and hold none.
    fn succeeded(&mut self, count: u64);
    /// One reply that is an error (`behind` is `None`), or one error inside an array reply, which is itself reported by
    /// `succeeded` when it ends; `behind` is how many elements of that array follow. `text` is without `-` and CRLF.
    fn failed(&mut self, text: &[u8], behind: Option<usize>);
}

/// Why bytes cannot be replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    #[error("a reply begins with 0x{0:02x}, which no RESP2 reply does")]
    Type(u8),
    #[error("a reply's length is not a number within the limits")]
    Length,
    #[error("a reply's line is longer than {} bytes", limits::MAX_REPLY_LINE)]
    Line,
    #[error("a reply nests deeper than {} levels", limits::MAX_REPLY_DEPTH)]
    Depth,
}

/// Resumable scanner of RESP2 replies.
#[derive(Debug, Default)]
pub struct ReplyScanner {
    /// The line under way, when a read ended inside it.
    line: Vec<u8>,
    /// Bytes of a bulk string (CRLF included) still to come.
    bulk_left: usize,
    /// Elements still to come at each open array level.
    open: Vec<usize>,
}

impl ReplyScanner {
    /// Forgets everything, for a new connection.
    pub fn reset(&mut self) {
        self.line.clear();
        self.bulk_left = 0;
        self.open.clear();
    }

    /// Whether the bytes so far end between two replies.
    pub fn at_boundary(&self) -> bool {
        self.line.is_empty() && self.bulk_left == 0 && self.open.is_empty()
    }

    /// Scans everything in `input` and reports to `sink`.
    ///
    /// # Errors
    /// When the bytes are no replies: the connection is useless then.
    pub fn feed(&mut self, input: &[u8], sink: &mut impl ReplySink) -> Result<(), ReplyError> {
        let mut at = 0;
        let mut ok = 0;
        while at < input.len() {
            // By far the most replies are `+OK` and small integers, whole within the read.
            if self.at_boundary() {
                let rest = &input[at..];
                if rest.starts_with(b"+OK\r\n") {
                    at += 5;
                    ok += 1;
                    continue;
                }
                if let [b':', b'0'..=b'9', b'\r', b'\n', ..] = rest {
                    at += 4;
                    ok += 1;
                    continue;
                }
            }
            let (used, event) = self.advance(&input[at..])?;
            at += used;
            match event {
                Event::Nothing => {}
                Event::Reply => ok += 1,
                Event::Failed { behind, reply_ends } => {
                    flush(&mut ok, sink);
                    sink.failed(&self.line[1..], behind);
                    self.line.clear();
                    ok += u64::from(behind.is_some() && reply_ends);
                }
            }
        }
        flush(&mut ok, sink);
        Ok(())
    }

    /// Consumes up to the end of the next element, or all of the input.
    fn advance(&mut self, input: &[u8]) -> Result<(usize, Event), ReplyError> {
        if self.bulk_left > 0 {
            let used = self.bulk_left.min(input.len());
            self.bulk_left -= used;
            let event = if self.bulk_left == 0 && self.element_done() {
                Event::Reply
            } else {
                Event::Nothing
            };
            return Ok((used, event));
        }
        let Some(end) = memchr::memchr(b'\n', input) else {
            self.keep_line(input)?;
            return Ok((input.len(), Event::Nothing));
        };
        self.keep_line(&input[..=end])?;
        let event = self.line_done()?;
        if !matches!(event, Event::Failed { .. }) {
            self.line.clear();
        }
        Ok((end + 1, event))
    }

    fn keep_line(&mut self, part: &[u8]) -> Result<(), ReplyError> {
        if self.line.len() + part.len() > limits::MAX_REPLY_LINE {
            return Err(ReplyError::Line);
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    /// Acts on the complete line in `self.line`; leaves an error's text there, without its CRLF.
    fn line_done(&mut self) -> Result<Event, ReplyError> {
        self.line.pop();
        if self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        let Some(&kind) = self.line.first() else {
            return Err(ReplyError::Type(b'\n'));
        };
        match kind {
            b'+' | b':' => {}
            b'-' => {
                let nested = !self.open.is_empty();
                let reply_ends = self.element_done();
                // Of an array within, the outer one has counted it only when that is complete.
                let behind = match self.open[..] {
                    [] => 0,
                    [left] => left,
                    [left, ..] => left - 1,
                };
                return Ok(Event::Failed {
                    behind: nested.then_some(behind),
                    reply_ends,
                });
            }
            b'$' => {
                if let Some(length) = self.claimed_length(limits::MAX_FRAME_BYTES)? {
                    self.bulk_left = length + 2;
                    return Ok(Event::Nothing);
                }
            }
            b'*' => match self.claimed_length(limits::MAX_ARGUMENTS)? {
                None | Some(0) => {}
                Some(_) if self.open.len() == limits::MAX_REPLY_DEPTH => {
                    return Err(ReplyError::Depth);
                }
                Some(count) => {
                    self.open.push(count);
                    return Ok(Event::Nothing);
                }
            },
            other => return Err(ReplyError::Type(other)),
        }
        Ok(if self.element_done() {
            Event::Reply
        } else {
            Event::Nothing
        })
    }

    /// The number on the line; `None` for -1, the null reply.
    fn claimed_length(&self, limit: usize) -> Result<Option<usize>, ReplyError> {
        let digits = &self.line[1..];
        if digits == b"-1" {
            return Ok(None);
        }
        std::str::from_utf8(digits)
            .ok()
            .and_then(|text| text.parse::<usize>().ok())
            .filter(|&length| length <= limit)
            .map(Some)
            .ok_or(ReplyError::Length)
    }

    /// Counts one element as complete; true when that completes the whole reply.
    fn element_done(&mut self) -> bool {
        while let Some(left) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return false;
            }
            self.open.pop();
        }
        true
    }
}

enum Event {
    Nothing,
    Reply,
    Failed {
        behind: Option<usize>,
        reply_ends: bool,
    },
}

fn flush(ok: &mut u64, sink: &mut impl ReplySink) {
    if *ok > 0 {
        sink.succeeded(std::mem::take(ok));
    }
}

/// What an error reply means for delivery, by its first word (`server.c`, `cluster.c` of the servers).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErrorKind {
    /// `MOVED slot host:port`: another master owns the slot.
    Moved {
        slot: u16,
        address: String,
    },
    /// `ASK slot host:port`: the slot is on its way there, and so is this key.
    Ask {
        slot: u16,
        address: String,
    },
    /// The keys of the command are on both sides of a migration.
    TryAgain,
    Loading,
    ClusterDown,
    ReadOnly,
    OutOfMemory,
    Busy,
    MasterDown,
    /// Too few replicas are attached for `min-replicas-to-write`.
    NoReplicas,
    /// Writes are refused because saving to disk fails (`stop-writes-on-bgsave-error`).
    Misconf,
    /// A transaction was dropped because a command in it was refused.
    ExecAbort,
    NoAuth,
    NoPermission,
    /// Everything else: target and source differ, or we sent nonsense.
    Other,
}

impl ErrorKind {
    /// Whether the command will be tried again, here or elsewhere.
    pub fn passes(&self) -> bool {
        !matches!(self, Self::NoAuth | Self::NoPermission | Self::Other)
    }

    /// Classifies an error's text (without the leading `-`).
    pub fn of(text: &[u8]) -> Self {
        let word_end = memchr::memchr(b' ', text).unwrap_or(text.len());
        match &text[..word_end] {
            b"MOVED" => {
                redirect(text).map_or(Self::Other, |(slot, address)| Self::Moved { slot, address })
            }
            b"ASK" => {
                redirect(text).map_or(Self::Other, |(slot, address)| Self::Ask { slot, address })
            }
            b"TRYAGAIN" => Self::TryAgain,
            b"LOADING" => Self::Loading,
            b"CLUSTERDOWN" => Self::ClusterDown,
            b"READONLY" => Self::ReadOnly,
            b"OOM" => Self::OutOfMemory,
            b"BUSY" => Self::Busy,
            b"MASTERDOWN" => Self::MasterDown,
            b"NOREPLICAS" => Self::NoReplicas,
            b"MISCONF" => Self::Misconf,
            b"EXECABORT" => Self::ExecAbort,
            b"NOAUTH" => Self::NoAuth,
            b"NOPERM" => Self::NoPermission,
            _ => Self::Other,
        }
    }
}

fn redirect(text: &[u8]) -> Option<(u16, String)> {
    let text = std::str::from_utf8(text).ok()?;
    let mut words = text.split(' ').skip(1);
    let slot = words.next()?.parse().ok().filter(|&slot| slot < 16384)?;
    let address = words.next()?;
    let (_, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    Some((slot, address.to_owned()))
}

/// A reply as a value, for the few questions that slotstream asks itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Simple(Vec<u8>),
    Error(Vec<u8>),
    Integer(i64),
    Bulk(Vec<u8>),
    Null,
    Array(Vec<Value>),
}

/// Reads one whole reply from the start of `input`; gives it and its length, or `None` if it is not complete or
/// not well-formed.
pub fn parse_value(input: &[u8]) -> Option<(Value, usize)> {
    parse_at(input, 0, 0)
}

fn parse_at(input: &[u8], at: usize, depth: usize) -> Option<(Value, usize)> {
    if depth > limits::MAX_REPLY_DEPTH {
        return None;
    }
    let rest = input.get(at..)?;
    let end = memchr::memchr(b'\n', rest).filter(|&end| end > 1 && rest[end - 1] == b'\r')?;
    let body = &rest[1..end - 1];
    let next = at + end + 1;
    let number = || std::str::from_utf8(body).ok()?.parse::<i64>().ok();
    match rest[0] {
        b'+' => Some((Value::Simple(body.to_vec()), next)),
        b'-' => Some((Value::Error(body.to_vec()), next)),
        b':' => Some((Value::Integer(number()?), next)),
        b'$' => {
            let Ok(length) = usize::try_from(number()?) else {
                return Some((Value::Null, next));
            };
            let bytes = input.get(next..next.checked_add(length)?)?;
            input.get(next + length..next + length + 2)?;
            Some((Value::Bulk(bytes.to_vec()), next + length + 2))
        }
        b'*' => {
            let Ok(count) = usize::try_from(number()?) else {
                return Some((Value::Null, next));
            };
            let mut items = Vec::new();
            let mut at = next;
            for _ in 0..count {
                let (item, after) = parse_at(input, at, depth + 1)?;
                items.push(item);
                at = after;
            }
            Some((Value::Array(items), at))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Log {
        ok: u64,
        errors: Vec<(u64, String, Option<usize>)>,
    }

    impl ReplySink for Log {
        fn succeeded(&mut self, count: u64) {
            self.ok += count;
        }
        fn failed(&mut self, text: &[u8], behind: Option<usize>) {
            self.errors
                .push((self.ok, String::from_utf8_lossy(text).into_owned(), behind));
        }
    }

    const MIXED: &[u8] =
        b"+OK\r\n:1\r\n$3\r\nabc\r\n$-1\r\n*-1\r\n*0\r\n-MOVED 5 1.2.3.4:7000\r\n*3\r\n:1\r\n\
        -WRONGTYPE x\r\n*1\r\n$0\r\n\r\n*2\r\n+a\r\n-ERR last\r\n:12345\r\n+OK\r\n";

    #[test]
    fn replies_count_the_same_however_the_bytes_are_cut() {
        let mut whole = Log::default();
        ReplyScanner::default().feed(MIXED, &mut whole).unwrap();
        assert_eq!(whole.ok, 10);
        assert_eq!(
            whole.errors,
            [
                (6, "MOVED 5 1.2.3.4:7000".to_owned(), None),
                (6, "WRONGTYPE x".to_owned(), Some(1)),
                (7, "ERR last".to_owned(), Some(0)),
            ]
        );
        for step in 1..MIXED.len() {
            let mut log = Log::default();
            let mut scanner = ReplyScanner::default();
            for part in MIXED.chunks(step) {
                scanner.feed(part, &mut log).unwrap();
            }
            assert!(scanner.at_boundary());
            assert_eq!(log, whole, "in steps of {step}");
        }
    }

    #[test]
    fn bytes_that_are_no_reply_are_an_error() {
        let fed = |bytes: &[u8]| ReplyScanner::default().feed(bytes, &mut Log::default());
        assert_eq!(fed(b"HTTP/1.1 400\r\n"), Err(ReplyError::Type(b'H')));
        assert_eq!(fed(b"$x\r\n"), Err(ReplyError::Length));
        assert_eq!(fed(b"\r\n"), Err(ReplyError::Type(b'\n')));
        assert_eq!(fed(&b"*1\r\n".repeat(100)), Err(ReplyError::Depth));
        assert_eq!(fed(&[b'+'; 1 << 20]), Err(ReplyError::Line));
    }

    #[test]
    fn errors_are_told_apart_by_their_first_word() {
        assert_eq!(
            ErrorKind::of(b"MOVED 12182 ::1:7002"),
            ErrorKind::Moved {
                slot: 12182,
                address: "::1:7002".to_owned()
            }
        );
        assert_eq!(ErrorKind::of(b"MOVED 99999 h:1"), ErrorKind::Other);
        assert_eq!(ErrorKind::of(b"ASK 3 "), ErrorKind::Other);
        assert_eq!(
            ErrorKind::of(b"OOM command not allowed"),
            ErrorKind::OutOfMemory
        );
        assert_eq!(ErrorKind::of(b"WRONGTYPE Operation"), ErrorKind::Other);
        assert_eq!(ErrorKind::of(b""), ErrorKind::Other);
    }

    #[test]
    fn values_parse_whole_or_not_at_all() {
        let bytes = b"*2\r\n$1\r\n0\r\n*2\r\n$1\r\na\r\n$-1\r\n";
        let (value, used) = parse_value(bytes).unwrap();
        assert_eq!(used, bytes.len());
        assert_eq!(
            value,
            Value::Array(vec![
                Value::Bulk(b"0".to_vec()),
                Value::Array(vec![Value::Bulk(b"a".to_vec()), Value::Null])
            ])
        );
        for end in 0..bytes.len() {
            assert_eq!(parse_value(&bytes[..end]), None, "prefix of {end}");
        }
    }
}
