//! Sends to a cluster whose masters die, step back, and pass slots on: what is refused for such a reason is sent again
//! for a moment, then given up; what has no answer is given up at once.
//!
//! A transaction is sent again as a whole. Where its slot is half moved and its keys are with the new owner, that
//! executes it behind an `ASKING`, which holds to its end.

use crate::Result;
use crate::client::{Client, Endpoint, is_redirect};
use crate::resp::{Command, Value};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::time::{Duration, Instant};

/// A server that does not answer for so long is stopped, or dead; others wait meanwhile.
const ANSWER_PATIENCE: Duration = Duration::from_millis(400);
/// After that nothing is sent there for a while.
const SHUN: Duration = Duration::from_millis(800);
const ATTEMPTS: usize = 8;
const RETRY_PAUSE: Duration = Duration::from_millis(8);
/// Nobody tells who the masters are: a majority may be gone for a moment.
const DISCOVERY_PAUSE: Duration = Duration::from_millis(100);

/// What a node answers that changes its place, beside redirects.
const PASSING_REFUSALS: [&str; 8] = [
    "READONLY",
    "EXECABORT",
    "ERR EXEC without MULTI",
    "ERR DISCARD without MULTI",
    "UNBLOCKED",
    "NOREPLICAS",
    // A master that is about to step back lets no script write.
    "ERR Error running script",
    "UNKILLABLE",
];

pub fn is_passing(error: &str) -> bool {
    is_redirect(error)
        || PASSING_REFUSALS
            .iter()
            .any(|known| error.starts_with(known))
}

pub struct Sender {
    client: Client,
    shunned: HashMap<String, Instant>,
}

impl Sender {
    pub fn connect(endpoint: &Endpoint) -> Result<Sender> {
        Ok(Sender {
            client: Client::connect_impatient(endpoint, ANSWER_PATIENCE)?,
            shunned: HashMap::new(),
        })
    }

    /// The answers, as far as there are any.
    pub fn send(&mut self, commands: &[Command]) -> Vec<Option<Value>> {
        let units = units(commands);
        let mut answers = vec![None; commands.len()];
        let mut by_master: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, unit) in units.iter().enumerate() {
            let owner = self.client.owner_of(&commands[unit.start]).to_owned();
            by_master.entry(owner).or_default().push(index);
        }
        let by_master: Vec<(String, Vec<usize>)> = by_master.into_iter().collect();
        let mut reached = Vec::new();
        for (address, indices) in &by_master {
            let sent = indices.iter().flat_map(|index| units[*index].clone());
            reached.push(self.is_open(address) && self.queue(address, commands, sent).is_ok());
        }
        let mut changed = reached.contains(&false);
        for ((address, indices), reached) in by_master.iter().zip(reached) {
            for index in indices.iter().filter(|_| reached) {
                if self
                    .read(address, &mut answers[units[*index].clone()])
                    .is_err()
                {
                    self.shun(address);
                    changed = true;
                    break;
                }
            }
        }
        let again: Vec<&Range<usize>> = units
            .iter()
            .filter(|unit| refusal(&answers[(*unit).clone()]).is_some())
            .collect();
        if changed || !again.is_empty() {
            self.discover();
        }
        for unit in again {
            self.follow(&commands[unit.clone()], &mut answers[unit.clone()]);
        }
        answers
    }

    /// Sends one unit where its refusals point to.
    fn follow(&mut self, commands: &[Command], answers: &mut [Option<Value>]) {
        for attempt in 0..ATTEMPTS {
            let Some(refusal) = refusal(answers) else {
                return;
            };
            let mut words = refusal.split_whitespace();
            let kind = words.next().unwrap_or_default();
            let address = match (kind, words.nth(1)) {
                ("MOVED" | "ASK", Some(address)) if attempt == 0 || kind == "ASK" => {
                    address.to_owned()
                }
                _ => {
                    std::thread::sleep(RETRY_PAUSE);
                    self.client.owner_of(&commands[0]).to_owned()
                }
            };
            let asking = Command::new(&["ASKING"]);
            let mut sent: Vec<Command> = commands.to_vec();
            if kind == "ASK" {
                sent.insert(0, asking);
            }
            let mut received = vec![None; sent.len()];
            let asked = self.is_open(&address)
                && self.queue(&address, &sent, 0..sent.len()).is_ok()
                && self.read(&address, &mut received).is_ok();
            if !asked {
                self.shun(&address);
                answers.fill(None);
                return;
            }
            let skipped = received.len() - answers.len();
            for (answer, received) in answers.iter_mut().zip(received.drain(skipped..)) {
                *answer = received;
            }
        }
    }

    fn is_open(&self, address: &str) -> bool {
        let shunned = self.shunned.get(address);
        shunned.is_none_or(|until| Instant::now() >= *until)
    }

    fn shun(&mut self, address: &str) {
        self.client.disconnect(address);
        self.shunned
            .insert(address.to_owned(), Instant::now() + SHUN);
    }

    fn queue(
        &mut self,
        address: &str,
        commands: &[Command],
        indices: impl Iterator<Item = usize>,
    ) -> Result<()> {
        let sent = self.client.connection(address).and_then(|connection| {
            indices.for_each(|index| connection.queue(&commands[index]));
            connection.flush()
        });
        if sent.is_err() {
            self.shun(address);
        }
        sent
    }

    fn read(&mut self, address: &str, answers: &mut [Option<Value>]) -> Result<()> {
        let connection = self.client.connection(address)?;
        for answer in answers {
            *answer = Some(connection.read()?);
        }
        Ok(())
    }

    fn discover(&mut self) {
        if self.client.discover().is_err() {
            std::thread::sleep(DISCOVERY_PAUSE);
        }
    }
}

/// Single commands, and transactions from `MULTI` to their end.
fn units(commands: &[Command]) -> Vec<Range<usize>> {
    let mut units: Vec<Range<usize>> = Vec::new();
    let mut open = false;
    for (index, command) in commands.iter().enumerate() {
        match units.last_mut() {
            Some(unit) if open => unit.end = index + 1,
            _ => units.push(index..index + 1),
        }
        if command.is_bare("MULTI") {
            open = true;
        } else if command.is_bare("EXEC") || command.is_bare("DISCARD") {
            open = false;
        }
    }
    units
}

/// Why one unit was not executed, where another server or another moment may do it.
fn refusal(answers: &[Option<Value>]) -> Option<String> {
    let errors = answers.iter().flatten().filter_map(Value::error);
    errors
        .into_iter()
        .find(|error| is_redirect(error))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_one_unit_from_multi_to_its_end() {
        let commands: Vec<Command> = ["GET", "MULTI", "SET", "EXEC", "DEL", "MULTI", "DISCARD"]
            .iter()
            .map(|word| Command::routed("k", &[word]))
            .collect();
        assert_eq!(units(&commands), [0..1, 1..4, 4..5, 5..7]);
    }
}
