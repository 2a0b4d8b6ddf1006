//! Registry trouble on real hosts: bricks go on serving, and `mortar` says what is wrong and how it
//! is repaired.

use std::fs::{self, File};
use std::time::Duration;

use tests::cluster::{CLI_WITHIN, Cluster, Host, VOLUME, wait_until};
use tests::stall::StallMeter;

const WITHIN: Duration = Duration::from_secs(60);
/// Room for the registry's own 32 MiB and a little more.
const DISK_MIB: u32 = 64;
const CHANGES_ON_A_FULL_DISK: usize = 20;

/// `volume set` is taken, after a new leader is found if need be.
#[track_caller]
fn assert_managed(host: &Host, value: usize) {
    let set = format!("volume set {VOLUME} network.ping-timeout {value}");
    wait_until(WITHIN, "the volume can be changed", || {
        host.mortar(&set).status.success()
    });
}

/// A host that holds a brick and lost its data directory comes back under its name: a new peer for
/// the registry, with the brick of the old one, which is healed and not filled anew.
#[test]
fn a_host_that_lost_its_data_directory_is_probed_and_has_its_brick_again() {
    let cluster = Cluster::three_peers();
    let mount = cluster.mount("client", "gfs01,gfs02,gfs03:/v01", "");
    fs::write(mount.join("before"), "on both").unwrap();
    File::open(mount.join("before"))
        .unwrap()
        .sync_all()
        .unwrap();
    let wiped = cluster.host("gfs02");
    wiped.stop_brickd();
    fs::remove_dir_all(wiped.data_dir()).unwrap();
    wiped.start_brickd();
    fs::write(mount.join("meanwhile"), "on one").unwrap();
    let status = cluster.mortar("gfs01", "peer status").ok();
    assert!(status.contains("(Disconnected)"), "{status}");
    let volume = cluster.mortar("gfs01", "volume status v01").ok();
    assert!(volume.contains("Note: gfs02"), "{volume}");
    let said = cluster.mortar("gfs01", "peer probe gfs02").ok();
    assert!(said.contains("had lost its data directory"), "{said}");
    assert!(said.contains("has the bricks of the old one"), "{said}");
    cluster.assert_healed_and_equal();
    let log = fs::read_to_string(wiped.log()).unwrap();
    assert!(!log.contains("comparing everything"), "it was filled anew");
    let status = cluster.mortar("gfs01", "peer status").ok();
    assert!(!status.contains("(Disconnected)"), "{status}");
    cluster.host("gfs01").kill_brickd();
    assert_eq!(
        fs::read_to_string(mount.join("meanwhile")).unwrap(),
        "on one"
    );
    cluster.host("gfs01").start_brickd();
    cluster.assert_healed_and_equal();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

/// The disk of a data directory is filled by something else: the registry has room of its own.
#[test]
fn a_full_disk_of_the_data_directory_stops_nothing() {
    let cluster = Cluster::new(&["gfs01", "gfs02", "client"]);
    let full = cluster.host("gfs01");
    full.small_disk(DISK_MIB, "rw");
    fs::create_dir(full.dir.join("disk/data")).unwrap();
    std::os::unix::fs::symlink(full.dir.join("disk/data"), full.data_dir()).unwrap();
    cluster.found(&["gfs01", "gfs02"], 2);
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let meter = StallMeter::start(mount.path());
    let filler = full.dir.join("disk/filler");
    let dd = format!("dd if=/dev/zero of={} bs=64k", filler.display());
    let ran = full.run(&dd, CLI_WITHIN);
    assert!(
        !ran.status.success() && ran.to_string().contains("No space left"),
        "{ran}"
    );
    for round in 0..CHANGES_ON_A_FULL_DISK {
        assert_managed(cluster.host(["gfs01", "gfs02"][round % 2]), 5 + round % 2);
    }
    meter.wait_for_progress();
    // Also over a restart, which opens the file anew.
    full.stop_brickd();
    full.start_brickd();
    assert_managed(full, 7);
    fs::remove_file(&filler).unwrap();
    assert_managed(full, 6);
    let stalls = meter.stop();
    assert!(stalls.errors.is_empty(), "{stalls:?}");
    cluster.assert_healed_and_equal();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

/// Bricks of an unbroken set serve for as long as nothing changes, whoever leads the registry.
#[test]
fn bricks_serve_while_the_registrys_leader_is_cut_off() {
    let cluster = Cluster::three_peers();
    let mount = cluster.mount("client", "gfs01,gfs02,gfs03:/v01", "");
    // The witness is to lead: the others are restarted until it does.
    let witness = cluster.host("gfs03");
    wait_until(WITHIN, "the witness leads", || {
        let leader = cluster.leader();
        if leader.name != witness.name {
            leader.stop_brickd();
            // Started at once it would lead again.
            wait_until(WITHIN, "another leads", || {
                cluster.leader().name != leader.name
            });
            leader.start_brickd();
            cluster.wait_in_sync(VOLUME);
        }
        cluster.leader().name == witness.name
    });
    cluster.wait_healed(VOLUME);
    let epoch = cluster.volume(VOLUME).sets[0].epoch.clone();
    let meter = StallMeter::start(mount.path());
    witness.cut_link();
    meter.wait_for_progress();
    assert_managed(cluster.host("gfs01"), 6);
    meter.wait_for_progress();
    assert_eq!(
        cluster.volume(VOLUME).sets[0].epoch,
        epoch,
        "the set changed"
    );
    witness.restore_link();
    assert_managed(witness, 7);
    meter
        .stop()
        .assert_below(Duration::from_secs(10), "the registry's leader is cut off");
    cluster.assert_healed_and_equal();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

/// Only the witness is left: it tells what it knows, refuses changes with the reason, and all goes on
/// when the others are back.
#[test]
fn a_witness_that_is_left_alone_says_so() {
    let cluster = Cluster::three_peers();
    let mount = cluster.mount("client", "gfs01,gfs02,gfs03:/v01", "");
    fs::write(mount.join("kept"), "acknowledged").unwrap();
    for name in ["gfs01", "gfs02"] {
        cluster.host(name).kill_brickd();
    }
    let info = cluster.mortar("gfs03", "volume info v01").ok();
    assert!(info.contains("Status: Started"), "{info}");
    // As soon as it has noticed that who led the registry is gone.
    wait_until(WITHIN, "a change is refused with the reason", || {
        let set = "volume set v01 network.ping-timeout 6";
        let refused = cluster.mortar("gfs03", set).refused();
        refused.contains("no quorum: 1 of 3 voters reachable")
    });
    let status = cluster.mortar("gfs03", "volume status v01").ok();
    for name in ["gfs01", "gfs02"] {
        assert!(status.contains(&format!("Note: {name}")), "{status}");
        cluster.host(name).start_brickd();
    }
    assert_managed(cluster.host("gfs03"), 6);
    assert_eq!(
        fs::read_to_string(mount.join("kept")).unwrap(),
        "acknowledged"
    );
    cluster.assert_healed_and_equal();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}
