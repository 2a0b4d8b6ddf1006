//! Raft's messages to other peers. How they travel is a [`Transport`]: gRPC between brickds, a
//! double that can be cut in tests.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::entry::RaftEntry;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, RaftNetworkV2};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::disk::{from_json, to_json};
use super::machine::Applied;
use super::recall::{Position, Seen};
use super::types::{Snapshot, SnapshotMeta, Types, Vote};

/// How long after a failed message the next one is tried, in milliseconds: a peer that comes back
/// is to be repaired at once.
const RETRY_MS: u64 = 100;

/// Which message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rpc {
    /// A candidate asks for a vote.
    Vote,
    /// A peer asks whether it would get votes; nothing changes.
    PreVote,
    /// Log entries, or the leader's heartbeat.
    Append,
    /// The whole state, for a peer that is behind the compacted log.
    Snapshot,
    /// The leader names its successor.
    TransferLeader,
}

/// Whom a message is for.
#[derive(Clone, Debug)]
pub struct Target {
    /// The peer's id.
    pub id: u64,
    /// HOST:PORT.
    pub address: String,
}

/// Why a message was not answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// The peer cannot be reached, or not in time, or does not take part.
    #[error("{0}")]
    Failed(String),
}

/// Carries one message and its answer.
pub trait Transport: Send + Sync + 'static {
    /// Sends and waits for the answer, at most for `timeout`.
    fn call(
        &self,
        to: Target,
        rpc: Rpc,
        body: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>>;
}

/// A snapshot as it travels.
#[derive(Serialize, Deserialize)]
pub struct SnapshotMessage {
    pub vote: Vote,
    pub meta: SnapshotMeta,
    pub bytes: Vec<u8>,
}

/// Makes the links of one Raft.
pub struct Links {
    pub transport: Arc<dyn Transport>,
    pub applied: Applied,
    pub seen: Seen,
}

impl RaftNetworkFactory<Types> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Link {
        Link {
            target,
            first_address: node.addr.clone(),
            transport: Arc::clone(&self.transport),
            applied: self.applied.clone(),
            seen: self.seen.clone(),
        }
    }
}

/// The way to one peer.
pub struct Link {
    target: u64,
    first_address: String,
    transport: Arc<dyn Transport>,
    applied: Applied,
    seen: Seen,
}

impl Link {
    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        rpc: Rpc,
        question: &Q,
        timeout: Duration,
    ) -> Result<A, RPCError<Types>> {
        // The view knows a peer's newest address; a peer that was just added is not in it yet.
        let known = self
            .applied
            .state()
            .view
            .peers
            .get(&self.target)
            .map(address);
        let address = known.unwrap_or_else(|| self.first_address.clone());
        let body = to_json(question).map_err(|error| NetworkError::new(&error))?;
        let target = Target {
            id: self.target,
            address,
        };
        let answer = self.transport.call(target, rpc, body, timeout).await;
        let answer = answer.map_err(|error| Unreachable::new(&error))?;
        Ok(from_json(&answer).map_err(|error| NetworkError::new(&error))?)
    }
}

/// How far a peer has come that has taken all of this.
fn position_of(request: &AppendEntriesRequest<Types>) -> Position {
    let last = request.entries.last().map(|entry| entry.log_id());
    Position::new(last.max(request.prev_log_id), Some(request.vote))
}

/// HOST:PORT of a peer, an IPv6 address in brackets.
pub fn address(peer: &mortar_proto::registry::Peer) -> String {
    host_port(&peer.host, peer.port)
}

/// HOST:PORT, an IPv6 address in brackets.
pub fn host_port(host: &str, port: u32) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let answer: AppendEntriesResponse<Types> =
            self.call(Rpc::Append, &rpc, option.hard_ttl()).await?;
        if answer.is_success() {
            self.seen.note(self.target, position_of(&rpc));
        }
        Ok(answer)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let answer: VoteResponse<Types> = self.call(Rpc::Vote, &rpc, option.hard_ttl()).await?;
        if answer.vote_granted {
            let position = Position::new(None, Some(answer.vote));
            self.seen.note(self.target, position);
        }
        Ok(answer)
    }

    // Not left to the default, which grants: a peer that cannot be asked has granted nothing.
    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(Rpc::PreVote, &rpc, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let message = SnapshotMessage {
            vote,
            meta: snapshot.meta,
            bytes: snapshot.snapshot,
        };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = self.call(Rpc::Snapshot, &message, option.hard_ttl()) => {
                let answer: SnapshotResponse<Types> = answer?;
                // A peer that has promised a newer leader answers with that vote, and has installed
                // nothing.
                if answer.vote == message.vote {
                    self.seen
                        .note(self.target, Position::new(message.meta.last_log_id, None));
                }
                Ok(answer)
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.call(Rpc::TransferLeader, &req, option.hard_ttl())
            .await
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(
            RETRY_MS,
        ))))
    }
}
