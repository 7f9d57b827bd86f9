//! A replica that keeps nothing but the commands of its master's stream, as they came.

use crate::Result;
use crate::resp::{Command, Connection};
use anyhow::anyhow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const ACK_INTERVAL: Duration = Duration::from_millis(500);
/// How long the stream may be silent before the next acknowledgement is due.
const PATIENCE: Duration = Duration::from_millis(200);

/// The words of one command.
pub type Words = Vec<Vec<u8>>;

/// A connection that follows a server as its replica does; dropping it ends it.
pub struct Tap {
    commands: Arc<Mutex<Vec<Words>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Tap {
    /// Attaches to a server; what it writes from now on is kept.
    pub fn attach(mut connection: Connection) -> Result<Tap> {
        connection.call(&["REPLCONF", "listening-port", "1"])?;
        connection.queue(&Command::new(&["PSYNC", "?", "-1"]));
        connection.flush()?;
        let offset = connection.begin_stream()?;
        let commands = Arc::<Mutex<Vec<Words>>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, ended) = (commands.clone(), stop.clone());
        let thread = std::thread::spawn(move || follow(connection, offset, &kept, &ended));
        Ok(Tap {
            commands,
            stop,
            thread: Some(thread),
        })
    }

    /// All commands so far.
    pub fn commands(&self) -> Vec<Words> {
        let commands = self.commands.lock();
        commands.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it, and gives all commands. An error if the server ended it first.
    pub fn stop(mut self) -> Result<Vec<Words>> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("a tap panicked"))??;
        }
        Ok(self.commands())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn follow(
    mut connection: Connection,
    mut offset: u64,
    kept: &Mutex<Vec<Words>>,
    ended: &AtomicBool,
) -> Result<()> {
    connection.set_patience(PATIENCE)?;
    let mut acknowledged = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        if let Some((words, bytes)) = connection.read_streamed()? {
            offset += bytes as u64;
            kept.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(words);
        }
        if acknowledged.elapsed() >= ACK_INTERVAL {
            acknowledged = Instant::now();
            connection.queue(&Command::new(&["REPLCONF", "ACK", &offset.to_string()]));
            connection.flush()?;
        }
    }
    Ok(())
}
