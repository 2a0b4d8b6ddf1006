//! Mortar's FUSE client.
