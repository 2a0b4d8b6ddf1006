//! `mortar registry status`: what every registry says of itself, gathered.

use mortar_proto::control::{RegistryMember, RegistryStatusReply};
use openraft::ServerState;

use super::error::RegistryError;
use super::{Inner, Registry};

/// The state of a peer that has not heard yet what it had promised before it started.
const WAITS: &str = "waits to hear from a majority of the voters before it takes part";

/// The state of a peer that has forgotten what it had promised. `why` it is no new one yet.
fn put_back(why: &str) -> String {
    let state = "was put back to an older state and takes no part until it is a new peer";
    match why {
        "" => state.to_owned(),
        why => format!("{state}, which fails: {why}"),
    }
}

impl Registry {
    /// Leader, term, applied index, voters, and who is lagging. Asks every member, each for at
    /// most half a second; works without a quorum.
    ///
    /// # Errors
    /// [`RegistryError::Stopped`] when the registry's threads have ended.
    pub async fn status(&self) -> Result<RegistryStatusReply, RegistryError> {
        self.run(|inner| async move { Ok(inner.status().await) })
            .await
    }
}

impl Inner {
    async fn status(&self) -> RegistryStatusReply {
        let mut status = self.own_status();
        let local = status.local;
        let asked = status.members.iter().filter(|member| member.id != local);
        let answers =
            futures::future::join_all(asked.map(|member| self.ask_status(member.id))).await;
        let answers: Vec<_> = answers.into_iter().flatten().collect();
        let newest = answers
            .iter()
            .map(|answer| answer.applied)
            .fold(status.applied, u64::max);
        let (applied, last_log) = (status.applied, status.last_log);
        for member in &mut status.members {
            let answer = answers.iter().find(|answer| answer.local == member.id);
            member.reachable = member.id == local || answer.is_some();
            let (has, applied) = match answer {
                Some(answer) => (answer.last_log, answer.applied),
                None if member.id == local => (last_log, applied),
                None => continue,
            };
            member.matched = has;
            member.lag = newest.saturating_sub(applied);
        }
        status
    }

    /// What this registry knows without asking anybody. `matched` and `lag` of the others stay 0.
    pub(super) fn own_status(&self) -> RegistryStatusReply {
        let local = self.identity().peer;
        let Some(node) = self.node() else {
            return RegistryStatusReply {
                local,
                state: "in no pool".to_owned(),
                ..RegistryStatusReply::default()
            };
        };
        let metrics = node.metrics();
        let membership = metrics.membership_config.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let member = |(id, known): (&u64, &openraft::BasicNode)| RegistryMember {
            id: *id,
            host: self
                .peer(*id)
                .map_or_else(|| known.addr.clone(), |peer| peer.host),
            voter: voters.contains(id),
            ..RegistryMember::default()
        };
        RegistryStatusReply {
            local,
            leader: metrics.current_leader.unwrap_or(0),
            term: metrics.current_term,
            applied: metrics.last_applied.map_or(0, |log_id| log_id.index),
            last_log: metrics.last_log_index.unwrap_or(0),
            members: membership.nodes().map(member).collect(),
            state: match (&metrics.running_state, metrics.state) {
                (Ok(()), _) if node.cleared.behind().is_some() => put_back(&node.cleared.failure()),
                (Ok(()), _) if !node.cleared.is() => WAITS.to_owned(),
                (Err(error), _) => format!("failed: {error}"),
                (Ok(()), ServerState::Learner) => "learner".to_owned(),
                (Ok(()), ServerState::Follower) => "follower".to_owned(),
                (Ok(()), ServerState::Candidate) => "candidate".to_owned(),
                (Ok(()), ServerState::Leader) => "leader".to_owned(),
                (Ok(()), ServerState::Shutdown) => "stopped".to_owned(),
            },
            generation: node.pool.generation,
            snapshot: metrics.snapshot.map_or(0, |log_id| log_id.index),
        }
    }
}
