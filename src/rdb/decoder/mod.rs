//! The decoder: turns the bytes of a snapshot into items, as they arrive.
//!
//! ```text
//! REDISvvvv | VALKEYvvv
//! opcode ...  |  [FC ms:8] [F8 idle | F9 freq] [F3 metadata] type key value  |  ...
//! FF checksum:8
//! ```
//!
//! A key that the target cannot hold comes as [`Item::Unsupported`], and then the next item: what becomes of it is for the
//! reader of items to decide. What cannot be *read* ends the snapshot with an error.
//!
//! | file | part of the decoder |
//! |---|---|
//! | here | opcodes, keys, values |
//! | [`item`] | what is handed out |
//! | [`beside`] | what stands beside values |

mod beside;
mod item;

pub use item::{Item, Unsupported};

use super::Lineage;
use super::crc::crc64;
use super::element::{Elements, has_elements, has_near_field};
use super::error::{Halt, LeftOut, MetadataClass, ModuleId, Problem, RdbError};
use super::grammar;
use super::options::{Form, Options};
use super::target::Passage;
use super::walk::Walk;
use super::wire::{Cursor, Text, TextHead};
use crate::limits;
use item::{Found, Place, PlainValue};

/// Decodes one snapshot.
pub struct Decoder {
    options: Options,
    lineage: Lineage,
    version: u16,
    /// Bytes of the snapshot before the input of the next [`Reader`].
    consumed: u64,
    /// Checksum of those bytes.
    checksum: u64,
    database: u32,
    prefix: Prefix,
    stage: Stage,
    /// By type: how its values are stored and passed on.
    plans: [Option<Plan>; grammar::TYPE_COUNT],
    /// Key of the value that comes in parts, or of a value whose key is not stored as it is.
    key: Vec<u8>,
    scratch: Vec<u8>,
    /// Opcode 243 of Redis and what follows it, of the key that comes next.
    metadata: Vec<u8>,
    metadata_class: Option<MetadataClass>,
    elements: Elements,
    /// Type of the value in `elements`.
    parts_type: u8,
    is_first_part: bool,
    failed: Option<RdbError>,
}

/// What becomes of the values of one type in this snapshot.
#[derive(Clone, Copy)]
struct Plan {
    program: &'static [grammar::Op],
    passage: Passage,
    /// The value is one string, plain or packed.
    is_single_text: bool,
}

/// What may stand before a key.
#[derive(Clone, Copy, Default)]
struct Prefix {
    expire_at_ms: Option<u64>,
    idle_seconds: Option<u64>,
    frequency: Option<u8>,
}

#[derive(Clone, Copy)]
enum Stage {
    Magic,
    Record,
    /// A key is whole, its value not yet: positions count from the type byte.
    Value(PartialValue),
    /// The value in `elements`.
    Parts,
    Passing {
        then: AfterPassing,
        walk: Walk,
    },
    /// Metadata of the next key; `at` counts from the opcode.
    Metadata {
        walk: Walk,
        at: usize,
        class: MetadataClass,
    },
    Template(Walk),
    End,
}

/// What is told when something has been passed over.
#[derive(Clone, Copy)]
enum AfterPassing {
    SlotImport,
    LeftOut(LeftOut),
    /// A value, of which was told before.
    Nothing,
}

#[derive(Clone, Copy)]
struct PartialValue {
    type_code: u8,
    key_end: usize,
    walk: Walk,
    /// How far the value was read.
    at: usize,
    footer_version: u16,
}

mod opcode {
    pub const HASH_TEMPLATE: u8 = 242;
    pub const SLOT_IMPORT_OR_KEY_METADATA: u8 = 243;
    pub const SLOT_INFO: u8 = 244;
    pub const FUNCTION: u8 = 245;
    pub const FUNCTION_BEFORE_RELEASE: u8 = 246;
    pub const MODULE_AUX: u8 = 247;
    pub const IDLE: u8 = 248;
    pub const FREQUENCY: u8 = 249;
    pub const AUX: u8 = 250;
    pub const RESIZE_DATABASE: u8 = 251;
    pub const EXPIRY_MILLISECONDS: u8 = 252;
    pub const EXPIRY_SECONDS: u8 = 253;
    pub const SELECT_DATABASE: u8 = 254;
    pub const END: u8 = 255;
    /// Types are below, opcodes from here on.
    pub const FIRST: u8 = 242;
}

/// The first version that ends with a checksum.
const CHECKSUM_FROM_VERSION: u16 = 5;

impl Decoder {
    pub fn new(options: Options) -> Self {
        Self {
            options,
            lineage: Lineage::Redis,
            version: 0,
            consumed: 0,
            checksum: 0,
            database: 0,
            prefix: Prefix::default(),
            stage: Stage::Magic,
            plans: [None; grammar::TYPE_COUNT],
            key: Vec::new(),
            scratch: Vec::new(),
            metadata: Vec::new(),
            metadata_class: None,
            elements: Elements::default(),
            parts_type: 0,
            is_first_part: false,
            failed: None,
        }
    }

    /// Reads on. `input` begins with the byte after the last one that was consumed, and holds whatever has arrived since.
    pub fn read<'d, 'i>(&'d mut self, input: &'i [u8]) -> Reader<'d, 'i> {
        Reader {
            decoder: self,
            input,
            at: 0,
            checked_to: 0,
        }
    }

    /// From the next item on, hashes with fields that end before this come by elements: see
    /// [`Options::fields_near_until_ms`].
    pub fn set_fields_near_until(&mut self, until_ms: u64) {
        self.options.fields_near_until_ms = until_ms;
    }

    /// Bytes consumed since the start of the snapshot; as of the last [`Reader`] that was dropped.
    pub fn consumed_bytes(&self) -> u64 {
        self.consumed
    }
}

/// Items of one piece of input. Call [`Reader::next`] until [`Item::NeedMore`] or [`Item::End`], or stop earlier,
/// then [`Reader::consumed_bytes`] tells how much of the input is used up.
///
/// Bytes are checksummed when the reader is dropped, many at a time.
pub struct Reader<'d, 'i> {
    decoder: &'d mut Decoder,
    input: &'i [u8],
    at: usize,
    checked_to: usize,
}

impl Drop for Reader<'_, '_> {
    fn drop(&mut self) {
        self.update_checksum();
        self.decoder.consumed += self.at as u64;
    }
}

impl Reader<'_, '_> {
    /// How much of the input is used up. The rest must be passed again, with more behind it.
    pub fn consumed_bytes(&self) -> usize {
        self.at
    }

    /// The next item. After an error every call gives the same one.
    #[inline]
    #[expect(clippy::should_implement_trait, reason = "items borrow the reader")]
    pub fn next(&mut self) -> Result<Item<'_>, RdbError> {
        if let Some(failed) = self.decoder.failed {
            return Err(failed);
        }
        if let Some(found) = self.find_plain_value() {
            return Ok(Item::Value(self.plain_value(found)));
        }
        match self.find() {
            Ok(found) => Ok(self.item(found)),
            Err(Halt::More { .. }) => Ok(Item::NeedMore),
            Err(Halt::Bad(problem)) => Err(self.failure(problem)),
        }
    }

    fn failure(&mut self, problem: Problem) -> RdbError {
        let at = self.decoder.consumed + self.at as u64;
        let offset = match self.decoder.stage {
            Stage::Value(partial) => at + partial.at as u64,
            Stage::Metadata { at: within, .. } => at + within as u64,
            Stage::Parts => self.decoder.elements.piece_at(),
            _ => at,
        };
        let error = RdbError { offset, problem };
        self.decoder.failed = Some(error);
        error
    }

    fn update_checksum(&mut self) {
        let fresh = &self.input[self.checked_to..self.at];
        self.decoder.checksum = crc64(self.decoder.checksum, fresh);
        self.checked_to = self.at;
    }

    /// The usual case, made fast: a key stored as it is, whose value is a single string (plain or packed), both
    /// whole. Whatever it does not handle is left to [`Reader::find`], which handles everything.
    #[inline]
    fn find_plain_value(&mut self) -> Option<PlainValue> {
        if !matches!(self.decoder.stage, Stage::Record) || self.decoder.metadata_class.is_some() {
            return None;
        }
        let mut cursor = Cursor::new(self.input, self.at);
        let mut type_code = cursor.u8().ok()?;
        let mut expire_at_ms = self.decoder.prefix.expire_at_ms;
        if type_code == opcode::EXPIRY_MILLISECONDS {
            expire_at_ms = expiry(cursor.array().ok()?);
            type_code = cursor.u8().ok()?;
        }
        let plan = (*self.decoder.plans.get(usize::from(type_code))?)?;
        let Passage::Payload { footer_version } = plan.passage else {
            return None;
        };
        if !plan.is_single_text {
            return None;
        }
        let TextHead::Raw { bytes } = cursor.text_head().ok()? else {
            return None;
        };
        let key_start = cursor.at();
        cursor.take(bytes).ok()?;
        let value_start = cursor.at();
        let body = match cursor.text_head().ok()? {
            TextHead::Raw { bytes } | TextHead::Integer { bytes } => bytes,
            TextHead::Lzf { packed, .. } => packed,
        };
        cursor.take(body).ok()?;
        if cursor.at() - value_start > self.decoder.options.value_threshold_bytes {
            return None;
        }
        self.at = cursor.at();
        Some(PlainValue {
            type_code,
            footer_version,
            expire_at_ms,
            key_start,
            value_start,
            key_bytes: bytes,
        })
    }

    #[inline]
    fn find(&mut self) -> Result<Found, Halt> {
        loop {
            match &self.decoder.stage {
                Stage::Record => {
                    if let Some(found) = self.record()? {
                        return Ok(found);
                    }
                }
                Stage::Value(partial) => {
                    let partial = *partial;
                    if let Some(found) = self.value(partial)? {
                        return Ok(found);
                    }
                }
                Stage::Parts => return self.part(),
                &Stage::Passing { then, walk } => {
                    if let Some(found) = self.pass(then, walk)? {
                        return Ok(found);
                    }
                }
                &Stage::Metadata { walk, at, class } => {
                    if let Some(found) = self.metadata(walk, at, class)? {
                        return Ok(found);
                    }
                }
                &Stage::Template(walk) => self.template(walk)?,
                Stage::Magic => return self.magic(),
                Stage::End => return Err(Halt::More { needed: u64::MAX }),
            }
        }
    }

    fn magic(&mut self) -> Result<Found, Halt> {
        let header: [u8; 9] = Cursor::new(self.input, self.at).array()?;
        let (lineage, digits) = if let Some(digits) = header.strip_prefix(b"REDIS") {
            (Lineage::Redis, digits)
        } else if let Some(digits) = header.strip_prefix(b"VALKEY") {
            (Lineage::Valkey, digits)
        } else {
            return Err(Problem::BadMagic.into());
        };
        let version = digits
            .iter()
            .try_fold(0, |version, digit| {
                let digit = char::from(*digit).to_digit(10)?;
                Some(version * 10 + digit)
            })
            .ok_or(Problem::BadMagic)?;
        let newest = match lineage {
            Lineage::Redis => limits::MAX_REDIS_RDB_VERSION,
            Lineage::Valkey => limits::MAX_VALKEY_RDB_VERSION,
        };
        if !(1..=newest).contains(&version) {
            return Err(Problem::UnknownVersion(version).into());
        }
        let version = version as u16;
        let options = self.decoder.options;
        self.decoder.plans = std::array::from_fn(|code| {
            let code = code as u8;
            let program = grammar::value_program(code, lineage)?;
            Some(Plan {
                program,
                is_single_text: matches!(program, [grammar::Op::Text(_), grammar::Op::End]),
                passage: options.passage(code, lineage, version),
            })
        });
        self.decoder.lineage = lineage;
        self.decoder.version = version;
        self.decoder.stage = Stage::Record;
        self.at += header.len();
        Ok(Found::Header)
    }

    /// Reads one opcode, or a key. `None`: go on.
    #[inline]
    fn record(&mut self) -> Result<Option<Found>, Halt> {
        let mut cursor = Cursor::new(self.input, self.at);
        let code = cursor.u8()?;
        if code < opcode::FIRST {
            return self.open_key(code, cursor);
        }
        let prefix = &mut self.decoder.prefix;
        match code {
            opcode::EXPIRY_MILLISECONDS => prefix.expire_at_ms = expiry(cursor.array()?),
            opcode::EXPIRY_SECONDS => {
                let seconds = i64::from(i32::from_le_bytes(cursor.array()?));
                prefix.expire_at_ms = expiry((seconds * 1000).to_le_bytes());
            }
            opcode::IDLE => prefix.idle_seconds = Some(cursor.length()?),
            opcode::FREQUENCY => prefix.frequency = Some(cursor.u8()?),
            opcode::HASH_TEMPLATE if self.decoder.lineage == Lineage::Redis => {
                self.decoder.stage = Stage::Template(Walk::new(grammar::TEMPLATE));
            }
            opcode::SLOT_IMPORT_OR_KEY_METADATA if self.decoder.lineage == Lineage::Redis => {
                return self.begin_metadata(cursor);
            }
            opcode::MODULE_AUX => return self.begin_module_data(cursor),
            opcode::SLOT_IMPORT_OR_KEY_METADATA => {
                self.begin_passing(cursor.at(), grammar::SLOT_IMPORT, AfterPassing::SlotImport);
                return Ok(None);
            }
            _ => return self.announcement(code, cursor).map(Some),
        }
        self.at = cursor.at();
        Ok(None)
    }

    /// Opcodes that stand for themselves.
    fn announcement(&mut self, code: u8, mut cursor: Cursor<'_>) -> Result<Found, Halt> {
        let found = match code {
            opcode::SELECT_DATABASE => {
                let database = cursor.length()?;
                self.decoder.database =
                    u32::try_from(database).map_err(|_| Problem::BadDatabase(database))?;
                Found::SelectDatabase
            }
            opcode::RESIZE_DATABASE => Found::SizeHint([cursor.length()?, cursor.length()?]),
            opcode::SLOT_INFO => {
                Found::SlotHint([cursor.length()?, cursor.length()?, cursor.length()?])
            }
            opcode::AUX => {
                let decoder = &mut *self.decoder;
                let key = Place::of(cursor.text()?, cursor.at(), &mut decoder.key)?;
                let value = Place::of(cursor.text()?, cursor.at(), &mut decoder.scratch)?;
                Found::Aux { key, value }
            }
            opcode::FUNCTION => {
                let code = cursor.text()?;
                Found::Function(Place::of(code, cursor.at(), &mut self.decoder.scratch)?)
            }
            opcode::END => return self.end(cursor),
            opcode::FUNCTION_BEFORE_RELEASE => return Err(Problem::FunctionBeforeRelease.into()),
            _ => return Err(self.unknown_type(code).into()),
        };
        self.at = cursor.at();
        Ok(found)
    }

    fn end(&mut self, mut cursor: Cursor<'_>) -> Result<Found, Halt> {
        let checksum_starts = cursor.at();
        let mut has_checksum = false;
        if self.decoder.version >= CHECKSUM_FROM_VERSION {
            let found = cursor.u64_le()?;
            self.at = checksum_starts;
            self.update_checksum();
            let computed = self.decoder.checksum;
            // 0: the source does not compute it.
            has_checksum = found != 0;
            if has_checksum && found != computed {
                return Err(Problem::BadChecksum { found, computed }.into());
            }
        }
        self.at = cursor.at();
        self.decoder.stage = Stage::End;
        Ok(Found::End { has_checksum })
    }

    fn unknown_type(&self, code: u8) -> Problem {
        Problem::UnknownType {
            code,
            lineage: self.decoder.lineage,
            version: self.decoder.version,
        }
    }

    /// Passes a key and decides how its value goes on.
    #[inline]
    fn open_key(&mut self, type_code: u8, mut cursor: Cursor<'_>) -> Result<Option<Found>, Halt> {
        let plan = self.decoder.plans.get(usize::from(type_code));
        let Some(Some(Plan {
            program, passage, ..
        })) = plan.copied()
        else {
            return Err(match type_code {
                grammar::TYPE_MODULE_BEFORE_RELEASE => Problem::ModuleBeforeRelease,
                _ => self.unknown_type(type_code),
            }
            .into());
        };
        let key = cursor.text()?;
        if type_code == grammar::TYPE_MODULE {
            let module = ModuleId(Cursor::new(self.input, cursor.at()).length()?);
            let options = &self.decoder.options;
            if options.form == Form::ForTarget && !options.target.modules.restore(module) {
                let problem = Problem::TargetLacksModule(module);
                return self.unsupported(type_code, key, cursor.at(), problem);
            }
        }
        match passage {
            Passage::Payload { footer_version } => {
                let key_end = cursor.at() - self.at;
                self.value(PartialValue {
                    type_code,
                    key_end,
                    walk: Walk::new(program),
                    at: key_end,
                    footer_version,
                })
            }
            Passage::Elements if has_elements(type_code, self.decoder.lineage) => {
                self.begin_parts(type_code, key, cursor.at())
            }
            Passage::Elements => {
                let name = grammar::whole_only_name(type_code, self.decoder.lineage);
                let problem = Problem::TargetLacksType { type_code, name };
                self.unsupported(type_code, key, cursor.at(), problem)
            }
        }
    }

    /// Tells of a key that the target cannot hold, and goes over its value.
    fn unsupported(
        &mut self,
        type_code: u8,
        key: Text<'_>,
        value_at: usize,
        problem: Problem,
    ) -> Result<Option<Found>, Halt> {
        let key = Place::of(key, value_at, &mut self.decoder.key)?;
        self.decoder.prefix = Prefix::default();
        self.decoder.metadata_class = None;
        let plan =
            self.decoder.plans[usize::from(type_code)].expect("the type was looked up before");
        self.begin_passing(value_at, plan.program, AfterPassing::Nothing);
        Ok(Some(Found::Unsupported {
            key,
            type_code,
            problem,
        }))
    }

    /// The value comes in parts from `value_at` on.
    fn begin_parts(
        &mut self,
        type_code: u8,
        key: Text<'_>,
        value_at: usize,
    ) -> Result<Option<Found>, Halt> {
        let decoder = &mut *self.decoder;
        let plan = decoder.plans[usize::from(type_code)].expect("the type was looked up before");
        decoder.key.clear();
        key.append_to(&mut decoder.key)?;
        let long_bytes = decoder.options.long_text_bytes;
        decoder
            .elements
            .open(type_code, decoder.lineage, plan.program, long_bytes);
        decoder.parts_type = type_code;
        decoder.is_first_part = true;
        decoder.stage = Stage::Parts;
        self.at = value_at;
        let class = decoder.metadata_class.take();
        Ok(class.map(|class| Found::LeftOut(LeftOut::KeyMetadata { class })))
    }

    /// Looks for the end of a value. `None`: it comes in parts.
    #[inline]
    fn value(&mut self, mut partial: PartialValue) -> Result<Option<Found>, Halt> {
        let threshold = self.decoder.options.value_threshold_bytes;
        let record = &self.input[self.at..];
        let mut end = partial.at;
        let result = partial.walk.run_to_end(record, &mut end);
        partial.at = end;
        let needed = match result {
            Ok(()) => end as u64,
            Err(Halt::More { needed }) => needed,
            // Had the input ended within the piece that is wrong, its claim could have been over the threshold.
            Err(Halt::Bad(_)) => partial.walk.claim_of_damage(record, end),
        };
        let value_bytes = needed - partial.key_end as u64;
        let lineage = self.decoder.lineage;
        let until_ms = self.decoder.options.fields_near_until_ms;
        let is_near = result.is_ok()
            && has_near_field(
                partial.type_code,
                lineage,
                &record[partial.key_end..end],
                until_ms,
            );
        if value_bytes > threshold as u64 || is_near {
            // An error from here on is the key's.
            self.decoder.stage = Stage::Record;
            let mut cursor = Cursor::new(self.input, self.at + 1);
            let key = cursor.text()?;
            if has_elements(partial.type_code, lineage) {
                return self.begin_parts(partial.type_code, key, cursor.at());
            }
            if value_bytes > limits::MAX_WHOLE_VALUE_BYTES as u64 {
                let problem = Problem::TooLongToRestore(value_bytes);
                return self.unsupported(partial.type_code, key, cursor.at(), problem);
            }
        }
        if let Err(halt) = result {
            self.decoder.stage = Stage::Value(partial);
            return Err(halt);
        }
        self.decoder.stage = Stage::Record;
        let mut cursor = Cursor::new(self.input, self.at + 1);
        let key = Place::of(cursor.text()?, cursor.at(), &mut self.decoder.key)?;
        let serialized = (self.at + partial.key_end, self.at + end);
        self.at += end;
        Ok(Some(Found::Value {
            key,
            serialized,
            type_code: partial.type_code,
            footer_version: partial.footer_version,
            prefix: std::mem::take(&mut self.decoder.prefix),
            has_metadata: self.decoder.metadata_class.take().is_some(),
        }))
    }

    fn part(&mut self) -> Result<Found, Halt> {
        let mut cursor = Cursor::new(self.input, self.at);
        let consumed = self.decoder.consumed;
        let result = self.decoder.elements.fill(&mut cursor, consumed);
        self.at = cursor.at();
        let is_last = result?;
        if is_last {
            self.decoder.stage = Stage::Record;
        }
        Ok(Found::Part { is_last })
    }
}

/// Unix time in milliseconds; what lies before 1970 is in the past like 1970 itself.
fn expiry(stored: [u8; 8]) -> Option<u64> {
    Some(i64::from_le_bytes(stored).max(1) as u64)
}
