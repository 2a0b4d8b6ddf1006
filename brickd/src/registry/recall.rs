//! A peer whose data directory was put back to an older state has forgotten what it acknowledged and
//! for whom it voted, and must not speak as the peer that it was: an entry that it and one other
//! held would be lost, and it would vote twice in one term.
//!
//! So each peer remembers of the others the newest entry and vote that they have *answered* for, which
//! is on their disk (what a leader sends may not be on its own yet), and a peer that starts asks them
//! before it takes any part. It waits for so many answers that together
//! with itself they are a quorum, without which nothing could go on anyway, and asks each other peer
//! before it answers the first message of that one. Who hears that it once had more becomes a new
//! peer, in no pool: the administrator probes it again. What follows from the answers is decided in
//! [`super::cleared`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mortar_proto::control::pool_client::PoolClient;
use mortar_proto::control::{RecallReply, RecallRequest};
use openraft::entry::RaftEntry;
use serde::{Deserialize, Serialize};

use super::Inner;
use super::cleared::Told;
use super::disk::{Disk, Key, Put, Stored, Then, from_json, to_json};
use super::error::RegistryError;
use super::network::address;
use super::node::Node;
use super::state::State;
use super::transport::detached_at;
use super::types::{LogId, StoredMembership, Vote};

/// Longest wait for one peer's answer, in milliseconds.
const ASK_MS: u64 = 500;
/// Between two rounds of questions, in milliseconds.
const AGAIN_MS: u64 = 100;
/// Between two tries to become a new peer, in milliseconds.
const RENEW_AGAIN_MS: u64 = 1000;
/// Peers remembered; a pool has fewer.
const SEEN_MAX: usize = 256;

/// How far a peer's log and vote have come.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Position {
    /// Term of the last entry: a log that ends in an older term is older, however long.
    pub log_term: u64,
    /// Its index.
    pub last_log: u64,
    /// Term of the vote.
    pub vote_term: u64,
}

impl Position {
    /// Of these.
    pub fn new(last: Option<LogId>, vote: Option<Vote>) -> Self {
        Position {
            log_term: last.map_or(0, |last| last.leader_id.term),
            last_log: last.map_or(0, |last| last.index),
            vote_term: vote.map_or(0, |vote| vote.leader_id().term),
        }
    }

    /// Of what the disk holds.
    pub fn stored(stored: &Stored) -> Self {
        let last = stored.entries.last_key_value();
        let last = last.map(|(_, entry)| entry.log_id());
        let snapshot = stored.snapshot.as_ref().and_then(|(of, _)| of.last_log_id);
        Position::new(last.max(stored.purged).max(snapshot), stored.vote)
    }

    /// Whether the other is further in either.
    pub fn is_behind(self, other: Position) -> bool {
        self.log() < other.log() || self.vote_term < other.vote_term
    }

    fn joined(self, other: Position) -> Self {
        let (log_term, last_log) = self.log().max(other.log());
        Position {
            log_term,
            last_log,
            vote_term: self.vote_term.max(other.vote_term),
        }
    }

    fn log(self) -> (u64, u64) {
        (self.log_term, self.last_log)
    }
}

/// What this peer remembers of the others. Written down with the next write of the registry's file.
#[derive(Clone)]
pub struct Seen {
    disk: Disk,
    /// Taken before the lock of the disk's queue.
    peers: Arc<Mutex<BTreeMap<u64, Position>>>,
}

impl Seen {
    /// As it was written down.
    pub fn new(disk: Disk, stored: &mut Stored) -> Self {
        Seen {
            disk,
            peers: Arc::new(Mutex::new(std::mem::take(&mut stored.seen))),
        }
    }

    /// A peer has answered for this.
    pub fn note(&self, peer: u64, position: Position) {
        let mut peers = self.peers();
        let known = peers.get(&peer).copied();
        let newest = known.unwrap_or_default().joined(position);
        if known == Some(newest) || known.is_none() && peers.len() >= SEEN_MAX {
            return;
        }
        peers.insert(peer, newest);
        // Plain numbers are always fit for JSON. Handed over under the lock: an older map must not
        // be written after a newer one.
        if let Ok(written) = to_json(&*peers) {
            self.disk
                .write(vec![Put::Meta(Key::Seen, written)], Then::Lazy);
        }
    }

    /// What is remembered of a peer.
    pub fn of(&self, peer: u64) -> Position {
        self.peers().get(&peer).copied().unwrap_or_default()
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<u64, Position>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Asks the others what this peer has promised, in the background, until it is cleared or a new
    /// peer.
    pub(super) fn look_into_past_later(self: &Arc<Self>, node: &Arc<Node>) {
        if node.cleared.begin_look() {
            let (inner, node) = (Arc::clone(self), Arc::clone(node));
            tokio::spawn(async move { inner.look_into_past(&node).await });
        }
    }

    async fn look_into_past(self: &Arc<Self>, node: &Arc<Node>) {
        loop {
            let still = self.node().is_some_and(|now| Arc::ptr_eq(&now, node));
            if !still || *self.stopping.borrow() {
                return;
            }
            if let Some((has, had)) = node.cleared.behind() {
                let Err(error) = self.become_new(node, has, had).await else {
                    return;
                };
                if node.cleared.fail(error.to_string()) {
                    tracing::error!("this peer could not become a new one yet: {error}");
                }
                tokio::time::sleep(Duration::from_millis(RENEW_AGAIN_MS)).await;
                continue;
            }
            let others = node.cleared.others();
            let asks = others.iter().map(|(id, known)| async move {
                let known = match self.peer(*id) {
                    Some(peer) => address(&peer),
                    None => known.clone(),
                };
                self.ask_to_recall(node, &known).await
            });
            futures::future::join_all(asks).await;
            node.cleared.end_round();
            if node.cleared.end_look() {
                return;
            }
            if node.cleared.behind().is_none() {
                tokio::time::sleep(Duration::from_millis(AGAIN_MS)).await;
            }
        }
    }

    /// Asks another peer what it remembers of this one; nothing when it does not answer, or is of
    /// another pool or generation.
    pub(super) async fn ask_to_recall(self: &Arc<Self>, node: &Arc<Node>, address: &str) {
        let Ok(channel) = self.connections.to_address(address) else {
            return;
        };
        let request = RecallRequest {
            peer: node.pool.peer,
            pool: node.pool.pool,
            generation_id: node.pool.generation_id,
        };
        let limit = Duration::from_millis(ASK_MS);
        let answer = tokio::time::timeout(limit, PoolClient::new(channel).recall(request)).await;
        match answer {
            Ok(Ok(reply)) => {
                if let Some(told) = told(reply.get_ref()) {
                    node.cleared.hear(told, &node.metrics().membership_config);
                    self.look_into_past_later(node);
                }
            }
            Ok(Err(status)) => {
                if let Some(at) = detached_at(status.metadata()) {
                    self.hear_of_detachment(&node.pool, at);
                }
            }
            Err(_late) => {}
        }
    }

    async fn become_new(
        self: &Arc<Self>,
        node: &Arc<Node>,
        has: Position,
        had: Position,
    ) -> Result<(), RegistryError> {
        let _one_at_a_time = self.pool_lock.lock().await;
        if !self.node().is_some_and(|now| Arc::ptr_eq(&now, node)) {
            return Ok(());
        }
        let host = self.local().host;
        self.renew_identity()?;
        self.begin_life(None, State::default()).await?;
        tracing::error!(
            has = ?has,
            had = ?had,
            "the data directory of {host} was put back to an older state: it cannot go on as the \
             peer that it was, and is a new one, in no pool. Run 'mortar peer probe {host}' on \
             another peer: it takes this one back, with its bricks"
        );
        Ok(())
    }

    /// Answers another peer that asks what is remembered of it.
    pub(super) fn recall(&self, request: &RecallRequest) -> Result<RecallReply, u64> {
        let life = self.life();
        let Some(node) = life.node else {
            return Ok(RecallReply::default());
        };
        if (node.pool.pool, node.pool.generation_id) != (request.pool, request.generation_id) {
            return Ok(RecallReply::default());
        }
        if let Some(at) = life.applied.state().detached_at(request.peer) {
            return Err(at);
        }
        let seen = node.seen.of(request.peer);
        // Without it the answer is counted by what the other knows itself.
        let membership = to_json(&node.metrics().committed_membership_config);
        Ok(RecallReply {
            member: true,
            log_term: seen.log_term,
            last_log: seen.last_log,
            vote_term: seen.vote_term,
            peer: node.pool.peer,
            membership: membership.unwrap_or_default(),
        })
    }
}

/// What an answer says; `None` = it is of no use.
fn told(reply: &RecallReply) -> Option<Told> {
    let membership = match reply.membership.as_slice() {
        [] => StoredMembership::default(),
        bytes => from_json(bytes).ok()?,
    };
    reply.member.then_some(Told {
        peer: reply.peer,
        position: Position {
            log_term: reply.log_term,
            last_log: reply.last_log,
            vote_term: reply.vote_term,
        },
        membership,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_less_of_either_is_behind() {
        let at = |last_log, vote_term| Position {
            log_term: 3,
            last_log,
            vote_term,
        };
        assert!(at(1, 5).is_behind(at(2, 5)) && at(2, 4).is_behind(at(1, 5)));
        assert!(!at(2, 5).is_behind(at(2, 5)) && !at(9, 9).is_behind(Position::default()));
        assert_eq!(at(1, 5).joined(at(2, 4)), at(2, 5));
        // A new leader may have cut off what an old one had sent.
        let newer = Position {
            log_term: 4,
            ..at(1, 5)
        };
        assert!(at(9, 5).is_behind(newer) && !newer.is_behind(at(9, 5)));
    }
}
