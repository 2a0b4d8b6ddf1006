//! What every part of Mortar agrees on: ids, placement, names, errors, logging.
//!
//! This crate knows no network, no disk and no clock but [`ids::GfidMaker`]'s.

pub mod errors;
pub mod ids;
pub mod logging;
pub mod name;
pub mod placement;
pub mod signal;

pub use errors::FsError;
pub use ids::{BrickId, Gfid, Incarnation, PeerId, PoolId, SessionId, VolumeId};
pub use signal::Signal;
