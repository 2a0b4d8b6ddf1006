//! From a gfid to an object on the disk: handles, and what is done when they are stale.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use mortar_common::Gfid;
use mortar_proto::data::Time;
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::durable::{OPEN, OPEN_DIR};
use super::hot::{Hot, Inserted, State, lock};
use super::inner::Inner;
use super::layout::{self, EntryName, HandleName, Stored, XATTR_BYTES_MAX};
use super::xattr::{self, Of};

/// Longest file handle a kernel makes (MAX_HANDLE_SZ).
const KERNEL_HANDLE_BYTES_MAX: usize = 128;
/// Bytes read from a directory at a time.
pub(super) const DIR_BUFFER_BYTES: usize = 32 * 1024;
/// How often an object is read again because others came or went in memory meanwhile …
const LOADS_MAX: usize = 1_000;
/// … so often at once, and then with this between: whoever comes and goes gets a little slower too.
const LOADS_AT_ONCE: usize = 16;
const LOAD_PAUSE: Duration = Duration::from_millis(1);
/// The disk's own ctime may be this much later than the write-back that made it.
const WRITE_BACK_SLACK_MS: u64 = 20;

/// A handle is stale when it is so for this often, with this between.
const STALE_TRIES: usize = 3;
const STALE_PAUSE: Duration = Duration::from_millis(5);

/// What calls that take a path are made on: an open descriptor, or a handle's name.
pub(super) enum Target {
    Fd(Arc<OwnedFd>),
    Handle(HandleName),
}

/// The kernel's own handle of a file, as `struct file_handle` lays it out.
#[repr(C)]
#[derive(Clone, PartialEq, Eq)]
pub(super) struct KernelHandle {
    len: u32,
    kind: i32,
    bytes: [u8; KERNEL_HANDLE_BYTES_MAX],
}

impl KernelHandle {
    /// Of an open file or directory.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let mut handle = KernelHandle {
            len: KERNEL_HANDLE_BYTES_MAX as u32,
            kind: 0,
            bytes: [0; KERNEL_HANDLE_BYTES_MAX],
        };
        let mut mount_id = 0;
        // SAFETY: the struct has the layout of file_handle with room for `len` bytes.
        let result = unsafe {
            libc::name_to_handle_at(
                fd.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut handle).cast(),
                &raw mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        };
        if result == 0 {
            Ok(handle)
        } else {
            Err(xattr::last_errno())
        }
    }

    /// Opens the directory it is of, wherever it is now. ESTALE when there is none.
    pub fn open_dir(&self, disk: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let mut handle = self.clone();
        let flags = OPEN_DIR.bits().cast_signed();
        // SAFETY: as in `of`; the kernel only reads it.
        let fd =
            unsafe { libc::open_by_handle_at(disk.as_raw_fd(), (&raw mut handle).cast(), flags) };
        if fd < 0 {
            return Err(xattr::last_errno());
        }
        // SAFETY: just opened, owned by nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// As the text of a handle's symlink.
    pub fn to_text(&self) -> String {
        let mut text = format!("{:08x}", self.kind.cast_unsigned());
        for byte in self.bytes.iter().take(self.len as usize) {
            text.push_str(&format!("{byte:02x}"));
        }
        text
    }

    /// The reverse of [`KernelHandle::to_text`].
    pub fn from_text(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (kind, hex) = text.split_at_checked(8)?;
        if hex.len() % 2 != 0 || hex.len() / 2 > KERNEL_HANDLE_BYTES_MAX || !hex.is_ascii() {
            return None;
        }
        let mut handle = KernelHandle {
            len: (hex.len() / 2) as u32,
            kind: u32::from_str_radix(kind, 16).ok()?.cast_signed(),
            bytes: [0; KERNEL_HANDLE_BYTES_MAX],
        };
        for (at, byte) in handle.bytes.iter_mut().take(hex.len() / 2).enumerate() {
            *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(handle)
    }
}

/// What the disk says of an object that is not in memory.
struct Cold {
    stored: Stored,
    stat: Stat,
    presence: u32,
    dir: Option<OwnedFd>,
}

impl Inner {
    /// The object, read from the disk if it is not in memory. ENOENT when there is none.
    pub fn hot(&self, gfid: Gfid) -> Result<Arc<Hot>, Errno> {
        for load in 0..LOADS_MAX {
            if load >= LOADS_AT_ONCE {
                std::thread::sleep(LOAD_PAUSE);
            }
            let departures = match self.hot.find(gfid) {
                Ok(hot) => return Ok(hot),
                Err(departures) => departures,
            };
            let cold = self.load(gfid)?;
            let hot = self.warm(gfid, cold);
            let mut to_write = Vec::new();
            let writing_back = self.begin_write_back();
            let inserted = self.hot.insert(hot, departures, &mut to_write);
            self.write_back_evicted(&to_write);
            drop(writing_back);
            self.hot.close_spare_descriptors();
            if let Inserted::Here(hot) = inserted {
                return Ok(hot);
            }
        }
        // Not EIO, which would put the disk out.
        Err(Errno::AGAIN)
    }

    /// A directory and its descriptor. ENOTDIR when it is something else.
    pub fn dir(&self, gfid: Gfid) -> Result<(Arc<Hot>, Arc<OwnedFd>), Errno> {
        let hot = self.hot(gfid)?;
        if !hot.is_dir() {
            return Err(Errno::NOTDIR);
        }
        let fd = self.descriptor(&hot)?;
        Ok((hot, fd))
    }

    /// A regular file and its descriptor, for reading and writing.
    pub fn file(&self, gfid: Gfid) -> Result<(Arc<Hot>, Arc<OwnedFd>), Errno> {
        let hot = self.hot(gfid)?;
        if hot.is_dir() {
            return Err(Errno::ISDIR);
        }
        if !hot.is_file() {
            return Err(Errno::INVAL);
        }
        let fd = self.descriptor(&hot)?;
        Ok((hot, fd))
    }

    /// The descriptor of a regular file or directory.
    pub fn descriptor(&self, hot: &Hot) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(fd) = hot.descriptor() {
            return Ok(fd);
        }
        let opened = if hot.is_dir() {
            self.open_dir(hot.gfid)?
        } else {
            let name = HandleName::of(hot.gfid);
            rustix::fs::openat(
                &self.handle,
                name.c_str(),
                OPEN | OFlags::RDWR,
                Mode::empty(),
            )?
        };
        Ok(self.hot.keep_descriptor(hot, opened))
    }

    /// What attribute calls on this object are made on, without opening it for that.
    pub fn target(&self, hot: &Hot) -> Result<Target, Errno> {
        if hot.is_dir() {
            return Ok(Target::Fd(self.descriptor(hot)?));
        }
        Ok(match hot.descriptor() {
            Some(fd) => Target::Fd(fd),
            None => Target::Handle(HandleName::of(hot.gfid)),
        })
    }

    /// Calls `then` with what xattr calls need.
    pub fn with_of<T>(&self, target: &Target, then: impl FnOnce(Of<'_>) -> T) -> T {
        match target {
            Target::Fd(fd) => then(Of::Fd(fd.as_fd())),
            Target::Handle(name) => then(Of::Entry(self.handle.as_fd(), name.c_str())),
        }
    }

    /// The disk's attributes.
    pub fn stat(&self, target: &Target) -> Result<Stat, Errno> {
        match target {
            Target::Fd(fd) => rustix::fs::fstat(fd),
            Target::Handle(name) => self.stat_handle(name),
        }
    }

    /// The disk's attributes of a handle.
    pub fn stat_handle(&self, name: &HandleName) -> Result<Stat, Errno> {
        rustix::fs::statat(&self.handle, name.c_str(), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// What an entry is: ENOENT when there is nothing, `None` when it is a stray.
    pub fn gfid_at(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<Gfid>, Errno> {
        let mut buffer = [0; XATTR_BYTES_MAX];
        match xattr::get(Of::Entry(dir, name), layout::XATTR, &mut buffer) {
            Ok(len) => Ok(Stored::decode(&buffer[..len]).map(|stored| stored.gfid)),
            // A handle of a future format is longer: a stray to this one.
            Err(Errno::NODATA | Errno::RANGE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn load(&self, gfid: Gfid) -> Result<Cold, Errno> {
        if gfid == Gfid::ROOT {
            let root = rustix::io::fcntl_dupfd_cloexec(&self.root, 0)?;
            return self.load_dir(gfid, root);
        }
        let name = HandleName::of(gfid);
        let of = Of::Entry(self.handle.as_fd(), name.c_str());
        let mut buffer = [0; XATTR_BYTES_MAX];
        let walk = self.walks();
        let len = match xattr::get(of, layout::XATTR, &mut buffer) {
            Ok(len) => len,
            Err(Errno::NODATA) => {
                let dir = self.open_dir(gfid)?;
                return self.load_dir(gfid, dir);
            }
            Err(error) => return Err(error),
        };
        match Stored::decode(&buffer[..len]) {
            Some(stored) if stored.gfid == gfid => {
                let stat = self.stat_handle(&name)?;
                Ok(Cold {
                    stored,
                    stat,
                    presence: xattr::presence(of)?,
                    dir: None,
                })
            }
            _ => {
                self.rewrite_handles(walk)?;
                Err(Errno::NOENT)
            }
        }
    }

    fn load_dir(&self, gfid: Gfid, dir: OwnedFd) -> Result<Cold, Errno> {
        let stored = stored_of(dir.as_fd())?.filter(|stored| stored.gfid == gfid);
        let stored = stored.ok_or(Errno::NOENT)?;
        let stat = rustix::fs::fstat(&dir)?;
        let presence = xattr::presence(Of::Fd(dir.as_fd()))?;
        Ok(Cold {
            stored,
            stat,
            presence,
            dir: Some(dir),
        })
    }

    fn warm(&self, gfid: Gfid, cold: Cold) -> Hot {
        let stat = &cold.stat;
        let disk_ctime = Time {
            secs: stat.st_ctime,
            nanos: stat.st_ctime_nsec as u32,
        };
        let disk_ms = millis(disk_ctime);
        let mtime = Time {
            secs: stat.st_mtime,
            nanos: stat.st_mtime_nsec as u32,
        };
        let lost = self.lost_counters(disk_ms);
        let mut state = match cold.stored.written {
            // Later than the write-back: a change was lost from memory in a crash.
            Some(written) if lost.is_some() && disk_ms > written.at_ms + WRITE_BACK_SLACK_MS => {
                State::new(
                    disk_ctime,
                    mtime,
                    written.data_counter,
                    written.attr_counter,
                )
            }
            Some(written) => State::new(
                written.ctime,
                mtime,
                written.data_counter,
                written.attr_counter,
            ),
            None => State::new(disk_ctime, mtime, 0, 0),
        };
        if let Some(floor) = lost {
            state.data_counter = state.data_counter.max(floor);
            state.attr_counter = state.attr_counter.max(floor);
        }
        state.rdev = cold.stored.rdev;
        state.atime = cold.stored.atime;
        state.presence = cold.presence;
        Hot::new(gfid, stat.st_mode & libc::S_IFMT, state, cold.dir)
    }

    /// Opens a directory by its handle. On a stale handle all directories are walked once.
    fn open_dir(&self, gfid: Gfid) -> Result<OwnedFd, Errno> {
        if gfid == Gfid::ROOT {
            return rustix::io::fcntl_dupfd_cloexec(&self.root, 0);
        }
        let walk = self.walks();
        let mut last = Errno::STALE;
        for _ in 0..STALE_TRIES {
            match self.open_dir_once(gfid) {
                // Perhaps it is just being removed, and its handle goes in a moment. ENOMEM is
                // what ext4 answers while the inode number is being given to a new object.
                Err(error @ (Errno::STALE | Errno::NOMEM)) => {
                    last = error;
                    std::thread::sleep(STALE_PAUSE);
                }
                other => return other,
            }
        }
        if last == Errno::NOMEM {
            // Memory may really be short: that says nothing of the directory.
            return Err(last);
        }
        self.rewrite_handles(walk)?;
        match self.open_dir_once(gfid) {
            Err(Errno::STALE) => {
                // It is nowhere: a crash came between its removal and its handle's.
                self.drop_handle(gfid)?;
                Err(Errno::NOENT)
            }
            other => other,
        }
    }

    fn open_dir_once(&self, gfid: Gfid) -> Result<OwnedFd, Errno> {
        let name = HandleName::of(gfid);
        let mut buffer = [0; 2 * KERNEL_HANDLE_BYTES_MAX + 8];
        let len = rustix::fs::readlinkat_raw(&self.handle, name.c_str(), &mut buffer[..])
            // Not a symlink: a file that lost its gfid, which is no object any more.
            .map_err(|error| {
                if error == Errno::INVAL {
                    Errno::NOENT
                } else {
                    error
                }
            })?;
        let handle = KernelHandle::from_text(&buffer[..len]).ok_or(Errno::STALE)?;
        // A handle of another disk may be malformed to this one, or name something else there.
        let dir = handle
            .open_dir(self.root.as_fd())
            .map_err(|error| match error {
                Errno::INVAL | Errno::NOTDIR | Errno::NOENT | Errno::OVERFLOW => Errno::STALE,
                other => other,
            })?;
        match stored_of(dir.as_fd())? {
            Some(stored) if stored.gfid == gfid => Ok(dir),
            _ => Err(Errno::STALE),
        }
    }

    /// Makes the handle of a directory, replacing a stale one.
    pub fn write_dir_handle(&self, gfid: Gfid, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        let text = KernelHandle::of(dir)?.to_text();
        let name = HandleName::of(gfid);
        match self.in_bucket(&name, || {
            rustix::fs::symlinkat(&*text, &self.handle, name.c_str())
        }) {
            Err(Errno::EXIST) => {
                let mut temporary = b"handle-".to_vec();
                temporary.extend_from_slice(name.gfid_c_str().to_bytes());
                let _ = rustix::fs::unlinkat(&self.txn, &*temporary, AtFlags::empty());
                rustix::fs::symlinkat(&*text, &self.txn, &*temporary)?;
                rustix::fs::renameat(&self.txn, &*temporary, &self.handle, name.c_str())
            }
            other => other,
        }
    }

    /// Runs what makes a handle; makes the handle's folder first if it is missing.
    pub fn in_bucket<T>(
        &self,
        name: &HandleName,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match make() {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&self.handle, name.bucket(), Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(Errno::EXIST) => make(),
                    Err(error) => Err(error),
                }
            }
            other => other,
        }
    }

    /// How many walks there have been, for [`Inner::rewrite_handles`].
    pub fn walks(&self) -> u64 {
        *lock(&self.walks)
    }

    /// Walks all directories and writes their handles anew, unless somebody has done so since
    /// `walks_before` was read. Files without a handle get theirs too.
    pub fn rewrite_handles(&self, walks_before: u64) -> Result<(), Errno> {
        let mut walks = lock(&self.walks);
        if *walks != walks_before {
            return Ok(());
        }
        tracing::info!(brick = %self.path.display(), "walking all directories to renew their handles");
        let mut pending = vec![KernelHandle::of(self.root.as_fd())?];
        pending.push(KernelHandle::of(self.orphan.as_fd())?);
        while let Some(handle) = pending.pop() {
            let dir = match handle.open_dir(self.root.as_fd()) {
                Ok(dir) => dir,
                Err(Errno::STALE | Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            self.renew_entries(&dir, &mut pending)?;
        }
        *walks += 1;
        Ok(())
    }

    fn renew_entries(&self, dir: &OwnedFd, pending: &mut Vec<KernelHandle>) -> Result<(), Errno> {
        each_entry(dir, &mut |name, entry| {
            let Ok(Some(gfid)) = self.gfid_at(dir.as_fd(), name) else {
                return Ok(());
            };
            match rustix::fs::openat(dir, name, OPEN_DIR, Mode::empty()) {
                Ok(child) => {
                    self.write_dir_handle(gfid, child.as_fd())?;
                    pending.push(KernelHandle::of(child.as_fd())?);
                }
                Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => {
                    self.renew_handle(dir, name, entry.ino(), gfid)?;
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })
    }

    /// Makes a file's handle a link to it, whatever it was.
    fn renew_handle(&self, dir: &OwnedFd, name: &CStr, ino: u64, gfid: Gfid) -> Result<(), Errno> {
        let handle = HandleName::of(gfid);
        let flags = AtFlags::empty();
        match self.stat_handle(&handle) {
            Ok(stat) if stat.st_ino == ino => Ok(()),
            // A copy: the brick was restored by something that does not keep hard links.
            Ok(_) => {
                let temporary = format!("handle-{gfid}");
                let _ = rustix::fs::unlinkat(&self.txn, &*temporary, flags);
                rustix::fs::linkat(dir, name, &self.txn, &*temporary, flags)?;
                rustix::fs::renameat(&self.txn, &*temporary, &self.handle, handle.c_str())
            }
            Err(Errno::NOENT) => self.in_bucket(&handle, || {
                rustix::fs::linkat(dir, name, &self.handle, handle.c_str(), flags)
            }),
            Err(error) => Err(error),
        }
    }

    /// Moves what has no gfid out of the way, to `.mortar/stray/<parent>-<clock>/<name>`.
    pub fn move_stray(
        &self,
        parent: Gfid,
        dir: BorrowedFd<'_>,
        name: &EntryName,
    ) -> Result<(), Errno> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let place = format!("{parent}-{}-{:09}", now.tv_sec, now.tv_nsec);
        rustix::fs::mkdirat(&self.stray, &*place, Mode::from_raw_mode(0o700))?;
        let place_fd = rustix::fs::openat(&self.stray, &*place, OPEN_DIR, Mode::empty())?;
        rustix::fs::renameat(dir, name.c_str(), place_fd, name.c_str())?;
        tracing::info!(
            brick = %self.path.display(),
            name = %String::from_utf8_lossy(name.bytes()),
            "a file that is not of the volume was in the way of a name: it is in .mortar/stray/{place}"
        );
        Ok(())
    }
}

/// `trusted.mortar` of what is open; `None` when it has none that can be read.
pub(super) fn stored_of(fd: BorrowedFd<'_>) -> Result<Option<Stored>, Errno> {
    let mut buffer = [0; XATTR_BYTES_MAX];
    match xattr::get(Of::Fd(fd), layout::XATTR, &mut buffer) {
        Ok(len) => Ok(Stored::decode(&buffer[..len])),
        Err(Errno::NODATA | Errno::RANGE) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Calls `each` with name and inode number of every entry but `.` and `..`.
pub(super) fn each_entry(
    dir: &OwnedFd,
    each: &mut dyn FnMut(&CStr, &rustix::fs::RawDirEntry<'_>) -> Result<(), Errno>,
) -> Result<(), Errno> {
    // A descriptor of its own: the position of the shared one belongs to nobody.
    let own = rustix::fs::openat(dir, c".", OPEN_DIR, Mode::empty())?;
    let mut buffer = Vec::with_capacity(DIR_BUFFER_BYTES);
    let mut entries = RawDir::new(own, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            each(name, &entry)?;
        }
    }
    Ok(())
}

/// Milliseconds since 1970; 0 before.
pub(super) fn millis(time: Time) -> u64 {
    u64::try_from(time.secs).unwrap_or(0) * 1000 + u64::from(time.nanos) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_handle_leads_back_to_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let handle = KernelHandle::of(fd.as_fd()).unwrap();
        let again = KernelHandle::from_text(handle.to_text().as_bytes()).unwrap();
        assert!(handle == again);
        let opened = again.open_dir(fd.as_fd()).unwrap();
        let ino = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(ino(&opened), ino(&fd));
        for text in [
            "",
            "1234567",
            "0000000112",
            "000000010",
            "zz000001aa",
            "00000001ag",
        ] {
            let parsed = KernelHandle::from_text(text.as_bytes());
            assert_eq!(parsed.is_some(), text == "0000000112", "{text}");
        }
    }
}
