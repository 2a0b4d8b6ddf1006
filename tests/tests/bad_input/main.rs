//! Bad input, each kind with its own test: one clear sentence, nothing left half-done.

mod bricks;
mod command_line;
mod port;
mod requests;
mod volumes;

use tests::cluster::Cluster;

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
