//! The harness itself: what it promises to the other tests, shown with trivial processes.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tests::cluster::{Cluster, Docker, Process, RunOptions, Running, wait_until};

const SOON: Duration = Duration::from_secs(10);

fn pings(cluster: &Cluster, from: &str, to: &str) -> bool {
    // bash's own TCP: any answer, a refusal too, proves that packets go both ways.
    let script = format!("exec 3<>/dev/tcp/{to}/9");
    let mut command = cluster.host(from).command("timeout");
    command.args(["1", "bash", "-c", &script]);
    let ran = tests::cluster::run(command, SOON);
    ran.status.code() != Some(124) && ran.said().contains("refused")
}

#[test]
fn hosts_reach_each_other_by_name_until_the_cable_is_cut() {
    let cluster = Cluster::new(&["gfs01", "gfs02"]);
    assert!(pings(&cluster, "gfs01", "gfs02"));
    cluster.host("gfs02").cut_link();
    assert!(!pings(&cluster, "gfs01", "gfs02"));
    cluster.host("gfs02").restore_link();
    wait_until(SOON, "the cable works again", || {
        pings(&cluster, "gfs01", "gfs02")
    });
    cluster.host("gfs02").drop_incoming();
    assert!(!pings(&cluster, "gfs01", "gfs02"));
    cluster.host("gfs02").drop_nothing();
    assert!(pings(&cluster, "gfs01", "gfs02"));
    cluster.host("gfs01").drop_outgoing();
    assert!(!pings(&cluster, "gfs01", "gfs02"));
    cluster.host("gfs01").drop_nothing();
    let (received, sent) = cluster.host("gfs01").network_bytes();
    assert!(received > 0 && sent > 0);
}

#[test]
fn two_clusters_do_not_see_each_other_nor_the_machine() {
    let (one, other) = (
        Cluster::new(&["gfs01", "gfs02"]),
        Cluster::new(&["gfs01", "gfs02"]),
    );
    assert!(pings(&one, "gfs01", "gfs02") && pings(&other, "gfs01", "gfs02"));
    let address = other.host("gfs02").address.to_string();
    assert!(
        !pings(&one, "gfs01", &address) || one.host("gfs02").address == other.host("gfs02").address
    );
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap();
    assert!(
        !hosts.contains("gfs01"),
        "the machine's own /etc/hosts was changed"
    );
}

#[test]
fn a_mount_made_on_a_host_is_seen_by_the_test_and_by_later_programs_of_the_host() {
    let cluster = Cluster::new(&["gfs01"]);
    let host = cluster.host("gfs01");
    let point = host.dir.join("mnt");
    std::fs::create_dir(&point).unwrap();
    let point = point.display();
    host.run(&format!("mount -t tmpfs tmpfs {point}"), SOON)
        .ok();
    host.run(&format!("touch {point}/seen"), SOON).ok();
    assert!(Path::new(&format!("{point}/seen")).exists());
    let mut umount = Command::new("umount");
    umount.arg(point.to_string());
    tests::cluster::run(umount, SOON).ok();
    assert!(host.run(&format!("ls {point}"), SOON).ok().is_empty());
}

#[test]
fn shutting_a_host_down_ends_all_its_processes_and_no_others() {
    let cluster = Cluster::new(&["gfs01", "gfs02"]);
    let log = cluster.folder("log").join("log");
    let sleep = |host: &str| {
        let mut command = cluster.host(host).command("sleep");
        command.arg("600");
        command
    };
    let mut first = Process::start(sleep("gfs01"), &log);
    let mut other = Process::start(sleep("gfs02"), &log);
    wait_until(SOON, "they run", || {
        cluster
            .hosts()
            .iter()
            .all(|host| !host.processes().is_empty())
    });
    cluster.host("gfs01").shut_down();
    first.wait(SOON);
    assert!(other.is_running());
    assert_eq!(cluster.host("gfs02").processes(), [other.pid()]);
}

#[test]
fn nothing_of_a_cluster_is_left_after_a_panic() {
    let left = Mutex::new(None);
    let panicked = std::panic::catch_unwind(|| {
        let cluster = Cluster::new(&["gfs01"]);
        let host = cluster.host("gfs01");
        let point = host.dir.join("mnt");
        std::fs::create_dir(&point).unwrap();
        host.run(&format!("mount -t tmpfs tmpfs {}", point.display()), SOON)
            .ok();
        let mut sleep = host.command("sleep");
        sleep.arg("600");
        let running = Running::start(sleep);
        // What enters the host for it is there before, alone as well, and starts others.
        wait_until(SOON, "it alone runs", || {
            let commands: Vec<_> = host.processes().into_iter().map(command_of).collect();
            commands == ["sleep"]
        });
        *left.lock().unwrap() = Some((host.dir.clone(), host.processes()));
        std::mem::forget(running);
        panic!("on purpose");
    });
    assert!(panicked.is_err());
    let (dir, processes) = left.into_inner().unwrap().expect("what the cluster had");
    let base = dir.parent().unwrap();
    assert!(!base.exists(), "{} is still there", base.display());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(base.to_str().unwrap()));
    let id = base
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .trim_start_matches("mortar-");
    let namespaces = std::fs::read_dir("/run/netns").unwrap().flatten();
    let named = namespaces.filter(|name| name.file_name().to_str().unwrap().starts_with(id));
    assert_eq!(named.count(), 0);
    assert_eq!(processes.len(), 1);
    let state = std::fs::read_to_string(format!("/proc/{}/stat", processes[0]));
    assert!(
        state.map_or(true, |state| state.contains(") Z ")),
        "a process is left"
    );
}

#[test]
fn a_command_that_hangs_is_an_error_not_a_standstill() {
    let start = Instant::now();
    let hung = std::panic::catch_unwind(|| {
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        tests::cluster::run(sleep, Duration::from_millis(200))
    });
    assert!(hung.is_err() && start.elapsed() < SOON);
}

#[test]
fn a_container_is_on_the_clusters_network() {
    let cluster = Cluster::new(&["gfs01"]);
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
    assert!(container.sh("cat /etc/hosts").ok().contains("gfs01"));
    container
        .sh("mount -t tmpfs tmpfs /mnt && touch /mnt/a && umount /mnt")
        .ok();
    let address = container.cable.address.to_string();
    assert!(pings(&cluster, "gfs01", &address));
}

fn command_of(pid: u32) -> String {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    comm.unwrap_or_default().trim_end().to_owned()
}
