//! Counting an object's names against the links it should have, for millions of objects in bounded
//! memory: both are added up in cells by gfid, and only what is in a cell whose two sums differ is
//! counted one by one.

use std::collections::{BTreeMap, HashSet};

use mortar_common::Gfid;
use mortar_proto::control::CheckPage;
use xxhash_rust::xxh3::xxh3_64;

const CELLS: usize = 1 << 16;
/// Objects counted one by one at a time; what is above has its turn when these are settled.
const COUNTED_MAX: usize = 100_000;

/// The two sums of each cell, of one brick.
#[derive(Debug)]
pub struct LinkSums {
    /// Names found, less links that should be there.
    cells: Vec<u64>,
}

impl Default for LinkSums {
    fn default() -> Self {
        LinkSums {
            cells: vec![0; CELLS],
        }
    }
}

impl LinkSums {
    /// Takes in a page of the brick.
    pub fn add(&mut self, page: &CheckPage) {
        for gfid in names_of(page) {
            let (cell, weight) = cell_of(gfid);
            self.cells[cell] = self.cells[cell].wrapping_add(weight);
        }
        for object in &page.objects {
            let (cell, weight) = cell_of(object.gfid.unwrap_or_default());
            let links = weight.wrapping_mul(u64::from(object.links));
            self.cells[cell] = self.cells[cell].wrapping_sub(links);
        }
    }

    /// Begins to count what is in cells whose sums differ; `None`: all are equal.
    pub fn suspects(&self) -> Option<Counted> {
        let differ = |(_, sum): &(usize, &u64)| **sum != 0;
        let cells: HashSet<usize> = self
            .cells
            .iter()
            .enumerate()
            .filter(differ)
            .map(|it| it.0)
            .collect();
        (!cells.is_empty()).then(|| Counted {
            only: Only::Cells(cells),
            counts: BTreeMap::new(),
        })
    }
}

/// Objects whose names are counted one by one.
#[derive(Debug)]
pub struct Counted {
    only: Only,
    counts: BTreeMap<Gfid, Count>,
}

#[derive(Debug)]
enum Only {
    Cells(HashSet<usize>),
    Objects(HashSet<Gfid>),
}

/// What was counted of one object.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Count {
    names: u64,
    /// `None`: the brick has no such object.
    links: Option<u32>,
    /// Tells whether the object was changed between two counts.
    changed_by: u64,
}

impl Count {
    fn is_right(&self) -> bool {
        self.names == u64::from(self.links.unwrap_or(0))
    }
}

impl Counted {
    /// Takes in a page of the brick.
    pub fn add(&mut self, page: &CheckPage) {
        for gfid in names_of(page) {
            if let Some(count) = self.count(gfid) {
                count.names += 1;
            }
        }
        for object in &page.objects {
            let changed_by = object
                .object
                .as_ref()
                .map_or(0, |object| object.attr_counter);
            if let Some(count) = self.count(object.gfid.unwrap_or_default()) {
                (count.links, count.changed_by) = (Some(object.links), changed_by);
            }
        }
    }

    /// The walk is over: what is wrong is to be counted once more; `None`: nothing is.
    pub fn again(&self) -> Option<Counted> {
        let wrong: HashSet<Gfid> = self.wrong().map(|(gfid, _)| gfid).collect();
        (!wrong.is_empty()).then(|| Counted {
            only: Only::Objects(wrong),
            counts: BTreeMap::new(),
        })
    }

    /// What is wrong here just as it was in the count before, in words.
    pub fn confirmed(&self, before: &Counted) -> Vec<(Gfid, String)> {
        let same = self
            .wrong()
            .filter(|(gfid, count)| before.counts.get(gfid) == Some(count));
        let words = |count: &Count| match (count.links, count.names) {
            (None, names) => format!("wrong link count: {names} names, and no object"),
            (Some(links), names) => {
                format!(
                    "wrong link count: {links} links to it, {names} of them names in the volume"
                )
            }
        };
        same.map(|(gfid, count)| (gfid, words(count))).collect()
    }

    fn wrong(&self) -> impl Iterator<Item = (Gfid, &Count)> {
        let counts = self.counts.iter().filter(|(_, count)| !count.is_right());
        counts.map(|(gfid, count)| (*gfid, count))
    }

    fn count(&mut self, gfid: Gfid) -> Option<&mut Count> {
        let wanted = match &self.only {
            Only::Cells(cells) => cells.contains(&cell_of(gfid).0),
            Only::Objects(objects) => objects.contains(&gfid),
        };
        let room = self.counts.len() < COUNTED_MAX || self.counts.contains_key(&gfid);
        (wanted && room).then(|| self.counts.entry(gfid).or_default())
    }
}

fn names_of(page: &CheckPage) -> impl Iterator<Item = Gfid> + '_ {
    page.names.chunks_exact(16).filter_map(Gfid::from_slice)
}

/// The cell of an object, and what one of its names counts there.
fn cell_of(gfid: Gfid) -> (usize, u64) {
    let hash = xxh3_64(&gfid.to_bytes());
    (hash as usize % CELLS, hash | 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_proto::control::CheckedObject;
    use mortar_proto::data::Object;

    const FILES: u64 = 100_000;

    fn gfid(lo: u64) -> Gfid {
        Gfid { hi: 3, lo }
    }

    fn object(lo: u64, links: u32, changed_by: u64) -> CheckedObject {
        let object = Object {
            attr_counter: changed_by,
            ..Object::default()
        };
        CheckedObject {
            gfid: Some(gfid(lo)),
            object: Some(object),
            links,
            ..CheckedObject::default()
        }
    }

    /// Many files of one name each, but for those given as (file, links, names).
    fn page(changed_by: u64, others: &[(u64, u32, usize)]) -> CheckPage {
        let mut page = CheckPage::default();
        for lo in 0..FILES {
            let other = others.iter().find(|other| other.0 == lo);
            let (links, names) = other.map_or((1, 1), |other| (other.1, other.2));
            page.objects.push(object(lo, links, changed_by));
            for _ in 0..names {
                page.names.extend(gfid(lo).to_bytes());
            }
        }
        page
    }

    fn confirmed(pages: [&CheckPage; 3]) -> Vec<(Gfid, String)> {
        let mut sums = LinkSums::default();
        sums.add(pages[0]);
        let Some(mut first) = sums.suspects() else {
            return Vec::new();
        };
        first.add(pages[1]);
        assert!(first.counts.len() < 100, "everything is counted");
        let Some(mut second) = first.again() else {
            return Vec::new();
        };
        second.add(pages[2]);
        second.confirmed(&first)
    }

    #[test]
    fn wrong_counts_are_found_among_many_and_right_ones_are_not() {
        let right = page(1, &[(5, 3, 3), (6, 0, 0)]);
        assert_eq!(confirmed([&right; 3]), []);
        let wrong = page(1, &[(5, 3, 2), (6, 0, 1), (9, 1, 0)]);
        let found = confirmed([&wrong; 3]);
        let gfids: Vec<u64> = found.iter().map(|(gfid, _)| gfid.lo).collect();
        assert_eq!(gfids, [5, 6, 9]);
        assert!(found[0].1.contains("3 links to it, 2 of them"), "{found:?}");
        let mut no_object = page(1, &[]);
        no_object.names.extend(gfid(FILES).to_bytes());
        let found = confirmed([&no_object; 3]);
        assert!(found[0].1.contains("1 names, and no object"), "{found:?}");
    }

    #[test]
    fn what_changes_meanwhile_is_not_confirmed() {
        let (wrong, right) = (page(1, &[(5, 3, 2)]), page(2, &[(5, 3, 3)]));
        assert_eq!(confirmed([&wrong, &right, &right]), []);
        assert_eq!(confirmed([&wrong, &wrong, &right]), []);
        let wrong_again = page(2, &[(5, 3, 2)]);
        assert_eq!(confirmed([&wrong, &wrong, &wrong_again]), []);
    }
}
