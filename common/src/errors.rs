//! The one table between what can go wrong with a file operation and an errno.

/// Why a file operation is refused or failed, as an application sees it.
///
/// The wire carries the errno, never words; [`FsError::from_errno`] is the reverse.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[allow(missing_docs)] // Each variant is its sentence.
pub enum FsError {
    #[error("operation not permitted")]
    NotPermitted,
    #[error("no such file or directory")]
    NotFound,
    #[error("interrupted")]
    Interrupted,
    #[error("input/output error")]
    Io,
    #[error("no such device or address")]
    NoDevice,
    #[error("bad file descriptor")]
    BadHandle,
    #[error("try again")]
    Again,
    #[error("permission denied")]
    Access,
    #[error("busy")]
    Busy,
    #[error("file exists")]
    Exists,
    #[error("crosses from one file system to another")]
    CrossDevice,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("invalid argument")]
    Invalid,
    #[error("file too large")]
    FileTooLarge,
    #[error("no space left")]
    NoSpace,
    #[error("read-only file system")]
    ReadOnly,
    #[error("too many links")]
    TooManyLinks,
    #[error("numerical result out of range")]
    Range,
    #[error("resource deadlock avoided")]
    Deadlock,
    #[error("file name too long")]
    NameTooLong,
    #[error("no locks available")]
    NoLocks,
    #[error("directory not empty")]
    NotEmpty,
    #[error("too many levels of symbolic links")]
    Loop,
    #[error("no such attribute")]
    NoAttribute,
    #[error("value too large")]
    Overflow,
    #[error("argument list too long")]
    TooBig,
    #[error("operation not supported")]
    NotSupported,
    #[error("function not implemented")]
    NotImplemented,
    #[error("stale file handle")]
    Stale,
    #[error("transport endpoint is not connected")]
    NotConnected,
    #[error("timed out")]
    TimedOut,
    #[error("quota exceeded")]
    Quota,
    #[error("out of memory")]
    NoMemory,
    /// Never seen by an application: the answer to who merges two sides of a split.
    #[error("changed by both sides of a split")]
    ChangedByBoth,
}

impl FsError {
    /// The errno of this error.
    pub fn errno(self) -> i32 {
        match self {
            FsError::NotPermitted => libc::EPERM,
            FsError::NotFound => libc::ENOENT,
            FsError::Interrupted => libc::EINTR,
            FsError::Io => libc::EIO,
            FsError::NoDevice => libc::ENXIO,
            FsError::BadHandle => libc::EBADF,
            FsError::Again => libc::EAGAIN,
            FsError::Access => libc::EACCES,
            FsError::Busy => libc::EBUSY,
            FsError::Exists => libc::EEXIST,
            FsError::CrossDevice => libc::EXDEV,
            FsError::NotDirectory => libc::ENOTDIR,
            FsError::IsDirectory => libc::EISDIR,
            FsError::Invalid => libc::EINVAL,
            FsError::FileTooLarge => libc::EFBIG,
            FsError::NoSpace => libc::ENOSPC,
            FsError::ReadOnly => libc::EROFS,
            FsError::TooManyLinks => libc::EMLINK,
            FsError::Range => libc::ERANGE,
            FsError::Deadlock => libc::EDEADLK,
            FsError::NameTooLong => libc::ENAMETOOLONG,
            FsError::NoLocks => libc::ENOLCK,
            FsError::NotEmpty => libc::ENOTEMPTY,
            FsError::Loop => libc::ELOOP,
            FsError::NoAttribute => libc::ENODATA,
            FsError::Overflow => libc::EOVERFLOW,
            FsError::TooBig => libc::E2BIG,
            FsError::NotSupported => libc::EOPNOTSUPP,
            FsError::NotImplemented => libc::ENOSYS,
            FsError::Stale => libc::ESTALE,
            FsError::NotConnected => libc::ENOTCONN,
            FsError::TimedOut => libc::ETIMEDOUT,
            FsError::Quota => libc::EDQUOT,
            FsError::NoMemory => libc::ENOMEM,
            FsError::ChangedByBoth => libc::EREMCHG,
        }
    }

    /// The error of an errno; one that is not in the table becomes [`FsError::Io`].
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EPERM => FsError::NotPermitted,
            libc::ENOENT => FsError::NotFound,
            libc::EINTR => FsError::Interrupted,
            libc::ENXIO => FsError::NoDevice,
            libc::EBADF => FsError::BadHandle,
            libc::EAGAIN => FsError::Again,
            libc::EACCES => FsError::Access,
            libc::EBUSY => FsError::Busy,
            libc::EEXIST => FsError::Exists,
            libc::EXDEV => FsError::CrossDevice,
            libc::ENOTDIR => FsError::NotDirectory,
            libc::EISDIR => FsError::IsDirectory,
            libc::EINVAL => FsError::Invalid,
            libc::EFBIG => FsError::FileTooLarge,
            libc::ENOSPC => FsError::NoSpace,
            libc::EROFS => FsError::ReadOnly,
            libc::EMLINK => FsError::TooManyLinks,
            libc::ERANGE => FsError::Range,
            libc::EDEADLK => FsError::Deadlock,
            libc::ENAMETOOLONG => FsError::NameTooLong,
            libc::ENOLCK => FsError::NoLocks,
            libc::ENOTEMPTY => FsError::NotEmpty,
            libc::ELOOP => FsError::Loop,
            libc::ENODATA => FsError::NoAttribute,
            libc::EOVERFLOW => FsError::Overflow,
            libc::E2BIG => FsError::TooBig,
            libc::EOPNOTSUPP => FsError::NotSupported,
            libc::ENOSYS => FsError::NotImplemented,
            libc::ESTALE => FsError::Stale,
            libc::ENOTCONN => FsError::NotConnected,
            libc::ETIMEDOUT => FsError::TimedOut,
            libc::EDQUOT => FsError::Quota,
            libc::ENOMEM => FsError::NoMemory,
            libc::EREMCHG => FsError::ChangedByBoth,
            _ => FsError::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_survives_the_wire() {
        for errno in 1..134 {
            let error = FsError::from_errno(errno);
            assert!(error.errno() == errno || error == FsError::Io, "{errno}");
        }
    }
}
