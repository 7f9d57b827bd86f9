//! Patterns of keys, as `KEYS` and `SCAN MATCH` read them.
//!
//! `*` any bytes, `?` one byte, `[abc]`, `[a-z]`, `[^a]` one byte of (or not of) a class, `\x` the byte `x` itself. Meant to
//! answer as `stringmatchlen` of the servers' `util.c` does, in malformed patterns too: for those of
//! `tests/corpus/key-patterns.txt` a test asks Redis 7.0 and Valkey 9.

/// A pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Vec<u8>);

impl Glob {
    pub fn new(pattern: &[u8]) -> Self {
        Self(pattern.to_vec())
    }

    /// Whether all of `text` matches.
    ///
    /// All but `*` match exactly one byte, so it is enough to go back to the last `*` and let it take one byte more.
    pub fn matches(&self, text: &[u8]) -> bool {
        let pattern = &self.0;
        let (mut at, mut read) = (0, 0);
        // Behind the last `*`, and the text that it has not taken.
        let mut star: Option<(usize, usize)> = None;
        while read < text.len() {
            if pattern.get(at) == Some(&b'*') {
                at += 1;
                star = Some((at, read));
                continue;
            }
            if at < pattern.len()
                && let (true, next) = one_byte(pattern, at, text[read])
            {
                at = next;
                read += 1;
                continue;
            }
            let Some((behind, taken)) = star else {
                return false;
            };
            star = Some((behind, taken + 1));
            at = behind;
            read = taken + 1;
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

/// Whether the element of the pattern at `at` matches `byte`, and where the next element begins.
fn one_byte(pattern: &[u8], at: usize, byte: u8) -> (bool, usize) {
    match pattern[at] {
        b'?' => (true, at + 1),
        b'[' => class(pattern, at + 1, byte),
        b'\\' if at + 1 < pattern.len() => (pattern[at + 1] == byte, at + 2),
        literal => (literal == byte, at + 1),
    }
}

/// A class whose bytes begin at `at`. One that is not closed ends with the pattern.
fn class(pattern: &[u8], mut at: usize, byte: u8) -> (bool, usize) {
    let negated = pattern.get(at) == Some(&b'^');
    at += usize::from(negated);
    let mut found = false;
    loop {
        match pattern[at.min(pattern.len())..] {
            [b'\\', literal, ..] => {
                found |= literal == byte;
                at += 2;
            }
            [b']', ..] => {
                at += 1;
                break;
            }
            [] => break,
            [first, b'-', last, ..] => {
                found |= (first.min(last)..=first.max(last)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= literal == byte;
                at += 1;
            }
        }
    }
    (found != negated, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_what_keys_matches() {
        // A test of the tool asks servers the same.
        let cases = include_str!("../../../tests/corpus/key-patterns.txt");
        for case in cases.lines().filter(|line| !line.starts_with('#')) {
            let case: Vec<&str> = case.split('\t').collect();
            let [pattern, text, expected] = case[..] else {
                panic!("{case:?}");
            };
            let glob = Glob::new(pattern.as_bytes());
            let matches = glob.matches(text.as_bytes());
            assert_eq!(matches, expected == "yes", "{pattern} on {text}");
        }
    }

    #[test]
    fn many_stars_do_not_take_exponential_time() {
        let glob = Glob::new(&b"a*".repeat(100));
        let mut text = vec![b'a'; 20_000];
        text[0] = b'b';
        assert!(!glob.matches(&text));
        assert!(Glob::new(&b"*a".repeat(50)).matches(&text));
    }
}
