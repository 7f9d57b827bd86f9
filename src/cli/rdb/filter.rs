//! Which keys are wanted.

use super::glob::Glob;
use crate::rdb::{Lineage, value_name};

/// Keys that pass every condition that is set.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub keys: Option<Glob>,
    /// Empty: all.
    pub databases: Vec<u32>,
    /// Names as `TYPE` answers them; empty: all.
    pub kinds: Vec<&'static str>,
}

impl Filter {
    /// Whether nothing is left out: then also what belongs to no key is wanted.
    pub fn takes_all(&self) -> bool {
        self.keys.is_none() && self.databases.is_empty() && self.kinds.is_empty()
    }

    #[inline]
    pub fn takes(&self, key: &[u8], database: u32, type_code: u8, lineage: Lineage) -> bool {
        self.takes_all()
            || (self.databases.is_empty() || self.databases.contains(&database))
                && (self.kinds.is_empty()
                    || self.kinds.contains(&value_name(type_code, lineage).kind))
                && self.keys.as_ref().is_none_or(|keys| keys.matches(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_must_hold() {
        let filter = Filter {
            keys: Some(Glob::new(b"a*")),
            databases: vec![1],
            kinds: vec!["hash"],
        };
        let takes = |key: &str, database, type_code| {
            filter.takes(key.as_bytes(), database, type_code, Lineage::Redis)
        };
        assert!(takes("ab", 1, 4) && takes("a", 1, 16));
        assert!(!takes("b", 1, 4) && !takes("a", 0, 4) && !takes("a", 1, 0));
        assert!(!filter.takes_all() && Filter::default().takes_all());
        assert!(Filter::default().takes(b"", 9, 200, Lineage::Valkey));
    }
}
