//! POSIX locks (byte ranges, by owner) and flock locks (whole files, by open file).
//!
//! The kinds do not meet each other. Open-file-description locks come as POSIX ones whose owner is
//! the open file; they go with their handle. A range remembers the handle it was taken through, and
//! ranges of different handles are not merged.

use std::collections::{BTreeSet, HashMap, HashSet};

use mortar_common::{Gfid, SessionId};
use mortar_proto::data::{Lock, LockKind, LockStep, LockType};

/// Ranges locked in one object, all owners together.
pub const LOCKS_PER_OBJECT_MAX: usize = 4096;
/// Last byte a lock can name: "to the end of the file".
pub(super) const END_OF_FILE: u64 = i64::MAX as u64;

/// Who holds a lock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LockOwner {
    session: SessionId,
    owner: u64,
}

impl LockOwner {
    /// The owner of this lock.
    pub fn of(lock: &Lock) -> Self {
        LockOwner {
            session: SessionId(lock.session),
            owner: lock.owner,
        }
    }
}

/// How much a lock step is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whole {
    /// The range it names.
    Range,
    /// Every lock of its kind and owner in the object.
    Owner,
    /// Every lock taken through its handle, of whatever kind.
    Handle,
}

impl Whole {
    /// What a step says.
    pub fn of(step: &LockStep) -> Self {
        match (step.whole_handle, step.whole_owner) {
            (true, _) => Whole::Handle,
            (false, true) => Whole::Owner,
            (false, false) => Whole::Range,
        }
    }
}

/// To wait for this lock would be to wait for oneself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("waiting for this lock would close a circle of waiters")]
pub struct Deadlock;

#[derive(Debug, Default)]
pub(super) struct Locks {
    /// By object, in order of their first byte.
    objects: HashMap<Gfid, Vec<Lock>>,
    /// Objects in which a session holds a lock.
    sessions: HashMap<SessionId, BTreeSet<Gfid>>,
    /// What POSIX owners wait for; an owner that waits in two places (threads) counts twice.
    waits: HashMap<LockOwner, Vec<(Gfid, Lock)>>,
}

impl Locks {
    pub(super) fn apply(&mut self, gfid: Gfid, lock: &Lock, whole: Whole) {
        let mut held = self.objects.remove(&gfid).unwrap_or_default();
        match whole {
            Whole::Range => set_range(&mut held, lock),
            Whole::Owner | Whole::Handle => held.retain(|other| !is_meant(other, lock, whole)),
        }
        let session = SessionId(lock.session);
        if held.iter().any(|other| other.session == lock.session) {
            self.sessions.entry(session).or_default().insert(gfid);
        } else if let Some(objects) = self.sessions.get_mut(&session) {
            objects.remove(&gfid);
            if objects.is_empty() {
                self.sessions.remove(&session);
            }
        }
        if !held.is_empty() {
            self.objects.insert(gfid, held);
        }
    }

    pub(super) fn end(&mut self, session: SessionId) {
        for gfid in self.sessions.remove(&session).unwrap_or_default() {
            if let Some(held) = self.objects.get_mut(&gfid) {
                held.retain(|lock| lock.session != session.0);
                if held.is_empty() {
                    self.objects.remove(&gfid);
                }
            }
        }
        self.waits.retain(|owner, _| owner.session != session);
    }

    /// Lets go of what a session holds on an object.
    pub(super) fn released(&mut self, session: SessionId, gfid: Gfid) {
        let Some(objects) = self.sessions.get_mut(&session) else {
            return;
        };
        objects.remove(&gfid);
        if objects.is_empty() {
            self.sessions.remove(&session);
        }
        if let Some(held) = self.objects.get_mut(&gfid) {
            held.retain(|lock| lock.session != session.0);
            if held.is_empty() {
                self.objects.remove(&gfid);
            }
        }
    }

    pub(super) fn forget(&mut self, gfid: Gfid) {
        for lock in self.objects.remove(&gfid).unwrap_or_default() {
            if let Some(objects) = self.sessions.get_mut(&SessionId(lock.session)) {
                objects.remove(&gfid);
            }
        }
    }

    pub(super) fn of(&self, session: SessionId) -> Vec<(Gfid, Lock)> {
        let objects = self.sessions.get(&session).into_iter().flatten();
        objects
            .flat_map(|gfid| self.held(*gfid).iter().map(|lock| (*gfid, *lock)))
            .filter(|(_, lock)| lock.session == session.0)
            .collect()
    }

    pub(super) fn count(&self, gfid: Gfid) -> usize {
        self.held(gfid).len()
    }

    pub(super) fn conflicting(&self, gfid: Gfid, lock: &Lock) -> Option<Lock> {
        self.held(gfid)
            .iter()
            .find(|other| conflict(other, lock))
            .copied()
    }

    pub(super) fn holds(&self, gfid: Gfid, lock: &Lock) -> bool {
        let mut next = lock.start;
        for other in self.held(gfid) {
            if is_same_owner(other, lock)
                && other.handle == lock.handle
                && other.r#type == lock.r#type
                && other.start <= next
                && other.end >= next
            {
                if other.end >= lock.end {
                    return true;
                }
                next = other.end + 1;
            }
        }
        false
    }

    pub(super) fn touches(&self, gfid: Gfid, lock: &Lock) -> bool {
        self.held(gfid)
            .iter()
            .any(|other| is_same_owner(other, lock) && overlap(other, lock))
    }

    pub(super) fn holds_any(&self, gfid: Gfid, lock: &Lock, whole: Whole) -> bool {
        self.held(gfid)
            .iter()
            .any(|other| is_meant(other, lock, whole))
    }

    pub(super) fn would_deadlock(&self, gfid: Gfid, lock: &Lock) -> bool {
        // As the kernel does, only for POSIX locks: who waits for a flock may wait for ever.
        if lock.kind() != LockKind::LockPosix {
            return false;
        }
        let me = LockOwner::of(lock);
        let mut looked_at: HashSet<LockOwner> = HashSet::new();
        let mut to_look_at = self.blockers(gfid, lock);
        while let Some(owner) = to_look_at.pop() {
            if owner == me {
                return true;
            }
            if looked_at.insert(owner) {
                for (gfid, wanted) in self.waits.get(&owner).into_iter().flatten() {
                    to_look_at.extend(self.blockers(*gfid, wanted));
                }
            }
        }
        false
    }

    pub(super) fn wait_begin(&mut self, gfid: Gfid, lock: &Lock) -> Result<(), Deadlock> {
        if self.would_deadlock(gfid, lock) {
            return Err(Deadlock);
        }
        if lock.kind() == LockKind::LockPosix {
            self.waits
                .entry(LockOwner::of(lock))
                .or_default()
                .push((gfid, *lock));
        }
        Ok(())
    }

    pub(super) fn wait_end(&mut self, lock: &Lock) {
        let owner = LockOwner::of(lock);
        if let Some(waits) = self.waits.get_mut(&owner) {
            if let Some(at) = waits.iter().position(|(_, waited)| waited == lock) {
                waits.swap_remove(at);
            }
            if waits.is_empty() {
                self.waits.remove(&owner);
            }
        }
    }

    fn held(&self, gfid: Gfid) -> &[Lock] {
        self.objects.get(&gfid).map_or(&[], Vec::as_slice)
    }

    fn blockers(&self, gfid: Gfid, lock: &Lock) -> Vec<LockOwner> {
        self.held(gfid)
            .iter()
            .filter(|other| conflict(other, lock))
            .map(LockOwner::of)
            .collect()
    }
}

fn is_same_owner(one: &Lock, other: &Lock) -> bool {
    one.kind == other.kind && LockOwner::of(one) == LockOwner::of(other)
}

fn overlap(one: &Lock, other: &Lock) -> bool {
    one.start <= other.end && other.start <= one.end
}

fn conflict(held: &Lock, wanted: &Lock) -> bool {
    held.kind == wanted.kind
        && LockOwner::of(held) != LockOwner::of(wanted)
        && overlap(held, wanted)
        && wanted.r#type() != LockType::LockUnlock
        && (held.r#type() == LockType::LockWrite || wanted.r#type() == LockType::LockWrite)
}

fn is_meant(held: &Lock, lock: &Lock, whole: Whole) -> bool {
    held.session == lock.session
        && match whole {
            Whole::Range => is_same_owner(held, lock) && overlap(held, lock),
            Whole::Owner => is_same_owner(held, lock),
            Whole::Handle => held.handle == lock.handle,
        }
}

/// Gives the owner's range its new type: what it held there is cut away, the new range is put in
/// and joined with its neighbours of the same type and handle.
fn set_range(held: &mut Vec<Lock>, lock: &Lock) {
    let mut after = Vec::with_capacity(held.len() + 2);
    for other in held.drain(..) {
        if !is_same_owner(&other, lock) || !overlap(&other, lock) {
            after.push(other);
            continue;
        }
        if other.start < lock.start {
            after.push(Lock {
                end: lock.start - 1,
                ..other
            });
        }
        if other.end > lock.end {
            after.push(Lock {
                start: lock.end + 1,
                ..other
            });
        }
    }
    if lock.r#type() != LockType::LockUnlock {
        let mut whole = *lock;
        after.retain(|other| {
            let joins = is_same_owner(other, &whole)
                && other.r#type == whole.r#type
                && other.handle == whole.handle
                && (other.end.checked_add(1) == Some(whole.start)
                    || whole.end.checked_add(1) == Some(other.start));
            if joins {
                whole.start = whole.start.min(other.start);
                whole.end = whole.end.max(other.end);
            }
            !joins
        });
        after.push(whole);
    }
    after.sort_by_key(|other| (other.start, other.end, other.session, other.owner));
    *held = after;
}
