//! The scanners of RESP against naive twins, on bytes that are right, cut short, cut up, or changed.

use proptest::prelude::*;
use slotstream::resp::{ReplyScanner, ReplySink, push_command, scan};

/// Length and arguments of a command.
type Command = (usize, Vec<Vec<u8>>);

/// The naive twin of `scan`: a line, a length, the bytes, one after the other. `Ok(None)`: cut short.
fn naive_scan(bytes: &[u8]) -> Result<Option<Command>, ()> {
    let mut rest = bytes;
    let Some(argc) = naive_number(&mut rest, b'*')? else {
        return Ok(None);
    };
    let mut args = Vec::new();
    for _ in 0..argc {
        let Some(length) = naive_number(&mut rest, b'$')? else {
            return Ok(None);
        };
        let tail = &rest[length.min(rest.len())..];
        if !b"\r\n".starts_with(&tail[..tail.len().min(2)]) {
            return Err(());
        }
        if tail.len() < 2 {
            return Ok(None);
        }
        args.push(rest[..length].to_vec());
        rest = &tail[2..];
    }
    if argc == 0 {
        return Err(());
    }
    Ok(Some((bytes.len() - rest.len(), args)))
}

fn naive_number(rest: &mut &[u8], mark: u8) -> Result<Option<usize>, ()> {
    let Some((&first, tail)) = rest.split_first() else {
        return Ok(None);
    };
    if first != mark {
        return Err(());
    }
    let digits = tail.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, after) = tail.split_at(digits);
    if after.is_empty() && digits < 8 {
        return Ok(None);
    }
    if number.is_empty() || digits > 7 || (number[0] == b'0' && digits > 1) {
        return Err(());
    }
    if !b"\r\n".starts_with(&after[..after.len().min(2)]) {
        return Err(());
    }
    if after.len() < 2 {
        return Ok(None);
    }
    *rest = &after[2..];
    let text = std::str::from_utf8(number).map_err(|_| ())?;
    text.parse().map(Some).map_err(|_| ())
}

fn command() -> impl Strategy<Value = Vec<u8>> {
    let arg = prop::collection::vec(any::<u8>(), 0..40);
    prop::collection::vec(arg, 1..9).prop_map(|args| {
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let mut out = Vec::new();
        push_command(&mut out, &args);
        out
    })
}

/// A reply, its errors in order with whether they are nested, and whether the reply itself is an error.
type Reply = (Vec<u8>, Vec<(String, bool)>, bool);

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
            (format!("-{text}\r\n").into_bytes(), vec![(text, false)], true)
        }),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop::collection::vec(inner, 0..5).prop_map(|items| {
            let mut out = format!("*{}\r\n", items.len()).into_bytes();
            let mut errors = Vec::new();
            for (bytes, inside, _) in items {
                out.extend_from_slice(&bytes);
                errors.extend(inside.into_iter().map(|(text, _)| (text, true)));
            }
            (out, errors, false)
        })
    })
}

/// What a scanner told: replies that are no errors so far, then each error.
#[derive(Debug, Default, PartialEq)]
struct Log {
    succeeded: u64,
    failed: Vec<(u64, String, bool)>,
}

impl ReplySink for Log {
    fn succeeded(&mut self, count: u64) {
        self.succeeded += count;
    }
    fn failed(&mut self, text: &[u8], nested: bool) {
        let text = String::from_utf8_lossy(text).into_owned();
        self.failed.push((self.succeeded, text, nested));
    }
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
            for (text, nested) in errors {
                expected.failed.push((expected.succeeded, text, nested));
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
