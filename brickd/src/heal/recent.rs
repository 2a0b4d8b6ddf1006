//! What changed since the partners' last confirmed syncs: what a partner may lack when it goes
//! out now. Pure: no disk, clock or network.

use std::collections::{BTreeMap, HashMap};

use mortar_common::{BrickId, Gfid};
use mortar_proto::data::{Change, FsyncStep};

use super::links::Held;
use super::marks::{Marks, Scope};
use super::ranges::{RangeValue, Ranges};
use super::record::MarkRecord;
use super::touch::{Lacks, Touch, each_touch};

/// Entries kept (about 100 bytes each). Beyond it they become coarser, as marks do.
pub const RECENT_MAX: usize = 200_000;
/// From so many entries on all copies should be asked to sync, so that the list never overflows.
pub const RECENT_SYNC_WANTED: usize = 100_000;
/// When there are too many entries, a directory with more names than this is kept as a whole.
const NAMES_KEPT: usize = 16;
/// Fsyncs remembered until all partners have done them.
const FSYNCS_MAX: usize = 1_024;

impl RangeValue for u64 {
    fn joined(self, other: Self) -> Self {
        self.max(other)
    }
    fn joins_neighbour(self, _: Self) -> bool {
        true
    }
}

/// Last change numbers of one object, its names and its bytes.
#[derive(Debug, Default)]
struct RecentObject {
    attributes: u64,
    lacks: Option<Lacks>,
    listing: u64,
    names: HashMap<Box<[u8]>, u64>,
    ranges: Ranges<u64>,
}

impl RecentObject {
    fn len(&self) -> usize {
        1 + self.names.len() + self.ranges.len()
    }

    /// Forgets what was last changed by `floor` or before; whether anything is left.
    fn trim(&mut self, floor: u64) -> bool {
        self.names.retain(|_, number| *number > floor);
        if self.names.capacity() > 4 * self.names.len() + NAMES_KEPT {
            self.names.shrink_to_fit();
        }
        self.ranges.retain(|number| number > floor);
        if self.attributes <= floor {
            self.lacks = None;
        }
        if self.listing <= floor {
            self.listing = 0;
        }
        self.is_needed()
    }

    /// Whether anything is listed.
    fn is_needed(&self) -> bool {
        self.listing > 0
            || self.lacks.is_some()
            || !self.names.is_empty()
            || !self.ranges.is_empty()
    }
}

/// An fsync on its way to the partners.
#[derive(Debug)]
struct Fsync {
    gfid: Gfid,
    data_only: bool,
    done_by: Vec<BrickId>,
}

/// The fine list of one copy: everything that changed since the oldest confirmed sync of a partner
/// it follows, with the number of the last change.
#[derive(Debug, Default)]
pub struct Recent {
    partners: BTreeMap<BrickId, u64>,
    objects: HashMap<Gfid, RecentObject>,
    count: usize,
    /// By number, those that not all partners are known to have done.
    fsyncs: BTreeMap<u64, Fsync>,
    /// All that changed up to this number is no longer known in detail.
    everything: u64,
}

impl Recent {
    /// A list that follows nobody.
    pub fn new() -> Self {
        Recent::default()
    }

    /// Follows a partner from the moment it is sent changes: it has synced all up to `confirmed`.
    /// Every change after that number must be noted from now on.
    pub fn follow(&mut self, partner: BrickId, confirmed: u64) {
        self.partners.insert(partner, confirmed);
    }

    /// The partner is gone for good, or [`Recent::since`] has been taken over into its marks.
    pub fn forget(&mut self, partner: BrickId) {
        self.partners.remove(&partner);
        self.trim();
    }

    /// Notes an ordered change. Cheap and does nothing while no partner is followed.
    pub fn note(&mut self, change: &Change) {
        if self.partners.is_empty() {
            return;
        }
        let number = change.number;
        each_touch(change, &mut |touch| self.note_touch(touch, number));
        if self.count > RECENT_MAX {
            self.coarsen();
        }
    }

    /// The partner has confirmed a sync that covers every change up to `number`.
    pub fn confirmed(&mut self, partner: BrickId, number: u64) {
        if let Some(confirmed) = self.partners.get_mut(&partner)
            && *confirmed < number
        {
            *confirmed = number;
            self.trim();
        }
    }

    /// An fsync was sent as the change `number`, or has come as that.
    pub fn fsync_ordered(&mut self, number: u64, step: &FsyncStep) {
        if self.partners.is_empty() {
            return;
        }
        let Some(gfid) = step.gfid else { return };
        if self.fsyncs.len() >= FSYNCS_MAX {
            self.fsyncs.pop_first(); // What it covers stays listed until the next sync.
        }
        let fsync = Fsync {
            gfid,
            data_only: step.data_only,
            done_by: Vec::new(),
        };
        self.fsyncs.insert(number, fsync);
    }

    /// The partner has done the fsync of this number. When all have, what it covers is durable
    /// everywhere and not listed any more.
    pub fn fsync_done(&mut self, partner: BrickId, number: u64) {
        let Some(fsync) = self.fsyncs.get_mut(&number) else {
            return;
        };
        if !fsync.done_by.contains(&partner) {
            fsync.done_by.push(partner);
        }
        let by_all = self.partners.keys().all(|one| fsync.done_by.contains(one));
        if by_all && let Some(fsync) = self.fsyncs.remove(&number) {
            self.trim_object(&fsync, number);
        }
    }

    /// The partner has done every fsync up to this number.
    pub fn fsyncs_done(&mut self, partner: BrickId, up_to: u64) {
        let numbers: Vec<u64> = self.fsyncs.range(..=up_to).map(|(at, _)| *at).collect();
        for number in numbers {
            self.fsync_done(partner, number);
        }
    }

    /// What the partner may lack, as it goes out now.
    pub fn since(&self, partner: BrickId) -> Marks {
        let (mut marks, mut record) = (Marks::new(), MarkRecord::default());
        let confirmed = self.partners.get(&partner).copied();
        if confirmed.is_none_or(|confirmed| confirmed < self.everything) {
            marks.mark_everything(Scope::Touched, &mut record);
        }
        let confirmed = confirmed.unwrap_or(0);
        // In the order of their last changes, so that the oldest is healed first.
        let mut objects: Vec<(&Gfid, &RecentObject)> = self.objects.iter().collect();
        objects.sort_unstable_by_key(|(gfid, object)| (object.attributes, **gfid));
        for (gfid, object) in objects {
            if let Some(lacks) = object.lacks
                && object.attributes > confirmed
            {
                marks.mark(Touch::Object(*gfid, lacks), &mut record);
            }
            if object.listing > confirmed {
                marks.mark_listing(*gfid, &mut record);
            }
            for (name, _) in object
                .names
                .iter()
                .filter(|(_, number)| **number > confirmed)
            {
                marks.mark(Touch::Name(*gfid, name, Held::Unknown), &mut record);
            }
            for (range, _) in object
                .ranges
                .iter()
                .filter(|(_, number)| *number > confirmed)
            {
                marks.mark(Touch::Bytes(*gfid, range.clone()), &mut record);
            }
            record = MarkRecord::default();
        }
        marks
    }

    /// Entries kept; from [`RECENT_SYNC_WANTED`] on a sync of all copies is due.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nothing has changed since.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn note_touch(&mut self, touch: Touch<'_>, number: u64) {
        let gfid = match &touch {
            Touch::Object(gfid, _) | Touch::Name(gfid, ..) | Touch::Bytes(gfid, _) => *gfid,
            Touch::Reads(..) | Touch::Finds(_) | Touch::Takes(_) => return,
        };
        let count = &mut self.count;
        let object = self.objects.entry(gfid).or_insert_with(|| {
            *count += 1;
            RecentObject::default()
        });
        match touch {
            Touch::Object(_, lacks) => {
                object.attributes = object.attributes.max(number);
                object.lacks = object.lacks.max(Some(lacks));
            }
            Touch::Name(_, name, _) => match object.names.get_mut(name) {
                Some(last) => *last = (*last).max(number),
                None => {
                    object.names.insert(name.into(), number);
                    *count += 1;
                }
            },
            Touch::Bytes(_, range) => {
                let before = object.ranges.len();
                object.ranges.set(range, number);
                *count = *count + object.ranges.len() - before;
            }
            Touch::Reads(..) | Touch::Finds(_) | Touch::Takes(_) => {}
        }
    }

    fn trim(&mut self) {
        let Some(floor) = self.partners.values().min().copied() else {
            self.objects = HashMap::new();
            self.fsyncs = BTreeMap::new();
            self.count = 0;
            return;
        };
        self.objects.retain(|_, object| object.trim(floor));
        if self.objects.capacity() > 4 * self.objects.len() + NAMES_KEPT {
            self.objects.shrink_to_fit();
        }
        self.count = self.objects.values().map(RecentObject::len).sum();
    }

    fn trim_object(&mut self, fsync: &Fsync, number: u64) {
        let Some(object) = self.objects.get_mut(&fsync.gfid) else {
            return;
        };
        let before = object.len();
        object.ranges.retain(|last| last > number);
        if object.attributes <= number && !fsync.data_only {
            object.lacks = None;
        }
        if object.is_needed() {
            self.count = self.count + object.len() - before;
        } else {
            self.objects.remove(&fsync.gfid);
            self.count -= before;
        }
    }

    fn coarsen(&mut self) {
        let enough = RECENT_MAX / 4 * 3;
        for object in self.objects.values_mut() {
            object.ranges.flatten();
            if object.names.len() > NAMES_KEPT {
                object.listing = object
                    .names
                    .values()
                    .copied()
                    .fold(object.listing, u64::max);
                object.names = HashMap::new();
            }
        }
        self.count = self.objects.values().map(RecentObject::len).sum();
        if self.count > enough {
            let last = |object: &RecentObject| {
                let names = object.names.values().copied().max().unwrap_or(0);
                let ranges = object
                    .ranges
                    .iter()
                    .map(|(_, number)| number)
                    .max()
                    .unwrap_or(0);
                object.attributes.max(object.listing).max(names).max(ranges)
            };
            self.everything = self
                .objects
                .values()
                .map(last)
                .fold(self.everything, u64::max);
            self.objects = HashMap::new();
            self.count = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use mortar_proto::data::change::Step;
    use mortar_proto::data::{CreateStep, WriteStep};

    const PARTNER: BrickId = BrickId(1);
    const OTHER: BrickId = BrickId(2);

    fn gfid(lo: u64) -> Gfid {
        Gfid { hi: 0, lo }
    }

    fn create(number: u64, parent: u64, name: &str, id: u64) -> Change {
        let step = CreateStep {
            parent: Some(gfid(parent)),
            name: Bytes::copy_from_slice(name.as_bytes()),
            gfid: Some(gfid(id)),
            ..Default::default()
        };
        Change {
            number,
            step: Some(Step::Create(step)),
            ..Default::default()
        }
    }

    fn write(number: u64, id: u64, offset: u64) -> Change {
        let step = WriteStep {
            gfid: Some(gfid(id)),
            offset,
            len: 10,
            ..Default::default()
        };
        Change {
            number,
            step: Some(Step::Write(step)),
            ..Default::default()
        }
    }

    #[test]
    fn a_partner_lacks_what_changed_since_its_own_sync() {
        let mut recent = Recent::new();
        recent.note(&create(1, 1, "before anybody is followed", 9));
        assert!(recent.is_empty());
        recent.follow(PARTNER, 1);
        recent.follow(OTHER, 1);
        recent.note(&create(2, 1, "a", 10));
        recent.note(&write(3, 10, 0));
        recent.confirmed(PARTNER, 2);
        recent.note(&write(4, 11, 100));
        let marks = recent.since(PARTNER);
        assert!(marks.touches(&write(9, 10, 5)) && marks.touches(&write(9, 11, 0)));
        assert!(
            !marks.touches(&create(9, 1, "a", 12)),
            "the name was synced"
        );
        assert!(recent.since(OTHER).touches(&create(9, 1, "a", 12)));
        recent.confirmed(PARTNER, 4);
        recent.confirmed(OTHER, 4);
        assert!(recent.is_empty() && recent.since(PARTNER).is_empty());
        assert!(
            recent.since(BrickId(3)).everything().is_some(),
            "nothing is known of a stranger"
        );
    }

    #[test]
    fn what_all_partners_have_fsynced_is_not_lacked() {
        let fsync = |id: u64, data_only| FsyncStep {
            gfid: Some(gfid(id)),
            data_only,
        };
        let mut recent = Recent::new();
        recent.follow(PARTNER, 0);
        recent.follow(OTHER, 0);
        recent.note(&create(1, 1, "a", 10));
        recent.note(&write(2, 10, 0));
        recent.note(&write(3, 11, 0));
        recent.fsync_ordered(4, &fsync(10, false));
        recent.note(&write(5, 10, 500));
        recent.fsync_done(PARTNER, 4);
        let marks = recent.since(PARTNER);
        assert!(
            marks.touches(&write(9, 10, 0)),
            "one list serves all: not yet"
        );
        recent.fsync_done(OTHER, 4);
        let marks = recent.since(PARTNER);
        assert!(marks.wanted(gfid(10)).bytes && marks.wanted(gfid(11)).bytes);
        assert_eq!(marks.pending_range(gfid(10), 0), Some(500..510));
        assert!(marks.wanted(gfid(1)).names, "names are no part of it");

        recent.fsync_ordered(6, &fsync(10, true));
        recent.fsync_ordered(7, &fsync(11, false));
        recent.fsyncs_done(PARTNER, 6);
        recent.fsyncs_done(OTHER, 7);
        let marks = recent.since(OTHER);
        assert!(!marks.wanted(gfid(10)).bytes && marks.wanted(gfid(10)).attributes);
        assert!(
            marks.wanted(gfid(11)).bytes,
            "the other one has not done it"
        );
        recent.fsyncs_done(PARTNER, 7);
        assert!(!recent.since(OTHER).wanted(gfid(11)).any());
        let counted = recent.len();
        recent.confirmed(PARTNER, 0);
        recent.trim();
        assert_eq!(recent.len(), counted, "the count is kept right");
    }

    #[test]
    fn a_full_list_loses_nothing() {
        let mut recent = Recent::new();
        recent.follow(PARTNER, 0);
        for number in 1..RECENT_MAX as u64 {
            recent.note(&create(
                number,
                1 + number % 7,
                &format!("n{number}"),
                100 + number,
            ));
            assert!(recent.len() <= RECENT_MAX + 4);
        }
        let marks = recent.since(PARTNER);
        for number in (1..RECENT_MAX as u64).step_by(997) {
            assert!(marks.touches(&write(0, 100 + number, 0)));
            assert!(marks.touches(&create(0, 1 + number % 7, &format!("n{number}"), 5)));
        }
    }
}
