//! The shape of every value type as a small program, and which servers can restore it.
//!
//! A value is a sequence of strings, numbers and fixed-width fields with counted loops around them. Each
//! type's program lists them in order; [`Walk`](super::walk::Walk) runs it, to find where a value ends
//! as well as to hand out its elements. A new type is a new program.
//!
//! From type 22 on the two lineages use the same numbers for different things; the magic decides.
//!
//! # Where the shapes come from
//!
//! | types | server file |
//! |---|---|
//! | 0 to 25, opcodes 244 to 255 | `src/rdb.h`, `rdbLoadObject` and `rdbLoadRioWithLoadingCtx` in `src/rdb.c`, Redis 7.4 |
//! | Redis 26 (version 13, 8.6) and 27 (14, 8.8), opcode 243 | the same and `src/keymeta.c`, Redis 8.8 before release |
//! | Redis 28, array (14, 8.8) | `rdbSaveObject`, `rdbSaveArrayElement` of the same; its number is that of the release |
//! | Redis 29 to 32, opcode 242, hash templates (15, 8.10) | `tests/unit/type/hash-template.tcl` (payloads byte by byte), pull request 15364 |
//! | Redis 33, rate limit (builds with `ENABLE_GCRA`) | `rdbSaveObject`, as for 28 |
//! | Valkey 22 (80, 9.0) | `rdbLoadObject`, Valkey 9.0 |
//! | Valkey 23, path hash (81, 9.2 before release) | pull request 4506, its `rdbSaveObject` |
//!
//! Redis 14 was written with other numbers (28 rate limit, 29 array) by builds between releases: those are not read.
//! What version 16 of Redis adds is not public; it is read as 15 is.
//!
//! Type 6 (modules in 4.0 before release) cannot be read past without its module, and opcode 246 (functions in 7.0 before
//! release) holds no library in the form that was released: servers refuse both (`rdbLoadObject`,
//! `rdbLoadRioWithLoadingCtx`), and so does the decoder, by name.

use super::Lineage;

/// What a piece of a value means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Role {
    /// Read past, carries nothing that commands can express.
    #[default]
    Ignored,
    /// A whole string value.
    Whole,
    /// Element of a list, member of a set.
    Item,
    Member,
    Score,
    Field,
    FieldValue,
    /// A [`Role::DeadlineAfter`] follows.
    FieldValueBeforeDeadline,
    /// Absolute deadline of the field before it, in milliseconds; -1 for none.
    DeadlineAfter,
    /// Deadline of the field that follows: 0 for none, else what to add to the base, plus one.
    DeadlineBeforeRelative,
    /// The same, absolute.
    DeadlineBeforeAbsolute,
    /// The earliest deadline of a hash's fields.
    DeadlineBase,
    /// Strings that hold packed elements.
    ListZiplist,
    ListPackOrPlain,
    /// 1: the node is one plain element, 2: a listpack.
    NodeForm,
    SetIntset,
    SetPack,
    SortedSetZiplist,
    SortedSetPack,
    HashZipmap,
    HashZiplist,
    HashPack,
    HashPackDeadlines,
    StreamNodeId,
    StreamNode,
    StreamLastId,
    StreamMaxDeletedId,
    StreamEntriesAdded,
    StreamGroups,
    GroupName,
    GroupLastId,
    GroupEntriesRead,
    GroupPending,
    PendingId,
    PendingTime,
    PendingDeliveries,
    ConsumerName,
    /// When a consumer last asked, and when it last got something: Unix time in milliseconds, -1 for never.
    ConsumerSeen,
    ConsumerActive,
    ConsumerPending,
    ConsumerPendingId,
    /// How many entries of a group were given back by their consumers, then the ids.
    ReturnedId,
    /// For how long, and how many, ids of idempotent producers are remembered.
    ProducerSeconds,
    ProducerEntries,
    ProducerName,
    ProducerEntryName,
    ProducerEntryId,
    ProducerAdded,
    ProducerDuplicates,
    /// Which template names the fields of a hash.
    TemplateId,
    /// Names of fields: one, or a listpack of all.
    TemplateField,
    TemplateFields,
    /// Values in the order of the fields; in a listpack they stand behind the template's id.
    TemplateValue,
    TemplateValues,
}

/// One step of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Text(Role),
    /// A length-encoded number.
    Number(Role),
    /// Two length-encoded numbers: milliseconds and sequence of a stream id.
    StreamId(Role),
    Bytes4(Role),
    Bytes8(Role),
    Bytes16(Role),
    /// A score as text behind a one-byte length, as versions before 8 wrote it.
    TextScore,
    /// A count, then the steps up to the matching `Again` that many times; `after` follows them.
    Repeat {
        role: Role,
        after: u8,
    },
    Again,
    /// A count for a [`Op::RepeatCounted`] further on.
    Counted,
    /// As [`Op::Repeat`], as often as was counted before: by [`Op::Counted`], by the names of a template that were read, or by
    /// whoever runs the program and knows the template.
    RepeatCounted {
        after: u8,
    },
    /// 0: go on with the next step, 1: with that one.
    Either {
        one: u8,
    },
    Goto(u8),
    /// An element of an array: a tag, then a string, an integer or a double.
    ArrayValue,
    /// Module data: tagged items up to the tag 0.
    ModuleData,
    End,
}

use Op::{
    Again, ArrayValue, Bytes4, Bytes8, Bytes16, Counted, Either, End, Goto, ModuleData, Number,
    StreamId, Text, TextScore,
};
use Role::Ignored;

const fn repeat(role: Role) -> Op {
    Op::Repeat { role, after: 0 }
}

const REPEAT_COUNTED: Op = Op::RepeatCounted { after: 0 };

/// Fills in where each loop ends.
const fn linked<const N: usize>(mut program: [Op; N]) -> [Op; N] {
    let mut start = 0;
    while start < N {
        if let Op::Repeat { .. } | Op::RepeatCounted { .. } = program[start] {
            let (mut at, mut depth) = (start + 1, 1);
            while depth > 0 {
                match program[at] {
                    Op::Repeat { .. } | Op::RepeatCounted { .. } => depth += 1,
                    Op::Again => depth -= 1,
                    _ => {}
                }
                at += 1;
            }
            let after = at as u8;
            program[start] = match program[start] {
                Op::Repeat { role, .. } => Op::Repeat { role, after },
                _ => Op::RepeatCounted { after },
            };
        }
        start += 1;
    }
    program
}

/// One behind the other.
const fn joined<const A: usize, const B: usize, const N: usize>(
    first: [Op; A],
    second: [Op; B],
) -> [Op; N] {
    assert!(A + B == N);
    let mut all = [End; N];
    let mut at = 0;
    while at < N {
        all[at] = if at < A { first[at] } else { second[at - A] };
        at += 1;
    }
    all
}

const STRING: &[Op] = &[Text(Role::Whole), End];
const LIST: &[Op] = &linked([repeat(Ignored), Text(Role::Item), Again, End]);
const SET: &[Op] = &linked([repeat(Ignored), Text(Role::Member), Again, End]);
const SORTED_SET_TEXT: &[Op] =
    &linked([repeat(Ignored), Text(Role::Member), TextScore, Again, End]);
const SORTED_SET: &[Op] = &linked([
    repeat(Ignored),
    Text(Role::Member),
    Bytes8(Role::Score),
    Again,
    End,
]);
const HASH: &[Op] = &linked([
    repeat(Ignored),
    Text(Role::Field),
    Text(Role::FieldValue),
    Again,
    End,
]);
const HASH_DEADLINES_AFTER: &[Op] = &linked([
    repeat(Ignored),
    Text(Role::Field),
    Text(Role::FieldValueBeforeDeadline),
    Bytes8(Role::DeadlineAfter),
    Again,
    End,
]);
const HASH_DEADLINES_RELATIVE: &[Op] = &linked([
    Bytes8(Role::DeadlineBase),
    repeat(Ignored),
    Number(Role::DeadlineBeforeRelative),
    Text(Role::Field),
    Text(Role::FieldValue),
    Again,
    End,
]);
const HASH_DEADLINES_ABSOLUTE: &[Op] = &linked([
    repeat(Ignored),
    Number(Role::DeadlineBeforeAbsolute),
    Text(Role::Field),
    Text(Role::FieldValue),
    Again,
    End,
]);
const MODULE: &[Op] = &[Number(Ignored), ModuleData, End];
const ZIPLISTS: &[Op] = &linked([repeat(Ignored), Text(Role::ListZiplist), Again, End]);
const QUICKLIST: &[Op] = &linked([
    repeat(Ignored),
    Number(Role::NodeForm),
    Text(Role::ListPackOrPlain),
    Again,
    End,
]);
const STREAM_1: &[Op] = &linked([
    repeat(Ignored),
    Text(Role::StreamNodeId),
    Text(Role::StreamNode),
    Again,
    Number(Ignored), // length
    StreamId(Role::StreamLastId),
    repeat(Role::StreamGroups),
    Text(Role::GroupName),
    StreamId(Role::GroupLastId),
    repeat(Role::GroupPending),
    Bytes16(Role::PendingId),
    Bytes8(Role::PendingTime),
    Number(Role::PendingDeliveries),
    Again,
    repeat(Ignored), // consumers
    Text(Role::ConsumerName),
    Bytes8(Role::ConsumerSeen),
    repeat(Role::ConsumerPending),
    Bytes16(Role::ConsumerPendingId),
    Again,
    Again,
    Again,
    End,
]);
const STREAM_2: &[Op] = &linked([
    repeat(Ignored),
    Text(Role::StreamNodeId),
    Text(Role::StreamNode),
    Again,
    Number(Ignored), // length
    StreamId(Role::StreamLastId),
    StreamId(Ignored), // first id
    StreamId(Role::StreamMaxDeletedId),
    Number(Role::StreamEntriesAdded),
    repeat(Role::StreamGroups),
    Text(Role::GroupName),
    StreamId(Role::GroupLastId),
    Number(Role::GroupEntriesRead),
    repeat(Role::GroupPending),
    Bytes16(Role::PendingId),
    Bytes8(Role::PendingTime),
    Number(Role::PendingDeliveries),
    Again,
    repeat(Ignored), // consumers
    Text(Role::ConsumerName),
    Bytes8(Role::ConsumerSeen),
    repeat(Role::ConsumerPending),
    Bytes16(Role::ConsumerPendingId),
    Again,
    Again,
    Again,
    End,
]);
/// Up to the pending entries of a consumer, from version 3 of the encoding on.
const STREAM_3_HEAD: [Op; 26] = [
    repeat(Ignored),
    Text(Role::StreamNodeId),
    Text(Role::StreamNode),
    Again,
    Number(Ignored), // length
    StreamId(Role::StreamLastId),
    StreamId(Ignored), // first id
    StreamId(Role::StreamMaxDeletedId),
    Number(Role::StreamEntriesAdded),
    repeat(Role::StreamGroups),
    Text(Role::GroupName),
    StreamId(Role::GroupLastId),
    Number(Role::GroupEntriesRead),
    repeat(Role::GroupPending),
    Bytes16(Role::PendingId),
    Bytes8(Role::PendingTime),
    Number(Role::PendingDeliveries),
    Again,
    repeat(Ignored), // consumers
    Text(Role::ConsumerName),
    Bytes8(Role::ConsumerSeen),
    Bytes8(Role::ConsumerActive),
    repeat(Role::ConsumerPending),
    Bytes16(Role::ConsumerPendingId),
    Again,
    Again,
];
const STREAM_3: &[Op] = &linked::<28>(joined(STREAM_3_HEAD, [Again, End]));
/// Ids by which producers repeat themselves without harm.
const STREAM_PRODUCERS: [Op; 12] = [
    Number(Role::ProducerSeconds),
    Number(Role::ProducerEntries),
    repeat(Ignored),
    Text(Role::ProducerName),
    repeat(Ignored),
    Text(Role::ProducerEntryName),
    StreamId(Role::ProducerEntryId),
    Again,
    Again,
    Number(Role::ProducerAdded),
    Number(Role::ProducerDuplicates),
    End,
];
const STREAM_4: &[Op] = &linked::<39>(joined(
    joined::<26, 1, 27>(STREAM_3_HEAD, [Again]),
    STREAM_PRODUCERS,
));
/// Entries that consumers gave back to their group stand behind its consumers.
const STREAM_5: &[Op] = &linked::<42>(joined(
    joined::<26, 4, 30>(
        STREAM_3_HEAD,
        [repeat(Ignored), Bytes16(Role::ReturnedId), Again, Again],
    ),
    STREAM_PRODUCERS,
));
const HASH_PACK_DEADLINES: &[Op] = &[
    Bytes8(Role::DeadlineBase),
    Text(Role::HashPackDeadlines),
    End,
];
/// The names of the fields with the hash, as only DUMP writes them: a listpack, or one by one.
const TEMPLATE_FIELDS: [Op; 6] = [
    Either { one: 3 },
    Text(Role::TemplateFields),
    Goto(6),
    repeat(Ignored),
    Text(Role::TemplateField),
    Again,
];
const HASH_TEMPLATE_PACK: &[Op] =
    &linked::<8>(joined(TEMPLATE_FIELDS, [Text(Role::TemplateValues), End]));
const HASH_TEMPLATE_ARRAY: &[Op] = &linked::<10>(joined(
    TEMPLATE_FIELDS,
    [REPEAT_COUNTED, Text(Role::TemplateValue), Again, End],
));
const HASH_TEMPLATE_ARRAY_REFERENCE: &[Op] = &linked([
    Number(Role::TemplateId),
    REPEAT_COUNTED,
    Text(Role::TemplateValue),
    Again,
    End,
]);
const ARRAY: &[Op] = &linked([
    Counted,
    Either { one: 3 },
    Goto(4),
    Number(Ignored), // where the next element is inserted
    REPEAT_COUNTED,
    Number(Ignored), // index
    ArrayValue,
    Again,
    End,
]);
const RATE_LIMIT: &[Op] = &[Number(Ignored), End];
const PATH_HASH: &[Op] = &linked([
    repeat(Ignored),
    Text(Ignored), // path
    repeat(Ignored),
    Text(Ignored),
    Text(Ignored),
    Again,
    Again,
    End,
]);

/// A template of hashes: its id, then the names of its fields.
pub(super) const TEMPLATE: &[Op] = &linked([
    Number(Role::TemplateId),
    repeat(Ignored),
    Text(Role::TemplateField),
    Again,
    End,
]);

/// Types from this one on are not known, whatever the lineage.
pub(super) const TYPE_COUNT: usize = 34;

/// A value that a module wrote, before the format said where such a value ends.
pub(super) const TYPE_MODULE_BEFORE_RELEASE: u8 = 6;

/// A value that a module wrote.
pub(super) const TYPE_MODULE: u8 = 7;

/// The value of `type_code`, or `None` for an unknown type.
pub(super) fn value_program(type_code: u8, lineage: Lineage) -> Option<&'static [Op]> {
    const fn packed(role: Role) -> [Op; 2] {
        [Text(role), End]
    }
    static ZIPMAP: [Op; 2] = packed(Role::HashZipmap);
    static LIST_ZIPLIST: [Op; 2] = packed(Role::ListZiplist);
    static INTSET: [Op; 2] = packed(Role::SetIntset);
    static SORTED_SET_ZIPLIST: [Op; 2] = packed(Role::SortedSetZiplist);
    static HASH_ZIPLIST: [Op; 2] = packed(Role::HashZiplist);
    static HASH_PACK: [Op; 2] = packed(Role::HashPack);
    static SORTED_SET_PACK: [Op; 2] = packed(Role::SortedSetPack);
    static SET_PACK: [Op; 2] = packed(Role::SetPack);
    static HASH_PACK_DEADLINES_EARLY: [Op; 2] = packed(Role::HashPackDeadlines);
    static HASH_TEMPLATE_PACK_REFERENCE: [Op; 2] = packed(Role::TemplateValues);

    Some(match (type_code, lineage) {
        (0, _) => STRING,
        (1, _) => LIST,
        (2, _) => SET,
        (3, _) => SORTED_SET_TEXT,
        (4, _) => HASH,
        (5, _) => SORTED_SET,
        (TYPE_MODULE, _) => MODULE,
        (9, _) => &ZIPMAP,
        (10, _) => &LIST_ZIPLIST,
        (11, _) => &INTSET,
        (12, _) => &SORTED_SET_ZIPLIST,
        (13, _) => &HASH_ZIPLIST,
        (14, _) => ZIPLISTS,
        (15, _) => STREAM_1,
        (16, _) => &HASH_PACK,
        (17, _) => &SORTED_SET_PACK,
        (18, _) => QUICKLIST,
        (19, _) => STREAM_2,
        (20, _) => &SET_PACK,
        (21, _) => STREAM_3,
        (22, Lineage::Valkey) => HASH_DEADLINES_AFTER,
        (22, Lineage::Redis) => HASH_DEADLINES_ABSOLUTE,
        (23, Lineage::Redis) => &HASH_PACK_DEADLINES_EARLY,
        (24, Lineage::Redis) => HASH_DEADLINES_RELATIVE,
        (25, Lineage::Redis) => HASH_PACK_DEADLINES,
        (26, Lineage::Redis) => STREAM_4,
        (27, Lineage::Redis) => STREAM_5,
        (28, Lineage::Redis) => ARRAY,
        (29, Lineage::Redis) => HASH_TEMPLATE_PACK,
        (30, Lineage::Redis) => &HASH_TEMPLATE_PACK_REFERENCE,
        (31, Lineage::Redis) => HASH_TEMPLATE_ARRAY,
        (32, Lineage::Redis) => HASH_TEMPLATE_ARRAY_REFERENCE,
        (33, Lineage::Redis) => RATE_LIMIT,
        (23, Lineage::Valkey) => PATH_HASH,
        _ => return None,
    })
}

/// Whether values of a type hold deadlines of fields in a form that a server restores.
pub(super) fn restores_field_deadlines(type_code: u8, lineage: Lineage) -> bool {
    matches!(
        (type_code, lineage),
        (24 | 25, Lineage::Redis) | (22, Lineage::Valkey)
    )
}

/// What a value of a type is called that only RESTORE can write.
pub(super) fn whole_only_name(type_code: u8, lineage: Lineage) -> &'static str {
    match (type_code, lineage) {
        (TYPE_MODULE, _) => "module",
        (23, Lineage::Valkey) => "path_hash",
        (28, _) => "array",
        (33, _) => "rate_limit",
        _ => "unknown",
    }
}

/// Module data outside a key: module id, when it was written, data.
pub(super) const MODULE_AUX: &[Op] = &[
    Number(Ignored),
    Number(Ignored),
    Number(Ignored),
    ModuleData,
    End,
];

/// Valkey's running slot imports: job name, then pairs of first and last slot.
pub(super) const SLOT_IMPORT: &[Op] = &linked([
    Text(Ignored),
    repeat(Ignored),
    Number(Ignored),
    Number(Ignored),
    Again,
    End,
]);

/// Redis' metadata that modules keep with keys: a class and its data each.
pub(super) const KEY_METADATA: &[Op] =
    &linked([repeat(Ignored), Bytes4(Ignored), ModuleData, Again, End]);

/// The lowest snapshot version of a server of `target` that restores a payload of `type_code` as a
/// snapshot of `source` lineage means it; `None` if none does.
pub(super) fn restorable_from(type_code: u8, source: Lineage, target: Lineage) -> Option<u16> {
    Some(match (type_code, source, target) {
        (0..=4 | 9..=13, _, _) => 1,
        (14, _, _) => 7,
        (5 | TYPE_MODULE, _, _) => 8,
        (15, _, _) => 9,
        (16..=19, _, _) => 10,
        (20 | 21, _, _) => 11,
        (24 | 25, Lineage::Redis, Lineage::Redis) => 12,
        (22, Lineage::Valkey, Lineage::Valkey) => 80,
        (23, Lineage::Valkey, Lineage::Valkey) => 81,
        (26, Lineage::Redis, Lineage::Redis) => 13,
        (27 | 28, Lineage::Redis, Lineage::Redis) => 14,
        // 30 and 32 name a template that only the snapshot holds; whether a server was built with 33 cannot be known.
        (29 | 31, Lineage::Redis, Lineage::Redis) => 15,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Vec<&'static [Op]> {
        let mut all = vec![MODULE_AUX, SLOT_IMPORT, KEY_METADATA, TEMPLATE];
        for lineage in [Lineage::Redis, Lineage::Valkey] {
            all.extend((0..=255).filter_map(|code| value_program(code, lineage)));
        }
        all
    }

    #[test]
    fn every_loop_ends_right_behind_its_own_again() {
        for program in programs() {
            let mut open = Vec::new();
            for (at, op) in program.iter().enumerate() {
                match *op {
                    Op::Repeat { after, .. } | Op::RepeatCounted { after } => {
                        open.push(usize::from(after));
                    }
                    Op::Either { one: to } | Op::Goto(to) => {
                        assert!(usize::from(to) > at && usize::from(to) < program.len());
                    }
                    Op::Again => assert_eq!(open.pop(), Some(at + 1), "{program:?}"),
                    _ => {}
                }
                assert!(open.len() <= super::super::walk::MAX_LOOP_DEPTH);
            }
            assert!(open.is_empty());
            assert_eq!(program.last(), Some(&Op::End));
        }
    }

    #[test]
    fn every_restorable_type_has_a_program() {
        for source in [Lineage::Redis, Lineage::Valkey] {
            for code in 0..=255 {
                let program = value_program(code, source);
                assert!(program.is_none() || usize::from(code) < TYPE_COUNT);
                if restorable_from(code, source, source).is_some() {
                    assert!(program.is_some(), "type {code}");
                }
            }
        }
    }
}
