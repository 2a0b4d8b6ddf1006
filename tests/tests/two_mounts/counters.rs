//! A counter in a file, incremented from both mounts under a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use tests::scale;

use super::*;

/// Increments of both mounts together.
fn increments() -> u64 {
    scale::pick(1_000, 10_000)
}

fn count_under(lock: LockWay) {
    let pair = Pair::new();
    let paths = pair.paths("counter");
    fs::write(&paths[0], "0").unwrap();
    // Whoever is faster does more of them; both do some.
    let left = &AtomicU64::new(increments());
    let done = std::thread::scope(|scope| {
        let threads = paths.each_ref().map(|path| {
            scope.spawn(move || {
                let file = File::options().read(true).write(true).open(path).unwrap();
                let mut done = 0u64;
                while left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                        left.checked_sub(1)
                    })
                    .is_ok()
                {
                    lock(&file, FlockOperation::LockExclusive).unwrap();
                    increment(&file);
                    lock(&file, FlockOperation::Unlock).unwrap();
                    done += 1;
                }
                done
            })
        });
        threads.map(|thread| thread.join().unwrap())
    });
    let counted = fs::read_to_string(&paths[1]).unwrap();
    assert_eq!(counted, increments().to_string(), "an increment was lost");
    assert!(done.iter().all(|done| *done > 0), "no contention: {done:?}");
    pair.end();
}

fn increment(file: &File) {
    let mut text = [0u8; 16];
    let len = file.read_at(&mut text, 0).unwrap();
    let count: u64 = std::str::from_utf8(&text[..len]).unwrap().parse().unwrap();
    file.write_all_at((count + 1).to_string().as_bytes(), 0)
        .unwrap();
}

#[test]
fn a_counter_under_flock_loses_nothing() {
    count_under(BY_FLOCK);
}

#[test]
fn a_counter_under_fcntl_loses_nothing() {
    count_under(BY_FCNTL);
}
