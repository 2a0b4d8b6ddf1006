//! Real work through the loss of a brick: killed in the middle, started again, both copies equal.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::cluster::{Cluster, Mount, Ran, Running, wait_until};
use crate::scale;

/// How long the brick stays away.
const AWAY: Duration = Duration::from_secs(2);
const MIDDLE_WITHIN: Duration = Duration::from_secs(120);
const WITHIN: Duration = Duration::from_secs(240);
const WITHIN_FULL: Duration = Duration::from_secs(40 * 60);

/// How long one program may take.
pub fn within() -> Duration {
    scale::pick(WITHIN, WITHIN_FULL)
}

/// A started volume of two copies, mounted.
#[track_caller]
pub fn mounted() -> (Cluster, Mount) {
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    (cluster, mount)
}

/// Everything is healed, both bricks are equal, nothing is left in the logs.
#[track_caller]
pub fn end(cluster: &Cluster, mount: Mount) {
    cluster.assert_healed_and_equal();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

/// Runs `command`; when `middle` holds, kills brickd on `victim`, starts it again two seconds
/// later, and waits for the command's end.
///
/// # Panics
/// When the command ends before its middle (then nothing would be tested), does not end `within`
/// the time, or fails.
#[track_caller]
pub fn through_an_outage(
    cluster: &Cluster,
    victim: &str,
    command: Command,
    within: Duration,
    mut middle: impl FnMut() -> bool,
) -> Ran {
    let mut work = Running::start(command);
    wait_until(MIDDLE_WITHIN, "the work is half done", || {
        middle() || !work.is_running()
    });
    if !work.is_running() {
        panic!(
            "the work ended before the brick was killed: {}",
            work.finish(within)
        );
    }
    let host = cluster.host(victim);
    host.kill_brickd();
    std::thread::sleep(AWAY);
    host.start_brickd();
    let ran = work.finish(within);
    assert!(
        ran.status.success(),
        "with {victim} away for {AWAY:?}: {ran}"
    );
    ran
}

/// How many files lie below a folder of a brick, `.mortar` left out; 0 when it is not there.
pub fn files_below(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name() != ".mortar")
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_below(&entry.path()),
            Ok(_) => 1,
            Err(_) => 0,
        })
        .sum()
}

/// Bytes of a file, 0 when it is not there.
pub fn size_of(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |meta| meta.len())
}
