//! Writing commands: the few that slotstream sends on its own account.

/// Appends one command in RESP to a buffer.
///
/// `begin` states the number of arguments, then exactly as many `arg` calls follow; the debug build checks it.
pub struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    left: usize,
}

impl<'a> Encoder<'a> {
    /// Starts a command of `argc` arguments, the verb included.
    pub fn begin(out: &'a mut Vec<u8>, argc: usize) -> Self {
        push_header(out, b'*', argc);
        Self { out, left: argc }
    }

    /// Appends one argument.
    pub fn arg(&mut self, value: &[u8]) -> &mut Self {
        self.take();
        push_header(self.out, b'$', value.len());
        self.out.extend_from_slice(value);
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// Appends an integer as an argument.
    pub fn number(&mut self, value: u64) -> &mut Self {
        let mut text = [0u8; 20];
        let start = decimal(&mut text, value);
        self.arg(&text[start..])
    }

    fn take(&mut self) {
        debug_assert!(self.left > 0, "more arguments than were announced");
        self.left -= 1;
    }
}

impl Drop for Encoder<'_> {
    fn drop(&mut self) {
        debug_assert!(self.left == 0, "fewer arguments than were announced");
    }
}

/// Appends a whole command.
pub fn push_command(out: &mut Vec<u8>, args: &[&[u8]]) {
    let mut command = Encoder::begin(out, args.len());
    for arg in args {
        command.arg(arg);
    }
}

/// Appends `<mark><length>\r\n`.
fn push_header(out: &mut Vec<u8>, mark: u8, length: usize) {
    let mut text = [0u8; 20];
    let start = decimal(&mut text, length as u64);
    out.push(mark);
    out.extend_from_slice(&text[start..]);
    out.extend_from_slice(b"\r\n");
}

/// Writes `value` right-aligned into `text`; gives where it starts.
fn decimal(text: &mut [u8; 20], mut value: u64) -> usize {
    let mut at = text.len();
    loop {
        at -= 1;
        text[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::scan;

    #[test]
    fn what_is_encoded_scans_as_it_was() {
        let mut out = Vec::new();
        push_command(&mut out, &[b"SET", b"k\r\n", b""]);
        Encoder::begin(&mut out, 3)
            .arg(b"REPLCONF")
            .arg(b"ACK")
            .number(u64::MAX);
        let first = scan(&out).unwrap().unwrap();
        assert_eq!(
            first.args().collect::<Vec<_>>(),
            [&b"SET"[..], b"k\r\n", b""]
        );
        let second = scan(&out[first.bytes().len()..]).unwrap().unwrap();
        assert_eq!(second.arg(2), Some(&b"18446744073709551615"[..]));
    }
}
