//! What stat(2) says of a file is the same over remounts, failovers and heals, to the nanosecond,
//! so that git, backup programs and build tools read nothing again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use tests::cluster::{Cluster, VOLUME, run};
use tests::{scale, trees};

/// Nothing is believed for longer than one answer: what is compared comes from the brick.
const OPTIONS: &str = "attribute-timeout=0,entry-timeout=0";
const WITHIN: Duration = Duration::from_secs(120);

/// Everything of stat(2) that programs compare.
type Stat = [i64; 11];

fn stat(path: &Path) -> Stat {
    let meta = fs::symlink_metadata(path).unwrap();
    [
        meta.ino() as i64,
        i64::from(meta.mode()),
        meta.nlink() as i64,
        i64::from(meta.uid()),
        i64::from(meta.gid()),
        meta.size() as i64,
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
        meta.rdev() as i64,
    ]
}

/// stat(2) of everything below a folder.
fn stats(folder: &Path) -> BTreeMap<PathBuf, Stat> {
    let mut stats = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            stats.insert(entry.path(), stat(&entry.path()));
        }
    }
    stats
}

#[track_caller]
fn assert_same(now: &BTreeMap<PathBuf, Stat>, before: &BTreeMap<PathBuf, Stat>, what: &str) {
    let differs = |(path, stat): &(&PathBuf, &Stat)| before.get(*path) != Some(*stat);
    let other: Vec<_> = now.iter().filter(differs).collect();
    assert!(
        other.is_empty() && now.len() == before.len(),
        "{what}: {} of {} are not as before: {:?}, before {:?}",
        other.len(),
        before.len(),
        other.first(),
        other.first().and_then(|(path, _)| before.get(*path))
    );
}

struct Repository(PathBuf);

impl Repository {
    /// Runs git in it.
    #[track_caller]
    fn git(&self, words: &str) -> String {
        let mut git = Command::new("git");
        git.args(words.split_whitespace()).current_dir(&self.0);
        for (number, (key, value)) in [
            ("safe.directory", "*"),
            ("user.name", "test"),
            ("user.email", "test@localhost"),
            ("gc.auto", "0"),
        ]
        .into_iter()
        .enumerate()
        {
            git.env(format!("GIT_CONFIG_KEY_{number}"), key);
            git.env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        git.env("GIT_CONFIG_COUNT", "4").env_remove("GIT_DIR");
        run(git, WITHIN).ok()
    }

    /// Files whose stat(2) is not the one in the index: those that git would read again. (Unlike
    /// `git status`, this compares no contents and writes no new index.)
    fn to_be_read(&self) -> Vec<String> {
        let lines = self.git("diff-files --name-only");
        lines.lines().map(str::to_owned).collect()
    }

    /// Commits everything, as old as git needs it: a file younger than the index is always read.
    fn commit(&self, names: &[String]) {
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        for name in names {
            let file = fs::File::options().write(true).open(self.0.join(name));
            file.unwrap().set_modified(hour_ago).unwrap();
        }
        self.git("add --all");
        self.git("commit --quiet --allow-empty --message=all");
        assert_eq!(self.to_be_read(), Vec::<String>::new());
    }

    fn files(&self) -> Vec<String> {
        let lines = self.git("ls-files --others --modified --exclude-standard");
        lines.lines().map(str::to_owned).collect()
    }
}

#[test]
fn git_reads_nothing_again_after_remounts_failovers_and_heals() {
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", OPTIONS);
    let point = mount.path().to_owned();
    let tree = Repository(mount.join("tree"));
    fs::create_dir(&tree.0).unwrap();
    trees::copy_sources(&tree.0, scale::pick(300, 3_000));
    fs::hard_link(tree.0.join(first_file(&tree.0)), tree.0.join("hard-link")).unwrap();
    symlink("hard-link", tree.0.join("symlink")).unwrap();
    tree.git("init --quiet");
    let files = tree.files();
    assert!(files.len() >= 250, "{}", files.len());
    tree.commit(&files);
    let touched = tree.0.join(&files[5]);
    fs::File::open(&touched)
        .unwrap()
        .set_modified(SystemTime::now())
        .unwrap();
    assert_eq!(tree.to_be_read(), [files[5].clone()], "git does compare");
    tree.commit(&files[5..6]);
    let before = stats(&tree.0);

    mount.unmount();
    let mount = cluster.mount("client", "gfs02:/v01", OPTIONS);
    let moved = |path: &Path| mount.path().join(path.strip_prefix(&point).unwrap());
    let tree = Repository(moved(&tree.0));
    let before: BTreeMap<PathBuf, Stat> = before
        .iter()
        .map(|(path, stat)| (moved(path), *stat))
        .collect();
    assert_eq!(tree.to_be_read(), Vec::<String>::new(), "after a remount");
    assert_same(&stats(&tree.0), &before, "after a remount");

    let first = cluster.primary(VOLUME).name.clone();
    cluster.host(&first).kill_brickd();
    assert_eq!(tree.to_be_read(), Vec::<String>::new(), "after a failover");
    assert_same(&stats(&tree.0), &before, "after a failover");

    // What is written while a copy is away comes to it with its times.
    let rewritten: Vec<String> = files.iter().take(20).cloned().collect();
    for name in &rewritten[..10] {
        fs::write(tree.0.join(name), "written while a copy is away").unwrap();
    }
    for name in &rewritten[10..] {
        let (from, to) = (tree.0.join(name), tree.0.join(format!("{name}.new")));
        fs::copy(&from, &to).unwrap();
        fs::rename(to, from).unwrap();
    }
    tree.commit(&rewritten);
    let before = stats(&tree.0);
    cluster.host(&first).start_brickd();
    cluster.wait_healed(VOLUME);
    let second = cluster.primary(VOLUME).name.clone();
    assert_ne!(first, second);
    cluster.host(&second).kill_brickd();
    assert_eq!(
        tree.to_be_read(),
        Vec::<String>::new(),
        "on the healed copy"
    );
    assert_same(&stats(&tree.0), &before, "on the healed copy");
    assert_eq!(tree.git("status --porcelain"), "");
    tree.git("fsck --full --strict");
    cluster.host(&second).start_brickd();
    cluster.wait_healed(VOLUME);
    let before = stats(&tree.0);
    mount.unmount();

    // Everything restarts: what was in memory only is on the disks.
    for host in ["gfs01", "gfs02"] {
        cluster.host(host).stop_brickd();
    }
    for host in ["gfs01", "gfs02"] {
        cluster.host(host).start_brickd();
    }
    cluster.wait_in_sync(VOLUME);
    let again = cluster.mount("client", "gfs01:/v01", OPTIONS);
    let moved = |path: &Path| {
        again
            .path()
            .join(path.strip_prefix(tree.0.parent().unwrap()).unwrap())
    };
    let before: BTreeMap<PathBuf, Stat> = before
        .iter()
        .map(|(path, stat)| (moved(path), *stat))
        .collect();
    let tree = Repository(moved(&tree.0));
    assert_eq!(
        tree.to_be_read(),
        Vec::<String>::new(),
        "after all restarted"
    );
    assert_same(&stats(&tree.0), &before, "after all restarted");
    cluster.assert_healed_and_equal();
    again.unmount();
    cluster.assert_logs_clean(&[]);
}

/// A plain file's path below a folder.
fn first_file(folder: &Path) -> PathBuf {
    let all = stats(folder);
    let file = all.keys().find(|path| path.is_file()).expect("a file");
    file.strip_prefix(folder).unwrap().to_owned()
}
