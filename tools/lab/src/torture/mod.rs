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
//! The other kinds leave slotstream alone, if not asked otherwise, and break the clusters (`change`):
//!
//! | kind | variant | what changes |
//! |---|---|---|
//! | [`Kind::Failover`] | `failover` | the source's replicas take over |
//! | [`Kind::Target`] | `failover`, `moves` | the target's replicas take over; its slots move |
//! | | `reshard`, `atomic` | both |
//! | [`Kind::Reshard`] | `classic`, `atomic` | slots move between the source's masters |
//! | all three | `all` | all of that, and slotstream is killed |
//!
//! `rig` holds what they share: the clusters, the writers, the process, the comparison. `report` tells of it, `shape`
//! knows who is master.

mod change;
mod copy;
mod failover;
mod kill;
mod moving;
mod network;
mod report;
mod rig;
mod shape;
mod stop;
mod twice;

pub use report::Summary;

use crate::Result;
use crate::version::Family;
use anyhow::{Context, ensure};
use change::Plan;
use rig::Rig;
use std::path::PathBuf;
use std::time::Duration;

/// What of the whole is tortured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Slotstream itself, and its way to the target.
    Crash,
    /// The source's slots.
    Reshard,
    /// The source's masters.
    Failover,
    /// The target's masters and slots.
    Target,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Crash => "crash",
            Kind::Reshard => "reshard",
            Kind::Failover => "failover",
            Kind::Target => "target",
        }
    }
}

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Kill,
    Copy,
    Proxy,
    Twice,
    Stop,
    SourceFailover,
    SourceClassic,
    SourceAtomic,
    TargetFailover,
    TargetMoves,
    TargetClassic,
    TargetAtomic,
    All,
}

impl Variant {
    /// Every variant and its name in its kind, of which the first is the usual one.
    const NAMES: [(Kind, &str, Variant); 15] = [
        (Kind::Crash, "kill", Variant::Kill),
        (Kind::Crash, "copy", Variant::Copy),
        (Kind::Crash, "proxy", Variant::Proxy),
        (Kind::Crash, "twice", Variant::Twice),
        (Kind::Crash, "stop", Variant::Stop),
        (Kind::Failover, "failover", Variant::SourceFailover),
        (Kind::Failover, "all", Variant::All),
        (Kind::Target, "failover", Variant::TargetFailover),
        (Kind::Target, "moves", Variant::TargetMoves),
        (Kind::Target, "reshard", Variant::TargetClassic),
        (Kind::Target, "atomic", Variant::TargetAtomic),
        (Kind::Target, "all", Variant::All),
        (Kind::Reshard, "classic", Variant::SourceClassic),
        (Kind::Reshard, "atomic", Variant::SourceAtomic),
        (Kind::Reshard, "all", Variant::All),
    ];

    /// The variant of a kind with this name, or its usual one.
    pub fn find(kind: Kind, name: Option<&str>) -> Result<Variant> {
        let mut of_kind = Variant::NAMES.iter().filter(|(of, ..)| *of == kind);
        let found = of_kind.find(|(_, known, _)| name.is_none_or(|name| name == *known));
        found.map(|(.., variant)| *variant).with_context(|| {
            let of_kind = Variant::NAMES.iter().filter(|(of, ..)| *of == kind);
            let names: Vec<&str> = of_kind.map(|(_, name, _)| *name).collect();
            let name = name.unwrap_or_default();
            format!("{} has no {name}, only {}", kind.name(), names.join(", "))
        })
    }

    /// A kind that has it, and its name there.
    fn place(self) -> (Kind, &'static str) {
        let mut names = Variant::NAMES.iter();
        let (kind, name, _) = names
            .find(|(.., variant)| *variant == self)
            .expect("every variant has a name");
        (*kind, name)
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
    /// Slotstream is killed now and then, beside what the variant breaks: for those that change the clusters.
    pub kills: bool,
    /// Where the logs go; they stay if anything is wrong.
    pub logs: PathBuf,
    /// Tell how it goes, line by line.
    pub verbose: bool,
}

impl Options {
    pub fn new(program: PathBuf, variant: Variant, family: Family, seed: u64) -> Options {
        let (kind, name) = variant.place();
        let name = format!(
            "slotstream-torture-{}-{}-{name}-{seed}",
            std::process::id(),
            kind.name()
        );
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
            kills: false,
            logs: std::env::temp_dir().join(name),
            verbose: false,
        }
    }

    fn title(&self) -> String {
        let (kind, name) = self.variant.place();
        let kills = if self.kills { " and kills" } else { "" };
        format!("{} {name}{kills}", kind.name())
    }

    /// The command line that does the same again.
    fn command_line(&self) -> String {
        let (kind, name) = self.variant.place();
        let mut line = format!(
            "tools/torture {} --variant {name} --server {} --seed {} --keys {} --rate {}",
            kind.name(),
            self.family,
            self.seed,
            self.keys,
            self.commands_per_second
        );
        if let Some(duration) = self.duration {
            line += &format!(" --seconds {}", duration.as_secs());
        }
        if let Some(strikes) = self.strikes {
            let name = match kind {
                Kind::Crash => "kills",
                _ => "strikes",
            };
            line += &format!(" --{name} {strikes}");
        }
        if self.kills {
            line += " --kills";
        }
        line
    }
}

/// Runs everything. Fails where the lab itself cannot go on; what slotstream did wrong is in the summary.
pub fn run(options: &Options) -> Result<Summary> {
    let atomic = [Variant::SourceAtomic, Variant::TargetAtomic].contains(&options.variant);
    ensure!(
        !atomic || options.family == Family::Valkey9,
        "{} cannot move slots at once, only {} can",
        options.family,
        Family::Valkey9
    );
    let mut rig = Rig::start(options)?;
    let outcome = match options.variant {
        Variant::Copy => copy::run(&mut rig),
        Variant::Kill => rig.rounds(kill::strike),
        Variant::Proxy => rig.rounds(network::strike),
        Variant::Twice => rig.rounds(twice::strike),
        Variant::Stop => rig.rounds(stop::strike),
        _ => match Plan::of(options) {
            Some(plan) => rig.changing_rounds(|rig| change::strike(rig, &plan)),
            None => Ok(()),
        },
    };
    if let Err(error) = outcome {
        rig.fault(format!("{error:#}"));
    }
    rig.finish()
}
