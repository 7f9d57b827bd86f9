//! A replica of the target takes its master's place: it may lack what that had answered.

use super::*;
use crate::topology::TopologyCell;

/// `master` owns everything; `empty` is a master, too, and `replica` follows the former.
fn view(master: u16, empty: Option<u16>, replica: Option<u16>) -> Topology {
    let node = |port: u16| Node::new(port.to_string(), "h", port);
    let shard = |port: u16, slots: SlotSet| Shard {
        master: node(port),
        replicas: Vec::new(),
        slots,
    };
    let mut shards = vec![shard(master, SlotSet::all())];
    shards[0].replicas.extend(replica.map(node));
    shards.extend(empty.map(|port| shard(port, SlotSet::new())));
    Topology::cluster(shards, Vec::new()).unwrap()
}

/// A lane that was begun after master 1 gave way to its replica 2, while 1 was listed as a master still.
fn after_a_failover() -> (Rig, TopologyCell) {
    let cell = TopologyCell::new(view(1, None, Some(2)));
    cell.store(view(2, Some(1), None));
    let mut rig = Rig::streaming((*cell.load().1).clone());
    rig.lane.targets.fenced = true;
    (rig, cell)
}

fn must_begin_again(rig: &mut Rig) -> bool {
    let ticked = rig.lane.tick(rig.now_ms);
    ticked.is_err_and(|fault| fault.kind == FaultKind::TargetRewound)
}

#[test]
fn a_master_that_takes_its_place_back_before_it_was_seen_as_a_replica_may_lack_writes() {
    let (mut rig, cell) = after_a_failover();
    assert!(!must_begin_again(&mut rig));
    cell.store(view(1, Some(2), None));
    rig.lane.adopt_target(&cell.load().1, rig.now_ms);
    assert!(must_begin_again(&mut rig));
}

#[test]
fn a_redirect_to_a_master_that_takes_its_place_back_tells_of_it_before_anything_is_sent() {
    let (mut rig, _) = after_a_failover();
    let to_2 =
        (0..rig.lane.target_count()).find(|index| !rig.sent_to(*index, "SET a 1").is_empty());
    let to_2 = to_2.expect("the master of all slots");
    rig.reply(to_2, b"-MOVED 15495 h:1\r\n");
    assert!(must_begin_again(&mut rig));
}

#[test]
fn slots_that_move_to_a_master_of_another_shard_hold_all_that_was_written() {
    let cell = TopologyCell::new(view(1, Some(2), Some(3)));
    let mut rig = Rig::streaming((*cell.load().1).clone());
    rig.lane.targets.fenced = true;
    cell.store(view(2, Some(1), None));
    rig.lane.adopt_target(&cell.load().1, rig.now_ms);
    assert!(!must_begin_again(&mut rig));
}

impl Rig {
    /// What a connection gets when the source says this.
    fn sent_to(&mut self, index: usize, line: &str) -> Vec<u8> {
        self.hear(&command(line));
        self.sent(index)
    }
}
