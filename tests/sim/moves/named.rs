//! Sequences of events by name: each is what breaks a lane that does less about slots that move.
