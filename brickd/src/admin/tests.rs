//! The admin service over a registry in memory, this host's bricks and two other peers: one that
//! answers over a real port and one that is frozen (its port takes connections and says nothing).

mod fixture;
mod replace;
mod status;

use std::time::{Duration, Instant};

use mortar_proto::control::admin_client::AdminClient;
use mortar_proto::control::admin_server::Admin;
use mortar_proto::control::{
    CopyRole, Empty, HealAction, PeerDetachRequest, VolumeCreateRequest, VolumeHealRequest,
    VolumeResetRequest, VolumeSetRequest, VolumeStartRequest,
};
use mortar_proto::registry::command::What;
use mortar_proto::registry::{BrickStatus, VolumeStatus};

use super::{ProposeError, Refusal, ServeError, serve_socket};
use fixture::{Pool, until};

/// A frozen peer may delay a command by about this much.
const FROZEN_DELAY_MAX: Duration = Duration::from_millis(3500);

fn create(name: &str, replica: u32, bricks: &[&str]) -> VolumeCreateRequest {
    VolumeCreateRequest {
        volume: name.to_owned(),
        replica,
        transport: "tcp".to_owned(),
        bricks: bricks.iter().map(|brick| (*brick).to_owned()).collect(),
        force: false,
    }
}

fn start(name: &str, force: bool, trusted_brick: &str) -> VolumeStartRequest {
    VolumeStartRequest {
        volume: name.to_owned(),
        force,
        trusted_brick: trusted_brick.to_owned(),
    }
}

fn heal(name: &str, action: HealAction) -> VolumeHealRequest {
    VolumeHealRequest {
        volume: name.to_owned(),
        action: action.into(),
        ..Default::default()
    }
}

fn set(name: &str, key: &str, value: &str) -> VolumeSetRequest {
    let options = [(key.to_owned(), value.to_owned())].into();
    VolumeSetRequest {
        volume: name.to_owned(),
        options,
    }
}

async fn refused(pool: &Pool, request: VolumeCreateRequest) -> String {
    let Refusal(why) = pool.admin.create_volume(request).await.unwrap_err();
    why
}

#[tokio::test]
async fn a_volume_lives_from_create_to_delete() {
    let pool = Pool::new().await;
    let request = create("v01", 2, &["gfs01:/b", "gfs02:/b"]);
    let words = pool.admin.create_volume(request).await.unwrap();
    assert_eq!(words, "please start the volume to access data");
    let volume = pool.volume("v01");
    assert_eq!(volume.id.len(), 16);
    assert_eq!(volume.status(), VolumeStatus::VolumeCreated);
    assert_eq!((volume.layout[0].first, volume.layout[0].last), (0, 16383));
    assert_eq!(
        (volume.layout.len(), volume.layout[0].set, volume.sets.len()),
        (1, 0, 1)
    );
    let ids: Vec<u64> = volume.bricks.iter().map(|brick| brick.id).collect();
    assert_eq!(volume.sets[0].bricks, ids);
    let epoch = volume.sets[0].epoch.as_ref().unwrap();
    assert_eq!((epoch.number, epoch.primary), (0, 0));
    assert_eq!(epoch.id, 0, "as a brick that was never started has it");
    // The smallest over both bricks; 0 means that a brick does not know.
    let limits = volume.limits.unwrap();
    assert_eq!(
        (limits.links, limits.xattr_bytes, limits.file_bytes),
        (65_000, 4_000, 1 << 40)
    );
    assert_eq!(
        (pool.here.made(), pool.there.made()),
        (vec!["/b".into()], vec!["/b".into()])
    );

    let twice = refused(&pool, create("v01", 2, &["gfs01:/c", "gfs02:/c"])).await;
    assert_eq!(twice, "Volume v01 already exists");

    pool.admin
        .start_volume(start("v01", false, ""))
        .await
        .unwrap();
    let again = pool
        .admin
        .start_volume(start("v01", false, ""))
        .await
        .unwrap_err();
    assert_eq!(again.0, "Volume v01 already started");
    let running = pool.admin.delete_volume("v01").await.unwrap_err();
    assert!(
        running
            .0
            .contains("Volume needs to be stopped before deletion.")
    );

    pool.admin.stop_volume("v01").await.unwrap();
    let stopped = pool.admin.stop_volume("v01").await.unwrap_err();
    assert_eq!(stopped.0, "Volume v01 is not in the started state");
    assert_eq!(pool.admin.delete_volume("v01").await.unwrap(), "");
    assert!(pool.here.made().is_empty() && pool.there.made().is_empty());
    let absent = pool.admin.stop_volume("v01").await.unwrap_err();
    assert_eq!(absent.0, "Volume v01 does not exist");
}

#[tokio::test]
async fn create_refuses_unknown_hosts_and_bad_places() {
    let pool = Pool::new().await;
    let why = refused(&pool, create("v", 2, &["gfs01:/b", "nohost.invalid:/b"])).await;
    assert!(
        why.starts_with("Host nohost.invalid is not in 'Peer in Cluster' state"),
        "{why}"
    );
    assert!(why.contains("peer probe"), "{why}");
    let why = refused(&pool, create("v", 2, &["gfs01:/b", "gfs01:/c"])).await;
    assert!(
        why.contains("Multiple bricks of a replicate volume"),
        "{why}"
    );
    let why = refused(&pool, create("v", 2, &["gfs01:/b", "gfs01:/b/c"])).await;
    assert!(why.contains("lie in one another"), "{why}");
    let why = refused(&pool, create("", 1, &["gfs01:/b"])).await;
    assert!(why.contains("cannot be empty"), "{why}");
    let why = refused(&pool, create(&"v".repeat(300), 1, &["gfs01:/b"])).await;
    assert!(why.contains("300 characters"), "{why}");

    pool.admin
        .create_volume(create("v", 1, &["gfs01:/data/b"]))
        .await
        .unwrap();
    let why = refused(&pool, create("w", 1, &["gfs01:/data/b"])).await;
    assert!(why.contains("already part of a volume"), "{why}");
    for place in ["gfs01:/data", "gfs01:/data/b/c"] {
        let why = refused(&pool, create("w", 1, &[place])).await;
        assert!(why.contains("containing or be contained"), "{place}: {why}");
    }
    pool.admin
        .create_volume(create("w", 1, &["gfs01:/data/bc"]))
        .await
        .unwrap();
    let mut forced = create("x", 2, &["gfs01:/x1", "gfs01:/x2"]);
    forced.force = true;
    pool.admin.create_volume(forced).await.unwrap();
}

#[tokio::test]
async fn a_host_in_no_pool_makes_a_volume_of_its_own_bricks() {
    let pool = Pool::new().await;
    pool.registry.leave_pool();
    let why = refused(&pool, create("v", 1, &["gfs02:/b"])).await;
    assert!(why.contains("peer probe gfs02"), "{why}");
    pool.admin
        .create_volume(create("v", 1, &["gfs01:/b"]))
        .await
        .unwrap();
    assert_eq!(pool.volume("v").bricks[0].peer, 1);
}

#[tokio::test]
async fn a_create_that_fails_leaves_nothing() {
    let pool = Pool::new().await;
    pool.there.refuse_check("read-only file system");
    let why = refused(&pool, create("v", 2, &["gfs01:/b", "gfs02:/b"])).await;
    assert_eq!(why, "gfs02:/b: read-only file system");
    pool.there.refuse_check("");
    pool.there.refuse_make("disk full");
    let why = refused(&pool, create("v", 2, &["gfs01:/b", "gfs02:/b"])).await;
    assert_eq!(why, "gfs02:/b: disk full");
    assert!(
        pool.here.made().is_empty(),
        "the brick of the other host was given back"
    );
    pool.there.refuse_make("");

    let no_quorum = "no quorum: 1 of 2 voters reachable".to_owned();
    pool.registry
        .fail_next(ProposeError::NotMade(no_quorum.clone()));
    let why = refused(&pool, create("v", 2, &["gfs01:/b", "gfs02:/b"])).await;
    assert_eq!(why, no_quorum);
    assert!(pool.here.made().is_empty() && pool.there.made().is_empty());

    // The answer was lost: the volume may exist, and then its bricks must.
    pool.registry
        .fail_next(ProposeError::Unknown("no answer".to_owned()));
    assert_eq!(
        refused(&pool, create("v", 2, &["gfs01:/b", "gfs02:/b"])).await,
        "no answer"
    );
    assert_eq!((pool.here.made().len(), pool.there.made().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_command_is_carried_to_its_end() {
    let pool = Pool::new().await;
    pool.here.make_slow(Duration::from_millis(300));
    let request = tonic::Request::new(create("v", 1, &["gfs01:/b"]));
    let call = Admin::volume_create(&pool.admin, request);
    assert!(
        tokio::time::timeout(Duration::from_millis(50), call)
            .await
            .is_err()
    );
    until("the volume is made all the same", || pool.has_volume("v")).await;
}

#[tokio::test]
async fn a_frozen_peer_delays_little_and_shows_as_offline() {
    let pool = Pool::new().await;
    pool.add_volume(
        "v",
        &[("gfs01", "/b"), ("gfs03", "/b")],
        VolumeStatus::VolumeStarted,
    );
    // Together, because each takes as long as the frozen peer is waited for.
    let began = Instant::now();
    let (status, peers, why, info, launch) = tokio::join!(
        pool.admin.volume_status("v"),
        pool.admin.peer_status(),
        refused(&pool, create("w", 2, &["gfs01:/c", "gfs03:/c"])),
        pool.admin.heal_volume(heal("v", HealAction::HealInfo)),
        pool.admin.heal_volume(heal("v", HealAction::HealLaunch)),
    );
    assert!(began.elapsed() < FROZEN_DELAY_MAX, "{:?}", began.elapsed());

    let [here, frozen] = &status.bricks[..] else {
        panic!("{status:?}")
    };
    assert!(here.online && here.role() == CopyRole::CopyPrimary);
    assert_eq!((frozen.online, frozen.host.as_str()), (false, "gfs03"));
    assert_eq!(frozen.detail, "gfs03 does not answer");
    let shown: Vec<(&str, bool, bool)> = peers
        .peers
        .iter()
        .map(|state| {
            (
                state.peer.as_ref().unwrap().host.as_str(),
                state.connected,
                state.local,
            )
        })
        .collect();
    let expected = [
        ("gfs01", true, true),
        ("gfs02", true, false),
        ("gfs03", false, false),
    ];
    assert_eq!(shown, expected);
    assert_eq!(why, "gfs03:/c: gfs03 does not answer");
    assert!(pool.here.made().is_empty());
    assert_eq!(info.bricks[0].status, "Connected");
    assert_eq!(info.bricks[1].status, "Transport endpoint is not connected");
    let done = launch.done.unwrap();
    assert!(
        !done.failed && done.message.contains("gfs03 does not answer"),
        "{done:?}"
    );
}

#[tokio::test]
async fn options_are_checked_named_in_full_and_set_back() {
    let pool = Pool::new().await;
    pool.add_volume("v", &[("gfs01", "/b")], VolumeStatus::VolumeCreated);
    pool.admin
        .set_options(set("v", "ping-timeout", "10"))
        .await
        .unwrap();
    assert_eq!(pool.volume("v").options["network.ping-timeout"], "10");
    let why = pool
        .admin
        .set_options(set("v", "network.ping-timout", "10"))
        .await
        .unwrap_err()
        .0;
    assert!(why.contains("Did you mean network.ping-timeout?"), "{why}");
    let why = pool
        .admin
        .set_options(set("v", "ping-timeout", "0"))
        .await
        .unwrap_err()
        .0;
    assert!(why.contains("1 to 60 seconds"), "{why}");
    let why = pool
        .admin
        .set_options(set("w", "ping-timeout", "5"))
        .await
        .unwrap_err()
        .0;
    assert_eq!(why, "Volume w does not exist");
    assert!(
        pool.admin
            .set_options(set("all", "ping-timeout", "5"))
            .await
            .is_err()
    );

    let reset = |keys: &[&str]| VolumeResetRequest {
        volume: "v".to_owned(),
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
    };
    assert!(
        pool.admin
            .reset_options(reset(&["nonsense"]))
            .await
            .is_err()
    );
    let words = pool
        .admin
        .reset_options(reset(&["ping-timeout"]))
        .await
        .unwrap();
    assert_eq!(words, "reset volume successful");
    assert!(pool.volume("v").options.is_empty());
}

#[tokio::test]
async fn heal_is_for_started_replicate_volumes_and_can_be_switched() {
    let pool = Pool::new().await;
    pool.add_volume("one", &[("gfs01", "/1")], VolumeStatus::VolumeStarted);
    pool.add_volume(
        "off",
        &[("gfs01", "/2"), ("gfs02", "/2")],
        VolumeStatus::VolumeStopped,
    );
    pool.add_volume(
        "v",
        &[("gfs01", "/3"), ("gfs02", "/3")],
        VolumeStatus::VolumeStarted,
    );
    let ask = async |name, action| {
        let reply = pool.admin.heal_volume(heal(name, action)).await;
        (reply.done.unwrap(), reply.bricks)
    };
    let (done, _) = ask("one", HealAction::HealLaunch).await;
    assert!(
        done.failed
            && done
                .message
                .ends_with("Volume one is not of type replicate")
    );
    let (done, _) = ask("off", HealAction::HealInfo).await;
    assert_eq!(
        (done.failed, done.message.as_str()),
        (true, "Volume off is not started")
    );
    let (done, _) = ask("none", HealAction::HealInfo).await;
    assert_eq!(done.message, "Volume none does not exist");
    let (done, bricks) = ask("v", HealAction::HealInfo).await;
    assert!(!done.failed);
    let shown: Vec<String> = bricks
        .iter()
        .map(|b| format!("{}:{} {}", b.host, b.path, b.total))
        .collect();
    assert_eq!(shown, ["gfs01:/3 1", "gfs02:/3 1"]);
    assert!(!ask("v", HealAction::HealFull).await.0.failed);
    assert!(!ask("v", HealAction::HealDisable).await.0.failed);
    assert_eq!(pool.volume("v").options["cluster.self-heal-daemon"], "off");
    let (done, _) = ask("v", HealAction::HealLaunch).await;
    assert!(done.failed && done.message.starts_with("Self-heal-daemon is disabled"));
}

#[tokio::test]
async fn a_brick_is_stopped_and_started() {
    let pool = Pool::new().await;
    pool.add_volume(
        "v",
        &[("gfs01", "/b"), ("gfs02", "/b")],
        VolumeStatus::VolumeStarted,
    );
    let (down, up) = (BrickStatus::BrickDown, BrickStatus::BrickUp);
    pool.admin.move_brick("gfs02:/b", down).await.unwrap();
    assert_eq!(pool.volume("v").bricks[1].status(), down);
    let again = pool.admin.move_brick("gfs02:/b", down).await.unwrap_err().0;
    assert_eq!(again, "gfs02:/b of volume v is stopped already");
    pool.admin.move_brick("gfs02:/b", up).await.unwrap();
    assert_eq!(pool.volume("v").bricks[1].status(), up);
    let absent = pool.admin.move_brick("gfs02:/c", up).await.unwrap_err().0;
    assert!(absent.contains("No such brick"), "{absent}");

    pool.admin.move_brick("gfs02:/b", down).await.unwrap();
    pool.admin.start_volume(start("v", true, "")).await.unwrap();
    assert_eq!(pool.volume("v").bricks[1].status(), up);
}

#[tokio::test]
async fn a_brick_is_trusted_only_by_force_and_when_nobody_serves() {
    let pool = Pool::new().await;
    pool.add_volume(
        "v",
        &[("gfs01", "/b"), ("gfs02", "/b")],
        VolumeStatus::VolumeStarted,
    );
    let unforced = pool
        .admin
        .start_volume(start("v", false, "gfs02:/b"))
        .await
        .unwrap_err()
        .0;
    assert!(unforced.contains("takes 'force'"), "{unforced}");
    let absent = pool
        .admin
        .start_volume(start("v", true, "gfs02:/c"))
        .await
        .unwrap_err()
        .0;
    assert!(absent.contains("No such brick"), "{absent}");
    let serving = pool
        .admin
        .start_volume(start("v", true, "gfs02:/b"))
        .await
        .unwrap_err()
        .0;
    assert!(serving.contains("serves already"), "{serving}");

    pool.here.set_role(CopyRole::CopyWaiting);
    pool.there.set_role(CopyRole::CopyWaiting);
    let before = pool.volume("v").sets[0].epoch.clone().unwrap();
    pool.admin
        .start_volume(start("v", true, "gfs02:/b"))
        .await
        .unwrap();
    let brick = pool.volume("v").bricks[1].id;
    let Some(What::ChangeEpoch(change)) = pool.registry.last_epoch_change() else {
        panic!("no epoch was proposed")
    };
    assert_eq!(
        (change.expect_number, change.expect_id),
        (before.number, before.id)
    );
    let next = change.next.unwrap();
    assert_eq!((next.number, next.primary), (before.number + 1, brick));
    assert_eq!(next.in_sync.len(), 1);
    assert_eq!(
        (next.in_sync[0].brick, next.in_sync[0].incarnation),
        (brick, 77)
    );
}

#[tokio::test]
async fn peers_are_probed_and_detached_in_glusters_words() {
    let pool = Pool::new().await;
    let itself = "Probe on localhost not needed";
    assert_eq!(pool.admin.probe("gfs01").await.unwrap(), itself);
    assert_eq!(pool.admin.probe("localhost").await.unwrap(), itself);
    let known = pool.admin.probe("gfs02").await.unwrap();
    assert!(known.starts_with("Host gfs02 port ") && known.ends_with("already in peer list"));
    assert_eq!(pool.admin.probe("new").await.unwrap(), "");
    let foreign = pool.admin.probe("foreign").await.unwrap_err().0;
    assert!(
        foreign.contains("already part of another cluster"),
        "{foreign}"
    );
    for bad in ["", "a b", "-h", "a\nb", "a/b"] {
        assert!(
            pool.admin
                .probe(bad)
                .await
                .unwrap_err()
                .0
                .contains("not a host's name"),
            "{bad}"
        );
    }

    let detach = async |host: &str, force| {
        let request = PeerDetachRequest {
            host: host.to_owned(),
            force,
        };
        pool.admin.detach(request).await
    };
    assert!(
        detach("gfs01", false)
            .await
            .unwrap_err()
            .0
            .contains("is localhost")
    );
    assert_eq!(
        detach("gfs09", false).await.unwrap_err().0,
        "gfs09 is not part of cluster"
    );
    let down = detach("gfs03", false).await.unwrap_err().0;
    assert!(
        down.starts_with("One of the peers is probably down"),
        "{down}"
    );
    assert_eq!(detach("gfs03", true).await.unwrap(), "");
    pool.add_volume("v", &[("gfs02", "/b")], VolumeStatus::VolumeCreated);
    assert!(
        detach("gfs02", true)
            .await
            .unwrap_err()
            .0
            .contains("hosts one or more bricks")
    );
}

#[tokio::test]
async fn the_socket_is_private_and_replaced_only_when_stale() {
    use std::os::unix::fs::PermissionsExt;

    let pool = Pool::new().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    std::fs::write(&path, "not a socket").unwrap();
    let refused = serve_socket(&path, pool.admin.clone(), std::future::ready(())).await;
    assert!(
        matches!(refused, Err(ServeError::NotSocket(_))),
        "{refused:?}"
    );
    std::fs::remove_file(&path).unwrap();
    // What a killed brickd leaves: a socket file without anybody behind it.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (service, at) = (pool.admin.clone(), path.clone());
    let serving = tokio::spawn(async move {
        serve_socket(&at, service, async move { drop(stopped.await) }).await
    });
    until("the socket answers", || {
        std::os::unix::net::UnixStream::connect(&path).is_ok()
    })
    .await;
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let mut client = AdminClient::new(fixture::channel_to_socket(&path).await);
    let view = client.get_view(Empty {}).await.unwrap().into_inner();
    assert_eq!(view.peers.len(), 3);
    let taken = serve_socket(&path, pool.admin.clone(), std::future::ready(())).await;
    assert!(matches!(taken, Err(ServeError::Taken(_))), "{taken:?}");
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
    assert!(!path.exists());
}
