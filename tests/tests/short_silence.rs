//! A silence that is shorter than `network.ping-timeout` changes nothing: nobody is put out for it,
//! then or later, and a heal that it falls into goes on.

use std::fs;
use std::time::{Duration, Instant};

use tests::cluster::{Cluster, Host, VOLUME, wait_until};

/// The watch between two peers gives up earlier, the connections between them do not break.
const SILENT: Duration = Duration::from_millis(3_000);
/// A silence that has come out longer may put a copy out: on a machine that is that slow, the next
/// one is tried.
const TOO_LONG: Duration = Duration::from_millis(4_500);
const TRIES: usize = 10;
/// Twice the timeout: who would be put out for the silence is out by then.
const WATCHED: Duration = Duration::from_secs(10);
const WITHIN: Duration = Duration::from_secs(60);

/// Cuts the two off from each other for a while. Returns whether the silence was short.
fn short_silence(one: &Host, other: &Host) -> bool {
    let start = Instant::now();
    one.drop_between(other);
    std::thread::sleep(SILENT);
    one.drop_nothing();
    start.elapsed() < TOO_LONG
}

fn epoch(cluster: &Cluster) -> u64 {
    let volume = cluster.volume(VOLUME);
    volume.sets[0]
        .epoch
        .as_ref()
        .map_or(0, |epoch| epoch.number)
}

#[test]
fn nobody_is_put_out_for_a_short_silence() {
    let cluster = Cluster::three_peers();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    fs::write(mount.join("before"), "before").unwrap();
    for _ in 0..TRIES {
        let before = epoch(&cluster);
        let was_short = short_silence(cluster.primary(VOLUME), cluster.backup(VOLUME));
        let since = Instant::now();
        let mut writes = 0;
        while since.elapsed() < WATCHED {
            fs::write(mount.join("after"), writes.to_string()).unwrap();
            writes += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        if was_short {
            assert_eq!(
                epoch(&cluster),
                before,
                "a copy was put out that was silent for 3 s"
            );
            mount.unmount();
            cluster.assert_healed_and_equal();
            return cluster.assert_logs_clean(&[]);
        }
        cluster.wait_in_sync(VOLUME);
    }
    panic!("no silence was short enough on this machine");
}

#[test]
fn a_heal_goes_on_after_a_short_silence() {
    const FILES: usize = 400;
    let cluster = Cluster::three_peers();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let away = cluster.backup(VOLUME);
    away.kill_brickd();
    for number in 0..FILES {
        fs::write(mount.join(format!("file-{number}")), vec![b'x'; 64 << 10]).unwrap();
    }
    away.start_brickd();
    let brick = cluster.brick(&away.name);
    wait_until(WITHIN, "the heal has begun", || {
        brick.join("file-0").exists()
    });
    short_silence(cluster.primary(VOLUME), away);
    mount.unmount();
    cluster.assert_healed_and_equal();
    cluster.assert_logs_clean(&[]);
}
