//! Hash slots: which of the 16384 a key belongs to, sets of slots, and short tags that reach each of them.
//!
//! Layer 0. A cluster maps a key to `CRC16(hashed part) mod 16384`, where the hashed part is the key, or what
//! stands between its first `{` and the first `}` after it when that is not empty (the hash tag rule of the
//! cluster specification). The CRC is XMODEM: polynomial 0x1021, start 0, not reflected, check value 0x31C3.
//!
//! ```text
//! {user1000}.following      hashes "user1000"
//! foo{}{bar}                hashes all of it: the first tag is empty
//! foo{{bar}}                hashes "{bar"
//! ```
//!
//! The hot path is [`slot_of`]: one pass that looks for `{`, one that sums table entries, both without a
//! dependency from one byte to the next. Its oracle in tests and benchmarks is the `crc16` crate.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// Number of slots in a cluster; fixed by the protocol.
pub const SLOT_COUNT: usize = 16384;

/// A slot's number, always below [`SLOT_COUNT`].
pub type Slot = u16;

/// Bytes that one step of the CRC takes.
const STRIDE: usize = 16;

/// `TABLES[k][b]` is the CRC of byte `b` followed by `k` zero bytes. As the CRC is linear, that of a block is
/// the sum (xor) of the entries of its bytes, each by its distance from the end.
static TABLES: [[u16; 256]; STRIDE] = tables();

const fn tables() -> [[u16; 256]; STRIDE] {
    let mut tables = [[0u16; 256]; STRIDE];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 {
                (crc << 1) ^ 0x1021
            } else {
                crc << 1
            };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut distance = 1;
    while distance < STRIDE {
        let mut byte = 0;
        while byte < 256 {
            let shorter = tables[distance - 1][byte];
            tables[distance][byte] = (shorter << 8) ^ tables[0][(shorter >> 8) as usize];
            byte += 1;
        }
        distance += 1;
    }
    tables
}

/// The slot of `key`, hash tag respected.
#[inline]
pub fn slot_of(key: &[u8]) -> Slot {
    let hashed = if has_brace(key) {
        hashed_part(key)
    } else {
        key
    };
    crc16_xmodem(hashed) & (SLOT_COUNT as u16 - 1)
}

/// The part of `key` that its slot is computed from.
pub fn hashed_part(key: &[u8]) -> &[u8] {
    let Some(open) = find(key, b'{') else {
        return key;
    };
    let inside = &key[open + 1..];
    match find(inside, b'}') {
        None | Some(0) => key,
        Some(close) => &inside[..close],
    }
}

/// Whether `key` holds a `{`. For the usual key of tens of bytes this is half the cost of a call to `memchr`.
#[inline]
fn has_brace(key: &[u8]) -> bool {
    // The last block may overlap the one before it, which spares a loop over a tail.
    let Some(last) = key.last_chunk::<STRIDE>() else {
        return short_has_brace(key);
    };
    let before = (key.len() - 1) / STRIDE;
    let (blocks, _) = key.as_chunks::<STRIDE>();
    block_has_brace(last) || blocks.iter().take(before).any(block_has_brace)
}

/// Where `byte` first stands in `text`. Tags stand near the front and are short: a word or two is looked at.
#[inline]
fn find(text: &[u8], byte: u8) -> Option<usize> {
    let (words, tail) = text.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        // The lowest mark is exact: a borrow can only make false ones above a true one.
        let marks = marks_of(u64::from_le_bytes(*word), byte);
        if marks != 0 {
            return Some(index * 8 + marks.trailing_zeros() as usize / 8);
        }
    }
    let at = tail.iter().position(|&one| one == byte)?;
    Some(words.len() * 8 + at)
}

#[inline]
fn block_has_brace(block: &[u8; STRIDE]) -> bool {
    // No early exit: the compiler turns this into one vector comparison.
    block
        .iter()
        .fold(false, |found, &byte| found | (byte == b'{'))
}

/// [`has_brace`] for fewer than [`STRIDE`] bytes, by words of 8 or 4 bytes that may overlap.
#[inline]
fn short_has_brace(key: &[u8]) -> bool {
    if let (Some(first), Some(last)) = (key.first_chunk::<8>(), key.last_chunk::<8>()) {
        return word_has_brace(u64::from_le_bytes(*first))
            | word_has_brace(u64::from_le_bytes(*last));
    }
    if let (Some(first), Some(last)) = (key.first_chunk::<4>(), key.last_chunk::<4>()) {
        let first = u64::from(u32::from_le_bytes(*first));
        let last = u64::from(u32::from_le_bytes(*last));
        return word_has_brace(first | last << 32);
    }
    key.contains(&b'{')
}

#[inline]
fn word_has_brace(word: u64) -> bool {
    marks_of(word, b'{') != 0
}

/// Not zero when one of the eight bytes of `word` is `byte`: that one becomes zero, and only a word with a zero
/// byte keeps a high bit in the expression below (Mycroft's test). The lowest bit marks the lowest such byte.
#[inline]
fn marks_of(word: u64, byte: u8) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let zeroed = word ^ (ONES * u64::from(byte));
    zeroed.wrapping_sub(ONES) & !zeroed & (ONES << 7)
}

/// CRC-16/XMODEM of `bytes`, sixteen bytes at a time.
#[inline]
pub fn crc16_xmodem(bytes: &[u8]) -> u16 {
    // The odd part goes first, right-aligned in a block: zeros before the first byte leave a CRC of zero as it is,
    // so that no length needs a loop of its own.
    let (head, blocks) = bytes.as_rchunks::<STRIDE>();
    let mut crc = match bytes.first_chunk::<STRIDE>() {
        None => return crc_of_short(head),
        Some(_) if head.is_empty() => 0,
        Some(first) if head.len() > 8 => {
            crc_of_block(u128::from_be_bytes(*first) >> (8 * (STRIDE - head.len())))
        }
        Some(first) => {
            let first = (u128::from_be_bytes(*first) >> 64) as u64;
            crc_of_word::<0>(first >> (8 * (8 - head.len())))
        }
    };
    for block in blocks {
        crc = crc_of_block(u128::from_be_bytes(*block) ^ (u128::from(crc) << 112));
    }
    crc
}

/// The CRC of fewer than [`STRIDE`] bytes, read as words that may overlap.
#[inline]
fn crc_of_short(bytes: &[u8]) -> u16 {
    let len = bytes.len();
    if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        // At least 8: a shift of 64 would be one too far, so the first word is shifted in two steps.
        let high = (u64::from_be_bytes(*first) >> 8) >> (8 * (15 - len));
        return crc_of_halves(high, u64::from_be_bytes(*last));
    }
    let word =
        if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
            let high = u64::from(u32::from_be_bytes(*first)) >> (8 * (8 - len));
            high << 32 | u64::from(u32::from_be_bytes(*last))
        } else {
            bytes
                .iter()
                .fold(0, |word, &byte| word << 8 | u64::from(byte))
        };
    crc_of_word::<0>(word)
}

#[inline]
fn crc_of_block(block: u128) -> u16 {
    crc_of_halves((block >> 64) as u64, block as u64)
}

#[inline]
fn crc_of_halves(high: u64, low: u64) -> u16 {
    crc_of_word::<8>(high) ^ crc_of_word::<0>(low)
}

/// The CRC of eight bytes that stand `DISTANCE` bytes before the end: eight loads that do not wait for each other.
#[inline]
fn crc_of_word<const DISTANCE: usize>(word: u64) -> u16 {
    let entry = |at: usize| TABLES[DISTANCE + at][(word >> (8 * at)) as usize & 0xff];
    (entry(0) ^ entry(1) ^ entry(2) ^ entry(3)) ^ (entry(4) ^ entry(5) ^ entry(6) ^ entry(7))
}

const WORDS: usize = SLOT_COUNT / 64;

/// A set of slots: a bitmap of 2 KiB on the heap, cheap to move.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SlotSet {
    words: Box<[u64; WORDS]>,
}

/// Text that is no list of slots such as `0-5460,10000`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{part}' is no slot or range of slots (0 to 16383)")]
pub struct SlotSetError {
    part: String,
}

impl Default for SlotSet {
    fn default() -> SlotSet {
        SlotSet::new()
    }
}

impl SlotSet {
    /// The empty set.
    pub fn new() -> SlotSet {
        SlotSet {
            words: Box::new([0; WORDS]),
        }
    }

    /// Every slot of a cluster.
    pub fn all() -> SlotSet {
        SlotSet {
            words: Box::new([u64::MAX; WORDS]),
        }
    }

    /// Adds `slot`; true when it was not in the set.
    ///
    /// # Panics
    /// When `slot` is not below [`SLOT_COUNT`]; whoever parses a slot's number checks it.
    #[inline]
    pub fn insert(&mut self, slot: Slot) -> bool {
        let (word, bit) = place(slot);
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    /// Adds the slots `first..=last`.
    ///
    /// # Panics
    /// When one of them is not below [`SLOT_COUNT`].
    pub fn insert_range(&mut self, first: Slot, last: Slot) {
        for slot in first..=last {
            self.insert(slot);
        }
    }

    /// Takes `slot` out; true when it was in the set.
    ///
    /// # Panics
    /// When `slot` is not below [`SLOT_COUNT`].
    #[inline]
    pub fn remove(&mut self, slot: Slot) -> bool {
        let (word, bit) = place(slot);
        let held = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        held
    }

    /// Whether `slot` is in the set; false for what is no slot.
    #[inline]
    pub fn contains(&self, slot: Slot) -> bool {
        self.words
            .get(usize::from(slot) / 64)
            .is_some_and(|word| word >> (slot % 64) & 1 != 0)
    }

    /// Number of slots in the set.
    pub fn len(&self) -> usize {
        self.words
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// Whether the set has no slot.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Takes every slot out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The slots in rising order.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                if left == 0 {
                    return None;
                }
                let bit = left.trailing_zeros() as usize;
                left &= left - 1;
                Some((index * 64 + bit) as Slot)
            })
        })
    }

    /// Maximal runs of neighbouring slots as `(first, last)`, both included, in rising order.
    pub fn ranges(&self) -> impl Iterator<Item = (Slot, Slot)> + '_ {
        let mut slots = self.iter().peekable();
        std::iter::from_fn(move || {
            let first = slots.next()?;
            let mut last = first;
            while slots.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            Some((first, last))
        })
    }

    /// The slots in either set.
    pub fn union(&self, other: &SlotSet) -> SlotSet {
        self.combine(other, |a, b| a | b)
    }

    /// The slots in both sets.
    pub fn intersection(&self, other: &SlotSet) -> SlotSet {
        self.combine(other, |a, b| a & b)
    }

    /// The slots of this set that `other` lacks.
    pub fn difference(&self, other: &SlotSet) -> SlotSet {
        self.combine(other, |a, b| a & !b)
    }

    /// Whether `other` has every slot of this set.
    pub fn is_subset(&self, other: &SlotSet) -> bool {
        self.pairs(other).all(|(a, b)| a & !b == 0)
    }

    /// Whether no slot is in both sets.
    pub fn is_disjoint(&self, other: &SlotSet) -> bool {
        self.pairs(other).all(|(a, b)| a & b == 0)
    }

    fn pairs(&self, other: &SlotSet) -> impl Iterator<Item = (u64, u64)> {
        self.words.iter().copied().zip(other.words.iter().copied())
    }

    fn combine(&self, other: &SlotSet, op: impl Fn(u64, u64) -> u64) -> SlotSet {
        let mut result = self.clone();
        for (word, &theirs) in result.words.iter_mut().zip(other.words.iter()) {
            *word = op(*word, theirs);
        }
        result
    }
}

#[inline]
fn place(slot: Slot) -> (usize, u64) {
    assert!(
        usize::from(slot) < SLOT_COUNT,
        "slot {slot} is out of range"
    );
    (usize::from(slot) / 64, 1 << (slot % 64))
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> SlotSet {
        let mut set = SlotSet::new();
        set.extend(slots);
        set
    }
}

impl Extend<Slot> for SlotSet {
    fn extend<I: IntoIterator<Item = Slot>>(&mut self, slots: I) {
        for slot in slots {
            self.insert(slot);
        }
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.ranges().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            if first == last {
                write!(f, "{first}")?;
            } else {
                write!(f, "{first}-{last}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotSet({self})")
    }
}

impl FromStr for SlotSet {
    type Err = SlotSetError;

    /// Reads what `Display` writes; the empty text is the empty set.
    fn from_str(text: &str) -> Result<SlotSet, SlotSetError> {
        let mut set = SlotSet::new();
        if text.is_empty() {
            return Ok(set);
        }
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (slot_number(first), slot_number(last)) {
                (Some(first), Some(last)) if first <= last => set.insert_range(first, last),
                _ => {
                    return Err(SlotSetError {
                        part: part.chars().take(32).collect(),
                    });
                }
            }
        }
        Ok(set)
    }
}

fn slot_number(text: &str) -> Option<Slot> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse()
        .ok()
        .filter(|&slot| usize::from(slot) < SLOT_COUNT)
}

/// Letters of a tag, in the order in which tags are tried, and digits of numbers that shall be short.
pub const BASE_62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A tag as short as possible that hashes to a slot; three bytes reach every slot.
#[derive(Clone, Copy, Default)]
struct Tag {
    bytes: [u8; 3],
    len: u8,
}

/// The shortest base-62 tag whose slot is `slot`, the first one in byte order: a key `...{tag}...` lives in
/// that slot. One to three characters. The table of all (64 KiB) is computed at the first call, in about a millisecond.
///
/// # Panics
/// When `slot` is not below [`SLOT_COUNT`].
pub fn shortest_tag(slot: Slot) -> &'static str {
    static TAGS: OnceLock<Box<[Tag]>> = OnceLock::new();
    let tag = &TAGS.get_or_init(shortest_tags)[usize::from(slot)];
    let bytes = &tag.bytes[..usize::from(tag.len)];
    std::str::from_utf8(bytes).expect("tags are base-62 letters")
}

fn shortest_tags() -> Box<[Tag]> {
    let mut tags = vec![Tag::default(); SLOT_COUNT].into_boxed_slice();
    let mut missing = SLOT_COUNT;
    for len in 1..=3u8 {
        for number in 0..BASE_62.len().pow(u32::from(len)) {
            let mut bytes = [0u8; 3];
            let mut rest = number;
            for byte in bytes[..usize::from(len)].iter_mut().rev() {
                *byte = BASE_62[rest % BASE_62.len()];
                rest /= BASE_62.len();
            }
            let tag = &mut tags[usize::from(slot_of(&bytes[..usize::from(len)]))];
            if tag.len == 0 {
                *tag = Tag { bytes, len };
                missing -= 1;
            }
        }
    }
    assert_eq!(missing, 0, "three letters reach every slot");
    tags
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The rule as the specification words it, byte by byte, over the `crc16` crate.
    fn naive_slot(key: &[u8]) -> u16 {
        let hashed = match key.iter().position(|&byte| byte == b'{') {
            Some(open) => match key[open + 1..].iter().position(|&byte| byte == b'}') {
                Some(close) if close > 0 => &key[open + 1..open + 1 + close],
                _ => key,
            },
            None => key,
        };
        crc16::State::<crc16::XMODEM>::calculate(hashed) % 16384
    }

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        assert_eq!(crc16_xmodem(b"123456789"), 0x31c3);
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"{foo}.bar"), 12182);
        assert_eq!(slot_of(b""), 0);
        assert_eq!(hashed_part(b"foo{}{bar}"), b"foo{}{bar}");
        assert_eq!(hashed_part(b"foo{{bar}}"), b"{bar");
        assert_eq!(hashed_part(b"foo{bar}{zap}"), b"bar");
        assert_eq!(hashed_part(b"foo{bar"), b"foo{bar");
    }

    #[test]
    fn a_brace_is_found_at_every_place_of_every_length() {
        for len in 0..70 {
            let mut key = vec![b'|'; len];
            assert!(!has_brace(&key), "none among {len}");
            for at in 0..len {
                key[at] = b'{';
                assert!(has_brace(&key), "{at} of {len}");
                key[at] = b'z';
            }
            key.fill(b'{' ^ 0x80);
            assert!(!has_brace(&key));
        }
    }

    proptest! {
        #[test]
        fn the_crc_equals_the_crates(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(crc16_xmodem(&bytes), crc16::State::<crc16::XMODEM>::calculate(&bytes));
        }

        #[test]
        fn the_slot_of_any_key_equals_the_naive_one(key in "[a-c{}]{0,40}") {
            prop_assert_eq!(slot_of(key.as_bytes()), naive_slot(key.as_bytes()));
        }

        #[test]
        fn a_slot_set_behaves_as_a_set_of_numbers(
            left in prop::collection::btree_set(0u16..300, 0..120),
            right in prop::collection::btree_set(0u16..300, 0..120),
        ) {
            // Spread over words: neighbours stay neighbours, and the last word is reached.
            let spread = |set: &BTreeSet<u16>| -> BTreeSet<u16> {
                set.iter().map(|&slot| if slot < 150 { slot } else { 16383 - (slot - 150) }).collect()
            };
            let (left, right) = (spread(&left), spread(&right));
            let a: SlotSet = left.iter().copied().collect();
            let b: SlotSet = right.iter().copied().collect();
            let numbers = |set: &SlotSet| set.iter().collect::<Vec<_>>();
            prop_assert_eq!(a.len(), left.len());
            prop_assert_eq!(a.is_empty(), left.is_empty());
            prop_assert_eq!(numbers(&a), left.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(numbers(&a.union(&b)), left.union(&right).copied().collect::<Vec<_>>());
            prop_assert_eq!(numbers(&a.intersection(&b)), left.intersection(&right).copied().collect::<Vec<_>>());
            prop_assert_eq!(numbers(&a.difference(&b)), left.difference(&right).copied().collect::<Vec<_>>());
            prop_assert_eq!(a.is_subset(&b), left.is_subset(&right));
            prop_assert_eq!(a.is_disjoint(&b), left.is_disjoint(&right));
            prop_assert_eq!(a.to_string().parse::<SlotSet>().unwrap(), a);
        }
    }

    #[test]
    fn a_slot_set_is_written_as_ranges_and_read_back() {
        let mut set = SlotSet::new();
        set.insert_range(0, 5460);
        assert!(set.insert(10000));
        assert!(!set.insert(10000));
        assert!(set.insert(16383));
        assert_eq!(set.to_string(), "0-5460,10000,16383");
        assert!(set.remove(0));
        assert!(!set.remove(0));
        assert!(!set.contains(0) && set.contains(5460) && !set.contains(u16::MAX));
        assert_eq!(SlotSet::all().to_string(), "0-16383");
        assert_eq!("".parse(), Ok(SlotSet::new()));
        for wrong in ["x", "5-", "-5", "5-4", "16384", "1,,2", "+1", "0-99999"] {
            assert!(wrong.parse::<SlotSet>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_slot_has_a_tag_of_at_most_three_letters() {
        let mut by_length = [0; 4];
        for slot in 0..SLOT_COUNT as u16 {
            let tag = shortest_tag(slot);
            assert_eq!(slot_of(format!("a{{{tag}}}b").as_bytes()), slot);
            by_length[tag.len()] += 1;
        }
        assert_eq!(by_length, [0, 62, 3448, 12874]);
    }
}
