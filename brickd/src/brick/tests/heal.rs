//! Heal changes: one brick is made into what another is.

use std::collections::BTreeMap;

use mortar_proto::data::{
    FreeStep, HealDataStep, HealNameStep, ReadDir, RenameStep, SetAttrStep, SetXattrStep,
};

use super::super::HealSource;
use super::*;

fn heal_object(from: &Fixture, to: &Fixture, gfid: Gfid) {
    let step = from.brick().heal_object(gfid).unwrap();
    to.apply(Step::HealObject(step));
    if from.object(gfid).mode & libc::S_IFMT != libc::S_IFREG {
        return;
    }
    let mut offset = 0;
    while let Some((at, len, hole)) = from.brick().next_extent(gfid, offset).unwrap() {
        let mut bytes = Vec::new();
        if !hole {
            from.brick().read(gfid, at, len as u32, &mut bytes).unwrap();
        }
        let step = HealDataStep {
            gfid: Some(gfid),
            offset: at,
            len,
            hole,
        };
        to.try_apply(Step::HealData(step), &bytes).unwrap();
        offset = at + len;
    }
}

fn heal_name(from: &Fixture, to: &Fixture, parent: Gfid, name: &str) {
    let there = from.lookup(parent, name).ok();
    let directory = there
        .as_ref()
        .is_some_and(|there| there.mode & libc::S_IFMT == libc::S_IFDIR);
    to.apply(Step::HealName(HealNameStep {
        parent: Some(parent),
        name: name.as_bytes().to_vec().into(),
        gfid: there.and_then(|there| there.gfid),
        directory,
    }));
}

/// The tree: what each path is, with everything an application can see.
fn tree(fix: &Fixture) -> BTreeMap<String, (Object, u64, Vec<u8>)> {
    let mut tree = BTreeMap::new();
    let mut pending = vec![(String::new(), Gfid::ROOT)];
    while let Some((path, dir)) = pending.pop() {
        let page = ReadDir {
            gfid: Some(dir),
            max_bytes: u32::MAX,
            plus: true,
            ..Default::default()
        };
        let page = fix.brick().read_dir(&page).unwrap();
        assert!(page.end);
        for entry in page.entries {
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            let gfid = entry.gfid.unwrap();
            let mut object = entry.object.unwrap();
            // Not promised to be alike.
            object.blocks = 0;
            let content = match object.mode & libc::S_IFMT {
                libc::S_IFREG => fix.read_all(gfid),
                libc::S_IFLNK => fix.brick().read_link(gfid).unwrap().to_vec(),
                libc::S_IFDIR => {
                    object.size = 0;
                    pending.push((path.clone(), gfid));
                    Vec::new()
                }
                _ => Vec::new(),
            };
            let xattrs = fix.brick().list_xattr(gfid).unwrap().to_vec();
            tree.insert(path, (object, xxhash_rust::xxh3::xxh3_64(&content), xattrs));
        }
    }
    tree
}

#[test]
fn an_empty_brick_becomes_a_copy() {
    let from = Fixture::new();
    let mut to = Fixture::new();
    let dir = from.dir(Gfid::ROOT, "d");
    let file = from.file(dir, "f");
    from.write(file, 0, b"start");
    from.write(file, 300_000, b"after a hole");
    let link = from.gfid();
    let Step::Create(mut step) = create(dir, "l", link, libc::S_IFLNK | 0o777) else {
        unreachable!()
    };
    step.target = "f".into();
    from.apply(Step::Create(step));
    let device = from.gfid();
    let Step::Create(mut step) = create(dir, "dev", device, libc::S_IFCHR | 0o600) else {
        unreachable!()
    };
    step.rdev = libc::makedev(1, 3);
    from.apply(Step::Create(step));
    from.apply(Step::Setxattr(SetXattrStep {
        gfid: Some(file),
        name: "user.x".into(),
        value: "y".into(),
        new_mode: None,
    }));
    from.apply(Step::Setattr(SetAttrStep {
        gfid: Some(file),
        mode: Some(0o4711),
        uid: Some(3),
        atime: Some(Time { secs: 5, nanos: 6 }),
        ..Default::default()
    }));
    from.apply(Step::Link(mortar_proto::data::LinkStep {
        gfid: Some(file),
        parent: Some(Gfid::ROOT),
        name: "hard".into(),
        ..Default::default()
    }));
    // Objects in any order, then names, then directories once more for their times.
    for gfid in [file, dir, link, device] {
        heal_object(&from, &to, gfid);
    }
    assert_eq!(to.brick().orphans().unwrap().len(), 4);
    for (parent, name) in [
        (dir, "f"),
        (dir, "l"),
        (dir, "dev"),
        (Gfid::ROOT, "hard"),
        (Gfid::ROOT, "d"),
    ] {
        heal_name(&from, &to, parent, name);
        heal_name(&from, &to, parent, name);
    }
    assert_eq!(tree(&to), tree(&from));
    assert!(to.brick().orphans().unwrap().is_empty());
    to.reopen();
    assert_eq!(tree(&to), tree(&from));
    assert!(to.brick().next_extent(file, 8192).unwrap().unwrap().2);
}

#[test]
fn what_differs_is_displaced_and_taken_from_there() {
    let from = Fixture::new();
    let to = Fixture::new();
    let apply_both = |step: Step| {
        let change = from.apply(step);
        to.brick().apply(&change, &[]).unwrap();
        to.next
            .store(from.next.load(Ordering::Relaxed), Ordering::Relaxed);
    };
    let ids: Vec<Gfid> = (0..6).map(|_| from.gfid()).collect();
    let (a, b, c) = (ids[0], ids[1], ids[2]);
    apply_both(create(Gfid::ROOT, "a", a, libc::S_IFDIR | 0o755));
    apply_both(create(a, "b", b, libc::S_IFDIR | 0o755));
    apply_both(create(b, "c", c, libc::S_IFDIR | 0o755));
    for (name, gfid) in [("x", ids[3]), ("y", ids[4]), ("gone", ids[5])] {
        apply_both(create(c, name, gfid, libc::S_IFREG | 0o644));
    }
    // Turned upside down at the source: /b/a/c, with x and y exchanged and one file removed.
    let mv = |from_parent, from_name: &str, gfid, to_parent, to_name: &str| {
        Step::Rename(RenameStep {
            from_parent: Some(from_parent),
            from_name: from_name.as_bytes().to_vec().into(),
            gfid: Some(gfid),
            to_parent: Some(to_parent),
            to_name: to_name.as_bytes().to_vec().into(),
            ..Default::default()
        })
    };
    from.apply(mv(a, "b", b, Gfid::ROOT, "b"));
    from.apply(mv(Gfid::ROOT, "a", a, b, "a"));
    from.apply(mv(b, "c", c, a, "c"));
    from.apply(mv(c, "x", ids[3], c, "t"));
    from.apply(mv(c, "y", ids[4], c, "x"));
    from.apply(mv(c, "t", ids[3], c, "y"));
    from.apply(unlink(c, "gone", ids[5], false));
    let names = [
        (b, "a"),
        (a, "b"),
        (Gfid::ROOT, "a"),
        (Gfid::ROOT, "b"),
        (b, "c"),
        (a, "c"),
        (c, "x"),
        (c, "y"),
        (c, "t"),
        (c, "gone"),
    ];
    for turn in 0..names.len() {
        // Any order does.
        let (parent, name) = names[(turn * 7 + 3) % names.len()];
        heal_name(&from, &to, parent, name);
    }
    for gfid in [a, b, c, ids[3], ids[4], Gfid::ROOT] {
        heal_object(&from, &to, gfid);
    }
    assert_eq!(tree(&to), tree(&from));
    assert_eq!(to.brick().orphans().unwrap(), [ids[5]]);
    to.apply(Step::Free(FreeStep { gfid: Some(ids[5]) }));
    assert_eq!(to.handles(), from.handles());
}

#[test]
fn a_displaced_directory_is_freed_with_all_it_holds() {
    let from = Fixture::new();
    let to = Fixture::new();
    let top = to.dir(Gfid::ROOT, "top");
    let mut dir = top;
    for depth in 0..5 {
        to.file(dir, "f");
        dir = to.dir(dir, &format!("d{depth}"));
    }
    let kept = to.file(dir, "kept");
    to.apply(Step::Link(mortar_proto::data::LinkStep {
        gfid: Some(kept),
        parent: Some(Gfid::ROOT),
        name: "elsewhere".into(),
        ..Default::default()
    }));
    heal_name(&from, &to, Gfid::ROOT, "top");
    assert_eq!(to.brick().orphans().unwrap(), [top]);
    assert_eq!(to.lookup(Gfid::ROOT, "top"), Err(FsError::NotFound));
    assert_eq!(to.brick().path_of(top), None);
    to.apply(Step::Free(FreeStep { gfid: Some(top) }));
    assert!(to.brick().orphans().unwrap().is_empty());
    assert_eq!(to.handles(), [kept]);
    assert_eq!(to.object(kept).nlink, 1);
}

#[test]
fn an_object_of_another_type_is_replaced_only_when_told() {
    let from = Fixture::new();
    let to = Fixture::new();
    let gfid = from.dir(Gfid::ROOT, "n");
    to.apply(create(Gfid::ROOT, "n", gfid, libc::S_IFREG | 0o644));
    let mut step = from.brick().heal_object(gfid).unwrap();
    assert_eq!(to.refused(Step::HealObject(step.clone())), FsError::Exists);
    step.replace = true;
    to.apply(Step::HealObject(step));
    heal_name(&from, &to, Gfid::ROOT, "n");
    heal_object(&from, &to, gfid);
    assert_eq!(tree(&to), tree(&from));
}

/// The names that a heal takes away are in its keys, what they hold is not: two names of one file go
/// at once, by two heals or by a heal and a removal, and the last of them leaves the mark.
#[test]
fn a_file_whose_names_go_at_once_is_marked_by_the_last() {
    for removes in [false, true] {
        let fix = Fixture::new();
        let dirs = [fix.dir(Gfid::ROOT, "one"), fix.dir(Gfid::ROOT, "two")];
        for _ in 0..400 {
            let file = fix.file(dirs[0], "f");
            fix.apply(Step::Link(mortar_proto::data::LinkStep {
                gfid: Some(file),
                parent: Some(dirs[1]),
                name: "f".into(),
                ..Default::default()
            }));
            let heals = |parent| {
                Step::HealName(HealNameStep {
                    parent: Some(parent),
                    name: "f".into(),
                    ..Default::default()
                })
            };
            let other = match removes {
                true => unlink(dirs[1], "f", file, true),
                false => heals(dirs[1]),
            };
            let steps = [heals(dirs[0]), other].map(|step| fix.change(step));
            let gate = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                for step in &steps {
                    scope.spawn(|| {
                        gate.wait();
                        fix.brick().apply(step, &[]).unwrap();
                    });
                }
            });
            assert_eq!(fix.brick().orphans().unwrap(), [file], "removes: {removes}");
            fix.apply(Step::Free(FreeStep { gfid: Some(file) }));
            assert!(!fix.handles().contains(&file));
        }
    }
}
