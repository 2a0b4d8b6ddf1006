use std::collections::HashSet;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use mortar_proto::data::{CreateStep, FsyncStep, OpenStep, RenameStep, RmDirStep, WriteStep};

/// The queue's rule, said plainly: every ticket in admission order, looked at from the start.
#[derive(Default)]
struct Oracle {
    tickets: Vec<(u32, Keys)>,
}

impl Oracle {
    /// A ticket has come up at a key when all before it there have, and none of them holds it up.
    fn running(&self) -> HashSet<u32> {
        let mut running = HashSet::new();
        let mut blocked: HashSet<Key> = HashSet::new();
        let mut held: Vec<(Key, Mode)> = Vec::new();
        for (ticket, keys) in &self.tickets {
            let mut free = true;
            for (key, mode) in keys.iter() {
                let up = !blocked.contains(&key)
                    && !held
                        .iter()
                        .any(|(have, by)| *have == key && by.holds_up(mode));
                if up {
                    held.push((key, mode));
                } else {
                    blocked.insert(key);
                    free = false;
                }
            }
            if free {
                running.insert(*ticket);
            }
        }
        running
    }
}

fn random_keys(random: &mut StdRng) -> Keys {
    let mut keys = Keys::none();
    for _ in 0..random.random_range(0..4) {
        let gfid = Gfid {
            hi: 0,
            lo: random.random_range(0..5),
        };
        let key = if random.random_bool(0.5) {
            Key::Object(gfid)
        } else {
            Key::Name(gfid, 1)
        };
        keys.add(key, Mode::ALL[random.random_range(0..4)]);
    }
    keys
}

#[test]
fn the_queue_does_what_the_oracle_says() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut queue = KeyQueue::new();
        let mut oracle = Oracle::default();
        let mut next = 0;
        for _ in 0..200 {
            let before = oracle.running();
            if oracle.tickets.is_empty() || random.random_bool(0.5) {
                let keys = random_keys(&mut random);
                oracle.tickets.push((next, keys.clone()));
                assert_eq!(
                    queue.admit(next, keys),
                    oracle.running().contains(&next),
                    "{seed}"
                );
                next += 1;
            } else {
                // Mostly one that runs is done, now and then one that waits is given up.
                let give_up = random.random_bool(0.1);
                let candidates: Vec<u32> = oracle
                    .tickets
                    .iter()
                    .map(|(ticket, _)| *ticket)
                    .filter(|ticket| give_up || before.contains(ticket))
                    .collect();
                assert!(
                    !candidates.is_empty(),
                    "nothing runs: deadlock, seed {seed}"
                );
                let ticket = candidates[random.random_range(0..candidates.len())];
                oracle.tickets.retain(|(other, _)| *other != ticket);
                let ready: HashSet<u32> = queue.done(&ticket).into_iter().collect();
                let expected: HashSet<u32> = oracle
                    .running()
                    .into_iter()
                    .filter(|other| !before.contains(other))
                    .collect();
                assert_eq!(ready, expected, "seed {seed}");
            }
            assert_eq!(queue.len(), oracle.tickets.len());
            assert!(
                oracle
                    .running()
                    .iter()
                    .all(|ticket| queue.is_running(ticket))
            );
        }
        let all: Vec<u32> = oracle.tickets.iter().map(|(ticket, _)| *ticket).collect();
        for ticket in all {
            queue.done(&ticket);
        }
        assert!(queue.is_empty() && queue.lanes_left() == 0, "seed {seed}");
    }
}

fn gfid(lo: u64) -> Gfid {
    Gfid { hi: 7, lo }
}

fn keys(step: Step) -> Keys {
    keys_of(&step, SessionId(1))
}

fn conflict(earlier: &Keys, later: &Keys) -> bool {
    earlier.iter().any(|(key, mode)| {
        later
            .iter()
            .any(|(other, wants)| key == other && mode.holds_up(wants))
    })
}

fn create(parent: u64, name: &'static str, object: u64) -> Keys {
    keys(Step::Create(CreateStep {
        parent: Some(gfid(parent)),
        name: name.into(),
        gfid: Some(gfid(object)),
        ..Default::default()
    }))
}

#[test]
fn creates_run_in_parallel_and_a_removal_of_their_directory_waits() {
    let rmdir = keys(Step::Rmdir(RmDirStep {
        parent: Some(gfid(1)),
        name: "d".into(),
        gfid: Some(gfid(2)),
    }));
    assert!(!conflict(&create(2, "a", 10), &create(2, "b", 11)));
    assert!(conflict(&create(2, "a", 10), &create(2, "a", 11)));
    assert!(conflict(&create(2, "a", 10), &rmdir) && conflict(&rmdir, &create(2, "a", 10)));
    assert!(!conflict(&create(1, "x", 10), &rmdir));
}

#[test]
fn an_fsync_waits_for_writes_and_only_a_removal_waits_for_it() {
    let write = keys(Step::Write(WriteStep {
        gfid: Some(gfid(5)),
        ..Default::default()
    }));
    let fsync = keys(Step::Fsync(FsyncStep {
        gfid: Some(gfid(5)),
        data_only: false,
    }));
    let over = keys(Step::Rename(RenameStep {
        from_parent: Some(gfid(1)),
        from_name: "a".into(),
        gfid: Some(gfid(6)),
        to_parent: Some(gfid(1)),
        to_name: "b".into(),
        replaced: Some(gfid(5)),
        ..Default::default()
    }));
    let open = keys(Step::Open(OpenStep {
        session: 3,
        gfid: Some(gfid(5)),
    }));
    assert!(conflict(&write, &fsync) && !conflict(&fsync, &write));
    assert!(conflict(&fsync, &over));
    assert!(conflict(&open, &over) && conflict(&over, &open));
    assert!(
        conflict(&open, &open),
        "opens and releases of one object keep their order"
    );
}

#[test]
fn directories_that_move_keep_their_order() {
    let moved = |object: u64| {
        keys(Step::Rename(RenameStep {
            from_parent: Some(gfid(object * 10)),
            from_name: "x".into(),
            gfid: Some(gfid(object)),
            to_parent: Some(gfid(object * 10 + 1)),
            to_name: "x".into(),
            moves_directory: true,
            ..Default::default()
        }))
    };
    assert!(conflict(&moved(1), &moved(2)));
}

#[test]
fn covering() {
    let mut held = Keys::none();
    held.add(Key::Tree, Mode::Use);
    let mut needed = Keys::none();
    needed.add(Key::Tree, Mode::Change);
    assert!(!held.covers(&needed) && held.covers(&Keys::none()));
    assert!(held.union(&needed).covers(&needed));
    assert!(!Mode::Use.covers(Mode::Sync) && Mode::Change.covers(Mode::Sync));
}
