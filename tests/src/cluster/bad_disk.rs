//! A host's disk goes bad while its brick runs: it does not read, does not write, is read-only, or
//! gives back another bit than it was given.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Advice, fadvise, syncfs};

use super::disk::DiskTrouble;
use super::host::{CLI_WITHIN, Host};
use super::process::run;

impl Host {
    /// From now on the host's disk (a [`Host::brick_disk`]) has this trouble.
    #[track_caller]
    pub fn trouble_disk(&self, trouble: DiskTrouble) {
        self.with_power(|power| power.shelf.trouble(trouble));
    }

    /// How many reads, writes and flushes of the host's disk have failed.
    #[track_caller]
    pub fn disk_failures(&self) -> u64 {
        self.with_power(|power| power.shelf.failures())
    }

    /// The next read of this file of a brick comes from the disk, not from a cache.
    #[track_caller]
    pub fn drop_caches_of(&self, file: &Path) {
        let opened = File::open(file).expect("a file of the brick");
        syncfs(&opened).expect("what was written is on the disk");
        fadvise(&opened, 0, None, Advice::DontNeed).expect("its pages are dropped");
        let disk = self.with_power(|power| power.shelf.newest_path());
        let disk = File::open(disk).expect("the disk");
        fadvise(&disk, 0, None, Advice::DontNeed).expect("the disk's pages are dropped");
    }

    /// Flips one bit of this file's content on the disk, below the file system, behind `mark`, with
    /// which the file begins and no other.
    #[track_caller]
    pub fn flip_bit(&self, file: &Path, mark: &[u8]) {
        self.drop_caches_of(file);
        let flipped = self.with_power(|power| power.shelf.flip_bit(mark));
        assert_eq!(flipped, 1, "blocks that begin with the mark");
        self.drop_caches_of(file);
        let there = fs::read(file).expect("the file");
        assert!(there.starts_with(mark), "the file begins with its mark");
    }

    /// The kernel finds the host's ext4 damaged, and makes it read-only, as it is mounted with
    /// `errors=remount-ro` for.
    #[track_caller]
    pub fn make_disk_read_only(&self) {
        let point = self.dir.join("disk");
        self.run(
            &format!("mount -o remount,errors=remount-ro {}", point.display()),
            CLI_WITHIN,
        )
        .ok();
        let device = fs::metadata(&point).expect("the disk's folder").dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let block = fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
        let name = block.expect("the disk's device");
        let name = name
            .file_name()
            .expect("its name")
            .to_string_lossy()
            .into_owned();
        fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "1").expect("an error of ext4");
        let refused = fs::write(point.join("probe"), "x").expect_err("the disk is read-only");
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "{refused}");
    }

    /// Unmounts the host's ext4, which no brick uses, has it checked, and mounts it again.
    #[track_caller]
    pub fn repair_disk(&self) {
        self.take_out();
        let mut check = std::process::Command::new("e2fsck");
        check.args(["-f", "-y"]);
        check.arg(self.with_power(|power| power.shelf.newest_path()));
        let ran = run(check, CLI_WITHIN);
        // 1: errors were corrected.
        assert!(matches!(ran.status.code(), Some(0 | 1)), "{ran}");
        self.put_back();
    }

    /// A new, empty disk takes the place of the host's, which no brick uses.
    #[track_caller]
    pub fn change_disk(&self) {
        self.take_out();
        self.put_in_new();
    }
}
