//! What a target takes: decides whether a value passes as it is or is written by elements.

use super::Lineage;
use super::grammar;

/// What the target's RESTORE and its commands know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetFormat {
    pub lineage: Lineage,
    /// The highest payload version that its RESTORE accepts.
    pub max_rdb_version: u16,
    /// Whether values of modules may be sent: the target has the modules that the source has. A server that lacks
    /// one refuses the value, and Redis 6.0 was killed by one.
    pub restores_modules: bool,
}

/// How a value gets to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// RESTORE with the serialized bytes as they are and this version in the footer.
    Payload { footer_version: u16 },
    /// Commands that rebuild it.
    Elements,
}

/// Versions up to this one mean the same to both lineages; Valkey refuses those between it and 80.
const LAST_COMMON_VERSION: u16 = 11;
const FIRST_VALKEY_VERSION: u16 = 80;

impl TargetFormat {
    /// The format of a server by its own version number (`redis_version` or `valkey_version` of INFO).
    /// An unknown newer version counts as the newest known one, which its successors still accept. Modules are taken to
    /// be those that every server of that version has.
    pub fn of_server(lineage: Lineage, major: u32, minor: u32) -> Self {
        let max_rdb_version = match (lineage, major, minor) {
            (Lineage::Redis, 0..=2, _) => 6,
            (Lineage::Redis, 3, _) => 7,
            (Lineage::Redis, 4, _) => 8,
            (Lineage::Redis, 5..=6, _) => 9,
            (Lineage::Redis, 7, 0..=1) => 10,
            (Lineage::Redis, 7, 2..=3) => 11,
            (Lineage::Redis, 7.., _) => 12,
            (Lineage::Valkey, 0..=8, _) => 11,
            (Lineage::Valkey, 9.., _) => 80,
        };
        Self {
            lineage,
            max_rdb_version,
            // Vector sets are stored as a module's values.
            restores_modules: lineage == Lineage::Redis && major >= 8,
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
        if type_code == grammar::TYPE_MODULE && !self.restores_modules {
            return Passage::Elements;
        }
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

    #[test]
    fn valkey_refuses_the_versions_that_are_foreign_to_it() {
        let valkey = TargetFormat::of_server(Valkey, 9, 1);
        assert!(!valkey.accepts_version(12));
        assert!(!valkey.accepts_version(79));
        assert!(valkey.accepts_version(80));
        assert!(valkey.accepts_version(11));
    }
}
