//! Raft's membership follows the pool: the leader adds each new peer as a learner and makes it a
//! voter when it has caught up, one change at a time, always by joint consensus.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use mortar_proto::registry::Outcome;
use openraft::errors::{ClientWriteError, Fatal, RaftError};
use openraft::{BasicNode, ChangeMembers, Instant};

use super::Inner;
use super::error::RegistryError;
use super::network::address;
use super::node::Node;
use super::propose::Attempt;
use super::state::State;
use super::types::{Change, Metrics};

/// Voters of a pool; others learn.
pub const VOTERS_MAX: usize = 7;
/// How often the leader looks, in milliseconds.
const LOOK_MS: u64 = 100;
/// Entries a learner may lack when it is made a voter.
const LAG_MAX: u64 = 50;
/// A learner that was silent for longer is not made a voter, in milliseconds.
const SILENCE_MS: u64 = 1000;
/// Longest wait for one change of the membership, in milliseconds; it is looked at again then.
const CHANGE_MS: u64 = 5000;

/// Voters of a pool with so many peers: odd, but for a pool of two, in which both vote.
pub fn voters_wanted(peers: usize) -> usize {
    match peers.min(VOTERS_MAX) {
        2 => 2,
        even if even.is_multiple_of(2) => even.saturating_sub(1),
        odd => odd,
    }
}

/// What the membership is.
#[derive(Clone, Debug, Default)]
struct Membership {
    voters: BTreeSet<u64>,
    nodes: BTreeSet<u64>,
    joint: bool,
}

/// The next change of the membership.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Ends a change that a former leader left half-way.
    Flatten,
    AddLearners(BTreeSet<u64>),
    SetVoters(BTreeSet<u64>),
    RemoveLearners(BTreeSet<u64>),
}

/// What has to be done next so that the membership is what the pool wants. `ready` are the
/// learners that have caught up; of the voters, those that are `silent` are the first to go: a dead
/// one that stays in the place of a living one may leave no quorum.
fn next_step(
    local: u64,
    members: &BTreeSet<u64>,
    now: &Membership,
    ready: &BTreeSet<u64>,
    silent: &BTreeSet<u64>,
) -> Option<Step> {
    if now.joint {
        return Some(Step::Flatten);
    }
    // A pool that is just being founded names nobody yet.
    if !members.contains(&local) {
        return None;
    }
    let new: BTreeSet<u64> = members.difference(&now.nodes).copied().collect();
    if !new.is_empty() {
        return Some(Step::AddLearners(new));
    }
    let mut voters: BTreeSet<u64> = now.voters.intersection(members).copied().collect();
    let wanted = voters_wanted(members.len());
    let able = voters
        .union(ready)
        .filter(|id| members.contains(id))
        .count();
    // Never an even number on the way from three to five; never fewer because some are not ready.
    let reachable = if able >= wanted {
        wanted
    } else {
        voters_wanted(able).max(voters.len())
    };
    for learner in ready.iter().filter(|id| members.contains(id)) {
        if voters.len() < reachable {
            voters.insert(*learner);
        }
    }
    while voters.len() > wanted {
        let others = voters.iter().filter(|id| **id != local);
        let last = others
            .max_by_key(|id| (silent.contains(id), **id))
            .copied()?;
        voters.remove(&last);
    }
    if voters != now.voters {
        return Some(Step::SetVoters(voters));
    }
    let gone: BTreeSet<u64> = now.nodes.difference(members).copied().collect();
    (!gone.is_empty()).then_some(Step::RemoveLearners(gone))
}

/// Runs until the registry ends.
pub async fn run(inner: Weak<Inner>) {
    let mut leader = None;
    let mut failed = false;
    loop {
        tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
        let Some(inner) = inner.upgrade() else { return };
        if *inner.stopping.borrow() {
            return;
        }
        let Some(node) = inner.node() else { continue };
        let metrics = node.metrics();
        tell_of_leader(&inner, &metrics, &mut leader);
        tell_of_failure(&metrics, &mut failed);
        if metrics.current_leader != Some(node.pool.peer) {
            continue;
        }
        // Somebody is being detached: that comes first.
        let Ok(_one_at_a_time) = inner.membership_lock.try_lock() else {
            continue;
        };
        let step = {
            let members = inner.life().applied.state().members.clone();
            next_step(
                node.pool.peer,
                &members,
                &membership(&metrics),
                &ready(&metrics),
                &silent(&metrics),
            )
        };
        if let Some(step) = step {
            let limit = Duration::from_millis(CHANGE_MS);
            if tokio::time::timeout(limit, take_step(&inner, &node, step))
                .await
                .is_err()
            {
                tracing::info!("a change of the registry's membership waits for a quorum");
            }
        }
    }
}

fn tell_of_leader(inner: &Inner, metrics: &Metrics, last: &mut Option<(u64, u64)>) {
    let Some(leader) = metrics.current_leader else {
        return;
    };
    let now = (metrics.current_term, leader);
    if last.replace(now) != Some(now) {
        let host = inner
            .peer(leader)
            .map_or_else(|| format!("{leader:016x}"), |peer| peer.host);
        tracing::info!("{host} leads the registry in term {}", metrics.current_term);
    }
}

/// Raft's own log is switched off; that it gave up is for people to see.
fn tell_of_failure(metrics: &Metrics, told: &mut bool) {
    if let Err(error @ (Fatal::StorageError(_) | Fatal::Panicked)) = &metrics.running_state
        && !std::mem::replace(told, true)
    {
        tracing::error!("this peer takes no part in the registry until it is restarted: {error}");
    }
}

fn membership(metrics: &Metrics) -> Membership {
    let membership = metrics.membership_config.membership();
    Membership {
        voters: membership.voter_ids().collect(),
        nodes: membership.nodes().map(|(id, _)| *id).collect(),
        joint: membership.get_joint_config().len() > 1,
    }
}

/// The learners that have nearly all of the log and were heard of just now.
fn ready(metrics: &Metrics) -> BTreeSet<u64> {
    let (Some(replication), Some(heartbeat)) = (&metrics.replication, &metrics.heartbeat) else {
        return BTreeSet::new();
    };
    let last = metrics.last_log_index.unwrap_or(0);
    let has_log = |id: &u64| {
        let matched = replication.get(id).copied().flatten();
        matched.is_some_and(|log_id| log_id.index + LAG_MAX >= last)
    };
    let speaks = |id: &u64| {
        let heard = heartbeat.get(id).cloned().flatten();
        heard.is_some_and(|heard| heard.elapsed() < Duration::from_millis(SILENCE_MS))
    };
    let learners = metrics.membership_config.membership().learner_ids();
    learners.filter(|id| has_log(id) && speaks(id)).collect()
}

/// The others that were not heard of for some time.
fn silent(metrics: &Metrics) -> BTreeSet<u64> {
    let Some(heartbeat) = &metrics.heartbeat else {
        return BTreeSet::new();
    };
    let is_silent = |id: &u64| {
        let heard = heartbeat.get(id).cloned().flatten();
        heard.is_none_or(|heard| heard.elapsed() >= Duration::from_millis(SILENCE_MS))
    };
    let voters = metrics.membership_config.membership().voter_ids();
    voters.filter(is_silent).collect()
}

async fn take_step(inner: &Arc<Inner>, node: &Node, step: Step) {
    let change = match &step {
        Step::Flatten => ChangeMembers::AddVoterIds(BTreeSet::new()),
        Step::AddLearners(ids) => {
            let nodes: BTreeMap<u64, BasicNode> = ids
                .iter()
                .filter_map(|id| Some((*id, BasicNode::new(address(&inner.peer(*id)?)))))
                .collect();
            ChangeMembers::AddNodes(nodes)
        }
        Step::SetVoters(voters) => ChangeMembers::ReplaceAllVoters(voters.clone()),
        Step::RemoveLearners(ids) => ChangeMembers::RemoveNodes(ids.clone()),
    };
    match node.raft.change_membership(change, true).await {
        Ok(_) => tracing::info!("the registry's membership changed: {step:?}"),
        Err(error) => tracing::info!("the registry's membership could not be changed: {error}"),
    }
}

impl Inner {
    /// As the leader: takes a peer out of Raft's membership, before its removal from the pool is
    /// proposed. So whoever is out of the pool is surely out of Raft, and may forget its log.
    /// `None` = done; else how the attempt ended already.
    pub(super) async fn dismiss(
        &self,
        node: &Node,
        id: u64,
        change: &Change,
    ) -> Result<Option<Attempt>, RegistryError> {
        let _one_at_a_time = self.membership_lock.lock().await;
        let mut trial: State = self.life().applied.state().clone();
        let outcome: Outcome = trial.apply(0, change);
        if !outcome.refusal.is_empty() {
            return Ok(Some(Attempt::Answered(outcome)));
        }
        let metrics = node.metrics();
        let now = membership(&metrics);
        if id == node.pool.peer {
            let Some(next) = now.voters.iter().find(|voter| **voter != id) else {
                let refusal = "the last peer of a pool cannot be detached".to_owned();
                return Ok(Some(Attempt::Answered(Outcome { refusal, index: 0 })));
            };
            node.raft
                .trigger()
                .transfer_leader(*next)
                .await
                .map_err(RegistryError::stopped)?;
            return Ok(Some(Attempt::NotTaken));
        }
        if now.voters.contains(&id) {
            let voters = now
                .voters
                .iter()
                .copied()
                .filter(|voter| *voter != id)
                .collect();
            if let Some(attempt) = changed(node, ChangeMembers::ReplaceAllVoters(voters)).await? {
                return Ok(Some(attempt));
            }
        }
        if now.nodes.contains(&id) {
            return changed(node, ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await;
        }
        Ok(None)
    }
}

/// One change of the membership; `None` = committed.
async fn changed(
    node: &Node,
    change: ChangeMembers<u64, BasicNode>,
) -> Result<Option<Attempt>, RegistryError> {
    match node.raft.change_membership(change, true).await {
        Ok(_) => Ok(None),
        Err(RaftError::Fatal(error)) => Err(RegistryError::stopped(error)),
        Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => {
            Ok(Some(Attempt::Unknown))
        }
        Err(RaftError::APIError(_)) => Ok(Some(Attempt::NotTaken)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    fn step(members: &[u64], voters: &[u64], nodes: &[u64], ready: &[u64]) -> Option<Step> {
        let now = Membership {
            voters: set(voters),
            nodes: set(nodes),
            joint: false,
        };
        next_step(1, &set(members), &now, &set(ready), &set(&[]))
    }

    #[test]
    fn voters_are_odd_and_at_most_seven() {
        let wanted: Vec<usize> = (0..10).map(voters_wanted).collect();
        assert_eq!(wanted, [0, 1, 2, 3, 3, 5, 5, 7, 7, 7]);
    }

    #[test]
    fn a_new_peer_learns_first_and_votes_when_it_is_ready() {
        assert_eq!(
            step(&[1, 2], &[1], &[1], &[]),
            Some(Step::AddLearners(set(&[2])))
        );
        assert_eq!(step(&[1, 2], &[1], &[1, 2], &[]), None);
        assert_eq!(
            step(&[1, 2], &[1], &[1, 2], &[2]),
            Some(Step::SetVoters(set(&[1, 2])))
        );
        assert_eq!(step(&[1, 2], &[1, 2], &[1, 2], &[]), None);
    }

    #[test]
    fn the_fourth_peer_waits_for_the_fifth() {
        assert_eq!(step(&[1, 2, 3, 4], &[1, 2, 3], &[1, 2, 3, 4], &[4]), None);
        let nodes = [1, 2, 3, 4, 5];
        assert_eq!(step(&nodes, &[1, 2, 3], &nodes, &[4]), None);
        assert_eq!(
            step(&nodes, &[1, 2, 3], &nodes, &[4, 5]),
            Some(Step::SetVoters(set(&nodes)))
        );
    }

    /// One of four was dead, and another was detached: of the three left the dead one and another
    /// stayed voters, which are no quorum.
    #[test]
    fn a_voter_that_is_silent_goes_before_one_that_speaks() {
        let four = set(&[1, 2, 3, 4]);
        let now = Membership {
            voters: four.clone(),
            nodes: four.clone(),
            joint: false,
        };
        let step = |silent: &[u64]| next_step(1, &four, &now, &set(&[]), &set(silent));
        assert_eq!(step(&[2]), Some(Step::SetVoters(set(&[1, 3, 4]))));
        assert_eq!(step(&[1, 2]), Some(Step::SetVoters(set(&[1, 3, 4]))));
        assert_eq!(step(&[2, 3]), Some(Step::SetVoters(set(&[1, 2, 4]))));
    }

    #[test]
    fn after_a_removal_the_voters_are_odd_again() {
        let four = [1, 2, 3, 4];
        assert_eq!(
            step(&four, &four, &four, &[]),
            Some(Step::SetVoters(set(&[1, 2, 3])))
        );
        assert_eq!(
            step(&[1, 2, 4], &[1, 2], &[1, 2, 4], &[4]),
            Some(Step::SetVoters(set(&[1, 2, 4])))
        );
    }

    #[test]
    fn half_a_change_is_finished_first_and_strangers_go_last() {
        let now = Membership {
            voters: set(&[1, 2]),
            nodes: set(&[1, 2]),
            joint: true,
        };
        assert_eq!(
            next_step(1, &set(&[1]), &now, &set(&[]), &set(&[])),
            Some(Step::Flatten)
        );
        assert_eq!(
            step(&[1], &[1], &[1, 9], &[]),
            Some(Step::RemoveLearners(set(&[9])))
        );
        assert_eq!(step(&[], &[1], &[1], &[]), None);
    }
}
