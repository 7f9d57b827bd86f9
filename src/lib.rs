//! slotstream: one live Redis or Valkey cluster as an exact, continuously updated copy of another.

pub mod engine;
pub mod fault;
pub mod limits;
pub mod resp;
pub mod slot;
pub mod topology;
