//! The shape of a cluster under torture: who is master of what at present, who is down, and how it is made whole again.

use super::rig::{PATIENCE, Rig};
use crate::client::{Client, SLOT_COUNT};
use crate::cluster::{Cluster, cluster_info};
use crate::resp::Connection;
use crate::server::{Server, info_field};
use crate::{Result, wait_until};
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};

/// A node that does not answer for so long is in no shape to be asked.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// Which of the two clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Target,
}

/// A node that is out of order until its time has come.
pub struct Outage {
    pub side: Side,
    pub node: usize,
    pub frozen: bool,
    pub until: Instant,
}

/// A connection for questions, which ends soon where no answer comes.
pub fn ask(node: &Server) -> Result<Connection> {
    let connection = node.connect()?;
    connection.set_patience(ANSWER_PATIENCE)?;
    Ok(connection)
}

pub fn is_master(node: &Server) -> Result<bool> {
    Ok(info_field(&mut ask(node)?, "replication", "role")? == "master")
}

/// The node that owns a slot, as the cluster tells it.
pub fn owner_of(cluster: &Cluster, client: &Client, slot: usize) -> Result<usize> {
    let address = client.owner_of_slot(slot);
    let found = cluster
        .nodes()
        .iter()
        .position(|node| node.address() == address);
    found.with_context(|| format!("{address} is no node of the cluster"))
}

pub fn client_of(cluster: &Cluster) -> Result<Client> {
    Client::connect_impatient(&cluster.all_nodes(), ANSWER_PATIENCE)
}

/// What one node says of the cluster.
pub fn client_at(node: &Server) -> Result<Client> {
    Client::connect_impatient(&node.endpoint(), ANSWER_PATIENCE)
}

/// Master and replica of one shard, once the replica is in step.
pub fn pair_in_step(rig: &Rig, side: Side, shard: usize) -> Result<(usize, usize)> {
    let cluster = rig.cluster(side);
    let both = [shard, cluster.masters().len() + shard];
    let mut found = None;
    wait_until(PATIENCE, "a shard's replica to be in step", || {
        for [master, replica] in [both, [both[1], both[0]]] {
            let port = cluster.nodes()[master].port().to_string();
            let mut link = ask(&cluster.nodes()[replica])?;
            if is_master(&cluster.nodes()[master])?
                && info_field(&mut link, "replication", "role")? == "slave"
                && info_field(&mut link, "replication", "master_port")? == port
                && info_field(&mut link, "replication", "master_link_status")? == "up"
            {
                found = Some((master, replica));
                return Ok(true);
            }
        }
        Ok(false)
    })?;
    found.context("a shard without a master")
}

/// Brings back the nodes whose time has come, and those for which there is another reason.
pub fn bring_back(rig: &mut Rig, also: impl Fn(&Outage) -> bool) -> Result<()> {
    let now = Instant::now();
    while let Some(index) = rig
        .outages
        .iter()
        .position(|outage| outage.until <= now || also(outage))
    {
        let outage = rig.outages.remove(index);
        let node = &mut rig.cluster_mut(outage.side).nodes_mut()[outage.node];
        match outage.frozen {
            true => node.thaw()?,
            false => node.restart()?,
        }
        let address = node.address();
        rig.journal
            .note(&format!("{:?} node {address} is back", outage.side));
        follow_heir(rig, outage.side, outage.node)?;
    }
    Ok(())
}

/// A master that was away becomes a replica of its heir by itself, unless its slots have moved on from there
/// meanwhile: then it follows another master, or none, until it is told.
fn follow_heir(rig: &Rig, side: Side, node: usize) -> Result<()> {
    let cluster = rig.cluster(side);
    let masters = cluster.masters().len();
    let heir = &cluster.nodes()[(node + masters) % (2 * masters)];
    let former = &cluster.nodes()[node];
    let port = heir.port().to_string();
    let id = ask(heir)?.call(&["CLUSTER", "MYID"])?.text();
    wait_until(PATIENCE, "a former master to follow its heir", || {
        let mut connection = ask(former)?;
        if info_field(&mut connection, "replication", "role")? == "slave" {
            if info_field(&mut connection, "replication", "master_port")? == port {
                return Ok(true);
            }
        } else if owns_slots(&mut connection)? {
            // It does not know yet.
            return Ok(false);
        } else {
            // What it read from its disk nobody wants.
            connection.call(&["FLUSHALL"])?;
        }
        connection.call(&["CLUSTER", "REPLICATE", &id])?;
        Ok(false)
    })
}

fn owns_slots(connection: &mut Connection) -> Result<bool> {
    let nodes = connection.call(&["CLUSTER", "NODES"])?.text();
    let line = nodes.lines().find(|line| line.contains("myself"));
    // Slots come behind eight fields.
    Ok(line.is_some_and(|line| line.split(' ').nth(8).is_some()))
}

/// Everything runs, every replica is in step, and all nodes of a cluster say the same of it.
pub fn make_whole(rig: &mut Rig) -> Result<()> {
    bring_back(rig, |_| true)?;
    for side in [Side::Source, Side::Target] {
        let cluster = rig.cluster(side);
        let what = format!("all nodes of the {side:?} to agree");
        wait_until(PATIENCE, &what, || agree(cluster))?;
    }
    rig.journal.note("both clusters are whole");
    Ok(())
}

fn agree(cluster: &Cluster) -> Result<bool> {
    let mut first: Option<Client> = None;
    for node in cluster.nodes() {
        let (mut connection, who) = (ask(node)?, node.address());
        let state = cluster_info(&mut connection, "cluster_state")?;
        ensure!(state == "ok", "{who} says that the cluster is {state}");
        if info_field(&mut connection, "replication", "role")? == "slave" {
            let link = info_field(&mut connection, "replication", "master_link_status")?;
            ensure!(link == "up", "{who} says that its master is {link}");
        }
        let client = client_at(node)?;
        let Some(first) = &first else {
            first = Some(client);
            continue;
        };
        for slot in 0..SLOT_COUNT {
            let (owner, other) = (client.owner_of_slot(slot), first.owner_of_slot(slot));
            ensure!(
                owner == other,
                "{who} says that {owner} has slot {slot}, the first node {other}"
            );
        }
    }
    Ok(true)
}
