//! What a mend writes in the end: a transaction that gives the keys their values and sets the slot's watermark.
//!
//! ```text
//! MULTI | RESTORE a, RENAME b, UNLINK c ... | SET watermark | EXEC       what is too large was built under other names before
//! ```

use std::sync::atomic::Ordering::Relaxed;

use super::lane::Lane;
use super::lease::GRACE_MS;
use crate::checkpoint::{self, mend_key};
use crate::command::rewrite::{Deadlines, Lack};
use crate::fault::Fault;
use crate::mend;
use crate::position::Offset;
use crate::resp::push_command;
use crate::slot::Slot;
use crate::target::{Form, Guard, Unit};

/// A transaction that is written piece by piece.
#[derive(Debug)]
pub(super) struct Last {
    /// In which it begins, and must end.
    database: u32,
    selected: u32,
    commands: Vec<u8>,
    frames: usize,
}

impl Last {
    fn begin(database: u32) -> Self {
        let mut last = Self {
            database,
            selected: database,
            commands: Vec::new(),
            frames: 0,
        };
        last.push(&[b"MULTI"]);
        last
    }

    fn push(&mut self, command: &[&[u8]]) {
        push_command(&mut self.commands, command);
        self.frames += 1;
    }

    fn select(&mut self, database: u32) {
        if self.selected != database {
            self.selected = database;
            self.push(&[b"SELECT", database.to_string().as_bytes()]);
        }
    }

    fn end(mut self) -> Self {
        self.select(self.database);
        self.push(&[b"EXEC"]);
        self
    }
}

impl Lane {
    /// Sends a transaction that sets a watermark, of a slot that nothing is on its way for.
    fn send_last(&mut self, slot: Slot, from: Offset, last: &Last) {
        let unit = self.targets.built_unit(
            &mut self.chunks,
            Form::Transaction,
            from,
            last.database,
            &last.commands,
            last.frames,
        );
        let unit = Unit {
            guard: Guard::Given,
            ..unit
        };
        self.targets.send_given(&mut self.chunks, slot, unit);
    }

    /// Everything of the slot before `until` is answered: writes the values of that offset.
    pub(super) fn write_mend(&mut self, slot: Slot, until: Offset) -> Result<(), Fault> {
        let owed = self.targets.mends.by_slot.get_mut(&slot);
        let owed = owed.expect("it is there");
        let last = match owed.last.take() {
            Some(last) => last,
            None => {
                let (last, parts) = self.build_mend(slot, until)?;
                if parts {
                    // The name changes hands only when the value is known to be whole.
                    let fence = self.targets.fence();
                    let owed = self.targets.mends.by_slot.get_mut(&slot);
                    let owed = owed.expect("it is there");
                    owed.fence = fence;
                    owed.last = Some(last);
                    return Ok(());
                }
                last
            }
        };
        let from = self.stands_at(slot);
        let owed = self.targets.mends.by_slot.remove(&slot);
        let owed = owed.expect("it is there");
        let (values, held) = owed.mend.finish();
        self.send_last(slot, from, &last);
        let Some(recopy) = owed.recopy else {
            self.status.mends.fetch_add(values.len() as u64, Relaxed);
            for (_, unit) in held {
                self.targets.deliver(&mut self.chunks, slot, unit);
            }
            return Ok(());
        };
        self.go_on_copying(slot, recopy, values, held);
        Ok(())
    }

    /// Where in the stream what is written for a mend stands: until it is answered, nothing behind that counts as applied.
    fn stands_at(&self, slot: Slot) -> Offset {
        let owed = &self.targets.mends.by_slot[&slot];
        match &owed.recopy {
            Some(recopy) => recopy.owes_from().unwrap_or(self.routed()),
            None => owed.mend.owed_from(),
        }
    }

    /// Has the watermark of a slot say that everything before `until` is applied, but to the keys that it names. It stands at
    /// `from` in the stream.
    pub(super) fn write_watermark(
        &mut self,
        slot: Slot,
        from: Offset,
        until: Offset,
        names: Option<checkpoint::Owed>,
    ) {
        let mut last = Last::begin(0);
        self.set_watermark(slot, until, names, &mut last);
        self.send_last(slot, from, &last.end());
    }

    /// The transaction that gives the keys their values. Whether anything was sent that it needs.
    fn build_mend(&mut self, slot: Slot, until: Offset) -> Result<(Last, bool), Fault> {
        let from = self.stands_at(slot);
        let owed = &self.targets.mends.by_slot[&slot];
        let values: Vec<_> = owed
            .mend
            .values()
            .map(|(key, taken)| (key.clone(), taken.clone()))
            .collect();
        let database = values.first().map_or(0, |((database, _), _)| *database);
        let mut last = Last::begin(database);
        let mut parts = false;
        for (number, ((of, key), taken)) in values.into_iter().enumerate() {
            // Both ways: it is the other direction's lease, and its true deadline is here.
            let at_ms = taken.as_ref().and_then(|taken| taken.expire_at_ms);
            if self.config.mark && at_ms.is_some_and(|at_ms| at_ms >= GRACE_MS) {
                continue;
            }
            last.select(of);
            let Some(taken) = taken else {
                last.push(&[b"UNLINK", &key]);
                continue;
            };
            self.rebuild.deadlines.database = of;
            let deadlines = &mut self.rebuild.deadlines;
            let write = mend::Write {
                key: &key,
                temporary: &mend_key(&self.targets.marks.link, slot, number),
                payload: &taken.payload,
                expire_at_ms: taken.expire_at_ms.map(|at| deadlines.of_key(&key, at)),
                format: self.config.format,
            };
            let (targets, chunks) = (&mut self.targets, &mut self.chunks);
            let written = write.write(|commands, frames| {
                parts = true;
                let form = match commands.starts_with(super::serial::MULTI) {
                    true => Form::Transaction,
                    false => Form::Command,
                };
                let unit = targets.built_unit(chunks, form, from, of, commands, frames);
                targets.deliver(chunks, slot, unit);
            });
            last.commands.extend_from_slice(&written.commands);
            last.frames += written.frames;
            self.note_losses(&key, &written)?;
        }
        self.set_watermark(slot, until, None, &mut last);
        Ok((last.end(), parts))
    }

    fn set_watermark(
        &mut self,
        slot: Slot,
        until: Offset,
        names: Option<checkpoint::Owed>,
        last: &mut Last,
    ) {
        // It is kept there, whichever database the keys are in.
        last.select(0);
        let marks = &mut self.targets.marks;
        marks.write(slot, until, names, &mut last.commands);
        last.frames += 1;
    }

    /// What of a value the target cannot take: left out, or a fault, as in a copy.
    fn note_losses(&self, key: &[u8], written: &mend::Written) -> Result<(), Fault> {
        if written.lost_deadlines {
            let what = || format!("the expiry of fields of '{}'", key.escape_ascii());
            self.config.leave_out(&self.status, Lack::FieldTtl, what)?;
        }
        for what in &written.left_out {
            self.config.leave_out_beside(&self.status, *what)?;
        }
        match written.problem {
            Some(problem) => self.config.leave_out_of_key(&self.status, problem, key),
            None => Ok(()),
        }
    }
}
