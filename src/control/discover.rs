//! From what the user typed to all masters of a deployment.
//!
//! Any node of a cluster will do: the first seed that answers is asked for all others. `CLUSTER NODES` comes
//! first, on every version, because it names exact owners and open slots; `CLUSTER SHARDS` serves users
//! whose ACL allows only that.

use std::sync::Arc;

use tracing::warn;

use super::client::{Client, Places};
use crate::engine::options::{Deployment, OwnKeys};
use crate::fault::{Fault, FaultKind, Side};
use crate::limits::SECOND_OPINIONS;
use crate::topology::server::OLDEST_SUPPORTED;
use crate::topology::{
    Endpoint, Health, Node, Rewrite, ServerInfo, Topology, TopologyKind, nodes, shards,
};

/// What one node knows about its cluster.
#[derive(Debug, Clone)]
pub struct View {
    pub topology: Topology,
    /// How recent the view is; of two views of a cluster the greater is the later one.
    pub epochs: nodes::Epochs,
    /// The id of the node that told it, if it says so.
    pub said_by: Option<String>,
}

/// Finds a deployment from the nodes named by the user, and asks every master that owns slots about itself. One without
/// may be a replica or gone by now: for a while after a failover, and while a cluster forms, nodes are listed as masters
/// that are none.
pub fn discover(side: Side, endpoint: &Endpoint) -> Result<Deployment, Fault> {
    let topology = from_seeds(side, endpoint)?;
    let mut servers = Vec::new();
    for shard in topology.serving() {
        let node = &shard.master;
        let mut client = Client::connect(side, &node.address, node.port, &endpoint.credentials)?;
        let info = server_info(&mut client)?;
        check_version(side, &client, &info)?;
        if info.loading {
            return Err(client.reply_fault("LOADING"));
        }
        if info.cluster_enabled != (topology.kind == TopologyKind::Cluster) {
            return Err(client.shape_fault("INFO", "cluster mode differs from what was found"));
        }
        servers.push((node.id.clone(), info));
    }
    Ok(Deployment {
        topology,
        servers,
        bookkeeping: OwnKeys::default(),
    })
}

/// The topology according to the first seed that can tell. Of several failures the most telling one
/// is reported: what a server answered goes before what the network did.
pub fn from_seeds(side: Side, endpoint: &Endpoint) -> Result<Topology, Fault> {
    let mut telling: Option<Fault> = None;
    for (host, port) in &endpoint.seeds {
        match from_seed(side, host, *port, endpoint) {
            Ok(topology) => return Ok(topology),
            Err(fault) => match &telling {
                Some(known) if !is_network(known) || is_network(&fault) => {}
                _ => telling = Some(fault),
            },
        }
    }
    let nobody = || Fault::new(FaultKind::NoTopology, format!("{side} names no node"));
    Err(telling.unwrap_or_else(nobody))
}

fn is_network(fault: &Fault) -> bool {
    use FaultKind::{ConnectionLost, Resolve, Unreachable};
    matches!(fault.kind, Resolve | Unreachable | ConnectionLost)
}

fn from_seed(side: Side, host: &str, port: u16, endpoint: &Endpoint) -> Result<Topology, Fault> {
    let mut client = Client::connect(side, host, port, &endpoint.credentials)?;
    let info = server_info(&mut client)?;
    check_version(side, &client, &info)?;
    if !info.cluster_enabled {
        return Ok(single(&client));
    }
    prepare(&mut client, endpoint);
    let own = view(&mut client)?;
    let other = second_opinion(side, endpoint, &own);
    let best = merge(std::iter::once(own).chain(other).collect());
    Ok(best.expect("one at least").topology)
}

/// What another member of a cluster knows, if one answers: where the first one is by now, for example, see [`merge`].
fn second_opinion(side: Side, endpoint: &Endpoint, first: &View) -> Option<View> {
    let others = first
        .topology
        .nodes()
        .filter(|node| node.health == Health::Online && first.said_by.as_ref() != Some(&node.id));
    others.take(SECOND_OPINIONS).find_map(|node| {
        let mut client = member(side, endpoint, node).ok()?;
        let found = view(&mut client).ok()?;
        // Somebody else's node may have the address by now.
        found.topology.is_related(&first.topology).then_some(found)
    })
}

/// Tells of rules that lead to no node of any side for which they were given.
pub fn warn_of_unused_rewrites(sides: &[(&Endpoint, &Topology)]) {
    for rule in unused_rewrites(sides) {
        warn!("the rule {rule} matches no node so far; FROM is what CLUSTER NODES shows of one");
    }
}

fn unused_rewrites<'a>(sides: &[(&'a Endpoint, &'a Topology)]) -> Vec<&'a Rewrite> {
    let topologies = sides.iter().map(|(_, topology)| topology);
    let used: Vec<&Rewrite> = topologies.flat_map(|side| side.used_rewrites()).collect();
    let mut unused: Vec<&Rewrite> = Vec::new();
    for rule in sides.iter().flat_map(|(given, _)| given.rewrites.iter()) {
        if !used.contains(&rule) && !unused.contains(&rule) {
            unused.push(rule);
        }
    }
    unused
}

/// A connection to a node of a cluster that is to be asked for views.
pub fn member(side: Side, endpoint: &Endpoint, node: &Node) -> Result<Client, Fault> {
    let mut client = Client::connect(side, &node.address, node.port, &endpoint.credentials)?;
    prepare(&mut client, endpoint);
    Ok(client)
}

/// Finds out what decides where the cluster's nodes are for us. `CLUSTER NODES` shows IP addresses, whatever the cluster prefers.
fn prepare(client: &mut Client, endpoint: &Endpoint) {
    client.places.rewrites = Arc::clone(&endpoint.rewrites);
    // 6.0 knows no preference, and neither a host name.
    if let Ok(reply) = client.call(&["CLUSTER", "SHARDS"]) {
        client.places.preferred = shards::preferred(&reply);
    }
}

/// The topology of a server without cluster mode, reached through `client`.
pub fn single(client: &Client) -> Topology {
    let mut topology = Topology::single(client.host(), client.port());
    topology.set_single_address(client.ip().to_string());
    topology
}

/// What the node behind `client` knows about its cluster.
pub fn view(client: &mut Client) -> Result<View, Fault> {
    match client.text(&["CLUSTER", "NODES"]) {
        Ok(text) => view_of_nodes(client, &text),
        Err(fault) if fault.kind == FaultKind::NoPermission => view_of_shards(client).ok_or(fault),
        Err(fault) => Err(fault),
    }
}

/// The view in the text of `CLUSTER NODES`.
pub fn view_of_nodes(client: &Client, text: &str) -> Result<View, Fault> {
    let topology = nodes::parse(text, client.host())
        .map_err(|error| client.shape_fault("CLUSTER NODES", error))?;
    Ok(View {
        topology: placed(client, topology),
        epochs: nodes::epochs(text),
        said_by: nodes::myself(text).map(str::to_owned),
    })
}

/// The view in `CLUSTER SHARDS`, where that command exists and is allowed.
fn view_of_shards(client: &mut Client) -> Option<View> {
    let reply = client.call(&["CLUSTER", "SHARDS"]).ok()?;
    let topology = shards::parse(&reply, client.host()).ok()?;
    Some(View {
        topology: placed(client, topology),
        epochs: nodes::Epochs::default(),
        said_by: None,
    })
}

fn placed(client: &Client, mut topology: Topology) -> Topology {
    let Places {
        rewrites,
        preferred,
    } = &client.places;
    topology.set_places(rewrites, *preferred, client.host());
    topology
}

/// The latest view, with the open slots of all: each node lists only its own.
///
/// Where a node is, others know better. One that was started again with another IP address and its former `nodes.conf` shows the
/// former one for ever, unless it announces one; Redis 6.0 shows its former port when `cluster-announce-port` is changed at run
/// time. Others learn of both from its next ping.
pub fn merge(views: Vec<View>) -> Option<View> {
    // Of those that are as recent one may lack the address of a master, which it then leaves out.
    let known = |view: &View| (view.epochs, view.topology.serving().count());
    let latest = views.iter().map(known).max()?;
    let mut open_slots: Vec<_> = views
        .iter()
        .flat_map(|view| view.topology.open_slots.iter().cloned())
        .collect();
    open_slots.sort_by(|a, b| (a.slot, &a.from, &a.to).cmp(&(b.slot, &b.from, &b.to)));
    open_slots.dedup();
    let mut best = views.iter().find(|view| known(view) == latest)?.clone();
    best.topology.open_slots = open_slots;
    if let Some(id) = &best.said_by {
        let of_others =
            |view: &&View| view.said_by.as_ref() != Some(id) && view.topology.has_node(id);
        let others = views.iter().filter(of_others);
        // Of equals the first.
        if let Some(other) = others.rev().max_by_key(|view| known(view)) {
            best.topology.set_place_of(id, &other.topology);
        }
    }
    Some(best)
}

/// What the server behind `client` says about itself.
pub fn server_info(client: &mut Client) -> Result<ServerInfo, Fault> {
    let text = client.text(&["INFO"])?;
    ServerInfo::parse(&text).map_err(|error| client.shape_fault("INFO", error))
}

fn check_version(side: Side, client: &Client, info: &ServerInfo) -> Result<(), Fault> {
    let name = client.name();
    if info.version < OLDEST_SUPPORTED {
        let (flavour, version) = (info.flavour, info.version);
        let text = format!(
            "{side} {name} runs {flavour} {version}; {OLDEST_SUPPORTED} is the oldest that works"
        );
        return Err(Fault::new(FaultKind::ServerTooOld, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Preferred, Rewrites, Shard};

    #[test]
    fn a_rule_of_both_sides_may_serve_one() {
        let given = |rules: &[&str]| {
            let rules = rules.iter().map(|text| text.parse().expect("a rule"));
            let rules: Vec<Rewrite> = rules.collect();
            let mut endpoint: Endpoint = "redis://a".parse().expect("valid");
            endpoint.rewrites = Arc::new(Rewrites::new(&[], &rules).expect("valid"));
            endpoint
        };
        let one = given(&["a=1", "b=2", "x=3"]);
        let other = given(&["a=1", "b=2", "y=4"]);
        let cluster = |host: &str, given: &Endpoint| {
            let shard = Shard {
                master: Node::new("id", host, 1),
                replicas: Vec::new(),
                slots: "0-16383".parse().expect("slots"),
            };
            let mut topology = Topology::cluster(vec![shard], vec![]).expect("valid");
            topology.set_places(&given.rewrites, Preferred::Ip, host);
            topology
        };
        let (source, target) = (cluster("a", &one), cluster("h", &other));
        let unused = unused_rewrites(&[(&one, &source), (&other, &target)]);
        let unused: Vec<String> = unused.iter().map(|rule| rule.to_string()).collect();
        assert_eq!(unused, ["b=2", "x=3", "y=4"]);
    }
}
