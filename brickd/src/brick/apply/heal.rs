//! Heal changes of objects and their bytes: what the source has, as it has it.

use std::os::fd::AsFd;
use std::sync::Arc;

use mortar_common::Gfid;
use mortar_proto::data::{HealDataStep, HealObjectStep, Object, Xattr};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::create::NewObject;
use super::write::punch;
use super::{Stamp, some};
use crate::brick::durable;
use crate::brick::handle::Target;
use crate::brick::hot::{Dirty, Hot, State};
use crate::brick::inner::Inner;
use crate::brick::layout::{self, HandleName, clamp_time};
use crate::brick::xattr;

impl Inner {
    pub(super) fn heal_object(&self, stamp: Stamp, step: &HealObjectStep) -> Result<(), Errno> {
        let object = step.object.as_ref().ok_or(Errno::INVAL)?;
        let gfid = some(object.gfid)?;
        let hot = match self.hot(gfid) {
            Ok(hot) if hot.file_type == object.mode & libc::S_IFMT => hot,
            Ok(hot) if step.replace => {
                self.make_stray(&hot)?;
                self.make_unnamed(stamp, object, &step.target)?
            }
            Ok(_) => return Err(Errno::EXIST),
            Err(Errno::NOENT) => self.make_unnamed(stamp, object, &step.target)?,
            Err(error) => return Err(error),
        };
        if hot.is_file() {
            let fd = self.descriptor(&hot)?;
            rustix::fs::ftruncate(&fd, object.size)?;
        }
        if hot.file_type == libc::S_IFLNK {
            self.heal_link_text(&hot, &step.target)?;
        }
        let target = self.target(&hot)?;
        self.set_owner(&target, Some(object.uid), Some(object.gid))?;
        self.heal_xattrs(&target, &step.xattrs)?;
        if hot.file_type != libc::S_IFLNK {
            self.set_permissions(&target, Mode::from_raw_mode(object.mode & 0o7777))?;
        }
        self.set_times(&target, object.atime.map(clamp_time), None)?;
        let presence = self.with_of(&target, xattr::presence)?;
        let healed = state_of(object, presence);
        self.update(&hot, |state| {
            let (listed, gone) = (state.listed, state.gone);
            *state = healed;
            (state.listed, state.gone) = (listed, gone);
            state.soil(Dirty::Times);
        });
        Ok(())
    }

    pub(super) fn heal_data(&self, step: &HealDataStep, payload: &[u8]) -> Result<(), Errno> {
        let (hot, fd) = self.file(some(step.gfid)?)?;
        if step.hole {
            let size = rustix::fs::fstat(&fd)?.st_size.max(0).cast_unsigned();
            let end = step.offset.checked_add(step.len).ok_or(Errno::FBIG)?;
            if step.offset < size {
                punch(&fd, step.offset, step.len)?;
            }
            if end > size {
                rustix::fs::ftruncate(&fd, end)?;
            }
        } else if payload.len() as u64 == step.len {
            durable::write_all(&fd, step.offset, payload)?;
        } else {
            return Err(Errno::INVAL);
        }
        // The disk's times are of now; memory's are the source's.
        self.update(&hot, |state| state.soil(Dirty::Times));
        Ok(())
    }

    /// An object without a name: what its names will be is healed apart.
    fn make_unnamed(
        &self,
        stamp: Stamp,
        object: &Object,
        target: &[u8],
    ) -> Result<Arc<Hot>, Errno> {
        let gfid = some(object.gfid)?;
        let handle = HandleName::of(gfid);
        let new = NewObject {
            gfid,
            mode: object.mode,
            uid: object.uid,
            gid: object.gid,
            rdev: object.rdev,
            target,
            acl_access: &[],
            acl_default: &[],
            state: state_of(object, 0),
            atime: object.atime.unwrap_or(stamp.time),
        };
        if object.mode & libc::S_IFMT == libc::S_IFDIR {
            let hot = self.make_dir(&new)?;
            let name = handle.gfid_c_str();
            self.unmark_orphan(&handle)?;
            self.rename_new(&self.txn, name, &self.orphan, name)?;
            return Ok(self.insert_new(hot));
        }
        self.mark_orphan(&handle)?;
        let hot = match self.make_node(&new) {
            Err(Errno::EXIST) => {
                self.drop_handle(gfid)?;
                self.make_node(&new)?
            }
            other => other?,
        };
        Ok(self.insert_new(hot))
    }

    /// A symlink cannot be rewritten, and its gfid never gets another text: a difference can only
    /// come from outside, and is refused.
    fn heal_link_text(&self, hot: &Hot, text: &[u8]) -> Result<(), Errno> {
        let name = HandleName::of(hot.gfid);
        let there = rustix::fs::readlinkat(&self.handle, name.c_str(), Vec::new())?;
        if there.as_bytes() == text {
            Ok(())
        } else {
            Err(Errno::STALE)
        }
    }

    fn heal_xattrs(&self, target: &Target, xattrs: &[Xattr]) -> Result<(), Errno> {
        self.with_of(target, |of| {
            let list = xattr::list(of)?;
            for name in xattr::names(&list) {
                if !xattrs.iter().any(|kept| kept.name == name) {
                    xattr::remove(of, &xattr::client_name(name)?)?;
                }
            }
            for kept in xattrs {
                xattr::set(of, &xattr::client_name(&kept.name)?, &kept.value)?;
            }
            Ok(())
        })
    }

    /// Takes the gfid from what bears it and is of another type: it becomes a stray, and is moved
    /// away when its name is healed.
    fn make_stray(&self, hot: &Hot) -> Result<(), Errno> {
        let target = self.target(hot)?;
        self.with_of(&target, |of| xattr::remove(of, layout::XATTR))?;
        self.listings.forget(hot.gfid);
        self.drop_handle(hot.gfid)?;
        self.unmark_orphan(&HandleName::of(hot.gfid))
    }

    /// The gfid of the directory that holds this one, and its name there.
    pub(super) fn place_of_dir(&self, gfid: Gfid) -> Result<Place, Errno> {
        let (_, dir) = self.dir(gfid)?;
        let ino = rustix::fs::fstat(&dir)?.st_ino;
        let flags = durable::OPEN_DIR;
        let parent = rustix::fs::openat(&dir, c"..", flags, Mode::empty())?;
        let mut found = None;
        crate::brick::handle::each_entry(&parent, &mut |name, entry| {
            if entry.ino() == ino {
                found = Some(layout::EntryName::unchecked(name.to_bytes()));
            }
            Ok(())
        })?;
        let name = found.ok_or(Errno::NOENT)?;
        let parent_gfid = crate::brick::handle::stored_of(parent.as_fd())?;
        Ok(Place {
            parent,
            parent_gfid: parent_gfid.map(|stored| stored.gfid),
            name,
        })
    }

    /// Whether an object has a marker, or its place, in `orphan/`.
    pub(in crate::brick) fn is_orphan(&self, gfid: Gfid) -> bool {
        let handle = HandleName::of(gfid);
        rustix::fs::statat(&self.orphan, handle.gfid_c_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }
}

/// Where a directory is.
pub(super) struct Place {
    pub parent: std::os::fd::OwnedFd,
    /// `None`: in the brick's own folder.
    pub parent_gfid: Option<Gfid>,
    pub name: layout::EntryName,
}

fn state_of(object: &Object, presence: u32) -> State {
    let mut state = State::new(
        object.ctime.unwrap_or_default(),
        clamp_time(object.mtime.unwrap_or_default()),
        object.data_counter,
        object.attr_counter,
    );
    state.presence = presence;
    let device = matches!(object.mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK);
    state.rdev = device.then_some(object.rdev);
    if object.mode & libc::S_IFMT == libc::S_IFLNK {
        state.atime = object.atime.map(clamp_time);
    }
    state
}
