//! A cluster of servers on loopback ports.

use crate::client::{Client, Endpoint, SLOT_COUNT};
use crate::proxy::Proxy;
use crate::resp::Connection;
use crate::server::{BUS_PORT_DISTANCE, Server, ServerOptions, free_port};
use crate::version::Version;
use crate::{Result, wait_until};
use anyhow::{Context, bail};
use std::ops::RangeInclusive;
use std::time::Duration;

const FORM_TIMEOUT: Duration = Duration::from_secs(60);

/// How a cluster is set up.
#[derive(Clone, Debug, Default)]
pub struct ClusterOptions {
    /// Of every node; `port` is the first node's, the others follow it.
    pub server: ServerOptions,
    /// The slots of each master; shared out evenly where this is `None`.
    pub slots: Option<Vec<Vec<RangeInclusive<usize>>>>,
}

/// A running cluster; dropping it kills its nodes.
pub struct Cluster {
    /// Masters first, then the replicas, those of the first master before those of the second.
    nodes: Vec<Server>,
    masters: usize,
}

impl Cluster {
    /// Starts the nodes, joins them, and waits until every one of them says that the cluster is whole.
    pub fn start(
        version: &Version,
        masters: usize,
        replicas_per_master: usize,
        options: ClusterOptions,
    ) -> Result<Cluster> {
        let as_it_is = |_: &mut ServerOptions| Ok(());
        Cluster::start_adapted(version, masters, replicas_per_master, options, as_it_is)
    }

    /// The same with a proxy before each node, in the order of the nodes: the cluster tells its clients of the
    /// proxies, not of itself.
    pub fn start_behind_proxies(
        version: &Version,
        masters: usize,
        replicas_per_master: usize,
        options: ClusterOptions,
    ) -> Result<(Cluster, Vec<Proxy>)> {
        let mut proxies = Vec::new();
        let behind_proxy = |server: &mut ServerOptions| {
            let port = match server.port {
                Some(port) => port,
                None => free_port()?,
            };
            let proxy = Proxy::start(&format!("127.0.0.1:{port}"))?;
            server.port = Some(port);
            server.extra.extend([
                format!("cluster-announce-port {}", proxy.port()),
                format!("cluster-announce-bus-port {}", port + BUS_PORT_DISTANCE),
            ]);
            proxies.push(proxy);
            Ok(())
        };
        let cluster =
            Cluster::start_adapted(version, masters, replicas_per_master, options, behind_proxy)?;
        Ok((cluster, proxies))
    }

    /// The same with options of each node's own, which `adapt` sets.
    pub fn start_adapted(
        version: &Version,
        masters: usize,
        replicas_per_master: usize,
        options: ClusterOptions,
        mut adapt: impl FnMut(&mut ServerOptions) -> Result<()>,
    ) -> Result<Cluster> {
        let slots = options.slots.clone().unwrap_or_else(|| even_slots(masters));
        if slots.len() != masters {
            bail!(
                "slots for {} masters, of which there are {masters}",
                slots.len()
            );
        }
        let mut nodes = Vec::new();
        for index in 0..masters * (1 + replicas_per_master) {
            let mut server = options.server.clone();
            server.cluster = true;
            server.port = match options.server.port {
                Some(first) => Some(first + u16::try_from(index)?),
                None => None,
            };
            adapt(&mut server)?;
            nodes.push(Server::start(version, server)?);
        }
        let cluster = Cluster { nodes, masters };
        cluster.form(&slots)?;
        Ok(cluster)
    }

    pub fn nodes(&self) -> &[Server] {
        &self.nodes
    }

    /// All nodes, to kill and restart them.
    pub fn nodes_mut(&mut self) -> &mut [Server] {
        &mut self.nodes
    }

    /// The nodes that were started as masters.
    pub fn masters(&self) -> &[Server] {
        &self.nodes[..self.masters]
    }

    /// The cluster, found through its first node.
    pub fn endpoint(&self) -> Endpoint {
        self.nodes[0].endpoint()
    }

    /// The cluster, found through whichever of its nodes lives.
    pub fn all_nodes(&self) -> Endpoint {
        Endpoint {
            seeds: self.nodes.iter().map(Server::address).collect(),
            ..self.endpoint()
        }
    }

    /// `redis://...` of the first node.
    pub fn uri(&self) -> String {
        self.nodes[0].uri()
    }

    pub fn client(&self) -> Result<Client> {
        Client::connect(&self.endpoint())
    }

    fn form(&self, slots: &[Vec<RangeInclusive<usize>>]) -> Result<()> {
        let mut connections = self
            .nodes
            .iter()
            .map(Server::connect)
            .collect::<Result<Vec<_>>>()?;
        for (index, connection) in connections.iter_mut().enumerate() {
            connection.call(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()])?;
            if let Some(slots) = slots.get(index) {
                add_slots(connection, slots)?;
            }
        }
        for node in &self.nodes[1..] {
            connections[0].call(&["CLUSTER", "MEET", node.host(), &node.port().to_string()])?;
        }
        let count = self.nodes.len().to_string();
        wait_until(FORM_TIMEOUT, "every node to know every other", || {
            all(&mut connections, |connection| {
                Ok(cluster_info(connection, "cluster_known_nodes")? == count)
            })
        })?;
        self.attach_replicas(&mut connections)?;
        wait_until(FORM_TIMEOUT, "the cluster to be whole", || {
            all(&mut connections, |connection| {
                Ok(cluster_info(connection, "cluster_state")? == "ok"
                    && cluster_info(connection, "cluster_slots_ok")? == SLOT_COUNT.to_string())
            })
        })
    }

    fn attach_replicas(&self, connections: &mut [Connection]) -> Result<()> {
        let per_master = self.nodes.len() / self.masters - 1;
        let ids = connections[..self.masters]
            .iter_mut()
            .map(|connection| Ok(connection.call(&["CLUSTER", "MYID"])?.text()))
            .collect::<Result<Vec<_>>>()?;
        let replicas = &mut connections[self.masters..];
        for (index, replica) in replicas.iter_mut().enumerate() {
            // A node is told of a master through gossip, so it may not know this one yet.
            let master = &ids[index / per_master];
            wait_until(FORM_TIMEOUT, "a replica to know its master", || {
                replica.call(&["CLUSTER", "REPLICATE", master])?;
                Ok(true)
            })?;
        }
        wait_until(FORM_TIMEOUT, "replicas to be in step", || {
            all(replicas, |replica| {
                let link = crate::server::info_field(replica, "replication", "master_link_status");
                Ok(link.is_ok_and(|status| status == "up"))
            })
        })
    }
}

fn all(
    connections: &mut [Connection],
    mut holds: impl FnMut(&mut Connection) -> Result<bool>,
) -> Result<bool> {
    for connection in connections {
        if !holds(connection)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A field of `CLUSTER INFO`.
pub fn cluster_info(connection: &mut Connection, field: &str) -> Result<String> {
    let info = connection.call(&["CLUSTER", "INFO"])?.text();
    info.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
        .with_context(|| format!("CLUSTER INFO has no {field}"))
}

/// Slot by slot, as 6.0 wants it; the newer ones take that too.
fn add_slots(connection: &mut Connection, slots: &[RangeInclusive<usize>]) -> Result<()> {
    let mut arguments = vec!["CLUSTER".to_owned(), "ADDSLOTS".to_owned()];
    arguments.extend(slots.iter().cloned().flatten().map(|slot| slot.to_string()));
    if arguments.len() > 2 {
        connection.call(&arguments)?;
    }
    Ok(())
}

/// All slots, in as many runs of equal length as there are masters.
pub(crate) fn even_slots(masters: usize) -> Vec<Vec<RangeInclusive<usize>>> {
    (0..masters)
        .map(|index| {
            let first = index * SLOT_COUNT / masters;
            let end = (index + 1) * SLOT_COUNT / masters;
            vec![first..=end - 1]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_slots_cover_each_slot_once() {
        for masters in 1..8 {
            let all: Vec<usize> = even_slots(masters)
                .into_iter()
                .flatten()
                .flatten()
                .collect();
            assert!(all.into_iter().eq(0..SLOT_COUNT), "{masters} masters");
        }
    }
}
