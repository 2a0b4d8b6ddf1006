//! Between the kernel's numbers and ours.

use mortar_common::FsError;
use mortar_proto::data::LockType;

use crate::fs::{FsResult, RenameHow, WriteHow};

/// FUSE_WRITE_CACHE and FUSE_WRITE_KILL_SUIDGID.
const WRITE_CACHE: u32 = 1 << 0;
const WRITE_KILL_SUIDGID: u32 = 1 << 2;

/// The kernel's 32-bit device number as `makedev` would put it.
pub fn device_from_kernel(device: u32) -> u64 {
    let major = device >> 8 & 0xfff;
    let minor = device & 0xff | device >> 12 & 0xf_ff00;
    libc::makedev(major, minor)
}

/// The other way.
pub fn device_to_kernel(device: u64) -> u32 {
    let (major, minor) = (libc::major(device), libc::minor(device));
    minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// What renameat2(2)'s flags ask for.
pub fn rename_how(flags: u32) -> FsResult<RenameHow> {
    const WHITEOUT_NOREPLACE: u32 = libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE;
    match flags {
        0 => Ok(RenameHow::RenameReplace),
        libc::RENAME_NOREPLACE => Ok(RenameHow::RenameNoreplace),
        libc::RENAME_EXCHANGE => Ok(RenameHow::RenameExchange),
        libc::RENAME_WHITEOUT => Ok(RenameHow::RenameWhiteout),
        WHITEOUT_NOREPLACE => Ok(RenameHow::RenameWhiteoutNoreplace),
        _ => Err(FsError::Invalid),
    }
}

/// How a WRITE is meant: by its own flags and those its file was opened with.
pub fn write_how(write_flags: u32, open_flags: i32) -> WriteHow {
    let from_page_cache = write_flags & WRITE_CACHE != 0;
    WriteHow {
        // A page that is written back knows its place.
        append: open_flags & libc::O_APPEND != 0 && !from_page_cache,
        sync: open_flags & libc::O_DSYNC != 0,
        from_page_cache,
        kill_suidgid: write_flags & WRITE_KILL_SUIDGID != 0,
    }
}

/// The type of a lock.
pub fn lock_type_from_kernel(typ: i32) -> FsResult<LockType> {
    match typ {
        libc::F_RDLCK => Ok(LockType::LockRead),
        libc::F_WRLCK => Ok(LockType::LockWrite),
        libc::F_UNLCK => Ok(LockType::LockUnlock),
        _ => Err(FsError::Invalid),
    }
}

/// The other way.
pub fn lock_type_to_kernel(typ: LockType) -> i32 {
    match typ {
        LockType::LockRead => libc::F_RDLCK,
        LockType::LockWrite => libc::F_WRLCK,
        LockType::LockUnlock => libc::F_UNLCK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(rename_how(0), Ok(RenameHow::RenameReplace));
        let both = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE;
        assert_eq!(rename_how(both), Err(FsError::Invalid));
    }
}
