//! What stands in a snapshot beside values: data and metadata of modules, slots on their way, templates of hashes. And values
//! that nobody wants, which are passed over in the same manner.

use super::item::Found;
use super::{AfterPassing, Reader, Stage};
use crate::limits;
use crate::rdb::error::{Halt, LeftOut, MetadataClass, ModuleId};
use crate::rdb::grammar;
use crate::rdb::walk::{Token, Walk};
use crate::rdb::wire::Cursor;

impl Reader<'_, '_> {
    /// Goes to `at`, and over what `program` describes.
    pub(super) fn begin_passing(
        &mut self,
        at: usize,
        program: &'static [grammar::Op],
        then: AfterPassing,
    ) {
        self.at = at;
        let walk = Walk::passing(program);
        self.decoder.stage = Stage::Passing { then, walk };
    }

    /// Passes over what is not kept, in whatever pieces it comes. `None`: go on.
    pub(super) fn pass(
        &mut self,
        then: AfterPassing,
        mut walk: Walk,
    ) -> Result<Option<Found>, Halt> {
        let result = walk.run_to_end(self.input, &mut self.at);
        self.decoder.stage = match result {
            Ok(()) => Stage::Record,
            Err(_) => Stage::Passing { then, walk },
        };
        result?;
        Ok(match then {
            AfterPassing::SlotImport => Some(Found::SlotImport),
            AfterPassing::LeftOut(what) => Some(Found::LeftOut(what)),
            AfterPassing::Nothing => None,
        })
    }

    pub(super) fn begin_module_data(
        &mut self,
        mut cursor: Cursor<'_>,
    ) -> Result<Option<Found>, Halt> {
        let data_at = cursor.at();
        let module = ModuleId(cursor.length()?);
        let _tag = cursor.length()?;
        let when = cursor.length()?;
        let then = AfterPassing::LeftOut(LeftOut::ModuleData { module, when });
        self.begin_passing(data_at, grammar::MODULE_AUX, then);
        Ok(None)
    }

    pub(super) fn begin_metadata(&mut self, mut cursor: Cursor<'_>) -> Result<Option<Found>, Halt> {
        let data_at = cursor.at();
        if cursor.length()? == 0 {
            self.at = cursor.at();
            return Ok(None);
        }
        let class = MetadataClass(u32::from_le_bytes(cursor.array()?));
        if self.decoder.options.target.takes_key_metadata() {
            self.decoder.stage = Stage::Metadata {
                walk: Walk::new(grammar::KEY_METADATA),
                at: 1,
                class,
            };
        } else {
            let then = AfterPassing::LeftOut(LeftOut::KeyMetadata { class });
            self.begin_passing(data_at, grammar::KEY_METADATA, then);
        }
        Ok(None)
    }

    /// Reads the metadata of the next key, to be passed on with it. `None`: go on.
    pub(super) fn metadata(
        &mut self,
        mut walk: Walk,
        mut at: usize,
        class: MetadataClass,
    ) -> Result<Option<Found>, Halt> {
        let bytes = &self.input[self.at..];
        let result = walk.run_to_end(bytes, &mut at);
        let needed = match result {
            Err(Halt::More { needed }) => needed,
            _ => at as u64,
        };
        if needed > limits::MAX_KEY_METADATA_BYTES as u64 {
            let then = AfterPassing::LeftOut(LeftOut::KeyMetadata { class });
            self.begin_passing(self.at + 1, grammar::KEY_METADATA, then);
            return Ok(None);
        }
        self.decoder.stage = match result {
            Ok(()) => Stage::Record,
            Err(_) => Stage::Metadata { walk, at, class },
        };
        result?;
        self.decoder.metadata.clear();
        self.decoder.metadata.extend_from_slice(&bytes[..at]);
        self.decoder.metadata_class = Some(class);
        self.at += at;
        Ok(None)
    }

    /// Reads on in a template of hashes.
    pub(super) fn template(&mut self, mut walk: Walk) -> Result<(), Halt> {
        let mut cursor = Cursor::new(self.input, self.at);
        let templates = &mut self.decoder.elements.templates;
        let result = loop {
            match walk.next(&mut cursor) {
                Ok(Token::Number(_, id)) => templates.open(id),
                Ok(Token::Text(_, text)) => {
                    if let Err(problem) = templates.add_name(|names| text.append_to(names)) {
                        break Err(problem.into());
                    }
                }
                Ok(Token::End) => {
                    templates.close();
                    break Ok(());
                }
                Ok(_) => {}
                Err(halt) => break Err(halt),
            }
        };
        self.at = cursor.at();
        self.decoder.stage = match result {
            Ok(()) => Stage::Record,
            Err(_) => Stage::Template(walk),
        };
        result
    }
}
