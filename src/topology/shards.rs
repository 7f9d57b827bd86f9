//! Reads `CLUSTER SHARDS` (Redis 7.0 and later, Valkey).
//!
//! ```text
//! [ [ "slots", [first, last, first, last, ...],
//!     "nodes", [ ["id", ..., "port", ..., "ip", ..., "endpoint", ..., "hostname", ..., "role", ..., "health", ...], ... ] ], ... ]
//! ```
//!
//! It names neither open slots nor which of two masters of a shard owns the slots while a failover settles, so
//! it is the second choice after `CLUSTER NODES`: for users who may run this one only. A shard with
//! several masters is taken to belong to the healthiest, and to the later listed among equals.

use super::value::Value;
use super::{Health, Node, Preferred, Shard, Topology, TopologyError};
use crate::slot::{SLOT_COUNT, Slot, SlotSet};

/// The topology in the reply of the node reached at `asked_host`.
pub fn parse(reply: &Value, asked_host: &str) -> Result<Topology, TopologyError> {
    let shards = reply.array().ok_or(TopologyError::Shards("no list"))?;
    let mut parsed = Vec::new();
    for shard in shards {
        parsed.extend(parse_shard(shard, asked_host).map_err(TopologyError::Shards)?);
    }
    Topology::cluster(parsed, Vec::new())
}

/// Which names of nodes the one that answered wants to be used. It tells them as `endpoint`: nothing for the host that was
/// asked, `?` for a host name that a node does not have.
pub fn preferred(reply: &Value) -> Preferred {
    let shards = reply.array().unwrap_or_default().iter();
    let nodes = shards.filter_map(|shard| shard.field("nodes").and_then(Value::array));
    for node in nodes.flatten() {
        let text = |key| node.field(key).and_then(Value::text);
        let Some(endpoint) = node.field("endpoint") else {
            continue;
        };
        match endpoint.text() {
            None | Some("") => return Preferred::Asked,
            Some(name) if text("ip") != Some(name) && text("hostname") == Some(name) => {
                return Preferred::Hostname;
            }
            Some(_) => {}
        }
    }
    Preferred::Ip
}

/// `None` for a shard without a master that can be reached.
fn parse_shard(shard: &Value, asked_host: &str) -> Result<Option<Shard>, &'static str> {
    let list = |key| shard.field(key).and_then(Value::array);
    let mut slots = SlotSet::new();
    for range in list("slots").ok_or("a shard without slots")?.chunks(2) {
        let [first, last] = range else {
            return Err("half a range of slots");
        };
        let (first, last) = (slot(first)?, slot(last)?);
        if first > last {
            return Err("a range of slots that ends before it begins");
        }
        slots.insert_range(first, last);
    }
    let mut master: Option<Node> = None;
    let mut replicas = Vec::new();
    for entry in list("nodes").ok_or("a shard without nodes")? {
        let Some(node) = parse_node(entry, asked_host)? else {
            continue;
        };
        let role = entry.field("role").and_then(Value::text);
        match (role, &master) {
            (Some("master"), Some(better)) if better.health < node.health => {}
            (Some("master"), _) => master = Some(node),
            _ => replicas.push(node),
        }
    }
    Ok(master.map(|master| Shard {
        master,
        replicas,
        slots,
    }))
}

/// `None` for a node without a port for plain connections.
fn parse_node(entry: &Value, asked_host: &str) -> Result<Option<Node>, &'static str> {
    let text = |key| {
        let text = entry.field(key).and_then(Value::text);
        text.filter(|text| !text.is_empty() && *text != "?")
    };
    let id = text("id").ok_or("a node without id")?;
    let Some(port) = entry.field("port").and_then(Value::integer) else {
        return Ok(None);
    };
    let port = u16::try_from(port).map_err(|_| "a port out of range")?;
    let host = text("ip").or(text("endpoint")).unwrap_or(asked_host);
    let mut node = Node::new(id, host, port);
    node.hostname = text("hostname").map(str::to_owned);
    node.health = match text("health") {
        Some("online") => Health::Online,
        Some("fail" | "failed") => Health::Failed,
        _ => Health::Suspect,
    };
    Ok(Some(node))
}

fn slot(value: &Value) -> Result<Slot, &'static str> {
    let slot = value.integer().and_then(|slot| Slot::try_from(slot).ok());
    slot.filter(|&slot| usize::from(slot) < SLOT_COUNT)
        .ok_or("a slot out of range")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::Bulk(text.into())
    }

    fn node(id: &str, port: i64, role: &str, health: &str) -> Value {
        Value::Array(vec![
            bulk("id"),
            bulk(id),
            bulk("port"),
            Value::Integer(port),
            bulk("ip"),
            bulk("127.0.0.1"),
            bulk("endpoint"),
            bulk("db.example"),
            bulk("hostname"),
            bulk("db.example"),
            bulk("role"),
            bulk(role),
            bulk("replication-offset"),
            Value::Integer(14),
            bulk("health"),
            bulk(health),
        ])
    }

    fn shard(ranges: &[i64], nodes: Vec<Value>) -> Value {
        let ranges = ranges.iter().map(|&slot| Value::Integer(slot)).collect();
        Value::Array(vec![
            bulk("slots"),
            Value::Array(ranges),
            bulk("nodes"),
            Value::Array(nodes),
        ])
    }

    #[test]
    fn ranges_masters_and_replicas_of_7_0() {
        let reply = Value::Array(vec![
            shard(
                &[0, 99, 200, 16383],
                vec![
                    node("r", 2, "replica", "online"),
                    node("m", 1, "master", "online"),
                ],
            ),
            shard(&[100, 199], vec![node("n", 3, "master", "loading")]),
        ]);
        let topology = parse(&reply, "h").expect("valid");
        assert!(topology.missing_slots().is_empty());
        assert_eq!(topology.master_of(150).map(|n| n.id.as_str()), Some("n"));
        assert_eq!(topology.shards[0].replicas[0].id, "r");
        assert_eq!(
            topology.shards[0].master.hostname.as_deref(),
            Some("db.example")
        );
        assert_eq!(topology.shards[1].master.health, Health::Suspect);
    }

    #[test]
    fn after_a_failover_the_healthy_master_has_the_slots() {
        for nodes in [["old", "new"], ["new", "old"]] {
            let health = |id| if id == "old" { "fail" } else { "online" };
            let nodes = nodes.map(|id| node(id, 1, "master", health(id)));
            let reply = Value::Array(vec![shard(&[0, 16383], nodes.to_vec())]);
            let topology = parse(&reply, "h").expect("valid");
            assert_eq!(topology.shards[0].master.id, "new");
        }
    }

    #[test]
    fn a_node_with_a_tls_port_only_cannot_be_used() {
        let tls = Value::Array(vec![
            bulk("id"),
            bulk("t"),
            bulk("tls-port"),
            Value::Integer(1),
            bulk("role"),
            bulk("master"),
        ]);
        let reply = Value::Array(vec![shard(&[0, 16383], vec![tls])]);
        assert_eq!(parse(&reply, "h"), Err(TopologyError::NoMaster));
    }

    #[test]
    fn an_unknown_endpoint_is_the_node_asked() {
        let node = Value::Array(vec![
            bulk("id"),
            bulk("t"),
            bulk("port"),
            Value::Integer(7),
            bulk("ip"),
            bulk(""),
            bulk("endpoint"),
            bulk("?"),
            bulk("role"),
            bulk("master"),
            bulk("health"),
            bulk("online"),
        ]);
        let reply = Value::Array(vec![shard(&[0, 16383], vec![node])]);
        let topology = parse(&reply, "db").expect("valid");
        assert_eq!(topology.shards[0].master.name(), "db:7");
    }

    #[test]
    fn replies_of_another_shape_are_refused() {
        let odd = shard(&[0, 1, 2], vec![]);
        let high = shard(&[0, 16384], vec![]);
        let back = shard(&[5, 3], vec![]);
        for reply in [
            Value::Null,
            Value::Array(vec![odd]),
            Value::Array(vec![high]),
            Value::Array(vec![back]),
        ] {
            assert!(
                matches!(parse(&reply, "h"), Err(TopologyError::Shards(_))),
                "{reply:?}"
            );
        }
    }

    #[test]
    fn what_a_cluster_prefers_shows_in_its_endpoints() {
        // Endpoint, IP address, host name: as 7.0.15, 8.0.2, Valkey 8.0.1, 8.1.1 and 9.1.2 answer.
        let of = |endpoint: Value, hostname: &str| {
            let mut fields = vec![bulk("ip"), bulk("10.0.0.1"), bulk("endpoint"), endpoint];
            if !hostname.is_empty() {
                fields.extend([bulk("hostname"), bulk(hostname)]);
            }
            let nodes = Value::Array(vec![Value::Array(fields)]);
            let shard = vec![bulk("slots"), Value::Array(vec![]), bulk("nodes"), nodes];
            preferred(&Value::Array(vec![Value::Array(shard)]))
        };
        assert_eq!(of(bulk("10.0.0.1"), "a.example"), Preferred::Ip);
        assert_eq!(of(bulk("a.example"), "a.example"), Preferred::Hostname);
        assert_eq!(of(bulk("?"), ""), Preferred::Ip);
        assert_eq!(of(bulk(""), "a.example"), Preferred::Asked);
        assert_eq!(of(Value::Null, ""), Preferred::Asked);
        assert_eq!(preferred(&Value::Error("ERR".into())), Preferred::Ip);
    }
}
