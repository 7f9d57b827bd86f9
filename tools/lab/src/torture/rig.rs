//! What all variants stand on: two clusters, writers, the process that is tortured, and the comparison.

use super::change::Plan;
use super::moving::Way;
use super::report::{Journal, Summary};
use super::shape::{Outage, Side, make_whole};
use super::{Options, Variant};
use crate::Result;
use crate::client::{Client, Endpoint};
use crate::cluster::{Cluster, ClusterOptions, even_slots};
use crate::compare::{CompareOptions, compare};
use crate::load::{FUNCTION_LIBRARY, Kind, LoadOptions, key_name, lives_for_seconds, load};
use crate::proxy::Proxy;
use crate::resp::Command;
use crate::server::{Server, ServerOptions, free_port};
use crate::slotstream::Slotstream;
use crate::version::{Version, version};
use crate::writers::{WriterOptions, Writers};
use anyhow::{Context, bail};
use fastrand::Rng;
use serde_json::Value;
use std::ops::Range;
use std::time::{Duration, Instant};

const SOURCE_MASTERS: usize = 3;
const TARGET_MASTERS: usize = 2;
/// The name of the replication: no other text of slotstream's holds it.
pub const LINK: &str = "torture-rack";
/// Nothing is lost from a source's memory of its stream while slotstream is away.
const BACKLOG: &str = "repl-backlog-size 256mb";
/// A lane that was away reads all of that at once.
const NO_BUFFER_LIMIT: &str = "client-output-buffer-limit replica 0 0 0";
/// A master that is silent for so long is replaced.
const NODE_TIMEOUT: &str = "cluster-node-timeout 2000";
/// Sets of keys that are written all the time, and seldom.
pub const HOT_GROUPS: usize = 40;
pub const COLD_GROUPS: usize = 2_000;
/// Where slots move, keys of each of the hot groups that are tied to each other.
const TIED_KEYS: usize = 150;
/// After so long at the latest the writers pause and both sides are compared: what went wrong is then not far back.
const ROUND: Duration = Duration::from_secs(60);
/// For everything that ends well in a moment.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// The target's record of a finished copy is written about once a second.
const RECORD_PAUSE: Duration = Duration::from_secs(2);
/// 6.0 sends how long a key still lives, so what waits ends later by as much as it waited.
const RELATIVE_TTL_TOLERANCE: Duration = Duration::from_secs(60);
/// `MIGRATE` hands over how long a key still lives, so its end comes later by as much as it was on its way.
const MOVED_TTL_TOLERANCE: Duration = Duration::from_secs(10);
const LISTED_DIFFERENCES: usize = 40;
/// After so many nothing more is broken: more would tell nothing more.
const MAX_FAULTS: usize = 20;
/// Characters of one of them that are shown: it may hold the output of a process.
const FAULT_LENGTH: usize = 2_500;

/// Of a log whose process ended by itself.
const LAST_LINES: usize = 8;

pub struct Rig {
    pub options: Options,
    pub random: Rng,
    pub source: Cluster,
    target: Cluster,
    plan: Option<Plan>,
    /// Nodes that are dead or stand still at present.
    pub outages: Vec<Outage>,
    /// One before each node of the target, in variants that break the network.
    pub proxies: Vec<Proxy>,
    pub journal: Journal,
    pub summary: Summary,
    /// The process; `None` before the first, and where none is to run.
    sync: Option<Incarnation>,
    /// Processes that were started.
    incarnations: u64,
    /// Where two processes run, each has its own.
    status_addresses: [String; 2],
    loaded: LoadOptions,
    writers: Option<Writers>,
    /// Rounds that were begun.
    pub round: u64,
    /// Snapshots that the source's masters had sent when the first copy was whole.
    first_copies: u64,
    /// The process that made it whole; later ones need no snapshot.
    copied_by: Option<u64>,
    /// What was last noted of the lanes.
    lanes_told: String,
    /// Lines of the present process's log that were looked at.
    log_lines_seen: usize,
}

/// One of the processes, from first to last.
pub struct Incarnation {
    pub number: u64,
    pub process: Slotstream,
}

impl Rig {
    /// Starts the clusters and fills the source.
    pub fn start(options: &Options) -> Result<Rig> {
        let mut journal = Journal::start(&options.logs, options.verbose)?;
        let version = version(options.family)?;
        let plan = Plan::of(options);
        let mut random = Rng::with_seed(options.seed);
        let mut lines = vec![BACKLOG.to_owned(), NO_BUFFER_LIMIT.to_owned()];
        let source = match &plan {
            Some(plan) => {
                lines.extend(lines_for_changes(options, plan, &mut random));
                changing_source(&version, plan, &lines)?
            }
            None => Cluster::start(&version, SOURCE_MASTERS, 0, cluster(&lines))?,
        };
        let (target, proxies) = match &plan {
            Some(plan) => {
                let replicas = usize::from(plan.target_failovers);
                let options = cluster(&lines);
                let target = Cluster::start(&version, TARGET_MASTERS, replicas, options)?;
                (target, Vec::new())
            }
            None if options.variant.has_proxies() => {
                Cluster::start_behind_proxies(&version, TARGET_MASTERS, 0, cluster(&[]))?
            }
            None => {
                let target = Cluster::start(&version, TARGET_MASTERS, 0, cluster(&[]))?;
                (target, Vec::new())
            }
        };
        let loaded = LoadOptions {
            keys: options.keys,
            seed: options.seed,
            ..LoadOptions::default()
        };
        let report = load(&mut source.client()?, &loaded)?;
        if options.variant != Variant::Copy {
            remove_short_lived(&mut source.client()?, &loaded)?;
        }
        let summary = Summary {
            title: format!("{}, {version}, seed {}", options.title(), options.seed),
            ..Summary::default()
        };
        journal.tell(&format!(
            "{}: {} masters to {TARGET_MASTERS}, {} keys; logs in {}",
            summary.title,
            source.masters().len(),
            report.keys,
            options.logs.display()
        ));
        Ok(Rig {
            options: options.clone(),
            random,
            source,
            target,
            plan,
            outages: Vec::new(),
            proxies,
            journal,
            summary,
            sync: None,
            incarnations: 0,
            status_addresses: [status_address()?, status_address()?],
            loaded,
            writers: None,
            round: 0,
            first_copies: 0,
            copied_by: None,
            lanes_told: String::new(),
            log_lines_seen: 0,
        })
    }

    /// A first copy, and then rounds of writes under which things break, each ending with a comparison.
    pub fn rounds(&mut self, strike: impl Fn(&mut Rig) -> Result<()>) -> Result<()> {
        self.launch()?;
        self.settle()?;
        self.first_copy_is_whole()?;
        if self.first_copies != SOURCE_MASTERS as u64 {
            let copies = self.first_copies;
            self.fault(format!("{copies} snapshots of {SOURCE_MASTERS} masters"));
        }
        self.journal.tell("the first copy is there");
        self.go_round(strike)
    }

    /// The same where the source's nodes change places, so that their own counts of snapshots tell nothing.
    pub fn changing_rounds(&mut self, strike: impl Fn(&mut Rig) -> Result<()>) -> Result<()> {
        self.launch()?;
        self.settle()?;
        self.journal.tell("the first copy is there");
        self.go_round(strike)
    }

    fn go_round(&mut self, strike: impl Fn(&mut Rig) -> Result<()>) -> Result<()> {
        let end = self
            .options
            .duration
            .map(|duration| Instant::now() + duration);
        let is_over = |rig: &Rig| {
            let strikes = rig.options.strikes;
            rig.summary.faults.len() >= MAX_FAULTS
                || end.is_some_and(|end| Instant::now() >= end)
                || strikes.is_some_and(|strikes| rig.summary.strike_count() >= strikes)
        };
        while !is_over(self) && self.summary.is_clean() {
            self.start_writers()?;
            let round_end = Instant::now() + ROUND;
            let last = self.summary.strike_count() + self.options.strikes_per_round;
            while !is_over(self) && self.summary.strike_count() < last && Instant::now() < round_end
            {
                strike(self)?;
                self.tell_progress();
            }
            self.stop_writers()?;
            if self.plan.is_some() {
                make_whole(self)?;
            }
            self.settle_and_compare()?;
        }
        Ok(())
    }

    pub fn cluster(&self, side: Side) -> &Cluster {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    pub fn cluster_mut(&mut self, side: Side) -> &mut Cluster {
        match side {
            Side::Source => &mut self.source,
            Side::Target => &mut self.target,
        }
    }

    /// Whether a node is dead or frozen.
    pub fn is_out(&self, side: Side, node: usize) -> bool {
        let mut outages = self.outages.iter();
        outages.any(|outage| outage.side == side && outage.node == node)
    }

    /// Shards that own slots at all times.
    pub fn shards_with_slots(&self, side: Side) -> usize {
        match side {
            Side::Source => SOURCE_MASTERS,
            Side::Target => TARGET_MASTERS,
        }
    }

    /// Whether a master may lose all its slots: one with a replica takes that along when it becomes one itself.
    pub fn may_drain(&self, side: Side) -> bool {
        side == Side::Source && self.source.nodes().len() == self.source.masters().len()
    }

    pub fn start_writers(&mut self) -> Result<()> {
        self.round += 1;
        let options = WriterOptions {
            seed: self.options.seed.wrapping_mul(1_000) + self.round,
            threads: 2,
            commands_per_second: self.options.commands_per_second,
            key_groups: HOT_GROUPS,
            cold_groups: COLD_GROUPS,
            loaded: Some(self.loaded.clone()),
            forgiving: self.plan.is_some(),
            tied_keys: match &self.plan {
                Some(plan) if plan.moves_slots() => TIED_KEYS,
                _ => 0,
            },
            ..WriterOptions::default()
        };
        self.writers = Some(Writers::start(&self.source.all_nodes(), &options)?);
        Ok(())
    }

    pub fn stop_writers(&mut self) -> Result<()> {
        if let Some(writers) = self.writers.take() {
            let report = writers.stop()?;
            self.journal.note("the writers have stopped");
            self.summary.commands += report.commands;
            self.summary.given_up += report.given_up;
            if !report.errors.is_empty() {
                bail!("the writers met errors, so this run shows nothing: {report}");
            }
        }
        Ok(())
    }

    /// Starts the process that is watched from now on.
    pub fn launch(&mut self) -> Result<()> {
        self.sync = Some(self.start_process(None)?);
        Ok(())
    }

    /// Starts a process beside one that runs.
    pub fn launch_beside(&mut self, other: &Incarnation) -> Result<Incarnation> {
        self.start_process(Some(other))
    }

    fn start_process(&mut self, other: Option<&Incarnation>) -> Result<Incarnation> {
        self.incarnations += 1;
        let number = self.incarnations;
        self.log_lines_seen = 0;
        let log = self.journal.file(&format!("slotstream-{number:05}.log"));
        let target = match self.proxies.first() {
            Some(proxy) => Endpoint::at(proxy.address()),
            None => self.target.all_nodes(),
        };
        let mut addresses = self.status_addresses.iter();
        let taken = other.map(|other| other.process.status_address());
        let address = addresses.find(|address| Some(address.as_str()) != taken);
        let process = Slotstream::start_logged(
            &self.options.program,
            &self.source.all_nodes(),
            &target,
            &["--link", LINK],
            address.context("each of the addresses is taken")?,
            &log,
        )?;
        self.journal.note(&format!("incarnation {number} started"));
        Ok(Incarnation { number, process })
    }

    pub fn sync(&mut self) -> Result<&mut Slotstream> {
        let sync = self.sync.as_mut();
        Ok(&mut sync.context("no process is running")?.process)
    }

    pub fn take_sync(&mut self) -> Result<Incarnation> {
        self.sync.take().context("no process is running")
    }

    pub fn watch(&mut self, incarnation: Incarnation) {
        self.sync = Some(incarnation);
    }

    /// Goes on for a random time of so many milliseconds; slotstream must not end meanwhile.
    pub fn run_for(&mut self, milliseconds: Range<u64>) -> Result<()> {
        std::thread::sleep(self.random_time(milliseconds));
        if let Some(status) = self.sync()?.ended()? {
            let output = self.sync()?.output();
            bail!(
                "slotstream ended by itself ({status}): ... {}",
                end_of(&output)
            );
        }
        Ok(())
    }

    pub fn random_time(&mut self, milliseconds: Range<u64>) -> Duration {
        Duration::from_millis(self.random.u64(milliseconds))
    }

    /// Kills the process and starts the next.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.kill()?;
        self.launch()
    }

    pub fn kill(&mut self) -> Result<()> {
        let mut killed = self.take_sync()?;
        self.observe(&killed);
        killed.process.kill();
        self.struck("kill");
        Ok(())
    }

    /// Counts what was broken.
    pub fn struck(&mut self, what: &'static str) {
        *self.summary.strikes.entry(what).or_default() += 1;
        self.journal.note(what);
    }

    /// Looks at a process that is about to end: what it says of itself must be as it should.
    pub fn observe(&mut self, incarnation: &Incarnation) -> Option<Value> {
        let number = incarnation.number;
        // It may have been started too shortly before to have a status page.
        let status = incarnation.process.status().ok()?;
        self.journal
            .note(&format!("incarnation {number}: {status}"));
        if self.plan.is_some() {
            self.count_resumptions(&incarnation.process.output());
        }
        let copies_allowed = self.copied_by.is_none_or(|last| number <= last);
        let mut wrong = Vec::new();
        for lane in status["lanes"].as_array().into_iter().flatten() {
            let source = lane["source"].as_str().unwrap_or_default();
            let resume = &lane["resume"];
            if let Some(step) = resume["step"].as_str()
                && self.plan.is_none()
            {
                *self.summary.resumed.entry(step.to_owned()).or_default() += 1;
            }
            let copies = lane["full_syncs"].as_u64().unwrap_or(0);
            if copies > 0 && !copies_allowed {
                wrong.push(format!("{source} {copies} full resyncs ({resume})"));
            }
            let divergences = lane["errors"]["divergence"].as_u64().unwrap_or(0);
            if divergences > 0 {
                let message = &lane["message"];
                wrong.push(format!("{source} {divergences} divergences ({message})"));
            }
        }
        if !wrong.is_empty() {
            self.fault(format!("incarnation {number}: {}", wrong.join(", ")));
        }
        Some(status)
    }

    /// Counts in the log of a process how lanes went on, from where the last look at it ended.
    fn count_resumptions(&mut self, log: &str) {
        const STEPS: [&str; 5] = [
            "spool",
            "partial_same",
            "partial_promoted",
            "partial_rewound",
            "full_copy",
        ];
        let lines = log.lines().skip(self.log_lines_seen);
        for line in lines {
            self.log_lines_seen += 1;
            for step in STEPS {
                if let Some((_, why)) = line.split_once(&format!(": {step}: ")) {
                    *self.summary.resumed.entry(step.to_owned()).or_default() += 1;
                    if step == "full_copy" {
                        let why = why.to_owned();
                        *self.summary.copied_because.entry(why).or_default() += 1;
                    }
                }
            }
        }
    }

    pub fn fault(&mut self, text: String) {
        self.journal.note(&format!("FAULT: {text}"));
        let mut short: String = text.chars().take(FAULT_LENGTH).collect();
        if short.len() < text.len() {
            short += " ... (the rest is in timeline.log)";
        }
        self.journal.show(&format!("FAULT: {short}"));
        self.summary.faults.push(short);
    }

    /// From now on no source master may be asked for another snapshot.
    pub fn first_copy_is_whole(&mut self) -> Result<()> {
        std::thread::sleep(RECORD_PAUSE);
        self.first_copies = self.source_count("sync_full")?;
        self.copied_by = Some(self.incarnations);
        Ok(())
    }

    /// A counter of `INFO stats`, of all source masters together.
    pub fn source_count(&self, field: &str) -> Result<u64> {
        let count = |master: &Server| Ok(master.info("stats", field)?.parse::<u64>()?);
        self.source.masters().iter().map(count).sum()
    }

    /// Waits until everything is applied: writers must have stopped.
    pub fn settle(&mut self) -> Result<()> {
        let sync = self.sync()?;
        sync.wait_until_caught_up(PATIENCE)?;
        sync.wait_until_settled(PATIENCE)?;
        self.journal.note("everything is applied");
        Ok(())
    }

    /// Waits until everything is applied, and compares.
    pub fn settle_and_compare(&mut self) -> Result<()> {
        let settled = self.settle();
        if let Some(incarnation) = self.sync.take() {
            self.observe(&incarnation);
            self.sync = Some(incarnation);
        }
        if self.copied_by.is_some() {
            let later = self.source_count("sync_full")? - self.first_copies;
            self.summary.later_copies = later;
            if later > 0 {
                self.fault(format!("{later} snapshots after the first copy"));
            }
        }
        settled?;
        let moves_classic = |plan: &Plan| plan.target_moves.contains(&Way::Classic);
        let options = CompareOptions {
            listed: LISTED_DIFFERENCES,
            ttl_tolerance: match &self.plan {
                Some(plan) if moves_classic(plan) => MOVED_TTL_TOLERANCE,
                _ => Duration::ZERO,
            },
            relative_ttl_tolerance: RELATIVE_TTL_TOLERANCE,
            ..CompareOptions::default()
        };
        let diff = compare(&self.source.all_nodes(), &self.target.all_nodes(), &options)?;
        self.summary.comparisons += 1;
        self.summary.keys = diff.keys;
        let differences =
            diff.only_in_first + diff.only_in_second + diff.different + diff.functions;
        self.summary.differences += differences;
        match differences {
            0 => self.journal.tell(&format!("round {}: {diff}", self.round)),
            _ => self.fault(format!("round {}: {diff}", self.round)),
        }
        Ok(())
    }

    /// Notes how lanes went on since the last look.
    pub fn look_at_lanes(&mut self) {
        let Some(sync) = &self.sync else { return };
        let Ok(status) = sync.process.status() else {
            return;
        };
        let mut told = String::new();
        for lane in status["lanes"].as_array().into_iter().flatten() {
            let of = |name: &str| lane[name].to_string();
            told += &format!(
                "; {} {} {}, {} full and {} partial resyncs, {}",
                of("source"),
                of("state"),
                of("resume"),
                of("full_syncs"),
                of("partial_syncs"),
                of("message")
            );
        }
        if told != self.lanes_told {
            self.journal.note(&format!("lanes{told}"));
            self.lanes_told = told;
        }
    }

    pub fn tell_progress(&mut self) {
        if self.journal.is_due() {
            let written = self.writers.as_ref().map_or(0, Writers::commands_so_far);
            self.journal.tell(&format!(
                "{} strikes, {} incarnations, {} commands",
                self.summary.strike_count(),
                self.incarnations,
                self.summary.commands + written
            ));
        }
    }

    /// Ends everything and sums up.
    pub fn finish(mut self) -> Result<Summary> {
        if let Some(last) = self.sync.take()
            && self.plan.is_some()
        {
            self.count_resumptions(&last.process.output());
        }
        let writers = self.writers.take().map(Writers::stop);
        if let Some(Ok(report)) = writers {
            self.summary.commands += report.commands;
        }
        self.summary.incarnations = self.incarnations;
        if self.plan.is_none() {
            self.summary.full_syncs = self.source_count("sync_full")?;
            self.summary.partial_syncs = self.source_count("sync_partial_ok")?;
        }
        self.summary.seconds = self.journal.elapsed().as_secs_f64();
        if self.summary.is_clean() {
            self.journal.discard();
        } else {
            self.summary.advice = format!(
                "logs: {}\nonce more: {}",
                self.options.logs.display(),
                self.options.command_line()
            );
            let summary = self.summary.to_string();
            self.journal.note(&summary);
            for (name, cluster) in [("source", &self.source), ("target", &self.target)] {
                for (index, node) in cluster.nodes().iter().enumerate() {
                    let file = self.journal.file(&format!("{name}-{index}.log"));
                    std::fs::write(file, node.log())?;
                }
            }
        }
        Ok(self.summary)
    }
}

/// The last lines of a log, which tell why it ended.
fn end_of(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// Nodes with these lines in their configuration.
fn cluster(lines: &[String]) -> ClusterOptions {
    ClusterOptions {
        server: ServerOptions {
            extra: lines.to_vec(),
            diskless: true,
            ..ServerOptions::default()
        },
        slots: None,
    }
}

/// What nodes that change places are told; where people choose differently, chance does.
fn lines_for_changes(options: &Options, plan: &Plan, random: &mut Rng) -> Vec<String> {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" };
    let whole = yes_no(random.bool());
    // A master that is drained becomes a replica of its heir, or does not. One that comes back to find its slots with
    // others must do so.
    let failovers = plan.source_failovers || plan.target_failovers;
    let stepping_down = random.bool() || failovers;
    let mut lines = vec![
        NODE_TIMEOUT.to_owned(),
        // However long a replica's master has been away, it takes over.
        "cluster-replica-validity-factor 0".to_owned(),
        // No replica leaves its shard by itself.
        "cluster-migration-barrier 100".to_owned(),
        format!("cluster-require-full-coverage {whole}"),
    ];
    if options.family.has_redis_7_commands() {
        let line = format!("cluster-allow-replica-migration {}", yes_no(stepping_down));
        lines.push(line);
    }
    lines
}

/// The source of a run in which it changes: one master without slots where they move.
fn changing_source(version: &Version, plan: &Plan, lines: &[String]) -> Result<Cluster> {
    let mut options = cluster(lines);
    let replicas = usize::from(plan.source_failovers);
    let mut masters = SOURCE_MASTERS;
    if !plan.source_moves.is_empty() {
        let mut slots = even_slots(SOURCE_MASTERS);
        slots.push(Vec::new());
        options.slots = Some(slots);
        masters += 1;
    }
    let source = Cluster::start(version, masters, replicas, options)?;
    if version.family().has_redis_7_commands() {
        // What fills the cluster does not know of a master without slots.
        for master in &source.masters()[SOURCE_MASTERS..] {
            let words = ["FUNCTION", "LOAD", "REPLACE", FUNCTION_LIBRARY];
            master.connect()?.call(&words)?;
        }
    }
    Ok(source)
}

/// Removes what lives for seconds: a copy is whole only when that has ended.
fn remove_short_lived(source: &mut Client, loaded: &LoadOptions) -> Result<()> {
    let kinds = Kind::of(source.family()?, loaded.vector_sets);
    let commands: Vec<Command> = (0..loaded.keys)
        .filter(|number| lives_for_seconds(*number))
        .map(|number| {
            let key = key_name(kinds[number % kinds.len()], number);
            Command::new(&[b"DEL".as_slice(), &key])
        })
        .collect();
    source.pipeline(&commands)?;
    Ok(())
}

fn status_address() -> Result<String> {
    Ok(format!("127.0.0.1:{}", free_port()?))
}
