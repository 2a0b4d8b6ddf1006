//! `replica 3`: any copy may be lost in the middle of work, the primary too, and all three are
//! equal afterwards.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tests::cluster::{Cluster, assert_bricks_equal};

const NAME: &str = "v03";
const WRITERS: usize = 4;

#[test]
fn three_copies_are_equal_after_each_of_them_was_killed() {
    let cluster = Cluster::three_peers();
    let hosts = ["gfs01", "gfs02", "gfs03"];
    let bricks: Vec<PathBuf> = hosts.map(|host| cluster.folder(host).join("third")).into();
    let specs: Vec<String> = hosts
        .iter()
        .zip(&bricks)
        .map(|(host, path)| format!("{host}:{}", path.display()))
        .collect();
    cluster
        .mortar(
            "gfs01",
            &format!("volume create {NAME} replica 3 {} force", specs.join(" ")),
        )
        .ok();
    cluster
        .mortar("gfs01", &format!("volume start {NAME}"))
        .ok();
    let mount = cluster.mount("client", &format!("gfs01,gfs02,gfs03:/{NAME}"), "");
    let stop = AtomicBool::new(false);
    let written: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let (stop, folder) = (&stop, mount.join(format!("writer{number}")));
                scope.spawn(move || write_until(stop, &folder))
            })
            .collect();
        for host in hosts {
            std::thread::sleep(Duration::from_millis(500));
            cluster.host(host).kill_brickd();
            std::thread::sleep(Duration::from_secs(1));
            cluster.host(host).start_brickd();
            cluster.wait_in_sync(NAME);
        }
        stop.store(true, Ordering::Relaxed);
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect()
    });
    for (number, records) in written.into_iter().enumerate() {
        assert!(records > 10, "writer {number} made only {records} records");
        for record in 0..records {
            let path = mount.join(format!("writer{number}/{record}"));
            assert_eq!(fs::read_to_string(path).unwrap(), record.to_string());
        }
    }
    mount.unmount();
    cluster.wait_healed(NAME);
    assert_bricks_equal(&bricks[0], &bricks[1]);
    assert_bricks_equal(&bricks[0], &bricks[2]);
    cluster.assert_check_finds_nothing(NAME);
    cluster.assert_logs_clean(&[]);
}

/// Makes, fsyncs and counts files until it is told to stop; an error of any is the test's.
fn write_until(stop: &AtomicBool, folder: &Path) -> u64 {
    fs::create_dir(folder).unwrap();
    let mut records = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut file = fs::File::create(folder.join(records.to_string())).unwrap();
        write!(file, "{records}").unwrap();
        file.sync_all().unwrap();
        records += 1;
    }
    records
}
