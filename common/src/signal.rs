//! A condition variable that is free to signal while nobody sleeps on it: the standard library's
//! makes a system call each time, and on the data path most signals find nobody.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::Duration;

/// Wakes threads that wait for what a mutex guards to change.
///
/// A change made under the mutex and then signalled, with or without the mutex, is never missed by
/// a sleeper that looked for it under the mutex: either it sees the change, or it is counted before
/// the change is made.
#[derive(Debug, Default)]
pub struct Signal {
    condvar: Condvar,
    sleepers: AtomicUsize,
}

impl Signal {
    /// Wakes everybody.
    pub fn notify_all(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.condvar.notify_all();
        }
    }

    /// Wakes one.
    pub fn notify_one(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.condvar.notify_one();
        }
    }

    /// Sleeps until signalled, or for no reason. A poisoned mutex is taken as it is.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let guard = self.condvar.wait(guard);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        guard.unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Signal::wait`], at most for `time`.
    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        time: Duration,
    ) -> MutexGuard<'a, T> {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let outcome = self.condvar.wait_timeout(guard, time);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        outcome.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Sleeps while `condition` holds, at most for `time`.
    pub fn wait_timeout_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        time: Duration,
        condition: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let outcome = self.condvar.wait_timeout_while(guard, time, condition);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        outcome.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Sleeps while `condition` holds.
    pub fn wait_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        condition: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let guard = self.condvar.wait_while(guard, condition);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        guard.unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn no_change_is_missed() {
        const ROUNDS: u32 = 20_000;
        let (turn, signal) = (Mutex::new(0u32), Signal::default());
        let count = |parity: u32| {
            for _ in 0..ROUNDS {
                let turn = turn.lock().unwrap();
                let mut turn = signal.wait_while(turn, |turn| *turn % 2 != parity);
                *turn += 1;
                drop(turn);
                signal.notify_all();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| count(0));
            scope.spawn(|| count(1));
        });
        assert_eq!(*turn.lock().unwrap(), 2 * ROUNDS);
    }
}
