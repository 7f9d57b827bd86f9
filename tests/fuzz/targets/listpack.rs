//! Listpacks: of lists, sets, hashes with and without deadlines, sorted sets, and nodes of streams.
//!
//! The first byte chooses which, the others are the listpack.

#![no_main]

use libfuzzer_sys::fuzz_target;
use slotstream::rdb::Lineage;
use slotstream_fuzz::{check_snapshot, list_elements, snapshot_of, string};

/// The naive twin: a listpack that is all there, to vectors.
fn naive_listpack(pack: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut items = Vec::new();
    let mut rest = pack.get(6..)?;
    loop {
        let first = *rest.first()?;
        if first == 0xff {
            // More behind the end is corrupt.
            return (rest.len() == 1).then_some(items);
        }
        let wide = |at: usize| Some(usize::from(*rest.get(at)?));
        let integer = |width: usize| {
            let stored = rest.get(1..1 + width)?;
            let value = stored.iter().rev();
            let value = value.fold(0i128, |all, byte| all << 8 | i128::from(*byte));
            let is_negative = stored[width - 1] >= 0x80;
            let value = if is_negative {
                value - (1i128 << (8 * width))
            } else {
                value
            };
            Some((value.to_string().into_bytes(), 1 + width))
        };
        let text = |head: usize, length: usize| {
            let text = rest.get(head..head + length)?;
            Some((text.to_vec(), head + length))
        };
        let (item, length) = match first {
            0..0x80 => (first.to_string().into_bytes(), 1),
            0x80..0xc0 => text(1, usize::from(first & 0x3f))?,
            0xc0..0xe0 => {
                let value = (i32::from(first & 0x1f) << 8) + wide(1)? as i32;
                let value = if value >= 4096 { value - 8192 } else { value };
                (value.to_string().into_bytes(), 2)
            }
            0xe0..0xf0 => text(2, usize::from(first & 0x0f) << 8 | wide(1)?)?,
            0xf0 => text(
                5,
                wide(1)? | wide(2)? << 8 | wide(3)? << 16 | wide(4)? << 24,
            )?,
            0xf1..=0xf3 => integer(usize::from(first) - 0xf1 + 2)?,
            0xf4 => integer(8)?,
            _ => return None,
        };
        let mut backward = 1;
        while length >= 1 << (7 * backward) && backward < 5 {
            backward += 1;
        }
        rest = rest.get(length + backward..)?;
        items.push(item);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, pack)) = data.split_first() else {
        return;
    };
    let body = string(pack);
    let with = |before: &[u8], after: &[u8]| [before, &body, after].concat();
    let (type_code, serialized) = match choice % 7 {
        0 => (16, body),
        1 => (17, body),
        2 => (20, body),
        3 => (23, body),
        4 => (25, with(&[1; 8], &[])),
        // One node, its id, then length, last id, first id, greatest deleted id, entries added, no groups.
        5 => (
            21,
            with(
                &[&[1, 16][..], &[7; 16]].concat(),
                &[1, 9, 9, 0, 0, 0, 0, 1, 0],
            ),
        ),
        _ => {
            let list = with(&[1, 2], &[]);
            assert_eq!(list_elements(18, &list), naive_listpack(pack));
            (18, list)
        }
    };
    check_snapshot(&snapshot_of(Lineage::Redis, type_code, &serialized));
});
