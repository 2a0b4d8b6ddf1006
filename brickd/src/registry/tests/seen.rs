//! What a peer remembers of what the others have answered for.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use futures::future::pending;
use openraft::network::{RPCOption, RaftNetworkFactory};
use openraft::raft::VoteRequest;
use openraft::{BasicNode, RaftNetworkV2};

use super::{Cluster, Wire, found, slow, wait};
use crate::registry::disk::Disk;
use crate::registry::network::Links;
use crate::registry::recall::{Position, Seen};
use crate::registry::types::{LogId, Vote};

/// A peer that has voted for another since refuses the snapshot in the same message that takes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_refused_counts_for_nothing() {
    let cluster = Cluster::start(3, slow(), true).await;
    cluster.write(&[1, 2, 3], found(9)).await;
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    let behind = if leader == 1 { 2 } else { 1 };
    let sender = cluster.node(leader);
    sender.raft.trigger().snapshot().await.unwrap();
    let mut snapshot = wait("the snapshot", || async {
        sender.raft.get_snapshot().await.unwrap()
    })
    .await;
    cluster.network.cut(leader, &[1, 2, 3]);

    // As it would be far ahead of the other.
    let old = sender.metrics().vote;
    let last = LogId::new(old.leader_id().to_owned(), 1000);
    snapshot.meta.last_log_id = Some(last);
    let stranger = (1..=3).find(|id| *id != leader && *id != behind).unwrap();
    let voter = cluster.node(behind);
    let voted = wait("the vote", || async {
        let term = voter.metrics().current_term + 1;
        let log = voter.metrics().last_applied;
        let asks = VoteRequest::new(Vote::new(term, stranger), log);
        let answer = voter.raft.vote(asks).await.unwrap();
        answer.vote_granted.then_some(answer.vote)
    })
    .await;
    assert!(voted > old);
    cluster.network.mend();

    let mut links = Links {
        transport: Arc::new(Wire {
            from: leader,
            network: Arc::clone(&cluster.network),
        }),
        applied: cluster.places[&leader].applied.clone(),
        seen: sender.seen.clone(),
    };
    let before = sender.seen.of(behind);
    let mut link = links.new_client(behind, &BasicNode::default()).await;
    let option = || RPCOption::new(Duration::from_secs(30));
    let sent = link.full_snapshot(old, snapshot.clone(), pending(), option());
    let answer = sent.await.unwrap();
    assert!(answer.vote > old, "refused: {}", answer.vote);
    let after = sender.seen.of(behind);
    assert!(after.last_log < 1000, "{before:?} {after:?}");

    // One that is taken counts.
    let newer = Vote::new_committed(voter.metrics().current_term + 9, leader);
    snapshot.meta.last_log_id = Some(last);
    let sent = link.full_snapshot(newer, snapshot, pending(), option());
    assert_eq!(sent.await.unwrap().vote, newer);
    let had = Position::new(Some(last), None);
    assert_eq!(sender.seen.of(behind).last_log, had.last_log);
    cluster.end().await;
}

/// Raft's threads note at once, each of another peer: what is written last has all of it. That an
/// older one came last was seen in every third round.
#[test]
fn what_is_written_last_is_the_newest() {
    const PEERS: u64 = 32;
    let noted = Position {
        last_log: 7,
        ..Position::default()
    };
    for round in 0..30 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.redb");
        let (disk, mut stored) = Disk::open(&path).unwrap();
        let seen = Seen::new(disk.clone(), &mut stored);
        let all_at_once = Barrier::new(PEERS as usize);
        std::thread::scope(|threads| {
            for peer in 1..=PEERS {
                let (seen, all_at_once) = (&seen, &all_at_once);
                threads.spawn(move || {
                    all_at_once.wait();
                    seen.note(peer, noted);
                });
            }
        });
        disk.close();
        let (disk, stored) = Disk::open(&path).unwrap();
        disk.close();
        assert_eq!(stored.seen.len(), PEERS as usize, "round {round}");
    }
}
