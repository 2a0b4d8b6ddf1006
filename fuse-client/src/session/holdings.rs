//! What the session holds at the primary: which objects are registered as open, and which owners
//! hold locks. Kept so that an open is registered once, released in the background, and taken again
//! by the next session after a fence.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mortar_common::{FsError, Gfid, Signal};
use mortar_proto::data::{LockKind, Op, Open, op};

use super::life::LifeNumber;

/// Opens taken again in one request after a fence.
const REOPEN_OPS_MAX: usize = 256;

/// Whoever waits is asked this often whether it still wants to.
const TICK: Duration = Duration::from_millis(100);

/// Asked every [`TICK`] while something is waited for.
pub type GoOn<'a> = &'a dyn Fn() -> Result<(), FsError>;

/// Opens and locks of one session.
#[derive(Debug, Default)]
pub struct Holdings {
    state: Mutex<State>,
    changed: Signal,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<Gfid, Held>,
    /// The last life of the session whose locks are lost.
    lost: Option<LifeNumber>,
}

#[derive(Debug, Default)]
struct Held {
    /// Handles of this mount, those being opened included.
    handles: u32,
    stage: Stage,
    /// When the last handle was closed.
    idle_since: Option<Instant>,
    locks: Vec<HeldLock>,
    /// The last life that was lost when it was taken to be released.
    taken_after: Option<LifeNumber>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    /// The primary does not know (or is being told).
    #[default]
    Unregistered,
    Registered,
    /// The primary is being told that nobody has it open: a new open waits for that to end.
    Releasing,
}

/// An owner that holds at least one lock on the object.
#[derive(Clone, Debug)]
pub struct HeldLock {
    /// The kernel's lock owner.
    pub owner: u64,
    /// The handle through which it was taken.
    pub handle: u64,
    /// Its kind. An open-file-description lock and a flock of one open file have one owner.
    pub kind: LockKind,
    /// Set when a fence has taken the lock away.
    pub lost: Arc<AtomicBool>,
}

/// What a fence took away.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lost {
    /// How many owners lost one.
    pub locks: usize,
    /// Files they were held on.
    pub files: Vec<Gfid>,
}

/// Whether an open must be registered at the primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Registration {
    /// Send an Open, then say how it went.
    Needed,
    /// The primary knows of an earlier one.
    Known,
}

impl Holdings {
    /// One more handle is being opened. Waits while the object is being released, for as long as
    /// `go_on` allows.
    ///
    /// # Errors
    /// Those of `go_on`.
    pub fn begin_open(&self, gfid: Gfid, go_on: GoOn<'_>) -> Result<Registration, FsError> {
        let mut state = self.lock();
        loop {
            let held = state.held.entry(gfid).or_default();
            if held.stage == Stage::Releasing {
                state = self.wait_for_release(state, go_on)?;
                continue;
            }
            held.handles += 1;
            held.idle_since = None;
            return Ok(match held.stage {
                Stage::Registered => Registration::Known,
                Stage::Unregistered | Stage::Releasing => Registration::Needed,
            });
        }
    }

    fn wait_for_release<'a>(
        &self,
        state: MutexGuard<'a, State>,
        go_on: GoOn<'_>,
    ) -> Result<MutexGuard<'a, State>, FsError> {
        let state = self.changed.wait_timeout(state, TICK);
        go_on()?;
        Ok(state)
    }

    /// The primary has registered the open that was begun, or one made by a create.
    pub fn registered(&self, gfid: Gfid) {
        self.lock().held.entry(gfid).or_default().stage = Stage::Registered;
    }

    /// A handle was closed, or its open failed.
    pub fn close(&self, gfid: Gfid) {
        let mut state = self.lock();
        let Some(held) = state.held.get_mut(&gfid) else {
            return;
        };
        held.handles = held.handles.saturating_sub(1);
        if held.handles == 0 {
            if held.stage == Stage::Unregistered {
                state.held.remove(&gfid);
            } else {
                held.idle_since = Some(Instant::now());
                self.changed.notify_all();
            }
        }
    }

    /// Takes up to `max` objects that have been closed for `age`, to be released.
    pub fn take_idle(&self, max: usize, age: Duration) -> Vec<Gfid> {
        let mut taken = Vec::new();
        let mut state = self.lock();
        let lost = state.lost;
        for (gfid, held) in &mut state.held {
            if taken.len() == max {
                break;
            }
            if held.releasable() && held.idle_since.is_some_and(|since| since.elapsed() >= age) {
                held.stage = Stage::Releasing;
                held.taken_after = lost;
                taken.push(*gfid);
            }
        }
        taken
    }

    /// Takes this object to be released if nobody has it open. Waits while it is being released:
    /// what is removed in that moment would be kept as an orphan, and its room with it.
    ///
    /// # Errors
    /// Those of `go_on`.
    pub fn take_if_idle(&self, gfid: Gfid, go_on: GoOn<'_>) -> Result<bool, FsError> {
        let mut state = self.lock();
        loop {
            let lost = state.lost;
            match state.held.get_mut(&gfid) {
                Some(held) if held.stage == Stage::Releasing => {
                    state = self.wait_for_release(state, go_on)?;
                }
                Some(held) if held.releasable() => {
                    held.stage = Stage::Releasing;
                    held.taken_after = lost;
                    return Ok(true);
                }
                _ => return Ok(false),
            }
        }
    }

    /// What was taken has been released, or is given up.
    pub fn released(&self, gfids: &[Gfid]) {
        let mut state = self.lock();
        for gfid in gfids {
            if state
                .held
                .get(gfid)
                .is_some_and(|held| held.stage == Stage::Releasing)
            {
                state.held.remove(gfid);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// What was taken has not been released: it is as before. A session that began meanwhile has
    /// not been told of it, though.
    pub fn not_released(&self, gfids: &[Gfid]) {
        let mut state = self.lock();
        let lost = state.lost;
        for gfid in gfids {
            match state.held.get_mut(gfid) {
                Some(held) if held.taken_after == lost => held.stage = Stage::Registered,
                _ => drop(state.held.remove(gfid)),
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits, at most `timeout`, until an object may have become idle; whether any is.
    pub fn wait_idle(&self, timeout: Duration) -> bool {
        let any = |state: &State| state.held.values().any(|h| h.idle_since.is_some());
        let mut state = self.lock();
        if !any(&state) {
            state = self.changed.wait_timeout(state, timeout);
        }
        any(&state)
    }

    /// Whether the object has a handle in this mount.
    pub fn is_open(&self, gfid: Gfid) -> bool {
        self.lock()
            .held
            .get(&gfid)
            .is_some_and(|held| held.handles > 0)
    }

    /// Remembers that an owner was granted a lock in that life of the session.
    ///
    /// # Errors
    /// [`FsError::Io`] when that life has been fenced meanwhile: the lock is lost already.
    pub fn lock_granted(
        &self,
        gfid: Gfid,
        lock: HeldLock,
        life: LifeNumber,
    ) -> Result<(), FsError> {
        let mut state = self.lock();
        if state.lost.is_some_and(|lost| life <= lost) {
            lock.lost.store(true, Ordering::Release);
            return Err(FsError::Io);
        }
        let locks = &mut state.held.entry(gfid).or_default().locks;
        if !locks
            .iter()
            .any(|have| have.is_of(lock.owner, lock.kind) && have.handle == lock.handle)
        {
            locks.push(lock);
        }
        Ok(())
    }

    /// Whether this owner holds a lock of this kind here.
    pub fn holds_lock(&self, gfid: Gfid, owner: u64, kind: LockKind) -> bool {
        let state = self.lock();
        let held = state.held.get(&gfid);
        held.is_some_and(|held| held.locks.iter().any(|lock| lock.is_of(owner, kind)))
    }

    /// Takes out the locks of this kind of an owner.
    pub fn take_locks_of(&self, gfid: Gfid, owner: u64, kind: LockKind) -> Vec<HeldLock> {
        self.take_locks(gfid, |lock| lock.is_of(owner, kind))
    }

    /// Takes out the locks taken through a handle.
    pub fn take_locks_through(&self, gfid: Gfid, handle: u64) -> Vec<HeldLock> {
        self.take_locks(gfid, |lock| lock.handle == handle)
    }

    /// What was taken out in that life of the session was not given up after all.
    pub fn put_back(&self, gfid: Gfid, locks: Vec<HeldLock>, life: LifeNumber) {
        for lock in locks {
            // Lost meanwhile: the handle is told by that.
            let _ = self.lock_granted(gfid, lock, life);
        }
    }

    /// This life of the session was fenced: all locks are gone, and their handles are told. So are
    /// those whose grants of this life come in later.
    pub fn lose_locks(&self, life: LifeNumber) -> Lost {
        let mut state = self.lock();
        state.lost = Some(life);
        let mut lost = Lost::default();
        for (gfid, held) in &mut state.held {
            if !held.locks.is_empty() {
                lost.files.push(*gfid);
            }
            for lock in held.locks.drain(..) {
                lock.lost.store(true, Ordering::Release);
                lost.locks += 1;
            }
        }
        lost
    }

    /// Requests that register again all that is open.
    pub fn reopen_in_pieces(&self) -> Vec<Vec<Op>> {
        let state = self.lock();
        let open: Vec<Op> = state
            .held
            .iter()
            .filter(|(_, held)| held.stage == Stage::Registered)
            .map(|(gfid, _)| Op {
                op: Some(op::Op::Open(Open {
                    gfid: Some(*gfid),
                    unnamed: true,
                    ..Default::default()
                })),
            })
            .collect();
        open.chunks(REOPEN_OPS_MAX).map(<[Op]>::to_vec).collect()
    }

    fn take_locks(&self, gfid: Gfid, of: impl Fn(&HeldLock) -> bool) -> Vec<HeldLock> {
        let mut state = self.lock();
        let Some(held) = state.held.get_mut(&gfid) else {
            return Vec::new();
        };
        let (taken, kept) = std::mem::take(&mut held.locks).into_iter().partition(of);
        held.locks = kept;
        taken
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldLock {
    fn is_of(&self, owner: u64, kind: LockKind) -> bool {
        self.owner == owner && self.kind == kind
    }
}

impl Held {
    fn releasable(&self) -> bool {
        self.handles == 0 && self.stage == Stage::Registered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Gfid = Gfid { hi: 1, lo: 2 };

    fn open(holdings: &Holdings) -> Registration {
        holdings.begin_open(FILE, &|| Ok(())).unwrap()
    }

    fn take(holdings: &Holdings) -> bool {
        holdings.take_if_idle(FILE, &|| Ok(())).unwrap()
    }

    #[test]
    fn an_open_is_registered_once_and_released_once() {
        let holdings = Holdings::default();
        assert_eq!(open(&holdings), Registration::Needed);
        holdings.registered(FILE);
        assert_eq!(open(&holdings), Registration::Known);
        holdings.close(FILE);
        assert!(holdings.take_idle(8, Duration::ZERO).is_empty());
        holdings.close(FILE);
        assert_eq!(holdings.take_idle(8, Duration::ZERO), [FILE]);
        assert!(holdings.take_idle(8, Duration::ZERO).is_empty());
        holdings.released(&[FILE]);
        assert_eq!(open(&holdings), Registration::Needed);
    }

    #[test]
    fn a_reopen_before_the_release_needs_nothing() {
        let holdings = Holdings::default();
        open(&holdings);
        holdings.registered(FILE);
        holdings.close(FILE);
        assert_eq!(open(&holdings), Registration::Known);
        assert!(!take(&holdings));
    }

    #[test]
    fn an_open_waits_for_the_release_that_is_under_way() {
        let holdings = Arc::new(Holdings::default());
        open(&holdings);
        holdings.registered(FILE);
        holdings.close(FILE);
        assert!(take(&holdings));
        let opener = {
            let holdings = holdings.clone();
            std::thread::spawn(move || open(&holdings))
        };
        holdings.released(&[FILE]);
        assert_eq!(opener.join().unwrap(), Registration::Needed);
    }

    #[test]
    fn a_removal_waits_for_the_release_that_is_under_way() {
        let holdings = Arc::new(Holdings::default());
        open(&holdings);
        holdings.registered(FILE);
        holdings.close(FILE);
        assert_eq!(holdings.take_idle(8, Duration::ZERO), [FILE]);
        let remover = {
            let holdings = holdings.clone();
            std::thread::spawn(move || take(&holdings))
        };
        holdings.released(&[FILE]);
        assert!(!remover.join().unwrap());
    }

    #[test]
    fn a_fence_takes_the_locks_and_tells_their_handles() {
        let holdings = Holdings::default();
        let lost = Arc::new(AtomicBool::new(false));
        let lock = HeldLock {
            owner: 1,
            handle: 7,
            kind: LockKind::LockPosix,
            lost: lost.clone(),
        };
        let first = LifeNumber::default();
        assert_eq!(holdings.lock_granted(FILE, lock.clone(), first), Ok(()));
        assert!(holdings.holds_lock(FILE, 1, LockKind::LockPosix));
        assert!(!holdings.holds_lock(FILE, 1, LockKind::LockFlock));
        let all = Lost {
            locks: 1,
            files: vec![FILE],
        };
        assert_eq!(holdings.lose_locks(first), all);
        assert!(lost.load(Ordering::Acquire));
        let taken = holdings.take_locks_of(FILE, 1, LockKind::LockPosix);
        assert!(taken.is_empty());

        // A grant that comes in when its life is over already is none.
        lost.store(false, Ordering::Release);
        let late = holdings.lock_granted(FILE, lock.clone(), first);
        assert_eq!(late, Err(FsError::Io));
        assert!(lost.load(Ordering::Acquire));
        assert!(!holdings.holds_lock(FILE, 1, LockKind::LockPosix));
        assert_eq!(holdings.lock_granted(FILE, lock, first.next()), Ok(()));
    }

    /// A thread unlocked the whole file while another of the same owner was granted a lock: the
    /// grant was forgotten with what the first gave up, and the lock stayed for ever.
    #[test]
    fn a_grant_while_others_are_given_up_is_remembered() {
        let holdings = Holdings::default();
        let lock = |handle| HeldLock {
            owner: 1,
            handle,
            kind: LockKind::LockPosix,
            lost: Arc::default(),
        };
        let life = LifeNumber::default();
        holdings.lock_granted(FILE, lock(7), life).unwrap();
        let taken = holdings.take_locks_of(FILE, 1, LockKind::LockPosix);
        assert_eq!(taken.len(), 1);
        assert!(!holdings.holds_lock(FILE, 1, LockKind::LockPosix));
        holdings.lock_granted(FILE, lock(8), life).unwrap();
        assert!(holdings.holds_lock(FILE, 1, LockKind::LockPosix));
        // One that could not be given up is still held, unless its session is over.
        holdings.put_back(FILE, taken.clone(), life);
        assert_eq!(holdings.lose_locks(life).locks, 2);
        holdings.put_back(FILE, taken.clone(), life);
        assert!(taken[0].lost.load(Ordering::Acquire));
        assert!(!holdings.holds_lock(FILE, 1, LockKind::LockPosix));
    }

    #[test]
    fn an_open_that_a_fence_found_under_release_is_not_believed_to_be_registered() {
        let holdings = Holdings::default();
        for is_fenced in [false, true] {
            open(&holdings);
            holdings.registered(FILE);
            holdings.close(FILE);
            assert!(take(&holdings));
            if is_fenced {
                holdings.lose_locks(LifeNumber::default());
                assert!(holdings.reopen_in_pieces().is_empty());
            }
            holdings.not_released(&[FILE]);
            let expected = match is_fenced {
                true => Registration::Needed,
                false => Registration::Known,
            };
            assert_eq!(open(&holdings), expected);
            holdings.close(FILE);
        }
    }

    #[test]
    fn who_waits_for_a_release_can_be_killed() {
        let holdings = Holdings::default();
        open(&holdings);
        holdings.registered(FILE);
        holdings.close(FILE);
        assert!(take(&holdings));
        let killed = || Err(FsError::Interrupted);
        assert_eq!(
            holdings.begin_open(FILE, &killed),
            Err(FsError::Interrupted)
        );
        assert_eq!(
            holdings.take_if_idle(FILE, &killed),
            Err(FsError::Interrupted)
        );
        holdings.released(&[FILE]);
        assert_eq!(open(&holdings), Registration::Needed);
    }
}
