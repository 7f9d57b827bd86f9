//! Elements on their way from a value to a [`Part`](super::Part).

use super::error::Problem;
use super::gather::Gathered;
use super::packed::Element;
use super::part::{StreamPiece, Texts};
use super::walk::StreamId;
use super::wire::Text;
use crate::limits;

/// Elements gathered for one [`Part`](super::Part).
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    pub scores: Vec<f64>,
    pub deadlines: Vec<u64>,
    pub ids: Vec<StreamId>,
    pub pieces: Vec<PieceRecord>,
    gathered: Vec<Gathered>,
    /// How much of it belongs to elements that are complete.
    complete: Mark,
}

#[derive(Debug, Default, Clone, Copy)]
struct Mark {
    texts: usize,
    scores: usize,
    deadlines: usize,
}

/// A [`StreamPiece`] by the places of its texts in the batch.
#[derive(Debug)]
pub(super) enum PieceRecord {
    Entry {
        id: StreamId,
        first: usize,
        end: usize,
    },
    Properties {
        last_id: StreamId,
        counters: Option<(u64, StreamId)>,
        is_empty: bool,
    },
    Group {
        name: usize,
        last_id: StreamId,
        entries_read: Option<i64>,
    },
    /// The group's name is the text before the consumer's.
    Consumer {
        name: usize,
        group_last_id: StreamId,
        seen_at_ms: i64,
        active_at_ms: Option<i64>,
    },
    Pending {
        consumer: usize,
        group_last_id: StreamId,
        delivered_at_ms: u64,
        deliveries: u64,
        first_id: usize,
        end_id: usize,
    },
    Returned {
        group: usize,
        first_id: usize,
        end_id: usize,
    },
    Producers {
        seconds: u64,
        entries: u64,
    },
    /// The producer's name is the text before the entry's.
    Produced {
        name: usize,
        id: StreamId,
    },
}

impl PieceRecord {
    pub fn view<'a>(&self, batch: &'a Batch) -> StreamPiece<'a> {
        match *self {
            PieceRecord::Entry { id, first, end } => StreamPiece::Entry {
                id,
                pairs: batch.texts(first, end),
            },
            PieceRecord::Properties {
                last_id,
                counters,
                is_empty,
            } => StreamPiece::Properties {
                last_id,
                counters,
                is_empty,
            },
            PieceRecord::Group {
                name,
                last_id,
                entries_read,
            } => StreamPiece::Group {
                name: batch.text(name),
                last_id,
                entries_read,
            },
            PieceRecord::Consumer {
                name,
                group_last_id,
                seen_at_ms,
                active_at_ms,
            } => StreamPiece::Consumer {
                group: batch.text(name - 1),
                name: batch.text(name),
                group_last_id,
                seen_at_ms,
                active_at_ms,
            },
            PieceRecord::Pending {
                consumer,
                group_last_id,
                delivered_at_ms,
                deliveries,
                first_id,
                end_id,
            } => StreamPiece::Pending {
                group: batch.text(consumer - 1),
                consumer: batch.text(consumer),
                group_last_id,
                delivered_at_ms,
                deliveries,
                ids: &batch.ids[first_id..end_id],
            },
            PieceRecord::Returned {
                group,
                first_id,
                end_id,
            } => StreamPiece::Returned {
                group: batch.text(group),
                ids: &batch.ids[first_id..end_id],
            },
            PieceRecord::Producers { seconds, entries } => {
                StreamPiece::Producers { seconds, entries }
            }
            PieceRecord::Produced { name, id } => StreamPiece::Produced {
                producer: batch.text(name - 1),
                name: batch.text(name),
                id,
            },
        }
    }
}

impl Batch {
    pub fn clear(&mut self) {
        self.mark_complete();
        self.remove_complete();
    }

    /// Everything up to here belongs to elements that are complete.
    #[inline]
    pub fn mark_complete(&mut self) {
        self.complete = Mark {
            texts: self.ends.len(),
            scores: self.scores.len(),
            deadlines: self.deadlines.len(),
        };
    }

    /// Forgets the complete elements, and keeps what there is of the next one.
    pub fn remove_complete(&mut self) {
        let mark = std::mem::take(&mut self.complete);
        let bytes = self.text_start(mark.texts);
        self.bytes.drain(..bytes);
        self.bytes.shrink_to(2 * limits::PART_BYTES);
        self.ends.drain(..mark.texts);
        self.ends.iter_mut().for_each(|end| *end -= bytes);
        self.scores.drain(..mark.scores);
        self.deadlines.drain(..mark.deadlines);
        self.ids.clear();
        self.pieces.clear();
        self.gathered.retain_mut(|gathered| {
            let is_kept = gathered.text >= mark.texts;
            gathered.text = gathered.text.wrapping_sub(mark.texts);
            is_kept
        });
    }

    pub fn byte_count(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is a complete element.
    pub fn has_complete(&self) -> bool {
        self.complete.texts > 0 || !self.pieces.is_empty()
    }

    /// Whether the complete elements should be handed out: they are many, or one with a gathered string.
    pub fn is_full(&self) -> bool {
        let elements = self.ends.len().max(self.ids.len()).max(self.pieces.len());
        let is_large = self.bytes.len() >= limits::PART_BYTES || elements >= limits::PART_ELEMENTS;
        (is_large || !self.gathered.is_empty()) && self.has_complete()
    }

    pub fn complete_texts(&self) -> Texts<'_> {
        self.texts(0, self.complete.texts)
    }

    /// The one text of a string value that did not flow.
    pub fn first_text(&self) -> &[u8] {
        &self.bytes
    }

    pub fn complete_scores(&self) -> &[f64] {
        &self.scores[..self.complete.scores]
    }

    pub fn complete_deadlines(&self) -> &[u64] {
        &self.deadlines[..self.complete.deadlines]
    }

    /// The strings of complete elements that were sent before.
    pub fn gathered(&self) -> &[Gathered] {
        match self.has_complete() {
            true => &self.gathered,
            false => &[],
        }
    }

    /// The number that the next gathered string of the element gets.
    pub fn next_gathered(&self) -> usize {
        self.gathered.len()
    }

    /// Adds a string that was gathered.
    pub fn push_gathered(&mut self, bytes: u64) {
        self.gathered.push(Gathered {
            text: self.ends.len(),
            number: self.gathered.len(),
            bytes,
        });
        self.ends.push(self.bytes.len());
    }

    pub fn text_count(&self) -> usize {
        self.ends.len()
    }

    fn text(&self, index: usize) -> &[u8] {
        &self.bytes[self.text_start(index)..self.ends[index]]
    }

    fn text_start(&self, index: usize) -> usize {
        match index {
            0 => 0,
            _ => self.ends[index - 1],
        }
    }

    fn texts(&self, first: usize, end: usize) -> Texts<'_> {
        Texts {
            bytes: &self.bytes,
            start: self.text_start(first),
            ends: &self.ends[first..end],
        }
    }

    pub fn push_text(&mut self, text: Text<'_>) -> Result<(), Problem> {
        text.append_to(&mut self.bytes)?;
        self.ends.push(self.bytes.len());
        Ok(())
    }

    pub fn push_element(&mut self, element: &Element<'_>) {
        element.append_to(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    pub fn truncate_texts(&mut self, count: usize) {
        let end = self.text_start(count);
        self.ends.truncate(count);
        self.bytes.truncate(end);
        self.gathered.retain(|gathered| gathered.text < count);
    }

    pub fn push_entry(&mut self, id: StreamId, first: usize) {
        let end = self.ends.len();
        self.pieces.push(PieceRecord::Entry { id, first, end });
    }

    pub fn push_name(&mut self, name: &[u8]) -> usize {
        self.bytes.extend_from_slice(name);
        self.ends.push(self.bytes.len());
        self.ends.len() - 1
    }
}
