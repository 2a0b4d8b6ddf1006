//! Bad input, each kind with its own test: one clear sentence, nothing left half-done.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mortar_proto::SLOTS_PER_SESSION;
use mortar_proto::data::Hello;
use mortar_proto::frame::{HEADER_BYTES_MAX, Kind, MAGIC, PAYLOAD_BYTES_MAX, PREAMBLE_BYTES, send};
use tests::cluster::{Cluster, Host, PORT, VOLUME, run, wait_until};
use tests::frames::{RawClient, backup_of, client_hello, hello, primary_of};

const SOON: Duration = Duration::from_secs(20);
/// A peer that says nonsense is told apart from a slow one within this time.
const CLOSED_WITHIN: Duration = Duration::from_secs(30);

const FAILOVER_WITHIN: Duration = Duration::from_secs(30);

/// One brickd in a pool of its own, without a volume.
fn alone() -> Cluster {
    let cluster = Cluster::new(&["gfs01", "gfs02", "client"]);
    cluster.host("gfs01").start_brickd();
    cluster
}

/// `volume create v02 …` with these bricks is refused, says `because`, and leaves no volume.
fn create_is_refused(cluster: &Cluster, words: &str, because: &str) {
    let host = cluster.host("gfs01");
    let said = host.mortar(&format!("volume create v02 {words}")).refused();
    let lower = said.to_lowercase();
    assert!(lower.contains(because), "'{because}' is not said: {said}");
    let volumes = host.mortar("volume list").said();
    assert!(
        !volumes.contains("v02"),
        "a refused volume is listed: {volumes}"
    );
}

#[test]
fn a_brick_path_that_is_relative() {
    create_is_refused(&alone(), "gfs01:relative/path force", "abs-path");
}

#[test]
fn a_brick_nested_in_another() {
    let cluster = Cluster::one_host();
    let nested = cluster
        .host("gfs01")
        .brick_spec("glusterfs/distributed/nested");
    create_is_refused(
        &cluster,
        &format!("{nested} force"),
        "contained by an existing brick",
    );
    let left = fs::read_dir(cluster.brick("gfs01")).unwrap().flatten();
    assert!(
        left.map(|entry| entry.file_name())
            .all(|name| name == ".mortar" || name == "nested")
    );
}

#[test]
fn a_brick_around_another() {
    let cluster = Cluster::one_host();
    let around = cluster.host("gfs01").brick_spec("glusterfs");
    create_is_refused(
        &cluster,
        &format!("{around} force"),
        "contained by an existing brick",
    );
}

#[test]
fn a_brick_that_is_used_already() {
    let cluster = Cluster::one_host();
    let used = cluster.host("gfs01").brick_spec("glusterfs/distributed");
    create_is_refused(
        &cluster,
        &format!("{used} force"),
        "already part of a volume",
    );
}

#[test]
fn a_brick_twice_in_one_volume() {
    let cluster = alone();
    let brick = cluster.host("gfs01").brick_spec("bricks/one");
    create_is_refused(
        &cluster,
        &format!("replica 2 {brick} {brick} force"),
        "brick",
    );
    assert!(!cluster.host("gfs01").brick("bricks/one/.mortar").exists());
}

#[test]
fn a_brick_that_is_a_file() {
    let cluster = alone();
    let brick = cluster.host("gfs01").brick_spec("bricks/file");
    fs::write(cluster.host("gfs01").brick("bricks/file"), "x").unwrap();
    create_is_refused(&cluster, &format!("{brick} force"), "director");
}

#[test]
fn a_brick_on_a_read_only_disk() {
    let cluster = alone();
    let host = cluster.host("gfs01");
    let brick = host.small_disk(64, "ro");
    create_is_refused(&cluster, &format!("{brick} force"), "read-only");
}

#[test]
fn a_brick_on_a_full_disk() {
    let cluster = alone();
    let host = cluster.host("gfs01");
    let brick = host.small_disk(64, "rw");
    create_is_refused(&cluster, &format!("{brick} force"), "space");
}

#[test]
fn a_brick_on_an_unknown_host() {
    let cluster = alone();
    create_is_refused(&cluster, "nowhere:/bricks/one force", "nowhere");
    // It resolves and runs nothing: still no peer.
    create_is_refused(&cluster, "gfs02:/bricks/one force", "gfs02");
}

#[test]
fn an_odd_count_of_bricks() {
    let cluster = alone();
    let host = cluster.host("gfs01");
    let bricks: Vec<String> = (0..3)
        .map(|number| host.brick_spec(&format!("bricks/b{number}")))
        .collect();
    create_is_refused(
        &cluster,
        &format!("replica 2 {} force", bricks.join(" ")),
        "multiple",
    );
    create_is_refused(&cluster, "replica 2 force", "");
    create_is_refused(&cluster, &format!("replica 0 {} force", bricks[0]), "");
    create_is_refused(&cluster, &format!("replica two {} force", bricks[0]), "");
    assert!((0..3).all(|number| {
        !host
            .brick(&format!("bricks/b{number}"))
            .join(".mortar")
            .exists()
    }));
}

#[test]
fn names_of_volumes() {
    let cluster = alone();
    let host = cluster.host("gfs01");
    let brick = host.brick_spec("bricks/one");
    let longest = "v".repeat(300);
    let names: [&[u8]; 8] = [
        b"",
        longest.as_bytes(),
        b"a/b",
        b"..",
        b"-rf",
        b"new\nline",
        b"\xff\xfe",
        b"all",
    ];
    for name in names {
        let words: [&OsStr; 5] = [
            OsStr::new("volume"),
            OsStr::new("create"),
            OsStr::from_bytes(name),
            OsStr::new(&brick),
            OsStr::new("force"),
        ];
        host.mortar_words(&words).refused();
    }
    assert!(
        !host.brick("bricks/one/.mortar").exists(),
        "a refused volume left its brick behind"
    );
    let listed = host.mortar("volume list").said();
    assert!(listed.contains("No volumes present"), "{listed}");
}

#[test]
fn a_started_volume_is_not_deleted() {
    let cluster = Cluster::one_host();
    let said = cluster.mortar("gfs01", "volume delete v01").refused();
    assert!(
        said.contains("needs to be stopped before deletion"),
        "{said}"
    );
    let mount = cluster.mount("client", "gfs01:/v01", "");
    fs::write(mount.join("a"), "a").unwrap();
    let twice = cluster.mortar("gfs01", "volume start v01").refused();
    assert!(twice.contains("already started"), "{twice}");
}

#[test]
fn an_absent_volume() {
    let cluster = alone();
    for words in [
        "volume start no",
        "volume stop no",
        "volume delete no",
        "volume info no",
    ] {
        let said = cluster.mortar("gfs01", words).refused();
        assert!(
            said.contains("Volume no does not exist"),
            "`{words}`: {said}"
        );
    }
    let mount = cluster.host("client").try_mount("gfs01:/no", "");
    let said = mount.err().expect("there is no such volume").refused();
    assert!(said.contains("no") && said.contains("exist"), "{said}");
}

#[test]
fn a_stopped_volume_is_not_mounted() {
    let cluster = Cluster::one_host();
    cluster.mortar("gfs01", "volume stop v01").ok();
    let mount = cluster.host("client").try_mount("gfs01:/v01", "");
    let said = mount.err().expect("the volume is stopped").refused();
    assert!(said.contains("v01") && said.contains("start"), "{said}");
    cluster.mortar("gfs01", "volume delete v01").ok();
}

#[test]
fn mounts_of_nonsense() {
    let cluster = Cluster::one_host();
    let client = cluster.host("client");
    for source in [
        "",
        "gfs01",
        "gfs01:",
        "gfs01:/",
        ":/v01",
        "gfs01:v01/../x",
        "nowhere:/v01",
    ] {
        let mount = client.try_mount(source, "");
        mount
            .err()
            .unwrap_or_else(|| panic!("'{source}' was mounted"))
            .refused();
    }
    let options = client.try_mount("gfs01:/v01", "attribute-timeout=soon");
    assert!(
        options
            .err()
            .expect("no number")
            .refused()
            .contains("attribute-timeout")
    );
}

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

/// brickd still serves after what was done to it.
fn still_serves(cluster: &Cluster) {
    let mount = cluster.mount("client", "gfs01:/v01", "");
    fs::write(mount.join("served"), "yes").unwrap();
    assert_eq!(fs::read_to_string(mount.join("served")).unwrap(), "yes");
    cluster.mortar("gfs01", "volume info v01").ok();
}

/// Sends bytes to brickd's port; the connection must be closed by it, whatever it says before.
fn is_closed_after(host: &Host, bytes: &[u8]) {
    let mut stream = host.connect(SOON).unwrap();
    stream.set_read_timeout(Some(CLOSED_WITHIN)).unwrap();
    // It may close while this still writes.
    let _ = stream.write_all(bytes);
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) => assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset,
            "not closed"
        ),
    }
}

fn greeting(cluster: &Cluster) -> Hello {
    let volume = cluster.volume(VOLUME);
    client_hello(&volume, primary_of(&volume), 4711)
}

#[test]
fn garbage_on_the_port() {
    let cluster = Cluster::one_host();
    let host = cluster.host("gfs01");
    is_closed_after(host, b"GET / HTTP/1.1\r\nHost: gfs01\r\n\r\n");
    is_closed_after(host, &[0xff; 4096]);
    is_closed_after(host, b"MRTX0000000000000000");
    let random: Vec<u8> = (0..100_000).map(|_| rand::random()).collect();
    is_closed_after(host, &random);
    still_serves(&cluster);
}

/// A connection that began as one of ours and says no more held a thread for ever: what had come
/// was looked at again and again, which no read timeout ends.
#[test]
fn a_connection_that_stops_after_its_first_byte() {
    let cluster = Cluster::one_host();
    let host = cluster.host("gfs01");
    is_closed_after(host, b"M");
    is_closed_after(host, b"PRI");
    still_serves(&cluster);
}

#[test]
fn frames_that_are_too_large_torn_or_altered() {
    let cluster = Cluster::one_host();
    let host = cluster.host("gfs01");
    let preamble = |header: u32, payload: u32| {
        let mut bytes = [0u8; PREAMBLE_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = mortar_proto::WIRE_VERSION as u8;
        bytes[5] = Kind::Hello as u8;
        bytes[8..12].copy_from_slice(&header.to_le_bytes());
        bytes[12..16].copy_from_slice(&payload.to_le_bytes());
        bytes
    };
    is_closed_after(host, &preamble(u32::MAX, u32::MAX));
    is_closed_after(host, &preamble(HEADER_BYTES_MAX as u32 + 1, 0));
    is_closed_after(host, &preamble(0, PAYLOAD_BYTES_MAX as u32 + 1));
    let mut good = Vec::new();
    send(&mut good, Kind::Hello, &greeting(&cluster), &[]).unwrap();
    let mut altered = good.clone();
    *altered.last_mut().unwrap() ^= 1;
    is_closed_after(host, &altered);
    let mut torn = host.connect(SOON).unwrap();
    torn.write_all(&good[..good.len() / 2]).unwrap();
    drop(torn);
    still_serves(&cluster);
}

#[test]
fn a_hundred_connections_that_say_nothing_hold_nobody_up() {
    let cluster = Cluster::one_host();
    let host = cluster.host("gfs01");
    let silent: Vec<TcpStream> = (0..100).map(|_| host.connect(SOON).unwrap()).collect();
    still_serves(&cluster);
    drop(silent);
}

#[test]
fn a_client_of_another_wire_version() {
    let cluster = Cluster::one_host();
    let host = cluster.host("gfs01");
    for version in [0, mortar_proto::WIRE_VERSION + 1, u32::MAX] {
        let stream = host.connect(SOON).unwrap();
        let other = Hello {
            wire_version: version,
            ..greeting(&cluster)
        };
        if let Ok(answer) = hello(&stream, &other) {
            assert!(
                answer.refusal.contains("version"),
                "version {version}: {answer:?}"
            );
        }
    }
    let mut newer = Vec::new();
    send(&mut newer, Kind::Hello, &greeting(&cluster), &[]).unwrap();
    newer[4] += 1;
    is_closed_after(host, &newer);
    still_serves(&cluster);
}

#[test]
fn a_greeting_for_a_brick_or_volume_that_is_not_here() {
    let cluster = Cluster::one_host();
    let host = cluster.host("gfs01");
    let good = greeting(&cluster);
    let wrong = [
        Hello {
            to_brick: good.to_brick ^ 1,
            ..good.clone()
        },
        Hello {
            volume: vec![7; 16].into(),
            ..good.clone()
        },
        Hello {
            volume: vec![7; 3].into(),
            ..good.clone()
        },
        Hello {
            role: 99,
            ..good.clone()
        },
    ];
    for one in wrong {
        let stream = host.connect(SOON).unwrap();
        if let Ok(answer) = hello(&stream, &one) {
            assert!(!answer.refusal.is_empty(), "accepted: {one:?}");
        }
    }
    still_serves(&cluster);
}

/// Something that is no brickd on gfs02's port while `work` runs: it says `greeting`, then
/// swallows what comes.
fn beside_a_stranger(cluster: &Cluster, greeting: &[u8], work: impl FnOnce()) {
    let host = cluster.host("gfs02");
    let address = SocketAddr::from((host.address, PORT));
    let listener = host.in_network(|| TcpListener::bind(address)).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut open = Vec::new();
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let mut stream = stream.unwrap();
                let _ = stream.write_all(greeting);
                open.push(stream);
            }
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        // Wakes the listener.
        drop(host.in_network(|| TcpStream::connect(address)));
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_port_that_talks_something_else() {
    let cluster = alone();
    for greeting in [
        b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n".as_slice(),
        b"",
        &[0xff; 64],
    ] {
        beside_a_stranger(&cluster, greeting, || {
            let said = cluster.mortar("gfs01", "peer probe gfs02").refused();
            assert!(said.contains("peer probe: failed: "), "{said}");
            let mount = cluster.host("client").try_mount("gfs02:/v01", "");
            mount.err().expect("nothing to mount").refused();
        });
    }
    let status = cluster.mortar("gfs01", "peer status").ok();
    assert!(status.contains("Number of Peers: 0"), "{status}");
}

#[test]
fn probes_that_cannot_succeed() {
    let cluster = Cluster::new(&["gfs01", "gfs02", "other01", "other02"]);
    for host in ["gfs01", "other01", "other02"] {
        cluster.host(host).start_brickd();
    }
    let probe = |from: &str, host: &str| cluster.mortar(from, &format!("peer probe {host}"));
    probe("gfs01", "nowhere.invalid").refused();
    // It resolves, and nothing listens there.
    assert!(
        probe("gfs01", "gfs02")
            .refused()
            .contains("peer probe: failed")
    );
    let local = probe("gfs01", "gfs01").ok();
    assert!(local.contains("Probe on localhost not needed"), "{local}");
    probe("other01", "other02").ok();
    let foreign = probe("gfs01", "other01").refused();
    assert!(foreign.contains("part of another cluster"), "{foreign}");
    let again = probe("other01", "other02").ok();
    assert!(again.contains("already in peer list"), "{again}");
    let itself = cluster.mortar("gfs01", "peer detach gfs01").refused();
    assert!(itself.contains("localhost"), "{itself}");
    let stranger = cluster.mortar("gfs01", "peer detach gfs02").refused();
    assert!(stranger.contains("not part of cluster"), "{stranger}");
}

#[test]
fn words_that_the_cli_does_not_know() {
    let cluster = alone();
    for words in [
        "volume",
        "volume frobnicate v01",
        "peer probe",
        "volume set v01",
        "--mode=wild volume list",
    ] {
        cluster.mortar("gfs01", words).refused();
    }
    let nobody = cluster.mortar("gfs02", "volume list").refused();
    assert!(nobody.contains("Connection failed"), "{nobody}");
}

#[test]
fn options_that_do_not_exist_or_are_out_of_range() {
    let cluster = Cluster::one_host();
    let unknown = cluster
        .mortar("gfs01", "volume set v01 network.pong-timeout 5")
        .refused();
    assert!(unknown.contains("does not exist"), "{unknown}");
    for value in ["soon", "-1", "99999999999999999999", ""] {
        let words = ["volume", "set", "v01", "network.ping-timeout", value];
        cluster.host("gfs01").mortar_words(&words).refused();
    }
}

#[test]
fn a_data_directory_that_cannot_be_used() {
    let cluster = Cluster::new(&["gfs01"]);
    let host = cluster.host("gfs01");
    fs::write(host.data_dir(), "a file").unwrap();
    let said = run(host.brickd_command(), SOON).refused();
    assert!(said.contains(host.data_dir().to_str().unwrap()), "{said}");
    fs::remove_file(host.data_dir()).unwrap();

    let taken = host
        .in_network(|| TcpListener::bind(SocketAddr::from((host.address, PORT))))
        .unwrap();
    let said = run(host.brickd_command(), SOON).refused();
    assert!(
        said.contains(&PORT.to_string()),
        "which address is taken is not said: {said}"
    );
    drop(taken);
}
