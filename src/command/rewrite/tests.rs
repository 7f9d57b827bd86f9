//! What becomes of commands on their way to each version.

use super::*;
use crate::command::find;
use crate::command::testing::with_frame;
use crate::rdb::Lineage::{self, Redis, Valkey};
use crate::resp::scan;

/// When everything in these tests was received.
const NOW_MS: u64 = 1_700_000_000_000;

const REDIS_6_0: (Lineage, u32, u32) = (Redis, 6, 0);
const REDIS_7_0: (Lineage, u32, u32) = (Redis, 7, 0);
const REDIS_7_4: (Lineage, u32, u32) = (Redis, 7, 4);
const REDIS_8_0: (Lineage, u32, u32) = (Redis, 8, 0);
const VALKEY_8_0: (Lineage, u32, u32) = (Valkey, 8, 0);
const VALKEY_9_1: (Lineage, u32, u32) = (Valkey, 9, 1);

pub(super) fn target_of((lineage, major, minor): (Lineage, u32, u32), leave_out: bool) -> Target {
    Target {
        lacking: Features::lacking_in(lineage, major, minor),
        format: TargetFormat::of_server(lineage, major, minor),
        leave_out,
    }
}

/// The words of all commands in `bytes`.
pub(super) fn words(mut bytes: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(frame) = scan(bytes).expect("whole commands") {
        let words: Vec<String> = frame
            .args()
            .map(|arg| arg.escape_ascii().to_string())
            .collect();
        lines.push(words.join(" "));
        bytes = &bytes[frame.bytes().len()..];
    }
    lines
}

fn rewrite(line: &str, target: Target, deadlines: &mut dyn Deadlines) -> Result<String, Lack> {
    with_frame(line, |frame| {
        let command = find(frame).unwrap_or_else(|| panic!("{line} is unknown"));
        if !command.watch.wants(target.lacking, frame) {
            return Ok(line.to_owned());
        }
        let mut out = Vec::new();
        let mut rewriting = Rewriting::new(target, NOW_MS, deadlines, &mut out);
        let verdict = rewriting.look(frame, command)?;
        let left_out = !rewriting.left_out.is_empty();
        let lines = words(&out);
        match verdict {
            Verdict::Same => {
                assert!(out.is_empty() && !left_out, "{line}");
                Ok(line.to_owned())
            }
            Verdict::Rebuilt(count) => {
                assert_eq!(lines.len(), count, "{line}");
                let mark = if left_out { "!" } else { "" };
                Ok(mark.to_owned() + &lines.join("; "))
            }
        }
    })
}

/// The target gets `expected`, commands parted by `; `, `!` before them if something was left out.
#[track_caller]
pub(super) fn becomes(line: &str, version: (Lineage, u32, u32), expected: &str) {
    let got = rewrite(line, target_of(version, false), &mut Unaltered);
    assert_eq!(got.as_deref(), Ok(expected), "{line} to {version:?}");
}

#[track_caller]
pub(super) fn is_refused(line: &str, version: (Lineage, u32, u32), lack: Lack, dropped: &str) {
    let got = rewrite(line, target_of(version, false), &mut Unaltered);
    assert_eq!(got, Err(lack), "{line} to {version:?}");
    let got = rewrite(line, target_of(version, true), &mut Unaltered);
    assert_eq!(got, Ok(format!("!{dropped}")), "{line} to {version:?}");
}

#[test]
fn plain_commands_are_never_looked_at() {
    for line in [
        "SET k v",
        "HSET k f v",
        "DEL k",
        "XACK s g 1-1",
        "RPUSH k a",
        "INCR k",
        "FLUSHALL",
    ] {
        with_frame(line, |frame| {
            let watch = find(frame).expect("known").watch;
            let lacking = Features::lacking_in(Redis, 6, 0) | Features::DEADLINE;
            assert!(!watch.wants(lacking, frame), "{line}");
        });
    }
}

#[test]
fn sets_with_options_are_put_into_older_words() {
    let until = format!("SET k v; PEXPIREAT k {}", NOW_MS + 5000);
    becomes("SET k v PXAT 1700000005000", REDIS_6_0, &until);
    becomes("SET k v EXAT 1700000005", REDIS_6_0, &until);
    becomes("SET k v KEEPTTL", REDIS_6_0, "SET k v KEEPTTL");
    becomes("SET k v NX", REDIS_6_0, "SET k v NX");
    becomes("SET k v XX GET KEEPTTL", REDIS_6_0, "SET k v KEEPTTL");
    becomes("SET k v NX GET", REDIS_6_0, "SET k v");
    becomes("SET k v IFEQ old", VALKEY_8_0, "SET k v");
    becomes("SET k v IFEQ old", VALKEY_9_1, "SET k v IFEQ old");
    becomes(
        "SET k v IFEQ old PXAT 1700000005000",
        REDIS_7_0,
        "SET k v PXAT 1700000005000",
    );
    becomes(
        "SET k v PXAT 1700000005000",
        REDIS_7_0,
        "SET k v PXAT 1700000005000",
    );
    becomes("GETDEL k", REDIS_6_0, "DEL k");
    becomes("DELIFEQ k v", REDIS_8_0, "DEL k");
    becomes("GETEX k PERSIST", REDIS_6_0, "PERSIST k");
    becomes("GETEX k PXAT 5", REDIS_6_0, "PEXPIREAT k 5");
    becomes("PEXPIREAT k 5 NX", REDIS_6_0, "PEXPIREAT k 5");
    becomes("PEXPIREAT k 5 NX", REDIS_7_0, "PEXPIREAT k 5 NX");
    becomes("MSETEX 2 a 1 b 2", REDIS_8_0, "MSET a 1 b 2");
    becomes(
        "MSETEX 2 a 1 b 2 NX PXAT 5",
        REDIS_8_0,
        "SET a 1 PXAT 5; SET b 2 PXAT 5",
    );
    becomes("MSETEX 1 a 1 PXAT 5", REDIS_6_0, "SET a 1; PEXPIREAT a 5");
    becomes("FLUSHALL SYNC", REDIS_6_0, "FLUSHALL");
    becomes("FLUSHALL ASYNC", REDIS_6_0, "FLUSHALL ASYNC");
}

#[test]
fn relative_times_count_from_when_they_were_received() {
    let target = |version| {
        let mut target = target_of(version, false);
        target.lacking = target.lacking | Features::unfit_from(Redis, 6);
        target
    };
    for (line, new, old) in [
        (
            "EXPIRE k 5",
            "PEXPIREAT k 1700000005000",
            "PEXPIREAT k 1700000005000",
        ),
        (
            "PEXPIRE k 5",
            "PEXPIREAT k 1700000000005",
            "PEXPIREAT k 1700000000005",
        ),
        (
            "SETEX k 5 v",
            "SET k v PXAT 1700000005000",
            "SET k v; PEXPIREAT k 1700000005000",
        ),
        (
            "PSETEX k 5 v",
            "SET k v PXAT 1700000000005",
            "SET k v; PEXPIREAT k 1700000000005",
        ),
        (
            "sET k v XX PX 5",
            "sET k v PXAT 1700000000005",
            "sET k v; PEXPIREAT k 1700000000005",
        ),
        ("EXPIREAT k 5", "EXPIREAT k 5", "EXPIREAT k 5"),
    ] {
        let got = |version| rewrite(line, target(version), &mut Unaltered);
        assert_eq!(got(REDIS_7_0).as_deref(), Ok(new), "{line}");
        assert_eq!(got(REDIS_6_0).as_deref(), Ok(old), "{line}");
    }
}

#[test]
fn deadlines_of_fields_stop_or_are_left_out() {
    let lack = Lack::FieldTtl;
    is_refused("HPEXPIREAT h 5 FIELDS 1 f", REDIS_7_0, lack, "");
    is_refused(
        "HSETEX h PXAT 5 FIELDS 1 f v",
        VALKEY_8_0,
        lack,
        "HSET h f v",
    );
    becomes("HSETEX h FNX FIELDS 1 f v", REDIS_7_0, "HSET h f v");
    becomes(
        "HSETEX h KEEPTTL FIELDS 2 f v fields w",
        REDIS_6_0,
        "HSET h f v fields w",
    );
    becomes(
        "HSETEX h PXAT 5 FIELDS 2 f v g w",
        REDIS_7_4,
        "HSET h f v g w; HPEXPIREAT h 5 FIELDS 2 f g",
    );
    is_refused(
        "HSETEX h KEEPTTL FIELDS 1 f v",
        REDIS_7_4,
        Lack::Command,
        "",
    );
    becomes("HPERSIST h FIELDS 1 f", REDIS_7_0, "");
    becomes("HGETDEL h FIELDS 2 f g", REDIS_7_0, "HDEL h f g");
    becomes(
        "HGETEX h PERSIST FIELDS 1 f",
        REDIS_7_4,
        "HPERSIST h FIELDS 1 f",
    );
    becomes(
        "HGETEX h PXAT 5 FIELDS 1 f",
        REDIS_7_4,
        "HPEXPIREAT h 5 FIELDS 1 f",
    );
    let same = "HSETEX h PXAT 5 FIELDS 1 f v";
    becomes(same, REDIS_8_0, same);
    becomes(same, VALKEY_9_1, same);
}

#[test]
fn what_nothing_expresses_is_named_by_its_kind() {
    is_refused("VADD v VALUES 1 2 e", VALKEY_9_1, Lack::VectorSets, "");
    is_refused("SPUBLISH c m", REDIS_6_0, Lack::ShardedChannels, "");
    becomes("SPUBLISH c m", REDIS_7_0, "SPUBLISH c m");
}

/// Puts every deadline off by a second, and remembers whose they were.
#[derive(Default)]
struct Later(Vec<String>);

impl Deadlines for Later {
    fn of_key(&mut self, key: &[u8], at_ms: u64) -> u64 {
        self.0.push(key.escape_ascii().to_string());
        at_ms + 1000
    }

    fn of_fields(
        &mut self,
        key: &[u8],
        fields: &mut dyn Iterator<Item = &[u8]>,
        at_ms: u64,
        whose: Whose,
    ) -> u64 {
        let mark = match whose {
            Whose::All => "",
            Whose::Matching => " (perhaps)",
        };
        for field in fields {
            let name = format!("{}.{}{mark}", key.escape_ascii(), field.escape_ascii());
            self.0.push(name);
        }
        at_ms + 1000
    }
}

#[test]
fn deadlines_can_be_altered_in_every_command_that_has_one() {
    for (line, expected, whose) in [
        ("SET k v PXAT 5000", "SET k v PXAT 6000", "k"),
        ("PEXPIREAT k 5000 GT", "PEXPIREAT k 6000", "k"),
        ("EXPIREAT k 5", "PEXPIREAT k 6000", "k"),
        (
            "MSETEX 2 a 1 b 2 EXAT 5",
            "SET a 1 PXAT 6000; SET b 2 PXAT 6000",
            "a b",
        ),
        ("GETEX k PXAT 5000", "PEXPIREAT k 6000", "k"),
        (
            "HSETEX h FNX PXAT 5000 FIELDS 2 f 1 g 2",
            "HSETEX h PXAT 6000 FIELDS 2 f 1 g 2",
            "h.f h.g",
        ),
        (
            "HPEXPIREAT h 5000 FIELDS 1 f",
            "HPEXPIREAT h 6000 FIELDS 1 f",
            "h.f",
        ),
        (
            "HPEXPIREAT h 5000 NX FIELDS 1 f",
            "HPEXPIREAT h 6000 NX FIELDS 1 f",
            "h.f (perhaps)",
        ),
        (
            "HGETEX h PXAT 5000 FIELDS 1 f",
            "HPEXPIREAT h 6000 FIELDS 1 f",
            "h.f",
        ),
        ("SET k v NX", "SET k v NX", ""),
    ] {
        let mut target = target_of(VALKEY_9_1, false);
        target.lacking = target.lacking | Features::DEADLINE;
        let mut later = Later::default();
        let got = rewrite(line, target, &mut later);
        assert_eq!(got.as_deref(), Ok(expected), "{line}");
        assert_eq!(later.0.join(" "), whose, "{line}");
    }
}

#[test]
fn deadlines_of_fields_are_compared_by_who_can_tell_what_was_altered() {
    let mut target = target_of(REDIS_8_0, false);
    let line = "HPEXPIREAT h 5000 GT FIELDS 2 f g";
    let got = rewrite(line, target, &mut Unaltered);
    assert_eq!(got.as_deref(), Ok(line));
    target.lacking = target.lacking | Features::DEADLINE;
    for (line, expected) in [
        (line, "1 h 5000 6000 gt f g"),
        (
            "HEXPIRE h 5 lt FIELDS 1 f",
            "1 h 1700000005000 1700000006000 lt f",
        ),
    ] {
        let got = rewrite(line, target, &mut Later::default()).expect("known");
        let script = got
            .strip_suffix(expected)
            .expect("the arguments")
            .trim_end();
        assert!(script.starts_with("EVAL local at,later="), "{got}");
        assert!(script.ends_with("end end"), "{got}");
    }
    let unaltered = rewrite(line, target, &mut Unaltered).expect("known");
    assert!(unaltered.ends_with("1 h 5000 5000 gt f g"), "{unaltered}");
}

#[test]
fn the_limit_of_an_exact_trim_is_left_out_for_everybody() {
    for version in [REDIS_6_0, REDIS_7_0, VALKEY_9_1] {
        becomes(
            "XADD s MAXLEN = 6 LIMIT 10 8-1 f v",
            version,
            "XADD s MAXLEN = 6 8-1 f v",
        );
        becomes("XTRIM s MAXLEN = 6 LIMIT 10", version, "XTRIM s MAXLEN = 6");
        let same = "XADD s MAXLEN = 6 8-1 MAXLEN LIMIT";
        becomes(same, version, same);
    }
    becomes(
        "XADD s NOMKSTREAM MINID = 1-1 LIMIT 10 8-1 f v",
        REDIS_7_0,
        "XADD s MINID = 1-1 8-1 f v",
    );
    let same = "XADD s NOMKSTREAM MINID = 1-1 8-1 f v";
    becomes(same, REDIS_7_0, same);
    becomes("XADD s KEEPREF 8-1 f v", REDIS_8_0, "XADD s 8-1 f v");
    is_refused(
        "XADD s ACKED MAXLEN = 5 8-1 f v",
        REDIS_8_0,
        Lack::Command,
        "",
    );
    becomes(
        "XADD s ACKED MAXLEN = 5 LIMIT 3 8-1 f v",
        (Redis, 8, 2),
        "XADD s ACKED MAXLEN = 5 8-1 f v",
    );
}

#[test]
fn streams_are_put_into_the_words_of_6_0() {
    becomes("XADD s NOMKSTREAM 4-1 f v", REDIS_6_0, "XADD s 4-1 f v");
    for (minid, last) in [("3", "2-18446744073709551615"), ("3-7", "3-6")] {
        let script = "while true do local r=redis.call(\\'XRANGE\\',KEYS[1],\\'-\\',ARGV[1],\\'COUNT\\',100) \
                      if #r==0 then return end for _,e in ipairs(r) do redis.call(\\'XDEL\\',KEYS[1],e[1]) end end";
        let trim = format!("EVAL {script} 1 s {last}");
        becomes(&format!("XTRIM s MINID {minid}"), REDIS_6_0, &trim);
        let both = format!("XADD s 5-1 f v; {trim}");
        becomes(&format!("XADD s MINID = {minid} 5-1 f v"), REDIS_6_0, &both);
    }
    becomes("XTRIM s MINID = 0-0", REDIS_6_0, "");
    becomes(
        "XGROUP CREATE s g 0 MKSTREAM ENTRIESREAD 5",
        REDIS_6_0,
        "XGROUP CREATE s g 0 MKSTREAM",
    );
    becomes(
        "XGROUP SETID s entriesread 1-1 ENTRIESREAD 5",
        REDIS_6_0,
        "XGROUP SETID s entriesread 1-1",
    );
    becomes(
        "XGROUP CREATE s g 0 MKSTREAM",
        REDIS_6_0,
        "XGROUP CREATE s g 0 MKSTREAM",
    );
    becomes(
        "XGROUP CREATECONSUMER s g c",
        REDIS_6_0,
        "XREADGROUP GROUP g c COUNT 1 STREAMS s 0",
    );
    becomes(
        "XSETID s 5-1 ENTRIESADDED 9 MAXDELETEDID 3-1",
        REDIS_6_0,
        "XSETID s 5-1",
    );
}

#[test]
fn lists_and_sorted_sets_are_put_into_the_words_of_6_0() {
    becomes("LMOVE a b RIGHT LEFT", REDIS_6_0, "RPOPLPUSH a b");
    becomes("LPOP l 3", REDIS_6_0, "LTRIM l 3 -1");
    becomes("RPOP l 3", REDIS_6_0, "LTRIM l 0 -4");
    becomes("LPOP l", REDIS_6_0, "LPOP l");
    becomes("ZADD z XX GT INCR 5 m", REDIS_6_0, "ZINCRBY z 5 m");
    becomes("ZADD z XX 5 m", REDIS_6_0, "ZADD z XX 5 m");
    becomes(
        "GEOSEARCHSTORE d s FROMLONLAT 1 2 BYRADIUS 3 km DESC COUNT 4 STOREDIST",
        REDIS_6_0,
        "DEL d; GEORADIUS s 1 2 3 km DESC COUNT 4 STOREDIST d",
    );
    becomes(
        "GEOSEARCHSTORE d s BYRADIUS 3 km FROMMEMBER m",
        REDIS_6_0,
        "DEL d; GEORADIUSBYMEMBER s m 3 km STORE d",
    );
    becomes(
        "GEORADIUSBYMEMBER s m 3 km STORE s",
        REDIS_6_0,
        "GEORADIUSBYMEMBER s m 3 km STORE s",
    );
    let square = "GEOSEARCHSTORE d s FROMMEMBER m BYBOX 1 2 km";
    is_refused(square, REDIS_6_0, Lack::Command, "");
    becomes(square, REDIS_7_0, square);
    is_refused(
        "GEORADIUS s 1 2 3 km COUNT 4 ANY STORE d",
        REDIS_6_0,
        Lack::Command,
        "",
    );
    is_refused("BITOP DIFF d a b", REDIS_8_0, Lack::Command, "");
    becomes("BITOP AND d a b", REDIS_6_0, "BITOP AND d a b");
    for line in [
        "LMOVE a b LEFT RIGHT",
        "COPY a b",
        "COPY a b DB 3 REPLACE",
        "ZADD z GT 5 m",
        "ZADD z LT XX 5 m",
        "ZRANGESTORE d s 0 -1",
        "ZRANGESTORE d s [a (b BYLEX REV LIMIT 0 1",
        "ZDIFFSTORE d 2 a b",
    ] {
        let got = rewrite(line, target_of(REDIS_6_0, false), &mut Unaltered).expect("a script");
        assert!(got.starts_with("EVAL "), "{line}: {got}");
        becomes(line, REDIS_7_0, line);
    }
}

/// Rewrites a command of raw arguments.
fn rewrite_raw(args: &[&[u8]], target: Target) -> Result<Option<Vec<u8>>, Lack> {
    rewrite_raw_with(args, target, &mut Unaltered)
}

fn rewrite_raw_with(
    args: &[&[u8]],
    target: Target,
    deadlines: &mut dyn Deadlines,
) -> Result<Option<Vec<u8>>, Lack> {
    let bytes = crate::command::testing::encode(args);
    let frame = scan(&bytes).expect("valid").expect("whole");
    let mut out = Vec::new();
    let mut rewriting = Rewriting::new(target, NOW_MS, deadlines, &mut out);
    let verdict = rewriting.look(&frame, find(&frame).expect("known"))?;
    Ok(match verdict {
        Verdict::Same => None,
        Verdict::Rebuilt(_) => Some(out),
    })
}

/// What `DUMP` of a small string answers, with this version.
fn dump(version: u16) -> Vec<u8> {
    let mut payload = b"\x00\x05hello".to_vec();
    payload.extend_from_slice(&version.to_le_bytes());
    let checksum = crate::rdb::crc64(0, &payload);
    payload.extend_from_slice(&checksum.to_le_bytes());
    payload
}

#[test]
fn payloads_get_a_version_that_the_target_reads() {
    let restore = |version: u16, target, options: &[&[u8]], ttl: &[u8]| {
        let payload = dump(version);
        let mut args: Vec<&[u8]> = vec![b"RESTORE", b"k", ttl, &payload];
        args.extend(options);
        rewrite_raw(&args, target_of(target, false)).expect("known")
    };
    let abs: &[&[u8]] = &[b"ABSTTL", b"FREQ", b"3"];
    assert_eq!(restore(10, REDIS_7_0, abs, b"5"), None);
    assert_eq!(restore(9, VALKEY_9_1, &[], b"0"), None);
    for (version, target, readable) in [
        (12, REDIS_7_0, 10),
        (80, REDIS_6_0, 9),
        (80, REDIS_8_0, 11),
        (12, VALKEY_9_1, 11),
    ] {
        let got = restore(version, target, abs, b"5").expect("rebuilt");
        let payload = dump(readable);
        let wanted: Vec<&[u8]> = vec![
            b"RESTORE", b"k", b"5", &payload, b"REPLACE", b"ABSTTL", b"FREQ", b"3",
        ];
        assert_eq!(got, crate::command::testing::encode(&wanted), "{version}");
    }
    let relative = restore(9, REDIS_7_0, &[b"REPLACE"], b"5").expect("rebuilt");
    assert!(words(&relative)[0].starts_with("RESTORE k 1700000000005 "));
}

#[test]
fn payloads_of_unknown_types_become_commands() {
    // DUMP of a set with the member `a` as Redis 7.2 and later store it: a listpack.
    let mut payload = b"\x14\x0a\x0a\0\0\0\x01\0\x81a\x02\xff".to_vec();
    payload.extend_from_slice(&12u16.to_le_bytes());
    let checksum = crate::rdb::crc64(0, &payload);
    payload.extend_from_slice(&checksum.to_le_bytes());
    let args: Vec<&[u8]> = vec![b"RESTORE", b"k", b"5", &payload, b"ABSTTL"];
    let got = rewrite_raw(&args, target_of(REDIS_7_0, false)).expect("known");
    let got = words(&got.expect("rebuilt"));
    assert_eq!(got, ["UNLINK k", "SADD k a", "PEXPIREAT k 5"]);
    payload.truncate(payload.len() - 12);
    payload.extend_from_slice(&[0; 10]);
    let args: Vec<&[u8]> = vec![b"RESTORE", b"k", b"5", &payload];
    let got = rewrite_raw(&args, target_of(REDIS_7_0, false));
    assert_eq!(got, Err(Lack::Type), "cut short");
}

/// Puts off what ends before 1000.
struct Held;

impl Deadlines for Held {
    fn of_fields(
        &mut self,
        _: &[u8],
        _: &mut dyn Iterator<Item = &[u8]>,
        at_ms: u64,
        _: Whose,
    ) -> u64 {
        if at_ms < 1000 { at_ms + 5000 } else { at_ms }
    }

    fn fields_near_until(&self) -> u64 {
        1000
    }
}

#[test]
fn payloads_of_hashes_become_commands_when_a_deadline_in_them_is_altered() {
    let dump = |deadlines: [i64; 2]| {
        // The hash of f and g as Valkey 9 stores it with deadlines; -1 is none.
        let mut payload = b"\x16\x02".to_vec();
        for (field, deadline) in [b"\x01f\x01v", b"\x01g\x01w"].into_iter().zip(deadlines) {
            payload.extend_from_slice(field);
            payload.extend_from_slice(&deadline.to_le_bytes());
        }
        payload.extend_from_slice(&80u16.to_le_bytes());
        let checksum = crate::rdb::crc64(0, &payload);
        payload.extend_from_slice(&checksum.to_le_bytes());
        payload
    };
    let restore = |version, deadlines| {
        let payload = dump(deadlines);
        let args: Vec<&[u8]> = vec![b"RESTORE", b"h", b"9000", &payload, b"ABSTTL", b"REPLACE"];
        let got = rewrite_raw_with(&args, target_of(version, false), &mut Held);
        got.expect("known").map(|bytes| words(&bytes))
    };
    assert_eq!(restore(VALKEY_9_1, [-1, 1000]), None);
    let expected = [
        "UNLINK h",
        "HSET h f v g w",
        "HPEXPIREAT h 5999 FIELDS 1 g",
        "PEXPIREAT h 9000",
    ];
    let expected = expected.map(str::to_owned).to_vec();
    assert_eq!(restore(VALKEY_9_1, [-1, 999]), Some(expected.clone()));
    assert_eq!(restore(REDIS_8_0, [-1, 999]), Some(expected));
    let far = restore(REDIS_8_0, [2000, 999]).expect("rebuilt");
    assert_eq!(far[2], "HPEXPIREAT h 2000 FIELDS 1 f");
}

#[test]
fn functions_are_named_for_6_0_and_their_dumps_get_a_version() {
    is_refused("FUNCTION LOAD code", REDIS_6_0, Lack::Functions, "");
    becomes("FUNCTION LOAD code", REDIS_7_0, "FUNCTION LOAD code");
    becomes("FUNCTION DELETE f", REDIS_6_0, "");
    let payload = dump(80);
    let args: Vec<&[u8]> = vec![b"FUNCTION", b"RESTORE", &payload, b"REPLACE"];
    let got = rewrite_raw(&args, target_of(REDIS_8_0, false)).expect("known");
    let readable = dump(11);
    let wanted: Vec<&[u8]> = vec![b"FUNCTION", b"RESTORE", &readable, b"REPLACE"];
    assert_eq!(got, Some(crate::command::testing::encode(&wanted)));
}

/// Redis 6.0 died of a value of a module that it lacked.
#[test]
fn values_of_modules_go_only_where_their_module_is() {
    // Type 7, the id of the type "vectorset", and the end of a module's data.
    let mut payload = b"\x07\x81".to_vec();
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let id = b"vectorset".iter().fold(0u64, |id, byte| {
        let letter = LETTERS.iter().position(|letter| letter == byte);
        id << 6 | letter.expect("one of the letters") as u64
    }) << 10;
    payload.extend_from_slice(&id.to_be_bytes());
    payload.push(0);
    payload.extend_from_slice(&12u16.to_le_bytes());
    let checksum = crate::rdb::crc64(0, &payload);
    payload.extend_from_slice(&checksum.to_le_bytes());
    let args: Vec<&[u8]> = vec![b"RESTORE", b"k", b"0", &payload];
    let to = |version| rewrite_raw(&args, target_of(version, false));
    assert_eq!(to(REDIS_8_0), Ok(None));
    for version in [REDIS_6_0, REDIS_7_0, VALKEY_8_0, VALKEY_9_1] {
        assert_eq!(to(version), Err(Lack::VectorSets));
    }
}
