//! A client is killed by SIGKILL while it holds locks, open files and half-written ones: its locks
//! go, nothing of it stays on the bricks, and the volume is mounted at the same place again.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use tests::cluster::{Cluster, Mount, VOLUME, run, wait_until};
use tests::report;

/// The locks of a killed client are gone within this.
const LOCKS_GONE_WITHIN: Duration = Duration::from_secs(10);
const WITHIN: Duration = Duration::from_secs(60);
const RECORD: &[u8; 16] = b"a whole record.\n";

/// What the victim has open. The descriptors stay open in this process when the client is dead.
struct Held(Vec<File>);

/// Opens and locks on a mount: a flock, a fcntl lock, a half-written file, one unlinked, and one
/// that never had a name.
fn hold(mount: &Mount) -> Held {
    let open = |name: &str| {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        options.open(mount.join(name)).unwrap()
    };
    let (flocked, locked) = (open("flocked"), open("locked"));
    flock(&flocked, FlockOperation::LockExclusive).unwrap();
    fcntl_lock(&locked, FlockOperation::LockExclusive).unwrap();
    let half = open("half");
    half.write_all_at(&[b'x'; 1 << 20], 0).unwrap();
    let orphan = open("orphan");
    orphan.write_all_at(&[b'y'; 1 << 20], 0).unwrap();
    fs::remove_file(mount.join("orphan")).unwrap();
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_TMPFILE);
    let unnamed = options.open(mount.path()).unwrap();
    unnamed.write_all_at(&[b'z'; 1 << 20], 0).unwrap();
    let replaced = open("replaced");
    fs::write(mount.join("new"), "new").unwrap();
    fs::rename(mount.join("new"), mount.join("replaced")).unwrap();
    Held(vec![flocked, locked, half, orphan, unnamed, replaced])
}

/// What a brick keeps of objects that have no name any more.
fn nameless(brick: &Path) -> Vec<PathBuf> {
    let below = |folder: PathBuf| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let own = brick.join(".mortar");
    let mut found = below(own.join("orphan"));
    for bucket in below(own.join("handle")) {
        for handle in below(bucket) {
            let meta = fs::symlink_metadata(&handle);
            if meta.is_ok_and(|meta| !meta.is_symlink() && meta.nlink() == 1) {
                found.push(handle);
            }
        }
    }
    found
}

/// Both locks as another mount gets them that waits: how long after `since`.
fn wait_for_locks(other: &Mount, since: Instant) -> [Duration; 2] {
    type Take = fn(&File) -> rustix::io::Result<()>;
    let takes: [(&str, Take); 2] = [
        ("flocked", |file| flock(file, FlockOperation::LockExclusive)),
        ("locked", |file| {
            fcntl_lock(file, FlockOperation::LockExclusive)
        }),
    ];
    std::thread::scope(|scope| {
        let waiters = takes.map(|(name, take)| {
            let open = File::options()
                .read(true)
                .write(true)
                .open(other.join(name));
            let file = open.unwrap();
            scope.spawn(move || {
                take(&file).unwrap();
                since.elapsed()
            })
        });
        waiters.map(|waiter| waiter.join().unwrap())
    })
}

fn assert_refused(other: &Mount) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(other.join("flocked"))
        .unwrap();
    let refused = flock(&file, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(refused, Err(Errno::WOULDBLOCK));
    let file = File::options()
        .read(true)
        .write(true)
        .open(other.join("locked"))
        .unwrap();
    let refused = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(refused, Err(Errno::AGAIN));
}

#[test]
fn the_locks_of_a_killed_client_go_and_nothing_of_it_stays() {
    let cluster = Cluster::two_hosts();
    let victim = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let other = cluster.mount("client", "gfs02,gfs01:/v01", "");
    let held = hold(&victim);
    assert_refused(&other);
    for brick in ["gfs01", "gfs02"] {
        assert!(
            !nameless(&cluster.brick(brick)).is_empty(),
            "an orphan on {brick}"
        );
    }

    let victim_pid = victim.pid();
    victim.kill_client();
    let took = wait_for_locks(&other, Instant::now());
    report::say(&format!("locks of a killed client gone after {took:?}"));
    assert!(
        took.iter().all(|took| *took < LOCKS_GONE_WITHIN),
        "{took:?}"
    );
    let dead = held.0[0].write_all_at(b"x", 0).unwrap_err();
    assert_eq!(Errno::from_io_error(&dead), Some(Errno::NOTCONN));
    assert!(fs::read(other.join("half")).unwrap() == [b'x'; 1 << 20]);
    assert_eq!(fs::read(other.join("replaced")).unwrap(), b"new");
    for brick in ["gfs01", "gfs02"] {
        let brick = cluster.brick(brick);
        wait_until(WITHIN, "what the client had open is freed", || {
            nameless(&brick).is_empty()
        });
    }
    let clients = cluster.mortar("gfs01", "volume status v01 clients").ok();
    assert!(clients.contains(&format!(":{} ", other.pid())), "{clients}");
    assert!(!clients.contains(&format!(":{victim_pid} ")), "{clients}");
    drop(held);
    victim.kill();
    cluster.assert_healed_and_equal();
    other.unmount();
    cluster.assert_logs_clean(&[]);
}

/// The primary is killed with the client: its successor has the session, its opens and its locks
/// from the backup's memory, and ends them.
#[test]
fn a_client_and_the_primary_die_together() {
    let cluster = Cluster::two_hosts();
    let victim = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let other = cluster.mount("client", "gfs02,gfs01:/v01", "");
    let held = hold(&victim);
    assert_refused(&other);
    let lost = cluster.primary(VOLUME).name.clone();
    let survivor = cluster.backup(VOLUME).name.clone();
    cluster.host(&lost).kill_brickd();
    victim.kill_client();
    let took = wait_for_locks(&other, Instant::now());
    report::say(&format!("… with the primary: after {took:?}"));
    assert!(
        took.iter().all(|took| *took < LOCKS_GONE_WITHIN),
        "{took:?}"
    );
    let brick = cluster.brick(&survivor);
    wait_until(WITHIN, "what the client had open is freed", || {
        nameless(&brick).is_empty()
    });
    drop(held);
    victim.kill();
    cluster.host(&lost).start_brickd();
    cluster.assert_healed_and_equal();
    let brick = cluster.brick(&lost);
    wait_until(WITHIN, "and on the healed copy", || {
        nameless(&brick).is_empty()
    });
    other.unmount();
    cluster.assert_logs_clean(&[]);
}

#[test]
fn a_volume_is_mounted_over_a_dead_mount_of_it() {
    let cluster = Cluster::two_hosts();
    let host = cluster.host("client");
    let dead = cluster.mount("client", "gfs01:/v01", "");
    let path = dead.join("log");
    let mut log = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .unwrap();
    let mut writes = 0;
    let pid = dead.pid();
    let kill = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    });
    while log.write_all(RECORD).is_ok() {
        writes += 1;
    }
    kill.join().unwrap();
    wait_until(WITHIN, "the client has ended", || dead.find_pid().is_none());
    assert!(writes > 0);
    // Who asks while it ends hears ECONNABORTED.
    wait_until(WITHIN, "the mount is dead", || {
        let gone = fs::metadata(dead.path()).unwrap_err();
        Errno::from_io_error(&gone) == Some(Errno::NOTCONN)
    });

    // As root does it: the same command again. The old descriptors are still open.
    let log_file = host.dir.join("log/again.log");
    let mut mount = host.command(tests::cluster::program("mount-mortar"));
    mount.arg("gfs01:/v01").arg(dead.path());
    mount.args(["-o", &format!("log-file={}", log_file.display())]);
    run(mount, WITHIN).ok();
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let at_place = |line: &&str| line.split(' ').nth(1) == dead.path().to_str();
    assert_eq!(mounts.lines().filter(at_place).count(), 1, "{mounts}");
    let text = fs::read(&path).unwrap();
    // One record more may have been on its way.
    assert!(
        [writes, writes + 1].contains(&(text.len() / RECORD.len())),
        "{}",
        text.len()
    );
    assert!(text.chunks(RECORD.len()).all(|record| record == RECORD));
    drop(log);

    // A mount that lives is not touched by a second one at its place.
    let lives = dead.pid();
    let mut mount = host.command(tests::cluster::program("mount-mortar"));
    mount.arg("gfs01:/v01").arg(dead.path());
    mount.args(["-o", &format!("log-file={}", log_file.display())]);
    run(mount, WITHIN).ok();
    let mut umount = Command::new("umount");
    umount.arg(dead.path());
    run(umount, WITHIN).ok();
    assert!(host.processes().contains(&lives));
    dead.unmount();
    cluster.assert_healed_and_equal();
    cluster.assert_logs_clean(&[]);
}
