//! The decision logic of one copy of a replica set: event in, commands out.
//!
//! No tokio, clock, disk, network or randomness: every method is an event that happened, takes the
//! time (`now_ms`, CLOCK_BOOTTIME), changes this state and answers with [`Command`]s that the
//! driver carries out in their order. The seeded simulator in the tests crate drives the same
//! code.
//!
//! What is wanted follows from the state alone and is looked at again after each event and tick
//! ([`epoch`]): whoever is lost is proposed out, a drained copy in, a dead primary replaced. So a
//! lost message, an unanswered proposal or a late event delays, and never derails.
//!
//! Rules that every part keeps:
//! - an epoch is acted in only when it is stored here ([`Command::Store`]); what it *forbids* holds
//!   from the moment it is known;
//! - one proposal at a time, made again unchanged until its outcome is known: whoever it adds is
//!   waited for as if it were in, whoever it removes as if it were not out;
//! - a copy that has asked for the primary's place answers no more beacons in the old epoch.

mod epoch;
mod history;
mod join;
mod lease;
mod order;
mod out;
#[cfg(test)]
mod scenarios;
mod start;
#[cfg(test)]
mod surplus;
#[cfg(test)]
mod testing;
pub mod types;
mod wishes;

use std::collections::{BTreeMap, BTreeSet};

use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::EpochRef;
use mortar_proto::registry::Epoch;

pub use types::*;

/// Numbers left free when a copy becomes primary, so that none is used for two changes.
pub const TAKEOVER_GAP: u64 = 1 << 20;

/// Replication's decisions for one copy.
#[derive(Debug)]
pub struct Core {
    me: BrickId,
    incarnation: Incarnation,
    timing: Timing,
    /// State of the generator of epoch ids.
    random: u64,
    role: Role,

    /// The epoch acted in: it is stored.
    epoch: Epoch,
    /// Epochs before it, newest last.
    history: Vec<EpochRef>,
    /// `epoch` was made here without the registry, which is not known to hold it.
    alone: bool,
    /// The registry is known, or must be thought, to hold an older epoch than `epoch`.
    unseen: bool,
    /// Epochs before `epoch` that the registry has not seen, oldest first.
    lone: Vec<Epoch>,
    /// A newer epoch that somebody named; its content is not known.
    newer: Option<EpochRef>,
    /// On its way to the disk.
    storing: Option<Storing>,
    proposal: Option<Proposal>,

    view: Option<RegistryView>,
    /// What this copy had recorded as durable when it started; `None` once it has taken changes in
    /// this life.
    synced_at_start: Option<u64>,
    /// Its disk holds an older state than it once told another copy.
    rolled_back: bool,
    /// A linearizable read has been answered since the start.
    fresh: bool,
    started_ms: u64,
    ticked_ms: u64,
    entered_ms: u64,
    next_read_ms: u64,
    next_query_ms: u64,
    next_beacon_ms: u64,
    next_open_ms: u64,
    /// Incarnations known to be over.
    dead: BTreeMap<(BrickId, Incarnation), Death>,
    /// What other copies said of themselves.
    states: BTreeMap<BrickId, Seen>,
    /// Since when a restarted listed brick may take over.
    eligible_ms: Option<u64>,

    last_number: u64,
    complete: u64,

    // Primary.
    pending: BTreeMap<u64, Pending>,
    links: BTreeMap<BrickId, Link>,
    syncing: BTreeMap<BrickId, Syncing>,
    switch: Option<Switch>,
    /// Its disk failed while others were in sync: the place is to be given away.
    hand_over: bool,
    /// The operator chose this copy, which is not proposed yet.
    trusted: bool,

    // Backup and syncing copy.
    last_beacon_ms: u64,
    client_heard_ms: Option<u64>,
    /// When a client with a session last asked something of this copy as primary.
    client_here_ms: Option<u64>,
    incoming: Option<Incoming>,
    /// Numbers received that are not known to be complete.
    received: BTreeSet<u64>,
    /// The primary whose own changes have come here: behind all it took over from another.
    heard_order_of: Option<(BrickId, Incarnation)>,
}

/// An epoch that is being stored.
#[derive(Clone, Debug)]
struct Storing {
    epoch: Epoch,
    history: Vec<EpochRef>,
    alone: bool,
    unseen: bool,
    lone: Vec<Epoch>,
}

/// A compare-and-set whose outcome is not known.
#[derive(Clone, Debug)]
struct Proposal {
    expect: EpochRef,
    next: Epoch,
    lone: Vec<Epoch>,
    sent_ms: u64,
    /// The registry said that it has no quorum.
    no_quorum: bool,
    /// The operator's word, which stands for the proofs a brick would need.
    forced: bool,
}

/// The end of an incarnation.
#[derive(Clone, Copy, Debug)]
struct Death {
    how: Gone,
    at_ms: u64,
}

/// What a copy said of itself, and when.
#[derive(Clone, Debug)]
struct Seen {
    state: PartnerState,
    at_ms: u64,
}

/// What a primary knows of a copy whose answers it requires.
#[derive(Clone, Debug)]
struct Link {
    incarnation: Incarnation,
    up: bool,
    /// Since when the stream is down, if it is.
    down_ms: u64,
    /// The last sign of life.
    heard_ms: u64,
    /// When the newest beacon that it answered in this epoch was sent.
    lease_ms: Option<u64>,
    /// It must answer this number, of its predecessor's changes, before anything is read here.
    behind: Option<Behind>,
    failed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Behind {
    number: u64,
    since_ms: u64,
}

/// A copy that is being healed by this primary.
#[derive(Clone, Debug)]
struct Syncing {
    incarnation: Incarnation,
    up: bool,
    /// Sent and not answered: number and when.
    unanswered: BTreeMap<u64, u64>,
    /// Not opened again before this.
    not_before_ms: u64,
    /// Nothing is marked for it any more.
    quiet: bool,
}

/// A healed copy on its way into the epoch: numbering is paused.
#[derive(Clone, Copy, Debug)]
struct Switch {
    brick: BrickId,
    since_ms: u64,
    stage: Stage,
}

/// How far a switch has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// What is in flight is answered first.
    Draining,
    /// The table is sent; the copy has not said that it holds it.
    Table,
    /// Its answers are required, the epoch with it is proposed.
    Proposed,
}

/// The stream a primary opened to this copy.
#[derive(Clone, Copy, Debug)]
struct Incoming {
    from: BrickId,
    incarnation: Incarnation,
}

/// A change that is not answered yet.
#[derive(Clone, Debug)]
struct Pending {
    ordered_ms: u64,
    /// In-sync copies that do not hold it yet.
    to_hold: BTreeSet<BrickId>,
    /// In-sync copies that have not applied it yet.
    to_apply: BTreeSet<BrickId>,
    /// When Apply was commanded here.
    apply_ms: Option<u64>,
    applied_here: bool,
}

impl Core {
    /// What this copy is.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// The epoch it acts in; number 0 before the first.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Number and id of [`Core::epoch`].
    pub fn epoch_ref(&self) -> EpochRef {
        history::reference(&self.epoch)
    }

    /// Epochs before it, newest last.
    pub fn history(&self) -> &[EpochRef] {
        &self.history
    }

    /// Whether the epoch was made without the registry and the registry is not known to hold it.
    pub fn alone(&self) -> bool {
        self.alone
    }

    /// The brick that orders changes, as far as known.
    pub fn primary(&self) -> Option<BrickId> {
        (self.epoch.primary != 0 && self.newer.is_none()).then_some(BrickId(self.epoch.primary))
    }

    /// In-sync copies of the epoch, this one included when it is one.
    pub fn in_sync(&self) -> Vec<(BrickId, Incarnation)> {
        self.epoch.in_sync.iter().map(history::pair).collect()
    }

    /// Every change up to this number is applied on all in-sync copies.
    pub fn complete(&self) -> u64 {
        self.complete
    }

    /// The highest change number known.
    pub fn last_number(&self) -> u64 {
        self.last_number
    }

    /// When the oldest change that is not answered was ordered.
    pub fn oldest_pending_ms(&self) -> Option<u64> {
        self.pending
            .values()
            .next()
            .map(|pending| pending.ordered_ms)
    }

    /// Whether this copy still proposes the epoch of this id in the place of `expect`.
    pub fn proposes(&self, expect: EpochRef, id: u64) -> bool {
        self.proposal
            .as_ref()
            .is_some_and(|proposal| proposal.expect == expect && proposal.next.id == id)
    }

    /// Copies whose answers this primary requires: the in-sync ones, and one on its way in.
    pub fn required(&self) -> Vec<BrickId> {
        self.links.keys().copied().collect()
    }

    /// Copies that this primary heals over a stream that is up.
    pub fn syncing(&self) -> Vec<BrickId> {
        self.syncing
            .iter()
            .filter(|(_, copy)| copy.up)
            .map(|(brick, _)| *brick)
            .collect()
    }

    /// Numbers this copy received and does not know to be applied everywhere: what it may have
    /// and others lack when it comes back from being out.
    pub fn tail(&self) -> Vec<u64> {
        self.received.iter().copied().collect()
    }

    /// How the registry decides, as far as known.
    pub fn votes(&self) -> Votes {
        self.view.as_ref().map_or(Votes::Quorum, |view| view.votes)
    }

    fn is_primary(&self) -> bool {
        matches!(self.role, Role::Primary | Role::Recovering)
    }

    fn become_role(&mut self, role: Role, out: &mut Vec<Command>) {
        if self.role != role {
            match role {
                Role::Primary | Role::Recovering | Role::Syncing => self.synced_at_start = None,
                Role::Backup => (self.synced_at_start, self.rolled_back) = (None, false),
                Role::Starting | Role::Waiting(_) | Role::Out => {}
                Role::Split | Role::Stopped(_) => {}
            }
            self.role = role.clone();
            out.push(Command::RoleChanged(role));
        }
    }

    /// The next of a sequence that is different for each incarnation (splitmix64); never 0.
    fn random_id(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31).max(1)
    }
}
