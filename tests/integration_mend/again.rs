//! A key that was found to differ, and not mended before the process ended, is mended by the next one, although the target's
//! watermark says that the command which failed is not to be repeated.

use anyhow::{Result, ensure};
use lab::{
    Client, CompareOptions, Family, Server, ServerOptions, Slotstream, compare, version_or_skip,
    wait_until,
};
use std::path::Path;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(60);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slotstream"))
}

#[test]
fn what_the_source_did_not_let_us_read_is_mended_after_the_next_start() -> Result<()> {
    let Some(version) = version_or_skip(Family::Redis70) else {
        return Ok(());
    };
    let source = Server::start(&version, ServerOptions::default())?;
    let target = Server::start(&version, ServerOptions::default())?;
    let (from, to) = (source.endpoint(), target.endpoint());
    let mut writer = Client::connect(&from)?;
    for words in [["SET", "counter", "5"], ["SET", "text", "x"]] {
        writer.call(&words)?.ok()?;
    }
    let mut sync = Slotstream::start(program(), &from, &to, &[])?;
    sync.wait_until_caught_up(TIMEOUT)?;
    let mut breaker = Client::connect(&to)?;
    // Before, the next process would copy everything anew.
    let record = "local keys = redis.call('KEYS', '*slotstream:r:*') \
                  return #keys > 0 and table.concat(redis.call('HVALS', keys[1])) or ''";
    wait_until(TIMEOUT, "a record that tells of the stream", || {
        let told = breaker.call(&["EVAL", record, "0"])?.text();
        Ok(told.contains("state=streaming"))
    })?;
    writer.call(&["ACL", "SETUSER", "default", "-dump"])?.ok()?;
    breaker.call(&["SET", "counter", "broken"])?.ok()?;
    writer.call(&["INCR", "counter"])?.ok()?;
    let (exit, output) = sync.wait_for_exit(TIMEOUT)?;
    ensure!(exit.code() == Some(4), "{exit}: {output}");
    ensure!(output.contains("ACL SETUSER <user> +dump"), "{output}");
    // A copy would set everything right: it must go on.
    writer.call(&["APPEND", "text", "y"])?.ok()?;
    writer.call(&["ACL", "SETUSER", "default", "+dump"])?.ok()?;
    let mut sync = Slotstream::start(program(), &from, &to, &[])?;
    sync.wait_until_settled(TIMEOUT)?;
    let status = sync.status()?;
    let lane = &status["lanes"][0];
    ensure!(lane["mends"] == 1 && lane["full_syncs"] == 0, "{status}");
    let diff = compare(&from, &to, &CompareOptions::default())?;
    ensure!(diff.is_equal(), "{diff}");
    let (exit, output) = sync.stop()?;
    ensure!(exit.success(), "{output}");
    Ok(())
}
