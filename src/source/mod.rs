//! The source side: how to be a replica, without a socket.
//!
//! [`Session`] speaks the replica handshake up to the first byte of the snapshot or of the stream; from there on
//! the lane reads commands. [`acknowledgement`] is what a replica sends back meanwhile.
//!
//! ```text
//! us:      [AUTH] PING, REPLCONF listening-port, REPLCONF capa, REPLCONF version      (all at once)
//! source:  one reply each                                  unknown REPLCONF options answer -ERR: harmless
//! us:      INFO replication                                 only to go on where the stream was left
//! us:      PSYNC <replid|?> <offset|-1>
//! source:  \n \n ...                                        one each second while it prepares
//!          +CONTINUE [replid]                            -> the stream goes on
//!          +FULLRESYNC replid offset \n \n ... $<length> -> that many bytes of snapshot, then the stream
//!                                              $EOF:<40> -> snapshot, the same 40 bytes, then the stream
//! ```
//!
//! Seen on Redis 6.0, 7.0, 8.0 and Valkey 8.0, 8.1, 9.1 (`replication.c`: `syncCommand`, `replconfCommand`).

mod session;

pub use session::{Continued, Event, Framing, Greeting, Session, SourceError, acknowledgement};
