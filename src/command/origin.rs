//! Where a write came from, told by the casing of its verb: the first letter small, all others large (`sET`).
//!
//! Servers pass a verb on to their replicas as it was sent, so this mark costs no byte, and whoever reads the stream of a
//! target can tell what was replicated into it. Clients send verbs all large, all small or capitalised.
//!
//! ```text
//! source  SET k v  ->  lane  ->  sET k v  target     its stream: sET k v, which the lane of the other direction drops
//! ```
//!
//! Some commands a server puts into words of its own, and the mark is lost ([`Origin::Lost`]; `tests/integration_marks.rs`
//! has six servers execute every form of every command and reads their streams):
//!
//! | sent | in the stream |
//! |---|---|
//! | `EXPIRE`, `PEXPIRE`, `EXPIREAT`, `GETEX` | `PEXPIREAT`, `PERSIST` (since 7.0) |
//! | `SETEX`, `PSETEX`, `GETSET`; `SET` with `EX`, `PX`, `EXAT`, on 7.0 also `PXAT` | `SET` |
//! | `GETDEL`, `DELIFEQ`; `SPOP` | `DEL` or `UNLINK`; `SREM` |
//! | `INCRBYFLOAT`, `HINCRBYFLOAT`; on Valkey 9 `HINCRBY` and `HSETNX` on fields that expire | `SET`, `HSET`, `HSETEX` |
//! | `HEXPIRE`, `HPEXPIRE`, `HEXPIREAT`, `HGETEX`, `HGETDEL` | `HPEXPIREAT`, `HPERSIST`, `HDEL` |
//! | blocking commands, `LMPOP`, `ZMPOP`, `GEOADD` | `LPOP`, `ZPOPMIN`, `zadd` ... |
//! | `XCLAIM`, `XAUTOCLAIM`, `XREADGROUP` | `XCLAIM`, `XGROUP SETID` |
//! | any time that has passed | `DEL`, `UNLINK`, `HDEL` |
//!
//! A transaction stays one in the stream, so what would lose its mark travels in one that holds a marked command with an effect,
//! and the reader drops a transaction that holds any marked command. What scripts write has the casing that the script uses:
//! ours are given [`PROLOGUE`].

use super::{Command, Kind, find};
use crate::resp::{Encoder, Frame, scan};

/// Whether a command's verb arrives in the target's stream as it was sent.
#[derive(Debug, Clone, Copy)]
pub enum Origin {
    /// On all servers.
    Kept,
    /// Not on all servers, or nobody has seen it.
    Lost,
    /// That is decided by its arguments.
    When(fn(&Frame<'_>) -> bool),
}

/// Whether a verb carries the mark.
#[inline]
pub fn is_marked(verb: &[u8]) -> bool {
    verb.first().is_some_and(u8::is_ascii_lowercase) && is_rest_marked(&verb[1..])
}

fn is_rest_marked(rest: &[u8]) -> bool {
    rest.iter().any(u8::is_ascii_uppercase) && !rest.iter().any(u8::is_ascii_lowercase)
}

/// Gives a verb the mark; one that does not begin with a letter cannot have it.
#[inline]
pub fn mark(verb: &mut [u8]) {
    verb.make_ascii_uppercase();
    if let Some(first) = verb.first_mut() {
        *first = first.to_ascii_lowercase();
    }
}

/// Whether the mark of `frame`'s verb is in every target's stream.
#[inline]
pub fn keeps_mark(frame: &Frame<'_>, command: &Command) -> bool {
    match command.origin {
        Origin::Kept => true,
        Origin::Lost => false,
        Origin::When(rule) => rule(frame),
    }
}

/// `SET key value [KEEPTTL] [NX|XX]`; any time is put into the server's own words.
pub(super) fn set(frame: &Frame<'_>) -> bool {
    let plain = |arg: &[u8]| {
        [&b"keepttl"[..], b"nx", b"xx"]
            .iter()
            .any(|word| arg.eq_ignore_ascii_case(word))
    };
    frame.argc() == 3 || frame.args().skip(3).all(plain)
}

/// Whether a command is one that is marked at all: it changes data, or functions.
pub fn is_to_be_marked(frame: &Frame<'_>) -> bool {
    let Some(command) = find(frame) else {
        return true;
    };
    !matches!(
        command.kind,
        Kind::NoEffect
            | Kind::Select
            | Kind::Ping
            | Kind::Replconf
            | Kind::Multi
            | Kind::Exec
            | Kind::Discard
            | Kind::Container
    )
}

/// What stands before our scripts: they call every command with the mark, and remove what they would give a time that has
/// passed, which a server does unmarked. 6.0 replicates what a script did that looked at the clock only when asked to.
pub const PROLOGUE: &[u8] = b"local server=redis local redis=setmetatable({},{__index=server}) \
if server.replicate_commands then server.replicate_commands() end \
local function marked(call) return function(verb,key,at,...) \
verb=string.upper(verb) \
if verb=='PEXPIREAT' or verb=='HPEXPIREAT' then local now=server.call('TIME') \
if tonumber(at)<=now[1]*1000+now[2]/1000 then \
if verb=='PEXPIREAT' then return call('uNLINK',key) end \
return call('hDEL',key,select(3,...)) end end \
verb=string.lower(string.sub(verb,1,1))..string.sub(verb,2) \
if at~=nil then return call(verb,key,at,...) end \
if key~=nil then return call(verb,key) end return call(verb) end end \
redis.call=marked(server.call) redis.pcall=marked(server.pcall) ";

/// A script of ours without what [`mark_from`] has put before it.
pub fn without_prologue(script: &[u8]) -> &[u8] {
    script.strip_prefix(PROLOGUE).unwrap_or(script)
}

/// Marks the commands that stand in `out` from `start` on. Whether all of them keep it.
pub fn mark_from(out: &mut Vec<u8>, start: usize) -> bool {
    let mut kept = true;
    let mut at = start;
    while let Ok(Some(frame)) = scan(&out[at..]) {
        let length = frame.bytes().len();
        if !is_to_be_marked(&frame) {
            at += length;
            continue;
        }
        if is_script(&frame) {
            let scripted = with_prologue(&frame);
            let end = at + scripted.len();
            out.splice(at..at + length, scripted);
            at = end;
            continue;
        }
        kept &= find(&frame).is_some_and(|command| keeps_mark(&frame, command));
        let verb = frame.verb_range();
        mark(&mut out[at + verb.start..at + verb.end]);
        at += length;
    }
    kept
}

fn is_script(frame: &Frame<'_>) -> bool {
    frame.verb().eq_ignore_ascii_case(b"EVAL") && frame.argc() > 1
}

fn with_prologue(frame: &Frame<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(frame.bytes().len() + PROLOGUE.len() + 8);
    let mut command = Encoder::begin(&mut out, frame.argc());
    for (index, arg) in frame.args().enumerate() {
        match index {
            1 if !arg.starts_with(PROLOGUE) => command.arg(&[PROLOGUE, arg].concat()),
            _ => command.arg(arg),
        };
    }
    drop(command);
    out
}

#[cfg(test)]
mod tests {
    use super::super::COMMANDS;
    use super::super::testing::{encode, with_frame};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_casing_of_clients_is_taken_for_a_mark() {
        for row in COMMANDS {
            let name = row.name.as_bytes();
            let (large, small) = (name.to_ascii_uppercase(), name.to_ascii_lowercase());
            let mut capitalised = small.clone();
            capitalised[0] = capitalised[0].to_ascii_uppercase();
            for verb in [&large, &small, &capitalised] {
                assert!(!is_marked(verb), "{}", verb.escape_ascii());
            }
            let mut marked = large.clone();
            mark(&mut marked);
            assert!(is_marked(&marked), "{}", marked.escape_ascii());
            assert_eq!(marked.to_ascii_uppercase(), large);
        }
    }

    proptest! {
        #[test]
        fn a_mark_changes_nothing_but_the_casing(verb in "[a-zA-Z][a-zA-Z.|-]{1,20}") {
            let mut marked = verb.clone().into_bytes();
            mark(&mut marked);
            prop_assert!(marked.eq_ignore_ascii_case(verb.as_bytes()));
            let letters = verb.as_bytes()[1..].iter().any(u8::is_ascii_alphabetic);
            prop_assert_eq!(is_marked(&marked), letters);
            prop_assert!(!is_marked(&marked.to_ascii_uppercase()));
            prop_assert!(!is_marked(&marked.to_ascii_lowercase()));
        }
    }

    #[test]
    fn a_set_loses_its_mark_with_a_time() {
        let kept = |line| with_frame(line, |frame| keeps_mark(frame, find(frame).unwrap()));
        assert!(kept("SET k v") && kept("SET k v KEEPTTL") && kept("SET k v nx"));
        assert!(!kept("SET k v PXAT 5") && !kept("SET k v GET") && !kept("SPOP k"));
        assert!(kept("XGROUP CREATE s g 0"));
    }

    #[test]
    fn commands_are_marked_and_what_holds_them_together_is_not() {
        let words: [&[&str]; 4] = [
            &["MULTI"],
            &["set", "k", "SET"],
            &["XGROUP", "CREATE", "s", "g", "0"],
            &["EXEC"],
        ];
        let mut out = b"before".to_vec();
        words.iter().for_each(|args| out.extend(encode(args)));
        assert!(mark_from(&mut out, 6));
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("before*1\r\n$5\r\nMULTI\r\n"), "{text}");
        assert!(text.contains("sET\r\n$1\r\nk\r\n$3\r\nSET"), "{text}");
        assert!(text.contains("xGROUP") && text.contains("\nEXEC"), "{text}");
    }

    #[test]
    fn a_script_is_given_its_prologue_once() {
        let mut out = encode(&["EVAL", "return 1", "0", "an argument"]);
        assert!(mark_from(&mut out, 0) && mark_from(&mut out, 0));
        let frame = scan(&out).unwrap().unwrap();
        let script = frame.arg(1).unwrap();
        assert_eq!(without_prologue(script), b"return 1");
        assert_eq!(frame.arg(3), Some(&b"an argument"[..]));
    }
}
