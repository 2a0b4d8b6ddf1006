//! How a session begins: at the mount, and after a fence in place of the one before, with what that
//! had open.

use std::sync::{Arc, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use mortar_common::FsError;
use mortar_proto::data::{Caller, Op, Request, Result as OpResult, SessionOpen, op};

use super::life::Life;
use super::route::Hunt;
use super::{End, Judged, Mounted, OPEN_AGAIN, Session, Tries, Waiting, address};

/// Whoever waits for another thread to begin a session looks this often.
const RENEWAL_TICK: Duration = Duration::from_millis(10);

impl Session {
    /// Opens a session and takes again what the last one held.
    ///
    /// What opens a session is sent once under its id. If it is lost, another id is tried: should it
    /// arrive after all, even when every brick that knew the session was started again, it must not
    /// bring back a session whose results and locks nobody remembers.
    pub(super) fn introduce(&self, waiting: &Waiting) -> Result<Arc<Life>, String> {
        let mut hunt = Hunt::default();
        loop {
            let life = Arc::new(Life::new(self.life().number().next()));
            let open = vec![session_open(&self.mounted)];
            if let Some(opened) = self.introduce_with(&life, open, &mut hunt, waiting)? {
                self.take_again(&life, &opened, waiting)?;
                return Ok(life);
            }
        }
    }

    fn take_again(
        &self,
        life: &Arc<Life>,
        opened: &[OpResult],
        waiting: &Waiting,
    ) -> Result<(), String> {
        if let Some(errno) = opened
            .last()
            .map(|result| result.errno)
            .filter(|errno| *errno != 0)
        {
            return Err(format!(
                "the session was refused: {}",
                FsError::from_errno(errno)
            ));
        }
        for mut ops in self.holdings.reopen_in_pieces() {
            while !ops.is_empty() {
                // An object that is gone meanwhile ends the request; the rest is sent again.
                let mut hunt = Hunt::default();
                let results = self.introduce_with(life, ops.clone(), &mut hunt, waiting)?;
                let results = results.unwrap_or_default();
                ops.drain(..results.len().clamp(1, ops.len()));
            }
        }
        Ok(())
    }

    /// `None`: what opens the session was sent and lost.
    fn introduce_with(
        &self,
        life: &Arc<Life>,
        ops: Vec<Op>,
        hunt: &mut Hunt,
        waiting: &Waiting,
    ) -> Result<Option<Vec<OpResult>>, String> {
        let slot = life
            .take_slot(|| self.may_go_on(waiting))
            .map_err(|e| e.to_string())?;
        let mut request = Request {
            caller: Some(Caller::default()),
            ops,
            ..Default::default()
        };
        address(&mut request, life, Some(&slot));
        let mut tries = Tries::default();
        match self.until_judged(life, &mut request, &[], (&mut tries, hunt), waiting) {
            Ok(Judged::Answer(answer)) => {
                slot.answered();
                Ok(Some(answer.results))
            }
            Ok(Judged::NotOpened) => Ok(None),
            Ok(Judged::Expired | Judged::Forgotten) => {
                Err("the new session was refused".to_owned())
            }
            Err(error) => Err(waiting.problem().unwrap_or_else(|| error.to_string())),
        }
    }

    /// After a fence: a new session takes the place of `old`, once, whoever notices first.
    pub(super) fn renew(
        &self,
        old: &Arc<Life>,
        end: End,
        waiting: &Waiting,
    ) -> Result<(), FsError> {
        // Not waited for in the lock: whoever is killed meanwhile must get out.
        let _one = loop {
            match self.renewal.try_lock() {
                Ok(one) => break one,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
            self.may_go_on(waiting)?;
            self.route.sleep(RENEWAL_TICK);
        };
        if self.life().id() != old.id() {
            return Ok(());
        }
        let lost = self.holdings.lose_locks(old.number());
        if let Some(told) = self.on_lost_locks.get() {
            (told.0)(&lost.files);
        }
        if end == End::Forgotten {
            self.caches.begin_anew();
        }
        let life = self.introduce(waiting).map_err(|problem| {
            tracing::debug!("no new session: {problem}");
            FsError::NotConnected
        })?;
        if end == End::Forgotten && self.caches.judge() {
            tracing::warn!(
                "every copy was started anew and the one that serves has another page cache: what \
                 was not synced may be lost; files and directories that are open answer EIO to \
                 their next fsync"
            );
        }
        self.say_renewal(old, &life, lost.locks);
        self.begin(life);
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        Ok(())
    }

    /// Lost locks are for a human to look at: what they protected may have changed.
    fn say_renewal(&self, old: &Life, new: &Life, lost_locks: usize) {
        let (old, new) = (old.id(), new.id());
        if lost_locks == 0 {
            tracing::info!(
                "session {old:016x} is over, {new:016x} begins: this client was silent for too \
                 long, or every brick that knew it was started again"
            );
        } else {
            tracing::warn!(
                "session {old:016x} is over, {new:016x} begins: this client was silent for too \
                 long, or every brick that knew it was started again; {lost_locks} locks are lost, \
                 files they were held on answer EIO until they are closed"
            );
        }
    }
}

fn session_open(mounted: &Mounted) -> Op {
    let open = SessionOpen {
        host: mounted.host.clone(),
        pid: std::process::id(),
        mount_point: mounted.mount_point.clone(),
    };
    Op {
        op: Some(op::Op::SessionOpen(open)),
    }
}

/// Opens the session as soon as a brick serves.
pub(super) fn open_later(weak: &Weak<Session>) {
    loop {
        let Some(session) = weak.upgrade().filter(|session| !session.is_closing()) else {
            return;
        };
        let waiting = Waiting::until(Instant::now() + OPEN_AGAIN);
        match session.introduce(&waiting) {
            Ok(life) => {
                session.begin(life);
                match session.has_opened() {
                    Ok(()) => tracing::info!("a brick serves: whoever waited for it goes on"),
                    Err(problem) => tracing::error!("{problem}"),
                }
                return;
            }
            Err(problem) => tracing::debug!("no brick may serve yet: {problem}"),
        }
    }
}
