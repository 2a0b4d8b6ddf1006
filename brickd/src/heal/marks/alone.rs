//! Marks as the record of what a copy changed while it was alone: what others may not take away,
//! and what it hands to whoever heals it.

use mortar_common::Gfid;
use mortar_proto::data::change::Step;

use super::super::record::{MarkRecord, NameMark, RangeMark};
use super::super::touch::{Lacks, Touch};
use super::{Held, Marks, RECORD_MARKS, Scope};

/// A directory with more marked names than this is handed over as marked whole.
const NAMES_HANDED: usize = 16_384;

/// Whether an unlink takes the last name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// The object goes with it.
    Last,
    /// It has others.
    OneOfMany,
}

impl Marks {
    /// Whether content, owner, mode or xattrs of the object are marked.
    pub fn has_changed(&self, gfid: Gfid) -> bool {
        self.everything.is_some()
            || self.objects.get(&gfid).is_some_and(|object| {
                !object.ranges.is_empty()
                    || matches!(object.attributes, Some((_, Lacks::Attributes)))
            })
    }

    /// Whether what a name holds is marked.
    pub fn has_name(&self, parent: Gfid, name: &[u8]) -> bool {
        self.everything.is_some()
            || self
                .objects
                .get(&parent)
                .is_some_and(|object| object.listing.is_some() || object.names.contains_key(name))
    }

    /// Every single name that is marked.
    pub fn all_names(&self) -> Vec<(Gfid, Vec<u8>)> {
        let of_object = |(parent, object): (&Gfid, &super::ObjectMarks)| {
            let parent = *parent;
            let names = object.names.keys();
            names
                .map(|name| (parent, name.to_vec()))
                .collect::<Vec<_>>()
        };
        self.objects.iter().flat_map(of_object).collect()
    }

    /// Whether the step would take away something that is marked: replace or remove it, or change
    /// it further. `link` is what an unlink takes.
    pub fn would_lose(&self, step: &Step, link: Link) -> bool {
        let changed = |gfid: Option<Gfid>| gfid.is_some_and(|gfid| self.has_changed(gfid));
        let named = |parent: Option<Gfid>, name: &[u8]| {
            parent.is_some_and(|parent| self.has_name(parent, name))
        };
        match step {
            Step::Unlink(step) => {
                named(step.parent, &step.name) || link == Link::Last && changed(step.gfid)
            }
            Step::Rmdir(step) => named(step.parent, &step.name) || changed(step.gfid),
            Step::Rename(step) => {
                // What lies in the folder of versions was brought there by the merge: also where
                // everything counts as changed, moving it to its place takes nothing away.
                let brought = step.from_parent == Some(Gfid::SPLIT);
                !brought && named(step.from_parent, &step.from_name)
                    || step.replaced.is_some()
                        && (named(step.to_parent, &step.to_name) || changed(step.replaced))
            }
            Step::Setattr(step) => changed(step.gfid),
            Step::Write(step) => changed(step.gfid),
            Step::Fallocate(step) => changed(step.gfid),
            Step::CopyRange(step) => changed(step.to),
            Step::Setxattr(step) => changed(step.gfid),
            Step::Removexattr(step) => changed(step.gfid),
            // They add.
            Step::Create(_) | Step::Link(_) | Step::Fsync(_) => false,
            Step::Free(_)
            | Step::SessionOpen(_)
            | Step::SessionEnd(_)
            | Step::Open(_)
            | Step::Release(_)
            | Step::Lock(_)
            | Step::Settled(_)
            | Step::HealObject(_)
            | Step::HealData(_)
            | Step::HealName(_)
            | Step::Sync(_) => false,
        }
    }

    /// The marks of some objects after `after`, and the last of these; `None` when there are no
    /// more. What goes for everything comes with the first.
    pub fn records_after(&self, after: Option<Gfid>) -> Option<(MarkRecord, Gfid)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut record = MarkRecord {
            everything: after.is_none() && self.everything.is_some(),
            ..Default::default()
        };
        let from = after.map_or(Unbounded, Excluded);
        let mut last = None;
        for (gfid, object) in self.objects.range((from, Unbounded)) {
            if record.len() >= RECORD_MARKS {
                break;
            }
            last = Some(*gfid);
            record.objects.extend(object.attributes.map(|_| *gfid));
            let whole = object.listing.is_some() || object.names.len() > NAMES_HANDED;
            record.listings.extend(whole.then_some(*gfid));
            record
                .ranges
                .extend(object.ranges.iter().map(|(range, _)| RangeMark {
                    gfid: Some(*gfid),
                    start: range.start,
                    end: range.end,
                }));
            let names = object.names.keys().filter(|_| !whole);
            record.names.extend(names.map(|name| NameMark {
                parent: Some(*gfid),
                name: name.to_vec(),
            }));
        }
        match last {
            Some(last) => Some((record, last)),
            None if record.everything => Some((record, Gfid::ROOT)),
            None => None,
        }
    }

    /// Marks what another's record says; what was not marked before is added to `new`.
    pub fn take_in(&mut self, from: &MarkRecord, new: &mut MarkRecord) {
        if from.everything {
            let scope = if from.touched_only {
                Scope::Touched
            } else {
                Scope::All
            };
            self.mark_everything(scope, new);
        }
        for gfid in &from.objects {
            self.mark(Touch::Object(*gfid, Lacks::Attributes), new);
        }
        for gfid in &from.listings {
            self.mark_listing(*gfid, new);
        }
        for NameMark { parent, name } in &from.names {
            if let Some(parent) = parent {
                self.mark(Touch::Name(*parent, name, Held::Unknown), new);
            }
        }
        for RangeMark { gfid, start, end } in &from.ranges {
            if let Some(gfid) = gfid
                && start < end
            {
                self.mark(Touch::Bytes(*gfid, *start..*end), new);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_proto::data::RenameStep;

    /// A base whose process was started anew may not know in detail what it changed: then all
    /// counts as changed, and a merge must come to its end all the same.
    #[test]
    fn where_everything_counts_as_changed_what_is_new_can_still_be_brought() {
        let mut marks = Marks::new();
        marks.mark_everything(Scope::All, &mut MarkRecord::default());
        let rename = |from, replaced| {
            Step::Rename(RenameStep {
                from_parent: Some(from),
                from_name: b"name".as_slice().into(),
                to_parent: Some(Gfid::ROOT),
                to_name: b"place".as_slice().into(),
                replaced,
                ..Default::default()
            })
        };
        let there = Some(Gfid { hi: 1, lo: 2 });
        assert!(!marks.would_lose(&rename(Gfid::SPLIT, None), Link::OneOfMany));
        assert!(marks.would_lose(&rename(Gfid::SPLIT, there), Link::OneOfMany));
        assert!(marks.would_lose(&rename(Gfid::ROOT, None), Link::OneOfMany));
    }
}
