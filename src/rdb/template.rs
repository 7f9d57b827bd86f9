//! Templates of hashes (opcode 242 of Redis): names of fields that many hashes share, each set stored once.
//!
//! ```text
//! f2 | id | count | name ...            template, before the keys
//! 1e | key | listpack: id, value ...    hash of types 30 and 32: which template, then only values
//! ```
//!
//! Everything is kept until the snapshot ends: any later hash may refer to it.

use std::collections::BTreeMap;

use super::batch::Batch;
use super::error::Problem;
use crate::limits;

#[derive(Default)]
pub(super) struct Templates {
    names: Vec<u8>,
    /// Where each name ends.
    ends: Vec<usize>,
    /// Which names belong to a template: the first, and how many.
    by_id: BTreeMap<u64, (usize, usize)>,
    /// The one being read: its id, and its first name.
    open: (u64, usize),
}

impl Templates {
    /// Begins the template `id`; names follow by [`Templates::add_name`].
    pub fn open(&mut self, id: u64) {
        self.open = (id, self.ends.len());
    }

    /// Adds a name to the open template; `append` appends its text.
    pub fn add_name(
        &mut self,
        append: impl FnOnce(&mut Vec<u8>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        append(&mut self.names)?;
        self.ends.push(self.names.len());
        // A name may be empty, but never free.
        let held = self.names.len() + self.ends.len() * size_of::<usize>();
        if held > limits::MAX_TEMPLATE_BYTES {
            return Err(Problem::TooManyTemplates(limits::MAX_TEMPLATE_BYTES));
        }
        Ok(())
    }

    /// Ends the open template. One that came before with the same id counts no more.
    pub fn close(&mut self) {
        let (id, first) = self.open;
        self.by_id.insert(id, (first, self.ends.len() - first));
    }

    /// The template `id`: its first name's number, and how many names it has.
    pub fn find(&self, id: u64) -> Result<(usize, usize), Problem> {
        let found = self.by_id.get(&id).copied();
        found.ok_or(Problem::UnknownTemplate(id))
    }

    /// The name of this number.
    pub fn name(&self, index: usize) -> &[u8] {
        let start = match index {
            0 => 0,
            _ => self.ends[index - 1],
        };
        &self.names[start..self.ends[index]]
    }

    /// Forgets the names behind the first `count`.
    pub fn truncate(&mut self, count: usize) {
        self.ends.truncate(count);
        self.names.truncate(self.ends.last().copied().unwrap_or(0));
    }

    pub fn name_count(&self) -> usize {
        self.ends.len()
    }
}

/// Names for the values of a hash that stores none itself.
#[derive(Default)]
pub(super) struct TemplateState {
    /// The value names its template; else the names come with it.
    pub is_reference: bool,
    /// Number of its first name, how many there are, and how many have their value.
    first: usize,
    count: usize,
    used: usize,
}

impl TemplateState {
    /// For the next value; names that come with it follow those that the snapshot has defined.
    pub fn new(is_reference: bool, templates: &Templates) -> Self {
        Self {
            is_reference,
            first: templates.name_count(),
            ..Self::default()
        }
    }

    /// A name came with the value.
    pub fn count_name(&mut self) {
        self.count += 1;
    }

    /// The values that follow are those of the template `id`; gives their number.
    pub fn refer(&mut self, templates: &Templates, id: u64) -> Result<usize, Problem> {
        (self.first, self.count) = templates.find(id)?;
        Ok(self.count)
    }

    /// Adds the name to which the next value belongs.
    pub fn push_name(&mut self, templates: &Templates, batch: &mut Batch) -> Result<(), Problem> {
        if self.is_used_up() {
            return Err(Problem::BadTemplate);
        }
        batch.push_name(templates.name(self.first + self.used));
        self.used += 1;
        Ok(())
    }

    /// Whether every name has its value.
    pub fn is_used_up(&self) -> bool {
        self.used == self.count
    }

    /// Forgets the names that came with the value.
    pub fn forget_names(&self, templates: &mut Templates) {
        if !self.is_reference {
            templates.truncate(self.first);
        }
    }
}
