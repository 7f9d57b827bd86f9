//! Connections that write to a target, found by their names in `CLIENT LIST`.

use std::time::Duration;

use super::client::Client;
use crate::checkpoint::Writer;
use crate::fault::{Fault, FaultKind};
use crate::limits::{SHUT_OUT_PAUSE_MS, SHUT_OUT_ROUNDS};
use crate::topology::Value;

/// A connection to the server that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// What `CLIENT KILL ID` takes.
    pub id: String,
    /// Where it comes from.
    pub address: String,
    pub writer: Writer,
}

/// The connections of any slotstream that writes to the server behind `client`.
pub fn connected(client: &mut Client) -> Result<Vec<Connected>, Fault> {
    let list = client.text(&["CLIENT", "LIST"])?;
    Ok(list.lines().filter_map(parse).collect())
}

/// Ends the connections for which `doomed` says so, and looks again until there is none.
pub fn shut_out(client: &mut Client, doomed: impl Fn(&Connected) -> bool) -> Result<(), Fault> {
    let mut left = Vec::new();
    for round in 0..SHUT_OUT_ROUNDS {
        if round > 0 {
            std::thread::sleep(Duration::from_millis(SHUT_OUT_PAUSE_MS));
        }
        left = connected(client)?;
        left.retain(|one| doomed(one));
        if left.is_empty() {
            return Ok(());
        }
        for one in &left {
            client.send(&["CLIENT", "KILL", "ID", &one.id])?;
        }
        for one in &left {
            match client.receive()? {
                // It ended by itself.
                Value::Error(reply) if reply.contains("No such client") => {}
                Value::Error(reply) => return Err(client.reply_fault(&reply)),
                _ => tracing::info!(
                    "target {}: ended the connection of a former writer at {}",
                    client.name(),
                    one.address
                ),
            }
        }
    }
    let text = format!(
        "target {} does not end connections of former writers: {} are left, one of them from {}; stop what holds them",
        client.name(),
        left.len(),
        left.first().map_or("", |one| one.address.as_str()),
    );
    Err(Fault::new(FaultKind::Busy, text))
}

/// One line: `id=7 addr=10.0.0.1:41000 ... name=slotstream:default:5:0 ...`. No value has a space in it.
fn parse(line: &str) -> Option<Connected> {
    let field = |name: &str| {
        let mut fields = line.split(' ');
        fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    };
    Some(Connected {
        writer: Writer::parse(field("name")?)?,
        id: field("id")?.to_owned(),
        address: field("addr").unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_are_found_among_other_connections() {
        let line = "id=12 addr=127.0.0.1:50230 laddr=127.0.0.1:6379 fd=8 name=slotstream:a:3:1 age=2 cmd=set user=default";
        let found = parse(line).expect("a writer");
        assert_eq!(
            (found.id.as_str(), found.address.as_str()),
            ("12", "127.0.0.1:50230")
        );
        assert_eq!(found.writer.claim, Some((3, 1)));
        for line in [
            "id=3 addr=127.0.0.1:1 name= cmd=client",
            "id=4 addr=127.0.0.1:2 name=other:a:3:1 cmd=get",
            "addr=127.0.0.1:2 name=slotstream:a:3:1",
            "",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
