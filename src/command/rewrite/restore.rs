//! Serialized values inside the stream: `RESTORE` by a client of the source, and the library dumps of `FUNCTION RESTORE`.
//!
//! A payload passes as it is where the target reads its version, with the version in its footer rewritten where only that
//! is too new, and as the commands that rebuild the value where the target does not know its type, or where a field of a hash
//! has a deadline that may be altered.

use super::{Deadlines, Features, Lack, Rewriting, Verdict, Whose};
use crate::command::keys::is_word;
use crate::rdb::{
    Content, Decoder, Item, NO_DEADLINE, Options, Part, Passage, Payload, Problem, TargetFormat,
    has_near_field,
};
use crate::resp::{Frame, scan};

/// The type of all values of modules; which module it is stands inside. A target without that module must never see one: it
/// killed Redis 6.0.
const TYPE_MODULE: u8 = 7;

fn passage(payload: &Payload<'_>, target: TargetFormat) -> Passage {
    target.passage(payload.type_code, payload.lineage(), payload.version)
}

fn payload_has_near_field(payload: &Payload<'_>, deadlines: &dyn Deadlines) -> bool {
    let until_ms = deadlines.fields_near_until();
    has_near_field(
        payload.type_code,
        payload.lineage(),
        payload.value,
        until_ms,
    )
}

/// `RESTORE key ttl payload [REPLACE] [ABSTTL] [IDLETIME s] [FREQ f]`, also as `RESTORE-ASKING`
pub fn restore(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    let args: Vec<&[u8]> = frame.args().collect();
    let [verb, key, ttl, bytes, options @ ..] = args.as_slice() else {
        return Ok(Verdict::Same);
    };
    let Some(payload) = Payload::split(bytes) else {
        return Ok(Verdict::Same);
    };
    let absolute = options.iter().any(|arg| is_word(arg, "absttl"));
    let mut deadline = None;
    let mut altered = false;
    if *ttl != b"0" {
        let Some(at_ms) = rewriting.moment(ttl, 1, absolute) else {
            return Ok(Verdict::Same);
        };
        let given = rewriting.deadlines.of_key(key, at_ms);
        altered = !absolute || given != at_ms;
        deadline = Some(given);
    }
    if payload.type_code == TYPE_MODULE
        && let Some(lack) = module_lack(key, &payload, rewriting.target.format)
    {
        return rewriting.nothing(lack);
    }
    let version = match passage(&payload, rewriting.target.format) {
        Passage::Elements => {
            return by_elements(key, &payload, deadline, rewriting);
        }
        Passage::Payload { .. } if payload_has_near_field(&payload, rewriting.deadlines) => {
            return by_elements(key, &payload, deadline, rewriting);
        }
        Passage::Payload { footer_version } => footer_version,
    };
    if !altered && version == payload.version {
        return Ok(Verdict::Same);
    }
    let bytes = match version == payload.version {
        true => bytes.to_vec(),
        false => payload.with_version(version),
    };
    // Without REPLACE nothing was in its way, and nothing is here.
    let keeps = |arg: &&&[u8]| !is_word(arg, "replace") && !is_word(arg, "absttl");
    let others: Vec<&[u8]> = options.iter().filter(keeps).copied().collect();
    let mut command = rewriting.begin(6 + others.len());
    command.arg(verb).arg(key).number(deadline.unwrap_or(0));
    command.arg(&bytes).arg(b"REPLACE").arg(b"ABSTTL");
    for arg in others {
        command.arg(arg);
    }
    drop(command);
    Ok(rewriting.rebuilt())
}

/// Why the value of a module cannot be sent; `None` if it can.
fn module_lack(key: &[u8], payload: &Payload<'_>, target: TargetFormat) -> Option<Lack> {
    let snapshot = payload.as_snapshot(key);
    let mut decoder = Decoder::new(Options {
        value_threshold_bytes: usize::MAX,
        ..Options::new(target)
    });
    let mut reader = decoder.read(&snapshot);
    loop {
        match reader.next() {
            Ok(Item::Value(_)) => return None,
            Ok(Item::Unsupported(unsupported)) => return Some(lack_behind(unsupported.problem)),
            Ok(Item::Header { .. }) => {}
            Ok(_) | Err(_) => return Some(Lack::Type),
        }
    }
}

/// The commands that rebuild a value: it is decoded as a snapshot of one key.
fn by_elements(
    key: &[u8],
    payload: &Payload<'_>,
    deadline: Option<u64>,
    rewriting: &mut Rewriting<'_>,
) -> Result<Verdict, Lack> {
    let format = rewriting.target.format;
    let mut written = Vec::new();
    let mut lost_deadlines = false;
    let snapshot = payload.as_snapshot(key);
    let mut decoder = Decoder::new(Options {
        fields_near_until_ms: rewriting.deadlines.fields_near_until(),
        ..Options::new(format)
    });
    let mut altered = Vec::new();
    let mut reader = decoder.read(&snapshot);
    loop {
        let written_part = match reader.next().map_err(|error| error.problem) {
            Ok(Item::End { .. }) => break,
            Ok(Item::NeedMore) => return rewriting.nothing(Lack::Type),
            Ok(Item::Part(part)) => {
                let (part, lost) = without_lost_deadlines(part, format);
                lost_deadlines |= lost;
                let part = with_altered_deadlines(part, rewriting.deadlines, &mut altered);
                part.write_commands(&mut written, &format)
            }
            Ok(Item::Unsupported(unsupported)) => Err(unsupported.problem),
            Ok(Item::LeftOut(_)) => {
                rewriting.leave_out(Lack::Modules)?;
                Ok(0)
            }
            Ok(_) => Ok(0),
            Err(problem) => Err(problem),
        };
        if let Err(problem) = written_part {
            return rewriting.nothing(lack_behind(problem));
        }
    }
    if lost_deadlines {
        rewriting.leave_out(Lack::FieldTtl)?;
    }
    // Parts of lists are transactions of their own; here the whole command becomes one.
    let mut rest = &written[..];
    while let Ok(Some(frame)) = scan(rest) {
        if !is_word(frame.verb(), "multi") && !is_word(frame.verb(), "exec") {
            rewriting.out.extend_from_slice(frame.bytes());
            rewriting.written += 1;
        }
        rest = &rest[frame.bytes().len()..];
    }
    if let Some(at_ms) = deadline {
        let mut command = rewriting.begin(3);
        command.arg(b"PEXPIREAT").arg(key).number(at_ms);
    }
    Ok(rewriting.rebuilt())
}

/// The part without deadlines of fields where the target keeps none, and whether it had any.
pub fn without_lost_deadlines(mut part: Part<'_>, target: TargetFormat) -> (Part<'_>, bool) {
    if let Content::Hash { pairs, deadlines } = part.content
        && !target.knows_field_expiry()
        && deadlines.iter().any(|&at| at != NO_DEADLINE)
    {
        part.content = Content::Hash {
            pairs,
            deadlines: &[],
        };
        return (part, true);
    }
    (part, false)
}

/// The part with the deadlines of its fields as they are to be written; these are put into `altered`.
pub fn with_altered_deadlines<'a>(
    mut part: Part<'a>,
    whose: &mut dyn Deadlines,
    altered: &'a mut Vec<u64>,
) -> Part<'a> {
    let Content::Hash { pairs, deadlines } = part.content else {
        return part;
    };
    altered.clear();
    altered.extend(deadlines);
    let is_gathered = |text| part.gathered.iter().any(|gathered| gathered.text == text);
    let fields = pairs.iter().step_by(2).enumerate();
    for ((number, field), at_ms) in fields.zip(altered.iter_mut()) {
        *at_ms = match *at_ms {
            NO_DEADLINE => NO_DEADLINE,
            // Too long for one command: it was sent in pieces before.
            at_ms if is_gathered(2 * number) => whose.of_nameless_field(at_ms),
            at_ms => whose.of_fields(part.key, &mut [field].into_iter(), at_ms, Whose::All),
        };
    }
    part.content = Content::Hash {
        pairs,
        deadlines: altered,
    };
    part
}

/// What the target lacks when a value cannot be taken apart.
pub fn lack_behind(problem: Problem) -> Lack {
    match problem {
        Problem::TargetLacksModule(module) if module.to_string() == "vectorset" => Lack::VectorSets,
        Problem::TargetLacksModule(_) => Lack::Modules,
        Problem::TargetLacksFieldExpiry => Lack::FieldTtl,
        Problem::TargetLacksProducers | Problem::ReturnedEntries => Lack::StreamState,
        _ => Lack::Type,
    }
}

/// `FUNCTION LOAD ...`
pub fn function(_frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    rewriting.nothing(Lack::Functions)
}

/// `FUNCTION DELETE|FLUSH`: where there are no functions none have to be removed.
pub fn no_function(_frame: &Frame<'_>, _rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    Ok(Verdict::Rebuilt(0))
}

/// `FUNCTION RESTORE payload [policy]`: opcode and code of each library, the same in every version since 7.0.
pub fn function_restore(frame: &Frame<'_>, rewriting: &mut Rewriting<'_>) -> Result<Verdict, Lack> {
    if rewriting.lacks(Features::REDIS_7_0) {
        return rewriting.nothing(Lack::Functions);
    }
    let args: Vec<&[u8]> = frame.args().collect();
    let [function, restore, bytes, policy @ ..] = args.as_slice() else {
        return Ok(Verdict::Same);
    };
    let Some(payload) = Payload::split(bytes) else {
        return Ok(Verdict::Same);
    };
    let target = rewriting.target.format;
    if target.accepts_version(payload.version) {
        return Ok(Verdict::Same);
    }
    // The newest version that both lineages read, or the target's newest.
    let version = (1..=11.min(target.max_rdb_version))
        .rev()
        .find(|&version| target.accepts_version(version));
    let Some(version) = version else {
        return rewriting.nothing(Lack::Type);
    };
    let bytes = payload.with_version(version);
    let mut words: Vec<&[u8]> = vec![function, restore, &bytes];
    words.extend(policy);
    rewriting.push(&words);
    Ok(rewriting.rebuilt())
}
