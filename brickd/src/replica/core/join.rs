//! Streams between copies, healing, and the switch of a healed copy into the epoch.

use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::EpochRef;

use super::history::{self, Relation};
use super::{Behind, Command, Core, Incoming, Link, Role, Stage, Switch, Syncing};

/// A switch whose last answers take longer is given up for now: numbering must not stand still.
const SWITCH_DRAIN_MS: u64 = 2_000;
/// A stream that is not up is asked for again after this.
pub(super) const OPEN_RETRY_MS: u64 = 250;
/// What a copy said of itself counts for opening a stream while it is younger than this.
const STATE_FRESH_MS: u64 = 3_000;

impl Core {
    /// A stream this copy opened is up; the other end holds every change it was sent up to
    /// `last_number`. The driver resends what was not answered.
    pub fn stream_up(
        &mut self,
        brick: BrickId,
        incarnation: Incarnation,
        last_number: u64,
        now_ms: u64,
    ) -> Vec<Command> {
        let mut out = Vec::new();
        if let Some(link) = self
            .links
            .get_mut(&brick)
            .filter(|link| link.incarnation == incarnation)
        {
            link.up = true;
            link.heard_ms = link.heard_ms.max(now_ms);
            // It lacks a part of the predecessor's tail, which is sent before anything else.
            if let Some(behind) = &mut link.behind
                && last_number >= behind.number
            {
                link.behind = None;
            }
        } else if let Some(copy) = self
            .syncing
            .get_mut(&brick)
            .filter(|copy| copy.incarnation == incarnation)
        {
            copy.up = true;
            copy.unanswered.clear();
            out.push(Command::StartHeal(brick));
        } else {
            out.push(Command::CloseStream(brick));
        }
        self.flush(now_ms, &mut out);
        out
    }

    /// A stream this copy opened is down.
    pub fn stream_down(&mut self, brick: BrickId, now_ms: u64) -> Vec<Command> {
        let mut out = Vec::new();
        if let Some(link) = self.links.get_mut(&brick) {
            if link.up {
                link.up = false;
                link.down_ms = now_ms;
            }
        } else if self.syncing.get(&brick).is_some_and(|copy| copy.up) {
            self.pause_syncing(brick, now_ms, &mut out);
        }
        self.settle(now_ms, &mut out);
        out
    }

    /// A primary opens a stream to this copy.
    ///
    /// # Errors
    /// A sentence; the primary tries again.
    pub fn accepts_stream(
        &mut self,
        from: BrickId,
        incarnation: Incarnation,
        epoch: EpochRef,
        joined: bool,
        now_ms: u64,
    ) -> Result<Vec<Command>, String> {
        let mine = self.epoch_ref();
        match self.role {
            Role::Stopped(ref reason) => return Err(format!("this copy is stopped: {reason}")),
            Role::Split => return Err("this copy went on alone, as the other did".to_owned()),
            Role::Primary
            | Role::Recovering
            | Role::Starting
            | Role::Waiting(_)
            | Role::Out
            | Role::Syncing
            | Role::Backup => {}
        }
        if epoch != mine || self.storing.is_some() {
            if epoch.number > mine.number.max(self.newer.map_or(0, |newer| newer.number)) {
                // From here on nothing is served; the next tick steps down and asks the registry.
                self.newer = Some(epoch);
                self.next_read_ms = now_ms;
            }
            return Err(format!(
                "epoch {} is not known here: this copy is in epoch {}",
                epoch.number, mine.number
            ));
        }
        if self.newer.is_some() {
            return Err("a newer epoch than this one was heard of".to_owned());
        }
        if self.is_primary() {
            return Err(format!(
                "this copy is itself primary in epoch {}",
                mine.number
            ));
        }
        if self.epoch.primary != from.0 || history::listed(&self.epoch, from) != Some(incarnation) {
            return Err(format!(
                "brick {from} is not primary in epoch {}",
                mine.number
            ));
        }
        let listed = self.is_listed();
        if listed != joined {
            let word = if listed { "is" } else { "is not" };
            return Err(format!("this copy {word} in sync in epoch {}", mine.number));
        }
        let mut out = Vec::new();
        self.incoming = Some(Incoming { from, incarnation });
        let role = if listed { Role::Backup } else { Role::Syncing };
        self.become_role(role, &mut out);
        Ok(out)
    }

    /// A change came over the stream of the primary.
    ///
    /// # Errors
    /// A sentence: the change may not be applied, and the stream is closed.
    pub fn received(
        &mut self,
        from: BrickId,
        number: u64,
        epoch: EpochRef,
        complete: u64,
        now_ms: u64,
    ) -> Result<Vec<Command>, String> {
        let mut out = Vec::new();
        if !matches!(self.role, Role::Backup | Role::Syncing) {
            return Err(format!("this copy takes no changes: it is {:?}", self.role));
        }
        if self.incoming.is_none_or(|stream| stream.from != from) {
            return Err(format!("brick {from} has no stream to this copy"));
        }
        if epoch.number > self.epoch.number {
            // Its primary went on to an epoch that is on its way to this copy too.
            if self
                .storing
                .as_ref()
                .is_none_or(|storing| storing.epoch.primary != from.0)
            {
                self.heard_of(epoch, now_ms, &mut out);
            }
        } else if !self.knows(epoch) {
            return Err(format!("epoch {} is not one of this copy's", epoch.number));
        }
        if epoch.number >= self.epoch.number {
            let sender = self
                .incoming
                .map(|stream| (stream.from, stream.incarnation));
            self.heard_order_of = sender.filter(|_| self.epoch.primary == from.0);
        }
        self.last_number = self.last_number.max(number);
        if number > self.complete {
            self.received.insert(number);
        }
        if complete > self.complete {
            self.complete = complete;
            self.received = self.received.split_off(&(complete + 1));
        }
        Ok(out)
    }

    /// Nothing is marked any more for this syncing copy: the switch begins.
    pub fn heal_quiet(&mut self, brick: BrickId, now_ms: u64) -> Vec<Command> {
        let mut out = Vec::new();
        if let Some(copy) = self.syncing.get_mut(&brick) {
            copy.quiet = copy.up;
        }
        self.settle(now_ms, &mut out);
        out
    }

    /// A heal did not work; it is tried again later.
    pub fn heal_failed(&mut self, brick: BrickId, now_ms: u64) -> Vec<Command> {
        let mut out = Vec::new();
        self.give_up_syncing(brick, now_ms, &mut out);
        out
    }

    /// Begins the switch of a copy for which nothing is marked, one at a time.
    pub(super) fn begin_switch(&mut self, now_ms: u64) {
        if self.role != Role::Primary || self.switch.is_some() {
            return;
        }
        let healed = self.syncing.iter().find(|(_, copy)| copy.up && copy.quiet);
        self.switch = healed.map(|(brick, _)| Switch {
            brick: *brick,
            since_ms: now_ms,
            stage: Stage::Draining,
        });
    }

    /// Whether a table is to be sent to this copy: its heal is done and all is answered.
    pub fn awaits_table(&self, brick: BrickId) -> bool {
        self.switch
            .is_some_and(|switch| switch.brick == brick && switch.stage == Stage::Table)
    }

    /// This copy holds the table it was sent: from here on its answers are required.
    pub fn table_held(&mut self, brick: BrickId, now_ms: u64) -> Vec<Command> {
        let mut out = Vec::new();
        if let Some(switch) = &mut self.switch
            && switch.brick == brick
            && switch.stage == Stage::Table
            && let Some(copy) = self.syncing.remove(&brick)
        {
            switch.stage = Stage::Proposed;
            let link = Link {
                incarnation: copy.incarnation,
                up: true,
                down_ms: now_ms,
                heard_ms: now_ms,
                // It cannot be in the new epoch, nor ask for this place, before now.
                lease_ms: Some(now_ms),
                behind: None,
                failed: false,
            };
            self.links.insert(brick, link);
        }
        self.settle(now_ms, &mut out);
        out
    }

    /// Goes on with a switch: once all is answered, the table is sent. One that takes too long is
    /// given up for now, as numbering stands still.
    pub(super) fn drain_switch(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let Some(switch) = self.switch else { return };
        if switch.stage == Stage::Proposed {
            return;
        }
        let drained = self.pending.is_empty()
            && self
                .links
                .values()
                .all(|link| link.up && link.behind.is_none())
            && self
                .syncing
                .get(&switch.brick)
                .is_some_and(|copy| copy.unanswered.is_empty());
        let free = self.proposal.is_none() && !self.unseen;
        if switch.stage == Stage::Draining && drained && free {
            self.switch = Some(Switch {
                stage: Stage::Table,
                ..switch
            });
            out.push(Command::SendTable(switch.brick));
        } else if now_ms >= switch.since_ms + SWITCH_DRAIN_MS {
            self.switch = None;
            if switch.stage == Stage::Table {
                // A late word of this table must not be taken for one of the next.
                return self.give_up_syncing(switch.brick, now_ms, out);
            }
            if let Some(copy) = self.syncing.get_mut(&switch.brick) {
                copy.quiet = false;
            }
            out.push(Command::StartHeal(switch.brick));
        }
    }

    /// Asks for the streams that should be up and are not.
    pub(super) fn open_streams(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        if self.role != Role::Primary || now_ms < self.next_open_ms {
            return;
        }
        self.next_open_ms = now_ms + OPEN_RETRY_MS;
        for (to, link) in self.links.iter().filter(|(_, link)| !link.up) {
            let joined = history::listed(&self.epoch, *to) == Some(link.incarnation);
            out.push(Command::OpenStream {
                to: *to,
                incarnation: link.incarnation,
                joined,
            });
        }
        self.find_copies_to_heal(now_ms);
        for (to, copy) in &mut self.syncing {
            if !copy.up && now_ms >= copy.not_before_ms {
                let incarnation = copy.incarnation;
                out.push(Command::OpenStream {
                    to: *to,
                    incarnation,
                    joined: false,
                });
            }
        }
    }

    /// Copies that answered lately, are not in sync and may be healed from this one.
    fn find_copies_to_heal(&mut self, now_ms: u64) {
        let bricks = self
            .view
            .as_ref()
            .map_or(Vec::new(), |view| view.bricks.clone());
        for brick in bricks {
            if brick == self.me || self.links.contains_key(&brick) {
                continue;
            }
            let Some(seen) = self.states.get(&brick) else {
                continue;
            };
            let life = Incarnation(seen.state.incarnation);
            let theirs = seen.state.epoch.unwrap_or_default();
            let relation = self.relation_to(theirs, &seen.state.history);
            let heals = now_ms < seen.at_ms + STATE_FRESH_MS
                && matches!(relation, Relation::Same | Relation::Older)
                && !self.dead.contains_key(&(brick, life))
                && history::listed(&self.epoch, brick) != Some(life);
            match self.syncing.get(&brick) {
                Some(copy) if copy.up || copy.incarnation == life && heals => {}
                _ if heals => {
                    let copy = Syncing {
                        incarnation: life,
                        up: false,
                        unanswered: Default::default(),
                        not_before_ms: now_ms,
                        quiet: false,
                    };
                    self.syncing.insert(brick, copy);
                }
                _ => {
                    self.syncing.remove(&brick);
                }
            }
        }
    }

    /// What each remaining copy must answer of its predecessor's changes before reads go out.
    pub(super) fn expect_tail(&mut self, number: u64, now_ms: u64) {
        for link in self.links.values_mut() {
            link.behind = Some(Behind {
                number,
                since_ms: now_ms,
            });
            link.up = false;
            link.down_ms = now_ms;
        }
    }

    /// Whether the epoch lists this copy in this life.
    pub(super) fn is_listed(&self) -> bool {
        history::listed(&self.epoch, self.me) == Some(self.incarnation)
    }
}
