//! Positions in a source's replication stream, as types that cannot be mixed up with other numbers.
//!
//! Layer 0. An offset counts bytes of one history, which the replication id (replid) names. Two offsets compare
//! only within one history; after a failover the promoted node continues the numbers under a new id.

use std::fmt;

/// A replication offset: how many bytes of a history came before this point.
///
/// The same number that `INFO replication` shows as `master_repl_offset`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset `bytes` further on.
    #[must_use]
    pub fn advanced(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }

    /// How many bytes lie between `earlier` and this offset; 0 if it is not earlier.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id of a history: 40 hexadecimal characters (`server.replid`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplicationId([u8; 40]);

impl ReplicationId {
    /// Takes an id as servers print it; `None` if it is not 40 printable, spaceless characters.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let id: [u8; 40] = text.try_into().ok()?;
        id.iter().all(u8::is_ascii_alphanumeric).then_some(Self(id))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked to be ASCII by parse")
    }
}

impl fmt::Debug for ReplicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for ReplicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A point in a history: where a partial resync can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub id: ReplicationId,
    pub offset: Offset,
}

/// How far a lane has come, in the order that always holds.
///
/// `received >= routed >= acknowledged`: a byte is read, then given to a target connection, then proven applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Read from the source.
    pub received: Offset,
    /// Split into commands, each handed to a target connection (or dropped with reason).
    pub routed: Offset,
    /// Everything before it has been answered by the target.
    pub acknowledged: Offset,
}

impl Progress {
    /// Panics if the order is broken: that is a bug here, never the peer's doing.
    pub fn check(&self) {
        assert!(
            self.received >= self.routed && self.routed >= self.acknowledged,
            "a position is ahead of its proof: {self:?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_forty_characters() {
        assert!(ReplicationId::parse(&[b'a'; 40]).is_some());
        assert!(ReplicationId::parse(&[b'a'; 39]).is_none());
        assert!(ReplicationId::parse(&[b' '; 40]).is_none());
    }

    #[test]
    #[should_panic(expected = "ahead of its proof")]
    fn a_position_ahead_of_its_proof_is_caught() {
        Progress {
            received: Offset(5),
            routed: Offset(6),
            acknowledged: Offset(1),
        }
        .check();
    }
}
