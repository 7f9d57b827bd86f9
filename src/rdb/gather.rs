//! Elements that are too long for one command: sent in pieces to a key of their own, then put in their place.
//!
//! ```text
//! EVAL piece 1 slotstream:long:{tag}:0  0       bytes       | the bytes of the element, 64 KiB at a time
//! EVAL piece 1 slotstream:long:{tag}:0  65536   bytes       |
//! EVAL place 2 key slotstream:long:{tag}:0  ...             its command, with the gathered string as an argument
//! ```
//!
//! No command adds to an element of a list, or to a field of a hash: so the element is gathered as a string of its own, in the
//! slot of its key, and a script makes the command that a client would have sent whole. Both scripts may run again, from any
//! place on, as the other commands of a copy: a piece is added only where the string ends, and strings of which one is not
//! whole (as it was placed already, and is gone) are only removed. What a copy that breaks leaves is overwritten by the next one.
//!
//! The target copies the element twice more to place it, and does nothing else meanwhile: about 3 ms per MB (0.29 s for an element
//! of 100 MB on Redis 7.0).

use super::command::CommandWriter;
use super::part::{Content, NO_DEADLINE, Part, StreamPiece};
use super::{Problem, TargetFormat};
use crate::slot::{shortest_tag, slot_of};

/// A string of a part that was sent in pieces before. In the part's own texts it is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gathered {
    /// Its number among the texts of the part.
    pub text: usize,
    /// Which of the element's gathered strings it is, from 0.
    pub number: usize,
    /// Its length in bytes.
    pub bytes: u64,
}

const PIECE: &[u8] = b"local at = tonumber(ARGV[1]) \
if at == 0 then redis.call('SET', KEYS[1], ARGV[2]) \
elseif redis.call('STRLEN', KEYS[1]) == at then redis.call('APPEND', KEYS[1], ARGV[2]) end return 1";

/// Arguments: how many elements a list has before (else nothing); then commands, each argument after `=`, or `@number:length` for a
/// gathered string, and `|` after each command.
const PLACE: &[u8] = b"local texts, is_whole = {}, true \
for i = 2, #ARGV do local n, length = string.match(ARGV[i], '^@(%d+):(%d+)$') \
if n and not texts[n] then local text = redis.call('GET', KEYS[n + 2]) \
if text and #text == tonumber(length) then texts[n] = text else is_whole = false end end end \
for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end \
if not is_whole then return 0 end \
if ARGV[1] == '0' then redis.call('DEL', KEYS[1]) \
elseif ARGV[1] ~= '' then redis.call('LTRIM', KEYS[1], 0, tonumber(ARGV[1]) - 1) end \
local command = {} \
for i = 2, #ARGV do local arg = ARGV[i] \
if arg == '|' then redis.call(unpack(command)) command = {} \
elseif string.sub(arg, 1, 1) == '=' then command[#command + 1] = string.sub(arg, 2) \
else command[#command + 1] = texts[string.match(arg, '^@(%d+)')] end end return 1";

/// Where string `number` of an element of `key` is gathered: a key of the same slot.
pub(super) fn gathering_key(key: &[u8], number: usize) -> Vec<u8> {
    let tag = shortest_tag(slot_of(key));
    format!("slotstream:long:{{{tag}}}:{number}").into_bytes()
}

/// Appends the command that adds a piece.
pub(super) fn write_piece(out: &mut Vec<u8>, key: &[u8], number: usize, offset: u64, bytes: &[u8]) {
    CommandWriter::new(out, 6)
        .arg(b"EVAL")
        .arg(PIECE)
        .arg(b"1")
        .arg(&gathering_key(key, number))
        .number(offset)
        .arg(bytes);
}

/// The arguments of [`PLACE`].
struct Arguments<'a> {
    gathered: &'a [Gathered],
    list: Vec<Vec<u8>>,
    /// The number of the next text of the part.
    text: usize,
}

impl Arguments<'_> {
    fn literal(&mut self, argument: &[u8]) -> &mut Self {
        self.list.push([b"=", argument].concat());
        self
    }

    /// The part's next text, which is `text` unless it was gathered.
    fn text(&mut self, text: &[u8]) {
        self.numbered_text(self.text, text);
        self.text += 1;
    }

    fn numbered_text(&mut self, number: usize, text: &[u8]) {
        match self
            .gathered
            .iter()
            .find(|gathered| gathered.text == number)
        {
            Some(found) => {
                let argument = format!("@{}:{}", found.number, found.bytes);
                self.list.push(argument.into_bytes());
            }
            None => {
                self.literal(text);
            }
        }
    }

    fn end_command(&mut self) {
        self.list.push(b"|".to_vec());
    }
}

/// Appends the command that puts the one element of `part` in its place. Long: one arm for each kind of value.
pub(super) fn write_element(
    out: &mut Vec<u8>,
    part: &Part<'_>,
    target: &TargetFormat,
) -> Result<(), Problem> {
    let mut arguments = Arguments {
        gathered: part.gathered,
        list: Vec::new(),
        text: 0,
    };
    let mut before = String::new();
    match part.content {
        // Never gathered: strings are written in place.
        Content::String { .. } | Content::Piece { .. } => return Ok(()),
        Content::List {
            before: count,
            items,
        } => {
            before = count.to_string();
            arguments.literal(b"RPUSH").literal(part.key);
            items.iter().for_each(|item| arguments.text(item));
        }
        Content::Set { members } => {
            arguments.literal(b"SADD").literal(part.key);
            members.iter().for_each(|member| arguments.text(member));
        }
        Content::SortedSet { members, scores } => {
            arguments.literal(b"ZADD").literal(part.key);
            for (member, score) in members.iter().zip(scores) {
                arguments.literal(super::command::score_text(*score).as_bytes());
                arguments.text(member);
            }
        }
        Content::Hash { pairs, deadlines } => {
            arguments.literal(b"HSET").literal(part.key);
            pairs.iter().for_each(|text| arguments.text(text));
            for (index, deadline) in deadlines.iter().enumerate() {
                if *deadline == NO_DEADLINE {
                    continue;
                }
                if !target.knows_field_expiry() {
                    return Err(Problem::TargetLacksFieldExpiry);
                }
                arguments.end_command();
                arguments.literal(b"HPEXPIREAT").literal(part.key);
                arguments.literal(deadline.to_string().as_bytes());
                arguments.literal(b"FIELDS").literal(b"1");
                arguments.numbered_text(2 * index, pairs.get(2 * index).unwrap_or_default());
            }
        }
        Content::Stream(pieces) => {
            for piece in pieces.iter() {
                if let StreamPiece::Entry { id, pairs } = piece {
                    let id = format!("{}-{}", id.milliseconds, id.sequence);
                    arguments.literal(b"XADD").literal(part.key);
                    arguments.literal(id.as_bytes());
                    pairs.iter().for_each(|text| arguments.text(text));
                }
            }
        }
    }
    arguments.end_command();
    let keys = part.gathered.len();
    let mut command = CommandWriter::new(out, 3 + 1 + keys + 1 + arguments.list.len());
    command
        .arg(b"EVAL")
        .arg(PLACE)
        .number(1 + keys)
        .arg(part.key);
    for number in 0..keys {
        command.arg(&gathering_key(part.key, number));
    }
    command.arg(before.as_bytes());
    for argument in &arguments.list {
        command.arg(argument);
    }
    Ok(())
}
