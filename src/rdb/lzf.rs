//! Decompression of LZF, the only compression that snapshots use.
//!
//! ```text
//! 000LLLLL                       L+1 literal bytes follow
//! LLLooooo oooooooo              copy L+2 bytes from o+1 back      (L = 1..6)
//! 111ooooo LLLLLLLL oooooooo     copy L+9 bytes from o+1 back
//! ```
//!
//! A copy reaches at most [`WINDOW_BYTES`] back, so a stream needs no more of its past than that.

use super::error::Problem;

/// The farthest a copy reaches back: 13 bits of offset, plus one.
pub const WINDOW_BYTES: usize = 1 << 13;

/// Appends decompressed bytes to `out` until `packed` holds no whole instruction or `out` is
/// `stop_at` bytes long or longer (by less than one instruction, 264 bytes). Copies reach into whatever `out` already holds.
/// Returns how many bytes of `packed` were used.
pub fn decompress_some(packed: &[u8], out: &mut Vec<u8>, stop_at: usize) -> Result<usize, Problem> {
    let mut rest = packed;
    while out.len() < stop_at {
        let Some(after) = instruction(rest, out)? else {
            break;
        };
        rest = after;
    }
    Ok(packed.len() - rest.len())
}

/// Runs one instruction; `None` when it is not whole.
fn instruction<'a>(packed: &'a [u8], out: &mut Vec<u8>) -> Result<Option<&'a [u8]>, Problem> {
    let Some((&control, rest)) = packed.split_first() else {
        return Ok(None);
    };
    let (short, high) = (usize::from(control >> 5), usize::from(control & 0x1f));
    if short == 0 {
        let Some((literal, rest)) = rest.split_at_checked(high + 1) else {
            return Ok(None);
        };
        out.extend_from_slice(literal);
        return Ok(Some(rest));
    }
    let (length, low, rest) = match (short, rest) {
        (7, [more, low, rest @ ..]) => (usize::from(*more) + 9, *low, rest),
        (1..7, [low, rest @ ..]) => (short + 2, *low, rest),
        _ => return Ok(None),
    };
    let distance = (high << 8 | usize::from(low)) + 1;
    let Some(start) = out.len().checked_sub(distance) else {
        return Err(Problem::BadCompression);
    };
    if distance >= length {
        out.extend_from_within(start..start + length);
    } else {
        // The copy overlaps what it writes: a repeating pattern.
        for at in start..start + length {
            out.push(out[at]);
        }
    }
    Ok(Some(rest))
}

/// Appends the whole of `packed`, which must become exactly `plain_bytes` bytes; copies cannot reach into what
/// `out` held before.
pub fn append(packed: &[u8], plain_bytes: usize, out: &mut Vec<u8>) -> Result<(), Problem> {
    let base = out.len();
    let mut rest = packed;
    while out.len() - base < plain_bytes {
        let before = out.len();
        let Some(after) = instruction(rest, out)? else {
            return Err(Problem::BadCompression);
        };
        // An instruction that reached in front of `base` copied foreign bytes.
        if reaches_before(rest, before - base) {
            return Err(Problem::BadCompression);
        }
        rest = after;
    }
    if rest.is_empty() && out.len() - base == plain_bytes {
        Ok(())
    } else {
        Err(Problem::BadCompression)
    }
}

fn reaches_before(instruction: &[u8], produced: usize) -> bool {
    let (control, low) = match *instruction {
        [control, _, low, ..] if control >> 5 == 7 => (control, low),
        [control, low, ..] if control >> 5 != 0 => (control, low),
        _ => return false,
    };
    (usize::from(control & 0x1f) << 8 | usize::from(low)) + 1 > produced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_short_and_long_and_overlapping_copies_append() {
        let mut out = Vec::new();
        // "abc", copy 3 from 3 back, copy 9+1 from 1 back.
        let packed = [2, b'a', b'b', b'c', 0x20, 2, 0xe0, 1, 0];
        append(&packed, 16, &mut out).unwrap();
        assert_eq!(out, b"abcabccccccccccc");
    }

    #[test]
    fn a_copy_from_before_the_start_is_an_error() {
        let mut out = b"earlier".to_vec();
        assert_eq!(
            append(&[0, b'a', 0x20, 1], 4, &mut out),
            Err(Problem::BadCompression)
        );
        assert_eq!(
            append(&[0x20, 0], 3, &mut Vec::new()),
            Err(Problem::BadCompression)
        );
    }

    #[test]
    fn a_wrong_declared_length_is_an_error() {
        for declared in [2, 4, 1 << 40] {
            let mut out = Vec::new();
            assert_eq!(
                append(&[2, b'a', b'b', b'c'], declared, &mut out),
                Err(Problem::BadCompression)
            );
            assert!(out.len() < 300);
        }
    }
}
