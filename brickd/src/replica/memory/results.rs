//! The results of a session's last requests, so that a resent one is answered and not repeated.

use std::collections::BTreeMap;

use mortar_proto::SLOTS_PER_SESSION;
use mortar_proto::data::change::Step;
use mortar_proto::data::{Change, Recorded, SlotSeq};

/// Operations of one request whose results are kept; a longer request breaks the protocol.
pub const OPS_PER_REQUEST_MAX: u32 = 64;

/// What is known of an operation of a request that has come.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Seen {
    /// Not done, as far as this copy knows.
    New,
    /// Done: this is what it came to.
    Done(Recorded),
    /// A later request of the same slot has come: this one is a late double, to be dropped.
    Older,
}

/// What is known of a request that has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begun {
    /// Its operations are to be judged, or looked for with [`super::Memory::find`].
    Goes,
    /// An earlier copy of it was refused at this operation: it stops there, with this errno.
    StopsAt {
        /// Which operation of the request.
        index: u32,
        /// What it was refused with.
        errno: i32,
    },
    /// A later request of the same slot has come: this one is a late double, to be dropped.
    Older,
}

/// The slots of one session.
#[derive(Debug, Default)]
pub(super) struct Results {
    slots: BTreeMap<u32, Slot>,
}

#[derive(Debug, Default)]
struct Slot {
    seq: u64,
    done: Vec<Recorded>,
}

impl Results {
    pub(super) fn record(&mut self, recorded: Recorded) {
        if recorded.slot >= SLOTS_PER_SESSION || recorded.index >= OPS_PER_REQUEST_MAX {
            return;
        }
        let slot = self.slots.entry(recorded.slot).or_default();
        if recorded.seq < slot.seq {
            return;
        }
        slot.advance(recorded.seq);
        match slot
            .done
            .iter_mut()
            .find(|done| done.index == recorded.index)
        {
            Some(done) => *done = recorded,
            None => slot.done.push(recorded),
        }
    }

    pub(super) fn begin(&mut self, slot: u32, seq: u64) -> Begun {
        if slot >= SLOTS_PER_SESSION {
            return Begun::Goes;
        }
        let slot = self.slots.entry(slot).or_default();
        if seq < slot.seq {
            return Begun::Older;
        }
        slot.advance(seq);
        let refusal = slot.done.iter().find(|done| done.errno != 0);
        refusal.map_or(Begun::Goes, |refusal| Begun::StopsAt {
            index: refusal.index,
            errno: refusal.errno,
        })
    }

    pub(super) fn find(&self, slot: u32, seq: u64, index: u32) -> Seen {
        let Some(slot) = self.slots.get(&slot) else {
            return Seen::New;
        };
        if seq < slot.seq {
            return Seen::Older;
        }
        if seq > slot.seq {
            return Seen::New;
        }
        slot.done
            .iter()
            .find(|done| done.index == index)
            .map_or(Seen::New, |done| Seen::Done(*done))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Recorded> + '_ {
        self.slots
            .values()
            .flat_map(|slot| slot.done.iter().copied())
    }

    /// The slots of which [`Results::all`] says nothing. A copy that does not know how far they
    /// are would take a late double of an earlier request for a new one.
    pub(super) fn without_results(&self) -> impl Iterator<Item = SlotSeq> + '_ {
        self.slots
            .iter()
            .filter(|(_, slot)| slot.done.is_empty())
            .map(|(number, slot)| SlotSeq {
                slot: *number,
                seq: slot.seq,
            })
    }
}

impl Slot {
    fn advance(&mut self, seq: u64) {
        if seq > self.seq {
            self.seq = seq;
            self.done.clear();
        }
    }
}

/// What a change came to, as every copy records it; `None` for one that answers no request
/// (session 0: heal and housekeeping).
pub fn recorded_of(change: &Change) -> Option<Recorded> {
    if change.session == 0 {
        return None;
    }
    let mut recorded = Recorded {
        session: change.session,
        slot: change.slot,
        seq: change.seq,
        index: change.index,
        number: change.number,
        ..Default::default()
    };
    match change.step.as_ref()? {
        Step::Create(step) => {
            recorded.created = true;
            recorded.gfid = step.gfid;
        }
        Step::Link(step) => recorded.gfid = step.gfid,
        Step::Unlink(step) => recorded.gfid = step.gfid,
        Step::Rmdir(step) => recorded.gfid = step.gfid,
        Step::Rename(step) => recorded.gfid = step.gfid,
        Step::Setattr(step) => recorded.gfid = step.gfid,
        Step::Write(step) => {
            recorded.gfid = step.gfid;
            recorded.offset = step.offset;
            recorded.count = u64::from(step.len);
        }
        Step::Fallocate(step) => recorded.gfid = step.gfid,
        Step::CopyRange(step) => {
            recorded.gfid = step.to;
            recorded.offset = step.to_offset;
            recorded.count = step.len;
        }
        Step::Setxattr(step) => recorded.gfid = step.gfid,
        Step::Removexattr(step) => recorded.gfid = step.gfid,
        Step::Fsync(step) => recorded.gfid = step.gfid,
        Step::Open(step) => recorded.gfid = step.gfid,
        Step::Release(step) => recorded.gfid = step.gfid,
        Step::Lock(step) => recorded.gfid = step.gfid,
        Step::Settled(step) => {
            recorded.gfid = step.gfid;
            recorded.errno = step.errno;
        }
        Step::SessionOpen(_) => {}
        Step::SessionEnd(_)
        | Step::Free(_)
        | Step::HealObject(_)
        | Step::HealData(_)
        | Step::HealName(_)
        | Step::Sync(_) => return None,
    }
    Some(recorded)
}
