//! Data directories that are lost, or put back to an older state.

use std::path::Path;
use std::sync::Arc;

use brickd::registry::{Invited, Timing};
use mortar_common::PeerId;
use tempfile::TempDir;

use super::{Host, agree, create, end, option, pool, slow, wait};

type Dead = (Arc<TempDir>, std::net::SocketAddr, Timing);

/// Copies the files of a data directory.
fn copy(from: &Path, to: &Path) {
    for file in ["identity", "registry.redb"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

fn save(dead: &Dead) -> TempDir {
    let saved = tempfile::tempdir().unwrap();
    copy(dead.0.path(), saved.path());
    saved
}

fn restore(saved: &TempDir, dead: &Dead) {
    copy(saved.path(), dead.0.path());
}

async fn three_voters(hosts: &[Host]) {
    wait("three voters", || async {
        (hosts[0].voters().await == 3).then_some(())
    })
    .await;
}

/// The peer that each brick of the volume is on.
fn homes(host: &Host, volume: &str) -> Vec<u64> {
    let view = host.registry.view();
    view.volumes[volume]
        .bricks
        .iter()
        .map(|brick| brick.peer)
        .collect()
}

/// A busy machine may need more than one try; setting the same value twice changes nothing.
async fn change(host: &Host, value: &str) {
    let outcome = wait("a change", || async {
        host.registry.propose(option("v01", value)).await.ok()
    });
    assert_eq!(outcome.await.refusal, "");
}

/// Three peers with a volume of a brick each.
async fn three() -> (Vec<Host>, Vec<u64>) {
    let hosts = pool(3, slow()).await;
    let ids: Vec<u64> = hosts.iter().map(Host::id).collect();
    let outcome = hosts[0]
        .registry
        .propose(create("v01", &ids))
        .await
        .unwrap();
    assert_eq!(outcome.refusal, "");
    three_voters(&hosts).await;
    agree(&hosts).await;
    (hosts, ids)
}

/// It is in no pool, under another id, until it is probed; then it has the bricks of the old one.
async fn takes_its_place_again(hosts: &mut Vec<Host>, new: Host, old: u64) {
    wait("it to be a new peer", || async {
        (new.id() != old && new.registry.view().peers.is_empty()).then_some(())
    })
    .await;
    change(&hosts[0], "without it").await;
    let probed = hosts[0].probe(&new).await.unwrap();
    assert!(matches!(probed, Invited::Returned(_)), "{probed}");
    assert!(
        probed.to_string().contains("has the bricks of the old one"),
        "{probed}"
    );
    hosts.push(new);
    three_voters(hosts).await;
    agree(hosts).await;
    let view = hosts[0].registry.view();
    assert_eq!(view.peers.len(), 3, "the old one is gone");
    assert!(!view.peers.contains_key(&old));
    assert_eq!(homes(&hosts[0], "v01")[2], hosts[2].id());
    wait("the old one to be out of Raft too", || async {
        let members = hosts[0].registry.status().await.unwrap().members;
        let there: Vec<u64> = members.iter().map(|member| member.id).collect();
        (there.len() == 3 && !there.contains(&old)).then_some(())
    })
    .await;
    three_voters(hosts).await;
    change(&hosts[2], "all of them").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_peer_is_a_new_one_and_takes_its_old_place() {
    let (mut hosts, ids) = three().await;
    let (dir, address, timing) = hosts.pop().unwrap().kill().await;
    drop(dir);
    let fresh = Arc::new(tempfile::tempdir().unwrap());
    let new = Host::revive((fresh, address, timing)).await;
    assert_ne!(new.id(), ids[2]);
    takes_its_place_again(&mut hosts, new, ids[2]).await;
    end(hosts).await;
}

/// A backup of the third peer's data, after which it acknowledged changes.
async fn changed_after_a_backup(hosts: &mut Vec<Host>) -> TempDir {
    let dead = hosts.pop().unwrap().kill().await;
    let saved = save(&dead);
    hosts.push(Host::revive(dead).await);
    for round in 0..5 {
        change(&hosts[2], &format!("acknowledged {round}")).await;
    }
    agree(hosts).await;
    saved
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_restored_from_an_old_backup_is_found_out() {
    let (mut hosts, ids) = three().await;
    let saved = changed_after_a_backup(&mut hosts).await;
    let dead = hosts.pop().unwrap().kill().await;
    restore(&saved, &dead);
    let restored = Host::revive(dead).await;
    takes_its_place_again(&mut hosts, restored, ids[2]).await;
    end(hosts).await;
}

/// What they remember of each other outlives their own restarts.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_restored_while_all_were_down_is_found_out() {
    let (mut hosts, ids) = three().await;
    let saved = changed_after_a_backup(&mut hosts).await;
    let mut dead = Vec::new();
    for host in hosts {
        dead.push(host.kill().await);
    }
    restore(&saved, &dead[2]);
    let restored = Host::revive(dead.pop().unwrap()).await;
    let state = restored.registry.status().await.unwrap().state;
    assert!(state.contains("waits to hear from a majority"), "{state}");
    let mut hosts = Vec::new();
    for dead in dead {
        hosts.push(Host::revive(dead).await);
    }
    wait("a quorum of the two", || async {
        hosts[0].registry.barrier().await.ok()
    })
    .await;
    assert_eq!(
        hosts[0].registry.view().volumes["v01"].options["test.key"],
        "acknowledged 4"
    );
    takes_its_place_again(&mut hosts, restored, ids[2]).await;
    end(hosts).await;
}

/// Of two, the other alone is no quorum: it is recovered by force, and takes the restored one back.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_peers_the_restored_one_comes_back_after_a_recovery() {
    let mut hosts = pool(2, slow()).await;
    let ids: Vec<u64> = hosts.iter().map(Host::id).collect();
    hosts[0]
        .registry
        .propose(create("v01", &ids))
        .await
        .unwrap();
    agree(&hosts).await;
    let dead = hosts.pop().unwrap().kill().await;
    let saved = save(&dead);
    hosts.push(Host::revive(dead).await);
    wait("both to take part", || async {
        hosts[1].registry.barrier().await.ok()
    })
    .await;
    change(&hosts[1], "acknowledged").await;
    let dead = hosts.pop().unwrap().kill().await;
    restore(&saved, &dead);
    let restored = Host::revive(dead).await;
    wait("it to be a new peer", || async {
        (restored.id() != ids[1] && restored.registry.view().peers.is_empty()).then_some(())
    })
    .await;
    let error = hosts[0].probe(&restored).await.unwrap_err().to_string();
    assert!(error.contains("quorum is not met"), "{error}");
    hosts[0].registry.recover(true).await.unwrap();
    let probed = hosts[0].probe(&restored).await.unwrap();
    assert!(matches!(probed, Invited::Returned(_)), "{probed}");
    hosts.push(restored);
    wait("both to vote", || async {
        (hosts[0].voters().await == 2).then_some(())
    })
    .await;
    agree(&hosts).await;
    let view = hosts[1].registry.barrier().await.unwrap();
    assert_eq!(view.volumes["v01"].options["test.key"], "acknowledged");
    assert_eq!(homes(&hosts[0], "v01"), [ids[0], hosts[1].id()]);
    end(hosts).await;
}

/// An ordinary restart, of one and of all, asks and is not taken for anything else.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_peer_is_who_it_was() {
    let (mut hosts, ids) = three().await;
    for round in 0..6 {
        change(&hosts[0], &format!("round {round}")).await;
        let dead = hosts.remove(0).kill().await;
        hosts.push(Host::revive(dead).await);
    }
    let mut dead: Vec<(usize, Dead)> = Vec::new();
    for (at, host) in hosts.into_iter().enumerate() {
        dead.push((at, host.kill().await));
    }
    let mut hosts = Vec::new();
    for (_, dead) in dead.into_iter().rev() {
        hosts.push(Host::revive(dead).await);
    }
    wait("a quorum", || async {
        hosts[0].registry.barrier().await.ok()
    })
    .await;
    let mut now: Vec<u64> = hosts.iter().map(Host::id).collect();
    let mut before = ids;
    now.sort_unstable();
    before.sort_unstable();
    assert_eq!(now, before);
    change(&hosts[0], "all of them").await;
    end(hosts).await;
}

/// Saved before it knew of anybody whom it could ask: the first message of another peer tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_restored_from_when_it_was_alone_is_found_out() {
    let alone = Host::new(slow()).await;
    let old = alone.id();
    let outcome = alone.registry.propose(create("v01", &[old])).await.unwrap();
    assert_eq!(outcome.refusal, "");
    let dead = alone.kill().await;
    let saved = save(&dead);
    let first = Host::revive(dead).await;
    // Nobody is waited for.
    wait("it to lead itself", || async {
        first.registry.barrier().await.ok()
    })
    .await;
    let mut hosts = vec![first];
    for _ in 0..2 {
        let host = Host::new(slow()).await;
        hosts[0].probe(&host).await.unwrap();
        hosts.push(host);
    }
    three_voters(&hosts).await;
    change(&hosts[0], "acknowledged").await;
    agree(&hosts).await;
    assert_eq!(hosts[0].id(), old);

    // It has led all the time: the others have seen nothing that it answered for.
    let dead = hosts.remove(0).kill().await;
    restore(&saved, &dead);
    let restored = Host::revive(dead).await;
    wait("it to be a new peer", || async {
        (restored.id() != old && restored.registry.view().peers.is_empty()).then_some(())
    })
    .await;
    change(&hosts[0], "without it").await;
    let probed = hosts[0].probe(&restored).await.unwrap();
    assert!(matches!(probed, Invited::Returned(_)), "{probed}");
    hosts.push(restored);
    three_voters(&hosts).await;
    agree(&hosts).await;
    assert_eq!(homes(&hosts[0], "v01"), [hosts[2].id()]);
    end(hosts).await;
}

/// What cannot be written now may be written later.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_cannot_be_a_new_one_tries_again() {
    let (mut hosts, ids) = three().await;
    let saved = changed_after_a_backup(&mut hosts).await;
    let dead = hosts.pop().unwrap().kill().await;
    restore(&saved, &dead);
    // A folder in the place of the file that is to be written.
    let in_its_way = dead.0.path().join("identity.new");
    std::fs::create_dir(&in_its_way).unwrap();
    let restored = Host::revive(dead).await;
    let state = wait("it to fail", || async {
        let state = restored.registry.status().await.unwrap().state;
        state.contains("which fails").then_some(state)
    })
    .await;
    assert!(state.contains("put back to an older state"), "{state}");
    assert_eq!(restored.id(), ids[2]);
    std::fs::remove_dir(&in_its_way).unwrap();
    takes_its_place_again(&mut hosts, restored, ids[2]).await;
    end(hosts).await;
}

/// While it was away, all whom it knew have left, and others have come.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_finds_its_pool_when_all_that_it_knew_have_left() {
    let mut hosts = pool(3, slow()).await;
    three_voters(&hosts).await;
    agree(&hosts).await;
    let away = hosts.pop().unwrap();
    let id = away.id();
    let away = away.kill().await;
    // So many that those who are there are a quorum after each change, though one is away.
    for _ in 0..3 {
        let host = Host::new(slow()).await;
        wait("it to join", || async { hosts[0].probe(&host).await.ok() }).await;
        hosts.push(host);
    }
    wait("five voters", || async {
        (hosts[0].voters().await == 5).then_some(())
    })
    .await;
    for _ in 0..2 {
        let leaves = hosts.remove(0);
        wait("it to be detached", || async {
            let removed = hosts[1].registry.remove(PeerId(leaves.id()), true).await;
            let there = hosts[1].registry.view();
            (removed.is_ok() || !there.peers.contains_key(&leaves.id())).then_some(())
        })
        .await;
        leaves.kill().await;
    }
    let back = Host::revive(away).await;
    hosts.push(back);
    agree(&hosts).await;
    assert_eq!(hosts[3].id(), id, "it is who it was");
    assert_eq!(hosts[0].registry.view().peers.len(), 4);
    three_voters(&hosts).await;
    let outcome = wait("a change made on it", || async {
        let create = create("v01", &[id]);
        hosts[3].registry.propose(create).await.ok()
    });
    assert_eq!(outcome.await.refusal, "");
    end(hosts).await;
}
