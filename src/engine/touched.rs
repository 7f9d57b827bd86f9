//! Which keys commands have to do with, for those that differ: see [`super::mending`].

use super::mending::too_many;
use super::redirect::failed_inside;
use super::settle;
use super::targets::Targets;
use crate::checkpoint::is_bookkeeping;
use crate::chunk::Chunks;
use crate::command::{self, Kind};
use crate::fault::Fault;
use crate::mend::{Key, Mend, Touched};
use crate::resp::{Frame, scan};
use crate::slot::Slot;
use crate::target::Unit;

impl Targets {
    /// The keys of the command that failed: the whole unit's, if it cannot be told which.
    pub(super) fn keys_of_failed(
        &self,
        chunks: &Chunks,
        unit: Unit,
        behind: Option<usize>,
    ) -> Touched {
        let bytes = chunks.get(unit.range);
        let Some(behind) = behind else {
            return self.touched_by(bytes, unit.database);
        };
        match failed_inside(bytes, behind) {
            Some(frame) => self.touched_by(frame.bytes(), unit.database),
            None => Touched::Unknown,
        }
    }

    /// What commands have to do with keys. What only settles leases has nothing to do with any: whatever it finds.
    pub(super) fn touched_by(&self, mut commands: &[u8], database: u32) -> Touched {
        let mut keys = Vec::new();
        while let Ok(Some(frame)) = scan(commands) {
            commands = &commands[frame.bytes().len()..];
            if settle::is_settling(&frame) {
                continue;
            }
            match self.touched_by_one(&frame, database, &mut keys) {
                Some(None) => {}
                Some(Some((one, other))) => return Touched::Swap(one, other),
                None => return Touched::Unknown,
            }
        }
        Touched::Keys(keys)
    }

    /// Adds the keys of a command; gives databases that it exchanges. `None`: its keys cannot be told.
    pub(super) fn touched_by_one(
        &self,
        frame: &Frame<'_>,
        database: u32,
        keys: &mut Vec<Key>,
    ) -> Option<Option<(u32, u32)>> {
        let command = command::find(frame).or_else(|| self.learned.get(frame.verb()))?;
        let elsewhere = match (command.kind, &*command.name) {
            (Kind::SwapDb, _) => return Some(Some(command::databases_of_swap(frame).ok()?)),
            (Kind::Move, _) => Some(command::database_of_move(frame).ok()?),
            (_, "copy") => command::database_of_copy(frame).ok()?,
            _ => None,
        };
        for key in command::keys(frame, command).ok()? {
            if is_bookkeeping(key) {
                continue;
            }
            let databases = [Some(database), elsewhere];
            keys.extend(databases.into_iter().flatten().map(|n| (n, key.to_vec())));
        }
        Some(None)
    }

    /// The keys of what is held back, those of other keys in the same slots too. `None` when they cannot be told.
    pub(super) fn keys_of_held(&self, chunks: &Chunks) -> Option<Vec<Key>> {
        let mut keys = Vec::new();
        for unit in self.mends.held() {
            let mut rest = chunks.get(unit.range);
            while let Ok(Some(frame)) = scan(rest) {
                rest = &rest[frame.bytes().len()..];
                let swapped = self.touched_by_one(&frame, unit.database, &mut keys)?;
                if swapped.is_some() {
                    return None;
                }
            }
        }
        Some(keys)
    }

    /// Adds what commands on their way, which met a key that differs, have carried the difference on to.
    pub(super) fn follow_spread(
        &self,
        chunks: &Chunks,
        slot: Slot,
        mend: &mut Mend<Unit>,
    ) -> Result<(), Fault> {
        let mut units: Vec<Unit> = Vec::new();
        units.extend(self.nodes.iter().flat_map(|target| target.writer.units()));
        units.extend(self.parked.get(&slot).into_iter().flat_map(|p| p.units()));
        units.extend(self.serial.units(slot));
        let from = mend.owed_from();
        let mut tied: Vec<Vec<Key>> = Vec::new();
        for unit in units {
            let mut rest = chunks.get(unit.range);
            while let Ok(Some(frame)) = scan(rest) {
                rest = &rest[frame.bytes().len()..];
                let mut keys = Vec::new();
                let told = self.touched_by_one(&frame, unit.database, &mut keys);
                if told.is_some() && keys.len() > 1 && !settle::is_settling(&frame) {
                    tied.push(keys);
                }
            }
        }
        loop {
            let before = tied.len();
            let (joins, others) = tied
                .into_iter()
                .partition(|keys| keys.iter().any(|key| mend.contains(key)));
            let joins: Vec<Vec<Key>> = joins;
            tied = others;
            mend.join(joins.into_iter().flatten(), from)
                .map_err(|_| too_many())?;
            if tied.len() == before {
                return Ok(());
            }
        }
    }
}
