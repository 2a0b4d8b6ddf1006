//! Mounting, seeing the end of a mount, and unmounting: the same for every loop.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::UnmountFlags;

use super::DEVICE;
use crate::mounts;
use crate::options::MountOptions;

/// The device's number on every Linux.
const DEVICE_NUMBER: (u32, u32) = (10, 229);
/// How often it is looked whether the kernel has let go of the mount.
const LET_GO_TICK: Duration = Duration::from_millis(200);
const NO_TIME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};
/// Bytes the kernel reads ahead, so that reads come as large as writes.
const READ_AHEAD_KB: &str = "1024";

/// Why the kernel interface cannot be used, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LoopError(pub(super) String);

/// A mount whose requests are not served yet.
#[derive(Debug)]
pub struct Mounted {
    pub(super) device: OwnedFd,
    pub(super) unmounter: Unmounter,
}

/// Takes the mount away again.
#[derive(Clone, Debug)]
pub struct Unmounter {
    pub(super) mount_point: PathBuf,
}

/// Mounts at the mount point of the options, which must be an absolute path without links.
///
/// # Errors
/// In words.
pub fn mount(options: &MountOptions) -> Result<Mounted, LoopError> {
    let device = open_device()?;
    let root_mode = std::fs::metadata(&options.mount_point)
        .map_err(|error| {
            LoopError(format!(
                "the mount point {}: {error}",
                options.mount_point.display()
            ))
        })
        .map(|metadata| std::os::unix::fs::MetadataExt::mode(&metadata) & libc::S_IFMT)?;
    if root_mode != libc::S_IFDIR {
        let at = options.mount_point.display();
        return Err(LoopError(format!(
            "the mount point {at} is not a directory"
        )));
    }
    let data = format!(
        "fd={},rootmode={root_mode:o},user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let data = CString::new(data).map_err(|error| LoopError(error.to_string()))?;
    rustix::mount::mount(
        options.source.as_str(),
        &options.mount_point,
        mounts::FS_TYPE,
        options.mount_flags(),
        data.as_c_str(),
    )
    .map_err(|error| {
        let at = options.mount_point.display();
        LoopError(match error {
            rustix::io::Errno::PERM => {
                format!("cannot mount on {at}: only root (CAP_SYS_ADMIN) may mount")
            }
            rustix::io::Errno::NODEV => {
                format!("cannot mount on {at}: this kernel has no FUSE (modprobe fuse)")
            }
            error => format!("cannot mount on {at}: {error}"),
        })
    })?;
    let unmounter = Unmounter {
        mount_point: options.mount_point.clone(),
    };
    Ok(Mounted {
        device: device.into(),
        unmounter,
    })
}

/// Returns when the volume is unmounted or the connection was aborted.
///
/// It looks now and then instead of sleeping in poll: who polls the device is woken with every
/// request, which costs each of them a switch of threads.
pub(super) fn wait_until_let_go(device: &OwnedFd) {
    loop {
        std::thread::sleep(LET_GO_TICK);
        let mut fds = [PollFd::new(device, PollFlags::empty())];
        match rustix::event::poll(&mut fds, Some(&NO_TIME)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) if fds[0].revents().is_empty() => {}
            Ok(_) => return,
            Err(error) => return tracing::error!("the FUSE device cannot be watched: {error}"),
        }
    }
}

impl Unmounter {
    /// Unmounts; what is still in use loses its place in the tree at once and goes when it is let
    /// go of.
    pub fn unmount(&self) {
        let at = &self.mount_point;
        if rustix::mount::unmount(at, UnmountFlags::NOFOLLOW).is_ok() {
            return;
        }
        let lazily = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
        if let Err(error) = rustix::mount::unmount(at, lazily) {
            tracing::debug!("{} is not mounted any more: {error}", at.display());
        }
    }
}

/// Opens the device; makes its node where there is none, as in a bare container.
fn open_device() -> Result<File, LoopError> {
    let open = || OpenOptions::new().read(true).write(true).open(DEVICE);
    let outcome = open().or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
        rustix::fs::mknodat(
            rustix::fs::CWD,
            DEVICE,
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::from_raw_mode(0o666),
            rustix::fs::makedev(DEVICE_NUMBER.0, DEVICE_NUMBER.1),
        )?;
        open()
    });
    outcome.map_err(|error| {
        LoopError(format!(
            "cannot open {DEVICE}: {error}; load the module (modprobe fuse) and see that this \
             process may use the device"
        ))
    })
}

/// Lets the kernel read ahead more than its 128 KiB. Where `/sys` cannot be written it stays so.
pub(super) fn read_ahead(mount_point: &Path) {
    let device = mounts::at(mount_point).ok().flatten();
    if let Some(mounts::Mount { device, .. }) = device {
        let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
        if let Err(error) = std::fs::write(&file, READ_AHEAD_KB) {
            tracing::debug!("{file} stays as it is: {error}");
        }
    }
}
