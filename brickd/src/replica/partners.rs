//! The primary's side of its partners: opening streams, reading their answers, handing over the
//! table, writing down what one that went out may lack.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use mortar_common::{BrickId, Incarnation};
use mortar_proto::WIRE_VERSION;
use mortar_proto::data::{Ack, AckKind, EpochRef, Hello, Role as HelloRole};
use mortar_proto::frame::{self, FrameError};
use tracing::{debug, error, warn};

use super::absent::is_heal;
use super::answers::{Answers, Reader, Turn, has_come};
use super::core::{Answer, Role, Votes};
use super::pending::{Stage, Wait, Waiter};
use super::streams::{Numbered, Outgoing, StreamSerial, Unanswered, lock_unanswered};
use super::{Replica, now_ms, table};

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
        if let Some(serial) = self.streams.begin(to, incarnation, joined) {
            self.in_background(&format!("stream-{to}"), move |replica| {
                replica.keep_stream(to, incarnation, serial);
            });
        }
    }

    pub(super) fn close_stream(&self, to: BrickId) {
        self.healing.stop(to);
        self.streams.close(to);
    }

    /// Connects, reads answers, connects again, for as long as the stream is wanted.
    fn keep_stream(self: &Arc<Self>, to: BrickId, incarnation: Incarnation, serial: StreamSerial) {
        let mut said = false;
        while !self.is_stopped() && self.streams.wants(to, serial) {
            match self.run_stream(to, incarnation, serial) {
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
        serial: StreamSerial,
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
                incarnation,
                super::core::Gone::Goodbye { process: false },
            );
            self.streams.close_one(to, serial);
            return Ok(());
        }
        connection.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let reading_end = connection.try_clone()?;
        let ends = (connection, reading_end);
        let Some((answers, commands)) = self.attach(to, serial, ends, &answer) else {
            return Ok(());
        };
        self.run(commands);
        let ended = self.read_answers(&answers);
        let commands = self.detach(to, serial);
        self.run(commands);
        ended
    }

    /// The connection of this very stream broke. All that follows from it is under one order lock:
    /// the next stream to the copy must not be taken for the one that is down.
    fn detach(&self, to: BrickId, serial: StreamSerial) -> Vec<super::core::Command> {
        self.streams.shut_one(to, serial);
        let mut streams = self.streams.lock();
        let ours = streams
            .get_mut(&to)
            .filter(|stream| stream.serial == serial);
        let Some(stream) = ours else {
            return Vec::new();
        };
        stream.detach();
        self.mark_unanswered_of_syncing(to, stream);
        self.lock_core().stream_down(to, now_ms())
    }

    fn attach(
        &self,
        to: BrickId,
        serial: StreamSerial,
        (connection, reading_end): (TcpStream, TcpStream),
        answer: &Hello,
    ) -> Option<(Arc<Answers>, Vec<super::core::Command>)> {
        let mut streams = self.streams.lock();
        let stream = streams
            .get_mut(&to)
            .filter(|stream| stream.serial == serial)?;
        let incarnation = stream.incarnation;
        let tail = if stream.joined {
            self.tail.above(answer.last_number)
        } else {
            Vec::new()
        };
        self.streams.attach(to, stream, connection, tail);
        let unanswered = Arc::clone(&stream.unanswered);
        let answers = Arc::new(Answers::new(to, reading_end, unanswered));
        stream.answers = Some(Arc::clone(&answers));
        stream.page_cache = answer.page_caches.first().cloned();
        let commands = self
            .lock_core()
            .stream_up(to, incarnation, answer.last_number, now_ms());
        Some((answers, commands))
    }

    /// Reads answers for as long as the connection lives and no request reads them itself.
    fn read_answers(self: &Arc<Self>, answers: &Answers) -> Result<(), FrameError> {
        let mut comers = 0;
        loop {
            let (mut reader, came) = answers.take(comers)?;
            comers = came;
            match self.take_answer(answers, &mut reader) {
                Ok(()) => answers.give_back(reader),
                Err(error) => answers.broke(error),
            }
        }
    }

    /// Waits until a change has come as far as `stage`, reading its backup's answers if nobody
    /// else does.
    pub(super) fn wait_for(self: &Arc<Self>, waiter: &Arc<Waiter>, stage: Stage) -> Stage {
        let Some(answers) = waiter.answers() else {
            return waiter.wait(stage);
        };
        loop {
            if let Some(reached) = waiter.reached(stage) {
                return reached;
            }
            match answers.come(waiter, stage) {
                Turn::Read(reader) => self.read_until(answers, reader, waiter, stage),
                Turn::Sleep => match waiter.wait_or_read(stage) {
                    Wait::Reached { stage, to_read } => {
                        if to_read {
                            answers.pass_on();
                        }
                        return stage;
                    }
                    Wait::Read => {}
                },
                Turn::Broken => return waiter.wait(stage),
            }
        }
    }

    fn read_until(
        self: &Arc<Self>,
        answers: &Answers,
        mut reader: Reader,
        waiter: &Waiter,
        stage: Stage,
    ) {
        while waiter.reached(stage).is_none() {
            let read = has_come(&reader).and_then(|come| {
                if come {
                    self.take_answer(answers, &mut reader)
                } else {
                    Ok(())
                }
            });
            if let Err(error) = read {
                return answers.broke(error);
            }
        }
        answers.give_back(reader);
    }

    /// Takes one answer out of the socket and tells the core.
    fn take_answer(
        self: &Arc<Self>,
        answers: &Answers,
        reader: &mut Reader,
    ) -> Result<(), FrameError> {
        let (from, unanswered) = (answers.from, &answers.unanswered);
        let ack: Ack = frame::receive(reader)?.decode()?;
        if ack.synced > 0 {
            self.absent.confirmed(from, ack.synced);
            self.healing.synced(from, ack.synced);
        }
        let answer = match ack.kind() {
            AckKind::AckConfirm => {
                self.absent.recorded(from, ack.synced);
                return Ok(());
            }
            AckKind::AckTable => {
                self.event(|core, now| core.table_held(from, now));
                return Ok(());
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
        Ok(())
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
    fn mark_unanswered_of_syncing(&self, to: BrickId, stream: &mut Outgoing) {
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
        let sent: Vec<Arc<Numbered>> = match self.streams.lock().get(&brick) {
            Some(stream) => lock_unanswered(&stream.unanswered)
                .values()
                .cloned()
                .collect(),
            None => Vec::new(),
        };
        let mut unanswered = self.tail.concerning_lost(numbers, sent);
        let changes = unanswered.iter().map(|numbered| &numbered.change);
        if let Err(failure) = self.absent.went_out(brick, epoch, changes) {
            error!(%failure, "what a copy lacks could not be written down");
            return self.disk_failed(&failure.to_string());
        }
        let (votes, role) = {
            let core = self.lock_core();
            (core.votes(), core.role().clone())
        };
        if votes != Votes::Two {
            return;
        }
        // A primary's unanswered changes may be here alone. Whatever a backup received, its
        // primary has.
        if role != Role::Primary {
            unanswered.clear();
        }
        let changes = unanswered.iter().map(|numbered| &numbered.change);
        if let Err(failure) = self.absent.goes_on_alone(brick, epoch, changes) {
            error!(%failure, "that this copy goes on alone could not be written down");
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

    /// The number of the newest change that this copy ordered or received. A copy that was killed
    /// goes on from a number above all that it can have used, which its stream comes to much later.
    pub(super) fn newest_number(&self) -> u64 {
        let (role, last) = {
            let core = self.lock_core();
            (core.role().clone(), core.last_number())
        };
        match role {
            super::core::Role::Backup | super::core::Role::Syncing => self.follower.received_max(),
            _ => last,
        }
    }

    /// Lets go of what is kept for copies that were replaced.
    pub(super) fn forget_replaced(&self) {
        self.absent.forget_all_but(|| self.ports.bricks());
    }

    /// Lets go of what was touched, when all copies are in sync.
    pub(super) fn settle_touched(self: &Arc<Self>) {
        let (role, epoch) = self.role();
        let me = self.setting().me;
        let mut others = self.ports.bricks();
        others.retain(|brick| *brick != me);
        let in_sync = |brick: &BrickId| epoch.in_sync.iter().any(|copy| copy.brick == brick.0);
        let serves = matches!(role, super::core::Role::Primary | super::core::Role::Backup);
        if serves
            && others.iter().all(in_sync)
            && let Err(failure) = self.absent.settle_touched(&others)
        {
            self.disk_failed(&failure.to_string());
        }
    }

    /// Hands over sessions, locks and results to a copy that lacks nothing. One that something was
    /// marked for since it was quiet (it refused a change) is healed once more first.
    pub(super) fn send_table(self: &Arc<Self>, to: BrickId) {
        if !self.absent.lacks_nothing(to) {
            return self.event(|core, now| core.heal_failed(to, now));
        }
        let mut streams = self.streams.lock();
        if !self.lock_core().awaits_table(to) {
            return; // Its stream broke meanwhile, and this would make the next one a joined one.
        }
        let (results, sessions) = self.lock_memory().export();
        if let Some(stream) = streams.get_mut(&to) {
            stream.send_table(to, &table::parts(results, sessions));
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
