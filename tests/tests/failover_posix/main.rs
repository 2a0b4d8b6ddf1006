//! What programs hold open goes on over the loss and the return of either brick: descriptors,
//! locks, directory streams, files without a name, mappings, temporary files. Nobody sees an
//! error, what was there is there, and locks keep another mount out from the first to the last.

mod held;
mod workers;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FlockOperation, RawDir, SeekFrom, flock, linkat};
use rustix::io::Errno;
use tests::cluster::{Cluster, VOLUME, wait_until};
use tests::locks;
use tests::mapping::{Access, Mapping};

use held::Held;
use workers::Workers;

const WITHIN: Duration = Duration::from_secs(60);

/// Which copy is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Copy {
    Primary,
    Backup,
}

/// With two copies each of them is lost as each.
const ROUNDS: [Copy; 4] = [Copy::Backup, Copy::Primary, Copy::Backup, Copy::Primary];

/// Each copy is lost once as the primary and once as the backup, and what is opened while one is
/// away must have come to it by the time it is the only one.
#[test]
fn everything_open_goes_on_over_the_loss_and_return_of_either_brick() {
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let other = cluster.mount("client", "gfs02,gfs01:/v01", "");
    let (here, there) = (mount.path(), other.path());
    let workers = Workers::start([here, there]);
    let mut held = vec![Held::open(here, "before")];
    let go_on = |held: &mut Vec<Held>| {
        workers.wait_for_progress();
        for one in held.iter_mut() {
            one.go_on();
            one.assert_locked(there);
        }
    };
    go_on(&mut held);
    let waiter = waits_for_flock(&there.join("before/flocked"));
    let mut lost = Vec::new();
    for (round, copy) in ROUNDS.into_iter().enumerate() {
        let host = match copy {
            Copy::Primary => cluster.primary(VOLUME),
            Copy::Backup => cluster.backup(VOLUME),
        };
        host.kill_brickd();
        lost.push((copy, host.name.as_str()));
        go_on(&mut held);
        held.push(Held::open(here, &format!("without-{round}")));
        go_on(&mut held);
        host.start_brickd();
        // Also while it is healed.
        go_on(&mut held);
        cluster.wait_healed(VOLUME);
        go_on(&mut held);
    }
    for copy in [Copy::Backup, Copy::Primary] {
        for name in ["gfs01", "gfs02"] {
            assert!(lost.contains(&(copy, name)), "{name} was no {copy:?}");
        }
    }
    assert!(!waiter.is_finished(), "the flock was given twice");
    for one in held {
        one.end(there);
    }
    waiter.join().unwrap();
    workers.end(there);
    mount.unmount();
    other.unmount();
    cluster.assert_healed_and_equal();
    cluster.assert_logs_clean(&[]);
}

/// Somebody who waits for a flock, and gives it back at once.
fn waits_for_flock(path: &Path) -> JoinHandle<()> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    std::thread::spawn(move || flock(&file, FlockOperation::LockExclusive).unwrap())
}
