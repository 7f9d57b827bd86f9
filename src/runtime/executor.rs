//! One executor per core, and how lanes get onto it.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::task::Poll;

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};

use super::lane_task::{self, Order, Surroundings};
use super::pulse::{Pulse, Watch};
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

/// An executor on its core. It ends when it is closed and its lanes are done.
pub(super) struct Executor {
    pub core: usize,
    /// Where new lanes are left; `None` once closed.
    lanes: Option<Sender<NewLane>>,
    pulse: Arc<Pulse>,
    watch: Watch,
    /// Never joined: what an executor does after its last lane has ended concerns nobody, and the process ends.
    _thread: ExecutorJoinHandle<()>,
}

impl Executor {
    /// Starts the executor's thread, pinned to `core`.
    ///
    /// # Errors
    /// When the kernel refuses the rings or the thread.
    pub fn start(core: usize, shared: Arc<Shared>) -> Result<Self, Fault> {
        let (lanes, arrivals) = channel();
        let pulse = Arc::new(Pulse::default());
        let beating = Arc::clone(&pulse);
        let thread = LocalExecutorBuilder::new(Placement::Fixed(core))
            .name(&format!("core-{core}"))
            .io_memory(limits::EXECUTOR_IO_MEMORY)
            .ring_depth(limits::RING_DEPTH)
            .preempt_timer(limits::PREEMPT_TIMER)
            .spawn(move || run(arrivals, shared, beating))
            .map_err(|error| {
                Fault::new(
                    FaultKind::Runtime,
                    format!("cannot start an executor on core {core}: {error}; check `ulimit -l` and that io_uring is allowed"),
                )
            })?;
        Ok(Self {
            core,
            lanes: Some(lanes),
            watch: Watch::new(Arc::clone(&pulse)),
            pulse,
            _thread: thread,
        })
    }

    /// Gives it a lane; `false` when it has ended.
    pub fn add(&self, lane: NewLane) -> bool {
        self.lanes
            .as_ref()
            .is_some_and(|lanes| lanes.send(lane).is_ok())
    }

    /// No more lanes will come.
    pub fn close(&mut self) {
        self.lanes = None;
    }

    /// Gives its tasks a tick, and nudges it if it has not heard the last ones, see [`super::pulse`].
    pub fn tick(&mut self) {
        self.pulse.tick();
        if self.watch.look() {
            tracing::info!(
                "core {}: woke the executor, which had missed a timer",
                self.core
            );
        }
    }

    /// Whether all its lanes have ended.
    pub fn has_ended(&self) -> bool {
        self.pulse.has_ended()
    }

    /// How it ended.
    ///
    /// # Errors
    /// When its thread panicked.
    pub fn result(&self) -> Result<(), Fault> {
        if self.pulse.is_broken() {
            let text = format!(
                "the executor of core {} panicked; please report what it printed",
                self.core
            );
            return Err(Fault::new(FaultKind::Runtime, text));
        }
        Ok(())
    }
}

async fn run(arrivals: Receiver<NewLane>, shared: Arc<Shared>, pulse: Arc<Pulse>) {
    let _guard = pulse.begin();
    let mut ticker = pulse.ticker();
    let mut tasks = Vec::new();
    loop {
        match arrivals.try_recv() {
            Ok(new) => {
                let lane = (new.build)();
                let surroundings = Surroundings {
                    status: new.status,
                    shared: Arc::clone(&shared),
                    orders: new.orders,
                    pulse: Arc::clone(&pulse),
                };
                let task = lane_task::run(lane, surroundings);
                tasks.push(glommio::spawn_local(task));
            }
            // New lanes are rare: they are looked for at each tick.
            Err(TryRecvError::Empty) => {
                poll_fn(|cx| match ticker.is_due(cx) {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                })
                .await;
            }
            Err(TryRecvError::Disconnected) => break,
        }
    }
    for task in tasks {
        task.await;
    }
}
