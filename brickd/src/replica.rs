//! Replication of one set: order, apply, sessions, leases, failover.
//!
//! [`core`] decides and knows neither clock, disk nor network; this module's threads tell it what
//! happened and do what it says. [`plan`] turns a client's operation into an ordered change;
//! [`memory`] is what every copy remembers of sessions, opens, locks and results.
//!
//! Lock order: order lock ([`streams`]), core, memory, absent copies; the key gate's lock is taken
//! alone.

pub mod absent;
pub mod answers;
mod background;
mod beacons;
mod connections;
pub mod core;
mod epochs;
pub mod follow;
pub mod foresight;
pub mod gate;
pub mod healing;
pub mod keys;
pub mod lanes;
pub mod memory;
pub mod order;
mod page_caches;
pub mod partners;
pub mod pending;
pub mod plan;
pub mod recover;
pub mod scrub;
pub mod serve;
pub mod sessions;
pub mod space;
pub mod split;
pub mod streams;
mod table;
pub mod timers;
pub mod times;

use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mortar_common::{BrickId, Gfid, Incarnation, Signal, VolumeId};
use mortar_proto::data::{self, CopySynced, EpochRef, Goodbye, Hello, link_message};
use mortar_proto::frame::FrameError;
use mortar_proto::registry::{Epoch, Limits};
use tracing::{info, warn};

use self::absent::Absent;
use self::background::Postponed;
use self::connections::Connections;
use self::core::{Command, Core, Gone, Proposed, RegistryView, Role, Timing};
use self::gate::Gate;
use self::lanes::Lanes;
use self::memory::Memory;
use self::pending::{Pending, Stage};
use self::recover::Tail;
use self::serve::Turns;
use self::split::Conflicts;
use self::streams::Streams;
use self::times::SetTime;
use crate::brick::HealSource;
use crate::link::Stop;
use crate::registry::StillWanted;

/// With what the sentence of a copy begins that waits for one that left the registry: a registry that
/// was recovered may not know of the brick that was last in sync with it.
pub const UNKNOWN_WORDS: &str = "waiting for a brick that the registry does not know (any more)";

/// What a replica needs of the process around it. Calls of the first three block.
pub trait Ports: Send + Sync {
    /// Compare-and-set of the set's epoch in the registry. Not begun any more once `wanted` says no.
    fn propose(
        &self,
        expect: EpochRef,
        next: &Epoch,
        lone: &[Epoch],
        wanted: StillWanted,
    ) -> Proposed;
    /// A linearizable read of the set; `None` without quorum.
    fn read_registry(&self) -> Option<RegistryView>;
    /// Opens a data connection to another copy's peer.
    ///
    /// # Errors
    /// As [`crate::link::open`].
    fn connect(&self, to: BrickId, hello: Hello) -> Result<(TcpStream, Hello), FrameError>;
    /// Sends a link message to another copy's peer, without waiting.
    fn send(&self, to: BrickId, message: link_message::What);
    /// The newest epoch known to list this copy as in sync.
    fn last_in_sync(&self, brick: BrickId) -> Option<EpochRef>;
    /// Every brick of the set.
    fn bricks(&self) -> Vec<BrickId>;
    /// `HOST:/path` of a copy, for people to read.
    fn name_of(&self, brick: BrickId) -> String;
}

/// What is fixed for the life of a replica.
pub struct Setting {
    /// This copy.
    pub me: BrickId,
    /// This life of it.
    pub incarnation: Incarnation,
    /// The volume.
    pub volume: VolumeId,
    /// Its name.
    pub volume_name: String,
    /// Which of its replica sets.
    pub set: u32,
    /// The brick's folder.
    pub folder: std::path::PathBuf,
    /// The volume's times.
    pub timing: Timing,
}

/// One copy of a replica set, running.
pub struct Replica {
    setting: Setting,
    store: Arc<dyn HealSource>,
    ports: Arc<dyn Ports>,
    core: Mutex<Core>,
    /// Signalled after every event that may let a waiting request go on.
    moved: Signal,
    memory: Mutex<Memory>,
    primary_since_ms: AtomicU64,
    looked_over_ms: AtomicU64,
    gate: Gate,
    pending: Pending,
    streams: Streams,
    connections: Connections,
    absent: Absent,
    turns: Turns,
    lanes: Lanes,
    tail: Tail,
    follower: follow::Follower,
    healing: healing::Healing,
    /// The comparison of in-sync copies that runs, or ran last. Taken alone.
    scrub: Mutex<Option<Arc<crate::heal::scrub::Scrub>>>,
    conflicts: Conflicts,
    postponed: Postponed,
    times: Mutex<SetTime>,
    /// Id of the last query that each copy has answered.
    answered_queries: Mutex<HashMap<BrickId, u64>>,
    /// Newest epoch handed to the disk; stores are made one at a time and never go back.
    stored_epoch: Mutex<u64>,
    free_bytes: space::FreeBytes,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    /// The volume's limits: a brick that takes another's place may narrow them. Taken alone.
    limits: Mutex<Limits>,
    stop: Arc<Stop>,
}

/// ms of CLOCK_BOOTTIME: goes on while the machine sleeps, never steps.
pub fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
}

impl Replica {
    /// Starts a copy on an opened brick: it finds out by itself what it is and may do.
    pub fn start(
        setting: Setting,
        limits: Limits,
        store: Arc<dyn HealSource>,
        ports: Arc<dyn Ports>,
        view: Option<RegistryView>,
    ) -> Arc<Self> {
        let stored = store.stored_state();
        let seed = mortar_common::ids::random_id();
        let (core, mut commands) = Core::start(
            setting.me,
            setting.incarnation,
            &stored,
            setting.timing,
            seed,
            now_ms(),
        );
        let replica = Arc::new(Replica {
            core: Mutex::new(core),
            moved: Signal::default(),
            memory: Mutex::default(),
            primary_since_ms: AtomicU64::new(0),
            looked_over_ms: AtomicU64::new(0),
            gate: Gate::default(),
            pending: Pending::default(),
            streams: Streams::default(),
            absent: Absent::new(Arc::clone(&store), setting.me, &setting.folder),
            turns: Turns::default(),
            connections: Connections::default(),
            lanes: Lanes::start(&setting.volume_name),
            tail: Tail::default(),
            follower: follow::Follower::default(),
            healing: healing::Healing::default(),
            scrub: Mutex::default(),
            conflicts: Conflicts::default(),
            postponed: Postponed::default(),
            times: Mutex::default(),
            answered_queries: Mutex::default(),
            stored_epoch: Mutex::new(stored.epoch.as_ref().map_or(0, |epoch| epoch.number)),
            free_bytes: space::FreeBytes::default(),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            limits: Mutex::new(limits),
            stop: Arc::new(Stop::default()),
            setting,
            store,
            ports,
        });
        if let Some(view) = view {
            commands.extend(replica.lock_core().view(view, now_ms()));
        }
        replica.run(commands);
        timers::start(&replica);
        replica
    }

    /// What is fixed.
    pub fn setting(&self) -> &Setting {
        &self.setting
    }

    /// Its present role and epoch.
    pub fn role(&self) -> (Role, Epoch) {
        let core = self.lock_core();
        (core.role().clone(), core.epoch().clone())
    }

    /// A sentence of the core's, for people: it names bricks by their ids.
    pub fn with_names(&self, sentence: &str) -> String {
        let Some(id) = sentence.strip_prefix("waiting for brick ") else {
            return sentence.to_owned();
        };
        let (id, rest) = id.split_once(':').unwrap_or((id, ""));
        let named = self
            .ports
            .bricks()
            .into_iter()
            .find(|brick| brick.to_string() == id);
        let (volume, me) = (
            &self.setting.volume_name,
            self.ports.name_of(self.setting.me),
        );
        match named {
            Some(brick) => format!("waiting for {}:{rest}", self.ports.name_of(brick)),
            None => format!(
                "{UNKNOWN_WORDS}, {id}:{rest}. If it is lost for good, 'mortar volume heal {volume} \
                 split-brain source-brick {me}' goes on with what this brick has"
            ),
        }
    }

    /// The brick below.
    pub fn store(&self) -> &Arc<dyn HealSource> {
        &self.store
    }

    /// Whether somebody has an object open, or may have: sessions tell a new primary at first.
    pub fn is_open(&self, gfid: Gfid) -> bool {
        self.lock_memory().is_open(gfid)
    }

    /// The highest change number known, and up to which all copies in sync are known to have applied
    /// them.
    pub fn progress(&self) -> (u64, u64) {
        let core = self.lock_core();
        (core.last_number(), core.complete())
    }

    /// The registry's applied state changed.
    pub fn view(self: &Arc<Self>, view: RegistryView) {
        self.event(|core, now| core.view(view, now));
    }

    /// What every copy of the volume can hold, from now on.
    pub fn set_limits(&self, limits: Limits) {
        *lock(&self.limits) = limits;
    }

    /// Another copy's peer cannot be reached; no proof of anything. The stream to it is broken and
    /// opened again: its own thread tells the core when it is down and when it is up. Telling the
    /// core here would have it wait for a stream that, being whole, never comes up again.
    pub fn unreachable(&self, brick: BrickId) {
        self.streams.shut(brick);
    }

    /// Another copy is gone for certain.
    pub fn gone(self: &Arc<Self>, brick: BrickId, incarnation: Incarnation, gone: Gone) {
        self.event(|core, now| core.gone(brick, incarnation, gone, now));
    }

    /// The process in which another copy lived is gone for certain.
    pub fn process_gone(self: &Arc<Self>, brick: BrickId, process: Incarnation, gone: Gone) {
        self.event(|core, now| core.process_gone(brick, process, gone, now));
    }

    /// The operator says that this copy is the one to trust (`volume start V force BRICK`).
    pub fn trust(self: &Arc<Self>) {
        self.event(|core, now| core.operator_trusts_me(now));
    }

    /// From here on this copy answers nothing and proposes nothing: its place is taken by whoever
    /// hears its goodbye, which is said only now. It does not hand its place over itself, because
    /// with two voters the other goes alone at the goodbye, and two epochs of one number would be
    /// a split.
    pub fn halt(self: &Arc<Self>) {
        self.stop.stop();
        self.event(|core, now| core.stop(now));
        self.streams.close_all();
        self.follower.shut();
        self.connections.close_all();
    }

    /// The rest of an orderly stop, after [`Replica::halt`]: everything on disk.
    pub fn finish_stop(&self) {
        self.lanes.stop();
        if let Err(error) = self.store.sync_all() {
            warn!(%error, "the brick could not be synced at its stop");
            return;
        }
        // No newer sync of its own, but what it has heard of the others' since the last.
        if let Err(error) = self.store_synced(0) {
            warn!(%error, "what the other copies have synced could not be written down");
        }
    }

    /// Whether [`Replica::halt`] was called.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_stopped()
    }

    /// A link message that names this copy.
    pub fn message(self: &Arc<Self>, message: link_message::What) {
        match message {
            link_message::What::Beacon(beacon) => {
                let (from, epoch) = (BrickId(beacon.from_brick), beacon.epoch.unwrap_or_default());
                self.hear_of_syncs(from, epoch, &beacon.synced);
                self.event(|core, now| core.beacon(from, epoch, beacon.sent, now));
            }
            link_message::What::BeaconAnswer(answer) => {
                let (from, epoch) = (BrickId(answer.from_brick), answer.epoch.unwrap_or_default());
                self.free_bytes
                    .learned(from, answer.sent, answer.free_bytes);
                self.event(|core, now| core.beacon_answer(from, epoch, answer.sent, now));
            }
            link_message::What::Query(query) => {
                let state = link_message::What::State(self.copy_state(query.id));
                self.ports.send(BrickId(query.from_brick), state);
            }
            link_message::What::State(state) => {
                let newest = {
                    let mut answered = lock(&self.answered_queries);
                    let last = answered.entry(BrickId(state.brick)).or_default();
                    let newest = state.id >= *last;
                    *last = state.id.max(*last);
                    newest
                };
                if !newest {
                    return; // An answer that was overtaken tells of the past.
                }
                self.event(|core, now| core.copy_state(state, now));
            }
            link_message::What::Goodbye(_) => {} // The host turns it into `gone`.
        }
    }

    /// What the primary's beacon tells of confirmed syncs: changes bring it too, but a quiet volume
    /// has none.
    fn hear_of_syncs(&self, from: BrickId, epoch: EpochRef, synced: &[CopySynced]) {
        let (role, mine) = self.role();
        let of_mine = EpochRef {
            number: mine.number,
            id: mine.id,
        } == epoch;
        if role != Role::Backup || !of_mine || mine.primary != from.0 {
            return;
        }
        self.absent.heard(synced);
        if let Some(own) = synced.iter().find(|synced| synced.brick == from.0) {
            self.absent.recorded(from, own.number);
        }
    }

    /// Tells the core that something happened and does what it says.
    fn event(self: &Arc<Self>, happened: impl FnOnce(&mut Core, u64) -> Vec<Command>) {
        let commands = happened(&mut self.lock_core(), now_ms());
        self.run(commands);
    }

    /// Carries out commands in their order, then wakes whoever waits for the core to move.
    fn run(self: &Arc<Self>, commands: Vec<Command>) {
        if commands.is_empty() {
            return;
        }
        for command in commands {
            self.carry_out(command);
        }
        self.moved.notify_all();
    }

    fn carry_out(self: &Arc<Self>, command: Command) {
        match command {
            Command::Apply(number) => self.pending.advance(number, Stage::MayApply),
            Command::Answer(number) => {
                self.pending.advance(number, Stage::MayAnswer);
            }
            Command::Abandon(numbers) => {
                for number in numbers {
                    self.pending.advance(number, Stage::Abandoned);
                }
            }
            Command::OpenStream {
                to,
                incarnation,
                joined,
            } => {
                self.open_stream(to, incarnation, joined);
            }
            Command::CloseStream(to) => self.close_stream(to),
            Command::Beacon { to, sent } => self.ports.send(to, self.beacon(to, sent)),
            Command::AnswerBeacon { to, sent } => self.ports.send(to, self.beacon_answer(to, sent)),
            Command::Query(to) => self.ports.send(to, self.query(to)),
            Command::ReadRegistry => self.in_background("registry-read", |replica| {
                if let Some(view) = replica.ports.read_registry() {
                    replica.view(view);
                }
            }),
            Command::Propose { .. } if self.stop.is_stopped() => {}
            Command::Propose { expect, next, lone } => {
                self.in_background("propose", move |replica| {
                    let outcome = replica.propose(expect, &next, &lone);
                    replica.event(|core, now| core.proposed(expect, outcome, now));
                });
            }
            Command::Store {
                epoch,
                history,
                alone,
            } => self.store_epoch(epoch, history, alone),
            Command::Mark {
                brick,
                epoch,
                unanswered,
            } => self.mark(brick, epoch, &unanswered),
            Command::Doubt {
                brick,
                epoch,
                cleared_by,
            } => {
                if let Err(failure) = self.absent.doubt(brick, epoch, cleared_by) {
                    self.disk_failed(&failure.to_string());
                }
            }
            Command::StartHeal(brick) => self.start_heal(brick),
            Command::StopHeal(brick) => self.stop_heal(brick),
            Command::SendTable(brick) => self.send_table(brick),
            Command::Recover => self.in_background("recover", |replica| replica.recover()),
            Command::RoleChanged(role) => self.role_changed(&role),
        }
    }

    fn role_changed(self: &Arc<Self>, role: &Role) {
        let epoch = self.lock_core().epoch().clone();
        let (volume, number) = (&self.setting.volume_name, epoch.number);
        let brick = self.ports.name_of(self.setting.me);
        let in_sync: Vec<String> = epoch
            .in_sync
            .iter()
            .map(|copy| self.ports.name_of(BrickId(copy.brick)))
            .collect();
        let in_sync = in_sync.join(", ");
        match role {
            Role::Stopped(_) if self.stop.is_stopped() => info!(volume, brick, "halted"),
            Role::Split | Role::Stopped(_) => {
                warn!(volume, brick, epoch = number, ?role, "this copy is closed");
            }
            _ => info!(volume, brick, epoch = number, in_sync, ?role, "role"),
        }
        let last = self.newest_number();
        let (absent, life) = (&self.absent, self.setting.incarnation);
        if let Err(failure) = absent.in_role(role, &epoch, life, last, &self.ports.bricks()) {
            return self.disk_failed(&failure.to_string());
        }
        self.conflicts.forget();
        if *role == Role::Primary {
            self.begin_as_primary();
        }
    }

    /// Notices a brick that was taken away, without waiting for a change that fails.
    fn look_at_brick(self: &Arc<Self>) {
        if !matches!(self.role().0, Role::Stopped(_))
            && let Err(failure) = self.store.check()
        {
            self.disk_failed(&failure.to_string());
        }
    }

    fn disk_failed(self: &Arc<Self>, reason: &str) {
        tracing::error!(
            brick = self.ports.name_of(self.setting.me),
            reason,
            "the brick failed"
        );
        let reason = reason.to_owned();
        self.event(|core, now| core.disk_failed(reason, now));
        // The others need not wait until its silence is long enough.
        for brick in self.ports.bricks() {
            if brick != self.setting.me {
                let goodbye = Goodbye {
                    brick: self.setting.me.0,
                    incarnation: self.setting.incarnation.0,
                };
                self.ports.send(brick, link_message::What::Goodbye(goodbye));
            }
        }
    }

    fn volume_bytes(&self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&self.setting.volume.0)
    }

    fn lock_core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until the core moved, or for a while; says whether it is worth trying again.
    fn wait_for_move(&self, time: Duration) {
        let core = self.lock_core();
        drop(self.moved.wait_timeout(core, time));
    }

    fn next_time(&self) -> data::Time {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ns = since.map_or(0, |since| since.as_nanos() as i128);
        lock(&self.times).next(now_ns)
    }

    /// A copy saw a change of this time: the next one here is later.
    fn saw_time(&self, time: data::Time) {
        lock(&self.times).saw(time);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
