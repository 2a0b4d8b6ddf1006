//! Extended attributes and ACLs.

use mortar_proto::data::{RemoveXattrStep, SetXattrStep};
use rustix::fs::Mode;
use rustix::io::Errno;

use super::{Stamp, some};
use crate::brick::hot::{Hot, Touch};
use crate::brick::inner::Inner;
use crate::brick::xattr;

impl Inner {
    pub(super) fn set_xattr(&self, stamp: Stamp, step: &SetXattrStep) -> Result<(), Errno> {
        let name = xattr::client_name(&step.name)?;
        let hot = self.hot(some(step.gfid)?)?;
        let target = self.target(&hot)?;
        self.with_of(&target, |of| xattr::set(of, &name, &step.value))?;
        if let Some(mode) = step.new_mode
            && hot.file_type != libc::S_IFLNK
        {
            self.set_permissions(&target, Mode::from_raw_mode(mode & 0o7777))?;
        }
        self.xattrs_changed(stamp, &hot)
    }

    pub(super) fn remove_xattr(&self, stamp: Stamp, step: &RemoveXattrStep) -> Result<(), Errno> {
        let name = xattr::client_name(&step.name)?;
        let hot = self.hot(some(step.gfid)?)?;
        let target = self.target(&hot)?;
        self.with_of(&target, |of| xattr::remove(of, &name))?;
        self.xattrs_changed(stamp, &hot)
    }

    fn xattrs_changed(&self, stamp: Stamp, hot: &Hot) -> Result<(), Errno> {
        // Asked of the disk: an ACL that says no more than the mode is not kept.
        let target = self.target(hot)?;
        let presence = self.with_of(&target, xattr::presence)?;
        self.update(hot, |state| {
            state.presence = presence;
            state.touch(Touch::Attributes, stamp.time, stamp.number);
        });
        Ok(())
    }
}
