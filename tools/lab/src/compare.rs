//! Compares two deployments of any shape, key by key, by what a user can see of each key.
//!
//! Both are expected to be at rest, but for keys and fields whose time runs out meanwhile: what differs
//! is looked at again after a pause, so that only what stays different counts.
//!
//! Not compared: what the program keeps on a target for itself; what one of the two versions does not keep, such as times of hash fields; and, because servers
//! do not replicate it, idle and delivery times of pending entries, access times and frequencies, encodings,
//! and consumers that hold nothing (an `XREADGROUP` that finds nothing makes one on the master only). Redis
//! 7.0 does not replicate how many entries a group has read either (its `XCLAIM` carries the last id only).
//! Keys in which slotstream keeps its own state are no data.

use crate::Result;
use crate::client::{Client, Endpoint};
use crate::resp::{Command, Value};
use crate::version::Family;
use anyhow::bail;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// How two deployments are compared.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// How many differences are described; all are counted.
    pub listed: usize,
    /// How far two expiry times may be apart where both servers tell them exactly.
    pub ttl_tolerance: Duration,
    /// The same where one of them only tells what is left: 6.0 replicates relative times, so that a
    /// replica's keys live longer by as much as the command took to arrive.
    pub relative_ttl_tolerance: Duration,
    /// Keys that begin with one of these are left out.
    pub ignored_prefixes: Vec<Vec<u8>>,
    /// How often differences are looked at again, and after what pause.
    pub rechecks: usize,
    pub recheck_pause: Duration,
}

impl Default for CompareOptions {
    fn default() -> CompareOptions {
        CompareOptions {
            listed: 20,
            ttl_tolerance: Duration::ZERO,
            relative_ttl_tolerance: Duration::from_secs(1),
            ignored_prefixes: Vec::new(),
            rechecks: 5,
            recheck_pause: Duration::from_millis(200),
        }
    }
}

/// What is different.
#[derive(Clone, Debug, Default)]
pub struct Diff {
    /// Keys that at least one side has.
    pub keys: usize,
    pub only_in_first: usize,
    pub only_in_second: usize,
    /// Keys of both sides that differ.
    pub different: usize,
    /// Function libraries that differ.
    pub functions: usize,
    /// Descriptions, up to the number asked for.
    pub listed: Vec<String>,
}

impl Diff {
    pub fn is_equal(&self) -> bool {
        self.only_in_first + self.only_in_second + self.different + self.functions == 0
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_equal() {
            return write!(formatter, "equal: {} keys", self.keys);
        }
        write!(
            formatter,
            "of {} keys {} only in the first, {} only in the second, {} different; \
             {} function libraries different",
            self.keys, self.only_in_first, self.only_in_second, self.different, self.functions
        )?;
        for line in &self.listed {
            write!(formatter, "\n  {line}")?;
        }
        Ok(())
    }
}

/// Keys that are asked for at once.
const CHUNK_KEYS: usize = 500;
const SCAN_COUNT: &str = "2000";

/// Compares all keys, and the functions, of two deployments.
pub fn compare(first: &Endpoint, second: &Endpoint, options: &CompareOptions) -> Result<Diff> {
    let (mut a, mut b) = (Side::connect(first)?, Side::connect(second)?);
    let families = [a.family, b.family];
    let (keys_a, keys_b) = both(&mut a, &mut b, Side::keys)?;
    let ignored = |key: &&Vec<u8>| {
        let prefixes = &options.ignored_prefixes;
        is_bookkeeping(key) || prefixes.iter().any(|prefix| key.starts_with(prefix))
    };
    let keys: BTreeSet<&Vec<u8>> = keys_a.union(&keys_b).filter(|key| !ignored(key)).collect();
    let mut diff = Diff {
        keys: keys.len(),
        ..Diff::default()
    };
    let mut suspects: Vec<Vec<u8>> = keys.into_iter().cloned().collect();
    let mut differences = BTreeMap::new();
    for round in 0..=options.rechecks {
        if round > 0 {
            std::thread::sleep(options.recheck_pause);
        }
        differences.clear();
        for chunk in suspects.chunks(CHUNK_KEYS) {
            let (states_a, states_b) = both(&mut a, &mut b, |side| side.states(chunk, families))?;
            for ((key, a), b) in chunk.iter().zip(states_a).zip(states_b) {
                if let Some(difference) = difference(&a, &b, options) {
                    differences.insert(key.clone(), difference);
                }
            }
        }
        if differences.is_empty() {
            break;
        }
        suspects = differences.keys().cloned().collect();
    }
    for (key, difference) in differences {
        match difference.kind {
            DifferenceKind::OnlyInFirst => diff.only_in_first += 1,
            DifferenceKind::OnlyInSecond => diff.only_in_second += 1,
            DifferenceKind::Content => diff.different += 1,
        }
        if diff.listed.len() < options.listed {
            let (key, text) = (key.escape_ascii(), difference.text);
            diff.listed.push(format!("{key}: {text}"));
        }
    }
    compare_functions(&mut a, &mut b, &mut diff)?;
    Ok(diff)
}

/// Whether a key is one in which slotstream keeps its state: `{TAG}slotstream:`, a letter of `ermw`, and `:LINK`.
pub fn is_bookkeeping(key: &[u8]) -> bool {
    const MARK: &[u8] = b"}slotstream:";
    // Tags have one to three letters.
    let mark = (2..=4).find(|at| key.get(*at..).is_some_and(|rest| rest.starts_with(MARK)));
    let kind = mark.and_then(|at| key.get(at + MARK.len()..at + MARK.len() + 2));
    key.starts_with(b"{")
        && kind.is_some_and(|kind| [&b"e:"[..], b"r:", b"m:", b"w:"].contains(&kind))
}

/// Does the same on both sides at the same time.
fn both<T: Send>(
    a: &mut Side,
    b: &mut Side,
    job: impl Fn(&mut Side) -> Result<T> + Sync,
) -> Result<(T, T)> {
    std::thread::scope(|scope| {
        let second = scope.spawn(|| job(b));
        let first = job(a)?;
        match second.join() {
            Ok(second) => Ok((first, second?)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Functions live on every master: each must have what the first has.
fn compare_functions(a: &mut Side, b: &mut Side, diff: &mut Diff) -> Result<()> {
    if !(a.family.has_redis_7_commands() && b.family.has_redis_7_commands()) {
        return Ok(());
    }
    let lists_a = a
        .client
        .call_each_master(&["FUNCTION", "LIST", "WITHCODE"])?;
    let lists_b = b
        .client
        .call_each_master(&["FUNCTION", "LIST", "WITHCODE"])?;
    let expected = libraries(&lists_a[0]);
    for list in lists_a.iter().chain(&lists_b).skip(1) {
        if libraries(list) != expected {
            diff.functions += 1;
            diff.listed
                .push("function libraries differ between masters".to_owned());
        }
    }
    Ok(())
}

/// The code of each library by its name.
fn libraries(list: &Value) -> BTreeMap<String, String> {
    list.array()
        .iter()
        .map(|library| {
            let fields = labelled(library);
            let text = |name: &str| fields.get(name).map(Value::text).unwrap_or_default();
            (text("library_name"), text("library_code"))
        })
        .collect()
}

/// What keys of one deployment held at one moment, to be compared with what they hold later.
pub struct Capture {
    states: Vec<State>,
}

impl Capture {
    /// Looks at `keys`; those that are not there count too.
    pub fn of(endpoint: &Endpoint, keys: &[Vec<u8>]) -> Result<Capture> {
        let mut side = Side::connect(endpoint)?;
        let families = [side.family; 2];
        let mut states = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(CHUNK_KEYS) {
            states.extend(side.states(chunk, families)?);
        }
        Ok(Capture { states })
    }

    /// How key `index` differs from what it is in `later`, in words.
    pub fn difference(
        &self,
        later: &Capture,
        index: usize,
        options: &CompareOptions,
    ) -> Option<String> {
        let found = difference(&self.states[index], &later.states[index], options)?;
        Some(found.text)
    }

    /// The same without the times of keys and fields.
    pub fn without_expiry(mut self) -> Capture {
        for state in &mut self.states {
            state.expiry = Expiry::Never;
            let fields = state.parts.get_mut("fields");
            if let Some(Value::Array(fields)) = fields {
                for field in fields {
                    if let Value::Array(field) = field {
                        field.truncate(2);
                    }
                }
            }
        }
        self
    }
}

struct Difference {
    kind: DifferenceKind,
    text: String,
}

enum DifferenceKind {
    OnlyInFirst,
    OnlyInSecond,
    Content,
}

/// When a key's time runs out, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expiry {
    Never,
    At { time_ms: i64, exact: bool },
}

/// What a user can see of a key. Each part has a name for the description of a difference.
struct State {
    /// `none` for a key that is not there.
    kind: String,
    expiry: Expiry,
    parts: BTreeMap<String, Value>,
}

fn difference(a: &State, b: &State, options: &CompareOptions) -> Option<Difference> {
    let (kind, text) = match (a.kind.as_str(), b.kind.as_str()) {
        ("none", "none") => return None,
        ("none", kind) => (
            DifferenceKind::OnlyInSecond,
            format!("{kind}, only in the second, {:?}", b.expiry),
        ),
        (kind, "none") => (
            DifferenceKind::OnlyInFirst,
            format!("{kind}, only in the first, {:?}", a.expiry),
        ),
        (kind_a, kind_b) if kind_a != kind_b => {
            (DifferenceKind::Content, format!("{kind_a} / {kind_b}"))
        }
        (kind, _) => {
            let text = expiry_difference(a.expiry, b.expiry, options)
                .or_else(|| parts_difference(&a.parts, &b.parts))?;
            (DifferenceKind::Content, format!("{kind}, {text}"))
        }
    };
    Some(Difference { kind, text })
}

fn expiry_difference(a: Expiry, b: Expiry, options: &CompareOptions) -> Option<String> {
    let (
        Expiry::At {
            time_ms: a_ms,
            exact: a_exact,
        },
        Expiry::At {
            time_ms: b_ms,
            exact: b_exact,
        },
    ) = (a, b)
    else {
        return (a != b).then(|| format!("expiry {a:?} / {b:?}"));
    };
    let tolerance = if a_exact && b_exact {
        options.ttl_tolerance
    } else {
        options.relative_ttl_tolerance
    };
    let apart = a_ms.abs_diff(b_ms);
    (u128::from(apart) > tolerance.as_millis())
        .then(|| format!("expiry at {a_ms} / {b_ms} ms, {apart} ms apart"))
}

fn parts_difference(a: &BTreeMap<String, Value>, b: &BTreeMap<String, Value>) -> Option<String> {
    // Newer versions tell more: what one side does not name is not compared, unless it is the content.
    a.iter().find_map(|(name, value_a)| {
        let content = ["content", "fields"].contains(&name.as_str());
        let value_b = match b.get(name) {
            Some(value) => value,
            None if content => &Value::Nil,
            None => return None,
        };
        (value_a != value_b).then(|| format!("{name}: {}", value_difference(value_a, value_b)))
    })
}

/// Where two values begin to differ.
fn value_difference(a: &Value, b: &Value) -> String {
    let (Value::Array(elements_a), Value::Array(elements_b)) = (a, b) else {
        return format!("{} / {}", shown(Some(a)), shown(Some(b)));
    };
    let index = elements_a
        .iter()
        .zip(elements_b)
        .position(|(a, b)| a != b)
        .unwrap_or(elements_a.len().min(elements_b.len()));
    format!(
        "{} / {} elements, number {index} is {} / {}",
        elements_a.len(),
        elements_b.len(),
        shown(elements_a.get(index)),
        shown(elements_b.get(index))
    )
}

fn shown(value: Option<&Value>) -> String {
    const BYTES: usize = 60;
    match value {
        None => "nothing".to_owned(),
        Some(Value::Bulk(bytes)) if bytes.len() > BYTES => {
            let start = bytes[..BYTES].escape_ascii();
            format!("\"{start}\"... ({} bytes)", bytes.len())
        }
        Some(Value::Bulk(bytes)) => format!("\"{}\"", bytes.escape_ascii()),
        Some(Value::Array(values)) => {
            let all: Vec<_> = values.iter().map(|value| shown(Some(value))).collect();
            format!("[{}]", all.join(", "))
        }
        Some(other) => other.text(),
    }
}

/// One of the two deployments.
struct Side {
    client: Client,
    family: Family,
}

impl Side {
    fn connect(endpoint: &Endpoint) -> Result<Side> {
        let mut client = Client::connect(endpoint)?;
        let family = client.family()?;
        Ok(Side { client, family })
    }

    fn keys(&mut self) -> Result<BTreeSet<Vec<u8>>> {
        let mut keys = BTreeSet::new();
        for address in self.client.masters().to_vec() {
            let connection = self.client.connection(&address)?;
            let mut cursor = b"0".to_vec();
            loop {
                let reply =
                    connection.call(&[b"SCAN", &cursor[..], b"COUNT", SCAN_COUNT.as_bytes()])?;
                let [next, found] = reply.array() else {
                    bail!("SCAN answered {reply:?}");
                };
                keys.extend(
                    found
                        .array()
                        .iter()
                        .filter_map(|key| Some(key.bytes()?.to_vec())),
                );
                cursor = next.bytes().unwrap_or_default().to_vec();
                if cursor == b"0" {
                    break;
                }
            }
        }
        Ok(keys)
    }

    fn states(&mut self, keys: &[Vec<u8>], families: [Family; 2]) -> Result<Vec<State>> {
        let mut states = self.types_and_expiries(keys)?;
        let mut questions = Questions::default();
        for (index, (key, state)) in keys.iter().zip(&states).enumerate() {
            ask_for_content(&mut questions, index, key, &state.kind);
        }
        self.answer(questions, &mut states)?;
        let mut questions = Questions::default();
        for (index, (key, state)) in keys.iter().zip(&states).enumerate() {
            ask_for_details(&mut questions, index, key, state, families);
        }
        self.answer(questions, &mut states)?;
        for state in &mut states {
            canonicalize(state, families);
        }
        Ok(states)
    }

    fn types_and_expiries(&mut self, keys: &[Vec<u8>]) -> Result<Vec<State>> {
        let exact = self.family.has_redis_7_commands();
        let mut commands = Vec::with_capacity(keys.len() * 3);
        for key in keys {
            commands.push(Command::new(&[b"TYPE", &key[..]]));
            if exact {
                commands.push(Command::new(&[b"PEXPIRETIME", &key[..]]));
            } else {
                commands.push(Command::new(&[b"PTTL", &key[..]]));
                commands.push(Command::routed(key, &["TIME"]));
            }
        }
        let replies = self.client.pipeline(&commands)?;
        let replies_per_key = if exact { 2 } else { 3 };
        let states = replies.chunks(replies_per_key).map(|replies| {
            let time_ms = replies[1].clone().ok()?.integer().unwrap_or(-1);
            let expiry = match (time_ms, replies.get(2)) {
                (..0, _) => Expiry::Never,
                (time_ms, None) => Expiry::At {
                    time_ms,
                    exact: true,
                },
                (left_ms, Some(now)) => Expiry::At {
                    time_ms: left_ms + milliseconds(now),
                    exact: false,
                },
            };
            Ok(State {
                kind: replies[0].clone().ok()?.text(),
                expiry,
                parts: BTreeMap::new(),
            })
        });
        states.collect()
    }

    fn answer(&mut self, questions: Questions, states: &mut [State]) -> Result<()> {
        let replies = self.client.pipeline(&questions.commands)?;
        for ((index, name), reply) in questions.about.into_iter().zip(replies) {
            // A key or group that is gone since the last question shows as a difference, if it is one.
            if reply.error().is_none() {
                states[index].parts.insert(name, reply);
            } else {
                let error = reply.text();
                if !["NOGROUP", "ERR no such key", "WRONGTYPE"]
                    .iter()
                    .any(|known| error.starts_with(known))
                {
                    bail!("asking for {name}: {error}");
                }
            }
        }
        Ok(())
    }
}

/// Commands, each with the key (by its index) and the part that its reply becomes.
#[derive(Default)]
struct Questions {
    commands: Vec<Command>,
    about: Vec<(usize, String)>,
}

impl Questions {
    fn ask(&mut self, index: usize, part: &str, command: Command) {
        self.commands.push(command);
        self.about.push((index, part.to_owned()));
    }
}

/// What can only be asked once the content is known: hash fields' times, groups' consumers, vectors.
fn ask_for_details(
    questions: &mut Questions,
    index: usize,
    key: &[u8],
    state: &State,
    families: [Family; 2],
) {
    let content = state
        .parts
        .get("content")
        .map(Value::array)
        .unwrap_or_default();
    match state.kind.as_str() {
        "hash"
            if families.iter().all(|family| family.has_hash_field_ttl()) && !content.is_empty() =>
        {
            let fields: Vec<&[u8]> = content.iter().step_by(2).filter_map(Value::bytes).collect();
            let count = fields.len().to_string();
            let mut words: Vec<&[u8]> = vec![b"HPEXPIRETIME", key, b"FIELDS", count.as_bytes()];
            words.extend(fields);
            questions.ask(index, "expiry of fields", Command::new(&words));
        }
        "stream" => {
            let groups = state
                .parts
                .get("groups")
                .map(Value::array)
                .unwrap_or_default();
            for group in groups {
                let group = labelled(group);
                let Some(name) = group.get("name").and_then(Value::bytes) else {
                    continue;
                };
                let shown_name = name.escape_ascii();
                questions.ask(
                    index,
                    &format!("consumers of {shown_name}"),
                    Command::routed(key, &[&b"XINFO"[..], b"CONSUMERS", key, name]),
                );
                questions.ask(
                    index,
                    &format!("pending entries of {shown_name}"),
                    Command::new(&[b"XPENDING", key, name, b"-", b"+", b"1000000000"]),
                );
            }
        }
        "vectorset" => {
            for element in content.iter().filter_map(Value::bytes) {
                let name = format!("vector of {}", element.escape_ascii());
                questions.ask(index, &name, Command::new(&[b"VEMB", key, element]));
                let name = format!("attributes of {}", element.escape_ascii());
                questions.ask(index, &name, Command::new(&[b"VGETATTR", key, element]));
            }
        }
        _ => {}
    }
}

fn ask_for_content(questions: &mut Questions, index: usize, key: &[u8], kind: &str) {
    let words: Vec<&[u8]> = match kind {
        "none" => return,
        "string" => vec![b"GET", key],
        "list" => vec![b"LRANGE", key, b"0", b"-1"],
        "set" => vec![b"SMEMBERS", key],
        "zset" => vec![b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"],
        "hash" => vec![b"HGETALL", key],
        "stream" => {
            let stream = Command::routed(key, &[&b"XINFO"[..], b"STREAM", key]);
            questions.ask(index, "stream", stream);
            let groups = Command::routed(key, &[&b"XINFO"[..], b"GROUPS", key]);
            questions.ask(index, "groups", groups);
            vec![b"XRANGE", key, b"-", b"+"]
        }
        "vectorset" => vec![b"VRANDMEMBER", key, b"1000000000"],
        _ => vec![b"DUMP", key],
    };
    questions.ask(index, "content", Command::new(&words));
}

/// Puts what has no order into one, and drops what one of the two families does not tell or replicate.
fn canonicalize(state: &mut State, families: [Family; 2]) {
    if state.kind == "hash" {
        let fields = take(&mut state.parts, "content");
        let expiries = take(&mut state.parts, "expiry of fields");
        if fields.is_empty() {
            // All its fields have expired and the server has not come round to removing it.
            state.kind = "none".to_owned();
            return;
        }
        let mut expiries = expiries.into_iter();
        let mut with_expiry: Vec<Value> = fields
            .chunks(2)
            .map(|pair| {
                let mut pair = pair.to_vec();
                // A field without a time of its own is answered -1; so is every field of an older server.
                pair.push(expiries.next().unwrap_or(Value::Integer(-1)));
                Value::Array(pair)
            })
            .collect();
        with_expiry.sort();
        state
            .parts
            .insert("fields".to_owned(), Value::Array(with_expiry));
    }
    if let ("set" | "vectorset", Some(Value::Array(members))) =
        (state.kind.as_str(), state.parts.get_mut("content"))
    {
        members.sort();
    }
    if let ("zset", Some(Value::Array(members))) =
        (state.kind.as_str(), state.parts.get_mut("content"))
    {
        // Some versions write 17 digits, some as few as tell the number.
        for score in members.iter_mut().skip(1).step_by(2) {
            if let Ok(number) = score.text().parse::<f64>() {
                *score = Value::Bulk(format!("{number:e}").into_bytes());
            }
        }
    }
    if state.kind == "stream" {
        canonicalize_stream(state, families);
    }
}

fn canonicalize_stream(state: &mut State, families: [Family; 2]) {
    if let Some(stream) = state.parts.remove("stream") {
        const COMPARED: [&str; 4] = [
            "length",
            "last-generated-id",
            "max-deleted-entry-id",
            "entries-added",
        ];
        for (name, value) in labelled(&stream) {
            if COMPARED.contains(&name.as_str()) {
                state.parts.insert(name, value);
            }
        }
    }
    let mut compared = vec!["name", "pending", "last-delivered-id"];
    if !(families.contains(&Family::Redis60) || families.contains(&Family::Redis70)) {
        compared.extend(["entries-read", "lag"]);
    }
    for (part, value) in &mut state.parts {
        let Value::Array(rows) = value else {
            continue;
        };
        if part == "groups" {
            keep_labels(rows, &compared);
        } else if part.starts_with("consumers of ") {
            keep_labels(rows, &["name", "pending"]);
            rows.retain(|row| row.array().last() != Some(&Value::Integer(0)));
        } else if part.starts_with("pending entries of ") {
            // [id, consumer, idle time, delivery count]
            for row in rows {
                if let Value::Array(columns) = row {
                    columns.remove(2);
                }
            }
        }
    }
}

/// Turns each row of labels and values into the values of these labels, in this order, and sorts them.
fn keep_labels(rows: &mut [Value], labels: &[&str]) {
    for row in rows.iter_mut() {
        let fields = labelled(row);
        let kept = labels
            .iter()
            .filter_map(|label| fields.get(*label).cloned());
        *row = Value::Array(kept.collect());
    }
    rows.sort();
}

fn take(parts: &mut BTreeMap<String, Value>, name: &str) -> Vec<Value> {
    match parts.remove(name) {
        Some(Value::Array(values)) => values,
        _ => Vec::new(),
    }
}

/// A flat array of names and values as a map.
fn labelled(value: &Value) -> BTreeMap<String, Value> {
    value
        .array()
        .chunks_exact(2)
        .map(|pair| (pair[0].text(), pair[1].clone()))
        .collect()
}

/// The reply of TIME, seconds and microseconds.
fn milliseconds(time: &Value) -> i64 {
    let part = |index: usize| {
        time.array()
            .get(index)
            .and_then(Value::integer)
            .unwrap_or(0)
    };
    part(0) * 1000 + part(1) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(kind: &str, expiry: Expiry, content: Value) -> State {
        State {
            kind: kind.to_owned(),
            expiry,
            parts: BTreeMap::from([("content".to_owned(), content)]),
        }
    }

    fn bulk(text: &str) -> Value {
        Value::Bulk(text.as_bytes().to_vec())
    }

    fn text_of(a: &State, b: &State) -> Option<String> {
        difference(a, b, &CompareOptions::default()).map(|difference| difference.text)
    }

    #[test]
    fn a_difference_says_which_element_differs() {
        let a = state(
            "list",
            Expiry::Never,
            Value::Array(vec![bulk("x"), bulk("y")]),
        );
        let b = state(
            "list",
            Expiry::Never,
            Value::Array(vec![bulk("x"), bulk("z")]),
        );
        assert_eq!(text_of(&a, &a), None);
        assert_eq!(
            text_of(&a, &b).unwrap(),
            "list, content: 2 / 2 elements, number 1 is \"y\" / \"z\""
        );
        let shorter = state("list", Expiry::Never, Value::Array(vec![bulk("x")]));
        assert_eq!(
            text_of(&a, &shorter).unwrap(),
            "list, content: 2 / 1 elements, number 1 is \"y\" / nothing"
        );
        let missing = state("none", Expiry::Never, Value::Nil);
        assert_eq!(
            text_of(&a, &missing).unwrap(),
            "list, only in the first, Never"
        );
    }

    #[test]
    fn slotstreams_own_keys_are_told_from_data() {
        for key in ["{a}slotstream:e:default", "{06S}slotstream:w:x"] {
            assert!(is_bookkeeping(key.as_bytes()), "{key}");
        }
        for key in [
            "",
            "{}slotstream:w:default",
            "slotstream:w:default",
            "{06S}slotstream:x:default",
            "{06S}slotstream:w",
            "{0123}slotstream:w:default",
        ] {
            assert!(!is_bookkeeping(key.as_bytes()), "{key}");
        }
    }

    #[test]
    fn exact_expiry_times_must_agree_and_relative_ones_nearly() {
        let at =
            |time_ms: i64, exact: bool| state("string", Expiry::At { time_ms, exact }, bulk("v"));
        assert!(text_of(&at(1000, true), &at(1001, true)).is_some());
        assert!(text_of(&at(1000, false), &at(1900, true)).is_none());
        assert!(text_of(&at(1000, false), &at(2900, false)).is_some());
        assert!(text_of(&at(1000, true), &state("string", Expiry::Never, bulk("v"))).is_some());
    }

    #[test]
    fn the_order_of_fields_does_not_matter_and_their_expiry_does() {
        let hash = |content: [&str; 4], expiries: [i64; 2]| {
            let mut state = state(
                "hash",
                Expiry::Never,
                Value::Array(content.map(bulk).to_vec()),
            );
            state.parts.insert(
                "expiry of fields".to_owned(),
                Value::Array(expiries.map(Value::Integer).to_vec()),
            );
            canonicalize(&mut state, [Family::Valkey9; 2]);
            state
        };
        let a = hash(["f", "1", "g", "2"], [-1, 500]);
        assert!(text_of(&a, &hash(["g", "2", "f", "1"], [500, -1])).is_none());
        assert!(text_of(&a, &hash(["g", "2", "f", "1"], [-1, 500])).is_some());
    }
}
