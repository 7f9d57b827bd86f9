//! Reads packed strings (listpack, ziplist, intset, zipmap) element by element, as they flow in.
//!
//! What is kept between two elements is small: what the next one means, and of a stream's node the names at its head.

use super::batch::Batch;
use super::error::Problem;
use super::grammar::Role;
use super::packed::{Element, LongString, Packing};
use super::part::NO_DEADLINE;
use super::stream::{NodeReader, Wants};
use super::template::{TemplateState, Templates};
use super::walk::parse_score;

/// A packed string being read.
#[derive(Clone, Copy)]
pub(super) struct Pack {
    pub role: Role,
    pub packing: Packing,
    /// Of an intset's integers; 0 until the header is read, 1 for packings of another kind.
    pub width: u8,
    /// Which of an element's parts comes next: field, value, deadline.
    phase: u8,
    /// The template's id comes before the values.
    id_is_due: bool,
}

/// An element, or one of its parts, as it was read.
pub(super) enum Placed<'a> {
    Element(Element<'a>),
    /// It was gathered, and is so long.
    Gathered(u64),
}

/// What may be done with a string that is too long for one command.
pub(super) enum LongUse {
    /// It is gathered at the target.
    Gather,
    /// Nobody wants it.
    Discard,
    /// It is needed as a whole.
    Whole,
}

/// What elements are put into, and what it takes.
pub(super) struct Receiver<'a> {
    pub batch: &'a mut Batch,
    pub node: &'a mut NodeReader,
    pub template: &'a mut TemplateState,
    pub templates: &'a Templates,
}

impl Pack {
    pub fn new(role: Role, packing: Packing) -> Self {
        Self {
            role,
            packing,
            width: 0,
            phase: 0,
            id_is_due: role == Role::TemplateValues,
        }
    }

    pub fn has_header(&self) -> bool {
        self.width > 0
    }

    /// Reads the header at the front of `bytes`.
    pub fn take_header(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.width = self.packing.width(bytes)?.max(1);
        Ok(())
    }

    /// Whether the next element is a hash's value (of which only zipmaps make a difference).
    pub fn is_at_value(&self) -> bool {
        self.phase == 1
    }

    /// What a long string is good for in this place.
    pub fn long_use(&self, node: &NodeReader) -> Result<LongUse, Problem> {
        let wants_text = match self.role {
            Role::StreamNode => {
                return match node.wants() {
                    Wants::Text => Ok(LongUse::Gather),
                    Wants::DeletedText => Ok(LongUse::Discard),
                    Wants::Name => Ok(LongUse::Whole),
                    Wants::Number => Err(Problem::BadStream),
                };
            }
            Role::SortedSetPack | Role::SortedSetZiplist => self.phase == 0,
            Role::HashPackDeadlines => self.phase < 2,
            _ => !self.id_is_due,
        };
        match wants_text {
            true => Ok(LongUse::Gather),
            false => Err(self.packing.corrupt()),
        }
    }

    /// Takes the next element; whether an element of the value is complete with it.
    pub fn take(&mut self, placed: Placed<'_>, to: &mut Receiver<'_>) -> Result<bool, Problem> {
        match self.role {
            Role::StreamNode => return to.node.take(placed, to.batch),
            Role::TemplateValues if self.id_is_due => {
                self.id_is_due = false;
                let id = integer(&placed).ok_or(Problem::BadTemplate)?;
                if to.template.is_reference {
                    to.template.refer(to.templates, id as u64)?;
                }
                return Ok(false);
            }
            Role::TemplateValues => to.template.push_name(to.templates, to.batch)?,
            Role::SortedSetPack | Role::SortedSetZiplist => {
                self.phase ^= 1;
                if self.phase == 0 {
                    to.batch.scores.push(score(&placed, self.packing)?);
                    return Ok(true);
                }
                push(&placed, to.batch);
                return Ok(false);
            }
            Role::HashPack | Role::HashZiplist | Role::HashZipmap => self.phase ^= 1,
            Role::HashPackDeadlines => {
                self.phase = (self.phase + 1) % 3;
                if self.phase == 0 {
                    let at = integer(&placed).ok_or(self.packing.corrupt())?;
                    to.batch.deadlines.push(match at {
                        0 => NO_DEADLINE,
                        other => other.max(0) as u64,
                    });
                    return Ok(true);
                }
            }
            _ => {}
        }
        push(&placed, to.batch);
        Ok(self.phase == 0)
    }

    /// Checks that the packed string may end here.
    pub fn end(&self, node: &NodeReader, template: &TemplateState) -> Result<(), Problem> {
        match self.role {
            Role::StreamNode if !node.is_between_entries() => Err(Problem::BadStream),
            Role::TemplateValues if self.id_is_due || !template.is_used_up() => {
                Err(Problem::BadTemplate)
            }
            _ if self.phase != 0 => Err(self.packing.corrupt()),
            _ => Ok(()),
        }
    }
}

pub(super) fn push(placed: &Placed<'_>, batch: &mut Batch) {
    match placed {
        Placed::Element(element) => batch.push_element(element),
        Placed::Gathered(bytes) => batch.push_gathered(*bytes),
    }
}

pub(super) fn integer(placed: &Placed<'_>) -> Option<i64> {
    match placed {
        Placed::Element(element) => element.as_integer(),
        Placed::Gathered(_) => None,
    }
}

fn score(placed: &Placed<'_>, packing: Packing) -> Result<f64, Problem> {
    match *placed {
        Placed::Element(Element::Integer(value)) => Ok(value as f64),
        Placed::Element(Element::Text(text)) => parse_score(text),
        Placed::Gathered(_) => Err(packing.corrupt()),
    }
}

/// A string that is too long for one command, on its way to the target.
#[derive(Clone, Copy)]
pub(super) struct LongText {
    /// Of its bytes, how many there are, and how many were handed out.
    pub bytes: usize,
    pub done: usize,
    /// What follows it in the flow and means nothing.
    pub behind: usize,
    pub number: usize,
    pub purpose: Purpose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The whole value is this string.
    Value,
    /// A string of an element, stored by itself.
    Text,
    /// The same, in a packed string.
    Packed,
    /// In a packed string, and not wanted.
    Discarded,
}

impl LongText {
    pub fn packed(string: LongString, number: usize, purpose: Purpose) -> Self {
        Self {
            bytes: string.bytes,
            done: 0,
            behind: string.behind,
            number,
            purpose,
        }
    }
}
