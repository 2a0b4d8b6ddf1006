//! The cluster fault suite: programs on several mounts work and note what they were told, a seeded
//! nemesis kills, freezes, restarts and cuts off what they work on, and a checker judges the record.
//!
//! - [`history`] is the record, [`check`] the judgement of it: pure, and tested with lies.
//! - [`plan`] is what the nemesis will do: a pure function of the seed.
//! - `nemesis` does it, `work` is what the programs do, [`run`] is one round of all that.

pub mod check;
pub mod history;
pub mod plan;

mod nemesis;
mod round;
mod seats;
mod summary;
mod work;

pub use round::{Rig, RoundFailed};
pub use summary::Summary;
