//! The registry: one state, compare-and-set, reachable where a quorum of voters is.

use std::collections::BTreeMap;

use mortar_common::BrickId;
use mortar_proto::data::EpochRef;
use mortar_proto::registry::Epoch;

use brickd::replica::core::{Proposed, RegistryView, Votes};

use super::Bug;
use super::message::{Decision, Event, HostNo};
use super::world::World;

/// The registry's state, and what each host has seen of it.
#[derive(Debug, Default)]
pub struct Registry {
    pub epoch: Epoch,
    pub history: Vec<EpochRef>,
    /// Which epochs each copy was in sync in, oldest first.
    listed: BTreeMap<u64, Vec<EpochRef>>,
    /// Hosts `0..voters` vote.
    pub voters: usize,
    /// Each host's applied state, which lags.
    seen: Vec<(Epoch, Vec<EpochRef>)>,
}

impl Registry {
    pub fn new(voters: usize, hosts: usize) -> Self {
        Registry {
            voters,
            seen: vec![Default::default(); hosts],
            ..Registry::default()
        }
    }

    fn compare_and_set(&mut self, expect: EpochRef, next: &Epoch, lone: &[Epoch]) -> Proposed {
        let current = EpochRef {
            number: self.epoch.number,
            id: self.epoch.id,
        };
        if current != expect {
            return Proposed::Refused(self.epoch.clone());
        }
        for epoch in [current]
            .into_iter()
            .chain(lone.iter().map(|epoch| EpochRef {
                number: epoch.number,
                id: epoch.id,
            }))
        {
            if epoch.number > 0 && !self.history.contains(&epoch) {
                self.history.push(epoch);
            }
        }
        let surplus = self.history.len().saturating_sub(64);
        self.history.drain(..surplus);
        self.epoch = next.clone();
        for epoch in lone.iter().chain([next]) {
            let named = EpochRef {
                number: epoch.number,
                id: epoch.id,
            };
            for copy in &epoch.in_sync {
                self.listed.entry(copy.brick).or_default().push(named);
            }
        }
        Proposed::Committed
    }

    /// The newest epoch that lists a copy as in sync, as far as a history knows.
    fn last_in_sync(
        &self,
        brick: BrickId,
        newest: &Epoch,
        history: &[EpochRef],
    ) -> Option<EpochRef> {
        let known = |epoch: &&EpochRef| {
            history.contains(epoch) || (epoch.number, epoch.id) == (newest.number, newest.id)
        };
        let listed = self.listed.get(&brick.0)?;
        listed.iter().rev().find(known).copied()
    }
}

impl World {
    /// Whether a quorum of voters answers this host.
    pub fn has_quorum(&self, host: HostNo) -> bool {
        let voters = self.registry.voters;
        let reached = (0..voters)
            .filter(|voter| {
                self.runs(*voter)
                    && !self.hosts[*voter].wiped
                    && (*voter == host || self.network.connected(host, *voter))
            })
            .count();
        self.runs(host) && reached * 2 > voters
    }

    fn view_of(&self, epoch: &Epoch, history: &[EpochRef], linearizable: bool) -> RegistryView {
        RegistryView {
            epoch: epoch.clone(),
            history: history.to_vec(),
            bricks: (0..self.copies.len()).map(World::brick).collect(),
            votes: if self.registry.voters == 2 {
                Votes::Two
            } else {
                Votes::Quorum
            },
            linearizable,
        }
    }

    /// The newest epoch known on a host that lists a copy as in sync.
    pub fn last_in_sync(&self, host: HostNo, brick: BrickId) -> Option<EpochRef> {
        let (epoch, history) = &self.registry.seen[host];
        self.registry.last_in_sync(brick, epoch, history)
    }

    /// A copy asks for a linearizable read.
    pub fn read_registry(&mut self, host: HostNo) {
        let life = self.copies[host].life;
        let at = self.now + self.random.between(1, 12);
        self.at(at, Event::Read { host, life });
    }

    pub fn on_read(&mut self, host: HostNo, life: u64) {
        if self.has_quorum(host) {
            let newest = (self.registry.epoch.clone(), self.registry.history.clone());
            self.registry.seen[host] = newest;
        }
        let linearizable = self.has_quorum(host);
        let (epoch, history) = self.registry.seen[host].clone();
        let view = Box::new(self.view_of(&epoch, &history, linearizable));
        let at = self.now + self.random.between(1, 6);
        self.at(at, Event::View { host, life, view });
    }

    pub fn propose(&mut self, host: HostNo, expect: EpochRef, next: Epoch, lone: Vec<Epoch>) {
        let life = self.copies[host].life;
        let at = self.now + self.random.between(1, 15);
        self.at(
            at,
            Event::Decide(Decision {
                host,
                life,
                expect,
                next,
                lone,
                late: false,
            }),
        );
    }

    pub fn on_decide(&mut self, decision: Decision) {
        let Decision {
            host,
            life,
            expect,
            ref next,
            ref lone,
            late,
        } = decision;
        if !self.has_quorum(host) {
            if late {
                return;
            }
            // Not answered is not undone: the log may carry it on when the voters meet again.
            if self.random.chance(30) {
                let at = self.now + self.random.between(200, 9_000);
                self.at(
                    at,
                    Event::Decide(Decision {
                        late: true,
                        ..decision
                    }),
                );
            }
            let at = self.now + self.random.between(20, 400);
            self.at(
                at,
                Event::Decided {
                    host,
                    life,
                    expect,
                    what: Proposed::NoQuorum,
                },
            );
            return;
        }
        let mut what = self.registry.compare_and_set(expect, next, lone);
        if self.bug == Bug::SameNumber && self.registry.epoch.number == next.number {
            what = Proposed::Committed;
        }
        self.trace(|| {
            let (number, id) = (next.number, next.id & 0xffff);
            let word = if what == Proposed::Committed {
                "commits"
            } else {
                "refuses"
            };
            let members: Vec<u64> = next.in_sync.iter().map(|copy| copy.brick).collect();
            format!(
                "registry {word} epoch {number}/{id:04x} {members:?} primary {} of host {host}",
                next.primary
            )
        });
        if what == Proposed::Committed {
            self.summary.epochs += 1;
            self.push_views();
        }
        if late || self.random.chance(3) {
            return;
        }
        let at = self.now + self.random.between(1, 10);
        self.at(
            at,
            Event::Decided {
                host,
                life,
                expect,
                what,
            },
        );
    }

    /// Every host that the quorum reaches learns of the change.
    fn push_views(&mut self) {
        for host in 0..self.copies.len() {
            if !self.has_quorum(host) || self.random.chance(5) {
                continue;
            }
            let newest = (self.registry.epoch.clone(), self.registry.history.clone());
            self.registry.seen[host] = newest.clone();
            let view = Box::new(self.view_of(&newest.0, &newest.1, false));
            let life = self.copies[host].life;
            let at = self.now + self.random.between(1, 30);
            self.at(at, Event::View { host, life, view });
        }
    }

    /// The brick of a host.
    pub fn brick(host: HostNo) -> BrickId {
        BrickId(host as u64 + 1)
    }

    /// The host of a brick.
    pub fn host_of(brick: BrickId) -> HostNo {
        brick.0 as usize - 1
    }
}
