//! The driver double's part with sessions: results of requests that come again, refusals, locks,
//! expiry. What is remembered is the product's own.

use brickd::replica::core::Role;
use brickd::replica::memory::{Begun, Seen, Standing};
use brickd::replica::sessions::SESSION_TIMEOUT;
use mortar_common::SessionId;

use super::Bug;
use super::copy::Copy;
use super::index::{lock_of, locked_object};
use super::message::{Ask, Cell, Change, HostNo, Key, Outcome, Request, Step, Told};
use super::world::{KEYS, World};

/// The driver uses one slot of each session.
const SLOT: u32 = 0;
/// A process stood still when its sessions were not looked over for so long.
const STOOD_STILL_MS: u64 = 2_000;

impl Copy {
    /// Whether it has not applied a change.
    pub fn lacks(&self, change: &Change) -> bool {
        let session = SessionId(change.session);
        let sessions = &self.memory.sessions;
        let lacks_bytes = matches!(change.step, Step::Set { .. })
            && self.disk.cells[change.key as usize].version < change.number;
        let lacks_result = change.session != 0
            && match sessions.standing(session) {
                Standing::Known => sessions.find(session, SLOT, change.seq, 0) == Seen::New,
                Standing::Unknown => change.step == Step::Begin,
                Standing::Fenced => false,
            };
        lacks_bytes || lacks_result
    }
}

impl World {
    /// Whether the session of a request is known, or begins with it.
    pub fn is_known(&mut self, host: HostNo, request: &Request, now: u64) -> bool {
        let sessions = &mut self.copies[host].memory.sessions;
        let session = SessionId(request.session);
        match sessions.standing(session) {
            Standing::Known => {
                sessions.heard(session, now);
                true
            }
            Standing::Unknown => request.ask == Ask::Open,
            Standing::Fenced => false,
        }
    }

    /// A request for a change: it was done before, or refused, or is to be judged.
    pub fn look_for_result(&mut self, host: HostNo, request: &Request) {
        let memory = &mut self.copies[host].memory;
        if memory.busy.contains(&request.session) {
            return; // Its turn has not come; the client sends it again.
        }
        let session = SessionId(request.session);
        match memory.sessions.begin(session, SLOT, request.seq) {
            Begun::Goes => {}
            Begun::StopsAt { errno, .. } => {
                return self.answer_as_read(host, request, Outcome::of_errno(errno));
            }
            Begun::Older => return,
        }
        match memory.sessions.find(session, SLOT, request.seq, 0) {
            Seen::New => {}
            Seen::Done(_) if request.ask.is_fsync() => return self.sync_again(host, request),
            Seen::Done(_) => return self.answer_as_read(host, request, Outcome::Done),
            Seen::Older => return,
        }
        match request.ask {
            Ask::Open | Ask::Lock(..) | Ask::Unlock(..)
                if memory.ending.contains(&request.session) =>
            {
                self.tell(host, request, Told::Later, true);
            }
            Ask::Open if memory.sessions.standing(session) == Standing::Known => {
                self.settle(host, request, Outcome::Done);
            }
            Ask::Open => self.order_request(host, request, Key::MAX, Step::Begin, None),
            Ask::Lock(key, _) => self.judge_lock(host, request, key, false),
            Ask::Unlock(key, _) => self.judge_lock(host, request, key, true),
            _ => self.judge_change(host, request),
        }
    }

    /// What this copy has made durable, another that is in sync may merely hold: it is done again,
    /// by nobody's request.
    fn sync_again(&mut self, host: HostNo, request: &Request) {
        let key = request.ask.key();
        let copy = &self.copies[host];
        let ahead = copy.memory.ahead.get(&key).map(|ahead| ahead.1);
        let value = ahead.unwrap_or(copy.disk.cells[key as usize].value);
        if let Err(why) = self.order(host, (0, 0), key, Step::Fsync, Some((request, value))) {
            let told = self.told_why(Some(why));
            self.tell(host, request, told, true);
        }
    }

    /// The fsync that was ordered as `number` is answered: on every in-sync copy what was ordered
    /// before it must be durable.
    pub fn check_synced(&mut self, host: HostNo, key: Key, number: u64) {
        let version = |cells: &[Cell]| cells[key as usize].version;
        let covered = version(&self.copies[host].disk.cells);
        let core = self.copies[host].core.as_ref();
        let in_sync = core.map_or(Vec::new(), |core| core.in_sync());
        let lacks = in_sync.into_iter().find(|(brick, life)| {
            let copy = &self.copies[World::host_of(*brick)];
            copy.life == life.0 && covered < number && version(&copy.durable.cells) < covered
        });
        if let Some((brick, _)) = lacks {
            self.fail(format!(
                "an fsync of register {key} is answered, and brick {brick} has not synced it"
            ));
        }
    }

    fn judge_lock(&mut self, host: HostNo, request: &Request, key: Key, unlock: bool) {
        let memory = &self.copies[host].memory;
        if memory.ahead.contains_key(&key) || !memory.ending.is_empty() {
            return self.tell(host, request, Told::Later, true);
        }
        let (gfid, lock) = (locked_object(key), lock_of(request.session, unlock));
        let idle = if unlock {
            !memory.sessions.touches_lock(gfid, &lock)
        } else {
            memory.sessions.holds_lock(gfid, &lock)
        };
        if idle {
            self.settle(host, request, Outcome::Done);
        } else if !unlock && memory.sessions.conflicting_lock(gfid, &lock).is_some() {
            self.settle(host, request, Outcome::Again);
        } else {
            self.order_request(host, request, key, Step::Lock { unlock }, None);
        }
    }

    /// Answers what changes nothing. If the request was sent before, every copy remembers first
    /// what it came to: the earlier one, wherever it is, must come to the same.
    pub fn settle(&mut self, host: HostNo, request: &Request, outcome: Outcome) {
        if request.attempt == 0 || self.bug == Bug::ForgetRefusals {
            return self.answer_as_read(host, request, outcome);
        }
        self.summary.settled += 1;
        self.order_request(host, request, Key::MAX, Step::Settled(outcome), None);
    }

    /// What a client sent more than once and was answered may still come to this copy, which may be
    /// primary by then. It must not take it for something new.
    pub fn check_results(&mut self, host: HostNo) {
        let memory = &self.copies[host].memory;
        // What it holds it applies before it becomes primary.
        let holds = |session: u64| {
            let mut held = memory.jobs.values().map(|job| &job.change);
            held.any(|change| change.session == session)
        };
        let forgotten = self.clients.iter().position(|client| {
            let session = SessionId(client.session);
            let sessions = &memory.sessions;
            let is_new = |seq| sessions.find(session, SLOT, seq, 0) == Seen::New;
            sessions.standing(session) == Standing::Known
                && client.doubled.is_some_and(is_new)
                && !holds(client.session)
        });
        if let Some(client) = forgotten {
            let seq = self.clients[client].doubled;
            self.fail(format!(
                "host {host} would take a late copy of #{seq:?} of client {client} for new"
            ));
        }
    }

    /// Ends sessions that were silent for too long.
    pub fn look_over_sessions(&mut self, host: HostNo) {
        let now = self.clock(host);
        let copy = &mut self.copies[host];
        let Some(core) = copy
            .core
            .as_ref()
            .filter(|core| *core.role() == Role::Primary)
        else {
            return;
        };
        let memory = &mut copy.memory;
        let looked_ms = std::mem::replace(&mut memory.looked_ms, now);
        if now.saturating_sub(looked_ms) > STOOD_STILL_MS || core.may_read(now).is_err() {
            memory.sessions.forgive_silence(now);
        }
        let limit_ms = SESSION_TIMEOUT.as_millis() as u64;
        for session in memory.sessions.silent(now, limit_ms) {
            if self.copies[host].memory.ending.insert(session.0) {
                let step = Step::End(session.0);
                if self.order(host, (0, 0), KEYS, step, None).is_err() {
                    self.copies[host].memory.ending.remove(&session.0);
                }
            }
        }
    }
}
