//! Requests that no client of ours sends: slots, late copies, names.

use std::fs;
use std::time::Duration;

use mortar_proto::SLOTS_PER_SESSION;
use tests::cluster::{VOLUME, wait_until};
use tests::frames::{RawClient, backup_of, primary_of};

use super::*;

const FAILOVER_WITHIN: Duration = Duration::from_secs(30);

/// Every slot that a client may use remembers its last result, so that a change that comes twice is
/// made once; one beyond them would not, and is refused.
#[test]
fn every_slot_of_a_session_remembers_and_there_are_no_more() {
    let cluster = Cluster::two_hosts();
    let volume = cluster.volume(VOLUME);
    let host = cluster.primary(VOLUME);
    let mut client = RawClient::open(host, &volume);
    for slot in [1, 63, 64, SLOTS_PER_SESSION - 1] {
        let name = format!("in-slot-{slot}");
        let twice = [1, 2].map(|_| client.create_as((slot, 1), name.as_bytes()));
        assert_eq!(twice, [Some(0), Some(0)], "slot {slot}");
    }
    let beyond = (SLOTS_PER_SESSION, 1);
    assert_eq!(client.create_as(beyond, b"in no slot"), None);
    assert!(!cluster.brick("gfs01").join("in no slot").exists());
}

/// A client was told EEXIST; a copy of that request which comes late, when the name is free, makes
/// no file: neither at the primary that refused it nor, after a failover, at the next one.
#[test]
fn a_late_copy_of_a_refused_request_changes_nothing() {
    let cluster = Cluster::two_hosts();
    let volume = cluster.volume(VOLUME);
    let primary = cluster.primary(VOLUME);
    let mut client = RawClient::open(primary, &volume);
    assert_eq!(client.create_as((1, 1), b"name"), Some(0));
    // The copy that is answered is not the first: that one is still on its way.
    let mut again = client.beside(primary, &volume, primary_of(&volume));
    again.say_again();
    assert_eq!(again.create_as((2, 1), b"name"), Some(libc::EEXIST));
    assert_eq!(client.unlink_as((1, 2), b"name"), Some(0));
    assert_eq!(client.create_as((2, 1), b"name"), Some(libc::EEXIST));
    let survivor = cluster.backup(VOLUME);
    let mut late = client.beside(survivor, &volume, backup_of(&volume));
    primary.kill_brickd();
    let mut answer = None;
    wait_until(FAILOVER_WITHIN, "the survivor answers", || {
        answer = late.create_as((2, 1), b"name");
        answer.is_some()
    });
    assert_eq!(answer, Some(libc::EEXIST));
    assert!(!cluster.brick(&survivor.name).join("name").exists());
    // The slot goes on as ever.
    assert_eq!(late.create_as((2, 2), b"name"), Some(0));
}

#[test]
fn names_on_the_wire_that_no_kernel_sends() {
    let cluster = Cluster::one_host();
    let host = cluster.host("gfs01");
    let volume = cluster.volume(VOLUME);
    let around = || fs::read_dir(host.dir.join("glusterfs")).unwrap().count();
    let before = around();
    let longest = [b'n'; 256];
    let names: [&[u8]; 9] = [
        b"",
        b".",
        b"..",
        b"a/b",
        b"../escaped",
        b"/etc/x",
        b"nul\0nul",
        b".mortar",
        &longest,
    ];
    for name in names {
        let mut client = RawClient::open(host, &volume);
        let errno = client.create(name);
        assert_ne!(
            errno,
            Some(0),
            "{:?} was made",
            String::from_utf8_lossy(name)
        );
    }
    let mut client = RawClient::open(host, &volume);
    assert_eq!(client.create(b"good"), Some(0));
    assert!(client.is_served());
    assert_eq!(around(), before);
    let names = fs::read_dir(cluster.brick("gfs01"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name());
    assert!(
        names
            .into_iter()
            .all(|name| name == ".mortar" || name == "good")
    );
}
