//! Requests that were sent more than once.
//!
//! A client sends a request again, under the same (session, slot, seq), when the connection over
//! which it sent it is lost or given up; it takes an answer from the newest connection alone. The
//! earlier copy may still arrive, at this brick or another: it lay in a socket, with a host that
//! passes it on, or in a process that stood still. So such a copy exists only of requests of which
//! one with `again` exists too, and what those come to is recorded on every copy of the set before
//! it is answered: done, refused or nothing to do. A refusal that was not answered before its
//! primary was lost may be judged anew, as nobody has heard of it.

use std::sync::Arc;

use bytes::Bytes;
use mortar_common::{Gfid, SessionId};
use mortar_proto::data::change::Step;
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::{self, Op, ReplyStatus, Request, SettledStep};

use super::{Asked, PATIENCE, Unanswered};
use crate::replica::Replica;
use crate::replica::core::WaitFor;
use crate::replica::memory::Begun;
use crate::replica::order::Origin;

impl Replica {
    /// The request takes its slot. If an earlier copy of it was refused, it stops where that did:
    /// at which operation, and with which errno.
    pub(super) fn begin_slot(
        &self,
        request: &Request,
        session: SessionId,
    ) -> Result<Option<(u32, i32)>, Unanswered> {
        let begun = self.lock_memory().begin(session, request.slot, request.seq);
        match begun {
            Begun::Goes => Ok(None),
            Begun::StopsAt { index, errno } => Ok(Some((index, errno))),
            Begun::Older => Err(old_number()),
        }
    }

    /// Records on every copy what an operation that changed nothing came to, if the request was
    /// sent before: the earlier copy of it, wherever it comes late, must come to the same. Of one
    /// that was sent once there is no other copy, so it costs nothing.
    pub(super) fn settle(
        self: &Arc<Self>,
        request: &Request,
        index: u32,
        errno: i32,
        gfid: Option<Gfid>,
    ) -> Result<(), Unanswered> {
        if !request.again {
            return Ok(());
        }
        let origin = Origin {
            session: request.session,
            slot: request.slot,
            seq: request.seq,
            index,
        };
        let mut step_at = |_| Some(Step::Settled(SettledStep { errno, gfid }));
        let wait = WaitFor::Everyone;
        let (numbered, waiter) = self.order(&mut step_at, Bytes::new(), origin, wait, PATIENCE)?;
        Ok(self.finish(&numbered, &waiter, None)?)
    }

    /// Answers for the durability of what is done. This copy has it on its disk, but if it became
    /// primary since, another copy may merely hold the request of its predecessor.
    pub(super) fn sync_again(
        self: &Arc<Self>,
        gfid: Gfid,
        asked: &Asked<'_>,
    ) -> Result<(), Unanswered> {
        let fsync = data::Fsync {
            gfid: Some(gfid),
            data_only: false,
        };
        let op = Op {
            op: Some(OpKind::Fsync(fsync)),
        };
        // Refused only when the object is gone, and nothing is left to be durable.
        self.carry_out_op(&op, Origin::default(), None, &Bytes::new(), asked)?;
        Ok(())
    }
}

/// Whether success means that every copy has it on its disk.
pub(super) fn is_to_be_durable(op: &Op) -> bool {
    match &op.op {
        Some(OpKind::Fsync(_)) => true,
        Some(OpKind::Write(write)) => write.sync,
        _ => false,
    }
}

pub(super) fn old_number() -> Unanswered {
    Unanswered::new(ReplyStatus::ReplyMalformed, "an old sequence number")
}
