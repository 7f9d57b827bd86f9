//! slotstream: one live Redis or Valkey cluster as an exact, continuously updated copy of another.

pub mod chunk;
pub mod command;
pub mod engine;
pub mod fault;
pub mod limits;
pub mod position;
pub mod rdb;
pub mod resp;
pub mod runtime;
pub mod slot;
pub mod source;
pub mod target;
pub mod topology;
