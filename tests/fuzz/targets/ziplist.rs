//! The packed encodings of old: ziplists, intsets, zipmaps.
//!
//! The first byte chooses which, the others are the packed string.

#![no_main]

use libfuzzer_sys::fuzz_target;
use slotstream::rdb::Lineage;
use slotstream_fuzz::{check_snapshot, snapshot_of, string};

fuzz_target!(|data: &[u8]| {
    let Some((choice, pack)) = data.split_first() else {
        return;
    };
    let body = string(pack);
    let (type_code, serialized) = match choice % 6 {
        0 => (10, body),
        1 => (12, body),
        2 => (13, body),
        3 => (14, [&[1][..], &body].concat()),
        4 => (11, body),
        _ => (9, body),
    };
    check_snapshot(&snapshot_of(Lineage::Redis, type_code, &serialized));
});
