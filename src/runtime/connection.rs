//! One socket of a lane.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use nix::libc;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use crate::fault::{Fault, FaultKind};
use crate::limits;

/// A connected socket.
pub(super) struct Connection {
    stream: TcpStream,
    /// The last write would have blocked; the kernel will wake the task.
    blocked: bool,
    /// The kernel wakes a reader once so many bytes are there.
    read_floor: usize,
}

/// Connects to the first address of `host` that answers.
pub(super) async fn dial(host: String, port: u16) -> Result<Connection, Fault> {
    let mut last = None;
    for address in resolve(&host, port).await? {
        match TcpStream::connect_timeout(address, limits::DIAL_TIMEOUT).await {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(|error| {
                    Fault::new(FaultKind::ConnectionLost, format!("set_nodelay: {error}"))
                })?;
                return Ok(Connection {
                    stream,
                    blocked: false,
                    read_floor: 1,
                });
            }
            Err(error) => last = Some(error),
        }
    }
    let why = last.map_or_else(|| "no address".to_owned(), |error| error.to_string());
    Err(Fault::new(
        FaultKind::Unreachable,
        format!(
            "cannot connect: {why}; check that the server runs and that no firewall is in the way"
        ),
    ))
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Fault> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    // Resolving blocks, so it is done on glommio's helper thread.
    let name = host.to_owned();
    let resolved = glommio::executor()
        .spawn_blocking(move || (name.as_str(), port).to_socket_addrs().map(Vec::from_iter))
        .await;
    resolved.map_err(|error| {
        Fault::new(
            FaultKind::Resolve,
            format!("the name {host} does not resolve: {error}"),
        )
    })
}

impl Connection {
    /// Reads what there is. `Ready(Ok(0))` is the end of the stream.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }

    /// Asks the kernel to wake the reader only once `bytes` are there (`SO_RCVLOWAT`): for replies of which more are sure
    /// to come. A read that is tried finds whatever there is.
    pub fn set_read_floor(&mut self, bytes: usize) {
        if self.read_floor == bytes {
            return;
        }
        self.read_floor = bytes;
        let value = bytes as libc::c_int;
        // SAFETY: the option's value is an int, which lives as long as the call; the descriptor is the stream's own.
        // A kernel that refuses changes nothing but how often it wakes us.
        let _ = unsafe {
            libc::setsockopt(
                self.stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
    }

    /// Writes as much of the pieces as the socket takes. `pieces` is not empty.
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.blocked {
            // SAFETY: the descriptor belongs to `self.stream`, which lives longer than this borrow.
            let socket = unsafe { BorrowedFd::borrow_raw(self.stream.as_raw_fd()) };
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(socket, pieces, &mut SendAncillaryBuffer::default(), flags) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        // Tries the first piece once more and, if the socket is still full, registers for the wake-up.
        let polled = Pin::new(&mut self.stream).poll_write(cx, &pieces[0]);
        self.blocked = polled.is_pending();
        polled
    }
}
