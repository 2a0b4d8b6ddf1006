//! Owner, mode, size and times.

use std::os::fd::OwnedFd;

use mortar_proto::data::{Presence, SetAttrStep};
use rustix::fs::Mode;
use rustix::io::Errno;

use super::{Stamp, some};
use crate::brick::handle::Target;
use crate::brick::hot::{Hot, Touch};
use crate::brick::inner::Inner;
use crate::brick::layout::clamp_time;
use crate::brick::xattr;

impl Inner {
    pub(super) fn set_attr(&self, stamp: Stamp, step: &SetAttrStep) -> Result<(), Errno> {
        let gfid = some(step.gfid)?;
        let hot = self.hot(gfid)?;
        if let Some(size) = step.size {
            let (hot, fd) = self.file(gfid)?;
            rustix::fs::ftruncate(&fd, size)?;
            self.capability_is_gone(&hot);
        }
        let target = self.target(&hot)?;
        // Owner first: the kernel clears setuid, setgid and capabilities with it.
        if step.uid.is_some() || step.gid.is_some() {
            self.set_owner(&target, step.uid, step.gid)?;
            if !hot.is_dir() {
                self.capability_is_gone(&hot);
            }
        }
        if let Some(mode) = step.mode
            && hot.file_type != libc::S_IFLNK
        {
            self.set_permissions(&target, Mode::from_raw_mode(mode & 0o7777))?;
        }
        if step.drop_capability {
            self.drop_capability(&hot, &target)?;
        }
        let (atime, mtime) = (step.atime.map(clamp_time), step.mtime.map(clamp_time));
        if atime.is_some() || mtime.is_some() {
            self.set_times(&target, atime, mtime)?;
        }
        let what = if step.size.is_some() {
            Touch::Content
        } else {
            Touch::Attributes
        };
        self.update(&hot, |state| {
            state.touch(what, stamp.time, stamp.number);
            if let Some(mtime) = mtime {
                state.set_mtime(mtime, stamp.number);
            }
            if state.atime.is_some() {
                state.atime = atime.or(state.atime);
            }
            state.unsynced = true;
        });
        Ok(())
    }

    /// What clearing setuid, setgid and capabilities came to, with a change of content.
    pub(super) fn clear_privileges(
        &self,
        hot: &Hot,
        fd: &std::sync::Arc<OwnedFd>,
        new_mode: Option<u32>,
        drop_capability: bool,
    ) -> Result<(), Errno> {
        if let Some(mode) = new_mode {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(mode & 0o7777))?;
            self.update(hot, |state| state.unsynced = true);
        }
        if drop_capability {
            self.drop_capability(hot, &Target::Fd(std::sync::Arc::clone(fd)))?;
        }
        // The kernel takes capabilities away itself whenever content changes.
        self.capability_is_gone(hot);
        Ok(())
    }

    fn drop_capability(&self, hot: &Hot, target: &Target) -> Result<(), Errno> {
        self.with_of(target, |of| xattr::remove(of, xattr::CAPABILITY))?;
        self.capability_is_gone(hot);
        Ok(())
    }

    fn capability_is_gone(&self, hot: &Hot) {
        hot.state().presence &= !(Presence::Capability as u32);
    }
}
