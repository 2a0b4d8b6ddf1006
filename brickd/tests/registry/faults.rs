//! Killed leaders, lost quorums, wiped disks, recovery.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use brickd::registry::{Invited, RegistryError, Timing};

use super::{Host, agree, create, end, leader, option, pool, slow, wait};

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_the_view_is_read_and_changes_are_refused() {
    let mut hosts = pool(2, slow()).await;
    let ids = [hosts[0].id(), hosts[1].id()];
    assert_eq!(
        hosts[0]
            .registry
            .propose(create("v01", &ids))
            .await
            .unwrap()
            .refusal,
        ""
    );
    agree(&hosts).await;
    let lost = hosts.pop().unwrap().kill().await;
    let alone = &hosts[0].registry;
    let begin = Instant::now();
    // At once, also where the peer that led has not noticed the loss yet: nothing is taken of which
    // nobody could say what became of it.
    let error = alone.propose(option("v01", "lost")).await.unwrap_err();
    assert_eq!(error.to_string(), "no quorum: 1 of 2 voters reachable");
    // Whoever thinks better of it while there is no leader has it sent to nobody.
    let asked = Arc::new(AtomicU32::new(0));
    let (registry, counted) = (alone.clone(), Arc::clone(&asked));
    let wanted = Arc::new(move || counted.fetch_add(1, Ordering::Relaxed) < 3);
    let change = option("v01", "not wanted");
    let waits = tokio::task::spawn_blocking(move || registry.propose_while(change, wanted));
    assert_eq!(waits.await.unwrap().unwrap_err(), RegistryError::NotWanted);
    assert_eq!(asked.load(Ordering::Relaxed), 4);
    let error = alone.barrier().await.unwrap_err();
    assert_eq!(
        error,
        RegistryError::NoQuorum {
            reachable: 1,
            voters: 2
        }
    );
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "bounded: {:?}",
        begin.elapsed()
    );
    let error = alone.invite("127.0.0.1", 1).await.unwrap_err();
    assert!(error.to_string().contains("not connected"), "{error}");
    let stranger = Host::new(slow()).await;
    let error = hosts[0].probe(&stranger).await.unwrap_err().to_string();
    assert!(error.starts_with("Cluster quorum is not met."), "{error}");
    assert!(alone.view().volumes.contains_key("v01"));
    let status = alone.status().await.unwrap();
    let reachable = status
        .members
        .iter()
        .filter(|member| member.reachable)
        .count();
    assert_eq!((status.members.len(), reachable), (2, 1));

    // Back again, all goes on; also from the restarted side.
    hosts.push(Host::revive(lost).await);
    wait("a quorum", || async {
        hosts[1].registry.barrier().await.ok()
    })
    .await;
    let outcome = hosts[1]
        .registry
        .propose(option("v01", "back"))
        .await
        .unwrap();
    assert_eq!(outcome.refusal, "");
    agree(&hosts).await;
    end(hosts).await;
    stranger.kill().await;
}

/// With the timings of production: how long a pool of three is without a leader.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_and_nothing_is_lost() {
    let mut hosts = pool(3, Timing::default()).await;
    let ids: Vec<u64> = hosts.iter().map(Host::id).collect();
    assert_eq!(
        hosts[0]
            .registry
            .propose(create("v01", &ids))
            .await
            .unwrap()
            .refusal,
        ""
    );
    wait("three voters", || async {
        (hosts[0].voters().await == 3).then_some(())
    })
    .await;
    let mut longest = Duration::ZERO;
    for round in 0..4 {
        let status = hosts[0].registry.status().await.unwrap();
        let at = leader(&hosts, &status);
        let killed = hosts.remove(at);
        // Not waited for: the clock runs from here.
        let begin = Instant::now();
        let killed = tokio::spawn(killed.kill());
        let value = format!("round {round}");
        let outcome = hosts[0]
            .registry
            .propose(option("v01", &value))
            .await
            .unwrap();
        assert_eq!(outcome.refusal, "");
        println!(
            "killed the leader: a change was made {:?} later",
            begin.elapsed()
        );
        longest = longest.max(begin.elapsed());
        let dead = killed.await.unwrap();
        hosts.push(Host::revive(dead).await);
        let barrier = wait("the killed one to take part", || async {
            hosts[2].registry.barrier().await.ok()
        });
        assert_eq!(barrier.await.volumes["v01"].options["test.key"], value);
        wait("a settled leader", || async {
            let status = hosts[0].registry.status().await.unwrap();
            ids.contains(&status.leader).then_some(())
        })
        .await;
    }
    println!("longest time without a leader: {longest:?}");
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    end(hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_quorum_is_recovered_by_force() {
    let mut hosts = pool(2, slow()).await;
    let ids = [hosts[0].id(), hosts[1].id()];
    assert_eq!(
        hosts[0]
            .registry
            .propose(create("v01", &ids))
            .await
            .unwrap()
            .refusal,
        ""
    );
    agree(&hosts).await;
    let error = hosts[0]
        .registry
        .recover(true)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("there is nothing to recover"), "{error}");

    let lost = hosts.pop().unwrap().kill().await;
    let left = hosts.pop().unwrap();
    let error = left.registry.recover(false).await.unwrap_err().to_string();
    assert!(error.contains("Say --force"), "{error}");
    let before = left.registry.view();
    left.registry.recover(true).await.unwrap();
    let view = left.registry.barrier().await.unwrap();
    assert_eq!((view.generation, view.pool), (2, before.pool));
    assert!(view.index > before.index, "readers that resume see it");
    assert_eq!(view.volumes, before.volumes);
    assert_eq!(
        left.registry
            .propose(option("v01", "alone"))
            .await
            .unwrap()
            .refusal,
        ""
    );
    assert_eq!(left.voters().await, 1);

    // It stays recovered over a restart.
    let left = Host::revive(left.kill().await).await;
    wait("a leader", || async { left.registry.barrier().await.ok() }).await;
    assert_eq!(left.registry.view().generation, 2);

    // The other one speaks for a former generation: it changes nothing until it is probed again.
    let other = Host::revive(lost).await;
    assert!(other.registry.propose(option("v01", "old")).await.is_err());
    let joined = left.probe(&other).await.unwrap();
    assert!(matches!(joined, Invited::Joined(_)), "{joined}");
    assert_eq!(other.id(), ids[1], "its bricks are still its own");
    let hosts = [left, other];
    wait("both to vote", || async {
        (hosts[0].voters().await == 2).then_some(())
    })
    .await;
    agree(&hosts).await;
    let view = hosts[1].registry.barrier().await.unwrap();
    assert_eq!(view.volumes["v01"].options["test.key"], "alone");
    end(hosts.into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_recovered_do_not_meet_by_accident() {
    let hosts = pool(2, slow()).await;
    let ids = [hosts[0].id(), hosts[1].id()];
    assert_eq!(
        hosts[0]
            .registry
            .propose(create("v01", &ids))
            .await
            .unwrap()
            .refusal,
        ""
    );
    agree(&hosts).await;
    let mut dead = Vec::new();
    for host in hosts {
        dead.push(host.kill().await);
    }
    // Each recovers while the other is away.
    for at in 0..2 {
        let host = Host::revive(dead.remove(0)).await;
        wait("recovery", || async {
            host.registry.recover(true).await.ok()
        })
        .await;
        let value = format!("side {at}");
        assert_eq!(
            host.registry
                .propose(option("v01", &value))
                .await
                .unwrap()
                .refusal,
            ""
        );
        dead.push(host.kill().await);
    }
    let one = Host::revive(dead.remove(0)).await;
    let two = Host::revive(dead.remove(0)).await;
    wait("both to lead their own", || async {
        let both = (one.registry.barrier().await, two.registry.barrier().await);
        (both.0.is_ok() && both.1.is_ok()).then_some(())
    })
    .await;
    let error = one.probe(&two).await.unwrap_err().to_string();
    assert!(error.contains("recovered without this one"), "{error}");
    assert_eq!(
        two.registry.view().volumes["v01"].options["test.key"],
        "side 1"
    );
    end(vec![one, two]).await;
}
