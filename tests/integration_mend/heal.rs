//! Keys that somebody breaks at the target heal with the next command that fails on them, whatever is written meanwhile.

use anyhow::{Result, ensure};
use lab::{
    Client, Cluster, ClusterOptions, Command, CompareOptions, Endpoint, Family, Server,
    ServerOptions, Slotstream, compare, version_or_skip, wait_until,
};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(60);
/// 6.0 sends how long a key still lives, not when it ends.
const RELATIVE_TTL_TOLERANCE: Duration = Duration::from_secs(5);
const ROUNDS: usize = 3;
const LARGE_ELEMENTS: usize = 10_000;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slotstream"))
}

/// The keys of one tag, and what their traffic is.
struct Keys(String);

impl Keys {
    fn of(number: usize) -> Self {
        Self(format!("{{tag{number}}}"))
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }

    fn command(&self, words: &[&str]) -> Command {
        // Words that begin with a colon are keys.
        let words: Vec<String> = words
            .iter()
            .map(|word| match word.strip_prefix(':') {
                Some(name) => self.key(name),
                None => (*word).to_owned(),
            })
            .collect();
        Command::routed(self.key(""), &words)
    }

    fn first(&self) -> Vec<Command> {
        let lines: [&[&str]; 6] = [
            &["SET", ":from", "x"],
            &["RPUSH", ":list", "a", "b", "c"],
            &["PEXPIRE", ":list", "1000000"],
            &["SADD", ":set", "a", "b", "c", "some text that is no number"],
            &["SADD", ":numbers", "1", "2", "3"],
            &["HSET", ":hash", "f", "1", "g", "2"],
        ];
        lines.iter().map(|words| self.command(words)).collect()
    }

    /// One round of traffic. Each kind of key meets a command that fails on what is broken.
    fn traffic(&self, number: u64) -> Vec<Command> {
        let text = number.to_string();
        let (from, to) = match number % 2 {
            0 => (":from", ":to"),
            _ => (":to", ":from"),
        };
        let id = format!("{}-1", number + 1);
        let lines: [&[&str]; 14] = [
            &["INCR", ":counter"],
            &["RPUSH", ":list", &text],
            &["LPOP", ":list"],
            &["HINCRBY", ":hash", "f", "1"],
            &["SADD", ":set", &text],
            &["SREM", ":set", &(number.saturating_sub(3)).to_string()],
            &["SMOVE", ":set", ":other", &text],
            &["SADD", ":numbers", &text],
            &["ZINCRBY", ":zset", "1", "m"],
            &["XADD", ":stream", "MAXLEN", "50", &id, "f", &text],
            &["RENAME", from, to],
            &["APPEND", ":text", "."],
            &["PFADD", ":hll", &text],
            &[
                "SETBIT",
                ":bits",
                "7",
                if number.is_multiple_of(2) { "1" } else { "0" },
            ],
        ];
        let mut commands: Vec<Command> = lines.iter().map(|words| self.command(words)).collect();
        commands.push(self.command(&["MULTI"]));
        commands.push(self.command(&["INCR", ":tx"]));
        commands.push(self.command(&["RPUSH", ":txlist", &text]));
        commands.push(self.command(&["LTRIM", ":txlist", "-5", "-1"]));
        commands.push(self.command(&["EXEC"]));
        commands
    }

    /// What makes each key one on which the traffic fails.
    fn breaks(&self, round: usize) -> Vec<Command> {
        let mut lines: Vec<Vec<&str>> = vec![
            vec!["DEL", ":from", ":to"],
            vec!["SET", ":list", "broken"],
            vec!["SET", ":hash", "broken"],
            vec!["SET", ":set", "broken"],
            vec!["SET", ":numbers", "broken"],
            vec!["SET", ":zset", "broken"],
            vec!["SET", ":stream", "broken"],
            vec!["SET", ":txlist", "broken"],
            vec!["DEL", ":text", ":bits", ":hll"],
            vec!["RPUSH", ":text", "broken"],
            vec!["RPUSH", ":bits", "broken"],
            vec!["SET", ":hll", "broken"],
            vec!["SET", ":tx", "broken"],
        ];
        match round % 2 {
            0 => lines.push(vec!["SET", ":counter", "broken"]),
            _ => lines.extend([vec!["DEL", ":counter"], vec!["RPUSH", ":counter", "broken"]]),
        }
        lines.iter().map(|words| self.command(words)).collect()
    }
}

enum Deployment {
    Single(Server),
    Cluster(Cluster),
}

impl Deployment {
    fn start(family: Family, masters: usize) -> Result<Option<Self>> {
        let Some(version) = version_or_skip(family) else {
            return Ok(None);
        };
        let server = ServerOptions::default();
        Ok(Some(match masters {
            1 => Self::Single(Server::start(&version, server)?),
            count => {
                let options = ClusterOptions {
                    server,
                    slots: None,
                };
                Self::Cluster(Cluster::start(&version, count, 0, options)?)
            }
        }))
    }

    fn endpoint(&self) -> Endpoint {
        match self {
            Self::Single(server) => server.endpoint(),
            Self::Cluster(cluster) => cluster.endpoint(),
        }
    }
}

fn send(client: &mut Client, commands: &[Command]) -> Result<()> {
    for reply in client.pipeline(commands)? {
        reply.ok()?;
    }
    Ok(())
}

fn keep_writing(source: &Endpoint, stop: &AtomicBool) -> Result<()> {
    let mut client = Client::connect(source)?;
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        for tag in 0..4 {
            send(&mut client, &Keys::of(tag).traffic(number))?;
        }
        let large = Command::new(&["RPUSH", "large", &number.to_string()]);
        send(&mut client, &[large, Command::new(&["LPOP", "large"])])?;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn mended(sync: &Slotstream) -> Result<u64> {
    let status = sync.status()?;
    let lanes = status["lanes"].as_array().cloned().unwrap_or_default();
    let mends = lanes.iter().map(|lane| lane["mends"].as_u64().unwrap_or(0));
    Ok(mends.sum())
}

fn heals(source: (Family, usize), target: (Family, usize)) -> Result<()> {
    let from = Deployment::start(source.0, source.1)?;
    let to = Deployment::start(target.0, target.1)?;
    let (Some(from), Some(to)) = (from, to) else {
        return Ok(());
    };
    let (from, to) = (from.endpoint(), to.endpoint());
    let mut client = Client::connect(&from)?;
    for tag in 0..4 {
        send(&mut client, &Keys::of(tag).first())?;
    }
    let element = "x".repeat(1000);
    for _ in 0..LARGE_ELEMENTS / 100 {
        let mut words = vec!["RPUSH", "large"];
        words.extend([&*element; 100]);
        send(&mut client, &[Command::new(&words)])?;
    }
    let mut sync = Slotstream::start(program(), &from, &to, &[])?;
    sync.wait_until_caught_up(TIMEOUT)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| keep_writing(&from, &stop));
        let broken = break_again_and_again(&sync, &to);
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("no panic")?;
        broken
    })?;
    // What was broken last, or was carried on before the difference showed, meets one more command.
    sync.wait_until_settled(TIMEOUT)?;
    let options = CompareOptions {
        relative_ttl_tolerance: RELATIVE_TTL_TOLERANCE,
        ..CompareOptions::default()
    };
    let diff = compare(&from, &to, &options)?;
    ensure!(diff.is_equal(), "{diff}");
    let (exit, output) = sync.stop()?;
    ensure!(exit.success(), "{output}");
    Ok(())
}

fn break_again_and_again(sync: &Slotstream, target: &Endpoint) -> Result<()> {
    let mut client = Client::connect(target)?;
    for round in 0..ROUNDS {
        std::thread::sleep(Duration::from_millis(300));
        let before = mended(sync)?;
        for tag in 0..4 {
            client.pipeline(&Keys::of(tag).breaks(round))?;
        }
        client.call(&["SET", "large", "broken"])?.ok()?;
        // The large one, and of each tag all but one of those that were renamed.
        let least = before + 4 * 11 + 1;
        wait_until(TIMEOUT, "the keys to be mended", || {
            Ok(mended(sync)? >= least)
        })?;
    }
    std::thread::sleep(Duration::from_millis(500));
    Ok(())
}

#[test]
fn keys_heal_on_redis_6_0() -> Result<()> {
    heals((Family::Redis60, 2), (Family::Redis60, 2))
}

#[test]
fn keys_heal_on_redis_7_0() -> Result<()> {
    heals((Family::Redis70, 2), (Family::Redis70, 3))
}

#[test]
fn keys_heal_on_redis_8_0() -> Result<()> {
    heals((Family::Redis80, 2), (Family::Redis80, 2))
}

#[test]
fn keys_heal_on_valkey_8_1() -> Result<()> {
    heals((Family::Valkey81, 2), (Family::Valkey81, 2))
}

#[test]
fn keys_heal_on_valkey_9() -> Result<()> {
    heals((Family::Valkey9, 2), (Family::Valkey9, 2))
}

#[test]
fn values_that_an_older_target_does_not_restore_heal_by_their_elements() -> Result<()> {
    heals((Family::Redis80, 2), (Family::Redis70, 2))
}

#[test]
fn keys_heal_on_a_single_server() -> Result<()> {
    heals((Family::Redis70, 1), (Family::Redis70, 1))
}
