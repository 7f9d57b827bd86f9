//! What can be wrong with a snapshot.

use super::Lineage;
use std::fmt::{self, Write};

/// Why a snapshot cannot be read, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("snapshot byte {offset}: {problem}")]
pub struct RdbError {
    /// Bytes from the start of the snapshot to the number or string that is wrong; before a value, to the record, but in data
    /// of modules to the item of it. Inside a compressed or packed string this is where that string starts. It does not
    /// depend on how the input was cut.
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
    #[error("opcode or type {code} is not known in version {version} of the {lineage} format")]
    UnknownType {
        code: u8,
        lineage: Lineage,
        version: u16,
    },
    /// Type 6, written by 4.0 before its release; only the module itself knows where such a value ends.
    #[error(
        "a value of a module in the form of Redis 4.0 before its release (type 6) cannot be read; load and save it with \
         Redis 4.0 to 7.0 and the module"
    )]
    ModuleBeforeRelease,
    /// Opcode 246, written by 7.0 before its release.
    #[error(
        "a function in the form of Redis 7.0 before its release (opcode 246) cannot be read; delete it at the source, and \
         load the library there again"
    )]
    FunctionBeforeRelease,
    #[error("{0} is no form of this value")]
    BadForm(u64),
    #[error("a hash refers to template {0}, which is not defined before it")]
    UnknownTemplate(u64),
    #[error("the templates of hashes hold more than {0} bytes")]
    TooManyTemplates(usize),
    #[error("a hash has another number of values than its template has fields")]
    BadTemplate,
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
    #[error("the target does not know {name} (type {type_code}), and nothing else is equal to it")]
    TargetLacksType { type_code: u8, name: &'static str },
    #[error("a stream remembers ids of idempotent producers, which the target does not know")]
    TargetLacksProducers,
    #[error(
        "a group of a stream has entries that its consumers gave back, which commands cannot write"
    )]
    ReturnedEntries,
    #[error(
        "{0} bytes are more than one RESTORE can carry, and values of this type cannot be written by elements"
    )]
    TooLongToRestore(u64),
}

impl Problem {
    /// A short name that does not change, to count and log by. Problems of which one differs only in numbers share it,
    /// except those of modules, which their names tell apart.
    pub fn kind(&self) -> &'static str {
        match self {
            Problem::BadMagic => "bad_magic",
            Problem::UnknownVersion(_) => "unknown_version",
            Problem::UnknownType { .. } => "unknown_type",
            Problem::ModuleBeforeRelease => "module_before_release",
            Problem::FunctionBeforeRelease => "function_before_release",
            Problem::BadForm(_) => "bad_form",
            Problem::UnknownTemplate(_) => "unknown_template",
            Problem::TooManyTemplates(_) => "too_many_templates",
            Problem::BadTemplate => "bad_template",
            Problem::BadLength(_) => "bad_length",
            Problem::TooLong(_) => "too_long",
            Problem::BadStringEncoding(_) => "bad_string_encoding",
            Problem::BadCompression => "bad_compression",
            Problem::BadPacked(_) => "bad_packed",
            Problem::BadScore => "bad_score",
            Problem::BadStream => "bad_stream",
            Problem::BadModuleData(_) => "bad_module_data",
            Problem::BadDatabase(_) => "bad_database",
            Problem::BadChecksum { .. } => "bad_checksum",
            Problem::TargetLacksModule(_) => "module",
            Problem::TargetLacksFieldExpiry => "field_expiry",
            Problem::TargetLacksType { name, .. } => name,
            Problem::TargetLacksProducers => "stream_producers",
            Problem::ReturnedEntries => "stream_returned_entries",
            Problem::TooLongToRestore(_) => "too_long_to_restore",
        }
    }
}

/// Something beside the values that no command can carry to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOut {
    /// Data of a module that belongs to no key (opcode 247). Only a snapshot brings it to a server.
    ModuleData {
        module: ModuleId,
        /// When a server would load it: 1 before the keys, 2 behind them (`REDISMODULE_AUX_BEFORE_RDB`, `..._AFTER_RDB`).
        when: u64,
    },
    /// What a module keeps with a key (opcode 243 of Redis): the target is older, or the key goes by elements. The key itself
    /// comes.
    KeyMetadata { class: MetadataClass },
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LeftOut::ModuleData { module, .. } => {
                write!(f, "data of the module {module} outside keys")
            }
            LeftOut::KeyMetadata { class } => {
                write!(f, "metadata of keys of the class {class}")
            }
        }
    }
}

/// Names the metadata that a module keeps with keys: four characters of six bits, five bits of version, three of flags.
/// `keyMetaClassEncode` in `src/keymeta.c`, Redis 8.6.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MetadataClass(pub u32);

impl fmt::Display for MetadataClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (0..4)
            .rev()
            .try_for_each(|place| f.write_char(letter(u64::from(self.0) >> (8 + 6 * place))))
    }
}

impl fmt::Debug for MetadataClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which type of a module wrote a value: nine characters of six bits, then ten bits of the encoding's version.
/// `moduleTypeEncodeId` in `src/module.c`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleId(pub u64);

impl ModuleId {
    /// The type's name, as the module registered it.
    pub fn name(self) -> [u8; 9] {
        std::array::from_fn(|index| letter(self.0 >> (10 + 6 * (8 - index))) as u8)
    }

    /// Version of the encoding, 0 to 1023.
    pub fn encoding_version(self) -> u16 {
        (self.0 & 0x3ff) as u16
    }
}

/// The character that the lowest six bits stand for.
fn letter(bits: u64) -> char {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    char::from(LETTERS[(bits & 63) as usize])
}

impl fmt::Display for ModuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name()
            .iter()
            .try_for_each(|byte| f.write_char(char::from(*byte)))
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
