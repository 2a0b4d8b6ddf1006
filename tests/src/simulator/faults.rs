//! What goes wrong, when, and its mending.

use brickd::replica::core::Gone;

use super::Bug;
use super::message::{ClientNo, Event, HostNo};
use super::world::World;

/// The set is left in peace at first, so that it can start.
const FIRST_FAULT_MS: u64 = 1_500;
/// A machine that stands still with its clock does so for less than what is between the lease and
/// the ping timeout: no clock can protect a copy that wakes up later.
const FREEZE_MAX_MS: u64 = 1_800;
/// A clock jumps or is set by at most three hours.
const CLOCK_STEP_MAX_MS: u64 = 3 * 3_600_000;
/// The last fault begins before this.
const LAST_FAULT_MS: u64 = 22_000;
/// After the last mending clients go on for as long as this.
pub const CLIENTS_GO_ON_MS: u64 = 3_000;

/// One thing that goes wrong for a time.
#[derive(Clone, Debug)]
pub enum Fault {
    /// SIGKILL; the page cache lives.
    Kill(HostNo),
    /// What is not synced is lost, any part of it.
    PowerCut(HostNo),
    /// An orderly stop: the others hear a goodbye.
    Stop(HostNo),
    /// The disk takes no change any more, until the brick is started again.
    DiskFails(HostNo),
    /// The disk takes no change until then, and does not fail.
    DiskHangs(HostNo, u64),
    /// What the disk does takes long until then.
    DiskSlow(HostNo, u64),
    /// The disk has no room for what would make it fuller.
    DiskFull(HostNo),
    /// The process stands still.
    Pause(HostNo, u64),
    /// The machine stands still, and its clock with it.
    Freeze(HostNo, u64),
    /// The clock of a machine jumps ahead, as after a suspension.
    ClockJumps(HostNo, u64),
    /// The wall clock of a machine is set, by so many ms and ahead or back.
    WallClockSteps(HostNo, u64, bool),
    /// The data directory is gone: the peer is a new one, and its brick is not served until it is
    /// taken back into the pool.
    Wipe(HostNo),
    /// One direction is cut.
    CutWay(HostNo, HostNo),
    /// A link is cut.
    CutLink(HostNo, HostNo),
    /// A host is cut from all others.
    Isolate(HostNo),
    /// A firewall answers for either host: connections break and are refused at once.
    Refuse(HostNo, HostNo),
    /// A client does not reach a host.
    CutClient(ClientNo, HostNo),
}

impl Fault {
    /// The same fault, lasting until then.
    fn until(self, until: u64) -> Self {
        match self {
            Fault::DiskHangs(host, _) => Fault::DiskHangs(host, until),
            other => other,
        }
    }

    /// A number for each kind.
    fn kind(&self) -> u32 {
        match self {
            Fault::Kill(_) => 0,
            Fault::PowerCut(_) => 1,
            Fault::Stop(_) => 2,
            Fault::DiskFails(_) => 3,
            Fault::DiskHangs(..) => 4,
            Fault::DiskSlow(..) => 5,
            Fault::DiskFull(_) => 6,
            Fault::Pause(..) => 7,
            Fault::Freeze(..) => 8,
            Fault::ClockJumps(..) => 9,
            Fault::Wipe(_) => 10,
            Fault::CutWay(..) => 11,
            Fault::CutLink(..) => 12,
            Fault::Isolate(_) => 13,
            Fault::Refuse(..) => 14,
            Fault::CutClient(..) => 15,
            Fault::WallClockSteps(..) => 16,
        }
    }

    /// What each kind is called, by its number.
    pub const KINDS: [&str; 17] = [
        "kill",
        "power cut",
        "stop",
        "disk failure",
        "disk hang",
        "slow disk",
        "full disk",
        "process pause",
        "machine freeze",
        "clock jump",
        "wiped data directory",
        "one-way partition",
        "link cut",
        "isolation",
        "refusal",
        "client cut off",
        "step of the wall clock",
    ];
}

impl World {
    pub fn plan_faults(&mut self) {
        let count = self.random.between(1, 7);
        self.summary.faults = count as usize;
        self.calm_at = FIRST_FAULT_MS;
        let mut begin = FIRST_FAULT_MS;
        for number in 0..count as usize {
            // Often close together: that is where it hurts.
            begin = if self.random.chance(40) {
                begin + self.random.between(0, 600)
            } else {
                begin + self.random.between(0, 7_000)
            };
            begin = begin.min(LAST_FAULT_MS);
            let lasts = match self.random.below(4) {
                0 => self.random.between(50, 250),
                1 => self.random.between(250, 3_000),
                2 => self.random.between(3_000, 9_000),
                _ => self.random.between(4_500, 14_000),
            };
            let hangs = self.random.below(16_000) as u64;
            let fault = self.pick_fault(begin, begin + lasts);
            let lasts = lasts
                + if matches!(fault, Fault::DiskHangs(..)) {
                    hangs
                } else {
                    0
                };
            let fault = fault.until(begin + lasts);
            self.summary.kinds |= 1 << fault.kind();
            self.faults.push(fault);
            self.at(begin, Event::Fault(number));
            self.at(begin + lasts, Event::Mend(number));
            self.calm_at = self.calm_at.max(begin + lasts);
        }
    }

    fn pick_fault(&mut self, begin: u64, until: u64) -> Fault {
        let host = self.random.below(self.hosts.len());
        let copy = self.random.below(self.copies.len());
        let other = (host + 1 + self.random.below(self.hosts.len() - 1)) % self.hosts.len();
        match self.random.below(26) {
            0..6 => Fault::Kill(if self.random.chance(80) { copy } else { host }),
            6..10 => Fault::PowerCut(copy),
            10 | 11 => Fault::Pause(copy, until),
            12 => Fault::CutWay(host, other),
            13 | 14 => Fault::CutLink(host, other),
            15 => Fault::Refuse(host, other),
            16 | 17 => Fault::Isolate(host),
            18 => Fault::Stop(copy),
            19 => Fault::DiskFails(copy),
            20 => Fault::DiskHangs(copy, until),
            21 => Fault::DiskSlow(copy, until),
            22 => Fault::DiskFull(copy),
            23 => self.pick_fault_of_time(copy, begin),
            24 => self.pick_wipe(host),
            _ => Fault::CutClient(self.random.below(2), copy),
        }
    }

    fn pick_fault_of_time(&mut self, copy: HostNo, begin: u64) -> Fault {
        match self.random.below(3) {
            0 => Fault::ClockJumps(copy, self.random.between(100, CLOCK_STEP_MAX_MS)),
            1 => Fault::Freeze(copy, begin + self.random.between(50, FREEZE_MAX_MS)),
            _ => {
                let step_ms = self.random.between(1, CLOCK_STEP_MAX_MS);
                Fault::WallClockSteps(copy, step_ms, self.random.chance(50))
            }
        }
    }

    /// At most one peer is wiped, where a majority stays.
    fn pick_wipe(&mut self, host: HostNo) -> Fault {
        let wiped = self
            .faults
            .iter()
            .any(|fault| matches!(fault, Fault::Wipe(_)));
        if wiped || self.registry.voters < 3 {
            Fault::Kill(host)
        } else {
            Fault::Wipe(host)
        }
    }

    pub fn inject(&mut self, number: usize) {
        let fault = self.faults[number].clone();
        self.trace(|| format!("fault {number}: {fault:?}"));
        match fault {
            Fault::Kill(host) => self.end_host(host, true),
            Fault::PowerCut(host) => self.end_host(host, false),
            Fault::Stop(host) => self.stop_host(host),
            Fault::DiskFails(host) => self.fail_disk(host),
            Fault::Pause(host, until) => {
                let host = &mut self.hosts[host];
                host.paused_until = host.paused_until.max(until);
            }
            Fault::DiskHangs(host, until) => {
                let host = &mut self.hosts[host];
                host.disk_until = host.disk_until.max(until);
            }
            Fault::DiskSlow(host, until) => {
                let host = &mut self.hosts[host];
                host.slow_until = host.slow_until.max(until);
            }
            Fault::DiskFull(host) => self.hosts[host].full += 1,
            Fault::Freeze(host, until) => {
                let still_ms = until.saturating_sub(self.now);
                let host = &mut self.hosts[host];
                if host.paused_until <= self.now {
                    host.paused_until = until;
                    host.frozen_ms += still_ms;
                }
            }
            Fault::ClockJumps(host, ahead_ms) => self.hosts[host].offset_ms += ahead_ms,
            Fault::WallClockSteps(host, step_ms, ahead) => {
                let wall_ms = &mut self.hosts[host].wall_ms;
                *wall_ms = if ahead {
                    *wall_ms + step_ms
                } else {
                    *wall_ms - step_ms
                };
            }
            Fault::Wipe(host) => {
                self.end_host(host, true);
                self.hosts[host].wiped = true;
            }
            Fault::CutWay(from, to) => self.network.cut(from, to),
            Fault::CutLink(..) | Fault::Isolate(_) => {
                for (from, to) in self.ways(&fault) {
                    self.network.cut(from, to);
                }
            }
            Fault::Refuse(a, b) => {
                self.network.cut(a, b);
                self.network.cut(b, a);
                self.refuse(a, b);
            }
            Fault::CutClient(client, host) => self.network.cut_client(client, host),
        }
    }

    pub fn mend(&mut self, number: usize) {
        let fault = self.faults[number].clone();
        self.trace(|| format!("mended {number}: {fault:?}"));
        match fault {
            Fault::Kill(host) | Fault::PowerCut(host) => self.start_host(host),
            Fault::Stop(host) | Fault::DiskFails(host) => {
                self.end_host(host, true);
                self.start_host(host);
            }
            Fault::Pause(..)
            | Fault::Freeze(..)
            | Fault::ClockJumps(..)
            | Fault::WallClockSteps(..)
            | Fault::DiskHangs(..)
            | Fault::DiskSlow(..) => {}
            Fault::DiskFull(host) => self.hosts[host].full -= 1,
            Fault::Wipe(host) => self.take_back(number, host),
            Fault::Refuse(a, b) => {
                self.network.mend(a, b);
                self.network.mend(b, a);
            }
            Fault::CutWay(from, to) => self.network.mend(from, to),
            Fault::CutLink(..) | Fault::Isolate(_) => {
                for (from, to) in self.ways(&fault) {
                    self.network.mend(from, to);
                }
            }
            Fault::CutClient(client, host) => self.network.mend_client(client, host),
        }
    }

    /// A wiped peer is taken into the pool again, as a new one, and gets its brick back: when a
    /// quorum of the others can decide it.
    fn take_back(&mut self, number: usize, host: HostNo) {
        let decided = (0..self.hosts.len()).any(|other| other != host && self.has_quorum(other));
        if decided {
            self.hosts[host].wiped = false;
            self.start_host(host);
        } else {
            self.at(self.now + 500, Event::Mend(number));
        }
    }

    /// Connections between two hosts break at once, and each attempt is refused.
    fn refuse(&mut self, a: HostNo, b: HostNo) {
        for conn in 0..self.network.conns.len() {
            let ends = &self.network.conns[conn];
            if [(a, b), (b, a)].contains(&(ends.from.0, ends.to.0)) {
                self.break_conn(conn, 1, 5);
            }
        }
        for (host, other) in [(a, b), (b, a)] {
            if host.max(other) < self.copies.len() && self.runs(host) {
                self.on_refused(host, other);
            }
        }
    }

    /// Nothing, but that the streams broke. They say so themselves.
    fn on_refused(&mut self, host: HostNo, other: HostNo) {
        let brick = World::brick(other);
        if self.bug == Bug::RefusedIsDead {
            self.with_core(host, |core, now| {
                let in_sync = core.in_sync();
                let listed = in_sync.iter().find(|(of, _)| *of == brick);
                listed.map_or_else(Vec::new, |(_, life)| {
                    core.gone(brick, *life, Gone::ProcessDied, now)
                })
            });
        }
    }

    fn ways(&self, fault: &Fault) -> Vec<(HostNo, HostNo)> {
        match fault {
            Fault::CutLink(a, b) => vec![(*a, *b), (*b, *a)],
            Fault::Isolate(host) => (0..self.hosts.len())
                .filter(|other| other != host)
                .flat_map(|other| [(*host, other), (other, *host)])
                .collect(),
            _ => Vec::new(),
        }
    }
}
