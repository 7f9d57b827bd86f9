//! Commands that only the source knows: of modules, or newer than this program.
//!
//! The engine asks the source once for `COMMAND INFO <verb>` and keeps what it learned here. Such a command is a
//! write on its keys, never replay-safe. When the answer is that its keys move with its arguments, the engine has
//! to ask `COMMAND GETKEYS` for each one.

use super::keys::KeySpec;
use super::rewrite::Watch;
use super::{Command, Kind, Origin, Safety};
use crate::limits;
use std::borrow::Cow;
use std::collections::HashMap;

/// What was learned of commands that the table lacks.
#[derive(Debug, Default)]
pub struct Learned {
    /// By lower-case verb.
    by_verb: HashMap<Box<[u8]>, Command>,
}

/// So many unknown commands that something else must be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "more than {} commands are unknown to this program",
    limits::MAX_LEARNED_COMMANDS
)]
pub struct LearnedFull;

impl Learned {
    /// Nothing learned yet.
    pub fn new() -> Learned {
        Learned::default()
    }

    /// What was learned of `verb`, in any casing.
    pub fn get(&self, verb: &[u8]) -> Option<&Command> {
        if verb.len() > limits::MAX_LEARNED_VERB_BYTES {
            return None;
        }
        let mut name = [0u8; limits::MAX_LEARNED_VERB_BYTES];
        let name = &mut name[..verb.len()];
        name.copy_from_slice(verb);
        name.make_ascii_lowercase();
        self.by_verb.get(&*name)
    }

    /// Remembers where the keys of `verb` stand; a later answer replaces an earlier one.
    ///
    /// # Errors
    /// When too many commands were learned, or the verb is too long to be one.
    pub fn learn(&mut self, verb: &[u8], keys: KeySpec) -> Result<&Command, LearnedFull> {
        let name = verb.to_ascii_lowercase().into_boxed_slice();
        let known = self.by_verb.contains_key(&name);
        let full = !known && self.by_verb.len() >= limits::MAX_LEARNED_COMMANDS;
        if full || verb.len() > limits::MAX_LEARNED_VERB_BYTES {
            return Err(LearnedFull);
        }
        let command = Command {
            name: Cow::Owned(name.escape_ascii().to_string()),
            kind: Kind::Data,
            keys,
            safety: Safety::UNSAFE,
            watch: Watch::NEVER,
            origin: Origin::Lost,
            subcommands: &[],
        };
        Ok(self.by_verb.entry(name).insert_entry(command).into_mut())
    }

    /// Number of commands learned.
    pub fn len(&self) -> usize {
        self.by_verb.len()
    }

    /// Whether nothing was learned.
    pub fn is_empty(&self) -> bool {
        self.by_verb.is_empty()
    }
}

impl KeySpec {
    /// What the fields of a `COMMAND INFO` reply say: elements 3, 4 and 5 (first key, last key, step), and whether
    /// the flags (element 2) hold `movablekeys`. `last` counts from the end when it is negative.
    ///
    /// Numbers that describe no range of keys leave the question to the source.
    pub fn from_command_info(first: i64, last: i64, step: i64, movable: bool) -> KeySpec {
        if movable {
            return KeySpec::AskSource;
        }
        match (u8::try_from(first), i8::try_from(last), u8::try_from(step)) {
            (Ok(0), _, _) => KeySpec::None,
            (Ok(1), Ok(1), _) => KeySpec::One,
            (Ok(first), Ok(last), Ok(step)) if step > 0 && last != 0 => {
                KeySpec::Range { first, last, step }
            }
            _ => KeySpec::AskSource,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::with_frame;
    use super::super::{keys, one_slot};
    use super::*;

    #[test]
    fn command_info_becomes_places_of_keys() {
        let from = KeySpec::from_command_info;
        assert_eq!(from(0, 0, 0, false), KeySpec::None);
        assert_eq!(from(1, 1, 1, false), KeySpec::One);
        assert_eq!(
            from(1, -1, 2, false),
            KeySpec::Range {
                first: 1,
                last: -1,
                step: 2
            }
        );
        assert_eq!(
            from(2, -2, 1, false),
            KeySpec::Range {
                first: 2,
                last: -2,
                step: 1
            }
        );
        assert_eq!(from(1, 1, 1, true), KeySpec::AskSource);
        for (first, last, step) in [
            (-1, 1, 1),
            (1, 2, 0),
            (2, 0, 1),
            (1, 1000, 1),
            (i64::MAX, 1, 1),
        ] {
            assert_eq!(from(first, last, step, false), KeySpec::AskSource);
        }
    }

    #[test]
    fn a_learned_command_is_found_in_any_casing_and_routed() {
        let mut learned = Learned::new();
        assert!(learned.get(b"JSON.SET").is_none());
        learned.learn(b"JSON.Set", KeySpec::One).unwrap();
        with_frame("jSON.SET doc $ 1", |frame| {
            let command = learned.get(frame.verb()).unwrap();
            assert_eq!(command.name, "json.set");
            assert_eq!(keys(frame, command).unwrap().collect::<Vec<_>>(), [b"doc"]);
            assert!(!super::super::replay_safe(frame, command));
        });
        learned.learn(b"json.set", KeySpec::AskSource).unwrap();
        assert_eq!(learned.len(), 1);
        with_frame("JSON.SET doc $ 1", |frame| {
            let command = learned.get(frame.verb()).unwrap();
            let error = one_slot(frame, command).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the keys of JSON.SET (4 arguments) can only be told by the source"
            );
        });
    }

    #[test]
    fn what_is_learned_is_bounded() {
        let mut learned = Learned::new();
        for number in 0..limits::MAX_LEARNED_COMMANDS {
            learned
                .learn(format!("x{number}").as_bytes(), KeySpec::One)
                .unwrap();
        }
        assert!(matches!(
            learned.learn(b"more", KeySpec::One),
            Err(LearnedFull)
        ));
        assert!(learned.learn(b"X1", KeySpec::None).is_ok(), "known already");
        let long = vec![b'a'; limits::MAX_LEARNED_VERB_BYTES + 1];
        assert!(Learned::new().learn(&long, KeySpec::One).is_err());
        assert!(learned.get(&long).is_none());
    }
}
