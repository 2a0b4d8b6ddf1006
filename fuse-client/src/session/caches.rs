//! Whether what was written and not yet synced is still there. A brick names its page cache, which
//! is another one after the host or the disk went down. While one copy remembers the session,
//! nothing is lost; when every copy was started anew, the one that serves must have the page cache
//! that it had before, or an fsync that comes now would call durable what is gone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use mortar_proto::data::PageCache;

/// The page caches that this session was served from.
#[derive(Debug, Default)]
pub struct PageCaches {
    state: Mutex<State>,
    losses: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Bounded by the bricks of a volume.
    seen: HashMap<u64, Bytes>,
    /// A brick has served from one that it was not seen with before.
    doubtful: bool,
}

impl PageCaches {
    /// A brick that named its page cache, and then those of the copies in sync with it, has served
    /// a request.
    pub fn served(&self, caches: &[PageCache]) {
        let mut state = self.lock();
        for (at, cache) in caches.iter().enumerate() {
            let before = state.seen.insert(cache.brick, cache.name.clone());
            // The others serve nothing: what they are is remembered for when they do.
            state.doubtful |= at == 0 && before.as_ref() != Some(&cache.name);
        }
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
        let of = |brick, name: &'static str| PageCache {
            brick,
            name: name.into(),
        };
        caches.served(&[of(1, "before"), of(2, "beside")]);
        let served_anew = |cache: PageCache| {
            caches.begin_anew();
            caches.served(&[cache]);
            caches.judge()
        };
        assert!(
            !served_anew(of(1, "before")),
            "its process alone was started anew"
        );
        assert!(
            !served_anew(of(2, "beside")),
            "it was in sync with the other"
        );
        assert!(served_anew(of(1, "after")), "its host was started anew");
        assert!(!served_anew(of(1, "after")));
        assert!(served_anew(of(3, "before")), "it was never heard of");
        assert_eq!(caches.losses(), 2);
    }
}
