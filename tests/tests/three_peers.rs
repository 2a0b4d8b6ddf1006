//! Three peers, two bricks: any one host may go; with two gone nothing is lost.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use tests::cluster::{Allowed, Cluster, VOLUME, wait_until};

/// Management goes on once the registry has a leader again.
const MANAGED_WITHIN: Duration = Duration::from_secs(10);
const BACK_WITHIN: Duration = Duration::from_secs(60);

#[test]
fn any_one_host_may_be_down() {
    let cluster = Cluster::three_peers();
    let mount = cluster.mount("client", "gfs01,gfs02,gfs03:/v01", "");
    for (round, down) in ["gfs01", "gfs02", "gfs03"].into_iter().enumerate() {
        fs::write(mount.join(format!("before-{round}")), down).unwrap();
        cluster.host(down).shut_down();
        let text = format!("while {down} is down");
        fs::write(mount.join(format!("during-{round}")), &text).unwrap();
        assert_eq!(
            fs::read_to_string(mount.join(format!("during-{round}"))).unwrap(),
            text
        );
        assert_eq!(
            fs::read_to_string(mount.join(format!("before-{round}"))).unwrap(),
            down
        );

        let asked = if down == "gfs01" { "gfs02" } else { "gfs01" };
        let set = format!("volume set {VOLUME} network.ping-timeout {}", 5 + round % 2);
        wait_until(MANAGED_WITHIN, "the volume can be changed", || {
            cluster.mortar(asked, &set).status.success()
        });
        let status = cluster.mortar(asked, "peer status").ok();
        assert!(status.contains("(Disconnected)"), "{status}");

        cluster.host(down).start_brickd();
        cluster.assert_healed_and_equal();
    }
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 6);
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

#[test]
fn with_two_hosts_down_changes_are_refused_and_nothing_is_lost() {
    let cluster = Cluster::three_peers();
    let mount = cluster.mount("client", "gfs01,gfs02,gfs03:/v01", "");
    let kept: Vec<PathBuf> = (0..50)
        .map(|number| mount.join(format!("kept-{number}")))
        .collect();
    kept.iter()
        .for_each(|file| fs::write(file, "acknowledged").unwrap());
    // However long the outage lasts: this client lives, and keeps what it holds.
    let mut locked = File::create(mount.join("locked")).unwrap();
    locked.lock().unwrap();
    cluster.host("gfs03").shut_down();
    cluster.host("gfs02").shut_down();

    let refused = cluster
        .mortar("gfs01", "volume set v01 network.ping-timeout 6")
        .refused();
    assert!(
        refused.contains("quorum"),
        "the reason is not given: {refused}"
    );
    let info = cluster.mortar("gfs01", "volume info v01").ok();
    assert!(info.contains("Status: Started"), "{info}");
    let late = cluster.mount("client", "gfs01:/v01", "");

    // A change cannot be acknowledged now: it waits, it does not fail.
    let file = mount.join("written-without-quorum");
    let waiting = std::thread::spawn({
        let file = file.clone();
        move || fs::write(file, "waited")
    });
    std::thread::sleep(Duration::from_secs(2));
    assert!(
        !waiting.is_finished(),
        "a change was answered by one of two copies"
    );

    cluster.host("gfs02").start_brickd();
    cluster.host("gfs03").start_brickd();
    wait_until(BACK_WITHIN, "the waiting change is done", || {
        waiting.is_finished()
    });
    waiting.join().unwrap().unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "waited");
    assert!(
        kept.iter()
            .all(|file| fs::read(file).unwrap() == b"acknowledged")
    );
    assert!(late.join("written-without-quorum").exists());
    locked.write_all(b"still mine").unwrap();
    let other = File::open(late.join("locked")).unwrap();
    assert!(
        matches!(other.try_lock(), Err(TryLockError::WouldBlock)),
        "the lock did not outlive the outage"
    );
    drop((locked, other));
    cluster.assert_healed_and_equal();
    cluster.assert_logs_clean(&[Allowed {
        text: "no brick may serve yet",
        why: "it is mounted while two of three hosts are down",
    }]);
}

#[test]
fn all_hosts_restart_at_once_and_nothing_is_lost() {
    let cluster = Cluster::three_peers();
    let mount = cluster.mount("client", "gfs01,gfs02,gfs03:/v01", "");
    for number in 0..50 {
        fs::write(mount.join(format!("f{number}")), format!("{number}")).unwrap();
    }
    for host in ["gfs01", "gfs02", "gfs03"] {
        cluster.host(host).kill_brickd();
    }
    let reader = std::thread::spawn({
        let file = mount.join("f7");
        move || fs::read_to_string(file)
    });
    for host in ["gfs03", "gfs02", "gfs01"] {
        cluster.host(host).start_brickd();
    }
    wait_until(BACK_WITHIN, "a read goes on", || reader.is_finished());
    assert_eq!(reader.join().unwrap().unwrap(), "7");
    for number in 0..50 {
        assert_eq!(
            fs::read_to_string(mount.join(format!("f{number}"))).unwrap(),
            number.to_string()
        );
    }
    cluster.assert_healed_and_equal();
}
