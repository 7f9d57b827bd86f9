//! A set of keys that never forgets one, in eight bytes for each.
//!
//! Keys are kept as tags of 48 bits in buckets; a key may stand in either of two. That a key which was never added is
//! taken for one that was has a chance of about one in 10^13 per look; the other way round it cannot happen.
//!
//! ```text
//! layer    [ bucket: 8 tags ][ bucket: 8 tags ] ...    filled to 7/8, then a layer of twice the size is opened
//! ```

use std::hash::{DefaultHasher, Hasher};

use crate::limits;

const TAGS: usize = 8;

/// A tag in three pieces: arrays of zeros come from the system without being written.
type Tag = [u16; 3];
const NO_TAG: Tag = [0; 3];

/// Keys of numbered databases.
#[derive(Debug, Default)]
pub struct KeySet {
    layers: Vec<Layer>,
    keys: u64,
    full: bool,
}

#[derive(Debug)]
struct Layer {
    buckets: Vec<[Tag; TAGS]>,
    room: usize,
}

impl KeySet {
    /// A set that takes about `expected` keys before it grows.
    pub fn new(expected: u64) -> Self {
        let mut set = Self::default();
        set.open_layer(usize::try_from(expected).unwrap_or(usize::MAX));
        set
    }

    /// Whether more keys came than memory was allowed: then it cannot be told any more which ones it lacks.
    pub fn is_full(&self) -> bool {
        self.full
    }

    pub fn is_empty(&self) -> bool {
        self.keys == 0
    }

    pub fn contains(&self, database: u32, key: &[u8]) -> bool {
        self.has(hash(database, key))
    }

    /// Adds a key; whether it was not there before.
    pub fn insert(&mut self, database: u32, key: &[u8]) -> bool {
        let hash = hash(database, key);
        if self.has(hash) {
            return false;
        }
        self.keys += 1;
        while !self.layers.iter_mut().rev().any(|layer| layer.add(hash)) {
            let filled = self.layers.iter().all(|layer| layer.room == 0);
            let sizes = self.layers.iter().map(|layer| layer.buckets.len() * TAGS);
            // A key whose two buckets are taken before the rest is takes little.
            let next = if filled {
                sizes.max().unwrap_or(0) * 2
            } else {
                0
            };
            if !self.open_layer(next) {
                self.full = true;
                break;
            }
        }
        true
    }

    fn has(&self, hash: u64) -> bool {
        self.full || self.layers.iter().any(|layer| layer.has(hash))
    }

    /// Whether memory allowed it.
    fn open_layer(&mut self, keys: usize) -> bool {
        let bucket = size_of::<[Tag; TAGS]>();
        let used: usize = self.layers.iter().map(|layer| layer.buckets.len()).sum();
        let left = (limits::KEY_SET_BYTES / bucket).saturating_sub(used);
        let wanted = (keys / TAGS).saturating_add(keys / TAGS / 4);
        let count = wanted.max(limits::KEY_SET_BUCKETS).min(left);
        if count == 0 {
            return false;
        }
        self.layers.push(Layer {
            buckets: vec![[NO_TAG; TAGS]; count],
            room: count * TAGS / 8 * 7,
        });
        true
    }
}

impl Layer {
    fn places(&self, hash: u64) -> [usize; 2] {
        let scaled = |mixed: u64| {
            let place = u128::from(mixed) * self.buckets.len() as u128;
            (place >> 64) as usize
        };
        // The tag is the low end: two more looks at the whole, each from another side.
        [
            scaled(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            scaled(hash.rotate_left(32).wrapping_mul(0xd6e8_feb8_6659_fd93)),
        ]
    }

    fn has(&self, hash: u64) -> bool {
        let tag = tag(hash);
        let mut places = self.places(hash).into_iter();
        places.any(|place| self.buckets[place].contains(&tag))
    }

    fn add(&mut self, hash: u64) -> bool {
        if self.room == 0 {
            return false;
        }
        let free = |bucket: &[Tag; TAGS]| bucket.iter().filter(|tag| **tag == NO_TAG).count();
        let [first, second] = self.places(hash);
        let emptier = match free(&self.buckets[first]) < free(&self.buckets[second]) {
            true => second,
            false => first,
        };
        let mut tags = self.buckets[emptier].iter_mut();
        let Some(place) = tags.find(|tag| **tag == NO_TAG) else {
            return false;
        };
        *place = tag(hash);
        self.room -= 1;
        true
    }
}

fn tag(hash: u64) -> Tag {
    let tag = [hash as u16, (hash >> 16) as u16, (hash >> 32) as u16];
    if tag == NO_TAG { [1; 3] } else { tag }
}

fn hash(database: u32, key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u32(database);
    hasher.write(key);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_were_added_are_known_and_others_are_not() {
        // Far more than the first layer takes.
        let mut set = KeySet::new(0);
        for number in 0..200_000u32 {
            assert!(set.insert(number % 3, &number.to_le_bytes()));
        }
        assert!(set.layers.len() > 2);
        for number in 0..200_000u32 {
            assert!(set.contains(number % 3, &number.to_le_bytes()));
            assert!(!set.insert(number % 3, &number.to_le_bytes()));
            assert!(!set.contains((number + 1) % 3, &number.to_le_bytes()));
        }
        assert!(!set.is_full());
    }

    #[test]
    fn a_layer_of_the_right_size_takes_all_that_was_expected() {
        let mut set = KeySet::new(1_000_000);
        for number in 0..1_000_000u32 {
            set.insert(0, &number.to_le_bytes());
        }
        let buckets: usize = set.layers.iter().map(|layer| layer.buckets.len()).sum();
        let bytes = buckets * size_of::<[Tag; TAGS]>();
        assert!(bytes < 8_000_000, "{bytes}");
    }

    #[test]
    fn a_set_that_may_not_grow_claims_to_know_everything() {
        let mut set = KeySet {
            layers: vec![Layer {
                buckets: vec![[NO_TAG; TAGS]; 1],
                room: 7,
            }],
            keys: 0,
            full: true,
        };
        assert!(set.contains(0, b"never added"));
        assert!(!set.insert(0, b"another"));
    }
}
