//! Locks are granted, given up, released.

use mortar_common::{FsError, Gfid};
use mortar_proto::data::change::Step;
use mortar_proto::data::{Lock, LockKind, LockStep, LockType, ReleaseOwner, SetLock};

use super::{Answer, Context, PlanError, Planned};
use crate::replica::memory::{Whole, lock_of};

/// Last byte a lock can name.
const END_OF_FILE: u64 = i64::MAX as u64;

/// A lock that is not free is refused with EAGAIN, or with EDEADLK if its owner would wait for it
/// (`wait_ms` is not 0) and so for itself.
pub(super) fn set(op: &SetLock, context: &Context<'_>) -> Result<Planned, PlanError> {
    let gfid = context.named(op.gfid)?;
    let lock = checked(op.lock.as_ref(), context)?;
    context.check_session()?;
    if lock.r#type() == LockType::LockUnlock {
        return if context.ask(|memory| memory.touches_lock(gfid, &lock)) {
            check_room(gfid, context)?;
            Ok(ordered(gfid, lock))
        } else {
            Ok(Planned::nothing(vec![gfid]))
        };
    }
    context.object(gfid)?;
    if context.ask(|memory| memory.holds_lock(gfid, &lock)) {
        return Ok(Planned::nothing(vec![gfid]));
    }
    if context
        .ask(|memory| memory.conflicting_lock(gfid, &lock))
        .is_some()
    {
        return not_free(op, gfid, lock, context);
    }
    check_room(gfid, context)?;
    Ok(ordered(gfid, lock))
}

/// Drops everything an owner holds in the object, or everything taken through a handle.
pub(super) fn release(op: &ReleaseOwner, context: &Context<'_>) -> Result<Planned, PlanError> {
    let gfid = context.named(op.gfid)?;
    let kind = LockKind::try_from(op.kind).map_err(|_| FsError::Invalid)?;
    if op.whole_handle && op.handle == 0 {
        // 0 is no handle: it would mean every lock whose handle is not known.
        return Err(FsError::Invalid.into());
    }
    let mut lock = Lock {
        start: 0,
        end: END_OF_FILE,
        owner: op.owner,
        handle: op.handle,
        session: context.session.0,
        ..Default::default()
    };
    lock.set_kind(kind);
    lock.set_type(LockType::LockUnlock);
    let whole = if op.whole_handle {
        Whole::Handle
    } else {
        Whole::Owner
    };
    if !context.ask(|memory| memory.holds_any(gfid, &lock, whole)) {
        return Ok(Planned::nothing(vec![gfid]));
    }
    let step = LockStep {
        gfid: Some(gfid),
        lock: Some(lock),
        whole_owner: !op.whole_handle,
        whole_handle: op.whole_handle,
    };
    Ok(Planned::memory(Step::Lock(step), vec![gfid]))
}

/// The lock a request names, with its session, whole if it is a flock.
pub(super) fn checked(lock: Option<&Lock>, context: &Context<'_>) -> Result<Lock, PlanError> {
    let lock = lock.ok_or(FsError::Invalid)?;
    LockKind::try_from(lock.kind).map_err(|_| FsError::Invalid)?;
    LockType::try_from(lock.r#type).map_err(|_| FsError::Invalid)?;
    let lock = lock_of(lock, context.session);
    if lock.start > lock.end || lock.end > END_OF_FILE {
        return Err(FsError::Invalid.into());
    }
    Ok(lock)
}

fn not_free(
    op: &SetLock,
    gfid: Gfid,
    lock: Lock,
    context: &Context<'_>,
) -> Result<Planned, PlanError> {
    if op.wait_ms > 0 && context.ask(|memory| memory.would_deadlock(gfid, &lock)) {
        return Err(FsError::Deadlock.into());
    }
    // Who asks for a flock of another type gives up the one it has, granted or not, as on any
    // Linux file system: else two that both want to go from shared to exclusive wait for ever.
    let gives_up = lock.kind() == LockKind::LockFlock
        && context.ask(|memory| memory.touches_lock(gfid, &lock));
    if !gives_up {
        return Err(FsError::Again.into());
    }
    let mut unlock = lock;
    unlock.set_type(LockType::LockUnlock);
    let step = LockStep {
        gfid: Some(gfid),
        lock: Some(unlock),
        ..Default::default()
    };
    let mut planned = Planned::memory(Step::Lock(step), vec![gfid]);
    planned.answer = Answer::Refused(FsError::Again);
    Ok(planned)
}

fn check_room(gfid: Gfid, context: &Context<'_>) -> Result<(), PlanError> {
    if context.ask(|memory| memory.has_room_for_lock(gfid)) {
        Ok(())
    } else {
        Err(FsError::NoLocks.into())
    }
}

fn ordered(gfid: Gfid, lock: Lock) -> Planned {
    let step = LockStep {
        gfid: Some(gfid),
        lock: Some(lock),
        ..Default::default()
    };
    Planned::memory(Step::Lock(step), vec![gfid])
}
