//! pjdfstest, the suite of POSIX calls and their errors, on a mounted volume: as root, which
//! becomes other users where a case wants it. Every case passes, with all bricks up, with one
//! down, and while they come back and are healed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tests::cluster::{Cluster, Mount, Ran, Running, VOLUME, program};
use tests::report::say;
use tests::tools::installed;

const VERSION: &str = "0.2.2";
const WITHIN: Duration = Duration::from_secs(240);
/// Between two looks whether the suite has ended.
const POLL: Duration = Duration::from_millis(20);
/// The case the suite passes over on every FUSE mount: pathconf(2) of the C library knows no limit
/// of links there.
const PASSED_OVER: &str = "link::link_count_max";
/// Cases of this version that run on Linux with the features of [`configuration`].
const CASES: usize = 397;
/// Cases with this in their name remount the file system read-only. They run in a process of their
/// own: others leave unlinked files open, with which no file system can be remounted so.
const REMOUNTING: &str = "::erofs_";
/// Files that are made in each absence of a brick, so that there is something to heal.
const FILES_AWAY: usize = 150;

/// The two parts of the suite.
#[derive(Clone, Copy)]
enum Part {
    Remounting,
    Rest,
}

/// All features that ext4 has. Any two users will do; every Debian has these.
fn configuration(part: Part) -> String {
    let allow_remount = matches!(part, Part::Remounting);
    format!(
        r#"
[features]
posix_fallocate = {{}}
rename_ctime = {{}}
utime_now = {{}}
utimensat = {{}}

[settings]
naptime = 0.01
allow_remount = {allow_remount}

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#
    )
}

/// A volume's mount, and the suite as it is to be run on it.
struct Suite {
    cluster: Cluster,
    mount: Mount,
    program: PathBuf,
    folder: PathBuf,
}

impl Suite {
    fn new() -> Self {
        let installed = installed("pjdfstest", VERSION);
        let cluster = Cluster::two_hosts();
        let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
        let folder = cluster.folder("suite");
        // The suite remounts with mount(8), which needs Mortar's helper for that.
        let sbin = folder.join("sbin");
        fs::create_dir_all(&sbin).unwrap();
        fs::copy(program("mount-mortar"), sbin.join("mount.mortar")).unwrap();
        symlink("mount.mortar", sbin.join("mount.fuse.mortar")).unwrap();
        Suite {
            cluster,
            mount,
            program: installed,
            folder,
        }
    }

    fn start(&self, part: Part) -> Running {
        let file = self.folder.join("pjdfstest.toml");
        fs::write(&file, configuration(part)).unwrap();
        let script = format!(
            "at=$(readlink -f /sbin) && \
             mount --make-private \"$(findmnt -no TARGET --target $at)\" && \
             mount --bind '{}' $at && exec \"$@\"",
            self.folder.join("sbin").display()
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "unchanged", "/bin/sh", "-c"])
            .args([script.as_str(), "suite"])
            .arg(&self.program)
            .arg("--configuration-file")
            .arg(file)
            .arg("--path")
            .arg(self.mount.path())
            .arg("--secondary-fs")
            .arg(self.cluster.folder("another-file-system"))
            .env("NO_COLOR", "1");
        if let Part::Remounting = part {
            command.arg(REMOUNTING);
        }
        Running::start(command)
    }

    /// Runs both parts, with `meanwhile` again and again, which is told when the suite has ended.
    /// Asserts that every case passed.
    #[track_caller]
    fn run(&self, when: &str, mut meanwhile: impl FnMut(&mut Running)) {
        let mut outcomes = Outcomes::default();
        for part in [Part::Remounting, Part::Rest] {
            let (mut running, start) = (self.start(part), Instant::now());
            while running.is_running() && start.elapsed() < WITHIN {
                meanwhile(&mut running);
                std::thread::sleep(POLL);
            }
            outcomes.read(&running.finish(WITHIN), when);
        }
        let left: Vec<_> = outcomes.skipped.difference(&outcomes.passed).collect();
        say(&format!(
            "pjdfstest {VERSION} {when}: {} passed, 0 failed, {} passed over, in {:.1} s",
            outcomes.passed.len(),
            left.len(),
            outcomes.took.as_secs_f64()
        ));
        assert_eq!(left, [PASSED_OVER], "{when}");
        assert_eq!(outcomes.passed.len(), CASES, "{when}");
    }

    /// Asserts that both copies are equal in the end.
    #[track_caller]
    fn end(self) {
        self.cluster.assert_healed_and_equal();
        self.mount.unmount();
        self.cluster.assert_logs_clean(&[]);
    }
}

/// What became of the cases.
#[derive(Default)]
struct Outcomes {
    passed: BTreeSet<String>,
    skipped: BTreeSet<String>,
    took: Duration,
}

impl Outcomes {
    /// Takes in what one run of the suite said; it must have failed nowhere.
    #[track_caller]
    fn read(&mut self, ran: &Ran, when: &str) {
        let of = |outcome: &str| -> BTreeSet<String> {
            let lines = ran.stdout.lines().filter(|line| line.ends_with(outcome));
            let names = lines.filter_map(|line| line.split_whitespace().next());
            names.map(str::to_owned).collect()
        };
        let failed = of(" FAILED");
        assert!(failed.is_empty(), "{when}: {failed:?} failed: {ran}");
        assert!(ran.status.success(), "{when}: {ran}");
        self.passed.extend(of(" ok"));
        self.skipped.extend(of(" skipped"));
        self.took += ran.took;
    }
}

#[test]
fn every_case_passes_with_all_bricks_up() {
    let suite = Suite::new();
    suite.run("with all bricks up", |_| {});
    suite.end();
}

#[test]
fn every_case_passes_with_one_brick_down() {
    let suite = Suite::new();
    let victim = suite.cluster.primary(VOLUME);
    victim.kill_brickd();
    suite.run("with one brick down", |_| {});
    victim.start_brickd();
    suite.end();
}

/// Each brick in turn is killed, misses changes, returns and is healed, again and again until the
/// suite has ended.
#[test]
fn every_case_passes_while_bricks_are_healed() {
    let suite = Suite::new();
    let cluster = &suite.cluster;
    // The suite makes its own mount read-only now and then.
    let other = cluster.mount("client", "gfs02,gfs01:/v01", "");
    let mut victims = ["gfs01", "gfs02"].into_iter().cycle();
    let (mut begun, mut healed) = (0, 0);
    suite.run("through losses and heals of bricks", |running| {
        let victim = cluster.host(victims.next().expect("without end"));
        victim.kill_brickd();
        let folder = other.join(format!("missed-{begun}"));
        begun += 1;
        fs::create_dir(&folder).unwrap();
        for number in 0..FILES_AWAY {
            fs::write(folder.join(number.to_string()), vec![1; 1 << 14]).unwrap();
        }
        victim.start_brickd();
        cluster.wait_in_sync(VOLUME);
        healed += usize::from(running.is_running());
    });
    assert!(healed >= 2, "{healed} heals ended meanwhile, of {begun}");
    say(&format!("pjdfstest: {healed} heals ended meanwhile"));
    other.unmount();
    suite.end();
}
