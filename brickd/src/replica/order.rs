//! The primary's side of one change: number it, send it, apply it, and say when it may be answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use mortar_common::BrickId;
use mortar_proto::data::{Change, CopySynced, Time, change::Step};
use tracing::{debug, error};

use super::core::{Answer, Command, NotNow, Role, WaitFor};
use super::gate::Pass;
use super::pending::{Stage, Waiter};
use super::streams::{Leaves, Numbered, Outgoing};
use super::{Replica, now_ms};
use crate::brick::BrickError;

/// Whose request a change is: (session, slot, seq, index of the operation); all 0 = nobody's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin {
    /// Session id.
    pub session: u64,
    /// Slot of the session.
    pub slot: u32,
    /// Sequence number of the slot.
    pub seq: u64,
    /// Which operation of the request.
    pub index: u32,
}

/// Why a change did not come to an answer.
#[derive(Debug)]
pub enum NotDone {
    /// It was not ordered; nothing happened.
    NotNow(NotNow),
    /// It was ordered, and this copy may not say what became of it: the client asks the next
    /// primary, which knows.
    Abandoned,
    /// This copy's disk failed at it: the copy is out and the client asks the next primary.
    Failed,
}

/// A change on its way to the streams.
struct Sending<'a> {
    numbered: &'a Arc<Numbered>,
    /// Up to which number all is applied everywhere.
    complete: u64,
    /// What was confirmed as durable since the last change.
    synced: Vec<CopySynced>,
    wait: WaitFor,
}

impl Replica {
    /// Orders a change and sends it; waits while the core says so, at most `patience`.
    ///
    /// `step_at` is asked for the step when its time is fixed; `None` is a step of nothing, which
    /// is not ordered.
    pub(super) fn order(
        self: &Arc<Self>,
        step_at: &mut dyn FnMut(Time) -> Option<Step>,
        payload: Bytes,
        origin: Origin,
        wait: WaitFor,
        patience: Duration,
    ) -> Result<(Arc<Numbered>, Arc<Waiter>), NotDone> {
        let give_up_ms = now_ms() + patience.as_millis() as u64;
        loop {
            match self.try_order(step_at, &payload, origin, wait) {
                Ok(done) => return Ok(done),
                Err(NotNow::Wait) if now_ms() < give_up_ms && !self.is_stopped() => {
                    self.wait_for_move(Duration::from_millis(50));
                }
                Err(not_now) => return Err(NotDone::NotNow(not_now)),
            }
        }
    }

    fn try_order(
        self: &Arc<Self>,
        step_at: &mut dyn FnMut(Time) -> Option<Step>,
        payload: &Bytes,
        origin: Origin,
        wait: WaitFor,
    ) -> Result<(Arc<Numbered>, Arc<Waiter>), NotNow> {
        let mut streams = self.streams.lock();
        let (ordered, waiter) = {
            let mut core = self.lock_core();
            let ordered = core.order(wait, now_ms())?;
            let waiter = self.pending.insert(ordered.number);
            (ordered, waiter)
        };
        let time = self.next_time();
        let step = step_at(time);
        let numbered = Arc::new(Numbered {
            change: Change {
                number: ordered.number,
                epoch: Some(ordered.epoch),
                time: Some(time),
                session: origin.session,
                slot: origin.slot,
                seq: origin.seq,
                index: origin.index,
                step,
            },
            payload: payload.clone(),
        });
        let mut commands = ordered.commands;
        let synced = self.absent.news_of_syncs();
        self.absent.fsync_ordered(&numbered.change);
        if let ([to], WaitFor::Everyone) = (&ordered.to[..], wait)
            && let Some(answers) = streams.get(to).and_then(|stream| stream.answers.clone())
        {
            waiter.answered_by(answers);
        }
        let sending = Sending {
            numbered: &numbered,
            complete: ordered.complete,
            synced,
            wait,
        };
        commands.extend(self.send(&mut streams, &ordered.to, &sending));
        if wait == WaitFor::Nothing {
            self.streams.held_back();
            // Applied while the order lock is held, so that a table sent to a copy that joins
            // right after has it: nobody waits for these.
            self.lock_memory().apply(&numbered.change);
        }
        if matches!(wait, WaitFor::Heal(_)) {
            self.pending.advance(ordered.number, Stage::MayAnswer); // Nobody waits for it here.
        } else {
            self.tail.keep(&numbered, ordered.complete);
        }
        drop(streams);
        self.run(commands);
        Ok((numbered, waiter))
    }

    /// Writes a change to the streams of these copies. A copy that is being healed and lacks what
    /// the change needs is passed over: it is marked instead.
    fn send(
        &self,
        streams: &mut HashMap<BrickId, Outgoing>,
        copies: &[BrickId],
        sending: &Sending<'_>,
    ) -> Vec<Command> {
        let change = &sending.numbered.change;
        let memory_only = change.step.as_ref().is_some_and(is_memory_only);
        let leaves = match sending.wait {
            // A request may bring hundreds of these; whoever serves it flushes at its end.
            WaitFor::Nothing => Leaves::WithTheNext,
            WaitFor::Everyone | WaitFor::Heal(_) => Leaves::Now,
        };
        let mut commands = Vec::new();
        for to in copies {
            let Some(stream) = streams.get_mut(to) else {
                continue;
            };
            let is_passed_over = match (stream.joined, memory_only) {
                (true, _) => false,
                _ if sending.wait == WaitFor::Heal(*to) => false,
                (false, true) => !stream.has_table,
                (false, false) => self.absent.skips(*to, change),
            };
            if is_passed_over {
                let mut core = self.lock_core();
                commands.extend(core.answered(*to, change.number, Answer::Applied, now_ms()));
            } else {
                let synced = sending.synced.clone();
                stream.send(*to, sending.numbered, sending.complete, synced, leaves);
            }
        }
        commands
    }

    /// Waits until an ordered change may be applied, applies it, lets the next one at its keys,
    /// and waits until it may be answered.
    pub(super) fn finish(
        self: &Arc<Self>,
        numbered: &Arc<Numbered>,
        waiter: &Arc<Waiter>,
        pass: Option<Pass<'_>>,
    ) -> Result<(), NotDone> {
        if self.wait_for(waiter, Stage::MayApply) == Stage::Abandoned {
            return Err(NotDone::Abandoned);
        }
        if let Err(failure) = self.apply_here(numbered) {
            self.disk_failed(&failure.to_string());
            return Err(NotDone::Failed);
        }
        let number = numbered.change.number;
        self.event(|core, now| core.applied(number, now));
        drop(pass);
        match self.wait_for(waiter, Stage::MayAnswer) {
            Stage::Abandoned => Err(NotDone::Abandoned),
            Stage::Ordered | Stage::MayApply | Stage::MayAnswer => Ok(()),
        }
    }

    /// Applies a change on this copy, in memory and on disk, and notes it for copies that may
    /// lack it. Both primary and backups come through here.
    pub(super) fn apply_here(&self, numbered: &Numbered) -> Result<(), BrickError> {
        let change = &numbered.change;
        if let Some(time) = change.time {
            self.saw_time(time);
        }
        let memory_only = change.step.as_ref().is_some_and(is_memory_only);
        if !memory_only {
            self.absent.note(change)?;
            if let Err(failure) = self.store.apply(change, &numbered.payload) {
                self.say_not_applied(change.number, &failure);
                return Err(failure);
            }
            self.conflicts.applied(change);
            self.bytes_written
                .fetch_add(numbered.payload.len() as u64, Ordering::Relaxed);
        }
        self.lock_memory().apply(change);
        Ok(())
    }

    /// A copy that is being healed may lack what a change needs: it refuses, and the primary marks
    /// the change again. Nowhere else may an ordered change fail.
    fn say_not_applied(&self, number: u64, failure: &BrickError) {
        let is_refused = matches!(failure, BrickError::Refused { .. });
        if is_refused && *self.lock_core().role() == Role::Syncing {
            debug!(number, %failure, "not healed far enough for a change");
        } else {
            error!(number, %failure, "an ordered change could not be applied");
        }
    }

    /// Bytes of changes applied since the start.
    pub(super) fn written_bytes(&self) -> u64 {
        self.bytes_written.load(Ordering::Relaxed)
    }
}

/// Whether a step changes nothing on the disk.
pub(super) fn is_memory_only(step: &Step) -> bool {
    match step {
        Step::SessionOpen(_)
        | Step::SessionEnd(_)
        | Step::Open(_)
        | Step::Release(_)
        | Step::Lock(_)
        | Step::Settled(_) => true,
        Step::Create(_)
        | Step::Link(_)
        | Step::Unlink(_)
        | Step::Rmdir(_)
        | Step::Rename(_)
        | Step::Setattr(_)
        | Step::Write(_)
        | Step::Fallocate(_)
        | Step::CopyRange(_)
        | Step::Setxattr(_)
        | Step::Removexattr(_)
        | Step::Fsync(_)
        | Step::Free(_)
        | Step::HealObject(_)
        | Step::HealData(_)
        | Step::HealName(_)
        | Step::Sync(_) => false,
    }
}
