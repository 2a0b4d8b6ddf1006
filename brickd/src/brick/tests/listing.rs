//! Listings.

use std::collections::BTreeSet;

use mortar_common::placement::name_hash;
use mortar_proto::data::{DirEntry, ReadDir};

use super::*;

/// All pages of a listing; `between` runs after the first.
fn list(
    fix: &Fixture,
    dir: Gfid,
    max_bytes: u32,
    plus: bool,
    between: impl FnOnce(),
) -> Vec<DirEntry> {
    let mut all: Vec<DirEntry> = Vec::new();
    let mut between = Some(between);
    loop {
        let last = all.last().cloned().unwrap_or_default();
        let page = ReadDir {
            gfid: Some(dir),
            after_hash: last.hash,
            after_name: last.name,
            max_bytes,
            plus,
        };
        let page = fix.brick().read_dir(&page).unwrap();
        assert!(page.end || !page.entries.is_empty());
        all.extend(page.entries);
        if let Some(between) = between.take() {
            between();
        }
        if page.end {
            return all;
        }
    }
}

#[test]
fn pages_are_in_order_and_complete() {
    let fix = Fixture::new();
    assert!(list(&fix, Gfid::ROOT, 0, true, || ()).is_empty());
    let dir = fix.dir(Gfid::ROOT, "d");
    std::fs::write(fix.root().join("d/stray"), "").unwrap();
    let mut names = BTreeSet::new();
    for number in 0..300 {
        let name = format!("name{number}");
        let mode = if number % 3 == 0 {
            libc::S_IFDIR
        } else {
            libc::S_IFREG
        };
        fix.make(dir, &name, mode | 0o700);
        names.insert((name_hash(dir, name.as_bytes()), name.into_bytes()));
    }
    for (max_bytes, plus) in [(1, false), (500, true), (0, false), (u32::MAX, true)] {
        let all = list(&fix, dir, max_bytes, plus, || ());
        let listed: Vec<_> = all
            .iter()
            .map(|entry| (entry.hash, entry.name.to_vec()))
            .collect();
        assert_eq!(listed, names.iter().cloned().collect::<Vec<_>>());
        for entry in &all {
            let object = fix.brick().lookup(dir, &entry.name).unwrap();
            assert_eq!((entry.gfid, entry.r#type), (object.gfid, object.mode >> 12));
            assert_eq!(entry.object, plus.then_some(object));
        }
    }
    let root: Vec<_> = list(&fix, Gfid::ROOT, 0, false, || ())
        .into_iter()
        .map(|e| e.name)
        .collect();
    assert_eq!(root, ["d"]);
}

#[test]
fn changes_during_a_listing_show_and_nothing_is_lost_or_doubled() {
    let fix = Fixture::new();
    let dir = fix.dir(Gfid::ROOT, "d");
    let made: Vec<_> = (0..200)
        .map(|n| (format!("n{n}"), fix.file(dir, &format!("n{n}"))))
        .collect();
    let all = list(&fix, dir, 2_000, false, || {
        for (name, gfid) in &made[..50] {
            fix.apply(unlink(dir, name, *gfid, false));
        }
        for number in 0..50 {
            fix.dir(dir, &format!("late{number}"));
        }
    });
    let names: BTreeSet<_> = all.iter().map(|entry| entry.name.to_vec()).collect();
    assert_eq!(names.len(), all.len());
    for (name, _) in &made[50..] {
        assert!(names.contains(name.as_bytes()), "{name}");
    }
    let again = list(&fix, dir, 0, true, || ());
    assert_eq!(again.len(), 200);
    // A name that came back as another type.
    let (name, gfid) = &made[60];
    fix.apply(unlink(dir, name, *gfid, false));
    fix.dir(dir, name);
    let entry = list(&fix, dir, 0, false, || ())
        .into_iter()
        .find(|entry| entry.name == *name.as_bytes());
    assert_eq!(entry.unwrap().r#type, libc::S_IFDIR >> 12);
}

#[test]
fn a_reader_never_sees_one_object_under_anothers_gfid() {
    let fix = Fixture::new();
    let dir = fix.dir(Gfid::ROOT, "d");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0..300 {
                let gfid = fix.file(dir, "n");
                fix.write(gfid, 0, &vec![1; turn]);
                fix.apply(unlink(dir, "n", gfid, false));
                let gfid = fix.dir(dir, "n");
                fix.apply(rmdir(dir, "n", gfid));
            }
            stop.store(true, Ordering::Relaxed);
        });
        for plus in [false, true] {
            let (fix, stop) = (&fix, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for entry in list(fix, dir, 0, plus, || ()) {
                        assert_eq!(entry.object.is_some(), plus);
                    }
                    match fix.lookup(dir, "n") {
                        Ok(object) => assert_ne!(object.gfid, Some(dir)),
                        Err(error) => assert_eq!(error, FsError::NotFound),
                    }
                }
            });
        }
    });
    assert!(list(&fix, dir, 0, true, || ()).is_empty());
    assert_eq!(fix.handles(), [dir]);
    assert_eq!(*fix.brick().inner.walks.lock().unwrap(), 0);
}
