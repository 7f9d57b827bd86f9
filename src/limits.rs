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

// Delivery (`target/`).

/// Bytes that may be on their way to one target connection without an answer. Enough for 40 MB/s over a round
/// trip of 100 ms; on a local network a tenth would do.
pub const MAX_FLIGHT_BYTES: usize = 4 << 20;

/// Commands that may be on their way to one target connection without an answer.
pub const MAX_FLIGHT_FRAMES: usize = 64 * 1024;

/// While answers are due, this much is gathered before more is sent: what a write costs is then shared by many
/// commands, and the target reads as much at once.
pub const BATCH_BYTES: usize = 64 * 1024;

/// The largest run of neighbouring commands that is answered for as one.
pub const MAX_RUN_BYTES: usize = 256 * 1024;

/// Pieces handed to one vectored write; the kernel takes up to 1024.
pub const MAX_PIECES: usize = 256;

const _: () = assert!(BATCH_BYTES <= MAX_RUN_BYTES && MAX_RUN_BYTES <= MAX_FLIGHT_BYTES);

// The lane's memory (`engine/`).

/// What one read from the source may bring, and the size of a chunk of buffer. Larger gains little per byte
/// (512 KiB costs 0.30 CPU s/GB against 0.29 for 1 MiB and 0.35 for 256 KiB), and each lane holds several.
pub const CHUNK_BYTES: usize = 512 * 1024;

/// A read with less room than this starts a new chunk.
pub const MIN_READ_BYTES: usize = 64 * 1024;

/// Buffers of a lane altogether: when they are in use the lane stops reading, until the target answers. One
/// command larger than this is still taken, alone.
pub const LANE_BUFFER_BYTES: usize = 8 << 20;

/// The longest transaction of the source, in bytes: what may have been received of it when its end is not in sight.
pub const MAX_TRANSACTION_BYTES: usize = MAX_FRAME_BYTES;

/// The largest chunk that a unit of the stream may need: an open transaction and one more command behind it.
pub const MAX_UNIT_CHUNK_BYTES: usize = 3 << 30;

const _: () = assert!(
    MAX_TRANSACTION_BYTES + MAX_FRAME_BYTES + CHUNK_BYTES < MAX_UNIT_CHUNK_BYTES
        && MAX_UNIT_CHUNK_BYTES < u32::MAX as usize
);

/// So much of what is answered is kept: a spool begins with what of it the target's records do not tell of yet, and what
/// a failover of the source loses of it is mended.
pub const KEPT_STREAM_BYTES: usize = 1 << 20;

/// So much more than the records tell of may be applied before they are written again.
pub const UNTOLD_BYTES: u64 = KEPT_STREAM_BYTES as u64 / 2;

/// Buffers of a lane that follows the stream. What is kept stands in one chunk more than it would fill.
pub const STREAM_BUFFER_BYTES: usize = LANE_BUFFER_BYTES + KEPT_STREAM_BYTES + 2 * CHUNK_BYTES;

/// Unused chunks that a lane keeps.
pub const SPARE_CHUNKS: usize = LANE_BUFFER_BYTES / CHUNK_BYTES;

const _: () = assert!(MIN_READ_BYTES * 4 <= CHUNK_BYTES);
const _: () = assert!(MAX_RUN_BYTES <= CHUNK_BYTES);
// Bookkeeping on the target (`checkpoint/`).

/// The longest name of a link: it stands in up to 16,384 keys, and in the names of connections.
pub const MAX_LINK_NAME_BYTES: usize = 64;

/// How often a lane writes its records when there is something to tell, in milliseconds (default of `--checkpoint-every`), and
/// what may be chosen: no more often than a few ticks, and no less than once in ten minutes, which a backlog may still hold.
pub const RECORD_INTERVAL_MS: u64 = 1_000;
pub const RECORD_INTERVALS_MS: std::ops::RangeInclusive<u64> = 100..=600_000;

/// How long a lane that could not find out from the target where to go on waits before it tries again.
pub const REOPEN_INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);

/// How far ahead of what is sent the high-water offset is set: twice what an interval brings, between these bounds. After a crash
/// the writes below it are in doubt, so little that is written leaves little in doubt; but a write that is longer waits for a round
/// trip, and so does everything once a target master is away for so long.
pub const MIN_HIGH_STEP_BYTES: usize = 16 << 10;
pub const MAX_HIGH_STEP_BYTES: usize = 256 << 20;
/// The same before the copy is complete, when a crash lets it be made again in any case.
pub const COPYING_HIGH_STEP_BYTES: usize = 1 << 20;
/// What an interval brought counts half as much in the next, and no more than this then: after a load the offset is soon near again.
pub const REMEMBERED_PACE_BYTES: u64 = 512 << 10;
/// After so many intervals without a write the offset is set to where the stream is: nothing is in doubt, and the next write waits
/// for a round trip. A source without writes sends no more than so many bytes in an interval (`PING`, `REPLCONF GETACK`).
pub const QUIET_INTERVALS: u32 = 10;
pub const QUIET_BYTES: u64 = 256;
const _: () =
    assert!(QUIET_BYTES < MIN_HIGH_STEP_BYTES as u64 && MIN_HIGH_STEP_BYTES < MAX_HIGH_STEP_BYTES);
/// The most records of one link that are read; the largest clusters have one for each pair of masters that meet.
pub const MAX_RECORDS: usize = 65_536;

// Taking a link over (`control/`).

/// Slots that each master is asked about at once, with one small command for each.
pub const TAKEOVER_BATCH_SLOTS: usize = 2_000;

/// How long a target that changes or does not answer is tried again before a link is taken over: a failover takes about
/// half of it.
pub const TAKEOVER_PATIENCE_MS: u64 = 60_000;

/// Before it is tried again, in milliseconds: doubled with each failure, between these bounds, and up to twice as long by
/// chance, so that two processes that disturb each other come apart.
pub const MIN_TAKEOVER_PAUSE_MS: u64 = 100;
pub const MAX_TAKEOVER_PAUSE_MS: u64 = 3_000;

/// How often the masters' views of a cluster are followed within one try.
pub const TAKEOVER_VIEWS: usize = 4;

/// How often former writers are looked for again until none is left, and the pause between, in milliseconds.
pub const SHUT_OUT_ROUNDS: u32 = 100;
pub const SHUT_OUT_PAUSE_MS: u64 = 20;

/// After so many replicas that do not answer no others are asked for former writers: a network may lead to masters only.
pub const SHUT_OUT_FAILURES: u32 = 3;

// Removing bookkeeping (`cli/clean.rs`).

/// `COUNT` of the `SCAN` that finds bookkeeping: under a millisecond of a server's time each.
pub const CLEAN_SCAN_COUNT: &[u8] = b"1000";

// ---- command ----

/// The most commands that are learned from a source because the table lacks them.
pub const MAX_LEARNED_COMMANDS: usize = 4096;

/// The longest verb that can be learned.
pub const MAX_LEARNED_VERB_BYTES: usize = 128;

/// How much of a verb or key a message shows, before escaping.
pub const DESCRIBED_BYTES: usize = 64;
// topology and control

/// Port of a Redis or Valkey server when none is given.
pub const DEFAULT_PORT: u16 = 6379;

/// The most seed nodes in one URI. A few suffice, the others are discovered.
pub const MAX_SEEDS: usize = 64;

/// The most masters of one deployment. Servers advise at most 1,000 nodes.
pub const MAX_MASTERS: usize = 4096;

/// Nodes of which it is remembered whose place they may take; those that are gone are forgotten beyond.
pub const MAX_REMEMBERED_NODES: usize = 4 * MAX_MASTERS;

/// The largest reply that discovery reads, in bytes: `CLUSTER SHARDS` of 1,000 nodes has about 400 KB.
pub const MAX_CONTROL_REPLY_BYTES: usize = 16 << 20;

/// The deepest nesting of such a reply; `COMMAND INFO` with subcommands has 7.
pub const MAX_CONTROL_REPLY_DEPTH: usize = 32;

/// How long a control connection may take to be established, per address.
pub const CONTROL_CONNECT_TIMEOUT_MS: u64 = 3_000;

/// How long a server may take to answer a control command.
pub const CONTROL_REPLY_TIMEOUT_MS: u64 = 5_000;

/// How often topologies and source offsets are refreshed without a hint.
pub const WATCH_INTERVAL_MS: u64 = 1_000;

/// The shortest time between two refreshes, however many hints come.
pub const WATCH_HINT_INTERVAL_MS: u64 = 50;

/// How long a server may take to answer a poll of the watcher.
pub const WATCH_REPLY_TIMEOUT_MS: u64 = 1_000;

/// How many refreshes in a row may show an older view of a cluster before it is believed: the cluster
/// was then reset, and its epochs start again.
pub const WATCH_OLDER_VIEWS: u32 = 30;

/// How long a node that could not be reached is left alone by the watcher.
pub const WATCH_RETRY_MS: u64 = 3_000;

/// How often the terminal and `--once` look at the lanes.
pub const PROGRESS_INTERVAL_MS: u64 = 200;

/// Over which time rates are taken.
pub const RATE_WINDOW_MS: u64 = 1_000;

/// How often a log line tells the state when there is no terminal.
pub const LOG_INTERVAL_MS: u64 = 10_000;

/// The most connections to the status page at a time.
pub const MAX_STATUS_CONNECTIONS: usize = 64;

/// The largest password file, in bytes.
pub const MAX_PASSWORD_BYTES: u64 = 4096;

const _: () = assert!(MAX_MASTERS < u16::MAX as usize);
const _: () = assert!(LISTING_QUIET_MS > WATCH_INTERVAL_MS + WATCH_REPLY_TIMEOUT_MS);
// ---- rdb ----

/// The longest string that a snapshot may claim to hold.
pub const MAX_STRING_BYTES: usize = MAX_FRAME_BYTES;

/// A serialized value longer than this is written by elements rather than with one RESTORE (default).
pub const VALUE_THRESHOLD_BYTES: usize = 512 * 1024;

/// A part of a large value ends once it holds so many bytes or elements: what a target executes in well
/// under a millisecond.
pub const PART_BYTES: usize = 64 * 1024;
pub const PART_ELEMENTS: usize = 512;

/// A string within an element (of a list, a hash, a set, a stream) that is longer goes to the target in pieces. Up to
/// this it is one argument, which the decoder, the lane and the target hold as a whole.
pub const LONG_TEXT_BYTES: usize = 4 << 20;

/// The largest value of a type that only RESTORE can write: `proto-max-bulk-len` (512 MiB by default), less what stands
/// around the value in a payload. A target closes the connection on a longer argument.
pub const MAX_WHOLE_VALUE_BYTES: usize = (512 << 20) - 1024;

/// Names of fields in the templates of hashes, altogether: they are kept until the snapshot ends.
pub const MAX_TEMPLATE_BYTES: usize = 8 << 20;

/// What modules may keep with a key for it to be passed on.
pub const MAX_KEY_METADATA_BYTES: usize = 64 * 1024;

/// The newest snapshot versions whose opcodes are known.
pub const MAX_REDIS_RDB_VERSION: u32 = 16;
pub const MAX_VALKEY_RDB_VERSION: u32 = 81;

const _: () = assert!(PART_BYTES < VALUE_THRESHOLD_BYTES);
const _: () = assert!(VALUE_THRESHOLD_BYTES < MAX_STRING_BYTES);

/// Before a refused command is tried again (`TRYAGAIN`, `LOADING`, `OOM` ...), in milliseconds: doubled with each refusal,
/// between these bounds.
pub const RETRY_REFUSED_MS: u64 = 100;
pub const MAX_RETRY_REFUSED_MS: u64 = 1_000;

/// Before a slot that was just redirected follows the next redirect: two masters that each name the other
/// are asked a few times a second, not as fast as they answer.
pub const RETRY_REDIRECT_MS: u64 = 20;

/// How long a redirect counts more than a topology that may have been read before it.
pub const TRUST_REDIRECT_MS: u64 = 3_000;

/// Before a lost connection is dialled again: doubled with each failure, between these bounds.
pub const MIN_REDIAL_MS: u64 = 50;
pub const MAX_REDIAL_MS: u64 = 2_000;

/// Target masters that one lane may know at a time, those that left included.
pub const MAX_TARGET_NODES: usize = 4096;

// A read floor that the due replies may not reach would be waited for until a tick.
const _: () = assert!(
    REPLIES_TOGETHER[0].1 < REPLIES_TOGETHER[0].0 && REPLIES_TOGETHER[1].1 < REPLIES_TOGETHER[1].0
);

const _: () = assert!(MAX_TARGET_NODES < u16::MAX as usize - 3);

/// Bytes and commands of the stream that go out together with one watermark. The target executes them at a stretch: so many
/// commands keep its other clients waiting for a few milliseconds. A transaction of the source is never cut.
pub const GROUP_BYTES: usize = 240 * 1024;
pub const GROUP_COMMANDS: u32 = 4096;

/// From so many commands a second that must not be applied twice, a lane lets them gather before they go out: one alone, between
/// `MULTI`, a watermark and `EXEC`, costs a target three times what it does without, two 2.2 times, four 1.5, six 1.3. Counters
/// in all slots of one master of three have each slot written to 40 times a second at the highest rates, so less than a tenth of
/// a second would gather nothing.
pub const GROUPING_HIGH_RATE: u64 = 60_000;
pub const GROUPING_ENOUGH: u32 = 6;
pub const GROUPING_WAIT_MS: u64 = 150;

/// Over which time that rate is taken.
pub const GROUPING_MEASURE_MS: u64 = 50;

/// Nothing waits for that while more of a lane's buffers is in use.
pub const HELD_BUFFER_BYTES: usize = LANE_BUFFER_BYTES / 2;

const _: () = assert!(GROUPING_ENOUGH < GROUP_COMMANDS);
const _: () = assert!(GROUPING_WAIT_MS < RECORD_INTERVAL_MS);

/// Units for which a slot that gathers keeps its memory when it has sent them: all slots may, some 100 bytes for each.
pub const KEPT_QUEUE_UNITS: usize = 8;

// With what stands around it, a group fits into a chunk that is half full.
const _: () = assert!(GROUP_BYTES + 8 * 1024 <= CHUNK_BYTES / 2);
const _: () = assert!(GROUP_BYTES <= MAX_RUN_BYTES);

/// Chunks in which a lane builds commands; connections share them when there are more of those.
pub const STAGING_CHUNKS: usize = 8;

// Chunks that are only half full must leave room to go on.
const _: () = assert!((STAGING_CHUNKS + 2) * CHUNK_BYTES * 4 <= LANE_BUFFER_BYTES * 3);

/// A peer that owes us something and says nothing for so long is taken as gone, in milliseconds: the default of the
/// servers' `repl-timeout`. A source says something every 10 s, a target is silent only while it runs one long command.
pub const MAX_SILENCE_MS: u64 = 60_000;

/// How often routes are compared with the topology, for what a redirect or a wait had kept from it, in milliseconds.
pub const RECONCILE_INTERVAL_MS: u64 = 1_000;

/// How often a replica tells its source where it is, in milliseconds (`replicationCron` of the servers does the same).
pub const ACK_INTERVAL_MS: u64 = 1000;

/// Reads of which a lane remembers the time, to tell the age of what is not answered.
pub const MAX_ARRIVALS: usize = 4096;

/// What a lease adds to a deadline, in milliseconds: some 1,100 years. Deadlines of real use are below it, and the sum is
/// below what servers take for fields and keys (2^46).
pub const LEASE_GRACE_MS: u64 = 1 << 45;

/// Deadlines that are nearer than this, and the lane's lag, are held back: so long may a target stand still without
/// removing a key whose renewal waits.
pub const LEASE_MARGIN_MS: u64 = 30_000;

/// Deadlines that are nearer than this are held back while a copy is made: so long may it take.
pub const LEASE_COPY_MS: u64 = 24 * 3_600_000;

/// How much later than the true deadline a lease ends: by so much clocks may differ, and so long may a source take to
/// find the key.
pub const LEASE_SKEW_MS: u64 = 2_000;

/// When a source has written nothing for so long, and that is known to be applied, its keys get their true deadlines.
pub const LEASE_QUIET_MS: u64 = 3_000;

/// Memory for the leases of a lane, and what one takes beside its names.
pub const LEASE_TABLE_BYTES: usize = 64 << 20;
pub const LEASE_ENTRY_BYTES: usize = 192;

/// Keys and fields that one script looks at, and scripts of one tick.
pub const SETTLE_KEYS: usize = 128;
pub const SETTLE_BATCHES: usize = 64;

/// Fields that one script looks at when the names of those with leases are not known: some 5 ms of the target's time.
pub const SETTLE_WALK_FIELDS: u64 = 1024;

/// Answers of the source about its offset that are remembered until the target has passed them.
pub const MAX_OPEN_POLLS: usize = 64;

const _: () = assert!(LEASE_MARGIN_MS > LEASE_SKEW_MS + 2 * WATCH_INTERVAL_MS);

/// `COUNT` of the `SCAN` that lists the target's keys after a copy: under a millisecond of the target's time each.
pub const LISTING_SCAN_COUNT: &[u8] = b"1000";

/// After the target's keys were listed: how long no slot must be seen to have moved, in milliseconds. Twice as long as it
/// takes until the watcher sees it.
pub const LISTING_QUIET_MS: u64 = 3_000;

/// Memory for the keys of one lane's snapshot, while those that the target has too much are looked for: 140 million keys.
pub const KEY_SET_BYTES: usize = 1 << 30;

/// The least memory for them, in buckets of 48 bytes.
pub const KEY_SET_BUCKETS: usize = 1024;

/// `SWAPDB`s that may come while stale keys are looked for.
pub const MAX_SWAPS: usize = 1000;

/// `COUNT` of the `SCAN` that finds the keys of a flush: a few hundred microseconds of the target's time each.
pub const PURGE_SCAN_COUNT: &[u8] = b"500";

/// After a flush during which a slot may have moved: how long until it is made again, in milliseconds.
pub const FLUSH_AGAIN_MS: u64 = 200;

// The runtime (`runtime/`).

/// How often a lane looks at what does not wake it: orders, topologies, retries, acknowledgements. Nothing on the path of
/// a command waits for it.
pub const TICK: std::time::Duration = std::time::Duration::from_millis(50);

/// How long connecting may take.
pub const DIAL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// How long a lane that was told to stop may take to finish what is in flight.
pub const DRAIN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Room for one read of replies: 13,000 times `+OK`.
pub const REPLY_READ_BYTES: usize = 64 * 1024;

/// The shortest reply, in bytes: `:1` and the line's end.
pub const MIN_REPLY_BYTES: usize = 4;

/// Replies that are waited for together: `(due, together)`, the first line that applies. A wake-up for each of the target's
/// writes costs both sides more than the replies in it: with these a streamed command cost 20% less CPU.
pub const REPLIES_TOGETHER: [(u64, u64); 2] = [(2048, 1024), (256, 128)];

/// Entries of a core's ring: how many sockets can be taken under watch by one system call.
pub const RING_DEPTH: u32 = 128;

/// Completions that it holds; the kernel keeps what is more until there is room.
pub const RING_COMPLETIONS: u32 = 4096;

/// The port that we tell the source to be listening on. Nothing listens there; it only shows in `INFO replication`.
pub const SHOWN_PORT: u16 = 1;

// Reading snapshot files (`cli/rdb/`).

/// What is read of a snapshot file at once.
pub const SNAPSHOT_READ_BYTES: usize = 1 << 20;

/// What is gathered before it is written to standard output.
pub const OUTPUT_BYTES: usize = 256 * 1024;

/// Prefixes of keys that a summary tells apart; keys of later ones are counted together.
pub const MAX_PREFIXES: usize = 10_000;

/// A prefix of keys ends with a colon within so many bytes.
pub const MAX_PREFIX_BYTES: usize = 128;

const _: () = assert!(MIN_READ_BYTES * 4 <= SNAPSHOT_READ_BYTES);

/// What is gathered for one target master before it is sent; as much may be without an answer.
pub const IMPORT_BATCH_BYTES: usize = 256 * 1024;
pub const IMPORT_BATCH_COMMANDS: usize = 4096;

/// How long an import tries a write again that is redirected, refused in passing, or without a connection: a failover takes
/// about half of it.
pub const IMPORT_PATIENCE_MS: u64 = 60_000;

// The spool (`spool/`).

/// A block of the spool with its header: what is written, read back and held in memory at a time.
pub const SPOOL_BLOCK_BYTES: usize = 1 << 20;

/// Memory of a lane's spool. It is used only while the target lags behind the lane's buffers, and absorbs a third of a second
/// at 100 MB/s before the disk is touched (half of it is).
pub const SPOOL_MEMORY_BYTES: usize = 32 << 20;

/// The least number of blocks in memory. An eighth of them is for those that are read back before the lane needs them, half
/// must fill before any is written.
pub const SPOOL_LEAST_BLOCKS: usize = 8;

/// Blocks of a segment file: what is deleted together.
pub const SPOOL_SEGMENT_BLOCKS: u64 = 64;

/// Segments into which a small budget is divided at least.
pub const SPOOL_SEGMENTS: u64 = 8;

/// Disk space for the spools of all lanes (default of `--spool-max`).
pub const SPOOL_DISK_BYTES: u64 = 4 << 30;

/// Before a disk that refused is tried again, in milliseconds.
pub const SPOOL_RETRY_MS: u64 = 1_000;

/// A target that owes an answer for so long, in milliseconds, has what is received meanwhile written to disk as often: after a crash
/// the source is asked for no more than came since.
pub const SPOOL_LAG_MS: u64 = 1_000;

/// Before a lane begins again from what its target masters have: how long what it received may take to get to disk, in
/// milliseconds.
pub const SPOOL_SAVE_MS: u64 = 10_000;

/// How long a process that starts waits for its predecessor to leave the spool's directory.
pub const SPOOL_LOCK_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// How long a lane that was told to stop goes on to deliver what is spooled, in milliseconds. The rest is then written to disk.
pub const SPOOL_DRAIN_MS: u64 = 5_000;

const _: () = assert!(SPOOL_MEMORY_BYTES / SPOOL_BLOCK_BYTES >= SPOOL_LEAST_BLOCKS);
const _: () = assert!(SPOOL_BLOCK_BYTES < u32::MAX as usize);
const _: () = assert!((SPOOL_DRAIN_MS as u128) < DRAIN_TIMEOUT.as_millis());

// Mending (`mend/`).

/// Keys of one slot that are mended together: what the source copies out at one moment, in a few milliseconds.
pub const MEND_KEYS: usize = 1000;

/// How long a value that is built beside its key may take; what is left of one that was given up ends then.
pub const MEND_TEMPORARY_SECONDS: u64 = 3600;

/// The largest answer to a question about keys.
pub const MEND_ANSWER_BYTES: usize = 256 << 20;

/// Before the source is asked again after it could not answer.
pub const MEND_RETRY_MS: u64 = 500;

/// Questions that one lane may have on its way at a time; other slots wait.
pub const MEND_QUESTIONS: usize = 64;

/// Keys of a lane that may differ at a time. When so many do, the target is no copy any more.
pub const MEND_OWED_KEYS: usize = 100_000;

/// How often the same key may be mended within a minute. More often, something else writes to it, or the target cannot
/// hold what the source does.
pub const MEND_REPEATS: u32 = 20;
pub const MEND_REPEATS_MS: u64 = 60_000;

/// Mends that are told of one by one in so long; the others are only counted.
pub const MEND_MESSAGES: u64 = 10;
pub const MEND_MESSAGES_MS: u64 = 60_000;

/// What a watermark may say of keys that it does not speak for, in bytes: written with every transaction of its slot until
/// they are mended.
pub const OWED_BYTES: usize = 6 * 1024;

/// Keys that may be mended at a time because a command failed that is repeated after a restart. More of those failures
/// are taken for what repeating explains.
pub const MEND_REPEATED_KEYS: usize = 10_000;

const _: () = assert!(MEND_KEYS <= MEND_OWED_KEYS && MEND_REPEATED_KEYS <= MEND_OWED_KEYS);
// What stands around a group is no larger than before.
const _: () = assert!(GROUP_BYTES + OWED_BYTES + 2 * 1024 <= CHUNK_BYTES / 2);

// Slots that move between source masters.

/// How long a slot must have been seen at one owner, and not open, before it is copied from there: a view of the cluster is
/// asked for once a second.
pub const SLOT_QUIET_MS: u64 = 1200;

/// When a slot that nobody writes is warned of, and again after so long.
pub const SLOT_FROZEN_MS: u64 = 60_000;

/// How many slots a lane copies at a time, and how many keys of one at first.
pub const RECOPIES: usize = 32;
pub const RECOPY_FIRST_KEYS: usize = 64;

/// How much the values of the keys should take that are copied together.
pub const RECOPY_BYTES: usize = 2 << 20;

/// Keys that a slot may hold that is copied by itself. They are all kept in mind.
pub const RECOPY_SLOT_KEYS: usize = 1_000_000;

const _: () = assert!(RECOPY_FIRST_KEYS <= MEND_KEYS && SLOT_QUIET_MS > WATCH_INTERVAL_MS);

// Addresses (`topology/rewrite.rs`).

/// The most rules for addresses of one side: one for each master, if need be.
pub const MAX_REWRITES: usize = MAX_MASTERS;

/// How many nodes beside the seed are tried for a second view of a cluster. One that is down costs a timeout.
pub const SECOND_OPINIONS: usize = 2;
// Marks of origin.

/// The number of the key that is set and removed in one transaction; those of mended values are below.
pub const TOKEN_NUMBER: usize = 1_000_000;

/// The number of the key under which a copy builds a value by elements.
pub const PART_NUMBER: usize = 1_000_001;

const _: () = assert!(MEND_KEYS <= TOKEN_NUMBER);
