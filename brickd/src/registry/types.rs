//! The types Raft is made of here. openraft is named in this module tree only.

use std::fmt;

use mortar_proto::registry::{Command, Outcome};
use serde::{Deserialize, Serialize};

/// One proposal as Raft's log holds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// Random id of the proposal, by which a resent one is known; 0 = none.
    pub id: u64,
    /// What is to be changed.
    pub command: Command,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "change {:016x}", self.id)
    }
}

openraft::declare_raft_types!(
    /// Mortar's choice of openraft's types.
    pub Types:
        D = Change,
        R = Outcome,
        NodeId = u64,
        Node = openraft::BasicNode,
);

pub type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub type Vote = openraft::type_config::alias::VoteOf<Types>;
pub type Entry = openraft::type_config::alias::EntryOf<Types>;
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;
pub type Snapshot = openraft::type_config::alias::SnapshotOf<Types, Vec<u8>>;
pub type IoFlushed = openraft::storage::IOFlushed<Types>;
pub type Metrics = openraft::RaftMetrics<Types>;
pub type Raft = openraft::Raft<Types, super::machine::Machine>;

/// Which pool, and which of its generations, a Raft log belongs to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolMeta {
    /// Whose log this is: a log found under another identity is not continued.
    pub peer: u64,
    /// Random id of the pool; stays over `registry recover`.
    pub pool: u64,
    /// Counts recoveries; for people.
    pub generation: u64,
    /// Random id of the generation: two that were founded without each other differ here.
    pub generation_id: u64,
    /// The inviter's log index when this peer was invited, 0 for a founder: what is older than
    /// this and speaks of this peer's membership speaks of a former one.
    pub joined_at: u64,
    /// What the founder still has to propose. Kept until it is applied, so that a crash in
    /// between loses nothing.
    pub founding: Vec<Command>,
}
