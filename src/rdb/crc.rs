//! CRC-64 of snapshots and of DUMP payloads: the reflected Jones polynomial, no inversion, check value
//! of `123456789` is `e9c6d914c4b8d9ca`.
//!
//! Long inputs go to the vectorised crate; under about 128 bytes its set-up costs more than slicing, and payloads of small
//! strings are that short. There the checksum is half of what a key costs, so the last bytes are sliced too, by eight and by
//! four: one at a time they took as long as all before them.

use crc_fast::{CrcAlgorithm, Digest, checksum};

use super::fold::fold;

/// From this length on the vectorised implementation is the faster one.
const VECTORISED_FROM_BYTES: usize = 128;

/// From so many blocks of sixteen bytes on, folding them into one is faster than slicing each.
const FOLDED_FROM_BLOCKS: usize = 3;

pub(super) const POLYNOMIAL_REFLECTED: u64 = 0x95ac_9329_ac4b_c9b5;

/// `TABLES[0]` is the classic byte table; `TABLES[k]` advances a byte past `k` further zero bytes.
static TABLES: [[u64; 256]; 16] = tables();

const fn tables() -> [[u64; 256]; 16] {
    let mut tables = [[0u64; 256]; 16];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (POLYNOMIAL_REFLECTED * (crc & 1));
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut slice = 1;
    while slice < 16 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[slice - 1][byte];
            tables[slice][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        slice += 1;
    }
    tables
}

/// The checksum of `bytes` appended to what already has the checksum `crc` (0 for nothing).
pub fn crc64(crc: u64, bytes: &[u8]) -> u64 {
    if bytes.len() < VECTORISED_FROM_BYTES {
        return extend_short(crc, bytes);
    }
    if crc == 0 {
        // A digest is 20 to 30 ns of copying its parameters.
        return checksum(CrcAlgorithm::Crc64Redis, bytes);
    }
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc64Redis, crc);
    digest.update(bytes);
    digest.finalize()
}

fn extend_short(mut crc: u64, bytes: &[u8]) -> u64 {
    let (blocks, mut rest) = bytes.as_chunks::<16>();
    let folded = (blocks.len() >= FOLDED_FROM_BLOCKS).then(|| fold(crc, blocks));
    if let Some(folded) = folded.flatten() {
        crc = sliced(folded);
    } else {
        for block in blocks {
            let mixed = u128::from_le_bytes(*block) ^ u128::from(crc);
            crc = sliced(mixed.to_le_bytes());
        }
    }
    if let Some((block, tail)) = rest.split_first_chunk::<8>() {
        crc = sliced((u64::from_le_bytes(*block) ^ crc).to_le_bytes());
        rest = tail;
    }
    if let Some((block, tail)) = rest.split_first_chunk::<4>() {
        let mixed = u32::from_le_bytes(*block) ^ crc as u32;
        crc = sliced(mixed.to_le_bytes()) ^ (crc >> 32);
        rest = tail;
    }
    for byte in rest {
        crc = TABLES[0][usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
    }
    crc
}

/// The checksum of a block: each byte looked up as if only zeros followed it.
#[inline]
fn sliced<const BYTES: usize>(bytes: [u8; BYTES]) -> u64 {
    let mut crc = 0;
    for (index, byte) in bytes.into_iter().enumerate() {
        crc ^= TABLES[BYTES - 1 - index][usize::from(byte)];
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One bit at a time, as the definition reads.
    fn naive(mut crc: u64, bytes: &[u8]) -> u64 {
        for byte in bytes {
            crc ^= u64::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 {
                    (crc >> 1) ^ POLYNOMIAL_REFLECTED
                } else {
                    crc >> 1
                };
            }
        }
        crc
    }

    #[test]
    fn check_value_is_the_published_one() {
        assert_eq!(crc64(0, b"123456789"), 0xe9c6_d914_c4b8_d9ca);
    }

    proptest! {
        #[test]
        fn short_and_long_paths_agree_with_the_definition(
            bytes in proptest::collection::vec(any::<u8>(), 0..700),
            cut in 0usize..700,
        ) {
            let cut = cut.min(bytes.len());
            let (head, tail) = bytes.split_at(cut);
            prop_assert_eq!(crc64(crc64(0, head), tail), naive(0, &bytes));
        }
    }
}
