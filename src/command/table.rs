//! The rows: every write command of Redis 6.0 to 8.10 and Valkey 8.0 to 9.1, what else a stream holds, and the reads.
//!
//! Key places are checked against what Redis 6.0, 7.0, 8.0 and Valkey 8.0, 8.1, 9.1 say of themselves
//! (`tests/commands.rs`); those of commands that came later are from their documentation. The reason of each verdict on
//! replay is in the module `safety`. Left to be learned: commands of loadable modules, and `HIMPORT` (Redis 8.10), which
//! depends on state of its connection.

use super::origin;
use super::rewrite::{
    Features, Lack, Rewriting, Rule, Verdict, Watch, hashes, lifetimes, restore, streams,
    structures,
};
use super::safety;
use super::{Command, FunctionOp, Kind, Origin, Replay, Safety, ScriptOp, SlotOp};
use crate::command::KeySpec;
use crate::resp::Frame;
use std::borrow::Cow;

use KeySpec::{Counted, DestinationAndCounted, GeoStore, Migrate, None, One, SortStore, Streams};

const PAIR: KeySpec = KeySpec::pair();
const ALL: KeySpec = KeySpec::all();
const ALL_BUT_LAST: KeySpec = KeySpec::Range {
    first: 1,
    last: -2,
    step: 1,
};
const PAIRS: KeySpec = KeySpec::Range {
    first: 1,
    last: -1,
    step: 2,
};
const FROM_SECOND: KeySpec = KeySpec::Range {
    first: 2,
    last: -1,
    step: 1,
};
const SECOND: KeySpec = KeySpec::at(2);

const V6_2: Features = Features::REDIS_6_2;
const V7_0: Features = Features::REDIS_7_0;
const RELATIVE: Features = Features::RELATIVE_TIME;
const ALWAYS: Features = Features::ALWAYS;
const DEADLINE: Features = Features::DEADLINE;
const FIELD_DEADLINE: Features = Features::FIELD_TTL.and(DEADLINE);
const SET_OPTIONS: Features = V6_2
    .and(Features::SET_IF_EQUAL)
    .and(Features::DELEX)
    .and(RELATIVE)
    .and(DEADLINE);

/// Of a time: its unit in milliseconds, and whether it counts from 1970 or from when the command was executed.
const S: u64 = 1000;
const MS: u64 = 1;
const AT: bool = true;
const AFTER: bool = false;

/// A count at argument `at` with the keys after it.
const fn counted(at: u8) -> KeySpec {
    Counted {
        count_at: at,
        step: 1,
    }
}

const fn row(name: &'static str, kind: Kind, keys: KeySpec, safety: Safety) -> Command {
    Command {
        name: Cow::Borrowed(name),
        kind,
        keys,
        safety,
        watch: Watch::NEVER,
        origin: Origin::Kept,
        subcommands: &[],
    }
}

/// A write that may be applied twice.
const fn safe(name: &'static str, keys: KeySpec) -> Command {
    row(name, Kind::Data, keys, Safety::SAFE)
}

/// A write that must be applied once.
const fn once(name: &'static str, keys: KeySpec) -> Command {
    row(name, Kind::Data, keys, Safety::UNSAFE)
}

/// A write that removes what it may not remove when it is repeated, and with it a TTL.
const fn removal(name: &'static str) -> Command {
    row(name, Kind::Data, One, Safety::REMOVAL)
}

/// A write on one key whose arguments decide whether it may be applied twice.
const fn when(name: &'static str, rule: fn(&Frame<'_>) -> Replay) -> Command {
    row(name, Kind::Data, One, Safety::When(rule))
}

const fn read(name: &'static str, keys: KeySpec) -> Command {
    row(name, Kind::NoEffect, keys, Safety::SAFE)
}

/// Neither keys nor data: steers the stream itself.
const fn steer(name: &'static str, kind: Kind) -> Command {
    row(name, kind, None, Safety::SAFE)
}

const fn slots(name: &'static str, op: SlotOp) -> Command {
    row(name, Kind::Slots(op), None, Safety::UNSAFE)
}

const fn container(name: &'static str, subcommands: &'static [Command]) -> Command {
    Command {
        name: Cow::Borrowed(name),
        kind: Kind::Container,
        keys: None,
        safety: Safety::UNSAFE,
        watch: Watch::NEVER,
        origin: Origin::Kept,
        subcommands,
    }
}

type Rewrite = fn(&Frame<'_>, &mut Rewriting<'_>) -> Result<Verdict, Lack>;

impl Command {
    /// With more than `beyond` arguments, to a target that lacks any of `needs`, the rule is asked.
    const fn newer(mut self, needs: Features, beyond: u8, rule: Rewrite) -> Command {
        self.watch = Watch {
            needs,
            beyond,
            unless_number: false,
            rule: Rule::Rewrite(rule),
        };
        self
    }

    /// Like [`Command::newer`], for a command whose options would stand before the number that is argument 2.
    const fn newer_before_number(mut self, needs: Features, beyond: u8, rule: Rewrite) -> Command {
        self = self.newer(needs, beyond, rule);
        self.watch.unless_number = true;
        self
    }

    /// To a target that lacks `needs` nothing says the same.
    const fn without(mut self, needs: Features, lack: Lack) -> Command {
        self.watch = Watch {
            needs,
            beyond: 0,
            unless_number: false,
            rule: Rule::Lacks(lack),
        };
        self
    }

    /// Its verb does not always reach the target's stream as it was sent.
    const fn renamed(mut self) -> Command {
        self.origin = Origin::Lost;
        self
    }

    /// The same, where `rule` says so.
    const fn kept_when(mut self, rule: fn(&Frame<'_>) -> bool) -> Command {
        self.origin = Origin::When(rule);
        self
    }

    /// The name of a row, which is known at compile time; learned commands have none.
    pub(super) const fn static_name(&self) -> &'static str {
        match self.name {
            Cow::Borrowed(name) => name,
            Cow::Owned(_) => panic!("a row's name is borrowed"),
        }
    }
}

static XGROUP: [Command; 5] = [
    row(
        "xgroup|create",
        Kind::Data,
        SECOND,
        Safety::When(safety::group_at_id),
    )
    .newer(V7_0, 5, streams::group),
    row(
        "xgroup|setid",
        Kind::Data,
        SECOND,
        Safety::When(safety::group_at_id),
    )
    .newer(V7_0, 5, streams::group),
    safe("xgroup|destroy", SECOND),
    safe("xgroup|createconsumer", SECOND).newer(V6_2, 1, streams::create_consumer),
    safe("xgroup|delconsumer", SECOND),
];

static FUNCTION: [Command; 4] = [
    row(
        "function|load",
        Kind::Function(FunctionOp::Load),
        None,
        Safety::When(safety::function_load),
    )
    .newer(V7_0, 1, restore::function),
    steer("function|delete", Kind::Function(FunctionOp::Delete)).newer(
        V7_0,
        1,
        restore::no_function,
    ),
    steer("function|flush", Kind::Function(FunctionOp::Flush)).newer(V7_0, 1, restore::no_function),
    row(
        "function|restore",
        Kind::Function(FunctionOp::Restore),
        None,
        Safety::When(safety::function_restore),
    )
    .newer(ALWAYS, 2, restore::function_restore),
];

static SCRIPT: [Command; 2] = [
    steer("script|load", Kind::Script(ScriptOp::Load)),
    steer("script|flush", Kind::Script(ScriptOp::Flush)),
];

static CLUSTER: [Command; 3] = [
    slots("cluster|syncslots", SlotOp::SyncSlots),
    slots("cluster|setslot", SlotOp::SetSlot),
    slots("cluster|flushslot", SlotOp::FlushSlot),
];

static OBJECT: [Command; 4] = [
    read("object|encoding", SECOND),
    read("object|freq", SECOND),
    read("object|idletime", SECOND),
    read("object|refcount", SECOND),
];

static MEMORY: [Command; 1] = [read("memory|usage", SECOND)];

static XINFO: [Command; 3] = [
    read("xinfo|stream", SECOND),
    read("xinfo|groups", SECOND),
    read("xinfo|consumers", SECOND),
];

/// Every row; subcommands stand in their containers.
pub static COMMANDS: &[Command] = &[
    // The stream itself.
    steer("select", Kind::Select),
    steer("ping", Kind::Ping),
    steer("replconf", Kind::Replconf),
    steer("multi", Kind::Multi),
    steer("exec", Kind::Exec),
    steer("discard", Kind::Discard),
    // Whole databases. Unsafe: what the watermarks of slots cover must not be flushed again.
    row("flushall", Kind::FlushAll, None, Safety::UNSAFE).newer(V6_2, 1, lifetimes::flush),
    row("flushdb", Kind::FlushDb, None, Safety::UNSAFE).newer(V6_2, 1, lifetimes::flush),
    row("swapdb", Kind::SwapDb, None, Safety::UNSAFE).newer(DEADLINE, 2, lifetimes::leave_database),
    row("move", Kind::Move, One, Safety::UNSAFE).newer(DEADLINE, 2, lifetimes::leave_database),
    // Messages leave the data alone; delivering one twice is the price of a replay.
    steer("publish", Kind::Publish),
    row("spublish", Kind::ShardPublish, One, Safety::SAFE).without(V7_0, Lack::ShardedChannels),
    // Scripts and functions.
    row("eval", Kind::Eval, counted(2), Safety::UNSAFE).renamed(),
    row("evalsha", Kind::Eval, counted(2), Safety::UNSAFE).renamed(),
    row("fcall", Kind::Eval, counted(2), Safety::UNSAFE)
        .without(V7_0, Lack::Functions)
        .renamed(),
    container("function", &FUNCTION),
    container("script", &SCRIPT),
    // Slots.
    container("cluster", &CLUSTER),
    row(
        "restore-asking",
        Kind::Slots(SlotOp::RestoreAsking),
        One,
        Safety::When(safety::restore),
    )
    .newer(ALWAYS.and(DEADLINE), 3, restore::restore),
    slots("trimslots", SlotOp::TrimSlots).renamed(),
    slots("sflush", SlotOp::SlotFlush).renamed(),
    // Keys of any type.
    safe("del", ALL),
    safe("unlink", ALL),
    when("delex", safety::delex)
        .newer(Features::DELEX, 1, lifetimes::delete)
        .renamed(),
    once("delifeq", One)
        .newer(Features::DELIFEQ, 1, lifetimes::delete)
        .renamed(),
    once("rename", PAIR).newer(DEADLINE, 2, lifetimes::rename),
    once("renamenx", PAIR).newer(DEADLINE, 2, lifetimes::rename),
    once("copy", PAIR).newer(V6_2.and(DEADLINE), 1, structures::copy),
    when("restore", safety::restore).newer(ALWAYS.and(DEADLINE), 3, restore::restore),
    once("migrate", Migrate).renamed(),
    once("sort", SortStore),
    once("expire", One)
        .newer(
            RELATIVE.and(DEADLINE).and(V7_0),
            2,
            lifetimes::expire::<S, AFTER>,
        )
        .renamed(),
    once("pexpire", One)
        .newer(
            RELATIVE.and(DEADLINE).and(V7_0),
            2,
            lifetimes::expire::<MS, AFTER>,
        )
        .renamed(),
    when("expireat", safety::expire_at)
        .newer(DEADLINE.and(V7_0), 2, lifetimes::expire::<S, AT>)
        .renamed(),
    when("pexpireat", safety::expire_at).newer(DEADLINE.and(V7_0), 2, lifetimes::expire::<MS, AT>),
    safe("persist", One),
    // Strings.
    when("set", safety::set)
        .newer(SET_OPTIONS, 3, lifetimes::set)
        .kept_when(origin::set),
    once("setnx", One),
    once("setex", One)
        .newer(RELATIVE.and(DEADLINE), 2, lifetimes::setex::<S>)
        .renamed(),
    once("psetex", One)
        .newer(RELATIVE.and(DEADLINE), 2, lifetimes::setex::<MS>)
        .renamed(),
    safe("getset", One).renamed(),
    removal("getdel")
        .newer(V6_2, 1, lifetimes::delete)
        .renamed(),
    when("getex", safety::getex)
        .newer(V6_2.and(DEADLINE), 1, lifetimes::getex)
        .renamed(),
    safe("mset", PAIRS),
    once("msetnx", PAIRS),
    row(
        "msetex",
        Kind::Data,
        Counted {
            count_at: 1,
            step: 2,
        },
        Safety::When(safety::msetex),
    )
    .newer(
        Features::MSETEX.and(RELATIVE).and(DEADLINE),
        1,
        lifetimes::msetex,
    )
    .renamed(),
    once("append", One),
    safe("setrange", One),
    once("incr", One),
    once("decr", One),
    once("incrby", One),
    once("decrby", One),
    once("incrbyfloat", One).renamed(),
    once("increx", One)
        .without(Features::REDIS_8_6, Lack::Command)
        .renamed(),
    safe("setbit", One),
    when("bitfield", safety::bitfield),
    once("bitop", FROM_SECOND).newer(Features::REDIS_8_2, 1, structures::bitop),
    once("pfadd", One),
    once("pfmerge", ALL),
    once("pfcount", ALL).renamed(),
    once("pfdebug", SECOND).renamed(),
    // Hashes.
    safe("hset", One),
    safe("hmset", One),
    once("hsetnx", One).renamed(),
    removal("hdel"),
    removal("hgetdel")
        .newer(Features::HGETDEL, 1, hashes::hgetdel)
        .renamed(),
    when("hgetex", safety::hgetex)
        .newer(Features::HSETEX.and(DEADLINE), 1, hashes::hgetex)
        .renamed(),
    when("hsetex", safety::hsetex).newer(Features::HSETEX.and(DEADLINE), 1, hashes::hsetex),
    once("hincrby", One).renamed(),
    once("hincrbyfloat", One).renamed(),
    once("hexpire", One)
        .newer(FIELD_DEADLINE, 1, hashes::expire::<S, AFTER>)
        .renamed(),
    once("hpexpire", One)
        .newer(FIELD_DEADLINE, 1, hashes::expire::<MS, AFTER>)
        .renamed(),
    when("hexpireat", safety::hash_expire_at)
        .newer(FIELD_DEADLINE, 1, hashes::expire::<S, AT>)
        .renamed(),
    when("hpexpireat", safety::hash_expire_at).newer(FIELD_DEADLINE, 1, hashes::expire::<MS, AT>),
    safe("hpersist", One).newer(Features::FIELD_TTL, 1, hashes::hpersist),
    // Lists.
    once("lpush", One),
    once("rpush", One),
    once("lpushx", One),
    once("rpushx", One),
    once("lpop", One).newer(V6_2, 2, structures::lpop),
    once("rpop", One).newer(V6_2, 2, structures::rpop),
    once("lset", One),
    once("lrem", One),
    once("ltrim", One),
    once("linsert", One),
    once("lmove", PAIR).newer(V6_2, 1, structures::lmove),
    once("blmove", PAIR)
        .newer(V6_2, 1, structures::lmove)
        .renamed(),
    once("lmovem", PAIR)
        .without(Features::REDIS_8_6, Lack::Command)
        .renamed(),
    once("blmovem", PAIR)
        .without(Features::REDIS_8_6, Lack::Command)
        .renamed(),
    once("rpoplpush", PAIR),
    once("brpoplpush", PAIR).renamed(),
    once("blpop", ALL_BUT_LAST).renamed(),
    once("brpop", ALL_BUT_LAST).renamed(),
    once("lmpop", counted(1))
        .without(V7_0, Lack::Command)
        .renamed(),
    once("blmpop", counted(2))
        .without(V7_0, Lack::Command)
        .renamed(),
    // Sets.
    safe("sadd", One),
    removal("srem"),
    once("spop", One).renamed(),
    once("smove", PAIR),
    once("sinterstore", ALL),
    once("sunionstore", ALL),
    once("sdiffstore", ALL),
    // Sorted sets.
    when("zadd", safety::zadd).newer_before_number(V6_2, 4, structures::zadd),
    once("zincrby", One),
    removal("zrem"),
    removal("zremrangebyscore"),
    once("zremrangebyrank", One),
    // With unequal scores the server may remove anything.
    once("zremrangebylex", One),
    once("zpopmin", One),
    once("zpopmax", One),
    once("bzpopmin", ALL_BUT_LAST).renamed(),
    once("bzpopmax", ALL_BUT_LAST).renamed(),
    once("zmpop", counted(1))
        .without(V7_0, Lack::Command)
        .renamed(),
    once("bzmpop", counted(2))
        .without(V7_0, Lack::Command)
        .renamed(),
    once("zunionstore", DestinationAndCounted),
    once("zinterstore", DestinationAndCounted),
    once("zdiffstore", DestinationAndCounted).newer(V6_2, 1, structures::zdiffstore),
    once("zrangestore", PAIR).newer(V6_2, 1, structures::zrangestore),
    when("geoadd", safety::geoadd).renamed(),
    once("geosearchstore", PAIR).newer(V6_2, 1, structures::geosearchstore),
    once("georadius", GeoStore { options_at: 6 }).newer(V6_2, 6, structures::georadius),
    once("georadiusbymember", GeoStore { options_at: 5 }).newer(V6_2, 6, structures::georadius),
    // Streams.
    when("xadd", safety::xadd).newer_before_number(ALWAYS, 5, streams::xadd),
    when("xdel", safety::xdel),
    once("xdelex", One)
        .without(Features::REDIS_8_2, Lack::Command)
        .renamed(),
    once("xtrim", One).newer(ALWAYS, 1, streams::xtrim),
    once("xsetid", One).newer(V7_0, 3, streams::xsetid),
    once("xcfgset", One)
        .without(Features::REDIS_8_6, Lack::Command)
        .renamed(),
    once("xidmprecord", One)
        .without(Features::REDIS_8_6, Lack::Command)
        .renamed(),
    once("xnack", One)
        .without(Features::REDIS_8_6, Lack::Command)
        .renamed(),
    safe("xack", One),
    once("xackdel", One)
        .without(Features::REDIS_8_2, Lack::Command)
        .renamed(),
    once("xclaim", One).renamed(),
    once("xautoclaim", One).renamed(),
    once("xreadgroup", Streams).renamed(),
    container("xgroup", &XGROUP),
    // Vector sets: a graph that is built with random choices.
    once("vadd", One).without(Features::VECTOR_SETS, Lack::VectorSets),
    once("vrem", One).without(Features::VECTOR_SETS, Lack::VectorSets),
    once("vsetattr", One).without(Features::VECTOR_SETS, Lack::VectorSets),
    // Arrays (Redis 8.8). What sets by index may be safe as well, but no server of that version was at hand to try.
    once("arset", One)
        .without(Features::REDIS_8_6, Lack::Command)
        .renamed(),
    once("armset", One)
        .without(Features::REDIS_8_6, Lack::Command)
        .renamed(),
    once("ardel", One)
        .without(Features::REDIS_8_6, Lack::Command)
        .renamed(),
    once("ardelrange", One)
        .without(Features::REDIS_8_6, Lack::Command)
        .renamed(),
    once("arinsert", One)
        .without(Features::REDIS_8_6, Lack::Command)
        .renamed(),
    once("arring", One)
        .without(Features::REDIS_8_6, Lack::Command)
        .renamed(),
    once("arseek", One)
        .without(Features::REDIS_8_6, Lack::Command)
        .renamed(),
    // Reads.
    read("touch", ALL),
    read("exists", ALL),
    read("mget", ALL),
    read("watch", ALL),
    read("unwatch", None),
    read("echo", None),
    read("time", None),
    read("dbsize", None),
    read("keys", None),
    read("scan", None),
    read("randomkey", None),
    container("object", &OBJECT),
    container("memory", &MEMORY),
    read("type", One),
    read("dump", One),
    read("ttl", One),
    read("pttl", One),
    read("expiretime", One),
    read("pexpiretime", One),
    read("sort_ro", One),
    read("eval_ro", counted(2)),
    read("evalsha_ro", counted(2)),
    read("fcall_ro", counted(2)),
    read("get", One),
    read("strlen", One),
    read("getrange", One),
    read("substr", One),
    read("digest", One),
    read("lcs", PAIR),
    read("getbit", One),
    read("bitcount", One),
    read("bitpos", One),
    read("bitfield_ro", One),
    read("hget", One),
    read("hmget", One),
    read("hgetall", One),
    read("hkeys", One),
    read("hvals", One),
    read("hlen", One),
    read("hstrlen", One),
    read("hexists", One),
    read("hscan", One),
    read("hrandfield", One),
    read("httl", One),
    read("hpttl", One),
    read("hexpiretime", One),
    read("hpexpiretime", One),
    read("llen", One),
    read("lrange", One),
    read("lindex", One),
    read("lpos", One),
    read("scard", One),
    read("sismember", One),
    read("smismember", One),
    read("smembers", One),
    read("srandmember", One),
    read("sscan", One),
    read("sinter", ALL),
    read("sunion", ALL),
    read("sdiff", ALL),
    read("sintercard", counted(1)),
    read("zscore", One),
    read("zmscore", One),
    read("zcard", One),
    read("zcount", One),
    read("zlexcount", One),
    read("zrange", One),
    read("zrevrange", One),
    read("zrangebyscore", One),
    read("zrevrangebyscore", One),
    read("zrangebylex", One),
    read("zrevrangebylex", One),
    read("zrank", One),
    read("zrevrank", One),
    read("zrandmember", One),
    read("zscan", One),
    read("zunion", counted(1)),
    read("zinter", counted(1)),
    read("zdiff", counted(1)),
    read("zintercard", counted(1)),
    read("geopos", One),
    read("geodist", One),
    read("geohash", One),
    read("geosearch", One),
    read("georadius_ro", One),
    read("georadiusbymember_ro", One),
    read("xlen", One),
    read("xrange", One),
    read("xrevrange", One),
    read("xpending", One),
    read("xread", Streams),
    container("xinfo", &XINFO),
    read("vcard", One),
    read("vdim", One),
    read("vemb", One),
    read("vgetattr", One),
    read("vinfo", One),
    read("vismember", One),
    read("vlinks", One),
    read("vrandmember", One),
    read("vrange", One),
    read("vsim", One),
];
