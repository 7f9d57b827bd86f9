//! How segments and blocks begin, in bytes. Numbers are little-endian.
//!
//! ```text
//! segment  magic 8 | checksum 8 | version 4 | length of link 4 | number 8 | first offset 8 | replid 40 | link, zeros
//! block    magic 8 | checksum 8 | offset 8 | length 4 | zeros 4 | received 8 | replid 40 | bytes of the stream
//! ```
//!
//! Checksums (CRC-64/NVME) cover everything behind themselves: the rest of the header, and a block's bytes.

use crc_fast::{CrcAlgorithm, checksum};

use crate::limits;
use crate::position::{Offset, ReplicationId};

pub const SEGMENT_HEADER_BYTES: usize = 256;
/// Of every block so much is not bytes of the stream.
pub const BLOCK_HEADER_BYTES: usize = 80;

const SEGMENT_MAGIC: &[u8; 8] = b"SSTRMSEG";
const BLOCK_MAGIC: &[u8; 8] = b"SSTRMBLK";
const VERSION: u32 = 2;
/// Where the checksummed part begins.
const CHECKED_FROM: usize = 16;
const LINK_FROM: usize = 80;
/// The longest link that a header holds; of a longer one this much.
const MAX_LINK_BYTES: usize = SEGMENT_HEADER_BYTES - LINK_FROM;

/// What a segment says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    pub number: u64,
    /// Offset of its first byte.
    pub first: Offset,
    /// The history's id when it was begun.
    pub id: ReplicationId,
}

/// What a block says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockHeader {
    pub begin: Offset,
    pub length: usize,
    /// When its first byte was received: Unix time in milliseconds.
    pub received_ms: u64,
    /// The history's id at its end.
    pub id: ReplicationId,
}

impl BlockHeader {
    pub fn end(&self) -> Offset {
        self.begin.advanced(self.length)
    }
}

fn stored_link(link: &str) -> &[u8] {
    &link.as_bytes()[..link.len().min(MAX_LINK_BYTES)]
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}

fn seal(bytes: &mut [u8]) {
    let sum = checksum(CrcAlgorithm::Crc64Nvme, &bytes[CHECKED_FROM..]);
    put(bytes, 8, &sum.to_le_bytes());
}

fn is_whole(bytes: &[u8], magic: &[u8; 8]) -> bool {
    bytes[..8] == *magic
        && u64::from_le_bytes(number(bytes, 8))
            == checksum(CrcAlgorithm::Crc64Nvme, &bytes[CHECKED_FROM..])
}

impl SegmentHeader {
    pub fn write(&self, link: &str) -> Vec<u8> {
        let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
        let link = stored_link(link);
        put(&mut bytes, 0, SEGMENT_MAGIC);
        put(&mut bytes, 16, &VERSION.to_le_bytes());
        put(&mut bytes, 20, &(link.len() as u32).to_le_bytes());
        put(&mut bytes, 24, &self.number.to_le_bytes());
        put(&mut bytes, 32, &self.first.0.to_le_bytes());
        put(&mut bytes, 40, self.id.as_str().as_bytes());
        put(&mut bytes, LINK_FROM, link);
        seal(&mut bytes);
        bytes
    }

    /// `None` unless it is whole, of this version, and of this link.
    pub fn read(bytes: &[u8; SEGMENT_HEADER_BYTES], link: &str) -> Option<Self> {
        let length = u32::from_le_bytes(number(bytes, 20)) as usize;
        let ours = is_whole(bytes, SEGMENT_MAGIC)
            && u32::from_le_bytes(number(bytes, 16)) == VERSION
            && bytes.get(LINK_FROM..LINK_FROM + length) == Some(stored_link(link));
        ours.then_some(Self {
            number: u64::from_le_bytes(number(bytes, 24)),
            first: Offset(u64::from_le_bytes(number(bytes, 32))),
            id: ReplicationId::parse(&bytes[40..LINK_FROM])?,
        })
    }
}

/// Writes the header of a block before its bytes, which stand behind the room for it.
pub fn seal_block(block: &mut [u8], begin: Offset, received_ms: u64, id: ReplicationId) {
    let length = block.len() - BLOCK_HEADER_BYTES;
    put(block, 0, BLOCK_MAGIC);
    put(block, 16, &begin.0.to_le_bytes());
    put(block, 24, &(length as u32).to_le_bytes());
    put(block, 28, &[0; 4]);
    put(block, 32, &received_ms.to_le_bytes());
    put(block, 40, id.as_str().as_bytes());
    seal(block);
}

/// How many bytes a block that begins like this has behind its header; to be believed only once all of it is checked.
pub fn claimed_length(header: &[u8; BLOCK_HEADER_BYTES]) -> Option<usize> {
    let length = u32::from_le_bytes(number(header, 24)) as usize;
    let most = limits::SPOOL_BLOCK_BYTES - BLOCK_HEADER_BYTES;
    (header[..8] == *BLOCK_MAGIC && (1..=most).contains(&length)).then_some(length)
}

/// Checks a block with its header; `None` unless it is whole.
pub fn read_block(block: &[u8]) -> Option<BlockHeader> {
    let length = claimed_length(block.first_chunk()?)?;
    let whole = block.len() == BLOCK_HEADER_BYTES + length && is_whole(block, BLOCK_MAGIC);
    whole.then_some(BlockHeader {
        begin: Offset(u64::from_le_bytes(number(block, 16))),
        length,
        received_ms: u64::from_le_bytes(number(block, 32)),
        id: ReplicationId::parse(&block[40..BLOCK_HEADER_BYTES])?,
    })
}
