//! All bricks of this host: starts and stops them as the registry says, and answers for them.

use mortar_proto::control::{
    BrickState, PrepareBrickReply, PrepareBrickRequest, VolumeHealReply, VolumeHealRequest,
};

/// What the control plane may ask of this host's bricks. Calls may block on the disk: call them
/// from a thread that may.
pub trait LocalBricks: Send + Sync {
    /// The state of this host's bricks of `volume` (empty = of all volumes).
    fn states(&self, volume: &str) -> Vec<BrickState>;
    /// Checks, makes or undoes a brick folder for `volume create`.
    fn prepare(&self, request: &PrepareBrickRequest) -> PrepareBrickReply;
    /// Starts a heal, or reports on it, for this host's bricks of a volume.
    fn heal(&self, request: &VolumeHealRequest) -> VolumeHealReply;
}
