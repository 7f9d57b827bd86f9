//! Which master a key belongs to, and what becomes of writes that did not get there.
//!
//! After a redirect, a passing refusal or a lost connection everything that is on its way is answered first; then the topology
//! is read anew, and what failed is sent again, in order, with all later parts of the same keys. That is exact: parts of a
//! value give the same result when they are written again from any part on.

use std::time::{Duration, Instant};

use super::node::{Failed, Node, Redirect, Unit};
use crate::control::discover::from_seeds;
use crate::fault::{Fault, FaultKind, Side};
use crate::limits::{IMPORT_PATIENCE_MS, RETRY_REFUSED_MS};
use crate::slot::slot_of;
use crate::topology::{self, Endpoint, Topology};

/// Writes to all masters of a deployment.
pub struct Writer {
    target: Endpoint,
    topology: Topology,
    nodes: Vec<Node>,
    /// For each shard of the topology the index of its master.
    masters: Vec<usize>,
    failed: Failed,
    /// Units that were sent again.
    pub repeated: u64,
}

impl Writer {
    pub fn new(target: Endpoint, topology: Topology) -> Self {
        let mut writer = Self {
            target,
            topology: topology.clone(),
            nodes: Vec::new(),
            masters: Vec::new(),
            failed: Failed::default(),
            repeated: 0,
        };
        writer.adopt(topology);
        writer
    }

    fn adopt(&mut self, topology: Topology) {
        let addresses = topology.shards.iter().map(|shard| &shard.master);
        let addresses: Vec<_> = addresses
            .map(|node| (node.address.clone(), node.port))
            .collect();
        self.masters = addresses
            .into_iter()
            .map(|(host, port)| self.node_at(&host, port))
            .collect();
        self.topology = topology;
    }

    fn node_at(&mut self, host: &str, port: u16) -> usize {
        let known = self
            .nodes
            .iter()
            .position(|node| node.port == port && node.host == host);
        known.unwrap_or_else(|| {
            self.nodes.push(Node::new(host.to_owned(), port));
            self.nodes.len() - 1
        })
    }

    /// Where a redirect leads.
    fn redirected(&self, redirect: &Redirect) -> (String, u16) {
        let (host, port) = &redirect.said_by;
        let mut nodes = self.topology.nodes();
        let said_by = nodes.find(|node| node.address == *host && node.port == *port);
        let unknown = || topology::Node::new("", host, *port);
        let said_by = said_by.cloned().unwrap_or_else(unknown);
        let named = self.topology.redirected(&said_by, &redirect.named);
        let named = named.unwrap_or(said_by);
        (named.address, named.port)
    }

    fn owner(&self, key: &[u8]) -> Result<usize, Fault> {
        let slot = slot_of(key);
        let shard = self.topology.shard_of(slot);
        shard.map(|shard| self.masters[shard]).ok_or_else(|| {
            let text = format!("slot {slot} of the target cluster has no master");
            Fault::new(FaultKind::ClusterDown, text)
        })
    }

    /// Adds the commands that `write` appends where `key` belongs, and sends when enough has gathered.
    pub fn write(
        &mut self,
        key: &[u8],
        database: u32,
        write: impl FnOnce(&mut Vec<u8>) -> Result<usize, Fault>,
    ) -> Result<(), Fault> {
        let owner = self.owner(key)?;
        let node = &mut self.nodes[owner];
        node.add(Some(key), database, false, write)?;
        if node.is_full() {
            node.turn(&self.target.credentials, &mut self.failed)?;
            self.recover()?;
        }
        Ok(())
    }

    /// Adds one command to each master. It must give the same result when it is repeated.
    pub fn broadcast(&mut self, command: &[&[u8]]) -> Result<(), Fault> {
        for master in self.masters.clone() {
            self.nodes[master].add(None, 0, false, |out| {
                crate::resp::push_command(out, command);
                Ok(1)
            })?;
        }
        self.flush()
    }

    /// Sends everything and waits for every answer.
    pub fn finish(&mut self) -> Result<(), Fault> {
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Fault> {
        self.send_all()?;
        self.recover()
    }

    /// Sends everything, and takes every answer; what failed is noted.
    fn send_all(&mut self) -> Result<(), Fault> {
        let (credentials, failed) = (&self.target.credentials, &mut self.failed);
        for node in &mut self.nodes {
            node.turn(credentials, failed)?;
        }
        for node in &mut self.nodes {
            node.settle(failed)?;
        }
        Ok(())
    }

    /// Sends again what failed, until nothing does.
    fn recover(&mut self) -> Result<(), Fault> {
        if self.failed.units.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_millis(IMPORT_PATIENCE_MS);
        loop {
            // First everything that is on its way: later parts of the same keys belong behind what is sent again.
            self.send_all()?;
            let failed = std::mem::take(&mut self.failed);
            let Some(cause) = failed.cause else {
                return Ok(());
            };
            if Instant::now() > deadline {
                return Err(cause);
            }
            self.refresh()?;
            self.repeated += failed.units.len() as u64;
            for unit in failed.units {
                self.repeat(unit)?;
            }
            self.send_all()?;
            if self.failed.units.is_empty() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(RETRY_REFUSED_MS));
        }
    }

    fn repeat(&mut self, unit: Unit) -> Result<(), Fault> {
        if let Some(redirect) = &unit.ask {
            let (host, port) = self.redirected(redirect);
            let node = self.node_at(&host, port);
            self.send_all()?;
            return self.nodes[node].ask(&unit, &self.target.credentials, &mut self.failed);
        }
        let owners = match &unit.key {
            Some(key) => vec![self.owner(key)?],
            // What concerns whole servers may have failed because there is another master now.
            None => self.masters.clone(),
        };
        for owner in owners {
            self.nodes[owner].add(unit.key.as_deref(), unit.database, true, |out| {
                out.extend_from_slice(&unit.commands);
                Ok(unit.replies)
            })?;
        }
        Ok(())
    }

    /// Reads the topology from any node that answers; the old one is kept where none does.
    fn refresh(&mut self) -> Result<(), Fault> {
        let mut endpoint = self.target.clone();
        let nodes = self.topology.nodes();
        endpoint
            .seeds
            .extend(nodes.map(|node| (node.address.clone(), node.port)));
        match from_seeds(Side::Target, &endpoint) {
            // While a slot has no master, its old one tells when that is over.
            Ok(topology)
                if topology.missing_slots().is_empty() && topology.is_related(&self.topology) =>
            {
                self.adopt(topology);
            }
            Ok(_) => {}
            Err(fault) if fault.policy() == crate::fault::Policy::Stop => return Err(fault),
            Err(_) => {}
        }
        Ok(())
    }
}
