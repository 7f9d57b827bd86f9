//! The lab checked against the servers' own replication: a replica that is in step is equal.

use anyhow::Result;
use lab::{
    Client, CompareOptions, LoadOptions, Server, ServerOptions, Version, WriterOptions, Writers,
    compare, load, versions, wait_until,
};
use std::time::Duration;

fn master_and_replica(version: &Version) -> Result<(Server, Server)> {
    let master = Server::start(version, ServerOptions::default())?;
    let options = ServerOptions {
        extra: vec![format!("replicaof 127.0.0.1 {}", master.port())],
        ..ServerOptions::default()
    };
    let replica = Server::start(version, options)?;
    Ok((master, replica))
}

fn wait_until_in_step(master: &Server, replica: &Server) -> Result<()> {
    wait_until(Duration::from_secs(60), "the replica to be in step", || {
        Ok(replica.info("replication", "master_link_status")? == "up"
            && master.info("replication", "master_repl_offset")?
                == replica.info("replication", "slave_repl_offset")?)
    })
}

#[test]
fn a_stock_replica_equals_its_master_and_a_changed_one_does_not() -> Result<()> {
    for version in versions() {
        println!("{version}");
        let (master, replica) = master_and_replica(&version)?;
        let mut client = Client::connect(&master.endpoint())?;
        let options = LoadOptions {
            keys: 2_000,
            vector_sets: true,
            ..LoadOptions::default()
        };
        load(&mut client, &options)?;
        wait_until_in_step(&master, &replica)?;
        let options = CompareOptions::default();
        let diff = compare(&master.endpoint(), &replica.endpoint(), &options)?;
        assert!(diff.is_equal(), "{version}: {diff}");
        assert!(diff.keys > 1_900, "{version}: {diff}");

        let mut replica_client = Client::connect(&replica.endpoint())?;
        replica_client.call(&["CONFIG", "SET", "slave-read-only", "no"])?;
        replica_client.call(&["HSET", "big:hash", "new", "field"])?;
        replica_client.call(&["DEL", "big:set"])?;
        let diff = compare(&master.endpoint(), &replica.endpoint(), &options)?;
        assert_eq!(
            (diff.different, diff.only_in_first),
            (1, 1),
            "{version}: {diff}"
        );
    }
    Ok(())
}

#[test]
fn a_stock_replica_equals_its_master_after_live_writes() -> Result<()> {
    for version in versions() {
        println!("{version}");
        let (master, replica) = master_and_replica(&version)?;
        let loaded = LoadOptions {
            keys: 500,
            big_keys: false,
            ..LoadOptions::default()
        };
        load(&mut Client::connect(&master.endpoint())?, &loaded)?;
        let options = WriterOptions {
            commands_per_second: 10_000,
            key_groups: 20,
            loaded: Some(loaded),
            ..WriterOptions::default()
        };
        let writers = Writers::start(&master.endpoint(), &options)?;
        wait_until(Duration::from_secs(60), "20,000 commands", || {
            Ok(writers.commands_so_far() >= 20_000)
        })?;
        let report = writers.stop()?;
        assert!(report.errors.is_empty(), "{version}: {report}");
        assert!(
            report.expected_errors < report.commands / 10,
            "{version}: {report:?}"
        );
        wait_until_in_step(&master, &replica)?;
        let diff = compare(
            &master.endpoint(),
            &replica.endpoint(),
            &CompareOptions::default(),
        )?;
        assert!(diff.is_equal(), "{version}: {diff}");
        assert!(diff.keys > 500, "{version}: {diff}");
    }
    Ok(())
}
