//! From fuser's types to ours.

use std::time::UNIX_EPOCH;

use fuser::{FileHandle, INodeNo, LockOwner, TimeOrNow};
use mortar_proto::data::{Caller, LockKind};

use crate::cache::{NodeId, Timestamp};
use crate::fs::{FsResult, KillSetId, LockAsk, LockRange, OpenHow, TimeChange};
use crate::kernel::convert::lock_type_from_kernel;

/// Who asks.
pub fn caller_of(req: &fuser::Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        pid: req.pid(),
        umask: 0,
    }
}

/// Who makes something.
pub fn maker(req: &fuser::Request, umask: u32) -> Caller {
    Caller {
        umask,
        ..caller_of(req)
    }
}

/// How to open.
pub fn open_how(flags: i32) -> OpenHow {
    let kill = KillSetId::NotTold;
    OpenHow { flags, kill }
}

/// All locks are asked for as POSIX locks of the kernel's owner: a flock's owner is its open file,
/// so it behaves as flock does, but the two kinds exclude each other. Guessing the kind would be
/// worse: two mounts that guess differently would both hold the lock.
pub fn lock_ask(
    ino: INodeNo,
    fh: FileHandle,
    owner: LockOwner,
    range: (u64, u64),
    typ: i32,
    pid: u32,
) -> FsResult<LockAsk> {
    Ok(LockAsk {
        node: NodeId(ino.0),
        handle: fh.0,
        owner: owner.0,
        pid,
        kind: LockKind::LockPosix,
        range: LockRange {
            start: range.0,
            end: range.1,
        },
        how: lock_type_from_kernel(typ)?,
    })
}

/// fuser 0.18 takes the nanoseconds of a time before 1970 from the seconds instead of adding them:
/// -1.2 s (-2 s and 800 ms) comes as -2.8 s. So the parts of what it says are the kernel's own.
pub fn time_change(time: TimeOrNow) -> TimeChange {
    match time {
        TimeOrNow::Now => TimeChange::Now,
        TimeOrNow::SpecificTime(time) => TimeChange::To(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Timestamp {
                secs: after.as_secs() as i64,
                nanos: after.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                Timestamp {
                    secs: 0i64
                        .checked_sub_unsigned(before.as_secs())
                        .unwrap_or(i64::MIN),
                    nanos: before.subsec_nanos(),
                }
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kernel::fuser::answer::system_time;

    #[test]
    fn times_before_1970_are_what_the_kernel_said() {
        // As fuser 0.18 makes it of -2 s and 800,000,000 ns.
        let from_fuser = UNIX_EPOCH - Duration::new(2, 800_000_000);
        let change = time_change(TimeOrNow::SpecificTime(from_fuser));
        assert_eq!(
            change,
            TimeChange::To(Timestamp {
                secs: -2,
                nanos: 800_000_000
            })
        );
        let shown = system_time(Timestamp {
            secs: -2,
            nanos: 800_000_000,
        });
        assert_eq!(shown, UNIX_EPOCH - Duration::new(1, 200_000_000));
        // Out of what the system can hold: no panic.
        system_time(Timestamp {
            secs: i64::MAX,
            nanos: 999_999_999,
        });
        system_time(Timestamp {
            secs: i64::MIN,
            nanos: 999_999_999,
        });
    }
}
