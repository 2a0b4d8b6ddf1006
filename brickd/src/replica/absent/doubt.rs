//! Copies that may hold what was never received here.

use mortar_common::BrickId;
use mortar_proto::data::EpochRef;

use super::Absent;
use crate::brick::BrickError;
use crate::heal::{Marks, Scope};

/// Why everything is marked for a copy, and what ends that.
pub(super) struct Doubt {
    /// The primary that sends this copy, too, whatever it has sent to that one …
    cleared_by: BrickId,
    /// … before what it orders in an epoch after this.
    after: EpochRef,
    /// The mark of everything that was made for it.
    generation: Option<u64>,
}

impl Absent {
    /// A copy that went out of `epoch` may hold changes that were never received here: everything
    /// is marked for it, until a change comes that `cleared_by` ordered in a later epoch.
    pub fn doubt(
        &self,
        copy: BrickId,
        epoch: EpochRef,
        cleared_by: Option<BrickId>,
    ) -> Result<(), BrickError> {
        let mut inner = self.lock();
        let partner = inner.partners.entry(copy).or_default();
        let Some(marks) = &partner.marks else {
            return Ok(());
        };
        if marks.look(|marks| marks.everything().is_some()) {
            return Ok(());
        }
        // What it has more it has touched.
        marks.mark_everything(Scope::Touched)?;
        let generation = marks.look(Marks::everything);
        partner.doubt = cleared_by.map(|cleared_by| Doubt {
            cleared_by,
            after: epoch,
            generation,
        });
        Ok(())
    }

    /// A change has come that the primary `from` ordered in `epoch`.
    pub fn received(&self, from: BrickId, epoch: EpochRef) -> Result<(), BrickError> {
        let mut inner = self.lock();
        for partner in inner.partners.values_mut() {
            let clears =
                |doubt: &mut Doubt| doubt.cleared_by == from && epoch.number > doubt.after.number;
            if let Some(doubt) = partner.doubt.take_if(clears)
                && let Some(marks) = &partner.marks
                && let Some(generation) = doubt.generation
            {
                marks.compared_everything(generation)?;
            }
        }
        Ok(())
    }
}
