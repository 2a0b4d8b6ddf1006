//! The queue: tickets that share a key run in the order they were admitted.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use super::{Key, Keys, Mode};

/// A FIFO per key. A ticket is queued at all its keys at once and runs when it has come up at
/// every one. It has come up at a key when everybody before it there has come up and nobody who
/// holds it up ([`Mode::holds_up`]) is still running there: nobody overtakes.
///
/// Costs are in proportion to the number of keys of the tickets that move. The number of tickets
/// is bounded by whoever admits them.
#[derive(Debug)]
pub struct KeyQueue<T> {
    tickets: HashMap<T, Ticket>,
    lanes: HashMap<Key, Lane<T>>,
}

#[derive(Debug)]
struct Ticket {
    keys: Keys,
    /// Keys at which it has not come up.
    missing: usize,
}

#[derive(Debug)]
struct Lane<T> {
    /// How many have come up and are not done, by mode.
    running: [usize; Mode::ALL.len()],
    waiting: VecDeque<(T, Mode)>,
}

impl<T> Lane<T> {
    fn is_free_for(&self, mode: Mode) -> bool {
        Mode::ALL
            .iter()
            .all(|held| self.running[held.index()] == 0 || !held.holds_up(mode))
    }
}

impl<T> Default for KeyQueue<T> {
    fn default() -> Self {
        KeyQueue {
            tickets: HashMap::new(),
            lanes: HashMap::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> KeyQueue<T> {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Queues a ticket behind every earlier one that shares a key. `true` = it runs now; else a
    /// later [`KeyQueue::done`] returns it. A ticket is not admitted again before it is done.
    pub fn admit(&mut self, ticket: T, keys: Keys) -> bool {
        debug_assert!(
            !self.tickets.contains_key(&ticket),
            "a ticket admitted twice"
        );
        let mut missing = 0;
        for (key, mode) in keys.iter() {
            let lane = self.lanes.entry(key).or_insert_with(|| Lane {
                running: [0; 4],
                waiting: VecDeque::new(),
            });
            if lane.waiting.is_empty() && lane.is_free_for(mode) {
                lane.running[mode.index()] += 1;
            } else {
                lane.waiting.push_back((ticket.clone(), mode));
                missing += 1;
            }
        }
        self.tickets.insert(ticket, Ticket { keys, missing });
        missing == 0
    }

    /// A ticket is finished (or, if it does not run yet, given up). Returns those that run now,
    /// in the order in which they came up. A ticket that is not there changes nothing.
    pub fn done(&mut self, ticket: &T) -> Vec<T> {
        let Some(finished) = self.tickets.remove(ticket) else {
            return Vec::new();
        };
        let mut ready = Vec::new();
        for (key, mode) in finished.keys.iter() {
            let Some(lane) = self.lanes.get_mut(&key) else {
                continue;
            };
            let waits = match finished.missing {
                0 => None,
                _ => lane.waiting.iter().position(|(other, _)| other == ticket),
            };
            match waits {
                Some(at) => drop(lane.waiting.remove(at)),
                None => lane.running[mode.index()] -= 1,
            }
            while let Some((_, mode)) = lane.waiting.front() {
                if !lane.is_free_for(*mode) {
                    break;
                }
                let Some((next, mode)) = lane.waiting.pop_front() else {
                    break;
                };
                lane.running[mode.index()] += 1;
                if let Some(state) = self.tickets.get_mut(&next) {
                    state.missing -= 1;
                    if state.missing == 0 {
                        ready.push(next);
                    }
                }
            }
            if lane.waiting.is_empty() && lane.running.iter().all(|count| *count == 0) {
                self.lanes.remove(&key);
            }
        }
        ready
    }

    /// Whether this ticket has come up at all its keys and is not done.
    pub fn is_running(&self, ticket: &T) -> bool {
        self.tickets
            .get(ticket)
            .is_some_and(|state| state.missing == 0)
    }

    /// The keys a ticket was admitted with.
    pub fn keys_of(&self, ticket: &T) -> Option<&Keys> {
        self.tickets.get(ticket).map(|state| &state.keys)
    }

    /// Tickets admitted and not done.
    pub fn len(&self) -> usize {
        self.tickets.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    /// Keys that somebody holds or waits for.
    #[cfg(test)]
    pub(super) fn lanes_left(&self) -> usize {
        self.lanes.len()
    }
}
