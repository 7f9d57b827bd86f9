//! Snapshots: decoded while they arrive, and turned into commands that rebuild them on a target.
//!
//! ```text
//! bytes -> Decoder::read -> Reader::next -> Item::Value -> RESTORE, serialized bytes untouched
//!                                        -> Item::Part  -> SADD, RPUSH, ... of a piece of a value
//! ```
//!
//! - [`decoder`] finds opcodes, keys and values; [`grammar`] is the table of value types, as small programs that
//!   [`walk`] runs; [`wire`] reads the lengths and strings below them.
//! - A value passes whole when it is small and the target knows its type ([`TargetFormat::passage`]). Else [`element`]
//!   takes it apart ([`packed`], [`stream`], [`lzf`] are the encodings within) and [`part`] writes the commands.
//! - Memory is bounded whatever a value holds: packed strings are read through a window ([`flow`], [`unpack`]), long strings come
//!   in pieces ([`gather`]). What is read as a whole, up to the 1 GiB that a string may claim: keys, names of groups, consumers
//!   and producers, code of functions, [`Item::Aux`], and values that only RESTORE can write (of modules, arrays, path
//!   hashes), up to 512 MiB. Kept meanwhile: 32 bytes for each pending entry of one group of a stream, and the templates of
//!   hashes, up to 8 MiB.
//! - Nothing is allocated by a length that the input merely claims; nothing is read twice, however small the pieces of
//!   input are; a key that passes whole costs no allocation.
//! - What is handed out, and which error ends it, does not depend on how the input was cut. Only of a compressed string that is
//!   broken as much is handed out as had arrived before the break was met, and something wrong in it may be told instead.
//! - The whole state between two pieces of input is in [`Decoder`]: it owns no input and no output.

mod batch;
mod command;
mod crc;
mod decoder;
mod element;
mod error;
mod flow;
mod fold;
mod gather;
mod grammar;
mod lzf;
mod naming;
mod options;
mod packed;
mod part;
mod payload;
mod stream;
mod target;
mod template;
mod unpack;
mod value;
mod walk;
mod wire;

pub use crc::crc64;
pub use decoder::{Decoder, Item, Reader, Unsupported};
pub use element::has_near_field;
pub use error::{LeftOut, MetadataClass, ModuleId, Problem, RdbError};
pub use gather::Gathered;
pub use naming::{ValueName, value_name};
pub use options::{Form, Options};
pub use part::{Content, NO_DEADLINE, Part, StreamPiece, Texts};
pub use payload::Payload;
pub use target::{Modules, Passage, TargetFormat};
pub use value::Value;
pub use walk::StreamId;

/// The two families of servers, whose formats part at version 12 and type 22.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lineage {
    Redis,
    Valkey,
}

impl std::fmt::Display for Lineage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Lineage::Redis => "Redis",
            Lineage::Valkey => "Valkey",
        })
    }
}
