//! What `DUMP` answers and `RESTORE` takes, taken apart.
//!
//! ```text
//! type:u8 | value | version:u16 LE | CRC-64 of all before, LE
//! ```

use super::{Lineage, crc64};

const FOOTER_BYTES: usize = 10;

/// From this version on a payload is of Valkey; those between the last common one and it are of Redis.
const FIRST_VALKEY_VERSION: u16 = 80;

/// A serialized value that came by itself, without the snapshot around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload<'a> {
    pub type_code: u8,
    pub value: &'a [u8],
    pub version: u16,
}

impl<'a> Payload<'a> {
    /// `None` for what is too short to be one.
    pub fn split(bytes: &'a [u8]) -> Option<Self> {
        let (rest, footer) = bytes.split_at_checked(bytes.len().checked_sub(FOOTER_BYTES)?)?;
        let (&type_code, value) = rest.split_first()?;
        Some(Self {
            type_code,
            value,
            version: u16::from_le_bytes([footer[0], footer[1]]),
        })
    }

    pub fn lineage(&self) -> Lineage {
        match self.version >= FIRST_VALKEY_VERSION {
            true => Lineage::Valkey,
            false => Lineage::Redis,
        }
    }

    /// The payload with another version in its footer.
    pub fn with_version(&self, version: u16) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + self.value.len() + FOOTER_BYTES);
        bytes.push(self.type_code);
        bytes.extend_from_slice(self.value);
        bytes.extend_from_slice(&version.to_le_bytes());
        let checksum = crc64(0, &bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// A snapshot that holds nothing but this value, under the name `key`: what a [`super::Decoder`] reads.
    pub fn as_snapshot(&self, key: &[u8]) -> Vec<u8> {
        let mut bytes = match self.lineage() {
            Lineage::Redis => format!("REDIS{:04}", self.version),
            Lineage::Valkey => format!("VALKEY{:03}", self.version),
        }
        .into_bytes();
        bytes.reserve(self.value.len() + key.len() + 32);
        bytes.push(self.type_code);
        // A length of 32 bits.
        bytes.push(0x80);
        bytes.extend_from_slice(&(key.len() as u32).to_be_bytes());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(self.value);
        // The end, and no checksum.
        bytes.push(0xff);
        bytes.extend_from_slice(&[0; 8]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_put_together_as_it_was() {
        // DUMP of `SET k hello` on Redis 7.0.15.
        let dumped = b"\x00\x05hello\x0a\x00cr\xdfve4 \n";
        let payload = Payload::split(dumped).expect("long enough");
        assert_eq!((payload.type_code, payload.value), (0, &b"\x05hello"[..]));
        assert_eq!(payload.lineage(), Lineage::Redis);
        assert_eq!(payload.with_version(10), dumped);
        assert_ne!(payload.with_version(9), dumped);
        assert_eq!(Payload::split(&dumped[..10]), None);
    }
}
