//! What is found out about a command: its keys, their slot, its parts by slot. The input is words between spaces.

#![no_main]

use libfuzzer_sys::fuzz_target;
use slotstream::command::{self, SlotOf};
use slotstream::resp::{push_command, scan};
use slotstream::slot::slot_of;

fn keys_of(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let frame = scan(bytes).expect("a command").expect("a whole one");
    let command = command::find(&frame)?;
    let keys = command::keys(&frame, command).ok()?;
    Some(keys.map(<[u8]>::to_vec).collect())
}

fuzz_target!(|data: &[u8]| {
    let words: Vec<&[u8]> = data.split(|byte| *byte == b' ').collect();
    let mut bytes = Vec::new();
    push_command(&mut bytes, &words);
    let frame = scan(&bytes).expect("a command").expect("a whole one");
    assert_eq!(frame.args().collect::<Vec<_>>(), words);
    let _ = command::describe(&frame);
    let _ = command::database_of_select(&frame);
    let _ = command::databases_of_swap(&frame);
    let _ = command::database_of_move(&frame);
    let _ = command::database_of_copy(&frame);
    let Some(command) = command::find(&frame) else {
        return;
    };
    let _ = command::replay(&frame, command);
    let Some(mut keys) = keys_of(&bytes) else {
        assert!(command::one_slot(&frame, command).is_err());
        return;
    };
    let mut slots: Vec<_> = keys.iter().map(|key| slot_of(key)).collect();
    slots.sort();
    slots.dedup();
    let one_slot = command::one_slot(&frame, command).expect("there are keys");
    match slots.as_slice() {
        [] => assert!(matches!(one_slot, SlotOf::None)),
        [slot] => assert!(matches!(one_slot, SlotOf::One(found) if found == *slot)),
        _ => assert!(matches!(one_slot, SlotOf::Several)),
    }
    let mut parts = Vec::new();
    let split = command::split_by_slot(&frame, command, |slot, part| {
        parts.push((slot, part.to_vec()));
    });
    if split.is_err() {
        assert!(parts.is_empty());
        return;
    }
    assert_eq!(
        parts.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(),
        slots
    );
    let mut keys_of_parts = Vec::new();
    for (slot, part) in &parts {
        let keys = keys_of(part).expect("a part is such a command as well");
        assert!(keys.iter().all(|key| slot_of(key) == *slot));
        keys_of_parts.extend(keys);
    }
    keys.sort();
    keys_of_parts.sort();
    assert_eq!(keys, keys_of_parts);
});
