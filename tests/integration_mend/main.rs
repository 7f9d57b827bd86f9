//! Mending with real servers: what the source tells of a key, and keys that heal.
//!
//! | file | part |
//! |---|---|
//! | `again` | a process that ends before it has mended |
//! | `exact` | values and offset that a source tells are of one moment of its stream |
//! | `heal` | keys that somebody breaks under load |
//! | `replica` | a plain reader of a stream, to know what held at which offset |

mod again;
mod exact;
mod heal;
mod replica;
