//! What one absent or syncing copy may lack, in memory. Pure: no disk, clock or network.
//!
//! Marks are grouped by object: its attributes, the names in it (of a directory), its bytes (of a
//! file). A mark is *pending* until a heal change has carried what it stands for; from then on the
//! stream keeps the copy right and the mark holds nothing up, but it stays until the copy has
//! confirmed a sync that covers the number of that heal change. A change that touches it in
//! between, and is not applied there, makes it pending again. So that number is the mark's
//! counter.

mod alone;
mod carried;
mod compared;

use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Range;

use mortar_common::Gfid;
use mortar_proto::data::Change;

pub use self::compared::Scope;
use super::links::{Held, Links};
pub use alone::Link;

use super::ranges::{RangeValue, Ranges};
use super::record::{MarkRecord, NameMark, RangeMark};
use super::touch::{Lacks, TO_THE_END, Touch, each_touch};

/// Marks kept in memory for one copy (about 100 bytes each). Beyond it they become coarser:
/// one range a file, then whole directories, then everything.
pub const MARKS_MAX: usize = 400_000;
/// When there are too many marks, a directory with more marked names than this is marked whole.
const NAMES_KEPT: usize = 16;
/// Marks written into one record of a journal.
const RECORD_MARKS: usize = 1_000;

/// How far a mark is on its way out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MarkState {
    /// The copy lacks it.
    Pending,
    /// Carried, and disturbed again by what was carried later: to be carried once more before it
    /// may go. Holds nothing up.
    Owed,
    /// Carried by the heal change of this number; goes when a sync covers it.
    Carried(u64),
}

impl RangeValue for MarkState {
    fn joined(self, other: Self) -> Self {
        match (self, other) {
            (MarkState::Carried(one), MarkState::Carried(two)) => MarkState::Carried(one.max(two)),
            _ if self == other => self,
            _ => MarkState::Pending,
        }
    }
    fn joins_neighbour(self, other: Self) -> bool {
        match (self, other) {
            (MarkState::Carried(_), MarkState::Carried(_)) => true,
            _ => self == other,
        }
    }
}

/// How far the comparison of a directory marked whole is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Listing {
    Pending,
    /// Being compared: from now on single names are marked, by the comparison and by changes.
    Comparing,
}

/// The mark of one name.
#[derive(Clone, Copy, Debug)]
struct NameState {
    state: MarkState,
    held: Held,
    /// Another value each time the name is marked.
    counter: u64,
}

/// The marks of one object.
#[derive(Clone, Debug, Default)]
struct ObjectMarks {
    /// Order of age among objects with something pending.
    since: u64,
    attributes: Option<(MarkState, Lacks)>,
    listing: Option<Listing>,
    names: BTreeMap<Box<[u8]>, NameState>,
    names_pending: usize,
    ranges: Ranges<MarkState>,
}

impl ObjectMarks {
    fn has_pending(&self) -> bool {
        self.listing.is_some()
            || self.names_pending > 0
            || matches!(self.attributes, Some((MarkState::Pending, _)))
            || self
                .ranges
                .iter()
                .any(|(_, state)| state == MarkState::Pending)
    }

    fn len(&self) -> usize {
        usize::from(self.attributes.is_some())
            + usize::from(self.listing.is_some())
            + self.names.len()
            + self.ranges.len()
    }

    fn is_name_pending(&self, name: &[u8]) -> bool {
        self.names
            .get(name)
            .is_some_and(|mark| mark.state == MarkState::Pending)
    }

    fn settle_names(&mut self, links: &mut Links, number: u64) {
        for mark in self.names.values_mut() {
            if mark.state == MarkState::Pending {
                links.remove(mark.held);
            }
            mark.state = MarkState::Carried(number);
        }
        self.names_pending = 0;
    }

    fn is_blocked(&self) -> bool {
        self.attributes == Some((MarkState::Pending, Lacks::Attributes))
    }
}

/// What is pending of one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// Its attributes, xattrs or existence.
    pub attributes: bool,
    /// Any name in it: the directory is to be compared.
    pub listing: bool,
    /// Single names in it.
    pub names: bool,
    /// Bytes.
    pub bytes: bool,
}

impl Wanted {
    /// Whether anything is.
    pub fn any(self) -> bool {
        self.attributes || self.listing || self.names || self.bytes
    }
}

/// The marks of one object in numbers, for people to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// The object.
    pub gfid: Gfid,
    /// Its attributes differ.
    pub attributes: bool,
    /// Names in it that differ.
    pub names: usize,
    /// Any name in it may differ.
    pub listing: bool,
    /// Its ranges that differ.
    pub ranges: Vec<Range<u64>>,
    /// Something of it is pending (not only waiting for a confirmed sync).
    pub pending: bool,
}

/// What one absent or syncing copy may lack.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    objects: BTreeMap<Gfid, ObjectMarks>,
    count: usize,
    /// Directories marked whole.
    listings: usize,
    links: Links,
    next_since: u64,
    next_counter: u64,
    /// Set: anything may differ. The value changes whenever the comparison must begin anew.
    everything: Option<u64>,
    scope: Scope,
    compared: Option<Gfid>,
}

impl Marks {
    /// Of a copy that lacks nothing.
    pub fn new() -> Self {
        Marks::default()
    }

    /// Marks all that the change touches. Returns what was not marked before: to be written down.
    pub fn add(&mut self, change: &Change) -> MarkRecord {
        let mut record = MarkRecord::default();
        each_touch(change, &mut |touch| self.mark(touch, &mut record));
        record
    }

    /// Whether anything that the change touches is pending, so that the copy cannot apply it.
    pub fn touches(&self, change: &Change) -> bool {
        let mut marked = false;
        each_touch(change, &mut |touch| {
            marked = marked || self.is_pending(&touch)
        });
        marked
    }

    /// Marks one thing. What was not marked before is added to `record`.
    pub fn mark(&mut self, touch: Touch<'_>, record: &mut MarkRecord) {
        match touch {
            Touch::Object(gfid, lacks) => {
                let object = self.pending_object(gfid);
                let before = object.attributes.map(|(_, before)| before);
                object.attributes =
                    Some((MarkState::Pending, before.map_or(lacks, |b| b.max(lacks))));
                if before.is_none() {
                    self.count += 1;
                    record.objects.push(gfid);
                }
            }
            Touch::Name(parent, name, held) => self.mark_name(parent, name, held, record),
            Touch::Bytes(gfid, range) => {
                let object = self.pending_object(gfid);
                let before = object.ranges.len();
                if !object.ranges.covers(&range) {
                    record.ranges.push(RangeMark {
                        gfid: Some(gfid),
                        start: range.start,
                        end: range.end,
                    });
                }
                object.ranges.set(range, MarkState::Pending);
                let after = object.ranges.len();
                self.count = self.count + after - before;
            }
            Touch::Reads(..) | Touch::Finds(_) | Touch::Takes(_) => {}
        }
        if self.count > MARKS_MAX {
            self.coarsen(record);
        }
    }

    /// Marks every name of a directory.
    pub fn mark_listing(&mut self, gfid: Gfid, record: &mut MarkRecord) {
        let object = self.pending_object(gfid);
        if object.listing != Some(Listing::Pending) {
            record.listings.push(gfid);
        }
        if object.listing.replace(Listing::Pending).is_none() {
            self.count += 1;
            self.listings += 1;
        }
    }

    /// Takes in marks that were written down, or another copy's worth of them.
    pub fn restore(&mut self, from: &MarkRecord) {
        self.take_in(from, &mut MarkRecord::default());
        if from.compared.is_some() && self.everything.is_some() {
            self.compared = from.compared;
        }
    }

    /// All marks, pending or not, in records of bounded size.
    pub fn records(&self) -> Vec<MarkRecord> {
        let mut records = Vec::new();
        let mut record = MarkRecord {
            everything: self.everything.is_some(),
            touched_only: self.everything.is_some() && self.scope == Scope::Touched,
            compared: self.compared,
            ..Default::default()
        };
        for (gfid, object) in &self.objects {
            record.objects.extend(object.attributes.map(|_| *gfid));
            record.listings.extend(object.listing.map(|_| *gfid));
            for (range, _) in object.ranges.iter() {
                let mark = RangeMark {
                    gfid: Some(*gfid),
                    start: range.start,
                    end: range.end,
                };
                record.ranges.push(mark);
            }
            for name in object.names.keys() {
                record.names.push(NameMark {
                    parent: Some(*gfid),
                    name: name.to_vec(),
                });
                if record.len() >= RECORD_MARKS {
                    records.push(std::mem::take(&mut record));
                }
            }
            if record.len() >= RECORD_MARKS {
                records.push(std::mem::take(&mut record));
            }
        }
        if !record.is_empty() {
            records.push(record);
        }
        records
    }

    /// The objects with something pending, oldest first, at most `limit`.
    pub fn oldest(&self, limit: usize) -> Vec<Gfid> {
        let mut heap = BinaryHeap::new();
        for (gfid, object) in &self.objects {
            if object.has_pending() {
                heap.push((object.since, *gfid));
                if heap.len() > limit {
                    heap.pop();
                }
            }
        }
        heap.into_sorted_vec()
            .into_iter()
            .map(|(_, gfid)| gfid)
            .collect()
    }

    /// What is pending of an object.
    pub fn wanted(&self, gfid: Gfid) -> Wanted {
        let Some(object) = self.objects.get(&gfid) else {
            return Wanted::default();
        };
        Wanted {
            attributes: matches!(object.attributes, Some((MarkState::Pending, _))),
            listing: object.listing.is_some(),
            names: object.names_pending > 0,
            bytes: object
                .ranges
                .iter()
                .any(|(_, state)| state == MarkState::Pending),
        }
    }

    /// Whether changes of the object are held up until its attributes are carried.
    pub fn is_blocked(&self, gfid: Gfid) -> bool {
        self.objects.get(&gfid).is_some_and(ObjectMarks::is_blocked)
    }

    /// Pending names of a directory, at most `limit`, each with its counter.
    pub fn pending_names(&self, gfid: Gfid, limit: usize) -> Vec<(Vec<u8>, u64)> {
        let Some(object) = self.objects.get(&gfid) else {
            return Vec::new();
        };
        let pending = object
            .names
            .iter()
            .filter(|(_, mark)| mark.state == MarkState::Pending);
        pending
            .take(limit)
            .map(|(name, mark)| (name.to_vec(), mark.counter))
            .collect()
    }

    /// How many names of a directory are pending.
    pub fn names_pending(&self, gfid: Gfid) -> usize {
        self.objects
            .get(&gfid)
            .map_or(0, |object| object.names_pending)
    }

    /// The counter of a name, if it is pending: another one when it has been marked again since.
    pub fn pending_name(&self, parent: Gfid, name: &[u8]) -> Option<u64> {
        let mark = self.objects.get(&parent)?.names.get(name)?;
        (mark.state == MarkState::Pending).then_some(mark.counter)
    }

    /// The first pending range of a file at or after `from`.
    pub fn pending_range(&self, gfid: Gfid, from: u64) -> Option<Range<u64>> {
        let ranges = &self.objects.get(&gfid)?.ranges;
        let rest = from..TO_THE_END;
        let mut pending = ranges.within(&rest);
        pending
            .find(|(_, state)| *state == MarkState::Pending)
            .map(|(range, _)| range.start.max(from)..range.end)
    }

    /// Whether the copy lacks nothing and has confirmed all that was carried.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.everything.is_none()
    }

    /// Marks in all.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Objects with marks.
    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// Bytes pending; `size_of` tells the size of a file whose mark goes to its end.
    pub fn bytes_pending(&self, mut size_of: impl FnMut(Gfid) -> u64) -> u64 {
        let mut sum = 0u64;
        for (gfid, object) in &self.objects {
            for (range, state) in object.ranges.iter() {
                if state == MarkState::Pending {
                    let end = if range.end == TO_THE_END {
                        size_of(*gfid)
                    } else {
                        range.end
                    };
                    sum = sum.saturating_add(end.saturating_sub(range.start));
                }
            }
        }
        sum
    }

    /// The marks of at most `limit` objects, for people to read.
    pub fn summaries(&self, limit: usize) -> Vec<Summary> {
        let summary = |(gfid, object): (&Gfid, &ObjectMarks)| Summary {
            gfid: *gfid,
            attributes: object.attributes.is_some(),
            names: object.names.len(),
            listing: object.listing.is_some(),
            ranges: object
                .ranges
                .iter()
                .map(|(range, _)| range.clone())
                .collect(),
            pending: object.has_pending(),
        };
        self.objects.iter().take(limit).map(summary).collect()
    }

    fn mark_name(&mut self, parent: Gfid, name: &[u8], held: Held, record: &mut MarkRecord) {
        self.pending_object(parent);
        let Some(object) = self.objects.get_mut(&parent) else {
            return;
        };
        if object.listing == Some(Listing::Pending) {
            return;
        }
        let before = object.names.get(name).copied();
        let held = match before {
            Some(mark) if mark.state == MarkState::Pending => mark.held.then(held),
            _ => held,
        };
        self.next_counter += 1;
        let counter = self.next_counter;
        object.names.insert(
            name.into(),
            NameState {
                state: MarkState::Pending,
                held,
                counter,
            },
        );
        match before {
            Some(mark) if mark.state == MarkState::Pending => self.links.remove(mark.held),
            _ => object.names_pending += 1,
        }
        self.links.add(held);
        if before.is_none() {
            self.count += 1;
            record.names.push(NameMark {
                parent: Some(parent),
                name: name.to_vec(),
            });
        }
    }

    fn is_pending(&self, touch: &Touch<'_>) -> bool {
        if self.everything.is_some() {
            return true;
        }
        if let Touch::Takes(gfid) = touch
            && (self.listings > 0 || self.links.differ(*gfid))
        {
            return true;
        }
        let (Touch::Object(gfid, _)
        | Touch::Name(gfid, ..)
        | Touch::Bytes(gfid, _)
        | Touch::Reads(gfid, _)
        | Touch::Finds(gfid)
        | Touch::Takes(gfid)) = touch;
        let Some(object) = self.objects.get(gfid) else {
            return false;
        };
        match touch {
            Touch::Object(..) | Touch::Finds(_) => object.is_blocked(),
            Touch::Name(_, name, _) => object.listing.is_some() || object.is_name_pending(name),
            Touch::Bytes(_, range) => pending_within(&object.ranges, range),
            Touch::Reads(_, range) => object.is_blocked() || pending_within(&object.ranges, range),
            Touch::Takes(_) => object.names_pending > 0,
        }
    }

    fn pending_object(&mut self, gfid: Gfid) -> &mut ObjectMarks {
        let object = self.objects.entry(gfid).or_default();
        if !object.has_pending() {
            self.next_since += 1;
            object.since = self.next_since;
        }
        object
    }

    /// Makes marks coarser until a quarter of the room is free again. Nothing is lost by it.
    fn coarsen(&mut self, record: &mut MarkRecord) {
        let enough = MARKS_MAX / 4 * 3;
        for object in self.objects.values_mut() {
            object.ranges.each_mut(|state| *state = MarkState::Pending);
            object.ranges.flatten();
        }
        self.count = self.objects.values().map(ObjectMarks::len).sum();
        if self.count > enough {
            for (gfid, object) in &mut self.objects {
                if object.names.len() > NAMES_KEPT {
                    object.settle_names(&mut self.links, 0);
                    object.names.clear();
                    self.listings += usize::from(object.listing.is_none());
                    object.listing = Some(Listing::Pending);
                    record.listings.push(*gfid);
                }
            }
            self.count = self.objects.values().map(ObjectMarks::len).sum();
        }
        if self.count > enough {
            self.objects.clear();
            (self.count, self.listings, self.links) = (0, 0, Links::default());
            self.mark_everything(self.scope, record);
        }
    }
}

fn pending_within(ranges: &Ranges<MarkState>, range: &Range<u64>) -> bool {
    ranges
        .within(range)
        .any(|(_, state)| state == MarkState::Pending)
}
