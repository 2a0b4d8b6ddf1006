//! What goes wrong, when, and its mending.

use super::message::{ClientNo, Event, HostNo};
use super::world::World;

/// The set is left in peace at first, so that it can start.
const FIRST_FAULT_MS: u64 = 1_500;
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
    /// The process stands still.
    Pause(HostNo, u64),
    /// One direction is cut.
    CutWay(HostNo, HostNo),
    /// A link is cut.
    CutLink(HostNo, HostNo),
    /// A host is cut from all others.
    Isolate(HostNo),
    /// A client does not reach a host.
    CutClient(ClientNo, HostNo),
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
            let fault = self.pick_fault(begin + lasts);
            self.faults.push(fault);
            self.at(begin, Event::Fault(number));
            self.at(begin + lasts, Event::Mend(number));
            self.calm_at = self.calm_at.max(begin + lasts);
        }
    }

    fn pick_fault(&mut self, until: u64) -> Fault {
        let host = self.random.below(self.hosts.len());
        let copy = self.random.below(self.copies.len());
        let other = (host + 1 + self.random.below(self.hosts.len() - 1)) % self.hosts.len();
        match self.random.below(13) {
            0..3 => Fault::Kill(if self.random.chance(80) { copy } else { host }),
            3 | 4 => Fault::PowerCut(copy),
            5 => Fault::Pause(copy, until),
            6 => Fault::CutWay(host, other),
            7 | 8 => Fault::CutLink(host, other),
            9 => Fault::Isolate(host),
            10 => Fault::Stop(copy),
            11 => Fault::DiskFails(copy),
            _ => Fault::CutClient(self.random.below(2), copy),
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
            Fault::CutWay(from, to) => self.network.cut(from, to),
            Fault::CutLink(..) | Fault::Isolate(_) => {
                for (from, to) in self.ways(&fault) {
                    self.network.cut(from, to);
                }
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
            Fault::Pause(..) => {}
            Fault::CutWay(from, to) => self.network.mend(from, to),
            Fault::CutLink(..) | Fault::Isolate(_) => {
                for (from, to) in self.ways(&fault) {
                    self.network.mend(from, to);
                }
            }
            Fault::CutClient(client, host) => self.network.mend_client(client, host),
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
