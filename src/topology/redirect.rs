//! Where a redirect leads.
//!
//! | `MOVED 1 ...` | is said by | and means |
//! |---|---|---|
//! | `10.0.0.5:7000`, `fd00::5:7000` | every version; IPv6 without brackets | that node |
//! | `db.example:7000` | 7.0 and later, where the cluster prefers host names | that node |
//! | `?:7000` | the same, of a node that announces no host name | a node with that port |
//! | `:7000` | 7.0 and later, where the cluster prefers unknown endpoints; 6.0 of a node without address | the host that was asked, at that port |
//!
//! What a server names is what its cluster calls the node: where that is for us, the topology knows, or a rule does.

use super::{Node, Preferred, Topology};

impl Topology {
    /// The node that a redirect said by `from` names. Its id is the text of the redirect: who is there, the next view tells.
    pub fn redirected(&self, from: &Node, text: &str) -> Option<Node> {
        let (host, port) = split(text)?;
        let known = match host {
            Some(host) => self.nodes().find(|node| node.is_at(host, port)),
            None => self.of_port(from, port),
        };
        let id = text.to_owned();
        Some(match (known, host) {
            (Some(node), _) => Node { id, ..node.clone() },
            (None, host) => {
                let mut node = Node::new(id, host.unwrap_or(&from.host), port);
                node.set_place(&self.rewrites, Preferred::Ip, &from.host);
                node
            }
        })
    }

    /// The node at this port of the host that was asked; where each has a host of its own, the only one at this port.
    fn of_port(&self, from: &Node, port: u16) -> Option<&Node> {
        let there = self.nodes().find(|node| node.is_at(&from.host, port));
        there.or_else(|| {
            let mut others = self.nodes().filter(|node| node.announced.1 == port);
            others.next().filter(|_| others.next().is_none())
        })
    }
}

impl Node {
    /// Whether both are announced as the same place.
    pub fn is_same_place(&self, other: &Node) -> bool {
        let at = |one: &Node, other: &Node| one.is_at(&other.announced.0, other.announced.1);
        at(self, other) || at(other, self)
    }
}

/// Host and port; no host where the text names none.
fn split(text: &str) -> Option<(Option<&str>, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = Some(host).filter(|host| !["", "?"].contains(host));
    Some((host, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Rewrites, Shard};
    use super::*;

    /// Nodes at `host:port`, seen through a node that was asked at `asked`, with a rule.
    fn cluster(hosts: [(&str, u16); 2], preferred: Preferred, rule: &str) -> Topology {
        let shard = |(index, (host, port)): (usize, &(&str, u16))| {
            let mut master = Node::new(format!("node{index}"), *host, *port);
            master.hostname = Some(format!("{index}.example"));
            Shard {
                master,
                replicas: Vec::new(),
                slots: index.to_string().parse().expect("a slot"),
            }
        };
        let shards = hosts.iter().enumerate().map(shard).collect();
        let mut topology = Topology::cluster(shards, vec![]).expect("valid");
        let rule = rule.parse().expect("a rule");
        let rewrites = Rewrites::new(&[], &[rule]).expect("valid");
        topology.set_places(&Arc::new(rewrites), preferred, "asked");
        topology
    }

    fn led(topology: &Topology, text: &str) -> Option<String> {
        let from = &topology.shards[0].master;
        let node = topology.redirected(from, text)?;
        assert_eq!(node.id, text);
        Some(node.name())
    }

    #[test]
    fn a_known_node_is_found_by_each_of_its_names() {
        let topology = cluster([("fd00::1", 1), ("fd00::2", 2)], Preferred::Ip, "x=y");
        for text in ["fd00::2:2", "[fd00::2]:2", "1.example:2"] {
            let led = led(&topology, text);
            assert_eq!(led.as_deref(), Some("[fd00::2]:2"), "{text}");
        }
    }

    #[test]
    fn a_redirect_without_host_means_the_host_that_was_asked() {
        let topology = cluster([("10.0.0.1", 1), ("10.0.0.2", 2)], Preferred::Asked, "x=y");
        assert_eq!(led(&topology, ":2").as_deref(), Some("asked:2"));
        assert_eq!(led(&topology, ":3").as_deref(), Some("asked:3"));
        // Each has a host of its own, and nobody else that port.
        let topology = cluster([("10.0.0.1", 1), ("10.0.0.2", 2)], Preferred::Ip, "x=y");
        assert_eq!(led(&topology, "?:2").as_deref(), Some("10.0.0.2:2"));
        assert_eq!(led(&topology, "?:3").as_deref(), Some("10.0.0.1:3"));
    }

    #[test]
    fn a_rule_leads_known_and_unknown_nodes_elsewhere() {
        let rule = "10.0.0.2:2=192.0.2.1:30002";
        let topology = cluster([("10.0.0.1", 1), ("10.0.0.2", 2)], Preferred::Ip, rule);
        for text in ["10.0.0.2:2", "1.example:2", ":2"] {
            let led = led(&topology, text);
            assert_eq!(led.as_deref(), Some("192.0.2.1:30002"), "{text}");
        }
        let before = cluster([("10.0.0.1", 1), ("10.0.0.3", 3)], Preferred::Ip, rule);
        let node = before.redirected(&before.shards[0].master, "10.0.0.2:2");
        let node = node.expect("a node that no view has shown");
        assert_eq!(node.name(), "192.0.2.1:30002");
        assert!(node.is_same_place(&topology.shards[1].master));
        assert!(!node.is_same_place(&topology.shards[0].master));
    }

    #[test]
    fn what_names_no_port_leads_nowhere() {
        let topology = cluster([("a", 1), ("b", 2)], Preferred::Ip, "x=y");
        for text in ["", "a", "a:", "a:x", "a:70000"] {
            assert_eq!(led(&topology, text), None, "{text}");
        }
    }
}
