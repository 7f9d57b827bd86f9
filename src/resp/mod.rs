//! RESP, the wire format: commands found as ranges of a buffer, replies counted, commands written.
//!
//! A replicated command already is the RESP that the target wants, so the scanner only finds where it
//! ends and where its first arguments lie; nothing is copied.
//!
//! ```text
//! *3\r\n $3\r\nSET\r\n $3\r\nkey\r\n $5\r\nvalue\r\n
//! ^ Frame::bytes() is all of it; arg(0) = SET, arg(1) = key
//! ```

mod encode;
mod frame;
mod reply;

pub use encode::{Encoder, push_command};
pub use frame::{Args, Frame, FrameError, scan};
pub use reply::{ErrorKind, ReplyError, ReplyScanner, ReplySink, Value, parse_value};
