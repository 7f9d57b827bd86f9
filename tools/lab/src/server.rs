//! One server process on a loopback port, with a directory of its own.

use crate::client::Endpoint;
use crate::resp::Connection;
use crate::version::Version;
use crate::{Result, wait_until};
use anyhow::{Context, anyhow, bail};
use std::collections::HashSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, OnceLock, mpsc};
use std::time::Duration;

/// Ports below the range from which the kernel picks ports for outgoing connections (from 32768), the
/// cluster bus of each included.
const PORTS: std::ops::Range<u16> = 10_000..22_000;
pub(crate) const BUS_PORT_DISTANCE: u16 = 10_000;
const DIRECTORY_PREFIX: &str = "slotstream-lab-";
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How often another port is tried when one was taken between the check and the start.
const START_ATTEMPTS: usize = 5;

/// How a server is set up.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// A free one is chosen where this is `None`.
    pub port: Option<u16>,
    /// The IP address that it listens on, `127.0.0.1` where this is `None`.
    pub host: Option<&'static str>,
    pub cluster: bool,
    /// Replicas get the snapshot straight from memory, not from a file.
    pub diskless: bool,
    /// The password of the default user, which replicas use too.
    pub password: Option<String>,
    /// ACL users, each as a line of the configuration holds it: `name on >password ~* +@all`.
    pub users: Vec<String>,
    /// More lines of the configuration, such as `maxmemory 100mb`.
    pub extra: Vec<String>,
}

/// A running server; dropping it kills the process and removes its directory.
pub struct Server {
    version: Version,
    options: ServerOptions,
    port: u16,
    directory: PathBuf,
    child: Option<Child>,
}

impl Server {
    /// Starts a server and waits until it answers.
    pub fn start(version: &Version, options: ServerOptions) -> Result<Server> {
        let mut reason = anyhow!("never tried");
        for _ in 0..START_ATTEMPTS {
            match Server::launch(version, options.clone())
                .and_then(|mut server| server.wait_until_ready().map(|()| server))
            {
                Ok(server) => return Ok(server),
                Err(error) if options.port.is_some() => return Err(error),
                Err(error) => reason = error,
            }
        }
        Err(reason)
    }

    /// Starts the process and does not wait.
    pub(crate) fn launch(version: &Version, options: ServerOptions) -> Result<Server> {
        let port = match options.port {
            Some(port) => port,
            None => free_port()?,
        };
        let directory = new_directory(&format!("{}-{port}", version.family()))?;
        let mut server = Server {
            version: version.clone(),
            options,
            port,
            directory,
            child: None,
        };
        server.write_configuration()?;
        server.spawn()?;
        Ok(server)
    }

    pub fn version(&self) -> &Version {
        &self.version
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The IP address that it listens on.
    pub fn host(&self) -> &'static str {
        self.options.host.unwrap_or("127.0.0.1")
    }

    /// `127.0.0.1:port`, `[::1]:port`.
    pub fn address(&self) -> String {
        host_port(self.host(), self.port)
    }

    /// The server with the default user's credentials.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::at(self.address()).with_password(self.options.password.as_deref())
    }

    /// `redis://...` with the default user's password.
    pub fn uri(&self) -> String {
        self.endpoint().to_string()
    }

    /// A connection, signed in.
    pub fn connect(&self) -> Result<Connection> {
        self.endpoint().connect(&self.address())
    }

    /// The process id, unless it was killed.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A field of `INFO`, such as `master_repl_offset`.
    pub fn info(&self, section: &str, field: &str) -> Result<String> {
        info_field(&mut self.connect()?, section, field)
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Kills the process without warning, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself: then there is nothing to kill, and waiting still reaps it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts the server again after [`Server::kill`], with the same port and directory.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        self.spawn()?;
        self.wait_until_ready()
    }

    /// Ends the process as an operator does, with a snapshot.
    pub fn end(&mut self) -> Result<()> {
        // The server closes the connection instead of an answer.
        let _ = self.connect()?.call(&["SHUTDOWN", "SAVE"]);
        let mut child = self.child.take().context("the server is not running")?;
        child.wait()?;
        Ok(())
    }

    /// Starts it at another address after [`Server::end`], with the same data and, in a cluster, the same node id.
    pub fn start_at(&mut self, host: &'static str, port: u16) -> Result<()> {
        self.options.host = Some(host);
        self.port = port;
        self.write_configuration()?;
        self.spawn()?;
        self.wait_until_ready()
    }

    /// Stops the process in its tracks; connections stay open.
    pub fn freeze(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// Lets a frozen process run again.
    pub fn thaw(&self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid().context("the server is not running")?;
        let status = Command::new("sh")
            .args(["-c", &format!("kill -{name} {pid}")])
            .status()?;
        if !status.success() {
            bail!("cannot send SIG{name} to {pid}");
        }
        Ok(())
    }

    pub(crate) fn wait_until_ready(&mut self) -> Result<()> {
        let what = format!("{} on port {}", self.version, self.port);
        let waited = wait_until(START_TIMEOUT, &what, || {
            if let Some(child) = &mut self.child
                && child.try_wait()?.is_some()
            {
                return Ok(true);
            }
            let Ok(mut connection) = self.endpoint().connect(&self.address()) else {
                return Ok(false);
            };
            Ok(connection.call(&["PING"]).is_ok())
        });
        let running = matches!(self.child.as_mut().map(Child::try_wait), Some(Ok(None)));
        if running && waited.is_ok() {
            // Another server may have had the port first: then ours could not stay.
            let pid = self.info("server", "process_id")?;
            if Some(pid) == self.pid().map(|pid| pid.to_string()) {
                return Ok(());
            }
        }
        let log = self.log();
        let tail: Vec<_> = log.lines().rev().take(5).collect();
        let tail: Vec<_> = tail.into_iter().rev().collect();
        bail!("{what} did not start: {}", tail.join(" | "))
    }

    fn write_configuration(&self) -> Result<()> {
        let yes_no = |yes: bool| if yes { "yes" } else { "no" };
        let mut lines = vec![
            format!("port {}", self.port),
            format!("bind {}", self.host()),
            "daemonize no".to_owned(),
            format!("dir {}", self.directory.display()),
            "logfile log".to_owned(),
            "save \"\"".to_owned(),
            "appendonly no".to_owned(),
            format!("repl-diskless-sync {}", yes_no(self.options.diskless)),
            "repl-diskless-sync-delay 0".to_owned(),
        ];
        if let Some(host) = self.options.host
            && self.version.family().has_redis_7_commands()
        {
            // As it would be on another machine. 6.0 does so by itself.
            lines.push(format!("bind-source-addr {host}"));
        }
        if self.version.family().has_redis_7_commands() {
            lines.push("enable-debug-command local".to_owned());
        }
        if self.options.cluster {
            lines.push("cluster-enabled yes".to_owned());
            lines.push("cluster-config-file nodes.conf".to_owned());
            lines.push("cluster-node-timeout 5000".to_owned());
        }
        if let Some(password) = &self.options.password {
            lines.push(format!("requirepass \"{password}\""));
            lines.push(format!("masterauth \"{password}\""));
        }
        lines.extend(self.options.users.iter().map(|user| format!("user {user}")));
        lines.extend(self.options.extra.iter().cloned());
        lines.push(String::new());
        fs::write(self.directory.join("server.conf"), lines.join("\n"))?;
        Ok(())
    }

    fn spawn(&mut self) -> Result<()> {
        let mut command = Command::new("setpriv");
        let server = self.version.command("server");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(server.get_program())
            .args(server.get_args())
            .arg(self.directory.join("server.conf"))
            .envs(
                server
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.directory.join("stderr"))?);
        let child = spawn_for_life(command).context("cannot start setpriv (package util-linux)")?;
        self.child = Some(child);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A field of `INFO`.
pub fn info_field(connection: &mut Connection, section: &str, field: &str) -> Result<String> {
    let info = connection.call(&["INFO", section])?.text();
    info.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
        .with_context(|| format!("INFO {section} has no {field}"))
}

/// Spawns a process that dies with this one, however this one ends.
///
/// The kernel sends the signal when the *thread* ends that spawned the process, so they are all spawned
/// by one thread that never does: a test's own thread ends with the test.
pub fn spawn_for_life(command: Command) -> std::io::Result<Child> {
    type Request = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, answer) in requests {
                // Whoever asked may be gone: then nobody wants the process either.
                if let Err(mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        });
        Mutex::new(sender)
    });
    let (answer, spawned) = mpsc::channel();
    let lost = || std::io::Error::other("the spawning thread is gone");
    spawner
        .lock()
        .map_err(|_| lost())?
        .send((command, answer))
        .map_err(|_| lost())?;
    spawned.recv().map_err(|_| lost())?
}

/// `host:port`, with brackets around an IPv6 address.
pub(crate) fn host_port(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// A port that is free together with its cluster bus port, and that was not handed out before.
pub fn free_port() -> Result<u16> {
    static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut taken = TAKEN
        .lock()
        .map_err(|_| anyhow!("a thread panicked while choosing a port"))?;
    let taken = taken.get_or_insert_default();
    for _ in 0..1000 {
        let port = fastrand::u16(PORTS);
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + BUS_PORT_DISTANCE) && taken.insert(port) {
            return Ok(port);
        }
    }
    bail!("no free loopback port among {PORTS:?}")
}

/// A new, empty directory for one process.
pub(crate) fn new_directory(name: &str) -> Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static SWEEP: Once = Once::new();
    let parent = std::env::temp_dir();
    SWEEP.call_once(|| remove_orphans(&parent));
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = parent.join(format!(
        "{DIRECTORY_PREFIX}{}-{count}-{name}",
        std::process::id()
    ));
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

/// Removes the directories of processes that were killed before they could.
fn remove_orphans(parent: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(DIRECTORY_PREFIX)
            .and_then(|rest| rest.split('-').next());
        if let Some(owner) = owner
            && !Path::new("/proc").join(owner).exists()
        {
            // Another process may be sweeping too, or it belongs to another user: either way let it be.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
