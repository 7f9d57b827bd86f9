//! The reader of snapshots: any bytes, cut into any pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| slotstream_fuzz::check_snapshot(data));
