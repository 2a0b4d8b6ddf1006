//! A client that cannot reach the primary, but another brick of the set, is served through that one:
//! nobody fails over, and nothing is lost.

use std::fs::{self, File};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tests::cluster::{Cluster, VOLUME, wait_until};
use tests::stall::StallMeter;

/// The promise for a host that is cut off.
const LIMIT: Duration = Duration::from_secs(10);
/// Longer than a session lives that is not heard.
const SILENCE: Duration = Duration::from_secs(9);
const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_client_cut_off_from_the_primary_goes_on_through_the_backup() {
    let cluster = Cluster::three_peers();
    let client = cluster.host("client");
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let other = cluster.mount("gfs03", "gfs01,gfs02:/v01", "");
    let locked = File::create(mount.join("locked")).unwrap();
    flock(&locked, FlockOperation::LockExclusive).unwrap();
    let primary = cluster.primary(VOLUME);
    let epoch = || cluster.volume(VOLUME).sets[0].epoch.clone().unwrap();
    let before = epoch();
    let meter = StallMeter::start(mount.path());
    meter.wait_for_progress();

    client.drop_between(primary);
    meter.wait_for_progress();
    let log = client.dir.join("log/mount-1.log");
    let says = |words: &str| fs::read_to_string(&log).unwrap().contains(words);
    let around = says("is asked through");
    assert!(around, "the client reaches the primary itself");
    // A mount that is made now comes through the backup too.
    let third = cluster.mount("client", "gfs01,gfs02:/v01", "");
    fs::write(third.join("third"), "x").unwrap();
    third.unmount();
    std::thread::sleep(SILENCE);
    let of_other = File::open(other.join("locked")).unwrap();
    let refused = flock(&of_other, FlockOperation::NonBlockingLockExclusive);
    drop(of_other);
    assert_eq!(refused, Err(Errno::WOULDBLOCK), "the lock is lost");
    assert_eq!(epoch(), before, "the set failed over");

    client.drop_nothing();
    wait_until(SOON, "the primary is asked itself again", || {
        says("can be reached again")
    });
    meter.wait_for_progress();
    let stalls = meter.stop();
    stalls.assert_below(LIMIT, "three peers, client cut off from the primary alone");
    flock(&locked, FlockOperation::Unlock).unwrap();
    drop(locked);
    cluster.assert_healed_and_equal();
    other.unmount();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}
