//! A backup's (and a syncing copy's) side: read the primary's ordered stream, apply, answer.
//!
//! The thread that reads the stream applies what is small; slow changes, and whatever must wait
//! for one of them because it shares a key, are answered as held and go to the lanes.

use std::collections::BTreeSet;
use std::io::{BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mortar_common::{BrickId, Incarnation, Signal};
use mortar_proto::WIRE_VERSION;
use mortar_proto::data::{Ack, AckKind, Hello, Ordered, Role as HelloRole, change::Step};
use mortar_proto::frame::{self, FrameError, Kind};
use tracing::{debug, info};

use super::keys::{KeyQueue, keys_of_step};
use super::order::is_memory_only;
use super::streams::Numbered;
use super::{Replica, now_ms};
use crate::brick::BrickError;

/// A write of more bytes than this is applied by a lane.
const INLINE_BYTES_MAX: usize = 128 << 10;
/// Small frames are taken out of the socket several at a time.
const READ_BUFFER_BYTES: usize = 16 << 10;
/// Answers that wait are sent when they are this many bytes.
const OUTBOX_BYTES_MAX: usize = 8 << 10;
/// An answer that the primary does not take for this long means that the stream is broken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What a copy keeps for the stream that it follows.
#[derive(Default)]
pub struct Follower {
    state: Mutex<State>,
    /// Signalled when a change was applied.
    applied: Signal,
}

#[derive(Default)]
struct State {
    queue: KeyQueue<u64>,
    waiting: Vec<Arc<Numbered>>,
    /// Received and not applied.
    unapplied: BTreeSet<u64>,
    received_max: u64,
    /// The stream's socket for answers; of the newest stream only.
    answers: Option<TcpStream>,
    /// Answers that nobody waits for, encoded: they go with the next one.
    outbox: Vec<u8>,
    streams_opened: u64,
}

impl Follower {
    /// Breaks the stream.
    pub(super) fn shut(&self) {
        if let Some(socket) = &self.lock().answers {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Sleeps until everything received is applied, or for `time`; says whether it is.
    pub(super) fn drained(&self, time: Duration) -> bool {
        let state = self.lock();
        let state = self
            .applied
            .wait_timeout_while(state, time, |state| !state.unapplied.is_empty());
        state.unapplied.is_empty()
    }

    /// The highest number received.
    pub(super) fn received_max(&self) -> u64 {
        self.lock().received_max
    }

    /// A change came from another backup, not over the stream: whether it is new here.
    pub(super) fn note_fetched(&self, number: u64) -> bool {
        let mut state = self.lock();
        let new = number > state.received_max;
        state.received_max = state.received_max.max(number);
        new
    }

    /// Every change received up to this number is applied here.
    pub(super) fn applied_up_to(&self) -> u64 {
        let state = self.lock();
        state
            .unapplied
            .first()
            .map_or(state.received_max, |first| first - 1)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replica {
    /// Serves a primary's stream in the calling thread until it ends.
    pub fn follow(
        self: &Arc<Self>,
        mut connection: TcpStream,
        hello: &Hello,
    ) -> Result<(), FrameError> {
        let from = BrickId(hello.from_brick);
        let incarnation = Incarnation(hello.from_incarnation);
        let epoch = hello.epoch.unwrap_or_default();
        let accepted =
            self.lock_core()
                .accepts_stream(from, incarnation, epoch, hello.joined, now_ms());
        let mut answer = Hello {
            wire_version: WIRE_VERSION,
            role: HelloRole::Stream.into(),
            from_brick: self.setting().me.0,
            from_incarnation: self.setting().incarnation.0,
            last_number: self.follower.lock().received_max,
            synced: self.store.stored_state().synced,
            page_caches: vec![self.own_page_cache()],
            ..Default::default()
        };
        let commands = match accepted {
            Ok(commands) => commands,
            Err(refusal) => {
                debug!(%from, refusal, "a stream is refused");
                answer.refusal = refusal;
                return frame::send(&mut connection, Kind::Hello, &answer, &[]);
            }
        };
        self.run(commands);
        let stream = self.take_stream(&connection)?;
        connection.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        frame::send(&mut connection, Kind::Hello, &answer, &[])?;
        info!(
            primary = self.ports.name_of(from),
            joined = hello.joined,
            "follows a stream"
        );
        let ended = self.read_stream(&mut connection, from, stream);
        let mut state = self.follower.lock();
        if state.streams_opened == stream {
            state.answers = None;
        }
        ended
    }

    /// Makes this the stream that is followed: an older one is broken.
    fn take_stream(&self, connection: &TcpStream) -> Result<u64, FrameError> {
        let answers = connection.try_clone()?;
        let mut state = self.follower.lock();
        if let Some(old) = state.answers.replace(answers) {
            let _ = old.shutdown(Shutdown::Both);
        }
        state.outbox.clear();
        state.streams_opened += 1;
        Ok(state.streams_opened)
    }

    fn read_stream(
        self: &Arc<Self>,
        connection: &mut TcpStream,
        from: BrickId,
        stream: u64,
    ) -> Result<(), FrameError> {
        let mut connection = BufReader::with_capacity(READ_BUFFER_BYTES, connection);
        loop {
            if connection.buffer().is_empty() {
                self.send_outbox();
            }
            let frame = frame::receive(&mut connection)?;
            let ordered: Ordered = frame.decode()?;
            if self.follower.lock().streams_opened != stream {
                return Err(FrameError::Closed);
            }
            self.absent.heard(&ordered.synced);
            if ordered.table_begins {
                self.lock_memory().clear();
            }
            if !ordered.table.is_empty() || !ordered.sessions.is_empty() {
                let mut memory = self.lock_memory();
                memory.import(&ordered.table, &ordered.sessions);
            }
            if ordered.table_ends {
                // Only a copy that holds them may be chosen as primary.
                let kind = AckKind::AckTable.into();
                self.answer(Ack {
                    kind,
                    ..Default::default()
                });
            }
            let Some(change) = ordered.change else {
                continue;
            };
            let epoch = change.epoch.unwrap_or_default();
            let accepted =
                self.lock_core()
                    .received(from, change.number, epoch, ordered.complete, now_ms());
            match accepted {
                Ok(commands) => self.run(commands),
                Err(refusal) => {
                    info!(number = change.number, refusal, "a stream is left");
                    return Err(FrameError::Closed);
                }
            }
            if let Err(failure) = self.absent.received(from, epoch) {
                self.disk_failed(&failure.to_string());
            }
            // The primary speaks for itself; of other backups it may mean those that are left.
            self.absent.applied_by_up_to(from, ordered.complete);
            self.absent.fsync_ordered(&change);
            let numbered = Arc::new(Numbered {
                change,
                payload: frame.payload,
            });
            self.tail.keep(&numbered, ordered.complete);
            self.take(numbered);
        }
    }

    /// One change has come: apply it, or see that it will be.
    fn take(self: &Arc<Self>, numbered: Arc<Numbered>) {
        let number = numbered.change.number;
        let slow = is_slow(&numbered);
        let runs_now = {
            let mut state = self.follower.lock();
            if number <= state.received_max {
                let kind = if state.unapplied.contains(&number) {
                    AckKind::AckHeld
                } else {
                    AckKind::AckApplied
                };
                drop(state);
                return self.answer(Ack {
                    number,
                    kind: kind.into(),
                    ..Default::default()
                });
            }
            state.received_max = number;
            state.unapplied.insert(number);
            let runs_now = state.queue.admit(number, keys_of_step(&numbered.change));
            if !runs_now {
                state.waiting.push(Arc::clone(&numbered));
            }
            runs_now
        };
        let here = runs_now && !slow;
        if !here || is_told_first(&numbered) {
            self.answer(Ack {
                number,
                kind: AckKind::AckHeld.into(),
                ..Default::default()
            });
        }
        if here {
            self.apply_and_answer(&numbered);
        } else if runs_now {
            self.to_lane(numbered);
        }
    }

    fn to_lane(self: &Arc<Self>, numbered: Arc<Numbered>) {
        let replica = Arc::clone(self);
        self.lanes
            .run(Box::new(move || replica.apply_and_answer(&numbered)));
    }

    fn apply_and_answer(self: &Arc<Self>, numbered: &Arc<Numbered>) {
        let number = numbered.change.number;
        let ack = match self.apply_received(numbered) {
            Ok(synced) => {
                self.event(|core, now| core.applied(number, now));
                let kind = AckKind::AckApplied.into();
                Ack {
                    number,
                    kind,
                    synced,
                    ..Default::default()
                }
            }
            Err(failure) => {
                let refused = matches!(failure, BrickError::Refused { .. });
                let kind = AckKind::AckFailed.into();
                if !refused {
                    self.disk_failed(&failure.to_string());
                }
                Ack {
                    number,
                    kind,
                    reason: failure.to_string(),
                    refused,
                    ..Default::default()
                }
            }
        };
        let next: Vec<Arc<Numbered>> = {
            let mut state = self.follower.lock();
            state.unapplied.remove(&number);
            let ready = state.queue.done(&number);
            let (run, wait) = std::mem::take(&mut state.waiting)
                .into_iter()
                .partition(|waiting| ready.contains(&waiting.change.number));
            state.waiting = wait;
            run
        };
        self.follower.applied.notify_all();
        let waited_for = numbered.change.step.as_ref().is_none_or(is_waited_for);
        if waited_for || ack.kind() != AckKind::AckApplied {
            self.answer(ack);
        } else {
            // Told of when the stream pauses, or with the next answer.
            self.answer_later(&ack);
        }
        for numbered in next {
            self.to_lane(numbered);
        }
    }

    /// Applies; for a sync step, waits for all earlier changes and syncs. Returns what is synced.
    fn apply_received(self: &Arc<Self>, numbered: &Numbered) -> Result<u64, BrickError> {
        let number = numbered.change.number;
        if !matches!(numbered.change.step, Some(Step::Sync(_))) {
            self.apply_here(numbered)?;
            return Ok(0);
        }
        let state = self.follower.lock();
        drop(self.follower.applied.wait_while(state, |state| {
            state.unapplied.first().is_some_and(|first| *first < number)
        }));
        self.store.sync_all()?;
        Ok(number)
    }

    /// Sends an answer on the present stream; without one the primary will ask again.
    pub(super) fn answer(&self, ack: Ack) {
        let mut state = self.follower.lock();
        state.push(&ack);
        state.flush();
    }

    fn answer_later(&self, ack: &Ack) {
        let mut state = self.follower.lock();
        state.push(ack);
        if state.outbox.len() >= OUTBOX_BYTES_MAX {
            state.flush();
        }
    }

    fn send_outbox(&self) {
        self.follower.lock().flush();
    }
}

impl State {
    fn push(&mut self, ack: &Ack) {
        if self.answers.is_some()
            && let Err(error) = frame::send(&mut self.outbox, Kind::Ack, ack, &[])
        {
            debug!(%error, "an answer could not be encoded");
            self.break_stream();
        }
    }

    fn flush(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        if let Some(socket) = &mut self.answers
            && let Err(error) = socket.write_all(&self.outbox)
        {
            debug!(%error, "an answer could not be sent");
            self.break_stream();
        }
        self.outbox.clear();
    }

    fn break_stream(&mut self) {
        if let Some(socket) = self.answers.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.outbox.clear();
    }
}

/// Opens and releases are ordered and not waited for: the primary answers its client at once.
fn is_waited_for(step: &Step) -> bool {
    !matches!(step, Step::Open(_) | Step::Release(_))
}

/// Changes of names take a disk long enough that the primary should begin with its own meanwhile;
/// anything smaller is applied before an answer more would be sent.
fn is_told_first(numbered: &Numbered) -> bool {
    matches!(
        numbered.change.step,
        Some(Step::Create(_) | Step::Link(_) | Step::Unlink(_) | Step::Rmdir(_) | Step::Rename(_))
    )
}

fn is_slow(numbered: &Numbered) -> bool {
    numbered.payload.len() > INLINE_BYTES_MAX
        || match &numbered.change.step {
            Some(Step::Write(write)) => write.sync,
            Some(Step::Fsync(_) | Step::Sync(_) | Step::CopyRange(_) | Step::Fallocate(_)) => true,
            Some(step) => !is_memory_only(step) && matches!(step, Step::Free(_)),
            None => false,
        }
}
