//! What the command line needs of the running lanes, whatever runs them.

use std::sync::Arc;

use super::options::SyncPlan;
use super::shared::Shared;
use crate::fault::Fault;
use crate::topology::{Topology, TopologyChange};

/// The lanes of one process, running. They end when [`Shared::stop_requested`] turns true.
pub trait Lanes: Send + Sync {
    /// Masters of the source appeared, vanished or were promoted. Called on a control thread, after the new
    /// topology was published; must not block on the lanes.
    fn source_changed(&self, change: &TopologyChange, topology: &Topology);

    /// Whether every lane has ended, asked or by a fault.
    fn ended(&self) -> bool;

    /// Waits until every executor has ended. The fault is one that no lane could record in its own status.
    fn join(&self) -> Result<(), Fault>;
}

/// Starts a lane for every source master that owns slots.
pub type StartLanes = fn(SyncPlan, Arc<Shared>) -> Result<Arc<dyn Lanes>, Fault>;
