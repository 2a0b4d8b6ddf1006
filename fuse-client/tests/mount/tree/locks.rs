//! Locks of the tree.

use mortar_common::{FsError, Gfid};
use mortar_proto::data::{Lock, LockType, Result as OpResult, op, result};

use super::{Fallible, Tree};

impl Tree {
    pub(super) fn judge_lock(&mut self, session: u64, op: op::Op) -> Fallible<OpResult> {
        let need = |gfid: Option<Gfid>| gfid.ok_or(FsError::Invalid);
        match op {
            op::Op::Getlock(o) => {
                let ask = o.lock.ok_or(FsError::Invalid)?;
                let found = self.conflict(session, need(o.gfid)?, &ask).unwrap_or(Lock {
                    r#type: LockType::LockUnlock.into(),
                    ..ask
                });
                Ok(OpResult {
                    ok: Some(result::Ok::Lock(found)),
                    ..Default::default()
                })
            }
            op::Op::Setlock(o) => {
                let gfid = need(o.gfid)?;
                let lock = Lock {
                    session,
                    ..o.lock.ok_or(FsError::Invalid)?
                };
                if lock.r#type() != LockType::LockUnlock {
                    if self.conflict(session, gfid, &lock).is_some() {
                        return Err(FsError::Again);
                    }
                    self.locks.push((gfid, lock));
                } else {
                    self.locks.retain(|(of, held)| {
                        *of != gfid || held.owner != lock.owner || held.session != session
                    });
                }
                self.done(&[gfid])
            }
            op::Op::ReleaseOwner(o) => {
                let gfid = need(o.gfid)?;
                self.locks.retain(|(of, held)| {
                    *of != gfid
                        || held.session != session
                        || if o.whole_handle {
                            held.handle != o.handle
                        } else {
                            held.owner != o.owner
                        }
                });
                self.done(&[gfid])
            }
            _ => Err(FsError::NotSupported),
        }
    }

    fn conflict(&self, session: u64, gfid: Gfid, ask: &Lock) -> Option<Lock> {
        self.locks
            .iter()
            .filter(|(of, held)| {
                *of == gfid
                    && (held.session, held.owner) != (session, ask.owner)
                    && held.start <= ask.end
                    && ask.start <= held.end
                    && (held.r#type() == LockType::LockWrite || ask.r#type() == LockType::LockWrite)
            })
            .map(|(_, held)| *held)
            .next()
    }
}
