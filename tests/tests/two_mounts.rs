//! Two mounts of one volume: what one does the other sees, and locks hold between them.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tests::cluster::{Cluster, wait_until};

/// What close-to-open and timeouts of 1 s allow another mount to be behind, with room.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

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

/// A name may be believed for a second, but who opens by it gets what it means: not a file that
/// another mount has removed or replaced and still has open. `SQLite` would play back a journal that
/// was removed with its commit.
#[test]
fn a_file_that_has_lost_its_name_is_not_opened_by_it() {
    let cluster = Cluster::two_hosts();
    let (one, two) = (
        cluster.mount("client", "gfs01:/v01", ""),
        cluster.mount("client", "gfs02:/v01", ""),
    );
    for name in ["removed", "replaced"] {
        fs::write(two.join(name), "old").unwrap();
        let held = File::open(two.join(name)).unwrap();
        // From here on the kernel believes that the name means this file.
        assert_eq!(fs::metadata(one.join(name)).unwrap().len(), 3);
        if name == "removed" {
            fs::remove_file(two.join(name)).unwrap();
            let gone = File::open(one.join(name)).map(drop).unwrap_err();
            assert_eq!(gone.kind(), std::io::ErrorKind::NotFound);
        } else {
            fs::write(two.join("new"), "new!").unwrap();
            fs::rename(two.join("new"), two.join(name)).unwrap();
            assert_eq!(fs::read_to_string(one.join(name)).unwrap(), "new!");
        }
        // Whoever has it open may open it again.
        let again = format!("/proc/self/fd/{}", held.as_raw_fd());
        assert_eq!(fs::read_to_string(again).unwrap(), "old");
    }
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

#[test]
fn locks_hold_between_mounts_and_a_locked_counter_loses_nothing() {
    const ROUNDS: usize = 200;
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

    std::thread::scope(|scope| {
        for mount in &mounts {
            scope.spawn(|| {
                let path = mount.join("counter");
                let file = File::options().read(true).write(true).open(path).unwrap();
                for _ in 0..ROUNDS {
                    flock(&file, FlockOperation::LockExclusive).unwrap();
                    let mut text = [0u8; 16];
                    let len = file.read_at(&mut text, 0).unwrap();
                    let count: usize = std::str::from_utf8(&text[..len]).unwrap().parse().unwrap();
                    file.write_all_at((count + 1).to_string().as_bytes(), 0)
                        .unwrap();
                    flock(&file, FlockOperation::Unlock).unwrap();
                }
            });
        }
    });
    let counted = fs::read_to_string(mounts[1].join("counter")).unwrap();
    assert_eq!(counted, (2 * ROUNDS).to_string(), "an increment was lost");
}
