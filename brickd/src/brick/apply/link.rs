//! Hard links.

use std::os::fd::AsFd;

use mortar_proto::data::LinkStep;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::{Stamp, some};
use crate::brick::hot::Touch;
use crate::brick::inner::Inner;
use crate::brick::layout::{EntryName, HandleName};

impl Inner {
    pub(super) fn link(&self, stamp: Stamp, step: &LinkStep) -> Result<(), Errno> {
        let (parent, gfid) = (some(step.parent)?, some(step.gfid)?);
        let name = EntryName::new(parent, &step.name)?;
        let (parent_hot, dir) = self.dir(parent)?;
        let hot = self.hot(gfid)?;
        if hot.is_dir() {
            return Err(Errno::PERM);
        }
        let handle = HandleName::of(gfid);
        let names = self.last_names.of(gfid);
        self.make_name(parent, dir.as_fd(), &name, gfid, || {
            let flags = AtFlags::empty();
            rustix::fs::linkat(&self.handle, handle.c_str(), &dir, name.c_str(), flags)
        })?;
        if step.orphan {
            self.unmark_orphan(&handle)?;
        }
        drop(names);
        self.listings.added(parent, name.bytes(), hot.file_type);
        self.touch(&hot, Touch::Attributes, stamp.time, stamp.number);
        self.touch(&parent_hot, Touch::Content, stamp.time, stamp.number);
        Ok(())
    }
}
