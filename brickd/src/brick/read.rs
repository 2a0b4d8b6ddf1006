//! Reads: objects, names, bytes, attributes, and what healing compares.

use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use bytes::Bytes;
use mortar_common::Gfid;
use mortar_common::name::PRIVATE_DIR;
use mortar_proto::data::{HealObjectStep, Object, StatFs, Time, Xattr};
use rustix::fs::{Advice, Mode, SeekFrom};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use super::durable::OPEN_DIR;
use super::handle::{Target, each_entry, stored_of};
use super::inner::Inner;
use super::layout::{EntryName, HandleName};
use super::xattr;

/// A read of fewer bytes, or one that does not go on where the last one ended, is not read ahead.
const READ_AHEAD_BYTES_MIN: u32 = 256 << 10;
/// Bytes summed at a time.
const SUM_BYTES: usize = 256 * 1024;
/// How often a name is read again because it changed between its gfid and its object.
const NAME_TRIES_MAX: usize = 8;
/// Entries looked at when a file's path is asked for: the answer is for people, not needed.
const PATH_SEARCH_ENTRIES_MAX: usize = 1_000_000;

impl Inner {
    pub fn object(&self, gfid: Gfid) -> Result<Object, Errno> {
        let hot = self.hot(gfid)?;
        // Memory first: what is then read of the disk is never older than the counters say.
        let state = *hot.state();
        let stat = self.stat(&self.target(&hot)?)?;
        let mut nlink = stat.st_nlink as u32;
        // Not counted: a file's handle, and `.mortar` in the root.
        if !hot.is_dir() || (gfid == Gfid::ROOT && nlink > 2) {
            nlink = nlink.saturating_sub(1);
        }
        let disk_atime = Time {
            secs: stat.st_atime,
            nanos: stat.st_atime_nsec as u32,
        };
        Ok(Object {
            gfid: Some(gfid),
            mode: stat.st_mode,
            nlink,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: state.rdev.unwrap_or(0),
            size: stat.st_size.max(0).cast_unsigned(),
            blocks: stat.st_blocks.max(0).cast_unsigned(),
            atime: state.atime.or(Some(disk_atime)),
            mtime: Some(state.mtime),
            ctime: Some(state.ctime),
            data_counter: state.data_counter,
            attr_counter: state.attr_counter,
            presence: state.presence,
        })
    }

    pub fn lookup(&self, parent: Gfid, name: &[u8]) -> Result<Object, Errno> {
        if parent == Gfid::ROOT && name == PRIVATE_DIR.as_bytes() {
            return Err(Errno::NOENT);
        }
        let name = EntryName::new(parent, name)?;
        let (_, dir) = self.dir(parent)?;
        self.object_at(&dir, &name)
    }

    /// What a name holds. ENOENT when nothing, or a stray.
    pub fn object_at(&self, dir: &OwnedFd, name: &EntryName) -> Result<Object, Errno> {
        let named = || self.gfid_at(dir.as_fd(), name.c_str())?.ok_or(Errno::NOENT);
        let mut gfid = named()?;
        for _ in 0..NAME_TRIES_MAX {
            let walk = self.walks();
            match self.object(gfid) {
                Err(Errno::NOENT) => {}
                other => return other,
            }
            let again = named()?;
            if again == gfid {
                // A name without a handle: the brick was restored from a copy that lost them.
                self.rewrite_handles(walk)?;
            }
            gfid = again;
        }
        Err(Errno::NOENT)
    }

    pub fn read_link(&self, gfid: Gfid) -> Result<Bytes, Errno> {
        let hot = self.hot(gfid)?;
        if hot.file_type != libc::S_IFLNK {
            return Err(Errno::INVAL);
        }
        let name = HandleName::of(gfid);
        let text = rustix::fs::readlinkat(&self.handle, name.c_str(), Vec::new())?;
        Ok(text.into_bytes().into())
    }

    pub fn read(&self, gfid: Gfid, offset: u64, len: u32, into: &mut Vec<u8>) -> Result<(), Errno> {
        let (hot, fd) = self.file(gfid)?;
        read_into(&fd, offset, len as usize, into)?;
        if len >= READ_AHEAD_BYTES_MIN && hot.reads_on(offset, len.into()) {
            // The disk fetches the next piece while this one travels. Only a hint.
            let next = offset.saturating_add(len.into());
            let _ = rustix::fs::fadvise(&fd, next, NonZeroU64::new(len.into()), Advice::WillNeed);
        }
        Ok(())
    }

    /// See [`super::Store::read_soon`].
    pub fn read_soon(&self, gfid: Gfid, bytes: u64) {
        if let Ok((_, fd)) = self.file(gfid) {
            let _ = rustix::fs::fadvise(&fd, 0, NonZeroU64::new(bytes), Advice::WillNeed);
        }
    }

    pub fn get_xattr(&self, gfid: Gfid, name: &[u8]) -> Result<Bytes, Errno> {
        let name = match xattr::client_name(name) {
            Err(Errno::PERM) => return Err(Errno::NODATA),
            other => other?,
        };
        let target = self.target(&*self.hot(gfid)?)?;
        self.with_of(&target, |of| xattr::get_all(of, &name))
            .map(Bytes::from)
    }

    pub fn list_xattr(&self, gfid: Gfid) -> Result<Bytes, Errno> {
        let target = self.target(&*self.hot(gfid)?)?;
        self.with_of(&target, xattr::list).map(Bytes::from)
    }

    pub fn seek(&self, gfid: Gfid, offset: u64, hole: bool) -> Result<u64, Errno> {
        let (_, fd) = self.file(gfid)?;
        seek(&fd, offset, hole)
    }

    pub fn parent_of_dir(&self, gfid: Gfid) -> Result<Gfid, Errno> {
        if gfid == Gfid::ROOT {
            return Ok(gfid);
        }
        let (_, dir) = self.dir(gfid)?;
        // In the brick's own folder: displaced, it has no parent for now.
        self.gfid_at(dir.as_fd(), c"..")?.ok_or(Errno::NOENT)
    }

    pub fn stat_fs(&self) -> Result<StatFs, Errno> {
        let stat = rustix::fs::fstatvfs(&self.root)?;
        let block_size = stat.f_frsize.max(1);
        let reserved = self
            .reserve
            .bytes_of(stat.f_blocks * block_size)
            .div_ceil(block_size);
        Ok(StatFs {
            block_size,
            blocks: stat.f_blocks,
            blocks_free: stat.f_bfree.saturating_sub(reserved),
            blocks_available: stat.f_bavail.saturating_sub(reserved),
            files: stat.f_files,
            files_free: stat.f_ffree,
        })
    }

    pub fn heal_source(&self, gfid: Gfid) -> Result<HealObjectStep, Errno> {
        let hot = self.hot(gfid)?;
        let object = self.object(gfid)?;
        let target = match hot.file_type {
            libc::S_IFLNK => self.read_link(gfid)?,
            _ => Bytes::new(),
        };
        let place = self.target(&hot)?;
        let xattrs = self.with_of(&place, |of| {
            let list = xattr::list(of)?;
            let mut xattrs = Vec::new();
            for name in xattr::names(&list) {
                let value = xattr::get_all(of, &xattr::client_name(name)?)?;
                let name = Bytes::copy_from_slice(name);
                xattrs.push(Xattr {
                    name,
                    value: value.into(),
                });
            }
            Ok::<_, Errno>(xattrs)
        })?;
        Ok(HealObjectStep {
            object: Some(object),
            target,
            xattrs,
            replace: false,
        })
    }

    pub fn next_extent(&self, gfid: Gfid, offset: u64) -> Result<Option<(u64, u64, bool)>, Errno> {
        let (_, fd) = self.file(gfid)?;
        let size = rustix::fs::fstat(&fd)?.st_size.max(0).cast_unsigned();
        if offset >= size {
            return Ok(None);
        }
        let data = match seek(&fd, offset, false) {
            Ok(data) => data.min(size),
            Err(Errno::NXIO) => size,
            Err(error) => return Err(error),
        };
        if data > offset {
            return Ok(Some((offset, data - offset, true)));
        }
        let hole = match seek(&fd, offset, true) {
            Ok(hole) => hole.min(size),
            Err(Errno::NXIO) => size,
            Err(error) => return Err(error),
        };
        Ok((hole > offset).then_some((offset, hole - offset, false)))
    }

    /// Of the bytes there are: a range beyond the end is shorter.
    pub fn sum(&self, gfid: Gfid, offset: u64, len: u64) -> Result<u64, Errno> {
        let (_, fd) = self.file(gfid)?;
        let mut sum = Xxh3::new();
        let mut buffer = Vec::with_capacity(SUM_BYTES);
        let mut done = 0;
        while done < len {
            buffer.clear();
            let part = (len - done).min(SUM_BYTES as u64) as usize;
            read_into(&fd, offset + done, part, &mut buffer)?;
            sum.update(&buffer);
            done += buffer.len() as u64;
            if buffer.len() < part {
                break;
            }
        }
        Ok(sum.digest())
    }

    /// Drops what the kernel's page cache has of a range and the disk has too. A hint: what cannot be
    /// dropped is read from the cache.
    pub fn forget_cached(&self, gfid: Gfid, offset: u64, len: u64) {
        if let (Ok((_, fd)), Some(len)) = (self.file(gfid), std::num::NonZeroU64::new(len)) {
            let advice = rustix::fs::Advice::DontNeed;
            let _ = rustix::fs::fadvise(&fd, offset, Some(len), advice);
        }
    }

    pub fn path_of(&self, gfid: Gfid) -> Option<String> {
        let hot = self.hot(gfid).ok()?;
        if hot.is_dir() {
            return self.path_of_dir(&*self.descriptor(&hot).ok()?);
        }
        let ino = self
            .stat(&Target::Handle(HandleName::of(gfid)))
            .ok()?
            .st_ino;
        let mut left = PATH_SEARCH_ENTRIES_MAX;
        let mut pending = vec![Gfid::ROOT];
        while let Some(parent) = pending.pop() {
            let (_, dir) = self.dir(parent).ok()?;
            let mut found = None;
            let walked = each_entry(&dir, &mut |name, entry| {
                left = left.checked_sub(1).ok_or(Errno::TOOBIG)?;
                if entry.ino() == ino {
                    found = Some(String::from_utf8_lossy(name.to_bytes()).into_owned());
                    return Err(Errno::EXIST);
                }
                if entry.file_type() == rustix::fs::FileType::Directory
                    && let Some(below) = self.gfid_at(dir.as_fd(), name)?
                {
                    pending.push(below);
                }
                Ok(())
            });
            if let Some(name) = found {
                let above = self.path_of_dir(&dir)?;
                return Some(format!("{}/{name}", above.trim_end_matches('/')));
            }
            if walked == Err(Errno::TOOBIG) {
                return None;
            }
        }
        None
    }

    fn path_of_dir(&self, dir: &OwnedFd) -> Option<String> {
        let path =
            |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok();
        let (root, path) = (path(&self.root)?, path(dir)?);
        let below = path.strip_prefix(&root).ok()?;
        if below.starts_with(PRIVATE_DIR) {
            return None;
        }
        Some(Path::new("/").join(below).to_string_lossy().into_owned())
    }

    pub fn each_handle(
        &self,
        wanted: &dyn Fn(u32) -> bool,
        each: &mut dyn FnMut(Gfid) -> bool,
    ) -> Result<(), Errno> {
        let mut buckets = Vec::new();
        each_entry(&self.handle, &mut |name, _| {
            let number = name.to_str().ok();
            let number = number.and_then(|name| u32::from_str_radix(name, 16).ok());
            if number.is_none_or(wanted) {
                buckets.push(name.to_owned());
            }
            Ok(())
        })?;
        for bucket in buckets {
            let dir = rustix::fs::openat(&self.handle, &*bucket, OPEN_DIR, Mode::empty())?;
            let mut stopped = false;
            let walked = each_entry(&dir, &mut |name, _| match gfid_of_name(name) {
                Some(gfid) if !each(gfid) => {
                    stopped = true;
                    Err(Errno::CANCELED)
                }
                _ => Ok(()),
            });
            match walked {
                Err(Errno::CANCELED) if stopped => return Ok(()),
                other => other?,
            }
        }
        Ok(())
    }

    pub fn orphans(&self) -> Result<Vec<Gfid>, Errno> {
        let mut orphans = Vec::new();
        each_entry(&self.orphan, &mut |name, _| {
            orphans.extend(gfid_of_name(name));
            Ok(())
        })?;
        Ok(orphans)
    }

    /// Whether the open root still is the root of a volume.
    pub fn is_root(root: &OwnedFd) -> bool {
        matches!(stored_of(root.as_fd()), Ok(Some(stored)) if stored.gfid == Gfid::ROOT)
    }
}

/// The gfid that a file in `handle/`, `txn/` or `orphan/` is called by.
pub(super) fn gfid_of_name(name: &std::ffi::CStr) -> Option<Gfid> {
    name.to_str().ok()?.parse().ok()
}

fn seek(fd: &OwnedFd, offset: u64, hole: bool) -> Result<u64, Errno> {
    // The position of the shared descriptor is nobody's: everything else names its offset.
    rustix::fs::seek(
        fd,
        if hole {
            SeekFrom::Hole(offset)
        } else {
            SeekFrom::Data(offset)
        },
    )
}

fn read_into(fd: &OwnedFd, offset: u64, len: usize, into: &mut Vec<u8>) -> Result<(), Errno> {
    into.reserve(len);
    let mut done = 0;
    while done < len {
        let room = &mut into.spare_capacity_mut()[..len - done];
        let count = match rustix::io::pread(fd, room, offset + done as u64) {
            Ok((read, _)) => read.len(),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        if count == 0 {
            break;
        }
        // SAFETY: pread has initialised `count` bytes of the spare capacity.
        unsafe { into.set_len(into.len() + count) };
        done += count;
    }
    Ok(())
}
