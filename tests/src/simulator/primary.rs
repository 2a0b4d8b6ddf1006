//! The driver double's part as primary and backup: requests, streams, recovery.

use std::collections::BTreeSet;

use brickd::replica::core::{Answer, Command, Core, NotNow, Role, WaitFor};
use mortar_common::BrickId;
use mortar_proto::data::{CopySynced, EpochRef};

use super::Bug;
use super::copy::Job;
use super::index::product_change;
use super::message::{Ask, Change, HostNo, Key, Message, Note, Outcome, Request, Step, Told};
use super::world::World;

impl World {
    /// A client's request arrives.
    pub fn on_ask(&mut self, host: HostNo, request: Request) {
        let now = self.clock(host);
        let Some(core) = self.copies[host].core.as_mut() else {
            return;
        };
        core.client_here(now);
        let role = core.role().clone();
        let primary = role == Role::Primary;
        let judged = core.may_read(now);
        if !self.is_unchecked(&role) {
            if let Err(why) = judged {
                let by_primary = primary || role == Role::Recovering;
                let told = self.told_why(Some(why));
                return self.tell(host, &request, told, by_primary);
            }
            if !self.is_known(host, &request, now) {
                return self.tell(host, &request, Told::Fenced, primary);
            }
        }
        match request.ask {
            Ask::Read(key) => {
                let value = self.copies[host].disk.cells[key as usize].value;
                self.answer_as_read(host, &request, Outcome::Value(value));
            }
            _ if primary => self.look_for_result(host, &request),
            _ => self.tell(host, &request, Told::Later, false),
        }
    }

    /// A planted fault lets this copy answer whatever its lease says.
    fn is_unchecked(&self, role: &Role) -> bool {
        self.bug == Bug::NoLease && *role == Role::Primary
            || self.bug == Bug::ServeSyncing && *role == Role::Syncing
    }

    pub fn told_why(&self, why: Option<NotNow>) -> Told {
        match why {
            Some(NotNow::NotPrimary(primary)) => Told::Elsewhere(primary.map(World::host_of)),
            _ => Told::Later,
        }
    }

    /// Answers what was only looked up: the lease must hold as the answer leaves.
    pub fn answer_as_read(&mut self, host: HostNo, request: &Request, outcome: Outcome) {
        let now = self.clock(host);
        let Some(core) = self.copies[host].core.as_ref() else {
            return;
        };
        let primary = *core.role() == Role::Primary;
        let unchecked = self.is_unchecked(core.role());
        let told = match core.may_read(now) {
            Err(why) if !unchecked => self.told_why(Some(why)),
            _ => {
                let number = core.epoch().number;
                let epoch = core.epoch_ref();
                self.note_who_answers(host, epoch);
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
        self.tell(host, request, told, primary);
    }

    /// Whether an in-sync copy has no room left, by what this one has heard.
    fn is_full(&self, host: HostNo) -> bool {
        let core = self.copies[host].core.as_ref();
        let in_sync = core.map_or(Vec::new(), Core::in_sync);
        let memory = &self.copies[host].memory;
        in_sync.iter().any(|(brick, _)| {
            let other = World::host_of(*brick);
            other == host && self.hosts[host].full > 0 || memory.full.contains(&other)
        })
    }

    /// In one epoch only one life of one copy answers.
    fn note_who_answers(&mut self, host: HostNo, epoch: EpochRef) {
        let me = (host, self.copies[host].life);
        let first = *self
            .answered_by
            .entry((epoch.number, epoch.id))
            .or_insert(me);
        if first != me {
            let (number, other) = (epoch.number, first.0);
            self.fail(format!(
                "host {host} and host {other} both answer in epoch {number}"
            ));
        }
    }

    /// Judges a change against the state after all ordered changes.
    pub fn judge_change(&mut self, host: HostNo, request: &Request) {
        let ask = request.ask;
        let key = ask.key();
        let copy = &self.copies[host];
        let ahead = copy.memory.ahead.get(&key).copied();
        let held = ahead.map_or(copy.disk.cells[key as usize].value, |ahead| ahead.1);
        let (outcome, value) = Outcome::of(ask, held);
        if outcome == Outcome::Done && value.is_some() && !ask.is_fsync() && self.is_full(host) {
            // Refused before it is ordered, so it is no matter what is on its way.
            return self.settle(host, request, Outcome::NoSpace);
        }
        if outcome != Outcome::Done {
            if ahead.is_some() {
                // It would be seen before it is certain.
                return self.tell(host, request, Told::Later, true);
            }
            return self.settle(host, request, outcome);
        }
        let step = if ask.is_fsync() {
            Step::Fsync
        } else {
            Step::Set {
                before: held,
                value,
            }
        };
        self.order_request(host, request, key, step, value);
    }

    /// Orders what a client asked for; `value` is what the register holds then.
    pub fn order_request(
        &mut self,
        host: HostNo,
        request: &Request,
        key: Key,
        step: Step,
        value: Option<u64>,
    ) {
        let origin = (request.session, request.seq);
        if let Err(why) = self.order(host, origin, key, step, Some((request, value))) {
            let told = self.told_why(Some(why));
            self.tell(host, request, told, true);
        }
    }

    /// Orders a change and sends it.
    pub fn order(
        &mut self,
        host: HostNo,
        (session, seq): (u64, u64),
        key: Key,
        step: Step,
        asked: Option<(&Request, Option<u64>)>,
    ) -> Result<(), NotNow> {
        let now = self.clock(host);
        let Some(core) = self.copies[host].core.as_mut() else {
            return Err(NotNow::Wait);
        };
        let ordered = core.order(WaitFor::Everyone, now)?;
        let (number, epoch, time) = (ordered.number, ordered.epoch, self.next_time(host));
        let change = Change {
            number,
            epoch,
            time,
            key,
            step,
            session,
            seq,
        };
        let is_seen = !step.is_memory_only();
        if is_seen && (time.secs, time.nanos) <= self.newest_time && !self.is_split() {
            self.fail(format!(
                "host {host} gives {number} a time that is not after an answered change's"
            ));
        }
        let memory = &mut self.copies[host].memory;
        memory.kept.insert(number, change);
        memory.unapplied.insert(number);
        if let Some((request, value)) = asked {
            memory.waiting.insert(number, *request);
            memory.busy.insert(request.session);
            memory.ahead.insert(key, (number, value));
        }
        memory.absent.fsync_ordered(&product_change(&change));
        self.trace(|| format!("host {host} orders {number}: {step:?} of {key}, {asked:?}"));
        if self.bug == Bug::ApplyEarly {
            self.note_for_absent(host, &change);
            self.apply(host, &change);
            self.copies[host].memory.ahead.remove(&key);
        }
        let mut commands = ordered.commands;
        for brick in &ordered.to {
            commands.extend(self.send_or_skip(host, *brick, change, ordered.complete));
        }
        if self.bug == Bug::AckEarly
            && let Some(core) = self.copies[host].core.as_mut()
        {
            for brick in &ordered.to {
                commands.extend(core.answered(*brick, number, Answer::Applied, now));
            }
        }
        self.forget_complete(host);
        self.carry_out(host, commands);
        Ok(())
    }

    /// Sends a change to one copy; to one that is being healed only if it can apply it.
    fn send_or_skip(
        &mut self,
        host: HostNo,
        to: BrickId,
        change: Change,
        complete: u64,
    ) -> Vec<Command> {
        let now = self.clock(host);
        let copy = &mut self.copies[host];
        let required = |core: &Core| core.required().contains(&to);
        let joined = copy.core.as_ref().is_some_and(required);
        // Sessions, results and locks it gets as a whole when it joins.
        let skips = || {
            change.step.is_memory_only() || copy.memory.absent.skips(to, &product_change(&change))
        };
        if !joined && skips() {
            self.trace(|| format!("host {host} marks {} for {to}", change.number));
            let core = self.copies[host].core.as_mut();
            return core.map_or(Vec::new(), |core| {
                core.answered(to, change.number, Answer::Applied, now)
            });
        }
        self.send_change(host, World::host_of(to), change, complete);
        Vec::new()
    }

    /// Sends one change over the stream to a copy, if there is one.
    pub fn send_change(&mut self, host: HostNo, to: HostNo, change: Change, complete: u64) {
        let memory = &mut self.copies[host].memory;
        if let Some(conn) = memory.streams.get(&to).copied() {
            let unanswered = memory.unanswered.entry(to).or_default();
            unanswered.insert(change.number, change);
            let synced = memory.absent.news_of_syncs();
            let message = Message::Change {
                change,
                complete,
                synced,
            };
            self.send(conn, host, message);
        }
    }

    pub fn on_change(
        &mut self,
        host: HostNo,
        conn: usize,
        from: HostNo,
        change: Change,
        complete: u64,
        synced: &[CopySynced],
    ) {
        if self.copies[host].memory.incoming != Some(conn) {
            return;
        }
        self.copies[host].memory.absent.heard(synced);
        let now = self.clock(host);
        let epoch = self.as_named_here(host, change.epoch);
        let Some(core) = self.copies[host].core.as_mut() else {
            return;
        };
        let brick = World::brick(from);
        match core.received(brick, change.number, epoch, complete, now) {
            Err(why) => {
                self.trace(|| format!("host {host} refuses {}: {why}", change.number));
                self.copies[host].memory.incoming = None;
                self.break_conn(conn, 1, 20);
                return;
            }
            Ok(commands) => self.carry_out(host, commands),
        }
        let written = self.copies[host].memory.absent.received(brick, epoch);
        self.must_write(host, written.is_ok());
        let memory = &mut self.copies[host].memory;
        memory.absent.applied_by_up_to(brick, complete);
        memory.absent.fsync_ordered(&product_change(&change));
        if change.number <= memory.received_to {
            let answer = if memory.unapplied.contains(&change.number) {
                Answer::Held
            } else {
                Answer::Applied
            };
            // Applied later, it is answered where it is in the queue.
            if let Some(job) = memory.jobs.get_mut(&change.number) {
                job.stream = Some(conn);
            }
            return self.answer(host, conn, change.number, answer);
        }
        memory.received_to = change.number;
        memory.unapplied.insert(change.number);
        if change.step == Step::Sync {
            memory.syncs.push((change.number, conn));
            return self.sync_as_asked(host);
        }
        if !change.step.is_heal() {
            memory.kept.insert(change.number, change);
        }
        self.forget_complete(host);
        let stream = Some(conn);
        self.queue(host, Job { change, stream });
    }

    pub fn on_ack(&mut self, host: HostNo, from: HostNo, number: u64, answer: Answer, synced: u64) {
        let brick = World::brick(from);
        let memory = &mut self.copies[host].memory;
        if synced > 0 {
            memory.absent.confirmed(brick, synced);
            memory.synced.insert(from, synced);
        }
        if answer == Answer::Applied {
            memory.absent.applied_by(brick, number);
        }
        if answer != Answer::Held
            && let Some(unanswered) = memory.unanswered.get_mut(&from)
        {
            unanswered.remove(&number);
        }
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
            if copy.life == life.0 && copy.lacks(&change) {
                self.fail(format!(
                    "change {number} is answered and brick {brick} lacks it"
                ));
            }
        }
        if !change.step.is_memory_only() {
            let time = (change.time.secs, change.time.nanos);
            self.newest_time = self.newest_time.max(time);
        }
        if change.step == Step::Fsync && !self.is_split() {
            let version = self.copies[host].disk.cells[change.key as usize].version;
            let covered = self.fsynced.entry(change.key).or_default();
            // Only changes ordered before it.
            *covered = (*covered).max(if version < number { version } else { 0 });
        }
        self.answered_in = self.answered_in.max(epoch);
        let named = self.copies[host].core.as_ref().map(Core::epoch_ref);
        self.note_who_answers(host, named.unwrap_or_default());
        let memory = &mut self.copies[host].memory;
        if let Some(request) = memory.waiting.remove(&number) {
            memory.busy.remove(&request.session);
            if request.ask.is_fsync() {
                self.check_synced(host, change.key, number);
            }
            let outcome = match change.step {
                Step::Settled(outcome) => outcome,
                _ => Outcome::Done,
            };
            self.tell(host, &request, Told::Outcome(outcome), true);
        }
    }

    pub fn abandon(&mut self, host: HostNo, numbers: &[u64]) {
        for number in numbers {
            let memory = &mut self.copies[host].memory;
            if let Some(request) = memory.waiting.remove(number) {
                memory.busy.remove(&request.session);
                self.tell(host, &request, Told::Elsewhere(None), false);
            }
            // Commanded to be applied, it stays in its queue: every in-sync copy holds it.
            let memory = &mut self.copies[host].memory;
            if !memory.jobs.contains_key(number) && memory.unapplied.remove(number) {
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
            self.ensure_marks(host);
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
                let stream = None;
                self.queue(host, Job { change, stream });
            }
        }
        self.go_on_recovering(host, false);
    }
}
