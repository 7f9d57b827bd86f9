//! What a person sees while lanes run.
//!
//! On a terminal: one line per lane that copies (bytes, keys, rate, time left), and one live line (commands/s, MB/s,
//! lag). Without one: a log line when a lane's state changes, and one every 10 s.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use indicatif::{
    HumanBytes, HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle,
};
use tracing::{info, warn};

use crate::engine::shared::Shared;
use crate::engine::status::{LaneState, LaneStatus};
use crate::limits::{LOG_INTERVAL_MS, RATE_WINDOW_MS};

/// Where lines go: standard error, with the moving lines kept below the log.
#[derive(Debug, Clone)]
pub struct Screen {
    /// `None` when standard error is no terminal.
    moving: Option<MultiProgress>,
}

impl Screen {
    /// Moving lines only on a terminal.
    pub fn new() -> Self {
        let moving = std::io::stderr()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self { moving }
    }

    /// Sends the log to standard error, with times in UTC. Later calls in one process have no effect.
    pub fn start_log(&self) {
        let screen = self.clone();
        let log = tracing_subscriber::fmt()
            .with_target(false)
            .with_max_level(tracing::Level::INFO)
            .with_ansi(self.moving.is_some())
            .with_writer(move || screen.clone());
        // Fails only when a log was started before, which then goes on.
        let _ = log.try_init();
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match &self.moving {
            None => std::io::stderr().write(bytes),
            Some(moving) => moving.suspend(|| std::io::stderr().write(bytes)),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// The display of one run.
#[derive(Debug)]
pub struct Progress {
    moving: Option<Moving>,
    /// The state in which each lane was last shown.
    states: BTreeMap<u32, (LaneState, String)>,
    /// Why each lane went on where it did.
    resumes: BTreeMap<u32, String>,
    meter: Meter,
    logged: Option<Instant>,
}

#[derive(Debug)]
struct Moving {
    all: MultiProgress,
    /// By lane, while it copies.
    copies: BTreeMap<u32, ProgressBar>,
    live: ProgressBar,
}

impl Progress {
    /// Nothing is shown yet.
    pub fn new(screen: &Screen) -> Self {
        let moving = screen.moving.clone().map(|all| {
            let live = all.add(ProgressBar::new_spinner());
            live.set_style(style("{spinner} {msg}"));
            let copies = BTreeMap::new();
            Moving { all, copies, live }
        });
        Self {
            moving,
            states: BTreeMap::new(),
            resumes: BTreeMap::new(),
            meter: Meter::default(),
            logged: None,
        }
    }

    /// Shows the lanes as they are now.
    pub fn show(&mut self, shared: &Shared, now: Instant) {
        let lanes = shared.lanes();
        let changed = self.log_changes(&lanes);
        for news in shared.omissions.take_news() {
            warn!("{news}");
        }
        self.meter.sample(&lanes, now);
        let line = live_line(&lanes, &self.meter, shared.millis_at(now));
        match &mut self.moving {
            Some(moving) => moving.show(&lanes, line),
            None => {
                let interval = Duration::from_millis(LOG_INTERVAL_MS);
                let last = *self.logged.get_or_insert(now);
                if !changed && now.duration_since(last) >= interval {
                    self.logged = Some(now);
                    info!("{line}");
                }
            }
        }
    }

    /// Takes the moving lines off the terminal.
    pub fn finish(self) {
        if let Some(moving) = self.moving {
            moving.live.finish_and_clear();
            for bar in moving.copies.into_values() {
                bar.finish_and_clear();
            }
        }
    }

    /// Logs lanes whose state or last fault is new; whether there was one.
    fn log_changes(&mut self, lanes: &[Arc<LaneStatus>]) -> bool {
        let mut changed = false;
        for lane in lanes {
            let resume = lane.resume();
            if let Some((step, why)) = &resume
                && self.resumes.insert(lane.id, why.clone()).as_ref() != Some(why)
            {
                info!("lane {}: {}: {why}", lane.source(), step.name());
            }
            let now = (lane.state(), lane.message());
            let before = self.states.insert(lane.id, now.clone());
            if before.as_ref() == Some(&now) {
                continue;
            }
            changed = true;
            let (state, message) = now;
            let is_news = before.is_none_or(|(_, told)| told != message);
            if is_news && !message.is_empty() {
                warn!("lane {}: {}: {message}", lane.source(), state.name());
            } else {
                info!("lane {}: {}{}", lane.source(), state.name(), figures(lane));
            }
        }
        changed
    }
}

impl Moving {
    fn show(&mut self, lanes: &[Arc<LaneStatus>], line: String) {
        for lane in lanes {
            if lane.state() == LaneState::Copying {
                let all = &self.all;
                let bar = self
                    .copies
                    .entry(lane.id)
                    .or_insert_with(|| new_copy(all, lane));
                let total = lane.snapshot_bytes_total.load(Relaxed);
                if total > 0 {
                    bar.set_length(total);
                }
                bar.set_position(lane.snapshot_bytes_done.load(Relaxed));
                let keys = lane.snapshot_keys.load(Relaxed);
                bar.set_message(format!("{} keys", HumanCount(keys)));
            } else if let Some(bar) = self.copies.remove(&lane.id) {
                bar.finish_and_clear();
            }
        }
        self.live.set_message(line);
        self.live.tick();
    }
}

/// A diskless snapshot has no size, so neither share nor time left can be told.
fn new_copy(all: &MultiProgress, lane: &LaneStatus) -> ProgressBar {
    let bar = match lane.snapshot_bytes_total.load(Relaxed) {
        0 => {
            let bar = ProgressBar::no_length();
            bar.set_style(style("{prefix} {bytes} read, {msg}, {bytes_per_sec}"));
            bar
        }
        total => {
            let bar = ProgressBar::new(total);
            bar.set_style(style(
                "{prefix} {wide_bar} {bytes}/{total_bytes}, {msg}, {bytes_per_sec}, {eta} left",
            ));
            bar
        }
    };
    bar.set_prefix(lane.source());
    all.insert(0, bar)
}

/// A template of this file; the plain bar stands in for one that does not parse.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// What is worth knowing about a lane that entered its state.
fn figures(lane: &LaneStatus) -> String {
    let keys = lane.snapshot_keys.load(Relaxed);
    match lane.state() {
        LaneState::Copying => match lane.snapshot_bytes_total.load(Relaxed) {
            0 => String::new(),
            total => format!(" a snapshot of {}", HumanBytes(total)),
        },
        LaneState::Streaming if keys > 0 => {
            let keys = format!(" after {} keys", HumanCount(keys));
            match lane.stale_checked.load(Relaxed) {
                0 => keys,
                _ => format!("{keys}; {}", stale_keys(lane)),
            }
        }
        LaneState::Stopped => {
            let commands = lane.commands.load(Relaxed);
            format!(" after {} commands", HumanCount(commands))
        }
        _ => String::new(),
    }
}

/// How far the search for keys is that the source does not have.
fn stale_keys(lane: &LaneStatus) -> String {
    let checked = HumanCount(lane.stale_checked.load(Relaxed));
    let removed = HumanCount(lane.stale_removed.load(Relaxed));
    format!("stale keys: {checked} checked, {removed} removed")
}

/// `3 lanes streaming, 120,000 commands/s, 12.5 MB/s, lag 0.004 s (1.2 KiB)`.
fn live_line(lanes: &[Arc<LaneStatus>], meter: &Meter, now_ms: u64) -> String {
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    let live = || lanes.iter().filter(|lane| !lane.state().is_final());
    for lane in live() {
        *states.entry(lane.state().name()).or_default() += 1;
    }
    let states: Vec<String> = states
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let copied: u64 = live()
        .filter(|lane| lane.state() == LaneState::Copying)
        .map(|lane| lane.snapshot_keys.load(Relaxed))
        .sum();
    let copied = match copied {
        0 => String::new(),
        keys => format!("{} keys copied, ", HumanCount(keys)),
    };
    let sweeping = live().filter(|lane| lane.state() == LaneState::Sweeping);
    let stale: String = sweeping
        .map(|lane| format!("{}, ", stale_keys(lane)))
        .collect();
    let lag_bytes: u64 = live().map(|lane| lane.lag_bytes()).sum();
    let lag_ms = live().map(|lane| lane.lag_ms(now_ms)).max().unwrap_or(0);
    format!(
        "lanes: {}; {copied}{stale}{} commands/s, {:.1} MB/s, lag {:.3} s ({})",
        states.join(", "),
        HumanCount(meter.commands_per_second as u64),
        meter.bytes_per_second / 1e6,
        lag_ms as f64 / 1000.0,
        HumanBytes(lag_bytes)
    )
}

/// Rates over the last window.
#[derive(Debug, Default)]
struct Meter {
    /// When the window began, and the totals then.
    window: Option<(Instant, u64, u64)>,
    commands_per_second: f64,
    bytes_per_second: f64,
}

impl Meter {
    fn sample(&mut self, lanes: &[Arc<LaneStatus>], now: Instant) {
        let commands = lanes.iter().map(|lane| lane.commands.load(Relaxed)).sum();
        let bytes = lanes.iter().map(|lane| lane.bytes.load(Relaxed)).sum();
        let (began, commands_then, bytes_then) = *self.window.get_or_insert((now, commands, bytes));
        let elapsed = now.saturating_duration_since(began);
        if elapsed < Duration::from_millis(RATE_WINDOW_MS) {
            return;
        }
        let seconds = elapsed.as_secs_f64();
        self.commands_per_second = (commands - commands_then) as f64 / seconds;
        self.bytes_per_second = (bytes - bytes_then) as f64 / seconds;
        self.window = Some((now, commands, bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    #[test]
    fn rates_and_lag_are_shown_in_one_line() {
        let start = Instant::now();
        let single = Topology::single;
        let shared = Shared::new("l".into(), start, single("a", 1), single("b", 2));
        let lane = shared.add_lane("n", "a:1");
        lane.set_state(LaneState::Streaming);
        let mut meter = Meter::default();
        meter.sample(&shared.lanes(), start);
        lane.commands.store(4000, Relaxed);
        lane.bytes.store(3_000_000, Relaxed);
        lane.received_offset.store(2048, Relaxed);
        lane.set_oldest_unanswered(Some(0));
        meter.sample(&shared.lanes(), start + Duration::from_secs(2));
        let line = live_line(&shared.lanes(), &meter, 5);
        let expected = "lanes: 1 streaming; 2,000 commands/s, 1.5 MB/s, lag 0.005 s (2.00 KiB)";
        assert_eq!(line, expected);
    }

    #[test]
    fn every_template_parses() {
        for template in [
            "{spinner} {msg}",
            "{prefix} {bytes} read, {msg}, {bytes_per_sec}",
            "{prefix} {wide_bar} {bytes}/{total_bytes}, {msg}, {bytes_per_sec}, {eta} left",
        ] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn a_change_is_logged_once() {
        let start = Instant::now();
        let single = Topology::single;
        let shared = Shared::new("l".into(), start, single("a", 1), single("b", 2));
        let lane = shared.add_lane("n", "a:1");
        let mut progress = Progress::new(&Screen { moving: None });
        assert!(progress.log_changes(&shared.lanes()));
        assert!(!progress.log_changes(&shared.lanes()));
        lane.set_message("lost");
        assert!(progress.log_changes(&shared.lanes()));
    }
}
