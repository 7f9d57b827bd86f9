//! Two processes with `--mark`, one for each direction between two clusters whose clients write different keys: both end with the
//! same data, and no command comes back to where it came from.

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Client, Cluster, ClusterOptions, Commands, CompareOptions, Family, LoadOptions, Server,
    ServerOptions, Slotstream, Tap, WriterOptions, Writers, compare, load, version_or_skip,
    wait_until,
};
use slotstream::command::is_marked;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const LOADED_KEYS: usize = 1_000;
/// Commands of each side.
const COMMANDS: u64 = 6_000;
/// The last records, and the one that says that the streams are quiet (`limits::QUIET_INTERVALS`), are written in this time.
const RECORDS_OFTEN: &str = "--checkpoint-every=100";
const QUIET: Duration = Duration::from_secs(3);
/// What masters say while nobody writes would hide what should not be written.
const NO_PINGS: &str = "repl-ping-replica-period 3600";
const BACKLOG: &str = "repl-backlog-size 64mb";

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slotstream"))
}

/// Two clusters and what runs between them.
struct Rig {
    clusters: [Cluster; 2],
    /// Whose commands the writers use: both clusters know these.
    family: Family,
    /// The first one writes to the second cluster.
    syncs: [Option<Slotstream>; 2],
    seed: u64,
}

const LETTERS: [char; 2] = ['a', 'b'];

impl Rig {
    fn start(families: [Family; 2], common: Family, replicas: usize) -> Result<Option<Rig>> {
        let [Some(first), Some(second)] = families.map(version_or_skip) else {
            return Ok(None);
        };
        let options = || ClusterOptions {
            server: ServerOptions {
                diskless: true,
                extra: [NO_PINGS, BACKLOG, "cluster-node-timeout 2000"]
                    .map(str::to_owned)
                    .to_vec(),
                ..ServerOptions::default()
            },
            slots: None,
        };
        let clusters = [
            Cluster::start(&first, 3, replicas, options())?,
            Cluster::start(&second, 2, 0, options())?,
        ];
        Ok(Some(Rig {
            clusters,
            family: common,
            syncs: [None, None],
            seed: 1,
        }))
    }

    fn run(&mut self, way: usize) -> Result<()> {
        let [from, to] = [way, 1 - way].map(|index| self.clusters[index].all_nodes());
        let link = ["forth", "back"][way];
        let arguments = ["--mark", "--link", link, RECORDS_OFTEN];
        self.syncs[way] = Some(Slotstream::start(program(), &from, &to, &arguments)?);
        Ok(())
    }

    /// Data of every kind, and the functions that writers call.
    fn load(&self, side: usize) -> Result<()> {
        let loaded = LoadOptions {
            keys: LOADED_KEYS,
            big_keys: false,
            ..LoadOptions::default()
        };
        load(
            &mut Client::connect(&self.clusters[side].all_nodes())?,
            &loaded,
        )?;
        Ok(())
    }

    /// Before anything runs nothing is removed: 6.0 has no words for pending entries of a stream that were deleted since.
    fn writers(&mut self, side: usize) -> Result<Writers> {
        self.seed += 1;
        let options = WriterOptions {
            seed: self.seed,
            commands: match self.syncs.iter().all(Option::is_some) {
                true => Commands::All,
                false => Commands::Growing,
            },
            letter: LETTERS[side],
            family: Some(self.family),
            key_groups: 60,
            commands_per_second: 1_500,
            forgiving: true,
            ..WriterOptions::default()
        };
        Writers::start(&self.clusters[side].all_nodes(), &options)
    }

    /// Both sides write at the same time; `meanwhile` happens in the middle.
    fn write(&mut self, meanwhile: impl FnOnce(&mut Rig) -> Result<()>) -> Result<()> {
        let writers = [self.writers(0)?, self.writers(1)?];
        let written = |count: u64| {
            wait_until(PATIENCE, "commands to be written", || {
                Ok(writers
                    .iter()
                    .all(|writers| writers.commands_so_far() >= count))
            })
        };
        written(COMMANDS / 2)?;
        meanwhile(self)?;
        let so_far = writers
            .iter()
            .map(Writers::commands_so_far)
            .max()
            .unwrap_or_default();
        written(so_far + COMMANDS / 2)?;
        for writers in writers {
            let report = writers.stop()?;
            ensure!(report.errors.is_empty(), "{report}");
        }
        Ok(())
    }

    /// All is applied on both sides, and no deadline is held back.
    fn settle(&mut self) -> Result<()> {
        for sync in self.syncs.iter_mut().flatten() {
            sync.wait_until_caught_up(PATIENCE)?;
        }
        for _ in 0..2 {
            for sync in self.syncs.iter_mut().flatten() {
                sync.wait_until_settled(PATIENCE)?;
            }
        }
        Ok(())
    }

    fn compare(&self) -> Result<()> {
        let options = CompareOptions {
            relative_ttl_tolerance: Duration::from_secs(10),
            ..CompareOptions::default()
        };
        let [first, second] = [&self.clusters[0], &self.clusters[1]].map(Cluster::all_nodes);
        let diff = compare(&first, &second, &options)?;
        ensure!(diff.is_equal(), "{diff}");
        Ok(())
    }

    fn taps(&self) -> Result<[Vec<Tap>; 2]> {
        let of = |cluster: &Cluster| -> Result<Vec<Tap>> {
            let masters = cluster.masters().iter();
            masters
                .map(|server| Tap::attach(server.connect()?))
                .collect()
        };
        Ok([of(&self.clusters[0])?, of(&self.clusters[1])?])
    }

    fn offsets(&self) -> Result<Vec<String>> {
        let servers = self.clusters.iter().flat_map(Cluster::masters);
        servers
            .map(|server| server.info("replication", "master_repl_offset"))
            .collect()
    }

    /// Nobody writes: neither do the processes, once they have told what they have to tell.
    fn stand_still(&self) -> Result<()> {
        let mut before = self.offsets()?;
        wait_until(PATIENCE, "both streams to stand still", || {
            std::thread::sleep(QUIET);
            let now = self.offsets()?;
            Ok(std::mem::replace(&mut before, now.clone()) == now)
        })
    }

    fn told(&self) -> String {
        let syncs = self.syncs.iter().flatten();
        let told = syncs.map(|sync| {
            let status = sync.status().map(|status| status.to_string());
            format!("{}\n{}\n", status.unwrap_or_default(), sync.output())
        });
        told.collect()
    }
}

/// What a stream of one side tells.
#[derive(Debug, Default)]
struct Seen {
    own: u64,
    /// Of keys of the other side, with a mark, or in a transaction with one.
    replicated: u64,
    /// Removals of those without a mark: the server's own.
    ended: u64,
    /// Of own keys, with a mark.
    echoes: Vec<String>,
    /// Of keys of the other side, without a mark and no removal.
    unmarked: Vec<String>,
}

/// The side that a command's key belongs to.
fn side_of(words: &[Vec<u8>]) -> Option<usize> {
    let tags = words
        .iter()
        .skip(1)
        .take(3)
        .filter(|word| word.len() > 3 && word[0] == b'{');
    let mut sides = tags
        .filter(|tag| !tag.windows(11).any(|part| part == b"slotstream:"))
        .filter_map(|tag| {
            let of = |letter: &char| u32::from(tag[1]) == *letter as u32 && tag[2].is_ascii_digit();
            LETTERS.iter().position(of)
        });
    sides.next()
}

fn look_through(side: usize, commands: &[Vec<Vec<u8>>], seen: &mut Seen) {
    let mut at = 0;
    while at < commands.len() {
        let is = |place: usize, verb: &[u8]| commands[place][0].eq_ignore_ascii_case(verb);
        let mut unit = at..at + 1;
        if is(at, b"MULTI") {
            let end = (at..commands.len()).find(|&place| is(place, b"EXEC"));
            unit = at..end.unwrap_or(commands.len() - 1) + 1;
        }
        at = unit.end;
        let unit = &commands[unit];
        let any_marked = unit.iter().any(|words| is_marked(&words[0]));
        for words in unit {
            let text = || {
                words
                    .iter()
                    .map(|word| word.escape_ascii().to_string())
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            let removal = [&b"DEL"[..], b"UNLINK", b"HDEL"].contains(&&words[0][..]);
            match side_of(words) {
                None => {}
                Some(of) if of == side && is_marked(&words[0]) => seen.echoes.push(text()),
                Some(of) if of == side => seen.own += 1,
                Some(_) if any_marked => seen.replicated += 1,
                Some(_) if removal => seen.ended += 1,
                Some(_) => seen.unmarked.push(text()),
            }
        }
    }
}

fn check_streams(taps: [Vec<Tap>; 2]) -> Result<()> {
    for (side, taps) in taps.into_iter().enumerate() {
        let mut seen = Seen::default();
        for tap in taps {
            look_through(side, &tap.stop()?, &mut seen);
        }
        let count = (seen.echoes.len(), seen.unmarked.len());
        seen.echoes.truncate(5);
        seen.unmarked.truncate(5);
        println!("side {side}: {seen:?}");
        ensure!(count == (0, 0), "side {side}: {count:?} {seen:#?}");
        ensure!(
            seen.own > COMMANDS / 4 && seen.replicated > COMMANDS / 4,
            "{seen:?}"
        );
    }
    Ok(())
}

/// Data on both sides, two processes, writers on both sides.
/// `loaded`: which side has data of every kind, that the other one knows, too.
fn both_ways(families: [Family; 2], common: Family, loaded: usize) -> Result<()> {
    let Some(mut rig) = Rig::start(families, common, 0)? else {
        return Ok(());
    };
    let result = follow_both_ways(&mut rig, loaded);
    result.with_context(|| rig.told())
}

fn follow_both_ways(rig: &mut Rig, side: usize) -> Result<()> {
    rig.load(side)?;
    rig.write(|_| Ok(()))?;
    for way in [0, 1] {
        rig.run(way)?;
    }
    rig.settle()?;
    rig.compare().context("after the first copies")?;
    let taps = rig.taps()?;
    rig.write(|_| Ok(()))?;
    rig.settle()?;
    rig.compare()?;
    rig.stand_still()?;
    check_streams(taps)
}

/// One process is killed and started again while both sides write, then a master of its source changes places with its replica.
#[test]
fn a_crash_and_a_failover_bring_no_echo_and_lose_nothing() -> Result<()> {
    let families = [Family::Redis70, Family::Redis70];
    let Some(mut rig) = Rig::start(families, Family::Redis70, 1)? else {
        return Ok(());
    };
    let result = crash_and_fail_over(&mut rig);
    result.with_context(|| rig.told())
}

fn crash_and_fail_over(rig: &mut Rig) -> Result<()> {
    rig.load(0)?;
    for way in [0, 1] {
        rig.run(way)?;
        rig.settle()?;
    }
    // That master is going to be a replica.
    let [mut taps, others] = rig.taps()?;
    drop(taps.remove(0));
    for way in [0, 1] {
        rig.write(|rig| {
            if let Some(mut sync) = rig.syncs[way].take() {
                sync.kill();
            }
            rig.run(way)
        })?;
    }
    rig.write(|rig| {
        let nodes = rig.clusters[0].nodes();
        let id = nodes[0].connect()?.call(&["CLUSTER", "MYID"])?.text();
        let is_its = |server: &&Server| -> Result<bool> {
            let list = server.connect()?.call(&["CLUSTER", "NODES"])?.text();
            let mut lines = list.lines();
            Ok(lines.any(|line| line.contains("myself") && line.contains(&id)))
        };
        for replica in &nodes[3..] {
            if is_its(&replica)? {
                replica.connect()?.call(&["CLUSTER", "FAILOVER"])?;
                return wait_until(PATIENCE, "the failover", || {
                    Ok(replica.info("replication", "role")? == "master")
                });
            }
        }
        bail!("the first master has no replica")
    })?;
    rig.settle()?;
    rig.stand_still()?;
    rig.compare()?;
    check_streams([taps, others])
}

/// What the target has it keeps in a first copy, whether a value travels whole (here a string) or by its elements (a set, between
/// these versions), and nothing that was built meanwhile is left.
#[test]
fn a_first_copy_overwrites_nothing() -> Result<()> {
    let [Some(newer), Some(older)] = [Family::Valkey9, Family::Redis60].map(version_or_skip) else {
        return Ok(());
    };
    let source = Server::start(&newer, ServerOptions::default())?;
    let target = Server::start(&older, ServerOptions::default())?;
    let write = |server: &Server, lines: &[&str]| -> Result<()> {
        let mut connection = server.connect()?;
        for line in lines {
            connection.call(&line.split(' ').collect::<Vec<_>>())?;
        }
        Ok(())
    };
    write(
        &source,
        &[
            "SET k a",
            "SADD s a b",
            "SET new a",
            "SADD news a b",
            "PEXPIRE news 500000",
        ],
    )?;
    write(&target, &["SET k b", "SADD s c", "SET own b"])?;
    let arguments = ["--mark", "--once"];
    let mut sync = Slotstream::start(
        program(),
        &source.endpoint(),
        &target.endpoint(),
        &arguments,
    )?;
    let (status, output) = sync.wait_for_exit(PATIENCE)?;
    ensure!(status.success(), "{output}");
    let mut connection = target.connect()?;
    for (question, answer) in [
        ("GET k", "b"),
        ("GET new", "a"),
        ("GET own", "b"),
        ("SCARD s", "1"),
        ("SCARD news", "2"),
        ("EXISTS {06S}slotstream:m:default:1000001", "0"),
    ] {
        let words: Vec<&str> = question.split(' ').collect();
        let got = connection.call(&words)?.text();
        ensure!(got == answer, "{question}: {got}\n{output}");
    }
    let ttl = connection.call(&["PTTL", "news"])?.integer();
    ensure!(ttl > Some(100_000) && ttl <= Some(500_000), "{ttl:?}");
    let left = connection.call(&["KEYS", "*slotstream:m:*"])?;
    ensure!(left.array().is_empty(), "{left:?}");
    Ok(())
}

/// A process was away for longer than its source remembers: it copies everything over what is there, which must not be written
/// meanwhile, and removes nothing.
#[test]
fn a_later_full_copy_merges_too() -> Result<()> {
    let families = [Family::Redis70, Family::Redis70];
    let Some(mut rig) = Rig::start(families, Family::Redis70, 0)? else {
        return Ok(());
    };
    let result = copy_again(&mut rig);
    result.with_context(|| rig.told())
}

fn copy_again(rig: &mut Rig) -> Result<()> {
    rig.load(0)?;
    for way in [0, 1] {
        rig.run(way)?;
        rig.settle()?;
    }
    if let Some(mut sync) = rig.syncs[1].take() {
        sync.kill();
    }
    for server in rig.clusters[1].masters() {
        let mut connection = server.connect()?;
        connection.call(&["CONFIG", "SET", "repl-backlog-size", "16384"])?;
    }
    rig.write(|_| Ok(()))?;
    rig.settle()?;
    rig.run(1)?;
    rig.settle()?;
    let status = rig.syncs[1].as_ref().context("it runs")?.status()?;
    let lanes = status["lanes"].as_array().context("lanes")?;
    ensure!(
        lanes
            .iter()
            .all(|lane| lane["resume"]["step"] == "full_copy"),
        "{status}"
    );
    rig.stand_still()?;
    rig.compare()
}

#[test]
fn two_clusters_of_one_version_feed_each_other_without_echo() -> Result<()> {
    both_ways([Family::Redis70, Family::Redis70], Family::Redis70, 0)
}

#[test]
fn the_oldest_and_the_newest_feed_each_other_without_echo() -> Result<()> {
    both_ways([Family::Redis60, Family::Valkey9], Family::Redis60, 0)
}

#[test]
fn redis_and_valkey_feed_each_other_without_echo() -> Result<()> {
    both_ways([Family::Redis80, Family::Valkey81], Family::Redis70, 1)
}
