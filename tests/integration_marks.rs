//! Which commands reach a server's stream with the casing of their verb.
#[path = "replay/forms.rs"]
#[allow(dead_code)]
mod forms;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use lab::{
    Command, Connection, Family, Server, ServerOptions, Tap, Version, version_or_skip, wait_until,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const ROUNDS: usize = 30;

fn marked(verb: &[u8]) -> Vec<u8> {
    let mut v = verb.to_ascii_uppercase();
    v[0] = v[0].to_ascii_lowercase();
    v
}

#[test]
fn measure() -> Result<()> {
    for family in Family::ALL {
        let Some(version) = version_or_skip(family) else {
            continue;
        };
        let server = Server::start(&version, ServerOptions::default())?;
        let mut connection = server.connect()?;
        let tap = Tap::attach(server.connect()?)?;
        let mut random = Rng::with_seed(1);
        let mut payloads = Vec::new();
        let mut script: Vec<(forms::Kind, &str)> = vec![
            (forms::Kind::Str, "SET p 12"),
            (forms::Kind::Hash, "HSET p f 1 g 2 h a"),
            (forms::Kind::List, "RPUSH p x y z 1 2 x"),
            (forms::Kind::Set, "SADD p a b c"),
            (forms::Kind::SortedSet, "ZADD p 0 a 1 b 2 c 3 1"),
            (forms::Kind::Stream, "XADD p 2-0 f v"),
        ];
        script.retain(|_| true);
        for (kind, line) in script {
            connection.call(&["DEL", "p"])?;
            connection.call(&line.split(' ').collect::<Vec<_>>())?;
            payloads.push((
                kind,
                connection.call(&["DUMP", "p"])?.bytes().unwrap().to_vec(),
            ));
        }
        connection.call(&["DEL", "p"])?;
        let forms = forms::all();
        let mut order: Vec<usize> = (0..forms.len())
            .cycle()
            .take(forms.len() * ROUNDS)
            .collect();
        random.shuffle(&mut order);
        let mut commands = Vec::new();
        let mut words = forms::Words {
            random: &mut random,
            keys: 2,
            payloads: &payloads,
            newest_id: 0,
        };
        for (n, form) in order.iter().enumerate() {
            let (kind, text) = forms[*form];
            let kind = if kind == forms::Kind::Any {
                forms::Kind::TYPES[words.random.usize(..7)]
            } else {
                kind
            };
            let mut args = words.of(text);
            for arg in &mut args {
                if arg.len() == 2 && arg[0] == b'@' {
                    *arg = format!("{kind:?}{}", arg[1] as char).into_bytes();
                }
            }
            if args[0][0] == b'B' && args[0][1] != b'I' {
                for arg in &mut args {
                    if arg == b"1" && false {
                        *arg = b"0.01".to_vec();
                    }
                }
                if args[0].ends_with(b"MPOP") || args[0] == b"BLMOVEM" {
                    args[1] = if args[0] == b"BLMOVEM" {
                        args[1].clone()
                    } else {
                        b"0.01".to_vec()
                    };
                } else {
                    *args.last_mut().unwrap() = b"0.01".to_vec();
                }
            }
            args[0] = marked(&args[0]);
            if n % 25 == 0 {
                commands.push(Command::new(&["SET", "marker", "none"]));
                commands.push(Command::new(&[
                    "DEL",
                    &format!("{kind:?}{}", words.random.u8(0..2)),
                ]));
            }
            commands.push(Command::new(&["SET", "marker", &n.to_string()]));
            commands.push(Command::new(&args));
        }
        commands.push(Command::new(&["SET", "marker", "end"]));
        for part in commands.chunks(500) {
            connection.pipeline(part)?;
        }
        wait_until(Duration::from_secs(30), "the stream", || {
            Ok(tap
                .commands()
                .last()
                .is_some_and(|c| c.last().unwrap() == b"end"))
        })?;
        let mut seen: Vec<BTreeSet<String>> = vec![BTreeSet::new(); forms.len()];
        let mut at = None;
        for c in tap.stop()? {
            if c[0] == b"SET" && c[1] == b"marker" {
                at = std::str::from_utf8(&c[2])?.parse::<usize>().ok();
                continue;
            }
            if c[0] == b"DEL" && c.len() == 2 && false {
                continue;
            }
            let Some(n) = at else { continue };
            seen[order[n]].insert(String::from_utf8_lossy(&c[0]).into_owned());
        }
        println!("=== {version}");
        for (i, (_, text)) in forms.iter().enumerate() {
            let verb = String::from_utf8(marked(text.split(' ').next().unwrap().as_bytes()))?;
            let lost: Vec<_> = seen[i]
                .iter()
                .filter(|v| *v != &verb && *v != "DEL" || (verb.to_uppercase() == "DEL"))
                .collect();
            if seen[i].is_empty() {
                println!("NOTHING {text}");
            } else if !(seen[i].len() == 1 && seen[i].contains(&verb)) {
                println!("LOST {text}: {:?}", seen[i]);
            }
            let _ = lost;
        }
    }
    Ok(())
}
