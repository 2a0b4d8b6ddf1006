//! What `volume check` looks at that nobody else asks of a brick: handles in order, entries that
//! are no objects, what is left in `.mortar`.

use std::collections::BinaryHeap;
use std::os::fd::AsFd;

use mortar_common::Gfid;
use mortar_common::name::PRIVATE_DIR;
use mortar_proto::data::Time;
use rustix::fs::Mode;
use rustix::io::Errno;

use super::Brick;
use super::apply::FREE_PREFIX;
use super::durable::OPEN_DIR;
use super::handle::each_entry;
use super::hot::Dirty;
use super::inner::Inner;
use super::read::gfid_of_name;
use super::store::BrickError;

/// Entries that are no objects named of one directory.
const STRAYS_MAX: usize = 16;
/// Leftovers named.
const LEFTOVERS_MAX: usize = 100;

impl Brick {
    /// The first folder of handles at or after this one.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn bucket_from(&self, from: u32) -> Result<Option<u32>, BrickError> {
        self.in_private("listing handles", self.inner.bucket_from(from))
    }

    /// The first `max` gfids, in their order, of the handles in a folder after this one.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn handles_after(
        &self,
        bucket: u32,
        after: Gfid,
        max: usize,
    ) -> Result<Vec<Gfid>, BrickError> {
        let listed = self.inner.handles_after(bucket, after, max);
        self.in_private("listing handles", listed)
    }

    /// Names in a directory that lead to no object of the volume, a few of them. `listed`: how
    /// many do.
    ///
    /// # Errors
    /// As reading the directory has them.
    pub fn strays_in(&self, gfid: Gfid, listed: u64) -> Result<Vec<String>, BrickError> {
        let found = self.inner.strays_in(gfid, listed);
        found.map_err(|error| self.refusal(error, "names in", gfid))
    }

    /// Whether the object is marked as having no name.
    pub fn is_marked_orphan(&self, gfid: Gfid) -> bool {
        self.inner.is_orphan(gfid)
    }

    /// The time of modification that the disk has, when memory is not ahead of it.
    pub fn settled_mtime(&self, gfid: Gfid) -> Option<Time> {
        self.inner.settled_mtime(gfid).ok().flatten()
    }

    /// Steps that were begun and not ended, and notes of what other copies lack, in words.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn leftovers(&self) -> Result<Vec<String>, BrickError> {
        self.in_private("listing .mortar", self.inner.leftovers())
    }
}

impl Inner {
    fn bucket_from(&self, from: u32) -> Result<Option<u32>, Errno> {
        let mut first = None;
        each_entry(&self.handle, &mut |name, _| {
            let number = name.to_str().ok();
            let number = number.and_then(|name| u32::from_str_radix(name, 16).ok());
            if let Some(number) = number.filter(|number| *number >= from) {
                first = Some(first.unwrap_or(number).min(number));
            }
            Ok(())
        })?;
        Ok(first)
    }

    fn handles_after(&self, bucket: u32, after: Gfid, max: usize) -> Result<Vec<Gfid>, Errno> {
        let folder = format!("{bucket:06x}");
        let dir = match rustix::fs::openat(&self.handle, &*folder, OPEN_DIR, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        // The greatest on top: it goes when there are too many.
        let mut lowest = BinaryHeap::new();
        each_entry(&dir, &mut |name, _| {
            if let Some(gfid) = gfid_of_name(name).filter(|gfid| *gfid > after) {
                lowest.push(gfid);
                if lowest.len() > max {
                    lowest.pop();
                }
            }
            Ok(())
        })?;
        Ok(lowest.into_sorted_vec())
    }

    fn strays_in(&self, gfid: Gfid, listed: u64) -> Result<Vec<String>, Errno> {
        let (_, dir) = self.dir(gfid)?;
        let is_private =
            |name: &std::ffi::CStr| gfid == Gfid::ROOT && name.to_bytes() == PRIVATE_DIR.as_bytes();
        let mut entries = 0;
        each_entry(&dir, &mut |name, _| {
            entries += u64::from(!is_private(name));
            Ok(())
        })?;
        let mut strays = Vec::new();
        if entries == listed {
            return Ok(strays);
        }
        each_entry(&dir, &mut |name, _| {
            let is_stray = strays.len() < STRAYS_MAX
                && !is_private(name)
                && matches!(self.gfid_at(dir.as_fd(), name), Ok(None));
            if is_stray {
                strays.push(name.to_string_lossy().into_owned());
            }
            Ok(())
        })?;
        strays.sort();
        Ok(strays)
    }

    fn settled_mtime(&self, gfid: Gfid) -> Result<Option<Time>, Errno> {
        let hot = self.hot(gfid)?;
        if hot.state().dirty != Dirty::Clean {
            return Ok(None);
        }
        let stat = self.stat(&self.target(&hot)?)?;
        Ok(Some(Time {
            secs: stat.st_mtime,
            nanos: stat.st_mtime_nsec as u32,
        }))
    }

    fn leftovers(&self) -> Result<Vec<String>, Errno> {
        let mut found = Vec::new();
        each_entry(&self.txn, &mut |name, _| {
            let name = name.to_string_lossy();
            // What is big is freed in the background.
            if found.len() < LEFTOVERS_MAX && !name.starts_with(FREE_PREFIX) {
                found.push(format!("a step that was not ended: .mortar/txn/{name}"));
            }
            Ok(())
        })?;
        for file in self.records.files()? {
            found.push(format!(
                "a note of what another copy lacks: .mortar/heal/{file}"
            ));
        }
        found.sort();
        found.truncate(LEFTOVERS_MAX);
        Ok(found)
    }
}
