//! The mount's session with its replica set: requests go out in numbered slots and are sent again,
//! under the same number, until they are answered. A lost brick is a pause, never an error.

mod begin;
mod caches;
mod connections;
pub mod holdings;
mod keeper;
mod life;
mod route;
mod waiting;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::{
    Caller, EpochRef, Op, Reply, ReplyStatus, Request, Result as OpResult, SplitWork,
};

use crate::connection::{Connection, Lost};
use crate::view::{BrickAddress, ViewWatch, Volume, VolumeView};
use caches::PageCaches;
use holdings::Holdings;
use life::{Life, SlotGuard};
use route::{Hunt, Route};

pub use life::LifeNumber;
pub(crate) use waiting::{Waiting, signal_waits};

/// A mount waits this long for a brick that serves.
const FIRST_SERVICE_WAIT: Duration = Duration::from_secs(20);
/// How often what waits for the session to open looks whether it has.
const OPEN_TICK: Duration = Duration::from_millis(50);
/// One attempt to open the session later on lasts this long.
const OPEN_AGAIN: Duration = Duration::from_secs(60);
/// An unmount waits this long for the primary to take the session's end.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// What sending a request twice would do, if it ever had to be sent in another session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing: it reads. It takes no slot.
    Read,
    /// The same again, and nobody else can tell: it asks for what is this session's own, or for
    /// durability.
    Repeatable,
    /// The same again: it names what it sets. Not when the session has expired, though: others may
    /// have built on what it did, and would find their own changes overwritten by its second time.
    Overwrites,
    /// Something else: it makes, removes, moves or appends. Never sent again in another session.
    Once,
}

/// One request: operations in order, with the bytes that writes among them carry.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// On whose behalf.
    pub caller: Caller,
    /// What to do.
    pub ops: Vec<Op>,
    /// Bytes of the writes, in the order of the operations.
    pub payload: &'a [u8],
    /// What sending it twice would do.
    pub effect: Effect,
    /// What it has to do with a split; nothing, for a mount.
    pub split: SplitWork,
    /// Of the open files that it goes through: set when a lock that was held through one was lost.
    /// Then the call fails, also if it was under way at that moment.
    pub locks_lost: &'a [&'a AtomicBool],
}

/// The primary's answer to a [`Call`].
#[derive(Debug)]
pub struct Answer {
    /// One result for each operation up to the first that failed.
    pub results: Vec<OpResult>,
    /// Bytes of the reads, in the order of the results.
    pub payload: Bytes,
    /// When the attempt that was answered was sent.
    pub sent_at: Instant,
    /// In which life of the session.
    pub life: LifeNumber,
}

impl Answer {
    /// The result of operation `at`, taken out.
    ///
    /// # Errors
    /// What the operation failed with; [`FsError::Io`] when it was not come to.
    pub fn take(&mut self, at: usize) -> Result<OpResult, FsError> {
        let result = self
            .results
            .get_mut(at)
            .map(std::mem::take)
            .ok_or(FsError::Io)?;
        match result.errno {
            0 => Ok(result),
            errno => Err(FsError::from_errno(errno)),
        }
    }
}

/// How the session shows itself to the bricks.
#[derive(Clone, Debug)]
pub struct Mounted {
    /// This host's name.
    pub host: String,
    /// Where the volume is mounted.
    pub mount_point: String,
    /// How long a request waits for a lost brick before it fails; `None` = as the volume says.
    pub io_timeout: Option<Duration>,
}

/// The session of one mount.
#[derive(Debug)]
pub struct Session {
    view: ViewWatch,
    route: Route,
    mounted: Mounted,
    life: Mutex<Arc<Life>>,
    /// Held by the thread that opens a new life after the old one was fenced.
    renewal: Mutex<()>,
    /// Told of files whose locks are lost.
    on_lost_locks: OnceLock<OnLostLocks>,
    idle: Mutex<Vec<Idle>>,
    holdings: Arc<Holdings>,
    caches: PageCaches,
    closing: AtomicBool,
    /// Whether the primary was told; held while it is.
    closed: Mutex<bool>,
    /// The primary knows this session. Until then calls wait.
    opened: AtomicBool,
    /// A brick of the volume took this client's connection, whether it serves or not.
    greeted: AtomicBool,
}

struct OnLostLocks(Box<LostLocks>);

/// Called with the files whose locks are lost.
type LostLocks = dyn Fn(&[Gfid]) + Send + Sync;

impl fmt::Debug for OnLostLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnLostLocks")
    }
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    brick: BrickAddress,
    session: u64,
}

impl Session {
    /// Opens a session at the primary of the volume that `view` follows. When a brick is there
    /// and none may serve yet, the session opens later, and calls wait for that.
    ///
    /// # Errors
    /// In words, when there is no brick within 20 s that takes this client.
    pub fn open(view: ViewWatch, mounted: Mounted) -> Result<Arc<Session>, String> {
        let session = Arc::new(Session {
            view,
            route: Route::default(),
            mounted,
            life: Mutex::new(Arc::new(Life::new(LifeNumber::default()))),
            renewal: Mutex::new(()),
            on_lost_locks: OnceLock::new(),
            idle: Mutex::default(),
            holdings: Arc::default(),
            caches: PageCaches::default(),
            closing: AtomicBool::new(false),
            closed: Mutex::new(false),
            opened: AtomicBool::new(false),
            greeted: AtomicBool::new(false),
        });
        let waiting = Waiting::until(Instant::now() + FIRST_SERVICE_WAIT);
        match session.introduce(&waiting) {
            Ok(life) => {
                session.begin(life);
                session.has_opened()?;
            }
            Err(problem) if session.greeted.load(Ordering::Acquire) => {
                tracing::warn!("no brick may serve yet: whoever uses the mount waits ({problem})");
                let weak = Arc::downgrade(&session);
                std::thread::Builder::new()
                    .name("opener".to_owned())
                    .spawn(move || begin::open_later(&weak))
                    .map_err(|error| format!("cannot start a thread: {error}"))?;
            }
            Err(problem) => return Err(problem),
        }
        Ok(session)
    }

    fn has_opened(self: &Arc<Self>) -> Result<(), String> {
        keeper::start(self).map_err(|error| format!("cannot start a thread: {error}"))?;
        self.opened.store(true, Ordering::Release);
        self.route.wake();
        Ok(())
    }

    /// Whether the primary knows this session.
    pub fn is_open(&self) -> bool {
        self.opened.load(Ordering::Acquire)
    }

    /// Has `tell` called with the files whose locks are lost, before the next life of the session
    /// begins. It must not wait for an answer of this session. Only the first one set is called.
    pub fn when_locks_are_lost(&self, tell: impl Fn(&[Gfid]) + Send + Sync + 'static) {
        let _ = self.on_lost_locks.set(OnLostLocks(Box::new(tell)));
    }

    /// What this session holds at the primary: opens and locks.
    pub fn holdings(&self) -> &Arc<Holdings> {
        &self.holdings
    }

    /// How often what was written and not synced may have been lost: whoever syncs it afterwards is
    /// to be told once.
    pub fn losses(&self) -> u64 {
        self.caches.losses()
    }

    /// The life that a call made now begins in.
    pub fn life_number(&self) -> LifeNumber {
        self.life().number()
    }

    /// Sends a call until it is answered.
    ///
    /// # Errors
    /// [`FsError::Interrupted`] when the caller is being killed; [`FsError::TimedOut`] after
    /// `client.io-timeout`; [`FsError::NotConnected`] when the volume is gone or the mount ends;
    /// [`FsError::Io`] when a [`Effect::Once`] call may or may not have been done by a session
    /// that was fenced, and when a lock it was made under was lost with that session. Failures of operations are in the [`Answer`].
    pub fn call(&self, call: Call<'_>) -> Result<Answer, FsError> {
        let waiting = self.patience(&call.caller);
        self.call_while(call, &waiting)
    }

    /// How long a request of this caller waits.
    pub(crate) fn patience(&self, caller: &Caller) -> Waiting {
        let io_timeout = self
            .mounted
            .io_timeout
            .or_else(|| match self.view.current().0 {
                Volume::Present(volume) => volume.io_timeout,
                Volume::Absent => None,
            });
        Waiting::of(caller, io_timeout)
    }

    pub(crate) fn call_while(&self, call: Call<'_>, waiting: &Waiting) -> Result<Answer, FsError> {
        while !self.is_open() {
            self.may_go_on(waiting)?;
            self.route.sleep(OPEN_TICK);
        }
        // The locks of a life are lost before the next one begins: a request in this life either
        // is made under its locks, or is refused with it.
        let mut life = self.life();
        has_its_locks(call.locks_lost)?;
        let mut slot = take_slot(&life, call.effect, waiting)?;
        let mut request = Request {
            caller: Some(call.caller),
            ops: call.ops,
            split_work: call.split.into(),
            ..Default::default()
        };
        let mut tries = Tries::default();
        loop {
            address(&mut request, &life, slot.as_ref());
            let mut hunt = Hunt::default();
            let judged = self.until_judged(
                &life,
                &mut request,
                call.payload,
                (&mut tries, &mut hunt),
                waiting,
            );
            match judged {
                Ok(Judged::Answer(answer)) => {
                    if let Some(slot) = slot {
                        slot.answered();
                    }
                    return Ok(answer);
                }
                Ok(judged @ (Judged::Expired | Judged::Forgotten | Judged::NotOpened)) => {
                    drop(slot);
                    self.renew(&life, End::of(&judged), waiting)?;
                    let is_final = match call.effect {
                        Effect::Read | Effect::Repeatable => false,
                        Effect::Overwrites => matches!(judged, Judged::Expired),
                        Effect::Once => true,
                    };
                    if tries.unanswered && is_final {
                        tracing::warn!(
                            "a change was under way when this client was put out for its silence; \
                             whether it was made is not known, the application gets EIO"
                        );
                        return Err(FsError::Io);
                    }
                    life = self.life();
                    has_its_locks(call.locks_lost)?;
                    slot = take_slot(&life, call.effect, waiting)?;
                    tries = Tries::default();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends the session: its locks and opens go. Later calls fail with ENOTCONN, and so do those
    /// that wait. Returns when it has ended, whoever was first to say so.
    pub fn close(&self) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *closed, true) {
            return;
        }
        let call = Call {
            caller: Caller::default(),
            ops: vec![session_close()],
            payload: &[],
            effect: Effect::Repeatable,
            split: SplitWork::SplitNone,
            locks_lost: &[],
        };
        let waiting = Waiting::until(Instant::now() + CLOSE_WAIT);
        if let Err(error) = self.call_while(call, &waiting) {
            tracing::info!("the session's end did not reach the primary: {error}");
        }
        self.closing.store(true, Ordering::Release);
        self.route.wake();
    }

    /// Tries bricks until one judges the request.
    fn until_judged(
        &self,
        life: &Life,
        request: &mut Request,
        payload: &[u8],
        (tries, hunt): (&mut Tries, &mut Hunt),
        waiting: &Waiting,
    ) -> Result<Judged, FsError> {
        loop {
            self.may_go_on(waiting)?;
            let Some(volume) = self.volume()? else {
                self.route.pause(hunt);
                continue;
            };
            let version = self.route.version();
            let Some(brick) = self.route.choose(&volume, hunt) else {
                self.route.pause(hunt);
                continue;
            };
            let sent_at = Instant::now();
            let stay = || {
                !self.route.left(brick.brick, version, sent_at) && self.may_go_on(waiting).is_ok()
            };
            let asked = (&mut *request, payload);
            match self.exchange(&volume, &brick, life, asked, tries, &stay) {
                Ok((reply, payload)) => match reply.status() {
                    ReplyStatus::ReplyOk => {
                        self.route.confirm(brick.brick, reply.epoch.as_ref());
                        let results = reply.results;
                        return Ok(Judged::Answer(Answer {
                            results,
                            payload,
                            sent_at,
                            life: life.number(),
                        }));
                    }
                    ReplyStatus::ReplyNotPrimary | ReplyStatus::ReplyNotReady => {
                        tries.unanswered |= !reply.untouched;
                        self.greeted.store(true, Ordering::Release);
                        self.not_here(&brick, &reply, hunt);
                        waiting.note(hunt.problem());
                    }
                    ReplyStatus::ReplyFenced => return Ok(Judged::Expired),
                    ReplyStatus::ReplyUnknownSession => return Ok(Judged::Forgotten),
                    ReplyStatus::ReplyMalformed => {
                        tracing::error!("{brick} does not understand a request: {}", reply.reason);
                        return Err(FsError::Io);
                    }
                },
                Err(lost) => {
                    tries.unanswered |= matches!(lost, Lost::Broken { .. } | Lost::GivenUp { .. });
                    tracing::debug!("{lost}");
                    if matches!(lost, Lost::GivenUp { .. }) {
                        self.greeted.store(true, Ordering::Release);
                    }
                    hunt.failed(brick.brick, lost.to_string());
                    waiting.note(hunt.problem());
                    if request.again && opens_session(request) {
                        return Ok(Judged::NotOpened);
                    }
                }
            }
        }
    }

    /// One attempt: over an idle connection if there is one, and at once over a new one if that
    /// turns out to be dead. Once it was sent, every further attempt says so: what was sent over a
    /// connection that is given up may still arrive.
    fn exchange(
        &self,
        volume: &VolumeView,
        brick: &BrickAddress,
        life: &Life,
        (request, payload): (&mut Request, &[u8]),
        tries: &mut Tries,
        stay: &dyn Fn() -> bool,
    ) -> Result<(Reply, Bytes), Lost> {
        let give_up = || !stay();
        while let Some(mut idle) = self.take_idle(brick, life.id()) {
            let outcome = idle.connection.exchange(request, &[payload], &give_up);
            request.again = true;
            match outcome {
                Ok(answer) => {
                    self.keep_idle(idle);
                    return Ok(answer);
                }
                Err(lost @ Lost::GivenUp { .. }) => {
                    if idle.connection.is_relayed() {
                        // The others of its kind go the same way.
                        self.drop_idle(brick);
                    }
                    return Err(lost);
                }
                Err(lost) if opens_session(request) => {
                    self.drop_idle(brick);
                    return Err(lost);
                }
                // The brick went away, and with it all connections of its like: perhaps after it
                // had done what it was asked for.
                Err(_) => {
                    tries.unanswered = true;
                    self.drop_idle(brick);
                }
            }
        }
        let mut connection = self.connect(volume, brick, life.id(), &give_up)?;
        let outcome = connection.exchange(request, &[payload], &give_up);
        request.again = true;
        let answer = outcome?;
        if answer.0.status() == ReplyStatus::ReplyOk {
            self.caches.served(connection.page_caches());
        }
        self.keep_idle(Idle {
            connection,
            brick: brick.clone(),
            session: life.id(),
        });
        Ok(answer)
    }

    fn not_here(&self, brick: &BrickAddress, reply: &Reply, hunt: &mut Hunt) {
        tracing::debug!("{brick} is not the one to ask: {}", reply.reason);
        self.route.hint(reply.primary, reply.epoch.as_ref());
        hunt.failed(brick.brick, format!("{brick}: {}", reply.reason));
    }

    fn begin(&self, life: Arc<Life>) {
        *self.life.lock().unwrap_or_else(PoisonError::into_inner) = life;
    }

    fn life(&self) -> Arc<Life> {
        self.life
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The volume, if it is started; `None` = wait.
    fn volume(&self) -> Result<Option<Arc<VolumeView>>, FsError> {
        match self.view.current().0 {
            Volume::Absent => Err(FsError::NotConnected),
            Volume::Present(volume) => {
                self.route.learn(volume.primary, &volume.epoch);
                Ok(Some(volume))
            }
        }
    }

    /// Whether what waits is to go on waiting.
    ///
    /// # Errors
    /// As [`Waiting::check`]; [`FsError::NotConnected`] when the mount ends.
    pub(crate) fn may_go_on(&self, waiting: &Waiting) -> Result<(), FsError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(FsError::NotConnected);
        }
        waiting.check()
    }

    /// Whether the mount is ending.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}

enum Judged {
    Answer(Answer),
    /// The session was ended for its silence.
    Expired,
    /// No copy knows the session: all were started anew.
    Forgotten,
    /// What was to open the session was sent, and nobody said what became of it.
    NotOpened,
}

/// How a life of the session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// For its silence: a copy remembers that.
    Expired,
    /// No copy knows of it.
    Forgotten,
}

impl End {
    fn of(judged: &Judged) -> End {
        match judged {
            Judged::Expired => End::Expired,
            Judged::Answer(_) | Judged::Forgotten | Judged::NotOpened => End::Forgotten,
        }
    }
}

/// What has become of a request so far in this life of the session.
#[derive(Default)]
struct Tries {
    /// It was sent at least once and nobody said whether it was done.
    unanswered: bool,
}

/// What was written or read under a lock must not be sent again without it: others have the lock.
fn has_its_locks(lost: &[&AtomicBool]) -> Result<(), FsError> {
    match lost.iter().any(|lost| lost.load(Ordering::Acquire)) {
        true => Err(FsError::Io),
        false => Ok(()),
    }
}

fn take_slot(
    life: &Arc<Life>,
    effect: Effect,
    waiting: &Waiting,
) -> Result<Option<SlotGuard>, FsError> {
    match effect {
        Effect::Read => Ok(None),
        Effect::Repeatable | Effect::Overwrites | Effect::Once => {
            life.take_slot(|| waiting.check()).map(Some)
        }
    }
}

fn address(request: &mut Request, life: &Life, slot: Option<&SlotGuard>) {
    request.session = life.id();
    request.epoch = None::<EpochRef>;
    request.again = false;
    (request.slot, request.seq) = slot.map_or((0, 0), SlotGuard::number);
}

fn opens_session(request: &Request) -> bool {
    use mortar_proto::data::op;
    let first = request.ops.first().and_then(|op| op.op.as_ref());
    matches!(first, Some(op::Op::SessionOpen(_)))
}

fn session_close() -> Op {
    use mortar_proto::data::{SessionClose, op};
    Op {
        op: Some(op::Op::SessionClose(SessionClose {})),
    }
}
