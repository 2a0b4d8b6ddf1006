//! Beacons, the lease they give, and who is thought lost.

use mortar_common::BrickId;
use mortar_proto::data::EpochRef;

use mortar_proto::registry::Epoch;

use super::history::{self, Relation};
use super::{Command, Core, Link, NotNow, Role, Votes};

impl Core {
    /// Whether a read may be answered now. Ask as the answer leaves.
    ///
    /// # Errors
    /// [`NotNow`], when this copy is not the primary or has no lease.
    pub fn may_read(&self, now_ms: u64) -> Result<(), NotNow> {
        if self.role != Role::Primary || self.newer.is_some() {
            return Err(self.not_now());
        }
        let vouches = |link: &Link| {
            let fresh = |sent: u64| now_ms < sent.saturating_add(self.timing.lease_ms);
            link.behind.is_none() && link.lease_ms.is_some_and(fresh)
        };
        if self.links.values().all(vouches) {
            Ok(())
        } else {
            Err(NotNow::Wait)
        }
    }

    /// A client with a session says that the primary has answered it just now.
    pub fn client_heard(&mut self, now_ms: u64) {
        self.client_heard_ms = Some(now_ms);
    }

    /// A client with a session asked this copy for something, or said that it lives.
    ///
    /// The first one after a while without any may mean that this copy's own way to the world is
    /// back: the others are given the whole timeout to be heard again.
    pub fn client_here(&mut self, now_ms: u64) {
        let lately = self
            .client_here_ms
            .is_some_and(|here| now_ms < here + self.timing.witness_ms);
        if !lately && self.votes() == Votes::Two {
            self.forgive_silence(now_ms);
        }
        self.client_here_ms = Some(now_ms);
    }

    /// A beacon came.
    pub fn beacon(
        &mut self,
        from: BrickId,
        epoch: EpochRef,
        sent: u64,
        now_ms: u64,
    ) -> Vec<Command> {
        let mut out = Vec::new();
        if matches!(self.role, Role::Stopped(_)) {
            return out;
        }
        let mine = self.epoch_ref();
        // An answer carries no incarnation: a life that the sender does not mean gives none.
        let meant = self.is_listed() || self.role == Role::Syncing;
        if epoch == mine {
            // A copy that asks for the primary's place, or knows of a newer epoch, vouches for
            // nobody.
            let settled = self.proposal.is_none() && self.storing.is_none();
            if BrickId(self.epoch.primary) == from && meant && settled && self.newer.is_none() {
                self.last_beacon_ms = now_ms;
                out.push(Command::AnswerBeacon { to: from, sent });
            }
        } else if epoch.number > mine.number {
            // The answer shows that this copy lives; it gives no lease in an epoch unknown here.
            self.heard_of(epoch, now_ms, &mut out);
            if meant {
                out.push(Command::AnswerBeacon { to: from, sent });
            }
        } else if epoch.number == mine.number {
            out.push(Command::Query(from));
            out.push(Command::AnswerBeacon { to: from, sent });
        } else {
            // Shows an old primary that it is replaced.
            out.push(Command::AnswerBeacon { to: from, sent });
        }
        out
    }

    /// A copy answered a beacon, in the epoch it is in.
    pub fn beacon_answer(
        &mut self,
        from: BrickId,
        epoch: EpochRef,
        sent: u64,
        now_ms: u64,
    ) -> Vec<Command> {
        let mut out = Vec::new();
        let mine = self.epoch_ref();
        let on_its_way = |next: &Epoch| history::reference(next) == epoch;
        let expected = epoch == mine
            || self
                .proposal
                .as_ref()
                .is_some_and(|proposal| on_its_way(&proposal.next))
            || self
                .storing
                .as_ref()
                .is_some_and(|storing| on_its_way(&storing.epoch));
        if self.is_primary()
            && let Some(link) = self.links.get_mut(&from)
        {
            link.heard_ms = link.heard_ms.max(now_ms);
            if expected {
                link.lease_ms = link.lease_ms.max(Some(sent));
            }
        }
        if expected {
            return out;
        }
        if epoch.number > mine.number {
            self.heard_of(epoch, now_ms, &mut out);
        } else if epoch.number == mine.number {
            out.push(Command::Query(from));
        }
        out
    }

    /// Somebody is in a newer epoch than this copy: it may go on only when it knows that epoch.
    pub(super) fn heard_of(&mut self, epoch: EpochRef, now_ms: u64, out: &mut Vec<Command>) {
        let known = self
            .storing
            .as_ref()
            .map_or(self.epoch.number, |storing| storing.epoch.number);
        if epoch.number <= known.max(self.newer.map_or(0, |newer| newer.number)) {
            return;
        }
        let proposed = self
            .proposal
            .as_ref()
            .map(|proposal| history::reference(&proposal.next));
        if proposed == Some(epoch) && self.is_primary() {
            // The registry has committed what this primary proposed; its answer is on the way.
            return;
        }
        self.newer = Some(epoch);
        self.step_down(out);
        self.read_registry(now_ms, out);
    }

    /// Ends a primaryship that a newer epoch has overtaken.
    pub(super) fn step_down(&mut self, out: &mut Vec<Command>) {
        if self.newer.is_some() && self.is_primary() {
            self.lose_primaryship(out);
            self.become_role(Role::Out, out);
        }
    }

    /// What another copy's epoch is to this one's.
    pub(super) fn relation_to(&self, theirs: EpochRef, history: &[EpochRef]) -> Relation {
        history::relation(self.epoch_ref(), &self.history, theirs, history)
    }

    /// Whether a copy whose answers are required is lost to this primary.
    pub(super) fn is_lost(&self, brick: BrickId, link: &Link, now_ms: u64) -> bool {
        link.failed
            || self.dead.contains_key(&(brick, link.incarnation))
            || self.is_stranger(brick)
            || self.is_silent(link, now_ms)
            || self.is_stalled(brick, link, now_ms)
    }

    /// Whether silence is all that speaks against it.
    pub(super) fn is_only_silent(&self, brick: BrickId, link: &Link, now_ms: u64) -> bool {
        let known = link.failed
            || self.dead.contains_key(&(brick, link.incarnation))
            || self.is_stranger(brick);
        self.is_silent(link, now_ms) && !known
    }

    /// Nothing was heard from it for the ping timeout, or its stream is down for as long. With two
    /// voters a copy that is heard is given the stall timeout to take a stream: what puts it out
    /// might be decided late, after it went alone.
    pub(super) fn is_silent(&self, link: &Link, now_ms: u64) -> bool {
        let timeout_ms = self.timing.ping_timeout_ms;
        let stream_ms = if self.decides_alone() {
            self.timing.stall_timeout_ms
        } else {
            timeout_ms
        };
        now_ms >= link.heard_ms + timeout_ms
            || self.role == Role::Primary && !link.up && now_ms >= link.down_ms + stream_ms
    }

    /// It answers, but has not applied a change for the stall timeout.
    fn is_stalled(&self, brick: BrickId, link: &Link, now_ms: u64) -> bool {
        let stalled = |since_ms: u64| now_ms >= since_ms + self.timing.stall_timeout_ms;
        link.behind.is_some_and(|behind| stalled(behind.since_ms))
            || self
                .pending
                .values()
                .take_while(|pending| stalled(pending.ordered_ms))
                .any(|pending| pending.to_apply.contains(&brick))
    }

    /// Whether this copy's own disk keeps a change waiting for the stall timeout.
    pub(super) fn stalls_itself(&self, now_ms: u64) -> bool {
        self.pending.values().any(|pending| {
            !pending.applied_here
                && pending
                    .apply_ms
                    .is_some_and(|since_ms| now_ms >= since_ms + self.timing.stall_timeout_ms)
        })
    }
}
