//! Mortar's wire: the messages of both planes and the frames of the data plane.
//!
//! The messages are the domain types too: no other crate holds a second copy of one.

pub mod frame;

/// The data plane: requests, replies, ordered changes, links between peers.
#[allow(missing_docs)] // Documented in proto/data.proto, from which this is made.
pub mod data {
    tonic::include_proto!("mortar.data");
}

/// The registry's state and the changes to it.
#[allow(missing_docs)] // Documented in proto/registry.proto.
pub mod registry {
    tonic::include_proto!("mortar.registry");
}

/// The control plane's services.
#[allow(missing_docs)] // Documented in proto/control.proto.
pub mod control {
    tonic::include_proto!("mortar.control");
}

/// Version of both planes. A peer or client of another version is refused with a sentence.
///
/// 1: the first.
pub const WIRE_VERSION: u32 = 1;

/// Slots of a session: changes it can have under way at a time. Bricks keep the last result of each;
/// a change in a slot beyond them is refused, since nothing would tell that it came twice.
pub const SLOTS_PER_SESSION: u32 = 1024;
