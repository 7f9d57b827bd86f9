//! Readiness of a core's sockets: one ring, one multishot poll for each socket, one system call for each sleep.
//!
//! A poll tells of a change once (an edge), so what it told is kept in [`Readiness`] until a read or a write finds that
//! it no longer holds. While a core is busy nothing is asked of the kernel: completions appear in the ring's memory in
//! the course of other system calls.
//!
//! Multishot polls are of Linux 5.13 (`io_uring/poll.c`); [`check`] says so where they are missing.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::errno::Errno;
use nix::libc;

use crate::fault::{Fault, FaultKind};
use crate::limits;

/// Marks completions that nobody waits for.
const NOBODY: u64 = u64::MAX;

/// What is known of a socket. Starts with nothing known.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    readable: Cell<bool>,
    writable: Cell<bool>,
    /// The other side has closed its end, or the connection broke: reading tells which, as often as it is tried.
    ended: Cell<bool>,
}

impl Readiness {
    pub fn is_readable(&self) -> bool {
        self.readable.get() || self.ended.get()
    }

    pub fn is_writable(&self) -> bool {
        self.writable.get() || self.ended.get()
    }

    /// A read took everything there was.
    pub fn drained(&self) {
        self.readable.set(false);
    }

    /// A write found no room.
    pub fn filled(&self) {
        self.writable.set(false);
    }

    fn told(&self, events: u32) {
        let has = |flags: i16| events & u32::from(flags as u16) != 0;
        self.readable
            .set(self.readable.get() || has(libc::POLLIN | libc::POLLPRI));
        self.writable.set(self.writable.get() || has(libc::POLLOUT));
        let end = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL;
        self.ended.set(self.ended.get() || has(end));
    }
}

/// A watched socket; the watch ends when this is dropped, which must be before the socket is closed.
#[derive(Debug)]
pub(super) struct Watch {
    ring: Ring,
    token: u64,
    pub readiness: Rc<Readiness>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ring.0.borrow_mut().forget(self.token);
    }
}

/// The ring of a core's thread.
#[derive(Clone)]
pub(super) struct Ring(Rc<RefCell<Inner>>);

impl std::fmt::Debug for Ring {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Ring")
    }
}

struct Inner {
    ring: IoUring,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Slot {
    /// Grows with each use: completions of a former one are told apart.
    generation: u32,
    /// `None` while it is free.
    watched: Option<(RawFd, Rc<Readiness>)>,
}

impl Ring {
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(limits::RING_COMPLETIONS);
        // Spares an interrupt per completion (Linux 5.19), and a lock (6.0); the ring works without.
        let ring = builder
            .clone()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .build(limits::RING_DEPTH)
            .or_else(|_| builder.build(limits::RING_DEPTH))?;
        Ok(Self(Rc::new(RefCell::new(Inner {
            ring,
            slots: Vec::new(),
            free: Vec::new(),
        }))))
    }

    /// Watches a socket.
    ///
    /// # Errors
    /// When the kernel takes no more.
    pub fn watch(&self, socket: BorrowedFd<'_>) -> io::Result<Watch> {
        let mut inner = self.0.borrow_mut();
        let index = inner.free.pop().unwrap_or_else(|| {
            inner.slots.push(Slot::default());
            inner.slots.len() as u32 - 1
        });
        let readiness = Rc::new(Readiness::default());
        let slot = &mut inner.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.watched = Some((socket.as_raw_fd(), Rc::clone(&readiness)));
        let token = u64::from(slot.generation) << 32 | u64::from(index);
        let armed = inner.arm(token, socket.as_raw_fd());
        drop(inner);
        let watch = Watch {
            ring: self.clone(),
            token,
            readiness,
        };
        armed.map(|()| watch)
    }

    /// Takes in what has completed, without a system call.
    ///
    /// # Errors
    /// When a poll cannot be armed again.
    pub fn collect(&self) -> io::Result<()> {
        let mut inner = self.0.borrow_mut();
        let mut again = Vec::new();
        let Inner { ring, slots, .. } = &mut *inner;
        for completion in ring.completion() {
            let token = completion.user_data();
            let slot = slots.get(token as u32 as usize);
            let Some((slot, (fd, readiness))) =
                slot.and_then(|slot| Some((slot, slot.watched.as_ref()?)))
            else {
                continue;
            };
            if slot.generation != (token >> 32) as u32 {
                continue;
            }
            match u32::try_from(completion.result()) {
                Ok(events) => readiness.told(events),
                // The poll failed; the socket's own error is found by reading.
                Err(_) => readiness.told(libc::POLLERR as u32),
            }
            if !cqueue::more(completion.flags()) && !readiness.ended.get() {
                again.push((token, *fd));
            }
        }
        for (token, fd) in again {
            inner.arm(token, fd)?;
        }
        Ok(())
    }

    /// Sleeps until something completes, at most so long, and takes it in.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    pub fn wait(&self, timeout: Duration) -> io::Result<()> {
        {
            let inner = self.0.borrow();
            let timeout = Timespec::from(timeout);
            let args = SubmitArgs::new().timespec(&timeout);
            let waited = inner.ring.submitter().submit_with_args(1, &args);
            match waited
                .map_err(|error| (Errno::from_raw(error.raw_os_error().unwrap_or(0)), error))
            {
                // EBUSY: more has completed than the ring holds, which is taken in now.
                Ok(_) | Err((Errno::ETIME | Errno::EINTR | Errno::EAGAIN | Errno::EBUSY, _)) => {}
                Err((_, error)) => return Err(error),
            }
        }
        self.collect()
    }
}

impl Inner {
    fn arm(&mut self, token: u64, fd: RawFd) -> io::Result<()> {
        let events = libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP;
        let poll = opcode::PollAdd::new(Fd(fd), events as u32).multi(true);
        self.push(&poll.build().user_data(token))
    }

    fn forget(&mut self, token: u64) {
        let index = token as u32;
        self.slots[index as usize].watched = None;
        self.free.push(index);
        let remove = opcode::PollRemove::new(token).build().user_data(NOBODY);
        // Submitted at once: until then the kernel would keep the closed socket open. If that fails, so will the next
        // wait, which is where it is told.
        let _ = self.push(&remove);
        let _ = self.ring.submit();
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: polls hold no pointers, and the kernel keeps a file of its own for each.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }
}

/// Whether the kernel gives us rings that do what is needed here.
///
/// # Errors
/// Names the setting to change.
pub fn check() -> Result<(), Fault> {
    let text = match IoUring::new(2) {
        // Of 5.13, as multishot polls are, and unlike those it can be seen.
        Ok(ring) if ring.params().is_feature_resource_tagging() => return Ok(()),
        Ok(_) => "the kernel's io_uring is too old; use Linux 5.13 or later".into(),
        Err(error) => refusal(&error, disabled()),
    };
    Err(Fault::new(FaultKind::IoUring, text))
}

/// `kernel.io_uring_disabled`: 0 allowed, 1 privileged only, 2 never; `None` where the setting does not exist.
fn disabled() -> Option<u8> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok()
}

/// Why, and which setting to change.
fn refusal(error: &io::Error, disabled: Option<u8>) -> String {
    let errno = error.raw_os_error().map(Errno::from_raw);
    match (errno, disabled) {
        (Some(Errno::ENOSYS), _) => "the kernel has no io_uring; use Linux 5.13 or later built with CONFIG_IO_URING \
             (a seccomp profile may also hide it: run the container with one that allows io_uring_setup)"
            .into(),
        (_, Some(level @ 1..)) => format!(
            "the kernel refuses io_uring: kernel.io_uring_disabled is {level}; set it with sysctl -w kernel.io_uring_disabled=0"
        ),
        (Some(Errno::EPERM | Errno::EACCES), _) => "io_uring is refused by a seccomp profile (Docker's default does so); run the \
             container with --security-opt seccomp=unconfined or a profile that allows io_uring_setup and io_uring_enter"
            .into(),
        (Some(Errno::ENOMEM), _) => "io_uring has no memory left; raise the memory limit of the container, or ulimit -l \
             (LimitMEMLOCK= of the service)"
            .into(),
        _ => format!("io_uring cannot be used: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    const LONG: Duration = Duration::from_secs(10);

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn wait_until(ring: &Ring, mut done: impl FnMut() -> bool) {
        let start = std::time::Instant::now();
        while !done() {
            assert!(start.elapsed() < LONG, "it never became ready");
            ring.wait(LONG).unwrap();
        }
    }

    #[test]
    fn each_arrival_is_told_once_and_again_after_it_was_read() {
        let ring = Ring::new().unwrap();
        let (mut near, mut far) = pair();
        let watch = ring.watch(near.as_fd()).unwrap();
        let ready = Rc::clone(&watch.readiness);
        wait_until(&ring, || ready.is_writable());
        assert!(!ready.is_readable());
        for _ in 0..3 {
            far.write_all(b"x").unwrap();
            wait_until(&ring, || ready.is_readable());
            near.read_exact(&mut [0]).unwrap();
            ready.drained();
            ring.wait(Duration::from_millis(1)).unwrap();
            assert!(!ready.is_readable());
        }
        drop(far);
        wait_until(&ring, || ready.is_readable());
        ready.drained();
        assert!(ready.is_readable(), "an end stays to be read");
    }

    #[test]
    fn a_full_socket_is_told_to_have_room_once_the_other_side_reads() {
        let ring = Ring::new().unwrap();
        let (mut near, mut far) = pair();
        near.set_nonblocking(true).unwrap();
        let watch = ring.watch(near.as_fd()).unwrap();
        wait_until(&ring, || watch.readiness.is_writable());
        while near.write(&[0; 65536]).is_ok() {}
        watch.readiness.filled();
        ring.wait(Duration::from_millis(1)).unwrap();
        assert!(!watch.readiness.is_writable());
        far.set_nonblocking(true).unwrap();
        let mut sink = vec![0; 1 << 20];
        while far.read(&mut sink).is_ok() {}
        wait_until(&ring, || watch.readiness.is_writable());
    }

    #[test]
    fn a_slot_used_again_hears_nothing_of_its_former_socket() {
        let ring = Ring::new().unwrap();
        let (near, mut far) = pair();
        let watch = ring.watch(near.as_fd()).unwrap();
        far.write_all(b"x").unwrap();
        drop(watch);
        let (other, _far) = pair();
        let watch = ring.watch(other.as_fd()).unwrap();
        wait_until(&ring, || watch.readiness.is_writable());
        ring.wait(Duration::from_millis(1)).unwrap();
        assert!(!watch.readiness.is_readable());
    }

    #[test]
    fn a_forgotten_socket_is_closed_when_its_owner_closes_it() {
        let ring = Ring::new().unwrap();
        let (near, mut far) = pair();
        let watch = ring.watch(near.as_fd()).unwrap();
        ring.wait(Duration::from_millis(1)).unwrap();
        drop(watch);
        drop(near);
        far.set_read_timeout(Some(LONG)).unwrap();
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn more_sockets_than_entries_are_watched() {
        let ring = Ring::new().unwrap();
        let pairs: Vec<_> = (0..limits::RING_DEPTH * 2).map(|_| pair()).collect();
        let watches: Vec<_> = pairs
            .iter()
            .map(|(near, _)| ring.watch(near.as_fd()).unwrap())
            .collect();
        let ready = |watch: &Watch| watch.readiness.is_writable();
        wait_until(&ring, || watches.iter().all(ready));
    }

    #[test]
    fn every_refusal_names_its_setting() {
        let refusal = |errno: Errno, disabled| refusal(&errno.into(), disabled);
        assert!(refusal(Errno::ENOSYS, None).contains("Linux 5.13"));
        assert!(refusal(Errno::EPERM, Some(2)).contains("io_uring_disabled is 2"));
        assert!(refusal(Errno::EPERM, Some(0)).contains("seccomp=unconfined"));
        assert!(refusal(Errno::ENOMEM, None).contains("ulimit -l"));
    }
}
