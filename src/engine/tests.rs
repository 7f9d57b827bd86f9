//! A lane driven by hand: what the source and the targets say, and what they get.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::lane::{Lane, LaneConfig};
use super::lookup::{LookupAnswer, LookupQuestion};
use super::options::{Existing, OnDivergence};
use super::status::{ErrorCount, LaneState, LaneStatus};
use crate::checkpoint::Generation;
use crate::command::rewrite::{Deadlines, Features};
use crate::fault::{Fault, FaultKind};
use crate::limits;
use crate::rdb::{Lineage, TargetFormat};
use crate::resp::{push_command, scan};
use crate::slot::{Slot, SlotSet};
use crate::spool;
use crate::target::Greeting;
use crate::topology::{Node, Preferred, Rewrites, Shard, Topology};

const GENERATION: Generation = Generation {
    epoch: 1,
    number: 1,
};
mod deadlines;
mod grouping;
mod marks;
mod mending;
mod moving;
mod replaced;
mod spooled;
mod stopping;

use grouping::{executed, group, mark_at};

const ID: &str = "0123456789abcdef0123456789abcdef01234567";
const GREETED: &[u8] = b"+PONG\r\n$1\r\ns\r\n+OK\r\n+OK\r\n+OK\r\n";
/// Keys in slots 15495 and 3300: of the second and the first of two masters.
const HIGH: &str = "a";
const LOW: &str = "b";

struct Rig {
    lane: Lane,
    now_ms: u64,
}

/// Masters on ports 1, 2, ... with equal shares of the slots.
fn cluster(ids: &[&str]) -> Topology {
    let share = 16384 / ids.len() as u16;
    let shards = ids.iter().zip(0..).map(|(id, at): (_, u16)| {
        let mut slots = SlotSet::new();
        let last = if usize::from(at) + 1 == ids.len() {
            16383
        } else {
            (at + 1) * share - 1
        };
        slots.insert_range(at * share, last);
        Shard {
            master: Node::new(*id, "h", id.parse().unwrap_or(at + 1)),
            replicas: Vec::new(),
            slots,
        }
    });
    Topology::cluster(shards.collect(), Vec::new()).unwrap()
}

fn command(line: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    push_command(&mut out, &words);
    out
}

fn commands(lines: &[&str]) -> Vec<u8> {
    lines.iter().flat_map(|line| command(line)).collect()
}

fn lost() -> Fault {
    Fault::new(FaultKind::ConnectionLost, "lost")
}

fn config() -> LaneConfig {
    LaneConfig {
        link: "default".parse().expect("valid"),
        generation: GENERATION,
        passed: Default::default(),
        owned: SlotSet::new(),
        source: Node::new("s", "s", 1),
        source_auth: None,
        slots: SlotSet::all(),
        source_has_slots: true,
        listening_port: 1,
        target: Greeting {
            auth: None,
            name: "n".into(),
        },
        format: TargetFormat::of_server(Lineage::Redis, 7, 0),
        database_map: Default::default(),
        existing: Existing::None,
        lacking: Features::lacking_in(Lineage::Redis, 6, 0)
            | Features::unfit_from(Lineage::Redis, 6),
        leave_out: true,
        omissions: Default::default(),
        on_divergence: OnDivergence::Stop,
        skip_unknown: false,
        held: false,
        claimed_before: false,
        accept_empty_source: false,
        functions: Default::default(),
        generations: None,
        resume: None,
        runs: Vec::new(),
        spool: spool::Settings::new("l".into(), Arc::new(spool::Budget::new(1 << 30))),
        spooled: None,
        ack: Default::default(),
        grouping: Default::default(),
        mark: false,
        first_copy: false,
        record_interval_ms: limits::RECORD_INTERVAL_MS,
    }
}

/// For targets whose fields have deadlines.
fn valkey_9() -> LaneConfig {
    LaneConfig {
        format: TargetFormat::of_server(Lineage::Valkey, 9, 1),
        lacking: Features::lacking_in(Lineage::Valkey, 9, 1),
        ..config()
    }
}

impl Rig {
    fn new(target: Topology) -> Self {
        Self::with(config(), target)
    }

    fn with(config: LaneConfig, target: Topology) -> Self {
        let status = Arc::new(LaneStatus::new(0, "s".into(), "s:1".into()));
        Self {
            lane: Lane::new(config, Arc::new(target), status),
            now_ms: 0,
        }
    }

    /// Takes up the connection to the source again; the source tells nothing about its history.
    fn greet_again(&mut self) {
        self.attach();
        self.hear(GREETED);
        self.hear(b"-NOPERM no INFO\r\n");
    }

    /// A lane that streams from offset 100, its targets connected.
    fn streaming(target: Topology) -> Self {
        Self::streaming_with(config(), target)
    }

    fn streaming_with(config: LaneConfig, target: Topology) -> Self {
        let mut rig = Self::with(config, target);
        rig.attach();
        rig.hear(GREETED);
        rig.hear(format!("+FULLRESYNC {ID} 100\r\n").as_bytes());
        rig.hear(b"$18\r\nREDIS0009\xff\0\0\0\0\0\0\0\0");
        rig.connect_targets();
        assert_eq!(rig.lane.status.state(), LaneState::Streaming);
        rig
    }

    fn attach(&mut self) -> Vec<u8> {
        self.now_ms += 10_000;
        self.lane.dial_source(self.now_ms).expect("to be dialled");
        self.lane.source_connected();
        let greeting = self.lane.source_output().to_vec();
        self.lane.source_written(greeting.len());
        greeting
    }

    fn try_hear(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            let space = self.lane.source_space().expect("room");
            let count = space.len().min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            self.lane.source_received(count, self.now_ms)?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.try_hear(bytes).unwrap();
    }

    fn connect_targets(&mut self) {
        while let Some((index, ..)) = self.lane.dial_target(self.now_ms) {
            self.lane.target_connected(index);
            let hello = self.sent(index);
            let due = hello.iter().filter(|byte| **byte == b'*').count();
            self.reply(index, &b"+OK\r\n".repeat(due));
        }
        self.lane.tick(self.now_ms).unwrap();
    }

    fn sent(&mut self, index: usize) -> Vec<u8> {
        let mut sent = Vec::new();
        loop {
            let mut pieces = [IoSlice::new(&[]); limits::MAX_PIECES];
            let count = self.lane.target_gather(index, &mut pieces);
            let bytes: Vec<u8> = pieces[..count]
                .iter()
                .flat_map(|piece| piece.to_vec())
                .collect();
            if bytes.is_empty() {
                return sent;
            }
            self.lane.target_written(index, bytes.len());
            sent.extend(bytes);
        }
    }

    fn try_reply(&mut self, index: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.lane.target_received(index, bytes, self.now_ms)?;
        self.lane.advance()
    }

    fn reply(&mut self, index: usize, bytes: &[u8]) {
        self.try_reply(index, bytes).unwrap();
    }

    /// A flush is over when every slot was found where it was: answers so.
    fn reply_to_checks(&mut self, index: usize) {
        let sent = self.sent(index);
        let checks = sent.windows(6).filter(|part| part == b"UNLINK").count();
        assert!(checks > 0);
        self.reply(index, &b":0\r\n".repeat(checks));
    }

    fn wait(&mut self, ms: u64) {
        self.now_ms += ms;
        self.lane.tick(self.now_ms).unwrap();
    }

    /// The source was asked for its offset at that time: it stood where we are.
    fn poll(&self, asked_ms: u64) {
        let offset = self.lane.received().0;
        self.lane.status.set_poll(ID, offset, asked_ms);
    }

    fn acknowledged(&self) -> u64 {
        self.lane.progress().acknowledged.0
    }
}

#[test]
fn a_history_whose_snapshot_never_came_is_not_resumed() {
    let mut rig = Rig::new(cluster(&["x"]));
    rig.attach();
    rig.hear(GREETED);
    rig.hear(format!("+FULLRESYNC {ID} 100\r\n\n").as_bytes());
    rig.lane.source_lost(lost(), rig.now_ms).unwrap();
    rig.attach();
    rig.hear(GREETED);
    let output = rig.lane.source_output();
    assert!(output.ends_with(&command("PSYNC ? -1")));
}

#[test]
fn a_stream_is_resumed_behind_the_last_byte_received() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    rig.hear(&command("SET a 1")[..10]);
    rig.lane.source_lost(lost(), rig.now_ms).unwrap();
    rig.greet_again();
    let wanted = command(&format!("PSYNC {ID} 111"));
    assert!(rig.lane.source_output().ends_with(&wanted));
    rig.hear(b"+CONTINUE\r\n");
    rig.hear(&command("SET a 1")[10..]);
    assert_eq!(rig.sent(0), command("SET a 1"));
}

#[test]
fn commands_pass_as_they_came_and_what_is_between_them_does_not() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    let stream = commands(&["SELECT 0", "sET a 1", "PING", "dEL b", "REPLCONF GETACK *"]);
    rig.hear(&stream);
    assert_eq!(rig.sent(0), commands(&["sET a 1", "dEL b"]));
    assert_eq!(rig.acknowledged(), 100 + 23);
    rig.reply(0, b"+OK\r\n:1\r\n");
    assert_eq!(rig.acknowledged(), 100 + stream.len() as u64);
}

#[test]
fn a_source_that_asked_is_told_again_when_what_came_before_is_applied() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    let told = |rig: &mut Rig| {
        let output = rig.lane.source_output().to_vec();
        rig.lane.source_written(output.len());
        output
    };
    told(&mut rig);
    let set = command("SET a 1");
    rig.hear(&[set.clone(), command("REPLCONF GETACK *")].concat());
    rig.sent(0);
    assert_eq!(told(&mut rig), command("REPLCONF ACK 100"));
    rig.hear(&command("SET a 2"));
    assert!(told(&mut rig).is_empty());
    rig.reply(0, b"+OK\r\n");
    let applied = rig.acknowledged();
    assert!(applied >= 100 + set.len() as u64);
    assert_eq!(told(&mut rig), command(&format!("REPLCONF ACK {applied}")));
    rig.sent(0);
    rig.reply(0, b"+OK\r\n");
    assert!(told(&mut rig).is_empty(), "nobody asked for that one");
}

#[test]
fn a_transaction_stays_one_and_is_split_only_between_slots() {
    let mut rig = Rig::streaming(cluster(&["x", "y"]));
    let whole = ["MULTI", "SET a 1", "PERSIST a", "EXEC"];
    rig.hear(&commands(&whole));
    assert_eq!(rig.sent(1), commands(&whole));
    rig.reply(1, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:2\r\n");
    let several = ["MULTI", "SET a 1", "SET b 2", "PERSIST a", "EXEC"];
    rig.hear(&commands(&several));
    assert_eq!(rig.sent(1), commands(&whole));
    assert_eq!(rig.sent(0), command("SET b 2"));
    rig.hear(&commands(&["MULTI", "PUBLISH c m", "SET b 1", "EXEC"]));
    rig.reply(0, b"+OK\r\n");
    assert_eq!(rig.sent(0), commands(&["PUBLISH c m", "SET b 1"]));
}

#[test]
fn commands_that_the_target_lacks_are_rebuilt_in_their_place() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    rig.lane.set_wall_clock(1_000_000 - rig.now_ms);
    let stream = commands(&["SET a 1", "SETEX a 5000000 2", "GETDEL h", "SET a 3"]);
    rig.hear(&stream);
    let rebuilt = [
        "SET a 1",
        "MULTI",
        "SET a 2",
        "PEXPIREAT a 5001000000",
        "EXEC",
        "DEL h",
        "SET a 3",
    ];
    assert_eq!(rig.sent(0), commands(&rebuilt));
    rig.reply(
        0,
        b"+OK\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:1\r\n:1\r\n",
    );
    let last = command("SET a 3").len();
    assert_eq!(rig.acknowledged(), 100 + (stream.len() - last) as u64);
    rig.reply(0, b"+OK\r\n");
    assert_eq!(rig.acknowledged(), 100 + stream.len() as u64);
}

#[test]
fn what_is_rebuilt_in_a_transaction_stays_in_it() {
    let mut rig = Rig::streaming(cluster(&["x", "y"]));
    let whole = ["MULTI", "SET a 1", "SET a 2 PXAT 9000000000", "EXEC"];
    rig.hear(&commands(&whole));
    let rebuilt = [
        "MULTI",
        "SET a 1",
        "SET a 2",
        "PEXPIREAT a 9000000000",
        "EXEC",
    ];
    assert_eq!(rig.sent(1), commands(&rebuilt));
    rig.reply(
        1,
        b"+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n+OK\r\n+OK\r\n:1\r\n",
    );
    // Over two slots, and with something that is left out.
    let several = [
        "MULTI",
        "SET a 1 PXAT 9000000000",
        "VADD b x",
        "SET b 2 GET",
        "EXEC",
    ];
    rig.hear(&commands(&several));
    let parts = ["MULTI", "SET a 1", "PEXPIREAT a 9000000000", "EXEC"];
    assert_eq!(rig.sent(1), commands(&parts));
    assert_eq!(rig.sent(0), command("SET b 2"));
    assert_eq!(rig.lane.status.errors()["unsupported_vector_sets"], 1);
    assert_eq!(rig.lane.config.omissions.take_news().len(), 1);
}

#[test]
fn a_rebuilt_command_over_several_slots_is_split() {
    let mut rig = Rig::streaming(cluster(&["x", "y"]));
    let stream = command("MSETEX 2 a 1 b 2 PXAT 9000000000");
    rig.hear(&stream);
    let each = |key: &str, value: u8| {
        let (set, expire) = (
            format!("SET {key} {value}"),
            format!("PEXPIREAT {key} 9000000000"),
        );
        commands(&["MULTI", &set, &expire, "EXEC"])
    };
    assert_eq!(rig.sent(1), each("a", 1));
    assert_eq!(rig.sent(0), each("b", 2));
    rig.reply(0, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:1\r\n");
    assert_eq!(rig.acknowledged(), 100);
    rig.reply(1, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:1\r\n");
    assert_eq!(rig.acknowledged(), 100 + stream.len() as u64);
}

#[test]
fn a_moved_slot_follows_in_order_once_its_former_owner_has_answered() {
    let mut rig = Rig::streaming(cluster(&["x", "y"]));
    rig.hear(&commands(&["SET b 1", "SET b 2"]));
    rig.sent(0);
    rig.reply(0, b"-MOVED 3300 h:2\r\n");
    rig.hear(&command("SET b 3"));
    rig.wait(0);
    assert!(rig.sent(1).is_empty(), "the second has no answer yet");
    assert_eq!(rig.acknowledged(), 100);
    rig.reply(0, b"-MOVED 3300 h:2\r\n");
    assert_eq!(rig.sent(1), commands(&["SET b 1", "SET b 2", "SET b 3"]));
}

#[test]
fn a_redirect_without_host_means_the_host_that_was_asked() {
    for named in [":2", "?:2", "h:2"] {
        let mut rig = Rig::streaming(cluster(&["x", "y"]));
        rig.hear(&command("SET b 1"));
        rig.sent(0);
        rig.reply(0, format!("-MOVED 3300 {named}\r\n").as_bytes());
        assert_eq!(rig.sent(1), command("SET b 1"), "{named}");
    }
}

#[test]
fn a_redirect_to_an_unknown_master_leads_where_a_rule_says() {
    let rule = "h:9=[::1]:30009".parse().expect("a rule");
    let rules = Arc::new(Rewrites::new(&[], &[rule]).expect("valid"));
    let mut topology = cluster(&["x"]);
    topology.set_places(&rules, Preferred::Ip, "h");
    let mut rig = Rig::streaming(topology);
    rig.hear(&command("SET b 1"));
    rig.sent(0);
    rig.reply(0, b"-MOVED 3300 h:9\r\n");
    let dialled = rig.lane.dial_target(rig.now_ms);
    assert_eq!(dialled, Some((1, "::1".into(), 30009)));
}

#[test]
fn a_slot_that_is_asked_for_waits_for_the_answer_before_it_goes_on() {
    let mut rig = Rig::streaming(cluster(&["x", "y"]));
    rig.hear(&command("SET b 1"));
    rig.sent(0);
    rig.reply(0, b"-ASK 3300 h:2\r\n");
    rig.hear(&command("SET b 2"));
    assert_eq!(rig.sent(1), commands(&["ASKING", "SET b 1"]));
    assert!(rig.sent(0).is_empty());
    rig.reply(1, b"+OK\r\n+OK\r\n");
    assert_eq!(rig.sent(0), command("SET b 2"));
}

#[test]
fn what_a_lost_master_left_unanswered_goes_before_what_waited() {
    let mut rig = Rig::streaming(cluster(&["x", "y"]));
    rig.hear(&commands(&["SET b 1", "SET b 2"]));
    rig.sent(0);
    rig.reply(0, b"-TRYAGAIN x\r\n");
    rig.hear(&command("SET b 3"));
    rig.lane.target_lost(0, lost(), rig.now_ms).unwrap();
    let promoted = Arc::new(cluster(&["z", "y"]));
    rig.lane.adopt_target(&promoted, rig.now_ms);
    rig.wait(limits::RETRY_REFUSED_MS);
    rig.connect_targets();
    assert_eq!(rig.sent(2), command("SET b 1"));
    rig.reply(2, b"+OK\r\n");
    assert_eq!(rig.sent(2), commands(&["SET b 2", "SET b 3"]));
}

#[test]
fn a_redirect_to_a_master_that_died_gives_way_to_the_topology() {
    let mut rig = Rig::streaming(cluster(&["x", "y"]));
    rig.hear(&command("SET b 1"));
    rig.sent(0);
    rig.reply(0, b"-MOVED 3300 h:9\r\n");
    let promoted = Arc::new(cluster(&["x", "z"]));
    rig.lane.adopt_target(&promoted, rig.now_ms);
    rig.wait(limits::TRUST_REDIRECT_MS + limits::RECONCILE_INTERVAL_MS);
    rig.wait(limits::RECONCILE_INTERVAL_MS);
    assert_eq!(rig.sent(0), command("SET b 1"));
}

#[test]
fn too_many_redirects_to_unknown_masters_do_no_harm() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    for port in 1000..1000 + limits::MAX_TARGET_NODES + 10 {
        let unknown = format!("-MOVED 15495 h:{port}\r\n");
        rig.hear(&command("PUBLISH a 1"));
        rig.sent(0);
        rig.reply(0, unknown.as_bytes());
    }
    assert!(rig.lane.target_count() <= limits::MAX_TARGET_NODES);
}

#[test]
fn a_copy_goes_on_with_more_masters_than_buffers() {
    let ids: Vec<String> = (1..=40).map(|id| id.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut rig = Rig::new(cluster(&ids));
    rig.attach();
    rig.hear(GREETED);
    rig.hear(format!("+FULLRESYNC {ID} 100\r\n").as_bytes());
    let mut snapshot = b"REDIS0009".to_vec();
    for key in 0..400 {
        snapshot.extend_from_slice(b"\0\x04");
        snapshot.extend_from_slice(format!("{key:04}\x01v").as_bytes());
    }
    snapshot.extend_from_slice(b"\xff\0\0\0\0\0\0\0\0");
    rig.hear(format!("${}\r\n", snapshot.len()).as_bytes());
    rig.hear(&snapshot);
    rig.connect_targets();
    let mut restored = 0;
    for index in 0..ids.len() {
        let sent = rig.sent(index);
        let count = sent.windows(7).filter(|part| part == b"RESTORE").count();
        rig.reply(index, &b"+OK\r\n".repeat(count));
        restored += count;
    }
    assert_eq!(restored, 400);
    assert_eq!(rig.lane.status.state(), LaneState::Streaming);
    assert!(rig.lane.chunks.in_use() <= limits::LANE_BUFFER_BYTES);
}

#[test]
fn a_new_snapshot_follows_what_is_on_its_way_on_the_same_connection() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    rig.hear(&command("SET a 1"));
    rig.sent(0);
    rig.lane.source_lost(lost(), rig.now_ms).unwrap();
    rig.greet_again();
    rig.hear(format!("+FULLRESYNC {ID} 500\r\n").as_bytes());
    rig.hear(b"$25\r\nREDIS0009\xfe\0\0\x01k\x01v\xff\0\0\0\0\0\0\0\0");
    assert_eq!(rig.acknowledged(), 500);
    assert!(rig.lane.take_cut().is_empty());
    assert!(rig.sent(0).is_empty(), "the former command has no answer");
    rig.reply(0, b"-ERR whatever\r\n");
    let sent = rig.sent(0);
    assert!(sent.windows(7).any(|part| part == b"RESTORE"));
}

#[test]
fn a_silent_target_and_a_silent_source_are_given_up() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    rig.wait(1);
    rig.hear(&command("SET a 1"));
    rig.sent(0);
    rig.wait(limits::MAX_SILENCE_MS - 1);
    assert!(rig.lane.take_cut().is_empty());
    rig.hear(&command("PING"));
    rig.wait(2);
    assert_eq!(rig.lane.take_cut(), [0]);
    rig.now_ms += limits::MAX_SILENCE_MS;
    let fault = rig.lane.tick(rig.now_ms).unwrap_err();
    assert_eq!(fault.kind, FaultKind::ConnectionLost);
}

#[test]
fn a_command_sent_again_may_fail_by_its_data_but_not_by_its_permission() {
    for (reply, goes_on) in [
        ("WRONGTYPE x", true),
        ("NOPERM x", false),
        ("ERR unknown command 'x'", false),
    ] {
        let mut rig = Rig::streaming(cluster(&["x"]));
        rig.hear(&command("SADD a 1"));
        rig.sent(0);
        rig.lane.target_lost(0, lost(), rig.now_ms).unwrap();
        rig.now_ms += 10_000;
        rig.connect_targets();
        rig.sent(0);
        let result = rig.try_reply(0, format!("-{reply}\r\n").as_bytes());
        assert_eq!(result.is_ok(), goes_on, "{reply}");
        let replayed = rig.lane.status.counted(ErrorCount::Replayed);
        assert_eq!(replayed, u64::from(goes_on));
    }
}

#[test]
fn a_single_server_keeps_the_order_of_commands_without_keys() {
    let mut rig = Rig::streaming(Topology::single("h", 1));
    rig.hear(&command("SET a 1"));
    rig.sent(0);
    rig.hear(&command("PUBLISH c 1"));
    rig.reply(0, b"-BUSY x\r\n");
    rig.sent(0);
    rig.reply(0, b"-BUSY x\r\n");
    rig.hear(&command("PUBLISH c 2"));
    assert!(rig.sent(0).is_empty());
    rig.wait(limits::RETRY_REFUSED_MS);
    assert_eq!(rig.sent(0), command("SET a 1"));
    rig.reply(0, b"+OK\r\n");
    let others = commands(&["PUBLISH c 1", "PUBLISH c 2"]);
    assert_eq!(rig.sent(0), others);
}

#[test]
fn a_database_is_selected_again_after_an_idle_reconnect_and_a_refused_select_stops() {
    let mut rig = Rig::streaming(Topology::single("h", 1));
    rig.hear(&commands(&["SELECT 3", "SET a 1"]));
    assert_eq!(rig.sent(0), commands(&["SELECT 3", "SET a 1"]));
    rig.reply(0, b"+OK\r\n+OK\r\n");
    rig.lane.target_lost(0, lost(), rig.now_ms).unwrap();
    rig.now_ms += 10_000;
    rig.connect_targets();
    rig.hear(&command("SET b 1"));
    assert_eq!(rig.sent(0), commands(&["SELECT 3", "SET b 1"]));
    assert!(
        rig.try_reply(0, b"-ERR DB index is out of range\r\n")
            .is_err()
    );
}

#[test]
fn a_refused_flush_is_repeated_before_anything_behind_it() {
    let mut rig = Rig::streaming(cluster(&["x"]));
    rig.hear(&commands(&["SET a 1", "FLUSHALL", "SET a 2"]));
    assert_eq!(rig.sent(0), command("SET a 1"));
    rig.reply(0, b"+OK\r\n");
    assert_eq!(rig.sent(0), command("FLUSHALL"));
    rig.reply(0, b"-BUSY x\r\n");
    assert!(rig.sent(0).is_empty());
    rig.wait(limits::RETRY_REFUSED_MS);
    assert_eq!(rig.sent(0), command("FLUSHALL"));
    rig.reply(0, b"+OK\r\n");
    rig.reply_to_checks(0);
    assert_eq!(rig.sent(0), command("SET a 2"));
}

#[test]
fn an_unknown_command_waits_for_the_source_to_explain_it() {
    let mut rig = Rig::streaming(cluster(&["x", "y"]));
    rig.hear(&commands(&["X.SET b 1", "SET b 2"]));
    let verb = b"X.SET".to_vec();
    let asked = rig.lane.take_question();
    assert_eq!(asked, Some(LookupQuestion::Positions { verb }));
    assert!(rig.sent(0).is_empty());
    let answer = LookupAnswer::Positions {
        first: 1,
        last: 1,
        step: 1,
        movable: false,
        write: true,
    };
    rig.lane.answer(answer).unwrap();
    let end = 100 + command("X.SET b 1").len() as u64;
    assert_eq!(rig.sent(0), group(&["X.SET b 1"], 3300, end));
    rig.reply(0, &executed(1));
    assert_eq!(rig.sent(0), command("SET b 2"));
}

#[test]
fn keys_of_the_tests_are_where_they_are_said_to_be() {
    assert_eq!(crate::slot::slot_of(HIGH.as_bytes()), 15495);
    assert_eq!(crate::slot::slot_of(LOW.as_bytes()), 3300);
}

#[test]
fn what_passed_behind_a_refused_command_on_the_same_key_is_repeated_behind_it() {
    let mut rig = Rig::streaming(cluster(&["1"]));
    let all = ["SET k 1", "SET other 1", "SET k 2", "HSET k f v", "SET k 3"];
    rig.hear(&commands(&all));
    assert_eq!(rig.sent(0), commands(&all));
    rig.reply(
        0,
        b"-OOM no memory\r\n+OK\r\n+OK\r\n-WRONGTYPE not a hash\r\n+OK\r\n",
    );
    rig.now_ms += limits::RETRY_REFUSED_MS;
    rig.lane.tick(rig.now_ms).unwrap();
    assert_eq!(rig.sent(0), command("SET k 1"), "it finds out");
    rig.reply(0, b"+OK\r\n");
    let again = ["SET k 2", "HSET k f v", "SET k 3"];
    assert_eq!(rig.sent(0), commands(&again));
}

#[test]
fn a_master_that_refuses_for_long_is_asked_by_one_command_at_a_time() {
    let mut rig = Rig::streaming(cluster(&["1"]));
    let all = ["SET a 1", "SET a 2", "SET b 1", "SET b 2", "SET k 1"];
    rig.hear(&commands(&all));
    rig.sent(0);
    rig.reply(0, &b"-OOM no memory\r\n".repeat(all.len()));
    let (mut asked, mut since_ms) = (Vec::new(), 0);
    while asked.len() < 5 {
        rig.wait(limits::RETRY_REFUSED_MS);
        since_ms += limits::RETRY_REFUSED_MS;
        let sent = rig.sent(0);
        if !sent.is_empty() {
            asked.push((since_ms, String::from_utf8(sent).unwrap()));
            rig.reply(0, b"-OOM no memory\r\n");
            since_ms = 0;
        }
    }
    let set = |key: &str| String::from_utf8(command(&format!("SET {key} 1"))).unwrap();
    let turns = ["b", "k", "a", "b", "k"].map(set);
    let waits = [100, 200, 400, 800, 1000];
    assert!(asked.into_iter().eq(waits.into_iter().zip(turns)));
    // The refusal ends while one is on its way: no other is, so that none can be taken before it.
    rig.wait(limits::MAX_RETRY_REFUSED_MS);
    assert_eq!(rig.sent(0), command("SET a 1"));
    rig.reply(0, b"+OK\r\n");
    assert_eq!(rig.sent(0), command("SET a 2"));
    rig.reply(0, b"+OK\r\n");
    assert_eq!(
        rig.sent(0),
        commands(&["SET b 1", "SET k 1"]),
        "each slot tries"
    );
    rig.reply(0, b"-OOM again\r\n+OK\r\n");
    rig.wait(limits::MAX_RETRY_REFUSED_MS);
    assert_eq!(rig.sent(0), command("SET b 1"));
    rig.reply(0, b"+OK\r\n");
    assert_eq!(rig.sent(0), command("SET b 2"));
    rig.reply(0, b"+OK\r\n");
    assert_eq!(rig.acknowledged(), 100 + commands(&all).len() as u64);
}

#[test]
fn what_comes_for_a_master_that_refuses_waits_with_its_own_slot() {
    let mut rig = Rig::streaming(cluster(&["1"]));
    rig.hear(&command("SET a 1"));
    rig.sent(0);
    rig.reply(0, b"-LOADING x\r\n");
    rig.hear(&commands(&["SET b 1", "SET a 2", "SET k 1", "SET b 2"]));
    assert!(rig.sent(0).is_empty(), "it is known to refuse");
    rig.wait(limits::RETRY_REFUSED_MS);
    assert_eq!(rig.sent(0), command("SET b 1"));
    rig.reply(0, b"+OK\r\n");
    assert_eq!(rig.sent(0), command("SET b 2"));
    rig.wait(0);
    rig.reply(0, b"+OK\r\n");
    assert_eq!(rig.sent(0), commands(&["SET k 1", "SET a 1"]));
    rig.reply(0, b"+OK\r\n+OK\r\n");
    assert_eq!(rig.sent(0), command("SET a 2"));
}

#[test]
fn only_what_is_asked_for_elsewhere_goes_there() {
    let mut rig = Rig::streaming(cluster(&["x", "y"]));
    rig.hear(&commands(&["SET b 1", "SET {b}2 1"]));
    rig.sent(0);
    rig.reply(0, b"-LOADING x\r\n-LOADING x\r\n");
    rig.wait(limits::RETRY_REFUSED_MS);
    assert_eq!(rig.sent(0), command("SET b 1"));
    rig.reply(0, b"-ASK 3300 h:2\r\n");
    assert_eq!(rig.sent(1), commands(&["ASKING", "SET b 1"]));
    rig.wait(limits::MAX_RETRY_REFUSED_MS);
    assert!(rig.sent(0).is_empty() && rig.sent(1).is_empty());
    rig.reply(1, b"+OK\r\n+OK\r\n");
    assert_eq!(rig.sent(0), command("SET {b}2 1"), "it may be there still");
    assert!(rig.sent(1).is_empty());
}

#[test]
fn pieces_of_a_value_that_change_places_are_a_divergence() {
    let mut rig = Rig::new(cluster(&["1"]));
    rig.attach();
    rig.hear(GREETED);
    rig.hear(format!("+FULLRESYNC {ID} 100\r\n").as_bytes());
    // A list of 20 long elements, which does not go out at once.
    let mut snapshot = b"REDIS0009\x01\x01k\x14".to_vec();
    for _ in 0..20 {
        snapshot.extend_from_slice(&[0x80, 0, 0, 0x90, 0]);
        snapshot.extend_from_slice(&[b'e'; 0x9000]);
    }
    snapshot.extend_from_slice(b"\xff\0\0\0\0\0\0\0\0");
    rig.hear(format!("${}\r\n", snapshot.len()).as_bytes());
    rig.hear(&snapshot);
    rig.connect_targets();
    let sent = rig.sent(0);
    let (mut rest, mut replies, mut pieces) = (&sent[..], Vec::new(), 0);
    while let Ok(Some(frame)) = scan(rest) {
        pieces += usize::from(frame.verb() == b"RPUSH");
        replies.extend_from_slice(match (frame.verb(), pieces) {
            (b"RPUSH", 2) => b"-OOM no memory\r\n",
            _ => b":1\r\n",
        });
        rest = &rest[frame.bytes().len()..];
    }
    let fault = rig.try_reply(0, &replies).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Divergence);
    assert!(pieces > 2 && fault.message.contains("'k'"), "{fault}");
}
