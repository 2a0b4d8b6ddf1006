//! The driver double of one copy: its disk, its queues, and the carrying out of commands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use brickd::brick::HealSource;
use brickd::brick::store::StoredState;
use brickd::heal::Writer;
use brickd::replica::absent::Absent;
use brickd::replica::core::{Answer, Command, Core, Gone, Role, Timing};
use brickd::replica::keys::{KeyQueue, keys_of_step};
use brickd::replica::memory::Memory as Sessions;
use brickd::replica::times::SetTime;
use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::EpochRef;

use super::Bug;
use super::heal::Heal;
use super::index::{FILES, Records, keys_of, object_of, product_change};
use super::message::{Cell, Change, Event, HostNo, Key, Message, Note, Request, Step, Stored};
use super::world::{KEYS, World};

const TICK_MS: u64 = 50;
/// Copies of a set at most.
pub const COPIES_MAX: usize = 3;

/// What is on a disk, page cache included.
#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    pub cells: Vec<Cell>,
}

/// One copy on one host.
pub struct Copy {
    /// The incarnation; 0 while the process is down.
    pub life: u64,
    /// The incarnation before, or this one.
    pub last_life: u64,
    pub core: Option<Core>,
    pub disk: Disk,
    /// What a power cut leaves for certain.
    pub durable: Disk,
    /// What it has written down of what others lack.
    pub records: Arc<Records>,
    /// Power cuts of its host so far.
    pub boots: u64,
    pub stored: StoredState,
    /// A power cut, or the end of a backup that held changes, took something since it was last in
    /// sync.
    pub lost: bool,
    /// It went alone since it was last healed: nobody else knows what it did.
    pub went_alone: bool,
    pub memory: Memory,
}

/// What one life remembers.
pub struct Memory {
    /// What other copies may lack: the product's own.
    pub absent: Absent,
    /// Sessions, the results of their requests, and locks: the product's own.
    pub sessions: Sessions,
    /// What time changes are given: the product's own.
    pub times: SetTime,
    /// Changes that some in-sync copy may lack.
    pub kept: BTreeMap<u64, Change>,
    /// Changes that are to be applied, by number, and the product's order among them.
    pub jobs: BTreeMap<u64, Job>,
    pub queue: KeyQueue<u64>,
    /// Received, or ordered here, and not applied.
    pub unapplied: BTreeSet<u64>,
    pub received_to: u64,
    // Primary.
    pub waiting: BTreeMap<u64, Request>,
    /// Sessions with a request at work, and those that are about to end.
    pub busy: BTreeSet<u64>,
    pub ending: BTreeSet<u64>,
    /// When sessions were looked over.
    pub looked_ms: u64,
    /// Registers as they are after all ordered changes.
    pub ahead: BTreeMap<Key, (u64, Option<u64>)>,
    pub streams: BTreeMap<HostNo, usize>,
    pub opening: BTreeMap<HostNo, usize>,
    pub heals: BTreeMap<HostNo, Heal>,
    pub recovery: Option<BTreeSet<HostNo>>,
    // Backup.
    pub incoming: Option<usize>,
    pub was_in_sync: bool,
    pub disk_failed: bool,
    /// Sent to each copy over its stream, and not answered.
    pub unanswered: BTreeMap<HostNo, BTreeMap<u64, Change>>,
    /// Syncs that wait until what was sent before is applied: number and stream.
    pub syncs: Vec<(u64, usize)>,
    /// What each copy has confirmed as durable.
    pub synced: BTreeMap<HostNo, u64>,
    pub queries: BTreeMap<HostNo, u64>,
    /// Copies that went on alone, on a way of their own.
    pub strays: [bool; COPIES_MAX],
    /// Copies that said they have no room.
    pub full: BTreeSet<HostNo>,
}

/// A change in the queue of its register.
#[derive(Clone, Debug)]
pub struct Job {
    pub change: Change,
    /// The stream on which it came; none for the primary's own.
    pub stream: Option<usize>,
}

impl Copy {
    pub fn new(host: HostNo) -> Self {
        let records = Arc::new(Records::default());
        let disk = Disk {
            cells: vec![Cell::default(); KEYS as usize],
        };
        Copy {
            life: 0,
            last_life: 0,
            core: None,
            durable: disk.clone(),
            disk,
            stored: StoredState::default(),
            lost: false,
            went_alone: false,
            memory: Memory::new(host, &records, 0),
            records,
            boots: 0,
        }
    }
}

impl Memory {
    fn new(host: HostNo, records: &Arc<Records>, boots: u64) -> Self {
        let writer = Writer {
            boot: boots.to_string(),
            mount: 1,
        };
        let records = Arc::clone(records) as Arc<dyn HealSource>;
        Memory {
            absent: Absent::written_by(records, World::brick(host), writer),
            sessions: Sessions::new(),
            times: SetTime::default(),
            kept: BTreeMap::new(),
            jobs: BTreeMap::new(),
            queue: KeyQueue::new(),
            unapplied: BTreeSet::new(),
            received_to: 0,
            waiting: BTreeMap::new(),
            busy: BTreeSet::new(),
            ending: BTreeSet::new(),
            looked_ms: 0,
            ahead: BTreeMap::new(),
            streams: BTreeMap::new(),
            opening: BTreeMap::new(),
            heals: BTreeMap::new(),
            recovery: None,
            incoming: None,
            was_in_sync: false,
            disk_failed: false,
            unanswered: BTreeMap::new(),
            syncs: Vec::new(),
            synced: BTreeMap::new(),
            queries: BTreeMap::new(),
            strays: Default::default(),
            full: BTreeSet::new(),
        }
    }
}

impl World {
    /// A process starts, unless it runs.
    pub fn start_host(&mut self, host: HostNo) {
        self.hosts[host].up = true;
        let refused = self.hosts[host].wiped;
        if host >= self.copies.len() || self.copies[host].life != 0 || refused {
            return;
        }
        let (mut life, seed) = (self.random.id(), self.random.id());
        if self.bug == Bug::Resume && self.copies[host].last_life != 0 {
            life = self.copies[host].last_life;
        }
        let now = self.clock(host);
        let (core, commands) = Core::start(
            World::brick(host),
            Incarnation(life),
            &self.copies[host].stored,
            Timing::default(),
            seed,
            now,
        );
        let copy = &mut self.copies[host];
        copy.life = life;
        copy.last_life = life;
        copy.core = Some(core);
        copy.memory = Memory::new(host, &copy.records, copy.boots);
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
                let (keeps, torn) = (self.random.chance(50), self.random.chance(10));
                let torn = (torn && key < FILES as usize).then(|| self.random.id());
                let copy = &mut self.copies[host];
                if copy.disk.cells[key] != copy.durable.cells[key] && !keeps {
                    copy.disk.cells[key] = copy.durable.cells[key];
                    // A part of the old bytes and a part of the new.
                    copy.disk.cells[key].value = torn.or(copy.disk.cells[key].value);
                    copy.lost = true;
                }
            }
            self.copies[host].boots += 1;
            self.copies[host].records.lose_power(&mut self.random);
            let copy = &mut self.copies[host];
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
        self.look_over_sessions(host);
        if self.random.chance(10) {
            self.check_index(host);
        }
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
            core.gone(brick, Incarnation(life), Gone::ProcessDied, now)
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
                    let stream = None;
                    self.queue(host, Job { change, stream });
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
                let full = self.hosts[host].full > 0;
                let answer = Note::BeaconAnswer { epoch, sent, full };
                self.note(host, World::host_of(to), answer);
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
                let slow = self.hosts[host].slow_until > self.now;
                let at = self.now + self.random.between(1, if slow { 1_500 } else { 12 });
                let stored = Stored {
                    epoch,
                    history,
                    alone,
                };
                self.at(at, Event::Stored { host, life, stored });
            }
            Command::Mark { brick, epoch, .. } => self.mark(host, brick, epoch),
            Command::Doubt {
                brick,
                epoch,
                cleared_by,
            } => {
                let absent = &self.copies[host].memory.absent;
                let written = absent.doubt(brick, epoch, cleared_by);
                self.must_write(host, written.is_ok());
            }
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
        self.note_in_sync(host);
    }

    fn role_changed(&mut self, host: HostNo, role: Role) {
        let epoch = self.copies[host]
            .core
            .as_ref()
            .map_or(0, |core| core.epoch().number);
        self.trace(|| format!("host {host} is {role:?} in epoch {epoch}"));
        match &role {
            Role::Backup => self.copies[host].memory.was_in_sync = true,
            Role::Recovering => {
                let rolled_back = self.copies[host].lost && !self.copies[host].memory.was_in_sync;
                if rolled_back {
                    self.roll_back(host);
                }
                if !self.copies[host].memory.was_in_sync {
                    self.newest_time = (0, 0); // Only the clocks are left.
                }
                self.copies[host].memory.was_in_sync = true;
            }
            Role::Primary => {
                let now = self.clock(host);
                self.copies[host].memory.sessions.start_hearing(now);
            }
            _ => {}
        }
        if !matches!(role, Role::Primary | Role::Recovering) {
            let memory = &mut self.copies[host].memory;
            memory.ahead.clear();
            memory.busy.clear();
            memory.ending.clear();
            memory.waiting.clear();
            memory.recovery = None;
        }
        let Some(core) = &self.copies[host].core else {
            return;
        };
        let (epoch, last) = (core.epoch().clone(), core.last_number());
        let (absent, life) = (&self.copies[host].memory.absent, self.copies[host].life);
        let bricks: Vec<BrickId> = (0..self.copies.len()).map(World::brick).collect();
        let written = absent.in_role(&role, &epoch, Incarnation(life), last, &bricks);
        self.must_write(host, written.is_ok());
    }

    // ------------------------------------------------------------ applying

    pub fn queue(&mut self, host: HostNo, job: Job) {
        let number = job.change.number;
        let keys = keys_of_step(&product_change(&job.change));
        let memory = &mut self.copies[host].memory;
        memory.jobs.insert(number, job);
        if memory.queue.admit(number, keys) {
            self.schedule_apply(host, number);
        }
    }

    fn schedule_apply(&mut self, host: HostNo, number: u64) {
        let slow_disk = self.hosts[host].slow_until > self.now;
        let slow = self.random.chance(4) || slow_disk || self.hosts[host].disk_until > self.now;
        let takes = if slow_disk {
            self.random.between(100, 2_500)
        } else if slow {
            self.random.between(20, 300)
        } else {
            self.random.between(0, 3)
        };
        let life = self.copies[host].life;
        let job = self.copies[host].memory.jobs.get(&number);
        if let Some(stream) = job.and_then(|job| job.stream).filter(|_| slow) {
            self.answer(host, stream, number, Answer::Held);
        }
        let apply = Event::Apply { host, life, number };
        self.at(self.now + takes, apply);
    }

    pub fn on_apply(&mut self, host: HostNo, number: u64) {
        let memory = &mut self.copies[host].memory;
        let Some(job) = memory.jobs.remove(&number) else {
            return;
        };
        for next in memory.queue.done(&number) {
            self.schedule_apply(host, next);
        }
        if self.copies[host].memory.disk_failed {
            if let Some(stream) = job.stream {
                self.answer(host, stream, number, Answer::Failed);
            }
            return;
        }
        if !job.change.step.is_memory_only() {
            self.note_for_absent(host, &job.change);
        }
        self.apply(host, &job.change);
        self.copies[host].memory.unapplied.remove(&number);
        match job.stream {
            Some(stream) => self.answer(host, stream, number, Answer::Applied),
            None => self.with_core(host, |core, now| core.applied(number, now)),
        }
        self.sync_as_asked(host);
        self.go_on_recovering(host, false);
    }

    /// Answers a change on the stream it came by.
    pub fn answer(&mut self, host: HostNo, stream: usize, number: u64, answer: Answer) {
        let ack = Message::Ack {
            number,
            answer,
            synced: 0,
        };
        self.send(stream, host, ack);
    }

    pub fn apply(&mut self, host: HostNo, change: &Change) {
        let copy = &mut self.copies[host];
        match change.step {
            Step::Set { value, .. } => {
                copy.disk.cells[change.key as usize] = Cell {
                    version: change.number,
                    value,
                };
            }
            Step::Heal(Some(cell)) => copy.disk.cells[change.key as usize] = cell,
            Step::Fsync => {
                for key in keys_of(object_of(change.key)).map(usize::from) {
                    copy.durable.cells[key] = copy.disk.cells[key];
                }
            }
            Step::End(session) => {
                copy.memory.ending.remove(&session);
            }
            Step::Heal(None) | Step::Sync | Step::Begin | Step::Lock { .. } | Step::Settled(_) => {}
        }
        if self.bug != Bug::ForgetTimes {
            copy.memory.times.saw(change.time);
        }
        copy.memory.sessions.apply(&product_change(change));
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
