//! How much each copy can still take: no change is ordered that a copy's disk has no room for.
//!
//! Disks are not asked for every change. What is ordered is taken off what was measured last, so
//! that a fast writer cannot run into the reserve between two measurements; and a change that
//! would be refused is judged once more by what all copies say from then on, because room may just
//! have been made.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mortar_common::BrickId;

use super::Replica;
use super::plan::Space;

/// What is known of this copy's disk is asked for again after this.
const MEASURED_AGE: Duration = Duration::from_millis(100);
/// How long a change that finds no room waits to hear of the other copies' disks: some beacons.
const NEWS_WITHIN: Duration = Duration::from_secs(1);
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
    others: HashMap<BrickId, Measured>,
}

/// Bytes and objects that this copy's disk can take.
type Measure<'a> = &'a dyn Fn() -> (u64, u64);

#[derive(Clone, Copy, Debug)]
struct Measured {
    at: Instant,
    bytes: u64,
    /// Of this copy only.
    objects: u64,
}

impl FreeBytes {
    /// Another copy said how much it can take.
    pub fn learned(&self, copy: BrickId, bytes: u64) {
        let said = Measured {
            at: Instant::now(),
            bytes,
            objects: 0,
        };
        self.lock().others.insert(copy, said);
    }

    /// A change that takes this much on each copy was ordered.
    pub fn taken(&self, bytes: u64) {
        let mut inner = self.lock();
        let Inner { own, others } = &mut *inner;
        for measured in own.iter_mut().chain(others.values_mut()) {
            measured.bytes = measured.bytes.saturating_sub(bytes);
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

    /// Measures this copy's disk now; whether all these copies have spoken since `since`.
    fn is_news(&self, measure: Measure<'_>, in_sync: &[BrickId], since: Instant) -> bool {
        self.own(measure, Duration::ZERO);
        let inner = self.lock();
        let mut others = in_sync.iter().filter_map(|copy| inner.others.get(copy));
        others.all(|said| said.at > since)
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
    /// Bytes this copy can take.
    pub(super) fn free_bytes_here(&self) -> u64 {
        let measure = || self.measure_space();
        self.free_bytes.own(&measure, MEASURED_AGE).bytes
    }

    /// What the fullest in-sync copy can take.
    pub(super) fn space_left(&self) -> Space {
        let measure = || self.measure_space();
        self.free_bytes.least(&measure, &self.in_sync_bricks())
    }

    /// A change found no room: waits until every copy has said anew what it can take, or for a
    /// while.
    pub(super) fn wait_for_news_of_space(self: &Arc<Self>) {
        let since = Instant::now();
        loop {
            let in_sync = self.in_sync_bricks();
            let measure = || self.measure_space();
            if self.free_bytes.is_news(&measure, &in_sync, since)
                || since.elapsed() > NEWS_WITHIN
                || self.is_stopped()
            {
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
        free.learned(OTHER, 300);
        free.learned(OUT, 1);
        assert_eq!(left(&free, 1000), 300);
        free.taken(200);
        assert_eq!(left(&free, 1000), 100);
        free.taken(200);
        assert_eq!(left(&free, 1000), 0);
        free.learned(OTHER, 5000);
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
        let since = Instant::now();
        assert!(
            free.is_news(&|| (700, 9), &[OTHER], since),
            "nobody else is known"
        );
        free.learned(OTHER, 0);
        std::thread::sleep(Duration::from_millis(2));
        let since = Instant::now();
        assert!(!free.is_news(&|| (700, 9), &[OTHER], since));
        std::thread::sleep(Duration::from_millis(2));
        free.learned(OTHER, 800);
        assert!(free.is_news(&|| (700, 9), &[OTHER], since));
        assert_eq!(left(&free, 700), 700);
    }
}
