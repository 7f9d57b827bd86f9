//! Every bound of the program, in one place, checked against each other at compile time.
//!
//! Layer 0. Units are in the names or in the comment; a limit that a user may change is a default here.

/// The most arguments one command may have. Servers take up to 1024 * 1024 from a client, but propagate
/// what scripts build, so this allows far more while a corrupt count is still found at once.
pub const MAX_ARGUMENTS: usize = 64 * 1024 * 1024;

/// The largest command: `proto-max-bulk-len` (512 MiB by default) twice, for a key and a value.
pub const MAX_FRAME_BYTES: usize = 1 << 30;

const _: () = assert!(MAX_FRAME_BYTES < u32::MAX as usize);

// topology and control

/// Port of a Redis or Valkey server when none is given.
pub const DEFAULT_PORT: u16 = 6379;

/// The most seed nodes in one URI. A few suffice, the others are discovered.
pub const MAX_SEEDS: usize = 64;

/// The most masters of one deployment. Servers advise at most 1,000 nodes.
pub const MAX_MASTERS: usize = 4096;

/// The largest reply that discovery reads, in bytes: `CLUSTER SHARDS` of 1,000 nodes has about 400 KB.
pub const MAX_CONTROL_REPLY_BYTES: usize = 16 << 20;

/// The deepest nesting of such a reply; `COMMAND INFO` with subcommands has 7.
pub const MAX_CONTROL_REPLY_DEPTH: usize = 32;

const _: () = assert!(MAX_MASTERS < u16::MAX as usize);
