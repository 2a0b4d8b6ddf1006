//! Making files, directories, symlinks and special files.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use mortar_common::Gfid;
use mortar_proto::data::{CreateStep, Time};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use super::{Made, Stamp, some};
use crate::brick::durable::{OPEN, OPEN_DIR};
use crate::brick::handle::Target;
use crate::brick::hot::{Hot, State, Touch};
use crate::brick::inner::{Inner, disk_clock_ms};
use crate::brick::layout::{self, EntryName, HandleName, INERT_DEVICE, clamp_time};
use crate::brick::xattr::{self, ACL_ACCESS, ACL_DEFAULT};

/// What an object is to be before it gets a name.
pub(in crate::brick) struct NewObject<'a> {
    pub gfid: Gfid,
    /// With the type bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    /// Of a symlink.
    pub target: &'a [u8],
    pub acl_access: &'a [u8],
    pub acl_default: &'a [u8],
    /// Times and counters.
    pub state: State,
    pub atime: Time,
}

impl NewObject<'_> {
    fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    fn is_device(&self) -> bool {
        matches!(self.file_type(), libc::S_IFCHR | libc::S_IFBLK)
    }

    /// With what only some types have.
    fn whole_state(&self, presence: u32) -> State {
        let mut state = self.state;
        state.rdev = self.is_device().then_some(self.rdev);
        state.atime = (self.file_type() == libc::S_IFLNK).then_some(clamp_time(self.atime));
        state.presence = presence;
        state
    }

    fn permissions(&self) -> Mode {
        Mode::from_raw_mode(self.mode & 0o7777)
    }
}

impl Inner {
    pub(super) fn create(&self, stamp: Stamp, step: &CreateStep) -> Result<(), Errno> {
        let (parent, gfid) = (some(step.parent)?, some(step.gfid)?);
        let state = State::new(stamp.time, stamp.time, stamp.number, stamp.number);
        let new = NewObject {
            gfid,
            mode: step.mode,
            uid: step.uid,
            gid: step.gid,
            rdev: step.rdev,
            target: &step.target,
            acl_access: &step.acl_access,
            acl_default: &step.acl_default,
            state,
            atime: stamp.time,
        };
        if step.name.is_empty() {
            return self.create_unnamed(&new);
        }
        let name = EntryName::new(parent, &step.name)?;
        let (parent_hot, dir) = self.dir(parent)?;
        if new.file_type() == libc::S_IFDIR {
            self.create_dir(&new, parent, &dir, &name)?;
        } else {
            self.create_node(&new, parent, &dir, &name)?;
        }
        self.listings.added(parent, name.bytes(), new.file_type());
        self.touch(&parent_hot, Touch::Content, stamp.time, stamp.number);
        Ok(())
    }

    fn create_node(
        &self,
        new: &NewObject<'_>,
        parent: Gfid,
        dir: &Arc<OwnedFd>,
        name: &EntryName,
    ) -> Result<(), Errno> {
        let handle = HandleName::of(new.gfid);
        let hot = match self.make_node(new) {
            Ok(hot) => hot,
            Err(Errno::EXIST) => {
                if self.gfid_at(dir.as_fd(), name.c_str()) == Ok(Some(new.gfid)) {
                    return Ok(());
                }
                if self.stat_handle(&handle)?.st_nlink != 1 {
                    return Err(Errno::EXIST);
                }
                // Left by an attempt that failed half-way.
                self.drop_handle(new.gfid)?;
                self.make_node(new)?
            }
            Err(error) => return Err(error),
        };
        let made = self.make_name(parent, dir.as_fd(), name, new.gfid, || {
            let flags = AtFlags::empty();
            rustix::fs::linkat(&self.handle, handle.c_str(), dir, name.c_str(), flags)
        });
        match made {
            Ok(_) => {
                self.insert_new(hot);
                Ok(())
            }
            Err(error) => {
                drop(hot);
                self.drop_handle(new.gfid)?;
                Err(error)
            }
        }
    }

    /// Makes a file that has no name yet. Its marker comes last: a crash before it leaves what is
    /// swept, and with it this was done before.
    fn create_unnamed(&self, new: &NewObject<'_>) -> Result<(), Errno> {
        let hot = match self.make_node(new) {
            Ok(hot) => hot,
            Err(Errno::EXIST) if self.is_orphan(new.gfid) => return Ok(()),
            Err(Errno::EXIST) => {
                if self.stat_handle(&HandleName::of(new.gfid))?.st_nlink != 1 {
                    return Err(Errno::EXIST);
                }
                self.drop_handle(new.gfid)?;
                self.make_node(new)?
            }
            Err(error) => return Err(error),
        };
        self.mark_orphan(&HandleName::of(new.gfid))?;
        self.insert_new(hot);
        Ok(())
    }

    /// Makes a non-directory in its handle, complete. EEXIST when the handle is there.
    pub(in crate::brick) fn make_node(&self, new: &NewObject<'_>) -> Result<Hot, Errno> {
        let handle = HandleName::of(new.gfid);
        let mut descriptor = None;
        let private = Mode::from_raw_mode(0o600);
        self.in_bucket(&handle, || match new.file_type() {
            libc::S_IFREG => {
                let flags = OPEN | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
                rustix::fs::openat(&self.handle, handle.c_str(), flags, private).map(Some)
            }
            libc::S_IFLNK => {
                rustix::fs::symlinkat(new.target, &self.handle, handle.c_str()).map(|()| None)
            }
            libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK => {
                let kind = FileType::from_raw_mode(new.mode);
                rustix::fs::mknodat(&self.handle, handle.c_str(), kind, private, INERT_DEVICE)
                    .map(|()| None)
            }
            _ => Err(Errno::INVAL),
        })
        .map(|opened| descriptor = opened)?;
        let target = match descriptor {
            Some(fd) => Target::Fd(Arc::new(fd)),
            None => Target::Handle(handle),
        };
        let presence = match self.complete(new, &target) {
            Ok(presence) => presence,
            Err(error) => {
                self.drop_handle(new.gfid)?;
                return Err(error);
            }
        };
        let descriptor = match target {
            Target::Fd(fd) => Arc::into_inner(fd),
            Target::Handle(_) => None,
        };
        let state = new.whole_state(presence);
        Ok(Hot::new(new.gfid, new.file_type(), state, descriptor))
    }

    /// Owner, mode, ACLs, `trusted.mortar` and times of what was just made; returns the presence
    /// bits.
    fn complete(&self, new: &NewObject<'_>, target: &Target) -> Result<u32, Errno> {
        if (new.uid, new.gid) != (0, 0) {
            self.set_owner(target, Some(new.uid), Some(new.gid))?;
        }
        if new.file_type() != libc::S_IFLNK {
            self.set_permissions(target, new.permissions())?;
        }
        let state = new.whole_state(0);
        let encoded = state.stored(new.gfid, disk_clock_ms()).encode();
        let presence = self.with_of(target, |of| {
            xattr::set(of, layout::XATTR, encoded.bytes())?;
            for (name, value) in [(ACL_ACCESS, new.acl_access), (ACL_DEFAULT, new.acl_default)] {
                if !value.is_empty() {
                    xattr::set(of, name, value)?;
                }
            }
            if new.acl_access.is_empty() && new.acl_default.is_empty() {
                // A security module may have labelled it: that is all there can be.
                return Ok(0);
            }
            xattr::presence(of)
        })?;
        self.set_times(target, Some(new.atime), Some(state.mtime))?;
        Ok(presence)
    }

    fn create_dir(
        &self,
        new: &NewObject<'_>,
        parent: Gfid,
        dir: &Arc<OwnedFd>,
        name: &EntryName,
    ) -> Result<(), Errno> {
        if self.gfid_at(dir.as_fd(), name.c_str()) == Ok(Some(new.gfid)) {
            return Ok(());
        }
        let handle = HandleName::of(new.gfid);
        if self.stat_handle(&handle).is_ok() && self.hot(new.gfid).is_ok() {
            return Err(Errno::EXIST);
        }
        let hot = self.make_dir(new)?;
        let made = self.make_name(parent, dir.as_fd(), name, new.gfid, || {
            self.rename_new(&self.txn, handle.gfid_c_str(), dir, name.c_str())
        });
        match made {
            Ok(Made::Now | Made::Before) => {
                self.insert_new(hot);
                Ok(())
            }
            Err(error) => {
                rustix::fs::unlinkat(&self.txn, handle.gfid_c_str(), AtFlags::REMOVEDIR)?;
                self.drop_handle(new.gfid)?;
                Err(error)
            }
        }
    }

    /// Makes a directory in `txn/`, complete and with its handle.
    pub(in crate::brick) fn make_dir(&self, new: &NewObject<'_>) -> Result<Hot, Errno> {
        let handle = HandleName::of(new.gfid);
        let name = handle.gfid_c_str();
        match rustix::fs::mkdirat(&self.txn, name, Mode::from_raw_mode(0o700)) {
            // Left by an attempt that failed half-way: complete it.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let fd = Arc::new(rustix::fs::openat(
            &self.txn,
            name,
            OPEN_DIR,
            Mode::empty(),
        )?);
        let target = Target::Fd(Arc::clone(&fd));
        let presence = self.complete(new, &target)?;
        drop(target);
        self.write_dir_handle(new.gfid, fd.as_fd())?;
        let state = new.whole_state(presence);
        Ok(Hot::new(
            new.gfid,
            libc::S_IFDIR,
            state,
            Arc::into_inner(fd),
        ))
    }

    /// Renames to a name that must be free.
    pub(in crate::brick) fn rename_new(
        &self,
        from: &OwnedFd,
        from_name: &CStr,
        to: &OwnedFd,
        to_name: &CStr,
    ) -> Result<(), Errno> {
        rustix::fs::renameat_with(from, from_name, to, to_name, RenameFlags::NOREPLACE)
    }

    pub(in crate::brick) fn set_owner(
        &self,
        target: &Target,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(), Errno> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        match target {
            Target::Fd(fd) => rustix::fs::fchown(fd, uid, gid),
            Target::Handle(name) => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(&self.handle, name.c_str(), uid, gid, flags)
            }
        }
    }

    /// Never called for a symlink, which has no permissions of its own: chmod would follow it.
    pub(in crate::brick) fn set_permissions(
        &self,
        target: &Target,
        mode: Mode,
    ) -> Result<(), Errno> {
        match target {
            Target::Fd(fd) => rustix::fs::fchmod(fd, mode),
            Target::Handle(name) => {
                rustix::fs::chmodat(&self.handle, name.c_str(), mode, AtFlags::empty())
            }
        }
    }
}
