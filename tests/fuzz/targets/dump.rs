//! What DUMP answers: a type, a value, a footer. It is read as a value of a snapshot and written as a payload again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use slotstream::rdb::{Decoder, Item, Lineage, crc64};
use slotstream_fuzz::{by_elements, check_snapshot, decode, snapshot_of, whole};

const FOOTER_BYTES: usize = 10;

fuzz_target!(|payload: &[u8]| {
    let Some(length) = payload.len().checked_sub(FOOTER_BYTES).filter(|l| *l > 0) else {
        return;
    };
    let (type_code, serialized) = (payload[0], &payload[1..length]);
    // From here on a snapshot has opcodes, which no payload has.
    if type_code >= 242 {
        return;
    }
    for lineage in [Lineage::Redis, Lineage::Valkey] {
        let snapshot = snapshot_of(lineage, type_code, serialized);
        check_snapshot(&snapshot);
        let is_sound = decode(&snapshot, by_elements(), || snapshot.len()).end == Ok(true);
        let mut decoder = Decoder::new(whole(lineage, 1 << 20));
        let mut reader = decoder.read(&snapshot);
        assert!(matches!(reader.next(), Ok(Item::Header { .. })));
        match reader.next() {
            // It may end before the footer; the rest is then opcodes and other keys.
            Ok(Item::Value(value)) => {
                assert!(snapshot[12..].starts_with(value.serialized));
                let mut again = Vec::new();
                value.write_payload(&mut again);
                let (body, checksum) = again.split_at(again.len() - 8);
                assert_eq!(checksum, crc64(0, body).to_le_bytes());
                assert_eq!(body[0], type_code);
                assert_eq!(&body[1..body.len() - 2], value.serialized);
            }
            // What goes by elements as well must at least pass whole, where the target knows the type.
            Ok(Item::NeedMore) | Err(_) => assert!(!is_sound),
            Ok(_) => {}
        }
    }
});
