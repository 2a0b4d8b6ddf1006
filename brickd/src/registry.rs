//! The peer registry: a small Raft-replicated state of peers, volumes, bricks, options and epochs.
