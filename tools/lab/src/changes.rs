//! What tests do to a cluster step by step: one slot that moves as `redis-cli --cluster reshard` moves it, a replica that takes
//! over. The torture does the same at random, in batches, and with nodes that are out of order ([`crate::torture`]).

use crate::cluster::Cluster;
use crate::resp::Value;
use crate::server::{Server, info_field};
use crate::{Result, wait_until};
use anyhow::Context;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
/// A manual failover is given up by the server after 5 s.
const FAILOVER_PATIENCE: Duration = Duration::from_secs(6);

/// Moves a slot, with all keys that it holds.
pub fn move_slot(cluster: &Cluster, slot: usize, giver: &Server, taker: &Server) -> Result<()> {
    open_slot(slot, giver, taker)?;
    move_keys(slot, giver, taker, usize::MAX)?;
    assign_slot(cluster, slot, taker)
}

/// Tells both masters that a slot moves.
pub fn open_slot(slot: usize, giver: &Server, taker: &Server) -> Result<()> {
    let slot = slot.to_string();
    let (from, to) = (node_id(giver)?, node_id(taker)?);
    let importing = ["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from];
    taker.connect()?.call(&importing)?;
    let migrating = ["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to];
    giver.connect()?.call(&migrating)?;
    Ok(())
}

/// Moves so many keys of an open slot, or all that are there; gives their number.
pub fn move_keys(slot: usize, giver: &Server, taker: &Server, most: usize) -> Result<usize> {
    let mut from = giver.connect()?;
    let (slot, port) = (slot.to_string(), taker.port().to_string());
    let mut moved = 0;
    while moved < most {
        let keys = from.call(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"])?;
        let Some(key) = keys.array().first().and_then(Value::bytes) else {
            break;
        };
        let [host, database, patience] = ["127.0.0.1", "0", "5000"].map(str::as_bytes);
        let (port, replace) = (port.as_bytes(), b"REPLACE");
        from.call(&[b"MIGRATE", host, port, key, database, patience, replace])?;
        moved += 1;
    }
    Ok(moved)
}

/// The slot is this master's: told to it first, then to all others.
pub fn assign_slot(cluster: &Cluster, slot: usize, taker: &Server) -> Result<()> {
    let (slot, id) = (slot.to_string(), node_id(taker)?);
    let others = cluster.masters().iter();
    let others = others.filter(|node| node.address() != taker.address());
    for node in [taker].into_iter().chain(others) {
        // One that has given all its slots away has become a replica.
        if node.info("replication", "role")? != "master" {
            continue;
        }
        let assign = ["CLUSTER", "SETSLOT", &slot, "NODE", &id];
        node.connect()?.call(&assign)?;
    }
    Ok(())
}

/// Nobody moves the slot any more, as far as this node is asked.
pub fn close_slot(slot: usize, node: &Server) -> Result<()> {
    let stable = ["CLUSTER", "SETSLOT", &slot.to_string(), "STABLE"];
    node.connect()?.call(&stable)?;
    Ok(())
}

pub fn node_id(node: &Server) -> Result<String> {
    Ok(node.connect()?.call(&["CLUSTER", "MYID"])?.text())
}

/// A replica takes its master's place by `CLUSTER FAILOVER` once it is in step.
pub fn fail_over(replica: &Server) -> Result<()> {
    let mut node = replica.connect()?;
    wait_until(PATIENCE, "the replica to be in step", || {
        Ok(info_field(&mut node, "replication", "master_link_status")? == "up")
    })?;
    // The masters may not have voted for it in time: then it asks again.
    let mut asked = None;
    wait_until(PATIENCE, "the replica to take over", || {
        if asked.is_none_or(|at: Instant| at.elapsed() > FAILOVER_PATIENCE) {
            node.call(&["CLUSTER", "FAILOVER"])?;
            asked = Some(Instant::now());
        }
        Ok(info_field(&mut node, "replication", "role")? == "master")
    })
    .with_context(|| format!("log of {}: {}", replica.address(), replica.log()))
}

/// Some of a test file's functions as tests of one family of servers, in a module of their own.
#[macro_export]
macro_rules! family {
    ($name:ident, $family:expr, $($test:ident),+ $(,)?) => {
        mod $name {
            use super::*;
            $(
                #[test]
                fn $test() -> Result<()> {
                    super::$test($family)
                }
            )+
        }
    };
}
