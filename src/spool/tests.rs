//! The spool beside a plain vector of bytes, on a disk that is slow, refuses, tears and forgets.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;

use super::{Budget, Order, Recovered, Settings, Spool, State, Survey, recover, survey};
use crate::position::{Offset, Position, ReplicationId};

const LINK: &str = "test";
/// Offset of the first byte of the stream.
const START: u64 = 1_000;

fn id() -> ReplicationId {
    ReplicationId::parse(&[b'a'; 40]).unwrap()
}

fn settings(limit: u64) -> Settings {
    Settings {
        link: LINK.into(),
        budget: Arc::new(Budget::new(limit)),
        block_bytes: 128,
        memory_blocks: 8,
        segment_blocks: 3,
    }
}

/// Files in memory. Orders are executed in their order, but for reads, which may be executed at any time.
#[derive(Default, Clone)]
struct Disk {
    files: BTreeMap<u64, Vec<u8>>,
}

impl Disk {
    fn execute(&mut self, order: &Order) -> Result<Vec<u8>, String> {
        match order {
            Order::Create { segment, bytes } => {
                self.files.insert(*segment, bytes.to_vec());
            }
            Order::Write { segment, at, bytes } => self.write(*segment, *at, bytes),
            Order::Read {
                segment,
                at,
                length,
            } => {
                let file = self.files.get(segment).ok_or("no such file")?;
                let part = file.get(*at as usize..*at as usize + length);
                return part.map(<[u8]>::to_vec).ok_or("too short".to_owned());
            }

            Order::Delete { segment } => {
                self.files.remove(segment);
            }
        }
        Ok(Vec::new())
    }

    fn write(&mut self, segment: u64, at: u64, bytes: &[u8]) {
        let file = self.files.get_mut(&segment).expect("made before");
        let end = at as usize + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[at as usize..end].copy_from_slice(bytes);
    }

    fn surveys(&self) -> Vec<Survey> {
        let files = self.files.values();
        files
            .filter_map(|file| survey(&mut file.as_slice(), LINK).unwrap())
            .collect()
    }

    /// The bytes of the stream that it holds from `at` on, found as a process that starts finds them.
    fn recovered(&self, at: Offset) -> Option<(Recovered, Vec<u8>)> {
        let found = recover(self.surveys(), at)?;
        let budget = settings(u64::MAX / 2);
        let mut spool = Spool::resumed(budget, &found, at);
        let mut bytes = Vec::new();
        let mut disk = self.clone();
        while !spool.is_empty() {
            spool.pump(at, |_, _| panic!("nothing is missing"));
            while let Some((ticket, order)) = spool.take_order() {
                spool.done(ticket, disk.execute(&order));
            }
            let head = spool.head().to_vec();
            assert!(!head.is_empty(), "{:?}", spool.take_damage());
            spool.take(head.len());
            bytes.extend(head);
        }
        Some((found, bytes))
    }
}

/// What is done to the spool, one after the other.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// The source sends so much.
    Receive(usize),
    /// The lane takes so much of the head.
    Take(usize),
    /// The target answers for this share of what was taken, in percent.
    Acknowledge(u64),
    /// Its record says so, for this share of what it answered for.
    Record(u64),
    /// The disk executes the next order in line, or refuses it.
    Execute {
        refuse: bool,
    },
    /// The disk executes a read out of its turn.
    Read(usize),
    /// A result arrives.
    Tell(usize),
    Tick,
    /// The lane has given up what was taken and not acknowledged.
    Forget,
    /// The source has lost all behind this share of what waits, in percent, and writes something else.
    Lose(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => (1..200_usize).prop_map(Act::Receive),
        3 => (1..200_usize).prop_map(Act::Take),
        1 => (0..=100_u64).prop_map(Act::Acknowledge),
        1 => (0..=100_u64).prop_map(Act::Record),
        6 => (0..10_u8).prop_map(|n| Act::Execute { refuse: n == 0 }),
        2 => (0..4_usize).prop_map(Act::Read),
        6 => (0..4_usize).prop_map(Act::Tell),
        2 => Just(Act::Tick),
        1 => Just(Act::Forget),
        1 => (0..=100_u64).prop_map(Act::Lose),
    ];
    proptest::collection::vec(act, 1..400)
}

/// A spool with its surroundings, and the twin: every byte that was ever received.
struct Rig {
    spool: Spool,
    stream: Vec<u8>,
    taken: u64,
    acknowledged: u64,
    recorded: u64,
    /// The lane still has what was taken from here on.
    kept_from: u64,
    orders: VecDeque<(u64, Order)>,
    results: Vec<(u64, Result<Vec<u8>, String>)>,
    disk: Disk,
    now_ms: u64,
    /// How often the source has lost something.
    histories: u64,
    check_images: bool,
}

impl Rig {
    fn new(limit: u64) -> Self {
        let mut spool = Spool::new(settings(limit));
        spool.set_id(id());
        Self {
            spool,
            stream: Vec::new(),
            taken: START,
            acknowledged: START,
            recorded: START,
            kept_from: START,
            orders: VecDeque::new(),
            results: Vec::new(),
            disk: Disk::default(),
            now_ms: 0,
            histories: 0,
            check_images: false,
        }
    }

    fn end(&self) -> u64 {
        START + self.stream.len() as u64
    }

    fn slice(&self, from: u64, until: u64) -> &[u8] {
        &self.stream[(from - START) as usize..(until - START) as usize]
    }

    /// Gives whether there was room.
    fn receive(&mut self, bytes: usize) -> bool {
        let at = Offset(self.end());
        let Some(space) = self.spool.space() else {
            return false;
        };
        let count = space.len().min(bytes);
        for (index, byte) in space[..count].iter_mut().enumerate() {
            let number = (at.0 + index as u64) ^ self.histories << 40;
            *byte = (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
        }
        let bytes = space[..count].to_vec();
        self.stream.extend(bytes);
        self.spool.received(count, at, at.0);
        true
    }

    fn take(&mut self, bytes: usize) -> usize {
        let head = self.spool.head().to_vec();
        let count = head.len().min(bytes);
        let until = self.taken + count as u64;
        assert_eq!(&head[..count], self.slice(self.taken, until));
        self.spool.take(count);
        self.taken = until;
        count
    }

    fn pump(&mut self) {
        if self.spool.is_active() {
            self.write_on();
        }
        while let Some(order) = self.spool.take_order() {
            self.orders.push_back(order);
        }
    }

    fn write_on(&mut self) {
        let (acknowledged, recorded) = (self.acknowledged, self.recorded);
        self.spool
            .acknowledge(Offset(acknowledged), Offset(recorded));
        let (kept, taken, stream) = (self.kept_from, self.taken, &self.stream);
        self.spool.pump(Offset(kept), |from, room| {
            if from.0 < kept || from.0 >= taken {
                return (0, 0);
            }
            let have = &stream[(from.0 - START) as usize..(taken - START) as usize];
            let count = have.len().min(room.len());
            room[..count].copy_from_slice(&have[..count]);
            (count, from.0)
        });
    }

    fn execute(&mut self, index: usize, refuse: bool) {
        let Some((ticket, order)) = self.orders.remove(index) else {
            return;
        };
        // A read that fails is damage, which has a test of its own; a file that cannot be deleted stays.
        let refuse = refuse && matches!(order, Order::Create { .. } | Order::Write { .. });
        self.look_at_torn(&order);
        let result = match refuse {
            true => Err("no space left".into()),
            false => self.disk.execute(&order),
        };
        self.results.push((ticket, result));
        self.look_at_image(&self.disk);
    }

    /// What a process finds that starts after a write was cut short.
    fn look_at_torn(&self, order: &Order) {
        let (Order::Create { bytes, .. } | Order::Write { bytes, .. }) = order else {
            return;
        };
        for length in [0, 1, 15, 60, 80, 81, bytes.len() - 1] {
            let part = Arc::new(bytes[..length.min(bytes.len())].to_vec());
            let mut torn = order.clone();
            if let Order::Create { bytes, .. } | Order::Write { bytes, .. } = &mut torn {
                *bytes = part;
            }
            let mut disk = self.disk.clone();
            disk.execute(&torn).unwrap();
            self.look_at_image(&disk);
        }
    }

    fn look_at_image(&self, disk: &Disk) {
        if !self.check_images {
            return;
        }
        let at = self.recorded;
        if let Some((found, bytes)) = disk.recovered(Offset(at)) {
            assert!(found.first().0 <= at);
            assert_eq!(found.end().offset.0, at + bytes.len() as u64);
            assert_eq!(bytes, self.slice(at, at + bytes.len() as u64));
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Receive(bytes) => {
                // As a lane does: only what does not fit elsewhere.
                self.receive(bytes);
            }
            Act::Take(bytes) => {
                self.take(bytes);
            }
            Act::Acknowledge(percent) => {
                self.acknowledged += (self.taken - self.acknowledged) * percent / 100;
            }
            Act::Record(percent) => {
                self.recorded += (self.acknowledged - self.recorded) * percent / 100;
                self.kept_from = self.kept_from.max(self.recorded);
            }
            Act::Execute { refuse } => self.execute(0, refuse),
            Act::Read(index) => {
                let reads = self.orders.iter().enumerate();
                let read = reads.filter(|(_, (_, order))| matches!(order, Order::Read { .. }));
                if let Some(index) = read.map(|(index, _)| index).nth(index) {
                    self.execute(index, false);
                }
            }
            Act::Tell(index) => {
                if !self.results.is_empty() {
                    let index = index % self.results.len();
                    let (ticket, result) = self.results.swap_remove(index);
                    self.spool.done(ticket, result);
                }
            }
            Act::Tick => {
                self.now_ms += 600;
                self.spool.tick(self.now_ms);
            }
            Act::Forget => self.kept_from = self.taken,
            // The files then hold what is not of the stream any more.
            Act::Lose(_) if self.check_images => {}
            Act::Lose(percent) => self.lose(percent),
        }
        self.pump();
        self.check();
    }

    fn lose(&mut self, percent: u64) {
        let (begin, end) = (self.taken, self.end());
        let shared = begin + (end - begin) * percent / 100;
        if shared == end {
            return;
        }
        self.spool.cut(Offset(shared));
        let kept = begin + self.spool.bytes();
        assert!((begin..=shared).contains(&kept));
        assert!(shared - kept < settings(0).block_bytes as u64);
        self.stream.truncate((kept - START) as usize);
        self.histories += 1;
        if self.spool.is_empty() {
            // It begins anew, and so does what is told of it.
            self.kept_from = self.taken;
        }
    }

    fn check(&mut self) {
        assert_eq!(self.spool.take_damage(), None);
        assert_eq!(self.spool.bytes(), self.end() - self.taken);
        let memory = self.spool.blocks_in_memory();
        assert!(memory <= 8, "{memory} blocks are in memory");
        let files = self.disk.files.values().map(Vec::len).sum::<usize>() as u64;
        let doomed = self
            .orders
            .iter()
            .any(|(_, order)| matches!(order, Order::Delete { .. }));
        let budget = &self.spool.budget();
        assert!(files <= budget.used() || doomed);
        assert!(budget.used() <= budget.limit());
    }

    /// Everything works again, and all that waits is taken.
    fn drain(&mut self) {
        for _ in 0..100_000 {
            if self.spool.is_empty() {
                break;
            }
            self.act(Act::Execute { refuse: false });
            self.act(Act::Tell(0));
            self.act(Act::Take(usize::MAX));
            self.act(Act::Tick);
        }
        assert_eq!(self.taken, self.end(), "something is stuck");
        self.act(Act::Acknowledge(100));
        self.act(Act::Record(100));
        while !self.orders.is_empty() {
            self.act(Act::Execute { refuse: false });
        }
        assert!(self.disk.files.is_empty(), "all is answered");
        assert_eq!(self.spool.budget().used(), 0);
        assert_eq!(self.spool.state(), State::Empty);
    }

    /// Receives until there is no more room, with a disk that works.
    fn fill(&mut self) {
        while self.receive(50) {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.pump();
        while !self.orders.is_empty() || !self.results.is_empty() {
            self.act(Act::Execute { refuse: false });
            self.act(Act::Tell(0));
        }
    }
}

proptest! {
    #[test]
    fn bytes_come_out_as_they_went_in_whatever_the_disk_does(acts in acts(), limit in 0..4_000_u64) {
        let mut rig = Rig::new(limit);
        acts.iter().for_each(|act| rig.act(*act));
        rig.drain();
    }

    #[test]
    fn after_every_order_and_every_torn_write_a_piece_of_the_stream_is_found(acts in acts()) {
        let mut rig = Rig::new(100_000);
        rig.check_images = true;
        acts.iter().for_each(|act| rig.act(*act));
        rig.drain();
    }

    #[test]
    fn damaged_bytes_end_what_is_found_and_never_come_out(place in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let mut rig = Rig::new(3_000);
        rig.fill();
        let total: usize = rig.disk.files.values().map(Vec::len).sum();
        let mut at = place.index(total);
        for file in rig.disk.files.values_mut() {
            if at < file.len() {
                file[at] ^= flip;
                break;
            }
            at -= file.len();
        }
        let whole = rig.spool.written_until();
        let found = rig.disk.recovered(Offset(START));
        let end = found.as_ref().map_or(START, |(found, _)| found.end().offset.0);
        prop_assert!(end < whole.0, "the damage was not seen");
        if let Some((_, bytes)) = found {
            prop_assert_eq!(&bytes[..], rig.slice(START, end));
        }
        // The running lane meets it too, if it lies in what is read back: it is told, and goes on without the disk.
        while rig.taken < rig.end() && !rig.spool.is_empty() {
            rig.pump();
            while let Some((ticket, order)) = rig.orders.pop_front() {
                let result = rig.disk.execute(&order);
                rig.spool.done(ticket, result);
            }
            if rig.spool.take_damage().is_some() {
                break;
            }
            rig.take(usize::MAX);
        }
        prop_assert!(rig.spool.is_empty());
    }
}

#[test]
fn what_the_lane_had_taken_before_the_disk_was_needed_is_on_disk_too() {
    let mut rig = Rig::new(10_000);
    for _ in 0..4 {
        rig.receive(48);
    }
    rig.take(100);
    rig.fill();
    let (found, bytes) = rig.disk.recovered(Offset(START)).expect("from the start");
    assert_eq!(found.first(), Offset(START));
    assert_eq!(bytes, rig.slice(START, START + bytes.len() as u64));
    let position = |offset| Position {
        id: id(),
        offset: Offset(offset),
    };
    assert!(found.holds(position(START)) && !found.holds(position(START - 1)));
    assert!(
        !found.holds(found.end()),
        "from there on the source is asked"
    );
    let other = ReplicationId::parse(&[b'b'; 40]).unwrap();
    assert!(!found.holds(Position {
        id: other,
        offset: Offset(START)
    }));
    assert_eq!(recover(rig.disk.surveys(), Offset(START - 1)), None);
}

#[test]
fn without_what_was_taken_the_disk_begins_later_and_without_a_gap() {
    let mut rig = Rig::new(10_000);
    rig.receive(48);
    assert_eq!(rig.take(48), 48);
    rig.kept_from = rig.taken;
    rig.fill();
    assert_eq!(recover(rig.disk.surveys(), Offset(START)), None);
    let (_, bytes) = rig
        .disk
        .recovered(Offset(START + 48))
        .expect("from there on");
    assert!(bytes.len() > 500);
}

#[test]
fn a_gap_between_segments_leaves_the_part_that_is_asked_for() {
    let mut rig = Rig::new(10_000);
    rig.fill();
    let middle = *rig.disk.files.keys().nth(5).expect("many segments");
    rig.disk.files.remove(&middle);
    let (before, _) = rig.disk.recovered(Offset(START)).expect("what came before");
    assert_eq!(before.first(), Offset(START));
    let beyond = Offset(rig.spool.written_until().0 - 1);
    let (after, _) = rig.disk.recovered(beyond).expect("what came behind");
    assert!(after.first() > before.end().offset);
    assert_eq!(after.end().offset, rig.spool.written_until());
    assert_eq!(recover(rig.disk.surveys(), before.end().offset), None);
}

#[test]
fn files_of_another_link_and_other_files_are_left_alone() {
    let mut rig = Rig::new(3_000);
    rig.fill();
    let file = rig.disk.files.values().next().unwrap();
    assert!(survey(&mut file.as_slice(), LINK).unwrap().is_some());
    assert!(survey(&mut file.as_slice(), "other").unwrap().is_none());
    assert!(survey(&mut &file[..100], LINK).unwrap().is_none());
    assert!(survey(&mut &[7; 10_000][..], LINK).unwrap().is_none());
}

#[test]
fn a_disk_that_refuses_is_said_and_tried_again() {
    let mut rig = Rig::new(10_000);
    while rig.receive(50) {
        rig.pump();
    }
    rig.act(Act::Execute { refuse: true });
    rig.act(Act::Tell(0));
    assert_eq!(rig.spool.state(), State::Failed);
    let message = rig.spool.message().expect("it is said");
    assert_eq!(
        message,
        "spool: no space left: not reading from the source, retrying"
    );
    for _ in 0..3 {
        rig.act(Act::Tick);
    }
    assert!(!rig.orders.is_empty(), "it is tried again");
    rig.settle();
    assert_eq!(
        (rig.spool.state(), rig.spool.message()),
        (State::Disk, None)
    );
    assert!(rig.receive(1));
    rig.drain();
}

#[test]
fn a_budget_that_is_used_up_is_said_and_comes_back() {
    let mut rig = Rig::new(1_000);
    rig.fill();
    assert_eq!(rig.spool.state(), State::Full);
    assert!(
        rig.spool
            .message()
            .is_some_and(|said| said.contains("--spool-max"))
    );
    rig.drain();
    assert!(rig.receive(1));
}

#[test]
fn a_flush_brings_all_to_disk_the_tail_and_what_was_taken_included() {
    let mut rig = Rig::new(10_000);
    rig.receive(48);
    rig.take(20);
    rig.receive(40);
    assert!(!rig.spool.is_flushed());
    rig.spool.flush(Offset(rig.end()));
    rig.settle();
    assert!(rig.spool.is_flushed());
    let (_, bytes) = rig.disk.recovered(Offset(START)).expect("all of it");
    assert_eq!(bytes, rig.stream);
    // Also when nothing is left to take.
    let mut rig = Rig::new(10_000);
    rig.receive(48);
    rig.take(48);
    rig.spool.flush(Offset(rig.end()));
    rig.settle();
    assert!(rig.spool.is_flushed());
    let (_, bytes) = rig.disk.recovered(Offset(START)).expect("all of it");
    assert_eq!(bytes, rig.stream);
    // Until it is answered and told.
    rig.act(Act::Acknowledge(100));
    assert!(rig.spool.is_active());
    rig.act(Act::Record(100));
    assert!(!rig.spool.is_active());
}

#[test]
fn a_history_that_begins_anew_leaves_nothing() {
    let mut rig = Rig::new(10_000);
    rig.fill();
    rig.spool.clear();
    while let Some((ticket, order)) = rig.spool.take_order() {
        let result = rig.disk.execute(&order);
        rig.spool.done(ticket, result);
    }
    assert!(rig.disk.files.is_empty() && rig.spool.is_empty());
    assert_eq!(rig.spool.budget().used(), 0);
    rig.spool.append(&[1; 5_000], Offset(7), 0);
    assert_eq!((rig.spool.bytes(), rig.spool.end()), (5_000, Offset(5_007)));
}
