//! The contenders: what follows the source's three masters, and where its copy is found.
//!
//! - `slotstream`: the program, writing into a cluster of three masters that is emptied before.
//! - `replica`: three new stock servers, `REPLICAOF` one source master each. They are no cluster nodes, which
//!   makes them cheaper than a cluster's own replicas: no slot index to keep, no gossip.
//!
//! Either way node `i` of the copy holds what source master `i` holds, so the two can be compared.

use anyhow::{Context, Result, bail};
use lab::server::spawn_for_life;
use lab::{Cluster, Connection, Server, ServerOptions, Value, Version, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Somebody who is measured.
#[derive(Clone, Debug)]
pub enum Contender {
    /// A build of the program, with more arguments for `sync`.
    Slotstream {
        name: String,
        program: PathBuf,
        arguments: Vec<String>,
    },
    Replica,
}

impl Contender {
    pub fn name(&self) -> &str {
        match self {
            Contender::Slotstream { name, .. } => name,
            Contender::Replica => "replica",
        }
    }
}

/// The servers that all rounds share.
pub struct Stage {
    pub version: Version,
    pub source: Cluster,
    pub target: Cluster,
}

impl Stage {
    pub fn source_addresses(&self) -> Vec<String> {
        addresses(self.source.masters())
    }
}

/// A contender at work, or about to be.
pub enum Follower<'a> {
    Slotstream {
        contender: &'a Contender,
        stage: &'a Stage,
        process: Option<Sync>,
    },
    Replicas {
        stage: &'a Stage,
        servers: Vec<Server>,
    },
}

impl<'a> Follower<'a> {
    /// Makes an empty place for the copy.
    pub fn prepare(contender: &'a Contender, stage: &'a Stage) -> Result<Follower<'a>> {
        Ok(match contender {
            Contender::Slotstream { .. } => {
                for master in stage.target.masters() {
                    master.connect()?.call(&["FLUSHALL"])?;
                }
                Follower::Slotstream {
                    contender,
                    stage,
                    process: None,
                }
            }
            Contender::Replica => {
                let masters = stage.source.masters().iter();
                let servers = masters.map(|_| Server::start(&stage.version, server_options()));
                Follower::Replicas {
                    stage,
                    servers: servers.collect::<Result<Vec<_>>>()?,
                }
            }
        })
    }

    /// Begins to follow.
    pub fn attach(&mut self) -> Result<()> {
        match self {
            Follower::Slotstream {
                contender,
                stage,
                process,
            } => *process = Some(Sync::start(contender, stage)?),
            Follower::Replicas { stage, servers } => {
                for (server, master) in servers.iter().zip(stage.source.masters()) {
                    let port = master.port().to_string();
                    server.connect()?.call(&["REPLICAOF", "127.0.0.1", &port])?;
                }
            }
        }
        Ok(())
    }

    /// The processes that do the following.
    pub fn pids(&self) -> Vec<u32> {
        match self {
            Follower::Slotstream { process, .. } => process.iter().map(Sync::pid).collect(),
            Follower::Replicas { servers, .. } => servers.iter().filter_map(Server::pid).collect(),
        }
    }

    /// The processes that hold the copy, where these are others.
    pub fn target_pids(&self) -> Vec<u32> {
        match self {
            Follower::Slotstream { stage, .. } => {
                let masters = stage.target.masters();
                masters.iter().filter_map(Server::pid).collect()
            }
            Follower::Replicas { .. } => Vec::new(),
        }
    }

    /// The nodes that hold the copy, in the order of the source's masters.
    pub fn nodes(&self) -> &[Server] {
        match self {
            Follower::Slotstream { stage, .. } => stage.target.masters(),
            Follower::Replicas { servers, .. } => servers,
        }
    }

    pub fn connect(&self) -> Result<Vec<Connection>> {
        self.nodes().iter().map(Server::connect).collect()
    }

    /// Fails where it has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        match self {
            Follower::Slotstream { process, .. } => {
                process.as_mut().map_or(Ok(()), Sync::check_running)
            }
            Follower::Replicas { .. } => Ok(()),
        }
    }

    /// What it has logged.
    pub fn output(&self) -> String {
        match self {
            Follower::Slotstream { process, .. } => process.iter().map(Sync::output).collect(),
            Follower::Replicas { servers, .. } => servers.iter().map(Server::log).collect(),
        }
    }

    /// Ends the program, which has to end well, and removes what it kept for itself on the target. Replicas go on.
    pub fn stop(&mut self) -> Result<()> {
        let Follower::Slotstream { process, .. } = self else {
            return Ok(());
        };
        process.take().map_or(Ok(()), Sync::stop)?;
        self.connect()?.iter_mut().try_for_each(remove_bookkeeping)
    }
}

/// Removes the program's own keys of one node: epochs, records, watermarks.
fn remove_bookkeeping(node: &mut Connection) -> Result<()> {
    let mut cursor = "0".to_owned();
    loop {
        let reply = node.call(&[
            "SCAN",
            &cursor,
            "MATCH",
            "{*}slotstream:*",
            "COUNT",
            "10000",
        ])?;
        let [next, keys] = reply.array() else {
            bail!("SCAN answered {reply:?}");
        };
        for key in keys.array().iter().filter_map(Value::bytes) {
            node.call(&[b"DEL", key])?;
        }
        cursor = next.text();
        if cursor == "0" {
            return Ok(());
        }
    }
}

/// Diskless, as servers do it by default since 7.0; an old default is no part of the comparison.
pub fn server_options() -> ServerOptions {
    ServerOptions {
        diskless: true,
        ..ServerOptions::default()
    }
}

fn addresses(servers: &[Server]) -> Vec<String> {
    servers.iter().map(Server::address).collect()
}

/// A running `slotstream sync`. Its status page stays off: asking it would show in its CPU time.
pub struct Sync {
    child: Child,
    log: PathBuf,
}

impl Sync {
    fn start(contender: &Contender, stage: &Stage) -> Result<Sync> {
        let Contender::Slotstream {
            program, arguments, ..
        } = contender
        else {
            bail!("a replica is not started as a program");
        };
        let log = format!("slotstream-perf-{}.log", std::process::id());
        let log = std::env::temp_dir().join(log);
        let file = File::create(&log)?;
        let mut command = Command::new(program);
        command
            .args(["sync", "--source", &stage.source.uri()])
            .args(["--target", &stage.target.uri()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = spawn_for_life(command)
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Sync { child, log })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("slotstream ended ({status}): {}", self.output()),
        }
    }

    fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.pid())?), Signal::SIGTERM)?;
        let mut ended = None;
        wait_until(STOP_TIMEOUT, "slotstream to end", || {
            ended = self.child.try_wait()?;
            Ok(ended.is_some())
        })?;
        match ended {
            Some(status) if status.success() => Ok(()),
            _ => bail!("slotstream did not end well: {}", self.output()),
        }
    }
}

impl Drop for Sync {
    fn drop(&mut self) {
        // It may have ended already; waiting reaps it either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.log);
    }
}
