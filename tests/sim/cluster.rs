//! The simulated target: masters with their own views of who owns which slot, slots that move, windows of refusal.
//!
//! Redirects follow `getNodeByQuery` of `cluster.c`, refusals `processCommand` of `server.c`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use slotstream::checkpoint::{Generation, Record, is_bookkeeping};
use slotstream::engine::options::{Existing, Grouping, OnDivergence};
use slotstream::slot::{SLOT_COUNT, Slot, SlotSet, slot_of};
use slotstream::topology::{Node as TopologyNode, OpenSlot, Shard, Topology};

use crate::model::{
    Bytes, Key, Reply, Store, decode, key_places, keys_of, must_not_repeat, show, verb,
    watermark_of,
};
use crate::tracker::Tracker;

pub struct Node {
    pub id: String,
    pub port: u16,
    pub alive: bool,
    /// How often it was started.
    pub runs: u32,
    /// The history that it followed before it was promoted.
    pub followed: Option<String>,
    /// Connections of processes with a lower epoch were ended: nothing of them may be executed any more.
    pub shut_out: u32,
    pub store: Store,
    /// This node's view: owner of each slot, by index.
    view: Vec<usize>,
    migrating: BTreeMap<Slot, usize>,
    importing: BTreeMap<Slot, usize>,
    /// Refuses data with this error, until then at least.
    pub refusal: Option<(String, u64)>,
    /// The refusal has met something.
    pub refusal_met: bool,
    /// Since then, at some time nothing was on its way: the lane knows of it.
    pub refusal_known: bool,
    /// Slots that this master once owned or took keys of.
    pub visited: BTreeSet<Slot>,
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub single: bool,
    /// Servers before 7.0 answer ASK where later ones answer TRYAGAIN.
    pub old_redirects: bool,
    /// How the owners are told to the lane.
    pub owners: Vec<usize>,
    pub password: Option<String>,
    /// Slots of which this lane may write keys.
    pub lane: SlotSet,
    /// What it held before the lane began.
    pub existing: Existing,
    /// What the lane does about keys that differ.
    pub on_divergence: OnDivergence,
    pub grouping: Grouping,
    pub counts: Counts,
    /// Nobody sees who would take a master's place.
    pub hides_replicas: bool,
    /// Slots whose takers have not heard yet that they own them.
    pub finish_later: Vec<(Slot, usize)>,
    /// The keys of each command that was executed, where somebody wants to know.
    pub journal: Option<Vec<Vec<Bytes>>>,
}

/// What happened, for tests that want it to have happened.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub moved: u32,
    pub ask: u32,
    pub try_again: u32,
    pub refused: u32,
    pub scans: u32,
    pub flushes: u32,
    pub published: u32,
    pub functions: u32,
}

/// One client connection, as a target master sees it.
#[derive(Default)]
pub struct Session {
    pub node: usize,
    /// That of the process.
    pub epoch: u32,
    pub input: Bytes,
    pub output: Bytes,
    authenticated: bool,
    named: bool,
    database: u32,
    asking: bool,
    queue: Option<Vec<Vec<Bytes>>>,
    /// A command of the open transaction was refused.
    broken: bool,
    /// The lane gave this connection up: what it still does is no longer followed.
    pub forsaken: bool,
    /// So many of the next commands were sent before the lane began anew: the same goes for them.
    old: usize,
    /// More of those may follow, as far as anyone can see.
    maybe_old: bool,
    /// Even of what was sent before that, something may follow.
    tangled: bool,
}

/// Refusals that meet commands which only read, too.
const REFUSED_READS: [&str; 3] = ["LOADING", "BUSY", "MASTERDOWN"];

impl Node {
    /// The one that takes its place when it fails.
    fn replica(&self) -> TopologyNode {
        TopologyNode::new(format!("{}x", self.id), "10.0.0.1", self.port + 100)
    }
}

impl Session {
    /// The lane begins anew: what it has sent, `wire` of it on the way, means nothing any more once the target knows of that.
    /// `again`: the target does not even know of the last time.
    pub fn begin_anew(&mut self, wire: &[u8], again: bool) {
        self.tangled |= !again && (self.maybe_old || self.old > 0);
        let sent = [&self.input[..], wire].concat();
        let mut rest = &sent[..];
        self.old = 0;
        while let Some((_, length)) = decode(rest) {
            rest = &rest[length..];
            self.old += 1;
        }
        self.old += usize::from(!rest.is_empty());
        self.maybe_old = true;
    }

    pub fn new(node: usize, epoch: u32) -> Self {
        Self {
            node,
            epoch,
            ..Self::default()
        }
    }

    /// Whether what it does is still followed as before the lane began anew.
    fn goes_on(&self, tracker: &Tracker) -> bool {
        tracker.awaits_copy() && !self.tangled
    }

    /// Whether it may do what was sent before the lane began anew.
    fn is_doubtful(&self, tracker: &Tracker) -> bool {
        self.maybe_old && !self.goes_on(tracker)
    }

    /// Whether it has said whose it is.
    pub fn is_named(&self) -> bool {
        self.named
    }
}

impl Cluster {
    pub fn new(masters: usize, single: bool) -> Self {
        let share = |slot: usize| slot * masters / SLOT_COUNT;
        let owners: Vec<usize> = (0..SLOT_COUNT).map(share).collect();
        let node = |index: usize| Node {
            id: format!("node{index}"),
            port: 7000 + index as u16,
            alive: true,
            runs: 1,
            followed: None,
            shut_out: 0,
            store: Store::default(),
            view: owners.clone(),
            migrating: BTreeMap::new(),
            importing: BTreeMap::new(),
            refusal: None,
            refusal_met: false,
            refusal_known: false,
            visited: BTreeSet::new(),
        };
        Self {
            nodes: (0..masters).map(node).collect(),
            single,
            old_redirects: false,
            owners: owners.clone(),
            password: None,
            lane: SlotSet::all(),
            existing: Existing::None,
            on_divergence: OnDivergence::Stop,
            grouping: Grouping::default(),
            counts: Counts::default(),
            hides_replicas: false,
            finish_later: Vec::new(),
            journal: None,
        }
    }

    /// The topology as the cluster would tell it now.
    pub fn topology(&self) -> Arc<Topology> {
        if self.single {
            let node = self
                .nodes
                .iter()
                .find(|node| node.alive)
                .expect("one is alive");
            return Arc::new(Topology::single("10.0.0.1", node.port));
        }
        let mut shards = Vec::new();
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
            let slots = (0..SLOT_COUNT).filter(|&slot| self.owners[slot] == index);
            shards.push(Shard {
                master: TopologyNode::new(node.id.clone(), "10.0.0.1", node.port),
                replicas: match self.hides_replicas {
                    true => Vec::new(),
                    false => vec![node.replica()],
                },
                slots: slots.map(|slot| slot as Slot).collect(),
            });
        }
        let open = self.moving().into_iter().map(|(slot, from, to)| OpenSlot {
            slot,
            from: self.nodes[from].id.clone(),
            to: self.nodes[to].id.clone(),
        });
        Arc::new(Topology::cluster(shards, open.collect()).expect("a sound cluster"))
    }

    pub fn node_at(&self, port: u16) -> Option<usize> {
        self.nodes
            .iter()
            .position(|node| node.port == port && node.alive)
    }

    /// Masters remove keys by their own clocks.
    pub fn expire(&mut self, now_ms: u64) {
        for node in &mut self.nodes {
            for key in node.store.expire(now_ms) {
                crate::trace::note(|| format!("{}:{} ends", key.0, key.1.escape_ascii()));
            }
        }
    }

    // Changes of the cluster.

    /// Slots that are on their way, with the nodes that give and take.
    pub fn moving(&self) -> Vec<(Slot, usize, usize)> {
        let of = |index: usize| {
            let slots = self.nodes[index].migrating.iter();
            slots.map(move |(&slot, &to)| (slot, index, to))
        };
        (0..self.nodes.len()).flat_map(of).collect()
    }

    pub fn begin_move(&mut self, slot: Slot, to: usize) {
        let from = self.owners[usize::from(slot)];
        assert!(from != to);
        self.nodes[from].visited.insert(slot);
        self.nodes[to].importing.insert(slot, from);
        self.nodes[from].migrating.insert(slot, to);
    }

    /// Whether a node answers for a slot, or for some of its keys.
    pub fn serves(&self, node: usize, slot: Slot) -> bool {
        let moves =
            |(open, from, to): &(Slot, usize, usize)| *open == slot && [*from, *to].contains(&node);
        self.single || self.owners[usize::from(slot)] == node || self.moving().iter().any(moves)
    }

    /// Keys of a slot at one node.
    pub fn keys_in(&self, node: usize, slot: Slot) -> Vec<Key> {
        let keys = self.nodes[node].store.keys.keys();
        keys.filter(|key| slot_of(&key.1) == slot)
            .cloned()
            .collect()
    }

    /// `MIGRATE` of one key.
    pub fn move_key(&mut self, key: &Key, from: usize, to: usize) {
        let value = self.nodes[from]
            .store
            .keys
            .remove(key)
            .expect("it is there");
        let former = self.nodes[to].store.keys.insert(key.clone(), value);
        assert!(former.is_none(), "a key in two places");
        let deadline = self.nodes[from].store.deadlines.remove_entry(key);
        self.nodes[to].store.deadlines.extend(deadline);
    }

    /// `SETSLOT ... NODE` at the taker; the giver hears of it by gossip, later.
    pub fn finish_at_taker(&mut self, slot: Slot, to: usize) {
        self.nodes[to].importing.remove(&slot);
        self.nodes[to].view[usize::from(slot)] = to;
        self.owners[usize::from(slot)] = to;
    }

    /// `SETSLOT ... NODE` at the giver: it redirects from now on, even if the taker does not know yet.
    pub fn finish_at_giver(&mut self, slot: Slot, from: usize, to: usize) {
        self.nodes[from].migrating.remove(&slot);
        self.nodes[from].view[usize::from(slot)] = to;
        self.owners[usize::from(slot)] = to;
    }

    /// All of a move at once.
    pub fn move_slot(&mut self, slot: Slot, to: usize) {
        let from = self.owners[usize::from(slot)];
        self.begin_move(slot, to);
        for key in self.keys_in(from, slot) {
            self.move_key(&key, from, to);
        }
        self.finish_at_taker(slot, to);
        self.finish_at_giver(slot, from, to);
    }

    pub fn refuse(&mut self, node: usize, error: String, until_ms: u64) {
        let node = &mut self.nodes[node];
        node.refusal = Some((error, until_ms));
        node.refusal_met = false;
        node.refusal_known = false;
    }

    /// Whether a slot is on its way from or to this node.
    pub fn is_moving(&self, node: usize) -> bool {
        !self.nodes[node].migrating.is_empty() || !self.nodes[node].importing.is_empty()
    }

    /// The takers hear of the slots that they own.
    pub fn hear_of_finished(&mut self) {
        for (slot, to) in std::mem::take(&mut self.finish_later) {
            self.nodes[to].importing.remove(&slot);
            self.nodes[to].view[usize::from(slot)] = to;
        }
    }

    /// Everybody knows the owners.
    pub fn gossip(&mut self) {
        self.hear_of_finished();
        assert!(self.moving().is_empty(), "no slot is on its way any more");
        let owners = self.owners.clone();
        for node in &mut self.nodes {
            node.view.clone_from(&owners);
        }
    }

    /// A replica with the same data takes over, under its own id and address.
    pub fn fail_over(&mut self, index: usize) {
        let former = &mut self.nodes[index];
        let replica = former.replica();
        (former.id, former.port) = (replica.id, replica.port);
        // To the lane it is another master.
        former.refusal_known = false;
        // Open slots are not handed on by a failover; the workload does not fail over while slots move.
        assert!(former.migrating.is_empty() && former.importing.is_empty());
    }

    // Serving.

    /// Executes up to `commands` of what a connection has received.
    pub fn serve(&mut self, session: &mut Session, commands: usize, tracker: &mut Tracker) {
        for _ in 0..commands {
            let Some((args, length)) = decode(&session.input) else {
                return;
            };
            session.input.drain(..length);
            let text = crate::trace::is_on().then(|| show(&args));
            let known = session.old == 0 || session.goes_on(tracker);
            let followed = !session.forsaken && known;
            let reply = self.handle(session, args, followed, tracker);
            // The rest of a transaction that was sent in part is as old as its beginning.
            let goes_on = session.old == 1 && session.queue.is_some();
            session.old = session.old.saturating_sub(usize::from(!goes_on));
            if let Some(text) = text {
                let mark = if !followed { " (given up)" } else { "" };
                crate::trace::note(|| format!("node {}{mark}: {text} -> {reply:?}", session.node));
            }
            reply.encode(&mut session.output);
        }
    }

    fn handle(
        &mut self,
        session: &mut Session,
        args: Vec<Bytes>,
        followed: bool,
        tracker: &mut Tracker,
    ) -> Reply {
        let verb = verb(&args);
        let asking = std::mem::take(&mut session.asking);
        if !session.named && !matches!(verb.as_str(), "AUTH" | "CLIENT" | "SELECT") {
            panic!("data came before the greeting was answered: {verb}");
        }
        match verb.as_str() {
            "AUTH" => {
                let right = self.password.as_deref().map(str::as_bytes);
                session.authenticated = args.last().map(Vec::as_slice) == right;
                assert!(session.authenticated, "the lane knows the password");
                return Reply::Simple("OK");
            }
            _ if self.password.is_some() && !session.authenticated => {
                return Reply::Error("NOAUTH Authentication required.".into());
            }
            "CLIENT" => {
                session.named = true;
                return Reply::Simple("OK");
            }
            "SELECT" if session.queue.is_none() => {
                session.database = String::from_utf8_lossy(&args[1]).parse().expect("a number");
                return Reply::Simple("OK");
            }
            "ASKING" => {
                session.asking = true;
                return Reply::Simple("OK");
            }
            _ => {}
        }
        // A transaction keeps the permission until its end.
        let in_transaction = session.queue.is_some() || verb == "MULTI";
        session.asking = asking && in_transaction && verb != "EXEC";
        match verb.as_str() {
            "MULTI" => {
                session.queue = Some(Vec::new());
                session.broken = false;
                Reply::Simple("OK")
            }
            "EXEC" => self.exec(session, asking, followed, tracker),
            _ => {
                let commands = [args];
                if let Err(error) = self.admit(session, &commands, asking) {
                    session.broken = true;
                    return Reply::Error(error);
                }
                let [args] = commands;
                match &mut session.queue {
                    Some(queue) => {
                        queue.push(args);
                        Reply::Simple("QUEUED")
                    }
                    None => {
                        check_guard(&[&args], followed && !session.is_doubtful(tracker));
                        let reply = self.apply(session, &args, followed, tracker);
                        if reply.is_error() && followed && !session.is_doubtful(tracker) {
                            tracker.failed(session.database, &args, false);
                        }
                        reply
                    }
                }
            }
        }
    }

    fn exec(
        &mut self,
        session: &mut Session,
        asking: bool,
        followed: bool,
        tracker: &mut Tracker,
    ) -> Reply {
        let queue = session.queue.take().expect("EXEC follows MULTI");
        if session.broken {
            return Reply::Error(
                "EXECABORT Transaction discarded because of previous errors.".into(),
            );
        }
        if let Err(error) = self.admit(session, &queue, asking) {
            let redirect = ["MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"]
                .iter()
                .any(|word| error.starts_with(word));
            return Reply::Error(match redirect {
                true => error,
                false => format!("EXECABORT Transaction discarded because of: {error}"),
            });
        }
        let commands: Vec<&Vec<Bytes>> = queue.iter().collect();
        check_guard(&commands, followed && !session.is_doubtful(tracker));
        let watermark = commands.iter().find_map(|args| watermark_of(args));
        let mends = |tracker: &mut Tracker, database: u32, args: &[Bytes]| {
            let (_, mark) = watermark.as_ref().filter(|_| followed)?;
            Some(tracker.mends(database, args, mark.watermark.offset.0))
        };
        let mut replies = Vec::new();
        for args in &queue {
            let mended = mends(tracker, session.database, args) == Some(true);
            // The source was asked since the lane began, so that nothing older can follow.
            session.maybe_old &= !mended || session.goes_on(tracker);
            let reply = self.apply(session, args, followed && !mended, tracker);
            if reply.is_error() && followed && !session.is_doubtful(tracker) {
                tracker.failed(session.database, args, watermark.is_some());
            }
            replies.push(reply);
        }
        Reply::Array(replies)
    }

    /// Whether these commands may be executed here and now: refusals, then redirects.
    fn admit(
        &mut self,
        session: &Session,
        commands: &[Vec<Bytes>],
        asking: bool,
    ) -> Result<(), String> {
        let reads = commands
            .iter()
            .all(|args| matches!(verb(args).as_str(), "SCAN" | "INFO"));
        let node = &mut self.nodes[session.node];
        if let Some((error, _)) = &node.refusal
            && (!reads || REFUSED_READS.iter().any(|word| error.starts_with(word)))
        {
            self.counts.refused += 1;
            node.refusal_met |= !reads;
            return Err(error.clone());
        }
        if self.single {
            return Ok(());
        }
        self.redirect(session, commands, asking)
    }

    fn redirect(
        &mut self,
        session: &Session,
        commands: &[Vec<Bytes>],
        asking: bool,
    ) -> Result<(), String> {
        let keys = || commands.iter().flat_map(|args| keys_of(args));
        let Some(first) = keys().next() else {
            return Ok(());
        };
        let slot = slot_of(first);
        assert!(keys().all(|key| slot_of(key) == slot), "CROSSSLOT");
        assert!(session.database == 0, "a cluster has one database");
        let distinct: BTreeSet<&Bytes> = keys().collect();
        let me = &self.nodes[session.node];
        let owner = me.view[usize::from(slot)];
        let has = |key: &&Bytes| me.store.keys.contains_key(&(0, (*key).clone()));
        let existing = distinct.iter().filter(|key| has(key)).count();
        let missing = distinct.len() - existing;
        let migrating = me.migrating.get(&slot).filter(|_| owner == session.node);
        if let Some(&to) = migrating {
            if missing == 0 {
                return Ok(());
            }
            if existing > 0 && !self.old_redirects {
                self.counts.try_again += 1;
                return Err("TRYAGAIN Multiple keys request during rehashing of slot".into());
            }
            self.counts.ask += 1;
            return Err(format!("ASK {slot} 10.0.0.1:{}", self.nodes[to].port));
        }
        if me.importing.contains_key(&slot) && asking {
            if distinct.len() > 1 && missing > 0 {
                self.counts.try_again += 1;
                return Err("TRYAGAIN Multiple keys request during rehashing of slot".into());
            }
            return Ok(());
        }
        if owner != session.node {
            self.counts.moved += 1;
            return Err(format!("MOVED {slot} 10.0.0.1:{}", self.nodes[owner].port));
        }
        Ok(())
    }

    fn apply(
        &mut self,
        session: &mut Session,
        args: &[Bytes],
        followed: bool,
        tracker: &mut Tracker,
    ) -> Reply {
        let name = verb(args);
        let (node, epoch) = (session.node, session.epoch);
        assert!(
            epoch >= self.nodes[node].shut_out,
            "node {node} executed {} of a process with epoch {epoch}, whose link was taken over",
            show(args)
        );
        match name.as_str() {
            "SELECT" => {
                session.database = String::from_utf8_lossy(&args[1]).parse().expect("a number");
                return Reply::Simple("OK");
            }
            "SCAN" => self.counts.scans += 1,
            "PUBLISH" => self.counts.published += 1,
            "FUNCTION" => self.counts.functions += 1,
            _ => {}
        }
        let node = &mut self.nodes[session.node];
        if followed {
            if matches!(name.as_str(), "FLUSHALL" | "FLUSHDB") {
                self.counts.flushes += 1;
                let all = |key: &&Key| name == "FLUSHALL" || key.0 == session.database;
                tracker.executes_flush(
                    session.node,
                    node.store.keys.keys().filter(all).cloned().collect(),
                    session.is_doubtful(tracker),
                );
            }
            for at in key_places(args) {
                let slot = slot_of(&args[at]);
                assert!(
                    self.lane.contains(slot),
                    "a key of another lane was written: {:?}",
                    args[at]
                );
            }
            let own = args.get(1).is_some_and(|key| is_bookkeeping(key));
            match watermark_of(args) {
                None if own && name == "HSET" => {
                    let record = Record::decode(&args[3]).expect("a record");
                    let generation: Generation = String::from_utf8_lossy(&args[2])
                        .parse()
                        .expect("a generation");
                    // It is answered before anything of its copy is sent, and goes behind all that was sent before.
                    if tracker.records(session.node, generation, &record) && session.old == 0 {
                        (session.maybe_old, session.tangled) = (false, false);
                    }
                }
                None if own => {}
                Some((slot, mark)) => {
                    assert!(session.database == 0, "watermarks are in database 0");
                    if !session.is_doubtful(tracker) {
                        tracker.sets_watermark(slot, &mark);
                    }
                }
                None => {
                    let doubtful = session.is_doubtful(tracker);
                    let doubtful = tracker.executes(session.node, session.database, args, doubtful);
                    session.maybe_old &= doubtful || session.goes_on(tracker);
                }
            }
        }
        if let Some(journal) = &mut self.journal {
            let all = node.store.keys.keys().map(|(_, key)| key);
            journal.push(match name.as_str() {
                "FLUSHALL" | "FLUSHDB" => all.cloned().collect(),
                _ => keys_of(args).into_iter().cloned().collect(),
            });
        }
        let reply = node.store.execute(session.database, args);
        if let Reply::Error(error) = &reply {
            assert!(
                tracker.repeats
                    || !followed
                    || session.is_doubtful(tracker)
                    || tracker.early
                    || tracker.is_suspect(session.database, args),
                "{} failed: {error}",
                show(args)
            );
        }
        reply
    }
}

/// What must not be applied twice comes with a watermark, in one transaction.
fn check_guard(commands: &[&Vec<Bytes>], followed: bool) {
    let unsafe_one = commands.iter().find(|args| must_not_repeat(args));
    let marks = commands.iter().filter(|args| watermark_of(args).is_some());
    let Some(args) = unsafe_one.filter(|_| followed) else {
        return;
    };
    assert!(
        marks.count() == 1,
        "{} came without a watermark",
        show(args)
    );
}
