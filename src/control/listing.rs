//! Answers the lanes' questions about the keys of slots that are to be copied, at their source master and on the target.
//!
//! ```text
//! source   INFO keyspace, then for each database and slot COUNTKEYSINSLOT, GETKEYSINSLOT; INFO replication
//! target   the same at every master: of a slot that is on its way each has some keys; a single server is gone through with SCAN
//! ```
//!
//! Nobody writes these slots on the target meanwhile. What is written at the source after its list was made, the lane sees in the
//! stream.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::client::{Client, value_text};
use super::masters::Masters;
use super::service::Service;
use crate::checkpoint::is_bookkeeping;
use crate::engine::recopy::{ListAnswer, ListQuestion};
use crate::engine::shared::Shared;
use crate::fault::{Fault, FaultKind, Policy, Side};
use crate::limits::{MAX_MASTERS, MEND_ANSWER_BYTES, RECOPY_SLOT_KEYS};
use crate::mend::Key;
use crate::slot::{Slot, SlotSet, slot_of};
use crate::topology::server::replication_position;
use crate::topology::{Credentials, Endpoint, TopologyKind, Value};

pub type ListService = Service<ListQuestion, ListAnswer>;

impl ListService {
    /// Starts the thread; it connects with the first question.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn list_slots(
        shared: &Arc<Shared>,
        source: &Credentials,
        target: &Endpoint,
    ) -> Result<Self, Fault> {
        let (_, topology) = shared.target.load();
        let mut lister = Lister {
            shared: Arc::clone(shared),
            credentials: source.clone(),
            sources: HashMap::new(),
            masters: Masters::new(target, &topology),
        };
        Self::start(
            "listing",
            shared,
            |shared| &shared.listing,
            move |request| lister.answer(&request.question),
        )
    }
}

/// Connections to the source masters that were asked, and to the target. Blocks; one question at a time.
struct Lister {
    shared: Arc<Shared>,
    credentials: Credentials,
    sources: HashMap<(String, u16), Client>,
    masters: Masters,
}

impl Lister {
    fn answer(&mut self, question: &ListQuestion) -> ListAnswer {
        let listed = self.list(question);
        listed.unwrap_or_else(|fault| {
            // Replies may still be on their way.
            self.sources.clear();
            self.masters.disconnect();
            match fault.policy() {
                Policy::Stop => ListAnswer::Never(fault),
                _ => ListAnswer::Later(fault.message),
            }
        })
    }

    fn list(&mut self, question: &ListQuestion) -> Result<ListAnswer, Fault> {
        let (replid, source) = self.of_source(question)?;
        let target = match question.target {
            true => {
                self.masters.suggest(&self.shared.target.load().1);
                of_target(&question.slots, &mut self.masters)?
            }
            false => Vec::new(),
        };
        Ok(ListAnswer::Listed {
            replid,
            source,
            target,
        })
    }

    fn of_source(&mut self, question: &ListQuestion) -> Result<(String, Vec<Key>), Fault> {
        let (host, port) = (&question.address, question.port);
        if self.sources.len() > MAX_MASTERS {
            self.sources.clear();
        }
        let client = match self.sources.entry((host.clone(), port)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let client = Client::connect(Side::Source, host, port, &self.credentials)?;
                place.insert(client)
            }
        };
        let keys = of_slots(client, &question.slots)?;
        let info = value_text(client.call(&["INFO", "replication"])?).unwrap_or_default();
        let (replid, _) = replication_position(&info)
            .map_err(|error| client.shape_fault("INFO replication", error))?;
        Ok((replid, keys))
    }
}

fn of_target(slots: &SlotSet, masters: &mut Masters) -> Result<Vec<Key>, Fault> {
    masters.refresh()?;
    if masters.topology().kind == TopologyKind::Single {
        let mut clients = masters.clients();
        return clients
            .next()
            .map_or(Ok(Vec::new()), |client| scan(client, slots));
    }
    // A key could be on its way from a master that was not asked yet to one that was.
    let mut open = masters.topology().open_slots.iter();
    if let Some(open) = open.find(|open| slots.contains(open.slot)) {
        let text = format!("slot {} moves on the target", open.slot);
        return Err(Fault::new(FaultKind::TryAgain, text));
    }
    let mut keys = Vec::new();
    for client in masters.clients() {
        keys.extend(of_slots(client, slots)?);
    }
    Ok(keys)
}

/// The databases that hold keys.
fn databases(client: &mut Client) -> Result<Vec<u32>, Fault> {
    let info = value_text(client.call(&["INFO", "keyspace"])?).unwrap_or_default();
    let numbers = info.lines().filter_map(|line| {
        let (number, _) = line.strip_prefix("db")?.split_once(':')?;
        number.parse().ok()
    });
    Ok(numbers.collect())
}

/// The keys of these slots at one master of a cluster.
fn of_slots(client: &mut Client, slots: &SlotSet) -> Result<Vec<Key>, Fault> {
    let mut keys = Vec::new();
    let databases = databases(client)?;
    let several = databases != [0];
    for database in databases {
        if several {
            client.call(&["SELECT", &database.to_string()])?;
        }
        for slot in slots.iter() {
            let names = of_slot(client, slot)?;
            keys.extend(names.into_iter().map(|name| (database, name)));
        }
    }
    if several {
        client.call(&["SELECT", "0"])?;
    }
    keys.retain(|(_, name)| !is_bookkeeping(name));
    Ok(keys)
}

fn of_slot(client: &mut Client, slot: Slot) -> Result<Vec<Vec<u8>>, Fault> {
    let slot = slot.to_string();
    let count = client.call(&["CLUSTER", "COUNTKEYSINSLOT", &slot])?;
    let Value::Integer(count) = count else {
        return Err(client.shape_fault("CLUSTER COUNTKEYSINSLOT", "no number"));
    };
    if count == 0 {
        return Ok(Vec::new());
    }
    // Some may have come since; those the lane sees. Were there more than it takes, it says so.
    let most = (count.unsigned_abs() + 1).min(RECOPY_SLOT_KEYS as u64 + 1);
    client.send(&["CLUSTER", "GETKEYSINSLOT", &slot, &most.to_string()])?;
    let bytes = client.receive_raw(1, MEND_ANSWER_BYTES)?;
    let decoded = Value::decode(&bytes).ok().flatten();
    match decoded.map(|(value, _)| value) {
        Some(Value::Array(names)) => Ok(names.into_iter().filter_map(name).collect()),
        Some(Value::Error(reply)) => Err(client.reply_fault(&reply)),
        _ => Err(client.shape_fault("CLUSTER GETKEYSINSLOT", "no list of keys")),
    }
}

/// The keys of these slots of the source, at a single server.
fn scan(client: &mut Client, slots: &SlotSet) -> Result<Vec<Key>, Fault> {
    let mut keys = Vec::new();
    for database in databases(client)? {
        client.call(&["SELECT", &database.to_string()])?;
        let mut cursor = "0".to_owned();
        loop {
            let page = client.call(&["SCAN", &cursor, "COUNT", "1000"])?;
            let Some((next, names)) = page_of(page) else {
                return Err(client.shape_fault("SCAN", "no cursor and keys"));
            };
            let ours = names
                .into_iter()
                .filter(|name| slots.contains(slot_of(name)) && !is_bookkeeping(name));
            keys.extend(ours.map(|name| (database, name)));
            cursor = next;
            if cursor == "0" {
                break;
            }
        }
    }
    client.call(&["SELECT", "0"])?;
    Ok(keys)
}

fn page_of(page: Value) -> Option<(String, Vec<Vec<u8>>)> {
    let Value::Array(parts) = page else {
        return None;
    };
    let mut parts = parts.into_iter();
    let next = value_text(parts.next()?)?;
    let Value::Array(names) = parts.next()? else {
        return None;
    };
    Some((next, names.into_iter().filter_map(name).collect()))
}

fn name(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::Bulk(name) => Some(name),
        _ => None,
    }
}
