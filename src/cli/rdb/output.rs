//! Standard output, written in large pieces.

use std::io::{ErrorKind, Write};

use super::input::Stop;
use crate::fault::{Fault, FaultKind};
use crate::limits::OUTPUT_BYTES;

/// Bytes for standard output.
pub struct Output {
    pub buffer: Vec<u8>,
}

impl Output {
    pub fn new() -> Self {
        Self {
            buffer: Vec::with_capacity(2 * OUTPUT_BYTES),
        }
    }

    /// Writes if enough has gathered.
    pub fn flush_if_full(&mut self) -> Result<(), Stop> {
        match self.buffer.len() < OUTPUT_BYTES {
            true => Ok(()),
            false => self.flush(),
        }
    }

    pub fn flush(&mut self) -> Result<(), Stop> {
        let mut stdout = std::io::stdout().lock();
        let written = stdout.write_all(&self.buffer).and_then(|()| stdout.flush());
        self.buffer.clear();
        self.buffer.shrink_to(2 * OUTPUT_BYTES);
        written.map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Stop::OutputClosed,
            _ => {
                let text = format!("cannot write to standard output: {error}");
                Stop::Fault(Fault::new(FaultKind::File, text))
            }
        })
    }
}
