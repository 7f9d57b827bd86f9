//! Each rule of recovery, against the sequence of events that breaks a simpler one. Records travel as in `recovery`'s
//! documentation: `A`, `B`, `C` are masters, `A2` the replica that took `A`'s place.

use super::*;
use crate::position::{Offset, Position, ReplicationId};
use crate::slot::{Slot, SlotSet};

const OLD: Generation = Generation {
    epoch: 1,
    number: 4,
};
const NEW: Generation = Generation {
    epoch: 2,
    number: 0,
};

fn id(letter: char) -> ReplicationId {
    ReplicationId::parse(&[letter as u8; 40]).expect("valid")
}

fn slots(text: &str) -> SlotSet {
    text.parse().expect("slots")
}

/// What one master holds: written to `node`, in the hash of slot `key`.
fn found(held_by: &str, key: Slot, node: &str, listed: &str, acked: u64) -> Found {
    Found {
        held_by: held_by.to_owned(),
        slot: key,
        generation: NEW,
        record: Record {
            state: State::Streaming,
            node: node.to_owned(),
            position: Position {
                id: id('a'),
                offset: Offset(acked),
            },
            predecessor: None,
            database: 0,
            high: Offset(acked + 1_000),
            slots: slots(listed),
            watermarks: SlotSet::new(),
            former: None,
            exclusive: true,
            held: true,
            leases: false,
        },
    }
}

/// A's and B's halves of four slots.
fn halves() -> Vec<Found> {
    vec![found("A", 0, "A", "0-1", 50), found("B", 2, "B", "2-3", 40)]
}

fn bookkeeping(records: Vec<Found>) -> Bookkeeping {
    Bookkeeping {
        epoch: 3,
        records,
        ..Bookkeeping::default()
    }
}

/// Begins with the slots 0 to 3, owned by `owners`.
fn start(bookkeeping: &Bookkeeping, owners: [&str; 4]) -> Start {
    let owner = |slot: Slot| owners.get(usize::from(slot)).copied();
    bookkeeping.start(&slots("0-3"), owner, false, &[])
}

fn resumed(bookkeeping: &Bookkeeping, owners: [&str; 4]) -> Resume {
    match start(bookkeeping, owners) {
        Start::Resume(resume) => *resume,
        other => panic!("{other:?}"),
    }
}

fn must_copy(bookkeeping: &Bookkeeping, owners: [&str; 4], because: CopyReason) {
    match start(bookkeeping, owners) {
        Start::Copy { why, .. } => assert_eq!(why, because),
        other => panic!("{other:?}, not {because:?}"),
    }
}

const AABB: [&str; 4] = ["A", "A", "B", "B"];

fn with(change: impl FnOnce(&mut Vec<Found>)) -> Bookkeeping {
    let mut records = halves();
    change(&mut records);
    bookkeeping(records)
}

fn mark(bookkeeping: &mut Bookkeeping, slot: Slot, generation: Generation, offset: u64) {
    let offset = Offset(offset);
    let watermark = Watermark { generation, offset };
    bookkeeping.watermarks.insert(slot, watermark);
}

#[test]
fn without_a_record_of_its_slots_a_lane_begins_for_the_first_time() {
    let others = bookkeeping(vec![found("A", 0, "A", "4-9", 50)]);
    assert_eq!(start(&others, AABB), Start::First);
}

#[test]
fn the_slot_that_is_furthest_behind_decides_and_flags_are_the_careful_ones() {
    let mut both = with(|records| {
        records[1].record.database = 7;
        records[0].record.leases = true;
        records[1].record.exclusive = false;
    });
    let resume = resumed(&both, AABB);
    assert_eq!((resume.position.offset, resume.database), (Offset(40), 7));
    assert_eq!((resume.high, resume.generation), (Offset(1_050), NEW));
    assert!(resume.leases && !resume.exclusive);
    both.records[1].record.state = State::Copying;
    let Start::Copy { exclusive, .. } = start(&both, AABB) else {
        panic!("it was interrupted");
    };
    assert!(!exclusive);
}

#[test]
fn a_promoted_replica_speaks_with_its_masters_record() {
    let resume = resumed(&bookkeeping(halves()), AABB);
    let promoted = with(|records| records[0].held_by = "A2".into());
    assert_eq!(resumed(&promoted, ["A2", "A2", "B", "B"]), resume);
}

/// The slot of A's record moves to B; A goes on under another key.
#[test]
fn a_record_that_moved_away_does_not_hold_its_former_master_back() {
    let moved = with(|records| {
        records.push(found("B", 0, "A", "0-1", 10));
        records[0] = found("A", 1, "A", "1", 50);
        records[1] = found("B", 2, "B", "0,2-3", 40);
    });
    let owners = ["B", "A", "B", "B"];
    assert_eq!(resumed(&moved, owners).position.offset, Offset(40));
}

/// The slot of A's record (at 90) moves to B, A fails over without what it applied behind 30, its other slot moves to B too.
#[test]
fn a_record_that_moved_away_before_its_master_lost_writes_is_not_believed_alone() {
    let lost = with(|records| {
        records.push(found("B", 0, "A", "0-1", 90));
        records[0] = found("C", 7, "A", "0-1", 30);
    });
    let owners = ["C", "B", "B", "B"];
    assert_eq!(resumed(&lost, owners).position.offset, Offset(30));
}

/// The slots of A's and of B's record change places, A fails over, its other slot moves to B.
#[test]
fn a_master_whose_own_record_moved_away_did_not_take_anothers_place() {
    let swapped = with(|records| {
        records[0].held_by = "B".into();
        records[1].held_by = "C".into();
    });
    let owners = ["B", "B", "C", "B"];
    must_copy(&swapped, owners, CopyReason::SlotWithoutRecord(0));
}

#[test]
fn a_slot_that_moved_while_nobody_wrote_is_spoken_for_by_its_former_owner() {
    let resume = resumed(&bookkeeping(halves()), ["A", "B", "B", "B"]);
    assert_eq!(resume.position.offset, Offset(40));
    // To a master that was added for it, too.
    let resume = resumed(&bookkeeping(halves()), ["A", "C", "B", "B"]);
    assert_eq!(resume.position.offset, Offset(40));
    // Its former owner is gone: it may have been replaced and have lost writes before the slot moved.
    must_copy(
        &bookkeeping(halves()),
        ["C", "B", "B", "B"],
        CopyReason::SlotWithoutRecord(0),
    );
}

/// The slot of A's record moves to a new master, A fails over: which of the two took A's place?
#[test]
fn a_record_of_a_master_that_was_replaced_does_not_speak_when_two_may_have_taken_its_place() {
    let moved = with(|records| records[0].held_by = "N".into());
    must_copy(
        &moved,
        ["N", "A2", "B", "B"],
        CopyReason::SlotWithoutRecord(0),
    );
    // A promoted replica that also holds the record of another one.
    let both = with(|records| {
        records[0].held_by = "N".into();
        records[1].held_by = "N".into();
    });
    must_copy(&both, ["N"; 4], CopyReason::SlotWithoutRecord(0));
}

/// The slot of A's record moves to B, then A fails over: nobody knows what the replica had, nor when slot 0 moved.
#[test]
fn a_record_of_a_master_that_was_replaced_does_not_speak_for_its_replica() {
    let lost = with(|records| records[0].held_by = "B".into());
    let owners = ["B", "A2", "B", "B"];
    must_copy(&lost, owners, CopyReason::SlotWithoutRecord(0));
}

/// All slots go to a new master C, in the generation of a new copy, and come back; A still has its record from before.
#[test]
fn a_record_from_before_the_last_copy_does_not_speak_although_the_owner_holds_it() {
    let older = with(|records| {
        for found in records.iter_mut() {
            found.generation = OLD;
        }
        records.push(found("C", 9, "C", "0-3", 70));
    });
    let resume = resumed(&older, ["A", "A", "C", "C"]);
    assert_eq!(
        (resume.generation, resume.position.offset),
        (NEW, Offset(70))
    );
}

#[test]
fn a_copy_that_was_interrupted_on_one_master_is_made_again() {
    let interrupted = with(|records| records[0].record.state = State::Copying);
    must_copy(&interrupted, AABB, CopyReason::CopyInterrupted);
}

#[test]
fn a_slot_that_no_record_lists_is_not_left_out() {
    let silent = with(|records| records[1].record.slots = slots("2"));
    must_copy(&silent, AABB, CopyReason::SlotWithoutRecord(3));
}

/// The source lost writes at its failover, the lane went on in a new generation, and ended before every record said so.
#[test]
fn an_older_generation_counts_as_far_as_both_histories_are_the_same() {
    let former = |until| {
        let generation = OLD;
        let until = Offset(until);
        Some(Former { generation, until })
    };
    let mut two = with(|records| {
        records[0].record.former = former(45);
        records[1].generation = OLD;
        records[1].record.high = Offset(45);
    });
    let resume = resumed(&two, AABB);
    assert_eq!((resume.generation, resume.former), (NEW, former(45)));
    assert_eq!(resume.position.offset, Offset(40));
    // Something may have been sent that the source lost.
    two.records[1].record.high = Offset(46);
    must_copy(&two, AABB, CopyReason::DifferentGenerations);
    two.records[1].record.high = Offset(44);
    two.records[0].record.former = former(43);
    must_copy(&two, AABB, CopyReason::DifferentGenerations);
    two.records[0].record.former = None;
    must_copy(&two, AABB, CopyReason::DifferentGenerations);
}

/// The source failed over twice; one master's record was written before each.
#[test]
fn histories_that_led_to_each_other_are_one() {
    let before = |letter, offset| {
        let (id, offset) = (id(letter), Offset(offset));
        Some(Position { id, offset })
    };
    let mut three = with(|records| {
        records[0].record.position.id = id('c');
        records[0].record.predecessor = before('b', 48);
        records[1].record.position.id = id('b');
        records[1].record.predecessor = before('a', 39);
        records[1].record.slots = slots("2");
        records.push(found("C", 3, "C", "3", 39));
    });
    let owners = ["A", "A", "B", "C"];
    let resume = resumed(&three, owners);
    assert_eq!(
        (resume.position.id, resume.position.offset),
        (id('c'), Offset(39))
    );
    assert_eq!(resume.predecessor, before('b', 48));
    // Behind the end of its history: the source never had that.
    three.records[2].record.position.offset = Offset(40);
    must_copy(&three, owners, CopyReason::DifferentHistories);
    three.records[2].record.position = Position {
        id: id('d'),
        offset: Offset(1),
    };
    must_copy(&three, owners, CopyReason::DifferentHistories);
}

#[test]
fn watermarks_say_what_to_skip() {
    let mut marked = with(|records| {
        records[0].record.watermarks = slots("0");
        records[0].record.former = Some(Former {
            generation: OLD,
            until: Offset(44),
        });
    });
    mark(&mut marked, 0, NEW, 61);
    // Written after the record: not named in it.
    mark(&mut marked, 1, NEW, 62);
    // In a history that ends before.
    mark(&mut marked, 2, OLD, 60);
    // Of a copy before.
    mark(&mut marked, 3, Generation::default(), 63);
    // Of another lane.
    mark(
        &mut marked,
        9,
        Generation {
            epoch: 9,
            number: 9,
        },
        64,
    );
    let resume = resumed(&marked, AABB);
    let passed = [(0, Offset(61)), (1, Offset(62)), (2, Offset(44))];
    assert_eq!(resume.passed.into_iter().collect::<Vec<_>>(), passed);
    assert_eq!(resume.owned, slots("0-2"));
    // What is applied everywhere need not be skipped.
    mark(&mut marked, 1, NEW, 40);
    let resume = resumed(&marked, AABB);
    assert!(!resume.passed.contains_key(&1) && resume.owned.contains(1));
}

#[test]
fn keys_that_a_watermark_does_not_speak_for_are_handed_on_if_it_counts() {
    let mut both = bookkeeping(halves());
    let owed = Owed::Keys(vec![(0, b"k".to_vec())]);
    for (slot, generation) in [(1, NEW), (2, Generation::default())] {
        let watermark = Watermark {
            generation,
            offset: Offset(60),
        };
        let owed = Some(owed.clone());
        both.found_mark(slot, Mark { watermark, owed });
    }
    let resume = resumed(&both, AABB);
    let passed: Vec<_> = resume.passed.into_iter().collect();
    assert_eq!(passed, [(1, Offset(60))]);
    assert_eq!(resume.owed.into_iter().collect::<Vec<_>>(), [(1, owed)]);
}

/// The target evicted a watermark, or lost a slot and its record's holder did not.
#[test]
fn a_watermark_that_a_record_names_must_be_there() {
    let mut marked = with(|records| records[0].record.watermarks = slots("0,2"));
    // A's record does not speak for slot 2.
    must_copy(&marked, AABB, CopyReason::WatermarkLost(0));
    mark(&mut marked, 0, OLD, 61);
    must_copy(&marked, AABB, CopyReason::WatermarkLost(0));
    marked.records[0].record.former = Some(Former {
        generation: OLD,
        until: Offset(10),
    });
    assert!(resumed(&marked, AABB).passed.is_empty());
}

/// A copy begins, its first writes to slot 2 move with it to B, and A fails over without the record.
#[test]
fn a_watermark_ahead_of_every_record_means_that_a_record_was_lost() {
    let mut ahead = bookkeeping(halves());
    mark(
        &mut ahead,
        2,
        Generation {
            epoch: 2,
            number: 1,
        },
        5,
    );
    must_copy(&ahead, AABB, CopyReason::SlotWithoutRecord(2));
}

/// Slot 3 came from another source master, or is another's data by now.
#[test]
fn a_slot_that_the_lanes_newest_generation_does_not_speak_for_is_copied_by_itself() {
    let owner = |slot: Slot| AABB.get(usize::from(slot)).copied();
    let start = |bookkeeping: &Bookkeeping| {
        let known = [bookkeeping.records[0].record.position.id];
        bookkeeping.start(&slots("0-3"), owner, false, &known)
    };
    let recopied = |bookkeeping: &Bookkeeping| match start(bookkeeping) {
        Start::Resume(resume) => resume.recopy.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(recopied(&bookkeeping(halves())), "");
    let silent = with(|records| records[1].record.slots = slots("2"));
    assert_eq!(recopied(&silent), "3");
    let mut ahead = bookkeeping(halves());
    let nobodys = Generation {
        epoch: 9,
        number: 9,
    };
    mark(&mut ahead, 3, nobodys, 0);
    assert_eq!(recopied(&ahead), "3");
    // Half of them are too many.
    mark(&mut ahead, 2, nobodys, 0);
    assert!(matches!(start(&ahead), Start::Copy { .. }));
    // What an older generation of the same history says is void, even where nothing newer speaks for a slot.
    let two = with(|records| {
        records[0].record.slots = slots("0-2");
        records[1].generation = OLD;
        records[1].record.slots = slots("3");
    });
    assert_eq!(recopied(&two), "3");
}

#[test]
fn a_lane_has_to_leave_what_its_records_list_beyond_its_slots() {
    let both = bookkeeping(halves());
    let owner = |slot: Slot| AABB.get(usize::from(slot)).copied();
    let foreign = |known: &[ReplicationId]| match both.start(&slots("0-2"), owner, false, known) {
        Start::Resume(resume) => resume.foreign.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(foreign(&[both.records[0].record.position.id]), "3");
    assert_eq!(foreign(&[]), "", "they may be another lane's");
}

#[test]
fn a_single_server_keeps_one_record_and_one_watermark_for_each_lane() {
    let mut both = with(|records| {
        records[1].generation = Generation {
            epoch: 2,
            number: 1,
        };
        for found in records.iter_mut() {
            found.held_by = "single".into();
            found.record.node = "10.0.0.1:6379".into();
            found.slot = 0;
        }
        records[0].record.watermarks = slots("0");
        records[1].record.watermarks = slots("0");
    });
    let start = |bookkeeping: &Bookkeeping, text| {
        bookkeeping.start(&slots(text), |_| Some("single"), true, &[])
    };
    let lost = CopyReason::WatermarkLost(0);
    let (exclusive, held) = (true, true);
    let why = lost;
    assert_eq!(
        start(&both, "0-1"),
        Start::Copy {
            why,
            exclusive,
            held
        }
    );
    mark(&mut both, 0, NEW, 55);
    mark(
        &mut both,
        2,
        Generation {
            epoch: 2,
            number: 1,
        },
        66,
    );
    for (text, offset, passed) in [("0-1", 50, 55), ("2-3", 40, 66)] {
        let Start::Resume(resume) = start(&both, text) else {
            panic!("{text} is known");
        };
        assert_eq!(resume.position.offset, Offset(offset));
        let passed = [(0, Offset(passed))];
        assert_eq!(resume.passed.into_iter().collect::<Vec<_>>(), passed);
        assert_eq!(resume.owned, slots("0"));
    }
    // Slots of the source changed lanes meanwhile.
    let why = CopyReason::DifferentGenerations;
    assert_eq!(
        start(&both, "1-2"),
        Start::Copy {
            why,
            exclusive,
            held
        }
    );
}

#[test]
fn a_generation_is_superseded_when_all_that_it_lists_has_newer_records_where_it_is() {
    let gone = |bookkeeping: &Bookkeeping, owners: [&'static str; 4]| {
        bookkeeping.superseded(|slot| owners.get(usize::from(slot)).copied())
    };
    let mut older = with(|records| {
        let mut before = found("A", 0, "A", "0-2", 5);
        before.generation = OLD;
        records.push(before);
    });
    assert_eq!(gone(&older, AABB), [(0, OLD)]);
    // Slot 2 is not with its newer record any more.
    assert_eq!(gone(&older, ["A", "A", "A", "B"]), []);
    // Another record of the generation is needed, and this one tells that A is no replica that took a place.
    let mut needed = found("B", 9, "B", "9", 5);
    needed.generation = OLD;
    older.records.push(needed);
    assert_eq!(gone(&older, AABB), []);
}

#[test]
fn every_reason_is_a_half_sentence_for_the_log() {
    let reasons = [
        CopyReason::CopyInterrupted,
        CopyReason::SlotWithoutRecord(7),
        CopyReason::DifferentGenerations,
        CopyReason::DifferentHistories,
        CopyReason::WatermarkLost(7),
        CopyReason::WatermarkAhead(7),
    ];
    let texts: std::collections::BTreeSet<String> =
        reasons.iter().map(CopyReason::to_string).collect();
    assert_eq!(texts.len(), reasons.len());
    assert_eq!(
        CopyReason::CopyInterrupted.to_string(),
        "the copy was interrupted"
    );
}
