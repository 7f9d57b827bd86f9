//! Names of links, and of the keys that belong to them.

use std::fmt;
use std::str::FromStr;

use crate::limits;
use crate::slot::{Slot, shortest_tag};

/// The name of a link: what tells several replications into one target apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName(String);

/// Why a text is no name of a link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a link's name has 1 to {max} letters, digits, dots, dashes and underscores",
    max = limits::MAX_LINK_NAME_BYTES
)]
pub struct LinkNameError;

impl LinkName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LinkName {
    type Err = LinkNameError;

    /// The name becomes part of keys and of connection names, which servers restrict.
    fn from_str(text: &str) -> Result<Self, LinkNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let fits = (1..=limits::MAX_LINK_NAME_BYTES).contains(&text.len());
        match fits && text.bytes().all(allowed) {
            true => Ok(Self(text.to_owned())),
            false => Err(LinkNameError),
        }
    }
}

const MARK: &str = "slotstream:";

/// The key that holds the epoch of a link, in `slot`.
pub fn epoch_key(link: &LinkName, slot: Slot) -> Vec<u8> {
    key('e', link, slot)
}

/// The key that holds the records of a link, in `slot`.
pub fn record_key(link: &LinkName, slot: Slot) -> Vec<u8> {
    key('r', link, slot)
}

/// The key that holds the watermark of a link for `slot`, in that slot.
pub fn watermark_key(link: &LinkName, slot: Slot) -> Vec<u8> {
    key('w', link, slot)
}

/// A key in `slot` under which the `number`th value of a mend is built before it gets its name.
pub fn mend_key(link: &LinkName, slot: Slot, number: usize) -> Vec<u8> {
    let mut key = key('m', link, slot);
    key.extend_from_slice(format!(":{number}").as_bytes());
    key
}

fn key(kind: char, link: &LinkName, slot: Slot) -> Vec<u8> {
    format!("{{{}}}{MARK}{kind}:{link}", shortest_tag(slot)).into_bytes()
}

/// Whether a key is one of ours, of whatever link: such keys are no data.
pub fn is_bookkeeping(key: &[u8]) -> bool {
    // `{TAG}` with one to three letters.
    let Some(end) = key.iter().take(5).position(|byte| *byte == b'}') else {
        return false;
    };
    let (tag, rest) = key.split_at(end + 1);
    let Some([kind, b':', link @ ..]) = rest.strip_prefix(MARK.as_bytes()) else {
        return false;
    };
    let Ok(link) = std::str::from_utf8(link) else {
        return false;
    };
    // Keys of mends are numbered.
    let link = match (kind, link.split_once(':')) {
        (b'm', Some((link, number))) if number.bytes().all(|byte| byte.is_ascii_digit()) => link,
        (b'm', _) => return false,
        _ => link,
    };
    tag.len() > 2
        && tag[0] == b'{'
        && tag[1..end].iter().all(u8::is_ascii_alphanumeric)
        && b"ermw".contains(kind)
        && link.parse::<LinkName>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::{SLOT_COUNT, slot_of};

    #[test]
    fn keys_are_in_the_slot_that_they_are_about_and_known_as_ours() {
        let link: LinkName = "eu-west.1_b".parse().expect("valid");
        for slot in 0..SLOT_COUNT as Slot {
            for name in [epoch_key, record_key, watermark_key] {
                let key = name(&link, slot);
                assert_eq!(slot_of(&key), slot);
                assert!(is_bookkeeping(&key));
            }
            let key = mend_key(&link, slot, 12);
            assert!(slot_of(&key) == slot && is_bookkeeping(&key));
        }
    }

    #[test]
    fn keys_of_users_are_not_ours() {
        for key in [
            "",
            "{",
            "{}slotstream:w:default",
            "{06S}slotstream:w:",
            "{06S}slotstream:x:default",
            "{06S}slotstream:m:default",
            "{06S}slotstream:m:default:x",
            "{06S}slotstream:w:default:1",
            "{06S}slotstream:w:a b",
            "{06S0}slotstream:w:default",
            "{0-S}slotstream:w:default",
            "x{06S}slotstream:w:default",
            "slotstream:w:default",
            "{06S}slotstream",
        ] {
            assert!(!is_bookkeeping(key.as_bytes()), "{key}");
        }
    }

    #[test]
    fn names_of_links_are_checked() {
        let longest = "x".repeat(limits::MAX_LINK_NAME_BYTES);
        assert!(longest.parse::<LinkName>().is_ok());
        for text in ["", "a b", "a:b", "a}b", &format!("{longest}x")] {
            assert!(text.parse::<LinkName>().is_err(), "{text}");
        }
    }
}
