//! Names of links, and of the keys and connections that belong to them.

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

/// A key in `slot` that is set and removed in one transaction, where all else of that would lose its mark.
pub fn token_key(link: &LinkName, slot: Slot) -> Vec<u8> {
    mend_key(link, slot, limits::TOKEN_NUMBER)
}

/// A key in `slot` under which a value of a copy is built by elements, if it is to get its name only where that is free.
pub fn part_key(link: &LinkName, slot: Slot) -> Vec<u8> {
    mend_key(link, slot, limits::PART_NUMBER)
}

fn key(kind: char, link: &LinkName, slot: Slot) -> Vec<u8> {
    format!("{{{}}}{MARK}{kind}:{link}", shortest_tag(slot)).into_bytes()
}

/// Whether a key is one of ours, of whatever link: such keys are no data.
pub fn is_bookkeeping(key: &[u8]) -> bool {
    bookkeeping_of(key).is_some()
}

/// The name of a connection that writes to the target: what those of a former process are found by.
pub fn writer_name(link: &LinkName, epoch: u32, lane: u32) -> String {
    format!("{MARK}{link}:{epoch}:{lane}")
}

/// Who a connection says that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    pub link: LinkName,
    /// Epoch and lane; `None` when what stands there is neither, as another version may write it.
    pub claim: Option<(u32, u32)>,
}

impl Writer {
    /// Reads what [`writer_name`] wrote; `None` for connections of others. No name of a link has a colon.
    pub fn parse(name: &str) -> Option<Self> {
        let (link, claim) = name.strip_prefix(MARK)?.split_once(':')?;
        let number = |text: &str| -> Option<u32> {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        let claim = claim.split_once(':');
        let claim = claim.and_then(|(epoch, lane)| Some((number(epoch)?, number(lane)?)));
        Some(Self {
            link: link.parse().ok()?,
            claim,
        })
    }
}

/// The link that a key of ours belongs to, and the letter of its kind; `None` for keys of others.
pub fn bookkeeping_of(key: &[u8]) -> Option<(char, LinkName)> {
    // `{TAG}` with one to three letters.
    let end = key.iter().take(5).position(|byte| *byte == b'}')?;
    let (tag, rest) = key.split_at(end + 1);
    let [kind, b':', link @ ..] = rest.strip_prefix(MARK.as_bytes())? else {
        return None;
    };
    let link = std::str::from_utf8(link).ok()?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // Keys of mends are numbered.
    let link = match (kind, link.split_once(':')) {
        (b'm', Some((link, number))) if is_number(number) => link,
        (b'm', _) => return None,
        _ => link,
    };
    let ours = tag.len() > 2
        && tag[0] == b'{'
        && tag[1..end].iter().all(u8::is_ascii_alphanumeric)
        && b"ermw".contains(kind);
    let link = link.parse().ok()?;
    ours.then_some((char::from(*kind), link))
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
        let of = bookkeeping_of(&watermark_key(&link, 77));
        assert_eq!(of, Some(('w', link)));
    }

    #[test]
    fn names_of_writers_read_what_they_write_and_others_are_told_apart() {
        let link: LinkName = "eu-west.1_b".parse().expect("valid");
        let name = writer_name(&link, u32::MAX, 7);
        let claim = Some((u32::MAX, 7));
        let link = |text: &str| text.parse::<LinkName>().expect("valid");
        let written = Writer {
            link: link("eu-west.1_b"),
            claim,
        };
        assert_eq!(Writer::parse(&name), Some(written));
        for (name, of) in [
            ("slotstream:a:5", "a"),
            ("slotstream:a:5:", "a"),
            ("slotstream:a:5:0:0", "a"),
            ("slotstream:a:+5:0", "a"),
            ("slotstream:a::", "a"),
            ("slotstream:a:4294967296:0", "a"),
        ] {
            let broken = Writer {
                link: link(of),
                claim: None,
            };
            assert_eq!(Writer::parse(name), Some(broken), "{name}");
        }
        for name in [
            "",
            "slotstream",
            "slotstream:",
            "slotstream:a",
            "slotstream::1:1",
            "a:b:1:1",
        ] {
            assert_eq!(Writer::parse(name), None, "{name}");
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
            "{06S}slotstream:m:default:",
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
