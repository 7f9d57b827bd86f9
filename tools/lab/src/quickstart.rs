//! A first look at the program: two clusters, live writes, `slotstream sync`, and a comparison.

use crate::Result;
use crate::cluster::{Cluster, ClusterOptions};
use crate::compare::{CompareOptions, Diff, compare};
use crate::load::{LoadOptions, load};
use crate::server::ServerOptions;
use crate::slotstream::Slotstream;
use crate::version::{Family, Version, version};
use crate::writers::{WriterOptions, WriterReport, Writers};
use anyhow::{Context, bail};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const MASTERS: usize = 3;
const COMMANDS_PER_SECOND: u64 = 2_000;
const COPY_TIMEOUT: Duration = Duration::from_secs(300);
const APPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// Tried in this order where no family is asked for.
const PREFERRED: [Family; 3] = [Family::Valkey9, Family::Valkey81, Family::Redis70];

/// What the quickstart does.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program `slotstream`.
    pub program: PathBuf,
    /// The servers; the newest that can be fetched where this is `None`.
    pub family: Option<Family>,
    /// Keys in the source before the copy begins.
    pub keys: usize,
    /// How long live writes go on after the copy.
    pub live: Duration,
}

/// Runs everything, telling each step, and fails where the clusters differ in the end.
pub fn run(options: &Options) -> Result<()> {
    println!("slotstream quickstart: one live cluster into another, on this machine only\n");
    let version = chosen_version(options.family)?;
    step(
        1,
        "Servers",
        &format!("{version}, unpacked for this only; nothing is installed"),
    );

    let source = start_cluster(&version)?;
    let target = start_cluster(&version)?;
    step(2, "Source", &format!("{}  {MASTERS} masters", source.uri()));
    more(
        "Target",
        &format!("{}  {MASTERS} masters, empty", target.uri()),
    );

    let loaded = LoadOptions {
        keys: options.keys,
        ..LoadOptions::default()
    };
    let report = load(&mut source.client()?, &loaded)?;
    let text = format!(
        "{} keys of every type in the source",
        thousands(report.keys)
    );
    step(3, "Data", &text);
    let writers = start_writers(&source, loaded)?;
    let text = format!(
        "about {} write commands a second, from now on",
        thousands(COMMANDS_PER_SECOND as usize)
    );
    more("Writers", &text);

    let command = format!("sync --source {} --target {}", source.uri(), target.uri());
    step(
        4,
        "Sync",
        &format!("{} {command}\n", options.program.display()),
    );
    let copied_in = synchronize(options, &source, &target, writers)?;

    let diff = compare_both(&version, &source, &target)?;
    println!();
    let verdict = if diff.is_equal() {
        "EQUAL"
    } else {
        "DIFFERENT"
    };
    let text = format!(
        "{verdict}: {} keys, by value, type and expiry",
        thousands(diff.keys)
    );
    step(5, "Comparison", &text);
    if !diff.is_equal() {
        bail!("source and target differ: {diff}");
    }
    println!(
        "\nWhat you saw: slotstream attached to each of the {MASTERS} source masters as a replica does, copied \
         their\ndata ({} keys and live writes) in {:.1} s, and followed every write of {} commands after\n\
         that. The writers never stopped for it. In the end both clusters held the same. Everything that was\n\
         started is stopped again.\n\nYour own: {} sync --source redis://HOST:PORT --target redis://HOST:PORT",
        thousands(report.keys),
        copied_in.duration.as_secs_f64(),
        thousands(usize::try_from(copied_in.writers.commands)?),
        options.program.display()
    );
    Ok(())
}

/// How the copy went, and what was written around it.
struct Synchronized {
    duration: Duration,
    writers: WriterReport,
}

/// Runs the program until the copy is done, for a while longer, and until all writes have arrived.
fn synchronize(
    options: &Options,
    source: &Cluster,
    target: &Cluster,
    writers: Writers,
) -> Result<Synchronized> {
    let started = Instant::now();
    let mut sync =
        Slotstream::start_shown(&options.program, &source.endpoint(), &target.endpoint())?;
    sync.wait_until_caught_up(COPY_TIMEOUT)?;
    let duration = started.elapsed();
    std::thread::sleep(options.live);
    let writers = writers.stop()?;
    if !writers.errors.is_empty() {
        bail!("the writers met errors: {writers}");
    }
    sync.wait_until_settled(APPLY_TIMEOUT)?;
    let (exit, _) = sync.stop()?;
    if !exit.success() {
        bail!("slotstream ended with {exit}");
    }
    Ok(Synchronized { duration, writers })
}

fn chosen_version(family: Option<Family>) -> Result<Version> {
    if let Some(family) = family {
        return version(family);
    }
    println!("Fetching a server from Debian's archive, unless that was done before ...");
    let mut reason = None;
    for family in PREFERRED {
        match version(family) {
            Ok(version) => return Ok(version),
            Err(error) => reason = Some(error),
        }
    }
    Err(reason.context("no server is preferred")?)
}

fn start_cluster(version: &Version) -> Result<Cluster> {
    let options = ClusterOptions {
        server: ServerOptions {
            diskless: true,
            ..ServerOptions::default()
        },
        slots: None,
    };
    Cluster::start(version, MASTERS, 0, options)
}

fn start_writers(source: &Cluster, loaded: LoadOptions) -> Result<Writers> {
    let options = WriterOptions {
        commands_per_second: COMMANDS_PER_SECOND,
        loaded: Some(loaded),
        short_lives: false,
        ..WriterOptions::default()
    };
    Writers::start(&source.endpoint(), &options)
}

fn compare_both(version: &Version, source: &Cluster, target: &Cluster) -> Result<Diff> {
    // 6.0 sends how long keys still live, so what waits for the copy lives longer by that.
    let relative = if version.family() == Family::Redis60 {
        Duration::from_secs(60)
    } else {
        CompareOptions::default().relative_ttl_tolerance
    };
    let options = CompareOptions {
        relative_ttl_tolerance: relative,
        ..CompareOptions::default()
    };
    compare(&source.endpoint(), &target.endpoint(), &options)
}

fn step(number: usize, title: &str, text: &str) {
    println!("{number}. {title:<11} {text}");
}

fn more(title: &str, text: &str) {
    println!("   {title:<11} {text}");
}

/// A number with its digits in groups of three.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_stand_in_groups_of_three() {
        assert_eq!(thousands(7), "7");
        assert_eq!(thousands(1234), "1,234");
        assert_eq!(thousands(123_456_789), "123,456,789");
    }
}
