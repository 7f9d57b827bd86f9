//! Which lane brings which function library to which target master.
//!
//! Every source master of a cluster holds the same libraries, and each snapshot carries them; a target master needs them
//! once. The first lane that meets a library claims it for a master, and loads it again whenever it begins anew; the
//! others leave it out. Loading is `FUNCTION LOAD REPLACE`, so a claim that is made in vain does no harm.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

/// Claims of all lanes of one process.
#[derive(Debug, Default)]
pub struct FunctionClaims {
    /// Lane by target master's node id and hash of the library's code.
    lanes: Mutex<HashMap<(String, u64), u32>>,
}

impl FunctionClaims {
    /// Whether it is for `lane` to load the library of this `code` into the master `node`.
    pub fn claim(&self, lane: u32, node: &str, code: &[u8]) -> bool {
        let mut hasher = DefaultHasher::new();
        code.hash(&mut hasher);
        let key = (node.to_owned(), hasher.finish());
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        *lanes.entry(key).or_insert(lane) == lane
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_one_lanes_business_per_master_however_often_it_asks() {
        let claims = FunctionClaims::default();
        assert!(claims.claim(1, "a", b"code"));
        assert!(!claims.claim(2, "a", b"code"));
        assert!(claims.claim(1, "a", b"code"), "a copy that begins anew");
        assert!(claims.claim(2, "b", b"code"));
        assert!(claims.claim(2, "a", b"other"));
    }
}
