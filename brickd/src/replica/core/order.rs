//! Numbering changes and counting their answers.

use std::collections::BTreeSet;

use mortar_common::BrickId;
use mortar_proto::data::EpochRef;

use super::{Answer, Command, Core, NotNow, Ordered, Pending, Role, WaitFor};

/// Changes in flight at most; beyond that an order waits.
pub const IN_FLIGHT_MAX: usize = 4096;

impl Core {
    /// Gives a change its number and says to whom it goes.
    ///
    /// # Errors
    /// [`NotNow`], when this copy is not the primary or cannot order at this moment.
    pub fn order(&mut self, wait: WaitFor, now_ms: u64) -> Result<Ordered, NotNow> {
        self.may_order(wait, now_ms)?;
        let number = self.last_number + 1;
        self.last_number = number;
        let mut commands = Vec::new();
        let to = match wait {
            WaitFor::Heal(brick) => {
                if let Some(copy) = self.syncing.get_mut(&brick) {
                    copy.unanswered.insert(number, now_ms);
                }
                vec![brick]
            }
            WaitFor::Nothing | WaitFor::Everyone => {
                let waited_for: BTreeSet<BrickId> = match wait {
                    WaitFor::Everyone => self.links.keys().copied().collect(),
                    _ => BTreeSet::new(),
                };
                let pending = Pending {
                    ordered_ms: now_ms,
                    to_hold: waited_for.clone(),
                    to_apply: waited_for,
                    apply_ms: None,
                    applied_here: false,
                };
                self.pending.insert(number, pending);
                self.flush(now_ms, &mut commands);
                self.send_to_all(number, now_ms)
            }
        };
        self.count_complete();
        Ok(Ordered {
            number,
            epoch: self.epoch_ref(),
            to,
            complete: self.complete,
            commands,
        })
    }

    /// A copy answered a change.
    pub fn answered(
        &mut self,
        from: BrickId,
        number: u64,
        answer: Answer,
        now_ms: u64,
    ) -> Vec<Command> {
        let mut out = Vec::new();
        if !self.is_primary() {
            return out;
        }
        if let Some(copy) = self.syncing.get_mut(&from) {
            match answer {
                Answer::Held => {}
                Answer::Applied => {
                    copy.unanswered.remove(&number);
                }
                Answer::Failed => self.give_up_syncing(from, now_ms, &mut out),
            }
            if self.switch.is_some() {
                self.settle(now_ms, &mut out);
            }
            return out;
        }
        let Some(link) = self.links.get_mut(&from) else {
            return out;
        };
        link.heard_ms = link.heard_ms.max(now_ms);
        if answer == Answer::Failed {
            link.failed = true;
            self.settle(now_ms, &mut out);
            return out;
        }
        if link.behind.is_some_and(|behind| number >= behind.number) {
            link.behind = None;
        }
        // A stream is ordered: who answers a change holds all before it.
        for pending in self
            .pending
            .range_mut(..=number)
            .map(|(_, pending)| pending)
        {
            pending.to_hold.remove(&from);
        }
        if answer == Answer::Applied
            && let Some(pending) = self.pending.get_mut(&number)
        {
            pending.to_apply.remove(&from);
        }
        self.flush(now_ms, &mut out);
        if self.switch.is_some() {
            self.settle(now_ms, &mut out);
        }
        out
    }

    /// The driver has applied this change here.
    pub fn applied(&mut self, number: u64, now_ms: u64) -> Vec<Command> {
        let mut out = Vec::new();
        if let Some(pending) = self.pending.get_mut(&number) {
            pending.applied_here = true;
            self.flush(now_ms, &mut out);
        }
        if self.switch.is_some() {
            self.settle(now_ms, &mut out);
        }
        out
    }

    fn may_order(&self, wait: WaitFor, now_ms: u64) -> Result<(), NotNow> {
        if self.role != Role::Primary || self.newer.is_some() {
            return Err(self.not_now());
        }
        if self.switch.is_some() || self.pending.len() >= IN_FLIGHT_MAX {
            return Err(NotNow::Wait);
        }
        match wait {
            // Answered without a backup's word: the lease must vouch for it.
            WaitFor::Nothing => self.may_read(now_ms),
            WaitFor::Everyone => Ok(()),
            WaitFor::Heal(brick) => match self.syncing.get(&brick) {
                Some(copy) if copy.up && copy.unanswered.len() < IN_FLIGHT_MAX => Ok(()),
                Some(copy) if copy.up => Err(NotNow::Wait),
                _ => Err(NotNow::Closed(format!("brick {brick} is not being healed"))),
            },
        }
    }

    /// Why this copy serves nothing now.
    pub(super) fn not_now(&self) -> NotNow {
        match &self.role {
            Role::Primary if self.newer.is_some() => NotNow::NotPrimary(None),
            Role::Primary | Role::Recovering | Role::Starting => NotNow::Wait,
            Role::Backup | Role::Syncing | Role::Out => NotNow::NotPrimary(self.primary()),
            Role::Waiting(reason) => NotNow::Closed(reason.clone()),
            Role::Split => NotNow::Closed(
                "both copies went on alone: choose one with 'volume start V force BRICK'"
                    .to_owned(),
            ),
            Role::Stopped(reason) => match self.primary() {
                Some(primary) if primary != self.me => NotNow::NotPrimary(Some(primary)),
                _ => NotNow::Closed(reason.clone()),
            },
        }
    }

    /// All that a change goes to; noted as sent to each syncing copy.
    fn send_to_all(&mut self, number: u64, now_ms: u64) -> Vec<BrickId> {
        let mut to: Vec<BrickId> = self.links.keys().copied().collect();
        for (brick, copy) in self.syncing.iter_mut().filter(|(_, copy)| copy.up) {
            copy.unanswered.insert(number, now_ms);
            to.push(*brick);
        }
        to
    }

    /// Applies and answers whatever waits for nobody any more.
    pub(super) fn flush(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let mut answered = Vec::new();
        for (number, pending) in &mut self.pending {
            if pending.apply_ms.is_none() && pending.to_hold.is_empty() {
                pending.apply_ms = Some(now_ms);
                out.push(Command::Apply(*number));
            }
            if pending.applied_here && pending.to_apply.is_empty() {
                answered.push(*number);
            }
        }
        for number in answered {
            self.pending.remove(&number);
            out.push(Command::Answer(number));
        }
        self.count_complete();
    }

    fn count_complete(&mut self) {
        let below = self
            .pending
            .keys()
            .next()
            .map_or(self.last_number, |first| first - 1);
        // Of a predecessor's changes a copy may still lack some.
        if self
            .links
            .values()
            .all(|link| link.up && link.behind.is_none())
        {
            self.complete = self.complete.max(below);
        }
    }

    /// Drops a copy from all that waits for it; what it has not confirmed as applied.
    pub(super) fn stop_waiting_for(&mut self, brick: BrickId) -> Vec<u64> {
        let mut unanswered = Vec::new();
        for (number, pending) in &mut self.pending {
            pending.to_hold.remove(&brick);
            if pending.to_apply.remove(&brick) {
                unanswered.push(*number);
            }
        }
        unanswered
    }

    /// A change's epoch, as the copies it was sent to should know it.
    pub(super) fn knows(&self, epoch: EpochRef) -> bool {
        epoch == self.epoch_ref() || self.history.contains(&epoch)
    }
}
