//! One of the two places where a sequence is done: system calls, and what came out of them.

use std::ffi::{CString, OsString};
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, Uid, XattrFlags, chmodat, chownat, copy_file_range, fallocate, fchmod, fchown,
    fsync, ftruncate, linkat, lremovexattr, lsetxattr, makedev, mkdirat, mknodat, open,
    renameat_with, rmdir, seek, setxattr, symlinkat, unlink, utimensat,
};
use rustix::io::{Errno, Result};

use super::look::time_set;
use super::op::{Acl, Act, How, Op, SLOTS, Special, Spot, When, XattrHow};
use crate::mapping::{Access, Mapping};

/// What an operation came to.
pub type Outcome = Result<Seen>;

/// What a caller is told of an operation that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Done,
    /// Bytes.
    Bytes(Vec<u8>),
    /// How many bytes, or an offset.
    Number(u64),
    /// Names, sorted.
    Names(Vec<OsString>),
    /// Mode, links, size, owner, group, and the time of change if one was set.
    Stat(u32, u64, u64, (u32, u32), Option<(i64, i64)>),
}

/// A folder, and what is open in it.
#[derive(Debug)]
pub struct Side {
    root: PathBuf,
    slots: [Option<File>; SLOTS],
}

impl Side {
    /// Makes the folder, for everybody to write to.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(root: PathBuf) -> Self {
        fs::create_dir(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
        fs::set_permissions(&root, Permissions::from_mode(0o777)).expect("its mode");
        Side {
            root,
            slots: [const { None }; SLOTS],
        }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Does one operation as who is to do it.
    pub fn perform(&mut self, op: &Op) -> Outcome {
        if op.who == super::op::Who::Root {
            self.act(&op.act)
        } else {
            op.who.user().does(|| self.act(&op.act))
        }
    }

    fn act(&mut self, act: &Act) -> Outcome {
        match act {
            Act::Mkdir { .. }
            | Act::Mknod { .. }
            | Act::Symlink { .. }
            | Act::Link { .. }
            | Act::Rename { .. }
            | Act::Unlink { .. }
            | Act::Rmdir { .. }
            | Act::List { .. } => self.on_names(act),
            Act::Chmod { .. }
            | Act::Chown { .. }
            | Act::Utimens { .. }
            | Act::Resize { .. }
            | Act::SetXattr { .. }
            | Act::RemoveXattr { .. }
            | Act::SetAcl { .. } => self.on_attributes(act),
            Act::Open {
                slot,
                at,
                how,
                mode,
            } => self.open(*slot, at, *how, *mode),
            Act::Close { slot } => {
                self.slots[*slot].take().ok_or(Errno::BADF)?;
                Ok(Seen::Done)
            }
            Act::Outage(_) => Ok(Seen::Done),
            _ => self.on_slots(act),
        }
    }

    fn on_names(&self, act: &Act) -> Outcome {
        match act {
            Act::Mkdir { at, mode } => mkdirat(CWD, self.at(at), Mode::from_raw_mode(*mode))?,
            Act::Mknod { at, special, mode } => {
                let (kind, device) = match special {
                    Special::Fifo => (FileType::Fifo, 0),
                    Special::Socket => (FileType::Socket, 0),
                    Special::Device => (FileType::CharacterDevice, makedev(1, 3)),
                    Special::Whiteout => (FileType::CharacterDevice, 0),
                    Special::File => (FileType::RegularFile, 0),
                };
                mknodat(CWD, self.at(at), kind, Mode::from_raw_mode(*mode), device)?;
            }
            Act::Symlink { at, target } => symlinkat(*target, CWD, self.at(at))?,
            Act::Link { from, to } => {
                linkat(CWD, self.at(from), CWD, self.at(to), AtFlags::empty())?;
            }
            Act::Rename { from, to, flags } => {
                renameat_with(CWD, self.at(from), CWD, self.at(to), *flags)?;
            }
            Act::Unlink { at } => unlink(self.at(at))?,
            Act::Rmdir { at } => rmdir(self.at(at))?,
            Act::List { at } => return self.list(at),
            other => unreachable!("{other:?} is not about names"),
        }
        Ok(Seen::Done)
    }

    fn list(&self, at: &Spot) -> Outcome {
        let entries = io(fs::read_dir(self.at(at)))?;
        let names = entries.map(|entry| Ok(io(entry)?.file_name()));
        let mut names = names.collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(Seen::Names(names))
    }

    fn on_attributes(&self, act: &Act) -> Outcome {
        match act {
            Act::Chmod { at, mode } => {
                let mode = Mode::from_raw_mode(*mode);
                chmodat(CWD, self.at(at), mode, AtFlags::empty())?;
            }
            Act::Chown { at, uid, gid } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                chownat(CWD, self.at(at), uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Act::Utimens { at, mtime } => {
                let times = Timestamps {
                    last_access: timespec(When::Omit),
                    last_modification: timespec(*mtime),
                };
                utimensat(CWD, self.at(at), &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Act::Resize { at, len } => truncate(&self.at(at), *len)?,
            Act::SetXattr {
                at,
                name,
                len,
                flags,
            } => {
                let value = vec![b'v'; usize::from(*len)];
                let flags = match flags {
                    XattrHow::Set => XattrFlags::empty(),
                    XattrHow::Create => XattrFlags::CREATE,
                    XattrHow::Replace => XattrFlags::REPLACE,
                };
                lsetxattr(self.at(at), *name, &value, flags)?;
            }
            Act::RemoveXattr { at, name } => lremovexattr(self.at(at), *name)?,
            Act::SetAcl { at, name, acl } => {
                setxattr(self.at(at), *name, &acl_bytes(*acl), XattrFlags::empty())?;
            }
            other => unreachable!("{other:?} is not about attributes"),
        }
        Ok(Seen::Done)
    }

    fn open(&mut self, slot: usize, at: &Spot, how: How, mode: u32) -> Outcome {
        let flags = match how {
            How::Read => OFlags::RDONLY,
            How::Write => OFlags::RDWR,
            How::Append => OFlags::RDWR | OFlags::APPEND | OFlags::CREATE,
            How::Create => OFlags::RDWR | OFlags::CREATE,
            How::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            How::Truncate => OFlags::RDWR | OFlags::TRUNC,
        };
        let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = self.at(at);
        // Opening them succeeds, reading them waits or is not the file system's doing.
        let special = fs::metadata(&path)
            .is_ok_and(|meta| meta.mode() & 0o170_000 == 0o010_000 || meta.rdev() != 0);
        if special {
            return Err(Errno::NXIO);
        }
        let opened = File::from(open(path, flags, Mode::from_raw_mode(mode))?);
        self.slots[slot] = Some(opened);
        Ok(Seen::Done)
    }

    fn on_slots(&self, act: &Act) -> Outcome {
        match act {
            Act::Stat { slot } => return self.stat(*slot),
            Act::Read { slot, offset, len } => {
                let mut bytes = vec![0; *len as usize];
                let count = io(self.file(*slot)?.read_at(&mut bytes, u64::from(*offset)))?;
                bytes.truncate(count);
                return Ok(Seen::Bytes(bytes));
            }
            Act::Write {
                slot,
                offset,
                len,
                fill,
            } => {
                let bytes = vec![*fill; *len as usize];
                let count = io(self.file(*slot)?.write_at(&bytes, u64::from(*offset)))?;
                return Ok(Seen::Number(count as u64));
            }
            Act::Store {
                slot,
                offset,
                len,
                fill,
            } => {
                return self.store(*slot, *offset, *len, *fill);
            }
            Act::Truncate { slot, len } => ftruncate(self.file(*slot)?, u64::from(*len))?,
            Act::Allocate {
                slot,
                flags,
                offset,
                len,
            } => {
                let (offset, len) = (u64::from(*offset), u64::from(*len));
                fallocate(self.file(*slot)?, *flags, offset, len)?;
            }
            Act::Copy {
                from,
                to,
                from_offset,
                to_offset,
                len,
            } => {
                let (mut at, mut into) = (u64::from(*from_offset), u64::from(*to_offset));
                let (from, to) = (self.file(*from)?, self.file(*to)?);
                let count =
                    copy_file_range(from, Some(&mut at), to, Some(&mut into), *len as usize)?;
                return Ok(Seen::Number(count as u64));
            }
            Act::SeekData { slot, offset } => {
                return self.seek(*slot, SeekFrom::Data(u64::from(*offset)));
            }
            Act::SeekHole { slot, offset } => {
                return self.seek(*slot, SeekFrom::Hole(u64::from(*offset)));
            }
            Act::Sync { slot } => fsync(self.file(*slot)?)?,
            Act::Fchmod { slot, mode } => {
                fchmod(self.file(*slot)?, Mode::from_raw_mode(*mode))?;
            }
            Act::Fchown { slot, uid, gid } => {
                let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
                fchown(self.file(*slot)?, Some(uid), Some(gid))?;
            }
            other => unreachable!("{other:?} is not about an open file"),
        }
        Ok(Seen::Done)
    }

    fn stat(&self, slot: usize) -> Outcome {
        let meta = io(self.file(slot)?.metadata())?;
        let is_dir = meta.is_dir();
        let size = if is_dir { 0 } else { meta.size() };
        let owner = (meta.uid(), meta.gid());
        let time = time_set(&meta);
        Ok(Seen::Stat(meta.mode(), meta.nlink(), size, owner, time))
    }

    /// Where data or a hole is: on a disk only when what was written has its place.
    fn seek(&self, slot: usize, to: SeekFrom) -> Outcome {
        let file = self.file(slot)?;
        if !io(file.metadata())?.is_file() {
            return Err(Errno::NXIO);
        }
        fsync(file)?;
        Ok(Seen::Number(seek(file, to)?))
    }

    /// Stores into a mapping, as far as the file goes.
    fn store(&self, slot: usize, offset: u32, len: u32, fill: u8) -> Outcome {
        let file = self.file(slot)?;
        let meta = io(file.metadata())?;
        if !meta.is_file() {
            return Err(Errno::NODEV);
        }
        let end = u64::from(offset)
            .saturating_add(u64::from(len))
            .min(meta.len()) as usize;
        let from = offset as usize;
        if end <= from {
            return Ok(Seen::Number(0));
        }
        let mapping = Mapping::new(file, end, Access::Write)?;
        mapping.store(from, &vec![fill; end - from]);
        mapping.sync()?;
        Ok(Seen::Number((end - from) as u64))
    }

    fn at(&self, spot: &Spot) -> PathBuf {
        self.root.join(spot.path())
    }

    fn file(&self, slot: usize) -> Result<&File> {
        self.slots[slot].as_ref().ok_or(Errno::BADF)
    }
}

fn io<T>(outcome: std::io::Result<T>) -> Result<T> {
    outcome.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn timespec(when: When) -> Timespec {
    let (tv_sec, tv_nsec) = match when {
        When::Now => (0, UTIME_NOW),
        When::Omit => (0, UTIME_OMIT),
        When::At(secs, nanos) => (secs, nanos),
    };
    Timespec { tv_sec, tv_nsec }
}

fn truncate(path: &Path, len: u32) -> Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the path ends with a zero byte and lives for the call.
    let done = unsafe { libc::truncate(path.as_ptr(), libc::off_t::from(len)) };
    if done == 0 {
        Ok(())
    } else {
        io(Err(std::io::Error::last_os_error()))
    }
}

/// An ACL as the kernel takes it: version 2, then (tag, permissions, id) of each entry.
fn acl_bytes(acl: Acl) -> Vec<u8> {
    const OWNER: u16 = 1;
    const USER: u16 = 2;
    const OWNING_GROUP: u16 = 4;
    const GROUP: u16 = 8;
    const MASK: u16 = 16;
    const OTHER: u16 = 32;
    const NOBODY: u32 = u32::MAX;
    let entries: &[(u16, u16, u32)] = match acl {
        Acl::Minimal => &[
            (OWNER, 6, NOBODY),
            (OWNING_GROUP, 4, NOBODY),
            (OTHER, 0, NOBODY),
        ],
        Acl::Bob => &[
            (OWNER, 7, NOBODY),
            (USER, 6, 1002),
            (OWNING_GROUP, 5, NOBODY),
            (MASK, 7, NOBODY),
            (OTHER, 4, NOBODY),
        ],
        Acl::Group => &[
            (OWNER, 7, NOBODY),
            (OWNING_GROUP, 7, NOBODY),
            (GROUP, 7, 1003),
            (MASK, 5, NOBODY),
            (OTHER, 1, NOBODY),
        ],
        Acl::Broken => &[(OWNER, 7, NOBODY), (GROUP, 7, 1003)],
    };
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}
