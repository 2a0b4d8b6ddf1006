//! Who is in the pool: founding, joining, inviting, leaving, recovering.
//!
//! What keeps late messages from undoing newer memberships: each membership carries the inviter's
//! log index (`joined_at`), each dismissal the index of the removal, and an older one is ignored.
//! A peer that leaves takes a new id, so Raft never sees one id with two logs.

mod invite;

pub use invite::Invited;

use std::sync::Arc;
use std::time::Duration;

use mortar_common::ids::random_id;
use mortar_proto::WIRE_VERSION;
use mortar_proto::control::{Done, JoinReply, JoinRequest, LeaveRequest};
use mortar_proto::registry::{Command, FoundPool, NewGeneration, Peer, PutPeer, command::What};
use tokio::time::Instant;

use super::disk::{Key, Put, to_json};
use super::error::RegistryError;
use super::identity::Identity;
use super::network::address;
use super::propose::Attempt;
use super::state::State;
use super::types::{Change, PoolMeta};
use super::{Inner, Registry};

/// Between two looks at what is waited for, in milliseconds.
const LOOK_MS: u64 = 20;
/// Longest time for a founder to propose what its pool begins with, in milliseconds.
const FOUND_MS: u64 = 5000;

impl Registry {
    /// Asked of this peer by a pool that invites it. A refusal is in the reply.
    pub async fn join(&self, request: JoinRequest) -> JoinReply {
        let joined = self
            .run(move |inner| async move { inner.join(request).await })
            .await;
        match joined {
            Ok(peer) => JoinReply {
                refusal: String::new(),
                peer: Some(peer),
            },
            Err(error) => JoinReply {
                refusal: error.to_string(),
                peer: None,
            },
        }
    }

    /// `registry recover`: this peer alone begins a new generation of its pool from what it last
    /// applied. The others belong to it again when they are probed.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] without `force`, on a peer in no pool, and while there is a
    /// quorum.
    pub async fn recover(&self, force: bool) -> Result<(), RegistryError> {
        self.run(move |inner| async move { inner.recover(force).await })
            .await
    }
}

fn refused<T>(sentence: impl Into<String>) -> Result<T, RegistryError> {
    Err(RegistryError::Refused(sentence.into()))
}

fn put_peer(peer: Peer) -> Command {
    put_peer_for(peer, 0)
}

/// The peer takes the place of another one; of none with 0.
fn put_peer_for(peer: Peer, replaces: u64) -> Command {
    let put = PutPeer {
        peer: Some(peer),
        replaces,
    };
    Command {
        what: Some(What::PutPeer(put)),
    }
}

impl Inner {
    fn check_running(&self) -> Result<(), RegistryError> {
        match *self.stopping.borrow() {
            true => Err(RegistryError::stopped("it was shut down")),
            false => Ok(()),
        }
    }

    /// Founds a pool of one, if this peer is in none.
    pub(super) async fn found_if_alone(self: &Arc<Self>) -> Result<(), RegistryError> {
        if self.node().is_some() {
            return Ok(());
        }
        let _one_at_a_time = self.pool_lock.lock().await;
        self.found_locked().await
    }

    async fn found_locked(self: &Arc<Self>) -> Result<(), RegistryError> {
        self.check_running()?;
        if self.node().is_some() {
            return Ok(());
        }
        let pool = random_id();
        let meta = PoolMeta {
            peer: self.identity().peer,
            pool,
            generation: 1,
            generation_id: random_id(),
            joined_at: 0,
            founding: vec![
                Command {
                    what: Some(What::FoundPool(FoundPool { pool })),
                },
                put_peer(self.local()),
            ],
        };
        self.begin_life(Some(meta), State::default()).await?;
        self.finish_founding().await?;
        tracing::info!("founded the pool {pool:016x}");
        Ok(())
    }

    /// Proposes what the pool begins with. Repeating it after a crash changes nothing more.
    async fn finish_founding(self: &Arc<Self>) -> Result<(), RegistryError> {
        let Some(node) = self.node() else {
            return Ok(());
        };
        if node.pool.founding.is_empty() {
            return Ok(());
        }
        node.initialize(address(&self.local()))
            .await
            .map_err(RegistryError::stopped)?;
        let deadline = Instant::now() + Duration::from_millis(FOUND_MS);
        for command in &node.pool.founding {
            let change = Change {
                id: 0,
                command: command.clone(),
            };
            while !matches!(
                self.lead(&node, &change, deadline).await?,
                Attempt::Answered(_)
            ) {
                if Instant::now() >= deadline {
                    return Err(RegistryError::NoLeader {
                        reachable: 1,
                        voters: 1,
                    });
                }
                tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
            }
        }
        let done = PoolMeta {
            founding: Vec::new(),
            ..node.pool.clone()
        };
        let bytes = to_json(&done).map_err(RegistryError::stopped)?;
        let written = self
            .life()
            .disk
            .write_durable(vec![Put::Meta(Key::Pool, bytes)])
            .await;
        written.map_err(|error| RegistryError::storage(&self.file(), error))
    }

    /// After a start: in case the founder was stopped in between.
    pub(super) fn finish_founding_later(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = inner.finish_founding().await {
                tracing::error!("the pool's founding could not be finished: {error}");
            }
        });
    }

    /// The log index this peer has applied.
    fn log_applied(&self) -> u64 {
        let applied = self.node().and_then(|node| node.metrics().last_applied);
        applied.map_or(0, |log_id| log_id.index)
    }

    async fn join(self: &Arc<Self>, request: JoinRequest) -> Result<Peer, RegistryError> {
        let Ok(_one_at_a_time) = self.pool_lock.try_lock() else {
            return refused("a peer command is running on that host: try again after some time");
        };
        self.check_running()?;
        let identity = self.identity();
        let asked = request.you.clone().unwrap_or_default();
        if request.wire_version != WIRE_VERSION {
            return refused(format!(
                "the inviting peer speaks wire version {}; this one {WIRE_VERSION}: run the same \
                 version on both",
                request.wire_version
            ));
        }
        if asked.id != identity.peer || request.pool == 0 || request.generation_id == 0 {
            return refused(format!(
                "{} is another peer than it was: probe again",
                asked.host
            ));
        }
        let joined = self.may_join(&request, &asked.host)?;
        let identity = match joined {
            Joining::Again => identity,
            Joining::AsIs => {
                self.enter(&request, identity.clone()).await?;
                identity
            }
            Joining::Renewed => {
                let renewed = self.renew_identity()?;
                self.enter(&request, renewed.clone()).await?;
                renewed
            }
        };
        Ok(Peer {
            id: identity.peer,
            uuid: identity.uuid,
            ..asked
        })
    }

    async fn enter(
        self: &Arc<Self>,
        request: &JoinRequest,
        identity: Identity,
    ) -> Result<(), RegistryError> {
        let meta = PoolMeta {
            peer: identity.peer,
            pool: request.pool,
            generation: request.generation,
            generation_id: request.generation_id,
            joined_at: request.index,
            founding: Vec::new(),
        };
        self.begin_life(Some(meta), State::default()).await?;
        let inviter = request
            .inviter
            .as_ref()
            .map_or("", |inviter| inviter.host.as_str());
        tracing::info!("joined the pool {:016x} of {inviter}", request.pool);
        Ok(())
    }

    /// Whether this peer may give up what it has for the pool that invites it.
    fn may_join(&self, request: &JoinRequest, host: &str) -> Result<Joining, RegistryError> {
        let Some(node) = self.node() else {
            return Ok(Joining::AsIs);
        };
        let mine = &node.pool;
        if mine.generation_id == request.generation_id {
            let applied = self.log_applied();
            let listed = request.members.iter().any(|member| member.id == mine.peer);
            return if applied == 0 && request.index >= mine.joined_at {
                Ok(Joining::Again)
            } else if request.index > applied.max(mine.joined_at) && !listed {
                Ok(Joining::Renewed)
            } else {
                refused(format!("{host} is in the pool already"))
            };
        }
        if mine.pool == request.pool {
            return if request.generation > mine.generation {
                Ok(Joining::AsIs)
            } else {
                refused(format!(
                    "{host} is in generation {} of this pool, recovered without this one: empty \
                     its data directory to join it",
                    mine.generation
                ))
            };
        }
        let applied = self.life().applied;
        let state = applied.state();
        if state.view.peers.len() > 1 || !state.view.volumes.is_empty() {
            return refused(format!(
                "{host} is either already part of another cluster or having volumes configured"
            ));
        }
        Ok(Joining::AsIs)
    }

    pub(super) fn renew_identity(&self) -> Result<Identity, RegistryError> {
        let renewed = Identity::renew(self.data_dir())?;
        let mut identity = self
            .identity
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *identity = renewed.clone();
        Ok(renewed)
    }

    /// Forgets the pool, if the dismissal speaks of this membership and not of a former one.
    pub(super) async fn leave(
        self: &Arc<Self>,
        request: &LeaveRequest,
    ) -> Result<Done, RegistryError> {
        let _one_at_a_time = self.pool_lock.lock().await;
        let stays = Done {
            failed: true,
            message: "not of this membership".to_owned(),
        };
        let Some(node) = self.node() else {
            return Ok(stays);
        };
        if node.pool.generation_id != request.generation_id || request.index <= node.pool.joined_at
        {
            return Ok(stays);
        }
        self.check_running()?;
        self.renew_identity()?;
        self.begin_life(None, State::default()).await?;
        tracing::info!("this peer was detached from the pool {:016x}", request.pool);
        Ok(Done::default())
    }

    /// A member refused this peer's message because it was detached at a log index.
    pub(super) fn hear_of_detachment(self: &Arc<Self>, pool: &PoolMeta, at: u64) {
        let request = LeaveRequest {
            pool: pool.pool,
            generation_id: pool.generation_id,
            index: at,
        };
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = inner.leave(&request).await {
                tracing::info!("the pool could not be left yet: {error}");
            }
        });
    }

    async fn recover(self: &Arc<Self>, force: bool) -> Result<(), RegistryError> {
        let Some(node) = self.node() else {
            return refused("this peer is in no pool: there is nothing to recover");
        };
        if !force {
            return refused(
                "this peer alone would begin a new generation of the pool from what it last \
                 knew; every other peer has to be probed again, and changes that only they know \
                 are lost. Say --force if the quorum cannot come back",
            );
        }
        if self.barrier().await.is_ok() {
            return refused("the registry has a quorum: there is nothing to recover");
        }
        let _one_at_a_time = self.pool_lock.lock().await;
        self.check_running()?;
        let view = mortar_proto::registry::View::clone(&self.life().applied.view());
        let generation = node.pool.generation.max(view.generation) + 1;
        let next = NewGeneration {
            generation,
            view: Some(view.clone()),
        };
        let meta = PoolMeta {
            peer: node.pool.peer,
            pool: node.pool.pool,
            generation,
            generation_id: random_id(),
            joined_at: 0,
            founding: vec![
                Command {
                    what: Some(What::NewGeneration(next)),
                },
                put_peer(self.local()),
            ],
        };
        self.begin_life(Some(meta), State::showing(view)).await?;
        self.finish_founding().await?;
        tracing::info!(
            "began generation {generation} of the pool {:016x}",
            node.pool.pool
        );
        Ok(())
    }
}

/// How a peer enters the pool that invites it.
enum Joining {
    /// It did so before, for this or another invitation, and waits to hear from the leader.
    Again,
    /// Under the id it has.
    AsIs,
    /// Under a new id: it was a member and was detached.
    Renewed,
}
