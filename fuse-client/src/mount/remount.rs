//! `mount -o remount`: other flags for a mount that is there. The client that serves it goes on and
//! is not told: every flag is one the kernel acts on by itself.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};

use crate::mounts;
use crate::options::MountOptions;

/// The kernel tells the client of a close without waiting for it, and until that is answered an
/// unlinked file counts as in use, although nobody has it open: that passes by itself.
const BUSY_MAX: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Gives the mount at the mount point the flags of these options. What else the options say (hosts,
/// timeouts, the log) stays as it was mounted.
///
/// # Errors
/// One sentence, when no volume is mounted there or the kernel refuses.
pub(super) fn remount(options: &MountOptions) -> Result<(), String> {
    let at = options.mount_point.display();
    let found = mounts::at(&options.mount_point)
        .map_err(|error| format!("the table of mounts cannot be read: {error}"))?;
    if found.is_none_or(|mount| mount.fs_type != mounts::FS_TYPE) {
        return Err(format!(
            "no Mortar volume is mounted on {at}; mount it without the option 'remount'"
        ));
    }
    let flags = flags_of(options);
    let start = Instant::now();
    loop {
        match mount_remount(&options.mount_point, flags, c"") {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) if start.elapsed() < BUSY_MAX => std::thread::sleep(BUSY_PAUSE),
            Err(Errno::BUSY) => {
                return Err(format!(
                    "{at} is in use: close what is open for writing there first"
                ));
            }
            Err(error) => {
                let reason = std::io::Error::from(error);
                return Err(format!("the kernel does not remount {at}: {reason}"));
            }
        }
    }
}

fn flags_of(options: &MountOptions) -> MountFlags {
    let set = options.mount_flags();
    // Without any of these a remount keeps what the mount had, and 'atime' would change nothing.
    match set.intersects(MountFlags::NOATIME | MountFlags::NODIRATIME) {
        true => set,
        false => set | MountFlags::RELATIME,
    }
}
