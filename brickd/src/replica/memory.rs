//! What every copy of a set keeps in memory and changes in the same order: sessions and the
//! results of their requests, who has what open, locks, orphans.
//!
//! Plain state without locks, clock or disk. Everything replicated changes by
//! [`Memory::apply`] alone; a copy that joins gets it by [`Memory::export`] and
//! [`Memory::import`]. What is noted only here and for now (when a session was last heard, which
//! requests were seen, who waits for a lock) is the primary's own and starts anew with the next.

mod locks;
mod opens;
mod results;
mod sessions;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use mortar_common::{Gfid, SessionId};
use mortar_proto::data::change::Step;
use mortar_proto::data::{Change, HeldLock, Lock, LockKind, Recorded, SessionState};

pub use locks::{Deadlock, LOCKS_PER_OBJECT_MAX, LockOwner, Whole};
pub use opens::OPENS_PER_SESSION_MAX;
pub use results::{Begun, OPS_PER_REQUEST_MAX, Seen, recorded_of};
pub use sessions::{FENCES_MAX, SESSIONS_MAX, Standing};

/// Whether sessions still tell a new primary what they have open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reclaim {
    /// Anything may be open: nothing is freed, a removed object becomes an orphan.
    Running,
    /// What is not known to be open is not open.
    #[default]
    Over,
}

/// The replicated memory of one copy.
#[derive(Debug, Default)]
pub struct Memory {
    sessions: sessions::Sessions,
    opens: opens::Opens,
    locks: locks::Locks,
    orphans: BTreeSet<Gfid>,
    reclaim: Reclaim,
}

impl Memory {
    /// Nothing known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies what an ordered change means for sessions, opens, locks and orphans, and records
    /// its result for a resent request. Called for every change, after the disk has it.
    ///
    /// What comes for a session that is not known, or has ended, registers nothing.
    pub fn apply(&mut self, change: &Change) {
        let session = SessionId(change.session);
        match &change.step {
            Some(Step::SessionOpen(step)) => {
                self.sessions.open(
                    SessionId(step.session),
                    &step.host,
                    step.pid,
                    &step.mount_point,
                );
            }
            Some(Step::SessionEnd(step)) => self.end(SessionId(step.session)),
            Some(Step::Open(step)) => self.open(SessionId(step.session), step.gfid),
            Some(Step::Release(step)) => {
                if let Some(gfid) = step.gfid {
                    self.opens.remove(SessionId(step.session), gfid);
                    // No handle is left: a lock that is still there is one whose unlock was lost.
                    self.locks.released(SessionId(step.session), gfid);
                }
            }
            Some(Step::Create(step)) => {
                if step.open {
                    self.open(session, step.gfid);
                }
                if step.name.is_empty() {
                    self.orphans.extend(step.gfid);
                }
            }
            Some(Step::Link(step)) if step.orphan => {
                if let Some(gfid) = step.gfid {
                    self.orphans.remove(&gfid);
                }
            }
            Some(Step::Setattr(step)) if step.open => self.open(session, step.gfid),
            Some(Step::Lock(step)) => {
                if let (Some(gfid), Some(lock)) = (step.gfid, &step.lock)
                    && self.standing(SessionId(lock.session)) == Standing::Known
                {
                    let whole = Whole::of(step);
                    self.locks.apply(gfid, lock, whole);
                }
            }
            Some(Step::Unlink(step)) if step.orphan => self.orphans.extend(step.gfid),
            Some(Step::Rename(step)) if step.replaced_orphan => self.orphans.extend(step.replaced),
            Some(Step::Free(step)) => {
                if let Some(gfid) = step.gfid {
                    self.orphans.remove(&gfid);
                    self.locks.forget(gfid);
                }
            }
            _ => {}
        }
        if let Some(recorded) = recorded_of(change) {
            self.record(recorded);
        }
    }

    fn open(&mut self, session: SessionId, gfid: Option<Gfid>) {
        if let Some(gfid) = gfid
            && self.standing(session) == Standing::Known
        {
            self.opens.insert(session, gfid);
        }
    }

    fn end(&mut self, session: SessionId) {
        self.sessions.end(session);
        self.opens.end(session);
        self.locks.end(session);
    }

    // ------------------------------------------------------------ results of requests

    /// Keeps what an operation came to until its slot's next seq comes. Recording the same again
    /// changes nothing; what is older than the slot's seq, or out of bounds, is dropped.
    pub fn record(&mut self, recorded: Recorded) {
        if let Some(session) = self.sessions.get_mut(SessionId(recorded.session)) {
            session.results.record(recorded);
        }
    }

    /// A request has come: its slot's earlier results may go, and what comes late with a smaller
    /// seq is known as such.
    pub fn begin(&mut self, session: SessionId, slot: u32, seq: u64) -> Begun {
        match self.sessions.get_mut(session) {
            Some(session) => session.results.begin(slot, seq),
            None => Begun::Goes,
        }
    }

    /// Whether an operation of a request was done already.
    pub fn find(&self, session: SessionId, slot: u32, seq: u64, index: u32) -> Seen {
        match self.sessions.get(session) {
            Some(session) => session.results.find(slot, seq, index),
            None => Seen::New,
        }
    }

    // ------------------------------------------------------------ sessions

    /// What is known of a session.
    pub fn standing(&self, session: SessionId) -> Standing {
        self.sessions.standing(session)
    }

    /// Whether another session may begin.
    pub fn has_room_for_session(&self) -> bool {
        self.sessions.len() < SESSIONS_MAX
    }

    /// Every session that is open.
    pub fn sessions(&self) -> Vec<SessionId> {
        self.sessions.ids()
    }

    /// Where a session comes from: host, pid and mount point, for people to read.
    pub fn session_state(&self, session: SessionId) -> Option<SessionState> {
        let known = self.sessions.get(session)?;
        Some(self.state_of(session, known))
    }

    /// A session was heard at `now_ms`.
    pub fn heard(&mut self, session: SessionId, now_ms: u64) {
        if let Some(session) = self.sessions.get_mut(session) {
            session.heard_ms = Some(session.heard_ms.unwrap_or(0).max(now_ms));
        }
    }

    /// This copy becomes primary: every session counts as heard now.
    pub fn start_hearing(&mut self, now_ms: u64) {
        self.sessions.start_hearing(now_ms);
    }

    /// This copy could not answer until now: silence counts from here on.
    pub fn forgive_silence(&mut self, now_ms: u64) {
        self.sessions.forgive_silence(now_ms);
    }

    /// When this copy last heard of any session; `None` = never.
    pub fn last_heard_ms(&self) -> Option<u64> {
        self.sessions.last_heard_ms()
    }

    /// Sessions not heard for longer than `limit_ms`. One never heard here counts from the first
    /// [`Memory::start_hearing`] on, and not before.
    pub fn silent(&self, now_ms: u64, limit_ms: u64) -> Vec<SessionId> {
        self.sessions.silent(now_ms, limit_ms)
    }

    // ------------------------------------------------------------ opens and orphans

    /// Whether anybody has the object open, or may have it while sessions still reclaim.
    pub fn is_open(&self, gfid: Gfid) -> bool {
        self.reclaim == Reclaim::Running || self.opens.is_open(gfid)
    }

    /// Whether this session has it open. There is one open per session and object: a client
    /// counts its own handles, opens with the first and releases with the last.
    pub fn has_open(&self, session: SessionId, gfid: Gfid) -> bool {
        self.opens.has(session, gfid)
    }

    /// Whether this session may open one more object.
    pub fn has_room_for_open(&self, session: SessionId) -> bool {
        self.opens.count(session) < OPENS_PER_SESSION_MAX
    }

    /// Begins or ends the time in which sessions tell a new primary what they have open.
    pub fn set_reclaim(&mut self, reclaim: Reclaim) {
        self.reclaim = reclaim;
    }

    /// Orphans found on the disk at start, or healed.
    pub fn add_orphans(&mut self, orphans: impl IntoIterator<Item = Gfid>) {
        self.orphans.extend(orphans);
    }

    /// Whether the object has no name left and waits to be freed.
    pub fn is_orphan(&self, gfid: Gfid) -> bool {
        self.orphans.contains(&gfid)
    }

    /// Orphans nobody has open. The primary orders a `FreeStep` for each, once it holds the step's
    /// keys and [`Memory::may_free`] still says so.
    pub fn freeable(&self) -> Vec<Gfid> {
        self.orphans
            .iter()
            .copied()
            .filter(|gfid| !self.is_open(*gfid))
            .collect()
    }

    /// Whether the object is an orphan that nobody has open.
    pub fn may_free(&self, gfid: Gfid) -> bool {
        self.is_orphan(gfid) && !self.is_open(gfid)
    }

    // ------------------------------------------------------------ locks

    /// A lock that stands in the way of this one, the first by range; `None` = it can be granted.
    pub fn conflicting_lock(&self, gfid: Gfid, lock: &Lock) -> Option<Lock> {
        self.locks.conflicting(gfid, lock)
    }

    /// Whether every byte of the lock is held by its owner already, in the same type.
    pub fn holds_lock(&self, gfid: Gfid, lock: &Lock) -> bool {
        self.locks.holds(gfid, lock)
    }

    /// Whether this owner holds any lock of this kind that touches the range.
    pub fn touches_lock(&self, gfid: Gfid, lock: &Lock) -> bool {
        self.locks.touches(gfid, lock)
    }

    /// Whether a release of everything of an owner or a handle would drop something.
    pub fn holds_any(&self, gfid: Gfid, lock: &Lock, whole: Whole) -> bool {
        self.locks.holds_any(gfid, lock, whole)
    }

    /// Whether the object's locks may become two more (a split makes one into three).
    pub fn has_room_for_lock(&self, gfid: Gfid) -> bool {
        self.locks.count(gfid) + 2 <= LOCKS_PER_OBJECT_MAX
    }

    /// Whether waiting for this POSIX lock would close a circle of waiters.
    pub fn would_deadlock(&self, gfid: Gfid, lock: &Lock) -> bool {
        self.locks.would_deadlock(gfid, lock)
    }

    /// An owner begins to wait for a lock.
    ///
    /// # Errors
    /// [`Deadlock`] when it would wait for itself; nothing is noted then.
    pub fn wait_begin(&mut self, gfid: Gfid, lock: &Lock) -> Result<(), Deadlock> {
        self.locks.wait_begin(gfid, lock)
    }

    /// An owner waits no more: granted, refused, interrupted or its time is over.
    pub fn wait_end(&mut self, lock: &Lock) {
        self.locks.wait_end(lock);
    }

    // ------------------------------------------------------------ joining copies

    /// All of it, for a copy that joins. Orphans are not in it: they are objects of the disk.
    pub fn export(&self) -> (Vec<Recorded>, Vec<SessionState>) {
        let mut table = Vec::new();
        let mut states = Vec::new();
        for (id, session) in self.sessions.iter() {
            table.extend(session.results.all());
            states.push(self.state_of(id, session));
        }
        states.extend(self.sessions.ended().map(|id| SessionState {
            session: id.0,
            ended: true,
            ..Default::default()
        }));
        (table, states)
    }

    /// Takes in what another copy exported, added to what is here, so that it may come in parts:
    /// a part with a result comes with or after the part with its session.
    pub fn import(&mut self, table: &[Recorded], states: &[SessionState]) {
        for state in states {
            let session = SessionId(state.session);
            if state.ended {
                self.end(session);
                continue;
            }
            self.sessions
                .open(session, &state.host, state.pid, &state.mount_point);
            for gfid in &state.opens {
                self.opens.insert(session, *gfid);
            }
            for HeldLock { gfid, lock } in &state.locks {
                if let (Some(gfid), Some(lock)) = (gfid, lock) {
                    self.locks.apply(*gfid, lock, Whole::Range);
                }
            }
            for slot in &state.slots {
                self.begin(session, slot.slot, slot.seq);
            }
        }
        for recorded in table {
            self.record(*recorded);
        }
    }

    /// Forgets everything but the orphans: before an [`Memory::import`].
    pub fn clear(&mut self) {
        let orphans = std::mem::take(&mut self.orphans);
        *self = Memory {
            orphans,
            reclaim: self.reclaim,
            ..Memory::default()
        };
    }

    fn state_of(&self, id: SessionId, session: &sessions::Session) -> SessionState {
        SessionState {
            session: id.0,
            host: session.host.clone(),
            pid: session.pid,
            mount_point: session.mount_point.clone(),
            opens: self.opens.of(id),
            locks: self
                .locks
                .of(id)
                .into_iter()
                .map(|(gfid, lock)| HeldLock {
                    gfid: Some(gfid),
                    lock: Some(lock),
                })
                .collect(),
            ended: false,
            slots: session.results.without_results().collect(),
        }
    }
}

/// Something through which planning can look at the [`Memory`] for a moment, so that it need not
/// be locked while the disk is read.
pub trait Recall {
    /// Calls `look` once with the memory.
    fn recall(&self, look: &mut dyn FnMut(&Memory));
}

impl Recall for Memory {
    fn recall(&self, look: &mut dyn FnMut(&Memory)) {
        look(self);
    }
}

impl Recall for Mutex<Memory> {
    fn recall(&self, look: &mut dyn FnMut(&Memory)) {
        look(&self.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A lock as a request names it, with the session it comes from put in.
pub(super) fn lock_of(lock: &Lock, session: SessionId) -> Lock {
    let mut lock = Lock {
        session: session.0,
        ..*lock
    };
    if lock.kind() == LockKind::LockFlock {
        (lock.start, lock.end) = (0, locks::END_OF_FILE);
    }
    lock
}
