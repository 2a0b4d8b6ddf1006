//! A network that was silent for long is used again as soon as it is back: the kernel would send
//! what was not acknowledged at ever longer intervals, and next after half a minute.

use std::fs;
use std::time::{Duration, Instant};

use tests::cluster::{Cluster, VOLUME, wait_until};
use tests::report::say;

/// A connection that stays sends again 25 and 51 seconds after its first loss.
const SILENT: Duration = Duration::from_secs(28);
/// Less than that leaves, with time for a loaded machine.
const HEALED_WITHIN: Duration = Duration::from_secs(15);
const NOTICED_WITHIN: Duration = Duration::from_secs(25);

#[test]
fn a_copy_that_was_cut_off_for_long_is_healed_at_once() {
    let cluster = Cluster::three_peers();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    fs::write(mount.join("before"), "before").unwrap();
    let (primary, backup) = (cluster.primary(VOLUME), cluster.backup(VOLUME));
    let cut = Instant::now();
    // Where they arrive: what is dropped where it leaves is sent again soon.
    primary.drop_from(backup);
    backup.drop_from(primary);
    wait_until(NOTICED_WITHIN, "the backup is put out", || {
        let volume = cluster.volume(VOLUME);
        let epoch = volume.sets[0].epoch.as_ref();
        epoch.is_some_and(|epoch| epoch.in_sync.len() == 1)
    });
    fs::write(mount.join("meanwhile"), "meanwhile").unwrap();
    std::thread::sleep(SILENT.saturating_sub(cut.elapsed()));
    assert!(primary.dropped_packets() > 0 && backup.dropped_packets() > 0);
    primary.drop_nothing();
    backup.drop_nothing();
    let mended = Instant::now();
    cluster.wait_in_sync(VOLUME);
    let took = mended.elapsed();
    say(&format!("in sync {took:.1?} after the network was back"));
    assert!(took < HEALED_WITHIN, "in sync only after {took:.1?}");
    mount.unmount();
    cluster.assert_healed_and_equal();
    cluster.assert_logs_clean(&[]);
}
