//! A brick's disk that fails under a running brickd, EIO on reads, on writes, or made read-only by
//! the kernel: programs go on without an error, the copy is out, `volume status` says why, and it is
//! healed when the disk is repaired or another one is in its place.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use tests::cluster::{Allowed, Cluster, DiskTrouble, FileSystem, Host, VOLUME, wait_until};
use tests::cluster::{Mount, assert_bricks_equal};
use tests::stall::StallMeter;

const NOTICED_WITHIN: Duration = Duration::from_secs(60);
const SOURCE: &str = "gfs01,gfs02:/v01";
/// Read back from the disk, past every cache.
const FILE_BYTES: usize = 4 << 20;

/// What a failing disk has brickd log.
const FAILED: [Allowed<'static>; 5] = [
    Allowed {
        text: "the disk failed",
        why: "it did",
    },
    Allowed {
        text: "the brick failed",
        why: "its disk did",
    },
    Allowed {
        text: "this copy is closed",
        why: "its disk failed",
    },
    Allowed {
        text: "what the other copies have synced could not be written down",
        why: "its disk failed",
    },
    Allowed {
        text: "the brick could not be synced at its stop",
        why: "its disk failed",
    },
];

struct Pool {
    cluster: Cluster,
    mount: Mount,
}

impl Pool {
    fn new() -> Self {
        let cluster = Cluster::with_brick_disks(FileSystem::Ext4);
        let mount = cluster.mount("client", SOURCE, "");
        Pool { cluster, mount }
    }

    fn brick(&self, host: &Host) -> PathBuf {
        host.brick("disk/brick")
    }

    /// The copy of this host is out, and every peer says so in these words.
    #[track_caller]
    fn assert_out(&self, host: &Host, words: &str) {
        wait_until(NOTICED_WITHIN, "the copy is out", || {
            let volume = self.cluster.volume(VOLUME);
            let epoch = volume.sets[0].epoch.as_ref().expect("an epoch");
            epoch.in_sync.len() == 1 && self.cluster.primary(VOLUME).name != host.name
        });
        let said = self.cluster.mortar("gfs03", "volume status v01").ok();
        let note = said.lines().find(|line| line.starts_with("Note: "));
        let note = note.unwrap_or_else(|| panic!("no note: {said}"));
        assert!(note.contains(&host.name) && note.contains(words), "{said}");
        assert!(note.contains("volume start v01 force"), "{said}");
    }

    /// What the copy misses is listed by the other.
    #[track_caller]
    fn assert_pending(&self, file: &str) {
        wait_until(NOTICED_WITHIN, "what is missed is listed", || {
            let info = self.cluster.mortar("gfs03", "volume heal v01 info").ok();
            info.contains(file)
        });
    }

    #[track_caller]
    fn start_again(&self) {
        self.cluster.mortar("gfs03", "volume start v01 force").ok();
        self.assert_equal();
    }

    #[track_caller]
    fn assert_equal(&self) {
        self.cluster.wait_healed(VOLUME);
        let [one, two] = ["gfs01", "gfs02"].map(|name| self.brick(self.cluster.host(name)));
        assert_bricks_equal(&one, &two);
    }

    fn end(self, allowed: &[Allowed<'_>]) {
        self.mount.unmount();
        self.cluster.assert_logs_clean(allowed);
    }
}

/// Of a file that was written once and is read from a disk that does not read.
#[test]
fn a_disk_that_cannot_be_read_is_out_and_the_other_copy_answers() {
    let pool = Pool::new();
    let content: Vec<u8> = (0..FILE_BYTES).map(|at| (at / 512) as u8).collect();
    let mut file = File::create(pool.mount.join("file")).unwrap();
    file.write_all(&content).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let bad = pool.cluster.primary(VOLUME);
    bad.drop_caches_of(&pool.brick(bad).join("file"));
    bad.trouble_disk(DiskTrouble::ReadsFail);
    // Another mount has nothing of it in a cache.
    let other = pool.cluster.mount("client", SOURCE, "");
    let read = fs::read(other.join("file")).expect("the other copy answers");
    assert!(read == content, "something else was read than was written");
    assert!(bad.disk_failures() > 0, "the disk was not asked");
    pool.assert_out(bad, "Input/output error");
    fs::write(other.join("missed"), "written while the disk is bad").unwrap();
    pool.assert_pending("/missed");

    bad.trouble_disk(DiskTrouble::Nothing);
    pool.start_again();
    // A disk that came back is asked again, also for what was not cached.
    bad.drop_caches_of(&pool.brick(bad).join("file"));
    pool.assert_equal();
    other.unmount();
    pool.end(
        &[
            &FAILED[..],
            &[Allowed {
                text: "a read failed",
                why: "it did",
            }],
        ]
        .concat(),
    );
}

/// An fsync that failed is never believed: the copy that could not make it durable is out, for good,
/// and another disk is filled in its place.
#[test]
fn a_disk_that_cannot_be_written_is_out_and_another_takes_its_place() {
    let pool = Pool::new();
    let meter = StallMeter::start(pool.mount.path());
    for bad in [
        pool.cluster.backup(VOLUME).name.clone(),
        pool.cluster.primary(VOLUME).name.clone(),
    ] {
        let bad = pool.cluster.host(&bad);
        bad.trouble_disk(DiskTrouble::WritesFail);
        pool.assert_out(bad, "error");
        assert!(bad.disk_failures() > 0, "the disk was not asked");
        meter.wait_for_progress();
        // The copy does not come back by itself, whatever the disk says now.
        bad.trouble_disk(DiskTrouble::Nothing);
        pool.assert_out(bad, "error");
        let spec = format!("{}:{}", bad.name, pool.brick(bad).display());
        let reset = |step: &str| {
            let command = format!("volume reset-brick {VOLUME} {spec} {step}");
            pool.cluster.mortar("gfs03", &command).ok()
        };
        reset("start");
        bad.change_disk();
        reset(&format!("{spec} commit force"));
        meter.wait_for_progress();
        pool.cluster.wait_in_sync(VOLUME);
    }
    let stalls = meter.stop();
    assert!(stalls.errors.is_empty(), "{stalls:?}");
    pool.assert_equal();
    pool.end(
        &[
            &FAILED[..],
            &[
                Allowed {
                    text: "an ordered change could not be applied",
                    why: "the disk failed",
                },
                Allowed {
                    text: "a read failed",
                    why: "ext4 that has failed answers nothing",
                },
                Allowed {
                    text: "what a copy lacks could not be written down",
                    why: "the disk failed",
                },
            ],
        ]
        .concat(),
    );
}

/// As ext4 does with a disk that it finds damaged. Nothing is written at that moment: the copy is
/// out all the same.
#[test]
fn a_disk_that_the_kernel_made_read_only_is_out() {
    let pool = Pool::new();
    fs::write(pool.mount.join("before"), "on both copies").unwrap();
    File::open(pool.mount.join("before"))
        .unwrap()
        .sync_all()
        .unwrap();
    for bad in [
        pool.cluster.primary(VOLUME).name.clone(),
        pool.cluster.backup(VOLUME).name.clone(),
    ] {
        let bad = pool.cluster.host(&bad);
        pool.cluster.wait_healed(VOLUME);
        bad.make_disk_read_only();
        pool.assert_out(bad, "the disk is mounted read-only");
        let name = format!("while-{}-is-read-only", bad.name);
        fs::write(pool.mount.join(&name), "one copy").unwrap();
        File::open(pool.mount.join(&name))
            .unwrap()
            .sync_all()
            .unwrap();
        pool.assert_pending(&name);
        let spec = format!("{}:{}", bad.name, pool.brick(bad).display());
        pool.cluster
            .mortar("gfs03", &format!("brick stop {spec}"))
            .ok();
        bad.repair_disk();
        pool.cluster
            .mortar("gfs03", &format!("brick start {spec}"))
            .ok();
        pool.assert_equal();
    }
    assert_eq!(
        fs::read(pool.mount.join("before")).unwrap(),
        b"on both copies"
    );
    pool.end(&FAILED);
}
