//! Attributes change: mode, owner, size, times; and what that clears.

use mortar_common::FsError;
use mortar_proto::data::change::Step;
use mortar_proto::data::{Object, SetAttr, SetAttrStep, SetTime, Time, set_time};

use super::context::{PERMISSIONS, S_IFMT, is_dir, is_file, is_symlink, killed};
use super::{Context, PlanError, Planned, Stamp};

const NANOS_PER_SECOND: u32 = 1_000_000_000;

pub(super) fn setattr(op: &SetAttr, context: &Context<'_>) -> Result<Planned, PlanError> {
    let gfid = context.named(op.gfid)?;
    let object = context.object(gfid)?;
    if op.mode.is_some() && is_symlink(&object) {
        return Err(FsError::NotSupported.into());
    }
    check_size(op.size, &object, context)?;
    let (atime, stamp_atime) = time_of(op.atime.as_ref())?;
    let (mtime, stamp_mtime) = time_of(op.mtime.as_ref())?;
    // A change of owner or group clears setuid, setgid and capabilities, also for root and also
    // when the owner stays the same.
    let chowned = op.uid.is_some() || op.gid.is_some();
    let (after_kill, drop_capability) = if op.kill_suidgid || chowned {
        killed(&object, object.mode)
    } else {
        (None, op.drop_capability && killed(&object, object.mode).1)
    };
    let asked_mode = op
        .mode
        .map(|mode| object.mode & S_IFMT | mode & PERMISSIONS);
    let step = SetAttrStep {
        gfid: Some(gfid),
        mode: match (asked_mode, op.kill_suidgid) {
            (Some(mode), true) => Some(killed(&object, mode).0.unwrap_or(mode)),
            (Some(mode), false) => Some(mode),
            (None, _) => after_kill,
        },
        uid: op.uid,
        gid: op.gid,
        size: op.size,
        atime,
        mtime,
        drop_capability,
        open: false,
    };
    let stamp = Stamp {
        atime: stamp_atime,
        mtime: stamp_mtime || (op.size.is_some() && mtime.is_none()),
    };
    let changes_nothing = step.mode.is_none()
        && !chowned
        && step.size.is_none()
        && step.atime.is_none()
        && step.mtime.is_none()
        && !drop_capability
        && stamp == Stamp::default();
    if changes_nothing {
        return Ok(Planned::nothing(vec![gfid]));
    }
    let mut planned = Planned::disk(Step::Setattr(step), vec![gfid]);
    planned.stamp = stamp;
    Ok(planned)
}

/// The step of an open that empties the file, and registers the open by the way.
pub(super) fn truncate_and_open(
    object: &Object,
    kill_suidgid: bool,
    context: &Context<'_>,
) -> Result<Planned, PlanError> {
    check_size(Some(0), object, context)?;
    let gfid = super::context::gfid_of(object)?;
    let (mode, drop_capability) = if kill_suidgid {
        killed(object, object.mode)
    } else {
        (None, false)
    };
    let step = SetAttrStep {
        gfid: Some(gfid),
        mode,
        size: Some(0),
        drop_capability,
        open: true,
        ..Default::default()
    };
    let mut planned = Planned::disk(Step::Setattr(step), vec![gfid]);
    planned.stamp = Stamp {
        atime: false,
        mtime: true,
    };
    Ok(planned)
}

fn check_size(size: Option<u64>, object: &Object, context: &Context<'_>) -> Result<(), PlanError> {
    let Some(size) = size else { return Ok(()) };
    if is_dir(object) {
        return Err(FsError::IsDirectory.into());
    }
    if !is_file(object) {
        return Err(FsError::Invalid.into());
    }
    if size > context.file_bytes_max() {
        return Err(FsError::FileTooLarge.into());
    }
    Ok(())
}

/// A time as it is asked for: the time itself, or whether it is the time of the change.
fn time_of(asked: Option<&SetTime>) -> Result<(Option<Time>, bool), PlanError> {
    match asked.and_then(|asked| asked.when.as_ref()) {
        None | Some(set_time::When::Now(false)) => Ok((None, false)),
        Some(set_time::When::Now(true)) => Ok((None, true)),
        Some(set_time::When::At(time)) if time.nanos < NANOS_PER_SECOND => Ok((Some(*time), false)),
        Some(set_time::When::At(_)) => Err(FsError::Invalid.into()),
    }
}
