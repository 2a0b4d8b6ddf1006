//! GETLK and SETLK: locks live at the primary, so they hold between mounts.
//!
//! fuser 0.18 does not say whether a lock is flock(2)'s or fcntl(2)'s. All are asked for as POSIX
//! locks of the kernel's owner: a flock's owner is its open file, so it behaves as flock does, but
//! the two kinds exclude each other, which on a local disk they do not. Guessing the kind is worse:
//! two mounts that guess differently would both hold the lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mortar_common::FsError;
use mortar_proto::data::{Caller, GetLock, Lock, LockKind, LockType, SetLock, op, result};

use super::handles::File;
use super::notes::Note;
use super::{Fs, FsResult, is_uncertain, object_of};
use crate::cache::{NodeId, Pages};
use crate::session::holdings::HeldLock;
use crate::session::{Effect, signal_waits};

/// Callers that may wait for locks at a time, a thread each.
const WAITERS_MAX: usize = 1024;
/// The primary may hold a waiting request this long before it says "not yet".
const WAIT: Duration = Duration::from_millis(500);
/// When the primary says so at once, it is asked again after a pause that begins here …
const PAUSE_FIRST: Duration = Duration::from_millis(1);
/// … and doubles up to this.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// A waiting caller is looked at this often for a signal.
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
    /// Which bytes.
    pub range: LockRange,
    /// Shared, exclusive, or none.
    pub how: LockType,
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
        let lock = self.lock_of(&file, &ask);
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

    /// Takes or drops a lock. If it is not free and `may_wait`, a thread of its own waits for it,
    /// until it is granted or a signal comes to the caller.
    pub fn setlk(
        self: &Arc<Self>,
        caller: Caller,
        ask: LockAsk,
        may_wait: bool,
        answer: LockAnswer,
    ) {
        match self.try_lock(caller, &ask, Duration::ZERO) {
            Err(FsError::Again) if may_wait => self.wait_for_lock(caller, ask, answer),
            outcome => self.lock_judged(&ask, outcome, answer),
        }
    }

    fn wait_for_lock(self: &Arc<Self>, caller: Caller, ask: LockAsk, answer: LockAnswer) {
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
                let outcome = fs.lock_when_free(caller, &ask);
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

    fn lock_when_free(&self, caller: Caller, ask: &LockAsk) -> FsResult<Pages> {
        let mut pause = PAUSE_FIRST;
        let mut looked_at = Instant::now();
        let mut signalled = false;
        loop {
            let began = Instant::now();
            match self.try_lock(caller, ask, WAIT) {
                Err(FsError::Again) => {}
                outcome => return outcome,
            }
            if looked_at.elapsed() >= LOOK_EVERY {
                looked_at = Instant::now();
                // Twice, because another thread of the process may be about to take the signal.
                let waits = signal_waits(caller.pid);
                if waits && signalled {
                    return Err(FsError::Interrupted);
                }
                signalled = waits;
            }
            if began.elapsed() < WAIT / 2 {
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// One request. On a grant tells whether the kernel's pages are of the content as it is now.
    fn try_lock(&self, caller: Caller, ask: &LockAsk, wait: Duration) -> FsResult<Pages> {
        let file = self.handles.file(ask.handle)?;
        file.usable()?;
        let holdings = self.session.holdings();
        let unlock = ask.how == LockType::LockUnlock;
        if unlock && holdings.lock_kind(file.gfid, ask.owner).is_none() {
            return Ok(Pages::Current);
        }
        let set = SetLock {
            gfid: Some(file.gfid),
            lock: Some(self.lock_of(&file, ask)),
            wait_ms: if unlock { 0 } else { wait.as_millis() as u32 },
        };
        let held = HeldLock {
            owner: ask.owner,
            handle: ask.handle,
            kind: LockKind::LockPosix,
            lost: file.locks_lost.clone(),
        };
        let outcome = self.change_op(caller, op::Op::Setlock(set), Effect::Repeatable);
        if !unlock && outcome.as_ref().is_err_and(|error| is_uncertain(*error)) {
            // It may be held: then it goes when the file is closed.
            holdings.lock_granted(file.gfid, held.clone());
        }
        let (result, _) = outcome?;
        if unlock {
            if ask.range
                == (LockRange {
                    start: 0,
                    end: TO_THE_END,
                })
            {
                holdings.owner_unlocked(file.gfid, ask.owner);
            }
            return Ok(Pages::Current);
        }
        holdings.lock_granted(file.gfid, held);
        for handle in self.handles.of(file.gfid) {
            handle.drop_head();
        }
        match object_of(&result, file.gfid) {
            Some(object) => Ok(self.inodes.opened(ask.node, object.data_counter)),
            None => {
                self.inodes.expire(ask.node);
                Ok(self.inodes.opened(ask.node, 0))
            }
        }
    }

    /// A grant is a point of validation: before the caller goes on, what the kernel has cached of
    /// the file is dropped unless it is still right.
    fn lock_judged(&self, ask: &LockAsk, outcome: FsResult<Pages>, answer: LockAnswer) {
        match outcome {
            Ok(Pages::Stale) => {
                let then = Box::new(move || answer(Ok(())));
                self.notes.push(Note::DropPages {
                    node: ask.node,
                    then: Some(then),
                });
            }
            Ok(Pages::Current) => answer(Ok(())),
            Err(error) => answer(Err(error)),
        }
    }

    fn lock_of(&self, file: &File, ask: &LockAsk) -> Lock {
        let kind = self.session.holdings().lock_kind(file.gfid, ask.owner);
        Lock {
            kind: kind.unwrap_or(LockKind::LockPosix).into(),
            r#type: ask.how.into(),
            start: ask.range.start,
            end: ask.range.end,
            owner: ask.owner,
            pid: ask.pid,
            handle: ask.handle,
            session: 0,
        }
    }
}
