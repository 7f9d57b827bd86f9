//! The least that anybody between a source and a target can do: a thread per master that sends on what it receives.
//!
//! It takes a snapshot and throws it away, then passes each read of the stream to one connection of the target master that
//! owns the same slots, and drops the replies. It looks into nothing, keeps nothing, and would lose everything at the first
//! redirect or lost connection. What it shows is how much of the visible lag is the machine's: one more process to wake.

use crate::follower::Stage;
use anyhow::{Context, Result, bail};
use lab::Server;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const BUFFER_BYTES: usize = 512 * 1024;
const MARK_BYTES: usize = 40;
/// As often as a replica does.
const ACK_INTERVAL: Duration = Duration::from_secs(1);
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);

/// The relays of all masters, at work until dropped.
pub struct Relay {
    threads: Vec<(TcpStream, JoinHandle<()>)>,
}

impl Relay {
    /// Attaches to every source master; returns when all stream.
    pub fn attach(stage: &Stage) -> Result<Relay> {
        let mut threads = Vec::new();
        let masters = stage.source.masters().iter();
        for (source, target) in masters.zip(stage.target.masters()) {
            let source = attach(source)?;
            let target = connect(target)?;
            let handle = source.try_clone()?;
            threads.push((handle, std::thread::spawn(move || pass(source, target))));
        }
        Ok(Relay { threads })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for (source, thread) in self.threads.drain(..) {
            // Its thread then reads the end of the stream; one that has ended already has said why.
            let _ = source.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }
}

fn connect(server: &Server) -> Result<TcpStream> {
    let stream = TcpStream::connect(server.address())?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Poses as a replica and reads past the snapshot.
fn attach(server: &Server) -> Result<TcpStream> {
    let mut stream = connect(server)?;
    stream.set_read_timeout(Some(SNAPSHOT_TIMEOUT))?;
    let mut received = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    stream.write_all(b"REPLCONF capa eof capa psync2\r\n")?;
    // PSYNC is refused to whom a reply is due.
    stream.read_exact(&mut buffer[..b"+OK\r\n".len()])?;
    stream.write_all(b"PSYNC ? -1\r\n")?;
    let mut mark = None;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            bail!("{} closed the connection of a relay", server.address());
        }
        received.extend_from_slice(&buffer[..count]);
        if mark.is_none() {
            mark = find_mark(&received)?;
        }
        if let Some(mark) = &mark {
            if received.ends_with(mark) && received.len() > 2 * MARK_BYTES {
                break;
            }
            // Nothing but the mark's beginning may matter of what has been read.
            received.drain(..received.len().saturating_sub(2 * MARK_BYTES + 1));
        }
    }
    stream.set_read_timeout(None)?;
    acknowledge(&mut stream)?;
    Ok(stream)
}

/// The mark that will end a diskless snapshot, once its announcement has come whole.
fn find_mark(received: &[u8]) -> Result<Option<Vec<u8>>> {
    let text = String::from_utf8_lossy(received);
    if text.starts_with('-') {
        bail!("a relay was refused: {text}");
    }
    let mark = text
        .split_once("$EOF:")
        .and_then(|(_, rest)| rest.get(..MARK_BYTES));
    Ok(mark.map(|mark| mark.as_bytes().to_vec()))
}

fn acknowledge(source: &mut TcpStream) -> std::io::Result<()> {
    source.write_all(b"REPLCONF ACK 0\r\n")
}

fn pass(mut source: TcpStream, mut target: TcpStream) {
    if let Err(error) = try_pass(&mut source, &mut target) {
        eprintln!("a relay ended: {error:#}");
    }
}

fn try_pass(source: &mut TcpStream, target: &mut TcpStream) -> Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut acknowledged = Instant::now();
    loop {
        let (from_source, from_target) = {
            let mut ends = [
                PollFd::new(source.as_fd(), PollFlags::POLLIN),
                PollFd::new(target.as_fd(), PollFlags::POLLIN),
            ];
            let timeout = PollTimeout::try_from(ACK_INTERVAL).context("a timeout")?;
            poll(&mut ends, timeout)?;
            (ends[0].any() == Some(true), ends[1].any() == Some(true))
        };
        if from_source {
            match source.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => target.write_all(&buffer[..count])?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if from_target && target.read(&mut buffer)? == 0 {
            bail!("the target closed the connection");
        }
        if acknowledged.elapsed() >= ACK_INTERVAL {
            acknowledged = Instant::now();
            acknowledge(source)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_found_once_it_is_whole() {
        let mark = "0123456789".repeat(4);
        let text = format!("+FULLRESYNC x 1\r\n\n$EOF:{mark}\r\n");
        for end in 0..text.len() {
            let found = find_mark(&text.as_bytes()[..end]).unwrap();
            assert_eq!(found.is_some(), end >= text.len() - 2, "{end} bytes");
        }
        assert!(find_mark(b"-NOAUTH x\r\n").is_err());
    }
}
