//! The decision logic of one copy of a replica set: event in, commands out.
//!
//! No tokio, clock, disk, network or randomness: every method is an event that happened, takes the
//! time (`now_ms`, CLOCK_BOOTTIME), changes this state and answers with [`Command`]s that the
//! driver carries out in their order. The seeded simulator in the tests crate drives the same
//! code.

pub mod types;

pub use types::*;
