//! The serving side's part in a split: what the other side may bring, which files are in conflict,
//! and what each copy tells of its time alone.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use mortar_common::name::SPLIT_DIR;
use mortar_common::{BrickId, FsError, Gfid};
use mortar_proto::control::HealEntry;
use mortar_proto::data::change::Step;
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::{self, AloneMarks, Change, MergeEnd, Op, Request, SplitWork, result};
use prost::Message;
use tracing::info;

use super::Replica;
use super::plan::{Planned, Work};
use crate::brick::{BrickError, Store};
use crate::heal::marks::Link;
use crate::split::version::{self, PATH_XATTR, Version};

/// Entries of one copy in a report.
const ENTRIES_LISTED: usize = 1_000;

/// The files in conflict: those of which the folder of versions holds the other side's. That
/// folder is the only record of it, and is replicated like any other.
#[derive(Default)]
pub struct Conflicts {
    /// `None`: not looked up since it last changed.
    known: Mutex<Option<HashSet<Gfid>>>,
}

impl Conflicts {
    /// Looks them up again when they are asked for next.
    pub fn forget(&self) {
        *self.lock() = None;
    }

    /// A change is applied, which may have been one of the folder of versions.
    pub fn applied(&self, change: &Change) {
        let of_folder = match &change.step {
            Some(Step::Rename(step)) => {
                [step.from_parent, step.to_parent].contains(&Some(Gfid::SPLIT))
            }
            Some(Step::Unlink(step)) => step.parent == Some(Gfid::SPLIT),
            Some(Step::Rmdir(step)) => step.parent == Some(Gfid::SPLIT),
            Some(Step::Link(step)) => step.parent == Some(Gfid::SPLIT),
            Some(Step::Create(step)) => step.parent == Some(Gfid::SPLIT),
            Some(Step::HealName(step)) => step.parent == Some(Gfid::SPLIT),
            _ => false,
        };
        if of_folder {
            self.forget();
        }
    }

    fn holds(&self, store: &dyn Store, gfid: Gfid) -> Result<bool, BrickError> {
        let mut known = self.lock();
        let conflicts = match &mut *known {
            Some(conflicts) => conflicts,
            unknown => {
                let versions = versions(store)?;
                unknown.insert(versions.iter().map(|version| version.base).collect())
            }
        };
        Ok(conflicts.contains(&gfid))
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashSet<Gfid>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The versions that the folder of versions holds on this brick.
///
/// # Errors
/// Those of the disk.
pub fn versions(store: &dyn Store) -> Result<Vec<Version>, BrickError> {
    version::list(|page| match store.read_dir(page) {
        Ok(listed) => Ok(Some(listed)),
        Err(BrickError::Refused { .. }) => Ok(None),
        Err(failure) => Err(failure),
    })
}

impl Replica {
    /// A request that is not one of files, or one of a session that merges: whose changes are
    /// nobody's own from here on.
    pub(super) fn split_request(
        self: &std::sync::Arc<Self>,
        request: &Request,
    ) -> Result<Option<data::Result>, BrickError> {
        if request.split_work() == SplitWork::SplitMerge {
            self.absent.merges(request.session);
        }
        match &request.ops[..] {
            [
                Op {
                    op: Some(OpKind::MergeEnd(end)),
                },
            ] => self.end_merge(end).map(Some),
            _ => Ok(None),
        }
    }

    /// What another copy changed alone is here: durably, and then its way counts as settled.
    fn end_merge(self: &std::sync::Arc<Self>, end: &MergeEnd) -> Result<data::Result, BrickError> {
        self.store.sync_all()?;
        let (brick, epoch) = (BrickId(end.brick), end.epoch.unwrap_or_default());
        if !self.lock_core().merged(brick, epoch) {
            return Ok(super::plan::refused(FsError::Again));
        }
        info!(
            copy = self.ports.name_of(brick),
            "what it changed alone is merged"
        );
        Ok(data::Result::default())
    }

    /// Why a planned operation may not be done: it belongs to a file in conflict, or is a merge
    /// that would take away what this side changed alone.
    pub(super) fn split_refuses(
        &self,
        work: SplitWork,
        planned: &Planned,
    ) -> Result<Option<FsError>, BrickError> {
        let step = match &planned.work {
            Work::Disk(step) | Work::MemoryOnly(step @ Step::Open(_)) => step,
            Work::MemoryOnly(_) | Work::Nothing => return Ok(None),
        };
        match work {
            SplitWork::SplitResolve => Ok(None),
            SplitWork::SplitMerge => {
                let link = if planned.frees() {
                    Link::Last
                } else {
                    Link::OneOfMany
                };
                let mut others = self.ports.bricks();
                others.retain(|brick| *brick != self.setting().me);
                let loses = self.absent.would_lose(&others, step, link)?;
                Ok(loses.then_some(FsError::ChangedByBoth))
            }
            SplitWork::SplitNone => {
                for gfid in objects_of(step).into_iter().flatten() {
                    if self.conflicts.holds(&*self.store, gfid)? {
                        return Ok(Some(FsError::Io));
                    }
                }
                Ok(None)
            }
        }
    }

    /// Whether an operation reads a file in conflict, or opens it once more: what the client's
    /// kernel has cached of it would be read without another request.
    ///
    /// # Errors
    /// Those of the disk.
    pub(super) fn is_in_conflict(
        &self,
        op: &Op,
        previous: Option<Gfid>,
        work: SplitWork,
    ) -> Result<bool, BrickError> {
        let gfid = match &op.op {
            Some(OpKind::Read(read)) => read.gfid.or(previous),
            Some(OpKind::Seek(seek)) => seek.gfid.or(previous),
            Some(OpKind::Getattr(get)) if get.for_open => get.gfid.or(previous),
            _ => None,
        };
        match gfid {
            Some(gfid) if work == SplitWork::SplitNone => self.conflicts.holds(&*self.store, gfid),
            _ => Ok(false),
        }
    }

    /// What this copy changed while another was out, for who heals it.
    pub(super) fn tell_changed_alone(&self, ask: &AloneMarks) -> data::Result {
        let alone = match self.absent.changed_alone(BrickId(ask.of_brick)) {
            Ok(alone) => alone,
            Err(failure) => return super::plan::refused(failure.fs_error()),
        };
        let record = alone.and_then(|alone| alone.look(|marks| marks.records_after(ask.after)));
        let Some((record, last)) = record else {
            return data::Result::default();
        };
        data::Result {
            objects: vec![data::Object {
                gfid: Some(last),
                ..Default::default()
            }],
            ok: Some(result::Ok::Bytes(Bytes::from(record.encode_to_vec()))),
            ..Default::default()
        }
    }

    /// What `volume heal V info split-brain` lists of this copy: files in conflict with the place of
    /// the other version; of a closed copy all that it changed alone.
    pub fn split_entries(&self) -> Vec<HealEntry> {
        let listed = if self.is_closed_by_a_split() {
            let others = self.ports.bricks().into_iter();
            let others = others.filter(|brick| *brick != self.setting().me);
            Ok(others.flat_map(|brick| self.entries_alone(brick)).collect())
        } else {
            self.entries_in_conflict()
        };
        listed.unwrap_or_else(|failure: BrickError| {
            tracing::warn!(%failure, "files in conflict cannot be listed");
            Vec::new()
        })
    }

    fn entries_in_conflict(&self) -> Result<Vec<HealEntry>, BrickError> {
        let mut entries = Vec::new();
        for version in versions(&*self.store)?.into_iter().take(ENTRIES_LISTED) {
            let name = version.name();
            let kept = match self.store.lookup(Gfid::SPLIT, &name) {
                Ok(kept) => kept.gfid.unwrap_or_default(),
                Err(BrickError::Refused { .. }) => continue,
                Err(failure) => return Err(failure),
            };
            let noted = self.store.get_xattr(kept, PATH_XATTR).unwrap_or_default();
            let noted = String::from_utf8_lossy(&noted).into_owned();
            entries.push(HealEntry {
                path: self.store.path_of(version.base).unwrap_or(noted),
                gfid: version.base.to_string(),
                why: format!(
                    "version of {}: /{SPLIT_DIR}/{}",
                    self.ports.name_of(version.brick),
                    String::from_utf8_lossy(&name)
                ),
                split_brain: true,
                healing: false,
            });
        }
        entries.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(entries)
    }

    fn entries_alone(&self, partner: BrickId) -> Vec<HealEntry> {
        let Ok(Some(alone)) = self.absent.changed_alone(partner) else {
            return Vec::new();
        };
        let summaries = alone.look(|marks| marks.summaries(ENTRIES_LISTED));
        let partner = self.ports.name_of(partner);
        let entry = |summary: crate::heal::marks::Summary| HealEntry {
            path: self.store.path_of(summary.gfid).unwrap_or_default(),
            gfid: summary.gfid.to_string(),
            why: format!("changed here and not at {partner}"),
            split_brain: true,
            healing: false,
        };
        summaries.into_iter().map(entry).collect()
    }

    /// Whether this copy is closed because both sides went on alone.
    pub fn is_closed_by_a_split(&self) -> bool {
        self.role().0 == super::core::Role::Split
    }

    /// What this copy changed while `partner` was out.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn changed_alone(
        &self,
        partner: BrickId,
    ) -> Result<Option<std::sync::Arc<crate::heal::PartnerMarks>>, BrickError> {
        self.absent.changed_alone(partner)
    }
}

/// The objects whose content or names a step changes.
fn objects_of(step: &Step) -> [Option<Gfid>; 2] {
    match step {
        Step::Link(step) => [step.gfid, None],
        Step::Unlink(step) => [step.gfid, None],
        // A version that is moved over its file is the decision about it.
        Step::Rename(step) if step.from_parent == Some(Gfid::SPLIT) => [None, None],
        Step::Rename(step) => [step.gfid, step.replaced],
        Step::Setattr(step) => [step.gfid, None],
        Step::Write(step) => [step.gfid, None],
        Step::Fallocate(step) => [step.gfid, None],
        Step::CopyRange(step) => [step.from, step.to],
        Step::Setxattr(step) => [step.gfid, None],
        Step::Removexattr(step) => [step.gfid, None],
        Step::Open(step) => [step.gfid, None],
        _ => [None, None],
    }
}
