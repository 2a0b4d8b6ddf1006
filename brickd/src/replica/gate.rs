//! The primary's FIFO per key, as a place where request threads wait their turn.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::keys::{KeyQueue, Keys};

/// Lets requests that share a key through one after the other, in the order they came.
#[derive(Default)]
pub struct Gate {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    queue: KeyQueue<u64>,
    next_ticket: u64,
    waiting: HashMap<u64, Arc<Turn>>,
}

#[derive(Default)]
struct Turn {
    come: Mutex<bool>,
    woken: Condvar,
}

/// The right to work on some keys, until it is dropped.
pub struct Pass<'a> {
    gate: &'a Gate,
    ticket: u64,
}

impl Gate {
    /// Waits until no earlier request holds a key of these.
    pub fn enter(&self, keys: Keys) -> Pass<'_> {
        let (ticket, turn) = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.next_ticket += 1;
            let ticket = inner.next_ticket;
            let turn = if inner.queue.admit(ticket, keys) {
                None
            } else {
                let turn = Arc::new(Turn::default());
                inner.waiting.insert(ticket, Arc::clone(&turn));
                Some(turn)
            };
            (ticket, turn)
        };
        if let Some(turn) = turn {
            let mut come = turn.come.lock().unwrap_or_else(PoisonError::into_inner);
            while !*come {
                come = turn
                    .woken
                    .wait(come)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
        Pass { gate: self, ticket }
    }

    /// How many requests wait their turn.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.waiting.len()
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut inner = self
            .gate
            .inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for ticket in inner.queue.done(&self.ticket) {
            if let Some(turn) = inner.waiting.remove(&ticket) {
                *turn.come.lock().unwrap_or_else(PoisonError::into_inner) = true;
                turn.woken.notify_one();
            }
        }
    }
}
