//! `slotstream clean`: removes what slotstream keeps on a target about itself.
//!
//! With `--link` the keys are asked for by name, three for each slot, and only what a mend left behind is looked for by a walk
//! over all keys; without, everything is found by that. It refuses while a slotstream writes there, which would go on without
//! what it relies on.

use std::collections::BTreeMap;
use std::io::Write;

use super::args::{CleanArgs, CleanOptions};
use super::progress::Screen;
use crate::checkpoint::{LinkName, bookkeeping_of, epoch_key, mend_key, record_key, watermark_key};
use crate::control::discover::{discover, warn_of_unused_rewrites};
use crate::control::masters::{Masters, persist};
use crate::control::writers::connected;
use crate::fault::{Fault, FaultKind, Side};
use crate::limits::CLEAN_SCAN_COUNT;
use crate::resp::push_command;
use crate::slot::{Slot, SlotSet, slot_of};
use crate::topology::Value;

/// Keys of one kind of one link, by the letter of the kind and, for those of mends, their number in the slot.
type Kind = (LinkName, char, usize);

/// What was found or removed.
#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    keys: u64,
    /// Names and values; what they take in memory is more.
    bytes: u64,
}

/// Finds, removes, and tells.
pub fn run(args: CleanArgs) -> Result<(), Fault> {
    let options = args.options(|name| std::env::var(name).ok())?;
    Screen::new().start_log();
    let found = discover(Side::Target, &options.target)?;
    warn_of_unused_rewrites(&[(&options.target, &found.topology)]);
    let mut sums = BTreeMap::new();
    let what = "cleaning the target";
    persist(what, &options.target, &found.topology, |masters| {
        clean(masters, &options, &mut sums)
    })?;
    // Whoever closed standard output does not want it.
    let _ = write!(std::io::stdout(), "{}", report(&options, &sums));
    Ok(())
}

fn report(options: &CleanOptions, sums: &BTreeMap<LinkName, Sum>) -> String {
    let done = match options.dry_run {
        true => "would be removed",
        false => "removed",
    };
    let lines = sums.iter().map(|(link, sum)| {
        let Sum { keys, bytes } = sum;
        let s = if *keys == 1 { "" } else { "s" };
        format!("link {link}: {keys} key{s} with {bytes} bytes {done}\n")
    });
    match (sums.is_empty(), &options.link) {
        (false, _) => lines.collect(),
        (true, Some(link)) => format!("link {link}: the target holds no bookkeeping\n"),
        (true, None) => "the target holds no bookkeeping\n".to_owned(),
    }
}

/// One try; what a former one removed stays in `sums`.
fn clean(
    masters: &mut Masters,
    options: &CleanOptions,
    sums: &mut BTreeMap<LinkName, Sum>,
) -> Result<(), Fault> {
    if !options.force {
        refuse_writers(masters, options.link.as_ref())?;
    }
    let places = match &options.link {
        Some(link) => {
            let mut places = scan(masters, &format!("{{*}}slotstream:m:{link}:*"))?;
            let kinds = ['e', 'r', 'w'].into_iter();
            places.extend(kinds.map(|kind| ((link.clone(), kind, 0), SlotSet::all())));
            places
        }
        None => scan(masters, "{*}slotstream:?:*")?,
    };
    if options.dry_run {
        sums.clear();
    }
    for (kind, slots) in places {
        let sizes = sizes(masters, &kind, &slots)?;
        let there: SlotSet = sizes.keys().copied().collect();
        let removed = match options.dry_run {
            true => there,
            false => remove(masters, &kind, &there)?,
        };
        for slot in removed.iter() {
            let sum = sums.entry(kind.0.clone()).or_default();
            sum.keys += 1;
            sum.bytes += sizes[&slot];
        }
    }
    Ok(())
}

/// A slotstream that is at work would not notice.
fn refuse_writers(masters: &mut Masters, link: Option<&LinkName>) -> Result<(), Fault> {
    for client in masters.clients() {
        let writers = connected(client)?;
        let mut ours = writers
            .iter()
            .filter(|one| link.is_none_or(|link| one.writer.link == *link));
        if let Some(one) = ours.next() {
            let text = format!(
                "link {} is in use: target {} has a connection of a slotstream from {}; stop that first, or use --force",
                one.writer.link,
                client.name(),
                one.address
            );
            return Err(Fault::new(FaultKind::TakenOver, text));
        }
    }
    Ok(())
}

/// Bookkeeping with such names. A key may be where its slot is moving to, so where it was found does not matter.
fn scan(masters: &mut Masters, pattern: &str) -> Result<BTreeMap<Kind, SlotSet>, Fault> {
    let mut found: BTreeMap<Kind, SlotSet> = BTreeMap::new();
    for client in masters.clients() {
        let mut cursor = b"0".to_vec();
        loop {
            let command: [&[u8]; 6] = [
                b"SCAN",
                &cursor,
                b"MATCH",
                pattern.as_bytes(),
                b"COUNT",
                CLEAN_SCAN_COUNT,
            ];
            let page = client.call(&command)?;
            let Some([Value::Bulk(next), Value::Array(keys)]) = page.array() else {
                return Err(client.shape_fault("SCAN", "no page of keys"));
            };
            for key in keys {
                if let Value::Bulk(key) = key
                    && let Some((kind, link)) = bookkeeping_of(key)
                {
                    let kind = (link, kind, number_of(kind, key));
                    found.entry(kind).or_default().insert(slot_of(key));
                }
            }
            if next == b"0" {
                break;
            }
            cursor.clone_from(next);
        }
    }
    Ok(found)
}

/// What a mend numbered a key with.
fn number_of(kind: char, key: &[u8]) -> usize {
    let number = key.rsplit(|byte| *byte == b':').next();
    let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    number.filter(|_| kind == 'm').unwrap_or_default()
}

fn key((link, kind, number): &Kind, slot: Slot) -> Vec<u8> {
    match kind {
        'm' => mend_key(link, slot, *number),
        'e' => epoch_key(link, slot),
        'r' => record_key(link, slot),
        _ => watermark_key(link, slot),
    }
}

/// The keys that are there, and how long they and their values are.
fn sizes(
    masters: &mut Masters,
    kind: &Kind,
    slots: &SlotSet,
) -> Result<BTreeMap<Slot, u64>, Fault> {
    let verb: &[u8] = if kind.1 == 'r' { b"HGETALL" } else { b"GET" };
    let replies = masters.ask_slots(slots, |slot, out| {
        push_command(out, &[verb, &key(kind, slot)]);
    })?;
    let length = |value: &Value| match value {
        Value::Bulk(bytes) => bytes.len(),
        // Of another type than slotstream writes: it is in the way all the same.
        _ => 0,
    };
    let there = replies.into_iter().filter_map(|(slot, reply)| {
        let value = match &reply {
            Value::Null => return None,
            Value::Array(fields) if fields.is_empty() => return None,
            Value::Array(fields) => fields.iter().map(length).sum(),
            other => length(other),
        };
        Some((slot, (key(kind, slot).len() + value) as u64))
    });
    Ok(there.collect())
}

/// The slots of which the key was removed.
fn remove(masters: &mut Masters, kind: &Kind, slots: &SlotSet) -> Result<SlotSet, Fault> {
    let replies = masters.ask_slots(slots, |slot, out| {
        push_command(out, &[b"UNLINK", &key(kind, slot)]);
    })?;
    let removed = replies
        .into_iter()
        .filter(|(_, reply)| *reply == Value::Integer(1));
    Ok(removed.map(|(slot, _)| slot).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_is_told_by_link() {
        let mut options = CleanOptions {
            target: "redis://a".parse().expect("valid"),
            link: None,
            dry_run: false,
            force: false,
        };
        let link: LinkName = "a".parse().expect("valid");
        let sum = Sum { keys: 3, bytes: 99 };
        let sums = BTreeMap::from([(link.clone(), sum)]);
        assert_eq!(
            report(&options, &sums),
            "link a: 3 keys with 99 bytes removed\n"
        );
        options.dry_run = true;
        assert!(report(&options, &sums).ends_with("would be removed\n"));
        let none = BTreeMap::new();
        assert_eq!(report(&options, &none), "the target holds no bookkeeping\n");
        options.link = Some(link);
        assert!(report(&options, &none).starts_with("link a: the target holds no"));
    }
}
