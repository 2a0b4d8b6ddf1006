//! Several registries in one process, over gRPC on loopback ports.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use brickd::host::LocalBricks;
use brickd::registry::{Invited, Registry, RegistryConfig, RegistryError, Timing, services};
use mortar_common::PeerId;
use mortar_proto::control::pool_client::PoolClient;
use mortar_proto::control::{
    BrickState, Empty, JoinRequest, LeaveRequest, PrepareBrickReply, PrepareBrickRequest,
    VolumeHealReply, VolumeHealRequest, VolumeName, WatchViewRequest,
};
use mortar_proto::registry::{
    Brick, Command, CreateVolume, Peer, ReplicaSet, SetOptions, SetVolumeStatus, Volume,
    VolumeStatus, command::What,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

const PATIENCE: Duration = Duration::from_secs(20);

struct NoBricks;

impl LocalBricks for NoBricks {
    fn states(&self, volume: &str) -> Vec<BrickState> {
        vec![BrickState {
            path: format!("/{volume}"),
            ..BrickState::default()
        }]
    }
    fn prepare(&self, _request: &PrepareBrickRequest) -> PrepareBrickReply {
        PrepareBrickReply::default()
    }
    fn heal(&self, _request: &VolumeHealRequest) -> VolumeHealReply {
        VolumeHealReply::default()
    }
}

/// Slower than the default, so that a busy machine elects nobody by accident.
fn slow() -> Timing {
    Timing {
        heartbeat_ms: 100,
        election_min_ms: 400,
        election_max_ms: 800,
        ..Timing::default()
    }
}

/// One brickd as far as the registry is concerned.
struct Host {
    dir: Arc<TempDir>,
    address: SocketAddr,
    registry: Registry,
    /// Its own, so that its connections die with it.
    server: Runtime,
    timing: Timing,
}

impl Host {
    async fn new(timing: Timing) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(Arc::new(tempfile::tempdir().unwrap()), listener, timing).await
    }

    async fn on(dir: Arc<TempDir>, listener: TcpListener, timing: Timing) -> Self {
        let address = listener.local_addr().unwrap();
        let config = RegistryConfig {
            data_dir: dir.path().to_owned(),
            advertise_host: "127.0.0.1".to_owned(),
            port: address.port(),
            timing: timing.clone(),
        };
        let registry = Registry::start(config).await.unwrap();
        let (raft, pool) = services(&registry, Arc::new(NoBricks));
        let listener = listener.into_std().unwrap();
        let server = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        server.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let router = Server::builder().add_service(raft).add_service(pool);
            router
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Host {
            dir,
            address,
            registry,
            server,
            timing,
        }
    }

    /// Ends it as far as others can see. Its folder stays.
    async fn kill(self) -> (Arc<TempDir>, SocketAddr, Timing) {
        self.server.shutdown_background();
        self.registry.shutdown().await;
        (self.dir, self.address, self.timing)
    }

    async fn revive((dir, address, timing): (Arc<TempDir>, SocketAddr, Timing)) -> Self {
        // Connections of the former life may linger for a moment.
        let listener = wait("the port", || async {
            let socket = tokio::net::TcpSocket::new_v4().ok()?;
            socket.set_reuseaddr(true).ok()?;
            socket.bind(address).ok()?;
            socket.listen(64).ok()
        });
        Self::on(dir, listener.await, timing).await
    }

    fn port(&self) -> u16 {
        self.address.port()
    }

    fn id(&self) -> u64 {
        self.registry.local().id
    }

    async fn probe(&self, other: &Host) -> Result<Invited, RegistryError> {
        self.registry.invite("127.0.0.1", other.port()).await
    }

    async fn client(&self) -> PoolClient<tonic::transport::Channel> {
        PoolClient::connect(format!("http://{}", self.address))
            .await
            .unwrap()
    }

    async fn voters(&self) -> usize {
        let status = self.registry.status().await.unwrap();
        status.members.iter().filter(|member| member.voter).count()
    }
}

async fn wait<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A pool of n hosts, all probed from the first.
async fn pool(hosts: usize, timing: Timing) -> Vec<Host> {
    let mut all = vec![Host::new(timing.clone()).await];
    for _ in 1..hosts {
        let host = Host::new(timing.clone()).await;
        let joined = all[0].probe(&host).await.unwrap();
        assert!(matches!(joined, Invited::Joined(_)), "{joined}");
        all.push(host);
    }
    all
}

async fn end(hosts: Vec<Host>) {
    for host in hosts {
        host.kill().await;
    }
}

fn create(name: &str, peers: &[u64]) -> Command {
    let bricks: Vec<Brick> = peers
        .iter()
        .map(|peer| Brick {
            id: mortar_common::ids::random_id(),
            peer: *peer,
            path: format!("/bricks/{name}"),
            status: 0,
        })
        .collect();
    let set = ReplicaSet {
        bricks: bricks.iter().map(|brick| brick.id).collect(),
        ..ReplicaSet::default()
    };
    let volume = Volume {
        name: name.to_owned(),
        id: mortar_common::VolumeId::random().0.to_vec(),
        bricks,
        sets: vec![set],
        ..Volume::default()
    };
    Command {
        what: Some(What::CreateVolume(CreateVolume {
            volume: Some(volume),
        })),
    }
}

fn option(volume: &str, value: &str) -> Command {
    let options = [("test.key".to_owned(), value.to_owned())].into();
    let volume = volume.to_owned();
    Command {
        what: Some(What::SetOptions(SetOptions { volume, options })),
    }
}

async fn agree(hosts: &[Host]) {
    wait("all to have one view", || async {
        let first = hosts[0].registry.view();
        hosts
            .iter()
            .all(|host| host.registry.view() == first)
            .then_some(())
    })
    .await;
}

fn leader(hosts: &[Host], status: &mortar_proto::control::RegistryStatusReply) -> usize {
    hosts
        .iter()
        .position(|host| host.id() == status.leader)
        .unwrap()
}

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
        let outcome = registry.propose_blocking(start).unwrap();
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

    // Another wire version is refused by the side that is asked, too.
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
    end(hosts).await;
    end(other).await;
    fresh.kill().await;
}

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
    // The first may have been taken by the leader before it knew: then it says so.
    drop(alone.propose(option("v01", "lost")).await);
    let error = alone.propose(option("v01", "lost")).await.unwrap_err();
    assert_eq!(error.to_string(), "no quorum: 1 of 2 voters reachable");
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

    let error = hosts[2]
        .registry
        .remove(PeerId(ids[0]), false)
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
async fn a_wiped_data_directory_is_a_new_peer() {
    let mut hosts = pool(3, slow()).await;
    wait("three voters", || async {
        (hosts[0].voters().await == 3).then_some(())
    })
    .await;
    let wiped = hosts.pop().unwrap();
    let old_id = wiped.id();
    let (dir, address, timing) = wiped.kill().await;
    drop(dir);
    let fresh = Arc::new(tempfile::tempdir().unwrap());
    let new = Host::revive((fresh, address, timing)).await;
    assert_ne!(new.id(), old_id);
    assert!(new.registry.view().peers.is_empty());

    // The old one has to go before a new one can have its address.
    let error = hosts[0].probe(&new).await.unwrap_err().to_string();
    assert!(error.contains("detach the old one first"), "{error}");
    wait("it to be free again", || async {
        let identity = new
            .client()
            .await
            .identify(Empty {})
            .await
            .unwrap()
            .into_inner();
        (identity.pool == 0).then_some(())
    })
    .await;
    hosts[0]
        .registry
        .remove(PeerId(old_id), true)
        .await
        .unwrap();
    assert!(matches!(
        hosts[1].probe(&new).await.unwrap(),
        Invited::Joined(_)
    ));
    hosts.push(new);
    wait("three voters", || async {
        (hosts[0].voters().await == 3).then_some(())
    })
    .await;
    agree(&hosts).await;
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
    let error = other
        .registry
        .propose(option("v01", "old"))
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        RegistryError::NoQuorum { .. } | RegistryError::NoLeader { .. }
    ));
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
    use mortar_proto::control::RaftMessage;
    use mortar_proto::control::raft_client::RaftClient;
    let host = Host::new(slow()).await;
    let mut client = RaftClient::connect(format!("http://{}", host.address))
        .await
        .unwrap();
    let message = RaftMessage {
        from: 5,
        to: host.id(),
        pool: 1,
        generation_id: 1,
        body: vec![],
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
    agree(&[host, other]).await;
}
