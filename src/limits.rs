//! Every bound of the program, in one place, checked against each other at compile time.
//!
//! Layer 0. Units are in the names or in the comment; a limit that a user may change is a default here.

/// The most arguments one command may have. Servers take up to 1024 * 1024 from a client, but propagate
/// what scripts build, so this allows far more while a corrupt count is still found at once.
pub const MAX_ARGUMENTS: usize = 64 * 1024 * 1024;

/// The largest command: `proto-max-bulk-len` (512 MiB by default) twice, for a key and a value.
pub const MAX_FRAME_BYTES: usize = 1 << 30;

const _: () = assert!(MAX_FRAME_BYTES < u32::MAX as usize);

// ---- rdb ----

/// The longest string that a snapshot may claim to hold.
pub const MAX_STRING_BYTES: usize = MAX_FRAME_BYTES;

/// A serialized value longer than this is written by elements rather than with one RESTORE (default).
pub const VALUE_THRESHOLD_BYTES: usize = 512 * 1024;

/// A part of a large value ends once it holds so many bytes or elements: what a target executes in well
/// under a millisecond.
pub const PART_BYTES: usize = 64 * 1024;
pub const PART_ELEMENTS: usize = 512;

/// The newest snapshot versions whose opcodes are known.
pub const MAX_REDIS_RDB_VERSION: u32 = 12;
pub const MAX_VALKEY_RDB_VERSION: u32 = 80;

const _: () = assert!(PART_BYTES < VALUE_THRESHOLD_BYTES);
const _: () = assert!(VALUE_THRESHOLD_BYTES < MAX_STRING_BYTES);
