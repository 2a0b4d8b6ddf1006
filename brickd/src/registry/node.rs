//! One Raft: this peer's part in one generation of one pool.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{BasicNode, Config, SnapshotPolicy};

use super::cleared::Cleared;
use super::disk::{Disk, Stored, from_json, to_json};
use super::log::Log;
use super::machine::{Applied, Machine};
use super::network::{Links, Rpc, SnapshotMessage, Transport};
use super::recall::Seen;
use super::types::{Metrics, PoolMeta, Raft, Snapshot};

/// When Raft acts, in milliseconds, and when it compacts, in log entries.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Between two heartbeats of the leader.
    pub heartbeat_ms: u64,
    /// Shortest wait of a follower, after the leader's lease has ended, before it stands.
    pub election_min_ms: u64,
    /// Longest such wait; also the leader's lease.
    pub election_max_ms: u64,
    /// Entries after which a snapshot is made.
    pub snapshot_every: u64,
    /// Entries kept behind the newest snapshot, so that a peer that was away for a moment is
    /// repaired from the log.
    pub log_kept: u64,
}

impl Default for Timing {
    /// For one LAN: a killed leader is replaced within 450 to 600 ms and two round trips. A vote
    /// has to be fsynced within `election_min_ms`.
    fn default() -> Self {
        Timing {
            heartbeat_ms: 50,
            election_min_ms: 150,
            election_max_ms: 300,
            snapshot_every: 1000,
            log_kept: 500,
        }
    }
}

/// Longest time for sending and installing a snapshot, in milliseconds.
const SNAPSHOT_MS: u64 = 5000;
/// Entries in one message.
const ENTRIES_PER_MESSAGE: u64 = 300;

/// A running Raft.
pub struct Node {
    /// openraft's handle.
    pub raft: Raft,
    /// Which pool and generation this is.
    pub pool: PoolMeta,
    /// What this peer remembers of the others.
    pub seen: Seen,
    /// Whether it takes part already.
    pub cleared: Cleared,
}

impl Node {
    /// Starts Raft on what the disk holds. It votes and leads as soon as this returns.
    pub async fn start(
        pool: PoolMeta,
        timing: &Timing,
        disk: Disk,
        mut stored: Stored,
        applied: Applied,
        transport: Arc<dyn Transport>,
        cleared: Cleared,
    ) -> Result<Self, String> {
        let config = Config {
            cluster_name: format!("{:016x}", pool.generation_id),
            heartbeat_interval: timing.heartbeat_ms,
            election_timeout_min: timing.election_min_ms,
            election_timeout_max: timing.election_max_ms,
            install_snapshot_timeout: SNAPSHOT_MS,
            max_payload_entries: ENTRIES_PER_MESSAGE,
            // A peer further behind than the log reaches gets a snapshot in any case.
            replication_lag_threshold: timing.snapshot_every + timing.log_kept,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(timing.snapshot_every),
            max_in_snapshot_log_to_keep: timing.log_kept,
            enable_pre_vote: Some(true),
            // The committed index is written lazily, so a restarted leader has to be elected.
            enable_leader_restore: Some(false),
            allow_log_reversion: Some(false),
            ..Config::default()
        };
        let config = Arc::new(config.validate().map_err(|error| error.to_string())?);
        let log = Log::new(disk.clone(), &mut stored);
        let seen = Seen::new(disk.clone(), &mut stored);
        let machine = Machine::new(disk, applied.clone(), &mut stored)
            .map_err(|error| format!("the snapshot is damaged: {error}"))?;
        let links = Links {
            transport,
            applied,
            seen: seen.clone(),
        };
        let raft = Raft::new(pool.peer, config, links, log, machine)
            .await
            .map_err(|error| error.to_string())?;
        Ok(Node {
            raft,
            pool,
            seen,
            cleared,
        })
    }

    /// Makes this peer the only voter of a new Raft; nothing if it has a log already.
    pub async fn initialize(&self, address: String) -> Result<(), String> {
        if self
            .raft
            .is_initialized()
            .await
            .map_err(|error| error.to_string())?
        {
            return Ok(());
        }
        let members = BTreeMap::from([(self.pool.peer, BasicNode::new(address))]);
        self.raft
            .initialize(members)
            .await
            .map_err(|error| error.to_string())
    }

    /// Answers a message of another peer's Raft.
    pub async fn answer(&self, rpc: Rpc, body: &[u8]) -> io::Result<Vec<u8>> {
        let raft = &self.raft;
        match rpc {
            Rpc::Vote => to_json(
                &raft
                    .vote(from_json(body)?)
                    .await
                    .map_err(io::Error::other)?,
            ),
            Rpc::PreVote => to_json(
                &raft
                    .pre_vote(from_json(body)?)
                    .await
                    .map_err(io::Error::other)?,
            ),
            Rpc::Append => to_json(
                &raft
                    .append_entries(from_json(body)?)
                    .await
                    .map_err(io::Error::other)?,
            ),
            Rpc::Snapshot => {
                let SnapshotMessage { vote, meta, bytes } = from_json(body)?;
                let snapshot = Snapshot {
                    meta,
                    snapshot: bytes,
                };
                let answer = raft.install_full_snapshot(vote, snapshot).await;
                to_json(&answer.map_err(io::Error::other)?)
            }
            Rpc::TransferLeader => {
                let answer = raft.handle_transfer_leader(from_json(body)?).await;
                to_json(&answer.map_err(io::Error::other)?)
            }
        }
    }

    /// Raft's newest numbers.
    pub fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow_watched().clone()
    }

    /// Whether this peer leads this generation of the pool, as far as it knows.
    pub fn leads_in(&self, generation_id: u64) -> bool {
        self.pool.generation_id == generation_id
            && self.raft.metrics().borrow_watched().current_leader == Some(self.pool.peer)
    }
}
