//! What the other copies of the set may lack, kept on every in-sync copy.
//!
//! While a partner is in sync, [`Recent`] lists what changed since its last confirmed sync. When
//! it goes out, that list becomes its marks, and from then on every change is marked before it is
//! acknowledged. While this primary heals it, [`PartnerMarks::judge`] decides change by change.
//!
//! With two voters the partner may have gone on alone too. Then it counts what this copy changed
//! since, and not what the partner merely may lack: that is kept beside the marks ([`alone`]).

mod alone;
mod doubt;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::{Change, CopySynced, EpochRef, change::Step};
use mortar_proto::registry::{Copy, Epoch};
use tracing::{info, warn};

use self::doubt::Doubt;
use super::core::Role;
use super::now_ms;
use crate::brick::{BrickError, HealSource, Store, StoredState};
use crate::heal::{Marks, PartnerMarks, Recent, Scope, Touched, Trust, Verdict, Writer};

/// Notes about every other copy.
pub struct Absent {
    me: BrickId,
    store: Arc<dyn HealSource>,
    writer: Writer,
    touched: Touched,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    recent: Recent,
    partners: HashMap<BrickId, Partner>,
    synced_here: u64,
    /// Sessions that bring what the other side of a split changed.
    merging: HashSet<u64>,
    /// The last change when this copy first was in sync in this life.
    in_sync_from: Option<u64>,
}

/// One other copy.
#[derive(Default)]
struct Partner {
    /// It has confirmed that everything up to this number is durable there.
    synced: u64,
    /// The highest number it has itself recorded as durable, as it confirmed.
    recorded: u64,
    /// Everything after this number has been noted here; `None` = nothing has.
    noted_after: Option<u64>,
    /// What it lacks; `None` = it is in sync, as far as this copy knows.
    marks: Option<Arc<PartnerMarks>>,
    /// What was changed here, and cannot have been there, since it went out; with two voters only.
    alone: Option<Arc<PartnerMarks>>,
    /// Being healed from here: changes numbered after this one are judged as they are numbered.
    judged_after: Option<u64>,
    /// It may hold what was never received here.
    doubt: Option<Doubt>,
}

impl Absent {
    /// Notes of the copy `me`, whose brick is in `folder`.
    pub fn new(store: Arc<dyn HealSource>, me: BrickId, folder: &Path) -> Self {
        let writer = Writer::here(folder).unwrap_or_else(|error| {
            warn!(%error, "this boot cannot be told from another: marks will not be believed");
            Writer {
                boot: mortar_common::ids::random_id().to_string(),
                mount: 0,
            }
        });
        Self::written_by(store, me, writer)
    }

    /// Which page cache this copy writes through.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Notes of the copy `me`, whose page cache lives as long as `writer` says.
    pub fn written_by(store: Arc<dyn HealSource>, me: BrickId, writer: Writer) -> Self {
        Absent {
            me,
            touched: Touched::new(Arc::clone(&store) as Arc<dyn Store>),
            inner: Mutex::new(Inner {
                partners: recorded_by(&store.stored_state()),
                ..Inner::default()
            }),
            store,
            writer,
        }
    }

    /// Notes a change that this copy is about to apply: that what it touches is touched; for partners
    /// in sync in the list of recent changes, for absent ones as marks, durable ones when the change
    /// is itself a sync.
    pub fn note(&self, change: &Change) -> Result<(), BrickError> {
        self.touched.before(change, now_ms())?;
        if is_heal(change) {
            return Ok(());
        }
        let durable = syncs(change);
        let mut absent = Vec::new();
        {
            let mut inner = self.lock();
            inner.recent.note(change);
            let merges = inner.merging.contains(&change.session);
            let alone = inner.partners.values().filter_map(|it| it.alone.as_ref());
            absent.extend(alone.filter(|_| !merges).map(|it| (Arc::clone(it), false)));
            for partner in inner.partners.values() {
                let judged = partner
                    .judged_after
                    .is_some_and(|after| change.number > after);
                if let Some(marks) = &partner.marks
                    && (!judged || durable)
                {
                    absent.push((Arc::clone(marks), judged));
                }
            }
        }
        for (marks, judged) in absent {
            if !judged {
                marks.mark(change)?;
            }
            if durable {
                marks.make_durable()?;
            }
        }
        Ok(())
    }

    /// Whether a change is not to be sent to a copy that is being healed, because something it
    /// touches is marked there; it has been marked again then. Asked under the order lock.
    pub fn skips(&self, to: BrickId, change: &Change) -> bool {
        let marks = self.marks(to);
        match marks.map(|marks| marks.judge(change)) {
            Some(Ok(Verdict::Send)) | None => false,
            Some(Ok(Verdict::Marked)) => true,
            Some(Err(failure)) => {
                warn!(%failure, "a mark could not be written down");
                true
            }
        }
    }

    /// A copy that is being healed did not apply this change.
    pub fn mark_again(&self, copy: BrickId, change: &Change) {
        if let Some(marks) = self.marks(copy)
            && let Err(failure) = marks.mark(change)
        {
            warn!(%failure, "a mark could not be written down");
        }
    }

    /// A copy that is to be healed says up to which number it has recorded a sync. Less than it
    /// has confirmed here means that it was rolled back: everything is compared.
    pub fn returned(&self, copy: BrickId, synced: u64) -> Result<(), BrickError> {
        let (known, marks) = {
            let inner = self.lock();
            let partner = inner.partners.get(&copy);
            (
                partner.map_or(0, |partner| partner.recorded),
                partner.and_then(|partner| partner.marks.clone()),
            )
        };
        match marks {
            Some(marks) if synced < known => {
                warn!(%copy, synced, known, "a copy was rolled back: everything is compared");
                marks.mark_everything(Scope::All)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A copy (this one included) has confirmed a sync.
    pub fn confirmed(&self, copy: BrickId, number: u64) {
        let mut inner = self.lock();
        if copy == self.me {
            inner.synced_here = inner.synced_here.max(number);
            return;
        }
        let partner = inner.partners.entry(copy).or_default();
        partner.synced = partner.synced.max(number);
        inner.recent.confirmed(copy, number);
    }

    /// The primary tells what copies have confirmed. Nothing is taken over about this one: the
    /// primary counts the syncs of a heal too, which are not recorded in `.mortar/volume`, and what
    /// this copy says of itself must be found there by its next life.
    pub fn heard(&self, synced: &[CopySynced]) {
        for synced in synced.iter().filter(|synced| synced.brick != self.me.0) {
            self.confirmed(BrickId(synced.brick), synced.number);
        }
    }

    /// This primary sends an fsync, or this backup has received one.
    pub fn fsync_ordered(&self, change: &Change) {
        if let Some(Step::Fsync(step)) = &change.step {
            self.lock().recent.fsync_ordered(change.number, step);
        }
    }

    /// A copy has applied the change of this number, which may be an fsync.
    pub fn applied_by(&self, copy: BrickId, number: u64) {
        self.lock().recent.fsync_done(copy, number);
    }

    /// A copy has applied every change up to this number.
    pub fn applied_by_up_to(&self, copy: BrickId, number: u64) {
        self.lock().recent.fsyncs_done(copy, number);
    }

    /// A copy has confirmed a sync that it has recorded in its `.mortar/volume`.
    pub fn recorded(&self, copy: BrickId, number: u64) {
        let mut inner = self.lock();
        let partner = inner.partners.entry(copy).or_default();
        partner.recorded = partner.recorded.max(number);
    }

    /// What each copy in sync has confirmed, to travel with changes. Not of one that is healed: it
    /// lacks what is marked, and who does not know yet that it was out would believe it.
    pub fn news_of_syncs(&self) -> Vec<CopySynced> {
        let inner = self.lock();
        let others = inner
            .partners
            .iter()
            .filter(|(_, partner)| partner.marks.is_none())
            .map(|(brick, partner)| (*brick, partner.synced));
        others
            .chain([(self.me, inner.synced_here)])
            .filter(|(_, number)| *number > 0)
            .map(|(brick, number)| CopySynced {
                brick: brick.0,
                number,
            })
            .collect()
    }

    /// This copy, in the life `incarnation`, has a role in an epoch; the highest number known is
    /// `last`. In sync, it notes changes for the copies that the epoch lists. Once it is healed by
    /// another, it lacks what changed without it: what it had noted of the set's `bricks` is not all
    /// any more, and counts for nothing.
    pub fn in_role(
        &self,
        role: &Role,
        epoch: &Epoch,
        incarnation: Incarnation,
        last: u64,
        bricks: &[BrickId],
    ) -> Result<(), BrickError> {
        if *role == Role::Syncing {
            return self.void(bricks);
        }
        let listed = |copy: &&Copy| copy.brick != self.me.0;
        let me = (self.me.0, incarnation.0);
        if epoch
            .in_sync
            .iter()
            .any(|copy| (copy.brick, copy.incarnation) == me)
        {
            self.lock().in_sync_from.get_or_insert(last);
            for copy in epoch.in_sync.iter().filter(listed) {
                self.is_back(BrickId(copy.brick));
                self.follow(BrickId(copy.brick), last);
            }
        }
        Ok(())
    }

    /// Nothing is known of what other copies lack, neither in memory nor on the disk. What this copy
    /// has touched stays known, and so does what it changed alone.
    fn void(&self, bricks: &[BrickId]) -> Result<(), BrickError> {
        let mut inner = self.lock();
        inner.recent = Recent::new();
        for partner in inner.partners.values_mut() {
            partner.noted_after = None;
            partner.judged_after = None;
            partner.doubt = None;
            partner.marks = None;
        }
        let written = self.store.record_files()?;
        for name in bricks.iter().map(|brick| PartnerMarks::file_name(*brick)) {
            if written.contains(&name) {
                self.store.replace_records(&name, &[])?;
            }
        }
        Ok(())
    }

    /// From now on, after the change `number`, what changes is noted for this in-sync copy.
    pub(super) fn follow(&self, copy: BrickId, number: u64) {
        let mut inner = self.lock();
        let partner = inner.partners.entry(copy).or_default();
        if partner.noted_after.is_none() {
            partner.noted_after = Some(number);
            let synced = partner.synced;
            inner.recent.follow(copy, synced);
        }
    }

    /// A copy is in sync: it lacks nothing any more, and what was changed here alone it has.
    pub fn is_back(&self, copy: BrickId) {
        let mut inner = self.lock();
        inner.merging.clear();
        let partner = inner.partners.entry(copy).or_default();
        partner.judged_after = None;
        partner.doubt = None;
        let marks = [partner.marks.take(), partner.alone.take()];
        self.end_marks(copy, marks);
    }

    /// Marks that are done with go, also those that an earlier life wrote and nobody has read since:
    /// they would be believed when the copy goes out again. Under the lock, or marks that are begun
    /// meanwhile would go with them.
    fn end_marks(&self, copy: BrickId, marks: [Option<Arc<PartnerMarks>>; 2]) {
        let names = [copy, alone::journal_of(copy)].map(PartnerMarks::file_name);
        let mut ended = marks
            .into_iter()
            .flatten()
            .try_for_each(|marks| marks.end());
        ended = ended.and_then(|()| {
            let written = self.store.record_files()?;
            let mut left = names.iter().filter(|name| written.contains(name));
            left.try_for_each(|name| self.store.replace_records(name, &[]))
        });
        if let Err(failure) = ended {
            warn!(%failure, "marks that are done with could not be removed");
        }
    }

    /// Copies that are none of the set's have left it for good: nothing is noted for them any more.
    ///
    /// `bricks` is asked under the lock: so it knows every copy that is noted here already, and one
    /// that has just come is not taken for one that has left.
    pub fn forget_all_but(&self, bricks: impl FnOnce() -> Vec<BrickId>) {
        let mut inner = self.lock();
        let bricks = bricks();
        if !bricks.contains(&self.me) {
            return; // It is this copy that has left.
        }
        let gone = inner.partners.keys().filter(|copy| !bricks.contains(copy));
        for copy in gone.copied().collect::<Vec<BrickId>>() {
            inner.recent.forget(copy);
            let partner = inner.partners.remove(&copy).unwrap_or_default();
            info!(%copy, "a copy has left the set: what it lacks is forgotten");
            self.end_marks(copy, [partner.marks, partner.alone]);
        }
    }

    /// A copy went out of `epoch` and may lack `unanswered` on top of what it has not synced.
    pub fn went_out<'a>(
        &self,
        copy: BrickId,
        epoch: EpochRef,
        unanswered: impl Iterator<Item = &'a Change>,
    ) -> Result<(), BrickError> {
        let mut inner = self.lock();
        let noted = inner.partners.get(&copy).is_some_and(|partner| {
            partner
                .noted_after
                .is_some_and(|after| partner.synced >= after)
        });
        let recent = inner.recent.since(copy);
        inner.recent.forget(copy);
        let partner = inner.partners.entry(copy).or_default();
        partner.noted_after = None;
        partner.judged_after = None;
        let marks = match &partner.marks {
            Some(marks) => {
                marks.lost(&recent)?;
                Arc::clone(marks)
            }
            None => {
                let marks = Arc::new(PartnerMarks::begin(
                    Arc::clone(&self.store) as Arc<dyn Store>,
                    copy,
                    epoch,
                    &self.writer,
                    recent,
                )?);
                if !noted {
                    marks.mark_everything(Scope::Touched)?;
                }
                partner.marks = Some(Arc::clone(&marks));
                marks
            }
        };
        for change in unanswered.filter(|change| !is_heal(change)) {
            marks.mark(change)?;
        }
        info!(copy = %copy, everything = !noted, "what an absent copy lacks is written down");
        Ok(())
    }

    /// The marks of a copy that is not in sync: those in memory, those of the disk, or else what
    /// was touched is marked, and everything for a copy that never was in sync. `last_in_sync` is
    /// the newest epoch that lists it.
    pub fn ensure(
        &self,
        copy: BrickId,
        last_in_sync: Option<EpochRef>,
    ) -> Result<Arc<PartnerMarks>, BrickError> {
        let mut inner = self.lock();
        let partner = inner.partners.entry(copy).or_default();
        if let Some(marks) = &partner.marks {
            return Ok(Arc::clone(marks));
        }
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        let loaded = PartnerMarks::load(Arc::clone(&store), copy, &self.writer, last_in_sync)?;
        let marks = match loaded {
            Some((marks, Trust::Fine)) => Arc::new(marks),
            Some((marks, Trust::Doubtful(why))) => {
                info!(%copy, why, "its marks are not all: what was touched will be compared too");
                Arc::new(marks)
            }
            None => {
                let epoch = last_in_sync.unwrap_or_default();
                let marks = PartnerMarks::begin(store, copy, epoch, &self.writer, Marks::new())?;
                marks.mark_everything(match last_in_sync {
                    Some(_) => Scope::Touched,
                    None => Scope::All,
                })?;
                Arc::new(marks)
            }
        };
        partner.marks = Some(Arc::clone(&marks));
        Ok(marks)
    }

    /// This primary begins to heal a copy: changes after `number` are judged for it, and noted, as
    /// they may be lost there again. `in_flight` are those before it that may not be applied here:
    /// they are marked now, or the copy might be healed of all that is marked before they are.
    /// Called under the order lock.
    pub fn heal_begins<'a>(
        &self,
        copy: BrickId,
        number: u64,
        in_flight: impl Iterator<Item = &'a Change>,
    ) -> Result<(), BrickError> {
        let mut inner = self.lock();
        let partner = inner.partners.entry(copy).or_default();
        if let Some(marks) = &partner.marks {
            for change in in_flight.filter(|change| !is_heal(change)) {
                marks.mark(change)?;
            }
        }
        partner.judged_after = Some(number);
        partner.noted_after = Some(number);
        partner.synced = partner.synced.max(number);
        inner.recent.forget(copy);
        inner.recent.follow(copy, number);
        Ok(())
    }

    /// Whether a copy that is being healed lacks nothing, as far as is known here.
    pub fn lacks_nothing(&self, copy: BrickId) -> bool {
        self.marks(copy).is_some_and(|marks| marks.is_empty())
    }

    /// The heal ended without the copy being in sync.
    pub fn heal_ends(&self, copy: BrickId) {
        let mut inner = self.lock();
        let begun = |partner: &mut Partner| partner.judged_after.take().is_some();
        if !inner.partners.get_mut(&copy).is_some_and(begun) {
            return; // It went out meanwhile, and what was noted is in its marks.
        }
        let recent = inner.recent.since(copy);
        inner.recent.forget(copy);
        let Some(partner) = inner.partners.get_mut(&copy) else {
            return;
        };
        partner.noted_after = None;
        if let Some(marks) = &partner.marks
            && let Err(failure) = marks.lost(&recent)
        {
            warn!(%failure, "marks could not be written down");
        }
    }

    /// The marks of a copy, if it has any.
    pub fn marks(&self, copy: BrickId) -> Option<Arc<PartnerMarks>> {
        self.lock()
            .partners
            .get(&copy)
            .and_then(|partner| partner.marks.clone())
    }

    /// All marks there are.
    pub fn all_marks(&self) -> Vec<Arc<PartnerMarks>> {
        self.lock()
            .partners
            .values()
            .filter_map(|partner| partner.marks.clone())
            .collect()
    }

    /// What other copies told this one that they had recorded as durable.
    pub fn recorded_syncs(&self) -> Vec<CopySynced> {
        let inner = self.lock();
        let recorded = inner.partners.iter().map(|(brick, partner)| CopySynced {
            brick: brick.0,
            number: partner.recorded,
        });
        recorded.filter(|synced| synced.number > 0).collect()
    }

    /// Lets go of what was touched, is quiet, and is durable on all copies; `others` are all other
    /// bricks of the set, every one of which must be in sync.
    pub fn settle_touched(&self, others: &[BrickId]) -> Result<(), BrickError> {
        let (number, in_sync_from) = {
            let inner = self.lock();
            let Some(in_sync_from) = inner.in_sync_from else {
                return Ok(());
            };
            let synced = |brick: &BrickId| {
                let partner = inner.partners.get(brick)?;
                partner.marks.is_none().then_some(partner.synced)
            };
            let confirmed: Option<Vec<u64>> = others.iter().map(synced).collect();
            let Some(confirmed) = confirmed else {
                return Ok(());
            };
            let number = confirmed.into_iter().min().unwrap_or(u64::MAX);
            (number.min(inner.synced_here), in_sync_from)
        };
        self.touched
            .synced_everywhere(number, in_sync_from, now_ms())
    }

    /// What another copy would be healed of if it came back now; `None`: as too little is known of
    /// it, everything would be compared. Costs a copy of all that is noted: for checks.
    pub fn may_lack(&self, copy: BrickId) -> Option<Marks> {
        let inner = self.lock();
        let partner = inner.partners.get(&copy)?;
        let noted = partner.noted_after.map(|after| partner.synced >= after);
        let recent = noted.map(|_| inner.recent.since(copy));
        match (&partner.marks, recent) {
            (Some(marks), recent) => {
                let mut marks = marks.look(Marks::clone);
                for record in recent.iter().flat_map(Marks::records) {
                    marks.restore(&record);
                }
                Some(marks)
            }
            (None, recent) => recent.filter(|_| noted == Some(true)),
        }
    }

    /// Whether the list of recent changes is so long that all copies should sync.
    pub fn wants_sync(&self) -> bool {
        self.lock().recent.len() >= crate::heal::recent::RECENT_SYNC_WANTED
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this copy knew of the others when it last wrote it down.
fn recorded_by(stored: &StoredState) -> HashMap<BrickId, Partner> {
    let partner = |synced: &CopySynced| {
        let partner = Partner {
            recorded: synced.number,
            ..Partner::default()
        };
        (BrickId(synced.brick), partner)
    };
    stored.recorded.iter().map(partner).collect()
}

/// Whether a change is part of a heal: it goes to one copy and is noted for nobody.
pub(super) fn is_heal(change: &Change) -> bool {
    matches!(
        change.step,
        Some(Step::HealObject(_) | Step::HealData(_) | Step::HealName(_) | Step::Sync(_))
    )
}

/// Whether acknowledging the change promises that something is durable.
fn syncs(change: &Change) -> bool {
    match &change.step {
        Some(Step::Fsync(_)) => true,
        Some(Step::Write(write)) => write.sync,
        _ => false,
    }
}
