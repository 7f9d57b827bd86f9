//! Waiting for a condition that another process brings about.

use crate::Result;
use anyhow::bail;
use std::time::{Duration, Instant};

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Asks `done` again and again until it says `true`; after `timeout` fails, naming `what` was awaited
/// and, if the last answer was an error, that error.
pub fn wait_until(
    timeout: Duration,
    what: &str,
    mut done: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let answer = done();
        if matches!(answer, Ok(true)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            match answer {
                Ok(_) => bail!("waited {timeout:?} in vain for: {what}"),
                Err(error) => {
                    return Err(error.context(format!("waited {timeout:?} in vain for: {what}")));
                }
            }
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
