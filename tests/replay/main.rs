//! What the table says of repeating commands, on real servers.
//!
//! ```text
//! any commands ... | such as may be repeated, on the same keys     executed once          state A
//!                  ^ cut             repeated, in order,           errors ignored         state B = A
//! ```
//!
//! Repeated is what a source would have put into its stream: of the commands from the cut those that wrote something.
//! Half of the repetitions are interrupted first. `SLOTSTREAM_SEEDS=100` runs more, `SLOTSTREAM_SEED=17` runs one.
//! A sequence that contradicts the table is printed with what it does not need left out.

mod forms;
mod sequence;

use anyhow::{Result, ensure};
use fastrand::Rng;
use lab::{Connection, Family, Server, ServerOptions, Version, version_or_skip};
use sequence::{Effect, End, Outcome, Sequence, execute};
use slotstream::command::{COMMANDS, Command, Kind};
use std::collections::{BTreeMap, BTreeSet};

/// Sequences of one seed, and how many of them are executed at once.
const SEQUENCES: usize = 6000;
const BATCH: usize = 50;
/// Of one version; more are not shown.
const MAX_CONTRADICTIONS: usize = 10;

/// Rows of commands on data that are not drawn.
const NOT_DRAWN: &[(&str, &str)] = &[("migrate", "replicated as DEL; needs a second server")];

/// What a version was seen to do with each form.
#[derive(Default)]
struct Seen {
    /// For each form how often it wrote something.
    written: Vec<usize>,
    /// For each form how often it was not known.
    unknown: Vec<usize>,
    /// Sequences whose end was repeated, of each kind of end.
    repeated: BTreeMap<String, usize>,
    /// Verbs that must not be repeated, and were, at the head of an end.
    led: BTreeSet<String>,
    /// Those of them that were seen to change something when they are.
    differing: BTreeSet<String>,
    /// Whether a removal was seen to change a TTL.
    ttl_changed: bool,
    contradictions: Vec<String>,
}

impl Seen {
    /// The forms that wrote nothing.
    fn unwritten(&self) -> impl Iterator<Item = (usize, &'static str)> {
        let forms = forms::all().into_iter().enumerate();
        forms.filter_map(|(form, (_, text))| (self.written[form] == 0).then_some((form, text)))
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

/// The verb of a form, as the table names it.
fn verb(form: usize) -> String {
    let (_, text) = forms::all()[form];
    let mut words = text.split(' ').map(str::to_lowercase);
    let verb = words.next().expect("a verb");
    match verb.as_str() {
        "xgroup" => format!("{verb}|{}", words.next().expect("a subcommand")),
        _ => verb,
    }
}

fn data_rows() -> impl Iterator<Item = &'static Command> {
    COMMANDS
        .iter()
        .flat_map(|row| std::iter::once(row).chain(row.subcommands))
        .filter(|row| row.kind == Kind::Data)
}

#[test]
fn every_row_of_data_has_a_form() {
    let verbs: BTreeSet<String> = (0..forms::all().len()).map(verb).collect();
    let missing: Vec<_> = data_rows()
        .map(|row| row.name.as_ref())
        .filter(|name| !verbs.contains(*name))
        .collect();
    let expected: Vec<_> = NOT_DRAWN.iter().map(|(name, _)| *name).collect();
    assert_eq!(missing, expected);
}

#[test]
fn repeating_the_end_of_a_stream_does_what_the_table_says() -> Result<()> {
    let seeds = match number("SLOTSTREAM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..number("SLOTSTREAM_SEEDS").unwrap_or(1) + 1,
    };
    let versions: Vec<Version> = Family::ALL
        .into_iter()
        .filter_map(version_or_skip)
        .collect();
    let seen: Vec<(Version, Seen)> = std::thread::scope(|scope| {
        let threads: Vec<_> = versions
            .into_iter()
            .map(|version| {
                let seeds = seeds.clone();
                scope.spawn(move || examine(&version, seeds).map(|seen| (version, seen)))
            })
            .collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect::<Result<_>>()
    })?;
    report(&seen);
    let contradictions: Vec<&str> = seen
        .iter()
        .flat_map(|(_, seen)| seen.contradictions.iter().map(String::as_str))
        .collect();
    ensure!(
        contradictions.is_empty(),
        "repeating changed what the table says it does not:\n{}",
        contradictions.join("\n")
    );
    check_coverage(&seen)
}

/// All sequences of all seeds on one version.
fn examine(version: &Version, seeds: std::ops::Range<u64>) -> Result<Seen> {
    let server = Server::start(version, ServerOptions::default())?;
    let mut connection = server.connect()?;
    // Nothing may change by itself between a command and the question whether it changed something.
    connection.call(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"])?;
    let payloads = payloads(&mut connection, version.family())?;
    let forms = forms::all().len();
    let mut seen = Seen {
        written: vec![0; forms],
        unknown: vec![0; forms],
        ..Seen::default()
    };
    for seed in seeds {
        let mut random = Rng::with_seed(seed);
        for batch in 0..SEQUENCES / BATCH {
            let sequences: Vec<Sequence> = (0..BATCH)
                .map(|index| {
                    let number = batch * BATCH + index;
                    let end = match number / forms % 3 {
                        0 => End::Same,
                        1 => End::Differs,
                        _ => End::Removals,
                    };
                    Sequence::random(&mut random, &payloads, number % forms, end)
                })
                .collect();
            let outcomes = execute(&server, batch * BATCH, &sequences)?;
            for (sequence, outcome) in sequences.iter().zip(&outcomes) {
                if outcome.contradicts(sequence.end).is_some()
                    && seen.contradictions.len() < MAX_CONTRADICTIONS
                {
                    let text = contradiction(&server, sequence.clone(), outcome)?;
                    let text = format!("{version}, SLOTSTREAM_SEED={seed}: {text}");
                    seen.contradictions.push(text);
                }
                note(&mut seen, sequence, outcome);
            }
        }
    }
    Ok(seen)
}

/// A sequence that contradicts the table and its result, without what they do not need.
fn contradiction(server: &Server, sequence: Sequence, outcome: &Outcome) -> Result<String> {
    let mut found = outcome
        .contradicts(sequence.end)
        .unwrap_or_default()
        .to_owned();
    let shrunk = sequence.shrunk(|less| {
        let outcomes = execute(server, 0, std::slice::from_ref(less))?;
        match outcomes[0].contradicts(less.end) {
            Some(difference) => found = difference.to_owned(),
            None => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(format!("{found}\n{shrunk}"))
}

fn note(seen: &mut Seen, sequence: &Sequence, outcome: &Outcome) {
    for (step, effect) in sequence.steps().zip(&outcome.effects) {
        seen.written[step.form] += usize::from(*effect == Effect::Written);
        seen.unknown[step.form] += usize::from(*effect == Effect::Unknown);
    }
    let first_repeated = sequence.steps_before_cut();
    if outcome.effects[first_repeated..].contains(&Effect::Written) {
        *seen
            .repeated
            .entry(format!("{:?}", sequence.end))
            .or_default() += 1;
    }
    let differs = outcome.difference.is_some();
    seen.ttl_changed |= differs && sequence.end == End::Removals;
    if sequence.end == End::Differs && outcome.effects[first_repeated] == Effect::Written {
        let verb = verb(sequence.culprit().form);
        if differs {
            seen.differing.insert(verb.clone());
        }
        seen.led.insert(verb);
    }
}

/// Serialized values of every type, for `RESTORE`.
fn payloads(connection: &mut Connection, family: Family) -> Result<Vec<(forms::Kind, Vec<u8>)>> {
    use forms::Kind::{Hash, HyperLogLog, List, Set, SortedSet, Str, Stream};
    let mut scripts = vec![
        (Str, "SET p a"),
        (Str, "SET p 12"),
        (HyperLogLog, "PFADD p x y"),
        (Hash, "HSET p f 1 g 2 h a"),
        (List, "RPUSH p x y z 1 2 x"),
        (Set, "SADD p a b c"),
        (Set, "SADD p 1 2"),
        (SortedSet, "ZADD p 0 a 1 b 2 c 3 1"),
        (SortedSet, "GEOADD p 0 0 a 1.5 80 b"),
        (
            Stream,
            "XADD p 2-0 f v;XADD p 4-1 f v;XADD p 5-1 f v;XGROUP CREATE p g 0;\
             XREADGROUP GROUP g c COUNT 2 STREAMS p >",
        ),
    ];
    if family.has_hash_field_ttl() {
        scripts.push((Hash, "HSETEX p PXAT 4000000000000 FIELDS 2 f 1 g 2"));
    }
    let mut payloads = Vec::new();
    for (kind, script) in scripts {
        connection.call(&["DEL", "p"])?;
        for line in script.split(';') {
            connection.call(&line.split(' ').collect::<Vec<_>>())?;
        }
        let dump = connection.call(&["DUMP", "p"])?;
        payloads.push((kind, dump.bytes().unwrap_or_default().to_vec()));
    }
    Ok(payloads)
}

fn report(seen: &[(Version, Seen)]) {
    for (version, seen) in seen {
        let lacking: Vec<&str> = seen.unwritten().map(|(_, text)| text).collect();
        println!(
            "{version}: ends repeated {:?}, commands seen to differ {}, unknown {lacking:?}",
            seen.repeated,
            seen.differing.len(),
        );
    }
}

/// Fails where a form was never tried in earnest, or where the test could not have seen a difference.
fn check_coverage(seen: &[(Version, Seen)]) -> Result<()> {
    let mut differing = BTreeSet::new();
    let mut harmless = BTreeSet::new();
    for (version, seen) in seen {
        for (form, text) in seen.unwritten() {
            ensure!(
                seen.unknown[form] > 0,
                "{version}: {text} never wrote anything"
            );
        }
        differing.extend(seen.differing.iter().cloned());
        harmless.extend(seen.led.iter().cloned());
    }
    ensure!(
        seen.iter().any(|(_, seen)| seen.ttl_changed),
        "no removal changed a TTL"
    );
    harmless.retain(|verb| !differing.contains(verb));
    println!("seen to differ: {differing:?}");
    println!("not seen to differ: {harmless:?}");
    // Many cannot where only safe commands follow: SETNX is refused, LSET sets the same again.
    ensure!(
        differing.len() > harmless.len(),
        "of what must not be repeated, too little was seen to matter: {differing:?}"
    );
    Ok(())
}
