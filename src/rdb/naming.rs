//! Names of value types for people: the type as `TYPE` calls it, and how the snapshot stores it.

use super::Lineage;

/// What a type code stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueName {
    /// `string`, `list`, `set`, `zset`, `hash`, `stream`, `module`, and those of the newest servers.
    pub kind: &'static str,
    /// How the elements are packed. Of types with several versions, the version.
    pub encoding: &'static str,
}

/// The name of `type_code` in a snapshot of `lineage`; `unknown` for types without one.
pub fn value_name(type_code: u8, lineage: Lineage) -> ValueName {
    let (kind, encoding) = match (type_code, lineage) {
        (0, _) => ("string", "string"),
        (1, _) => ("list", "linkedlist"),
        (2, _) => ("set", "hashtable"),
        (3, _) => ("zset", "skiplist-text-scores"),
        (4, _) => ("hash", "hashtable"),
        (5, _) => ("zset", "skiplist"),
        (6, _) => ("module", "module-1"),
        (7, _) => ("module", "module"),
        (9, _) => ("hash", "zipmap"),
        (10, _) => ("list", "ziplist"),
        (11, _) => ("set", "intset"),
        (12, _) => ("zset", "ziplist"),
        (13, _) => ("hash", "ziplist"),
        (14, _) => ("list", "quicklist-ziplist"),
        (15, _) => ("stream", "stream-1"),
        (16, _) => ("hash", "listpack"),
        (17, _) => ("zset", "listpack"),
        (18, _) => ("list", "quicklist"),
        (19, _) => ("stream", "stream-2"),
        (20, _) => ("set", "listpack"),
        (21, _) => ("stream", "stream-3"),
        (22, Lineage::Valkey) => ("hash", "hashtable-ttl"),
        (22, Lineage::Redis) => ("hash", "hashtable-ttl-early"),
        (23, Lineage::Redis) => ("hash", "listpack-ttl-early"),
        (24, Lineage::Redis) => ("hash", "hashtable-ttl"),
        (25, Lineage::Redis) => ("hash", "listpack-ttl"),
        (26, Lineage::Redis) => ("stream", "stream-4"),
        (27, Lineage::Redis) => ("stream", "stream-5"),
        (28, Lineage::Redis) => ("array", "array"),
        (29, Lineage::Redis) => ("hash", "template-listpack"),
        (30, Lineage::Redis) => ("hash", "template-listpack-reference"),
        (31, Lineage::Redis) => ("hash", "template-array"),
        (32, Lineage::Redis) => ("hash", "template-array-reference"),
        (33, Lineage::Redis) => ("rate-limit", "rate-limit"),
        (23, Lineage::Valkey) => ("path-hash", "path-hash"),
        _ => ("unknown", "unknown"),
    };
    ValueName { kind, encoding }
}

#[cfg(test)]
mod tests {
    use super::super::grammar::value_program;
    use super::*;

    #[test]
    fn every_type_that_can_be_read_has_a_name_of_its_own() {
        for lineage in [Lineage::Redis, Lineage::Valkey] {
            let mut seen = std::collections::BTreeSet::new();
            for code in (0..=255).filter(|code| value_program(*code, lineage).is_some()) {
                let name = value_name(code, lineage);
                assert_ne!(name.kind, "unknown", "type {code}");
                assert!(seen.insert(name), "type {code} is called like another");
            }
        }
    }
}
