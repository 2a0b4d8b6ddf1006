//! The cases of Raft's founding papers.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use openraft::ServerState;
use openraft::raft::VoteRequest;

use super::{Cluster, PATIENCE, found, put, slow, wait};
use crate::registry::node::Timing;
use crate::registry::types::Vote;

/// A candidate whose voter has not answered by then stands again.
const VOTES_COME_WITHIN: Duration = Duration::from_secs(2);

/// Four nodes: two stand at once, each gets two votes of four, nobody wins. Then one does.
#[tokio::test(flavor = "multi_thread")]
async fn a_split_vote_and_then_a_winner() {
    let cluster = Cluster::start(4, slow(), false).await;
    for one in [1, 2] {
        cluster.network.cut(one, &[3, 4]);
    }
    // Each peer's first entry is its own, and of two the one of the higher id counts as the longer
    // log: 2 and 4 can have the votes of 1 and 3, not the other way round.
    let has_both_votes = |stands: u64| {
        let metrics = [stands, stands - 1].map(|id| cluster.node(id).metrics());
        let own = Vote::new(metrics[0].current_term, stands);
        metrics.iter().all(|metrics| metrics.vote == own)
    };
    wait("both to have two votes", || async {
        // Nobody stands by itself here. Again only where a message was late: on a slow machine two
        // that stand again and again outrun their voters.
        for stands in [2, 4] {
            if !has_both_votes(stands) {
                let raft = &cluster.node(stands).raft;
                raft.trigger().elect(false).await.unwrap();
            }
        }
        let begin = Instant::now();
        while begin.elapsed() < VOTES_COME_WITHIN {
            if has_both_votes(2) && has_both_votes(4) {
                return Some(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    })
    .await;
    // Two of four are no majority, however long they wait.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for id in 1..=4 {
        assert_eq!(cluster.node(id).metrics().current_leader, None, "peer {id}");
    }
    cluster.network.mend();
    cluster.let_all_stand();
    let leader = cluster.leader_of(&[1, 2, 3, 4]).await;
    let term = cluster.node(leader).metrics().current_term;
    let leaders = (1..=4).filter(|id| {
        let metrics = cluster.node(*id).metrics();
        metrics.state == ServerState::Leader && metrics.current_term == term
    });
    assert_eq!(leaders.count(), 1, "one leader a term");
    assert_eq!(cluster.write(&[1, 2, 3, 4], found(9)).await.refusal, "");
    cluster.end().await;
}

/// A candidate that lacks committed entries gets no vote, in whatever term it stands.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_log_is_refused_the_vote() {
    let mut cluster = Cluster::start(3, slow(), true).await;
    cluster.write(&[1, 2, 3], found(9)).await;
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let (stale, fresh) = (others[0], others[1]);
    cluster.network.cut(stale, &[1, 2, 3]);
    cluster.write(&[leader, fresh], put(7)).await;
    wait("the fresh one to know that it is committed", || async {
        (cluster.view_index(fresh) == cluster.view_index(leader)).then_some(())
    })
    .await;
    let stale_log = cluster.node(stale).metrics().last_applied;
    let term = cluster.node(leader).metrics().current_term;
    drop(cluster.stop(leader).await);

    let voter = cluster.node(fresh);
    let asks = |term, log| VoteRequest::new(Vote::new(term, stale), log);
    wait("the lease of the dead leader to end", || async {
        // As a question only: nothing changes by asking.
        let ours = voter
            .raft
            .pre_vote(asks(term + 9, voter.metrics().last_applied))
            .await;
        ours.unwrap().vote_granted.then_some(())
    })
    .await;
    let refused = voter.raft.vote(asks(term + 10, stale_log)).await.unwrap();
    assert!(!refused.vote_granted);
    cluster.network.mend();
    let winner = cluster.leader_of(&[stale, fresh]).await;
    assert_eq!(winner, fresh, "only the one with the whole log can win");
    wait("the stale one to be repaired", || async {
        (cluster.view_index(stale) == cluster.view_index(fresh)).then_some(())
    })
    .await;
    cluster.end().await;
}

/// A follower hundreds of entries behind is repaired in a few messages, not one an entry.
#[tokio::test(flavor = "multi_thread")]
async fn a_far_behind_follower_is_repaired_quickly() {
    let cluster = Cluster::start(3, slow(), true).await;
    cluster.write(&[1, 2, 3], found(9)).await;
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    let behind = if leader == 1 { 2 } else { 1 };
    let two: Vec<u64> = (1..=3).filter(|id| *id != behind).collect();
    cluster.network.cut(behind, &[1, 2, 3]);
    for _ in 0..400 {
        cluster.write(&two, put(7)).await;
    }
    let index = cluster.view_index(leader);
    let before = cluster.network.appends.load(Ordering::Relaxed);
    cluster.network.mend();
    let begin = Instant::now();
    wait("the repair", || async {
        (cluster.view_index(behind) >= index).then_some(())
    })
    .await;
    let messages = cluster.network.appends.load(Ordering::Relaxed) - before;
    println!(
        "400 entries behind: repaired in {:?} with {messages} messages",
        begin.elapsed()
    );
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "took {:?}",
        begin.elapsed()
    );
    assert!(messages < 100, "{messages} messages");
    assert_eq!(cluster.network.snapshots.load(Ordering::Relaxed), 0);
    cluster.end().await;
}

/// A follower behind the compacted log gets a snapshot, and goes on from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_the_compacted_log_gets_a_snapshot() {
    let timing = Timing {
        snapshot_every: 50,
        log_kept: 10,
        ..slow()
    };
    let cluster = Cluster::start(3, timing, true).await;
    cluster.write(&[1, 2, 3], found(9)).await;
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    let behind = if leader == 1 { 2 } else { 1 };
    let two: Vec<u64> = (1..=3).filter(|id| *id != behind).collect();
    cluster.network.cut(behind, &[1, 2, 3]);
    let stuck = cluster.node(behind).metrics().last_log_index;
    for id in 10..210 {
        cluster.write(&two, put(id)).await;
    }
    wait("the log to be compacted", || async {
        let purged = cluster
            .node(leader)
            .metrics()
            .purged
            .map(|purged| purged.index);
        (purged > stuck).then_some(())
    })
    .await;
    cluster.network.mend();
    let index = cluster.view_index(leader);
    wait("the repair", || async {
        (cluster.view_index(behind) >= index).then_some(())
    })
    .await;
    assert!(cluster.network.snapshots.load(Ordering::Relaxed) > 0);
    cluster.write(&[1, 2, 3], put(999)).await;
    wait("the next entry", || async {
        (cluster.places[&behind].applied.view() == cluster.places[&leader].applied.view())
            .then_some(())
    })
    .await;
    cluster.end().await;
}

/// A leader cut off from the others commits nothing, says so, and follows when it returns.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_off_leader_cannot_commit_and_steps_aside() {
    let cluster = Cluster::start(3, slow(), true).await;
    cluster.write(&[1, 2, 3], found(9)).await;
    let old = cluster.leader_of(&[1, 2, 3]).await;
    let rest: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    let index = cluster.view_index(old);
    cluster.network.cut(old, &[1, 2, 3]);
    // Taken while its lease still runs, perhaps: it must not be answered as applied.
    let lonely = cluster.node(old).raft.clone();
    let change = crate::registry::types::Change {
        id: 77,
        command: put(77),
    };
    let never = tokio::spawn(async move { lonely.client_write(change).await });
    let new = cluster.leader_of(&rest).await;
    assert_ne!(new, old);
    cluster.write(&rest, put(8)).await;
    assert_eq!(cluster.view_index(old), index, "it applied nothing");
    // It takes nothing new either once its lease has ended.
    let refused = cluster
        .node(old)
        .raft
        .client_write(Default::default())
        .await;
    assert!(refused.is_err());

    cluster.network.mend();
    wait("the old leader to follow", || async {
        (cluster.node(old).metrics().current_leader == Some(new)).then_some(())
    })
    .await;
    wait("it to have what the others have", || async {
        (cluster.places[&old].applied.view() == cluster.places[&new].applied.view()).then_some(())
    })
    .await;
    let view = cluster.places[&old].applied.view();
    assert!(view.peers.contains_key(&8) && !view.peers.contains_key(&77));
    let answer = tokio::time::timeout(PATIENCE, never)
        .await
        .unwrap()
        .unwrap();
    assert!(answer.is_err(), "a lost change is not acknowledged");
    cluster.end().await;
}

/// With pre-vote a peer that was cut off returns without disturbing anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_was_cut_off_does_not_raise_the_term() {
    let cluster = Cluster::start(3, slow(), true).await;
    cluster.write(&[1, 2, 3], found(9)).await;
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    let lost = if leader == 1 { 2 } else { 1 };
    let term = cluster.node(leader).metrics().current_term;
    cluster.network.cut(lost, &[1, 2, 3]);
    // Long enough for it to want to stand several times.
    tokio::time::sleep(Duration::from_millis(4000)).await;
    cluster.network.mend();
    wait("it to follow again", || async {
        (cluster.node(lost).metrics().current_leader == Some(leader)).then_some(())
    })
    .await;
    assert_eq!(cluster.node(leader).metrics().current_term, term);
    cluster.end().await;
}
