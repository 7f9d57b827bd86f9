//! Records: how far a lane has come on one target master.

use std::fmt::Write as _;

use super::watermark::Generation;
use crate::position::{Offset, Position, ReplicationId};
use crate::slot::SlotSet;

/// What a record says of the data beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A snapshot is being written, or what waits behind it: there is nothing to go on from.
    Copying,
    /// The data is the source's of the acknowledged offset, and may hold more, up to the high-water offset.
    Streaming,
}

/// A generation whose watermarks still count, as far as both histories are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Former {
    pub generation: Generation,
    /// The last offset that both histories have.
    pub until: Offset,
}

/// How far a lane has come on one target master. It speaks for the master that it names and the slots that it lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub state: State,
    /// Node id of the target master that it was written to; its address for a single server.
    pub node: String,
    /// The history, and the acknowledged offset in it: everything of the listed slots before it is applied.
    pub position: Position,
    /// The history before a failover of the source, and where it ended.
    pub predecessor: Option<Position>,
    /// The database that is selected in the source's stream at the acknowledged offset.
    pub database: u32,
    /// Nothing from this offset on was sent before a record said so.
    pub high: Offset,
    pub slots: SlotSet,
    /// Slots that have a watermark of this generation: if one of them is missing it was lost.
    pub watermarks: SlotSet,
    pub former: Option<Former>,
    /// The target held no keys of others when the first copy began: whatever the source lacks may be removed.
    pub exclusive: bool,
    /// Keys may carry a deadline that was held back.
    pub leases: bool,
    /// The source had keys for this target.
    pub held: bool,
}

/// Why a text is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("it is not written by this program")]
    Malformed,
    #[error("it is of format {0}, written by another version of this program")]
    Version(u32),
}

const VERSION: u32 = 1;

impl Record {
    /// The record as text: words `name=value`, for people to read with `HGETALL`.
    pub fn encode(&self) -> String {
        let state = match self.state {
            State::Copying => "copying",
            State::Streaming => "streaming",
        };
        let mut text = format!(
            "v={VERSION} state={state} node={} replid={} acked={} high={} db={} exclusive={} leases={} held={} slots={} watermarks={}",
            self.node,
            self.position.id,
            self.position.offset,
            self.high,
            self.database,
            u8::from(self.exclusive),
            u8::from(self.leases),
            u8::from(self.held),
            self.slots,
            self.watermarks,
        );
        if let Some(before) = self.predecessor {
            let _ = write!(text, " before={}@{}", before.id, before.offset);
        }
        if let Some(former) = self.former {
            let _ = write!(text, " former={}@{}", former.generation, former.until);
        }
        text
    }

    /// Reads what [`Record::encode`] wrote. Words that are not known are skipped.
    pub fn decode(text: &[u8]) -> Result<Self, RecordError> {
        let text = std::str::from_utf8(text).map_err(|_| RecordError::Malformed)?;
        let version = word(text, "v").and_then(|word| word.parse().ok());
        match version {
            Some(VERSION) => Self::read(text).ok_or(RecordError::Malformed),
            Some(other) => Err(RecordError::Version(other)),
            None => Err(RecordError::Malformed),
        }
    }

    fn read(text: &str) -> Option<Self> {
        let flag = |name| match word(text, name)? {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        };
        let former = |word: &str| {
            let (generation, until) = word.split_once('@')?;
            Some(Former {
                generation: generation.parse().ok()?,
                until: offset(until)?,
            })
        };
        let before = |word: &str| {
            let (id, at) = word.split_once('@')?;
            Some(Position {
                id: ReplicationId::parse(id.as_bytes())?,
                offset: offset(at)?,
            })
        };
        Some(Self {
            state: match word(text, "state")? {
                "copying" => State::Copying,
                "streaming" => State::Streaming,
                _ => return None,
            },
            node: word(text, "node")?.to_owned(),
            position: Position {
                id: ReplicationId::parse(word(text, "replid")?.as_bytes())?,
                offset: offset(word(text, "acked")?)?,
            },
            predecessor: optional(word(text, "before"), before)?,
            database: word(text, "db")?.parse().ok()?,
            high: offset(word(text, "high")?)?,
            slots: word(text, "slots")?.parse().ok()?,
            watermarks: word(text, "watermarks")?.parse().ok()?,
            former: optional(word(text, "former"), former)?,
            exclusive: flag("exclusive")?,
            leases: flag("leases")?,
            // Where nothing is said it is taken for so.
            held: word(text, "held").is_none() || flag("held")?,
        })
    }
}

/// `None` if there is a word that cannot be read.
fn optional<T>(word: Option<&str>, read: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
    match word {
        None => Some(None),
        Some(word) => read(word).map(Some),
    }
}

fn word<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut words = text.split(' ');
    words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn offset(text: &str) -> Option<Offset> {
    text.parse().ok().map(Offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let id = |byte: u8| ReplicationId::parse(&[byte; 40]).expect("valid");
        Record {
            state: State::Streaming,
            node: "10.0.0.1:6379".into(),
            position: Position {
                id: id(b'a'),
                offset: Offset(12),
            },
            predecessor: Some(Position {
                id: id(b'b'),
                offset: Offset(7),
            }),
            database: 3,
            high: Offset(4096),
            slots: "0-5460,9000".parse().expect("valid"),
            watermarks: "1,5-7".parse().expect("valid"),
            former: Some(Former {
                generation: Generation {
                    epoch: 3,
                    number: 1,
                },
                until: Offset(5),
            }),
            exclusive: true,
            held: true,
            leases: false,
        }
    }

    #[test]
    fn records_read_what_they_write() {
        let full = record();
        assert_eq!(Record::decode(full.encode().as_bytes()), Ok(full.clone()));
        let plain = Record {
            state: State::Copying,
            predecessor: None,
            former: None,
            watermarks: SlotSet::new(),
            ..full
        };
        assert_eq!(Record::decode(plain.encode().as_bytes()), Ok(plain));
    }

    #[test]
    fn a_record_that_lacks_or_breaks_a_word_is_refused() {
        let text = record().encode();
        for word in text.split(' ') {
            let name = word.split('=').next().expect("a name");
            let without = text.replace(&format!("{word} "), "");
            // These may be missing.
            if !["before", "former", "held"].contains(&name) && without != text {
                assert!(Record::decode(without.as_bytes()).is_err(), "{without}");
            }
            let broken = text.replace(word, &format!("{name}=?!"));
            // A node may be called anything.
            if name != "node" {
                assert!(Record::decode(broken.as_bytes()).is_err(), "{broken}");
            }
        }
        let newer = text.replace("v=1 ", "v=2 ");
        assert_eq!(
            Record::decode(newer.as_bytes()),
            Err(RecordError::Version(2))
        );
    }

    #[test]
    fn a_record_that_does_not_say_whether_the_source_had_keys_is_taken_for_one_that_does() {
        let text = record().encode();
        let without = text.replace(" held=1", "");
        assert_ne!(text, without);
        assert_eq!(Record::decode(without.as_bytes()), Ok(record()));
    }
}
