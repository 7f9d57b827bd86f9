//! The disk below the lane's spool: slow, refusing at times, and outliving the lane.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use slotstream::position::Offset;
use slotstream::spool::{Order, Recovered, Survey, recover, survey};

use crate::model::Bytes;
use crate::rng::Rng;

/// The link that the segments carry.
pub const LINK: &str = "sim";

pub struct Disk {
    pub files: BTreeMap<u64, Bytes>,
    /// Orders in their order, and when each is done.
    open: VecDeque<(u64, u64, Order)>,
    /// The most that an order takes.
    pub delay_ms: usize,
    /// Nothing can be written until then.
    pub refuses_until_ms: u64,
    /// How long things take, and what turns bad.
    pub rng: Rng,
    /// Blocks written, and blocks read.
    pub written: u64,
    pub read: u64,
}

impl Disk {
    pub fn new() -> Self {
        Self {
            files: BTreeMap::new(),
            open: VecDeque::new(),
            delay_ms: 0,
            refuses_until_ms: 0,
            rng: Rng::new(0),
            written: 0,
            read: 0,
        }
    }

    pub fn order(&mut self, ticket: u64, order: Order, now_ms: u64) {
        let after = self.open.back().map_or(now_ms, |(at_ms, ..)| *at_ms);
        let at_ms = after.max(now_ms) + self.rng.below(self.delay_ms + 1) as u64;
        self.open.push_back((at_ms, ticket, order));
    }

    /// The next order that is done by now, and its result.
    pub fn next_done(&mut self, now_ms: u64) -> Option<(u64, Result<Bytes, String>)> {
        if self.open.front()?.0 > now_ms {
            return None;
        }
        let (_, ticket, order) = self.open.pop_front()?;
        Some((ticket, self.execute(order, now_ms)))
    }

    fn execute(&mut self, order: Order, now_ms: u64) -> Result<Bytes, String> {
        let writes = matches!(order, Order::Create { .. } | Order::Write { .. });
        if writes && now_ms < self.refuses_until_ms {
            return Err("no space left".into());
        }
        match order {
            Order::Create { segment, bytes } => {
                self.files.insert(segment, bytes.to_vec());
            }
            Order::Write { segment, at, bytes } => {
                let file = self.files.get_mut(&segment).ok_or("no such segment")?;
                assert_eq!(file.len() as u64, at, "blocks follow each other");
                file.extend_from_slice(&bytes);
                self.written += 1;
            }
            Order::Read {
                segment,
                at,
                length,
            } => {
                let file = self.files.get(&segment).ok_or("no such segment")?;
                let part = file.get(at as usize..at as usize + length);
                self.read += 1;
                return part.map(<[u8]>::to_vec).ok_or("cut short".into());
            }

            Order::Delete { segment } => {
                self.files.remove(&segment);
            }
        }
        Ok(Bytes::new())
    }

    /// One byte turns bad.
    pub fn damage(&mut self) {
        let index = self.rng.below(self.files.len());
        if let Some(file) = self.files.values_mut().nth(index)
            && !file.is_empty()
        {
            let at = self.rng.below(file.len());
            file[at] ^= 1 << self.rng.below(8);
        }
    }

    /// The process ends: what it ordered last is not done, or in part.
    pub fn lose_process(&mut self) {
        if let Some((_, _, Order::Write { segment, at, bytes })) = self.open.pop_front() {
            let part = self.rng.below(bytes.len() + 1);
            let bytes = Arc::new(bytes[..part].to_vec());
            let _ = self.execute(Order::Write { segment, at, bytes }, u64::MAX);
        }
        self.open.clear();
    }

    /// All that was ordered is done, whoever hears of it.
    pub fn work_off(&mut self, now_ms: u64) {
        while let Some((_, _, order)) = self.open.pop_front() {
            let _ = self.execute(order, now_ms);
        }
    }

    pub fn surveys(&self) -> Vec<Survey> {
        let surveys = self.files.values().filter_map(|file| {
            survey(&mut file.as_slice(), LINK).expect("reading from memory does not fail")
        });
        surveys.collect()
    }

    /// What a process finds that starts from offset `at`.
    pub fn recover(&self, at: Offset) -> Option<Recovered> {
        recover(self.surveys(), at)
    }

    /// Deletes what nobody goes on with.
    pub fn keep_only(&mut self, recovered: Option<&Recovered>) {
        let numbers: Vec<u64> = recovered.into_iter().flat_map(Recovered::numbers).collect();
        self.files.retain(|number, _| numbers.contains(number));
    }
}
