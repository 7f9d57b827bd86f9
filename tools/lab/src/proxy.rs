//! A TCP proxy on loopback for one upstream, which can be paused, cut, delayed and slowed down, and which loses
//! replies or delivers requests late.
//!
//! | fault | the client sees | the upstream sees |
//! |---|---|---|
//! | [`Proxy::pause`] | silence | silence |
//! | [`Proxy::cut`] | the end | the end |
//! | [`Proxy::cut_after`] | the end | the end, behind the first half of a request |
//! | [`Proxy::hold_replies`] | silence | every request |
//! | [`Proxy::lose_replies`], then a cut | silence, then the end | every request, then the end |
//! | [`Proxy::hold_requests`], [`Proxy::orphan`], [`Proxy::release_requests`] | silence, the end | nothing; later what was held, beside what the client sends on its next connection |

use crate::Result;
use anyhow::anyhow;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const CHUNK_BYTES: usize = 16 * 1024;
/// How often a waiting pump looks whether it may go on.
const TICK: Duration = Duration::from_millis(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A running proxy; dropping it closes everything.
pub struct Proxy {
    address: SocketAddr,
    faults: Arc<Faults>,
    acceptor: Option<JoinHandle<()>>,
}

/// What the proxy does to the bytes, for all connections together, in both directions.
struct Faults {
    upstream: SocketAddr,
    stopped: AtomicBool,
    refusing: AtomicBool,
    paused: AtomicBool,
    delay_us: AtomicU64,
    /// Zero means no limit. For each direction of each connection.
    bytes_per_second: AtomicU64,
    bytes_passed: AtomicU64,
    connections: AtomicU64,
    replies_held: AtomicBool,
    /// Connections numbered below this get no replies any more.
    replies_lost_below: AtomicU64,
    /// Of connections numbered below this, requests are held.
    requests_held_below: AtomicU64,
    /// Bytes of requests that may pass until everything is cut; negative means no end.
    requests_left: AtomicI64,
    open: Mutex<Vec<Open>>,
}

/// Both ends of a connection.
struct Open {
    client: TcpStream,
    server: TcpStream,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Requests,
    Replies,
}

impl Proxy {
    /// Listens on a free loopback port and passes every connection on to `upstream` (`127.0.0.1:port`).
    pub fn start(upstream: &str) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let faults = Arc::new(Faults {
            upstream: upstream.parse()?,
            stopped: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            delay_us: AtomicU64::new(0),
            bytes_per_second: AtomicU64::new(0),
            bytes_passed: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            replies_held: AtomicBool::new(false),
            replies_lost_below: AtomicU64::new(0),
            requests_held_below: AtomicU64::new(0),
            requests_left: AtomicI64::new(-1),
            open: Mutex::new(Vec::new()),
        });
        let shared = faults.clone();
        let acceptor = std::thread::spawn(move || accept(&listener, &shared));
        Ok(Proxy {
            address,
            faults,
            acceptor: Some(acceptor),
        })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Holds all bytes back; connections stay open.
    pub fn pause(&self) {
        self.faults.paused.store(true, Ordering::Relaxed);
    }

    pub fn resume(&self) {
        self.faults.paused.store(false, Ordering::Relaxed);
    }

    /// Closes every connection; new ones are welcome.
    pub fn cut(&self) -> Result<()> {
        self.faults.cut()
    }

    /// Lets so many more bytes of requests pass, in the middle of whatever that is, and then cuts.
    pub fn cut_after(&self, bytes: u32) {
        self.faults
            .requests_left
            .store(i64::from(bytes), Ordering::Relaxed);
    }

    /// Whether the cut that [`Proxy::cut_after`] asked for is still to come.
    pub fn is_to_cut(&self) -> bool {
        self.faults.requests_left.load(Ordering::Relaxed) >= 0
    }

    /// Holds replies back, while requests pass; or lets them go.
    pub fn hold_replies(&self, hold: bool) {
        self.faults.replies_held.store(hold, Ordering::Relaxed);
    }

    /// Throws away what the upstream still answers on the connections that are open. They are of no use after
    /// that: to be followed by [`Proxy::cut`].
    pub fn lose_replies(&self) {
        let next = self.faults.connections.load(Ordering::Relaxed);
        self.faults
            .replies_lost_below
            .store(next, Ordering::Relaxed);
    }

    /// Holds requests of the connections that are open; those of later ones pass.
    pub fn hold_requests(&self) {
        let next = self.faults.connections.load(Ordering::Relaxed);
        self.faults
            .requests_held_below
            .store(next, Ordering::Relaxed);
    }

    /// Closes the clients' side of the connections that are open. What was received and is held reaches the
    /// upstream once it is released, as it does when a server that was busy comes to read what lies there.
    pub fn orphan(&self) -> Result<()> {
        self.lose_replies();
        for connection in self.faults.take_open()? {
            // It may be closed already, which is what is wanted.
            let _ = connection.client.shutdown(Shutdown::Both);
        }
        Ok(())
    }

    /// Lets requests go that were held.
    pub fn release_requests(&self) {
        self.faults.requests_held_below.store(0, Ordering::Relaxed);
    }

    /// Closes new connections at once, or welcomes them again.
    pub fn refuse(&self, refuse: bool) {
        self.faults.refusing.store(refuse, Ordering::Relaxed);
    }

    /// Holds each piece back for so long; the pieces behind it wait too.
    pub fn delay(&self, delay: Duration) {
        let delay_us = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.faults.delay_us.store(delay_us, Ordering::Relaxed);
    }

    /// Limits each direction of each connection; `None` lifts the limit.
    pub fn limit(&self, bytes_per_second: Option<u64>) {
        self.faults
            .bytes_per_second
            .store(bytes_per_second.unwrap_or(0), Ordering::Relaxed);
    }

    /// Bytes passed on so far, both directions together.
    pub fn bytes_passed(&self) -> u64 {
        self.faults.bytes_passed.load(Ordering::Relaxed)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.faults.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.faults.stopped.store(true, Ordering::Relaxed);
        let _ = self.cut();
        // Wakes the acceptor, which sees that it is to stop.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Faults {
    fn cut(&self) -> Result<()> {
        // Whoever waits for a cut has it: another must not follow in the midst of what comes next.
        self.requests_left.store(-1, Ordering::Relaxed);
        for connection in self.take_open()? {
            // It may be closed already, which is what is wanted.
            let _ = connection.client.shutdown(Shutdown::Both);
            let _ = connection.server.shutdown(Shutdown::Both);
        }
        Ok(())
    }

    fn take_open(&self) -> Result<Vec<Open>> {
        let mut open = self
            .open
            .lock()
            .map_err(|_| anyhow!("a proxy thread panicked"))?;
        Ok(std::mem::take(&mut *open))
    }

    /// Waits while something holds back what connection `number` sends in this direction.
    fn wait(&self, number: u64, direction: Direction) {
        let held = || {
            let by_direction = match direction {
                Direction::Requests => number < self.requests_held_below.load(Ordering::Relaxed),
                Direction::Replies => self.replies_held.load(Ordering::Relaxed),
            };
            by_direction || self.paused.load(Ordering::Relaxed)
        };
        while held() && !self.stopped.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
        }
    }

    /// How many of `length` bytes of requests may pass before the cut; `None` where no cut is due.
    fn before_cut(&self, length: usize) -> Option<usize> {
        let left = self.requests_left.load(Ordering::Relaxed);
        let allowed = usize::try_from(left).ok()?;
        let rest = left - i64::try_from(length).unwrap_or(i64::MAX);
        self.requests_left.store(rest.max(-1), Ordering::Relaxed);
        (allowed < length).then_some(allowed)
    }
}

fn accept(listener: &TcpListener, faults: &Arc<Faults>) {
    for client in listener.incoming() {
        if faults.stopped.load(Ordering::Relaxed) {
            return;
        }
        let Ok(client) = client else { continue };
        if faults.refusing.load(Ordering::Relaxed) {
            continue;
        }
        let number = faults.connections.fetch_add(1, Ordering::Relaxed);
        // A connection that cannot be made is closed, as a server that is down would.
        let _ = connect_through(client, number, faults);
    }
}

fn connect_through(client: TcpStream, number: u64, faults: &Arc<Faults>) -> std::io::Result<()> {
    let server = TcpStream::connect_timeout(&faults.upstream, CONNECT_TIMEOUT)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    if let Ok(mut open) = faults.open.lock() {
        open.push(Open {
            client: client.try_clone()?,
            server: server.try_clone()?,
        });
    }
    for (direction, from, to) in [
        (
            Direction::Requests,
            client.try_clone()?,
            server.try_clone()?,
        ),
        (Direction::Replies, server, client),
    ] {
        let faults = faults.clone();
        std::thread::spawn(move || {
            // However it ends, the other direction and both peers are told.
            let _ = pump(&from, &to, number, direction, &faults);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

fn pump(
    mut from: &TcpStream,
    mut to: &TcpStream,
    number: u64,
    direction: Direction,
    faults: &Faults,
) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let limit = faults.bytes_per_second.load(Ordering::Relaxed);
        // Small pieces make a low rate smooth.
        let step = match limit {
            0 => CHUNK_BYTES,
            limit => {
                usize::try_from(limit / 50).map_or(CHUNK_BYTES, |step| step.clamp(1, CHUNK_BYTES))
            }
        };
        let started = Instant::now();
        let length = match from.read(&mut buffer[..step]) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        std::thread::sleep(Duration::from_micros(
            faults.delay_us.load(Ordering::Relaxed),
        ));
        faults.wait(number, direction);
        let lost = number < faults.replies_lost_below.load(Ordering::Relaxed);
        if direction == Direction::Replies && lost {
            continue;
        }
        if direction == Direction::Requests
            && let Some(allowed) = faults.before_cut(length)
        {
            to.write_all(&buffer[..allowed])?;
            // This connection ends either way.
            let _ = faults.cut();
            return Ok(());
        }
        // Counted before they go: whoever has received them finds them counted.
        faults
            .bytes_passed
            .fetch_add(length as u64, Ordering::Relaxed);
        to.write_all(&buffer[..length])?;
        if limit > 0 {
            let due = Duration::from_secs_f64(length as f64 / limit as f64);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers each byte with the same byte.
    fn echo_server() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut byte = [0];
                    while matches!(stream.read(&mut byte), Ok(1)) {
                        stream.write_all(&byte).unwrap();
                    }
                });
            }
        });
        address
    }

    fn echo(stream: &mut TcpStream) -> std::io::Result<u8> {
        stream.write_all(b"x")?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    #[test]
    fn bytes_pass_are_held_back_by_a_pause_and_end_with_a_cut() {
        let proxy = Proxy::start(&echo_server()).unwrap();
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(echo(&mut stream).unwrap(), b'x');
        assert_eq!(proxy.bytes_passed(), 2);

        proxy.pause();
        let patience = Some(Duration::from_millis(50));
        stream.set_read_timeout(patience).unwrap();
        assert!(echo(&mut stream).is_err(), "nothing comes during a pause");
        proxy.resume();
        stream.set_read_timeout(None).unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x", "what was held back arrives");

        proxy.cut().unwrap();
        assert!(echo(&mut stream).is_err(), "a cut closes what is open");
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(echo(&mut stream).unwrap(), b'x');
        assert_eq!(proxy.connections(), 2);
    }

    #[test]
    fn a_refusing_proxy_closes_new_connections() {
        let proxy = Proxy::start(&echo_server()).unwrap();
        proxy.refuse(true);
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        assert!(echo(&mut stream).is_err());
        proxy.refuse(false);
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(echo(&mut stream).unwrap(), b'x');
    }
    /// Keeps what it receives, connection by connection, and answers each read with one byte.
    fn recorder() -> (String, Arc<Mutex<Vec<Vec<u8>>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let received = Arc::new(Mutex::new(Vec::new()));
        let shared = received.clone();
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (mut stream, shared) = (stream.unwrap(), shared.clone());
                shared.lock().unwrap().push(Vec::new());
                std::thread::spawn(move || {
                    let mut buffer = [0; 100];
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        shared.lock().unwrap()[number].extend_from_slice(&buffer[..length]);
                        // Whoever is gone wants no answer.
                        let _ = stream.write_all(b"x");
                    }
                });
            }
        });
        (address, received)
    }

    fn wait_for(received: &Mutex<Vec<Vec<u8>>>, number: usize, expected: &[u8]) {
        crate::wait_until(Duration::from_secs(10), "what was sent", || {
            let received = received.lock().unwrap();
            Ok(received.get(number).is_some_and(|bytes| bytes == expected))
        })
        .unwrap();
    }

    #[test]
    fn a_cut_after_some_bytes_lets_exactly_those_pass() {
        let (address, received) = recorder();
        let proxy = Proxy::start(&address).unwrap();
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        proxy.cut_after(7);
        assert!(proxy.is_to_cut());
        stream.write_all(b"0123").unwrap();
        wait_for(&received, 0, b"0123");
        stream.write_all(b"456789").unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        wait_for(&received, 0, b"0123456");
        assert!(!proxy.is_to_cut());
    }

    #[test]
    fn lost_replies_never_come_and_the_next_connection_gets_its_own() {
        let (address, received) = recorder();
        let proxy = Proxy::start(&address).unwrap();
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(echo(&mut stream).unwrap(), b'x');
        proxy.lose_replies();
        stream.write_all(b"applied").unwrap();
        wait_for(&received, 0, b"xapplied");
        proxy.cut().unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(echo(&mut stream).unwrap(), b'x');
    }

    #[test]
    fn requests_of_an_orphan_arrive_behind_those_of_the_next_connection() {
        let (address, received) = recorder();
        let proxy = Proxy::start(&address).unwrap();
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(echo(&mut stream).unwrap(), b'x');
        proxy.hold_requests();
        stream.write_all(b"late").unwrap();
        proxy.orphan().unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        let mut second = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(echo(&mut second).unwrap(), b'x');
        wait_for(&received, 1, b"x");
        wait_for(&received, 0, b"x");
        proxy.release_requests();
        wait_for(&received, 0, b"xlate");
    }
}
