//! `slotstream rdb`: looks into snapshot files, turns them into JSON or commands, checks them, writes them into a deployment.
//!
//! ```text
//! Input -> rdb::Decoder -> Filter -> Visitor: Summary | JsonWriter | CommandsWriter | Check | Importer
//! ```
//!
//! One thread, plain reads, memory bounded by the largest single element. A snapshot that is cut short or broken is read as
//! far as it goes: what was read is printed, and the message names the byte and the last whole key.

pub mod args;
mod commands;
mod filter;
mod glob;
mod import;
pub mod input;
pub mod json;
mod output;
mod progress;
mod summary;
mod table;
mod text;

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use args::{ImportOptions, Mode, RdbArgs, RdbOptions};
use commands::CommandsWriter;
use input::{Ending, Input, Scan, Stop, Visitor};
use json::JsonWriter;
use progress::Progress;
use summary::{Summary, headline};

use crate::fault::Fault;
use crate::rdb::{Form, Item, Options};

/// Runs one mode over one snapshot.
pub fn run(args: RdbArgs) -> Result<(), Fault> {
    let options = args.options(|name| std::env::var(name).ok())?;
    let mut input = Input::open(&options.file)?;
    let result = match &options.mode {
        Mode::Summary => summarise(&options, &mut input),
        Mode::Json => write_json(&options, &mut input),
        Mode::Commands { payloads } => write_commands(&options, &mut input, *payloads),
        Mode::Check => check(&options, &mut input),
        Mode::Import(target) => import_into(&options, target, &mut input),
    };
    match result {
        Ok(scan) => finish(&input, &scan),
        Err(Stop::Fault(fault)) => Err(fault),
        Err(Stop::OutputClosed) => Ok(()),
    }
}

/// Says what is odd about the end of the snapshot.
fn finish(input: &Input, scan: &Scan) -> Result<(), Fault> {
    if let Some(fault) = scan.fault(&input.name) {
        return Err(fault);
    }
    if matches!(
        scan.ending,
        Ending::Whole {
            is_followed: true,
            ..
        }
    ) {
        note(&format!(
            "the snapshot ends at byte {}, what follows it was not read (an append-only file?)",
            scan.bytes
        ));
    }
    Ok(())
}

/// A line on standard error.
fn note(text: &str) {
    // Whoever closed it does not want to know.
    let _ = writeln!(std::io::stderr(), "slotstream: {text}");
}

/// Reads all of the snapshot with the progress line on.
fn read(
    options: &RdbOptions,
    input: &mut Input,
    reading: Options,
    prints: bool,
    visitor: &mut impl Visitor,
) -> Result<Scan, Stop> {
    let mut progress = Progress::new(input.total_bytes, prints);
    let scan = input.scan(reading, &options.filter, visitor, &mut progress);
    progress.finish();
    scan
}

fn print(text: &str) -> Result<(), Stop> {
    let mut output = output::Output::new();
    output.buffer.extend_from_slice(text.as_bytes());
    output.flush()
}

fn summarise(options: &RdbOptions, input: &mut Input) -> Result<Scan, Stop> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ms = now.map_or(0, |now| now.as_millis() as u64);
    let mut summary = Summary::new(options.top, now_ms);
    let scan = read(
        options,
        input,
        Options::without_target(Form::Stored),
        false,
        &mut summary,
    )?;
    print(&summary.text(&input.name, &scan))?;
    Ok(scan)
}

fn write_json(options: &RdbOptions, input: &mut Input) -> Result<Scan, Stop> {
    let mut writer = JsonWriter::new();
    let reading = Options::without_target(Form::Elements).with_whole_texts();
    let scan = read(options, input, reading, true, &mut writer)?;
    writer.finish()?;
    Ok(scan)
}

fn write_commands(options: &RdbOptions, input: &mut Input, payloads: bool) -> Result<Scan, Stop> {
    let mut writer = CommandsWriter::new();
    let form = match payloads {
        true => Form::Stored,
        false => Form::Elements,
    };
    let reading = Options::without_target(form).with_whole_texts();
    let scan = read(options, input, reading, true, &mut writer)?;
    writer.output.flush()?;
    if writer.restored > 0 && !payloads {
        note(&format!(
            "{} values were written as RESTORE, since no other command can write them (those of modules)",
            writer.restored
        ));
    }
    if writer.skipped > 0 {
        note(&format!(
            "{} pieces of data outside or beside keys were left out: no command can carry them (--summary names them)",
            writer.skipped
        ));
    }
    Ok(scan)
}

fn import_into(
    options: &RdbOptions,
    target: &ImportOptions,
    input: &mut Input,
) -> Result<Scan, Stop> {
    let imported = import::import(options, target, input)?;
    print(&imported.summary)?;
    Ok(imported.scan)
}

/// Takes every value apart and drops it.
struct Check;

impl Visitor for Check {
    fn item(&mut self, _: Item<'_>) -> Result<(), Stop> {
        Ok(())
    }
}

fn check(options: &RdbOptions, input: &mut Input) -> Result<Scan, Stop> {
    let reading = Options::without_target(Form::Elements);
    let scan = read(options, input, reading, false, &mut Check)?;
    print(&headline(&input.name, &scan))?;
    Ok(scan)
}
