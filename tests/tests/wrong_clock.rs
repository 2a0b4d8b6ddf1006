//! A host whose time of day is three hours off: nothing that keeps copies together goes by it, and
//! the times of files never run backwards over a failover.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tests::cluster::{Cluster, Mount, VOLUME, wait_until};
use tests::stall::StallMeter;

const OFF: Duration = Duration::from_secs(3 * 3600);
const WITHIN: Duration = Duration::from_secs(60);
/// A test on a slow machine takes less than this.
const SLACK: Duration = Duration::from_secs(600);

fn now_ns() -> i128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos() as i128
}

fn mtime_ns(path: &Path) -> i128 {
    let meta = fs::metadata(path).unwrap();
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

/// Writes a file, and says when that was by its own word.
fn write(mount: &Mount, name: &str) -> i128 {
    let path = mount.join(name);
    fs::write(&path, name).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    mtime_ns(&path)
}

fn assert_off_by(time_ns: i128, off_s: i128, what: &str) {
    let away = (time_ns - now_ns()) / 1_000_000_000 - off_s;
    assert!(
        away.unsigned_abs() < u128::from(SLACK.as_secs()),
        "{what}: {away} s away"
    );
}

/// Three peers of which gfs01's clock is off, with gfs01 as the primary.
fn cluster(off: &str) -> Cluster {
    let cluster = Cluster::new(&["gfs01", "gfs02", "gfs03", "client"]);
    cluster.host("gfs01").set_clock(off);
    cluster.found(&["gfs01", "gfs02", "gfs03"], 2);
    if cluster.primary(VOLUME).name != "gfs01" {
        cluster.host("gfs02").kill_brickd();
        wait_until(WITHIN, "gfs01 is the primary", || {
            cluster.primary(VOLUME).name == "gfs01"
        });
        cluster.host("gfs02").start_brickd();
        cluster.wait_healed(VOLUME);
    }
    cluster
}

#[test]
fn a_primary_that_is_three_hours_ahead_is_followed_by_one_that_is_not() {
    let cluster = cluster("+3h");
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let meter = StallMeter::start(mount.path());
    let ahead = write(&mount, "source.c");
    assert_off_by(
        ahead,
        OFF.as_secs() as i128,
        "gfs01 stamps by its own clock",
    );
    cluster.host("gfs01").kill_brickd();
    meter.wait_for_progress();
    // As `make` looks at them: what is made later is newer, also by another host's clock.
    let (object, program) = (write(&mount, "source.o"), write(&mount, "program"));
    assert!(
        ahead < object && object < program,
        "{ahead} {object} {program}"
    );
    assert_off_by(
        object,
        OFF.as_secs() as i128,
        "gfs02 goes on behind what gfs01 has stamped",
    );
    cluster.host("gfs01").start_brickd();
    cluster.wait_healed(VOLUME);
    let later = write(&mount, "later");
    assert!(program < later);
    let stalls = meter.stop();
    assert!(stalls.errors.is_empty(), "{stalls:?}");
    cluster.assert_healed_and_equal();

    // When all have started anew nobody remembers: then it is as a local clock that is set right.
    for name in ["gfs01", "gfs02"] {
        cluster.host(name).set_clock("");
        cluster.host(name).stop_brickd();
    }
    for name in ["gfs01", "gfs02"] {
        cluster.host(name).start_brickd();
    }
    cluster.wait_healed(VOLUME);
    assert_off_by(write(&mount, "right again"), 0, "the right time is back");
    assert_eq!(
        mtime_ns(&mount.join("later")),
        later,
        "what was stamped stays"
    );
    cluster.assert_healed_and_equal();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

#[test]
fn a_primary_that_is_three_hours_behind_is_followed_by_one_that_is_not() {
    let cluster = cluster("-3h");
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let meter = StallMeter::start(mount.path());
    let behind = write(&mount, "source.c");
    assert_off_by(
        behind,
        -(OFF.as_secs() as i128),
        "gfs01 stamps by its own clock",
    );
    cluster.host("gfs01").kill_brickd();
    meter.wait_for_progress();
    let right = write(&mount, "source.o");
    assert_off_by(right, 0, "gfs02 stamps by its own clock");
    cluster.host("gfs01").start_brickd();
    cluster.wait_healed(VOLUME);
    // Back at the host that is behind: it has seen later times, and goes on behind them.
    cluster.host("gfs02").kill_brickd();
    meter.wait_for_progress();
    let after = write(&mount, "program");
    assert!(right < after, "{right} {after}");
    cluster.host("gfs02").start_brickd();
    let stalls = meter.stop();
    assert!(stalls.errors.is_empty(), "{stalls:?}");
    cluster.assert_healed_and_equal();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}
