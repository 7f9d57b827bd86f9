//! The scanner of commands against its naive twin, on the bytes and on what has arrived of them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use slotstream::resp::scan;
use slotstream_fuzz::dice;
use slotstream_fuzz::naive::naive_scan;

fuzz_target!(|data: &[u8]| {
    let ours = scan(data);
    let told = ours.map_err(|_| ()).map(|frame| {
        frame.map(|frame| {
            let args: Vec<Vec<u8>> = frame.args().map(<[u8]>::to_vec).collect();
            assert_eq!(args.len(), frame.argc());
            assert_eq!(args[0], frame.verb());
            for (at, arg) in args.iter().enumerate() {
                assert_eq!(frame.arg(at), Some(arg.as_slice()));
            }
            (frame.bytes().len(), args)
        })
    });
    match naive_scan(data) {
        Ok(expected) => assert_eq!(told, Ok(expected)),
        // A length with more digits than the twin reads is out of the bounds of one or the other.
        Err(()) => assert!(!matches!(told, Ok(Some(_)))),
    }
    let mut dice = dice(data);
    for _ in 0..4 {
        let end = dice.below(data.len() + 1);
        match (scan(&data[..end]), ours) {
            (Ok(Some(early)), Ok(Some(frame))) => assert_eq!(early.bytes(), frame.bytes()),
            (Ok(None), Ok(Some(frame))) => assert!(end < frame.bytes().len()),
            (Ok(None), _) => {}
            (Err(early), Err(error)) => assert_eq!(early, error),
            (early, ours) => panic!("{early:?} of a beginning, {ours:?} of the whole"),
        }
    }
});
