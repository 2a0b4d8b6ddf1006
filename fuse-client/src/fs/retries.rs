//! Opens that were refused because their name was gone, and that the kernel tries once more. And
//! renames, refused because their name held something else.
//!
//! On ESTALE the kernel looks the whole path up anew and opens what it finds; a second ESTALE goes to
//! the program. Where another mount replaces a file again and again, that file too may have lost its
//! name by then. But this time the lookup was part of the very open: what it found is what the name
//! meant while the program waited, so it is opened if it still exists.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cache::NodeId;

/// The kernel's second try follows at once; what comes later is another open.
const RETRY_WITHIN: Duration = Duration::from_millis(500);
/// Threads remembered at a time; of more, the kernel's retry is judged like a first try.
const THREADS_MAX: usize = 256;

/// Threads in the middle of such a second try.
#[derive(Debug, Default)]
pub struct Retries {
    threads: Mutex<HashMap<u32, Retry>>,
    count: AtomicUsize,
}

#[derive(Debug)]
struct Retry {
    refused_at: Instant,
    /// What the thread's last lookup found.
    found: Option<NodeId>,
}

impl Retries {
    /// The open of this thread is refused with ESTALE.
    pub fn refused(&self, thread: u32) {
        let mut threads = self.lock();
        threads.retain(|_, retry| retry.refused_at.elapsed() < RETRY_WITHIN);
        if threads.len() < THREADS_MAX {
            let retry = Retry {
                refused_at: Instant::now(),
                found: None,
            };
            threads.insert(thread, retry);
        }
        self.count.store(threads.len(), Ordering::Relaxed);
    }

    /// Whether the last try of this thread was refused a moment ago; the next one is a first again.
    pub fn was_refused(&self, thread: u32) -> bool {
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut threads = self.lock();
        let retry = threads.remove(&thread);
        self.count.store(threads.len(), Ordering::Relaxed);
        retry.is_some_and(|it| it.refused_at.elapsed() < RETRY_WITHIN)
    }

    /// A lookup of this thread found this; `None` = nothing.
    pub fn looked_up(&self, thread: u32, found: Option<NodeId>) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut threads = self.lock();
        match found {
            Some(_) => {
                if let Some(retry) = threads.get_mut(&thread) {
                    retry.found = found;
                }
            }
            None => drop(threads.remove(&thread)),
        }
        self.count.store(threads.len(), Ordering::Relaxed);
    }

    /// This thread opens a node: whether that is the second try of an open, which looked it up.
    pub fn is_second_try(&self, thread: u32, node: NodeId) -> bool {
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut threads = self.lock();
        let retry = threads.remove(&thread);
        self.count.store(threads.len(), Ordering::Relaxed);
        retry.is_some_and(|it| it.found == Some(node) && it.refused_at.elapsed() < RETRY_WITHIN)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Retry>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lookup_of_the_refused_open_itself_counts() {
        let retries = Retries::default();
        let (old, new) = (NodeId(7), NodeId(8));
        retries.looked_up(1, Some(new));
        assert!(!retries.is_second_try(1, new), "nothing was refused");
        retries.refused(1);
        assert!(!retries.is_second_try(1, old), "it was not looked up");
        retries.refused(1);
        retries.looked_up(2, Some(old));
        retries.looked_up(1, Some(new));
        assert!(!retries.is_second_try(2, old), "another thread's");
        assert!(retries.is_second_try(1, new));
        assert!(!retries.is_second_try(1, new), "a third try");
        retries.refused(1);
        retries.looked_up(1, None);
        retries.looked_up(1, Some(new));
        assert!(!retries.is_second_try(1, new), "the open ended with ENOENT");
    }

    #[test]
    fn threads_are_bounded() {
        let retries = Retries::default();
        for thread in 0..10 * THREADS_MAX as u32 {
            retries.refused(thread);
        }
        assert!(retries.lock().len() <= THREADS_MAX);
    }
}
