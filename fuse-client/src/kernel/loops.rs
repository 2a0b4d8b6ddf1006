//! Mounting, the loop that serves the kernel, and unmounting.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Config, INodeNo, Notifier, Session, SessionACL};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::{MountFlags, UnmountFlags};

use super::Adapter;
use crate::cache::NodeId;
use crate::fs::Fs;
use crate::fs::notes::Kernel;
use crate::mounts;
use crate::options::{KernelFlag, ListingAttributes, MountOptions};

/// Threads that read and serve requests.
const THREADS: usize = 16;
const DEVICE: &str = "/dev/fuse";
/// Its number on every Linux.
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
pub struct LoopError(String);

/// A mount whose requests are not served yet.
#[derive(Debug)]
pub struct Mounted {
    device: OwnedFd,
    unmounter: Unmounter,
}

/// Takes the mount away again.
#[derive(Clone, Debug)]
pub struct Unmounter {
    mount_point: PathBuf,
}

/// The loop, ready to run.
pub struct Loop {
    session: Session<Adapter>,
    /// The device once more, to see when the kernel lets go.
    device: OwnedFd,
    fs: Arc<Fs>,
    unmounter: Unmounter,
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
        mount_flags(options),
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

/// Answers the kernel's first request and makes the loop ready.
///
/// # Errors
/// In words; the mount is taken away again.
pub fn serve(mounted: Mounted, fs: Arc<Fs>, options: &MountOptions) -> Result<Loop, LoopError> {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    config.acl = SessionACL::All;
    let readdir_plus = options.listing == ListingAttributes::Auto;
    let adapter = Adapter {
        fs: fs.clone(),
        readdir_plus,
    };
    let Mounted { device, unmounter } = mounted;
    let session = device.try_clone().and_then(|again| {
        Ok((
            Session::from_fd(adapter, device, SessionACL::All, config)?,
            again,
        ))
    });
    match session {
        Ok((session, device)) => {
            read_ahead(&unmounter.mount_point);
            Ok(Loop {
                session,
                device,
                fs,
                unmounter,
            })
        }
        Err(error) => {
            unmounter.unmount();
            Err(LoopError(format!(
                "the kernel's FUSE does not answer as expected: {error}"
            )))
        }
    }
}

impl Loop {
    /// Takes the mount away from outside the loop.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Serves the kernel until the volume is unmounted.
    ///
    /// # Errors
    /// When a thread of the loop fails.
    pub fn run(self) -> io::Result<()> {
        let Loop {
            session,
            device,
            fs,
            unmounter: _,
        } = self;
        // A request that waits for a brick would keep its thread, and with it the process, for as
        // long as no brick serves; nobody waits for its answer any more.
        let of_watch = fs.clone();
        std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || {
                wait_until_let_go(&device);
                of_watch.stop();
            })?;
        let teller = Teller(session.notifier());
        let notes = fs.notes().clone();
        let thread = std::thread::Builder::new()
            .name("notes".to_owned())
            .spawn(move || notes.serve(&teller))?;
        let outcome = session.run();
        fs.stop();
        let _ = thread.join();
        outcome
    }
}

/// Returns when the volume is unmounted or the connection was aborted.
///
/// It looks now and then instead of sleeping in poll: who polls the device is woken with every
/// request, which costs each of them a switch of threads.
fn wait_until_let_go(device: &OwnedFd) {
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

struct Teller(Notifier);

impl Kernel for Teller {
    fn drop_attributes(&self, node: NodeId) {
        // A negative offset: the pages stay.
        if let Err(error) = self.0.inval_inode(INodeNo(node.0), -1, 0) {
            tracing::debug!(
                "the kernel does not drop the attributes of {}: {error}",
                node.0
            );
        }
    }

    fn drop_pages(&self, node: NodeId) {
        if let Err(error) = self.0.inval_inode(INodeNo(node.0), 0, 0) {
            tracing::debug!("the kernel does not drop the pages of {}: {error}", node.0);
        }
    }

    fn drop_name(&self, parent: NodeId, name: &[u8]) {
        let name = std::ffi::OsStr::from_bytes(name);
        if let Err(error) = self.0.inval_entry(INodeNo(parent.0), name) {
            tracing::debug!("the kernel does not give back {name:?}: {error}");
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

fn mount_flags(options: &MountOptions) -> MountFlags {
    options
        .flags
        .iter()
        .fold(MountFlags::empty(), |flags, flag| {
            flags
                | match flag {
                    KernelFlag::ReadOnly => MountFlags::RDONLY,
                    KernelFlag::NoSuid => MountFlags::NOSUID,
                    KernelFlag::NoDev => MountFlags::NODEV,
                    KernelFlag::NoExec => MountFlags::NOEXEC,
                    KernelFlag::Synchronous => MountFlags::SYNCHRONOUS,
                    KernelFlag::DirSync => MountFlags::DIRSYNC,
                    KernelFlag::NoAtime => MountFlags::NOATIME,
                    KernelFlag::NoDirAtime => MountFlags::NODIRATIME,
                }
        })
}

/// Lets the kernel read ahead more than its 128 KiB. Where `/sys` cannot be written it stays so.
fn read_ahead(mount_point: &Path) {
    let device = mounts::at(mount_point).ok().flatten();
    if let Some(mounts::Mount { device, .. }) = device {
        let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
        if let Err(error) = std::fs::write(&file, READ_AHEAD_KB) {
            tracing::debug!("{file} stays as it is: {error}");
        }
    }
}
