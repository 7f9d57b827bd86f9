//! Slots that move between masters, of the source and of the target.

use super::rig::{
    COMMANDS_BETWEEN, COMMANDS_PER_SECOND, PATIENCE, Rig, Setup, loaded, must_be_equal, program,
    stop, while_replicating,
};
use anyhow::{Context, Result, bail, ensure};
use lab::changes::{assign_slot, close_slot, move_keys, move_slot, node_id, open_slot};
use lab::{
    Cluster, ClusterOptions, Commands, Family, Server, ServerOptions, Slotstream, WriterOptions,
    Writers, client::slot_of, load, version_or_skip, wait_until,
};

/// Slots move between masters of the target, key by key.
pub fn target_resharding(family: Family) -> Result<()> {
    let setup = Setup {
        commands: Commands::OneKey,
        key_groups: 16,
        ..Setup::default()
    };
    while_replicating(family, setup, |rig| {
        let [giver, taker] = rig.target.masters() else {
            bail!("the target has two masters");
        };
        for (index, slot) in written_slots(rig, &rig.target, giver)?
            .into_iter()
            .enumerate()
        {
            // The first one stays half moved until commands met that.
            let met = |rig: &Rig| match index {
                0 => rig.wait_for_hint(),
                _ => Ok(()),
            };
            open_slot(slot, giver, taker)?;
            let moved = move_keys(slot, giver, taker, 5)?;
            ensure!(moved == 5, "slot {slot} had but {moved} keys");
            met(rig)?;
            move_keys(slot, giver, taker, usize::MAX)?;
            assign_slot(&rig.target, slot, taker)?;
        }
        rig.write_more()?;
        rig.copied_once()
    })
}

/// The slots that the writers write to, as far as this node has them.
fn written_slots(rig: &Rig, cluster: &Cluster, node: &Server) -> Result<Vec<usize>> {
    let client = cluster.client()?;
    let tags = (0..rig.setup.key_groups).map(|group| format!("w{group}"));
    let mut slots: Vec<usize> = tags.map(|tag| slot_of(tag.as_bytes())).collect();
    slots.retain(|slot| client.owner_of_slot(*slot) == node.address());
    ensure!(slots.len() > 1, "no group of keys is with the giver");
    Ok(slots)
}

/// What a lane's slots are copied by, not by a snapshot.
fn wait_until_copied(rig: &Rig, slots: u64) -> Result<()> {
    wait_until(PATIENCE, "the slots that moved to be copied", || {
        let status = rig.sync.status()?;
        let frozen = status["frozen"].as_array().is_some_and(Vec::is_empty);
        Ok(frozen && rig.sum("slots.to_copy")? == 0 && rig.sum("slots.copied")? >= slots)
    })
}

fn of_source() -> Setup {
    Setup {
        key_groups: 24,
        ..Setup::default()
    }
}

/// Slots move between masters of the source under all kinds of commands, and come back.
pub fn source_resharding(family: Family) -> Result<()> {
    while_replicating(family, of_source(), |rig| {
        let [one, other] = rig.source.masters() else {
            bail!("the source has two masters");
        };
        let slots = written_slots(rig, &rig.source, one)?;
        for (giver, taker, times) in [(one, other, 1), (other, one, 2)] {
            for slot in &slots {
                move_slot(&rig.source, *slot, giver, taker)?;
            }
            rig.write_more()?;
            wait_until_copied(rig, times * slots.len() as u64)?;
        }
        rig.write_more()?;
        rig.copied_once()
    })
}

/// A migration is called off: what has moved goes back.
pub fn source_resharding_called_off(family: Family) -> Result<()> {
    while_replicating(family, of_source(), |rig| {
        let [one, other] = rig.source.masters() else {
            bail!("the source has two masters");
        };
        let slots = written_slots(rig, &rig.source, one)?;
        for slot in &slots[..2] {
            open_slot(*slot, one, other)?;
            move_keys(*slot, one, other, 5)?;
            wait_until(PATIENCE, "the slot to be frozen", || {
                let frozen = rig.sync.status()?["frozen"].to_string();
                Ok(frozen.contains(&slot.to_string()))
            })?;
            // First its owner sends nobody away any more.
            for (node, back) in [(one, false), (other, true)] {
                if back {
                    move_keys(*slot, other, one, usize::MAX)?;
                }
                close_slot(*slot, node)?;
            }
            rig.write_more()?;
        }
        wait_until_copied(rig, 2)?;
        rig.copied_once()
    })
}

/// All slots of a master go to one that was empty, whose replica it becomes; then slots go to and fro between the others.
pub fn source_master_drained(family: Family) -> Result<()> {
    let setup = Setup {
        source: (3, 0),
        source_slots: Some(vec![vec![0..=799], vec![800..=16383], vec![]]),
        // Enough groups that some are among the few slots.
        key_groups: 200,
        ..Setup::default()
    };
    while_replicating(family, setup, |rig| {
        let [drained, other, fresh] = rig.source.masters() else {
            bail!("the source has three masters");
        };
        let functions = other.connect()?.call(&["FUNCTION", "DUMP"])?;
        let functions = functions.bytes().unwrap_or_default();
        let restore: [&[u8]; 3] = [b"FUNCTION", b"RESTORE", functions];
        fresh.connect()?.call(&restore)?;
        let written = written_slots(rig, &rig.source, drained)?;
        let large = written_slots(rig, &rig.source, other)?;
        for slot in 0..=799 {
            open_slot(slot, drained, fresh)?;
            move_keys(slot, drained, fresh, usize::MAX)?;
            assign_slot(&rig.source, slot, fresh)?;
        }
        wait_until(PATIENCE, "the drained master to become a replica", || {
            Ok(drained.info("replication", "role")? == "slave")
        })?;
        rig.write_more()?;
        wait_until_copied(rig, 0)?;
        for slot in &written {
            move_slot(&rig.source, *slot, fresh, other)?;
        }
        for slot in &large[..5] {
            move_slot(&rig.source, *slot, other, fresh)?;
        }
        rig.write_more()?;
        wait_until_copied(rig, 5)?;
        rig.write_more()
    })
}

/// Slots move as Valkey 9 moves them: as a whole, with the stream of the importing node telling of the keys as of any others.
pub fn source_resharding_as_a_whole(family: Family) -> Result<()> {
    while_replicating(family, of_source(), |rig| {
        let [one, other] = rig.source.masters() else {
            bail!("the source has two masters");
        };
        let slots = written_slots(rig, &rig.source, one)?;
        for (giver, taker, times) in [(one, other, 1), (other, one, 2)] {
            let id = node_id(taker)?;
            for slot in &slots {
                let slot = slot.to_string();
                let migrate = [
                    "CLUSTER",
                    "MIGRATESLOTS",
                    "SLOTSRANGE",
                    &slot,
                    &slot,
                    "NODE",
                    &id,
                ];
                giver.connect()?.call(&migrate)?;
                wait_until(PATIENCE, "the slot to have moved", || {
                    let nodes = taker.connect()?.call(&["CLUSTER", "NODES"])?.text();
                    let mine = nodes.lines().find(|line| line.contains("myself"));
                    Ok(mine.is_some_and(|line| owns(line, slot.parse().unwrap_or_default())))
                })?;
            }
            rig.write_more()?;
            wait_until_copied(rig, times * slots.len() as u64)?;
        }
        rig.write_more()?;
        rig.copied_once()
    })
}

/// Whether a line of `CLUSTER NODES` lists the slot.
fn owns(line: &str, slot: usize) -> bool {
    line.split_whitespace().skip(8).any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = first.parse::<usize>().ok().zip(last.parse::<usize>().ok());
        range.is_some_and(|(first, last)| (first..=last).contains(&slot))
    })
}

/// The program is killed; slots move while it is away, and while it is killed again and again. It copies what moved, not all.
pub fn source_resharding_while_killed(family: Family) -> Result<()> {
    while_replicating(family, of_source(), |rig| {
        let slots = written_slots(rig, &rig.source, &rig.source.masters()[0])?;
        let (away, others) = slots.split_at(slots.len() / 2);
        rig.sync.kill();
        for slot in away {
            let [one, other] = rig.source.masters() else {
                bail!("the source has two masters");
            };
            move_slot(&rig.source, *slot, one, other)?;
        }
        rig.start_again()?;
        wait_until_copied(rig, away.len() as u64)?;
        for slot in others {
            let [one, other] = rig.source.masters() else {
                bail!("the source has two masters");
            };
            open_slot(*slot, one, other)?;
            move_keys(*slot, one, other, 5)?;
            rig.sync.kill();
            rig.start_again()?;
            let [one, other] = rig.source.masters() else {
                bail!("the source has two masters");
            };
            move_keys(*slot, one, other, usize::MAX)?;
            assign_slot(&rig.source, *slot, other)?;
        }
        rig.write_more()?;
        wait_until_copied(rig, 0)?;
        let copies = rig.sum("full_syncs")?;
        ensure!(copies == 0, "{copies} copies of everything");
        Ok(())
    })
}

/// A slot of many keys, of all sizes, moves at once.
pub fn source_slot_of_many_keys(family: Family) -> Result<()> {
    while_replicating(family, of_source(), |rig| {
        let [one, other] = rig.source.masters() else {
            bail!("the source has two masters");
        };
        let slot = written_slots(rig, &rig.source, one)?[0];
        let tags = (0..rig.setup.key_groups).map(|group| format!("w{group}"));
        let mut tags = tags.filter(|tag| slot_of(tag.as_bytes()) == slot);
        let tag = tags.next().expect("the slot is one of them");
        let mut batch = Vec::new();
        for number in 0..10_000 {
            let key = format!("{{{tag}}}:many{number}");
            let value = vec![b'v'; if number % 1_000 == 0 { 300_000 } else { 64 }];
            batch.push(lab::Command::new(&[b"SET", key.as_bytes(), &value]));
        }
        for reply in one.connect()?.pipeline(&batch)? {
            reply.ok()?;
        }
        move_slot(&rig.source, slot, one, other)?;
        wait_until_copied(rig, 1)?;
        ensure!(rig.sum("slots.keys")? > 10_000, "keys are missing");
        rig.copied_once()
    })
}

/// The same into a single server, which is one slot to the program.
#[test]
fn slots_of_the_source_move_while_a_single_server_is_the_target() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let source = Cluster::start(&version, 2, 0, ClusterOptions::default())?;
    let target = Server::start(&version, ServerOptions::default())?;
    load(&mut source.client()?, &loaded())?;
    let options = WriterOptions {
        seed: u64::from(std::process::id()),
        threads: 1,
        commands_per_second: COMMANDS_PER_SECOND,
        key_groups: 24,
        short_lives: false,
        ..WriterOptions::default()
    };
    let writers = Writers::start(&source.endpoint(), &options)?;
    let mut sync = Slotstream::start(program(), &source.endpoint(), &target.endpoint(), &[])?;
    let mut act = || -> Result<()> {
        sync.wait_until_caught_up(PATIENCE)?;
        let [one, other] = source.masters() else {
            bail!("the source has two masters");
        };
        let client = source.client()?;
        let tags = (0..24).map(|group| format!("w{group}"));
        let mut slots: Vec<usize> = tags.map(|tag| slot_of(tag.as_bytes())).collect();
        slots.retain(|slot| client.owner_of_slot(*slot) == one.address());
        for slot in &slots {
            move_slot(&source, *slot, one, other)?;
        }
        let goal = writers.commands_so_far() + COMMANDS_BETWEEN;
        wait_until(PATIENCE, "more writes", || {
            Ok(writers.commands_so_far() >= goal)
        })?;
        wait_until(PATIENCE, "the slots that moved to be copied", || {
            let status = sync.status()?;
            let copied = status["lanes"].as_array().into_iter().flatten();
            let copied = copied.filter_map(|lane| lane["slots"]["copied"].as_u64());
            Ok(copied.sum::<u64>() >= slots.len() as u64)
        })
    };
    let acted = act();
    let stopped = stop(writers);
    acted
        .and_then(|()| sync.wait_until_settled(PATIENCE))
        .and_then(|()| must_be_equal(&source.endpoint(), &target.endpoint()))
        .with_context(|| format!("writers' seed {}: {}", options.seed, sync.output()))?;
    stopped
}
