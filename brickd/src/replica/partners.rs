//! The primary's side of its partners: opening streams, reading their answers, handing over the
//! table, writing down what one that went out may lack.

use std::io::BufReader;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use mortar_common::{BrickId, Incarnation};
use mortar_proto::WIRE_VERSION;
use mortar_proto::data::{Ack, AckKind, EpochRef, Hello, Role as HelloRole};
use mortar_proto::frame::{self, FrameError};
use tracing::{debug, error, warn};

use super::absent::is_heal;
use super::core::Answer;
use super::streams::{Numbered, Unanswered, lock_unanswered};
use super::{Replica, now_ms};

/// Answers are taken out of the socket several at a time.
const READ_BUFFER_BYTES: usize = 8 << 10;
/// A stream that could not be opened is tried again after this.
const RETRY: Duration = Duration::from_millis(100);
/// A copy that takes no bytes for this long has its stream broken: the core decides what then.
const WRITE_TIMEOUT: Duration = Duration::from_secs(6);

impl Replica {
    pub(super) fn open_stream(
        self: &Arc<Self>,
        to: BrickId,
        incarnation: Incarnation,
        joined: bool,
    ) {
        let running = self.streams.wants(to, incarnation);
        self.streams.begin(to, incarnation, joined);
        if !running {
            self.in_background(&format!("stream-{to}"), move |replica| {
                replica.keep_stream(to, incarnation);
            });
        }
    }

    pub(super) fn close_stream(&self, to: BrickId) {
        self.healing.stop(to);
        self.streams.close(to);
    }

    /// Connects, reads answers, connects again, for as long as the stream is wanted.
    fn keep_stream(self: &Arc<Self>, to: BrickId, incarnation: Incarnation) {
        let mut said = false;
        while !self.is_stopped() && self.streams.wants(to, incarnation) {
            match self.run_stream(to, incarnation) {
                Ok(()) | Err(FrameError::Closed) => said = false,
                Err(error) if !said => {
                    said = true;
                    debug!(copy = self.ports.name_of(to), %error, "no stream");
                }
                Err(_) => {}
            }
            if self.stop.sleep(RETRY) {
                return;
            }
        }
    }

    fn run_stream(
        self: &Arc<Self>,
        to: BrickId,
        incarnation: Incarnation,
    ) -> Result<(), FrameError> {
        let joined = self
            .streams
            .lock()
            .get(&to)
            .is_some_and(|stream| stream.joined);
        let hello = Hello {
            wire_version: WIRE_VERSION,
            role: HelloRole::Stream.into(),
            volume: self.volume_bytes(),
            to_brick: to.0,
            from_brick: self.setting().me.0,
            from_incarnation: self.setting().incarnation.0,
            epoch: Some(self.lock_core().epoch_ref()),
            joined,
            ..Default::default()
        };
        let (connection, answer) = self.ports.connect(to, hello)?;
        if !joined
            && answer.refusal.is_empty()
            && let Err(failure) = self.absent.returned(to, answer.synced)
        {
            self.disk_failed(&failure.to_string());
        }
        if !answer.refusal.is_empty() {
            debug!(
                copy = self.ports.name_of(to),
                answer.refusal, "a stream was refused"
            );
            return Ok(());
        }
        if answer.from_incarnation != incarnation.0 {
            // Another life of the copy answers: the one that is meant is gone.
            let state = super::core::PartnerState {
                brick: to.0,
                incarnation: answer.from_incarnation,
                ..Default::default()
            };
            debug!(
                copy = self.ports.name_of(to),
                ?state,
                "the copy was restarted"
            );
            self.gone(
                to,
                Some(incarnation),
                super::core::Gone::Goodbye { process: false },
            );
            self.streams.close(to);
            return Ok(());
        }
        connection.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let answers = connection.try_clone()?;
        let Some((unanswered, commands)) = self.attach(to, incarnation, connection, &answer) else {
            return Ok(());
        };
        self.run(commands);
        let ended = self.read_answers(to, answers, &unanswered);
        self.streams.detach(to, incarnation);
        if self.streams.wants(to, incarnation) {
            self.mark_unanswered_of_syncing(to);
            self.event(|core, now| core.stream_down(to, now));
        }
        ended
    }

    fn attach(
        &self,
        to: BrickId,
        incarnation: Incarnation,
        connection: TcpStream,
        answer: &Hello,
    ) -> Option<(Unanswered, Vec<super::core::Command>)> {
        let mut streams = self.streams.lock();
        let stream = streams
            .get_mut(&to)
            .filter(|stream| stream.incarnation == incarnation)?;
        let tail = if stream.joined {
            self.tail.above(answer.last_number)
        } else {
            Vec::new()
        };
        self.streams.attach(to, stream, connection, tail);
        let unanswered = Arc::clone(&stream.unanswered);
        let commands = self
            .lock_core()
            .stream_up(to, incarnation, answer.last_number, now_ms());
        Some((unanswered, commands))
    }

    fn read_answers(
        self: &Arc<Self>,
        from: BrickId,
        connection: TcpStream,
        unanswered: &Unanswered,
    ) -> Result<(), FrameError> {
        let mut connection = BufReader::with_capacity(READ_BUFFER_BYTES, connection);
        loop {
            let frame = frame::receive(&mut connection)?;
            let ack: Ack = frame.decode()?;
            if ack.synced > 0 {
                self.absent.confirmed(from, ack.synced);
                self.healing.synced(from, ack.synced);
            }
            let answer = match ack.kind() {
                AckKind::AckConfirm => {
                    self.absent.recorded(from, ack.synced);
                    continue;
                }
                AckKind::AckTable => {
                    self.event(|core, now| core.table_held(from, now));
                    continue;
                }
                AckKind::AckHeld => Answer::Held,
                AckKind::AckApplied => {
                    self.absent.applied_by(from, ack.number);
                    Answer::Applied
                }
                AckKind::AckFailed => self.failed(from, &ack, unanswered),
            };
            if answer != Answer::Held {
                lock_unanswered(unanswered).remove(&ack.number);
                self.healing.answered();
            }
            let number = ack.number;
            self.event(|core, now| core.answered(from, number, answer, now));
        }
    }

    /// A copy could not apply a change. One that is being healed may lack what the change needs:
    /// all it touches is marked again. One in sync is out.
    fn failed(&self, from: BrickId, ack: &Ack, unanswered: &Unanswered) -> Answer {
        let numbered = lock_unanswered(unanswered).get(&ack.number).cloned();
        let joined = self.is_in_sync(from);
        if ack.refused
            && !joined
            && let Some(numbered) = numbered
        {
            debug!(copy = self.ports.name_of(from), ack.reason, "marked again");
            if is_heal(&numbered.change) {
                self.healing.fail(from); // It begins anew: its marks are still there.
            } else {
                self.absent.mark_again(from, &numbered.change);
            }
            return Answer::Applied;
        }
        warn!(
            copy = self.ports.name_of(from),
            ack.number, ack.reason, "a copy failed at a change"
        );
        Answer::Failed
    }

    /// The stream to a syncing copy broke: what it did not answer, it may lack.
    fn mark_unanswered_of_syncing(&self, to: BrickId) {
        let mut streams = self.streams.lock();
        let Some(stream) = streams.get_mut(&to) else {
            return;
        };
        if stream.joined || self.is_in_sync(to) {
            return;
        }
        let lost = std::mem::take(&mut *lock_unanswered(&stream.unanswered));
        stream.has_table = false;
        for numbered in lost.values() {
            self.absent.mark_again(to, &numbered.change);
        }
    }

    pub(super) fn is_in_sync(&self, brick: BrickId) -> bool {
        self.lock_core()
            .in_sync()
            .iter()
            .any(|(listed, _)| *listed == brick)
    }

    /// A copy went out: write down what it may lack.
    pub(super) fn mark(self: &Arc<Self>, brick: BrickId, epoch: EpochRef, numbers: &[u64]) {
        let mut unanswered: Vec<Arc<Numbered>> = self.tail.get(numbers);
        // It may have applied what it answered and this copy has not applied: should this process
        // end before, the other has more.
        unanswered.extend(self.tail.above(0));
        if let Some(stream) = self.streams.lock().get(&brick) {
            unanswered.extend(lock_unanswered(&stream.unanswered).values().cloned());
        }
        let changes = unanswered.iter().map(|numbered| &numbered.change);
        if let Err(failure) = self.absent.went_out(brick, epoch, changes) {
            error!(%failure, "what a copy lacks could not be written down");
            self.disk_failed(&failure.to_string());
        }
    }

    /// Marks exist for every copy of the set that the epoch does not list: looked up before this
    /// copy serves as primary.
    pub(super) fn ensure_marks(self: &Arc<Self>) -> Result<(), crate::brick::BrickError> {
        let (_, epoch) = self.role();
        for brick in self.ports.bricks() {
            let listed = epoch.in_sync.iter().any(|copy| copy.brick == brick.0);
            if !listed {
                self.absent.ensure(brick, self.ports.last_in_sync(brick))?;
            }
        }
        Ok(())
    }

    /// Hands over sessions, locks and results to a copy that lacks nothing. One that something was
    /// marked for since it was quiet (it refused a change) is healed once more first.
    pub(super) fn send_table(self: &Arc<Self>, to: BrickId) {
        if !self.absent.lacks_nothing(to) {
            return self.event(|core, now| core.heal_failed(to, now));
        }
        let mut streams = self.streams.lock();
        let (table, sessions) = self.lock_memory().export();
        if let Some(stream) = streams.get_mut(&to) {
            stream.send_table(to, table, sessions);
            stream.joined = true;
        }
    }

    /// Makes everything applied so far durable and says so: to the primary, or to one's own list.
    pub(super) fn sync_and_confirm(self: &Arc<Self>) {
        let is_primary = matches!(self.role().0, super::core::Role::Primary);
        let up_to = if is_primary {
            self.lock_core().complete()
        } else {
            self.follower.applied_up_to()
        };
        if let Err(failure) = self.store.sync_all() {
            self.disk_failed(&failure.to_string());
            return;
        }
        if let Err(failure) = self.store_synced(up_to) {
            self.disk_failed(&failure.to_string());
            return;
        }
        self.absent.confirmed(self.setting().me, up_to);
        if !is_primary {
            let kind = AckKind::AckConfirm.into();
            self.answer(Ack {
                kind,
                synced: up_to,
                ..Default::default()
            });
        }
    }
}
