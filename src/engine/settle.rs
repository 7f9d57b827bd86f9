//! Settling of leases: when, and the commands that do it. See [`super::lease`].
//!
//! The proof that a moment of the source has been applied: the watcher asks the source for its offset and notes when it
//! asked; once the target has acknowledged that offset, everything that the source emitted before the question is applied.

use std::sync::atomic::Ordering::Relaxed;

use super::lane::{Lane, SourceLink};
use super::lease::{Due, GRACE_MS, Owner, Unknown};
use super::listing::Listing;
use crate::command;
use crate::fault::Fault;
use crate::limits;
use crate::position::Offset;
use crate::resp::{Encoder, Frame};
use crate::slot::slot_of;

/// `KEYS`: keys of one slot; `ARGV`: what is due. From the keys that carry a lease, takes those that are due their grace.
/// 6.0 does not know `PEXPIRETIME`, and replicates what a script did that looked at the clock only when asked to.
const SCRIPT: &str = "local passed,far=tonumber(ARGV[1]),tonumber(ARGV[2]) \
if redis.replicate_commands then redis.replicate_commands() end \
for _,key in ipairs(KEYS) do \
local at=redis.pcall('PEXPIRETIME',key) \
if type(at)=='table' then at=redis.call('PTTL',key) \
if at>0 then local now=redis.call('TIME') at=at+now[1]*1000+math.floor(now[2]/1000) end end \
at=at-35184372088832 \
if at>=0 and at<35184372088832 and (at<=passed or at>far) then \
redis.call('PEXPIREAT',key,string.format('%.0f',at)) end end";

/// The same for fields. `KEYS`: hashes of one slot; `ARGV`: what is due, then for each hash how many fields, and these. Servers
/// whose fields have deadlines know `HPEXPIRETIME`.
const FIELDS_SCRIPT: &str = "local passed,far,last=tonumber(ARGV[1]),tonumber(ARGV[2]),2 \
for _,key in ipairs(KEYS) do \
local first=last+2 last=last+1+ARGV[last+1] \
local times=redis.pcall('HPEXPIRETIME',key,'FIELDS',last-first+1,unpack(ARGV,first,last)) \
if type(times)=='table' then for n,at in ipairs(times) do \
at=at-35184372088832 \
if at>=0 and at<35184372088832 and (at<=passed or at>far) then \
redis.call('HPEXPIREAT',key,string.format('%.0f',at),'FIELDS',1,ARGV[first+n-1]) end end end end";

/// The same for whatever fields hashes have. `ARGV`: what is due, how many fields to look at about, a cursor; keys of any slots
/// of the server, of any type, of which the first is looked at from the cursor on. Gives how many keys are done with, and the
/// cursor in the one after these. A key of another server is passed over: its slot moves, so that the walk begins anew.
const HASHES_SCRIPT: &str = "local passed,far,left,cursor=tonumber(ARGV[1]),tonumber(ARGV[2]),tonumber(ARGV[3]),ARGV[4] \
for i=5,#ARGV do local key=ARGV[i] \
local kind=redis.pcall('TYPE',key) \
if kind.err and not string.find(kind.err,'non local') and not string.find(kind.err,'not served') then return kind end \
if kind.ok=='hash' then repeat \
local page=redis.call('HSCAN',key,cursor,'COUNT',100,'NOVALUES') \
cursor=page[1] left=left-#page[2] \
for first=1,#page[2],100 do \
local last=math.min(first+99,#page[2]) \
local times=redis.call('HPEXPIRETIME',key,'FIELDS',last-first+1,unpack(page[2],first,last)) \
for n,at in ipairs(times) do at=at-35184372088832 \
if at>=0 and at<35184372088832 and (at<=passed or at>far) then \
redis.call('HPEXPIREAT',key,string.format('%.0f',at),'FIELDS',1,page[2][first+n-1]) end end end \
if left<=0 and cursor~='0' then return {i-5,cursor} end \
until cursor=='0' end \
if left<=0 then return {i-4,'0'} end end \
return {#ARGV-4,'0'}";

const _: () = assert!(GRACE_MS == 35_184_372_088_832);

/// What a lane knows of times at the source, and the walk over leases that are not in the table.
#[derive(Debug, Default)]
pub(super) struct Settling {
    /// Polls of the source that are not applied yet: offset, and when it was asked for, in milliseconds since the start.
    polls: Vec<(u64, u64)>,
    polls_seen: u64,
    /// When the lane had its first tick: earlier polls may be older than what a former lane sent.
    first_tick_ms: Option<u64>,
    /// Everything that the source emitted before is applied: Unix time in milliseconds.
    pub applied_until_ms: u64,
    /// How many commands the stream had brought when it last brought one, and when that was noticed, as Unix time.
    commands_seen: u64,
    quiet_since_ms: u64,
    /// The copy left leases that are not in the table: only a walk finds them all, and an end before it would leave keys
    /// that live for ever.
    pub copy_left_unknown: bool,
    pub walk: Option<Walk>,
}

/// A walk over the target's keys.
#[derive(Debug)]
pub(super) struct Walk {
    pub listing: Listing,
    /// What was unknown when it began.
    unknown: Unknown,
    /// All of that was due.
    last: bool,
}

/// Whether a command is one of ours that settles leases.
pub(super) fn is_settling(frame: &Frame<'_>) -> bool {
    let scripts = [SCRIPT, FIELDS_SCRIPT];
    let script = command::without_prologue(frame.arg(1).unwrap_or_default());
    scripts.iter().any(|ours| ours.as_bytes() == script)
}

/// Writes the question that settles leases of fields in any of these hashes; other keys may be among them. Its answer is of
/// the form of `SCAN`'s, with the keys that are done with counted instead of told.
pub(super) fn ask_into(out: &mut Vec<u8>, due: Due, cursor: &[u8], keys: &[Vec<u8>]) {
    let mut command = Encoder::begin(out, 7 + keys.len());
    command.arg(b"EVAL").arg(HASHES_SCRIPT.as_bytes()).arg(b"0");
    command.number(due.passed_ms).number(due.far_ms);
    command.number(limits::SETTLE_WALK_FIELDS).arg(cursor);
    for key in keys {
        command.arg(key);
    }
}

/// Whether a script's failure says that the server takes no writes at present: 6.0 puts the reason into its own words.
pub(super) fn will_pass(text: &str) -> bool {
    let reasons = [
        "READONLY",
        "MISCONF",
        "OOM",
        "NOREPLICAS",
        "MASTERDOWN",
        "LOADING",
    ];
    reasons.iter().any(|reason| text.contains(reason))
}

impl Lane {
    /// Looks after deadlines, once a tick.
    pub(super) fn settle_on(&mut self, now_ms: u64) {
        self.note_polls(now_ms);
        let now = self.unix_ms_at_zero + now_ms;
        // Behind a copy waits what the source wrote meanwhile.
        if self.settling.commands_seen != self.commands || !self.settled {
            self.settling.commands_seen = self.commands;
            self.settling.quiet_since_ms = now;
        }
        let lag = match self.settling.applied_until_ms {
            0 => limits::LEASE_COPY_MS,
            applied_until_ms => now.saturating_sub(applied_until_ms),
        };
        let margin = match self.settled {
            true => lag + limits::LEASE_MARGIN_MS,
            false => lag.max(limits::LEASE_COPY_MS),
        };
        self.rebuild.deadlines.set_near(now.saturating_add(margin));
        if (self.settled || self.stopping) && !self.keep_leases {
            let due = self.due();
            self.settle(due);
            self.walk_if_due(due);
        }
        let deadlines = &self.rebuild.deadlines;
        let leases = deadlines.len() + usize::from(deadlines.unknown().is_some());
        self.status.leases.store(leases as u64, Relaxed);
    }

    /// Learns up to when the source's past is applied.
    fn note_polls(&mut self, now_ms: u64) {
        let first_tick_ms = *self.settling.first_tick_ms.get_or_insert(now_ms);
        let poll = self.status.poll();
        let known = self.history.is_some_and(|id| id.as_str() == poll.replid);
        if poll.count != self.settling.polls_seen && known {
            self.settling.polls_seen = poll.count;
            if poll.asked_ms > first_tick_ms {
                self.targets.not_sent_from(Offset(poll.offset));
            }
            // When the target is far behind, the newest few say enough.
            if self.settling.polls.len() >= limits::MAX_OPEN_POLLS {
                self.settling.polls.pop();
            }
            self.settling.polls.push((poll.offset, poll.asked_ms));
        }
        if !matches!(self.link, SourceLink::Streaming) {
            return;
        }
        let acknowledged = self.progress().acknowledged.0;
        let zero = self.unix_ms_at_zero;
        let settling = &mut self.settling;
        settling.polls.retain(|&(offset, asked_ms)| {
            let applied = offset <= acknowledged;
            if applied {
                settling.applied_until_ms = settling.applied_until_ms.max(zero + asked_ms);
            }
            !applied
        });
    }

    /// Another history: offsets that were polled mean nothing in it.
    pub(super) fn forget_polls(&mut self) {
        self.settling.polls.clear();
        self.settling.walk = None;
    }

    fn settle(&mut self, due: Due) {
        for _ in 0..limits::SETTLE_BATCHES {
            if super::copy::is_full(&self.chunks, &self.targets) {
                return;
            }
            let taken = self.rebuild.deadlines.take(due, limits::SETTLE_KEYS);
            if taken.is_empty() {
                return;
            }
            let (fields, keys): (Vec<Owner>, Vec<Owner>) =
                taken.into_iter().partition(|owner| owner.field.is_some());
            let keys = keys.iter().map(|owner| (owner.database, &*owner.key));
            self.settle_keys(keys.collect(), due);
            self.settle_fields(fields, due);
        }
    }

    /// Has the target take the grace from those of these keys whose leases are due.
    pub(super) fn settle_keys(&mut self, mut keys: Vec<(u32, &[u8])>, due: Due) {
        let at = self.routed();
        let slots = &self.config.slots;
        keys.retain(|(_, key)| slots.contains(slot_of(key)));
        let targets = &self.targets;
        keys.sort_by_key(|(database, key)| (*database, targets.slot_of(key)));
        let same = |a: &(u32, &[u8]), b: &(u32, &[u8])| {
            a.0 == b.0 && targets.slot_of(a.1) == targets.slot_of(b.1)
        };
        let groups: Vec<&[(u32, &[u8])]> = keys.chunk_by(same).collect();
        for group in groups {
            let (database, first) = group[0];
            let slot = self.targets.slot_of(first);
            let chunks = &mut self.chunks;
            self.targets.stage(chunks, slot, at, database, |out| {
                let mut command = Encoder::begin(out, 5 + group.len());
                command.arg(b"EVAL").arg(SCRIPT.as_bytes());
                command.number(group.len() as u64);
                for (_, key) in group {
                    command.arg(key);
                }
                command.number(due.passed_ms).number(due.far_ms);
                1
            });
        }
    }

    /// The same for fields.
    fn settle_fields(&mut self, mut fields: Vec<Owner>, due: Due) {
        let at = self.routed();
        let slots = &self.config.slots;
        fields.retain(|owner| slots.contains(slot_of(&owner.key)));
        let targets = &self.targets;
        let place = |owner: &Owner| (owner.database, targets.slot_of(&owner.key));
        fields.sort_by(|a, b| (place(a), a).cmp(&(place(b), b)));
        let groups: Vec<&[Owner]> = fields.chunk_by(|a, b| place(a) == place(b)).collect();
        for group in groups {
            let (database, slot) = (group[0].database, self.targets.slot_of(&group[0].key));
            let hashes: Vec<&[Owner]> = group.chunk_by(|a, b| a.key == b.key).collect();
            let chunks = &mut self.chunks;
            self.targets.stage(chunks, slot, at, database, |out| {
                let mut command = Encoder::begin(out, 5 + 2 * hashes.len() + group.len());
                command.arg(b"EVAL").arg(FIELDS_SCRIPT.as_bytes());
                command.number(hashes.len() as u64);
                for hash in &hashes {
                    command.arg(&hash[0].key);
                }
                command.number(due.passed_ms).number(due.far_ms);
                for hash in &hashes {
                    command.number(hash.len() as u64);
                    for field in hash.iter().filter_map(|owner| owner.field.as_deref()) {
                        command.arg(field);
                    }
                }
                1
            });
        }
    }

    /// Begins a walk when leases that are not in the table may be due, and ends it.
    fn walk_if_due(&mut self, due: Due) {
        let targets = &self.targets;
        if self.sweep.is_some() {
            return;
        }
        let Some(unknown) = self.rebuild.deadlines.unknown() else {
            self.settling.walk = None;
            self.settling.copy_left_unknown = false;
            return;
        };
        if self.settling.walk.is_some() {
            return;
        }
        let last = unknown.until_ms <= due.passed_ms;
        // All due, or some so far away that they need not wait for it.
        if last || unknown.until_ms > due.far_ms {
            self.settling.walk = Some(Walk {
                listing: Listing::new(targets),
                unknown,
                last,
            });
        }
    }

    /// Goes on with a walk: a page of keys, the next question, the end.
    pub(super) fn walk_on(&mut self, tick: Option<u64>) -> Result<(), Fault> {
        let Some(page) = self.take_page()? else {
            self.ask_for_keys(tick.is_some());
            return self.end_walk(tick);
        };
        let slots = &self.config.slots;
        let ours = page.keys.iter().filter(|key| slots.contains(slot_of(key)));
        let keys: Vec<(u32, &[u8])> = ours.map(|key| (page.database, &key[..])).collect();
        let due = self.due();
        for part in keys.chunks(limits::SETTLE_KEYS) {
            self.settle_keys(part.to_vec(), due);
        }
        let keys = keys.into_iter().map(|(_, key)| key.to_vec()).collect();
        if let Some(walk) = &mut self.settling.walk
            && walk.unknown.fields
        {
            let (target, database) = (page.target, page.database);
            walk.listing.look_into(target, database, keys, due);
        }
        self.ask_for_keys(tick.is_some());
        self.end_walk(tick)
    }

    /// What is due at the moment.
    fn due(&self) -> Due {
        // Nobody will be there to do it later.
        if self.stopping && !self.keep_leases {
            return Due::ALL;
        }
        let far_ms = self.rebuild.deadlines.near_until();
        let passed_ms = self.settling.applied_until_ms;
        // A source that writes nothing renews nothing: its keys may be seen as they are.
        if passed_ms
            >= self
                .settling
                .quiet_since_ms
                .saturating_add(limits::LEASE_QUIET_MS)
        {
            return Due::ALL;
        }
        Due {
            passed_ms: passed_ms.saturating_sub(limits::LEASE_SKEW_MS),
            far_ms,
        }
    }

    fn end_walk(&mut self, tick: Option<u64>) -> Result<(), Fault> {
        let due = self.due();
        let targets = &self.targets;
        if let Some(walk) = &mut self.settling.walk
            && walk.listing.is_done(targets, tick)
        {
            // What was not due is near: it waits for its end.
            self.settling.copy_left_unknown &= !walk.last;
            let left = (!walk.last && !self.stopping).then_some(due.far_ms);
            let number = walk.unknown.number;
            self.rebuild.deadlines.found_unknown(left, number);
            self.settling.walk = None;
        }
        Ok(())
    }
}
