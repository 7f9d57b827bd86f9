//! Clusters: formed as asked, followed when slots move, gone when whoever started them is.

use anyhow::{Context, Result};
use lab::{
    Client, Cluster, ClusterOptions, Endpoint, Version, client::slot_of, versions, wait_until,
};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

fn newest() -> Result<Version> {
    versions().pop().context("no version is available here")
}

#[test]
fn every_version_forms_a_cluster_with_the_slots_and_replicas_asked_for() -> Result<()> {
    for version in versions() {
        let options = ClusterOptions {
            slots: Some(vec![vec![0..=99, 200..=16383], vec![100..=199]]),
            ..ClusterOptions::default()
        };
        let cluster = Cluster::start(&version, 2, 1, options)?;
        let client = cluster.client()?;
        for (slot, master) in [(0, 0), (150, 1), (200, 0), (16383, 0)] {
            let expected = cluster.masters()[master].address();
            assert_eq!(
                client.owner_of_slot(slot),
                expected,
                "{version}, slot {slot}"
            );
        }
        for (replica, master) in cluster.nodes()[2..].iter().zip(cluster.masters()) {
            let port = replica.info("replication", "master_port")?;
            assert_eq!(port, master.port().to_string(), "{version}");
        }
    }
    Ok(())
}

#[test]
fn a_client_follows_a_slot_to_its_new_owner() -> Result<()> {
    let cluster = Cluster::start(&newest()?, 2, 0, ClusterOptions::default())?;
    let mut client = cluster.client()?;
    let key = "moved";
    let slot = slot_of(key.as_bytes());
    let before = client.owner_of_slot(slot).to_owned();
    let new_owner = cluster
        .masters()
        .iter()
        .find(|node| node.address() != before)
        .context("there are two masters")?;
    let id = new_owner.connect()?.call(&["CLUSTER", "MYID"])?.text();
    // The importing node first: the other one then learns that its claim is outdated.
    let slot_text = slot.to_string();
    new_owner.connect()?.call(&[
        "CLUSTER",
        "SETSLOT",
        &slot_text,
        "IMPORTING",
        &node_id(&before)?,
    ])?;
    for address in [new_owner.address(), before.clone()] {
        let mut node = Endpoint::at(&address).connect(&address)?;
        node.call(&["CLUSTER", "SETSLOT", &slot_text, "NODE", &id])?;
    }
    client.call(&["SET", key, "value"])?;
    assert_eq!(client.owner_of_slot(slot), new_owner.address());
    assert_eq!(client.call(&["GET", key])?.text(), "value");
    Ok(())
}

fn node_id(address: &str) -> Result<String> {
    let mut node = Endpoint::at(address).connect(address)?;
    Ok(node.call(&["CLUSTER", "MYID"])?.text())
}

#[test]
fn a_killed_node_comes_back_at_its_place() -> Result<()> {
    let mut cluster = Cluster::start(&newest()?, 1, 0, ClusterOptions::default())?;
    let node = &mut cluster.nodes_mut()[0];
    let id = node.connect()?.call(&["CLUSTER", "MYID"])?.text();
    node.kill();
    assert!(node.connect().is_err());
    node.restart()?;
    assert_eq!(node.connect()?.call(&["CLUSTER", "MYID"])?.text(), id);
    Ok(())
}

#[test]
fn servers_die_with_the_process_that_started_them() -> Result<()> {
    let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args([
            "cluster",
            "--masters",
            "0",
            "--version",
            newest()?.family().name(),
        ])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut uri = String::new();
    BufReader::new(lab.stdout.take().context("it is piped")?).read_line(&mut uri)?;
    let endpoint = Endpoint::parse(uri.trim())?;
    Client::connect(&endpoint)?;
    lab.kill()?;
    lab.wait()?;
    wait_until(PATIENCE, "the server to be gone", || {
        Ok(Client::connect(&endpoint).is_err())
    })
}
