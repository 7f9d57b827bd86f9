//! A blocking connection for a few commands: discovery, checks, polls. RESP2, every wait bounded.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use crate::fault::{Fault, FaultKind, Side};
use crate::limits::{CONTROL_CONNECT_TIMEOUT_MS, CONTROL_REPLY_TIMEOUT_MS};
use crate::resp::{ReplyScanner, ReplySink};
use crate::topology::uri::host_port;
use crate::topology::{Credentials, Preferred, Rewrites, Value};

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 64 << 10;

/// One connection, authenticated.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    /// Bytes received.
    received: Vec<u8>,
    /// How many of them are decoded already.
    decoded: usize,
    side: Side,
    host: String,
    address: SocketAddr,
    /// Where its cluster's nodes are for us, as far as that was set.
    pub places: Places,
}

/// What decides where the nodes of a cluster are for us.
#[derive(Debug, Clone, Default)]
pub struct Places {
    pub rewrites: Arc<Rewrites>,
    /// By which of their names the cluster wants nodes to be connected to.
    pub preferred: Preferred,
}

impl Client {
    /// Connects to the first address of `host` that answers, and authenticates.
    pub fn connect(
        side: Side,
        host: &str,
        port: u16,
        credentials: &Credentials,
    ) -> Result<Self, Fault> {
        let (stream, address) = connect_any(&resolve(side, host, port)?)
            .map_err(|failed| connect_fault(side, &host_port(host, port), failed))?;
        let mut client = Self {
            stream,
            received: Vec::new(),
            decoded: 0,
            side,
            host: host.to_owned(),
            address,
            places: Places::default(),
        };
        client.prepare(credentials)?;
        Ok(client)
    }

    /// The address that answered.
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// The host as it was asked for.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `host:port` as it was asked for, for messages.
    pub fn name(&self) -> String {
        host_port(&self.host, self.address.port())
    }

    /// One command; an error reply is a fault.
    pub fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Value, Fault> {
        match self.ask(args)? {
            Value::Error(reply) => Err(self.reply_fault(&reply)),
            value => Ok(value),
        }
    }

    /// One command; an error reply is a value like others.
    pub fn ask<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Value, Fault> {
        self.send(args)?;
        self.receive()
    }

    /// Sends one command; its reply is to be received in order.
    pub fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<(), Fault> {
        let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            let arg = arg.as_ref();
            bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            bytes.extend_from_slice(arg);
            bytes.extend_from_slice(b"\r\n");
        }
        self.send_bytes(&bytes)
    }

    /// Sends commands in wire form; their replies are to be received in order.
    pub fn send_bytes(&mut self, commands: &[u8]) -> Result<(), Fault> {
        let written = self.stream.write_all(commands);
        written.map_err(|error| self.io_fault(&error))
    }

    /// The next reply.
    pub fn receive(&mut self) -> Result<Value, Fault> {
        loop {
            match Value::decode(&self.received[self.decoded..]) {
                Ok(Some((value, end))) => {
                    self.decoded += end;
                    return Ok(value);
                }
                Ok(None) => self.read_more()?,
                Err(error) => {
                    let (side, name) = (self.side, self.name());
                    let text = format!("{side} {name} does not speak RESP: {error}");
                    return Err(Fault::new(FaultKind::Protocol, text));
                }
            }
        }
    }

    /// The next `count` replies as they came, at most `most` bytes.
    pub fn receive_raw(&mut self, count: u64, most: usize) -> Result<Vec<u8>, Fault> {
        let mut counted = Counted::default();
        let mut scanner = ReplyScanner::default();
        self.received.drain(..std::mem::take(&mut self.decoded));
        let mut scanned = 0;
        loop {
            let news = &self.received[scanned..];
            scanner.feed(news, &mut counted).map_err(|error| {
                let (side, name) = (self.side, self.name());
                let text = format!("{side} {name} does not speak RESP: {error}");
                Fault::new(FaultKind::Protocol, text)
            })?;
            scanned = self.received.len();
            if counted.0 >= count {
                return Ok(std::mem::take(&mut self.received));
            }
            if self.received.len() > most {
                let text = format!(
                    "{} {} answered with more than {most} bytes",
                    self.side,
                    self.name()
                );
                return Err(Fault::new(FaultKind::TooLarge, text));
            }
            self.read_behind()?;
        }
    }

    /// The text of the reply to a command that answers with text.
    pub fn text(&mut self, args: &[&str]) -> Result<String, Fault> {
        let value = self.call(args)?;
        value_text(value).ok_or_else(|| self.shape_fault(&args.join(" "), "no text"))
    }

    /// From now on a reply may take this long.
    pub fn set_reply_timeout(&mut self, limit: Duration) -> Result<(), Fault> {
        let set = self.stream.set_read_timeout(Some(limit));
        set.map_err(|error| self.io_fault(&error))
    }

    /// The fault behind an error reply of this server.
    pub fn reply_fault(&self, reply: &str) -> Fault {
        Fault::from_reply(self.side, &self.name(), reply)
    }

    /// A reply whose shape was not expected.
    pub fn shape_fault(&self, command: &str, why: impl std::fmt::Display) -> Fault {
        let (side, name) = (self.side, self.name());
        let text = format!("{side} {name}: unexpected reply to {command}: {why}");
        Fault::new(FaultKind::Protocol, text)
    }

    fn prepare(&mut self, credentials: &Credentials) -> Result<(), Fault> {
        let limit = Some(Duration::from_millis(CONTROL_REPLY_TIMEOUT_MS));
        let set = self.stream.set_read_timeout(limit);
        let set = set.and_then(|()| self.stream.set_write_timeout(limit));
        let set = set.and_then(|()| self.stream.set_nodelay(true));
        set.map_err(|error| self.io_fault(&error))?;
        let (user, password) = (credentials.user.as_deref(), credentials.password.as_ref());
        match (user, password.map(|password| password.reveal())) {
            (None, None) => {}
            (None, Some(password)) => _ = self.call(&["AUTH", password])?,
            (Some(user), password) => _ = self.call(&["AUTH", user, password.unwrap_or("")])?,
        }
        Ok(())
    }

    fn read_more(&mut self) -> Result<(), Fault> {
        self.received.drain(..self.decoded);
        self.decoded = 0;
        self.read_behind()
    }

    fn read_behind(&mut self) -> Result<(), Fault> {
        let start = self.received.len();
        self.received.resize(start + READ_BYTES, 0);
        let read = self.stream.read(&mut self.received[start..]);
        self.received.truncate(start + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => {
                let (side, name) = (self.side, self.name());
                let text = format!("{side} {name} closed the connection");
                Err(Fault::new(FaultKind::ConnectionLost, text))
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(self.io_fault(&error)),
        }
    }

    fn io_fault(&self, error: &std::io::Error) -> Fault {
        let (side, name) = (self.side, self.name());
        let text = match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
                "{side} {name} does not answer; it is overloaded, stopped, or no Redis server"
            ),
            _ => format!("connection to {side} {name} lost: {error}"),
        };
        Fault::new(FaultKind::ConnectionLost, text)
    }
}

/// How many replies have come.
#[derive(Debug, Default)]
struct Counted(u64);

impl ReplySink for Counted {
    fn succeeded(&mut self, count: u64) {
        self.0 += count;
    }

    fn failed(&mut self, _text: &[u8], behind: Option<usize>) {
        self.0 += u64::from(behind.is_none());
    }
}

/// The text of a bulk or status. `INFO` may hold names that are no UTF-8; they do not matter here.
pub fn value_text(value: Value) -> Option<String> {
    match value {
        Value::Bulk(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Value::Status(text) => Some(text),
        _ => None,
    }
}

/// All addresses of a host; blocks as long as the system's resolver does.
pub fn resolve(side: Side, host: &str, port: u16) -> Result<Vec<SocketAddr>, Fault> {
    let unresolved = |why: String| {
        let text = format!(
            "{side} host name '{host}' does not resolve ({why}); check its spelling and DNS"
        );
        Fault::new(FaultKind::Resolve, text)
    };
    let addresses: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|error| unresolved(error.to_string()))?
        .collect();
    match addresses.is_empty() {
        true => Err(unresolved("no address".into())),
        false => Ok(addresses),
    }
}

/// The first of these addresses that answers, or why the last one does not.
fn connect_any(
    addresses: &[SocketAddr],
) -> Result<(TcpStream, SocketAddr), Option<std::io::Error>> {
    let limit = Duration::from_millis(CONTROL_CONNECT_TIMEOUT_MS);
    let mut failed = None;
    for address in addresses {
        match TcpStream::connect_timeout(address, limit) {
            Ok(stream) => return Ok((stream, *address)),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed)
}

fn connect_fault(side: Side, name: &str, error: Option<std::io::Error>) -> Fault {
    let text = match error {
        Some(error) if error.kind() == ErrorKind::ConnectionRefused => format!(
            "nobody listens at {side} {name} (connection refused); check host, port and that the server runs"
        ),
        Some(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
            format!(
                "no answer from {side} {name} within {} s; check address and firewall",
                CONTROL_CONNECT_TIMEOUT_MS / 1000
            )
        }
        Some(error) => {
            format!("cannot connect to {side} {name}: {error}; check address and network")
        }
        None => format!("{side} {name} has no address to connect to"),
    };
    Fault::new(FaultKind::Unreachable, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that answers one connection with fixed bytes, once it has read something.
    fn canned(answer: &'static [u8]) -> (u16, std::thread::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut seen = vec![0; 1024];
            let read = stream.read(&mut seen).expect("a command");
            stream.write_all(answer).expect("the client reads");
            seen.truncate(read);
            seen
        });
        (port, thread)
    }

    fn connect(port: u16, user: Option<&str>) -> Result<Client, Fault> {
        let password = user.map(|_| crate::topology::Secret::new("pw"));
        let user = user.map(str::to_owned);
        let credentials = Credentials { user, password };
        Client::connect(Side::Source, "127.0.0.1", port, &credentials)
    }

    #[test]
    fn commands_go_out_as_resp_and_replies_come_back_in_order() {
        let (port, server) = canned(b"+PONG\r\n-ERR no\r\n");
        let mut client = connect(port, None).expect("connected");
        assert_eq!(client.call(&["PING"]), Ok(Value::Status("PONG".into())));
        assert_eq!(client.receive(), Ok(Value::Error("ERR no".into())));
        let ended = client.receive().map_err(|fault| fault.kind);
        assert_eq!(ended, Err(FaultKind::ConnectionLost));
        assert_eq!(server.join().expect("ran"), b"*1\r\n$4\r\nPING\r\n");
    }

    #[test]
    fn replies_are_kept_as_they_came_and_not_without_bound() {
        let answer = b"+OK\r\n*2\r\n$5\r\nhello\r\n-ERR in it\r\n-ERR no\r\n";
        let (port, server) = canned(answer);
        let mut client = connect(port, None).expect("connected");
        client.send(&["EXEC"]).expect("written");
        assert_eq!(client.receive_raw(3, 1000), Ok(answer.to_vec()));
        server.join().expect("ran");
        let (port, server) = canned(answer);
        let mut client = connect(port, None).expect("connected");
        client.send(&["EXEC"]).expect("written");
        let refused = client.receive_raw(4, 10).map_err(|fault| fault.kind);
        assert_eq!(refused, Err(FaultKind::TooLarge));
        server.join().expect("ran");
    }

    #[test]
    fn a_refused_password_names_the_option() {
        let (port, server) = canned(b"-WRONGPASS invalid username-password pair\r\n");
        let fault = connect(port, Some("bob")).expect_err("refused");
        assert_eq!(fault.kind, FaultKind::WrongPassword);
        assert!(fault.message.contains("--source-password-file"), "{fault}");
        let sent = server.join().expect("ran");
        assert_eq!(sent, b"*3\r\n$4\r\nAUTH\r\n$3\r\nbob\r\n$2\r\npw\r\n");
    }

    #[test]
    fn another_protocol_is_recognised() {
        let (port, server) = canned(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let answer = connect(port, None).and_then(|mut client| client.call(&["PING"]));
        assert_eq!(answer.map_err(|fault| fault.kind), Err(FaultKind::Protocol));
        server.join().expect("ran");
    }

    #[test]
    fn each_address_of_a_name_is_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let open = listener.local_addr().expect("bound");
        // Nobody listens at that port on these.
        let closed = ["[::1]", "127.0.0.2"].map(|host| format!("{host}:{}", open.port()));
        let closed = closed.map(|address| address.parse().expect("an address"));
        let (_, address) = connect_any(&[closed[0], closed[1], open]).expect("the last one");
        assert_eq!(address, open);
        let failed = connect_any(&closed).map(|_| ()).expect_err("closed");
        assert!(failed.is_some());
    }

    #[test]
    fn nobody_listening_and_unknown_names_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        let fault = connect(port, None).expect_err("closed");
        assert_eq!(fault.kind, FaultKind::Unreachable);
        assert!(fault.message.contains("nobody listens"), "{fault}");
        let fault = resolve(Side::Target, "no-such-host.invalid", 1).expect_err("reserved name");
        assert_eq!(fault.kind, FaultKind::Resolve);
    }
}
