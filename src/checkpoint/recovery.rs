//! What was found on the target masters, and what a lane may conclude from it.

use std::collections::BTreeMap;

use super::record::Record;
use super::watermark::{Generation, Watermark};
use crate::slot::Slot;

/// All bookkeeping of one link, read from every target master after the former writers were shut out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bookkeeping {
    /// The epoch that the reader holds.
    pub epoch: u32,
    pub records: Vec<Found>,
    pub watermarks: BTreeMap<Slot, Watermark>,
}

/// A record, and where it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Node id of the master that holds it.
    pub held_by: String,
    /// The slot of its key.
    pub slot: Slot,
    pub generation: Generation,
    pub record: Record,
}
