//! GETLK and SETLK: locks live at the primary, so they hold between mounts.
//!
//! A waiting lock is asked for again and again, each time for a moment only, so that an interrupted
//! caller is answered soon. It is answered what the last request came to, never before that is
//! known: a lock that was granted in that moment belongs to the caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mortar_common::{FsError, Gfid};
use mortar_proto::data::{Caller, GetLock, Lock, LockKind, LockType, SetLock, op, result};

use super::handles::File;
use super::notes::{Note, Then};
use super::{Fs, FsResult, is_uncertain, object_of};
use crate::cache::{Cached, NodeId};
use crate::session::holdings::HeldLock;
use crate::session::{Effect, signal_waits};

/// Callers that may wait for locks at a time, a thread each.
const WAITERS_MAX: usize = 1024;
/// The primary may hold a waiting request this long before it says "not yet": the longest that an
/// interrupted caller waits for its answer.
const WAIT: Duration = Duration::from_millis(100);
/// When the primary says so at once, it is asked again after a pause that begins here …
const PAUSE_FIRST: Duration = Duration::from_millis(1);
/// … and doubles up to this.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Where the kernel does not tell of interrupts, a waiting caller is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Stack of a waiter.
const WAITER_STACK_BYTES: usize = 256 << 10;
/// A range that ends here reaches to the end of the file.
const TO_THE_END: u64 = i64::MAX as u64;

/// First and last byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockRange {
    /// First byte.
    pub start: u64,
    /// Last byte, 2^63-1 for the end of the file.
    pub end: u64,
}

/// A lock that is asked for or given back.
#[derive(Clone, Copy, Debug)]
pub struct LockAsk {
    /// The file.
    pub node: NodeId,
    /// Through which handle.
    pub handle: u64,
    /// The kernel's lock owner.
    pub owner: u64,
    /// The process, as `F_GETLK` shows it to others.
    pub pid: u32,
    /// Of flock(2) or of fcntl(2); the two do not meet.
    pub kind: LockKind,
    /// Which bytes.
    pub range: LockRange,
    /// Shared, exclusive, or none.
    pub how: LockType,
}

/// Set when the caller of a waiting request wants to go on.
#[derive(Debug, Default)]
pub struct Interrupt(AtomicBool);

impl Interrupt {
    /// The caller got a signal.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it has.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Whether a lock that is not free is waited for.
#[derive(Clone, Debug)]
pub enum LockWait {
    /// It is refused.
    No,
    /// Until it is granted or this is set.
    UntilInterrupt(Arc<Interrupt>),
    /// Until it is granted or a signal is seen to wait for the caller.
    UntilSignal,
}

/// Called with what SETLK comes to, by whatever thread knows it.
pub type LockAnswer = Box<dyn FnOnce(FsResult<()>) + Send>;

/// How many callers wait.
#[derive(Debug, Default)]
pub struct Waiters(AtomicUsize);

impl Fs {
    /// The lock that is in the way of this one, or one of type [`LockType::LockUnlock`].
    pub fn getlk(&self, caller: Caller, ask: LockAsk) -> FsResult<Lock> {
        let file = self.handles.file(ask.handle)?;
        file.usable()?;
        let lock = lock_of(&ask);
        let get = GetLock {
            gfid: Some(file.gfid),
            lock: Some(lock),
        };
        let (result, _, _) = self.read_op(caller, op::Op::Getlock(get))?;
        match result.ok {
            Some(result::Ok::Lock(lock)) => Ok(lock),
            _ => Err(FsError::Io),
        }
    }

    /// Takes or drops a lock. If it is not free, a thread of its own waits for it as `wait` says.
    pub fn setlk(
        self: &Arc<Self>,
        caller: Caller,
        ask: LockAsk,
        wait: LockWait,
        answer: LockAnswer,
    ) {
        match self.try_lock(caller, &ask, Duration::ZERO) {
            Err(FsError::Again) if !matches!(wait, LockWait::No) => {
                self.wait_for_lock(caller, ask, wait, answer);
            }
            outcome => self.lock_judged(&ask, outcome, answer),
        }
    }

    fn wait_for_lock(
        self: &Arc<Self>,
        caller: Caller,
        ask: LockAsk,
        wait: LockWait,
        answer: LockAnswer,
    ) {
        if self.lock_waiters.0.fetch_add(1, Ordering::Relaxed) >= WAITERS_MAX {
            self.lock_waiters.0.fetch_sub(1, Ordering::Relaxed);
            return answer(Err(FsError::NoLocks));
        }
        let fs = self.clone();
        // The answer travels beside the closure, so that it is not lost if no thread can be made.
        let (send, receive) = std::sync::mpsc::sync_channel::<LockAnswer>(1);
        let thread = std::thread::Builder::new()
            .name("lock-waiter".to_owned())
            .stack_size(WAITER_STACK_BYTES)
            .spawn(move || {
                let outcome = fs.lock_when_free(caller, &ask, &wait);
                fs.lock_waiters.0.fetch_sub(1, Ordering::Relaxed);
                if let Ok(answer) = receive.recv() {
                    fs.lock_judged(&ask, outcome, answer);
                }
            });
        match thread {
            Ok(_) => {
                let _ = send.send(answer);
            }
            Err(_) => {
                self.lock_waiters.0.fetch_sub(1, Ordering::Relaxed);
                answer(Err(FsError::NoLocks));
            }
        }
    }

    fn lock_when_free(&self, caller: Caller, ask: &LockAsk, wait: &LockWait) -> FsResult<Granted> {
        let mut pause = PAUSE_FIRST;
        let mut watch = SignalWatch::of(caller);
        loop {
            let ended = match wait {
                LockWait::No => true,
                LockWait::UntilInterrupt(interrupt) => interrupt.is_set(),
                LockWait::UntilSignal => watch.is_signalled(),
            };
            if ended {
                return Err(FsError::Interrupted);
            }
            let began = Instant::now();
            match self.try_lock(caller, ask, WAIT) {
                Err(FsError::Again) => {}
                outcome => return outcome,
            }
            if began.elapsed() < WAIT / 2 {
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// One request.
    fn try_lock(&self, caller: Caller, ask: &LockAsk, wait: Duration) -> FsResult<Granted> {
        let file = self.handles.file(ask.handle)?;
        file.usable()?;
        let holdings = self.session.holdings();
        if ask.how == LockType::LockUnlock {
            return self.unlock(caller, ask, &file);
        }
        let held = HeldLock {
            owner: ask.owner,
            handle: ask.handle,
            kind: ask.kind,
            lost: file.locks_lost.clone(),
        };
        let life = self.session.life_number();
        let ops = vec![set_lock(file.gfid, ask, wait)];
        let outcome = self.ask_through(&[&file], caller, ops, &[], Effect::Repeatable);
        if outcome.as_ref().is_err_and(|error| is_uncertain(*error)) {
            // It may be held: then it goes when the file is closed.
            holdings.lock_granted(file.gfid, held.clone(), life)?;
        }
        let mut answer = outcome?;
        let result = answer.take(0)?;
        holdings.lock_granted(file.gfid, held, answer.life)?;
        for handle in self.handles.of(file.gfid) {
            handle.drop_head();
        }
        let data_counter = match object_of(&result, file.gfid) {
            Some(object) => object.data_counter,
            None => {
                self.inodes.expire(ask.node);
                0
            }
        };
        Ok(match self.inodes.validate(ask.node, data_counter) {
            Cached::Nothing | Cached::Current => Granted::PagesRight,
            Cached::Stale => Granted::PagesStale { data_counter },
        })
    }

    /// What is remembered of the owner's locks goes first, and comes back when the primary did not
    /// say that it has let them go: a grant to another thread of the owner, which the primary gives
    /// after it, is not to be forgotten with them.
    fn unlock(&self, caller: Caller, ask: &LockAsk, file: &File) -> FsResult<Granted> {
        let holdings = self.session.holdings();
        if !holdings.holds_lock(file.gfid, ask.owner, ask.kind) {
            return Ok(Granted::PagesRight);
        }
        let whole = LockRange {
            start: 0,
            end: TO_THE_END,
        };
        let life = self.session.life_number();
        let taken = match ask.range == whole {
            true => holdings.take_locks_of(file.gfid, ask.owner, ask.kind),
            false => Vec::new(),
        };
        let ops = vec![set_lock(file.gfid, ask, Duration::ZERO)];
        let answer = self.ask_through(&[file], caller, ops, &[], Effect::Repeatable);
        let outcome = answer.and_then(|mut answer| answer.take(0));
        if outcome.is_err() {
            holdings.put_back(file.gfid, taken, life);
        }
        outcome.map(|_| Granted::PagesRight)
    }

    /// A grant is a point of validation: before the caller goes on, what the kernel has cached of
    /// the file is dropped unless it is still right.
    fn lock_judged(
        self: &Arc<Self>,
        ask: &LockAsk,
        outcome: FsResult<Granted>,
        answer: LockAnswer,
    ) {
        match outcome {
            Ok(Granted::PagesStale { data_counter }) => {
                let (fs, node) = (self.clone(), ask.node);
                let then: Then = Box::new(move || {
                    fs.pages_dropped(node, data_counter);
                    answer(Ok(()));
                });
                let then = Some(then);
                self.notes.push(Note::DropPages { node, then });
            }
            Ok(Granted::PagesRight) => answer(Ok(())),
            Err(error) => answer(Err(error)),
        }
    }
}

/// A lock that was taken or given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Granted {
    /// What the kernel has cached of the file is right.
    PagesRight,
    /// It is to be dropped first; what is read then is of this counter.
    PagesStale { data_counter: u64 },
}

fn set_lock(gfid: Gfid, ask: &LockAsk, wait: Duration) -> op::Op {
    op::Op::Setlock(SetLock {
        gfid: Some(gfid),
        lock: Some(lock_of(ask)),
        wait_ms: wait.as_millis() as u32,
    })
}

/// Looks at a caller for a signal, where nobody tells.
struct SignalWatch {
    pid: u32,
    looked_at: Instant,
    seen: bool,
}

impl SignalWatch {
    fn of(caller: Caller) -> Self {
        SignalWatch {
            pid: caller.pid,
            looked_at: Instant::now(),
            seen: false,
        }
    }

    /// Seen twice, because another thread of the process may be about to take the signal.
    fn is_signalled(&mut self) -> bool {
        if self.looked_at.elapsed() < LOOK_EVERY {
            return false;
        }
        self.looked_at = Instant::now();
        let before = std::mem::replace(&mut self.seen, signal_waits(self.pid));
        before && self.seen
    }
}

fn lock_of(ask: &LockAsk) -> Lock {
    Lock {
        kind: ask.kind.into(),
        r#type: ask.how.into(),
        start: ask.range.start,
        end: ask.range.end,
        owner: ask.owner,
        pid: ask.pid,
        handle: ask.handle,
        session: 0,
    }
}
