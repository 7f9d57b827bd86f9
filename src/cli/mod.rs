//! The command line: arguments in, exit code out.
//!
//! Layer 5. [`args`] reads and checks what was typed, [`sync`] composes a replication, [`progress`] and
//! [`summary`] show it; [`rdb`] reads snapshot files; [`clean`] removes bookkeeping.
//!
//! Exit codes: 0 done, 2 usage, 3 environment, 4 connection, 5 data, 128 + signal when ended at once by a signal.

pub mod args;
pub mod clean;
pub mod progress;
pub mod rdb;
pub mod signals;
pub mod summary;
pub mod sync;

use std::io::Write;
use std::process::ExitCode;

use crate::fault::Fault;

/// Runs what the process's arguments ask for.
pub fn run() -> ExitCode {
    let command = match args::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(args::Exit::Printed(text)) => {
            // Whoever closed standard output does not want it.
            let _ = write!(std::io::stdout(), "{text}");
            return ExitCode::SUCCESS;
        }
        Err(args::Exit::Refused(fault)) => return refuse(&fault),
    };
    let result = match command {
        args::Command::Sync(args) => sync::run(args),
        args::Command::Rdb(args) => rdb::run(args),
        args::Command::Clean(args) => clean::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => refuse(&fault),
    }
}

/// One line, and the code of the fault's class.
fn refuse(fault: &Fault) -> ExitCode {
    // The code tells the class even where nobody reads the line.
    let _ = writeln!(std::io::stderr(), "slotstream: {}", fault.message);
    ExitCode::from(fault.class().code())
}
