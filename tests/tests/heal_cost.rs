//! What a heal costs: in proportion to what changed, measured on the returning host's cable.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use tests::cluster::{Cluster, VOLUME, wait_until};
use tests::{report, scale};

const MIB: u64 = 1 << 20;
const PLACES: u64 = 5;
const PIECE: usize = 4096;
/// For each changed file: its bytes twice (read ahead, resent), names, attributes, frames.
const PER_FILE: u64 = 4 * 4096;
/// For each changed place of a big file: the block that a mark covers, with room.
const PER_PLACE: u64 = MIB + MIB / 2;
/// Beacons, views, registry, the comparison of histories.
const STANDING: u64 = 4 * MIB;

fn write_big(path: &Path, bytes: u64) {
    let mut file = File::create(path).unwrap();
    let block: Vec<u8> = (0..MIB as usize).map(|at| (at * 7 % 251) as u8).collect();
    for _ in 0..bytes / MIB {
        file.write_all(&block).unwrap();
    }
    file.sync_all().unwrap();
}

/// Waits until both copies have noted that all that was written until now is durable: they do so
/// when nothing has changed for three seconds.
fn wait_durable(cluster: &Cluster) {
    let quiet = SystemTime::now() + Duration::from_secs(2);
    wait_until(Duration::from_secs(60), "both copies have synced", || {
        ["gfs01", "gfs02"].iter().all(|host| {
            let noted = cluster.brick(host).join(".mortar/volume");
            fs::metadata(noted).unwrap().modified().unwrap() > quiet
        })
    });
}

#[test]
fn a_heal_moves_what_changed_and_not_the_tree() {
    let (files, changed, big) = scale::pick((2_000, 50, 256 * MIB), (10_000, 100, 1024 * MIB));
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01:/v01", "");
    for number in 0..files {
        let folder = mount.join(format!("d{}", number % 20));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("f{number}")), [b'x'; PIECE]).unwrap();
    }
    write_big(&mount.join("big"), big);
    cluster.wait_in_sync(VOLUME);
    wait_durable(&cluster);

    cluster.host("gfs02").kill_brickd();
    for number in 0..changed {
        let number = number * (files / changed);
        let file = mount.join(format!("d{}/f{number}", number % 20));
        fs::write(file, format!("{number:>4096}")).unwrap();
    }
    let file = File::options().write(true).open(mount.join("big")).unwrap();
    for place in 0..PLACES {
        file.write_all_at(&[b'!'; PIECE], place * (big / PLACES) + 12_345)
            .unwrap();
    }
    file.sync_all().unwrap();
    drop(file);

    let (before, _) = cluster.host("gfs02").network_bytes();
    let start = Instant::now();
    cluster.host("gfs02").start_brickd();
    cluster.wait_healed(VOLUME);
    let took = start.elapsed();
    let (after, _) = cluster.host("gfs02").network_bytes();
    let moved = after - before;
    let limit = changed * PER_FILE + PLACES * PER_PLACE + STANDING;
    report::say(&format!(
        "heal of {changed} of {files} files and {PLACES} places in {} MiB: {moved} bytes received \
         by the returning host in {} ms (limit {limit})",
        big / MIB,
        took.as_millis()
    ));
    cluster.assert_healed_and_equal();
    assert!(moved < limit, "{moved} bytes moved, more than {limit}");
}

#[test]
fn new_files_heal_in_less_than_ten_seconds() {
    const FILES: usize = 1000;
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01:/v01", "");
    cluster.host("gfs02").kill_brickd();
    for number in 0..FILES {
        fs::write(mount.join(format!("f{number}")), format!("{number}")).unwrap();
    }
    write_big(&mount.join("big"), 200 * MIB);
    let start = Instant::now();
    cluster.host("gfs02").start_brickd();
    cluster.wait_healed(VOLUME);
    let took = start.elapsed();
    report::say(&format!(
        "heal of {FILES} new files and 200 MiB: {} ms",
        took.as_millis()
    ));
    let limit = scale::build_time(Duration::from_secs(10));
    assert!(took < limit, "the heal took {took:?}, more than {limit:?}");
    cluster.assert_healed_and_equal();
}

#[test]
fn a_heal_that_is_interrupted_goes_on_under_live_writes() {
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01:/v01", "");
    write_big(&mount.join("live"), 8 * MIB);
    cluster.host("gfs02").kill_brickd();
    for number in 0..300 {
        fs::write(
            mount.join(format!("f{number}")),
            vec![number as u8; 64 << 10],
        )
        .unwrap();
    }
    let mut live = File::options()
        .write(true)
        .open(mount.join("live"))
        .unwrap();
    for round in 0..3u64 {
        cluster.host("gfs02").start_brickd();
        for step in 0..20u64 {
            live.seek(SeekFrom::Start((round * 20 + step) * 100_003))
                .unwrap();
            live.write_all(&[round as u8; 10_000]).unwrap();
            fs::rename(
                mount.join(format!("f{}", round * 20 + step)),
                mount.join(format!("moved-{}", round * 20 + step)),
            )
            .unwrap();
        }
        cluster.host("gfs02").kill_brickd();
    }
    cluster.host("gfs02").start_brickd();
    drop(live);
    cluster.assert_healed_and_equal();
}
