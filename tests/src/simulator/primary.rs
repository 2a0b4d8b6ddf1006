//! The driver double's part as primary and backup: requests, streams, recovery.

use std::collections::BTreeSet;

use brickd::replica::core::{Answer, Core, NotNow, Role, WaitFor};

use super::Bug;
use super::copy::Job;
use super::message::{Ask, Change, ClientNo, HostNo, Message, Note, Outcome, Request, Step, Told};
use super::world::World;

impl World {
    /// A client's request arrives.
    pub fn on_ask(&mut self, host: HostNo, request: Request) {
        let Request {
            client,
            seq,
            ask,
            epoch,
        } = request;
        if !self.hosts[host].up {
            return;
        }
        let Some(core) = self.copies[host].core.as_ref() else {
            return;
        };
        let by_primary = matches!(core.role(), Role::Primary | Role::Recovering);
        let memory = &self.copies[host].memory;
        if *core.role() == Role::Primary {
            let done = self.copies[host].disk.table.get(&client).copied();
            let judged = memory.judged.get(&client).copied();
            let last = if judged > done { judged } else { done };
            if last.is_some_and(|last| last.0 > seq) {
                return; // The client has gone on since.
            }
            if memory
                .ordered
                .get(&client)
                .is_some_and(|ordered| *ordered >= seq)
            {
                return; // Its answer is on the way.
            }
            if let Some((_, outcome)) = last.filter(|last| last.0 == seq) {
                return self.answer_as_read(client, host, seq, outcome);
            }
            if epoch < memory.since_epoch {
                // Sent to a predecessor, which may have refused it: the client says it again.
                return self.tell(client, host, seq, Told::Later, true);
            }
        }
        let now = self.clock(host);
        if let Some(core) = &mut self.copies[host].core {
            core.client_here(now);
        }
        let Some(core) = self.copies[host].core.as_ref() else {
            return;
        };
        match ask {
            Ask::Read(key) => {
                let value = self.copies[host].disk.cells[key as usize].value;
                self.answer_as_read(client, host, seq, Outcome::Value(value));
            }
            _ if *core.role() == Role::Primary => self.judge_change(host, request),
            _ => {
                let told = self.told_why(core.may_read(self.clock(host)).err());
                self.tell(client, host, seq, told, by_primary);
            }
        }
    }

    fn told_why(&self, why: Option<NotNow>) -> Told {
        match why {
            Some(NotNow::NotPrimary(primary)) => Told::Elsewhere(primary.map(World::host_of)),
            _ => Told::Later,
        }
    }

    /// Answers what was only looked up: the lease must hold as the answer leaves.
    fn answer_as_read(&mut self, client: ClientNo, host: HostNo, seq: u64, outcome: Outcome) {
        let now = self.clock(host);
        let Some(core) = self.copies[host].core.as_ref() else {
            return;
        };
        let primary = *core.role() == Role::Primary;
        let unchecked = self.bug == Bug::NoLease && primary;
        let told = match core.may_read(now) {
            Err(why) if !unchecked => self.told_why(Some(why)),
            _ => {
                let number = core.epoch().number;
                if number < self.answered_in && !self.is_split() {
                    let newest = self.answered_in;
                    self.fail(format!(
                        "host {host} answers a read in epoch {number}, after answers in {newest}"
                    ));
                }
                self.answered_in = self.answered_in.max(number);
                Told::Outcome(outcome)
            }
        };
        self.tell(client, host, seq, told, primary);
    }

    /// Judges a change against the state after all ordered changes.
    fn judge_change(&mut self, host: HostNo, request: Request) {
        let Request {
            client, seq, ask, ..
        } = request;
        let key = ask.key();
        let copy = &self.copies[host];
        let ahead = copy.memory.ahead.get(&key).copied();
        let held = ahead.map_or(copy.disk.cells[key as usize].value, |ahead| ahead.1);
        let (outcome, value) = Outcome::of(ask, held);
        if outcome == Outcome::Done {
            return self.order_change(host, request, value);
        }
        if ahead.is_some() {
            // It would be seen before it is certain.
            return self.tell(client, host, seq, Told::Later, true);
        }
        let now = self.clock(host);
        let copy = &mut self.copies[host];
        if copy
            .core
            .as_ref()
            .is_some_and(|core| core.may_read(now).is_ok())
        {
            copy.memory.judged.insert(client, (seq, outcome));
        }
        self.answer_as_read(client, host, seq, outcome);
    }

    fn order_change(&mut self, host: HostNo, request: Request, value: Option<u64>) {
        let Request {
            client, seq, ask, ..
        } = request;
        let now = self.clock(host);
        let Some(core) = self.copies[host].core.as_mut() else {
            return;
        };
        let ordered = match core.order(WaitFor::Everyone, now) {
            Ok(ordered) => ordered,
            Err(why) => {
                let told = self.told_why(Some(why));
                return self.tell(client, host, seq, told, true);
            }
        };
        let step = if matches!(ask, Ask::Fsync(_)) {
            Step::Fsync
        } else {
            Step::Set(value)
        };
        let (number, epoch, key) = (ordered.number, ordered.epoch, ask.key());
        let change = Change {
            number,
            epoch,
            key,
            step,
            client,
            seq,
        };
        let memory = &mut self.copies[host].memory;
        memory.kept.insert(number, change);
        memory.unapplied.insert(number);
        memory.waiting.insert(number, client);
        memory.ordered.insert(client, seq);
        memory.ahead.insert(key, (number, value));
        self.remember_changed(host, &change);
        self.trace(|| format!("host {host} orders {number} client {client} #{seq} {ask:?}"));
        if self.bug == Bug::ApplyEarly {
            self.apply(host, &change);
            self.copies[host].memory.ahead.remove(&key);
        }
        for brick in &ordered.to {
            self.send_change(host, World::host_of(*brick), change, ordered.complete);
        }
        self.forget_complete(host);
        self.carry_out(host, ordered.commands);
    }

    /// Sends one change over the stream to a copy, if there is one.
    pub fn send_change(&mut self, host: HostNo, to: HostNo, change: Change, complete: u64) {
        let healing = self.copies[host].memory.heals.contains_key(&to);
        let healed = matches!(change.step, Step::Heal(_));
        let skip = healing && !healed && self.skips(host, to, &change);
        if let Some(conn) = self.copies[host].memory.streams.get(&to).copied() {
            self.send(
                conn,
                host,
                Message::Change {
                    change,
                    complete,
                    skip,
                },
            );
        }
    }

    pub fn on_change(
        &mut self,
        host: HostNo,
        conn: usize,
        from: HostNo,
        change: Change,
        complete: u64,
        skip: bool,
    ) {
        if self.copies[host].memory.incoming != Some(conn) {
            return;
        }
        let now = self.clock(host);
        let Some(core) = self.copies[host].core.as_mut() else {
            return;
        };
        let brick = World::brick(from);
        match core.received(brick, change.number, change.epoch, complete, now) {
            Err(why) => {
                self.trace(|| format!("host {host} refuses {}: {why}", change.number));
                self.copies[host].memory.incoming = None;
                self.break_conn(conn, 1, 20);
                return;
            }
            Ok(commands) => self.carry_out(host, commands),
        }
        let memory = &mut self.copies[host].memory;
        if change.number <= memory.received_to {
            let answer = if memory.unapplied.contains(&change.number) {
                Answer::Held
            } else {
                Answer::Applied
            };
            // Applied later, it is answered where it is in the queue.
            for job in memory.queues.values_mut().flatten() {
                if job.change.number == change.number {
                    job.stream = Some(conn);
                }
            }
            return self.send(
                conn,
                host,
                Message::Ack {
                    number: change.number,
                    answer,
                },
            );
        }
        memory.received_to = change.number;
        memory.unapplied.insert(change.number);
        if !matches!(change.step, Step::Heal(_)) {
            memory.kept.insert(change.number, change);
            self.remember_changed(host, &change);
        }
        self.forget_complete(host);
        self.queue(
            host,
            Job {
                change,
                stream: Some(conn),
                skip,
            },
        );
    }

    pub fn on_ack(&mut self, host: HostNo, from: HostNo, number: u64, answer: Answer) {
        if answer == Answer::Applied {
            self.on_heal_answer(host, from, number);
        }
        let brick = World::brick(from);
        self.with_core(host, |core, now| core.answered(brick, number, answer, now));
    }

    /// All in-sync copies have applied it, says the state machine: it had better be so.
    pub fn answer_client(&mut self, host: HostNo, number: u64) {
        let Some(change) = self.copies[host].memory.kept.get(&number).copied() else {
            return;
        };
        let core = self.copies[host].core.as_ref();
        let (in_sync, epoch) = core.map_or((Vec::new(), 0), |core| {
            (core.in_sync(), core.epoch().number)
        });
        for (brick, life) in in_sync {
            let copy = &self.copies[World::host_of(brick)];
            let version = copy.disk.cells[change.key as usize].version;
            let lacks = matches!(change.step, Step::Set(_)) && version < number;
            if copy.life == life.0 && lacks {
                self.fail(format!(
                    "change {number} is answered and brick {brick} lacks it"
                ));
            }
        }
        if change.step == Step::Fsync && !self.is_split() {
            let version = self.copies[host].disk.cells[change.key as usize].version;
            let covered = self.fsynced.entry(change.key).or_default();
            // Only changes ordered before it.
            *covered = (*covered).max(if version < number { version } else { 0 });
        }
        self.answered_in = self.answered_in.max(epoch);
        let memory = &mut self.copies[host].memory;
        memory.ordered.remove(&change.client);
        if let Some(client) = memory.waiting.remove(&number) {
            self.tell(client, host, change.seq, Told::Outcome(Outcome::Done), true);
        }
    }

    pub fn abandon(&mut self, host: HostNo, numbers: &[u64]) {
        let queued: BTreeSet<u64> = self.copies[host]
            .memory
            .queues
            .values()
            .flatten()
            .map(|job| job.change.number)
            .collect();
        for number in numbers {
            let memory = &mut self.copies[host].memory;
            if let Some(client) = memory.waiting.remove(number)
                && let Some(change) = memory.kept.get(number).copied()
            {
                self.tell(client, host, change.seq, Told::Elsewhere(None), false);
            }
            // Commanded to be applied, it stays in its queue: every in-sync copy holds it.
            let memory = &mut self.copies[host].memory;
            if !queued.contains(number) && memory.unapplied.remove(number) {
                memory.kept.remove(number);
            }
        }
    }

    pub fn forget_complete(&mut self, host: HostNo) {
        let complete = self.copies[host].core.as_ref().map_or(0, Core::complete);
        let memory = &mut self.copies[host].memory;
        memory.kept = memory.kept.split_off(&(complete + 1));
    }

    // ------------------------------------------------------------ recovery

    pub fn recover(&mut self, host: HostNo) {
        let in_sync = self.copies[host]
            .core
            .as_ref()
            .map_or(Vec::new(), Core::in_sync);
        let others = in_sync.iter().map(|(brick, _)| World::host_of(*brick));
        let others: BTreeSet<HostNo> = others.filter(|other| *other != host).collect();
        self.copies[host].memory.recovery = Some(others);
        self.go_on_recovering(host, true);
    }

    pub fn go_on_recovering(&mut self, host: HostNo, ask: bool) {
        let Some(waits) = self.copies[host].memory.recovery.clone() else {
            return;
        };
        let Some(core) = &self.copies[host].core else {
            return;
        };
        let epoch = core.epoch_ref();
        if *core.role() != Role::Recovering {
            return;
        }
        if ask {
            for other in &waits {
                self.note(host, *other, Note::TailRequest { epoch });
            }
        }
        if waits.is_empty() && self.copies[host].memory.unapplied.is_empty() {
            self.copies[host].memory.recovery = None;
            let last = self.copies[host].memory.received_to;
            self.with_core(host, |core, now| core.recovered(last, now));
        }
    }

    pub fn on_tail(&mut self, host: HostNo, from: HostNo, changes: Vec<Change>) {
        let memory = &mut self.copies[host].memory;
        if !memory
            .recovery
            .as_mut()
            .is_some_and(|waits| waits.remove(&from))
        {
            return;
        }
        for change in changes {
            let memory = &mut self.copies[host].memory;
            if change.number > memory.received_to {
                memory.received_to = change.number;
                memory.unapplied.insert(change.number);
                memory.kept.insert(change.number, change);
                self.remember_changed(host, &change);
                self.queue_fetched(host, change);
            }
        }
        self.go_on_recovering(host, false);
    }

    fn queue_fetched(&mut self, host: HostNo, change: Change) {
        self.queue(
            host,
            Job {
                change,
                stream: None,
                skip: false,
            },
        );
    }
}
