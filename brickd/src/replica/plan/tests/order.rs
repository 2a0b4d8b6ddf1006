//! What keys are for: a copy that runs changes in any order their keys allow ends up the same.

use bytes::Bytes;
use mortar_proto::data::{
    CopyRange, Link, LockKind, LockType, Open, Release, Rename, RmDir, SetAttr, SetLock, SetXattr,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::replica::keys::{KeyQueue, keys_of_step};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Changes that a backup has received and not applied.
const WINDOW: usize = 12;

fn random_op(random: &mut StdRng, set: &Set) -> OpKind {
    let there = set.store.gfids();
    let directories: Vec<Gfid> = there
        .iter()
        .copied()
        .filter(|gfid| set.object(*gfid).mode & DIR == DIR)
        .collect();
    let any = |random: &mut StdRng| there.choose(random).copied();
    let directory = |random: &mut StdRng| directories.choose(random).copied();
    let name = |random: &mut StdRng| NAMES[random.random_range(0..NAMES.len())];
    let parent = directory(random);
    let gfid = any(random);
    let at = name(random);
    match random.random_range(0..14) {
        0..4 => {
            let mode = [FILE, FILE, DIR, LINK][random.random_range(0..4)] | 0o755;
            let mut op = create_op(parent.unwrap_or(Gfid::ROOT), at, mode);
            op.open = random.random_bool(0.3);
            OpKind::Create(op)
        }
        4 => OpKind::Link(Link {
            gfid,
            parent,
            name: at.into(),
            unnamed: false,
        }),
        5 => OpKind::Unlink(Unlink {
            parent,
            name: at.into(),
            gfid: None,
        }),
        6 => OpKind::Rmdir(RmDir {
            parent,
            name: at.into(),
            gfid: None,
        }),
        7 | 8 => OpKind::Rename(Rename {
            from_parent: parent,
            from_name: at.into(),
            to_parent: directory(random),
            to_name: name(random).into(),
            how: random.random_range(0..3),
            ..Default::default()
        }),
        _ => {
            let other = any(random);
            random_change(random, gfid, other)
        }
    }
}

fn random_change(random: &mut StdRng, gfid: Option<Gfid>, other: Option<Gfid>) -> OpKind {
    match random.random_range(0..5) {
        0 => {
            let len = random.random_range(1..9);
            let append = random.random_bool(0.5);
            OpKind::Write(Write {
                gfid,
                len,
                append,
                ..Default::default()
            })
        }
        1 => {
            let mode = Some(random.random_range(0..0o1000));
            OpKind::Setattr(SetAttr {
                gfid,
                mode,
                ..Default::default()
            })
        }
        2 => {
            let (from, to, len) = (gfid, other, 4);
            OpKind::CopyRange(CopyRange {
                from,
                to,
                len,
                ..Default::default()
            })
        }
        3 => match random.random_range(0..3) {
            0 => OpKind::Release(Release { gfid }),
            1 => OpKind::Open(Open {
                gfid,
                ..Default::default()
            }),
            _ => OpKind::Open(Open {
                gfid,
                truncate: true,
                ..Default::default()
            }),
        },
        _ if random.random_bool(0.5) => {
            let (name, value) = ("user.x".into(), Bytes::from(vec![random.random()]));
            OpKind::Setxattr(SetXattr {
                gfid,
                name,
                value,
                ..Default::default()
            })
        }
        _ => {
            let mut lock = mortar_proto::data::Lock {
                start: 1,
                end: 5,
                ..Default::default()
            };
            lock.owner = random.random_range(1..3);
            lock.set_kind(LockKind::LockPosix);
            lock.set_type([LockType::LockWrite, LockType::LockUnlock][random.random_range(0..2)]);
            OpKind::Setlock(SetLock {
                gfid,
                lock: Some(lock),
                wait_ms: 0,
            })
        }
    }
}

/// A primary that has done some hundred random operations.
fn primary(random: &mut StdRng) -> Set {
    let mut set = Set::new();
    set.limits = Limits::default();
    for _ in 0..300 {
        let op = random_op(random, &set);
        // Most of what is wrong is refused, and what is not refused must apply.
        let _ = set.try_with(op, b"12345678");
        if random.random_bool(0.1) {
            for gfid in set.memory.freeable() {
                let step = Step::Free(mortar_proto::data::FreeStep { gfid: Some(gfid) });
                set.number += 1;
                let change = Change {
                    number: set.number,
                    step: Some(step),
                    ..Default::default()
                };
                set.store.apply(&change, b"").unwrap();
                set.memory.apply(&change);
                set.log.push((change, Vec::new()));
            }
        }
    }
    set
}

#[test]
fn a_backup_that_keeps_the_order_of_keys_ends_up_the_same() {
    let mut overtaken = 0;
    for seed in 0..150 {
        let mut random = StdRng::seed_from_u64(seed);
        let primary = primary(&mut random);
        let (store, mut memory) = (Double::new(), Memory::new());
        let mut queue = KeyQueue::new();
        let mut running: Vec<usize> = Vec::new();
        // A client waits for the answer to its SessionOpen, which every copy has applied then.
        memory.apply(&primary.log[0].0);
        let mut received = 1;
        while received < primary.log.len() || !running.is_empty() {
            if received < primary.log.len() && queue.len() < WINDOW {
                if queue.admit(received, keys_of_step(&primary.log[received].0)) {
                    running.push(received);
                }
                received += 1;
                continue;
            }
            let at = running.swap_remove(random.random_range(0..running.len()));
            overtaken += running.iter().filter(|other| **other < at).count();
            let (change, payload) = &primary.log[at];
            store.apply(change, payload).unwrap_or_else(|error| {
                panic!("seed {seed}: {change:?} fails on the backup: {error}")
            });
            memory.apply(change);
            running.extend(queue.done(&at));
        }
        assert_eq!(store.dump(), primary.store.dump(), "seed {seed}");
        assert_eq!(memory.export(), primary.memory.export(), "seed {seed}");
        assert_eq!(memory.freeable(), primary.memory.freeable(), "seed {seed}");
    }
    assert!(
        overtaken > 1000,
        "only {overtaken} changes went out of order: nothing was tested"
    );
}
