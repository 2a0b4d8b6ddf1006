//! What survives: an orderly close, a crash, a restore to another disk.

use mortar_proto::data::{CopySynced, EpochRef, FsyncStep};
use mortar_proto::registry::{Copy, Epoch};

use super::super::{HealSource, StoredState};
use super::*;

#[test]
fn everything_survives_an_orderly_close() {
    let mut fix = Fixture::new();
    let dir = fix.dir(Gfid::ROOT, "d");
    let file = fix.file(dir, "f");
    fix.write(file, 0, b"text");
    let orphan = fix.file(dir, "o");
    fix.apply(unlink(dir, "o", orphan, true));
    let before = [Gfid::ROOT, dir, file, orphan].map(|gfid| fix.object(gfid));
    fix.reopen();
    assert_eq!(
        [Gfid::ROOT, dir, file, orphan].map(|gfid| fix.object(gfid)),
        before
    );
    assert_eq!(fix.brick().orphans().unwrap(), [orphan]);
    let last = fix.next.load(Ordering::Relaxed) - 1;
    assert_eq!(fix.brick().stored_state().last_number, last);
}

#[test]
fn the_stored_state_is_replaced_whole() {
    let mut fix = Fixture::new();
    assert_eq!(fix.brick().stored_state(), StoredState::default());
    let epoch = |number| EpochRef {
        number,
        id: number * 7,
    };
    let state = StoredState {
        epoch: Some(Epoch {
            number: 4,
            id: 28,
            in_sync: vec![Copy {
                brick: 77,
                incarnation: 5,
            }],
            primary: 77,
        }),
        history: vec![epoch(2), epoch(3)],
        alone: Some(epoch(4)),
        synced: 12,
        last_number: 15,
        recorded: vec![CopySynced {
            brick: 78,
            number: 11,
        }],
    };
    fix.brick().store_state(&state).unwrap();
    assert_eq!(fix.brick().stored_state(), state);
    fix.reopen();
    assert_eq!(fix.brick().stored_state(), state);
    fix.brick().append_record("partner", b"mark", true).unwrap();
    fix.reopen();
    assert_eq!(fix.brick().read_records("partner").unwrap(), [b"mark"]);
    assert_eq!(fix.brick().record_files().unwrap(), ["partner"]);
}

#[test]
fn counters_after_a_crash_are_never_those_of_other_content() {
    let mut fix = Fixture::new();
    let (changed, synced) = (fix.file(Gfid::ROOT, "a"), fix.file(Gfid::ROOT, "b"));
    let mut seen = BTreeCounters::default();
    for life in 0..3 {
        for _ in 0..3 {
            fix.write(changed, 0, &[life; 10]);
            seen.insert(fix.object(changed).data_counter);
        }
        fix.apply(Step::Fsync(FsyncStep {
            gfid: Some(changed),
            data_only: false,
        }));
        fix.write(changed, 0, b"lost count");
        let before = fix.object(changed);
        fix.crash();
        let after = fix.object(changed);
        assert!(
            after.data_counter >= before.data_counter,
            "{life}: {after:?} {before:?}"
        );
        assert!(
            after.attr_counter >= before.attr_counter,
            "{life}: {after:?} {before:?}"
        );
        let floor = fix.brick().stored_state().last_number;
        assert!(floor >= before.attr_counter);
        // As the layers above do: numbers go on beyond what can have been used.
        fix.next.store(floor + 1, Ordering::Relaxed);
        fix.write(changed, 0, b"new");
        assert!(seen.insert(fix.object(changed).data_counter), "life {life}");
    }
    let counter = fix.object(synced).data_counter;
    fix.reopen();
    assert_eq!(fix.object(synced).data_counter, counter);
}

type BTreeCounters = std::collections::BTreeSet<u64>;

#[test]
fn a_crash_leaves_no_half_made_object() {
    let mut fix = Fixture::new();
    let file = fix.file(Gfid::ROOT, "named");
    let orphan = fix.file(Gfid::ROOT, "o");
    fix.apply(unlink(Gfid::ROOT, "o", orphan, true));
    let half = fix.file(Gfid::ROOT, "half");
    let unnamed = fix.gfid();
    fix.apply(create(Gfid::ROOT, "", unnamed, 0o100_600));
    let link = fix.gfid();
    let Step::Create(mut step) = create(Gfid::ROOT, "l", link, libc::S_IFLNK | 0o777) else {
        unreachable!()
    };
    step.target = "t".into();
    fix.apply(Step::Create(step));
    let dir = fix.dir(Gfid::ROOT, "d");
    let half_dir = fix.dir(Gfid::ROOT, "hd");
    let root = fix.root();
    fix.crash_then(|| {
        for name in ["half", "l"] {
            std::fs::remove_file(root.join(name)).unwrap();
        }
        std::fs::rename(
            root.join("hd"),
            root.join(format!(".mortar/txn/{half_dir}")),
        )
        .unwrap();
        std::fs::write(root.join(format!(".mortar/orphan/{file}")), "").unwrap();
        // Its handle is there, its marker is not yet.
        std::fs::remove_file(root.join(format!(".mortar/orphan/{unnamed}"))).unwrap();
    });
    let mut expected = vec![file, orphan, dir];
    expected.sort();
    assert_eq!(fix.handles(), expected);
    assert_eq!(fix.brick().orphans().unwrap(), [orphan]);
    assert_eq!(
        fix.brick().object(half).unwrap_err().fs_error(),
        FsError::NotFound
    );
    assert_eq!(
        std::fs::read_dir(root.join(".mortar/txn")).unwrap().count(),
        0
    );
}

#[test]
fn a_brick_restored_elsewhere_finds_its_directories_again() {
    let mut fix = Fixture::new();
    let outer = fix.dir(Gfid::ROOT, "outer");
    let inner = fix.dir(outer, "inner");
    let file = fix.file(inner, "f");
    fix.write(file, 0, b"text");
    fix.brick = None;
    // Handles of another disk: those of directories lead nowhere or elsewhere, those of files
    // are lost.
    let handle = |gfid: Gfid| {
        let bucket = format!("{:06x}", gfid.clock_us() >> 28);
        fix.root()
            .join(".mortar/handle")
            .join(bucket)
            .join(gfid.to_string())
    };
    let text = std::fs::read_link(handle(outer)).unwrap();
    for gfid in [outer, inner] {
        std::fs::remove_file(handle(gfid)).unwrap();
    }
    std::os::unix::fs::symlink(&text, handle(inner)).unwrap();
    std::os::unix::fs::symlink("00000001ffffffff00000000", handle(outer)).unwrap();
    std::fs::remove_file(handle(file)).unwrap();
    fix.open();
    assert_eq!(fix.lookup(inner, "f").unwrap().gfid, Some(file));
    assert_eq!(fix.lookup(outer, "inner").unwrap().gfid, Some(inner));
    assert_eq!(fix.read_all(file), b"text");
    assert_eq!(fix.object(file).nlink, 1);
}

#[test]
fn a_brick_copied_without_its_hard_links_is_made_whole() {
    let mut fix = Fixture::new();
    let dir = fix.dir(Gfid::ROOT, "d");
    let file = fix.file(dir, "f");
    fix.write(file, 0, b"text");
    fix.brick = None;
    let copy = fix.folder.path().join("copy");
    let status = std::process::Command::new("cp")
        .args(["-dR", "--preserve=mode,ownership,timestamps,xattr"])
        .args([fix.root(), copy.clone()])
        .status();
    assert!(status.unwrap().success());
    std::fs::remove_dir_all(fix.root()).unwrap();
    std::fs::rename(copy, fix.root()).unwrap();
    fix.open();
    assert_eq!(
        (fix.object(file).nlink, fix.read_all(file)),
        (1, b"text".to_vec())
    );
    fix.write(file, 0, b"more");
    assert_eq!(std::fs::read(fix.root().join("d/f")).unwrap(), b"more");
    assert_eq!(fix.lookup(Gfid::ROOT, "d").unwrap().gfid, Some(dir));
    fix.reopen();
    assert_eq!(*fix.brick().inner.walks.lock().unwrap(), 0);
}

/// The housekeeper takes the list of what is dirty and puts back what was changed lately. A sync in
/// that moment found nothing to write, and confirmed what was in memory alone.
#[test]
fn a_sync_passes_by_nothing_that_others_have_in_their_hands() {
    let fix = Fixture::new();
    let file = fix.file(Gfid::ROOT, "f");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for syncs in [false, true] {
            let (fix, stop) = (&fix, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match syncs {
                        true => fix.brick().sync_all().unwrap(),
                        false => fix.brick().keep_house_once(),
                    }
                }
            });
        }
        // Also when the test fails: the scope waits for them.
        let _end = Sets(&stop);
        for _ in 0..300 {
            fix.write(file, 0, b"changed");
            let mtime = fix.object(file).mtime.unwrap();
            fix.brick().sync_all().unwrap();
            let disk = std::fs::metadata(fix.root().join("f")).unwrap();
            let on_disk = (
                std::os::unix::fs::MetadataExt::mtime(&disk),
                std::os::unix::fs::MetadataExt::mtime_nsec(&disk),
            );
            assert_eq!(on_disk, (mtime.secs, i64::from(mtime.nanos)));
        }
    });
}

struct Sets<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Sets<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
