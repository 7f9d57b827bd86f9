//! Takes a link over: shuts out whoever wrote for it before, then reads what the target knows about its own state.
//!
//! ```text
//! read the epoch where it should be -> claim the next one on every master -> end connections named with a lower one
//!   -> look at the claim again -> look in every slot whether there is anything -> read what there is: epochs, records, watermarks
//! ```
//!
//! Slots that moved take their keys along, and keys may be lost: an epoch elsewhere that is higher than the claimed one, or a
//! generation that was made in one, is found by the look at every slot, and makes it begin again above that.
//!
//! Two processes never hold the same epoch: the claim begins at the key of slot 0, which one server at a time owns, wherever
//! slots move. A writer that names its connection before it asks for the epoch is either refused by the epoch or found by its
//! name; since its flush takes the epoch away, that is looked at again once it can write no more. Connections to replicas are ended
//! too, as far as they answer: a stopped process could go on there after a failover.
//!
//! A target that changes meanwhile, or a master that does not answer, makes it begin again, for a minute or so.

use std::collections::BTreeMap;

use tracing::info;

use super::masters::{Masters, persist};
use super::writers::{Connected, shut_out};
use crate::checkpoint::{
    Bookkeeping, Found, Generation, LinkName, Mark, Record, epoch_key, record_key, watermark_key,
};
use crate::engine::options::OwnKeys;
use crate::fault::{Fault, FaultKind};
use crate::limits;
use crate::resp::push_command;
use crate::slot::{Slot, SlotSet};
use crate::topology::{Endpoint, ServerRun, Topology, Value};

/// A link that is ours.
#[derive(Debug, Clone)]
pub struct Claim {
    pub epoch: u32,
    pub bookkeeping: Bookkeeping,
    /// The target as it was when the bookkeeping was read.
    pub topology: Topology,
    /// Node id and run of each master before that.
    pub runs: Vec<(String, ServerRun)>,
}

/// Sets the epoch where it is lower: 1 if so, 0 if it was there, -1 if there is a higher one.
const CLAIM: &str = "local held,n=tonumber(redis.call('GET',KEYS[1])) or 0,tonumber(ARGV[1]) \
if held<n then redis.call('SET',KEYS[1],ARGV[1]) return 1 end \
if held==n then return 0 end return -1";

/// Removes an epoch that is not above ours.
const DROP: &str = "if (tonumber(redis.call('GET',KEYS[1])) or 0)<=tonumber(ARGV[1]) then \
return redis.call('DEL',KEYS[1]) end return 0";

/// Takes the link over for a new process. Whoever held it is shut out, whether it still runs or not.
pub fn claim(link: &LinkName, target: &Endpoint, topology: &Topology) -> Result<Claim, Fault> {
    let mut lost = 0;
    let claim = persist(&what(link), target, topology, |masters| {
        Attempt { masters, link }.claim(&mut lost)
    })?;
    info!("target: link {link} is ours, epoch {}", claim.epoch);
    Ok(claim)
}

/// Makes sure that the link is still ours, shuts out the connections that one lane had, and reads everything again. Masters that
/// lack the epoch get it: new ones, and replicas that were promoted before they had it.
pub fn reclaim(
    link: &LinkName,
    epoch: u32,
    lane: u32,
    target: &Endpoint,
    topology: &Topology,
) -> Result<Claim, Fault> {
    persist(&what(link), target, topology, |masters| {
        Attempt { masters, link }.reclaim(epoch, lane)
    })
}

/// What the target holds for a link, without touching it. One that holds no keys at all need not be asked.
pub fn own_keys(link: &LinkName, target: &Endpoint, topology: &Topology) -> Result<OwnKeys, Fault> {
    let what = format!("looking for link {link} on the target");
    persist(&what, target, topology, |masters| {
        let (bookkeeping, epochs) = Attempt { masters, link }.read(0)?;
        let records: SlotSet = bookkeeping.records.iter().map(|found| found.slot).collect();
        let keys = epochs.len() + records.len() + bookkeeping.watermarks.len();
        Ok(OwnKeys {
            keys: keys as u64,
            records: !records.is_empty(),
        })
    })
}

/// Makes sure that the link is still ours on every master; those that lack the epoch get it.
pub fn hold(link: &LinkName, epoch: u32, masters: &mut Masters) -> Result<(), Fault> {
    let mut attempt = Attempt { masters, link };
    let places = attempt.places();
    if attempt.set_epoch(&places, epoch)?.contains(&-1) {
        let theirs = highest(&attempt.epochs(&SlotSet::all())?);
        return Err(taken_over(link, theirs, epoch));
    }
    Ok(())
}

fn what(link: &LinkName) -> String {
    format!("taking over link {link} on the target")
}

/// The fault of a process that is not the link's any more.
pub fn taken_over(link: &LinkName, theirs: u32, ours: u32) -> Fault {
    let text = format!(
        "another slotstream process has taken the link {link} over (epoch {theirs}, ours {ours}): only one may run; \
         give this one another --link, or stop the other"
    );
    Fault::new(FaultKind::TakenOver, text)
}

/// One try, on a target that must not change meanwhile.
struct Attempt<'a> {
    masters: &'a mut Masters,
    link: &'a LinkName,
}

impl Attempt<'_> {
    /// `lost`: the highest epoch that was in use although no key told of it where it is looked for first.
    fn claim(&mut self, lost: &mut u32) -> Result<Claim, Fault> {
        let places = self.places();
        let known = highest(&self.epochs(&places)?).max(*lost);
        let Some(epoch) = known.checked_add(1) else {
            let text = format!("link {} has used up its epochs", self.link);
            return Err(unreadable(self.link, &text));
        };
        let mut others = places.clone();
        others.remove(0);
        for places in [SlotSet::from_iter([0]), others] {
            if self.set_epoch(&places, epoch)?.iter().any(|set| *set != 1) {
                let text = "another slotstream process claims the same link just now";
                return Err(Fault::new(FaultKind::TryAgain, text));
            }
        }
        let higher = |theirs: u32, lost: &mut u32| {
            *lost = theirs;
            let text = format!("epoch {theirs} is in use although its key was lost");
            Err(Fault::new(FaultKind::TryAgain, text))
        };
        let in_use = self.shut_out(|claim| match claim {
            Some((theirs, _)) if theirs >= epoch => Verdict::Higher(theirs),
            _ => Verdict::End,
        })?;
        if let Some(theirs) = in_use {
            return higher(theirs, lost);
        }
        // A flush of a former writer takes the epoch with it and puts its own in the place.
        if self.set_epoch(&places, epoch)?.iter().any(|set| *set != 0) {
            let text = "the epoch was removed while former writers were shut out";
            return Err(Fault::new(FaultKind::TryAgain, text));
        }
        let runs = self.masters.runs()?;
        let (bookkeeping, epochs) = self.read(epoch)?;
        let newest = highest(&epochs);
        if newest > epoch {
            // Or its key was lost where it should be.
            *lost = newest;
            let text = "another slotstream process has claimed the same link meanwhile";
            return Err(Fault::new(FaultKind::TryAgain, text));
        }
        let moved_here: SlotSet = epochs.iter().map(|(slot, _)| *slot).collect();
        let drop = self.epoch_script(DROP, epoch);
        self.masters
            .ask_slots(&moved_here.difference(&places), drop)?;
        // Generations must not come a second time, whatever became of the keys of the epochs that they were made in.
        match highest_written(&bookkeeping) {
            Some(theirs) if theirs >= epoch => higher(theirs, lost),
            _ => Ok(Claim {
                runs,
                ..self.without_superseded(epoch, bookkeeping)?
            }),
        }
    }

    fn reclaim(&mut self, epoch: u32, lane: u32) -> Result<Claim, Fault> {
        let places = self.places();
        let theirs = highest(&self.epochs(&places)?);
        if theirs > epoch {
            return Err(taken_over(self.link, theirs, epoch));
        }
        if self.set_epoch(&places, epoch)?.contains(&-1) {
            let theirs = highest(&self.epochs(&SlotSet::all())?);
            return Err(taken_over(self.link, theirs, epoch));
        }
        let in_use = self.shut_out(|claim| match claim {
            Some((theirs, _)) if theirs > epoch => Verdict::Higher(theirs),
            Some((theirs, other)) if theirs == epoch && other != lane => Verdict::Leave,
            _ => Verdict::End,
        })?;
        let runs = self.masters.runs()?;
        let (bookkeeping, epochs) = self.read(epoch)?;
        let newest = highest(&epochs);
        let written = highest_written(&bookkeeping).unwrap_or_default();
        let theirs = newest.max(written).max(in_use.unwrap_or_default());
        if theirs > epoch {
            return Err(taken_over(self.link, theirs, epoch));
        }
        Ok(Claim {
            epoch,
            bookkeeping,
            topology: self.masters.topology().clone(),
            runs,
        })
    }

    /// The slots whose keys hold the epoch: slot 0, and one of each master that stays there.
    fn places(&self) -> SlotSet {
        let topology = self.masters.topology();
        let open: SlotSet = topology.open_slots.iter().map(|open| open.slot).collect();
        let mut places = SlotSet::from_iter([0]);
        for shard in topology.serving() {
            let staying = shard.slots.difference(&open);
            let smallest = staying.iter().next().or_else(|| shard.slots.iter().next());
            places.extend(smallest);
        }
        places
    }

    /// A command for the epoch's key in a slot.
    fn epoch_script(
        &self,
        script: &'static str,
        epoch: u32,
    ) -> impl Fn(Slot, &mut Vec<u8>) + use<> {
        let link = self.link.clone();
        let epoch = epoch.to_string();
        move |slot, out| {
            let key = epoch_key(&link, slot);
            push_command(
                out,
                &[b"EVAL", script.as_bytes(), b"1", &key, epoch.as_bytes()],
            );
        }
    }

    /// What [`CLAIM`] answered in these slots.
    fn set_epoch(&mut self, places: &SlotSet, epoch: u32) -> Result<Vec<i64>, Fault> {
        let script = self.epoch_script(CLAIM, epoch);
        let replies = self.masters.ask_slots(places, script)?;
        let numbers = replies.into_iter().map(|(slot, reply)| match reply {
            Value::Integer(number) => Ok(number),
            other => Err(foreign(self.link, &epoch_key(self.link, slot), &other)),
        });
        numbers.collect()
    }

    /// The epochs that are in these slots.
    fn epochs(&mut self, slots: &SlotSet) -> Result<Vec<(Slot, u32)>, Fault> {
        let link = self.link;
        let mut epochs = Vec::new();
        for (slot, reply) in self.get(slots, epoch_key)? {
            let epoch = std::str::from_utf8(&reply).ok();
            let Some(epoch) = epoch.and_then(|text| text.parse().ok()) else {
                let what = shown(&epoch_key(link, slot), "holds no epoch");
                return Err(unreadable(link, &what));
            };
            epochs.push((slot, epoch));
        }
        Ok(epochs)
    }

    /// The strings that the keys of a kind hold, by slot.
    fn get(
        &mut self,
        slots: &SlotSet,
        key: fn(&LinkName, Slot) -> Vec<u8>,
    ) -> Result<Vec<(Slot, Vec<u8>)>, Fault> {
        let link = self.link;
        let command = |slot, out: &mut Vec<u8>| push_command(out, &[b"GET", &key(link, slot)]);
        let mut found = Vec::new();
        for (slot, reply) in self.masters.ask_slots(slots, command)? {
            match reply {
                Value::Null => {}
                Value::Bulk(bytes) => found.push((slot, bytes)),
                other => return Err(foreign(link, &key(link, slot), &other)),
            }
        }
        Ok(found)
    }

    /// Ends connections of this link on every node; the highest epoch of one that is not to be ended.
    fn shut_out(
        &mut self,
        judge: impl Fn(Option<(u32, u32)>) -> Verdict,
    ) -> Result<Option<u32>, Fault> {
        let higher = std::cell::Cell::new(None);
        let doomed = |found: &Connected| {
            let writer = &found.writer;
            if writer.link != *self.link {
                return false;
            }
            match judge(writer.claim) {
                Verdict::End => true,
                Verdict::Leave => false,
                Verdict::Higher(theirs) => {
                    higher.set(higher.get().max(Some(theirs)));
                    false
                }
            }
        };
        let mut failures = 0;
        for replica in self.masters.replicas() {
            if let Err(fault) = replica.and_then(|mut replica| shut_out(&mut replica, doomed)) {
                tracing::debug!("{fault}");
                failures += 1;
            }
            if failures >= limits::SHUT_OUT_FAILURES {
                break;
            }
        }
        for client in self.masters.clients() {
            shut_out(client, doomed)?;
        }
        Ok(higher.get())
    }

    /// How many keys of the link each slot holds, of those that hold any.
    fn holding(&mut self) -> Result<BTreeMap<Slot, i64>, Fault> {
        let link = self.link;
        let command = |slot, out: &mut Vec<u8>| {
            let keys = [epoch_key, record_key, watermark_key].map(|key| key(link, slot));
            push_command(out, &[b"EXISTS", &keys[0], &keys[1], &keys[2]]);
        };
        let replies = self.masters.ask_slots(&SlotSet::all(), command)?;
        let holding = replies.into_iter().filter_map(|(slot, reply)| match reply {
            Value::Integer(0) => None,
            Value::Integer(count) => Some((slot, count)),
            // It is about to move, and some keys have moved already.
            _ => Some((slot, i64::MAX)),
        });
        Ok(holding.collect())
    }

    /// All bookkeeping, and the epochs that are there.
    fn read(&mut self, epoch: u32) -> Result<(Bookkeeping, Vec<(Slot, u32)>), Fault> {
        let link = self.link;
        let mut holding = self.holding()?;
        let mut bookkeeping = Bookkeeping {
            epoch,
            ..Bookkeeping::default()
        };
        let anything = holding.keys().copied().collect();
        for (slot, reply) in self.get(&anything, watermark_key)? {
            let mark = std::str::from_utf8(&reply).ok();
            let Some(mark) = mark.and_then(|text| text.parse::<Mark>().ok()) else {
                let what = shown(&watermark_key(link, slot), "holds no watermark");
                return Err(unreadable(link, &what));
            };
            bookkeeping.found_mark(slot, mark);
            *holding.entry(slot).or_default() -= 1;
        }
        // Most slots with a watermark hold nothing else.
        let more = holding.into_iter().filter(|(_, count)| *count > 0);
        let more = more.map(|(slot, _)| slot).collect();
        let command =
            |slot, out: &mut Vec<u8>| push_command(out, &[b"HGETALL", &record_key(link, slot)]);
        for (slot, reply) in self.masters.ask_slots(&more, command)? {
            let fields = match reply.array() {
                Some(fields) => fields,
                None => return Err(foreign(link, &record_key(link, slot), &reply)),
            };
            for pair in fields.chunks_exact(2) {
                let held_by = self.masters.owner(slot).unwrap_or_default().to_owned();
                let found = found(link, slot, held_by, pair)?;
                bookkeeping.records.push(found);
            }
            if bookkeeping.records.len() > limits::MAX_RECORDS {
                return Err(unreadable(link, "the target holds too many records"));
            }
        }
        let records = &mut bookkeeping.records;
        records.sort_unstable_by_key(|found| (found.slot, found.generation));
        let epochs = self.epochs(&more)?;
        Ok((bookkeeping, epochs))
    }

    /// Removes the records that nobody needs any more, so that they do not grow with every start.
    fn without_superseded(
        &mut self,
        epoch: u32,
        mut bookkeeping: Bookkeeping,
    ) -> Result<Claim, Fault> {
        let masters = &*self.masters;
        let gone = bookkeeping.superseded(|slot| masters.owner(slot));
        let slots: SlotSet = gone.iter().map(|(slot, _)| *slot).collect();
        let link = self.link;
        self.masters.ask_slots(&slots, |slot, out| {
            let of_slot = gone.iter().filter(|(other, _)| *other == slot);
            let fields: Vec<String> = of_slot.map(|(_, field)| field.to_string()).collect();
            let key = record_key(link, slot);
            let mut command: Vec<&[u8]> = vec![b"HDEL", &key];
            command.extend(fields.iter().map(String::as_bytes));
            push_command(out, &command);
        })?;
        bookkeeping
            .records
            .retain(|found| !gone.contains(&(found.slot, found.generation)));
        Ok(Claim {
            epoch,
            bookkeeping,
            topology: self.masters.topology().clone(),
            runs: Vec::new(),
        })
    }
}

/// What is done about a connection of the link, by the epoch and lane of its name.
enum Verdict {
    End,
    Leave,
    /// It is of a process that came later.
    Higher(u32),
}

fn highest(epochs: &[(Slot, u32)]) -> u32 {
    let epochs = epochs.iter().map(|(_, epoch)| *epoch);
    epochs.max().unwrap_or_default()
}

/// The highest epoch that anything was written in.
fn highest_written(bookkeeping: &Bookkeeping) -> Option<u32> {
    let records = bookkeeping.records.iter();
    let records = records.map(|found| found.generation.epoch);
    let watermarks = bookkeeping.watermarks.values();
    records
        .chain(watermarks.map(|watermark| watermark.generation.epoch))
        .max()
}

/// One field of a hash of records.
fn found(link: &LinkName, slot: Slot, held_by: String, pair: &[Value]) -> Result<Found, Fault> {
    let key = record_key(link, slot);
    let [Value::Bulk(field), Value::Bulk(text)] = pair else {
        return Err(unreadable(link, &shown(&key, "is no hash of records")));
    };
    let generation = std::str::from_utf8(field).ok();
    let generation = generation.and_then(|text| text.parse::<Generation>().ok());
    let Some(generation) = generation else {
        let what = format!("has a field '{}' of no generation", field.escape_ascii());
        return Err(unreadable(link, &shown(&key, &what)));
    };
    let record = Record::decode(text).map_err(|error| {
        let what = format!("cannot be read in field {generation}: {error}");
        unreadable(link, &shown(&key, &what))
    })?;
    Ok(Found {
        held_by,
        slot,
        generation,
        record,
    })
}

/// A key of ours that holds something of another type.
fn foreign(link: &LinkName, key: &[u8], reply: &Value) -> Fault {
    let what = match reply {
        Value::Error(text) => format!("is not what slotstream wrote: {text}"),
        _ => "is not what slotstream wrote".to_owned(),
    };
    unreadable(link, &shown(key, &what))
}

fn shown(key: &[u8], what: &str) -> String {
    format!("the target's key {} {what}", key.escape_ascii())
}

fn unreadable(link: &LinkName, what: &str) -> Fault {
    let text = format!(
        "{what}; use the version that wrote it, or slotstream clean --link {link} to begin with a new copy"
    );
    Fault::new(FaultKind::Bookkeeping, text)
}
