//! What is written: `SET`s of 16-byte keys and 64-byte values, and `INCR`s, encoded before the clock starts.
//!
//! ```text
//! *3 $3 SET $16 key:000000012345 $64 <64 random letters and digits>      107 bytes with line ends
//! *2 $4 INCR $16 cnt:000000012345                                        37 bytes with line ends
//! ```
//!
//! The values are random, so that a snapshot holds them as they are: a server's own compression would
//! make decoding them a part of what is measured.

use anyhow::{Result, bail};
use lab::Client;
use lab::client::{SLOT_COUNT, slot_of};
use std::io::Write;

pub const VALUE_BYTES: usize = 64;

/// Counters that take turns where few are hot.
const HOT_COUNTERS: u64 = 16;

/// Which counters are incremented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counters {
    /// As many as a tenth of the keys, in all slots.
    Spread,
    /// So few that each slot of theirs sees many in a row.
    Hot,
}

/// Commands for one master.
pub struct Batch {
    pub bytes: Vec<u8>,
    commands: usize,
    /// What the last command writes: once a follower shows it, it has everything before it too.
    pub last_key: String,
    pub last_value: Vec<u8>,
}

impl Batch {
    pub fn commands(&self) -> usize {
        self.commands
    }

    fn new() -> Batch {
        Batch {
            bytes: Vec::new(),
            commands: 0,
            last_key: String::new(),
            last_value: Vec::new(),
        }
    }

    fn set(&mut self, key: &str, value: &[u8]) {
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n", key.len());
        self.bytes.extend_from_slice(head.as_bytes());
        // Writing into a vector cannot fail.
        let _ = write!(self.bytes, "${}\r\n", value.len());
        self.bytes.extend_from_slice(value);
        self.bytes.extend_from_slice(b"\r\n");
        self.commands += 1;
    }

    /// A command that has no argument but its key.
    fn plain(&mut self, verb: &str, key: &str) {
        let (verb_bytes, key_bytes) = (verb.len(), key.len());
        let command = format!("*2\r\n${verb_bytes}\r\n{verb}\r\n${key_bytes}\r\n{key}\r\n");
        self.bytes.extend_from_slice(command.as_bytes());
        self.commands += 1;
    }

    fn end_with(&mut self, key: &str, value: Vec<u8>) {
        self.set(key, &value);
        self.last_key = key.to_owned();
        self.last_value = value;
    }
}

/// The keys of the source and which master has each.
pub struct Keyspace {
    keys: u64,
    /// For each slot the index of its master.
    owners: Vec<usize>,
    /// One key for each master, which its batches end with; the lag is measured with them too.
    last_keys: Vec<String>,
    random: fastrand::Rng,
}

impl Keyspace {
    /// `masters` are the addresses of the source's masters, in the order that batches will have.
    pub fn new(client: &Client, masters: &[String], keys: u64, seed: u64) -> Result<Keyspace> {
        let mut owners = Vec::with_capacity(SLOT_COUNT);
        for slot in 0..SLOT_COUNT {
            let owner = client.owner_of_slot(slot);
            match masters.iter().position(|master| master == owner) {
                Some(index) => owners.push(index),
                None => bail!("slot {slot} belongs to {owner}, which is no master here"),
            }
        }
        let mut last_keys = vec![String::new(); masters.len()];
        let mut number = 0;
        while last_keys.iter().any(String::is_empty) {
            let key = format!("end:{number:012}");
            let owner = owners[slot_of(key.as_bytes())];
            last_keys[owner] = key;
            number += 1;
        }
        Ok(Keyspace {
            keys,
            owners,
            last_keys,
            random: fastrand::Rng::with_seed(seed),
        })
    }

    /// The key of each master that batches end with.
    pub fn last_keys(&self) -> &[String] {
        &self.last_keys
    }

    /// Writes every key once.
    pub fn fill(&mut self) -> Vec<Batch> {
        self.batches(0..self.keys, "key", VALUE_BYTES)
    }

    /// Overwrites keys in random order with new values.
    pub fn overwrite(&mut self, commands: u64) -> Vec<Batch> {
        let mut random = self.random.fork();
        let keys = self.keys;
        let numbers = (0..commands).map(move |_| random.u64(..keys));
        self.batches(numbers, "key", VALUE_BYTES)
    }

    /// Writes values of `value_bytes` under names of their own.
    pub fn large(&mut self, values: u64, value_bytes: usize) -> Vec<Batch> {
        self.batches(0..values, "big", value_bytes)
    }

    /// Increments counters in random order.
    pub fn increments(&mut self, counters: Counters, commands: u64) -> Vec<Batch> {
        let mut random = self.random.fork();
        let count = self.count(counters);
        let numbers = (0..commands).map(move |_| random.u64(..count));
        self.plain_batches(counters, "INCR", numbers)
    }

    /// Increments each counter once, so that all are there.
    pub fn begin_counters(&mut self, counters: Counters) -> Vec<Batch> {
        self.plain_batches(counters, "INCR", 0..self.count(counters))
    }

    /// Removes each counter.
    pub fn end_counters(&mut self, counters: Counters) -> Vec<Batch> {
        self.plain_batches(counters, "DEL", 0..self.count(counters))
    }

    fn count(&self, counters: Counters) -> u64 {
        match counters {
            Counters::Spread => (self.keys / 10).max(HOT_COUNTERS),
            Counters::Hot => HOT_COUNTERS,
        }
    }

    fn plain_batches(
        &mut self,
        counters: Counters,
        verb: &str,
        numbers: impl Iterator<Item = u64>,
    ) -> Vec<Batch> {
        let prefix = match counters {
            Counters::Spread => "cnt",
            Counters::Hot => "hot",
        };
        let mut batches = self.empty_batches();
        for number in numbers {
            let key = format!("{prefix}:{number:012}");
            let owner = self.owners[slot_of(key.as_bytes())];
            batches[owner].plain(verb, &key);
        }
        self.end_with_last_keys(&mut batches, VALUE_BYTES);
        batches
    }

    fn empty_batches(&self) -> Vec<Batch> {
        self.last_keys.iter().map(|_| Batch::new()).collect()
    }

    fn end_with_last_keys(&mut self, batches: &mut [Batch], value_bytes: usize) {
        for (batch, key) in batches.iter_mut().zip(&self.last_keys) {
            batch.end_with(key, random_value(&mut self.random, value_bytes));
        }
    }

    fn batches(
        &mut self,
        numbers: impl Iterator<Item = u64>,
        prefix: &str,
        value_bytes: usize,
    ) -> Vec<Batch> {
        let mut batches = self.empty_batches();
        let mut key = Vec::new();
        for number in numbers {
            key.clear();
            let _ = write!(key, "{prefix}:{number:012}");
            let owner = self.owners[slot_of(&key)];
            let value = random_value(&mut self.random, value_bytes);
            batches[owner].set(&String::from_utf8_lossy(&key), &value);
        }
        self.end_with_last_keys(&mut batches, value_bytes);
        batches
    }
}

/// Letters and digits, which nothing compresses much.
pub fn random_value(random: &mut fastrand::Rng, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|_| random.alphanumeric() as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_as_long_as_the_documentation_says_and_each_is_counted() {
        let mut batch = Batch::new();
        batch.set("key:000000000001", &[b'a'; VALUE_BYTES]);
        batch.end_with("end:000000000001", vec![b'b'; VALUE_BYTES]);
        assert_eq!(batch.bytes.len(), 2 * 107);
        assert_eq!(batch.commands(), 2);
        let text = String::from_utf8(batch.bytes).unwrap();
        assert!(text.starts_with("*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000001\r\n$64\r\naaa"));
        assert!(text.ends_with("bbb\r\n"));
        let mut batch = Batch::new();
        batch.plain("INCR", "cnt:000000000001");
        assert_eq!(
            batch.bytes,
            b"*2\r\n$4\r\nINCR\r\n$16\r\ncnt:000000000001\r\n"
        );
        assert_eq!((batch.bytes.len(), batch.commands()), (37, 1));
    }
}
