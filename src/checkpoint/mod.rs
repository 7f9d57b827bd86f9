//! What the target knows about its own state: records and watermarks, as keys on the target itself.
//!
//! Layer 2, pure: names, encodings, and what may be concluded from what was found.
//!
//! A target master holds, beside the data that it was sent, what was sent: written on the same ordered connection, so that
//! a master which lost its last writes also lost what claims them. For each link:
//!
//! | key | type | one for each | holds |
//! |---|---|---|---|
//! | `{TAG}slotstream:e:LINK` | string | target master | the epoch: which process may write |
//! | `{TAG}slotstream:r:LINK` | hash | target master | field [`Generation`], value [`Record`]: how far a lane has come there |
//! | `{TAG}slotstream:w:LINK` | string | slot that saw a command which must not be repeated | [`Mark`]: the [`Watermark`] of the last one, and keys that it does not speak for |
//! | `{TAG}slotstream:m:LINK:N` | any | value that is written by elements to mend a key | the value, until it gets its name; it ends by itself |
//!
//! `TAG` puts the key into the slot that it belongs to ([`crate::slot::shortest_tag`]): a watermark into the slot that it is
//! about, the same with a mended value, the other two into any slot that the master owns. All but those values are in database 0. A single server is one slot, so there each
//! lane has one watermark, in the slot of the smallest slot of the source that it speaks for.
//!
//! | file | job |
//! |---|---|
//! | `names` | names of keys and connections |
//! | `watermark` | generations and watermarks |
//! | `record` | records |
//! | `recovery` | what follows from what was found |

mod names;
mod record;
mod recovery;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod toy;
mod watermark;

pub use names::{
    LinkName, LinkNameError, Writer, bookkeeping_of, epoch_key, is_bookkeeping, mend_key, part_key,
    record_key, token_key, watermark_key, writer_name,
};
pub use record::{Former, Record, RecordError, State};
pub use recovery::{Bookkeeping, CopyReason, Found, Resume, Start};
pub use watermark::{Generation, Mark, Owed, Watermark};
