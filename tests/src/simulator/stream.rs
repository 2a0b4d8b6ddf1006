//! What copies say to each other outside and over streams, and how a stream comes up.

use brickd::replica::core::{Core, Gone, Role};
use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::{CopyState, EpochRef};

use super::Bug;
use super::message::{Change, HostNo, Message, Note};
use super::network::Conn;
use super::world::World;

impl World {
    pub fn on_note(&mut self, from: HostNo, host: HostNo, note: Note) {
        let brick = World::brick(from);
        if self.copies[host].life == 0 {
            return;
        }
        match note {
            Note::Beacon { epoch, sent } => {
                self.with_core(host, |core, now| core.beacon(brick, epoch, sent, now));
            }
            Note::BeaconAnswer { epoch, sent, full } => {
                let memory = &mut self.copies[host].memory;
                if full {
                    memory.full.insert(from);
                } else {
                    memory.full.remove(&from);
                }
                self.with_core(host, |core, now| {
                    core.beacon_answer(brick, epoch, sent, now)
                });
            }
            Note::Goodbye {
                incarnation,
                process,
            } => {
                let how = Gone::Goodbye { process };
                let life = Incarnation(incarnation);
                self.with_core(host, |core, now| core.gone(brick, life, how, now));
            }
            Note::Query(id) => {
                let state = Box::new(self.state_of(host));
                self.note(host, from, Note::State(id, state));
            }
            Note::State(id, state) => {
                if self.copies[host].memory.queries.get(&from) == Some(&id) {
                    self.with_core(host, |core, now| core.copy_state(*state, now));
                }
            }
            Note::Open {
                conn,
                incarnation,
                from_incarnation,
                epoch,
                joined,
            } => {
                if self.copies[host].life != incarnation {
                    return;
                }
                let epoch = self.as_named_here(host, epoch);
                self.on_open(host, from, from_incarnation, conn, epoch, joined);
            }
            Note::Opened {
                conn,
                last_number,
                synced,
                lone,
            } => {
                self.copies[host].memory.strays[from] = lone;
                self.on_opened(host, from, conn, last_number, synced);
            }
            Note::NotOpened { conn } => {
                self.copies[host]
                    .memory
                    .opening
                    .retain(|_, opening| *opening != conn);
            }
            Note::TailRequest { epoch } => self.on_tail_request(host, from, epoch),
            Note::Tail { epoch, changes } => {
                let core = self.copies[host].core.as_ref();
                if core.is_some_and(|core| core.epoch_ref() == epoch) {
                    self.on_tail(host, from, changes);
                }
            }
        }
    }

    /// An epoch as this copy understands it.
    pub fn as_named_here(&self, host: HostNo, epoch: EpochRef) -> EpochRef {
        let core = self.copies[host].core.as_ref();
        let mine = core.map_or(epoch, Core::epoch_ref);
        if self.bug == Bug::SameNumber && mine.number == epoch.number {
            mine
        } else {
            epoch
        }
    }

    /// A new primary asks. Only in the new epoch is the old primary's stream shut for good.
    fn on_tail_request(&mut self, host: HostNo, from: HostNo, epoch: EpochRef) {
        let core = self.copies[host].core.as_ref();
        if core.is_some_and(|core| core.epoch_ref() == epoch && *core.role() == Role::Backup) {
            let changes = self.copies[host].memory.kept.values().copied().collect();
            self.note(host, from, Note::Tail { epoch, changes });
        }
    }

    fn state_of(&self, host: HostNo) -> CopyState {
        let Some(core) = &self.copies[host].core else {
            return CopyState::default();
        };
        CopyState {
            brick: World::brick(host).0,
            incarnation: self.copies[host].life,
            epoch: Some(core.epoch_ref()),
            history: core.history().to_vec(),
            alone: core.alone(),
            serving: *core.role() == Role::Primary,
            last_number: core.last_number(),
            ..CopyState::default()
        }
    }

    pub fn on_stream(&mut self, conn: usize, host: HostNo, message: Message) {
        let ends = self.network.conns[conn].clone();
        let (side, other) = if ends.from.0 == host {
            (ends.from, ends.to)
        } else {
            (ends.to, ends.from)
        };
        if !ends.alive || self.copies[host].life != side.1 || side.1 == 0 {
            return;
        }
        match message {
            Message::Change {
                change,
                complete,
                synced,
            } => {
                self.on_change(host, conn, other.0, change, complete, &synced);
            }
            Message::Ack {
                number,
                answer,
                synced,
            } => {
                if self.copies[host].memory.streams.get(&other.0) == Some(&conn) {
                    self.on_ack(host, other.0, number, answer, synced);
                }
            }
            Message::Table(table, states) => {
                let forgets = self.bug == Bug::ForgetTable;
                let sessions = &mut self.copies[host].memory.sessions;
                sessions.clear();
                sessions.import(if forgets { &[] } else { &table }, &states);
                self.send(conn, host, Message::TableHeld);
            }
            Message::TableHeld => {
                let brick = World::brick(other.0);
                if self.copies[host].memory.streams.get(&other.0) == Some(&conn) {
                    self.with_core(host, |core, now| core.table_held(brick, now));
                }
            }
            Message::Confirm(number) => {
                if self.copies[host].memory.streams.get(&other.0) == Some(&conn) {
                    self.on_confirm(host, other.0, number);
                }
            }
        }
    }

    pub fn on_stream_down(&mut self, conn: usize, host: HostNo) {
        let ends = self.network.conns[conn].clone();
        let memory = &mut self.copies[host].memory;
        if memory.incoming == Some(conn) {
            memory.incoming = None;
        }
        let side = if ends.from.0 == host {
            ends.from
        } else {
            ends.to
        };
        if self.copies[host].life != side.1 {
            return;
        }
        let other = ends.to.0;
        let memory = &mut self.copies[host].memory;
        memory.opening.retain(|_, opening| *opening != conn);
        if ends.from.0 == host && memory.streams.get(&other) == Some(&conn) {
            memory.streams.remove(&other);
            self.mark_unanswered_of_syncing(host, other);
            let brick: BrickId = World::brick(other);
            self.with_core(host, |core, now| core.stream_down(brick, now));
        }
    }

    pub fn open_stream(
        &mut self,
        host: HostNo,
        to: BrickId,
        incarnation: Incarnation,
        joined: bool,
        epoch: EpochRef,
    ) {
        let to = World::host_of(to);
        let life = self.copies[host].life;
        if self.copies[host].memory.streams.contains_key(&to) {
            return;
        }
        if let Some(conn) = self.copies[host].memory.opening.get(&to) {
            // An attempt in progress is left alone, but one that got lost is given up.
            if self.random.chance(70) {
                return;
            }
            let conn = *conn;
            self.break_conn(conn, 1, 5);
        }
        let conn = self.network.conns.len();
        self.network.conns.push(Conn {
            from: (host, life),
            to: (to, incarnation.0),
            alive: true,
            open: false,
        });
        self.copies[host].memory.opening.insert(to, conn);
        let note = Note::Open {
            conn,
            incarnation: incarnation.0,
            from_incarnation: life,
            epoch,
            joined,
        };
        self.note(host, to, note);
    }

    pub fn on_open(
        &mut self,
        host: HostNo,
        from: HostNo,
        from_life: u64,
        conn: usize,
        epoch: EpochRef,
        joined: bool,
    ) {
        if !self.network.conns[conn].alive {
            return;
        }
        let now = self.clock(host);
        let Some(core) = self.copies[host].core.as_mut() else {
            return;
        };
        let brick = World::brick(from);
        match core.accepts_stream(brick, Incarnation(from_life), epoch, joined, now) {
            Err(why) => {
                self.trace(|| format!("host {host} refuses the stream of host {from}: {why}"));
                self.note(host, from, Note::NotOpened { conn });
            }
            Ok(commands) => {
                if let Some(old) = self.copies[host].memory.incoming.replace(conn) {
                    self.break_conn(old, 1, 20);
                }
                self.network.conns[conn].open = true;
                let opened = Note::Opened {
                    conn,
                    last_number: self.copies[host].memory.received_to,
                    synced: self.copies[host].stored.synced,
                    lone: self.copies[host].went_alone,
                };
                self.note(host, from, opened);
                self.carry_out(host, commands);
            }
        }
    }

    pub fn on_opened(
        &mut self,
        host: HostNo,
        from: HostNo,
        conn: usize,
        last_number: u64,
        synced: u64,
    ) {
        let ends = self.network.conns[conn].clone();
        if !ends.alive
            || ends.from != (host, self.copies[host].life)
            || self.copies[host].memory.opening.get(&from) != Some(&conn)
        {
            return;
        }
        let memory = &mut self.copies[host].memory;
        memory.opening.remove(&from);
        memory.streams.insert(from, conn);
        let brick = World::brick(from);
        let life = Incarnation(ends.to.1);
        let required = self.copies[host]
            .core
            .as_ref()
            .is_some_and(|core| core.required().contains(&brick));
        // First what it was sent and did not answer, or never got, then anything new.
        if required {
            let complete = self.copies[host].core.as_ref().map_or(0, Core::complete);
            let memory = &self.copies[host].memory;
            let resend: Vec<Change> = memory.kept.values().copied().collect();
            for change in resend {
                self.send_change(host, from, change, complete);
            }
        } else {
            self.returned(host, from, synced);
        }
        self.trace(|| format!("host {host} has a stream to host {from}, which has {last_number}"));
        self.with_core(host, |core, now| {
            core.stream_up(brick, life, last_number, now)
        });
    }

    pub fn close_stream(&mut self, host: HostNo, to: HostNo) {
        let memory = &mut self.copies[host].memory;
        let opening = memory.opening.remove(&to);
        let stream = memory.streams.remove(&to);
        memory.unanswered.remove(&to);
        for conn in opening.into_iter().chain(stream) {
            self.break_conn(conn, 1, 20);
        }
    }
}
