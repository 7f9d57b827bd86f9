//! The table of commands against what six servers say of theirs.
//!
//! `tests/corpus/commands/<server>.txt` was recorded from a running server by `tools/record-commands`: every
//! command with its flags and the places of its keys, and the keys that the server finds in each example.

use slotstream::command::{self, Command, KeySpec, Kind};
use slotstream::resp::scan;
use std::collections::BTreeMap;
use std::path::Path;

struct Recorded {
    server: String,
    /// By name, subcommands as `xgroup|create`.
    commands: BTreeMap<String, Row>,
    /// Example and its keys, sorted.
    examples: Vec<(String, Vec<String>)>,
}

struct Row {
    flags: Vec<String>,
    /// First key, last key, step.
    places: [i64; 3],
}

impl Row {
    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|one| one == flag)
    }
}

fn recorded() -> Vec<Recorded> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/commands");
    let mut servers = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "examples.txt" {
            servers.push(parse(&std::fs::read_to_string(path).unwrap()));
        }
    }
    assert_eq!(servers.len(), 6);
    servers
}

fn parse(text: &str) -> Recorded {
    let mut recorded = Recorded {
        server: String::new(),
        commands: BTreeMap::new(),
        examples: Vec::new(),
    };
    for line in text.lines() {
        let (what, rest) = line.split_once(' ').unwrap();
        match what {
            "server" => recorded.server = rest.to_owned(),
            "command" => {
                let fields: Vec<&str> = rest.split(' ').collect();
                let row = Row {
                    flags: fields[1].split(',').map(str::to_owned).collect(),
                    places: [2, 3, 4].map(|at| fields[at].parse().unwrap()),
                };
                recorded.commands.insert(fields[0].to_owned(), row);
            }
            "keys" => {
                let (example, keys) = rest.split_once(" -> ").unwrap();
                let mut keys: Vec<String> = keys.split(' ').map(str::to_owned).collect();
                keys.sort();
                recorded.examples.push((example.to_owned(), keys));
            }
            other => panic!("no such line: {other}"),
        }
    }
    recorded
}

/// The row of a name as servers spell it.
fn row_of(name: &str) -> Option<&'static Command> {
    match name.split_once('|') {
        Some((container, sub)) => {
            command::subcommand(command::lookup(container.as_bytes())?, sub.as_bytes())
        }
        None => command::lookup(name.as_bytes()),
    }
}

fn with_frame<T>(line: &str, check: impl FnOnce(&slotstream::resp::Frame<'_>) -> T) -> T {
    let words: Vec<&str> = line.split(' ').collect();
    let mut bytes = format!("*{}\r\n", words.len());
    for word in words {
        bytes += &format!("${}\r\n{word}\r\n", word.len());
    }
    check(&scan(bytes.as_bytes()).unwrap().unwrap())
}

#[test]
fn every_write_command_of_every_server_is_in_the_table() {
    let mut missing = Vec::new();
    for recorded in recorded() {
        assert!(recorded.commands.len() > 150, "{}", recorded.server);
        for (name, row) in &recorded.commands {
            let known = row_of(name).is_some_and(|command| command.kind != Kind::NoEffect);
            if row.has("write") && !known {
                missing.push(format!("{} {name}", recorded.server));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn no_command_that_only_reads_counts_as_a_write() {
    for recorded in recorded() {
        for (name, row) in &recorded.commands {
            // PFCOUNT is flagged as a read but may refresh the cached count, and is replicated then.
            if row.has("readonly") && name != "pfcount" {
                let kind = row_of(name).map(|command| command.kind);
                assert!(
                    matches!(kind, None | Some(Kind::NoEffect | Kind::Container)),
                    "{} {name} {kind:?}",
                    recorded.server
                );
            }
        }
    }
}

#[test]
fn places_of_keys_are_those_that_servers_name() {
    let mut compared = 0;
    let mut failures = Vec::new();
    for recorded in recorded() {
        for (name, row) in &recorded.commands {
            let Some(command) = row_of(name) else {
                continue;
            };
            let [first, last, step] = row.places;
            let said = KeySpec::from_command_info(first, last, step, row.has("movablekeys"));
            // 6.0 does not say that PFDEBUG has a key.
            let unsaid = name == "pfdebug" && said == KeySpec::None;
            // Before 7.0 a container has a row of its own and its subcommands have none.
            if !unsaid && said != KeySpec::AskSource && command.kind != Kind::Container {
                if command.keys != said {
                    failures.push(format!("{} {name}: {said:?}", recorded.server));
                }
                compared += 1;
            }
        }
    }
    assert!(compared > 900, "{compared}");
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn keys_of_examples_are_those_that_servers_find() {
    let mut failures = Vec::new();
    for recorded in recorded() {
        assert!(recorded.examples.len() > 90, "{}", recorded.server);
        for (example, expected) in &recorded.examples {
            let mut found: Vec<String> = with_frame(example, |frame| {
                let command = command::find(frame).unwrap_or_else(|| panic!("{example}"));
                command::keys(frame, command)
                    .unwrap_or_else(|error| panic!("{example}: {error}"))
                    .map(|key| String::from_utf8_lossy(key).into_owned())
                    .collect()
            });
            found.sort();
            if found != *expected {
                failures.push(format!(
                    "{}: {example}: {found:?}, the server says {expected:?}",
                    recorded.server
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn every_write_command_with_keys_has_an_example() {
    let examples = include_str!("corpus/commands/examples.txt");
    let shown: Vec<String> = examples
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| with_frame(line, |frame| command::find(frame).unwrap().name.to_string()))
        .collect();
    for recorded in recorded() {
        for (name, row) in &recorded.commands {
            let has_keys = row_of(name).is_some_and(|command| command.keys != KeySpec::None);
            if row.has("write") && has_keys && name != "pfdebug" {
                assert!(
                    shown.contains(&name.to_ascii_lowercase()),
                    "no example of {name}"
                );
            }
        }
    }
}
