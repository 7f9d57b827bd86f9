//! Compares snapshots by what they hold, whatever their version: through `--json`.

use super::rdb_ok;
use anyhow::{Context, Result, ensure};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// Every key of all these snapshots, without what depends on the server: databases, order of sets, encodings, counters that old
/// versions lack, times of consumers.
fn content(snapshots: &[&[u8]], now_ms: u64) -> Result<BTreeMap<String, Json>> {
    let is_over = |json: &Json| {
        json["expires_at_ms"]
            .as_u64()
            .is_some_and(|at| at <= now_ms)
    };
    let mut all = BTreeMap::new();
    for snapshot in snapshots {
        let json = rdb_ok(snapshot, &["--json"])?;
        for line in json
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let mut line: Json = serde_json::from_slice(line)?;
            let Some(key) = line["key"].as_str().map(str::to_owned) else {
                continue;
            };
            if is_over(&line) {
                continue;
            }
            let kind = line["type"].as_str().context("no type")?.to_owned();
            let object = line.as_object_mut().context("no object")?;
            ["db", "encoding", "idle_seconds", "frequency"]
                .iter()
                .for_each(|name| _ = object.remove(*name));
            let value = object.get_mut("value").context("no value")?;
            match kind.as_str() {
                "set" | "zset" => {
                    let items = value.as_array_mut().context("no array")?;
                    items.iter_mut().for_each(forget_sign_of_zero);
                    items.sort_by_key(Json::to_string);
                }
                "hash" => value
                    .as_object_mut()
                    .context("no object")?
                    .retain(|_, field| !is_over(field)),
                "stream" => {
                    let stream = value.as_object_mut().context("no object")?;
                    stream.remove("entries_added");
                    stream.remove("max_deleted_id");
                    let groups = stream["groups"].as_array_mut().context("no groups")?;
                    groups.iter_mut().try_for_each(forget_what_is_not_written)?;
                }
                _ => {}
            }
            all.insert(key, line);
        }
    }
    Ok(all)
}

/// What old versions lack of a group, and what no command sets.
fn forget_what_is_not_written(group: &mut Json) -> Result<()> {
    let group = group.as_object_mut().context("no group")?;
    group.remove("entries_read");
    for consumer in group["consumers"].as_array_mut().context("no consumers")? {
        let consumer = consumer.as_object_mut().context("no consumer")?;
        consumer
            .remove("seen_at_ms")
            .context("a consumer was seen")?;
        consumer.remove("active_at_ms");
    }
    Ok(())
}

/// Servers make 0 of a score of -0 when they pack it as an integer, some from 8.1 on.
fn forget_sign_of_zero(item: &mut Json) {
    if let Some(score) = item.get_mut(1)
        && score.as_f64() == Some(0.0)
    {
        *score = 0.into();
    }
}

/// Whether the parts together hold what the whole does, but for what has expired meanwhile.
pub fn must_be_equal(whole: &[u8], parts: &[&[u8]]) -> Result<()> {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    let (whole, parts) = (content(&[whole], now_ms)?, content(parts, now_ms)?);
    for (key, value) in &whole {
        let copy = parts
            .get(key)
            .with_context(|| format!("{key} is missing"))?;
        ensure!(copy == value, "{key}: {copy}\ninstead of {value}");
    }
    ensure!(
        whole.len() == parts.len(),
        "{} and {} keys",
        whole.len(),
        parts.len()
    );
    ensure!(whole.len() > 500, "only {} keys", whole.len());
    Ok(())
}
