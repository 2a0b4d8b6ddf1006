//! What this copy wants, looked at after each event: lost copies out, healed ones in, a lost
//! primary replaced, the registry put right.

use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::EpochRef;
use mortar_proto::registry::{Copy, Epoch};

use super::history::{self, extended, reference};
use super::{Command, Core, Proposal, Role, Stage, Storing, Votes};

/// Backups ask for the primary's place one after the other, this far apart.
const TURN_MS: u64 = 200;
/// Other copies are asked for their state this often.
const QUERY_MS: u64 = 500;
/// Ticks further apart than this mean that the process stood still.
const PAUSE_MS: u64 = 1_000;

impl Core {
    /// Time passed. Call it every 50 ms or so.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Command> {
        let mut out = Vec::new();
        self.forgive_silence_after_a_pause(now_ms);
        self.step_down(&mut out);
        if self.is_primary() && self.stalls_itself(now_ms) {
            let secs = self.timing.stall_timeout_ms / 1000;
            self.fail(
                format!("the disk has not finished a change for {secs} s"),
                &mut out,
            );
        }
        self.give_up_stalled_heals(now_ms, &mut out);
        if self.is_primary() && now_ms >= self.next_beacon_ms {
            self.next_beacon_ms = now_ms + self.timing.beacon_ms;
            for to in self.links.keys() {
                out.push(Command::Beacon {
                    to: *to,
                    sent: now_ms,
                });
            }
        }
        if self.wants_to_read(now_ms) {
            self.read_registry(now_ms, &mut out);
        }
        if now_ms >= self.next_query_ms {
            self.next_query_ms = now_ms + QUERY_MS;
            self.query_others(&mut out);
        }
        self.settle(now_ms, &mut out);
        out
    }

    /// This process stood still (a paused machine, a stopped process): the silence it measures is
    /// its own. What came meanwhile is read before anybody is thought lost.
    fn forgive_silence_after_a_pause(&mut self, now_ms: u64) {
        if now_ms >= self.ticked_ms + PAUSE_MS {
            self.forgive_silence(now_ms);
            self.wait_longer(now_ms - self.ticked_ms);
        }
        self.ticked_ms = now_ms;
    }

    /// What is under way here and elsewhere had no time meanwhile to come to its end: neither this
    /// copy's disk hangs for that, nor another's.
    fn wait_longer(&mut self, paused_ms: u64) {
        for pending in self.pending.values_mut() {
            pending.ordered_ms += paused_ms;
            if let Some(since_ms) = &mut pending.apply_ms {
                *since_ms += paused_ms;
            }
        }
        for link in self.links.values_mut() {
            if let Some(behind) = &mut link.behind {
                behind.since_ms += paused_ms;
            }
        }
        for copy in self.syncing.values_mut() {
            copy.unanswered
                .values_mut()
                .for_each(|since_ms| *since_ms += paused_ms);
        }
        if let Some(switch) = &mut self.switch {
            switch.since_ms += paused_ms;
        }
    }

    /// The silence of others begins anew: what was not heard until now proves nothing.
    pub(super) fn forgive_silence(&mut self, now_ms: u64) {
        self.last_beacon_ms = now_ms;
        for link in self.links.values_mut() {
            link.heard_ms = now_ms;
            link.down_ms = now_ms;
        }
        for seen in self.states.values_mut() {
            seen.at_ms = 0;
        }
    }

    /// Does what the state asks for.
    pub(super) fn settle(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        // Whichever event comes first after a pause: none may conclude from the silence in it.
        self.forgive_silence_after_a_pause(now_ms);
        if self.storing.is_some() {
            return;
        }
        if self.may_go_alone(now_ms) {
            self.go_alone(out);
            return;
        }
        if self.trusted {
            self.settle_trust(now_ms, out);
        }
        self.repeat_proposal(now_ms, out);
        if self.newer.is_some() {
            self.await_newer(now_ms, out);
            return;
        }
        match self.role {
            Role::Primary | Role::Recovering => self.settle_primary(now_ms, out),
            Role::Backup => self.settle_backup(now_ms, out),
            Role::Starting | Role::Waiting(_) | Role::Out => self.settle_start(now_ms, out),
            Role::Stopped(_) => self.settle_stopped(now_ms, out),
            Role::Syncing | Role::Split => {}
        }
    }

    fn settle_primary(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        if self.proposal.is_none() {
            self.correct_registry(now_ms, out);
        }
        self.begin_switch(now_ms);
        self.drain_switch(now_ms, out);
        if self.proposal.is_none() {
            let lost = self.lost_copies(now_ms);
            if lost.is_empty() {
                let waiting = self.links.iter().any(|(brick, link)| {
                    history::listed(&self.epoch, *brick) != Some(link.incarnation)
                });
                if waiting {
                    let mut in_sync = self.epoch.in_sync.clone();
                    in_sync.retain(|copy| !self.links.contains_key(&BrickId(copy.brick)));
                    in_sync.extend(self.links.iter().map(|(brick, link)| Copy {
                        brick: brick.0,
                        incarnation: link.incarnation.0,
                    }));
                    self.propose_members(in_sync, self.me, now_ms, out);
                }
            } else {
                self.put_out(&lost, now_ms, out);
            }
        } else {
            self.resume_without_quorum();
        }
        self.open_streams(now_ms, out);
    }

    /// A proposal whose outcome stays unknown must not keep numbering paused: the copy's answers
    /// are required already.
    fn resume_without_quorum(&mut self) {
        let no_quorum = self
            .proposal
            .as_ref()
            .is_some_and(|proposal| proposal.no_quorum);
        if no_quorum
            && self
                .switch
                .is_some_and(|switch| switch.stage == Stage::Proposed)
        {
            self.switch = None;
        }
    }

    fn put_out(&mut self, lost: &[BrickId], now_ms: u64, out: &mut Vec<Command>) {
        // One that no epoch lists yet, and no proposal can, is simply left again.
        for brick in lost {
            if history::listed(&self.epoch, *brick).is_none() && self.links.remove(brick).is_some()
            {
                let unanswered = self.stop_waiting_for(*brick);
                if self.switch.is_some_and(|switch| switch.brick == *brick) {
                    self.switch = None;
                }
                out.push(Command::Mark {
                    brick: *brick,
                    epoch: self.epoch_ref(),
                    unanswered,
                });
                out.push(Command::StopHeal(*brick));
                out.push(Command::CloseStream(*brick));
            }
        }
        let mut in_sync = self.epoch.in_sync.clone();
        in_sync.retain(|copy| !lost.contains(&BrickId(copy.brick)));
        if in_sync.len() < self.epoch.in_sync.len() {
            self.propose_members(in_sync, self.me, now_ms, out);
        } else {
            self.flush(now_ms, out);
        }
    }

    fn lost_copies(&self, now_ms: u64) -> Vec<BrickId> {
        // With two voters a proposal made while this side is the one that is cut off could be
        // committed when the link is back, after the other side went on.
        let may_judge_silence = self.votes() != Votes::Two || self.a_client_is_here(now_ms);
        let lost = self.links.iter().filter(|(brick, link)| {
            self.is_lost(**brick, link, now_ms)
                && (may_judge_silence || !self.is_only_silent(**brick, link, now_ms))
        });
        lost.map(|(brick, _)| *brick).collect()
    }

    fn settle_backup(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        if self.proposal.is_some() || !self.primary_is_lost(now_ms) {
            return;
        }
        let primary = BrickId(self.epoch.primary);
        let mut in_sync = self.epoch.in_sync.clone();
        in_sync.retain(|copy| {
            let (brick, life) = history::pair(copy);
            brick != primary && !self.dead.contains_key(&(brick, life))
        });
        self.propose_members(in_sync, self.me, now_ms, out);
    }

    /// Whether this backup may ask for the primary's place.
    pub(super) fn primary_is_lost(&self, now_ms: u64) -> bool {
        let primary = BrickId(self.epoch.primary);
        let Some(life) = history::listed(&self.epoch, primary) else {
            return true;
        };
        let turn = self
            .epoch
            .in_sync
            .iter()
            .filter(|copy| copy.brick != primary.0)
            .position(|copy| copy.brick == self.me.0)
            .unwrap_or(0) as u64;
        let lately = now_ms < self.last_beacon_ms + self.timing.ping_timeout_ms;
        if let Some(death) = self.dead.get(&(primary, life)) {
            let proven = lately || !self.decides_alone();
            return proven && now_ms >= death.at_ms.max(self.entered_ms) + turn * TURN_MS;
        }
        // The primary, which clients may still reach, is given the first word. With two voters a
        // silent one is never replaced through the registry: that a quorum answers shows that its
        // host is back, and it may have gone alone meanwhile.
        let silent_ms = self.timing.ping_timeout_ms + (turn + 1) * TURN_MS;
        now_ms >= self.last_beacon_ms + silent_ms && !self.decides_alone()
    }

    /// Two copies at two voters: silence is answered by going alone, not through the registry.
    pub(super) fn decides_alone(&self) -> bool {
        self.votes() == Votes::Two && self.epoch.in_sync.len() == 2
    }

    /// Two voters: the primary is silent for long enough, and no client hears it either.
    fn primary_is_silent(&self, now_ms: u64) -> bool {
        let silent_ms = self.timing.ping_timeout_ms + self.timing.witness_ms;
        now_ms >= self.last_beacon_ms + silent_ms && !self.clients_hear_the_primary(now_ms)
    }

    /// Going alone on mere silence serves nobody when no client is there: a primary that is cut
    /// off from everybody waits, and is healed when it hears that the other side went on.
    fn a_client_is_here(&self, now_ms: u64) -> bool {
        self.client_here_ms
            .is_some_and(|here| now_ms < here + self.timing.witness_ms)
    }

    fn clients_hear_the_primary(&self, now_ms: u64) -> bool {
        self.client_heard_ms
            .is_some_and(|heard| now_ms < heard + self.timing.witness_ms)
    }

    fn settle_stopped(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        if !self.hand_over || self.proposal.is_some() {
            return;
        }
        let mut in_sync = self.epoch.in_sync.clone();
        in_sync.retain(|copy| {
            let (brick, life) = history::pair(copy);
            brick != self.me && !self.dead.contains_key(&(brick, life))
        });
        match in_sync.first() {
            Some(next) => {
                let primary = BrickId(next.brick);
                self.propose_members(in_sync, primary, now_ms, out);
            }
            None => self.hand_over = false,
        }
    }

    /// The registry holds an ancestor of this primary's epoch: it is told the newer one.
    fn correct_registry(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let Some(expect) = self.unseen_expect() else {
            return;
        };
        let lone = self.lone_after(expect);
        let next = self.epoch.clone();
        self.propose(
            Proposal {
                expect,
                next,
                lone,
                sent_ms: now_ms,
                no_quorum: false,
                forced: false,
            },
            out,
        );
    }

    /// What the registry holds, when that is an ancestor of this copy's epoch.
    fn unseen_expect(&self) -> Option<EpochRef> {
        let theirs = self.view.as_ref().map(|view| reference(&view.epoch))?;
        let older = theirs != self.epoch_ref() && self.knows(theirs);
        (self.unseen && older).then_some(theirs)
    }

    fn lone_after(&self, expect: EpochRef) -> Vec<Epoch> {
        self.lone
            .iter()
            .filter(|epoch| epoch.number >= expect.number && reference(epoch) != expect)
            .cloned()
            .collect()
    }

    /// Proposes the next epoch with these copies.
    pub(super) fn propose_members(
        &mut self,
        in_sync: Vec<Copy>,
        primary: BrickId,
        now_ms: u64,
        out: &mut Vec<Command>,
    ) {
        let (expect, lone) = match self.unseen_expect() {
            Some(expect) => {
                let mut lone = self.lone_after(expect);
                lone.push(self.epoch.clone());
                (expect, lone)
            }
            None => (self.epoch_ref(), Vec::new()),
        };
        let next = self.next_epoch(self.epoch.number, in_sync, primary);
        let proposal = Proposal {
            expect,
            next,
            lone,
            sent_ms: now_ms,
            no_quorum: false,
            forced: false,
        };
        self.propose(proposal, out);
    }

    pub(super) fn next_epoch(&mut self, after: u64, in_sync: Vec<Copy>, primary: BrickId) -> Epoch {
        Epoch {
            number: after + 1,
            id: self.random_id(),
            in_sync,
            primary: primary.0,
        }
    }

    pub(super) fn propose(&mut self, proposal: Proposal, out: &mut Vec<Command>) {
        out.push(Command::Propose {
            expect: proposal.expect,
            next: proposal.next.clone(),
            lone: proposal.lone.clone(),
        });
        self.proposal = Some(proposal);
    }

    fn repeat_proposal(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let retry_ms = self.timing.propose_retry_ms;
        // What replaces an epoch that is replaced already is not pressed any further.
        if let Some(proposal) = &mut self.proposal
            && self.newer.is_none()
            && now_ms >= proposal.sent_ms + retry_ms
        {
            proposal.sent_ms = now_ms;
            out.push(Command::Propose {
                expect: proposal.expect,
                next: proposal.next.clone(),
                lone: proposal.lone.clone(),
            });
        }
    }

    /// Whether this copy may act in an epoch that the registry has not committed: two voters, it
    /// runs and is in sync, and the other side is dead, or silent for long enough.
    fn may_go_alone(&self, now_ms: u64) -> bool {
        if self.votes() != Votes::Two || self.newer.is_some() || self.unseen {
            return false;
        }
        let no_quorum = self
            .proposal
            .as_ref()
            .is_some_and(|proposal| proposal.no_quorum);
        if self
            .proposal
            .as_ref()
            .is_some_and(|proposal| proposal.forced)
        {
            return no_quorum;
        }
        // A proof counts at once only for a side that was heard lately: it was not on its own.
        let lately = |heard_ms: u64| now_ms < heard_ms + self.timing.ping_timeout_ms;
        match self.role {
            Role::Primary | Role::Recovering => {
                !self.links.is_empty()
                    && self.links.iter().all(|(brick, link)| {
                        let life = (*brick, link.incarnation);
                        self.died_with_its_vote(life.0, life.1)
                            || !lately(link.heard_ms) && self.a_client_is_here(now_ms)
                            || no_quorum && (link.failed || self.dead.contains_key(&life))
                    })
            }
            Role::Backup if self.epoch.in_sync.len() == 2 => {
                let primary = BrickId(self.epoch.primary);
                let life = history::listed(&self.epoch, primary).unwrap_or(Incarnation(0));
                let heard = lately(self.last_beacon_ms);
                self.died_with_its_vote(primary, life) && heard
                    || no_quorum && self.dead.contains_key(&(primary, life))
                    || self.primary_is_silent(now_ms)
            }
            _ => false,
        }
    }

    /// Makes an epoch with this copy alone, stores the alone mark, and acts in it.
    pub(super) fn go_alone(&mut self, out: &mut Vec<Command>) {
        let me = Copy {
            brick: self.me.0,
            incarnation: self.incarnation.0,
        };
        let proposal = self.proposal.take();
        let mut lone = self.lone.clone();
        if self.unseen && self.epoch.number > 0 {
            lone.push(self.epoch.clone());
        }
        let epoch = match proposal {
            // It may yet be committed: it is the very epoch that is made now.
            Some(proposal) if proposal.next.in_sync == [me] => {
                lone.extend(proposal.lone);
                proposal.next
            }
            Some(proposal) => {
                let after = proposal.next.number;
                lone.extend(proposal.lone);
                lone.push(proposal.next);
                self.next_epoch(after, vec![me], self.me)
            }
            None => self.next_epoch(self.epoch.number, vec![me], self.me),
        };
        lone.sort_by_key(|epoch| epoch.number);
        lone.dedup();
        let before = [self.epoch_ref()]
            .into_iter()
            .chain(lone.iter().map(reference));
        let history = extended(&self.history, before);
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

    fn give_up_stalled_heals(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let stall_ms = self.timing.stall_timeout_ms;
        let stalled: Vec<BrickId> = self
            .syncing
            .iter()
            .filter(|(_, copy)| {
                copy.unanswered
                    .values()
                    .next()
                    .is_some_and(|since| now_ms >= since + stall_ms)
            })
            .map(|(brick, _)| *brick)
            .collect();
        for brick in stalled {
            self.give_up_syncing(brick, now_ms, out);
        }
    }

    fn wants_to_read(&self, now_ms: u64) -> bool {
        // A syncing copy may have become one of the epoch just before its primary died.
        let seldom =
            self.role == Role::Syncing && now_ms >= self.next_read_ms + self.timing.ping_timeout_ms;
        let often = !self.fresh
            || self.newer.is_some()
            || self.unseen
            || matches!(
                self.role,
                Role::Starting | Role::Waiting(_) | Role::Out | Role::Split
            );
        seldom || often && now_ms >= self.next_read_ms
    }

    pub(super) fn read_registry(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        self.next_read_ms = now_ms + self.timing.propose_retry_ms;
        if !out.contains(&Command::ReadRegistry) {
            out.push(Command::ReadRegistry);
        }
    }

    fn query_others(&self, out: &mut Vec<Command>) {
        let asks = match self.role {
            Role::Syncing | Role::Stopped(_) => return,
            Role::Backup => self.newer.is_some(),
            _ => true,
        };
        let bricks = self.view.as_ref().map_or(&[][..], |view| &view.bricks);
        for brick in bricks.iter().filter(|brick| asks && **brick != self.me) {
            let served = self.links.get(brick).is_some_and(|link| link.up)
                || self.syncing.get(brick).is_some_and(|copy| copy.up);
            if !served {
                out.push(Command::Query(*brick));
            }
        }
    }
}
