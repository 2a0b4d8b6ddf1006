//! Names go: of files, of directories.

use mortar_common::FsError;
use mortar_proto::data::change::Step;
use mortar_proto::data::{Object, RmDir, RmDirStep, Unlink, UnlinkStep};

use super::context::{check_name, is_dir};
use super::{Context, PlanError, Planned};

pub(super) fn unlink(op: &Unlink, context: &Context<'_>) -> Result<Planned, PlanError> {
    let parent = context.named(op.parent)?;
    check_name(parent, &op.name)?;
    context.directory(parent)?;
    let (gfid, object) = context.entry(parent, &op.name, op.gfid)?;
    if is_dir(&object) {
        return Err(FsError::IsDirectory.into());
    }
    let is_last = object.nlink <= 1;
    let orphan = is_last && context.is_open(gfid);
    let step = UnlinkStep {
        parent: Some(parent),
        name: op.name.clone(),
        gfid: Some(gfid),
        orphan,
    };
    let mut planned = Planned::disk(Step::Unlink(step), vec![gfid, parent]);
    planned.freed = (is_last && !orphan).then(|| without_links(object));
    Ok(planned)
}

pub(super) fn rmdir(op: &RmDir, context: &Context<'_>) -> Result<Planned, PlanError> {
    let parent = context.named(op.parent)?;
    check_name(parent, &op.name)?;
    context.directory(parent)?;
    let (gfid, object) = context.entry(parent, &op.name, op.gfid)?;
    if !is_dir(&object) {
        return Err(FsError::NotDirectory.into());
    }
    if !context.store.is_empty_dir(gfid)? {
        return Err(FsError::NotEmpty.into());
    }
    let step = RmDirStep {
        parent: Some(parent),
        name: op.name.clone(),
        gfid: Some(gfid),
    };
    let mut planned = Planned::disk(Step::Rmdir(step), vec![gfid, parent]);
    planned.freed = Some(without_links(object));
    Ok(planned)
}

/// The object as a client is told of it once it is gone.
pub(super) fn without_links(object: Object) -> Object {
    Object { nlink: 0, ..object }
}
