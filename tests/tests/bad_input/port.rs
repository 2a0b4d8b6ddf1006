//! What comes to the port, and from a port, that is not what should.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mortar_proto::data::Hello;
use mortar_proto::frame::{HEADER_BYTES_MAX, Kind, MAGIC, PAYLOAD_BYTES_MAX, PREAMBLE_BYTES, send};
use tests::cluster::{Host, PORT, VOLUME};
use tests::frames::{client_hello, hello, primary_of};

use super::*;

const SOON: Duration = Duration::from_secs(20);
/// A peer that says nonsense is told apart from a slow one within this time.
const CLOSED_WITHIN: Duration = Duration::from_secs(30);

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
