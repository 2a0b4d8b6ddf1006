//! Healing between two bricks in memory.

mod bytes;
mod changes;
pub mod double;
mod model;
mod rig;
mod scenarios;
pub mod tree;
