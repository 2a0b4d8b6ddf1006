use std::collections::BTreeMap;

use mortar_proto::SLOTS_PER_SESSION;
use mortar_proto::data::{
    CreateStep, FreeStep, LockStep, LockType, OpenStep, ReleaseStep, SessionEndStep,
    SessionOpenStep, SettledStep, UnlinkStep, WriteStep,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const ONE: SessionId = SessionId(1);
const TWO: SessionId = SessionId(2);

fn gfid(lo: u64) -> Gfid {
    Gfid { hi: 3, lo }
}

fn change(session: SessionId, slot: u32, seq: u64, step: Step) -> Change {
    Change {
        number: seq,
        session: session.0,
        slot,
        seq,
        step: Some(step),
        ..Default::default()
    }
}

fn open_session(memory: &mut Memory, session: SessionId) {
    let step = SessionOpenStep {
        session: session.0,
        host: "h".into(),
        ..Default::default()
    };
    memory.apply(&change(session, 0, 1, Step::SessionOpen(step)));
}

fn memory() -> Memory {
    let mut memory = Memory::new();
    open_session(&mut memory, ONE);
    open_session(&mut memory, TWO);
    memory
}

fn apply(memory: &mut Memory, step: Step) {
    memory.apply(&Change {
        step: Some(step),
        ..Default::default()
    });
}

fn write(memory: &mut Memory, seq: u64, index: u32) {
    let step = WriteStep {
        gfid: Some(gfid(9)),
        offset: seq * 10,
        len: 5,
        ..Default::default()
    };
    memory.apply(&Change {
        index,
        ..change(ONE, 3, seq, Step::Write(step))
    });
}

#[test]
fn results_are_kept_until_the_next_request_of_the_slot() {
    let mut memory = memory();
    write(&mut memory, 5, 0);
    write(&mut memory, 5, 2);
    let Seen::Done(done) = memory.find(ONE, 3, 5, 2) else {
        panic!("forgotten")
    };
    assert_eq!((done.offset, done.count, done.gfid), (50, 5, Some(gfid(9))));
    assert_eq!(memory.find(ONE, 3, 5, 1), Seen::New);
    assert_eq!(memory.find(ONE, 3, 6, 0), Seen::New);
    assert_eq!(memory.find(ONE, 3, 4, 0), Seen::Older);
    assert_eq!(memory.find(TWO, 3, 5, 0), Seen::New);
    memory.begin(ONE, 3, 6);
    assert_eq!(memory.find(ONE, 3, 5, 2), Seen::Older);
    write(&mut memory, 5, 0);
    assert_eq!(memory.find(ONE, 3, 6, 0), Seen::New);
    write(&mut memory, 7, 0);
    assert!(matches!(memory.find(ONE, 3, 7, 0), Seen::Done(_)));
}

fn settle(memory: &mut Memory, slot: u32, seq: u64, index: u32, errno: i32) {
    let step = SettledStep {
        errno,
        gfid: Some(gfid(9)),
    };
    memory.apply(&Change {
        index,
        ..change(ONE, slot, seq, Step::Settled(step))
    });
}

#[test]
fn a_request_that_was_refused_stops_where_it_did_until_the_next_of_its_slot() {
    let mut memory = memory();
    write(&mut memory, 5, 0);
    settle(&mut memory, 3, 5, 1, libc::EEXIST);
    let stops = Begun::StopsAt {
        index: 1,
        errno: libc::EEXIST,
    };
    assert_eq!(memory.begin(ONE, 3, 5), stops);
    assert!(matches!(memory.find(ONE, 3, 5, 0), Seen::Done(_)));
    assert_eq!(memory.begin(ONE, 3, 6), Begun::Goes);
    assert_eq!(memory.begin(ONE, 3, 5), Begun::Older);
    // Nothing to do is no refusal.
    settle(&mut memory, 3, 6, 0, 0);
    assert_eq!(memory.begin(ONE, 3, 6), Begun::Goes);
    assert!(matches!(memory.find(ONE, 3, 6, 0), Seen::Done(_)));
}

/// A slot whose newest request left no result: a late double of the one before it is known as such
/// by a copy that joined meanwhile.
#[test]
fn a_joining_copy_knows_how_far_every_slot_is() {
    let mut memory = memory();
    write(&mut memory, 5, 0);
    settle(&mut memory, 4, 8, 0, libc::ENOENT);
    memory.begin(ONE, 3, 6);
    let (table, states) = memory.export();
    let mut copy = Memory::new();
    copy.import(&table, &states);
    assert_eq!(copy.begin(ONE, 3, 5), Begun::Older);
    assert_eq!(copy.begin(ONE, 3, 6), Begun::Goes);
    let stops = Begun::StopsAt {
        index: 0,
        errno: libc::ENOENT,
    };
    assert_eq!(copy.begin(ONE, 4, 8), stops);
}

#[test]
fn results_are_bounded() {
    let mut memory = memory();
    let recorded = |slot, index| Recorded {
        session: 1,
        slot,
        seq: 9,
        index,
        ..Default::default()
    };
    memory.record(recorded(SLOTS_PER_SESSION, 0));
    memory.record(recorded(0, OPS_PER_REQUEST_MAX));
    memory.record(Recorded {
        session: 99,
        ..recorded(0, 0)
    });
    assert_eq!(memory.find(ONE, SLOTS_PER_SESSION, 9, 0), Seen::New);
    assert!(memory.export().0.iter().all(|recorded| recorded.seq == 1));
}

fn open(memory: &mut Memory, session: u64, lo: u64) {
    apply(
        memory,
        Step::Open(OpenStep {
            session,
            gfid: Some(gfid(lo)),
        }),
    );
}

fn lock_for(session: u64) -> Lock {
    Lock {
        session,
        r#type: LockType::LockWrite as i32,
        end: 9,
        ..Default::default()
    }
}

fn lock_step(lock: Lock) -> Step {
    Step::Lock(LockStep {
        gfid: Some(gfid(5)),
        lock: Some(lock),
        ..Default::default()
    })
}

#[test]
fn an_end_is_final_and_takes_everything_with_it() {
    let mut memory = memory();
    open(&mut memory, 1, 5);
    apply(&mut memory, lock_step(lock_for(1)));
    assert!(memory.is_open(gfid(5)) && memory.conflicting_lock(gfid(5), &lock_for(2)).is_some());
    apply(&mut memory, Step::SessionEnd(SessionEndStep { session: 1 }));
    assert_eq!(memory.standing(ONE), Standing::Fenced);
    assert_eq!(memory.standing(SessionId(77)), Standing::Unknown);
    // What was ordered before the end and comes after it, or a late begin, changes nothing.
    open(&mut memory, 1, 6);
    apply(&mut memory, lock_step(lock_for(1)));
    open_session(&mut memory, ONE);
    assert_eq!(memory.standing(ONE), Standing::Fenced);
    assert!(!memory.is_open(gfid(5)) && !memory.is_open(gfid(6)));
    assert!(memory.conflicting_lock(gfid(5), &lock_for(2)).is_none());
}

#[test]
fn an_orphan_is_freed_when_nobody_has_it_open() {
    let mut memory = memory();
    open(&mut memory, 1, 5);
    open(&mut memory, 2, 5);
    let unlink = UnlinkStep {
        gfid: Some(gfid(5)),
        orphan: true,
        ..Default::default()
    };
    apply(&mut memory, Step::Unlink(unlink));
    apply(&mut memory, Step::SessionEnd(SessionEndStep { session: 1 }));
    assert!(memory.is_open(gfid(5)) && memory.freeable().is_empty());
    apply(
        &mut memory,
        Step::Release(ReleaseStep {
            session: 2,
            gfid: Some(gfid(5)),
        }),
    );
    assert!(memory.freeable() == [gfid(5)] && memory.may_free(gfid(5)));
    memory.set_reclaim(Reclaim::Running);
    assert!(memory.freeable().is_empty() && memory.is_open(gfid(1)));
    memory.set_reclaim(Reclaim::Over);
    apply(
        &mut memory,
        Step::Free(FreeStep {
            gfid: Some(gfid(5)),
        }),
    );
    assert!(memory.freeable().is_empty() && !memory.may_free(gfid(5)));
}

/// The unlock of a close may be lost, and the file then released: the lock would stay until the end
/// of the session.
#[test]
fn a_lock_goes_with_the_last_handle_of_its_session() {
    let mut memory = memory();
    for session in [1, 2] {
        open(&mut memory, session, 5);
    }
    apply(&mut memory, lock_step(lock_for(1)));
    assert!(memory.conflicting_lock(gfid(5), &lock_for(2)).is_some());
    let release = |session| ReleaseStep {
        session,
        gfid: Some(gfid(5)),
    };
    apply(&mut memory, Step::Release(release(2)));
    assert!(memory.conflicting_lock(gfid(5), &lock_for(2)).is_some());
    apply(&mut memory, Step::Release(release(1)));
    assert!(memory.conflicting_lock(gfid(5), &lock_for(2)).is_none());
}

#[test]
fn who_was_not_heard() {
    let mut memory = memory();
    assert!(memory.silent(1_000_000, 10).is_empty() && memory.last_heard_ms().is_none());
    memory.start_hearing(100);
    memory.heard(ONE, 200);
    assert_eq!(memory.silent(205, 100), [TWO]);
    assert_eq!(memory.silent(400, 100), [ONE, TWO]);
    assert_eq!(memory.last_heard_ms(), Some(200));
    memory.forgive_silence(350);
    assert!(memory.silent(400, 100).is_empty(), "it could not be heard");
    assert_eq!(memory.silent(451, 100), [ONE, TWO]);
}

#[test]
fn a_joining_copy_gets_all_of_it() {
    let mut memory = memory();
    let create = CreateStep {
        gfid: Some(gfid(4)),
        open: true,
        ..Default::default()
    };
    memory.apply(&change(ONE, 1, 8, Step::Create(create)));
    write(&mut memory, 6, 0);
    for (start, end) in [(0, 4), (10, 14)] {
        let r#type = LockType::LockRead as i32;
        let lock = Lock {
            session: 2,
            owner: 8,
            r#type,
            start,
            end,
            ..Default::default()
        };
        let lock = LockStep {
            gfid: Some(gfid(4)),
            lock: Some(lock),
            ..Default::default()
        };
        apply(&mut memory, Step::Lock(lock));
    }
    apply(
        &mut memory,
        Step::SessionEnd(SessionEndStep { session: 55 }),
    );
    let (table, states) = memory.export();
    let mut copy = Memory::new();
    open_session(&mut copy, SessionId(1234));
    copy.add_orphans([gfid(70)]);
    copy.clear();
    // In parts, as frames bound them.
    for state in &states {
        copy.import(&[], std::slice::from_ref(state));
    }
    for recorded in &table {
        copy.import(std::slice::from_ref(recorded), &[]);
    }
    assert_eq!(copy.export(), (table, states));
    assert!(copy.is_open(gfid(4)) && copy.is_orphan(gfid(70)));
    assert_eq!(copy.standing(SessionId(55)), Standing::Fenced);
    assert_eq!(copy.standing(SessionId(1234)), Standing::Unknown);
}

/// Every byte's locks, kept the plain way.
type Plain = BTreeMap<(u64, u64), (u64, i32)>;

#[test]
fn locks_are_what_byte_by_byte_would_be() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut memory = memory();
        // (owner, byte) -> (handle, type)
        let mut plain = Plain::new();
        for _ in 0..60 {
            let start = random.random_range(0..20);
            let end = random.random_range(start..20);
            let mut lock = Lock {
                session: random.random_range(1..3),
                start,
                end,
                handle: random.random_range(1..3),
                r#type: random.random_range(0..3),
                ..Default::default()
            };
            lock.owner = lock.session;
            let free = (start..=end).all(|byte| {
                (1..3).filter(|owner| *owner != lock.owner).all(|owner| {
                    plain.get(&(owner, byte)).is_none_or(|(_, held)| {
                        lock.r#type() == LockType::LockUnlock || (*held == 0 && lock.r#type == 0)
                    })
                })
            });
            assert_eq!(
                memory.conflicting_lock(gfid(1), &lock).is_none(),
                free,
                "seed {seed}"
            );
            if free {
                let step = LockStep {
                    gfid: Some(gfid(1)),
                    lock: Some(lock),
                    ..Default::default()
                };
                apply(&mut memory, Step::Lock(step));
                for byte in start..=end {
                    plain.remove(&(lock.owner, byte));
                    if lock.r#type() != LockType::LockUnlock {
                        plain.insert((lock.owner, byte), (lock.handle, lock.r#type));
                    }
                }
            }
            check_locks(&memory, &plain, seed);
        }
    }
}

fn check_locks(memory: &Memory, plain: &Plain, seed: u64) {
    let mut found = Plain::new();
    let (_, states) = memory.export();
    let held: Vec<Lock> = states
        .iter()
        .flat_map(|state| &state.locks)
        .filter_map(|held| held.lock)
        .collect();
    for lock in &held {
        for byte in lock.start..=lock.end {
            let before = found.insert((lock.owner, byte), (lock.handle, lock.r#type));
            assert!(
                before.is_none(),
                "two locks of one owner on byte {byte}, seed {seed}"
            );
        }
        let neighbour = held.iter().any(|other| {
            (other.owner, other.handle, other.r#type) == (lock.owner, lock.handle, lock.r#type)
                && other.start == lock.end + 1
        });
        assert!(!neighbour, "neighbours that are not joined, seed {seed}");
    }
    assert_eq!(&found, plain, "seed {seed}");
}

#[test]
fn a_lock_to_the_end_of_the_file_can_be_split() {
    let mut memory = memory();
    let end = i64::MAX as u64;
    let whole = Lock {
        session: 1,
        r#type: LockType::LockWrite as i32,
        end,
        ..Default::default()
    };
    let step = |lock| {
        Step::Lock(LockStep {
            gfid: Some(gfid(1)),
            lock: Some(lock),
            ..Default::default()
        })
    };
    apply(&mut memory, step(whole));
    let hole = Lock {
        start: 5,
        end: 6,
        r#type: LockType::LockUnlock as i32,
        ..whole
    };
    apply(&mut memory, step(hole));
    let other = Lock {
        session: 2,
        start: 5,
        end: 6,
        ..whole
    };
    assert!(memory.conflicting_lock(gfid(1), &other).is_none());
    assert!(
        memory
            .conflicting_lock(gfid(1), &Lock { end: 7, ..other })
            .is_some()
    );
    assert!(
        memory
            .conflicting_lock(
                gfid(1),
                &Lock {
                    start: end,
                    end,
                    ..other
                }
            )
            .is_some()
    );
}
