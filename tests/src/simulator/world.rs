//! The cluster as a whole: time, events, and who they are for.

use std::collections::{BTreeMap, VecDeque};

use mortar_proto::data::{EpochRef, Time};

use super::check::Operation;
use super::client::Client;
use super::copy::Copy;
use super::faults::Fault;
use super::message::{Event, HostNo, Key};
use super::network::Network;
use super::random::Random;
use super::registry::Registry;
use super::{Bug, Failure, Summary, Tracing};

/// Registers that clients use.
pub const KEYS: Key = 6;
/// Locks that clients use: the keys after the registers.
pub const LOCKS: Key = 2;
/// When all begins, by clocks that are right: ms since 1970.
const WALL_MS: u64 = 1_800_000_000_000;
/// Lines of trace kept.
const TRACE_LINES: usize = 2_000;

/// One host: a process that may be down or stand still, and a clock of its own.
#[derive(Debug)]
pub struct Host {
    pub up: bool,
    pub paused_until: u64,
    /// What came for it meanwhile.
    backlog: VecDeque<Event>,
    pub offset_ms: u64,
    /// For how long its clock stood still.
    pub frozen_ms: u64,
    /// Its disk does nothing before this.
    pub disk_until: u64,
    /// Its disk is slow until this.
    pub slow_until: u64,
    /// How many faults fill its disk.
    pub full: u32,
    /// Its data directory is gone and it is not in the pool.
    pub wiped: bool,
    /// Its wall clock, at the beginning.
    pub wall_ms: u64,
    /// Its clock runs this many thousandths too fast.
    drift: u64,
}

/// A cluster that follows from its seed.
pub struct World {
    pub seed: u64,
    pub bug: Bug,
    pub now: u64,
    order: u64,
    events: BTreeMap<(u64, u64), Event>,
    pub random: Random,
    pub network: Network,
    pub registry: Registry,
    pub hosts: Vec<Host>,
    pub copies: Vec<Copy>,
    pub clients: Vec<Client>,
    pub faults: Vec<Fault>,
    /// When the last fault is mended.
    pub calm_at: u64,
    pub summary: Summary,
    pub failure: Option<String>,
    pub finished: bool,
    trace: Option<VecDeque<String>>,
    /// Operations, in the order of their start; a stamp orders all starts and ends.
    pub operations: Vec<Operation>,
    pub stamp: u64,
    /// Stamps at which unsynced changes were lost with the power of all who had them, and what
    /// the registers held then.
    pub rollbacks: Vec<(u64, Vec<Option<u64>>)>,
    /// The version of each register that an answered fsync covers.
    pub fsynced: BTreeMap<Key, u64>,
    /// The newest epoch in which anything was answered.
    pub answered_in: u64,
    /// The newest time of a change that was answered: seconds and ns.
    pub newest_time: (i64, u32),
    /// Which life of which copy answered in each epoch.
    pub answered_by: BTreeMap<(u64, u64), (HostNo, u64)>,
    /// Epochs made alone: by whom, with what history.
    pub lone: Vec<(HostNo, EpochRef, Vec<EpochRef>)>,
    pub stuck_since: Option<u64>,
}

impl World {
    /// A cluster of 2 or 3 copies and 2, 3 or 5 voters, with its faults, as the seed has it.
    pub fn new(seed: u64, bug: Bug, tracing: Tracing) -> Self {
        let mut random = Random::new(seed);
        let copies = if random.chance(35) { 3 } else { 2 };
        let voters = match random.below(100) {
            0..26 if copies == 2 => 2,
            26..40 => 5,
            _ => 3,
        };
        let count = copies.max(voters);
        let hosts = (0..count)
            .map(|_| Host {
                up: true,
                paused_until: 0,
                backlog: VecDeque::new(),
                offset_ms: random.between(1_000, 10_000_000),
                frozen_ms: 0,
                disk_until: 0,
                slow_until: 0,
                full: 0,
                wiped: false,
                wall_ms: WALL_MS + random.between(0, 5_000),
                drift: random.between(0, 10),
            })
            .collect();
        let mut world = World {
            seed,
            bug,
            now: 0,
            order: 0,
            events: BTreeMap::new(),
            random,
            network: Network::default(),
            registry: Registry::new(voters, count),
            hosts,
            copies: (0..copies).map(Copy::new).collect(),
            clients: Vec::new(),
            faults: Vec::new(),
            calm_at: 0,
            summary: Summary::default(),
            failure: None,
            finished: false,
            trace: (tracing == Tracing::On).then(VecDeque::new),
            operations: Vec::new(),
            stamp: 0,
            rollbacks: Vec::new(),
            fsynced: BTreeMap::new(),
            answered_in: 0,
            newest_time: (0, 0),
            answered_by: BTreeMap::new(),
            lone: Vec::new(),
            stuck_since: None,
        };
        world.plan_faults();
        world.add_clients();
        for host in 0..copies {
            let at = world.random.between(0, 300);
            world.at(at, Event::Start(host));
        }
        let watch = world.calm_at;
        world.at(watch, Event::Watch);
        world
    }

    /// Runs until all is calm and equal, or a promise is broken.
    pub fn run(mut self) -> Result<Summary, Box<Failure>> {
        while let Some(((time, _), event)) = self.events.pop_first() {
            self.now = time;
            self.summary.steps += 1;
            match event_host(&event).map(|host| (host, &mut self.hosts[host])) {
                // Nothing overtakes what came while the process stood still.
                Some((host, state)) if state.paused_until > time || !state.backlog.is_empty() => {
                    state.backlog.push_back(event);
                    if state.backlog.len() == 1 {
                        let until = state.paused_until;
                        self.at(until, Event::Resume(host));
                    }
                }
                _ => self.handle(event),
            }
            if self.failure.is_some() || self.finished {
                break;
            }
        }
        if self.failure.is_none() {
            self.check_at_the_end();
        }
        self.summary.operations = self.operations.iter().filter(|op| op.end.is_some()).count();
        match self.failure.take() {
            None => Ok(self.summary),
            Some(what) => Err(Box::new(Failure {
                seed: self.seed,
                what,
                trace: self.trace.take().unwrap_or_default().into(),
            })),
        }
    }

    /// Something is to happen at a time.
    pub fn at(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.events.insert((time.max(self.now), self.order), event);
    }

    /// A promise is broken.
    pub fn fail(&mut self, what: String) {
        let now = self.now;
        self.failure.get_or_insert(format!("at {now} ms: {what}"));
    }

    /// A line of the trace, made only when it is kept.
    pub fn trace(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            if trace.len() == TRACE_LINES {
                trace.pop_front();
            }
            trace.push_back(format!("{now:6} {}", line()));
        }
    }

    /// A host's own clock.
    pub fn clock(&self, host: HostNo) -> u64 {
        let host = &self.hosts[host];
        host.offset_ms + self.now * (1_000 + host.drift) / 1_000 - host.frozen_ms
    }

    /// The time of the next change that a host orders.
    pub fn next_time(&mut self, host: HostNo) -> Time {
        let wall_ms = self.hosts[host].wall_ms + self.now;
        let times = &mut self.copies[host].memory.times;
        times.next(i128::from(wall_ms) * 1_000_000)
    }

    /// Whether a host's process does anything now.
    pub fn runs(&self, host: HostNo) -> bool {
        self.hosts[host].up && self.hosts[host].paused_until <= self.now
    }

    /// Both sides of a two-voter pool went alone.
    pub fn is_split(&self) -> bool {
        self.lone
            .iter()
            .enumerate()
            .any(|(at, (host, epoch, history))| {
                self.lone[..at]
                    .iter()
                    .any(|(other, theirs, their_history)| {
                        host != other && !history.contains(theirs) && !their_history.contains(epoch)
                    })
            })
    }

    fn resume(&mut self, host: HostNo) {
        if self.hosts[host].paused_until > self.now {
            let until = self.hosts[host].paused_until;
            return self.at(until, Event::Resume(host));
        }
        for event in std::mem::take(&mut self.hosts[host].backlog) {
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        // What was meant for a process that has ended concerns nobody.
        let over = |(host, life): (HostNo, u64)| {
            !self.hosts[host].up || life == 0 || self.copies[host].life != life
        };
        if event_life(&event).is_some_and(over) {
            return;
        }
        // A disk that hangs does it later, in the same order.
        if let Some(host) = disk_of(&event)
            && self.hosts[host].disk_until > self.now
        {
            let until = self.hosts[host].disk_until;
            return self.at(until, event);
        }
        match event {
            Event::Start(host) => self.start_host(host),
            Event::End { host, .. } => self.end_host(host, true),
            Event::Resume(host) => self.resume(host),
            Event::Tick { host, life } => self.on_tick(host, life),
            Event::Stream { conn, to, message } => self.on_stream(conn, to, message),
            Event::StreamDown { conn, at } => self.on_stream_down(conn, at),
            Event::Note { from, to, note } => self.on_note(from, to, note),
            Event::Apply { host, number, .. } => self.on_apply(host, number),
            Event::Stored { host, stored, .. } => self.on_stored(host, stored),
            Event::Gone {
                at, of, of_life, ..
            } => self.on_gone(at, of, of_life),
            Event::Sync { host, life } => self.on_sync(host, life),
            Event::Heal { host, life } => self.on_heal(host, life),
            Event::Decide(decision) => self.on_decide(decision),
            Event::Decided {
                host, expect, what, ..
            } => {
                self.with_core(host, |core, now| core.proposed(expect, what, now));
            }
            Event::Read { host, life } => self.on_read(host, life),
            Event::View { host, view, .. } => {
                self.with_core(host, |core, now| core.view(*view, now));
            }
            Event::Ask(host, request) => self.on_ask(host, request),
            Event::Tell(reply) => self.on_tell(reply),
            Event::Heard { host } => {
                let now = self.clock(host);
                if let Some(core) = &mut self.copies[host].core {
                    core.client_heard(now);
                }
            }
            Event::Client { client, turn } => self.on_client(client, turn),
            Event::Fault(number) => self.inject(number),
            Event::Mend(number) => self.mend(number),
            Event::Watch => self.watch(),
        }
    }
}

/// The life of a process that an event is meant for.
fn event_life(event: &Event) -> Option<(HostNo, u64)> {
    match event {
        Event::Tick { host, life }
        | Event::Apply { host, life, .. }
        | Event::Stored { host, life, .. }
        | Event::Sync { host, life }
        | Event::Heal { host, life }
        | Event::Decided { host, life, .. }
        | Event::Read { host, life }
        | Event::View { host, life, .. }
        | Event::End { host, life } => Some((*host, *life)),
        Event::Gone { at, life, .. } => Some((*at, *life)),
        _ => None,
    }
}

/// The host on whose disk something happens.
fn disk_of(event: &Event) -> Option<HostNo> {
    match event {
        Event::Apply { host, .. } | Event::Stored { host, .. } | Event::Sync { host, .. } => {
            Some(*host)
        }
        _ => None,
    }
}

/// The host whose process an event waits for.
fn event_host(event: &Event) -> Option<HostNo> {
    match event {
        Event::Tick { host, .. }
        | Event::Apply { host, .. }
        | Event::Stored { host, .. }
        | Event::Sync { host, .. }
        | Event::Heal { host, .. }
        | Event::Decided { host, .. }
        | Event::Read { host, .. }
        | Event::View { host, .. }
        | Event::Ask(host, _)
        | Event::Heard { host } => Some(*host),
        Event::Stream { to, .. } | Event::Note { to, .. } => Some(*to),
        Event::StreamDown { at, .. } | Event::Gone { at, .. } => Some(*at),
        _ => None,
    }
}
