//! Killed in its first copy, again and again, while the source loses keys that earlier copies have brought over.
//!
//! The source takes its time for each key of a snapshot, so that a copy takes longer than it is given.

use super::rig::Rig;
use crate::client::Client;
use crate::resp::Command;
use crate::slotstream::Slotstream;
use crate::{Result, wait_until};
use std::time::Duration;

const USUAL_KILLS: u64 = 10;
const BETWEEN_MS: std::ops::Range<u64> = 100..800;
/// Most kills wait until there is a copy to be killed in, but not for longer than this.
const COPY_PATIENCE: Duration = Duration::from_secs(10);
/// What the keys of one snapshot are given, which is divided among them. The servers' clocks add some.
const SNAPSHOT_US: usize = 4_000_000;
/// One in so many keys goes or is renamed between the kills.
const KEYS_PER_VICTIM: usize = 10;

pub fn run(rig: &mut Rig) -> Result<()> {
    let kills = rig.options.strikes.unwrap_or(USUAL_KILLS);
    let mut source = rig.source.client()?;
    let mut victims = Victims::create(&mut source, rig.options.keys / KEYS_PER_VICTIM)?;
    let keys_of_one = (rig.options.keys / rig.source.masters().len()).max(1);
    delay_each_key(rig, SNAPSHOT_US / keys_of_one)?;
    rig.start_writers()?;
    rig.launch()?;
    let mut in_copy = 0;
    for kill in 0..kills {
        if rig.random.u8(0..4) > 0 {
            let sync = rig.sync()?;
            // If it does not come, the count tells.
            let _ = wait_until(COPY_PATIENCE, "a copy", || Ok(is_copying(sync)));
        }
        rig.run_for(BETWEEN_MS)?;
        in_copy += u64::from(is_copying(rig.sync()?));
        rig.kill()?;
        victims.lose(&mut source, kills - kill)?;
        rig.launch()?;
        rig.tell_progress();
    }
    rig.journal
        .tell(&format!("{in_copy} of {kills} kills were in a copy"));
    if in_copy * 2 < kills {
        rig.fault("hardly a kill was in a copy, so this run shows nothing: try more keys".into());
    }
    // The one that is under way keeps its delay: another begins.
    delay_each_key(rig, 0)?;
    rig.kill_and_restart()?;
    rig.stop_writers()?;
    rig.settle_and_compare()?;
    // The copy is whole: from here on it is taken up where it ended.
    rig.first_copy_is_whole()?;
    rig.start_writers()?;
    rig.kill_and_restart()?;
    rig.run_for(BETWEEN_MS)?;
    rig.stop_writers()?;
    rig.settle_and_compare()
}

fn is_copying(sync: &Slotstream) -> bool {
    let status = sync.status().unwrap_or_default();
    let mut lanes = status["lanes"].as_array().into_iter().flatten();
    lanes.any(|lane| lane["state"] == "copying")
}

/// Lets the source's masters wait at each key that they put into a snapshot.
fn delay_each_key(rig: &Rig, microseconds: usize) -> Result<()> {
    for master in rig.source.masters() {
        let delay = microseconds.to_string();
        let mut connection = master.connect()?;
        connection.call(&["CONFIG", "SET", "rdb-key-save-delay", &delay])?;
    }
    Ok(())
}

/// Keys that the source will lose.
struct Victims {
    left: Vec<usize>,
}

impl Victims {
    fn create(source: &mut Client, count: usize) -> Result<Victims> {
        let left: Vec<usize> = (0..count).collect();
        for numbers in left.chunks(10_000) {
            let commands: Vec<Command> = numbers
                .iter()
                .map(|number| match number % 3 {
                    0 => Command::new(&[b"SET", name(*number).as_slice(), b"v"]),
                    1 => Command::new(&[b"RPUSH", name(*number).as_slice(), b"a", b"b"]),
                    _ => Command::new(&[b"HSET", name(*number).as_slice(), b"f", b"v"]),
                })
                .collect();
            succeed(source, &commands)?;
        }
        Ok(Victims { left })
    }

    /// Deletes or renames an equal share of what is left, of which there will be so many shares; one is never lost.
    fn lose(&mut self, source: &mut Client, shares: u64) -> Result<()> {
        let share = self.left.len() / (usize::try_from(shares)? + 1);
        let commands: Vec<Command> = self
            .left
            .drain(..share)
            .map(|number| match number % 2 {
                0 => Command::new(&[b"DEL".as_slice(), &name(number)]),
                _ => Command::new(&[b"RENAME".as_slice(), &name(number), &new_name(number)]),
            })
            .collect();
        succeed(source, &commands)
    }
}

fn succeed(source: &mut Client, commands: &[Command]) -> Result<()> {
    for reply in source.pipeline(commands)? {
        reply.ok()?;
    }
    Ok(())
}

fn name(number: usize) -> Vec<u8> {
    format!("{{victim{number}}}:old").into_bytes()
}

fn new_name(number: usize) -> Vec<u8> {
    format!("{{victim{number}}}:new").into_bytes()
}
