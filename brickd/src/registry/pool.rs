//! Who is in the pool: founding, joining, inviting, leaving, recovering.
//!
//! What keeps late messages from undoing newer memberships: each membership carries the inviter's
//! log index (`joined_at`), each dismissal the index of the removal, and an older one is ignored.
//! A peer that leaves takes a new id, so Raft never sees one id with two logs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mortar_common::PeerId;
use mortar_common::ids::random_id;
use mortar_proto::WIRE_VERSION;
use mortar_proto::control::pool_client::PoolClient;
use mortar_proto::control::{
    Done, Empty, Identity as Greeting, JoinReply, JoinRequest, LeaveRequest,
};
use mortar_proto::registry::{
    Command, FoundPool, NewGeneration, Outcome, Peer, PutPeer, RemovePeer, command::What,
};
use tokio::time::Instant;
use tonic::transport::Channel;

use super::disk::{Key, Put, to_json};
use super::error::RegistryError;
use super::identity::Identity;
use super::network::address;
use super::propose::Attempt;
use super::state::State;
use super::types::{Change, PoolMeta};
use super::{Inner, Registry};

/// Longest wait for an answer of a peer that is probed, in milliseconds.
const PROBE_MS: u64 = 3000;
/// Longest wait for a peer that joined to be counted by Raft, in milliseconds. It is in the pool
/// all the same when that takes longer.
const SETTLE_MS: u64 = 5000;
/// Between two looks whether it is, in milliseconds.
const LOOK_MS: u64 = 20;
/// Longest time for a founder to propose what its pool begins with, in milliseconds.
const FOUND_MS: u64 = 5000;

/// How a probe ended well. Displayed, it is what `peer probe` prints.
#[derive(Clone, Debug, PartialEq)]
pub enum Invited {
    /// The peer joined the pool.
    Joined(Peer),
    /// The host is this one.
    Localhost,
    /// The peer is in the pool already; the name it was probed by.
    Already {
        /// As it was probed.
        host: String,
        /// As it was probed.
        port: u16,
    },
}

impl fmt::Display for Invited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Invited::Joined(_) => f.write_str("success"),
            Invited::Localhost => f.write_str("Probe on localhost not needed"),
            Invited::Already { host, port } => {
                write!(f, "Host {host} port {port} already in peer list")
            }
        }
    }
}

impl Registry {
    /// The whole of `peer probe` from this side: finds the peer, asks it to join, puts it into the
    /// pool and waits until Raft counts it.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] with the sentence to print, when nothing was changed; else as
    /// [`Registry::propose`].
    pub async fn invite(&self, host: &str, port: u16) -> Result<Invited, RegistryError> {
        let host = host.to_owned();
        self.run(move |inner| async move { inner.invite(&host, port).await })
            .await
    }

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

    /// Detaches a peer: out of Raft's membership, out of the pool, and told to forget it. With
    /// `force` also when it does not answer.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] with the sentence to print, when nothing was changed; else as
    /// [`Registry::propose`], within about 10 s.
    pub async fn remove(&self, peer: PeerId, force: bool) -> Result<(), RegistryError> {
        self.run(move |inner| async move { inner.remove(peer.0, force).await })
            .await
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
    Command {
        what: Some(What::PutPeer(PutPeer { peer: Some(peer) })),
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

    async fn greet(&self, host: &str, port: u16) -> Result<(Channel, Greeting), RegistryError> {
        let limit = Duration::from_millis(PROBE_MS);
        let resolved = tokio::time::timeout(limit, tokio::net::lookup_host((host, port))).await;
        let resolved = resolved.is_ok_and(|found| found.is_ok_and(|found| found.count() > 0));
        if !resolved {
            return refused(format!(
                "Probe returned with Name or service not known: '{host}' cannot be resolved to an \
                 address; check the name, DNS and /etc/hosts"
            ));
        }
        let channel = self
            .connections
            .to_host(host, port)
            .map_err(RegistryError::Refused)?;
        let mut client = PoolClient::new(channel.clone());
        let answer = tokio::time::timeout(limit, client.identify(Empty {})).await;
        match answer {
            Ok(Ok(greeting)) => Ok((channel, greeting.into_inner())),
            Ok(Err(status)) => refused(format!(
                "Probe returned with Transport endpoint is not connected: no brickd answers on \
                 {host} port {port} ({}); start it there, or open the port",
                status.message()
            )),
            Err(_late) => refused(format!(
                "Probe returned with Connection timed out: no answer from {host} port {port} in \
                 {PROBE_MS} ms; check the host and its firewall"
            )),
        }
    }

    async fn invite(self: &Arc<Self>, host: &str, port: u16) -> Result<Invited, RegistryError> {
        let (channel, greeting) = self.greet(host, port).await?;
        if greeting.wire_version != WIRE_VERSION {
            return refused(format!(
                "{host} runs Mortar {} with wire version {}; this peer speaks {WIRE_VERSION}: run \
                 the same version on both",
                greeting.version, greeting.wire_version
            ));
        }
        if greeting.peer == self.identity().peer {
            return Ok(Invited::Localhost);
        }
        let Ok(_one_at_a_time) = self.pool_lock.try_lock() else {
            return refused(
                "Another transaction is in progress. Please try again after some time.",
            );
        };
        self.found_locked().await?;
        if let Err(error) = self.barrier().await {
            return refused(format!(
                "Cluster quorum is not met. Changing peers is not allowed in this state ({error})"
            ));
        }
        let node = self
            .node()
            .ok_or_else(|| RegistryError::stopped("this peer left its pool"))?;
        if self.life().applied.state().members.contains(&greeting.peer) {
            self.add_name(greeting.peer, host).await?;
            return Ok(Invited::Already {
                host: host.to_owned(),
                port,
            });
        }
        let elsewhere = greeting.pool != 0 && greeting.pool != node.pool.pool;
        if elsewhere && (greeting.volumes > 0 || greeting.peers > 1) {
            return refused(format!(
                "{host} is either already part of another cluster or having volumes configured"
            ));
        }
        let peer = self
            .ask_to_join(&node.pool, channel, &greeting, host, port)
            .await?;
        self.admit(&node.pool, peer.clone()).await?;
        Ok(Invited::Joined(peer))
    }

    /// A member was probed by another name: remembers it.
    async fn add_name(self: &Arc<Self>, id: u64, host: &str) -> Result<(), RegistryError> {
        let Some(mut peer) = self.peer(id) else {
            return Ok(());
        };
        if peer.host == host || peer.other_names.iter().any(|name| name == host) {
            return Ok(());
        }
        peer.other_names.push(host.to_owned());
        self.put(peer).await.map(drop)
    }

    async fn put(self: &Arc<Self>, peer: Peer) -> Result<Outcome, RegistryError> {
        self.submit(Change {
            id: random_id(),
            command: put_peer(peer),
        })
        .await
    }

    async fn ask_to_join(
        &self,
        pool: &PoolMeta,
        channel: Channel,
        greeting: &Greeting,
        host: &str,
        port: u16,
    ) -> Result<Peer, RegistryError> {
        let members = {
            let applied = self.life().applied;
            let state = applied.state();
            state
                .view
                .peers
                .values()
                .filter(|peer| state.members.contains(&peer.id))
                .cloned()
                .collect()
        };
        let request = JoinRequest {
            pool: pool.pool,
            generation: pool.generation,
            generation_id: pool.generation_id,
            inviter: Some(self.local()),
            you: Some(Peer {
                id: greeting.peer,
                uuid: greeting.uuid.clone(),
                host: host.to_owned(),
                port: u32::from(port),
                other_names: Vec::new(),
            }),
            members,
            wire_version: WIRE_VERSION,
            index: self.log_applied(),
        };
        let limit = Duration::from_millis(PROBE_MS);
        let reply = tokio::time::timeout(limit, PoolClient::new(channel).join(request)).await;
        let reply = match reply {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => {
                return refused(format!(
                    "Probe returned with {}: probe again",
                    status.message()
                ));
            }
            Err(_late) => {
                return refused(format!(
                    "Probe returned with Connection timed out: {host} did not \
                                        finish joining in {PROBE_MS} ms; probe again"
                ));
            }
        };
        match reply.peer {
            Some(peer) if reply.refusal.is_empty() => Ok(peer),
            _ if reply.refusal.is_empty() => refused(format!("{host} gave no answer: probe again")),
            _ => refused(reply.refusal),
        }
    }

    /// Puts a peer that agreed to join into the pool; sends it away again if that is refused.
    async fn admit(self: &Arc<Self>, pool: &PoolMeta, peer: Peer) -> Result<(), RegistryError> {
        let outcome = match self.put(peer.clone()).await {
            Ok(outcome) => outcome,
            Err(error) => {
                if !matches!(error, RegistryError::Unknown { .. }) {
                    self.send_away(pool, &peer, self.log_applied() + 1).await;
                }
                return Err(error);
            }
        };
        if !outcome.refusal.is_empty() {
            self.send_away(pool, &peer, self.log_applied() + 1).await;
            return refused(outcome.refusal);
        }
        let deadline = Instant::now() + Duration::from_millis(SETTLE_MS);
        while Instant::now() < deadline {
            let Some(node) = self.node() else { break };
            let metrics = node.metrics();
            let membership = metrics.membership_config.membership();
            let voters = membership.voter_ids().count();
            let settled = super::steward::voters_wanted(membership.nodes().count()) == voters;
            if membership.get_node(&peer.id).is_some()
                && settled
                && membership.get_joint_config().len() == 1
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
        }
        tracing::info!("{} joined the pool", peer.host);
        Ok(())
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
            let index = mine.joined_at.max(self.log_applied());
            return if request.index == mine.joined_at && self.log_applied() == 0 {
                Ok(Joining::Again)
            } else if request.index > index
                && !request.members.iter().any(|member| member.id == mine.peer)
            {
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

    fn renew_identity(&self) -> Result<Identity, RegistryError> {
        let renewed = Identity::renew(self.data_dir())?;
        let mut identity = self
            .identity
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *identity = renewed.clone();
        Ok(renewed)
    }

    async fn remove(self: &Arc<Self>, id: u64, force: bool) -> Result<(), RegistryError> {
        let Ok(_one_at_a_time) = self.pool_lock.try_lock() else {
            return refused(
                "Another transaction is in progress. Please try again after some time.",
            );
        };
        let view = self.barrier().await?;
        let Some((node, peer)) = self.node().zip(view.peers.get(&id).cloned()) else {
            return refused(format!("peer {id:016x} is not part of cluster"));
        };
        if id == node.pool.peer {
            return refused(format!("{} is localhost", peer.host));
        }
        if !force && self.ask_status(id).await.is_none() {
            return refused("One of the peers is probably down. Check with 'peer status'");
        }
        let command = Command {
            what: Some(What::RemovePeer(RemovePeer { id })),
        };
        let outcome = self
            .submit(Change {
                id: random_id(),
                command,
            })
            .await?;
        if !outcome.refusal.is_empty() {
            return refused(outcome.refusal);
        }
        let at = self.life().applied.state().detached_at(id);
        self.send_away(&node.pool, &peer, at.unwrap_or_else(|| self.log_applied()))
            .await;
        tracing::info!("{} was detached from the pool", peer.host);
        Ok(())
    }

    /// Tells a peer that it is no member any more. If it does not hear it, it will be told when it
    /// next speaks to a member.
    async fn send_away(&self, pool: &PoolMeta, peer: &Peer, index: u64) {
        let request = LeaveRequest {
            pool: pool.pool,
            generation_id: pool.generation_id,
            index,
        };
        let Ok(channel) = self.connections.channel(peer) else {
            return;
        };
        let limit = Duration::from_millis(PROBE_MS);
        let told = tokio::time::timeout(limit, PoolClient::new(channel).leave(request)).await;
        if !matches!(told, Ok(Ok(_))) {
            tracing::info!("{} could not be told that it was detached", peer.host);
        }
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
    /// It did so before, for the same invitation.
    Again,
    /// Under the id it has.
    AsIs,
    /// Under a new id: it was a member and was detached.
    Renewed,
}
