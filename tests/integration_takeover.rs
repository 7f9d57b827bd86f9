//! Taking a link over on real targets: epochs, former writers, and what is read behind them.

use anyhow::{Context, Result, bail, ensure};
use lab::changes::{assign_slot, move_keys, move_slot, node_id, open_slot};
use lab::{
    Client, Cluster, ClusterOptions, Connection, Family, Server, ServerOptions, Value, family,
    server::info_field, version_or_skip, wait_until,
};
use slotstream::checkpoint::{
    Generation, LinkName, Record, State, Watermark, epoch_key, record_key, watermark_key,
    writer_name,
};
use slotstream::control::discover::discover;
use slotstream::control::takeover::{Claim, claim, reclaim};
use slotstream::fault::{Fault, FaultKind, Side};
use slotstream::position::{Offset, Position, ReplicationId};
use slotstream::slot::{SLOT_COUNT, Slot};
use slotstream::topology::{Endpoint, Topology};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn link(name: &str) -> LinkName {
    name.parse().expect("a name of a link")
}

/// The target as `sync` finds it.
fn found(uri: &str) -> Result<(Endpoint, Topology)> {
    let endpoint: Endpoint = uri.parse()?;
    let topology = discover(Side::Target, &endpoint)?.topology;
    Ok((endpoint, topology))
}

fn claimed(uri: &str, name: &str) -> Result<Claim> {
    let (endpoint, topology) = found(uri)?;
    Ok(claim(&link(name), &endpoint, &topology)?)
}

fn reclaimed(uri: &str, epoch: u32, lane: u32) -> Result<Result<Claim, Fault>> {
    let (endpoint, topology) = found(uri)?;
    Ok(reclaim(&link("a"), epoch, lane, &endpoint, &topology))
}

fn record(node: &str, slots: &str, acked: u64) -> Record {
    Record {
        state: State::Streaming,
        node: node.to_owned(),
        position: Position {
            id: ReplicationId::parse(&[b'a'; 40]).expect("forty characters"),
            offset: Offset(acked),
        },
        predecessor: None,
        database: 0,
        high: Offset(acked + 1_000),
        slots: slots.parse().expect("slots"),
        watermarks: "".parse().expect("no slots"),
        former: None,
        exclusive: true,
        held: true,
        leases: false,
    }
}

fn generation(epoch: u32, number: u32) -> Generation {
    Generation { epoch, number }
}

/// Writes as a process of that epoch would.
fn write_record(client: &mut Client, slot: Slot, of: Generation, record: &Record) -> Result<()> {
    let key = record_key(&link("a"), slot);
    let (field, text) = (of.to_string(), record.encode());
    client.call(&[b"HSET", &key[..], field.as_bytes(), text.as_bytes()])?;
    Ok(())
}

fn write_watermark(client: &mut Client, slot: Slot, of: Generation, offset: u64) -> Result<()> {
    let watermark = Watermark {
        generation: of,
        offset: Offset(offset),
    };
    let key = watermark_key(&link("a"), slot);
    client.call(&[b"SET", &key[..], watermark.to_string().as_bytes()])?;
    Ok(())
}

/// Where the epoch of a link stands, and what it is.
fn epochs(client: &mut Client, name: &str) -> Result<Vec<(Slot, String)>> {
    let slots = 0..SLOT_COUNT as Slot;
    let keys = slots.clone().map(|slot| epoch_key(&link(name), slot));
    let commands: Vec<_> = keys
        .map(|key| lab::Command::new(&[b"GET", &key[..]]))
        .collect();
    let replies = client.pipeline(&commands)?;
    let held = slots.zip(replies).filter(|(_, reply)| *reply != Value::Nil);
    Ok(held.map(|(slot, reply)| (slot, reply.text())).collect())
}

/// A connection with a name, as a writer has it.
fn named(server: &Server, name: &str) -> Result<Connection> {
    let mut connection = server.connect()?;
    connection.call(&["CLIENT", "SETNAME", name])?;
    Ok(connection)
}

fn is_alive(connection: &mut Connection) -> bool {
    connection.call(&["PING"]).is_ok()
}

fn cluster(family: Family, masters: usize, replicas: usize) -> Result<Option<Cluster>> {
    let Some(version) = version_or_skip(family) else {
        return Ok(None);
    };
    Cluster::start(&version, masters, replicas, ClusterOptions::default()).map(Some)
}

fn first_slot(index: usize, masters: usize) -> Slot {
    (index * SLOT_COUNT / masters) as Slot
}

/// Former writers lose their connections, and nobody else does; the epoch stands once on each master.
fn former_writers_are_shut_out(family: Family) -> Result<()> {
    let Some(target) = cluster(family, 3, 0)? else {
        return Ok(());
    };
    let first = claimed(&target.uri(), "a")?;
    ensure!(first.epoch == 1, "epoch {}", first.epoch);
    let nodes = target.masters();
    let mut former = Vec::new();
    for (lane, node) in nodes.iter().enumerate() {
        former.push(named(node, &writer_name(&link("a"), 1, lane as u32))?);
    }
    former.push(named(&nodes[1], "slotstream:a:what")?);
    let mut others = [
        named(&nodes[0], &writer_name(&link("ab"), 1, 0))?,
        named(&nodes[1], "slotstream")?,
        named(&nodes[2], "a:1:0")?,
        nodes[0].connect()?,
    ];
    let second = claimed(&target.uri(), "a")?;
    ensure!(second.epoch == 2, "epoch {}", second.epoch);
    ensure!(!former.iter_mut().any(is_alive), "a former writer goes on");
    ensure!(others.iter_mut().all(is_alive), "another was shut out");
    let expected: Vec<_> = (0..3).map(|i| (first_slot(i, 3), "2".to_owned())).collect();
    let held = epochs(&mut target.client()?, "a")?;
    ensure!(held == expected, "{held:?}");
    ensure!(epochs(&mut target.client()?, "ab")?.is_empty());
    Ok(())
}

/// Records and watermarks come back as they were written, with the master that holds them.
fn what_was_written_is_read(family: Family) -> Result<()> {
    let Some(target) = cluster(family, 2, 0)? else {
        return Ok(());
    };
    let ids = [node_id(&target.nodes()[0])?, node_id(&target.nodes()[1])?];
    claimed(&target.uri(), "a")?;
    let mut client = target.client()?;
    let (low, high) = (generation(1, 0), generation(1, 1));
    write_record(&mut client, 0, low, &record(&ids[0], "0-99", 10))?;
    write_record(&mut client, 0, high, &record(&ids[0], "100-199", 20))?;
    write_record(&mut client, 9000, low, &record(&ids[1], "9000-9001", 30))?;
    write_watermark(&mut client, 5, low, 12)?;
    write_watermark(&mut client, 16383, high, 13)?;
    let claim = claimed(&target.uri(), "a")?;
    ensure!(claim.bookkeeping.epoch == 2);
    let read = claim.bookkeeping.records.iter();
    let read = read.map(|found| {
        let offset = found.record.position.offset.0;
        (found.held_by.clone(), found.slot, found.generation, offset)
    });
    let read: Vec<_> = read.collect();
    let expected = vec![
        (ids[0].clone(), 0, low, 10),
        (ids[0].clone(), 0, high, 20),
        (ids[1].clone(), 9000, low, 30),
    ];
    ensure!(read == expected, "{read:?}");
    let watermarks: Vec<_> = claim.bookkeeping.watermarks.into_iter().collect();
    let at = |generation, offset| Watermark {
        generation,
        offset: Offset(offset),
    };
    ensure!(
        watermarks == [(5, at(low, 12)), (16383, at(high, 13))],
        "{watermarks:?}"
    );
    ensure!(claimed(&target.uri(), "b")?.bookkeeping.records.is_empty());
    Ok(())
}

/// Slots take their keys along: epochs, records and watermarks are found where they went.
fn slots_that_moved_are_read_where_they_are(family: Family) -> Result<()> {
    let Some(target) = cluster(family, 2, 0)? else {
        return Ok(());
    };
    let [giver, taker] = target.masters() else {
        bail!("two masters");
    };
    claimed(&target.uri(), "a")?;
    let mut client = target.client()?;
    let written = generation(1, 0);
    write_record(
        &mut client,
        0,
        written,
        &record(&node_id(giver)?, "0-8191", 10),
    )?;
    write_watermark(&mut client, 0, written, 12)?;
    let check = |claim: &Claim, epoch: u32, holder: &Server| -> Result<()> {
        let found = &claim.bookkeeping.records;
        ensure!(claim.epoch == epoch, "epoch {}", claim.epoch);
        ensure!(found.len() == 1, "{found:?}");
        ensure!(found[0].held_by == node_id(holder)?, "{found:?}");
        ensure!(claim.bookkeeping.watermarks.contains_key(&0));
        Ok(())
    };
    // While it is open the keys are at one node and the slot is the other's.
    open_slot(0, giver, taker)?;
    move_keys(0, giver, taker, usize::MAX)?;
    check(&claimed(&target.uri(), "a")?, 2, giver)?;
    check(&reclaimed(&target.uri(), 2, 0)??, 2, giver)?;
    assign_slot(&target, 0, taker)?;
    let claim = claimed(&target.uri(), "a")?;
    check(&claim, 3, taker)?;
    client.discover()?;
    let held = epochs(&mut client, "a")?;
    let expected = [(0, "3".to_owned()), (1, "3".to_owned())];
    ensure!(held == expected, "{held:?}");
    // A view from before the move does no harm.
    let (endpoint, before) = found(&target.uri())?;
    move_slot(&target, 0, taker, giver)?;
    move_slot(&target, 1, giver, taker)?;
    let claim = slotstream::control::takeover::claim(&link("a"), &endpoint, &before)?;
    check(&claim, 4, giver)?;
    client.discover()?;
    let held = epochs(&mut client, "a")?;
    let expected = [(0, "4".to_owned()), (1, "4".to_owned())];
    ensure!(held == expected, "{held:?}");
    Ok(())
}

/// Two processes at once: both get an epoch, never the same, and the higher one stands everywhere.
fn two_claims_at_once_differ(family: Family) -> Result<()> {
    let Some(target) = cluster(family, 3, 0)? else {
        return Ok(());
    };
    let (endpoint, topology) = found(&target.uri())?;
    let link = link("a");
    let mut last = 0;
    for _ in 0..5 {
        let claims: Vec<Result<Claim, Fault>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| claim(&link, &endpoint, &topology)))
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|claim| claim.expect("no panic")).collect()
        });
        let claims: Vec<u32> = claims
            .into_iter()
            .map(|claim| claim.map(|claim| claim.epoch))
            .collect::<Result<_, _>>()?;
        ensure!(claims[0] != claims[1], "{claims:?}");
        ensure!(claims.iter().all(|epoch| *epoch > last), "{claims:?}");
        last = claims[0].max(claims[1]);
        let held = epochs(&mut target.client()?, "a")?;
        ensure!(
            held.len() == 3 && held.iter().all(|(_, held)| *held == last.to_string()),
            "{held:?}, claimed {claims:?}"
        );
    }
    Ok(())
}

/// A replica that was promoted without the last writes has an epoch of before, or none.
fn a_promoted_replica_gets_the_epoch_again(family: Family) -> Result<()> {
    let Some(target) = cluster(family, 3, 1)? else {
        return Ok(());
    };
    claimed(&target.uri(), "a")?;
    let replica = &target.nodes()[3];
    // A writer that was stopped while this one was the master could go on when it is again.
    let mut former = named(replica, &writer_name(&link("a"), 1, 0))?;
    let epoch = claimed(&target.uri(), "a")?.epoch;
    ensure!(epoch == 2 && !is_alive(&mut former), "epoch {epoch}");
    let mut node = replica.connect()?;
    wait_until(PATIENCE, "the replica to take over", || {
        // Refused while it is not in step.
        let _ = node.call(&["CLUSTER", "FAILOVER"]);
        std::thread::sleep(Duration::from_millis(200));
        Ok(info_field(&mut node, "replication", "role")? == "master")
    })?;
    // As if they had not reached the replica.
    let key = epoch_key(&link("a"), 0);
    node.call(&[b"DEL", &key[..]])?;
    let claim = reclaimed(&target.uri(), epoch, 0)??;
    ensure!(claim.epoch == epoch);
    let of_slot = claim.topology.master_of(0).context("an owner")?;
    ensure!(of_slot.port == replica.port(), "{of_slot:?}");
    let held = node.call(&[b"GET", &key[..]])?;
    ensure!(held.text() == "2", "{held:?}");
    ensure!(claimed(&target.uri(), "a")?.epoch == 3);
    Ok(())
}

/// A master dies: nothing is read before its replica has taken its place.
fn a_claim_waits_for_the_failover_of_a_dead_master(family: Family) -> Result<()> {
    let Some(mut target) = cluster(family, 3, 1)? else {
        return Ok(());
    };
    claimed(&target.uri(), "a")?;
    let written = generation(1, 0);
    let mut client = target.client()?;
    write_watermark(&mut client, 16383, written, 12)?;
    let replica = &target.nodes()[5];
    let offset =
        |node: &Server, field| -> Result<u64> { Ok(node.info("replication", field)?.parse()?) };
    let written_at = offset(&target.nodes()[2], "master_repl_offset")?;
    wait_until(PATIENCE, "the replica to have it", || {
        Ok(offset(replica, "slave_repl_offset")? >= written_at)
    })?;
    let (endpoint, before) = found(&target.uri())?;
    target.nodes_mut()[2].kill();
    let claim = claim(&link("a"), &endpoint, &before)?;
    ensure!(claim.epoch == 2, "epoch {}", claim.epoch);
    let owner = claim.topology.master_of(16383).context("an owner")?;
    ensure!(owner.port == target.nodes()[5].port(), "{owner:?}");
    ensure!(claim.bookkeeping.watermarks.contains_key(&16383));
    Ok(())
}

/// Slots go back and forth all the time: each claim reads everything, wherever it is at the moment.
fn claims_succeed_while_slots_move(family: Family) -> Result<()> {
    let Some(target) = cluster(family, 2, 0)? else {
        return Ok(());
    };
    let [giver, taker] = target.masters() else {
        bail!("two masters");
    };
    claimed(&target.uri(), "a")?;
    let mut client = target.client()?;
    for slot in 0..4 {
        write_watermark(&mut client, slot, generation(1, 0), 12)?;
    }
    let moving = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| -> Result<u32> {
            let mut moved = 0;
            while moving.load(Ordering::Relaxed) || moved == 0 {
                for (from, to) in [(giver, taker), (taker, giver)] {
                    for slot in 0..4 {
                        move_slot(&target, slot, from, to)?;
                        moved += 1;
                        std::thread::sleep(Duration::from_millis(200));
                    }
                }
            }
            Ok(moved)
        });
        let claim_all = || -> Result<()> {
            let mut last = 1;
            for _ in 0..8 {
                let claim = claimed(&target.uri(), "a")?;
                ensure!(claim.epoch > last, "epoch {} after {last}", claim.epoch);
                last = claim.epoch;
                let found = &claim.bookkeeping.watermarks;
                ensure!(found.len() == 4, "{found:?}");
            }
            Ok(())
        };
        let claims = claim_all();
        moving.store(false, Ordering::Relaxed);
        mover.join().expect("no panic")?;
        claims
    })
}

fn single(family: Family) -> Result<Option<Server>> {
    let Some(version) = version_or_skip(family) else {
        return Ok(None);
    };
    Server::start(&version, ServerOptions::default()).map(Some)
}

/// The whole of it on one server without slots.
fn a_single_server_is_taken_over(family: Family) -> Result<()> {
    let Some(target) = single(family)? else {
        return Ok(());
    };
    let first = claimed(&target.uri(), "a")?;
    let mut former = named(&target, &writer_name(&link("a"), first.epoch, 0))?;
    let mut client = Client::connect(&target.endpoint())?;
    let written = generation(1, 0);
    write_record(
        &mut client,
        0,
        written,
        &record(&target.address(), "0-16383", 10),
    )?;
    write_watermark(&mut client, 7, written, 12)?;
    let second = claimed(&target.uri(), "a")?;
    ensure!(second.epoch == 2 && !is_alive(&mut former));
    let records = &second.bookkeeping.records;
    ensure!(
        records.len() == 1 && records[0].held_by == "single",
        "{records:?}"
    );
    ensure!(second.bookkeeping.watermarks.len() == 1);
    let held = epochs(&mut client, "a")?;
    ensure!(held == [(0, "2".to_owned())], "{held:?}");
    Ok(())
}

#[test]
fn a_lane_ends_its_own_connections_and_notices_who_took_over() -> Result<()> {
    let Some(target) = single(Family::Redis70)? else {
        return Ok(());
    };
    let epoch = claimed(&target.uri(), "a")?.epoch;
    let name = |lane| writer_name(&link("a"), epoch, lane);
    let mut own = named(&target, &name(0))?;
    let mut other = named(&target, &name(1))?;
    let claim = reclaimed(&target.uri(), epoch, 0)??;
    ensure!(claim.epoch == epoch && !is_alive(&mut own) && is_alive(&mut other));
    // By its name alone, as if the key had been lost.
    let mut later = named(&target, &writer_name(&link("a"), 9, 0))?;
    let fault = reclaimed(&target.uri(), epoch, 0)?.expect_err("a later one");
    ensure!(fault.kind == FaultKind::TakenOver && is_alive(&mut later));
    ensure!(fault.message.contains("epoch 9, ours 1"), "{fault}");
    let taken = claimed(&target.uri(), "a")?.epoch;
    ensure!(taken == 10 && !is_alive(&mut later), "epoch {taken}");
    let fault = reclaimed(&target.uri(), epoch, 0)?.expect_err("taken over");
    ensure!(fault.kind == FaultKind::TakenOver, "{fault}");
    Ok(())
}

#[test]
fn generations_stay_unique_when_the_epoch_was_lost() -> Result<()> {
    let Some(target) = single(Family::Redis70)? else {
        return Ok(());
    };
    let mut client = Client::connect(&target.endpoint())?;
    let record = record(&target.address(), "0-16383", 10);
    write_record(&mut client, 0, generation(41, 0), &record)?;
    ensure!(claimed(&target.uri(), "a")?.epoch == 42);
    write_watermark(&mut client, 3, generation(50, 2), 7)?;
    ensure!(claimed(&target.uri(), "a")?.epoch == 51);
    Ok(())
}

#[test]
fn bookkeeping_that_cannot_be_read_is_named_with_the_fix() -> Result<()> {
    let Some(target) = single(Family::Redis70)? else {
        return Ok(());
    };
    let mut client = Client::connect(&target.endpoint())?;
    let text = record("n", "0", 10).encode().replace("v=1 ", "v=9 ");
    let key = |name: fn(&LinkName, Slot) -> Vec<u8>| name(&link("a"), 3);
    let cases: [(&[&[u8]], &str); 6] = [
        (
            &[b"HSET", &key(record_key), b"1.0", text.as_bytes()],
            "format 9",
        ),
        (
            &[b"HSET", &key(record_key), b"1.0", b"nonsense"],
            "slotstream:r:a",
        ),
        (&[b"HSET", &key(record_key), b"one", b""], "'one'"),
        (&[b"SET", &key(watermark_key), b"1:2"], "slotstream:w:a"),
        (&[b"SET", &key(epoch_key), b"-1"], "slotstream:e:a"),
        (&[b"RPUSH", &key(epoch_key), b"1"], "WRONGTYPE"),
    ];
    for (command, named) in cases {
        client.call(&["FLUSHALL"])?;
        client.call(command)?;
        let (endpoint, topology) = found(&target.uri())?;
        let fault = claim(&link("a"), &endpoint, &topology).expect_err(named);
        ensure!(fault.kind == FaultKind::Bookkeeping, "{fault}");
        ensure!(fault.message.contains(named), "{fault}");
        ensure!(
            fault.message.contains("slotstream clean --link a"),
            "{fault}"
        );
    }
    Ok(())
}

#[test]
fn records_that_nobody_needs_are_removed() -> Result<()> {
    let Some(target) = cluster(Family::Redis70, 2, 0)? else {
        return Ok(());
    };
    let mut client = target.client()?;
    let ids = [node_id(&target.nodes()[0])?, node_id(&target.nodes()[1])?];
    let (old, half, new) = (generation(1, 0), generation(1, 1), generation(2, 0));
    write_record(&mut client, 0, old, &record(&ids[0], "0-99", 10))?;
    write_record(&mut client, 0, new, &record(&ids[0], "0-99", 20))?;
    // Half of what this one lists has no newer record where it is.
    write_record(&mut client, 9000, half, &record(&ids[1], "99,9000", 30))?;
    let claim = claimed(&target.uri(), "a")?;
    let left: Vec<_> = claim
        .bookkeeping
        .records
        .iter()
        .map(|f| (f.slot, f.generation))
        .collect();
    ensure!(left == [(0, new), (9000, half)], "{left:?}");
    let fields = client.call(&[b"HKEYS", &record_key(&link("a"), 0)[..]])?;
    ensure!(
        fields.array().len() == 1 && fields.array()[0].text() == "2.0",
        "{fields:?}"
    );
    Ok(())
}

#[test]
fn a_right_that_is_missing_is_named_as_a_rule() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    for (rule, named) in [
        ("-eval", "+eval"),
        ("-client", "+client|list"),
        ("-exists", "+exists"),
    ] {
        let target = Server::start(
            &version,
            ServerOptions {
                users: vec![format!("u on >secret ~* &* +@all {rule}")],
                ..ServerOptions::default()
            },
        )?;
        let endpoint: Endpoint = format!("redis://u:secret@{}", target.address()).parse()?;
        let topology = Topology::single("127.0.0.1", target.port());
        let fault = claim(&link("a"), &endpoint, &topology).expect_err(rule);
        ensure!(fault.kind == FaultKind::NoPermission, "{fault}");
        ensure!(fault.message.contains(named), "{fault}");
    }
    Ok(())
}

family!(
    redis_6_0,
    Family::Redis60,
    claims_succeed_while_slots_move,
    former_writers_are_shut_out,
    what_was_written_is_read,
    slots_that_moved_are_read_where_they_are,
    a_single_server_is_taken_over,
);
family!(
    redis_7_0,
    Family::Redis70,
    former_writers_are_shut_out,
    what_was_written_is_read,
    slots_that_moved_are_read_where_they_are,
    two_claims_at_once_differ,
    a_promoted_replica_gets_the_epoch_again,
    a_claim_waits_for_the_failover_of_a_dead_master,
    claims_succeed_while_slots_move,
    a_single_server_is_taken_over,
);
family!(
    redis_8_0,
    Family::Redis80,
    former_writers_are_shut_out,
    what_was_written_is_read,
    a_single_server_is_taken_over,
);
family!(valkey_8_0, Family::Valkey80, a_single_server_is_taken_over);
family!(valkey_8_1, Family::Valkey81, a_single_server_is_taken_over);
family!(
    valkey_9,
    Family::Valkey9,
    former_writers_are_shut_out,
    what_was_written_is_read,
    slots_that_moved_are_read_where_they_are,
    two_claims_at_once_differ,
    claims_succeed_while_slots_move,
    a_single_server_is_taken_over,
);
