//! A mounted volume.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use super::host::Host;
use super::net::processes_in;
use super::process::{Ran, program, run, signal_process, wait_until};

const CLIENT: &str = "mount-mortar";
/// `mount.mortar` says within this time whether it works.
const MOUNT_WITHIN: Duration = Duration::from_secs(60);
const UNMOUNT_WITHIN: Duration = Duration::from_secs(20);

/// A volume mounted on a host, and visible to the test at the same path. Unmounted when dropped.
pub struct Mount {
    path: PathBuf,
    namespace: String,
    mounted: bool,
}

impl Mount {
    pub(super) fn make(
        host: &Host,
        source: &str,
        options: &str,
        path: &Path,
        log: &Path,
    ) -> Result<Mount, Ran> {
        fs::create_dir_all(path).expect("a mount point");
        let mut all = format!("log-level=info,log-file={}", log.display());
        if !options.is_empty() {
            all = format!("{all},{options}");
        }
        let mut command = host.command(program(CLIENT));
        command.arg(source).arg(path).args(["-o", &all]);
        let ran = run(command, MOUNT_WITHIN);
        if !ran.status.success() {
            return Err(ran);
        }
        let mount = Mount {
            path: path.to_owned(),
            namespace: host.namespace().to_owned(),
            mounted: true,
        };
        assert!(
            mount_line(path).is_some(),
            "nothing is mounted although it was said: {ran}"
        );
        Ok(mount)
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside the mount.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Its line in `/proc/mounts`.
    pub fn line(&self) -> Option<String> {
        mount_line(&self.path)
    }

    /// The client's process.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.find_pid()
            .unwrap_or_else(|| panic!("no process serves {}", self.path.display()))
    }

    /// The client's process, if it lives.
    pub fn find_pid(&self) -> Option<u32> {
        let point = self
            .path
            .to_str()
            .expect("a mount point of plain letters")
            .as_bytes();
        processes_in(std::slice::from_ref(&self.namespace))
            .into_iter()
            .find(|pid| {
                fs::read_link(format!("/proc/{pid}/exe"))
                    .is_ok_and(|exe| exe.file_name() == Some(OsStr::new(CLIENT)))
                    && fs::read(format!("/proc/{pid}/cmdline"))
                        .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == point))
            })
    }

    /// Unmounts as an administrator does, and waits until the client has ended.
    ///
    /// # Panics
    /// When `umount` refuses or the client stays.
    #[track_caller]
    pub fn unmount(mut self) {
        let mut command = Command::new("umount");
        command.arg(&self.path);
        run(command, UNMOUNT_WITHIN).ok();
        self.mounted = false;
        wait_until(UNMOUNT_WITHIN, "the client ends after umount", || {
            self.find_pid().is_none()
        });
    }

    /// SIGKILL of the client; what is left of the mount is removed.
    pub fn kill(mut self) {
        if let Some(pid) = self.find_pid() {
            signal_process(pid, Signal::KILL);
        }
        self.detach();
    }

    /// SIGKILL of the client, and gone when this returns; the mount stays, dead.
    pub fn kill_client(&self) {
        signal_process(self.pid(), Signal::KILL);
        wait_until(UNMOUNT_WITHIN, "the client ends after SIGKILL", || {
            self.find_pid().is_none()
        });
    }

    fn detach(&mut self) {
        self.mounted = false;
        while mount_line(&self.path).is_some() {
            if unmount(&self.path, UnmountFlags::DETACH).is_err() {
                return;
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        if !std::thread::panicking() && unmount(&self.path, UnmountFlags::empty()).is_ok() {
            let start = std::time::Instant::now();
            while self.find_pid().is_some() && start.elapsed() < UNMOUNT_WITHIN {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.detach();
    }
}

fn mount_line(path: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the table of mounts");
    let point = path.to_str().expect("a mount point of plain letters");
    let found = mounts
        .lines()
        .find(|line| line.split(' ').nth(1) == Some(point));
    found.map(str::to_owned)
}
