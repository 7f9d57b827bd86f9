//! A string that is read while it arrives, stored plain or compressed, through a window on its plain bytes.
//!
//! ```text
//! window  [ consumed, kept for LZF | rest: decompressed, not consumed |  ...  to come from the input
//!                                  ^ at
//! ```
//!
//! The window holds what was asked for and a little more, whatever the length of the string.

use super::error::{Halt, Problem};
use super::lzf;
use super::wire::{Cursor, Text, TextHead};
use crate::limits;

#[derive(Default)]
pub(super) struct Flow {
    stored: Stored,
    window: Vec<u8>,
    at: usize,
}

/// What is still to come from the input.
#[derive(Default, Clone, Copy)]
enum Stored {
    #[default]
    Nothing,
    Raw {
        left: usize,
    },
    Lzf {
        packed_left: usize,
        plain_left: usize,
    },
}

impl Flow {
    /// Begins the string of which `head` was read. Integers are no strings that need to flow.
    ///
    /// # Errors
    /// When something is said to be compressed to nothing, or nothing to something: no instruction writes no byte.
    pub fn open(&mut self, head: TextHead) -> Result<(), Problem> {
        self.clear();
        self.stored = match head {
            TextHead::Lzf { packed, plain } if (packed == 0) != (plain == 0) => {
                return Err(Problem::BadCompression);
            }
            TextHead::Raw { bytes } | TextHead::Integer { bytes } => Stored::Raw { left: bytes },
            TextHead::Lzf { packed, plain } => Stored::Lzf {
                packed_left: packed,
                plain_left: plain,
            },
        };
        Ok(())
    }

    /// Begins a string that is there as a whole.
    pub fn open_whole(&mut self, text: Text<'_>) -> Result<(), Problem> {
        self.clear();
        text.append_to(&mut self.window)
    }

    fn clear(&mut self) {
        self.stored = Stored::Nothing;
        self.window.clear();
        self.window.shrink_to(4 * limits::PART_BYTES);
        self.at = 0;
    }

    /// What can be read now.
    #[inline]
    pub fn rest(&self) -> &[u8] {
        &self.window[self.at..]
    }

    /// Goes on behind the first `count` bytes of the rest.
    #[inline]
    pub fn skip(&mut self, count: usize) {
        self.at += count;
        debug_assert!(self.at <= self.window.len());
    }

    /// How many plain bytes are not consumed, those to come included.
    #[inline]
    pub fn left(&self) -> usize {
        let to_come = match self.stored {
            Stored::Nothing => 0,
            Stored::Raw { left } => left,
            Stored::Lzf { plain_left, .. } => plain_left,
        };
        self.window.len() - self.at + to_come
    }

    /// Reads on until `wanted` bytes are there, or all that are left; takes a good deal more where the input has it.
    pub fn fill(&mut self, cursor: &mut Cursor<'_>, wanted: usize) -> Result<(), Halt> {
        let wanted = wanted.min(self.left());
        if self.rest().len() >= wanted {
            return Ok(());
        }
        if self.at >= limits::PART_BYTES {
            self.window.drain(..self.at - lzf::WINDOW_BYTES);
            self.at = lzf::WINDOW_BYTES;
        }
        let goal = wanted.max(limits::PART_BYTES).min(self.left());
        match self.stored {
            Stored::Nothing => {}
            Stored::Raw { left } => {
                let there = cursor.rest().len().min(goal - self.rest().len());
                self.window.extend_from_slice(cursor.take(there)?);
                self.stored = Stored::Raw { left: left - there };
            }
            Stored::Lzf {
                packed_left,
                plain_left,
            } => self.decompress(cursor, goal, packed_left, plain_left)?,
        }
        if self.rest().len() < wanted {
            return Err(Halt::More {
                needed: cursor.at() as u64 + 1,
            });
        }
        Ok(())
    }

    fn decompress(
        &mut self,
        cursor: &mut Cursor<'_>,
        goal: usize,
        packed_left: usize,
        plain_left: usize,
    ) -> Result<(), Halt> {
        let there = cursor.rest();
        let packed = &there[..there.len().min(packed_left)];
        let had = self.window.len();
        let used = lzf::decompress_some(packed, &mut self.window, self.at + goal)?;
        cursor.take(used)?;
        let is_all_there = packed.len() == packed_left;
        let packed_left = packed_left - used;
        let plain_left = plain_left.checked_sub(self.window.len() - had);
        let plain_left = plain_left.ok_or(Problem::BadCompression)?;
        let is_stuck = is_all_there && self.rest().len() < goal && plain_left > 0;
        if (packed_left == 0) != (plain_left == 0) || is_stuck {
            return Err(Problem::BadCompression.into());
        }
        self.stored = Stored::Lzf {
            packed_left,
            plain_left,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_not_compressed() {
        for (packed, plain, is_sound) in [(15, 0, false), (0, 15, false), (0, 0, true)] {
            let opened = Flow::default().open(TextHead::Lzf { packed, plain });
            assert_eq!(opened.is_ok(), is_sound, "{packed} to {plain}");
        }
    }
}
