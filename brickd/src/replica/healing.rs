//! Heals that this primary runs: one thread for each copy that is syncing.

use std::collections::{BTreeMap, HashMap};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use mortar_common::placement::name_hash;
use mortar_common::{BrickId, Signal};
use mortar_proto::WIRE_VERSION;
use mortar_proto::control::BrickHeal;
use mortar_proto::data::change::Step;
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::result::Ok as Answer;
use mortar_proto::data::{
    self, AloneMarks, Hello, Op, Reply, Request, Role as HelloRole, SyncStep,
};
use mortar_proto::frame::{self, Kind};
use prost::Message;
use tracing::{debug, info, warn};

use super::core::WaitFor;
use super::keys::{Key, Keys, Mode};
use super::order::Origin;
use super::streams::{Numbered, lock_unanswered};
use super::{Replica, now_ms};
use crate::brick::HealSource;
use crate::heal::record::MarkRecord;
use crate::heal::{Gone, HealControl, HealError, HealPort, Healer, PartnerMarks, Progress, Scope};

/// Bytes of heal changes on their way to one copy.
const WINDOW_BYTES: usize = 8 << 20;
/// Changes on their way to one copy.
const WINDOW_CHANGES: usize = 512;
/// A question that the copy does not answer for this long ends the heal, which begins again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A copy may take this long to make durable what it was sent.
const SYNC_TIMEOUT_MS: u64 = 120_000;
/// How long one look for room or a confirmed sync sleeps.
const POLL: Duration = Duration::from_millis(20);

/// The heals of one primary.
#[derive(Default)]
pub struct Healing {
    runs: Mutex<HashMap<BrickId, Arc<Run>>>,
    control: HealControl,
    /// Signalled when an answer or a confirmed sync comes.
    moved: Signal,
    synced: Mutex<HashMap<BrickId, u64>>,
}

/// One heal.
pub struct Run {
    stopped: AtomicBool,
    /// A heal change did not apply.
    failed: AtomicBool,
    progress: Progress,
}

impl Healing {
    /// Ends the heal of a copy.
    pub fn stop(&self, copy: BrickId) {
        if let Some(run) = self.runs().remove(&copy) {
            run.stopped.store(true, Ordering::Relaxed);
        }
        self.moved.notify_all();
    }

    /// A copy could not apply a heal change: the heal ends and begins anew.
    pub fn fail(&self, copy: BrickId) {
        if let Some(run) = self.runs().get(&copy) {
            run.failed.store(true, Ordering::Relaxed);
        }
        self.moved.notify_all();
    }

    /// A copy has answered a change.
    pub fn answered(&self) {
        self.moved.notify_all();
    }

    /// A copy has confirmed a sync.
    pub fn synced(&self, copy: BrickId, number: u64) {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = synced.entry(copy).or_default();
        *newest = number.max(*newest);
        self.moved.notify_all();
    }

    /// The switch of `volume heal V enable|disable`.
    pub fn control(&self) -> &HealControl {
        &self.control
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<BrickId, Arc<Run>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replica {
    pub(super) fn start_heal(self: &Arc<Self>, copy: BrickId) {
        if self.healing.runs().contains_key(&copy) {
            return; // It goes on: it looks for marks by itself.
        }
        let marks = match self.absent.ensure(copy, self.ports.last_in_sync(copy)) {
            Ok(marks) => marks,
            Err(failure) => return self.disk_failed(&failure.to_string()),
        };
        {
            let _order = self.streams.lock();
            let number = self.lock_core().last_number();
            let in_flight = self.tail.above(0);
            let changes = in_flight.iter().map(|numbered| &numbered.change);
            if let Err(failure) = self.absent.heal_begins(copy, number, changes) {
                return self.disk_failed(&failure.to_string());
            }
        }
        let run = Arc::new(Run {
            stopped: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            progress: Progress::new(),
        });
        self.healing.runs().insert(copy, Arc::clone(&run));
        self.in_background(&format!("heal-{copy}"), move |replica| {
            replica.run_heal(copy, &run, marks);
        });
    }

    fn run_heal(self: &Arc<Self>, copy: BrickId, run: &Arc<Run>, marks: Arc<PartnerMarks>) {
        let name = self.ports.name_of(copy);
        info!(
            copy = name,
            marks = marks.look(|marks| marks.len()),
            "heals"
        );
        let port = Port {
            replica: Arc::downgrade(self),
            source: Arc::clone(&self.store),
            copy,
            marks,
            run: Arc::clone(run),
            asking: Asker::new(self, copy),
            last_sent: AtomicU64::new(0),
        };
        let ended = match port.take_in_what_it_changed_alone() {
            Ok(()) => Healer::new(&port, self.healing.control(), &run.progress).run(),
            Err(error) => error,
        };
        let (bytes, count) = (run.progress.bytes_healed(), run.progress.marks_healed());
        match ended {
            HealError::Stopped | HealError::Gone(_) if run.stopped.load(Ordering::Relaxed) => {
                info!(copy = name, bytes, marks = count, "the heal ended");
            }
            HealError::Stopped | HealError::Gone(_) => {
                info!(copy = name, bytes, marks = count, "the heal is interrupted");
                self.stop_heal(copy);
                self.event(|core, now| core.heal_failed(copy, now));
            }
            HealError::Source(failure) => self.disk_failed(&failure.to_string()),
            HealError::Nonsense(words) => {
                warn!(copy = name, words, "the heal failed");
                self.stop_heal(copy);
                self.event(|core, now| core.heal_failed(copy, now));
            }
        }
    }

    /// Ends a heal: the copy is in sync now, or away again.
    pub(super) fn stop_heal(self: &Arc<Self>, copy: BrickId) {
        self.healing.stop(copy);
        if self.is_in_sync(copy) {
            self.absent.is_back(copy);
            // What it got by heal is durable there; make it so here, that it can be told apart
            // from what changes from now on.
            self.in_background("sync", |replica| replica.sync_and_confirm());
        } else {
            self.absent.heal_ends(copy);
        }
    }

    /// `volume heal V` and `volume heal V full`, for copies that are not in sync. With `full`
    /// everything is compared.
    pub fn launch_heal(self: &Arc<Self>, full: bool) {
        for marks in self.absent.all_marks() {
            if full && let Err(failure) = marks.mark_everything(Scope::All) {
                warn!(%failure, "a full heal could not be started");
            }
        }
    }

    /// `volume heal V enable|disable`.
    pub fn enable_heal(&self, enable: bool) {
        if enable {
            self.healing.control().enable()
        } else {
            self.healing.control().disable()
        }
    }

    /// What `volume heal V info` tells of the copies that lack something this one has.
    pub fn heal_report(&self) -> BrickHeal {
        let mut whole = BrickHeal::default();
        let runs = self.healing.runs().clone();
        for marks in self.absent.all_marks() {
            let copy = marks.partner();
            let run = runs.get(&copy);
            let name = self.ports.name_of(copy);
            let progress = run.map(|run| &run.progress);
            let one = crate::heal::progress::report(&marks, &*self.store, progress, &name);
            whole.entries.extend(one.entries);
            whole.total += one.total;
            whole.healing += one.healing;
            whole.bytes_pending += one.bytes_pending;
            whole.bytes_healed += one.bytes_healed;
            whole.seconds_left = whole.seconds_left.max(one.seconds_left);
        }
        if let Some(scrub) = self.scrub() {
            let others = self.ports.bricks().into_iter();
            let others = others.filter(|brick| *brick != self.setting().me);
            let names: Vec<String> = others.map(|brick| self.ports.name_of(brick)).collect();
            let (entries, total) =
                scrub.entries(&names.join(", "), |gfid| self.store.path_of(gfid));
            whole.entries.extend(entries);
            whole.total += total;
        }
        whole
    }
}

/// The driver as one heal sees it.
struct Port {
    replica: Weak<Replica>,
    source: Arc<dyn HealSource>,
    copy: BrickId,
    marks: Arc<PartnerMarks>,
    run: Arc<Run>,
    asking: Asker,
    /// Number of the last heal change that was sent.
    last_sent: AtomicU64,
}

impl Port {
    fn replica(&self) -> Result<Arc<Replica>, Gone> {
        self.replica
            .upgrade()
            .filter(|replica| !replica.is_stopped())
            .ok_or(Gone)
    }

    fn check(&self) -> Result<Arc<Replica>, Gone> {
        if self.stopped() || self.run.failed.load(Ordering::Relaxed) {
            Err(Gone)
        } else {
            self.replica()
        }
    }

    /// Waits until `done`, asked with what the copy has confirmed as synced and what it has not
    /// answered, says so.
    fn wait_for(
        &self,
        done: impl Fn(u64, &BTreeMap<u64, Arc<Numbered>>) -> bool,
    ) -> Result<(), Gone> {
        let give_up_ms = now_ms() + SYNC_TIMEOUT_MS;
        while now_ms() < give_up_ms {
            let replica = self.check()?;
            let unanswered = {
                let streams = replica.streams.lock();
                Arc::clone(&streams.get(&self.copy).ok_or(Gone)?.unanswered)
            };
            let synced = lock(&replica.healing.synced);
            let confirmed = synced.get(&self.copy).copied().unwrap_or(0);
            if done(confirmed, &lock_unanswered(&unanswered)) {
                return Ok(());
            }
            drop(replica.healing.moved.wait_timeout(synced, POLL));
        }
        Err(Gone)
    }

    /// What the copy changed while both sides were on their own differs from here, and only the
    /// copy knows it. It knows it until it is in sync, so that this may be done again.
    fn take_in_what_it_changed_alone(&self) -> Result<(), HealError> {
        let me = self.replica()?.setting().me;
        let mut after = None;
        loop {
            let ask = AloneMarks {
                of_brick: me.0,
                after,
            };
            let op = Op {
                op: Some(OpKind::AloneMarks(ask)),
            };
            let nonsense = |what: &str| HealError::Nonsense(what.to_owned());
            let answer = self.ask(vec![op])?.pop().unwrap_or_default();
            let record = match answer.ok {
                Some(Answer::Bytes(bytes)) if answer.errno == 0 => bytes,
                None if answer.errno == 0 => return Ok(()),
                _ => return Err(nonsense("no answer to what it changed alone")),
            };
            let record = MarkRecord::decode(&record[..])
                .map_err(|error| HealError::Nonsense(error.to_string()))?;
            self.marks.take_in(&record)?;
            let last = answer.objects.first().and_then(|object| object.gfid);
            after = Some(last.ok_or_else(|| nonsense("what it changed alone has no end"))?);
        }
    }
}

impl HealPort for Port {
    fn source(&self) -> &dyn HealSource {
        &*self.source
    }

    fn marks(&self) -> &PartnerMarks {
        &self.marks
    }

    fn with_keys(&self, keys: &[crate::heal::Key], work: &mut dyn FnMut()) -> Result<(), Gone> {
        let replica = self.check()?;
        let mut wanted = Keys::none();
        for key in keys {
            match key {
                crate::heal::Key::Object(gfid) => wanted.add(Key::Object(*gfid), Mode::Remove),
                crate::heal::Key::Name(dir, name) => {
                    wanted.add(Key::Name(*dir, name_hash(*dir, name)), Mode::Change);
                }
            }
        }
        let pass = replica.gate.enter(wanted);
        work();
        drop(pass);
        Ok(())
    }

    fn send(&self, step: Step, payload: Vec<u8>) -> Result<u64, Gone> {
        let replica = self.check()?;
        let (numbered, _) = replica
            .order(
                &mut |_| Some(step.clone()),
                Bytes::from(payload),
                Origin::default(),
                WaitFor::Heal(self.copy),
                ANSWER_TIMEOUT,
            )
            .map_err(|_| Gone)?;
        self.last_sent
            .store(numbered.change.number, Ordering::Relaxed);
        Ok(numbered.change.number)
    }

    fn make_room(&self, _bytes: u64) -> Result<(), Gone> {
        self.wait_for(|_, unanswered| {
            let bytes: usize = unanswered.values().map(|n| n.payload.len()).sum();
            unanswered.len() < WINDOW_CHANGES && bytes < WINDOW_BYTES
        })
    }

    fn ask(&self, ops: Vec<Op>) -> Result<Vec<data::Result>, Gone> {
        // The answer is to tell of everything that was sent before.
        let sent = self.last_sent.load(Ordering::Relaxed);
        self.wait_for(|_, unanswered| unanswered.keys().next().is_none_or(|first| *first > sent))?;
        self.check()?;
        self.asking.ask(ops).map(|(results, _)| results)
    }

    fn confirmed_sync(&self, up_to: u64) -> Result<(), Gone> {
        // Its own number is above all that was sent.
        let number = self.send(Step::Sync(SyncStep {}), Vec::new())?;
        debug!(copy = %self.copy, up_to, number, "asks for a confirmed sync");
        self.wait_for(|synced, _| synced >= number)
    }

    fn stopped(&self) -> bool {
        self.run.stopped.load(Ordering::Relaxed)
    }

    fn quiet(&self) {
        if let Ok(replica) = self.check() {
            let copy = self.copy;
            replica.event(|core, now| core.heal_quiet(copy, now));
        }
    }
}

/// Asks another copy, over a connection of its own.
pub struct Asker {
    replica: Weak<Replica>,
    copy: BrickId,
    asking: Mutex<Option<TcpStream>>,
}

impl Asker {
    /// Of this copy.
    pub fn new(replica: &Arc<Replica>, copy: BrickId) -> Self {
        Asker {
            replica: Arc::downgrade(replica),
            copy,
            asking: Mutex::default(),
        }
    }

    /// Which copy it asks.
    pub fn copy(&self) -> BrickId {
        self.copy
    }

    /// The answers, and the bytes of a read.
    ///
    /// # Errors
    /// [`Gone`]: the copy does not answer, or this one is halted.
    pub fn ask(&self, ops: Vec<Op>) -> Result<(Vec<data::Result>, Bytes), Gone> {
        let replica = self.replica.upgrade().ok_or(Gone)?;
        if replica.is_stopped() {
            return Err(Gone);
        }
        let mut asking = lock(&self.asking);
        let mut connection = match asking.take() {
            Some(connection) => connection,
            None => connect_to(&replica, self.copy)?,
        };
        let (reply, payload) = exchange(&mut connection, ops)?;
        *asking = Some(connection);
        Ok((reply.results, payload))
    }
}

fn connect_to(replica: &Replica, copy: BrickId) -> Result<TcpStream, Gone> {
    let hello = Hello {
        wire_version: WIRE_VERSION,
        role: HelloRole::Peer.into(),
        volume: replica.volume_bytes(),
        to_brick: copy.0,
        from_brick: replica.setting().me.0,
        ..Default::default()
    };
    let (connection, answer) = replica.ports.connect(copy, hello).map_err(|_| Gone)?;
    let ready = answer.refusal.is_empty()
        && connection.set_read_timeout(Some(ANSWER_TIMEOUT)).is_ok()
        && connection.set_write_timeout(Some(ANSWER_TIMEOUT)).is_ok();
    if ready { Ok(connection) } else { Err(Gone) }
}

fn exchange(connection: &mut TcpStream, ops: Vec<Op>) -> Result<(Reply, Bytes), Gone> {
    let request = Request {
        ops,
        ..Default::default()
    };
    frame::send(connection, Kind::Request, &request, &[]).map_err(|_| Gone)?;
    let answer = frame::receive(connection).map_err(|_| Gone)?;
    let reply = answer.decode().map_err(|_| Gone)?;
    Ok((reply, answer.payload))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
