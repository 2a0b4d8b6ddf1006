//! Making, linking, removing and renaming.

use mortar_proto::data::{FreeStep, LinkStep, RenameMode, RenameStep};

use super::super::HealSource;
use super::*;

fn link(gfid: Gfid, parent: Gfid, name: &str) -> Step {
    let name = name.as_bytes().to_vec().into();
    Step::Link(LinkStep {
        gfid: Some(gfid),
        parent: Some(parent),
        name,
        orphan: false,
    })
}

fn rename(from: (Gfid, &str), gfid: Gfid, to: (Gfid, &str), replaced: Option<Gfid>) -> RenameStep {
    RenameStep {
        from_parent: Some(from.0),
        from_name: from.1.as_bytes().to_vec().into(),
        gfid: Some(gfid),
        to_parent: Some(to.0),
        to_name: to.1.as_bytes().to_vec().into(),
        replaced,
        ..RenameStep::default()
    }
}

/// One of every type, with modes that a umask or an owner would change.
const TYPES: [u32; 7] = [
    libc::S_IFREG | 0o4755,
    libc::S_IFDIR | 0o2770,
    libc::S_IFLNK | 0o777,
    libc::S_IFIFO | 0o600,
    libc::S_IFSOCK | 0o666,
    libc::S_IFCHR | 0o620,
    libc::S_IFBLK | 0o660,
];

#[test]
fn every_type_is_made_complete_and_found_again() {
    let mut fix = Fixture::new();
    let mut made = Vec::new();
    for mode in TYPES {
        let gfid = fix.gfid();
        let name = format!("{mode:o}");
        let rdev = if matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK) {
            libc::makedev(8, 1 << 12)
        } else {
            0
        };
        let change = fix.apply(Step::Create(CreateStep {
            parent: Some(Gfid::ROOT),
            name: name.clone().into_bytes().into(),
            gfid: Some(gfid),
            mode,
            uid: 1000,
            gid: 1001,
            rdev,
            target: if mode & libc::S_IFMT == libc::S_IFLNK {
                "a/b".into()
            } else {
                "".into()
            },
            ..CreateStep::default()
        }));
        made.push((name, mode, gfid, rdev, change));
    }
    for life in 0..2 {
        for (name, mode, gfid, rdev, change) in &made {
            let object = fix.lookup(Gfid::ROOT, name).unwrap();
            assert_eq!(object, fix.object(*gfid));
            assert_eq!(
                (object.gfid, object.mode),
                (Some(*gfid), *mode),
                "life {life}"
            );
            assert_eq!((object.uid, object.gid, object.rdev), (1000, 1001, *rdev));
            assert_eq!(
                (object.mtime, object.ctime, object.atime),
                (change.time, change.time, change.time)
            );
            assert_eq!(
                (object.data_counter, object.attr_counter),
                (change.number, change.number)
            );
            let nlink = if mode & libc::S_IFMT == libc::S_IFDIR {
                2
            } else {
                1
            };
            assert_eq!(object.nlink, nlink);
            // Applied again: nothing to do.
            fix.brick().apply(change, &[]).unwrap();
        }
        let last = made.last().unwrap();
        assert_eq!(fix.object(Gfid::ROOT).mtime, last.4.time);
        assert_eq!(fix.object(Gfid::ROOT).nlink, 3);
        fix.reopen();
    }
    assert_eq!(fix.brick().read_link(made[2].2).unwrap(), "a/b");
    let device = std::fs::symlink_metadata(fix.root().join(&made[5].0)).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::rdev(&device), 0);
}

#[test]
fn a_file_without_a_name_is_an_orphan_until_it_gets_one() {
    let mut fix = Fixture::new();
    let (kept, named) = (fix.gfid(), fix.gfid());
    let made = [kept, named].map(|gfid| fix.apply(create(Gfid::ROOT, "", gfid, 0o100_600)));
    fix.write(named, 0, b"content");
    let root = fix.object(Gfid::ROOT);
    for life in 0..2 {
        let object = fix.object(named);
        assert_eq!((object.nlink, object.size), (0, 7), "life {life}");
        assert_eq!(fix.brick().orphans().unwrap().len(), 2);
        // Applied again: nothing to do.
        for change in &made {
            fix.brick().apply(change, &[]).unwrap();
        }
        fix.crash();
    }
    assert_eq!(fix.read_all(named), b"content");
    assert_eq!(fix.object(Gfid::ROOT).mtime, root.mtime);
    let Step::Link(step) = link(named, Gfid::ROOT, "n") else {
        unreachable!()
    };
    let step = LinkStep {
        orphan: true,
        ..step
    };
    let linked = fix.apply(Step::Link(step));
    assert_eq!(fix.brick().orphans().unwrap(), [kept]);
    fix.brick().apply(&linked, &[]).unwrap();
    assert_eq!(fix.lookup(Gfid::ROOT, "n").unwrap().nlink, 1);
    fix.apply(Step::Free(FreeStep { gfid: Some(kept) }));
    fix.reopen();
    assert_eq!(fix.handles(), [named]);
    assert!(fix.brick().orphans().unwrap().is_empty());
}

#[test]
fn a_name_that_is_taken_leaves_no_handle() {
    let fix = Fixture::new();
    fix.file(Gfid::ROOT, "a");
    let before = fix.handles();
    for mode in [libc::S_IFREG | 0o644, libc::S_IFDIR | 0o755] {
        let gfid = fix.gfid();
        assert_eq!(
            fix.refused(create(Gfid::ROOT, "a", gfid, mode)),
            FsError::Exists
        );
        assert_eq!(
            fix.brick().object(gfid).unwrap_err().fs_error(),
            FsError::NotFound
        );
    }
    assert_eq!(fix.handles(), before);
    let gfid = fix.gfid();
    assert_eq!(
        fix.refused(create(Gfid::ROOT, ".mortar", gfid, 0o100644)),
        FsError::NotPermitted
    );
    assert_eq!(
        fix.refused(create(Gfid::ROOT, "a/b", gfid, 0o100644)),
        FsError::Invalid
    );
    assert_eq!(fix.lookup(Gfid::ROOT, ".mortar"), Err(FsError::NotFound));
}

#[test]
fn what_is_not_of_the_volume_is_invisible_and_gets_out_of_the_way() {
    let fix = Fixture::new();
    let dir = fix.dir(Gfid::ROOT, "d");
    std::fs::write(fix.root().join("d/foreign"), "mine").unwrap();
    assert_eq!(fix.lookup(dir, "foreign"), Err(FsError::NotFound));
    assert!(fix.brick().is_empty_dir(dir).unwrap());
    let file = fix.file(dir, "foreign");
    assert_eq!(fix.lookup(dir, "foreign").unwrap().gfid, Some(file));
    assert!(!fix.brick().is_empty_dir(dir).unwrap());
    fix.apply(unlink(dir, "foreign", file, false));
    std::fs::create_dir(fix.root().join("d/sub")).unwrap();
    fix.apply(rmdir(Gfid::ROOT, "d", dir));
    assert!(!fix.root().join("d").exists());
    let strays = fix.root().join(".mortar/stray");
    let mut kept = Vec::new();
    for place in std::fs::read_dir(strays).unwrap() {
        for entry in std::fs::read_dir(place.unwrap().path()).unwrap() {
            kept.push(entry.unwrap().file_name());
        }
    }
    kept.sort();
    assert_eq!(kept, ["foreign", "sub"]);
}

#[test]
fn the_last_name_frees_unless_somebody_has_it_open() {
    let fix = Fixture::new();
    let file = fix.file(Gfid::ROOT, "a");
    fix.apply(link(file, Gfid::ROOT, "b"));
    assert_eq!(fix.object(file).nlink, 2);
    let change = fix.apply(unlink(Gfid::ROOT, "a", file, true));
    assert_eq!(fix.object(file).nlink, 1);
    assert_eq!(fix.object(file).ctime, change.time);
    assert!(fix.brick().orphans().unwrap().is_empty());
    fix.brick().apply(&change, &[]).unwrap();

    fix.write(file, 0, b"text");
    fix.apply(unlink(Gfid::ROOT, "b", file, true));
    assert_eq!(fix.brick().orphans().unwrap(), [file]);
    assert_eq!(
        (fix.object(file).nlink, fix.read_all(file)),
        (0, b"text".to_vec())
    );
    let free = Step::Free(FreeStep { gfid: Some(file) });
    fix.apply(free.clone());
    fix.apply(free);
    assert_eq!(
        fix.brick().object(file).unwrap_err().fs_error(),
        FsError::NotFound
    );
    assert!(fix.brick().orphans().unwrap().is_empty());
    assert!(fix.handles().is_empty());

    let file = fix.file(Gfid::ROOT, "a");
    assert_eq!(
        fix.refused(unlink(Gfid::ROOT, "a", fix.gfid(), false)),
        FsError::Stale
    );
    fix.apply(unlink(Gfid::ROOT, "a", file, false));
    assert!(fix.handles().is_empty());
}

#[test]
fn a_big_file_is_freed_in_the_background() {
    let fix = Fixture::new();
    let file = fix.file(Gfid::ROOT, "big");
    let big = super::super::apply::FREE_NOW_BYTES_MAX + (1 << 20);
    let step = mortar_proto::data::FallocateStep {
        gfid: Some(file),
        len: big,
        ..Default::default()
    };
    fix.apply(Step::Fallocate(step));
    assert_eq!(fix.object(file).size, big);
    fix.apply(unlink(Gfid::ROOT, "big", file, false));
    assert_eq!(
        fix.brick().object(file).unwrap_err().fs_error(),
        FsError::NotFound
    );
    let txn = fix.root().join(".mortar/txn");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::fs::read_dir(&txn).unwrap().count() > 0 {
        assert!(std::time::Instant::now() < until, "not freed");
        std::thread::yield_now();
    }
}

#[test]
fn renames_move_replace_and_are_done_once() {
    let fix = Fixture::new();
    let (one, two) = (fix.dir(Gfid::ROOT, "one"), fix.dir(Gfid::ROOT, "two"));
    let (a, b) = (fix.file(one, "a"), fix.file(two, "b"));
    let step = Step::Rename(rename((one, "a"), a, (two, "b"), Some(b)));
    let change = fix.apply(step.clone());
    fix.brick().apply(&change, &[]).unwrap();
    assert_eq!(fix.lookup(one, "a"), Err(FsError::NotFound));
    assert_eq!(fix.lookup(two, "b").unwrap().gfid, Some(a));
    assert_eq!(
        fix.brick().object(b).unwrap_err().fs_error(),
        FsError::NotFound
    );
    for (gfid, what) in [(one, "from"), (two, "to")] {
        assert_eq!(fix.object(gfid).mtime, change.time, "{what}");
    }
    assert_eq!(fix.object(a).ctime, change.time);
    assert_ne!(fix.object(a).mtime, change.time);

    // Replaced and open: an orphan.
    let c = fix.file(two, "c");
    let mut step = rename((two, "c"), c, (two, "b"), Some(a));
    step.replaced_orphan = true;
    fix.apply(Step::Rename(step));
    assert_eq!(fix.brick().orphans().unwrap(), [a]);

    // A directory over an empty one; its handle goes.
    let (sub, old) = (fix.dir(one, "sub"), fix.dir(two, "old"));
    fix.file(sub, "inside");
    fix.apply(Step::Rename(rename(
        (one, "sub"),
        sub,
        (two, "old"),
        Some(old),
    )));
    assert_eq!(fix.brick().parent_of_dir(sub).unwrap(), two);
    assert_eq!(fix.brick().path_of(sub).unwrap(), "/two/old");
    assert_eq!(
        fix.brick().object(old).unwrap_err().fs_error(),
        FsError::NotFound
    );
    assert_eq!((fix.object(one).nlink, fix.object(two).nlink), (2, 3));

    // Taken, and not to be replaced.
    let mut step = rename((two, "b"), c, (two, "old"), None);
    step.how = RenameMode::RenameNoreplace as i32;
    assert_eq!(fix.refused(Step::Rename(step)), FsError::Exists);
}

#[test]
fn exchange_and_whiteout() {
    let mut fix = Fixture::new();
    let (file, dir) = (fix.file(Gfid::ROOT, "f"), fix.dir(Gfid::ROOT, "d"));
    let mut step = rename((Gfid::ROOT, "f"), file, (Gfid::ROOT, "d"), Some(dir));
    step.how = RenameMode::RenameExchange as i32;
    let change = fix.apply(Step::Rename(step));
    fix.brick().apply(&change, &[]).unwrap();
    assert_eq!(fix.lookup(Gfid::ROOT, "f").unwrap().gfid, Some(dir));
    assert_eq!(fix.lookup(Gfid::ROOT, "d").unwrap().gfid, Some(file));

    let white = fix.gfid();
    let mut step = rename((Gfid::ROOT, "d"), file, (Gfid::ROOT, "e"), None);
    step.how = RenameMode::RenameWhiteout as i32;
    step.whiteout = Some(white);
    (step.whiteout_uid, step.whiteout_gid) = (1001, 1002);
    let change = fix.apply(Step::Rename(step));
    for _ in 0..2 {
        fix.brick().apply(&change, &[]).unwrap();
        assert_eq!(fix.lookup(Gfid::ROOT, "e").unwrap().gfid, Some(file));
        let object = fix.lookup(Gfid::ROOT, "d").unwrap();
        assert_eq!(
            (object.gfid, object.mode, object.rdev),
            (Some(white), libc::S_IFCHR, 0)
        );
        assert_eq!((object.uid, object.gid), (1001, 1002));
        assert_eq!(object.nlink, 1);
        fix.reopen();
    }
    assert_eq!(
        std::fs::read_dir(fix.root().join(".mortar/txn"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_whiteout_cut_in_two_is_finished() {
    let mut fix = Fixture::new();
    let file = fix.file(Gfid::ROOT, "f");
    let white = fix.gfid();
    let mut step = rename((Gfid::ROOT, "f"), file, (Gfid::ROOT, "g"), None);
    step.how = RenameMode::RenameWhiteout as i32;
    step.whiteout = Some(white);
    let change = fix.change(Step::Rename(step));
    let text: String = prost::Message::encode_to_vec(&change)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let root = fix.root();
    fix.crash_then(|| {
        std::os::unix::fs::symlink(text, root.join(".mortar/txn/change-9")).unwrap();
        std::fs::rename(root.join("f"), root.join("g")).unwrap();
    });
    assert_eq!(fix.lookup(Gfid::ROOT, "g").unwrap().gfid, Some(file));
    assert_eq!(fix.lookup(Gfid::ROOT, "f").unwrap().gfid, Some(white));
}

#[test]
fn paths_are_found_for_people() {
    let fix = Fixture::new();
    let dir = fix.dir(Gfid::ROOT, "d");
    let file = fix.file(dir, "f");
    assert_eq!(fix.brick().path_of(Gfid::ROOT).unwrap(), "/");
    assert_eq!(fix.brick().path_of(file).unwrap(), "/d/f");
    assert_eq!(fix.brick().path_of(fix.gfid()), None);
    assert_eq!(fix.brick().parent_of_dir(dir).unwrap(), Gfid::ROOT);
    assert_eq!(
        fix.refused(link(dir, Gfid::ROOT, "x")),
        FsError::NotPermitted
    );
}
