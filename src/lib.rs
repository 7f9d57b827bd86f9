//! slotstream: one live Redis or Valkey cluster as an exact, continuously updated copy of another.

pub mod limits;
pub mod rdb;
pub mod resp;
