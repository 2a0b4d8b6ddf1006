//! What only a loop that passes on everything the kernel says can give: locks of both kinds that do
//! not meet, waiters that end when they are told to, times of any value.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Timespec, Timestamps, flock, utimensat};
use rustix::io::Errno;
use tests::cluster::{Cluster, wait_until};
use tests::locks;
use tests::users::User;

const PATIENCE: Duration = Duration::from_secs(30);
/// A waiter that is told to end does so within 0.1 s, and on a loaded machine within this.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A lock on `len` bytes from the first.
fn lock(file: &File, command: i32, kind: i32, len: i64) -> Result<libc::flock, Errno> {
    locks::range(file, command, kind, 0, len)
}

fn open(path: impl AsRef<Path>) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// A process that waits for a lock, and says on its standard output when it has it.
fn waiter(path: &Path, wait: &str) -> Child {
    let script = "\
import fcntl, os, signal, sys
class Signalled(Exception): pass
def signalled(*_): raise Signalled
signal.signal(signal.SIGUSR1, signalled)
f = open(sys.argv[1], 'r+')
try:
    {'flock': fcntl.flock, 'fcntl': fcntl.lockf}[sys.argv[2]](f, fcntl.LOCK_EX)
except Signalled:
    sys.exit(42)
sys.exit(0)
";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(path).arg(wait);
    command.stdout(Stdio::null()).spawn().unwrap()
}

/// Whether the process is inside a request to the mount.
fn is_waiting(child: &Child) -> bool {
    let wchan = format!("/proc/{}/syscall", child.id());
    fs::read_to_string(wchan).is_ok_and(|line| {
        let call = line.split(' ').next().and_then(|n| n.parse::<i64>().ok());
        call == Some(libc::SYS_flock) || call == Some(libc::SYS_fcntl)
    })
}

#[test]
fn locks_are_of_two_kinds_and_waiters_end_when_they_are_told_to() {
    let cluster = Cluster::two_hosts();
    let mounts = [
        cluster.mount("client", "gfs01:/v01", ""),
        cluster.mount("client", "gfs02:/v01", ""),
    ];
    let path = mounts[0].join("f");
    fs::write(&path, "content").unwrap();

    // One process takes both kinds on one file, through one descriptor and through two.
    let (one, two) = (open(&path), open(&path));
    flock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
    lock(&one, libc::F_SETLK, libc::F_WRLCK, 0).unwrap();
    lock(&two, libc::F_SETLK, libc::F_WRLCK, 0).unwrap();
    let refused = flock(&two, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(refused, Err(Errno::WOULDBLOCK));
    // Each keeps the other mount from its own kind, and goes alone.
    let far = open(mounts[1].join("f"));
    assert_eq!(
        flock(&far, FlockOperation::NonBlockingLockShared),
        Err(Errno::WOULDBLOCK)
    );
    lock(&one, libc::F_SETLK, libc::F_UNLCK, 0).unwrap();
    lock(&far, libc::F_SETLK, libc::F_WRLCK, 0).unwrap();
    assert_eq!(
        flock(&far, FlockOperation::NonBlockingLockShared),
        Err(Errno::WOULDBLOCK)
    );
    flock(&one, FlockOperation::Unlock).unwrap();
    flock(&far, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(
        lock(&one, libc::F_SETLK, libc::F_WRLCK, 0).unwrap_err(),
        Errno::AGAIN
    );
    drop((one, two, far));

    // A lock of an open file description stays when another descriptor is closed, and goes with
    // its own.
    let (holder, other) = (open(&path), open(&path));
    lock(&holder, libc::F_OFD_SETLK, libc::F_WRLCK, 10).unwrap();
    assert_eq!(
        lock(&other, libc::F_OFD_SETLK, libc::F_WRLCK, 10).unwrap_err(),
        Errno::AGAIN
    );
    drop(other);
    let far = open(mounts[1].join("f"));
    let seen = lock(&far, libc::F_OFD_GETLK, libc::F_RDLCK, 5).unwrap();
    assert_eq!(i32::from(seen.l_type), libc::F_WRLCK);
    let duplicate = holder.try_clone().unwrap();
    drop(holder);
    assert!(lock(&far, libc::F_OFD_SETLK, libc::F_WRLCK, 10).is_err());
    drop(duplicate);
    wait_until(PATIENCE, "the lock goes with its description", || {
        lock(&far, libc::F_OFD_SETLK, libc::F_WRLCK, 10).is_ok()
    });
    drop(far);

    waiters_end(&mounts[0].join("f"), &mounts[1].join("f"));
    circles_are_refused(&mounts[0].join(""), &mounts[1].join(""));
    cluster.assert_healed_and_equal();
    let [one, two] = mounts;
    one.unmount();
    two.unmount();
    cluster.assert_logs_clean(&[]);
}

/// Waiters that are killed, that get a signal, and that give up by themselves end at once, and what
/// they waited for is not theirs.
fn waiters_end(near: &Path, far: &Path) {
    let holder = open(near);
    for how in ["flock", "fcntl"] {
        let take = |file: &File, operation: FlockOperation, kind: i32| match how {
            "flock" => flock(file, operation),
            _ => lock(file, libc::F_SETLK, kind, 0).map(|_| ()),
        };
        take(
            &holder,
            FlockOperation::NonBlockingLockExclusive,
            libc::F_WRLCK,
        )
        .unwrap();
        for signal in [libc::SIGUSR1, libc::SIGKILL] {
            let mut child = waiter(far, how);
            wait_until(PATIENCE, "the waiter waits", || is_waiting(&child));
            let began = Instant::now();
            // SAFETY: kill(2) of a child that has not been waited for.
            assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
            let status = child.wait().unwrap();
            let took = began.elapsed();
            assert!(took < AT_ONCE, "{how}, signal {signal}: {took:?}");
            match signal {
                libc::SIGKILL => assert_eq!(status.code(), None),
                _ => assert_eq!(status.code(), Some(42), "{how} was not interrupted"),
            }
        }
        take(&holder, FlockOperation::Unlock, libc::F_UNLCK).unwrap();
        // Nobody who ended has it: it is free at once.
        let next = open(far);
        let free = take(
            &next,
            FlockOperation::NonBlockingLockExclusive,
            libc::F_WRLCK,
        );
        assert_eq!(free, Ok(()), "{how}: a waiter that ended holds the lock");
    }
    flock(&holder, FlockOperation::LockExclusive).unwrap();
    let began = Instant::now();
    let status = Command::new("flock")
        .args(["-w", "1"])
        .arg(far)
        .arg("true")
        .status();
    assert_eq!(status.unwrap().code(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(1) + AT_ONCE);
    drop(holder);
}

/// Two that wait for each other: the one that closes the circle gets EDEADLK, the other the lock.
fn circles_are_refused(near: &Path, far: &Path) {
    fs::write(near.join("first"), "").unwrap();
    fs::write(near.join("second"), "").unwrap();
    let wait = |file: &File| lock(file, libc::F_SETLKW, libc::F_WRLCK, 0).map(|_| ());
    let near_files = (open(near.join("first")), open(near.join("second")));
    let far_files = (open(far.join("first")), open(far.join("second")));
    wait(&near_files.0).unwrap();
    wait(&far_files.1).unwrap();
    std::thread::scope(|scope| {
        let near_waits = scope.spawn(|| {
            let outcome = wait(&near_files.1);
            lock(&near_files.0, libc::F_SETLK, libc::F_UNLCK, 0).unwrap();
            outcome
        });
        let far_waits = scope.spawn(|| {
            let outcome = wait(&far_files.0);
            lock(&far_files.1, libc::F_SETLK, libc::F_UNLCK, 0).unwrap();
            outcome
        });
        let outcomes = [near_waits.join().unwrap(), far_waits.join().unwrap()];
        let refused = outcomes.iter().filter(|it| **it == Err(Errno::DEADLK));
        let granted = outcomes.iter().filter(|it| it.is_ok());
        assert_eq!((refused.count(), granted.count()), (1, 1), "{outcomes:?}");
    });
}

#[test]
fn no_time_that_a_user_sets_ends_the_mount() {
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01:/v01", "");
    let disk = cluster.folder("disk");
    let user = User::ordinary(65534, 65534);
    let seen = |folder: &Path| {
        let file = folder.join("file");
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
        user.does(|| fs::write(&file, "x")).unwrap();
        let mut seen = Vec::new();
        for secs in [
            i64::MIN,
            i64::MIN + 1,
            -2,
            -1,
            0,
            1 << 33,
            i64::MAX - 1,
            i64::MAX,
        ] {
            let time = Timespec {
                tv_sec: secs,
                tv_nsec: 1,
            };
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            // More often than the loop has threads.
            for _ in 0..20 {
                user.does(|| utimensat(CWD, &file, &times, AtFlags::empty()))
                    .unwrap();
            }
            let stat = fs::metadata(&file).unwrap();
            seen.push((secs, stat.mtime(), stat.mtime_nsec(), stat.atime()));
        }
        seen
    };
    fs::create_dir_all(mount.join("d")).unwrap();
    assert_eq!(seen(&mount.join("d")), seen(&disk));
    cluster.assert_healed_and_equal();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}
