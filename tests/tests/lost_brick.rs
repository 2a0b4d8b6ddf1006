//! A brick's folder that is moved away, with another one or none at its place, under a running
//! brickd: the copy goes out by itself, applications go on, and `volume status` says why.

use std::fs;
use std::time::Duration;

use tests::cluster::{Allowed, Cluster, VOLUME, wait_until};
use tests::stall::StallMeter;

const NOTICED_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn a_brick_that_is_moved_away_under_brickd_is_out() {
    let cluster = Cluster::three_peers();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let meter = StallMeter::start(mount.path());
    for empty_one_instead in [true, false] {
        let host = cluster.primary(VOLUME);
        let brick = cluster.brick(&host.name);
        let away = brick.with_extension("away");
        fs::rename(&brick, &away).unwrap();
        if empty_one_instead {
            fs::create_dir(&brick).unwrap();
        }
        wait_until(NOTICED_WITHIN, "the other copy has taken over", || {
            cluster.primary(VOLUME).name != host.name
        });
        meter.wait_for_progress();
        let said = host.mortar(&format!("volume status {VOLUME}")).ok();
        assert!(said.contains("was deleted, moved or unmounted"), "{said}");
        host.kill_brickd();
        if empty_one_instead {
            fs::remove_dir(&brick).expect("nothing was written to the other folder");
        }
        fs::rename(&away, &brick).unwrap();
        host.start_brickd();
        cluster.wait_healed(VOLUME);
    }
    let stalls = meter.stop();
    assert!(stalls.errors.is_empty(), "{stalls:?}");
    cluster.assert_healed_and_equal();
    mount.unmount();
    cluster.assert_logs_clean(&[
        Allowed {
            text: "another folder or none is at the brick's place",
            why: "it was moved away",
        },
        Allowed {
            text: "was deleted, moved or unmounted",
            why: "it was moved away",
        },
        Allowed {
            text: "this copy is closed",
            why: "it was moved away",
        },
    ]);
}
