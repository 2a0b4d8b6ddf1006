//! The first exchange with the kernel: which protocol, and what each side asks for.

use super::decode::InitIn;
use super::encode::InitOut;
use crate::kernel::{MAX_BACKGROUND, MAX_WRITE_BYTES};
use crate::options::ListingAttributes;

/// The protocol spoken here: the newest whose messages are known, and the oldest that tells what
/// the file system must know (HANDLE_KILLPRIV_V2, SETXATTR_EXT): Linux 5.12.
const MAJOR: u32 = 7;
const MINOR_MAX: u32 = 45;
const MINOR_MIN: u32 = 33;
/// Pages of a request, so that one carries [`MAX_WRITE_BYTES`].
const MAX_PAGES: u16 = 256;

const ASYNC_READ: u64 = 1 << 0;
const POSIX_LOCKS: u64 = 1 << 1;
const ATOMIC_O_TRUNC: u64 = 1 << 3;
const BIG_WRITES: u64 = 1 << 5;
const DONT_MASK: u64 = 1 << 6;
const FLOCK_LOCKS: u64 = 1 << 10;
const AUTO_INVAL_DATA: u64 = 1 << 12;
const DO_READDIRPLUS: u64 = 1 << 13;
const ASYNC_DIO: u64 = 1 << 15;
const PARALLEL_DIROPS: u64 = 1 << 18;
const POSIX_ACL: u64 = 1 << 20;
const MAX_PAGES_FLAG: u64 = 1 << 22;
const CACHE_SYMLINKS: u64 = 1 << 23;
const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
const SETXATTR_EXT: u64 = 1 << 29;
const INIT_EXT: u64 = 1 << 30;
const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;

/// What the file system builds on, with the kernel's names. Never WRITEBACK_CACHE: the kernel would
/// then keep its own sizes and times and ignore ours.
const WANTED: [(&str, u64); 15] = [
    ("ASYNC_READ", ASYNC_READ),
    ("POSIX_LOCKS", POSIX_LOCKS),
    ("ATOMIC_O_TRUNC", ATOMIC_O_TRUNC),
    ("BIG_WRITES", BIG_WRITES),
    ("DONT_MASK", DONT_MASK),
    ("FLOCK_LOCKS", FLOCK_LOCKS),
    ("AUTO_INVAL_DATA", AUTO_INVAL_DATA),
    ("ASYNC_DIO", ASYNC_DIO),
    ("PARALLEL_DIROPS", PARALLEL_DIROPS),
    ("POSIX_ACL", POSIX_ACL),
    ("MAX_PAGES", MAX_PAGES_FLAG),
    ("CACHE_SYMLINKS", CACHE_SYMLINKS),
    // Carries the upper half of the flags.
    ("INIT_EXT", INIT_EXT),
    ("DIRECT_IO_ALLOW_MMAP", DIRECT_IO_ALLOW_MMAP),
    // Not READDIRPLUS_AUTO: it leaves the attributes out after the first page unless something was
    // looked up meanwhile, so each removal of a listed tree would ask for its name first. On the
    // brick an entry with attributes costs a tenth of that request.
    ("DO_READDIRPLUS", DO_READDIRPLUS),
];
/// Requests have another meaning, or another length, without these.
const NEEDED: u64 = HANDLE_KILLPRIV_V2 | SETXATTR_EXT;

/// This kernel cannot be served by this loop, in words.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "this kernel's FUSE speaks {major}.{minor}, Mortar's own loop needs {MAJOR}.{MINOR_MIN} \
     (Linux 5.12) or newer: mount with -o fuse-loop=fuser"
)]
pub struct TooOld {
    major: u32,
    minor: u32,
}

/// What INIT is answered.
///
/// # Errors
/// [`TooOld`].
pub fn negotiate(offer: &InitIn, listing: ListingAttributes) -> Result<InitOut, TooOld> {
    let InitIn { major, minor, .. } = *offer;
    if major != MAJOR || minor < MINOR_MIN || offer.flags & NEEDED != NEEDED {
        return Err(TooOld { major, minor });
    }
    let mut flags = NEEDED;
    for (name, flag) in WANTED {
        if flag == DO_READDIRPLUS && listing == ListingAttributes::Never {
            continue;
        }
        if offer.flags & flag == 0 {
            tracing::info!("this kernel's FUSE lacks {name}; the mount does without");
        }
        flags |= offer.flags & flag;
    }
    Ok(InitOut {
        major: MAJOR,
        minor: minor.min(MINOR_MAX),
        max_readahead: offer.max_readahead,
        flags,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write: MAX_WRITE_BYTES as u32,
        time_gran: 1,
        max_pages: MAX_PAGES,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(minor: u32, flags: u64) -> InitIn {
        InitIn {
            major: 7,
            minor,
            max_readahead: 131_072,
            flags,
        }
    }

    #[test]
    fn only_what_is_offered_is_taken_and_never_the_writeback_cache() {
        const WRITEBACK_CACHE: u64 = 1 << 16;
        let out = negotiate(&offer(60, u64::MAX), ListingAttributes::Auto).unwrap();
        assert_eq!((out.major, out.minor), (7, MINOR_MAX));
        assert_eq!(out.flags & WRITEBACK_CACHE, 0);
        assert_ne!(out.flags & DO_READDIRPLUS, 0);
        let few = NEEDED | POSIX_ACL | DO_READDIRPLUS;
        let out = negotiate(&offer(38, few), ListingAttributes::Never).unwrap();
        assert_eq!((out.minor, out.flags), (38, NEEDED | POSIX_ACL));
    }

    #[test]
    fn a_kernel_that_does_not_tell_enough_is_refused_in_words() {
        let refusal = negotiate(&offer(31, u64::MAX), ListingAttributes::Auto).unwrap_err();
        assert!(refusal.to_string().contains("fuse-loop=fuser"), "{refusal}");
        assert!(negotiate(&offer(38, SETXATTR_EXT), ListingAttributes::Auto).is_err());
    }
}
