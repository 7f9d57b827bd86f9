//! What slotstream takes up after a crash, when something else happened too: a master lost writes or its memory, slots
//! or masters changed places, what it keeps on the target was removed.
//!
//! Each test ends with a comparison, key by key, and looks at the step that the status page names
//! (`lanes[].resume`, with the reason). Writers send every kind of command, so what is done twice or left out shows.

use anyhow::{Context, Result, bail, ensure};
use lab::changes::{fail_over, move_slot};
use lab::{
    Client, Cluster, ClusterOptions, Command, Commands, CompareOptions, Connection, Endpoint,
    Family, LoadOptions, Server, ServerOptions, Slotstream, WriterOptions, Writers,
    client::slot_of, cluster::cluster_info, compare, load, server::info_field, version_or_skip,
    wait_until,
};
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const LOADED_KEYS: usize = 2_000;
const COMMANDS_PER_SECOND: u64 = 2_000;
const FEW_COMMANDS_PER_SECOND: u64 = 300;
/// Commands that are written between two events.
const COMMANDS_BETWEEN: u64 = 1_500;
/// Few enough that most slots which are written see commands that must not be repeated.
const KEY_GROUPS: usize = 40;
/// With this argument a source that nobody writes to has left nothing in doubt after a second (`limits::QUIET_INTERVALS`).
const RECORDS_OFTEN: &str = "--checkpoint-every=100";
/// What slotstream knows of a finished copy is on the target about a second later.
const RECORD_PAUSE: Duration = Duration::from_secs(2);

const LARGE_BACKLOG: &str = "repl-backlog-size 256mb";
const SMALL_BACKLOG: &str = "repl-backlog-size 16384";
/// Masters that are dead are replaced soon.
const SHORT_TIMEOUT: &str = "cluster-node-timeout 2000";

/// What a test begins with.
struct Setup {
    /// Masters, and replicas of each.
    source: (usize, usize),
    target: (usize, usize),
    commands: Commands,
    backlog: &'static str,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            source: (2, 0),
            target: (2, 0),
            commands: Commands::All,
            backlog: LARGE_BACKLOG,
        }
    }
}

/// Whether slotstream runs while something happens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slotstreams {
    Running,
    Away,
}

/// A replication under way, with writers.
struct Rig {
    setup: Setup,
    seed: u64,
    source: Cluster,
    target: Cluster,
    sync: Option<Slotstream>,
    /// What processes have printed that are gone.
    outputs: Vec<String>,
    writers: Option<Writers>,
}

/// Copies, runs `act`, and compares; what went wrong is told with slotstream's own view of it.
fn after_a_copy(setup: Setup, act: impl FnOnce(&mut Rig) -> Result<()>) -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let cluster = |(masters, replicas): (usize, usize), lines: &[&str]| {
        let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        if replicas > 0 {
            lines.push(SHORT_TIMEOUT.to_owned());
        }
        let server = ServerOptions {
            extra: lines,
            diskless: true,
            ..ServerOptions::default()
        };
        let options = ClusterOptions {
            server,
            slots: None,
        };
        Cluster::start(&version, masters, replicas, options)
    };
    let source = cluster(setup.source, &[setup.backlog])?;
    let target = cluster(setup.target, &[])?;
    let loaded = LoadOptions {
        keys: LOADED_KEYS,
        big_keys: false,
        ..LoadOptions::default()
    };
    load(&mut source.client()?, &loaded)?;
    let mut rig = Rig {
        setup,
        seed: u64::from(std::process::id()),
        source,
        target,
        sync: None,
        outputs: Vec::new(),
        writers: None,
    };
    rig.start()?;
    rig.sync()?.wait_until_settled(PATIENCE)?;
    std::thread::sleep(RECORD_PAUSE);
    let result = act(&mut rig).and_then(|()| rig.settle());
    result.with_context(|| rig.told())
}

impl Rig {
    fn start(&mut self) -> Result<()> {
        self.start_with(&[])
    }

    fn start_with(&mut self, arguments: &[&str]) -> Result<()> {
        let (source, target) = (any_node(&self.source), any_node(&self.target));
        self.sync = Some(Slotstream::start(program(), &source, &target, arguments)?);
        Ok(())
    }

    fn sync(&mut self) -> Result<&mut Slotstream> {
        self.sync.as_mut().context("slotstream does not run")
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.sync.take() {
            process.kill();
            self.outputs.push(process.output());
        }
    }

    /// It ends when it is asked to, and another begins.
    fn replace(&mut self, arguments: &[&str]) -> Result<()> {
        let process = self.sync.take().context("slotstream does not run")?;
        self.outputs.push(process.stop()?.1);
        self.start_with(arguments)
    }

    /// Slotstream as it is to be, from now on.
    fn let_be(&mut self, slotstreams: Slotstreams) -> Result<()> {
        match slotstreams {
            Slotstreams::Away => self.kill(),
            Slotstreams::Running if self.sync.is_none() => self.start()?,
            Slotstreams::Running => {}
        }
        Ok(())
    }

    fn told(&self) -> String {
        let status = self.sync.as_ref().map(Slotstream::status);
        let status = match status {
            Some(Ok(status)) => format!("{status:#}"),
            Some(Err(error)) => format!("{error:#}"),
            None => "not running".to_owned(),
        };
        let last = self.sync.as_ref().map(Slotstream::output);
        let outputs = self.outputs.iter().chain(&last);
        let outputs: Vec<&str> = outputs.map(String::as_str).collect();
        let outputs = outputs.join("\n-- next process\n");
        format!(
            "writers' seed {}\nstatus: {status}\nlog: {outputs}",
            self.seed
        )
    }

    fn write_on(&mut self) -> Result<()> {
        self.write_at(COMMANDS_PER_SECOND)
    }

    fn write_at(&mut self, commands_per_second: u64) -> Result<()> {
        self.seed += 1;
        let options = WriterOptions {
            seed: self.seed,
            commands: self.setup.commands,
            threads: 1,
            commands_per_second,
            key_groups: KEY_GROUPS,
            ..WriterOptions::default()
        };
        self.writers = Some(Writers::start(&any_node(&self.source), &options)?);
        self.write_more()
    }

    /// Waits until some more commands are written.
    fn write_more(&self) -> Result<()> {
        let writers = self.writers.as_ref().context("nobody writes")?;
        let goal = writers.commands_so_far() + COMMANDS_BETWEEN;
        wait_until(PATIENCE, "more writes", || {
            Ok(writers.commands_so_far() >= goal)
        })
    }

    fn stop_writing(&mut self) -> Result<()> {
        if let Some(writers) = self.writers.take() {
            let report = writers.stop()?;
            ensure!(report.errors.is_empty(), "{report}");
        }
        Ok(())
    }

    /// No writers any more, everything applied, both sides equal.
    fn settle(&mut self) -> Result<()> {
        self.stop_writing()?;
        self.let_be(Slotstreams::Running)?;
        self.sync()?.wait_until_caught_up(PATIENCE)?;
        self.sync()?.wait_until_settled(PATIENCE)?;
        let options = CompareOptions::default();
        let diff = compare(&any_node(&self.source), &any_node(&self.target), &options)?;
        ensure!(diff.is_equal(), "{diff}");
        ensure!(diff.keys > KEY_GROUPS, "{diff}");
        Ok(())
    }

    fn lanes(&mut self) -> Result<Vec<serde_json::Value>> {
        let status = self.sync()?.status()?;
        Ok(status["lanes"].as_array().context("no lanes")?.clone())
    }

    /// Some lane, or `Which::Every` one, took one of these steps last, and says why.
    fn has_taken(&mut self, which: Which, steps: &[&str]) -> Result<()> {
        let lanes = self.lanes()?;
        let taken = |lane: &&serde_json::Value| {
            let resume = &lane["resume"];
            let step = resume["step"].as_str().unwrap_or_default();
            let why = resume["why"].as_str().unwrap_or_default();
            steps.contains(&step) && !why.is_empty()
        };
        let count = lanes.iter().filter(taken).count();
        let enough = match which {
            Which::Some => 1,
            Which::Every => lanes.len(),
        };
        ensure!(count >= enough, "{count} lanes took a step of {steps:?}");
        Ok(())
    }

    /// A lane that had handed over what the source lost has mended it; one that did not know what that was has copied.
    fn has_gone_back(&mut self, slotstreams: Slotstreams) -> Result<()> {
        match slotstreams {
            Slotstreams::Running => self.has_taken(Which::Some, &["partial_rewound"])?,
            Slotstreams::Away => self.has_taken(Which::Some, &["partial_promoted", "full_copy"])?,
        }
        let lanes = self.lanes()?;
        let copies = lanes.iter().filter(|lane| lane["full_syncs"] == 2).count();
        ensure!(copies == 0, "{copies} lanes copied a second time");
        let mended = lanes.iter().any(|lane| lane["mends"] != 0);
        ensure!(
            mended == (slotstreams == Slotstreams::Running),
            "mended: {mended}"
        );
        Ok(())
    }

    /// No source master was asked for a snapshot since this process began.
    fn has_copied_nothing(&mut self) -> Result<()> {
        let lanes = self.lanes()?;
        let copied = lanes.iter().filter(|lane| lane["full_syncs"] != 0).count();
        ensure!(copied == 0, "{copied} lanes copied");
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Some,
    Every,
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slotstream"))
}

/// A cluster, to be found through whichever of its nodes lives.
fn any_node(cluster: &Cluster) -> Endpoint {
    Endpoint {
        seeds: cluster.nodes().iter().map(Server::address).collect(),
        ..cluster.endpoint()
    }
}

/// Keys on a master's side that slotstream keeps for itself: `w` watermarks, `r` records.
fn own_keys(connection: &mut Connection, kind: char) -> Result<Vec<String>> {
    let pattern = format!("{{*}}slotstream:{kind}:*");
    let keys = connection.call(&["KEYS", &pattern])?;
    Ok(keys.array().iter().map(lab::Value::text).collect())
}

/// Cuts a replica off from its master, so that it misses what is written from now on.
fn strand(master: &Server, replica: &Server) -> Result<()> {
    let mut node = replica.connect()?;
    // Its link is closed, and it cannot sign in again.
    node.call(&["CONFIG", "SET", "masterauth", "wrong"])?;
    let mut theirs = master.connect()?;
    theirs.call(&["CLIENT", "KILL", "TYPE", "replica"])?;
    wait_until(PATIENCE, "the replica to be cut off", || {
        Ok(info_field(&mut node, "replication", "master_link_status")? == "down")
    })
}

/// Kills a master and waits until its replica has taken its place for all.
fn lose_master(cluster: &mut Cluster, index: usize) -> Result<()> {
    let dead = cluster.nodes()[index].address();
    cluster.nodes_mut()[index].kill();
    await_whole(cluster, Some(&dead))
}

/// Waits until the nodes that live agree that all is well, without `dead`.
fn await_whole(cluster: &Cluster, dead: Option<&String>) -> Result<()> {
    wait_until(PATIENCE, "the cluster to be whole again", || {
        for node in cluster.nodes().iter().filter(|node| node.pid().is_some()) {
            let masters = Client::connect(&node.endpoint())?.masters().to_vec();
            let state = cluster_info(&mut node.connect()?, "cluster_state")?;
            if dead.is_some_and(|dead| masters.contains(dead)) || state != "ok" {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// A master dies and comes back with the snapshot that it made before.
fn back_from_snapshot(cluster: &mut Cluster, index: usize) -> Result<()> {
    cluster.nodes_mut()[index].restart()?;
    await_whole(cluster, None)
}

#[test]
fn after_a_kill_every_lane_goes_on_where_the_target_is() -> Result<()> {
    after_a_copy(Setup::default(), |rig| {
        rig.write_on()?;
        rig.kill();
        rig.write_more()?;
        rig.settle()?;
        rig.has_taken(Which::Every, &["partial_same"])?;
        rig.has_copied_nothing()
    })
}

#[test]
fn a_source_that_failed_over_meanwhile_is_followed_at_the_promoted_node() -> Result<()> {
    let setup = Setup {
        source: (2, 1),
        ..Setup::default()
    };
    after_a_copy(setup, |rig| {
        rig.write_on()?;
        rig.kill();
        rig.stop_writing()?;
        fail_over(&rig.source.nodes()[2])?;
        await_whole(&rig.source, None)?;
        rig.write_on()?;
        rig.settle()?;
        // How much was sent beyond the last record is known only roughly, so that the promoted node may seem to have lost some.
        rig.has_taken(Which::Some, &["partial_promoted", "full_copy"])
    })
}

/// A replica of the first of two masters takes over, and has everything.
fn fail_over_the_first(rig: &mut Rig) -> Result<()> {
    rig.stop_writing()?;
    fail_over(&rig.source.nodes()[2])?;
    await_whole(&rig.source, None)?;
    rig.write_on()?;
    rig.settle()?;
    rig.has_taken(Which::Some, &["partial_promoted"])?;
    rig.has_copied_nothing()
}

#[test]
fn where_little_is_written_a_failover_after_a_kill_needs_no_copy() -> Result<()> {
    let setup = Setup {
        source: (2, 1),
        ..Setup::default()
    };
    after_a_copy(setup, |rig| {
        rig.write_at(FEW_COMMANDS_PER_SECOND)?;
        rig.kill();
        // More than the records leave in doubt.
        rig.write_more()?;
        fail_over_the_first(rig)
    })
}

#[test]
fn where_nothing_is_written_a_failover_after_a_kill_needs_no_copy() -> Result<()> {
    let setup = Setup {
        source: (2, 1),
        ..Setup::default()
    };
    after_a_copy(setup, |rig| {
        rig.write_on()?;
        rig.stop_writing()?;
        rig.sync()?.wait_until_caught_up(PATIENCE)?;
        rig.replace(&[RECORDS_OFTEN])?;
        rig.sync()?.wait_until_settled(PATIENCE)?;
        std::thread::sleep(2 * RECORD_PAUSE);
        rig.kill();
        fail_over_the_first(rig)
    })
}

/// What the target was sent is more than the promoted node ever had.
fn source_lost_writes_in_a_failover(slotstreams: Slotstreams) -> Result<()> {
    let setup = Setup {
        source: (3, 1),
        ..Setup::default()
    };
    after_a_copy(setup, |rig| {
        rig.write_on()?;
        strand(&rig.source.nodes()[0], &rig.source.nodes()[3])?;
        rig.write_more()?;
        rig.stop_writing()?;
        rig.sync()?.wait_until_applied(PATIENCE)?;
        rig.let_be(slotstreams)?;
        lose_master(&mut rig.source, 0)?;
        rig.write_on()?;
        rig.settle()?;
        rig.has_gone_back(slotstreams)
    })
}

#[test]
fn writes_that_the_source_lost_in_a_failover_are_taken_back() -> Result<()> {
    source_lost_writes_in_a_failover(Slotstreams::Running)
}

#[test]
fn writes_that_the_source_lost_while_slotstream_was_away_are_taken_back() -> Result<()> {
    source_lost_writes_in_a_failover(Slotstreams::Away)
}

fn source_back_from_snapshot(slotstreams: Slotstreams) -> Result<()> {
    after_a_copy(Setup::default(), |rig| {
        rig.write_on()?;
        rig.source.masters()[0].connect()?.call(&["SAVE"])?;
        rig.write_more()?;
        rig.stop_writing()?;
        rig.sync()?.wait_until_applied(PATIENCE)?;
        rig.let_be(slotstreams)?;
        back_from_snapshot(&mut rig.source, 0)?;
        rig.write_on()?;
        rig.settle()?;
        rig.has_gone_back(slotstreams)
    })
}

#[test]
fn a_source_master_that_is_back_from_an_old_snapshot_is_followed() -> Result<()> {
    source_back_from_snapshot(Slotstreams::Running)
}

#[test]
fn a_source_master_that_came_back_from_an_old_snapshot_unseen_is_followed() -> Result<()> {
    source_back_from_snapshot(Slotstreams::Away)
}

#[test]
fn a_source_master_that_comes_back_without_its_keys_is_not_mirrored_unless_that_is_accepted()
-> Result<()> {
    after_a_copy(Setup::default(), |rig| {
        let before = keys_of(&rig.target)?;
        rig.source.nodes_mut()[0].kill();
        rig.source.nodes_mut()[0].restart()?;
        await_whole(&rig.source, None)?;
        let (exit, output) = rig.sync()?.wait_for_exit(PATIENCE)?;
        ensure!(exit.code() == Some(5), "{exit}: {output}");
        ensure!(output.contains("--accept-empty-source"), "{output}");
        // Nor by the next process.
        rig.start()?;
        let (exit, output) = rig.sync()?.wait_for_exit(PATIENCE)?;
        ensure!(exit.code() == Some(5), "{exit}: {output}");
        let after = keys_of(&rig.target)?;
        // A few have come to their end.
        ensure!(
            after > before - before / 10,
            "{before} keys have become {after}"
        );
        rig.start_with(&["--accept-empty-source"])?;
        rig.sync()?.wait_until_settled(PATIENCE)?;
        let mut client = rig.source.client()?;
        for number in 0..KEY_GROUPS {
            client.call(&["INCR", &format!("after:{number}")])?;
        }
        // One of the masters has lost its libraries as well.
        client.call_each_master(&["FUNCTION", "FLUSH"]).map(|_| ())
    })
}

/// How many keys the masters hold that are not slotstream's own.
fn keys_of(cluster: &Cluster) -> Result<usize> {
    let mut count = 0;
    for master in cluster.masters() {
        let keys = master.connect()?.call(&["KEYS", "*"])?;
        let names = keys.array().iter().map(lab::Value::text);
        count += names.filter(|name| !name.contains("}slotstream:")).count();
    }
    Ok(count)
}

fn target_back_from_snapshot(slotstreams: Slotstreams) -> Result<()> {
    after_a_copy(Setup::default(), |rig| {
        rig.write_on()?;
        rig.target.masters()[0].connect()?.call(&["SAVE"])?;
        rig.write_more()?;
        rig.let_be(slotstreams)?;
        back_from_snapshot(&mut rig.target, 0)?;
        rig.write_more()?;
        rig.settle()?;
        // A start reads what the master has, and goes on from there.
        let steps: &[&str] = match slotstreams {
            Slotstreams::Running => &["spool", "partial_same", "full_copy"],
            Slotstreams::Away => &["partial_same"],
        };
        rig.has_taken(Which::Some, steps)
    })
}

#[test]
fn a_target_master_that_is_back_from_an_old_snapshot_gets_what_it_lost() -> Result<()> {
    target_back_from_snapshot(Slotstreams::Running)
}

#[test]
fn a_target_master_that_came_back_from_an_old_snapshot_unseen_gets_what_it_lost() -> Result<()> {
    target_back_from_snapshot(Slotstreams::Away)
}

#[test]
fn a_replica_that_lagged_and_was_promoted_gets_what_it_missed() -> Result<()> {
    let setup = Setup {
        target: (3, 1),
        ..Setup::default()
    };
    after_a_copy(setup, |rig| {
        rig.write_on()?;
        strand(&rig.target.nodes()[0], &rig.target.nodes()[3])?;
        rig.write_more()?;
        lose_master(&mut rig.target, 0)?;
        rig.write_more()?;
        rig.settle()?;
        rig.has_taken(Which::Some, &["spool", "partial_same", "full_copy"])
    })
}

#[test]
fn a_process_that_takes_over_during_a_failover_of_the_target_waits_for_its_end() -> Result<()> {
    let setup = Setup {
        target: (3, 1),
        ..Setup::default()
    };
    after_a_copy(setup, |rig| {
        rig.write_on()?;
        strand(&rig.target.nodes()[0], &rig.target.nodes()[3])?;
        rig.write_more()?;
        rig.kill();
        rig.target.nodes_mut()[0].kill();
        let dead = rig.target.nodes()[0].address();
        rig.start()?;
        await_whole(&rig.target, Some(&dead))?;
        rig.write_more()?;
        // It may have ended because a master was missing: whoever runs it starts it again.
        if rig.sync()?.ended()?.is_some() {
            rig.kill();
        }
        rig.settle()?;
        rig.has_taken(Which::Every, &["spool", "partial_same"])?;
        rig.has_copied_nothing()
    })
}

#[test]
fn slots_whose_watermarks_are_gone_are_exact_all_the_same() -> Result<()> {
    after_a_copy(Setup::default(), |rig| {
        rig.write_on()?;
        for _ in 0..3 {
            rig.write_more()?;
            rig.kill();
            let mut removed = 0;
            for master in rig.target.masters() {
                let mut connection = master.connect()?;
                for key in own_keys(&mut connection, 'w')? {
                    connection.call(&["DEL", &key])?;
                    removed += 1;
                }
            }
            ensure!(removed > 0, "no watermark was there");
            rig.start()?;
            rig.sync()?.wait_until_caught_up(PATIENCE)?;
        }
        Ok(())
    })
}

#[test]
fn a_target_master_that_was_flushed_meanwhile_is_filled_again() -> Result<()> {
    after_a_copy(Setup::default(), |rig| {
        rig.write_on()?;
        rig.kill();
        rig.target.masters()[0].connect()?.call(&["FLUSHALL"])?;
        rig.write_more()?;
        rig.settle()?;
        rig.has_taken(Which::Some, &["first_copy", "full_copy"])
    })
}

#[test]
fn a_source_master_that_is_flushed_meanwhile_leaves_what_slotstream_knows() -> Result<()> {
    after_a_copy(Setup::default(), |rig| {
        rig.write_on()?;
        rig.kill();
        rig.source.masters()[0].connect()?.call(&["FLUSHALL"])?;
        rig.write_more()?;
        rig.start()?;
        rig.sync()?.wait_until_caught_up(PATIENCE)?;
        rig.has_taken(Which::Every, &["partial_same"])?;
        rig.write_more()?;
        // Also while it runs: what it knows must be there for the next one.
        rig.source.masters()[1].connect()?.call(&["FLUSHALL"])?;
        rig.write_more()?;
        rig.kill();
        rig.write_more()?;
        rig.settle()?;
        rig.has_taken(Which::Every, &["partial_same"])?;
        rig.has_copied_nothing()
    })
}

#[test]
fn a_lease_that_was_renewed_in_time_survives_a_kill() -> Result<()> {
    leases_survive(Rig::kill)
}

#[test]
fn a_lease_that_was_renewed_in_time_survives_a_stop() -> Result<()> {
    leases_survive(|rig| {
        if let Some(process) = rig.sync.take() {
            let output = process.stop().map(|(_, output)| output);
            rig.outputs.extend(output);
        }
    })
}

fn leases_survive(end: impl Fn(&mut Rig)) -> Result<()> {
    const LEASE_MS: &str = "2000";
    const RENEWALS: usize = 24;
    after_a_copy(Setup::default(), |rig| {
        let keys: Vec<String> = (0..50).map(|number| format!("leased:{number}")).collect();
        let mut client = rig.source.client()?;
        for round in 1..=RENEWALS {
            let commands = keys.iter().flat_map(|key| {
                let renewal = match round {
                    RENEWALS => Command::new(&["PERSIST", key]),
                    _ => Command::new(&["PEXPIRE", key, LEASE_MS]),
                };
                [Command::new(&["RPUSH", key, "element"]), renewal]
            });
            for reply in client.pipeline(&commands.collect::<Vec<_>>())? {
                reply.ok()?;
            }
            std::thread::sleep(Duration::from_millis(300));
            // Gone for more than twice as long as a lease lasts, and back while it still is renewed.
            match round {
                3 => end(rig),
                20 => rig.start()?,
                _ => {}
            }
        }
        let length = client.call(&["LLEN", &keys[0]])?.integer();
        ensure!(
            length == Some(RENEWALS as i64),
            "the lease ended at the source: {length:?}"
        );
        rig.settle()?;
        rig.has_copied_nothing()
    })
}

#[test]
fn a_copy_over_a_former_one_that_is_killed_leaves_no_key_that_the_source_lost() -> Result<()> {
    let setup = Setup {
        backlog: SMALL_BACKLOG,
        ..Setup::default()
    };
    after_a_copy(setup, |rig| {
        rig.write_on()?;
        rig.kill();
        rig.stop_writing()?;
        let mut client = rig.source.client()?;
        let keys: Vec<Vec<u8>> = loaded_names(&mut client)?;
        let commands: Vec<Command> = keys
            .iter()
            .map(|key| Command::new(&[b"DEL", &key[..]]))
            .collect();
        for reply in client.pipeline(&commands)? {
            reply.ok()?;
        }
        rig.write_on()?;
        for pause_ms in [50, 100, 150, 200] {
            rig.start()?;
            std::thread::sleep(Duration::from_millis(pause_ms));
            rig.kill();
        }
        rig.settle()?;
        rig.has_taken(Which::Every, &["full_copy", "first_copy"])
    })
}

/// Half of all keys that the source has.
fn loaded_names(client: &mut Client) -> Result<Vec<Vec<u8>>> {
    let lists = client.call_each_master(&["KEYS", "*"])?;
    let keys = lists.iter().flat_map(|list| list.array());
    let keys = keys.filter_map(lab::Value::bytes).step_by(2);
    Ok(keys.map(<[u8]>::to_vec).collect())
}

#[test]
fn commands_that_a_full_target_refused_are_there_after_a_kill() -> Result<()> {
    let setup = Setup {
        // All of which a server refuses that is out of memory.
        commands: Commands::Growing,
        ..Setup::default()
    };
    let limit = |rig: &Rig, limit: &str| -> Result<()> {
        for master in rig.target.masters() {
            let mut connection = master.connect()?;
            connection.call(&["CONFIG", "SET", "maxmemory", limit])?;
        }
        Ok(())
    };
    after_a_copy(setup, |rig| {
        rig.write_on()?;
        for _ in 0..3 {
            limit(rig, "1mb")?;
            rig.write_more()?;
            rig.kill();
            limit(rig, "0")?;
            rig.start()?;
            rig.write_more()?;
        }
        rig.settle()?;
        rig.has_taken(Which::Every, &["partial_same"])?;
        rig.has_copied_nothing()
    })
}

#[test]
fn slots_that_moved_on_the_target_meanwhile_are_exact_all_the_same() -> Result<()> {
    after_a_copy(Setup::default(), |rig| {
        rig.write_on()?;
        rig.kill();
        let [giver, taker] = rig.target.masters() else {
            bail!("the target has two masters");
        };
        // Those of what slotstream knows of this master, and of some data.
        let mut connection = giver.connect()?;
        let records = own_keys(&mut connection, 'r')?;
        ensure!(!records.is_empty(), "no record was there");
        let groups = (0..KEY_GROUPS).map(|group| format!("{{w{group}}}"));
        let keys = records.into_iter().chain(groups);
        let client = rig.target.client()?;
        let slots = keys.map(|key| slot_of(key.as_bytes()));
        let slots = slots.filter(|slot| client.owner_of_slot(*slot) == giver.address());
        for slot in slots.take(10) {
            move_slot(&rig.target, slot, giver, taker)?;
        }
        rig.write_more()?;
        Ok(())
    })
}
