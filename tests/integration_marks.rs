//! Which commands keep their mark: six servers execute every form of every command with a marked verb, and their streams are
//! read. What the table calls kept must be found marked wherever it had an effect.

#[path = "replay/forms.rs"]
mod forms;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use forms::Kind;
use lab::{Command, Connection, Family, Server, ServerOptions, Tap, version_or_skip, wait_until};
use slotstream::command::{self, is_marked, keeps_mark, mark, mark_from};
use slotstream::resp::scan;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// How often each form is executed, among all others on the same few keys.
const ROUNDS: usize = 40;
const KEYS: usize = 2;
/// Commands after which a key is removed, so that what needs a new one has an effect, too.
const COMMANDS_PER_LIFE: usize = 25;

/// Forms of kept commands that no server knows that was at hand.
const UNSEEN: &[&str] = &[
    "XADD @ KEEPREF MAXLEN = 2 %j f %v",
    "XADD @ DELREF MAXLEN = 2 %j f %v",
    "XADD @ ACKED MAXLEN = 2 %j f %v",
];

/// What a server's stream held for each form.
type Seen = BTreeMap<&'static str, BTreeSet<String>>;

/// The stream between two markers.
struct Pipeline {
    commands: Vec<Command>,
    names: Vec<&'static str>,
}

impl Pipeline {
    /// Adds a command, marked, under a name by which its effect is told.
    fn add(&mut self, name: &'static str, words: &[Vec<u8>]) {
        let number = self.names.len().to_string();
        self.names.push(name);
        self.commands
            .push(Command::new(&["SET", "{marker}", &number]));
        let mut words = words.to_vec();
        mark(&mut words[0]);
        self.commands.push(Command::new(&words));
    }

    /// Executes all, and reads what the stream holds of each.
    fn run(mut self, connection: &mut Connection, tap: Tap) -> Result<Seen> {
        self.commands
            .push(Command::new(&["SET", "{marker}", "end"]));
        for part in self.commands.chunks(500) {
            connection.pipeline(part)?;
        }
        let is_end = |words: &Vec<Vec<u8>>| words.last().is_some_and(|word| word == b"end");
        wait_until(PATIENCE, "the stream to be read", || {
            Ok(tap.commands().last().is_some_and(is_end))
        })?;
        let mut seen = Seen::new();
        let mut name = None;
        for words in tap.stop()? {
            if words.get(1).is_some_and(|key| key == b"{marker}") {
                let number = String::from_utf8_lossy(&words[2]).parse::<usize>();
                name = number.ok().map(|number| self.names[number]);
            } else if let Some(name) = name.filter(|_| words[0] != b"ping") {
                let verb = String::from_utf8_lossy(&words[0]).into_owned();
                seen.entry(name).or_default().insert(verb);
            }
        }
        Ok(seen)
    }
}

/// Words of a form as the server gets them, on keys of their kind.
fn on_keys(words: Vec<Vec<u8>>, kind: Kind) -> Vec<Vec<u8>> {
    let blocks = words[0].starts_with(b"B") && !words[0].starts_with(b"BIT");
    let wait_at = match words[0].ends_with(b"MPOP") {
        true => 1,
        false => words.len() - 1,
    };
    let words = words
        .into_iter()
        .enumerate()
        .map(|(place, word)| match &word[..] {
            [b'@', digit] => format!("{{k}}{kind:?}{}", *digit as char).into_bytes(),
            // Not for as long as the form says.
            b"1" if blocks && place == wait_at => b"0.01".to_vec(),
            _ => word,
        });
    words.collect()
}

fn payloads(connection: &mut Connection) -> Result<Vec<(Kind, Vec<u8>)>> {
    let values = [
        (Kind::Str, "SET p 12"),
        (Kind::Hash, "HSET p f 1 g 2 h a"),
        (Kind::List, "RPUSH p x y z 1 2 x"),
        (Kind::Set, "SADD p a b c"),
        (Kind::SortedSet, "ZADD p 0 a 1 b 2 c 3 1"),
        (Kind::Stream, "XADD p 2-0 f v"),
    ];
    let mut payloads = Vec::new();
    for (kind, line) in values {
        connection.call(&["DEL", "p"])?;
        connection.call(&line.split(' ').collect::<Vec<_>>())?;
        let payload = connection.call(&["DUMP", "p"])?;
        payloads.push((kind, payload.bytes().context("a payload")?.to_vec()));
    }
    connection.call(&["DEL", "p"])?;
    Ok(payloads)
}

/// All forms of commands on data.
fn run_forms(family: Family) -> Result<Option<Seen>> {
    let Some(version) = version_or_skip(family) else {
        return Ok(None);
    };
    let server = Server::start(&version, ServerOptions::default())?;
    let mut connection = server.connect()?;
    // A key that ends by itself would end among the effects of another command.
    connection.call(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"])?;
    let payloads = payloads(&mut connection)?;
    let tap = Tap::attach(server.connect()?)?;
    let mut random = Rng::with_seed(7);
    let lasting = |(_, text): &(Kind, &str)| *text != "SET @ %v PXAT 1";
    let forms: Vec<_> = forms::all().into_iter().filter(lasting).collect();
    let mut order: Vec<_> = forms.iter().cycle().take(forms.len() * ROUNDS).collect();
    random.shuffle(&mut order);
    let mut pipeline = Pipeline {
        commands: Vec::new(),
        names: Vec::new(),
    };
    let mut words = forms::Words {
        random: &mut random,
        keys: KEYS,
        payloads: &payloads,
        newest_id: 0,
    };
    for (number, (kind, text)) in order.into_iter().enumerate() {
        let kind = match kind {
            Kind::Any => Kind::TYPES[words.random.usize(..Kind::TYPES.len())],
            kind => *kind,
        };
        if number % COMMANDS_PER_LIFE == 0 {
            let doomed = on_keys(words.of("DEL @"), kind);
            pipeline
                .commands
                .push(Command::new(&["SET", "{marker}", "none"]));
            pipeline.commands.push(Command::new(&doomed));
        }
        let made = words.of(text);
        pipeline.add(text, &on_keys(made, kind));
    }
    Ok(Some(pipeline.run(&mut connection, tap)?))
}

/// Whether the table says that a form keeps its mark; its placeholders are as good as words here.
fn is_kept(form: &str) -> bool {
    let mut bytes = Vec::new();
    let words: Vec<&[u8]> = form.split(' ').map(str::as_bytes).collect();
    slotstream::resp::push_command(&mut bytes, &words);
    let frame = scan(&bytes).expect("valid").expect("whole");
    let command = command::find(&frame).expect("a command of the table");
    keeps_mark(&frame, command)
}

#[test]
fn what_the_table_calls_kept_is_found_marked_in_every_stream() -> Result<()> {
    let mut effective = BTreeSet::new();
    let mut lost = BTreeSet::new();
    let mut versions = 0;
    // Blocking commands wait: the servers do so beside each other.
    let seen: Vec<(Family, Option<Seen>)> = std::thread::scope(|scope| {
        let threads = Family::ALL.map(|family| (family, scope.spawn(move || run_forms(family))));
        let joined = threads
            .into_iter()
            .map(|(family, thread)| match thread.join() {
                Ok(seen) => Ok((family, seen?)),
                Err(panic) => std::panic::resume_unwind(panic),
            });
        joined.collect::<Result<_>>()
    })?;
    for (family, seen) in seen {
        let Some(seen) = seen else {
            continue;
        };
        versions += 1;
        for (form, verbs) in seen {
            effective.insert(form);
            let unmarked: Vec<_> = verbs
                .iter()
                .filter(|verb| !is_marked(verb.as_bytes()))
                .collect();
            if !unmarked.is_empty() {
                lost.insert(form);
            }
            ensure!(
                !is_kept(form) || unmarked.is_empty(),
                "{family}: {form} is called kept, and became {unmarked:?}"
            );
        }
    }
    let forms = forms::all().into_iter().map(|(_, form)| form);
    let idle: Vec<_> = forms
        // A pending entry is rarely there: another test sees to that.
        .filter(|form| !form.starts_with("XACK "))
        .filter(|form| is_kept(form) && !effective.contains(form))
        .collect();
    println!("lost: {lost:?}");
    ensure!(
        versions < Family::ALL.len() || idle == UNSEEN,
        "kept, and never seen to have an effect: {idle:?}"
    );
    Ok(())
}

/// Forms that are not of keys of one kind, or need more than a key.
const OTHERS: &[&str] = &[
    "MOVE {k}moved 1",
    "SWAPDB 0 2",
    "FLUSHDB",
    "FLUSHALL",
    "FUNCTION LOAD REPLACE",
    "FUNCTION DELETE",
    "FUNCTION FLUSH",
    "RESTORE-ASKING",
    "XACK {k}s g 1-1",
    "SCRIPT LOAD",
    "PUBLISH channel message",
    "SPUBLISH channel message",
];

#[test]
fn flushes_functions_messages_and_what_needs_preparing_are_marked_too() -> Result<()> {
    const LIBRARY: &str =
        "#!lua name=marked\nredis.register_function('marked', function() return 1 end)";
    for family in Family::ALL {
        let Some(version) = version_or_skip(family) else {
            continue;
        };
        let server = Server::start(&version, ServerOptions::default())?;
        let mut connection = server.connect()?;
        let payload = payloads(&mut connection)?.remove(0).1;
        connection.call(&["SET", "{k}moved", "1"])?;
        let tap = Tap::attach(server.connect()?)?;
        let mut pipeline = Pipeline {
            commands: Vec::new(),
            names: Vec::new(),
        };
        for name in OTHERS {
            let mut words: Vec<Vec<u8>> = name
                .split(' ')
                .map(|word| word.as_bytes().to_vec())
                .collect();
            match *name {
                "FUNCTION LOAD REPLACE" => words.push(LIBRARY.into()),
                "FUNCTION DELETE" => words.push(b"marked".to_vec()),
                "SCRIPT LOAD" => words.push(b"return 1".to_vec()),
                "RESTORE-ASKING" => {
                    words.extend([b"{k}r".to_vec(), b"0".to_vec(), payload.clone()])
                }
                _ => {}
            }
            // Something to be flushed.
            pipeline
                .commands
                .push(Command::new(&["SET", "{marker}", "none"]));
            pipeline
                .commands
                .push(Command::new(&["SET", "{k}moved", "1"]));
            if name.starts_with("XACK") {
                for line in [
                    "XADD {k}s 1-1 f v",
                    "XGROUP CREATE {k}s g 0",
                    "XREADGROUP GROUP g c STREAMS {k}s >",
                ] {
                    let words: Vec<&str> = line.split(' ').collect();
                    pipeline.commands.push(Command::new(&words));
                }
            }
            pipeline.add(name, &words);
        }
        let seen = pipeline.run(&mut connection, tap)?;
        for name in OTHERS {
            let newer = family.has_redis_7_commands();
            let known = match name.split(' ').next() {
                Some("FUNCTION" | "SPUBLISH") => newer,
                // Only 6.0 replicates it.
                Some("SCRIPT") => !newer,
                _ => true,
            };
            ensure!(
                known == seen.contains_key(name),
                "{family}: {name}: {seen:?}"
            );
            let verbs = seen.get(name).into_iter().flatten();
            let mut changes = verbs.filter(|verb| *verb != "SELECT");
            ensure!(
                changes.all(|verb| is_marked(verb.as_bytes())),
                "{family}: {name}: {seen:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn what_our_scripts_write_is_marked_and_no_time_that_has_passed_is_given() -> Result<()> {
    let scripts: [(&str, &[&str]); 4] = [
        (
            "redis.call('SET', KEYS[1], 'v') redis.call('APPEND', KEYS[1], 'w')",
            &["sET", "aPPEND"],
        ),
        (
            "redis.call('SET', KEYS[1], 'v') redis.call('PEXPIREAT', KEYS[1], '1')",
            &["sET", "uNLINK"],
        ),
        (
            "redis.call('SET', KEYS[1], 'v') redis.pcall('PEXPIREAT', KEYS[1], '4000000000000')",
            &["sET", "pEXPIREAT"],
        ),
        (
            "redis.call(unpack({'HSET', KEYS[1], 'f', '1', 'g', '2'})) return redis.call('HGET', KEYS[1], 'f')",
            &["hSET"],
        ),
    ];
    for family in Family::ALL {
        let Some(version) = version_or_skip(family) else {
            continue;
        };
        let server = Server::start(&version, ServerOptions::default())?;
        let mut connection = server.connect()?;
        let tap = Tap::attach(server.connect()?)?;
        for (number, (script, verbs)) in scripts.iter().enumerate() {
            let key = format!("key{number}");
            let mut bytes = Vec::new();
            slotstream::resp::push_command(
                &mut bytes,
                &[b"EVAL", script.as_bytes(), b"1", key.as_bytes()],
            );
            ensure!(mark_from(&mut bytes, 0), "a script keeps its marks");
            let frame = scan(&bytes).ok().flatten().context("a command")?;
            let words: Vec<&[u8]> = frame.args().collect();
            let answer = connection
                .call(&words)
                .with_context(|| format!("{family}: {script}"))?;
            ensure!(*verbs != ["hSET"] || answer.text() == "1", "{answer:?}");
            let of_key =
                |words: &Vec<Vec<u8>>| words.get(1).is_some_and(|word| word == key.as_bytes());
            let found = || -> Vec<String> {
                let commands = tap.commands().into_iter().filter(of_key);
                commands
                    .map(|words| String::from_utf8_lossy(&words[0]).into_owned())
                    .collect()
            };
            wait_until(PATIENCE, "what the script wrote", || {
                Ok(found().len() >= verbs.len())
            })?;
            ensure!(found() == *verbs, "{family}: {script}: {:?}", found());
        }
    }
    Ok(())
}
