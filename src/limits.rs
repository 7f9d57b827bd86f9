//! Every bound of the program, in one place, checked against each other at compile time.
//!
//! Layer 0. Units are in the names or in the comment; a limit that a user may change is a default here.

/// The most arguments one command may have. Servers take up to 1024 * 1024 from a client, but propagate
/// what scripts build, so this allows far more while a corrupt count is still found at once.
pub const MAX_ARGUMENTS: usize = 64 * 1024 * 1024;

/// The largest command: `proto-max-bulk-len` (512 MiB by default) twice, for a key and a value.
pub const MAX_FRAME_BYTES: usize = 1 << 30;

const _: () = assert!(MAX_FRAME_BYTES < u32::MAX as usize);

// Replies (`resp/reply.rs`).

/// The longest status, error or length line of a reply. Servers cut error texts at a few hundred bytes.
pub const MAX_REPLY_LINE: usize = 64 * 1024;

/// How deep arrays in a reply may nest; the deepest we ask for is four (`CLUSTER SHARDS`).
pub const MAX_REPLY_DEPTH: usize = 16;
