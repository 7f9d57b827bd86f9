//! CRC-64 of payloads of a few dozen bytes, sixteen bytes at a step: carry-less multiplication where the processor has it.
//!
//! ```text
//! sixteen bytes X = lo * x^64 + hi     X * x^128 + next = lo * (x^192 mod P) + hi * (x^128 mod P) + next  (mod P)
//! ```
//!
//! Bits are reflected: the lowest bit of a word has the highest power. The product of two reflected words comes out one
//! place to the right, which is one power more, so the constants are one power less.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m128i, _mm_clmulepi64_si128, _mm_loadu_si128, _mm_set_epi64x, _mm_xor_si128,
};

/// `x^power mod P`, reflected; `polynomial` is reflected too.
const fn power_of_x(power: u32, polynomial: u64) -> u64 {
    let mut word = 1 << 63;
    let mut done = 0;
    while done < power {
        word = (word >> 1) ^ (polynomial * (word & 1));
        done += 1;
    }
    word
}

const LOW_BY: u64 = power_of_x(191, super::crc::POLYNOMIAL_REFLECTED);
const HIGH_BY: u64 = power_of_x(127, super::crc::POLYNOMIAL_REFLECTED);

/// Sixteen bytes whose checksum is that of `crc` and all `blocks`; `None` where there are none, or the processor cannot
/// multiply so.
#[inline]
pub(super) fn fold(crc: u64, blocks: &[[u8; 16]]) -> Option<[u8; 16]> {
    #[cfg(target_arch = "x86_64")]
    if !blocks.is_empty() && std::arch::is_x86_feature_detected!("pclmulqdq") {
        // SAFETY: the processor has the instruction.
        return Some(unsafe { multiply(crc, blocks) });
    }
    None
}

/// `blocks` is not empty.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "pclmulqdq")]
fn multiply(crc: u64, blocks: &[[u8; 16]]) -> [u8; 16] {
    let load = |block: &[u8; 16]| -> __m128i {
        // SAFETY: sixteen bytes are there, and the load needs no alignment.
        unsafe { _mm_loadu_si128(block.as_ptr().cast()) }
    };
    let by = _mm_set_epi64x(HIGH_BY.cast_signed(), LOW_BY.cast_signed());
    let first = load(&blocks[0]);
    let mut sum = _mm_xor_si128(first, _mm_set_epi64x(0, crc.cast_signed()));
    for block in &blocks[1..] {
        let low = _mm_clmulepi64_si128::<0x00>(sum, by);
        let high = _mm_clmulepi64_si128::<0x11>(sum, by);
        sum = _mm_xor_si128(_mm_xor_si128(low, high), load(block));
    }
    // SAFETY: any sixteen bytes are both types.
    unsafe { std::mem::transmute::<__m128i, [u8; 16]>(sum) }
}
