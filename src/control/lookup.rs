//! Answers the lanes' questions about commands that the table does not know, by asking the source.

use std::sync::Arc;

use super::client::Client;
use super::service::Service;
use crate::engine::lookup::{LookupAnswer, LookupQuestion};
use crate::engine::shared::Shared;
use crate::fault::{Fault, FaultKind, Side};
use crate::topology::{Credentials, Value};

pub type LookupService = Service<LookupQuestion, LookupAnswer>;

impl LookupService {
    /// Starts the thread; it connects with the first question.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn ask_source(shared: &Arc<Shared>, credentials: &Credentials) -> Result<Self, Fault> {
        let mut asker = Asker {
            shared: Arc::clone(shared),
            credentials: credentials.clone(),
            client: None,
        };
        Self::start(
            "lookup",
            shared,
            |shared| &shared.lookup,
            move |request| asker.answer(&request.question),
        )
    }
}

struct Asker {
    shared: Arc<Shared>,
    credentials: Credentials,
    client: Option<Client>,
}

impl Asker {
    /// One answer to one question. A connection that was found dead is opened anew, once.
    fn answer(&mut self, question: &LookupQuestion) -> LookupAnswer {
        let first = self.ask(question);
        let answer = match first {
            Err(_) if self.client.take().is_some() => self.ask(question),
            answer => answer,
        };
        answer.unwrap_or_else(LookupAnswer::Failed)
    }

    fn ask(&mut self, question: &LookupQuestion) -> Result<LookupAnswer, Fault> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.connect()?,
        };
        let answer = match question {
            LookupQuestion::Positions { verb } => {
                let args: [&[u8]; 3] = [b"COMMAND", b"INFO", verb];
                client.ask(&args).map(|reply| positions(&reply))
            }
            LookupQuestion::Keys { args } => {
                let mut command: Vec<&[u8]> = vec![b"COMMAND", b"GETKEYS"];
                command.extend(args.iter().map(Vec::as_slice));
                client.ask(&command).map(keys)
            }
        };
        self.client = Some(client);
        answer
    }

    fn connect(&self) -> Result<Client, Fault> {
        let (_, topology) = self.shared.source.load();
        let mut failed = None;
        for node in topology.nodes() {
            match Client::connect(Side::Source, &node.address, node.port, &self.credentials) {
                Ok(client) => return Ok(client),
                Err(fault) => failed = Some(fault),
            }
        }
        let nobody = || Fault::new(FaultKind::NoTopology, "the source has no node to ask");
        Err(failed.unwrap_or_else(nobody))
    }
}

/// `[[name, arity, [flag...], first, last, step, ...]]`, or `[nil]` for an unknown command.
fn positions(reply: &Value) -> LookupAnswer {
    let parsed = || {
        let [entry] = reply.array()? else {
            return None;
        };
        let [_, _, flags, first, last, step, ..] = entry.array()? else {
            return None;
        };
        let flags = flags.array()?;
        let has = |flag| flags.iter().any(|known| known.text() == Some(flag));
        // From 7.0 on a container lists its subcommands, and each of them has positions of its own.
        let subcommands = entry.array()?.get(9).and_then(Value::array);
        let is_container = subcommands.is_some_and(|list| !list.is_empty());
        Some(LookupAnswer::Positions {
            first: first.integer()?,
            last: last.integer()?,
            step: step.integer()?,
            movable: has("movablekeys") || is_container,
            write: has("write") || is_container,
        })
    };
    parsed().unwrap_or_else(|| unknown(reply))
}

fn keys(reply: Value) -> LookupAnswer {
    match reply {
        Value::Error(text) if text.contains("no key arguments") => LookupAnswer::Keys(Vec::new()),
        Value::Array(values) => {
            let keys: Option<Vec<Vec<u8>>> = values
                .iter()
                .map(|value| match value {
                    Value::Bulk(key) => Some(key.clone()),
                    _ => None,
                })
                .collect();
            keys.map_or_else(|| unknown(&Value::Array(values)), LookupAnswer::Keys)
        }
        other => unknown(&other),
    }
}

fn unknown(reply: &Value) -> LookupAnswer {
    LookupAnswer::Unknown(match reply {
        Value::Error(text) => text.clone(),
        _ => "the source does not know this command".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Value {
        Value::decode(bytes).expect("valid").expect("whole").0
    }

    #[test]
    fn positions_are_read_and_an_unknown_command_is_told() {
        let known =
            b"*1\r\n*6\r\n$3\r\nset\r\n:-3\r\n*2\r\n+write\r\n+movablekeys\r\n:1\r\n:-1\r\n:2\r\n";
        let expected = LookupAnswer::Positions {
            first: 1,
            last: -1,
            step: 2,
            movable: true,
            write: true,
        };
        assert_eq!(positions(&decode(known)), expected);
        for unknown in [&b"*1\r\n$-1\r\n"[..], b"*1\r\n*-1\r\n", b"-NOPERM no\r\n"] {
            assert!(matches!(
                positions(&decode(unknown)),
                LookupAnswer::Unknown(_)
            ));
        }
    }

    #[test]
    fn the_keys_of_a_container_are_asked_for_command_by_command() {
        let mut bytes =
            b"*1\r\n*10\r\n$3\r\nfoo\r\n:-2\r\n*0\r\n:0\r\n:0\r\n:0\r\n*0\r\n*0\r\n*0\r\n".to_vec();
        bytes.extend(b"*1\r\n$7\r\nfoo|bar\r\n");
        let expected = LookupAnswer::Positions {
            first: 0,
            last: 0,
            step: 0,
            movable: true,
            write: true,
        };
        assert_eq!(positions(&decode(&bytes)), expected);
    }

    #[test]
    fn a_command_without_keys_is_no_failure() {
        let none = b"-ERR The command has no key arguments\r\n";
        assert_eq!(keys(decode(none)), LookupAnswer::Keys(vec![]));
        let two = b"*2\r\n$1\r\na\r\n$1\r\nb\r\n";
        assert_eq!(
            keys(decode(two)),
            LookupAnswer::Keys(vec![b"a".into(), b"b".into()])
        );
        let bad = keys(decode(b"-ERR Invalid command specified\r\n"));
        assert_eq!(
            bad,
            LookupAnswer::Unknown("ERR Invalid command specified".into())
        );
    }
}
