//! Runs `slotstream sync` as users do: the program itself, watched through its status page.

use crate::client::{Client, Endpoint};
use crate::server::{free_port, info_field, new_directory, spawn_for_life};
use crate::{Result, wait_until};
use anyhow::{Context, bail};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// A running `slotstream sync`; dropping it kills the process.
pub struct Slotstream {
    child: Child,
    source: Endpoint,
    status_address: String,
    /// Of its own, so that several can run beside each other.
    state_directory: PathBuf,
    output: Output,
}

/// Where what it prints goes.
enum Output {
    /// To where this process's goes.
    Shown,
    /// Into a file that goes when the process does.
    Passing(PathBuf),
    /// Into a file that stays.
    Kept(PathBuf),
}

impl Slotstream {
    /// Starts `program sync` from `source` to `target`, with more arguments if need be.
    pub fn start(
        program: &Path,
        source: &Endpoint,
        target: &Endpoint,
        arguments: &[&str],
    ) -> Result<Slotstream> {
        let name = format!(
            "slotstream-lab-{}-sync-{}.log",
            std::process::id(),
            fastrand::u64(..)
        );
        let log = std::env::temp_dir().join(name);
        let status_address = format!("127.0.0.1:{}", free_port()?);
        let output = Output::Passing(log);
        Slotstream::spawn(program, source, target, arguments, status_address, output)
    }

    /// The same at a given address for the status page, printing into a file that stays: for processes that are
    /// started many times.
    pub fn start_logged(
        program: &Path,
        source: &Endpoint,
        target: &Endpoint,
        arguments: &[&str],
        status_address: &str,
        log: &Path,
    ) -> Result<Slotstream> {
        let output = Output::Kept(log.to_owned());
        let status_address = status_address.to_owned();
        Slotstream::spawn(program, source, target, arguments, status_address, output)
    }

    /// The same with its output where this process's goes, so that somebody can watch.
    pub fn start_shown(program: &Path, source: &Endpoint, target: &Endpoint) -> Result<Slotstream> {
        let status_address = format!("127.0.0.1:{}", free_port()?);
        Slotstream::spawn(program, source, target, &[], status_address, Output::Shown)
    }

    fn spawn(
        program: &Path,
        source: &Endpoint,
        target: &Endpoint,
        arguments: &[&str],
        status_address: String,
        output: Output,
    ) -> Result<Slotstream> {
        let state_directory = new_directory("state")?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(["sync", "--source", &source.to_string()])
            .args(["--target", &target.to_string()])
            .args(["--status-addr", &status_address])
            .args(arguments)
            .env("XDG_STATE_HOME", &state_directory)
            .stdin(Stdio::null());
        if let Some(log) = output.file() {
            let file = File::create(log)?;
            command.stdout(file.try_clone()?).stderr(file);
        }
        let child = spawn_for_life(command)
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Slotstream {
            child,
            source: source.clone(),
            status_address,
            state_directory,
            output,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it keeps what must outlast it.
    pub fn state_directory(&self) -> &Path {
        &self.state_directory
    }

    /// All that it has printed so far.
    pub fn output(&self) -> String {
        let file = self.output.file();
        file.and_then(|file| fs::read_to_string(file).ok())
            .unwrap_or_default()
    }

    /// Kills it without warning, as a crash would.
    pub fn kill(&mut self) {
        // It may have ended by itself: then there is nothing to kill, and waiting still reaps it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The source is found here by now.
    pub fn set_source(&mut self, source: &Endpoint) {
        self.source = source.clone();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// `host:port` of the status page.
    pub fn status_address(&self) -> &str {
        &self.status_address
    }

    /// The JSON of the status page.
    pub fn status(&self) -> Result<Value> {
        let body = http_get(&self.status_address, "/status")?;
        serde_json::from_str(&body).with_context(|| format!("the status page is no JSON: {body}"))
    }

    /// Waits until every lane has caught up for the first time.
    pub fn wait_until_caught_up(&mut self, timeout: Duration) -> Result<()> {
        self.wait(timeout, "every lane to have caught up", |sync| {
            Ok(sync.status()?["caught_up"] == Value::Bool(true))
        })
    }

    /// Waits until the target has acknowledged all that the source's masters have written so far.
    pub fn wait_until_applied(&mut self, timeout: Duration) -> Result<()> {
        let written = source_offsets(&self.source)?;
        self.wait(timeout, "all writes to be applied", |sync| {
            let status = sync.status()?;
            let lanes = status["lanes"].as_array().cloned().unwrap_or_default();
            // Offsets of a history that ended in a failover may be larger; and the first replica begins one.
            let now = source_offsets(&sync.source)?;
            let is_of_now = |lane: &Value, source: &str| {
                let replid = now.iter().find(|(other, ..)| other == source);
                replid.is_some_and(|(_, replid, _)| lane["replid"] == replid.as_str())
            };
            Ok(written.iter().all(|(source, _, offset)| {
                lanes.iter().any(|lane| {
                    lane["source"] == source.as_str()
                        && is_of_now(lane, source)
                        && lane["acknowledged_offset"].as_u64() >= Some(*offset)
                })
            }))
        })
    }

    /// Waits until all that was written is applied, and no deadline is held back any more: writers must have stopped.
    pub fn wait_until_settled(&mut self, timeout: Duration) -> Result<()> {
        self.wait_until_applied(timeout)?;
        self.wait(timeout, "all deadlines to be settled", |sync| {
            let status = sync.status()?;
            let lanes = status["lanes"].as_array().cloned().unwrap_or_default();
            Ok(lanes.iter().all(|lane| lane["leases"] == 0))
        })?;
        self.wait_until_applied(timeout)
    }

    /// Asks it to finish (SIGTERM) and waits for that.
    pub fn stop(mut self) -> Result<(ExitStatus, String)> {
        self.terminate()?;
        self.wait_for_exit(STOP_TIMEOUT)
    }

    /// Asks it to finish (SIGTERM).
    pub fn terminate(&self) -> Result<()> {
        let pid = self.child.id();
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -TERM {pid}")])
            .status()?;
        if !sent.success() {
            bail!("cannot send SIGTERM to {pid}: {}", self.output());
        }
        Ok(())
    }

    /// Waits until it ends by itself; returns its status and what it printed.
    pub fn wait_for_exit(&mut self, timeout: Duration) -> Result<(ExitStatus, String)> {
        let mut status = None;
        wait_until(timeout, "slotstream to end", || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })
        .with_context(|| self.output())?;
        let status = status.context("it ended without a status")?;
        Ok((status, self.output()))
    }

    fn wait(
        &mut self,
        timeout: Duration,
        what: &str,
        mut done: impl FnMut(&Slotstream) -> Result<bool>,
    ) -> Result<()> {
        let mut ended = None;
        let waited = wait_until(timeout, what, || {
            ended = self.child.try_wait()?;
            Ok(ended.is_some() || done(self)?)
        });
        if let Some(status) = ended {
            bail!("slotstream ended ({status}): {}", self.output());
        }
        waited.with_context(|| {
            let status = self.status();
            let status = status.map_or_else(|error| format!("{error:#}"), |json| json.to_string());
            format!("status: {status}\noutput: {}", self.output())
        })
    }
}

impl Drop for Slotstream {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.state_directory);
        if let Output::Passing(file) = &self.output {
            let _ = fs::remove_file(file);
        }
    }
}

impl Output {
    fn file(&self) -> Option<&Path> {
        match self {
            Output::Shown => None,
            Output::Passing(file) | Output::Kept(file) => Some(file),
        }
    }
}

/// Address, replication id and offset of each master.
fn source_offsets(source: &Endpoint) -> Result<Vec<(String, String, u64)>> {
    let mut client = Client::connect(source)?;
    let masters = client.masters().to_vec();
    masters
        .into_iter()
        .map(|master| {
            let connection = client.connection(&master)?;
            let replid = info_field(connection, "replication", "master_replid")?;
            let offset = info_field(connection, "replication", "master_repl_offset")?;
            Ok((master, replid, offset.parse()?))
        })
        .collect()
}

/// The body of a page that is served in one piece.
fn http_get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(STATUS_TIMEOUT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer has no end of headers")?;
    let first = head.lines().next().unwrap_or_default();
    if !first.contains(" 200 ") {
        bail!("{path} answered {first}");
    }
    Ok(body.to_owned())
}
