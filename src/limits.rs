//! Every bound of the program, in one place, checked against each other at compile time.
//!
//! Layer 0. Units are in the names or in the comment; a limit that a user may change is a default here.

/// The most arguments one command may have. Servers take up to 1024 * 1024 from a client, but propagate
/// what scripts build, so this allows far more while a corrupt count is still found at once.
pub const MAX_ARGUMENTS: usize = 64 * 1024 * 1024;

/// The largest command: `proto-max-bulk-len` (512 MiB by default) twice, for a key and a value.
pub const MAX_FRAME_BYTES: usize = 1 << 30;

const _: () = assert!(MAX_FRAME_BYTES < u32::MAX as usize);

// ---- command ----

/// The most commands that are learned from a source because the table lacks them.
pub const MAX_LEARNED_COMMANDS: usize = 4096;

/// The longest verb that can be learned.
pub const MAX_LEARNED_VERB_BYTES: usize = 128;

/// How much of a verb or key a message shows, before escaping.
pub const DESCRIBED_BYTES: usize = 64;
