//! What a comparison changes: all copies get the same bytes, as ordered changes.

use std::ops::Range;

use bytes::Bytes;
use mortar_common::{Gfid, SessionId};
use mortar_proto::data::change::Step;
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::{FsyncStep, HealDataStep, Object, Op, Read};

use super::{Differing, PATIENCE, ScrubError, Scrubber, What};
use crate::heal::query::found;
use crate::replica::core::WaitFor;
use crate::replica::gate::Pass;
use crate::replica::keys::keys_of;
use crate::replica::order::Origin;

impl Scrubber<'_> {
    /// Bytes of a range as a copy has them: 0 is this one.
    ///
    /// # Errors
    /// Those of the disk; that the copy is gone.
    pub fn read(&self, copy: usize, gfid: Gfid, range: &Range<u64>) -> Result<Bytes, ScrubError> {
        let len = (range.end - range.start) as u32;
        let Some(other) = copy.checked_sub(1) else {
            let mut bytes = Vec::with_capacity(len as usize);
            self.replica
                .store()
                .read(gfid, range.start, len, &mut bytes)?;
            return Ok(bytes.into());
        };
        let read = Read {
            gfid: Some(gfid),
            offset: range.start,
            len,
        };
        let ask = Op {
            op: Some(OpKind::Read(read)),
        };
        let (answers, payload) = self.copies[other].ask(vec![ask])?;
        match answers.first() {
            Some(answer) if answer.errno == 0 => Ok(payload),
            _ => Err(ScrubError::Changed),
        }
    }

    /// Gives all copies this one's bytes, where they differ.
    ///
    /// # Errors
    /// Why not.
    pub fn give_mine(&self, differing: &Differing) -> Result<(), ScrubError> {
        for range in &differing.ranges {
            let what = What::Bytes(range.clone());
            let pass = self.enter(differing.gfid, &what)?;
            let bytes = self.read(0, differing.gfid, range)?;
            self.repair(differing.gfid, range, bytes)?;
            drop(pass);
        }
        self.sync(differing.gfid)
    }

    /// All copies get these bytes, as an ordered change; whoever has the file in a cache hears that
    /// it changed. Call with its key held.
    pub(super) fn repair(
        &self,
        gfid: Gfid,
        range: &Range<u64>,
        bytes: Bytes,
    ) -> Result<(), ScrubError> {
        let Some(mut whole) = found(self.replica.store().heal_object(gfid))? else {
            return Ok(());
        };
        let object: &mut Object = whole.object.get_or_insert_default();
        let end = range.end.min(object.size);
        if range.start >= end || bytes.len() as u64 != end - range.start {
            return Ok(()); // It was cut short meanwhile.
        }
        object.data_counter = object
            .data_counter
            .max(self.replica.lock_core().last_number());
        let step = HealDataStep {
            gfid: Some(gfid),
            offset: range.start,
            len: bytes.len() as u64,
            hole: false,
        };
        self.order(Step::HealData(step), bytes, None)?;
        self.order(Step::HealObject(whole), Bytes::new(), None)
    }

    /// Makes the file durable on all copies. Under its key: an fsync that a copy has done is taken
    /// to cover every change of the file ordered before it, so it must not overtake one here.
    pub(super) fn sync(&self, gfid: Gfid) -> Result<(), ScrubError> {
        let step = Step::Fsync(FsyncStep {
            gfid: Some(gfid),
            data_only: false,
        });
        let pass = self.replica.gate.enter(keys_of(&step, SessionId(0)));
        self.order(step, Bytes::new(), Some(pass))
    }

    fn order(&self, step: Step, payload: Bytes, pass: Option<Pass<'_>>) -> Result<(), ScrubError> {
        let everyone = WaitFor::Everyone;
        let (numbered, waiter) = self.replica.order(
            &mut |_| Some(step.clone()),
            payload,
            Origin::default(),
            everyone,
            PATIENCE,
        )?;
        Ok(self.replica.finish(&numbered, &waiter, pass)?)
    }
}
