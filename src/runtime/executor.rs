//! One thread per core, and how lanes get onto it.
//!
//! The thread gives each of its lanes a turn, again and again while any of them has something to do, and else sleeps in
//! its ring until a socket is ready or the next tick is due.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::lane_task::{LaneTask, Order, Surroundings, Turn};
use super::ring::Ring;
use super::spool_files::{LaneDesk, LaneFiles};
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
    pub spool: LaneFiles,
}

/// The thread of a core. It ends when it is closed and its lanes are done.
pub(super) struct Executor {
    pub core: usize,
    /// Where new lanes are left; `None` once closed.
    lanes: Option<Sender<NewLane>>,
    thread: Option<JoinHandle<Result<(), Fault>>>,
}

impl Executor {
    /// Starts the thread for `core`, to which it keeps if it is `pinned`.
    ///
    /// # Errors
    /// When the kernel refuses the thread, the core or the ring.
    pub fn start(core: usize, pinned: bool, shared: Arc<Shared>) -> Result<Self, Fault> {
        let refused = move |error: std::io::Error| {
            let text = format!("cannot run on core {core}: {error}");
            Fault::new(FaultKind::Runtime, text)
        };
        let (lanes, arrivals) = channel();
        let (started, start) = channel();
        let thread = std::thread::Builder::new()
            .name(format!("core-{core}"))
            .spawn(move || {
                let placed = if pinned { pin(core) } else { Ok(()) };
                let ring = placed.and_then(|()| Ring::new()).map_err(refused);
                // The starter waits for it.
                let _ = started.send(ring.as_ref().map(|_| ()).map_err(Fault::clone));
                run(&arrivals, &shared, ring?)
            })
            .map_err(refused)?;
        start.recv().unwrap_or_else(|_| Err(panicked(core)))?;
        Ok(Self {
            core,
            lanes: Some(lanes),
            thread: Some(thread),
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

    /// Whether all its lanes have ended.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// How it ended, if not well.
    pub fn join(&mut self) -> Result<(), Fault> {
        let thread = self.thread.take();
        thread.map_or(Ok(()), |thread| {
            thread.join().unwrap_or_else(|_| Err(panicked(self.core)))
        })
    }
}

fn panicked(core: usize) -> Fault {
    let text = format!("the thread of core {core} panicked; please report what it printed");
    Fault::new(FaultKind::Runtime, text)
}

fn pin(core: usize) -> std::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

fn run(arrivals: &Receiver<NewLane>, shared: &Arc<Shared>, ring: Ring) -> Result<(), Fault> {
    let mut lanes: Vec<LaneTask> = Vec::new();
    let mut open = true;
    let mut next_tick = Instant::now();
    while open || !lanes.is_empty() {
        let now = Instant::now();
        let tick = now >= next_tick;
        if tick {
            next_tick = now + limits::TICK;
            open = open && take_in(arrivals, shared, &ring, &mut lanes);
        }
        let mut busy = false;
        lanes.retain_mut(|lane| match lane.turn(now, tick) {
            Turn::Done => false,
            Turn::Busy => {
                busy = true;
                true
            }
            Turn::Idle => true,
        });
        let told = match busy {
            true => ring.collect(),
            false => ring.wait(next_tick.saturating_duration_since(now)),
        };
        if let Err(error) = told {
            let text = format!("the kernel's io_uring failed: {error}");
            let fault = Fault::new(FaultKind::Runtime, text);
            lanes.iter().for_each(|lane| lane.fail(fault.clone()));
            return Err(fault);
        }
    }
    Ok(())
}

/// Takes new lanes in; `false` when none will come any more.
fn take_in(
    arrivals: &Receiver<NewLane>,
    shared: &Arc<Shared>,
    ring: &Ring,
    lanes: &mut Vec<LaneTask>,
) -> bool {
    loop {
        match arrivals.try_recv() {
            Ok(new) => {
                let around = Surroundings {
                    status: new.status,
                    shared: Arc::clone(shared),
                    orders: new.orders,
                    ring: ring.clone(),
                    spool: LaneDesk::new(new.spool),
                };
                lanes.push(LaneTask::new((new.build)(), around));
            }
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => return false,
        }
    }
}
