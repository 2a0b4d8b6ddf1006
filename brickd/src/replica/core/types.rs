//! What goes into the state machine and what comes out of it.

use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::{CopyState, EpochRef};
use mortar_proto::registry::Epoch;

/// Times the state machine lives by, in ms.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A primary beacons each in-sync backup this often.
    pub beacon_ms: u64,
    /// The primary serves while each in-sync backup answered a beacon sent less than this ago.
    pub lease_ms: u64,
    /// A silent copy is put out, a silent primary replaced, after this (`network.ping-timeout`).
    pub ping_timeout_ms: u64,
    /// A copy whose oldest change is unapplied for this long is put out (`storage.stall-timeout`).
    pub stall_timeout_ms: u64,
    /// A first start waits this long for all bricks of the set before it goes without the others.
    pub first_start_ms: u64,
    /// A proposal that was not answered is made again after this.
    pub propose_retry_ms: u64,
    /// With two voters: nobody goes alone while a client heard from the primary within this.
    pub witness_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            beacon_ms: 250,
            lease_ms: 3_000,
            ping_timeout_ms: 5_000,
            stall_timeout_ms: 20_000,
            first_start_ms: 3_000,
            propose_retry_ms: 500,
            witness_ms: 2_000,
        }
    }
}

impl Timing {
    /// With these timeouts. A lease is over well before anybody may think its primary lost:
    /// otherwise both that primary and the next would answer reads.
    pub fn with_timeouts(ping_timeout_ms: u64, stall_timeout_ms: u64) -> Self {
        let usual = Timing::default();
        Timing {
            lease_ms: usual.lease_ms.min(ping_timeout_ms * 3 / 5),
            ping_timeout_ms,
            stall_timeout_ms,
            ..usual
        }
    }
}

/// How the registry decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Votes {
    /// One voter, or three and more: nobody acknowledges alone before a quorum has committed it.
    Quorum,
    /// Two voters: a running in-sync copy may go alone.
    Two,
}

/// What this copy is at the moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Role {
    /// Started; has not yet learned what the set's epoch is.
    Starting,
    /// May not serve until somebody is heard from or the operator decides; the sentence says who.
    Waiting(String),
    /// Not in sync and not being healed.
    Out,
    /// Receives changes and heals; serves nothing.
    Syncing,
    /// In sync, follows the primary.
    Backup,
    /// Chosen as primary; applies what it holds before it serves.
    Recovering,
    /// Orders changes and serves.
    Primary,
    /// Both sides went alone; closed until the operator decides.
    Split,
    /// Its disk failed or it was told to stop; final for this incarnation.
    Stopped(String),
}

/// What the driver is to do, in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// Apply this ordered change locally, then tell [`super::Core::applied`]. Every in-sync backup
    /// holds it.
    Apply(u64),
    /// Every in-sync copy has applied it: answer the client.
    Answer(u64),
    /// This copy may not answer for these ordered changes any more: the client is told to ask the
    /// next primary (it resends, and the record of what was done answers it).
    Abandon(Vec<u64>),
    /// Open a stream to this copy, as a backup of the current epoch (`joined`) or to heal it.
    OpenStream {
        /// To whom.
        to: BrickId,
        /// The life of the copy that is meant.
        incarnation: Incarnation,
        /// In sync (its answers are required), or syncing.
        joined: bool,
    },
    /// Close the stream to this copy and forget what was to be resent to it.
    CloseStream(BrickId),
    /// Send a beacon; `sent` comes back in the answer.
    Beacon {
        /// To whom.
        to: BrickId,
        /// now_ms at sending.
        sent: u64,
    },
    /// Answer a beacon with this epoch (the receiver's own).
    AnswerBeacon {
        /// To whom.
        to: BrickId,
        /// As in the beacon.
        sent: u64,
    },
    /// Ask this copy for its state; the answer comes to [`super::Core::copy_state`].
    Query(BrickId),
    /// Make a linearizable registry read, then call [`super::Core::view`] with `linearizable`.
    ReadRegistry,
    /// Compare-and-set in the registry, then call [`super::Core::proposed`].
    Propose {
        /// The epoch to be replaced.
        expect: EpochRef,
        /// The new one.
        next: Epoch,
        /// Epochs made while alone, oldest first, that the registry has not seen.
        lone: Vec<Epoch>,
    },
    /// Store epoch, history and the alone mark durably, then call [`super::Core::stored`].
    Store {
        /// The epoch to store.
        epoch: Epoch,
        /// Epochs before it, newest last.
        history: Vec<EpochRef>,
        /// Whether it was made without the registry.
        alone: bool,
    },
    /// This copy went out (of the epoch given): write down what it may lack, durably enough that
    /// no acknowledged change is missing, and mark every later change for it. `unanswered` are the
    /// changes it was sent and has not confirmed as applied.
    Mark {
        /// Who went out.
        brick: BrickId,
        /// In which epoch it was last in sync.
        epoch: EpochRef,
        /// Numbers it may lack on top of what it has not synced.
        unanswered: Vec<u64>,
    },
    /// The copy that was just marked may hold changes which this one never received, as the primary
    /// that sent them is gone too, or has not yet sent them here. So all of it is to be compared;
    /// unless a change comes that `cleared_by` orders in a later epoch than `epoch`: before that,
    /// it has sent this copy all that it ever sent to that one.
    Doubt {
        /// Who went out.
        brick: BrickId,
        /// In which epoch it was last in sync.
        epoch: EpochRef,
        /// The primary that goes on.
        cleared_by: Option<BrickId>,
    },
    /// Begin (or go on) healing this copy over its stream.
    StartHeal(BrickId),
    /// Stop healing this copy: it is gone, or this one is no longer primary.
    StopHeal(BrickId),
    /// Send this copy the sessions, opens, locks and result table, behind all changes numbered so
    /// far and before any later one; when it answers that it holds them, call
    /// [`super::Core::table_held`].
    SendTable(BrickId),
    /// Let every change received be applied; fetch the longest tail from all other in-sync copies
    /// (they answer only once they are in this epoch, and take nothing from the old primary from
    /// then on); then call [`super::Core::recovered`]. Comes again when the epoch changes
    /// meanwhile: the newest one's in-sync copies count.
    Recover,
    /// The role changed, or this is a backup in an epoch with a copy that the last one did not list:
    /// such a copy lacks nothing any more. Wake whoever waits for it, log it in one line.
    RoleChanged(Role),
}

/// What came of a proposal.
#[derive(Clone, PartialEq, Debug)]
pub enum Proposed {
    /// The registry holds `next` now.
    Committed,
    /// Another epoch was there; this one.
    Refused(Epoch),
    /// The registry has no quorum, or did not answer.
    NoQuorum,
}

/// A change that got its number.
#[derive(Clone, PartialEq, Debug)]
pub struct Ordered {
    /// Its number.
    pub number: u64,
    /// The epoch it is ordered in.
    pub epoch: EpochRef,
    /// Copies to send it to, in-sync ones and syncing ones.
    pub to: Vec<BrickId>,
    /// Every change up to this number is applied on all in-sync copies.
    pub complete: u64,
    /// Often [`Command::Apply`], when there is nobody to wait for.
    pub commands: Vec<Command>,
}

/// Why a change cannot be ordered, or a read answered, now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotNow {
    /// Another copy is primary, as far as known.
    NotPrimary(Option<BrickId>),
    /// Not yet: recovering, paused for a switch, without a lease, too many in flight. Wait for the
    /// core to change and try again.
    Wait,
    /// Closed, with the sentence for the log.
    Closed(String),
}

/// What an ordered change waits for before it is applied here and answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitFor {
    /// Sent, not waited for (opens).
    Nothing,
    /// Held by every in-sync backup, then applied everywhere: every change of the disk and locks.
    Everyone,
    /// A heal change: goes to this syncing copy alone and is not applied here.
    Heal(BrickId),
}

/// How a copy answered a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// In memory, in order; will be applied.
    Held,
    /// Applied (or, by a syncing copy, skipped and marked again).
    Applied,
    /// Its disk failed: it is out.
    Failed,
}

/// What the registry says of this set.
#[derive(Clone, PartialEq, Debug)]
pub struct RegistryView {
    /// The set's epoch; number 0 before the first start.
    pub epoch: Epoch,
    /// Epochs before it, newest last.
    pub history: Vec<EpochRef>,
    /// The set's bricks, in the order of `volume create`.
    pub bricks: Vec<BrickId>,
    /// How the registry decides.
    pub votes: Votes,
    /// Read with a quorum behind it, not just the local applied state.
    pub linearizable: bool,
}

/// How sure it is that another copy is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gone {
    /// Its process died: FIN and then a refused connect. With two voters its vote is gone too.
    ProcessDied,
    /// The brick, or the whole process, said goodbye. `true` when its process goes too.
    Goodbye {
        /// The whole process stops, registry vote included.
        process: bool,
    },
}

/// A partner's state, as it answered a query.
pub type PartnerState = CopyState;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_before_its_primary_is_thought_lost() {
        for ping_timeout_ms in [1_000, 2_000, 5_000, 60_000] {
            let timing = Timing::with_timeouts(ping_timeout_ms, 20_000);
            assert!(timing.lease_ms < ping_timeout_ms, "{timing:?}");
            assert!(timing.lease_ms > 2 * timing.beacon_ms, "{timing:?}");
        }
        assert_eq!(Timing::with_timeouts(5_000, 20_000).lease_ms, 3_000);
    }
}
