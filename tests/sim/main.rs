//! The simulation: one lane between a simulated source master and a simulated target cluster, on virtual time.
//!
//! Everything follows from a seed. `cargo test --test sim` runs a few hundred seeds and the named sequences;
//! `SIM_SEEDS=10000` runs more of them (`SIM_FROM=5000` others), `SIM_SEED=17` runs one, with the last `SIM_EVENTS` events. A seed that fails is run again with its events kept, and
//! these are printed with the command that replays it.
//!
//! | file | part |
//! |---|---|
//! | `model`, `rdb` | data, commands on it, snapshots of it |
//! | `source` | the source master: stream, backlog, handshake |
//! | `cluster` | target masters: redirects, refusals, slots that move |
//! | `world`, `turn` | network, clock, and the lane's turns |
//! | `tracker` | what is checked while a run goes |
//! | `restart` | processes and masters that die and come again |
//! | `rival` | two processes for one link |
//! | `workload`, `chaos` | what a seed makes happen |
//! | `mends` | the same with keys that somebody breaks at the target |
//! | `disk` | the disk below the lane's spool |
//! | `deadlines` | keys that end, by a seed and by name |
//! | `moves` | slots of the source that change owner: several lanes, by a seed and by name |
//! | `sequences`, `spooling`, `exactly_once` | named sequences of events |

mod chaos;
mod cluster;
mod deadlines;
mod disk;
mod exactly_once;
mod mends;
mod model;
mod moves;
mod rdb;
mod restart;
mod rewinds;
mod rival;
mod rng;
mod sequences;
mod source;
mod spooling;
mod trace;
mod tracker;
mod turn;
mod workload;
mod world;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;
use std::sync::atomic::Ordering::Relaxed;

use world::Used;

/// How many seeds run unless `SIM_SEEDS` says otherwise.
const SEEDS: u64 = 300;

/// The same for runs with several lanes.
const SEEDS_OF_MOVES: u64 = 80;

/// How many failed seeds are named.
const NAMED_FAILURES: usize = 20;

thread_local! {
    /// What the panic of the seed that runs on this thread said, while seeds run.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")),
    )
}

/// Keeps what the panics of failed seeds say, instead of printing each with its stack; others print as ever.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |panic| {
            let kept =
                PANIC.with_borrow_mut(|kept| kept.as_mut().map(|kept| *kept = panic.to_string()));
            if kept.is_none() {
                print(panic);
            }
        }));
    });
}

/// Runs one seed; gives what it made of the disk, or why it failed.
fn outcome(run: fn(u64) -> Used, seed: u64) -> Result<Used, String> {
    keep_panics();
    PANIC.set(Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(|| run(seed)));
    let said = PANIC.take();
    result.map_err(|_| said.unwrap_or_default())
}

/// Runs a failed seed again and shows what happened.
fn show(run: fn(u64) -> Used, seed: u64) {
    trace::start();
    let repeated = outcome(run, seed).err();
    let events = trace::take();
    eprintln!("\nthe last {} events of seed {seed}:", events.len());
    events.iter().for_each(|event| eprintln!("{event}"));
    match repeated {
        Some(why) => eprintln!("{why}"),
        None => eprintln!("seed {seed} did not fail a second time: something is left to chance"),
    }
}

#[test]
fn source_and_target_are_equal_whatever_a_seed_makes_happen() {
    if let Some(used) = run_seeds(chaos::run, "source_and_target", SEEDS) {
        assert!(used.blocks > 0, "no seed has used the disk");
        assert!(used.taken_up > 0, "no seed has gone on with what was there");
        assert!(used.mended > 0, "no source has lost what was handed over");
        let rivals = rival::RIVALS.load(Relaxed);
        assert!(
            rivals > 0,
            "no process has met the one that took its link over"
        );
    }
}

#[test]
fn what_differs_is_mended_whatever_a_seed_makes_happen_besides() {
    run_seeds(mends::run, "mended", SEEDS);
}

#[test]
fn keys_end_as_at_the_source_whatever_a_seed_makes_happen() {
    run_seeds(deadlines::run, "keys_end", SEEDS);
}

#[test]
fn slots_of_the_source_move_whatever_a_seed_makes_happen() {
    if run_seeds(moves::chaos::run, "slots_of_the_source", SEEDS_OF_MOVES).is_some() {
        let copied = moves::chaos::COPIED.load(Relaxed);
        assert!(copied > 0, "no slot was copied from its new owner");
    }
}

/// `name`: what the test that runs them can be told by. `count`: how many there are, if nobody says. Gives what
/// they made of the disk, if it were many.
fn run_seeds(run: fn(u64) -> Used, name: &str, count: u64) -> Option<Used> {
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("SIM_FROM").unwrap_or(1);
            first..first + number("SIM_SEEDS").unwrap_or(count)
        }
    };
    let mut all = Used::default();
    // Some hundred others may lack something that is looked for.
    let many = seeds.start == 1 && seeds.end > count;
    let failed: Vec<(u64, String)> = seeds
        .filter_map(|seed| match outcome(run, seed) {
            Ok(used) => {
                all.blocks += used.blocks;
                all.taken_up += used.taken_up;
                all.mended += used.mended;
                None
            }
            Err(why) => Some((seed, why)),
        })
        .take(NAMED_FAILURES)
        .collect();
    let Some((first, _)) = failed.first() else {
        return many.then_some(all);
    };
    show(run, *first);
    for (seed, why) in &failed {
        eprintln!("seed {seed}: {}", why.replace('\n', " "));
    }
    panic!("seed {first} failed; replay with: SIM_SEED={first} cargo test --test sim {name}");
}
