//! Every form of every command on data: what clients send and what servers make of it for their replicas.
//!
//! One form a line, words between spaces. What is drawn anew each time:
//!
//! | word | stands for | word | stands for |
//! |---|---|---|---|
//! | `@` | a key of the sequence | `%g` `%c` | a group, a consumer |
//! | `%v` `%n` | a value, a small number | `%i` `%j` | an id among old ones, one that is probably above them |
//! | `%f` `%m` `%e` | a field, a member, an element | `%r` | entries read |
//! | `%o` | an offset | `%t` `%T` | a time far ahead, in milliseconds, in seconds |
//! | `%s` | a score | `%p` | a serialized value |
//! | `%l` | a coordinate | | |

use Kind::{Any, Array, Hash, HyperLogLog, List, Set, SortedSet, Str, Stream, Vector};
use fastrand::Rng;

/// Which keys a form is for, so that sequences mostly hold what fits together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Any,
    Str,
    HyperLogLog,
    Hash,
    List,
    Set,
    SortedSet,
    Stream,
    Vector,
    Array,
}

impl Kind {
    /// What a sequence is about.
    pub const TYPES: [Kind; 7] = [Str, HyperLogLog, Hash, List, Set, SortedSet, Stream];
}

pub const FORMS: &[(Kind, &str)] = &[
    (
        Any,
        "DEL @
DEL @ @
UNLINK @
UNLINK @ @
DELIFEQ @ %v
DELEX @
DELEX @ IFEQ %v
RENAME @ @
RENAMENX @ @
COPY @ @
COPY @ @ REPLACE
EXPIRE @ 100000
EXPIRE @ 200000 NX
PEXPIRE @ 100000000
EXPIREAT @ %T
PEXPIREAT @ %t
PEXPIREAT @ %t NX
PEXPIREAT @ %t XX
PEXPIREAT @ %t GT
PEXPIREAT @ %t LT
PERSIST @
RESTORE @ 0 %p
RESTORE @ 0 %p REPLACE
RESTORE @ 100000000 %p REPLACE
RESTORE @ %t %p REPLACE ABSTTL
RESTORE @ %t %p ABSTTL REPLACE FREQ 3
RESTORE @ %t %p ABSTTL REPLACE IDLETIME 5
SORT @ BY nosort ALPHA STORE @",
    ),
    (
        Str,
        "SET @ %v
SET @ %v KEEPTTL
SET @ %v PXAT %t
SET @ %v EXAT %T
SET @ %v PXAT 1
SET @ %v EX 100000
SET @ %v PX 100000000
SET @ %v NX
SET @ %v XX
SET @ %v XX KEEPTTL
SET @ %v GET
SET @ %v IFEQ %v
SETNX @ %v
SETEX @ 100000 %v
PSETEX @ 100000000 %v
GETSET @ %v
GETDEL @
GETEX @ PXAT %t
GETEX @ EXAT %T
GETEX @ EX 100000
GETEX @ PERSIST
MSET @ %v
MSET @ %v @ %v
MSETNX @ %v @ %v
MSETEX 2 @ %v @ %v
MSETEX 2 @ %v @ %v PXAT %t
APPEND @ %v
SETRANGE @ %o %v
INCR @
DECR @
INCRBY @ %n
DECRBY @ 3
INCRBYFLOAT @ 1.5
INCREX @ EX 100000
SETBIT @ %o 0
SETBIT @ %o 1
BITFIELD @ SET u8 %o %n
BITFIELD @ SET i5 #1 %n GET u8 0
BITFIELD @ SET u8 0 %n OVERFLOW FAIL SET u2 %o %n
BITFIELD @ OVERFLOW SAT SET i4 %o -9
BITFIELD @ INCRBY u8 %o 3
BITFIELD @ SET u8 %o %n INCRBY i5 #2 1
BITOP AND @ @ @
BITOP XOR @ @ @
BITOP NOT @ @",
    ),
    (
        HyperLogLog,
        "PFADD @
PFADD @ %e
PFADD @ %e %e %e
PFMERGE @ @
PFMERGE @ @ @
PFCOUNT @
PFDEBUG TODENSE @
PFDEBUG GETREG @",
    ),
    (
        Hash,
        "HSET @ %f %v
HSET @ %f %v %f %v
HMSET @ %f %v
HSETNX @ %f %v
HDEL @ %f
HDEL @ %f %f
HINCRBY @ %f 3
HINCRBYFLOAT @ %f 1.5
HEXPIRE @ 100000 FIELDS 1 %f
HEXPIRE @ 200000 NX FIELDS 1 %f
HPEXPIRE @ 100000000 FIELDS 1 %f
HEXPIREAT @ %T FIELDS 1 %f
HPEXPIREAT @ %t FIELDS 1 %f
HPEXPIREAT @ %t FIELDS 2 %f %f
HPEXPIREAT @ %t NX FIELDS 1 %f
HPEXPIREAT @ %t XX FIELDS 1 %f
HPEXPIREAT @ %t GT FIELDS 1 %f
HPEXPIREAT @ %t LT FIELDS 2 %f %f
HPERSIST @ FIELDS 1 %f
HPERSIST @ FIELDS 2 %f %f
HGETDEL @ FIELDS 1 %f
HGETDEL @ FIELDS 2 %f %f
HGETEX @ PXAT %t FIELDS 1 %f
HGETEX @ PXAT %t FIELDS 2 %f %f
HGETEX @ EX 100000 FIELDS 1 %f
HGETEX @ PERSIST FIELDS 1 %f
HSETEX @ FIELDS 1 %f %v
HSETEX @ PXAT %t FIELDS 1 %f %v
HSETEX @ PXAT %t FIELDS 2 %f %v %f %v
HSETEX @ EXAT %T FIELDS 1 %f %v
HSETEX @ EX 100000 FIELDS 1 %f %v
HSETEX @ KEEPTTL FIELDS 1 %f %v
HSETEX @ FNX PXAT %t FIELDS 1 %f %v
HSETEX @ FXX PXAT %t FIELDS 1 %f %v",
    ),
    (
        List,
        "LPUSH @ %e
RPUSH @ %e %e
LPUSHX @ %e
RPUSHX @ %e
LPOP @
LPOP @ 2
RPOP @
RPOP @ 2
LSET @ 0 %e
LREM @ 0 %e
LREM @ 1 %e
LTRIM @ 0 2
LTRIM @ 1 -1
LINSERT @ BEFORE %e %e
LMOVE @ @ LEFT RIGHT
LMOVE @ @ RIGHT RIGHT
BLMOVE @ @ LEFT LEFT 1
LMOVEM @ @ LEFT RIGHT COUNT 2
BLMOVEM @ @ LEFT RIGHT 1 COUNT 2
RPOPLPUSH @ @
BRPOPLPUSH @ @ 1
BLPOP @ @ 1
BRPOP @ 1
LMPOP 2 @ @ LEFT
LMPOP 1 @ RIGHT COUNT 2
BLMPOP 1 2 @ @ LEFT",
    ),
    (
        Set,
        "SADD @ %m
SADD @ %m %m
SADD @ %n %n
SREM @ %m
SREM @ %m %m
SPOP @
SPOP @ 2
SMOVE @ @ %m
SINTERSTORE @ @ @
SUNIONSTORE @ @ @
SDIFFSTORE @ @ @",
    ),
    (
        SortedSet,
        "ZADD @ %s %m
ZADD @ %s %m %s %m
ZADD @ CH %s %m
ZADD @ NX %s %m
ZADD @ XX %s %m
ZADD @ XX CH %s %m %s %m
ZADD @ GT %s %m
ZADD @ LT %s %m
ZADD @ INCR %s %m
ZINCRBY @ 2 %m
ZREM @ %m
ZREM @ %m %m
ZREMRANGEBYSCORE @ 0 2
ZREMRANGEBYSCORE @ (1 inf
ZREMRANGEBYRANK @ 0 0
ZREMRANGEBYLEX @ [a [b
ZPOPMIN @
ZPOPMAX @ 2
BZPOPMIN @ @ 1
BZPOPMAX @ 1
ZMPOP 2 @ @ MIN
ZMPOP 1 @ MAX COUNT 2
BZMPOP 1 2 @ @ MAX
ZUNIONSTORE @ 2 @ @ WEIGHTS 1 2
ZINTERSTORE @ 2 @ @
ZDIFFSTORE @ 2 @ @
ZRANGESTORE @ @ 0 1
GEOADD @ %l %l %m
GEOADD @ CH %l %l %m %l %l %m
GEOADD @ NX %l %l %m
GEOSEARCHSTORE @ @ FROMLONLAT 0 0 BYRADIUS 20000 km
GEORADIUS @ 0 0 20000 km STORE @
GEORADIUS @ 0 0 20000 km STOREDIST @
GEORADIUSBYMEMBER @ %m 20000 km STORE @",
    ),
    (
        Stream,
        "XADD @ * f %v
XADD @ %j f %v
XADD @ %i f %v
XADD @ %i f %v g %v
XADD @ NOMKSTREAM %j f %v
XADD @ MAXLEN = 2 %j f %v
XADD @ MAXLEN 3 %j f %v
XADD @ MAXLEN ~ 1 %j f %v
XADD @ MAXLEN = 0 %j f %v
XADD @ MINID = %i %j f %v
XADD @ MINID ~ %i LIMIT 10 %j f %v
XADD @ KEEPREF MAXLEN = 2 %j f %v
XADD @ DELREF MAXLEN = 2 %j f %v
XADD @ ACKED MAXLEN = 2 %j f %v
XDEL @ %i
XDEL @ %i %i
XDELEX @ DELREF IDS 1 %i
XTRIM @ MAXLEN = 2
XTRIM @ MINID = %i
XSETID @ %i
XSETID @ %j
XSETID @ %j ENTRIESADDED 9 MAXDELETEDID 1-1
XACK @ %g %i
XACK @ %g %i %i
XACKDEL @ %g DELREF IDS 1 %i
XNACK @ %g FAIL IDS 1 %i
XCLAIM @ %g %c 0 %i
XCLAIM @ %g %c 0 %i TIME 1700000000000 RETRYCOUNT 2 FORCE JUSTID LASTID %i
XAUTOCLAIM @ %g %c 0 0
XREADGROUP GROUP %g %c STREAMS @ >
XREADGROUP GROUP %g %c COUNT 1 NOACK STREAMS @ >
XGROUP CREATE @ %g %i MKSTREAM
XGROUP CREATE @ %g 0
XGROUP CREATE @ %g $ MKSTREAM
XGROUP CREATE @ %g %i MKSTREAM ENTRIESREAD %r
XGROUP SETID @ %g %i
XGROUP SETID @ %g $
XGROUP SETID @ %g %i ENTRIESREAD %r
XGROUP DESTROY @ %g
XGROUP CREATECONSUMER @ %g %c
XGROUP DELCONSUMER @ %g %c
XCFGSET @ IDMP-DURATION 100
XIDMPRECORD @ p i %i",
    ),
    (
        Vector,
        "VADD @ VALUES 2 %n 1 %m
VREM @ %m
VSETATTR @ %m {\"a\":%n}",
    ),
    (
        Array,
        "ARSET @ 0 %v
ARMSET @ 0 %v 1 %v
ARDEL @ 0
ARDELRANGE @ 0 1
ARINSERT @ %v
ARRING @ 3 %v
ARSEEK @ 1",
    ),
];

/// All forms one by one.
pub fn all() -> Vec<(Kind, &'static str)> {
    let lines = |(kind, text): &(Kind, &'static str)| {
        let kind = *kind;
        text.lines().map(move |line| (kind, line))
    };
    FORMS.iter().flat_map(lines).collect()
}

/// Draws the words of forms for one sequence.
pub struct Words<'a> {
    pub random: &'a mut Rng,
    /// Keys of the sequence.
    pub keys: usize,
    /// Serialized values of this server.
    pub payloads: &'a [(Kind, Vec<u8>)],
    /// Milliseconds of the last id that was meant to be above the others.
    pub newest_id: u32,
}

impl Words<'_> {
    /// The words of a form. A key is `@` and its number.
    pub fn of(&mut self, form: &str) -> Vec<Vec<u8>> {
        form.split(' ').map(|word| self.word(word)).collect()
    }

    fn word(&mut self, word: &str) -> Vec<u8> {
        let random = &mut *self.random;
        let text = match word {
            "@" => format!("@{}", random.usize(..self.keys)),
            "%v" => one(random, &["1", "7", "-3", "2.5", "a", "bb", "long value"]),
            "%n" => random.u8(0..9).to_string(),
            "%f" => one(random, &["f", "g", "h"]),
            "%m" => one(random, &["a", "b", "c", "1"]),
            "%e" => one(random, &["x", "y", "z", "1", "2"]),
            "%o" => random.u8(0..40).to_string(),
            "%s" => one(
                random,
                &["0", "-0", "1", "2", "3.5", "-inf", "+inf", "1e300"],
            ),
            "%l" => one(random, &["0", "1.5", "-20", "80"]),
            "%i" => one(random, &["1-1", "2-0", "3", "4-1", "5-1", "6-1"]),
            "%j" => {
                // Now and then no higher than the last one, or far below it.
                self.newest_id += random.u32(0..3);
                format!("{}-{}", self.newest_id, random.u8(0..3))
            }
            "%g" => one(random, &["g", "g", "h"]),
            "%c" => one(random, &["c", "d"]),
            "%r" => random.u8(0..6).to_string(),
            "%t" => (4_000_000_000_000 + random.u64(0..4) * 10_000_000_000).to_string(),
            "%T" => (5_000_000_000 + random.u64(0..4) * 10_000_000).to_string(),
            "%p" => return self.payloads[random.usize(..self.payloads.len())].1.clone(),
            other => other.replace("%n", &random.u8(0..3).to_string()),
        };
        text.into_bytes()
    }
}

fn one(random: &mut Rng, texts: &[&str]) -> String {
    texts[random.usize(..texts.len())].to_owned()
}
