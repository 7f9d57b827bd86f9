//! The commands that write a value that `DUMP` answered.
//!
//! ```text
//! small, and of a type that the target knows    RESTORE key                                in the transaction
//! else                     parts of a snapshot: UNLINK t, RPUSH t ... RPUSH t    before it
//!                                               RENAME t key                               in the transaction
//! ```
//!
//! So the key is whole at every moment, and no single command takes the target long. What is left of a temporary key when
//! a mend is given up ends by itself.

use crate::command::rewrite::without_lost_deadlines;
use crate::limits;
use crate::rdb::{Decoder, Item, LeftOut, Options, Payload, Problem, TargetFormat};
use crate::resp::{Encoder, push_command};

const CUT_SHORT: Problem = Problem::BadPacked("an answer to DUMP");

/// A value to be written.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    pub key: &'a [u8],
    /// A name in the same slot that nobody uses.
    pub temporary: &'a [u8],
    pub payload: &'a [u8],
    /// The deadline to write: Unix time in milliseconds.
    pub expire_at_ms: Option<u64>,
    pub format: TargetFormat,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    /// Commands for the transaction, and their number. None if the target cannot take the value: the key goes then.
    pub commands: Vec<u8>,
    pub frames: usize,
    /// Why it cannot.
    pub problem: Option<Problem>,
    /// Deadlines of fields are lost, since the target keeps none.
    pub lost_deadlines: bool,
    /// What else cannot be written.
    pub left_out: Vec<LeftOut>,
}

impl Write<'_> {
    /// Gives what comes before the transaction to `part`, commands and their number at a time, and what belongs into it back.
    pub fn write(&self, mut part: impl FnMut(&[u8], usize)) -> Written {
        let mut written = Written::default();
        match self.parts(&mut written, &mut part) {
            Ok(()) => {}
            Err(problem) => written.problem = Some(problem),
        }
        if written.problem.is_some() {
            written.commands.clear();
            push_command(&mut written.commands, &[b"UNLINK", self.key]);
            written.frames = 1;
        }
        written
    }

    fn parts(
        &self,
        written: &mut Written,
        sink: &mut impl FnMut(&[u8], usize),
    ) -> Result<(), Problem> {
        let payload = Payload::split(self.payload).ok_or(CUT_SHORT)?;
        let snapshot = payload.as_snapshot(self.temporary);
        let mut decoder = Decoder::new(Options::new(self.format));
        let mut reader = decoder.read(&snapshot);
        let mut commands = Vec::new();
        loop {
            match reader.next().map_err(|error| error.problem)? {
                Item::End { .. } => return Ok(()),
                Item::NeedMore => return Err(CUT_SHORT),
                Item::Value(mut value) => {
                    value.key = self.key;
                    value.expire_at_ms = self.expire_at_ms;
                    written.frames += value.write_restore(&mut written.commands);
                }
                Item::Part(part) => {
                    let (part, lost) = without_lost_deadlines(part, self.format);
                    written.lost_deadlines |= lost;
                    commands.clear();
                    let frames = part.write_commands(&mut commands, &self.format)?;
                    sink(&commands, frames);
                    if part.is_first {
                        commands.clear();
                        let mut expire = Encoder::begin(&mut commands, 3);
                        expire.arg(b"EXPIRE").arg(self.temporary);
                        expire.number(limits::MEND_TEMPORARY_SECONDS);
                        drop(expire);
                        sink(&commands, 1);
                    }
                    if part.is_last {
                        self.rename(written);
                    }
                }
                Item::LeftOut(what) => written.left_out.push(what),
                Item::Unsupported(unsupported) => return Err(unsupported.problem),
                _ => {}
            }
        }
    }

    fn rename(&self, written: &mut Written) {
        let out = &mut written.commands;
        match self.expire_at_ms {
            Some(at_ms) => {
                let mut command = Encoder::begin(out, 3);
                command.arg(b"PEXPIREAT").arg(self.temporary).number(at_ms);
            }
            None => push_command(out, &[b"PERSIST", self.temporary]),
        }
        push_command(out, &[b"RENAME", self.temporary, self.key]);
        written.frames += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdb::Lineage::{Redis, Valkey};
    use crate::resp::scan;

    fn words(commands: &[u8]) -> Vec<String> {
        let mut rest = commands;
        let mut lines = Vec::new();
        while let Ok(Some(frame)) = scan(rest) {
            let words: Vec<String> = frame
                .args()
                .map(|arg| arg.escape_ascii().to_string())
                .collect();
            lines.push(words.join(" "));
            rest = &rest[frame.bytes().len()..];
        }
        lines
    }

    fn write(
        payload: &[u8],
        expire_at_ms: Option<u64>,
        format: TargetFormat,
    ) -> (Vec<String>, Written) {
        let write = Write {
            key: b"k",
            temporary: b"t",
            payload,
            expire_at_ms,
            format,
        };
        let mut before = Vec::new();
        let written = write.write(|commands, frames| {
            let lines = words(commands);
            assert_eq!(lines.len(), frames);
            before.extend(lines);
        });
        assert_eq!(words(&written.commands).len(), written.frames);
        (before, written)
    }

    fn payload(type_code: u8, value: &[u8], version: u16) -> Vec<u8> {
        let payload = Payload {
            type_code,
            value,
            version,
        };
        payload.with_version(version)
    }

    #[test]
    fn a_small_value_of_a_known_type_is_restored_with_a_version_that_the_target_takes() {
        let format = TargetFormat::of_server(Redis, 7, 0);
        let (before, written) = write(&payload(0, b"\x01v", 12), Some(77), format);
        assert!(before.is_empty());
        let restored = payload(0, b"\x01v", 10).escape_ascii().to_string();
        let expected = format!("RESTORE k 77 {restored} REPLACE ABSTTL");
        assert_eq!(words(&written.commands), [expected]);
    }

    #[test]
    fn a_type_that_the_target_does_not_know_is_built_beside_the_key() {
        // A set of `a` and `b`, as a listpack of 7.2.
        let listpack = b"\x0d\x0d\0\0\0\x02\0\x81a\x02\x81b\x02\xff";
        let format = TargetFormat::of_server(Redis, 7, 0);
        let (before, written) = write(&payload(20, listpack, 12), None, format);
        assert_eq!(before, ["UNLINK t", "SADD t a b", "EXPIRE t 3600"]);
        assert_eq!(words(&written.commands), ["PERSIST t", "RENAME t k"]);
        let (_, written) = write(&payload(20, listpack, 12), Some(9), format);
        assert_eq!(words(&written.commands), ["PEXPIREAT t 9", "RENAME t k"]);
        assert_eq!(written.problem, None);
    }

    #[test]
    fn a_large_value_is_built_in_parts() {
        let text = vec![b'x'; limits::VALUE_THRESHOLD_BYTES + 1];
        let mut value = vec![0x80];
        value.extend_from_slice(&(text.len() as u32).to_be_bytes());
        value.extend_from_slice(&text);
        let format = TargetFormat::of_server(Valkey, 8, 1);
        let (before, written) = write(&payload(0, &value, 11), None, format);
        assert!(before.len() > 2 && before[0].starts_with("SET t xxx"));
        assert_eq!(before[1], "EXPIRE t 3600");
        assert!(
            before[2..]
                .iter()
                .all(|line| line.starts_with("SETRANGE t "))
        );
        assert_eq!(written.frames, 2);
    }

    #[test]
    fn what_the_target_cannot_take_is_told_and_the_key_goes() {
        let format = TargetFormat::of_server(Redis, 7, 0);
        let module = b"\x81\0\0\0\0\0\0\0\0\x00";
        for broken in [
            &payload(7, module, 12)[..],
            b"short",
            &payload(0, b"\x05v", 9),
        ] {
            let (_, written) = write(broken, Some(5), format);
            assert!(written.problem.is_some());
            assert_eq!(words(&written.commands), ["UNLINK k"]);
        }
    }
}
