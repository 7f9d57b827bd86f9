//! Short rounds of `tools/torture crash`: whatever breaks, everything is on the target exactly once.
//!
//! A failure prints what differs, where the logs of all processes are, and the command that does the same again, for
//! as long as one likes.

use anyhow::{Result, ensure};
use lab::torture::{self, Options, Variant};
use lab::{Family, version_or_skip};

/// Enough keys that a start is more than its first read, few enough to load in a moment.
const KEYS: usize = 3_000;
/// A copy of fewer would be over before it can be killed.
const COPIED_KEYS: usize = 20_000;
const COMMANDS_PER_SECOND: u64 = 3_000;

fn is_exact(variant: Variant, strikes: u64, keys: usize) -> Result<()> {
    let family = Family::Redis70;
    if version_or_skip(family).is_none() {
        return Ok(());
    }
    let program = env!("CARGO_BIN_EXE_slotstream").into();
    let seed = u64::from(std::process::id());
    let summary = torture::run(&Options {
        strikes: Some(strikes),
        strikes_per_round: strikes.div_ceil(2),
        keys,
        commands_per_second: COMMANDS_PER_SECOND,
        ..Options::new(program, variant, family, seed)
    })?;
    ensure!(summary.is_clean(), "{summary}");
    ensure!(
        summary.comparisons >= 2 && summary.strike_count() >= strikes,
        "{summary}"
    );
    Ok(())
}

#[test]
fn nothing_is_lost_or_done_twice_when_slotstream_is_killed() -> Result<()> {
    is_exact(Variant::Kill, 15, KEYS)
}

#[test]
fn a_copy_that_is_killed_in_the_middle_leaves_no_key_that_the_source_lost() -> Result<()> {
    is_exact(Variant::Copy, 4, COPIED_KEYS)
}

#[test]
fn nothing_is_lost_or_done_twice_when_the_way_to_the_target_breaks() -> Result<()> {
    is_exact(Variant::Proxy, 8, KEYS)
}

#[test]
fn of_two_processes_for_one_link_one_gives_way() -> Result<()> {
    is_exact(Variant::Twice, 4, KEYS)
}

#[test]
fn a_stop_is_clean_and_the_next_start_goes_on_where_it_ended() -> Result<()> {
    is_exact(Variant::Stop, 4, KEYS)
}
