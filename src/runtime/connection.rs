//! One socket of a lane: dialled, read, written without ever blocking.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Instant;

use nix::libc;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags, SocketType,
    connect, recv, sendmsg, shutdown, socket_with, sockopt,
};

use super::ring::{Ring, Watch};
use crate::fault::{Fault, FaultKind};
use crate::limits;

/// A connected socket.
#[derive(Debug)]
pub(super) struct Connection {
    /// Before the socket, since it has to end first.
    watch: Watch,
    socket: OwnedFd,
    /// The kernel tells of arrivals once so many bytes are there.
    read_floor: usize,
}

/// A connection on its way: the name is resolved, then one address after the other is tried.
#[derive(Debug)]
pub(super) struct Dial {
    step: Step,
    addresses: Vec<SocketAddr>,
    failed: Option<io::Error>,
}

#[derive(Debug)]
enum Step {
    Resolving(Receiver<io::Result<Vec<SocketAddr>>>, String),
    Next,
    Connecting(Connection, Instant),
}

impl Dial {
    /// Begins to connect to the first address of `host` that answers.
    pub fn start(host: String, port: u16) -> Self {
        let mut dial = Self {
            step: Step::Next,
            addresses: Vec::new(),
            failed: None,
        };
        match host.parse::<IpAddr>() {
            Ok(ip) => dial.addresses.push(SocketAddr::new(ip, port)),
            // Resolving blocks, so it has a thread of its own.
            Err(_) => {
                let (sender, receiver) = channel();
                let name = host.clone();
                let spawned = std::thread::Builder::new()
                    .name("resolve".into())
                    .spawn(move || {
                        let found = (name.as_str(), port).to_socket_addrs();
                        // Nobody may want to know any more.
                        let _ = sender.send(found.map(Vec::from_iter));
                    });
                dial.failed = spawned.err();
                dial.step = Step::Resolving(receiver, host);
            }
        }
        dial
    }

    /// How it stands: `None` while it is under way.
    pub fn poll(&mut self, ring: &Ring, now: Instant) -> Option<Result<Connection, Fault>> {
        loop {
            match &mut self.step {
                Step::Resolving(answer, host) => match answer.try_recv() {
                    Err(TryRecvError::Empty) => return None,
                    Ok(Ok(mut addresses)) => {
                        addresses.reverse();
                        self.addresses = addresses;
                        self.step = Step::Next;
                    }
                    Ok(Err(error)) => return Some(Err(unresolved(host, &error))),
                    Err(TryRecvError::Disconnected) => {
                        let error = self.failed.take();
                        let error = error.unwrap_or_else(|| io::Error::other("no answer"));
                        return Some(Err(unresolved(host, &error)));
                    }
                },
                Step::Next => {
                    let Some(address) = self.addresses.pop() else {
                        return Some(Err(unreachable(self.failed.take())));
                    };
                    match Connection::begin(address, ring) {
                        Ok(connection) => {
                            let until = now + limits::DIAL_TIMEOUT;
                            self.step = Step::Connecting(connection, until);
                        }
                        Err(error) => self.failed = Some(error),
                    }
                }
                Step::Connecting(connection, until) => {
                    let result = match connection.established() {
                        Ok(false) if now < *until => return None,
                        Ok(false) => Err(io::Error::from(io::ErrorKind::TimedOut)),
                        Ok(true) => Ok(()),
                        Err(error) => Err(error),
                    };
                    let step = std::mem::replace(&mut self.step, Step::Next);
                    match (result, step) {
                        (Ok(()), Step::Connecting(connection, _)) => return Some(Ok(connection)),
                        (Err(error), _) => self.failed = Some(error),
                        (Ok(()), _) => unreachable!("the step was looked at above"),
                    }
                }
            }
        }
    }
}

fn unresolved(host: &str, error: &io::Error) -> Fault {
    let text = format!("the name {host} does not resolve: {error}");
    Fault::new(FaultKind::Resolve, text)
}

fn unreachable(last: Option<io::Error>) -> Fault {
    let why = last.map_or_else(|| "no address".to_owned(), |error| error.to_string());
    Fault::new(
        FaultKind::Unreachable,
        format!(
            "cannot connect: {why}; check that the server runs and that no firewall is in the way"
        ),
    )
}

impl Connection {
    fn begin(address: SocketAddr, ring: &Ring) -> io::Result<Self> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        match connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        // Watched only now: a socket that is not connecting counts as ended.
        let watch = ring.watch(std::os::fd::AsFd::as_fd(&socket))?;
        Ok(Self {
            watch,
            socket,
            read_floor: 1,
        })
    }

    /// Whether the connection stands.
    fn established(&self) -> io::Result<bool> {
        if !self.watch.readiness.is_writable() {
            return Ok(false);
        }
        sockopt::socket_error(&self.socket)?.map_err(io::Error::from)?;
        Ok(true)
    }

    /// Whether a read may find something.
    pub fn is_readable(&self) -> bool {
        self.watch.readiness.is_readable()
    }

    /// Reads what there is, whether or not it was told of; `None` if there is nothing. `Some(0)` is the end of the
    /// stream.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((count, _)) => {
                // Less than asked for is all there was.
                if count < buffer.len() {
                    self.watch.readiness.drained();
                }
                Ok(Some(count))
            }
            Err(Errno::AGAIN) => {
                self.watch.readiness.drained();
                Ok(None)
            }
            Err(Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes as much of the pieces as the socket takes; `None` if that is nothing.
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        if !self.watch.readiness.is_writable() {
            return Ok(None);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut ancillary = SendAncillaryBuffer::default();
        match sendmsg(&self.socket, pieces, &mut ancillary, flags) {
            Ok(count) => Ok(Some(count)),
            Err(Errno::AGAIN) => {
                self.watch.readiness.filled();
                Ok(None)
            }
            Err(Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks the kernel to tell of arrivals only once `bytes` are there (`SO_RCVLOWAT`): for replies of which more are
    /// sure to come. A read that is tried finds whatever there is.
    pub fn set_read_floor(&mut self, bytes: usize) {
        if self.read_floor == bytes {
            return;
        }
        self.read_floor = bytes;
        let value = bytes as libc::c_int;
        // SAFETY: the option's value is an int, which lives as long as the call; the descriptor is our own. A kernel that
        // refuses changes nothing but how often it wakes us.
        let _ = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The kernel's poll holds the socket a moment longer; the other side should know now.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Duration;

    fn dialled(ring: &Ring, host: &str, port: u16) -> Result<Connection, Fault> {
        let mut dial = Dial::start(host.to_owned(), port);
        loop {
            if let Some(result) = dial.poll(ring, Instant::now()) {
                return result;
            }
            ring.wait(Duration::from_millis(10)).unwrap();
        }
    }

    #[test]
    fn a_name_is_dialled_and_bytes_go_both_ways_until_the_end() {
        let ring = Ring::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connection = dialled(&ring, "localhost", port).unwrap();
        let mut far = listener.accept().unwrap().0;
        let pieces = [IoSlice::new(b"ab"), IoSlice::new(b"c")];
        assert_eq!(connection.write(&pieces).unwrap(), Some(3));
        let mut received = [0; 3];
        far.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"abc");
        assert_eq!(connection.read(&mut [0; 8]).unwrap(), None);
        far.write_all(b"de").unwrap();
        drop(far);
        let mut buffer = [0; 8];
        while !connection.is_readable() {
            ring.wait(Duration::from_secs(1)).unwrap();
        }
        assert_eq!(connection.read(&mut buffer).unwrap(), Some(2));
        while !connection.is_readable() {
            ring.wait(Duration::from_secs(1)).unwrap();
        }
        assert_eq!(connection.read(&mut buffer).unwrap(), Some(0));
    }

    #[test]
    fn each_address_of_a_name_is_dialled() {
        let ring = Ring::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        let mut dial = Dial::start("127.0.0.2".to_owned(), open.port());
        // As if one name had led to all of these; the last is tried first.
        let closed = format!("[::1]:{}", open.port()).parse().unwrap();
        dial.addresses.splice(0..0, [open, closed]);
        let connected = loop {
            match dial.poll(&ring, Instant::now()) {
                Some(result) => break result,
                None => ring.wait(Duration::from_millis(10)).unwrap(),
            }
        };
        assert!(connected.is_ok() && dial.addresses.is_empty());
    }

    #[test]
    fn nobody_listening_and_no_such_name_are_told_apart() {
        let ring = Ring::new().unwrap();
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let fault = dialled(&ring, "127.0.0.1", port).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Unreachable);
        let fault = dialled(&ring, "no-such-name.invalid", port).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Resolve);
    }

    #[test]
    fn below_its_floor_what_arrives_is_not_told_but_can_be_read() {
        let ring = Ring::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut connection = dialled(&ring, "127.0.0.1", port).unwrap();
        let mut far = listener.accept().unwrap().0;
        connection.set_read_floor(4);
        far.write_all(b"abc").unwrap();
        ring.wait(Duration::from_millis(50)).unwrap();
        assert!(!connection.is_readable());
        assert_eq!(connection.read(&mut [0; 8]).unwrap(), Some(3));
        far.write_all(b"abc").unwrap();
        ring.wait(Duration::from_millis(50)).unwrap();
        assert!(!connection.is_readable());
        // Lowered, it tells of what is there.
        connection.set_read_floor(1);
        while !connection.is_readable() {
            ring.wait(Duration::from_secs(1)).unwrap();
        }
    }
}
