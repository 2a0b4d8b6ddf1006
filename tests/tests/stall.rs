//! How long I/O stands still when a host goes: promise 4. Each test prints the longest pause.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tests::cluster::{Cluster, Host, VOLUME};
use tests::stall::StallMeter;

const KILLED: Duration = Duration::from_secs(1);
const KILLED_LEADER: Duration = Duration::from_secs(2);
const SILENT: Duration = Duration::from_secs(10);
/// Restarts of the leading brickd until it leads where the test needs it.
const TRIES: usize = 8;

/// Times are taken by one test at a time: beside another cluster a pause would be the machine's.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy)]
enum Victim {
    Primary,
    Backup,
}

#[derive(Clone, Copy)]
enum Fault {
    Kill,
    Freeze,
    Cut,
}

impl Victim {
    fn find(self, cluster: &Cluster) -> &Host {
        match self {
            Victim::Primary => cluster.primary(VOLUME),
            Victim::Backup => cluster.backup(VOLUME),
        }
    }
}

/// Measures the pause that `fault` makes on `victim`, then brings the host back, I/O going on.
fn measure(cluster: &Cluster, victim: &Host, fault: Fault, limit: Duration, what: &str) {
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let meter = StallMeter::start(mount.path());
    match fault {
        Fault::Kill => victim.kill_brickd(),
        Fault::Freeze => victim.freeze_brickd(),
        Fault::Cut => victim.cut_link(),
    }
    meter.wait_for_progress();
    match fault {
        Fault::Kill => victim.start_brickd(),
        Fault::Freeze => victim.thaw_brickd(),
        Fault::Cut => victim.restore_link(),
    }
    // The way back is part of the promise: the switch of a healed copy pauses nothing either.
    cluster.wait_in_sync(VOLUME);
    meter.wait_for_progress();
    meter.stop().assert_below(limit, what);
    cluster.assert_healed_and_equal();
}

fn on_two_hosts(victim: Victim, fault: Fault, limit: Duration, what: &str) {
    let _alone = alone();
    let cluster = Cluster::two_hosts();
    measure(
        &cluster,
        victim.find(&cluster),
        fault,
        limit,
        &format!("two hosts, {what}"),
    );
}

/// Restarts the registry's leader until it is, or is not, on the primary's host.
fn lead_from(cluster: &Cluster, primary_leads: bool) {
    for _ in 0..TRIES {
        let leader = cluster.leader();
        if (leader.name == cluster.primary(VOLUME).name) == primary_leads {
            return;
        }
        leader.kill_brickd();
        leader.start_brickd();
        cluster.wait_in_sync(VOLUME);
    }
    panic!("the registry was not led as the test needs it after {TRIES} restarts");
}

fn on_three_peers(victim: Victim, fault: Fault, limit: Duration, what: &str) {
    let _alone = alone();
    let cluster = Cluster::three_peers();
    lead_from(&cluster, false);
    let host = victim.find(&cluster);
    let leads = host.name == cluster.leader().name;
    let limit = if leads {
        limit.max(KILLED_LEADER)
    } else {
        limit
    };
    measure(
        &cluster,
        host,
        fault,
        limit,
        &format!("three peers, {what}"),
    );
}

#[test]
fn two_hosts_the_primary_is_killed() {
    on_two_hosts(
        Victim::Primary,
        Fault::Kill,
        KILLED_LEADER,
        "primary killed",
    );
}

#[test]
fn two_hosts_the_backup_is_killed() {
    on_two_hosts(Victim::Backup, Fault::Kill, KILLED_LEADER, "backup killed");
}

#[test]
fn two_hosts_the_primary_freezes() {
    on_two_hosts(Victim::Primary, Fault::Freeze, SILENT, "primary frozen");
}

#[test]
fn two_hosts_the_backup_freezes() {
    on_two_hosts(Victim::Backup, Fault::Freeze, SILENT, "backup frozen");
}

#[test]
fn two_hosts_the_primarys_link_is_cut() {
    on_two_hosts(Victim::Primary, Fault::Cut, SILENT, "primary's link cut");
}

#[test]
fn two_hosts_the_backups_link_is_cut() {
    on_two_hosts(Victim::Backup, Fault::Cut, SILENT, "backup's link cut");
}

#[test]
fn three_peers_the_primary_is_killed() {
    on_three_peers(Victim::Primary, Fault::Kill, KILLED, "primary killed");
}

#[test]
fn three_peers_the_backup_is_killed() {
    on_three_peers(Victim::Backup, Fault::Kill, KILLED, "backup killed");
}

#[test]
fn three_peers_the_primary_that_leads_the_registry_is_killed() {
    let _alone = alone();
    let cluster = Cluster::three_peers();
    lead_from(&cluster, true);
    let victim = cluster.primary(VOLUME);
    measure(
        &cluster,
        victim,
        Fault::Kill,
        KILLED_LEADER,
        "three peers, leading primary killed",
    );
}

#[test]
fn three_peers_the_primary_freezes() {
    on_three_peers(Victim::Primary, Fault::Freeze, SILENT, "primary frozen");
}

#[test]
fn three_peers_the_primarys_link_is_cut() {
    on_three_peers(Victim::Primary, Fault::Cut, SILENT, "primary's link cut");
}

#[test]
fn three_peers_the_backups_link_is_cut() {
    on_three_peers(Victim::Backup, Fault::Cut, SILENT, "backup's link cut");
}

#[test]
fn three_peers_the_witness_is_killed() {
    let _alone = alone();
    let cluster = Cluster::three_peers();
    let witness = cluster.host("gfs03");
    measure(
        &cluster,
        witness,
        Fault::Kill,
        KILLED,
        "three peers, witness killed",
    );
}
