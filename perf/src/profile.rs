//! Where a process spends its time, by `perf record`, where that is installed.

use anyhow::{Context, Result, bail};
use lab::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
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
        let name = format!("slotstream-perf-{}.data", std::process::id());
        let data = std::env::temp_dir().join(name);
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        let [orders, answers] = ["orders", "answers"].map(|name| data.with_extension(name));
        let (mut order, mut answer) = (pipe(&orders)?, pipe(&answers)?);
        let control = format!("fifo:{},{}", orders.display(), answers.display());
        let child = Command::new("perf")
            .args([
                "record",
                "-q",
                "-F",
                FREQUENCY,
                "-D",
                "-1",
                "--control",
                &control,
            ])
            .args(["-p", &pids.join(","), "-o"])
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let (_, _, child) = self.recording.insert((section, data, child));
        // What is measured must not begin before `perf` has attached.
        order.write_all(b"enable\n")?;
        let mut said = [0; 64];
        let enabled = wait_until(START_TIMEOUT, "perf to record", || {
            if let Some(status) = child.try_wait()? {
                bail!("perf record ended ({status})");
            }
            match answer.read(&mut said) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
                read => Ok(said[..read?].starts_with(b"ack")),
            }
        });
        fs::remove_file(orders)?;
        fs::remove_file(answers)?;
        enabled
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

/// A named pipe, which nobody has to have open at its other end.
fn pipe(path: &Path) -> Result<File> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK);
    Ok(options.open(path)?)
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
