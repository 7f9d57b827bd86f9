//! Crashes, over and over, of everything between two live clusters: what slotstream writes must be there exactly
//! once.
//!
//! Three masters are copied into two, while writers send what shows any command that is left out or done twice:
//! counters, pushes, pops, renames, scripts. Meanwhile things break, at random instants from a seed. In the end both
//! sides must be equal, key by key, and no source master may have been asked for a second snapshot.
//!
//! | variant | what breaks | file |
//! |---|---|---|
//! | [`Variant::Kill`] | slotstream is killed, also while it recovers | `kill` |
//! | [`Variant::Copy`] | slotstream is killed in its first copy, and keys go meanwhile | `copy` |
//! | [`Variant::Proxy`] | connections to the target: cut in mid-command, replies late or lost, requests late | `network` |
//! | [`Variant::Twice`] | two processes for one link | `twice` |
//! | [`Variant::Stop`] | slotstream is asked to stop | `stop` |
//!
//! `rig` holds what they share: the clusters, the writers, the process, the comparison. `report` tells of it.

mod copy;
mod kill;
mod network;
mod report;
mod rig;
mod stop;
mod twice;

pub use report::Summary;

use crate::Result;
use crate::version::Family;
use anyhow::Context;
use rig::Rig;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Kill,
    Copy,
    Proxy,
    Twice,
    Stop,
}

impl Variant {
    pub const ALL: [Variant; 5] = [
        Variant::Kill,
        Variant::Copy,
        Variant::Proxy,
        Variant::Twice,
        Variant::Stop,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Variant::Kill => "kill",
            Variant::Copy => "copy",
            Variant::Proxy => "proxy",
            Variant::Twice => "twice",
            Variant::Stop => "stop",
        }
    }

    /// Keys in the source before the first copy, where nothing else is asked for.
    pub fn usual_keys(self) -> usize {
        match self {
            Variant::Copy => 300_000,
            _ => 10_000,
        }
    }

    /// Whether the target's nodes stand behind proxies.
    fn has_proxies(self) -> bool {
        self == Variant::Proxy
    }
}

impl FromStr for Variant {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Variant> {
        let found = Variant::ALL
            .into_iter()
            .find(|variant| variant.name() == name);
        found.with_context(|| {
            let names = Variant::ALL.map(Variant::name).join(", ");
            format!("there is no {name}, only {names}")
        })
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How much is broken, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program `slotstream`.
    pub program: PathBuf,
    pub variant: Variant,
    pub family: Family,
    pub seed: u64,
    /// How long things break; without an end where this is `None`.
    pub duration: Option<Duration>,
    /// How often things break; without an end where this is `None`.
    pub strikes: Option<u64>,
    /// After so many both sides are compared.
    pub strikes_per_round: u64,
    /// Keys in the source before the first copy.
    pub keys: usize,
    pub commands_per_second: u64,
    /// Where the logs go; they stay if anything is wrong.
    pub logs: PathBuf,
    /// Tell how it goes, line by line.
    pub verbose: bool,
}

impl Options {
    pub fn new(program: PathBuf, variant: Variant, family: Family, seed: u64) -> Options {
        let name = format!("slotstream-torture-{}-{variant}-{seed}", std::process::id());
        Options {
            program,
            variant,
            family,
            seed,
            duration: None,
            strikes: None,
            strikes_per_round: 20,
            keys: variant.usual_keys(),
            commands_per_second: 5_000,
            logs: std::env::temp_dir().join(name),
            verbose: false,
        }
    }

    /// The command line that does the same again.
    fn command_line(&self) -> String {
        let mut line = format!(
            "tools/torture crash --variant {} --server {} --seed {} --keys {} --rate {}",
            self.variant, self.family, self.seed, self.keys, self.commands_per_second
        );
        if let Some(duration) = self.duration {
            line += &format!(" --seconds {}", duration.as_secs());
        }
        if let Some(strikes) = self.strikes {
            line += &format!(" --kills {strikes}");
        }
        line
    }
}

/// Runs everything. Fails where the lab itself cannot go on; what slotstream did wrong is in the summary.
pub fn run(options: &Options) -> Result<Summary> {
    let mut rig = Rig::start(options)?;
    let outcome = match options.variant {
        Variant::Copy => copy::run(&mut rig),
        Variant::Kill => rig.rounds(kill::strike),
        Variant::Proxy => rig.rounds(network::strike),
        Variant::Twice => rig.rounds(twice::strike),
        Variant::Stop => rig.rounds(stop::strike),
    };
    if let Err(error) = outcome {
        rig.fault(format!("{error:#}"));
    }
    rig.finish()
}
