//! Hosts that lose power: their brick and data directory are on a disk that keeps what a real one
//! would, and come up again on that.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{MutexGuard, PoisonError};

use rustix::process::Signal;

use super::disk::{Image, Shelf};
use super::host::{CLI_WITHIN, Host};
use super::process::{run, wait_until};
use crate::simulator::Random;

/// Memory is taken only for what was written.
const DISK_MIB: u32 = 1024;

/// Gives another one at each read, as the kernel's name of a boot is one.
const NEW_UUID: &str = "/proc/sys/kernel/random/uuid";

/// What is on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileSystem {
    /// As most servers have it.
    Ext4,
    /// As `GlusterFS` recommends it.
    Xfs,
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        })
    }
}

impl FileSystem {
    fn make(self, disk: &Path) {
        let words: &[&str] = match self {
            FileSystem::Ext4 => &["mkfs.ext4", "-q", "-F", "-E", "nodiscard"],
            FileSystem::Xfs => &["mkfs.xfs", "-q", "-f", "-K"],
        };
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(disk);
        run(command, CLI_WITHIN).ok();
    }

    fn mount(self, disk: &Path, at: &Path) {
        let options = match self {
            // What the kernel does by itself in the background would only blur what a cut leaves.
            FileSystem::Ext4 => "loop,noinit_itable",
            // Every disk here is a copy of another one.
            FileSystem::Xfs => "loop,nouuid",
        };
        let mut command = Command::new("mount");
        command.args(["-t", &self.to_string(), "-o", options]);
        command.arg(disk).arg(at);
        run(command, CLI_WITHIN).ok();
    }
}

/// A host's disk.
pub(super) struct PowerDisk {
    pub(super) shelf: Shelf,
    file_system: FileSystem,
}

/// What the other hosts notice of a cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signs {
    /// Silence, as of a host whose power is cut.
    Silence,
    /// The end of its connections: the cut as a process sees it whose host is the same. Failover
    /// is faster, and so more cuts fit into a test.
    ClosedConnections,
}

impl Host {
    /// Gives this host, on which nothing runs yet, a disk for its data directory and its brick
    /// that [`cut_power`] can cut; returns `HOST:/PATH` of that brick.
    #[track_caller]
    pub fn power_disk(&self, file_system: FileSystem) -> String {
        let brick = self.brick_disk(file_system);
        let data = self.dir.join("disk/data");
        fs::create_dir(&data).expect("the data directory");
        std::os::unix::fs::symlink(data, self.data_dir()).expect("its place");
        brick
    }

    /// Gives this host a disk for its brick alone; returns `HOST:/PATH` of that brick.
    #[track_caller]
    pub fn brick_disk(&self, file_system: FileSystem) -> String {
        let (folder, point) = (self.dir.join("shelf"), self.dir.join("disk"));
        fs::create_dir_all(&folder).expect("a folder for disks");
        fs::create_dir_all(&point).expect("a mount point");
        let shelf = Shelf::new(&folder);
        let disk = shelf.put(Image::default(), DISK_MIB);
        file_system.make(&disk);
        file_system.mount(&disk, &point);
        *self.lock_power() = Some(PowerDisk { shelf, file_system });
        self.brick_spec("disk/brick")
    }

    /// How often this host's disk was flushed since it was put in.
    ///
    /// # Panics
    /// When it has no [`Host::power_disk`].
    #[track_caller]
    pub fn disk_flushes(&self) -> u64 {
        self.with_power(|power| power.shelf.flushes())
    }

    #[track_caller]
    pub(super) fn with_power<T>(&self, then: impl FnOnce(&PowerDisk) -> T) -> T {
        let power = self.lock_power();
        then(power.as_ref().expect("a disk whose power can be cut"))
    }

    fn lock_power(&self) -> MutexGuard<'_, Option<PowerDisk>> {
        self.power.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unmounts the host's disk, which nobody may use any more.
    #[track_caller]
    pub(super) fn take_out(&self) {
        // The end of a process is seen a moment before its last descriptors are closed.
        wait_until(CLI_WITHIN, "the old disk is not used any more", || {
            let mut command = Command::new("umount");
            command.arg(self.dir.join("disk"));
            run(command, CLI_WITHIN).status.success()
        });
    }

    /// Mounts the host's disk again, after [`Host::take_out`].
    #[track_caller]
    pub(super) fn put_back(&self) {
        let point = self.dir.join("disk");
        self.with_power(|power| power.file_system.mount(&power.shelf.newest_path(), &point));
    }

    /// A new disk takes the place of the one that was there: an empty file system.
    #[track_caller]
    pub(super) fn put_in_new(&self) {
        let point = self.dir.join("disk");
        self.with_power(|power| {
            let disk = power.shelf.put(Image::default(), DISK_MIB);
            power.file_system.make(&disk);
            power.file_system.mount(&disk, &point);
            power.shelf.drop_old();
        });
    }

    /// What the host's disk held at the cut is what it has now.
    fn put_in(&self, image: Image) {
        let point = self.dir.join("disk");
        self.take_out();
        self.with_power(|power| {
            let disk = power.shelf.put(image, DISK_MIB);
            power.file_system.mount(&disk, &point);
            power.shelf.drop_old();
        });
        let boot = fs::read_to_string(NEW_UUID).expect("the kernel's random ids");
        fs::write(self.boot_id(), boot).expect("the host's folder");
    }
}

/// Cuts the power of hosts that have a [`Host::power_disk`] and a running brickd. Afterwards their
/// disks hold what was on them at the cut, in another mount and another boot of the kernel;
/// [`Host::power_on`] starts them.
///
/// At one instant each disk stops; from then on no fsync comes to an end. Then the processes are
/// killed, and only then the old disk goes on, for whatever the kernel still writes for them. So
/// whatever was acknowledged to anybody before the process died, is of before the instant.
#[track_caller]
pub fn cut_power(hosts: &[&Host], signs: Signs, random: &mut Random) {
    let images: Vec<Image> = hosts
        .iter()
        .map(|host| host.with_power(|power| power.shelf.freeze(random)))
        .collect();
    if signs == Signs::Silence {
        hosts.iter().for_each(|host| host.cut_link());
    }
    hosts
        .iter()
        .for_each(|host| host.signal_brickd(Signal::KILL));
    hosts
        .iter()
        .for_each(|host| host.with_power(|power| power.shelf.thaw()));
    for (host, image) in hosts.iter().zip(images) {
        host.kill_brickd();
        host.put_in(image);
    }
}
