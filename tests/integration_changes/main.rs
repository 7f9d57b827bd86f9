//! What happens to real deployments while they are replicated: masters change places or die, slots move,
//! connections break, servers refuse writes for a while.
//!
//! Writers go on throughout, and source and target are compared key by key at the end. A failing test prints
//! the program's status and log, and the seed of its writers. Every test runs with Redis 7.0, and each other
//! version that can be had runs some of them.

mod resharding;
mod rig;

use anyhow::{Context, Result, ensure};
use lab::changes::fail_over;
use lab::{
    Client, Cluster, ClusterOptions, Commands, Connection, Endpoint, Family, Proxy, Server,
    ServerOptions, Slotstream, WriterOptions, Writers, client::slot_of, cluster::cluster_info,
    family, load, version_or_skip, wait_until,
};
use resharding::*;
use rig::{
    COMMANDS_BETWEEN, COMMANDS_PER_SECOND, PATIENCE, Rig, Setup, loaded, must_be_equal, program,
    while_replicating,
};
use std::time::Duration;

/// The master whose replica `replica` is.
fn master_of<'a>(cluster: &'a Cluster, replica: &Server) -> Result<&'a Server> {
    let port = replica.info("replication", "master_port")?;
    let master = cluster.nodes().iter();
    let mut master = master.filter(|node| node.port().to_string() == port);
    master.next().context("a replica without a master")
}

/// A replica takes over, and its master knows of that.
fn replace_master(cluster: &Cluster, replica: &Server) -> Result<()> {
    let master = master_of(cluster, replica)?;
    fail_over(replica)?;
    wait_until(PATIENCE, "the former master to step back", || {
        Ok(master.info("replication", "role")? == "slave")
    })
}

/// A replica of the source takes over, and hands back.
fn source_failover(family: Family) -> Result<()> {
    let setup = Setup {
        source: (2, 1),
        ..Setup::default()
    };
    while_replicating(family, setup, |rig| {
        let (former, heir) = (&rig.source.nodes()[0], &rig.source.nodes()[2]);
        for promoted in [heir, former] {
            let resumed = rig.sum("partial_syncs")?;
            replace_master(&rig.source, promoted)?;
            rig.wait_for_sum("partial_syncs", resumed)?;
            rig.write_more()?;
        }
        rig.copied_once()
    })
}

/// A source master dies, and its replica, which had everything, is promoted.
fn source_killed(family: Family) -> Result<()> {
    let setup = Setup {
        source: (3, 1),
        source_lines: &["cluster-node-timeout 2000"],
        ..Setup::default()
    };
    while_replicating(family, setup, |rig| {
        rig.stop_writing()?;
        let (master, replica) = (&rig.source.nodes()[0], &rig.source.nodes()[3]);
        wait_until(PATIENCE, "the replica to have everything", || {
            let written = master.info("replication", "master_repl_offset")?;
            Ok(replica.info("replication", "master_repl_offset")? == written)
        })?;
        let dead = master.address();
        rig.source.nodes_mut()[0].kill();
        let living = &rig.source.nodes()[1..];
        wait_until(PATIENCE, "every node to know the promoted one", || {
            for node in living {
                let masters = Client::connect(&node.endpoint())?.masters().to_vec();
                let state = cluster_info(&mut node.connect()?, "cluster_state")?;
                if masters.contains(&dead) || state != "ok" {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        rig.go_on_writing()?;
        rig.wait_for_sum("partial_syncs", 0)?;
        rig.write_more()?;
        rig.copied_once()
    })
}

/// A replica of the target takes over, and hands back.
fn target_failover(family: Family) -> Result<()> {
    let setup = Setup {
        target: (2, 1),
        ..Setup::default()
    };
    while_replicating(family, setup, |rig| {
        let (former, heir) = (&rig.target.nodes()[0], &rig.target.nodes()[2]);
        for promoted in [heir, former] {
            let commands = rig.sum("commands")?;
            replace_master(&rig.target, promoted)?;
            rig.write_more()?;
            rig.wait_for_sum("commands", commands + COMMANDS_BETWEEN / 2)?;
        }
        rig.copied_once()
    })
}

/// The source closes the connection; what it wrote since is still in its backlog.
fn source_connection_cut(family: Family) -> Result<()> {
    while_replicating(family, Setup::default(), |rig| {
        for _ in 0..3 {
            for master in rig.source.masters() {
                let resumed = rig.sum("partial_syncs")?;
                let closed = master
                    .connect()?
                    .call(&["CLIENT", "KILL", "TYPE", "replica"])?;
                ensure!(closed.integer() == Some(1), "{closed:?} connections closed");
                rig.wait_for_sum("partial_syncs", resumed)?;
            }
            rig.write_more()?;
        }
        rig.copied_once()
    })
}

/// More is written between the cut and the return than the source keeps: everything is copied again.
fn source_backlog_overrun(family: Family) -> Result<()> {
    let setup = Setup {
        // What is removed while nobody listens is another matter.
        commands: Commands::Growing,
        source_lines: &["repl-backlog-size 16384"],
        ..Setup::default()
    };
    while_replicating(family, setup, |rig| {
        let copies = rig.sum("full_syncs")?;
        let master = &rig.source.masters()[0];
        let mut connection = master.connect()?;
        // All in one batch, so that the connection cannot return before the end of it.
        let mut batch = vec![lab::Command::new(&["CLIENT", "KILL", "TYPE", "replica"])];
        let (tag, value) = (tag_of(rig, master)?, vec![b'v'; 1_000]);
        for number in 0..4_000 {
            let key = format!("{{{tag}}}:overrun{number}");
            batch.push(lab::Command::new(&[b"SET", key.as_bytes(), &value]));
        }
        for reply in connection.pipeline(&batch)? {
            reply.ok()?;
        }
        rig.wait_for_sum("full_syncs", copies)?;
        rig.write_more()?;
        ensure!(rig.sum("full_syncs")? == copies + 1, "one copy again");
        Ok(())
    })
}

/// A hash tag whose keys live on this node of the source.
fn tag_of(rig: &Rig, node: &Server) -> Result<String> {
    let client = rig.source.client()?;
    let mut tags = (0..).map(|number| format!("t{number}"));
    let tag = tags.find(|tag| client.owner_of_slot(slot_of(tag.as_bytes())) == node.address());
    tag.context("a node without slots")
}

/// The target closes all connections, again and again.
fn target_connections_closed(family: Family) -> Result<()> {
    let setup = Setup {
        commands: Commands::Repeatable,
        ..Setup::default()
    };
    while_replicating(family, setup, |rig| {
        for _ in 0..5 {
            for master in rig.target.masters() {
                let lost = rig.sum("errors.target_lost")?;
                master
                    .connect()?
                    .call(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])?;
                rig.wait_for_sum("errors.target_lost", lost)?;
            }
            rig.write_more()?;
        }
        rig.copied_once()
    })
}

/// Every target master is full for a while.
fn target_out_of_memory(family: Family) -> Result<()> {
    let setup = Setup {
        commands: Commands::Growing,
        ..Setup::default()
    };
    while_replicating(family, setup, |rig| {
        set_on_masters(&rig.target, "maxmemory", "1mb")?;
        rig.wait_for_sum("errors.oom", 0)?;
        rig.write_more()?;
        rig.write_more()?;
        set_on_masters(&rig.target, "maxmemory", "0")?;
        rig.write_more()?;
        rig.copied_once()
    })
}

/// A target master loads its data anew, and says LOADING meanwhile.
fn target_loading(family: Family) -> Result<()> {
    let setup = Setup {
        commands: Commands::Growing,
        ..Setup::default()
    };
    while_replicating(family, setup, |rig| {
        let master = &rig.target.masters()[0];
        let mut connection = master.connect()?;
        // It answers others only after so many bytes, and takes its time for each key.
        set(
            &mut connection,
            "loading-process-events-interval-bytes",
            "1024",
        )?;
        set(&mut connection, "key-load-delay", "1000")?;
        connection.call(&["DEBUG", "RELOAD"])?;
        ensure!(rig.sum("errors.loading")? > 0, "nothing was refused");
        rig.write_more()?;
        rig.copied_once()
    })
}

fn set_on_masters(cluster: &Cluster, name: &str, value: &str) -> Result<()> {
    cluster
        .masters()
        .iter()
        .try_for_each(|master| set(&mut master.connect()?, name, value))
}

fn set(connection: &mut Connection, name: &str, value: &str) -> Result<()> {
    connection.call(&["CONFIG", "SET", name, value])?;
    Ok(())
}

/// `WAIT 1` at the source counts the target: it returns once the target has the write, and not before.
fn wait_at_the_source(family: Family) -> Result<()> {
    let setup = Setup {
        source: (1, 0),
        ..Setup::default()
    };
    while_replicating(family, setup, |rig| {
        let (mut source, mut target) = (rig.source.client()?, rig.target.client()?);
        let node = rig.source.masters()[0].address();
        for number in 0..20 {
            let (key, value) = (format!("awaited{number}"), number.to_string());
            let source = source.connection(&node)?;
            source.call(&["SET", &key, &value])?;
            let applied = source.call(&["WAIT", "1", "30000"])?;
            ensure!(applied.integer() == Some(1), "WAIT gave {applied:?}");
            let found = target.call(&["GET", &key])?.text();
            ensure!(found == value, "{key} is {found:?} when WAIT returns");
        }
        let frozen = rig.target.masters();
        frozen.iter().try_for_each(Server::freeze)?;
        let source = source.connection(&node)?;
        source.call(&["SET", "awaited", "in vain"])?;
        let applied = source.call(&["WAIT", "1", "500"])?;
        frozen.iter().try_for_each(Server::thaw)?;
        ensure!(applied.integer() == Some(0), "WAIT gave {applied:?}");
        let applied = source.call(&["WAIT", "1", "30000"])?;
        ensure!(applied.integer() == Some(1), "WAIT gave {applied:?}");
        ensure!(target.call(&["GET", "awaited"])?.text() == "in vain");
        Ok(())
    })
}

/// The network before a single target breaks, and answers get lost with it.
#[test]
fn a_target_behind_a_network_that_breaks_misses_nothing() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let source = Cluster::start(&version, 2, 0, ClusterOptions::default())?;
    let target = Server::start(&version, ServerOptions::default())?;
    let proxy = Proxy::start(&target.address())?;
    load(&mut source.client()?, &loaded())?;
    let options = WriterOptions {
        seed: u64::from(std::process::id()),
        commands: Commands::Repeatable,
        threads: 1,
        commands_per_second: COMMANDS_PER_SECOND,
        ..WriterOptions::default()
    };
    let writers = Writers::start(&source.endpoint(), &options)?;
    let through = Endpoint::at(proxy.address());
    let mut sync = Slotstream::start(program(), &source.endpoint(), &through, &[])?;
    let mut act = || -> Result<()> {
        sync.wait_until_caught_up(PATIENCE)?;
        for round in 0..8 {
            // Held back first, so that much is on its way when the connection breaks.
            proxy.delay(Duration::from_millis(round % 3 * 20));
            let goal = writers.commands_so_far() + COMMANDS_BETWEEN / 3;
            wait_until(PATIENCE, "more writes", || {
                Ok(writers.commands_so_far() >= goal)
            })?;
            proxy.cut()?;
        }
        proxy.delay(Duration::ZERO);
        Ok(())
    };
    let acted = act();
    let report = writers.stop()?;
    acted
        .and_then(|()| sync.wait_until_settled(PATIENCE))
        .and_then(|()| must_be_equal(&source.endpoint(), &target.endpoint()))
        .with_context(|| format!("writers' seed {}: {}", options.seed, sync.output()))?;
    ensure!(report.errors.is_empty(), "{report}");
    ensure!(proxy.connections() > 8, "it was never cut");
    Ok(())
}

family!(
    redis_6_0,
    Family::Redis60,
    source_failover,
    source_resharding,
    target_resharding
);
family!(
    redis_7_0,
    Family::Redis70,
    source_failover,
    source_killed,
    source_connection_cut,
    source_backlog_overrun,
    source_resharding,
    source_resharding_called_off,
    source_resharding_while_killed,
    source_slot_of_many_keys,
    source_master_drained,
    target_failover,
    target_resharding,
    target_connections_closed,
    target_out_of_memory,
    target_loading,
    wait_at_the_source,
);
family!(
    redis_8_0,
    Family::Redis80,
    source_killed,
    source_master_drained,
    target_failover
);
family!(
    valkey_8_0,
    Family::Valkey80,
    source_failover,
    target_out_of_memory
);
family!(
    valkey_8_1,
    Family::Valkey81,
    source_connection_cut,
    source_resharding,
    target_resharding
);
family!(
    valkey_9,
    Family::Valkey9,
    source_failover,
    source_resharding,
    source_resharding_as_a_whole,
    target_failover,
    target_resharding
);
