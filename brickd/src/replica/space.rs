//! How much each copy can still take: no change is ordered that a copy's disk has no room for.
//!
//! Disks are not asked for every change. What is ordered is taken off what was measured last, so
//! that a fast writer cannot run into the reserve between two measurements; and a change that
//! would be refused is judged once more by what all copies say when they have applied everything
//! ordered before it: a removal is acknowledged when each copy holds it, and a copy whose disk is
//! busy gives its room back later than that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mortar_common::BrickId;

use super::plan::Space;
use super::{Replica, now_ms};

/// What is known of this copy's disk is asked for again after this.
const MEASURED_AGE: Duration = Duration::from_millis(100);
/// How long a change that finds no room waits for earlier ones to be applied everywhere and then to
/// hear of the other copies' disks: a copy that takes longer is put out of the set.
const NEWS_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks for such news.
const NEWS_POLL: Duration = Duration::from_millis(20);

/// How many bytes each copy can still take.
#[derive(Default)]
pub struct FreeBytes {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    own: Option<Measured>,
    others: HashMap<BrickId, Said>,
}

/// Bytes and objects that this copy's disk can take.
type Measure<'a> = &'a dyn Fn() -> (u64, u64);

#[derive(Clone, Copy, Debug)]
struct Measured {
    at: Instant,
    bytes: u64,
    objects: u64,
}

/// What another copy said of itself.
#[derive(Clone, Copy, Debug)]
struct Said {
    /// When it was asked, on the clock of [`now_ms`].
    asked_ms: u64,
    bytes: u64,
}

impl FreeBytes {
    /// Another copy, asked at that time, measured how much it can take.
    pub fn learned(&self, copy: BrickId, asked_ms: u64, bytes: u64) {
        self.lock().others.insert(copy, Said { asked_ms, bytes });
    }

    /// A change that takes this much on each copy was ordered.
    pub fn taken(&self, bytes: u64) {
        let mut inner = self.lock();
        let Inner { own, others } = &mut *inner;
        let own = own.iter_mut().map(|measured| &mut measured.bytes);
        for left in own.chain(others.values_mut().map(|said| &mut said.bytes)) {
            *left = left.saturating_sub(bytes);
        }
    }

    /// What the fullest of these copies and this one can take.
    fn least(&self, measure: Measure<'_>, in_sync: &[BrickId]) -> Space {
        let own = self.own(measure, MEASURED_AGE);
        let inner = self.lock();
        let others = in_sync.iter().filter_map(|copy| inner.others.get(copy));
        Space {
            bytes_left: others.map(|said| said.bytes).fold(own.bytes, u64::min),
            objects_left: own.objects,
        }
    }

    /// Measures this copy's disk now; whether all these copies were asked after `since_ms`.
    fn is_news(&self, measure: Measure<'_>, in_sync: &[BrickId], since_ms: u64) -> bool {
        self.own(measure, Duration::ZERO);
        let inner = self.lock();
        let mut others = in_sync.iter().filter_map(|copy| inner.others.get(copy));
        others.all(|said| said.asked_ms > since_ms)
    }

    fn own(&self, measure: Measure<'_>, age: Duration) -> Measured {
        let mut inner = self.lock();
        if let Some(own) = inner.own
            && own.at.elapsed() < age
        {
            return own;
        }
        let (bytes, objects) = measure();
        let own = Measured {
            at: Instant::now(),
            bytes,
            objects,
        };
        inner.own = Some(own);
        own
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replica {
    /// Bytes this copy can take, measured now: whoever asks may have waited for just that.
    pub(super) fn free_bytes_here(&self) -> u64 {
        let measure = || self.measure_space();
        self.free_bytes.own(&measure, Duration::ZERO).bytes
    }

    /// What the fullest in-sync copy can take.
    pub(super) fn space_left(&self) -> Space {
        let measure = || self.measure_space();
        self.free_bytes.least(&measure, &self.in_sync_bricks())
    }

    /// A change found no room: waits until every in-sync copy has applied what was ordered so far
    /// and has then said anew what it can take, or for a while.
    pub(super) fn wait_for_news_of_space(self: &Arc<Self>) {
        let begin = Instant::now();
        let ordered = self.lock_core().last_number();
        let mut settled_ms = None;
        while begin.elapsed() < NEWS_WITHIN && !self.is_stopped() {
            if settled_ms.is_none() && self.lock_core().complete() >= ordered {
                settled_ms = Some(now_ms());
            }
            let in_sync = self.in_sync_bricks();
            let measure = || self.measure_space();
            let is_news = |since| self.free_bytes.is_news(&measure, &in_sync, since);
            if settled_ms.is_some_and(is_news) {
                return;
            }
            self.wait_for_move(NEWS_POLL);
        }
    }

    fn measure_space(&self) -> (u64, u64) {
        self.store.stat_fs().map_or((0, 0), |stat| {
            (stat.blocks_available * stat.block_size, stat.files_free)
        })
    }

    fn in_sync_bricks(&self) -> Vec<BrickId> {
        let in_sync = self.lock_core().in_sync();
        in_sync.into_iter().map(|(brick, _)| brick).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: BrickId = BrickId(2);
    const OUT: BrickId = BrickId(3);

    fn left(free: &FreeBytes, own: u64) -> u64 {
        free.least(&|| (own, 9), &[OTHER]).bytes_left
    }

    #[test]
    fn the_fullest_copy_counts_and_what_is_ordered_is_taken_off() {
        let free = FreeBytes::default();
        assert_eq!(left(&free, 1000), 1000);
        free.learned(OTHER, 1, 300);
        free.learned(OUT, 1, 1);
        assert_eq!(left(&free, 1000), 300);
        free.taken(200);
        assert_eq!(left(&free, 1000), 100);
        free.taken(200);
        assert_eq!(left(&free, 1000), 0);
        free.learned(OTHER, 2, 5000);
        let own = left(&free, 1000);
        assert!(
            own == 600 || own == 1000,
            "{own} is not what was left or measured"
        );
    }

    #[test]
    fn room_that_was_made_is_seen_when_it_is_asked_for() {
        let free = FreeBytes::default();
        assert_eq!(left(&free, 0), 0);
        assert!(
            free.is_news(&|| (700, 9), &[OTHER], 5),
            "nobody else is known"
        );
        free.learned(OTHER, 5, 0);
        assert!(!free.is_news(&|| (700, 9), &[OTHER], 5));
        free.learned(OTHER, 6, 800);
        assert!(free.is_news(&|| (700, 9), &[OTHER], 5));
        assert_eq!(left(&free, 700), 700);
    }
}
