//! Fills a deployment with data of every type, in every encoding that its version has.
//!
//! Key number `i` is of kind `i % kinds`, so even a few dozen keys hold all of them; one in ten of a kind
//! is a large one, past the limit up to which servers use the compact encoding. The keys of a kind are
//! called by [`key_name`], so that writers can touch them later. The same seed gives the same data.

use crate::Result;
use crate::client::Client;
use crate::resp::Command;
use crate::version::Family;
use anyhow::bail;
use fastrand::Rng;

/// What [`load`] writes.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// How many keys, apart from the few very big ones.
    pub keys: usize,
    pub seed: u64,
    /// One key of each type with more than 1 MiB of data.
    pub big_keys: bool,
    /// Vector sets, where the server has them: a module's type, so not every tool takes them.
    pub vector_sets: bool,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            keys: 10_000,
            seed: 1,
            big_keys: true,
            vector_sets: false,
        }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadReport {
    pub keys: usize,
    pub commands: usize,
}

/// A kind of data: a type in one of its encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    IntegerString,
    EmbeddedString,
    RawString,
    CompressibleString,
    EmptyString,
    Bitmap,
    HyperLogLog,
    List,
    ListOfLargeElements,
    IntegerSet,
    Set,
    SortedSet,
    Geo,
    Hash,
    HashOfLongValues,
    HashWithFieldTtl,
    Stream,
    StreamWithGroups,
    BinaryKey,
    VectorSet,
}

impl Kind {
    const ALL: [Kind; 20] = [
        Kind::IntegerString,
        Kind::EmbeddedString,
        Kind::RawString,
        Kind::CompressibleString,
        Kind::EmptyString,
        Kind::Bitmap,
        Kind::HyperLogLog,
        Kind::List,
        Kind::ListOfLargeElements,
        Kind::IntegerSet,
        Kind::Set,
        Kind::SortedSet,
        Kind::Geo,
        Kind::Hash,
        Kind::HashOfLongValues,
        Kind::HashWithFieldTtl,
        Kind::Stream,
        Kind::StreamWithGroups,
        Kind::BinaryKey,
        Kind::VectorSet,
    ];

    /// The kinds that a family of servers has.
    pub fn of(family: Family, vector_sets: bool) -> Vec<Kind> {
        Kind::ALL
            .into_iter()
            .filter(|kind| match kind {
                Kind::HashWithFieldTtl => family.has_hash_field_ttl(),
                Kind::VectorSet => vector_sets && family.has_vector_sets(),
                _ => true,
            })
            .collect()
    }
}

/// The name of a key of some kind. A third of them carry a hash tag, as users' keys do.
pub fn key_name(kind: Kind, number: usize) -> Vec<u8> {
    match (kind, number % 3) {
        (Kind::BinaryKey, _) => {
            let mut name = vec![0, 0xff, b'\r', b'\n', b'{', b'*'];
            name.extend_from_slice(&number.to_le_bytes());
            name
        }
        (_, 0) => format!("{{user{}}}:{kind:?}:{number}", number % 1000).into_bytes(),
        _ => format!("{kind:?}:{number}").into_bytes(),
    }
}

/// Code of a function library, for the servers that have functions.
pub const FUNCTION_LIBRARY: &str = "#!lua name=lab\n\
    redis.register_function('lab_set', function(keys, args)\n\
    return redis.call('SET', keys[1], args[1])\n\
    end)\n\
    redis.register_function('lab_add', function(keys, args)\n\
    redis.call('HINCRBY', keys[1], 'calls', 1)\n\
    return redis.call('INCRBY', keys[2], args[1])\n\
    end)\n";

/// Writes `options.keys` keys of every kind, in a random order of their contents.
pub fn load(client: &mut Client, options: &LoadOptions) -> Result<LoadReport> {
    let family = client.family()?;
    let kinds = Kind::of(family, options.vector_sets);
    let mut batch = Batch {
        client,
        commands: Vec::new(),
        bytes: 0,
        sent: 0,
    };
    let mut random = Rng::with_seed(options.seed);
    for number in 0..options.keys {
        let kind = kinds[number % kinds.len()];
        let large = (number / kinds.len()).is_multiple_of(10);
        let key = key_name(kind, number);
        write_key(&mut batch, &mut random, kind, &key, large)?;
        write_ttl(&mut batch, &mut random, &key, number)?;
    }
    let mut keys = options.keys;
    if options.big_keys {
        keys += write_big_keys(&mut batch, &mut random)?;
    }
    batch.send()?;
    let commands = batch.sent;
    if family.has_redis_7_commands() {
        client.call_each_master(&["FUNCTION", "LOAD", "REPLACE", FUNCTION_LIBRARY])?;
    }
    Ok(LoadReport { keys, commands })
}

/// Gathers commands and sends them in large pieces.
struct Batch<'a> {
    client: &'a mut Client,
    commands: Vec<Command>,
    bytes: usize,
    sent: usize,
}

impl Batch<'_> {
    const COMMANDS: usize = 1000;
    const BYTES: usize = 4 << 20;

    fn push(&mut self, arguments: &[Vec<u8>]) -> Result<()> {
        self.add(Command::new(arguments))
    }

    fn add(&mut self, command: Command) -> Result<()> {
        self.bytes += command.encoded().len();
        self.commands.push(command);
        if self.commands.len() >= Batch::COMMANDS || self.bytes >= Batch::BYTES {
            self.send()?;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        let replies = self.client.pipeline(&self.commands)?;
        for (reply, command) in replies.iter().zip(&self.commands) {
            if let Some(error) = reply.error() {
                bail!("loading: {command:?} was answered {error}");
            }
        }
        self.sent += self.commands.len();
        self.commands.clear();
        self.bytes = 0;
        Ok(())
    }
}

fn write_key(
    batch: &mut Batch,
    random: &mut Rng,
    kind: Kind,
    key: &[u8],
    large: bool,
) -> Result<()> {
    let count = if large {
        random.usize(150..400)
    } else {
        random.usize(1..30)
    };
    match kind {
        Kind::IntegerString => set(batch, key, random.i64(..).to_string().into_bytes()),
        Kind::EmbeddedString | Kind::BinaryKey => set(batch, key, binary(random, 0..40)),
        Kind::RawString => set(batch, key, binary(random, 45..2000)),
        Kind::CompressibleString => {
            let word = text(random, 3..20);
            set(batch, key, word.repeat(count + 10))
        }
        Kind::EmptyString => set(batch, key, Vec::new()),
        Kind::Bitmap => {
            let bit = random.usize(0..count * 100).to_string();
            batch.push(&arguments("SETBIT", key, [bit.into(), b"1".to_vec()]))
        }
        Kind::HyperLogLog => {
            // A few thousand elements turn the sparse form into the dense one.
            let count = if large { 4000 } else { count };
            let elements = (0..count).map(|_| random.u64(..).to_string().into_bytes());
            batch.push(&arguments("PFADD", key, elements))
        }
        Kind::List => {
            let elements = (0..count).map(|_| element(random));
            batch.push(&arguments("RPUSH", key, elements))
        }
        Kind::ListOfLargeElements => {
            let elements = (0..1 + count / 50).map(|_| binary(random, 9_000..20_000));
            batch.push(&arguments("RPUSH", key, elements))
        }
        Kind::IntegerSet => {
            let bits = [15, 31, 63][random.usize(0..3)];
            let member = |_| (random.i64(..) >> (63 - bits)).to_string().into_bytes();
            batch.push(&arguments("SADD", key, (0..count).map(member)))
        }
        Kind::Set => {
            let members = (0..count).map(|_| element(random));
            batch.push(&arguments("SADD", key, members))
        }
        Kind::SortedSet => write_sorted_set(batch, random, key, count),
        Kind::Geo => {
            let places = (0..count).flat_map(|place| {
                let longitude = random.f64() * 360.0 - 180.0;
                let latitude = random.f64() * 170.0 - 85.0;
                [
                    longitude.to_string().into_bytes(),
                    latitude.to_string().into_bytes(),
                    format!("place{place}").into_bytes(),
                ]
            });
            batch.push(&arguments("GEOADD", key, places))
        }
        Kind::Hash => write_hash(batch, random, key, count),
        Kind::HashOfLongValues => {
            let fields = (0..1 + count / 10)
                .flat_map(|field| [field.to_string().into_bytes(), binary(random, 65..600)]);
            batch.push(&arguments("HSET", key, fields))
        }
        Kind::HashWithFieldTtl => write_hash_with_field_ttl(batch, random, key, count),
        Kind::Stream => write_stream(batch, random, key, count),
        Kind::StreamWithGroups => write_stream_with_groups(batch, random, key, count),
        Kind::VectorSet => write_vector_set(batch, random, key, count.min(40)),
    }
}

/// Whether the key of this number expires soon after it was loaded.
pub fn lives_for_seconds(number: usize) -> bool {
    number % 30 == 8 && number % 7 != 3
}

/// One key in seven lives for hours, one in thirty for seconds, one in fifty until the year 2100.
fn write_ttl(batch: &mut Batch, random: &mut Rng, key: &[u8], number: usize) -> Result<()> {
    const YEAR_2100_MS: i64 = 4_102_444_800_000;
    let (verb, time_ms) = match number {
        _ if number % 7 == 3 => ("PEXPIRE", random.i64(3_600_000..90_000_000)),
        _ if lives_for_seconds(number) => ("PEXPIRE", random.i64(2_000..20_000)),
        _ if number % 50 == 9 => ("PEXPIREAT", YEAR_2100_MS + random.i64(0..1000)),
        _ => return Ok(()),
    };
    batch.push(&arguments(verb, key, [time_ms.to_string().into()]))
}

/// One key of each type with more than 1 MiB of data; returns how many.
fn write_big_keys(batch: &mut Batch, random: &mut Rng) -> Result<usize> {
    const STEPS: usize = 40;
    const STEP_ELEMENTS: usize = 500;
    set(batch, b"big:string", binary(random, 3_000_000..3_000_001))?;
    let element = binary(random, 2_000_000..2_000_001);
    batch.push(&arguments("RPUSH", b"big:list-element", [element]))?;
    for step in 0..STEPS {
        let name = |index: usize| format!("{step}:{index}:");
        let mut values = |with_name: bool| -> Vec<Vec<u8>> {
            (0..STEP_ELEMENTS)
                .map(|index| {
                    let mut value = if with_name {
                        name(index).into_bytes()
                    } else {
                        Vec::new()
                    };
                    value.extend(binary(random, 60..100));
                    value
                })
                .collect()
        };
        batch.push(&arguments("RPUSH", b"big:list", values(false)))?;
        batch.push(&arguments("SADD", b"big:set", values(true)))?;
        let fields = values(false);
        let fields = fields.into_iter().enumerate();
        let fields = fields.flat_map(|(index, value)| [name(index).into_bytes(), value]);
        batch.push(&arguments("HSET", b"big:hash", fields))?;
        let members = values(true);
        let members = members
            .into_iter()
            .enumerate()
            .flat_map(|(index, member)| [format!("{step}.{index}").into_bytes(), member]);
        batch.push(&arguments("ZADD", b"big:zset", members))?;
        for (index, value) in values(false).into_iter().enumerate() {
            let id = (step * STEP_ELEMENTS + index + 1).to_string();
            let rest = [id.into_bytes(), b"field".to_vec(), value];
            batch.push(&arguments("XADD", b"big:stream", rest))?;
        }
    }
    let create = words(&[b"XGROUP", b"CREATE", b"big:stream", b"g", b"0"]);
    batch.add(Command::routed(b"big:stream", &create))?;
    let read = words(&[
        b"XREADGROUP",
        b"GROUP",
        b"g",
        b"c",
        b"COUNT",
        b"5000",
        b"STREAMS",
        b"big:stream",
        b">",
    ]);
    batch.add(Command::routed(b"big:stream", &read))?;
    Ok(7)
}

fn set(batch: &mut Batch, key: &[u8], value: Vec<u8>) -> Result<()> {
    batch.push(&arguments("SET", key, [value]))
}

fn write_sorted_set(batch: &mut Batch, random: &mut Rng, key: &[u8], count: usize) -> Result<()> {
    let members = (0..count).flat_map(|index| {
        let score = match random.u8(0..12) {
            0 => "inf".to_owned(),
            1 => "-inf".to_owned(),
            2 => random.i64(-1000..1000).to_string(),
            3 => "-0".to_owned(),
            4 => "1e300".to_owned(),
            _ => (random.f64() * 2000.0 - 1000.0).to_string(),
        };
        [score.into_bytes(), format!("member{index}").into_bytes()]
    });
    batch.push(&arguments("ZADD", key, members))
}

fn write_hash(batch: &mut Batch, random: &mut Rng, key: &[u8], count: usize) -> Result<()> {
    let fields = (0..count).flat_map(|_| [element(random), element(random)]);
    batch.push(&arguments("HSET", key, fields))
}

fn write_hash_with_field_ttl(
    batch: &mut Batch,
    random: &mut Rng,
    key: &[u8],
    count: usize,
) -> Result<()> {
    let fields = (0..count).flat_map(|field| [field.to_string().into_bytes(), element(random)]);
    batch.push(&arguments("HSET", key, fields))?;
    for field in 0..count.min(20) {
        let time_ms = if random.u8(0..10) == 0 {
            random.i64(2_000..20_000)
        } else {
            random.i64(3_600_000..90_000_000)
        };
        if random.bool() {
            let field = field.to_string();
            let rest = [time_ms.to_string().as_str(), "FIELDS", "1", &field]
                .map(|word| word.as_bytes().to_vec());
            batch.push(&arguments("HPEXPIRE", key, rest))?;
        }
    }
    Ok(())
}

fn write_stream(batch: &mut Batch, random: &mut Rng, key: &[u8], count: usize) -> Result<()> {
    for entry in 1..=count {
        let id = format!("{}-{}", 1_700_000_000_000 + entry, entry % 3);
        let mut rest = vec![id.into_bytes()];
        // Most entries have the same fields, which servers store once.
        let same = ["temperature", "humidity"];
        for field in same.iter().take(1 + entry % 2) {
            rest.push(field.as_bytes().to_vec());
            rest.push(element(random));
        }
        if random.u8(0..10) == 0 {
            rest.push(element(random));
            rest.push(element(random));
        }
        batch.push(&arguments("XADD", key, rest))?;
    }
    if count > 3 {
        let deleted = format!("{}-{}", 1_700_000_000_000_usize + 2, 2);
        batch.push(&arguments("XDEL", key, [deleted.into_bytes()]))?;
    }
    if random.u8(0..20) == 0 {
        batch.push(&arguments(
            "XTRIM",
            key,
            [b"MAXLEN".to_vec(), b"0".to_vec()],
        ))?;
    }
    Ok(())
}

fn write_stream_with_groups(
    batch: &mut Batch,
    random: &mut Rng,
    key: &[u8],
    count: usize,
) -> Result<()> {
    write_stream(batch, random, key, count)?;
    for group in ["empty", "readers", "other"] {
        let start: &[u8] = if group == "empty" { b"$" } else { b"0" };
        let create = words(&[b"XGROUP", b"CREATE", key, group.as_bytes(), start]);
        batch.add(Command::routed(key, &create))?;
    }
    for consumer in [&b"alice"[..], b"bob", b"\x00\xff"] {
        let some = random.usize(1..10).to_string();
        let read = words(&[
            b"XREADGROUP",
            b"GROUP",
            b"readers",
            consumer,
            b"COUNT",
            some.as_bytes(),
            b"STREAMS",
            key,
            b">",
        ]);
        batch.add(Command::routed(key, &read))?;
    }
    batch.push(&words(&[b"XACK", key, b"readers", b"1700000000001-1"]))?;
    // Delivered again to another consumer: its delivery count rises.
    batch.push(&words(&[
        b"XCLAIM",
        key,
        b"readers",
        b"bob",
        b"0",
        b"1700000000003-0",
    ]))
}

fn write_vector_set(batch: &mut Batch, random: &mut Rng, key: &[u8], count: usize) -> Result<()> {
    for index in 0..count {
        let mut rest: Vec<Vec<u8>> = vec![b"VALUES".to_vec(), b"4".to_vec()];
        rest.extend((0..4).map(|_| random.f32().to_string().into_bytes()));
        rest.push(format!("element{index}").into_bytes());
        batch.push(&arguments("VADD", key, rest))?;
    }
    Ok(())
}

/// A verb, a key and what follows.
fn arguments(verb: &str, key: &[u8], rest: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut all = vec![verb.as_bytes().to_vec(), key.to_vec()];
    all.extend(rest);
    all
}

fn words(all: &[&[u8]]) -> Vec<Vec<u8>> {
    all.iter().map(|word| word.to_vec()).collect()
}

/// Any bytes at all.
fn binary(random: &mut Rng, length: std::ops::Range<usize>) -> Vec<u8> {
    let mut bytes = vec![0; random.usize(length)];
    random.fill(&mut bytes);
    bytes
}

fn text(random: &mut Rng, length: std::ops::Range<usize>) -> Vec<u8> {
    (0..random.usize(length))
        .map(|_| random.alphanumeric() as u8)
        .collect()
}

/// What collections hold: numbers of every width, short text, bytes, and now and then something long.
fn element(random: &mut Rng) -> Vec<u8> {
    match random.u8(0..10) {
        0 => random.i8(..).to_string().into_bytes(),
        1 => random.i32(..).to_string().into_bytes(),
        2 => random.i64(..).to_string().into_bytes(),
        3 => binary(random, 0..30),
        4 if random.u8(0..8) == 0 => text(random, 100..400),
        _ => text(random, 4..40),
    }
}
