//! Live traffic: threads that write a random mix of every kind of write command.
//!
//! Each thread has its own connections and its own random numbers, all threads share the keys, so the
//! order in which the servers execute the commands matters. One more thread waits in blocking commands for
//! what the others push. The mix is in [`mix`], narrower ones in [`plain`]; how a cluster is written to whose masters
//! change is in [`forgiving`].

mod forgiving;
mod mix;
mod plain;

use crate::Result;
use crate::client::{Client, Endpoint};
use crate::load::LoadOptions;
use crate::resp::Command;
use crate::version::Family;
use anyhow::anyhow;
use fastrand::Rng;
use forgiving::Sender;
use mix::Mix;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Which commands are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Commands {
    /// Every kind, blocking ones included.
    #[default]
    All,
    /// On one key each: these go on while a slot's keys are on their way from one master to another.
    OneKey,
    /// On one key each, none of which removes anything, all of which a server refuses when it is out of memory.
    Growing,
    /// Those that may be done again: a suffix of them, repeated in order, ends in the same values.
    Repeatable,
}

/// What the writers do.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    pub seed: u64,
    pub commands: Commands,
    /// Threads that write, apart from the one that blocks.
    pub threads: usize,
    /// Of all threads together.
    pub commands_per_second: u64,
    /// Sets of keys with a hash tag each: fewer of them means more commands on the same key.
    pub key_groups: usize,
    /// What their tags begin with: others write other keys.
    pub letter: char,
    /// Whose commands are written, if not all that the servers know.
    pub family: Option<Family>,
    /// More of them, to which every fourth round of commands goes: many keys that are seldom written.
    pub cold_groups: usize,
    /// With what [`crate::load`] filled the target: some commands go to those keys.
    pub loaded: Option<LoadOptions>,
    /// Keys and fields that live for fractions of a second, and writes to loaded keys that live for a few.
    /// Whoever applies these writes late can find a key gone that was prolonged in time.
    pub short_lives: bool,
    /// Masters die and change places meanwhile: commands that get no answer, or a refusal for such a reason, are
    /// given up.
    pub forgiving: bool,
    /// Keys of each of the `key_groups` beside what the mix has: numbers, which are renamed, copied and counted, also in
    /// transactions, so that many keys of one slot are tied to each other.
    pub tied_keys: usize,
}

impl Default for WriterOptions {
    fn default() -> WriterOptions {
        WriterOptions {
            seed: 1,
            commands: Commands::All,
            threads: 2,
            commands_per_second: 2_000,
            key_groups: 300,
            letter: 'w',
            family: None,
            cold_groups: 0,
            loaded: None,
            short_lives: true,
            forgiving: false,
            tied_keys: 0,
        }
    }
}

/// What the writers did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriterReport {
    pub commands: u64,
    /// Error replies that the mix is expected to earn now and then, such as RENAME of a missing key.
    pub expected_errors: u64,
    /// Commands without an answer, or refused because masters changed: whether they were executed is not known.
    pub given_up: u64,
    /// All others, by what they say.
    pub errors: BTreeMap<String, u64>,
}

impl WriterReport {
    fn add(&mut self, other: WriterReport) {
        self.commands += other.commands;
        self.expected_errors += other.expected_errors;
        self.given_up += other.given_up;
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
    }
}

impl fmt::Display for WriterReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} commands", self.commands)?;
        for (error, count) in &self.errors {
            write!(formatter, "\n  {count} times: {error}")?;
        }
        Ok(())
    }
}

const EXPECTED_ERRORS: [&str; 8] = [
    "ERR no such key",
    "BUSYGROUP",
    "NOGROUP",
    // The stream that a reader waits for was deleted.
    "UNBLOCKED",
    "ERR source and destination objects are the same",
    "ERR The XGROUP subcommand requires the key to exist",
    // What loaded keys hold is not always what INCR, APPEND and the like can go on with.
    "ERR increment or decrement would overflow",
    "ERR The ID specified in XADD is equal or smaller",
];

/// Commands that one thread sends at once: enough for pipelining, few enough for a smooth rate.
const BATCH_COMMANDS: usize = 20;

/// Writer threads; dropping them without [`Writers::stop`] stops them too.
pub struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<WriterReport>>>,
}

impl Writers {
    /// Starts the threads; their connections are open when this returns.
    pub fn start(target: &Endpoint, options: &WriterOptions) -> Result<Writers> {
        let mut writers = Writers {
            stop: Arc::new(AtomicBool::new(false)),
            written: Arc::new(AtomicU64::new(0)),
            threads: Vec::new(),
        };
        let mut random = Rng::with_seed(options.seed);
        let first = usize::from(options.commands != Commands::All);
        for index in first..=options.threads {
            let mut client = Client::connect(target)?;
            let family = match options.family {
                Some(family) => family,
                None => client.family()?,
            };
            let mix = Mix::new(family, random.fork(), options);
            let way = match options.forgiving {
                true => Way::Forgiving(Sender::connect(target)?),
                false => Way::Strict(client),
            };
            let stop = writers.stop.clone();
            let written = writers.written.clone();
            let pause = batch_pause(options);
            writers.threads.push(std::thread::spawn(move || {
                let worker = Worker {
                    way,
                    mix,
                    stop,
                    written,
                    report: WriterReport::default(),
                };
                if index == 0 {
                    worker.block()
                } else {
                    worker.write(pause)
                }
            }));
        }
        Ok(writers)
    }

    /// Commands answered so far.
    pub fn commands_so_far(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Stops all threads once what they have sent is answered.
    pub fn stop(mut self) -> Result<WriterReport> {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = WriterReport::default();
        for thread in self.threads.drain(..) {
            let part = thread
                .join()
                .map_err(|_| anyhow!("a writer thread panicked"))??;
            report.add(part);
        }
        Ok(report)
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// How long one thread may take for one batch.
fn batch_pause(options: &WriterOptions) -> Duration {
    let batches_per_second = options.commands_per_second as f64 / BATCH_COMMANDS as f64;
    Duration::from_secs_f64(options.threads as f64 / batches_per_second.max(0.01))
}

/// How commands are sent.
enum Way {
    Strict(Client),
    Forgiving(Sender),
}

struct Worker {
    way: Way,
    mix: Mix,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    report: WriterReport,
}

impl Worker {
    fn write(mut self, pause: Duration) -> Result<WriterReport> {
        let mut due = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let mut commands = Vec::new();
            while commands.len() < BATCH_COMMANDS {
                self.mix.next(&mut commands);
            }
            self.send(&commands)?;
            due += pause;
            let now = Instant::now();
            match due.checked_duration_since(now) {
                Some(left) => std::thread::sleep(left),
                // What was missed is not made up for in one burst.
                None => due = now,
            }
        }
        Ok(self.report)
    }

    /// Waits for elements, one command at a time.
    fn block(mut self) -> Result<WriterReport> {
        while !self.stop.load(Ordering::Relaxed) {
            let command = self.mix.next_blocking();
            let sent = self.send(&[command]);
            if let (Err(_), Way::Strict(client)) = (sent, &mut self.way) {
                // A master that steps back ends the connections of those that wait.
                client.reconnect()?;
            }
        }
        Ok(self.report)
    }

    fn send(&mut self, commands: &[Command]) -> Result<()> {
        let replies = match &mut self.way {
            Way::Strict(client) => client.pipeline(commands)?.into_iter().map(Some).collect(),
            Way::Forgiving(sender) => sender.send(commands),
        };
        for (command, reply) in commands.iter().zip(&replies) {
            let Some(reply) = reply else {
                self.report.given_up += 1;
                continue;
            };
            self.report.commands += 1;
            self.written.fetch_add(1, Ordering::Relaxed);
            let within = reply.array().iter().filter_map(|inner| inner.error());
            for error in reply.error().into_iter().chain(within) {
                if EXPECTED_ERRORS.iter().any(|known| error.starts_with(known)) {
                    self.report.expected_errors += 1;
                } else if matches!(self.way, Way::Forgiving(_)) && forgiving::is_passing(error) {
                    self.report.given_up += 1;
                } else {
                    let text = format!("{error} (answer to {command:?})");
                    *self.report.errors.entry(text).or_default() += 1;
                }
            }
        }
        Ok(())
    }
}
