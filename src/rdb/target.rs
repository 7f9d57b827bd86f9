//! What a target takes: decides whether a value passes as it is or is written by elements.

use super::Lineage;
use super::error::ModuleId;
use super::grammar;

/// What the target's RESTORE and its commands know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetFormat {
    pub lineage: Lineage,
    /// The highest payload version that its RESTORE accepts.
    pub max_rdb_version: u16,
    /// Whose values may be sent. A server that lacks a module refuses its values, and Redis 6.0 was killed by one.
    pub modules: Modules,
}

/// The modules that a server has, as far as values tell them apart.
///
/// A value names the *type* that wrote it (`ReJSON-RL`), a server lists its *modules* (`ReJSON`); nothing says which belongs to
/// which. So values of types that are known here pass where their module is listed, and values of any other type pass only
/// where the target lists every module that the source lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modules {
    known: u8,
    all_of_source: bool,
}

/// Names of types, and the names under which modules list themselves that know them. From the sources of RedisJSON,
/// valkey-json, RedisBloom, valkey-bloom, RedisTimeSeries, RediSearch, RedisGraph and of Redis 8 (`modules/vector-sets/vset.c`).
/// Where two modules share a name, their types differ in it or read each other's values.
const KNOWN: [(&[&[u8; 9]], &[&str]); 6] = [
    (&[b"vectorset"], &["vectorset"]),
    (&[b"ReJSON-RL"], &["ReJSON", "json"]),
    (
        &[
            b"MBbloom--",
            b"MBbloomCF",
            b"CMSk-TYPE",
            b"TopK-TYPE",
            b"TDIS-TYPE",
            b"bloomfltr",
        ],
        &["bf"],
    ),
    (&[b"TSDB-TYPE"], &["timeseries"]),
    (&[b"ft_index0", b"ft_invidx", b"numericdx"], &["search"]),
    (&[b"graphdata", b"graphmeta"], &["graph"]),
];

impl Modules {
    /// No module at all.
    pub const NONE: Modules = Modules {
        known: 0,
        all_of_source: false,
    };

    /// Those of a target that lists `target`, for values of a source that lists `source` (names of `INFO modules` or
    /// `MODULE LIST`); `None` for a source that does not tell.
    pub fn of<T: AsRef<str>, S: AsRef<str>>(target: &[T], source: Option<&[S]>) -> Self {
        let has = |name: &str| target.iter().any(|listed| listed.as_ref() == name);
        let known = KNOWN
            .iter()
            .enumerate()
            .filter(|(_, (_, names))| names.iter().any(|name| has(name)));
        Self {
            known: known.map(|(bit, _)| 1 << bit).sum(),
            all_of_source: source.is_some_and(|source| {
                !source.is_empty() && source.iter().all(|name| has(name.as_ref()))
            }),
        }
    }

    /// What one of both has.
    pub fn either(self, other: Self) -> Self {
        Self {
            known: self.known | other.known,
            all_of_source: self.all_of_source || other.all_of_source,
        }
    }

    /// What both have.
    pub fn common(self, other: Self) -> Self {
        Self {
            known: self.known & other.known,
            all_of_source: self.all_of_source && other.all_of_source,
        }
    }

    /// Whether a value that `module` wrote is restored.
    pub fn restore(self, module: ModuleId) -> bool {
        let name = module.name();
        match KNOWN.iter().position(|(types, _)| types.contains(&&name)) {
            Some(bit) => self.known & 1 << bit != 0,
            None => self.all_of_source,
        }
    }
}

/// How a value gets to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// RESTORE with the serialized bytes as they are and this version in the footer.
    Payload { footer_version: u16 },
    /// Commands that rebuild it, if there are any for its type.
    Elements,
}

/// Versions up to this one mean the same to both lineages; Valkey refuses those between it and 80.
const LAST_COMMON_VERSION: u16 = 11;
const FIRST_VALKEY_VERSION: u16 = 80;

impl TargetFormat {
    /// The format of a server by its own version number (`redis_version` or `valkey_version` of INFO).
    /// An unknown newer version counts as the newest known one, which its successors still accept. Modules are
    /// those that every server of that version has.
    pub fn of_server(lineage: Lineage, major: u32, minor: u32) -> Self {
        let max_rdb_version = match (lineage, major, minor) {
            (Lineage::Redis, 0..=2, _) => 6,
            (Lineage::Redis, 3, _) => 7,
            (Lineage::Redis, 4, _) => 8,
            (Lineage::Redis, 5..=6, _) => 9,
            (Lineage::Redis, 7, 0..=1) => 10,
            (Lineage::Redis, 7, 2..=3) => 11,
            (Lineage::Redis, 7, _) | (Lineage::Redis, 8, 0..=5) => 12,
            (Lineage::Redis, 8, 6..=7) => 13,
            (Lineage::Redis, 8, 8..=9) => 14,
            (Lineage::Redis, 8.., _) => 15,
            (Lineage::Valkey, 0..=8, _) => 11,
            (Lineage::Valkey, 9, 0..=1) => 80,
            (Lineage::Valkey, 9.., _) => 81,
        };
        // Vector sets are part of Redis 8, and stored as a module's values.
        let built_in: &[&str] = match lineage {
            Lineage::Redis if major >= 8 => &["vectorset"],
            _ => &[],
        };
        Self {
            lineage,
            max_rdb_version,
            modules: Modules::of(built_in, None::<&[&str]>),
        }
    }

    /// Whether a payload whose footer says `version` is accepted.
    pub fn accepts_version(&self, version: u16) -> bool {
        match self.lineage {
            Lineage::Redis => version <= self.max_rdb_version,
            Lineage::Valkey => {
                let foreign = LAST_COMMON_VERSION < version && version < FIRST_VALKEY_VERSION;
                version <= self.max_rdb_version && !foreign
            }
        }
    }

    /// How a value of `type_code` from a snapshot of `source` lineage and `version` gets there. A payload of a
    /// type that the target does not know must never be sent: one killed a Redis 6.0.
    pub fn passage(&self, type_code: u8, source: Lineage, version: u16) -> Passage {
        match grammar::restorable_from(type_code, source, self.lineage) {
            Some(least) if least <= self.max_rdb_version => {
                let footer_version = if self.accepts_version(version) {
                    version
                } else if self.lineage == source {
                    self.max_rdb_version
                } else {
                    LAST_COMMON_VERSION.min(self.max_rdb_version)
                };
                Passage::Payload { footer_version }
            }
            _ => Passage::Elements,
        }
    }

    /// HPEXPIREAT: Redis from 7.4, Valkey from 9.0.
    pub fn knows_field_expiry(&self) -> bool {
        match self.lineage {
            Lineage::Redis => self.max_rdb_version >= 12,
            Lineage::Valkey => self.max_rdb_version >= FIRST_VALKEY_VERSION,
        }
    }

    /// FUNCTION LOAD: from Redis 7.0.
    pub fn knows_functions(&self) -> bool {
        self.max_rdb_version >= 10
    }

    /// XCFGSET and XIDMPRECORD: Redis from 8.6.
    pub fn knows_stream_producers(&self) -> bool {
        self.lineage == Lineage::Redis && self.max_rdb_version >= 13
    }

    /// Whether a payload may begin with the metadata that modules keep with a key: Redis from 8.6. A server that lacks the
    /// module takes or refuses it as the module had said when it was written.
    pub fn takes_key_metadata(&self) -> bool {
        self.lineage == Lineage::Redis && self.max_rdb_version >= 13
    }

    /// XSETID ENTRIESADDED, XGROUP CREATE ENTRIESREAD, XGROUP CREATECONSUMER: all from Redis 7.0 at the latest.
    pub fn knows_stream_counters(&self) -> bool {
        self.max_rdb_version >= 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Lineage::{Redis, Valkey};

    const SERVERS: [(Lineage, u32, u32, u16); 6] = [
        (Redis, 6, 0, 9),
        (Redis, 7, 0, 10),
        (Redis, 8, 0, 12),
        (Valkey, 8, 0, 11),
        (Valkey, 8, 1, 11),
        (Valkey, 9, 1, 80),
    ];

    #[test]
    fn every_footer_version_is_one_that_the_target_accepts() {
        for (source, .., version) in SERVERS {
            for (lineage, major, minor, max) in SERVERS {
                let target = TargetFormat::of_server(lineage, major, minor);
                assert_eq!(target.max_rdb_version, max);
                for type_code in 0..=255 {
                    if let Passage::Payload { footer_version } =
                        target.passage(type_code, source, version)
                    {
                        assert!(target.accepts_version(footer_version));
                    }
                }
            }
        }
    }

    #[test]
    fn the_same_server_gets_its_own_payloads_untouched() {
        for (lineage, major, minor, version) in SERVERS {
            let target = TargetFormat::of_server(lineage, major, minor);
            assert_eq!(
                target.passage(4, lineage, version),
                Passage::Payload {
                    footer_version: version
                }
            );
        }
    }

    #[test]
    fn small_sets_of_newer_servers_go_to_older_ones_by_elements() {
        let old = TargetFormat::of_server(Redis, 7, 0);
        assert_eq!(old.passage(20, Redis, 12), Passage::Elements);
        assert_eq!(old.passage(21, Valkey, 11), Passage::Elements);
        let valkey = TargetFormat::of_server(Valkey, 9, 1);
        assert_eq!(valkey.passage(24, Redis, 12), Passage::Elements);
        assert_eq!(
            valkey.passage(20, Redis, 12),
            Passage::Payload { footer_version: 11 }
        );
    }

    fn module(name: &[u8; 9]) -> ModuleId {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let place = |byte: &u8| LETTERS.iter().position(|letter| letter == byte).unwrap() as u64;
        ModuleId(name.iter().fold(0, |id, byte| id << 6 | place(byte)) << 10 | 3)
    }

    #[test]
    fn values_of_modules_go_where_their_module_is() {
        let json = module(b"ReJSON-RL");
        assert_eq!(json.to_string(), "ReJSON-RL");
        assert_eq!(json.encoding_version(), 3);
        let none: Option<&[&str]> = None;
        assert!(Modules::of(&["ReJSON"], none).restore(json));
        assert!(Modules::of(&["json"], none).restore(json));
        assert!(!Modules::of(&["bf"], none).restore(json));
        // A type that nothing is known of goes only where all of the source's modules are.
        let own = module(b"our_own_1");
        assert!(!Modules::of(&["mine"], none).restore(own));
        assert!(Modules::of(&["mine", "bf"], Some(&["mine"])).restore(own));
        assert!(!Modules::of(&["bf"], Some(&["mine"])).restore(own));
        let both = Modules::of(&["bf"], none).common(Modules::of(&["bf", "ReJSON"], none));
        assert!(both.restore(module(b"MBbloom--")) && !both.restore(json));
        let redis_8 = TargetFormat::of_server(Redis, 8, 0).modules;
        assert!(redis_8.restore(module(b"vectorset")) && !redis_8.restore(json));
        assert_eq!(TargetFormat::of_server(Valkey, 9, 1).modules, Modules::NONE);
    }

    #[test]
    fn valkey_refuses_the_versions_that_are_foreign_to_it() {
        let valkey = TargetFormat::of_server(Valkey, 9, 1);
        assert!(!valkey.accepts_version(12));
        assert!(!valkey.accepts_version(79));
        assert!(valkey.accepts_version(80));
        assert!(valkey.accepts_version(11));
    }
}
