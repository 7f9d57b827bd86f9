//! Replies as trees of values, for the few small replies that discovery reads.
//!
//! The data path never builds these: there replies are scanned where they lie. This decoder bounds depth,
//! length and count, because it reads from whatever listens at an address that a user typed.
//!
//! ```text
//! +text\r\n   -error\r\n   :number\r\n   $len\r\nbytes\r\n   $-1\r\n   *count\r\n value...   *-1\r\n
//! ```

use crate::limits::{MAX_CONTROL_REPLY_BYTES, MAX_CONTROL_REPLY_DEPTH};

/// A RESP2 reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Status(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Null,
    Array(Vec<Value>),
}

/// Bytes that are no RESP2 reply, or more of one than discovery reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset} of the reply: {what}")]
pub struct ValueError {
    pub offset: usize,
    pub what: &'static str,
}

impl Value {
    /// Decodes the value at the start of `bytes`, and says where it ends; `None`: read more.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Value, usize)>, ValueError> {
        let mut cursor = Cursor { bytes, offset: 0 };
        let value = cursor.value(0)?;
        if value.is_none() && bytes.len() > MAX_CONTROL_REPLY_BYTES {
            return Err(cursor.error("larger than any reply that is expected here"));
        }
        Ok(value.map(|value| (value, cursor.offset)))
    }

    /// The text of a status or a bulk that is UTF-8.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Status(text) => Some(text),
            Value::Bulk(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// An integer, or a bulk that reads as one.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Value::Integer(number) => Some(*number),
            _ => self.text()?.parse().ok(),
        }
    }

    pub fn array(&self) -> Option<&[Value]> {
        match self {
            Value::Array(values) => Some(values),
            _ => None,
        }
    }

    /// The value after `key` in a flat list of keys and values, as RESP2 writes maps.
    pub fn field(&self, key: &str) -> Option<&Value> {
        let pairs = self.array()?.chunks_exact(2);
        pairs.into_iter().find_map(|pair| match pair {
            [name, value] if name.text() == Some(key) => Some(value),
            _ => None,
        })
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl Cursor<'_> {
    fn value(&mut self, depth: usize) -> Result<Option<Value>, ValueError> {
        if depth > MAX_CONTROL_REPLY_DEPTH {
            return Err(self.error("nested too deeply"));
        }
        let Some(&kind) = self.bytes.get(self.offset) else {
            return Ok(None);
        };
        if !b"+-:$*".contains(&kind) {
            return Err(self.error("no RESP reply; is this a Redis or Valkey server without TLS?"));
        }
        let Some(line) = self.line()? else {
            return Ok(None);
        };
        Ok(Some(match kind {
            b'+' => Value::Status(line),
            b'-' => Value::Error(line),
            b':' => Value::Integer(self.number(&line)?),
            _ => match (kind, self.number(&line)?) {
                (_, -1) => Value::Null,
                (b'$', length) => match self.bulk(length)? {
                    Some(bytes) => Value::Bulk(bytes),
                    None => return Ok(None),
                },
                (_, count) => match self.array(count, depth)? {
                    Some(values) => Value::Array(values),
                    None => return Ok(None),
                },
            },
        }))
    }

    /// The line at the cursor without its first byte and its end.
    fn line(&mut self) -> Result<Option<String>, ValueError> {
        let rest = &self.bytes[self.offset..];
        let Some(end) = memchr::memchr(b'\n', rest) else {
            return Ok(None);
        };
        if end < 2 || rest[end - 1] != b'\r' {
            return Err(self.error("a line that does not end in CRLF"));
        }
        let line = String::from_utf8_lossy(&rest[1..end - 1]).into_owned();
        self.offset += end + 1;
        Ok(Some(line))
    }

    fn bulk(&mut self, length: i64) -> Result<Option<Vec<u8>>, ValueError> {
        let length = self.bounded(length)?;
        let rest = &self.bytes[self.offset..];
        if rest.len() < length + 2 {
            return Ok(None);
        }
        if &rest[length..length + 2] != b"\r\n" {
            return Err(self.error("a bulk that does not end in CRLF"));
        }
        let bytes = rest[..length].to_vec();
        self.offset += length + 2;
        Ok(Some(bytes))
    }

    fn array(&mut self, count: i64, depth: usize) -> Result<Option<Vec<Value>>, ValueError> {
        let count = self.bounded(count)?;
        let mut values = Vec::new();
        for _ in 0..count {
            match self.value(depth + 1)? {
                Some(value) => values.push(value),
                None => return Ok(None),
            }
        }
        Ok(Some(values))
    }

    fn number(&self, text: &str) -> Result<i64, ValueError> {
        text.parse().map_err(|_| self.error("not a number"))
    }

    fn bounded(&self, number: i64) -> Result<usize, ValueError> {
        usize::try_from(number)
            .ok()
            .filter(|&number| number <= MAX_CONTROL_REPLY_BYTES)
            .ok_or_else(|| self.error("a length out of bounds"))
    }

    fn error(&self, what: &'static str) -> ValueError {
        let offset = self.offset;
        ValueError { offset, what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NESTED: &[u8] = b"*5\r\n+OK\r\n:-7\r\n$3\r\na\r\n\r\n$-1\r\n*1\r\n-ERR no\r\n";

    #[test]
    fn a_nested_reply_is_decoded_to_its_last_byte() {
        let (value, end) = Value::decode(NESTED).expect("valid").expect("whole");
        assert_eq!(end, NESTED.len());
        let expected = vec![
            Value::Status("OK".into()),
            Value::Integer(-7),
            Value::Bulk(b"a\r\n".to_vec()),
            Value::Null,
            Value::Array(vec![Value::Error("ERR no".into())]),
        ];
        assert_eq!(value, Value::Array(expected));
    }

    #[test]
    fn every_prefix_asks_for_more() {
        for end in 0..NESTED.len() {
            assert_eq!(Value::decode(&NESTED[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        let deep = b"*1\r\n".repeat(MAX_CONTROL_REPLY_DEPTH + 2);
        let cases: [&[u8]; 7] = [
            b"HTTP/1.1 400 Bad Request\r\n",
            b"\x15\x03\x03\x00\x02",
            b"$-2\r\n",
            b":x\r\n",
            b"$99999999999\r\n",
            b"$1\r\nabc",
            &deep,
        ];
        for bytes in cases {
            assert!(Value::decode(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn maps_are_read_by_key() {
        let bytes = b"*4\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n$1\r\n2\r\n";
        let (value, _) = Value::decode(bytes).expect("valid").expect("whole");
        assert_eq!(value.field("b").and_then(Value::integer), Some(2));
        assert_eq!(value.field("c"), None);
    }
}
