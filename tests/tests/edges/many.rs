use super::*;

/// Entries of the one directory.
const ENTRIES: usize = 20_000;
const ENTRIES_FULL: usize = 200_000;
/// What a process may take for so many, beyond what it takes anyway, KiB.
const CLIENT_KIB_MAX: u64 = 128 << 10;
const BRICKD_KIB_MAX: u64 = 256 << 10;

/// The most memory a process has had, KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let peak = line.and_then(|line| line.split_whitespace().nth(1));
    peak.unwrap().parse().unwrap()
}

fn names_of(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    let took = began.elapsed();
    report::say(&format!("{what}: {took:.1?}"));
    done
}

#[test]
fn a_directory_of_very_many_entries() {
    let count = scale::pick(ENTRIES, ENTRIES_FULL);
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let processes = || {
        [
            ("client", mount.pid(), CLIENT_KIB_MAX),
            (
                "gfs01",
                cluster.host("gfs01").brickd_pid().unwrap(),
                BRICKD_KIB_MAX,
            ),
            (
                "gfs02",
                cluster.host("gfs02").brickd_pid().unwrap(),
                BRICKD_KIB_MAX,
            ),
        ]
    };
    let before = processes().map(|(_, pid, _)| peak_kib(pid));
    let folder = mount.join("many");
    fs::create_dir(&folder).unwrap();
    let expected: Vec<String> = (0..count).map(|number| format!("{number:06}")).collect();
    timed(&format!("{count} entries made"), || {
        for name in &expected {
            File::create_new(folder.join(name)).unwrap();
        }
    });
    let listed = timed("listed", || names_of(&folder));
    assert!(listed == expected);
    let other = cluster.mount("client", "gfs02,gfs01:/v01", "");
    let entries = timed("listed with attributes on another mount", || {
        let entries = fs::read_dir(other.join("many")).unwrap();
        let files = entries.map(|entry| entry.unwrap().metadata().unwrap());
        files.filter(fs::Metadata::is_file).count()
    });
    assert_eq!(entries, count);
    timed("removed while it is listed elsewhere", || {
        let mut listing = fs::read_dir(other.join("many")).unwrap();
        listing.next().unwrap().unwrap();
        fs::remove_dir_all(&folder).unwrap();
        // The listing ends without an error, as readdir(3) has it of a directory that is gone.
        assert!(listing.all(|entry| entry.is_ok()));
    });
    assert!(!folder.exists());
    for ((who, pid, limit), before) in processes().into_iter().zip(before) {
        let grown = peak_kib(pid).saturating_sub(before);
        report::say(&format!(
            "{who}: {} MiB at most, {} MiB of them for it",
            peak_kib(pid) >> 10,
            grown >> 10
        ));
        assert!(grown <= limit, "{who} took {grown} KiB");
    }
    other.unmount();
    mount.unmount();
    cluster.assert_healed_and_equal();
    cluster.assert_logs_clean(&[]);
}
