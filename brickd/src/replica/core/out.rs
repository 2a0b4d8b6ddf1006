//! Copies that are lost, and the end of this one.

use mortar_common::{BrickId, Incarnation};

use super::history::{self, reference};
use super::{Command, Core, Death, Gone, Role, Stage, Syncing};

/// Ends of incarnations remembered; of more, those that no epoch in use lists are forgotten.
const DEAD_MAX: usize = 64;
/// A copy whose heal failed is not tried again before this.
const HEAL_PAUSE_MS: u64 = 2_000;

impl Core {
    /// A copy is known to be gone, for good in this incarnation.
    pub fn gone(
        &mut self,
        brick: BrickId,
        life: Incarnation,
        how: Gone,
        now_ms: u64,
    ) -> Vec<Command> {
        let mut out = Vec::new();
        self.end_life(brick, life, how, now_ms, &mut out);
        self.settle(now_ms, &mut out);
        out
    }

    /// The process that ran a copy is known to be gone. What is known of the copy by now may be of
    /// the next process, and lives: only the lives that were in this one are over.
    pub fn process_gone(
        &mut self,
        brick: BrickId,
        process: Incarnation,
        how: Gone,
        now_ms: u64,
    ) -> Vec<Command> {
        let known = [
            self.links.get(&brick).map(|link| link.incarnation),
            history::listed(&self.epoch, brick),
            self.syncing.get(&brick).map(|copy| copy.incarnation),
        ];
        let mut out = Vec::new();
        for life in known.into_iter().flatten() {
            if life.is_of(process) {
                self.end_life(brick, life, how, now_ms, &mut out);
            }
        }
        self.settle(now_ms, &mut out);
        out
    }

    fn end_life(
        &mut self,
        brick: BrickId,
        life: Incarnation,
        how: Gone,
        now_ms: u64,
        out: &mut Vec<Command>,
    ) {
        self.remember_dead(brick, life, Death { how, at_ms: now_ms });
        if self
            .syncing
            .get(&brick)
            .is_some_and(|copy| copy.incarnation == life)
        {
            self.stop_syncing(brick, out);
            out.push(Command::CloseStream(brick));
        }
        let ended = |stream: &super::Incoming| (stream.from, stream.incarnation) == (brick, life);
        if self.incoming.as_ref().is_some_and(ended) {
            self.incoming = None;
            if self.role == Role::Syncing {
                self.become_role(Role::Out, out);
                self.read_registry(now_ms, out);
            }
        }
    }

    /// This copy's disk failed: final for this incarnation. A primary gives its place away; with
    /// two voters let the driver say goodbye for the brick, so that the other asks for it at once.
    pub fn disk_failed(&mut self, reason: String, now_ms: u64) -> Vec<Command> {
        let mut out = Vec::new();
        self.fail(reason, &mut out);
        self.settle(now_ms, &mut out);
        out
    }

    /// This copy is told to stop: it serves nothing more. The driver says goodbye to the others,
    /// of whom one asks for its place; giving the place away besides would race with that.
    pub fn stop(&mut self, now_ms: u64) -> Vec<Command> {
        let mut out = Vec::new();
        self.fail("the brick was stopped".to_owned(), &mut out);
        self.hand_over = false;
        self.settle(now_ms, &mut out);
        out
    }

    /// Steps down for good; a primary gives its place away.
    pub(super) fn fail(&mut self, reason: String, out: &mut Vec<Command>) {
        if matches!(self.role, Role::Stopped(_)) {
            return;
        }
        if self.is_primary() {
            self.lose_primaryship(out);
            // With two voters the other copy asks for the place itself, at a goodbye or after its
            // timeout: a proposal of this one could be decided late, after the other went alone.
            self.hand_over = !self.decides_alone();
        }
        self.incoming = None;
        self.become_role(Role::Stopped(reason), out);
    }

    /// Nothing that was ordered here is answered here any more; no stream goes out.
    pub(super) fn lose_primaryship(&mut self, out: &mut Vec<Command>) {
        let abandoned: Vec<u64> = std::mem::take(&mut self.pending).into_keys().collect();
        if !abandoned.is_empty() {
            out.push(Command::Abandon(abandoned));
        }
        self.switch = None;
        for brick in std::mem::take(&mut self.syncing).into_keys() {
            out.push(Command::StopHeal(brick));
            out.push(Command::CloseStream(brick));
        }
        for brick in std::mem::take(&mut self.links).into_keys() {
            out.push(Command::CloseStream(brick));
        }
    }

    /// Copies that do not belong to the set any more are healed no further and say nothing. One
    /// that the epoch still lists stays until it is put out.
    pub(super) fn forget_strangers(&mut self, out: &mut Vec<Command>) {
        let heals = self.syncing.keys();
        let strangers: Vec<BrickId> = heals
            .copied()
            .filter(|brick| self.is_stranger(*brick))
            .collect();
        for brick in strangers {
            self.stop_syncing(brick, out);
            out.push(Command::CloseStream(brick));
        }
        let mut states = std::mem::take(&mut self.states);
        states.retain(|brick, _| !self.is_stranger(*brick));
        self.states = states;
    }

    /// Whether a copy belongs neither to the set, as far as the registry is known, nor to the epoch.
    pub(super) fn is_stranger(&self, brick: BrickId) -> bool {
        let left = |view: &super::RegistryView| !view.bricks.contains(&brick);
        self.view.as_ref().is_some_and(left) && history::listed(&self.epoch, brick).is_none()
    }

    /// A healed copy fell away: what it was sent and did not answer is marked again.
    pub(super) fn stop_syncing(&mut self, brick: BrickId, out: &mut Vec<Command>) {
        if let Some(copy) = self.syncing.remove(&brick) {
            self.mark_again(brick, copy, out);
        }
        if self.switch.is_some_and(|switch| switch.brick == brick) {
            self.switch = None;
        }
    }

    /// Its stream broke: the copy stays known, to be opened again.
    pub(super) fn pause_syncing(&mut self, brick: BrickId, now_ms: u64, out: &mut Vec<Command>) {
        let Some(copy) = self.syncing.remove(&brick) else {
            return;
        };
        let again = Syncing {
            incarnation: copy.incarnation,
            up: false,
            unanswered: Default::default(),
            not_before_ms: copy.not_before_ms.max(now_ms),
            quiet: false,
        };
        self.mark_again(brick, copy, out);
        self.syncing.insert(brick, again);
        if let Some(switch) = self.switch.filter(|switch| switch.brick == brick) {
            self.switch = None;
            if switch.stage == Stage::Table {
                // The stream counts as that of a copy in sync since its table was sent: the same
                // one would be refused for ever. The next is a new one.
                out.push(Command::CloseStream(brick));
            }
        }
    }

    /// Ends a heal that did not work; it is tried again after a pause.
    pub(super) fn give_up_syncing(&mut self, brick: BrickId, now_ms: u64, out: &mut Vec<Command>) {
        if !self.syncing.contains_key(&brick) {
            return;
        }
        self.pause_syncing(brick, now_ms, out);
        if let Some(copy) = self.syncing.get_mut(&brick) {
            copy.not_before_ms = now_ms + HEAL_PAUSE_MS;
        }
        out.push(Command::CloseStream(brick));
    }

    fn mark_again(&mut self, brick: BrickId, copy: Syncing, out: &mut Vec<Command>) {
        if copy.up {
            if !copy.unanswered.is_empty() {
                out.push(Command::Mark {
                    brick,
                    epoch: reference(&self.epoch),
                    unanswered: copy.unanswered.into_keys().collect(),
                });
            }
            out.push(Command::StopHeal(brick));
        }
    }

    pub(super) fn remember_dead(&mut self, brick: BrickId, life: Incarnation, death: Death) {
        if (brick, life) == (self.me, self.incarnation) {
            return;
        }
        // A process that died took its vote along; a later, weaker word does not undo that.
        self.dead.entry((brick, life)).or_insert(death);
        if self.dead.len() > DEAD_MAX {
            let (epoch, links) = (&self.epoch, &self.links);
            self.dead.retain(|(brick, life), _| {
                history::listed(epoch, *brick) == Some(*life)
                    || links
                        .get(brick)
                        .is_some_and(|link| link.incarnation == *life)
            });
        }
    }

    /// Whether its vote in the registry is gone too.
    pub(super) fn died_with_its_vote(&self, brick: BrickId, life: Incarnation) -> bool {
        self.dead.get(&(brick, life)).is_some_and(|death| {
            matches!(
                death.how,
                Gone::ProcessDied | Gone::Goodbye { process: true }
            )
        })
    }
}
