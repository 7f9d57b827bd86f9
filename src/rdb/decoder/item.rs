//! What the decoder hands out: items, which borrow from the input and from the decoder.
//!
//! They are made last: what was found is told by places first, so that the decoder may still change meanwhile.

use super::{Prefix, Reader};
use crate::rdb::Lineage;
use crate::rdb::error::{LeftOut, Problem};
use crate::rdb::part::Part;
use crate::rdb::value::Value;
use crate::rdb::wire::Text;

/// The next piece of a snapshot.
#[derive(Debug, Clone, Copy)]
pub enum Item<'a> {
    /// The input ends here for now. Pass what is left of it again, with more behind it.
    NeedMore,
    Header {
        lineage: Lineage,
        version: u16,
    },
    /// Information about the snapshot; before 7.0 also scripts, under the key `lua`.
    Aux {
        key: &'a [u8],
        value: &'a [u8],
    },
    SelectDatabase(u32),
    /// How many keys the database holds, and how many of them expire. A claim.
    SizeHint {
        keys: u64,
        expiring: u64,
    },
    /// How many keys of a slot follow. A claim.
    SlotHint {
        slot: u64,
        keys: u64,
        expiring: u64,
    },
    /// The source was importing slots when it made the snapshot.
    SlotImport,
    /// The code of a function library.
    Function {
        code: &'a [u8],
    },
    /// Something beside the values was left out.
    LeftOut(LeftOut),
    Value(Value<'a>),
    Part(Part<'a>),
    /// A key that the target cannot hold. Its value was not read, and is passed over.
    Unsupported(Unsupported<'a>),
    /// The snapshot is complete; its checksum, where it has one, is right.
    End {
        has_checksum: bool,
    },
}

/// A key that the target cannot hold.
#[derive(Debug, Clone, Copy)]
pub struct Unsupported<'a> {
    pub key: &'a [u8],
    pub database: u32,
    pub type_code: u8,
    pub problem: Problem,
}

/// Where a string is to be had.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Input {
        start: usize,
        end: usize,
    },
    /// Not stored as it is: made plain in the decoder's own buffer.
    Buffer,
}

impl Place {
    /// Of the string that was just read up to `end`.
    #[inline]
    pub fn of(text: Text<'_>, end: usize, buffer: &mut Vec<u8>) -> Result<Self, Problem> {
        if let Text::Raw(bytes) = text {
            let start = end - bytes.len();
            return Ok(Place::Input { start, end });
        }
        buffer.clear();
        text.append_to(buffer)?;
        Ok(Place::Buffer)
    }

    #[inline]
    pub fn view<'a>(self, input: &'a [u8], buffer: &'a [u8]) -> &'a [u8] {
        match self {
            Place::Input { start, end } => &input[start..end],
            Place::Buffer => buffer,
        }
    }
}

/// What [`Reader::find_plain_value`] found; the value ends where the reader stands.
pub(super) struct PlainValue {
    pub type_code: u8,
    pub footer_version: u16,
    pub expire_at_ms: Option<u64>,
    pub key_start: usize,
    pub key_bytes: usize,
    pub value_start: usize,
}

/// What was found, without borrowing it.
pub(super) enum Found {
    Header,
    Aux {
        key: Place,
        value: Place,
    },
    SelectDatabase,
    SizeHint([u64; 2]),
    SlotHint([u64; 3]),
    Function(Place),
    LeftOut(LeftOut),
    SlotImport,
    Unsupported {
        key: Place,
        type_code: u8,
        problem: Problem,
    },
    Value {
        key: Place,
        serialized: (usize, usize),
        type_code: u8,
        footer_version: u16,
        prefix: Prefix,
        has_metadata: bool,
    },
    Part {
        is_last: bool,
    },
    End {
        has_checksum: bool,
    },
}

impl Reader<'_, '_> {
    #[inline]
    pub(super) fn plain_value(&mut self, found: PlainValue) -> Value<'_> {
        let prefix = std::mem::take(&mut self.decoder.prefix);
        Value {
            key: &self.input[found.key_start..found.key_start + found.key_bytes],
            database: self.decoder.database,
            expire_at_ms: found.expire_at_ms,
            idle_seconds: prefix.idle_seconds,
            frequency: prefix.frequency,
            type_code: found.type_code,
            serialized: &self.input[found.value_start..self.at],
            footer_version: found.footer_version,
            metadata: &[],
        }
    }

    /// What was found, as the caller sees it. Long: one arm for each kind of item.
    #[inline]
    pub(super) fn item(&mut self, found: Found) -> Item<'_> {
        let input = self.input;
        let decoder = &mut *self.decoder;
        match found {
            Found::Value {
                key,
                serialized: (start, end),
                type_code,
                footer_version,
                prefix,
                has_metadata,
            } => Item::Value(Value {
                key: key.view(input, &decoder.key),
                database: decoder.database,
                expire_at_ms: prefix.expire_at_ms,
                idle_seconds: prefix.idle_seconds,
                frequency: prefix.frequency,
                type_code,
                serialized: &input[start..end],
                footer_version,
                metadata: match has_metadata {
                    true => &decoder.metadata,
                    false => &[],
                },
            }),
            Found::Unsupported {
                key,
                type_code,
                problem,
            } => Item::Unsupported(Unsupported {
                key: key.view(input, &decoder.key),
                database: decoder.database,
                type_code,
                problem,
            }),
            Found::Part { is_last } => {
                let prefix = decoder.prefix;
                if is_last {
                    decoder.prefix = Prefix::default();
                }
                let is_first = std::mem::replace(&mut decoder.is_first_part, false);
                Item::Part(Part {
                    key: &decoder.key,
                    database: decoder.database,
                    expire_at_ms: prefix.expire_at_ms,
                    idle_seconds: prefix.idle_seconds,
                    frequency: prefix.frequency,
                    type_code: decoder.parts_type,
                    is_first,
                    is_last,
                    content: decoder.elements.content(),
                    gathered: decoder.elements.gathered(),
                })
            }
            Found::Header => Item::Header {
                lineage: decoder.lineage,
                version: decoder.version,
            },
            Found::Aux { key, value } => Item::Aux {
                key: key.view(input, &decoder.key),
                value: value.view(input, &decoder.scratch),
            },
            Found::Function(code) => Item::Function {
                code: code.view(input, &decoder.scratch),
            },
            Found::SelectDatabase => Item::SelectDatabase(decoder.database),
            Found::SizeHint([keys, expiring]) => Item::SizeHint { keys, expiring },
            Found::SlotHint([slot, keys, expiring]) => Item::SlotHint {
                slot,
                keys,
                expiring,
            },
            Found::SlotImport => Item::SlotImport,
            Found::LeftOut(what) => Item::LeftOut(what),
            Found::End { has_checksum } => Item::End { has_checksum },
        }
    }
}
