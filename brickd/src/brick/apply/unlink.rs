//! Removing names, and freeing what has none left.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use mortar_common::Gfid;
use mortar_proto::data::{RmDirStep, UnlinkStep};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{Holder, Stamp, some};
use crate::brick::durable::{OPEN, OPEN_DIR};
use crate::brick::handle::each_entry;
use crate::brick::hot::{Touch, lock};
use crate::brick::inner::Inner;
use crate::brick::layout::{EntryName, HandleName};

/// Bigger files are freed in the background: their blocks take long to give back.
pub(in crate::brick) const FREE_NOW_BYTES_MAX: u64 = 64 << 20;
/// A file is given back in steps of this, so that other work on the disk comes between.
const FREE_STEP_BYTES: u64 = 256 << 20;
/// What waits in `txn/` to be freed has this before its gfid.
pub(in crate::brick) const FREE_PREFIX: &str = "free-";

/// What becomes of an object whose last name goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LastName {
    /// Somebody has it open.
    KeepAsOrphan,
    Free,
}

impl LastName {
    pub fn of(orphan: bool) -> Self {
        if orphan {
            LastName::KeepAsOrphan
        } else {
            LastName::Free
        }
    }
}

impl Inner {
    pub(super) fn unlink(&self, stamp: Stamp, step: &UnlinkStep) -> Result<(), Errno> {
        let (parent, gfid) = (some(step.parent)?, some(step.gfid)?);
        let name = EntryName::new(parent, &step.name)?;
        let (parent_hot, dir) = self.dir(parent)?;
        match self.holder(dir.as_fd(), &name)? {
            Holder::Object(there) if there == gfid => {
                let last = LastName::of(step.orphan);
                self.remove_name(stamp, gfid, last, || {
                    rustix::fs::unlinkat(&dir, name.c_str(), AtFlags::empty())
                })?;
            }
            Holder::Object(_) => return Err(Errno::STALE),
            Holder::Nothing | Holder::Stray => {}
        }
        self.touch(&parent_hot, Touch::Content, stamp.time, stamp.number);
        Ok(())
    }

    /// Runs what takes a non-directory's name away, and does what follows from it.
    pub(super) fn remove_name(
        &self,
        stamp: Stamp,
        gfid: Gfid,
        last: LastName,
        remove: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let handle = HandleName::of(gfid);
        let is_last = {
            let _names = self.last_names.of(gfid);
            // The name and the handle: it is the last name.
            let is_last = self.stat_handle(&handle)?.st_nlink <= 2;
            if is_last && last == LastName::KeepAsOrphan {
                self.mark_orphan(&handle)?;
            }
            remove()?;
            is_last
        };
        if is_last && last == LastName::Free {
            return self.free(gfid);
        }
        let hot = self.hot(gfid)?;
        self.touch(&hot, Touch::Attributes, stamp.time, stamp.number);
        Ok(())
    }

    pub(super) fn rmdir(&self, stamp: Stamp, step: &RmDirStep) -> Result<(), Errno> {
        let (parent, gfid) = (some(step.parent)?, some(step.gfid)?);
        let name = EntryName::new(parent, &step.name)?;
        let (parent_hot, dir) = self.dir(parent)?;
        match self.holder(dir.as_fd(), &name)? {
            Holder::Object(there) if there == gfid => {
                // Kept open: whoever writes its times back meanwhile must not find it stale.
                let _open = self.dir(gfid)?;
                let remove = || rustix::fs::unlinkat(&dir, name.c_str(), AtFlags::REMOVEDIR);
                if let Err(error) = remove() {
                    if error != Errno::NOTEMPTY {
                        return Err(error);
                    }
                    self.move_strays_out(gfid)?;
                    remove()?;
                }
                self.forget_dir(gfid)?;
            }
            Holder::Object(_) => return Err(Errno::STALE),
            Holder::Nothing | Holder::Stray => {}
        }
        self.touch(&parent_hot, Touch::Content, stamp.time, stamp.number);
        Ok(())
    }

    /// A directory is gone from the tree: its handle goes too.
    pub(super) fn forget_dir(&self, gfid: Gfid) -> Result<(), Errno> {
        self.listings.forget(gfid);
        self.drop_handle(gfid)
    }

    /// Removes the handle, and the object from memory. That there is none is no error.
    pub(in crate::brick) fn drop_handle(&self, gfid: Gfid) -> Result<(), Errno> {
        self.hot.remove(gfid);
        let handle = HandleName::of(gfid);
        match rustix::fs::unlinkat(&self.handle, handle.c_str(), AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// Frees a non-directory that has no name left.
    pub(in crate::brick) fn free(&self, gfid: Gfid) -> Result<(), Errno> {
        let handle = HandleName::of(gfid);
        let stat = match self.stat_handle(&handle) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                self.hot.remove(gfid);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let blocks = stat.st_blocks.max(0).cast_unsigned() * 512;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG || blocks <= FREE_NOW_BYTES_MAX {
            return self.drop_handle(gfid);
        }
        self.hot.remove(gfid);
        let waiting = format!("{FREE_PREFIX}{gfid}");
        rustix::fs::renameat(&self.handle, handle.c_str(), &self.txn, &*waiting)?;
        lock(&self.wake_lock).free = true;
        self.wake.notify_all();
        Ok(())
    }

    /// Frees an orphan nobody needs any more: a file without names, or what healing displaced.
    pub(in crate::brick) fn free_orphan(&self, gfid: Gfid) -> Result<(), Errno> {
        let handle = HandleName::of(gfid);
        let place = handle.gfid_c_str();
        match rustix::fs::openat(&self.orphan, place, OPEN_DIR, Mode::empty()) {
            Ok(_) => {
                self.free_tree(gfid)?;
                rustix::fs::unlinkat(&self.orphan, place, AtFlags::REMOVEDIR)?;
                return self.forget_dir(gfid);
            }
            Err(Errno::NOTDIR | Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        match self.stat_handle(&handle) {
            Ok(stat) if stat.st_nlink == 1 => match self.hot(gfid) {
                Ok(hot) if hot.is_dir() => {}
                // Also what has lost its gfid: it has neither name nor use.
                Ok(_) | Err(Errno::NOENT) => self.free(gfid)?,
                Err(error) => return Err(error),
            },
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        self.unmark_orphan(&handle)
    }

    /// Empties a displaced directory: directories below it first, whatever the depth.
    fn free_tree(&self, top: Gfid) -> Result<(), Errno> {
        let mut pending = vec![top];
        while let Some(&gfid) = pending.last() {
            let (_, dir) = self.dir(gfid)?;
            let mut below = Vec::new();
            let mut names = Vec::new();
            each_entry(&dir, &mut |name, _| {
                names.push(EntryName::unchecked(name.to_bytes()));
                Ok(())
            })?;
            for name in &names {
                let Some(child) = self.gfid_at(dir.as_fd(), name.c_str())? else {
                    self.move_stray(gfid, dir.as_fd(), name)?;
                    continue;
                };
                match rustix::fs::unlinkat(&dir, name.c_str(), AtFlags::REMOVEDIR) {
                    Ok(()) => self.forget_dir(child)?,
                    Err(Errno::NOTEMPTY) => below.push(child),
                    Err(Errno::NOTDIR) => self.free_name(&dir, name, child)?,
                    Err(error) => return Err(error),
                }
            }
            if below.is_empty() {
                pending.pop();
            } else {
                pending.extend(below);
            }
        }
        Ok(())
    }

    fn free_name(
        &self,
        dir: &std::os::fd::OwnedFd,
        name: &EntryName,
        gfid: Gfid,
    ) -> Result<(), Errno> {
        rustix::fs::unlinkat(dir, name.c_str(), AtFlags::empty())?;
        let handle = HandleName::of(gfid);
        let marked = rustix::fs::statat(&self.orphan, handle.gfid_c_str(), AtFlags::empty());
        match self.stat_handle(&handle) {
            Ok(stat) if stat.st_nlink == 1 && marked.is_err() => self.free(gfid),
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Body of the thread that frees big files.
    pub(in crate::brick) fn free_big_files(&self) {
        while !self.stop.load(Ordering::Acquire) {
            {
                let mut wake = lock(&self.wake_lock);
                while !wake.free && !self.stop.load(Ordering::Acquire) {
                    wake = self
                        .wake
                        .wait(wake)
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                wake.free = false;
            }
            if let Err(error) = self.free_waiting() {
                tracing::info!(brick = %self.path.display(), %error, "freeing big files stopped");
            }
        }
    }

    fn free_waiting(&self) -> Result<(), Errno> {
        let mut waiting = Vec::new();
        each_entry(&self.txn, &mut |name, _| {
            if name.to_bytes().starts_with(FREE_PREFIX.as_bytes()) {
                waiting.push(EntryName::unchecked(name.to_bytes()));
            }
            Ok(())
        })?;
        for name in &waiting {
            let file =
                rustix::fs::openat(&self.txn, name.c_str(), OPEN | OFlags::RDWR, Mode::empty())?;
            let mut size = rustix::fs::fstat(&file)?.st_size.max(0).cast_unsigned();
            while size > FREE_STEP_BYTES && !self.stop.load(Ordering::Acquire) {
                size -= FREE_STEP_BYTES;
                rustix::fs::ftruncate(&file, size)?;
            }
            if self.stop.load(Ordering::Acquire) {
                return Ok(());
            }
            rustix::fs::unlinkat(&self.txn, name.c_str(), AtFlags::empty())?;
        }
        Ok(())
    }
}
