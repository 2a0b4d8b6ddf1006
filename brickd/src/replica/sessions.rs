//! Sessions as the primary minds them: who was heard when, what expires, which orphans are freed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use mortar_common::SessionId;
use mortar_proto::data::{FreeStep, SessionEndStep, change::Step};
use tracing::{debug, info};

use super::core::{Role, WaitFor};
use super::keys::keys_of;
use super::memory::Reclaim;
use super::order::{NotDone, Origin};
use super::{Replica, now_ms};

/// A session that is silent for this long is expired and fenced. With the rounds in which that is
/// seen, the locks of a client that was killed are gone within 10 s.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(8);
/// This process stood still when the sessions were not looked over for so long.
const STOOD_STILL: Duration = Duration::from_secs(2);
/// A new primary frees no orphan for this long: sessions may not have reclaimed their opens yet.
const RECLAIM_TIME: Duration = Duration::from_secs(5);
/// How long housekeeping waits for the set to be ready.
const PATIENCE: Duration = Duration::from_millis(200);

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
        // Who is not answered, by a primary without a lease or one that stood still, cannot make
        // itself heard.
        let looked_ms = self.looked_over_ms.swap(now, Ordering::Relaxed);
        let stood_still = now.saturating_sub(looked_ms) > STOOD_STILL.as_millis() as u64;
        if stood_still || self.lock_core().may_read(now).is_err() {
            self.lock_memory().forgive_silence(now);
        }
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
