//! The scanners of RESP against naive twins, on bytes that are right, cut short, cut up, or changed.

mod naive;

use naive::{Log, ReplyEnd, naive_replies, naive_scan};
use proptest::prelude::*;
use slotstream::resp::{ReplyScanner, push_command, scan};

fn command() -> impl Strategy<Value = Vec<u8>> {
    let arg = prop::collection::vec(any::<u8>(), 0..40);
    prop::collection::vec(arg, 1..9).prop_map(|args| {
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let mut out = Vec::new();
        push_command(&mut out, &args);
        out
    })
}

/// A reply, its errors in order with how many elements of its array follow them, and whether the reply itself is an error.
type Reply = (Vec<u8>, Vec<(String, Option<usize>)>, bool);

fn reply() -> impl Strategy<Value = Reply> {
    let word = "[a-zA-Z0-9 ]{0,12}";
    let leaf = prop_oneof![
        3 => Just((b"+OK\r\n".to_vec(), Vec::new(), false)),
        1 => word.prop_map(|text| (format!("+{text}\r\n").into_bytes(), Vec::new(), false)),
        2 => any::<i64>().prop_map(|n| (format!(":{n}\r\n").into_bytes(), Vec::new(), false)),
        1 => (0..10i64).prop_map(|n| (format!(":{n}\r\n").into_bytes(), Vec::new(), false)),
        1 => Just((b"$-1\r\n".to_vec(), Vec::new(), false)),
        1 => Just((b"*-1\r\n".to_vec(), Vec::new(), false)),
        2 => prop::collection::vec(any::<u8>(), 0..30).prop_map(|bytes| {
            let mut out = format!("${}\r\n", bytes.len()).into_bytes();
            out.extend_from_slice(&bytes);
            out.extend_from_slice(b"\r\n");
            (out, Vec::new(), false)
        }),
        2 => word.prop_map(|text| {
            (format!("-{text}\r\n").into_bytes(), vec![(text, None)], true)
        }),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop::collection::vec(inner, 0..5).prop_map(|items| {
            let mut out = format!("*{}\r\n", items.len()).into_bytes();
            let mut errors = Vec::new();
            let count = items.len();
            for (at, (bytes, inside, _)) in items.into_iter().enumerate() {
                out.extend_from_slice(&bytes);
                errors.extend(
                    inside
                        .into_iter()
                        .map(|(text, _)| (text, Some(count - at - 1))),
                );
            }
            (out, errors, false)
        })
    })
}

proptest! {
    #[test]
    fn a_command_scans_as_the_naive_twin_reads_it(
        bytes in command(),
        tail in prop::collection::vec(any::<u8>(), 0..8),
        cut in any::<prop::sample::Index>(),
        change in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut bytes = bytes;
        bytes.extend_from_slice(&tail);
        if let Some((at, with)) = change {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        for end in [bytes.len(), cut.index(bytes.len() + 1)] {
            let part = &bytes[..end];
            let ours = scan(part).map_err(|_| ()).map(|frame| {
                frame.map(|frame| {
                    let args: Vec<Vec<u8>> = frame.args().map(<[u8]>::to_vec).collect();
                    for (at, arg) in args.iter().enumerate() {
                        assert_eq!(frame.arg(at), Some(arg.as_slice()));
                    }
                    (frame.bytes().len(), args)
                })
            });
            // A length with more digits than the twin reads is out of the bounds of one or the other.
            if let Ok(expected) = naive_scan(part) {
                prop_assert_eq!(ours, Ok(expected));
            } else {
                prop_assert!(!matches!(ours, Ok(Some(_))));
            }
        }
    }

    #[test]
    fn replies_are_counted_as_they_were_made_however_they_are_cut(
        replies in prop::collection::vec(reply(), 0..12),
        cuts in prop::collection::vec(1usize..40, 1..20),
    ) {
        let mut expected = Log::default();
        let mut bytes = Vec::new();
        for (reply, errors, is_error) in replies {
            bytes.extend_from_slice(&reply);
            for (text, behind) in errors {
                expected.failed.push((expected.succeeded, text, behind));
            }
            expected.succeeded += u64::from(!is_error);
        }
        let mut log = Log::default();
        let mut scanner = ReplyScanner::default();
        let mut rest = bytes.as_slice();
        for step in cuts.iter().cycle() {
            let (part, after) = rest.split_at((*step).min(rest.len()));
            scanner.feed(part, &mut log).unwrap();
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(scanner.at_boundary());
        prop_assert_eq!(log, expected);
    }

    #[test]
    fn no_bytes_make_the_scanners_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = scan(&bytes);
        let _ = ReplyScanner::default().feed(&bytes, &mut Log::default());
    }
}

/// Found by fuzzing: the quick way of reading a small integer took the line break for a digit.
#[test]
fn a_line_break_in_the_place_of_a_digit_ends_the_line_however_the_bytes_are_cut() {
    let bytes = b":\n\r\n";
    assert_eq!(naive_replies(bytes).1, ReplyEnd::Bad);
    for step in 1..=bytes.len() {
        let mut scanner = ReplyScanner::default();
        let mut pieces = bytes.chunks(step);
        assert!(pieces.any(|piece| scanner.feed(piece, &mut Log::default()).is_err()));
    }
}
