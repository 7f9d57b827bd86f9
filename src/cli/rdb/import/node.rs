//! One master that is written to: a connection and two batches of commands, one that is answered while the other fills.

use std::time::Duration;

use crate::control::client::Client;
use crate::fault::{Fault, FaultKind, Side};
use crate::limits::{IMPORT_BATCH_BYTES, IMPORT_BATCH_COMMANDS, MAX_SILENCE_MS};
use crate::resp::{Encoder, scan};
use crate::topology::{Credentials, Value};

/// Commands that belong together, to be sent again: those of one value, or of one part of one.
#[derive(Debug, Clone)]
pub struct Unit {
    /// `None` of commands that concern a whole server.
    pub key: Option<Vec<u8>>,
    pub database: u32,
    pub commands: Vec<u8>,
    pub replies: usize,
    /// A redirect for this one time.
    pub ask: Option<Redirect>,
}

/// What a server said of another one.
#[derive(Debug, Clone)]
pub struct Redirect {
    pub said_by: (String, u16),
    pub named: String,
}

/// A unit by its place in a batch.
#[derive(Debug)]
struct Placed {
    key: Option<Vec<u8>>,
    database: u32,
    start: usize,
    end: usize,
    replies: usize,
    /// It was sent before, so that it may be applied already.
    is_repeated: bool,
}

#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    units: Vec<Placed>,
    /// Answers due, those of `SELECT` included.
    commands: usize,
}

/// A master.
pub struct Node {
    pub host: String,
    pub port: u16,
    client: Option<Client>,
    filling: Batch,
    flying: Batch,
    /// What the connection has selected once all that was written is executed.
    database: u32,
}

/// What has to be sent again, and why.
#[derive(Debug, Default)]
pub struct Failed {
    pub units: Vec<Unit>,
    pub cause: Option<Fault>,
}

/// What a reply means for its unit.
enum Verdict {
    Done,
    Again,
    /// Where, in the redirect's words.
    Ask(String),
    Refused,
}

impl Node {
    pub fn new(host: String, port: u16) -> Self {
        Self {
            host,
            port,
            client: None,
            filling: Batch::default(),
            flying: Batch::default(),
            database: 0,
        }
    }

    /// Adds a unit, whose commands `write` appends; it tells how many they are. 0: what it appended is not to be sent.
    pub fn add(
        &mut self,
        key: Option<&[u8]>,
        database: u32,
        is_repeated: bool,
        write: impl FnOnce(&mut Vec<u8>) -> Result<usize, Fault>,
    ) -> Result<(), Fault> {
        let batch = &mut self.filling;
        if database != self.database {
            Encoder::begin(&mut batch.bytes, 2)
                .arg(b"SELECT")
                .number(database.into());
            batch.commands += 1;
            self.database = database;
            // A unit of its own, without commands to send again: a refusal ends the import, since what follows it would
            // go to another database.
            let end = batch.bytes.len();
            batch.units.push(Placed {
                key: None,
                database,
                start: end,
                end,
                replies: 1,
                is_repeated,
            });
        }
        let start = batch.bytes.len();
        let replies = write(&mut batch.bytes)?;
        if replies == 0 {
            batch.bytes.truncate(start);
            return Ok(());
        }
        batch.commands += replies;
        batch.units.push(Placed {
            key: key.map(<[u8]>::to_vec),
            database,
            start,
            end: batch.bytes.len(),
            replies,
            is_repeated,
        });
        Ok(())
    }

    pub fn is_full(&self) -> bool {
        self.filling.bytes.len() >= IMPORT_BATCH_BYTES
            || self.filling.commands >= IMPORT_BATCH_COMMANDS
    }

    /// Takes the answers that are due, and sends what has gathered. What has to be sent again goes to `failed`.
    ///
    /// # Errors
    /// What no repetition helps against.
    pub fn turn(&mut self, credentials: &Credentials, failed: &mut Failed) -> Result<(), Fault> {
        self.settle(failed)?;
        if self.filling.units.is_empty() {
            return Ok(());
        }
        std::mem::swap(&mut self.filling, &mut self.flying);
        if let Err(fault) = self.send(credentials) {
            self.lost(fault, failed)?;
        }
        Ok(())
    }

    fn send(&mut self, credentials: &Credentials) -> Result<(), Fault> {
        let client = match &mut self.client {
            Some(client) => client,
            None => {
                let mut client = Client::connect(Side::Target, &self.host, self.port, credentials)?;
                client.set_reply_timeout(Duration::from_millis(MAX_SILENCE_MS))?;
                self.client.insert(client)
            }
        };
        client.send_bytes(&self.flying.bytes)
    }

    /// Takes the answers to all that was sent.
    pub fn settle(&mut self, failed: &mut Failed) -> Result<(), Fault> {
        let mut settled = 0;
        while settled < self.flying.units.len() {
            let unit = &self.flying.units[settled];
            let Some(client) = &mut self.client else {
                let text = format!("target {}:{} is not connected", self.host, self.port);
                return self.lost(Fault::new(FaultKind::ConnectionLost, text), failed);
            };
            let mut error = None;
            for _ in 0..unit.replies {
                match client.receive() {
                    Ok(value) => error = error.or_else(|| error_in(value)),
                    Err(fault) => {
                        self.flying.units.drain(..settled);
                        return self.lost(fault, failed);
                    }
                }
            }
            if let Some(text) = error {
                let fault = || client.reply_fault(&text);
                match verdict(&text, unit.is_repeated) {
                    _ if unit.is_select() => return Err(refused(None, fault())),
                    Verdict::Done => {}
                    Verdict::Again => failed.add(&self.flying, unit, None, fault()),
                    Verdict::Ask(named) => {
                        let said_by = (self.host.clone(), self.port);
                        let redirect = Redirect { said_by, named };
                        failed.add(&self.flying, unit, Some(redirect), fault());
                    }
                    Verdict::Refused => return Err(refused(unit.key.as_deref(), fault())),
                }
            } else if let Some(key) = &unit.key
                && failed.has(key)
            {
                // What came before it is sent again, so this has to follow once more.
                failed.units.push(unit_of(&self.flying, unit, None));
            }
            settled += 1;
        }
        self.flying.clear();
        Ok(())
    }

    /// Nothing is known of what was not answered: it is all sent again, which changes nothing if it was applied.
    fn lost(&mut self, fault: Fault, failed: &mut Failed) -> Result<(), Fault> {
        if fault.policy() == crate::fault::Policy::Stop {
            return Err(fault);
        }
        self.client = None;
        self.database = 0;
        for batch in [&mut self.flying, &mut self.filling] {
            for unit in batch.units.iter().filter(|unit| !unit.is_select()) {
                failed.units.push(unit_of(batch, unit, None));
            }
            batch.clear();
        }
        failed.cause = Some(fault);
        Ok(())
    }

    /// Sends one unit to this node although it does not own the slot yet, and waits for the answers.
    pub fn ask(
        &mut self,
        unit: &Unit,
        credentials: &Credentials,
        failed: &mut Failed,
    ) -> Result<(), Fault> {
        debug_assert!(self.flying.units.is_empty() && self.filling.units.is_empty());
        let mut rest = &unit.commands[..];
        let mut commands = 0;
        // ASKING holds for one command, and would be queued inside a transaction; nothing else writes here in between.
        while let Ok(Some(frame)) = scan(rest) {
            if !matches!(frame.verb(), b"MULTI" | b"EXEC") {
                let batch = &mut self.filling.bytes;
                Encoder::begin(batch, 1).arg(b"ASKING");
                batch.extend_from_slice(frame.bytes());
                commands += 1;
            }
            rest = &rest[frame.bytes().len()..];
        }
        self.filling.commands = 2 * commands;
        self.filling.units.push(Placed {
            key: unit.key.clone(),
            database: unit.database,
            start: 0,
            end: self.filling.bytes.len(),
            replies: 2 * commands,
            is_repeated: true,
        });
        let mut again = Failed::default();
        self.turn(credentials, &mut again)?;
        self.settle(&mut again)?;
        if let Some(cause) = again.cause {
            // As it was, without the ASKING in between.
            failed.units.push(Unit {
                ask: again.units.pop().and_then(|unit| unit.ask),
                ..unit.clone()
            });
            failed.cause = Some(cause);
        }
        Ok(())
    }
}

impl Placed {
    fn is_select(&self) -> bool {
        self.start == self.end
    }
}

impl Batch {
    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(2 * IMPORT_BATCH_BYTES);
        self.units.clear();
        self.commands = 0;
    }
}

impl Failed {
    fn add(&mut self, batch: &Batch, unit: &Placed, ask: Option<Redirect>, cause: Fault) {
        self.units.push(unit_of(batch, unit, ask));
        self.cause = Some(cause);
    }

    fn has(&self, key: &[u8]) -> bool {
        self.units
            .iter()
            .any(|unit| unit.key.as_deref() == Some(key))
    }
}

fn unit_of(batch: &Batch, unit: &Placed, ask: Option<Redirect>) -> Unit {
    Unit {
        key: unit.key.clone(),
        database: unit.database,
        commands: batch.bytes[unit.start..unit.end].to_vec(),
        replies: unit.replies,
        ask,
    }
}

/// The first error in a reply; that of a transaction holds one for each command.
fn error_in(value: Value) -> Option<String> {
    match value {
        Value::Error(text) => Some(text),
        Value::Array(values) => values.into_iter().find_map(error_in),
        _ => None,
    }
}

fn verdict(text: &str, is_repeated: bool) -> Verdict {
    let mut words = text.split_ascii_whitespace();
    match words.next().unwrap_or_default() {
        "MOVED" => return Verdict::Again,
        "ASK" => {
            let named = words.nth(1).unwrap_or_default();
            let port = named.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            return match port {
                Some(Ok(_)) => Verdict::Ask(named.to_owned()),
                _ => Verdict::Refused,
            };
        }
        // A repeated XGROUP CREATE or XADD.
        "BUSYGROUP" if is_repeated => return Verdict::Done,
        _ if is_repeated && text.contains("equal or smaller than the target stream top item") => {
            return Verdict::Done;
        }
        _ => {}
    }
    match FaultKind::of_reply(text) {
        FaultKind::Loading
        | FaultKind::MasterLinkDown
        | FaultKind::Busy
        | FaultKind::ClusterDown
        | FaultKind::TryAgain
        | FaultKind::ReadOnly => Verdict::Again,
        _ => Verdict::Refused,
    }
}

/// The fault of a reply that stays the same however often it is asked for.
fn refused(key: Option<&[u8]>, fault: Fault) -> Fault {
    let kind = match fault.kind {
        // The server is fine: it is the value that it does not take.
        FaultKind::Refused => FaultKind::SnapshotUnsupported,
        kind => kind,
    };
    match key {
        None => Fault::new(kind, fault.message),
        Some(key) => {
            let key = super::shown(key, crate::limits::DESCRIBED_BYTES);
            Fault::new(kind, format!("key '{key}': {}", fault.message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_that_pass_are_asked_for_again_and_others_end_the_import() {
        for text in [
            "MOVED 1 a:1",
            "TRYAGAIN x",
            "CLUSTERDOWN x",
            "LOADING x",
            "READONLY x",
        ] {
            assert!(matches!(verdict(text, false), Verdict::Again), "{text}");
        }
        for text in [
            "ERR Bad data format",
            "OOM command not allowed",
            "NOPERM x",
            "ASK 1 nowhere",
        ] {
            assert!(matches!(verdict(text, true), Verdict::Refused), "{text}");
        }
        let asked = verdict("ASK 1 [::1]:7000", false);
        assert!(matches!(asked, Verdict::Ask(named) if named == "[::1]:7000"));
    }

    #[test]
    fn what_a_repetition_finds_done_is_no_error_then() {
        let busy = "BUSYGROUP Consumer Group name already exists";
        let small =
            "ERR The ID specified in XADD is equal or smaller than the target stream top item";
        for text in [busy, small] {
            assert!(matches!(verdict(text, true), Verdict::Done));
            assert!(matches!(verdict(text, false), Verdict::Refused));
        }
    }

    #[test]
    fn an_error_inside_a_transaction_is_found() {
        let replies = vec![
            Value::Integer(1),
            Value::Array(vec![Value::Error("ERR x".into())]),
        ];
        assert_eq!(error_in(Value::Array(replies)), Some("ERR x".into()));
    }
}
