//! Hard links.

use mortar_common::FsError;
use mortar_proto::data::change::Step;
use mortar_proto::data::{Link, LinkStep};

use super::context::{METADATA_BYTES, check_new_name, is_dir, lookup};
use super::{Context, PlanError, Planned};

pub(super) fn link(op: &Link, context: &Context<'_>) -> Result<Planned, PlanError> {
    let gfid = context.named(op.gfid)?;
    let parent = op.parent.or(context.previous).ok_or(FsError::Invalid)?;
    check_new_name(parent, &op.name)?;
    let object = context.object(gfid)?;
    context.directory(parent)?;
    if lookup(context.store, parent, &op.name)?.is_some() {
        return Err(FsError::Exists.into());
    }
    if is_dir(&object) {
        return Err(FsError::NotPermitted.into());
    }
    let orphan = object.nlink == 0;
    if orphan && !op.unnamed {
        return Err(FsError::NotFound.into());
    }
    context.check_links(&object)?;
    context.check_space(METADATA_BYTES, 0)?;
    let step = LinkStep {
        gfid: Some(gfid),
        parent: Some(parent),
        name: op.name.clone(),
        orphan,
    };
    let planned = Planned::disk(Step::Link(step), vec![gfid, parent]);
    Ok(planned.taking(METADATA_BYTES))
}
