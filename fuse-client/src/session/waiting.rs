//! How long a request goes on waiting, and when its caller does not want it any more.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mortar_common::FsError;
use mortar_proto::data::Caller;

/// How often a waiting caller is looked at, by reading `/proc`.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);

/// The patience of one request.
#[derive(Debug)]
pub struct Waiting {
    deadline: Option<Instant>,
    pid: u32,
    looked_at: Mutex<Instant>,
    problem: Mutex<Option<String>>,
}

impl Waiting {
    /// For ever, or `timeout`, unless the caller is killed.
    pub fn of(caller: &Caller, timeout: Option<Duration>) -> Self {
        let now = Instant::now();
        Waiting {
            deadline: timeout.map(|timeout| now + timeout),
            pid: caller.pid,
            looked_at: Mutex::new(now),
            problem: Mutex::default(),
        }
    }

    /// Until then.
    pub fn until(deadline: Instant) -> Self {
        Waiting {
            deadline: Some(deadline),
            ..Waiting::of(&Caller::default(), None)
        }
    }

    /// Remembers why there is no answer yet.
    pub fn note(&self, problem: Option<&str>) {
        if self.deadline.is_some() {
            let problem = problem.map(str::to_owned);
            *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
        }
    }

    /// Why there was no answer, in words.
    pub fn problem(&self) -> Option<String> {
        self.problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// [`FsError::TimedOut`] or [`FsError::Interrupted`].
    pub fn check(&self) -> Result<(), FsError> {
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return Err(FsError::TimedOut);
        }
        let mut looked_at = self
            .looked_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(*looked_at) >= LOOK_EVERY {
            *looked_at = now;
            if caller_is_dying(self.pid) {
                return Err(FsError::Interrupted);
            }
        }
        Ok(())
    }
}

/// Whether SIGKILL waits for this thread: nobody will see what it is answered.
///
/// The kernel tells once that a caller got a signal, and not which: the one that counts may come
/// later.
pub fn caller_is_dying(pid: u32) -> bool {
    pending_signals(pid).is_some_and(|pending| pending.all & SIGKILL_BIT != 0)
}

/// Whether a signal that is not blocked waits for this thread.
pub fn signal_waits(pid: u32) -> bool {
    pending_signals(pid).is_some_and(|pending| pending.all & !pending.blocked != 0)
}

struct Pending {
    all: u64,
    blocked: u64,
}

/// `None` when the thread is not in our view: of another pid namespace, or gone.
fn pending_signals(pid: u32) -> Option<Pending> {
    if pid == 0 {
        return None;
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    Some(Pending {
        all: mask("SigPnd:")? | mask("ShdPnd:")?,
        blocked: mask("SigBlk:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_dying_here() {
        assert!(!caller_is_dying(std::process::id()));
        assert!(!signal_waits(0));
        assert!(Waiting::of(&Caller::default(), None).check().is_ok());
        assert_eq!(
            Waiting::until(Instant::now()).check(),
            Err(FsError::TimedOut)
        );
    }
}
