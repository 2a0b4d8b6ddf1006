//! What a comparison changes: all copies get the same bytes, as ordered changes.

use std::ops::Range;

use bytes::Bytes;
use mortar_common::{FsError, Gfid, SessionId};
use mortar_proto::data::change::Step;
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::{self, FsyncStep, Op, Read, SetAttrStep, SetXattrStep, WriteStep};

use super::{Differing, FINE_SUM_BYTES, PATIENCE, ScrubError, Scrubber, pieces};
use crate::heal::query::{ask_data_from, ask_plain_stat, found, told_data_from};
use crate::replica::core::WaitFor;
use crate::replica::gate::Pass;
use crate::replica::keys::{Key, Keys, Mode, keys_of};
use crate::replica::order::Origin;

/// Of what `blocks` of an object counts.
const BLOCK_BYTES: u64 = 512;
/// The kernel takes it away from a file that is written.
const CAPABILITY: &[u8] = b"security.capability";

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
        self.ask(other, ask).map(|(_, payload)| payload)
    }

    /// Where the first data of another copy's file at or behind an offset is; [`NO_DATA`](crate::heal::query::NO_DATA) when all
    /// that follows are holes. Copies are counted as for [`Scrubber::read`].
    ///
    /// # Errors
    /// That the copy, or its file, is gone.
    pub fn data_of(&self, copy: usize, gfid: Gfid, from: u64) -> Result<u64, ScrubError> {
        let (answer, _) = self.ask(copy - 1, ask_data_from(gfid, from))?;
        told_data_from(&answer).ok_or(ScrubError::Changed)
    }

    /// Refuses what the fullest of the copies has no room for: one more of another copy's file.
    ///
    /// # Errors
    /// [`FsError::NoSpace`]; that the copy, or its file, is gone.
    pub fn check_room(&self, copy: usize, gfid: Gfid) -> Result<(), ScrubError> {
        let (answer, _) = self.ask(copy - 1, ask_plain_stat(gfid))?;
        let object = answer.objects.first().ok_or(ScrubError::Changed)?;
        let space = self.replica.space_left();
        if object.blocks * BLOCK_BYTES > space.bytes_left || space.objects_left == 0 {
            return Err(FsError::NoSpace.into());
        }
        Ok(())
    }

    fn ask(&self, other: usize, op: Op) -> Result<(data::Result, Bytes), ScrubError> {
        let (answers, payload) = self.copies[other].ask(vec![op])?;
        match answers.into_iter().next() {
            Some(answer) if answer.errno == 0 => Ok((answer, payload)),
            _ => Err(ScrubError::Changed),
        }
    }

    /// Gives all copies this one's bytes, where they differ. Goes on to the end without a copy that
    /// goes out meanwhile: only so is all of it marked there.
    ///
    /// # Errors
    /// Why not; also that a copy went out: it has what was given only when it is healed.
    pub fn give_mine(&self, differing: &Differing) -> Result<(), ScrubError> {
        let gfid = differing.gfid;
        for range in &differing.ranges {
            for piece in pieces(range.clone(), FINE_SUM_BYTES) {
                let mut keys = Keys::none();
                keys.add(Key::Object(gfid), Mode::Change);
                let pass = self.replica.gate.enter(keys);
                let bytes = self.read(0, gfid, &piece)?;
                self.repair(gfid, &piece, bytes)?;
                drop(pass);
            }
        }
        self.sync(gfid)?;
        self.check()
    }

    /// All copies get these bytes, as a write that nobody sees but in the file's content; whoever has
    /// the file in a cache hears that it changed. Call with its key held.
    ///
    /// The steps of a heal would do with less, but they are noted for nobody: a copy that goes out
    /// before it has them on its disk would come back with what it had.
    pub(super) fn repair(
        &self,
        gfid: Gfid,
        range: &Range<u64>,
        bytes: Bytes,
    ) -> Result<(), ScrubError> {
        let Some(whole) = found(self.replica.store().heal_object(gfid))? else {
            return Ok(());
        };
        let object = whole.object.unwrap_or_default();
        let end = range.end.min(object.size);
        if range.start >= end || bytes.len() as u64 != end - range.start {
            return Ok(()); // It was cut short meanwhile.
        }
        let write = WriteStep {
            gfid: Some(gfid),
            offset: range.start,
            len: bytes.len() as u32,
            ..Default::default()
        };
        self.order(Step::Write(write), bytes, None)?;
        let set = SetAttrStep {
            gfid: Some(gfid),
            mtime: object.mtime,
            ..Default::default()
        };
        self.order(Step::Setattr(set), Bytes::new(), None)?;
        let mut xattrs = whole.xattrs.into_iter();
        let Some(capability) = xattrs.find(|xattr| xattr.name == CAPABILITY) else {
            return Ok(());
        };
        let set = SetXattrStep {
            gfid: Some(gfid),
            name: capability.name,
            value: capability.value,
            ..Default::default()
        };
        self.order(Step::Setxattr(set), Bytes::new(), None)
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
