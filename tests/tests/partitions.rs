//! Promise 2, by trying: with three voters there is no split-brain, whichever links are cut.
//!
//! Between three peers there are six one-way links, so 63 ways to cut some of them. In each, a
//! client on every peer goes on taking tickets ([`Tickets`]); afterwards no ticket was given twice,
//! none is missing, and both bricks are equal.

use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use tests::cluster::{Cluster, Host, Mount, VOLUME, assert_bricks_equal, wait_until};
use tests::tickets::Tickets;
use tests::{report, scale};

const PEERS: [&str; 3] = ["gfs01", "gfs02", "gfs03"];
/// From which to which of them (primary, backup, witness) nothing arrives, by bit.
const LINKS: [(usize, usize); 6] = [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)];
const ALL_CUT: u32 = (1 << LINKS.len()) - 1;
/// Clusters that work side by side: most of the time each waits for timeouts.
const CLUSTERS: usize = 4;
/// `network.ping-timeout`, s.
const PING_TIMEOUT: u64 = 2;
/// A cut lasts until whoever may take over has done so, with room.
const HELD: Duration = Duration::from_millis(4_500);
const HELD_FULL: Duration = Duration::from_secs(12);
/// No old lease lasts this long, so a peer that is all alone answers nothing any more.
const LEASE_OVER: Duration = Duration::from_millis(2_500);
const TOOK_EFFECT_WITHIN: Duration = Duration::from_secs(10);

struct Rig {
    cluster: Cluster,
    mounts: Vec<Mount>,
}

impl Rig {
    fn new() -> Self {
        let cluster = Cluster::three_peers();
        let set = format!("volume set {VOLUME} network.ping-timeout {PING_TIMEOUT}");
        cluster.mortar("gfs01", &set).ok();
        // Options that a brick reads at its start.
        cluster
            .mortar("gfs01", &format!("volume stop {VOLUME}"))
            .ok();
        cluster
            .mortar("gfs01", &format!("volume start {VOLUME}"))
            .ok();
        cluster.wait_in_sync(VOLUME);
        let mounts = PEERS.iter();
        let mounts = mounts
            .map(|peer| cluster.mount(peer, "gfs01,gfs02,gfs03:/v01", ""))
            .collect();
        Rig { cluster, mounts }
    }

    /// The peers by their part at this moment: primary, backup, witness.
    fn by_part(&self) -> [&Host; 3] {
        [
            self.cluster.primary(VOLUME),
            self.cluster.backup(VOLUME),
            self.cluster.host("gfs03"),
        ]
    }

    /// One shape: cut, held, mended; asserts all there is to assert. Returns how many tickets were
    /// given out late in the cut, when no old lease holds any more.
    fn try_shape(&self, shape: u32) -> u64 {
        let name = format!("shape-{shape:02}");
        fs::create_dir(self.mounts[0].join(&name)).unwrap();
        let parts = self.by_part();
        let tickets = Tickets::new(&name, PEERS.len());
        let late = std::thread::scope(|scope| {
            for (client, mount) in self.mounts.iter().enumerate() {
                let tickets = &tickets;
                scope.spawn(move || tickets.work(client, mount.path()));
            }
            let late = self.through_the_cut(shape, parts, &tickets);
            tickets.stop();
            late
        });
        let what = || {
            format!(
                "{} ({parts:?})",
                describe(shape),
                parts = parts.map(|p| &p.name)
            )
        };
        let violations = tickets.violations(self.mounts[0].path());
        assert!(violations.is_empty(), "{}: {violations:#?}", what());
        if shape == ALL_CUT {
            assert_eq!(late, 0, "a peer that heard of nobody acknowledged");
        }
        self.cluster.wait_healed(VOLUME);
        assert_bricks_equal(&self.cluster.brick("gfs01"), &self.cluster.brick("gfs02"));
        self.cluster.assert_check_finds_nothing(VOLUME);
        late
    }

    fn through_the_cut(&self, shape: u32, parts: [&Host; 3], tickets: &Tickets) -> u64 {
        tickets.wait_for_all();
        for (_, (from, to)) in cut_links(shape) {
            parts[to].drop_from(parts[from]);
        }
        std::thread::sleep(LEASE_OVER);
        let before = tickets.given();
        std::thread::sleep(scale::pick(HELD, HELD_FULL) - LEASE_OVER);
        let late = tickets.given() - before;
        for (_, (from, to)) in cut_links(shape) {
            let what = format!(
                "{}: something was dropped at {to} of {from}",
                describe(shape)
            );
            wait_until(TOOK_EFFECT_WITHIN, &what, || {
                parts[to].dropped_packets() > 0
            });
        }
        parts.iter().for_each(|host| host.drop_nothing());
        tickets.wait_for_all();
        late
    }
}

fn cut_links(shape: u32) -> impl Iterator<Item = (usize, (usize, usize))> {
    LINKS
        .into_iter()
        .enumerate()
        .filter(move |(bit, _)| shape & 1 << bit != 0)
}

fn describe(shape: u32) -> String {
    const PARTS: [&str; 3] = ["primary", "backup", "witness"];
    let links = cut_links(shape).map(|(_, (from, to))| format!("{}->{}", PARTS[from], PARTS[to]));
    links.collect::<Vec<_>>().join(" ")
}

#[test]
fn no_partition_of_three_peers_makes_two_histories() {
    let shapes = Mutex::new((1..=ALL_CUT).collect::<Vec<u32>>());
    let went_on = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..CLUSTERS {
            scope.spawn(|| {
                let rig = Rig::new();
                loop {
                    let Some(shape) = shapes.lock().unwrap().pop() else {
                        return;
                    };
                    if rig.try_shape(shape) > 0 {
                        went_on.lock().unwrap().push(shape);
                    }
                }
            });
        }
    });
    let went_on = went_on.into_inner().unwrap().len();
    report::say(&format!(
        "{ALL_CUT} partitions of three peers: in {went_on} of them some side went on, in none two"
    ));
    assert!(went_on > 0, "nobody ever took over: nothing was tested");
}
