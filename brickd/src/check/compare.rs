//! Laying what several bricks tell side by side, and what is wrong with a row, in words.

use std::collections::{BTreeMap, VecDeque};

use mortar_common::Gfid;
use mortar_proto::control::{CheckedName, CheckedObject, CheckedOrphan};
use mortar_proto::data::{Object, Time};

use crate::brick::store::handle_bucket;

/// Names told of a directory that differs.
const NAMES_TOLD_MAX: usize = 5;

/// Where an object stands in the order in which bricks tell of theirs.
pub fn place_of(gfid: Gfid) -> (u32, Gfid) {
    (handle_bucket(gfid), gfid)
}

/// The objects of several bricks, merged into rows.
#[derive(Debug)]
pub struct Merge {
    sides: Vec<Side>,
}

#[derive(Debug, Default)]
struct Side {
    objects: VecDeque<CheckedObject>,
    ended: bool,
}

/// One object as each brick has it.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// The object.
    pub gfid: Gfid,
    /// In the order of the bricks; `None`: that brick did not tell of it.
    pub sides: Vec<Option<CheckedObject>>,
}

impl Merge {
    /// Of so many bricks.
    pub fn of(sides: usize) -> Self {
        Merge {
            sides: (0..sides).map(|_| Side::default()).collect(),
        }
    }

    /// The bricks of which the next page is needed before a row can be told.
    pub fn hungry(&self) -> Vec<usize> {
        let empty = |(_, side): &(usize, &Side)| side.objects.is_empty() && !side.ended;
        let sides = self.sides.iter().enumerate().filter(empty);
        sides.map(|(index, _)| index).collect()
    }

    /// A page of a brick came.
    pub fn feed(&mut self, side: usize, objects: Vec<CheckedObject>, was_last: bool) {
        self.sides[side].objects.extend(objects);
        self.sides[side].ended |= was_last;
    }

    /// The next row; `None`: a page is needed, or all is told.
    pub fn next_row(&mut self) -> Option<Row> {
        if !self.hungry().is_empty() {
            return None;
        }
        let front = |side: &Side| side.objects.front().map(gfid_of);
        let gfid = self
            .sides
            .iter()
            .filter_map(front)
            .min_by_key(|gfid| place_of(*gfid))?;
        let take = |side: &mut Side| match front(side) {
            Some(its) if its == gfid => side.objects.pop_front(),
            _ => None,
        };
        let sides = self.sides.iter_mut().map(take).collect();
        Some(Row { gfid, sides })
    }
}

fn gfid_of(object: &CheckedObject) -> Gfid {
    object.gfid.unwrap_or_default()
}

impl Row {
    /// What is wrong, one sentence each; nothing when all is well. `bricks`: their names.
    pub fn problems(&self, bricks: &[String]) -> Vec<String> {
        let has = |side: &&CheckedObject| side.object.is_some() || !side.problem.is_empty();
        let named = self
            .sides
            .iter()
            .map(|side| side.as_ref().filter(has))
            .zip(bricks);
        let (there, missing): (Vec<_>, Vec<_>) = named.partition(|(side, _)| side.is_some());
        let there: Vec<(&CheckedObject, &String)> = there
            .into_iter()
            .filter_map(|(side, brick)| Some((side?, brick)))
            .collect();
        let Some(((first, on_first), others)) = there.split_first() else {
            return Vec::new();
        };
        let mut problems: Vec<String> = missing
            .iter()
            .map(|(_, brick)| format!("it is on {on_first} and not on {brick}"))
            .collect();
        for (other, on_other) in others {
            let differ = differences(first, other);
            problems.extend(differ.into_iter().map(|what| match what {
                What::Values(what, a, b) => format!("{what}: {a} on {on_first}, {b} on {on_other}"),
                What::Hidden(what) => format!("{what} differ on {on_first} and {on_other}"),
            }));
        }
        // A new primary keeps every orphan for a while, until sessions have told it what is open.
        let is_kept = |(side, _): &(&CheckedObject, _)| side.orphan() == CheckedOrphan::CheckedOpen;
        let is_kept = there.iter().any(is_kept);
        for (side, brick) in &there {
            problems.extend(alone(side, is_kept).map(|what| format!("{what} on {brick}")));
        }
        problems
    }
}

/// What differs between two copies of an object.
enum What {
    Values(&'static str, String, String),
    Hidden(String),
}

fn differences(a: &CheckedObject, b: &CheckedObject) -> Vec<What> {
    let mut found = Vec::new();
    let (Some(one), Some(other)) = (&a.object, &b.object) else {
        return found;
    };
    let mut values = |what, a: String, b: String| {
        if a != b {
            found.push(What::Values(what, a, b));
        }
    };
    let octal = |object: &Object| format!("{:o}", object.mode);
    let owner = |object: &Object| format!("{}:{}", object.uid, object.gid);
    values("mode", octal(one), octal(other));
    values("owner", owner(one), owner(other));
    values("size", one.size.to_string(), other.size.to_string());
    values("mtime", time(one.mtime), time(other.mtime));
    values("device", one.rdev.to_string(), other.rdev.to_string());
    values("link count", one.nlink.to_string(), other.nlink.to_string());
    let mut hidden = |what: String, same: bool| {
        if !same {
            found.push(What::Hidden(what));
        }
    };
    hidden("the extended attributes".to_owned(), a.xattrs == b.xattrs);
    hidden("the texts of the symlink".to_owned(), a.target == b.target);
    if one.mode & libc::S_IFMT == libc::S_IFDIR {
        hidden(format!("the names{}", told(a, b)), a.content == b.content);
    } else {
        hidden("the contents".to_owned(), a.content == b.content);
    }
    found
}

fn time(time: Option<Time>) -> String {
    let time = time.unwrap_or_default();
    format!("{}.{:09}", time.secs, time.nanos)
}

/// Some of the names that differ, when the bricks were asked for them.
fn told(a: &CheckedObject, b: &CheckedObject) -> String {
    let by_name = |object: &CheckedObject| -> BTreeMap<String, Option<Gfid>> {
        let entry = |entry: &CheckedName| (entry.name.clone(), entry.gfid);
        object.names.iter().map(entry).collect()
    };
    let (of_a, of_b) = (by_name(a), by_name(b));
    let differing = |(name, gfid): &(&String, &Option<Gfid>)| {
        of_a.get(*name) != Some(gfid) || of_b.get(*name) != Some(gfid)
    };
    let names = of_a.iter().chain(&of_b).filter(differing);
    let mut names: Vec<String> = names.map(|(name, _)| format!("'{name}'")).collect();
    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(NAMES_TOLD_MAX);
    names.truncate(NAMES_TOLD_MAX);
    match (names.is_empty(), more) {
        (true, _) => String::new(),
        (false, 0) => format!(" ({})", names.join(", ")),
        (false, more) => format!(" ({} and {more} more)", names.join(", ")),
    }
}

/// What is wrong with one copy by itself. `is_kept`: some copy takes the object for open.
fn alone(object: &CheckedObject, is_kept: bool) -> impl Iterator<Item = String> + '_ {
    let orphan = match object.orphan() {
        CheckedOrphan::CheckedNamed | CheckedOrphan::CheckedOpen => None,
        CheckedOrphan::CheckedIdle if is_kept => None,
        CheckedOrphan::CheckedIdle => Some("orphan handle: it has no name and nobody has it open"),
        CheckedOrphan::CheckedUnmarked => Some("orphan handle: it has no name and no mark of that"),
    };
    let strays = object.strays.iter();
    let strays = strays.map(|name| format!("'{name}' in it is no object of the volume"));
    let problem = (!object.problem.is_empty()).then(|| format!("unreadable: {}", object.problem));
    orphan
        .map(str::to_owned)
        .into_iter()
        .chain(strays)
        .chain(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(lo: u64, mode: u32) -> CheckedObject {
        let object = Object {
            mode,
            nlink: 1,
            ..Object::default()
        };
        CheckedObject {
            gfid: Some(Gfid { hi: 0, lo }),
            object: Some(object),
            ..CheckedObject::default()
        }
    }

    fn bricks() -> [String; 2] {
        ["a:/b".to_owned(), "c:/d".to_owned()]
    }

    #[test]
    fn rows_come_in_order_however_the_pages_are_cut() {
        let file = |lo| object(lo, libc::S_IFREG);
        let mut merge = Merge::of(2);
        let mut rows = Vec::new();
        let mut pages = [
            VecDeque::from([vec![file(1), file(2)], vec![], vec![file(5)]]),
            VecDeque::from([vec![file(2)], vec![file(3), file(5)]]),
        ];
        loop {
            while let Some(row) = merge.next_row() {
                let there: Vec<bool> = row.sides.iter().map(Option::is_some).collect();
                rows.push((row.gfid.lo, there[0], there[1]));
            }
            let hungry = merge.hungry();
            if hungry.is_empty() {
                break;
            }
            for side in hungry {
                let page = pages[side].pop_front().unwrap();
                let was_last = pages[side].is_empty();
                merge.feed(side, page, was_last);
            }
        }
        let expected = [
            (1, true, false),
            (2, true, true),
            (3, false, true),
            (5, true, true),
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn each_difference_is_said_in_words() {
        let said = |change: &dyn Fn(&mut CheckedObject), mode| {
            let mut other = object(7, mode);
            change(&mut other);
            let sides = vec![Some(object(7, mode)), Some(other)];
            let gfid = Gfid { hi: 0, lo: 7 };
            Row { gfid, sides }.problems(&bricks()).join("; ")
        };
        let file = libc::S_IFREG | 0o644;
        assert_eq!(said(&|_| {}, file), "");
        let of_object = |change: fn(&mut Object)| {
            move |it: &mut CheckedObject| change(it.object.as_mut().unwrap())
        };
        let mode = said(&of_object(|it| it.mode = libc::S_IFREG | 0o600), file);
        assert_eq!(mode, "mode: 100644 on a:/b, 100600 on c:/d");
        assert!(said(&of_object(|it| it.size = 3), file).contains("size: 0 on"));
        assert!(said(&of_object(|it| it.uid = 3), file).contains("owner: 0:0 on"));
        assert!(said(&of_object(|it| it.nlink = 2), file).contains("link count: 1 on"));
        let later = of_object(|it| it.mtime = Some(Time { secs: 1, nanos: 5 }));
        assert!(said(&later, file).contains("1.000000005 on c:/d"));
        assert!(said(&|it| it.content = 1, file).contains("the contents differ on"));
        assert!(said(&|it| it.xattrs = 1, file).contains("the extended attributes differ"));
        assert!(said(&|it| it.object = None, file).contains("on a:/b and not on c:/d"));
        let idle = said(&|it| it.set_orphan(CheckedOrphan::CheckedIdle), file);
        assert!(
            idle.contains("orphan handle") && idle.ends_with("on c:/d"),
            "{idle}"
        );
        let mut open = object(7, file);
        open.set_orphan(CheckedOrphan::CheckedOpen);
        let mut idle = object(7, file);
        idle.set_orphan(CheckedOrphan::CheckedIdle);
        let kept = Row {
            gfid: Gfid { hi: 0, lo: 7 },
            sides: vec![Some(open), Some(idle)],
        };
        assert_eq!(kept.problems(&bricks()), Vec::<String>::new());
        let strays = said(&|it| it.strays = vec!["x".to_owned()], file);
        assert_eq!(strays, "'x' in it is no object of the volume on c:/d");
        let named = |it: &mut CheckedObject| {
            it.content = 1;
            it.names = vec![CheckedName {
                name: "x".to_owned(),
                gfid: None,
            }];
        };
        let names = said(&named, libc::S_IFDIR);
        assert_eq!(names, "the names ('x') differ on a:/b and c:/d");
    }
}
