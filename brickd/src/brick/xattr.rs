//! Extended attributes of an open file or of an entry of an open directory, following no link.
//!
//! Uses the `*xattrat` calls where the kernel has them (6.13), else `/proc/self/fd/N/name`.

use std::ffi::{CStr, CString, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use mortar_proto::data::Presence;
use rustix::io::Errno;

use super::layout;

/// What an attribute is of.
#[derive(Clone, Copy)]
pub(super) enum Of<'a> {
    /// An open file or directory.
    Fd(BorrowedFd<'a>),
    /// An entry below an open directory; not followed when it is a symlink.
    Entry(BorrowedFd<'a>, &'a CStr),
}

/// The largest value or list of names Linux hands out.
pub(super) const XATTR_SIZE_MAX: usize = 65536;
/// What removes a file's capabilities.
pub(super) const CAPABILITY: &CStr = c"security.capability";
/// POSIX ACL of an object, and what a directory gives to new entries.
pub(super) const ACL_ACCESS: &CStr = c"system.posix_acl_access";
pub(super) const ACL_DEFAULT: &CStr = c"system.posix_acl_default";

// The same on every architecture: they are newer than the unified table.
const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_REMOVEXATTRAT: libc::c_long = 466;

#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// Reads a value into `buffer`; returns its length. ENODATA when there is none, ERANGE when it
/// does not fit.
pub(super) fn get(of: Of<'_>, name: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
    match of {
        Of::Fd(fd) => rustix::fs::fgetxattr(fd, name, buffer),
        Of::Entry(dir, entry) if has_at_calls() => {
            let args = XattrArgs {
                value: buffer.as_mut_ptr().expose_provenance() as u64,
                size: buffer.len() as u32,
                flags: 0,
            };
            // SAFETY: the strings end with NUL; `args` names `buffer` with its own length.
            check(unsafe {
                libc::syscall(
                    SYS_GETXATTRAT,
                    dir.as_raw_fd(),
                    entry.as_ptr(),
                    libc::AT_SYMLINK_NOFOLLOW,
                    name.as_ptr(),
                    &raw const args,
                    size_of::<XattrArgs>(),
                )
            })
        }
        Of::Entry(dir, entry) => rustix::fs::lgetxattr(proc_path(dir, entry), name, buffer),
    }
}

/// Sets a value, whether there was one or not.
pub(super) fn set(of: Of<'_>, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    let flags = rustix::fs::XattrFlags::empty();
    match of {
        Of::Fd(fd) => rustix::fs::fsetxattr(fd, name, value, flags),
        Of::Entry(dir, entry) if has_at_calls() => {
            let args = XattrArgs {
                value: value.as_ptr().expose_provenance() as u64,
                size: value.len() as u32,
                flags: 0,
            };
            // SAFETY: the strings end with NUL; `args` names `value` with its own length.
            check(unsafe {
                libc::syscall(
                    SYS_SETXATTRAT,
                    dir.as_raw_fd(),
                    entry.as_ptr(),
                    libc::AT_SYMLINK_NOFOLLOW,
                    name.as_ptr(),
                    &raw const args,
                    size_of::<XattrArgs>(),
                )
            })
            .map(|_| ())
        }
        Of::Entry(dir, entry) => rustix::fs::lsetxattr(proc_path(dir, entry), name, value, flags),
    }
}

/// Removes a value; that there is none is no error.
pub(super) fn remove(of: Of<'_>, name: &CStr) -> Result<(), Errno> {
    let done = match of {
        Of::Fd(fd) => rustix::fs::fremovexattr(fd, name),
        Of::Entry(dir, entry) if has_at_calls() => {
            // SAFETY: the strings end with NUL.
            check(unsafe {
                libc::syscall(
                    SYS_REMOVEXATTRAT,
                    dir.as_raw_fd(),
                    entry.as_ptr(),
                    libc::AT_SYMLINK_NOFOLLOW,
                    name.as_ptr(),
                )
            })
            .map(|_| ())
        }
        Of::Entry(dir, entry) => rustix::fs::lremovexattr(proc_path(dir, entry), name),
    };
    match done {
        Err(Errno::NODATA) => Ok(()),
        other => other,
    }
}

/// Names of all attributes, each ended by NUL, `trusted.mortar` left out.
pub(super) fn list(of: Of<'_>) -> Result<Vec<u8>, Errno> {
    let mut small = [0; 512];
    match list_into(of, &mut small) {
        Ok(len) => Ok(without_own(&small[..len])),
        Err(Errno::RANGE) => {
            let mut large = vec![0; XATTR_SIZE_MAX];
            let len = list_into(of, &mut large)?;
            Ok(without_own(&large[..len]))
        }
        Err(error) => Err(error),
    }
}

/// Which kinds of attributes there are, as PRESENCE_* bits.
pub(super) fn presence(of: Of<'_>) -> Result<u32, Errno> {
    let mut small = [0; 512];
    match list_into(of, &mut small) {
        Ok(len) => Ok(presence_of(&small[..len])),
        Err(Errno::RANGE) => Ok(presence_of(&list(of)?)),
        Err(error) => Err(error),
    }
}

/// A whole value, whatever its length.
pub(super) fn get_all(of: Of<'_>, name: &CStr) -> Result<Vec<u8>, Errno> {
    let mut small = [0; 512];
    match get(of, name, &mut small) {
        Ok(len) => Ok(small[..len].to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; XATTR_SIZE_MAX];
            let len = get(of, name, &mut large)?;
            large.truncate(len);
            Ok(large)
        }
        Err(error) => Err(error),
    }
}

/// A name from a client, ready for system calls. One of the brick's own is refused with EPERM.
pub(super) fn client_name(name: &[u8]) -> Result<CString, Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    if name.is_empty() || name.as_bytes().len() > 255 {
        return Err(Errno::RANGE);
    }
    if is_hidden(name.as_bytes()) {
        return Err(Errno::PERM);
    }
    Ok(name)
}

/// Names in a list as the kernel gives it.
pub(super) fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
}

/// What is the brick's own: our xattr, and the names under which XFS shows root its ACLs again.
fn is_hidden(name: &[u8]) -> bool {
    name == layout::XATTR.to_bytes() || name.starts_with(b"trusted.SGI_ACL_")
}

fn presence_of(list: &[u8]) -> u32 {
    let mut bits = 0;
    for name in names(list).filter(|name| !is_hidden(name)) {
        let bit = if name.starts_with(b"user.") {
            Presence::User
        } else if name == CAPABILITY.to_bytes() {
            Presence::Capability
        } else if name.starts_with(b"security.") {
            Presence::Security
        } else if name == ACL_ACCESS.to_bytes() {
            Presence::AclAccess
        } else if name == ACL_DEFAULT.to_bytes() {
            Presence::AclDefault
        } else if name.starts_with(b"trusted.") {
            Presence::Trusted
        } else {
            Presence::None
        };
        bits |= bit as u32;
    }
    bits
}

fn without_own(list: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(list.len());
    for name in names(list).filter(|name| !is_hidden(name)) {
        out.extend_from_slice(name);
        out.push(0);
    }
    out
}

fn list_into(of: Of<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    match of {
        Of::Fd(fd) => rustix::fs::flistxattr(fd, buffer),
        Of::Entry(dir, entry) if has_at_calls() => {
            // SAFETY: the string ends with NUL; the kernel writes at most buffer.len() bytes.
            check(unsafe {
                libc::syscall(
                    SYS_LISTXATTRAT,
                    dir.as_raw_fd(),
                    entry.as_ptr(),
                    libc::AT_SYMLINK_NOFOLLOW,
                    buffer.as_mut_ptr().cast::<c_void>(),
                    buffer.len(),
                )
            })
        }
        Of::Entry(dir, entry) => rustix::fs::llistxattr(proc_path(dir, entry), buffer),
    }
}

fn check(result: libc::c_long) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| last_errno())
}

/// The errno of the libc call just made on this thread.
pub(super) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn proc_path(dir: BorrowedFd<'_>, entry: &CStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(entry.to_bytes());
    path
}

/// Asked once: an older kernel says ENOSYS, a container's filter perhaps EPERM.
fn has_at_calls() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let args = XattrArgs {
            value: 0,
            size: 0,
            flags: 0,
        };
        // SAFETY: constant strings; a size of 0 asks for the length alone.
        let asked = check(unsafe {
            libc::syscall(
                SYS_GETXATTRAT,
                libc::AT_FDCWD,
                c"/".as_ptr(),
                0,
                c"trusted.mortar".as_ptr(),
                &raw const args,
                size_of::<XattrArgs>(),
            )
        });
        !matches!(asked, Err(Errno::NOSYS | Errno::PERM | Errno::INVAL))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn attributes_of_a_symlink_are_its_own() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let of = Of::Entry(fd.as_fd(), c"link");
        let mut buffer = [0; 16];
        assert_eq!(get(of, c"trusted.test", &mut buffer), Err(Errno::NODATA));
        set(of, c"trusted.test", b"value").unwrap();
        assert_eq!(get_all(of, c"trusted.test").unwrap(), b"value");
        set(of, layout::XATTR, b"x").unwrap();
        assert_eq!(list(of).unwrap(), b"trusted.test\0");
        assert_eq!(presence(of).unwrap(), Presence::Trusted as u32);
        let path = proc_path(fd.as_fd(), c"link");
        assert_eq!(
            rustix::fs::lgetxattr(path, c"trusted.test", &mut buffer[..]),
            Ok(5)
        );
        remove(of, c"trusted.test").unwrap();
        remove(of, c"trusted.test").unwrap();
        assert_eq!(presence(of).unwrap(), 0);
    }

    #[test]
    fn a_client_cannot_name_the_own_attribute() {
        assert_eq!(client_name(b"trusted.mortar").err(), Some(Errno::PERM));
        assert_eq!(client_name(b"user.a\0b").err(), Some(Errno::INVAL));
        assert!(client_name(b"user.a").is_ok());
    }
}
