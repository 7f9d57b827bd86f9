//! By which names a source master knows its history: what may be asked of it, and which records are of it.

use super::client::{Client, value_text};
use crate::fault::{Fault, Side};
use crate::position::ReplicationId;
use crate::topology::{Credentials, histories};

/// The history that this master writes, and the one that it followed before it was promoted.
///
/// # Errors
/// When it cannot be asked.
pub fn of(host: &str, port: u16, credentials: &Credentials) -> Result<Vec<ReplicationId>, Fault> {
    let mut client = Client::connect(Side::Source, host, port, credentials)?;
    let info = value_text(client.call(&["INFO", "replication"])?).unwrap_or_default();
    let ids = histories(&info).into_iter();
    Ok(ids
        .filter_map(|id| ReplicationId::parse(id.as_bytes()))
        .collect())
}
