//! Keys that somebody breaks at the target behind the lane's back, and what the source tells of keys.
//!
//! A key is *suspect* from when it is broken, and with it every key that a command has ever tied to it: whatever a
//! command reads there it may carry on. Commands on suspect keys may fail. Keys on which one failed must be equal again in
//! the end without a word, over crashes of the process and restarts of masters; then the lane is told of all that are suspect,
//! and afterwards source and target are equal.

use std::collections::BTreeSet;

use slotstream::engine::mending::{MendAnswer, MendQuestion};
use slotstream::engine::options::OnDivergence;
use slotstream::mend::{Snapshot, Taken};
use slotstream::position::Offset;
use slotstream::slot::slot_of;

use crate::chaos::{self, Plan, SpoolPlan};
use crate::model::{Key, Value};
use crate::rdb;
use crate::rewinds::Lagging;
use crate::rng::Rng;
use crate::trace;
use crate::workload::Workload;
use crate::world::{Used, World};

/// How often keys are broken in one run, at most.
const MOST: usize = 12;

/// An answer on its way to the lane.
pub struct Letter {
    pub at_ms: u64,
    pub ticket: u64,
    pub question: MendQuestion,
    /// None until the source has looked.
    pub answer: Option<MendAnswer>,
}

impl World {
    /// Questions about keys go to the source, and answers come back, each after a while.
    pub fn talk_of_mends(&mut self) -> Result<(), slotstream::fault::Fault> {
        let now_ms = self.now_ms;
        let letters = std::mem::take(&mut self.letters);
        for mut letter in letters {
            if letter.at_ms > now_ms {
                self.letters.push(letter);
            } else if let Some(answer) = letter.answer.take() {
                trace::note(|| format!("answer {} comes: {answer:?}", letter.ticket));
                self.lane.mend_answered(letter.ticket, answer)?;
            } else {
                letter.answer = Some(self.look_up(&letter.question));
                letter.at_ms = now_ms + self.rng.below(100) as u64;
                self.letters.push(letter);
            }
        }
        for (ticket, question) in self.lane.take_mend_questions() {
            trace::note(|| format!("the lane asks {ticket} about {:?}", question.keys));
            let at_ms = now_ms + self.rng.below(100) as u64;
            self.letters.push(Letter {
                at_ms,
                ticket,
                question,
                answer: None,
            });
        }
        Ok(())
    }

    fn look_up(&mut self, question: &MendQuestion) -> MendAnswer {
        if self.rng.once_in(10) {
            return MendAnswer::Later("the source does not answer".into());
        }
        let offset = self.source.offset();
        let taken = |key: &Key| {
            let value = self.source.store.keys.get(key)?;
            Some(Taken {
                payload: rdb::payload(value),
                expire_at_ms: self.source.store.deadlines.get(key).copied(),
            })
        };
        let keys = &question.keys.keys;
        for key in keys {
            self.tracker.told_at(key.clone(), offset);
        }
        MendAnswer::Taken(Snapshot {
            replid: self.source.replid.clone(),
            offset: Offset(offset),
            values: keys.iter().map(taken).collect(),
        })
    }

    /// Keys on which a command failed have healed.
    fn check_noticed(&self) {
        let target = self.union_of_targets();
        for key in self.tracker.noticed() {
            assert_eq!(
                target.keys.get(key),
                self.source.store.keys.get(key),
                "a command has failed on {}:{}, and it was not mended",
                key.0,
                key.1.escape_ascii()
            );
        }
    }

    /// Changes a key at the target: takes it away, or makes it something else.
    fn break_key(&mut self, key: &Key) {
        let slot = slot_of(&key.1);
        let moving = self.cluster.moving().iter().any(|(of, ..)| *of == slot);
        // Not on its way: what was sent behind `ASKING` relies on a key that is nowhere to stay so.
        if moving || !self.cluster.finish_later.is_empty() {
            return;
        }
        let owner = self.cluster.owners[usize::from(slot)];
        let owner = if self.cluster.single { 0 } else { owner };
        let text = b"broken".to_vec();
        let store = &mut self.cluster.nodes[owner].store;
        let broken = match self.rng.below(6) {
            0 => None,
            1 => Some(Value::Text(text)),
            2 => Some(Value::List([text].into())),
            3 => Some(Value::Set([text].into())),
            4 => Some(Value::Hash([(text.clone(), text)].into())),
            _ => match store.keys.get(key).cloned() {
                Some(Value::List(mut list)) => {
                    list.push_back(text);
                    Some(Value::List(list))
                }
                Some(Value::Hash(mut hash)) => {
                    hash.insert(text.clone(), text);
                    Some(Value::Hash(hash))
                }
                _ => None,
            },
        };
        trace::note(|| format!("{}:{} becomes {broken:?}", key.0, key.1.escape_ascii()));
        match broken {
            Some(value) => _ = store.keys.insert(key.clone(), value),
            None => _ = store.keys.remove(key),
        }
        self.tracker.suspect(key.clone());
    }
}

/// One run in which keys are broken; gives what it made of the disk. Panics when anything is not as it must be.
pub fn run(seed: u64) -> Used {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::of(&mut rng);
    plan.grouping = chaos::grouping_of(seed);
    // What a flush removes cannot be told from what was broken, and keys that only the source can tell are not mended.
    plan.mix.flushes = false;
    plan.mix.unknown = false;
    plan.mix.fat = false;
    plan.stale_keys = 0;
    plan.trouble.duplicate = 0;
    let (spool, disk_rng) = SpoolPlan::of_seed(seed);
    trace::note(|| format!("{plan:?} {spool:?}"));
    let (mut world, mut workload, _) =
        chaos::begin(&plan, &spool, rng, disk_rng, OnDivergence::Mend);
    let every = world.rng.between(20, 200);
    let mut broken = 0;
    let mut lagging = Lagging::of_seed(seed);
    for _ in 0..plan.steps {
        chaos::one_step(&mut world, &plan, &spool, &mut workload);
        if plan.records {
            lagging.stir(&mut world);
        }
        if broken < MOST && world.rng.once_in(every) {
            broken += 1;
            let key = any_key(&mut world, &plan, &workload);
            world.break_key(&key);
        }
    }
    chaos::settle(&mut world);
    world.run_until_equal();
    world.check_noticed();
    let suspects: BTreeSet<Key> = world.tracker.suspects();
    let told = world.lane.mend(suspects.into_iter().collect());
    told.expect("a few keys");
    world.run_until(60_000, "the mend of all that was broken", |world| {
        let mut nodes = 0..world.cluster.nodes.len();
        world.lane.keys_owed() == 0 && nodes.all(|node| world.is_drained(node))
    });
    // What was mended counts as applied with the next command.
    world.source.say(&["ping"]);
    world.run_until_equal();
    world.check_equal();
    chaos::finish(&mut world);
    world.used()
}

fn any_key(world: &mut World, plan: &Plan, workload: &Workload) -> Key {
    let group = world.rng.pick(&workload.groups).clone();
    let key = world.rng.pick(&group).clone();
    let databases = plan.mix.databases as usize;
    (world.rng.below(databases) as u32, key)
}
