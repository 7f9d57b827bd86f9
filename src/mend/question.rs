//! What the source is asked about keys, and what it answers.
//!
//! One transaction, so that all values and the offset are of one moment. Its effects, such as the `DEL` of a key that was
//! found to have expired, come behind the offset (6.0: before it), and say no more than the values do.

use crate::position::Offset;
use crate::resp::{Value, parse_value, push_command};

/// Keys of a source. A cluster takes `SELECT 0` like any other server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Names, by database of the source.
    pub keys: Vec<(u32, Vec<u8>)>,
}

/// A key's value and deadline, as the source had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// What `DUMP` answered.
    pub payload: Vec<u8>,
    /// Unix time in milliseconds.
    pub expire_at_ms: Option<u64>,
}

/// The values of some keys at one offset of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub replid: String,
    pub offset: Offset,
    /// In the order of the question; `None` for a key that does not exist.
    pub values: Vec<Option<Taken>>,
}

/// What a source said to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Taken(Snapshot),
    /// It refused; what it said.
    Refused(String),
    /// It said what no server says.
    Nonsense,
}

impl Question {
    /// Appends the commands, and gives how many replies they get. `knows_deadlines`: the source has `PEXPIRETIME` (7.0).
    pub fn write(&self, knows_deadlines: bool, out: &mut Vec<u8>) -> usize {
        push_command(out, &[b"MULTI"]);
        let mut database = None;
        for (of, key) in &self.keys {
            if database != Some(*of) {
                database = Some(*of);
                push_command(out, &[b"SELECT", of.to_string().as_bytes()]);
            }
            push_command(out, &[b"DUMP", key]);
            if knows_deadlines {
                push_command(out, &[b"PEXPIRETIME", key]);
            } else {
                push_command(out, &[b"PTTL", key]);
                push_command(out, &[b"TIME"]);
            }
        }
        push_command(out, &[b"INFO", b"replication"]);
        push_command(out, &[b"EXEC"]);
        let selects = self.keys.chunk_by(|a, b| a.0 == b.0).count();
        let each = if knows_deadlines { 2 } else { 3 };
        3 + selects + each * self.keys.len()
    }

    /// Reads the replies, all of them.
    pub fn read(&self, knows_deadlines: bool, mut replies: &[u8]) -> Answer {
        let mut refusal = None;
        let mut last = None;
        while let Some((value, length)) = parse_value(replies) {
            replies = &replies[length..];
            // The refusal of a command says more than that of the `EXEC` behind it.
            if let Value::Error(text) = &value {
                refusal.get_or_insert_with(|| String::from_utf8_lossy(text).into_owned());
            }
            last = Some(value);
        }
        if let Some(text) = refusal {
            return Answer::Refused(text);
        }
        let Some(Value::Array(values)) = last else {
            return Answer::Nonsense;
        };
        for value in &values {
            if let Value::Error(text) = value {
                return Answer::Refused(String::from_utf8_lossy(text).into_owned());
            }
        }
        self.snapshot(knows_deadlines, values)
            .map_or(Answer::Nonsense, Answer::Taken)
    }

    fn snapshot(&self, knows_deadlines: bool, values: Vec<Value>) -> Option<Snapshot> {
        let mut replies = values.into_iter();
        let mut taken = Vec::with_capacity(self.keys.len());
        let mut database = None;
        for (of, _) in &self.keys {
            if database != Some(*of) {
                database = Some(*of);
                replies.next()?;
            }
            let payload = match replies.next()? {
                Value::Bulk(payload) => Some(payload),
                Value::Null => None,
                _ => return None,
            };
            let Value::Integer(deadline) = replies.next()? else {
                return None;
            };
            let zero = match knows_deadlines {
                true => 0,
                false => unix_ms(&replies.next()?)?,
            };
            taken.push(match (payload, deadline) {
                // It ended between the two commands.
                (None, _) | (_, -2) => None,
                (Some(payload), ..0) => Some(Taken {
                    payload,
                    expire_at_ms: None,
                }),
                (Some(payload), deadline) => Some(Taken {
                    payload,
                    expire_at_ms: Some(zero + deadline.unsigned_abs()),
                }),
            });
        }
        let Value::Bulk(info) = replies.next()? else {
            return None;
        };
        let info = String::from_utf8_lossy(&info).into_owned();
        let field = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.split_once(':'));
            lines.find_map(|(key, value)| (key == name).then(|| value.trim_end().to_owned()))
        };
        Some(Snapshot {
            replid: field("master_replid")?,
            offset: Offset(field("master_repl_offset")?.parse().ok()?),
            values: taken,
        })
    }
}

/// What `TIME` answers: seconds and microseconds.
fn unix_ms(reply: &Value) -> Option<u64> {
    let Value::Array(parts) = reply else {
        return None;
    };
    let number = |value: &Value| match value {
        Value::Bulk(digits) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
        _ => None,
    };
    let [seconds, micros] = &parts[..] else {
        return None;
    };
    Some(number(seconds)? * 1000 + number(micros)? / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(keys: &[(u32, &str)]) -> Question {
        let keys = keys.iter().map(|(n, key)| (*n, key.as_bytes().to_vec()));
        Question {
            keys: keys.collect(),
        }
    }

    fn info() -> String {
        let text = "role:master\r\nmaster_replid:abc\r\nmaster_repl_offset:77\r\n";
        format!("${}\r\n{text}\r\n", text.len())
    }

    #[test]
    fn values_deadlines_and_offset_are_read() {
        let question = question(&[(0, "a"), (0, "b"), (0, "c")]);
        let mut out = Vec::new();
        assert_eq!(question.write(true, &mut out), 10);
        assert_eq!(out.iter().filter(|byte| **byte == b'*').count(), 10);
        let replies = format!(
            "+OK\r\n{}*8\r\n+OK\r\n$1\r\nx\r\n:-1\r\n$1\r\ny\r\n:1234\r\n$-1\r\n:-2\r\n{}",
            "+QUEUED\r\n".repeat(8),
            info()
        );
        let taken = |payload: &[u8], expire_at_ms| {
            Some(Taken {
                payload: payload.to_vec(),
                expire_at_ms,
            })
        };
        assert_eq!(
            question.read(true, replies.as_bytes()),
            Answer::Taken(Snapshot {
                replid: "abc".into(),
                offset: Offset(77),
                values: vec![taken(b"x", None), taken(b"y", Some(1234)), None],
            })
        );
    }

    #[test]
    fn an_old_source_tells_how_long_a_key_lives_and_what_time_it_is() {
        let question = question(&[(3, "a"), (3, "b"), (0, "a")]);
        let mut out = Vec::new();
        assert_eq!(question.write(false, &mut out), 14);
        let time = "*2\r\n$2\r\n10\r\n$6\r\n500999\r\n";
        let replies = format!(
            "+OK\r\n{}*12\r\n+OK\r\n$1\r\nx\r\n:5\r\n{time}$1\r\ny\r\n:-2\r\n{time}+OK\r\n$1\r\nz\r\n:-1\r\n{time}{}",
            "+QUEUED\r\n".repeat(12),
            info()
        );
        let Answer::Taken(snapshot) = question.read(false, replies.as_bytes()) else {
            panic!("a whole answer");
        };
        let deadlines: Vec<_> = snapshot.values.iter().flatten().collect();
        assert_eq!(deadlines.len(), 2, "the second ended meanwhile");
        assert_eq!(deadlines[0].expire_at_ms, Some(10_505));
        assert_eq!(deadlines[1].expire_at_ms, None);
    }

    #[test]
    fn a_refusal_is_told_by_its_cause() {
        let question = question(&[(0, "a")]);
        let moved = b"+OK\r\n-MOVED 1 h:2\r\n-MOVED 1 h:2\r\n+QUEUED\r\n-EXECABORT no\r\n";
        assert_eq!(
            question.read(true, moved),
            Answer::Refused("MOVED 1 h:2".into())
        );
        let inside = b"+OK\r\n+QUEUED\r\n*4\r\n+OK\r\n-NOPERM x\r\n:-1\r\n$0\r\n\r\n";
        assert_eq!(
            question.read(true, inside),
            Answer::Refused("NOPERM x".into())
        );
        assert_eq!(question.read(true, b"+OK\r\n"), Answer::Nonsense);
        assert_eq!(question.read(true, b"*1\r\n$1\r\nx\r\n"), Answer::Nonsense);
    }
}
