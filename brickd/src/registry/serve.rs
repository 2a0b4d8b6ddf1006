//! The registry's gRPC services: Raft's messages, and what peers and clients ask of a pool.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use mortar_proto::WIRE_VERSION;
use mortar_proto::control::pool_server::{Pool, PoolServer};
use mortar_proto::control::raft_server::{Raft, RaftServer};
use mortar_proto::control::{
    BarrierReply, CheckPage, CheckRequest, Done, Empty, Identity, JoinReply, JoinRequest,
    LeaveRequest, LocalBricksReply, PrepareBrickReply, PrepareBrickRequest, RaftMessage,
    RecallReply, RecallRequest, RegistryStatusReply, VolumeHealReply, VolumeHealRequest,
    VolumeName, WatchViewRequest,
};
use mortar_proto::registry::{Command, Outcome, View};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::Registry;
use super::error::RegistryError;
use super::network::Rpc;
use super::node::Node;
use super::propose::{Attempt, CHANGE_ID, GENERATION_ID, NOT_TAKEN, PROPOSE_MS};
use super::transport::{DETACHED, MESSAGE_BYTES_MAX, NOT_CLEARED};
use super::types::Change;
use crate::host::LocalBricks;

/// The services to add to this peer's gRPC server.
pub fn services(
    registry: &Registry,
    bricks: Arc<dyn LocalBricks>,
) -> (RaftServer<RaftService>, PoolServer<RegistryService>) {
    let raft = RaftServer::new(RaftService {
        registry: registry.clone(),
    })
    .max_decoding_message_size(MESSAGE_BYTES_MAX)
    .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let pool = RegistryService {
        registry: registry.clone(),
        bricks,
    };
    (
        raft,
        PoolServer::new(pool).max_encoding_message_size(MESSAGE_BYTES_MAX),
    )
}

/// Raft's messages.
pub struct RaftService {
    registry: Registry,
}

impl RaftService {
    /// Asks who sends a message what it remembers of this peer. On the registry's own threads, so
    /// that it goes on when the sender does not wait for it.
    async fn ask_sender(&self, node: &Arc<Node>, address: String) -> Result<(), Status> {
        let node = Arc::clone(node);
        let asked = self.registry.run(move |inner| async move {
            inner.ask_to_recall(&node, &address).await;
            Ok(())
        });
        asked.await.map_err(status)
    }

    async fn answer(
        &self,
        rpc: Rpc,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        let message = request.into_inner();
        let life = self.registry.inner.life();
        let Some(node) = life.node else {
            return Err(Status::failed_precondition("this peer is in no pool"));
        };
        let pool = &node.pool;
        if (message.pool, message.generation_id) != (pool.pool, pool.generation_id) {
            return Err(Status::failed_precondition("this peer is in another pool"));
        }
        if message.to != pool.peer {
            return Err(Status::failed_precondition("this is another peer"));
        }
        let detached = life.applied.state().detached_at(message.from);
        if let Some(at) = detached {
            return Err(detached_status(at));
        }
        if !node.cleared.has_asked(message.from) {
            self.ask_sender(&node, message.address).await?;
        }
        if !(node.cleared.is() && node.cleared.has_asked(message.from)) {
            return Err(Status::unavailable(NOT_CLEARED));
        }
        let body = node.answer(rpc, &message.body).await;
        let body = body.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(RaftMessage {
            body,
            from: message.to,
            to: message.from,
            address: String::new(),
            pool: pool.pool,
            generation_id: pool.generation_id,
        }))
    }
}

fn detached_status(at: u64) -> Status {
    let mut metadata = MetadataMap::new();
    if let Ok(at) = at.to_string().parse() {
        metadata.insert(DETACHED, at);
    }
    let words = "this peer was detached from the pool";
    Status::with_metadata(tonic::Code::FailedPrecondition, words, metadata)
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        self.answer(Rpc::Vote, request).await
    }

    async fn pre_vote(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        self.answer(Rpc::PreVote, request).await
    }

    async fn append(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        self.answer(Rpc::Append, request).await
    }

    async fn snapshot(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        self.answer(Rpc::Snapshot, request).await
    }

    async fn transfer_leader(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        self.answer(Rpc::TransferLeader, request).await
    }
}

/// What peers and clients ask of a pool.
pub struct RegistryService {
    registry: Registry,
    bricks: Arc<dyn LocalBricks>,
}

impl RegistryService {
    /// Asks this host's bricks, which may block on the disk.
    async fn ask_bricks<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&dyn LocalBricks) -> T + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let bricks = Arc::clone(&self.bricks);
        let answer = tokio::task::spawn_blocking(move || ask(&*bricks)).await;
        answer
            .map(Response::new)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

#[tonic::async_trait]
impl Pool for RegistryService {
    type WatchViewStream = Pin<Box<dyn Stream<Item = Result<View, Status>> + Send>>;

    async fn watch_view(
        &self,
        request: Request<WatchViewRequest>,
    ) -> Result<Response<Self::WatchViewStream>, Status> {
        let views = self.registry.subscribe();
        let after = request.into_inner().after_index;
        let stopping = self.registry.inner.stopping.subscribe();
        let stream = stream::unfold((views, Some(after)), next_view)
            .map(Ok)
            .take_until(stopped(stopping));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        Ok(Response::new(
            self.registry.join(request.into_inner()).await,
        ))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<Done>, Status> {
        let request = request.into_inner();
        let left = self
            .registry
            .run(move |inner| async move { inner.leave(&request).await });
        left.await
            .map(Response::new)
            .map_err(|error| Status::unavailable(error.to_string()))
    }

    async fn propose(&self, request: Request<Command>) -> Result<Response<Outcome>, Status> {
        let Some(forwarded) = forwarded(request.metadata()) else {
            let outcome = self.registry.propose(request.into_inner()).await;
            return outcome.map(Response::new).map_err(status);
        };
        let Forwarded { id, generation_id } = forwarded?;
        let change = Change {
            id,
            command: request.into_inner(),
        };
        // The sender gives up sooner; this bounds what is left behind.
        let until = Instant::now() + 5 * Duration::from_millis(PROPOSE_MS);
        let attempt = self.registry.run(move |inner| async move {
            match inner.node() {
                Some(node) if node.leads_in(generation_id) => {
                    inner.lead(&node, &change, until).await
                }
                _ => Ok(Attempt::NotTaken),
            }
        });
        match attempt.await.map_err(status)? {
            Attempt::Answered(outcome) => Ok(Response::new(outcome)),
            Attempt::NotTaken => Err(not_taken()),
            Attempt::Unknown => Err(Status::unknown(
                "it is not known whether the change was made",
            )),
        }
    }

    async fn barrier(&self, request: Request<Empty>) -> Result<Response<BarrierReply>, Status> {
        let forwarded = forwarded(request.metadata()).transpose()?;
        let reply = |index, refusal: &str| BarrierReply {
            index,
            refusal: refusal.to_owned(),
        };
        let Some(Forwarded { generation_id, .. }) = forwarded else {
            let answer = self.registry.barrier().await;
            return Ok(Response::new(match answer {
                Ok(view) => reply(view.index, ""),
                Err(error) => reply(0, &error.to_string()),
            }));
        };
        let until = Instant::now() + Duration::from_millis(PROPOSE_MS);
        let index = self.registry.run(move |inner| async move {
            match inner.node() {
                Some(node) if node.leads_in(generation_id) => {
                    Ok(inner.lead_read(&node, until).await)
                }
                _ => Ok(None),
            }
        });
        Ok(Response::new(match index.await.map_err(status)? {
            Some(index) => reply(index, ""),
            None => reply(0, "this peer does not lead"),
        }))
    }

    async fn local_bricks(
        &self,
        request: Request<VolumeName>,
    ) -> Result<Response<LocalBricksReply>, Status> {
        let volume = request.into_inner().volume;
        self.ask_bricks(move |bricks| LocalBricksReply {
            bricks: bricks.states(&volume),
        })
        .await
    }

    async fn prepare_brick(
        &self,
        request: Request<PrepareBrickRequest>,
    ) -> Result<Response<PrepareBrickReply>, Status> {
        let request = request.into_inner();
        self.ask_bricks(move |bricks| bricks.prepare(&request))
            .await
    }

    async fn local_heal(
        &self,
        request: Request<VolumeHealRequest>,
    ) -> Result<Response<VolumeHealReply>, Status> {
        let request = request.into_inner();
        self.ask_bricks(move |bricks| bricks.heal(&request)).await
    }

    async fn local_check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckPage>, Status> {
        let request = request.into_inner();
        self.ask_bricks(move |bricks| bricks.check(&request)).await
    }

    async fn identify(&self, _request: Request<Empty>) -> Result<Response<Identity>, Status> {
        let inner = &self.registry.inner;
        let (identity, life) = (inner.identity(), inner.life());
        let state = life.applied.state();
        Ok(Response::new(Identity {
            peer: identity.peer,
            pool: life.node.as_ref().map_or(0, |node| node.pool.pool),
            uuid: identity.uuid,
            wire_version: WIRE_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            volumes: state.view.volumes.len() as u32,
            peers: state.view.peers.len() as u32,
        }))
    }

    async fn status(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<RegistryStatusReply>, Status> {
        Ok(Response::new(self.registry.inner.own_status()))
    }

    async fn recall(
        &self,
        request: Request<RecallRequest>,
    ) -> Result<Response<RecallReply>, Status> {
        let recalled = self.registry.inner.recall(request.get_ref());
        recalled.map(Response::new).map_err(detached_status)
    }
}

type Watch = tokio::sync::watch::Receiver<Arc<View>>;

/// The next view to send: at first the current one, unless the reader has it, then each new one.
async fn next_view(
    (mut views, first): (Watch, Option<u64>),
) -> Option<(View, (Watch, Option<u64>))> {
    if let Some(has) = first {
        let now = Arc::clone(&views.borrow_and_update());
        if has == 0 || now.index != has {
            return Some((View::clone(&now), (views, None)));
        }
    }
    views.changed().await.ok()?;
    let now = Arc::clone(&views.borrow_and_update());
    Some((View::clone(&now), (views, None)))
}

async fn stopped(mut stopping: tokio::sync::watch::Receiver<bool>) {
    // An error means that the registry is gone, which is the same.
    drop(stopping.wait_for(|stopping| *stopping).await);
}

/// What a peer says with a request that it forwards.
struct Forwarded {
    id: u64,
    generation_id: u64,
}

/// `None` = the request comes at first hand.
fn forwarded(metadata: &MetadataMap) -> Option<Result<Forwarded, Status>> {
    let number = |key| {
        let digits = metadata.get(key)?.to_str().ok()?;
        u64::from_str_radix(digits, 16).ok()
    };
    metadata.get(CHANGE_ID)?;
    let read = number(CHANGE_ID).zip(number(GENERATION_ID));
    let read = read.map(|(id, generation_id)| Forwarded { id, generation_id });
    Some(read.ok_or_else(|| Status::invalid_argument("ids are 16 hex digits")))
}

fn not_taken() -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(NOT_TAKEN, tonic::metadata::MetadataValue::from_static("1"));
    Status::with_metadata(
        tonic::Code::Unavailable,
        "this peer does not lead",
        metadata,
    )
}

fn status(error: RegistryError) -> Status {
    Status::unavailable(error.to_string())
}
