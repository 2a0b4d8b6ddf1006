//! Client connections: one request after the other, executed on the thread that read it.

mod again;

use std::collections::HashMap;
use std::io::BufReader;
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mortar_common::{FsError, Gfid, SessionId, Signal};
use mortar_proto::SLOTS_PER_SESSION;
use mortar_proto::control::ClientState;
use mortar_proto::data::change::Step;
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::{
    self, Caller, Hello, KeepAlive, Op, Reply, ReplyStatus, Request, Role as HelloRole,
};
use mortar_proto::frame::{self, FrameError, Kind};
use tracing::debug;

use super::core::{NotNow, WaitFor};
use super::foresight::Foresight;
use super::keys::{Keys, keys_of_op};
use super::memory::{Memory, Recall, Seen, Standing};
use super::order::{NotDone, Origin};
use super::plan::{self, Answer, Context, Plan, PlanError, Planned, Work};
use super::{Replica, now_ms};
use again::{is_to_be_durable, old_number};

/// A request is held here this long while the set is between two states; then the client is told
/// to ask again, which it does at once, perhaps elsewhere.
const PATIENCE: Duration = Duration::from_millis(500);
/// A small request is taken out of the socket in one call.
const READ_BUFFER_BYTES: usize = 8 << 10;
/// A lock that is not free is looked at again this often.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// The request each slot of a session is busy with, so that one that comes again over another
/// connection while the first is still at work waits for its result.
#[derive(Default)]
pub struct Turns {
    busy: Mutex<HashMap<(u64, u32), u64>>,
    done: Signal,
}

struct Turn<'a> {
    turns: &'a Turns,
    slot: (u64, u32),
}

impl Turns {
    fn take(&self, session: u64, slot: u32, seq: u64) -> Turn<'_> {
        let slot = (session, slot);
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while busy.contains_key(&slot) {
            busy = self.done.wait(busy);
        }
        busy.insert(slot, seq);
        Turn { turns: self, slot }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns
            .busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.slot);
        self.turns.done.notify_all();
    }
}

/// A request that was not judged, and why.
struct Unanswered {
    status: ReplyStatus,
    reason: String,
    done: DoneOfIt,
}

/// What of a request that is not answered was done in this attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DoneOfIt {
    Nothing,
    PerhapsSome,
}

impl Unanswered {
    fn new(status: ReplyStatus, reason: impl Into<String>) -> Self {
        Unanswered {
            status,
            reason: reason.into(),
            done: DoneOfIt::PerhapsSome,
        }
    }

    /// The client may ask anybody again, whatever becomes of its session.
    fn before_anything(self) -> Self {
        Unanswered {
            done: DoneOfIt::Nothing,
            ..self
        }
    }
}

impl From<NotNow> for Unanswered {
    fn from(not_now: NotNow) -> Self {
        match not_now {
            NotNow::NotPrimary(_) => Unanswered::new(ReplyStatus::ReplyNotPrimary, ""),
            NotNow::Wait => Unanswered::new(ReplyStatus::ReplyNotReady, "between two states"),
            NotNow::Closed(words) => Unanswered::new(ReplyStatus::ReplyNotReady, words),
        }
    }
}

impl From<NotDone> for Unanswered {
    fn from(not_done: NotDone) -> Self {
        match not_done {
            NotDone::NotNow(not_now) => not_now.into(),
            NotDone::Abandoned => {
                Unanswered::new(ReplyStatus::ReplyNotPrimary, "no longer the primary")
            }
            NotDone::Failed => Unanswered::new(ReplyStatus::ReplyNotReady, "the brick failed"),
        }
    }
}

/// Who asks what.
struct Asked<'a> {
    request: &'a Request,
    session: SessionId,
    caller: Caller,
}

impl Replica {
    /// Serves a client's (or, reads only, a peer's) connection until it ends.
    pub fn serve(self: &Arc<Self>, connection: TcpStream, hello: &Hello) -> Result<(), FrameError> {
        let served = self.connections.serve(connection);
        let mut connection = served.socket();
        let from_peer = hello.role() == HelloRole::Peer;
        let mut output = Vec::new();
        let mut foresight = Foresight::default();
        let mut input = BufReader::with_capacity(READ_BUFFER_BYTES, connection);
        while !self.is_stopped() {
            let frame = frame::receive(&mut input)?;
            if frame.kind != Kind::Request {
                return Err(FrameError::Kind(frame.kind as u8));
            }
            let request: Request = frame.decode()?;
            output.clear();
            let results = if from_peer {
                Ok(self.answer_peer(&request, &mut output))
            } else {
                self.answer_client(&request, frame.payload, &mut output)
            };
            self.streams.flush();
            let mut reply = self.reply_to(&request);
            match results {
                Ok(results) => reply.results = results,
                Err(unanswered) => {
                    output.clear();
                    reply.set_status(unanswered.status);
                    reply.reason = unanswered.reason;
                    reply.untouched = unanswered.done == DoneOfIt::Nothing;
                }
            }
            frame::send(&mut connection, Kind::Reply, &reply, &[&output])?;
            if let Some((gfid, bytes)) = foresight.answered(&request.ops, &reply.results) {
                self.store.read_soon(gfid, bytes);
            }
        }
        Ok(())
    }

    fn reply_to(&self, request: &Request) -> Reply {
        let core = self.lock_core();
        Reply {
            slot: request.slot,
            seq: request.seq,
            epoch: Some(core.epoch_ref()),
            primary: core.primary().map_or(0, |primary| primary.0),
            ..Default::default()
        }
    }

    /// Reads for another copy's heal, answered whatever this copy's role.
    fn answer_peer(&self, request: &Request, output: &mut Vec<u8>) -> Vec<data::Result> {
        let nobody = Asked {
            request,
            session: SessionId(0),
            caller: Caller::default(),
        };
        request
            .ops
            .iter()
            .map(|op| match crate::heal::answer(&*self.store, op) {
                Some(result) => result,
                None if let Some(OpKind::AloneMarks(ask)) = &op.op => self.tell_changed_alone(ask),
                None => plan::read(op, &self.context(&nobody, None, &Keys::none()), output)
                    .unwrap_or_else(|error| plan::refused(error_of(&error))),
            })
            .collect()
    }

    fn answer_client(
        self: &Arc<Self>,
        request: &Request,
        input: Bytes,
        output: &mut Vec<u8>,
    ) -> Result<Vec<data::Result>, Unanswered> {
        let session = SessionId(request.session);
        if let [
            Op {
                op: Some(OpKind::Keepalive(alive)),
            },
        ] = &request.ops[..]
        {
            // Outside of slots: it says that a session lives, and who was heard.
            self.hear_of_primary(alive);
            self.check_standing(request, session)?;
            return Ok(vec![data::Result::default()]);
        }
        self.check_standing(request, session)
            .map_err(Unanswered::before_anything)?;
        if let Some(result) = self
            .split_request(request)
            .map_err(|it| brick_failed(&it))?
        {
            return Ok(vec![result]);
        }
        let changes = !request.ops.iter().all(plan::is_read);
        if changes && request.slot >= SLOTS_PER_SESSION {
            let reason = "a slot beyond those of a session";
            return Err(Unanswered::new(ReplyStatus::ReplyMalformed, reason));
        }
        let _turn = changes.then(|| self.turns.take(request.session, request.slot, request.seq));
        let stops_at = if changes {
            self.begin_slot(request, session)?
        } else {
            None
        };
        let caller = request.caller.unwrap_or_default();
        let asked = Asked {
            request,
            session,
            caller,
        };
        let (results, looked) = self.do_ops(&asked, stops_at, input, output)?;
        if looked {
            // The lease is looked at as the answer leaves: what was read is still the truth.
            self.lock_core().may_read(now_ms())?;
        }
        Ok(results)
    }

    /// Does the operations of a request one after the other, up to the first that is refused. Also
    /// whether any of it was read from this copy's state.
    fn do_ops(
        self: &Arc<Self>,
        asked: &Asked<'_>,
        stops_at: Option<(u32, i32)>,
        mut input: Bytes,
        output: &mut Vec<u8>,
    ) -> Result<(Vec<data::Result>, bool), Unanswered> {
        let (request, session) = (asked.request, asked.session);
        let changes = !request.ops.iter().all(plan::is_read);
        let mut results: Vec<data::Result> = Vec::with_capacity(request.ops.len());
        let mut previous: Option<Gfid> = None;
        let mut looked = false;
        for (index, op) in request.ops.iter().enumerate() {
            let result = if let Some(errno) = stops_at.filter(|stop| stop.0 == index as u32) {
                debug!(%session, slot = request.slot, seq = request.seq, "refused before");
                data::Result {
                    errno: errno.1,
                    ..Default::default()
                }
            } else if plan::is_read(op) {
                looked = true;
                self.read(op, previous, asked, output)?
            } else {
                let payload = take_payload(op, &mut input)?;
                let (result, from_state) =
                    self.change(op, index as u32, previous, payload, asked)?;
                looked |= from_state;
                result
            };
            let failed = result.errno != 0;
            if failed && changes && stops_at.is_none() {
                self.settle(request, index as u32, result.errno, None)?;
            }
            previous = plan::returned(&result).or(previous);
            results.push(result);
            if failed {
                break;
            }
        }
        Ok((results, looked))
    }

    /// Clients are witnesses: one that has just heard from the primary tells a backup so, which
    /// then knows that it is its own link that is broken.
    fn hear_of_primary(&self, alive: &KeepAlive) {
        let mut core = self.lock_core();
        let primary = core.primary().map_or(0, |primary| primary.0);
        if primary != 0 && primary == alive.primary && primary != self.setting().me.0 {
            core.client_heard(now_ms().saturating_sub(u64::from(alive.heard_ms_ago)));
        }
    }

    fn check_standing(
        self: &Arc<Self>,
        request: &Request,
        session: SessionId,
    ) -> Result<(), Unanswered> {
        self.wait_until_readable()?;
        let opens = matches!(
            request.ops.first().and_then(|op| op.op.as_ref()),
            Some(OpKind::SessionOpen(_))
        );
        let mut memory = self.lock_memory();
        match memory.standing(session) {
            Standing::Known => memory.heard(session, now_ms()),
            Standing::Unknown if opens => {}
            Standing::Unknown => {
                let status = ReplyStatus::ReplyUnknownSession;
                return Err(Unanswered::new(status, "no such session"));
            }
            Standing::Fenced => {
                let status = ReplyStatus::ReplyFenced;
                return Err(Unanswered::new(status, "the session has expired"));
            }
        }
        Ok(())
    }

    fn wait_until_readable(&self) -> Result<(), Unanswered> {
        self.lock_core().client_here(now_ms());
        let give_up_ms = now_ms() + PATIENCE.as_millis() as u64;
        loop {
            let now = now_ms();
            let judged = self.lock_core().may_read(now);
            match judged {
                Ok(()) => return Ok(()),
                Err(NotNow::Wait) if now < give_up_ms && !self.is_stopped() => {
                    self.wait_for_move(Duration::from_millis(20));
                }
                Err(not_now) => return Err(not_now.into()),
            }
        }
    }

    fn read(
        &self,
        op: &Op,
        previous: Option<Gfid>,
        asked: &Asked<'_>,
        output: &mut Vec<u8>,
    ) -> Result<data::Result, Unanswered> {
        let before = output.len();
        let conflict = self.is_in_conflict(op, previous, asked.request.split_work());
        if conflict.map_err(|failure| brick_failed(&failure))? {
            return Ok(plan::refused(FsError::Io));
        }
        match plan::read(op, &self.context(asked, previous, &Keys::none()), output) {
            Ok(result) => {
                let bytes = (output.len() - before) as u64;
                self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
                Ok(result)
            }
            Err(PlanError::Refused(error)) => Ok(plan::refused(error)),
            Err(PlanError::Brick(failure)) => Err(brick_failed(&failure)),
        }
    }

    /// One changing operation: its result, and whether it says something of the present state
    /// (which only a lease can vouch for) rather than of a change that every copy has.
    fn change(
        self: &Arc<Self>,
        op: &Op,
        index: u32,
        previous: Option<Gfid>,
        payload: Bytes,
        asked: &Asked<'_>,
    ) -> Result<(data::Result, bool), Unanswered> {
        let (slot, seq) = (asked.request.slot, asked.request.seq);
        let seen = self.lock_memory().find(asked.session, slot, seq, index);
        match seen {
            Seen::New => {}
            Seen::Done(recorded) => {
                debug!(session = %asked.session, slot, seq, "a request came again");
                if let Some(gfid) = recorded.gfid.filter(|_| is_to_be_durable(op)) {
                    self.sync_again(gfid, asked)?;
                }
                return match plan::reply_of_recorded(op, previous, &recorded, &*self.store) {
                    Ok(result) => Ok((result, true)),
                    Err(PlanError::Refused(error)) => Ok((plan::refused(error), true)),
                    Err(PlanError::Brick(failure)) => Err(brick_failed(&failure)),
                };
            }
            Seen::Older => return Err(old_number()),
        }
        let origin = Origin {
            session: asked.request.session,
            slot,
            seq,
            index,
        };
        self.carry_out_op(op, origin, previous, &payload, asked)
    }

    fn carry_out_op(
        self: &Arc<Self>,
        op: &Op,
        origin: Origin,
        previous: Option<Gfid>,
        payload: &Bytes,
        asked: &Asked<'_>,
    ) -> Result<(data::Result, bool), Unanswered> {
        let mut held = keys_of_op(op, asked.session, previous);
        let lock_until_ms = now_ms() + lock_wait_ms(op);
        let mut heard_of_space = false;
        loop {
            let pass = self.gate.enter(held.clone());
            let context = self.context(asked, previous, &held);
            match plan::plan(op, &context) {
                Ok(Plan::MoreKeys(keys)) => held = keys,
                Ok(Plan::Ready(planned)) => {
                    let refused = self.split_refuses(asked.request.split_work(), &planned);
                    if let Some(error) = refused.map_err(|failure| brick_failed(&failure))? {
                        return Ok((plan::refused(error), true));
                    }
                    return self.finish_op(*planned, origin, payload, pass, asked.request);
                }
                Err(PlanError::Refused(FsError::Again)) if now_ms() < lock_until_ms => {
                    drop(pass);
                    self.wait_for_lock(op, previous, asked)?;
                }
                Err(PlanError::Refused(FsError::NoSpace)) if !heard_of_space => {
                    drop(pass);
                    self.wait_for_news_of_space();
                    heard_of_space = true;
                }
                Err(PlanError::Refused(FsError::NotConnected)) => {
                    // The session ended while the request waited: that is no answer of the file's.
                    return Err(Unanswered::new(
                        ReplyStatus::ReplyFenced,
                        "the session has ended",
                    ));
                }
                Err(PlanError::Refused(error)) => return Ok((plan::refused(error), true)),
                Err(PlanError::Brick(failure)) => return Err(brick_failed(&failure)),
            }
        }
    }

    fn context<'a>(
        &'a self,
        asked: &'a Asked<'_>,
        previous: Option<Gfid>,
        held: &'a Keys,
    ) -> Context<'a> {
        Context {
            caller: &asked.caller,
            session: asked.session,
            previous,
            store: &*self.store,
            memory: &self.memory as &dyn Recall,
            limits: *super::lock(&self.limits),
            space: self.space_left(),
            held,
            split: asked.request.split_work(),
        }
    }

    /// Sleeps a little while a lock is not free; EDEADLK when that would never end.
    fn wait_for_lock(
        &self,
        op: &Op,
        previous: Option<Gfid>,
        asked: &Asked<'_>,
    ) -> Result<(), Unanswered> {
        if let Some(OpKind::Setlock(op)) = &op.op
            && let (Some(gfid), Some(lock)) = (op.gfid.or(previous), op.lock)
        {
            let lock = data::Lock {
                session: asked.session.0,
                ..lock
            };
            // The plan refuses with EDEADLK what would close a circle of those noted here.
            let _ = self.lock_memory().wait_begin(gfid, &lock);
            self.wait_for_move(LOCK_POLL);
            self.lock_memory().wait_end(&lock);
        }
        self.lock_core()
            .may_read(now_ms())
            .map_err(Unanswered::from)
    }

    fn finish_op(
        self: &Arc<Self>,
        mut planned: Planned,
        mut origin: Origin,
        payload: &Bytes,
        pass: super::gate::Pass<'_>,
        request: &Request,
    ) -> Result<(data::Result, bool), Unanswered> {
        let wait = match &planned.work {
            Work::Nothing => {
                drop(pass);
                let gfid = planned.touched.first().copied();
                self.settle(request, origin.index, 0, gfid)?;
                return Ok((self.tell(&planned)?, true));
            }
            Work::MemoryOnly(Step::Open(_) | Step::Release(_)) if !request.again => {
                WaitFor::Nothing
            }
            Work::MemoryOnly(_) | Work::Disk(_) => WaitFor::Everyone,
        };
        if matches!(planned.answer, Answer::Refused(_)) {
            origin = Origin::default(); // Nothing records it as done.
        }
        let bytes = payload.slice(..payload.len().min(planned.payload_bytes as usize));
        let mut step_at = |time| {
            planned.stamp(time);
            planned.step().cloned()
        };
        let (numbered, waiter) = self.order(&mut step_at, bytes, origin, wait, PATIENCE)?;
        self.free_bytes.taken(planned.space_bytes);
        self.finish(&numbered, &waiter, Some(pass))?;
        Ok((self.tell(&planned)?, wait == WaitFor::Nothing))
    }

    fn tell(&self, planned: &Planned) -> Result<data::Result, Unanswered> {
        match plan::reply_of(planned, &*self.store) {
            Ok(result) => Ok(result),
            Err(PlanError::Refused(error)) => Ok(plan::refused(error)),
            Err(PlanError::Brick(failure)) => Err(brick_failed(&failure)),
        }
    }

    /// Clients with a session, for `volume status V clients`.
    pub fn clients(&self) -> Vec<ClientState> {
        let memory = self.lock_memory();
        let describe = |session: SessionId, memory: &Memory| {
            let state = memory.session_state(session)?;
            Some(ClientState {
                host: state.host,
                pid: state.pid,
                mount_point: state.mount_point,
                session: session.0,
                bytes_read: self.bytes_read.load(Ordering::Relaxed),
                bytes_written: self.bytes_written.load(Ordering::Relaxed),
            })
        };
        memory
            .sessions()
            .into_iter()
            .filter_map(|session| describe(session, &memory))
            .collect()
    }
}

fn take_payload(op: &Op, input: &mut Bytes) -> Result<Bytes, Unanswered> {
    let Some(OpKind::Write(write)) = &op.op else {
        return Ok(Bytes::new());
    };
    let len = write.len as usize;
    if len > input.len() {
        let reason = "a write of more bytes than came with it";
        return Err(Unanswered::new(ReplyStatus::ReplyMalformed, reason));
    }
    Ok(input.split_to(len))
}

fn lock_wait_ms(op: &Op) -> u64 {
    match &op.op {
        Some(OpKind::Setlock(op)) => u64::from(op.wait_ms),
        _ => 0,
    }
}

fn error_of(error: &PlanError) -> FsError {
    match error {
        PlanError::Refused(error) => *error,
        PlanError::Brick(failure) => failure.fs_error(),
    }
}

fn brick_failed(failure: &crate::brick::BrickError) -> Unanswered {
    tracing::error!(%failure, "a read failed");
    Unanswered::new(ReplyStatus::ReplyNotReady, failure.to_string())
}
