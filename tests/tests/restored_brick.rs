//! A brick whose disk is put back to an older state, as from a backup, never gives that state to
//! anybody: its partner finds it out, also when both were restarted, and heals it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tests::cluster::{Allowed, CLI_WITHIN, Cluster, Host, Mount, assert_bricks_equal, wait_until};

const NAME: &str = "v05";
const DISK_MIB: u32 = 512;
/// A quiet volume syncs after three seconds, and each copy tells the other.
const SYNCED_WITHIN: Duration = Duration::from_secs(60);
const FOUND_OUT: &str = "a copy was rolled back";

#[test]
fn a_brick_restored_beside_its_living_partner_is_compared_whole() {
    let pool = Pool::new();
    let mount = pool.mount();
    write(&mount, "changed", "old");
    write(&mount, "removed", "old");
    let restored = pool.host("gfs02");
    restored.stop_brickd();
    pool.save(restored);
    restored.start_brickd();
    pool.cluster.wait_in_sync(NAME);
    pool.work_on(&mount);
    restored.stop_brickd();
    pool.restore(restored);
    restored.start_brickd();
    pool.assert_new_everywhere(&mount);
}

#[test]
fn a_brick_restored_while_all_were_down_does_not_take_over() {
    let pool = Pool::new();
    let mount = pool.mount();
    write(&mount, "changed", "old");
    write(&mount, "removed", "old");
    mount.unmount();
    for host in pool.hosts() {
        host.stop_brickd();
    }
    for host in pool.hosts() {
        pool.save(host);
        host.start_brickd();
    }
    pool.cluster.wait_in_sync(NAME);
    let mount = pool.mount();
    pool.work_on(&mount);
    mount.unmount();
    // Neither learns of the other's end: both are listed, and the old primary is the first to take
    // over.
    let restored = pool.cluster.primary(NAME);
    pool.hosts().iter().for_each(|host| host.freeze_brickd());
    pool.hosts().iter().for_each(|host| host.kill_brickd());
    pool.restore(restored);
    restored.start_brickd();
    let others = pool.hosts();
    let other = others.iter().find(|host| host.name != restored.name);
    other.expect("the other host").start_brickd();
    pool.cluster.wait_healed(NAME);
    assert!(
        pool.cluster.primary(NAME).name != restored.name,
        "the restored copy took over"
    );
    pool.assert_new_everywhere(&pool.mount());
}

/// A volume of two copies, each brick on a disk of its own.
struct Pool {
    cluster: Cluster,
}

impl Pool {
    fn new() -> Self {
        let cluster = Cluster::new(&["gfs01", "gfs02", "client"]);
        let bricks = ["gfs01", "gfs02"].map(|name| {
            cluster.host(name).start_brickd();
            cluster.host(name).small_disk(DISK_MIB, "rw")
        });
        let bricks = bricks.join(" ");
        let first = cluster.host("gfs01");
        first.mortar("peer probe gfs02").ok();
        first
            .mortar(&format!("volume create {NAME} replica 2 {bricks} force"))
            .ok();
        first.mortar(&format!("volume start {NAME}")).ok();
        cluster.wait_in_sync(NAME);
        Pool { cluster }
    }

    fn mount(&self) -> Mount {
        let source = format!("gfs01,gfs02:/{NAME}");
        self.cluster.mount("client", &source, "")
    }

    fn host(&self, name: &str) -> &Host {
        self.cluster.host(name)
    }

    fn hosts(&self) -> [&Host; 2] {
        ["gfs01", "gfs02"].map(|name| self.host(name))
    }

    fn bricks(&self) -> [PathBuf; 2] {
        self.hosts().map(|host| host.brick("disk/brick"))
    }

    /// Copies a host's disk as it is, brickd being stopped.
    fn save(&self, host: &Host) {
        on_disk(host, "umount DIR/disk");
        on_disk(host, "cp --sparse=always DIR/disk.img DIR/backup.img");
        on_disk(host, "mount -o loop DIR/disk.img DIR/disk");
    }

    /// Puts the copy back.
    fn restore(&self, host: &Host) {
        on_disk(host, "umount DIR/disk");
        on_disk(host, "cp --sparse=always DIR/backup.img DIR/disk.img");
        on_disk(host, "mount -o loop DIR/disk.img DIR/disk");
    }

    /// Changes that both copies record as durable, and know it of each other, written down: each
    /// sync tells of those before it.
    fn work_on(&self, mount: &Mount) {
        write(mount, "changed", "new");
        fs::remove_file(mount.join("removed")).unwrap();
        for round in 0..3 {
            write(mount, &format!("new-{round}"), "new");
            let since = SystemTime::now();
            for brick in self.bricks() {
                wait_until(SYNCED_WITHIN, "both copies have synced", || {
                    let written = fs::metadata(brick.join(".mortar/volume"));
                    written.and_then(|file| file.modified()).unwrap() > since
                });
            }
        }
    }

    fn assert_new_everywhere(&self, mount: &Mount) {
        self.cluster.wait_healed(NAME);
        assert_eq!(fs::read_to_string(mount.join("changed")).unwrap(), "new");
        assert!(!mount.join("removed").exists());
        for round in 0..3 {
            let path = mount.join(format!("new-{round}"));
            assert_eq!(fs::read_to_string(path).unwrap(), "new");
        }
        let [one, other] = self.bricks();
        assert_bricks_equal(&one, &other);
        self.cluster.assert_check_finds_nothing(NAME);
        let logs = self.hosts().map(|host| fs::read_to_string(host.log()));
        assert!(
            logs.into_iter().any(|log| log.unwrap().contains(FOUND_OUT)),
            "nobody found the restored brick out"
        );
        self.cluster.assert_logs_clean(&[Allowed {
            text: FOUND_OUT,
            why: "a brick was restored",
        }]);
    }
}

fn on_disk(host: &Host, words: &str) {
    let dir = host.dir.display().to_string();
    host.run(&words.replace("DIR", &dir), CLI_WITHIN).ok();
}

fn write(mount: &Mount, name: &str, text: &str) {
    let path = mount.join(name);
    fs::write(&path, text).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    File::open(mount.path()).unwrap().sync_all().unwrap();
}
