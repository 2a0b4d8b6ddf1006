//! Who comes, who goes, and what peers and clients are answered.

use std::net::Ipv4Addr;
use std::sync::Arc;

use brickd::registry::{Invited, RegistryError, always};
use mortar_common::PeerId;
use mortar_proto::control::raft_client::RaftClient;
use mortar_proto::control::{
    Empty, JoinRequest, LeaveRequest, RaftMessage, VolumeName, WatchViewRequest,
};
use mortar_proto::registry::{
    Command, Peer, PutPeer, SetVolumeStatus, VolumeStatus, command::What,
};
use tokio::net::TcpListener;

use super::{Host, agree, create, end, leader, option, pool, slow, wait};

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_make_a_pool_and_both_vote() {
    let hosts = pool(2, slow()).await;
    assert_eq!(hosts[0].voters().await, 2);
    agree(&hosts).await;
    let view = hosts[1].registry.view();
    assert_eq!(view.peers.len(), 2);
    assert_eq!(view.generation, 1);
    assert_eq!(view.peers[&hosts[1].id()], hosts[1].registry.local());

    // From either, to either, in gluster's words.
    assert_eq!(
        hosts[1].probe(&hosts[0]).await.unwrap().to_string(),
        format!(
            "Host 127.0.0.1 port {} already in peer list",
            hosts[0].port()
        )
    );
    assert_eq!(
        hosts[0].probe(&hosts[0]).await.unwrap().to_string(),
        "Probe on localhost not needed"
    );
    // Another name of a member is remembered.
    hosts[0]
        .registry
        .invite("localhost", hosts[1].port())
        .await
        .unwrap();
    assert_eq!(
        hosts[0].registry.view().peers[&hosts[1].id()].other_names,
        ["localhost"]
    );

    // Changes and reads work from both, whoever leads.
    let ids = [hosts[0].id(), hosts[1].id()];
    for (at, host) in hosts.iter().enumerate() {
        let outcome = host
            .registry
            .propose(create(&format!("v{at}"), &ids))
            .await
            .unwrap();
        assert_eq!(outcome.refusal, "");
        assert!(host.registry.view().volumes.contains_key(&format!("v{at}")));
        let again = host
            .registry
            .propose(create(&format!("v{at}"), &ids))
            .await
            .unwrap();
        assert_eq!(again.refusal, format!("Volume v{at} already exists"));
    }
    for host in &hosts {
        assert_eq!(host.registry.barrier().await.unwrap().volumes.len(), 2);
    }
    let registry = hosts[0].registry.clone();
    let blocking = std::thread::spawn(move || {
        let start = SetVolumeStatus {
            volume: "v0".to_owned(),
            status: VolumeStatus::VolumeStarted as i32,
        };
        let start = Command {
            what: Some(What::SetVolumeStatus(start)),
        };
        let outcome = registry.propose_while(start, always()).unwrap();
        (outcome.refusal, registry.barrier_blocking().unwrap())
    });
    let (refusal, view) = blocking.join().unwrap();
    assert_eq!(
        (refusal.as_str(), view.volumes["v0"].status()),
        ("", VolumeStatus::VolumeStarted)
    );
    end(hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_that_cannot_work_says_why_and_changes_nothing() {
    let hosts = pool(2, slow()).await;
    let other = pool(2, slow()).await;
    let index = hosts[0].registry.view().index;
    let error = hosts[0].probe(&other[1]).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "127.0.0.1 is either already part of another cluster or having volumes configured"
    );
    let error = hosts[0]
        .registry
        .invite("no-such-host.invalid", 24017)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("Name or service not known"),
        "{error}"
    );
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = hosts[0]
        .registry
        .invite("127.0.0.1", closed)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("Transport endpoint is not connected"),
        "{error}"
    );
    // A port that talks something else.
    let stranger = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = stranger.local_addr().unwrap().port();
    let talks = tokio::spawn(async move {
        while let Ok((mut socket, _)) = stranger.accept().await {
            use tokio::io::AsyncWriteExt;
            drop(socket.write_all(b"220 mail.example ESMTP\r\n").await);
        }
    });
    let error = hosts[0]
        .registry
        .invite("127.0.0.1", port)
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Refused(_)), "{error:?}");
    talks.abort();
    assert_eq!(hosts[0].registry.view().index, index);
    assert_eq!(other[1].registry.view().peers.len(), 2);

    end(hosts).await;
    end(other).await;
}

/// Another wire version is refused by the side that is asked, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_another_version_joins_nothing() {
    let fresh = Host::new(slow()).await;
    let request = JoinRequest {
        pool: 1,
        generation_id: 1,
        you: Some(fresh.registry.local()),
        wire_version: 99,
        ..JoinRequest::default()
    };
    let reply = fresh.registry.join(request).await;
    assert!(
        reply.refusal.contains("wire version 99"),
        "{}",
        reply.refusal
    );
    assert!(fresh.registry.view().peers.is_empty());
    fresh.kill().await;
}

/// A peer with a brick, the asking one itself, one nobody knows.
async fn refuses_to_detach(hosts: &[Host]) {
    let error = hosts[2]
        .registry
        .remove(PeerId(hosts[0].id()), false)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("hosts one or more bricks"), "{error}");
    let error = hosts[2]
        .registry
        .remove(PeerId(hosts[2].id()), false)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("is localhost"), "{error}");
    let error = hosts[2]
        .registry
        .remove(PeerId(4711), false)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("is not part of cluster"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn voters_stay_odd_and_a_detached_peer_is_free_again() {
    let mut hosts = pool(4, slow()).await;
    assert_eq!(hosts[0].voters().await, 3, "the fourth learns");
    let fourth = hosts.pop().unwrap();
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

    refuses_to_detach(&hosts).await;

    // A voter goes, the learner takes its place.
    let gone = hosts.pop().unwrap();
    let (old_id, old_port) = (gone.id(), gone.port());
    hosts[1]
        .registry
        .remove(PeerId(old_id), false)
        .await
        .unwrap();
    hosts.push(fourth);
    wait("three voters", || async {
        let status = hosts[0].registry.status().await.unwrap();
        let voters = status.members.iter().filter(|member| member.voter).count();
        (voters == 3 && status.members.len() == 3).then_some(())
    })
    .await;
    assert!(gone.registry.view().peers.is_empty(), "it forgot the pool");
    assert_ne!(gone.id(), old_id, "and is a new peer");
    assert_eq!(gone.port(), old_port);

    // It may come back, and stays although the old dismissal comes late.
    assert!(matches!(
        hosts[0].probe(&gone).await.unwrap(),
        Invited::Joined(_)
    ));
    let mut client = gone.client().await;
    let late = LeaveRequest {
        pool: hosts[0].registry.view().pool,
        generation_id: 1,
        index: 1,
    };
    assert!(client.leave(late).await.unwrap().into_inner().failed);
    hosts.push(gone);
    agree(&hosts).await;
    assert_eq!(hosts[0].registry.view().peers.len(), 4);
    end(hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_can_be_detached_and_a_dead_peer_too() {
    let mut hosts = pool(3, slow()).await;
    wait("three voters", || async {
        (hosts[0].voters().await == 3).then_some(())
    })
    .await;
    let status = hosts[0].registry.status().await.unwrap();
    let lead = hosts.remove(leader(&hosts, &status));
    hosts[0]
        .registry
        .remove(PeerId(lead.id()), false)
        .await
        .unwrap();
    assert!(lead.registry.view().peers.is_empty());
    wait("two members", || async {
        let status = hosts[1].registry.status().await.unwrap();
        (status.members.len() == 2).then_some(())
    })
    .await;
    lead.kill().await;

    // A third that is dead is detached only by force, and hears of it when it returns.
    let third = Host::new(slow()).await;
    hosts[0].probe(&third).await.unwrap();
    wait("three voters", || async {
        (hosts[0].voters().await == 3).then_some(())
    })
    .await;
    let id = third.id();
    let dead = third.kill().await;
    let error = hosts[0]
        .registry
        .remove(PeerId(id), false)
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "One of the peers is probably down. Check with 'peer status'"
    );
    hosts[0].registry.remove(PeerId(id), true).await.unwrap();
    assert_eq!(hosts[0].registry.view().peers.len(), 2);
    let third = Host::revive(dead).await;
    wait("it to hear that it was detached", || async {
        (third.id() != id && third.registry.view().peers.is_empty()).then_some(())
    })
    .await;
    end(hosts).await;
    third.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_peers_that_probe_each_other_end_in_one_pool() {
    let (one, two) = (Host::new(slow()).await, Host::new(slow()).await);
    let (first, second) = tokio::join!(one.probe(&two), two.probe(&one));
    if first.is_err() && second.is_err() {
        one.probe(&two).await.unwrap();
    }
    let hosts = vec![one, two];
    wait("one pool of two", || async {
        let views = (hosts[0].registry.view(), hosts[1].registry.view());
        (views.0 == views.1 && views.0.peers.len() == 2).then_some(())
    })
    .await;
    end(hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_another_pool_is_refused() {
    let host = Host::new(slow()).await;
    let mut client = RaftClient::connect(format!("http://{}", host.address))
        .await
        .unwrap();
    let message = RaftMessage {
        from: 5,
        to: host.id(),
        pool: 1,
        generation_id: 1,
        ..RaftMessage::default()
    };
    let status = client.vote(message.clone()).await.unwrap_err();
    assert_eq!(status.message(), "this peer is in no pool");
    host.registry
        .propose(create("v01", &[host.id()]))
        .await
        .unwrap();
    let status = client.append(message.clone()).await.unwrap_err();
    assert_eq!(status.message(), "this peer is in another pool");
    let pool = host.registry.view().pool;
    let status = client
        .vote(RaftMessage { pool, ..message })
        .await
        .unwrap_err();
    assert_eq!(
        status.message(),
        "this peer is in another pool",
        "of another generation"
    );
    host.kill().await;
}

/// A peer that takes no part is not counted, whatever answers on its port.
#[tokio::test(flavor = "multi_thread")]
async fn an_unjoined_peer_founds_its_own_pool_when_it_is_used() {
    let host = Host::new(slow()).await;
    assert_eq!(host.registry.barrier().await.unwrap().pool, 0);
    let local: Peer = host.registry.local();
    assert_eq!(
        (local.host.as_str(), local.port),
        ("127.0.0.1", u32::from(host.port()))
    );
    host.registry
        .propose(create("v01", &[local.id]))
        .await
        .unwrap();
    let view = host.registry.view();
    assert_ne!(view.pool, 0);
    // Its own pool has a volume now: another pool cannot take it.
    let other = Host::new(slow()).await;
    let error = other.probe(&host).await.unwrap_err().to_string();
    assert!(error.contains("already part of another cluster"), "{error}");
    // The other, founded for the probe and still alone, can be taken.
    assert!(matches!(
        host.probe(&other).await.unwrap(),
        Invited::Joined(_)
    ));
    let hosts = vec![host, other];
    agree(&hosts).await;
    end(hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_watched_and_resumed() {
    let host = Host::new(slow()).await;
    let mut client = host.client().await;
    // An unjoined brickd serves its empty view, and founds its pool with the first change.
    let mut views = client
        .watch_view(WatchViewRequest::default())
        .await
        .unwrap()
        .into_inner();
    let first = views.message().await.unwrap().unwrap();
    assert_eq!((first.index, first.peers.len()), (0, 0));
    let outcome = host
        .registry
        .propose(create("v01", &[host.id()]))
        .await
        .unwrap();
    assert_eq!(outcome.refusal, "");
    let mut last = first;
    while !last.volumes.contains_key("v01") {
        let next = views.message().await.unwrap().unwrap();
        assert!(next.index > last.index);
        last = next;
    }
    let resume = WatchViewRequest {
        after_index: last.index,
    };
    let mut resumed = client.watch_view(resume).await.unwrap().into_inner();
    host.registry.propose(option("v01", "x")).await.unwrap();
    let next = resumed.message().await.unwrap().unwrap();
    assert_eq!(next.index, last.index + 1, "nothing it had already");

    let identity = client.identify(Empty {}).await.unwrap().into_inner();
    assert_eq!(
        (identity.peer, identity.volumes, identity.peers),
        (host.id(), 1, 1)
    );
    let volume = VolumeName {
        volume: "v01".to_owned(),
    };
    let bricks = client
        .local_bricks(volume)
        .await
        .unwrap()
        .into_inner()
        .bricks;
    assert_eq!(bricks[0].path, "/v01");
    let barrier = client.barrier(Empty {}).await.unwrap().into_inner();
    assert_eq!((barrier.index, barrier.refusal.as_str()), (next.index, ""));
    let status = client.status(Empty {}).await.unwrap().into_inner();
    assert_eq!(
        (status.leader, status.state.as_str()),
        (host.id(), "leader")
    );

    // Streams end with the registry, so that the server can end.
    host.registry.shutdown().await;
    assert!(resumed.message().await.unwrap().is_none());
    let error = host.registry.propose(option("v01", "y")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Stopped(_)), "{error:?}");
    host.kill().await;
}

/// Two members probe the same new peer at once: it joins once.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_probed_from_two_sides_joins_once() {
    let mut hosts = pool(2, slow()).await;
    for _ in 0..3 {
        let new = Host::new(slow()).await;
        let (first, second) = tokio::join!(hosts[0].probe(&new), hosts[1].probe(&new));
        assert!(first.is_ok() || second.is_ok(), "{first:?} {second:?}");
        hosts.push(new);
        agree(&hosts).await;
        assert_eq!(hosts[0].registry.view().peers.len(), hosts.len());
        let local = hosts[hosts.len() - 1].registry.local();
        assert_eq!(hosts[0].registry.view().peers.get(&local.id), Some(&local));
    }
    assert_eq!(hosts.len(), 5);
    wait("five voters", || async {
        (hosts[0].voters().await == 5).then_some(())
    })
    .await;
    end(hosts).await;
}

/// In DNS the case of letters does not count: nor does it for what a peer is called.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_lost_its_directory_is_known_in_any_case() {
    let first = Host::new(slow()).await;
    let second = Host::new(slow()).await;
    let probe = |name| first.registry.invite(name, second.port());
    let joined = probe("localhost").await.unwrap();
    assert!(matches!(joined, Invited::Joined(_)), "{joined}");
    let again = probe("LocalHost").await.unwrap();
    assert!(matches!(again, Invited::Already { .. }), "{again}");
    let old = second.registry.local();
    let known = first.registry.view().peers[&old.id].clone();
    assert_eq!(
        (known.host.as_str(), known.other_names.len()),
        ("localhost", 0)
    );

    // Both vote: the one that is left is a quorum only when it is recovered.
    wait("both to vote", || async {
        (first.voters().await == 2).then_some(())
    })
    .await;
    let (dir, address, timing) = second.kill().await;
    drop(dir);
    let fresh = Arc::new(tempfile::tempdir().unwrap());
    let second = Host::revive((fresh, address, timing)).await;
    first.registry.recover(true).await.unwrap();
    let probed = first.registry.invite("LOCALHOST", second.port()).await;
    let probed = probed.unwrap();
    assert!(matches!(probed, Invited::Returned(_)), "{probed}");
    let hosts = vec![first, second];
    agree(&hosts).await;
    let view = hosts[0].registry.view();
    assert_eq!(view.peers.len(), 2, "one host is one peer");
    assert!(!view.peers.contains_key(&old.id));
    assert_eq!(view.peers[&hosts[1].id()].host, "localhost");
    end(hosts).await;
}

/// A name of a living peer that leads to another host now does not give that host its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_to_another_host_throws_nobody_out() {
    const ALIAS: &str = "127.0.0.2";
    let mut hosts = pool(3, slow()).await;
    let mut known = hosts[1].registry.local();
    known.other_names = vec![ALIAS.to_owned()];
    let put = PutPeer {
        peer: Some(known.clone()),
        replaces: 0,
    };
    let put = Command {
        what: Some(What::PutPeer(put)),
    };
    let outcome = hosts[0].registry.propose(put).await.unwrap();
    assert_eq!(outcome.refusal, "");
    let stranger = Host::at(
        (Ipv4Addr::from([127, 0, 0, 2]), hosts[1].port()).into(),
        slow(),
    );
    let stranger = stranger.await;
    let before = (stranger.id(), hosts[0].registry.view());

    let probe = || hosts[0].registry.invite(ALIAS, stranger.port());
    let error = probe().await.unwrap_err().to_string();
    assert!(
        error.contains("a name of the peer 127.0.0.1, which still answers on 127.0.0.1"),
        "{error}"
    );
    assert_eq!(hosts[0].registry.barrier().await.unwrap(), before.1);
    assert_eq!(hosts[1].id(), known.id);
    assert!(stranger.registry.view().peers.is_empty());

    // Silence is no proof that it is gone.
    let silent = hosts.remove(1).kill().await;
    let error = wait("a quorum of the two that are left", || async {
        let probed = hosts[0].registry.invite(ALIAS, stranger.port()).await;
        let error = probed.unwrap_err().to_string();
        (!error.contains("quorum is not met")).then_some(error)
    })
    .await;
    assert!(
        error.contains("that peer may still live: probe 127.0.0.1"),
        "{error}"
    );
    assert_eq!(stranger.id(), before.0, "it was asked for nothing");
    hosts.push(Host::revive(silent).await);
    agree(&hosts).await;
    assert_eq!(hosts[2].id(), known.id);
    end(hosts).await;
    stranger.kill().await;
}
