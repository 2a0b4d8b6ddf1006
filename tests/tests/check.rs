//! `mortar volume check`: silent about what is right, also while programs write, and in words about
//! everything that was done to a brick behind Mortar's back.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{XattrFlags, lgetxattr, setxattr};
use serde_json::Value;
use tests::cluster::{Cluster, Mount, VOLUME, run, wait_until};

const WITHIN: Duration = Duration::from_secs(60);
/// Checks made while programs write.
const CHECKS: usize = 2;

/// What a check reports, and whether its exit status was 0.
fn check(cluster: &Cluster) -> (Value, bool) {
    let ran = cluster.mortar("gfs02", "--json volume check v01");
    let json = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran}"));
    (json, ran.status.success())
}

/// All findings, one line each.
fn findings(report: &Value) -> Vec<String> {
    let one = |finding: &Value| {
        let word = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        format!("{} [{}] {}", word("path"), word("brick"), word("what"))
    };
    report["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .map(one)
        .collect()
}

fn mounted() -> (Cluster, Mount) {
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    (cluster, mount)
}

/// A bit of everything.
fn fill(root: &Path) {
    fs::create_dir_all(root.join("dir/below")).unwrap();
    for number in 0..60 {
        let file = root.join(format!("dir/file-{number}"));
        fs::write(&file, vec![number as u8; 1000 * number]).unwrap();
    }
    fs::hard_link(root.join("dir/file-1"), root.join("dir/below/linked")).unwrap();
    symlink("dir/file-2", root.join("symlink")).unwrap();
    setxattr(root.join("dir"), "user.x", b"1", XattrFlags::empty()).unwrap();
}

/// Waits until both bricks have written everything back.
fn settle(cluster: &Cluster) {
    cluster.assert_healed_and_equal();
}

#[test]
fn what_was_done_to_a_brick_is_told_in_words_and_what_is_right_is_not() {
    let (cluster, mount) = mounted();
    fill(mount.path());
    // Nameless, but open.
    let unlinked = File::create(mount.join("unlinked")).unwrap();
    fs::remove_file(mount.join("unlinked")).unwrap();
    settle(&cluster);
    // A tebibyte that takes no time, as nothing of it is on the disk.
    let sparse = File::create(mount.join("sparse")).unwrap();
    sparse.write_all_at(b"end", 1 << 40).unwrap();
    sparse.sync_all().unwrap();
    drop(sparse);
    let (report, is_clean) = check(&cluster);
    assert!(is_clean && report["ok"] == true, "{report:#}");
    let objects = |brick: usize| report["bricks"][brick]["objects"].as_u64().unwrap();
    // The root, two folders, 60 files, a symlink, a sparse file and an unlinked one.
    assert_eq!((objects(0), objects(1)), (66, 66), "{report:#}");
    let text = cluster.mortar("gfs01", "volume check v01").ok();
    assert!(
        text.ends_with("volume check: v01: success: nothing is wrong\n"),
        "{text}"
    );

    let brick = cluster.brick(&cluster.backup(VOLUME).name);
    let expected = harm(&brick);
    let (report, is_clean) = check(&cluster);
    let found = findings(&report);
    assert!(!is_clean && report["ok"] == false, "{report:#}");
    for (path, what) in &expected {
        let is_it = |line: &&String| line.starts_with(path) && line.contains(what);
        assert!(
            found.iter().any(|line| is_it(&line)),
            "{path} {what}:\n{}",
            found.join("\n")
        );
    }
    // Nothing else is said of what was left alone.
    let is_expected = |line: &&String| expected.iter().any(|(path, _)| line.starts_with(path));
    let others: Vec<_> = found.iter().filter(|line| !is_expected(line)).collect();
    assert!(others.is_empty(), "{others:#?}");
    drop(unlinked);
}

/// Does all kinds of harm to a brick. Returns (path, words) of what a check is to report.
fn harm(brick: &Path) -> Vec<(&'static str, &'static str)> {
    let file = |number: usize| brick.join(format!("dir/file-{number}"));
    let keeping_mtime = |path: &Path, change: &dyn Fn()| {
        let mtime = fs::metadata(path).unwrap().modified().unwrap();
        change();
        File::open(path).unwrap().set_modified(mtime).unwrap();
    };
    keeping_mtime(&file(40), &|| {
        let flipped = File::options().write(true).open(file(40)).unwrap();
        flipped.write_all_at(&[0], 20_000).unwrap();
    });
    keeping_mtime(&brick.join("sparse"), &|| {
        let flipped = File::options()
            .write(true)
            .open(brick.join("sparse"))
            .unwrap();
        flipped.write_all_at(b"x", 1 << 39).unwrap();
    });
    fs::set_permissions(file(3), Permissions::from_mode(0o600)).unwrap();
    chown(file(4), Some(7), None).unwrap();
    setxattr(file(5), "user.y", b"2", XattrFlags::empty()).unwrap();
    let touched = File::open(file(6)).unwrap();
    touched.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    File::options()
        .write(true)
        .open(file(7))
        .unwrap()
        .set_len(5)
        .unwrap();
    keeping_mtime(&brick.join("dir/below"), &|| {
        fs::remove_file(brick.join("dir/below/linked")).unwrap();
    });
    keeping_mtime(&brick.join("dir"), &|| fs::remove_file(file(8)).unwrap());
    fs::remove_file(handle_of(brick, &file(9))).unwrap();
    keeping_mtime(brick, &|| fs::write(brick.join("stray"), "").unwrap());
    fs::hard_link(file(10), brick.join(".mortar/stray/more")).unwrap();
    fs::write(brick.join(".mortar/txn/left"), "").unwrap();
    fs::write(brick.join(".mortar/heal/0123456789abcdef"), "").unwrap();
    vec![
        ("/dir/file-40 ", "the contents differ"),
        ("/sparse ", "the contents differ"),
        ("/dir/file-3 ", "mode: 100644 on"),
        ("/dir/file-4 ", "owner: 0:0 on"),
        ("/dir/file-5 ", "the extended attributes differ"),
        ("/dir/file-6 ", "mtime: "),
        ("/dir/file-7 ", "size: 7000 on"),
        ("/dir/below ", "the names ('linked') differ"),
        // Its other name is the one that was taken away.
        ("/dir/", "link count: 2 on"),
        (
            "/dir/file-8 ",
            "orphan handle: it has no name and no mark of that",
        ),
        ("/dir ", "the names ('file-8') differ"),
        (
            "/dir/file-9 ",
            "orphan handle: it has no name and no mark of that",
        ),
        ("/dir/file-9 ", "wrong link count: 1 names, and no object"),
        ("/ ", "'stray' in it is no object"),
        (
            "/dir/file-10 ",
            "wrong link count: 2 links to it, 1 of them names",
        ),
        (
            " [",
            "stale mark: a step that was not ended: .mortar/txn/left",
        ),
        (" [", "stale mark: a note of what another copy lacks"),
    ]
}

/// The handle of an object: a link named by the gfid, which the object's xattr has.
fn handle_of(brick: &Path, path: &Path) -> PathBuf {
    let mut xattr = [0u8; 64];
    let len = lgetxattr(path, "trusted.mortar", &mut xattr[..]).unwrap();
    assert!(len >= 17);
    let hex: String = xattr[1..17]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    let gfid = parts.join("-");
    let folders = fs::read_dir(brick.join(".mortar/handle")).unwrap();
    let handles = folders.map(|folder| folder.unwrap().path().join(&gfid));
    handles
        .into_iter()
        .find(|handle| handle.symlink_metadata().is_ok())
        .expect("a handle")
}

/// Files are made, appended to, linked, renamed and removed all the time, and copies are fine.
#[test]
fn a_volume_that_is_written_to_is_checked_without_a_false_word() {
    let (cluster, mount) = mounted();
    fill(mount.path());
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let (root, stop, rounds) = (mount.join(format!("w{writer}")), &stop, &rounds);
            scope.spawn(move || {
                fs::create_dir_all(root.join("a")).unwrap();
                fs::create_dir_all(root.join("b")).unwrap();
                for number in 0..u64::MAX {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (here, there) =
                        (root.join("a/file"), root.join(format!("b/{}", number % 9)));
                    fs::write(&here, vec![7; (number % 50) as usize * 500]).unwrap();
                    fs::hard_link(&here, root.join("a/link")).unwrap();
                    fs::rename(&here, &there).unwrap();
                    fs::remove_file(root.join("a/link")).unwrap();
                    // The folder itself moves, with all that is in it.
                    fs::rename(root.join("b"), root.join("a/b")).unwrap();
                    fs::rename(root.join("a/b"), root.join("b")).unwrap();
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        wait_until(WITHIN, "the writers write", || {
            rounds.load(Ordering::Relaxed) > 3
        });
        let checks: Vec<_> = (0..CHECKS)
            .map(|_| {
                let before = rounds.load(Ordering::Relaxed);
                let checked = check(&cluster);
                (checked, rounds.load(Ordering::Relaxed) - before)
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        for ((report, is_clean), written) in checks {
            assert!(is_clean, "{report:#}");
            assert!(written > 0, "nobody wrote meanwhile");
        }
    });
    settle(&cluster);
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

#[test]
fn a_brick_that_is_away_is_not_passed_over() {
    let (cluster, mount) = mounted();
    fill(mount.path());
    cluster.host("gfs01").kill_brickd();
    // The volume goes on before it is asked.
    fs::write(mount.join("later"), "x").unwrap();
    let (report, is_clean) = check(&cluster);
    assert!(!is_clean, "{report:#}");
    let found = findings(&report).join("\n");
    assert!(
        found.contains("the brick is not in sync, so it was not checked"),
        "{found}"
    );
    cluster.host("gfs01").start_brickd();
    settle(&cluster);
    assert!(check(&cluster).1);

    let refused = cluster.mortar("gfs01", "volume check none").refused();
    assert!(
        refused.contains("volume check: none: failed: Volume none does not exist"),
        "{refused}"
    );
    mount.unmount();
    cluster.mortar("gfs01", "volume stop v01").ok();
    let refused = cluster.mortar("gfs01", "volume check v01").refused();
    assert!(refused.contains("Volume v01 is not started"), "{refused}");

    // Who asks for help gets it without a brickd.
    let mut help = std::process::Command::new(tests::cluster::program("mortar"));
    help.args(["volume", "check", "--help"]);
    assert!(run(help, WITHIN).ok().contains("every byte"));
}
