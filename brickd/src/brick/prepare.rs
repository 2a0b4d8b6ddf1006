//! Making a folder a brick, undoing that, and opening one: every refusal in one sentence.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use mortar_common::Gfid;
use mortar_common::name::PRIVATE_DIR;
use mortar_proto::registry::Limits;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::durable::{self, OPEN, OPEN_DIR};
use super::handle::{KernelHandle, each_entry};
use super::inner::disk_clock_ms;
use super::layout::{self, Stored};
use super::state::VolumeFile;
use super::store::BrickError;
use super::xattr::{self, Of};
use super::{BrickIdentity, Reserve, touched};

/// A brick that is locked is tried so often, …
const LOCK_TRIES: u32 = 20;
/// … this far apart.
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
/// Free space a new brick needs beyond what is reserved.
const FREE_BYTES_MIN: u64 = 64 << 20;
/// What a refused folder's content is looked through for.
const FOREIGN_XATTR: &str = "trusted.glusterfs.volume-id";
/// Folders inside `.mortar`.
pub(super) const FOLDERS: [&str; 5] = ["handle", "heal", "txn", "orphan", "stray"];

const EXT4_MAGIC: i64 = 0xef53;
const XFS_MAGIC: i64 = 0x5846_5342;
/// ext4 allows 65,000 links; one is the handle.
const EXT4_LINKS_MAX: u32 = 64_999;
/// Of an ext4 file.
const EXT4_FILE_BLOCKS_MAX: u64 = u32::MAX as u64;
/// ext4 keeps all xattrs of an object in one block, which ours share: half of a block, but never
/// more than this.
const EXT4_XATTR_BYTES_MAX: u64 = 2_048;

type Refusal = BrickError;

fn refuse<T>(sentence: String) -> Result<T, Refusal> {
    Err(BrickError::NotThisBrick(sentence))
}

fn failed(path: &Path, what: &str, error: Errno) -> Refusal {
    BrickError::NotThisBrick(format!("brick {}: {what}: {error}", path.display()))
}

/// Whether this folder can become a brick, and what its disk can hold.
pub(super) fn check(path: &Path, force: bool) -> Result<Limits, Refusal> {
    let shown = path.display();
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return refuse(format!(
            "brick path {shown} is not an absolute path: write it from the root and without '..'"
        ));
    }
    let Some(parent) = path.parent() else {
        return refuse(format!(
            "brick path {shown} is the root directory: use a folder below it"
        ));
    };
    let exists = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => true,
        Ok(_) => return refuse(format!("brick path {shown} exists and is not a directory")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return refuse(format!("brick path {shown} cannot be read: {error}")),
    };
    if !parent.is_dir() {
        return refuse(format!(
            "the folder {} above brick path {shown} does not exist: mount the disk there, or make it, first",
            parent.display()
        ));
    }
    let home = if exists { path } else { parent };
    check_unused(path, home, force)?;
    if !force {
        check_place(path, home, exists)?;
    }
    let dir = rustix::fs::open(home, OPEN_DIR, Mode::empty())
        .map_err(|error| failed(path, "the folder cannot be opened", error))?;
    check_disk(path, &dir)?;
    check_space(path, &dir)?;
    limits_of(path, &dir)
}

/// No brick at, above or inside it; nothing inside at all unless it is forced.
fn check_unused(path: &Path, home: &Path, force: bool) -> Result<(), Refusal> {
    let shown = path.display();
    let real = home
        .canonicalize()
        .map_err(|error| BrickError::NotThisBrick(format!("brick path {shown}: {error}")))?;
    for above in real.ancestors() {
        if above.join(PRIVATE_DIR).exists() || has_xattr(above, "trusted.mortar") {
            return refuse(if home == path && above == real {
                format!("{shown} is already part of a volume")
            } else {
                format!(
                    "parent directory {} is already part of a volume",
                    above.display()
                )
            });
        }
        if has_xattr(above, FOREIGN_XATTR) {
            return refuse(format!(
                "{} is a brick of a GlusterFS volume: copy its files through a mount of that volume",
                above.display()
            ));
        }
    }
    if home != path {
        return Ok(());
    }
    let mut pending = vec![real];
    while let Some(folder) = pending.pop() {
        let entries = std::fs::read_dir(&folder)
            .map_err(|error| BrickError::NotThisBrick(format!("brick path {shown}: {error}")))?;
        for entry in entries.flatten() {
            if entry.file_name() == "lost+found" {
                continue;
            }
            if !force {
                return refuse(format!(
                    "brick path {shown} is not empty: what is in it would not be seen in the volume; use an empty folder, or 'force' at the end of the command"
                ));
            }
            if entry.file_name() == PRIVATE_DIR {
                return refuse(format!(
                    "brick path {shown} holds another brick: {}",
                    folder.display()
                ));
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
        }
    }
    Ok(())
}

/// What gluster asks 'force' for.
fn check_place(path: &Path, home: &Path, exists: bool) -> Result<(), Refusal> {
    let disk_of = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
    let here = disk_of(home).map_err(|error| failed(path, "cannot be read", error))?;
    if disk_of(Path::new("/")) == Ok(here) {
        return refuse(format!(
            "The brick {} is being created in the root partition. It is recommended that you don't use the system's root partition for storage backend. Or use 'force' at the end of the command if you want to override this behavior.",
            path.display()
        ));
    }
    let above = path.parent().map_or(Ok(here), disk_of);
    if exists && above != Ok(here) {
        return refuse(format!(
            "The brick {} is a mount point. Please create a sub-directory under the mount point and use that as the brick directory. Or use 'force' at the end of the command if you want to override this behavior.",
            path.display()
        ));
    }
    Ok(())
}

/// Writable, with trusted xattrs and file handles: tried on a folder made for it.
fn check_disk(path: &Path, dir: &OwnedFd) -> Result<(), Refusal> {
    let probe = format!(".mortar-probe-{:016x}", mortar_common::ids::random_id());
    rustix::fs::mkdirat(dir, &*probe, Mode::from_raw_mode(0o700))
        .map_err(|error| failed(path, "its disk cannot be written", error))?;
    let tried = try_disk(path, dir, &probe);
    rustix::fs::unlinkat(dir, &*probe, AtFlags::REMOVEDIR)
        .map_err(|error| failed(path, "its disk cannot be written", error))?;
    tried
}

fn try_disk(path: &Path, dir: &OwnedFd, probe: &str) -> Result<(), Refusal> {
    let fd = rustix::fs::openat(dir, probe, OPEN_DIR, Mode::empty())
        .map_err(|error| failed(path, "its disk cannot be read", error))?;
    xattr::set(
        Of::Fd(fd.as_fd()),
        layout::XATTR,
        &[0; layout::XATTR_BYTES_MAX],
    )
    .map_err(|error| {
        failed(
            path,
            "its disk keeps no trusted.* xattrs (use ext4 or XFS, and run brickd as root)",
            error,
        )
    })?;
    KernelHandle::of(fd.as_fd())
        .map_err(|error| {
            failed(
                path,
                "its disk gives no file handles (use ext4 or XFS)",
                error,
            )
        })?
        .open_dir(dir.as_fd())
        .map_err(|error| {
            failed(
                path,
                "file handles cannot be opened (brickd needs CAP_DAC_READ_SEARCH)",
                error,
            )
        })
        .map(|_| ())
}

fn check_space(path: &Path, dir: &OwnedFd) -> Result<(), Refusal> {
    let stat = rustix::fs::fstatvfs(dir)
        .map_err(|error| failed(path, "its free space cannot be asked", error))?;
    let free = stat.f_bavail * stat.f_frsize;
    let needed = Reserve::default().bytes_of(stat.f_blocks * stat.f_frsize) + FREE_BYTES_MIN;
    if free < needed {
        return refuse(format!(
            "brick {}: its disk has {} MiB free and needs {} MiB: free some space or use another disk",
            path.display(),
            free >> 20,
            needed >> 20
        ));
    }
    Ok(())
}

fn limits_of(path: &Path, dir: &OwnedFd) -> Result<Limits, Refusal> {
    let magic =
        file_system(dir).map_err(|error| failed(path, "its disk cannot be asked", error))?;
    if magic == XFS_MAGIC {
        return Ok(Limits {
            links: i32::MAX.unsigned_abs() - 1,
            xattr_bytes: xattr::XATTR_SIZE_MAX as u32,
            file_bytes: i64::MAX.unsigned_abs(),
        });
    }
    // A disk that is not known is taken for the one with the narrowest limits.
    let block_bytes = rustix::fs::fstatvfs(dir)
        .map_err(|error| failed(path, "its disk cannot be asked", error))?
        .f_bsize;
    Ok(Limits {
        links: EXT4_LINKS_MAX,
        xattr_bytes: (block_bytes / 2).min(EXT4_XATTR_BYTES_MAX) as u32,
        file_bytes: block_bytes.saturating_mul(EXT4_FILE_BLOCKS_MAX),
    })
}

/// Whether one fsync of an object commits its creation and names too.
pub(super) fn has_ordered_journal(dir: &OwnedFd) -> Result<bool, Errno> {
    Ok(matches!(file_system(dir)?, EXT4_MAGIC | XFS_MAGIC))
}

fn file_system(dir: &OwnedFd) -> Result<i64, Errno> {
    #[allow(clippy::unnecessary_cast)] // Its width differs between architectures.
    rustix::fs::fstatfs(dir).map(|stat| stat.f_type as i64)
}

fn has_xattr(path: &Path, name: &str) -> bool {
    rustix::fs::lgetxattr(path, name, &mut [0u8; 256][..]).is_ok()
}

/// Makes the brick; leaves nothing behind when it fails.
pub(super) fn make(path: &Path, identity: &BrickIdentity, force: bool) -> Result<(), Refusal> {
    check(path, force)?;
    let made_folder = match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(failed(path, "the folder cannot be made", error)),
    };
    let file = VolumeFile::new(identity, made_folder, disk_clock_ms());
    match fill(path, &file) {
        Ok(()) => Ok(()),
        Err(error) => {
            // The first error is the one to tell.
            let _ = empty(path, made_folder);
            Err(failed(path, "it cannot be made a brick", error))
        }
    }
}

fn fill(path: &Path, file: &VolumeFile) -> Result<(), Errno> {
    let root = rustix::fs::open(path, OPEN_DIR, Mode::empty())?;
    let private_mode = Mode::from_raw_mode(0o700);
    rustix::fs::mkdirat(&root, PRIVATE_DIR, private_mode)?;
    // With 'force' there may be files here that once were of a volume: they are no more.
    strip_gfids(&root)?;
    let private = rustix::fs::openat(&root, PRIVATE_DIR, OPEN_DIR, Mode::empty())?;
    for folder in FOLDERS {
        rustix::fs::mkdirat(&private, folder, private_mode)?;
    }
    if file.made_folder {
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755))?;
    }
    let root_handle = KernelHandle::of(root.as_fd())?.to_text();
    VolumeFile {
        root_handle,
        ..file.clone()
    }
    .write(private.as_fd())?;
    touched::replace(private.as_fd(), &[])?;
    let stored = Stored {
        gfid: Gfid::ROOT,
        written: None,
        rdev: None,
        atime: None,
    };
    xattr::set(Of::Fd(root.as_fd()), layout::XATTR, stored.encode().bytes())?;
    durable::sync_file(private.as_fd())?;
    durable::sync_file(root.as_fd())?;
    let parent = rustix::fs::openat(&root, "..", OPEN_DIR, Mode::empty())?;
    durable::sync_file(parent.as_fd())
}

fn strip_gfids(root: &OwnedFd) -> Result<(), Errno> {
    let mut pending = vec![KernelHandle::of(root.as_fd())?];
    while let Some(handle) = pending.pop() {
        let dir = handle.open_dir(root.as_fd())?;
        each_entry(&dir, &mut |name, _| {
            xattr::remove(Of::Entry(dir.as_fd(), name), layout::XATTR)?;
            match rustix::fs::openat(&dir, name, OPEN_DIR, Mode::empty()) {
                Ok(below) => pending.push(KernelHandle::of(below.as_fd())?),
                Err(Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Removes what [`make`] made. A folder that is no brick is left alone.
pub(super) fn unmake(path: &Path, identity: &BrickIdentity) -> Result<(), Refusal> {
    let root = match rustix::fs::open(path, OPEN_DIR, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed(path, "the folder cannot be opened", error)),
    };
    let private = match rustix::fs::openat(&root, PRIVATE_DIR, OPEN_DIR, Mode::empty()) {
        Ok(private) => private,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed(path, ".mortar cannot be opened", error)),
    };
    let file = VolumeFile::read(private.as_fd()).map_err(|why| {
        BrickError::NotThisBrick(format!(
            "brick {}: {why}; it was left as it is",
            path.display()
        ))
    })?;
    if !file.is(identity) {
        return refuse(format!(
            "{} is a brick of volume '{}', not of '{}': it was left as it is",
            path.display(),
            file.volume_name,
            identity.volume_name
        ));
    }
    lock_brick(path, &private)?;
    let unused = file.last_number == 0 && file.number_ceiling == 0;
    empty(path, file.made_folder && unused)
        .map_err(|error| failed(path, ".mortar cannot be removed", error))
}

/// `volume` goes last: until then it can be told whose brick it was, and this be done again.
fn empty(path: &Path, remove_folder: bool) -> Result<(), Errno> {
    let plain = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let private = path.join(PRIVATE_DIR);
    for folder in FOLDERS {
        match std::fs::remove_dir_all(private.join(folder)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(plain(error)),
            _ => {}
        }
    }
    let root = rustix::fs::open(path, OPEN_DIR, Mode::empty())?;
    xattr::remove(Of::Fd(root.as_fd()), layout::XATTR)?;
    match std::fs::remove_dir_all(&private) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(plain(error)),
        _ => {}
    }
    durable::sync_file(root.as_fd())?;
    if remove_folder {
        // Somebody may have put a file there: it stays, with its folder.
        match rustix::fs::rmdir(path) {
            Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The descriptors of a brick, and what its `volume` file says.
pub(super) struct Opened {
    pub path: PathBuf,
    pub root: OwnedFd,
    pub private: OwnedFd,
    pub folders: [OwnedFd; 5],
    pub file: VolumeFile,
    /// Of the root, as this disk has it.
    pub root_handle: String,
    /// `handle/` was missing, or is of another disk: all handles are to be written anew.
    pub handles_lost: bool,
}

/// Opens the folder if it is the brick meant, whole and writable.
pub(super) fn open(path: &Path, identity: &BrickIdentity) -> Result<Opened, Refusal> {
    let shown = path.display();
    let not_here = |why: &str| {
        BrickError::NotThisBrick(format!(
            "{shown} is not the brick of volume '{}' it should be: {why}; is its disk mounted?",
            identity.volume_name
        ))
    };
    let root = match rustix::fs::open(path, OPEN_DIR, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Err(not_here("there is no such folder")),
        Err(error) => return Err(failed(path, "the folder cannot be opened", error)),
    };
    let private = match rustix::fs::openat(&root, PRIVATE_DIR, OPEN_DIR, Mode::empty()) {
        Ok(private) => private,
        Err(Errno::NOENT) => return Err(not_here("it has no .mortar")),
        Err(error) => return Err(failed(path, ".mortar cannot be opened", error)),
    };
    let file = VolumeFile::read(private.as_fd()).map_err(|why| not_here(&why))?;
    if !file.is(identity) {
        return refuse(format!(
            "{shown} is brick {:016x} of volume '{}', not brick {} of volume '{}': mount the right disk there",
            file.brick, file.volume_name, identity.brick, identity.volume_name
        ));
    }
    if !super::inner::Inner::is_root(&root) {
        return Err(not_here("it lacks the xattr trusted.mortar"));
    }
    lock_brick(path, &private)?;
    check_writable(path, &private)?;
    let root_handle = KernelHandle::of(root.as_fd())
        .map_err(|error| failed(path, "its disk gives no file handles", error))?
        .to_text();
    let mut handles_lost = file.root_handle != root_handle;
    let mut folder = |name: &str| {
        match rustix::fs::mkdirat(&private, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => handles_lost |= name == "handle",
            Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(path, ".mortar cannot be written", error)),
        }
        rustix::fs::openat(&private, name, OPEN_DIR, Mode::empty())
            .map_err(|error| failed(path, ".mortar cannot be opened", error))
    };
    let [handle, heal, txn, orphan, stray] = FOLDERS;
    let folders = [
        folder(handle)?,
        folder(heal)?,
        folder(txn)?,
        folder(orphan)?,
        folder(stray)?,
    ];
    Ok(Opened {
        path: path.to_owned(),
        root,
        private,
        folders,
        file,
        root_handle,
        handles_lost,
    })
}

/// One process at a time. The lock goes with the descriptor; a child that is being started holds a
/// copy of it until its exec, so that a lock given back this moment may still be seen for a little.
fn lock_brick(path: &Path, private: &OwnedFd) -> Result<(), Refusal> {
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(private, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(error) => return Err(failed(path, "it cannot be locked", error)),
        }
    }
    refuse(format!(
        "brick {} is in use by another brickd on this host: stop that one first",
        path.display()
    ))
}

fn check_writable(path: &Path, private: &OwnedFd) -> Result<(), Refusal> {
    let flags = OPEN | OFlags::WRONLY | OFlags::CREATE;
    rustix::fs::openat(private, "writable", flags, Mode::from_raw_mode(0o600))
        .and_then(|_| rustix::fs::unlinkat(private, "writable", AtFlags::empty()))
        .map_err(|error| failed(path, "it cannot be written", error))
}
