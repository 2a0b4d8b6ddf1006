//! Peers come and go: `peer probe` and `peer detach`, from the side of the pool.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mortar_common::PeerId;
use mortar_common::ids::random_id;
use mortar_proto::WIRE_VERSION;
use mortar_proto::control::pool_client::PoolClient;
use mortar_proto::control::{Empty, Identity as Greeting, JoinRequest, LeaveRequest};
use mortar_proto::registry::{Command, Outcome, Peer, RemovePeer, command::What};
use tokio::time::Instant;
use tonic::transport::Channel;

use super::{LOOK_MS, put_peer, put_peer_for, refused};
use crate::registry::error::RegistryError;
use crate::registry::names::{is_called, names, same_host};
use crate::registry::steward::voters_wanted;
use crate::registry::types::{Change, PoolMeta};
use crate::registry::{Inner, Registry};

/// Longest wait for an answer of a peer that is probed, in milliseconds.
const PROBE_MS: u64 = 3000;
/// Longest wait for a peer that joined to be counted by Raft, in milliseconds. It is in the pool
/// all the same when that takes longer.
const SETTLE_MS: u64 = 5000;

/// How a probe ended well. Displayed, it is what `peer probe` prints.
#[derive(Clone, Debug, PartialEq)]
pub enum Invited {
    /// The peer joined the pool.
    Joined(Peer),
    /// The host had lost its data directory: it is a new peer, with the bricks of the old one.
    Returned(Peer),
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
            Invited::Returned(peer) => write!(
                f,
                "success. {0} had lost its data directory and is a new peer; it has the bricks of \
                 the old one. Look at 'mortar volume status': a brick that was lost too is filled \
                 by 'mortar volume reset-brick'",
                peer.host
            ),
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
}

impl Inner {
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
        let old = self.former_peer(greeting.peer, host, port);
        if let Some(old) = &old {
            self.check_gone(old, greeting.peer, host).await?;
        }
        let peer = self
            .ask_to_join(&node.pool, channel, &greeting, host, port)
            .await?;
        match old {
            None => {
                self.admit(&node.pool, put_peer(peer.clone()), peer.clone())
                    .await?;
                Ok(Invited::Joined(peer))
            }
            Some(old) => {
                let peer = Peer {
                    host: old.host,
                    other_names: old.other_names,
                    ..peer
                };
                let put = put_peer_for(peer.clone(), old.id);
                self.admit(&node.pool, put, peer.clone()).await?;
                Ok(Invited::Returned(peer))
            }
        }
    }

    /// The peer that was at this address before the one that answers there now: nothing of it is
    /// left but what the pool knows of it.
    fn former_peer(&self, answers: u64, host: &str, port: u16) -> Option<Peer> {
        let life = self.life();
        let state = life.applied.state();
        let was_there = |peer: &&Peer| peer.port == u32::from(port) && peer.id != answers;
        let peers = || state.view.peers.values().filter(was_there);
        let by_first_name = peers().find(|peer| same_host(&peer.host, host));
        by_first_name
            .or_else(|| peers().find(|peer| is_called(peer, host)))
            .cloned()
    }

    /// Refuses when a former peer may live: a name that now leads to another host proves nothing.
    /// It is gone when it answers at none of its names, and the host that the pool knows it by is
    /// the one that was probed.
    async fn check_gone(&self, old: &Peer, answers: u64, host: &str) -> Result<(), RegistryError> {
        let port = u16::try_from(old.port).unwrap_or_default();
        let asks = names(old)
            .filter(|name| !same_host(name, host))
            .map(|name| async move {
                let greeted = self.greet(name, port).await.ok();
                (name, greeted.map(|(_, greeting)| greeting.peer))
            });
        let told = futures::future::join_all(asks).await;
        if let Some((name, _)) = told.iter().find(|(_, peer)| *peer == Some(old.id)) {
            return refused(format!(
                "{host} is a name of the peer {}, which still answers on {name}, but another host \
                 answers on {host} now: correct {host} in DNS and /etc/hosts, or probe the new host \
                 by a name of its own",
                old.host
            ));
        }
        let is_its_host = |(name, peer): &(&str, Option<u64>)| {
            !same_host(name, &old.host) || *peer == Some(answers)
        };
        if !told.iter().all(is_its_host) {
            return refused(format!(
                "{host} is another name of the peer {0}, but what answers there does not answer on \
                 {0}, so that peer may still live: probe {0} if it has lost its data directory, or \
                 probe the new host by a name of its own",
                old.host
            ));
        }
        Ok(())
    }

    /// A member was probed by another name: remembers it.
    async fn add_name(self: &Arc<Self>, id: u64, host: &str) -> Result<(), RegistryError> {
        let Some(mut peer) = self.peer(id) else {
            return Ok(());
        };
        if is_called(&peer, host) {
            return Ok(());
        }
        peer.other_names.push(host.to_owned());
        self.put(put_peer(peer)).await.map(drop)
    }

    async fn put(self: &Arc<Self>, command: Command) -> Result<Outcome, RegistryError> {
        self.submit(Change {
            id: random_id(),
            command,
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
    async fn admit(
        self: &Arc<Self>,
        pool: &PoolMeta,
        put: Command,
        peer: Peer,
    ) -> Result<(), RegistryError> {
        let outcome = match self.put(put).await {
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
            let settled = voters_wanted(membership.nodes().count()) == voters;
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
}
