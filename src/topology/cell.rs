//! The topology as the watcher last saw it, handed to lanes without a lock on their path.
//!
//! A lane compares [`TopologyCell::version`] (one relaxed load) once per turn and loads the topology only
//! when it changed. Invariant: a version never names two different topologies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Topology;

/// One side's current topology.
#[derive(Debug)]
pub struct TopologyCell {
    version: AtomicU64,
    current: Mutex<Arc<Topology>>,
}

impl TopologyCell {
    /// A cell at version 1.
    pub fn new(topology: Topology) -> Self {
        Self {
            version: AtomicU64::new(1),
            current: Mutex::new(Arc::new(topology)),
        }
    }

    /// Changes with every different topology.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The version and the topology that belongs to it.
    pub fn load(&self) -> (u64, Arc<Topology>) {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (self.version.load(Ordering::Acquire), Arc::clone(&current))
    }

    /// Publishes `topology` unless it equals the current one; whether it did.
    pub fn store(&self, mut topology: Topology) -> bool {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        topology.remember(&current);
        if **current == topology {
            return false;
        }
        *current = Arc::new(topology);
        self.version.fetch_add(1, Ordering::Release);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_moves_only_when_the_topology_does() {
        let cell = TopologyCell::new(Topology::single("h", 1));
        assert!(!cell.store(Topology::single("h", 1)));
        assert_eq!(cell.version(), 1);
        assert!(cell.store(Topology::single("h", 2)));
        let (version, topology) = cell.load();
        assert_eq!(version, 2);
        assert_eq!(topology.shards[0].master.port, 2);
    }
}
