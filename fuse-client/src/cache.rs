//! What the client remembers between requests: inodes the kernel knows, and names.

mod attrs;
mod inodes;
mod names;

pub use attrs::{Attrs, Timestamp};
pub use inodes::{Cached, Inodes, Pages, Wrote};
pub use names::Names;

/// How the kernel calls an inode.
///
/// `st_ino` must stay the same over remounts: it is the gfid's low half, which the maker draws at
/// random. The nodeid is the same number, so that no second table is needed (and fuser 0.18 has one
/// field for both); 1 is the root of the mount. Two objects with the same low half are told apart
/// and the second is refused with EIO.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the mount.
    pub const ROOT: NodeId = NodeId(1);
}
