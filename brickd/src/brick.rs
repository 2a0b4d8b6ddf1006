//! One brick: a folder on a disk that holds a copy of a replica set as plain files.
//!
//! Knows ordered changes and reads; knows nothing of peers, epochs, sessions or the network.

pub mod store;

pub use store::{BrickError, HealSource, Store, StoredState};
