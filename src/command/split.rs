//! One command over several slots as one command per slot.
//!
//! A single server may send keys of many slots in one command; a cluster refuses that. Where a command does the
//! same to each of its keys, one command per slot does the same to all, only not at one instant. Any other
//! command over several slots cannot be applied to a cluster.
//!
//! ```text
//! MSET a 1 b 2 c 3    slot(a) = slot(c)    ->    MSET a 1 c 3    MSET b 2
//! ```
//!
//! The verb keeps its casing, pairs their order within a slot, options their place at the end.

use super::keys::{KeyError, Positions};
use super::{Command, describe};
use crate::resp::Frame;
use crate::slot::{Slot, slot_of};

/// Why a command cannot be split.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    #[error(
        "{command} has keys in several slots, and a cluster cannot apply it to all of them as one step; \
         give the keys a common hash tag, or replicate into a single server"
    )]
    NotSplittable { command: String },
    #[error(transparent)]
    Keys(#[from] KeyError),
}

/// How a command repeats itself for its keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// `VERB key key ...`
    Keys,
    /// `VERB key value key value ...`
    Pairs,
    /// `VERB count key value ... options`
    CountedPairs,
}

/// Hands `sink` one whole command for each slot that `frame` has keys in, in rising order of slots; the frame's own
/// bytes when that is one slot.
///
/// # Errors
/// When the command is not the sum of what it does to each key, or does not have the keys that it must have.
pub fn split_by_slot(
    frame: &Frame<'_>,
    command: &Command,
    mut sink: impl FnMut(Slot, &[u8]),
) -> Result<(), SplitError> {
    let positions = command.keys.positions(frame)?;
    let args: Vec<&[u8]> = frame.args().collect();
    let mut keys: Vec<(Slot, usize)> = positions.map(|at| (slot_of(args[at]), at)).collect();
    // Stable: when a key comes twice, its last value must stay the last.
    keys.sort_by_key(|&(slot, _)| slot);
    let (Some(&(first, _)), Some(&(last, _))) = (keys.first(), keys.last()) else {
        return Err(not_splittable(frame));
    };
    if first == last {
        sink(first, frame.bytes());
        return Ok(());
    }
    let shape = shape(frame, command).ok_or_else(|| not_splittable(frame))?;
    let options = &args[options_at(&args, shape, positions)..];
    let mut bytes = Vec::with_capacity(frame.bytes().len());
    for group in keys.chunk_by(|(left, _), (right, _)| left == right) {
        bytes.clear();
        write_part(&mut bytes, &args, group, options, shape);
        sink(group[0].0, &bytes);
    }
    Ok(())
}

#[cold]
fn not_splittable(frame: &Frame<'_>) -> SplitError {
    SplitError::NotSplittable {
        command: describe(frame),
    }
}

fn shape(frame: &Frame<'_>, command: &Command) -> Option<Shape> {
    match command.name.as_ref() {
        "del" | "unlink" | "touch" => Some(Shape::Keys),
        "mset" if frame.argc() % 2 == 1 => Some(Shape::Pairs),
        // With a condition over all keys it is not the sum of its parts.
        "msetex" if super::safety::msetex_is_unconditional(frame) => Some(Shape::CountedPairs),
        _ => None,
    }
}

fn options_at(args: &[&[u8]], shape: Shape, positions: Positions) -> usize {
    match shape {
        Shape::Keys | Shape::Pairs => args.len(),
        Shape::CountedPairs => 2 + 2 * positions.len(),
    }
}

fn write_part(
    bytes: &mut Vec<u8>,
    args: &[&[u8]],
    group: &[(Slot, usize)],
    options: &[&[u8]],
    shape: Shape,
) {
    let count = group.len().to_string();
    let per_key = if shape == Shape::Keys { 1 } else { 2 };
    let counted = usize::from(shape == Shape::CountedPairs);
    let argc = 1 + counted + per_key * group.len() + options.len();
    bytes.extend_from_slice(format!("*{argc}\r\n").as_bytes());
    write_arg(bytes, args[0]);
    if counted == 1 {
        write_arg(bytes, count.as_bytes());
    }
    for &(_, at) in group {
        for arg in &args[at..at + per_key] {
            write_arg(bytes, arg);
        }
    }
    for arg in options {
        write_arg(bytes, arg);
    }
}

fn write_arg(bytes: &mut Vec<u8>, arg: &[u8]) {
    bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
    bytes.extend_from_slice(arg);
    bytes.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::super::testing::{encode, with_frame};
    use super::super::{find, lookup};
    use super::*;
    use crate::resp::scan;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn parts(line: &str) -> Result<Vec<(Slot, String)>, SplitError> {
        with_frame(line, |frame| {
            let mut parts = Vec::new();
            split_by_slot(frame, find(frame).unwrap(), |slot, bytes| {
                let part = scan(bytes).unwrap().unwrap();
                assert_eq!(part.bytes().len(), bytes.len());
                let words: Vec<String> = part
                    .args()
                    .map(|arg| String::from_utf8_lossy(arg).into_owned())
                    .collect();
                parts.push((slot, words.join(" ")));
            })?;
            Ok(parts)
        })
    }

    #[test]
    fn sums_over_keys_are_split_with_order_and_options_kept() {
        // foo is in slot 12182, bar in 5061.
        let split = |line: &str| {
            let found = parts(line).unwrap();
            assert!(
                found.iter().map(|part| part.0).eq([5061, 12182]),
                "{found:?}"
            );
            [found[0].1.clone(), found[1].1.clone()]
        };
        assert_eq!(split("dEL foo bar {foo}2"), ["dEL bar", "dEL foo {foo}2"]);
        assert_eq!(split("UNLINK bar foo"), ["UNLINK bar", "UNLINK foo"]);
        assert_eq!(
            split("MSET foo 1 bar 2 foo 3"),
            ["MSET bar 2", "MSET foo 1 foo 3"]
        );
        assert_eq!(
            split("MSETEX 3 foo 1 bar 2 {foo}x 3 PXAT 99"),
            ["MSETEX 1 bar 2 PXAT 99", "MSETEX 2 foo 1 {foo}x 3 PXAT 99"]
        );
        assert_eq!(parts("MSET foo 1").unwrap(), [(12182, "MSET foo 1".into())]);
        assert_eq!(parts("SINTERSTORE {a}1 {a}2").unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_sum_over_its_keys_is_refused_by_name() {
        for line in [
            "RENAME foo bar",
            "MSETNX foo 1 bar 2",
            "MSETEX 2 foo 1 bar 2 NX",
            "MSETEX 2 foo 1 bar 2 EX 5 XX",
            "MSET foo 1 bar",
            "PFCOUNT foo bar",
            "SUNIONSTORE foo bar",
            "EVAL s 0",
        ] {
            let error = parts(line).unwrap_err();
            let verb = line.split(' ').next().unwrap();
            assert!(matches!(error, SplitError::NotSplittable { .. }), "{line}");
            assert!(error.to_string().starts_with(verb), "{error}");
        }
        assert!(matches!(parts("DEL"), Err(SplitError::Keys(_))));
    }

    proptest! {
        #[test]
        fn applying_the_parts_of_an_mset_equals_applying_it(
            pairs in prop::collection::vec(("[a-e]{1,2}", any::<u8>()), 1..20),
        ) {
            let mut args = vec![b"MSET".to_vec()];
            for (key, value) in &pairs {
                args.push(key.clone().into_bytes());
                args.push(vec![*value]);
            }
            let bytes = encode(&args);
            let frame = scan(&bytes).unwrap().unwrap();
            let mut applied = BTreeMap::new();
            let mut slots = Vec::new();
            split_by_slot(&frame, lookup(b"mset").unwrap(), |slot, bytes| {
                let part: Vec<Vec<u8>> = scan(bytes).unwrap().unwrap().args().map(<[u8]>::to_vec).collect();
                assert_eq!(part[0], b"MSET");
                for pair in part[1..].chunks(2) {
                    assert_eq!(slot_of(&pair[0]), slot);
                    applied.insert(pair[0].clone(), pair[1].clone());
                }
                slots.push(slot);
            }).unwrap();
            let expected: BTreeMap<Vec<u8>, Vec<u8>> =
                pairs.into_iter().map(|(key, value)| (key.into_bytes(), vec![value])).collect();
            prop_assert_eq!(applied, expected);
            prop_assert!(slots.is_sorted_by(|left, right| left < right));
        }
    }
}
