//! Heal changes of names: by moving, never by deleting.
//!
//! What is displaced goes to `.mortar/orphan/<gfid>` (a directory with all it holds, anything else
//! as a marker, its handle being its place) and is taken from there when its new name is healed.

use std::os::fd::AsFd;
use std::sync::Arc;

use mortar_common::Gfid;
use mortar_proto::data::HealNameStep;
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::{Holder, Stamp, some};
use crate::brick::hot::{Dirty, Hot};
use crate::brick::inner::Inner;
use crate::brick::layout::{EntryName, HandleName};

/// How often a directory in the way of a move is itself moved away first.
const DISPLACE_TRIES_MAX: usize = 2;

impl Inner {
    pub(super) fn heal_name(&self, _stamp: Stamp, step: &HealNameStep) -> Result<(), Errno> {
        let parent = some(step.parent)?;
        let name = EntryName::new(parent, &step.name)?;
        let (parent_hot, dir) = self.dir(parent)?;
        match self.holder(dir.as_fd(), &name)? {
            Holder::Nothing => {}
            Holder::Stray => self.move_stray(parent, dir.as_fd(), &name)?,
            // Perhaps a crash kept the marker from being taken away.
            Holder::Object(there) if Some(there) == step.gfid => {
                let _names = self.last_names.of(there);
                return self.unmark_orphan(&HandleName::of(there));
            }
            Holder::Object(there) => {
                self.displace(there, dir.as_fd(), &name)?;
                self.disk_times_changed(&parent_hot);
            }
        }
        let Some(gfid) = step.gfid else { return Ok(()) };
        let hot = self.hot(gfid)?;
        if hot.is_dir() != step.directory {
            return Err(Errno::STALE);
        }
        if step.directory {
            self.put_dir(gfid, parent, &name)?;
        } else {
            let handle = HandleName::of(gfid);
            let flags = AtFlags::empty();
            let _names = self.last_names.of(gfid);
            rustix::fs::linkat(&self.handle, handle.c_str(), &dir, name.c_str(), flags)?;
            self.unmark_orphan(&handle)?;
        }
        // The source's times come with the objects; this changed the disk's alone.
        self.disk_times_changed(&parent_hot);
        self.listings.added(parent, name.bytes(), hot.file_type);
        Ok(())
    }

    fn disk_times_changed(&self, hot: &Arc<Hot>) {
        self.update(hot, |state| state.soil(Dirty::Times));
    }

    /// Takes what a name holds out of the tree and keeps it.
    fn displace(
        &self,
        gfid: Gfid,
        dir: std::os::fd::BorrowedFd<'_>,
        name: &EntryName,
    ) -> Result<(), Errno> {
        let handle = HandleName::of(gfid);
        if self.hot(gfid)?.is_dir() {
            let place = handle.gfid_c_str();
            let flags = RenameFlags::NOREPLACE;
            return rustix::fs::renameat_with(dir, name.c_str(), &self.orphan, place, flags);
        }
        let _names = self.last_names.of(gfid);
        if self.stat_handle(&handle)?.st_nlink <= 2 {
            self.mark_orphan(&handle)?;
        }
        rustix::fs::unlinkat(dir, name.c_str(), AtFlags::empty())
    }

    /// Moves a directory from wherever it is, `orphan/` or another name, to its healed name.
    fn put_dir(&self, gfid: Gfid, parent: Gfid, name: &EntryName) -> Result<(), Errno> {
        for _ in 0..DISPLACE_TRIES_MAX {
            let (_, dir) = self.dir(parent)?;
            let place = self.place_of_dir(gfid)?;
            let from = &place.parent;
            match self.rename_new(from, place.name.c_str(), &dir, name.c_str()) {
                // The new parent lies below it here: that one's own name is healed too, so it may
                // wait in orphan/ until then.
                Err(Errno::INVAL) => {
                    let above = self.place_of_dir(parent)?;
                    self.displace(parent, above.parent.as_fd(), &above.name)?;
                    self.place_changed(above.parent_gfid)?;
                }
                Err(error) => return Err(error),
                Ok(()) => return self.place_changed(place.parent_gfid),
            }
        }
        Err(Errno::BUSY)
    }

    fn place_changed(&self, parent: Option<Gfid>) -> Result<(), Errno> {
        if let Some(parent) = parent {
            self.disk_times_changed(&self.hot(parent)?);
        }
        Ok(())
    }
}
