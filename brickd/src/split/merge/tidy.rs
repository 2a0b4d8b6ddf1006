//! What a merge finds of earlier attempts, and what it takes away.

use mortar_common::Gfid;
use mortar_proto::data::{DirEntry, ReadDir};

use super::super::base::Place;
use super::super::version::{ASIDE, PART};
use super::{MergeError, Merger, PAGE_BYTES, is_directory, refusable};

impl Merger<'_> {
    /// What attempts that were cut off left unfinished goes: from here on what was brought and is
    /// there is whole.
    pub(super) fn clear_unfinished(&self) -> Result<(), MergeError> {
        let mut page = ReadDir {
            gfid: Some(Gfid::SPLIT),
            max_bytes: PAGE_BYTES,
            ..Default::default()
        };
        loop {
            let listed = self.base.read_dir(&page)?;
            for entry in &listed.entries {
                let part = entry.name.ends_with(PART);
                if let Some(gfid) = entry.gfid.filter(|_| part) {
                    let place = Place::version(entry.name.to_vec());
                    self.base.deciding().unlink(&place, gfid)?;
                }
            }
            let Some(last) = listed.entries.last().filter(|_| !listed.end) else {
                return Ok(());
            };
            (page.after_hash, page.after_name) = (last.hash, last.name.clone());
        }
    }

    /// Directories that an earlier attempt kept as versions, or put aside to be moved.
    pub(super) fn find_kept(&mut self) -> Result<(), MergeError> {
        let mut left = vec![Gfid::SPLIT];
        while let Some(gfid) = left.pop() {
            let mut page = ReadDir {
                gfid: Some(gfid),
                max_bytes: PAGE_BYTES,
                ..Default::default()
            };
            loop {
                let listed = self.base.read_dir(&page)?;
                for entry in listed
                    .entries
                    .iter()
                    .filter(|entry| is_listed_directory(entry))
                {
                    let Some(found) = entry.gfid else { continue };
                    if gfid == Gfid::SPLIT && entry.name.ends_with(ASIDE) {
                        let place = Place::version(entry.name.to_vec());
                        self.left.insert(found, place);
                    } else if self.kept.insert(found) {
                        left.push(found);
                    }
                }
                let Some(last) = listed.entries.last().filter(|_| !listed.end) else {
                    break;
                };
                (page.after_hash, page.after_name) = (last.hash, last.name.clone());
            }
        }
        Ok(())
    }

    /// Removes what this side removed and the base left as it was.
    pub(super) fn remove(&mut self) -> Result<(), MergeError> {
        let mut directories = Vec::new();
        for (parent, name) in self.alone.all_names() {
            let mine = self.at_side(parent, &name)?;
            let parent = self.directories.get(&parent).copied().unwrap_or(parent);
            let place = Place::new(parent, name);
            let Some(held) = self.base.lookup(&place)? else {
                continue;
            };
            let gfid = held.gfid.unwrap_or_default();
            // One that only an open file keeps is gone.
            let known = self.source.object(gfid);
            let is_elsewhere = known.is_ok_and(|known| known.nlink > 0);
            if is_directory(&held) {
                if !is_elsewhere {
                    directories.push((place, gfid));
                }
            } else if mine.as_ref().is_none_or(is_directory)
                && (!is_elsewhere || held.nlink > 1 || self.is_copied(gfid))
            {
                self.report.removed += u64::from(refusable(self.base.unlink(&place, gfid))?);
            }
        }
        // Those below others go first, whatever their order here.
        loop {
            let before = directories.len();
            let mut left = Vec::new();
            for (place, gfid) in directories {
                if refusable(self.base.rmdir(&place, gfid))? {
                    self.report.removed += 1;
                } else {
                    left.push((place, gfid));
                }
            }
            if left.is_empty() || left.len() == before {
                return Ok(());
            }
            directories = left;
        }
    }
}

fn is_listed_directory(entry: &DirEntry) -> bool {
    entry.r#type << 12 == libc::S_IFDIR
}
