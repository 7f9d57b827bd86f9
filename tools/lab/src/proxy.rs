//! A TCP proxy on loopback for one upstream, which can be paused, cut, delayed and slowed down.

use crate::Result;
use anyhow::anyhow;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    open: Mutex<Vec<TcpStream>>,
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
        let mut open = self
            .faults
            .open
            .lock()
            .map_err(|_| anyhow!("a proxy thread panicked"))?;
        for stream in open.drain(..) {
            // It may be closed already, which is what is wanted.
            let _ = stream.shutdown(Shutdown::Both);
        }
        Ok(())
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

fn accept(listener: &TcpListener, faults: &Arc<Faults>) {
    for client in listener.incoming() {
        if faults.stopped.load(Ordering::Relaxed) {
            return;
        }
        let Ok(client) = client else { continue };
        if faults.refusing.load(Ordering::Relaxed) {
            continue;
        }
        faults.connections.fetch_add(1, Ordering::Relaxed);
        // A connection that cannot be made is closed, as a server that is down would.
        let _ = connect_through(client, faults);
    }
}

fn connect_through(client: TcpStream, faults: &Arc<Faults>) -> std::io::Result<()> {
    let server = TcpStream::connect_timeout(&faults.upstream, CONNECT_TIMEOUT)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    if let Ok(mut open) = faults.open.lock() {
        open.push(client.try_clone()?);
        open.push(server.try_clone()?);
    }
    for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        let faults = faults.clone();
        std::thread::spawn(move || {
            // However it ends, the other direction and both peers are told.
            let _ = pump(&from, &to, &faults);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, faults: &Faults) -> std::io::Result<()> {
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
        while faults.paused.load(Ordering::Relaxed) && !faults.stopped.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
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
}
