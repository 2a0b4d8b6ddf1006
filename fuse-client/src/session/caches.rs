//! Whether what was written and not yet synced is still there. A brick names its page cache, which
//! is another one after the host or the disk went down. While one copy remembers the session,
//! nothing is lost; when every copy was started anew, the one that serves must have the page cache
//! that it had before, or an fsync that comes now would call durable what is gone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use mortar_common::BrickId;

/// The page caches that this session was served from.
#[derive(Debug, Default)]
pub struct PageCaches {
    state: Mutex<State>,
    losses: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Bounded by the bricks of a volume.
    seen: HashMap<BrickId, Bytes>,
    /// A brick has served from one that it was not seen with before.
    doubtful: bool,
}

impl PageCaches {
    /// A brick that named this page cache has served a request.
    pub fn served(&self, brick: BrickId, cache: &Bytes) {
        let mut state = self.lock();
        let before = state.seen.insert(brick, cache.clone());
        state.doubtful |= before.as_ref() != Some(cache);
    }

    /// No copy knows the session any more. What is served from now on is judged.
    pub fn begin_anew(&self) {
        self.lock().doubtful = false;
    }

    /// Whoever serves now has done so: whether what was not synced may be lost.
    pub fn judge(&self) -> bool {
        let doubtful = self.lock().doubtful;
        if doubtful {
            self.losses.fetch_add(1, Ordering::AcqRel);
        }
        doubtful
    }

    /// How often what was not synced may have been lost.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_brick_with_its_old_page_cache_has_lost_nothing() {
        let caches = PageCaches::default();
        let (one, other) = (BrickId(1), BrickId(2));
        let (before, after) = (Bytes::from_static(b"before"), Bytes::from_static(b"after"));
        caches.served(one, &before);
        let served_anew = |brick, cache: &Bytes| {
            caches.begin_anew();
            caches.served(brick, cache);
            caches.judge()
        };
        assert!(
            !served_anew(one, &before),
            "its process alone was started anew"
        );
        assert!(served_anew(one, &after), "its host was");
        assert!(!served_anew(one, &after));
        assert!(served_anew(other, &before), "it was never seen");
        assert_eq!(caches.losses(), 2);
    }
}
