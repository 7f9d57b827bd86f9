//! What a server of some version can do with commands, and the names of what it lacks.
//!
//! Valkey left Redis at 7.2: whatever Redis knew by then, every Valkey knows. What came later came to each by itself, often
//! under the same name. From the release notes and `COMMAND` of Redis 6.0, 7.0, 8.0 and Valkey 8.0, 8.1, 9.1; of
//! Redis from 8.2 on by its documentation alone.

use crate::rdb::Lineage;
use std::ops::BitOr;

/// Major and minor number.
type Release = (u32, u32);

/// A set of things that servers learned at some version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(u32);

impl Features {
    pub const NONE: Features = Features(0);
    /// Redis 6.2: `LMOVE`, `COPY`, `ZRANGESTORE`, `SET PXAT|GET`, `LPOP count`, `ZADD GT|LT`, `XADD MINID|NOMKSTREAM` ...
    pub const REDIS_6_2: Features = Features(1);
    /// Redis 7.0: functions, `PEXPIREAT NX|XX|GT|LT`, `ENTRIESREAD`, sharded channels ...
    pub const REDIS_7_0: Features = Features(1 << 1);
    /// Deadlines of single hash fields, `HPEXPIREAT` and its kin: Redis 7.4, Valkey 9.0.
    pub const FIELD_TTL: Features = Features(1 << 2);
    /// `HSETEX`: Redis 8.0, Valkey 9.0.
    pub const HSETEX: Features = Features(1 << 3);
    /// `HGETDEL`: Redis 8.0, Valkey 9.1.
    pub const HGETDEL: Features = Features(1 << 4);
    /// `VADD` and its kin: Redis 8.0.
    pub const VECTOR_SETS: Features = Features(1 << 5);
    /// `SET ... IFEQ`: Valkey 8.1, Redis 8.4.
    pub const SET_IF_EQUAL: Features = Features(1 << 6);
    /// `DELIFEQ`: Valkey 9.0.
    pub const DELIFEQ: Features = Features(1 << 7);
    /// `DELEX` and the conditions by digest: Redis 8.4.
    pub const DELEX: Features = Features(1 << 8);
    /// `MSETEX`: Redis 8.4, Valkey 9.1.
    pub const MSETEX: Features = Features(1 << 9);
    /// `XDELEX`, `XACKDEL`, `KEEPREF|DELREF|ACKED`, `BITOP DIFF|DIFF1|ANDOR|ONE`: Redis 8.2.
    pub const REDIS_8_2: Features = Features(1 << 10);
    /// Whatever came to Redis after 8.4: `XCFGSET`, `INCREX`, arrays ...
    pub const REDIS_8_6: Features = Features(1 << 11);
    /// Times that count from when a command is executed: what sources before 7.0 replicate, and no target may be left
    /// to understand. "Lacking" when the source is one of these.
    pub const RELATIVE_TIME: Features = Features(1 << 29);
    /// In nobody's power: for commands that must be looked at whatever the target is.
    pub const ALWAYS: Features = Features(1 << 31);
    /// In everybody's power: marks commands with a deadline, for a caller that wants to alter these. See
    /// [`super::Deadlines`].
    pub const DEADLINE: Features = Features(1 << 30);

    /// Every feature: first version of Redis and of Valkey that has it.
    const SINCE: [(Features, Option<Release>, Option<Release>); 13] = [
        (Self::REDIS_6_2, Some((6, 2)), Some((0, 0))),
        (Self::REDIS_7_0, Some((7, 0)), Some((0, 0))),
        (Self::FIELD_TTL, Some((7, 4)), Some((9, 0))),
        (Self::HSETEX, Some((8, 0)), Some((9, 0))),
        (Self::HGETDEL, Some((8, 0)), Some((9, 1))),
        (Self::VECTOR_SETS, Some((8, 0)), None),
        (Self::SET_IF_EQUAL, Some((8, 4)), Some((8, 1))),
        (Self::DELIFEQ, None, Some((9, 0))),
        (Self::DELEX, Some((8, 4)), None),
        (Self::MSETEX, Some((8, 4)), Some((9, 1))),
        (Self::REDIS_8_2, Some((8, 2)), None),
        (Self::REDIS_8_6, Some((8, 6)), None),
        (Self::ALWAYS, None, None),
    ];

    /// What a server of this version lacks.
    pub fn lacking_in(lineage: Lineage, major: u32, minor: u32) -> Features {
        let lacking = Self::SINCE.into_iter().filter(|(_, redis, valkey)| {
            let since = match lineage {
                Lineage::Redis => redis,
                Lineage::Valkey => valkey,
            };
            since.is_none_or(|since| (major, minor) < since)
        });
        lacking.fold(Self::NONE, |all, (feature, ..)| all | feature)
    }

    /// What no target takes from a source of this version.
    pub fn unfit_from(lineage: Lineage, major: u32) -> Features {
        match lineage {
            Lineage::Redis if major < 7 => Self::RELATIVE_TIME,
            _ => Self::NONE,
        }
    }

    /// Whether the two sets have anything in common.
    #[inline]
    pub const fn meets(self, other: Features) -> bool {
        self.0 & other.0 != 0
    }

    pub const fn and(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }
}

impl BitOr for Features {
    type Output = Features;

    fn bitor(self, other: Features) -> Features {
        self.and(other)
    }
}

/// A kind of data or command that the target cannot take and that nothing else expresses. Named to the user once each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Lack {
    FieldTtl,
    Functions,
    VectorSets,
    Modules,
    ShardedChannels,
    /// A value of a type that the target does not know, or a serialized one that cannot be taken apart.
    Type,
    /// What streams remember since Redis 8.6: producers, entries that were given back.
    StreamState,
    /// Any other command, or form of one.
    Command,
}

impl Lack {
    pub const ALL: [Lack; 8] = [
        Lack::FieldTtl,
        Lack::Functions,
        Lack::VectorSets,
        Lack::Modules,
        Lack::ShardedChannels,
        Lack::Type,
        Lack::StreamState,
        Lack::Command,
    ];

    /// In a sentence: "the target knows no ...".
    pub fn name(self) -> &'static str {
        match self {
            Lack::FieldTtl => "expiry of hash fields",
            Lack::Functions => "functions",
            Lack::VectorSets => "vector sets",
            Lack::Modules => "module of this kind",
            Lack::ShardedChannels => "sharded channels",
            Lack::Type => "value of this type",
            Lack::StreamState => "stream state of this kind",
            Lack::Command => "such command, nor one that does the same",
        }
    }

    /// The name under `errors` of the status page.
    pub fn counter(self) -> &'static str {
        match self {
            Lack::FieldTtl => "unsupported_field_ttl",
            Lack::Functions => "unsupported_functions",
            Lack::VectorSets => "unsupported_vector_sets",
            Lack::Modules => "unsupported_modules",
            Lack::ShardedChannels => "unsupported_sharded_channels",
            Lack::Type => "unsupported_types",
            Lack::StreamState => "unsupported_stream_state",
            Lack::Command => "unsupported_commands",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Lineage::{Redis, Valkey};

    #[test]
    fn each_server_lacks_what_came_after_it() {
        let lacks = |lineage, major, minor, feature: Features| {
            Features::lacking_in(lineage, major, minor).meets(feature)
        };
        assert!(lacks(Redis, 6, 0, Features::REDIS_6_2));
        assert!(!lacks(Redis, 6, 2, Features::REDIS_6_2));
        assert!(!lacks(Valkey, 8, 0, Features::REDIS_7_0));
        assert!(lacks(Valkey, 8, 1, Features::FIELD_TTL));
        assert!(!lacks(Valkey, 9, 0, Features::HSETEX));
        assert!(lacks(Valkey, 9, 0, Features::HGETDEL));
        assert!(!lacks(Redis, 8, 0, Features::VECTOR_SETS));
        assert!(lacks(Valkey, 99, 0, Features::VECTOR_SETS));
        assert!(lacks(Redis, 99, 0, Features::ALWAYS));
        assert!(!lacks(Redis, 6, 0, Features::DEADLINE));
    }

    #[test]
    fn every_lack_stands_at_its_own_number() {
        for (number, lack) in Lack::ALL.into_iter().enumerate() {
            assert_eq!(lack as usize, number);
        }
    }
}
