//! Every pairing of the six servers, up and down: whatever one of them says arrives at every other, in its words.
//!
//! One source at a time feeds a target of each version: first data of every type by snapshot, with writers that go on
//! meanwhile and after it; then each command that some version lacks, one by one. What a target cannot take in any form
//! is left out, and how often is checked.

use anyhow::{Result, bail, ensure};
use lab::{
    Client, Cluster, ClusterOptions, Command, CompareOptions, Endpoint, Family, LoadOptions,
    Server, ServerOptions, Slotstream, Value, Version, WriterOptions, Writers, compare, load,
    version_or_skip, wait_until,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(60);
const LOADED_KEYS: usize = 800;
/// Commands written after the last copy, before the writers stop.
const COMMANDS_AFTER_COPY: u64 = 2_000;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slotstream"))
}

fn comparison(target: Family) -> CompareOptions {
    let left_out = (!target.has_vector_sets()).then(|| b"{s}v".to_vec());
    CompareOptions {
        ignored_prefixes: left_out.into_iter().collect(),
        // What 6.0 sends counts from when it was received: a little later than it was executed.
        relative_ttl_tolerance: Duration::from_secs(10),
        ..CompareOptions::default()
    }
}

/// What a target leaves out of a command of [`SCRIPT`], by its name on the status page.
#[derive(Clone, Copy)]
enum Lack {
    Nothing,
    FieldTtl,
    VectorSets,
    Functions,
    ShardedChannels,
    /// Forms that 6.0 has no words for.
    Redis7Form,
}

impl Lack {
    fn counter(self, target: Family) -> Option<&'static str> {
        let old = !target.has_redis_7_commands();
        match self {
            Lack::Nothing => None,
            Lack::FieldTtl => (!target.has_hash_field_ttl()).then_some("unsupported_field_ttl"),
            Lack::VectorSets => (!target.has_vector_sets()).then_some("unsupported_vector_sets"),
            Lack::Functions => old.then_some("unsupported_functions"),
            Lack::ShardedChannels => old.then_some("unsupported_sharded_channels"),
            Lack::Redis7Form => old.then_some("unsupported_commands"),
        }
    }
}

/// Commands that not every version knows in this form, in an order in which each has an effect. A source that does not
/// know one skips it.
const SCRIPT: &[(&str, Lack)] = {
    use Lack::*;
    &[
        ("SET {s}a v", Nothing),
        ("SET {s}a w IFEQ v", Nothing),
        ("SET {s}a x IFEQ w PX 1000000", Nothing),
        ("SET {s}b v NX GET", Nothing),
        ("SET {s}b w XX GET KEEPTTL", Nothing),
        ("SET {s}c v EX 1000", Nothing),
        ("SETEX {s}d 1000 v", Nothing),
        ("PSETEX {s}e 1000000 v", Nothing),
        ("SET {s}f v EXAT 4102444800", Nothing),
        ("SET {s}g v PXAT 4102444800123", Nothing),
        ("GETEX {s}g PX 1000000", Nothing),
        ("SET {s}gone v", Nothing),
        ("GETDEL {s}gone", Nothing),
        ("SET {s}gone v", Nothing),
        ("DELIFEQ {s}gone v", Nothing),
        ("SET {s}gone v", Nothing),
        ("EXPIRE {s}gone 0", Nothing),
        ("MSETEX 2 {s}m1 1 {s}m2 2", Nothing),
        ("MSETEX 2 {s}m1 3 {s}m2 4 XX EX 1000", Nothing),
        ("MSETEX 2 {s}m1 5 {s}m3 6 KEEPTTL", Nothing),
        ("EXPIRE {s}b 1000 NX", Nothing),
        ("PEXPIRE {s}b 2000000 GT", Nothing),
        ("EXPIREAT {s}b 4102444800 XX", Nothing),
        ("EXPIRE {s}b 500 LT", Nothing),
        // Hashes.
        ("HSET {s}h a 1 b 2 c 3 d 4", Nothing),
        ("HSETEX {s}h FIELDS 1 e 5", Nothing),
        ("HSETEX {s}h FNX FIELDS 1 f 6", Nothing),
        ("HSETEX {s}h EX 1000 FIELDS 2 a 7 FIELDS 8", FieldTtl),
        ("HSETEX {s}h FXX PX 2000000 FIELDS 1 b 9", FieldTtl),
        ("HEXPIRE {s}h 1000 FIELDS 1 c", FieldTtl),
        ("HPEXPIRE {s}h 2000000 GT FIELDS 1 c", FieldTtl),
        ("HGETEX {s}h EX 3000 FIELDS 1 d", FieldTtl),
        ("HSETEX {s}h KEEPTTL FIELDS 1 d 10", Nothing),
        ("HGETEX {s}h PERSIST FIELDS 1 d", Nothing),
        ("HPERSIST {s}h FIELDS 1 c", Nothing),
        ("HGETDEL {s}h FIELDS 2 e f", Nothing),
        ("HINCRBYFLOAT {s}h float 1.25", Nothing),
        // Lists.
        ("RPUSH {s}l a b c d e f g h i j k l m n", Nothing),
        ("LMOVE {s}l {s}l2 LEFT RIGHT", Nothing),
        ("LMOVE {s}l {s}l2 RIGHT LEFT", Nothing),
        ("LMOVE {s}l {s}l2 RIGHT RIGHT", Nothing),
        ("LMOVE {s}l {s}l LEFT LEFT", Nothing),
        ("BLMOVE {s}l {s}l2 LEFT LEFT 1", Nothing),
        ("LPOP {s}l 2", Nothing),
        ("RPOP {s}l 3", Nothing),
        ("LMPOP 2 {s}none {s}l RIGHT COUNT 2", Nothing),
        ("LPOP {s}l2 100", Nothing),
        // Sorted sets and places.
        ("ZADD {s}z 1 a 2 b 3 c 4 d 5 e 6 f inf g", Nothing),
        ("ZADD {s}z GT CH 2.5 a 1 b 7 h", Nothing),
        ("ZADD {s}z LT XX 0.1 c 9 d 8 nobody", Nothing),
        ("ZADD {s}z GT INCR 5 a", Nothing),
        ("ZRANGESTORE {s}zd {s}z 1 3", Nothing),
        ("ZRANGESTORE {s}ze {s}z (1 6 BYSCORE LIMIT 1 2", Nothing),
        ("ZRANGESTORE {s}zf {s}z +inf 4 BYSCORE REV", Nothing),
        ("ZADD {s}lex 0 a 0 b 0 c 0 d", Nothing),
        ("ZRANGESTORE {s}zg {s}lex [b (d BYLEX", Nothing),
        ("ZRANGESTORE {s}lex {s}lex 0 -2 REV", Nothing),
        ("SADD {s}set b zz", Nothing),
        ("ZDIFFSTORE {s}zh 3 {s}z {s}zd {s}set", Nothing),
        ("ZDIFFSTORE {s}z 2 {s}z {s}zd", Nothing),
        ("ZMPOP 1 {s}z MIN COUNT 1", Nothing),
        ("GEOADD {s}geo 13.36 38.11 P 15.08 37.50 C", Nothing),
        (
            "GEOSEARCHSTORE {s}gd {s}geo FROMLONLAT 15 37 BYRADIUS 200 km ASC COUNT 1",
            Nothing,
        ),
        (
            "GEOSEARCHSTORE {s}ge {s}geo FROMMEMBER P BYRADIUS 400 km",
            Nothing,
        ),
        (
            "GEOSEARCHSTORE {s}gf {s}geo FROMMEMBER P BYBOX 4000 4000 km",
            Redis7Form,
        ),
        ("DEL {s}gf", Nothing),
        // Streams.
        ("XADD {s}x 1-1 f v", Nothing),
        ("XADD {s}x NOMKSTREAM 2-1 f v", Nothing),
        ("XADD {s}x 3-1 f v MAXLEN 1", Nothing),
        ("XADD {s}x MINID 2 4-1 f v", Nothing),
        ("XADD {s}x MINID ~ 2 LIMIT 10 5-1 f v", Nothing),
        ("XADD {s}x MAXLEN ~ 100 LIMIT 10 6-1 f v", Nothing),
        ("XADD {s}x MAXLEN = 100 7-1 f v", Nothing),
        ("XADD {s}x 8-* f v", Nothing),
        ("XTRIM {s}x MINID 4-1", Nothing),
        ("XTRIM {s}x MAXLEN = 4", Nothing),
        ("XGROUP CREATE {s}x g 0", Nothing),
        ("XGROUP CREATE {s}x g2 0 ENTRIESREAD 2", Nothing),
        ("XGROUP CREATE {s}x3 g 0 MKSTREAM ENTRIESREAD 0", Nothing),
        ("XGROUP SETID {s}x g2 5-1 ENTRIESREAD 3", Nothing),
        ("XGROUP CREATECONSUMER {s}x g c0", Nothing),
        ("XREADGROUP GROUP g c COUNT 1 STREAMS {s}x >", Nothing),
        (
            "XREADGROUP GROUP g c2 NOACK COUNT 1 STREAMS {s}x >",
            Nothing,
        ),
        ("XREADGROUP GROUP g c COUNT 1 STREAMS {s}x >", Nothing),
        ("XAUTOCLAIM {s}x g c3 0 0 COUNT 1", Nothing),
        ("XSETID {s}x 20-1", Nothing),
        (
            "XSETID {s}x 30-1 ENTRIESADDED 100 MAXDELETEDID 4-1",
            Nothing,
        ),
        // Keys.
        ("COPY {s}a {s}copy1", Nothing),
        ("COPY {s}l {s}copy2", Nothing),
        ("COPY {s}x {s}copy2 REPLACE", Nothing),
        ("MULTI", Nothing),
        ("SET {s}t v EX 1000", Nothing),
        ("COPY {s}t {s}t2", Nothing),
        ("HSETEX {s}h FIELDS 1 t 1", Nothing),
        ("XADD {s}x MINID ~ 2 LIMIT 10 40-1 f v", Nothing),
        ("INCR {s}counter", Nothing),
        ("EXEC", Nothing),
        // What is a module's on one version only.
        ("VADD {s}v VALUES 2 1 2 e", VectorSets),
        ("VADD {s}v VALUES 2 3 4 f", VectorSets),
        ("VSETATTR {s}v e {\"a\":1}", VectorSets),
        ("VREM {s}v f", VectorSets),
    ]
};

/// What only single servers have in their streams, or have once.
const SINGLE_SCRIPT: &[(&str, Lack)] = &[
    ("PUBLISH channel message", Lack::Nothing),
    ("SPUBLISH {s}channel message", Lack::ShardedChannels),
    ("SELECT 3", Lack::Nothing),
    ("SET in3 v EX 1000", Lack::Nothing),
    ("SELECT 0", Lack::Nothing),
    ("COPY {s}a {s}a DB 3", Lack::Nothing),
    ("MOVE {s}copy1 3", Lack::Nothing),
    ("FUNCTION DELETE lab", Lack::Nothing),
];

/// Refusals that say that a version does not know the command in this form.
const UNKNOWN: [&str; 6] = [
    "ERR unknown command",
    "ERR syntax error",
    "ERR wrong number of arguments",
    "ERR Unsupported option",
    "ERR The number of arguments",
    "ERR value is not an integer",
];

/// Whether a source knew the command.
fn taken(line: &str, reply: &Value) -> Result<bool> {
    if reply.error().is_none() {
        return Ok(true);
    }
    let text = reply.text();
    let unknown = UNKNOWN.iter().any(|known| text.starts_with(known))
        || text.to_lowercase().contains("unknown subcommand")
        || text.contains("Unknown XADD option")
        || text.contains("Invalid stream ID")
        || text.contains("requires the key to exist")
        || text.contains("NOGROUP")
        || text.contains("not a valid float")
        || text.contains("EXECABORT");
    ensure!(unknown, "{line}: {text}");
    Ok(false)
}

/// Runs a script; which lines were taken.
fn run(client: &mut Client, script: &[(&'static str, Lack)]) -> Result<Vec<(&'static str, Lack)>> {
    let mut done = Vec::new();
    for (line, lack) in script {
        let words: Vec<&str> = line.split(' ').collect();
        let command = Command::routed("{s}", &words);
        let replies = client.pipeline(std::slice::from_ref(&command))?;
        if taken(line, &replies[0])? {
            done.push((*line, *lack));
        }
    }
    Ok(done)
}

/// Serialized values of every type, given back under other names: as clients do that move keys themselves.
fn restore_copies(client: &mut Client) -> Result<()> {
    let keys = [
        "a", "h", "l", "set", "zd", "x", "counter", "lex", "copy2", "v",
    ];
    for key in keys.map(|key| format!("{{s}}{key}")) {
        let Value::Bulk(payload) = client.call(&["DUMP", &key])? else {
            continue;
        };
        let copy = format!("{key}:restored");
        let words: [&[u8]; 4] = [b"RESTORE", copy.as_bytes(), b"0", &payload];
        client.call(&words)?;
        let words: [&[u8]; 5] = [b"RESTORE", copy.as_bytes(), b"900000", &payload, b"REPLACE"];
        client.call(&words)?;
    }
    Ok(())
}

/// How often each kind was left out, on all lanes together.
fn left_out(sync: &Slotstream) -> Result<BTreeMap<String, u64>> {
    let status = sync.status()?;
    let mut counts = BTreeMap::new();
    for lane in status["lanes"].as_array().into_iter().flatten() {
        for (name, count) in lane["errors"].as_object().into_iter().flatten() {
            if name.starts_with("unsupported_") {
                *counts.entry(name.clone()).or_default() += count.as_u64().unwrap_or(0);
            }
            ensure!(name != "divergence", "{status}");
        }
    }
    Ok(counts)
}

/// A target of the matrix, and the program that feeds it.
struct Pair {
    name: String,
    family: Family,
    target: Endpoint,
    sync: Slotstream,
    before: BTreeMap<String, u64>,
}

impl Pair {
    fn start(source: (Family, &Endpoint), family: Family, target: Endpoint) -> Result<Pair> {
        let arguments = ["--on-unsupported", "drop"];
        let sync = Slotstream::start(program(), source.1, &target, &arguments)?;
        Ok(Pair {
            name: format!("{} to {family}", source.0),
            family,
            target,
            sync,
            before: BTreeMap::new(),
        })
    }

    fn must_be_equal(&mut self, source: &Endpoint, when: &str) -> Result<()> {
        let name = &self.name;
        if let Err(error) = self.sync.wait_until_settled(TIMEOUT) {
            bail!("{name}, {when}: {error}\n{}", self.sync.output());
        }
        let diff = compare(source, &self.target, &comparison(self.family))?;
        ensure!(
            diff.is_equal(),
            "{name}, {when}: {diff}\n{}",
            self.sync.output()
        );
        Ok(())
    }

    /// What was left out since `before` is what the lines need and this target lacks.
    fn must_have_left_out(&self, lines: &[(&str, Lack)]) -> Result<()> {
        let mut expected = self.before.clone();
        for (_, lack) in lines {
            if let Some(counter) = lack.counter(self.family) {
                *expected.entry(counter.to_owned()).or_default() += 1;
            }
        }
        let counted = left_out(&self.sync)?;
        ensure!(
            counted == expected,
            "{}: {counted:?}, expected {expected:?}",
            self.name
        );
        for counter in expected.keys() {
            let named = || {
                let mark = format!("counted as {counter}");
                self.sync.output().matches(&mark).count()
            };
            wait_until(TIMEOUT, counter, || Ok(named() > 0))?;
            ensure!(named() == 1, "{}: {}", self.name, self.sync.output());
        }
        Ok(())
    }

    fn stop(self) -> Result<()> {
        let (exit, output) = self.sync.stop()?;
        ensure!(exit.code() == Some(0), "{}: {exit}: {output}", self.name);
        Ok(())
    }
}

/// Feeds every target from the source at once.
fn feeds(
    family: Family,
    source: &Endpoint,
    targets: &[(Family, Endpoint)],
    single: bool,
) -> Result<()> {
    let mut client = Client::connect(source)?;
    let loaded = LoadOptions {
        keys: LOADED_KEYS,
        big_keys: false,
        ..LoadOptions::default()
    };
    load(&mut client, &loaded)?;
    if family.has_vector_sets() {
        client.call(&["VADD", "{s}v:early", "VALUES", "2", "1", "2", "e"])?;
    }
    let writers = Writers::start(
        source,
        &WriterOptions {
            threads: 1,
            commands_per_second: 1_000,
            key_groups: 50,
            loaded: Some(loaded),
            short_lives: false,
            ..WriterOptions::default()
        },
    )?;
    let mut pairs = Vec::new();
    for (target, endpoint) in targets {
        pairs.push(Pair::start((family, source), *target, endpoint.clone())?);
    }
    for pair in &mut pairs {
        pair.sync.wait_until_caught_up(TIMEOUT)?;
    }
    let written = writers.commands_so_far();
    wait_until(TIMEOUT, "more writes", || {
        Ok(writers.commands_so_far() >= written + COMMANDS_AFTER_COPY)
    })?;
    let report = writers.stop()?;
    ensure!(report.errors.is_empty(), "{family}: {report}");
    for pair in &mut pairs {
        pair.must_be_equal(source, "after the writers")?;
        pair.before = left_out(&pair.sync)?;
    }
    let mut done = run(&mut client, SCRIPT)?;
    restore_copies(&mut client)?;
    for pair in &mut pairs {
        pair.must_be_equal(source, "after each command")?;
        let mut lines = done.clone();
        // The serialized hash with deadlines, and the serialized vector set, came twice.
        if family.has_hash_field_ttl() {
            lines.extend([("RESTORE {s}h", Lack::FieldTtl); 2]);
        }
        if family.has_vector_sets() {
            lines.extend([("RESTORE {s}v", Lack::VectorSets); 2]);
        }
        pair.must_have_left_out(&lines)?;
        pair.before = left_out(&pair.sync)?;
    }
    if single {
        done = run(&mut client, SINGLE_SCRIPT)?;
        let code = "#!lua name=other\nredis.register_function('other', function() return 1 end)";
        if taken(
            "FUNCTION LOAD",
            &client
                .call(&["FUNCTION", "LOAD", code])
                .unwrap_or(Value::Nil),
        )? && family.has_redis_7_commands()
        {
            done.push(("FUNCTION LOAD", Lack::Functions));
            let Value::Bulk(dump) = client.call(&["FUNCTION", "DUMP"])? else {
                bail!("FUNCTION DUMP gave no payload");
            };
            client.call(&["FUNCTION", "FLUSH"])?;
            let words: [&[u8]; 3] = [b"FUNCTION", b"RESTORE", &dump];
            client.call(&words)?;
            done.push(("FUNCTION RESTORE", Lack::Functions));
        }
        for pair in &mut pairs {
            pair.must_be_equal(source, "after what is of single servers")?;
            pair.must_have_left_out(&done)?;
        }
        run(&mut client, &[("FLUSHALL SYNC", Lack::Nothing)])?;
        client.call(&["SET", "left", "1"])?;
        for pair in &mut pairs {
            pair.must_be_equal(source, "after FLUSHALL")?;
        }
    }
    pairs.into_iter().try_for_each(Pair::stop)
}

fn versions() -> Vec<Version> {
    Family::ALL
        .into_iter()
        .filter_map(version_or_skip)
        .collect()
}

fn source_options() -> ServerOptions {
    ServerOptions {
        diskless: true,
        extra: vec!["client-output-buffer-limit replica 0 0 0".to_owned()],
        ..ServerOptions::default()
    }
}

#[test]
fn every_version_feeds_every_version() -> Result<()> {
    let versions = versions();
    let targets: Vec<Server> = versions
        .iter()
        .map(|version| Server::start(version, ServerOptions::default()))
        .collect::<Result<_>>()?;
    for version in &versions {
        let source = Server::start(version, source_options())?;
        let mut endpoints = Vec::new();
        for (server, version) in targets.iter().zip(&versions) {
            let mut client = Client::connect(&server.endpoint())?;
            client.call(&["FLUSHALL"])?;
            if version.family().has_redis_7_commands() {
                client.call(&["FUNCTION", "FLUSH"])?;
            }
            endpoints.push((version.family(), server.endpoint()));
        }
        feeds(version.family(), &source.endpoint(), &endpoints, true)?;
    }
    Ok(())
}

/// Three masters of one version into two of another.
#[test]
fn clusters_feed_clusters_of_other_versions() -> Result<()> {
    let pairs = [
        (Family::Valkey9, Family::Redis60),
        (Family::Redis60, Family::Valkey9),
        (Family::Redis80, Family::Valkey80),
    ];
    for (from, to) in pairs {
        let (Some(from), Some(to)) = (version_or_skip(from), version_or_skip(to)) else {
            continue;
        };
        let options = |server| ClusterOptions {
            server,
            slots: None,
        };
        let source = Cluster::start(&from, 3, 0, options(source_options()))?;
        let target = Cluster::start(&to, 2, 0, options(ServerOptions::default()))?;
        let targets = [(to.family(), target.endpoint())];
        feeds(from.family(), &source.endpoint(), &targets, false)?;
    }
    Ok(())
}

/// Without the option nothing is left out: before the copy where the source tells, else at the command.
#[test]
fn what_the_target_lacks_stops_and_is_named() -> Result<()> {
    let (Some(from), Some(to)) = (
        version_or_skip(Family::Valkey9),
        version_or_skip(Family::Redis70),
    ) else {
        return Ok(());
    };
    let source = Server::start(&from, source_options())?;
    let target = Server::start(&to, ServerOptions::default())?;
    let (from, to) = (source.endpoint(), target.endpoint());
    let mut client = Client::connect(&from)?;
    client.call(&["HSET", "h", "f", "v"])?;
    let mut sync = Slotstream::start(program(), &from, &to, &[])?;
    sync.wait_until_caught_up(TIMEOUT)?;
    client.call(&["HEXPIRE", "h", "1000", "FIELDS", "1", "f"])?;
    let (exit, output) = sync.wait_for_exit(TIMEOUT)?;
    ensure!(exit.code() == Some(5), "{exit}: {output}");
    for part in [
        "HPEXPIREAT 'h'",
        "expiry of hash fields",
        "--on-unsupported drop",
    ] {
        ensure!(output.contains(part), "no {part} in: {output}");
    }

    Client::connect(&to)?.call(&["FLUSHALL"])?;
    let mut sync = Slotstream::start(program(), &from, &to, &[])?;
    let (exit, output) = sync.wait_for_exit(TIMEOUT)?;
    ensure!(exit.code() == Some(5), "{exit}: {output}");
    ensure!(
        output.contains("1 hashes with fields that expire"),
        "{output}"
    );
    ensure!(
        target.info("keyspace", "db0").is_err(),
        "nothing was written"
    );
    Ok(())
}
