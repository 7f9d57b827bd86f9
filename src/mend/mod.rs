//! Mending: a key of the target gets the source's value again, exactly, while the stream goes on.
//!
//! Layer 2, pure. What a source master answers to `MULTI`, `DUMP` of some keys, `INFO replication`, `EXEC` is their values
//! and the offset `O` of its stream at which they held. Written to the target in the place of everything that the stream
//! does to these keys before `O`, they put right whatever was wrong:
//!
//! ```text
//! stream of the slot    a  k!  b  k  a     k  b  |O  k  a  k
//!                          ^ shows that k differs: the slot waits, the source is asked
//! sent to the target    a      b     a        b  [k = value at O]  k  a  k
//! ```
//!
//! What touches a mended key and others draws these in: it is left out as a whole, and the source is asked again for all of
//! them at a later offset. The write at `O` goes out when everything of the slot before it is answered.
//!
//! | file | job |
//! |---|---|
//! | `question` | what the source is asked, and its answer |
//! | `set` | the keys of one slot that are mended together: what is sent, left out, held |
//! | `value` | the commands that write a value, whatever the target takes |

mod question;
mod set;
mod value;

pub use question::{Answer, Question, Snapshot, Taken};
pub use set::{Key, Mend, Stage, TooManyKeys, Touched, Values, Verdict};
pub use value::{Write, Written};
