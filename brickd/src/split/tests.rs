//! Merges of real bricks whose sides changed at random, cut off anywhere and begun anew.

pub mod side;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use mortar_common::{BrickId, FsError, Gfid};
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::{EpochRef, SplitWork};

use super::base::{Base, Told};
use super::decide::Favorite;
use super::merge::{MergeError, Merger, Report, Side as Merging};
use super::resolve::resolve_all;
use super::version::Version;
use side::{Entry, Random, Side};

const OTHER: BrickId = BrickId(2);
/// Seeds of each test, and with `MORTAR_TEST_SCALE=full`.
const SEEDS: u64 = 40;
const SEEDS_FULL: u64 = 400;
/// A seed with which the other side moves a directory, makes another in its place and fills it.
const MADE_WHERE_ONE_WAS_MOVED_AWAY: u64 = 244;
/// A seed with which it moves a directory below one that was in it.
const MOVED_IN_A_CIRCLE: u64 = 352;
const COMMON_STEPS: usize = 25;
const ALONE_STEPS: usize = 25;

fn seeds() -> u64 {
    let full = std::env::var_os("MORTAR_TEST_SCALE").is_some_and(|scale| scale == "full");
    if full { SEEDS_FULL } else { SEEDS }
}

/// A base that answers so many requests and is then gone.
struct Fragile<'a> {
    base: &'a Side,
    left: Mutex<u32>,
}

impl Base for Fragile<'_> {
    fn call(&self, work: SplitWork, op: OpKind, payload: &[u8]) -> Result<Told, FsError> {
        let mut left = self.left.lock().unwrap();
        *left = left.checked_sub(1).ok_or(FsError::TimedOut)?;
        self.base.call(work, op, payload)
    }
}

/// Both sides with the same tree, as a set has them before its split.
fn pair(random: &mut Random) -> (Side, Side) {
    let (base, other) = (Side::new(), Side::new());
    for _ in 0..COMMON_STEPS {
        if let Some((change, payload)) = base.random_step(random, "") {
            other.apply(&change, &payload);
        }
    }
    base.is_alone();
    other.is_alone();
    (base, other)
}

fn merge(base: &dyn Base, other: &Side, favorite: Favorite) -> Result<Report, MergeError> {
    let side = Merging {
        brick: OTHER,
        epoch: EpochRef { number: 7, id: 77 },
        favorite,
    };
    Merger::new(other.brick(), other.alone(), base, side).run()
}

/// Merges, cut off after random numbers of requests until it comes to its end.
fn merge_in_pieces(base: &Side, other: &Side, random: &mut Random) {
    for attempt in 1.. {
        let left = Mutex::new(random.below(30 * attempt) as u32);
        match merge(&Fragile { base, left }, other, Favorite::None) {
            Ok(_) => return,
            Err(MergeError::Base(FsError::TimedOut)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn in_place(tree: &BTreeMap<String, Entry>) -> BTreeMap<String, Entry> {
    let kept = tree
        .iter()
        .filter(|(path, _)| !path.starts_with("/.split-brain"));
    kept.map(|(path, entry)| (path.clone(), entry.clone()))
        .collect()
}

fn contents(tree: &BTreeMap<String, Entry>) -> BTreeSet<Vec<u8>> {
    let of = tree.values().filter_map(|entry| entry.content.clone());
    of.filter(|content| !content.is_empty()).collect()
}

fn versions(side: &Side) -> Vec<Version> {
    let tree = side.tree();
    let names = tree
        .keys()
        .filter_map(|path| path.strip_prefix("/.split-brain/"));
    names
        .filter_map(|name| Version::parse(name.as_bytes()))
        .collect()
}

fn nothing_unfinished(side: &Side, seed: u64) {
    let left = |path: &String| path.ends_with(".part") || path.ends_with(".aside");
    let left = side.tree().into_keys().find(left);
    assert_eq!(left, None, "seed {seed}");
}

#[test]
fn what_only_the_other_side_changed_is_all_brought() {
    for seed in (0..seeds()).chain([MADE_WHERE_ONE_WAS_MOVED_AWAY]) {
        let mut random = Random(seed);
        let (base, other) = pair(&mut random);
        for _ in 0..ALONE_STEPS {
            other.random_step(&mut random, "");
        }
        merge_in_pieces(&base, &other, &mut random);
        assert_eq!(in_place(&base.tree()), other.tree(), "seed {seed}");
        assert_eq!(versions(&base), [], "seed {seed}");
        nothing_unfinished(&base, seed);
    }
}

#[test]
fn what_only_the_base_changed_stays() {
    for seed in 0..seeds() / 2 {
        let mut random = Random(seed);
        let (base, other) = pair(&mut random);
        for _ in 0..ALONE_STEPS {
            base.random_step(&mut random, "");
        }
        let before = base.tree();
        merge_in_pieces(&base, &other, &mut random);
        assert_eq!(base.tree(), before, "seed {seed}");
    }
}

#[test]
fn changes_in_different_places_are_joined_without_a_conflict() {
    for seed in (0..seeds()).chain([MOVED_IN_A_CIRCLE]) {
        let mut random = Random(seed);
        let (base, other) = (Side::new(), Side::new());
        for name in ["one", "two"] {
            let (change, payload) = base.make_directory(name);
            other.apply(&change, &payload);
        }
        for place in ["/one", "/two"] {
            for _ in 0..COMMON_STEPS / 2 {
                if let Some((change, payload)) = base.random_step(&mut random, place) {
                    other.apply(&change, &payload);
                }
            }
        }
        base.is_alone();
        other.is_alone();
        for _ in 0..ALONE_STEPS {
            base.random_step(&mut random, "/one");
            other.random_step(&mut random, "/two");
        }
        let mut joined = base.tree();
        joined.retain(|path, _| !path.starts_with("/two"));
        let of_other = other.tree().into_iter();
        joined.extend(of_other.filter(|(path, _)| path.starts_with("/two")));
        merge_in_pieces(&base, &other, &mut random);
        assert_eq!(in_place(&base.tree()), joined, "seed {seed}");
        assert_eq!(versions(&base), [], "seed {seed}");
        nothing_unfinished(&base, seed);
    }
}

/// What has the new name of a directory that was moved, before the split.
#[derive(Clone, Copy, Debug)]
enum InTheWay {
    File,
    EmptyDirectory,
    FilledDirectory,
}

/// As logs and backups are rotated: a directory takes the place of an old one, and a new one its.
#[test]
fn what_is_put_into_a_new_directory_does_not_move_away_with_the_one_that_was_there() {
    use InTheWay::{EmptyDirectory, File, FilledDirectory};
    // Names of all orders in which a directory lists them.
    let names = ["x", "y", "z", "daily.0", "daily.1", "daily.2"];
    let pairs = names.iter().flat_map(|from| names.map(|to| (*from, to)));
    let pairs: Vec<_> = pairs.filter(|(from, to)| from != to).collect();
    for way in [File, EmptyDirectory, FilledDirectory] {
        for (from, to) in &pairs {
            let (base, other) = (Side::new(), Side::new());
            let mut common = vec![
                base.make_directory(from),
                base.make_file_in(&format!("/{from}"), "old"),
            ];
            match way {
                File => common.push(base.make_file(to)),
                EmptyDirectory => common.push(base.make_directory(to)),
                FilledDirectory => {
                    common.push(base.make_directory(to));
                    common.push(base.make_file_in(&format!("/{to}"), "older"));
                }
            }
            for (change, payload) in common {
                other.apply(&change, &payload);
            }
            base.is_alone();
            other.is_alone();
            if matches!(way, FilledDirectory) {
                other.remove(&format!("/{to}/older"));
            }
            other.remove(&format!("/{to}"));
            other.move_to(&format!("/{from}"), "", to);
            other.make_directory(from);
            other.make_file_in(&format!("/{from}"), "new");
            let report = merge(&base, &other, Favorite::None).unwrap();
            let what = format!("{way:?} {from} {to}");
            assert_eq!(in_place(&base.tree()), other.tree(), "{what}");
            assert_eq!(report.conflicts, 0, "{what}");
            let paths: Vec<String> = other.tree().into_keys().collect();
            assert!(paths.contains(&format!("/{from}/new")), "{what}: {paths:?}");
            assert!(paths.contains(&format!("/{to}/old")), "{what}: {paths:?}");
        }
    }
}

/// What is in the way was changed by the base too, and stays: so does the directory.
#[test]
fn a_new_directory_is_joined_with_one_that_cannot_make_way() {
    let (base, other) = (Side::new(), Side::new());
    let common = [
        base.make_directory("x"),
        base.make_file_in("/x", "old"),
        base.make_file("y"),
    ];
    for (change, payload) in common {
        other.apply(&change, &payload);
    }
    base.is_alone();
    other.is_alone();
    base.overwrite("/y", b"of the base");
    other.remove("/y");
    other.move_to("/x", "", "y");
    other.make_directory("x");
    other.make_file_in("/x", "new");
    merge(&base, &other, Favorite::None).unwrap();
    let tree = base.tree();
    assert_eq!(tree["/y"].content.as_deref(), Some(&b"of the base"[..]));
    assert!(tree.contains_key("/x/old") && tree.contains_key("/x/new"));
    nothing_unfinished(&base, 0);
}

/// The other side put a directory in the place of a file that the base changed, and moved one of the
/// base's there.
#[test]
fn no_directory_of_the_base_is_moved_into_a_version() {
    // Both orders in which a directory lists them.
    for (file, moved) in [("y", "x"), ("x", "y")] {
        let (base, other) = (Side::new(), Side::new());
        let common = [
            base.make_directory(moved),
            base.make_file_in(&format!("/{moved}"), "old"),
            base.make_file(file),
        ];
        for (change, payload) in common {
            other.apply(&change, &payload);
        }
        base.is_alone();
        other.is_alone();
        base.overwrite(&format!("/{file}"), b"of the base");
        other.remove(&format!("/{file}"));
        other.make_directory(file);
        other.move_to(&format!("/{moved}"), &format!("/{file}"), "inside");
        other.make_directory(moved);
        other.make_file_in(&format!("/{moved}"), "new");
        let report = merge(&base, &other, Favorite::None).unwrap();
        assert_eq!(report.conflicts, 1);
        let tree = base.tree();
        for name in ["old", "new"] {
            let path = format!("/{moved}/{name}");
            assert!(tree.contains_key(&path), "no {path}: {:?}", tree.keys());
        }
        nothing_unfinished(&base, 0);
    }
}

/// The heart of it: each content that either side wrote alone and still had is there afterwards.
#[test]
fn whatever_both_changed_nothing_is_lost() {
    let mut conflicts = 0;
    for seed in 0..2 * seeds() {
        let mut random = Random(seed);
        let (base, other) = pair(&mut random);
        let common = contents(&base.tree());
        for _ in 0..ALONE_STEPS {
            base.random_step(&mut random, "");
            other.random_step(&mut random, "");
        }
        let (mine, theirs) = (base.tree(), other.tree());
        merge_in_pieces(&base, &other, &mut random);
        let merged = base.tree();
        let there = contents(&merged);
        for content in contents(&theirs).difference(&common) {
            let text = String::from_utf8_lossy(content);
            assert!(
                there.contains(content),
                "seed {seed}: {text} of the other side is lost"
            );
        }
        // Perhaps under the name that the other side gave it, but not as a mere version.
        let served = contents(&in_place(&merged));
        for content in contents(&mine).difference(&common) {
            let text = String::from_utf8_lossy(content);
            assert!(
                served.contains(content),
                "seed {seed}: {text} of the base is lost"
            );
        }
        nothing_unfinished(&base, seed);
        for version in versions(&base) {
            assert_eq!(version.brick, OTHER, "seed {seed}");
            assert_ne!(version.base, Gfid::default(), "seed {seed}");
            conflicts += 1;
        }
    }
    assert!(
        conflicts > 50,
        "only {conflicts} conflicts: nothing was tested"
    );
}

#[test]
fn a_policy_leaves_no_conflict_and_a_command_none_that_is_undecided() {
    let mut decided = 0;
    for seed in 0..seeds() / 2 {
        let mut random = Random(seed);
        let (base, other) = (Side::new(), Side::new());
        let (change, payload) = base.make_file("file");
        other.apply(&change, &payload);
        base.is_alone();
        other.is_alone();
        base.overwrite("/file", b"of the base");
        other.overwrite("/file", b"of the other");
        other.overwrite("/file", b"of the other side");
        let favorite = match random.below(3) {
            0 => Favorite::Size,
            1 => Favorite::Mtime,
            _ => Favorite::None,
        };
        let report = merge(&base, &other, favorite).unwrap();
        if favorite == Favorite::None {
            assert_eq!((report.conflicts, versions(&base).len()), (1, 1));
            let chosen = if random.below(2) == 0 {
                OTHER
            } else {
                BrickId(1)
            };
            assert_eq!(resolve_all(&base, chosen).unwrap(), 1);
            let wanted: &[u8] = match chosen {
                OTHER => b"of the other side",
                _ => b"of the base",
            };
            assert_eq!(base.tree()["/file"].content.as_deref(), Some(wanted));
            decided += 1;
        } else {
            let wanted: &[u8] = b"of the other side";
            assert_eq!(base.tree()["/file"].content.as_deref(), Some(wanted));
        }
        assert_eq!(versions(&base), []);
    }
    assert!(decided > 0);
}
