//! Sessions as the primary minds them: who was heard when, what expires, which orphans are freed;
//! and how much space the copies have left.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mortar_common::{BrickId, SessionId};
use mortar_proto::data::{FreeStep, SessionEndStep, change::Step};
use tracing::{debug, info};

use super::core::{Role, WaitFor};
use super::keys::keys_of;
use super::memory::Reclaim;
use super::order::{NotDone, Origin};
use super::{Replica, now_ms};
use crate::brick::Store;

/// A session that is silent for this long is expired and fenced.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
/// A new primary frees no orphan for this long: sessions may not have reclaimed their opens yet.
const RECLAIM_TIME: Duration = Duration::from_secs(5);
/// How long housekeeping waits for the set to be ready.
const PATIENCE: Duration = Duration::from_millis(200);
/// What is known of free space is asked for again after this.
const FREE_BYTES_AGE: Duration = Duration::from_secs(1);

impl Replica {
    /// This copy has become primary: sessions get their whole time anew, and may say for a while
    /// what they have open.
    pub(super) fn begin_as_primary(self: &Arc<Self>) {
        self.primary_since_ms.store(now_ms(), Ordering::Relaxed);
        let mut memory = self.lock_memory();
        memory.start_hearing(now_ms());
        memory.set_reclaim(Reclaim::Running);
        drop(memory);
        self.in_background("orphans", |replica| match replica.store.orphans() {
            Ok(orphans) => replica.lock_memory().add_orphans(orphans),
            Err(failure) => replica.disk_failed(&failure.to_string()),
        });
    }

    /// Expires silent sessions and frees orphans that nobody has open any more.
    pub(super) fn look_over_sessions(self: &Arc<Self>) {
        if self.role().0 != Role::Primary {
            return;
        }
        let now = now_ms();
        let silent = self
            .lock_memory()
            .silent(now, SESSION_TIMEOUT.as_millis() as u64);
        for session in silent {
            info!(%session, "a session was silent for too long and is expired");
            let step = Step::SessionEnd(SessionEndStep { session: session.0 });
            if let Err(reason) = self.housekeeping(&step) {
                debug!(?reason, "the expiry waits");
            }
        }
        let primary_for_ms = now.saturating_sub(self.primary_since_ms.load(Ordering::Relaxed));
        if primary_for_ms < RECLAIM_TIME.as_millis() as u64 {
            return;
        }
        let freeable = {
            let mut memory = self.lock_memory();
            memory.set_reclaim(Reclaim::Over);
            memory.freeable()
        };
        for gfid in freeable {
            let step = Step::Free(FreeStep { gfid: Some(gfid) });
            if let Err(reason) = self.housekeeping(&step) {
                debug!(?reason, "an orphan waits");
                return;
            }
        }
    }

    /// Orders and finishes a change nobody asked for; lets it be when it is no longer wanted.
    fn housekeeping(self: &Arc<Self>, step: &Step) -> Result<(), NotDone> {
        let pass = self.gate.enter(keys_of(step, SessionId(0)));
        if let Step::Free(FreeStep { gfid: Some(gfid) }) = step
            && !self.lock_memory().may_free(*gfid)
        {
            return Ok(());
        }
        let (numbered, waiter) = self.order(
            &mut |_| Some(step.clone()),
            Bytes::new(),
            Origin::default(),
            WaitFor::Everyone,
            PATIENCE,
        )?;
        self.finish(&numbered, &waiter, Some(pass))
    }
}

/// How many bytes each copy can still take.
#[derive(Default)]
pub struct FreeBytes {
    inner: Mutex<FreeInner>,
}

#[derive(Default)]
struct FreeInner {
    own: Option<(Instant, u64, u64)>,
    others: HashMap<BrickId, u64>,
}

impl FreeBytes {
    /// Another copy said how much it can take.
    pub fn learned(&self, copy: BrickId, bytes: u64) {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .others
            .insert(copy, bytes);
    }

    /// Bytes this copy can take, as of at most a second ago.
    pub fn own(&self, store: &dyn Store) -> u64 {
        self.look(store).0
    }

    /// Objects this copy can take.
    pub fn objects(&self, store: &dyn Store) -> u64 {
        self.look(store).1
    }

    fn look(&self, store: &dyn Store) -> (u64, u64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, bytes, objects)) = inner.own
            && at.elapsed() < FREE_BYTES_AGE
        {
            return (bytes, objects);
        }
        let (bytes, objects) = store.stat_fs().map_or((0, 0), |stat| {
            (stat.blocks_available * stat.block_size, stat.files_free)
        });
        inner.own = Some((Instant::now(), bytes, objects));
        (bytes, objects)
    }

    /// The least over these copies and this one.
    pub fn least(&self, store: &dyn Store, in_sync: &[BrickId]) -> u64 {
        let own = self.own(store);
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        in_sync
            .iter()
            .filter_map(|copy| inner.others.get(copy))
            .copied()
            .fold(own, u64::min)
    }
}
