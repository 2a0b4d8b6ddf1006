//! The primary's judgement of one operation: valid or not against the store's present state, and
//! if so the one ordered step it comes to, with nothing left to the copy that applies it.
//!
//! [`plan`] runs while the operation holds its keys ([`super::keys`]), so that the present state
//! is the state after every ordered change that could matter. It changes nothing. [`read()`]
//! answers operations that change nothing; [`reply_of`] answers one whose step is applied, and
//! [`reply_of_recorded`] one that was done before.
//!
//! The permissions of the caller are the kernel's business (`default_permissions`), not ours.
//! Errors come in the order in which Linux gives them for ext4, with one addition: an object that
//! is named by its gfid and is gone, or is not at the name it was said to be at, is ESTALE, upon
//! which the kernel looks the path up again and repeats the operation on what it finds.

mod acl;
mod context;
mod copy;
mod create;
#[cfg(test)]
mod double;
mod fallocate;
mod link;
mod lock;
mod read;
mod rename;
mod reply;
mod session;
mod setattr;
#[cfg(test)]
mod tests;
mod unlink;
mod write;
mod xattr;

use mortar_common::{FsError, Gfid, SessionId};
use mortar_proto::data::change::Step;
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::{Caller, Object, Op, SplitWork, Time, result};
use mortar_proto::registry::Limits;

use super::keys::{Keys, keys_of};
use super::memory::Recall;
use crate::brick::store::{BrickError, Store};

pub use copy::COPY_RANGE_BYTES_MAX;
pub use read::{READ_BYTES_MAX, read};
pub use reply::{refused, reply_of, reply_of_recorded, returned};

/// Why an operation is not done.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// An answer for the application.
    #[error(transparent)]
    Refused(#[from] FsError),
    /// The brick failed, not the operation: this copy is to go out and the next to answer.
    #[error(transparent)]
    Brick(BrickError),
}

impl From<BrickError> for PlanError {
    fn from(error: BrickError) -> Self {
        match error {
            BrickError::Refused { error, .. } => PlanError::Refused(error),
            BrickError::Disk { .. } | BrickError::NotThisBrick(_) => PlanError::Brick(error),
        }
    }
}

/// What the fullest in-sync copy can still take above its reserve, changes under way taken off.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// Bytes of data and metadata.
    pub bytes_left: u64,
    /// Objects (inodes).
    pub objects_left: u64,
}

/// Everything a plan is made from.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Who asks.
    pub caller: &'a Caller,
    /// Whose request it is.
    pub session: SessionId,
    /// The object the previous operation of the request returned: what an absent gfid means.
    pub previous: Option<Gfid>,
    /// This copy's disk.
    pub store: &'a dyn Store,
    /// This copy's memory, looked at for moments only.
    pub memory: &'a dyn Recall,
    /// The volume's limits; 0 = none.
    pub limits: Limits,
    /// Room on the disks.
    pub space: Space,
    /// The keys the operation holds.
    pub held: &'a Keys,
    /// What it has to do with a split.
    pub split: SplitWork,
}

/// What came of planning.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// The operation is valid.
    Ready(Box<Planned>),
    /// The keys held do not do for it: finish the ticket, admit it again with these (they contain
    /// those held), and plan anew.
    MoreKeys(Keys),
}

impl From<Planned> for Plan {
    fn from(planned: Planned) -> Self {
        Plan::Ready(Box::new(planned))
    }
}

/// What a valid operation comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// What is to be ordered.
    pub work: Work,
    /// How many of the operation's payload bytes, from its first, go with the step.
    pub payload_bytes: u32,
    /// What the reply tells of: first the object itself, then the parents, then what else changed.
    pub touched: Vec<Gfid>,
    /// What the client is told besides.
    pub answer: Answer,
    /// Room the step takes on each copy at most, to be taken off while it is under way.
    pub space_bytes: u64,
    /// An object that is freed by the step, as it was.
    freed: Option<Object>,
    stamp: Stamp,
}

/// What is to be ordered.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// A change of the disk.
    Disk(Step),
    /// A change that lives in memory alone: no disk has to do with it.
    MemoryOnly(Step),
    /// Nothing: the operation is answered from what is.
    Nothing,
}

/// What the client is told when the step, if any, is done everywhere.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Success.
    Done {
        /// Offset chosen, bytes done, and the like.
        ok: Option<result::Ok>,
        /// A create made it now.
        created: bool,
    },
    /// A refusal, although a step is ordered first (a flock that is given up while its owner asks
    /// for another type). The change is ordered with session 0, so that nothing records it as done.
    Refused(FsError),
}

/// Which times of a `SetAttrStep` are the time of the change.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Stamp {
    atime: bool,
    mtime: bool,
}

impl Planned {
    /// Puts the time of the change where the step needs it. Called once, when the time is fixed.
    pub fn stamp(&mut self, time: Time) {
        if let Work::Disk(Step::Setattr(step)) = &mut self.work {
            if self.stamp.atime {
                step.atime = Some(time);
            }
            if self.stamp.mtime {
                step.mtime = Some(time);
            }
        }
        if let Some(freed) = &mut self.freed {
            freed.ctime = Some(time);
        }
    }

    /// Whether an object goes with its last name.
    pub fn frees(&self) -> bool {
        let orphan = matches!(self.step(), Some(Step::Unlink(step)) if step.orphan);
        self.freed.is_some() || orphan
    }

    /// The step to be ordered, if there is one.
    pub fn step(&self) -> Option<&Step> {
        match &self.work {
            Work::Disk(step) | Work::MemoryOnly(step) => Some(step),
            Work::Nothing => None,
        }
    }

    fn new(work: Work, touched: Vec<Gfid>) -> Self {
        Planned {
            work,
            payload_bytes: 0,
            touched,
            answer: Answer::Done {
                ok: None,
                created: false,
            },
            space_bytes: 0,
            freed: None,
            stamp: Stamp::default(),
        }
    }

    fn disk(step: Step, touched: Vec<Gfid>) -> Self {
        Planned::new(Work::Disk(step), touched)
    }

    fn memory(step: Step, touched: Vec<Gfid>) -> Self {
        Planned::new(Work::MemoryOnly(step), touched)
    }

    fn nothing(touched: Vec<Gfid>) -> Self {
        Planned::new(Work::Nothing, touched)
    }

    fn answering(mut self, ok: result::Ok) -> Self {
        self.answer = Answer::Done {
            ok: Some(ok),
            created: false,
        };
        self
    }

    fn created(mut self) -> Self {
        self.answer = Answer::Done {
            ok: None,
            created: true,
        };
        self
    }

    fn taking(mut self, bytes: u64) -> Self {
        self.space_bytes = bytes;
        self
    }
}

/// Judges one changing operation.
///
/// # Errors
/// [`PlanError::Refused`] is the operation's answer; nothing is ordered. EINVAL also for an
/// operation that changes nothing: those go to [`read()`]. EAGAIN of a `SetLock` that may wait:
/// give up the keys, note the waiter with [`super::memory::Memory::wait_begin`], and plan anew
/// when a lock of that object went.
pub fn plan(op: &Op, context: &Context<'_>) -> Result<Plan, PlanError> {
    let Some(op) = &op.op else {
        return Err(FsError::Invalid.into());
    };
    let planned = match op {
        OpKind::Create(op) => create::create(op, context),
        OpKind::Link(op) => link::link(op, context),
        OpKind::Unlink(op) => unlink::unlink(op, context),
        OpKind::Rmdir(op) => unlink::rmdir(op, context),
        OpKind::Rename(op) => match rename::rename(op, context)? {
            Plan::Ready(planned) => Ok(*planned),
            more => return Ok(more),
        },
        OpKind::Setattr(op) => setattr::setattr(op, context),
        OpKind::Write(op) => write::write(op, context),
        OpKind::Fallocate(op) => fallocate::fallocate(op, context),
        OpKind::CopyRange(op) => copy::copy_range(op, context),
        OpKind::Setxattr(op) => xattr::set(op, context),
        OpKind::Removexattr(op) => xattr::remove(op, context),
        OpKind::Fsync(op) => write::fsync(op, context),
        OpKind::SessionOpen(op) => session::begin(op, context),
        OpKind::SessionClose(_) => session::close(context),
        OpKind::Keepalive(_) => Ok(Planned::nothing(Vec::new())),
        OpKind::Open(op) => session::open(op, context),
        OpKind::Release(op) => session::release(op, context),
        OpKind::Setlock(op) => lock::set(op, context),
        OpKind::ReleaseOwner(op) => lock::release(op, context),
        OpKind::Lookup(_)
        | OpKind::Getattr(_)
        | OpKind::Readlink(_)
        | OpKind::Read(_)
        | OpKind::Readdir(_)
        | OpKind::Statfs(_)
        | OpKind::Getxattr(_)
        | OpKind::Listxattr(_)
        | OpKind::Seek(_)
        | OpKind::Getlock(_)
        | OpKind::SumRange(_)
        | OpKind::HealStat(_)
        | OpKind::Orphans(_)
        | OpKind::Touched(_)
        | OpKind::AloneMarks(_)
        | OpKind::MergeEnd(_) => Err(FsError::Invalid.into()),
    }?;
    Ok(with_keys(planned, context))
}

/// Whether an operation changes nothing: it is answered by [`read()`], without keys.
pub fn is_read(op: &Op) -> bool {
    matches!(
        op.op,
        Some(
            OpKind::Lookup(_)
                | OpKind::Getattr(_)
                | OpKind::Readlink(_)
                | OpKind::Read(_)
                | OpKind::Readdir(_)
                | OpKind::Statfs(_)
                | OpKind::Getxattr(_)
                | OpKind::Listxattr(_)
                | OpKind::Seek(_)
                | OpKind::Getlock(_)
        )
    )
}

/// The plan, if the keys held do for its step.
fn with_keys(planned: Planned, context: &Context<'_>) -> Plan {
    let needed = planned
        .step()
        .map_or_else(Keys::none, |step| keys_of(step, context.session));
    if context.held.covers(&needed) {
        planned.into()
    } else {
        Plan::MoreKeys(context.held.clone().union(&needed))
    }
}
