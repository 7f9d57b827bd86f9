//! Appends commands in wire form to a buffer.

/// Writes `*count` and then its arguments.
pub(super) struct CommandWriter<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> CommandWriter<'a> {
    /// Begins a command of `arguments` arguments, the verb included; exactly so many must follow.
    #[inline]
    pub fn new(out: &'a mut Vec<u8>, arguments: usize) -> Self {
        out.push(b'*');
        append_decimal(out, arguments as u64);
        out.extend_from_slice(b"\r\n");
        Self { out }
    }

    /// Goes on with a command whose first arguments `out` ends with.
    #[inline]
    pub fn within(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// A whole command.
    pub fn all(out: &mut Vec<u8>, arguments: &[&[u8]]) {
        let mut command = CommandWriter::new(out, arguments.len());
        for argument in arguments {
            command.arg(argument);
        }
    }

    #[inline]
    pub fn arg(&mut self, argument: &[u8]) -> &mut Self {
        self.head(argument.len());
        self.out.extend_from_slice(argument);
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// `$length`; so many bytes and CRLF must follow.
    #[inline]
    pub fn head(&mut self, length: usize) {
        self.out.push(b'$');
        append_decimal(self.out, length as u64);
        self.out.extend_from_slice(b"\r\n");
    }

    #[inline]
    pub fn number(&mut self, value: impl itoa::Integer) -> &mut Self {
        let mut buffer = itoa::Buffer::new();
        self.arg(buffer.format(value).as_bytes())
    }

    pub fn score(&mut self, score: f64) -> &mut Self {
        self.arg(score_text(score).as_bytes())
    }

    pub fn stream_id(&mut self, id: super::StreamId) -> &mut Self {
        let mut text = [0u8; 41];
        let mut numbers = itoa::Buffer::new();
        let first = numbers.format(id.milliseconds).as_bytes();
        let dash = first.len();
        text[..dash].copy_from_slice(first);
        text[dash] = b'-';
        let second = numbers.format(id.sequence).as_bytes();
        let end = dash + 1 + second.len();
        text[dash + 1..end].copy_from_slice(second);
        self.arg(&text[..end])
    }

    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.out
    }
}

/// The shortest text that reads back as the same score.
pub(super) fn score_text(score: f64) -> String {
    let magnitude = score.abs();
    if score.is_infinite() {
        return if score > 0.0 { "inf" } else { "-inf" }.into();
    }
    if magnitude != 0.0 && !(1e-5..1e17).contains(&magnitude) {
        format!("{score:e}")
    } else {
        format!("{score}")
    }
}

#[inline]
fn append_decimal(out: &mut Vec<u8>, value: u64) {
    if value < 10 {
        out.push(b'0' + value as u8);
    } else {
        out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }
}
