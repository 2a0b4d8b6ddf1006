//! Raft's messages over gRPC.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use mortar_proto::control::RaftMessage;
use mortar_proto::control::raft_client::RaftClient;
use tonic::metadata::MetadataMap;

use super::Inner;
use super::cleared::Cleared;
use super::connect::Connections;
use super::network::{Rpc, Target, Transport, TransportError, address};
use super::types::PoolMeta;

/// Largest message between registries: a snapshot of a full registry stays below it.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// The words of a refusal by a peer that does not know yet what it had promised before it started.
pub const NOT_CLEARED: &str = "this peer asks the others first what it has promised";
/// Metadata of a refusal: the log index at which the sender was detached.
pub const DETACHED: &str = "mortar-detached";

/// Sends for one membership of one peer.
pub struct GrpcTransport {
    registry: Weak<Inner>,
    connections: Connections,
    pool: PoolMeta,
    cleared: Cleared,
}

impl GrpcTransport {
    pub(super) fn new(registry: &Arc<Inner>, pool: &PoolMeta, cleared: &Cleared) -> Self {
        GrpcTransport {
            registry: Arc::downgrade(registry),
            connections: registry.raft_connections.clone(),
            pool: pool.clone(),
            cleared: cleared.clone(),
        }
    }
}

impl Transport for GrpcTransport {
    fn call(
        &self,
        to: Target,
        rpc: Rpc,
        body: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>> {
        let registry = Weak::clone(&self.registry);
        let own = registry.upgrade().map(|inner| address(&inner.local()));
        let message = RaftMessage {
            address: own.unwrap_or_default(),
            body,
            from: self.pool.peer,
            to: to.id,
            pool: self.pool.pool,
            generation_id: self.pool.generation_id,
        };
        let channel = self.connections.to_address(&to.address);
        let (pool, cleared) = (self.pool.clone(), self.cleared.clone());
        async move {
            if !cleared.is() {
                return Err(TransportError::Failed(NOT_CLEARED.to_owned()));
            }
            let mut client = RaftClient::new(channel.map_err(TransportError::Failed)?)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            let call = async {
                match rpc {
                    Rpc::Vote => client.vote(message).await,
                    Rpc::PreVote => client.pre_vote(message).await,
                    Rpc::Append => client.append(message).await,
                    Rpc::Snapshot => client.snapshot(message).await,
                    Rpc::TransferLeader => client.transfer_leader(message).await,
                }
            };
            let answer = tokio::time::timeout(timeout, call).await.map_err(|_| {
                TransportError::Failed(format!("no answer in {} ms", timeout.as_millis()))
            })?;
            match answer {
                Ok(answer) => Ok(answer.into_inner().body),
                Err(status) => {
                    if let Some(at) = detached_at(status.metadata())
                        && let Some(registry) = registry.upgrade()
                    {
                        registry.hear_of_detachment(&pool, at);
                    }
                    Err(TransportError::Failed(status.message().to_owned()))
                }
            }
        }
        .boxed()
    }
}

/// The index at which this peer was detached, if that is why it was refused.
pub(super) fn detached_at(metadata: &MetadataMap) -> Option<u64> {
    metadata.get(DETACHED)?.to_str().ok()?.parse().ok()
}
