//! The keys that the target holds, page by page: `SCAN` on every master that owns slots of the lane.
//!
//! Pages are asked for one at a time, on the lane's own connections: so what a page shows stands in order with the
//! lane's writes. `SCAN` tells every key that is there from the beginning to the end of a pass. What moves meanwhile from
//! a master that was not listed yet to one that was is missed, and a cursor means nothing to the next server at the same
//! place; a pass during which anything of that kind happened is therefore followed by another.
//!
//! ```text
//! places   [ master 0, databases? ] -> [ master 0, db 0, cursor ] [ master 0, db 5, cursor ] [ master 1 ... ]
//!                                      [ master 0, keys of a page, cursor ]       before it, while hashes are looked into
//! ```

use std::collections::VecDeque;

use memchr::memmem::find;

use super::lease::Due;
use super::options::DatabaseMap;
use super::settle;
use super::targets::Targets;
use crate::checkpoint::is_bookkeeping;
use crate::fault::{Fault, FaultKind, Policy};
use crate::limits;
use crate::resp::{Value, parse_value, push_command};
use crate::topology::TopologyKind;

/// A walk over the lane's target masters.
#[derive(Debug)]
pub(super) struct Listing {
    places: VecDeque<Place>,
    /// A question is on its way for the first place.
    asked: bool,
    /// The last question was refused and must be asked again, a little later.
    refused: bool,
    /// What is on its way is not wanted any more.
    void: bool,
    /// [`Targets::changes`] when the pass began.
    changes: u64,
    /// When everything had been listed.
    ended_ms: Option<u64>,
}

#[derive(Debug)]
struct Place {
    target: usize,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// Which databases hold keys?
    Databases,
    Keys {
        database: u32,
        cursor: Vec<u8>,
    },
    /// Settles leases of fields; the cursor is one in the first key.
    Hashes {
        database: u32,
        keys: Vec<Vec<u8>>,
        cursor: Vec<u8>,
        due: Due,
    },
}

/// Keys that were listed.
#[derive(Debug)]
pub(super) struct Page {
    /// The connection that told them.
    pub target: usize,
    pub database: u32,
    pub keys: Vec<Vec<u8>>,
}

impl Listing {
    /// A new pass.
    pub fn new(targets: &Targets) -> Self {
        let mut listing = Self {
            places: VecDeque::new(),
            asked: false,
            refused: false,
            void: false,
            changes: 0,
            ended_ms: None,
        };
        listing.begin(targets);
        listing
    }

    fn begin(&mut self, targets: &Targets) {
        self.changes = targets.changes;
        self.ended_ms = None;
        let needed = (0..targets.len()).filter(|&index| targets.nodes[index].needed);
        let single = targets.topology.kind == TopologyKind::Single;
        let places = needed.map(|target| Place {
            target,
            step: match single {
                true => Step::Databases,
                false => Step::first_page(0),
            },
        });
        self.places = places.collect();
    }

    /// Lists everything again: what was listed means something else now.
    pub fn restart(&mut self, targets: &Targets) {
        self.void = self.asked;
        self.begin(targets);
    }

    /// Whether everything was listed, in a pass that nothing disturbed; if it was disturbed, another one begins. `now_ms`
    /// is known at a tick.
    pub fn is_done(&mut self, targets: &Targets, now_ms: Option<u64>) -> bool {
        if self.asked || !self.places.is_empty() {
            return false;
        }
        let Some(now_ms) = now_ms else { return false };
        // That a slot of a cluster has moved shows a little later.
        let ended_ms = *self.ended_ms.get_or_insert(now_ms);
        let wait = match targets.is_single() {
            true => 0,
            false => limits::LISTING_QUIET_MS,
        };
        if now_ms - ended_ms < wait {
            return false;
        }
        let mut open = targets.topology.open_slots.iter();
        if self.changes != targets.changes || open.any(|open| targets.slots.contains(open.slot)) {
            self.begin(targets);
            return false;
        }
        true
    }

    /// The connection that the next question goes to, unless one is on its way. `timed`: some time has passed.
    pub fn next_target(&self, timed: bool) -> Option<usize> {
        let wait = self.asked || (self.refused && !timed);
        let place = self.places.front().filter(|_| !wait)?;
        Some(place.target)
    }

    /// Writes the next question; gives the database that it is for.
    pub fn ask(&mut self, out: &mut Vec<u8>) -> u32 {
        self.asked = true;
        self.refused = false;
        match self.places.front().map(|place| &place.step) {
            Some(Step::Keys { database, cursor }) => {
                push_command(
                    out,
                    &[b"SCAN", cursor, b"COUNT", limits::LISTING_SCAN_COUNT],
                );
                *database
            }
            Some(Step::Hashes {
                database,
                keys,
                cursor,
                due,
            }) => {
                settle::ask_into(out, *due, cursor, keys);
                *database
            }
            _ => {
                push_command(out, &[b"INFO", b"keyspace"]);
                0
            }
        }
    }

    /// Before the next page, leases of fields of these keys of the last one are settled: those that are `due`.
    pub fn look_into(&mut self, target: usize, database: u32, keys: Vec<Vec<u8>>, due: Due) {
        let cursor = b"0".to_vec();
        if !keys.is_empty() {
            self.places.push_front(Place {
                target,
                step: Step::Hashes {
                    database,
                    keys,
                    cursor,
                    due,
                },
            });
        }
    }

    pub fn awaits(&self) -> bool {
        self.asked
    }

    /// Takes the answer of connection `target`.
    ///
    /// # Errors
    /// When the target will not tell its keys.
    pub fn answered(
        &mut self,
        target: usize,
        answer: &[u8],
        targets: &Targets,
        map: &DatabaseMap,
    ) -> Result<Option<Page>, Fault> {
        self.asked = false;
        if std::mem::take(&mut self.void) {
            return Ok(None);
        }
        // The master that was asked is gone, and another got the question.
        if self
            .places
            .front()
            .is_none_or(|place| place.target != target)
        {
            self.begin(targets);
            return Ok(None);
        }
        let Some(place) = self.places.front_mut() else {
            return Ok(None);
        };
        match &mut place.step {
            Step::Databases => {
                let Some(databases) = parse_keyspace(answer)? else {
                    self.refused = true;
                    return Ok(None);
                };
                self.places.pop_front();
                let ours = databases
                    .into_iter()
                    .filter(|&database| map.reaches(database));
                for database in ours {
                    let step = Step::first_page(database);
                    self.places.push_front(Place { target, step });
                }
                Ok(None)
            }
            Step::Keys { database, cursor } => {
                let Some(page) = parse_scan(answer)? else {
                    self.refused = true;
                    return Ok(None);
                };
                let database = *database;
                *cursor = page.cursor;
                if cursor == b"0" {
                    self.places.pop_front();
                }
                // What this program keeps there is no data, whichever link it belongs to.
                let keys = page.keys.into_iter().filter(|key| !is_bookkeeping(key));
                Ok(Some(Page {
                    target,
                    database,
                    keys: keys.collect(),
                }))
            }
            Step::Hashes { keys, cursor, .. } => {
                let Some((done, at)) = parse_looked_into(answer)? else {
                    self.refused = true;
                    return Ok(None);
                };
                keys.drain(..done.min(keys.len()));
                *cursor = at;
                if keys.is_empty() {
                    self.places.pop_front();
                }
                Ok(None)
            }
        }
    }
}

impl Step {
    fn first_page(database: u32) -> Self {
        Step::Keys {
            database,
            cursor: b"0".to_vec(),
        }
    }
}

/// A reply of `SCAN`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    /// `0` at the end.
    pub cursor: Vec<u8>,
    pub keys: Vec<Vec<u8>>,
}

/// Reads the reply of `SCAN`; `None` if it must be asked again.
///
/// # Errors
/// When it is refused, or no reply of `SCAN`.
pub(super) fn parse_scan(answer: &[u8]) -> Result<Option<Scanned>, Fault> {
    let items = match parse_value(answer) {
        Some((Value::Array(items), _)) => items,
        value => return refused(SCAN, answer, value),
    };
    let [Value::Bulk(cursor), Value::Array(keys)] = items.as_slice() else {
        return refused(SCAN, answer, None);
    };
    let keys = keys.iter().filter_map(|key| match key {
        Value::Bulk(key) => Some(key.clone()),
        _ => None,
    });
    Ok(Some(Scanned {
        cursor: cursor.clone(),
        keys: keys.collect(),
    }))
}

/// Reads the reply to [`settle::ask_into`]: how many keys are done with, and where to go on in the next.
fn parse_looked_into(answer: &[u8]) -> Result<Option<(usize, Vec<u8>)>, Fault> {
    let items = match parse_value(answer) {
        Some((Value::Array(items), _)) => items,
        // In a script's own words.
        Some((Value::Error(text), _)) if find(&text, b"cluster is down").is_some() => {
            return Ok(None);
        }
        value => return refused(HSCAN, answer, value),
    };
    match items.as_slice() {
        [Value::Integer(done), Value::Bulk(cursor)] => {
            let done = usize::try_from(*done).unwrap_or_default();
            Ok(Some((done, cursor.clone())))
        }
        _ => refused(HSCAN, answer, None),
    }
}

/// The databases in the reply of `INFO keyspace`: lines `db0:keys=1,expires=0,...` of those that hold keys.
fn parse_keyspace(answer: &[u8]) -> Result<Option<Vec<u32>>, Fault> {
    let text = match parse_value(answer) {
        Some((Value::Bulk(text), _)) => text,
        value => return refused(KEYSPACE, answer, value),
    };
    let text = String::from_utf8_lossy(&text);
    let databases = text.lines().filter_map(|line| {
        let (number, _) = line.strip_prefix("db")?.split_once(':')?;
        number.parse().ok()
    });
    Ok(Some(databases.collect()))
}

/// A question, why it is asked, and what the target's user must be allowed.
type Question = (&'static str, &'static str, &'static str);

const SCAN: Question = ("SCAN", "find keys", "+scan +unlink");
const KEYSPACE: Question = ("INFO keyspace", "find keys", "+info");
const HSCAN: Question = (
    "a script",
    "find fields whose deadlines are held back",
    "+eval +type +hscan +hpexpiretime +hpexpireat",
);

fn refused<T>(
    (what, why, rights): Question,
    answer: &[u8],
    value: Option<(Value, usize)>,
) -> Result<Option<T>, Fault> {
    if let Some((Value::Error(text), _)) = value {
        let kind = FaultKind::of_reply(&String::from_utf8_lossy(&text));
        if kind.policy() == Policy::Retry {
            return Ok(None);
        }
    }
    let text = answer[..answer.len().min(100)].escape_ascii();
    Err(Fault::new(
        FaultKind::Refused,
        format!("{what} on the target, needed to {why}, was answered '{text}'; allow {rights}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_with_keys_are_read() {
        let info = "# Keyspace\r\ndb0:keys=5,expires=0\r\ndb12:keys=1,expires=1,avg_ttl=0\r\n";
        let answer = format!("${}\r\n{info}\r\n", info.len());
        assert_eq!(parse_keyspace(answer.as_bytes()), Ok(Some(vec![0, 12])));
        assert_eq!(parse_keyspace(b"-LOADING it\r\n"), Ok(None));
        let refused = parse_keyspace(b"-NOPERM no\r\n").expect_err("refused");
        assert!(refused.message.contains("+info"), "{refused}");
    }

    #[test]
    fn a_page_is_read() {
        let page = parse_scan(b"*2\r\n$2\r\n17\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n");
        let expected = Scanned {
            cursor: b"17".to_vec(),
            keys: vec![b"a".to_vec(), b"b".to_vec()],
        };
        assert_eq!(page, Ok(Some(expected)));
        assert!(parse_scan(b"*1\r\n$1\r\n0\r\n").is_err());
    }

    #[test]
    fn how_far_hashes_were_looked_into_is_read() {
        let answer = parse_looked_into(b"*2\r\n:3\r\n$2\r\n17\r\n");
        assert_eq!(answer, Ok(Some((3, b"17".to_vec()))));
        assert_eq!(parse_looked_into(b"-LOADING it\r\n"), Ok(None));
        let down = b"-ERR Script attempted to execute a command while the cluster is down\r\n";
        assert_eq!(parse_looked_into(down), Ok(None));
        let refused = parse_looked_into(b"-NOPERM no\r\n").expect_err("refused");
        assert!(refused.message.contains("+hscan"), "{refused}");
        assert!(parse_looked_into(b"*2\r\n$1\r\n0\r\n*0\r\n").is_err());
    }
}
