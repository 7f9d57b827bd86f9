//! What the decoder is to produce: values as a target takes them, as they are stored, or by elements.

use super::Lineage;
use super::element::has_elements;
use super::grammar;
use super::target::{Modules, Passage, TargetFormat};
use crate::limits;

/// What the decoder is to produce.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Serialized values longer than this come as [`Part`](super::Part)s.
    pub value_threshold_bytes: usize,
    /// Decides which values come as [`Value`](super::Value)s, with [`Form::ForTarget`].
    pub target: TargetFormat,
    /// Strings of elements longer than this come in pieces.
    pub long_text_bytes: usize,
    pub form: Form,
    /// Hashes of which a field ends before this Unix time in milliseconds come as [`Part`](super::Part)s whatever the target
    /// takes, so that these deadlines can be altered. 0: none.
    pub fields_near_until_ms: u64,
}

/// How values are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// As the target takes them.
    #[default]
    ForTarget,
    /// As they are stored, with the snapshot's own version; those over the threshold, and those that no server restores as
    /// they are stored, as [`Part`](super::Part)s.
    Stored,
    /// As [`Part`](super::Part)s, whatever their size. Values that only RESTORE can write, such as those of modules, as they are stored.
    Elements,
}

impl Options {
    pub fn new(target: TargetFormat) -> Self {
        Self {
            value_threshold_bytes: limits::VALUE_THRESHOLD_BYTES,
            target,
            long_text_bytes: limits::LONG_TEXT_BYTES,
            form: Form::ForTarget,
            fields_near_until_ms: 0,
        }
    }

    /// For reading a snapshot without a target.
    pub fn without_target(form: Form) -> Self {
        let target = TargetFormat {
            lineage: Lineage::Redis,
            max_rdb_version: 0,
            modules: Modules::NONE,
        };
        Self {
            form,
            ..Self::new(target)
        }
    }

    /// The same with every element whole, however long its strings.
    pub fn with_whole_texts(self) -> Self {
        Self {
            long_text_bytes: usize::MAX,
            ..self
        }
    }

    /// How values of `type_code` of a snapshot of `source` lineage and `version` come.
    pub(super) fn passage(&self, type_code: u8, source: Lineage, version: u16) -> Passage {
        let stored = Passage::Payload {
            footer_version: version,
        };
        match self.form {
            Form::ForTarget => self.target.passage(type_code, source, version),
            // What no server restores as it is stored, such as hashes whose fields are named elsewhere.
            Form::Stored
                if grammar::restorable_from(type_code, source, source).is_none()
                    && has_elements(type_code, source) =>
            {
                Passage::Elements
            }
            Form::Elements if has_elements(type_code, source) => Passage::Elements,
            Form::Stored | Form::Elements => stored,
        }
    }
}
