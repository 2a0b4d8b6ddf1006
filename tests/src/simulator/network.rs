//! Links between hosts, streams over them, and who notices what.

use std::collections::BTreeMap;

use super::message::{ClientNo, Event, HostNo, Message, Note};
use super::world::World;

/// A stream between two lives of two copies.
#[derive(Clone, Debug)]
pub struct Conn {
    pub from: (HostNo, u64),
    pub to: (HostNo, u64),
    pub alive: bool,
    /// Accepted by the other end.
    pub open: bool,
}

/// What is cut, and what is on its way.
#[derive(Debug, Default)]
pub struct Network {
    /// How many faults cut this direction.
    cuts: BTreeMap<(HostNo, HostNo), u32>,
    client_cuts: BTreeMap<(ClientNo, HostNo), u32>,
    pub conns: Vec<Conn>,
    /// Last delivery: nothing overtakes on one way.
    last: BTreeMap<(usize, HostNo), u64>,
    last_note: BTreeMap<(HostNo, HostNo), u64>,
}

impl Network {
    pub fn is_cut(&self, from: HostNo, to: HostNo) -> bool {
        from != to && self.cuts.get(&(from, to)).is_some_and(|cuts| *cuts > 0)
    }

    pub fn connected(&self, a: HostNo, b: HostNo) -> bool {
        !self.is_cut(a, b) && !self.is_cut(b, a)
    }

    pub fn client_is_cut(&self, client: ClientNo, host: HostNo) -> bool {
        self.client_cuts
            .get(&(client, host))
            .is_some_and(|cuts| *cuts > 0)
    }

    pub fn cut(&mut self, from: HostNo, to: HostNo) {
        *self.cuts.entry((from, to)).or_default() += 1;
    }

    pub fn mend(&mut self, from: HostNo, to: HostNo) {
        if let Some(cuts) = self.cuts.get_mut(&(from, to)) {
            *cuts -= 1;
        }
    }

    pub fn cut_client(&mut self, client: ClientNo, host: HostNo) {
        *self.client_cuts.entry((client, host)).or_default() += 1;
    }

    pub fn mend_client(&mut self, client: ClientNo, host: HostNo) {
        if let Some(cuts) = self.client_cuts.get_mut(&(client, host)) {
            *cuts -= 1;
        }
    }
}

impl World {
    /// A delay of the network: short as a rule, sometimes not.
    pub fn delay(&mut self) -> u64 {
        if self.random.chance(2) {
            self.random.between(5, 120)
        } else {
            self.random.between(1, 4)
        }
    }

    /// Sends over a stream. A cut link loses the message and with it the stream.
    pub fn send(&mut self, conn: usize, from: HostNo, message: Message) {
        let ends = &self.network.conns[conn];
        let to = if ends.from.0 == from {
            ends.to.0
        } else {
            ends.from.0
        };
        if !ends.alive {
            return;
        }
        if self.network.is_cut(from, to) {
            self.break_conn(conn, 200, 3_000);
            return;
        }
        let at = self.now + self.delay();
        let last = self.network.last.entry((conn, to)).or_default();
        *last = at.max(*last);
        let at = *last;
        self.at(at, Event::Stream { conn, to, message });
    }

    /// The stream delivers nothing any more; both ends notice within this time.
    pub fn break_conn(&mut self, conn: usize, low_ms: u64, high_ms: u64) {
        if !self.network.conns[conn].alive {
            return;
        }
        self.network.conns[conn].alive = false;
        let ends = [
            self.network.conns[conn].from.0,
            self.network.conns[conn].to.0,
        ];
        for end in ends {
            let at = self.now + self.random.between(low_ms, high_ms);
            self.at(at, Event::StreamDown { conn, at: end });
        }
    }

    /// Sends between processes; lost when the link is cut.
    pub fn note(&mut self, from: HostNo, to: HostNo, note: Note) {
        if self.network.is_cut(from, to) {
            return;
        }
        let at = self.now + self.delay();
        let last = self.network.last_note.entry((from, to)).or_default();
        *last = at.max(*last);
        let at = *last;
        self.at(at, Event::Note { from, to, note });
    }

    /// A process ended: by a kill (its kernel says so to whoever can hear it) or a power cut.
    pub fn notice_end(&mut self, host: HostNo, life: u64, by_kill: bool) {
        for conn in 0..self.network.conns.len() {
            let ends = &self.network.conns[conn];
            let other = match (ends.from == (host, life), ends.to == (host, life)) {
                (true, _) => ends.to.0,
                (_, true) => ends.from.0,
                _ => continue,
            };
            if by_kill && self.network.connected(host, other) {
                self.break_conn(conn, 1, 5);
            } else {
                self.break_conn(conn, 1_000, 6_000);
            }
        }
        for other in 0..self.copies.len() {
            let hidden = self.random.chance(25);
            if other == host || !by_kill || hidden || !self.network.connected(host, other) {
                continue;
            }
            // FIN, then a refused connect; a quick restart may hide the second.
            let at = self.now + self.random.between(1, 8);
            let other_life = self.copies[other].life;
            if other_life != 0 {
                self.at(
                    at,
                    Event::Gone {
                        at: other,
                        life: other_life,
                        of: host,
                        of_life: life,
                    },
                );
            }
        }
    }
}
