//! Healing between two bricks in memory.

mod bytes;
mod changes;
mod double;
mod model;
mod rig;
mod scenarios;
mod tree;
