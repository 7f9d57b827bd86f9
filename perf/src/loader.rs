//! Sends prepared commands, one connection and thread for each master, with a window of unanswered ones.
//!
//! It does next to nothing per command (one copy into the socket, a few bytes of reply to look at), so
//! that the servers are what limits the load.

use crate::data::Batch;
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Bytes that wait for replies on one connection: enough that a server never idles, and so few that
/// neither side's socket buffers ever fill with replies.
const WINDOW_BYTES: usize = 256 * 1024;
const WRITE_BYTES: usize = 64 * 1024;
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// When the first command was sent and the last one answered.
pub struct Load {
    pub started: Instant,
    pub ended: Instant,
}

/// Sends one batch to each address; no command may be answered with an error.
pub fn load(addresses: &[String], batches: &[Batch]) -> Result<Load> {
    let ready = Barrier::new(addresses.len());
    let loads = std::thread::scope(|scope| {
        let threads: Vec<_> = addresses
            .iter()
            .zip(batches)
            .map(|(address, batch)| scope.spawn(|| send(address, batch, &ready)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a loader never panics"))
            .collect::<Result<Vec<Load>>>()
    })?;
    let started = loads.iter().map(|load| load.started).min();
    let ended = loads.iter().map(|load| load.ended).max();
    Ok(Load {
        started: started.context("there is nothing to load")?,
        ended: ended.context("there is nothing to load")?,
    })
}

fn send(address: &str, batch: &Batch, ready: &Barrier) -> Result<Load> {
    let connected = TcpStream::connect(address);
    // Whoever fails must not keep the others waiting.
    ready.wait();
    let mut stream = connected.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    let started = Instant::now();
    let command_bytes = batch.bytes.len().div_ceil(batch.commands().max(1)).max(1);
    let window = (WINDOW_BYTES / command_bytes).max(1);
    let (mut sent, mut replies) = (0, Replies::default());
    for piece in batch.bytes.chunks(WRITE_BYTES) {
        stream.write_all(piece)?;
        sent += piece.len();
        // No more than were sent whole, as their length is rounded up; the last may be longer than the others.
        while (sent / command_bytes).saturating_sub(replies.lines) >= window {
            replies.read(&mut stream)?;
        }
    }
    while replies.lines < batch.commands() {
        replies.read(&mut stream)?;
    }
    Ok(Load {
        started,
        ended: Instant::now(),
    })
}

/// Counts replies, all of which are one line: `+OK`, or the number of an `INCR`.
#[derive(Default)]
struct Replies {
    lines: usize,
}

impl Replies {
    fn read(&mut self, stream: &mut TcpStream) -> Result<()> {
        let mut buffer = [0; 16 * 1024];
        let length = stream.read(&mut buffer).context("no reply")?;
        if length == 0 {
            bail!("the server closed the connection");
        }
        self.accept(&buffer[..length])
    }

    fn accept(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(position) = bytes.iter().position(|byte| *byte == b'-') {
            let text = String::from_utf8_lossy(&bytes[position..]);
            bail!("the server answered {}", text.lines().next().unwrap_or(""));
        }
        self.lines += bytes.iter().filter(|byte| **byte == b'\n').count();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_counted_whole_and_an_error_is_told() {
        let mut replies = Replies::default();
        replies.accept(b"+OK\r\n:1").unwrap();
        assert_eq!(replies.lines, 1);
        replies.accept(b"7\r\n").unwrap();
        assert_eq!(replies.lines, 2);
        let error = replies.accept(b"+OK\r\n-OOM no memory\r\n").unwrap_err();
        assert!(error.to_string().contains("-OOM no memory"), "{error}");
    }
}
