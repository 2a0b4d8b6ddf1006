//! The founding scenario with real containers: one that mounts by itself, and two that share the
//! mount of their host with `docker run -v`.

use std::time::Duration;

use tests::cluster::{Cluster, Docker, RunOptions, Running, VOLUME, wait_until};

const AT_ONCE: Duration = Duration::from_secs(3);
const HEALED_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn a_container_mounts_and_either_host_may_go() {
    let cluster = Cluster::two_hosts();
    let docker = Docker::start(&cluster);
    let container = docker.run(
        &cluster,
        &RunOptions {
            may_mount: true,
            ..Default::default()
        },
    );
    container
        .sh("[ -e /dev/fuse ] || mknod /dev/fuse c 10 229")
        .ok();
    container
        .sh("mkdir /v01 && mount.mortar gfs01:/v01 /v01")
        .ok();
    container.sh("cd /v01 && touch a b").ok();

    for (down, stays, name) in [("gfs01", "gfs02", "c"), ("gfs02", "gfs01", "d")] {
        cluster.host(down).shut_down();
        let touched = container.sh(&format!("touch /v01/{name}"));
        assert!(
            touched.took < AT_ONCE,
            "with {down} away, touch took {:?}",
            touched.took
        );
        touched.ok();
        assert!(cluster.brick(stays).join(name).is_file());
        assert!(!cluster.brick(down).join(name).exists());
        cluster.host(down).start_brickd();
        let healed = cluster.brick(down).join(name);
        wait_until(HEALED_WITHIN, &format!("{name} appears on {down}"), || {
            healed.is_file()
        });
        cluster.assert_healed_and_equal();
    }
    let listed = container.sh("ls /v01").ok();
    assert_eq!(
        listed.split_whitespace().collect::<Vec<_>>(),
        ["a", "b", "c", "d"]
    );
    container.sh("umount /v01").ok();
    cluster.assert_logs_clean(&[]);
}

#[test]
fn two_containers_share_a_bind_mount_and_no_key_is_lost() {
    const KEYS: usize = 200;
    let cluster = Cluster::two_hosts();
    let docker = Docker::start(&cluster);
    let mount = cluster.mount("client", "gfs01:/v01", "");
    let binds = vec![(mount.path().to_owned(), "/data".to_owned())];
    let options = RunOptions {
        binds,
        ..Default::default()
    };
    let containers = [
        docker.run(&cluster, &options),
        docker.run(&cluster, &options),
    ];
    let mut writers: Vec<Running> = containers
        .iter()
        .enumerate()
        .map(|(number, container)| {
            Running::start(container.sh_command(&format!(
                "set -e; i=0; while [ $i -lt {KEYS} ]; do \
                 echo \"ssh-ed25519 key-$i of-{number}\" >> /data/authorized_keys; i=$((i+1)); done"
            )))
        })
        .collect();
    let keys = cluster.brick("gfs02").join("authorized_keys");
    wait_until(Duration::from_secs(30), "both append", || {
        tests::outage::size_of(&keys) > 500
    });
    cluster.host("gfs01").kill_brickd();
    for writer in writers.drain(..) {
        writer.finish(Duration::from_secs(120)).ok();
    }
    cluster.host("gfs01").start_brickd();

    let inside = "ln -s /data/authorized_keys /root/authorized_keys && cat /root/authorized_keys";
    let text = containers[1].sh(inside).ok();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), 2 * KEYS, "keys are lost or doubled");
    assert!(
        lines
            .iter()
            .all(|line| line.starts_with("ssh-ed25519 key-"))
    );
    cluster.wait_in_sync(VOLUME);
    cluster.assert_healed_and_equal();
    drop(containers);
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}
