//! Learning epochs, storing them, acting in them.

use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::EpochRef;
use mortar_proto::registry::{Copy, Epoch};

use super::history::{self, Relation, extended, reference};
use super::{Command, Core, Link, Proposed, RegistryView, Role, Storing, TAKEOVER_GAP};

/// Epoch numbers below this have a range of 2^40 change numbers each, so that even a copy that
/// lost what it knew of the highest number uses none again.
const RANGED_EPOCHS: u64 = 1 << 23;
const RANGE_BITS: u32 = 40;

impl Core {
    /// The registry's word on the set: after a read that was asked for, or pushed.
    pub fn view(&mut self, view: RegistryView, now_ms: u64) -> Vec<Command> {
        let mut out = Vec::new();
        self.fresh |= view.linearizable;
        if self.view.is_none() {
            self.next_query_ms = now_ms;
        }
        let theirs = reference(&view.epoch);
        let relation = self.relation_to(theirs, &view.history);
        match relation {
            Relation::Same => self.confirmed(now_ms, &mut out),
            Relation::Newer => {
                self.adopt(view.epoch.clone(), view.history.clone(), &mut out);
            }
            // A peer's applied state may lag; a linearizable read does not.
            Relation::Older => self.unseen |= view.linearizable && self.epoch.number > 0,
            Relation::Diverged => {
                let lags = !view.linearizable && theirs.number < self.epoch.number;
                if self.alone && self.is_mine_alone(&view.epoch) {
                    self.supersede(&view, &mut out);
                } else if !lags {
                    self.split(&mut out);
                }
            }
        }
        let lags = !view.linearizable
            && self
                .view
                .as_ref()
                .is_some_and(|known| known.epoch.number > theirs.number);
        match &mut self.view {
            Some(known) if lags => {
                known.bricks = view.bricks;
                known.votes = view.votes;
            }
            known => *known = Some(view),
        }
        self.forget_strangers(&mut out);
        self.settle(now_ms, &mut out);
        out
    }

    /// What came of the proposal that replaces `expect`.
    pub fn proposed(&mut self, expect: EpochRef, what: Proposed, now_ms: u64) -> Vec<Command> {
        let mut out = Vec::new();
        let current = self
            .proposal
            .as_ref()
            .is_some_and(|proposal| proposal.expect == expect);
        if current {
            match what {
                Proposed::Committed => self.committed(&mut out),
                Proposed::Refused(epoch) => self.refused(epoch, now_ms, &mut out),
                Proposed::NoQuorum => {
                    if let Some(proposal) = &mut self.proposal {
                        proposal.no_quorum = true;
                    }
                }
            }
        }
        self.settle(now_ms, &mut out);
        out
    }

    /// The epoch is durable in `.mortar/volume`.
    pub fn stored(&mut self, epoch: EpochRef, now_ms: u64) -> Vec<Command> {
        let mut out = Vec::new();
        let ours = |storing: &mut Storing| reference(&storing.epoch) == epoch;
        if let Some(storing) = self.storing.take_if(ours) {
            self.enter(storing, now_ms, &mut out);
        }
        self.settle(now_ms, &mut out);
        out
    }

    /// All received changes are applied, the longest tail of the others too; `last_number` is the
    /// highest number among them.
    pub fn recovered(&mut self, last_number: u64, now_ms: u64) -> Vec<Command> {
        let mut out = Vec::new();
        if self.role != Role::Recovering || self.newer.is_some() {
            return out;
        }
        let fetched = (last_number > self.last_number).then_some(last_number);
        let tail = fetched.max(self.received.last().copied());
        let known = self.last_number.max(last_number);
        self.last_number = known + TAKEOVER_GAP;
        if self.epoch.number < RANGED_EPOCHS {
            self.last_number = self.last_number.max(self.epoch.number << RANGE_BITS);
        }
        self.received.clear();
        if let Some(number) = tail {
            self.expect_tail(number, now_ms);
        }
        for link in self.links.values_mut() {
            link.down_ms = now_ms;
        }
        self.become_role(Role::Primary, &mut out);
        self.next_open_ms = now_ms;
        self.flush(now_ms, &mut out);
        self.settle(now_ms, &mut out);
        out
    }

    /// Takes an epoch of the registry's as the newest: stores it, then acts in it.
    pub(super) fn adopt(&mut self, epoch: Epoch, history: Vec<EpochRef>, out: &mut Vec<Command>) {
        let newest = self
            .storing
            .as_ref()
            .map_or(&self.epoch, |storing| &storing.epoch);
        if epoch.number <= newest.number {
            return;
        }
        if self.is_beside_newer(&epoch, &history) {
            return self.split(out);
        }
        let mine = self
            .proposal
            .as_ref()
            .is_some_and(|proposal| proposal.next == epoch);
        if mine {
            return self.committed(out);
        }
        let serves = epoch.primary == self.me.0
            && history::listed(&epoch, self.me) == Some(self.incarnation);
        if self.is_primary() && !serves {
            self.lose_primaryship(out);
            self.become_role(Role::Out, out);
        }
        // Whatever this copy proposed replaces an epoch that is replaced.
        self.proposal = None;
        let history = extended(&history, []);
        self.store(
            Storing {
                epoch,
                history,
                alone: false,
                unseen: false,
                lone: Vec::new(),
            },
            out,
        );
    }

    /// Another copy is known to be in an epoch that is no ancestor of this one: it went alone
    /// before the registry decided, perhaps late, what a copy had proposed.
    fn is_beside_newer(&self, epoch: &Epoch, history: &[EpochRef]) -> bool {
        self.newer.is_some_and(|newer| {
            newer.number <= epoch.number && newer != reference(epoch) && !history.contains(&newer)
        })
    }

    /// The registry holds what this copy proposed.
    fn committed(&mut self, out: &mut Vec<Command>) {
        let Some(proposal) = self.proposal.take() else {
            return;
        };
        if self.is_beside_newer(
            &proposal.next,
            &proposal.lone.iter().map(reference).collect::<Vec<_>>(),
        ) {
            return self.split(out);
        }
        if reference(&proposal.next) == self.epoch_ref() {
            // A correction. The word that ends going alone is a view that shows it.
            self.unseen = false;
            out.push(Command::ReadRegistry);
            return;
        }
        let before = [proposal.expect]
            .into_iter()
            .chain(proposal.lone.iter().map(reference));
        let history = extended(&self.history, before.chain([self.epoch_ref()]));
        let storing = Storing {
            epoch: proposal.next,
            history,
            alone: false,
            unseen: false,
            lone: Vec::new(),
        };
        self.store(storing, out);
    }

    /// Whether nobody but this life of this copy may ever have acted in an epoch.
    fn is_mine_alone(&self, epoch: &Epoch) -> bool {
        let me = Copy {
            brick: self.me.0,
            incarnation: self.incarnation.0,
        };
        epoch.in_sync == [me] && epoch.primary == self.me.0
    }

    /// The registry was given an epoch with this copy alone (by a primary that gave its place
    /// away) while this copy went alone in another: nothing was done in the former. A new one
    /// follows on both.
    fn supersede(&mut self, view: &RegistryView, out: &mut Vec<Command>) {
        if self.storing.is_some() || !self.is_mine_alone(&self.epoch) {
            return;
        }
        self.proposal = None;
        let theirs = reference(&view.epoch);
        let (in_sync, mine) = (self.epoch.in_sync.clone(), self.epoch.clone());
        let epoch = self.next_epoch(mine.number.max(theirs.number), in_sync, self.me);
        let history = extended(&self.history, [reference(&mine), theirs]);
        let mut lone = self.lone.clone();
        lone.push(mine);
        self.store(
            Storing {
                epoch,
                history,
                alone: true,
                unseen: true,
                lone,
            },
            out,
        );
    }

    fn refused(&mut self, current: Epoch, now_ms: u64, out: &mut Vec<Command>) {
        let Some(proposal) = &self.proposal else {
            return;
        };
        if reference(&proposal.next) == reference(&current) {
            return self.committed(out);
        }
        self.proposal = None;
        if current.number > self.epoch.number {
            self.heard_of(reference(&current), now_ms, out);
        } else if reference(&current) != self.epoch_ref() {
            if self.knows(reference(&current)) {
                self.unseen = true;
            } else {
                self.split(out);
            }
            if let Some(view) = &mut self.view {
                view.epoch = current;
            }
        }
        self.read_registry(now_ms, out);
    }

    /// The registry shows the epoch that this copy is in. If it was closed because another went
    /// alone too, it is the side that goes on.
    fn confirmed(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        self.unseen = false;
        self.lone.clear();
        if self.alone {
            self.alone = false;
            out.push(Command::Store {
                epoch: self.epoch.clone(),
                history: self.history.clone(),
                alone: false,
            });
        }
        if self.role == Role::Split && self.is_listed() && self.epoch.primary == self.me.0 {
            let same = self.epoch.clone();
            self.begin_recovery(&same, now_ms, out);
        }
    }

    /// Of two sides that both went alone, whether this is the one to go on with: the registry still
    /// shows the epoch in which they were one, and this copy was its primary.
    pub(super) fn is_base(&self) -> bool {
        self.view.as_ref().is_some_and(|view| {
            let common = reference(&view.epoch);
            view.epoch.primary == self.me.0 && common != self.epoch_ref() && self.knows(common)
        })
    }

    /// The registry, or another copy, went another way than this one did.
    pub(super) fn split(&mut self, out: &mut Vec<Command>) {
        if matches!(self.role, Role::Split | Role::Stopped(_)) {
            return;
        }
        if self.is_primary() {
            self.lose_primaryship(out);
        }
        self.proposal = None;
        self.incoming = None;
        self.become_role(Role::Split, out);
    }

    pub(super) fn store(&mut self, storing: Storing, out: &mut Vec<Command>) {
        out.push(Command::Store {
            epoch: storing.epoch.clone(),
            history: storing.history.clone(),
            alone: storing.alone,
        });
        self.storing = Some(storing);
    }

    /// Acts in an epoch that is stored.
    fn enter(&mut self, storing: Storing, now_ms: u64, out: &mut Vec<Command>) {
        let old = std::mem::replace(&mut self.epoch, storing.epoch);
        self.history = storing.history;
        self.alone = storing.alone;
        self.unseen = storing.unseen;
        self.lone = storing.lone;
        self.entered_ms = now_ms;
        self.next_query_ms = now_ms;
        self.eligible_ms = None;
        if self
            .newer
            .is_some_and(|newer| newer.number <= self.epoch.number)
        {
            self.newer = None;
        }
        if matches!(self.role, Role::Stopped(_)) {
            self.hand_over &= self.is_listed() && self.epoch.primary == self.me.0;
            return;
        }
        let was_serving = self.is_primary();
        if self.is_listed() && self.epoch.primary == self.me.0 {
            if was_serving {
                self.change_members(&old, now_ms, out);
            } else {
                self.begin_recovery(&old, now_ms, out);
            }
            return;
        }
        if was_serving {
            self.lose_primaryship(out);
        }
        if self.is_listed() {
            self.mark_lost(&old, out);
            self.last_beacon_ms = now_ms;
            self.keep_stream_of_primary();
            let stays = self.role == Role::Backup;
            self.become_role(Role::Backup, out);
            // The driver must learn of a copy that is back also where the role stays the same.
            let is_new = |copy: &Copy| !old.in_sync.contains(copy);
            if stays && self.epoch.in_sync.iter().any(is_new) {
                out.push(Command::RoleChanged(Role::Backup));
            }
        } else {
            let healing = self.role == Role::Syncing;
            self.keep_stream_of_primary();
            let role = if healing && self.incoming.is_some() {
                Role::Syncing
            } else {
                Role::Out
            };
            self.become_role(role, out);
        }
    }

    /// A stream of somebody who is not the primary any more counts for nothing.
    fn keep_stream_of_primary(&mut self) {
        let epoch = &self.epoch;
        self.incoming = self.incoming.filter(|stream| {
            epoch.primary == stream.from.0
                && history::listed(epoch, stream.from) == Some(stream.incarnation)
        });
    }

    /// Still primary, with other copies in sync than before.
    fn change_members(&mut self, old: &Epoch, now_ms: u64, out: &mut Vec<Command>) {
        for (brick, life) in old.in_sync.iter().map(history::pair) {
            let stays = history::listed(&self.epoch, brick) == Some(life);
            if stays || brick == self.me {
                continue;
            }
            self.links.remove(&brick);
            let unanswered = self.stop_waiting_for(brick);
            out.push(Command::Mark {
                brick,
                epoch: reference(old),
                unanswered,
            });
            if self.role == Role::Recovering {
                // It has not given its tail, and may hold more of it than any other copy.
                out.push(Command::Doubt {
                    brick,
                    epoch: reference(old),
                    cleared_by: None,
                });
            }
            out.push(Command::CloseStream(brick));
        }
        let joined: Vec<_> = self
            .epoch
            .in_sync
            .iter()
            .map(history::pair)
            .filter(|(brick, life)| history::listed(old, *brick) != Some(*life))
            .collect();
        for (brick, life) in joined {
            if self.switch.is_some_and(|switch| switch.brick == brick) {
                self.switch = None;
            }
            if brick != self.me && self.links.contains_key(&brick) {
                out.push(Command::StopHeal(brick));
            } else if brick != self.me {
                // Cannot happen while this copy alone proposes; then its silence is measured.
                self.links.insert(brick, Link::new(life, now_ms));
            }
        }
        self.flush(now_ms, out);
        if self.role == Role::Recovering {
            out.push(Command::Recover);
        }
    }

    pub(super) fn begin_recovery(&mut self, old: &Epoch, now_ms: u64, out: &mut Vec<Command>) {
        self.mark_lost(old, out);
        self.incoming = None;
        self.hand_over = false;
        self.links = self
            .epoch
            .in_sync
            .iter()
            .map(history::pair)
            .filter(|(brick, _)| *brick != self.me)
            .map(|(brick, life)| (brick, Link::new(life, now_ms)))
            .collect();
        self.next_beacon_ms = now_ms;
        self.become_role(Role::Recovering, out);
        out.push(Command::Recover);
    }

    /// Marks for whoever was in sync and is not, as each in-sync copy keeps them.
    fn mark_lost(&self, old: &Epoch, out: &mut Vec<Command>) {
        for (brick, life) in old.in_sync.iter().map(history::pair) {
            if brick != self.me && history::listed(&self.epoch, brick) != Some(life) {
                out.push(Command::Mark {
                    brick,
                    epoch: reference(old),
                    unanswered: self.tail(),
                });
                self.doubt_lost(brick, life, old, out);
            }
        }
    }

    /// A copy that went out with another primary than this one may hold changes that this one
    /// never received. Not if it was that primary: it has applied only what all copies hold, but
    /// for what it took over from another, and that it sends before anything of its own.
    fn doubt_lost(&self, brick: BrickId, life: Incarnation, old: &Epoch, out: &mut Vec<Command>) {
        let was_primary = old.primary == brick.0;
        let shared = self.heard_order_of == Some((brick, life)) || old.number == 1;
        if was_primary && shared {
            return;
        }
        let goes_on = self.epoch.primary == old.primary && self.epoch.primary != self.me.0;
        let cleared_by = BrickId(old.primary);
        out.push(Command::Doubt {
            brick,
            epoch: reference(old),
            cleared_by: (goes_on && !was_primary).then_some(cleared_by),
        });
    }
}

impl Link {
    fn new(incarnation: Incarnation, now_ms: u64) -> Self {
        Link {
            incarnation,
            up: false,
            down_ms: now_ms,
            heard_ms: now_ms,
            lease_ms: None,
            behind: None,
            failed: false,
        }
    }
}
