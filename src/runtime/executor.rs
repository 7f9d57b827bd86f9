//! One executor per core, and how lanes get onto it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use glommio::timer::sleep;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};

use super::lane_task::{self, Order};
use crate::engine::lane::Lane;
use crate::engine::shared::Shared;
use crate::engine::status::LaneStatus;
use crate::fault::{Fault, FaultKind};
use crate::limits;

/// A lane on its way to its core.
pub(super) struct NewLane {
    pub build: Box<dyn FnOnce() -> Lane + Send>,
    pub status: Arc<LaneStatus>,
    pub orders: Receiver<Order>,
}

/// An executor on its core. It ends when `lanes` is dropped and its lanes are done.
pub(super) struct Executor {
    pub core: usize,
    pub lanes: Sender<NewLane>,
    thread: ExecutorJoinHandle<()>,
}

impl Executor {
    /// Starts the executor's thread, pinned to `core`.
    ///
    /// # Errors
    /// When the kernel refuses the rings or the thread.
    pub fn start(core: usize, shared: Arc<Shared>) -> Result<Self, Fault> {
        let (lanes, arrivals) = channel();
        let thread = LocalExecutorBuilder::new(Placement::Fixed(core))
            .name(&format!("core-{core}"))
            .io_memory(limits::EXECUTOR_IO_MEMORY)
            .ring_depth(limits::RING_DEPTH)
            .preempt_timer(limits::PREEMPT_TIMER)
            .spawn(move || run(arrivals, shared))
            .map_err(|error| {
                Fault::new(
                    FaultKind::Runtime,
                    format!("cannot start an executor on core {core}: {error}; check `ulimit -l` and that io_uring is allowed"),
                )
            })?;
        Ok(Self {
            core,
            lanes,
            thread,
        })
    }

    /// Waits for its lanes to end.
    ///
    /// # Errors
    /// When the thread panicked.
    pub fn join(self) -> Result<(), Fault> {
        drop(self.lanes);
        self.thread.join().map_err(|error| {
            Fault::new(
                FaultKind::Runtime,
                format!("the executor of core {} ended badly: {error}", self.core),
            )
        })
    }
}

async fn run(arrivals: Receiver<NewLane>, shared: Arc<Shared>) {
    let mut tasks = Vec::new();
    loop {
        match arrivals.try_recv() {
            Ok(new) => {
                let lane = (new.build)();
                let task = lane_task::run(lane, new.status, Arc::clone(&shared), new.orders);
                tasks.push(glommio::spawn_local(task));
            }
            // New lanes are rare, and a wake-up across threads would need a channel of the runtime's own.
            Err(TryRecvError::Empty) => sleep(limits::TICK).await,
            Err(TryRecvError::Disconnected) => break,
        }
    }
    for task in tasks {
        task.await;
    }
}
