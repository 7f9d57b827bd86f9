//! A target that stands still: the source is read at full speed all the while, in bounded memory.
//!
//! And a process that ends meanwhile: the next one goes on from what it left on disk.
//!
//! `SLOTSTREAM_TEST_SPOOL_SECONDS` sets how long the target stands still.

use anyhow::{Context, Result, ensure};
use lab::{
    Command, CompareOptions, Connection, Family, Server, ServerOptions, Slotstream, compare,
    version_or_skip, wait_until,
};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(120);
/// The target stands still for so long unless the environment says otherwise.
const STANDSTILL: Duration = Duration::from_secs(15);
const VALUE_BYTES: usize = 1_000;
const BATCH: usize = 1_000;
const KEYS: usize = 20_000;
/// What a process with one lane may take: see "Bounded memory" in the README, and 32 MiB for the spool.
/// What was received is on disk so long after, and what the target has is in its records.
const ON_DISK: Duration = Duration::from_secs(3);
const MEMORY_KIB: u64 = (64 + 16 + 32) << 10;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slotstream"))
}

/// A source that gives up a replica that leaves 32 MB in its hands, and remembers no more than 1 MB for it.
fn strict() -> ServerOptions {
    ServerOptions {
        extra: vec![
            "client-output-buffer-limit replica 32mb 32mb 5".to_owned(),
            "repl-backlog-size 1mb".to_owned(),
        ],
        ..ServerOptions::default()
    }
}

struct Rig {
    source: Server,
    target: Server,
    sync: Slotstream,
    connection: Connection,
    written: usize,
}

impl Rig {
    fn start(arguments: &[&str]) -> Result<Option<Rig>> {
        Rig::start_on(Family::Redis70, arguments)
    }

    fn start_on(family: Family, arguments: &[&str]) -> Result<Option<Rig>> {
        let Some(version) = version_or_skip(family) else {
            return Ok(None);
        };
        let source = Server::start(&version, strict())?;
        let target = Server::start(&version, ServerOptions::default())?;
        let (from, to) = (source.endpoint(), target.endpoint());
        let mut sync = Slotstream::start(program(), &from, &to, arguments)?;
        sync.wait_until_caught_up(TIMEOUT)?;
        let connection = source.connect()?;
        Ok(Some(Rig {
            source,
            target,
            sync,
            connection,
            written: 0,
        }))
    }

    /// Writes so many values in one pipeline.
    fn write(&mut self, values: usize) -> Result<()> {
        let commands = (self.written..self.written + values).map(|number| {
            let key = format!("key:{}", number % KEYS);
            let value = format!("{number:0VALUE_BYTES$}");
            Command::new(&["SET", &key, &value])
        });
        let commands: Vec<Command> = commands
            .chain([Command::new(&["INCR", "batches"])])
            .collect();
        for reply in self.connection.pipeline(&commands)? {
            reply.ok()?;
        }
        self.written += values;
        Ok(())
    }

    fn lane(&self, field: &str) -> Result<serde_json::Value> {
        let status = self.sync.status()?;
        Ok(status["lanes"][0][field].clone())
    }

    fn number(&self, field: &str) -> Result<u64> {
        let value = self.lane(field)?;
        value.as_u64().with_context(|| format!("{field}: {value}"))
    }

    fn wait_for_state(&self, state: &str) -> Result<()> {
        wait_until(TIMEOUT, &format!("the spool to be {state}"), || {
            Ok(self.lane("spool_state")? == state)
        })
    }

    /// Peak memory of our process so far.
    fn peak_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.sync.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let line = line.context("the kernel tells")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    fn segments(&self) -> Result<usize> {
        let directory = self.sync.state_directory().join("slotstream/default");
        if !directory.exists() {
            return Ok(0);
        }
        let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name()));
        let names: Result<Vec<_>> = names.collect();
        Ok(names?.iter().filter(|name| *name != "lock-default").count())
    }

    /// After the target has come to life again.
    fn ends_equal(mut self) -> Result<()> {
        self.sync.wait_until_applied(TIMEOUT)?;
        self.wait_for_state("empty")?;
        wait_until(TIMEOUT, "the segments to go", || Ok(self.segments()? == 0))?;
        let counts = (self.number("full_syncs")?, self.number("partial_syncs")?);
        let (exit, output) = self.sync.stop()?;
        ensure!(exit.code() == Some(0), "{exit}: {output}");
        ensure!(counts == (1, 0), "full and partial syncs: {counts:?}");
        let (from, to) = (self.source.endpoint(), self.target.endpoint());
        let diff = compare(&from, &to, &CompareOptions::default())?;
        ensure!(diff.is_equal(), "{diff}\n{output}");
        Ok(())
    }
}

#[test]
fn a_source_never_waits_for_a_target_that_stands_still() -> Result<()> {
    let seconds = std::env::var("SLOTSTREAM_TEST_SPOOL_SECONDS").ok();
    let standstill = seconds.map_or(STANDSTILL, |text| {
        Duration::from_secs(text.parse().expect("a number of seconds"))
    });
    let Some(mut rig) = Rig::start(&[])? else {
        return Ok(());
    };
    ensure!(rig.segments()? == 0, "no lag, no files");
    rig.target.freeze()?;
    let begun = Instant::now();
    while begun.elapsed() < standstill || rig.written * VALUE_BYTES < 200_000_000 {
        // As fast as the source takes it until there is enough, then at leisure.
        if rig.written * VALUE_BYTES > 1_000_000_000 {
            std::thread::sleep(Duration::from_millis(200));
            rig.write(1)?;
        } else {
            rig.write(BATCH)?;
        }
    }
    let end: u64 = rig
        .source
        .info("replication", "master_repl_offset")?
        .parse()?;
    wait_until(TIMEOUT, "all to be received", || {
        Ok(rig.number("received_offset")? >= end)
    })?;
    let (lag, spooled) = (rig.number("lag_bytes")?, rig.number("spool_bytes")?);
    ensure!(spooled > 150_000_000 && lag >= spooled, "{lag} {spooled}");
    ensure!(rig.lane("spool_state")? == "disk" && rig.segments()? > 1);
    let peak = rig.peak_kib()?;
    rig.target.thaw()?;
    rig.sync.wait_until_applied(TIMEOUT)?;
    let later = rig.peak_kib()?;
    ensure!(later < MEMORY_KIB, "{peak} KiB, then {later} KiB");
    println!(
        "{spooled} bytes spooled in {:?}; peak memory {peak} KiB, then {later} KiB",
        begun.elapsed()
    );
    rig.ends_equal()
}

#[test]
fn a_spool_that_is_full_says_so_and_goes_on_when_the_target_does() -> Result<()> {
    let Some(mut rig) = Rig::start(&["--spool-max", "8MiB"])? else {
        return Ok(());
    };
    rig.target.freeze()?;
    // Lane and spool take 8, 32 and 8 MiB; what the source may hold is more than the rest.
    while rig.lane("spool_state")? != "full" {
        rig.write(BATCH)?;
        ensure!(rig.written * VALUE_BYTES < 100_000_000, "never full");
    }
    let message = rig.lane("message")?.to_string();
    ensure!(
        message.contains("--spool-max (8 MiB) is used up: not reading"),
        "{message}"
    );
    rig.target.thaw()?;
    rig.ends_equal()
}

#[test]
fn a_disk_that_refuses_is_named_and_tried_until_it_takes() -> Result<()> {
    let directory = std::env::temp_dir().join(format!("slotstream-spool-{}", std::process::id()));
    // A file stands where the directory should be made.
    fs::write(&directory, "in the way")?;
    let path = directory.join("spool");
    let path = path.to_str().context("a plain path")?;
    let Some(mut rig) = Rig::start(&["--spool-dir", path])? else {
        fs::remove_file(&directory)?;
        return Ok(());
    };
    rig.target.freeze()?;
    while rig.lane("spool_state")? != "failed" {
        rig.write(BATCH)?;
        ensure!(rig.written * VALUE_BYTES < 60_000_000, "never failed");
    }
    let message = rig.lane("message")?.to_string();
    ensure!(
        message.contains("spool: ") && message.contains(path),
        "{message}"
    );
    ensure!(message.contains("retrying"), "{message}");
    fs::remove_file(&directory)?;
    rig.wait_for_state("disk")?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path)?.permissions());
    ensure!(mode & 0o777 == 0o700, "{mode:o}");
    rig.write(40 * BATCH)?;
    rig.target.thaw()?;
    let result = rig.ends_equal();
    fs::remove_dir_all(&directory)?;
    result
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    /// SIGTERM, while the target stands still.
    Told,
}

/// A process ends while the target stands still, and the source has long forgotten what that lacks.
fn the_next_process_goes_on_from_the_spool(end: End, masters: &[Family]) -> Result<()> {
    for family in masters {
        let name = format!(
            "slotstream-left-{}-{}",
            std::process::id(),
            fastrand::u64(..)
        );
        let directory = std::env::temp_dir().join(name);
        let path = directory.to_str().context("a plain path")?;
        let arguments = ["--spool-dir", path];
        let Some(mut rig) = Rig::start_on(*family, &arguments)? else {
            return Ok(());
        };
        rig.write(BATCH)?;
        rig.sync.wait_until_applied(TIMEOUT)?;
        // Of what it applies from here on the records do not tell.
        std::thread::sleep(ON_DISK);
        rig.write(BATCH / 2)?;
        rig.target.freeze()?;
        for _ in 0..30 {
            rig.write(BATCH)?;
        }
        let written: u64 = rig
            .source
            .info("replication", "master_repl_offset")?
            .parse()?;
        wait_until(TIMEOUT, "all to be received", || {
            Ok(rig.number("received_offset")? >= written)
        })?;
        match end {
            End::Killed => {
                std::thread::sleep(ON_DISK);
                rig.sync.kill();
            }
            End::Told => {
                rig.sync.terminate()?;
                rig.sync.wait_for_exit(TIMEOUT)?;
            }
        }
        let former = rig.sync.output();
        rig.target.thaw()?;
        // What is written now comes behind what was spooled.
        rig.write(BATCH / 4)?;
        let (from, to) = (rig.source.endpoint(), rig.target.endpoint());
        rig.sync = Slotstream::start(program(), &from, &to, &arguments)?;
        rig.sync.wait_until_caught_up(TIMEOUT)?;
        rig.sync.wait_until_applied(TIMEOUT)?;
        let resume = rig.lane("resume")?;
        let output = rig.sync.output();
        ensure!(resume["step"] == "spool", "{resume}\n{former}\n{output}");
        let why = resume["why"].as_str().unwrap_or_default();
        ensure!(why.contains("spooled on disk"), "{resume}");
        let counts = (rig.number("full_syncs")?, rig.number("partial_syncs")?);
        ensure!(counts == (0, 1), "full and partial syncs: {counts:?}");
        wait_until(TIMEOUT, "the segments to go", || {
            let left = fs::read_dir(&directory)?.count();
            Ok(left == 1)
        })?;
        let diff = compare(&from, &to, &CompareOptions::default())?;
        ensure!(diff.is_equal(), "{diff}\n{former}\n{output}");
        drop(rig);
        fs::remove_dir_all(&directory)?;
    }
    Ok(())
}

#[test]
fn after_a_kill_the_next_process_goes_on_from_the_spool() -> Result<()> {
    let families = [Family::Redis70, Family::Redis60, Family::Valkey9];
    the_next_process_goes_on_from_the_spool(End::Killed, &families)
}

#[test]
fn a_process_that_is_told_to_stop_leaves_the_spool_to_the_next() -> Result<()> {
    the_next_process_goes_on_from_the_spool(End::Told, &[Family::Redis70])
}
