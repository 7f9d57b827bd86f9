//! Stale keys: what the target held before a copy and the source does not have.
//!
//! While a snapshot is decoded its keys are noted. A key of the lane's slots that is not among them did not exist at the
//! source at the snapshot's offset, so whatever the target has under that name is stale, until the stream writes it:
//!
//! ```text
//! at the target    stale key k     UNLINK k     LPUSH k x          found by the listing, or
//! in the stream         S ------------------ LPUSH k x ------>     by the first command that names k
//! ```
//!
//! - The first command of the stream that names a key which was not noted is preceded by the removal of that key, and
//!   the key is noted: the command then meets what it met at the source, nothing.
//! - Beside the stream the target's keys are listed, and those that are not noted are removed. Nothing routed so far has
//!   touched them, and what is routed later goes behind the removal, on the same connection.
//!
//! So each key is right at every moment after its removal, readers of the target never see a key vanish that the source
//! has, the stream is not held up, and nothing is asked of the source.

use std::sync::atomic::Ordering::Relaxed;

use super::keyset::KeySet;
use super::lane::{Lane, SourceLink};
use super::listing::{Listing, Page};
use super::options::Existing;
use super::status::ErrorCount;
use super::stream::Router;
use super::targets::Targets;
use crate::command::{self, Kind};
use crate::fault::Fault;
use crate::limits;
use crate::position::Offset;
use crate::resp::{Frame, push_command};
use crate::slot::slot_of;
use crate::target::Form;

/// The removal of stale keys after a copy, from the copy's first key on.
#[derive(Debug)]
pub(super) struct Sweep {
    /// Keys of the snapshot, and those that the stream has named since.
    seen: KeySet,
    /// Numbers of databases as they were when keys were noted: `SWAPDB` changes them.
    swapped: Vec<(u32, u32)>,
    /// From the end of the copy on.
    listing: Option<Listing>,
    /// Where the stream stood when everything was listed: the removals begin no later.
    last: Option<Offset>,
}

impl Sweep {
    fn new() -> Self {
        Self {
            seen: KeySet::new(0),
            swapped: Vec::new(),
            listing: None,
            last: None,
        }
    }

    /// The snapshot tells how many keys a database holds.
    pub fn expect(&mut self, keys: u64) {
        if self.seen.is_empty() {
            self.seen = KeySet::new(keys);
        }
    }

    /// The number under which keys of a database are noted.
    fn noted_as(&self, database: u32) -> u32 {
        let swaps = self.swapped.iter().rev();
        swaps.fold(database, |at, &(a, b)| match at {
            at if at == a => b,
            at if at == b => a,
            at => at,
        })
    }

    /// Notes a key; whether it was unknown.
    pub fn note(&mut self, database: u32, key: &[u8]) -> bool {
        let database = self.noted_as(database);
        self.seen.insert(database, key)
    }

    /// Notes the keys of a command of the stream, and gives those that were unknown, with their databases. `None` when
    /// its keys cannot be told.
    pub fn meet(
        &mut self,
        frame: &Frame<'_>,
        targets: &Targets,
        router: &Router,
    ) -> Option<Vec<(u32, Vec<u8>)>> {
        let mut fresh = Vec::new();
        let Some(database) = router.target_database() else {
            return Some(fresh);
        };
        let found = command::find(frame).or_else(|| targets.learned.get(frame.verb()));
        let Some(command) = found else {
            return Some(fresh);
        };
        match command.kind {
            // A script may write keys that it does not name.
            Kind::Eval => return None,
            Kind::SwapDb => {
                let swap = command::databases_of_swap(frame).ok()?;
                if self.swapped.len() >= limits::MAX_SWAPS {
                    return None;
                }
                self.swapped.push(swap);
                if let Some(listing) = &mut self.listing {
                    listing.restart(targets);
                }
                self.last = None;
                return Some(fresh);
            }
            Kind::Data | Kind::Move | Kind::Slots(_) => {}
            _ => return Some(fresh),
        }
        let elsewhere = match (command.kind, &*command.name) {
            (Kind::Move, _) => command::database_of_move(frame).ok(),
            (_, "copy") => command::database_of_copy(frame).ok().flatten(),
            _ => None,
        };
        // What only the source can tell was noted when it told.
        let keys = command::keys(frame, command).into_iter().flatten();
        for key in keys {
            for database in [Some(database), elsewhere].into_iter().flatten() {
                if self.note(database, key) {
                    fresh.push((database, key.to_vec()));
                }
            }
        }
        Some(fresh)
    }
}

impl Lane {
    /// A copy begins: whether stale keys will have to be removed after it.
    pub(super) fn prepare_sweep(&mut self) {
        self.sweep = None;
        let status = &self.status;
        status.stale_checked.store(0, Relaxed);
        status.stale_removed.store(0, Relaxed);
        // Keys of an earlier copy, or of another lane that had some of the slots.
        let holds_ours = status.full_syncs.load(Relaxed) > 1 || self.motion.came_before_copy;
        match self.config.existing {
            Existing::Keep if self.config.mark => {
                if !(self.config.first_copy && status.full_syncs.load(Relaxed) == 1) {
                    status.count(ErrorCount::UnsweptCopy);
                    status.set_message(
                        "what the target's own clients write before this copy has ended may be set back to what the source has, \
                         and keys that the source removed in the meantime stay (--mark)",
                    );
                }
            }
            Existing::Keep if holds_ours => {
                status.count(ErrorCount::UnsweptCopy);
                status.set_message(
                    "keys that the source removed in the meantime stay on the target: it held keys of others when this \
                     began, and they cannot be told apart (--on-existing replace removes them all)",
                );
            }
            Existing::None if !holds_ours => {}
            Existing::Keep => {}
            Existing::None | Existing::Replace => self.sweep = Some(Box::new(Sweep::new())),
        }
    }

    /// The whole snapshot was decoded.
    pub(super) fn start_sweep(&mut self) {
        if let Some(sweep) = &mut self.sweep {
            sweep.listing = Some(Listing::new(&self.targets));
        }
    }

    /// A command names these keys of the selected database, as the source told.
    pub(super) fn meet_told_keys(&mut self, keys: &[Vec<u8>]) {
        let (Some(sweep), Some(database)) = (&mut self.sweep, self.router.target_database()) else {
            return;
        };
        let fresh: Vec<_> = keys
            .iter()
            .filter(|key| sweep.note(database, key))
            .collect();
        for key in fresh {
            self.remove_stale(database, key);
        }
    }

    /// Removes a key here and now: behind everything routed so far, before everything that follows.
    pub(super) fn remove_stale(&mut self, database: u32, key: &[u8]) {
        let slot = self.targets.slot_of(key);
        let at = self.routed();
        self.targets
            .stage(&mut self.chunks, slot, at, database, |out| {
                push_command(out, &[b"UNLINK", key]);
                1
            });
    }

    /// It cannot be told any more which keys are stale.
    pub(super) fn give_sweep_up(&mut self, why: &str) {
        self.sweep = None;
        self.status.count(ErrorCount::UnsweptCopy);
        self.status.set_message(&format!(
            "keys that the source does not have may be left on the target: {why}"
        ));
    }

    /// Takes a page of the target's keys, and asks for the next. `tick` is the time, if a tick has come: then it
    /// is asked for although the connection is busy.
    pub(super) fn sweep_on(&mut self, tick: Option<u64>) -> Result<(), Fault> {
        let Some(sweep) = &mut self.sweep else {
            return Ok(());
        };
        if sweep.seen.is_full() {
            self.give_sweep_up("the snapshot has more keys than may be remembered");
            return Ok(());
        }
        if let Some(page) = self.take_page()? {
            self.remove_stale_of(page);
        }
        self.ask_for_keys(tick.is_some());
        self.end_sweep(tick);
        Ok(())
    }

    /// The listing that is under way, for whichever purpose.
    fn listing(&mut self) -> Option<&mut Listing> {
        match &mut self.sweep {
            Some(sweep) => sweep.listing.as_mut(),
            None => self.settling.walk.as_mut().map(|walk| &mut walk.listing),
        }
    }

    /// The page that was asked for, if it has come.
    pub(super) fn take_page(&mut self) -> Result<Option<Page>, Fault> {
        if !self.listing().is_some_and(|listing| listing.awaits()) {
            return Ok(None);
        }
        let Some((target, answer)) = self.targets.answers.pop() else {
            return Ok(None);
        };
        let listing = match &mut self.sweep {
            Some(sweep) => sweep.listing.as_mut(),
            None => self.settling.walk.as_mut().map(|walk| &mut walk.listing),
        };
        let map = &self.config.database_map;
        match listing {
            Some(listing) => listing.answered(target, &answer, &self.targets, map),
            None => Ok(None),
        }
    }

    fn remove_stale_of(&mut self, page: Page) {
        let Some(sweep) = &self.sweep else { return };
        let noted_as = sweep.noted_as(page.database);
        let ours = self.whole_slots();
        let stale: Vec<Vec<u8>> = page
            .keys
            .into_iter()
            .filter(|key| ours.contains(slot_of(key)))
            .inspect(|_| _ = self.status.stale_checked.fetch_add(1, Relaxed))
            .filter(|key| !sweep.seen.contains(noted_as, key))
            .collect();
        let removed = stale.len() as u64;
        self.status.stale_removed.fetch_add(removed, Relaxed);
        for key in stale {
            self.remove_stale(page.database, &key);
        }
    }

    /// Asks for the next page, if that may be done now.
    pub(super) fn ask_for_keys(&mut self, timed: bool) {
        // A flush asks for keys itself, and needs the connections quiet.
        let early = matches!(self.link, SourceLink::Copying(_)) && !self.stopping;
        if self.hold.is_some() || early {
            return;
        }
        let at = self.routed();
        let listing = self.listing();
        let Some(target) = listing.and_then(|listing| listing.next_target(timed)) else {
            return;
        };
        // A question waits until the connection has answered everything, and all else behind it: not at any price.
        if !timed && !self.targets.nodes[target].writer.is_idle() {
            return;
        }
        let mut question = Vec::new();
        let Some(listing) = self.listing() else {
            return;
        };
        let database = listing.ask(&mut question);
        self.push_built(target, database, at, Form::Question, |out| {
            out.extend_from_slice(&question);
            1
        });
    }

    /// Ends the sweep when everything was listed and the removals are answered.
    fn end_sweep(&mut self, tick: Option<u64>) {
        let routed = self.routed();
        let targets = &self.targets;
        let Some(sweep) = &mut self.sweep else { return };
        if sweep.last.is_none() {
            let listing = sweep.listing.as_mut();
            if listing.is_some_and(|listing| listing.is_done(targets, tick)) {
                sweep.last = Some(routed);
            }
        }
        let answered = |last| targets.acknowledged(routed) > last || targets.is_idle();
        if sweep.last.is_some_and(answered) {
            self.sweep = None;
            self.tell_soon();
        }
    }
}
