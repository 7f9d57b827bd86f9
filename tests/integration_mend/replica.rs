//! A replica that keeps the stream and does nothing with it.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use slotstream::resp::{push_command, scan};

/// The stream of one server from some offset on.
pub struct Replica {
    stream: TcpStream,
    input: Vec<u8>,
    pub replid: String,
    /// Offset at the start of `input`.
    offset: u64,
}

impl Replica {
    /// Attaches to a server that sends snapshots as files, and passes its snapshot over.
    pub fn attach(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut replica = Self {
            stream,
            input: Vec::new(),
            replid: String::new(),
            offset: 0,
        };
        replica.say(&[b"REPLCONF", b"listening-port", b"1"])?;
        ensure!(replica.line()? == "+OK", "REPLCONF was refused");
        replica.say(&[b"REPLCONF", b"capa", b"psync2"])?;
        ensure!(replica.line()? == "+OK", "REPLCONF was refused");
        replica.say(&[b"PSYNC", b"?", b"-1"])?;
        loop {
            let line = replica.line()?;
            if let Some(words) = line.strip_prefix("+FULLRESYNC ") {
                let (id, offset) = words.split_once(' ').context("an id and an offset")?;
                replica.replid = id.to_owned();
                replica.offset = offset.parse()?;
            } else if let Some(length) = line.strip_prefix('$') {
                let length: usize = length.parse().context("a snapshot from a file")?;
                replica.fill(length)?;
                replica.input.drain(..length);
                return Ok(replica);
            } else {
                ensure!(line.is_empty(), "the server says {line}");
            }
        }
    }

    fn say(&mut self, words: &[&[u8]]) -> Result<()> {
        let mut out = Vec::new();
        push_command(&mut out, words);
        Ok(self.stream.write_all(&out)?)
    }

    fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let have = self.input.len();
            self.fill(have + 1)?;
        }
    }

    fn fill(&mut self, length: usize) -> Result<()> {
        let mut bytes = vec![0; 64 << 10];
        while self.input.len() < length {
            match self.stream.read(&mut bytes)? {
                0 => bail!("the server closed the connection"),
                count => self.input.extend_from_slice(&bytes[..count]),
            }
        }
        Ok(())
    }

    /// The next command of the stream, its arguments in capitals, and the offset behind it.
    pub fn next(&mut self) -> Result<(Vec<String>, u64)> {
        loop {
            if let Some(frame) = scan(&self.input)? {
                let text = |arg: &[u8]| String::from_utf8_lossy(arg).into_owned();
                let words: Vec<String> = frame.args().map(text).collect();
                let length = frame.bytes().len();
                self.input.drain(..length);
                self.offset += length as u64;
                return Ok((words, self.offset));
            }
            let have = self.input.len();
            self.fill(have + 1)?;
        }
    }

    pub fn offset(&self) -> u64 {
        self.offset
    }
}
