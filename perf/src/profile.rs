//! Where a process spends its time, by `perf record`, where that is installed.

use anyhow::{Context, Result, bail};
use lab::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Samples per second and CPU; prime, so that nothing periodic falls in step with it.
const FREQUENCY: &str = "1999";
/// Symbols with less than this share of the samples, in percent, are left out.
const SHOWN_PERCENT: &str = "0.7";

const START_TIMEOUT: Duration = Duration::from_secs(5);
/// How the program names its executors' threads.
const EXECUTOR_PREFIX: &str = "core-";

/// Records a process; one recording at a time.
pub struct Profiler {
    recording: Option<(&'static str, PathBuf, Child)>,
    /// What was recorded, as text.
    pub sections: Vec<(&'static str, String)>,
}

impl Profiler {
    /// Fails where `perf` is not installed.
    pub fn new() -> Result<Profiler> {
        let version = Command::new("perf").arg("--version").output();
        version.context("perf is missing: apt-get install linux-perf")?;
        Ok(Profiler {
            recording: None,
            sections: Vec::new(),
        })
    }

    /// Records until [`Profiler::stop`]. A program that was just started is given time to start its executors:
    /// threads that begin while `perf` attaches would be missed.
    pub fn start(&mut self, section: &'static str, pids: &[u32]) -> Result<()> {
        let started = |pid: &u32| has_executor(*pid);
        wait_until(START_TIMEOUT, "the executors to start", || {
            Ok(pids.iter().all(started))
        })?;
        let name = format!("slotstream-perf-{}-{section}.data", std::process::id());
        let data = std::env::temp_dir().join(name);
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        let child = Command::new("perf")
            .args(["record", "-q", "-F", FREQUENCY, "-p", &pids.join(","), "-o"])
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.recording = Some((section, data, child));
        Ok(())
    }

    pub fn stop(&mut self) -> Result<()> {
        let Some((section, data, mut child)) = self.recording.take() else {
            return Ok(());
        };
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
        child.wait()?;
        let report = Command::new("perf")
            .args(["report", "--stdio", "-q", "--sort", "dso,symbol"])
            .args(["--percent-limit", SHOWN_PERCENT, "-i"])
            .arg(&data)
            .stdin(Stdio::null())
            .output()?;
        let _ = fs::remove_file(&data);
        if !report.status.success() {
            bail!("perf report: {}", String::from_utf8_lossy(&report.stderr));
        }
        let text = String::from_utf8_lossy(&report.stdout);
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        self.sections.push((section, lines.join("\n")));
        Ok(())
    }
}

fn has_executor(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let names = threads.into_iter().flatten().flatten();
    names
        .filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok())
        .any(|name| name.starts_with(EXECUTOR_PREFIX))
}

impl Drop for Profiler {
    fn drop(&mut self) {
        if let Some((_, data, mut child)) = self.recording.take() {
            let _ = child.kill();
            let _ = child.wait();
            let _ = fs::remove_file(data);
        }
    }
}
