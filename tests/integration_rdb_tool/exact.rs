//! Every JSON line against what the server itself answers about the key.

use super::{filled, rdb_ok, snapshot_of};
use anyhow::{Context, Result, bail, ensure};
use lab::{Connection, Family, Value, version_or_skip};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;

/// A JSON string back as the bytes it stands for: characters from U+10FF80 on are single bytes.
fn bytes(json: &Json) -> Result<Vec<u8>> {
    let text = json
        .as_str()
        .with_context(|| format!("{json} is no string"))?;
    let mut bytes = Vec::new();
    for letter in text.chars() {
        match u32::from(letter) {
            code @ 0x10_ff80.. => bytes.push(code as u8),
            _ => bytes.extend_from_slice(letter.to_string().as_bytes()),
        }
    }
    Ok(bytes)
}

fn all_bytes(json: &Json) -> Result<Vec<Vec<u8>>> {
    let array = json.as_array().context("no array")?;
    array.iter().map(bytes).collect()
}

fn replied(value: &Value) -> Vec<Vec<u8>> {
    let texts = value.array().iter();
    texts
        .map(|text| text.bytes().unwrap_or_default().to_vec())
        .collect()
}

/// A reply of names and values in turn.
fn fields(value: &Value) -> BTreeMap<String, Value> {
    let pairs = value.array().chunks(2);
    pairs
        .map(|pair| (pair[0].text(), pair[1].clone()))
        .collect()
}

fn score(json: &Json) -> Result<f64> {
    match json {
        Json::String(text) => Ok(text.parse()?),
        number => number.as_f64().context("no score"),
    }
}

struct Checked {
    family: Family,
    connection: Connection,
    kinds: BTreeMap<String, usize>,
}

impl Checked {
    fn call(&mut self, verb: &[&str], key: &[u8], rest: &[&str]) -> Result<Value> {
        let mut command: Vec<&[u8]> = verb.iter().map(|word| word.as_bytes()).collect();
        command.push(key);
        command.extend(rest.iter().map(|word| word.as_bytes()));
        self.connection.call(&command)?.ok()
    }

    /// `false`: the key is not there any more.
    fn check(&mut self, line: &Map<String, Json>) -> Result<bool> {
        let key = bytes(&line["key"])?;
        self.connection
            .call(&["SELECT", &line["db"].to_string()])?
            .ok()?;
        let kind = self.call(&["TYPE"], &key, &[])?.text();
        let expires = line.get("expires_at_ms").and_then(Json::as_i64);
        if kind == "none" && expires.is_some() {
            return Ok(false);
        }
        if self.family != Family::Redis60 {
            let at = self.call(&["PEXPIRETIME"], &key, &[])?.integer();
            ensure!(at == Some(expires.unwrap_or(-1)), "{at:?} and {expires:?}");
        }
        let shown = line["type"].as_str().context("no type")?;
        let value = &line["value"];
        match shown {
            "module" => {
                ensure!(
                    kind == "vectorset" && value["module"] == "vectorset",
                    "{value}"
                );
                ensure!(
                    value["serialized"]
                        .as_str()
                        .is_some_and(|hex| hex.len() > 20)
                );
            }
            _ => ensure!(kind == shown, "{kind} and {shown}"),
        }
        match shown {
            "string" => {
                let got = self.call(&["GET"], &key, &[])?;
                ensure!(got.bytes() == Some(&bytes(value)?[..]));
            }
            "list" => {
                let got = self.call(&["LRANGE"], &key, &["0", "-1"])?;
                ensure!(replied(&got) == all_bytes(value)?);
            }
            "set" => {
                let (mut got, mut said) = (
                    replied(&self.call(&["SMEMBERS"], &key, &[])?),
                    all_bytes(value)?,
                );
                got.sort();
                said.sort();
                ensure!(got == said);
            }
            "zset" => self.check_scores(&key, value)?,
            "hash" => self.check_fields(&key, value)?,
            "stream" => self.check_stream(&key, value)?,
            _ => {}
        }
        *self
            .kinds
            .entry(format!("{shown} {}", line["encoding"]))
            .or_default() += 1;
        Ok(true)
    }

    fn check_scores(&mut self, key: &[u8], value: &Json) -> Result<()> {
        let got = replied(&self.call(&["ZRANGE"], key, &["0", "-1", "WITHSCORES"])?);
        let mut real = BTreeMap::new();
        for pair in got.chunks(2) {
            real.insert(
                pair[0].clone(),
                std::str::from_utf8(&pair[1])?.parse::<f64>()?,
            );
        }
        let pairs = value.as_array().context("no array")?;
        ensure!(pairs.len() == real.len());
        for pair in pairs {
            let (member, said) = (bytes(&pair[0])?, score(&pair[1])?);
            let real = real.get(&member).context("no such member")?;
            // The server prints 17 digits, which read back as the same number.
            ensure!(*real == said, "{real} and {said}");
        }
        Ok(())
    }

    fn check_fields(&mut self, key: &[u8], value: &Json) -> Result<()> {
        let got = replied(&self.call(&["HGETALL"], key, &[])?);
        let real: BTreeMap<_, _> = got
            .chunks(2)
            .map(|pair| (pair[0].clone(), &pair[1]))
            .collect();
        let said = value.as_object().context("no object")?;
        let mut found = 0;
        for (field, content) in said {
            let field = bytes(&Json::String(field.clone()))?;
            let (text, expires) = match content {
                Json::Object(both) => (&both["value"], both["expires_at_ms"].as_i64()),
                text => (text, None),
            };
            let Some(real) = real.get(&field) else {
                ensure!(expires.is_some(), "a field that lasts is gone");
                continue;
            };
            ensure!(**real == bytes(text)?);
            found += 1;
            if self.family.has_hash_field_ttl() {
                let command: [&[u8]; 5] = [b"HPEXPIRETIME", key, b"FIELDS", b"1", &field];
                let at = self.connection.call(&command)?.ok()?.array()[0].integer();
                // It may end in between.
                ensure!(
                    at == Some(expires.unwrap_or(-1)) || at == Some(-2),
                    "{at:?}"
                );
            }
        }
        ensure!(found == real.len(), "the server has more fields");
        Ok(())
    }

    fn check_stream(&mut self, key: &[u8], value: &Json) -> Result<()> {
        let entries = self.call(&["XRANGE"], key, &["-", "+"])?;
        let said = value["entries"].as_array().context("no entries")?;
        ensure!(entries.array().len() == said.len());
        for (entry, said) in entries.array().iter().zip(said) {
            ensure!(entry.array()[0].text() == said["id"].as_str().unwrap_or_default());
            ensure!(replied(&entry.array()[1]) == all_bytes(&said["fields"])?);
        }
        let info = fields(&self.call(&["XINFO", "STREAM"], key, &["FULL", "COUNT", "0"])?);
        ensure!(info["last-generated-id"].text() == value["last_id"].as_str().unwrap_or_default());
        if let Some(added) = info.get("entries-added") {
            ensure!(added.integer() == value["entries_added"].as_i64());
            let deleted = info["max-deleted-entry-id"].text();
            ensure!(deleted == value["max_deleted_id"].as_str().unwrap_or_default());
        }
        let (groups, said) = (info["groups"].array(), value["groups"].as_array());
        let said = said.context("no groups")?;
        ensure!(groups.len() == said.len());
        for (group, said) in groups.iter().map(fields).zip(said) {
            ensure!(group["name"].bytes() == Some(&bytes(&said["name"])?[..]));
            ensure!(
                group["last-delivered-id"].text() == said["last_id"].as_str().unwrap_or_default()
            );
            if let Some(Value::Integer(read)) = group.get("entries-read") {
                ensure!(said["entries_read"].as_i64() == Some(*read));
            }
            let consumers = group["consumers"].array().iter().map(fields);
            let said = said["consumers"].as_array().context("no consumers")?;
            ensure!(group["consumers"].array().len() == said.len());
            for (consumer, said) in consumers.zip(said) {
                ensure!(consumer["name"].bytes() == Some(&bytes(&said["name"])?[..]));
                let seen = consumer["seen-time"].integer();
                ensure!(seen > Some(0) && seen == said["seen_at_ms"].as_i64());
                // From 7.2 on.
                let active = consumer.get("active-time").and_then(Value::integer);
                ensure!(active == said["active_at_ms"].as_i64());
                let pending = said["pending"].as_array().context("no pending")?;
                let real = consumer.get("pending").or(consumer.get("pel"));
                let real = real.context("no pending entries")?.array();
                ensure!(real.len() == pending.len());
                for (real, said) in real.iter().zip(pending) {
                    let real = real.array();
                    ensure!(real[0].text() == said["id"].as_str().unwrap_or_default());
                    ensure!(real[1].integer() == said["delivered_at_ms"].as_i64());
                    ensure!(real[2].integer() == said["deliveries"].as_i64());
                }
            }
        }
        Ok(())
    }
}

fn json_is_exact(family: Family, encodings: usize) -> Result<()> {
    let Some(version) = version_or_skip(family) else {
        return Ok(());
    };
    let server = filled(&version, 3_000, family.has_vector_sets())?;
    let json = rdb_ok(&snapshot_of(&server)?, &["--json"])?;
    let mut checked = Checked {
        family,
        connection: server.connect()?,
        kinds: BTreeMap::new(),
    };
    let (mut keys, mut gone, mut functions) = (0, 0, 0);
    for line in json
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let Json::Object(line) = serde_json::from_slice(line)? else {
            bail!("a line is no object");
        };
        functions += usize::from(line.contains_key("function"));
        if line.contains_key("key") {
            let there = checked
                .check(&line)
                .with_context(|| format!("{}", line["key"]))?;
            (keys, gone) = (keys + 1, gone + usize::from(!there));
        }
    }
    ensure!(keys >= 3_000 && gone < keys / 4, "{keys} keys, {gone} gone");
    ensure!(functions == usize::from(family.has_redis_7_commands()));
    ensure!(checked.kinds.len() >= encodings, "{:?}", checked.kinds);
    Ok(())
}

#[test]
fn json_of_redis_6_0_is_what_it_answers() -> Result<()> {
    json_is_exact(Family::Redis60, 9)
}

#[test]
fn json_of_redis_7_0_is_what_it_answers() -> Result<()> {
    json_is_exact(Family::Redis70, 9)
}

#[test]
fn json_of_redis_8_0_is_what_it_answers() -> Result<()> {
    json_is_exact(Family::Redis80, 12)
}

#[test]
fn json_of_valkey_9_is_what_it_answers() -> Result<()> {
    json_is_exact(Family::Valkey9, 11)
}
