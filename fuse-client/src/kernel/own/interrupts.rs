//! Requests that wait and can be interrupted, by their number.
//!
//! The kernel says once that a caller got a signal, and may say so before the thread that read the
//! request has come to wait for anything: what comes too early is kept for a while.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::fs::Interrupt;

/// Interrupts of requests that do not wait (yet); beyond this the oldest go, whose requests have
/// long been answered.
const EARLY_MAX: usize = 256;

/// The table.
#[derive(Debug, Default)]
pub struct Interrupts {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<u64, Arc<Interrupt>>,
    early: VecDeque<u64>,
}

impl Interrupts {
    /// From now on this request may be interrupted.
    pub fn wait(&self, unique: u64) -> Arc<Interrupt> {
        let interrupt = Arc::new(Interrupt::default());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = state.early.iter().position(|early| *early == unique) {
            state.early.remove(at);
            interrupt.set();
        }
        state.waiting.insert(unique, interrupt.clone());
        interrupt
    }

    /// It is being answered.
    pub fn answered(&self, unique: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting.remove(&unique);
    }

    /// The kernel says that its caller got a signal.
    pub fn interrupt(&self, unique: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interrupt) = state.waiting.get(&unique) {
            interrupt.set();
            return;
        }
        if state.early.len() == EARLY_MAX {
            state.early.pop_front();
        }
        state.early.push_back(unique);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_finds_its_request_before_and_after_it_waits() {
        let interrupts = Interrupts::default();
        let first = interrupts.wait(2);
        assert!(!first.is_set());
        interrupts.interrupt(2);
        assert!(first.is_set());
        interrupts.interrupt(4);
        assert!(interrupts.wait(4).is_set());
        assert!(!interrupts.wait(6).is_set());
        interrupts.answered(4);
        for unique in 100..100 + 2 * EARLY_MAX as u64 {
            interrupts.interrupt(unique);
        }
        let state = interrupts.state.lock().unwrap();
        assert_eq!((state.early.len(), state.waiting.len()), (EARLY_MAX, 2));
    }
}
