//! Named cases of healing.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mortar_common::Gfid;
use mortar_proto::data::change::Step;
use mortar_proto::data::{
    CreateStep, FreeStep, LinkStep, RenameMode, RenameStep, RmDirStep, SetAttrStep, UnlinkStep,
    WriteStep,
};

use super::rig::{Rig, gfid};
use super::tree::Tree;
use crate::heal::Scope;
use crate::heal::progress::report;
use crate::heal::{HealControl, HealError, Healer, Progress};

const FILE: u32 = libc::S_IFREG | 0o644;
const DIR: u32 = libc::S_IFDIR | 0o755;

fn make(rig: &Rig, parent: Gfid, name: &str, id: u64, mode: u32) -> Gfid {
    let step = CreateStep {
        parent: Some(parent),
        name: Bytes::copy_from_slice(name.as_bytes()),
        gfid: Some(gfid(id)),
        mode,
        ..Default::default()
    };
    rig.change(Step::Create(step), b"").unwrap();
    gfid(id)
}

fn write(rig: &Rig, file: Gfid, offset: u64, bytes: &[u8]) {
    let step = WriteStep {
        gfid: Some(file),
        offset,
        len: bytes.len() as u32,
        ..Default::default()
    };
    rig.change(Step::Write(step), bytes).unwrap();
}

fn unlink(rig: &Rig, parent: Gfid, name: &str) {
    let name = Bytes::copy_from_slice(name.as_bytes());
    let (held, directory) = {
        let tree = rig.source.tree.lock().unwrap();
        let held = tree.nodes[&parent].names[&name];
        (held, tree.nodes[&held].is_dir())
    };
    let (parent, gfid) = (Some(parent), Some(held));
    let step = if directory {
        Step::Rmdir(RmDirStep { parent, name, gfid })
    } else {
        Step::Unlink(UnlinkStep {
            parent,
            name,
            gfid,
            orphan: false,
        })
    };
    rig.change(step, b"").unwrap();
}

fn rename(rig: &Rig, from: (Gfid, &str), to: (Gfid, &str), how: RenameMode) {
    let held = |(parent, name): (Gfid, &str)| {
        let tree = rig.source.tree.lock().unwrap();
        tree.nodes[&parent].names.get(name.as_bytes()).copied()
    };
    let step = RenameStep {
        from_parent: Some(from.0),
        from_name: Bytes::copy_from_slice(from.1.as_bytes()),
        gfid: held(from),
        to_parent: Some(to.0),
        to_name: Bytes::copy_from_slice(to.1.as_bytes()),
        replaced: held(to),
        how: how.into(),
        ..Default::default()
    };
    rig.change(Step::Rename(step), b"").unwrap();
}

fn mv(rig: &Rig, from: (Gfid, &str), to: (Gfid, &str)) {
    rename(rig, from, to, RenameMode::RenameReplace);
}

/// The copy gets all that there is; what comes after it lacks.
fn copy_goes_out(rig: &Rig) {
    let tree = rig.source.tree.lock().unwrap().clone();
    rig.copy_holds(tree);
}

/// Heals; returns the heal changes and the bytes they carried.
fn heal(rig: &Rig) -> (u64, u64) {
    rig.heal();
    rig.assert_equal();
    rig.sent()
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = super::changes::Random(seed);
    (0..len).map(|_| random.next() as u8 | 1).collect()
}

/// A file without a name is freed when its last user lets go of it: at any moment of its heal.
#[test]
fn what_is_freed_in_the_middle_of_its_heal_holds_nothing_up() {
    let mut calls = 0;
    loop {
        let rig = Rig::new(Tree::new(), 1);
        let file = make(&rig, Gfid::ROOT, "file", 7, FILE);
        let unlinked = UnlinkStep {
            parent: Some(Gfid::ROOT),
            name: Bytes::from_static(b"file"),
            gfid: Some(file),
            orphan: true,
        };
        rig.change(Step::Unlink(unlinked), b"").unwrap();
        copy_goes_out(&rig);
        write(&rig, file, 0, &noise(1 << 20, 3));
        let free = FreeStep { gfid: Some(file) };
        rig.line.lock().unwrap().later = Some((calls, Step::Free(free)));
        rig.heal();
        if rig.line.lock().unwrap().later.is_some() {
            break; // The heal was over before.
        }
        rig.assert_equal();
        calls += 1;
    }
    assert!(calls > 10, "the heal takes {calls} calls only");
}

#[test]
fn a_heal_costs_what_changed() {
    let rig = Rig::new(Tree::new(), 1);
    for number in 0..100 {
        let dir = make(
            &rig,
            Gfid::ROOT,
            &format!("dir{number}"),
            1_000 + number,
            DIR,
        );
        for file in 0..100 {
            let id = 100_000 + number * 100 + file;
            let file = make(&rig, dir, &format!("file{file}"), id, FILE);
            write(&rig, file, 0, b"some content");
        }
    }
    let big = make(&rig, Gfid::ROOT, "big", 50, FILE);
    write(&rig, big, 0, &noise(8 << 20, 3));
    copy_goes_out(&rig);
    for number in 0..100u64 {
        write(&rig, gfid(100_000 + number * 77), 4, &noise(100, number));
    }
    for place in 0..5 {
        write(&rig, big, place * 1_500_000, &noise(4096, place));
    }
    let (changes, bytes) = heal(&rig);
    assert_eq!(bytes, 100 * 100 + 5 * 4096);
    assert!(changes <= 101 * 3 + 5, "{changes} heal changes");
}

#[test]
fn a_renamed_directory_moves_with_all_below_it() {
    let rig = Rig::new(Tree::new(), 2);
    let deep = make(&rig, Gfid::ROOT, "deep", 1, DIR);
    let tree = make(&rig, Gfid::ROOT, "tree", 2, DIR);
    for number in 0..500 {
        let file = make(&rig, tree, &format!("f{number}"), 100 + number, FILE);
        write(&rig, file, 0, &noise(1_000, number));
    }
    copy_goes_out(&rig);
    mv(&rig, (Gfid::ROOT, "tree"), (deep, "moved"));
    let (changes, bytes) = heal(&rig);
    assert!(
        bytes == 0 && changes < 12,
        "{changes} changes, {bytes} bytes"
    );
}

#[test]
fn a_displaced_directory_is_taken_back_from_orphan() {
    let rig = Rig::new(Tree::new(), 3);
    let old = make(&rig, Gfid::ROOT, "d", 1, DIR);
    for number in 0..300 {
        let file = make(&rig, old, &format!("f{number}"), 100 + number, FILE);
        write(&rig, file, 0, &noise(500, number));
    }
    copy_goes_out(&rig);
    mv(&rig, (Gfid::ROOT, "d"), (Gfid::ROOT, "e"));
    make(&rig, Gfid::ROOT, "d", 2, DIR);
    let (changes, bytes) = heal(&rig);
    assert!(
        bytes == 0 && changes < 12,
        "{changes} changes, {bytes} bytes"
    );
}

#[test]
fn names_that_changed_places_are_healed() {
    let rig = Rig::new(Tree::new(), 4);
    let dirs: Vec<Gfid> = (0..3)
        .map(|at| make(&rig, Gfid::ROOT, &format!("d{at}"), 10 + at, DIR))
        .collect();
    for (at, dir) in dirs.iter().enumerate() {
        let file = make(&rig, *dir, "f", 20 + at as u64, FILE);
        write(&rig, file, 0, &noise(100, at as u64));
    }
    make(&rig, Gfid::ROOT, "file", 30, FILE);
    copy_goes_out(&rig);
    // A circle of three, a swap of two files in different directories, a swap of two types.
    mv(&rig, (Gfid::ROOT, "d0"), (Gfid::ROOT, "t"));
    mv(&rig, (Gfid::ROOT, "d1"), (Gfid::ROOT, "d0"));
    mv(&rig, (Gfid::ROOT, "d2"), (Gfid::ROOT, "d1"));
    mv(&rig, (Gfid::ROOT, "t"), (Gfid::ROOT, "d2"));
    rename(
        &rig,
        (dirs[0], "f"),
        (dirs[1], "f"),
        RenameMode::RenameExchange,
    );
    rename(
        &rig,
        (Gfid::ROOT, "file"),
        (Gfid::ROOT, "d1"),
        RenameMode::RenameExchange,
    );
    let (_, bytes) = heal(&rig);
    assert_eq!(bytes, 0);
}

#[test]
fn a_child_that_became_the_parent_is_healed() {
    let rig = Rig::new(Tree::new(), 5);
    let mut chain = vec![Gfid::ROOT];
    for at in 0..6 {
        chain.push(make(
            &rig,
            chain[at],
            &format!("n{at}"),
            10 + at as u64,
            DIR,
        ));
    }
    copy_goes_out(&rig);
    // /n0/n1/n2/n3/n4/n5 is turned upside down: /n5/n4/…/n0.
    for at in (1..6).rev() {
        mv(
            &rig,
            (chain[at], &format!("n{at}")),
            (Gfid::ROOT, &format!("n{at}")),
        );
    }
    for at in (1..6).rev() {
        mv(
            &rig,
            (Gfid::ROOT, &format!("n{}", at - 1)),
            (chain[at + 1], &format!("n{}", at - 1)),
        );
    }
    assert!(rig.source.tree.lock().unwrap().is_below(chain[1], chain[6]));
    heal(&rig);
}

#[test]
fn a_name_may_change_its_type() {
    let rig = Rig::new(Tree::new(), 6);
    make(&rig, Gfid::ROOT, "was a file", 1, FILE);
    let dir = make(&rig, Gfid::ROOT, "was a directory", 2, DIR);
    make(&rig, dir, "inside", 3, FILE);
    copy_goes_out(&rig);
    unlink(&rig, Gfid::ROOT, "was a file");
    make(&rig, Gfid::ROOT, "was a file", 11, DIR);
    unlink(&rig, dir, "inside");
    unlink(&rig, Gfid::ROOT, "was a directory");
    let file = make(&rig, Gfid::ROOT, "was a directory", 12, FILE);
    write(&rig, file, 10, b"content");
    heal(&rig);
}

#[test]
fn hard_links_are_links_again() {
    let rig = Rig::new(Tree::new(), 7);
    let dir = make(&rig, Gfid::ROOT, "dir", 1, DIR);
    let file = make(&rig, Gfid::ROOT, "first", 2, FILE);
    write(&rig, file, 0, &noise(10_000, 1));
    copy_goes_out(&rig);
    for name in ["second", "third"] {
        let name = Bytes::copy_from_slice(name.as_bytes());
        let step = LinkStep {
            gfid: Some(file),
            parent: Some(dir),
            name,
            orphan: false,
        };
        rig.change(Step::Link(step), b"").unwrap();
    }
    unlink(&rig, Gfid::ROOT, "first");
    let (_, bytes) = heal(&rig);
    assert_eq!(bytes, 0);
    assert_eq!(rig.copy.tree.lock().unwrap().nodes[&file].object.nlink, 2);
}

#[test]
fn a_removed_tree_is_freed() {
    let rig = Rig::new(Tree::new(), 8);
    let top = make(&rig, Gfid::ROOT, "top", 1, DIR);
    let below = make(&rig, top, "below", 2, DIR);
    for number in 0..200 {
        make(&rig, below, &format!("f{number}"), 100 + number, FILE);
    }
    copy_goes_out(&rig);
    for number in 0..200 {
        unlink(&rig, below, &format!("f{number}"));
    }
    unlink(&rig, top, "below");
    unlink(&rig, Gfid::ROOT, "top");
    heal(&rig);
    assert_eq!(rig.copy.tree.lock().unwrap().nodes.len(), 1);
}

#[test]
fn holes_are_healed_as_holes() {
    let rig = Rig::new(Tree::new(), 9);
    let file = make(&rig, Gfid::ROOT, "sparse", 1, FILE);
    write(&rig, file, 0, &noise(1 << 20, 1));
    copy_goes_out(&rig);
    for size in [0, 16 << 20] {
        let step = SetAttrStep {
            gfid: Some(file),
            size: Some(size),
            ..Default::default()
        };
        rig.change(Step::Setattr(step), b"").unwrap();
    }
    write(&rig, file, 8 << 20, &noise(4096, 2));
    let (changes, bytes) = heal(&rig);
    assert_eq!(bytes, 4096);
    assert!(changes < 10, "{changes} heal changes");
}

/// A disk image of some TiB has a few GiB of data: the rest is compared without being read.
#[test]
fn holes_of_both_copies_are_not_read_to_be_compared() {
    const MIB: usize = 1 << 20;
    let rig = Rig::new(Tree::new(), 14);
    let file = make(&rig, Gfid::ROOT, "image", 1, FILE);
    write(&rig, file, 0, &noise(4096, 1));
    write(&rig, file, 63 * MIB as u64, &noise(4096, 2));
    copy_goes_out(&rig);
    {
        // Behind everybody's back: data on one side alone, either one.
        let mut tree = rig.copy.tree.lock().unwrap();
        tree.nodes.get_mut(&file).unwrap().data[30 * MIB] = 7;
        let mut tree = rig.source.tree.lock().unwrap();
        tree.nodes.get_mut(&file).unwrap().data[40 * MIB] = 7;
    }
    let theirs = rig.copy.tree.lock().unwrap().clone();
    rig.copy_holds(theirs);
    rig.marks.mark_everything(Scope::All).unwrap();
    let (_, bytes) = heal(&rig);
    assert!(bytes <= 64 << 10, "{bytes} bytes were carried");
    // 16 sums from each place where one has data, and the fine ones.
    for side in [&*rig.source, &rig.copy] {
        let summed = side.summed();
        assert!(summed <= 36 * MIB as u64, "{summed} bytes were read");
    }
}

#[test]
fn a_copy_that_was_rolled_back_is_compared_and_gets_what_differs() {
    let rig = Rig::new(Tree::new(), 10);
    for number in 0..600 {
        let file = make(&rig, Gfid::ROOT, &format!("f{number}"), 100 + number, FILE);
        write(&rig, file, 0, &noise(3_000, number));
    }
    let big = make(&rig, Gfid::ROOT, "big", 50, FILE);
    write(&rig, big, 0, &noise(4 << 20, 3));
    copy_goes_out(&rig);
    {
        // Behind everybody's back.
        let mut tree = rig.copy.tree.lock().unwrap();
        tree.nodes.get_mut(&big).unwrap().data[3_000_000] ^= 0xff;
        tree.nodes.get_mut(&gfid(123)).unwrap().data[10] ^= 0xff;
        tree.nodes.get_mut(&gfid(124)).unwrap().object.uid = 77;
    }
    let theirs = rig.copy.tree.lock().unwrap().clone();
    rig.copy_holds(theirs);
    rig.marks.mark_everything(Scope::All).unwrap();
    let (changes, bytes) = heal(&rig);
    assert!(
        bytes <= 64 * 1024 + 3_000 && changes < 12,
        "{changes} changes, {bytes} bytes"
    );
}

/// It cannot come to be but by both sides having gone alone, or by hand.
#[test]
fn an_object_of_another_type_is_replaced() {
    for order in [3, 1 << 30] {
        let rig = Rig::new(Tree::new(), 14);
        let dir = make(&rig, Gfid::ROOT, "dir", 1 << 20, DIR);
        copy_goes_out(&rig);
        make(&rig, dir, "x", order, DIR);
        let theirs = rig.source.tree.lock().unwrap().clone();
        unlink(&rig, dir, "x");
        let file = make(&rig, dir, "x", order, FILE);
        write(&rig, file, 0, b"content");
        rig.copy_holds(theirs);
        rig.marks.mark_everything(Scope::All).unwrap();
        heal(&rig);
    }
}

#[test]
fn a_comparison_goes_on_where_it_was() {
    let rig = Rig::new(Tree::new(), 11);
    let objects = 12_000;
    for number in 0..objects {
        let dir = Gfid::ROOT;
        make(&rig, dir, &format!("f{number}"), 100 + number, FILE);
    }
    copy_goes_out(&rig);
    rig.marks.mark_everything(Scope::All).unwrap();
    // 64 objects a question: lost after the first checkpoint, at 8,192 objects.
    rig.line.lock().unwrap().lost_in = Some(2 * 150);
    let progress = rig.heal();
    rig.assert_equal();
    let compared = progress.compared();
    assert!(
        compared > objects && compared < objects + 2_000,
        "{compared} compared"
    );
}

#[test]
fn what_is_pending_is_told_in_words() {
    let rig = Rig::new(Tree::new(), 12);
    let dir = make(&rig, Gfid::ROOT, "dir", 1, DIR);
    let file = make(&rig, dir, "file", 2, FILE);
    write(&rig, file, 0, &noise(1_000, 1));
    copy_goes_out(&rig);
    write(&rig, file, 100, &noise(50, 2));
    write(&rig, file, 500, &noise(50, 2));
    make(&rig, dir, "new", 3, FILE);
    let told = report(&rig.marks, &*rig.source, None, "gfs02:/brick");
    let why = |gfid: Gfid| {
        let gfid = gfid.to_string();
        told.entries
            .iter()
            .find(|entry| entry.gfid == gfid)
            .unwrap()
            .why
            .clone()
    };
    assert_eq!(
        why(file),
        "100 bytes in 2 places and its attributes changed while gfs02:/brick was away"
    );
    assert_eq!(
        why(dir),
        "1 name in it and its attributes changed while gfs02:/brick was away"
    );
    assert_eq!((told.total, told.bytes_pending, told.healing), (3, 100, 0));
}

#[test]
fn a_disabled_healer_does_nothing_until_it_is_enabled() {
    let rig = Rig::new(Tree::new(), 13);
    make(&rig, Gfid::ROOT, "new", 1, FILE);
    let (control, progress) = (HealControl::default(), Progress::new());
    control.disable();
    std::thread::scope(|scope| {
        let healer = scope.spawn(|| Healer::new(&rig, &control, &progress).run());
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(rig.sent().0, 0);
        control.enable();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !healer.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(matches!(healer.join().unwrap(), HealError::Stopped));
    });
    rig.assert_equal();
}
