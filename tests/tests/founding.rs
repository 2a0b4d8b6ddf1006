//! The founding scenario: two hosts with a brick each, a third that mounts, one host shut down.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::cluster::{CLI_WITHIN, Cluster, Mount, Running, VOLUME, run, wait_until};
use tests::scale;

/// "At once" for one `touch` after a host was shut down, with room for a loaded machine.
const AT_ONCE: Duration = Duration::from_secs(2);
/// The longest pause after a host fell silent.
const SILENT: Duration = Duration::from_secs(10);
const HEALED_WITHIN: Duration = Duration::from_secs(30);

fn touch(mount: &Mount, names: &[&str], within: Duration) {
    let mut touch = Command::new("touch");
    touch.args(names).current_dir(mount.path());
    run(touch, within).ok();
}

fn is_plain_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file())
}

/// Everything in the words an administrator uses, on a cluster where nothing runs yet.
fn found(cluster: &Cluster) {
    cluster.host("gfs01").start_brickd();
    cluster.host("gfs02").start_brickd();
    let probe = cluster.mortar("gfs01", "peer probe gfs02").ok();
    assert_eq!(probe.trim(), "peer probe: success");
    let status = cluster.mortar("gfs01", "peer status").ok();
    assert!(status.contains("Number of Peers: 1"), "{status}");
    assert!(status.contains("Hostname: gfs02"), "{status}");
    assert!(
        status.contains("State: Peer in Cluster (Connected)"),
        "{status}"
    );
    let bricks: Vec<String> = ["gfs01", "gfs02"]
        .map(|host| cluster.host(host).brick_spec("glusterfs/distributed"))
        .into();
    let create = format!(
        "volume create v01 replica 2 transport tcp {} force",
        bricks.join(" ")
    );
    let created = cluster.mortar("gfs01", &create).ok();
    assert!(
        created.contains("volume create: v01: success: please start the volume to access data"),
        "{created}"
    );
    let started = cluster.mortar("gfs01", "volume start v01").ok();
    assert!(started.contains("volume start: v01: success"), "{started}");
    for host in ["gfs01", "gfs02"] {
        let info = cluster.mortar(host, "volume info v01").ok();
        for line in [
            "Type: Replicate",
            "Status: Started",
            "Number of Bricks: 1 x 2 = 2",
        ] {
            assert!(info.contains(line), "{line} not in:\n{info}");
        }
    }
    cluster.wait_in_sync(VOLUME);
}

fn a_host_goes_and_comes_back(down: &str, stays: &str, goes: impl Fn(&Cluster), within: Duration) {
    let cluster = Cluster::new(&["gfs01", "gfs02", "client"]);
    found(&cluster);
    let mount = cluster.mount("client", "gfs01:/v01", "");
    touch(&mount, &["a", "b"], CLI_WITHIN);
    for (host, name) in [
        ("gfs01", "a"),
        ("gfs01", "b"),
        ("gfs02", "a"),
        ("gfs02", "b"),
    ] {
        assert!(
            is_plain_file(&cluster.brick(host).join(name)),
            "{name} is not on {host}"
        );
    }

    goes(&cluster);
    touch(&mount, &["c"], within);
    assert!(
        is_plain_file(&cluster.brick(stays).join("c")),
        "c is not on {stays}"
    );
    assert!(
        !cluster.brick(down).join("c").exists(),
        "c is on {down}, which is shut down"
    );
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 3);

    cluster.host(down).power_on();
    let healed = cluster.brick(down).join("c");
    wait_until(HEALED_WITHIN, &format!("c appears on {down}"), || {
        is_plain_file(&healed)
    });
    cluster.assert_healed_and_equal();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

#[test]
fn the_first_host_shuts_down() {
    let goes = |cluster: &Cluster| cluster.host("gfs01").shut_down();
    a_host_goes_and_comes_back("gfs01", "gfs02", goes, AT_ONCE);
}

#[test]
fn the_second_host_shuts_down() {
    let goes = |cluster: &Cluster| cluster.host("gfs02").shut_down();
    a_host_goes_and_comes_back("gfs02", "gfs01", goes, AT_ONCE);
}

#[test]
fn brickd_of_the_first_host_is_stopped_politely() {
    let goes = |cluster: &Cluster| {
        let status = cluster.host("gfs01").stop_brickd();
        assert!(status.success(), "{status}");
    };
    a_host_goes_and_comes_back("gfs01", "gfs02", goes, AT_ONCE);
}

#[test]
fn the_first_host_loses_its_power() {
    let goes = |cluster: &Cluster| cluster.host("gfs01").power_off();
    a_host_goes_and_comes_back("gfs01", "gfs02", goes, SILENT);
}

#[test]
fn the_second_host_loses_its_power() {
    let goes = |cluster: &Cluster| cluster.host("gfs02").power_off();
    a_host_goes_and_comes_back("gfs02", "gfs01", goes, SILENT);
}

#[test]
fn a_mount_is_made_from_the_host_that_is_left() {
    let cluster = Cluster::two_hosts();
    cluster.host("gfs01").shut_down();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    touch(&mount, &["d"], SILENT);
    let backup = cluster.mount("client", "gfs01:/v01", "backup-volfile-servers=gfs02");
    assert!(backup.join("d").exists());
}

#[test]
fn two_mounts_append_to_one_file_and_no_key_is_lost() {
    const KEYS: usize = 200;
    let cluster = Cluster::two_hosts();
    let mounts = [
        cluster.mount("client", "gfs01:/v01", ""),
        cluster.mount("client", "gfs02:/v01", ""),
    ];
    let mut writers: Vec<Running> = mounts
        .iter()
        .enumerate()
        .map(|(number, mount)| {
            let mut shell = Command::new("/bin/sh");
            let script = format!(
                "set -e; i=0; while [ $i -lt {KEYS} ]; do \
                 echo \"ssh-ed25519 key-$i of-{number}\" >> authorized_keys; i=$((i+1)); done"
            );
            shell.args(["-c", &script]).current_dir(mount.path());
            Running::start(shell)
        })
        .collect();
    writers.drain(..).for_each(|writer| {
        writer.finish(Duration::from_secs(120)).ok();
    });
    for mount in &mounts {
        let text = fs::read_to_string(mount.join("authorized_keys")).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 2 * KEYS, "keys are lost or doubled");
        assert!(
            lines
                .iter()
                .all(|line| line.starts_with("ssh-ed25519 key-"))
        );
    }
    cluster.assert_healed_and_equal();
}

#[test]
fn a_symlink_outside_the_volume_leads_into_it() {
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01:/v01", "");
    fs::write(mount.join("authorized_keys"), "ssh-ed25519 one\n").unwrap();
    let home = cluster.folder("home");
    symlink(mount.join("authorized_keys"), home.join("authorized_keys")).unwrap();
    assert_eq!(
        fs::read_to_string(home.join("authorized_keys")).unwrap(),
        "ssh-ed25519 one\n"
    );
    cluster.host("gfs01").shut_down();
    fs::write(home.join("authorized_keys"), "ssh-ed25519 two\n").unwrap();
    assert_eq!(
        fs::read_to_string(mount.join("authorized_keys")).unwrap(),
        "ssh-ed25519 two\n"
    );
}

/// From whichever peer, the moment the last one has joined.
#[test]
fn a_volume_is_created_started_and_mounted_the_moment_its_peers_are_there() {
    const PEERS: [&str; 3] = ["gfs01", "gfs02", "gfs03"];
    let rounds = scale::pick(4, 60);
    for round in 0..rounds {
        let cluster = Cluster::new(&["gfs01", "gfs02", "gfs03", "client"]);
        let peers = &PEERS[..2 + round % 2];
        let from = peers[round / 2 % peers.len()];
        for peer in peers {
            cluster.host(peer).start_brickd();
        }
        for peer in &peers[1..] {
            cluster.mortar("gfs01", &format!("peer probe {peer}")).ok();
        }
        let bricks: Vec<String> = peers[..2]
            .iter()
            .map(|host| cluster.host(host).brick_spec("glusterfs/distributed"))
            .collect();
        let bricks = bricks.join(" ");
        let create = format!("volume create v01 replica 2 transport tcp {bricks} force");
        cluster.mortar(from, &create).ok();
        cluster.mortar(from, "volume start v01").ok();
        let mount = cluster.mount("client", "gfs02:/v01", "");
        fs::write(mount.join("a"), "x").unwrap();
        mount.unmount();
        cluster.assert_logs_clean(&[]);
    }
}
