//! Clients: one operation at a time, resent under the same number until it is answered.

use super::check::Operation;
use super::faults::CLIENTS_GO_ON_MS;
use super::message::{Ask, ClientNo, Event, HostNo, Outcome, Reply, Request, Told};
use super::world::{KEYS, LOCKS, World};

/// A client waits this long for an answer before it sends again, perhaps to another host.
const RESEND_MS: u64 = 150;
/// So long a request is on its way at most.
const LATE_MAX_MS: u64 = 6_000;

/// One client.
#[derive(Debug, Default)]
pub struct Client {
    pub session: u64,
    /// The session has begun; until then that is what is asked.
    pub opened: bool,
    /// Of what is asked now.
    pub seq: u64,
    /// How often that was sent.
    sent: u32,
    /// What it waits for, and where that is in the list of operations.
    pub waits: Option<(Ask, usize)>,
    /// The newest request for a change that was sent more than once and is answered.
    pub doubled: Option<u64>,
    /// The session lived after this stamp.
    lived: u64,
    host: HostNo,
    turn: u64,
}

impl World {
    pub fn add_clients(&mut self) {
        for client in 0..self.random.between(2, 4) as usize {
            self.clients.push(Client::default());
            self.begin_session(client);
            let at = self.random.between(300, 900);
            self.at(at, Event::Client { client, turn: 0 });
        }
    }

    /// A client's timer: begins its next operation, or sends the one it waits for again.
    pub fn on_client(&mut self, client: ClientNo, turn: u64) {
        if self.clients[client].turn != turn {
            return;
        }
        if self.clients[client].waits.is_none() {
            if self.now > self.calm_at + CLIENTS_GO_ON_MS {
                return;
            }
            let ask = self.pick_ask(client);
            self.stamp += 1;
            let operation = Operation {
                ask,
                start: self.stamp,
                end: None,
            };
            self.operations.push(operation);
            let state = &mut self.clients[client];
            if state.opened {
                state.seq += 1;
                state.sent = 0;
            }
            state.waits = Some((ask, self.operations.len() - 1));
        } else {
            // Unanswered: perhaps another host knows better.
            if self.random.chance(40) {
                self.clients[client].host = self.random.below(self.copies.len());
            }
        }
        self.send_ask(client);
    }

    fn pick_ask(&mut self, client: ClientNo) -> Ask {
        let key = self.random.below(KEYS as usize) as u8;
        let session = self.clients[client].session;
        let lock = KEYS + self.random.below(LOCKS as usize) as u8;
        match self.random.below(25) {
            0..6 => Ask::Read(key),
            6..12 => Ask::Write(key, self.random.id()),
            12..15 => Ask::Create(key, self.random.id()),
            15..18 => Ask::Unlink(key),
            18..21 => Ask::Fsync(key),
            21 | 22 => Ask::Lock(lock, session),
            _ => Ask::Unlock(lock, session),
        }
    }

    fn begin_session(&mut self, client: ClientNo) {
        let session = self.random.id();
        let lived = self.stamp;
        let state = &mut self.clients[client];
        (state.session, state.opened, state.lived) = (session, false, lived);
        (state.seq, state.sent, state.doubled) = (1, 0, None);
    }

    fn send_ask(&mut self, client: ClientNo) {
        let state = &self.clients[client];
        if !state.opened && state.sent > 0 {
            // Sent once under its id: should it come late, it must open nothing that is in use.
            self.begin_session(client);
            self.ask_in_new_session(client);
        }
        let state = &mut self.clients[client];
        let Some((ask, _)) = state.waits else { return };
        state.turn += 1;
        let (host, turn) = (state.host, state.turn);
        let request = Request {
            client,
            session: state.session,
            seq: state.seq,
            ask: if state.opened { ask } else { Ask::Open },
            attempt: state.sent,
        };
        state.sent += 1;
        let again = self.now + RESEND_MS + self.random.between(0, 100);
        self.at(again, Event::Client { client, turn });
        if !self.network.client_is_cut(client, host) {
            // Now and then the network, or a host that passes it on, keeps a request for long.
            let late = if self.random.chance(3) {
                self.random.between(100, LATE_MAX_MS)
            } else {
                0
            };
            let at = self.now + self.delay() + late;
            self.at(at, Event::Ask(host, request));
        }
    }

    /// An answer to a request goes to its client.
    pub fn tell(&mut self, host: HostNo, request: &Request, told: Told, by_primary: bool) {
        let Request {
            client,
            session,
            seq,
            attempt,
            ..
        } = *request;
        if self.network.client_is_cut(client, host) || self.random.chance(1) {
            return;
        }
        let at = self.now + self.delay();
        let reply = Reply {
            client,
            host,
            session,
            seq,
            attempt,
            told,
            by_primary,
        };
        self.at(at, Event::Tell(reply));
    }

    pub fn on_tell(&mut self, reply: Reply) {
        let Reply {
            client,
            host,
            session,
            seq,
            attempt,
            told,
            by_primary,
        } = reply;
        if by_primary {
            // A free witness: it tells the other copies that it hears the primary.
            for other in (0..self.copies.len()).filter(|other| *other != host) {
                if !self.network.client_is_cut(client, other) {
                    let at = self.now + self.random.between(1, 4);
                    self.at(at, Event::Heard { host: other });
                }
            }
        }
        let state = &mut self.clients[client];
        // The connection of an earlier attempt is given up: nobody reads what comes over it.
        let asked = (state.session, state.seq, state.sent) == (session, seq, attempt + 1);
        let Some((ask, number)) = state.waits.filter(|_| asked) else {
            return;
        };
        state.turn += 1;
        let turn = state.turn;
        let wait = match told {
            Told::Outcome(_) if !state.opened => {
                state.opened = true;
                (state.seq, state.sent) = (seq + 1, 0);
                self.random.between(1, 3)
            }
            Told::Outcome(outcome) => {
                if attempt > 0 && !matches!(ask, Ask::Read(_)) {
                    state.doubled = Some(seq);
                }
                state.waits = None;
                state.lived = self.operations[number].start;
                self.stamp += 1;
                self.operations[number].end = Some((self.stamp, outcome));
                self.trace(|| format!("client {client} #{seq} {ask:?} -> {outcome:?}"));
                self.random.between(1, 160)
            }
            Told::Elsewhere(other) => {
                state.host = match other {
                    Some(other) => other,
                    None => (host + 1) % self.copies.len(),
                };
                self.random.between(5, 60)
            }
            Told::Later => self.random.between(10, 80),
            Told::Fenced => {
                self.end_session(client, ask);
                self.random.between(5, 60)
            }
        };
        self.at(self.now + wait, Event::Client { client, turn });
    }

    /// The client learns that its session has ended: its locks are gone. What was sent more than
    /// once and never answered may have been done, and is not asked again.
    fn end_session(&mut self, client: ClientNo, ask: Ask) {
        self.summary.fenced += 1;
        let state = &self.clients[client];
        let (old, start) = (state.session, state.lived);
        let unknown = state.opened && state.sent > 1 && !matches!(ask, Ask::Read(_));
        self.trace(|| format!("client {client} learns that {:04x} ended", old & 0xffff));
        self.stamp += 1;
        for lock in KEYS..KEYS + LOCKS {
            self.operations.push(Operation {
                ask: Ask::Expire(lock, old),
                start,
                end: Some((self.stamp, Outcome::Done)),
            });
        }
        self.begin_session(client);
        if unknown {
            self.clients[client].waits = None;
        } else {
            self.ask_in_new_session(client);
        }
    }

    fn ask_in_new_session(&mut self, client: ClientNo) {
        let state = &mut self.clients[client];
        if let Some((ask, number)) = &mut state.waits {
            *ask = ask.in_session(state.session);
            self.operations[*number].ask = *ask;
        }
    }
}

impl Outcome {
    /// What an operation comes to on a register, and what the register holds afterwards.
    pub fn of(ask: Ask, held: Option<u64>) -> (Outcome, Option<u64>) {
        match ask {
            Ask::Read(_) => (Outcome::Value(held), held),
            Ask::Write(_, value) => (Outcome::Done, Some(value)),
            Ask::Create(_, value) if held.is_none() => (Outcome::Done, Some(value)),
            Ask::Create(..) => (Outcome::Exists, held),
            Ask::Unlink(_) if held.is_some() => (Outcome::Done, None),
            Ask::Unlink(_) => (Outcome::NotFound, None),
            Ask::Fsync(_) | Ask::Open => (Outcome::Done, held),
            Ask::Lock(_, owner) if held.is_none_or(|held| held == owner) => {
                (Outcome::Done, Some(owner))
            }
            Ask::Lock(..) => (Outcome::Again, held),
            Ask::Unlock(_, owner) | Ask::Expire(_, owner) => {
                (Outcome::Done, held.filter(|held| *held != owner))
            }
        }
    }
}
