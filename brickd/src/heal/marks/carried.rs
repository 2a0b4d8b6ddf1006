//! How marks go out: carried by heal changes, dropped when a sync covers these, pending again when
//! the copy was lost before.

use std::ops::Range;

use mortar_common::Gfid;

use super::super::links::{Held, Links};
use super::{Lacks, Listing, MarkState, Marks, ObjectMarks};

impl Marks {
    /// The copy was lost on the way: everything that was carried and not confirmed is pending
    /// again.
    pub fn reset(&mut self) {
        self.links = Links::default();
        for object in self.objects.values_mut() {
            if let Some((state, lacks)) = &mut object.attributes {
                (*state, *lacks) = (MarkState::Pending, Lacks::Attributes);
            }
            if let Some(listing) = &mut object.listing {
                *listing = Listing::Pending;
            }
            for mark in object.names.values_mut() {
                (mark.state, mark.held) = (MarkState::Pending, Held::Unknown);
                self.links.add(Held::Unknown);
            }
            object.names_pending = object.names.len();
            object.ranges.each_mut(|state| *state = MarkState::Pending);
        }
    }

    /// Drops what was carried by heal changes up to this number: the copy has synced them.
    /// Returns how many marks went.
    pub fn synced(&mut self, up_to: u64) -> usize {
        let goes = |state: MarkState| matches!(state, MarkState::Carried(at) if at <= up_to);
        let before = self.count;
        self.objects.retain(|_, object| {
            object.attributes = object.attributes.filter(|(state, _)| !goes(*state));
            object.names.retain(|_, mark| !goes(mark.state));
            object.ranges.retain(|state| !goes(state));
            object.len() > 0
        });
        self.count = self.objects.values().map(ObjectMarks::len).sum();
        before - self.count
    }

    /// All that is marked of the object was carried by the heal change of this number, or by
    /// changes before it.
    pub fn carried_all(&mut self, gfid: Gfid, number: u64) {
        let Some(object) = self.objects.get_mut(&gfid) else {
            return;
        };
        let before = object.len();
        object.settle_names(&mut self.links, number);
        object
            .ranges
            .each_mut(|state| *state = MarkState::Carried(number));
        object.attributes = Some((MarkState::Carried(number), Lacks::Times));
        self.listings -= usize::from(object.listing.take().is_some());
        let after = object.len();
        self.count = self.count + after - before;
    }

    /// A heal change carried the object. With [`MarkState::Owed`] it is to be carried once more.
    pub fn carried_object(&mut self, gfid: Gfid, state: MarkState) {
        match self.objects.get_mut(&gfid) {
            Some(object) => {
                let before = object.attributes.replace((state, Lacks::Times));
                self.count += usize::from(before.is_none());
            }
            None if state == MarkState::Owed => {
                self.pending_object(gfid).attributes = Some((state, Lacks::Times));
                self.count += 1;
            }
            None => {}
        }
    }

    /// The heal change of this number carried what the name holds.
    pub fn carried_name(&mut self, parent: Gfid, name: &[u8], number: u64) {
        if let Some(object) = self.objects.get_mut(&parent)
            && let Some(mark) = object.names.get_mut(name)
        {
            if mark.state == MarkState::Pending {
                object.names_pending -= 1;
                self.links.remove(mark.held);
            }
            mark.state = MarkState::Carried(number);
        }
    }

    /// The heal change of this number carried what was pending of the range.
    pub fn carried_bytes(&mut self, gfid: Gfid, range: Range<u64>, number: u64) {
        let Some(object) = self.objects.get_mut(&gfid) else {
            return;
        };
        let before = object.ranges.len();
        let pending: Vec<Range<u64>> = object
            .ranges
            .within(&range)
            .filter(|(_, state)| *state == MarkState::Pending)
            .map(|(span, _)| span.start.max(range.start)..span.end.min(range.end))
            .collect();
        for span in pending {
            object.ranges.set(span, MarkState::Carried(number));
        }
        self.count = self.count + object.ranges.len() - before;
    }

    /// The comparison of a directory marked whole begins: single names are marked from now on.
    pub fn listing_begun(&mut self, gfid: Gfid) {
        if let Some(object) = self.objects.get_mut(&gfid)
            && object.listing.is_some()
        {
            object.listing = Some(Listing::Comparing);
        }
    }

    /// The comparison is done, unless the directory was marked whole again since it began.
    pub fn listing_done(&mut self, gfid: Gfid) {
        if let Some(object) = self.objects.get_mut(&gfid)
            && object.listing == Some(Listing::Comparing)
        {
            object.listing = None;
            self.count -= 1;
            self.listings -= 1;
        }
    }
}
