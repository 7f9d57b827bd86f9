//! A client of a whole deployment: a single server, or a cluster found through any of its nodes.

use crate::Result;
use crate::resp::{Command, Connection, Value};
use crate::version::Family;
use anyhow::{Context, bail};
use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

pub const SLOT_COUNT: usize = 16384;

/// How long redirects and refusals that pass (a slot on the move, a failover) are followed.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The slot of a key: CRC16 of what stands between the first `{` and the next `}`, unless that is
/// nothing, then of the whole key.
pub fn slot_of(key: &[u8]) -> usize {
    let hashed = key
        .iter()
        .position(|byte| *byte == b'{')
        .and_then(|open| {
            let rest = &key[open + 1..];
            let length = rest.iter().position(|byte| *byte == b'}')?;
            (length > 0).then(|| &rest[..length])
        })
        .unwrap_or(key);
    usize::from(crc16::State::<crc16::XMODEM>::calculate(hashed)) % SLOT_COUNT
}

/// Where a deployment is, and who asks: `redis://[user[:password]@]host:port[,host:port...]`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Endpoint {
    pub seeds: Vec<String>,
    pub user: Option<String>,
    pub password: Option<String>,
    /// Where announced addresses lead that nobody listens at, as NAT would do it.
    pub leads: HashMap<String, String>,
}

impl Endpoint {
    /// An endpoint without credentials.
    pub fn at(address: impl Into<String>) -> Endpoint {
        Endpoint {
            seeds: vec![address.into()],
            ..Endpoint::default()
        }
    }

    pub fn with_password(mut self, password: Option<&str>) -> Endpoint {
        self.password = password.map(str::to_owned);
        self
    }

    pub fn parse(uri: &str) -> Result<Endpoint> {
        let rest = uri
            .strip_prefix("redis://")
            .with_context(|| format!("not a redis:// URI: {uri}"))?;
        let rest = rest.trim_end_matches('/');
        let (credentials, hosts) = match rest.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, rest),
        };
        let (user, password) = match credentials.map(|text| text.split_once(':')) {
            None => (None, None),
            Some(None) => (credentials, None),
            Some(Some((user, password))) => (Some(user), Some(password)),
        };
        Ok(Endpoint {
            seeds: hosts.split(',').map(str::to_owned).collect(),
            user: user.filter(|user| !user.is_empty()).map(str::to_owned),
            password: password.map(str::to_owned),
            leads: HashMap::new(),
        })
    }

    /// Where to connect to, in place of an address that a server named.
    fn lead(&self, named: &str) -> String {
        let (host, port) = named.rsplit_once(':').unwrap_or((named, ""));
        // Redirects show IPv6 addresses without brackets.
        let named = match host.contains(':') && !host.starts_with('[') {
            true => format!("[{host}]:{port}"),
            false => named.to_owned(),
        };
        self.leads.get(&named).cloned().unwrap_or(named)
    }

    /// A connection to one server of the deployment, signed in.
    pub fn connect(&self, address: &str) -> Result<Connection> {
        self.sign_in(Connection::open(address)?)
    }

    fn sign_in(&self, mut connection: Connection) -> Result<Connection> {
        if let Some(password) = &self.password {
            match &self.user {
                Some(user) => connection.call(&["AUTH", user, password])?,
                None => connection.call(&["AUTH", password])?,
            };
        }
        Ok(connection)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "redis://")?;
        if let Some(password) = &self.password {
            write!(
                formatter,
                "{}:{password}@",
                self.user.as_deref().unwrap_or_default()
            )?;
        }
        write!(formatter, "{}", self.seeds.join(","))
    }
}

/// Connections to all masters of a deployment.
pub struct Client {
    endpoint: Endpoint,
    /// Masters in the order in which the deployment lists them; one for a single server.
    masters: Vec<String>,
    /// For each slot the index of its master.
    owners: Vec<usize>,
    cluster: bool,
    connections: HashMap<String, Connection>,
    /// How long an answer may take, if not as long as usual.
    patience: Option<Duration>,
}

impl Client {
    pub fn connect(endpoint: &Endpoint) -> Result<Client> {
        Client::start(endpoint, None)
    }

    /// The same for a deployment in which some servers may never answer.
    pub fn connect_impatient(endpoint: &Endpoint, patience: Duration) -> Result<Client> {
        Client::start(endpoint, Some(patience))
    }

    fn start(endpoint: &Endpoint, patience: Option<Duration>) -> Result<Client> {
        let mut client = Client {
            endpoint: endpoint.clone(),
            masters: Vec::new(),
            owners: Vec::new(),
            cluster: false,
            connections: HashMap::new(),
            patience,
        };
        client.discover()?;
        Ok(client)
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub fn is_cluster(&self) -> bool {
        self.cluster
    }

    /// The addresses of all masters that own slots.
    pub fn masters(&self) -> &[String] {
        &self.masters
    }

    /// The family of the deployment's servers.
    pub fn family(&mut self) -> Result<Family> {
        let address = self.masters[0].clone();
        let info = self.connection(&address)?.call(&["INFO", "server"])?.text();
        let field = |name: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(|value| value.trim().to_owned())
        };
        let (product, number) = match field("valkey_version") {
            Some(number) => ("valkey", number),
            None => (
                "redis",
                field("redis_version").context("INFO names no version")?,
            ),
        };
        Family::of_release(product, &number)
            .with_context(|| format!("{product} {number} is of no family that the lab knows"))
    }

    /// The connection to one server, opened at its first use.
    pub fn connection(&mut self, address: &str) -> Result<&mut Connection> {
        if !self.connections.contains_key(address) {
            let connection = Connection::open(address)?;
            if let Some(patience) = self.patience {
                connection.set_patience(patience)?;
            }
            let connection = self.endpoint.sign_in(connection)?;
            self.connections.insert(address.to_owned(), connection);
        }
        Ok(self
            .connections
            .get_mut(address)
            .expect("it was just inserted"))
    }

    /// Sends one command where its first key lives; an error reply is an error.
    pub fn call<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Result<Value> {
        let command = Command::new(arguments);
        let mut replies = self.pipeline(std::slice::from_ref(&command))?;
        replies
            .remove(0)
            .ok()
            .with_context(|| format!("the answer to {command:?}"))
    }

    /// Sends a command to every master.
    pub fn call_each_master<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Result<Vec<Value>> {
        self.masters
            .clone()
            .iter()
            .map(|address| self.connection(address)?.call(arguments))
            .collect()
    }

    /// Sends commands where their first keys live, all at once, and returns the replies in their order.
    /// Redirects are followed, one at a time; other error replies are values.
    pub fn pipeline(&mut self, commands: &[Command]) -> Result<Vec<Value>> {
        let mut by_master: Vec<Vec<usize>> = vec![Vec::new(); self.masters.len()];
        for (index, command) in commands.iter().enumerate() {
            by_master[self.owner(command)].push(index);
        }
        let masters = self.masters.clone();
        for (address, indices) in masters.iter().zip(&by_master) {
            if !indices.is_empty() {
                let connection = self.connection(address)?;
                for index in indices {
                    connection.queue(&commands[*index]);
                }
                connection.flush()?;
            }
        }
        let mut replies = vec![Value::Nil; commands.len()];
        for (address, indices) in masters.iter().zip(&by_master) {
            if !indices.is_empty() {
                let connection = self.connection(address)?;
                for index in indices {
                    replies[*index] = connection.read()?;
                }
            }
        }
        for (reply, command) in replies.iter_mut().zip(commands) {
            if reply.error().is_some_and(is_redirect) {
                *reply = self.follow(command, reply.text())?;
            }
        }
        Ok(replies)
    }

    /// Finds the master of `slot`, as last seen.
    pub fn owner_of_slot(&self, slot: usize) -> &str {
        &self.masters[if self.cluster { self.owners[slot] } else { 0 }]
    }

    /// The master that a command goes to, as last seen.
    pub fn owner_of(&self, command: &Command) -> &str {
        &self.masters[self.owner(command)]
    }

    fn owner(&self, command: &Command) -> usize {
        match command.key() {
            Some(key) if self.cluster => self.owners[slot_of(key)],
            _ => 0,
        }
    }

    fn follow(&mut self, command: &Command, mut refusal: String) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut words = refusal.split_whitespace();
            let kind = words.next().unwrap_or_default().to_owned();
            let target = words.nth(1).map(str::to_owned);
            let address = match (kind.as_str(), target) {
                ("MOVED", Some(target)) => {
                    self.discover()?;
                    self.endpoint.lead(&target)
                }
                ("ASK", Some(target)) => self.endpoint.lead(&target),
                _ => {
                    std::thread::sleep(RETRY_PAUSE);
                    self.discover()?;
                    self.masters[self.owner(command)].clone()
                }
            };
            let connection = self.connection(&address)?;
            if kind == "ASK" {
                connection.call(&["ASKING"])?;
            }
            connection.queue(command);
            connection.flush()?;
            let reply = connection.read()?;
            match reply.error() {
                Some(again) if is_redirect(again) && Instant::now() < deadline => {
                    refusal = again.to_owned();
                }
                _ => return Ok(reply),
            }
        }
    }

    /// Gives the connection to one server up: what it has not answered yet is nobody's any more.
    pub fn disconnect(&mut self, address: &str) {
        self.connections.remove(address);
    }

    /// Gives all connections up, and asks who is there.
    pub fn reconnect(&mut self) -> Result<()> {
        self.connections.clear();
        self.discover()
    }

    /// Asks the deployment for its masters and their slots.
    pub fn discover(&mut self) -> Result<()> {
        let mut reason = None;
        let known = self.masters.clone();
        for address in self.endpoint.seeds.clone().iter().chain(&known) {
            match self.discover_through(address) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.connections.remove(address);
                    // The next time others are asked first: this one may cost all the patience again.
                    self.endpoint.seeds.sort_by_key(|seed| seed == address);
                    reason = Some(error);
                }
            }
        }
        Err(reason.unwrap_or_else(|| anyhow::anyhow!("an endpoint without addresses")))
    }

    fn discover_through(&mut self, address: &str) -> Result<()> {
        let connection = self.connection(address)?;
        let info = connection.call(&["INFO", "cluster"])?.text();
        if !info.contains("cluster_enabled:1") {
            self.masters = vec![address.to_owned()];
            self.cluster = false;
            return Ok(());
        }
        let ranges = connection.call(&["CLUSTER", "SLOTS"])?;
        let (mut masters, mut owners) = (Vec::new(), vec![0; SLOT_COUNT]);
        for range in ranges.array() {
            let [first, last, master, ..] = range.array() else {
                bail!("CLUSTER SLOTS answered {range:?}");
            };
            // A node that has met no other knows its port only, and so say those whose cluster wants it so: it is at the host
            // that was asked.
            let host = match master.array().first().map(Value::text) {
                Some(host) if !["", "?"].contains(&host.as_str()) => host,
                _ => address
                    .rsplit_once(':')
                    .map_or(address, |(host, _)| host)
                    .to_owned(),
            };
            let port = master.array().get(1).map(Value::text).unwrap_or_default();
            let master = self.endpoint.lead(&format!("{host}:{port}"));
            let index = masters
                .iter()
                .position(|known| *known == master)
                .unwrap_or_else(|| {
                    masters.push(master);
                    masters.len() - 1
                });
            let (first, last) = (first.integer(), last.integer());
            let (Some(first), Some(last)) = (first, last) else {
                bail!("CLUSTER SLOTS answered {range:?}");
            };
            owners[usize::try_from(first)?..=usize::try_from(last)?].fill(index);
        }
        if masters.is_empty() {
            bail!("{address} knows no slots yet");
        }
        self.masters = masters;
        self.owners = owners;
        self.cluster = true;
        Ok(())
    }
}

/// Whether a refusal says that another server, or the same one later, takes the command.
pub fn is_redirect(error: &str) -> bool {
    [
        "MOVED ",
        "ASK ",
        "TRYAGAIN",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
    ]
    .iter()
    .any(|prefix| error.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_follow_the_hash_tag() {
        assert_eq!(slot_of(b"123456789"), 0x31c3);
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
        assert_eq!(
            slot_of(b"foo{}{bar}"),
            usize::from(crc16::State::<crc16::XMODEM>::calculate(b"foo{}{bar}")) % SLOT_COUNT
        );
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
    }

    #[test]
    fn endpoints_are_read_with_and_without_credentials() {
        let plain = Endpoint::parse("redis://127.0.0.1:7000,127.0.0.1:7001").unwrap();
        assert_eq!(plain.seeds, ["127.0.0.1:7000", "127.0.0.1:7001"]);
        assert_eq!((plain.user, plain.password), (None, None));
        let signed = Endpoint::parse("redis://:se:cret@h:1").unwrap();
        assert_eq!(signed.user, None);
        assert_eq!(signed.password.as_deref(), Some("se:cret"));
        assert_eq!(signed.to_string(), "redis://:se:cret@h:1");
        assert!(Endpoint::parse("http://h:1").is_err());
    }
}
