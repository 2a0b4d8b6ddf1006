//! brickd as a process: start, stop, and what it refuses to serve.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tests::cluster::{Allowed, Cluster, VOLUME, run, wait_until};
use tests::{report, scale};

const SOON: Duration = Duration::from_secs(20);

/// Resident memory of a process, in bytes.
fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn one_line_says_what_it_is_and_where_it_listens() {
    let cluster = Cluster::one_host();
    let host = cluster.host("gfs01");
    host.stop_brickd();
    fs::remove_file(host.log()).unwrap();
    host.start_brickd();
    let log = fs::read_to_string(host.log()).unwrap();
    let address = format!("{}:24017", host.address);
    assert!(
        log.lines().any(|line| line.contains(&address)),
        "no line names {address}:\n{log}"
    );
}

#[test]
fn sigterm_ends_it_cleanly_and_everything_is_there_after_a_start() {
    let cluster = Cluster::one_host();
    let mount = cluster.mount("client", "gfs01:/v01", "");
    fs::write(mount.join("kept"), "kept").unwrap();
    let status = cluster.host("gfs01").stop_brickd();
    assert!(status.success(), "{status}");
    assert_eq!(cluster.host("gfs01").processes(), Vec::<u32>::new());
    cluster.host("gfs01").start_brickd();
    assert_eq!(fs::read_to_string(mount.join("kept")).unwrap(), "kept");
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

#[test]
fn a_second_one_on_the_same_data_directory_is_refused() {
    let cluster = Cluster::new(&["gfs01"]);
    let host = cluster.host("gfs01");
    host.start_brickd();
    let said = run(host.brickd_command(), SOON).refused();
    let data = host.data_dir();
    assert!(
        said.contains(data.to_str().unwrap()),
        "which directory is not said: {said}"
    );
    assert!(
        host.mortar("pool list").status.success(),
        "the first one suffered"
    );
}

#[test]
fn a_folder_that_is_not_this_volumes_brick_is_not_served() {
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    fs::write(mount.join("a"), "a").unwrap();
    let host = cluster.host("gfs02");
    let brick = cluster.brick("gfs02");
    host.stop_brickd();
    let aside = brick.with_extension("aside");
    fs::rename(&brick, &aside).unwrap();
    // As when the disk below was not mounted at boot.
    fs::create_dir(&brick).unwrap();
    host.start_brickd();
    wait_until(
        SOON,
        "`volume status` says that the brick is not served and why",
        || {
            let states = cluster
                .host("gfs01")
                .brick_states(VOLUME)
                .unwrap_or_default();
            states
                .iter()
                .any(|state| state.host == "gfs02" && !state.online && !state.detail.is_empty())
        },
    );
    fs::write(mount.join("b"), "b").unwrap();
    assert_eq!(
        fs::read_dir(&brick).unwrap().count(),
        0,
        "something was put into a foreign folder"
    );
    fs::remove_dir(&brick).unwrap();
    host.stop_brickd();
    fs::rename(&aside, &brick).unwrap();
    host.start_brickd();
    cluster.assert_healed_and_equal();
    cluster.assert_logs_clean(&[Allowed {
        text: "glusterfs/distributed",
        why: "a brick folder that is not the brick it should be is for a human to look at",
    }]);
}

#[test]
fn bricks_are_stopped_and_started_while_their_host_lives() {
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let spec = cluster.host("gfs02").brick_spec("glusterfs/distributed");
    cluster.mortar("gfs01", &format!("brick stop {spec}")).ok();
    fs::write(mount.join("meanwhile"), "x").unwrap();
    assert!(!cluster.brick("gfs02").join("meanwhile").exists());
    cluster.mortar("gfs01", &format!("brick start {spec}")).ok();
    cluster.assert_healed_and_equal();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

/// Makes files in folders below `at`, from several threads, and lists them with attributes.
fn touch_files(at: &Path, files: usize) {
    const THREADS: usize = 4;
    const PER_FOLDER: usize = 1_000;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for number in 0..files / THREADS {
                    let folder = at.join(format!("{thread}-{}", number / PER_FOLDER));
                    if number % PER_FOLDER == 0 {
                        fs::create_dir_all(&folder).unwrap();
                    }
                    fs::write(folder.join(number.to_string()), "x").unwrap();
                }
            });
        }
    });
    let mut find = Command::new("find");
    find.arg(at).args(["-newermt", "2100-01-01"]);
    run(find, Duration::from_secs(600)).ok();
}

/// brickd idle below 60 MiB; the client below 100 MiB when it has touched many files; and neither
/// grows any more when it touches as many again, the client because its kernel is made to forget
/// inodes beyond its limit (500,000 where nothing is said; here what one round touches).
#[test]
fn memory_is_bounded_however_many_files_are_touched() {
    const MIB: u64 = 1 << 20;
    /// What may come and go: buffers, the allocator's own.
    const NOISE: u64 = 12 * MIB;
    // Before the last round every cache has come to its bound.
    let (files, rounds) = scale::pick((4_000, 3), (100_000, 8));
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01:/v01", &format!("inode-limit={files}"));
    let resident = || {
        let [one, two] = ["gfs01", "gfs02"].map(|host| cluster.host(host).brickd_pid().unwrap());
        [one, two, mount.pid()].map(resident_bytes)
    };
    let idle = resident();
    let after: Vec<[u64; 3]> = (0..rounds)
        .map(|round| {
            touch_files(&mount.join(format!("round-{round}")), files);
            resident()
        })
        .collect();
    let mib = |bytes: [u64; 3]| bytes.map(|bytes| bytes / MIB);
    report::say(&format!(
        "resident MiB of both brickds and the client: idle {:?}, after each {files} files {:?}",
        mib(idle),
        after.iter().copied().map(mib).collect::<Vec<_>>()
    ));
    assert!(
        idle[0].max(idle[1]) < 60 * MIB,
        "brickd idle: {:?}",
        mib(idle)
    );
    let [before, after] = [after[rounds - 2], after[rounds - 1]];
    assert!(after[2] < 100 * MIB, "the client: {:?}", mib(after));
    let grew: [u64; 3] = std::array::from_fn(|which| after[which].saturating_sub(before[which]));
    let is_bounded = grew.iter().all(|grew| *grew < NOISE);
    assert!(is_bounded, "grown by {:?} MiB", mib(grew));
}

#[test]
fn a_mount_ends_by_umount_and_by_sigterm_and_leaves_nothing() {
    let cluster = Cluster::one_host();
    let mount = cluster.mount("client", "gfs01:/v01", "");
    let line = mount.line().unwrap();
    assert!(line.starts_with("gfs01:/v01 "), "{line}");
    assert!(line.contains(" fuse.mortar "), "{line}");
    mount.unmount();

    let mount = cluster.mount("client", "gfs01:/v01", "");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(mount.pid()).unwrap()).unwrap(),
        Signal::TERM,
    )
    .unwrap();
    wait_until(SOON, "SIGTERM unmounts", || mount.line().is_none());
    wait_until(SOON, "the client ends", || mount.find_pid().is_none());
    assert_eq!(cluster.host("client").processes(), Vec::<u32>::new());
    cluster.assert_logs_clean(&[]);
}
