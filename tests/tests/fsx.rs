//! fsx, which does random reads, writes, maps, truncations, holes and copies on one file and knows
//! what every byte must be: on one mount, through two mounts in turns, and while bricks are killed
//! and healed.
//!
//! In CI each test goes on for a while with short runs; `MORTAR_TEST_SCALE=full` makes ten runs of
//! a million operations of each. A failure names the seed, with which fsx does the same again.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tests::cluster::{Cluster, Mount, Running, VOLUME};
use tests::report::say;
use tests::scale;
use tests::tools::installed;

const VERSION: &str = "0.3.2";
/// How long a test begins new runs in CI, and operations of one run.
const GOES_ON: Duration = Duration::from_secs(12);
const OPERATIONS: u64 = 500;
/// Heals that end while fsx runs at least, and how long a killed brick is away before each.
const HEALS: usize = 4;
const AWAY: Duration = Duration::from_millis(300);
const RUNS_FULL: u64 = 10;
const OPERATIONS_FULL: u64 = 1_000_000;
const WITHIN: Duration = Duration::from_secs(240);
const WITHIN_FULL: Duration = Duration::from_secs(55 * 60);
/// Between two looks whether a run has ended.
const POLL: Duration = Duration::from_millis(5);

/// How often fsx closes its file and opens it again.
#[derive(Clone, Copy)]
enum Closes {
    Sometimes,
    Often,
}

/// Everything fsx can do on Linux. With an even seed each write to a map is synced at once, with
/// an odd one it stays in the page cache until the kernel writes it.
fn configuration(seed: u64, closes: Closes) -> String {
    let close_open = match closes {
        Closes::Sometimes => 2,
        Closes::Often => 15,
    };
    format!(
        "nomsyncafterwrite = {}
[weights]
close_open = {close_open}
copy_file_range = 6
fdatasync = 0.3
fsync = 0.3
invalidate = 1
mapread = 10
mapwrite = 10
posix_fadvise = 2
posix_fallocate = 4
punch_hole = 6
read = 10
sendfile = 5
truncate = 5
write = 10
",
        seed % 2 == 1
    )
}

/// fsx, ready to run on a volume.
struct Fsx {
    program: PathBuf,
    folder: PathBuf,
    closes: Closes,
    operations: u64,
    heading: &'static str,
}

impl Fsx {
    fn new(cluster: &Cluster, heading: &'static str, closes: Closes) -> Self {
        Fsx {
            program: installed("fsx", VERSION),
            folder: cluster.folder("fsx"),
            closes,
            operations: scale::pick(OPERATIONS, OPERATIONS_FULL),
            heading,
        }
    }

    fn start(&self, seed: u64, file: &Path) -> Running {
        let configuration_file = self.folder.join("fsx.toml");
        fs::write(&configuration_file, configuration(seed, self.closes)).unwrap();
        let mut command = Command::new(&self.program);
        command
            .args(["-N", &self.operations.to_string()])
            .args(["-S", &seed.to_string()])
            .arg("-f")
            .arg(configuration_file)
            .arg("-P")
            .arg(&self.folder)
            .arg(file);
        Running::start(command)
    }

    /// Runs it with one seed after the other, each on a file of its own that `file` makes the path
    /// for, and with `meanwhile` again and again, until it is `enough`. Every byte must be what fsx
    /// expects.
    #[track_caller]
    fn run(
        &self,
        file: impl Fn(u64) -> PathBuf,
        mut meanwhile: impl FnMut(),
        enough: impl Fn() -> bool,
    ) {
        let start = Instant::now();
        let within = scale::pick(WITHIN, WITHIN_FULL);
        let mut runs = 0;
        while match scale::is_full() {
            true => runs < RUNS_FULL,
            false => start.elapsed() < GOES_ON || runs < 2 || !enough(),
        } {
            runs += 1;
            let (mut running, begun) = (self.start(runs, &file(runs)), Instant::now());
            while running.is_running() && begun.elapsed() < within {
                meanwhile();
                std::thread::sleep(POLL);
            }
            let ran = running.finish(within);
            assert!(ran.status.success(), "{}, seed {runs}: {ran}", self.heading);
        }
        say(&format!(
            "fsx {VERSION} {}: {runs} runs of {} operations in {:.0} s",
            self.heading,
            self.operations,
            start.elapsed().as_secs_f64()
        ));
    }
}

#[track_caller]
fn end(cluster: &Cluster, mounts: impl IntoIterator<Item = Mount>) {
    cluster.assert_healed_and_equal();
    mounts.into_iter().for_each(Mount::unmount);
    cluster.assert_logs_clean(&[]);
}

#[test]
fn every_byte_is_right_on_one_mount() {
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let fsx = Fsx::new(&cluster, "on one mount", Closes::Sometimes);
    fsx.run(|run| mount.join(format!("file-{run}")), || {}, || true);
    end(&cluster, [mount]);
}

/// fsx opens its file by a link that leads now into one mount, now into the other: what it does
/// between an open and a close it does through one of them.
#[test]
fn every_byte_is_right_through_two_mounts_in_turns() {
    let cluster = Cluster::two_hosts();
    let mounts = [
        cluster.mount("client", "gfs01,gfs02:/v01", ""),
        cluster.mount("client", "gfs02,gfs01:/v01", ""),
    ];
    let fsx = Fsx::new(&cluster, "through two mounts in turns", Closes::Often);
    let (link, next) = (fsx.folder.join("volume"), fsx.folder.join("next"));
    let mut turns = mounts.iter().cycle();
    let mut turn = || {
        let mount = turns.next().expect("without end");
        symlink(mount.path(), &next).unwrap();
        fs::rename(&next, &link).unwrap();
    };
    turn();
    let mut turned = 0;
    fsx.run(
        |run| link.join(format!("file-{run}")),
        || {
            turn();
            turned += 1;
        },
        || true,
    );
    assert!(turned > 10, "only {turned} turns were taken");
    end(&cluster, mounts);
}

#[test]
fn every_byte_is_right_while_bricks_are_killed_and_healed() {
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let fsx = Fsx::new(&cluster, "while bricks are killed", Closes::Sometimes);
    let healed = AtomicUsize::new(0);
    let enough = || healed.load(Ordering::Relaxed) >= HEALS;
    std::thread::scope(|scope| {
        let runs = scope.spawn(|| fsx.run(|run| mount.join(format!("file-{run}")), || {}, enough));
        for victim in ["gfs01", "gfs02"].into_iter().cycle() {
            let victim = cluster.host(victim);
            victim.kill_brickd();
            std::thread::sleep(AWAY);
            victim.start_brickd();
            cluster.wait_in_sync(VOLUME);
            if runs.is_finished() {
                break;
            }
            healed.fetch_add(1, Ordering::Relaxed);
        }
    });
    say(&format!(
        "fsx: {} heals ended meanwhile",
        healed.into_inner()
    ));
    end(&cluster, [mount]);
}
