//! The marks of one absent or syncing partner: in memory and on the disk, kept as one.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mortar_common::BrickId;
use mortar_proto::data::{Change, EpochRef};

use super::journal::{Journal, Trust, Writer};
use super::marks::{Marks, Scope};
use super::record::MarkRecord;
use crate::brick::{BrickError, Store};

/// What is to become of a change for a syncing copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Send it: the copy applies it.
    Send,
    /// Do not send it: something it touches is pending. It has been marked.
    Marked,
}

struct Inner {
    marks: Marks,
    /// What was sent to the partner while it is healed, and may not have come there. Holds nothing
    /// up; it is written down for the case that this process ends before the partner confirms it.
    sent: Marks,
    journal: Journal,
}

impl Inner {
    fn rewrite(&mut self) -> Result<(), BrickError> {
        self.journal.rewrite(&[&self.marks, &self.sent])
    }
}

/// What one absent or syncing partner may lack. All calls may be made from any thread; they touch
/// the page cache only, but for those that say "durably".
pub struct PartnerMarks {
    partner: BrickId,
    inner: Mutex<Inner>,
    marked: Condvar,
}

impl PartnerMarks {
    /// The partner goes out of `epoch`, lacking `marks`: written down durably.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn begin(
        store: Arc<dyn Store>,
        partner: BrickId,
        epoch: EpochRef,
        writer: &Writer,
        marks: Marks,
    ) -> Result<Self, BrickError> {
        let journal = Journal::begin(store, partner, epoch, writer, &marks)?;
        Ok(Self::of(partner, marks, journal))
    }

    /// What the file is called in which the marks of this partner are written down.
    pub fn file_name(partner: BrickId) -> String {
        Journal::file_name(partner)
    }

    /// What was written down before this start; `None` when nothing was. `last_in_sync`: the epoch
    /// in which the partner was last in sync, as the histories tell. When the marks are doubtful,
    /// what is touched is marked besides.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn load(
        store: Arc<dyn Store>,
        partner: BrickId,
        writer: &Writer,
        last_in_sync: Option<EpochRef>,
    ) -> Result<Option<(Self, Trust)>, BrickError> {
        let loaded = Journal::load(store, partner, writer, last_in_sync)?;
        Ok(loaded.map(|(journal, marks, trust)| (Self::of(partner, marks, journal), trust)))
    }

    fn of(partner: BrickId, marks: Marks, journal: Journal) -> Self {
        let sent = Marks::new();
        let inner = Inner {
            marks,
            sent,
            journal,
        };
        PartnerMarks {
            partner,
            inner: Mutex::new(inner),
            marked: Condvar::new(),
        }
    }

    /// Whose marks these are.
    pub fn partner(&self) -> BrickId {
        self.partner
    }

    /// Marks a change that the partner does not get (absent), or did not apply (it answered
    /// `skipped`). To be called before the change is acknowledged, on every in-sync copy.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn mark(&self, change: &Change) -> Result<(), BrickError> {
        self.edit(|marks, record| {
            let new = marks.add(change);
            *record = new;
        })
    }

    /// Decides about a change for a syncing partner; to be called as it is numbered.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn judge(&self, change: &Change) -> Result<Verdict, BrickError> {
        let mut inner = self.lock();
        if !inner.marks.touches(change) {
            let record = inner.sent.add(change);
            inner.journal.append(&record)?;
            return Ok(Verdict::Send);
        }
        let record = inner.marks.add(change);
        inner.journal.append(&record)?;
        drop(inner);
        self.marked.notify_all();
        Ok(Verdict::Marked)
    }

    /// The syncing partner is gone again, lacking `recent` on top of what was not confirmed.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn lost(&self, recent: &Marks) -> Result<(), BrickError> {
        let mut inner = self.lock();
        inner.marks.reset();
        inner.sent = Marks::new(); // All of it is in `recent`.
        for record in recent.records() {
            inner.marks.restore(&record);
            inner.journal.append(&record)?;
        }
        Ok(())
    }

    /// Everything in this scope is to be compared: `volume heal V full`, or a partner of which too
    /// little is known.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn mark_everything(&self, scope: Scope) -> Result<(), BrickError> {
        self.edit(|marks, record| marks.mark_everything(scope, record))
    }

    /// Marks what a copy says that it changed alone.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn take_in(&self, record: &MarkRecord) -> Result<(), BrickError> {
        self.edit(|marks, new| marks.take_in(record, new))
    }

    /// Makes all marks durable. To be called before an fsync is acknowledged.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn make_durable(&self) -> Result<(), BrickError> {
        self.lock().journal.make_durable()
    }

    /// The partner is in sync: forgets all.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn end(&self) -> Result<(), BrickError> {
        let mut inner = self.lock();
        (inner.marks, inner.sent) = (Marks::new(), Marks::new());
        inner.journal.remove()
    }

    /// Whether the partner lacks nothing and has confirmed all.
    pub fn is_empty(&self) -> bool {
        self.lock().marks.is_empty()
    }

    /// Looks at the marks. `look` must be short: changes wait for it.
    pub fn look<T>(&self, look: impl FnOnce(&Marks) -> T) -> T {
        look(&self.lock().marks)
    }

    /// Changes the marks in memory only: what was carried.
    pub fn carried<T>(&self, change: impl FnOnce(&mut Marks) -> T) -> T {
        change(&mut self.lock().marks)
    }

    /// Changes the marks and writes down what is new.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn edit(&self, change: impl FnOnce(&mut Marks, &mut MarkRecord)) -> Result<(), BrickError> {
        let mut inner = self.lock();
        let mut record = MarkRecord::default();
        change(&mut inner.marks, &mut record);
        inner.journal.append(&record)?;
        drop(inner);
        self.marked.notify_all();
        Ok(())
    }

    /// Drops what a confirmed sync covers. Returns how many marks went.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn synced(&self, up_to: u64) -> Result<usize, BrickError> {
        let mut inner = self.lock();
        let gone = inner.marks.synced(up_to);
        let left = inner.marks.len() + inner.sent.len();
        if inner.journal.is_rewrite_due(left) {
            inner.rewrite()?;
        }
        Ok(gone)
    }

    /// The comparison of everything is done; durably.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn compared_everything(&self, generation: u64) -> Result<(), BrickError> {
        let mut inner = self.lock();
        inner.marks.compared_everything(generation);
        inner.rewrite()
    }

    /// Waits until something is marked, at most so long.
    pub(super) fn wait(&self, at_most: Duration) {
        let inner = self.lock();
        let waited = self.marked.wait_timeout(inner, at_most);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
