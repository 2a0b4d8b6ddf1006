//! `volume heal V full` on copies that are in sync: a primary compares all of them, under live
//! changes, and reads from the disks what these have written.
//!
//! An object is first compared without holding anything up. Only what seems to differ is looked at
//! again under the object's key, when every change ordered before is applied on all copies: what
//! differs then, no change explains.

mod repair;
#[cfg(test)]
pub(crate) mod rig;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mortar_common::placement::name_hash;
use mortar_common::{BrickId, FsError, Gfid};
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::result::Ok as Answer;
use mortar_proto::data::{self, Lookup, Op, ReadDir};
use tracing::{info, warn};

use super::core::Role;
use super::gate::Pass;
use super::healing::Asker;
use super::keys::{Key, Keys, Mode};
use super::order::NotDone;
use super::{Replica, now_ms};
use crate::brick::BrickError;
use crate::heal::Gone;
use crate::heal::query::{
    NO_DATA, ask_plain_stat, ask_read_dir, ask_sum_on_disk, data_of_any, file_type, found,
    plain_sum, told_data_from,
};
use crate::heal::scrub::{Finding, Judgement, Scrub, What, judge};
use crate::split::merge::MergeError;

/// Bytes of the sums of the first look…
const SUM_BYTES: u64 = 1 << 20;
/// … and of those under the key: the file's changes wait while so much is read on each copy.
const FINE_SUM_BYTES: u64 = 64 * 1024;
/// Bytes of names asked for at a time.
const PAGE_BYTES: u32 = 64 << 10;
/// Differing names of a directory that are looked at again; of more the rest is found next time.
const NAMES_MAX: usize = 1_024;
/// Pieces of a file that are looked at again at a time: a file may differ throughout.
const PIECES_MAX: usize = 1_024;
/// Ranges of a file that are named in the log; of more only their number.
const RANGES_SAID: usize = 4;
/// Every change ordered before is applied everywhere within this, or the object is left for later.
const APPLIED_WITHIN_MS: u64 = 5_000;
/// A comparison rests for as long as it has worked, so it takes half of a disk's time at most; but
/// never longer than this at once.
const REST_MAX: Duration = Duration::from_secs(1);
/// How long an order of a repair may wait for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a comparison was cut off; it is asked for anew with `volume heal V full`.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// The set changed, or a copy is gone.
    #[error("the copies are not what they were")]
    Changed,
    /// A brick cannot be read.
    #[error(transparent)]
    Brick(#[from] BrickError),
    /// The volume answers otherwise than it should.
    #[error("the volume answers: {0}")]
    Volume(#[from] FsError),
}

impl From<Gone> for ScrubError {
    fn from(_: Gone) -> Self {
        ScrubError::Changed
    }
}

impl From<MergeError> for ScrubError {
    fn from(error: MergeError) -> Self {
        match error {
            MergeError::Base(error) => ScrubError::Volume(error),
            MergeError::Side(failure) => ScrubError::Brick(failure),
            MergeError::Restless(_) => ScrubError::Changed,
        }
    }
}

impl From<NotDone> for ScrubError {
    fn from(_: NotDone) -> Self {
        ScrubError::Changed
    }
}

/// A file of which two copies hold different bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Differing {
    /// The file.
    pub gfid: Gfid,
    /// Where.
    pub ranges: Vec<Range<u64>>,
}

/// What was found of one object so far.
#[derive(Default)]
struct Seen {
    /// Bytes of one copy were replaced by those of a majority.
    repaired: bool,
    /// Bytes of which nobody can tell which copy has the right ones.
    differing_bytes: u64,
    /// People were told of it.
    told: bool,
}

/// What becomes of a file that only people can decide about.
pub trait KeepVersions {
    /// Keeps the other copy's version as a conflict, durably; then all copies get this one's.
    ///
    /// # Errors
    /// Why that could not be done; the file is reported as different.
    fn keep(&self, scrubber: &Scrubber<'_>, differing: &Differing) -> Result<(), ScrubError>;
}

/// One comparison of the copies of a set, by its primary.
pub struct Scrubber<'a> {
    replica: &'a Arc<Replica>,
    scrub: Arc<Scrub>,
    epoch: u64,
    copies: Vec<Asker>,
}

impl Replica {
    /// The comparison of in-sync copies that runs, or ran last.
    pub(super) fn scrub(&self) -> Option<Arc<Scrub>> {
        super::lock(&self.scrub).clone()
    }

    /// Begins one, if this copy is the primary of a set that has all its copies in sync, and none
    /// runs.
    pub fn begin_scrub(self: &Arc<Self>) -> Option<Scrubber<'_>> {
        let (role, epoch) = self.role();
        let bricks = self.ports.bricks();
        let whole = bricks.len() > 1 && epoch.in_sync.len() == bricks.len();
        if role != Role::Primary || !whole {
            return None;
        }
        let mut last = super::lock(&self.scrub);
        if last.as_ref().is_some_and(|last| !last.has_ended()) {
            return None;
        }
        let scrub = Arc::new(Scrub::default());
        *last = Some(Arc::clone(&scrub));
        let me = self.setting().me;
        let others = bricks.into_iter().filter(|brick| *brick != me);
        Some(Scrubber {
            replica: self,
            scrub,
            epoch: epoch.id,
            copies: others.map(|brick| Asker::new(self, brick)).collect(),
        })
    }
}

impl Scrubber<'_> {
    /// Compares everything.
    pub fn run(self, versions: &dyn KeepVersions) {
        let volume = &self.replica.setting().volume_name;
        info!(volume, "comparing the copies");
        let done = self.compare_all(versions);
        let (compared, repaired) = self.scrub.counts();
        match done {
            Ok(()) => info!(volume, compared, repaired, "the copies are compared"),
            Err(ScrubError::Brick(failure)) => self.replica.disk_failed(&failure.to_string()),
            Err(error) => info!(volume, compared, %error, "the comparison was cut off"),
        }
        self.scrub.end();
    }

    /// The primary's copy.
    pub fn replica(&self) -> &Arc<Replica> {
        self.replica
    }

    /// The other copies.
    pub fn others(&self) -> Vec<BrickId> {
        self.copies.iter().map(Asker::copy).collect()
    }

    fn compare_all(&self, versions: &dyn KeepVersions) -> Result<(), ScrubError> {
        let mut after = None;
        loop {
            let chunk = crate::heal::healer::next_chunk(
                &**self.replica.store(),
                after,
                &|_| true,
                &|| self.check().is_err(),
            )?;
            self.check()?;
            let Some(last) = chunk.back() else {
                return Ok(());
            };
            after = Some(*last);
            for gfid in chunk {
                let began = Instant::now();
                self.check()?;
                self.compare(gfid, versions)?;
                self.scrub.add_compared(1);
                std::thread::sleep(began.elapsed().min(REST_MAX));
            }
        }
    }

    fn check(&self) -> Result<(), ScrubError> {
        let (role, epoch) = self.replica.role();
        let same = role == Role::Primary && epoch.id == self.epoch && !self.replica.is_stopped();
        if same {
            Ok(())
        } else {
            Err(ScrubError::Changed)
        }
    }

    fn compare(&self, gfid: Gfid, versions: &dyn KeepVersions) -> Result<(), ScrubError> {
        let Some(object) = found(self.replica.store().object(gfid))? else {
            return Ok(());
        };
        let mut seen = Seen::default();
        if judge(&self.plain_sums(gfid)?) != Judgement::Equal {
            self.look_again(gfid, vec![What::Attributes], &mut seen, versions)?;
        }
        match file_type(&object) {
            libc::S_IFREG => self.compare_content(gfid, object.size, &mut seen, versions)?,
            libc::S_IFDIR => {
                let names = self.differing_names(gfid)?.map(What::Name).collect();
                self.look_again(gfid, names, &mut seen, versions)?;
            }
            _ => {}
        }
        self.conclude(gfid, &seen)
    }

    fn compare_content(
        &self,
        gfid: Gfid,
        size: u64,
        seen: &mut Seen,
        versions: &dyn KeepVersions,
    ) -> Result<(), ScrubError> {
        let mut suspected = Vec::new();
        let mut at = 0;
        while let Some(start) = self.data_of_any(gfid, at..size)? {
            self.check()?;
            let range = start..(start + SUM_BYTES).min(size);
            at = range.end;
            if judge(&self.sums(gfid, &range)?) != Judgement::Equal {
                suspected.extend(pieces(range, FINE_SUM_BYTES).map(What::Bytes));
            }
            if suspected.len() >= PIECES_MAX {
                self.look_again(gfid, std::mem::take(&mut suspected), seen, versions)?;
            }
        }
        self.look_again(gfid, suspected, seen, versions)
    }

    /// Under the key of each: what still differs is settled, or told.
    fn look_again(
        &self,
        gfid: Gfid,
        suspected: Vec<What>,
        seen: &mut Seen,
        versions: &dyn KeepVersions,
    ) -> Result<(), ScrubError> {
        let mut ranges = Vec::new();
        for what in suspected {
            let Some(pass) = self.enter(gfid, &what)? else {
                continue; // Too busy to be judged; compared again next time.
            };
            // From here on each of the copies has all that was ordered: one that had gone out before
            // might outvote those that go on.
            self.check()?;
            match what {
                What::Attributes => {
                    if judge(&self.plain_sums(gfid)?) != Judgement::Equal {
                        self.tell(gfid, "its attributes differ");
                    }
                }
                What::Name(name) => {
                    if judge(&self.held(gfid, &name)?) != Judgement::Equal {
                        let name = String::from_utf8_lossy(&name).into_owned();
                        self.tell(gfid, &format!("what it holds as '{name}' differs"));
                    }
                }
                What::Bytes(range) => match judge(&self.sums(gfid, &range)?) {
                    Judgement::Equal => {}
                    Judgement::Right(copy) => {
                        let bytes = self.read(copy, gfid, &range)?;
                        self.repair(gfid, &range, bytes)?;
                        seen.repaired = true;
                    }
                    Judgement::Nobody => add_range(&mut ranges, range),
                },
            }
            drop(pass);
        }
        if ranges.is_empty() {
            return Ok(());
        }
        self.settle(Differing { gfid, ranges }, seen, versions)
    }

    /// Bytes of which nobody can tell which are right: of two copies both are kept.
    fn settle(
        &self,
        differing: Differing,
        seen: &mut Seen,
        versions: &dyn KeepVersions,
    ) -> Result<(), ScrubError> {
        let (gfid, ranges) = (differing.gfid, &differing.ranges);
        if seen.differing_bytes == 0 {
            warn!(
                path = self.replica.store().path_of(gfid).unwrap_or_default(),
                %gfid,
                ranges = ranges.len(),
                first = ?&ranges[..ranges.len().min(RANGES_SAID)],
                "the copies of a file differ, and no change explains it"
            );
        }
        seen.differing_bytes += ranges.iter().map(|it| it.end - it.start).sum::<u64>();
        if seen.told {
            return Ok(());
        }
        if self.copies.len() > 1 {
            seen.told = true;
            self.tell(gfid, "its content differs on every copy");
        } else if let Err(error) = versions.keep(self, &differing) {
            seen.told = true;
            info!(%gfid, %error, "the copies could not be made equal with the other version kept");
            let what = format!("its content differs (both versions could not be kept: {error})");
            self.tell(gfid, &what);
        }
        self.check()
    }

    fn conclude(&self, gfid: Gfid, seen: &Seen) -> Result<(), ScrubError> {
        if seen.differing_bytes > 0 {
            info!(%gfid, bytes = seen.differing_bytes, "what of the file differed");
        }
        if seen.repaired {
            self.sync(gfid)?;
            self.check()?; // What a copy that went out lacks is marked, and is not repaired yet.
            let path = self.replica.store().path_of(gfid).unwrap_or_default();
            warn!(path, %gfid, "one of three copies had other bytes than the others: repaired");
            self.scrub.add_repaired();
        }
        Ok(())
    }

    /// Holds the key of what is looked at, with every change before it applied on all copies.
    fn enter(&self, gfid: Gfid, what: &What) -> Result<Option<Pass<'_>>, ScrubError> {
        let mut keys = Keys::none();
        match what {
            What::Attributes | What::Bytes(_) => keys.add(Key::Object(gfid), Mode::Remove),
            What::Name(name) => keys.add(Key::Name(gfid, name_hash(gfid, name)), Mode::Change),
        }
        let pass = self.replica.gate.enter(keys);
        let number = self.replica.lock_core().last_number();
        let give_up_ms = now_ms() + APPLIED_WITHIN_MS;
        while self.replica.lock_core().complete() < number {
            self.check()?;
            if now_ms() >= give_up_ms {
                return Ok(None);
            }
            self.replica.wait_for_move(Duration::from_millis(5));
        }
        Ok(Some(pass))
    }

    fn tell(&self, gfid: Gfid, what: &str) {
        let names: Vec<String> = self
            .others()
            .into_iter()
            .map(|copy| self.replica.ports.name_of(copy))
            .collect();
        let why = format!(
            "{what} between this copy and {}, and no change explains it: run 'mortar brick stop' \
             and 'mortar brick start' with the brick that is wrong, and 'mortar volume heal {} \
             full' before it is in sync again",
            names.join(", "),
            self.replica.setting().volume_name
        );
        warn!(%gfid, what, "the copies differ, and no change explains it");
        self.scrub.found(Finding { gfid, why });
    }

    /// Of each copy, this one first; `None` of one that has no such object.
    fn plain_sums(&self, gfid: Gfid) -> Result<Vec<Option<u64>>, ScrubError> {
        let mine = found(self.replica.store().heal_object(gfid))?;
        let mine = mine.as_ref().map(plain_sum);
        self.with_others(mine, ask_plain_stat(gfid), |answer| {
            answer.objects.first()?;
            sum_of(answer)
        })
    }

    fn sums(&self, gfid: Gfid, range: &Range<u64>) -> Result<Vec<Option<u64>>, ScrubError> {
        let (store, len) = (self.replica.store(), range.end - range.start);
        store.forget_cached(gfid, range.start, len);
        let mine = found(store.sum(gfid, range.start, len))?;
        self.with_others(mine, ask_sum_on_disk(gfid, range.start, len), sum_of)
    }

    fn data_of_any(&self, gfid: Gfid, range: Range<u64>) -> Result<Option<u64>, ScrubError> {
        data_of_any(&**self.replica.store(), gfid, range, SUM_BYTES, |ask| {
            self.with_others(Some(NO_DATA), ask, told_data_from)
        })
    }

    /// What a name holds.
    fn held(&self, parent: Gfid, name: &[u8]) -> Result<Vec<Option<Gfid>>, ScrubError> {
        let mine = found(self.replica.store().lookup(parent, name))?;
        let lookup = Lookup {
            parent: Some(parent),
            name: Bytes::copy_from_slice(name),
        };
        let ask = Op {
            op: Some(OpKind::Lookup(lookup)),
        };
        self.with_others(mine.and_then(|mine| mine.gfid), ask, |answer| {
            answer.objects.first().and_then(|object| object.gfid)
        })
    }

    fn with_others<T>(
        &self,
        mine: Option<T>,
        ask: Op,
        told: impl Fn(&data::Result) -> Option<T>,
    ) -> Result<Vec<Option<T>>, ScrubError> {
        let mut all = vec![mine];
        for copy in &self.copies {
            let (answers, _) = copy.ask(vec![ask.clone()])?;
            let answer = answers.first().ok_or(ScrubError::Changed)?;
            let absent = [libc::ENOENT, libc::ESTALE, libc::ENOTDIR];
            if answer.errno != 0 && !absent.contains(&answer.errno) {
                // Its disk failed: it puts itself out.
                return Err(ScrubError::Changed);
            }
            all.push(if answer.errno == 0 {
                told(answer)
            } else {
                None
            });
        }
        Ok(all)
    }

    /// Names of a directory that are not the same on all copies, as far as a look without a key tells.
    fn differing_names(
        &self,
        gfid: Gfid,
    ) -> Result<impl Iterator<Item = Vec<u8>> + use<>, ScrubError> {
        let mut seen: std::collections::BTreeMap<Vec<u8>, Vec<Option<Gfid>>> = Default::default();
        let mut differing = Vec::new();
        let mut page = ReadDir {
            gfid: Some(gfid),
            max_bytes: PAGE_BYTES,
            ..Default::default()
        };
        // Page by page along this copy's listing, so that a big directory is never whole in memory.
        loop {
            self.check()?;
            let mine = found(self.replica.store().read_dir(&page))?.unwrap_or_default();
            let copies = self.copies.len() + 1;
            let (entries, end) = (mine.entries, mine.end);
            let bound = entries.last().map(|last| (last.hash, last.name.clone()));
            let bound = bound.filter(|_| !end);
            for entry in &entries {
                let held = seen
                    .entry(entry.name.to_vec())
                    .or_insert_with(|| vec![None; copies]);
                held[0] = entry.gfid;
            }
            for (at, copy) in self.copies.iter().enumerate() {
                self.list_up_to(copy, &page, bound.as_ref(), |name, gfid| {
                    let held = seen.entry(name).or_insert_with(|| vec![None; copies]);
                    held[at + 1] = gfid;
                })?;
            }
            let odd = std::mem::take(&mut seen)
                .into_iter()
                .filter(|(_, held)| judge(held) != Judgement::Equal)
                .map(|(name, _)| name);
            differing.extend(odd);
            differing.truncate(NAMES_MAX);
            match bound {
                Some((hash, name)) => (page.after_hash, page.after_name) = (hash, name),
                None => return Ok(differing.into_iter()),
            }
        }
    }

    fn list_up_to(
        &self,
        copy: &Asker,
        from: &ReadDir,
        bound: Option<&(u64, Bytes)>,
        mut each: impl FnMut(Vec<u8>, Option<Gfid>),
    ) -> Result<(), ScrubError> {
        let mut page = from.clone();
        loop {
            let (answers, _) = copy.ask(vec![ask_read_dir(&page)])?;
            let listed = match answers.into_iter().next().and_then(|answer| answer.ok) {
                Some(Answer::Readdir(listed)) => listed,
                _ => return Ok(()), // The directory is gone there: its own name tells.
            };
            for entry in &listed.entries {
                let place = (entry.hash, entry.name.clone());
                if bound.is_some_and(|bound| place > *bound) {
                    return Ok(());
                }
                each(entry.name.to_vec(), entry.gfid);
            }
            let Some(last) = listed.entries.last().filter(|_| !listed.end) else {
                return Ok(());
            };
            (page.after_hash, page.after_name) = (last.hash, last.name.clone());
        }
    }
}

fn sum_of(answer: &data::Result) -> Option<u64> {
    match answer.ok {
        Some(Answer::Sum(sum)) => Some(sum),
        _ => None,
    }
}

/// A range in pieces of this size.
fn pieces(range: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> {
    let starts = (range.start..range.end).step_by(size as usize);
    starts.map(move |start| start..(start + size).min(range.end))
}

/// Adds a range behind the others, to the last one if that ends where it begins.
fn add_range(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
