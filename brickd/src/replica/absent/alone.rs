//! What was changed here while a partner was out, and may have been going on by itself.

use std::sync::Arc;

use mortar_common::BrickId;
use mortar_proto::data::{Change, EpochRef, change::Step};

use super::{Absent, is_heal};
use crate::brick::{BrickError, Store};
use crate::heal::marks::Link;
use crate::heal::{Marks, PartnerMarks, Trust};

/// The journal lies beside the partner's marks, under a name that no brick has.
pub(super) fn journal_of(partner: BrickId) -> BrickId {
    BrickId(!partner.0)
}

impl Absent {
    /// A partner went out of `epoch`: from here on, beginning with `unanswered`, what changes is
    /// also kept by itself, durably from the first.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn goes_on_alone<'a>(
        &self,
        partner: BrickId,
        epoch: EpochRef,
        unanswered: impl Iterator<Item = &'a Change>,
    ) -> Result<(), BrickError> {
        let mut inner = self.lock();
        let known = inner.partners.entry(partner).or_default();
        let alone = match &known.alone {
            Some(alone) => Arc::clone(alone),
            None => {
                let begun = PartnerMarks::begin(
                    Arc::clone(&self.store) as Arc<dyn Store>,
                    journal_of(partner),
                    epoch,
                    &self.writer,
                    Marks::new(),
                )?;
                Arc::clone(known.alone.insert(Arc::new(begun)))
            }
        };
        drop(inner);
        for change in unanswered.filter(|change| !is_heal(change)) {
            alone.mark(change)?;
        }
        Ok(())
    }

    /// What was changed here since a partner went out, as it was written down before this start if
    /// need be. `None`: nothing was, so nobody went on alone here.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn changed_alone(&self, partner: BrickId) -> Result<Option<Arc<PartnerMarks>>, BrickError> {
        let mut inner = self.lock();
        let known = inner.partners.entry(partner).or_default();
        if known.alone.is_none() {
            let store = Arc::clone(&self.store) as Arc<dyn Store>;
            let loaded = PartnerMarks::load(store, journal_of(partner), &self.writer, None)?;
            if let Some((marks, trust)) = loaded {
                if let Trust::Doubtful(why) = trust {
                    tracing::info!(%partner, why, "what was changed alone is not known in detail");
                }
                known.alone = Some(Arc::new(marks));
            }
        }
        Ok(known.alone.clone())
    }

    /// Changes of this session bring what the other side changed.
    pub fn merges(&self, session: u64) {
        self.lock().merging.insert(session);
    }

    /// Whether a step that brings what the others changed would take away what was changed here
    /// alone. What is not known in detail is all thought changed.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn would_lose(
        &self,
        others: &[BrickId],
        step: &Step,
        link: Link,
    ) -> Result<bool, BrickError> {
        for other in others {
            let loses = match self.changed_alone(*other)? {
                Some(alone) => alone.look(|marks| marks.would_lose(step, link)),
                None => {
                    let mut all = Marks::new();
                    all.mark_everything(
                        crate::heal::Scope::All,
                        &mut crate::heal::record::MarkRecord::default(),
                    );
                    all.would_lose(step, link)
                }
            };
            if loses {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
