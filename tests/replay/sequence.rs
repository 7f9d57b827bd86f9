//! Random sequences of commands, and what repeating their end does on a server.

use crate::forms::{self, Kind, Words};
use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use lab::{Capture, Command, CompareOptions, Connection, Server, Value};
use slotstream::command::{self, Replay};
use slotstream::resp::scan;
use std::fmt;

const MAX_KEYS: usize = 3;
/// Forms that a sequence draws from, mostly.
const MAX_TYPED_FORMS: usize = 14;
const MAX_UNTYPED_FORMS: usize = 6;
const FILL: &str = "RESTORE @ 0 %p";
/// Outside a transaction these wait where there is nothing to take.
const BLOCKING: [&str; 9] = [
    "BLPOP",
    "BRPOP",
    "BLMOVE",
    "BLMOVEM",
    "BRPOPLPUSH",
    "BLMPOP",
    "BZPOPMIN",
    "BZPOPMAX",
    "BZMPOP",
];
/// How servers answer what they do not know.
const UNKNOWN: [&str; 6] = [
    "ERR unknown",
    "ERR Unknown",
    "ERR syntax error",
    "ERR wrong number of arguments",
    "ERR Unrecognized XADD option",
    // An option where only the id could stand.
    "ERR Invalid stream ID",
];

/// What the end of a sequence, from where it may be repeated, consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Commands that may be repeated.
    Same,
    /// Such, and removals.
    Removals,
    /// One that must not be repeated, then such that may.
    Differs,
}

impl End {
    fn holds(self, replay: Replay) -> bool {
        match replay {
            Replay::Same => true,
            Replay::MayChangeTtl => self == End::Removals,
            Replay::Differs => false,
        }
    }
}

#[derive(Clone)]
pub struct Step {
    /// Index of [`forms::all`].
    pub form: usize,
    /// Keys of the sequence are written `@` and a number.
    words: Vec<Vec<u8>>,
}

impl Step {
    /// What the table says of it.
    pub fn replay(&self) -> Replay {
        let encoded = Command::new(&self.words);
        let frame = scan(encoded.encoded()).expect("a valid command");
        let frame = frame.expect("a whole command");
        let row = command::find(&frame).expect("a command of the table");
        command::replay(&frame, row)
    }

    /// The command with the keys of one run.
    fn command(&self, run: usize) -> Command {
        let word = |word: &Vec<u8>| match word.strip_prefix(b"@") {
            Some(number) => [run.to_string().as_bytes(), b":", number].concat(),
            None => word.clone(),
        };
        Command::new(&self.words.iter().map(word).collect::<Vec<_>>())
    }

    fn blocks(&self) -> bool {
        BLOCKING.iter().any(|verb| verb.as_bytes() == self.words[0])
    }
}

/// What is executed at once: a command, or a transaction.
#[derive(Clone)]
struct Unit {
    steps: Vec<Step>,
    transaction: bool,
}

impl Unit {
    /// The commands of those steps that `chosen` says.
    fn commands(&self, run: usize, chosen: &[bool]) -> Vec<Command> {
        let steps = self.steps.iter().zip(chosen).filter(|(_, chosen)| **chosen);
        let mut commands: Vec<Command> = steps.map(|(step, _)| step.command(run)).collect();
        if self.transaction && !commands.is_empty() {
            commands.insert(0, Command::new(&["MULTI"]));
            commands.push(Command::new(&["EXEC"]));
        }
        commands
    }
}

#[derive(Clone)]
pub struct Sequence {
    units: Vec<Unit>,
    pub end: End,
    /// The first unit that is repeated.
    cut: usize,
    /// How many units from the cut are repeated once before all are: a repetition that was interrupted.
    interrupted_after: usize,
}

/// Draws the steps of one sequence.
struct Draw<'a> {
    words: Words<'a>,
    all: Vec<(Kind, &'static str)>,
    /// Forms for keys of the types that the sequence is about.
    typed: Vec<usize>,
    /// Forms for any key.
    untyped: Vec<usize>,
}

impl Draw<'_> {
    fn form(&mut self, form: usize) -> Step {
        let words = self.words.of(self.all[form].1);
        Step { form, words }
    }

    /// Half of the time: values of type `kind` for the keys to begin with.
    fn filled_keys(&mut self, kind: Kind) -> Vec<Step> {
        let of_kind =
            |(other, payload): &(Kind, Vec<u8>)| (*other == kind).then(|| payload.clone());
        let payloads: Vec<Vec<u8>> = self.words.payloads.iter().filter_map(of_kind).collect();
        if payloads.is_empty() || self.words.random.bool() {
            return Vec::new();
        }
        let form = self.all.iter().position(|(_, text)| *text == FILL);
        let form = form.expect("the form that fills keys");
        let mut fill = |key: usize| {
            let payload = payloads[self.words.random.usize(..payloads.len())].clone();
            let key = format!("@{key}").into_bytes();
            let words = vec![b"RESTORE".to_vec(), key, b"0".to_vec(), payload];
            Step { form, words }
        };
        (0..self.words.keys).map(&mut fill).collect()
    }

    /// A step that may stand where it is accepted.
    fn step(&mut self, accept: impl Fn(Replay) -> bool) -> Step {
        loop {
            let random = &mut self.words.random;
            let form = match random.u8(0..20) {
                0 => random.usize(..self.all.len()),
                1..5 => self.untyped[random.usize(..self.untyped.len())],
                _ => self.typed[random.usize(..self.typed.len())],
            };
            let step = self.form(form);
            if accept(step.replay()) {
                return step;
            }
        }
    }

    /// Puts steps into units, some of them together.
    fn units(&mut self, steps: Vec<Step>) -> Vec<Unit> {
        let mut units: Vec<Unit> = Vec::new();
        for step in steps {
            match units.last_mut() {
                Some(unit) if unit.transaction && self.words.random.bool() => unit.steps.push(step),
                _ => units.push(Unit {
                    transaction: step.blocks() || self.words.random.u8(0..10) == 0,
                    steps: vec![step],
                }),
            }
        }
        for unit in &mut units {
            unit.transaction |= unit.steps.iter().any(Step::blocks);
        }
        units
    }
}

impl Sequence {
    /// A random sequence that holds form `wanted` where such a form may stand.
    pub fn random(
        random: &mut Rng,
        payloads: &[(Kind, Vec<u8>)],
        wanted: usize,
        end: End,
    ) -> Sequence {
        let all = forms::all();
        let mut types = vec![all[wanted].0];
        if types[0] == Kind::Any || random.u8(0..3) == 0 {
            types.push(Kind::TYPES[random.usize(..Kind::TYPES.len())]);
        }
        // A few forms that come often meet in more ways than many that come seldom.
        let mut few = |most: usize, wanted: &dyn Fn(Kind) -> bool| -> Vec<usize> {
            let forms = (0..all.len()).filter(|form| wanted(all[*form].0));
            let mut forms: Vec<usize> = forms.collect();
            random.shuffle(&mut forms);
            forms.truncate(random.usize(1..=most));
            forms
        };
        let mut draw = Draw {
            typed: few(MAX_TYPED_FORMS, &|kind| {
                kind != Kind::Any && types.contains(&kind)
            }),
            untyped: few(MAX_UNTYPED_FORMS, &|kind| kind == Kind::Any),
            all,
            words: Words {
                keys: random.usize(1..=MAX_KEYS),
                random,
                payloads,
                newest_id: 1,
            },
        };
        let (before, behind) = (
            draw.words.random.usize(2..14),
            draw.words.random.usize(1..10),
        );
        let mut first = draw.filled_keys(types[0]);
        first.extend((0..before).map(|_| draw.step(|_| true)));
        let mut last: Vec<Step> = (0..behind)
            .map(|_| draw.step(|replay| end.holds(replay)))
            .collect();
        let step = draw.form(wanted);
        let leads = end == End::Differs && step.replay() == Replay::Differs;
        if end.holds(step.replay()) {
            last.insert(draw.words.random.usize(..=last.len()), step.clone());
        } else {
            first.insert(draw.words.random.usize(..=first.len()), step.clone());
        }
        let mut units = draw.units(first);
        let end_begins = units.len();
        if end == End::Differs {
            let step = match leads {
                true => draw.form(wanted),
                false => draw.step(|replay| replay == Replay::Differs),
            };
            units.push(Unit {
                transaction: step.blocks(),
                steps: vec![step],
            });
        }
        units.extend(draw.units(last));
        let random = draw.words.random;
        let cut = match end {
            End::Differs => end_begins,
            _ => random.usize(end_begins..units.len()),
        };
        let interrupted_after = match random.bool() {
            true => random.usize(..units.len() - cut),
            false => 0,
        };
        Sequence {
            units,
            end,
            cut,
            interrupted_after,
        }
    }

    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.units.iter().flat_map(|unit| &unit.steps)
    }

    /// The command that must not be repeated, at the head of what is.
    pub fn culprit(&self) -> &Step {
        &self.units[self.cut].steps[0]
    }

    /// How many of [`Sequence::steps`] come before the cut.
    pub fn steps_before_cut(&self) -> usize {
        self.units[..self.cut]
            .iter()
            .map(|unit| unit.steps.len())
            .sum()
    }

    /// The same without step `at` of [`Sequence::steps`].
    fn without(&self, mut at: usize) -> Sequence {
        let mut less = self.clone();
        for index in 0..less.units.len() {
            let steps = &mut less.units[index].steps;
            if at < steps.len() {
                steps.remove(at);
                if steps.is_empty() {
                    less.units.remove(index);
                    let repeated_twice = self.cut..self.cut + self.interrupted_after;
                    less.interrupted_after -= usize::from(repeated_twice.contains(&index));
                    less.cut -= usize::from(index < self.cut);
                }
                break;
            }
            at -= steps.len();
        }
        less
    }

    /// The shortest sequence that `fails` like this one and comes from it by leaving out steps.
    pub fn shrunk(mut self, mut fails: impl FnMut(&Sequence) -> Result<bool>) -> Result<Sequence> {
        let uninterrupted = Sequence {
            interrupted_after: 0,
            ..self.clone()
        };
        if fails(&uninterrupted)? {
            self = uninterrupted;
        }
        let mut at = self.steps().count();
        while at > 0 {
            at = (at - 1).min(self.steps().count() - 1);
            let less = self.without(at);
            if less.cut < less.units.len() && fails(&less)? {
                self = less;
                // What stood before may be unnecessary only now.
                at = self.steps().count();
            }
        }
        Ok(self)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, unit) in self.units.iter().enumerate() {
            if index == self.cut {
                writeln!(formatter, "  -- repeated from here")?;
            }
            if self.interrupted_after > 0 && index == self.cut + self.interrupted_after {
                writeln!(formatter, "  -- up to here once more before that")?;
            }
            let indent = if unit.transaction { "    " } else { "  " };
            if unit.transaction {
                writeln!(formatter, "  MULTI")?;
            }
            for step in &unit.steps {
                let words = step
                    .words
                    .iter()
                    .map(|word| word.escape_ascii().to_string());
                let line = words.collect::<Vec<_>>().join(" ");
                writeln!(formatter, "{indent}{line}  ({:?})", step.replay())?;
            }
            if unit.transaction {
                writeln!(formatter, "  EXEC")?;
            }
        }
        Ok(())
    }
}

/// What became of a sequence.
pub struct Outcome {
    /// For each of [`Sequence::steps`] what it did when it was executed first.
    pub effects: Vec<Effect>,
    /// How the state after the repetition differs from that before it.
    pub difference: Option<String>,
    /// The same without times.
    pub difference_of_values: Option<String>,
}

impl Outcome {
    /// Whether it contradicts what the table says.
    pub fn contradicts(&self, end: End) -> Option<&str> {
        match end {
            End::Same => self.difference.as_deref(),
            End::Removals => self.difference_of_values.as_deref(),
            End::Differs => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Something was written: a server replicates such commands, and no other.
    Written,
    Nothing,
    /// The server knows no such command, or not with these options.
    Unknown,
}

/// Executes each sequence on keys of its own, then repeats its end; `first_run` numbers the keys.
pub fn execute(server: &Server, first_run: usize, sequences: &[Sequence]) -> Result<Vec<Outcome>> {
    let mut connection = server.connect()?;
    connection.call(&["FLUSHALL"])?;
    let effects = execute_once(&mut connection, first_run, sequences)?;
    let keys: Vec<Vec<u8>> = (first_run..first_run + sequences.len())
        .flat_map(|run| (0..MAX_KEYS).map(move |key| format!("{run}:{key}").into_bytes()))
        .collect();
    let endpoint = server.endpoint();
    let before = Capture::of(&endpoint, &keys)?;
    let mut again = Vec::new();
    for (index, (sequence, effects)) in sequences.iter().zip(&effects).enumerate() {
        again.extend(repetition(sequence, first_run + index, effects));
    }
    // Errors mean that the state is ahead.
    connection.pipeline(&again)?;
    let after = Capture::of(&endpoint, &keys)?;
    let options = CompareOptions::default();
    let differences = |before: &Capture, after: &Capture| -> Vec<Option<String>> {
        let number = |index: usize| index % MAX_KEYS;
        let found = (0..keys.len()).map(|index| {
            let text = before.difference(after, index, &options)?;
            Some(format!("@{}: {text}", number(index)))
        });
        let found: Vec<Option<String>> = found.collect();
        found
            .chunks(MAX_KEYS)
            .map(|chunk| chunk.iter().flatten().next().cloned())
            .collect()
    };
    let full = differences(&before, &after);
    let values = differences(&before.without_expiry(), &after.without_expiry());
    let outcomes = effects.into_iter().zip(full).zip(values);
    Ok(outcomes
        .map(|((effects, difference), difference_of_values)| Outcome {
            effects,
            difference,
            difference_of_values,
        })
        .collect())
}

/// What is repeated of a sequence: of what follows the cut that which wrote something.
fn repetition(sequence: &Sequence, run: usize, effects: &[Effect]) -> Vec<Command> {
    let mut effects = effects.iter();
    let mut commands = Vec::new();
    for unit in &sequence.units {
        let chosen: Vec<bool> = unit
            .steps
            .iter()
            .map(|_| effects.next() == Some(&Effect::Written))
            .collect();
        commands.push(unit.commands(run, &chosen));
    }
    let interrupted = sequence.cut..sequence.cut + sequence.interrupted_after;
    let repeated = commands[interrupted]
        .iter()
        .chain(&commands[sequence.cut..]);
    repeated.flatten().cloned().collect()
}

fn execute_once(
    connection: &mut Connection,
    first_run: usize,
    sequences: &[Sequence],
) -> Result<Vec<Vec<Effect>>> {
    let question = || Command::new(&["INFO", "persistence"]);
    let mut commands = vec![question()];
    for (index, sequence) in sequences.iter().enumerate() {
        for unit in &sequence.units {
            let all = vec![true; unit.steps.len()];
            for command in unit.commands(first_run + index, &all) {
                let is_multi = command == Command::new(&["MULTI"]);
                commands.push(command);
                if !is_multi {
                    commands.push(question());
                }
            }
        }
    }
    let mut replies = connection.pipeline(&commands)?.into_iter();
    let mut changes = changes(&replies.next().context("a reply to INFO")?)?;
    let mut effects = Vec::new();
    for sequence in sequences {
        let mut of_sequence = Vec::new();
        for unit in &sequence.units {
            of_sequence.extend(effects_of(unit, &mut replies, &mut changes)?);
        }
        effects.push(of_sequence);
    }
    ensure!(replies.next().is_none(), "more replies than commands");
    Ok(effects)
}

/// Reads the replies of one unit, in which each step is followed by the question for the count of changes.
fn effects_of(
    unit: &Unit,
    replies: &mut impl Iterator<Item = Value>,
    before: &mut i64,
) -> Result<Vec<Effect>> {
    let count = unit.steps.len() * 2;
    let mut take = |count: usize| -> Vec<Value> { replies.take(count).collect() };
    if !unit.transaction {
        return effects_in(&take(count), before);
    }
    take(1);
    let queued = take(count);
    let end = take(2);
    let [executed, info] = &end[..] else {
        anyhow::bail!("a reply is missing");
    };
    let effects = match executed {
        Value::Array(executed) => effects_in(executed, before),
        // One of the commands was refused, and all with it.
        Value::Error(_) => Ok(queued
            .chunks(2)
            .map(|pair| match is_unknown(&pair[0]) {
                true => Effect::Unknown,
                false => Effect::Nothing,
            })
            .collect()),
        other => anyhow::bail!("EXEC answered {other:?}"),
    };
    // 6.0 counts EXEC itself.
    *before = changes(info)?;
    effects
}

fn effects_in(replies: &[Value], before: &mut i64) -> Result<Vec<Effect>> {
    let mut effects = Vec::new();
    for pair in replies.chunks(2) {
        let [reply, info] = pair else {
            anyhow::bail!("a reply is missing");
        };
        let after = changes(info)?;
        effects.push(match after > *before {
            true => Effect::Written,
            false if is_unknown(reply) => Effect::Unknown,
            false => Effect::Nothing,
        });
        *before = after;
    }
    Ok(effects)
}

fn is_unknown(reply: &Value) -> bool {
    let error = reply.error().unwrap_or_default();
    UNKNOWN.iter().any(|text| error.starts_with(text))
}

fn changes(info: &Value) -> Result<i64> {
    let text = info.text();
    let field = text
        .lines()
        .find_map(|line| line.strip_prefix("rdb_changes_since_last_save:"));
    Ok(field.context("INFO counts no changes")?.trim().parse()?)
}
