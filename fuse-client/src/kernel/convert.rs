//! Between fuser's types and ours.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileType, INodeNo, RenameFlags, ReplyDirectory, ReplyDirectoryPlus, Request,
    TimeOrNow,
};
use mortar_common::FsError;
use mortar_proto::data::Caller;

use super::GENERATION;
use crate::cache::{Attrs, NodeId, Timestamp};
use crate::fs::{DirSink, FsResult, Listed, RenameHow, Room, TimeChange};

/// What `st_blksize` shows: writes of this size and more cost one request each.
const BLOCK_BYTES: u32 = 128 << 10;

/// A plain listing.
pub struct Listing<'a>(pub &'a mut ReplyDirectory);

impl DirSink for Listing<'_> {
    fn add(&mut self, entry: Listed<'_>) -> Room {
        let kind = file_type(entry.kind);
        let name = OsStr::from_bytes(entry.name);
        match self.0.add(INodeNo(entry.ino), entry.cookie, kind, name) {
            true => Room::Full,
            false => Room::Taken,
        }
    }
}

/// A listing with attributes.
pub struct ListingPlus<'a> {
    /// The kernel's buffer.
    pub reply: &'a mut ReplyDirectoryPlus,
    /// Whether anything is in it.
    pub added: bool,
}

impl DirSink for ListingPlus<'_> {
    fn add(&mut self, entry: Listed<'_>) -> Room {
        let Some((node, attrs)) = entry.plus else {
            return Room::Taken;
        };
        let (name, attr) = (OsStr::from_bytes(entry.name), attr_of(node, &attrs));
        let (ino, cookie) = (INodeNo(entry.ino), entry.cookie);
        if self
            .reply
            .add(ino, cookie, name, &entry.timeout, &attr, GENERATION)
        {
            return Room::Full;
        }
        self.added = true;
        Room::Taken
    }
}

pub fn caller_of(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        pid: req.pid(),
        umask: 0,
    }
}

pub fn errno(error: FsError) -> Errno {
    Errno::from_i32(error.errno())
}

/// `node` is both nodeid and `st_ino` of what the kernel is told: see [`NodeId`].
pub fn attr_of(node: NodeId, attrs: &Attrs) -> FileAttr {
    FileAttr {
        ino: INodeNo(node.0),
        size: attrs.size,
        blocks: attrs.blocks,
        atime: system_time(attrs.atime),
        mtime: system_time(attrs.mtime),
        ctime: system_time(attrs.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attrs.mode),
        perm: (attrs.mode & 0o7777) as u16,
        nlink: attrs.nlink,
        uid: attrs.uid,
        gid: attrs.gid,
        rdev: device_to_kernel(attrs.rdev),
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let second = if time.secs < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    second
        .and_then(|second| second.checked_add(Duration::from_nanos(u64::from(time.nanos))))
        .unwrap_or(UNIX_EPOCH)
}

/// fuser 0.18 takes the nanoseconds of a time before 1970 from the seconds instead of adding them:
/// -1.2 s (-2 s and 800 ms) comes as -2.8 s. So the parts of what it says are the kernel's own.
pub fn time_change(time: TimeOrNow) -> TimeChange {
    match time {
        TimeOrNow::Now => TimeChange::Now,
        TimeOrNow::SpecificTime(time) => TimeChange::To(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Timestamp {
                secs: after.as_secs() as i64,
                nanos: after.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                Timestamp {
                    secs: 0i64
                        .checked_sub_unsigned(before.as_secs())
                        .unwrap_or(i64::MIN),
                    nanos: before.subsec_nanos(),
                }
            }
        }),
    }
}

/// The kernel's 32-bit device number as `makedev` would put it.
pub fn device_from_kernel(device: u32) -> u64 {
    let major = device >> 8 & 0xfff;
    let minor = device & 0xff | device >> 12 & 0xf_ff00;
    libc::makedev(major, minor)
}

fn device_to_kernel(device: u64) -> u32 {
    let (major, minor) = (libc::major(device), libc::minor(device));
    minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

pub fn rename_how(flags: RenameFlags) -> FsResult<RenameHow> {
    if flags.is_empty() {
        Ok(RenameHow::RenameReplace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameHow::RenameNoreplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameHow::RenameExchange)
    } else if flags == RenameFlags::RENAME_WHITEOUT {
        Ok(RenameHow::RenameWhiteout)
    } else if flags == RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_NOREPLACE {
        Ok(RenameHow::RenameWhiteoutNoreplace)
    } else {
        Err(FsError::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_what_the_kernel_said() {
        // As fuser 0.18 makes it of -2 s and 800,000,000 ns.
        let from_fuser = UNIX_EPOCH - Duration::new(2, 800_000_000);
        let change = time_change(TimeOrNow::SpecificTime(from_fuser));
        assert_eq!(
            change,
            TimeChange::To(Timestamp {
                secs: -2,
                nanos: 800_000_000
            })
        );
        let shown = system_time(Timestamp {
            secs: -2,
            nanos: 800_000_000,
        });
        assert_eq!(shown, UNIX_EPOCH - Duration::new(1, 200_000_000));
        // Out of what the system can hold: no panic.
        system_time(Timestamp {
            secs: i64::MAX,
            nanos: 999_999_999,
        });
        system_time(Timestamp {
            secs: i64::MIN,
            nanos: 999_999_999,
        });
    }

    #[test]
    fn devices_survive_both_ways() {
        for (major, minor) in [(1, 3), (8, 17), (259, 0xf_fff1), (4095, 255)] {
            let device = libc::makedev(major, minor);
            assert_eq!(
                device_from_kernel(device_to_kernel(device)),
                device,
                "{major}:{minor}"
            );
        }
    }

    #[test]
    fn rename_flags() {
        assert_eq!(
            rename_how(RenameFlags::empty()),
            Ok(RenameHow::RenameReplace)
        );
        let both = RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE;
        assert_eq!(rename_how(both), Err(FsError::Invalid));
    }
}
