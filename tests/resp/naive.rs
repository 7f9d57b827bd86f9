//! The scanners of RESP as one would write them first: what the real ones must agree with.

use slotstream::limits;
use slotstream::resp::ReplySink;

/// Length and arguments of a command.
pub type Command = (usize, Vec<Vec<u8>>);

/// The naive twin of `scan`: a line, a length, the bytes, one after the other. `Ok(None)`: cut short.
pub fn naive_scan(bytes: &[u8]) -> Result<Option<Command>, ()> {
    let mut rest = bytes;
    let Some(argc) = naive_number(&mut rest, b'*')? else {
        return Ok(None);
    };
    let mut args = Vec::new();
    for _ in 0..argc {
        let Some(length) = naive_number(&mut rest, b'$')? else {
            return Ok(None);
        };
        let tail = &rest[length.min(rest.len())..];
        if !b"\r\n".starts_with(&tail[..tail.len().min(2)]) {
            return Err(());
        }
        if tail.len() < 2 {
            return Ok(None);
        }
        args.push(rest[..length].to_vec());
        rest = &tail[2..];
    }
    if argc == 0 {
        return Err(());
    }
    Ok(Some((bytes.len() - rest.len(), args)))
}

fn naive_number(rest: &mut &[u8], mark: u8) -> Result<Option<usize>, ()> {
    let Some((&first, tail)) = rest.split_first() else {
        return Ok(None);
    };
    if first != mark {
        return Err(());
    }
    let digits = tail.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, after) = tail.split_at(digits);
    if after.is_empty() && digits < 8 {
        return Ok(None);
    }
    if number.is_empty() || digits > 7 || (number[0] == b'0' && digits > 1) {
        return Err(());
    }
    if !b"\r\n".starts_with(&after[..after.len().min(2)]) {
        return Err(());
    }
    if after.len() < 2 {
        return Ok(None);
    }
    *rest = &after[2..];
    let text = std::str::from_utf8(number).map_err(|_| ())?;
    text.parse().map(Some).map_err(|_| ())
}

/// What a scanner told: replies that are no errors so far, then each error.
#[derive(Debug, Default, PartialEq)]
pub struct Log {
    pub succeeded: u64,
    pub failed: Vec<(u64, String, Option<usize>)>,
}

impl ReplySink for Log {
    fn succeeded(&mut self, count: u64) {
        self.succeeded += count;
    }
    fn failed(&mut self, text: &[u8], behind: Option<usize>) {
        let text = String::from_utf8_lossy(text).into_owned();
        self.failed.push((self.succeeded, text, behind));
    }
}

/// Where bytes of replies end.
#[derive(Debug, PartialEq)]
pub enum ReplyEnd {
    Boundary,
    /// Within a reply.
    Open,
    Bad,
}

/// The naive twin of `ReplyScanner`: all bytes are at hand, and a reply is read by recursion.
pub fn naive_replies(mut bytes: &[u8]) -> (Log, ReplyEnd) {
    let mut log = Log::default();
    while !bytes.is_empty() {
        match naive_reply(&mut bytes, &mut log, 0, None) {
            Ok(is_success) => log.succeeded += u64::from(is_success),
            Err(end) => return (log, end),
        }
    }
    (log, ReplyEnd::Boundary)
}

/// Reads one reply; whether it counts as a success of its own. `behind`: elements of the outermost array that follow.
fn naive_reply(
    rest: &mut &[u8],
    log: &mut Log,
    depth: usize,
    behind: Option<usize>,
) -> Result<bool, ReplyEnd> {
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
        let is_too_long = rest.len() > limits::MAX_REPLY_LINE;
        return Err(if is_too_long {
            ReplyEnd::Bad
        } else {
            ReplyEnd::Open
        });
    };
    let line = &rest[..end];
    *rest = &rest[end + 1..];
    if line.len() + 1 > limits::MAX_REPLY_LINE {
        return Err(ReplyEnd::Bad);
    }
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (kind, text) = line.split_first().ok_or(ReplyEnd::Bad)?;
    let number = |limit: usize| {
        let text = std::str::from_utf8(text).map_err(|_| ReplyEnd::Bad)?;
        match text.parse::<usize>() {
            _ if text == "-1" => Ok(None),
            Ok(number) if number <= limit => Ok(Some(number)),
            _ => Err(ReplyEnd::Bad),
        }
    };
    match kind {
        b'+' | b':' => Ok(true),
        b'-' => {
            log.failed(text, behind);
            Ok(depth > 0)
        }
        b'$' => {
            if let Some(length) = number(limits::MAX_FRAME_BYTES)? {
                *rest = rest.get(length + 2..).ok_or(ReplyEnd::Open)?;
            }
            Ok(true)
        }
        b'*' => {
            let count = number(limits::MAX_ARGUMENTS)?.unwrap_or(0);
            if count > 0 && depth == limits::MAX_REPLY_DEPTH {
                return Err(ReplyEnd::Bad);
            }
            for at in 0..count {
                let behind = behind.unwrap_or(count - at - 1);
                naive_reply(rest, log, depth + 1, Some(behind))?;
            }
            Ok(true)
        }
        _ => Err(ReplyEnd::Bad),
    }
}
