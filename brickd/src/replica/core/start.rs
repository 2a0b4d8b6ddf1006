//! A copy that starts: what it may do, and for whom it waits.

use std::collections::{BTreeMap, BTreeSet};

use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::{CopySynced, EpochRef};
use mortar_proto::registry::{Copy, Epoch};

use super::history::{self, Relation, reference};
use super::{Command, Core, Death, Gone, PartnerState, Proposal, Role, Seen, Timing, Votes};
use crate::brick::store::StoredState;

/// Listed bricks that restarted take over one after the other, this far apart.
const TAKEOVER_TURN_MS: u64 = 500;
/// A copy that cannot decide for this long says what it waits for.
const SAY_WAITING_MS: u64 = 1_000;

impl Core {
    /// A brick starts, with what its `.mortar/volume` holds. `seed` makes the ids of the epochs it
    /// proposes: random, new at each start.
    pub fn start(
        me: BrickId,
        incarnation: Incarnation,
        stored: &StoredState,
        timing: Timing,
        seed: u64,
        now_ms: u64,
    ) -> (Core, Vec<Command>) {
        let epoch = stored.epoch.clone().unwrap_or_default();
        let alone = stored.alone.is_some() && stored.alone == Some(reference(&epoch));
        let core = Core {
            me,
            incarnation,
            timing,
            random: seed,
            role: Role::Starting,
            epoch,
            history: history::extended(&stored.history, []),
            alone,
            unseen: alone,
            lone: Vec::new(),
            newer: None,
            storing: None,
            proposal: None,
            view: None,
            synced_at_start: Some(stored.synced),
            rolled_back: false,
            fresh: false,
            started_ms: now_ms,
            ticked_ms: now_ms,
            entered_ms: now_ms,
            next_read_ms: now_ms + timing.propose_retry_ms,
            next_query_ms: now_ms,
            next_beacon_ms: now_ms,
            next_open_ms: now_ms,
            dead: BTreeMap::new(),
            states: BTreeMap::new(),
            eligible_ms: None,
            last_number: stored.last_number,
            complete: 0,
            pending: BTreeMap::new(),
            links: BTreeMap::new(),
            syncing: BTreeMap::new(),
            switch: None,
            hand_over: false,
            trusted: false,
            last_beacon_ms: now_ms,
            client_heard_ms: None,
            client_here_ms: None,
            incoming: None,
            received: BTreeSet::new(),
            heard_order_of: None,
        };
        (core, vec![Command::ReadRegistry])
    }

    /// Another copy said what it is. Pass only the answer to the newest query.
    pub fn copy_state(&mut self, state: PartnerState, now_ms: u64) -> Vec<Command> {
        let mut out = Vec::new();
        let brick = BrickId(state.brick);
        let life = Incarnation(state.incarnation);
        let theirs = state.epoch.unwrap_or_default();
        // It answers in another life than the one an epoch in use lists: that one is over.
        let lives = [
            history::listed(&self.epoch, brick),
            self.links.get(&brick).map(|link| link.incarnation),
        ];
        for old in lives.into_iter().flatten().filter(|old| *old != life) {
            let how = Gone::Goodbye { process: false };
            self.remember_dead(brick, old, Death { how, at_ms: now_ms });
        }
        self.compare_with_my_past(&state);
        match self.relation_to(theirs, &state.history) {
            Relation::Newer => self.heard_of(theirs, now_ms, &mut out),
            // Both went alone. A copy that has the registry's word behind it goes on, or else the
            // one that was primary before; the other is closed, with its version.
            Relation::Diverged if self.unseen || self.alone => {
                let known = self.storing.is_some() || self.role == Role::Split;
                if !known && !self.is_base() {
                    self.split(&mut out);
                }
            }
            Relation::Diverged => self.go_on_beside(theirs, now_ms, &mut out),
            Relation::Same | Relation::Older => {}
        }
        self.states.insert(
            brick,
            Seen {
                state,
                at_ms: now_ms,
            },
        );
        self.settle(now_ms, &mut out);
        out
    }

    /// Another copy remembers of this one's former lives how far it had synced. Syncs of this life
    /// say nothing of that.
    fn compare_with_my_past(&mut self, state: &PartnerState) {
        let mine = |synced: &&CopySynced| synced.brick == self.me.0;
        let known = state.recorded.iter().find(mine);
        if let (Some(known), Some(mine)) = (known, self.synced_at_start) {
            self.rolled_back |= known.number > mine;
        }
    }

    /// The operator says that this brick's copy is the one to go on with (`volume start V force
    /// BRICK`). On a primary: that what another copy did alone is given up.
    pub fn operator_trusts_me(&mut self, now_ms: u64) -> Vec<Command> {
        let mut out = Vec::new();
        if !matches!(self.role, Role::Stopped(_)) {
            self.trusted = true;
        }
        self.settle(now_ms, &mut out);
        out
    }

    /// What this copy did alone, up to the epoch named, is merged here. `false`: it has gone on
    /// since, or this copy does not serve any more.
    pub fn merged(&mut self, brick: BrickId, epoch: EpochRef) -> bool {
        let known = self.states.get(&brick);
        let settled =
            self.role == Role::Primary && known.is_some_and(|seen| seen.state.epoch == Some(epoch));
        self.trusted |= settled;
        settled
    }

    /// Proposes what the operator said, as soon as nothing else is on its way.
    pub(super) fn settle_trust(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let me = Copy {
            brick: self.me.0,
            incarnation: self.incarnation.0,
        };
        if let Some(proposal) = &mut self.proposal {
            let settles = proposal.next.in_sync == [me];
            proposal.forced |= settles;
            self.trusted &= !settles;
            return;
        }
        self.trusted = false;
        let in_sync = if self.is_primary() {
            self.epoch.in_sync.clone()
        } else {
            vec![me]
        };
        let registry = self
            .view
            .as_ref()
            .map(|view| view.epoch.clone())
            .unwrap_or_default();
        let expect = reference(&registry);
        // Whatever way another copy went is named as an ancestor: so it knows that it is decided.
        let mut lone = self.lone.clone();
        let others = self.states.values().filter_map(|seen| seen.state.epoch);
        lone.extend(others.chain(self.newer).map(|epoch| Epoch {
            number: epoch.number,
            id: epoch.id,
            ..Epoch::default()
        }));
        lone.push(self.epoch.clone());
        lone.retain(|epoch| {
            let named = reference(epoch);
            let known = self.history.contains(&named) && named.number < registry.number;
            epoch.number > 0 && named != expect && !known
        });
        lone.sort_by_key(|epoch| (epoch.number, epoch.id));
        lone.dedup_by_key(|epoch| reference(epoch));
        let newest = lone.iter().map(|epoch| epoch.number).max().unwrap_or(0);
        let next = self.next_epoch(newest.max(registry.number), in_sync, self.me);
        self.newer = None;
        let proposal = Proposal {
            expect,
            next,
            lone,
            sent_ms: now_ms,
            no_quorum: false,
            forced: true,
        };
        self.propose(proposal, out);
    }

    /// What a copy does that is not in sync and not being healed.
    pub(super) fn settle_start(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        if self.proposal.is_some() {
            return;
        }
        if self.fresh && self.epoch.number == 0 {
            return self.settle_first_start(now_ms, out);
        }
        let Some(view) = &self.view else {
            return self.say_waiting(now_ms, "waiting for the registry's answer".to_owned(), out);
        };
        if view.votes == Votes::Quorum && !self.fresh {
            let reason = "waiting for the registry: no quorum of its voters has answered";
            return self.say_waiting(now_ms, reason.to_owned(), out);
        }
        if history::listed(&self.epoch, self.me).is_none() && self.fresh {
            return self.settle_out(now_ms, out);
        }
        let unknown = self.copies_not_known_dead();
        if let Some(brick) = unknown.first() {
            self.eligible_ms = None;
            if self.serves_alone_again(now_ms) {
                return self.go_alone(out);
            }
            if unknown
                .iter()
                .any(|brick| self.is_known_alive(*brick, now_ms))
            {
                return self.become_role(Role::Out, out);
            }
            let reason = format!("waiting for brick {brick}: it may hold newer data");
            return self.say_waiting(now_ms, reason, out);
        }
        if self.rolled_back {
            let reason = "its disk holds an older state than this brick once had: waiting for a \
                          copy with the newer one";
            return self.say_waiting(now_ms, reason.to_owned(), out);
        }
        if !self.fresh {
            if self.serves_alone_again(now_ms) {
                return self.go_alone(out);
            }
            let reason = "waiting for the registry: both of its voters are needed".to_owned();
            return self.say_waiting(now_ms, reason, out);
        }
        self.take_over(now_ms, out);
    }

    /// Not a copy of the newest epoch: whoever is primary heals it.
    fn settle_out(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let primary = BrickId(self.epoch.primary);
        if self.is_known_alive(primary, now_ms) {
            return self.become_role(Role::Out, out);
        }
        let reason = format!("waiting for brick {primary}: it holds newer data");
        self.say_waiting(now_ms, reason, out);
    }

    /// Listed copies, other than this one, that are not proven to be over; with two voters also
    /// those whose own history is not known.
    fn copies_not_known_dead(&self) -> Vec<BrickId> {
        let others = self
            .epoch
            .in_sync
            .iter()
            .map(history::pair)
            .filter(|(b, _)| *b != self.me);
        others
            .filter(|(brick, life)| {
                let dead = self.dead.contains_key(&(*brick, *life));
                let compared = self.states.get(brick).is_some_and(|seen| {
                    let theirs = seen.state.epoch.unwrap_or_default();
                    let relation = self.relation_to(theirs, &seen.state.history);
                    Incarnation(seen.state.incarnation) != *life
                        && matches!(relation, Relation::Same | Relation::Older)
                });
                !dead || self.votes() == Votes::Two && !compared
            })
            .map(|(brick, _)| brick)
            .collect()
    }

    /// It answered lately, in the life that the epoch lists.
    fn is_known_alive(&self, brick: BrickId, now_ms: u64) -> bool {
        self.states.get(&brick).is_some_and(|seen| {
            let life = Incarnation(seen.state.incarnation);
            history::listed(&self.epoch, brick) == Some(life)
                && !self.dead.contains_key(&(brick, life))
                && now_ms < seen.at_ms + self.timing.ping_timeout_ms
        })
    }

    /// Two voters, no registry: only a copy that had gone alone before it restarted may go on.
    fn serves_alone_again(&self, now_ms: u64) -> bool {
        self.votes() == Votes::Two
            && self.alone
            && self.view.is_some()
            && !self.fresh
            && history::listed(&self.epoch, self.me).is_some()
            && now_ms >= self.started_ms + self.timing.ping_timeout_ms
    }

    /// No listed incarnation lives and this is a listed brick: it takes over, after those that
    /// should rather.
    fn take_over(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let listed: Vec<u64> = self.epoch.in_sync.iter().map(|copy| copy.brick).collect();
        let before = |brick: &&u64| **brick != self.epoch.primary;
        let turn = if self.alone || self.epoch.primary == self.me.0 {
            0
        } else {
            listed
                .iter()
                .filter(before)
                .position(|brick| *brick == self.me.0)
                .unwrap_or(0)
                + 1
        } as u64;
        let since_ms = *self.eligible_ms.get_or_insert(now_ms);
        if now_ms < since_ms + turn * TAKEOVER_TURN_MS {
            return;
        }
        let me = Copy {
            brick: self.me.0,
            incarnation: self.incarnation.0,
        };
        self.propose_members(vec![me], self.me, now_ms, out);
    }

    /// The set was never started: the first brick makes epoch 1 with all whose state is known.
    fn settle_first_start(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let Some(view) = &self.view else { return };
        let Some(turn) = view.bricks.iter().position(|brick| *brick == self.me) else {
            return;
        };
        let mut in_sync = Vec::new();
        for brick in &view.bricks {
            if *brick == self.me {
                in_sync.push(Copy {
                    brick: self.me.0,
                    incarnation: self.incarnation.0,
                });
            } else if let Some(seen) = self.states.get(brick)
                && now_ms < seen.at_ms + self.timing.ping_timeout_ms
                && seen.state.epoch.unwrap_or_default().number == 0
            {
                in_sync.push(Copy {
                    brick: brick.0,
                    incarnation: seen.state.incarnation,
                });
            }
        }
        let complete = in_sync.len() == view.bricks.len();
        let patience_ms = self.timing.first_start_ms * (turn as u64 + 1);
        if complete && turn == 0 || now_ms >= self.started_ms + patience_ms {
            self.propose_members(in_sync, self.me, now_ms, out);
        }
    }

    fn say_waiting(&mut self, now_ms: u64, reason: String, out: &mut Vec<Command>) {
        if now_ms >= self.started_ms + SAY_WAITING_MS {
            self.become_role(Role::Waiting(reason), out);
        }
    }

    /// Another copy went its own way, and this one is the registry's: what was thought to be a
    /// newer epoch is none.
    fn go_on_beside(&mut self, theirs: EpochRef, now_ms: u64, out: &mut Vec<Command>) {
        if self.newer != Some(theirs) {
            return;
        }
        self.newer = None;
        let me = Copy {
            brick: self.me.0,
            incarnation: self.incarnation.0,
        };
        if self.role == Role::Out && self.epoch.in_sync == [me] {
            let same = self.epoch.clone();
            self.begin_recovery(&same, now_ms, out);
        }
    }

    /// A newer epoch is heard of, which the registry may not know: its maker is waited for.
    pub(super) fn await_newer(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let Some(newer) = self.newer else { return };
        let silent_ms = self.timing.ping_timeout_ms + self.timing.witness_ms;
        let orphaned = self.role == Role::Backup && now_ms >= self.last_beacon_ms + silent_ms;
        if orphaned || matches!(self.role, Role::Starting | Role::Waiting(_)) {
            let holder = self
                .states
                .iter()
                .find(|(_, seen)| seen.state.epoch == Some(newer));
            let reason = match holder {
                Some((brick, _)) => format!("waiting for brick {brick}: it holds newer data"),
                None => format!("waiting for the registry to show epoch {}", newer.number),
            };
            self.say_waiting(now_ms, reason, out);
        }
    }
}
