//! Sessions, opens, locks.

use mortar_proto::data::{
    Fsync, GetLock, KeepAlive, Lock, LockKind, LockType, Open, Release, ReleaseOwner, SessionClose,
    SetLock, result,
};

use super::*;
use crate::replica::memory::Seen;

fn lock(kind: LockKind, of: LockType, owner: u64, start: u64, end: u64) -> Lock {
    let mut lock = Lock {
        start,
        end,
        owner,
        handle: owner,
        ..Default::default()
    };
    lock.set_kind(kind);
    lock.set_type(of);
    lock
}

fn set_lock(gfid: Gfid, lock: Lock, wait_ms: u32) -> OpKind {
    OpKind::Setlock(SetLock {
        gfid: Some(gfid),
        lock: Some(lock),
        wait_ms,
    })
}

use LockKind::{LockFlock as Flock, LockPosix as Posix};
use LockType::{LockRead as Shared, LockUnlock as Unlock, LockWrite as Exclusive};

#[test]
fn posix_locks() {
    let mut set = Set::new();
    let file = set.file("f", b"");
    set.done(set_lock(file, lock(Posix, Exclusive, 1, 0, 9), 0));
    // Held already: nothing to order.
    set.done(set_lock(file, lock(Posix, Exclusive, 1, 2, 5), 0));
    assert!(set.last.is_none());
    set.refused(
        set_lock(file, lock(Posix, Shared, 2, 9, 20), 0),
        FsError::Again,
    );
    set.done(set_lock(file, lock(Posix, Shared, 2, 10, 20), 0));
    let ask = GetLock {
        gfid: Some(file),
        lock: Some(lock(Posix, Exclusive, 3, 15, 15)),
    };
    let Some(result::Ok::Lock(found)) = set.read(OpKind::Getlock(ask)).unwrap().0.ok else {
        panic!("no lock told")
    };
    assert_eq!(
        (found.owner, found.start, found.end, found.session),
        (2, 10, 20, 7)
    );
    let free = GetLock {
        gfid: Some(file),
        lock: Some(lock(Posix, Exclusive, 3, 50, 60)),
    };
    let Some(result::Ok::Lock(found)) = set.read(OpKind::Getlock(free)).unwrap().0.ok else {
        panic!("no lock told")
    };
    assert_eq!(found.r#type(), Unlock);
    // The kinds do not meet.
    set.done(set_lock(file, lock(Flock, Exclusive, 9, 0, 0), 0));
    set.refused(
        set_lock(file, lock(Posix, Shared, 1, 9, 3), 0),
        FsError::Invalid,
    );
    set.done(set_lock(file, lock(Posix, Unlock, 3, 0, 9), 0));
    assert!(set.last.is_none());
    set.done(set_lock(file, lock(Posix, Unlock, 1, 0, 9), 0));
    set.done(set_lock(file, lock(Posix, Shared, 2, 0, 9), 0));
}

#[test]
fn a_circle_of_waiters_is_refused() {
    let mut set = Set::new();
    let (f, g) = (set.file("f", b""), set.file("g", b""));
    set.done(set_lock(f, lock(Posix, Exclusive, 1, 0, 9), 0));
    set.done(set_lock(g, lock(Posix, Exclusive, 2, 0, 9), 0));
    let wanted = Lock {
        session: 7,
        ..lock(Posix, Exclusive, 1, 0, 9)
    };
    set.refused(set_lock(g, wanted, 100), FsError::Again);
    set.memory.wait_begin(g, &wanted).unwrap();
    set.refused(
        set_lock(f, lock(Posix, Exclusive, 2, 5, 5), 100),
        FsError::Deadlock,
    );
    // Who does not wait cannot deadlock.
    set.refused(
        set_lock(f, lock(Posix, Exclusive, 2, 5, 5), 0),
        FsError::Again,
    );
    set.memory.wait_end(&wanted);
    set.refused(
        set_lock(f, lock(Posix, Exclusive, 2, 5, 5), 100),
        FsError::Again,
    );
}

#[test]
fn a_flock_that_cannot_change_its_type_is_given_up() {
    let mut set = Set::new();
    let file = set.file("f", b"");
    set.done(set_lock(file, lock(Flock, Shared, 1, 0, 0), 0));
    set.done(set_lock(file, lock(Flock, Shared, 2, 0, 0), 0));
    set.refused(
        set_lock(file, lock(Flock, Exclusive, 1, 0, 0), 100),
        FsError::Again,
    );
    assert!(matches!(set.last, Some(Step::Lock(_))));
    // The giving up is not recorded as if the lock had been granted.
    assert_eq!(set.memory.find(set.session, 0, set.number, 0), Seen::New);
    set.done(set_lock(file, lock(Flock, Exclusive, 2, 0, 0), 100));
    set.refused(
        set_lock(file, lock(Flock, Exclusive, 1, 0, 0), 100),
        FsError::Again,
    );
}

#[test]
fn locks_go_with_their_owner_or_handle() {
    let mut set = Set::new();
    let file = set.file("f", b"");
    for kind in [Posix, Flock] {
        set.done(set_lock(file, lock(kind, Exclusive, 1, 0, 9), 0));
    }
    let flush = ReleaseOwner {
        gfid: Some(file),
        owner: 1,
        ..Default::default()
    };
    set.done(OpKind::ReleaseOwner(flush));
    set.done(OpKind::ReleaseOwner(flush));
    assert!(set.last.is_none());
    set.done(set_lock(file, lock(Posix, Exclusive, 2, 0, 9), 0));
    set.refused(
        set_lock(file, lock(Flock, Exclusive, 2, 0, 9), 0),
        FsError::Again,
    );
    let close = ReleaseOwner {
        handle: 1,
        whole_handle: true,
        ..flush
    };
    set.done(OpKind::ReleaseOwner(close));
    set.done(set_lock(file, lock(Flock, Exclusive, 2, 0, 9), 0));
    let unknown = ReleaseOwner {
        handle: 0,
        whole_handle: true,
        ..flush
    };
    set.refused(OpKind::ReleaseOwner(unknown), FsError::Invalid);
}

#[test]
fn opens() {
    let mut set = Set::new();
    let file = set.file("f", b"abc");
    let directory = set.make(Gfid::ROOT, "d", DIR);
    let link = set.make(Gfid::ROOT, "s", LINK);
    let fifo = set.make(Gfid::ROOT, "p", libc::S_IFIFO);
    let open = |gfid, truncate| {
        OpKind::Open(Open {
            gfid: Some(gfid),
            truncate,
            ..Default::default()
        })
    };
    set.done(open(directory, false));
    assert!(set.last.is_none());
    set.refused(open(directory, true), FsError::IsDirectory);
    set.refused(open(link, false), FsError::Loop);
    set.refused(open(fifo, false), FsError::NoDevice);
    let answered = set.done(open(file, true));
    assert_eq!(answered.objects[0].size, 0);
    assert!(set.memory.has_open(set.session, file));
    set.done(open(file, false));
    assert!(set.last.is_none());
    set.done(OpKind::Release(Release { gfid: Some(file) }));
    assert!(!set.memory.is_open(file));
    set.done(OpKind::Release(Release { gfid: Some(file) }));
    assert!(set.last.is_none());
    set.done(OpKind::Fsync(Fsync {
        gfid: Some(file),
        data_only: true,
    }));
    set.refused(
        OpKind::Fsync(Fsync {
            gfid: Some(fifo),
            data_only: true,
        }),
        FsError::Invalid,
    );
    set.done(OpKind::Keepalive(KeepAlive::default()));
}

#[test]
fn a_file_without_a_name_is_not_opened_by_one() {
    let mut set = Set::new();
    let file = set.file("f", b"abc");
    set.open(file);
    set.done(unlink_op("f", None));
    let open = |truncate, unnamed| {
        OpKind::Open(Open {
            gfid: Some(file),
            truncate,
            unnamed,
            ..Default::default()
        })
    };
    set.refused(open(false, false), FsError::Stale);
    set.refused(open(true, false), FsError::Stale);
    set.done(open(false, true));
}

#[test]
fn an_ended_session_holds_nothing_and_does_not_come_back() {
    let mut set = Set::new();
    let file = set.file("f", b"");
    set.open(file);
    set.done(set_lock(file, lock(Posix, Exclusive, 1, 0, 9), 0));
    set.done(unlink_op("f", None));
    set.done(OpKind::SessionClose(SessionClose {}));
    assert_eq!(set.memory.freeable(), [file]);
    set.refused(
        OpKind::SessionOpen(SessionOpen::default()),
        FsError::NotConnected,
    );
    set.refused(
        set_lock(file, lock(Posix, Exclusive, 1, 0, 9), 0),
        FsError::NotConnected,
    );
    let open = Open {
        gfid: Some(file),
        ..Default::default()
    };
    set.refused(OpKind::Open(open), FsError::NotConnected);
}
