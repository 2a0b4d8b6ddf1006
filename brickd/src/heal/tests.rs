//! Healing between two bricks in memory.

mod bytes;
mod changes;
pub(crate) mod double;
mod model;
mod rig;
mod scenarios;
pub(crate) mod tree;
