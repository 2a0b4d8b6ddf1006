//! Whether this peer may take part in its Raft yet. What it has promised in its former lives the
//! others are asked ([`super::recall`]); here is what follows from their answers.
//!
//! They are counted by the newest membership that a peer which answered knows to be committed: who
//! was away for long may find that all those it knew have left. And no peer's message is answered
//! before that peer was asked, so that a peer which knew of nobody when its data directory was saved
//! is found out too.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::entry::RaftEntry;

use super::disk::Stored;
use super::recall::Position;
use super::types::StoredMembership;

/// Peers heard in one life; a pool has fewer, but they come and go. Those beyond are not listened to.
const HEARD_MAX: usize = 1024;

/// What this peer had when its life began.
#[derive(Clone, Debug, Default)]
pub struct Past {
    position: Position,
    membership: StoredMembership,
}

impl Past {
    /// Of what the disk holds.
    pub fn of(stored: &Stored) -> Past {
        let in_log = stored.entries.values().rev().find_map(|entry| {
            let membership = entry.get_membership()?;
            Some(StoredMembership::new(Some(entry.log_id()), membership))
        });
        let in_snapshot = stored.snapshot.as_ref();
        let in_snapshot = in_snapshot.map(|(meta, _)| meta.last_membership.clone());
        Past {
            position: Position::stored(stored),
            membership: newest(in_log.unwrap_or_default(), in_snapshot.unwrap_or_default()),
        }
    }
}

/// What another peer answered.
#[derive(Clone, Debug)]
pub struct Told {
    /// Who answered.
    pub peer: u64,
    /// How far it has seen this peer.
    pub position: Position,
    /// The newest membership that it knows to be committed.
    pub membership: StoredMembership,
}

/// Whether this peer may speak to other Rafts and answer them. Clones share it.
#[derive(Clone, Debug)]
pub struct Cleared(Arc<Mutex<Heard>>);

#[derive(Debug, Default)]
struct Heard {
    me: u64,
    /// `None`: this life began with nothing, and nothing was promised before it.
    past: Option<Past>,
    /// By which the answers are counted.
    membership: StoredMembership,
    peers: BTreeSet<u64>,
    rounds: u64,
    behind: Option<Position>,
    failure: String,
    looks: Looks,
}

/// Whether somebody is asking the others.
#[derive(Debug, Default, PartialEq, Eq)]
enum Looks {
    #[default]
    Not,
    On,
}

impl Cleared {
    /// For a life that begins with nothing.
    pub fn at_once() -> Self {
        Cleared(Arc::default())
    }

    /// For a life that goes on with what was on the disk.
    pub fn after(me: u64, past: Past) -> Self {
        Cleared(Arc::new(Mutex::new(Heard {
            me,
            membership: past.membership.clone(),
            past: Some(past),
            ..Heard::default()
        })))
    }

    /// Whether it may.
    pub fn is(&self) -> bool {
        self.heard().is_cleared()
    }

    /// Whether this peer was asked in this life, or need not be.
    pub fn has_asked(&self, peer: u64) -> bool {
        let heard = self.heard();
        heard.past.is_none() || heard.peers.contains(&peer)
    }

    /// Takes an answer. `own` is the newest membership in this peer's log now.
    ///
    /// What a peer has seen counts at its first answer only: later it has seen this life too.
    pub fn hear(&self, told: Told, own: &StoredMembership) {
        self.heard().hear(told, own);
    }

    /// What this peer has and what it had, when it was found out to have less.
    pub fn behind(&self) -> Option<(Position, Position)> {
        let heard = self.heard();
        Some((heard.past.as_ref()?.position, heard.behind?))
    }

    /// That it could not become a new peer, and why. False = that was known.
    pub fn fail(&self, why: String) -> bool {
        let mut heard = self.heard();
        let is_new = heard.failure != why;
        heard.failure = why;
        is_new
    }

    /// Why it could not become a new peer; empty = that did not happen.
    pub fn failure(&self) -> String {
        self.heard().failure.clone()
    }

    /// Whom to ask, with their addresses.
    pub fn others(&self) -> Vec<(u64, String)> {
        let heard = self.heard();
        let others = heard.membership.nodes().filter(|(id, _)| **id != heard.me);
        others.map(|(id, node)| (*id, node.addr.clone())).collect()
    }

    /// All others were asked once more.
    pub fn end_round(&self) {
        self.heard().rounds += 1;
    }

    /// Whether the caller is to ask the others until [`Cleared::end_look`].
    pub fn begin_look(&self) -> bool {
        let mut heard = self.heard();
        let begins = !heard.is_cleared() && heard.looks == Looks::Not;
        if begins {
            heard.looks = Looks::On;
        }
        begins
    }

    /// Whether there is nothing left to ask.
    pub fn end_look(&self) -> bool {
        let mut heard = self.heard();
        let ends = heard.is_cleared();
        if ends {
            heard.looks = Looks::Not;
        }
        ends
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn hear(&mut self, told: Told, own: &StoredMembership) {
        let Some(past) = &self.past else { return };
        if self.peers.len() >= HEARD_MAX && !self.peers.contains(&told.peer) {
            return;
        }
        let is_first = self.peers.insert(told.peer);
        let own = newest(own.clone(), past.membership.clone());
        let is_newer = told.membership.log_id() > own.log_id();
        if is_first && past.position.is_behind(told.position) {
            self.behind = self.behind.or(Some(told.position));
        }
        // Nothing is committed without the only voter: it was there, and has forgotten it.
        if is_newer && is_only_voter(self.me, &own) {
            let had = Position::new(*told.membership.log_id(), None);
            self.behind = self.behind.or(Some(had));
        }
        if is_newer {
            self.membership = newest(told.membership, std::mem::take(&mut self.membership));
        }
    }

    fn is_cleared(&self) -> bool {
        let is_alone = self.membership.nodes().all(|(id, _)| *id == self.me);
        self.past.is_none()
            || self.behind.is_none() && (self.rounds > 0 || is_alone) && self.is_enough()
    }

    /// Whether, with this peer, so many have answered that they could decide something.
    fn is_enough(&self) -> bool {
        let configs = self.membership.membership().get_joint_config();
        configs.iter().all(|voters| {
            let there = voters
                .iter()
                .filter(|id| **id == self.me || self.peers.contains(id));
            there.count() > voters.len() / 2
        })
    }
}

fn newest(one: StoredMembership, other: StoredMembership) -> StoredMembership {
    match other.log_id() > one.log_id() {
        true => other,
        false => one,
    }
}

fn is_only_voter(me: u64, membership: &StoredMembership) -> bool {
    let mut voters = membership.voter_ids();
    voters.next() == Some(me) && voters.next().is_none()
}

#[cfg(test)]
mod tests {
    use openraft::{BasicNode, Membership};

    use super::*;
    use crate::registry::types::{LogId, Vote};

    const ME: u64 = 2;

    /// All vote; made at this index.
    fn of(index: u64, voters: &[u64]) -> StoredMembership {
        let nodes = voters.iter().map(|id| (*id, BasicNode::default()));
        let membership = Membership::new(
            vec![voters.iter().copied().collect()],
            nodes.collect::<std::collections::BTreeMap<_, _>>(),
        );
        let log_id = LogId::new(*Vote::new(3, 1).leader_id(), index);
        StoredMembership::new(Some(log_id), membership.unwrap())
    }

    fn at(last_log: u64) -> Position {
        Position {
            log_term: 3,
            last_log,
            vote_term: 3,
        }
    }

    fn after(last_log: u64, membership: &StoredMembership) -> Cleared {
        let past = Past {
            position: at(last_log),
            membership: membership.clone(),
        };
        Cleared::after(ME, past)
    }

    fn told(peer: u64, last_log: u64, membership: &StoredMembership) -> Told {
        Told {
            peer,
            position: at(last_log),
            membership: membership.clone(),
        }
    }

    #[test]
    fn a_majority_clears_and_one_that_saw_more_does_not() {
        let three = of(5, &[1, ME, 3]);
        let peer = after(9, &three);
        peer.end_round();
        assert!(!peer.is() && !peer.has_asked(1));
        peer.hear(told(1, 9, &three), &three);
        assert!(peer.is() && peer.has_asked(1) && !peer.has_asked(3));
        // It has seen this life by now.
        peer.hear(told(1, 12, &three), &three);
        assert!(peer.is());
        // This one has not.
        peer.hear(told(3, 12, &three), &three);
        assert!(!peer.is());
        assert_eq!(peer.behind(), Some((at(9), at(12))));
    }

    #[test]
    fn answers_are_counted_by_the_newest_membership() {
        let old = of(5, &[1, ME, 3]);
        let new = of(50, &[ME, 4, 5]);
        let peer = after(9, &old);
        peer.end_round();
        assert!(peer.begin_look() && !peer.begin_look() && !peer.end_look());
        peer.hear(told(4, 9, &new), &old);
        assert!(peer.is() && peer.end_look());
        assert_eq!(peer.others().len(), 2);
        // A larger one needs more, but not once it is in the own log.
        let larger = of(60, &[1, ME, 4, 5, 6, 7, 8, 9, 10]);
        peer.hear(told(5, 0, &larger), &larger);
        assert!(peer.is());
        peer.hear(told(6, 0, &larger), &new);
        assert!(!peer.is() && peer.begin_look());
        peer.hear(told(8, 0, &larger), &new);
        assert!(peer.is());
        // One from the past changes nothing.
        peer.hear(told(1, 0, &old), &new);
        assert!(peer.is());
    }

    #[test]
    fn the_only_voter_waits_for_nobody_and_can_have_missed_nothing() {
        let alone = of(0, &[ME]);
        let peer = after(9, &alone);
        assert!(peer.is() && !peer.begin_look(), "nobody is to be asked");
        // Made in this life, and in its log.
        let two = of(20, &[1, ME]);
        peer.hear(told(1, 0, &two), &two);
        assert!(peer.is() && peer.behind().is_none());
        // Made in a life that it has forgotten.
        let peer = after(9, &alone);
        peer.hear(told(1, 0, &two), &alone);
        assert!(!peer.is() && peer.behind().is_some());
        assert!(peer.fail("a full disk".to_owned()) && !peer.fail("a full disk".to_owned()));
        assert_eq!(peer.failure(), "a full disk");
    }

    #[test]
    fn a_life_that_begins_with_nothing_asks_nobody() {
        let peer = Cleared::at_once();
        assert!(peer.is() && peer.has_asked(7) && !peer.begin_look());
        // One that was saved before it had heard of anybody does.
        let nobody = StoredMembership::default();
        let peer = Cleared::after(ME, Past::default());
        assert!(peer.is() && !peer.has_asked(7));
        peer.hear(told(7, 4, &nobody), &nobody);
        assert!(!peer.is());
    }
}
