//! What happened: line by line in a file, now and then on the terminal, and summed up in the end.

use crate::Result;
use anyhow::Context;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the terminal hears of the course of things.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Variant, server and seed.
    pub title: String,
    pub seconds: f64,
    /// What was broken, by kind.
    pub strikes: BTreeMap<&'static str, u64>,
    /// Processes that were started.
    pub incarnations: u64,
    /// Commands that the writers had answered.
    pub commands: u64,
    /// Commands that they gave up, because masters changed.
    pub given_up: u64,
    /// Where slots moved.
    pub moved_keys: u64,
    pub moved_slots: u64,
    /// As the source masters count them.
    pub full_syncs: u64,
    /// Of these, those behind the first copy, though nothing was lost from the backlog.
    pub later_copies: u64,
    pub partial_syncs: u64,
    /// How lanes took up their work, as far as the status page told before the process ended.
    pub resumed: BTreeMap<String, u64>,
    /// Where the clusters change: why lanes took a full copy, though they had one.
    pub copied_because: BTreeMap<String, u64>,
    pub comparisons: u64,
    /// Keys of the last comparison.
    pub keys: usize,
    /// Differences of all comparisons.
    pub differences: usize,
    /// Whatever should not be, in the order in which it was seen.
    pub faults: Vec<String>,
    /// The logs, and how to do it again; empty where nothing is wrong.
    pub advice: String,
}

impl Summary {
    pub fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }

    pub fn strike_count(&self) -> u64 {
        self.strikes.values().sum()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = |counts: Vec<(String, u64)>| {
            let parts: Vec<String> = counts
                .iter()
                .map(|(name, n)| format!("{n} {name}"))
                .collect();
            match parts.is_empty() {
                true => "none told".to_owned(),
                false => parts.join(", "),
            }
        };
        let strikes = self
            .strikes
            .iter()
            .map(|(name, n)| ((*name).to_owned(), *n));
        let resumed = self.resumed.iter().map(|(name, n)| (name.clone(), *n));
        writeln!(formatter, "{}: {:.1} s", self.title, self.seconds)?;
        writeln!(formatter, "  strikes       {}", counts(strikes.collect()))?;
        writeln!(formatter, "  incarnations  {}", self.incarnations)?;
        writeln!(
            formatter,
            "  commands      {} written, {} given up",
            self.commands, self.given_up
        )?;
        if self.moved_slots > 0 {
            writeln!(
                formatter,
                "  moved         {} keys, {} slots",
                self.moved_keys, self.moved_slots
            )?;
        }
        writeln!(
            formatter,
            "  resyncs       {} full, {} partial",
            self.full_syncs, self.partial_syncs
        )?;
        writeln!(formatter, "  resume steps  {}", counts(resumed.collect()))?;
        for (why, count) in &self.copied_because {
            writeln!(formatter, "  full copies   {count}: {why}")?;
        }
        write!(
            formatter,
            "  comparisons   {}, of {} keys at last: {} differences",
            self.comparisons, self.keys, self.differences
        )?;
        for fault in &self.faults {
            write!(formatter, "\nFAULT: {fault}")?;
        }
        if !self.advice.is_empty() {
            write!(formatter, "\n{}", self.advice)?;
        }
        let verdict = match self.is_clean() {
            true => "PASSED",
            false => "FAILED",
        };
        write!(
            formatter,
            "\n{verdict}: {}: {} strikes, {} comparisons, {} differences, {} snapshots after the first copy, {} faults",
            self.title,
            self.strike_count(),
            self.comparisons,
            self.differences,
            self.later_copies,
            self.faults.len()
        )
    }
}

/// The directory of the logs, and the course of things in it.
pub struct Journal {
    directory: PathBuf,
    timeline: File,
    started: Instant,
    told: Instant,
    verbose: bool,
}

impl Journal {
    pub fn start(directory: &Path, verbose: bool) -> Result<Journal> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(Journal {
            directory: directory.to_owned(),
            timeline: File::create(directory.join("timeline.log"))?,
            started: Instant::now(),
            told: Instant::now(),
            verbose,
        })
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// For the file only.
    pub fn note(&mut self, text: &str) {
        let seconds = self.elapsed().as_secs_f64();
        // A full disk must not end the run; what is wrong still shows in the summary.
        let _ = writeln!(self.timeline, "{seconds:9.3} {text}");
    }

    /// For the file and the terminal.
    pub fn tell(&mut self, text: &str) {
        self.note(text);
        self.show(text);
    }

    /// For the terminal only.
    pub fn show(&mut self, text: &str) {
        if self.verbose {
            println!("{:7.1} s  {text}", self.elapsed().as_secs_f64());
            self.told = Instant::now();
        }
    }

    /// Whether the terminal has heard nothing for a while.
    pub fn is_due(&self) -> bool {
        self.told.elapsed() >= TELL_INTERVAL
    }

    /// Removes everything: nothing is to be looked into.
    pub fn discard(self) {
        // What cannot be removed lies in the directory for temporary files.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
