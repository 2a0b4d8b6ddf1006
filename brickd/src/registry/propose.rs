//! Changes and linearizable reads, from whichever peer leads.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use mortar_common::ids::random_id;
use mortar_proto::control::pool_client::PoolClient;
use mortar_proto::control::{Empty, RegistryStatusReply};
use mortar_proto::registry::{Command, Outcome, Peer, View, command::What};
use openraft::ReadPolicy;
use openraft::errors::{ClientWriteError, RaftError};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Request, Status};

use super::Inner;
use super::error::RegistryError;
use super::node::Node;
use super::types::Change;

/// Longest time a proposal or a barrier takes, in milliseconds, but for the count of voters.
pub const PROPOSE_MS: u64 = 2000;
/// Longest wait for a change that was sent on, in milliseconds, while a majority of the voters
/// answers: then only their disks are slow.
const SLOW_MS: u64 = 10_000;
/// Longest time a detachment takes: it changes Raft's membership first.
const DETACH_MS: u64 = 10_000;
/// Longest wait for one leader's answer before looking for another, in milliseconds.
const ATTEMPT_MS: u64 = 700;
/// Longest wait of a leader for a quorum's word that it still leads, in milliseconds: less than
/// [`ATTEMPT_MS`], so that who sent the change learns that it was not taken.
const CONFIRM_MS: u64 = 500;
/// Between two looks for a leader, in milliseconds.
const LOOK_MS: u64 = 20;
/// Longest wait for a voter to say that it lives, in milliseconds.
const COUNT_MS: u64 = 500;
/// Metadata of a proposal that was forwarded: its id. It is not forwarded again.
pub const CHANGE_ID: &str = "mortar-change-id";
/// Metadata of what was forwarded: the sender's generation of the pool. A peer that was left
/// behind by a recovery must neither change the new generation nor believe that it reads it.
pub const GENERATION_ID: &str = "mortar-generation-id";
/// Metadata of a refusal: nothing was done, another peer may be asked.
pub const NOT_TAKEN: &str = "mortar-not-taken";

/// How one try to have a change made ended.
#[derive(Debug)]
pub enum Attempt {
    /// It was applied or refused for good.
    Answered(Outcome),
    /// Nothing happened: there is no leader, or it is another one.
    NotTaken,
    /// It may happen or have happened.
    Unknown,
}

/// Whether a change that waits for a leader is still to be made.
pub type StillWanted = Arc<dyn Fn() -> bool + Send + Sync>;

/// Of a change that nothing takes back.
pub fn always() -> StillWanted {
    Arc::new(|| true)
}

impl Inner {
    pub(super) async fn propose(
        self: &Arc<Self>,
        command: Command,
        wanted: StillWanted,
    ) -> Result<Outcome, RegistryError> {
        self.found_if_alone().await?;
        let change = Change {
            id: random_id(),
            command,
        };
        self.submit_while(change, &wanted).await
    }

    /// Has a change made, however often it has to be sent: its id makes that safe.
    pub(super) async fn submit(self: &Arc<Self>, change: Change) -> Result<Outcome, RegistryError> {
        self.submit_while(change, &always()).await
    }

    async fn submit_while(
        self: &Arc<Self>,
        change: Change,
        wanted: &StillWanted,
    ) -> Result<Outcome, RegistryError> {
        let detaches = matches!(change.command.what, Some(What::RemovePeer(_)));
        let waited_ms = if detaches { DETACH_MS } else { PROPOSE_MS };
        let begin = Instant::now();
        let mut deadline = begin + Duration::from_millis(waited_ms);
        let mut unknown = false;
        loop {
            if !unknown && !wanted() {
                return Err(RegistryError::NotWanted);
            }
            let attempt_ms = if detaches { DETACH_MS } else { ATTEMPT_MS };
            let until = deadline.min(Instant::now() + Duration::from_millis(attempt_ms));
            match self.attempt(&change, until).await? {
                Attempt::Answered(outcome) => {
                    self.catch_up(outcome.index, deadline).await;
                    return Ok(outcome);
                }
                Attempt::NotTaken => {}
                Attempt::Unknown => unknown = true,
            }
            let next = Instant::now() + Duration::from_millis(LOOK_MS);
            if next >= deadline {
                let (reachable, voters) = self.count_voters().await;
                let is_slow = unknown && 2 * reachable > voters;
                if is_slow && begin.elapsed() < Duration::from_millis(SLOW_MS) {
                    deadline = Instant::now() + Duration::from_millis(PROPOSE_MS);
                    continue;
                }
                return Err(match unknown {
                    true => RegistryError::Unknown {
                        waited_ms: begin.elapsed().as_millis() as u64,
                        reachable,
                        voters,
                    },
                    false => no_leader(reachable, voters),
                });
            }
            sleep_until(next).await;
        }
    }

    async fn attempt(&self, change: &Change, until: Instant) -> Result<Attempt, RegistryError> {
        let node = self
            .node()
            .ok_or_else(|| RegistryError::stopped("this peer left its pool"))?;
        let leader = node.metrics().current_leader;
        match leader {
            None => Ok(Attempt::NotTaken),
            Some(leader) if leader == node.pool.peer => self.lead(&node, change, until).await,
            Some(leader) => Ok(match self.peer(leader) {
                Some(peer) => self.forward(&node, &peer, change, until).await,
                None => Attempt::NotTaken,
            }),
        }
    }

    /// Makes a change as the leader.
    pub(super) async fn lead(
        &self,
        node: &Node,
        change: &Change,
        until: Instant,
    ) -> Result<Attempt, RegistryError> {
        if let Some(What::RemovePeer(removal)) = &change.command.what {
            match timeout_at(until, self.dismiss(node, removal.id, change)).await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(attempt))) => return Ok(attempt),
                Ok(Err(error)) => return Err(error),
                Err(_late) => return Ok(Attempt::Unknown),
            }
        }
        // A leader whose followers are gone still takes changes until its lease ends, and then
        // nobody can say what becomes of them: without a quorum nothing is taken.
        let confirmed = until.min(Instant::now() + Duration::from_millis(CONFIRM_MS));
        if self.lead_read(node, confirmed).await.is_none() {
            return Ok(Attempt::NotTaken);
        }
        match timeout_at(until, node.raft.client_write(change.clone())).await {
            Ok(Ok(answer)) => Ok(Attempt::Answered(answer.data)),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                Ok(Attempt::NotTaken)
            }
            Ok(Err(RaftError::Fatal(error))) => Err(RegistryError::stopped(error)),
            Ok(Err(RaftError::APIError(_))) | Err(_) => Ok(Attempt::Unknown),
        }
    }

    async fn forward(
        &self,
        node: &Node,
        leader: &Peer,
        change: &Change,
        until: Instant,
    ) -> Attempt {
        let Ok(channel) = self.connections.channel(leader) else {
            return Attempt::NotTaken;
        };
        let request = forwarded(change.command.clone(), node, change.id);
        match timeout_at(until, PoolClient::new(channel).propose(request)).await {
            Ok(Ok(outcome)) => Attempt::Answered(outcome.into_inner()),
            Ok(Err(status)) if surely_not_taken(&status) => Attempt::NotTaken,
            Ok(Err(_)) | Err(_) => Attempt::Unknown,
        }
    }

    pub(super) async fn barrier(self: &Arc<Self>) -> Result<Arc<View>, RegistryError> {
        if self.node().is_none() {
            return Ok(self.life().applied.view());
        }
        let deadline = Instant::now() + Duration::from_millis(PROPOSE_MS);
        loop {
            let until = deadline.min(Instant::now() + Duration::from_millis(ATTEMPT_MS));
            if let Some(index) = self.read_index(until).await?
                && self.catch_up(index, deadline).await
            {
                return Ok(self.life().applied.view());
            }
            let next = Instant::now() + Duration::from_millis(LOOK_MS);
            if next >= deadline {
                let (reachable, voters) = self.count_voters().await;
                return Err(no_leader(reachable, voters));
            }
            sleep_until(next).await;
        }
    }

    /// The view index that a read started now has to have seen; `None` = nobody could say.
    async fn read_index(&self, until: Instant) -> Result<Option<u64>, RegistryError> {
        let node = self
            .node()
            .ok_or_else(|| RegistryError::stopped("this peer left its pool"))?;
        let Some(leader) = node.metrics().current_leader else {
            return Ok(None);
        };
        if leader == node.pool.peer {
            return Ok(self.lead_read(&node, until).await);
        }
        let Some(peer) = self.peer(leader) else {
            return Ok(None);
        };
        let Ok(channel) = self.connections.channel(&peer) else {
            return Ok(None);
        };
        let request = forwarded(Empty {}, &node, 0);
        let answer = timeout_at(until, PoolClient::new(channel).barrier(request)).await;
        Ok(match answer {
            Ok(Ok(reply)) if reply.get_ref().refusal.is_empty() => Some(reply.get_ref().index),
            _ => None,
        })
    }

    /// As the leader: asks a quorum whether it still is, and applies what was committed by then.
    pub(super) async fn lead_read(&self, node: &Node, until: Instant) -> Option<u64> {
        let read = async {
            let linearizer = node
                .raft
                .get_read_linearizer(ReadPolicy::ReadIndex)
                .await
                .ok()?;
            linearizer.await_ready(&node.raft).await.ok()
        };
        timeout_at(until, read).await.ok().flatten()?;
        Some(self.life().applied.state().view.index)
    }

    /// Waits until this peer's view has reached an index. False = not in time.
    async fn catch_up(&self, index: u64, deadline: Instant) -> bool {
        let mut views = self.life().applied.subscribe();
        let caught_up = views.wait_for(|view| view.index >= index);
        timeout_at(deadline, caught_up)
            .await
            .is_ok_and(|waited| waited.is_ok())
    }

    pub(super) fn peer(&self, id: u64) -> Option<Peer> {
        self.life().applied.state().view.peers.get(&id).cloned()
    }

    /// How many voters answer, this peer among them, and how many there are.
    async fn count_voters(&self) -> (usize, usize) {
        let Some(node) = self.node() else {
            return (0, 0);
        };
        let voters: Vec<u64> = node.metrics().membership_config.voter_ids().collect();
        let answers = voters.iter().map(|voter| async {
            *voter == node.pool.peer || self.ask_status(*voter).await.is_some()
        });
        let answers = futures::future::join_all(answers).await;
        (
            answers.iter().filter(|answers| **answers).count(),
            voters.len(),
        )
    }

    /// What another peer's registry says of itself; `None` when it does not answer, or belongs to
    /// another pool by now.
    pub(super) async fn ask_status(&self, peer: u64) -> Option<RegistryStatusReply> {
        let channel = self.connections.channel(&self.peer(peer)?).ok()?;
        let limit = Duration::from_millis(COUNT_MS);
        let answer = tokio::time::timeout(limit, PoolClient::new(channel).status(Empty {})).await;
        let reply = answer.ok()?.ok()?.into_inner();
        let ours = self.node()?.pool.generation;
        (reply.local == peer && reply.generation == ours).then_some(reply)
    }
}

/// A request as one peer forwards it to another of its generation.
fn forwarded<T>(message: T, node: &Node, id: u64) -> Request<T> {
    let mut request = Request::new(message);
    for (key, value) in [(CHANGE_ID, id), (GENERATION_ID, node.pool.generation_id)] {
        // Sixteen hex digits are always fit for metadata.
        if let Ok(value) = format!("{value:016x}").parse() {
            request.metadata_mut().insert(key, value);
        }
    }
    request
}

fn no_leader(reachable: usize, voters: usize) -> RegistryError {
    if reachable > voters / 2 {
        RegistryError::NoLeader { reachable, voters }
    } else {
        RegistryError::NoQuorum { reachable, voters }
    }
}

/// Whether a failed call cannot have reached a leader: it said so, or there was no connection.
fn surely_not_taken(status: &Status) -> bool {
    if status.metadata().contains_key(NOT_TAKEN) {
        return true;
    }
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
