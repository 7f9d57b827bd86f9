//! From a verb in any casing to its row of the table.
//!
//! A name of up to 16 bytes is determined by its length, its first eight bytes and its last eight (which overlap
//! when it is shorter than 16): three integers, lower-cased eight bytes at a time. They are hashed into a table
//! built at compile time, and compared as integers. Longer names, of which there are two or three, are compared
//! byte by byte afterwards.
//!
//! ```text
//! "INCRBYFLOAT"   head = "incrbyfl"   tail = "rbyfloat"   len = 11
//! "DEL"           head = "d" "e" "l"  tail = 0            len = 3
//! ```

use super::Command;
use super::table::COMMANDS;

/// Places in the hash table: a power of two, several times the number of commands, so that nearly every name
/// stands at its first place.
const PLACES: usize = 1024;

/// Names longer than this are in no table.
const LONGEST_NAME: usize = 24;

/// A verb as three integers.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Packed {
    head: u64,
    tail: u64,
    len: u16,
}

#[derive(Clone, Copy)]
struct Place {
    packed: Packed,
    /// Row of [`COMMANDS`]; meaningless when the place is empty, that is when `packed.len` is 0.
    row: u16,
}

static TABLE: [Place; PLACES] = build();

/// The row of the command called `verb`, in any casing; a container's own row for a container.
#[inline]
pub fn lookup(verb: &[u8]) -> Option<&'static Command> {
    if verb.is_empty() || verb.len() > LONGEST_NAME {
        return None;
    }
    let packed = pack(verb);
    let mut at = place_of(packed);
    loop {
        let place = &TABLE[at];
        if place.packed == packed {
            let command = &COMMANDS[usize::from(place.row)];
            if verb.len() > 16 && !command.name.as_bytes().eq_ignore_ascii_case(verb) {
                return None;
            }
            return Some(command);
        }
        if place.packed.len == 0 {
            return None;
        }
        at = (at + 1) % PLACES;
    }
}

const fn place_of(packed: Packed) -> usize {
    // An odd constant near 2^64 / golden ratio spreads the sum into the top bits.
    let sum = packed.head ^ packed.tail.rotate_left(23) ^ ((packed.len as u64) << 56);
    (sum.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PLACES.trailing_zeros())) as usize
}

#[inline]
const fn pack(verb: &[u8]) -> Packed {
    let len = verb.len() as u16;
    if let (Some(first), Some(last)) = (verb.first_chunk::<8>(), verb.last_chunk::<8>()) {
        return Packed {
            head: lower(u64::from_le_bytes(*first)),
            tail: lower(u64::from_le_bytes(*last)),
            len,
        };
    }
    let head = if let (Some(first), Some(last)) = (verb.first_chunk::<4>(), verb.last_chunk::<4>())
    {
        u32::from_le_bytes(*first) as u64 | (u32::from_le_bytes(*last) as u64) << 32
    } else {
        // One to three bytes: first, middle, last name each of them.
        verb[0] as u64 | (verb[verb.len() / 2] as u64) << 8 | (verb[verb.len() - 1] as u64) << 16
    };
    Packed {
        head: lower(head),
        tail: 0,
        len,
    }
}

/// `to_ascii_lowercase` of eight bytes at once, exact for every byte.
const fn lower(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = ONES << 7;
    let low_bits = word & !HIGH;
    // The high bit of a byte says: at least 'A', above 'Z'. No carry leaves a byte.
    let from_a = low_bits + ONES * (0x80 - b'A' as u64);
    let above_z = low_bits + ONES * (0x7f - b'Z' as u64);
    let upper = (from_a ^ above_z) & !word & HIGH;
    word | (upper >> 2)
}

const fn build() -> [Place; PLACES] {
    let empty = Place {
        packed: Packed {
            head: 0,
            tail: 0,
            len: 0,
        },
        row: 0,
    };
    let mut table = [empty; PLACES];
    assert!(COMMANDS.len() * 3 < PLACES, "the table would be crowded");
    let mut row = 0;
    while row < COMMANDS.len() {
        let name = COMMANDS[row].static_name().as_bytes();
        assert!(!name.is_empty() && name.len() <= LONGEST_NAME);
        let packed = pack(name);
        let mut at = place_of(packed);
        while table[at].packed.len != 0 {
            let there = table[at].packed;
            assert!(
                there.head != packed.head || there.tail != packed.tail || there.len != packed.len,
                "two rows cannot be told apart"
            );
            at = (at + 1) % PLACES;
        }
        table[at] = Place {
            packed,
            row: row as u16,
        };
        row += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// The naive twin: a map of lower-cased names.
    fn by_name() -> HashMap<&'static str, &'static Command> {
        COMMANDS
            .iter()
            .map(|command| (command.static_name(), command))
            .collect()
    }

    #[test]
    fn every_name_is_found_in_lower_upper_and_marked_casing() {
        for command in COMMANDS {
            let name = command.static_name();
            let mut marked = name.to_ascii_uppercase();
            marked[..1].make_ascii_lowercase();
            for verb in [name, &name.to_ascii_uppercase(), &marked] {
                let found = lookup(verb.as_bytes()).unwrap_or_else(|| panic!("{verb}"));
                assert!(std::ptr::eq(found, command), "{verb}");
            }
        }
        assert!(lookup(b"").is_none());
        assert!(lookup(b"NOSUCHCOMMAND").is_none());
        assert!(lookup(&[b'a'; 1000]).is_none());
        assert!(lookup(b"georadiusXXmember").is_none());
    }

    #[test]
    fn most_names_stand_at_their_first_place() {
        let first = COMMANDS
            .iter()
            .filter(|command| {
                let packed = pack(command.static_name().as_bytes());
                TABLE[place_of(packed)].packed == packed
            })
            .count();
        assert!(first * 10 > COMMANDS.len() * 8, "{first}");
        for hot in ["set", "del", "hset", "incr", "unlink", "pexpireat", "zadd"] {
            let packed = pack(hot.as_bytes());
            assert!(TABLE[place_of(packed)].packed == packed, "{hot}");
        }
    }

    proptest! {
        #[test]
        fn lower_equals_the_byte_by_byte_one(bytes in any::<[u8; 8]>()) {
            prop_assert_eq!(lower(u64::from_le_bytes(bytes)), u64::from_le_bytes(bytes.map(|b| b.to_ascii_lowercase())));
        }

        #[test]
        fn a_name_with_bytes_changed_is_found_only_if_it_is_a_name(
            row in 0..COMMANDS.len(),
            at in any::<prop::sample::Index>(),
            with in any::<u8>(),
            cut in 0usize..3,
        ) {
            let mut verb = COMMANDS[row].static_name().as_bytes().to_vec();
            let at = at.index(verb.len());
            verb[at] = with;
            verb.truncate(verb.len().saturating_sub(cut));
            let lower = String::from_utf8_lossy(&verb).to_ascii_lowercase();
            let expected = by_name().get(lower.as_str()).map(|command| command.static_name());
            prop_assert_eq!(lookup(&verb).map(|command| command.static_name()), expected);
        }
    }
}
