//! Reads `CLUSTER NODES`.
//!
//! ```text
//! <id> <ip:port@cport[,hostname[,aux=value]]> <flags> <master id|-> <ping> <pong> <epoch> <link> <slot|first-last|[slot->-id]|[slot-<-id]> ...
//! ```
//!
//! Documented at the command's page; the shape is the same from Redis 6.0 to 8.0 and in Valkey, except that the
//! host name came with 7.0. A node that was never met by another knows no address of its own and
//! writes `:port`: it is the one that was asked. Open slots are listed by `myself` only.

use std::collections::BTreeMap;

use super::{Health, Node, OpenSlot, Shard, Topology, TopologyError};
use crate::slot::{SLOT_COUNT, Slot, SlotSet};

/// One line, understood.
struct Line<'a> {
    node: Node,
    is_master: bool,
    /// The master's id, for a replica.
    master: Option<&'a str>,
    slots: SlotSet,
    open_slots: Vec<OpenSlot>,
}

/// The topology in the reply of the node reached at `asked_host`.
pub fn parse(reply: &str, asked_host: &str) -> Result<Topology, TopologyError> {
    let mut masters: Vec<Shard> = Vec::new();
    let mut replicas: BTreeMap<String, Vec<Node>> = BTreeMap::new();
    let mut open_slots = Vec::new();
    let lines = reply.lines().map(str::trim).enumerate();
    for (index, text) in lines.filter(|(_, text)| !text.is_empty()) {
        let parsed = parse_line(text, asked_host);
        let Some(line) = parsed.map_err(|what| TopologyError::Nodes {
            line: index + 1,
            what,
        })?
        else {
            continue;
        };
        open_slots.extend(line.open_slots);
        if line.is_master {
            masters.push(Shard {
                master: line.node,
                replicas: Vec::new(),
                slots: line.slots,
            });
        } else if let Some(master) = line.master {
            replicas
                .entry(master.to_owned())
                .or_default()
                .push(line.node);
        }
    }
    for shard in &mut masters {
        shard.replicas = replicas.remove(&shard.master.id).unwrap_or_default();
    }
    Topology::cluster(masters, open_slots)
}

/// The id of the node that answered, if the reply marks it.
pub fn myself(reply: &str) -> Option<&str> {
    reply.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let id = fields.next()?;
        let flags = fields.nth(1)?;
        flags.split(',').any(|flag| flag == "myself").then_some(id)
    })
}

/// How recent a view is. The config epoch of a slot's owner only grows: a master that takes slots or is promoted gets one
/// above all others, so a node that has not heard of it shows lower numbers. A master without slots does not count: it may
/// become a replica or leave, and its epoch with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Epochs {
    highest: u64,
    /// Over all slots; settles ties while several changes spread.
    sum: u64,
}

/// How recent the view in a reply is.
pub fn epochs(reply: &str) -> Epochs {
    let mut epochs = Epochs::default();
    for line in reply.lines() {
        let mut fields = line.split_ascii_whitespace().skip(2);
        let is_master = fields
            .next()
            .is_some_and(|flags| flags.split(',').any(|f| f == "master"));
        let epoch: Option<u64> = fields.nth(3).and_then(|epoch| epoch.parse().ok());
        let ranges = fields.skip(1).filter_map(parse_range);
        let slots: u64 = ranges
            .map(|(first, last)| u64::from(last - first) + 1)
            .sum();
        if let (true, Some(epoch), 1..) = (is_master, epoch, slots) {
            epochs.highest = epochs.highest.max(epoch);
            epochs.sum = epochs.sum.saturating_add(epoch.saturating_mul(slots));
        }
    }
    epochs
}

/// `None` for a node that nobody can be sent to: not yet met, or without an address.
fn parse_line<'a>(text: &'a str, asked_host: &str) -> Result<Option<Line<'a>>, &'static str> {
    let mut fields = text.split_ascii_whitespace();
    let mut next = |what| fields.next().ok_or(what);
    let id = next("no node id")?;
    let address = next("no address")?;
    let flags: Vec<&str> = next("no flags")?.split(',').collect();
    let master = next("no master field")?;
    for what in ["no ping time", "no pong time", "no epoch", "no link state"] {
        next(what)?;
    }
    let has = |flag| flags.contains(&flag);
    if has("handshake") || has("noaddr") {
        return Ok(None);
    }
    let mut slots = SlotSet::new();
    let mut open_slots = Vec::new();
    for field in fields {
        match field.strip_prefix('[') {
            Some(open) => open_slots.push(parse_open(open, id)?),
            None => {
                let (first, last) = parse_range(field).ok_or("not a range of slots")?;
                slots.insert_range(first, last);
            }
        }
    }
    let mut node = parse_address(id, address, asked_host)?;
    node.health = match () {
        _ if has("fail") => Health::Failed,
        _ if has("fail?") => Health::Suspect,
        _ => Health::Online,
    };
    Ok(Some(Line {
        node,
        is_master: has("master"),
        master: (master != "-").then_some(master),
        slots,
        open_slots,
    }))
}

/// `ip:port@cport[,hostname[,aux...]]`; an IPv6 address stands without brackets.
fn parse_address(id: &str, text: &str, asked_host: &str) -> Result<Node, &'static str> {
    let mut parts = text.split(',');
    let address = parts.next().unwrap_or_default();
    let hostname = parts
        .next()
        .filter(|name| !name.is_empty() && !name.contains('='));
    let client = address
        .split_once('@')
        .map_or(address, |(client, _)| client);
    let (host, port) = client.rsplit_once(':').ok_or("no port")?;
    let port = port.parse().map_err(|_| "the port is no number")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // `?` stands for an unknown endpoint with cluster-preferred-endpoint-type unknown-endpoint.
    let host = if host.is_empty() || host == "?" {
        asked_host
    } else {
        host
    };
    let mut node = Node::new(id, host, port);
    node.hostname = hostname.map(str::to_owned);
    Ok(node)
}

/// `slot->-id]`: `me` gives it away; `slot-<-id]`: `me` takes it.
fn parse_open(text: &str, me: &str) -> Result<OpenSlot, &'static str> {
    let text = text.strip_suffix(']').ok_or("an open slot without ']'")?;
    let (slot, from, to) = if let Some((slot, to)) = text.split_once("->-") {
        (slot, me, to)
    } else if let Some((slot, from)) = text.split_once("-<-") {
        (slot, from, me)
    } else {
        return Err("an open slot without direction");
    };
    Ok(OpenSlot {
        slot: parse_slot(slot).ok_or("an open slot without number")?,
        from: from.to_owned(),
        to: to.to_owned(),
    })
}

fn parse_range(text: &str) -> Option<(Slot, Slot)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (parse_slot(first)?, parse_slot(last)?);
    (first <= last).then_some((first, last))
}

fn parse_slot(text: &str) -> Option<Slot> {
    text.parse()
        .ok()
        .filter(|&slot: &Slot| usize::from(slot) < SLOT_COUNT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REDIS_6: &str = "\
07c37dfeb235213a872192d90877d0cd55635b91 127.0.0.1:30004@31004 slave e7d1eecce10fd6bb5eb35b9f99a514335d9ba9ca 0 1426238317239 4 connected
67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1 127.0.0.1:30002@31002 master - 0 1426238316232 2 connected 5461-10922
292f8b365bb7edb5e285caf0b7e6ddc7265d2f4f 127.0.0.1:30003@31003 master - 0 1426238318243 3 connected 10923-16383
e7d1eecce10fd6bb5eb35b9f99a514335d9ba9ca 127.0.0.1:30001@31001 myself,master - 0 0 1 connected 0-5460
";

    #[test]
    fn three_masters_and_a_replica_of_6_0() {
        let topology = parse(REDIS_6, "h").expect("valid");
        assert_eq!(topology.shards.len(), 3);
        assert!(topology.missing_slots().is_empty());
        let first = topology.shard_of(0).expect("owned");
        assert_eq!(topology.shards[first].master.port, 30001);
        assert_eq!(topology.shards[first].replicas[0].port, 30004);
        assert_eq!(
            myself(REDIS_6),
            Some("e7d1eecce10fd6bb5eb35b9f99a514335d9ba9ca")
        );
    }

    #[test]
    fn a_view_that_knows_of_a_newer_master_is_the_later_one() {
        let newer = REDIS_6.replace(" 2 connected", " 5 connected");
        assert!(epochs(&newer) > epochs(REDIS_6));
        let sum = 5461 + 2 * 5462 + 3 * 5461;
        assert_eq!(epochs(REDIS_6), Epochs { highest: 3, sum });
    }

    #[test]
    fn a_view_in_which_a_former_master_has_stepped_back_is_no_older() {
        let taken_over = "a 1.1.1.1:1@2 master - 0 0 8 connected\n\
            b 1.1.1.1:2@3 master - 0 0 9 connected 0-16383 [7->-c]\n\
            c 1.1.1.1:3@4 master - 0 0 7 connected";
        let stepped_back = taken_over.replace("master - 0 0 8", "slave b 0 0 9");
        assert_eq!(epochs(taken_over), epochs(&stepped_back));
    }

    #[test]
    fn the_order_of_lines_does_not_matter() {
        let reversed: Vec<&str> = REDIS_6.lines().rev().collect();
        assert_eq!(parse(&reversed.join("\r\n"), "h"), parse(REDIS_6, "h"));
    }

    #[test]
    fn host_names_and_aux_fields_of_7_0_and_later() {
        let text = "a 10.0.0.1:7000@17000,db.example master - 0 1 1 connected 0-100\n\
            b 10.0.0.2:7000@17000,,shard-id=69bc master - 0 1 1 connected 101\n\
            c 10.0.0.3:7000@17000,shard-id=70 master - 0 1 1 connected 102";
        let topology = parse(text, "h").expect("valid");
        let named = topology.shard_redirected(&topology.shards[1].master, "db.example:7000");
        assert_eq!(named, Some(0));
        assert_eq!(topology.shards[1].master.hostname, None);
        assert_eq!(topology.shards[2].master.hostname, None);
        assert_eq!(
            topology.master_of(101).map(|n| n.host.as_str()),
            Some("10.0.0.2")
        );
    }

    #[test]
    fn a_node_without_address_of_its_own_is_the_one_asked() {
        let text = "a :7000@17000 myself,master - 0 0 0 connected 0-16383\n";
        let topology = parse(text, "db.example").expect("valid");
        assert_eq!(topology.shards[0].master.name(), "db.example:7000");
    }

    #[test]
    fn an_ipv6_address_ends_at_the_last_colon() {
        let text = "a fe80::2:7000@17000 master - 0 0 0 connected 0-16383\n";
        let topology = parse(text, "h").expect("valid");
        assert_eq!(topology.shards[0].master.name(), "[fe80::2]:7000");
    }

    #[test]
    fn open_slots_are_kept_with_their_direction() {
        let text = "a 1.1.1.1:1@2 myself,master - 0 0 1 connected 0-93 [93->-b] [77-<-c]\n\
            b 1.1.1.1:2@3 master - 0 0 2 connected 94-16383";
        let open = parse(text, "h").expect("valid").open_slots;
        let text: Vec<_> = open
            .iter()
            .map(|o| format!("{} {}>{}", o.slot, o.from, o.to))
            .collect();
        assert_eq!(text, ["77 c>a", "93 a>b"]);
    }

    #[test]
    fn nodes_that_cannot_be_reached_are_judged_by_their_flags() {
        let text = "a 1.1.1.1:1@2 master,fail - 0 0 1 disconnected\n\
            b 1.1.1.1:2@3 master,fail? - 0 0 1 disconnected 0-9\n\
            c :0@0 master,noaddr - 0 0 1 disconnected 20-29\n\
            d 1.1.1.1:4@5 handshake - 0 0 0 disconnected\n\
            e 1.1.1.1:5@6 slave,fail b 0 0 1 disconnected\n\
            f 1.1.1.1:6@7 myself,slave b 0 0 1 connected";
        let topology = parse(text, "h").expect("valid");
        assert_eq!(topology.shards.len(), 1);
        assert_eq!(topology.shards[0].master.health, Health::Suspect);
        let health: Vec<_> = topology.shards[0]
            .replicas
            .iter()
            .map(|r| r.health)
            .collect();
        assert_eq!(health, [Health::Failed, Health::Online]);
    }

    #[test]
    fn a_bad_line_is_named_with_its_reason() {
        let cases = [
            ("a", "no address"),
            ("a 1.1.1.1 master - 0 0 1 connected", "no port"),
            (
                "a 1.1.1.1:x@1 master - 0 0 1 connected",
                "the port is no number",
            ),
            ("a 1.1.1.1:1@1 master - 0 0 1", "no link state"),
            (
                "a 1.1.1.1:1@1 master - 0 0 1 connected 5-3",
                "not a range of slots",
            ),
            (
                "a 1.1.1.1:1@1 master - 0 0 1 connected 16384",
                "not a range of slots",
            ),
            (
                "a 1.1.1.1:1@1 master - 0 0 1 connected [3=b]",
                "an open slot without direction",
            ),
            (
                "a 1.1.1.1:1@1 master - 0 0 1 connected [3->-b",
                "an open slot without ']'",
            ),
        ];
        for (text, what) in cases {
            let text = format!("\n{text}");
            assert_eq!(
                parse(&text, "h"),
                Err(TopologyError::Nodes { line: 2, what }),
                "{text}"
            );
        }
        assert_eq!(parse("", "h"), Err(TopologyError::NoMaster));
    }
}
