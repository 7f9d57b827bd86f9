//! Nodes that are elsewhere than they say, that say it in another way, or that move: address translation, host names, unknown
//! endpoints, IPv6, announcements that change, restarts at other addresses.
//!
//! Writers go on where they can, and source and target are compared key by key at the end. What a cluster announces here
//! leads nowhere, or to where the server's own list of clients gives a mistake away.

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Cluster, ClusterOptions, CompareOptions, Connection, Endpoint, Family, LoadOptions, Proxy,
    Server, ServerOptions, Slotstream, Version, WriterOptions, Writers, client::SLOT_COUNT,
    client::slot_of, compare, load, version_or_skip, wait_until,
};
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const LOADED_KEYS: usize = 1_000;
const COMMANDS_BETWEEN: u64 = 1_000;
/// 6.0 sends how long a key still lives.
const RELATIVE_TTL_TOLERANCE: Duration = Duration::from_secs(60);
/// An address of the loopback network at which a server listens that should not be used.
const ELSEWHERE: &str = "127.9.9.9";

/// A cluster, where it really is, and where its clients are to be sent instead of where it says.
struct Side {
    cluster: Cluster,
    leads: HashMap<String, String>,
}

impl Side {
    fn plain(version: &Version) -> Result<Side> {
        Side::with(version, |_, _| Ok(None))
    }

    /// Three masters; `adapt` is given the port of each, sets its options, and says what it announces if that leads nowhere.
    fn with(
        version: &Version,
        mut adapt: impl FnMut(&mut ServerOptions, u16) -> Result<Option<String>>,
    ) -> Result<Side> {
        let mut leads = HashMap::new();
        let options = ClusterOptions {
            server: ServerOptions {
                diskless: true,
                ..ServerOptions::default()
            },
            slots: None,
        };
        let cluster = Cluster::start_adapted(version, 3, 0, options, |server| {
            let port = lab::server::free_port()?;
            server.port = Some(port);
            if let Some(announced) = adapt(server, port)? {
                leads.insert(announced, format!("127.0.0.1:{port}"));
            }
            Ok(())
        })?;
        Ok(Side { cluster, leads })
    }

    /// Where it is for tests. The last node is asked first: it moves last, if at all.
    fn endpoint(&self) -> Endpoint {
        let mut endpoint = self.cluster.all_nodes();
        endpoint.seeds.reverse();
        endpoint.leads.clone_from(&self.leads);
        endpoint
    }

    fn master(&self, index: usize) -> &Server {
        &self.cluster.masters()[index]
    }

    /// A hash tag whose keys the first master has.
    fn tag(&self) -> Result<String> {
        let client = lab::Client::connect(&self.endpoint())?;
        let port = format!(":{}", self.master(0).port());
        let owned = |tag: &String| {
            client
                .owner_of_slot(slot_of(tag.as_bytes()))
                .ends_with(&port)
        };
        let mut tags = (0..SLOT_COUNT).map(|number| format!("tag{number}"));
        tags.find(owned).context("a master without slots")
    }

    /// Moves the slot of a tag, which the first master has, to the second.
    fn move_slot_of(&self, tag: &str, half_way: impl FnOnce() -> Result<()>) -> Result<()> {
        let (giver, taker) = (self.master(0), self.master(1));
        let slot = slot_of(tag.as_bytes()).to_string();
        let set_slot = |node: &Server, state: &str, id: &str| {
            node.connect()?
                .call(&["CLUSTER", "SETSLOT", &slot, state, id])
        };
        let (from, to) = (id_of(giver)?, id_of(taker)?);
        set_slot(taker, "IMPORTING", &from)?;
        set_slot(giver, "MIGRATING", &to)?;
        half_way()?;
        let mut connection = giver.connect()?;
        loop {
            let keys = connection.call(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"])?;
            let Some(key) = keys.array().first().and_then(lab::Value::bytes) else {
                break;
            };
            let (host, port) = (taker.host().as_bytes(), taker.port().to_string());
            connection.call(&[
                b"MIGRATE",
                host,
                port.as_bytes(),
                key,
                b"0",
                b"5000",
                b"REPLACE",
            ])?;
        }
        for node in [taker, giver, self.master(2)] {
            set_slot(node, "NODE", &to)?;
        }
        Ok(())
    }
}

/// Lines by which a node announces an address and a port, reachable there for the other nodes alone.
fn announced(host: &str, port: u16, bus_port: u16) -> Vec<String> {
    vec![
        format!("bind 127.0.0.1 {ELSEWHERE}"),
        format!("cluster-announce-ip {host}"),
        format!("cluster-announce-port {port}"),
        format!("cluster-announce-bus-port {bus_port}"),
    ]
}

impl Side {
    fn of_source(rig: &mut Rig) -> &mut Side {
        &mut rig.source
    }

    fn of_target(rig: &mut Rig) -> &mut Side {
        &mut rig.target
    }
}

/// A replication under way, with writers.
struct Rig {
    source: Side,
    target: Side,
    sync: Slotstream,
    writers: Option<Writers>,
}

/// Runs `act` between the start and the comparison.
fn while_replicating(
    family: Family,
    sides: impl FnOnce(&Version) -> Result<(Side, Side)>,
    arguments: impl FnOnce(&Side, &Side) -> Vec<String>,
    act: impl FnOnce(&mut Rig) -> Result<()>,
) -> Result<()> {
    let Some(version) = version_or_skip(family) else {
        return Ok(());
    };
    let (source, target) = sides(&version)?;
    let arguments = arguments(&source, &target);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    load(&mut lab::Client::connect(&source.endpoint())?, &loaded())?;
    // Of each side one node is named: all others are found by what it says.
    let [from, to] = [&source, &target].map(|side| side.cluster.endpoint());
    let mut sync = Slotstream::start(program(), &from, &to, &arguments)?;
    sync.set_source(&source.endpoint());
    let mut rig = Rig {
        source,
        target,
        sync,
        writers: None,
    };
    let result = rig.run(act);
    result.with_context(|| {
        let status = rig.sync.status();
        let status = status.map_or_else(|error| format!("{error:#}"), |json| format!("{json:#}"));
        format!("{version}\nstatus: {status}\nlog: {}", rig.sync.output())
    })
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slotstream"))
}

fn both_plain(version: &Version) -> Result<(Side, Side)> {
    Ok((Side::plain(version)?, Side::plain(version)?))
}

fn no_arguments(_: &Side, _: &Side) -> Vec<String> {
    Vec::new()
}

fn loaded() -> LoadOptions {
    LoadOptions {
        keys: LOADED_KEYS,
        big_keys: false,
        ..LoadOptions::default()
    }
}

impl Rig {
    fn run(&mut self, act: impl FnOnce(&mut Rig) -> Result<()>) -> Result<()> {
        self.write()?;
        self.sync.wait_until_caught_up(PATIENCE)?;
        self.write_more()?;
        act(self)?;
        self.write()?;
        self.write_more()?;
        self.stop_writing()?;
        self.sync.set_source(&self.source.endpoint());
        self.sync.wait_until_settled(PATIENCE)?;
        ensure!(self.sum("errors.divergence")? == 0, "a divergence");
        let options = CompareOptions {
            relative_ttl_tolerance: RELATIVE_TTL_TOLERANCE,
            ..CompareOptions::default()
        };
        let diff = compare(&self.source.endpoint(), &self.target.endpoint(), &options)?;
        ensure!(diff.is_equal() && diff.keys > LOADED_KEYS / 2, "{diff}");
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        if self.writers.is_none() {
            let options = WriterOptions {
                seed: u64::from(std::process::id()),
                threads: 1,
                key_groups: 50,
                loaded: Some(loaded()),
                short_lives: false,
                ..WriterOptions::default()
            };
            self.writers = Some(Writers::start(&self.source.endpoint(), &options)?);
        }
        Ok(())
    }

    fn stop_writing(&mut self) -> Result<()> {
        if let Some(writers) = self.writers.take() {
            let report = writers.stop()?;
            ensure!(report.errors.is_empty(), "{report}");
        }
        Ok(())
    }

    fn write_more(&self) -> Result<()> {
        let writers = self.writers.as_ref().context("nobody writes")?;
        let goal = writers.commands_so_far() + COMMANDS_BETWEEN;
        wait_until(PATIENCE, "more writes", || {
            Ok(writers.commands_so_far() >= goal)
        })
    }

    fn sum(&self, field: &str) -> Result<u64> {
        let status = self.sync.status()?;
        let lanes = status["lanes"].as_array().context("no lanes")?;
        let count = |lane: &serde_json::Value| match field.strip_prefix("errors.") {
            Some(error) => lane["errors"][error].as_u64(),
            None => lane[field].as_u64(),
        };
        Ok(lanes.iter().filter_map(count).sum())
    }

    fn wait_for_sum(&self, field: &str, more_than: u64) -> Result<()> {
        wait_until(PATIENCE, &format!("{field} above {more_than}"), || {
            Ok(self.sum(field)? > more_than)
        })
    }

    /// Waits until the lanes follow these addresses, all of them streaming.
    fn wait_until_at(&self, addresses: &[String]) -> Result<()> {
        wait_until(PATIENCE, &format!("lanes at {addresses:?}"), || {
            let status = self.sync.status()?;
            let lanes = status["lanes"].as_array().context("no lanes")?;
            Ok(addresses.iter().all(|address| {
                lanes
                    .iter()
                    .any(|lane| lane["source"] == address.as_str() && lane["state"] == "streaming")
            }))
        })
    }

    /// Each master was copied once, and followed without a gap ever since.
    fn copied_once(&self) -> Result<()> {
        let copies = self.sum("full_syncs")?;
        ensure!(
            copies == 3,
            "{copies} copies instead of one for each master"
        );
        Ok(())
    }

    /// A slot of the target moves, and something is written there meanwhile: whoever writes it is sent elsewhere.
    fn redirect(&self) -> Result<()> {
        let mut client = lab::Client::connect(&self.source.endpoint())?;
        let mut target = lab::Client::connect(&self.target.endpoint())?;
        let tag = self.target.tag()?;
        let asked = self.sum("errors.ask")?;
        self.target.move_slot_of(&tag, || {
            client.call(&["SET", &format!("{{{tag}}}asked"), "1"])?;
            self.wait_for_sum("errors.ask", asked)
        })?;
        client.call(&["SET", &format!("{{{tag}}}moved"), "1"])?;
        wait_until(PATIENCE, "what was written behind the move", || {
            let found = target.call(&["GET", &format!("{{{tag}}}moved")])?;
            Ok(found.text() == "1")
        })
    }

    /// A slot of the source moves: its keys are listed on both sides, and copied.
    fn reshard(&self) -> Result<()> {
        let tag = self.source.tag()?;
        let mut client = lab::Client::connect(&self.source.endpoint())?;
        client.call(&["SET", &format!("{{{tag}}}resharded"), "1"])?;
        self.source.move_slot_of(&tag, || Ok(()))?;
        wait_until(PATIENCE, "the slot that moved to be copied", || {
            let status = self.sync.status()?;
            let lanes = status["lanes"].as_array().context("no lanes")?;
            let frozen = status["frozen"].as_array().context("no slots")?;
            let copied = |lane: &serde_json::Value| lane["slots"]["copied"].as_u64() > Some(0);
            Ok(frozen.is_empty() && lanes.iter().any(copied))
        })
    }

    /// Closes all connections of the program to a master, and waits until it is back.
    fn disconnect(&self) -> Result<()> {
        for master in self.source.cluster.masters() {
            let resumed = self.sum("partial_syncs")?;
            master
                .connect()?
                .call(&["CLIENT", "KILL", "TYPE", "replica"])?;
            self.wait_for_sum("partial_syncs", resumed)?;
        }
        for master in self.target.cluster.masters() {
            let lost = self.sum("errors.target_lost")?;
            let kill = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"];
            master.connect()?.call(&kill)?;
            self.wait_for_sum("errors.target_lost", lost)?;
        }
        Ok(())
    }
}

fn id_of(node: &Server) -> Result<String> {
    Ok(node.connect()?.call(&["CLUSTER", "MYID"])?.text())
}

/// Nobody but other nodes has come by the address that is announced. Servers tell it since 6.2.
fn nobody_came_elsewhere(side: &Side) -> Result<()> {
    for master in side.cluster.masters() {
        let clients = master.connect()?.call(&["CLIENT", "LIST"])?.text();
        let came = format!("laddr={ELSEWHERE}:");
        ensure!(!clients.contains(&came), "{clients}");
    }
    Ok(())
}

/// Both clusters announce the same address. At the source each node has a port on which nobody listens, and a rule of its
/// own; for the target one rule without ports serves all.
fn translated(family: Family) -> Result<()> {
    let sides = |version: &Version| {
        let source = Side::with(version, |server, port| {
            let nobody = lab::server::free_port()?;
            server.extra = announced(ELSEWHERE, nobody, port + 10_000);
            Ok(Some(format!("{ELSEWHERE}:{nobody}")))
        })?;
        let target = Side::with(version, |server, port| {
            server.extra = match family {
                // These know addresses that are meant for clients only.
                Family::Valkey80 | Family::Valkey81 | Family::Valkey9 => {
                    vec![format!("cluster-announce-client-ipv4 {ELSEWHERE}")]
                }
                _ => announced(ELSEWHERE, port, port + 10_000),
            };
            Ok(Some(format!("{ELSEWHERE}:{port}")))
        })?;
        Ok((source, target))
    };
    let rules = |source: &Side, _: &Side| {
        let mut arguments = vec![
            "--rewrite-address".to_owned(),
            format!("{ELSEWHERE}=127.0.0.1"),
            "--rewrite-address".to_owned(),
            "192.0.2.77=127.0.0.1".to_owned(),
        ];
        for (announced, real) in &source.leads {
            arguments.push("--source-rewrite-address".to_owned());
            arguments.push(format!("{announced}={real}"));
        }
        arguments
    };
    while_replicating(family, sides, rules, |rig| {
        rig.redirect()?;
        rig.disconnect()?;
        rig.write_more()?;
        if family != Family::Redis60 {
            nobody_came_elsewhere(&rig.source)?;
            nobody_came_elsewhere(&rig.target)?;
        }
        bookkeeping_is_found(&rig.target)?;
        let log = rig.sync.output();
        let unused: Vec<_> = log
            .lines()
            .filter(|l| l.contains("matches no node"))
            .collect();
        ensure!(
            unused.len() == 1 && unused[0].contains("192.0.2.77"),
            "{unused:?}"
        );
        rig.copied_once()
    })
}

/// What cleans a target finds it behind NAT, too.
fn bookkeeping_is_found(target: &Side) -> Result<()> {
    let rule = format!("{ELSEWHERE}=127.0.0.1");
    let output = Command::new(program())
        .args(["clean", &target.cluster.uri(), "--rewrite-address", &rule])
        .args(["--dry-run", "--force"])
        .output()?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(told.contains("would be removed"), "{output:?}");
    Ok(())
}

/// `MOVED 1 localhost:7000`: the IP addresses, which `CLUSTER NODES` shows all the same, are not meant for clients.
fn host_names_preferred(family: Family) -> Result<()> {
    preferring(family, "hostname", &["cluster-announce-hostname localhost"])
}

/// `MOVED 1 :7000`: clients stay with the host that they asked.
fn unknown_endpoints_preferred(family: Family) -> Result<()> {
    preferring(family, "unknown-endpoint", &[])
}

fn preferring(family: Family, preferred: &str, lines: &[&str]) -> Result<()> {
    let side = |version: &Version| {
        Side::with(version, |server, port| {
            server.extra = announced(ELSEWHERE, port, port + 10_000);
            let lines = lines.iter().map(|line| (*line).to_owned());
            server.extra.extend(lines);
            let preferred = format!("cluster-preferred-endpoint-type {preferred}");
            server.extra.push(preferred);
            Ok(None)
        })
    };
    let sides = |version: &Version| Ok((side(version)?, side(version)?));
    while_replicating(family, sides, no_arguments, |rig| {
        rig.redirect()?;
        rig.disconnect()?;
        rig.write_more()?;
        nobody_came_elsewhere(&rig.source)?;
        nobody_came_elsewhere(&rig.target)?;
        rig.copied_once()
    })
}

/// Nodes get other host names while they run; both lead to them.
fn host_names_that_change(family: Family) -> Result<()> {
    let side = |version: &Version| {
        Side::with(version, |server, _| {
            server.extra = vec![
                "cluster-announce-hostname localhost".to_owned(),
                "cluster-preferred-endpoint-type hostname".to_owned(),
            ];
            Ok(None)
        })
    };
    let sides = |version: &Version| Ok((side(version)?, side(version)?));
    while_replicating(family, sides, no_arguments, |rig| {
        for side in [&rig.source, &rig.target] {
            for master in side.cluster.masters() {
                // To resolvers a short form of 127.0.0.1.
                set(&mut master.connect()?, "cluster-announce-hostname", "127.1")?;
            }
        }
        let ports = rig.source.cluster.masters().iter().map(Server::port);
        let names: Vec<String> = ports.map(|port| format!("127.1:{port}")).collect();
        rig.wait_until_at(&names)?;
        rig.redirect()?;
        rig.disconnect()?;
        rig.copied_once()
    })
}

/// `MOVED 1 ?:7000`: host names are preferred, and there are none. Then IP addresses have to do.
fn host_names_preferred_without_any(family: Family) -> Result<()> {
    let side = |version: &Version| {
        Side::with(version, |server, _| {
            server.extra = vec!["cluster-preferred-endpoint-type hostname".to_owned()];
            Ok(None)
        })
    };
    let sides = |version: &Version| Ok((side(version)?, side(version)?));
    while_replicating(family, sides, no_arguments, |rig| {
        rig.redirect()?;
        rig.disconnect()?;
        rig.copied_once()
    })
}

/// A name in place of the announced IP address, which every version takes.
fn names_announced_as_addresses(family: Family) -> Result<()> {
    let side = |version: &Version| {
        Side::with(version, |server, port| {
            server.extra = announced("localhost", port, port + 10_000);
            Ok(None)
        })
    };
    let sides = |version: &Version| Ok((side(version)?, side(version)?));
    while_replicating(family, sides, no_arguments, |rig| {
        rig.redirect()?;
        rig.disconnect()?;
        rig.copied_once()
    })
}

/// `redis://[::1]:7000`, `MOVED 1 ::1:7000`.
fn ipv6(family: Family) -> Result<()> {
    let side = |version: &Version| {
        Side::with(version, |server, _| {
            server.host = Some("::1");
            Ok(None)
        })
    };
    let sides = |version: &Version| Ok((side(version)?, side(version)?));
    while_replicating(family, sides, no_arguments, |rig| {
        rig.redirect()?;
        rig.disconnect()?;
        rig.copied_once()
    })
}

/// What nodes announce changes while they run, to where proxies listen; the former addresses are not used any more.
fn announcements_that_change(family: Family) -> Result<()> {
    while_replicating(family, both_plain, no_arguments, |rig| {
        let mut proxies = Vec::new();
        for side in [&mut rig.source, &mut rig.target] {
            for index in 0..3 {
                let address = side.master(index).address();
                let proxy = Proxy::start(&address)?;
                announce(
                    &mut side.master(index).connect()?,
                    side.master(index),
                    &proxy,
                )?;
                side.leads.insert(proxy.address(), address);
                proxies.push(proxy);
            }
        }
        rig.sync.set_source(&Endpoint::default());
        let at: Vec<String> = proxies[..3].iter().map(Proxy::address).collect();
        rig.wait_until_at(&at)?;
        wait_until(PATIENCE, "the watcher to ask the new addresses", || {
            Ok(proxies.iter().all(|proxy| proxy.connections() > 0))
        })?;
        let before: Vec<u64> = proxies.iter().map(Proxy::connections).collect();
        rig.disconnect()?;
        rig.write_more()?;
        wait_until(PATIENCE, "the lanes to use the new addresses", || {
            let now = proxies.iter().map(Proxy::connections);
            Ok(before.iter().zip(now).all(|(before, now)| now > *before))
        })?;
        rig.copied_once()?;
        // The proxies end with this test; what follows needs none.
        for side in [&rig.source, &rig.target] {
            for server in side.cluster.masters() {
                let port = server.port().to_string();
                set(&mut server.connect()?, "cluster-announce-port", &port)?;
            }
        }
        rig.wait_until_at(&addresses(&rig.source))
    })
}

fn announce(connection: &mut Connection, server: &Server, proxy: &Proxy) -> Result<()> {
    let bus_port = (server.port() + 10_000).to_string();
    set(connection, "cluster-announce-bus-port", &bus_port)?;
    set(
        connection,
        "cluster-announce-port",
        &proxy.port().to_string(),
    )
}

fn set(connection: &mut Connection, name: &str, value: &str) -> Result<()> {
    connection.call(&["CONFIG", "SET", name, value])?;
    Ok(())
}

fn addresses(side: &Side) -> Vec<String> {
    side.cluster.masters().iter().map(Server::address).collect()
}

/// One node after the other is started again at another port, those that the command line named among them.
fn every_node_at_another_port(family: Family) -> Result<()> {
    while_replicating(family, both_plain, often_recorded, |rig| {
        for index in 0..3 {
            for side in [Side::of_source, Side::of_target] {
                rig.quiet()?;
                let node = &mut side(rig).cluster.nodes_mut()[index];
                node.end()?;
                node.start_at("127.0.0.1", lab::server::free_port()?)?;
                rig.go_on(family)?;
            }
        }
        rig.disconnect()?;
        rig.reshard()
    })
}

/// A master of each side is started again with another IP address; of itself it goes on telling the former one.
fn another_ip_address(family: Family) -> Result<()> {
    while_replicating(family, both_plain, often_recorded, |rig| {
        for side in [Side::of_source, Side::of_target] {
            rig.quiet()?;
            let node = &mut side(rig).cluster.nodes_mut()[0];
            let port = node.port();
            node.end()?;
            node.start_at("127.0.0.2", port)?;
            rig.go_on(family)?;
        }
        rig.disconnect()
    })
}

/// Two masters of each side change places: at the address of each the other one answers.
fn addresses_changed_over(family: Family) -> Result<()> {
    while_replicating(family, both_plain, often_recorded, |rig| {
        for side in [Side::of_source, Side::of_target] {
            rig.quiet()?;
            let [one, other, ..] = side(rig).cluster.nodes_mut() else {
                bail!("three nodes");
            };
            let ports = [one.port(), other.port()];
            one.end()?;
            other.end()?;
            one.start_at("127.0.0.1", ports[1])?;
            other.start_at("127.0.0.1", ports[0])?;
            // They take each other's address for their own, and may need to be told.
            for node in side(rig).cluster.nodes() {
                for port in ports.map(|port| port.to_string()) {
                    node.connect()?
                        .call(&["CLUSTER", "MEET", "127.0.0.1", &port])?;
                }
            }
            rig.go_on(family)?;
        }
        rig.disconnect()
    })
}

/// What the target is told of how far it is keeps up with the source's changing histories.
fn often_recorded(_: &Side, _: &Side) -> Vec<String> {
    ["--checkpoint-every", "100"].map(str::to_owned).into()
}

impl Rig {
    /// Nobody writes, and all is applied.
    fn quiet(&mut self) -> Result<()> {
        self.stop_writing()?;
        self.sync.wait_until_applied(PATIENCE)
    }

    /// Waits until both clusters are whole again and the lanes with their masters, and writes on. Since 7.0 a master that was
    /// ended as it should be goes on where it was; before, it begins a history.
    fn go_on(&mut self, family: Family) -> Result<()> {
        for side in [&self.source, &self.target] {
            let mut expected = addresses(side);
            expected.sort();
            wait_until(PATIENCE, "the cluster to be whole", || {
                for node in side.cluster.nodes() {
                    let mut connection = node.connect()?;
                    let state = lab::cluster::cluster_info(&mut connection, "cluster_state")?;
                    if state != "ok" {
                        bail!("{} says {state}", node.address());
                    }
                }
                let client = lab::Client::connect(&side.endpoint())?;
                let mut known = client.masters().to_vec();
                known.sort();
                Ok(known == expected)
            })?;
        }
        self.sync.set_source(&self.source.endpoint());
        self.wait_until_at(&addresses(&self.source))?;
        self.write()?;
        self.write_more()?;
        match family {
            Family::Redis60 => Ok(()),
            _ => self.copied_once(),
        }
    }
}

/// The tests of one family of servers.
macro_rules! family {
    ($name:ident, $family:expr, $($test:ident),+) => {
        mod $name {
            use super::*;
            $(
                #[test]
                fn $test() -> Result<()> {
                    super::$test($family)
                }
            )+
        }
    };
}

family!(
    redis_6_0,
    Family::Redis60,
    translated,
    names_announced_as_addresses,
    ipv6,
    announcements_that_change,
    every_node_at_another_port
);
family!(
    redis_7_0,
    Family::Redis70,
    translated,
    host_names_preferred,
    host_names_preferred_without_any,
    host_names_that_change,
    unknown_endpoints_preferred,
    names_announced_as_addresses,
    ipv6,
    announcements_that_change,
    every_node_at_another_port,
    another_ip_address,
    addresses_changed_over
);
family!(
    redis_8_0,
    Family::Redis80,
    translated,
    host_names_preferred,
    unknown_endpoints_preferred,
    ipv6,
    every_node_at_another_port,
    another_ip_address
);
family!(
    valkey_8_0,
    Family::Valkey80,
    translated,
    host_names_preferred
);
family!(
    valkey_8_1,
    Family::Valkey81,
    translated,
    unknown_endpoints_preferred
);
family!(
    valkey_9,
    Family::Valkey9,
    translated,
    host_names_preferred,
    host_names_that_change,
    unknown_endpoints_preferred,
    ipv6,
    announcements_that_change,
    every_node_at_another_port,
    another_ip_address,
    addresses_changed_over
);
