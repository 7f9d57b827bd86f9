//! Snapshots of a [`Store`] in the oldest encodings, which every server reads, and `RESTORE` payloads back to values.
//!
//! Written here without the code under test: a checksum bit by bit, lengths and strings by hand.

use crate::model::{Bytes, Store, Value};

const TEXT: u8 = 0;
const LIST: u8 = 1;
const SET: u8 = 2;
const HASH: u8 = 4;

/// The whole snapshot: header, one `SELECTDB` per database, keys, end, checksum.
pub fn snapshot(store: &Store) -> Bytes {
    let mut out = b"REDIS0009\xfa\x09redis-ver\x056.0.0".to_vec();
    let mut selected = None;
    for ((database, key), value) in &store.keys {
        if selected != Some(*database) {
            selected = Some(*database);
            out.extend_from_slice(&[0xfe, *database as u8, 0xfb, 1, 0]);
        }
        if let Some(at_ms) = store.deadlines.get(&(*database, key.clone())) {
            out.push(0xfc);
            out.extend_from_slice(&at_ms.to_le_bytes());
        }
        out.push(type_of(value));
        push_text(&mut out, key);
        push_value(&mut out, value);
    }
    out.push(0xff);
    let checksum = crc64(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// What `DUMP` gives.
pub fn payload(value: &Value) -> Bytes {
    let mut out = vec![type_of(value)];
    push_value(&mut out, value);
    out.extend_from_slice(&[9, 0]);
    let checksum = crc64(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// The value in a payload as `DUMP` gives it; `None` if it is damaged.
pub fn decode_payload(payload: &[u8]) -> Option<Value> {
    let (body, checksum) = payload.split_at_checked(payload.len().checked_sub(8)?)?;
    if crc64(body) != u64::from_le_bytes(checksum.try_into().ok()?) {
        return None;
    }
    let (body, version) = body.split_at_checked(body.len().checked_sub(2)?)?;
    if version[1] != 0 || version[0] > 9 {
        return None;
    }
    let mut rest = body.get(1..)?;
    let value = match body[0] {
        TEXT => Value::Text(take_text(&mut rest)?),
        LIST => {
            let count = take_length(&mut rest)?;
            Value::List(
                (0..count)
                    .map(|_| take_text(&mut rest))
                    .collect::<Option<_>>()?,
            )
        }
        SET => {
            let count = take_length(&mut rest)?;
            Value::Set(
                (0..count)
                    .map(|_| take_text(&mut rest))
                    .collect::<Option<_>>()?,
            )
        }
        HASH => {
            let count = take_length(&mut rest)?;
            let pairs = (0..count).map(|_| Some((take_text(&mut rest)?, take_text(&mut rest)?)));
            Value::Hash(pairs.collect::<Option<_>>()?)
        }
        _ => return None,
    };
    rest.is_empty().then_some(value)
}

fn type_of(value: &Value) -> u8 {
    match value {
        Value::Text(_) => TEXT,
        Value::List(_) => LIST,
        Value::Set(_) => SET,
        Value::Hash(_) => HASH,
    }
}

fn push_value(out: &mut Bytes, value: &Value) {
    match value {
        Value::Text(text) => push_text(out, text),
        Value::List(list) => {
            push_length(out, list.len());
            list.iter().for_each(|item| push_text(out, item));
        }
        Value::Set(set) => {
            push_length(out, set.len());
            set.iter().for_each(|item| push_text(out, item));
        }
        Value::Hash(hash) => {
            push_length(out, hash.len());
            for (field, value) in hash {
                push_text(out, field);
                push_text(out, value);
            }
        }
    }
}

fn push_text(out: &mut Bytes, text: &[u8]) {
    push_length(out, text.len());
    out.extend_from_slice(text);
}

fn push_length(out: &mut Bytes, length: usize) {
    match length {
        0..64 => out.push(length as u8),
        64..16384 => out.extend_from_slice(&[0x40 | (length >> 8) as u8, length as u8]),
        _ => {
            out.push(0x80);
            out.extend_from_slice(&(length as u32).to_be_bytes());
        }
    }
}

fn take_length(rest: &mut &[u8]) -> Option<usize> {
    let first = usize::from(*rest.first()?);
    let (length, used) = match first >> 6 {
        0 => (first, 1),
        1 => ((first & 0x3f) << 8 | usize::from(*rest.get(1)?), 2),
        2 if first == 0x80 => {
            let bytes: [u8; 4] = rest.get(1..5)?.try_into().ok()?;
            (u32::from_be_bytes(bytes) as usize, 5)
        }
        _ => return None,
    };
    *rest = &rest[used..];
    Some(length)
}

fn take_text(rest: &mut &[u8]) -> Option<Bytes> {
    let length = take_length(rest)?;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(text.to_vec())
}

/// CRC-64 with the Jones polynomial, bits reflected.
fn crc64(bytes: &[u8]) -> u64 {
    let mut crc = 0u64;
    for &byte in bytes {
        crc ^= u64::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x95ac_9329_ac4b_c9b5 * (crc & 1));
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_has_its_check_value() {
        assert_eq!(super::crc64(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
    }
}
