//! The driver double of one copy: its disk, its queues, and the carrying out of commands.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use brickd::brick::store::StoredState;
use brickd::replica::core::{Answer, Command, Core, Gone, Role, Timing};
use mortar_common::Incarnation;
use mortar_proto::data::EpochRef;

use super::heal::Heal;
use super::message::{
    Cell, Change, ClientNo, Event, HostNo, Key, Message, Note, Outcome, Step, Stored, Table,
};
use super::world::{KEYS, World};

const TICK_MS: u64 = 50;

/// What is on a disk, page cache included.
#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    pub cells: Vec<Cell>,
    pub table: Table,
}

/// One copy on one host.
#[derive(Debug)]
pub struct Copy {
    /// The incarnation; 0 while the process is down.
    pub life: u64,
    pub core: Option<Core>,
    pub disk: Disk,
    /// What a power cut leaves for certain.
    pub durable: Disk,
    pub stored: StoredState,
    /// A power cut, or the end of a backup that held changes, took something since it was last in
    /// sync.
    pub lost: bool,
    /// It went alone since it was last healed: nobody else knows what it did.
    pub went_alone: bool,
    pub memory: Memory,
}

/// What one life remembers.
#[derive(Debug, Default)]
pub struct Memory {
    /// Changes that some in-sync copy may lack.
    pub kept: BTreeMap<u64, Change>,
    pub queues: BTreeMap<Key, VecDeque<Job>>,
    /// Received, or ordered here, and not applied.
    pub unapplied: BTreeSet<u64>,
    pub received_to: u64,
    // Primary.
    pub waiting: BTreeMap<u64, ClientNo>,
    pub ordered: BTreeMap<ClientNo, u64>,
    /// The newest request of each client that was answered without a change.
    pub judged: BTreeMap<ClientNo, (u64, Outcome)>,
    /// Registers as they are after all ordered changes.
    pub ahead: BTreeMap<Key, (u64, Option<u64>)>,
    /// The epoch with which this copy became primary.
    pub since_epoch: u64,
    pub streams: BTreeMap<HostNo, usize>,
    pub opening: BTreeMap<HostNo, usize>,
    pub heals: BTreeMap<HostNo, Heal>,
    pub recovery: Option<BTreeSet<HostNo>>,
    // Backup.
    pub incoming: Option<usize>,
    pub was_in_sync: bool,
    pub disk_failed: bool,
    // What partners may lack.
    pub since: Vec<BTreeMap<Key, u64>>,
    pub known: Vec<bool>,
    pub sure: Vec<bool>,
    pub tails: Vec<Option<Vec<Key>>>,
    /// The partner went alone, on a way of its own.
    pub strays: Vec<bool>,
    pub joined_at: u64,
    pub queries: BTreeMap<HostNo, u64>,
}

/// A change in the queue of its register.
#[derive(Clone, Debug)]
pub struct Job {
    pub change: Change,
    /// The stream on which it came; none for the primary's own.
    pub stream: Option<usize>,
    pub skip: bool,
}

impl Copy {
    pub fn new(copies: usize) -> Self {
        let disk = Disk {
            cells: vec![Cell::default(); KEYS as usize],
            table: Table::new(),
        };
        Copy {
            life: 0,
            core: None,
            durable: disk.clone(),
            disk,
            stored: StoredState::default(),
            lost: false,
            went_alone: false,
            memory: Memory::new(copies),
        }
    }
}

impl Memory {
    fn new(copies: usize) -> Self {
        Memory {
            since: vec![BTreeMap::new(); copies],
            known: vec![false; copies],
            sure: vec![false; copies],
            tails: vec![None; copies],
            strays: vec![false; copies],
            ..Memory::default()
        }
    }
}

impl World {
    /// A process starts, unless it runs.
    pub fn start_host(&mut self, host: HostNo) {
        self.hosts[host].up = true;
        if host >= self.copies.len() || self.copies[host].life != 0 {
            return;
        }
        let (life, seed) = (self.random.id(), self.random.id());
        let now = self.clock(host);
        let (core, commands) = Core::start(
            World::brick(host),
            Incarnation(life),
            &self.copies[host].stored,
            Timing::default(),
            seed,
            now,
        );
        let copies = self.copies.len();
        let copy = &mut self.copies[host];
        copy.life = life;
        copy.core = Some(core);
        copy.memory = Memory::new(copies);
        self.trace(|| format!("host {host} starts as {:04x}", life & 0xffff));
        self.at(self.now + 1, Event::Tick { host, life });
        let sync = self.now + self.random.between(300, 2_500);
        self.at(sync, Event::Sync { host, life });
        self.carry_out(host, commands);
    }

    /// A process ends; with a power cut any part of what is not synced goes too.
    pub fn end_host(&mut self, host: HostNo, by_kill: bool) {
        if !self.hosts[host].up {
            return;
        }
        self.hosts[host].up = false;
        self.hosts[host].paused_until = 0;
        if host >= self.copies.len() {
            return;
        }
        let copy = &mut self.copies[host];
        let life = std::mem::take(&mut copy.life);
        // What a backup held and had not applied may have been seen on the primary.
        let core = copy.core.take();
        let orders = core.is_some_and(|core| *core.role() == Role::Primary);
        copy.lost |= !orders && !copy.memory.unapplied.is_empty();
        if life != 0 {
            self.notice_end(host, life, by_kill);
        }
        if !by_kill {
            for key in 0..KEYS as usize {
                let keeps = self.random.chance(50);
                let copy = &mut self.copies[host];
                if copy.disk.cells[key] != copy.durable.cells[key] && !keeps {
                    copy.disk.cells[key] = copy.durable.cells[key];
                    copy.lost = true;
                }
            }
            let copy = &mut self.copies[host];
            copy.lost |= copy.disk.table != copy.durable.table;
            copy.disk.table = copy.durable.table.clone();
            copy.durable = copy.disk.clone();
        }
    }

    /// The brick says goodbye and ends a little later.
    pub fn stop_host(&mut self, host: HostNo) {
        let life = self.copies[host].life;
        if life == 0 || !self.runs(host) {
            return;
        }
        self.with_core(host, |core, now| core.stop(now));
        self.say_goodbye(host, true);
        let at = self.now + self.random.between(1, 80);
        self.at(at, Event::End { host, life });
    }

    fn say_goodbye(&mut self, host: HostNo, process: bool) {
        let incarnation = self.copies[host].life;
        for other in (0..self.copies.len()).filter(|other| *other != host) {
            self.note(
                host,
                other,
                Note::Goodbye {
                    incarnation,
                    process,
                },
            );
        }
    }

    /// From here on nothing can be applied, and the state machine is told.
    pub fn fail_disk(&mut self, host: HostNo) {
        if self.copies[host].life == 0 || !self.runs(host) {
            return;
        }
        self.copies[host].memory.disk_failed = true;
        self.with_core(host, |core, now| {
            core.disk_failed("the disk failed".to_owned(), now)
        });
        if self.random.chance(50) {
            self.say_goodbye(host, false);
        }
    }

    pub fn on_tick(&mut self, host: HostNo, life: u64) {
        self.at(self.now + TICK_MS, Event::Tick { host, life });
        self.with_core(host, |core, now| core.tick(now));
        self.go_on_recovering(host, true);
    }

    pub fn on_gone(&mut self, at: HostNo, of: HostNo, life: u64) {
        let brick = World::brick(of);
        self.trace(|| {
            format!(
                "host {at} knows that {:04x} of host {of} died",
                life & 0xffff
            )
        });
        self.with_core(at, |core, now| {
            core.gone(brick, Some(Incarnation(life)), Gone::ProcessDied, now)
        });
    }

    /// Tells the state machine something and carries out what it says.
    pub fn with_core(&mut self, host: HostNo, event: impl FnOnce(&mut Core, u64) -> Vec<Command>) {
        let now = self.clock(host);
        if let Some(core) = self.copies[host].core.as_mut() {
            let commands = event(core, now);
            self.carry_out(host, commands);
        }
    }

    pub fn carry_out(&mut self, host: HostNo, commands: Vec<Command>) {
        for command in commands {
            if self.copies[host].core.is_none() {
                return;
            }
            self.carry_out_one(host, command);
        }
    }

    fn carry_out_one(&mut self, host: HostNo, command: Command) {
        let epoch = self.copies[host]
            .core
            .as_ref()
            .map(Core::epoch_ref)
            .unwrap_or_default();
        match command {
            Command::Apply(number) => {
                if let Some(change) = self.copies[host].memory.kept.get(&number).copied() {
                    self.queue(
                        host,
                        Job {
                            change,
                            stream: None,
                            skip: false,
                        },
                    );
                }
            }
            Command::Answer(number) => self.answer_client(host, number),
            Command::Abandon(numbers) => self.abandon(host, &numbers),
            Command::OpenStream {
                to,
                incarnation,
                joined,
            } => {
                self.open_stream(host, to, incarnation, joined, epoch);
            }
            Command::CloseStream(brick) => self.close_stream(host, World::host_of(brick)),
            Command::Beacon { to, sent } => {
                self.note(host, World::host_of(to), Note::Beacon { epoch, sent });
            }
            Command::AnswerBeacon { to, sent } => {
                self.note(host, World::host_of(to), Note::BeaconAnswer { epoch, sent });
            }
            Command::Query(brick) => {
                let id = self.random.id();
                let other = World::host_of(brick);
                self.copies[host].memory.queries.insert(other, id);
                self.note(host, other, Note::Query(id));
            }
            Command::ReadRegistry => self.read_registry(host),
            Command::Propose { expect, next, lone } => self.propose(host, expect, next, lone),
            Command::Store {
                epoch,
                history,
                alone,
            } => {
                let life = self.copies[host].life;
                let at = self.now + self.random.between(1, 12);
                let stored = Stored {
                    epoch,
                    history,
                    alone,
                };
                self.at(at, Event::Stored { host, life, stored });
            }
            Command::Mark { brick, epoch, .. } => self.mark(host, World::host_of(brick), epoch),
            Command::StartHeal(brick) => self.start_heal(host, World::host_of(brick)),
            Command::StopHeal(brick) => self.stop_heal(host, World::host_of(brick)),
            Command::SendTable(brick) => self.send_table(host, World::host_of(brick)),
            Command::Recover => self.recover(host),
            Command::RoleChanged(role) => self.role_changed(host, role),
        }
    }

    pub fn on_stored(&mut self, host: HostNo, stored: Stored) {
        let Stored {
            epoch,
            history,
            alone,
        } = stored;
        let named = EpochRef {
            number: epoch.number,
            id: epoch.id,
        };
        let copy = &mut self.copies[host];
        copy.stored.alone = alone.then_some(named);
        copy.stored.epoch = Some(epoch);
        copy.stored.history = history.clone();
        copy.stored.last_number = copy.core.as_ref().map_or(0, Core::last_number);
        if alone {
            self.trace(|| format!("host {host} goes alone in {}", named.number));
            self.lone.push((host, named, history));
            self.copies[host].went_alone = true;
        }
        self.with_core(host, |core, now| core.stored(named, now));
        self.note_joined(host);
    }

    fn role_changed(&mut self, host: HostNo, role: Role) {
        let epoch = self.copies[host]
            .core
            .as_ref()
            .map_or(0, |core| core.epoch().number);
        self.trace(|| format!("host {host} is {role:?} in epoch {epoch}"));
        match role {
            Role::Backup => self.copies[host].memory.was_in_sync = true,
            Role::Recovering => {
                let rolled_back = self.copies[host].lost && !self.copies[host].memory.was_in_sync;
                if rolled_back {
                    self.roll_back(host);
                }
                self.copies[host].memory.was_in_sync = true;
                self.copies[host].memory.since_epoch = epoch;
            }
            Role::Primary => {}
            _ => {}
        }
        if !matches!(role, Role::Primary | Role::Recovering) {
            let memory = &mut self.copies[host].memory;
            memory.ahead.clear();
            memory.ordered.clear();
            memory.waiting.clear();
            memory.judged.clear();
            memory.recovery = None;
        }
    }

    // ------------------------------------------------------------ applying

    pub fn queue(&mut self, host: HostNo, job: Job) {
        let key = job.change.key;
        let queue = self.copies[host].memory.queues.entry(key).or_default();
        queue.push_back(job);
        if queue.len() == 1 {
            self.schedule_apply(host, key);
        }
    }

    fn schedule_apply(&mut self, host: HostNo, key: Key) {
        let slow = self.random.chance(4);
        let takes = if slow {
            self.random.between(20, 300)
        } else {
            self.random.between(0, 3)
        };
        let life = self.copies[host].life;
        if slow {
            let head = self.copies[host].memory.queues[&key].front().cloned();
            if let Some(Job {
                change,
                stream: Some(stream),
                ..
            }) = head
            {
                self.send(
                    stream,
                    host,
                    Message::Ack {
                        number: change.number,
                        answer: Answer::Held,
                    },
                );
            }
        }
        self.at(self.now + takes, Event::Apply { host, life, key });
    }

    pub fn on_apply(&mut self, host: HostNo, key: Key) {
        let queue = self.copies[host].memory.queues.entry(key).or_default();
        let Some(job) = queue.pop_front() else { return };
        if !queue.is_empty() {
            self.schedule_apply(host, key);
        }
        let number = job.change.number;
        if self.copies[host].memory.disk_failed {
            if let Some(stream) = job.stream {
                self.send(
                    stream,
                    host,
                    Message::Ack {
                        number,
                        answer: Answer::Failed,
                    },
                );
            }
            return;
        }
        if !job.skip {
            self.apply(host, &job.change);
        }
        self.copies[host].memory.unapplied.remove(&number);
        match job.stream {
            Some(stream) => {
                self.send(
                    stream,
                    host,
                    Message::Ack {
                        number,
                        answer: Answer::Applied,
                    },
                );
            }
            None => self.with_core(host, |core, now| core.applied(number, now)),
        }
        self.go_on_recovering(host, false);
    }

    pub fn apply(&mut self, host: HostNo, change: &Change) {
        let copy = &mut self.copies[host];
        match change.step {
            Step::Set(value) => {
                copy.disk.cells[change.key as usize] = Cell {
                    version: change.number,
                    value,
                };
            }
            Step::Heal(cell) => copy.disk.cells[change.key as usize] = cell,
            Step::Fsync => copy.durable = copy.disk.clone(),
        }
        if !matches!(change.step, Step::Heal(_)) {
            copy.disk
                .table
                .insert(change.client, (change.seq, Outcome::Done));
        }
        if copy
            .memory
            .ahead
            .get(&change.key)
            .is_some_and(|ahead| ahead.0 == change.number)
        {
            copy.memory.ahead.remove(&change.key);
        }
    }
}
