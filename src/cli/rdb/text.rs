//! Bytes as JSON strings, exactly: what is UTF-8 stays readable, and what is not can be told apart and turned back.
//!
//! A byte `HH` that is no part of valid UTF-8 is written as the private-use character U+10FFHH, which JSON spells
//! `\udbff\udfHH`. Text that holds one of U+10FF80 to U+10FFFF itself is written byte by byte in the same way. So every
//! string of bytes has one JSON string, every JSON parser takes it, and back it goes by: a character from U+10FF80 on is
//! the byte of its last eight bits, any other is its UTF-8.

/// Writes the bytes of one string, which may come in pieces that cut characters apart.
#[derive(Debug, Default)]
pub struct TextWriter {
    /// The beginning of a character whose end is still to come.
    carry: Vec<u8>,
}

const HEX: &[u8; 16] = b"0123456789abcdef";

impl TextWriter {
    /// Writes a piece of a string.
    pub fn write(&mut self, out: &mut Vec<u8>, bytes: &[u8], is_last: bool) {
        if self.carry.is_empty() {
            let left = write_some(out, bytes, is_last);
            self.carry.extend_from_slice(left);
            return;
        }
        let mut joined = std::mem::take(&mut self.carry);
        joined.extend_from_slice(bytes);
        let left = write_some(out, &joined, is_last);
        self.carry = left.to_vec();
    }

    /// Ends the string, also where its last piece never came.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.write(out, b"", true);
    }
}

/// A whole string, quotes included.
pub fn write_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    write_some(out, bytes, true);
    out.push(b'"');
}

/// Writes up to a character at the end that may go on in the next piece, and returns that.
fn write_some<'a>(out: &mut Vec<u8>, mut bytes: &'a [u8], is_last: bool) -> &'a [u8] {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                write_valid(out, text.as_bytes());
                return b"";
            }
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                write_valid(out, valid);
                let bad = match error.error_len() {
                    Some(length) => length,
                    None if is_last => rest.len(),
                    None => return rest,
                };
                rest[..bad].iter().for_each(|byte| write_byte(out, *byte));
                bytes = &rest[bad..];
            }
        }
    }
}

/// Which bytes of valid UTF-8 cannot simply be copied. The lead byte of U+10FF80 and its like is looked at closer.
static IS_SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        special[byte] = true;
        byte += 1;
    }
    special[b'"' as usize] = true;
    special[b'\\' as usize] = true;
    special[0xf4] = true;
    special
};

fn write_valid(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| IS_SPECIAL[usize::from(*byte)]) {
        out.extend_from_slice(&rest[..at]);
        let used = match rest[at..] {
            [0xf4, 0x8f, 0xbe | 0xbf, _, ..] => {
                rest[at..at + 4]
                    .iter()
                    .for_each(|byte| write_byte(out, *byte));
                4
            }
            [0xf4, ..] => {
                out.push(0xf4);
                1
            }
            [byte, ..] => {
                write_escape(out, byte);
                1
            }
            [] => unreachable!("a byte was found there"),
        };
        rest = &rest[at + used..];
    }
    out.extend_from_slice(rest);
}

fn write_escape(out: &mut Vec<u8>, byte: u8) {
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        other => {
            out.extend_from_slice(b"\\u00");
            write_hex(out, &[other]);
        }
    }
}

/// A byte that is no part of a character.
fn write_byte(out: &mut Vec<u8>, byte: u8) {
    debug_assert!(byte >= 0x80, "ASCII is always valid");
    out.extend_from_slice(b"\\udbff\\udf");
    write_hex(out, &[byte]);
}

/// Two digits for each byte.
pub fn write_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
}

/// A decimal number.
pub fn write_number(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// The shortest number that reads back as the same score; `"inf"` and `"-inf"`, which JSON has no numbers for, as strings.
pub fn write_score(out: &mut Vec<u8>, score: f64) {
    const EXACT_INTEGERS: f64 = 9_007_199_254_740_992.0;
    let magnitude = score.abs();
    if score.is_infinite() {
        let text: &[u8] = if score > 0.0 { b"\"inf\"" } else { b"\"-inf\"" };
        out.extend_from_slice(text);
    } else if score.fract() == 0.0
        && magnitude < EXACT_INTEGERS
        && (score != 0.0 || score.is_sign_positive())
    {
        write_number(out, score as i64);
    } else {
        // A vector takes everything, and a number can be written.
        let _ = serde_json::to_writer(out, &score);
    }
}

/// Bytes for a person: as they are where that is printable text, else escaped; cut behind `longest` bytes.
pub fn shown(bytes: &[u8], longest: usize) -> String {
    let (head, tail) = bytes.split_at(bytes.len().min(longest));
    let mut text = String::new();
    for chunk in head.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter.is_control() || letter == '\\' {
                true => text.extend(letter.escape_default()),
                false => text.push(letter),
            }
        }
        text.push_str(&chunk.invalid().escape_ascii().to_string());
    }
    if !tail.is_empty() {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule of the module documentation, read backwards.
    fn back(json: &[u8]) -> Vec<u8> {
        let text: String = serde_json::from_slice(json).expect("valid JSON");
        let mut bytes = Vec::new();
        for letter in text.chars() {
            match u32::from(letter) {
                code @ 0x10_ff80.. => bytes.push(code as u8),
                _ => bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        bytes
    }

    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..6),
            any::<char>().prop_map(|letter| letter.to_string().into_bytes()),
            (0x10_ff00u32..=0x10_ffff).prop_map(|code| char::from_u32(code)
                .expect("a character")
                .to_string()
                .into_bytes()),
        ];
        proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn every_string_of_bytes_comes_back(bytes in pieces(), cuts in proptest::collection::vec(0usize..60, 0..5)) {
            let mut whole = Vec::new();
            write_string(&mut whole, &bytes);
            prop_assert_eq!(back(&whole), &bytes[..]);

            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let (mut out, mut writer, mut from) = (b"\"".to_vec(), TextWriter::default(), 0);
            for cut in cuts {
                writer.write(&mut out, &bytes[from..cut], false);
                from = cut;
            }
            writer.write(&mut out, &bytes[from..], true);
            out.push(b'"');
            prop_assert_eq!(out, whole);
        }

        #[test]
        fn every_score_reads_back_as_itself(score in any::<f64>().prop_filter("a number", |score| !score.is_nan())) {
            let mut out = Vec::new();
            write_score(&mut out, score);
            if score.is_finite() {
                let again: f64 = std::str::from_utf8(&out).unwrap().parse().unwrap();
                prop_assert_eq!(again.to_bits(), score.to_bits());
                prop_assert!(serde_json::from_slice::<serde_json::Number>(&out).is_ok());
            }
        }
    }

    #[test]
    fn bytes_are_written_as_documented() {
        let cases: [(&[u8], &[u8]); 6] = [
            (b"plain", b"\"plain\""),
            (b"a\"b\\c\n\x01", b"\"a\\\"b\\\\c\\n\\u0001\""),
            ("grün".as_bytes(), "\"grün\"".as_bytes()),
            (b"\xff\x80", b"\"\\udbff\\udfff\\udbff\\udf80\""),
            (b"\xe2\x82", b"\"\\udbff\\udfe2\\udbff\\udf82\""),
            (
                "\u{10ff81}".as_bytes(),
                b"\"\\udbff\\udff4\\udbff\\udf8f\\udbff\\udfbe\\udbff\\udf81\"",
            ),
        ];
        for (bytes, json) in cases {
            let mut out = Vec::new();
            write_string(&mut out, bytes);
            assert_eq!(out, json, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn scores_that_json_has_no_numbers_for_are_strings() {
        let cases = [
            (f64::INFINITY, "\"inf\""),
            (f64::NEG_INFINITY, "\"-inf\""),
            (-0.0, "-0.0"),
            (3.0, "3"),
            (0.1, "0.1"),
            (1e300, "1e+300"),
        ];
        for (score, text) in cases {
            let mut out = Vec::new();
            write_score(&mut out, score);
            assert_eq!(out, text.as_bytes());
        }
    }

    #[test]
    fn a_key_is_shown_readably_and_not_at_any_length() {
        assert_eq!(shown("grün\n\u{0}".as_bytes(), 64), "grün\\n\\u{0}");
        assert_eq!(shown(b"\xffab", 64), "\\xffab");
        assert_eq!(shown(b"abcdef", 3), "abc...");
    }
}
