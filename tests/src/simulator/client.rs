//! Clients: one operation at a time, resent under the same number until it is answered.

use super::check::Operation;
use super::faults::CLIENTS_GO_ON_MS;
use super::message::{Ask, ClientNo, Event, HostNo, Outcome, Reply, Request, Told};
use super::world::{KEYS, World};

/// A client waits this long for an answer before it sends again, perhaps to another host.
const RESEND_MS: u64 = 150;

/// One client.
#[derive(Debug, Default)]
pub struct Client {
    pub seq: u64,
    /// What it waits for, and where that is in the list of operations.
    pub waits: Option<(Ask, usize)>,
    /// The newest epoch it has heard of.
    pub epoch: u64,
    host: HostNo,
    turn: u64,
}

impl World {
    pub fn add_clients(&mut self) {
        for client in 0..self.random.between(2, 4) as usize {
            self.clients.push(Client::default());
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
            let ask = self.pick_ask();
            self.stamp += 1;
            let operation = Operation {
                ask,
                start: self.stamp,
                end: None,
            };
            self.operations.push(operation);
            let state = &mut self.clients[client];
            state.seq += 1;
            state.waits = Some((ask, self.operations.len() - 1));
        } else {
            // Unanswered: perhaps another host knows better.
            if self.random.chance(40) {
                self.clients[client].host = self.random.below(self.copies.len());
            }
        }
        self.send_ask(client);
    }

    fn pick_ask(&mut self) -> Ask {
        let key = self.random.below(KEYS as usize) as u8;
        match self.random.below(20) {
            0..6 => Ask::Read(key),
            6..12 => Ask::Write(key, self.random.id()),
            12..15 => Ask::Create(key, self.random.id()),
            15..18 => Ask::Unlink(key),
            _ => Ask::Fsync(key),
        }
    }

    fn send_ask(&mut self, client: ClientNo) {
        let state = &mut self.clients[client];
        let Some((ask, _)) = state.waits else { return };
        state.turn += 1;
        let (host, seq, turn, epoch) = (state.host, state.seq, state.turn, state.epoch);
        let again = self.now + RESEND_MS + self.random.between(0, 100);
        self.at(again, Event::Client { client, turn });
        if !self.network.client_is_cut(client, host) {
            // Now and then the network keeps an old request for long.
            let late = if self.random.chance(3) {
                self.random.between(100, 6_000)
            } else {
                0
            };
            let at = self.now + self.delay() + late;
            let request = Request {
                client,
                seq,
                ask,
                epoch,
            };
            self.at(at, Event::Ask(host, request));
        }
    }

    /// An answer goes to a client.
    pub fn tell(&mut self, client: ClientNo, host: HostNo, seq: u64, told: Told, by_primary: bool) {
        if self.network.client_is_cut(client, host) || self.random.chance(1) {
            return;
        }
        let at = self.now + self.delay();
        let epoch = self.copies[host]
            .core
            .as_ref()
            .map_or(0, |core| core.epoch().number);
        self.at(
            at,
            Event::Tell(Reply {
                client,
                host,
                seq,
                told,
                by_primary,
                epoch,
            }),
        );
    }

    pub fn on_tell(&mut self, reply: Reply) {
        let Reply {
            client,
            host,
            seq,
            told,
            by_primary,
            epoch,
        } = reply;
        self.clients[client].epoch = self.clients[client].epoch.max(epoch);
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
        let Some((ask, number)) = state.waits.filter(|_| state.seq == seq) else {
            return;
        };
        state.turn += 1;
        let turn = state.turn;
        match told {
            Told::Outcome(outcome) => {
                state.waits = None;
                self.stamp += 1;
                self.operations[number].end = Some((self.stamp, outcome));
                self.trace(|| format!("client {client} #{seq} {ask:?} -> {outcome:?}"));
                let at = self.now + self.random.between(1, 160);
                self.at(at, Event::Client { client, turn });
            }
            Told::Elsewhere(other) => {
                state.host = match other {
                    Some(other) => other,
                    None => (host + 1) % self.copies.len(),
                };
                let at = self.now + self.random.between(5, 60);
                self.at(at, Event::Client { client, turn });
            }
            Told::Later => {
                let at = self.now + self.random.between(10, 80);
                self.at(at, Event::Client { client, turn });
            }
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
            Ask::Fsync(_) => (Outcome::Done, held),
        }
    }
}
