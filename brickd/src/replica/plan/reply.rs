//! What a client is told of a change that is done.

use mortar_common::{FsError, Gfid};
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::{Object, Op, Recorded, Result as Answered, result};

use super::context::object_of;
use super::{Answer, PlanError, Planned};
use crate::brick::store::Store;

/// The answer to an operation whose step, if it has one, is applied: with the objects as they are
/// now. An object that is gone is told of with nlink 0.
///
/// # Errors
/// [`PlanError::Brick`] when the brick fails: the change is done, and whoever is primary next
/// answers for it.
pub fn reply_of(planned: &Planned, store: &dyn Store) -> Result<Answered, PlanError> {
    let (ok, created) = match &planned.answer {
        Answer::Done { ok, created } => (ok.clone(), *created),
        Answer::Refused(error) => return Ok(refused(*error)),
    };
    let mut objects = Vec::with_capacity(planned.touched.len());
    for gfid in &planned.touched {
        objects.push(match planned.freed {
            Some(freed) if freed.gfid == Some(*gfid) => freed,
            _ => present_or_gone(store, *gfid)?,
        });
    }
    Ok(Answered {
        errno: 0,
        objects,
        ok,
        created,
    })
}

/// The answer to an operation that was done when its request came before. `previous` is the object
/// the operation before it returned.
///
/// # Errors
/// As [`reply_of`].
pub fn reply_of_recorded(
    op: &Op,
    previous: Option<Gfid>,
    recorded: &Recorded,
    store: &dyn Store,
) -> Result<Answered, PlanError> {
    let mut objects = Vec::new();
    for gfid in touched_by(op, previous, recorded) {
        objects.push(present_or_gone(store, gfid)?);
    }
    let ok = match &op.op {
        Some(OpKind::Write(op)) if op.append => Some(result::Ok::Offset(recorded.offset)),
        Some(OpKind::Write(op)) if op.from_page_cache => Some(result::Ok::Count(u64::from(op.len))),
        Some(OpKind::Write(_) | OpKind::CopyRange(_)) => Some(result::Ok::Count(recorded.count)),
        _ => None,
    };
    Ok(Answered {
        errno: 0,
        objects,
        ok,
        created: recorded.created,
    })
}

/// The answer to an operation that is refused.
pub fn refused(error: FsError) -> Answered {
    Answered {
        errno: error.errno(),
        ..Default::default()
    }
}

/// The object an answer is about: what an absent gfid in the next operation means.
pub fn returned(answered: &Answered) -> Option<Gfid> {
    answered.objects.first().and_then(|object| object.gfid)
}

/// As [`Planned::touched`], from what the operation names and what was recorded of it.
fn touched_by(op: &Op, previous: Option<Gfid>, recorded: &Recorded) -> Vec<Gfid> {
    let mut touched = Vec::from_iter(recorded.gfid);
    match &op.op {
        Some(OpKind::Create(op)) => touched.extend(op.parent.or(previous)),
        Some(OpKind::Link(op)) => touched.extend(op.parent.or(previous)),
        Some(OpKind::Unlink(op)) => touched.extend(op.parent.or(previous)),
        Some(OpKind::Rmdir(op)) => touched.extend(op.parent.or(previous)),
        Some(OpKind::Rename(op)) => {
            touched.extend(op.from_parent.or(previous));
            touched.extend(op.to_parent.or(previous));
        }
        Some(OpKind::CopyRange(op)) => touched.extend(op.from.or(previous)),
        _ => {}
    }
    touched
}

fn present_or_gone(store: &dyn Store, gfid: Gfid) -> Result<Object, PlanError> {
    match object_of(store, gfid) {
        Err(PlanError::Refused(FsError::Stale)) => Ok(Object {
            gfid: Some(gfid),
            ..Default::default()
        }),
        other => other,
    }
}
