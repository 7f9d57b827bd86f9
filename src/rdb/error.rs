//! What can be wrong with a snapshot.

use std::fmt::{self, Write};

/// Why a snapshot cannot be read, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("snapshot byte {offset}: {problem}")]
pub struct RdbError {
    /// Bytes from the start of the snapshot to the item that is wrong. Inside a compressed or packed
    /// value this is where that value starts or a little before it.
    pub offset: u64,
    pub problem: Problem,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("not a snapshot: it starts neither with REDIS nor with VALKEY")]
    BadMagic,
    #[error("snapshot version {0} is not known")]
    UnknownVersion(u32),
    #[error("opcode or type {0} is not known")]
    UnknownType(u8),
    #[error("a length has the unknown form 0x{0:02x}")]
    BadLength(u8),
    #[error("a length of {0} is over every limit")]
    TooLong(u64),
    #[error("a string has the unknown encoding 0x{0:02x}")]
    BadStringEncoding(u8),
    #[error("compressed bytes are corrupt")]
    BadCompression,
    #[error("a packed value ({0}) is corrupt")]
    BadPacked(&'static str),
    #[error("a score is not a number")]
    BadScore,
    #[error("a stream is corrupt")]
    BadStream,
    #[error("module data holds the unknown opcode {0}")]
    BadModuleData(u64),
    #[error("database number {0} is out of range")]
    BadDatabase(u64),
    #[error("checksum {found:016x} does not match the computed {computed:016x}")]
    BadChecksum { found: u64, computed: u64 },
    #[error("the target does not have the module {0}, to which a value belongs")]
    TargetLacksModule(ModuleId),
    #[error("a hash has fields that expire, which the target does not know")]
    TargetLacksFieldExpiry,
}

/// Which module wrote a value: nine characters of six bits, then ten bits of version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleId(pub u64);

impl ModuleId {
    /// Version of the encoding that the module chose.
    pub fn encoding_version(self) -> u16 {
        (self.0 & 1023) as u16
    }
}

impl fmt::Display for ModuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LETTERS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        (0..9).rev().try_for_each(|place| {
            let letter = self.0 >> (10 + 6 * place) & 63;
            f.write_char(char::from(LETTERS[letter as usize]))
        })
    }
}

impl fmt::Debug for ModuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a scanner stopped: bytes are missing, or they are wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halt {
    /// `needed` bytes, counted from the start of the scanned slice, are required to go on: more than
    /// there are. Only a claim of the input; allocate nothing by it.
    More {
        needed: u64,
    },
    Bad(Problem),
}

impl From<Problem> for Halt {
    fn from(problem: Problem) -> Self {
        Halt::Bad(problem)
    }
}

impl Halt {
    /// For bytes that are known to be whole: running out is corruption.
    pub fn or(self, when_short: Problem) -> Problem {
        match self {
            Halt::More { .. } => when_short,
            Halt::Bad(problem) => problem,
        }
    }
}
