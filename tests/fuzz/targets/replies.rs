//! The scanner of replies against its naive twin, however the bytes are cut; and the reader of whole replies.

#![no_main]

use libfuzzer_sys::fuzz_target;
use slotstream::resp::{ErrorKind, ReplyScanner, parse_value};
use slotstream_fuzz::dice;
use slotstream_fuzz::naive::{Log, ReplyEnd, naive_replies};

fn scanned(data: &[u8], mut next_length: impl FnMut() -> usize) -> (Log, ReplyEnd) {
    let (mut log, mut scanner, mut rest) = (Log::default(), ReplyScanner::default(), data);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(next_length().clamp(1, rest.len()));
        if scanner.feed(piece, &mut log).is_err() {
            return (log, ReplyEnd::Bad);
        }
        rest = after;
    }
    let end = if scanner.at_boundary() {
        ReplyEnd::Boundary
    } else {
        ReplyEnd::Open
    };
    (log, end)
}

fuzz_target!(|data: &[u8]| {
    let expected = naive_replies(data);
    let mut dice = dice(data);
    let longest = 1 + dice.below(20);
    for (log, end) in [
        scanned(data, || data.len()),
        scanned(data, || 1 + dice.below(longest)),
    ] {
        assert_eq!(end, expected.1);
        // Of a connection that is given up at once, what was counted just before does not matter.
        if end != ReplyEnd::Bad {
            assert_eq!(log, expected.0);
        }
    }
    for (_, text, _) in &expected.0.failed {
        let _ = ErrorKind::of(text.as_bytes());
    }
    if let Some((_, length)) = parse_value(data) {
        assert!(length <= data.len());
        assert!(parse_value(&data[..length - 1]).is_none());
    }
});
