//! Power cuts: hosts lose what was in memory alone, and come up on what their disks held. What was
//! fsynced is there, the set recovers by itself, and both copies become equal.
//!
//! `MORTAR_TEST_SCALE=full` makes 100 cuts of one host and 50 of all, `MORTAR_POWER_CUTS=N` makes N.
//! The seed is printed; `MORTAR_TEST_SEED` repeats its choices.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tests::cluster::{
    Allowed, Cluster, FileSystem, Host, Mount, Signs, VOLUME, assert_bricks_equal, cut_power,
    wait_until,
};
use tests::power::{Expect, Works, files_left};
use tests::scale;
use tests::simulator::Random;

/// Cuts before the hosts are made anew.
const CUTS_A_CLUSTER: usize = 10;
const SOURCE: &str = "gfs01,gfs02:/v01";

#[test]
fn one_host_loses_power() {
    let mut random = seeded();
    let cuts = cuts(3, 100);
    let mut lost = 0;
    for first in (0..cuts).step_by(CUTS_A_CLUSTER) {
        let pool = Pool::new(&mut random);
        let mount = pool.cluster.mount("client", SOURCE, "");
        for number in first..cuts.min(first + CUTS_A_CLUSTER) {
            lost += pool.cut_one(&mount, number, &mut random);
        }
        mount.unmount();
        pool.cluster.assert_logs_clean(&[]);
    }
    assert!(lost > 0, "no cut lost anything that was not fsynced");
}

#[test]
fn all_hosts_lose_power() {
    let mut random = seeded();
    let cuts = cuts(4, 50);
    let mut lost = 0;
    for first in (0..cuts).step_by(CUTS_A_CLUSTER) {
        let pool = Pool::new(&mut random);
        for number in first..cuts.min(first + CUTS_A_CLUSTER) {
            lost += pool.cut_all(number, &mut random);
        }
        pool.cluster.assert_logs_clean(&[]);
    }
    assert!(lost > 0, "no cut lost anything that was not fsynced");
}

/// The program is on a host that keeps its power: what it wrote since its last fsync is in
/// nobody's memory any more.
#[test]
fn a_program_that_lives_on_is_not_told_that_what_is_gone_is_durable() {
    let mut random = seeded();
    let pool = Pool::new(&mut random);
    let mount = pool.cluster.mount("client", SOURCE, "");
    let mut lost = 0;
    for number in 0..cuts(2, 10) {
        lost += pool.cut_all_under_an_open_file(&mount, number, &mut random);
    }
    mount.unmount();
    pool.cluster.assert_logs_clean(&[Allowed {
        text: "what was not synced may be lost",
        why: "it was",
    }]);
    assert!(lost > 0, "no cut lost anything that was not fsynced");
}

fn cuts(ci: usize, full: usize) -> usize {
    let asked = std::env::var("MORTAR_POWER_CUTS").ok();
    let asked = asked.and_then(|asked| asked.parse().ok());
    asked.unwrap_or_else(|| scale::pick(ci, full))
}

fn seeded() -> Random {
    let seed = std::env::var("MORTAR_TEST_SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) ^ now_ns());
    println!("MORTAR_TEST_SEED={seed}");
    Random::new(seed)
}

fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::from(now.subsec_nanos()))
}

/// A volume of two copies on disks that lose power.
struct Pool {
    cluster: Cluster,
    peers: usize,
}

impl Pool {
    fn new(random: &mut Random) -> Self {
        let peers = 2 + random.below(2);
        let file_system = if random.chance(70) {
            FileSystem::Ext4
        } else {
            FileSystem::Xfs
        };
        println!("{peers} peers on {file_system}");
        let cluster = Cluster::with_power_disks(peers, file_system);
        Pool { cluster, peers }
    }

    fn hosts(&self) -> Vec<&Host> {
        self.cluster.hosts()[..self.peers].iter().collect()
    }

    fn bricks(&self) -> [PathBuf; 2] {
        ["gfs01", "gfs02"].map(|host| self.cluster.host(host).brick("disk/brick"))
    }

    /// Starts work and lets it run for a random time.
    fn start_work(&self, mount: &Mount, number: usize, random: &mut Random) -> Works {
        let works = Works::start(&mount.join(folder(number)), random);
        works.wait_for_steps(3);
        std::thread::sleep(Duration::from_millis(random.between(0, 2_500)));
        works
    }

    /// How many loose files the disks that were cut do not hold any more.
    fn lost_on(&self, bricks: &[PathBuf], number: usize, made: u64) -> u64 {
        let left = bricks
            .iter()
            .map(|brick| files_left(&brick.join(folder(number))));
        left.map(|left| made.saturating_sub(left)).sum()
    }

    /// One copy's host loses power while clients go on. Returns what its disk had not got.
    fn cut_one(&self, mount: &Mount, number: usize, random: &mut Random) -> u64 {
        let start = Instant::now();
        let works = self.start_work(mount, number, random);
        let host = self
            .cluster
            .hosts()
            .get(random.below(2))
            .expect("two copies");
        let signs = if random.chance(30) {
            Signs::Silence
        } else {
            Signs::ClosedConnections
        };
        let flushes = host.disk_flushes();
        assert!(flushes > 0, "nothing was fsynced before the cut");
        let made = files_left(&mount.join(folder(number)));
        cut_power(&[host], signs, random);
        let brick = host.brick("disk/brick");
        let lost = self.lost_on(&[brick], number, made);
        works.wait_for_steps(3);
        works.slow_down();
        host.power_on();
        self.cluster.wait_healed(VOLUME);
        works.wait_for_steps(1);
        let mut done = works.stop();
        let mut wrong = std::mem::take(&mut done.errors);
        wrong.extend(done.check(&mount.join(folder(number)), Expect::Everything));
        println!(
            "cut {number} of {} ({signs:?}), {flushes} flushes: {lost} loose files lost there, {:?}, {:.1?}",
            host.name,
            done.steps,
            start.elapsed()
        );
        assert!(wrong.is_empty(), "cut {number}: {}", wrong.join("\n"));
        self.assert_equal();
        remove(mount, number);
        lost
    }

    /// All hosts lose power, the clients too. Returns what their disks had not got.
    fn cut_all(&self, number: usize, random: &mut Random) -> u64 {
        let start = Instant::now();
        let how = How::any(number, random);
        let mount = self.cluster.mount("client", SOURCE, "");
        let works = self.start_work(&mount, number, random);
        let mut left = self.hosts();
        if how == How::OneAfterTheOther {
            // What is fsynced from here on is on one copy alone.
            let first = left.remove(random.below(2));
            cut_power(&[first], Signs::ClosedConnections, random);
            works.wait_for_steps(5);
        }
        let made = files_left(&mount.join(folder(number)));
        cut_power(&left, Signs::ClosedConnections, random);
        mount.kill();
        let mut done = works.stop();
        let lost = self.lost_on(&self.bricks(), number, made);
        self.power_on_in_any_order(random);
        if how == How::AgainWhileRecovering {
            std::thread::sleep(Duration::from_millis(random.between(0, 2_000)));
            cut_power(&self.hosts(), Signs::ClosedConnections, random);
            self.power_on_in_any_order(random);
        }
        self.cluster.wait_healed(VOLUME);
        self.assert_only_touched_was_compared();
        let mount = self.cluster.mount("client", SOURCE, "");
        let wrong = done.check(&mount.join(folder(number)), Expect::Fsynced);
        println!(
            "cut {number} ({how:?}): {lost} loose files lost, {:?}, {:.1?}",
            done.steps,
            start.elapsed()
        );
        assert!(wrong.is_empty(), "cut {number}: {}", wrong.join("\n"));
        self.assert_equal();
        remove(&mount, number);
        mount.unmount();
        lost
    }

    /// All hosts lose power while a program has a file open, with bytes in it that were fsynced and
    /// bytes that were not. Returns whether any of the latter were lost, as 0 or 1.
    fn cut_all_under_an_open_file(
        &self,
        mount: &Mount,
        number: usize,
        random: &mut Random,
    ) -> usize {
        let name = format!("open-{number}");
        let (synced, loose) = (vec![b's'; 10_000], vec![b'l'; 100_000]);
        let path = mount.join(&name);
        let mut file = File::create(&path).expect("a new file");
        file.write_all(&synced).expect("bytes to be fsynced");
        file.sync_all().expect("power is there");
        file.write_all(&loose).expect("bytes that are not fsynced");
        cut_power(&self.hosts(), Signs::ClosedConnections, random);
        self.power_on_in_any_order(random);

        let told = file.sync_all();
        self.cluster.wait_healed(VOLUME);
        let [one, _] = self.bricks();
        let held = fs::read(one.join(&name)).expect("an fsynced file");
        assert_eq!(held[..synced.len()], synced, "cut {number}");
        assert_eq!(fs::read(&path).expect("it is there"), held, "cut {number}");
        let is_lost = held.len() < synced.len() + loose.len();
        println!(
            "cut {number}: {} bytes left, then fsync: {told:?}",
            held.len()
        );
        let errno = told.as_ref().err().and_then(io::Error::raw_os_error);
        assert_eq!(errno, Some(libc::EIO), "cut {number}: {told:?}");

        // It is told once: what it writes again is durable when that is said.
        file.seek(SeekFrom::Start(synced.len() as u64))
            .and_then(|_| file.write_all(&loose))
            .and_then(|()| file.sync_all())
            .expect("all is well again");
        drop(file);
        self.assert_equal();
        assert_eq!(
            fs::read(&path).expect("it is there"),
            [synced, loose].concat()
        );
        fs::remove_file(&path).expect("it can be removed");
        usize::from(is_lost)
    }

    fn power_on_in_any_order(&self, random: &mut Random) {
        let mut hosts = self.hosts();
        while !hosts.is_empty() {
            hosts.remove(random.below(hosts.len())).power_on();
        }
    }

    /// Although no copy lived on that would know in detail what another lacks.
    fn assert_only_touched_was_compared(&self) {
        let logs = self.cluster.hosts().iter().flat_map(Host::logs);
        let logs: String = logs
            .map(|log| std::fs::read_to_string(log).unwrap())
            .collect();
        assert!(logs.contains("comparing what was touched"));
        assert!(!logs.contains("comparing everything"));
    }

    fn assert_equal(&self) {
        let [one, other] = self.bricks();
        assert_bricks_equal(&one, &other);
        self.cluster.assert_check_finds_nothing(VOLUME);
    }
}

/// How all hosts lose power.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    AtOnce,
    /// One copy first; work goes on until the rest follows.
    OneAfterTheOther,
    /// At once, and once more while they recover from that.
    AgainWhileRecovering,
}

impl How {
    /// A few cuts see all kinds, many see them in any order.
    fn any(number: usize, random: &mut Random) -> Self {
        let kind = if number < 3 { number } else { random.below(3) };
        [
            How::OneAfterTheOther,
            How::AtOnce,
            How::AgainWhileRecovering,
        ][kind]
    }
}

fn folder(number: usize) -> String {
    format!("cut-{number}")
}

fn remove(mount: &Mount, number: usize) {
    let folder = mount.join(folder(number));
    std::fs::remove_dir_all(&folder).expect("what was checked can be removed");
    wait_until(Duration::from_secs(30), "it is gone", || !folder.exists());
}
