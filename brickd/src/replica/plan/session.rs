//! Sessions begin and end; files are opened and closed.

use mortar_common::FsError;
use mortar_proto::data::change::Step;
use mortar_proto::data::{
    Open, OpenStep, Release, ReleaseStep, SessionEndStep, SessionOpen, SessionOpenStep,
};

use super::context::{is_dir, is_file, is_symlink};
use super::setattr::truncate_and_open;
use super::{Context, PlanError, Planned};
use crate::replica::memory::Standing;

pub(super) fn begin(op: &SessionOpen, context: &Context<'_>) -> Result<Planned, PlanError> {
    let standing = context.ask(|memory| Some(memory.standing(context.session)));
    if standing == Some(Standing::Fenced) {
        return Err(FsError::NotConnected.into());
    }
    if standing == Some(Standing::Known) {
        return Ok(Planned::nothing(Vec::new()));
    }
    if !context.ask(|memory| memory.has_room_for_session()) {
        return Err(FsError::Busy.into());
    }
    let step = SessionOpenStep {
        session: context.session.0,
        host: op.host.clone(),
        pid: op.pid,
        mount_point: op.mount_point.clone(),
    };
    Ok(Planned::memory(Step::SessionOpen(step), Vec::new()))
}

pub(super) fn close(context: &Context<'_>) -> Result<Planned, PlanError> {
    let step = SessionEndStep {
        session: context.session.0,
    };
    Ok(Planned::memory(Step::SessionEnd(step), Vec::new()))
}

pub(super) fn open(op: &Open, context: &Context<'_>) -> Result<Planned, PlanError> {
    let gfid = context.named(op.gfid)?;
    let object = context.object(gfid)?;
    if is_symlink(&object) {
        return Err(FsError::Loop.into());
    }
    if is_dir(&object) {
        // A directory has no data that an open would keep: nothing is registered.
        return if op.truncate {
            Err(FsError::IsDirectory.into())
        } else {
            Ok(Planned::nothing(vec![gfid]))
        };
    }
    if !is_file(&object) {
        return Err(FsError::NoDevice.into());
    }
    context.check_open()?;
    if object.nlink == 0 && !op.unnamed {
        // It lives for those who had it open; whoever comes by a name that is gone comes too late.
        return Err(FsError::Stale.into());
    }
    if op.truncate {
        return truncate_and_open(&object, op.kill_suidgid, context);
    }
    if context.ask(|memory| memory.has_open(context.session, gfid)) {
        return Ok(Planned::nothing(vec![gfid]));
    }
    let step = OpenStep {
        session: context.session.0,
        gfid: Some(gfid),
    };
    Ok(Planned::memory(Step::Open(step), vec![gfid]))
}

pub(super) fn release(op: &Release, context: &Context<'_>) -> Result<Planned, PlanError> {
    let gfid = context.named(op.gfid)?;
    if !context.ask(|memory| memory.has_open(context.session, gfid)) {
        return Ok(Planned::nothing(vec![gfid]));
    }
    let step = ReleaseStep {
        session: context.session.0,
        gfid: Some(gfid),
    };
    Ok(Planned::memory(Step::Release(step), vec![gfid]))
}
