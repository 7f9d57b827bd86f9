//! What both deployments allow, checked before the first lane starts, so that a refusal has written nothing.
//!
//! Permissions are probed without effect. `ACL DRYRUN` (7.0 and later, where the user may run it) tells about `PSYNC`;
//! where it cannot, the first lane's own `PSYNC` does. Writes are probed inside `MULTI ... DISCARD`: every version checks
//! permissions and the state of the server when a command is queued.

use super::client::Client;
use crate::checkpoint::{LinkName, record_key};
use crate::command::rewrite::{Features, Lack};
use crate::engine::options::{Deployment, OnExisting, OnUnsupported, SyncOptions};
use crate::engine::watched;
use crate::fault::{Fault, FaultKind, Side};
use crate::slot::{Slot, shortest_tag};
use crate::topology::{Credentials, Role, ServerInfo, Value};

/// Things the user should know although they stop nothing.
pub type Notices = Vec<String>;

/// All checks that take no connection, then those that do.
pub fn check(
    options: &SyncOptions,
    source: &Deployment,
    target: &Deployment,
) -> Result<Notices, Fault> {
    let notices = check_deployments(options, source, target)?;
    for shard in source.topology.serving() {
        let credentials = &options.source.credentials;
        let node = &shard.master;
        let mut client = Client::connect(Side::Source, &node.address, node.port, credentials)?;
        probe_source(&mut client)?;
    }
    let credentials = &options.target.credentials;
    probe_targets(target, credentials, |client, slot| {
        probe_target(client, slot)?;
        probe_bookkeeping(client, &options.link, slot)
    })?;
    Ok(notices)
}

/// The checks of a target that is written to from elsewhere than a live source.
pub fn check_target(target: &Deployment, credentials: &Credentials) -> Result<(), Fault> {
    refuse_replica_target(target)?;
    refuse_missing_slots(target)?;
    probe_targets(target, credentials, probe_target)
}

/// Has `probe` look at every master that owns slots, with one of them.
fn probe_targets(
    target: &Deployment,
    credentials: &Credentials,
    probe: impl Fn(&mut Client, Slot) -> Result<(), Fault>,
) -> Result<(), Fault> {
    for shard in target.topology.serving() {
        let node = &shard.master;
        let mut client = Client::connect(Side::Target, &node.address, node.port, credentials)?;
        probe(&mut client, shard.slots.iter().next().unwrap_or(0))?;
    }
    Ok(())
}

/// What follows from what the servers said about themselves.
pub fn check_deployments(
    options: &SyncOptions,
    source: &Deployment,
    target: &Deployment,
) -> Result<Notices, Fault> {
    let mut notices = Notices::new();
    refuse_same(source, target)?;
    refuse_replica_target(target)?;
    if source.topology.serving().next().is_none() {
        let text = "the source cluster has no master with slots; create the cluster first (redis-cli --cluster create)";
        return Err(Fault::new(FaultKind::NoTopology, text));
    }
    refuse_missing_slots(target)?;
    check_databases(options, source, target)?;
    check_existing(options, target, &mut notices)?;
    check_supported(options.on_unsupported, source, target, &mut notices)?;
    notice_eviction(target, &mut notices);
    Ok(notices)
}

/// The same servers on both sides, or a replica of the other side, would feed each other.
fn refuse_same(source: &Deployment, target: &Deployment) -> Result<(), Fault> {
    let run_ids = |side: &Deployment| -> Vec<String> {
        let servers = side.servers.iter();
        servers.map(|(_, server)| server.run_id.clone()).collect()
    };
    let in_target = run_ids(target);
    let same_process = run_ids(source).iter().any(|id| in_target.contains(id));
    let node_ids: Vec<&str> = target
        .topology
        .nodes()
        .map(|node| node.id.as_str())
        .collect();
    let same_cluster = source.is_cluster()
        && target.is_cluster()
        && source
            .topology
            .nodes()
            .any(|node| node_ids.contains(&node.id.as_str()));
    // A replica has the replication id of its master: one side replicates from the other already.
    let replids = |side: &Deployment| -> Vec<String> {
        let servers = side.servers.iter();
        servers.map(|(_, server)| server.replid.clone()).collect()
    };
    let in_target = replids(target);
    let chained = replids(source).iter().any(|id| in_target.contains(id));
    if same_process || same_cluster || chained {
        let text = "source and target are the same deployment, or one is a replica of the other: every write \
                    would come back; name another target";
        return Err(Fault::new(FaultKind::SameDeployment, text));
    }
    Ok(())
}

fn refuse_missing_slots(target: &Deployment) -> Result<(), Fault> {
    let missing = target.topology.missing_slots();
    if missing.is_empty() {
        return Ok(());
    }
    let text = format!(
        "slots {missing} of the target cluster have no master; assign them first (redis-cli --cluster fix)"
    );
    Err(Fault::new(FaultKind::ClusterDown, text))
}

/// A write to a replica, where it is taken at all, is lost with the next sync from its master.
fn refuse_replica_target(target: &Deployment) -> Result<(), Fault> {
    for shard in target.topology.serving() {
        let Some(server) = target.server(&shard.master.id) else {
            continue;
        };
        if server.role != Role::Replica {
            continue;
        }
        let name = shard.master.name();
        let how = match server.replica_read_only {
            true => "a read-only replica",
            false => "a replica",
        };
        let fix = match &server.master {
            Some((host, port)) => {
                format!(
                    "name its master {}",
                    crate::topology::uri::host_port(host, *port)
                )
            }
            None => "name its master".into(),
        };
        let text = format!("target {name} is {how}; {fix}, or REPLICAOF NO ONE");
        return Err(Fault::new(FaultKind::TargetIsReplica, text));
    }
    Ok(())
}

fn check_databases(
    options: &SyncOptions,
    source: &Deployment,
    target: &Deployment,
) -> Result<(), Fault> {
    for (_, server) in &source.servers {
        for (database, keys) in &server.keyspace {
            if *keys > 0 {
                let into = target.topology.kind;
                options.database_map.destination(*database, into)?;
            }
        }
    }
    Ok(())
}

fn check_existing(
    options: &SyncOptions,
    target: &Deployment,
    notices: &mut Notices,
) -> Result<(), Fault> {
    let keys = target.keys();
    match (keys, options.on_existing) {
        (0, _) => Ok(()),
        // An earlier start of the same link was allowed.
        _ if target.bookkeeping.records => Ok(()),
        (_, OnExisting::Keep) if options.mark => {
            notices.push(format!(
                "the target holds {keys} keys already: they are kept, and where the source has a key of the same name, the \
                 target's value stays (--mark)"
            ));
            Ok(())
        }
        (_, OnExisting::Keep) => {
            notices.push(format!(
                "the target holds {keys} keys already: they are kept, and overwritten where the source has a key of the \
                 same name (--on-existing refuse would have stopped here, replace removes all that the source lacks)"
            ));
            Ok(())
        }
        (_, OnExisting::Replace) => {
            notices.push(format!(
                "the target holds {keys} keys: those of its that the source does not have will be REMOVED once everything is \
                 copied (--on-existing replace)"
            ));
            Ok(())
        }
        (_, OnExisting::Refuse) => {
            let text = format!(
                "the target holds {keys} keys already and --on-existing is refuse; empty it (FLUSHALL) or use --on-existing keep or replace"
            );
            Err(Fault::new(FaultKind::TargetNotEmpty, text))
        }
    }
}

/// What the source tells about data that the target cannot take.
fn check_supported(
    on_unsupported: OnUnsupported,
    source: &Deployment,
    target: &Deployment,
    notices: &mut Notices,
) -> Result<(), Fault> {
    let lacking = watched(source, target);
    let sum = |count: fn(&ServerInfo) -> u64| {
        let servers = source.servers.iter();
        servers.map(|(_, server)| count(server)).sum::<u64>()
    };
    let kinds = [
        (
            Features::FIELD_TTL,
            sum(|server| server.hashes_with_field_ttl),
            "hashes with fields that expire",
            Lack::FieldTtl,
        ),
        (
            Features::REDIS_7_0,
            sum(|server| server.function_libraries),
            "function libraries",
            Lack::Functions,
        ),
    ];
    for (feature, count, things, lack) in kinds {
        if count == 0 || !lacking.meets(feature) {
            continue;
        }
        let cause = format!(
            "the source has {count} {things}, and the target knows no {}",
            lack.name()
        );
        if on_unsupported == OnUnsupported::Stop {
            let text =
                format!("{cause}; use a newer target, or --on-unsupported drop to leave them out");
            return Err(Fault::new(FaultKind::Unsupported, text));
        }
        notices.push(format!("{cause}: left out"));
    }
    Ok(())
}

fn notice_eviction(target: &Deployment, notices: &mut Notices) {
    let evicts = |server: &ServerInfo| {
        server.maxmemory > 0 && !matches!(server.maxmemory_policy.as_str(), "" | "noeviction")
    };
    if let Some((_, server)) = target.servers.iter().find(|(_, server)| evicts(server)) {
        notices.push(format!(
            "the target evicts keys when full (maxmemory-policy {}): evicted keys will be missing; noeviction keeps it exact",
            server.maxmemory_policy
        ));
    }
}

/// Whether the user may attach as a replica, as far as the server tells.
fn probe_source(client: &mut Client) -> Result<(), Fault> {
    let Ok(user) = client.text(&["ACL", "WHOAMI"]) else {
        return Ok(());
    };
    let needed: [&[&str]; 3] = [
        &["psync", "?", "-1"],
        &["replconf", "listening-port", "1"],
        &["ping"],
    ];
    for command in needed {
        let mut args = vec!["ACL", "DRYRUN", &user];
        args.extend(command);
        match client.ask(&args)? {
            Value::Status(_) => {}
            // The refusal is an ordinary text. An error means that DRYRUN is unknown or not allowed.
            Value::Bulk(_) => {
                let reply = format!("NOPERM no permission to run the '{}' command", command[0]);
                return Err(client.reply_fault(&reply));
            }
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Whether the user may write, and the server takes writes. `slot` is one of this server.
fn probe_target(client: &mut Client, slot: Slot) -> Result<(), Fault> {
    let key = &format!("{{{}}}", shortest_tag(slot));
    let commands: [&[&str]; 7] = [
        &["RESTORE", key, "0", "", "REPLACE", "ABSTTL"],
        &["SET", key, ""],
        &["XADD", key, "1-1", "a", "b"],
        &["DEL", key],
        &["PEXPIREAT", key, "1"],
        &["PTTL", key],
        &["EVAL", "return 0", "1", key],
    ];
    match refusal(client, &commands)? {
        Some(reply) => Err(client.reply_fault(&reply)),
        None => Ok(()),
    }
}

/// Whether the user may do what the link's bookkeeping takes, and what shuts out its former writers.
fn probe_bookkeeping(client: &mut Client, link: &LinkName, slot: Slot) -> Result<(), Fault> {
    let key = String::from_utf8(record_key(link, slot)).expect("keys of ours are ASCII");
    let key = key.as_str();
    let commands: [&[&str]; 13] = [
        &["GET", key],
        &["EXISTS", key],
        &["SET", key, ""],
        &["DEL", key],
        &["HSET", key, "", ""],
        &["HGETALL", key],
        &["HDEL", key, ""],
        &["EVAL", "return 0", "1", key],
        &["INFO", "replication"],
        &["CLIENT", "ID"],
        &["CLIENT", "SETNAME", "slotstream"],
        &["CLIENT", "LIST"],
        &["CLIENT", "KILL", "ID", "0"],
    ];
    let Some(reply) = refusal(client, &commands)? else {
        return Ok(());
    };
    // Of keys the server does not say which.
    if reply.starts_with("NOPERM") && !reply.contains('\'') {
        let text = format!(
            "target {} lacks a permission: ACL SETUSER <user> ~{{*}}slotstream:* (the keys that tell how far a copy has come)",
            client.name()
        );
        return Err(Fault::new(FaultKind::NoPermission, text));
    }
    Err(client.reply_fault(&reply))
}

/// The first error reply to these commands, of which none is executed.
fn refusal(client: &mut Client, commands: &[&[&str]]) -> Result<Option<String>, Fault> {
    client.call(&["MULTI"])?;
    let mut refusal = None;
    for command in commands {
        if let Value::Error(reply) = client.ask(command)? {
            refusal.get_or_insert(reply);
        }
    }
    client.call(&["DISCARD"])?;
    // The slot moved since discovery; lanes follow.
    let moved = |reply: &String| reply.starts_with("MOVED") || reply.starts_with("ASK");
    Ok(refusal.filter(|reply| !moved(reply)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::options::{DatabaseMap, OnDivergence};
    use crate::slot::SlotSet;
    use crate::topology::{Flavour, Node, Shard, Topology, Version};

    fn server(run_id: &str) -> ServerInfo {
        ServerInfo {
            flavour: Flavour::Redis,
            version: Version::new(7, 0, 15),
            run_id: run_id.into(),
            cluster_enabled: false,
            role: Role::Master,
            master: None,
            master_link_up: true,
            replica_read_only: false,
            replid: format!("replid of {run_id}"),
            offset: 0,
            maxmemory_policy: "noeviction".into(),
            maxmemory: 0,
            loading: false,
            keyspace: Vec::new(),
            hashes_with_field_ttl: 0,
            function_libraries: 0,
            modules: Vec::new(),
        }
    }

    fn single(run_id: &str) -> Deployment {
        Deployment {
            topology: Topology::single(run_id, 6379),
            servers: vec![(crate::topology::SINGLE_NODE_ID.into(), server(run_id))],
            bookkeeping: Default::default(),
        }
    }

    fn cluster(id: &str, slots: SlotSet) -> Deployment {
        let shard = Shard {
            master: Node::new(id, "h", 1),
            replicas: vec![],
            slots,
        };
        Deployment {
            topology: Topology::cluster(vec![shard], vec![]).expect("valid"),
            servers: vec![(id.into(), server(id))],
            bookkeeping: Default::default(),
        }
    }

    fn options(on_existing: OnExisting, map: &str) -> SyncOptions {
        SyncOptions {
            link: "default".parse().expect("valid"),
            source: "redis://a".parse().expect("valid"),
            target: "redis://b".parse().expect("valid"),
            cores: vec![0],
            pinned: false,
            once: false,
            status_address: None,
            ack: Default::default(),
            checkpoint_every_ms: 1000,
            spool_directory: None,
            spool_max: 0,
            on_existing,
            mark: false,
            on_divergence: OnDivergence::Stop,
            on_unsupported: OnUnsupported::Stop,
            skip_unknown: false,
            accept_empty_source: false,
            database_map: match map {
                "" => DatabaseMap::default(),
                map => map.parse().expect("valid"),
            },
        }
    }

    fn run(source: &Deployment, target: &Deployment) -> Result<Notices, FaultKind> {
        check_deployments(&options(OnExisting::Keep, ""), source, target).map_err(|f| f.kind)
    }

    #[test]
    fn two_separate_servers_pass_without_notice() {
        assert_eq!(run(&single("a"), &single("b")), Ok(vec![]));
        let target = cluster("t", SlotSet::all());
        assert_eq!(run(&single("a"), &target), Ok(vec![]));
    }

    #[test]
    fn the_same_deployment_is_refused_however_it_is_named() {
        assert_eq!(
            run(&single("a"), &single("a")),
            Err(FaultKind::SameDeployment)
        );
        let (mut source, mut target) = (cluster("n", SlotSet::all()), cluster("n", SlotSet::all()));
        source.servers[0].1.run_id = "restarted".into();
        assert_eq!(run(&source, &target), Err(FaultKind::SameDeployment));
        source = single("replica");
        target = single("master");
        source.servers[0].1.replid = target.servers[0].1.replid.clone();
        assert_eq!(run(&source, &target), Err(FaultKind::SameDeployment));
    }

    #[test]
    fn a_replica_is_no_target_and_its_master_is_named() {
        let mut target = single("b");
        target.servers[0].1.role = Role::Replica;
        target.servers[0].1.master = Some(("10.0.0.9".into(), 7000));
        let fault = check_deployments(&options(OnExisting::Keep, ""), &single("a"), &target);
        let fault = fault.expect_err("a replica");
        assert_eq!(fault.kind, FaultKind::TargetIsReplica);
        assert!(fault.message.contains("10.0.0.9:7000"), "{fault}");
    }

    #[test]
    fn a_replica_that_is_still_listed_as_a_master_without_slots_does_no_harm() {
        let mut target = cluster("t", SlotSet::all());
        let mut shards = target.topology.shards.clone();
        shards.push(Shard {
            master: Node::new("former", "h", 2),
            replicas: vec![],
            slots: SlotSet::new(),
        });
        target.topology = Topology::cluster(shards, vec![]).expect("valid");
        let mut former = server("former");
        former.role = Role::Replica;
        target.servers.push(("former".into(), former));
        assert_eq!(run(&single("a"), &target), Ok(vec![]));
    }

    #[test]
    fn keys_on_the_target_are_told_or_refused() {
        let mut target = single("b");
        target.servers[0].1.keyspace = vec![(0, 5), (2, 6)];
        let notices = run(&single("a"), &target).expect("kept");
        assert!(notices[0].contains("11 keys"), "{notices:?}");
        let mut marking = options(OnExisting::Keep, "");
        marking.mark = true;
        let notices = check_deployments(&marking, &single("a"), &target).expect("kept");
        assert!(notices[0].contains("target's value stays"), "{notices:?}");
        let replaced = check_deployments(&options(OnExisting::Replace, ""), &single("a"), &target);
        assert!(replaced.expect("allowed")[0].contains("REMOVED"));
        let refused = check_deployments(&options(OnExisting::Refuse, ""), &single("a"), &target);
        assert_eq!(refused.map_err(|f| f.kind), Err(FaultKind::TargetNotEmpty));
    }

    #[test]
    fn another_database_into_a_cluster_needs_a_map() {
        let mut source = single("a");
        source.servers[0].1.keyspace = vec![(0, 1), (3, 1)];
        let target = cluster("t", SlotSet::all());
        assert_eq!(run(&source, &target), Err(FaultKind::Database));
        assert_eq!(run(&source, &single("b")), Ok(vec![]));
        let mapped = check_deployments(&options(OnExisting::Keep, "3:drop"), &source, &target);
        assert_eq!(mapped, Ok(vec![]));
    }

    #[test]
    fn clusters_without_owners_are_refused() {
        let empty = cluster("e", SlotSet::new());
        let whole = cluster("w", SlotSet::all());
        assert_eq!(run(&empty, &whole), Err(FaultKind::NoTopology));
        assert_eq!(run(&whole, &empty), Err(FaultKind::ClusterDown));
    }

    #[test]
    fn what_the_target_cannot_take_is_told_before_the_copy() {
        let mut source = single("a");
        source.servers[0].1.version = Version::new(8, 0, 2);
        source.servers[0].1.hashes_with_field_ttl = 3;
        source.servers[0].1.function_libraries = 1;
        assert_eq!(run(&source, &single("b")), Err(FaultKind::Unsupported));
        let mut options = options(OnExisting::Keep, "");
        options.on_unsupported = OnUnsupported::Drop;
        let dropped = check_deployments(&options, &source, &single("b")).expect("left out");
        assert_eq!(dropped.len(), 1, "{dropped:?}");
        assert!(dropped[0].contains("3 hashes"), "{dropped:?}");
        let mut target = single("b");
        target.servers[0].1.version = Version::new(8, 0, 2);
        assert_eq!(run(&source, &target), Ok(vec![]));
        target.servers[0].1.version = Version::new(6, 0, 16);
        let dropped = check_deployments(&options, &source, &target).expect("left out");
        assert_eq!(dropped.len(), 2, "{dropped:?}");
    }

    #[test]
    fn a_target_that_evicts_is_told() {
        let mut target = single("b");
        target.servers[0].1.maxmemory = 1;
        target.servers[0].1.maxmemory_policy = "allkeys-lru".into();
        assert_eq!(run(&single("a"), &target).map(|n| n.len()), Ok(1));
    }
}
