//! A blocking RESP2 connection: queue commands, flush, read replies.

use crate::Result;
use anyhow::{Context, bail};
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long a server may leave a command unanswered. Generous: what is blocked for good still ends.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_CHUNK_BYTES: usize = 64 * 1024;

/// One command, already encoded.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    encoded: Vec<u8>,
    key: Option<Vec<u8>>,
}

impl Command {
    /// A command from its arguments; the second one is taken for its first key.
    pub fn new<A: AsRef<[u8]>>(arguments: &[A]) -> Command {
        Command {
            encoded: encode(arguments),
            key: arguments.get(1).map(|key| key.as_ref().to_vec()),
        }
    }

    /// A command that goes where `key` lives, whatever its arguments are.
    pub fn routed<A: AsRef<[u8]>>(key: impl AsRef<[u8]>, arguments: &[A]) -> Command {
        Command {
            encoded: encode(arguments),
            key: Some(key.as_ref().to_vec()),
        }
    }

    /// The key that decides where the command goes.
    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// Whether the command consists of this one word.
    pub fn is_bare(&self, word: &str) -> bool {
        self.encoded == encode(&[word])
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.encoded[..self.encoded.len().min(300)];
        write!(formatter, "{}", shown.escape_ascii())
    }
}

fn encode<A: AsRef<[u8]>>(arguments: &[A]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(16 + arguments.len() * 24);
    encoded.extend_from_slice(format!("*{}\r\n", arguments.len()).as_bytes());
    for argument in arguments {
        let argument = argument.as_ref();
        encoded.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        encoded.extend_from_slice(argument);
        encoded.extend_from_slice(b"\r\n");
    }
    encoded
}

/// The first command of these bytes and its length, if it is whole.
fn decode(bytes: &[u8]) -> Result<Option<(Vec<Vec<u8>>, usize)>> {
    let mut at = 0;
    let Some(count) = number_after(bytes, &mut at, b'*')? else {
        return Ok(None);
    };
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let Some(length) = number_after(bytes, &mut at, b'$')? else {
            return Ok(None);
        };
        let Some(word) = bytes.get(at..at + length + 2) else {
            return Ok(None);
        };
        words.push(word[..length].to_vec());
        at += length + 2;
    }
    Ok(Some((words, at)))
}

/// The number of the line at `at`, which begins with `kind`; moves behind that line.
fn number_after(bytes: &[u8], at: &mut usize, kind: u8) -> Result<Option<usize>> {
    let rest = bytes.get(*at..).unwrap_or_default();
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
        return Ok(None);
    };
    let line = std::str::from_utf8(&rest[..end])?.trim_end();
    let Some(number) = line.strip_prefix(char::from(kind)) else {
        bail!("a stream holds {line:?} where a command should go on");
    };
    *at += end + 1;
    Ok(Some(number.parse()?))
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    Nil,
    Integer(i64),
    Bulk(Vec<u8>),
    Status(String),
    Error(String),
    Array(Vec<Value>),
}

impl Value {
    /// The bytes of a bulk string or a status; nothing else has any.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Bulk(bytes) => Some(bytes),
            Value::Status(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    /// The bytes as text, for replies that are text.
    pub fn text(&self) -> String {
        match self {
            Value::Integer(number) => number.to_string(),
            Value::Error(text) => text.clone(),
            other => String::from_utf8_lossy(other.bytes().unwrap_or_default()).into_owned(),
        }
    }

    pub fn integer(&self) -> Option<i64> {
        match self {
            Value::Integer(number) => Some(*number),
            other => std::str::from_utf8(other.bytes()?).ok()?.parse().ok(),
        }
    }

    /// The elements of an array; none for anything else.
    pub fn array(&self) -> &[Value] {
        match self {
            Value::Array(values) => values,
            _ => &[],
        }
    }

    pub fn error(&self) -> Option<&str> {
        match self {
            Value::Error(text) => Some(text),
            _ => None,
        }
    }

    /// Turns an error reply into an error.
    pub fn ok(self) -> Result<Value> {
        match self {
            Value::Error(text) => bail!("{text}"),
            value => Ok(value),
        }
    }
}

/// One connection to one server.
pub struct Connection {
    stream: TcpStream,
    address: String,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    /// Where the unread part of `incoming` begins.
    consumed: usize,
}

impl Connection {
    pub fn open(address: &str) -> Result<Connection> {
        let resolved = address
            .to_socket_addrs()
            .with_context(|| format!("cannot resolve {address}"))?
            .next()
            .with_context(|| format!("no address for {address}"))?;
        let stream = TcpStream::connect_timeout(&resolved, CONNECT_TIMEOUT)
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
        Ok(Connection {
            stream,
            address: address.to_owned(),
            outgoing: Vec::new(),
            incoming: Vec::new(),
            consumed: 0,
        })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// How long an answer may take.
    pub fn set_patience(&self, patience: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(patience))?;
        self.stream.set_write_timeout(Some(patience))?;
        Ok(())
    }

    /// Queues a command; [`Connection::flush`] sends what is queued.
    pub fn queue(&mut self, command: &Command) {
        self.outgoing.extend_from_slice(command.encoded());
    }

    pub fn flush(&mut self) -> Result<()> {
        self.stream
            .write_all(&self.outgoing)
            .with_context(|| format!("cannot write to {}", self.address))?;
        self.outgoing.clear();
        Ok(())
    }

    /// Sends one command and reads its reply; an error reply is an error.
    pub fn call<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Result<Value> {
        let command = Command::new(arguments);
        self.queue(&command);
        self.flush()?;
        self.read()?
            .ok()
            .with_context(|| format!("{} answered {command:?}", self.address))
    }

    /// Sends commands at once and reads their replies; error replies are values.
    pub fn pipeline(&mut self, commands: &[Command]) -> Result<Vec<Value>> {
        for command in commands {
            self.queue(command);
        }
        self.flush()?;
        commands.iter().map(|_| self.read()).collect()
    }

    /// Reads one reply.
    pub fn read(&mut self) -> Result<Value> {
        let line = self.read_line()?;
        let Some((kind, rest)) = line.split_first() else {
            bail!("{} sent an empty line", self.address);
        };
        let text = String::from_utf8_lossy(rest).into_owned();
        Ok(match kind {
            b'+' => Value::Status(text),
            b'-' => Value::Error(text),
            b':' => Value::Integer(text.parse()?),
            b'$' => match text.parse::<i64>()? {
                ..0 => Value::Nil,
                length => Value::Bulk(self.read_exactly(usize::try_from(length)?)?),
            },
            b'*' => match text.parse::<i64>()? {
                ..0 => Value::Nil,
                length => Value::Array(
                    (0..length)
                        .map(|_| self.read())
                        .collect::<Result<Vec<_>>>()?,
                ),
            },
            _ => bail!("{} sent no RESP: {}", self.address, line.escape_ascii()),
        })
    }

    fn read_line(&mut self) -> Result<Vec<u8>> {
        let mut searched = 0;
        loop {
            let unread = &self.incoming[self.consumed..];
            if let Some(position) = unread[searched..].iter().position(|byte| *byte == b'\n') {
                let end = searched + position;
                let line = unread[..end].strip_suffix(b"\r").unwrap_or(&unread[..end]);
                let line = line.to_vec();
                self.consumed += end + 1;
                return Ok(line);
            }
            searched = unread.len();
            self.fill()?;
        }
    }

    fn read_exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        while self.incoming.len() - self.consumed < length + 2 {
            self.fill()?;
        }
        let bytes = self.incoming[self.consumed..self.consumed + length].to_vec();
        self.consumed += length + 2;
        Ok(bytes)
    }

    /// Reads what a master answers to `PSYNC ? -1`, and its snapshot away; gives the offset of the stream that follows.
    pub fn begin_stream(&mut self) -> Result<u64> {
        let answer = self.read_line_after_keepalives()?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let Some(offset) = text.strip_prefix("+FULLRESYNC ") else {
            bail!("{} offered no full sync: {text}", self.address);
        };
        let offset = offset.rsplit(' ').next().unwrap_or_default().parse()?;
        let header = self.read_line_after_keepalives()?;
        let header = String::from_utf8_lossy(&header).into_owned();
        let length: usize = header.trim_start_matches('$').parse()?;
        while self.incoming.len() - self.consumed < length {
            self.fill()?;
        }
        self.consumed += length;
        Ok(offset)
    }

    fn read_line_after_keepalives(&mut self) -> Result<Vec<u8>> {
        loop {
            let line = self.read_line()?;
            if !line.is_empty() {
                return Ok(line);
            }
        }
    }

    /// The next command of a stream and its length in bytes; `None` if it has not come within the connection's patience.
    pub fn read_streamed(&mut self) -> Result<Option<(Vec<Vec<u8>>, usize)>> {
        loop {
            if let Some((words, length)) = decode(&self.incoming[self.consumed..])? {
                self.consumed += length;
                return Ok(Some((words, length)));
            }
            if let Err(error) = self.fill() {
                let kind = error.downcast_ref::<std::io::Error>().map(|io| io.kind());
                match kind {
                    Some(ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                    _ => return Err(error),
                }
            }
        }
    }

    fn fill(&mut self) -> Result<()> {
        if self.consumed > 0 {
            self.incoming.drain(..self.consumed);
            self.consumed = 0;
        }
        let length = self.incoming.len();
        // Large values are read in large steps, so that a big one is not moved again and again.
        let step = READ_CHUNK_BYTES.max(length / 2);
        self.incoming.resize(length + step, 0);
        let read = self.stream.read(&mut self.incoming[length..]);
        self.incoming
            .truncate(length + *read.as_ref().unwrap_or(&0));
        match read.with_context(|| format!("cannot read from {}", self.address))? {
            0 => bail!("{} closed the connection", self.address),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn connection_to_a_server_that_sends(bytes: &'static [u8]) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for piece in bytes.chunks(3) {
                stream.write_all(piece).unwrap();
            }
        });
        Connection::open(&address).unwrap()
    }

    #[test]
    fn a_stream_is_read_behind_its_snapshot() {
        let mut connection = connection_to_a_server_that_sends(
            b"\n\n+FULLRESYNC abc 42\r\n\n$4\r\nREDI*2\r\n$3\r\nDEL\r\n$1\r\n\n\r\n*1\r\n$4\r\nping\r\n",
        );
        assert_eq!(connection.begin_stream().unwrap(), 42);
        let (words, length) = connection.read_streamed().unwrap().unwrap();
        assert_eq!((words, length), (vec![b"DEL".to_vec(), b"\n".to_vec()], 20));
        let (words, _) = connection.read_streamed().unwrap().unwrap();
        assert_eq!(words, [b"ping".to_vec()]);
        assert!(connection.read_streamed().is_err(), "it was closed");
    }

    #[test]
    fn every_kind_of_reply_is_read_whatever_the_pieces_it_comes_in() {
        let mut connection = connection_to_a_server_that_sends(
            b"+OK\r\n-ERR no\r\n:-7\r\n$5\r\na\r\nbc\r\n$-1\r\n*2\r\n:1\r\n*1\r\n$0\r\n\r\n*-1\r\n",
        );
        let expected = [
            Value::Status("OK".into()),
            Value::Error("ERR no".into()),
            Value::Integer(-7),
            Value::Bulk(b"a\r\nbc".to_vec()),
            Value::Nil,
            Value::Array(vec![
                Value::Integer(1),
                Value::Array(vec![Value::Bulk(Vec::new())]),
            ]),
            Value::Nil,
        ];
        for value in expected {
            assert_eq!(connection.read().unwrap(), value);
        }
        assert!(connection.read().is_err(), "the end is an error");
    }

    #[test]
    fn a_command_knows_its_key() {
        let command = Command::new(&["SET", "k\r\n", "v"]);
        assert_eq!(command.key(), Some(&b"k\r\n"[..]));
        assert_eq!(
            command.encoded(),
            b"*3\r\n$3\r\nSET\r\n$3\r\nk\r\n\r\n$1\r\nv\r\n"
        );
        assert_eq!(
            Command::routed("k", &["EVAL", "s", "1", "k"]).key(),
            Some(&b"k"[..])
        );
        assert_eq!(Command::new(&["PING"]).key(), None);
    }
}
