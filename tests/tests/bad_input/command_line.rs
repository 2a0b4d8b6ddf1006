//! Words, options and folders that the commands are given.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tests::cluster::{PORT, run};

use super::*;

const SOON: Duration = Duration::from_secs(20);

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
