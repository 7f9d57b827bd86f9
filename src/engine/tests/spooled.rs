//! A lane that goes on with what a former process left on disk.

use std::collections::BTreeMap;

use super::super::Spooled;
use super::super::status::ResumeStep;
use super::*;
use crate::checkpoint::Resume;
use crate::position::{Offset, Position, ReplicationId};
use crate::spool::{Order, Spool, Survey, survey};

const RECEIVED_MS: u64 = 1_000_000_000;
const FROM: u64 = 100;

/// Files in memory.
#[derive(Default)]
struct Files(BTreeMap<u64, Vec<u8>>);

impl Files {
    fn execute(&mut self, order: Order) -> Vec<u8> {
        match order {
            Order::Create { segment, bytes } => {
                self.0.insert(segment, bytes.to_vec());
            }
            Order::Write { segment, bytes, .. } => {
                let file = self.0.get_mut(&segment).expect("made before");
                file.extend_from_slice(&bytes);
            }
            Order::Read {
                segment,
                at,
                length,
            } => return self.0[&segment][at as usize..][..length].to_vec(),
            Order::Delete { segment } => {
                self.0.remove(&segment);
            }
        }
        Vec::new()
    }

    fn surveys(&self) -> Vec<Survey> {
        let files = self.0.values();
        files
            .filter_map(|file| survey(&mut file.as_slice(), "l").unwrap())
            .collect()
    }

    /// What a process leaves that received this.
    fn left_by(stream: &[u8]) -> Self {
        let mut files = Files::default();
        let mut spool = Spool::new(config().spool);
        spool.set_id(id(ID));
        spool.append(stream, Offset(FROM), RECEIVED_MS);
        spool.flush(spool.end());
        while !spool.is_written() {
            spool.pump(Offset(FROM), |_, _| (0, 0));
            while let Some((ticket, order)) = spool.take_order() {
                let result = files.execute(order);
                spool.done(ticket, Ok(result));
            }
        }
        files
    }
}

fn id(text: &str) -> ReplicationId {
    ReplicationId::parse(text.as_bytes()).unwrap()
}

fn resume_at(offset: u64, id: ReplicationId, predecessor: Option<Position>) -> Resume {
    Resume {
        generation: GENERATION,
        position: Position {
            id,
            offset: Offset(offset),
        },
        predecessor,
        database: 0,
        high: Offset(offset),
        former: None,
        passed: BTreeMap::new(),
        owned: SlotSet::new(),
        recopy: SlotSet::new(),
        foreign: SlotSet::new(),
        owed: BTreeMap::new(),
        exclusive: true,
        held: true,
        leases: false,
    }
}

/// A lane that begins with these files, `past` bytes behind their first, its targets connected.
fn begun(files: &Files, past: usize) -> Rig {
    let resume = resume_at(FROM + past as u64, id(ID), None);
    let spooled = Spooled::from(&resume, files.surveys());
    assert!(spooled.is_some());
    let config = LaneConfig {
        resume: Some(resume),
        spooled,
        ..config()
    };
    let mut rig = Rig::with(config, cluster(&["x"]));
    rig.lane.set_wall_clock(2_000_000_000);
    rig.connect_targets();
    rig
}

impl Rig {
    fn serve_disk(&mut self, files: &mut Files) {
        self.lane.advance().unwrap();
        while let Some((ticket, order)) = self.lane.take_spool_order() {
            let result = files.execute(order);
            self.lane.spool_done(ticket, Ok(result)).unwrap();
            self.lane.advance().unwrap();
        }
    }
}

#[test]
fn what_is_spooled_goes_out_once_the_source_goes_on_behind_it() {
    let first = command("SET a 1");
    let stream = [first.clone(), commands(&["SET a 2", "SET a 3"])].concat();
    let mut files = Files::left_by(&stream);
    let mut rig = begun(&files, first.len());
    rig.serve_disk(&mut files);
    assert_eq!(rig.sent(0), b"", "the source may have lost it");
    rig.greet_again();
    let end = FROM + stream.len() as u64;
    let wanted = command(&format!("PSYNC {ID} {}", end + 1));
    assert!(rig.lane.source_output().ends_with(&wanted));
    rig.hear(b"+CONTINUE\r\n");
    rig.hear(&command("SET a 4"));
    rig.serve_disk(&mut files);
    let expected = commands(&["SET a 2", "SET a 3", "SET a 4"]);
    assert_eq!(rig.sent(0), expected);
    let (step, why) = rig.lane.status.resume().expect("told");
    assert_eq!(step, ResumeStep::Spool);
    let begin = FROM + first.len() as u64;
    assert!(
        why.contains(&format!("{begin}")) && why.contains(&format!("{end}")),
        "{why}"
    );
    rig.reply(0, b"+OK\r\n+OK\r\n+OK\r\n");
    rig.serve_disk(&mut files);
    assert!(files.0.is_empty());
}

#[test]
fn relative_times_count_from_when_the_former_process_received_them() {
    let mut files = Files::left_by(&command("EXPIRE a 5000000"));
    let mut rig = begun(&files, 0);
    rig.greet_again();
    rig.hear(b"+CONTINUE\r\n");
    rig.serve_disk(&mut files);
    let at = RECEIVED_MS + 5_000_000_000;
    assert_eq!(rig.sent(0), command(&format!("PEXPIREAT a {at}")));
}

#[test]
fn a_source_that_does_not_go_on_behind_the_spool_gets_nothing_of_it_to_the_target() {
    let mut files = Files::left_by(&command("SET a 1"));
    let mut rig = begun(&files, 0);
    rig.greet_again();
    let other = ID.replace('0', "f");
    rig.hear(format!("+FULLRESYNC {other} 7\r\n").as_bytes());
    rig.serve_disk(&mut files);
    assert_eq!(rig.sent(0), b"");
    assert!(files.0.is_empty(), "nobody will need it");
    let (step, _) = rig.lane.status.resume().expect("told");
    assert_eq!(step, ResumeStep::FullCopy);
}

#[test]
fn a_spool_serves_the_histories_that_it_led_to_and_no_others() {
    let stream = commands(&["SET a 1", "SET a 2"]);
    let files = Files::left_by(&stream);
    let end = FROM + stream.len() as u64;
    let (own, other) = (id(ID), id(&ID.replace('0', "f")));
    let left_at = |offset| {
        Some(Position {
            id: own,
            offset: Offset(offset),
        })
    };
    let taken = |offset, id, predecessor| {
        let resume = resume_at(offset, id, predecessor);
        Spooled::from(&resume, files.surveys()).map(|spooled| spooled.id)
    };
    assert_eq!(taken(FROM, own, None), Some(own));
    assert_eq!(taken(end - 1, own, None), Some(own));
    assert_eq!(taken(end, own, None), None, "nothing of it is needed");
    assert_eq!(taken(FROM - 1, own, None), None, "something is missing");
    assert_eq!(taken(FROM, other, None), None);
    assert_eq!(taken(FROM, other, left_at(end)), Some(other));
    assert_eq!(
        taken(FROM, other, left_at(end - 1)),
        None,
        "its end was lost"
    );
}
