//! Runs a value's program over its bytes, a piece at a time, from wherever it stopped.
//!
//! All state is here and small, so a value that arrives byte by byte is read once, whatever its size.

use super::error::{Halt, Problem};
use super::grammar::{Op, Role};
use super::packed::Packing;
use super::wire::{Cursor, Text};

/// The most bytes that a piece that is wrong can ask for before that is known, if it is no string: a score as text.
const LONGEST_CLAIM_OF_DAMAGE: usize = 1 + 255;

/// Streams nest deepest: groups, their consumers, their pending entries.
pub(super) const MAX_LOOP_DEPTH: usize = 3;

/// A place within a program.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    program: &'static [Op],
    step: u8,
    depth: u8,
    /// Where each open loop starts, and how often it is still to run, the current time included.
    loops: [(u8, u64); MAX_LOOP_DEPTH],
    /// For the next [`Op::RepeatCounted`].
    counted: u64,
    /// Strings are not read but passed over, of which so many bytes are left of the current one.
    passes: bool,
    to_pass: usize,
}

/// A piece of a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Token<'a> {
    Text(Role, Text<'a>),
    Number(Role, u64),
    Id(Role, StreamId),
    Score(f64),
    /// A loop begins.
    Count(Role),
    Skipped,
    End,
}

/// The id of a stream entry: milliseconds and a sequence number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId {
    pub milliseconds: u64,
    pub sequence: u64,
}

impl StreamId {
    pub(super) fn from_key(key: [u8; 16]) -> Self {
        let both = u128::from_be_bytes(key);
        Self {
            milliseconds: (both >> 64) as u64,
            sequence: both as u64,
        }
    }
}

impl Default for Walk {
    fn default() -> Self {
        Self::new(&[Op::End])
    }
}

impl Walk {
    pub fn new(program: &'static [Op]) -> Self {
        Self {
            program,
            step: 0,
            depth: 0,
            loops: [(0, 0); MAX_LOOP_DEPTH],
            counted: 0,
            passes: false,
            to_pass: 0,
        }
    }

    /// As [`Walk::new`], for what is only passed over: strings may come in pieces, and give no token.
    pub fn passing(program: &'static [Op]) -> Self {
        Self {
            passes: true,
            ..Self::new(program)
        }
    }

    /// Sets how often the next [`Op::RepeatCounted`] repeats.
    pub fn set_count(&mut self, count: u64) {
        self.counted = count;
    }

    /// Reads the next piece. Nothing changes, `cursor` included, if it is not whole (of a string that is passed over, what
    /// there is of it is used up). Long: one arm for each step.
    #[inline]
    pub fn next<'a>(&mut self, cursor: &mut Cursor<'a>) -> Result<Token<'a>, Halt> {
        if self.to_pass > 0 {
            let there = cursor.rest().len().min(self.to_pass);
            cursor.take(there)?;
            self.to_pass -= there;
            cursor.take(self.to_pass.min(1))?;
            return Ok(Token::Skipped);
        }
        let mut ahead = *cursor;
        let mut step = self.step + 1;
        let mut to_pass = 0;
        let token = match self.program[usize::from(self.step)] {
            Op::Text(_) if self.passes => {
                to_pass = ahead.text_head()?.stored_bytes();
                Token::Skipped
            }
            Op::Text(role) => {
                let text = ahead.text()?;
                match role {
                    Role::TemplateFields => self.counted = listpack_count(text)?,
                    Role::TemplateField => self.counted += 1,
                    _ => {}
                }
                Token::Text(role, text)
            }
            Op::Number(role) => Token::Number(role, ahead.length()?),
            Op::StreamId(role) => Token::Id(
                role,
                StreamId {
                    milliseconds: ahead.length()?,
                    sequence: ahead.length()?,
                },
            ),
            Op::Bytes4(role) => Token::Number(role, u32::from_le_bytes(ahead.array()?).into()),
            Op::Bytes8(Role::Score) => {
                Token::Score(checked_score(f64::from_le_bytes(ahead.array()?))?)
            }
            Op::Bytes8(role) => Token::Number(role, ahead.u64_le()?),
            Op::Bytes16(role) => Token::Id(role, StreamId::from_key(ahead.array()?)),
            Op::TextScore => Token::Score(text_score(&mut ahead)?),
            Op::Repeat { role, after } => {
                let count = ahead.length()?;
                step = self.enter(count, step, after);
                Token::Count(role)
            }
            Op::RepeatCounted { after } => {
                step = self.enter(self.counted, step, after);
                Token::Skipped
            }
            Op::Counted => {
                self.counted = ahead.length()?;
                Token::Skipped
            }
            Op::Either { one } => {
                match ahead.length()? {
                    0 => {}
                    1 => step = one,
                    other => return Err(Problem::BadForm(other).into()),
                }
                Token::Skipped
            }
            Op::Goto(to) => {
                step = to;
                Token::Skipped
            }
            Op::ArrayValue => {
                to_pass = array_value(&mut ahead, self.passes)?;
                Token::Skipped
            }
            Op::Again => {
                let (start, left) = &mut self.loops[usize::from(self.depth - 1)];
                *left -= 1;
                if *left > 0 {
                    step = *start;
                } else {
                    self.depth -= 1;
                }
                Token::Skipped
            }
            Op::ModuleData => {
                let (more, left) = module_item(&mut ahead, self.passes)?;
                to_pass = left;
                if more {
                    step = self.step;
                }
                Token::Skipped
            }
            Op::End => {
                step = self.step;
                Token::End
            }
        };
        self.step = step;
        self.to_pass = to_pass;
        *cursor = ahead;
        Ok(token)
    }

    /// Begins a loop of `count` times over the steps from `first` on; gives the step to go on with.
    fn enter(&mut self, count: u64, first: u8, after: u8) -> u8 {
        if count == 0 {
            return after;
        }
        self.loops[usize::from(self.depth)] = (first, count);
        self.depth += 1;
        first
    }

    /// Runs to the end of the value and returns where that is within `bytes`; on
    /// [`Halt::More`] `at` tells how far it came, and a later call goes on from there.
    #[inline]
    pub fn run_to_end(&mut self, bytes: &[u8], at: &mut usize) -> Result<(), Halt> {
        let mut cursor = Cursor::new(bytes, *at);
        loop {
            match self.next(&mut cursor) {
                Ok(Token::End) => {
                    *at = cursor.at();
                    return Ok(());
                }
                Ok(_) => {}
                Err(halt) => {
                    *at = cursor.at();
                    return Err(halt);
                }
            }
        }
    }

    /// Up to where the next piece, which starts at `at` and is wrong, could ask for bytes before that is known.
    pub fn claim_of_damage(&self, bytes: &[u8], at: usize) -> u64 {
        let least = at + LONGEST_CLAIM_OF_DAMAGE;
        let mut cursor = Cursor::new(bytes, at);
        let end = match self.text_role().map(|_| cursor.text()) {
            // What is in a string is looked at once all of it is there.
            Some(Ok(_)) => least.max(cursor.at()),
            _ => least,
        };
        end as u64
    }

    /// What the next piece means, if it is a string.
    #[inline]
    pub fn text_role(&self) -> Option<Role> {
        match self.program[usize::from(self.step)] {
            Op::Text(role) => Some(role),
            _ => None,
        }
    }

    /// Goes on behind a string that somebody else reads.
    pub fn skip_text(&mut self) {
        debug_assert!(self.text_role().is_some());
        self.step += 1;
    }
}

/// Reads one tagged item, but of a string only the head if it `passes`. Whether more items follow, and how many bytes are
/// to be passed over.
fn module_item(cursor: &mut Cursor<'_>, passes: bool) -> Result<(bool, usize), Halt> {
    match cursor.length()? {
        0 => return Ok((false, 0)),
        1 | 2 => drop(cursor.length()?),
        3 => drop(cursor.array::<4>()?),
        4 => drop(cursor.array::<8>()?),
        5 => return Ok((true, text_or_head(cursor, passes)?)),
        other => return Err(Problem::BadModuleData(other).into()),
    }
    Ok((true, 0))
}

/// Reads one element of an array, as [`module_item`] does: `AR_RDB_TAG_...` of `src/sparsearray.h`, Redis 8.8, then what it tags.
fn array_value(cursor: &mut Cursor<'_>, passes: bool) -> Result<usize, Halt> {
    match cursor.length()? {
        0 | 3 => return text_or_head(cursor, passes),
        1 | 2 => drop(cursor.array::<8>()?),
        other => return Err(Problem::BadForm(other).into()),
    }
    Ok(0)
}

/// Reads a string, or only its head; gives how many bytes are left of it.
fn text_or_head(cursor: &mut Cursor<'_>, passes: bool) -> Result<usize, Halt> {
    if passes {
        return Ok(cursor.text_head()?.stored_bytes());
    }
    cursor.text()?;
    Ok(0)
}

/// How many elements a listpack holds.
fn listpack_count(text: Text<'_>) -> Result<u64, Problem> {
    let mut plain = Vec::new();
    let bytes = text.resolve(&mut plain)?;
    let mut at = Packing::Listpack.header_bytes();
    let mut count = 0;
    while Packing::Listpack.next(bytes, &mut at)?.is_some() {
        count += 1;
    }
    Ok(count)
}

fn text_score(cursor: &mut Cursor<'_>) -> Result<f64, Halt> {
    match cursor.u8()? {
        255 => Ok(f64::NEG_INFINITY),
        254 => Ok(f64::INFINITY),
        253 => Err(Problem::BadScore.into()),
        length => {
            let text = cursor.take(usize::from(length))?;
            parse_score(text).map_err(Halt::from)
        }
    }
}

/// A score from its text.
pub(super) fn parse_score(text: &[u8]) -> Result<f64, Problem> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(Problem::BadScore)
        .and_then(checked_score)
}

fn checked_score(score: f64) -> Result<f64, Problem> {
    if score.is_nan() {
        Err(Problem::BadScore)
    } else {
        Ok(score)
    }
}
