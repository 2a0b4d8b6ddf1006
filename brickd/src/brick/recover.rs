//! What is put in order when a brick is opened: steps a crash cut in two.

use std::ffi::CString;
use std::os::fd::AsFd;

use mortar_common::Gfid;
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::apply::{FREE_PREFIX, PENDING_PREFIX};
use super::durable::OPEN_DIR;
use super::handle::{each_entry, millis};
use super::hot::lock;
use super::inner::Inner;
use super::layout::HandleName;
use super::read::gfid_of_name;
use super::{durable, touched};
use mortar_proto::data::Time;

/// A folder of handles changed this long before the last sync cannot hold a half-made one.
const SWEEP_SLACK_MS: u64 = 60_000;

impl Inner {
    /// Everything that is to be done before the brick is used. `new_handles`: the root's handle on
    /// a disk that the others are not of. `swept_from_ms`: half-made objects can be this old.
    pub fn recover(
        &self,
        new_handles: Option<String>,
        swept_from_ms: Option<u64>,
    ) -> Result<(), Errno> {
        if new_handles.is_some() {
            // Copied or restored: what was touched since is on nobody's list.
            durable::remove_file(self.private.as_fd(), touched::NAME)?;
            self.rewrite_handles(self.walks())?;
        }
        self.recover_txn()?;
        if let Some(synced_ms) = swept_from_ms {
            self.sweep(synced_ms)?;
        }
        if let Some(root_handle) = new_handles {
            self.sync_disk()?;
            lock(&self.state).set_root_handle(self.private.as_fd(), root_handle)?;
        }
        Ok(())
    }

    /// Finishes or removes what waits in `txn/`.
    fn recover_txn(&self) -> Result<(), Errno> {
        for name in names_in(&self.txn)? {
            let bytes = name.to_bytes();
            if bytes.starts_with(FREE_PREFIX.as_bytes()) {
                lock(&self.wake_lock).free = true;
            } else if bytes.starts_with(PENDING_PREFIX.as_bytes()) {
                let text = rustix::fs::readlinkat(&self.txn, &*name, Vec::new())?;
                self.finish_pending(text.as_bytes())?;
                rustix::fs::unlinkat(&self.txn, &*name, AtFlags::empty())?;
            } else if let Some(gfid) = gfid_of_name(&name) {
                // A directory that never got its name: it is empty.
                match rustix::fs::unlinkat(&self.txn, &*name, AtFlags::REMOVEDIR) {
                    Ok(()) => self.drop_handle(gfid)?,
                    Err(Errno::NOTDIR) => {
                        rustix::fs::unlinkat(&self.txn, &*name, AtFlags::empty())?;
                    }
                    Err(error) => return Err(error),
                }
            } else {
                rustix::fs::unlinkat(&self.txn, &*name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    /// Handles without a name that are no orphans, and markers of no orphan.
    fn sweep(&self, synced_ms: u64) -> Result<(), Errno> {
        let mut freed = 0;
        for bucket in names_in(&self.handle)? {
            let dir = rustix::fs::openat(&self.handle, &*bucket, OPEN_DIR, Mode::empty())?;
            let stat = rustix::fs::fstat(&dir)?;
            let changed = Time {
                secs: stat.st_mtime,
                nanos: stat.st_mtime_nsec as u32,
            };
            if millis(changed) + SWEEP_SLACK_MS < synced_ms {
                continue;
            }
            for name in names_in(&dir)? {
                let Some(gfid) = gfid_of_name(&name) else {
                    continue;
                };
                freed += u64::from(self.sweep_handle(gfid)?);
            }
        }
        for gfid in self.orphans()? {
            self.sweep_marker(gfid)?;
        }
        if freed > 0 {
            tracing::info!(brick = %self.path.display(), freed, "removed half-made files after a crash");
        }
        Ok(())
    }

    fn sweep_handle(&self, gfid: Gfid) -> Result<bool, Errno> {
        let name = HandleName::of(gfid);
        let stat = self.stat_handle(&name)?;
        if stat.st_nlink != 1 || self.is_orphan(gfid) {
            return Ok(false);
        }
        let symlink = stat.st_mode & libc::S_IFMT == libc::S_IFLNK;
        // A directory's handle is a symlink without a gfid; a user's symlink has one.
        if symlink && self.gfid_at(self.handle.as_fd(), name.c_str())?.is_none() {
            return Ok(false);
        }
        self.free(gfid)?;
        Ok(true)
    }

    fn sweep_marker(&self, gfid: Gfid) -> Result<(), Errno> {
        let name = HandleName::of(gfid);
        match self.stat_handle(&name) {
            Ok(stat) if stat.st_nlink > 1 => self.unmark_orphan(&name),
            Err(Errno::NOENT) => self.unmark_orphan(&name),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn names_in(dir: &std::os::fd::OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    each_entry(dir, &mut |name, _| {
        names.push(name.to_owned());
        Ok(())
    })?;
    Ok(names)
}
