//! Two mounts of one volume: what one does the other sees, and locks hold between them. The rules
//! are those of ARCHITECTURE.md, "Caches of the client".

mod at_once;
mod counters;
mod kinds;
mod listings;
mod races;
mod within_a_second;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use tests::cluster::{Cluster, Mount, wait_until};

/// What close-to-open and timeouts of 1 s allow another mount to be behind, with room.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

/// A volume mounted twice.
struct Pair {
    cluster: Cluster,
    one: Mount,
    two: Mount,
}

impl Pair {
    fn new() -> Self {
        let cluster = Cluster::two_hosts();
        let one = cluster.mount("client", "gfs01:/v01", "");
        let two = cluster.mount("client", "gfs02:/v01", "");
        Pair { cluster, one, two }
    }

    fn paths(&self, name: impl AsRef<Path>) -> [PathBuf; 2] {
        [self.one.join(&name), self.two.join(&name)]
    }

    #[track_caller]
    fn end(self) {
        self.cluster.assert_healed_and_equal();
        self.one.unmount();
        self.two.unmount();
        self.cluster.assert_logs_clean(&[]);
    }
}

/// A way to lock a whole file.
type LockWay = fn(&File, FlockOperation) -> rustix::io::Result<()>;

const BY_FLOCK: LockWay = |file, how| flock(file, how);
const BY_FCNTL: LockWay = |file, how| fcntl_lock(file, how);

#[test]
fn two_mounts_see_each_others_changes() {
    let cluster = Cluster::two_hosts();
    let (one, two) = (
        cluster.mount("client", "gfs01:/v01", ""),
        cluster.mount("client", "gfs02:/v01", ""),
    );
    fs::write(one.join("a"), "from one").unwrap();
    assert_eq!(fs::read_to_string(two.join("a")).unwrap(), "from one");
    fs::write(two.join("a"), "from two, longer").unwrap();
    assert_eq!(
        fs::read_to_string(one.join("a")).unwrap(),
        "from two, longer"
    );
    fs::create_dir(one.join("d")).unwrap();
    fs::rename(one.join("a"), one.join("d/b")).unwrap();
    wait_until(SEEN_WITHIN, "the other mount sees the rename", || {
        two.join("d/b").exists() && !two.join("a").exists()
    });
    fs::remove_file(two.join("d/b")).unwrap();
    wait_until(SEEN_WITHIN, "the other mount sees the unlink", || {
        !one.join("d/b").exists()
    });
}

/// Close-to-open: what was written and closed is read whole by whoever opens afterwards, also when
/// its kernel knows the size of a moment ago.
#[test]
fn an_open_reads_all_that_the_other_mount_closed_before() {
    const ROUNDS: usize = 100;
    let cluster = Cluster::two_hosts();
    let mounts = [
        cluster.mount("client", "gfs01:/v01", ""),
        cluster.mount("client", "gfs02:/v01", ""),
    ];
    let paths = mounts.each_ref().map(|mount| mount.join("log"));
    fs::write(&paths[0], "").unwrap();
    let mut whole = String::new();
    for round in 0..ROUNDS {
        let (writer, reader) = (&paths[round % 2], &paths[(round + 1) % 2]);
        // The reader's kernel learns the size as it is before the change.
        assert_eq!(
            fs::metadata(reader).unwrap().len(),
            whole.len() as u64,
            "round {round}"
        );
        let line = format!("line {round}\n");
        if round % 3 == 2 {
            whole = line;
            fs::write(writer, &whole).unwrap();
        } else {
            let mut file = File::options().append(true).open(writer).unwrap();
            file.write_all(line.as_bytes()).unwrap();
            whole += &line;
        }
        assert_eq!(fs::read_to_string(reader).unwrap(), whole, "round {round}");
    }
}

/// A file whose name is gone is not opened by it, however fresh the name is in another kernel's
/// cache and whoever has the file open: a rollback journal that was removed must not be played back.
#[test]
fn a_name_that_the_other_mount_removed_is_not_opened() {
    const ROUNDS: usize = 20;
    let cluster = Cluster::two_hosts();
    let (one, two) = (
        cluster.mount("client", "gfs01:/v01", ""),
        cluster.mount("client", "gfs02:/v01", ""),
    );
    for round in 0..ROUNDS {
        let name = format!("journal-{round}");
        fs::write(one.join(&name), "old").unwrap();
        let here = File::open(one.join(&name)).unwrap();
        let there = (round % 2 == 1).then(|| File::open(two.join(&name)).unwrap());
        assert_eq!(fs::metadata(two.join(&name)).unwrap().len(), 3);
        if round % 4 < 2 {
            fs::remove_file(one.join(&name)).unwrap();
            let error = File::open(two.join(&name)).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "round {round}");
        } else {
            fs::write(one.join("new"), "new").unwrap();
            fs::rename(one.join("new"), one.join(&name)).unwrap();
            assert_eq!(fs::read_to_string(two.join(&name)).unwrap(), "new");
        }
        let mut text = String::new();
        // Who has it open goes on, and may open it again where the name was removed.
        let again = format!("/proc/self/fd/{}", here.as_raw_fd());
        (&here).read_to_string(&mut text).unwrap();
        assert_eq!(text, "old");
        assert_eq!(fs::read_to_string(again).unwrap(), "old");
        if let Some(mut there) = there {
            text.clear();
            there.read_to_string(&mut text).unwrap();
            assert_eq!(text, "old");
        }
    }
}

#[test]
fn locks_hold_between_mounts() {
    let cluster = Cluster::two_hosts();
    let mounts = [
        cluster.mount("client", "gfs01:/v01", ""),
        cluster.mount("client", "gfs02:/v01", ""),
    ];
    fs::write(mounts[0].join("counter"), "0").unwrap();
    let held = File::open(mounts[0].join("counter")).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let other = File::open(mounts[1].join("counter")).unwrap();
    assert_eq!(
        flock(&other, FlockOperation::NonBlockingLockExclusive),
        Err(Errno::WOULDBLOCK)
    );
    flock(&held, FlockOperation::Unlock).unwrap();
    flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    drop((held, other));
}

/// Every brick is started anew, so that nobody knows the lock any more: a write under it that was
/// under way is not sent again, because another mount may have the lock by now.
#[test]
fn a_write_under_a_lock_that_was_lost_meanwhile_fails() {
    const WITHIN: Duration = Duration::from_secs(60);
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let path = mount.join("guarded");
    fs::write(&path, "0").unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    let peers = ["gfs01", "gfs02"].map(|host| cluster.host(host));
    peers.iter().for_each(|host| host.kill_brickd());
    let write = std::thread::spawn(move || file.write_all_at(b"1", 0));
    // Time to be sent; a write that begins later is refused in any case.
    std::thread::sleep(Duration::from_millis(300));
    peers.iter().for_each(|host| host.start_brickd());
    wait_until(WITHIN, "the write comes to its end", || write.is_finished());
    let refused = write.join().unwrap().unwrap_err();
    assert_eq!(Errno::from_io_error(&refused), Some(Errno::IO));
    assert_eq!(fs::read_to_string(&path).unwrap(), "0");
}
