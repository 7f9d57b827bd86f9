//! slotstream keeps one live Redis or Valkey deployment a continuously updated copy of another.
//!
//! It attaches to every source master as a replica does (`PSYNC`), writes the snapshot into the target while it
//! arrives, and replays the stream of writes behind it. This page is the architecture, in reading order.
//!
//! # Ideas
//!
//! 1. **The core is a state machine.** Framing, decoding, routing, batching, acknowledgement and repair take bytes,
//!    replies, time and topologies in, and give writes and reads out. They own no socket, file, clock, thread or
//!    randomness, so the whole engine runs in a simulation from a seed (`tests/sim`). `tests/tidy.rs` enforces it.
//! 2. **One core, one lane.** A lane is one source master's replica connection plus the connections to the target masters
//!    that own its slots, on one thread; there is one for each core. Lanes share nothing on the path of a command.
//! 3. **Bytes pass through.** A replicated command already is the RESP that the target wants. A command is a range of
//!    the receive buffer; neighbours for one target are one range; ranges go out by one vectored write.
//! 4. **Positions are types.** `received >= routed >= acknowledged`, and no position moves without proof.
//! 5. **A limit on everything**, named in [`limits`].
//!
//! # Flow of bytes
//!
//! ```text
//! source socket -> chunk -> commands with end offsets -> keys, slot -> route -> ledger of a target connection
//!   [runtime]      [engine::intake]   [resp, command]    [engine::stream]       [target]
//!       -> one vectored write -> replies, in order -> acknowledged offset -> REPLCONF ACK to the source
//!          [runtime]             [resp, target]       [engine::lane]         [source]
//! snapshot: source socket -> decoder -> RESTORE commands, built in chunks -> the same ledgers
//!                            [rdb]      [engine::copy]
//! ```
//!
//! # Layers
//!
//! A module imports only lower layers, and modules of layer 2 do not import each other.
//!
//! | layer | modules |
//! |---|---|
//! | 0 | [`limits`], [`position`], [`slot`], [`fault`], [`chunk`] |
//! | 1 | [`resp`], [`rdb`], [`command`] |
//! | 2 | [`topology`], [`source`], [`target`], [`spool`], [`checkpoint`], [`mend`] |
//! | 3 | [`engine`] |
//! | 4 | [`runtime`] (io_uring, and nowhere else), [`control`] (threads beside the lanes) |
//! | 5 | [`cli`] |

pub mod checkpoint;
pub mod chunk;
pub mod cli;
pub mod command;
pub mod control;
pub mod engine;
pub mod fault;
pub mod limits;
pub mod mend;
pub mod position;
pub mod rdb;
pub mod resp;
pub mod runtime;
pub mod slot;
pub mod source;
pub mod spool;
pub mod target;
pub mod topology;
